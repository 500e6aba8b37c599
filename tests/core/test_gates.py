"""The gates one by one: a table of cases with exact outcomes, every reason by a case of its own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

import quantum_alloc.core as qa
from quantum_alloc.adapters import governor_wire as gw
from quantum_alloc.adapters import wire
from quantum_alloc.core.gates import CHECKS, facts
from quantum_alloc.core.governor_params import BLOCK_REASONS, RULES_VERSION, Failure, Scope
from quantum_alloc.core.limits import (
    BUDGET_STALE_S,
    DAY_S,
    HOUR_S,
    TARGET_STALE_S,
    US,
    Usage,
    forgotten,
    is_released,
    us,
    usage,
)
from quantum_alloc.core.plan import FULL_CLOSE
from quantum_alloc.core.stability import ClockState, observe

NOW_US = 1_769_577_495_000_000
NOW = NOW_US / US
S = "BTCUSDT"
PLAN = qa.Plan("p1", S, "ENTRY", NOW, qa.Side.BUY, 1.0, 100.0, 0.1)
EMPTY = qa.fresh(qa.Totals(0.0, 0), NOW)
BASE = qa.Inputs(PLAN, NOW_US, position=qa.fresh(qa.Holding(0.0, 100.0), NOW), totals=EMPTY)
PRODUCTION = qa.GovernorParams(apply_mode="production")
UNKNOWN: qa.Reading[qa.Holding] = qa.Unusable(qa.Reason.STALE, qa.Holding(5.0, 100.0), NOW - 61, 61)
OPEN, CLOSE = qa.Movement.OPEN, qa.Movement.CLOSE


def inputs(plan: Mapping[str, Any] | None = None, **changes: Any) -> qa.Inputs:
    """The inputs of a sound open of 1 at 100 USD, changed."""
    return replace(BASE, plan=replace(PLAN, content="", **(plan or {})), **changes)


def held(qty: float, mark: float | None = 100.0) -> qa.Reading[qa.Holding]:
    """A fresh position."""
    return qa.fresh(qa.Holding(qty, mark), NOW)


def limit(usd: float, mode: str = "enforce") -> qa.Reading[qa.Limit]:
    """A fresh budget or target."""
    return qa.fresh(qa.Limit(usd, mode), NOW)


def totals(usd: float, count: int) -> qa.Reading[qa.Totals]:
    """A fresh portfolio."""
    return qa.fresh(qa.Totals(usd, count), NOW)


def used(*entries: tuple[float, qa.Movement], usd: float = 0.0, qty: float = 0.0) -> Usage:
    """What permits some seconds ago come to; closes have ``usd`` and ``qty`` each."""
    return usage([qa.Issued(NOW_US - us(ago), m, usd, qty) for ago, m in entries], NOW_US)


def bought(*ago: float) -> Usage:
    """Opens some seconds ago."""
    return used(*((a, OPEN) for a in ago))


def sold(*ago: float, usd: float = 0.0, qty: float = 0.0) -> Usage:
    """Closes some seconds ago."""
    return used(*((a, CLOSE) for a in ago), usd=usd, qty=qty)


@dataclass(frozen=True)
class Case:
    """Inputs and the exact verdict: ``ok``, or reason, gate, observed, limit and seconds to another try."""

    name: str
    given: qa.Inputs
    reason: str = "ok"
    gate: str = ""
    observed: float | None = None
    limit: float | None = None
    retry_s: float | None = None
    params: Mapping[str, Any] = field(default_factory=dict)


REDUCE: dict[str, Any] = {"kill": qa.Kill.REDUCE_ONLY}
LONG: dict[str, Any] = {"position": held(2.0)}
CUT = {"action": "PARTIAL_50", "side": None, "qty": None, "kill_score": None, "price_usd": None}
WHOLE = {**CUT, "action": FULL_CLOSE}
LESS = {"action": "TRIM", "side": qa.Side.SELL, "qty": 2.0, "kill_score": None, "price_usd": None}
UNPRICED: dict[str, Any] = {"position": held(2.0, None)}
PAST_MIDNIGHT_S = 86_400 - NOW % 86_400

CASES = (
    Case("a sound open", inputs()),
    # kill switch
    Case("HALT, an open", inputs(kill=qa.Kill.HALT), "kill_switch_active", "-1"),
    Case("HALT, a close", inputs(CUT, kill=qa.Kill.HALT, **LONG), "kill_switch_active", "-1"),
    Case("HALT, malformed", inputs({"flaw": "qty"}, kill=qa.Kill.HALT), "kill_switch_active", "-1"),
    Case("REDUCE_ONLY, an open", inputs(**REDUCE), "reduce_only", "-1"),
    Case("REDUCE_ONLY, malformed", inputs({"flaw": "qty"}, **REDUCE), "reduce_only", "-1"),
    Case("REDUCE_ONLY, a close", inputs(CUT, **REDUCE, **LONG)),
    Case("REDUCE_ONLY, an order towards zero", inputs(LESS, **REDUCE, **LONG)),
    Case("REDUCE_ONLY, an order past zero", inputs({**LESS, "qty": 2.5}, **REDUCE, **LONG), "reduce_only", "-1"),
    Case("REDUCE_ONLY, a close of what is unknown", inputs({**CUT, "qty": 0.01}, **REDUCE, position=UNKNOWN)),
    Case("REDUCE_ONLY, a close of nothing", inputs(CUT, **REDUCE), "reduce_only", "-1"),
    # the plan itself
    Case("malformed", inputs({"flaw": "kill_score"}), "bad_plan", "plan"),
    Case("5 s ahead", inputs({"ts": NOW + 5.0})),
    Case("more than 5 s ahead", inputs({"ts": NOW + 5.000001}), "bad_plan", "plan", -5.000001, -5.0),
    Case("120 s old", inputs({"ts": NOW - 120.0})),
    Case("more than 120 s old", inputs({"ts": NOW - 120.000001}), "plan_expired", "plan", 120.000001, 120.0),
    Case("as old as another limit", inputs({"ts": NOW - 10.5}), "plan_expired", "plan", 10.5, 10.0,
         params={"plan_max_age_s": 10}),
    Case("an old close", inputs({**CUT, "ts": NOW - 121.0}, **LONG), "plan_expired", "plan", 121.0, 120.0),
    Case("an open without a side", inputs({"side": None}), "bad_plan", "plan", 0.0, 120.0),
    Case("an open without a quantity", inputs({"qty": None}), "bad_plan", "plan", 0.0, 120.0),
    Case("an open without a kill score", inputs({"kill_score": None}), "bad_plan", "plan", 0.0, 120.0),
    Case("the same where 0 stands for none", inputs({"kill_score": None}), params={"kill_score_absent": 0.0}),
    Case("the same where a critical one stands for none", inputs({"kill_score": None}),
         "kill_score_critical_non_close", "1", 0.8, 0.8, params={"kill_score_absent": 0.8}),
    Case("a close that would add", inputs({**CUT, "side": qa.Side.BUY}, **LONG), "bad_plan", "plan", 0.0, 120.0),
    Case("a close of a short that would add", inputs({**WHOLE, "side": qa.Side.SELL}, position=held(-2.0)),
         "bad_plan", "plan", 0.0, 120.0),
    Case("reduceOnly without a quantity", inputs({"reduce_only": True, "qty": None, "side": qa.Side.SELL}, **LONG),
         "bad_plan", "plan", 0.0, 120.0),
    Case("a close of a flat position", inputs(WHOLE), "nothing_to_close", "plan", 0.0, 120.0),
    Case("reduceOnly at a flat position", inputs({"reduce_only": True}), "nothing_to_close", "plan", 0.0, 120.0),
    Case("a close of what is unknown, without a quantity", inputs(CUT, position=UNKNOWN),
         "position_unknown", "plan", 0.0, 120.0),
    Case("a close of what is unknown, with one", inputs({**CUT, "qty": 0.02}, position=UNKNOWN)),
    # store and clock
    Case("writes were lost", inputs(hold="recovery_hold", hold_until_us=NOW_US + 7 * US), "recovery_hold", "hold",
         retry_s=7.0),
    Case("the clock is unstable", inputs(hold="clock_unstable"), "clock_unstable", "hold"),
    Case("a close while writes were lost", inputs(CUT, hold="recovery_hold", **LONG)),
    # 0 budget
    Case("exposure above the budget", inputs(position=held(25.0), budget=limit(2599.0)),
         "p28_budget_violation", "0", 2600.0, 2599.0),
    Case("exposure equal to the budget", inputs(position=held(25.0), budget=limit(2600.0))),
    Case("the target lifts the budget's limit", inputs(budget=limit(50.0), target=limit(100.0))),
    Case("but not far enough", inputs(budget=limit(50.0), target=limit(99.0)),
         "p28_budget_violation", "0", 100.0, 99.0),
    Case("a lower target leaves the budget's limit", inputs(budget=limit(90.0), target=limit(50.0)),
         "p28_budget_violation", "0", 100.0, 90.0),
    Case("a target in shadow lifts nothing", inputs(budget=limit(50.0), target=limit(100.0, "shadow")),
         "p28_budget_violation", "0", 100.0, 50.0),
    Case("a budget in shadow", inputs(budget=limit(50.0, "shadow"))),
    Case("a violation above the limit", inputs(budget=limit(500.0), violation_usd=qa.fresh(501.0, NOW)),
         "p28_budget_violation", "0", 501.0, 500.0),
    Case("a violation equal to the limit", inputs(budget=limit(500.0), violation_usd=qa.fresh(500.0, NOW))),
    Case("a violation below an enforced target",
         inputs(budget=limit(500.0), target=limit(600.0), violation_usd=qa.fresh(501.0, NOW))),
    Case("a violation without a budget", inputs(violation_usd=qa.fresh(1e9, NOW))),
    Case("a close of what violates", inputs(CUT, budget=limit(1.0), violation_usd=qa.fresh(501.0, NOW), **LONG)),
    # 0.5 allocation target
    Case("2500 against 1820.93", inputs(position=held(25.0), target=limit(1820.93)),
         "p29_allocation_cap", "0.5", 2600.0, 1820.93),
    Case("exposure equal to the target", inputs(position=held(18.0), target=limit(1900.0))),
    Case("a bit less than that", inputs(position=held(18.0), target=limit(math.nextafter(1900.0, 0.0))),
         "p29_allocation_cap", "0.5", 1900.0, math.nextafter(1900.0, 0.0)),
    Case("a plan that would overshoot", inputs(target=limit(99.0)), "p29_allocation_cap", "0.5", 100.0, 99.0),
    Case("the same by the position alone", inputs(target=limit(99.0)), params={"exposure_after": False}),
    Case("a position above it by the position alone", inputs(position=held(25.0), target=limit(2499.0)),
         "p29_allocation_cap", "0.5", 2500.0, 2499.0, params={"exposure_after": False}),
    Case("a position equal to it by the position alone", inputs(position=held(25.0), target=limit(2500.0)),
         params={"exposure_after": False}),
    Case("outstanding opens count", inputs(target=limit(150.0), book=qa.BookUse(51.0, 1, 51.0, True)),
         "p29_allocation_cap", "0.5", 151.0, 150.0),
    Case("but not by the position alone", inputs(target=limit(50.0), book=qa.BookUse(51.0, 1, 51.0, True)),
         params={"exposure_after": False}),
    Case("an order past zero", inputs({**LESS, "qty": 3.5, "kill_score": 0.1}, target=limit(149.0), **LONG),
         "p29_allocation_cap", "0.5", 150.0, 149.0,
         params={"max_notional_per_trade_usd": 1000.0}),
    Case("a close of an oversize position", inputs(CUT, position=held(25.0), target=limit(1820.93))),
    Case("an order towards zero of one", inputs(LESS, position=held(25.0), target=limit(1820.93))),
    Case("a position that is unknown fails open, and the caps do not", inputs(position=UNKNOWN, target=limit(1.0)),
         "position_unknown", "4"),
    # 1 kill score
    Case("a critical score", inputs({"kill_score": 0.8}), "kill_score_critical_non_close", "1", 0.8, 0.8),
    Case("just below it", inputs({"kill_score": math.nextafter(0.8, 0.0)})),
    Case("a close at a critical score", inputs({**CUT, "kill_score": 0.9}, **LONG)),
    Case("an order towards zero at one", inputs({**LESS, "kill_score": 5.0}, **LONG)),
    # 2 hourly
    Case("three opens in the hour", inputs(usage=bought(3599.999999, 1800.0, 600.0)),
         "hourly_limit_exceeded", "2", 3.0, 3.0, 0.000001),
    Case("the oldest is an hour old", inputs(usage=bought(3600.0, 1800.0, 600.0))),
    Case("five in the hour: two must go", inputs(usage=bought(3000.0, 2000.0, 1000.0, 900.0, 800.0)),
         "hourly_limit_exceeded", "2", 5.0, 3.0, 2600.0),
    Case("the longest wait counts: the first gate's", inputs(usage=bought(30.0, 20.0, 10.0)),
         "hourly_limit_exceeded", "2", 3.0, 3.0, 3570.0),
    Case("the longest wait counts: a later gate's", inputs(usage=bought(200.0, 100.0)),
         "burst_limit_exceeded", "3", 2.0, 2.0, 300.0, params={"symbol_cooldown_s": 400}),
    Case("closes are counted apart", inputs(usage=used(*[(600.0 + i, CLOSE) for i in range(30)]))),
    Case("no open at all", inputs(), "hourly_limit_exceeded", "2", 0.0, 0.0, params={"max_exec_per_hour": 0}),
    Case("thirty closes in the hour", inputs(CUT, usage=sold(*[400.0 + i for i in range(30)]), **LONG),
         "hourly_limit_exceeded", "2", 30.0, 30.0, 3171.0),
    Case("twenty-nine and opens", inputs(CUT, usage=used((1.0, OPEN), *[(400.0 + i, CLOSE) for i in range(29)]),
                                         **LONG)),
    # 3 burst
    Case("two opens in five minutes", inputs(usage=bought(299.999999, 100.0)),
         "burst_limit_exceeded", "3", 2.0, 2.0, 0.000001),
    Case("the older is five minutes old", inputs(usage=bought(300.0, 100.0))),
    Case("ten closes in five minutes", inputs(LESS, usage=sold(*[float(i) for i in range(10)]), **LONG),
         "burst_limit_exceeded", "3", 10.0, 10.0, 291.0),
    # 4 position caps
    Case("the cooldown", inputs(usage=bought(59.999999)), "symbol_cooldown", "4", 59.999999, 60.0, 0.000001),
    Case("60 s after", inputs(usage=bought(60.0))),
    Case("a close counts for it", inputs(usage=sold(30.0)), "symbol_cooldown", "4", 30.0, 60.0, 30.0),
    Case("but closes have none", inputs(CUT, usage=bought(0.0), **LONG)),
    Case("ten positions", inputs(totals=totals(0.0, 10)), "max_positions_reached", "4", 11.0, 10.0),
    Case("nine", inputs(totals=totals(0.0, 9))),
    Case("ten, this symbol's among them", inputs(totals=totals(0.0, 10), book=qa.BookUse(has_slot=True), **LONG)),
    Case("nine, and an outstanding open elsewhere", inputs(totals=totals(0.0, 9), book=qa.BookUse(1.0, 1)),
         "max_positions_reached", "4", 11.0, 10.0),
    Case("nine, and an outstanding open of this symbol",
         inputs(totals=totals(0.0, 9), book=qa.BookUse(1.0, 1, 1.0, True))),
    Case("200 USD", inputs({"qty": 2.0})),
    Case("more", inputs({"qty": 2.0, "price_usd": 100.5}), "notional_per_trade_exceeded", "4", 201.0, 200.0),
    Case("a mark above the plan's price", inputs({"price_usd": 1.0}, position=held(0.0, 200.5)),
         "notional_per_trade_exceeded", "4", 200.5, 200.0),
    Case("a market price above the plan's",
         inputs({"price_usd": 1.0}, position=held(0.0, None), market_usd=qa.fresh(200.5, NOW)),
         "notional_per_trade_exceeded", "4", 200.5, 200.0),
    Case("an old market price is none", inputs(position=held(0.0, None), market_usd=qa.Unusable(
        qa.Reason.STALE, 200.5, NOW - 61, 61))),
    Case("2000 USD in all", inputs(totals=totals(1800.0, 2), book=qa.BookUse(100.0, 1))),
    Case("more in all", inputs(totals=totals(1800.0, 2), book=qa.BookUse(100.5, 1)),
         "total_notional_exceeded", "4", 2000.5, 2000.0),
    Case("no portfolio", inputs(totals=qa.Unusable(qa.Reason.STALE, qa.Totals(0.0, 0), NOW - 61, 61)),
         "position_unknown", "4"),
    Case("no price", inputs({"price_usd": None}, position=held(0.0, None)), "price_unknown", "4"),
    Case("a mark is a price", inputs({"price_usd": None})),
    # 5 daily limits
    Case("5000 USD in the day", inputs(LESS, usage=sold(400.0, usd=4800.0), **LONG)),
    Case("more in the day", inputs(LESS, usage=sold(400.0, usd=4800.5), **LONG),
         "daily_limit_exceeded", "5", 5000.5, 5000.0, PAST_MIDNIGHT_S),
    Case("yesterday's do not count", inputs(LESS, usage=sold(NOW % 86_400 + 0.000001, usd=1e9), **LONG)),
    Case("today's first microsecond does", inputs(LESS, usage=sold(NOW % 86_400, usd=5000.0), **LONG),
         "daily_limit_exceeded", "5", 5200.0, 5000.0, PAST_MIDNIGHT_S),
    Case("more than the day has, alone", inputs({**LESS, "qty": 51.0}, position=held(60.0)),
         "daily_limit_exceeded", "5", 5100.0, 5000.0),
    Case("quantity where no price is known", inputs({**LESS, "qty": 0.02}, **UNPRICED)),
    Case("more of it", inputs({**LESS, "qty": 0.015}, usage=sold(400.0, qty=0.0075), **UNPRICED),
         "daily_limit_exceeded", "5", 0.0225, 0.02, PAST_MIDNIGHT_S),
    Case("more of it than the day has, alone", inputs({**LESS, "qty": 0.025}, **UNPRICED),
         "daily_limit_exceeded", "5", 0.025, 0.02),
    Case("USD do not count as quantity", inputs({**LESS, "qty": 0.02}, usage=sold(400.0, usd=1e9), **UNPRICED)),
    Case("nor quantity as USD", inputs(LESS, usage=sold(400.0, qty=1e9), **LONG)),
    Case("opens use up nothing", inputs(LESS, usage=used((400.0, OPEN), usd=1e9), **LONG)),
    Case("a full close passes", inputs(WHOLE, usage=sold(400.0, usd=1e9), **LONG)),
    Case("under REDUCE_ONLY a close passes", inputs(LESS, usage=sold(400.0, usd=1e9), **REDUCE, **LONG)),
    Case("at a critical kill score a close passes",
         inputs({**LESS, "kill_score": 0.8}, usage=sold(400.0, usd=1e9), **LONG)),
    # what cannot be read
    Case("an open without its ledger", inputs(usage=None), "state_unreadable", "2"),
    Case("a close without its ledger", inputs(CUT, usage=None, **LONG), "state_unreadable", "2"),
    Case("an open without the book", inputs(book=None), "state_unreadable", "4"),
    Case("a close without the book", inputs(CUT, book=None, **LONG)),
)  # fmt: skip


def params_of(case: Case, **more: Any) -> qa.GovernorParams:
    """Production with the case's own numbers."""
    return replace(PRODUCTION, **{**case.params, **more})


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_a_case_has_its_exact_verdict(case: Case) -> None:
    """Reason, gate, observed, limit and time to another try are exact; the vector has a row a gate, and the first that
    blocks gives the verdict (31); the record makes it again (40)."""
    params = params_of(case)
    made = qa.evaluate(case.given, params)
    assert len(made.checks) == len(qa.GATES)
    blocking = [(g, c) for g, c in zip(qa.GATES, made.checks, strict=True) if c.outcome is qa.Outcome.BLOCK]
    record = qa.governor_fields(made, params)
    assert record["reason"] == case.reason
    assert qa.recompute(record) == made
    if case.reason == "ok":
        assert isinstance(made, qa.Permit)
        assert blocking == []
        return
    assert isinstance(made, qa.Block)
    assert (made.reason, made.gate, made.observed, made.limit) == (case.reason, case.gate, case.observed, case.limit)
    assert made.retry_after_s == (None if case.retry_s is None else pytest.approx(case.retry_s, abs=1e-9))
    assert (blocking[0][0].number, blocking[0][1].reason) == (case.gate, case.reason)


