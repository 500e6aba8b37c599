"""The desk over a real server: what it reads, what it proposes, once a bar, and what the governor answers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

import quantum_alloc.core as qa
from quantum_alloc.adapters.clock import SetClock
from quantum_alloc.adapters.effects import Command, Failed, Group, Reply
from quantum_alloc.adapters.embedded import EmbeddedServer
from quantum_alloc.adapters.keys import LIVE
from quantum_alloc.adapters.metrics import Metrics
from quantum_alloc.adapters.plans import decode
from quantum_alloc.adapters.store import Store, StoreError
from quantum_alloc.adapters.universe import Universe
from quantum_alloc.adapters.writes import Target
from quantum_alloc.core.desk import DeskParams
from quantum_alloc.core.limits import US
from quantum_alloc.core.record_desk import desk_again
from quantum_alloc.services import desk
from quantum_alloc.services.desk_options import DeskOptions
from quantum_alloc.services.governor_options import GovernorOptions
from quantum_alloc.services.loop import Loop
from quantum_alloc.services.settings import SettingsError, read, variables
from tests.support import governing as g
from tests.support.worlds import Client
from tests.tools.fault_proxy import FaultProxy

PLANS = "quantum:stream:apply.plan"
STATE = "quantum:desk:state"
START = 1769577480
NOW = START + 15.0
S, T = "BTCUSDT", "ETHUSDT"
PARAMS = DeskParams(channel_bars=3)
AnyLoop = Loop[Any, Any, Any]
CALM = (100.0, 101.0, 100.0)


@pytest.fixture
def store(one_server: EmbeddedServer) -> Iterator[Store]:
    """A connection."""
    found = Store(one_server.url)
    yield found
    found.close()


def desk_loop(
    store: Store,
    clock: SetClock | None,
    params: DeskParams = PARAMS,
    plans: str = PLANS,
    universe: Universe | None = None,
) -> AnyLoop:
    """The desk over a store and a clock of the test's; without one it takes the server's."""
    metrics = Metrics("desk")
    cycle = desk.build(store, metrics, universe or desk.universe_of(), params, Target(), plans, 60.0, clock)
    return Loop(cycle, store, metrics, clock or SetClock(0.0))


def bars(client: Client, symbol: str, closes: Sequence[float], end: float = START) -> None:
    """Bars of a minute each, the last closing at ``end``."""
    for i, close in enumerate(closes):
        ts = end - 60.0 * (len(closes) - 1 - i)
        client.xadd(LIVE.bars(symbol), {"ts": repr(ts), "close": repr(close), "volume": "1", "bar_s": "60"})


def put(client: Client, key: str, ts: float, name: str = "timestamp", **fields: object) -> None:
    """A hash, as another program writes it."""
    client.hset(key, mapping={**{n: str(v) for n, v in fields.items()}, name: repr(ts)})


def market(client: Client, symbol: str, ts: float = NOW, price: float = 120.0, sigma: float = 0.006) -> None:
    """A symbol's market state."""
    put(client, LIVE.market(symbol), ts, price=price, sigma=sigma)


def portfolio(client: Client, ts: float = NOW, drawdown: float = 0.015) -> None:
    """The portfolio."""
    put(client, LIVE.portfolio, ts, equity_usd=100_000, drawdown=drawdown, positions_notional_usd=0, positions_count=0)


def position(client: Client, symbol: str, qty: float, mark: float, ts: float = NOW, **more: float) -> None:
    """A symbol's position."""
    put(client, LIVE.position(symbol), ts, "ts_epoch", position_amt=qty, mark_price=mark, **more)


def breaking_out(client: Client, *symbols: str, target_usd: float = 1000.0) -> None:
    """Symbols above their channel, flat, with a target in shadow or none told; a sound portfolio."""
    portfolio(client)
    for symbol in symbols:
        bars(client, symbol, (*CALM, 120.0))
        market(client, symbol)
        put(client, LIVE.target(symbol), NOW, target_usd=target_usd, mode="shadow")


def plans(client: Client) -> list[dict[str, str]]:
    """Everything that was proposed, in order."""
    return [fields for _, fields in client.xrange(PLANS)]


