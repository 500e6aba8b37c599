"""Laws of allocation over whole worlds, through the service: in memory, and 30 of each over a real server."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import quantum_alloc.core as qa
from quantum_alloc.adapters.embedded import EmbeddedServer
from quantum_alloc.adapters.keys import LIVE
from quantum_alloc.core.allocation import SymbolInputs
from tests.property.strategies import NOW, budgets_of, hostile, unit, usd, worlds
from tests.support.worlds import Client, Engine, World, memory, over_redis

REGIMES = ("CHOP", "MEAN_REVERSION", "TREND")
Law = Callable[[Engine, World, st.DataObject], None]
LAWS: dict[str, Law] = {}


def law(check: Law) -> Law:
    """Register a law; it is run with both engines."""
    LAWS[check.__name__] = check
    return check


def equity(world: World) -> float:
    """The portfolio's equity."""
    return float(world.hashes[LIVE.portfolio]["equity_usd"])


def with_regime(world: World, name: str) -> World:
    """With a fresh regime."""
    entry = {"regime": name.encode(), "confidence": b"0.8", "timestamp": b"%d" % NOW}
    return replace(world, streams={LIVE.stream("regime.state"): [entry]})


def groups(engine_result: dict[str, dict[str, str]]) -> dict[str, list[str]]:
    """Symbols by group."""
    found: dict[str, list[str]] = {}
    for s, d in engine_result.items():
        found.setdefault(d["cluster_id"], []).append(s)
    return found


@law
def caps_hold(engine: Engine, world: World, _: st.DataObject) -> None:
    """(5) 0 <= target <= 0.40 equity; (6) each group sums to at most 0.60 equity, unusable stress included."""
    made = {s: dict(d) for s, d in engine(world).decisions.items()}
    e = equity(world)
    for d in made.values():
        assert 0.0 <= float(d["target_usd"]) <= 0.40 * e
        assert float(d["weight"]) == float(d["target_usd"]) / e
    for members in groups(made).values():
        assert math.fsum(float(made[s]["target_usd"]) for s in members) <= 0.60 * e * (1 + 1e-9)


@law
def without_optional_inputs_it_is_the_budget(engine: Engine, world: World, _: st.DataObject) -> None:
    """(7) No optional input: min(budget x drawdown factor, caps), exactly."""
    bare = World(NOW, {k: v for k, v in world.hashes.items() if ":budget:" in k or k == LIVE.portfolio})
    for s in budgets_of(bare):
        bare = bare.put(LIVE.budget(s), timestamp=NOW)
    e = equity(bare)
    factor = qa.drawdown_factor(abs(float(bare.hashes[LIVE.portfolio]["drawdown"])))
    capped = {s: min(float(bare.hashes[LIVE.budget(s)]["budget_usd"]) * factor, 0.40 * e) for s in budgets_of(bare)}
    total, cap = math.fsum(capped.values()), 0.60 * e
    ratio = cap / total if total > cap * (1 + 1e-12) else 1.0
    made = engine(bare)
    assert {s: made.target(s) for s in made.decisions} == {s: t * ratio for s, t in capped.items()}


def _capped(result: object) -> dict[str, float]:
    """Symbol-capped targets, before the cluster cap."""
    decisions = result.decisions  # type: ignore[attr-defined]
    return {s: min(float(d["uncapped_usd"]), float(d["symbol_cap_usd"])) for s, d in decisions.items()}


@law
def monotone(engine: Engine, world: World, data: st.DataObject) -> None:
    """(8) Before the cluster cap each target, after it each group's sum: more risk never raises, more budget or
    performance never lowers, CHOP <= MEAN_REVERSION <= TREND."""
    kind = data.draw(st.sampled_from(["drawdown", "stress", "budget", "performance", "regime"]))
    s = data.draw(st.sampled_from(budgets_of(world)))
    if kind == "regime":
        i, j = sorted(data.draw(st.tuples(st.integers(0, 2), st.integers(0, 2))))
        low, high = with_regime(world, REGIMES[i]), with_regime(world, REGIMES[j])
    else:
        a, b = sorted(data.draw(st.tuples(usd, usd) if kind == "budget" else st.tuples(unit, unit)))
        if kind == "drawdown":
            low, high = (world.put(LIVE.portfolio, drawdown=repr(x)) for x in (b, a))
        elif kind == "stress":
            low, high = (world.put(LIVE.stress("C1"), stress=repr(x), timestamp=NOW) for x in (b, a))
        elif kind == "budget":
            low, high = (world.put(LIVE.budget(s), budget_usd=repr(x)) for x in (a, b))
        else:
            low, high = (world.put(LIVE.attribution(s), performance_factor=repr(x), ts_utc=NOW) for x in (a, b))
    before, after = engine(low), engine(high)
    lower, higher = _capped(before), _capped(after)
    assert all(lower[x] <= higher[x] for x in lower)
    made = {x: dict(d) for x, d in before.decisions.items()}
    for members in groups(made).values():
        sums = [math.fsum(r.target(x) for x in members) for r in (before, after)]
        assert sums[0] <= sums[1] * (1 + 1e-12)


