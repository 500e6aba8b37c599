"""The settings of each service: one frozen group each.

Numbers of the rules take their defaults from the core's parameters, so there is one place for each; a field that feeds
a parameter has its name. A group has ``SERVICE``, ``DEFAULT_PORT``, ``port`` and ``interval_s``; with ``params()`` it
makes the core's parameters, and with ``check()`` it refuses contradictions of its own.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from quantum_alloc.core import AllocationParams, BudgetParams
from quantum_alloc.core.params import check
from quantum_alloc.services.settings import Mode, var

METRICS_HELP = "Port of /metrics, /health and /ready."
_MODE_HELP = "shadow decides and records; enforce also has effects. Anything else is shadow."
_B = BudgetParams()
_A = AllocationParams()


class ServiceOptions(Protocol):
    """What every service's group has."""

    SERVICE: ClassVar[str]
    DEFAULT_PORT: ClassVar[int]

    @property
    def port(self) -> int:
        """Port of /metrics, /health and /ready."""

    @property
    def interval_s(self) -> float:
        """Seconds from cycle to cycle."""


def _port(default: int) -> Any:
    return var("METRICS_PORT", default, lo=1, hi=65535, single=True, help=METRICS_HELP)


def _interval(env: str, default: float, hi: float) -> Any:
    return var(env, default, unit="seconds", lo=0.1, hi=hi, help="Time from cycle to cycle.")


def _age(env: str, default: int, what: str) -> Any:
    return var(env, default, unit="seconds", lo=1, hi=86400, help=f"Greatest age of {what} that is still used.")


def _share(env: str, default: float, help: str, *, hi: float = 1.0) -> Any:
    return var(env, default, lo=0, hi=hi, help=help)


@dataclass(frozen=True, slots=True)
class FeedOptions:
    """Candles in; market state, bars and the paper book out."""

    SERVICE: ClassVar[str] = "feed"
    DEFAULT_PORT: ClassVar[int] = 8045

    port: int = _port(DEFAULT_PORT)
    candles: tuple[Path, ...] = var(
        "QA_FEED_CANDLES", (), example="/srv/candles/2025.csv.gz", help="Files to replay; none: simulated candles."
    )
    seed: int = var("QA_FEED_SEED", 7, lo=0, hi=4_294_967_295, help="Seed of the simulator.")
    speed: float = var("QA_FEED_SPEED", 1.0, unit="times real time", above=0, hi=1_000_000, help="Pace of the candles.")
    strict: bool = var("QA_FEED_STRICT", False, help="Stop at the first bad candle instead of leaving it out.")
    rewrite_s: float = var(
        "QA_FEED_REWRITE_SEC",
        10.0,
        unit="seconds",
        lo=0.1,
        hi=60,
        help="Time after which market states are written again, so that they stay fresh between bars.",
    )
    paper_book: bool = var("PAPER_BOOK", False, help="Hold a paper book until the apply layer runs.")
    paper_equity_usd: float = var(
        "QA_PAPER_EQUITY_USD", 100_000.0, unit="USD", above=0, hi=1e12, help="Balance that the paper book starts with."
    )
    paper_exposure_pct: float = var(
        "QA_PAPER_EXPOSURE_PCT", 0.20, unit="fraction of equity", lo=0, hi=10, help="What the paper book holds."
    )

    @property
    def interval_s(self) -> float:
        """Seconds within which a cycle ends: the feed waits for candles, but no longer than it may rewrite."""
        return self.rewrite_s


@dataclass(frozen=True, slots=True)
class PortfolioOptions:
    """Equity, peak and drawdown (P2.5)."""

    SERVICE: ClassVar[str] = "portfolio"
    DEFAULT_PORT: ClassVar[int] = 8046

    port: int = _port(DEFAULT_PORT)
    interval_s: float = _interval("P25_INTERVAL_SEC", 5.0, hi=60)
    balance_stale_s: int = _age("QA_BALANCE_STALE_SEC", 120, "the account balance")
    position_stale_s: int = _age("QA_POSITION_STALE_SEC", 60, "a position")


