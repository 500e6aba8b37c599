"""Bars of many symbols as one table of log returns.

    L         the bar length that most symbols have now; symbols of another length are left out
    slot      round((ts - phase) / L), phase the circular mean of all close times: one grid for all, jitter forgiven
    r_i(k)    ln(close_i(k) / close_i(k - 1)), only where the symbol has a bar in slot k and in the slot before

A return across a gap is left out (NaN). The columns are the slots in which at least half as many symbols have a bar as
in the fullest slot, so that no single symbol can stretch, thin or fill the table. Source: the project's contract,
"Market", and its rules, section 7.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from quantum_alloc.core.reading import FUTURE_TOLERANCE_S

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

    Raises:
        ValueError: not arrays of one length, times that do not ascend, closes or lengths that are not positive.
    """

    times: Floats
    closes: Floats
    bar_s: Floats

    def __post_init__(self) -> None:
        """Refuse what no stream gives."""
        import numpy as np

        columns: tuple[Any, ...] = (self.times, self.closes, self.bar_s)
        if not all(isinstance(c, np.ndarray) and c.ndim == 1 and c.size == columns[0].size for c in columns):
            raise ValueError("times, closes and bar_s must be numpy arrays of one length")
        if not ((np.diff(self.times) > 0.0).all() and (self.closes > 0.0).all() and (self.bar_s > 0.0).all()):
            raise ValueError("times must ascend, closes and bar_s be above 0")

    def until(self, now: float) -> Bars:
        """The bars that have closed.

        Args:
            now: unix seconds; a bar may be 5 s ahead.
        """
        import numpy as np

        n = int(np.searchsorted(self.times, math.floor(now) + FUTURE_TOLERANCE_S + 1.0, "left"))
        return self if n == self.times.size else Bars(self.times[:n], self.closes[:n], self.bar_s[:n])


@dataclass(frozen=True, slots=True, eq=False)
class Returns:
    """Log returns of several symbols over their common slots.

    Attributes:
        symbols: in sort order.
        times: (t,) latest close time in each slot, unix seconds, ascending.
        values: (n, t) log returns; NaN where there is none.
        bar_s: length of a bar, seconds; 0 without bars.
        first: 1 when the first column is the first slot of all, which can have no return; else 0.
    """

    symbols: tuple[str, ...]
    times: Floats
    values: Floats
    bar_s: float
    first: int = 0


QUORUM = 0.5
"""A column needs so many of the bars that the fullest one has."""


def common_length(lengths: Sequence[float]) -> float:
    """The most frequent length, the smaller of two equally frequent.

    Args:
        lengths: seconds, at least one.

    >>> common_length([60.0, 3600.0, 60.0])
    60.0
    """
    counts = Counter(lengths)
    most = max(counts.values())
    return min(length for length, n in counts.items() if n == most)


def _phase(times: Floats, bar_s: float) -> float:
    import numpy as np

    angles = times % bar_s * (2.0 * np.pi / bar_s)
    return float(np.arctan2(np.sin(angles).mean(), np.cos(angles).mean()) * bar_s / (2.0 * np.pi))


def returns_of(bars: Mapping[str, Bars], last: int | None = None, since: float = -math.inf) -> Returns:
    """The table of log returns.

    Args:
        bars: by symbol; empty ones count as absent.
        last: only so many of the latest columns; None for all.
        since: symbols whose newest bar closed before are left out, unix seconds.

    >>> import numpy as np
    >>> one = np.ones(4) * 60.0
    >>> bars = Bars(np.array([60.0, 120.0, 300.0, 360.0]), np.array([1.0, np.e, 5.0, 5.0]), one)
    >>> returns_of({"BTCUSDT": bars}).values.tolist()
    [[nan, 1.0, nan, 0.0]]
    """
    import numpy as np

    there = {s: b for s, b in bars.items() if b.times.size}
    alive = {s: b for s, b in there.items() if b.times[-1] >= since}
    if not alive:
        return Returns((), np.empty(0), np.empty((0, 0)), 0.0)
    length = common_length([float(alive[s].bar_s[-1]) for s in sorted(alive)])
    symbols = tuple(sorted(s for s, b in alive.items() if b.bar_s[-1] == length))
    kept = {s: alive[s].bar_s == length for s in symbols}
    phase = _phase(np.concatenate([alive[s].times[kept[s]] for s in symbols]), length)
    rows: dict[str, tuple[Floats, Floats, Floats]] = {}
    for s in symbols:
        times, closes = alive[s].times[kept[s]], alive[s].closes[kept[s]]
        at = np.round((times - phase) / length)
        final = np.append(np.diff(at) > 0.0, True)  # the last of a slot
        rows[s] = (at[final], times[final], closes[final])
    slots, counts = np.unique(np.concatenate([at for at, _, _ in rows.values()]), return_counts=True)
    begin, slots = slots[0], slots[counts >= QUORUM * counts.max()]
    if last is not None:
        slots = slots[-last:]
    values = np.full((len(symbols), slots.size), np.nan)
    latest = np.zeros(slots.size)
    for row, s in enumerate(symbols):
        at, times, closes = rows[s]
        column = np.searchsorted(slots, at)
        seen = (column < slots.size) & (slots[np.minimum(column, slots.size - 1)] == at)
        latest[column[seen]] = np.maximum(latest[column[seen]], times[seen])
        step = np.full(at.size, np.nan)
        follows = np.diff(at) == 1.0
        step[1:][follows] = np.diff(np.log(closes))[follows]
        values[row, column[seen]] = step[seen]
    return Returns(symbols, latest, values, length, int(slots[0] == begin))