def quiet(loop: AnyLoop, reason: str) -> float:
    """How often nothing was proposed for a reason."""
    return loop.metrics.value("quantum_alloc_desk_quiet_total", reason)


def test_an_open_carries_what_the_governor_needs(one_client: Client, store: Store) -> None:
    """Every field of the contract, whole seconds, the quantity to the last bit; the record makes it again, and the
    governor's own reading of the entry is an open with exactly these numbers."""
    breaking_out(one_client, S)
    loop = desk_loop(store, SetClock(NOW + 0.75))
    assert loop.once()
    (found,) = plans(one_client)
    record = found.pop("desk")
    score = 1.0 - (1.0 - 0.015 / 0.15) * (1.0 - 0.006 / 0.03)
    assert found == {
        "plan_id": f"desk-{S}-{START}",
        "symbol": S,
        "action": "BREAKOUT_LONG",
        "decision": "EXECUTE",
        "side": "BUY",
        "qty": repr(200.0 / 120.0),
        "price": "120.0",
        "kill_score": repr(score),
        "source": "desk",
        "timestamp": str(int(NOW)),
        "ts": str(int(NOW)),
    }
    made = desk_again({"desk": record})
    assert (made.action, made.qty, made.inputs.now_us) == ("BREAKOUT_LONG", 200.0 / 120.0, round((NOW + 0.75) * US))
    assert (made.inputs.closes, made.inputs.bar_ts) == ((*CALM, 120.0), float(START))
    assert (made.inputs.sigma, made.inputs.drawdown, made.inputs.mark_usd) == (0.006, 0.015, 120.0)
    assert json.loads(record)["params"] == {"channel_bars": 3}
    told = decode([b"1-0", [x.encode() for pair in found.items() for x in pair]])
    assert isinstance(told, qa.Plan)
    assert (told.flaw, told.side, told.qty, told.kill_score) == ("", qa.Side.BUY, 200.0 / 120.0, score)
    assert one_client.hgetall(STATE) == {S: f"{float(START)!r} {round((NOW + 0.75) * US)}"}
    assert one_client.smembers("quantum:universe") == {S}
    assert loop.last_line == "Desk cycle complete symbols=1 plans=1"
    assert loop.metrics.value("quantum_alloc_desk_plans_total", "BREAKOUT_LONG") == 1.0
    assert loop.metrics.value("quantum_alloc_inputs_total", "target", "ok") == 1.0


def test_a_close_carries_no_side_and_no_quantity(one_client: Client, store: Store) -> None:
    """A position above its target: an action and a price, no side, no quantity, no kill score."""
    portfolio(one_client)
    bars(one_client, S, CALM)
    market(one_client, S)
    position(one_client, S, 10.0, 100.0)
    put(one_client, LIVE.target(S), NOW, target_usd=500.0)
    assert desk_loop(store, SetClock(NOW)).once()
    (found,) = plans(one_client)
    assert desk_again(found).reason.value == "above_target"
    own = {"plan_id", "symbol", "action", "decision", "price", "source", "desk", "timestamp", "ts"}
    assert (found["action"], found["price"], set(found)) == ("PARTIAL_50", "100.0", own)


@pytest.mark.parametrize(
    ("qty", "closes", "opened", "extreme"),
    [
        (1.0, (150.0, 100.0, 130.0, 120.0), START - 60.0, 130.0),
        (1.0, (150.0, 100.0, 130.0, 120.0), START - 59.0, 130.0),
        (1.0, (150.0, 100.0, 130.0, 120.0), START, 120.0),
        (1.0, (150.0, 100.0, 130.0, 120.0), START - 179.0, 150.0),
        (1.0, (150.0, 100.0, 130.0, 120.0), START + 999.0, 120.0),
        (-1.0, (90.0, 140.0, 110.0, 120.0), START - 120.0, 110.0),
        (-1.0, (90.0, 140.0, 110.0, 120.0), START - 121.0, 90.0),
        (1.0, (150.0, 100.0, 130.0, 120.0), None, None),
        (0.0, (150.0, 100.0, 130.0, 120.0), START - 179.0, None),
    ],
)
def test_the_extreme_is_of_the_bars_since_the_position_was_opened(
    one_client: Client, store: Store, qty: float, closes: Sequence[float], opened: float | None, extreme: float | None
) -> None:
    """The bar that was under way when it was opened counts, those before do not, the newest one always does."""
    portfolio(one_client)
    bars(one_client, S, closes)
    market(one_client, S)
    position(one_client, S, qty, 120.0, **({} if opened is None else {"opened_ts": opened}))
    loop = desk_loop(store, SetClock(NOW))
    (found,) = loop.cycle.read(NOW).inputs
    assert found.extreme_usd == extreme


