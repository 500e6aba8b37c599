"""One entry of the OPS ledger: what a caller gives, what a line holds, and whether a line is what was written.

A line is canonical JSON (sorted names, no spaces, ASCII), and its ``hash`` is the SHA-256 of the same JSON without it:
one text for one entry, so that a changed byte cannot be the same entry written differently.
Source: the project's contract, "OPS ledger".
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Any

from quantum_alloc.adapters import codec

RISK_CLASSES = ("READ_ONLY", "LOW_RISK_CONFIG", "SERVICE_RESTART", "FILESYSTEM_WRITE")
OUTCOMES = ("SUCCESS", "PARTIAL", "ROLLBACK")
TEXT_LIMIT = 4_000
LINE_LIMIT_BYTES = 65_536
NO_HASH = "0" * 64
"""What the first entry has for the hash of the entry before it; in a ledger with a name, the name's hash."""
_ID = re.compile(r"OPS-[0-9]{4}-[0-9]{2}-[0-9]{2}-[0-9]{3,9}")
_LATEST = 253_402_300_799.0
"""The last second of the year 9999."""


class LedgerError(Exception):
    """The ledger did not take an entry, or cannot be read; the text is one sentence with the way out."""


@dataclass(frozen=True, slots=True)
class Operation:
    """What was done, as its caller tells it.

    Attributes:
        operation_name: mode-change, rearm, disarm, deploy, reset, or another plain word.
        requested_by: who wanted it.
        changes_summary: what is different now.
        objective: what it is for.
        risk_class: one of ``RISK_CLASSES``.
        approved_by: who agreed to it; empty for nobody.
        blast_radius: what it can reach if it goes wrong.
        outcome: one of ``OUTCOMES``.
        rollback_of: id of the operation that it undoes; empty for none.
        services_status: how the services were afterwards.
        notes: anything else.
        git_commit: of the installation; empty when it is no checkout.
        hostname: of the machine.
        started: when it began, unix seconds; None when it is recorded in the moment it is done.
    """

    operation_name: str
    requested_by: str
    changes_summary: str
    objective: str
    risk_class: str = "LOW_RISK_CONFIG"
    approved_by: str = ""
    blast_radius: str = ""
    outcome: str = "SUCCESS"
    rollback_of: str = ""
    services_status: str = ""
    notes: str = ""
    git_commit: str = ""
    hostname: str = ""
    started: float | None = None

    def check(self) -> None:
        """Raise LedgerError for the first mistake in it."""
        if codec.word(self.operation_name.encode("utf-8", "replace")) is None:
            raise LedgerError(
                f"operation_name is {self.operation_name[:80]!r}: give 1 to 64 letters, digits, '_', '.', '-'"
            )
        for name in ("requested_by", "changes_summary", "objective"):
            if not getattr(self, name).strip():
                raise LedgerError(f"{name} is empty: an entry without it explains nothing")
        for name, known in (("risk_class", RISK_CLASSES), ("outcome", OUTCOMES)):
            if getattr(self, name) not in known:
                raise LedgerError(f"{name} is {getattr(self, name)[:80]!r}: give one of {', '.join(known)}")
        if self.rollback_of and not _ID.fullmatch(self.rollback_of):
            raise LedgerError(f"rollback_of is {self.rollback_of[:80]!r}: give an id like OPS-2026-01-28-001")
        for name in TEXTS:
            text = getattr(self, name)
            if len(text) > TEXT_LIMIT:
                raise LedgerError(f"{name} has {len(text):,} characters: give at most {TEXT_LIMIT:,}")
            strange = next((c for c in text if not (c.isprintable() or c in "\n\t")), None)
            if strange is not None:  # a byte that is no UTF-8, a control character, a mark that turns the text around
                raise LedgerError(
                    f"{name} holds the character U+{ord(strange):04X}, which cannot be shown: leave it out"
                )


TEXTS = tuple(f.name for f in fields(Operation) if f.name != "started")
NAMES = frozenset({*TEXTS, "operation_id", "timestamps", "previous", "hash"})


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the ledger.

    Attributes:
        values: what it holds, by name.
        line: its bytes, end of line included.
    """

    values: Mapping[str, Any]
    line: bytes

    @property
    def id(self) -> str:
        """Its OPS-YYYY-MM-DD-NNN."""
        return str(self.values["operation_id"])

    @property
    def hash(self) -> str:
        """Its hash."""
        return str(self.values["hash"])

    @property
    def previous(self) -> str:
        """The hash of the entry before it."""
        return str(self.values["previous"])

    @property
    def finished(self) -> str:
        """When its operation was finished, ISO-8601."""
        return str(self.values["timestamps"]["finished"])


def canonical(value: Mapping[str, Any]) -> bytes:
    """The one JSON text of a value.

    >>> canonical({"b": 1, "a": "é"})
    b'{"a":"\\\\u00e9","b":1}'
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode("ascii")


def _hash(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical({k: v for k, v in values.items() if k != "hash"})).hexdigest()


def _iso(seconds: float) -> str:
    if not 0.0 <= seconds <= _LATEST:
        raise LedgerError(f"{seconds} is not a time from 1970 to 9999 in unix seconds: look at the clock")
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def make(operation: Operation, before: Sequence[Entry], now: float, first: str = NO_HASH) -> Entry:
    """The entry of an operation.

    Args:
        operation: what was done.
        before: the entries so far.
        now: when it was finished, unix seconds.
        first: what the first entry has for the hash of the entry before it.

    Raises:
        LedgerError: it is too long, or undoes an operation that is not in the ledger.
    """
    undone = operation.rollback_of
    if undone and all(entry.id != undone for entry in before):
        raise LedgerError(f"{undone} is not in the ledger: `quantum-alloc ledger show` tells the ids there are")
    finished = _iso(now)
    day = f"OPS-{finished[:10]}-"
    last = max((int(entry.id.removeprefix(day)) for entry in before if entry.id.startswith(day)), default=0)
    values: dict[str, Any] = {name: getattr(operation, name) for name in TEXTS}
    values["operation_id"] = f"{day}{last + 1:03d}"
    values["timestamps"] = {
        "started": finished if operation.started is None else _iso(operation.started),
        "finished": finished,
    }
    values["previous"] = before[-1].hash if before else first
    values["hash"] = _hash(values)
    line = canonical(values) + b"\n"
    if len(line) > LINE_LIMIT_BYTES:
        raise LedgerError(f"the entry has {len(line):,} bytes: shorten its texts, {LINE_LIMIT_BYTES:,} is the most")
    return Entry(values, line)


def read_line(line: bytes) -> tuple[Entry | None, str]:
    """The entry of a line, or None and why it is none.

    Args:
        line: without its end.
    """
    if len(line) >= LINE_LIMIT_BYTES:
        return None, f"it has more than {LINE_LIMIT_BYTES:,} bytes"
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return None, "it is not JSON"
    if not isinstance(values, dict) or values.keys() != NAMES or not _is_typed(values):
        return None, "it has not the fields of an entry"
    if canonical(values) != line or _hash(values) != values["hash"]:
        return None, f"{codec.printable(values['operation_id'])} does not have the hash that it names"
    return Entry(values, line + b"\n"), ""


def _is_typed(values: Mapping[str, Any]) -> bool:
    times = values["timestamps"]
    return (
        all(isinstance(v, str) for k, v in values.items() if k != "timestamps")
        and isinstance(times, dict)
        and times.keys() == {"started", "finished"}
        and all(isinstance(t, str) for t in times.values())
        and _ID.fullmatch(values["operation_id"]) is not None
    )
