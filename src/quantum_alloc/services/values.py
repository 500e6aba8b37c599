"""Texts to values: what each kind of setting accepts, and the words that say so.

    number         a finite ASCII decimal, exponent allowed; a whole number has no point and no exponent
    bool           1 true on yes, 0 false off no, case-folded
    choice         one of a few words, case-folded
    symbols        BTCUSDT,ETHUSDT: [A-Z0-9]{2,30} each, separated by commas
    path, paths    printable text; several are separated by colons
    mode           never an error: what is not one of its words is its first, the safe one, with a warning

Whitespace around a value is trimmed (ASCII only), and empty text counts as not set.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from quantum_alloc.adapters import codec
from quantum_alloc.core.governor_params import ApplyMode

SPACE = " \t\r\n\v\f"
_WHOLE = re.compile(r"[+-]?[0-9]{1,18}")
_TRUTH = {"1": True, "true": True, "on": True, "yes": True, "0": False, "false": False, "off": False, "no": False}


class Mode(StrEnum):
    """Whether a service's decisions have effects. The first member is the safe one."""

    SHADOW = "shadow"
    ENFORCE = "enforce"


@dataclass(frozen=True, slots=True)
class Var:
    """What a setting's field carries beside its type.

    Attributes:
        env: the environment variable.
        default: the value when it is not set; None for none.
        unit: of a number, or what a text means.
        lo: smallest value.
        hi: greatest value.
        above: a value that is too small by itself, where the range is open below.
        choices: the words allowed.
        accepts: a further test of a text.
        expects: what that test wants, in words.
        example: a good text, where the default is none.
        secret: how to show a text that may hold a password; None where there is nothing to hide.
        single: the variable has room for one service; refused when several run in one process.
        help: one sentence.
    """

    env: str
    default: Any
    unit: str = ""
    lo: float | None = None
    hi: float | None = None
    above: float | None = None
    choices: tuple[str, ...] = ()
    accepts: Callable[[str], bool] | None = None
    expects: str = ""
    example: str = ""
    secret: Callable[[str], str] | None = None
    single: bool = False
    help: str = ""

    def holds(self, value: float) -> bool:
        """Whether a number is within the range.

        Args:
            value: finite.
        """
        low = (self.lo is None or value >= self.lo) and (self.above is None or value > self.above)
        return low and (self.hi is None or value <= self.hi)

    @property
    def range(self) -> str:
        """The range in words; empty where there is none."""
        if self.choices:
            return ", ".join(self.choices)
        high = "" if self.hi is None else render(self.hi)
        if self.lo is not None:
            return f"{render(self.lo)} to {high}" if high else f"at least {render(self.lo)}"
        low = "" if self.above is None else f"above {render(self.above)}"
        return " and ".join(filter(None, (low, high and f"at most {high}")))


def _float(text: str, spec: Var) -> float | None:
    value = codec.number(text.encode("utf-8", "replace"))
    return value + 0.0 if value is not None and spec.holds(value) else None  # + 0.0: there is no minus zero


def _int(text: str, spec: Var) -> int | None:
    value = int(text) if _WHOLE.fullmatch(text) else None
    return value if value is not None and spec.holds(value) else None


def _bool(text: str, _: Var) -> bool | None:
    return _TRUTH.get(text.casefold())


def _str(text: str, spec: Var) -> str | None:
    if spec.choices:
        return {word.casefold(): word for word in spec.choices}.get(text.casefold())
    return text if text.isprintable() and (spec.accepts is None or spec.accepts(text)) else None


def _symbols(text: str, _: Var) -> tuple[str, ...] | None:
    names = [codec.symbol(item.strip(SPACE).encode("utf-8", "replace")) for item in text.split(",")]
    return None if None in names else tuple(dict.fromkeys(name for name in names if name))


def _path(text: str, _: Var) -> Path | None:
    return Path(text) if text and text.isprintable() else None


def _paths(text: str, spec: Var) -> tuple[Path, ...] | None:
    paths = [_path(item.strip(SPACE), spec) for item in text.split(":")]
    return None if None in paths else tuple(path for path in paths if path)


def _mode(text: str, _: Var) -> Mode | None:
    return {mode.value: mode for mode in Mode}.get(text.casefold())


def _apply_mode(text: str, _: Var) -> ApplyMode | None:
    return {mode.value: mode for mode in ApplyMode}.get(text.casefold())


@dataclass(frozen=True, slots=True)
class Kind:
    """How one type of setting is read.

    Attributes:
        parse: the trimmed text to a value; None when it is refused.
        noun: what is expected, in words.
        safe: what an unrecognised text becomes, for kinds that are never an error.
    """

    parse: Callable[[str, Var], Any]
    noun: str
    safe: Any = None


KINDS: Mapping[Any, Kind] = {
    int: Kind(_int, "a whole number"),
    float: Kind(_float, "a number"),
    bool: Kind(_bool, "1, true, on, yes or 0, false, off, no"),
    str: Kind(_str, "text"),
    Path: Kind(_path, "a path"),
    tuple[str, ...]: Kind(_symbols, "symbols of 2 to 30 characters A-Z and 0-9, separated by commas"),
    tuple[Path, ...]: Kind(_paths, "paths, separated by colons"),
    Mode: Kind(_mode, "shadow or enforce", Mode.SHADOW),
    ApplyMode: Kind(_apply_mode, "dry_run, testnet or production", ApplyMode.DRY_RUN),
}
"""The kinds of settings by the type of their field."""


def wanted(kind: Kind, spec: Var) -> str:
    """What a variable wants: kind, range and unit.

    Args:
        kind: of the field.
        spec: of the field.
    """
    words = f"one of {', '.join(spec.choices)}" if spec.choices else spec.expects or kind.noun
    limits = f", {spec.range}" if spec.range and not spec.choices else ""
    return f"{words}{limits}" + (f" ({spec.unit})" if spec.unit else "")


def expected(kind: Kind, spec: Var) -> str:
    """What a variable wants, with an example.

    Args:
        kind: of the field.
        spec: of the field.

    >>> expected(KINDS[float], Var("P29_INTERVAL_SEC", 5.0, "seconds", lo=0.1, hi=60))
    'a number, 0.1 to 60 (seconds), for example P29_INTERVAL_SEC=5'
    """
    good = spec.example or render(spec.default)
    return wanted(kind, spec) + (f", for example {spec.env}={good}" if good else "")


def render(value: object) -> str:
    """A value as the text that reads back to it; empty for None.

    Args:
        value: of any kind of setting.

    >>> render(5.0), render(0.02), render(True), render(("BTCUSDT", "ETHUSDT")), render(None)
    ('5', '0.02', '1', 'BTCUSDT,ETHUSDT', '')
    """
    if value is None:
        return ""
    if isinstance(value, bool):
        return "1" if value else "0"
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)
    if isinstance(value, tuple):
        return (":" if any(isinstance(item, Path) for item in value) else ",").join(map(str, value))
    return str(value)
