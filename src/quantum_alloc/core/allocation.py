"""Capital allocation (P2.9): how much each symbol may hold, in USD.

    target_usd = base_budget x regime_factor x cluster_factor x drawdown_factor x performance_factor, then the caps

    symbol cap          min(target, MAX_SYMBOL_PCT 0.40 x equity)
    cluster cap         a group whose symbol-capped targets sum to more than MAX_CLUSTER_PCT 0.60 x equity (beyond
                        1e-12 relative) is scaled by one ratio; nothing is redistributed
    weight              target / equity
    confidence          regime confidence (0.5 when unusable); with a usable stress record the mean of it and 1 - stress

With ``use_proposed`` the proposer's multiplier is a fifth factor before the caps, moving by at most 10 % a cycle and
exactly 1.0 whenever the proposal is not fresh or its reason is not ok.

Unusable optional inputs are exactly neutral (factor 1.0). A stale budget is used with neutral regime, cluster and
performance; any other trouble with it skips the symbol. A portfolio that cannot be used, or whose equity is not
positive, halts the cycle. Source: the project's rules, section 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from quantum_alloc.core.factors import (
    DEFAULTS,
    AllocationParams,
    Zone,
    cluster_factor,
    cluster_ratio,
    drawdown_factor,
    drawdown_zone,
    performance_factor,
    proposed_factor,
    regime_factor,
    uncapped_target,
)
from quantum_alloc.core.numeric import smaller
from quantum_alloc.core.portfolio import Portfolio
from quantum_alloc.core.reading import Fresh, Lane, Reading, Reason, Unusable
from quantum_alloc.core.table import Explained

RULES_VERSION = "p29_v1"
UNMAPPED = "UNKNOWN"
"""The group of symbols that the cluster map does not name, and the regime when there is none."""
NEUTRAL_CONFIDENCE = 0.5


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
class Proposal:
    """The proposer's opinion on a symbol.

    Attributes:
        multiplier: of the target, at least 0.
        reason: counts only when it is ``ok``.
    """

    multiplier: float
    reason: str = "ok"


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
    regime: Reading[Regime] = Unusable(Reason.MISSING)  # noqa: RUF009 - a frozen value
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
        attribution_lane: where it was read.
        proposal: the proposer's multiplier; looked at only with ``use_proposed``.
        proposal_lane: shadow when it was made from anything in the shadow lane.
        proposal_prior: the factor that the cycle before used; 1.0 at the start.
    """

    symbol: str
    budget_usd: Reading[float]
    cluster_id: str = UNMAPPED
    stress: Reading[float] = Unusable(Reason.MISSING)  # noqa: RUF009 - a frozen value
    attribution: Reading[Attribution] = Unusable(Reason.MISSING)  # noqa: RUF009 - a frozen value
    attribution_lane: Lane = Lane.LIVE
    proposal: Reading[Proposal] = Unusable(Reason.MISSING)  # noqa: RUF009 - a frozen value
    proposal_lane: Lane = Lane.LIVE
    proposal_prior: float = 1.0


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
        proposed_factor: the proposer's multiplier as it was applied; 1.0 without ``use_proposed``.
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
    proposed_factor: float = 1.0

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
    base = budget.value
    if base is None:  # only a fresh or a stale budget has a value
        return Skipped(inputs.symbol, f"budget_{budget.state}", inputs)
    if not base >= 0.0:  # below 0, or no number: the wire lets neither through
        return Skipped(inputs.symbol, f"budget_{Reason.MALFORMED}", inputs)
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
    f_proposed = 1.0
    if p.use_proposed and trusted and isinstance(inputs.proposal, Fresh) and inputs.proposal.value.reason == "ok":
        f_proposed = proposed_factor(inputs.proposal.value.multiplier, inputs.proposal_prior)

    uncapped = uncapped_target(base, f_regime, f_cluster, f_drawdown, f_performance, f_proposed)
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
        proposed_factor=f_proposed,
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
