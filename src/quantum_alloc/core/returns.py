"""Bars of many symbols as one table of log returns.

    r_i(t) = ln(close_i(t) / close_i(t - bar))         only where bar t follows the bar before it directly

A return across a gap is left out (NaN). The columns are the times at which any symbol has a bar. Source: the project's
contract, "Market", and its rules, section 7.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Bars:
    """Closed bars of one symbol, in the order of time, each time once.

    Attributes:
        times: (n,) close times, unix seconds, ascending.
        closes: (n,) closes, USD, above 0.
        bar_s: (n,) lengths, seconds.
    """

    times: Floats
    closes: Floats
    bar_s: Floats


@dataclass(frozen=True, slots=True, eq=False)
class Returns:
    """Log returns of several symbols over their common times.

    Attributes:
        symbols: in sort order.
        times: (t,) close times, unix seconds, ascending.
        values: (n, t) log returns; NaN where there is none.
        bar_s: smallest length of a bar, seconds; 0 without bars.
        first: number of columns in which a symbol's first bar stands and no other has a return.
    """

    symbols: tuple[str, ...]
    times: Floats
    values: Floats
    bar_s: float
    first: int = 0


def returns_of(bars: Mapping[str, Bars], last: int | None = None) -> Returns:
    """The table of log returns.

    Args:
        bars: by symbol; empty ones count as absent.
        last: only so many of the latest columns; None for all.

    >>> import numpy as np
    >>> one = np.ones(4) * 60.0
    >>> bars = Bars(np.array([60.0, 120.0, 300.0, 360.0]), np.array([1.0, np.e, 5.0, 5.0]), one)
    >>> returns_of({"BTCUSDT": bars}).values.tolist()
    [[nan, 1.0, nan, 0.0]]
    """
    import numpy as np

    symbols = tuple(sorted(s for s, b in bars.items() if b.times.size))
    if not symbols:
        return Returns((), np.empty(0), np.empty((0, 0)), 0.0)
    times = np.unique(np.concatenate([bars[s].times for s in symbols]))
    begin = times[0]
    if last is not None:
        times = times[-last:]
    values = np.full((len(symbols), times.size), np.nan)
    for row, symbol in enumerate(symbols):
        b = bars[symbol]
        follows = np.abs(np.diff(b.times) - b.bar_s[1:]) < 1e-6
        step = np.where(follows, np.diff(np.log(b.closes)), np.nan)
        at = np.searchsorted(times, b.times[1:])
        seen = b.times[1:] >= times[0]
        values[row, at[seen]] = step[seen]
    starts = int(times[0] == begin)
    return Returns(symbols, times, values, min(float(bars[s].bar_s.min()) for s in symbols), starts)
