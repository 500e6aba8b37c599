"""Decision records: every decision as flat text, from which it can be made again bit for bit.

A cycle record holds what all symbols share, once: portfolio, regime, parameters, ``now``, the sum of every group
before its cap. A decision record holds the symbol's own inputs with their times and reasons, every factor, the caps,
and the outcome. The records of attribution, efficiency and proposal (``core.record_flow``) stand alone. ``recompute``
reads the inputs of a record and decides anew; ``differences`` names the fields
in which the record and the new decision are not the same text. Floats are written so that they read back bit for bit.

Source: the project's rules, section 8.
"""

from __future__ import annotations

import hashlib
import json
from typing import overload

from quantum_alloc.core.allocation import (
    RULES_VERSION,
    AllocationDecision,
    Attribution,
    Proposal,
    Regime,
    SharedInputs,
    Skipped,
    SymbolInputs,
    allocate,
    group_of,
)
from quantum_alloc.core.caps import AllocationCycle
from quantum_alloc.core.factors import AllocationParams
from quantum_alloc.core.fields import Fields, number, optional, read_state, state_fields
from quantum_alloc.core.params import config_hash, from_json, to_json
from quantum_alloc.core.portfolio import Portfolio
from quantum_alloc.core.reading import Lane, Reading, missing
from quantum_alloc.core.record_flow import FlowDecision, again, flow_differences

_EARLIER = {"attribution_lane": Lane.LIVE.value}
"""What records of earlier versions did not say, because there was only one answer."""
EFFECT_FIELDS = ("mode", "cycle_id")
"""Fields that say what was done with a decision, not what was decided."""


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
        **state_fields("portfolio", shared.portfolio),
        "regime": regime.name if regime else "",
        "regime_confidence": number(regime.confidence if regime else None),
        **state_fields("regime", shared.regime),
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


def _proposal_fields(decision: AllocationDecision) -> dict[str, str]:
    inputs, proposal = decision.inputs, decision.inputs.proposal.value
    return {
        "proposed_factor": number(decision.proposed_factor),
        "proposal_multiplier": number(proposal.multiplier if proposal else None),
        "proposal_reason": proposal.reason if proposal else "",
        **state_fields("proposal", inputs.proposal),
        "proposal_lane": inputs.proposal_lane.value,
        "proposal_prior": number(inputs.proposal_prior),
    }


def decision_fields(
    decision: AllocationDecision, cycle_id: str, mode: str, params: AllocationParams | None = None
) -> dict[str, str]:
    """One symbol's allocation decision as flat text.

    Args:
        decision: the decision.
        cycle_id: of its cycle record.
        mode: ``shadow`` or ``enforce``.
        params: those of its cycle; they say whether a proposal was looked at.
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
        **state_fields("budget", inputs.budget_usd),
        "stress": number(inputs.stress.value),
        **state_fields("stress", inputs.stress),
        "attribution_factor": number(attribution.performance_factor if attribution else None),
        "attribution_confidence": number(attribution.confidence if attribution else None),
        **state_fields("attribution", inputs.attribution),
        "attribution_lane": inputs.attribution_lane.value,
        **(_proposal_fields(decision) if params is not None and params.use_proposed else {}),
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
    now, equity = float(cycle["now"]), optional(cycle["equity_usd"])
    portfolio = None if equity is None else Portfolio(equity, optional(cycle["drawdown"]))
    regime = Regime(cycle["regime"], optional(cycle["regime_confidence"])) if cycle["regime"] else None
    return SharedInputs(
        now,
        read_state("portfolio", cycle, now, portfolio),
        read_state("regime", cycle, now, regime),
        cycle["clusters_readable"] == "1",
    )


def symbol_inputs(decision: Fields, now: float) -> SymbolInputs:
    """The symbol's own inputs that a decision record holds.

    Args:
        decision: the fields of a decision record.
        now: the cycle's clock, unix seconds.
    """
    factor = optional(decision["attribution_factor"])
    attribution = None if factor is None else Attribution(factor, optional(decision["attribution_confidence"]))
    proposed: Reading[Proposal] = missing()
    if "proposal_state" in decision:
        multiplier = optional(decision["proposal_multiplier"])
        proposal = None if multiplier is None else Proposal(multiplier, decision["proposal_reason"])
        proposed = read_state("proposal", decision, now, proposal)
    return SymbolInputs(
        decision["symbol"],
        read_state("budget", decision, now, float(decision["base_usd"])),
        decision["cluster_id"],
        read_state("stress", decision, now, optional(decision["stress"])),
        read_state("attribution", decision, now, attribution),
        Lane(decision.get("attribution_lane", _EARLIER["attribution_lane"])),
        proposed,
        Lane(decision.get("proposal_lane", Lane.LIVE)),
        float(decision.get("proposal_prior", 1.0)),
    )


@overload
def recompute(cycle: Fields, decision: Fields, /) -> AllocationDecision: ...
@overload
def recompute(record: Fields, /) -> FlowDecision: ...
def recompute(*records: Fields) -> AllocationDecision | FlowDecision:
    """The same decision, made again from its record.

    Args:
        records: fields as text. Of an allocation the cycle record and the decision record; of an attribution, an
            efficiency, a proposal, a regime, a verdict of the governor or a fate of a permit its one record.

    Returns:
        The decision; its fields are those of the record, bit for bit.

    Raises:
        ValueError, KeyError: not the records of a decision of these rules.

    >>> from quantum_alloc.core.caps import allocate_portfolio
    >>> from quantum_alloc.core.reading import fresh
    >>> shared = SharedInputs(0.0, fresh(Portfolio(100_000.0, 0.2)), fresh(Regime("CHOP", 0.9)))
    >>> made = allocate_portfolio([SymbolInputs("BTCUSDT", fresh(1820.93), "C1", fresh(0.9))], shared)
    >>> top = cycle_fields(made, "shadow")
    >>> record = decision_fields(made.decisions[0], top["cycle_id"], "shadow")
    >>> recompute(top, record) == made.decisions[0]
    True
    """
    if len(records) == 1:
        return again(records[0])
    return _allocation(*records)


def _allocation(cycle: Fields, decision: Fields) -> AllocationDecision:
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


def differences(*records: Fields) -> dict[str, tuple[str, str]]:
    """Where a record and its recomputation differ: field -> (in the record, recomputed); empty when they agree.

    Args:
        records: as ``recompute`` takes them; fields that are not of the record are not looked at.
    """
    if len(records) == 1:
        return flow_differences(records[0])
    cycle, decision = records
    params: AllocationParams = from_json(AllocationParams, cycle["params"])
    made = decision_fields(_allocation(cycle, decision), decision["cycle_id"], decision["mode"], params)
    before = {**_EARLIER, **decision}
    return {name: (before.get(name, ""), text) for name, text in made.items() if before.get(name, "") != text}
