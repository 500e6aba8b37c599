"""Laws of the governor's verdicts over drawn worlds."""

from __future__ import annotations

import bisect
import math
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st

import quantum_alloc.core as qa
from quantum_alloc.core.governor import released
from quantum_alloc.core.governor_params import BLOCK_REASONS
from quantum_alloc.core.limits import DAY_S, HOUR_S, US, forgotten, us, usage
from quantum_alloc.core.plan import CLOSING_SHARE, FULL_CLOSE

NOW_US = 1_769_577_495_250_000
NOW = NOW_US / US
SYMBOLS = ("BTCUSDT", "ETHUSDT", "SOLUSDT")
UNUSABLE = ("missing", "stale", "malformed", "redis_error", "future_ts")
BUDGET_GATE, TARGET_GATE, HINTED = 3, 4, ("target", "budget", "violation_usd", "efficiency")

# --- worlds ----------------------------------------------------------------------------------------------------------

unit = st.floats(0.0, 1.0)
quantities = st.one_of(st.sampled_from([0.25, 0.5, 1.0, 2.0]), st.sampled_from([1.0, 4.0]), st.floats(1e-6, 1e4))
prices = st.one_of(st.sampled_from([50.0, 100.0]), st.sampled_from([100.0, 200.0]), st.floats(1e-4, 1e5))
amounts = st.one_of(st.sampled_from([0.0, 50.0, 100.0]), st.sampled_from([150.0, 200.0, 1820.93]), st.floats(0.0, 1e6))
scores = st.one_of(
    st.floats(0.0, math.nextafter(0.8, 0.0)), st.sampled_from([0.0, 0.1, math.nextafter(0.8, 0.0), 0.8]),
    st.floats(0.0, 2.0),
)  # fmt: skip


@st.composite
def readings(draw: st.DrawFn, values: st.SearchStrategy[Any], limit: int) -> qa.Reading[Any]:
    """Any reading that the wire can give; more often than not a fresh one."""
    kind = draw(st.sampled_from(["ok"] * 6 + list(UNUSABLE)))
    return reading(kind, draw(values), limit, draw(st.integers(0, 5)))


def reading(kind: str, value: Any, limit: int, back: int = 0) -> qa.Reading[Any]:
    """A value as one kind of reading; a fresh one may be as old as the limit."""
    ages = {"ok": (limit, 0, 1, -5, limit, 2)[back], "stale": limit + 1 + back, "future_ts": -6 - back}
    if kind in ages:
        return qa.grade(value, NOW - ages[kind], NOW, limit)
    return qa.Unusable(qa.Reason(kind))


def holdings() -> st.SearchStrategy[qa.Holding]:
    """Flat, long or short, with a mark or without."""
    signed = st.one_of(st.just(0.0), quantities, quantities.map(lambda q: -q))
    return st.builds(qa.Holding, signed, st.one_of(st.none(), prices))


totals = st.builds(qa.Totals, amounts, st.integers(0, 3))
limits = st.builds(qa.Limit, amounts, st.sampled_from(["enforce", "enforce", "shadow"]), st.one_of(st.none(), unit))
efficiencies = st.builds(qa.Efficiency, unit, unit)
seconds_ago = st.sampled_from(
    [0.0, 1.0, 59.999999, 60.0, 299.999999, 300.0, 1000.0, 3599.999999, 3600.0, NOW % 86_400, NOW % 86_400 + 1e-6, 2e5]
)
issued = st.builds(
    lambda ago, movement, usd, qty, priced: qa.Issued(
        NOW_US - us(ago), movement, usd if priced else 0.0, 0.0 if priced or movement is qa.Movement.OPEN else qty
    ),
    st.one_of(seconds_ago, st.floats(0.0, 4000.0), st.just(-0.5)),
    st.sampled_from(list(qa.Movement)),
    amounts,
    st.floats(0.0, 0.03),
    st.booleans(),
)
ledgers = st.lists(issued, max_size=6)
actions = st.sampled_from(["ENTRY", "ENTRY", "ENTRY", "TRIM", *CLOSING_SHARE])


@st.composite
def plans(draw: st.DrawFn, *, symbols: tuple[str, ...] = SYMBOLS[:1], ids: tuple[str, ...] = ("p1",)) -> qa.Plan:
    """Plans of every action, sound and not; mostly of now."""
    if draw(st.booleans()):
        side, qty = draw(st.sampled_from(list(qa.Side))), draw(st.sampled_from([0.25, 0.5, 1.0]))
        return qa.Plan(draw(st.sampled_from(ids)), draw(st.sampled_from(symbols)), "ENTRY", NOW, side, qty, 100.0, 0.1)
    often = st.integers(0, 7).map(bool)
    ago = draw(st.sampled_from([0.0] * 6 + [119.0, 120.0, 120.000001, 121.0, -5.0, -5.000001, -6.0]))
    kept = st.one_of(st.none(), quantities)
    return qa.Plan(
        draw(st.sampled_from(ids)),
        draw(st.sampled_from(symbols)),
        draw(actions),
        NOW - ago,
        draw(st.sampled_from(list(qa.Side))) if draw(often) else None,
        draw(quantities) if draw(often) else draw(kept),
        draw(st.one_of(st.none(), prices)),
        draw(scores) if draw(often) else None,
        draw(st.integers(0, 4)) == 0,
        "" if draw(st.integers(0, 15)) else "qty",
    )


