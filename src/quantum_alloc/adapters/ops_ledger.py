"""The OPS ledger: who did what to the system and why, as a chain of JSON lines that can only grow.

    ops-ledger.jsonl    one entry a line, each with the hash of the entry before it
    ops-head.json       how many entries there are, and the last one's hash; in Redis too, as ``quantum:ops:head``
    ops-pending.json    the entry that is being appended
    ops-ledger.lock     held for a whole append

An append holds the lock, checks everything there is, and then (1) keeps the entry as the pending one, (2) moves Redis'
head to it if that is still what it was, (3) writes the line, (4) replaces the head file, (5) drops the pending entry;
each step is on disk before the next begins. Step 2 is where two machines with one Redis meet: one of them is refused
before it has written a line. After a crash the pending entry tells an unfinished append from tampering: the next append
finishes it, with the same bytes, before it makes its own. Without one, file and head file agree, or someone changed
them. Redis may know nothing (flushed) or less (set back), but nothing else.

Each ledger has a head of its own in Redis. One that a governor began has its name in the head file, and its head is
``quantum:ops:head:NAME``: a governor whose state directory is its own never meets the operator's ledger. Whoever
appends to a directory goes on with the ledger that is there, so that several on one directory share one. Redis must
hold no head of a governor that keeps its state here, but the ledger's: it would be of a ledger that was taken away.

A chain proves nothing against someone who writes all of file, head file and Redis anew.
Source: the project's contract, "OPS ledger".
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from quantum_alloc.adapters.effects import Command, HashReplace
from quantum_alloc.adapters.keys import LIVE, Keys
from quantum_alloc.adapters.ops_chain import (
    FILE,
    HEAD_FILE,
    PENDING_FILE,
    Head,
    Look,
    against,
    is_name,
    look_at,
    no_head,
)
from quantum_alloc.adapters.ops_entry import Entry, LedgerError, Operation, make, read_line
from quantum_alloc.adapters.store import STORE_CODES, Store, StoreError

__all__ = ["Entry", "Head", "LedgerError", "Operation", "OpsLedger", "Unsound"]

LOCK_FILE = "ops-ledger.lock"
LOCK_WAIT_S = 10.0
KNOWN = ".known"
"""What the file of each governor that keeps its state in the directory ends in."""
NOT_DONE = STORE_CODES | {"conflict"}
"""Failures after which Redis has certainly not taken the new head; after the others nobody knows."""


class Unsound(LedgerError):
    """File, head file and Redis do not fit together; nothing was recorded."""


class OpsLedger:
    """The ledger of one directory and one Redis."""

    def __init__(self, directory: Path, store: Store, keys: Keys = LIVE, consumer: str = "") -> None:
        """Prepare; nothing is read, sent or created yet.

        Args:
            directory: where its files are.
            store: where its head is kept too.
            keys: the names.
            consumer: the name of the governor that appends; empty for anybody else.
        """
        self._directory = directory
        self._keys = keys
        self._own = f"governor-{consumer}" if consumer else ""
        self._store = store

    def append(self, operation: Operation, now: float) -> Entry:
        """Record an operation.

        Args:
            operation: what was done.
            now: when it was finished, unix seconds.

        Returns:
            Its entry, which is on disk.

        Raises:
            LedgerError: it cannot be recorded as it is; ``Unsound`` where the ledger is not what it should be.
            StoreError: Redis did not answer; the text says so where the entry is kept nevertheless.
        """
        operation.check()
        self._store.ping()  # without Redis not even the directory comes to be
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            with self._locked(fcntl.LOCK_EX):
                look = self._sound()
                if look.pending is not None:
                    self._finish(look, look.pending)
                    look = self._sound()
                entry = make(operation, [e for e in look.entries if e], now, no_head(look.name).head)
                self._finish(look, entry)
                return entry
        except OSError as error:
            raise LedgerError(f"{error.filename or self._directory} cannot be written: {error.strerror}") from None

    def entries(self) -> list[Entry]:
        """The entries in the file, those left out that cannot be read.

        Raises:
            LedgerError: the file cannot be read.
        """
        found = [read_line(line)[0] for line in (self._read(FILE) or b"").split(b"\n")[:-1]]
        return [entry for entry in found if entry is not None]

    def verify(self) -> list[str]:
        """What is wrong with the files, or between them and Redis: one sentence each, none for a sound ledger.

        Raises:
            LedgerError: a file cannot be read.
            StoreError: Redis did not answer; ``verify_files`` asks the files alone.
        """
        with self._locked(fcntl.LOCK_SH):
            look = self._look()
            return [*look.findings, *self._against(look)]

    def verify_files(self) -> list[str]:
        """What is wrong with the files: one sentence each.

        Raises:
            LedgerError: a file cannot be read.
        """
        with self._locked(fcntl.LOCK_SH):
            return list(self._look().findings)

    def _look(self) -> Look:
        return look_at(self._read(FILE) or b"", self._read(HEAD_FILE), self._read(PENDING_FILE), self._own)

    def _sound(self) -> Look:
        look = self._look()
        self._refuse(look.findings)
        return look

    def _refuse(self, findings: Sequence[str]) -> None:
        if findings:
            told = "Nothing was recorded: `quantum-alloc ledger verify` tells all that is wrong."
            raise Unsound(f"{findings[0]} {told}")

    def _key(self, name: str) -> str:
        return self._keys.ops_head_of(name) if name else self._keys.ops_head

    def _query(self, name: str) -> Command:
        return ("HMGET", self._key(name), "count", "head", "ts")

    def _against(self, look: Look, *before: Command) -> list[str]:
        """What is wrong between the files and the heads in Redis; ``before`` an append, what to send before."""
        here = {p.name.removesuffix(KNOWN) for p in self._directory.glob(f"governor-*{KNOWN}")}
        others = sorted({n for n in (*here, self._own) if is_name(n)} - {look.name})
        told = self._store.read([*before, *map(self._query, (look.name, *others))])[len(before) :]
        begins_with_a_governor = not look.head and others and not before
        findings = [] if begins_with_a_governor else against(look, told[0], self._key(look.name))
        for name, reply in zip(others, told[1:], strict=True):
            if reply != [None, None, None]:
                why = "it was taken away, or put into another directory"
                findings.append(f"{self._key(name)} in Redis is the head of a ledger that is not here any more: {why}.")
        return findings

    def _finish(self, look: Look, entry: Entry) -> None:
        """All steps of one entry; those that an earlier append has done are done again, to the same end."""
        self._refuse(self._against(look, ("UNWATCH",), ("WATCH", self._key(look.name))))
        if not look.head:
            self._save(HEAD_FILE, no_head(look.name).line())  # from now on a missing one is a finding
        if look.pending is None:
            self._save(PENDING_FILE, entry.line)
        head = Head(len(look.entries) + 1, entry.hash, entry.finished, look.name)
        self._reserve(head, entry, fresh=look.pending is None)
        try:
            with (self._directory / FILE).open("ab") as file:
                if look.rest:
                    file.truncate(look.size)  # the torn line of an append that never came to its end
                file.write(entry.line)
                file.flush()
                os.fsync(file.fileno())
            self._sync()
            self._save(HEAD_FILE, head.line())
            (self._directory / PENDING_FILE).unlink()
        except OSError as error:
            what = f"{error.filename or self._directory / FILE} cannot be written: {error.strerror}"
            raise LedgerError(f"{what}; {self._kept(entry)}") from None

    def _reserve(self, head: Head, entry: Entry, *, fresh: bool) -> None:
        """Redis' head becomes this one, if it is still what it was when it was watched."""
        try:
            self._store.apply([(HashReplace(self._key(head.name), head.fields()),)])
        except StoreError as error:
            if self._is_reserved(head):
                return
            if not (fresh and error.code in NOT_DONE):
                raise StoreError(error.code, f"{error.detail}; {self._kept(entry)}") from None
            (self._directory / PENDING_FILE).unlink()
            if error.code == "conflict":
                why = "another ledger with the same Redis appended in the meantime, or the connection broke"
                told = f"{self._key(head.name)} was not moved: {why}. Nothing was recorded: try again."
                raise Unsound(told) from None
            raise

    def _is_reserved(self, head: Head) -> bool:
        try:
            return self._store.read([self._query(head.name)])[0] == [text.encode() for text in head.fields().values()]
        except StoreError:
            return False

    def _kept(self, entry: Entry) -> str:
        return f"{entry.id} is kept in {PENDING_FILE} and the next append finishes it: do not give it again"

    def _read(self, name: str) -> bytes | None:
        path = self._directory / name
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise LedgerError(f"{path} cannot be read: {error.strerror}") from None

    def _save(self, name: str, content: bytes) -> None:
        path, fresh = self._directory / name, self._directory / f"{name}.tmp"
        with fresh.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, path)
        self._sync()

    def _sync(self) -> None:
        """Names of new and replaced files are on disk too."""
        directory = os.open(self._directory, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    @contextmanager
    def _locked(self, how: int) -> Iterator[None]:
        """The lock; reading takes none where nobody has ever written."""
        path = self._directory / LOCK_FILE
        try:
            held = os.open(path, os.O_RDWR | os.O_CREAT if how == fcntl.LOCK_EX else os.O_RDONLY, 0o644)
        except OSError as error:
            if how == fcntl.LOCK_EX:
                raise
            if not isinstance(error, FileNotFoundError):
                raise LedgerError(f"{path} cannot be read: {error.strerror}") from None
            held = None
        if held is None:
            yield
            return
        try:
            self._wait(held, how)
            yield
        finally:
            os.close(held)

    def _wait(self, held: int, how: int) -> None:
        deadline = time.monotonic() + LOCK_WAIT_S
        while True:
            try:
                fcntl.flock(held, how | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    what = f"another program has held {LOCK_FILE} for {LOCK_WAIT_S:.0f} s"
                    raise LedgerError(f"{what}: let it end, then try again") from None
                time.sleep(0.005)
            else:
                return
