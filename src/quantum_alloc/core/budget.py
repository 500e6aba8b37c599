"""Budget engine (P2.8): the base budget of every symbol, smaller when the portfolio is under stress.

    stress     = clamp01(ALPHA heat + BETA cluster_stress + GAMMA vol)
    budget_usd = min(clamp(equity x BASE_RISK_PCT x (1 - stress), MIN, MAX), equity)

    heat           = sum over symbols of |notional| x sigma / equity, sigma per hour; unreadable members count 0
    cluster_stress = clamp01(sum over clusters), unreadable records count 0
    vol            = by the symbol's hourly sigma: > 0.03 -> 1.0, > 0.02 -> 0.67, < 0.005 -> 0.0, else 0.33;
                     unknown -> 0.33

Without a usable portfolio of positive equity no budget is written. A violation is told, in every cycle, for each
symbol whose |notional| exceeds its budget. Source: the project's rules, section 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from quantum_alloc.core.isolate import Attempt, plainly
from quantum_alloc.core.numeric import Num, clamp, clamp01, exact_sum, smaller, step
from quantum_alloc.core.params import check, positive, unit_interval
from quantum_alloc.core.portfolio import Portfolio, Position
from quantum_alloc.core.reading import Fresh, Reading, Reason, Unusable

RULES_VERSION = "p28_v1"
VOL_UNKNOWN = 0.33
HEAT_LIMIT = 1e12
"""Keeps the stress a number for an equity next to nothing."""


@dataclass(frozen=True, slots=True)
class BudgetParams:
    """The numbers of P2.8.

    Attributes:
        alpha_heat: weight of the portfolio's heat.
        beta_cluster: weight of the summed cluster stress.
        gamma_vol: weight of the symbol's volatility class.
        base_risk_pct: fraction of equity that an unstressed symbol gets.
        min_budget_usd: floor, USD (`MIN_BUDGET_K`: the name is historic).
        max_budget_usd: ceiling, USD (`MAX_BUDGET_K`).
        stale_portfolio_s: greatest age of the portfolio.
        stale_data_s: greatest age of positions, market states and stress records.

    Raises:
        ValueError: naming every contradiction.
    """

    alpha_heat: float = 0.4
    beta_cluster: float = 0.4
    gamma_vol: float = 0.2
    base_risk_pct: float = 0.02
    min_budget_usd: float = 500.0
    max_budget_usd: float = 10000.0
    stale_portfolio_s: int = 30
    stale_data_s: int = 60

    def __post_init__(self) -> None:
        """Refuse contradictions."""
        check(
            (self.alpha_heat >= 0.0, "alpha_heat must not be negative"),
            (self.beta_cluster >= 0.0, "beta_cluster must not be negative"),
            (self.gamma_vol >= 0.0, "gamma_vol must not be negative"),
            unit_interval("base_risk_pct", self.base_risk_pct),
            (self.min_budget_usd >= 0.0, "min_budget_usd must not be negative"),
            (self.min_budget_usd <= self.max_budget_usd, "min_budget_usd is above max_budget_usd"),
            positive("stale_portfolio_s", self.stale_portfolio_s),
            positive("stale_data_s", self.stale_data_s),
        )


DEFAULTS = BudgetParams()


@dataclass(frozen=True, slots=True)
class Market:
    """One symbol's market state.

    Attributes:
        price_usd: last price, USD, above 0.
        sigma: standard deviation of log returns scaled to one hour; None when unknown.
    """

    price_usd: float
    sigma: float | None


@dataclass(frozen=True, slots=True)
class BudgetInputs:
    """Everything that one cycle reads.

    Attributes:
        now: unix seconds.
        portfolio: graded by ``stale_portfolio_s``.
        positions: by symbol.
        markets: by symbol.
        stress: by cluster id, of the clusters that the map names.
    """

    now: float
    portfolio: Reading[Portfolio]
    positions: Mapping[str, Reading[Position]]
    markets: Mapping[str, Reading[Market]]
    stress: Mapping[str, Reading[float]]


@dataclass(frozen=True, slots=True)
class BudgetDecision:
    """One symbol's budget, with what made it.

    Attributes:
        symbol: the symbol.
        budget_usd: base budget, USD.
        stress_factor: 0..1.
        equity_usd: USD.
        portfolio_heat: at least 0.
        cluster_stress: 0..1.
        vol_regime: 0..1, the symbol's volatility class.
        sigma: hourly, None when unknown.
        position_notional_usd: None when the position is absent or unusable.
    """

    symbol: str
    budget_usd: float
    stress_factor: float
    equity_usd: float
    portfolio_heat: float
    cluster_stress: float
    vol_regime: float
    sigma: float | None
    position_notional_usd: float | None

    @property
    def over_budget_usd(self) -> float:
        """|notional| - budget where that is above 0, else 0, USD."""
        excess = (self.position_notional_usd or 0.0) - self.budget_usd
        return excess if excess > 0.0 else 0.0


@dataclass(frozen=True, slots=True)
class BudgetCycle:
    """One cycle's budgets, or the reason why there are none.

    Attributes:
        now: unix seconds.
        halted: empty, or why nothing is written.
        decisions: one a symbol, in sort order.
    """

    now: float
    halted: str
    decisions: tuple[BudgetDecision, ...]


def vol_regime(sigma: Num) -> Num:
    """Volatility class of an hourly sigma.

    Args:
        sigma: standard deviation of log returns per hour, float or array.

    >>> [vol_regime(s) for s in (0.0049, 0.005, 0.02, 0.0201, 0.03, 0.0301)]
    [0.0, 0.33, 0.33, 0.67, 0.67, 1.0]
    """
    calm = step(sigma, 0.005, 0.0, 0.33)
    lively = step(0.02 + 0.0 * sigma, sigma, 0.67, calm)
    return step(0.03 + 0.0 * sigma, sigma, 1.0, lively)


def stress_factor(heat: Num, cluster_stress: Num, vol: Num, params: BudgetParams | None = None) -> Num:
    """clamp01(ALPHA heat + BETA cluster_stress + GAMMA vol).

    Args:
        heat: portfolio heat, at least 0.
        cluster_stress: 0..1.
        vol: volatility class, 0..1.
        params: the weights.

    >>> stress_factor(0.25, 0.1, 0.67)
    0.274
    """
    p = params or DEFAULTS
    return clamp01(p.alpha_heat * heat + p.beta_cluster * cluster_stress + p.gamma_vol * vol)


def budget(equity_usd: Num, heat: Num, cluster_stress: Num, vol: Num, params: BudgetParams | None = None) -> Num:
    """Base budget of a symbol, USD.

    Args:
        equity_usd: USD, above 0.
        heat: portfolio heat, at least 0.
        cluster_stress: 0..1.
        vol: volatility class, 0..1.
        params: weights, base risk and bounds.

    >>> round(budget(100_000.0, 0.0585, 0.0, 0.33), 2)
    1821.2
    """
    p = params or DEFAULTS
    stress = stress_factor(heat, cluster_stress, vol, p)
    raw = equity_usd * p.base_risk_pct * (1.0 - stress)
    return smaller(clamp(raw, p.min_budget_usd, p.max_budget_usd), equity_usd)


def portfolio_heat(inputs: BudgetInputs, equity_usd: float) -> float:
    """Sum of |notional| x sigma over the symbols where both can be used, over equity.

    Args:
        inputs: the cycle's readings.
        equity_usd: USD, above 0.
    """
    products = []
    for symbol in sorted(inputs.positions):
        position, market = inputs.positions[symbol], inputs.markets.get(symbol)
        if isinstance(position, Fresh) and isinstance(market, Fresh) and market.value.sigma is not None:
            products.append(position.value.notional_usd * market.value.sigma)
    return smaller(exact_sum(products) / equity_usd, HEAT_LIMIT)


def budget_symbol(
    symbol: str,
    position: Reading[Position],
    market: Reading[Market],
    equity_usd: float,
    heat: float,
    cluster_stress: float,
    params: BudgetParams,
) -> BudgetDecision:
    """One symbol's budget from the portfolio's stress and its own volatility.

    Args:
        symbol: the symbol.
        position: its position.
        market: its market state.
        equity_usd: USD, above 0.
        heat: the portfolio's heat.
        cluster_stress: 0..1.
        params: the numbers of P2.8.
    """
    sigma = market.value.sigma if isinstance(market, Fresh) else None
    vol = VOL_UNKNOWN if sigma is None else vol_regime(sigma)
    return BudgetDecision(
        symbol=symbol,
        budget_usd=budget(equity_usd, heat, cluster_stress, vol, params),
        stress_factor=stress_factor(heat, cluster_stress, vol, params),
        equity_usd=equity_usd,
        portfolio_heat=heat,
        cluster_stress=cluster_stress,
        vol_regime=vol,
        sigma=sigma,
        position_notional_usd=position.value.notional_usd if isinstance(position, Fresh) else None,
    )


def _there(reading: Reading[Position] | Reading[Market]) -> bool:
    return not (isinstance(reading, Unusable) and reading.reason is Reason.MISSING)


def budget_cycle(inputs: BudgetInputs, params: BudgetParams | None = None, attempt: Attempt = plainly) -> BudgetCycle:
    """Budgets of all symbols with a position or a market state.

    Args:
        inputs: the cycle's readings.
        params: the numbers of P2.8.
        attempt: how one symbol's step is run (``core.isolate``).

    >>> from quantum_alloc.core.reading import fresh
    >>> book = {"BTCUSDT": fresh(Position(0.02, 90_000.0, 0.0))}
    >>> market = {"BTCUSDT": fresh(Market(90_000.0, 0.006))}
    >>> inputs = BudgetInputs(0.0, fresh(Portfolio(100_000.0, 0.0)), book, market, {})
    >>> budget_cycle(inputs).decisions[0].budget_usd
    1867.9136
    """
    p = params or DEFAULTS
    if isinstance(inputs.portfolio, Unusable):
        return BudgetCycle(inputs.now, f"portfolio_{inputs.portfolio.reason}", ())
    equity = inputs.portfolio.value.equity_usd
    if not equity > 0.0:
        return BudgetCycle(inputs.now, "equity_not_positive", ())
    absent: Unusable[Position] = Unusable(Reason.MISSING)
    no_market: Unusable[Market] = Unusable(Reason.MISSING)
    heat = portfolio_heat(inputs, equity)
    stress = clamp01(exact_sum(r.value for r in inputs.stress.values() if isinstance(r, Fresh)))
    decisions = []
    for symbol in sorted({*inputs.positions, *inputs.markets}):
        position, market = inputs.positions.get(symbol, absent), inputs.markets.get(symbol, no_market)
        if _there(position) or _there(market):
            made = attempt(symbol, partial(budget_symbol, symbol, position, market, equity, heat, stress, p))
            if made is not None:
                decisions.append(made)
    return BudgetCycle(inputs.now, "", tuple(decisions))
