"""Log lines on standard error: plain text or one JSON object a line, control characters escaped.

Every line says what kind of thing it tells (``event``), and carries fields of a closed set (``FIELDS``). A cycle's text
is made from its fields. States are told when they begin and when they end, with ``state``, ``from`` and ``to``. Values
are bounded, and a line that cannot be made is replaced by one that says so: logging never ends a loop.

Under systemd, when standard error is the journal, lines begin with their priority (``<4>``), so that
``journalctl -p warning`` finds them, and plain ones carry no time: the journal has it.
"""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol
from weakref import WeakValueDictionary

from quantum_alloc.services.log_names import (
    COMMON,
    EVENTS,
    FIELDS,
    ITEMS_LIMIT,
    NAMED,
    STATES,
    TEXT_LIMIT,
    TRACEBACK_LIMIT,
    VALUE_LIMIT,
    Case,
    Event,
    Fields,
    reference_page,
)  # fmt: skip

__all__ = [
    "COMMON", "EVENTS", "FIELDS", "ITEMS_LIMIT", "NAMED", "STATES", "TEXT_LIMIT", "TRACEBACK_LIMIT", "VALUE_LIMIT",
    "Case", "Counts", "Event", "Fields", "Json", "Plain", "changed", "count_lines", "escape", "few", "is_journal",
    "priority", "reference_page", "say", "set_up", "text_of",
]  # fmt: skip

COUNTED = ("WARNING", "ERROR")
PROCESS = "quantum_alloc"


class Counts(Protocol):
    """What counts a service's lines: its metrics."""

    def add(self, name: str, *labels: str) -> None:
        """Let a counter grow."""

    def set(self, name: str, value: float, *labels: str) -> None:
        """Set a gauge."""


_counted: WeakValueDictionary[str, Counts] = WeakValueDictionary()


def count_lines(name: str, metrics: Counts) -> None:
    """Count the WARNING and ERROR lines of a logger from now on, for as long as the metrics are there.

    Args:
        name: of the logger; the lines of the process count for everybody.
        metrics: of its service; the last ones that were named count.
    """
    _counted[name] = metrics


def _count(log: logging.Logger, level: int) -> None:
    name = COUNTED[-1] if level >= logging.ERROR else COUNTED[0] if level >= logging.WARNING else ""
    if not name:
        return
    for metrics in list(_counted.values()) if log.name == PROCESS else [_counted.get(log.name)]:
        if metrics is not None:
            metrics.add("quantum_alloc_log_lines_total", name)
            metrics.set("quantum_alloc_last_log_line_timestamp_seconds", time.time(), name)


_ESCAPES = {c: f"\\x{c:02x}" for c in (*range(32), 127, *range(128, 160))} | {10: "\\n", 13: "\\r", 9: "\\t"}
_ESCAPES |= {c: f"\\u{c:04x}" for c in (0x2028, 0x2029)}
_FORMATS = {"equity": ".2f", "drawdown": ".4f", "z": ".2f", "ms": ".0f"}


def escape(text: str) -> str:
    """Text without control characters, so that nothing read from outside can forge a line.

    >>> escape("a\\nb")
    'a\\\\nb'
    """
    return text.translate(_ESCAPES)


def few(names: Sequence[str]) -> list[str]:
    """The first names and how many more.

    >>> few(["A", "B", "C", "D", "E", "F", "G"])
    ['A', 'B', 'C', 'D', 'E', '+2']
    """
    return [*names[:NAMED], *([f"+{len(names) - NAMED}"] if len(names) > NAMED else [])]


def text_of(what: str, fields: Fields) -> str:
    """A text made from fields, in their order.

    Args:
        what: it begins with.
        fields: the rest.

    >>> text_of("Cycle complete", {"symbols": 11, "mode": "shadow", "permitted": ["A", "B"], "drawdown": None})
    'Cycle complete symbols=11 mode=shadow permitted=A,B drawdown=unknown'
    >>> text_of("Cycle complete", {"blocked": [{"symbol": "A", "gate": "P2.9 allocation", "reason": "cap"}]})
    'Cycle complete blocked="A by P2.9 allocation: cap"'
    """
    return " ".join([what, *(f"{name}={_shown(name, value)}" for name, value in fields.items())])


def _shown(name: str, value: object) -> str:
    if value is None:
        return "unknown"
    if isinstance(value, str) or not isinstance(value, Sequence):
        return format(value, _FORMATS.get(name, ""))
    if not any(isinstance(one, Mapping) for one in value):
        return ",".join(map(str, value))
    return '"' + ", ".join(_case(one) if isinstance(one, Mapping) else str(one) for one in value) + '"'


def _case(one: Mapping[str, str]) -> str:
    gate = f" by {one['gate']}" if "gate" in one else ""
    return f"{one['symbol']}{gate}: {one['reason']}"


