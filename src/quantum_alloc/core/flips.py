"""What would have to change: the nearest value of each input, on either side, at which an outcome turns.

A knob is one numeric input of a decision and, for each outcome that it can turn, the rule itself as a function of that
input alone. Every outcome is a word out of an ordered set and never turns back along a knob, so the nearest turn is
found by bisection over the floats themselves (over whole numbers for ages): the value found gives the new outcome,
and its neighbour on the way gives the old one still. The rule is asked, not a formula solved for its threshold, so that
caps and rounding are in the answer. Which knobs a decision has: ``core.explain``, ``core.explain_allocation``.

Source: the project's rules, section 8, "a decision explains itself".
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from quantum_alloc.core.reading import Fresh, Reading, grade
from quantum_alloc.core.table import Explained

Outcome: TypeAlias = Callable[[float], str]
USD_MAX = 1e15


@dataclass(frozen=True, slots=True)
class Knob:
    """One numeric input of a decision.

    Attributes:
        input: its name.
        unit: of its value.
        value: what it was.
        low: smallest value it may take.
        high: greatest value it may take.
        outcomes: by name, the outcome as a function of this input alone; along it no outcome comes back.
        whole: True for whole numbers, such as ages.
    """

    input: str
    unit: str
    value: float
    low: float
    high: float
    outcomes: Mapping[str, Outcome]
    whole: bool = False


@dataclass(frozen=True, slots=True)
class Flip(Explained):
    """The nearest value of an input, on one side, at which an outcome turns.

    Attributes:
        input: name of the input.
        unit: of its value.
        value: what it was.
        at: the nearest value with another outcome.
        outcome: which outcome turns.
        before: what it was.
        after: what it would be.
    """

    input: str
    unit: str
    value: float
    at: float
    outcome: str
    before: str
    after: str

    @property
    def side(self) -> str:
        """``up`` or ``down``."""
        return "up" if self.at > self.value else "down"


def _order(x: float) -> int:
    """Place of a float among all floats; neighbours are one apart."""
    (bits,) = struct.unpack("<q", struct.pack("<d", x))
    return int(bits) if bits >= 0 else -(int(bits) & 0x7FFF_FFFF_FFFF_FFFF)


def _at(order: int) -> float:
    (x,) = struct.unpack("<d", struct.pack("<q", order if order >= 0 else -order | -0x8000_0000_0000_0000))
    return float(x)


def nearest(outcome: Outcome, value: float, end: float, *, whole: bool = False) -> float | None:
    """The value nearest to ``value``, towards ``end``, with another outcome; None where the end has the same.

    Args:
        outcome: a function that does not turn back on the way.
        value: where to start.
        end: where to stop, included.
        whole: look at whole numbers only.

    >>> nearest(lambda x: "MID" if x < 0.15 else "HIGH", 0.08, 1.0)
    0.15
    >>> nearest(lambda x: "fresh" if x <= 60 else "stale", 3.0, 600.0, whole=True)
    61.0
    """
    to_order, at = (round, float) if whole else (_order, _at)
    here: Any = outcome(value)
    if outcome(end) == here:
        return None
    same, other = to_order(value), to_order(end)
    while abs(other - same) > 1:
        middle = (same + other) // 2
        if outcome(at(middle)) == here:
            same = middle
        else:
            other = middle
    return at(other)


def flips(knobs: Sequence[Knob]) -> tuple[Flip, ...]:
    """For each knob and side the nearest turn, of whichever outcome turns first.

    Args:
        knobs: of one decision.
    """
    found = []
    for knob in knobs:
        for end in (knob.low, knob.high):
            turns = []
            for name, outcome in knob.outcomes.items():
                at = nearest(outcome, knob.value, end, whole=knob.whole)
                if at is not None:
                    turns.append(Flip(knob.input, knob.unit, knob.value, at, name, outcome(knob.value), outcome(at)))
            if turns:
                found.append(min(turns, key=lambda f: abs(f.at - f.value)))
    return tuple(found)


def age_knob(name: str, reading: Reading[Any], limit_s: float, used: str, unused: str) -> list[Knob]:
    """The age of an input, whose turn is where it stops being used as it is; nothing where it has no value.

    Args:
        name: of the input.
        reading: of it.
        limit_s: greatest age that is fresh, seconds.
        used: what a fresh one is.
        unused: what an older one is.
    """
    if reading.age_s is None or reading.value is None:
        return []

    def outcome(age: float) -> str:
        return used if isinstance(grade(0, 0.0, age, limit_s), Fresh) else unused

    high = max(float(limit_s) + 1.0, float(reading.age_s))
    value = max(0.0, float(reading.age_s))
    return [Knob(f"age of {name}", "s", value, 0.0, high, {f"{name} is": outcome}, whole=True)]


def replaced(reading: Reading[Any], value: Any) -> Reading[Any]:
    """A reading with another value.

    Args:
        reading: that has one.
        value: in its place.
    """
    return replace(reading, value=value)
