"""The chain of the OPS ledger: its head, and what is wrong between the files and Redis. Bytes in, sentences out.

The head file counts every line but the one that is being appended; that one is also in the pending file. So what
follows the counted lines is either the pending entry, whole or torn, or a torn line that nobody was told of; anything
else was put there by another hand. Redis counts as many, or one more where the pending entry is that one, or fewer.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from quantum_alloc.adapters.ops_entry import NO_HASH, Entry, canonical, read_line

FILE, HEAD_FILE, PENDING_FILE = "ops-ledger.jsonl", "ops-head.json", "ops-pending.json"


@dataclass(frozen=True, slots=True)
class Head:
    """What is known of a chain from outside it.

    Attributes:
        count: how many entries it has.
        head: the last one's hash.
        ts: when that one was finished, ISO-8601; empty where there is none.
    """

    count: int
    head: str
    ts: str

    def fields(self) -> dict[str, str]:
        """As the hash in Redis holds it."""
        return {"count": str(self.count), "head": self.head, "ts": self.ts}

    def line(self) -> bytes:
        """As the head file holds it."""
        return canonical({"count": self.count, "head": self.head, "ts": self.ts}) + b"\n"


NO_HEAD = Head(0, NO_HASH, "")
"""Of a ledger without entries."""


def head_of(entries: Sequence[Entry | None], count: int) -> Head | None:
    """The head of the first entries; None where the last of them cannot be read.

    Args:
        entries: of a chain.
        count: how many of them.
    """
    if count == 0:
        return NO_HEAD
    last = entries[count - 1]
    return Head(count, last.hash, last.finished) if last else None


@dataclass(frozen=True, slots=True)
class Look:
    """What the files hold.

    Attributes:
        entries: those that the head file counts; None for one that cannot be read.
        size: bytes of the file that these take.
        rest: what follows them.
        pending: the entry that an append has not finished.
        head: whether there is a head file.
        findings: what is wrong, one sentence each.
    """

    entries: tuple[Entry | None, ...]
    size: int
    rest: bytes
    pending: Entry | None
    head: bool
    findings: tuple[str, ...]


def _chain(lines: Sequence[bytes]) -> tuple[list[Entry | None], list[str]]:
    entries: list[Entry | None] = []
    findings = []
    previous: str | None = NO_HASH
    for number, line in enumerate(lines, 1):
        entry, why = read_line(line)
        if entry is None:
            findings.append(f"Line {number} is not what was written: {why}.")
        elif previous is not None and entry.previous != previous:
            what = "an entry was taken out, put in or moved"
            findings.append(f"Line {number} ({entry.id}) does not follow the line before it: {what}.")
        entries.append(entry)
        previous = entry.hash if entry else None
    return entries, findings


def _count(raw: bytes) -> int | None:
    """What a head file counts; None where it says nothing."""
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    count = found.get("count") if isinstance(found, dict) else None
    return count if type(count) is int and count >= 0 else None


def look_at(raw: bytes, head: bytes | None, kept: bytes | None) -> Look:
    """What the files hold, and what is wrong with them.

    Args:
        raw: the ledger's bytes.
        head: the head file's; None where there is none.
        kept: the pending entry's; None where there is none.
    """
    lines = raw.split(b"\n")[:-1]  # what has no end of line was never finished
    findings = []
    counted = 0 if head is None and kept is None and not raw else _count(head or b"")
    if counted is None:
        findings.append(f"{HEAD_FILE} {'is missing' if head is None else 'is not what was written'}.")
    count = len(lines) if counted is None else counted
    if count > len(lines):
        findings.append(f"{HEAD_FILE} counts {count} entries, {FILE} holds {len(lines)}: some were taken away.")
    entries, broken = _chain(lines[:count])
    findings += broken
    size = sum(len(line) + 1 for line in lines[:count])
    rest, pending = raw[size:], None
    known = head_of(entries, count) if count == len(entries) else None
    if known and counted is not None and head is not None and head != known.line():
        findings.append(f"{HEAD_FILE} does not hold the hash and the time of entry {count} of {FILE}.")
    if kept is not None:
        pending, why = read_line(kept.removesuffix(b"\n"))
        if pending is None:
            findings.append(f"{PENDING_FILE} is not what was written: {why}.")
        elif known and pending.hash == known.head:
            pending = None  # all but its removal was done
        elif known and pending.previous != known.head:
            findings.append(f"{PENDING_FILE} holds an entry that does not follow entry {count} of {FILE}.")
    if b"\n" in rest and not (pending and len(rest) <= len(pending.line)):
        findings.append(f"{FILE} holds {len(lines)} entries, {HEAD_FILE} counts {count}: some were put in.")
    return Look(tuple(entries), size, rest, pending, head is not None, tuple(findings))


def against(look: Look, reply: object, key: str) -> list[str]:
    """What is wrong between the files and Redis' head, one sentence each.

    Args:
        look: what the files hold.
        reply: what HMGET count head ts was answered with.
        key: where Redis keeps it.
    """
    count, head, ts = reply if isinstance(reply, list) else (b"", None, None)
    if (count, head, ts) == (None, None, None):
        return []  # flushed, or never written
    if not (isinstance(count, bytes) and count.isdigit() and len(count) <= 9):
        return [f"{key} in Redis holds no head of a ledger."]
    number, held = int(count), len(look.entries)
    entries = (*look.entries, look.pending) if look.pending else look.entries
    if number > len(entries):
        why = "entries were taken away, or another directory appends to this Redis"
        return [f"{key} in Redis counts {number} entries, the files here {held}: {why}."]
    known = head_of(entries, number)
    if known and {k: v.encode() for k, v in known.fields().items()} != {"count": count, "head": head, "ts": ts}:
        why = "one of them was changed, or another directory appends to this Redis"
        return [f"{key} in Redis and the files here do not know the same entry {number}: {why}."]
    return []
