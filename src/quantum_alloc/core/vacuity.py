"""Vacuity: does a gate, or an input, decide on real data at all, and does that data move?

    look         one reading of an input, or one verdict of a gate: on real data, or not
    ratio        real looks / looks, of the last WINDOW_S
    age          now - last real look, or now - first look where there was none
    is_blind     looked at, nothing real in the last look, and age >= BLIND_S
    constant_s   last time that a usable value was seen - last time that one changed

What was real at its last look and has not been looked at since is not blind; what was not becomes so with time alone.
A symbol that comes or goes changes no value. Looks are counted in buckets of BUCKET_S, so what is remembered is
bounded; a clock that is set back forgets what then lies in its future. Source: the project's issue on vacuity.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import floor

from quantum_alloc.core.gates import Checked, Outcome

WINDOW_S, BUCKET_S, BLIND_S = 600.0, 10.0, 600.0
SYMBOLS_MAX = 10_000
"""From so many symbols on, those that are there no more are forgotten."""
UNKNOWING = frozenset({"state_unreadable", "position_unknown", "price_unknown"})
"""Why a hard gate blocks for want of knowledge: no verdict on real data."""


def is_real(check: Checked) -> bool | None:
    """Whether a gate's verdict was made on real data; None where the gate was not asked.

    Args:
        check: what it said.

    >>> is_real(Checked(Outcome.WOULD_BLOCK, "p29_allocation_cap")), is_real(Checked(Outcome.FAIL_OPEN, "stale"))
    (True, False)
    >>> is_real(Checked(Outcome.BLOCK, "price_unknown")), is_real(Checked(Outcome.NOT_APPLICABLE))
    (False, None)
    """
    if check.outcome is Outcome.NOT_APPLICABLE:
        return None
    return check.outcome is not Outcome.FAIL_OPEN and check.reason not in UNKNOWING


@dataclass(frozen=True, slots=True)
class Bucket:
    """Looks of one stretch of time.

    Attributes:
        slot: number of the stretch.
        looks: how many.
        real: how many of them on real data.
    """

    slot: int
    looks: int
    real: int


@dataclass(frozen=True, slots=True)
class Watched:
    """What is remembered of the looks of one gate or input.

    Attributes:
        buckets: of the window, oldest first.
        first: clock of the first look, unix seconds; None before it.
        last_real: clock of the last look on real data; None where there was none.
        is_real: whether the last look was.
    """

    buckets: tuple[Bucket, ...] = ()
    first: float | None = None
    last_real: float | None = None
    is_real: bool = False

    def look(self, now: float, looks: int, real: int) -> Watched:
        """After some more looks at once.

        Args:
            now: the decision's clock, unix seconds.
            looks: how many; none changes nothing.
            real: how many of them on real data, at most ``looks``.

        >>> Watched().look(0.0, 2, 1).ratio(0.0)
        0.5
        """
        if looks <= 0:
            return self
        slot, kept = floor(now / BUCKET_S), _within(self.buckets, now)
        if kept and kept[-1].slot == slot:
            looks, whole, kept = looks + kept[-1].looks, real + kept[-1].real, kept[:-1]
        else:
            whole = real
        first = now if self.first is None else min(self.first, now)
        before = None if self.last_real is None else min(self.last_real, now)
        return Watched((*kept, Bucket(slot, looks, whole)), first, now if real else before, real > 0)

    def ratio(self, now: float) -> float | None:
        """Share of the looks of the window that were on real data; None where there was no look.

        Args:
            now: unix seconds.
        """
        kept = _within(self.buckets, now)
        return sum(b.real for b in kept) / sum(b.looks for b in kept) if kept else None

    def age_s(self, now: float) -> float | None:
        """Seconds since the last look on real data, or since the first look; None before it.

        Args:
            now: unix seconds.
        """
        since = self.first if self.last_real is None else self.last_real
        return None if since is None else max(0.0, now - since)

    def is_blind(self, now: float) -> bool:
        """Whether it was looked at without real data, and has had none for long.

        Args:
            now: unix seconds.

        >>> blind = Watched().look(0.0, 1, 0)
        >>> blind.is_blind(599.999), blind.is_blind(600.0), blind.look(600.0, 1, 1).is_blind(9999.0)
        (False, True, False)
        """
        age = self.age_s(now)
        return not self.is_real and age is not None and age >= BLIND_S


def _within(buckets: tuple[Bucket, ...], now: float) -> tuple[Bucket, ...]:
    """The buckets of the window that ends now."""
    last = floor(now / BUCKET_S)
    since = last - round(WINDOW_S / BUCKET_S)
    if buckets and since < buckets[0].slot and buckets[-1].slot <= last:
        return buckets
    return tuple(b for b in buckets if since < b.slot <= last)


@dataclass(frozen=True, slots=True)
class Constancy:
    """What is remembered of the values of one input.

    Attributes:
        values: the last usable one of each symbol; compared, never looked into.
        changed: clock of the last change, or of the first value; None before it.
        seen: clock of the last usable value.
    """

    values: Mapping[str, object] = field(default_factory=dict)
    changed: float | None = None
    seen: float | None = None

    def look(self, now: float, values: Mapping[str, object]) -> Constancy:
        """After a look at an input.

        Args:
            now: the decision's clock, unix seconds.
            values: the usable values by symbol; it must not change afterwards.

        >>> one = Constancy().look(0.0, {"A": 1.0})
        >>> one.look(60.0, {"A": 1.0, "B": 2.0}).constant_s, one.look(60.0, {"A": 1.5}).constant_s
        (60.0, 0.0)
        """
        if not values:
            return self
        before, kept = self.values, values
        if len(values) == len(before) and values.keys() == before.keys():
            has_changed = before != values
        else:
            known = [s for s in values if s in before]
            has_changed = any(before[s] != values[s] for s in known)
            if len(known) == len(values) and not has_changed:
                kept = before
            elif len(known) < len(before):
                kept = {**before, **values}
                kept = kept if len(kept) <= SYMBOLS_MAX else values
        changed = now if has_changed or self.changed is None else min(self.changed, now)
        return Constancy(kept, changed, now)

    @property
    def constant_s(self) -> float | None:
        """Seconds for which no usable value has changed; None where there was none."""
        return None if self.changed is None or self.seen is None else self.seen - self.changed
