"""What a target hangs on: the knobs of an allocation, with the others that share its caps.

Portfolio, drawdown and a cluster's stress move every member of a group at once; their targets are worked out with the
same formulas as arrays, so that the cluster cap turns where it really does. Source: the project's rules, sections 2, 8.
"""

from __future__ import annotations

import json
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
from quantum_alloc.core.factors import AllocationParams, cluster_factor, drawdown_factor, uncapped_target
from quantum_alloc.core.fields import Fields
from quantum_alloc.core.flips import USD_MAX, Knob, Outcome, age_knob, replaced
from quantum_alloc.core.numeric import clamp01, exact_sum, smaller
from quantum_alloc.core.params import from_json
from quantum_alloc.core.portfolio import Portfolio
from quantum_alloc.core.reading import Fresh, Reading
from quantum_alloc.core.record import shared_inputs, symbol_inputs


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
        return decide(replace(inputs, budget_usd=replaced(inputs.budget_usd, x)), shared, standing)

    def portfolio_of(changed: Portfolio) -> AllocationDecision:
        common = replace(shared, portfolio=replaced(shared.portfolio, changed))
        return decide(inputs, common, group.capped(common, None) if group else ())

    def stress_of(x: float) -> AllocationDecision:
        own = replace(inputs, stress=replaced(inputs.stress, x))
        return decide(own, shared, group.capped(shared, x) if group else ())

    def attribution_of(changed: Attribution) -> AllocationDecision:
        return decide(replace(inputs, attribution=replaced(inputs.attribution, changed)), shared, standing)

    def proposal_of(x: float) -> AllocationDecision:
        return decide(replace(inputs, proposal=replaced(inputs.proposal, Proposal(x))), shared, standing)

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
        knobs += age_knob(name, reading, p.stale_data_s, "used", unused)
    return tuple(knobs)


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
