"""Cases of enforce: the same decisions as in shadow, and what they come to by the rules.

What is due is worked out here from the installation's numbers, by the rules as they are written down. Source: the
project's rules, sections 2 to 4.
"""

from __future__ import annotations

import math

from quantum_alloc.core import AllocationParams, AttributionParams, EfficiencyParams
from quantum_alloc.services.options import AllocationOptions, AttributionOptions, EfficiencyOptions
from quantum_alloc.services.proof import Result
from quantum_alloc.services.proof_bench import EQUITY_USD, Bench
from quantum_alloc.services.proof_cases_flow import (
    BUDGETS_USD,
    CLUSTER,
    PERFORMANCE,
    PNLS_USD,
    STRESS,
    SURE,
    SYMBOLS,
    TARGET_USD,
    enforced,
    made,
)
from quantum_alloc.services.proof_judging import differences, judged
from quantum_alloc.services.settings import Mode

TARGET_SURE = 0.8
"""Confidence of the target that the efficiency reads."""


def target_usd(budget_usd: float, p: AllocationParams) -> float:
    """The target of a symbol of the case before the cap of its cluster: TREND, drawdown 0, a neutral attribution.

    Args:
        budget_usd: its base budget.
        p: the installation's numbers.
    """
    zone = p.dd_factor_low
    if p.dd_low_threshold == 0.0:  # then no drawdown is a low one
        zone = p.dd_factor_high if p.dd_high_threshold == 0.0 else p.dd_factor_mid
    cluster = min(max(1.0 - STRESS, p.cluster_stress_min), p.cluster_stress_max)
    return min(budget_usd * p.regime_factor_trend * cluster * zone, p.max_symbol_pct * EQUITY_USD)


def allocation(bench: Bench) -> list[Result]:
    """P2.9 in enforce."""
    lane = bench.lane("allocation-worked", Mode.ENFORCE)
    made(lane, "allocation")
    p = lane.settings.of(AllocationOptions).params()
    by_rule = {s: target_usd(usd, p) for s, usd in BUDGETS_USD.items()}
    together, cap = sum(by_rule.values()), p.max_cluster_pct * EQUITY_USD
    scale = cap / together if together > cap else 1.0
    wrong = []
    for symbol, usd in by_rule.items():
        due: dict[str, object] = {"target_usd": usd * scale, "weight": usd * scale / EQUITY_USD, "mode": "enforce"}
        due |= {"cluster_id": CLUSTER, "regime": "TREND", "timestamp": str(int(lane.now)), "ts": str(int(lane.now))}
        wrong += differences(due, lane.hash(lane.keys.target(symbol)))
    fine = ", ".join(f"{usd * scale:.2f} USD" for usd in by_rule.values())
    at = ("allocation", "allocation-enforce", "targets by the rule")
    return [*enforced(bench, "allocation"), judged(at, wrong, fine)]


def attributed(p: AttributionParams) -> dict[str, object]:
    """What the executions of the case come to: one step of the average an execution.

    Args:
        p: the installation's numbers.
    """
    score = 0.0
    for n in range(len(PNLS_USD)):
        window = PNLS_USD[: n + 1][-p.lookback_window :]
        alpha = math.tanh(sum(window) / len(window) / (2.0 * p.pnl_scale_usd))
        score = alpha if n == 0 else p.ewma_alpha * alpha + (1.0 - p.ewma_alpha) * score
    counted = min(len(PNLS_USD), p.lookback_window)
    confidence = counted / p.lookback_window
    return {"alpha_score": score, "performance_factor": (score + 1.0) / 2.0, "confidence": confidence}


def attribution(bench: Bench) -> list[Result]:
    """P3.0 in enforce."""
    lane = bench.lane("attribution-worked", Mode.ENFORCE)
    made(lane, "attribution")
    due = attributed(lane.settings.of(AttributionOptions).params())
    wrong = [text for s in SYMBOLS for text in differences(due, lane.hash(lane.keys.attribution(s)))]
    at, fine = ("efficiency", "attribution-enforce", "attributions by the rule"), f"alpha {due['alpha_score']:.4f}"
    return [*enforced(bench, "attribution"), judged(at, wrong, fine)]


def measured(p: EfficiencyParams) -> dict[str, object]:
    """What attribution, target and executions of the case come to.

    Args:
        p: the installation's numbers.
    """
    volatility = losses = 0.0
    for pnl in PNLS_USD:
        volatility = p.vol_alpha * abs(pnl) + (1.0 - p.vol_alpha) * volatility
        losses = p.dd_alpha * max(-pnl, 0.0) + (1.0 - p.dd_alpha) * losses
    score = PERFORMANCE / (1.0 + p.w_vol * volatility / TARGET_USD + p.w_dd * losses / TARGET_USD)
    average = p.score_alpha * score + (1.0 - p.score_alpha) * 0.5
    sure = min(SURE, TARGET_SURE)
    pressure = "INCREASE" if average >= 0.65 else "DECREASE" if average <= 0.35 or losses / TARGET_USD > 0.5 else "HOLD"
    return {
        "efficiency_score": score,
        "efficiency_ewma": average,
        "confidence": sure,
        "capital_pressure": pressure,
        "reallocation_weight": min(max(2.0 * (average - 0.5), -1.0), 1.0) * sure,
        "volatility_ewma": volatility,
        "dd_proxy": losses,
        "hold_time_penalty": 0.0,
        "inputs_ok": "1",
        "stale_flags": "",
    }


def efficiency(bench: Bench) -> list[Result]:
    """P3.1 in enforce."""
    lane = bench.lane("efficiency-worked", Mode.ENFORCE)
    made(lane, "efficiency")
    due = measured(lane.settings.of(EfficiencyOptions).params())
    wrong = [text for s in SYMBOLS for text in differences(due, lane.hash(lane.keys.efficiency(s)))]
    at, fine = ("efficiency", "efficiency-enforce", "scores by the rule"), f"score {due['efficiency_score']:.4f}"
    return [*enforced(bench, "efficiency"), judged(at, wrong, fine)]
