"""The only numeric primitives: every formula of the core is arithmetic plus these.

    clamp(x, lo, hi)                 lo where x < lo, hi where x > hi, else x
    step(x, edge, below, above)      below where x < edge, else above
    ewma(prev, x, alpha)             alpha x + (1 - alpha) prev, held between prev and x
    tanh(x)                          hyperbolic tangent

They take floats or numpy arrays and give the same bits for both. A NaN passes through ``clamp`` unchanged (it is
neither below nor above), so that it cannot turn into a bound; no NaN gets past the wire in the first place.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TypeVar, cast

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


Num = TypeVar("Num", float, "NDArray[np.float64]")
"""A float, or a float64 array of any shape."""


def _is_array(*values: object) -> bool:
    for v in values:  # noqa: SIM110 - every formula passes here; a generator costs as much as the formula
        if not isinstance(v, (float, int)):
            return True
    return False


def clamp(x: Num, lo: float, hi: float) -> Num:
    """``x`` held within [lo, hi], by comparison.

    Args:
        x: a float, or a float64 array of any shape.
        lo: lower bound.
        hi: upper bound, at least ``lo``.

    Returns:
        The same shape as ``x``; NaN stays NaN.

    >>> clamp(1.7, 0.0, 1.0), clamp(-0.2, 0.0, 1.0), clamp(0.3, 0.0, 1.0)
    (1.0, 0.0, 0.3)
    """
    if not isinstance(x, (float, int)):
        import numpy as np

        return cast(Num, np.where(x < lo, lo, np.where(x > hi, hi, x)))
    scalar: Any = x
    return cast(Num, lo if scalar < lo else hi if scalar > hi else scalar)


def clamp01(x: Num) -> Num:
    """``x`` held within [0, 1].

    Args:
        x: a float, or a float64 array of any shape.

    >>> clamp01(1.0000001)
    1.0
    """
    return clamp(x, 0.0, 1.0)


def smaller(x: Num, y: Num | float) -> Num:
    """The smaller of the two, by comparison; ``x`` where either is NaN.

    Args:
        x: a float, or a float64 array of any shape.
        y: a float, or an array of the same shape.

    >>> smaller(3.0, 2.0)
    2.0
    """
    if _is_array(x, y):
        import numpy as np

        return cast(Num, np.where(y < x, y, x))
    scalar: Any = x
    return cast(Num, y if y < scalar else scalar)


def step(x: Num, edge: Num | float, below: Num | float, above: Num | float) -> Num:
    """A step function: ``below`` where ``x < edge``, else ``above``.

    ``x > edge`` is written ``step(edge, x, above, below)``.

    Args:
        x: a float, or a float64 array.
        edge: where it steps; belongs to the upper side.
        below: value under the edge.
        above: value from the edge on.

    >>> step(0.0499, 0.05, 1.0, 0.7), step(0.05, 0.05, 1.0, 0.7)
    (1.0, 0.7)
    """
    if _is_array(x, edge, below, above):
        import numpy as np

        return cast(Num, np.where(np.less(x, edge), below, above))
    low: Any = below
    return cast(Num, low if x < edge else above)


def ewma(prev: Num, x: Num, alpha: float) -> Num:
    """One step of an exponentially weighted moving average, held between its two inputs.

    alpha x + (1 - alpha) prev, which rounding alone could push past either. A ``prev`` of exactly 0 is a value.

    Args:
        prev: the average before, a float or an array.
        x: the new observation, of the same shape.
        alpha: weight of the new observation, in (0, 1].

    >>> ewma(0.5, 1.0, 0.25)
    0.625
    """
    mixed = alpha * x + (1.0 - alpha) * prev
    low, high = smaller(prev, x), step(prev, x, x, prev)
    return step(mixed, low, low, step(high, mixed, high, mixed))


def tanh(x: Num) -> Num:
    """Hyperbolic tangent; an array goes through the same function one by one, so that it gets the same bits.

    Args:
        x: a float, or a float64 array of any shape.

    >>> tanh(0.0), tanh(1e9), tanh(-1e9)
    (0.0, 1.0, -1.0)
    """
    if not isinstance(x, (float, int)):
        import numpy as np

        return cast(Num, np.vectorize(math.tanh, otypes=[np.float64])(x))
    return math.tanh(x)


def exact_sum(values: Iterable[float]) -> float:
    """The correctly rounded sum, so that the order of the values changes no bit (``math.fsum``).

    Args:
        values: finite floats.

    >>> exact_sum([1e16, 1.0, -1e16])
    1.0
    """
    return math.fsum(values)