def test_a_trailing_stop_closes_everything(one_client: Client, store: Store) -> None:
    """A long one sigma below its highest close: a full close, with the target missing."""
    portfolio(one_client)
    bars(one_client, S, (100.0, 130.0, 129.5, 129.0))
    market(one_client, S, sigma=0.005)
    position(one_client, S, 2.0, 129.0, opened_ts=START - 180.0)
    assert desk_loop(store, SetClock(NOW)).once()
    (found,) = plans(one_client)
    assert (found["action"], desk_again(found).reason.value) == ("FULL_CLOSE_PROPOSED", "trailing_stop")


def test_a_bar_leads_to_one_plan(one_client: Client, store: Store) -> None:
    """Any number of cycles and any restart over the same bar propose once; each symbol goes by its own bars, so that
    one whose bars come late is not passed over; a bar that goes back in time leads to none."""
    breaking_out(one_client, S, T)
    clock = SetClock(NOW)
    loop = desk_loop(store, clock)
    for _ in range(3):
        assert loop.once()
        assert len(plans(one_client)) == 2
    assert desk_loop(store, clock).once()
    assert len(plans(one_client)) == 2
    for s in (S, T):
        one_client.set(LIVE.tombstone(f"desk-{s}-{START}"), "answered")
    clock.set(NOW + 60.0)
    for s in (S, T):
        market(one_client, s, NOW + 60.0)
    portfolio(one_client, NOW + 60.0)
    bars(one_client, S, (130.0,), START + 60.0)
    assert loop.once()
    assert [p["plan_id"] for p in plans(one_client)][2:] == [f"desk-{S}-{START + 60}"]
    bars(one_client, T, (130.0,), START + 60.0)  # its bar of the same minute comes after the cycle
    assert loop.once()
    assert [p["plan_id"] for p in plans(one_client)][3:] == [f"desk-{T}-{START + 60}"]
    assert quiet(loop, "bar_done") == 2 * 2 + 1 + 1
    one_client.delete(LIVE.bars(S))
    bars(one_client, S, (*CALM, 140.0), START + 59.0)
    assert desk_loop(store, clock).once()
    assert len(plans(one_client)) == 4


def test_nothing_follows_a_plan_that_may_still_be_answered(one_client: Client, store: Store) -> None:
    """While the last plan has no answer and is not too old for one, no other is made, since what it would use up is in
    no ledger yet; its answer, or the end of its time, lets the next one through."""
    breaking_out(one_client, S)
    clock = SetClock(NOW)
    loop = desk_loop(store, clock)
    assert loop.once()
    for minute in (1, 2, 3):
        clock.set(NOW + 60.0 * minute)
        bars(one_client, S, (120.0 + minute,), START + 60.0 * minute)
        portfolio(one_client, clock.now())
        market(one_client, S, clock.now())
        assert loop.once()
        assert len(plans(one_client)) == (1 if minute < 3 else 2)
    assert quiet(loop, "unanswered") == 2.0
    clock.set(NOW + 240.0)
    bars(one_client, S, (150.0,), START + 240.0)
    portfolio(one_client, clock.now())
    assert loop.once()
    assert len(plans(one_client)) == 2
    one_client.set(LIVE.tombstone(f"desk-{S}-{START + 180}"), "answered")
    assert loop.once()
    assert len(plans(one_client)) == 3


class Failing(Store):
    """A store whose writes can be made to fail before they are sent."""

    def __init__(self, url: str) -> None:
        """Connected as any other."""
        super().__init__(url)
        self.fails = False
        self.groups: list[Group] = []

    def apply(self, groups: Sequence[Group]) -> list[tuple[str, Failed]]:
        """Refuse, or write."""
        self.groups += groups
        if self.fails:
            raise StoreError("closed", "before the write")
        return super().apply(groups)


