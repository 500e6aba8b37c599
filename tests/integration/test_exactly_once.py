"""Each execution counts once, whatever crashes: attribution and efficiency over a real server."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

import quantum_alloc.core as qa
from quantum_alloc.adapters import executions, flow_writes, wire
from quantum_alloc.adapters.clock import SetClock
from quantum_alloc.adapters.effects import Failed, Group, Reply
from quantum_alloc.adapters.embedded import EmbeddedServer
from quantum_alloc.adapters.keys import LIVE
from quantum_alloc.adapters.store import Store
from quantum_alloc.core.attribution import advance as attribution_advance
from quantum_alloc.core.efficiency import advance as efficiency_advance
from tests.support.flow import (
    DEAD,
    EXECUTIONS,
    PERFORMANCE,
    SCORES,
    AnyLoop,
    attribution_loop,
    efficiency_loop,
    newest,
    performance,
    run,
    sold,
    target,
)
from tests.support.running import Service, until
from tests.support.worlds import Client
from tests.tools.fault_proxy import FaultProxy

NOW = 1769577495.0
LOOPS: dict[str, tuple[Callable[..., AnyLoop], str, str]] = {
    "attribution": (attribution_loop, "quantum:p30:state", PERFORMANCE),
    "efficiency": (efficiency_loop, "quantum:p31:state", SCORES),
}
OWN = {"_pos", "_cycle", "_version", "_read", "_stream"}


@pytest.fixture
def proxy(one_server: EmbeddedServer) -> Iterator[FaultProxy]:
    """A fault proxy in front of a real server."""
    with FaultProxy(str(one_server.socket)) as found:
        yield found


def states(client: Client, key: str) -> dict[str, str]:
    """Each symbol's saved state."""
    return {n: v for n, v in client.hgetall(key).items() if n not in OWN}


def some_executions(client: Client) -> None:
    """A few executions of three symbols, one of them malformed."""
    for i in range(7):
        sold(client, f"S{i % 3}USDT", 10.0 * i - 20.0, NOW - i, signal=f"s{i % 2}")
    sold(client, "S0USDT", "NaN", NOW)
    client.xadd(EXECUTIONS, {"symbol": "S1USDT", "timestamp": int(NOW)})
    sold(client, "S2USDT", 1.5, NOW)


class Model:
    """What the state must be: the entries folded once, by the cycles that were committed."""

    def __init__(self, service: str) -> None:
        self.service = service
        self.seen = 0
        self.attribution: dict[str, qa.AttributionState] = {}
        self.efficiency: dict[str, qa.EfficiencyState] = {}

    def cycle(self, client: Client, entries: Sequence[tuple[bytes, dict[bytes, bytes]]], now: float) -> None:
        """One committed cycle."""
        fills: dict[str, tuple[qa.Execution, ...]] = {}
        for given_id, fields in entries[self.seen :]:
            made = executions.decode([given_id, [x for pair in fields.items() for x in pair]], now)
            if isinstance(made, qa.Execution):
                fills[made.symbol] = (*fills.get(made.symbol, ()), made)
        self.seen = len(entries)
        if self.service == "attribution":
            self.attribution = dict(qa.attribution_cycle(self.attribution, fills, now).states)
            return
        inputs = []
        for s in sorted({*fills, *self.efficiency, *SYMBOLS}):
            pf = client.hmget(LIVE.attribution(s), wire.ATTRIBUTION.asked)
            usd = client.hmget(LIVE.target(s), wire.TARGET.asked)
            read = wire.decode(wire.ATTRIBUTION, pf, now, 300), wire.decode(wire.TARGET, usd, now, 300)
            inputs.append(qa.EfficiencyInputs(s, now, *read, fills.get(s, ())))
        self.efficiency = dict(qa.efficiency_cycle(self.efficiency, inputs, now).states)

    def texts(self) -> dict[str, str]:
        """The states as they must stand."""
        now: dict[str, Any] = self.attribution if self.service == "attribution" else self.efficiency
        return {s: state.text() for s, state in now.items()}


SYMBOLS = ("AAUSDT", "BBUSDT")
MALFORMED: tuple[dict[str, str], ...] = (
    {"symbol": "AAUSDT", "pnl": "NaN"}, {"symbol": "?"}, {"payload": "{"}, {"x": "y"},
    {"symbol": "AAUSDT", "ts": "9999999999"},
)  # fmt: skip


