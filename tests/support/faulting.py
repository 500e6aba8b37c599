"""One service of the twelve under a fault: a world in which each has real work to do, put back as often as wanted.

A ``Case`` is one service as the composition root builds it, over an address and a state directory of its own. With a
``SetClock`` everybody's time is the test's and a turn is the same whenever it is run; without one it is the server's
and the machine's. ``dump`` is all that a server holds, without what differs from run to run (ids of entries, fences).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from threading import Event, Thread
from typing import Any

from quantum_alloc.adapters.candles import Candle, Step
from quantum_alloc.adapters.clock import SetClock, WallClock
from quantum_alloc.adapters.effects import Command
from quantum_alloc.adapters.embedded import EmbeddedServer
from quantum_alloc.adapters.keys import LIVE
from quantum_alloc.adapters.metrics import Metrics
from quantum_alloc.adapters.store import TIMEOUT_S, Store
from quantum_alloc.services import feed
from quantum_alloc.services.app import SERVICES, Market, Parts, assemble
from quantum_alloc.services.options import FeedOptions, load
from tests.support import governing as gov
from tests.support.worlds import Client

NAMES = tuple(SERVICES)
NOW = 1769577495.0
AA, BB, CC = SYMBOLS = ("AAUSDT", "BBUSDT", "CCUSDT")
BARS = 60
ENVIRON = {
    "P28_MODE": "enforce", "P29_MODE": "enforce", "P30_MODE": "enforce", "P31_MODE": "enforce",
    "APPLY_MODE": "production", "PAPER_BOOK": "1", "QA_PAPER_REBALANCE_BARS": "1", "GOV_CONSUMER": "gov-a",
    "REGIME_WINDOW": "16", "REGIME_HORIZON": "2", "QA_CLUSTER_MIN_COMMON": "10",
}  # fmt: skip
"""Everything that has an effect has it."""
FAST = {
    "P25_INTERVAL_SEC": "0.5", "P28_INTERVAL_SEC": "0.5", "P29_INTERVAL_SEC": "0.5", "P30_INTERVAL_SEC": "0.5",
    "P31_LOOP_SEC": "0.5", "LOOP_INTERVAL_SEC": "0.5", "QA_REGIME_INTERVAL_SEC": "0.5",
    "QA_CLUSTERS_INTERVAL_SEC": "0.5", "QA_DESK_INTERVAL_SEC": "0.5",
}  # fmt: skip
"""Cadences of those that go by the clock."""
OUTPUT: Mapping[str, str] = {
    "feed": LIVE.bars(AA),
    "portfolio": LIVE.stream("portfolio.state"),
    "regime": LIVE.stream("regime.state"),
    "clusters": LIVE.stress(AA),
    "budget": LIVE.budget(AA),
    "attribution": LIVE.stream("alpha.attribution"),
    "allocation": LIVE.stream("allocation.decision"),
    "efficiency": LIVE.stream("capital.efficiency.decision"),
    "proposer": LIVE.stream("allocation.target.proposed"),
    "desk": LIVE.stream("apply.plan"),
    "governor": LIVE.events,
    "apply": LIVE.results,
}
"""A key that each service writes in every turn that comes to something."""
RECOVERS_S = 5.0
_IDS = re.compile(r"\b\d{13}-\d+\b")


class Candles:
    """A source of candles in order, one step a turn, as the files or the simulator give them."""

    ended = False

    def __init__(self, start: float) -> None:
        """Begin after ``start``, unix seconds."""
        self._start, self.taken = start, 0

    def take(self, _: float) -> Step:
        """The next step."""
        self.taken += 1
        ts = self._start + 60.0 * self.taken
        found = tuple(Candle(s, ts, 60.0, price(s, BARS + self.taken), 1.0) for s in SYMBOLS)
        return Step(ts, found)

    def wait_s(self, _: float) -> float:
        """The next one is due soon."""
        return 0.2


def price(symbol: str, bar: int) -> float:
    """A close: two symbols that move together, one that does not, all different from bar to bar."""
    wave = math.sin(1.7 * bar) if symbol != CC else math.cos(2.9 * bar)
    return 100.0 + 10.0 * SYMBOLS.index(symbol) + wave + 0.01 * bar


def seed(client: Client, now: float, name: str = "", plans: int = 3) -> None:
    """A world in which a service has work to do: three symbols, one flat, one long, one short, every input fresh.

    Args:
        client: of an empty server.
        now: unix seconds.
        name: of the service: a governor finds plans, a desk a breakout; an apply layer's is made by ``permitted``.
        plans: how many plans a governor finds: an open, a close, and a malformed one.
    """
    ts, last = int(now), math.floor(now / 60.0) * 60.0
    pipe = client.pipeline(transaction=False)
    pipe.sadd(LIVE.universe, *SYMBOLS)
    portfolio = {
        "equity_usd": 100_000, "drawdown": 0.015, "positions_notional_usd": 340, "positions_count": 2, "timestamp": ts,
    }  # fmt: skip
    pipe.hset(LIVE.portfolio, mapping=portfolio)
    pipe.expire(LIVE.portfolio, 120)
    pipe.hset(LIVE.peak, mapping={"peak_equity_usd": 99_000, "ts": ts})
    pipe.hset(LIVE.balance, mapping={"balance": 100_000, "timestamp": ts})
    pipe.hset(LIVE.clusters, mapping={AA: json.dumps([AA, BB]), CC: json.dumps([CC])})
    for cid in (AA, CC):
        pipe.hset(LIVE.stress(cid), mapping={"stress": 0.2, "alpha": 0.1, "timestamp": ts})
    pipe.xadd(LIVE.stream("regime.state"), {"regime": "TREND", "confidence": "0.8", "timestamp": ts})
    for symbol, qty in ((BB, 2.0), (CC, -1.0)):
        mark = price(symbol, BARS)
        told: dict[str, object] = {
            "position_amt": qty,
            "entry_price": mark,
            "mark_price": mark,
            "unrealized_pnl": 0,
            "ts_epoch": ts,
        }
        pipe.hset(LIVE.position(symbol), mapping=told)
    for symbol in SYMBOLS:
        for bar in range(BARS):
            close = price(symbol, bar + 1) + (5.0 if symbol == AA and bar == BARS - 1 and name == "desk" else 0.0)
            entry = {"ts": last - 60.0 * (BARS - 1 - bar), "close": close, "volume": 1, "bar_s": 60}
            pipe.xadd(LIVE.bars(symbol), entry)
        pipe.hset(LIVE.market(symbol), mapping={"price": price(symbol, BARS), "sigma": 0.006, "timestamp": ts})
        pipe.hset(LIVE.budget(symbol), mapping={"budget_usd": 1000, "mode": "enforce", "timestamp": ts})
        told = {"target_usd": 800, "confidence": 0.9, "mode": "enforce", "timestamp": ts}
        pipe.hset(LIVE.target(symbol), mapping=told)
        told = {"performance_factor": 0.7, "alpha_score": 0.4, "confidence": 0.8, "ts_utc": ts}
        pipe.hset(LIVE.attribution(symbol), mapping=told)
        told = {"efficiency_score": 0.8, "confidence": 0.9, "ts": ts}
        pipe.hset(LIVE.efficiency(symbol), mapping=told)
        for i in range(3):
            told = {"symbol": symbol, "pnl_usd": 10.0 * i - 5.0, "timestamp": ts - 30 + i, "signal": "s"}
            pipe.xadd(LIVE.stream("execution.result"), told)
    pipe.xadd(LIVE.stream("execution.result"), {"symbol": AA, "pnl_usd": "NaN", "timestamp": ts})
    pipe.execute()
    if name != "governor" or plans == 0:
        return
    gov.opening(client, "g1", AA, repr(now), price=price(AA, BARS))
    if plans > 1:
        gov.closing(client, "g2", BB, repr(now))
        gov.opening(client, "g3", CC, repr(now), kill_score="NaN")


class Case:
    """One service over an address.

    Attributes:
        name: its CLI name.
        directory: its state directory.
        store: its connection.
        metrics: what it counts.
        loop: that runs it.
        candles: of a feed.
    """

    def __init__(
        self,
        name: str,
        url: str,
        directory: Path,
        clock: SetClock | None = None,
        password: str | None = None,
        timeout_s: float = TIMEOUT_S,
        **environ: str,
    ) -> None:
        """Build it as the composition root does.

        Args:
            name: its CLI name.
            url: of the server, or of a proxy before it.
            directory: its state directory.
            clock: of everybody; None for the server's and the machine's.
            password: of the server; None for none.
            timeout_s: of the connection, where it is not the time-outs that are looked at.
            environ: further settings.
        """
        told = {**ENVIRON, "STATE_DIRECTORY": str(directory), **environ}
        if clock is not None:
            told["CLOCK"] = "simulated"
        settings = load([name], told)
        self.name, self.directory, self.store, self.metrics = (
            name,
            directory,
            Store(url, password, timeout_s=timeout_s),
            Metrics(name),
        )
        now = clock.now() if clock is not None else WallClock().now()
        self.candles = Candles(math.floor(now / 60.0) * 60.0)

        def source(_: FeedOptions, __: Metrics) -> tuple[feed.Source, Market]:
            return self.candles, Market(iter(()), SYMBOLS, 60.0, None)

        own = clock or WallClock()
        parts = Parts(settings, self.store, self.metrics, own, source, own_server=clock is not None)
        self.loop, _ = assemble(name, parts)
        self._ended = False

    def once(self) -> bool:
        """One cycle; True when it ended."""
        return self.loop.once()

    def turn(self) -> bool:
        """Cycles until there is nothing more to do at once; True when the last one ended."""
        for _ in range(50):
            ended = self.loop.once()
            if not (ended and self.loop.cycle.more is not None and self.loop.cycle.more()):
                return ended
        raise AssertionError(f"{self.name} has more to do for ever: {self.loop.last_error}")

    def counted(self, name: str) -> dict[str, float]:
        """A counter with one label, by its value."""
        return {label: n for (label,), n in self.metrics.values(name).items()}

    @property
    def errors(self) -> dict[str, float]:
        """Cycles given up for the store, by code."""
        return self.counted("quantum_alloc_store_errors_total")

    def end(self) -> None:
        """Let go of what a process lets go of; once."""
        if not self._ended:
            self._ended = True
            self.loop.cycle.close()
            self.store.close()


class Image:
    """What a server holds, to be put back again and again."""

    def __init__(self, client: Client, url: str) -> None:
        """Take it."""
        self._store = Store(url, timeout_s=5.0)
        keys = [k.encode() for k in sorted(client.keys("*"))]
        told = self._store.read([("DUMP", k) for k in keys])
        lives = self._store.read([("PTTL", k) for k in keys])
        self._all = [(k, d, max(0, int(t))) for k, d, t in zip(keys, told, lives, strict=True)]  # type: ignore[arg-type]

    def put_back(self) -> None:
        """As it was."""
        commands: list[Command] = [("FLUSHALL",)]
        commands += [("RESTORE", k, ttl, d) for k, d, ttl in self._all]  # type: ignore[misc]
        assert all(r == b"OK" for r in self._store.read(commands))

    def put_back_one(self, key: str) -> None:
        """One key as it was; it must be absent."""
        for k, dumped, ttl in self._all:
            if k == key.encode():
                assert self._store.read([("RESTORE", k, ttl, dumped)]) == [b"OK"]  # type: ignore[list-item]

    def close(self) -> None:
        """Let go of the connection."""
        self._store.close()


def permitted(
    url: str, client: Client, directory: Path, clock: SetClock | None, now: float, name: str = "apply"
) -> None:
    """The world of an apply layer: an open account that holds two positions, and the permits of two plans."""
    seed(client, now, name)
    one = Case("apply", url, directory, clock)
    assert one.turn(), one.loop.last_error
    one.end()
    gov.opening(client, "g1", CC, repr(now), side="SELL", price=price(CC, BARS))
    gov.closing(client, "g2", BB, repr(now))
    other = Case("governor", url, directory / "governor", clock)
    assert other.turn(), other.loop.last_error
    other.end()
    assert len(gov.events(client, "PERMIT")) == 2, gov.events(client)


def prepared(
    name: str, server: EmbeddedServer, client: Client, directory: Path, clock: SetClock | None, plans: int = 3
) -> float:
    """Empty a server and make the world of a service; its time, unix seconds.

    Args:
        name: of the service.
        server: the server.
        client: of it.
        directory: for what prepares it; not the service's own.
        clock: of everybody; None for the server's.
        plans: that a governor finds.
    """
    client.flushall()
    now = gov.server_now(client) if clock is None else clock.now()
    if name == "apply":
        permitted(server.url, client, directory, clock, now)
    else:
        seed(client, now, name, plans)
    return now


class Everybody:
    """All twelve services over one server, each with work to do; each has a connection of its own.

    Attributes:
        cases: by name, in the order of a symbol's journey.
    """

    def __init__(
        self, url: str, directory: Path, clock: SetClock | None = None, password: str | None = None, **environ: str
    ) -> None:
        """Build them.

        Args:
            url: of the server, or of a proxy before it.
            directory: under which each has its state directory.
            clock: of everybody; None for the server's.
            password: of the server; None for none.
            environ: further settings.
        """
        self.cases = {n: Case(n, url, directory / n, clock, password, TIMEOUT_S, **environ) for n in NAMES}
        self._stop, self._threads = Event(), []  # type: Event, list[Thread]

    def go(self) -> None:
        """Run them, each in a thread of its own."""
        self._threads = [Thread(target=c.loop.run, args=(self._stop,), name=n) for n, c in self.cases.items()]
        for thread in self._threads:
            thread.start()

    def stop(self) -> list[str]:
        """End the threads; those that did not end within 5 s."""
        self._stop.set()
        for thread in self._threads:
            thread.join(5.0)
        return [thread.name for thread in self._threads if thread.is_alive()]

    def end(self) -> None:
        """Stop, and let go of everything."""
        late = self.stop()
        for one in self.cases.values():
            one.end()
        assert not late, f"still running: {late}"

    def late(self, of: Callable[[Case], object]) -> list[str]:
        """Names of those of which something is not so."""
        return [name for name, one in self.cases.items() if not of(one)]


def all_prepared(server_url: str, client: Client, directory: Path, clock: SetClock | None) -> float:
    """A world in which all twelve have work to do at once: permits that wait, a plan, a breakout; its time."""
    client.flushall()
    now = gov.server_now(client) if clock is None else clock.now()
    permitted(server_url, client, directory, clock, now, "desk")
    gov.opening(client, "g4", CC, repr(now), price=price(CC, BARS))
    return now


def dump(client: Client, *, without: str = "\n") -> dict[str, Any]:
    """Everything that a server holds: type, whether it expires, and content.

    Args:
        client: of the server.
        without: keys that hold this are left out.
    """
    keys = sorted(k for k in client.scan_iter("*", count=1000) if without not in k and k != LIVE.epoch)
    pipe = client.pipeline(transaction=False)
    for key in keys:
        pipe.type(key)
        pipe.ttl(key)
    told = pipe.execute()
    return {k: (told[2 * i], told[2 * i + 1] >= 0, _content(client, k, told[2 * i])) for i, k in enumerate(keys)}


def _content(client: Client, key: str, kind: str) -> Any:
    if kind == "hash":
        found = {n: _IDS.sub("ID", v) for n, v in client.hgetall(key).items()}
        return {n: v for n, v in found.items() if not n.startswith(":fence")}
    if kind == "stream":
        groups = [(g["name"], g["pending"]) for g in client.xinfo_groups(key)]
        return [{n: _IDS.sub("ID", v) for n, v in f.items()} for _, f in client.xrange(key)], groups
    return {"set": client.smembers, "string": client.get}[kind](key)


def differing(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Keys that differ between two dumps."""
    return sorted(k for k in a.keys() | b.keys() if a.get(k) != b.get(k))


def streams(found: Mapping[str, Any]) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """The streams of a dump with their entries."""
    for key, (kind, _, content) in found.items():
        if kind == "stream":
            yield key, content[0]
