"""What budgets, attributions, efficiencies and proposals hang on: their knobs, out of their records.

An input that is not there has no knob. Allocation has a module of its own. Source: the project's rules, section 8.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from quantum_alloc.core.allocation import (
    Attribution,
)
from quantum_alloc.core.attribution import advance as attribute_fill
from quantum_alloc.core.budget import BudgetParams, budget, stress_factor
from quantum_alloc.core.efficiency import AllocationTarget, EfficiencyDecision, efficiency_step
from quantum_alloc.core.efficiency import advance as efficiency_fill
from quantum_alloc.core.execution import Execution
from quantum_alloc.core.fields import Fields
from quantum_alloc.core.flips import USD_MAX, Knob, Outcome, age_knob, replaced
from quantum_alloc.core.numeric import clamp, clamp01
from quantum_alloc.core.params import from_json
from quantum_alloc.core.proposal import Efficiency, ProposalDecision, multiplier, propose
from quantum_alloc.core.reading import Fresh
from quantum_alloc.core.record_flow import attribution_inputs, efficiency_inputs, proposal_inputs


def budget_knobs(record: Fields) -> tuple[Knob, ...]:
    """What a budget hangs on.

    Args:
        record: fields of a budget hash, as text.

    Raises:
        ValueError, KeyError: not a budget of these rules.
    """
    params: BudgetParams = from_json(BudgetParams, record["params"])
    names = ("equity_usd", "portfolio_heat", "cluster_stress", "vol_regime")
    given = {name: float(record[name]) for name in names}

    def bound(name: str, x: float) -> str:
        v = {**given, name: x}
        equity = v["equity_usd"]
        stress = stress_factor(v["portfolio_heat"], v["cluster_stress"], v["vol_regime"], params)
        raw = equity * params.base_risk_pct * (1.0 - stress)
        made = budget(equity, v["portfolio_heat"], v["cluster_stress"], v["vol_regime"], params)
        if made < clamp(raw, params.min_budget_usd, params.max_budget_usd):
            return "all of equity"
        if raw < params.min_budget_usd:
            return "the floor"
        return "the ceiling" if raw > params.max_budget_usd else "equity x risk x (1 - stress)"

    ranges = {
        "equity_usd": ("USD", 1e-9, USD_MAX),
        "portfolio_heat": ("", 0.0, 1e6),
        "cluster_stress": ("", 0.0, 1.0),
        "vol_regime": ("", 0.0, 1.0),
    }
    return tuple(
        Knob(name, unit, given[name], low, high, {"the budget is": partial(bound, name)})
        for name, (unit, low, high) in ranges.items()
        if low <= given[name] <= high
    )


def attribution_knobs(record: Fields) -> tuple[Knob, ...]:
    """What an attribution hangs on: the PnL of a next execution, and the time since the last one.

    Args:
        record: fields of an attribution record, as text.

    Raises:
        ValueError, KeyError: not a record of these rules.
    """
    state, fills, params = attribution_inputs(record)
    symbol, now = record["symbol"], float(record["now"])
    for fill in fills:
        state = attribute_fill(state, fill, params)

    def sign(pnl_usd: float) -> str:
        score = attribute_fill(state, Execution(symbol, now, pnl_usd), params).alpha_score or 0.0
        return "earning" if score > 0.0 else "losing" if score < 0.0 else "neutral"

    def source(age: float) -> str:
        if age >= params.attribution_max_age_s:
            return "not published"
        return "LKG, at a falling confidence" if age >= params.max_lkg_age_s else "live"

    age, last = float(record["lkg_age_s"]), float(params.attribution_max_age_s)
    return (
        Knob("PnL of a next execution", "USD", 0.0, -USD_MAX, USD_MAX, {"the symbol is": sign}),
        Knob("time since the last execution", "s", age, 0.0, last, {"the attribution is": source}, whole=True),
    )


def efficiency_knobs(record: Fields) -> tuple[Knob, ...]:
    """What an efficiency's pressure hangs on.

    Args:
        record: fields of an efficiency record, as text.

    Raises:
        ValueError, KeyError: not a record of these rules.
    """
    state, inputs, p = efficiency_inputs(record)
    for fill in inputs.fills:
        state = efficiency_fill(state, fill, p)
    inputs = replace(inputs, fills=())

    def pressure(made: EfficiencyDecision) -> str:
        return made.capital_pressure.value

    def attribution_of(changed: Attribution) -> str:
        return pressure(
            efficiency_step(state, replace(inputs, attribution=replaced(inputs.attribution, changed)), p)[1]
        )

    def target_of(changed: AllocationTarget) -> str:
        return pressure(efficiency_step(state, replace(inputs, target=replaced(inputs.target, changed)), p)[1])

    def executed_at(ts: float) -> str:
        return pressure(efficiency_step(replace(state, last_exec_ts=ts), inputs, p)[1])

    knobs = []

    def add(name: str, unit: str, value: float, span: tuple[float, float], outcome: Outcome) -> None:
        knobs.append(Knob(name, unit, value, *span, {"the pressure is": outcome}))

    attribution, target = inputs.attribution.value, inputs.target.value
    if attribution is not None:
        pf, confidence = clamp01(attribution.performance_factor), attribution.confidence
        add("performance factor", "", pf, (0.0, 1.0), lambda x: attribution_of(Attribution(x, confidence)))
        given = 1.0 if confidence is None else confidence
        add("confidence of performance", "", given, (0.0, 1.0), lambda x: attribution_of(Attribution(pf, x)))
    if target is not None:
        usd, sure = target.target_usd, target.confidence
        add("target_usd", "USD", usd, (0.0, USD_MAX), lambda x: target_of(AllocationTarget(x, sure)))
        add("confidence of target", "", sure, (0.0, 1.0), lambda x: target_of(AllocationTarget(usd, x)))
    if state.last_exec_ts is not None and 0.0 <= state.last_exec_ts <= inputs.now:
        add("last_exec_ts", "unix seconds", state.last_exec_ts, (0.0, inputs.now), executed_at)
    flagged = "used, flagged, at half the confidence"
    knobs += age_knob("performance", inputs.attribution, p.stale_s_p30, "used", flagged)
    knobs += age_knob("target", inputs.target, p.stale_s_p29, "used", flagged)
    return tuple(knobs)


def proposal_knobs(record: Fields) -> tuple[Knob, ...]:
    """What a proposal hangs on.

    Args:
        record: fields of a proposal record, as text.

    Raises:
        ValueError, KeyError: not a record of these rules.
    """
    inputs, p = proposal_inputs(record)

    def made(changed: Efficiency) -> ProposalDecision:
        decision = propose(replace(inputs, efficiency=replaced(inputs.efficiency, changed)), p)
        if not isinstance(decision, ProposalDecision):
            raise ValueError(f"the record's base target cannot be used: {decision.reason}")
        return decision

    def direction(x: Efficiency) -> str:
        factor = made(x).multiplier
        return "is raised" if factor > 1.0 else "is lowered" if factor < 1.0 else "stays"

    def held(x: Efficiency) -> str:
        d = made(x)
        if d.reason.value != "ok" or multiplier(x.score, p) != d.multiplier:
            return "1"
        return _clamped_multiplier(p.base + p.scale * (x.score - 0.5), p.min_mult, p.max_mult)

    def reason(x: Efficiency) -> str:
        return made(x).reason.value

    knobs = []
    if isinstance(inputs.efficiency, Fresh):
        known = inputs.efficiency.value

        def of_score(read: Callable[[Efficiency], str]) -> Outcome:
            return lambda x: read(Efficiency(x, known.confidence))

        def of_confidence(read: Callable[[Efficiency], str]) -> Outcome:
            return lambda x: read(Efficiency(known.score, x))

        by_score = {"the target": of_score(direction), "the multiplier is": of_score(held)}
        knobs.append(Knob("efficiency score", "", known.score, 0.0, 1.0, by_score))
        by_confidence = {"the reason is": of_confidence(reason)}
        knobs.append(Knob("confidence of efficiency", "", known.confidence, 0.0, 1.0, by_confidence))
    knobs += age_knob("efficiency", inputs.efficiency, p.stale_s, "looked at", "too old, and the multiplier is 1")
    knobs += age_knob("base target", inputs.base_target_usd, p.base_stale_s, "used", "too old, and nothing is proposed")
    return tuple(knobs)


def _clamped_multiplier(x: float, low: float, high: float) -> str:
    return "at its smallest" if x <= low else "at its greatest" if x >= high else "base + scale x (score - 0.5)"