@pytest.mark.parametrize("service", LOOPS)
def test_any_schedule_of_crashes(service: str, proxy: FaultProxy, one_client: Client) -> None:
    """(23) Executions, malformed entries, inputs, time, cuts after any command, lost replies, restarts, in any order:
    after every cycle the saved state is that of folding each entry once, by the cycles that were committed, bit for
    bit; a cycle that was not committed left nothing."""
    build, key, stream = LOOPS[service]

    class Machine(RuleBasedStateMachine):
        @initialize()
        def begin(self) -> None:
            one_client.flushall()
            proxy.heal()
            self.clock, self.store = SetClock(NOW), Store(proxy.url)
            self.loop = build(self.store, self.clock, symbols=SYMBOLS)
            self.model, self.committed, self.records = Model(service), 0, 0

        @rule(symbol=st.sampled_from(SYMBOLS), pnl=st.one_of(st.none(), st.floats(-1e6, 1e6)), ago=st.integers(-4, 99))
        def execute(self, symbol: str, pnl: float | None, ago: int) -> None:
            fields = {"symbol": symbol, "timestamp": repr(self.clock.now() - ago)}
            one_client.xadd(EXECUTIONS, fields if pnl is None else {**fields, "pnl_usd": repr(pnl)})

        @rule(fields=st.sampled_from(MALFORMED))
        def garbage(self, fields: dict[str, str]) -> None:
            one_client.xadd(EXECUTIONS, fields)

        @precondition(lambda _: service == "efficiency")
        @rule(symbol=st.sampled_from(SYMBOLS), x=st.floats(0, 1), usd=st.floats(0, 1e5), ago=st.sampled_from([0, 400]))
        def feed(self, symbol: str, x: float, usd: float, ago: int) -> None:
            performance(one_client, symbol, x, x, int(self.clock.now()) - ago)
            target(one_client, symbol, usd, x, int(self.clock.now()) - ago)

        @rule(seconds=st.sampled_from([0.0, 5.0, 3600.5, 86_400.0]))
        def wait(self, seconds: float) -> None:
            self.clock.set(self.clock.now() + seconds)

        @rule()
        def restart(self) -> None:
            self.store.close()
            self.store = Store(proxy.url)
            self.loop = build(self.store, self.clock, symbols=SYMBOLS)

        @rule(fault=st.sampled_from(["none", "none", "cut", "reply"]), k=st.integers(0, 25))
        def cycle(self, fault: str, k: int) -> None:
            if fault != "none":
                self.store.close()
            if fault == "cut":
                proxy.cut_after(k)
            elif fault == "reply":
                proxy.cut_reply_after(k + 1)
            ended = self.loop.once()
            proxy.heal()
            if not ended:
                self.store.close()
            number = int(one_client.hget(key, "_cycle") or 0)
            assert number - self.committed in (0, 1)
            assert number > self.committed or not ended
            if number > self.committed:
                raw: Any = Store(proxy.url)
                entries = raw.read([("XRANGE", EXECUTIONS, "-", "+")])[0]
                raw.close()
                pairs = [(e[0], dict(zip(e[1][::2], e[1][1::2], strict=True))) for e in entries]
                self.model.cycle(_Bytes(proxy.url), pairs, self.clock.now())
                self.committed = number
            assert states(one_client, key) == self.model.texts()

        def teardown(self) -> None:
            for f in newest(one_client, stream).values():
                assert qa.differences(f) == {}
            if hasattr(self, "store"):
                self.store.close()
            proxy.heal()

    run_state_machine_as_test(
        Machine, settings=settings(stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck))
    )


class _Bytes:
    """HMGET with bytes, as the wire reads it."""

    def __init__(self, url: str) -> None:
        self._url = url

    def hmget(self, key: str, names: Sequence[str]) -> Reply:
        """The fields of a hash."""
        store = Store(self._url)
        try:
            return store.read([("HMGET", key, *names)])[0]
        finally:
            store.close()


