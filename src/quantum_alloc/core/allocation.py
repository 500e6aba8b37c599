"""Capital allocation (P2.9): how much each symbol may hold, in USD.

    target_usd = base_budget x regime_factor x cluster_factor x drawdown_factor x performance_factor, then the caps

    regime_factor       TREND 1.2, MEAN_REVERSION 1.0, CHOP 0.6, any other name 1.0
    cluster_factor      clamp(1 - stress, 0.3, 1.0)
    drawdown_factor     d < 0.05 -> LOW 1.0; d < 0.15 -> MID 0.7; else HIGH 0.4; unknown d -> HIGH
    performance_factor  q = 0.5 + (clamp01(pf) - 0.5) x confidence;
                        q < 0.5: MIN + (1 - MIN) 2q, else 1 + (MAX - 1)(2q - 1), MIN 0.5, MAX 1.5
    symbol cap          min(target, MAX_SYMBOL_PCT 0.40 x equity)
    cluster cap         a group whose symbol-capped targets sum to more than MAX_CLUSTER_PCT 0.60 x equity (beyond
                        1e-12 relative) is scaled by one ratio; nothing is redistributed
    weight              target / equity
    confidence          regime confidence (0.5 when unusable); with a usable stress record the mean of it and 1 - stress

Unusable optional inputs are exactly neutral (factor 1.0). A stale budget is used with neutral regime, cluster and
performance; any other trouble with it skips the symbol. A portfolio that cannot be used, or whose equity is not
positive, halts the cycle. Source: the project's rules, section 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from quantum_alloc.core.numeric import Num, clamp, clamp01, smaller, step
from quantum_alloc.core.params import check, positive, unit_interval
from quantum_alloc.core.portfolio import Portfolio
from quantum_alloc.core.reading import Fresh, Reading, Reason, Unusable
from quantum_alloc.core.table import Explained

RULES_VERSION = "p29_v1"
UNMAPPED = "UNKNOWN"
"""The group of symbols that the cluster map does not name, and the regime when there is none."""
NEUTRAL_CONFIDENCE = 0.5
CAP_TOLERANCE = 1e-12


class Zone(StrEnum):
    """Drawdown zone. UNKNOWN is reserved: an unknown drawdown counts as HIGH."""

    LOW = "LOW"
    MID = "MID"
    HIGH = "HIGH"
    UNKNOWN = "UNKNOWN"


class Bound(StrEnum):
    """Which cap made the target smaller."""

    NONE = "none"
    SYMBOL = "symbol"
    CLUSTER = "cluster"
    BOTH = "symbol+cluster"


class PerformanceSource(StrEnum):
    """Where the performance factor came from."""

    ATTRIBUTION = "P3.0"
    FALLBACK = "fallback"


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


@dataclass(frozen=True, slots=True)
class Regime:
    """A market regime.

    Attributes:
        name: any plain word; three of them have factors.
        confidence: 0..1; None when the writer gave none (counts 0.5).
    """

    name: str
    confidence: float | None = None


@dataclass(frozen=True, slots=True)
class Attribution:
    """A symbol's performance.

    Attributes:
        performance_factor: any finite number, clamped to 0..1; 0.5 is neutral.
        confidence: 0..1; None when the writer gave none (counts 1).
    """

    performance_factor: float
    confidence: float | None = None


@dataclass(frozen=True, slots=True)
class SharedInputs:
    """What all symbols of a cycle share.

    Attributes:
        now: unix seconds.
        portfolio: equity and drawdown.
        regime: the newest regime.
        clusters_readable: False when a cluster map is there but cannot be read; then nobody is exempt from the cap.
    """

    now: float
    portfolio: Reading[Portfolio]
    regime: Reading[Regime]
    clusters_readable: bool = True


@dataclass(frozen=True, slots=True)
class SymbolInputs:
    """What is one symbol's own.

    Attributes:
        symbol: the symbol.
        budget_usd: base budget, USD, at least 0.
        cluster_id: the group that the map names, else ``UNKNOWN``.
        stress: stress of that cluster, 0..1.
        attribution: performance.
    """

    symbol: str
    budget_usd: Reading[float]
    cluster_id: str = UNMAPPED
    stress: Reading[float] = Unusable(Reason.MISSING)  # noqa: RUF009 - a frozen value
    attribution: Reading[Attribution] = Unusable(Reason.MISSING)  # noqa: RUF009 - a frozen value


@dataclass(frozen=True, slots=True)
class AllocationDecision(Explained):
    """One symbol's target, with everything that made it.

    Attributes:
        symbol: the symbol.
        target_usd: what it may hold, USD.
        weight: target / equity.
        base_usd: base budget, USD.
        regime: name of the regime, UNKNOWN when unusable.
        regime_factor: multiplier.
        cluster_id: group, UNKNOWN when the map does not name the symbol.
        cluster_factor: multiplier.
        drawdown_zone: LOW, MID or HIGH.
        drawdown_factor: multiplier.
        performance_factor: multiplier applied.
        performance_source: P3.0 or fallback.
        confidence: 0..1.
        uncapped_usd: the product before any cap, USD.
        symbol_cap_usd: MAX_SYMBOL_PCT x equity, USD.
        cluster_ratio: 1.0 when the group was not scaled.
        bound: which cap made the target smaller.
        group_sum_usd: the group's symbol-capped sum, USD; None where the cluster cap does not apply.
        inputs: the symbol's own readings.
        shared: the cycle's shared readings.
    """

    symbol: str
    target_usd: float
    weight: float
    base_usd: float
    regime: str
    regime_factor: float
    cluster_id: str
    cluster_factor: float
    drawdown_zone: Zone
    drawdown_factor: float
    performance_factor: float
    performance_source: PerformanceSource
    confidence: float
    uncapped_usd: float
    symbol_cap_usd: float
    cluster_ratio: float
    bound: Bound
    group_sum_usd: float | None
    inputs: SymbolInputs
    shared: SharedInputs

    @property
    def reasons(self) -> Mapping[str, str]:
        """What became of each input: ``ok``, or the reason why it was not used."""
        return {
            "portfolio": self.shared.portfolio.state,
            "drawdown": "ok" if _drawdown_known(self.shared) else Reason.MALFORMED.value,
            "regime": self.shared.regime.state,
            "budget": self.inputs.budget_usd.state,
            "cluster": self.inputs.stress.state,
            "performance": self.inputs.attribution.state,
        }


@dataclass(frozen=True, slots=True)
class Skipped:
    """A symbol without a target, and why.

    Attributes:
        symbol: the symbol.
        reason: ``budget_`` and the reading's reason.
        inputs: the symbol's readings.
    """

    symbol: str
    reason: str
    inputs: SymbolInputs


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


def uncapped_target(budget_usd: Num, regime: Num, cluster: Num, drawdown: Num, performance: Num) -> Num:
    """The product of the base budget and the four factors, in this order, USD.

    Args:
        budget_usd: base budget, USD.
        regime: regime factor.
        cluster: cluster factor.
        drawdown: drawdown factor.
        performance: performance factor.

    >>> uncapped_target(1000.0, 1.2, 0.5, 1.0, 1.5)
    900.0
    """
    return budget_usd * regime * cluster * drawdown * performance


def cluster_ratio(group_sum_usd: float, cap_usd: float) -> float:
    """What a group's targets are scaled by: cap / sum where the sum is above the cap, else exactly 1.

    Args:
        group_sum_usd: sum of the symbol-capped targets, USD.
        cap_usd: the group's cap, USD.

    >>> cluster_ratio(90_000.0, 60_000.0), cluster_ratio(60_000.0, 60_000.0)
    (0.6666666666666666, 1.0)
    """
    return cap_usd / group_sum_usd if group_sum_usd > cap_usd * (1.0 + CAP_TOLERANCE) else 1.0


def halted(shared: SharedInputs) -> str:
    """Why the cycle writes nothing; empty when it may go on.

    Args:
        shared: the cycle's shared readings.
    """
    if isinstance(shared.portfolio, Unusable):
        return f"portfolio_{shared.portfolio.reason}"
    return "" if shared.portfolio.value.equity_usd > 0.0 else "equity_not_positive"


def group_of(inputs: SymbolInputs, shared: SharedInputs, params: AllocationParams) -> str | None:
    """The group whose cap a symbol shares; None where the policy exempts it.

    Args:
        inputs: the symbol's readings.
        shared: the cycle's readings; an unreadable map exempts nobody.
        params: the policy.
    """
    exempt = params.unmapped_cluster_policy == "exempt" and shared.clusters_readable
    return None if exempt and inputs.cluster_id == UNMAPPED else inputs.cluster_id


def _drawdown_known(shared: SharedInputs) -> bool:
    return isinstance(shared.portfolio, Fresh) and shared.portfolio.value.drawdown is not None


def allocate(
    inputs: SymbolInputs,
    shared: SharedInputs,
    params: AllocationParams | None = None,
    group_sum_usd: float | None = None,
) -> AllocationDecision | Skipped:
    """One symbol's target.

    Args:
        inputs: the symbol's own readings.
        shared: the cycle's readings; the portfolio must be usable.
        params: the numbers of P2.9.
        group_sum_usd: sum of the symbol-capped targets of its group, USD; None leaves the cluster cap out, as in the
            first of the two passes of ``allocate_portfolio``.

    Returns:
        The decision, or why the symbol has none.

    Raises:
        ValueError: the portfolio is not usable (ask ``halted`` first).

    >>> from quantum_alloc.core.reading import fresh
    >>> shared = SharedInputs(0.0, fresh(Portfolio(100_000.0, 0.08)), fresh(Regime("TREND", 0.8)))
    >>> d = allocate(SymbolInputs("BTCUSDT", fresh(1820.93), "C1", fresh(0.5), fresh(Attribution(0.72, 0.9))), shared)
    >>> round(d.target_usd, 4), d.drawdown_zone.value, d.confidence
    (916.2191, 'MID', 0.65)
    """
    p = params or DEFAULTS
    if not isinstance(shared.portfolio, Fresh) or halted(shared):
        raise ValueError("allocate needs a usable portfolio of positive equity")
    budget = inputs.budget_usd
    if isinstance(budget, Fresh) or (budget.reason is Reason.STALE and budget.value is not None):
        base = budget.value
    else:
        return Skipped(inputs.symbol, f"budget_{budget.reason}", inputs)
    equity, drawdown = shared.portfolio.value.equity_usd, shared.portfolio.value.drawdown
    trusted = isinstance(budget, Fresh)

    regime, f_regime, confidence = UNMAPPED, 1.0, NEUTRAL_CONFIDENCE
    if trusted and isinstance(shared.regime, Fresh):
        regime = shared.regime.value.name
        f_regime = regime_factor(regime, p)
        given = shared.regime.value.confidence
        confidence = NEUTRAL_CONFIDENCE if given is None else given
    f_cluster = 1.0
    if trusted and isinstance(inputs.stress, Fresh):
        f_cluster = cluster_factor(inputs.stress.value, p)
        confidence = (confidence + (1.0 - inputs.stress.value)) / 2.0
    f_performance, source = 1.0, PerformanceSource.FALLBACK
    if trusted and isinstance(inputs.attribution, Fresh):
        known = inputs.attribution.value
        f_performance = performance_factor(
            known.performance_factor, 1.0 if known.confidence is None else known.confidence, p
        )
        source = PerformanceSource.ATTRIBUTION
    f_drawdown = p.dd_factor_high if drawdown is None else drawdown_factor(drawdown, p)

    uncapped = uncapped_target(base, f_regime, f_cluster, f_drawdown, f_performance)
    symbol_cap = p.max_symbol_pct * equity
    capped = smaller(uncapped, symbol_cap)
    alone = AllocationDecision(
        symbol=inputs.symbol,
        target_usd=capped,
        weight=capped / equity,
        base_usd=base,
        regime=regime,
        regime_factor=f_regime,
        cluster_id=inputs.cluster_id,
        cluster_factor=f_cluster,
        drawdown_zone=drawdown_zone(drawdown, p),
        drawdown_factor=f_drawdown,
        performance_factor=f_performance,
        performance_source=source,
        confidence=confidence,
        uncapped_usd=uncapped,
        symbol_cap_usd=symbol_cap,
        cluster_ratio=1.0,
        bound=Bound.SYMBOL if capped < uncapped else Bound.NONE,
        group_sum_usd=None,
        inputs=inputs,
        shared=shared,
    )
    return alone if group_sum_usd is None else cap_group(alone, group_sum_usd, equity, p)


def cap_group(
    alone: AllocationDecision, group_sum_usd: float, equity_usd: float, params: AllocationParams | None = None
) -> AllocationDecision:
    """A symbol-capped decision under its group's cap.

    Args:
        alone: the decision before the cluster cap.
        group_sum_usd: sum of the symbol-capped targets of its group, USD.
        equity_usd: USD, above 0.
        params: the cap.
    """
    p = params or DEFAULTS
    ratio = cluster_ratio(group_sum_usd, p.max_cluster_pct * equity_usd)
    if ratio == 1.0:
        return replace(alone, group_sum_usd=group_sum_usd)
    target = alone.target_usd * ratio
    return replace(
        alone,
        target_usd=target,
        weight=target / equity_usd,
        cluster_ratio=ratio,
        bound=Bound.BOTH if alone.bound is Bound.SYMBOL else Bound.CLUSTER,
        group_sum_usd=group_sum_usd,
    )
