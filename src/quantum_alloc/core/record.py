"""Decision records: every decision as flat text, from which it can be made again bit for bit.

A cycle record holds what all symbols share, once: portfolio, regime, parameters, ``now``, the sum of every group
before its cap. A decision record holds the symbol's own inputs with their times and reasons, every factor, the caps,
and the outcome. ``recompute`` reads the inputs of a pair of records and decides anew; ``differences`` names the fields
in which the record and the new decision are not the same text. Floats are written so that they read back bit for bit.

Source: the project's rules, section 8.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TypeVar

from quantum_alloc.core.allocation import (
    RULES_VERSION,
    AllocationDecision,
    Attribution,
    Regime,
    SharedInputs,
    Skipped,
    SymbolInputs,
    allocate,
    group_of,
)
from quantum_alloc.core.caps import AllocationCycle
from quantum_alloc.core.factors import AllocationParams
from quantum_alloc.core.params import config_hash, from_json, to_json
from quantum_alloc.core.portfolio import Portfolio
from quantum_alloc.core.reading import Fresh, Reading, Reason, Unusable, age_s

T = TypeVar("T")
Fields = Mapping[str, str]
EFFECT_FIELDS = ("mode", "cycle_id")
"""Fields that say what was done with a decision, not what was decided."""


def number(value: float | None) -> str:
    """A float as text that reads back bit for bit; empty for None.

    Args:
        value: a finite float, or None.

    >>> number(1820.93), number(None)
    ('1820.93', '')
    """
    return "" if value is None else repr(float(value))


def _optional(text: str) -> float | None:
    return None if text == "" else float(text)


def _write(prefix: str, reading: Reading[T]) -> dict[str, str]:
    return {f"{prefix}_state": reading.state, f"{prefix}_ts": number(reading.ts)}


def _read(prefix: str, fields: Fields, now: float, value: T | None) -> Reading[T]:
    state, ts = fields[f"{prefix}_state"], _optional(fields[f"{prefix}_ts"])
    age = None if ts is None else age_s(ts, now)
    if state != "ok":
        return Unusable(Reason(state), value if state == Reason.STALE else None, ts, age)
    if value is None or ts is None or age is None:
        raise ValueError(f"the record says that {prefix} was read, but holds no value or time")
    return Fresh(value, ts, age)


def cycle_fields(cycle: AllocationCycle, mode: str) -> dict[str, str]:
    """What all symbols of an allocation cycle share, as flat text, ``cycle_id`` included.

    Args:
        cycle: a cycle that was not halted.
        mode: ``shadow`` or ``enforce``.

    Returns:
        The fields; ``cycle_id`` is derived from their content, mode left out, never random.
    """
    shared = cycle.shared
    portfolio, regime = shared.portfolio.value, shared.regime.value
    fields = {
        "rules": RULES_VERSION,
        "now": number(shared.now),
        "equity_usd": number(portfolio.equity_usd if portfolio else None),
        "drawdown": number(portfolio.drawdown if portfolio else None),
        **_write("portfolio", shared.portfolio),
        "regime": regime.name if regime else "",
        "regime_confidence": number(regime.confidence if regime else None),
        **_write("regime", shared.regime),
        "clusters_readable": "1" if shared.clusters_readable else "0",
        "group_sums_usd": json.dumps(dict(cycle.group_sums_usd), separators=(",", ":")),
        "params": to_json(cycle.params),
        "params_hash": config_hash(cycle.params),
        "symbols": str(len(cycle.decisions) + len(cycle.skipped)),
        "targets": str(len(cycle.decisions)),
        "skipped": json.dumps({s.symbol: s.reason for s in cycle.skipped}, separators=(",", ":")),
    }
    content = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    return {"cycle_id": hashlib.sha256(content.encode()).hexdigest()[:16], **fields, "mode": mode}


def decision_fields(decision: AllocationDecision, cycle_id: str, mode: str) -> dict[str, str]:
    """One symbol's allocation decision as flat text.

    Args:
        decision: the decision.
        cycle_id: of its cycle record.
        mode: ``shadow`` or ``enforce``.
    """
    inputs, attribution = decision.inputs, decision.inputs.attribution.value
    return {
        "symbol": decision.symbol,
        "target_usd": number(decision.target_usd),
        "weight": number(decision.weight),
        "cluster_id": decision.cluster_id,
        "regime": decision.regime,
        "drawdown_zone": decision.drawdown_zone.value,
        "confidence": number(decision.confidence),
        "base_usd": number(decision.base_usd),
        "regime_factor": number(decision.regime_factor),
        "cluster_factor": number(decision.cluster_factor),
        "drawdown_factor": number(decision.drawdown_factor),
        "performance_factor": number(decision.performance_factor),
        "performance_source": decision.performance_source.value,
        "uncapped_usd": number(decision.uncapped_usd),
        "symbol_cap_usd": number(decision.symbol_cap_usd),
        "cluster_ratio": number(decision.cluster_ratio),
        "bound": decision.bound.value,
        **_write("budget", inputs.budget_usd),
        "stress": number(inputs.stress.value),
        **_write("stress", inputs.stress),
        "attribution_factor": number(attribution.performance_factor if attribution else None),
        "attribution_confidence": number(attribution.confidence if attribution else None),
        **_write("attribution", inputs.attribution),
        "cycle_id": cycle_id,
        "mode": mode,
    }


def shared_inputs(cycle: Fields) -> SharedInputs:
    """The shared inputs that a cycle record holds.

    Args:
        cycle: the fields of a cycle record.

    Raises:
        ValueError, KeyError: not a record of these rules.
    """
    if cycle["rules"] != RULES_VERSION:
        raise ValueError(f"rules {cycle['rules']!r} are not known here; this version knows {RULES_VERSION}")
    now, equity = float(cycle["now"]), _optional(cycle["equity_usd"])
    portfolio = None if equity is None else Portfolio(equity, _optional(cycle["drawdown"]))
    regime = Regime(cycle["regime"], _optional(cycle["regime_confidence"])) if cycle["regime"] else None
    return SharedInputs(
        now,
        _read("portfolio", cycle, now, portfolio),
        _read("regime", cycle, now, regime),
        cycle["clusters_readable"] == "1",
    )


def symbol_inputs(decision: Fields, now: float) -> SymbolInputs:
    """The symbol's own inputs that a decision record holds.

    Args:
        decision: the fields of a decision record.
        now: the cycle's clock, unix seconds.
    """
    factor = _optional(decision["attribution_factor"])
    attribution = None if factor is None else Attribution(factor, _optional(decision["attribution_confidence"]))
    return SymbolInputs(
        decision["symbol"],
        _read("budget", decision, now, float(decision["base_usd"])),
        decision["cluster_id"],
        _read("stress", decision, now, _optional(decision["stress"])),
        _read("attribution", decision, now, attribution),
    )


def recompute(cycle: Fields, decision: Fields) -> AllocationDecision:
    """The same decision, made again from its record.

    Args:
        cycle: fields of the cycle record, as text.
        decision: fields of the decision record, as text.

    Returns:
        The decision; its fields are those of the record, bit for bit.

    Raises:
        ValueError, KeyError: not a pair of records of these rules.

    >>> from quantum_alloc.core.caps import allocate_portfolio
    >>> from quantum_alloc.core.reading import fresh
    >>> shared = SharedInputs(0.0, fresh(Portfolio(100_000.0, 0.2)), fresh(Regime("CHOP", 0.9)))
    >>> made = allocate_portfolio([SymbolInputs("BTCUSDT", fresh(1820.93), "C1", fresh(0.9))], shared)
    >>> top = cycle_fields(made, "shadow")
    >>> record = decision_fields(made.decisions[0], top["cycle_id"], "shadow")
    >>> recompute(top, record) == made.decisions[0]
    True
    """
    if decision["cycle_id"] != cycle["cycle_id"]:
        raise ValueError(f"the decision belongs to cycle {decision['cycle_id']}, not to {cycle['cycle_id']}")
    params: AllocationParams = from_json(AllocationParams, cycle["params"])
    shared = shared_inputs(cycle)
    inputs = symbol_inputs(decision, shared.now)
    group = group_of(inputs, shared, params)
    group_sum = None if group is None else float(json.loads(cycle["group_sums_usd"])[group])
    made = allocate(inputs, shared, params, group_sum)
    if isinstance(made, Skipped):
        raise ValueError(f"the record's budget cannot be used: {made.reason}")
    return made


def differences(cycle: Fields, decision: Fields) -> dict[str, tuple[str, str]]:
    """Where a record and its recomputation differ: field -> (in the record, recomputed); empty when they agree.

    Args:
        cycle: fields of the cycle record.
        decision: fields of the decision record; fields that are not of the record are not looked at.
    """
    again = decision_fields(recompute(cycle, decision), decision["cycle_id"], decision["mode"])
    return {name: (decision.get(name, ""), text) for name, text in again.items() if decision.get(name, "") != text}
