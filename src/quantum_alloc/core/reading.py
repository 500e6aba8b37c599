"""A reading is what became of one input: a fresh value, or the one reason why it cannot be used.

    age_s = floor(now) - floor(ts)                     whole seconds
    age_s < -5          -> future_ts
    age_s > limit_s     -> stale                       (the value is kept for the rules that name it)
    else                -> fresh

A reading is decided once, where bytes become values; after that the core sees values and reasons, never bytes, and a
rule decides what an unusable input means. Source: the project's contract, "Time, numbers, names".
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Generic, TypeAlias, TypeVar

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

FUTURE_TOLERANCE_S = 5


class Lane(StrEnum):
    """Which set of keys an input came from: what counts, or what is only watched."""

    LIVE = "live"
    SHADOW = "shadow"


class Reason(StrEnum):
    """Why an input cannot be used; a closed set, safe as a metric label."""

    MISSING = "missing"
    STALE = "stale"
    FUTURE = "future_ts"
    MALFORMED = "malformed"
    STORE = "redis_error"


@dataclass(frozen=True, slots=True)
class Fresh(Generic[T_co]):
    """A value that may be used.

    Attributes:
        value: the value, finite and in range.
        ts: its own time, unix seconds.
        age_s: whole seconds, at most the limit it was graded by.
    """

    value: T_co
    ts: float
    age_s: int = 0

    @property
    def state(self) -> str:
        """``ok``, the word of records and metrics."""
        return "ok"


@dataclass(frozen=True, slots=True)
class Unusable(Generic[T_co]):
    """An input that may not be used, and why.

    Attributes:
        reason: one reason.
        value: kept when the only trouble is its age, else None.
        ts: its own time in unix seconds, None where there is none.
        age_s: whole seconds, None where there is no time.
        detail: which field was bad, for logs; never a metric label.
        shown: a value that no rule may use, from the future, kept for records and people; no part of equality.
    """

    reason: Reason
    value: T_co | None = None
    ts: float | None = None
    age_s: int | None = None
    detail: str = ""
    shown: T_co | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        """Only an outdated reading keeps a value: no rule can use another by mistake."""
        if self.value is not None and self.reason is not Reason.STALE:
            raise ValueError(f"a {self.reason} reading has no value")

    @property
    def state(self) -> str:
        """The reason, the word of records and metrics."""
        return self.reason.value


Reading: TypeAlias = Fresh[T] | Unusable[T]


def shown(reading: Reading[T]) -> T | None:
    """What a reading held, used or not; None when it was missing or could not be read.

    Args:
        reading: any.

    >>> shown(Fresh(1.0, 0.0)), shown(Unusable(Reason.FUTURE, shown=2.0)), shown(Unusable(Reason.MALFORMED))
    (1.0, 2.0, None)
    """
    return reading.shown if isinstance(reading, Unusable) and reading.value is None else reading.value


def missing() -> Unusable[T]:
    """A reading of an input that is not there.

    >>> missing().state
    'missing'
    """
    return Unusable(Reason.MISSING)


def fresh(value: T, ts: float = 0.0) -> Fresh[T]:
    """A usable reading, for notebooks and tests.

    Args:
        value: the value.
        ts: its time, unix seconds.

    >>> fresh(1820.93).value
    1820.93
    """
    return Fresh(value, ts)


def age_s(ts: float, now: float) -> int:
    """Age in whole seconds, floor(now) - floor(ts); negative when ``ts`` is ahead.

    Args:
        ts: unix seconds, finite.
        now: unix seconds, finite.

    >>> age_s(1769577450.5, 1769577495.2)
    45
    """
    return math.floor(now) - math.floor(ts)


def grade(value: T, ts: float, now: float, limit_s: float) -> Reading[T]:
    """Fresh, stale or from the future.

    Args:
        value: the decoded value.
        ts: its time, unix seconds, finite.
        now: the decision's clock, unix seconds.
        limit_s: greatest age in whole seconds that is still fresh.

    >>> grade(1.0, 1769577435, 1769577495, 60).state, grade(1.0, 1769577434, 1769577495, 60).state
    ('ok', 'stale')
    >>> grade(1.0, 1769577500, 1769577495, 60).state, grade(1.0, 1769577501, 1769577495, 60).state
    ('ok', 'future_ts')
    """
    age = age_s(ts, now)
    if age < -FUTURE_TOLERANCE_S:
        return Unusable(Reason.FUTURE, None, ts, age, shown=value)
    if age > limit_s:
        return Unusable(Reason.STALE, value, ts, age)
    return Fresh(value, ts, age)
