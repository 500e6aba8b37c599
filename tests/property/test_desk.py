"""Laws of the desk over drawn inputs: what it proposes is within every limit, and is made again bit for bit."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

from hypothesis import assume, given
from hypothesis import strategies as st

import quantum_alloc.core as qa
from quantum_alloc.core.desk import (
    DeskDecision,
    DeskInputs,
    DeskParams,
    DeskReason,
    LastPlan,
    closing_action,
    is_paced,
    kill_score,
    open_qty,
    propose_plan,
    stop_is_hit,
)
from quantum_alloc.core.gates import Outcome
from quantum_alloc.core.governor_params import GATES
from quantum_alloc.core.limits import HOUR_S, US, us, usage
from quantum_alloc.core.plan import CLOSING_SHARE, FULL_CLOSE
from quantum_alloc.core.record_desk import desk_again, desk_fields

NOW_US = 1_769_577_495_250_000
NOW = NOW_US / US
PACING = ("2", "3", "4.cooldown", "4.trade")
SIDES = {qa.Side.BUY: 1.0, qa.Side.SELL: -1.0}

unit = st.floats(0.0, 1.0)
prices = st.one_of(st.sampled_from([98.0, 99.0, 100.0, 101.0, 102.0]), st.floats(1e-6, 1e6))
near = st.one_of(st.sampled_from([98.0, 99.0, 100.0, 101.0, 102.0]), st.floats(97.0, 103.0))
amounts = st.one_of(st.sampled_from([0.0, 10.0, 100.0, 200.0, 1000.0]), st.floats(0.0, 1e6))
ago = st.one_of(
    st.sampled_from([0.0, 59.999999, 60.0, 60.000001, 299.999999, 300.0, 300.000001, 3599.999999, 3600.0, -1.0]),
    st.floats(0.0, 4000.0),
)
issued = st.builds(
    lambda s, movement: qa.Issued(NOW_US - us(s), movement, 50.0), ago, st.sampled_from(list(qa.Movement))
)
targets: st.SearchStrategy[qa.Reading[float]] = st.one_of(
    st.builds(lambda usd, age: qa.grade(usd, NOW - age, NOW, 300), amounts, st.integers(0, 300)),
    st.builds(lambda usd, age: qa.grade(usd, NOW - age, NOW, 300), amounts, st.sampled_from([0, 300, 301, -5, -6])),
    st.sampled_from([qa.missing(), qa.Unusable(qa.Reason.MALFORMED, ts=NOW, detail="target_usd")]),
)


@st.composite
def params(draw: st.DrawFn) -> DeskParams:
    """The numbers of the desk, often the contract's."""
    if draw(st.booleans()):
        return DeskParams(channel_bars=3)
    few = st.sampled_from([1, 2, 3, 4, 10, 0])
    least = draw(st.floats(1e-3, 20.0))
    return DeskParams(
        channel_bars=draw(st.integers(1, 5)),
        stop_sigmas=draw(st.floats(0.01, 10.0)),
        trade_usd=least + draw(amounts),
        min_trade_usd=least,
        target_slack=draw(unit),
        drawdown_full=draw(st.floats(1e-3, 1.0)),
        sigma_full=draw(st.floats(1e-3, 1.0)),
        plan_max_age_s=draw(st.sampled_from([1, 120])),
        max_exec_per_hour=draw(few),
        max_exec_per_5min=draw(few),
        max_close_per_hour=draw(few),
        max_close_per_5min=draw(few),
        symbol_cooldown_s=draw(st.sampled_from([0, 60, 400])),
        max_notional_per_trade_usd=draw(st.sampled_from([50.0, 200.0, 1e12])),
    )


@st.composite
def inputs(draw: st.DrawFn) -> DeskInputs:
    """What a symbol may be read as; more often than not something may be proposed."""
    often = st.integers(0, 9).map(bool)
    closes = tuple(draw(st.lists(near, min_size=0 if draw(st.integers(0, 9)) == 0 else 5, max_size=8)))
    held = draw(st.one_of(st.just(0.0), st.floats(1e-3, 20.0), st.floats(-20.0, -1e-3)))
    return DeskInputs(
        "BTCUSDT",
        NOW_US,
        closes,
        NOW - draw(st.sampled_from([0.25, 15.0, 180.0])) if draw(often) else None,
        draw(st.one_of(st.none(), near)),
        held if draw(often) else None,
        draw(st.one_of(st.none(), near)),
        draw(targets),
        draw(st.one_of(st.none(), st.floats(0.0, 0.1))),
        draw(st.one_of(st.none(), unit)),
        usage(draw(st.lists(issued, max_size=4)), NOW_US) if draw(often) else None,
        0.0 if draw(often) else NOW + 1.0,
        draw(st.sampled_from([LastPlan()] * 5 + [LastPlan(NOW - 60.0), LastPlan(NOW - 60.0, NOW_US), None])),
    )


