"""The factors and caps of P2.9 as formulas, and their parameters.

    regime_factor       TREND 1.2, MEAN_REVERSION 1.0, CHOP 0.6, any other name 1.0
    cluster_factor      clamp(1 - stress, 0.3, 1.0)
    drawdown_factor     d < 0.05 -> LOW 1.0; d < 0.15 -> MID 0.7; else HIGH 0.4; unknown d -> HIGH
    performance_factor  q = 0.5 + (clamp01(pf) - 0.5) x confidence;
                        q < 0.5: MIN + (1 - MIN) 2q, else 1 + (MAX - 1)(2q - 1), MIN 0.5, MAX 1.5
    cluster_ratio       cap / sum where a group's sum is above its cap (beyond 1e-12 relative), else exactly 1

Floats and numpy arrays go through the same lines. Source: the project's rules, section 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from quantum_alloc.core.numeric import Num, clamp, clamp01, step
from quantum_alloc.core.params import check, positive, unit_interval

CAP_TOLERANCE = 1e-12
PROPOSED_STEP = 0.1
"""What the proposer's factor may move by in one cycle, as a fraction of what it was."""


class Zone(StrEnum):
    """Drawdown zone. UNKNOWN is reserved: an unknown drawdown counts as HIGH."""

    LOW = "LOW"
    MID = "MID"
    HIGH = "HIGH"
    UNKNOWN = "UNKNOWN"


@dataclass(frozen=True, slots=True)
class AllocationParams:
    """The numbers of P2.9.

    Attributes:
        regime_factor_trend: factor of regime TREND.
        regime_factor_mr: factor of regime MEAN_REVERSION.
        regime_factor_chop: factor of regime CHOP.
        cluster_stress_min: smallest cluster factor.
        cluster_stress_max: greatest cluster factor.
        dd_low_threshold: drawdown where zone MID begins.
        dd_high_threshold: drawdown where zone HIGH begins.
        dd_factor_low: factor of zone LOW.
        dd_factor_mid: factor of zone MID.
        dd_factor_high: factor of zone HIGH.
        perf_factor_min: performance factor at 0.
        perf_factor_max: performance factor at 1.
        max_symbol_pct: symbol cap as a fraction of equity.
        max_cluster_pct: cluster cap as a fraction of equity.
        stale_data_s: greatest age of every input, seconds.
        unmapped_cluster_policy: ``shared`` caps unmapped symbols as one group, ``exempt`` does not cap them.
        use_proposed: whether the proposer's multiplier is a further factor.

    Raises:
        ValueError: naming every contradiction.
    """

    regime_factor_trend: float = 1.2
    regime_factor_mr: float = 1.0
    regime_factor_chop: float = 0.6
    cluster_stress_min: float = 0.3
    cluster_stress_max: float = 1.0
    dd_low_threshold: float = 0.05
    dd_high_threshold: float = 0.15
    dd_factor_low: float = 1.0
    dd_factor_mid: float = 0.7
    dd_factor_high: float = 0.4
    perf_factor_min: float = 0.5
    perf_factor_max: float = 1.5
    max_symbol_pct: float = 0.40
    max_cluster_pct: float = 0.60
    stale_data_s: int = 60
    unmapped_cluster_policy: str = "shared"
    use_proposed: bool = False

    def __post_init__(self) -> None:
        """Refuse contradictions."""
        check(
            (
                min(self.regime_factor_trend, self.regime_factor_mr, self.regime_factor_chop) >= 0.0,
                "a regime factor is negative",
            ),
            (
                0.0 <= self.cluster_stress_min <= self.cluster_stress_max <= 1.0,
                "0 <= cluster_stress_min <= cluster_stress_max <= 1 does not hold",
            ),
            (
                0.0 <= self.dd_low_threshold <= self.dd_high_threshold <= 1.0,
                "0 <= dd_low_threshold <= dd_high_threshold <= 1 does not hold",
            ),
            (
                1.0 >= self.dd_factor_low >= self.dd_factor_mid >= self.dd_factor_high >= 0.0,
                "1 >= dd_factor_low >= dd_factor_mid >= dd_factor_high >= 0 does not hold",
            ),
            (
                0.0 <= self.perf_factor_min <= 1.0 <= self.perf_factor_max,
                "0 <= perf_factor_min <= 1 <= perf_factor_max does not hold",
            ),
            unit_interval("max_symbol_pct", self.max_symbol_pct),
            unit_interval("max_cluster_pct", self.max_cluster_pct),
            positive("stale_data_s", self.stale_data_s),
            (
                self.unmapped_cluster_policy in ("shared", "exempt"),
                "unmapped_cluster_policy is neither shared nor exempt",
            ),
        )


DEFAULTS = AllocationParams()