@st.composite
def params(draw: st.DrawFn, *, mode: str | None = None, loose: bool = False) -> qa.GovernorParams:
    """The numbers of the governor; loose ones let the gates far behind decide."""
    small, many = st.integers(0, 4), st.integers(50, 60)
    few = many if loose else small
    return qa.GovernorParams(
        apply_mode=mode or draw(st.sampled_from([m.value for m in qa.ApplyMode] + ["production"])),
        testnet_enable_p29=draw(st.booleans()),
        exposure_after=draw(st.integers(0, 3)) > 0,
        kill_score_absent=draw(st.sampled_from([None, None, 0.0, 0.5])),
        max_exec_per_hour=draw(few),
        max_exec_per_5min=draw(few),
        max_close_per_hour=draw(few),
        max_close_per_5min=draw(few),
        symbol_cooldown_s=draw(st.sampled_from([0, 0, 0, 60] if loose else [0, 60, 400])),
        max_open_positions=draw(st.sampled_from([10, 10, 10, 3] if loose else [0, 1, 3, 10])),
        max_notional_per_trade_usd=draw(st.sampled_from([200.0, 1e12, 1e12])),
        max_total_notional_usd=draw(st.sampled_from([300.0, 1e12, 1e12])),
        max_reduce_notional_per_day_usd=draw(st.sampled_from([150.0, 5000.0])),
        disarm_on_burst=draw(st.booleans()),
    )


books: st.SearchStrategy[qa.BookUse | None] = st.one_of(
    st.just(qa.BookUse()),
    st.builds(
        lambda own, others, slots, has_slot: qa.BookUse(own + others, slots, own, has_slot),
        amounts, amounts, st.integers(1, 3), st.booleans(),
    ),
    st.none(),
)  # fmt: skip


@st.composite
def inputs(draw: st.DrawFn) -> qa.Inputs:
    """Everything that one verdict is made from, straight."""
    kill = draw(st.sampled_from([qa.Kill.OFF] * 5 + list(qa.Kill)))
    hold = draw(st.sampled_from([""] * 6 + ["recovery_hold", "clock_unstable"]))
    until = draw(st.one_of(st.none(), st.integers(1, 300).map(lambda s: NOW_US + s * US))) if hold else None
    return qa.Inputs(
        draw(plans()),
        NOW_US,
        kill,
        hold,
        until,
        draw(readings(holdings(), 60)),
        draw(readings(prices, 60)),
        draw(readings(limits, 300)),
        draw(readings(limits, 60)),
        draw(readings(amounts, 29)),
        None if draw(st.integers(0, 9)) == 0 else usage(draw(ledgers), NOW_US),
        draw(readings(st.builds(qa.Totals, amounts, st.integers(0, 4)), 60)),
        draw(books),
        draw(readings(efficiencies, 600)),
        draw(st.sampled_from(list(qa.Lane))),
    )


@st.composite
def opens(draw: st.DrawFn) -> qa.Inputs:
    """Inputs of a plan that opens, at a position, a portfolio and a ledger that are known."""
    side = draw(st.sampled_from(list(qa.Side)))
    plan = qa.Plan("p1", SYMBOLS[0], "ENTRY", NOW, side, draw(quantities), draw(prices), draw(scores))
    signed = draw(st.one_of(st.just(0.0), st.floats(-0.9, 0.0).map(lambda x: x * (plan.qty or 0.0)), quantities))
    return replace(
        draw(inputs()),
        plan=plan,
        book=draw(books.filter(bool)),
        kill=qa.Kill.OFF,
        hold="",
        hold_until_us=None,
        position=qa.fresh(qa.Holding(signed * side.sign, draw(st.one_of(st.none(), prices))), NOW),
        usage=usage(draw(st.lists(issued, max_size=2)), NOW_US),
        totals=qa.fresh(draw(st.builds(qa.Totals, amounts, st.integers(0, 4))), NOW),
    )


@st.composite
def closes(draw: st.DrawFn) -> qa.Inputs:
    """Inputs of a plan that reduces a known position, or an unknown one by its own quantity."""
    qty = draw(quantities)
    plan = qa.Plan("p1", SYMBOLS[0], draw(st.sampled_from(list(CLOSING_SHARE))), NOW, qty=qty)
    kind = draw(st.sampled_from(["action", "reduceOnly", "order"]))
    if kind != "action":
        plan = replace(plan, action="TRIM", reduce_only=kind == "reduceOnly", side=qa.Side.SELL, content="")
    unreadable: qa.Reading[qa.Holding] = qa.Unusable(qa.Reason.MALFORMED)
    held: qa.Reading[qa.Holding] = qa.fresh(
        qa.Holding(qty * draw(st.sampled_from([0.5, 1.0, 4.0])), draw(st.one_of(st.none(), prices))), NOW
    )
    return replace(
        draw(inputs()),
        plan=replace(plan, price_usd=draw(st.one_of(st.none(), prices)), kill_score=draw(scores)),
        kill=draw(st.sampled_from([qa.Kill.OFF, qa.Kill.OFF, qa.Kill.REDUCE_ONLY])),
        position=draw(st.sampled_from([held, held, unreadable])),
        usage=usage(draw(st.lists(issued, max_size=3)), NOW_US),
    )


@st.composite
def snapshots(draw: st.DrawFn) -> qa.Snapshot:
    """What one round trip can read, for three symbols."""
    symbols = {}
    for s in SYMBOLS:
        entries = {f"old{s}{i}": one for i, one in enumerate(draw(ledgers))}
        symbols[s] = qa.SymbolSnapshot(
            None if draw(st.integers(0, 9)) == 0 else qa.Ledger(str(len(entries)), entries),
            draw(st.one_of(st.just(qa.fresh(qa.Holding(0.0, 100.0), NOW)), readings(holdings(), 60))),
            draw(readings(prices, 60)),
            draw(readings(limits, 300)),
            draw(readings(limits, 60)),
            draw(readings(amounts, 29)),
            draw(readings(efficiencies, 600)),
            draw(st.sampled_from(list(qa.Lane))),
        )
    waiting = st.builds(
        lambda n, symbol, usd, at, taken: qa.Outstanding(
            f"out{n}", symbol, usd, NOW_US - at * US, NOW_US + (60 - at) * US, NOW_US - 1 if taken else None
        ),
        st.integers(0, 99),
        st.sampled_from((*SYMBOLS, "ADAUSDT")),
        amounts,
        st.integers(0, 61),
        st.booleans(),
    )
    return qa.Snapshot(
        NOW_US,
        draw(st.sampled_from([qa.Kill.OFF] * 6 + list(qa.Kill))),
        draw(st.sampled_from([""] * 8 + ["recovery_hold"])),
        None,
        draw(st.one_of(st.just(qa.fresh(qa.Totals(0.0, 0), NOW)), readings(totals, 60))),
        None if draw(st.integers(0, 9)) == 0 else tuple(draw(st.lists(waiting, max_size=3))),
        symbols,
        {"p0": draw(st.sampled_from([qa.Answer("BLOCK", "reduce_only", "0" * 16), qa.Answer("")]))},
        frozenset({"p9"} if draw(st.booleans()) else ()),
    )