def test_every_reason_has_a_case_of_its_own() -> None:
    """The verdicts of the table are all reasons that there are, and every gate says each of its own in some vector."""
    assert {c.reason for c in CASES} - {"ok"} == set(BLOCK_REASONS)
    told = set()
    for case in CASES:
        made = qa.evaluate(case.given, params_of(case))
        told |= {
            (g.gate, c.reason)
            for g, c in zip(qa.GATES, made.checks, strict=True)
            if c.outcome is qa.Outcome.BLOCK and c.reason
        }
    assert told == {(g.gate, reason) for g in qa.GATES for reason in g.reasons}


ADJUSTERS = {"p28_budget_violation": "0", "p29_allocation_cap": "0.5"}


@pytest.mark.parametrize("mode", list(qa.ApplyMode))
@pytest.mark.parametrize("enable_p29", [False, True], ids=["plain", "p29"])
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_a_mode_changes_what_the_adjusters_may_do_and_nothing_else(
    case: Case, mode: qa.ApplyMode, enable_p29: bool
) -> None:
    """Hard gates block in every mode; 0 and 0.5 say would_block, with the same numbers, but in production, and 0.5
    but in testnet with its switch."""
    params = params_of(case, apply_mode=mode.value, testnet_enable_p29=enable_p29)
    made, full = qa.evaluate(case.given, params), qa.evaluate(case.given, params_of(case))
    enforced = {"0", "0.5"} if mode is qa.ApplyMode.PRODUCTION else set()
    if mode is qa.ApplyMode.TESTNET and enable_p29:
        enforced = {"0.5"}
    for gate, mine, theirs in zip(qa.GATES, made.checks, full.checks, strict=True):
        weaker = theirs.outcome is qa.Outcome.BLOCK and gate.gate in {"0", "0.5"} - enforced
        assert mine == (theirs._replace(outcome=qa.Outcome.WOULD_BLOCK) if weaker else theirs)
    if case.reason in ADJUSTERS and ADJUSTERS[case.reason] not in enforced:
        assert getattr(made, "reason", "ok") != case.reason
    else:
        assert getattr(made, "reason", "ok") == case.reason


