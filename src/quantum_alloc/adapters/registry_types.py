"""What a field of a record may hold: each type says what is wrong with some bytes, and how it is told in the docs.

Types are values. ``wrong`` is total: it answers any bytes with a sentence's end (``is empty``), or with nothing where
they are as they should be. Source: the project's contract, "Time, numbers, names".
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from quantum_alloc.adapters import codec, executions

SECONDS_MAX = 1e11
"""What is not below it is no time in seconds."""
WHOLE_MAX = 10**18 - 1


class Type(Protocol):
    """What bytes may be."""

    @property
    def told(self) -> str:
        """As the docs tell it."""
        ...

    def wrong(self, raw: bytes) -> str:
        """What is wrong with some bytes, empty where nothing is."""
        ...


def shown(raw: bytes) -> str:
    """A sentence's end for bytes that cannot be read.

    Args:
        raw: any.
    """
    return f"is malformed: {codec.printable(raw, 40)!r}" if raw else "is empty"


def _bound(value: float) -> str:
    return f"{value:,.0f}".replace(",", " ") if abs(value) < 1e6 and value.is_integer() else f"{value:g}"


@dataclass(frozen=True, slots=True)
class Number:
    """A finite decimal.

    Attributes:
        low: smallest value.
        high: greatest value.
        decimals: how many stand behind the point; None for as many as it takes.
        positive: whether 0 is none.
    """

    low: float = -codec.USD_LIMIT
    high: float = codec.USD_LIMIT
    decimals: int | None = None
    positive: bool = False

    @property
    def told(self) -> str:
        """Its range where it has one."""
        low = "" if self.low == -codec.USD_LIMIT else _bound(self.low)
        high = "" if self.high == codec.USD_LIMIT else _bound(self.high)
        if self.positive:
            return f"number above 0{f', at most {high}' if high else ''}"
        inside = f" {low}..{high}" if low or high else ""
        return f"number{inside}" + ("" if self.decimals is None else f', "%.{self.decimals}f"')

    def wrong(self, raw: bytes) -> str:
        """Malformed, out of range, or not in its format."""
        value = codec.number(raw, -1e308, 1e308)
        if value is None:
            return shown(raw)
        if not self.low <= value <= self.high or (self.positive and value <= 0.0):
            return f"is out of range: {value:g}"
        if self.decimals is not None and re.fullmatch(rb"-?[0-9]+\.[0-9]{%d}" % self.decimals, raw) is None:
            return f"is not written with {self.decimals} decimals: {codec.printable(raw, 40)!r}"
        return ""


@dataclass(frozen=True, slots=True)
class Whole:
    """A whole number, digits alone.

    Attributes:
        low: smallest value, at least 0.
        high: greatest value.
    """

    low: int = 0
    high: int = WHOLE_MAX

    @property
    def told(self) -> str:
        """Its range where it has one."""
        return "whole number" + ("" if (self.low, self.high) == (0, WHOLE_MAX) else f" {self.low}..{self.high}")

    def wrong(self, raw: bytes) -> str:
        """Malformed or out of range."""
        if re.fullmatch(rb"[0-9]{1,18}", raw) is None:
            return shown(raw)
        return "" if self.low <= int(raw) <= self.high else f"is out of range: {int(raw)}"


@dataclass(frozen=True, slots=True)
class Time:
    """Unix seconds.

    Attributes:
        fraction: whether parts of a second may follow.
    """

    fraction: bool = False

    @property
    def told(self) -> str:
        """With or without parts of a second."""
        return "unix seconds" if self.fraction else "whole unix seconds"

    def wrong(self, raw: bytes) -> str:
        """Malformed, with parts of a second that it must not have, or milliseconds."""
        pattern = rb"[0-9]{1,18}(\.[0-9]+)?" if self.fraction else rb"[0-9]{1,18}"
        if re.fullmatch(pattern, raw) is None:
            return shown(raw)
        return "" if float(raw) < SECONDS_MAX else f"is not in seconds: {codec.printable(raw, 40)}"


@dataclass(frozen=True, slots=True)
class AnyTime:
    """A time as readers take it: seconds, milli-, micro- or nanoseconds, ISO-8601."""

    @property
    def told(self) -> str:
        """As the contract says."""
        return "a time"

    def wrong(self, raw: bytes) -> str:
        """Malformed."""
        return shown(raw) if codec.unix_seconds(raw) is None else ""


@dataclass(frozen=True, slots=True)
class Iso:
    """A time as ISO-8601 in UTC."""

    @property
    def told(self) -> str:
        """As it is written."""
        return "ISO-8601"

    def wrong(self, raw: bytes) -> str:
        """Malformed."""
        try:
            datetime.fromisoformat(raw.decode("ascii"))
        except ValueError:
            return shown(raw)
        return ""


@dataclass(frozen=True, slots=True)
class Text:
    """Any text.

    Attributes:
        limit_bytes: greatest length.
    """

    limit_bytes: int = codec.VALUE_LIMIT_BYTES

    @property
    def told(self) -> str:
        """Just that."""
        return "text"

    def wrong(self, raw: bytes) -> str:
        """Too long, or no text."""
        if len(raw) > self.limit_bytes:
            return f"is longer than {self.limit_bytes} bytes"
        try:
            raw.decode()
        except UnicodeDecodeError:
            return "is no text"
        return ""


@dataclass(frozen=True, slots=True)
class Word:
    """A plain word: an id of a plan or a cluster, a name of a regime."""

    @property
    def told(self) -> str:
        """Just that."""
        return "word"

    def wrong(self, raw: bytes) -> str:
        """Not 1 to 64 letters, digits, ``_``, ``.``, ``-``."""
        return shown(raw) if codec.word(raw) is None else ""


@dataclass(frozen=True, slots=True)
class Symbol:
    """A symbol."""

    @property
    def told(self) -> str:
        """Just that."""
        return "symbol"

    def wrong(self, raw: bytes) -> str:
        """Not 2 to 30 capital letters or digits."""
        return shown(raw) if codec.symbol(raw) is None else ""


@dataclass(frozen=True, slots=True)
class Choice:
    """One of a few words.

    Attributes:
        words: which.
    """

    words: tuple[str, ...]

    @property
    def told(self) -> str:
        """The words."""
        return ", ".join(word or "empty" for word in self.words)

    def wrong(self, raw: bytes) -> str:
        """None of the words."""
        found = codec.printable(raw, 200)
        return "" if found in self.words else f"is none of {self.told}: {codec.printable(found, 40)!r}"


@dataclass(frozen=True, slots=True)
class Pattern:
    """A text of a fixed form.

    Attributes:
        pattern: regular expression of the whole.
        told: as the docs tell it.
    """

    pattern: str
    told: str

    def wrong(self, raw: bytes) -> str:
        """Another form."""
        return "" if re.fullmatch(self.pattern.encode(), raw) else shown(raw)


@dataclass(frozen=True, slots=True)
class EntryId:
    """The id of a stream entry."""

    @property
    def told(self) -> str:
        """Just that."""
        return "stream id"

    def wrong(self, raw: bytes) -> str:
        """No id."""
        return shown(raw) if executions.entry_id(raw) is None else ""
