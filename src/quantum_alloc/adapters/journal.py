"""The journal of permits: what survives a server that loses its last writes.

    intent    before the commit: every permit of a batch, as it will stand in Redis; fsync
    outcome   after it: which of them were committed, and when; fsync
    void      an intent that was found not to have been committed

One file a governor, JSON lines, in the state directory. At the same run of the server an intent without a tombstone is
void; at a new one it is put back, as are permits that the ledger lacks. A line that a crash has torn is passed over;
it was never acted upon. Source: the project's governor, 2.9.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from quantum_alloc.adapters import codec
from quantum_alloc.adapters.store import StoreError
from quantum_alloc.core.limits import DAY_S, US

KEEP_US = 2 * DAY_S * US
LINES_MAX = 200_000
SUFFIX = ".journal"
"""What the files of journals end in."""


class InUse(Exception):
    """Another process holds the journal; the text is one sentence with the way out."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One permit of the journal.

    Attributes:
        run: the server's run that it was committed to.
        plan_id: of its plan.
        symbol: the symbol.
        issued: ``open USD QTY`` or ``close USD QTY``.
        usd: notional of an open; None for a close.
        tombstone: JSON without its last brace.
        tombstone_ttl_s: its life.
        at_us: when it was decided, or committed once that is known.
        until_us: when the permit expires.
        is_done: True once it is known to be committed.
    """

    run: str
    plan_id: str
    symbol: str
    issued: str
    usd: float | None
    tombstone: str
    tombstone_ttl_s: int
    at_us: int
    until_us: int
    is_done: bool = False


class Journal:
    """One governor's journal; it may be none, which keeps nothing."""

    def __init__(self, directory: Path | None, consumer: str, *, keeps: bool = True) -> None:
        """Open it, alone, and forget what is too old to matter.

        Args:
            directory: the state directory; None for no journal, and nobody else kept out.
            consumer: the governor's name.
            keeps: False for no journal; a second governor of the name is kept out all the same.

        Raises:
            InUse: another governor of that name uses the directory.
            OSError: it cannot be written.
        """
        self.path = directory / file_name(consumer) if directory is not None and keeps else None
        self._number = 0
        self._open: dict[int, tuple[Entry, ...]] = {}
        self._file: Any = None
        self._lock: Any = None
        self._lines, self._most_lines = 0, LINES_MAX
        if directory is None:
            return
        self._lock = (directory / state_file(consumer, "lock")).open("ab")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.close()
            text = f"another governor called {consumer} uses {directory}"
            raise InUse(f"{text}: give this one a name of its own with GOV_CONSUMER") from None
        if self.path is None:
            return
        try:
            self._file = self.path.open("ab")
            self._compact(self.read())
        except OSError:
            self.close()
            raise

    def read(self) -> list[Entry]:
        """Every permit that the file knows, void ones left out."""
        return [] if self.path is None else read(self.path)

    def intent(self, run: str, entries: Sequence[Entry]) -> int:
        """Note what is about to be committed; returns the number of the batch.

        Args:
            run: the server's run.
            entries: permits, at least one.

        Raises:
            StoreError: it cannot be written, so nothing may be permitted.
        """
        if self._lines >= self._most_lines and not self._open:
            self.resolve(self.read())
        self._number += 1
        self._open[self._number] = tuple(entries)
        self._write({"k": "intent", "n": self._number, "run": run, "permits": [_told(e) for e in entries]})
        return self._number

    def outcome(self, number: int, done: Iterable[str], stamp_us: int) -> None:
        """Note what was committed of a batch.

        Args:
            number: of the batch.
            done: plan ids.
            stamp_us: when.

        Raises:
            StoreError: it cannot be written.
        """
        self._write({"k": "outcome", "n": number, "us": stamp_us, "ids": list(done)})
        self._open.pop(number, None)

    def resolve(self, entries: Sequence[Entry]) -> None:
        """Keep these permits and no others: what was found out about those of former runs.

        Args:
            entries: all that count.

        Raises:
            StoreError: it cannot be written.
        """
        if self._file is None:
            return
        self._open.clear()
        try:
            self._compact(entries)
        except OSError as error:
            raise StoreError("journal", f"{self.path} cannot be written ({error.strerror})") from None

    @property
    def unresolved(self) -> Mapping[int, tuple[Entry, ...]]:
        """Batches of this process whose outcome is not known."""
        return self._open

    def close(self) -> None:
        """Let another process have it."""
        for held in (self._file, self._lock):
            if held is not None:
                held.close()
        self._file = self._lock = None

    def _write(self, line: Mapping[str, Any]) -> None:
        if self.path is None:
            return
        if self._file is None:
            raise StoreError("journal", f"{self.path} is closed: the governor is ending")
        try:
            self._file.write(json.dumps(line, separators=(",", ":")).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
            self._lines += 1
        except OSError as error:
            hint = "free the disk, or set GOV_DURABILITY=none"
            raise StoreError("journal", f"{self.path} cannot be written ({error.strerror}): {hint}") from None

    def _compact(self, known: Sequence[Entry]) -> None:
        """Write the file anew with what still matters; batches get new numbers."""
        if self.path is None:
            return
        # one that a clock ahead has stamped must not let the others seem old
        newest = min(max((e.at_us for e in known), default=0), time.time_ns() // 1000 + DAY_S * US)
        kept = [e for e in known if e.at_us > newest - KEEP_US]
        aside = self.path.with_suffix(".new")
        with aside.open("wb") as file:
            for entry in kept:
                self._number += 1
                lines: list[dict[str, Any]] = [
                    {"k": "intent", "n": self._number, "run": entry.run, "permits": [_told(entry)]}
                ]
                if entry.is_done:
                    lines.append({"k": "outcome", "n": self._number, "us": entry.at_us, "ids": [entry.plan_id]})
                for line in lines:
                    file.write(json.dumps(line, separators=(",", ":")).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, self.path)
        sync(self.path.parent)
        self._file.close()
        self._file = self.path.open("ab")
        self._lines = 2 * len(kept)
        self._most_lines = max(LINES_MAX, 2 * self._lines)


def state_file(consumer: str, what: str) -> str:
    """A file of one governor's in the state directory.

    Args:
        consumer: the governor's name.
        what: it holds.

    >>> state_file("host-a", "latch")
    'governor-host-a.latch'
    """
    return f"governor-{codec.printable(consumer, 100).replace('/', '_')}.{what}"


def file_name(consumer: str) -> str:
    """The journal's file, of a consumer's name."""
    return state_file(consumer, SUFFIX.removeprefix("."))


def sync(directory: Path) -> None:
    """Make a renamed file's new name survive a power cut."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _told(entry: Entry) -> dict[str, Any]:
    told = asdict(entry)
    del told["run"], told["is_done"]
    return told


def read(path: Path) -> list[Entry]:
    """Every permit that a journal knows, in its order; intents that came to nothing left out.

    Args:
        path: of the file; one that is not there is empty.
    """
    batches: dict[int, list[Entry]] = {}
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return []
    for line in raw.split(b"\n"):
        try:
            told = json.loads(line)
            number = told["n"]
            if told["k"] == "intent":
                batches[number] = [Entry(told["run"], **permit) for permit in told["permits"]]
            elif told["k"] == "outcome":
                done, at_us = set(told["ids"]), int(told["us"])
                batches[number] = [
                    replace(e, is_done=True, at_us=at_us) for e in batches.get(number, []) if e.plan_id in done
                ]
        except (ValueError, KeyError, TypeError):
            continue  # torn by a crash: what it would have told was not acted upon
    return [entry for entries in batches.values() for entry in entries]