@law
def scale_free(engine: Engine, world: World, data: st.DataObject) -> None:
    """(9) k times the equity and the budgets is k times every target, within 1e-9."""
    k = data.draw(st.floats(0.01, 100.0))
    scaled = world.put(LIVE.portfolio, equity_usd=repr(equity(world) * k))
    for s in budgets_of(world):
        scaled = scaled.put(LIVE.budget(s), budget_usd=repr(float(world.hashes[LIVE.budget(s)]["budget_usd"]) * k))
    one, other = engine(world), engine(scaled)
    for s in one.decisions:
        assert other.target(s) == pytest.approx(one.target(s) * k, rel=1e-9, abs=1e-300)


@law
def order_changes_no_bit(engine: Engine, world: World, data: st.DataObject) -> None:
    """(10) The order in which keys were written changes nothing at all."""
    items = data.draw(st.permutations(list(world.hashes.items())))
    assert engine(replace(world, hashes=dict(items))).decisions == engine(world).decisions


@law
def a_bad_symbol_stays_alone(engine: Engine, world: World, data: st.DataObject) -> None:
    """(11) Corrupting one symbol's inputs changes no target outside its group."""
    s = data.draw(st.sampled_from(budgets_of(world)))
    key = data.draw(st.sampled_from([LIVE.budget(s), LIVE.attribution(s)]))
    name = data.draw(st.sampled_from(["budget_usd", "timestamp", "performance_factor", "confidence", "ts_utc", "ts"]))
    clean, bad = engine(world), engine(world.put(key, **{name: data.draw(hostile)}))
    own = clean.decisions[s]["cluster_id"] if s in clean.decisions else None
    for other, d in clean.decisions.items():
        if d["cluster_id"] != own and other != s and own is not None:
            assert bad.decisions[other]["target_usd"] == d["target_usd"]


@law
def unusable_equity_writes_nothing(engine: Engine, world: World, data: st.DataObject) -> None:
    """(13) Equity missing, malformed, not positive, stale or from the future: nothing is written."""
    bad: dict[str, object] = data.draw(
        st.sampled_from(
            [
                {"equity_usd": "0"}, {"equity_usd": "-1"}, {"equity_usd": "NaN"}, {"equity_usd": ""},
                {"timestamp": NOW - 61}, {"timestamp": NOW + 6}, {"timestamp": "soon"},
            ]
        )
    )  # fmt: skip
    for broken in (world.put(LIVE.portfolio, **bad), world.without(LIVE.portfolio), world.wrong_type(LIVE.portfolio)):
        result = engine(broken)
        assert (result.decisions, result.cycle, result.hashes) == ({}, {}, {})


@law
def modes_decide_alike(engine: Engine, world: World, _: st.DataObject) -> None:
    """(38) Shadow and enforce decide identically; (40) the same inputs give the same records, ids too."""
    shadow, enforce = engine(world, None, "shadow"), engine(world, None, "enforce")
    assert shadow.hashes == {}
    assert enforce.hashes.keys() == enforce.decisions.keys()
    for s, d in shadow.decisions.items():
        assert {**d, "mode": "enforce"} == enforce.decisions[s]
    if shadow.cycle:
        assert {**shadow.cycle, "mode": "enforce"} == enforce.cycle
    assert engine(world, None, "shadow").decisions == shadow.decisions


@law
def records_decide_again(engine: Engine, world: World, data: st.DataObject) -> None:
    """Every record, read back as text, gives the same decision bit for bit, whatever the parameters."""
    params = qa.AllocationParams(
        regime_factor_trend=data.draw(st.floats(0, 3)),
        max_symbol_pct=data.draw(st.floats(0.01, 1)),
        max_cluster_pct=data.draw(st.floats(0.01, 1)),
        unmapped_cluster_policy=data.draw(st.sampled_from(["shared", "exempt"])),
    )
    result = engine(world, params)
    for d in result.decisions.values():
        assert qa.differences(result.cycle, d) == {}


@pytest.mark.parametrize("name", LAWS)
@given(worlds(), st.data())
def test_in_memory(name: str, world: World, data: st.DataObject) -> None:
    """The law holds through the service over a dictionary."""
    LAWS[name](memory, world, data)


