"""What a row of the registry is: a record, its fields, and how they differ from kind to kind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from quantum_alloc.adapters.registry_types import Type


class Kind(StrEnum):
    """What a key is to Redis."""

    HASH = "hash"
    STRING = "string"
    SET = "set"
    STREAM = "stream"


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a record.

    Attributes:
        name: as it is written; ``{S}``, ``{plan}``, ``{cid}``, ``{name}`` in it stand for what varies. Empty for the
            value of a plain string and for a member of a set.
        type: what it may hold.
        meaning: in a few words.
        unit: of a number; empty for none.
        optional: whether it may be absent.
        empty: whether its text may be empty.
        ours: whether it is our own addition to what the contract names; another program need not write it.
    """

    name: str
    type: Type
    meaning: str
    unit: str = ""
    optional: bool = False
    empty: bool = False
    ours: bool = False

    @property
    def varies(self) -> bool:
        """Whether a part of its name does; such fields may be there any number of times."""
        return "{" in self.name


@dataclass(frozen=True, slots=True)
class Variant:
    """Fields that a record has only where others of its fields say so.

    Attributes:
        when: names and values of these others.
        fields: that it then has beside the common ones.
    """

    when: tuple[tuple[str, str], ...]
    fields: tuple[Field, ...]

    def is_of(self, raw: Mapping[str, bytes]) -> bool:
        """Whether a record is of this kind.

        Args:
            raw: its fields.
        """
        return all(raw.get(name) == value.encode() for name, value in self.when)


@dataclass(frozen=True, slots=True)
class Record:
    """One key, or one kind of key.

    Attributes:
        name: of the tables of ``key_patterns``.
        kind: what it is to Redis.
        meaning: one sentence.
        fields: of a hash, of each entry of a stream, of a JSON text; one with an empty name else.
        time: the field that holds its time; empty where it has none.
        twin: whether ``ts`` must hold the same beside it.
        ttl_s: greatest expiry in seconds at the defaults; None where the key stays.
        ttl_from: the variable that sets it; empty where nothing does.
        ttl_grows: whether its writer may give it longer, for as long as something else has stood.
        is_open: whether other programs may write it too, with fields of their own.
        times: whether its time may stand under any of the common aliases.
        variants: fields by what others say; the first that fits counts, and one must where there are any.
        instead: a field that holds all others as one JSON object, in their place; empty for none.
        is_json: whether it is a string of JSON.
        note: what else to know; empty for nothing.
    """

    name: str
    kind: Kind
    meaning: str
    fields: tuple[Field, ...]
    time: str = ""
    twin: bool = True
    ttl_s: int | None = None
    ttl_from: str = ""
    ttl_grows: bool = False
    is_open: bool = False
    times: bool = False
    variants: tuple[Variant, ...] = ()
    instead: str = ""
    is_json: bool = False
    note: str = ""

    @property
    def all_fields(self) -> tuple[Field, ...]:
        """Those of every variant too, each once."""
        found = {f.name: f for v in reversed(self.variants) for f in v.fields}
        return (*self.fields, *(f for f in found.values() if f.name not in {g.name for g in self.fields}))
