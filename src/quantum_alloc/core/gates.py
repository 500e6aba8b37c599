"""The gates: one small function each, from what is known of a plan to pass, block, fail open or not applicable.

A gate looks at numbers that were worked out once for the plan (``Facts``), tells what it observed, its limit, the
margin between them (positive where it passes), and when time alone would lift it. It does not know the mode: whether
a block counts is the table's business (``governor_params.GATES``). ``CHECKS`` has a function for each of its rows.

    exposure after the plan = |position +- qty| x mark + outstanding opens of the symbol
    plan notional           = qty x max(the plan's price, fresh mark)

Source: the project's governor, section 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from quantum_alloc.core.governor_inputs import Inputs, Kill, Limit
from quantum_alloc.core.governor_params import GATES, GovernorParams
from quantum_alloc.core.limits import BURST_S, DAY_S, HOUR_S, US
from quantum_alloc.core.plan import FULL_CLOSE, Movement, Order, order_of
from quantum_alloc.core.reading import FUTURE_TOLERANCE_S, Fresh, Reading, Unusable

ENFORCE = "enforce"


class Outcome(StrEnum):
    """What a gate says."""

    PASS = "pass"  # noqa: S105 - no password
    BLOCK = "block"
    WOULD_BLOCK = "would_block"
    FAIL_OPEN = "fail_open"
    NOT_APPLICABLE = "not_applicable"


class Checked(NamedTuple):
    """What one gate says of one plan.

    Attributes:
        outcome: pass, block, would_block, fail_open, not_applicable.
        reason: why it blocks, or why it could not be decided and passes.
        observed: what it looked at.
        limit: what that is held against.
        margin: how much is left; negative, or 0 where equal does not pass, for a block.
        retry_us: when time alone would lift the block, microseconds.
    """

    outcome: Outcome
    reason: str = ""
    observed: float | None = None
    limit: float | None = None
    margin: float | None = None
    retry_us: int | None = None


_PASS, _BLOCK, _FAIL_OPEN, _NOT_APPLICABLE = Outcome.PASS, Outcome.BLOCK, Outcome.FAIL_OPEN, Outcome.NOT_APPLICABLE
_OFF, _REDUCE_ONLY, _HALT = Kill.OFF, Kill.REDUCE_ONLY, Kill.HALT
_OPEN, _CLOSE = Movement.OPEN, Movement.CLOSE
PASS = Checked(_PASS)
NOT_APPLICABLE = Checked(_NOT_APPLICABLE)
UNREADABLE = Checked(_BLOCK, "state_unreadable")


@dataclass(frozen=True, slots=True)
class Facts:
    """What follows from a plan and its inputs, worked out once.

    Attributes:
        inputs: what it follows from.
        order: what the plan comes to.
        position_qty: None where it is unknown.
        mark_usd: the position's mark, else the market's price, else the plan's; None where there is none.
        price_usd: the greater of the plan's price and the fresh mark; None where there is neither.
        notional_usd: of the order; None where no price is known.
        kill_score: the plan's, or what stands for none.
        exposure_usd: after the plan; None where position, price or book is unknown.
    """

    inputs: Inputs
    order: Order
    position_qty: float | None
    mark_usd: float | None
    price_usd: float | None
    notional_usd: float | None
    kill_score: float | None
    exposure_usd: float | None

    @property
    def is_open(self) -> bool:
        """True for an order that does not reduce."""
        return not self.order.reduces


def facts(inputs: Inputs, params: GovernorParams) -> Facts:
    """What follows from a plan and its inputs.

    Args:
        inputs: of a plan without a flaw.
        params: the numbers of the governor.
    """
    plan, position = inputs.plan, inputs.position
    holding = position.value if isinstance(position, Fresh) else None
    qty = None if holding is None else holding.qty
    order = order_of(plan, qty, needs_kill_score=params.kill_score_absent is None)
    mark = None if holding is None else holding.mark_usd
    if mark is None and isinstance(inputs.market_usd, Fresh):
        mark = inputs.market_usd.value
    price = mark
    if plan.price_usd is not None and (price is None or plan.price_usd > price):
        price = plan.price_usd
    mark = plan.price_usd if mark is None else mark
    used = mark if order.movement is _CLOSE else price
    notional = None if used is None else order.qty * used
    score = params.kill_score_absent if plan.kill_score is None else plan.kill_score
    exposure = None
    if qty is not None and mark is not None and inputs.book is not None:
        after = qty + order.side.sign * order.qty if order.side is not None else qty
        exposure = abs(after) * mark + inputs.book.symbol_usd if params.exposure_after else abs(qty) * mark
    return Facts(inputs, order, qty, mark, price, notional, score, exposure)


def _within(observed: float, limit: float, reason: str, retry_us: int | None = None) -> Checked:
    """Pass up to the limit, the limit included."""
    if observed > limit:
        return Checked(_BLOCK, reason, observed, limit, limit - observed, retry_us)
    return Checked(_PASS, "", observed, limit, limit - observed)


def kill_switch(f: Facts, _: GovernorParams) -> Checked:
    """-1: HALT stops everything, REDUCE_ONLY what does not reduce."""
    if f.inputs.kill is _HALT:
        return Checked(_BLOCK, "kill_switch_active")
    if f.inputs.kill is _REDUCE_ONLY and f.is_open:
        return Checked(_BLOCK, "reduce_only")
    return PASS


def plan_itself(f: Facts, p: GovernorParams) -> Checked:
    """The plan's age, and whether there is an order in it."""
    ts_us = round(f.inputs.plan.ts * US)
    age_s = (f.inputs.now_us - ts_us) / US
    if age_s < -FUTURE_TOLERANCE_S:
        return Checked(_BLOCK, "bad_plan", age_s, -float(FUTURE_TOLERANCE_S), age_s + FUTURE_TOLERANCE_S)
    aged = _within(age_s, float(p.plan_max_age_s), "plan_expired")
    if aged.outcome is _BLOCK or not f.order.trouble:
        return aged
    return aged._replace(outcome=_BLOCK, reason=f.order.trouble)


