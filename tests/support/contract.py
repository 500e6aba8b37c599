"""What stands on a server, judged by the registry; and the worlds in which every key of the contract is really written.

enforced(server)    the demo with its drill, everything in enforce
watched(server)     the demo with everything in shadow, and the shadow lane
by_hand(url, ...)   what a demo does not make: plans of other programs, dead letters, a lost epoch, the commands
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import redis

from quantum_alloc.adapters import registry
from quantum_alloc.adapters.effects import Command, Reply
from quantum_alloc.adapters.embedded import EmbeddedServer
from quantum_alloc.adapters.keys import LIVE
from quantum_alloc.adapters.registry_record import Kind, Record
from quantum_alloc.adapters.simulator import DEFAULT_SYMBOLS
from quantum_alloc.adapters.store import Store
from quantum_alloc.core import GovernorParams
from quantum_alloc.core import governor as core_governor
from quantum_alloc.services import demo
from quantum_alloc.services.cli import main
from tests.support import governing as gov

BARS = 121
EARLY = {"REGIME_WINDOW": "16", "REGIME_HORIZON": "2", "P29_USE_PROPOSED": "1"}
"""So that a short run has regimes, and targets that a proposal has moved."""
SYMBOLS = DEFAULT_SYMBOLS[:5]
ALL_SHADOW = {f"P{n}_MODE": "shadow" for n in (28, 29, 30, 31)}
BTC, ETH = "BTCUSDT", "ETHUSDT"
Asked = dict[tuple[str, str], set[tuple[str, ...]]]
"""Service and record to the fields that it asked for; none where it took the record as a whole."""


@dataclass(frozen=True)
class Found:
    """One record of a server: a hash, a string, a member of a set, an entry of a stream.

    Attributes:
        record: its row.
        key: its key.
        fields: what it holds.
        ours: whether our own services wrote it.
    """

    record: Record
    key: str
    fields: Mapping[str, bytes]
    ours: bool

    @property
    def variant(self) -> str:
        """Which of the row's variants it is; empty where there are none."""
        for variant in self.record.variants:
            if variant.is_of(self.fields):
                return " ".join(value for _, value in variant.when)
        return ""


@dataclass
class World:
    """What was found on one or several servers.

    Attributes:
        found: records, by row.
        troubles: of keys: no row or two, another type, another expiry.
        asked: what services asked for.
    """

    found: dict[str, list[Found]] = field(default_factory=lambda: defaultdict(list))
    troubles: list[str] = field(default_factory=list)
    asked: Asked = field(default_factory=lambda: defaultdict(set))

    def all(self) -> Iterator[Found]:
        """Every record."""
        for found in self.found.values():
            yield from found

    def samples(self) -> list[Found]:
        """One of each row and variant for each set of fields that hold something."""
        kept: dict[tuple[str, str, frozenset[str]], Found] = {}
        for one in self.all():
            names = frozenset(n for n, v in one.fields.items() if v not in (b"", b'""', b"null"))
            kept.setdefault((one.record.name, one.variant, names), one)
        return list(kept.values())


def _values(client: Any, key: bytes, of: Record) -> list[dict[str, bytes]]:
    if of.kind is Kind.HASH:
        return [_named(client.hgetall(key))]
    if of.kind is Kind.STRING:
        return [registry.fields_in(of, client.get(key))]
    if of.kind is Kind.SET:
        return [registry.fields_in(of, member) for member in client.smembers(key)]
    return [_named(fields) for _, fields in client.xrange(key)]


def _named(raw: Mapping[bytes, bytes]) -> dict[str, bytes]:
    return {name.decode("utf-8", "backslashreplace"): value for name, value in raw.items()}


def _expiry(of: Record, ttl_s: int) -> str:
    """As the registry says; and as it was written just now, no life is much shorter than its row's, but a block's."""
    if of.ttl_s is not None and 0 <= ttl_s < of.ttl_s / 2 and not of.ttl_grows:
        return f"expires in {ttl_s} s already, of {of.ttl_s}"
    return registry.expiry_trouble(of, ttl_s)