def test_the_table_of_gates_is_the_policy() -> None:
    """Order, scope, failure policy and modes of every gate, as data."""
    assert [g.gate for g in qa.GATES] == [
        "-1", "plan", "hold", "0", "0.5", "1", "2", "3",
        "4.cooldown", "4.positions", "4.trade", "4.total", "4.known", "5",
    ]  # fmt: skip
    assert tuple(CHECKS) == tuple(g.gate for g in qa.GATES)
    for gate in qa.GATES:
        adjusts = gate.gate in ("0", "0.5")
        assert gate.failure is (Failure.OPEN if adjusts else Failure.CLOSED)
        assert gate.enforced == (frozenset({qa.ApplyMode.PRODUCTION}) if adjusts else frozenset(qa.ApplyMode))
        assert gate.number == ("4" if gate.gate.startswith("4.") else gate.gate)
    scopes = {g.gate: g.scope for g in qa.GATES}
    assert {g for g, s in scopes.items() if s is Scope.ALL} == {"-1", "plan", "2", "3"}
    assert {g for g, s in scopes.items() if s is Scope.CLOSES} == {"5"}


def test_a_whole_vector() -> None:
    """Every gate's outcome, observed, limit and margin of one plan that two gates block."""
    made = qa.evaluate(
        inputs(
            {"ts": NOW - 20.5}, position=held(25.0), target=limit(1820.93), budget=limit(3000.0), usage=bought(30.0)
        ),
        PRODUCTION,
    )
    passed, blocked = qa.Outcome.PASS, qa.Outcome.BLOCK
    assert made.checks == (
        (passed, "", None, None, None, None),
        (passed, "", 20.5, 120.0, 99.5, None),
        (passed, "", None, None, None, None),
        (passed, "", 2600.0, 3000.0, 400.0, None),
        (blocked, "p29_allocation_cap", 2600.0, 1820.93, 1820.93 - 2600.0, None),
        (passed, "", 0.1, 0.8, 0.8 - 0.1, None),
        (passed, "", 1.0, 3.0, 2.0, None),
        (passed, "", 1.0, 2.0, 1.0, None),
        (blocked, "symbol_cooldown", 30.0, 60.0, -30.0, NOW_US + 30 * US),
        (passed, "", 1.0, 10.0, 9.0, None),
        (passed, "", 100.0, 200.0, 100.0, None),
        (passed, "", 100.0, 2000.0, 1900.0, None),
        (passed, "", None, None, None, None),
        (qa.Outcome.NOT_APPLICABLE, "", None, None, None, None),
    )
    assert isinstance(made, qa.Block)
    assert (made.reason, made.retry_after_s) == ("p29_allocation_cap", None)  # time alone lifts only one of the two


