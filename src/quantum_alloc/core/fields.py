"""What records are written with: floats that read back bit for bit, and readings as flat fields.

NAME            the value, empty for none
NAME_state      ok, or why it was not used
NAME_ts         its own time, unix seconds
NAME_lane       live or shadow, for inputs that may come from either
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TypeVar

from quantum_alloc.core.reading import Fresh, Reading, Reason, Unusable, age_s

T = TypeVar("T")
Fields = Mapping[str, str]

compact = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode
"""JSON without spaces, floats that read back bit for bit; refuses NaN and infinity."""


def number(value: float | None) -> str:
    """A float as text that reads back bit for bit; empty for None.

    Args:
        value: a finite float, or None.

    >>> number(1820.93), number(None)
    ('1820.93', '')
    """
    return "" if value is None else repr(float(value))


def optional(text: str) -> float | None:
    """A float that ``number`` wrote; None for empty text.

    Args:
        text: of a field.

    >>> optional("1820.93"), optional("")
    (1820.93, None)
    """
    return None if text == "" else float(text)


def state_fields(prefix: str, reading: Reading[T]) -> dict[str, str]:
    """State and time of a reading.

    Args:
        prefix: of the fields' names.
        reading: any.
    """
    return {f"{prefix}_state": reading.state, f"{prefix}_ts": number(reading.ts)}


def read_state(prefix: str, fields: Fields, now: float, value: T | None) -> Reading[T]:
    """The reading that a record holds.

    Args:
        prefix: of the fields' names.
        fields: of the record.
        now: the decision's clock, unix seconds.
        value: as the record's other fields give it, None where there was none.

    Raises:
        ValueError, KeyError: the record contradicts itself, or is of another kind.
    """
    state, ts = fields[f"{prefix}_state"], optional(fields[f"{prefix}_ts"])
    age = None if ts is None else age_s(ts, now)
    if state != "ok":
        kept = value if state == Reason.STALE else None
        return Unusable(Reason(state), kept, ts, age, shown=value if state == Reason.FUTURE else None)
    if value is None or ts is None or age is None:
        raise ValueError(f"the record says that {prefix} was read, but holds no value or time")
    return Fresh(value, ts, age)