@st.composite
def ready(draw: st.DrawFn, kinds: tuple[str, ...] = ("breakout", "stop", "excess")) -> DeskInputs:
    """Everything is known and something is to be proposed, unless limits or amounts are in the way."""
    kind, side = draw(st.sampled_from(kinds)), draw(st.sampled_from([1.0, -1.0]))
    channel = tuple(draw(st.lists(st.floats(90.0, 110.0), min_size=5, max_size=5)))
    usd = draw(st.one_of(st.sampled_from([200.0, 1000.0]), st.floats(150.0, 1e6)))
    share = {"breakout": st.floats(0.0, 0.9), "stop": st.floats(0.1, 1.0), "excess": st.floats(2.01, 9.0)}[kind]
    held = draw(st.one_of(st.just(0.0), share) if kind == "breakout" else share) * usd / 200.0
    close = draw(st.floats(110.5, 180.0) if side > 0.0 else st.floats(20.0, 89.0)) if kind == "breakout" else 100.0
    return DeskInputs(
        "BTCUSDT",
        NOW_US,
        (*channel, close),
        NOW - 15.25,
        extreme_usd=close * (1.0 + side * 0.9) if kind == "stop" else None,
        qty=side * held,
        mark_usd=draw(st.one_of(st.none(), st.floats(close * 0.9, close * 1.1), st.just(close))),
        target=qa.grade(usd, NOW - draw(st.sampled_from([0.0, 300.0])), NOW, 300),
        sigma=0.001 if kind == "stop" else draw(st.one_of(st.none(), st.floats(0.0, 0.1))),
        drawdown=draw(st.one_of(st.none(), unit)),
        usage=usage(draw(st.lists(issued, max_size=4)), NOW_US),
    )


def governed(made: DeskDecision, p: DeskParams) -> tuple[qa.Permit | qa.Block, dict[str, qa.Checked]]:
    """What a governor with the same limits, that has counted the same, says of a plan at once."""
    i = made.inputs
    told = qa.Plan(
        made.plan_id,
        made.symbol,
        made.action,
        math.floor(NOW),
        made.side,
        made.qty,
        made.price_usd,
        made.kill_score,
    )
    assert i.qty is not None
    target: qa.Reading[qa.Limit] = qa.missing()
    if isinstance(i.target, qa.Fresh):
        target = qa.fresh(qa.Limit(i.target.value, "enforce"), NOW)
    seen = qa.Inputs(
        told,
        NOW_US,
        position=qa.fresh(qa.Holding(i.qty, i.mark_usd), NOW),
        target=target,
        usage=i.usage,
        totals=qa.fresh(qa.Totals(0.0, 0), NOW),
    )
    limits = qa.GovernorParams(
        apply_mode="production",
        max_exec_per_hour=p.max_exec_per_hour,
        max_exec_per_5min=p.max_exec_per_5min,
        max_close_per_hour=p.max_close_per_hour,
        max_close_per_5min=p.max_close_per_5min,
        symbol_cooldown_s=p.symbol_cooldown_s,
        max_notional_per_trade_usd=p.max_notional_per_trade_usd,
        max_total_notional_usd=1e30,
        max_reduce_notional_per_day_usd=1e30,
    )
    answer = qa.evaluate(seen, limits)
    return answer, dict(zip((g.gate for g in GATES), answer.checks, strict=True))


