"""Reads the execution stream from a position on, page by page, and never waits for an entry.

    read(pos, now) -> Batch     executions by symbol, entries set aside, the new position, what was missed

Pages are decoded as they come, so that only executions are held. The first page is small and the next twice as long
while its entries are, so that a flood of megabytes is met a few at a time. A cycle takes at most so many entries, and
stops after 16 MB; what is left waits for the next cycle. Entries that were trimmed or deleted before they were read are
counted by the stream's own count of entries ever added, where the server keeps one (Redis 7 and later). A stream that
was deleted and begun again is gone on with at the old position, and counted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from quantum_alloc.adapters import codec, executions
from quantum_alloc.adapters.effects import Failed, Reply
from quantum_alloc.adapters.executions import Rejected
from quantum_alloc.adapters.store import Store
from quantum_alloc.core import Execution

FIRST_PAGE_ENTRIES = 4
PAGE_ENTRIES = 128
PAGE_BYTES = 256 * 1024
CYCLE_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Batch:
    """What one cycle took from the stream.

    Attributes:
        state: ``ok``, or why the stream cannot be read; then there is nothing new.
        pos: id of the last entry taken.
        read: entries ever added by then; None when that is not known.
        fills: executions by symbol, in the order of the stream.
        letters: fields of the dead letters.
        counts: entries by what became of them.
        missed: entries that were gone before they were read.
        begun_again: True when the stream has had fewer entries than were read from it.
        beyond: True while the stream's last id is before the position: nothing of it is read.
        behind: True when there is more to take.
    """

    state: str
    pos: str
    read: int | None = None
    fills: Mapping[str, tuple[Execution, ...]] = field(default_factory=dict)
    letters: tuple[Mapping[str, str], ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)
    missed: int = 0
    begun_again: bool = False
    beyond: bool = False
    behind: bool = False


def size_of(entry: Reply) -> int:
    """Bytes of a stream entry's fields."""
    if not (isinstance(entry, list) and len(entry) == 2 and isinstance(entry[1], list)):
        return 0
    return sum(len(part) for part in entry[1] if isinstance(part, bytes))


def _info(reply: Reply) -> tuple[int | None, tuple[int, int] | None]:
    """Entries ever added and the last id, of what XINFO STREAM was answered with."""
    if not isinstance(reply, list):
        return (0 if isinstance(reply, Failed) and "no such key" in reply.message.lower() else None), None
    found = {n: v for n, v in zip(reply[::2], reply[1::2], strict=False) if isinstance(n, bytes)}
    added, last = found.get(b"entries-added"), found.get(b"last-generated-id")
    return (added if isinstance(added, int) else None), executions.entry_id(last) if isinstance(last, bytes) else None


def take(
    store: Store,
    stream: str,
    pos: str,
    read: int | None,
    now: float,
    *,
    service: str,
    limit: int | None,
    accepts: Callable[[str], bool],
) -> Batch:
    """The entries after a position.

    Args:
        store: where the stream is.
        stream: its name.
        pos: id of the last entry taken before.
        read: entries ever added by then, None when that is not known.
        now: unix seconds.
        service: who reads, for dead letters.
        limit: greatest number of entries; None for all there are, whatever their size.
        accepts: whether a symbol's executions count here.

    Raises:
        StoreError: the store did not answer.
    """
    info = store.read([("XINFO", "STREAM", stream)])[0]
    added, last_id = _info(info)
    fills: dict[str, list[Execution]] = {}
    letters: list[Mapping[str, str]] = []
    counts: dict[str, int] = {}
    taken = size = 0
    start, drained, room = pos, False, FIRST_PAGE_ENTRIES
    while limit is None or (taken < limit and size < CYCLE_BYTES):
        count = room if limit is None else min(room, limit - taken)
        size_before = size
        page = store.read([("XRANGE", stream, f"({pos}", "+", "COUNT", count)])[0]
        if not isinstance(page, list):
            code = page.code if isinstance(page, Failed) else "unexpected reply"
            return Batch(f"redis_error: {code}", start, read)
        for entry in page:
            pos = _id(entry, pos)
            size += size_of(entry)
            made = executions.decode(entry, now)
            if isinstance(made, Rejected):
                letters.append(executions.dead_letter(entry, made, service, now))
                result = made.flaw.value
            elif accepts(made.symbol):
                fills.setdefault(made.symbol, []).append(made)
                result = "open" if made.pnl_usd is None else "applied"
            else:
                result = "other_symbol"
            counts[result] = counts.get(result, 0) + 1
        taken += len(page)
        room = min(2 * room, PAGE_ENTRIES) if size - size_before < PAGE_BYTES else max(1, room // 4)
        if len(page) < count:
            drained = True
            break
    begun_again = added is not None and read is not None and added < read
    missed, known = 0, None
    if added is not None:
        before = 0 if begun_again else read
        if before is None:  # a first start counts from where nothing was added while it read
            same = not taken or executions.entry_id(pos.encode()) == last_id
            known = added if drained and same else None
        else:
            missed = max(0, added - before - taken) if drained else 0
            known = max(added, before + taken) if drained else before + taken
    return Batch(
        "ok",
        pos,
        known,
        {s: tuple(f) for s, f in fills.items()},
        tuple(letters),
        counts,
        0 if begun_again else missed,
        begun_again,
        _is_behind(last_id, start),
        not drained,
    )


def _is_behind(last_id: tuple[int, int] | None, pos: str) -> bool:
    mine = executions.entry_id(pos.encode())
    return last_id is not None and mine is not None and last_id < mine


def _id(entry: Reply, before: str) -> str:
    raw = entry[0] if isinstance(entry, list) and entry else None
    known = executions.entry_id(raw) if isinstance(raw, bytes) else None
    return before if known is None else codec.printable(raw if isinstance(raw, bytes) else b"")