def test_a_crash_before_the_write_loses_nothing(one_client: Client, one_server: EmbeddedServer) -> None:
    """Nothing is written and nothing remembered; the next cycle, of this process or of another, proposes the same."""
    breaking_out(one_client, S, T)
    store = Failing(one_server.url)
    store.fails = True
    loop = desk_loop(store, SetClock(NOW))
    assert not loop.once()
    assert (plans(one_client), one_client.hgetall(STATE)) == ([], {})
    store.fails = False
    assert loop.once()
    assert [p["symbol"] for p in plans(one_client)] == [S, T]
    assert store.groups[0] == store.groups[1]
    assert [len(store.groups[i]) for i in (0, 1)] == [4, 4], "universe, two plans and the state in one step"
    store.close()


def test_any_cut_proposes_once(one_client: Client, one_server: EmbeddedServer) -> None:
    """A connection cut after any command, or a reply that is lost after any: both plans and what is remembered of them
    stand, or neither does; afterwards both stand once."""
    with FaultProxy(str(one_server.socket)) as proxy:
        store, clock = Store(proxy.url), SetClock(NOW)
        breaking_out(one_client, S, T)
        proxy.reset()
        assert desk_loop(store, clock).once()
        total = len(proxy.log)
        assert total > 15
        for lose in (proxy.cut_after, proxy.cut_reply_after):
            for k in range(1, total):
                one_client.flushall()
                breaking_out(one_client, S, T)
                proxy.heal()
                store.close()
                loop = desk_loop(store, clock)
                lose(k)
                loop.once()
                proxy.heal()
                store.close()
                found = plans(one_client)
                assert len(found) in (0, 2), k
                assert len(one_client.hgetall(STATE)) == len(found), k
                assert loop.once()
                assert sorted(p["symbol"] for p in plans(one_client)) == [S, T], k
        store.close()


def test_two_desks_propose_once(one_client: Client, one_server: EmbeddedServer) -> None:
    """Both have read the same state; the first writes, and the second's write is refused as a whole."""
    breaking_out(one_client, S)
    stores = [Store(one_server.url) for _ in range(2)]
    loops = [desk_loop(store, SetClock(NOW)) for store in stores]
    seen = [loop.cycle.read(NOW) for loop in loops]
    made = [loop.cycle.decide(None, s, loop.attempt)[1] for loop, s in zip(loops, seen, strict=True)]
    assert all(len(m.plans) == 1 for m in made)
    stores[0].apply(loops[0].cycle.effects(seen[0], made[0]))
    with pytest.raises(StoreError, match="conflict"):
        stores[1].apply(loops[1].cycle.effects(seen[1], made[1]))
    assert len(plans(one_client)) == 1
    assert loops[1].once()
    assert len(plans(one_client)) == 1
    for store in stores:
        store.close()


def test_a_quiet_cycle_does_not_spoil_the_next(one_client: Client, store: Store) -> None:
    """What was watched in a cycle without plans is not held against a later one."""
    breaking_out(one_client, S)
    one_client.delete(LIVE.target(S))
    loop = desk_loop(store, SetClock(NOW))
    assert loop.once()
    assert plans(one_client) == []
    one_client.hset(STATE, T, f"{START - 600.0!r} {START * US}")
    put(one_client, LIVE.target(S), NOW, target_usd=1000.0)
    assert loop.once()
    assert len(plans(one_client)) == 1


def older(client: Client, seconds: float) -> None:
    """Bars of which the newest is so old."""
    client.delete(LIVE.bars(S))
    bars(client, S, (*CALM, 120.0), NOW - seconds)


