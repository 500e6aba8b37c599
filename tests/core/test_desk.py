"""The desk: a table of worked cases with exact plans, every reason and every edge by a case of its own."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

import quantum_alloc.core as qa
from quantum_alloc.core.desk import (
    ACTIONS,
    DEFAULTS,
    RULES_VERSION,
    DeskDecision,
    DeskInputs,
    DeskParams,
    DeskReason,
    LastPlan,
    closing_action,
    desk_cycle,
    kill_score,
    open_qty,
    plan_id,
    propose_plan,
    stop_is_hit,
)
from quantum_alloc.core.limits import US, us, usage
from quantum_alloc.core.record_desk import desk_again, desk_fields

NOW_US = 1_769_577_495_000_000
NOW = NOW_US / US
BAR = 1_769_577_480.0
S = "BTCUSDT"
CHANNEL = tuple(100.0 + (i % 3) for i in range(20))
"""Closes of 20 bars, from 100 to 102."""
OPEN, CLOSE = qa.Movement.OPEN, qa.Movement.CLOSE


def graded(usd: float, age: float = 0.0) -> qa.Reading[float]:
    """A target of this age."""
    return qa.grade(usd, NOW - age, NOW, DEFAULTS.target_stale_s)


BASE = DeskInputs(
    S, NOW_US, (*CHANNEL, 101.0), BAR, qty=0.0, mark_usd=101.0, target=graded(1000.0), sigma=0.006, drawdown=0.015
)
UP: Mapping[str, Any] = {"closes": (*CHANNEL, 125.0), "mark_usd": 125.0}
DOWN: Mapping[str, Any] = {"closes": (*CHANNEL, 80.0), "mark_usd": 80.0}
SCORE = 1.0 - (1.0 - 0.1) * (1.0 - 0.2)
LONG = ("BREAKOUT_LONG", "BUY", 1.6, 125.0, SCORE)
SHORT = ("BREAKOUT_SHORT", "SELL", 2.5, 80.0, SCORE)


def full(price: float) -> tuple[Any, ...]:
    """A close of everything."""
    return ("FULL_CLOSE_PROPOSED", None, None, price, None)


def part(percent: int, price: float = 101.0) -> tuple[Any, ...]:
    """A close of a part."""
    return (f"PARTIAL_{percent}", None, None, price, None)


def used(*entries: tuple[float, qa.Movement]) -> qa.Usage:
    """What permits some seconds ago come to."""
    return usage([qa.Issued(NOW_US - us(ago), m) for ago, m in entries], NOW_US)


def bought(*ago: float) -> qa.Usage:
    """Opens some seconds ago."""
    return used(*((a, OPEN) for a in ago))


def sold(*ago: float) -> qa.Usage:
    """Closes some seconds ago."""
    return used(*((a, CLOSE) for a in ago))


@dataclass(frozen=True)
class Case:
    """Changed inputs and the exact decision: a reason, and action, side, quantity, price and kill score of a plan."""

    name: str
    why: str
    given: Mapping[str, Any]
    plan: tuple[Any, ...] = ("", None, None, None, None)
    params: Mapping[str, Any] = field(default_factory=dict)


STOPPED: Mapping[str, Any] = {"qty": 5.0, "extreme_usd": 125.0, "sigma": 0.25, "closes": (*CHANNEL, 93.75)}
RICH: Mapping[str, Any] = {"qty": 10.0, "mark_usd": 101.0}
CASES = (
    # what is not known, or done
    Case("no bar at all", "no_bar", {"closes": (), "bar_ts": None}),
    Case("closes and no time", "no_bar", {"bar_ts": None}),
    Case("a time and no closes", "no_bar", {"closes": ()}),
    Case("a bar of 180 s", "breakout", {**UP, "bar_ts": NOW - 180.0}, LONG),
    Case("a bar of 181 s", "old_bar", {**UP, "bar_ts": NOW - 181.0}),
    Case("a bar that is 5 s ahead", "breakout", {**UP, "bar_ts": NOW + 5.0}, LONG),
    Case("position unknown", "position_unknown", {**UP, "qty": None}),
    Case("ledger unreadable", "state_unreadable", {**UP, "usage": None}),
    Case("own state unreadable", "state_unreadable", {**UP, "last": None}),
    Case("a plan was made of this bar", "bar_done", {**UP, "last": LastPlan(BAR)}),
    Case("a plan was made of a later bar", "bar_done", {**UP, "last": LastPlan(BAR + 60.0)}),
    Case("a plan was made of the bar before", "breakout", {**UP, "last": LastPlan(BAR - 60.0)}, LONG),
    Case("the last plan may be answered", "unanswered", {**UP, "last": LastPlan(BAR - 60.0, NOW_US - us(60.0))}),
    Case("to the end", "unanswered", {**UP, "last": LastPlan(BAR - 60.0, NOW_US - us(120.0))}),
    Case("and after", "breakout", {**UP, "last": LastPlan(BAR - 60.0, NOW_US - us(120.0) - 1)}, LONG),
    Case(
        "not so long",
        "breakout",
        {**UP, "last": LastPlan(BAR - 60.0, NOW_US - us(60.000001))},
        LONG,
        {"plan_max_age_s": 60},
    ),
    Case("a stop waits for it too", "unanswered", {**STOPPED, "last": LastPlan(BAR - 60.0, NOW_US)}),
    # the stop
    Case("a long at its stop", "trailing_stop", STOPPED, full(93.75)),
    Case("a long above it", "no_breakout", {**STOPPED, "closes": (*CHANNEL[:-1], 93.0, 93.76)}),
    Case("a short at its stop", "trailing_stop", {**STOPPED, "qty": -5.0, "extreme_usd": 75.0}, full(93.75)),
    Case("a short below it", "no_breakout", {**STOPPED, "qty": -5.0, "extreme_usd": 81.0, "closes": (*CHANNEL, 101.0)}),
    Case("two sigmas", "no_breakout", {**STOPPED, "closes": (*CHANNEL, 101.0)}, params={"stop_sigmas": 2.0}),
    Case("no sigma, no stop", "no_breakout", {**STOPPED, "sigma": None, "closes": (*CHANNEL[1:], 90.0, 90.0)}),
    Case("a sigma of 0, no stop", "no_breakout", {**STOPPED, "sigma": 0.0, "closes": (*CHANNEL[1:], 90.0, 90.0)}),
    Case("no extreme, no stop", "no_breakout", {**STOPPED, "extreme_usd": None, "closes": (*CHANNEL[1:], 90.0, 90.0)}),
    Case("flat, no stop", "no_breakout", {"extreme_usd": 200.0}),
    Case("a stop needs no target", "trailing_stop", {**STOPPED, "target": qa.missing()}, full(93.75)),
    Case("a stop before what is above target", "trailing_stop", {**STOPPED, "target": graded(300.0)}, full(93.75)),
    Case("9 closes in 300 s", "trailing_stop", {**STOPPED, "usage": sold(*range(9))}, full(93.75)),
    Case("10 closes in 300 s", "paced", {**STOPPED, "usage": sold(*range(9), 299.999999)}),
    Case("the tenth is out", "trailing_stop", {**STOPPED, "usage": sold(*range(9), 300.0)}, full(93.75)),
    Case("29 closes in 3600 s", "trailing_stop", {**STOPPED, "usage": sold(*range(300, 329))}, full(93.75)),
    Case("30 closes in 3600 s", "paced", {**STOPPED, "usage": sold(*range(300, 329), 3599.999999)}),
    Case("the thirtieth is out", "trailing_stop", {**STOPPED, "usage": sold(*range(300, 329), 3600.0)}, full(93.75)),
    Case("opens do not hold a close back", "trailing_stop", {**STOPPED, "usage": bought(*range(9))}, full(93.75)),
    Case("no closes at all", "paced", STOPPED, params={"max_close_per_5min": 0}),
    Case("none an hour", "paced", STOPPED, params={"max_close_per_hour": 0}),
    # above target
    Case("at target and slack", "no_breakout", {"qty": 10.5, "mark_usd": 100.0}),
    Case("above both", "above_target", {"qty": 10.51, "mark_usd": 100.0}, part(25)),
    Case("no slack", "above_target", {"qty": 10.01, "mark_usd": 100.0}, part(25), {"target_slack": 0.0}),
    Case("a quarter suffices", "above_target", {**RICH, "target": graded(757.5)}, part(25)),
    Case("a quarter does not", "above_target", {**RICH, "target": graded(757.49)}, part(50)),
    Case("half suffices", "above_target", {**RICH, "target": graded(505.0)}, part(50)),
    Case("half does not", "above_target", {**RICH, "target": graded(504.99)}, part(75)),
    Case("three quarters suffice", "above_target", {**RICH, "target": graded(252.5)}, part(75)),
    Case("three quarters do not", "above_target", {**RICH, "target": graded(252.49)}, full(101.0)),
    Case("a target of 0", "above_target", {**RICH, "target": graded(0.0)}, full(101.0)),
    Case("a target of 0 and next to nothing", "above_target", {"qty": 5e-324, "mark_usd": 1.0, "target": graded(0.0)},
         full(101.0)),
    Case("a short too", "above_target", {**RICH, "qty": -10.0, "target": graded(505.0)}, part(50)),
    Case("without a mark", "above_target", {**RICH, "mark_usd": None, "target": graded(757.5)}, part(25)),
    Case("before a breakout", "above_target", {**UP, "qty": 10.0}, part(25, 125.0)),
    Case("a target of 300 s", "above_target", {**RICH, "target": graded(505.0, 300.0)}, part(50)),
    Case("an old target closes nothing", "no_breakout", {**RICH, "target": graded(505.0, 301.0)}),
    Case("nor does none", "no_breakout", {**RICH, "target": qa.missing()}),
    Case("nor one of the future", "no_breakout", {**RICH, "target": graded(505.0, -6.0)}),
    Case("paced", "paced", {**RICH, "target": graded(505.0), "usage": sold(*range(10))}),
    # breakouts
    Case("above the channel", "breakout", UP, LONG),
    Case("below the channel", "breakout", DOWN, SHORT),
    Case("at its upper edge", "no_breakout", {"closes": (*CHANNEL, 102.0)}),
    Case("at its lower edge", "no_breakout", {"closes": (*CHANNEL, 100.0)}),
    Case("one bar short", "no_channel", {"closes": (*CHANNEL[1:], 125.0)}),
    Case("more bars than a channel", "breakout", {**UP, "closes": (900.0, *CHANNEL, 125.0)}, LONG),
    Case("a channel of one", "breakout", {**UP, "closes": (900.0, 102.0, 125.0)}, LONG, {"channel_bars": 1}),
    Case("no target", "no_target", {**UP, "target": qa.missing()}),
    Case("an old target", "no_target", {**UP, "target": graded(1000.0, 301.0)}),
    Case("a target of 0 opens nothing", "no_room", {**UP, "target": graded(0.0)}),
    Case("a long adds", "breakout", {**UP, "qty": 1.0}, LONG),
    Case("a short adds", "breakout", {**DOWN, "qty": -1.0}, SHORT),
    Case("a long is not sold", "held_other_way", {**DOWN, "qty": 1.0}),
    Case("a short is not bought", "held_other_way", {**UP, "qty": -1.0}),
    Case("room is less", "breakout", {**UP, "qty": 7.0}, (*LONG[:2], 1.0, *LONG[3:])),
    Case("room of the least", "breakout", {**UP, "qty": 7.92}, (*LONG[:2], 0.08, *LONG[3:])),
    Case("room of less", "no_room", {**UP, "qty": 7.9201}),
    Case("at the target", "no_room", {**UP, "qty": 8.0}),
    Case("above it, within the slack", "no_room", {**UP, "qty": 8.3}),
    Case("the desk's own limit", "breakout", UP, (*LONG[:2], 0.8, *LONG[3:]), {"trade_usd": 100.0}),
    Case(
        "the governor lets more through",
        "breakout",
        UP,
        (*LONG[:2], 4.0, *LONG[3:]),
        {"max_notional_per_trade_usd": 1e6},
    ),
    Case("the governor lets nothing through", "no_room", UP, params={"max_notional_per_trade_usd": 0.0}),
    Case("a mark above the close", "breakout", {**UP, "mark_usd": 160.0}, (*LONG[:2], 1.25, 160.0, SCORE)),
    Case("a mark below the close", "breakout", {**UP, "mark_usd": 1.0}, LONG),
    Case("no mark", "breakout", {**UP, "mark_usd": None}, LONG),
    # pacing of opens
    Case("1 open in 300 s", "breakout", {**UP, "usage": bought(60.0)}, LONG),
    Case("2 opens in 300 s", "paced", {**UP, "usage": bought(60.0, 299.999999)}),
    Case("the second is out", "breakout", {**UP, "usage": bought(60.0, 300.0)}, LONG),
    Case("3 opens in 3600 s", "paced", {**UP, "usage": bought(300.0, 301.0, 3599.999999)}),
    Case("the third is out", "breakout", {**UP, "usage": bought(300.0, 301.0, 3600.0)}, LONG),
    Case("one of the future counts", "paced", {**UP, "usage": bought(-100.0)}, params={"symbol_cooldown_s": 0,
         "max_exec_per_5min": 1}),
    Case("cooldown", "paced", {**UP, "usage": bought(59.999999)}),
    Case("of a close too", "paced", {**UP, "usage": sold(59.999999)}),
    Case("closes do not hold an open back", "breakout", {**UP, "usage": sold(*range(60, 90))}, LONG),
    Case("no cooldown", "breakout", {**UP, "usage": bought(0.0)}, LONG, {"symbol_cooldown_s": 0}),
    Case("no opens at all", "paced", UP, params={"max_exec_per_5min": 0}),
    Case("no opens an hour", "paced", UP, params={"max_exec_per_hour": 0}),
    Case("the apply layer waits", "paced", {**UP, "next_open_ts": NOW + 0.5}),
    Case("and no more", "breakout", {**UP, "next_open_ts": NOW}, LONG),
    # the kill score
    Case("drawdown unknown", "breakout", {**UP, "drawdown": None}, (*LONG[:4], 1.0)),
    Case("sigma unknown", "breakout", {**UP, "sigma": None}, (*LONG[:4], 1.0)),
    Case("all is calm", "breakout", {**UP, "sigma": 0.0, "drawdown": 0.0}, (*LONG[:4], 0.0)),
    Case("a deep drawdown", "breakout", {**UP, "sigma": 0.0, "drawdown": 0.9}, (*LONG[:4], 1.0)),
)  # fmt: skip


def decided(case: Case) -> DeskDecision:
    """What the desk makes of a case."""
    return propose_plan(replace(BASE, **case.given), DeskParams(**case.params))


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_worked_cases(case: Case) -> None:
    """Each case comes to exactly its reason and plan, and to the same again from its record."""
    made, params = decided(case), DeskParams(**case.params)
    assert made.reason.value == case.why
    assert (made.action, made.side, made.qty, made.price_usd, made.kill_score) == case.plan
    assert made.is_plan == (made.action in ACTIONS) == (case.why in ("trailing_stop", "above_target", "breakout"))
    assert made.plan_id == (f"desk-{S}-{int(made.inputs.bar_ts or 0)}" if made.is_plan else "")
    assert desk_again(desk_fields(made, params)) == made


def test_every_reason_and_action_has_a_case() -> None:
    """No reason and no action is left without a case."""
    made = [decided(case) for case in CASES]
    assert {d.reason for d in made} == set(DeskReason)
    assert {d.action for d in made} == {*ACTIONS, ""}


def test_the_default_parameters() -> None:
    """Without parameters those of the contract hold, and the governor's limits are the governor's."""
    assert propose_plan(replace(BASE, **UP)) == propose_plan(replace(BASE, **UP), DEFAULTS)
    assert kill_score(0.015, 0.006) == SCORE
    governor = qa.GovernorParams()
    for name in (
        "plan_max_age_s", "max_exec_per_hour", "max_exec_per_5min", "max_close_per_hour", "max_close_per_5min",
        "symbol_cooldown_s", "max_notional_per_trade_usd",
    ):  # fmt: skip
        assert getattr(DEFAULTS, name) == getattr(governor, name)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"channel_bars": 0}, "channel_bars must be at least 1"),
        ({"stop_sigmas": 0.0}, "stop_sigmas must be above 0"),
        ({"min_trade_usd": 0.0}, "min_trade_usd must be above 0"),
        ({"min_trade_usd": 501.0}, "min_trade_usd must be at most trade_usd"),
        ({"target_slack": -0.1}, "target_slack must be at least 0"),
        ({"drawdown_full": 0.0}, "drawdown_full must be above 0"),
        ({"sigma_full": 0.0}, "sigma_full must be above 0"),
        ({"target_stale_s": 0}, "target_stale_s must be above 0"),
        ({"bar_stale_s": 0}, "bar_stale_s must be above 0"),
        ({"plan_max_age_s": 0}, "plan_max_age_s must be above 0"),
        ({"max_exec_per_hour": -1}, "no limit of opens may be negative"),
        ({"max_exec_per_5min": -1}, "no limit of opens may be negative"),
        ({"max_close_per_hour": -1}, "no limit of closes may be negative"),
        ({"max_close_per_5min": -1}, "no limit of closes may be negative"),
        ({"symbol_cooldown_s": -1}, "symbol_cooldown_s must be at least 0"),
        ({"max_notional_per_trade_usd": -1.0}, "max_notional_per_trade_usd must be at least 0"),
    ],
)
def test_contradictions_are_refused(wrong: Mapping[str, Any], told: str) -> None:
    """Each contradiction is named."""
    with pytest.raises(ValueError, match=told):
        DeskParams(**wrong)


@pytest.mark.parametrize(
    ("target", "held", "mark"),
    [(1221.94, 3.5, 121.47), (336.79, 0.68, 194.96), (1374.53, 6.09, 35.98), (200.0, 0.0, 77.46)],
)
def test_no_rounding_goes_above_a_limit(target: float, held: float, mark: float) -> None:
    """Where the plain quotient is above a limit by its rounding, or its sum with what is held is, a quantity that is
    less by no more than that is taken."""
    qty = open_qty(target, held, mark, mark, DeskParams(trade_usd=1e9, max_notional_per_trade_usd=1e9))
    plain = (target - held * mark) / mark
    assert (held + plain) * mark > target, "a case of its own"
    assert (held + qty) * mark <= target
    assert qty == pytest.approx(plain, rel=1e-14)


def test_room_that_no_quantity_fits_into() -> None:
    """A room of one rounding is none."""
    p = DeskParams(min_trade_usd=1e-300)
    target, held, mark = 393.61800000000005, 4.54, 86.7
    assert target - held * mark > 0.0
    assert open_qty(target, held, mark, mark, p) == 0.0


def test_plan_ids_are_ids() -> None:
    """The longest symbol's id matches the contract's pattern, and two bars have two."""
    pattern = re.compile(r"[A-Za-z0-9_.-]{1,64}")
    assert pattern.fullmatch(plan_id("X" * 30, 99_999_999_999.0))
    assert plan_id(S, BAR) != plan_id(S, BAR + 60.0)
    assert closing_action(1.0, 1.0) == "PARTIAL_25"
    assert not stop_is_hit(1.0, 1.0, 1.0, 0.0)


def test_a_cycle_takes_every_symbol_by_itself() -> None:
    """Decisions in the order of the names; a symbol whose step fails costs itself alone."""
    some = [replace(BASE, symbol=s, **UP) for s in ("CCUSDT", "AAUSDT")] + [replace(BASE, symbol="BBUSDT")]
    cycle = desk_cycle(some)
    assert [d.symbol for d in cycle.decisions] == ["AAUSDT", "BBUSDT", "CCUSDT"]
    assert [d.symbol for d in cycle.plans] == ["AAUSDT", "CCUSDT"]
    row = cycle.rows()[0]
    assert (row["symbol"], row["reason"], row["action"], row["qty"]) == ("AAUSDT", "breakout", "BREAKOUT_LONG", 1.6)
    left = desk_cycle(some, DEFAULTS, lambda s, run: None if s == "AAUSDT" else run())
    assert [d.symbol for d in left.decisions] == ["BBUSDT", "CCUSDT"]


READINGS: tuple[qa.Reading[float], ...] = (
    graded(1000.0),
    graded(1000.0, 300.0),
    graded(1000.0, 301.0),
    graded(1000.0, -6.0),
    qa.missing(),
    qa.Unusable(qa.Reason.MALFORMED, ts=NOW, detail="target_usd"),
    qa.Unusable(qa.Reason.STORE, detail="WRONGTYPE"),
)


@pytest.mark.parametrize("target", READINGS, ids=lambda r: r.state)
def test_a_record_holds_every_kind_of_reading(target: qa.Reading[float]) -> None:
    """State, time, value and detail of a target come back as they were, through JSON text; parameters too."""
    params = DeskParams(channel_bars=3, min_trade_usd=1.5)
    given = replace(BASE, **UP, target=target, extreme_usd=90.0, usage=used((1.5, OPEN), (2.5, CLOSE)))
    made = propose_plan(given, params)
    told = desk_fields(made, params)
    assert list(told) == ["desk"]
    again = desk_again(json.loads(json.dumps(told)))
    assert again == made
    assert again.inputs == given
    shown = target.shown if isinstance(target, qa.Unusable) else None
    seen = again.inputs.target
    assert (seen.shown if isinstance(seen, qa.Unusable) else None) == shown
    body = json.loads(told["desk"])
    assert (body["rules"], body["reason"]) == (RULES_VERSION, made.reason.value)
    assert body["params"] == {"channel_bars": 3, "min_trade_usd": 1.5}


def test_a_record_of_other_rules_is_refused() -> None:
    """Another version, other parameters than the hash says: no decision."""
    told = json.loads(desk_fields(propose_plan(BASE), DEFAULTS)["desk"])
    for name, value in (("rules", "desk_v0"), ("params", {"trade_usd": 1000.0}), ("params", {"x": 1})):
        with pytest.raises(ValueError, match="not"):
            desk_again({"desk": json.dumps({**told, name: value})})