@given(st.one_of(ready(), inputs()), params())
def test_no_plan_is_against_a_limit(given_: DeskInputs, p: DeskParams) -> None:
    """A governor with the same limits that has counted the same blocks no plan of the desk by its rate, burst, cooldown
    or notional gates, none by the target's, and an open by its kill score alone; no plan is the one that disarms."""
    made = propose_plan(given_, p)
    assume(made.is_plan)
    answer, said = governed(made, p)
    for gate in (*PACING, "0.5", "plan", "4.known", "4.positions", "4.total", "5"):
        assert said[gate].outcome is not Outcome.BLOCK, (gate, said[gate])
    if isinstance(answer, qa.Block):
        assert answer.reason == "kill_score_critical_non_close"
        assert made.kill_score is not None
        assert made.kill_score >= 0.8
        assert not answer.disarms
    else:
        assert (answer.movement is qa.Movement.CLOSE) == (made.action in CLOSING_SHARE)


@given(ready(), params())
def test_what_is_paced_would_be_blocked(given_: DeskInputs, p: DeskParams) -> None:
    """Pacing holds back what the governor would block by rate, burst or cooldown, and nothing else: a plan that is made
    with nothing counted is made with what was counted exactly where these gates let it through."""
    freely = propose_plan(replace(given_, usage=qa.Usage()), p)
    assume(freely.is_plan)
    _, said = governed(replace(freely, inputs=given_), p)
    is_blocked = Outcome.BLOCK in {said[gate].outcome for gate in PACING[:3]}
    made = propose_plan(given_, p)
    assert (made.reason is DeskReason.PACED) == is_blocked
    assert made.is_plan != is_blocked


@given(ready(("breakout",)), params())
def test_an_open_is_within_every_amount(given_: DeskInputs, p: DeskParams) -> None:
    """Quantity x price is above neither the desk's nor the governor's limit, the exposure after it not above the
    target, both to the last bit; an open follows what is held, never turns it, and stands outside its channel."""
    made = propose_plan(given_, p)
    assume(made.reason is DeskReason.BREAKOUT)
    i, side, qty, price = given_, made.side, made.qty, made.price_usd
    assert side is not None
    assert qty is not None
    assert price is not None
    assert i.qty is not None
    assert isinstance(i.target, qa.Fresh)
    assert 0.0 < qty * price <= min(p.trade_usd, p.max_notional_per_trade_usd)
    assert price >= max(i.closes[-1], i.mark_usd or 0.0)
    assert abs(i.qty + SIDES[side] * qty) * (i.mark_usd or i.closes[-1]) <= i.target.value
    assert i.qty * SIDES[side] >= 0.0
    channel = i.closes[-p.channel_bars - 1 : -1]
    assert all(i.closes[-1] > c if side is qa.Side.BUY else i.closes[-1] < c for c in channel)
    assert made.kill_score == kill_score(i.drawdown, i.sigma, p)


@given(amounts, st.floats(0.0, 1e4), prices, prices, params())
def test_quantities_of_any_size(target: float, held: float, mark: float, price: float, p: DeskParams) -> None:
    """Over prices and positions of any size: within every limit, and nearly all of the room where there is some."""
    qty = open_qty(target, held, mark, price, p)
    room = target - held * mark
    most = min(room, p.trade_usd, p.max_notional_per_trade_usd)
    assert qty >= 0.0
    assert qty * price <= max(0.0, most)
    if qty:
        assert (held + qty) * mark <= target
        assert most >= p.min_trade_usd
    elif most >= p.min_trade_usd:
        assert room <= target * 2.0**-50, "no room was left out but one of a rounding"
    if most >= p.min_trade_usd and mark == price and room > target * 1e-6:
        assert math.isclose(qty * price, most, rel_tol=1e-9)


@given(unit, unit, st.floats(0.0, 1.0), st.floats(0.0, 1.0), params())
def test_the_kill_score_is_monotone(d1: float, d2: float, s1: float, s2: float, p: DeskParams) -> None:
    """From 0 to 1; more drawdown or more sigma never lowers it, and unknown is no less than anything known."""
    low, high = kill_score(min(d1, d2), min(s1, s2), p), kill_score(max(d1, d2), max(s1, s2), p)
    assert 0.0 <= low <= high <= 1.0
    assert kill_score(min(d1, d2), s1, p) <= kill_score(max(d1, d2), s1, p) <= kill_score(None, s1, p) == 1.0
    assert kill_score(d1, min(s1, s2), p) <= kill_score(d1, max(s1, s2), p) <= kill_score(d1, None, p) == 1.0
    assert kill_score(p.drawdown_full, 0.0, p) == kill_score(0.0, p.sigma_full, p) == 1.0
    assert kill_score(0.0, 0.0, p) == 0.0
    if d1 == 0.0:
        assert math.isclose(kill_score(d1, s1, p), min(1.0, s1 / p.sigma_full), abs_tol=1e-15)


