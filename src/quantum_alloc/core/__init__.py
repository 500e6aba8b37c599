"""The rules, as pure functions over frozen values: values in, values out, ``now`` is an argument.

``import quantum_alloc.core as qa`` gives a notebook everything that follows. Formulas take floats or numpy arrays;
decisions are frozen, explain themselves, and show as tables.
"""

from quantum_alloc.core.allocation import (
    AllocationDecision,
    Attribution,
    Bound,
    PerformanceSource,
    Regime,
    SharedInputs,
    Skipped,
    SymbolInputs,
    allocate,
)
from quantum_alloc.core.budget import (
    BudgetCycle,
    BudgetDecision,
    BudgetInputs,
    BudgetParams,
    Market,
    budget,
    budget_cycle,
    stress_factor,
    vol_regime,
)
from quantum_alloc.core.caps import AllocationCycle, allocate_arrays, allocate_portfolio
from quantum_alloc.core.factors import (
    AllocationParams,
    Zone,
    cluster_factor,
    cluster_ratio,
    drawdown_factor,
    drawdown_zone,
    performance_factor,
    regime_factor,
    uncapped_target,
)
from quantum_alloc.core.market import hourly_sigma
from quantum_alloc.core.numeric import clamp, clamp01, ewma, step
from quantum_alloc.core.params import config_hash
from quantum_alloc.core.portfolio import (
    Portfolio,
    PortfolioDecision,
    PortfolioInputs,
    PortfolioState,
    Position,
    drawdown,
    step_portfolio,
)
from quantum_alloc.core.reading import Fresh, Reading, Reason, Unusable, age_s, fresh, grade, missing
from quantum_alloc.core.record import cycle_fields, decision_fields, differences, recompute

__all__ = [
    "AllocationCycle",
    "AllocationDecision",
    "AllocationParams",
    "Attribution",
    "Bound",
    "BudgetCycle",
    "BudgetDecision",
    "BudgetInputs",
    "BudgetParams",
    "Fresh",
    "Market",
    "PerformanceSource",
    "Portfolio",
    "PortfolioDecision",
    "PortfolioInputs",
    "PortfolioState",
    "Position",
    "Reading",
    "Reason",
    "Regime",
    "SharedInputs",
    "Skipped",
    "SymbolInputs",
    "Unusable",
    "Zone",
    "age_s",
    "allocate",
    "allocate_arrays",
    "allocate_portfolio",
    "budget",
    "budget_cycle",
    "clamp",
    "clamp01",
    "cluster_factor",
    "cluster_ratio",
    "config_hash",
    "cycle_fields",
    "decision_fields",
    "differences",
    "drawdown",
    "drawdown_factor",
    "drawdown_zone",
    "ewma",
    "fresh",
    "grade",
    "hourly_sigma",
    "missing",
    "performance_factor",
    "recompute",
    "regime_factor",
    "step",
    "step_portfolio",
    "stress_factor",
    "uncapped_target",
    "vol_regime",
]
