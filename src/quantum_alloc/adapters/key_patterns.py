"""The keys of an installation as patterns of an ACL: one name for each key, and how it is called here.

    FIXED BY_SYMBOL BY_ID STREAMS IN_SHADOW     the names, by what they are made of
    Names(keys, streams).patterns(name)         the glob patterns of one of them
    Names(keys, streams).proofs                 that of every key of every proof

The last part of a pattern begins as a symbol or an id does, so that ``quantum:allocation:target:[A-Z0-9]*`` does not
reach proposals. What settings name is taken letter by letter.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from quantum_alloc.adapters.keys import LIVE, STREAMS, Keys

SYMBOL = "[A-Z0-9]*"
"""Glob pattern of what begins as a symbol does."""
ID = "[-A-Za-z0-9_.]*"
"""Glob pattern of what begins as an id of a plan or a cluster does."""
EVERYTHING = "everything"
"""Every key of ours, and the streams that settings name otherwise."""
_GLOB = re.compile(r"[\\*?\[\]]")

FIXED = (
    "apply_state", "attribution_state", "balance", "book", "clusters", "desk_state", "efficiency_state", "epoch",
    "kill", "latch", "ops_head", "peak", "portfolio", "rearm", "universe",
)  # fmt: skip
"""Keys without a variable part, by their names in ``Keys``."""
BY_SYMBOL = (
    "attribution", "bars", "budget", "efficiency", "last_exec", "ledger", "market", "position", "proposed", "target",
)  # fmt: skip
BY_ID = ("block", "ops_head_of", "permit", "stress", "tombstone")
IN_SHADOW = ("attribution", "efficiency", "proposed", "target")
"""Hashes that exist in the shadow lane too; there their names begin with ``shadow_``."""
KNOWN = (*FIXED, *BY_SYMBOL, *BY_ID, *STREAMS, *(f"shadow_{name}" for name in IN_SHADOW))
"""Every name but ``everything``."""


@dataclass(frozen=True, slots=True)
class Names:
    """How the keys of one installation are called.

    Attributes:
        keys: the live names, with their hash tag.
        streams: those that settings name otherwise, by their names in the table.
    """

    keys: Keys = LIVE
    streams: Mapping[str, str] = field(default_factory=dict)

    def patterns(self, name: str) -> tuple[str, ...]:
        """The patterns that a name of the table stands for.

        Args:
            name: of the table.

        >>> Names().patterns("target"), Names(Keys(tag="q"), {"plans": "my[plans]"}).patterns("plans")
        (('quantum:allocation:target:[A-Z0-9]*',), ('{q}my\\\\[plans\\\\]',))
        """
        if name == EVERYTHING:
            known = {self.stream(n) for n in STREAMS}
            return (f"{literal(self.keys.root)}*", *sorted(s for s in known if not s.startswith(self.keys.root)))
        return (self.pattern(name),)

    def pattern(self, name: str) -> str:
        """The pattern that a name of the table stands for.

        Args:
            name: of the table, and not ``everything``.
        """
        if name in STREAMS:
            return self.stream(name)
        if name in FIXED:
            return literal(str(getattr(self.keys, name)))
        keys: object = self.keys
        if name.startswith("shadow_"):
            keys, name = self.keys.shadow, name.removeprefix("shadow_")
        of: Callable[[str], str] = getattr(keys, name)
        return of(ID if name in BY_ID else SYMBOL)

    @property
    def proofs(self) -> str:
        """The pattern of every key of every proof; none of them is a key of the installation.

        >>> Names(Keys(tag="q")).proofs
        '{q}quantum:proof:*'
        """
        return f"{literal(self.keys.root)}proof:*"

    def stream(self, name: str) -> str:
        """A stream's pattern.

        Args:
            name: of ``STREAMS``.
        """
        told = self.streams.get(name)
        return literal(self.keys.stream(STREAMS[name]) if told is None else self.keys.tagged(told))


def literal(text: str) -> str:
    """A pattern that matches a text and nothing else.

    Args:
        text: a name.

    >>> literal("a*[b]"), literal("quantum:kill")
    ('a\\\\*\\\\[b\\\\]', 'quantum:kill')
    """
    return _GLOB.sub(lambda found: f"\\{found[0]}", text)