# --- gates 0 and 0.5 from what stands in their hashes ----------------------------------------------------------------


def graded(age: float, *, mode: str = "enforce", usd: bytes = b"1820.93") -> qa.Reading[qa.Limit]:
    """A target as its hash tells it."""
    raw = {"target_usd": usd, "mode": mode.encode(), "timestamp": b"%d" % (NOW - age)}
    reply = [raw.get(name) for name in gw.TARGET.asked]
    return wire.decode(gw.TARGET, list(reply), NOW, TARGET_STALE_S)


NO_TARGETS: dict[str, tuple[qa.Reading[qa.Limit], str]] = {
    "301 s old": (graded(301), "stale"),
    "301 s old and in shadow": (graded(301, mode="shadow"), "stale"),
    "in shadow": (graded(300, mode="shadow"), "shadow"),
    "in shadow, other letters": (graded(0, mode="ENFORCE "), "shadow"),
    "missing": (wire.decode(gw.TARGET, [None] * len(gw.TARGET.asked), NOW, TARGET_STALE_S), "missing"),
    "malformed": (graded(0, usd=b"NaN"), "malformed"),
    "negative": (graded(0, usd=b"-1"), "malformed"),
    "of the future": (graded(-6), "future_ts"),
    "unreadable": (qa.Unusable(qa.Reason.STORE), "redis_error"),
}


