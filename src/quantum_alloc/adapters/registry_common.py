"""What rows of the registry have in common: types, times, and the beginnings of records.

Source: the project's contract, sections 2 and 3.
"""

from __future__ import annotations

from quantum_alloc.adapters.registry_json import Json, Quoted
from quantum_alloc.adapters.registry_record import Field
from quantum_alloc.adapters.registry_types import (
    Choice,
    EntryId,
    Number,
    Pattern,
    Symbol,
    Text,
    Time,
    Type,
    Word,
)
from quantum_alloc.core.reading import Lane, Reason

USD, SIGNED, SHARE, NEAR = Number(0.0), Number(), Number(0.0, 1.0), Number(-1.0, 1.0)
FLAG = Choice(("0", "1"))
LANE = Choice(tuple(Lane))
MODE = Choice(("shadow", "enforce"))
MOMENT = Time(fraction=True)
HASH = Pattern(r"[0-9a-f]{12}", "12 hexadecimal digits")
ID = Pattern(r"[0-9a-f]{16}", "16 hexadecimal digits")
STATE = Choice(("ok", *(r.value for r in Reason)))

TS = Field("ts", Time(), "the same time again")
WRITTEN = (Field("timestamp", Time(), "when it was written"), TS)
SYMBOL = Field("symbol", Symbol(), "its symbol")
IN_MODE = Field("mode", MODE, "of its writer")
ORIGIN = Field("origin", Choice(("inject",)), "of an entry that `quantum-alloc inject` wrote", optional=True, ours=True)


def ours(name: str, kind: Type, meaning: str, unit: str = "", *, optional: bool = False, empty: bool = False) -> Field:
    """A field that is our own addition to what the contract names.

    Args:
        name: of the field.
        kind: what it may hold.
        meaning: in a few words.
        unit: of a number.
        optional: whether it may be absent.
        empty: whether its text may be empty.
    """
    return Field(name, kind, meaning, unit, optional, empty, ours=True)


def head(rules: str) -> tuple[Field, ...]:
    """What every record begins with that stands alone.

    Args:
        rules: their version.
    """
    return (
        ours("rules", Choice((rules,)), "version of the rules"),
        ours("now", MOMENT, "the decision's clock", "s"),
        ours("params_hash", HASH, "of all parameters"),
        ours("params", Json(), "parameters that are not at their defaults"),
    )


def reading(name: str, of: str, *, optional: bool = False) -> tuple[Field, ...]:
    """State and time of an input.

    Args:
        name: what the fields' names begin with.
        of: the input.
        optional: whether they may be absent.
    """
    return (
        ours(f"{name}_state", STATE, f"what became of {of}", optional=optional),
        ours(f"{name}_ts", USD, f"time of {of}", "s", optional=optional, empty=True),
    )


LETTER = (
    Field("id", EntryId(), "of the entry that was set aside"),
    Field("service", Word(), "who set it aside"),
    Field("detail", Text(), "what was there, escaped and short", empty=True),
    Field("entry", Json(list, Quoted(Text(), empty=True)), "its fields, escaped"),
    *WRITTEN,
)
