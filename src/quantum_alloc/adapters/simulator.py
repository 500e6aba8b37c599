"""A seeded market: endless candles whose regimes, groups and correlations are known beforehand.

    regime       leaves with probability 1/DWELL_BARS a bar, for each of the others alike (mean dwell 400 bars)
    m(t)         = phi m(t-1) + sqrt(1 - phi^2) z        market factor, variance 1
                   phi: TREND +0.4, MEAN_REVERSION -0.4, CHOP and NEUTRAL 0
    g_k(t), e_i(t)  independent, variance 1              factor of group k, noise of symbol i
    v(t)         = 0.97 v(t-1) + 0.06 z                  volatility clusters
    level(t)     = clamp(1 + v(t), 0.5, 2) x (1.8 in CHOP, else 1)
    r_i(t)       = sigma_i sqrt(bar_s / 60) level(t) (A m + B g_k + C e_i),  A^2, B^2, C^2 = 0.45, 0.37, 0.18
    p_i(t)       = p_i(t-1) (1 + clamp(r_i - PULL (bar_s / 60) (p_i(t-1) / start_i - 1), -0.5, 0.5)),
                   held within start_i / 100 and start_i x 100
    volume_i(t)  = turnover_i / p_i (0.3 + u) (0.5 + |r_i| / (sigma_i sqrt(bar_s / 60)))

So two symbols correlate A^2 + B^2 = 0.82 within a group and A^2 = 0.45 across groups. z is the sum of twelve uniform
numbers less 6: with it the model is + - * / sqrt and comparisons, exact in IEEE 754, so that a seed gives the same
bits on every machine and every version of Python. A symbol's path depends on the seed and on its own name, and not on
which others are simulated. It is a model for demonstrations and tests and says nothing about profit.
"""

from __future__ import annotations

import math
import random
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from quantum_alloc.adapters.candles import Candle, Step
from quantum_alloc.adapters.codec import symbol as checked_symbol
from quantum_alloc.core.numeric import clamp

TrueRegime: TypeAlias = Literal["TREND", "MEAN_REVERSION", "CHOP", "NEUTRAL"]
REGIMES: tuple[TrueRegime, ...] = get_args(TrueRegime)
GROUPS = ("majors", "layer1", "defi")

START = 1_767_225_600.0
"""2026-01-01T00:00:00Z: the first bar opens here."""
DWELL_BARS = 400
PHI: dict[TrueRegime, float] = {"TREND": 0.4, "MEAN_REVERSION": -0.4, "CHOP": 0.0, "NEUTRAL": 0.0}
CHOP_LEVEL = 1.8
MARKET, GROUP, OWN = math.sqrt(0.45), math.sqrt(0.37), math.sqrt(0.18)
VOL_MEMORY, VOL_NOISE = 0.97, 0.06
PULL = 2e-5
"""Weak pull of a price to its start, a minute: invisible in a day, and it keeps a year within reason."""


@dataclass(frozen=True, slots=True)
class Asset:
    """What one symbol is like.

    Attributes:
        start_usd: price before the first bar, USD, above 0.
        group: one of ``GROUPS``.
        sigma: standard deviation of one minute's return in a calm regime.
        turnover_usd: typical turnover of one bar, USD.
    """

    start_usd: float
    group: str
    sigma: float
    turnover_usd: float


ASSETS = {
    "BTCUSDT": Asset(87_500.0, "majors", 0.0007, 5e6),
    "ETHUSDT": Asset(2_900.0, "majors", 0.0009, 2.5e6),
    "BNBUSDT": Asset(840.0, "majors", 0.0007, 4e5),
    "SOLUSDT": Asset(125.0, "layer1", 0.0011, 1e6),
    "XRPUSDT": Asset(1.9, "majors", 0.0009, 5e5),
    "ADAUSDT": Asset(0.37, "layer1", 0.0012, 1e5),
    "DOTUSDT": Asset(1.82, "layer1", 0.0013, 4e4),
    "LINKUSDT": Asset(12.4, "defi", 0.0012, 6e4),
    "AVAXUSDT": Asset(11.8, "layer1", 0.0012, 6e4),
    "UNIUSDT": Asset(5.3, "defi", 0.0015, 4e4),
    "ATOMUSDT": Asset(1.92, "layer1", 0.0012, 1e4),
}
DEFAULT_SYMBOLS = tuple(ASSETS)


def asset(symbol: str) -> Asset:
    """The symbol's entry in the table, or one made from nothing but its name.

    Args:
        symbol: the symbol.

    >>> asset("BTCUSDT").start_usd, asset("DOGEUSDT").start_usd
    (87500.0, 654.0)
    """
    if symbol in ASSETS:
        return ASSETS[symbol]
    n = zlib.crc32(symbol.encode())
    n, mantissa = divmod(n, 900)
    n, scale = divmod(n, 4)
    n, group = divmod(n, len(GROUPS))
    start_usd = (100 + mantissa) * (0.001, 0.01, 0.1, 1.0)[scale]
    return Asset(_short(start_usd), GROUPS[group], (10 + n % 7) / 10_000, 3e4)


def _short(x: float) -> float:
    """Eight significant digits, so that the text stays short."""
    return float(f"{x:.8g}")