UNREADABLE: Mapping[str, tuple[Any, str]] = {
    "no bars": (lambda c: c.delete(LIVE.bars(S)), "no_bar"),
    "bars of another type": (lambda c: c.set(LIVE.bars(S), "x"), "no_bar"),
    "old bars": (lambda c: older(c, 181.0), "old_bar"),
    "an old position": (lambda c: position(c, S, 1.0, 120.0, NOW - 61.0), "position_unknown"),
    "a malformed position": (lambda c: put(c, LIVE.position(S), NOW, "ts_epoch", position_amt="NaN"),
                             "position_unknown"),
    "a malformed opening time": (lambda c: position(c, S, 0.0, 120.0, opened_ts=-1.0), "position_unknown"),
    "a position of other fields": (lambda c: c.hset(LIVE.position(S), "x", "1"), "position_unknown"),
    "a position of another type": (lambda c: c.set(LIVE.position(S), "x"), "position_unknown"),
    "no position and no portfolio": (lambda c: c.delete(LIVE.portfolio), "position_unknown"),
    "no position and an old portfolio": (lambda c: portfolio(c, NOW - 61.0), "position_unknown"),
    "a ledger of another type": (lambda c: c.set(LIVE.ledger(S), "x"), "state_unreadable"),
    "a malformed ledger": (lambda c: c.hset(LIVE.ledger(S), "p1", "x open 1 0"), "state_unreadable"),
    "a malformed field of the state": (lambda c: c.hset(STATE, S, "x"), "state_unreadable"),
    "a state without its time": (lambda c: c.hset(STATE, S, "1.0"), "state_unreadable"),
    "a state of a malformed bar": (lambda c: c.hset(STATE, S, "NaN 1"), "state_unreadable"),
    "no target": (lambda c: c.delete(LIVE.target(S)), "no_target"),
    "an old target": (lambda c: put(c, LIVE.target(S), NOW - 301.0, target_usd=1000.0), "no_target"),
    "a malformed target": (lambda c: put(c, LIVE.target(S), NOW, target_usd="NaN"), "no_target"),
    "the apply layer waits": (lambda c: position(c, S, 0.0, 120.0, next_open_ts=NOW + 1.0), "paced"),
    "a cooldown": (lambda c: c.hset(LIVE.ledger(S), "p1", f"{round((NOW - 59.0) * US)} close 1.0 0.0"), "paced"),
    "two opens": (lambda c: c.hset(LIVE.ledger(S), mapping={
        f"p{ago}": f"{round((NOW - ago) * US)} open 1.0 0.0" for ago in (61, 299)}), "paced"),
}  # fmt: skip


@pytest.mark.parametrize("what", UNREADABLE)
def test_what_cannot_be_read_leads_to_nothing(one_client: Client, store: Store, what: str) -> None:
    """Each input that is missing, old, malformed, of another type or in the way: its reason, no plan; another symbol
    with the same world but for that is not held back."""
    breaking_out(one_client, S, T)
    position(one_client, T, 0.0, 120.0)
    change, reason = UNREADABLE[what]
    change(one_client)
    loop = desk_loop(store, SetClock(NOW))
    assert loop.once()
    assert [p["symbol"] for p in plans(one_client)] == [T]
    assert quiet(loop, reason) == 1.0
    assert loop.last_nothing == ""


def test_without_market_and_portfolio_the_score_is_full(one_client: Client, store: Store) -> None:
    """An old market state and no portfolio, a known position: the open says 1, and is priced by its bar."""
    breaking_out(one_client, S)
    market(one_client, S, NOW - 61.0, price=500.0)
    one_client.delete(LIVE.portfolio)
    position(one_client, S, 1.0, 0.0)
    assert desk_loop(store, SetClock(NOW)).once()
    (found,) = plans(one_client)
    assert (found["kill_score"], found["price"]) == ("1.0", "120.0")
    assert desk_again(found).inputs.mark_usd is None


def test_a_state_of_another_type_stops_it(one_client: Client, store: Store) -> None:
    """What was proposed cannot be known: nothing is, and the cycle says why."""
    breaking_out(one_client, S)
    one_client.set(STATE, "x")
    loop = desk_loop(store, SetClock(NOW))
    assert loop.once()
    assert plans(one_client) == []
    assert loop.last_nothing == f"{STATE} cannot be read: WRONGTYPE"


