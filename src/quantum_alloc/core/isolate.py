"""One symbol's step may be run under a guard, so that a programmer's error costs one symbol and not the cycle.

The core never catches: it hands each symbol's step to an ``Attempt``. The default runs it plainly and lets errors
through; the services' loop passes its own, which holds the one broad ``except`` of the system and counts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

T = TypeVar("T")


class Attempt(Protocol):
    """Runs one symbol's step and returns its result, or None where it failed and was counted."""

    def __call__(self, symbol: str, run: Callable[[], T], /) -> T | None:
        """Run the step of one symbol."""
        ...


def plainly(_symbol: str, run: Callable[[], T], /) -> T | None:
    """The default: just run it.

    >>> plainly("BTCUSDT", lambda: 1)
    1
    """
    return run()
