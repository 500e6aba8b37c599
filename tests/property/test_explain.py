"""What would have to change: each turn that is told is applied to the rule, and so is the value just short of it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import quantum_alloc.core as qa
from quantum_alloc.core.allocation import AllocationDecision
from quantum_alloc.core.explain import attribution_knobs, budget_knobs, efficiency_knobs, proposal_knobs
from quantum_alloc.core.explain_allocation import allocated, allocation_knobs
from quantum_alloc.core.flips import Flip, Knob, flips, nearest
from quantum_alloc.core.params import to_json
from tests.property.strategies import unit, worlds
from tests.property.test_flow import NOW, S, fills, inputs, states
from tests.support.worlds import World, memory

Decide = Callable[[Flip, float], str]


def short_of(flip: Flip, whole: bool) -> float:
    """The value just before the turn."""
    if whole:
        return flip.at - math.copysign(1.0, flip.at - flip.value)
    return math.nextafter(flip.at, flip.value)


def holds(knobs: Sequence[Knob]) -> tuple[Flip, ...]:
    """Every turn turns, its neighbour does not, nothing nearer turns, and where none is told the end is the same."""
    found = flips(knobs)
    for knob in knobs:
        for end in (knob.low, knob.high):
            mine = [f for f in found if f.input == knob.input and (f.at > knob.value) == (end > knob.value)]
            if end == knob.value:
                continue
            if not mine:
                assert all(o(end) == o(knob.value) for o in knob.outcomes.values())
                continue
            (f,) = mine
            outcome = knob.outcomes[f.outcome]
            assert (outcome(f.value), outcome(f.at)) == (f.before, f.after)
            assert f.before != f.after
            before = short_of(f, knob.whole)
            for name, other in knob.outcomes.items():
                assert other(before) == other(knob.value), f"{name} turns before {f.outcome}"
    return found


# --- allocation: through the bytes of a world and its records --------------------------------------------------------

SHIFTS: dict[str, Callable[[World, str, float], World]] = {
    "budget_usd": lambda w, s, x: w.put(f"quantum:portfolio:budget:{s}", budget_usd=repr(x)),
    "equity_usd": lambda w, _, x: w.put("quantum:state:portfolio", equity_usd=repr(x)),
    "drawdown": lambda w, _, x: w.put("quantum:state:portfolio", drawdown=repr(x)),
    "performance factor": lambda w, s, x: w.put(f"quantum:alpha:attribution:{s}", performance_factor=repr(x)),
    "confidence of performance": lambda w, s, x: w.put(f"quantum:alpha:attribution:{s}", confidence=repr(x)),
}


def with_stress(key: str, world: World, _: str, x: float) -> World:
    """With this stress of a cluster."""
    return world.put(key, stress=repr(x))


def cluster_of(world: World, symbol: str) -> str:
    """A symbol's cluster in a world."""
    found = world.hashes.get("quantum:portfolio:clusters", {})
    return next((c for c, members in sorted(found.items()) if symbol in json.loads(members)), "")


def seen(decision: AllocationDecision) -> dict[str, str]:
    """The outcomes of an allocation, independently of how explain reads them."""
    d, p = decision, qa.AllocationParams()
    stress = d.inputs.stress.value
    free = "" if stress is None else 1.0 - stress
    return {
        "the symbol cap": "binds" if d.uncapped_usd > d.symbol_cap_usd else "does not bind",
        "the cluster cap": "binds" if d.cluster_ratio != 1.0 else "does not bind",
        "the drawdown zone is": d.drawdown_zone.value,
        "the performance factor": {True: "raises", False: "lowers"}[d.performance_factor > 1.0]
        if d.performance_factor != 1.0
        else "is neutral",
        "the cluster factor is": ""
        if isinstance(free, str)
        else "at its smallest"
        if free <= p.cluster_stress_min
        else "at its greatest"
        if free >= p.cluster_stress_max
        else "1 - stress",
    }


def again(world: World, symbol: str) -> dict[str, str]:
    """The outcomes of a world, by running the service over it."""
    result = memory(world)
    return seen(qa.recompute(result.cycle, result.decisions[symbol]))


def check_turns(world: World, symbol: str) -> tuple[Flip, ...]:
    """Each turn that is told for a symbol, tried on the world's bytes."""
    result = memory(world)
    others = [d for s, d in result.decisions.items() if s != symbol]
    of = allocated(result.cycle, result.decisions[symbol], others)
    assert of.is_complete
    knobs = allocation_knobs(of)
    by_name = {k.input: k for k in knobs}
    shift: Callable[[World, str, float], World]
    standing = again(world, symbol)
    found = holds(knobs)
    for flip in found:
        if flip.input.startswith("age of "):
            continue
        if flip.input == "cluster stress":
            shift = partial(with_stress, f"quantum:cluster:stress:{cluster_of(world, symbol)}")
        else:
            shift = SHIFTS[flip.input]
        turned = again(shift(world, symbol, flip.at), symbol)
        assert turned[flip.outcome] == flip.after != standing[flip.outcome]
        assert standing[flip.outcome] == flip.before
        near = again(shift(world, symbol, short_of(flip, by_name[flip.input].whole)), symbol)
        assert near == standing, flip
    return found


