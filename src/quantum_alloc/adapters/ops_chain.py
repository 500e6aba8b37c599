"""The chain of the OPS ledger: its head, and what is wrong between the files and Redis. Bytes in, sentences out.

The head file counts every line but the one that is being appended; that one is also in the pending file. So what
follows the counted lines is either the pending entry, whole or torn, or a torn line that nobody was told of; anything
else was put there by another hand. Redis counts as many, or one more where the pending entry is that one, or fewer.

A ledger that a governor began has its name in the head file, and the name's hash for the hash before the first entry.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from quantum_alloc.adapters.ops_entry import NO_HASH, Entry, canonical, read_line

FILE, HEAD_FILE, PENDING_FILE = "ops-ledger.jsonl", "ops-head.json", "ops-pending.json"
_NAME = re.compile(r"governor-[A-Za-z0-9._@-]{1,100}")


@dataclass(frozen=True, slots=True)
class Head:
    """What is known of a chain from outside it.

    Attributes:
        count: how many entries it has.
        head: the last one's hash.
        ts: when that one was finished, ISO-8601; empty where there is none.
        name: of a ledger that a governor began; empty for any other.
    """

    count: int
    head: str
    ts: str
    name: str = ""

    def fields(self) -> dict[str, str]:
        """As the hash in Redis holds it."""
        return {"count": str(self.count), "head": self.head, "ts": self.ts}

    def line(self) -> bytes:
        """As the head file holds it."""
        named = {"name": self.name} if self.name else {}
        return canonical({"count": self.count, "head": self.head, "ts": self.ts, **named}) + b"\n"


def no_head(name: str) -> Head:
    """Of a ledger without entries.

    Args:
        name: of the ledger.

    >>> no_head("").head == NO_HASH, no_head("governor-a").head == NO_HASH
    (True, False)
    """
    return Head(0, hashlib.sha256(name.encode()).hexdigest() if name else NO_HASH, "", name)


def head_of(entries: Sequence[Entry | None], count: int, name: str) -> Head | None:
    """The head of the first entries; None where the last of them cannot be read.

    Args:
        entries: of a chain.
        count: how many of them.
        name: of the ledger.
    """
    if count == 0:
        return no_head(name)
    last = entries[count - 1]
    return Head(count, last.hash, last.finished, name) if last else None


@dataclass(frozen=True, slots=True)
class Look:
    """What the files hold.

    Attributes:
        entries: those that the head file counts; None for one that cannot be read.
        size: bytes of the file that these take.
        rest: what follows them.
        pending: the entry that an append has not finished.
        head: whether there is a head file.
        name: of the ledger.
        findings: what is wrong, one sentence each.
    """

    entries: tuple[Entry | None, ...]
    size: int
    rest: bytes
    pending: Entry | None
    head: bool
    name: str
    findings: tuple[str, ...]


def _chain(lines: Sequence[bytes], first: str) -> tuple[list[Entry | None], list[str]]:
    entries: list[Entry | None] = []
    findings = []
    previous: str | None = first
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


def _told(raw: bytes) -> tuple[int | None, str]:
    """What a head file counts, None where it says nothing, and the name of the ledger."""
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError):
        return None, ""
    told = found if isinstance(found, dict) else {}
    count, name = told.get("count"), told.get("name", "")
    if type(count) is not int or count < 0 or not (isinstance(name, str) and (not name or is_name(name))):
        return None, ""
    return count, name


def is_name(text: str) -> bool:
    """Whether a text may be the name of a governor's ledger.

    Args:
        text: to look at.

    >>> is_name("governor-host1-quantum-governor"), is_name("governor-"), is_name("governor-a:b")
    (True, False, False)
    """
    return _NAME.fullmatch(text) is not None


def look_at(raw: bytes, head: bytes | None, kept: bytes | None, name: str = "") -> Look:
    """What the files hold, and what is wrong with them.

    Args:
        raw: the ledger's bytes.
        head: the head file's; None where there is none.
        kept: the pending entry's; None where there is none.
        name: of the ledger where it begins now; the head file's counts where there is one.
    """
    lines = raw.split(b"\n")[:-1]  # what has no end of line was never finished
    findings = []
    counted, name = (0, name) if head is None and kept is None and not raw else _told(head or b"")
    if counted is None:
        findings.append(f"{HEAD_FILE} {'is missing' if head is None else 'is not what was written'}.")
    count = len(lines) if counted is None else counted
    if count > len(lines):
        findings.append(f"{HEAD_FILE} counts {count} entries, {FILE} holds {len(lines)}: some were taken away.")
    entries, broken = _chain(lines[:count], no_head(name).head)
    findings += broken
    size = sum(len(line) + 1 for line in lines[:count])
    rest, pending = raw[size:], None
    known = head_of(entries, count, name) if count == len(entries) else None
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
    return Look(tuple(entries), size, rest, pending, head is not None, name, tuple(findings))


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
    known = head_of(entries, number, look.name)
    if known and {k: v.encode() for k, v in known.fields().items()} != {"count": count, "head": head, "ts": ts}:
        why = "one of them was changed, or another directory appends to this Redis"
        return [f"{key} in Redis and the files here do not know the same entry {number}: {why}."]
    return []
