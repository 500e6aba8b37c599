"""Names of keys and streams, built here and nowhere else, from a lane and, where wanted, a cluster hash tag.

The live lane is ``quantum:...``, the shadow lane ``quantum:shadow:...``. A hash tag puts all keys of one installation
into one slot of a Redis Cluster: ``{tag}quantum:...``; the default names have none. Source: the project's contract.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class Lane(StrEnum):
    """Which set of keys."""

    LIVE = "live"
    SHADOW = "shadow"


@dataclass(frozen=True, slots=True)
class Keys:
    """Every key and stream name of one lane.

    Attributes:
        lane: live or shadow.
        tag: cluster hash tag without braces; empty for none.
        root: what every name begins with.
    """

    lane: Lane = Lane.LIVE
    tag: str = ""

    root: str = field(init=False)

    def __post_init__(self) -> None:
        """Work out once what every name begins with."""
        tag = f"{{{self.tag}}}" if self.tag else ""
        root = f"{tag}quantum:" + ("shadow:" if self.lane is Lane.SHADOW else "")
        object.__setattr__(self, "root", root)

    def key(self, *parts: str) -> str:
        """The root and the parts, joined by colons.

        >>> Keys().key("allocation", "target", "BTCUSDT"), Keys(Lane.SHADOW, "q").key("universe")
        ('quantum:allocation:target:BTCUSDT', '{q}quantum:shadow:universe')
        """
        return self.root + ":".join(parts)

    def stream(self, name: str) -> str:
        """A stream's name.

        >>> Keys().stream("allocation.decision")
        'quantum:stream:allocation.decision'
        """
        return self.key("stream", name)

    portfolio = property(lambda self: self.key("state", "portfolio"))
    peak = property(lambda self: self.key("portfolio", "peak"))
    balance = property(lambda self: self.key("account", "balance"))
    clusters = property(lambda self: self.key("portfolio", "clusters"))
    universe = property(lambda self: self.key("universe"))

    def position(self, symbol: str) -> str:
        """Hash of a symbol's position."""
        return self.key("state", "positions", symbol)

    def market(self, symbol: str) -> str:
        """Hash of a symbol's market state."""
        return self.key("state", "market", symbol)

    def bars(self, symbol: str) -> str:
        """Stream of a symbol's closed bars."""
        return self.stream(f"market.bars:{symbol}")

    def budget(self, symbol: str) -> str:
        """Hash of a symbol's base budget."""
        return self.key("portfolio", "budget", symbol)

    def stress(self, cluster_id: str) -> str:
        """Hash of a cluster's stress."""
        return self.key("cluster", "stress", cluster_id)

    def attribution(self, symbol: str) -> str:
        """Hash of a symbol's attribution."""
        return self.key("alpha", "attribution", symbol)

    def target(self, symbol: str) -> str:
        """Hash of a symbol's enforced target."""
        return self.key("allocation", "target", symbol)


LIVE = Keys()
