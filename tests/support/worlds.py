"""Worlds: what Redis holds before a cycle, as bytes, and two engines that run the allocation service over it.

``memory`` answers the service's own commands from a dictionary; ``over_redis`` writes the world to a real server as
another program would, runs ``quantum-alloc run allocation --once --now``, and reads back what was written. Both go
through the same reading, deciding and writing code, so a law holds for bytes, not only for values.
"""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from quantum_alloc.adapters.clock import SetClock
from quantum_alloc.adapters.effects import Command, Failed, Group, HashSet, Reply, StreamAdd
from quantum_alloc.adapters.keys import LIVE
from quantum_alloc.adapters.metrics import Metrics
from quantum_alloc.adapters.store import Store
from quantum_alloc.adapters.writes import Target
from quantum_alloc.core import AllocationParams
from quantum_alloc.services import allocation
from quantum_alloc.services.cli import main
from quantum_alloc.services.loop import Loop

Hash = Mapping[str, bytes]
Client = Any
"""A redis-py client: its types are wider than what these tests use."""
WRONG_TYPE = Failed("WRONGTYPE", "WRONGTYPE Operation against a key holding the wrong kind of value")


@dataclass(frozen=True)
class World:
    """What Redis holds.

    Attributes:
        now: the decision's clock.
        hashes: key -> fields.
        streams: key -> entries.
        strings: keys of another type.
    """

    now: float
    hashes: Mapping[str, Hash] = field(default_factory=dict)
    streams: Mapping[str, Sequence[Hash]] = field(default_factory=dict)
    strings: Mapping[str, bytes] = field(default_factory=dict)

    def put(self, key: str, **fields: object) -> World:
        """With these fields of a hash."""
        fresh = {k: as_bytes(v) for k, v in fields.items()}
        return replace(self, hashes={**self.hashes, key: {**self.hashes.get(key, {}), **fresh}})

    def without(self, key: str) -> World:
        """Without a hash or stream."""
        return replace(
            self,
            hashes={k: v for k, v in self.hashes.items() if k != key},
            streams={k: v for k, v in self.streams.items() if k != key},
        )

    def wrong_type(self, key: str) -> World:
        """With a string in place of a key."""
        return replace(self.without(key), strings={**self.strings, key: b"x"})


def as_bytes(value: object) -> bytes:
    """A field's text as another program writes it."""
    return value if isinstance(value, bytes) else str(value).encode()


def world_of(case: Mapping[str, Any]) -> World:
    """The world of a worked case."""
    world = World(case["now"])
    p = case["portfolio"]
    if p:
        world = world.put(LIVE.portfolio, equity_usd=p["equity_usd"], drawdown=p["drawdown"], timestamp=p["ts"])
    for s, b in case["budgets"].items():
        world = world.put(LIVE.budget(s), symbol=s, budget_usd=b["budget_usd"], timestamp=b["ts"], mode="shadow")
    members: dict[str, list[str]] = {}
    for s, c in case["clusters"].items():
        members.setdefault(c["cluster_id"], []).append(s)
        world = world.put(LIVE.stress(c["cluster_id"]), stress=c["stress"], timestamp=c["ts"], alpha="0.0")
    for cid, symbols in members.items():
        world = world.put(LIVE.clusters, **{cid: json.dumps(symbols)})
    for s, a in case["attribution"].items():
        world = world.put(
            LIVE.attribution(s), performance_factor=a["performance_factor"], ts_utc=a["ts"], confidence=a["confidence"]
        )
    r = case["regime"]
    if r:
        entry = {
            "regime": as_bytes(r["regime"]),
            "confidence": as_bytes(r["confidence"]),
            "timestamp": as_bytes(r["ts"]),
        }
        world = replace(world, streams={LIVE.stream("regime.state"): [entry]})
    return world


@dataclass(frozen=True)
class Result:
    """What a cycle wrote.

    Attributes:
        decisions: fields of the decision records, by symbol.
        cycle: fields of the cycle record; empty when nothing was written.
        hashes: target hashes, by symbol.
        metrics: of the in-memory engine only.
    """

    decisions: Mapping[str, Mapping[str, str]]
    cycle: Mapping[str, str]
    hashes: Mapping[str, Mapping[str, str]]
    metrics: Metrics | None = None

    def target(self, symbol: str) -> float:
        """A symbol's target, USD."""
        return float(self.decisions[symbol]["target_usd"])

    @property
    def targets(self) -> dict[str, str]:
        """All targets, as text."""
        return {s: d["target_usd"] for s, d in self.decisions.items()}


