"""What the two services that read executions have in common: state and new entries in, their metrics out.

The state key is watched from the moment it is read, so that a second instance's write in between refuses the cycle's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from quantum_alloc.adapters import state
from quantum_alloc.adapters.execution_reader import Batch, take
from quantum_alloc.adapters.metrics import Metrics
from quantum_alloc.adapters.state import Saved
from quantum_alloc.adapters.store import Store
from quantum_alloc.services.logs import Fields

S = TypeVar("S")


@dataclass(frozen=True, slots=True)
class Followed(Generic[S]):
    """What is remembered, and what is new."""

    saved: Saved[S]
    batch: Batch


@dataclass(frozen=True, slots=True)
class Follower(Generic[S]):
    """Reads one service's state and the executions since.

    Attributes:
        service: its name, for dead letters.
        key: of its state.
        stream: of the executions.
        of_text: symbol and text to a state.
        limit: greatest number of entries a cycle; None for all there are.
        only: symbols that count here; empty for all.
    """

    service: str
    key: str
    stream: str
    of_text: Callable[[str, str], S]
    limit: int | None
    only: frozenset[str] = frozenset()

    def accepts(self, symbol: str) -> bool:
        """Whether a symbol counts here."""
        return not self.only or symbol in self.only

    def read(self, store: Store, now: float) -> Followed[S]:
        """State and new entries; no entries where the state cannot be trusted.

        Raises:
            StoreError: the store did not answer.
        """
        size = store.read([("UNWATCH",), ("WATCH", self.key), ("HLEN", self.key)])[2]
        too_large = isinstance(size, int) and size > state.FIELDS_LIMIT
        fields = [] if too_large else store.read([("HGETALL", self.key)])[0]
        saved = state.decode(size, fields, self.stream, self.of_text)
        if saved.refused:
            return Followed(saved, Batch("not read", saved.pos, saved.read))
        batch = take(
            store,
            self.stream,
            saved.pos,
            saved.read,
            now,
            service=self.service,
            limit=self.limit,
            accepts=self.accepts,
        )
        return Followed(saved, batch)


def tell(m: Metrics, followed: Followed[S], remembered: int, dropped: int) -> None:
    """Metrics of the stream and the state.

    Args:
        m: where to count.
        followed: what was read.
        remembered: symbols remembered afterwards.
        dropped: symbols forgotten.
    """
    batch, saved = followed.batch, followed.saved
    for result, n in batch.counts.items():
        m.add("quantum_alloc_execution_entries_total", result, amount=n)
    m.add("quantum_alloc_execution_missed_total", amount=batch.missed)
    m.add("quantum_alloc_execution_stream_restarts_total", amount=int(batch.begun_again))
    m.set("quantum_alloc_execution_beyond", float(batch.beyond))
    m.set("quantum_alloc_execution_behind", float(batch.behind))
    m.set("quantum_alloc_state_symbols", remembered)
    m.add("quantum_alloc_state_malformed_total", amount=len(saved.malformed))
    m.add("quantum_alloc_state_dropped_total", amount=dropped)


def looked(followed: Followed[S]) -> dict[tuple[str, str], int]:
    """Whether the stream could be read, as inputs are counted."""
    return {("executions", "ok" if followed.batch.state == "ok" else "redis_error"): 1}


def executions(followed: Followed[S]) -> Fields:
    """The stream's part of a cycle's line."""
    batch = followed.batch
    told: Fields = {"executions": sum(map(len, batch.fills.values()))}
    return {**told, "set_aside": len(batch.letters)} if batch.letters else told