def _normal(uniform: Callable[[], float]) -> float:
    """Mean 0, variance 1, within +-6; added one by one, because ``sum`` of floats differs between versions."""
    u = uniform
    return u() + u() + u() + u() + u() + u() + u() + u() + u() + u() + u() + u() - 6.0


def _uniform(*key: object) -> Callable[[], float]:
    """A stream of numbers in [0, 1) of its own for each key."""
    text = ":".join(map(str, key)).encode()
    return random.Random(int.from_bytes(text, "big")).random  # noqa: S311 - a market, not a secret


@dataclass(slots=True)
class _Path:
    symbol: str
    asset: Asset
    uniform: Callable[[], float]
    price: float  # not rounded: rounding must not feed back

    def advance(self, shared: float, own: float, bar_s: float) -> tuple[float, float]:
        """The next close and volume, rounded.

        Args:
            shared: what market and group give, in standard deviations.
            own: weight of the symbol's own noise, in standard deviations.
            bar_s: length of the bar, seconds.
        """
        sigma = self.asset.sigma * math.sqrt(bar_s / 60.0)
        r = sigma * (shared + own * _normal(self.uniform))
        start = self.asset.start_usd
        pulled = r - PULL * (bar_s / 60.0) * (self.price / start - 1.0)
        self.price = clamp(self.price * (1.0 + clamp(pulled, -0.5, 0.5)), start / 100.0, start * 100.0)
        volume = self.asset.turnover_usd / self.price * (0.3 + self.uniform()) * (0.5 + abs(r) / sigma)
        return _short(self.price), _short(volume)


def _next_regime(regime: TrueRegime, leave: float, choice: float) -> TrueRegime:
    """One step of the Markov chain, from two uniform numbers."""
    if leave * DWELL_BARS >= 1.0:
        return regime
    others = [r for r in REGIMES if r != regime]
    return others[int(choice * len(others))]


def simulate_with_regime(
    seed: int, *, symbols: Sequence[str] = DEFAULT_SYMBOLS, start: float = START, bar_s: float = 60.0
) -> Iterator[tuple[Step, TrueRegime]]:
    """Steps without end, each with the regime that made it.

    Args:
        seed: any integer.
        symbols: which to simulate, distinct; their order changes nothing.
        start: when the first bar opens, unix seconds.
        bar_s: length of a bar, seconds, above 0.

    Raises:
        ValueError: no symbols, one twice, a name that is no symbol, a start or a bar length that is not positive.
    """
    if not symbols or len(set(symbols)) != len(symbols):
        raise ValueError("symbols must be given, each once")
    for name in symbols:
        if checked_symbol(name.encode("utf-8", "replace")) is None:
            raise ValueError(f"{name!r} is not a symbol: 2 to 30 capital letters and digits")
    if not (0.0 < start < 1e11 and 0.0 < bar_s < 1e8):
        raise ValueError("start and bar_s must be positive seconds")
    return _run(seed, sorted(symbols), start, bar_s)


def _run(seed: int, symbols: Sequence[str], start: float, bar_s: float) -> Iterator[tuple[Step, TrueRegime]]:
    paths = [_Path(s, asset(s), _uniform(seed, s), asset(s).start_usd) for s in symbols]
    market_uniform, vol_uniform, chain_uniform = _uniform(seed, "m"), _uniform(seed, "v"), _uniform(seed, "r")
    group_uniform = {k: _uniform(seed, k) for k in GROUPS}
    regime = REGIMES[int(chain_uniform() * len(REGIMES))]
    market = vol = 0.0
    bars = 0
    while True:
        bars += 1
        regime = _next_regime(regime, chain_uniform(), chain_uniform())
        phi = PHI[regime]
        market = phi * market + math.sqrt(1.0 - phi * phi) * _normal(market_uniform)
        vol = VOL_MEMORY * vol + VOL_NOISE * _normal(vol_uniform)
        level = clamp(1.0 + vol, 0.5, 2.0) * (CHOP_LEVEL if regime == "CHOP" else 1.0)
        shared = {k: level * (MARKET * market + GROUP * _normal(group_uniform[k])) for k in GROUPS}
        close_time = start + bars * bar_s  # multiplied, not added up: no drift
        candles = []
        for path in paths:
            close, volume = path.advance(shared[path.asset.group], level * OWN, bar_s)
            candles.append(Candle(path.symbol, close_time, bar_s, close, volume))
        yield Step(close_time, tuple(candles)), regime


def simulate(
    seed: int, *, symbols: Sequence[str] = DEFAULT_SYMBOLS, start: float = START, bar_s: float = 60.0
) -> Iterator[Step]:
    """Steps without end: ``simulate_with_regime`` without the regime.

    Args:
        seed: any integer.
        symbols: which to simulate, distinct; their order changes nothing.
        start: when the first bar opens, unix seconds.
        bar_s: length of a bar, seconds, above 0.

    Raises:
        ValueError: as ``simulate_with_regime``.

    >>> next(simulate(7, symbols=("BTCUSDT",))).candles[0].close_time
    1767225660.0
    """
    return (step for step, _ in simulate_with_regime(seed, symbols=symbols, start=start, bar_s=bar_s))
