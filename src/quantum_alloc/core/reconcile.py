"""Reconciliation: what became of every permit, and whether every fill had one.

    issued = consumed + expired + outstanding           for any sequence of entries, at any moment
    without a permit    a fill that names no permit that is known, or one of another symbol
    above the permit    fills of one permit that come to more than its quantity
    elsewhere           fills of a permit that this account did not consume: its position knows nothing of them

A permit is outstanding until it is consumed, or its time and ``GRACE_S`` are over. Those that have ended are remembered
for ``REMEMBERED_S``, the latest ``REMEMBERED_MAX`` of them and those of the last seconds, so that their fills, and a
second fill of one, are seen as what they are.
Source: the project's governor, section 4.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from quantum_alloc.core.limits import US
from quantum_alloc.core.table import Explained

GRACE_S = 5
REMEMBERED_S = 3600
REMEMBERED_MAX = 2_000
JUST_ENDED_S = 5
KNOWN_MAX = 10_000
"""Of all that have ended; whatever comes."""
TOLERANCE = 1e-9
"""Relative; what rounding may add up to over some fills of one permit."""


class Stage(StrEnum):
    """Where a permit stands."""

    WAITING = "waiting"
    REFUSED = "refused"
    CONSUMED = "consumed"
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True)
class Known:
    """One permit.

    Attributes:
        symbol: the symbol.
        qty: that it permits.
        until_us: when it expires, microseconds.
        stage: where it stands; a refused one is outstanding until it expires.
        filled_qty: of all fills that named it.
        ended_us: when it was consumed or found expired; 0 before.
        action: of its plan, for the label of its fills.
        waited: why it was not filled when it was last looked at; empty for none.
        number: how many had been issued with it.
        is_own: True where this account consumed it.
    """

    symbol: str
    qty: float
    until_us: int
    stage: Stage = Stage.WAITING
    filled_qty: float = 0.0
    ended_us: int = 0
    action: str = ""
    waited: str = ""
    number: int = 0
    is_own: bool = False

    @property
    def is_outstanding(self) -> bool:
        """True while it may still be consumed, as far as is known."""
        return self.stage in (Stage.WAITING, Stage.REFUSED)


@dataclass(frozen=True, slots=True)
class Counts(Explained):
    """What has been counted since the account was opened.

    Attributes:
        issued: permits.
        consumed: permits.
        expired: permits.
        without_permit: fills.
        above_permit: fills that took more than their permit had left.
        fills: fills in all.
        elsewhere: fills of permits that this account did not consume.
    """

    issued: int = 0
    consumed: int = 0
    expired: int = 0
    without_permit: int = 0
    above_permit: int = 0
    fills: int = 0
    elsewhere: int = 0

    @property
    def is_wrong(self) -> bool:
        """True where a fill is not as it must be: an alarm."""
        return self.without_permit + self.above_permit + self.elsewhere > 0

    @property
    def outstanding(self) -> int:
        """Permits that are neither consumed nor expired."""
        return self.issued - self.consumed - self.expired


@dataclass(frozen=True, slots=True)
class SeenFill:
    """A fill as its stream tells of it.

    Attributes:
        plan_id: of the permit; empty where it names none.
        symbol: the symbol.
        qty: filled quantity, at least 0.
    """

    plan_id: str
    symbol: str
    qty: float


@dataclass(frozen=True, slots=True)
class Reconciled:
    """What is known of permits.

    Attributes:
        permits: by plan id, in the order in which they were issued.
        counts: since the beginning.
    """

    permits: Mapping[str, Known] = field(default_factory=dict)
    counts: Counts = Counts()


def reconcile(
    state: Reconciled,
    now_us: int,
    issued: Sequence[tuple[str, Known]] = (),
    consumed: Iterable[str] = (),
    fills: Iterable[SeenFill] = (),
    taken: Iterable[str] = (),
) -> Reconciled:
    """What is known after some more entries, each permit before its fills.

    Args:
        state: what was known.
        now_us: the clock, microseconds.
        issued: plan id and permit of each PERMIT; an id that is known counts once.
        consumed: plan ids of permits that somebody reports to have consumed.
        fills: of the execution stream.
        taken: plan ids of permits that this account has consumed.

    >>> permit = Known("BTCUSDT", 1.0, 60 * US)
    >>> made = reconcile(Reconciled(), 0, [("p1", permit)], (), [SeenFill("p1", "BTCUSDT", 1.0)], ["p1"])
    >>> made.counts.consumed, made.counts.fills, made.counts.outstanding, made.counts.is_wrong
    (1, 1, 0, False)
    """
    known, c = dict(state.permits), state.counts
    new = 0
    for plan_id, permit in issued:
        if plan_id not in known:
            new += 1
            known[plan_id] = replace(permit, number=c.issued + new)
    done = 0
    for ids, is_own in ((taken, True), (consumed, False)):
        for plan_id in ids:
            one = known.get(plan_id)
            if one is not None and one.is_outstanding:
                known[plan_id] = replace(one, stage=Stage.CONSUMED, ended_us=now_us, waited="", is_own=is_own)
                done += 1
    without = above = elsewhere = n_fills = 0
    for fill in fills:
        n_fills += 1
        one = known.get(fill.plan_id)
        if one is None or one.symbol != fill.symbol or one.stage is Stage.EXPIRED:
            without += 1
            continue
        total = one.filled_qty + fill.qty
        above += total > one.qty * (1.0 + TOLERANCE)
        elsewhere += not one.is_own
        ended = one.is_outstanding
        done += ended
        stage, ended_us = (Stage.CONSUMED, now_us) if ended else (one.stage, one.ended_us)
        known[fill.plan_id] = replace(one, filled_qty=total, stage=stage, ended_us=ended_us)
    gone = 0
    for plan_id, one in known.items():
        if one.is_outstanding and now_us >= one.until_us + GRACE_S * US:
            known[plan_id] = replace(one, stage=Stage.EXPIRED, ended_us=now_us)
            gone += 1
    counts = Counts(
        c.issued + new,
        c.consumed + done,
        c.expired + gone,
        c.without_permit + without,
        c.above_permit + above,
        c.fills + n_fills,
        c.elsewhere + elsewhere,
    )
    return Reconciled(_remembered(known, now_us), counts)


def _remembered(known: Mapping[str, Known], now_us: int) -> dict[str, Known]:
    """All that are outstanding, and of the others the latest."""
    ended = [p for p, one in known.items() if not one.is_outstanding and now_us < one.ended_us + REMEMBERED_S * US]
    if len(ended) > REMEMBERED_MAX:
        ended.sort(key=lambda p: (known[p].ended_us, p), reverse=True)
        just = sum(now_us < known[p].ended_us + JUST_ENDED_S * US for p in ended)
        ended = ended[: min(max(REMEMBERED_MAX, just), KNOWN_MAX)]
    kept = set(ended)
    return {p: one for p, one in known.items() if one.is_outstanding or p in kept}