batches = st.lists(
    plans(symbols=SYMBOLS, ids=("p0", *(f"p{i}" for i in range(1, 9) for _ in range(4)), "p9")), max_size=8
)
single = st.one_of(
    st.tuples(inputs(), params()),
    st.tuples(opens(), params(loose=True)),
    st.tuples(opens(), params(loose=True)),
    st.tuples(closes(), params(loose=True)),
)

# --- the rules once more, as they are written ------------------------------------------------------------------------


def usable(given_reading: qa.Reading[Any]) -> Any:
    """The value of a fresh reading, else None."""
    return given_reading.value if isinstance(given_reading, qa.Fresh) else None


def expected(i: qa.Inputs, p: qa.GovernorParams) -> str:  # noqa: PLR0911 - one a sentence
    """The verdict's reason by the text of the rules, one sentence after the other; ``ok`` for a permit."""
    plan, emergency = i.plan, i.kill is not qa.Kill.OFF
    if i.kill is qa.Kill.HALT:
        return "kill_switch_active"
    if plan.flaw:
        return "reduce_only" if emergency else "bad_plan"
    holding = usable(i.position)
    position = None if holding is None else holding.qty
    closing = plan.reduce_only or plan.action in CLOSING_SHARE
    towards = position is not None and plan.side is not None and position * plan.side.sign < 0
    against = towards and plan.qty is not None and plan.qty <= abs(position or 0.0)
    reduces = (closing and position != 0.0) or (not closing and against)
    if emergency and not reduces:
        return "reduce_only"
    age_us = i.now_us - round(plan.ts * US)
    if age_us < -5 * US:
        return "bad_plan"
    if age_us > p.plan_max_age_s * US:
        return "plan_expired"
    score = plan.kill_score if plan.kill_score is not None else p.kill_score_absent
    mark = holding.mark_usd if holding is not None and holding.mark_usd is not None else usable(i.market_usd)
    if closing:
        return close_of(i, p, position, mark, score, emergency)
    if plan.side is None or plan.qty is None or (not reduces and score is None):
        return "bad_plan"
    if reduces:
        return limits_of_closes(i, p, plan.qty, mark, score, emergency)
    return open_of(i, p, position, mark, score)


def close_of(i: qa.Inputs, p: qa.GovernorParams, position: Any, mark: Any, score: Any, emergency: bool) -> str:
    """A closing action or reduceOnly."""
    plan, share = i.plan, CLOSING_SHARE.get(i.plan.action)
    if share is None and plan.qty is None:
        return "bad_plan"
    if position is None:
        return "position_unknown" if plan.qty is None else limits_of_closes(i, p, plan.qty, mark, score, emergency)
    if position == 0.0:
        return "nothing_to_close"
    if plan.side is not None and position * plan.side.sign > 0:
        return "bad_plan"
    qty = abs(position) * share if share is not None else min(plan.qty or 0.0, abs(position))
    return limits_of_closes(i, p, qty, mark, score, emergency)


def limits_of_closes(i: qa.Inputs, p: qa.GovernorParams, qty: float, mark: Any, score: Any, emergency: bool) -> str:
    """Gates 2, 3 and 5."""
    if i.usage is None:
        return "state_unreadable"
    for window, most, reason in ((3600, p.max_close_per_hour, "hourly"), (300, p.max_close_per_5min, "burst")):
        if sum(at > i.now_us - window * US for at in i.usage.closes_us) >= most:
            return f"{reason}_limit_exceeded"
    if i.plan.action == FULL_CLOSE or emergency or (score is not None and score >= p.kill_score_critical):
        return "ok"
    price = mark if mark is not None else i.plan.price_usd
    if price is not None:
        over = i.usage.day_usd + qty * price > p.max_reduce_notional_per_day_usd
    else:
        over = i.usage.day_qty + qty > p.max_reduce_qty_per_day
    return "daily_limit_exceeded" if over else "ok"


def adjusters(i: qa.Inputs, p: qa.GovernorParams, position: Any, price: Any) -> str:
    """Gates 0 and 0.5, for an open."""
    exposure = None
    if position is not None and price is not None and i.book is not None and i.plan.side and i.plan.qty:
        exposure = abs(position) * price
        if p.exposure_after:
            exposure = abs(position + i.plan.side.sign * i.plan.qty) * price + i.book.symbol_usd
    if exposure is None:
        return ""
    budget, target = usable(i.budget), usable(i.target)
    cap = target.usd if target is not None and target.mode == "enforce" else None
    if budget is not None and budget.mode == "enforce" and p.apply_mode == "production":
        most = max(budget.usd, cap if cap is not None else 0.0)
        seen = usable(i.violation_usd)
        if exposure > most or (seen is not None and seen > most):
            return "p28_budget_violation"
    enforced = p.apply_mode == "production" or (p.apply_mode == "testnet" and p.testnet_enable_p29)
    return "p29_allocation_cap" if cap is not None and enforced and exposure > cap else ""