@pytest.mark.parametrize("age", [0, 299, 300, -5])
def test_a_fresh_enforced_target_stops_2500_against_1820_93(age: float) -> None:
    """Up to 300 s, and up to 5 s ahead."""
    made = qa.evaluate(inputs(position=held(25.0), target=graded(age)), PRODUCTION)
    assert (made.to_dict()["reason"], made.to_dict()["gate"]) == ("p29_allocation_cap", "0.5")


@pytest.mark.parametrize("kind", NO_TARGETS)
def test_any_other_target_permits_and_says_why(kind: str) -> None:
    """(15) (18) The vector holds fail_open with the one reason; its age is tested before its mode."""
    target, reason = NO_TARGETS[kind]
    made = qa.evaluate(inputs(position=held(25.0), target=target), PRODUCTION)
    assert isinstance(made, qa.Permit)
    assert made.checks[4] == qa.Checked(qa.Outcome.FAIL_OPEN, reason)
    with_budget = qa.evaluate(inputs(position=held(25.0), target=target, budget=limit(2599.0)), PRODUCTION)
    assert with_budget.checks[3].limit == 2599.0


@pytest.mark.parametrize(("age", "reason"), [(60, ""), (61, "stale"), (-6, "future_ts")])
def test_a_budget_is_fresh_for_a_minute(age: int, reason: str) -> None:
    """60 s counts, 61 does not."""
    raw = {"budget_usd": b"50", "mode": b"enforce", "timestamp": b"%d" % (NOW - age)}
    budget = wire.decode(gw.BUDGET, [raw.get(n) for n in gw.BUDGET.asked], NOW, BUDGET_STALE_S)
    made = qa.evaluate(inputs(budget=budget), PRODUCTION)
    wanted = qa.Checked(qa.Outcome.FAIL_OPEN, reason)
    if not reason:
        wanted = qa.Checked(qa.Outcome.BLOCK, "p28_budget_violation", 100.0, 50.0, -50.0)
    assert made.checks[3] == wanted


@pytest.mark.parametrize(("age", "blocks"), [(0, True), (29, True), (30, False), (31, False), (-6, False)])
def test_a_violation_is_young_for_less_than_half_a_minute(age: int, blocks: bool) -> None:
    """29 s counts, 30 does not; nor does one of the future."""
    told = b'{"symbol":"BTCUSDT","position_notional":501,"timestamp":%d}' % (NOW - age)
    found = gw.violations([[b"1-0", [b"json", told]]], NOW, [S])[S]
    made = qa.evaluate(inputs(budget=limit(500.0), violation_usd=found), PRODUCTION)
    assert made.checks[3].outcome is (qa.Outcome.BLOCK if blocks else qa.Outcome.PASS)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"position": UNKNOWN}, "position_unknown"),
        ({"position": held(1.0, None)}, "price_unknown"),
        ({"book": None}, "state_unreadable"),
    ],
    ids=["position", "price", "book"],
)
def test_an_unknown_exposure_passes_the_adjusters_with_its_reason(changes: dict[str, Any], reason: str) -> None:
    """Gates 0 and 0.5 say fail_open, with the limit that they would have held against it; a hard gate then blocks."""
    plan = {"price_usd": None} if reason == "price_unknown" else {}
    given = inputs(plan, target=limit(60.0), budget=limit(50.0), **changes)
    made = qa.evaluate(given, PRODUCTION)
    assert made.checks[3:5] == (qa.Checked(qa.Outcome.FAIL_OPEN, reason, None, 60.0),) * 2
    assert isinstance(made, qa.Block)
    assert (made.gate, made.reason) == ("4", reason)


# --- what a plan comes to --------------------------------------------------------------------------------------------

