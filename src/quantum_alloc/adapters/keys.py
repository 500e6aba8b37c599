"""Names of keys and streams, built here and nowhere else, from a lane and, where wanted, a cluster hash tag.

The live lane is ``quantum:...``, the shadow lane ``quantum:shadow:...``. In the lanes of a proof
``quantum:proof:ID:...`` stands for ``quantum:...``, so that nothing of it reaches a live key. A hash tag puts all keys
of one installation into one slot of a Redis Cluster: ``{tag}quantum:...``; the default names have none. A writer of the
shadow lane gets ``ShadowKeys``, which has no way to name a live key. Source: the project's contract.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from quantum_alloc.core.reading import Lane

__all__ = ["LIVE", "PROPOSED", "STREAMS", "HashKeys", "Keys", "Lane", "ShadowKeys", "is_tag", "tag_of"]

_TAG = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_PROOF = re.compile(r"[A-Za-z0-9_.-]{1,64}(?::[A-Za-z0-9_.-]{1,64})?")
_TAGGED = re.compile(r"\{([^{}]+)\}(.*)", re.DOTALL)


def is_tag(text: str) -> bool:
    """Whether a text may be a hash tag: nothing in it means anything to a glob pattern or to the slot's rule.

    Args:
        text: without braces.

    >>> is_tag("prod-1"), is_tag("a*"), is_tag("{a}"), is_tag("")
    (True, False, False, False)
    """
    return _TAG.fullmatch(text) is not None


def tag_of(name: str) -> tuple[str, str]:
    """The hash tag that a name begins with, and the rest; empty for none.

    Args:
        name: of a key.

    >>> tag_of("{q}quantum:kill"), tag_of("quantum:kill")
    (('q', 'quantum:kill'), ('', 'quantum:kill'))
    """
    found = _TAGGED.fullmatch(name)
    return ("", name) if found is None else (found[1], found[2])


@dataclass(frozen=True, slots=True)
class Keys:
    """Every key and stream name of one lane.

    Attributes:
        lane: live or shadow.
        tag: cluster hash tag without braces; empty for none.
        proof: id of a proof, and behind a colon which of its lanes; empty for the installation's own keys.
        root: what every name begins with.

    Raises:
        ValueError: the id of the proof is none.
    """

    lane: Lane = Lane.LIVE
    tag: str = ""
    proof: str = ""

    root: str = field(init=False)

    def __post_init__(self) -> None:
        """Work out once what every name begins with."""
        if self.proof and not _PROOF.fullmatch(self.proof):
            raise ValueError(f"{self.proof!r} is no id of a proof")
        tag = f"{{{self.tag}}}" if self.tag else ""
        lane = f"proof:{self.proof}:" if self.proof else ""
        root = f"{tag}quantum:{lane}" + ("shadow:" if self.lane is Lane.SHADOW else "")
        object.__setattr__(self, "root", root)

    def key(self, *parts: str) -> str:
        """The root and the parts, joined by colons.

        >>> Keys().key("allocation", "target", "BTCUSDT"), Keys(Lane.SHADOW, "q").key("universe")
        ('quantum:allocation:target:BTCUSDT', '{q}quantum:shadow:universe')
        >>> Keys(Lane.SHADOW, proof="7:a").key("universe")
        'quantum:proof:7:a:shadow:universe'
        """
        return self.root + ":".join(parts)

    def tagged(self, name: str) -> str:
        """A name that settings tell, with this installation's hash tag unless it has one.

        >>> Keys(tag="q").tagged("fills"), Keys(tag="q").tagged("{q}fills"), Keys().tagged("fills")
        ('{q}fills', '{q}fills', 'fills')
        """
        return name if not self.tag or tag_of(name)[0] else f"{{{self.tag}}}{name}"

    @property
    def shadow(self) -> ShadowKeys:
        """The names of the shadow lane, under the same tag, of the same proof."""
        return ShadowKeys(self.tag, self.proof)

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

    def efficiency(self, symbol: str) -> str:
        """Hash of a symbol's efficiency."""
        return self.key("capital", "efficiency", symbol)

    def proposed(self, symbol: str) -> str:
        """Hash of a symbol's proposed target."""
        return self.key("allocation", "target", PROPOSED, symbol)

    attribution_state = property(lambda self: self.key("p30", "state"))
    efficiency_state = property(lambda self: self.key("p31", "state"))

    apply_state = property(lambda self: self.key("apply", "state"))
    desk_state = property(lambda self: self.key("desk", "state"))
    results = property(lambda self: self.stream("apply.result"))
    transfers = property(lambda self: self.stream("account.transfer"))

    kill = property(lambda self: self.key("kill"))
    latch = property(lambda self: self.key("kill", "latch"))
    rearm = property(lambda self: self.key("kill", "rearm"))
    epoch = property(lambda self: self.key("governor", "epoch"))
    ops_head = property(lambda self: self.key("ops", "head"))
    book = property(lambda self: self.key("governor", "book"))
    events = property(lambda self: self.stream("governor.events"))

    def ops_head_of(self, name: str) -> str:
        """Head of the OPS ledger that a governor began in a state directory of its own."""
        return self.key("ops", "head", name)

    def ledger(self, symbol: str) -> str:
        """Hash of a symbol's permits."""
        return self.key("governor", "ledger", symbol)

    def last_exec(self, symbol: str) -> str:
        """Time of a symbol's last permit."""
        return self.key("governor", "last_exec", symbol)

    def tombstone(self, plan_id: str) -> str:
        """First answer to a plan id."""
        return self.key("governor", "plan", plan_id)

    def permit(self, plan_id: str) -> str:
        """Permit of a plan."""
        return self.key("permit", plan_id)

    def block(self, plan_id: str) -> str:
        """Why a plan was blocked."""
        return self.key("governor", "block", plan_id)