def look(url: str, world: World, *, ours: bool) -> None:
    """Take note of every key of a server.

    Args:
        url: of the server.
        world: where it goes.
        ours: whether only our services have written there.
    """
    client: Any = redis.Redis.from_url(url, protocol=2)
    for key in sorted(client.scan_iter(count=1000)):
        name = key.decode()
        rows = registry.records_of(name)
        if len(rows) != 1:
            world.troubles.append(f"{name}: {[row.name for row in rows]}")
            continue
        of, kind = rows[0], client.type(key).decode()
        trouble = _expiry(of, client.ttl(key)) if kind == of.kind else f"is a {kind}, not a {of.kind}"
        if trouble:
            world.troubles.append(f"{name}: {trouble}")
        if kind == of.kind:
            world.found[of.name] += [Found(of, name, fields, ours) for fields in _values(client, key, of)]
    client.close()


class Listening(demo.Tap):
    """A connection of one service that takes note of what it asks for."""

    def __init__(self, url: str, who: str, asked: Asked) -> None:
        """Connect.

        Args:
            url: of the server.
            who: the service.
            asked: where it goes.
        """
        super().__init__(url)
        self._who, self._asked = who, asked

    def read(self, commands: Sequence[Command], wait_s: float = 0.0) -> list[Reply]:
        """Ask."""
        self._note(commands)
        return super().read(commands, wait_s)

    def read_together(self, commands: Sequence[Command]) -> list[Reply]:
        """Ask for what is true at one moment."""
        self._note(commands)
        return super().read_together(commands)

    def _note(self, commands: Sequence[Command]) -> None:
        for name, *rest in commands:
            if name in ("HMGET", "HGET", "HGETALL", "GET", "SMEMBERS", "XRANGE", "XREVRANGE"):
                for row in registry.records_of(str(rest[0])):
                    fields = tuple(map(str, rest[1:])) if name in ("HMGET", "HGET") else ()
                    self._asked[self._who, row.name].add(fields)


class Ears(demo.Taps):
    """Connections that listen, one for each service."""

    asked: Asked

    def of(self, name: str) -> demo.Tap:
        """The connection of one of them."""
        if name not in self._open:
            self._open[name] = Listening(self._url, name, self.asked)
        return self._open[name]


def driven(world: World, monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], *, drill: bool) -> None:
    """Run the demo over a server of its own and take note of everything.

    Args:
        world: where it goes.
        monkeypatch: lets the services' connections listen.
        environ: what it is set to.
        drill: whether with its drill.
    """
    ears = type("Ears", (Ears,), {"asked": world.asked})
    monkeypatch.setattr(demo, "Taps", ears)
    with EmbeddedServer() as server:
        bars = BARS if drill else BARS // 2
        demo.drive(demo.Plan(bars=bars, symbols=SYMBOLS, drill=drill), environ, server, Event(), lambda _: None)
        look(server.url, world, ours=True)