@given(st.floats(1e-3, 1e9), st.one_of(amounts, st.sampled_from([0.25, 0.5, 0.75])), st.booleans())
def test_the_smallest_share_that_suffices(exposure: float, target: float, share_of_it: bool) -> None:
    """The share brings the exposure to the target or below, and the next smaller one would not."""
    limit = exposure * target if share_of_it else target
    assume(exposure > limit)
    share = CLOSING_SHARE[closing_action(exposure, limit)]
    assert exposure * (1.0 - share) <= limit
    smaller = [s for s in CLOSING_SHARE.values() if s < share]
    assert all(exposure * (1.0 - s) > limit for s in smaller)
    assert closing_action(exposure, 0.0) == FULL_CLOSE


@given(st.one_of(ready(), inputs()), params())
def test_a_record_makes_the_decision_again(given_: DeskInputs, p: DeskParams) -> None:
    """Plan or none, the record gives the same decision bit for bit after its way through text."""
    made = propose_plan(given_, p)
    told = json.loads(json.dumps(desk_fields(made, p)))
    again = desk_again(told)
    assert again == made
    assert repr(again.inputs) == repr(made.inputs)
    assert desk_fields(again, p) == told


@given(st.one_of(ready(), inputs()), params(), near)
def test_what_has_no_say(given_: DeskInputs, p: DeskParams, other: float) -> None:
    """A target that cannot be used is as good as none, an extreme says nothing while flat or without a sigma, and
    whatever is decided after an unusable reading is no open."""
    made = propose_plan(given_, p)
    if isinstance(given_.target, qa.Unusable):
        without = propose_plan(replace(given_, target=qa.missing()), p)
        assert _plan(without) == _plan(made)
        assert made.reason is not DeskReason.BREAKOUT
        assert made.reason is not DeskReason.ABOVE_TARGET
    if given_.qty == 0.0 or given_.sigma is None:
        assert _plan(propose_plan(replace(given_, extreme_usd=other), p)) == _plan(made)
        assert made.reason is not DeskReason.STOP
    blind = (
        replace(given_, qty=None),
        replace(given_, usage=None),
        replace(given_, last=None),
        replace(given_, bar_ts=None),
    )
    assert not any(propose_plan(one, p).is_plan for one in blind)
    done = replace(given_, last=LastPlan(given_.bar_ts))
    assert given_.bar_ts is None or not propose_plan(done, p).is_plan


def _plan(made: DeskDecision) -> tuple[Any, ...]:
    return made.reason, made.action, made.side, made.qty, made.price_usd, made.kill_score


@given(st.lists(issued, max_size=6), st.sampled_from(list(qa.Movement)), params(), st.integers(0, 4000 * US))
def test_pacing_ends_with_time(entries: list[qa.Issued], movement: qa.Movement, p: DeskParams, later: int) -> None:
    """What is not paced now is not paced later with nothing new, and an hour after the last entry nothing is paced but
    what is forbidden altogether."""
    if not is_paced(movement, usage(entries, NOW_US), NOW_US, p):
        assert not is_paced(movement, usage(entries, NOW_US + later), NOW_US + later, p)
    after = NOW_US + (HOUR_S + 1) * US
    opens = (p.max_exec_per_hour, p.max_exec_per_5min)
    limits = opens if movement is qa.Movement.OPEN else (p.max_close_per_hour, p.max_close_per_5min)
    assert is_paced(movement, usage(entries, after), after, p) == (min(limits) == 0)


@given(near, near, st.floats(1e-3, 0.5), st.sampled_from([-1.0, 1.0]))
def test_a_stop_is_hit_from_its_level_on(close: float, extreme: float, distance: float, qty: float) -> None:
    """Beyond the level it is hit, short of it not; a further extreme or a smaller distance only brings it nearer."""
    level = extreme * (1.0 - qty * distance)
    assert stop_is_hit(qty, close, extreme, distance) == (qty * close <= qty * level)
    if stop_is_hit(qty, close, extreme, distance):
        assert stop_is_hit(qty, close, extreme + qty, distance)
        assert stop_is_hit(qty, close, extreme, distance / 2.0)
