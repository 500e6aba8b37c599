"""Laws of attribution, efficiency and proposal in the core."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import quantum_alloc.core as qa
from quantum_alloc.core.attribution import DROPPED_AFTER_S, advance, contributions, time_of_day
from quantum_alloc.core.efficiency import advance as efficiency_advance
from quantum_alloc.core.efficiency import outliers
from quantum_alloc.core.execution import fills_text, finite, read_fills
from quantum_alloc.core.params import changed_json, restored
from quantum_alloc.core.record_flow import FlowDecision, FlowParams, params_of, record_of

NOW = 1769577495.0
S = "BTCUSDT"
unit = st.floats(0.0, 1.0)
usd = st.floats(0.0, 1e15)
pnls = st.one_of(st.floats(-1e15, 1e15), st.floats(-500.0, 500.0), st.sampled_from([0.0, -0.0, 5e-324, -5e-324]))
words = st.sampled_from(["UNKNOWN", "TREND", "CHOP", "C1", "a-b_c.d"])
times = st.floats(NOW - 1e6, NOW + 5.0)
fills = st.lists(
    st.builds(qa.Execution, st.just(S), times, st.one_of(st.none(), pnls), words, words, words), max_size=60
)
ages = st.sampled_from([0, 1, 299, 300, 301, 5000, -5, -6])


@st.composite
def readings(draw: st.DrawFn, values: st.SearchStrategy[object], limit: int) -> qa.Reading[object]:
    """Any reading that the wire can give."""
    kind = draw(st.sampled_from(["graded", "graded", "missing", "malformed", "redis_error"]))
    if kind == "graded":
        return qa.grade(draw(values), NOW - draw(ages), NOW, limit)
    return qa.Unusable(qa.Reason(kind))


attributions = readings(st.builds(qa.Attribution, st.floats(-3.0, 4.0), st.one_of(st.none(), unit)), 300)
targets = readings(st.builds(qa.AllocationTarget, usd, unit), 300)
lanes = st.sampled_from(list(qa.Lane))
states = st.builds(
    qa.EfficiencyState, usd, usd, unit, st.one_of(st.none(), times), unit, st.one_of(st.none(), usd), st.just(NOW)
)
inputs = st.builds(
    qa.EfficiencyInputs,
    st.just(S),
    st.just(NOW),
    attributions,
    targets,
    fills.map(tuple),
    lanes,
    lanes,
)


# --- attribution -----------------------------------------------------------------------------------------------------


@given(fills, st.floats(0, 2e5))
def test_an_attribution_is_within_its_ranges(given_fills: list[qa.Execution], later: float) -> None:
    """Score in [-1, 1], performance and confidence in [0, 1], contributions in [-1, 1], window at most 20; it is there
    from the first execution with a PnL until a day after the last, and its record makes it again."""
    now = NOW + later
    params = qa.AttributionParams()
    state, made = qa.attribute(S, qa.AttributionState(), given_fills, now, params)
    paid = [f for f in given_fills if f.pnl_usd is not None]
    assert state.window == tuple(paid[-20:])
    last = max((f.ts for f in paid), default=None)
    age = None if last is None else max(0, math.floor(now) - math.floor(last))
    assert (made is None) == (age is None or age >= 86_400)
    if made is None:
        return
    assert -1.0 <= made.alpha_score <= 1.0
    assert 0.0 <= made.performance_factor <= 1.0
    assert 0.0 <= made.confidence <= min(1.0, len(paid) / 20)
    assert made.lkg_age_s == age
    assert made.source.value == ("LKG" if made.lkg_age_s >= 900 else "live")
    for parts in (made.regime_contrib, made.cluster_contrib, made.signal_contrib, made.time_contrib):
        assert all(-1.0 <= x <= 1.0 for x in parts.values())
        assert math.fsum(parts.values()) == pytest.approx(math.fsum(made.regime_contrib.values()), abs=1e-9)
    record = qa.attribution_fields(made, params, "shadow")
    assert qa.differences(record) == {}
    assert qa.recompute(record) == made


def test_the_window_holds_the_last_twenty_and_zero_is_a_value() -> None:
    """The twenty-first execution pushes the first out; a score of exactly 0 is a score, not the lack of one."""
    many = [qa.Execution(S, NOW, float(i)) for i in range(25)]
    state, made = qa.attribute(S, qa.AttributionState(), many, NOW)
    assert made is not None
    assert [f.pnl_usd for f in state.window] == [float(i) for i in range(5, 25)]
    assert (made.window, made.confidence) == (20, 1.0)
    score = None
    for i in range(25):
        newest = math.tanh(sum(range(max(0, i - 19), i + 1)) / min(20, i + 1) / 200.0)
        score = newest if score is None else qa.ewma(score, newest, 0.3)
    assert made.alpha_score == pytest.approx(score, rel=1e-12)
    _, after_zero = qa.attribute(
        S, qa.AttributionState(), [qa.Execution(S, NOW, 0.0), qa.Execution(S, NOW, 100.0)], NOW
    )
    assert after_zero is not None
    assert after_zero.alpha_score == pytest.approx(0.3 * math.tanh(50.0 / 200.0), rel=1e-12)


def test_a_lowered_window_counts_at_once() -> None:
    """With a smaller window than before, what falls out of it does not count any more; the score stays."""
    state, _ = qa.attribute(S, qa.AttributionState(), [qa.Execution(S, NOW, float(i)) for i in range(20)], NOW)
    small = qa.AttributionParams(lookback_window=5)
    after, made = qa.attribute(S, state, [], NOW, small)
    assert made is not None
    assert [f.pnl_usd for f in after.window] == [15.0, 16.0, 17.0, 18.0, 19.0]
    assert (made.window, made.confidence, made.alpha_score) == (5, 1.0, state.alpha_score)
    assert qa.differences(qa.attribution_fields(made, small, "shadow")) == {}


def test_a_state_that_is_no_number_is_not_written() -> None:
    """NaN and infinity have no text."""
    for x in (math.nan, math.inf, -math.inf):
        with pytest.raises(ValueError, match="no number"):
            qa.EfficiencyState(x).text()


@given(fills, st.lists(st.integers(0, 60), max_size=5))
def test_attribution_moves_once_an_execution_and_not_per_cycle(
    given_fills: list[qa.Execution], cuts: list[int]
) -> None:
    """However the executions are spread over cycles, and however many cycles bring none: the same state."""
    at_once, _ = qa.attribute(S, qa.AttributionState(), given_fills, NOW)
    edges = [0, *sorted(min(c, len(given_fills)) for c in cuts), len(given_fills)]
    state = qa.AttributionState()
    for i, j in pairwise(edges):
        state, _ = qa.attribute(S, state, given_fills[i:j], NOW)
        state, _ = qa.attribute(S, state, [], NOW)
    assert state == at_once


@given(fills)
def test_what_an_execution_without_pnl_changes_in_attribution(given_fills: list[qa.Execution]) -> None:
    """Nothing: opens can be left out."""
    state, _ = qa.attribute(S, qa.AttributionState(), given_fills, NOW)
    without, _ = qa.attribute(S, qa.AttributionState(), [f for f in given_fills if f.pnl_usd is not None], NOW)
    assert state == without


@given(fills.filter(lambda fs: any(f.pnl_usd is not None for f in fs)), st.floats(1e-6, 1e6))
def test_a_better_execution_never_scores_less(given_fills: list[qa.Execution], more: float) -> None:
    """More PnL in the last execution never lowers the score."""
    state, _ = qa.attribute(S, qa.AttributionState(), given_fills, NOW)
    low = advance(state, qa.Execution(S, NOW, -5.0)).alpha_score
    high = advance(state, qa.Execution(S, NOW, -5.0 + more)).alpha_score
    assert low is not None
    assert high is not None
    assert low <= high + 1e-15


def test_confidence_falls_linearly_and_ends() -> None:
    """1 until 900 s, half way at half way, 0 a day after; there nothing is published, and the state stays."""
    filled = [qa.Execution(S, NOW, 1.0)] * 20
    state, _ = qa.attribute(S, qa.AttributionState(), filled, NOW)
    seen: dict[int, Any] = {}
    for age in (0, 899, 900, 901, 43_650, 86_399, 86_400, 90_000):
        after, made = qa.attribute(S, state, [], NOW + age)
        assert after == state
        seen[age] = None if made is None else (made.confidence, made.source.value)
    assert seen[0] == seen[899] == (1.0, "live")
    assert seen[900] == (1.0, "LKG")
    assert seen[901] == (pytest.approx(1 - 1 / 85_500), "LKG")
    assert seen[43_650] == (0.5, "LKG")
    assert seen[86_399] == (pytest.approx(1 / 85_500), "LKG")
    assert seen[86_400] is seen[90_000] is None


def test_a_day_of_silence_then_one_execution() -> None:
    """24 hours without an execution and then one: the score goes on from where it was, by one step, and the old
    executions are not counted again."""
    state = qa.AttributionState()
    for pnl in (50.0, 100.0):
        state, _ = qa.attribute(S, state, [qa.Execution(S, NOW, pnl)], NOW)
    old = state
    for minute in range(0, 86_400, 600):
        state, _ = qa.attribute(S, state, [], NOW + minute)
    assert state == old
    later = NOW + 86_400
    state, made = qa.attribute(S, state, [qa.Execution(S, later, 0.0)], later)
    assert made is not None
    assert old.alpha_score is not None
    assert made.alpha_score == qa.ewma(old.alpha_score, math.tanh(50.0 / 200.0), 0.3)
    assert (made.window, made.lkg_age_s, made.source.value) == (3, 0, "live")


def test_contributions_are_shares_of_the_whole() -> None:
    """Summed PnL of a bucket over the sum of absolute PnL; all zero where nothing was earned or lost."""
    fills = [
        qa.Execution(S, 6 * 3600.0, 30.0, "TREND", signal="s1"),
        qa.Execution(S, 0.0, -10.0, "CHOP", signal="s1"),
        qa.Execution(S, 86_399.5, 10.0, "TREND", signal="s2"),
    ]
    assert contributions(fills, lambda e: e.regime) == {"CHOP": -0.2, "TREND": 0.8}
    assert contributions(fills, lambda e: e.signal) == {"s1": 0.4, "s2": 0.2}
    assert contributions(fills, lambda e: time_of_day(e.ts)) == {"00-06": -0.2, "06-12": 0.6, "18-24": 0.2}
    assert contributions([qa.Execution(S, 0.0, 0.0)], lambda e: e.regime) == {"UNKNOWN": 0.0}
    assert contributions([], lambda e: e.regime) == {}


@given(fills)
def test_state_of_attribution_reads_back_bit_for_bit(given_fills: list[qa.Execution]) -> None:
    """Text and back is the same state, and the text is JSON without NaN."""
    state, _ = qa.attribute(S, qa.AttributionState(), given_fills, NOW)
    text = state.text()
    json.loads(text, parse_constant=pytest.fail)
    assert qa.AttributionState.of_text(S, text) == state
    assert qa.AttributionState.of_text(S, text).text() == text


BAD_STATES = [
    "", "x", "[]", "{}", "null", "5",
    '{"alpha_score":2.0,"last_exec_ts":1.0,"seen_ts":1.0,"window":{"ts":[1.0],"pnl_usd":[1.0],"names":["U"],"labels":[[0,0,0]]}}',
    '{"alpha_score":null,"last_exec_ts":null,"seen_ts":NaN,"window":{"ts":[],"pnl_usd":[],"names":[],"labels":[]}}',
    '{"alpha_score":null,"last_exec_ts":null,"seen_ts":true,"window":{"ts":[],"pnl_usd":[],"names":[],"labels":[]}}',
    '{"alpha_score":0.1,"last_exec_ts":1.0,"seen_ts":1.0,"window":{"ts":[],"pnl_usd":[],"names":[],"labels":[]}}',
    '{"alpha_score":null,"last_exec_ts":1.0,"seen_ts":1.0,"window":{"ts":[],"pnl_usd":[],"names":[],"labels":[]}}',
    '{"alpha_score":0.1,"last_exec_ts":1.0,"seen_ts":1.0,"window":{"ts":[1.0],"pnl_usd":[null],"names":["U"],"labels":[[0,0,0]]}}',
    '{"alpha_score":0.1,"last_exec_ts":1.0,"seen_ts":1.0,"window":{"ts":[1.0],"pnl_usd":[1.0],"names":["U"],"labels":[[0,0,9]]}}',
    '{"alpha_score":0.1,"last_exec_ts":1.0,"seen_ts":1.0,"window":{"ts":[1.0],"pnl_usd":[1.0],"names":[5],"labels":[[0,0,0]]}}',
    '{"alpha_score":0.1,"last_exec_ts":1.0,"seen_ts":1.0,"window":{"ts":[1.0],"pnl_usd":[1.0,2.0],"names":["U"],"labels":[[0,0,0]]}}',
    '{"alpha_score":0.1,"last_exec_ts":1.0,"seen_ts":1.0,"window":{"ts":5,"pnl_usd":[1.0],"names":["U"],"labels":[[0,0,0]]}}',
    '{"alpha_score":0.1,"last_exec_ts":1.0,"seen_ts":1.0,"window":[]}',
    '{"alpha_score":0.1,"last_exec_ts":1e999,"seen_ts":1.0,"window":{"ts":[1.0],"pnl_usd":[1.0],"names":["U"],"labels":[[0,0,0]]}}',
]  # fmt: skip


@pytest.mark.parametrize("text", BAD_STATES)
def test_a_state_that_no_step_gives_is_refused(text: str) -> None:
    """Not JSON, another shape, a number that is none, a contradiction: ValueError, nothing else."""
    with pytest.raises(ValueError):  # noqa: PT011 - any text of it
        qa.AttributionState.of_text(S, text)


GOOD = qa.EfficiencyState(1.0, 2.0, 0.5, 3.0, 0.4, 5.0, 6.0)


@pytest.mark.parametrize("field", qa.EfficiencyState.__dataclass_fields__)
@pytest.mark.parametrize("value", ["NaN", "-1.0", "true", '"1"', "[]", "1e999", "null"])
def test_an_efficiency_state_that_no_step_gives_is_refused(field: str, value: str) -> None:
    """Every field of the state is looked at."""
    data = json.loads(GOOD.text())
    data[field] = "@"
    text = json.dumps(data).replace('"@"', value)
    allowed = value == "null" and field in ("last_exec_ts", "target_usd")
    allowed = allowed or (value == "-1.0" and field in ("last_exec_ts", "seen_ts"))
    if allowed:
        assert qa.EfficiencyState.of_text(text).text()
    else:
        with pytest.raises(ValueError):  # noqa: PT011 - any text of it
            qa.EfficiencyState.of_text(text)
    with pytest.raises(ValueError):  # noqa: PT011
        qa.EfficiencyState.of_text("{}")
    with pytest.raises(ValueError):  # noqa: PT011
        qa.EfficiencyState.of_text(json.dumps({**json.loads(GOOD.text()), "performance": 1.1}))


def test_numbers_of_json() -> None:
    """Whole numbers and floats, nothing else."""
    assert (finite(3), finite(-0.5)) == (3.0, -0.5)
    for bad in (True, None, "1", math.nan, math.inf, 10**400, [1]):
        with pytest.raises(ValueError):  # noqa: PT011
            finite(bad)
    assert read_fills(S, json.loads(fills_text([]))) == ()


# --- efficiency ------------------------------------------------------------------------------------------------------


@given(states, inputs)
def test_an_efficiency_is_within_its_ranges(state: qa.EfficiencyState, given_inputs: qa.EfficiencyInputs) -> None:
    """(19) Score, average, confidence in [0, 1], |weight| at most confidence, everything finite; (21) pressure exactly
    as written; the record makes the decision again, and the state reads back bit for bit."""
    params = qa.EfficiencyParams()
    after, made = qa.efficiency_step(state, given_inputs, params)
    for x in (made.efficiency_score, made.efficiency_ewma, made.confidence, made.hold_time_penalty, made.performance):
        assert 0.0 <= x <= 1.0
    assert abs(made.reallocation_weight) <= made.confidence
    assert made.volatility_ewma >= made.dd_proxy * 0.0
    assert all(math.isfinite(x) for x in (made.efficiency_raw, made.volatility_ewma, made.dd_proxy))
    dd_n = 0.0 if made.target_usd is None else made.dd_proxy / max(made.target_usd, 1.0)
    expected = "HOLD"
    if made.efficiency_ewma >= 0.65 and made.confidence > 0.5:
        expected = "INCREASE"
    elif made.efficiency_ewma <= 0.35 or dd_n > 0.5:
        expected = "DECREASE"
    assert made.capital_pressure.value == expected
    assert qa.EfficiencyState.of_text(after.text()) == after
    record = qa.efficiency_fields(made, params, "enforce")
    assert qa.differences(record) == {}
    assert qa.recompute(record) == made


@given(states, inputs)
def test_flags_confidence_and_last_known_good(state: qa.EfficiencyState, given_inputs: qa.EfficiencyInputs) -> None:
    """A stale input keeps value and confidence, every other fault takes the last known good with confidence 0; any flag
    halves the smaller confidence once; inputs_ok says whether both were read."""
    after, made = qa.efficiency_step(state, given_inputs)
    a, t = given_inputs.attribution, given_inputs.target
    kind = {"ok": "", "missing": "MISSING", "stale": "STALE"}
    flags = [f"{p}_{kind.get(r.state, 'ERROR')}" for p, r in (("P30", a), ("P29", t)) if r.state != "ok"]
    assert list(made.stale_flags) == flags
    assert made.inputs_ok == all(r.state in ("ok", "stale") for r in (a, t))
    pf, pc = (state.performance, 0.0)
    if a.state in ("ok", "stale") and a.value is not None:
        told = a.value.confidence
        pf, pc = min(1.0, max(0.0, a.value.performance_factor)), 1.0 if told is None else told
    usd, tc = (state.target_usd, 0.0)
    if t.state in ("ok", "stale") and t.value is not None:
        usd, tc = t.value.target_usd, t.value.confidence
    assert (made.performance, made.target_usd) == (pf, usd) == (after.performance, after.target_usd)
    assert made.confidence == min(pc, tc) * (0.5 if flags else 1.0)
    used_shadow = (a.value is not None and given_inputs.attribution_lane is qa.Lane.SHADOW) or (
        t.value is not None and given_inputs.target_lane is qa.Lane.SHADOW
    )
    assert made.lane == ("shadow" if used_shadow else "live")


@given(unit, usd, usd, st.floats(1.0, 1e15), unit, unit, st.floats(0.0, 1e15))
@example(0.8, 2.5, 0.0, 800.0, 0.0, 0.5, 1.0)
def test_the_score_is_monotone(
    pf: float, vol: float, dd: float, target: float, hold: float, more: float, extra: float
) -> None:
    """(21) More volatility, losses or holding never raise the score, more performance never lowers it."""

    def raw(pf: float = pf, vol: float = vol, dd: float = dd, hold: float = hold) -> float:
        return qa.score_efficiency(pf, qa.per_target(vol, target), qa.per_target(dd, target), hold)

    assert raw(vol=vol + extra) <= raw()
    assert raw(dd=dd + extra) <= raw()
    assert raw(hold=min(1.0, hold + more)) <= raw()
    assert raw(pf=min(1.0, pf + more)) >= raw()


@given(unit, unit, st.floats(0.01, 1.0), st.integers(1, 60))
def test_the_average_converges(start: float, level: float, alpha: float, n: int) -> None:
    """(20) Held between its inputs, and after n steps within (1 - a)^n of the level, to 1e-12."""
    x = start
    for _ in range(n):
        after = qa.ewma(x, level, alpha)
        assert min(x, level) <= after <= max(x, level)
        x = after
    assert abs(x - level) <= (1.0 - alpha) ** n * abs(start - level) + 1e-12
    assert qa.ewma(0.0, level, 1.0) == level


@pytest.mark.parametrize(
    ("average", "confidence", "dd_n", "expected"),
    [
        (0.65, math.nextafter(0.5, 1.0), 9.0, "INCREASE"), (math.nextafter(0.65, 0.0), 1.0, 0.0, "HOLD"),
        (0.65, 0.5, 0.0, "HOLD"), (0.65, 0.5, 0.6, "DECREASE"), (0.35, 1.0, 0.0, "DECREASE"),
        (math.nextafter(0.35, 1.0), 1.0, 0.0, "HOLD"), (0.5, 1.0, 0.5, "HOLD"),
        (0.5, 1.0, math.nextafter(0.5, 1.0), "DECREASE"), (1.0, 1.0, 0.0, "INCREASE"), (0.0, 0.0, 0.0, "DECREASE"),
    ],
)  # fmt: skip
def test_pressure_at_its_thresholds(average: float, confidence: float, dd_n: float, expected: str) -> None:
    """(21) Exactly as written, on each side of each threshold."""
    assert qa.pressure(average, confidence, dd_n).value == expected


def test_a_prior_of_zero_is_a_value() -> None:
    """An average that has fallen to 0 goes on from 0, and not from one half."""
    attribution = qa.fresh(qa.Attribution(1.0, 1.0))
    state, made = qa.efficiency_step(qa.EfficiencyState(efficiency_ewma=0.0), qa.EfficiencyInputs(S, NOW, attribution))
    assert made.efficiency_ewma == state.efficiency_ewma == 0.25


@given(states, fills)
def test_opens_move_only_the_last_execution(state: qa.EfficiencyState, given_fills: list[qa.Execution]) -> None:
    """An execution without PnL moves last_exec_ts to the latest seen, one with PnL also the two averages; averages move
    towards |PnL| and towards the loss, from 0, and 0 is a value."""
    for fill in given_fills:
        after = efficiency_advance(state, fill)
        assert after.last_exec_ts == max(fill.ts, state.last_exec_ts if state.last_exec_ts is not None else fill.ts)
        if fill.pnl_usd is None:
            assert replace(after, last_exec_ts=state.last_exec_ts) == state
        else:
            assert after.volatility_ewma == qa.ewma(state.volatility_ewma, abs(fill.pnl_usd), 0.2)
            assert after.dd_proxy == qa.ewma(state.dd_proxy, max(-fill.pnl_usd, 0.0), 0.2)
        state = after


def test_an_hour_without_execution_is_counted_from_the_last_one() -> None:
    """Hold is 0 for what never executed, grows from the last execution, and is full after the hour."""
    target = qa.fresh(qa.AllocationTarget(100.0, 1.0))
    attribution = qa.fresh(qa.Attribution(1.0, 1.0))
    for last, hold in (
        (None, 0.0),
        (NOW, 0.0),
        (NOW - 900.0, 0.25),
        (NOW - 3600.0, 1.0),
        (NOW - 9e6, 1.0),
        (NOW + 4, 0.0),
    ):
        state = qa.EfficiencyState(last_exec_ts=last)
        _, made = qa.efficiency_step(state, qa.EfficiencyInputs(S, NOW, attribution, target))
        assert made.hold_time_penalty == hold


def test_outliers_are_counted_against_ten_targets() -> None:
    """Above ten targets, not at them; none without a target; both signs."""
    fills = [qa.Execution(S, NOW, x) for x in (1000.0, 1000.1, -1000.1, None)]
    assert outliers(fills, 100.0) == 2
    assert outliers(fills, None) == 0


def test_a_cycle_keeps_what_it_does_not_see() -> None:
    """States of symbols that are not among the inputs stay as they are; a symbol without anything gets no score; one
    given twice is refused; a step that fails costs its own symbol and leaves its state."""
    known = {"AAUSDT": qa.EfficiencyState(1.0, seen_ts=NOW)}
    made = qa.efficiency_cycle(known, [qa.EfficiencyInputs("BBUSDT", NOW)], NOW)
    assert (made.states, made.decisions, made.dropped) == (known, (), ())
    one = qa.EfficiencyInputs("AAUSDT", NOW)
    with pytest.raises(ValueError, match="given twice"):
        qa.efficiency_cycle(known, [one, one], NOW)
    failed = qa.efficiency_cycle(known, [one], NOW, attempt=lambda *_: None)
    assert (failed.states, failed.decisions) == (known, ())
    with_state = qa.efficiency_cycle(known, [one], NOW)
    assert [d.symbol for d in with_state.decisions] == ["AAUSDT"]
    assert with_state.rows()[0]["efficiency_score"] == 0.5
    attributed = {"AAUSDT": qa.attribute(S, qa.AttributionState(), [qa.Execution(S, NOW, 1.0)], NOW)[0]}
    kept = qa.attribution_cycle(attributed, {}, NOW, attempt=lambda *_: None)
    assert (kept.states, kept.decisions) == (attributed, ())
    assert qa.attribution_cycle(attributed, {}, NOW).rows()[0]["source"] == "live"


def test_states_are_bounded() -> None:
    """(41) 10,000 symbols that come and go: at most the limit is remembered, the latest; seven days without any input
    and a symbol is forgotten."""
    efficiency: dict[str, qa.EfficiencyState] = {}
    attribution: dict[str, qa.AttributionState] = {}
    for day in range(20):
        now = NOW + 86_400.0 * day
        names = [f"S{day:02}{i:03}" for i in range(500)]
        fills = {n: (qa.Execution(n, now, 1.0),) for n in names}
        wanted = [qa.EfficiencyInputs(n, now, fills=fills.get(n, ())) for n in sorted({*names, *efficiency})]
        made = qa.efficiency_cycle(efficiency, wanted, now, limit=2000)
        paid = qa.attribution_cycle(attribution, fills, now, limit=2000)
        assert set(made.dropped) == {*efficiency, *names} - made.states.keys()
        efficiency, attribution = dict(made.states), dict(paid.states)
        assert set(names) <= efficiency.keys() == attribution.keys()
        assert len(efficiency) == min(2000, 500 * (day + 1))
        assert {d.symbol for d in made.decisions} == efficiency.keys()
    later = NOW + 86_400.0 * 19 + DROPPED_AFTER_S
    assert len(qa.efficiency_cycle(efficiency, [], later).states) == 500
    assert qa.efficiency_cycle(efficiency, [], later + 1).states == {}
    assert qa.attribution_cycle(attribution, {}, later + 1).states == {}


# --- proposal --------------------------------------------------------------------------------------------------------

efficiencies = readings(st.builds(qa.Efficiency, unit, unit), 300)
bases = readings(usd, 300)


@given(bases, efficiencies, lanes, lanes)
def test_a_proposal_is_neutral_unless_everything_is_well(
    base: qa.Reading[float], efficiency: qa.Reading[qa.Efficiency], base_lane: qa.Lane, eff_lane: qa.Lane
) -> None:
    """(24) The multiplier is within [0.5, 1.5]; (16) exactly 1.0 for every reason but ok; (18) one reason each; without
    a fresh base nothing is proposed; the record makes the proposal again."""
    params = qa.ProposalParams()
    made = qa.propose(qa.ProposalInputs(S, NOW, base, efficiency, base_lane, eff_lane), params)
    if base.state != "ok":
        assert isinstance(made, qa.NotProposed)
        assert made.reason == f"base_{base.state}"
        return
    assert isinstance(made, qa.ProposalDecision)
    assert 0.5 <= made.multiplier <= 1.5
    reasons = {"missing": "missing_eff", "stale": "stale_eff", "future_ts": "stale_eff"}
    expected = reasons.get(efficiency.state, "redis_error")
    if efficiency.state == "ok" and efficiency.value is not None:
        expected = "ok" if efficiency.value.confidence >= 0.65 else "low_conf"
    assert made.reason.value == expected
    if expected != "ok":
        assert (made.multiplier, made.proposed_target_usd) == (1.0, base.value)
    assert (made.efficiency is None) == (efficiency.state in ("missing", "malformed", "redis_error"))
    assert made.eff_stale == (expected == "stale_eff")
    record = qa.proposal_fields(made, params)
    assert (record["eff_score"] == "") == (made.efficiency is None) == (record["eff_confidence"] == "")
    assert qa.differences(record) == {}
    assert qa.recompute(record) == made


@given(unit, unit)
def test_the_multiplier_is_monotone(a: float, b: float) -> None:
    """(24) Non-decreasing in the score, 1.0 at one half, arrays give the same bits."""
    low, high = sorted((a, b))
    assert qa.multiplier(low) <= qa.multiplier(high)
    assert qa.multiplier(0.5) == 1.0
    assert qa.multiplier(np.array([a, b])).tolist() == [qa.multiplier(a), qa.multiplier(b)]


def test_a_cycle_counts_every_symbol_once() -> None:
    """Reasons and symbols without a base add up to the symbols; a step that fails costs its own."""
    given_inputs = [
        qa.ProposalInputs("AAUSDT", NOW, qa.fresh(1.0)),
        qa.ProposalInputs("BBUSDT", NOW),
        qa.ProposalInputs("CCUSDT", NOW, qa.fresh(1.0), qa.fresh(qa.Efficiency(0.9, 0.9))),
    ]
    made = qa.proposal_cycle(given_inputs, NOW)
    assert dict(made.reasons) == {"missing_eff": 1, "base_missing": 1, "ok": 1}
    assert [r["symbol"] for r in made.rows()] == ["AAUSDT", "CCUSDT"]
    assert qa.proposal_cycle(given_inputs, NOW, attempt=lambda *_: None).reasons == {}


# --- formulas, parameters, records -----------------------------------------------------------------------------------

arrays = st.lists(st.tuples(unit, usd, usd, usd, st.floats(-1e4, 1e7), unit), min_size=1, max_size=20)


@given(arrays)
def test_arrays_go_through_the_same_formulas(rows: list[tuple[float, ...]]) -> None:
    """Floats and arrays give the same bits in every continuous formula."""
    columns = [np.array(c, dtype=np.float64) for c in zip(*rows, strict=True)]
    pf, vol, dd, target, held, confidence = columns
    raw = qa.score_efficiency(pf, qa.per_target(vol, target), qa.per_target(dd, target), qa.hold_penalty(held))
    weight = qa.reallocation_weight(pf, confidence)
    sure = qa.attribution_confidence(confidence * 30.0, held)
    scored = qa.performance(qa.alpha(held))
    for i, (a, b, c, t, h, k) in enumerate(rows):
        assert raw[i] == qa.score_efficiency(a, qa.per_target(b, t), qa.per_target(c, t), qa.hold_penalty(h))
        assert weight[i] == qa.reallocation_weight(a, k)
        assert sure[i] == qa.attribution_confidence(k * 30.0, h)
        assert scored[i] == qa.performance(qa.alpha(h))


@given(st.floats(-1e6, 1e6))
def test_alpha_is_the_logistic_form(mean: float) -> None:
    """tanh(mean / (2 scale)) is 2 / (1 + exp(-mean / scale)) - 1."""
    expected = 2.0 / (1.0 + math.exp(-mean / 100.0)) - 1.0 if mean > -70_000 else -1.0
    assert qa.alpha(mean) == pytest.approx(expected, abs=1e-12)


BAD_PARAMS: list[tuple[type, dict[str, object], str]] = [
    (qa.AttributionParams, {"lookback_window": 0}, "lookback_window"),
    (qa.AttributionParams, {"pnl_scale_usd": 0.0}, "pnl_scale_usd"),
    (qa.AttributionParams, {"ewma_alpha": 1.1}, "ewma_alpha"),
    (qa.AttributionParams, {"max_lkg_age_s": 86_400}, "max_lkg_age_s < attribution_max_age_s"),
    (qa.EfficiencyParams, {"vol_alpha": 0.0}, "vol_alpha"),
    (qa.EfficiencyParams, {"dd_alpha": 2.0}, "dd_alpha"),
    (qa.EfficiencyParams, {"score_alpha": 0.0}, "score_alpha"),
    (qa.EfficiencyParams, {"w_dd": -0.1}, "w_dd"),
    (qa.EfficiencyParams, {"hold_penalty_max_s": 0.0}, "hold_penalty_max_s"),
    (qa.EfficiencyParams, {"stale_s_p30": 0}, "stale_s_p30"),
    (qa.EfficiencyParams, {"stale_s_p29": 0}, "stale_s_p29"),
    (qa.ProposalParams, {"min_mult": 1.1}, "min_mult"),
    (qa.ProposalParams, {"max_mult": 0.9}, "max_mult"),
    (qa.ProposalParams, {"base": 2.0}, "base"),
    (qa.ProposalParams, {"scale": -1.0}, "scale"),
    (qa.ProposalParams, {"min_conf": 1.5}, "min_conf"),
    (qa.ProposalParams, {"stale_s": 0}, "stale_s"),
    (qa.ProposalParams, {"base_stale_s": 0}, "base_stale_s"),
]


@pytest.mark.parametrize(("kind", "wrong", "named"), BAD_PARAMS, ids=str)
def test_contradictions_are_refused(kind: type, wrong: dict[str, object], named: str) -> None:
    """Each contradiction is named."""
    with pytest.raises(ValueError, match=named):
        kind(**wrong)


def a_decision(kind: str) -> tuple[FlowDecision, FlowParams]:
    """One decision of each kind, with parameters that are not the defaults."""
    if kind == "p30_v1":
        p30 = qa.AttributionParams(lookback_window=5)
        _, attributed = qa.attribute(S, qa.AttributionState(), [qa.Execution(S, NOW, 7.0)] * 9, NOW, p30)
        assert attributed is not None
        return attributed, p30
    if kind == "p31_v1":
        p31 = qa.EfficiencyParams(w_vol=0.9)
        return qa.efficiency_step(qa.EfficiencyState(), qa.EfficiencyInputs(S, NOW), p31)[1], p31
    p = qa.ProposalParams(scale=0.5)
    proposed = qa.propose(qa.ProposalInputs(S, NOW, qa.fresh(5.0, NOW), qa.fresh(qa.Efficiency(0.9, 0.9), NOW)), p)
    assert isinstance(proposed, qa.ProposalDecision)
    return proposed, p


@pytest.mark.parametrize("kind", ["p30_v1", "p31_v1", "p29_shadow_v1"])
def test_records_carry_what_differs_from_the_defaults(kind: str) -> None:
    """Parameters that are not the defaults stand in the record and make the decision again; another hash, unknown
    rules, or a changed outcome are told."""
    made, params = a_decision(kind)
    record = record_of(made, params, "shadow")
    assert json.loads(record["params"]) == json.loads(changed_json(params)) != {}
    assert params_of(record) == params
    assert qa.recompute(record) == made
    assert qa.differences(record) == {}
    with pytest.raises(ValueError, match="defaults"):
        qa.recompute({**record, "params_hash": "0" * 12})
    with pytest.raises(ValueError, match="not known here"):
        qa.recompute({**record, "rules": "p99"})
    number = next(n for n in ("performance_factor", "efficiency_score", "proposed_target") if n in record)
    assert qa.differences({**record, number: "0.125"}).keys() == {number}
    assert restored(type(params), record["params"], record["params_hash"]) == params
    with pytest.raises(TypeError):
        record_of(made, qa.EfficiencyParams() if kind == "p30_v1" else qa.AttributionParams(), "shadow")
    assert made.to_dict()["symbol"] == S


def test_records_without_an_outcome_are_refused() -> None:
    """A record whose state or base gives no decision is no record."""
    made, params = a_decision("p30_v1")
    record = record_of(made, params, "shadow")
    with pytest.raises(ValueError, match="no attribution"):
        qa.recompute({**record, "fills": "", "before": qa.AttributionState().text()})
    made, params = a_decision("p29_shadow_v1")
    record = record_of(made, params, "shadow")
    with pytest.raises(ValueError, match="base target"):
        qa.recompute({**record, "base_state": "stale"})


@given(fills.filter(lambda fs: len(fs) > 50))
def test_more_executions_than_a_record_holds(given_fills: list[qa.Execution]) -> None:
    """Above fifty executions a cycle the record holds the state before the last fifty, and makes the decision again."""
    _, made = qa.efficiency_step(qa.EfficiencyState(), qa.EfficiencyInputs(S, NOW, fills=tuple(given_fills)))
    record = qa.efficiency_fields(made, qa.EfficiencyParams(), "shadow")
    assert len(json.loads(record["fills"])["ts"]) == 50
    assert qa.recompute(record) == made


def test_more_executions_of_attribution_than_a_record_holds() -> None:
    """Above fifty executions a cycle the record of attribution makes the decision again from its last fifty."""
    given_fills = tuple(qa.Execution(S, NOW - 120.0 + i, pnl_usd=float(i % 7 - 3)) for i in range(60))
    state, made = qa.attribute(S, qa.AttributionState(), given_fills, NOW)
    assert made is not None
    record = qa.attribution_fields(made, qa.AttributionParams(), "shadow")
    assert len(json.loads(record["fills"])["ts"]) == 50
    assert qa.recompute(record) == made
    one_by_one = qa.AttributionState()
    for fill in given_fills:
        one_by_one, _ = qa.attribute(S, one_by_one, (fill,), NOW)
    assert state == one_by_one