def regime_factor(regime: str, params: AllocationParams | None = None) -> float:
    """Multiplier of a regime; 1.0 for any name that is not one of the three.

    Args:
        regime: TREND, MEAN_REVERSION, CHOP or another name.
        params: the factors.

    >>> regime_factor("TREND"), regime_factor("CHOP"), regime_factor("SIDEWAYS")
    (1.2, 0.6, 1.0)
    """
    p = params or DEFAULTS
    factors = {"TREND": p.regime_factor_trend, "MEAN_REVERSION": p.regime_factor_mr, "CHOP": p.regime_factor_chop}
    return factors.get(regime, 1.0)


def cluster_factor(stress: Num, params: AllocationParams | None = None) -> Num:
    """clamp(1 - stress, min, max).

    Args:
        stress: 0..1, float or array.
        params: the bounds.

    >>> [cluster_factor(s) for s in (0.1, 0.5, 0.9)]
    [0.9, 0.5, 0.3]
    """
    p = params or DEFAULTS
    return clamp(1.0 - stress, p.cluster_stress_min, p.cluster_stress_max)


def drawdown_factor(drawdown: Num, params: AllocationParams | None = None) -> Num:
    """Multiplier by drawdown zone.

    Args:
        drawdown: fraction of the peak, 0..1, float or array.
        params: thresholds and factors.

    >>> [drawdown_factor(d) for d in (0.0499, 0.05, 0.1499, 0.15)]
    [1.0, 0.7, 0.7, 0.4]
    """
    p = params or DEFAULTS
    lower = step(drawdown, p.dd_high_threshold, p.dd_factor_mid, p.dd_factor_high)
    return step(drawdown, p.dd_low_threshold, p.dd_factor_low, lower)


def drawdown_zone(drawdown: float | None, params: AllocationParams | None = None) -> Zone:
    """Name of the zone; HIGH when the drawdown is unknown.

    Args:
        drawdown: fraction of the peak, or None.
        params: the thresholds.

    >>> drawdown_zone(0.08).value, drawdown_zone(None).value
    ('MID', 'HIGH')
    """
    p = params or DEFAULTS
    if drawdown is None or not drawdown < p.dd_high_threshold:
        return Zone.HIGH
    return Zone.LOW if drawdown < p.dd_low_threshold else Zone.MID


def performance_factor(performance: Num, confidence: Num, params: AllocationParams | None = None) -> Num:
    """Multiplier of an attribution, shrunk towards 1.0 by its confidence.

    Args:
        performance: any finite number, clamped to 0..1; 0.5 is neutral.
        confidence: 0..1.
        params: the multiplier's range.

    >>> performance_factor(0.72, 0.9), performance_factor(1.0, 0.05), performance_factor(0.0, 1.0)
    (1.198, 1.025, 0.5)
    """
    p = params or DEFAULTS
    q = 0.5 + (clamp01(performance) - 0.5) * confidence
    losing = p.perf_factor_min + (1.0 - p.perf_factor_min) * (2.0 * q)
    earning = 1.0 + (p.perf_factor_max - 1.0) * (2.0 * q - 1.0)
    return clamp(step(q, 0.5, losing, earning), p.perf_factor_min, p.perf_factor_max)


def proposed_factor(multiplier: float, prior: float) -> float:
    """The proposer's multiplier, at most 10 % from what the cycle before used.

    Args:
        multiplier: of the proposal, at least 0.
        prior: the factor of the cycle before; 1.0 at the start, and after every cycle without a usable proposal.

    >>> proposed_factor(1.4, 1.0), proposed_factor(1.15, 1.1), proposed_factor(0.5, 1.0)
    (1.1, 1.15, 0.9)
    """
    return clamp(multiplier, prior * (1.0 - PROPOSED_STEP), prior * (1.0 + PROPOSED_STEP))


def uncapped_target(
    budget_usd: Num, regime: Num, cluster: Num, drawdown: Num, performance: Num, proposed: float = 1.0
) -> Num:
    """The product of the base budget and the factors, in this order, USD.

    Args:
        budget_usd: base budget, USD.
        regime: regime factor.
        cluster: cluster factor.
        drawdown: drawdown factor.
        performance: performance factor.
        proposed: the proposer's factor; 1.0, which changes no bit, without it.

    >>> uncapped_target(1000.0, 1.2, 0.5, 1.0, 1.5)
    900.0
    """
    return budget_usd * regime * cluster * drawdown * performance * proposed


def cluster_ratio(group_sum_usd: float, cap_usd: float) -> float:
    """What a group's targets are scaled by: cap / sum where the sum is above the cap, else exactly 1.

    Args:
        group_sum_usd: sum of the symbol-capped targets, USD.
        cap_usd: the group's cap, USD.

    >>> cluster_ratio(90_000.0, 60_000.0), cluster_ratio(60_000.0, 60_000.0)
    (0.6666666666666666, 1.0)
    """
    return cap_usd / group_sum_usd if group_sum_usd > cap_usd * (1.0 + CAP_TOLERANCE) else 1.0