def test_nothing_before_all_symbols_are_known(
    one_client: Client, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the first scan is under way nothing is proposed; without any symbol there is nothing to do."""
    loop = desk_loop(store, SetClock(NOW))
    assert loop.once()
    assert (loop.last_line, loop.last_nothing) == ("Desk cycle complete symbols=0 plans=0", "")
    breaking_out(one_client, S)
    one_client.mset({f"other:{i}": "x" for i in range(5000)})
    monkeypatch.setattr("quantum_alloc.adapters.universe.PAGES_PER_CYCLE", 1)
    loop = desk_loop(store, SetClock(NOW))
    assert loop.once()
    assert (plans(one_client), loop.last_nothing) == ([], "scanning")
    for _ in range(20):
        assert loop.once()
    assert len(plans(one_client)) == 1


class Timeless(Store):
    """A store whose server does not know the time."""

    def read(self, commands: Sequence[Command], wait_s: float = 0.0) -> list[Reply]:
        """As the server answers, but for that."""
        return [None if c[0] == "TIME" else r for c, r in zip(commands, super().read(commands, wait_s), strict=True)]


def test_the_servers_time_counts(one_client: Client, store: Store, one_server: EmbeddedServer) -> None:
    """Without a clock of its own the desk takes the server's, as the governor does."""
    s, us = one_client.time()
    loop = desk_loop(store, None)
    now = loop.cycle.read(0.0).now
    assert 0.0 <= now - (s + us / US) < 10.0
    with pytest.raises(StoreError, match="does not tell its time"):
        desk_loop(Timeless(one_server.url), None).cycle.read(0.0)


def test_the_governor_permits_what_it_proposes(one_client: Client, one_server: EmbeddedServer, tmp_path: Path) -> None:
    """Bars that break out every minute for an hour and a half, and a governor with the contract's limits that lags
    behind for two minutes of each half hour: no burst, no disarming, no block at all, and opens come as soon as the
    limits allow."""
    clock = SetClock(NOW)
    governor = g.governing(Store(one_server.url), tmp_path, "a", clock=clock)
    store = Store(one_server.url)
    loop = desk_loop(store, clock)
    try:
        for minute in range(90):
            now = NOW + 60.0 * minute
            clock.set(now)
            bars(one_client, S, (*CALM, 120.0) if minute == 0 else (120.0 + minute,), START + 60.0 * minute)
            portfolio(one_client, now)
            market(one_client, S, now, 100.0)  # a mark that has risen since would make a plan too large
            put(one_client, LIVE.target(S), now, target_usd=100_000.0)
            assert loop.once()
            if minute % 30 not in (1, 2):
                governor.drain()
        told = g.events(one_client)
        assert {e["event"] for e in told} <= {"PERMIT", "STORE_EPOCH_CHANGE"}
        assert not one_client.exists(LIVE.kill)
        minutes = [(int(float(e["timestamp"])) - int(NOW)) / 60 for e in told if e["event"] == "PERMIT"]
        assert minutes == [0, 3, 5, 60, 63, 65], "late, at the end of 300 s, and as each leaves the hour"
    finally:
        governor.crash()
        store.close()


def test_settings_are_the_governors_where_they_are_its_own() -> None:
    """The limits have the governor's variables, ranges, defaults and help; the desk's own have the contract's names;
    what is set arrives in the parameters."""
    of_governor = {v.spec.env: v.spec for v in variables(GovernorOptions)}
    shared = {v.spec.env: v.spec for v in variables(DeskOptions) if v.spec.env.startswith("GOV_")}
    assert shared == {env: of_governor[env] for env in shared}
    assert len(shared) == 8
    own = {"QA_DESK_INTERVAL_SEC", "QA_DESK_CHANNEL_BARS", "QA_DESK_STOP_SIGMAS", "QA_DESK_TRADE_USD",
           "QA_DESK_MIN_TRADE_USD", "METRICS_PORT"}  # fmt: skip
    assert {v.spec.env for v in variables(DeskOptions)} - shared.keys() == own
    assert (DeskOptions().params(), DeskOptions().interval_s, DeskOptions().port) == (DeskParams(), 60.0, 8042)
    environ = {"QA_DESK_CHANNEL_BARS": "5", "GOV_MAX_EXEC_PER_HOUR": "7", "QA_DESK_MIN_TRADE_USD": "1"}
    made = read([DeskOptions], environ).get(DeskOptions).params()
    assert made == DeskParams(channel_bars=5, max_exec_per_hour=7, min_trade_usd=1.0)
    with pytest.raises(SettingsError, match="QA_DESK_MIN_TRADE_USD must be at most QA_DESK_TRADE_USD"):
        read([DeskOptions], {"QA_DESK_TRADE_USD": "5"})