def open_of(i: qa.Inputs, p: qa.GovernorParams, position: Any, mark: Any, score: float | None) -> str:  # noqa: PLR0911 - as above
    """An open, from the hold on."""
    plan, use, book, all_of = i.plan, i.usage, i.book, usable(i.totals)
    assert plan.qty is not None
    assert score is not None
    if i.hold:
        return i.hold
    adjusted = adjusters(i, p, position, mark if mark is not None else plan.price_usd)
    if adjusted:
        return adjusted
    if score >= p.kill_score_critical:
        return "kill_score_critical_non_close"
    if use is None:
        return "state_unreadable"
    for window, most, reason in ((3600, p.max_exec_per_hour, "hourly"), (300, p.max_exec_per_5min, "burst")):
        if sum(at > i.now_us - window * US for at in use.opens_us) >= most:
            return f"{reason}_limit_exceeded"
    if use.last_us is not None and i.now_us - use.last_us < p.symbol_cooldown_s * US:
        return "symbol_cooldown"
    if book is None:
        return "state_unreadable"
    if all_of is not None and not book.has_slot and all_of.count + book.slots + 1 > p.max_open_positions:
        return "max_positions_reached"
    known = [x for x in (plan.price_usd, mark) if x is not None]
    notional = plan.qty * max(known) if known else None
    if notional is not None and notional > p.max_notional_per_trade_usd:
        return "notional_per_trade_exceeded"
    total = None if notional is None or all_of is None else all_of.notional_usd + book.usd + notional
    if total is not None and total > p.max_total_notional_usd:
        return "total_notional_exceeded"
    if position is None or all_of is None:
        return "position_unknown"
    return "ok" if notional is not None else "price_unknown"


def essence(made: qa.Permit | qa.Block) -> tuple[Any, ...]:
    """What was decided: all of it but the readings, and the reasons of what failed open."""
    told = {n: v for n, v in ((f, getattr(made, f)) for f in type(made).__dataclass_fields__) if n != "inputs"}
    fail_open = qa.Outcome.FAIL_OPEN
    told["checks"] = tuple(c._replace(reason="") if c.outcome is fail_open else c for c in made.checks)
    if isinstance(made, qa.Permit):
        hint = made.hint
        told["hint"] = (hint.action, hint.factor, hint.extra_cooldown_sec)
    return type(made), tuple(told.items())


# --- verdicts --------------------------------------------------------------------------------------------------------


@given(single)
def test_the_verdict_is_what_the_rules_say(drawn: tuple[qa.Inputs, qa.GovernorParams]) -> None:
    """(31) (33) (35) Over any world: the same reason as the rules read one after the other."""
    given_inputs, p = drawn
    made = qa.evaluate(given_inputs, p)
    assert getattr(made, "reason", "ok") == expected(given_inputs, p)


@given(single)
def test_the_verdict_is_the_first_blocking_enforced_gate(drawn: tuple[qa.Inputs, qa.GovernorParams]) -> None:
    """(31) Every gate has an entry; what blocks is enforced, what would is not; an unknown never blocks an adjuster."""
    given_inputs, p = drawn
    made = qa.evaluate(given_inputs, p)
    rows = list(zip(qa.GATES, made.checks, strict=True))
    assert len(rows) == len(qa.GATES)
    blocking = [(g, c) for g, c in rows if c.outcome is qa.Outcome.BLOCK]
    for gate, check in rows:
        if check.outcome in (qa.Outcome.BLOCK, qa.Outcome.WOULD_BLOCK):
            assert p.enforces(gate) is (check.outcome is qa.Outcome.BLOCK)
            assert check.reason in gate.reasons
        elif check.outcome is qa.Outcome.FAIL_OPEN:
            assert gate.gate in ("0", "0.5")
            known = {"shadow", "position_unknown", "price_unknown", "state_unreadable", *UNUSABLE}
            assert check.reason in known
        else:
            assert check.reason == ""
        if check.margin is not None and check.observed is not None and check.limit is not None:
            assert math.isfinite(check.margin)
            assert math.isfinite(check.observed)
    if blocking:
        assert isinstance(made, qa.Block)
        gate, check = blocking[0]
        assert (made.gate, made.reason, made.observed) == (gate.number, check.reason, check.observed)
        assert made.reason in BLOCK_REASONS
        assert made.disarms is (
            p.disarm_on_burst and made.reason == "burst_limit_exceeded" and made.checks[-1] == NOT_A_CLOSE
        )
    else:
        assert isinstance(made, qa.Permit)
        assert math.isfinite(made.computed_notional_usd)
        assert made.computed_qty >= 0.0


NOT_A_CLOSE = qa.Checked(qa.Outcome.NOT_APPLICABLE)


@given(single)
def test_a_kill_switch_is_obeyed_in_every_mode(drawn: tuple[qa.Inputs, qa.GovernorParams]) -> None:
    """(26) HALT permits nothing, REDUCE_ONLY only what reduces; either says so first."""
    given_inputs, p = drawn
    halted = qa.evaluate(replace(given_inputs, kill=qa.Kill.HALT), p)
    assert isinstance(halted, qa.Block)
    assert (halted.reason, halted.gate) == ("kill_switch_active", "-1")
    reduced = qa.evaluate(replace(given_inputs, kill=qa.Kill.REDUCE_ONLY), p)
    if isinstance(reduced, qa.Permit):
        assert reduced.movement is qa.Movement.CLOSE
        holding = usable(given_inputs.position)
        assert holding is None or holding.qty != 0.0
        if holding is not None:
            assert reduced.side is (qa.Side.SELL if holding.qty > 0 else qa.Side.BUY)
            assert reduced.computed_qty <= abs(holding.qty)


@given(single)
def test_what_reduces_is_never_blocked_by_gates_that_it_lowers(drawn: tuple[qa.Inputs, qa.GovernorParams]) -> None:
    """(33) Not by 0, 0.5, 1, 4, nor by a hold; they do not even apply to it."""
    given_inputs, p = drawn
    holding = usable(given_inputs.position)
    order = qa.order_of(given_inputs.plan, None if holding is None else holding.qty)
    assume(not given_inputs.plan.flaw and order.reduces)
    made = qa.evaluate(given_inputs, p)
    for gate, check in zip(qa.GATES, made.checks, strict=True):
        if gate.number in ("0", "0.5", "1", "4", "hold"):
            assert check == NOT_A_CLOSE
    if isinstance(made, qa.Permit):
        assert made.movement is qa.Movement.CLOSE
        if holding is not None:
            assert made.computed_qty <= abs(holding.qty)