@dataclass(frozen=True, slots=True)
class BudgetOptions:
    """Base budget of every symbol (P2.8)."""

    SERVICE: ClassVar[str] = "budget"
    DEFAULT_PORT: ClassVar[int] = 8049

    port: int = _port(DEFAULT_PORT)
    mode: Mode = var("P28_MODE", Mode.SHADOW, help=_MODE_HELP)  # noqa: RUF009 - a field
    interval_s: float = _interval("P28_INTERVAL_SEC", 10.0, hi=150)
    alpha_heat: float = _share("ALPHA_HEAT", _B.alpha_heat, "Weight of the portfolio's heat in the stress.", hi=100)
    beta_cluster: float = _share("BETA_CLUSTER", _B.beta_cluster, "Weight of the clusters' stress.", hi=100)
    gamma_vol: float = _share("GAMMA_VOL", _B.gamma_vol, "Weight of the symbol's volatility class.", hi=100)
    base_risk_pct: float = var(
        "BASE_RISK_PCT", _B.base_risk_pct, unit="fraction of equity", above=0, hi=1, help="Budget without any stress."
    )
    min_budget_usd: float = var(
        "MIN_BUDGET_K", _B.min_budget_usd, unit="USD", lo=0, hi=1e12, help="Floor of a budget; the name is historic."
    )
    max_budget_usd: float = var(
        "MAX_BUDGET_K", _B.max_budget_usd, unit="USD", lo=0, hi=1e12, help="Ceiling of a budget; the name is historic."
    )
    stale_portfolio_s: int = _age("STALE_SEC", _B.stale_portfolio_s, "the portfolio")
    stale_data_s: int = _age("P28_STALE_DATA_SEC", _B.stale_data_s, "positions, market states and stress records")

    def params(self) -> BudgetParams:
        """The numbers of P2.8.

        Raises:
            ValueError: naming every contradiction.
        """
        return BudgetParams(**_params_of(self, BudgetParams))


@dataclass(frozen=True, slots=True)
class AllocationOptions:
    """Target per symbol (P2.9)."""

    SERVICE: ClassVar[str] = "allocation"
    DEFAULT_PORT: ClassVar[int] = 8059

    port: int = var("P29_METRICS_PORT", DEFAULT_PORT, lo=1, hi=65535, help=METRICS_HELP)
    mode: Mode = var("P29_MODE", Mode.SHADOW, help=_MODE_HELP)  # noqa: RUF009 - a field
    interval_s: float = _interval("P29_INTERVAL_SEC", 5.0, hi=3600)
    target_ttl_s: int = var("TARGET_TTL_SEC", 300, unit="seconds", lo=1, hi=86400, help="Life of a written target.")
    regime_factor_trend: float = _share("REGIME_FACTOR_TREND", _A.regime_factor_trend, "Factor of TREND.", hi=10)
    regime_factor_mr: float = _share("REGIME_FACTOR_MR", _A.regime_factor_mr, "Factor of MEAN_REVERSION.", hi=10)
    regime_factor_chop: float = _share("REGIME_FACTOR_CHOP", _A.regime_factor_chop, "Factor of CHOP.", hi=10)
    cluster_stress_min: float = _share("CLUSTER_STRESS_MIN", _A.cluster_stress_min, "Smallest cluster factor.")
    cluster_stress_max: float = _share("CLUSTER_STRESS_MAX", _A.cluster_stress_max, "Greatest cluster factor.")
    dd_low_threshold: float = _share("DD_LOW_THRESHOLD", _A.dd_low_threshold, "Drawdown where zone MID begins.")
    dd_high_threshold: float = _share("DD_HIGH_THRESHOLD", _A.dd_high_threshold, "Drawdown where zone HIGH begins.")
    dd_factor_low: float = _share("DD_FACTOR_LOW", _A.dd_factor_low, "Factor of zone LOW.")
    dd_factor_mid: float = _share("DD_FACTOR_MID", _A.dd_factor_mid, "Factor of zone MID.")
    dd_factor_high: float = _share("DD_FACTOR_HIGH", _A.dd_factor_high, "Factor of zone HIGH, and of none known.")
    perf_factor_min: float = _share("PERF_FACTOR_MIN", _A.perf_factor_min, "Performance factor at 0.")
    perf_factor_max: float = var("PERF_FACTOR_MAX", _A.perf_factor_max, lo=1, hi=10, help="Performance factor at 1.")
    max_symbol_pct: float = var(
        "MAX_SYMBOL_PCT", _A.max_symbol_pct, unit="fraction of equity", above=0, hi=1, help="Cap of a symbol."
    )
    max_cluster_pct: float = var(
        "MAX_CLUSTER_PCT", _A.max_cluster_pct, unit="fraction of equity", above=0, hi=1, help="Cap of a cluster's sum."
    )
    stale_data_s: int = _age("STALE_DATA_SEC", _A.stale_data_s, "an input")
    unmapped_cluster_policy: str = var(
        "UNMAPPED_CLUSTER_POLICY",
        _A.unmapped_cluster_policy,
        choices=("shared", "exempt"),
        help="Symbols that the cluster map does not name: one group under the cap, or no cluster cap.",
    )

    def params(self) -> AllocationParams:
        """The numbers of P2.9.

        Raises:
            ValueError: naming every contradiction.
        """
        return AllocationParams(**_params_of(self, AllocationParams))

    def check(self) -> None:
        """Refuse targets that expire before the next cycle writes them again.

        Raises:
            ValueError: naming both variables.
        """
        check((self.target_ttl_s > self.interval_s, "target_ttl_s must be above interval_s: targets expire"))


def _params_of(options: Any, params: type[Any]) -> dict[str, Any]:
    return {field.name: getattr(options, field.name) for field in dataclasses.fields(params)}
