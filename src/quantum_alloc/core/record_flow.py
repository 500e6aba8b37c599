"""Decision records of regime, attribution, efficiency and proposal: each stands alone, and is made again from itself.

A regime's record holds the statistic of its bars and not the bars: what was called is made again from the statistic.

    rules, params_hash, params   which rules; params holds what differs from their defaults
    now                          the decision's clock
    before, fills                the state before the cycle's last executions, and these executions, as JSON
    NAME_state, NAME_ts, ...     the readings

An id of a stream entry is in none of them, so that the same inputs give the same record wherever they are read.
Source: the project's rules, section 8, and the contract, section 3.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, TypeAlias

from quantum_alloc.core.allocation import Attribution
from quantum_alloc.core.apply import RULES_VERSION as APPLY_RULES
from quantum_alloc.core.apply import Application, ApplyParams
from quantum_alloc.core.attribution import RULES_VERSION as ATTRIBUTION_RULES
from quantum_alloc.core.attribution import AttributionDecision, AttributionParams, AttributionState, attribute
from quantum_alloc.core.desk import RULES_VERSION as DESK_RULES
from quantum_alloc.core.desk import DeskDecision, DeskParams
from quantum_alloc.core.efficiency import RULES_VERSION as EFFICIENCY_RULES
from quantum_alloc.core.efficiency import (
    AllocationTarget,
    EfficiencyDecision,
    EfficiencyInputs,
    EfficiencyParams,
    EfficiencyState,
    efficiency_step,
)
from quantum_alloc.core.execution import Execution, fills_text, read_fills
from quantum_alloc.core.fields import Fields, compact, number, optional, read_state, state_fields
from quantum_alloc.core.governor_params import RULES_VERSION as GOVERNOR_RULES
from quantum_alloc.core.governor_params import GovernorParams
from quantum_alloc.core.params import changed_json, config_hash, restored
from quantum_alloc.core.proposal import RULES_VERSION as PROPOSAL_RULES
from quantum_alloc.core.proposal import (
    Efficiency,
    ProposalDecision,
    ProposalInputs,
    ProposalParams,
    propose,
)
from quantum_alloc.core.reading import Lane, shown
from quantum_alloc.core.record_apply import applied, apply_fields
from quantum_alloc.core.record_desk import desk_again, desk_fields, desk_params
from quantum_alloc.core.record_governor import governed, governor_fields
from quantum_alloc.core.regime import RULES_VERSION as REGIME_RULES
from quantum_alloc.core.regime import RegimeDecision, RegimeParams, regime_of
from quantum_alloc.core.verdicts import Block, Permit

FlowDecision: TypeAlias = (
    AttributionDecision
    | EfficiencyDecision
    | ProposalDecision
    | RegimeDecision
    | Permit
    | Block
    | Application
    | DeskDecision
)
FlowParams: TypeAlias = (
    AttributionParams | EfficiencyParams | ProposalParams | RegimeParams | GovernorParams | ApplyParams | DeskParams
)


@lru_cache(maxsize=8)
def _named(params: FlowParams) -> tuple[str, str]:
    """Hash and changed parameters, worked out once for all symbols of a cycle."""
    return config_hash(params), changed_json(params)


def _head(rules: str, now: float, params: FlowParams) -> dict[str, str]:
    digest, changed = _named(params)
    return {"rules": rules, "now": number(now), "params_hash": digest, "params": changed}


def _shares(parts: Mapping[str, float]) -> str:
    return compact(dict(parts))


def attribution_fields(decision: AttributionDecision, params: AttributionParams, mode: str) -> dict[str, str]:
    """One symbol's attribution as flat text.

    Args:
        decision: the attribution.
        params: the numbers of P3.0.
        mode: ``shadow`` or ``enforce``.
    """
    return {
        "symbol": decision.symbol,
        "performance_factor": number(decision.performance_factor),
        "alpha_score": number(decision.alpha_score),
        "confidence": number(decision.confidence),
        "window": str(decision.window),
        "source": decision.source.value,
        "lkg_age_s": str(decision.lkg_age_s),
        "last_exec_ts": number(decision.last_exec_ts),
        "regime_contrib": _shares(decision.regime_contrib),
        "cluster_contrib": _shares(decision.cluster_contrib),
        "signal_contrib": _shares(decision.signal_contrib),
        "time_contrib": _shares(decision.time_contrib),
        **_head(ATTRIBUTION_RULES, decision.now, params),
        "before": decision.before.text(),
        "fills": fills_text(decision.fills) if decision.fills else "",
        "mode": mode,
    }


def trace(decision: EfficiencyDecision) -> str:
    """The one-line summary that existing readers take apart.

    Args:
        decision: the efficiency.
    """
    target = decision.target_usd or 0.0
    ok = int(decision.inputs_ok)
    return f"p30_conf={decision.performance_confidence:.2f},p29_tgt={target:.0f},inputs_ok={ok}"


def efficiency_fields(decision: EfficiencyDecision, params: EfficiencyParams, mode: str) -> dict[str, str]:
    """One symbol's efficiency as flat text.

    Args:
        decision: the efficiency.
        params: the numbers of P3.1.
        mode: ``shadow`` or ``enforce``.
    """
    inputs = decision.inputs
    attribution, target = shown(inputs.attribution), shown(inputs.target)
    return {
        "symbol": decision.symbol,
        "efficiency_score": number(decision.efficiency_score),
        "efficiency_raw": number(decision.efficiency_raw),
        "efficiency_ewma": number(decision.efficiency_ewma),
        "capital_pressure": decision.capital_pressure.value,
        "reallocation_weight": number(decision.reallocation_weight),
        "confidence": number(decision.confidence),
        "inputs_ok": str(int(decision.inputs_ok)),
        "stale_flags": ",".join(decision.stale_flags),
        "p30_perf": number(decision.performance),
        "p30_conf": number(decision.performance_confidence),
        "p29_target_usd": number(decision.target_usd),
        "p29_conf": number(decision.target_confidence),
        "volatility_ewma": number(decision.volatility_ewma),
        "dd_proxy": number(decision.dd_proxy),
        "hold_time_penalty": number(decision.hold_time_penalty),
        "trace": trace(decision),
        "lane": decision.lane.value,
        **_head(EFFICIENCY_RULES, inputs.now, params),
        "attribution_factor": number(attribution.performance_factor if attribution else None),
        "attribution_confidence": number(attribution.confidence if attribution else None),
        **state_fields("attribution", inputs.attribution),
        "attribution_lane": inputs.attribution_lane.value,
        "target_usd": number(target.target_usd if target else None),
        "target_confidence": number(target.confidence if target else None),
        **state_fields("target", inputs.target),
        "target_lane": inputs.target_lane.value,
        "before": decision.before.text(),
        "fills": fills_text(inputs.fills) if inputs.fills else "",
        "mode": mode,
    }


def proposal_fields(decision: ProposalDecision, params: ProposalParams, mode: str = "shadow") -> dict[str, str]:
    """One symbol's proposal as flat text.

    Args:
        decision: the proposal.
        params: the numbers of the proposer.
        mode: ``shadow``.
    """
    inputs, efficiency = decision.inputs, decision.efficiency
    return {
        "symbol": decision.symbol,
        "base_target": number(decision.base_target_usd),
        "proposed_target": number(decision.proposed_target_usd),
        "multiplier": f"{decision.multiplier:.4f}",
        "eff_score": number(efficiency.score if efficiency else None),
        "eff_confidence": number(efficiency.confidence if efficiency else None),
        "eff_stale": str(int(decision.eff_stale)),
        "reason": decision.reason.value,
        "eff_lane": inputs.eff_lane.value,
        "base_lane": inputs.base_lane.value,
        **_head(PROPOSAL_RULES, inputs.now, params),
        **state_fields("eff", inputs.efficiency),
        **state_fields("base", inputs.base_target_usd),
        "mode": mode,
    }


def regime_fields(decision: RegimeDecision, params: RegimeParams) -> dict[str, str]:
    """A regime as flat text: the statistic of the bars, and what was made of it.

    Args:
        decision: the regime.
        params: the numbers of the detector.
    """
    return {
        "regime": decision.regime,
        "confidence": number(decision.confidence),
        "z": number(decision.z),
        "variance_ratio": number(decision.variance_ratio),
        "volatility_ratio": number(decision.volatility_ratio),
        "bars": str(decision.bars),
        "gaps": str(decision.gaps),
        "newest_ts": number(decision.newest_ts),
        "symbols": str(decision.symbols),
        **_head(REGIME_RULES, decision.now, params),
    }


def _fills(record: Fields) -> tuple[Execution, ...]:
    return read_fills(record["symbol"], json.loads(record["fills"])) if record["fills"] else ()


def attribution_inputs(record: Fields) -> tuple[AttributionState, tuple[Execution, ...], AttributionParams]:
    """The state before, the executions and the parameters that an attribution's record holds.

    Args:
        record: its fields, as text.

    Raises:
        ValueError, KeyError: not a record of these rules.
    """
    params: AttributionParams = restored(AttributionParams, record["params"], record["params_hash"])
    return AttributionState.of_text(record["symbol"], record["before"]), _fills(record), params


def efficiency_inputs(record: Fields) -> tuple[EfficiencyState, EfficiencyInputs, EfficiencyParams]:
    """The state before, the inputs and the parameters that an efficiency's record holds.

    Args:
        record: its fields, as text.

    Raises:
        ValueError, KeyError: not a record of these rules.
    """
    params: EfficiencyParams = restored(EfficiencyParams, record["params"], record["params_hash"])
    now = float(record["now"])
    factor, target_usd = optional(record["attribution_factor"]), optional(record["target_usd"])
    attribution = None if factor is None else Attribution(factor, optional(record["attribution_confidence"]))
    target = None if target_usd is None else AllocationTarget(target_usd, float(record["target_confidence"]))
    inputs = EfficiencyInputs(
        record["symbol"],
        now,
        read_state("attribution", record, now, attribution),
        read_state("target", record, now, target),
        _fills(record),
        Lane(record["attribution_lane"]),
        Lane(record["target_lane"]),
    )
    return EfficiencyState.of_text(record["before"]), inputs, params


def proposal_inputs(record: Fields) -> tuple[ProposalInputs, ProposalParams]:
    """The inputs and the parameters that a proposal's record holds.

    Args:
        record: its fields, as text.

    Raises:
        ValueError, KeyError: not a record of these rules.
    """
    params: ProposalParams = restored(ProposalParams, record["params"], record["params_hash"])
    now, score = float(record["now"]), optional(record["eff_score"])
    efficiency = None if score is None else Efficiency(score, float(record["eff_confidence"]))
    inputs = ProposalInputs(
        record["symbol"],
        now,
        read_state("base", record, now, float(record["base_target"])),
        read_state("eff", record, now, efficiency),
        Lane(record["base_lane"]),
        Lane(record["eff_lane"]),
    )
    return inputs, params


def _attribution(record: Fields) -> AttributionDecision:
    before, fills, params = attribution_inputs(record)
    _, made = attribute(record["symbol"], before, fills, float(record["now"]), params)
    if made is None:
        raise ValueError("the record's state gives no attribution")
    return made


def _efficiency(record: Fields) -> EfficiencyDecision:
    before, inputs, params = efficiency_inputs(record)
    return efficiency_step(before, inputs, params)[1]


def _proposal(record: Fields) -> ProposalDecision:
    made = propose(*proposal_inputs(record))
    if not isinstance(made, ProposalDecision):
        raise ValueError(f"the record's base target cannot be used: {made.reason}")
    return made


def _regime(record: Fields) -> RegimeDecision:
    params: RegimeParams = restored(RegimeParams, record["params"], record["params_hash"])
    z, ratio = float(record["z"]), float(record["volatility_ratio"])
    return RegimeDecision(
        float(record["now"]),
        *regime_of(z, ratio, params),
        z,
        float(record["variance_ratio"]),
        ratio,
        int(record["bars"]),
        int(record["gaps"]),
        float(record["newest_ts"]),
        int(record["symbols"]),
    )


_KINDS: Mapping[str, Callable[[Fields], FlowDecision]] = {
    ATTRIBUTION_RULES: _attribution,
    EFFICIENCY_RULES: _efficiency,
    PROPOSAL_RULES: _proposal,
    REGIME_RULES: _regime,
    GOVERNOR_RULES: governed,
    APPLY_RULES: applied,
    DESK_RULES: desk_again,
}


def _rules(record: Fields) -> str:
    """Which rules a record is of; a plan of the desk tells that in one field with all the rest."""
    return DESK_RULES if "desk" in record else record["rules"]


def again(record: Fields) -> FlowDecision:
    """The same attribution, efficiency, proposal, regime, verdict or fill, made again from its record.

    Args:
        record: its fields, as text.

    Raises:
        ValueError, KeyError: not a record of these rules.
    """
    if "cycle_id" in record:
        raise ValueError("an allocation decision is made again from two records: its cycle's and its own")
    rules = _rules(record)
    if rules not in _KINDS:
        raise ValueError(f"rules {rules!r} are not known here; this version knows {', '.join(_KINDS)}")
    return _KINDS[rules](record)


_WRITERS: tuple[tuple[Any, Any, Callable[[Any, Any, str], dict[str, str]]], ...] = (
    (AttributionDecision, AttributionParams, attribution_fields),
    (EfficiencyDecision, EfficiencyParams, efficiency_fields),
    (ProposalDecision, ProposalParams, proposal_fields),
    (RegimeDecision, RegimeParams, lambda made, params, _: regime_fields(made, params)),
    ((Permit, Block), GovernorParams, lambda made, params, _: governor_fields(made, params)),
    (Application, ApplyParams, lambda made, params, _: apply_fields(made, params)),
    (DeskDecision, DeskParams, lambda made, params, _: desk_fields(made, params)),
)


def record_of(decision: FlowDecision, params: FlowParams, mode: str) -> dict[str, str]:
    """Any of these decisions as flat text.

    Args:
        decision: of any of these rules.
        params: of its rules.
        mode: ``shadow`` or ``enforce``.
    """
    for decided, numbers, fields in _WRITERS:
        if isinstance(decision, decided) and isinstance(params, numbers):
            return fields(decision, params, mode)
    raise TypeError("the parameters are those of other rules")


_PARAMS: Mapping[str, type[FlowParams]] = {
    ATTRIBUTION_RULES: AttributionParams,
    EFFICIENCY_RULES: EfficiencyParams,
    PROPOSAL_RULES: ProposalParams,
    REGIME_RULES: RegimeParams,
    GOVERNOR_RULES: GovernorParams,
    APPLY_RULES: ApplyParams,
}


def params_of(record: Fields) -> FlowParams:
    """The parameters that a record was made with.

    Args:
        record: its fields, as text.

    Raises:
        ValueError, KeyError: not a record of these rules.
    """
    if _rules(record) == DESK_RULES:
        return desk_params(record)
    params: FlowParams = restored(_PARAMS[record["rules"]], record["params"], record["params_hash"])
    return params


def flow_differences(record: Fields) -> dict[str, tuple[str, str]]:
    """Where a record and its recomputation differ: field -> (in the record, recomputed); empty when they agree.

    Args:
        record: its fields, as text; fields that are not of the record are not looked at.
    """
    made = record_of(again(record), params_of(record), record.get("mode", ""))
    return {name: (record.get(name, ""), text) for name, text in made.items() if record.get(name, "") != text}