@given(
    opens(), params(loose=True), st.floats(0.0, 1.0), st.floats(0.0, 1e4), st.integers(0, 3), amounts,
    st.lists(issued, max_size=2),
)  # fmt: skip
def test_more_risk_never_turns_a_block_into_a_permit(
    given_inputs: qa.Inputs,
    p: qa.GovernorParams,
    score: float,
    position: float,
    slots: int,
    usd: float,
    more: list[qa.Issued],
) -> None:
    """(32) For opens: a greater kill score, more position on the plan's side, fewer slots, more notional, more permits
    take no permit back into being; each alone and all together. (By the position alone, with
    GOV_EXPOSURE_BASIS=position, a smaller position past zero is a smaller exposure: that rule has no such law.)"""
    p = replace(p, exposure_after=True)
    plan, use = given_inputs.plan, given_inputs.usage
    assert plan.side is not None
    assert plan.kill_score is not None
    assert use is not None
    holding, all_of = usable(given_inputs.position), usable(given_inputs.totals)
    times = [one.at_us for one in more]
    last = [] if use.last_us is None else [use.last_us]
    changes: list[dict[str, Any]] = [
        {"plan": replace(plan, kill_score=plan.kill_score + score)},
        {"position": qa.fresh(replace(holding, qty=holding.qty + plan.side.sign * position), NOW)},
        {"totals": qa.fresh(qa.Totals(all_of.notional_usd + usd, all_of.count + slots), NOW)},
        {
            "usage": replace(
                use,
                opens_us=tuple(sorted([*use.opens_us, *(t for t in times if t > NOW_US - HOUR_S * US)])),
                last_us=max([*last, *times], default=None),
            )
        },
    ]
    together = {name: value for change in changes for name, value in change.items()}
    before = qa.evaluate(given_inputs, p)
    assert before.checks[-1] == NOT_A_CLOSE
    for change in (*changes, together):
        if isinstance(before, qa.Block):
            assert isinstance(qa.evaluate(replace(given_inputs, **change), p), qa.Block)


@given(single)
def test_holding_the_symbol_lifts_the_number_of_positions_and_nothing_else(
    drawn: tuple[qa.Inputs, qa.GovernorParams],
) -> None:
    """(32) With a slot taken already the gate of slots passes; every other gate says what it said."""
    given_inputs, p = drawn
    assume(given_inputs.book is not None)
    assert given_inputs.book is not None
    without = qa.evaluate(replace(given_inputs, book=replace(given_inputs.book, has_slot=False)), p)
    having = qa.evaluate(replace(given_inputs, book=replace(given_inputs.book, has_slot=True)), p)
    at = [g.gate for g in qa.GATES].index("4.positions")
    assert having.checks[at].outcome is not qa.Outcome.BLOCK
    assert without.checks[:at] + without.checks[at + 1 :] == having.checks[:at] + having.checks[at + 1 :]


@given(single)
def test_modes_decide_alike(drawn: tuple[qa.Inputs, qa.GovernorParams]) -> None:
    """(38) What is observed and held against it is the same in every mode; only what counts differs, and production
    permits nothing that a milder mode blocks."""
    given_inputs, p = drawn
    made = {m: qa.evaluate(given_inputs, replace(p, apply_mode=m.value)) for m in qa.ApplyMode}
    numbers = {m: [(c.reason, *c[2:]) for c in one.checks] for m, one in made.items()}
    assert numbers[qa.ApplyMode.DRY_RUN] == numbers[qa.ApplyMode.TESTNET] == numbers[qa.ApplyMode.PRODUCTION]
    if isinstance(made[qa.ApplyMode.PRODUCTION], qa.Permit):
        assert isinstance(made[qa.ApplyMode.TESTNET], qa.Permit)
    if isinstance(made[qa.ApplyMode.TESTNET], qa.Permit):
        assert isinstance(made[qa.ApplyMode.DRY_RUN], qa.Permit)


# --- fail-open -------------------------------------------------------------------------------------------------------

ABSENT: dict[str, Any] = {name: qa.missing() for name in HINTED}
AGES = {"target": 300, "budget": 60, "violation_usd": 29, "efficiency": 600}


def with_reading(i: qa.Inputs, name: str, value: qa.Reading[Any]) -> qa.Inputs:
    """The inputs with one reading in place of another."""
    changes: dict[str, Any] = {name: value}
    return replace(i, **changes)


values_of: Mapping[str, st.SearchStrategy[Any]] = {
    "target": limits, "budget": limits, "violation_usd": amounts, "efficiency": efficiencies,
}  # fmt: skip


@given(single, st.sampled_from(HINTED), st.data())
def test_every_unusable_adjuster_gives_the_decision_of_missing(
    drawn: tuple[qa.Inputs, qa.GovernorParams], name: str, data: st.DataObject
) -> None:
    """(14) (15) (16) Stale, future, malformed, unreadable, and for a limit shadow: the same answer but for the
    reason."""
    given_inputs, p = drawn
    value = data.draw(values_of[name])
    missing = qa.evaluate(with_reading(given_inputs, name, qa.missing()), p)
    changed = [reading(kind, value, AGES[name], data.draw(st.integers(0, 5))) for kind in UNUSABLE]
    if isinstance(value, qa.Limit):
        changed.append(reading("ok", replace(value, mode="shadow"), AGES[name]))
    for other in changed:
        made = qa.evaluate(with_reading(given_inputs, name, other), p)
        assert essence(made) == essence(missing)
        row = {"target": TARGET_GATE, "budget": BUDGET_GATE}.get(name)
        if row is not None and made.checks[row].outcome is qa.Outcome.FAIL_OPEN:
            assert made.checks[row].reason == (other.state if isinstance(other, qa.Unusable) else "shadow")
        if isinstance(made, qa.Permit) and name == "efficiency":
            assert (made.hint.action.value, made.hint.factor, made.hint.extra_cooldown_sec) == ("NONE", 1.0, 0)


