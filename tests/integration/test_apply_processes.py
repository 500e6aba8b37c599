"""The apply layer as an operator runs it: processes, signals, its pace, a server that comes late, hangs and goes."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from statistics import median
from threading import Event, Thread
from typing import Any

import pytest
import redis

from quantum_alloc.adapters.embedded import EmbeddedServer, free_port
from quantum_alloc.adapters.keys import LIVE
from quantum_alloc.core.limits import US
from tests.conftest import CI
from tests.support import applying as ap
from tests.support import governing as gov
from tests.support.running import Service, until
from tests.support.worlds import Client

SYMBOLS = tuple(f"S{n:02}" for n in range(10))
WIDE = {
    "APPLY_MODE": "production",
    "GOV_ENABLE_AUTO_DISARM": "0",
    "GOV_SYMBOL_COOLDOWN_SECONDS": "0",
    "GOV_MAX_EXEC_PER_HOUR": "10000",
    "GOV_MAX_EXEC_PER_5MIN": "10000",
    "GOV_MAX_CLOSE_PER_HOUR": "800",
    "GOV_MAX_CLOSE_PER_5MIN": "10000",
    "GOV_MAX_OPEN_POSITIONS": "1000",
    "GOV_MAX_TOTAL_NOTIONAL_USDT": "1e12",
    "GOV_MAX_REDUCE_NOTIONAL_PER_DAY_USD": "1e12",
    "LOG_LEVEL": "WARNING",
}
"""Limits that stop nothing."""


def connected(url: str) -> Client:
    """A client."""
    found: Any = redis.Redis.from_url(url, protocol=2, decode_responses=True)
    return found


def applying(url: str, **environ: str) -> Service:
    """An apply layer; entering starts it."""
    return Service("apply", url, **{"APPLY_MODE": "production", "LOG_LEVEL": "WARNING", **environ})


def governing(url: str, directory: Path) -> Service:
    """A governor; entering starts it."""
    return Service("governor", url, **WIDE, STATE_DIRECTORY=str(directory), GOV_CONSUMER="gov-a")


def fresh(client: Client) -> float:
    """Prices and a portfolio of now; the server's clock."""
    now = gov.server_now(client)
    for symbol in SYMBOLS:
        gov.market(client, symbol, 100.0, now)
    gov.portfolio(client, now)
    return now


@contextmanager
def flow(url: str, pause_s: float, first: int = 0) -> Iterator[None]:
    """Plans in a steady flow, three opens to a close, numbered from the first, and prices that stay fresh, until the
    end of the block."""
    stop = Event()
    troubles: list[BaseException] = []

    def run() -> None:
        client, n, at = connected(url), first, 0.0
        try:
            while not stop.is_set():
                if time.monotonic() >= at:
                    fresh(client)
                    at = time.monotonic() + 1.0
                now, symbol = repr(gov.server_now(client)), SYMBOLS[n % 10]
                if n % 4 == 3:
                    gov.closing(client, f"p{n}", symbol, now, action="PARTIAL_50")
                else:
                    gov.opening(client, f"p{n}", symbol, now)
                n += 1
                stop.wait(pause_s)
        except BaseException as error:
            troubles.append(error)
        finally:
            client.close()

    thread = Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(10)
    assert not troubles, troubles


def permitted(client: Client) -> Counter[str]:
    """PERMIT events by plan id."""
    return Counter(e["plan_id"] for e in gov.events(client, "PERMIT"))


def all_told(client: Client) -> None:
    """Every permit has one result; what was not filled had expired or closed nothing."""
    assert ap.fates(client).keys() == permitted(client).keys()
    assert ap.permits(client) == {}
    ap.check(client)
    c = ap.account(client).permits.counts
    assert (c.issued, c.without_permit, c.above_permit) == (len(permitted(client)), 0, 0)


KILLS = 40 if CI else 6


