"""Where ``now`` comes from: the machine's clock, one that runs beside it, or a clock that somebody sets."""

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


class ShiftedClock:
    """The machine's clock and a constant on top: what runs on it lives at its own time, at the pace of the machine.

    Attributes:
        offset_s: how far it is ahead of the machine's clock, seconds.
    """

    def __init__(self, offset_s: float) -> None:
        """Run ``offset_s`` seconds ahead of the machine's clock."""
        self.offset_s = offset_s

    def now(self) -> float:
        """Unix seconds."""
        return time.time() + self.offset_s


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


def runs(clock: Clock | None) -> bool:
    """Whether time goes on by itself, so that one may wait for something: no clock of its own is the server's.

    >>> runs(WallClock()), runs(ShiftedClock(-60.0)), runs(None), runs(SetClock(0.0))
    (True, True, True, False)
    """
    return not isinstance(clock, SetClock)


def offset_s(clock: Clock) -> float:
    """How far a clock that runs is ahead of the machine's, seconds.

    >>> offset_s(WallClock()), offset_s(ShiftedClock(-60.0))
    (0.0, -60.0)
    """
    return clock.offset_s if isinstance(clock, ShiftedClock) else 0.0
