"""Where the cases of a proof are worked: lanes of its own on the real server, and the services' real code in them.

Bench.lane(label, ...)   a lane: keys under quantum:proof:ID:LABEL:, settings of this installation with the names of
                         the lane, a clock that stands still, a directory of its own
Lane.put, .add           what other programs write
Lane.begin(name)         a service, as ``run`` builds it; Service.cycle() is one of its cycles
Lane.hash, .entries ...  what came of it
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from quantum_alloc.adapters.clock import SetClock
from quantum_alloc.adapters.effects import Command, Effect, HashSet, Reply
from quantum_alloc.adapters.keys import Keys
from quantum_alloc.adapters.lane_store import LaneStore
from quantum_alloc.adapters.metrics import Metrics
from quantum_alloc.adapters.writes import stamp
from quantum_alloc.core.fields import number
from quantum_alloc.services import app, inject
from quantum_alloc.services.options import AllocationOptions, Settings
from quantum_alloc.services.proof_service import Service, Trouble
from quantum_alloc.services.proof_settings import lane_settings
from quantum_alloc.services.settings import Mode

BEGAN = 1_767_268_800.0
"""The lanes' clock: noon of a day long ago, so that no day ends while a case runs. Unix seconds."""
EQUITY_USD = 100_000.0
PRICE_USD = 100.0


def _pairs(reply: Reply) -> dict[str, str]:
    parts = reply if isinstance(reply, list) else []
    texts = [part.decode("utf-8", "replace") if isinstance(part, bytes) else "" for part in parts]
    return dict(zip(texts[::2], texts[1::2], strict=False))


