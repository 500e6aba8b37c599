"""What would have to change: the nearest value of each input, on either side, at which an outcome turns.

A knob is one numeric input of a decision and, for each outcome that it can turn, the rule itself as a function of that
input alone. Every outcome is a word out of an ordered set and never turns back along a knob, so the nearest turn is
found by bisection over the floats themselves (over whole numbers for ages): the value found gives the new outcome,
and its neighbour on the way gives the old one still. The rule is asked, not a formula solved for its threshold, so that
caps and rounding are in the answer.

An input that is not there has no knob. Source: the project's rules, section 8, "a decision explains itself".
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from quantum_alloc.core.allocation import (
    AllocationDecision,
    Attribution,
    Proposal,
    SharedInputs,
    SymbolInputs,
    allocate,
    cap_group,
    group_of,
)
from quantum_alloc.core.attribution import advance as attribute_fill
from quantum_alloc.core.budget import BudgetParams, budget, stress_factor
from quantum_alloc.core.efficiency import AllocationTarget, EfficiencyDecision, efficiency_step
from quantum_alloc.core.efficiency import advance as efficiency_fill
from quantum_alloc.core.execution import Execution
from quantum_alloc.core.factors import AllocationParams, cluster_factor, drawdown_factor, uncapped_target
from quantum_alloc.core.fields import Fields
from quantum_alloc.core.numeric import clamp, clamp01, exact_sum, smaller
from quantum_alloc.core.params import from_json
from quantum_alloc.core.portfolio import Portfolio
from quantum_alloc.core.proposal import Efficiency, ProposalDecision, multiplier, propose
from quantum_alloc.core.reading import Fresh, Reading, grade
from quantum_alloc.core.record import shared_inputs, symbol_inputs
from quantum_alloc.core.record_flow import attribution_inputs, efficiency_inputs, proposal_inputs
from quantum_alloc.core.table import Explained

USD_MAX = 1e15
Outcome = Callable[[float], str]


@dataclass(frozen=True, slots=True)
class Knob:
    """One numeric input of a decision.

    Attributes:
        input: its name.
        unit: of its value.
        value: what it was.
        low: smallest value it may take.
        high: greatest value it may take.
        outcomes: by name, the outcome as a function of this input alone; along it no outcome comes back.
        whole: True for whole numbers, such as ages.
    """

    input: str
    unit: str
    value: float
    low: float
    high: float
    outcomes: Mapping[str, Outcome]
    whole: bool = False


@dataclass(frozen=True, slots=True)
class Flip(Explained):
    """The nearest value of an input, on one side, at which an outcome turns.

    Attributes:
        input: name of the input.
        unit: of its value.
        value: what it was.
        at: the nearest value with another outcome.
        outcome: which outcome turns.
        before: what it was.
        after: what it would be.
    """

    input: str
    unit: str
    value: float
    at: float
    outcome: str
    before: str
    after: str

    @property
    def side(self) -> str:
        """``up`` or ``down``."""
        return "up" if self.at > self.value else "down"


def _order(x: float) -> int:
    """Place of a float among all floats; neighbours are one apart."""
    (bits,) = struct.unpack("<q", struct.pack("<d", x))
    return int(bits) if bits >= 0 else -(int(bits) & 0x7FFF_FFFF_FFFF_FFFF)


def _at(order: int) -> float:
    (x,) = struct.unpack("<d", struct.pack("<q", order if order >= 0 else -order | -0x8000_0000_0000_0000))
    return float(x)


def nearest(outcome: Outcome, value: float, end: float, *, whole: bool = False) -> float | None:
    """The value nearest to ``value``, towards ``end``, with another outcome; None where the end has the same.

    Args:
        outcome: a function that does not turn back on the way.
        value: where to start.
        end: where to stop, included.
        whole: look at whole numbers only.

    >>> nearest(lambda x: "MID" if x < 0.15 else "HIGH", 0.08, 1.0)
    0.15
    >>> nearest(lambda x: "fresh" if x <= 60 else "stale", 3.0, 600.0, whole=True)
    61.0
    """
    to_order, at = (round, float) if whole else (_order, _at)
    here: Any = outcome(value)
    if outcome(end) == here:
        return None
    same, other = to_order(value), to_order(end)
    while abs(other - same) > 1:
        middle = (same + other) // 2
        if outcome(at(middle)) == here:
            same = middle
        else:
            other = middle
    return at(other)


def flips(knobs: Sequence[Knob]) -> tuple[Flip, ...]:
    """For each knob and side the nearest turn, of whichever outcome turns first.

    Args:
        knobs: of one decision.
    """
    found = []
    for knob in knobs:
        for end in (knob.low, knob.high):
            turns = []
            for name, outcome in knob.outcomes.items():
                at = nearest(outcome, knob.value, end, whole=knob.whole)
                if at is not None:
                    turns.append(Flip(knob.input, knob.unit, knob.value, at, name, outcome(knob.value), outcome(at)))
            if turns:
                found.append(min(turns, key=lambda f: abs(f.at - f.value)))
    return tuple(found)


def _age(name: str, reading: Reading[Any], limit_s: float, used: str, unused: str) -> list[Knob]:
    """The age of an input, whose turn is where it stops being used as it is."""
    if reading.age_s is None or reading.value is None:
        return []

    def outcome(age: float) -> str:
        return used if isinstance(grade(0, 0.0, age, limit_s), Fresh) else unused

    high = max(float(limit_s) + 1.0, float(reading.age_s))
    value = max(0.0, float(reading.age_s))
    return [Knob(f"age of {name}", "s", value, 0.0, high, {f"{name} is": outcome}, whole=True)]


# --- budget ----------------------------------------------------------------------------------------------------------


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


# --- attribution -----------------------------------------------------------------------------------------------------


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


# --- allocation ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Allocated:
    """One symbol's target together with the others that share its cap.

    Attributes:
        cycle: fields of the cycle record.
        decision: fields of the symbol's decision record.
        others: fields of the decision records of the other symbols of its cycle.
        params: the numbers of P2.9.
        shared: the cycle's readings.
        inputs: the symbol's readings.
        group: the group whose cap it shares; None where no cluster cap applies.
    """

    cycle: Fields
    decision: Fields
    others: tuple[Fields, ...]
    params: AllocationParams
    shared: SharedInputs
    inputs: SymbolInputs
    group: str | None

    @property
    def members(self) -> tuple[Fields, ...]:
        """The records of the others in the same group."""
        return tuple(o for o in self.others if self.group is not None and o["cluster_id"] == self.group)

    @property
    def is_complete(self) -> bool:
        """True when the records of all others in its group are at hand: their sum is that of the cycle record."""
        if self.group is None:
            return True
        on_record = float(json.loads(self.cycle["group_sums_usd"])[self.group])
        own = smaller(float(self.decision["uncapped_usd"]), float(self.decision["symbol_cap_usd"]))
        sums = (smaller(float(m["uncapped_usd"]), float(m["symbol_cap_usd"])) for m in self.members)
        return exact_sum([own, *sums]) == on_record


def allocated(cycle: Fields, decision: Fields, others: Sequence[Fields]) -> Allocated:
    """A decision with what it was made from.

    Args:
        cycle: fields of the cycle record.
        decision: fields of the symbol's decision record.
        others: fields of the other decision records of the cycle.

    Raises:
        ValueError, KeyError: not records of these rules.
    """
    params: AllocationParams = from_json(AllocationParams, cycle["params"])
    shared = shared_inputs(cycle)
    inputs = symbol_inputs(decision, shared.now)
    return Allocated(cycle, decision, tuple(others), params, shared, inputs, group_of(inputs, shared, params))


class _Group:
    """The others' symbol-capped targets as a function of what they share with the symbol."""

    def __init__(self, of: Allocated) -> None:
        import numpy as np

        self._params = of.params
        read = partial(np.array, dtype=np.float64)
        self.base = read([float(m["base_usd"]) for m in of.members])
        self.regime = read([float(m["regime_factor"]) for m in of.members])
        self.cluster = read([float(m["cluster_factor"]) for m in of.members])
        self.performance = read([float(m["performance_factor"]) for m in of.members])
        self.proposed = read([float(m.get("proposed_factor", 1.0)) for m in of.members])
        self.stressed = np.array([m["stress_state"] == m["budget_state"] == "ok" for m in of.members], dtype=bool)

    def capped(self, shared: SharedInputs, stress: float | None) -> list[float]:
        """Each one's target before the cluster cap, USD."""
        import numpy as np

        portfolio, p = shared.portfolio.value, self._params
        if portfolio is None or not self.base.size:
            return []
        dd = portfolio.drawdown
        f_drawdown = np.full_like(self.base, p.dd_factor_high if dd is None else drawdown_factor(dd, p))
        f_cluster = self.cluster
        if stress is not None:
            f_cluster = np.where(self.stressed, cluster_factor(stress, p), self.cluster)
        uncapped = uncapped_target(self.base, self.regime, f_cluster, f_drawdown, self.performance) * self.proposed
        return list(smaller(uncapped, p.max_symbol_pct * portfolio.equity_usd).tolist())


