"""A governor's verdict as flat text, and back: enough to make it again bit for bit.

    gates    JSON, a row a gate in the order of the verdict: [gate, outcome, reason, observed, limit, margin], what is
             empty at the end left out
    inputs   JSON: the plan, the clock, and every reading as [state, ts, value]

Source: the project's rules, section 8.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeVar

from quantum_alloc.core.fields import Fields, compact, number
from quantum_alloc.core.gates import Checked
from quantum_alloc.core.governor import evaluate
from quantum_alloc.core.governor_inputs import Holding, Inputs, Kill, Limit, Totals
from quantum_alloc.core.governor_params import GATES, RULES_VERSION, GovernorParams
from quantum_alloc.core.limits import US, BookUse, Usage
from quantum_alloc.core.params import changed_json, config_hash, restored
from quantum_alloc.core.plan import Plan, Side
from quantum_alloc.core.proposal import Efficiency
from quantum_alloc.core.reading import Fresh, Lane, Reading, Reason, Unusable, age_s, shown
from quantum_alloc.core.verdicts import Block, Permit

T = TypeVar("T")
NAMES = tuple(gate.gate for gate in GATES)


@lru_cache(maxsize=8)
def named(params: GovernorParams) -> tuple[str, str]:
    """The parameters that differ from their defaults as JSON, and the hash of all.

    Args:
        params: the numbers of the governor.
    """
    return changed_json(params), config_hash(params)


def _reading(reading: Reading[T], of: Callable[[T], Any]) -> list[Any]:
    value = shown(reading)
    return [reading.state, reading.ts, None if value is None else of(value)]


def _read(told: list[Any], now: float, of: Callable[[Any], T]) -> Reading[T]:
    state, ts, raw = told
    value = None if raw is None else of(raw)
    age = None if ts is None else age_s(ts, now)
    if state != "ok":
        kept = value if state == Reason.STALE else None
        return Unusable(Reason(state), kept, ts, age, shown=value if state == Reason.FUTURE else None)
    if value is None or ts is None or age is None:
        raise ValueError("the record says that an input was read, but holds no value or time")
    return Fresh(value, ts, age)


def _same(value: Any) -> Any:
    return value


def _limit(value: Limit) -> list[Any]:
    return [value.usd, value.mode, value.confidence]


def inputs_json(i: Inputs) -> str:
    """Everything that a verdict is made from, as JSON.

    Args:
        i: of one plan.
    """
    plan, use, book = i.plan, i.usage, i.book
    order: tuple[Any, ...] = (plan.side, plan.qty, plan.price_usd, plan.kill_score, plan.reduce_only)
    told: dict[str, Any] = {
            "now_us": i.now_us,
            "kill": i.kill.value,
            "hold": (i.hold, i.hold_until_us),
            "plan": (plan.action, plan.ts, *order, plan.flaw, plan.content),
            "position": _reading(i.position, lambda p: [p.qty, p.mark_usd]),
            "market": _reading(i.market_usd, _same),
            "target": _reading(i.target, _limit),
            "budget": _reading(i.budget, _limit),
            "violation": _reading(i.violation_usd, _same),
            "usage": None if use is None else [use.opens_us, use.closes_us, use.last_us, use.day_usd, use.day_qty],
            "totals": _reading(i.totals, lambda t: [t.notional_usd, t.count]),
            "book": None if book is None else [book.usd, book.slots, book.symbol_usd, book.has_slot],
            "efficiency": _reading(i.efficiency, lambda e: [e.score, e.confidence]),
            "lane": i.eff_lane.value,
        }  # fmt: skip
    return compact(told)


def gates_json(checks: tuple[Checked, ...]) -> str:
    """The gate vector as JSON.

    Args:
        checks: in the order of the verdict.
    """
    return f"[{','.join(map(_row, NAMES, checks))}]"


def _row(gate: str, c: Checked) -> str:
    if c.observed is None and c.limit is None:
        return _bare(gate, c.outcome, c.reason)
    return f"{_opened(gate, c.outcome, c.reason)},{compact((c.observed, c.limit, c.margin))[1:]}"


@lru_cache(maxsize=512)
def _bare(gate: str, outcome: str, reason: str) -> str:
    return compact([gate, outcome, reason] if reason else [gate, outcome])


@lru_cache(maxsize=512)
def _opened(gate: str, outcome: str, reason: str) -> str:
    return compact([gate, outcome, reason])[:-1]


def governor_fields(made: Permit | Block, params: GovernorParams) -> dict[str, str]:
    """A verdict as flat text.

    Args:
        made: the verdict.
        params: the numbers of the governor.
    """
    changed, digest = named(params)
    fields = {
        "plan_id": made.plan.plan_id,
        "symbol": made.plan.symbol,
        "action": made.plan.action,
        "apply_mode": params.apply_mode,
        "decision_id": made.decision_id,
        "now": number(made.inputs.now_us / US),
        "gates": gates_json(made.checks),
        "inputs": inputs_json(made.inputs),
        "rules": RULES_VERSION,
        "params_hash": digest,
        "params": changed,
    }
    if isinstance(made, Permit):
        return {
            **fields,
            "reason": "ok",
            "movement": made.movement.value,
            "side": "" if made.side is None else made.side.value,
            "computed_qty": number(made.computed_qty),
            "computed_notional": number(made.computed_notional_usd),
            "eff_action": made.hint.action.value,
            "eff_factor": number(made.hint.factor),
            "eff_reason": made.hint.reason.value,
        }
    return {
        **fields,
        "reason": made.reason,
        "gate": made.gate,
        "observed": number(made.observed),
        "limit": number(made.limit),
        "retry_after_s": number(made.retry_after_s),
        "detail": made.detail,
    }


def governor_inputs(record: Fields) -> Inputs:
    """The inputs that a record holds.

    Args:
        record: fields of a PERMIT or BLOCK event, as text.

    Raises:
        ValueError, KeyError, TypeError: not a record of these rules.
    """
    told = json.loads(record["inputs"])
    now = told["now_us"] / US
    action, ts, side, qty, price, score, reduce_only, flaw, content = told["plan"]
    plan = Plan(
        record["plan_id"],
        record["symbol"],
        action,
        ts,
        None if side is None else Side(side),
        qty,
        price,
        score,
        reduce_only,
        flaw,
        content,
    )
    use, book = told["usage"], told["book"]
    hold, hold_until_us = told["hold"]
    return Inputs(
        plan,
        told["now_us"],
        Kill(told["kill"]),
        hold,
        hold_until_us,
        _read(told["position"], now, lambda v: Holding(*v)),
        _read(told["market"], now, _same),
        _read(told["target"], now, lambda v: Limit(*v)),
        _read(told["budget"], now, lambda v: Limit(*v)),
        _read(told["violation"], now, _same),
        None if use is None else Usage(tuple(use[0]), tuple(use[1]), *use[2:]),
        _read(told["totals"], now, lambda v: Totals(*v)),
        None if book is None else BookUse(*book),
        _read(told["efficiency"], now, lambda v: Efficiency(*v)),
        Lane(told["lane"]),
    )


def governor_params(record: Fields) -> GovernorParams:
    """The parameters that a record was made with.

    Args:
        record: fields of a PERMIT or BLOCK event, as text.

    Raises:
        ValueError, KeyError: not a record of these rules.
    """
    params: GovernorParams = restored(GovernorParams, record["params"], record["params_hash"])
    return params


def governed(record: Fields) -> Permit | Block:
    """The same verdict, made again from its record.

    Args:
        record: fields of a PERMIT or BLOCK event, as text.

    Raises:
        ValueError, KeyError, TypeError: not a record of these rules.
    """
    return evaluate(governor_inputs(record), governor_params(record))