BUY, SELL = qa.Side.BUY, qa.Side.SELL
ORDERS: tuple[tuple[dict[str, Any], float | None, qa.Order], ...] = (
    ({"action": FULL_CLOSE}, 2.0, qa.Order(CLOSE, True, SELL, 2.0)),
    ({"action": FULL_CLOSE}, -2.0, qa.Order(CLOSE, True, BUY, 2.0)),
    ({"action": "PARTIAL_75"}, 2.0, qa.Order(CLOSE, True, SELL, 1.5)),
    ({"action": "PARTIAL_50"}, -2.0, qa.Order(CLOSE, True, BUY, 1.0)),
    ({"action": "PARTIAL_25", "side": SELL}, 2.0, qa.Order(CLOSE, True, SELL, 0.5)),
    ({"action": "PARTIAL_25", "qty": 9.0}, 2.0, qa.Order(CLOSE, True, SELL, 0.5)),
    ({"action": "PARTIAL_25", "qty": 9.0}, None, qa.Order(CLOSE, True, None, 9.0)),
    ({"action": "PARTIAL_25", "qty": 9.0, "side": BUY}, None, qa.Order(CLOSE, True, BUY, 9.0)),
    ({"action": "PARTIAL_25"}, None, qa.Order(CLOSE, True, None, 0.0, "position_unknown")),
    ({"action": "PARTIAL_25"}, 0.0, qa.Order(CLOSE, False, None, 0.0, "nothing_to_close")),
    ({"reduce_only": True, "qty": 1.5}, 2.0, qa.Order(CLOSE, True, SELL, 1.5)),
    ({"reduce_only": True, "qty": 2.5}, 2.0, qa.Order(CLOSE, True, SELL, 2.0)),
    ({"reduce_only": True, "qty": 2.5, "action": "PARTIAL_50"}, 2.0, qa.Order(CLOSE, True, SELL, 1.0)),
    ({"reduce_only": True, "qty": 2.5}, None, qa.Order(CLOSE, True, None, 2.5)),
    ({"reduce_only": True, "qty": 2.5}, 0.0, qa.Order(CLOSE, False, None, 0.0, "nothing_to_close")),
    ({"side": SELL, "qty": 2.0}, 2.0, qa.Order(CLOSE, True, SELL, 2.0)),
    ({"side": BUY, "qty": 1.0}, -2.0, qa.Order(CLOSE, True, BUY, 1.0)),
    ({"side": SELL, "qty": 2.5, "kill_score": 0.0}, 2.0, qa.Order(OPEN, False, SELL, 2.5)),
    ({"side": BUY, "qty": 1.0, "kill_score": 0.0}, 2.0, qa.Order(OPEN, False, BUY, 1.0)),
    ({"side": SELL, "qty": 1.0, "kill_score": 0.0}, 0.0, qa.Order(OPEN, False, SELL, 1.0)),
    ({"side": SELL, "qty": 1.0, "kill_score": 0.0}, None, qa.Order(OPEN, False, SELL, 1.0)),
)


@pytest.mark.parametrize(("given", "position", "order"), ORDERS, ids=str)
def test_what_a_plan_comes_to(given: dict[str, Any], position: float | None, order: qa.Order) -> None:
    """Side, quantity, and whether it reduces: from the position where it is known, else the plan's own."""
    action = {"action": "ENTRY", **given}
    assert qa.order_of(qa.Plan("p1", S, ts=NOW, **action), position) == order


WRONG: tuple[tuple[dict[str, Any], float | None, str], ...] = (
    ({"qty": 1.0, "kill_score": 0.0}, 0.0, "side"),
    ({"side": BUY, "kill_score": 0.0}, 0.0, "qty"),
    ({"side": BUY, "qty": 1.0}, 0.0, "kill_score"),
    ({"side": SELL, "qty": 2.5}, 2.0, "kill_score"),
    ({"reduce_only": True}, 2.0, "qty"),
    ({"reduce_only": True}, None, "qty"),
    ({"action": FULL_CLOSE, "side": BUY}, 2.0, "side"),
    ({"action": FULL_CLOSE, "side": SELL}, -2.0, "side"),
)


@pytest.mark.parametrize(("given", "position", "named"), WRONG, ids=str)
def test_a_plan_without_sense_is_a_bad_plan(given: dict[str, Any], position: float | None, named: str) -> None:
    """The field at fault is named; where a kill score may be absent it is not one."""
    plan = qa.Plan("p1", S, ts=NOW, **{"action": "ENTRY", **given})
    order = qa.order_of(plan, position)
    assert (order.trouble, order.detail.partition(":")[0]) == ("bad_plan", named)
    if named == "kill_score":
        assert qa.order_of(plan, position, needs_kill_score=False).trouble == ""


def test_a_closing_action_reduces_unless_the_position_is_known_flat() -> None:
    """Also with a side that would add to it: it is a bad plan, and not one that REDUCE_ONLY stops."""
    made = qa.evaluate(inputs({**CUT, "side": BUY}, **REDUCE, **LONG), PRODUCTION)
    assert getattr(made, "reason", "ok") == "bad_plan"


def test_a_kill_score_that_stands_for_none_stands_for_that_of_an_open() -> None:
    """A close that tells none is not at a critical one: its daily limit holds."""
    given = inputs(LESS, usage=sold(400.0, usd=1e9), **LONG)
    made = qa.evaluate(given, replace(PRODUCTION, kill_score_absent=0.9))
    assert getattr(made, "reason", "ok") == "daily_limit_exceeded"


def test_a_violation_blocks_also_where_the_exposure_is_not_known() -> None:
    """The position is known and the violation valid: gate 0 does not need the book to see that it is exceeded."""
    made = qa.evaluate(inputs(budget=limit(500.0), violation_usd=qa.fresh(501.0, NOW), book=None), PRODUCTION)
    assert getattr(made, "reason", "ok") == "p28_budget_violation"