def hold(f: Facts, _: GovernorParams) -> Checked:
    """What the store may have forgotten, or a clock that cannot be trusted, stops opens."""
    if not f.inputs.hold:
        return PASS
    return Checked(_BLOCK, f.inputs.hold, retry_us=f.inputs.hold_until_us)


def _limit_of(reading: Reading[Limit]) -> tuple[float | None, str]:
    """A limit that counts, or why there is none; age is tested before mode."""
    if isinstance(reading, Unusable):
        return None, reading.reason.value
    if reading.value.mode != ENFORCE:
        return None, "shadow"
    return reading.value.usd, ""


def _unknown_exposure(f: Facts) -> str:
    if f.position_qty is None:
        return "position_unknown"
    return "price_unknown" if f.mark_usd is None else "state_unreadable"


def budget(f: Facts, _: GovernorParams) -> Checked:
    """0: the exposure after the plan, or a young violation, above both budget and enforced target."""
    usd, why = _limit_of(f.inputs.budget)
    if usd is None:
        return Checked(_FAIL_OPEN, why)
    target, _why = _limit_of(f.inputs.target)
    limit = usd if target is None or target <= usd else target
    told = f.inputs.violation_usd
    seen = told.value if isinstance(told, Fresh) else None
    if f.exposure_usd is None:
        if f.position_qty is not None and seen is not None and seen > limit:
            return _within(seen, limit, "p28_budget_violation")
        return Checked(_FAIL_OPEN, _unknown_exposure(f), None, limit)
    observed = f.exposure_usd if seen is None or seen <= f.exposure_usd else seen
    return _within(observed, limit, "p28_budget_violation")


def allocation_target(f: Facts, _: GovernorParams) -> Checked:
    """0.5: the exposure after the plan above a fresh enforced target."""
    usd, why = _limit_of(f.inputs.target)
    if usd is None:
        return Checked(_FAIL_OPEN, why)
    if f.exposure_usd is None:
        return Checked(_FAIL_OPEN, _unknown_exposure(f), None, usd)
    return _within(f.exposure_usd, usd, "p29_allocation_cap")


def kill_score(f: Facts, p: GovernorParams) -> Checked:
    """1: a kill score at or above the critical one."""
    score = f.kill_score or 0.0  # an open without one is a bad plan, and comes no further
    margin = p.kill_score_critical - score
    blocks = score >= p.kill_score_critical
    outcome, reason = (_BLOCK, "kill_score_critical_non_close") if blocks else (_PASS, "")
    return Checked(outcome, reason, score, p.kill_score_critical, margin)


def _rate(f: Facts, window_s: int, opens: int, closes: int, reason: str) -> Checked:
    """Permits in the window; one more must not be above the limit."""
    if f.inputs.usage is None:
        return UNREADABLE
    limit = opens if f.order.movement is _OPEN else closes
    since = f.inputs.now_us - window_s * US
    times = [at for at in f.inputs.usage.of(f.order.movement) if at > since]
    used, margin = float(len(times)), float(limit - len(times))
    if used < limit:
        return Checked(_PASS, "", used, float(limit), margin)
    retry = times[-limit] + window_s * US if limit > 0 else None
    return Checked(_BLOCK, reason, used, float(limit), margin, retry)


