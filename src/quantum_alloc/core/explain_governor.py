"""What a verdict of the governor hangs on: its knobs, out of its record.

Each knob is one number of the plan or of its inputs; the outcome is PERMIT or BLOCK. Where several gates block, no
single number may turn the verdict: then there is no turn to show, and the margins of the blocking gates tell the rest.
Source: the project's rules, section 8.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from quantum_alloc.core.fields import Fields
from quantum_alloc.core.flips import USD_MAX, Knob, replaced
from quantum_alloc.core.governor import evaluate
from quantum_alloc.core.governor_inputs import Inputs
from quantum_alloc.core.governor_params import GovernorParams
from quantum_alloc.core.limits import BUDGET_STALE_S, MARKET_STALE_S, PORTFOLIO_STALE_S, TARGET_STALE_S, US
from quantum_alloc.core.reading import Fresh, grade
from quantum_alloc.core.record_governor import governor_inputs, governor_params
from quantum_alloc.core.verdicts import Permit

SMALLEST = 1e-12


def governor_knobs(record: Fields) -> tuple[Knob, ...]:
    """What a verdict hangs on.

    Args:
        record: fields of a PERMIT or BLOCK event, as text.

    Raises:
        ValueError, KeyError, TypeError: not a record of these rules.
    """
    i, p = governor_inputs(record), governor_params(record)
    knobs: list[Knob] = []

    def knob(name: str, unit: str, value: float | None, low: float, high: float, of: Callable[[float], Inputs]) -> None:
        if value is not None and low <= value <= high:
            knobs.append(Knob(name, unit, value, low, high, {"the plan gets": lambda x: _verdict(of(x), p)}))

    plan = i.plan
    low, high = _quantities(i)
    knob("quantity", "", plan.qty, low, high, lambda x: replace(i, plan=replace(plan, qty=x)))
    knob("price", "USD", plan.price_usd, SMALLEST, USD_MAX, lambda x: replace(i, plan=replace(plan, price_usd=x)))
    knob("kill score", "", plan.kill_score, 0.0, USD_MAX, lambda x: replace(i, plan=replace(plan, kill_score=x)))
    if isinstance(i.position, Fresh):
        held = i.position.value
        knob("position's mark", "USD", held.mark_usd, SMALLEST, USD_MAX,
             lambda x: replace(i, position=replaced(i.position, replace(held, mark_usd=x))))  # fmt: skip
    knob("market price", "USD", i.market_usd.value, SMALLEST, USD_MAX,
         lambda x: replace(i, market_usd=replaced(i.market_usd, x)))  # fmt: skip
    for name in ("target", "budget"):
        _limit_knob(knob, name, i)
    if isinstance(i.totals, Fresh):
        totals = i.totals.value
        knob("notional of all positions", "USD", totals.notional_usd, 0.0, USD_MAX,
             lambda x: replace(i, totals=replaced(i.totals, replace(totals, notional_usd=x))))  # fmt: skip
    if i.book is not None:
        book = i.book
        knob("outstanding opens", "USD", book.usd, 0.0, USD_MAX, lambda x: replace(i, book=replace(book, usd=x)))
        knob("outstanding opens of the symbol", "USD", book.symbol_usd, 0.0, USD_MAX,
             lambda x: replace(i, book=replace(book, symbol_usd=x)))  # fmt: skip
    if i.usage is not None:
        use = i.usage
        knob("closed today", "USD", use.day_usd, 0.0, USD_MAX, lambda x: replace(i, usage=replace(use, day_usd=x)))
    for name, limit_s in (
        ("position", p.position_max_age_s), ("market_usd", MARKET_STALE_S), ("target", TARGET_STALE_S),
        ("budget", BUDGET_STALE_S), ("totals", PORTFOLIO_STALE_S),
    ):  # fmt: skip
        knobs += _age_knob(name, limit_s, i, p)
    return tuple(knobs)


def _age_knob(name: str, limit_s: int, i: Inputs, p: GovernorParams) -> list[Knob]:
    """The age of an input that could be read, fresh or not, on the verdict."""
    reading = getattr(i, name)
    if reading.value is None or reading.age_s is None or reading.age_s < 0:
        return []

    def of(age_s: float) -> Inputs:
        changed: Any = grade(reading.value, math.floor(i.now_us / US) - age_s, i.now_us / US, limit_s)
        return replace(i, **{name: changed})

    shown = {"market_usd": "market price", "totals": "portfolio"}.get(name, name)
    high = max(float(limit_s) + 1.0, float(reading.age_s))
    outcomes = {"the plan gets": lambda x: _verdict(of(x), p)}
    return [Knob(f"age of {shown}", "s", float(reading.age_s), 0.0, high, outcomes, whole=True)]


def _quantities(i: Inputs) -> tuple[float, float]:
    """Between which quantities the plan stays what it is: an open, or an order that only reduces."""
    plan, held = i.plan, abs(i.position.value.qty) if isinstance(i.position, Fresh) else 0.0
    against = isinstance(i.position, Fresh) and plan.side is not None and i.position.value.qty * plan.side.sign < 0.0
    if plan.closes or not against or plan.qty is None:
        return SMALLEST, USD_MAX
    return (SMALLEST, held) if plan.qty <= held else (math.nextafter(held, math.inf), USD_MAX)


def _limit_knob(knob: Callable[..., None], name: str, i: Inputs) -> None:
    reading = getattr(i, name)
    if not isinstance(reading, Fresh):
        return
    limit: Any = reading.value

    def of(x: float) -> Inputs:
        changed = replaced(reading, replace(limit, usd=x))
        return replace(i, target=changed) if name == "target" else replace(i, budget=changed)

    knob(name, "USD", limit.usd, 0.0, USD_MAX, of)


def _verdict(inputs: Inputs, params: GovernorParams) -> str:
    return "PERMIT" if isinstance(evaluate(inputs, params), Permit) else "BLOCK"