@pytest.mark.parametrize(
    ("given", "qty", "usd", "is_priced"),
    [
        (inputs(), 1.0, 100.0, True),
        (inputs({"price_usd": 150.0}), 1.0, 150.0, True),
        (inputs({"price_usd": 50.0}), 1.0, 100.0, True),
        (inputs({**CUT, "price_usd": 150.0}, **LONG), 1.0, 100.0, True),
        (inputs({**CUT, "price_usd": 150.0}, **UNPRICED), 1.0, 150.0, True),
        (inputs(CUT, market_usd=qa.fresh(120.0, NOW), **UNPRICED), 1.0, 120.0, True),
        (inputs(CUT, market_usd=qa.fresh(120.0, NOW), **LONG), 1.0, 100.0, True),
        (inputs({**LESS, "price_usd": 150.0, "qty": 1.5}, **LONG), 1.5, 150.0, True),
        (inputs({**LESS, "qty": 0.0125}, **UNPRICED), 0.0125, 0.0, False),
        (inputs({**CUT, "qty": 3.0, "price_usd": 10.0}, position=UNKNOWN), 3.0, 30.0, True),
    ],
    ids=range(10),
)
def test_what_a_permit_is_for(given: qa.Inputs, qty: float, usd: float, is_priced: bool) -> None:
    """Opens: the plan's quantity at the greater of its price and the mark. Closes: at the mark, which is the
    position's, else the market's, else the plan's. The ledger gets USD, or the quantity of a close without a price."""
    made = qa.evaluate(given, PRODUCTION)
    assert isinstance(made, qa.Permit)
    assert (made.computed_qty, made.computed_notional_usd, made.is_priced) == (qty, usd, is_priced)
    assert made.issued == qa.Issued(NOW_US, made.movement, usd, 0.0 if is_priced else qty)


def test_the_exposure_of_an_order_without_a_side_is_the_position() -> None:
    """A close of an unknown position has none at all; one whose side is not told leaves the position as it is."""
    given = inputs({**CUT, "qty": 3.0}, position=UNKNOWN)
    assert facts(given, PRODUCTION).exposure_usd is None
    sideless = facts(inputs({"side": None}, position=held(2.0)), PRODUCTION)
    assert sideless.exposure_usd == 200.0


# --- windows, ledger, book -------------------------------------------------------------------------------------------


def test_windows_are_open_at_the_left() -> None:
    """(t - W, t] to the microsecond, and what a clock set back has left ahead counts."""
    one = qa.Issued(NOW_US, OPEN)
    assert usage([one], NOW_US + HOUR_S * US - 1).opens_us == (NOW_US,)
    assert usage([one], NOW_US + HOUR_S * US).opens_us == ()
    assert usage([one], NOW_US + HOUR_S * US).last_us == NOW_US
    assert usage([one], NOW_US - 1).opens_us == (NOW_US,)
    assert usage([], NOW_US) == Usage()
    mixed = usage([qa.Issued(9, CLOSE, 5.0), qa.Issued(7, OPEN, 1.0), qa.Issued(8, CLOSE, 0.0, 3.0)], 10)
    assert mixed == Usage((7,), (8, 9), 9, 5.0, 3.0)
    assert (mixed.of(OPEN), mixed.of(CLOSE)) == ((7,), (8, 9))
    assert usage([qa.Issued(9, CLOSE, 5.0), qa.Issued(10, OPEN), qa.Issued(7, OPEN)], 10).last_us == 10


def test_what_a_ledger_may_forget() -> None:
    """Opens older than the hour or the cooldown, whichever is longer; closes not before their day is over."""
    t = 10 * DAY_S * US
    entries = {
        "open, an hour old": qa.Issued(t - HOUR_S * US, OPEN),
        "open, younger": qa.Issued(t - HOUR_S * US + 1, OPEN),
        "close, of yesterday": qa.Issued(t - HOUR_S * US, CLOSE),
        "close, of today": qa.Issued(t, CLOSE),
    }
    ledger = qa.Ledger("4", entries)
    assert forgotten(ledger, t, 0) == ("open, an hour old", "close, of yesterday")
    assert forgotten(ledger, t, HOUR_S + 1) == ()
    assert forgotten(ledger, t + 2 * HOUR_S * US, 0) == ("open, an hour old", "open, younger", "close, of yesterday")
    assert forgotten(ledger, t + DAY_S * US - 1, 0) == ("open, an hour old", "open, younger", "close, of yesterday")
    assert forgotten(ledger, t + DAY_S * US, 0) == tuple(entries)


def at(seconds: float | None, reason: qa.Reason | None = None) -> qa.Reading[float]:
    """A record of a time: fresh, or unusable for a reason."""
    if reason is not None:
        return qa.Unusable(reason, ts=seconds)
    assert seconds is not None
    return qa.fresh(0.0, seconds)


RELEASES: tuple[tuple[str, float | None, float, qa.Reading[float], qa.Reading[float], bool], ...] = (
    ("not expired", None, 60, at(100), at(100), False),
    ("expired, nobody took it", None, 61, at(None, qa.Reason.MISSING), at(None, qa.Reason.MISSING), True),
    ("expired, but taken", 30, 1000, at(None, qa.Reason.STORE), at(None, qa.Reason.STORE), False),
    ("both newer", 30, 32, at(31), at(31), True),
    ("as new as it", 30, 32, at(30), at(31), False),
    ("the portfolio older", 30, 32, at(31), at(30), False),
    ("both newer, too old to be used", 30, 500, at(31, qa.Reason.STALE), at(31, qa.Reason.STALE), True),
    ("the portfolio cannot be read", 30, 500, at(31), at(31, qa.Reason.MALFORMED), False),
    ("the position cannot be read", 30, 500, at(31, qa.Reason.MALFORMED), at(400), False),
    ("no position, portfolio from before the end", 30, 500, at(None, qa.Reason.MISSING), at(61), False),
    ("no position, portfolio from after the end", 30, 500, at(None, qa.Reason.MISSING), at(62), True),
    ("no position, taken late", 70, 500, at(None, qa.Reason.MISSING), at(70), False),
    ("no position, portfolio from after that", 70, 500, at(None, qa.Reason.MISSING), at(71), True),
)


@pytest.mark.parametrize("case", RELEASES, ids=lambda c: c[0])
def test_when_an_outstanding_open_is_released(case: Any) -> None:
    """At its expiry where nobody took it, else when position and portfolio are newer than its consumption."""
    _, consumed, now, position, portfolio, released = case
    one = qa.Outstanding("p1", S, 10.0, us(1), us(61), None if consumed is None else us(consumed))
    assert is_released(one, us(now), position, portfolio) is released


def test_expiry_is_exact() -> None:
    """One microsecond before it still counts."""
    one = qa.Outstanding("p1", S, 10.0, 0, 60 * US)
    none: qa.Reading[float] = qa.missing()
    assert [is_released(one, t, none, none) for t in (60 * US - 1, 60 * US)] == [False, True]