@given(worlds(), st.data())
def test_allocation_turns_when_the_world_does(world: World, data: st.DataObject) -> None:
    """Caps included: each turn is put into the world's bytes, the service runs over it, and the outcome has turned;
    just short of it no outcome has."""
    result = memory(world)
    assume(result.decisions)
    symbol = data.draw(st.sampled_from(sorted(result.decisions)))
    check_turns(world, symbol)


def test_a_clusters_stress_turns_its_cap() -> None:
    """Stress is shared: it moves every member whose budget is fresh, and the cap turns where their sum crosses it; a
    member with a stale budget does not move."""
    now = 1769577495
    world = World(now).put("quantum:state:portfolio", equity_usd=1e5, drawdown=0.0, timestamp=now)
    for s, usd, age in (("AAUSDT", 39_000, 0), ("BBUSDT", 39_000, 0), ("CCUSDT", 20_000, 61)):
        world = world.put(f"quantum:portfolio:budget:{s}", budget_usd=usd, timestamp=now - age)
    world = world.put("quantum:portfolio:clusters", C1='["AAUSDT","BBUSDT","CCUSDT"]')
    world = world.put("quantum:cluster:stress:C1", stress=0.6, timestamp=now)
    found = {(f.input, f.side): f for f in check_turns(world, "AAUSDT")}
    flip = found["cluster stress", "down"]
    assert (flip.outcome, flip.after) == ("the cluster cap", "binds")
    assert flip.at == pytest.approx(1 - 40_000 / 78_000, rel=1e-9)
    assert found["drawdown", "up"].at == 0.05


def test_a_drawdown_turns_the_cap_of_all() -> None:
    """Drawdown and equity are shared by every member: with them the cap turns for all at once."""
    now = 1769577495
    world = World(now).put("quantum:state:portfolio", equity_usd=1e5, drawdown=0.06, timestamp=now)
    for s in ("AAUSDT", "BBUSDT", "CCUSDT"):
        world = world.put(f"quantum:portfolio:budget:{s}", budget_usd=25_000, timestamp=now)
    found = {(f.input, f.side): f for f in check_turns(world, "AAUSDT")}
    assert found["drawdown", "down"].at == math.nextafter(0.05, 0.0)
    assert found["equity_usd", "down"].at == pytest.approx(25_000 * 0.7 * 3 / 0.6, rel=1e-9)


def test_allocation_without_the_others_tells_no_cluster_cap() -> None:
    """With a record of the group gone, the cluster cap's turns cannot be told and are not."""
    world = World(1769577495).put("quantum:state:portfolio", equity_usd=1e5, drawdown=0.02, timestamp=1769577495)
    for s in ("AAUSDT", "BBUSDT", "CCUSDT"):
        world = world.put(f"quantum:portfolio:budget:{s}", budget_usd=15_000, timestamp=1769577495)
    result = memory(world)
    a, b, c = (result.decisions[s] for s in ("AAUSDT", "BBUSDT", "CCUSDT"))
    whole, part = allocated(result.cycle, a, [b, c]), allocated(result.cycle, a, [b])
    assert (whole.is_complete, part.is_complete) == (True, False)
    told = {f.input: f for f in flips(allocation_knobs(whole)) if f.outcome == "the cluster cap"}
    assert told["budget_usd"].at == pytest.approx(30_000, rel=1e-9)
    assert told["equity_usd"].at == pytest.approx(75_000, rel=1e-9)
    assert not any(f.outcome == "the cluster cap" for f in flips(allocation_knobs(part)))
    ages = {f.input: f.at for f in flips(allocation_knobs(whole)) if f.input.startswith("age")}
    assert ages == {"age of portfolio": 61.0, "age of budget": 61.0}


def test_a_proposal_turns_what_it_moves() -> None:
    """With use_proposed the multiplier and the age of a proposal are among what would turn a target."""
    now = 1769577495
    world = World(now).put("quantum:state:portfolio", equity_usd=1e5, drawdown=0.02, timestamp=now)
    world = world.put("quantum:portfolio:budget:AAUSDT", budget_usd=15_000, timestamp=now)
    world = world.put("quantum:allocation:target:proposed:AAUSDT", multiplier="1.05", reason="ok", ts_epoch=now)
    result = memory(world, qa.AllocationParams(use_proposed=True))
    found = {
        (f.input, f.side): f for f in holds(allocation_knobs(allocated(result.cycle, result.decisions["AAUSDT"], [])))
    }
    assert found["proposed multiplier", "down"].at == 1.0
    assert found["age of proposal", "up"].at == 61.0