def enforced(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything in enforce, with the drill: a burst, a kill switch, money paid out."""
    driven(world, monkeypatch, EARLY, drill=True)


def watched(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything in shadow but the fills, with the shadow lane."""
    driven(world, monkeypatch, {**EARLY, **ALL_SHADOW, "SHADOW_LANE": "1"}, drill=False)


def _run(environ: Mapping[str, str], *argv: str) -> None:
    assert main(list(argv), environ) == 0, argv


def by_hand(world: World, monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
    """Plans, inputs and mistakes of other programs, a governor that loses its server, and the operator's commands.

    Args:
        world: where it goes.
        monkeypatch: lets a verdict fail.
        directory: of the state.
    """
    with EmbeddedServer() as server:
        client: Any = redis.Redis.from_url(server.url, protocol=2, decode_responses=True)
        now = gov.server_now(client)
        permit = _plans(server.url, client, monkeypatch, directory / "governor", now)
        environ = {
            "REDIS_URL": server.url, "LOG_LEVEL": "ERROR", "STATE_DIRECTORY": str(directory / "state"),
            "SHADOW_LANE": "1", "P30_MODE": "enforce",
        }  # fmt: skip
        told: tuple[str, ...]
        for told in (
            ("portfolio", "--equity", "5000"), ("market", BTC, "--price", "90000"), ("regime", "CHOP"),
            ("position", BTC, "--qty", "-0.1", "--mark", "90000"), ("transfer", "--usd", "-5"), ("execution", ETH),
            ("execution", BTC, "--pnl", "-12.5", "--nested", "--plan-id", "p1", "--cluster", "C1"),
            ("attribution", BTC, "--lane", "shadow"), ("efficiency", ETH), ("efficiency", ETH, "--lane", "shadow"),
            ("plan", ETH, "--reduce-only"),
        ):  # fmt: skip
            _run(environ, "inject", *told)
        client.xadd(
            LIVE.stream("execution.result"), {"symbol": "btc", "pnl_usd": "1", "filled_qty": "1", "note": "\u00e9"}
        )
        client.xadd(LIVE.stream("execution.result"), {"payload": "{"})
        _run(environ, "run", "attribution", "efficiency", "--once")
        _run({**environ, "P30_MODE": "shadow"}, "run", "attribution", "--once")
        for why in ("halt", "off"):
            _run(environ, "kill", why, "--by", "ann", "--why", "trying it out")
        _run(environ, "rearm", "--by", "ann", "--why", "done")
        _run(environ, "kill", "halt", "--by", "ann")
        client.set(LIVE.permit("p1"), permit, ex=60)  # as it was, however long all this took
        client.close()
        look(server.url, world, ours=False)


def _plans(url: str, client: Any, monkeypatch: pytest.MonkeyPatch, directory: Path, now: float) -> str:
    """Every kind of answer that a governor has, and a server that forgets; the permit as it was issued."""
    params = GovernorParams(apply_mode="testnet", symbol_cooldown_s=0)
    real = core_governor.evaluate

    def evaluate(inputs: Any, params: Any = None) -> Any:
        if inputs.plan.plan_id == "poison":
            raise RuntimeError("planted")
        return real(inputs, params)

    monkeypatch.setattr(core_governor, "evaluate", evaluate)

    def governed(name: str, *, journalled: bool = True) -> None:
        store = Store(url)
        made = gov.governing(store, directory, name, params=params, journalled=journalled)
        made.drain()
        for _ in range(8):  # a plan that fails is tried five times
            made.once()
        made.crash()

    governed("gov-a")
    gov.portfolio(client, now)
    for symbol in (BTC, ETH):
        gov.market(client, symbol, 100.0, now)
    gov.budget(client, BTC, 10.0, now)
    gov.opening(client, "p1", BTC, repr(now))
    gov.opening(client, "p1", BTC, repr(now))
    gov.opening(client, "p1", BTC, repr(now), side="SELL")
    gov.opening(client, "p2", BTC, repr(now - 1000))
    gov.opening(client, "p3", BTC, repr(now), kill_score="high")
    gov.opening(client, "p:4", BTC, repr(now))
    gov.opening(client, "poison", ETH, repr(now))
    governed("gov-a")
    assert client.exists(LIVE.permit("p1")), gov.events(client)
    permit: str = client.get(LIVE.permit("p1"))
    client.delete(LIVE.epoch, LIVE.tombstone("p1"), LIVE.ledger(BTC), LIVE.book)
    governed("gov-a")
    client.delete(LIVE.epoch)
    governed("gov-b", journalled=False)
    client.delete(LIVE.budget(BTC))  # only as much of it was written as the gate reads
    return permit
