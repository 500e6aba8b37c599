"""What became of a permit as flat text, and back: enough to make it again bit for bit.

    inputs   JSON: the permit's terms, the clock, the kill switch, what was held, and the price as [state, ts, value]

Source: the project's rules, section 8, and contract, "Governor state" (``quantum:stream:apply.result``).
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

from quantum_alloc.core.account import Held
from quantum_alloc.core.apply import RULES_VERSION, Application, ApplyInputs, ApplyParams, Terms, apply_permit
from quantum_alloc.core.fields import Fields, compact, number
from quantum_alloc.core.governor_inputs import Kill
from quantum_alloc.core.limits import US
from quantum_alloc.core.params import changed_json, config_hash, restored
from quantum_alloc.core.plan import Side
from quantum_alloc.core.reading import Fresh, Reading, Reason, Unusable, age_s


def _held(h: Held) -> list[Any]:
    return [h.qty, h.entry_price_usd, h.opened_us, h.next_open_us, h.last_fill_us, h.opens_us]


def _read_held(told: list[Any]) -> Held:
    qty, entry, opened_us, next_open_us, last_us, opens_us = told
    return Held(qty, entry, opened_us, next_open_us, last_us, tuple(opens_us))


def _inputs_json(i: ApplyInputs) -> str:
    t, price = i.terms, i.price_usd
    terms: list[Any] | None = None
    if t is not None:
        side = None if t.side is None else t.side.value
        terms = [t.qty, t.notional_usd, side, t.reduce_only, t.apply_mode, t.dry_run, t.downsizes, t.factor]
        terms += [t.extra_cooldown_s, t.decision_id, t.limits]
    told: dict[str, Any] = {
        "now_us": i.now_us,
        "until_us": i.until_us,
        "kill": i.kill.value,
        "terms": terms,
        "held": _held(i.held),
        "price": [price.state, price.ts, price.value],
        "there": i.is_there,
    }
    return compact(told)


@lru_cache(maxsize=8)
def _named(params: ApplyParams) -> tuple[str, str]:
    """Hash and changed parameters, worked out once."""
    return config_hash(params), changed_json(params)


def apply_fields(made: Application, params: ApplyParams) -> dict[str, str]:
    """A permit's fate as flat text.

    Args:
        made: the fate.
        params: the numbers of the apply layer.
    """
    done = made.trade
    digest, changed = _named(params)
    side = "" if done is None else (Side.BUY if done.qty > 0.0 else Side.SELL).value
    return {
        "plan_id": made.inputs.plan_id,
        "symbol": made.inputs.symbol,
        "decision": "EXECUTE",
        "executed": "true" if done is not None else "false",
        "error": "" if done is not None else made.reason.value,
        "consumed": "1" if made.is_consumed else "0",
        "fate": made.fate.value,
        "side": side,
        "filled_qty": number(None if done is None else abs(done.qty)),
        "price": number(None if done is None else done.price_usd),
        "fee_usd": number(None if done is None else done.fee_usd),
        "pnl_usd": number(None if done is None else done.pnl_usd),
        "factor": number(made.factor),
        "position_after": number(made.held.qty),
        "entry_after": number(made.held.entry_price_usd),
        "held_after": compact(_held(made.held)),
        "decision_id": "" if made.inputs.terms is None else made.inputs.terms.decision_id,
        "now": number(made.inputs.now_us / US),
        "inputs": _inputs_json(made.inputs),
        "rules": RULES_VERSION,
        "params_hash": digest,
        "params": changed,
    }


def _price(told: list[Any], now: float) -> Reading[float]:
    state, ts, value = told
    age = None if ts is None else age_s(ts, now)
    if state != "ok":
        return Unusable(Reason(state), value, ts, age)
    if value is None or age is None:
        raise ValueError("the record says that a price was read, but holds no value or time")
    return Fresh(value, ts, age)


def apply_inputs(record: Fields) -> ApplyInputs:
    """The inputs that a record holds.

    Args:
        record: fields of an entry of ``quantum:stream:apply.result``, as text.

    Raises:
        ValueError, KeyError, TypeError: not a record of these rules.
    """
    told = json.loads(record["inputs"])
    terms = None
    if told["terms"] is not None:
        qty, usd, side, reduces, mode, dry_run, downsizes, factor, extra_s, decision_id, limits = told["terms"]
        of = None if side is None else Side(side)
        cooldown_s, burst, hour = limits
        three = (cooldown_s, burst, hour)
        terms = Terms(qty, usd, of, reduces, mode, dry_run, downsizes, factor, extra_s, decision_id, three)
    return ApplyInputs(
        record["plan_id"],
        record["symbol"],
        terms,
        told["now_us"],
        told["until_us"],
        Kill(told["kill"]),
        _read_held(told["held"]),
        _price(told["price"], told["now_us"] / US),
        told["there"],
    )


def apply_params(record: Fields) -> ApplyParams:
    """The parameters that a record was made with.

    Args:
        record: fields of an entry of ``quantum:stream:apply.result``, as text.

    Raises:
        ValueError, KeyError: not a record of these rules.
    """
    params: ApplyParams = restored(ApplyParams, record["params"], record["params_hash"])
    return params


def applied(record: Fields) -> Application:
    """The same fate, made again from its record.

    Args:
        record: fields of an entry of ``quantum:stream:apply.result``, as text.

    Raises:
        ValueError, KeyError, TypeError: not a record of these rules.
    """
    try:
        return apply_permit(apply_inputs(record), apply_params(record))
    except (ArithmeticError, RecursionError) as error:
        raise ValueError("the record's numbers, or its JSON, are of no record of these rules") from error