def hourly(f: Facts, p: GovernorParams) -> Checked:
    """2: permits of the symbol in the last 3600 s."""
    return _rate(f, HOUR_S, p.max_exec_per_hour, p.max_close_per_hour, "hourly_limit_exceeded")


def burst(f: Facts, p: GovernorParams) -> Checked:
    """3: permits of the symbol in the last 300 s."""
    return _rate(f, BURST_S, p.max_exec_per_5min, p.max_close_per_5min, "burst_limit_exceeded")


def cooldown(f: Facts, p: GovernorParams) -> Checked:
    """4: seconds since the symbol's last permit."""
    if f.inputs.usage is None:
        return UNREADABLE
    if f.inputs.usage.last_us is None:
        return PASS
    elapsed, limit = (f.inputs.now_us - f.inputs.usage.last_us) / US, float(p.symbol_cooldown_s)
    if f.inputs.now_us - f.inputs.usage.last_us < p.symbol_cooldown_s * US:
        retry = f.inputs.usage.last_us + p.symbol_cooldown_s * US
        return Checked(_BLOCK, "symbol_cooldown", elapsed, limit, elapsed - limit, retry)
    return Checked(_PASS, "", elapsed, limit, elapsed - limit)


def positions(f: Facts, p: GovernorParams) -> Checked:
    """4: symbols with a position or an outstanding open, the plan's own included; adding to one takes no slot."""
    totals, book = f.inputs.totals, f.inputs.book
    if book is None:
        return UNREADABLE
    if isinstance(totals, Unusable):
        return NOT_APPLICABLE  # what is unknown is told by "known"
    after = totals.value.count + book.slots + (not book.has_slot)
    if book.has_slot:
        return Checked(_PASS, "", float(after), float(p.max_open_positions), None)
    return _within(float(after), float(p.max_open_positions), "max_positions_reached")


def per_trade(f: Facts, p: GovernorParams) -> Checked:
    """4: the plan's notional."""
    if f.notional_usd is None:
        return NOT_APPLICABLE
    return _within(f.notional_usd, p.max_notional_per_trade_usd, "notional_per_trade_exceeded")


def total(f: Facts, p: GovernorParams) -> Checked:
    """4: all positions and outstanding opens, and the plan."""
    totals, book = f.inputs.totals, f.inputs.book
    if book is None:
        return UNREADABLE
    if isinstance(totals, Unusable) or f.notional_usd is None:
        return NOT_APPLICABLE
    after = totals.value.notional_usd + book.usd + f.notional_usd
    return _within(after, p.max_total_notional_usd, "total_notional_exceeded")


def known(f: Facts, _: GovernorParams) -> Checked:
    """4: without position, portfolio and price the caps cannot be decided, and nothing is permitted."""
    if f.position_qty is None or isinstance(f.inputs.totals, Unusable):
        return Checked(_BLOCK, "position_unknown")
    return PASS if f.notional_usd is not None else Checked(_BLOCK, "price_unknown")


def daily(f: Facts, p: GovernorParams) -> Checked:
    """5: what was closed today; a full close, and any close in an emergency, passes and is counted."""
    use = f.inputs.usage
    if use is None:
        return UNREADABLE
    score = f.inputs.plan.kill_score  # its own: what stands for none is for opens
    emergency = f.inputs.kill is not _OFF or (score is not None and score >= p.kill_score_critical)
    if f.notional_usd is not None:
        after, limit = use.day_usd + f.notional_usd, p.max_reduce_notional_per_day_usd
    else:
        after, limit = use.day_qty + f.order.qty, p.max_reduce_qty_per_day
    if f.inputs.plan.action == FULL_CLOSE or emergency:
        return Checked(_PASS, "", after, limit, None)
    midnight = (f.inputs.now_us // (DAY_S * US) + 1) * DAY_S * US
    alone = f.notional_usd if f.notional_usd is not None else f.order.qty
    return _within(after, limit, "daily_limit_exceeded", midnight if alone <= limit else None)


CHECKS: Mapping[str, Callable[[Facts, GovernorParams], Checked]] = {
    "-1": kill_switch,
    "plan": plan_itself,
    "hold": hold,
    "0": budget,
    "0.5": allocation_target,
    "1": kill_score,
    "2": hourly,
    "3": burst,
    "4.cooldown": cooldown,
    "4.positions": positions,
    "4.trade": per_trade,
    "4.total": total,
    "4.known": known,
    "5": daily,
}
"""What each row of ``governor_params.GATES`` does."""

ROWS = tuple((gate, CHECKS[gate.gate]) for gate in GATES)
"""Policy and mechanism side by side, in the order of the verdict."""