def say(
    log: logging.Logger, level: int, event: Event, text: str, fields: Fields | Case | None = None,
    *, failed: bool = False,
) -> None:  # fmt: skip
    """Log a line, and count it where it is a warning or worse, shown or not.

    Args:
        log: of the service.
        level: of ``logging``.
        event: what kind of thing it tells.
        text: the plain line, without control characters of others: they are escaped.
        fields: what it carries beside.
        failed: whether the exception at hand is told too.
    """
    _count(log, level)
    log.log(level, "%s", text, exc_info=failed, extra={"event": event, "fields": fields or {}})


def changed(
    log: logging.Logger, level: int, text: str, state: str, before: str, after: str, fields: Fields | None = None,
    *, failed: bool = False,
) -> None:  # fmt: skip
    """Log that a state has begun or ended.

    Args:
        log: of the service.
        level: of ``logging``.
        text: the plain line.
        state: one of ``STATES``.
        before: what it was.
        after: what it is.
        fields: what the line carries beside.
        failed: whether the exception at hand is told too.
    """
    told: Fields = {"state": state, "from": before, "to": after}
    say(log, level, "state", text, {**told, **(fields or {})}, failed=failed)


def _bounded(value: object, depth: int = 2) -> object:
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    if depth and isinstance(value, Mapping):
        return {str(k)[:VALUE_LIMIT]: _bounded(v, depth - 1) for k, v in list(value.items())[:ITEMS_LIMIT]}
    if depth and isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return [_bounded(v, depth - 1) for v in value[:ITEMS_LIMIT]]
    return str(value)[:VALUE_LIMIT]


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[:limit] + "..."


class Plain(logging.Formatter):
    """Time, level, service, message on one line; a traceback on lines of its own, which no other line begins like."""

    converter = staticmethod(time.gmtime)

    def __init__(self, *, journal: bool = False) -> None:
        """Say whether the journal reads it."""
        super().__init__()
        self._journal = journal

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        when = "" if self._journal else self.formatTime(record, "%Y-%m-%dT%H:%M:%SZ") + " "
        text = escape(_cut(record.getMessage(), TEXT_LIMIT))
        lines = [f"{when}{record.levelname} {record.name.removeprefix('quantum_alloc.')}: {text}"]
        if record.exc_info:
            lines += [
                "  | " + escape(one) for one in self.formatException(record.exc_info)[-TRACEBACK_LIMIT:].split("\n")
            ]
        return "\n".join(f"{priority(record.levelno)}{line}" for line in lines) if self._journal else "\n".join(lines)


class Json(logging.Formatter):
    """One JSON object a line, with the names of ``COMMON`` and ``FIELDS`` and no others."""

    def __init__(self, *, journal: bool = False) -> None:
        """Say whether the journal reads it."""
        super().__init__()
        self._journal = journal

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        event = getattr(record, "event", "message")
        fields = getattr(record, "fields", {})
        entry: dict[str, Any] = {
            "ts": round(record.created, 3),
            "level": record.levelname,
            "service": record.name.removeprefix("quantum_alloc."),
            "event": event if event in EVENTS else "message",
            "message": _cut(record.getMessage(), TEXT_LIMIT),
            **{name: _bounded(value) for name, value in fields.items() if name in FIELDS},
        }
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)[-TRACEBACK_LIMIT:]
        line = json.dumps(entry)
        return f"{priority(record.levelno)}{line}" if self._journal else line


def priority(level: int) -> str:
    """What a line for the journal begins with.

    Args:
        level: of ``logging``.

    >>> priority(logging.DEBUG), priority(logging.INFO), priority(logging.WARNING), priority(logging.ERROR)
    ('<7>', '<6>', '<4>', '<3>')
    """
    steps = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
    return f"<{next((number for least, number in steps if level >= least), 7)}>"


class _Handler(logging.StreamHandler[Any]):
    """Writes lines; one that cannot be made or written is never the end of what wrote it."""

    def handleError(self, record: logging.LogRecord) -> None:
        """In the place of a line that could not be made, one that says so."""
        text = f"a log line could not be made: {type(sys.exc_info()[1]).__name__}"
        told = logging.LogRecord(record.name, record.levelno, "", 0, text, None, None)
        try:
            self.stream.write(self.format(told) + self.terminator)
            self.stream.flush()
        except (OSError, ValueError):  # nobody reads what we write
            return


def is_journal(stream: object, environ: Mapping[str, str]) -> bool:
    """Whether a stream is systemd's journal.

    Args:
        stream: of this process.
        environ: its environment; ``JOURNAL_STREAM`` names the journal's device and inode.
    """
    try:
        found = os.fstat(stream.fileno())  # type: ignore[attr-defined]
    except (AttributeError, OSError, ValueError):
        return False
    return environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


def set_up(level: str, form: str) -> None:
    """Log to standard error; where there is none, to nobody.

    Args:
        level: DEBUG, INFO, WARNING or ERROR.
        form: ``plain`` or ``json``.
    """
    journal = is_journal(sys.stderr, os.environ)
    handler = (
        logging.NullHandler() if sys.stderr is None else _Handler(sys.stderr)
    )  # None: it was closed from the start
    handler.setFormatter(Json(journal=journal) if form == "json" else Plain(journal=journal))
    root = logging.getLogger("quantum_alloc")
    root.handlers = [handler]
    root.setLevel(level)
    root.propagate = False
