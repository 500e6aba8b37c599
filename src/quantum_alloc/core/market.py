"""Market state of one symbol from its closed bars.

    r_i   = ln(close_i / close_(i-1)), left out where bar i does not follow bar i-1 directly (a gap)
    sigma = sample standard deviation (n - 1) of the r_i of the last 60 bars x sqrt(3600 / bar_s)

One hour is the unit of every sigma in the system. Fewer than two returns: sigma is unknown, which is None and not 0.
Source: the project's contract, "Market".
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from quantum_alloc.core.numeric import exact_sum

SIGMA_BARS = 60


def log_return(before: float, close: float) -> float:
    """ln(close / before).

    Args:
        before: close of the bar before, USD, above 0.
        close: close of this bar, USD, above 0.

    >>> log_return(100.0, 100.0)
    0.0
    """
    ratio = close / before
    return math.log(ratio) if 0.0 < ratio < math.inf else math.log(close) - math.log(before)


def hourly_sigma(returns: Sequence[float], bar_s: float) -> float | None:
    """Standard deviation of log returns scaled to one hour; None with fewer than two.

    Args:
        returns: log returns of the last bars, gap returns left out.
        bar_s: length of a bar, seconds, above 0.

    >>> hourly_sigma([0.001, -0.001], 60.0)
    0.010954451150103323
    >>> hourly_sigma([0.001], 60.0) is None
    True
    """
    n = len(returns)
    if n < 2:
        return None
    mean = exact_sum(returns) / n
    variance = exact_sum((r - mean) ** 2 for r in returns) / (n - 1)
    return math.sqrt(variance) * math.sqrt(3600.0 / bar_s)
