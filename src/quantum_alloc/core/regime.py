"""Market regime: does the universe trend, revert, or only make noise.

Lo and MacKinlay (1988), "Stock market prices do not follow random walks", Review of Financial Studies 1(1), 41-66, over
the last n log returns r_t of the equal-weighted universe, mean mu, horizon q, overlapping, unbiased:

    sigma_a^2 = 1/(n-1) sum (r_t - mu)^2
    sigma_c^2 = 1/m sum_{t=q..n} (r_t + ... + r_{t-q+1} - q mu)^2          m = q (n - q + 1) (1 - q/n)
    VR        = sigma_c^2 / sigma_a^2
    delta_j   = n sum_{t>j} (r_t - mu)^2 (r_{t-j} - mu)^2 / (sum (r_t - mu)^2)^2
    theta     = sum_{j=1..q-1} (2 (q - j) / q)^2 delta_j
    z*        = sqrt(n) (VR - 1) / sqrt(theta)                             robust to heteroskedasticity

    z* > Z -> TREND; z* < -Z -> MEAN_REVERSION; else realised volatility of the window above CHOP_VOL x its median over
    the last day -> CHOP; else NEUTRAL
    confidence = 2 Phi(|z*|) - 1 for the first two, 2 (1 - Phi(|z*|)) for CHOP, 0.5 for NEUTRAL

Returns across gaps are dropped and counted. Symbols whose newest bar is too old, or whose bars have another length than
most, do not count. Fewer returns than the window, a window of constant prices, or no bar that is new enough: there is
no regime, and a reason. Source: the project's rules, section 7.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quantum_alloc.core.params import check, positive
from quantum_alloc.core.returns import Bars, Returns, common_length, returns_of
from quantum_alloc.core.table import Explained

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

RULES_VERSION = "regime_v1"
DAY_S = 86_400.0
STALE_S = 180.0
STALE_BARS = 3.0
KEPT_BARS = 1_500
"""Columns that are looked at: a day of minutes and more; the stream keeps no more."""
STILL = 1e-12
"""Standard deviation of returns below which only the last bits of prices move."""


@dataclass(frozen=True, slots=True)
class RegimeParams:
    """The numbers of the regime detector.

    Attributes:
        window: returns that the statistic looks at.
        horizon: how many of them are summed.
        z: statistic from which on a regime is called.
        chop_vol: volatility over its median from which on noise is called CHOP.

    Raises:
        ValueError: naming every contradiction.
    """

    window: int = 240
    horizon: int = 4
    z: float = 1.64
    chop_vol: float = 1.5

    def __post_init__(self) -> None:
        """Refuse contradictions."""
        check(
            (self.horizon >= 2, "horizon must be at least 2"),
            (self.window >= 2 * self.horizon, "window must be at least twice horizon"),
            positive("z", self.z),
            positive("chop_vol", self.chop_vol),
        )


DEFAULTS = RegimeParams()


@dataclass(frozen=True, slots=True)
class RegimeDecision(Explained):
    """The regime, with everything that made it.

    Attributes:
        now: unix seconds.
        regime: TREND, MEAN_REVERSION, CHOP or NEUTRAL.
        confidence: 0..1.
        z: the robust statistic.
        variance_ratio: 1 for a random walk.
        volatility_ratio: realised volatility of the window over its median of the last day.
        bars: returns in the window.
        gaps: returns of the universe that were dropped because no symbol's bar follows directly.
        newest_ts: close of the newest bar, unix seconds.
        symbols: how many symbols count.
    """

    now: float
    regime: str
    confidence: float
    z: float
    variance_ratio: float
    volatility_ratio: float
    bars: int
    gaps: int
    newest_ts: float
    symbols: int


@dataclass(frozen=True, slots=True)
class NoRegime:
    """Why there is no regime.

    Attributes:
        now: unix seconds.
        reason: no_bars, stale_bars, too_few_bars or constant_prices.
        bars: returns that there are.
        gaps: returns that were dropped.
        symbols: how many symbols count.
    """

    now: float
    reason: str
    bars: int = 0
    gaps: int = 0
    symbols: int = 0


def variance_ratio(returns: Floats, horizon: int) -> tuple[float, float] | None:
    """Variance ratio and its robust statistic z*; None where the returns do not vary.

    Args:
        returns: (n,) log returns, finite.
        horizon: at least 2, at most half of n.

    >>> import numpy as np
    >>> vr, z = variance_ratio(np.array([1.0, -1.0] * 20), 2)
    >>> round(vr, 4), z < -6.0
    (0.0, True)
    """
    import numpy as np

    n, q = returns.size, horizon
    centred = returns - returns.mean()
    squares = centred**2
    total = float(squares.sum())
    if not math.sqrt(total / n) > STILL:
        return None
    sums = np.convolve(centred, np.ones(q), "valid")
    m = q * (n - q + 1) * (1.0 - q / n)
    vr = float((sums**2).sum()) / m / (total / (n - 1))
    theta = 0.0
    for j in range(1, q):
        delta = n * float(squares[j:] @ squares[:-j]) / total**2
        theta += (2.0 * (q - j) / q) ** 2 * delta
    if not (theta > 0.0 and math.isfinite(vr)):
        return None
    return vr, math.sqrt(n) * (vr - 1.0) / math.sqrt(theta)


def regime_of(z: float, volatility_ratio: float, params: RegimeParams | None = None) -> tuple[str, float]:
    """Regime and confidence of a statistic.

    Args:
        z: the robust statistic.
        volatility_ratio: realised volatility over its median.
        params: the thresholds.

    >>> regime_of(1.96, 1.0)[0], round(regime_of(1.96, 1.0)[1], 3), regime_of(0.0, 2.0), regime_of(-1.0, 1.0)
    ('TREND', 0.95, ('CHOP', 1.0), ('NEUTRAL', 0.5))
    """
    p = params or DEFAULTS
    if z > p.z:
        return "TREND", math.erf(z / math.sqrt(2.0))
    if z < -p.z:
        return "MEAN_REVERSION", math.erf(-z / math.sqrt(2.0))
    if volatility_ratio > p.chop_vol:
        return "CHOP", math.erfc(abs(z) / math.sqrt(2.0))
    return "NEUTRAL", 0.5


def _volatility_ratio(returns: Floats, times: Floats, window: int) -> float:
    """Root mean square of the last window over the median of that of every window that ends within a day."""
    import numpy as np

    windows = np.lib.stride_tricks.sliding_window_view(returns, window)
    ends = times[window - 1 :]
    rms = np.sqrt(np.mean(windows[ends > times[-1] - DAY_S] ** 2, axis=1))
    median = float(np.median(rms))
    return float(rms[-1]) / median if median > 0.0 else 1.0


def _universe(bars: Mapping[str, Bars], window: int, since: float = -math.inf) -> tuple[Floats, Floats, Returns]:
    """Equal-weighted returns, their times, and the table that they come from."""
    import numpy as np

    table = returns_of(bars, max(KEPT_BARS, window + 1), since)
    if not table.symbols:
        return np.empty(0), np.empty(0), table
    there = ~np.isnan(table.values).all(axis=0)
    return np.nanmean(table.values[:, there], axis=0), table.times[there], table


def statistic_over_time(
    bars: Mapping[str, Bars], params: RegimeParams | None = None
) -> list[tuple[float, float, float]]:
    """The statistic as it was at each bar: time, z* and volatility ratio; a window that does not vary is left out.

    Args:
        bars: by symbol.
        params: the numbers of the detector.
    """
    p = params or DEFAULTS
    returns, times, _ = _universe(bars, p.window)
    out = []
    for end in range(p.window, returns.size + 1):
        found = variance_ratio(returns[end - p.window : end], p.horizon)
        if found is not None:
            ratio = _volatility_ratio(returns[:end], times[:end], p.window)
            out.append((float(times[end - 1]), found[1], ratio))
    return out


def classify_regime(
    bars: Mapping[str, Bars], now: float, params: RegimeParams | None = None
) -> RegimeDecision | NoRegime:
    """The regime of the equal-weighted universe.

    Args:
        bars: by symbol; those ahead of ``now`` do not count.
        now: unix seconds.
        params: the numbers of the detector.
    """
    p = params or DEFAULTS
    bars = {s: b.until(now) for s, b in bars.items()}
    lengths = [float(b.bar_s[-1]) for b in bars.values() if b.times.size]
    if not lengths:
        return NoRegime(now, "no_bars")
    limit = max(STALE_S, STALE_BARS * common_length(lengths))
    universe, times, table = _universe(bars, p.window, math.floor(now) - limit + 1.0)
    if not table.symbols:
        return NoRegime(now, "stale_bars", 0, 0, 0)
    gaps = table.times.size - times.size - table.first
    newest = float(table.times[-1])
    counts = (universe.size, gaps, len(table.symbols))
    if universe.size < p.window:
        return NoRegime(now, "too_few_bars", *counts)
    found = variance_ratio(universe[-p.window :], p.horizon)
    if found is None:
        return NoRegime(now, "constant_prices", *counts)
    vr, z = found
    ratio = _volatility_ratio(universe, times, p.window)
    regime, confidence = regime_of(z, ratio, p)
    return RegimeDecision(now, regime, confidence, z, vr, ratio, p.window, gaps, newest, len(table.symbols))
