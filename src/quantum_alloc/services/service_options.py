"""The settings of each service: one frozen group each.

Numbers of the rules take their defaults from the core's parameters, so there is one place for each; a field that feeds
a parameter has its name. A group has ``SERVICE``, ``DEFAULT_PORT``, ``port`` and ``interval_s``; with ``params()`` it
makes the core's parameters, and with ``check()`` it refuses contradictions of its own.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Protocol

from quantum_alloc.adapters.keys import tag_of
from quantum_alloc.core import (
    AllocationParams,
    AttributionParams,
    BudgetParams,
    ClusterParams,
    EfficiencyParams,
    ProposalParams,
    RegimeParams,
)
from quantum_alloc.core.params import check
from quantum_alloc.services.settings import Mode, var

METRICS_HELP = "Port of /metrics, /health and /ready."
_MODE_HELP = "shadow decides and records; enforce also has effects. Anything else is shadow."
_STALE_HELP = "Greatest age of {} without a flag; beyond it the value counts, at half the confidence."
_R = RegimeParams()
_C = ClusterParams()
_B = BudgetParams()
_A = AllocationParams()
_P30 = AttributionParams()
_P31 = EfficiencyParams()
_P = ProposalParams()


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


def port_var(default: int) -> Any:
    """A service's port.

    Args:
        default: where it listens unless told otherwise.
    """
    return var("METRICS_PORT", default, lo=1, hi=65535, single=True, help=METRICS_HELP)


def _interval(env: str, default: float, hi: float) -> Any:
    return var(env, default, unit="seconds", lo=0.1, hi=hi, help="Time from cycle to cycle.")


def age_var(env: str, default: int, what: str) -> Any:
    """A greatest age, seconds.

    Args:
        env: the environment variable.
        default: seconds.
        what: it is the age of.
    """
    return var(env, default, unit="seconds", lo=1, hi=86400, help=f"Greatest age of {what} that is still used.")


def share_var(env: str, default: float, help: str, *, hi: float = 1.0) -> Any:
    """A share.

    Args:
        env: the environment variable.
        default: its value.
        help: one sentence.
        hi: greatest value.
    """
    return var(env, default, lo=0, hi=hi, help=help)


TAKEN_STREAMS = frozenset(
    f"quantum:stream:{name}"
    for name in (
        "portfolio.state", "budget.violation", "regime.state", "alpha.attribution", "allocation.decision",
        "allocation.cycle", "execution.result", "execution.deadletter", "capital.efficiency.decision",
        "allocation.target.proposed", "apply.plan", "apply.plan.deadletter", "apply.result", "governor.events",
        "account.transfer",
    )
)  # fmt: skip
"""Streams of the contract: a setting may name its own default among them and no other."""


def is_stream(default: str, text: str) -> bool:
    """Whether a text may name a stream: plain ASCII without spaces, nothing of ours but a stream, and nobody else's.

    Args:
        default: the setting's own stream.
        text: the setting.

    >>> fills = "quantum:stream:execution.result"
    >>> is_stream(fills, fills), is_stream(fills, "quantum:kill"), is_stream(fills, "{q}quantum:stream:apply.plan")
    (True, False, False)
    """
    text = tag_of(text)[1]
    plain = text.isascii() and text.isprintable() and not any(c.isspace() for c in text) and 0 < len(text) <= 200
    ours = text.startswith("quantum:") and not text.startswith("quantum:stream:")
    bars = text.startswith("quantum:stream:market.bars:")
    return plain and not ours and not bars and (text == default or text not in TAKEN_STREAMS)


def stream_var(env: str, default: str, what: str) -> Any:
    """A setting that names a stream.

    Args:
        env: the environment variable.
        default: the stream's name.
        what: it holds.
    """
    wanted = "the name of a stream without spaces; under quantum: only quantum:stream:..., and none of another service"
    return var(env, default, accepts=partial(is_stream, default), expects=wanted, help=f"Stream of {what}.")


EXECUTION_STREAM = "quantum:stream:execution.result"


def _executions() -> Any:
    return stream_var("EXECUTION_STREAM", EXECUTION_STREAM, "executions")


def _events(env: str) -> Any:
    return var(
        env, 2000, unit="entries", lo=1, hi=1_000_000, help="Entries of the execution stream that one cycle takes."
    )


@dataclass(frozen=True, slots=True)
class FeedOptions:
    """Candles in; market state, bars and the paper book out."""

    SERVICE: ClassVar[str] = "feed"
    DEFAULT_PORT: ClassVar[int] = 8045

    port: int = port_var(DEFAULT_PORT)
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
    paper_rebalance_bars: int = var(
        "QA_PAPER_REBALANCE_BARS",
        15,
        unit="bars",
        lo=0,
        hi=1_000_000,
        help="Bars after which the paper book sells half of a symbol and buys it back to its share; 0 for never.",
    )
    execution_stream: str = _executions()

    @property
    def interval_s(self) -> float:
        """Seconds within which a cycle ends: the feed waits for candles, but no longer than it may rewrite."""
        return self.rewrite_s


@dataclass(frozen=True, slots=True)
class PortfolioOptions:
    """Equity, peak and drawdown (P2.5)."""

    SERVICE: ClassVar[str] = "portfolio"
    DEFAULT_PORT: ClassVar[int] = 8046

    port: int = port_var(DEFAULT_PORT)
    interval_s: float = _interval("P25_INTERVAL_SEC", 5.0, hi=60)
    balance_stale_s: int = age_var("QA_BALANCE_STALE_SEC", 120, "the account balance")
    position_stale_s: int = age_var("QA_POSITION_STALE_SEC", 60, "a position")


@dataclass(frozen=True, slots=True)
class RegimeOptions:
    """Whether the market trends, reverts, or only makes noise."""

    SERVICE: ClassVar[str] = "regime"
    DEFAULT_PORT: ClassVar[int] = 8047

    port: int = port_var(DEFAULT_PORT)
    interval_s: float = _interval("QA_REGIME_INTERVAL_SEC", 30.0, hi=3600)
    window: int = var("REGIME_WINDOW", _R.window, unit="bars", lo=8, hi=1400, help="Returns that it looks at.")
    horizon: int = var("REGIME_HORIZON", _R.horizon, unit="bars", lo=2, hi=100, help="How many of them are summed.")
    max_symbols: int = var(
        "QA_REGIME_MAX_SYMBOLS", 1_000, lo=1, hi=3_000, help="Symbols of the universe's return; the rest is counted."
    )
    z: float = var("REGIME_Z", _R.z, above=0, hi=10, help="Statistic from which on a regime is called.")
    chop_vol: float = var(
        "REGIME_CHOP_VOL", _R.chop_vol, above=0, hi=100, help="Volatility over its median from which on noise is CHOP."
    )

    def params(self) -> RegimeParams:
        """The numbers of the detector.

        Raises:
            ValueError: naming every contradiction.
        """
        return RegimeParams(**_params_of(self, RegimeParams))


@dataclass(frozen=True, slots=True)
class ClustersOptions:
    """Which symbols move together, and the strain of each group (P2.7)."""

    SERVICE: ClassVar[str] = "clusters"
    DEFAULT_PORT: ClassVar[int] = 8048

    port: int = port_var(DEFAULT_PORT)
    interval_s: float = _interval("QA_CLUSTERS_INTERVAL_SEC", 15.0, hi=150)
    lookback: int = var("P27_LOOKBACK", _C.lookback, unit="bars", lo=3, hi=1400, help="Bars that correlations look at.")
    corr_min: float = var(
        "P27_CLUSTER_CORR_MIN", _C.corr_min, above=-1, hi=0.9999, help="Correlation at which the tree is cut."
    )
    min_common: int = var(
        "QA_CLUSTER_MIN_COMMON", _C.min_common, unit="bars", lo=3, hi=1400, help="Bars that two symbols have in common."
    )
    max_symbols: int = var(
        "QA_CLUSTER_MAX_SYMBOLS", 1_000, lo=1, hi=3_000, help="Symbols that are clustered; the rest is counted."
    )
    static_map: Path | None = var(  # noqa: RUF009 - a field
        "QA_CLUSTER_MAP",
        None,
        example="/etc/quantum/clusters.json",
        help="JSON of cluster ids to symbols, in place of correlations.",
    )

    def params(self) -> ClusterParams:
        """The numbers of P2.7.

        Raises:
            ValueError: naming every contradiction.
        """
        return ClusterParams(**_params_of(self, ClusterParams))


@dataclass(frozen=True, slots=True)
class BudgetOptions:
    """Base budget of every symbol (P2.8)."""

    SERVICE: ClassVar[str] = "budget"
    DEFAULT_PORT: ClassVar[int] = 8049

    port: int = port_var(DEFAULT_PORT)
    mode: Mode = var("P28_MODE", Mode.SHADOW, help=_MODE_HELP)  # noqa: RUF009 - a field
    interval_s: float = _interval("P28_INTERVAL_SEC", 10.0, hi=150)
    alpha_heat: float = share_var("ALPHA_HEAT", _B.alpha_heat, "Weight of the portfolio's heat in the stress.", hi=100)
    beta_cluster: float = share_var("BETA_CLUSTER", _B.beta_cluster, "Weight of the clusters' stress.", hi=100)
    gamma_vol: float = share_var("GAMMA_VOL", _B.gamma_vol, "Weight of the symbol's volatility class.", hi=100)
    base_risk_pct: float = var(
        "BASE_RISK_PCT", _B.base_risk_pct, unit="fraction of equity", above=0, hi=1, help="Budget without any stress."
    )
    min_budget_usd: float = var(
        "MIN_BUDGET_K", _B.min_budget_usd, unit="USD", lo=0, hi=1e12, help="Floor of a budget; the name is historic."
    )
    max_budget_usd: float = var(
        "MAX_BUDGET_K", _B.max_budget_usd, unit="USD", lo=0, hi=1e12, help="Ceiling of a budget; the name is historic."
    )
    stale_portfolio_s: int = age_var("STALE_SEC", _B.stale_portfolio_s, "the portfolio")
    stale_data_s: int = age_var("P28_STALE_DATA_SEC", _B.stale_data_s, "positions, market states and stress records")

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
    regime_factor_trend: float = share_var("REGIME_FACTOR_TREND", _A.regime_factor_trend, "Factor of TREND.", hi=10)
    regime_factor_mr: float = share_var("REGIME_FACTOR_MR", _A.regime_factor_mr, "Factor of MEAN_REVERSION.", hi=10)
    regime_factor_chop: float = share_var("REGIME_FACTOR_CHOP", _A.regime_factor_chop, "Factor of CHOP.", hi=10)
    cluster_stress_min: float = share_var("CLUSTER_STRESS_MIN", _A.cluster_stress_min, "Smallest cluster factor.")
    cluster_stress_max: float = share_var("CLUSTER_STRESS_MAX", _A.cluster_stress_max, "Greatest cluster factor.")
    dd_low_threshold: float = share_var("DD_LOW_THRESHOLD", _A.dd_low_threshold, "Drawdown where zone MID begins.")
    dd_high_threshold: float = share_var("DD_HIGH_THRESHOLD", _A.dd_high_threshold, "Drawdown where zone HIGH begins.")
    dd_factor_low: float = share_var("DD_FACTOR_LOW", _A.dd_factor_low, "Factor of zone LOW.")
    dd_factor_mid: float = share_var("DD_FACTOR_MID", _A.dd_factor_mid, "Factor of zone MID.")
    dd_factor_high: float = share_var("DD_FACTOR_HIGH", _A.dd_factor_high, "Factor of zone HIGH, and of none known.")
    perf_factor_min: float = share_var("PERF_FACTOR_MIN", _A.perf_factor_min, "Performance factor at 0.")
    perf_factor_max: float = var("PERF_FACTOR_MAX", _A.perf_factor_max, lo=1, hi=10, help="Performance factor at 1.")
    max_symbol_pct: float = var(
        "MAX_SYMBOL_PCT", _A.max_symbol_pct, unit="fraction of equity", above=0, hi=1, help="Cap of a symbol."
    )
    max_cluster_pct: float = var(
        "MAX_CLUSTER_PCT", _A.max_cluster_pct, unit="fraction of equity", above=0, hi=1, help="Cap of a cluster's sum."
    )
    stale_data_s: int = age_var("STALE_DATA_SEC", _A.stale_data_s, "an input")
    unmapped_cluster_policy: str = var(
        "UNMAPPED_CLUSTER_POLICY",
        _A.unmapped_cluster_policy,
        choices=("shared", "exempt"),
        help="Symbols that the cluster map does not name: one group under the cap, or no cluster cap.",
    )
    use_proposed: bool = var(
        "P29_USE_PROPOSED",
        _A.use_proposed,
        help="The proposer's multiplier is a further factor before the caps, moving by at most 10 % a cycle.",
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


@dataclass(frozen=True, slots=True)
class AttributionOptions:
    """Performance factor per symbol (P3.0)."""

    SERVICE: ClassVar[str] = "attribution"
    DEFAULT_PORT: ClassVar[int] = 8061

    port: int = var("P30_METRICS_PORT", DEFAULT_PORT, lo=1, hi=65535, help=METRICS_HELP)
    mode: Mode = var("P30_MODE", Mode.SHADOW, help=_MODE_HELP)  # noqa: RUF009 - a field
    interval_s: float = _interval("P30_INTERVAL_SEC", 5.0, hi=3600)
    attribution_ttl_s: int = var(
        "ATTRIBUTION_TTL_SEC", 300, unit="seconds", lo=1, hi=86400, help="Life of a written attribution."
    )
    execution_stream: str = _executions()
    max_events: int = _events("P30_MAX_EVENTS_PER_LOOP")
    lookback_window: int = var(
        "LOOKBACK_WINDOW", _P30.lookback_window, unit="executions", lo=1, hi=100, help="How many executions count."
    )
    pnl_scale_usd: float = var(
        "PNL_SCALE_USD", _P30.pnl_scale_usd, unit="USD", above=0, hi=1e12, help="Mean PnL at which alpha is 0.46."
    )
    ewma_alpha: float = var("EWMA_ALPHA", _P30.ewma_alpha, above=0, hi=1, help="Weight of the newest alpha.")
    max_lkg_age_s: int = var(
        "MAX_LKG_AGE_SEC",
        _P30.max_lkg_age_s,
        unit="seconds",
        lo=0,
        hi=604800,
        help="Time after the last execution from which on the source is LKG and the confidence falls.",
    )
    attribution_max_age_s: int = var(
        "ATTRIBUTION_MAX_AGE_SEC",
        _P30.attribution_max_age_s,
        unit="seconds",
        lo=1,
        hi=604800,
        help="Time after the last execution at which the confidence is 0 and publishing stops.",
    )

    def params(self) -> AttributionParams:
        """The numbers of P3.0.

        Raises:
            ValueError: naming every contradiction.
        """
        return AttributionParams(**_params_of(self, AttributionParams))

    def check(self) -> None:
        """Refuse attributions that expire before the next cycle writes them again.

        Raises:
            ValueError: naming both variables.
        """
        check((self.attribution_ttl_s > self.interval_s, "attribution_ttl_s must be above interval_s: they expire"))


@dataclass(frozen=True, slots=True)
class EfficiencyOptions:
    """Efficiency score per symbol (P3.1)."""

    SERVICE: ClassVar[str] = "efficiency"
    DEFAULT_PORT: ClassVar[int] = 8062

    port: int = var("P31_PORT", DEFAULT_PORT, lo=1, hi=65535, help=METRICS_HELP)
    health_port: int = var(
        "P31_HEALTH_PORT", 8063, lo=1, hi=65535, help="A second port of /health and /ready, as existing checks ask it."
    )
    mode: Mode = var("P31_MODE", Mode.SHADOW, help=_MODE_HELP)  # noqa: RUF009 - a field
    interval_s: float = _interval("P31_LOOP_SEC", 5.0, hi=3600)
    key_ttl_s: int = var("P31_KEY_TTL_SEC", 600, unit="seconds", lo=1, hi=86400, help="Life of a written efficiency.")
    execution_stream: str = _executions()
    efficiency_stream: str = stream_var(
        "EFFICIENCY_STREAM", "quantum:stream:capital.efficiency.decision", "efficiency decisions"
    )
    max_events: int = _events("P31_MAX_EVENTS_PER_LOOP")
    run_once: bool = var(
        "P31_RUN_ONCE", False, single=True, help="One cycle, no port, then exit, as run efficiency --once does."
    )
    vol_alpha: float = var("P31_VOL_ALPHA", _P31.vol_alpha, above=0, hi=1, help="Weight of the newest absolute PnL.")
    dd_alpha: float = var("P31_DD_ALPHA", _P31.dd_alpha, above=0, hi=1, help="Weight of the newest loss.")
    w_vol: float = share_var("P31_W_VOL", _P31.w_vol, "Weight of the volatility over the target.", hi=100)
    w_dd: float = share_var("P31_W_DD", _P31.w_dd, "Weight of the losses over the target.", hi=100)
    w_hold: float = share_var("P31_W_HOLD", _P31.w_hold, "Weight of the time since the last execution.", hi=100)
    hold_penalty_max_s: float = var(
        "P31_HOLD_PENALTY_MAX_SEC",
        _P31.hold_penalty_max_s,
        unit="seconds",
        above=0,
        hi=604800,
        help="Time without an execution at which that penalty is full.",
    )
    score_alpha: float = var("P31_SCORE_ALPHA", _P31.score_alpha, above=0, hi=1, help="Weight of the newest score.")
    stale_s_p30: int = var(
        "P31_STALE_SEC_P30", _P31.stale_s_p30, unit="seconds", lo=1, hi=86400, help=_STALE_HELP.format("an attribution")
    )
    stale_s_p29: int = var(
        "P31_STALE_SEC_P29", _P31.stale_s_p29, unit="seconds", lo=1, hi=86400, help=_STALE_HELP.format("a target")
    )

    def params(self) -> EfficiencyParams:
        """The numbers of P3.1.

        Raises:
            ValueError: naming every contradiction.
        """
        return EfficiencyParams(**_params_of(self, EfficiencyParams))

    def check(self) -> None:
        """Refuse efficiencies that expire too early, decisions in the stream of executions, and one port twice.

        Raises:
            ValueError: naming the variables.
        """
        check(
            (self.key_ttl_s > self.interval_s, "key_ttl_s must be above interval_s: they expire"),
            (self.efficiency_stream != self.execution_stream, "efficiency_stream must not be execution_stream"),
            (self.health_port != self.port, "health_port must not be port"),
        )


@dataclass(frozen=True, slots=True)
class ProposerOptions:
    """What each target would be if efficiency counted (step 1); always shadow."""

    SERVICE: ClassVar[str] = "proposer"
    DEFAULT_PORT: ClassVar[int] = 8065

    port: int = port_var(DEFAULT_PORT)
    interval_s: float = _interval("LOOP_INTERVAL_SEC", 10.0, hi=3600)
    propose_ttl_s: int = var("PROPOSE_KEY_TTL", 600, unit="seconds", lo=1, hi=86400, help="Life of a proposal.")
    propose_stream: str = stream_var("PROPOSE_STREAM_NAME", "quantum:stream:allocation.target.proposed", "proposals")
    base: float = var("P31_BASE", _P.base, lo=0, hi=10, help="Multiplier at score 0.5.")
    scale: float = share_var("P31_SCALE", _P.scale, "What one unit of score moves the multiplier by.", hi=10)
    min_mult: float = share_var("P31_MIN_MULT", _P.min_mult, "Smallest multiplier.")
    max_mult: float = var("P31_MAX_MULT", _P.max_mult, lo=1, hi=10, help="Greatest multiplier.")
    min_conf: float = share_var("P31_MIN_CONF", _P.min_conf, "Smallest confidence of an efficiency that counts.")
    stale_s: int = age_var("P31_STALE_SEC", _P.stale_s, "an efficiency")
    base_stale_s: int = age_var("QA_PROPOSE_BASE_STALE_SEC", _P.base_stale_s, "a base target")

    def params(self) -> ProposalParams:
        """The numbers of the proposer.

        Raises:
            ValueError: naming every contradiction.
        """
        return ProposalParams(**_params_of(self, ProposalParams))

    def check(self) -> None:
        """Refuse proposals that expire before the next cycle writes them again.

        Raises:
            ValueError: naming both variables.
        """
        check((self.propose_ttl_s > self.interval_s, "propose_ttl_s must be above interval_s: they expire"))


def _params_of(options: Any, params: type[Any]) -> dict[str, Any]:
    return {field.name: getattr(options, field.name) for field in dataclasses.fields(params)}