def allocation_knobs(of: Allocated) -> tuple[Knob, ...]:
    """What a target hangs on. Without the records of all others of the group the cluster cap is left out.

    Args:
        of: the decision and its cycle.
    """
    p, shared, inputs = of.params, of.shared, of.inputs
    portfolio = shared.portfolio.value
    if portfolio is None:
        raise ValueError("the record has no portfolio")
    capped_together = of.group is not None and of.is_complete
    group = _Group(of) if capped_together else None
    standing = group.capped(shared, None) if group else []

    def decide(own: SymbolInputs, common: SharedInputs, others: Sequence[float]) -> AllocationDecision:
        made = allocate(own, common, p)
        if not isinstance(made, AllocationDecision):
            raise ValueError(f"the record's budget cannot be used: {made.reason}")
        if group is None or common.portfolio.value is None:
            return made
        return cap_group(made, exact_sum([*others, made.target_usd]), common.portfolio.value.equity_usd, p)

    def budget_of(x: float) -> AllocationDecision:
        return decide(replace(inputs, budget_usd=_with(inputs.budget_usd, x)), shared, standing)

    def portfolio_of(changed: Portfolio) -> AllocationDecision:
        common = replace(shared, portfolio=_with(shared.portfolio, changed))
        return decide(inputs, common, group.capped(common, None) if group else ())

    def stress_of(x: float) -> AllocationDecision:
        own = replace(inputs, stress=_with(inputs.stress, x))
        return decide(own, shared, group.capped(shared, x) if group else ())

    def attribution_of(changed: Attribution) -> AllocationDecision:
        return decide(replace(inputs, attribution=_with(inputs.attribution, changed)), shared, standing)

    def proposal_of(x: float) -> AllocationDecision:
        return decide(replace(inputs, proposal=_with(inputs.proposal, Proposal(x))), shared, standing)

    caps: dict[str, Callable[[AllocationDecision], str]] = {"the symbol cap": _symbol_cap}
    if capped_together:
        caps["the cluster cap"] = _cluster_cap

    def through(step: Callable[[float], AllocationDecision], more: Mapping[str, Any]) -> dict[str, Outcome]:
        def outcome(read: Callable[[AllocationDecision], str], x: float) -> str:
            return read(step(x))

        return {name: partial(outcome, read) for name, read in {**caps, **more}.items()}

    zone = {"the drawdown zone is": _zone}
    knobs = [
        Knob("budget_usd", "USD", float(of.decision["base_usd"]), 0.0, USD_MAX, through(budget_of, {})),
        Knob(
            "equity_usd",
            "USD",
            portfolio.equity_usd,
            1e-9,
            USD_MAX,
            through(lambda x: portfolio_of(Portfolio(x, portfolio.drawdown)), {}),
        ),
    ]
    if portfolio.drawdown is not None:
        step = through(lambda x: portfolio_of(Portfolio(portfolio.equity_usd, x)), zone)
        knobs.append(Knob("drawdown", "", portfolio.drawdown, 0.0, 1.0, step))
    trusted = isinstance(inputs.budget_usd, Fresh)
    if trusted and isinstance(inputs.stress, Fresh):
        held = {
            "the cluster factor is": lambda d: _clamped(1.0 - _stress(d), p.cluster_stress_min, p.cluster_stress_max)
        }
        knobs.append(Knob("cluster stress", "", inputs.stress.value, 0.0, 1.0, through(stress_of, held)))
    if trusted and isinstance(inputs.attribution, Fresh):
        known = inputs.attribution.value
        sign = {"the performance factor": _performance}
        knobs.append(
            Knob(
                "performance factor",
                "",
                clamp01(known.performance_factor),
                0.0,
                1.0,
                through(lambda x: attribution_of(Attribution(x, known.confidence)), sign),
            )
        )
        confidence = 1.0 if known.confidence is None else known.confidence
        step = through(lambda x: attribution_of(Attribution(known.performance_factor, x)), sign)
        knobs.append(Knob("confidence of performance", "", confidence, 0.0, 1.0, step))
    if p.use_proposed and trusted and isinstance(inputs.proposal, Fresh) and inputs.proposal.value.reason == "ok":
        step = through(proposal_of, {"the proposal": _proposed})
        knobs.append(Knob("proposed multiplier", "", inputs.proposal.value.multiplier, 0.0, 10.0, step))
    ages: tuple[tuple[str, Reading[Any], str], ...] = (
        ("portfolio", shared.portfolio, "too old, and nothing is written"),
        ("budget", inputs.budget_usd, "too old, and other factors are 1"),
        ("regime", shared.regime, "too old, and its factor is 1"),
        ("cluster stress", inputs.stress, "too old, and its factor is 1"),
        ("performance", inputs.attribution, "too old, and its factor is 1"),
        ("proposal", inputs.proposal, "too old, and its factor is 1"),
    )
    for name, reading, unused in ages:
        knobs += _age(name, reading, p.stale_data_s, "used", unused)
    return tuple(knobs)


