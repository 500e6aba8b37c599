"""What an apply layer knows of its own writes, so that it sees when a server has lost some of them.

Replication is asynchronous: a replica that takes the primary's place may lack the last writes, which the apply layer
was told were done. The account is then at an earlier revision than the one that was acknowledged. What was filled in
between is not in it, and nobody can say who has seen those fills: their permits, which the replica still holds, are not
filled a second time. The account goes on from what stands.

This is remembered in memory: where the apply layer ends too, before it has seen the new primary, nobody tells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from quantum_alloc.core.apply import Application
from quantum_alloc.core.limits import US

REMEMBERED_S = 120
"""Longer than a permit lives."""


@dataclass(frozen=True, slots=True)
class Lost:
    """Writes that the account does not know of.

    Attributes:
        writes: how many.
        plan_ids: whose permits were used up by them, in order.
    """

    writes: int
    plan_ids: tuple[str, ...]


class Acknowledged:
    """The writes that were acknowledged, as far as they matter."""

    def __init__(self) -> None:
        """None yet."""
        self._revision = 0
        self._used: dict[str, tuple[int, int]] = {}
        self._barred: dict[str, int] = {}

    def note(self, revision: int, ended: Sequence[Application], now_us: int) -> None:
        """A write was acknowledged.

        Args:
            revision: of the account, with it.
            ended: fates that were final in it.
            now_us: the clock.
        """
        self._revision = revision
        since = now_us - REMEMBERED_S * US
        self._used = {p: known for p, known in self._used.items() if known[1] > since}
        self._barred = {p: at for p, at in self._barred.items() if at > since}
        self._used.update((a.inputs.plan_id, (revision, now_us)) for a in ended if a.is_consumed)

    def look(self, revision: int, now_us: int) -> Lost | None:
        """What is lost by the account that stands; None for nothing.

        Args:
            revision: that it stands at; 0 where there is none.
            now_us: the clock.
        """
        if revision >= self._revision:
            return None
        lost = Lost(self._revision - revision, tuple(p for p, (at, _) in self._used.items() if at > revision))
        self._barred.update(dict.fromkeys(lost.plan_ids, now_us))
        self._used = {p: known for p, known in self._used.items() if known[0] <= revision}
        self._revision = revision
        return lost

    @property
    def barred(self) -> frozenset[str]:
        """Plan ids whose permits were used up in a write that is lost."""
        return frozenset(self._barred)