@pytest.mark.parametrize("service", LOOPS)
def test_a_cut_after_every_command(service: str, proxy: FaultProxy, one_client: Client) -> None:
    """(23) The connection cut after the k-th command, and its reply lost, for every k: nothing or the whole cycle is
    there, and after the next one every execution counts once and no dead letter stands twice."""
    build, key, stream = LOOPS[service]
    clock, store = SetClock(NOW), Store(proxy.url)
    some_executions(one_client)
    proxy.reset()
    assert build(store, clock).once()
    total, whole = len(proxy.log), states(one_client, key)
    counted = {s: counts(service, text) for s, text in whole.items()}
    assert total > 12
    for cut, first in ((proxy.cut_after, 0), (proxy.cut_reply_after, 1)):
        for k in range(first, total + 1):
            proxy.heal()
            store.close()
            one_client.flushall()
            some_executions(one_client)
            loop = build(store, clock)
            cut(k)
            ended = loop.once()
            proxy.heal()
            store.close()
            left = states(one_client, key)
            assert left in ({}, whole), f"half a state after {k} of {total}"
            assert one_client.xlen(stream) == len(left)
            assert one_client.xlen(DEAD) == (1 if left else 0)
            assert ended or not loop.ready
            assert loop.once()
            assert {s: counts(service, text) for s, text in states(one_client, key).items()} == counted
            assert one_client.xlen(DEAD) == 1
    store.close()


def counts(service: str, text: str) -> Any:
    """What of a state depends on the executions alone."""
    data = json.loads(text)
    if service == "attribution":
        return data["alpha_score"], data["window"]
    return data["volatility_ewma"], data["dd_proxy"], data["last_exec_ts"]


@pytest.mark.parametrize("service", LOOPS)
def test_a_restart_changes_no_bit(service: str, client: Client, any_server: EmbeddedServer) -> None:
    """(23) The same clock, inputs and entries with a restart before every cycle and without any: the same records and
    the same state, bit for bit."""
    build, key, stream = LOOPS[service]
    seen = []
    for restarts in (False, True):
        client.flushall()
        clock, store = SetClock(NOW), Store(any_server.url)
        loop = build(store, clock, mode="enforce")
        for i in range(30):
            now = NOW + 5.25 * i
            clock.set(now)
            if i % 3 == 0:
                sold(client, "BTCUSDT", 3.7 * i - 20.1, now - 1.5)
            if i % 7 == 0:
                performance(client, "BTCUSDT", 0.3 + i / 100, 0.9, int(now))
                target(client, "BTCUSDT", 1000.1 + i, 0.8, int(now))
            if restarts:
                store.close()
                store = Store(any_server.url)
                loop = build(store, clock, mode="enforce")
            assert loop.once()
        store.close()
        seen.append(([f for _, f in client.xrange(stream)], states(client, key)))
    assert seen[0] == seen[1]
    assert len(seen[0][0]) == 30
    assert all(qa.differences(f) == {} for f in seen[0][0])


@pytest.mark.parametrize("service", LOOPS)
def test_a_second_instance_is_refused_and_not_double_counted(
    service: str, client: Client, any_server: EmbeddedServer
) -> None:
    """Another instance writes the state between this one's read and its write: the write is refused as a conflict, and
    every execution counts once."""
    build, key, _ = LOOPS[service]
    clock = SetClock(NOW)
    some_executions(client)
    mine, other = _Meddled(any_server.url), Store(any_server.url)
    second, first = build(other, clock), build(mine, clock)
    mine.meanwhile = second.once
    assert not first.once()
    assert "does the service run twice" in first.last_error
    assert first.metrics.value("quantum_alloc_store_errors_total", "conflict") == 1.0
    once = {s: counts(service, t) for s, t in states(client, key).items()}
    assert first.once()
    assert {s: counts(service, t) for s, t in states(client, key).items()} == once
    assert client.xlen(DEAD) == 1
    mine.close()
    other.close()


class _Meddled(Store):
    """Lets something happen before its first write."""

    meanwhile: Callable[[], object] | None = None

    def apply(self, groups: Sequence[Group]) -> list[tuple[str, Failed]]:
        """Let it happen, once."""
        if self.meanwhile is not None:
            act, self.meanwhile = self.meanwhile, None
            act()
        return super().apply(groups)