class MemoryStore(Store):
    """Answers reading commands from a world."""

    def __init__(self, world: World) -> None:
        """Nothing is connected."""
        super().__init__("unix:///nowhere")
        self.world = world
        self.groups: tuple[Group, ...] = ()

    def read(self, commands: Sequence[Command], wait_s: float = 0.0) -> list[Reply]:  # noqa: ARG002 - as the store's
        """Replies."""
        return [self._one(str(c[0]), [str(a) for a in c[1:]]) for c in commands]

    def apply(self, groups: Sequence[Group]) -> list[tuple[str, Failed]]:
        """Take note."""
        self.groups = tuple(groups)
        return []

    def _one(self, verb: str, args: list[str]) -> Reply:  # noqa: PLR0911 - one line a command
        w = self.world
        if verb == "SCAN":
            pattern = args[args.index("MATCH") + 1]
            keys = [k.encode() for k in (*w.hashes, *w.strings) if fnmatch.fnmatchcase(k, pattern)]
            return [b"0", list(keys)]
        if args and args[0] in w.strings:
            return WRONG_TYPE
        if verb == "HMGET":
            found = w.hashes.get(args[0], {})
            return [found.get(f) for f in args[1:]]
        if verb == "HGETALL":
            return [x for k, v in w.hashes.get(args[0], {}).items() for x in (k.encode(), v)]
        if verb == "HLEN":
            return len(w.hashes.get(args[0], {}))
        if verb == "XREVRANGE":
            entries = w.streams.get(args[0], [])
            return [[b"1-1", [x for k, v in entries[-1].items() for x in (k.encode(), v)]]] if entries else []
        if verb in ("SCARD", "XINFO"):
            return 0
        if verb in ("WATCH", "UNWATCH"):
            return b"OK"
        if verb == "XRANGE":
            return []
        raise AssertionError(f"the memory store does not know {verb}")


Engine = Callable[..., Result]


def memory(world: World, params: AllocationParams | None = None, mode: str = "shadow") -> Result:
    """One cycle of the service over a dictionary."""
    store, metrics = MemoryStore(world), Metrics("allocation")
    cycle = allocation.build(
        store, metrics, allocation.universe_of(), params or AllocationParams(), Target(mode), interval_s=5.0
    )
    assert Loop(cycle, store, metrics, SetClock(world.now)).once(), "the cycle did not end"
    effects = [e for group in store.groups for e in group]
    added = [e for e in effects if isinstance(e, StreamAdd)]
    decisions = {e.fields["symbol"]: e.fields for e in added if e.key == LIVE.stream("allocation.decision")}
    cycles = [e.fields for e in added if e.key == LIVE.stream("allocation.cycle")]
    prefix = LIVE.target("")
    hashes = {e.key.removeprefix(prefix): e.fields for e in effects if isinstance(e, HashSet)}
    return Result(decisions, cycles[0] if cycles else {}, hashes, metrics)


def load(client: Client, world: World) -> None:
    """Make a server hold a world."""
    client.flushall()
    pipe = client.pipeline(transaction=False)
    for key, fields in world.hashes.items():
        if fields:
            pipe.hset(key, mapping=dict(fields))
    for key, entries in world.streams.items():
        for entry in entries:
            pipe.xadd(key, dict(entry) or {"": b""})
    for key, value in world.strings.items():
        pipe.set(key, value)
    pipe.execute()


def over_redis(client: Client, url: str) -> Engine:
    """One cycle of the command over a real server."""

    def engine(world: World, params: AllocationParams | None = None, mode: str = "enforce") -> Result:
        code = 69
        environ = {"REDIS_URL": url, "P29_MODE": mode, "LOG_LEVEL": "ERROR", **environ_of(params)}
        for _ in range(3):  # a loaded machine may keep the server from answering within its 200 ms: exit code 69
            load(client, world)
            code = main(["run", "allocation", "--once", "--now", repr(world.now)], environ)
            if code != 69:
                break
        assert code == 0
        return written(client)

    return engine


def written(client: Client) -> Result:
    """What stands in a server."""
    decisions = {f["symbol"]: f for _, f in client.xrange(LIVE.stream("allocation.decision"))}
    cycles = client.xrange(LIVE.stream("allocation.cycle"))
    prefix = LIVE.target("")
    hashes = {k.removeprefix(prefix): client.hgetall(k) for k in client.scan_iter(f"{prefix}*", count=1000)}
    return Result(decisions, cycles[-1][1] if cycles else {}, hashes)


def environ_of(params: AllocationParams | None) -> dict[str, str]:
    """Parameters as environment variables."""
    p = params or AllocationParams()
    renamed = {"stale_data_s": "STALE_DATA_SEC", "use_proposed": "P29_USE_PROPOSED"}
    return {renamed.get(name, name.upper()): str(getattr(p, name)) for name in AllocationParams.__dataclass_fields__}