def _with(reading: Reading[Any], value: Any) -> Reading[Any]:
    return replace(reading, value=value)


def _symbol_cap(d: AllocationDecision) -> str:
    return "binds" if d.symbol_cap_usd < d.uncapped_usd else "does not bind"


def _cluster_cap(d: AllocationDecision) -> str:
    return "binds" if d.cluster_ratio < 1.0 else "does not bind"


def _zone(d: AllocationDecision) -> str:
    return d.drawdown_zone.value


def _stress(d: AllocationDecision) -> float:
    return d.inputs.stress.value or 0.0


def _clamped(x: float, low: float, high: float) -> str:
    return "at its smallest" if x <= low else "at its greatest" if x >= high else "1 - stress"


def _proposed(d: AllocationDecision) -> str:
    return "raises" if d.proposed_factor > 1.0 else "lowers" if d.proposed_factor < 1.0 else "is neutral"


def _performance(d: AllocationDecision) -> str:
    return "raises" if d.performance_factor > 1.0 else "lowers" if d.performance_factor < 1.0 else "is neutral"


# --- efficiency ------------------------------------------------------------------------------------------------------


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
        return pressure(efficiency_step(state, replace(inputs, attribution=_with(inputs.attribution, changed)), p)[1])

    def target_of(changed: AllocationTarget) -> str:
        return pressure(efficiency_step(state, replace(inputs, target=_with(inputs.target, changed)), p)[1])

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
    knobs += _age("performance", inputs.attribution, p.stale_s_p30, "used", flagged)
    knobs += _age("target", inputs.target, p.stale_s_p29, "used", flagged)
    return tuple(knobs)


# --- proposal --------------------------------------------------------------------------------------------------------


def proposal_knobs(record: Fields) -> tuple[Knob, ...]:
    """What a proposal hangs on.

    Args:
        record: fields of a proposal record, as text.

    Raises:
        ValueError, KeyError: not a record of these rules.
    """
    inputs, p = proposal_inputs(record)

    def made(changed: Efficiency) -> ProposalDecision:
        decision = propose(replace(inputs, efficiency=_with(inputs.efficiency, changed)), p)
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
    knobs += _age("efficiency", inputs.efficiency, p.stale_s, "looked at", "too old, and the multiplier is 1")
    knobs += _age("base target", inputs.base_target_usd, p.base_stale_s, "used", "too old, and nothing is proposed")
    return tuple(knobs)


def _clamped_multiplier(x: float, low: float, high: float) -> str:
    return "at its smallest" if x <= low else "at its greatest" if x >= high else "base + scale x (score - 0.5)"
