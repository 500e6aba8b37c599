"""All twelve services, each in its loop, over a server that is slow, stuck, half-open, paused, or gone and back.

They run at the pace of the clock. While the fault lasts each cycle is given up within its time-outs and counted, from
the third one on once a second, and nobody is ready; within 5 s of its end everybody is. No write is sent a second time:
what a server may have carried out late is there once.
"""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import redis

from quantum_alloc.adapters.embedded import EmbeddedServer, free_port
from quantum_alloc.adapters.keys import LIVE
from tests.support import faulting as f
from tests.support import governing as gov
from tests.support.faulting import FAST, NAMES, RECOVERS_S, Everybody
from tests.support.running import until
from tests.support.worlds import Client
from tests.tools.fault_proxy import FaultProxy

CODES = {"timeout", "closed", "unreachable", "conflict"}
LASTS_S = 2.5
BREAKER_FAILURES = 3
PROBE_S = 1.0
PAUSE_MS = 7000
A_CYCLE: dict[str, str] = {
    "portfolio": LIVE.stream("portfolio.state"),
    "regime": LIVE.stream("regime.state"),
    "allocation": LIVE.stream("allocation.cycle"),
}
"""Streams with one entry a cycle."""


@pytest.fixture
def own() -> Iterator[tuple[EmbeddedServer, Client]]:
    """A server that may be stopped, and a client of it."""
    with EmbeddedServer() as server:
        client: Client = redis.Redis.from_url(server.url, protocol=2, decode_responses=True)
        yield server, client
        client.close()


def given_up(everybody: Everybody) -> dict[str, float]:
    """Cycles given up for the store, by service."""
    return {n: one.counted("quantum_alloc_cycles_total").get("store", 0.0) for n, one in everybody.cases.items()}


def once_each(client: Client) -> None:
    """A plan a bar, a permit a plan, a fill and a result a permit."""
    for stream, wanted in ((gov.PLANS, ""), (LIVE.events, "PERMIT"), (LIVE.results, "")):
        told = [e["plan_id"] for _, e in client.xrange(stream) if not wanted or e["event"] == wanted]
        twice = [p for p, n in Counter(told).items() if n > 1]
        assert not twice, f"{stream}: {twice}"


FAULTS = ("delay", "swallow", "pause", "stopped")


@pytest.mark.parametrize("names", [NAMES], ids=["all"])
@pytest.mark.parametrize("fault", FAULTS)
def test_stuck_server(fault: str, names: Sequence[str], own: tuple[EmbeddedServer, Client], tmp_path: Path) -> None:
    """Slow beyond the time-outs, half-open, paused, stopped: given up, counted, slowed down, and back within 5 s."""
    server, client = own
    f.all_prepared(server.url, client, tmp_path / "prepared", None)
    with FaultProxy(str(server.socket)) as proxy:
        everybody = Everybody(proxy.url, tmp_path, None, **FAST)
        lasted: dict[str, list[float]] = {n: [] for n in names}
        try:
            for name, one in everybody.cases.items():
                one.loop.once = timed(one.loop.once, lasted[name])  # type: ignore[method-assign]
            everybody.go()
            until(lambda: not everybody.late(lambda one: one.loop.ready), 10, "everybody is ready")
            begin(fault, server, client, proxy)
            try:
                for times in lasted.values():
                    times.clear()
                enough = BREAKER_FAILURES + 1
                until(lambda: min(given_up(everybody).values()) >= enough, 10, "four cycles of each are given up")
                before, began = given_up(everybody), time.monotonic()
                Event().wait(LASTS_S)
                after, passed = given_up(everybody), time.monotonic() - began
                for name in names:
                    assert not everybody.cases[name].loop.ready, name
                    probes = after[name] - before[name]
                    assert 1 <= probes <= passed / (0.8 * PROBE_S) + 1, f"{name}: {probes} in {passed:.1f} s"
                    assert max(lasted[name]) < 2.0, f"{name}: a cycle of {max(lasted[name]):.1f} s"
            finally:
                end(fault, server, client, proxy)
            until(lambda: not everybody.late(lambda one: one.loop.ready), RECOVERS_S, "back within 5 s")
            for name in names:
                assert everybody.cases[name].errors.keys() <= CODES, f"{name}: {everybody.cases[name].errors}"
                assert everybody.cases[name].counted("quantum_alloc_cycles_total").get("error", 0.0) == 0.0, name
        finally:
            everybody.end()
        once_each(client)
        cut = given_up(everybody)
        for name, stream in A_CYCLE.items():
            ok = everybody.cases[name].counted("quantum_alloc_cycles_total")["ok"]
            own_entries = client.xlen(stream) - (name == "regime")  # one was there
            assert ok <= own_entries <= ok + cut[name], f"{name}: {own_entries} entries of {ok} cycles"


