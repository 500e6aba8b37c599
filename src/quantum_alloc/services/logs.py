"""Log lines: plain text or JSON, control characters escaped, on standard error."""

from __future__ import annotations

import json
import logging
import sys
import time

_ESCAPES = {c: f"\\x{c:02x}" for c in (*range(32), 127, *range(128, 160))} | {10: "\\n", 13: "\\r", 9: "\\t"}


def escape(text: str) -> str:
    """Text without control characters, so that nothing read from outside can forge a line.

    >>> escape("a\\nb")
    'a\\\\nb'
    """
    return text.translate(_ESCAPES)


class Plain(logging.Formatter):
    """Time, level, service, message on one line; a traceback on lines of its own."""

    converter = staticmethod(time.gmtime)

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        when = self.formatTime(record, "%Y-%m-%dT%H:%M:%SZ")
        line = f"{when} {record.levelname} {record.name.removeprefix('quantum_alloc.')}: {escape(record.getMessage())}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class Json(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        entry = {
            "ts": round(record.created, 3),
            "level": record.levelname,
            "service": record.name.removeprefix("quantum_alloc."),
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry)


def set_up(level: str, form: str) -> None:
    """Log to standard error.

    Args:
        level: DEBUG, INFO, WARNING or ERROR.
        form: ``plain`` or ``json``.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Json() if form == "json" else Plain())
    root = logging.getLogger("quantum_alloc")
    root.handlers = [handler]
    root.setLevel(level)
    root.propagate = False
