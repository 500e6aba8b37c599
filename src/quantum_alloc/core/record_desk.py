"""A decision of the desk as one field of its plan's entry, and back: enough to make it again bit for bit.

    desk     JSON: rules, reason, everything that was read, readings as [state, ts, value, detail], parameters

Source: the project's rules, section 8.
"""

from __future__ import annotations

import json
from typing import Any

from quantum_alloc.core.desk import RULES_VERSION, DeskDecision, DeskInputs, DeskParams, LastPlan, propose_plan
from quantum_alloc.core.fields import Fields, compact
from quantum_alloc.core.limits import US, Usage
from quantum_alloc.core.params import changed_json, config_hash, restored
from quantum_alloc.core.reading import Fresh, Reading, Reason, Unusable, age_s, shown


def desk_fields(decision: DeskDecision, params: DeskParams) -> dict[str, str]:
    """What makes a decision again, as one field of the plan's entry: JSON, readings as [state, ts, value, detail].

    Args:
        decision: with a plan or without.
        params: the numbers that it was made with.
    """
    i = decision.inputs
    use, last, target = i.usage, i.last, i.target
    detail = target.detail if isinstance(target, Unusable) else ""
    told = {
        "rules": RULES_VERSION,
        "reason": decision.reason.value,
        "symbol": i.symbol,
        "now_us": i.now_us,
        "closes": i.closes,
        "bar_ts": i.bar_ts,
        "extreme_usd": i.extreme_usd,
        "qty": i.qty,
        "mark_usd": i.mark_usd,
        "target": (target.state, target.ts, shown(target), detail),
        "sigma": i.sigma,
        "drawdown": i.drawdown,
        "usage": None if use is None else (use.opens_us, use.closes_us, use.last_us, use.day_usd, use.day_qty),
        "next_open_ts": i.next_open_ts,
        "last": None if last is None else (last.bar_ts, last.unanswered_us),
        "params_hash": config_hash(params),
        "params": json.loads(changed_json(params)),
    }
    return {"desk": compact(told)}


def _read(told: list[Any], now: float) -> Reading[float]:
    state, ts, value, detail = told
    if state == "ok":
        return Fresh(value, ts, age_s(ts, now))
    reason = Reason(state)
    graded = reason in (Reason.STALE, Reason.FUTURE)
    return Unusable(
        reason,
        value if reason is Reason.STALE else None,
        ts,
        age_s(ts, now) if graded else None,
        detail,
        shown=value if reason is Reason.FUTURE else None,
    )


def desk_again(fields: Fields) -> DeskDecision:
    """The same decision, made again from its record.

    Args:
        fields: of a plan's entry, as text; only ``desk`` is looked at.

    Raises:
        ValueError, KeyError, TypeError: not a record of these rules.
    """
    told = json.loads(fields["desk"])
    if told["rules"] != RULES_VERSION:
        raise ValueError(f"the record is of the rules {told['rules']}, not {RULES_VERSION}")
    use, last = told["usage"], told["last"]
    inputs = DeskInputs(
        told["symbol"],
        told["now_us"],
        tuple(told["closes"]),
        told["bar_ts"],
        told["extreme_usd"],
        told["qty"],
        told["mark_usd"],
        _read(told["target"], told["now_us"] / US),
        told["sigma"],
        told["drawdown"],
        None if use is None else Usage(tuple(use[0]), tuple(use[1]), *use[2:]),
        told["next_open_ts"],
        None if last is None else LastPlan(*last),
    )
    return propose_plan(inputs, desk_params(fields))


def desk_params(fields: Fields) -> DeskParams:
    """The parameters that a record was made with.

    Args:
        fields: of a plan's entry, as text; only ``desk`` is looked at.

    Raises:
        ValueError, KeyError, TypeError: not a record of these rules.
    """
    told = json.loads(fields["desk"])
    params: DeskParams = restored(DeskParams, json.dumps(told["params"]), told["params_hash"])
    return params