def test_sigkill_at_random_instants(
    one_server: EmbeddedServer, one_client: Client, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An apply layer killed and started again and again while a governor permits: no permit is filled twice, none is
    lost, the account is the sum of the fills whenever it is looked at."""
    rng, killed = Random(17), 0
    fresh(one_client)
    with applying(one_server.url) as service:
        until(lambda: one_client.exists(LIVE.apply_state), 15, "the account is open")
        service.terminate()
    with governing(one_server.url, tmp_path) as governor, flow(one_server.url, 0.01):
        until(governor.ready, 15, "the governor is ready")
        while killed < KILLS:
            before = one_client.xlen(ap.RESULTS)
            with applying(one_server.url) as service:
                until(lambda before=before: one_client.xlen(ap.RESULTS) > before, 15, "it fills")  # type: ignore[misc]
                time.sleep(rng.random() * 0.2)
                assert service.process is not None
                service.process.kill()
                assert service.wait() == -signal.SIGKILL
            killed += 1
            ap.check(one_client)
    with applying(one_server.url):
        until(lambda: len(ap.results(one_client)) >= len(permitted(one_client)), 15, "the rest is taken")
        until(lambda: ap.account(one_client).permits.counts.fills == len(ap.fills(one_client)), 15, "all is read back")
    all_told(one_client)
    told = Counter(ap.fates(one_client).values())
    assert set(told) <= {"filled", "nothing_to_close", "would_add"}, told
    assert told["filled"] > 5 * KILLS
    with capsys.disabled():
        print(f"\n{killed} kills, {dict(told)}", end="")


def test_sigterm_at_random_instants(one_server: EmbeddedServer, one_client: Client, tmp_path: Path) -> None:
    """SIGTERM under load: exit 0 within 2 s, the log without a warning of the interpreter's, nothing half done."""
    rng = Random(5)
    fresh(one_client)
    with governing(one_server.url, tmp_path), flow(one_server.url, 0.01):
        for _ in range(20 if CI else 3):
            with applying(one_server.url) as service:
                until(lambda service=service: service.get("/health")[0] == 200, 10, "it runs")  # type: ignore[misc]
                time.sleep(rng.random() * 0.5)
                code, took = service.terminate()
                assert (code, took < 2.0) == (0, True), service.output
                assert "Warning" not in service.output
            ap.check(one_client)


def test_two_at_once_under_load(one_server: EmbeddedServer, one_client: Client, tmp_path: Path) -> None:
    """Two processes on one account: no permit is filled twice, and all are filled."""
    fresh(one_client)
    with applying(one_server.url) as one:
        until(one.ready, 15, "ready")
        with applying(one_server.url) as two, governing(one_server.url, tmp_path), flow(one_server.url, 0.01):
            until(lambda: len(ap.fills(one_client)) > 60, 30, "they fill")
            time.sleep(0.3)
            assert two.terminate()[0] == 0, two.output
        until(lambda: len(ap.results(one_client)) >= len(permitted(one_client)), 15, "the rest is taken")
        until(lambda: ap.account(one_client).permits.counts.fills == len(ap.fills(one_client)), 15, "all is read back")
    all_told(one_client)


def test_started_before_redis(tmp_path: Path) -> None:
    """Redis down at the start: it starts, is not ready, is healthy, is ready within 2 s of Redis, and opens the
    account."""
    server = EmbeddedServer(port=free_port())
    with applying(server.url) as service:
        until(lambda: service.get("/health")[0] == 200, 10, "healthy")
        began = time.monotonic()
        while time.monotonic() - began < 1.5:
            assert service.get("/ready")[0] == 503
            assert service.get("/health")[0] == 200
            time.sleep(0.2)
        server.start()
        try:
            until(service.ready, 2.0, "ready within 2 s")
            assert service.metric('quantum_alloc_store_errors_total{code="unreachable"}') >= 1
            client = connected(server.url)
            assert ap.account(client).balance_usd == ap.EQUITY_USD
            client.close()
            assert service.terminate()[0] == 0
        finally:
            server.stop()


def test_a_server_that_hangs(tmp_path: Path) -> None:
    """The server is stopped under load and goes on later: not ready meanwhile, healthy, then all permits are filled
    that had not expired, each once."""
    with EmbeddedServer() as server:
        client = connected(server.url)
        fresh(client)
        with applying(server.url) as service, governing(server.url, tmp_path) as governor:
            until(service.ready, 15, "ready")
            until(governor.ready, 15, "ready")
            with flow(server.url, 0.02):
                until(lambda: len(ap.fills(client)) > 5, 15, "it fills")
            os.kill(server.pid, signal.SIGSTOP)
            try:
                until(lambda: service.get("/ready")[0] == 503, 5, "not ready")
                assert service.get("/health")[0] == 200
                time.sleep(0.5)
            finally:
                os.kill(server.pid, signal.SIGCONT)
            until(service.ready, 3.0, "ready again")
            with flow(server.url, 0.02, 10_000):
                before = len(ap.fills(client))
                until(lambda: len(ap.fills(client)) > before + 5, 15, "it fills again")
            until(lambda: len(ap.results(client)) >= len(permitted(client)), 15, "the rest is taken")
            until(lambda: ap.account(client).permits.counts.fills == len(ap.fills(client)), 15, "all is read back")
            all_told(client)
            assert service.terminate()[0] == 0
        client.close()


def test_it_is_quiet_where_nothing_happens_and_quick_where_something_does(
    one_server: EmbeddedServer, one_client: Client, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Idle it does a few cycles a second; from a permit to its fill takes some milliseconds, which are printed."""
    fresh(one_client)
    with applying(one_server.url, QA_APPLY_MARK_SEC="0.5") as service:
        until(service.ready, 15, "ready")
        time.sleep(0.5)
        before, began = service.metric('quantum_alloc_cycles_total{outcome="ok"}'), time.monotonic()
        time.sleep(2.0)
        pace = (service.metric('quantum_alloc_cycles_total{outcome="ok"}') - before) / (time.monotonic() - began)
        assert 1.0 <= pace <= 8.0, f"{pace:.1f} cycles a second"
        assert service.process is not None
        with governing(one_server.url, tmp_path) as governor:
            until(governor.ready, 15, "ready")
            for n in range(20):
                gov.opening(one_client, f"p{n}", SYMBOLS[n % 10], repr(fresh(one_client)))
                until(lambda n=n: len(ap.fills(one_client)) > n, 5, "filled")  # type: ignore[misc]
    issued = {e["plan_id"]: int(e["issued_us"]) for e in gov.events(one_client, "PERMIT")}
    took = [int(i.split("-")[0]) - issued[f["plan_id"]] * 1000 / US for i, f in one_client.xrange(ap.FILLS)]
    with capsys.disabled():
        print(f"\nidle {pace:.1f} cycles/s; permit to fill {median(took):.1f} ms, at most {max(took):.1f} ms", end="")
    ap.check(one_client)


def test_it_waits_without_a_busy_loop_while_a_permit_waits(
    one_server: EmbeddedServer, one_client: Client, tmp_path: Path
) -> None:
    """At HALT with a permit at hand it looks again about ten times a second, and no more."""
    fresh(one_client)
    with applying(one_server.url) as service, governing(one_server.url, tmp_path):
        until(service.ready, 15, "ready")
        one_client.delete(LIVE.market(SYMBOLS[0]))
        gov.opening(one_client, "p1", SYMBOLS[0], repr(gov.server_now(one_client)))
        until(lambda: service.metric("quantum_alloc_permits_waiting") == 1.0, 10, "it waits for a price")
        before, began = service.metric('quantum_alloc_cycles_total{outcome="ok"}'), time.monotonic()
        time.sleep(1.0)
        pace = (service.metric('quantum_alloc_cycles_total{outcome="ok"}') - before) / (time.monotonic() - began)
        assert 2.0 <= pace <= 12.0, f"{pace:.1f} cycles a second"
        one_client.set(LIVE.kill, "1")
        fresh(one_client)
        until(lambda: service.metric('quantum_alloc_kill_state{state="HALT"}') == 1.0, 5, "halted")
        time.sleep(0.3)
        assert ap.fills(one_client) == []
        one_client.delete(LIVE.kill)
        gov.rearm(one_client, gov.server_now(one_client))
        until(lambda: ap.fates(one_client) == {"p1": "filled"}, 10, "filled after the rearm")
        assert service.terminate()[0] == 0