def outstanding(plan_id: str, symbol: str, usd: float, consumed_us: int | None = None) -> qa.Outstanding:
    """An open that was permitted a second ago."""
    return qa.Outstanding(plan_id, symbol, usd, NOW_US - US, NOW_US + 59 * US, consumed_us)


def book_of(book: list[qa.Outstanding], symbol: str, positions: Mapping[str, float]) -> qa.BookUse | None:
    """What a book comes to for a plan of a symbol."""
    symbols = {name: qa.SymbolSnapshot(position=held(qty)) for name, qty in positions.items()}
    snapshot = qa.Snapshot(NOW_US, totals=EMPTY, book=tuple(book), symbols=symbols)
    made = qa.decide(replace(PLAN, symbol=symbol, content=""), snapshot)
    assert isinstance(made, (qa.Permit, qa.Block))
    return made.inputs.book


def test_what_outstanding_opens_come_to() -> None:
    """A symbol that is held counts once, two opens of a symbol take one slot; one that was consumed takes a slot until
    portfolio and position have seen it."""
    book = [outstanding("a", S, 10.0), outstanding("b", S, 20.0), outstanding("c", "ETHUSDT", 40.0)]
    assert book_of(book, S, {}) == qa.BookUse(70.0, 2, 30.0, True)
    assert book_of(book, S, {S: 2.0}) == qa.BookUse(70.0, 1, 30.0, True)
    assert book_of(book, "ADAUSDT", {S: -2.0, "ETHUSDT": 0.0}) == qa.BookUse(70.0, 1, 0.0, False)
    assert book_of(book, "ADAUSDT", {"ADAUSDT": 2.0}) == qa.BookUse(70.0, 2, 0.0, True)
    assert book_of([], S, {}) == qa.BookUse()
    assert book_of([], S, {S: 2.0}) == qa.BookUse(has_slot=True)
    taken = [outstanding("a", S, 10.0, NOW_US)]
    assert book_of(taken, S, {S: 2.0}) == qa.BookUse(10.0, 1, 10.0, True)
    assert book_of(taken, S, {S: 0.0}) == qa.BookUse(10.0, 1, 10.0, True)


# --- numbers and clocks ----------------------------------------------------------------------------------------------

BAD_PARAMS = [
    ({"apply_mode": "live"}, "apply_mode"),
    ({"plan_max_age_s": 0}, "plan_max_age_s"),
    ({"position_max_age_s": 0}, "position_max_age_s"),
    ({"kill_score_critical": -0.1}, "kill_score_critical"),
    ({"kill_score_critical": math.nan}, "kill_score_critical"),
    ({"kill_score_absent": -0.1}, "kill_score_absent"),
    ({"max_exec_per_hour": -1}, "opens"),
    ({"max_exec_per_5min": -1}, "opens"),
    ({"max_close_per_hour": -1}, "closes"),
    ({"max_close_per_5min": -1}, "closes"),
    ({"symbol_cooldown_s": -1}, "symbol_cooldown_s"),
    ({"max_open_positions": -1}, "max_open_positions"),
    ({"permit_ttl_s": 0}, "permit_ttl_s"),
    ({"threshold": 0.0}, "threshold"),
    ({"threshold": 1.1}, "threshold"),
    ({"min_factor": 0.0}, "min_factor"),
    ({"min_factor": 1.1}, "min_factor"),
    ({"max_extra_cooldown_s": -1}, "max_extra_cooldown_s"),
    ({"min_conf": 1.1}, "min_conf"),
    ({"min_conf": -0.1}, "min_conf"),
    ({"eff_stale_s": 0}, "eff_stale_s"),
]


@pytest.mark.parametrize(("wrong", "named"), BAD_PARAMS, ids=str)
def test_contradictions_are_refused(wrong: dict[str, Any], named: str) -> None:
    """Each is named."""
    with pytest.raises(ValueError, match=named):
        qa.GovernorParams(**wrong)


def test_the_numbers_are_those_of_the_contract() -> None:
    """The defaults that stand beside the names of the variables."""
    p = qa.GovernorParams()
    assert (p.apply_mode, p.testnet_enable_p29, p.exposure_after, p.kill_score_absent) == ("dry_run", False, True, None)
    assert (p.plan_max_age_s, p.position_max_age_s, p.kill_score_critical) == (120, 60, 0.8)
    assert (p.max_exec_per_hour, p.max_exec_per_5min, p.max_close_per_hour, p.max_close_per_5min) == (3, 2, 30, 10)
    assert (p.symbol_cooldown_s, p.max_open_positions, p.permit_ttl_s) == (60, 10, 60)
    assert (p.max_notional_per_trade_usd, p.max_total_notional_usd) == (200.0, 2000.0)
    assert (p.max_reduce_notional_per_day_usd, p.max_reduce_qty_per_day, p.disarm_on_burst) == (5000.0, 0.02, True)
    assert p.hint == qa.DownsizeParams(0.45, 0.25, 120, 0.65, 600)
    assert RULES_VERSION == "p32_v1"


def test_a_clock_is_stable_again_after_a_minute_without_a_skew() -> None:
    """2 s of skew are none; more is, until 60 s have gone by on the clock that nobody sets."""
    state = observe(ClockState(), NOW_US + 2 * US, NOW_US, 0)
    assert state.is_stable
    assert not observe(ClockState(), NOW_US + 2 * US + 1, NOW_US, 0).is_stable
    skewed = observe(ClockState(), NOW_US - 2 * US - 1, NOW_US, 0)
    assert not skewed.is_stable
    steady = observe(skewed, NOW_US + 58 * US, NOW_US + 59 * US, 60 * US - 1)
    assert not steady.is_stable
    assert observe(steady, NOW_US + 59 * US, NOW_US + 60 * US, 60 * US).is_stable


@pytest.mark.parametrize(("gone", "stable"), [(3, True), (3.000001, False), (-1, True), (-1.000001, False)])
def test_a_jump_of_the_servers_clock_is_seen_without_a_skew(gone: float, stable: bool) -> None:
    """More than 2 s more or less than went by, also where both clocks were set together."""
    first = observe(ClockState(), NOW_US, NOW_US, 5)
    later = observe(first, NOW_US + us(gone), NOW_US + us(gone), 5 + US)
    assert later.is_stable is stable
    assert later == ClockState(NOW_US + us(gone), 5 + US, 0, None if stable else 5 + US)