@pytest.mark.parametrize("service", LOOPS)
def test_a_replaced_connection_guards_nothing(service: str, client: Client, any_server: EmbeddedServer) -> None:
    """What a WATCH guards is gone with its connection: a cycle whose connection was closed between its read and its
    write is refused, whether another instance or a failover changed the state meanwhile; then all counts once."""
    build, key, _ = LOOPS[service]
    for what in ("second instance", "failover"):
        client.flushall()
        clock, mine, other = SetClock(NOW), _Meddled(any_server.url), Store(any_server.url)
        loop, second = build(mine, clock), build(other, clock)
        sold(client, "AAUSDT", 10.0, NOW)
        assert loop.once()
        old = client.hgetall(key)
        sold(client, "AAUSDT", 20.0, NOW)
        if what == "failover":
            assert loop.once()
        sold(client, "BBUSDT", 5.0, NOW)

        def meddle(what: str = what, old: dict[str, str] = old, second: AnyLoop = second) -> None:
            sold(client, "AAUSDT", -50.0, NOW)
            if what == "failover":  # a replica that lacks the last write is promoted
                client.delete(key)
                client.hset(key, mapping=old)
            else:
                assert second.once()
            for other_client in client.client_list():
                if other_client["name"] == "quantum-alloc":
                    client.client_kill_filter(_id=other_client["id"])

        mine.meanwhile = meddle
        assert not loop.once()
        assert "conflict" in loop.last_error
        assert loop.once()
        expected = {"AAUSDT": [10.0, 20.0, -50.0], "BBUSDT": [5.0]}
        for symbol, pnls in expected.items():
            found = counts(service, states(client, key)[symbol])
            if service == "attribution":
                assert found[1]["pnl_usd"] == pnls
            else:
                vol = 0.0
                for pnl in pnls:
                    vol = qa.ewma(vol, abs(pnl), 0.2)
                assert found[0] == vol
        mine.close()
        other.close()


@pytest.mark.parametrize("service", LOOPS)
def test_the_state_belongs_to_its_stream(service: str, client: Client, any_server: EmbeddedServer) -> None:
    """Another EXECUTION_STREAM with the old state: nothing is written and it is said what to do; done, it goes on."""
    _, key, stream = LOOPS[service]
    client.xadd("fills", {"symbol": "BBUSDT", "pnl_usd": "7", "timestamp": int(NOW)})
    sold(client, "AAUSDT", 1.0, NOW)
    run(any_server.url, service, now=NOW)
    before = client.xlen(stream)
    run(any_server.url, service, now=NOW, EXECUTION_STREAM="fills")
    assert client.xlen(stream) == before
    client.hset(key, mapping={"_stream": "fills", "_pos": "0-0"})
    run(any_server.url, service, now=NOW, EXECUTION_STREAM="fills")
    assert states(client, key).keys() == {"AAUSDT", "BBUSDT"}