class HashKeys(Protocol):
    """The hashes that exist in both lanes."""

    def attribution(self, symbol: str) -> str:
        """Hash of a symbol's attribution."""
        ...

    def target(self, symbol: str) -> str:
        """Hash of a symbol's target."""
        ...

    def efficiency(self, symbol: str) -> str:
        """Hash of a symbol's efficiency."""
        ...

    def proposed(self, symbol: str) -> str:
        """Hash of a symbol's proposed target."""
        ...


@dataclass(frozen=True, slots=True)
class ShadowKeys:
    """The hashes of the shadow lane, and nothing else.

    Attributes:
        tag: cluster hash tag without braces; empty for none.
        proof: id of a proof; empty for the installation's own keys.
    """

    tag: str = ""
    proof: str = ""

    @property
    def _keys(self) -> Keys:
        return Keys(Lane.SHADOW, self.tag, self.proof)

    def attribution(self, symbol: str) -> str:
        """Hash of a symbol's attribution.

        >>> ShadowKeys().attribution("BTCUSDT")
        'quantum:shadow:alpha:attribution:BTCUSDT'
        """
        return self._keys.attribution(symbol)

    def target(self, symbol: str) -> str:
        """Hash of a symbol's target."""
        return self._keys.target(symbol)

    def efficiency(self, symbol: str) -> str:
        """Hash of a symbol's efficiency."""
        return self._keys.efficiency(symbol)

    def proposed(self, symbol: str) -> str:
        """Hash of a symbol's proposed target."""
        return self._keys.proposed(symbol)


PROPOSED = "proposed"
"""What follows the prefix of targets in the names of proposals; a scan for targets passes it over."""
LIVE = Keys()
STREAMS: Mapping[str, str] = {
    "attributions": "alpha.attribution",
    "cycles": "allocation.cycle",
    "dead_executions": "execution.deadletter",
    "dead_plans": "apply.plan.deadletter",
    "decisions": "allocation.decision",
    "efficiencies": "capital.efficiency.decision",
    "events": "governor.events",
    "executions": "execution.result",
    "plans": "apply.plan",
    "portfolio_states": "portfolio.state",
    "proposals": "allocation.target.proposed",
    "regimes": "regime.state",
    "results": "apply.result",
    "transfers": "account.transfer",
    "violations": "budget.violation",
}
"""Streams that every installation has once, by their names here. Settings name some of them otherwise."""
