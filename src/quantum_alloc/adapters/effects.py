"""Commands, their replies, and what a decision wants written, as data: nothing is sent until the end of a cycle.

Each effect knows its commands, so that the store need not know what it writes. A group of effects is applied in one
MULTI. ``in_groups`` cuts a long list of per-symbol effects into groups.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TypeAlias

Command: TypeAlias = tuple[str | bytes | int, ...]


@dataclass(frozen=True, slots=True)
class Failed:
    """The server's refusal of one command.

    Attributes:
        code: the first word of the error, WRONGTYPE for example.
        message: the rest, for logs.
    """

    code: str
    message: str = ""


Reply: TypeAlias = "bytes | int | Failed | list[Reply] | None"
"""What one command is answered with (RESP2)."""


@dataclass(frozen=True, slots=True)
class HashSet:
    """Fields of a hash, written over those that are there.

    Attributes:
        key: the hash.
        fields: names and texts.
        ttl_s: expiry in seconds, set in the same step; None for none.
        delete: fields to remove.
    """

    key: str
    fields: Mapping[str, str]
    ttl_s: int | None = None
    delete: tuple[str | bytes, ...] = ()

    def commands(self) -> list[Command]:
        """HSET, HDEL and EXPIRE."""
        out: list[Command] = [("HSET", self.key, *chain.from_iterable(self.fields.items()))]
        if self.delete:
            out.append(("HDEL", self.key, *self.delete))
        if self.ttl_s is not None:
            out.append(("EXPIRE", self.key, self.ttl_s))
        return out


@dataclass(frozen=True, slots=True)
class HashReplace:
    """A hash that holds these fields and no others from now on, in one step.

    Attributes:
        key: the hash.
        fields: names and texts, at least one.
    """

    key: str
    fields: Mapping[str, str]

    def commands(self) -> list[Command]:
        """DEL and HSET."""
        return [("DEL", self.key), ("HSET", self.key, *chain.from_iterable(self.fields.items()))]


@dataclass(frozen=True, slots=True)
class StreamAdd:
    """One entry of a stream.

    Attributes:
        key: the stream.
        fields: names and texts.
        maxlen: about how many entries are kept.
    """

    key: str
    fields: Mapping[str, str]
    maxlen: int

    def commands(self) -> list[Command]:
        """XADD with approximate trimming."""
        return [("XADD", self.key, "MAXLEN", "~", self.maxlen, "*", *chain.from_iterable(self.fields.items()))]


@dataclass(frozen=True, slots=True)
class SetAdd:
    """Members of a set.

    Attributes:
        key: the set.
        members: texts, at least one.
    """

    key: str
    members: tuple[str, ...]

    def commands(self) -> list[Command]:
        """SADD."""
        return [("SADD", self.key, *self.members)]


@dataclass(frozen=True, slots=True)
class SetRemove:
    """Members taken out of a set.

    Attributes:
        key: the set.
        members: texts, at least one.
    """

    key: str
    members: tuple[str, ...]

    def commands(self) -> list[Command]:
        """SREM."""
        return [("SREM", self.key, *self.members)]


@dataclass(frozen=True, slots=True)
class TextSet:
    """A string key.

    Attributes:
        key: the key, of whatever type it was.
        text: what it holds from now on.
    """

    key: str
    text: str

    def commands(self) -> list[Command]:
        """SET."""
        return [("SET", self.key, self.text)]


@dataclass(frozen=True, slots=True)
class Delete:
    """A key that is there no more.

    Attributes:
        key: the key.
    """

    key: str

    def commands(self) -> list[Command]:
        """DEL."""
        return [("DEL", self.key)]


Effect: TypeAlias = HashSet | HashReplace | StreamAdd | SetAdd | SetRemove | TextSet | Delete
Group: TypeAlias = tuple[Effect, ...]
"""Effects that are applied together or not at all."""


def in_groups(per_symbol: Sequence[Sequence[Effect]], symbols_per_group: int) -> tuple[Group, ...]:
    """Groups of at most so many symbols' effects, in the given order.

    Args:
        per_symbol: the effects of each symbol.
        symbols_per_group: at least 1.

    >>> [len(g) for g in in_groups([[SetAdd("k", (s,))] for s in "abcde"], 2)]
    [2, 2, 1]
    """
    return tuple(
        tuple(e for effects in per_symbol[i : i + symbols_per_group] for e in effects)
        for i in range(0, len(per_symbol), symbols_per_group)
    )
