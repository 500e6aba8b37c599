"""Where ``now`` comes from: the machine's clock, or a clock that somebody sets."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Tells unix seconds."""

    def now(self) -> float:
        """Unix seconds."""
        ...


class WallClock:
    """The machine's clock."""

    def now(self) -> float:
        """Unix seconds."""
        return time.time()


class SetClock:
    """A clock that stands still until it is set: simulated time, and ``--now``."""

    def __init__(self, now: float) -> None:
        """Stand at ``now``, unix seconds."""
        self._now = now

    def now(self) -> float:
        """Unix seconds."""
        return self._now

    def set(self, now: float) -> None:
        """Jump to ``now``, unix seconds."""
        self._now = now
