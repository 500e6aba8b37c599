"""Fields that are JSON: texts, numbers and truths as they stand there, arrays and objects.

A number is judged by its digits and not by the float that is made of it, so it stays the text that it was.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from quantum_alloc.adapters import codec
from quantum_alloc.adapters.registry_types import Choice, Symbol, Text, Type, Word, shown
from quantum_alloc.core.fields import compact

JSON_LIMIT_BYTES = 256 * 1024


class _Literal(str):
    """A number as it stands in the JSON text."""

    __slots__ = ()


def _parts(value: Any) -> bytes:
    """A JSON value as compact JSON, numbers as they stood."""
    if isinstance(value, _Literal):
        return value.encode("ascii", "replace")
    if isinstance(value, dict):
        return b"{" + b",".join(compact(name).encode() + b":" + _parts(v) for name, v in value.items()) + b"}"
    if isinstance(value, list):
        return b"[" + b",".join(map(_parts, value)) + b"]"
    return compact(value).encode()


def loaded(raw: bytes) -> Any:
    """A JSON text as a value, its numbers as they stand there.

    Args:
        raw: at most 256 kB.

    Raises:
        ValueError, RecursionError: it is none.
    """
    if len(raw) > JSON_LIMIT_BYTES:
        raise ValueError("too long")
    return json.loads(raw.decode(), parse_int=_Literal, parse_float=_Literal, parse_constant=_Literal)


def json_fields(raw: bytes) -> dict[str, bytes] | None:
    """The fields of a JSON object, each as the JSON text of its value; None where it is no object.

    Args:
        raw: at most 256 kB.

    >>> json_fields(b'{"granted": true, "eff_stale": "0", "computed_qty": 2.50}')
    {'granted': b'true', 'eff_stale': b'"0"', 'computed_qty': b'2.50'}
    """
    try:
        found = loaded(raw)
        return {name: _parts(value) for name, value in found.items()} if isinstance(found, dict) else None
    except (ValueError, RecursionError):
        return None


@dataclass(frozen=True, slots=True)
class Quoted:
    """A JSON text that holds something.

    Attributes:
        of: what it holds.
        empty: whether it may hold nothing.
    """

    of: Type
    empty: bool = False

    @property
    def told(self) -> str:
        """As what it holds is told."""
        is_plain = isinstance(self.of, Text | Word | Symbol | Choice)
        return f"{'' if is_plain else 'text: '}{self.of.told}{', or empty' if self.empty else ''}"

    def wrong(self, raw: bytes) -> str:
        """No text, or one that holds something else."""
        if raw[:1] != b'"':
            return f"is no text: {codec.printable(raw, 40)}"
        try:
            inner = str(json.loads(raw)).encode()
        except (ValueError, RecursionError):  # half a character is no text either
            return "is no text"
        return "" if self.empty and not inner else self.of.wrong(inner)


@dataclass(frozen=True, slots=True)
class Nullable:
    """A JSON value that may be null.

    Attributes:
        of: what it is otherwise.
    """

    of: Type

    @property
    def told(self) -> str:
        """With the word null."""
        return f"{self.of.told}, or null"

    def wrong(self, raw: bytes) -> str:
        """Neither."""
        return "" if raw == b"null" else self.of.wrong(raw)


@dataclass(frozen=True, slots=True)
class Json:
    """A JSON array or object.

    Attributes:
        kind: ``list`` or ``dict``.
        items: what each element or value is; None for anything.
    """

    kind: type = dict
    items: Type | None = None

    @property
    def told(self) -> str:
        """Array or object."""
        of = "" if self.items is None else f" of {self.items.told}"
        return ("JSON array" if self.kind is list else "JSON object") + of

    def wrong(self, raw: bytes) -> str:
        """No JSON, of another kind, or with an element that it must not have."""
        try:
            found = loaded(raw)
            parts = [_parts(v) for v in (found.values() if isinstance(found, dict) else found)] if self.items else []
        except (ValueError, RecursionError, TypeError):
            return shown(raw)
        if not isinstance(found, self.kind) or isinstance(found, str):
            return f"is no {self.told}: {codec.printable(raw, 40)!r}"
        for part in parts:
            trouble = self.items.wrong(part) if self.items else ""
            if trouble:
                return f"holds something that {trouble}"
        return ""