@dataclass(slots=True)
class Lane:
    """One lane of a proof.

    Attributes:
        settings: of the lane.
        store: its connection.
        clock: its clock.
    """

    settings: Settings
    store: LaneStore
    clock: SetClock
    _added: int = 0
    _running: list[Service] = field(default_factory=list)

    @property
    def keys(self) -> Keys:
        """Names of the lane's live keys."""
        return self.settings.keys

    @property
    def now(self) -> float:
        """The lane's clock, unix seconds."""
        return self.clock.now()

    def aged(self, age_s: float = 0.0) -> inject.Where:
        """How other programs write here.

        Args:
            age_s: how old what they write is.
        """
        return inject.Where(self.settings, self.now - age_s)

    def begin(self, name: str) -> Service:
        """A service, built anew on what stands in the lane.

        Args:
            name: of the service.
        """
        metrics = Metrics(name, self.settings.common.metrics_max_symbols)
        parts = app.Parts(
            self.settings, self.store, metrics, self.clock, app.paced_source(self.settings), once=True, own_server=True
        )
        made = Service(*app.assemble(name, parts))
        self._running.append(made)
        return made

    def once(self, name: str) -> Service:
        """A service that is built, runs one cycle, and ends.

        Args:
            name: of the service.

        Raises:
            Trouble: the cycle did not end.
        """
        made = self.begin(name).cycle()
        self.end(made)
        return made

    def end(self, *some: Service) -> None:
        """End services.

        Args:
            some: which ones; none for all.
        """
        for one in some or tuple(self._running):
            one.end()
            self._running.remove(one)

    # ---- what other programs write

    def put(self, *effects: Effect) -> None:
        """Write, in one step.

        Args:
            effects: what.

        Raises:
            Trouble: the server refuses a key.
        """
        refused = self.store.apply([effects])
        if refused:
            raise Trouble(f"{refused[0][0]} cannot be written: {refused[0][1].message}")

    def add(self, stream: str, fields: Mapping[str, str]) -> str:
        """An entry of a stream, its id by the lane's clock, so that two lanes have the same ids.

        Args:
            stream: its name.
            fields: names and texts.

        Returns:
            The id.
        """
        self._added += 1
        entry = f"{int(self.now * 1000)}-{self._added}"
        self.ask(("XADD", stream, entry, *(part for pair in fields.items() for part in pair)))
        return entry

    def target(self, symbol: str, usd: float, mode: str = "enforce", age_s: float = 0.0) -> None:
        """A target, as the allocation writes it.

        Args:
            symbol: the symbol.
            usd: USD.
            mode: that it carries.
            age_s: its age.
        """
        fields = {
            "target_usd": number(usd), "weight": number(usd / EQUITY_USD), "cluster_id": "c1", "regime": "TREND",
            "drawdown_zone": "LOW", "confidence": "0.8", "mode": mode, **stamp(self.now - age_s),
        }  # fmt: skip
        self.put(HashSet(self.keys.target(symbol), fields, self.settings.of(AllocationOptions).target_ttl_s))

    def budget(self, symbol: str, usd: float) -> None:
        """A budget, as P2.8 writes it.

        Args:
            symbol: the symbol.
            usd: USD.
        """
        fields = {"symbol": symbol, "budget_usd": number(usd), "mode": "shadow", **stamp(self.now)}
        self.put(HashSet(self.keys.budget(symbol), fields, 300))

    # ---- what came of it

    def ask(self, command: Command) -> Reply:
        """One command's reply.

        Args:
            command: with keys of the lane.

        Raises:
            Trouble: the server refuses it.
        """
        reply = self.store.read([command])[0]
        if not isinstance(reply, (bytes, int, list)) and reply is not None:
            raise Trouble(f"{' '.join(map(str, command[:2]))} is refused: {reply.message}")
        return reply

    def hash(self, key: str) -> dict[str, str]:
        """A hash; empty where there is none."""
        return _pairs(self.ask(("HGETALL", key)))

    def text(self, key: str) -> str | None:
        """A string; None where there is none."""
        reply = self.ask(("GET", key))
        return reply.decode("utf-8", "replace") if isinstance(reply, bytes) else None

    def life_s(self, key: str) -> int | None:
        """Seconds that a key lives by its writer's will; None for one without an expiry, and where there is no key."""
        reply = self.ask(("TTL", key))
        life_s = self.store.guarded.get(key, reply) if reply != -2 else -2
        return life_s if isinstance(life_s, int) and life_s >= 0 else None

    def entries(self, stream: str) -> list[dict[str, str]]:
        """The entries of a stream, the oldest first."""
        reply = self.ask(("XRANGE", stream, "-", "+"))
        rows = reply if isinstance(reply, list) else []
        return [_pairs(row[1]) for row in rows if isinstance(row, list) and len(row) == 2]

    @property
    def names(self) -> list[str]:
        """The keys that there are, of all that any command named."""
        named = sorted(n for n in self.store.named if n.startswith(self.keys.root) and not n.endswith("*"))
        there = self.store.read([("EXISTS", name) for name in named])
        return [name for name, n in zip(named, there, strict=True) if n == 1]

    def dump(self) -> dict[str, object]:
        """Everything that the lane holds, without the lane's own name; of streams the entries without their ids."""
        return {self.plain(name): self._content(name) for name in self.names}

    def plain(self, text: str) -> str:
        """A text in which the lane's root stands as two dots."""
        return text.replace(self.keys.root, "..:")

    def _content(self, name: str) -> object:
        kind = self.ask(("TYPE", name))
        if kind == b"hash":
            return {f: self.plain(t) for f, t in sorted(self.hash(name).items())}
        if kind == b"stream":
            return [{f: self.plain(t) for f, t in e.items()} for e in self.entries(name)]
        if kind == b"set":
            members = self.ask(("SMEMBERS", name))
            return sorted(m for m in members if isinstance(m, bytes)) if isinstance(members, list) else members
        return self.plain(self.text(name) or "")


class Bench:
    """Makes the lanes of a proof."""

    def __init__(self, settings: Settings, store: LaneStore, proof_id: str, directory: Path) -> None:
        """Prepare.

        Args:
            settings: of the installation.
            store: a connection to the keys of the proof.
            proof_id: of the proof.
            directory: for files; it is deleted afterwards.
        """
        self.settings, self._store, self._id, self._directory = settings, store, proof_id, directory
        self._lanes: list[Lane] = []

    def lane(self, label: str, mode: Mode = Mode.SHADOW, *, shadow_lane: bool = False) -> Lane:
        """A lane that holds nothing yet.

        Args:
            label: its name, of a case.
            mode: of all services that have one.
            shadow_lane: whether its shadow lane is on.
        """
        directory = self._directory / label
        settings = lane_settings(self.settings, f"{self._id}:{label}", directory, mode, shadow_lane=shadow_lane)
        made = Lane(settings, self._store, SetClock(BEGAN))
        self._lanes.append(made)
        return made

    def close(self) -> None:
        """End what still runs."""
        for lane in self._lanes:
            lane.end()
        self._lanes.clear()