@given(single, st.data())
def test_broken_adjusters_never_block_what_absent_ones_permit(
    drawn: tuple[qa.Inputs, qa.GovernorParams], data: st.DataObject
) -> None:
    """(14) (17) All four unusable, each in its own way: the answer of all four absent; and adjusters that are there
    only ever take a permit away, and only by a fresh enforced limit or a valid violation beside one."""
    given_inputs, p = drawn
    absent = qa.evaluate(replace(given_inputs, **ABSENT), p)
    broken: dict[str, Any] = {}
    for name in HINTED:
        broken[name] = reading(data.draw(st.sampled_from(UNUSABLE)), data.draw(values_of[name]), AGES[name])
    assert essence(qa.evaluate(replace(given_inputs, **broken), p)) == essence(absent)
    assert getattr(absent, "gate", "") not in ("0", "0.5")
    made = qa.evaluate(given_inputs, p)
    if isinstance(made, qa.Permit):
        assert isinstance(absent, qa.Permit)
    elif isinstance(absent, qa.Permit):
        assert made.gate in ("0", "0.5")
        deciding = given_inputs.budget if made.gate == "0" else given_inputs.target
        assert isinstance(deciding, qa.Fresh)
        assert deciding.value.mode == "enforce"


@given(single, efficiencies, efficiencies)
def test_a_hint_changes_no_verdict(
    drawn: tuple[qa.Inputs, qa.GovernorParams], one: qa.Efficiency, other: qa.Efficiency
) -> None:
    """(25) Any two efficiencies: the same answer but for the hint."""
    given_inputs, p = drawn
    first = qa.evaluate(replace(given_inputs, efficiency=qa.fresh(one, NOW)), p)
    second = qa.evaluate(replace(given_inputs, efficiency=qa.fresh(other, NOW)), p)
    if isinstance(first, qa.Permit) and isinstance(second, qa.Permit):
        first = replace(first, hint=second.hint)
    assert replace(first, inputs=second.inputs) == second


hints = st.builds(
    qa.DownsizeParams, st.floats(0.01, 1.0), st.floats(0.01, 1.0), st.integers(0, 500), st.just(0.65), st.just(600)
)


@given(unit, unit, hints)
def test_a_hint_is_bounded_and_monotone(a: float, b: float, p: qa.DownsizeParams) -> None:
    """(25) min <= factor <= 1, non-decreasing in the score; 0 <= cooldown <= max, non-increasing; arrays give the
    same bits."""
    low, high = sorted((a, b))
    made = [qa.downsize(qa.fresh(qa.Efficiency(s, 0.9)), p) for s in (low, high)]
    for one, score in zip(made, (low, high), strict=True):
        assert p.min_factor <= one.factor <= 1.0
        assert 0 <= one.extra_cooldown_sec <= p.max_extra_cooldown_s
        assert (one.action is qa.HintAction.DOWNSIZE) == (score < p.threshold)
        if one.action is qa.HintAction.NONE:
            assert (one.factor, one.extra_cooldown_sec) == (1.0, 0)
        else:
            assert one.extra_cooldown_sec == round((1.0 - score) * p.max_extra_cooldown_s)
            assert one.factor == max(p.min_factor, score / p.threshold)
    assert made[0].factor <= made[1].factor
    assert made[0].extra_cooldown_sec >= made[1].extra_cooldown_sec
    both = np.array([a, b])
    assert qa.downsize_factor(both, p).tolist() == [qa.downsize_factor(a, p), qa.downsize_factor(b, p)]
    assert qa.extra_cooldown_s(both, p).tolist() == [qa.extra_cooldown_s(a, p), qa.extra_cooldown_s(b, p)]


# --- time ------------------------------------------------------------------------------------------------------------


def later(i: qa.Inputs, entries: list[qa.Issued], now_us: int) -> qa.Inputs:
    """The same world with nothing changed but the clock, for a plan that is as old then as it was."""
    hold = i.hold if i.hold_until_us is None or now_us < i.hold_until_us else ""
    ts = i.plan.ts + (now_us - i.now_us) / US
    return replace(
        i, now_us=now_us, plan=replace(i.plan, ts=ts, content=""), usage=usage(entries, now_us), hold=hold
    )  # fmt: skip


@given(single, ledgers)
def test_time_lifts_a_block_when_it_was_said_to(
    drawn: tuple[qa.Inputs, qa.GovernorParams], entries: list[qa.Issued]
) -> None:
    """A plan with retry_after_s is permitted then and not a microsecond before, all else as it was; one without is not
    permitted later either."""
    given_inputs, p = drawn
    given_inputs = replace(given_inputs, usage=usage(entries, NOW_US), plan=replace(given_inputs.plan, ts=NOW - 1.0))
    made = qa.evaluate(given_inputs, p)
    assume(isinstance(made, qa.Block))
    assert isinstance(made, qa.Block)
    if made.retry_after_s is None:
        assert isinstance(qa.evaluate(later(given_inputs, entries, NOW_US + 3 * DAY_S * US), p), qa.Block)
        return
    then = NOW_US + us(made.retry_after_s)
    assert then > NOW_US
    assert isinstance(qa.evaluate(later(given_inputs, entries, then), p), qa.Permit)
    assert isinstance(qa.evaluate(later(given_inputs, entries, then - 1), p), qa.Block)


@given(ledgers, st.integers(0, 2 * DAY_S * US), st.sampled_from([0, 60, 4000]), st.integers(0, 2 * DAY_S * US))
def test_what_is_forgotten_is_counted_by_no_limit(
    entries: list[qa.Issued], gone_us: int, keep_s: int, more_us: int
) -> None:
    """Without the entries that a ledger may forget, windows, day and cooldown say the same, then and ever after."""
    ledger = qa.Ledger("9", {f"p{i}": one for i, one in enumerate(entries)})
    then = NOW_US + gone_us
    dropped = set(forgotten(ledger, then, keep_s))
    kept = [one for name, one in ledger.issued.items() if name not in dropped]
    for now_us in (then, then + more_us):
        full, rest = usage(entries, now_us), usage(kept, now_us)
        assert replace(full, last_us=None) == replace(rest, last_us=None)
        if full.last_us != rest.last_us:
            assert full.last_us is not None
            assert now_us - full.last_us >= keep_s * US


