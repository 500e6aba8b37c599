"""What was read of a running installation, as values: keys, the newest entries of streams, and all of it together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from quantum_alloc.adapters import apply_wire, wire
from quantum_alloc.services.options import Settings
from quantum_alloc.services.proof_pages import Page


@dataclass(frozen=True, slots=True)
class Key:
    """One key as it stood.

    Attributes:
        name: in ``adapters.keys``; those of the shadow lane begin with ``shadow_``.
        key: on the server.
        of: its symbol or id; empty for a key that is there once.
        kind: hash, string, set, stream.
        ttl_s: -1 without an expiry.
        fields: of a hash.
        text: of a string.
    """

    name: str
    key: str
    of: str
    kind: str
    ttl_s: int
    fields: Mapping[str, bytes] = field(default_factory=dict)
    text: bytes = b""


@dataclass(frozen=True, slots=True)
class Tail:
    """The newest entries of a stream.

    Attributes:
        name: of ``adapters.keys.STREAMS``, or ``bars``.
        key: on the server.
        ids: of the entries, in order.
        entries: their fields, in order.
        whole: whether nothing is older.
        kind: of the key; none where there is none.
    """

    name: str
    key: str
    ids: tuple[str, ...] = ()
    entries: tuple[Mapping[str, bytes], ...] = ()
    whole: bool = True
    kind: str = "none"

    @property
    def texts(self) -> list[dict[str, str]]:
        """The entries as text."""
        return [{k: v.decode("utf-8", "backslashreplace") for k, v in e.items()} for e in self.entries]


@dataclass(frozen=True, slots=True)
class Facts:
    """What was read.

    Attributes:
        settings: with which ``prove`` runs.
        now: this machine's clock when Redis was read, unix seconds.
        server_now: the server's.
        first: pages of the first look, by service.
        second: pages of the second.
        symbols: that were looked at.
        universe: how many there are.
        keys: that stand, in the order of their names.
        before: enforced hashes as they stood at the first look, by key.
        tails: of streams, by name; those of bars by ``bars:SYMBOL``.
        clusters: the map.
        loaded: the paper account.
        lacks: what the server lacks, and the sentence about it.
        kill: what the kill switch says.
        latched: whether it is latched.
        ledger: what is wrong with the OPS ledger; None where there is none here.
        ledger_entries: how many it holds.
        log: file of a kept demo that its services log into; empty for none.
    """

    settings: Settings
    now: float
    server_now: float
    first: Mapping[str, Page]
    second: Mapping[str, Page]
    symbols: tuple[str, ...] = ()
    universe: int = 0
    keys: tuple[Key, ...] = ()
    before: Mapping[str, Mapping[str, bytes]] = field(default_factory=dict)
    tails: Mapping[str, Tail] = field(default_factory=dict)
    clusters: wire.ClusterMap = field(default_factory=lambda: wire.ClusterMap({}, (), "missing"))
    loaded: apply_wire.Loaded = field(default_factory=apply_wire.Loaded)
    lacks: Mapping[str, str] = field(default_factory=dict)
    kill: str = "OFF"
    latched: bool = False
    ledger: tuple[str, ...] | None = None
    ledger_entries: int = 0
    log: str = ""

    @property
    def offset_s(self) -> float:
        """The services' clock less this machine's: that of the first that answers."""
        return next((p.offset_s for p in self.second.values() if p.is_here), 0.0)

    @property
    def clock(self) -> float:
        """The services' clock when Redis was read."""
        return self.now + self.offset_s

    @property
    def has_shadow_lane(self) -> bool:
        """Whether the shadow lane is written: by the settings, or since keys of it stand."""
        return self.settings.common.shadow_lane or any(k.name.startswith("shadow_") for k in self.keys)

    def mode_of(self, service: str, stream: str) -> str:
        """The mode of a service: what it says, else what its newest record says.

        Args:
            service: its CLI name.
            stream: of its records, whose entries name their mode.
        """
        page, records = self.second[service], self.tail(stream).texts
        return page.mode if page.is_here or not records else records[-1].get("mode", "")

    def named(self, name: str) -> list[Key]:
        """The keys of a name that stand."""
        return [k for k in self.keys if k.name == name]

    def tail(self, name: str) -> Tail:
        """A stream's newest entries."""
        return self.tails.get(name) or Tail(name, name)