def test_an_exempt_symbol_has_no_cluster_cap() -> None:
    """A group that the policy exempts has no cluster cap to turn."""
    world = World(1769577495).put("quantum:state:portfolio", equity_usd=1e5, drawdown=0.02, timestamp=1769577495)
    world = world.put("quantum:portfolio:budget:AAUSDT", budget_usd=15_000, timestamp=1769577495)
    world = world.put("quantum:portfolio:clusters", C1='["BBUSDT"]')
    result = memory(world, qa.AllocationParams(unmapped_cluster_policy="exempt"))
    of = allocated(result.cycle, result.decisions["AAUSDT"], [])
    assert (of.group, of.is_complete, of.members) == (None, True, ())
    assert {f.outcome for f in holds(allocation_knobs(of))} >= {"the symbol cap", "the drawdown zone is"}


def test_what_an_allocation_without_drawdown_hangs_on() -> None:
    """An unknown drawdown is no knob: the zone is HIGH whatever it was."""
    world = World(1769577495).put("quantum:state:portfolio", equity_usd=1e5, drawdown="x", timestamp=1769577495)
    result = memory(world.put("quantum:portfolio:budget:AAUSDT", budget_usd=15_000, timestamp=1769577495))
    knobs = allocation_knobs(allocated(result.cycle, result.decisions["AAUSDT"], []))
    assert {k.input for k in knobs} == {"budget_usd", "equity_usd", "age of portfolio", "age of budget"}
    holds(knobs)


def test_records_that_contradict_themselves_are_refused() -> None:
    """A record without portfolio, with a budget or a base target that gave no decision: ValueError."""
    world = World(1769577495).put("quantum:state:portfolio", equity_usd=1e5, drawdown=0.0, timestamp=1769577495)
    result = memory(world.put("quantum:portfolio:budget:AAUSDT", budget_usd=15_000, timestamp=1769577495))
    mine = result.decisions["AAUSDT"]
    without = {**result.cycle, "equity_usd": "", "portfolio_state": "missing"}
    with pytest.raises(ValueError, match="no portfolio"):
        allocation_knobs(allocated(without, mine, []))
    with pytest.raises(ValueError, match="budget cannot be used"):
        flips(allocation_knobs(allocated(result.cycle, {**mine, "base_usd": "-5"}, [])))
    made = qa.propose(qa.ProposalInputs(S, NOW, qa.fresh(5.0, NOW), qa.fresh(qa.Efficiency(0.9, 0.9), NOW)))
    assert isinstance(made, qa.ProposalDecision)
    record = {**qa.proposal_fields(made, qa.ProposalParams()), "base_state": "stale"}
    with pytest.raises(ValueError, match="base target cannot be used"):
        flips(proposal_knobs(record))


# --- the others: through their records -------------------------------------------------------------------------------


@given(states, inputs)
def test_efficiency_turns(state: qa.EfficiencyState, given_inputs: qa.EfficiencyInputs) -> None:
    """Each turn of pressure, applied to the record's own inputs, turns it; just short of it does not."""
    params = qa.EfficiencyParams()
    _, made = qa.efficiency_step(state, given_inputs, params)
    record = qa.efficiency_fields(made, params, "shadow")
    for flip in holds(efficiency_knobs(record)):
        field = {
            "performance factor": "attribution_factor", "confidence of performance": "attribution_confidence",
            "target_usd": "target_usd", "confidence of target": "target_confidence",
        }.get(flip.input)  # fmt: skip
        if field is not None:
            turned = qa.recompute({**record, field: repr(flip.at)})
            near = qa.recompute({**record, field: repr(math.nextafter(flip.at, flip.value))})
            assert isinstance(turned, qa.EfficiencyDecision)
            assert isinstance(near, qa.EfficiencyDecision)
            assert turned.capital_pressure.value == flip.after
            assert near.capital_pressure.value == flip.before == made.capital_pressure.value


