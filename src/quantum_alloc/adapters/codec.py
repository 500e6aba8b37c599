"""Bytes to values: total functions that give a value or say that there is none, and never raise.

    number   a finite ASCII decimal, exponent allowed, within the field's range, at most 4 kB
    time     such a number (below 1e11 seconds, below 1e14 ms, below 1e17 us, else ns) or ISO-8601 (naive = UTC)
    word     [A-Za-z0-9_.-]{1,64}         symbol   [A-Z0-9]{2,30}

Everything else (``NaN``, ``inf``, empty text, ``1_000``, hex, digits of other scripts, spaces) is malformed.
Source: the project's contract, "Time, numbers, names".
"""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime

VALUE_LIMIT_BYTES = 4096
USD_LIMIT = 1e15
"""No amount of USD, price or quantity is greater; it keeps every product of the rules finite."""

_NUMBER = re.compile(rb"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_TIME = rb"[0-9]{2}:[0-9]{2}(?::[0-9]{2}(?:[.,][0-9]{1,9})?)?(?:Z|[+-][0-9]{2}:?[0-9]{2})?"
_ISO = re.compile(rb"[0-9]{4}-[0-9]{2}-[0-9]{2}(?:[T ]" + _TIME + rb")?")
_SYMBOL = re.compile(rb"[A-Z0-9]{2,30}")
_WORD = re.compile(rb"[A-Za-z0-9_.-]{1,64}")


def number(raw: bytes, low: float = -USD_LIMIT, high: float = USD_LIMIT) -> float | None:
    """A finite number within [low, high]; None when malformed.

    Args:
        raw: the field's bytes.
        low: smallest value allowed.
        high: greatest value allowed.

    >>> number(b"1820.93"), number(b"2e3"), number(b"NaN"), number(b"1_000"), number(b""), number(b"1e400")
    (1820.93, 2000.0, None, None, None, None)
    """
    if len(raw) > VALUE_LIMIT_BYTES or _NUMBER.fullmatch(raw) is None:
        return None
    value = float(raw)
    return value if low <= value <= high else None


def unix_seconds(raw: bytes) -> float | None:
    """A time as unix seconds, 0 or later; None when malformed.

    Args:
        raw: seconds, milli-, micro- or nanoseconds by magnitude, or ISO-8601.

    >>> unix_seconds(b"1769577450.5"), unix_seconds(b"1769577450500"), unix_seconds(b"2026-01-28T05:17:30.5Z")
    (1769577450.5, 1769577450.5, 1769577450.5)
    """
    if len(raw) > VALUE_LIMIT_BYTES:
        return None
    if _NUMBER.fullmatch(raw) is not None:
        value = float(raw)
        if not 0.0 <= value < math.inf:
            return None
        return value / (1.0 if value < 1e11 else 1e3 if value < 1e14 else 1e6 if value < 1e17 else 1e9)
    return _iso_seconds(raw)


def _iso_seconds(raw: bytes) -> float | None:
    if _ISO.fullmatch(raw) is None:
        return None
    try:
        when = datetime.fromisoformat(raw.decode("ascii"))
        seconds = (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):  # a 30th of February, an offset of 99 hours
        return None
    return seconds if seconds >= 0.0 else None


def symbol(raw: bytes) -> str | None:
    """A symbol; None when refused.

    Args:
        raw: the name's bytes.

    >>> symbol(b"BTCUSDT"), symbol(b"btc"), symbol(b"BTC\\nUSDT")
    ('BTCUSDT', None, None)
    """
    return raw.decode("ascii") if _SYMBOL.fullmatch(raw) else None


def word(raw: bytes) -> str | None:
    """A plan id, a cluster id, a name of a regime; None when refused.

    Args:
        raw: the name's bytes.

    >>> word(b"C1"), word(b"p33:x")
    ('C1', None)
    """
    return raw.decode("ascii") if _WORD.fullmatch(raw) else None


def printable(raw: bytes | str, limit: int = 60) -> str:
    """Text that is safe in a log line: control characters escaped, shortened.

    Args:
        raw: any bytes or text.
        limit: greatest length in characters.

    >>> printable(b"A\\nB")
    'A\\\\nB'
    """
    text = raw.decode("utf-8", "backslashreplace") if isinstance(raw, bytes) else raw
    short = text if len(text) <= limit else text[:limit] + "..."
    return short.encode("unicode_escape").decode("ascii")
