"""Plans out of the stream, by a consumer group: every one is held until it is answered.

    own pending entries, then those of consumers that have been silent for two seconds, then new ones

What was handed out stays in the queue until it is settled. After trouble with the store nobody knows what was done,
so the queue is made again from the entries that are still pending: what is not pending has its answer. A group that
vanished is made again at the last answered entry, less the life of a plan; before the first answer at 0.

A plan that was delivered five times without an answer is given up. Counted are tries that ended in an error of ours or
in the end of the process, not those that ended in trouble with the store or because something moved; tries that the
process did not survive are kept in a file. Source: the project's governor, 2.8.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from quantum_alloc.adapters import executions, plans
from quantum_alloc.adapters.commit import Status
from quantum_alloc.adapters.effects import Command, Failed, Reply
from quantum_alloc.adapters.execution_reader import PAGE_BYTES, size_of
from quantum_alloc.adapters.store import Store, StoreError
from quantum_alloc.core.plan import Plan

BATCH = 100
FIRST_PAGE = 8
BLOCK_MS = 100
BLOCK_LATE_S = 0.3
"""A server looks ten times a second for those that have waited long enough, unless its ``hz`` says otherwise."""
IDLE_MS = 2000
TICK_S = 1.0
TRIES, SUSPECT_TRIES = 5, 2
MOVED_TRIES, YIELD_TRIES = 3, 6
STUCK_S = 1.0
PENDING_PAGE = 1000


@dataclass(slots=True)
class Entry:
    """One plan of the stream, until it is answered.

    Attributes:
        id: of the stream entry.
        plan: what could be made of it; None where that failed.
        raw: as it was read, for a dead letter.
        tries: deliveries without an answer.
        moved: how often what it was decided on had changed.
        taken: True where a permit stands that was not given here.
        is_again: True where it was delivered before, to a process that has ended or fell silent.
        stuck_until: when it is tried again after a key of another type was in its way, by the clock that nobody sets.
    """

    id: str
    plan: Plan | plans.BadId | plans.NotGoverned | None
    raw: Reply
    tries: int = 0
    moved: int = 0
    taken: bool = False
    is_again: bool = False
    stuck_until: float = 0.0

    @property
    def is_given_up(self) -> bool:
        """True when it was delivered too often."""
        return self.tries >= TRIES


def order(entry_id: str) -> tuple[int, int]:
    """Place of an entry in its stream."""
    return executions.entry_id(entry_id.encode()) or (0, 0)


class Tries:
    """Deliveries that the process did not survive, by entry id, in a file."""

    def __init__(self, path: Path | None) -> None:
        """Read the file; one that is not there or cannot be read counts nothing."""
        self._path = path
        self._counts: dict[str, int] = {}
        try:
            told = json.loads(path.read_bytes()) if path is not None else {}
            self._counts = {k: v for k, v in told.items() if isinstance(v, int)} if isinstance(told, dict) else {}
        except (OSError, ValueError):
            self._counts = {}

    def count(self, entry_id: str) -> int:
        """Tries of an entry that did not end."""
        return self._counts.get(entry_id, 0)

    def begun(self, ids: Sequence[str]) -> None:
        """The next try of these counts until it has ended."""
        for i in ids:
            self._counts[i] = self._counts.get(i, 0) + 1
        if ids:
            self._save()

    def ended(self, ids: Sequence[str]) -> None:
        """These have their answer."""
        known = [i for i in ids if i in self._counts]
        for i in known:
            del self._counts[i]
        if known:
            self._save()

    def excused(self, ids: Sequence[str]) -> None:
        """The try of these ended in trouble with the store, or something had moved: it does not count."""
        before = [i for i in ids if i in self._counts]
        for i in before:
            self._counts[i] = max(0, self._counts[i] - 1)
        if before:
            self._save()

    def _save(self) -> None:
        if self._path is None:
            return
        aside = self._path.with_suffix(".new")
        try:
            aside.write_text(json.dumps(self._counts), encoding="utf-8")
            os.replace(aside, self._path)
        except OSError:  # a plan is tried once more than it should be
            return


class Intake:
    """Hands out plans in batches and holds them until they are settled.

    Attributes:
        missed: entries that were gone before anybody answered them.
        groups_made: how often the group had vanished.
        oldest_ms: time of the stream's oldest entry, None while that is not known.
        consumers: names of all consumers of the group.
    """

    def __init__(
        self, store: Store, stream: str, group: str, consumer: str, plan_max_age_s: int, tries: Tries, *, once: bool
    ) -> None:
        """Prepare; nothing is read yet.

        Args:
            store: where the stream is.
            stream: its name.
            group: the consumer group.
            consumer: this one's name.
            plan_max_age_s: how long a plan is valid.
            tries: of entries that were delivered before.
            once: never wait for an entry.
        """
        self._store, self._stream, self._group, self._consumer = store, stream, group, consumer
        self._margin_ms = (plan_max_age_s + 5) * 1000
        self._tries, self._once = tries, once
        self._queue: dict[str, Entry] = {}
        self._in_hand: tuple[str, ...] = ()
        self._in_doubt, self._one_by_one, self._is_start = True, False, True
        self._room, self._tick_at, self._claim_from = FIRST_PAGE, 0.0, "0-0"
        self._counted_gap, self._connections = 0, -1
        self.missed = self.groups_made = 0
        self.oldest_ms: int | None = None
        self.consumers: frozenset[str] = frozenset()
        self.position = ""

    def take(self, position: str) -> list[Entry]:
        """The next plans, in the order of the stream; waits a moment where there are none.

        Args:
            position: greatest entry id that was ever answered, for a group that has vanished; empty for none.

        Raises:
            StoreError: the stream cannot be read.
        """
        self.position = position
        self._after_an_error()
        if self._in_doubt or self._store.connections != self._connections:
            self._recover()
        if time.monotonic() >= self._tick_at:
            self._claim()
            self._look()
            self._tick_at = time.monotonic() + TICK_S
        if len(self._queue) < BATCH:
            self._read(BATCH - len(self._queue))
        if self._store.connections != self._connections:  # a reply may have been lost with the old one
            self._recover()
        batch = self._next()
        self._in_hand = tuple(e.id for e in batch)
        self._tries.begun([e.id for e in batch if e.is_again])
        return batch

    def _next(self) -> list[Entry]:
        """A batch in the order of the stream; one alone that has moved too often, or may be what ended a process."""
        now = time.monotonic()
        waiting = sorted((e for e in self._queue.values() if e.stuck_until <= now), key=lambda e: order(e.id))
        some = waiting[:BATCH]
        suspects = (e.moved >= MOVED_TRIES or (e.is_again and e.tries >= SUSPECT_TRIES) for e in some)
        if self._one_by_one or any(suspects):
            some.sort(key=lambda e: (e.moved // YIELD_TRIES, order(e.id)))  # one that moves for ever lets others pass
            return some[:1]
        return some

    @property
    def waiting(self) -> int:
        """Plans that are held."""
        return len(self._queue)

    def settle(self, statuses: Sequence[Status]) -> list[str]:
        """What became of the batch that was handed out, in its order.

        Returns:
            Ids that are settled.
        """
        done: list[str] = []
        excused: list[str] = []
        for entry_id, status in zip(self._in_hand, statuses, strict=True):
            entry = self._queue[entry_id]
            if status in (Status.OK, Status.GONE):
                done.append(entry_id)
                del self._queue[entry_id]
                continue
            if status is Status.FAILED:
                entry.tries += 1
                continue
            excused.append(entry_id)
            if status is Status.TYPE:
                entry.stuck_until = time.monotonic() + STUCK_S
            elif status is not Status.WAITS:
                entry.moved += 1
                entry.taken = entry.taken or status is Status.TAKEN
        self._tries.ended(done)
        self._tries.excused(excused)
        self._in_hand = ()
        if not self._queue or done:
            self._one_by_one = False
        return done

    def wait(self, ids: Sequence[str]) -> None:
        """These stay where they are, at no cost to them: something that they need is not there yet."""
        self._tries.excused(self._in_hand)
        self._in_hand = ()
        for entry_id in ids:
            self._queue[entry_id].moved = min(self._queue[entry_id].moved, MOVED_TRIES - 1)

    def doubt(self) -> None:
        """Trouble with the store: nobody knows what was done."""
        self._tries.excused(self._in_hand)
        self._in_doubt, self._in_hand = True, ()

    def _after_an_error(self) -> None:
        """What was handed out and never settled met an error of ours: try the plans one by one, and count."""
        if not self._in_hand:
            return
        if len(self._in_hand) == 1:
            self._queue[self._in_hand[0]].tries += 1
        self._one_by_one, self._in_hand = True, ()

    def _ask(self, command: Command, wait_s: float = 0.0) -> Reply:
        reply = self._store.read([command], wait_s)[0]
        if isinstance(reply, Failed) and reply.code == "NOGROUP":
            self._make_group()
            reply = self._store.read([command], wait_s)[0]
        if isinstance(reply, Failed):
            raise StoreError("other", f"the stream of plans {self._stream} cannot be read: {reply.message[:200]}")
        return reply

    def _make_group(self) -> None:
        start = "0"
        if executions.entry_id(self.position.encode()) is not None:
            clock = self._store.read([("TIME",)])[0]  # ids may be ahead of it: what comes now must not be passed over
            now_ms = int(clock[0]) * 1000 if isinstance(clock, list) and isinstance(clock[0], bytes) else 0
            start = f"{max(0, min(order(self.position)[0], now_ms) - self._margin_ms)}-0"
            self.groups_made += 1
        self._store.read([("XGROUP", "CREATE", self._stream, self._group, start, "MKSTREAM")])

    def _recover(self) -> None:
        """Make the queue what is pending for this consumer."""
        pending: list[str] = []
        start = "-"
        while True:
            page = self._ask(("XPENDING", self._stream, self._group, start, "+", PENDING_PAGE, self._consumer))
            ids = [row[0].decode("ascii") for row in _lists(page) if isinstance(row[0], bytes)]
            pending += ids
            if len(ids) < PENDING_PAGE:
                break
            start = f"({ids[-1]}"
        known = set(pending)
        self._tries.ended([i for i in self._queue if i not in known])
        self._queue = {i: e for i, e in self._queue.items() if i in known}
        new = [i for i in pending if i not in self._queue]
        for at in range(0, len(new), BATCH):
            some = new[at : at + BATCH]
            replies = self._store.read([("XRANGE", self._stream, i, i) for i in some])
            gone = []
            for entry_id, reply in zip(some, replies, strict=True):
                rows = _lists(reply)
                if rows:
                    self._add(rows[0], is_again=self._is_start or self._tries.count(entry_id) > 0)
                else:
                    gone.append(entry_id)
            self._lost(gone)
        self._in_doubt = self._is_start = False
        self._connections = self._store.connections

    def _lost(self, ids: Sequence[str]) -> None:
        """Pending entries that the stream no longer holds."""
        if ids:
            self._store.read([("XACK", self._stream, self._group, *ids)])
            self._tries.ended(ids)
            self.missed += len(ids)

    def _claim(self) -> None:
        """Take over what silent consumers hold."""
        claim: Command = (
            "XAUTOCLAIM", self._stream, self._group, self._consumer, IDLE_MS, self._claim_from, "COUNT", BATCH,
        )  # fmt: skip
        reply = self._ask(claim)
        if not (isinstance(reply, list) and len(reply) >= 2 and isinstance(reply[0], bytes)):
            return
        self._claim_from = reply[0].decode("ascii")
        rows = [row for row in _lists(reply[1]) if isinstance(row[0], bytes)]
        if len(reply) > 2 and isinstance(reply[2], list):
            self.missed += len(reply[2])
        for row in rows:
            if isinstance(row[0], bytes) and row[0].decode("ascii") not in self._queue:
                self._add(row, is_again=True)

    def _look(self) -> None:
        """How far the stream goes back, who reads it, and what was trimmed before it was read."""
        info, groups, members = self._store.read(
            [
                ("XINFO", "STREAM", self._stream),
                ("XINFO", "GROUPS", self._stream),
                ("XINFO", "CONSUMERS", self._stream, self._group),
            ]
        )
        stream = _named(info)
        first = stream.get(b"recorded-first-entry-id")
        known = executions.entry_id(first) if isinstance(first, bytes) else None
        self.oldest_ms = known[0] if known is not None and known[0] else None
        names = [_named(m).get(b"name") for m in _lists(members)]
        self.consumers = frozenset(n.decode("utf-8", "replace") for n in names if isinstance(n, bytes))
        mine = next((_named(g) for g in _lists(groups) if _named(g).get(b"name") == self._group.encode()), {})
        added, length, read = stream.get(b"entries-added"), stream.get(b"length"), mine.get(b"entries-read")
        if isinstance(added, int) and isinstance(length, int) and isinstance(read, int):
            gap = added - length - max(read, self._counted_gap)
            if gap > 0:
                self.missed += gap
                self._counted_gap = added - length

    def _read(self, room: int) -> None:
        """New entries; waits for one where nothing else is to do."""
        count = min(room, self._room)
        wait: Command = () if self._queue or self._once else ("BLOCK", BLOCK_MS)
        ask: Command = (
            "XREADGROUP", "GROUP", self._group, self._consumer, "COUNT", count, *wait, "STREAMS", self._stream, ">",
        )  # fmt: skip
        reply = self._ask(ask, BLOCK_LATE_S if wait else 0.0)
        streams = _lists(reply)
        rows = _lists(streams[0][1]) if streams and len(streams[0]) > 1 else []
        size = sum(size_of(row) for row in rows)
        for row in rows:
            self._add(row, is_again=False)
        self._room = min(2 * self._room, BATCH) if size < PAGE_BYTES else max(1, self._room // 4)

    def _add(self, row: Reply, *, is_again: bool) -> None:
        if not (isinstance(row, list) and isinstance(row[0], bytes)):
            return
        entry_id = row[0].decode("ascii")
        if len(row) < 2 or not isinstance(row[1], list):
            self._lost([entry_id])
            return
        tries = 1 + self._tries.count(entry_id) if is_again else 0
        self._queue[entry_id] = Entry(entry_id, None, row, tries, is_again=is_again)


def _lists(reply: Reply) -> list[list[Reply]]:
    return [row for row in reply if isinstance(row, list) and row] if isinstance(reply, list) else []


def _named(reply: Reply) -> dict[bytes, Reply]:
    if not isinstance(reply, list):
        return {}
    return {n: v for n, v in zip(reply[::2], reply[1::2], strict=False) if isinstance(n, bytes)}