moves = st.lists(
    st.tuples(
        st.one_of(st.sampled_from([0, 1, 59_999_999, 60_000_000, 300_000_000]), st.integers(0, 900_000_000)),
        st.lists(st.tuples(st.sampled_from(SYMBOLS[:2]), st.sampled_from(["ENTRY", "PARTIAL_25"])), max_size=4),
        st.integers(0, 800_000),
    ),
    min_size=1,
    max_size=25,
)


@given(moves, st.sampled_from([0, 0, 60]), st.integers(1, 3), st.integers(1, 4), st.sampled_from([0, 43_200, 86_000]))
def test_no_window_ever_holds_more_permits_than_its_limit(
    steps: list[Any], cooldown_s: int, burst: int, hourly: int, since_midnight_s: int
) -> None:
    """(28) Batches over a moving clock, each permit stamped up to 800 ms after its decision: in every sliding window of
    a symbol at most as many opens and closes as its limits, no open within the cooldown, a day's closes below its
    limit, and positions and outstanding opens below the total."""
    p = qa.GovernorParams(
        max_exec_per_5min=burst, max_exec_per_hour=hourly, max_close_per_5min=burst + 1, max_close_per_hour=hourly + 1,
        symbol_cooldown_s=cooldown_s, max_total_notional_usd=250.0, max_reduce_notional_per_day_usd=300.0,
        disarm_on_burst=False,
    )  # fmt: skip
    clock = NOW_US // (DAY_S * US) * DAY_S * US + since_midnight_s * US
    entries: dict[str, dict[str, qa.Issued]] = {s: {} for s in SYMBOLS}
    book: list[qa.Outstanding] = []
    count = 0
    for gone_us, wanted, lag_us in steps:
        clock += gone_us
        now = clock / US
        position = qa.Fresh(qa.Holding(4.0, 100.0), now)
        symbols = {s: qa.SymbolSnapshot(qa.Ledger(str(len(e)), e), position) for s, e in entries.items()}
        book = [one for one in book if clock < one.until_us]
        snapshot = qa.Snapshot(clock, totals=qa.Fresh(qa.Totals(100.0, 2), now), book=tuple(book), symbols=symbols)
        batch = []
        for symbol, action in wanted:
            count += 1
            batch.append(qa.Plan(f"p{count}", symbol, action, now, price_usd=100.0, **OPENS[action]))
        made = qa.decide_batch(batch, snapshot, p)
        clock += lag_us
        for one in made:
            if isinstance(one, qa.Permit):
                entries[one.plan.symbol][one.plan.plan_id] = replace(one.issued, at_us=clock)
                if one.movement is qa.Movement.OPEN:
                    usd = one.computed_notional_usd
                    book.append(qa.Outstanding(one.plan.plan_id, one.plan.symbol, usd, clock, clock + 60 * US))
        assert 100.0 + math.fsum(o.usd for o in book) <= 250.0
    for issued_of in entries.values():
        opens = [e.at_us for e in issued_of.values() if e.movement is qa.Movement.OPEN]
        closes = [e for e in issued_of.values() if e.movement is qa.Movement.CLOSE]
        assert densest(opens, 300) <= burst
        assert densest(opens, HOUR_S) <= hourly
        assert densest([e.at_us for e in closes], 300) <= burst + 1
        assert densest([e.at_us for e in closes], HOUR_S) <= hourly + 1
        every = sorted(e.at_us for e in issued_of.values())
        for at in opens:
            before = bisect.bisect_left(every, at)
            assert before == 0 or at - every[before - 1] >= cooldown_s * US
            assert cooldown_s == 0 or opens.count(at) == 1
        by_day: defaultdict[int, float] = defaultdict(float)
        for e in closes:
            by_day[(e.at_us - 800_000) // (DAY_S * US)] += e.usd  # decided up to 800 ms before its stamp
        assert all(usd <= 400.0 for usd in by_day.values())


OPENS: Mapping[str, dict[str, Any]] = {
    "ENTRY": {"side": qa.Side.BUY, "qty": 0.5, "kill_score": 0.1},
    "PARTIAL_25": {},
}


def densest(times: list[int], window_s: int) -> int:
    """The most entries in any window (t - W, t]."""
    found = sorted(times)
    return max((n + 1 - bisect.bisect_right(found, t - window_s * US) for n, t in enumerate(found)), default=0)


# --- the fold --------------------------------------------------------------------------------------------------------


def carried(snapshot: qa.Snapshot, made: Any, p: qa.GovernorParams) -> qa.Snapshot:
    """The snapshot that one answer leaves behind."""
    if not isinstance(made, (qa.Permit, qa.Block)):
        return snapshot
    plan = made.plan
    snapshot = replace(snapshot, answers={**snapshot.answers, plan.plan_id: made.answer})
    if isinstance(made, qa.Block):
        return replace(snapshot, kill=qa.Kill.REDUCE_ONLY) if made.disarms else snapshot
    of = snapshot.symbols[plan.symbol]
    assert of.ledger is not None
    ledger = replace(of.ledger, issued={**of.ledger.issued, plan.plan_id: made.issued})
    symbols = {**snapshot.symbols, plan.symbol: replace(of, ledger=ledger)}
    if made.movement is qa.Movement.OPEN:
        assert snapshot.book is not None
        until = snapshot.now_us + p.permit_ttl_s * US
        one = qa.Outstanding(plan.plan_id, plan.symbol, made.computed_notional_usd, snapshot.now_us, until)
        snapshot = replace(snapshot, book=(*snapshot.book, one))
    return replace(snapshot, symbols=symbols)


@given(batches, snapshots(), params())
def test_a_batch_is_its_plans_one_by_one(batch: list[qa.Plan], snapshot: qa.Snapshot, p: qa.GovernorParams) -> None:
    """(40) With the state carried along; and cut anywhere, a batch is its two halves."""
    whole = qa.decide_batch(batch, snapshot, p)
    assert qa.decide_batch(batch, snapshot, p) == whole
    state, alone = snapshot, []
    for plan in batch:
        made = qa.decide(plan, state, p)
        alone.append(made)
        state = carried(state, made, p)
    assert tuple(alone) == whole


@given(batches, snapshots(), params(loose=True), st.randoms())
def test_the_order_of_what_was_read_changes_nothing(
    batch: list[qa.Plan], snapshot: qa.Snapshot, p: qa.GovernorParams, random: Any
) -> None:
    """(4) (40) Symbols, ledgers and book in any order."""
    names = list(snapshot.symbols)
    random.shuffle(names)
    symbols = {}
    for name in names:
        of = snapshot.symbols[name]
        if of.ledger is not None:
            entries = list(of.ledger.issued.items())
            random.shuffle(entries)
            of = replace(of, ledger=replace(of.ledger, issued=dict(entries)))
        symbols[name] = of
    book = None if snapshot.book is None else list(snapshot.book)
    if book is not None:
        random.shuffle(book)
    mixed = replace(snapshot, symbols=symbols, book=None if book is None else tuple(book))
    assert qa.decide_batch(batch, mixed, p) == qa.decide_batch(batch, snapshot, p)


@given(batches, snapshots(), params(loose=True))
def test_an_id_has_one_answer(batch: list[qa.Plan], snapshot: qa.Snapshot, p: qa.GovernorParams) -> None:
    """(27) At most one permit an id; later copies with the same content get the first answer, others a conflict; an id
    with an answer gets no other."""
    made = qa.decide_batch(batch, snapshot, p)
    assert len(made) == len(batch)
    first: dict[str, Any] = {}
    for plan, one in zip(batch, made, strict=True):
        assert one.plan is plan
        if plan.plan_id in snapshot.taken:
            assert one == qa.Conflict(plan, "permit_exists", NOW_US)
        elif plan.plan_id in snapshot.answers:
            stood = snapshot.answers[plan.plan_id]
            reason = "answer_unreadable" if not stood.verdict else "other_content"
            assert one == qa.Conflict(plan, reason, NOW_US)
        elif plan.plan_id not in first:
            assert isinstance(one, (qa.Permit, qa.Block))
            first[plan.plan_id] = one
        elif plan.content == first[plan.plan_id].plan.content:
            assert one == qa.Replay(plan, first[plan.plan_id].answer, NOW_US)
        else:
            assert one == qa.Conflict(plan, "other_content", NOW_US)
    permits = Counter(m.plan.plan_id for m in made if isinstance(m, qa.Permit))
    assert all(n == 1 for n in permits.values())


@given(batches, snapshots(), params())
def test_a_block_changes_nothing_for_the_others(
    batch: list[qa.Plan], snapshot: qa.Snapshot, p: qa.GovernorParams
) -> None:
    """(29) Without a blocked plan the others get the same answers, but for auto-disarm."""
    made = qa.decide_batch(batch, snapshot, p)
    for one in made:
        if isinstance(one, qa.Block) and not one.disarms:
            rest = [b for b in batch if b.plan_id != one.plan.plan_id]
            kept = tuple(m for m in made if m.plan.plan_id != one.plan.plan_id)
            if all(isinstance(m, (qa.Block, qa.Replay, qa.Conflict)) for m in made if m not in kept):
                assert qa.decide_batch(rest, snapshot, p) == kept


@given(batches, snapshots(), params(loose=True))
def test_a_batch_keeps_the_global_caps(batch: list[qa.Plan], snapshot: qa.Snapshot, p: qa.GovernorParams) -> None:
    """(42) After each open: positions and outstanding opens within the total and the number of positions, at the
    snapshot's marks; nothing is permitted where they cannot be read."""
    state = snapshot
    for one in qa.decide_batch(batch, snapshot, p):
        state = carried(state, one, p)
        if not isinstance(one, qa.Permit) or one.movement is not qa.Movement.OPEN:
            continue
        all_of = usable(snapshot.totals)
        assert all_of is not None
        assert snapshot.book is not None
        assert state.book is not None
        waiting = [o for o in state.book if o.plan_id not in released(state)]
        total = all_of.notional_usd + math.fsum(o.usd for o in waiting)
        assert total <= p.max_total_notional_usd * (1 + 1e-12)
        held = {s for s, of in state.symbols.items() if usable(of.position) and usable(of.position).qty != 0.0}
        if one.plan.symbol not in held:
            others = {o.symbol for o in waiting} - held
            assert all_of.count + len(others) <= p.max_open_positions or any(
                o.symbol == one.plan.symbol for o in waiting if o.plan_id != one.plan.plan_id
            )


# --- records ---------------------------------------------------------------------------------------------------------


def through_text(record: Mapping[str, str]) -> dict[str, str]:
    """As bytes and back."""
    return {n: v.encode().decode() for n, v in record.items()}


@given(single)
def test_a_verdict_is_made_again_from_its_record(drawn: tuple[qa.Inputs, qa.GovernorParams]) -> None:
    """(40) After a trip through text: the same verdict bit for bit, and no field differs."""
    given_inputs, p = drawn
    made = qa.evaluate(given_inputs, p)
    record = through_text(qa.governor_fields(made, p))
    assert qa.recompute(record) == made
    assert qa.differences(record) == {}
    assert record == qa.governor_fields(qa.evaluate(given_inputs, p), p)


@given(batches, snapshots(), params(loose=True))
def test_every_verdict_of_a_batch_has_its_record(
    batch: list[qa.Plan], snapshot: qa.Snapshot, p: qa.GovernorParams
) -> None:
    """(40) What stood in ledger, book and portfolio when it was decided is in the record."""
    for made in qa.decide_batch(batch, snapshot, p):
        if isinstance(made, (qa.Permit, qa.Block)):
            record = through_text(qa.governor_fields(made, p))
            assert qa.recompute(record) == made
            assert qa.differences(record) == {}
            assert made.to_dict()["decision_id"] == made.decision_id