def test_symbols_of_executions_leave_the_universe_again(
    client: Client, any_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """(41) Invented symbols: the universe holds no more than what is remembered, nor than its limit, and none a week
    later."""
    monkeypatch.setattr(flow_writes, "UNIVERSE_LIMIT", 45)
    store, clock = Store(any_server.url), SetClock(NOW)
    loop = attribution_loop(store, clock, most=50)
    for i in range(5):
        clock.set(NOW + i)
        for j in range(40):
            sold(client, f"J{i}X{j}", 1.0, NOW)
        assert loop.once()
    assert client.hlen("quantum:p30:state") == 55
    assert client.scard("quantum:universe") <= 45
    client.sadd("quantum:universe", "MINEUSDT")
    clock.set(NOW + 8 * 86_400)
    assert loop.once()
    assert client.smembers("quantum:universe") == {"MINEUSDT"}
    store.close()


def test_large_entries_are_met_a_few_at_a_time(client: Client, any_server: EmbeddedServer) -> None:
    """Entries of a megabyte: no reply holds more than some of them, and a cycle stops after 16 MB."""
    pages: list[int] = []

    class Weighing(Store):
        def read(self, commands: Sequence[Any], wait_s: float = 0.0) -> list[Reply]:
            replies = super().read(commands, wait_s)
            pages.extend(
                len(r) for c, r in zip(commands, replies, strict=True) if c[0] == "XRANGE" and isinstance(r, list)
            )
            return replies

    for i in range(40):
        client.xadd(EXECUTIONS, {"symbol": "BTCUSDT", "pnl": i, "ts": int(NOW), "note": "x" * 1_000_000})
    store = Weighing(any_server.url, timeout_s=5)
    loop = efficiency_loop(store, SetClock(NOW))
    assert loop.once()
    assert max(pages) <= 4
    assert 16 <= sum(pages) <= 20
    assert loop.metrics.value("quantum_alloc_execution_behind") == 1
    assert loop.once()
    assert loop.once()
    assert loop.metrics.value("quantum_alloc_execution_entries_total", "applied") == 40
    store.close()


def test_a_symbol_with_nothing_but_malformed_inputs_has_a_score(client: Client, any_server: EmbeddedServer) -> None:
    """An attribution that cannot be read is one: a score with its flag every cycle; state does not come and go."""
    store, clock = Store(any_server.url), SetClock(NOW)
    performance(client, "BTCUSDT", "NaN", 0.5, int(NOW))
    loop = efficiency_loop(store, clock, symbols=("BTCUSDT",))
    for i in range(4):
        clock.set(NOW + i)
        assert loop.once()
    assert [f["stale_flags"] for _, f in client.xrange(SCORES)] == ["P30_ERROR,P29_MISSING"] * 4
    assert loop.metrics.value("quantum_alloc_state_dropped_total") == 0
    raw: Any = redis.Redis.from_url(any_server.url, protocol=2)
    raw.hset("quantum:p31:state", b"\xff\xfe", b"x")
    raw.close()
    for _ in range(3):
        assert loop.once()
    assert loop.metrics.value("quantum_alloc_state_malformed_total") == 1, "it is taken out"
    store.close()


def test_a_flood_of_malformed_entries_is_cut_into_transactions(client: Client, any_server: EmbeddedServer) -> None:
    """5,000 malformed entries in one cycle: all are set aside, in transactions of at most some thousand commands."""
    pipe = client.pipeline(transaction=False)
    for _ in range(5000):
        pipe.xadd(EXECUTIONS, {"x": "y"})
    pipe.execute()
    run(any_server.url, "efficiency", now=NOW)
    assert client.xlen(DEAD) == 5000
    assert client.hget("quantum:p31:state", "_pos") == client.xrevrange(EXECUTIONS, count=1)[0][0]


SPELLED: tuple[dict[str, str], ...] = (
    {"symbol": "BTCUSDT", "pnl_usd": "1", "timestamp": "1769577450.5"},
    {"symbol": "BTCUSDT", "pnl_usd": "NaN", "timestamp": "1769577450"},
    {"symbol": "BTCUSDT", "realized_pnl": "2", "ts": "1769577450500"},
    {"symbol": "BTCUSDT", "pnl_usd": "5", "timestamp": "1869577450"},
    {"payload": '{"symbol":"BTCUSDT","pnl":4,"ts":"2026-01-28T05:17:30.5Z"}'},
    {"payload": "\xff{"},
    {"nothing": "x" * 100_000},
    {"symbol": "BTCUSDT", "pnl_usd": "8"},
)


@pytest.mark.parametrize("service", LOOPS)
def test_bad_entries_move_nothing_but_a_counter(service: str, client: Client, any_server: EmbeddedServer) -> None:
    """(22) A NaN, a future time, unreadable entries in the middle of a batch are set aside and counted; the others
    count, in every spelling, those behind included; what is left is as if the bad ones had never been there."""
    build, key, stream = LOOPS[service]
    results = []
    for entries in (SPELLED, [e for i, e in enumerate(SPELLED) if i in (0, 2, 4, 7)]):
        client.flushall()
        for e in entries:
            client.xadd(EXECUTIONS, e)
        store = Store(any_server.url)
        loop = build(store, SetClock(NOW))
        assert loop.once()
        results.append((states(client, key), newest(client, stream)))
        if entries is SPELLED:
            m = loop.metrics
            counted = m.values("quantum_alloc_execution_entries_total")
            assert counted == {("applied",): 4, ("pnl",): 1, ("future_ts",): 1, ("payload",): 1, ("symbol",): 1}
            letters = [f for _, f in client.xrange(DEAD)]
            assert [f["reason"] for f in letters] == ["pnl", "future_ts", "payload", "symbol"]
            assert {f["service"] for f in letters} == {service}
            assert loop.once(), "nothing is read twice"
            assert client.xlen(DEAD) == 4
        store.close()
    assert results[0] == results[1]


@pytest.mark.parametrize("service", LOOPS)
def test_a_day_of_silence_then_one_execution(service: str, client: Client, any_server: EmbeddedServer) -> None:
    """24 simulated hours without an execution, with and without the service running: then one execution moves the
    averages by one step, and no old entry is seen again."""
    build, key, _ = LOOPS[service]
    clock, store = SetClock(NOW), Store(any_server.url)
    for pnl in (100.0, -40.0):
        sold(client, "BTCUSDT", pnl, NOW)
    loop = build(store, clock)
    assert loop.once()
    before = json.loads(states(client, key)["BTCUSDT"])
    for minutes in range(0, 24 * 60, 10):
        clock.set(NOW + 60.0 * minutes)
        assert loop.once()
    clock.set(NOW + 86_400.0)
    sold(client, "BTCUSDT", 10.0, clock.now())
    loop = build(store, clock)
    assert loop.once()
    after = json.loads(states(client, key)["BTCUSDT"])
    if service == "efficiency":
        assert after["volatility_ewma"] == qa.ewma(before["volatility_ewma"], 10.0, 0.2)
        assert after["dd_proxy"] == qa.ewma(before["dd_proxy"], 0.0, 0.2)
    else:
        assert after["alpha_score"] == qa.ewma(before["alpha_score"], qa.alpha(70.0 / 3.0), 0.3)
        assert after["window"]["pnl_usd"] == [100.0, -40.0, 10.0]
    assert loop.metrics.values("quantum_alloc_execution_entries_total") == {("applied",): 1}
    store.close()


def test_scores_come_every_cycle_without_any_execution(client: Client, any_server: EmbeddedServer) -> None:
    """No execution stream at all: a target or an attribution is enough for a score every cycle; the average moves."""
    clock, store = SetClock(NOW), Store(any_server.url)
    performance(client, "BTCUSDT", 0.9, 0.9, int(NOW))
    target(client, "ETHUSDT", 500.0, 0.8, int(NOW))
    loop = efficiency_loop(store, clock)
    for i in range(12):
        clock.set(NOW + 5 * i)
        assert loop.once()
    records = [f for _, f in client.xrange(SCORES)]
    assert [f["symbol"] for f in records] == ["BTCUSDT", "ETHUSDT"] * 12
    averages = [float(f["efficiency_ewma"]) for f in records if f["symbol"] == "BTCUSDT"]
    assert averages == sorted(set(averages))
    assert loop.metrics.value("p31_loops_total") == 12
    assert loop.metrics.value("p31_inputs_missing_total", "BTCUSDT", "p29") == 12
    assert loop.metrics.value("p31_lkg_used_total", "ETHUSDT") == 12
    store.close()


@pytest.mark.parametrize("service", LOOPS)
def test_a_backlog_is_taken_in_steps_and_once_takes_all(
    service: str, client: Client, any_server: EmbeddedServer
) -> None:
    """At most the limit a cycle; `--once` drains what is there; the states are the same but for the clock of cycles."""
    build, key, _ = LOOPS[service]
    for i in range(250):
        sold(client, "BTCUSDT", float(i % 17) - 8.0, NOW)
    store = Store(any_server.url)
    loop = build(store, SetClock(NOW), limit=100)
    taken = []
    for _ in range(4):
        assert loop.once()
        applied = loop.metrics.value("quantum_alloc_execution_entries_total", "applied")
        taken.append((applied, loop.metrics.value("quantum_alloc_execution_behind")))
    assert taken == [(100.0, 1.0), (200.0, 1.0), (250.0, 0.0), (250.0, 0.0)]
    in_steps = counts(service, states(client, key)["BTCUSDT"])
    client.delete(key)
    run(any_server.url, service, now=NOW, P31_MAX_EVENTS_PER_LOOP="10", P30_MAX_EVENTS_PER_LOOP="10")
    assert counts(service, states(client, key)["BTCUSDT"]) == in_steps
    store.close()


@pytest.mark.parametrize("service", LOOPS)
def test_gaps_are_counted(service: str, client: Client, any_server: EmbeddedServer) -> None:
    """Entries trimmed before they were read are counted; a stream that was deleted and begun again is counted once and
    gone on with from the old position; one whose ids are behind it is told of and not read."""
    build, key, _ = LOOPS[service]
    store, clock = Store(any_server.url), SetClock(NOW)
    loop = build(store, clock)
    m = loop.metrics
    for i in range(5):
        client.xadd(EXECUTIONS, {"symbol": "BTCUSDT", "pnl": "1", "ts": str(NOW)}, id=f"{1000 + i}-0")
    assert loop.once()
    assert m.value("quantum_alloc_execution_missed_total") == 0
    for i in range(10):
        client.xadd(EXECUTIONS, {"symbol": "BTCUSDT", "pnl": "1", "ts": str(NOW)}, id=f"{2000 + i}-0")
    client.xtrim(EXECUTIONS, minid="2007-0", approximate=False)
    assert loop.once()
    assert loop.once()
    assert m.value("quantum_alloc_execution_missed_total") == 7
    assert m.value("quantum_alloc_execution_entries_total", "applied") == 8
    client.delete(EXECUTIONS)
    client.xadd(EXECUTIONS, {"symbol": "BTCUSDT", "pnl": "1", "ts": str(NOW)}, id="1500-0")
    assert loop.once()
    assert loop.once()
    assert m.value("quantum_alloc_execution_stream_restarts_total") == 1
    assert m.value("quantum_alloc_execution_beyond") == 1
    assert m.value("quantum_alloc_execution_entries_total", "applied") == 8
    client.xadd(EXECUTIONS, {"symbol": "BTCUSDT", "pnl": "1", "ts": str(NOW)}, id="3000-0")
    assert loop.once()
    assert m.value("quantum_alloc_execution_beyond") == 0
    assert m.value("quantum_alloc_execution_entries_total", "applied") == 9
    assert m.value("quantum_alloc_execution_missed_total") == 7
    assert client.hget(key, "_pos") == "3000-0"
    store.close()


@pytest.mark.parametrize("service", LOOPS)
@pytest.mark.parametrize("how", ["type", "version", "position", "fields"])
def test_a_state_that_cannot_be_trusted_writes_nothing(
    how: str, service: str, client: Client, any_server: EmbeddedServer
) -> None:
    """Another type, an unknown version, no position, too many fields: nothing is written and it is said why; when it
    is put right the service goes on."""
    build, key, stream = LOOPS[service]
    sold(client, "BTCUSDT", 5.0, NOW)
    if how == "type":
        client.set(key, "x")
    elif how == "fields":
        client.hset(key, mapping={f"S{i}": "x" for i in range(10_100)})
    else:
        client.hset(key, mapping={"_version": "2", "_pos": "0-0"} if how == "version" else {"_version": "1"})
    store = Store(any_server.url)
    loop = build(store, SetClock(NOW))
    assert loop.once()
    assert loop.last_nothing
    assert loop.metrics.value("quantum_alloc_cycles_total", "nothing") == 1
    assert client.xlen(stream) == client.xlen(DEAD) == 0
    assert client.exists("quantum:universe") == 0
    client.delete(key)
    assert loop.once()
    assert (loop.last_nothing, client.xlen(stream)) == ("", 1)
    store.close()


@pytest.mark.parametrize("service", LOOPS)
def test_one_unreadable_state_begins_anew(service: str, client: Client, any_server: EmbeddedServer) -> None:
    """One symbol's state that cannot be read costs that symbol's memory and is counted; the others go on."""
    build, key, _ = LOOPS[service]
    for s in ("AAUSDT", "BBUSDT"):
        sold(client, s, 50.0, NOW)
    store = Store(any_server.url)
    loop = build(store, SetClock(NOW))
    assert loop.once()
    good = counts(service, states(client, key)["BBUSDT"])
    client.hset(key, "AAUSDT", '{"alpha_score": 7}')
    sold(client, "AAUSDT", 20.0, NOW)
    assert loop.once()
    after = {s: counts(service, t) for s, t in states(client, key).items()}
    assert after["BBUSDT"] == good
    assert after["AAUSDT"][0] == (qa.alpha(20.0) if service == "attribution" else 4.0)
    assert loop.metrics.value("quantum_alloc_state_malformed_total") == 1
    store.close()


@pytest.mark.parametrize("service", LOOPS)
def test_an_unreadable_stream_stops_no_score(service: str, client: Client, any_server: EmbeddedServer) -> None:
    """A stream key of another type: no new executions, counted; what is known is published all the same."""
    build, key, stream = LOOPS[service]
    sold(client, "BTCUSDT", 5.0, NOW)
    store = Store(any_server.url)
    loop = build(store, SetClock(NOW))
    assert loop.once()
    before = states(client, key)
    client.delete(EXECUTIONS)
    client.set(EXECUTIONS, "x")
    assert loop.once()
    assert {s: counts(service, t) for s, t in states(client, key).items()} == {
        s: counts(service, t) for s, t in before.items()
    }
    assert client.xlen(stream) == 2
    assert loop.metrics.value("quantum_alloc_inputs_total", "executions", "redis_error") == 1
    store.close()


@pytest.mark.parametrize("service", LOOPS)
def test_ten_thousand_symbols_come_and_go(service: str, one_client: Client, one_server: EmbeddedServer) -> None:
    """(41) 11,000 symbols with one execution each: at most 10,000 are remembered, all labels stay bounded, and after
    seven days the state holds no symbol."""
    build, key, _ = LOOPS[service]
    pipe = one_client.pipeline(transaction=False)
    for i in range(11_000):
        pipe.xadd(EXECUTIONS, {"symbol": f"S{i:05}", "pnl_usd": "1", "ts": str(NOW + i // 1000)})
    pipe.execute()
    store, clock = Store(one_server.url), SetClock(NOW)
    loop = build(store, clock, limit=3000)
    for i in range(4):
        clock.set(NOW + 100.0 * i)
        assert loop.once(), loop.last_error
    assert one_client.hlen(key) == 10_005
    assert loop.metrics.value("quantum_alloc_state_symbols") == 10_000
    assert loop.metrics.value("quantum_alloc_state_dropped_total") == 1000
    assert len(loop.metrics.render()) < 2_000_000
    clock.set(NOW + 8 * 86_400.0)
    assert loop.once()
    assert one_client.hlen(key) == 5
    store.close()


def test_only_the_listed_symbols_count(client: Client, any_server: EmbeddedServer) -> None:
    """With QA_SYMBOLS executions of other symbols are passed and counted, and their old state is not published."""
    for s in ("BTCUSDT", "ETHUSDT"):
        sold(client, s, 5.0, NOW)
    run(any_server.url, "attribution", "efficiency", now=NOW)
    for s in ("BTCUSDT", "ETHUSDT"):
        sold(client, s, 7.0, NOW)
    run(any_server.url, "attribution", "efficiency", now=NOW + 5, QA_SYMBOLS="BTCUSDT")
    for stream in (PERFORMANCE, SCORES):
        assert [f["symbol"] for _, f in client.xrange(stream)] == ["BTCUSDT", "ETHUSDT", "BTCUSDT"]
    assert json.loads(client.hget("quantum:p30:state", "ETHUSDT"))["window"]["pnl_usd"] == [5.0]


@pytest.mark.parametrize("service", LOOPS)
def test_killed_at_random_instants(service: str, one_client: Client, one_server: EmbeddedServer) -> None:
    """The real process, killed again and again without warning while executions come: each counts once."""
    _, key, _ = LOOPS[service]
    random = Random(7)
    now, pnls = time.time(), [float(i % 23) - 11.0 for i in range(400)]
    interval = {"P30_INTERVAL_SEC": "0.1", "P31_LOOP_SEC": "0.1", "P30_MAX_EVENTS_PER_LOOP": "7"}
    written = 0
    for _ in range(6):
        with Service(service, one_server.url, **interval, P31_MAX_EVENTS_PER_LOOP="7") as running:
            until(running.ready, 10, "ready")
            for _ in range(8):
                for _ in range(8):
                    sold(one_client, "BTCUSDT", pnls[written], now - 5)
                    written += 1
                time.sleep(random.uniform(0.0, 0.06))
            assert running.process is not None
            running.process.kill()
    for pnl in pnls[written:]:
        sold(one_client, "BTCUSDT", pnl, now - 5)
    run(one_server.url, service, now=now + 30)
    if service == "efficiency":
        state = qa.EfficiencyState()
        for pnl in pnls:
            state = efficiency_advance(state, qa.Execution("BTCUSDT", 0.0, pnl))
        expected: Any = (state.volatility_ewma, state.dd_proxy)
        assert counts(service, states(one_client, key)["BTCUSDT"])[:2] == expected
    else:
        window = qa.AttributionState()
        for pnl in pnls:
            window = attribution_advance(window, qa.Execution("BTCUSDT", 0.0, pnl))
        assert counts(service, states(one_client, key)["BTCUSDT"])[0] == window.alpha_score


def test_efficiency_answers_on_both_ports_and_once_by_setting(one_client: Client, one_server: EmbeddedServer) -> None:
    """/health and /ready on the port and on the health port; P31_RUN_ONCE runs one cycle and ends with 0."""
    with Service("efficiency", one_server.url) as running:
        until(running.ready, 10, "ready")
        other = running.environ["P31_HEALTH_PORT"]
        with urllib.request.urlopen(f"http://127.0.0.1:{other}/health", timeout=2) as answer:
            assert json.load(answer)["service"] == "efficiency"
        with urllib.request.urlopen(f"http://127.0.0.1:{other}/ready", timeout=2) as answer:
            assert answer.status == 200
        assert running.health()["mode"] == "shadow"
        assert running.metric("p31_loops_total") >= 1
        code, took = running.terminate()
        assert (code, took < 2.0) == (0, True)
    performance(one_client, "BTCUSDT", 0.5, 1.0, int(time.time()))
    with Service("efficiency", one_server.url, P31_RUN_ONCE="1") as running:
        assert running.wait() == 0
        assert "Efficiency cycle complete symbols=1" in running.output
        assert running.get("/health")[0] == 0