@given(unit, unit, st.floats(0, 1e6), st.sampled_from([0, 5, 600, 601, 5000]), st.sampled_from([0, 299, 300]))
def test_proposal_turns(score: float, confidence: float, base: float, age: int, base_age: int) -> None:
    """Each turn of reason and multiplier, applied to the record's own inputs, turns it."""
    efficiency = qa.grade(qa.Efficiency(score, confidence), NOW - age, NOW, 600)
    params = qa.ProposalParams()
    made = qa.propose(qa.ProposalInputs(S, NOW, qa.grade(base, NOW - base_age, NOW, 300), efficiency), params)
    assert isinstance(made, qa.ProposalDecision)
    record = qa.proposal_fields(made, params)
    found = {(f.input, f.side): f for f in holds(proposal_knobs(record))}
    if age > 600:
        assert found["age of efficiency", "down"].at == 600.0
        return
    assert found["age of efficiency", "up"].at == 601.0
    assert found["age of base target", "up"].at == 301.0
    side = "down" if confidence >= 0.65 else "up"
    flip = found["confidence of efficiency", side]
    assert flip.at == (0.65 if side == "up" else math.nextafter(0.65, 0.0))
    for f in found.values():
        if f.input == "efficiency score":
            turned = qa.recompute({**record, "eff_score": repr(f.at)})
            assert isinstance(turned, qa.ProposalDecision)
            assert turned.reason.value == "ok"
            if f.outcome == "the target":
                assert {"is raised": turned.multiplier > 1, "is lowered": turned.multiplier < 1}.get(
                    f.after, turned.multiplier == 1
                )


@given(fills.filter(lambda fs: any(f.pnl_usd is not None for f in fs)), st.floats(0, 80_000))
def test_attribution_turns(given_fills: list[qa.Execution], later: float) -> None:
    """The PnL of a next execution that turns the sign, and the ages at which it is LKG and not published."""
    _, made = qa.attribute(S, qa.AttributionState(), given_fills, NOW + later)
    assume(made is not None)
    assert made is not None
    params = qa.AttributionParams()
    record = qa.attribution_fields(made, params, "shadow")
    found = holds(attribution_knobs(record))
    state, _ = qa.attribute(S, made.before, made.fills, made.now, params)
    for f in found:
        if f.unit == "USD":
            _, turned = qa.attribute(S, state, [qa.Execution(S, made.now, f.at)], made.now, params)
            assert turned is not None
            sign = {"earning": turned.alpha_score > 0, "losing": turned.alpha_score < 0}
            assert sign.get(f.after, turned.alpha_score == 0)
    ages = {f.at for f in found if f.unit == "s"}
    expected = {900.0} if made.lkg_age_s < 900 else {899.0, 86_400.0}
    assert ages == expected


@given(st.floats(1.0, 1e9), st.floats(0, 3), unit, st.sampled_from([0.0, 0.33, 0.67, 1.0]))
def test_budget_turns(equity: float, heat: float, stress: float, vol: float) -> None:
    """Where a budget reaches its floor, its ceiling, all of equity."""
    params = qa.BudgetParams()
    record = {
        "equity_usd": repr(equity), "portfolio_heat": repr(heat), "cluster_stress": repr(stress),
        "vol_regime": repr(vol), "params": to_json(params),
    }  # fmt: skip
    given_values = {"equity_usd": equity, "portfolio_heat": heat, "cluster_stress": stress, "vol_regime": vol}
    for f in holds(budget_knobs(record)):
        values = {**given_values, f.input: f.at}
        made = qa.budget(values["equity_usd"], values["portfolio_heat"], values["cluster_stress"], values["vol_regime"])
        expected = {"the floor": 500.0, "the ceiling": 10_000.0, "all of equity": values["equity_usd"]}
        if f.after in expected:
            assert made == pytest.approx(expected[f.after], rel=1e-12)


# --- the search itself -----------------------------------------------------------------------------------------------


@given(st.floats(-1e300, 1e300), st.floats(-1e300, 1e300), st.floats(-1e300, 1e300))
def test_the_search_is_exact(value: float, edge: float, end: float) -> None:
    """For a single step anywhere, the float found is on the other side and its neighbour is not."""

    def outcome(x: float) -> str:
        return "low" if x < edge else "high"

    at = nearest(outcome, value, end)
    if outcome(end) == outcome(value):
        assert at is None
    else:
        assert at is not None
        assert outcome(at) == outcome(end)
        assert outcome(math.nextafter(at, value)) == outcome(value)


@given(st.integers(-100, 100), st.integers(-100, 100), st.integers(-100, 100))
def test_the_search_over_whole_numbers_is_exact(value: int, edge: int, end: int) -> None:
    """The same over whole numbers."""
    at = nearest(lambda x: "low" if x < edge else "high", value, end, whole=True)
    if (value < edge) == (end < edge):
        assert at is None
    else:
        assert at == (edge if value < edge else edge - 1)


def test_a_flip_tells_its_side() -> None:
    """Up or down, and a plain dictionary."""
    f = Flip("x", "", 1.0, 2.0, "o", "a", "b")
    assert (f.side, replace(f, at=0.5).side) == ("up", "down")
    assert f.to_dict()["at"] == 2.0