def timed(run: Callable[[], bool], into: list[float]) -> Callable[[], bool]:
    """A cycle that notes how long it takes."""

    def once() -> bool:
        began = time.monotonic()
        try:
            return run()
        finally:
            into.append(time.monotonic() - began)

    return once


def begin(fault: str, server: EmbeddedServer, client: Client, proxy: FaultProxy) -> None:
    """The fault."""
    if fault == "delay":
        proxy.delay(1.0)
    elif fault == "swallow":
        proxy.swallow()
    elif fault == "pause":
        client.execute_command("CLIENT", "PAUSE", str(PAUSE_MS), "ALL")
    else:
        os.kill(server.pid, signal.SIGSTOP)


def end(fault: str, server: EmbeddedServer, client: Client, proxy: FaultProxy) -> None:
    """Its end."""
    proxy.heal()
    if fault == "pause":
        other: Client = redis.Redis.from_url(server.url, socket_timeout=30.0)
        assert other.ping()  # it ends by itself
        other.close()
    elif fault == "stopped":
        os.kill(server.pid, signal.SIGCONT)


@pytest.mark.parametrize("name", NAMES)
def test_slow_server(name: str, one_server: EmbeddedServer, one_client: Client, tmp_path: Path) -> None:
    """A server that takes a while for each answer, within the time-outs, is no trouble: the cycle ends, and takes no
    longer than its chain of reads."""
    f.prepared(name, one_server, one_client, tmp_path / "prepared", None, plans=1)
    before = f.dump(one_client)
    with FaultProxy(str(one_server.socket)) as proxy:
        one = f.Case(name, proxy.url, tmp_path, None)
        try:
            proxy.delay(0.06)
            batches, began = Counted(one), 0.0
            for _ in range(6):  # a loaded machine may add what is missing to the time-out
                batches.n, began = 0, time.monotonic()
                if one.once():
                    break
                assert one.errors.keys() == {"timeout"}, one.loop.last_error
            took = time.monotonic() - began
            assert one.loop.ready, one.loop.last_error
            assert took < 0.2 * batches.n + 1.0, f"{took:.1f} s for {batches.n} questions"
        finally:
            proxy.heal()
            one.end()
    assert f.OUTPUT[name] in f.differing(before, f.dump(one_client))


class Counted:
    """Counts what a service asks, one batch after the other."""

    def __init__(self, one: f.Case) -> None:
        """Listen."""
        self.n = 0
        for method in ("read", "apply", "run"):
            setattr(one.store, method, self._counting(getattr(one.store, method)))

    def _counting(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **more: Any) -> Any:
            self.n += 1
            return call(*args, **more)

        return counted


@pytest.mark.parametrize("names", [NAMES], ids=["all"])
def test_killed_server(names: Sequence[str], tmp_path: Path) -> None:
    """The server is killed under running loops and comes back empty, as one without a disk does: nobody ends, each is
    back within 5 s, and what it remembers in Redis begins anew."""
    server = EmbeddedServer(port=free_port()).start()
    client: Client = redis.Redis.from_url(server.url, protocol=2, decode_responses=True)
    f.all_prepared(server.url, client, tmp_path / "prepared", None)
    everybody = Everybody(server.url, tmp_path, None, **FAST)
    try:
        everybody.go()
        until(lambda: not everybody.late(lambda one: one.loop.ready), 10, "everybody is ready")
        server.kill()
        until(lambda: not everybody.late(lambda one: one.loop.metrics.value("quantum_alloc_ready") == 0.0), 10, "gone")
        until(lambda: min(given_up(everybody).values()) > BREAKER_FAILURES, 10, "every breaker is open")
        server.start()
        until(lambda: not everybody.late(lambda one: one.loop.ready), RECOVERS_S, "back within 5 s")
        for name in names:
            assert everybody.cases[name].counted("quantum_alloc_cycles_total").get("error", 0.0) == 0.0, name
        f.seed(client, gov.server_now(client), "desk")
        until(lambda: not everybody.late(lambda one: client.exists(OUT[one.name])), 10, "everybody writes again")
    finally:
        everybody.end()
        client.close()
        server.stop()


OUT = {**f.OUTPUT, "apply": LIVE.apply_state}
"""What stands again though no permit was issued anew."""