@pytest.fixture
def engine(client: Client, any_server: EmbeddedServer) -> Engine:
    """The command over a real server."""
    return over_redis(client, any_server.url)


@pytest.mark.parametrize("name", LAWS)
@settings(max_examples=30, suppress_health_check=list(HealthCheck))
@given(worlds(), st.data())
def test_over_redis(name: str, engine: Engine, world: World, data: st.DataObject) -> None:
    """The law holds through the command over a real server, in bytes."""
    LAWS[name](engine, world, data)


@given(st.lists(usd, min_size=1, max_size=12), st.floats(1.0, 1e7))
def test_capping_twice_is_capping_once(budgets: list[float], e: float) -> None:
    """(12) What is under the caps already is not touched again, bit for bit."""
    shared = qa.SharedInputs(0.0, qa.fresh(qa.Portfolio(e, 0.0)), qa.missing())
    once = qa.allocate_portfolio([SymbolInputs(f"S{i:02}", qa.fresh(b)) for i, b in enumerate(budgets)], shared)
    again = qa.allocate_portfolio([SymbolInputs(d.symbol, qa.fresh(d.target_usd)) for d in once.decisions], shared)
    assert [d.target_usd for d in again.decisions] == [d.target_usd for d in once.decisions]


@given(worlds(sound=True))
def test_exempt_lifts_the_cap_for_unmapped_symbols_alone(world: World) -> None:
    """The policy exempt leaves unmapped symbols under their symbol cap, unless a map is there that cannot be read."""
    params = qa.AllocationParams(unmapped_cluster_policy="exempt")
    made = memory(world, params)
    for d in made.decisions.values():
        if d["cluster_id"] == "UNKNOWN":
            assert float(d["target_usd"]) == min(float(d["uncapped_usd"]), float(d["symbol_cap_usd"]))
    broken = memory(world.put(LIVE.clusters, ZZ="not json"), params)
    total = math.fsum(float(d["target_usd"]) for d in broken.decisions.values() if d["cluster_id"] == "UNKNOWN")
    assert total <= 0.60 * equity(world) * (1 + 1e-9)


def test_a_stale_symbol_and_a_skipped_symbol_are_told_apart() -> None:
    """Stale: base budget with neutral factors. From the future, malformed, missing: skipped, with its reason."""
    base = World(NOW).put(LIVE.portfolio, equity_usd=1e5, drawdown=0, timestamp=NOW)
    world = with_regime(base, "TREND").put(LIVE.budget("AAUSDT"), budget_usd=1000, timestamp=NOW - 61)
    world = world.put(LIVE.budget("BBUSDT"), budget_usd=1000, timestamp=NOW + 6)
    world = world.put(LIVE.budget("CCUSDT"), budget_usd=-1, timestamp=NOW).wrong_type(LIVE.budget("DDUSDT"))
    result = memory(world)
    assert result.targets == {"AAUSDT": "1000.0"}
    assert result.decisions["AAUSDT"]["regime"] == "UNKNOWN"
    expected = '{"BBUSDT":"budget_future_ts","CCUSDT":"budget_malformed","DDUSDT":"budget_redis_error"}'
    assert result.cycle["skipped"] == expected


def test_records_of_other_rules_or_cycles_are_refused() -> None:
    """A record of unknown rules, of another cycle, or with a budget that cannot be used is refused, not guessed."""
    world = World(NOW).put(LIVE.portfolio, equity_usd=1e5, drawdown=0, timestamp=NOW)
    result = memory(world.put(LIVE.budget("BTCUSDT"), budget_usd=1000, timestamp=NOW))
    cycle, decision = dict(result.cycle), dict(result.decisions["BTCUSDT"])
    for broken, other in (
        ({**cycle, "rules": "p29_v0"}, decision),
        (cycle, {**decision, "cycle_id": "0"}),
        (cycle, {**decision, "budget_state": "malformed"}),
        (cycle, {**decision, "attribution_state": "ok"}),
        ({**cycle, "params": '{"nonsense": 1}'}, decision),
    ):
        with pytest.raises((ValueError, KeyError)):
            qa.recompute(broken, other)
    changed = {**decision, "target_usd": "1.0"}
    assert qa.differences(cycle, changed) == {"target_usd": ("1.0", decision["target_usd"])}
    with pytest.raises(ValueError, match="usable portfolio"):
        qa.allocate(SymbolInputs("X1", qa.fresh(1.0)), qa.SharedInputs(0.0, qa.missing(), qa.missing()))
