"""Governors in this process, over a server: built, fed as other programs feed them, and read back.

A governor's clock is the test's (``SetClock``, microseconds exact) or the server's own (None). Each has a store and a
name of its own; the state directory may be shared. ``crash`` lets go of what a killed process would let go of.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantum_alloc.adapters import journal as journals
from quantum_alloc.adapters.clock import SetClock, WallClock
from quantum_alloc.adapters.governor_files import KnownFile
from quantum_alloc.adapters.journal import Entry, Journal
from quantum_alloc.adapters.keys import LIVE, ShadowKeys
from quantum_alloc.adapters.metrics import Metrics
from quantum_alloc.adapters.permits import SigningKey
from quantum_alloc.adapters.store import Store
from quantum_alloc.core import GovernorParams
from quantum_alloc.core.limits import US
from quantum_alloc.services import governor, governor_setup
from quantum_alloc.services.governor import Governor
from quantum_alloc.services.governor_keeper import Keeper, Where
from quantum_alloc.services.loop import Loop
from tests.support.worlds import Client

NOW = 1769577495.0
PLANS = LIVE.stream("apply.plan")
EVENTS = LIVE.events
DEAD = LIVE.stream("apply.plan.deadletter")
GROUP = "governor"
MAXLEN = 200_000
VERDICTS = frozenset({"PERMIT", "BLOCK"})


@dataclass
class Governing:
    """One governor and its parts.

    Attributes:
        name: of its consumer.
        directory: its state directory.
        store: its connection.
        keeper: of epoch, latch and journal.
        governor: the service.
        loop: that runs it.
    """

    name: str
    directory: Path
    store: Store
    keeper: Keeper
    governor: Governor
    loop: Loop[Any, Any, Any]

    def once(self) -> bool:
        """One cycle; True when it ended."""
        return self.loop.once()

    def drain(self, most: int = 400) -> int:
        """Cycles until none is left to do; how many those were.

        Args:
            most: after that many it is an error.
        """
        for n in range(1, most + 1):
            if self.loop.once() and not self.governor.has_more:
                return n
        raise AssertionError(f"{self.name} has more to do after {most} cycles: {self.loop.last_error}")

    def crash(self) -> None:
        """What the end of a process lets go of: its files and their locks, and its connection."""
        self.keeper.journal.close()
        self.store.close()


def governing(
    store: Store,
    directory: Path,
    name: str,
    *,
    clock: SetClock | None = None,
    params: GovernorParams | None = None,
    journalled: bool = True,
    once: bool = True,
    error_count: int = 0,
    signing: tuple[SigningKey, ...] = (),
    shadow: ShadowKeys | None = None,
    opened: Callable[[Path, str], Journal] | None = None,
) -> Governing:
    """A governor.

    Args:
        store: its own.
        directory: the state directory; it may be shared.
        name: of its consumer.
        clock: in the place of the server's; None for the server's.
        params: the numbers of its rules.
        journalled: whether it keeps a journal.
        once: never wait for a plan.
        error_count: programming errors that disarm; 0 for never.
        signing: keys that sign permits.
        shadow: names of the shadow lane where the hint reads it.
        opened: opens the journal; None for the usual one.
    """
    p, metrics = params or GovernorParams(), Metrics("governor")
    if opened is None:
        keeper = governor_setup.keeper(
            store, directory, name, p, EVENTS, MAXLEN, journalled=journalled, simulated=clock
        )
    else:
        directory.mkdir(parents=True, exist_ok=True)
        known = KnownFile(directory / journals.state_file(name, "known"))
        keeper = Keeper(store, Where(LIVE, EVENTS, MAXLEN, directory, name), p, opened(directory, name), known, clock)
    settings = governor.Set(p, error_count=error_count, keys=signing, simulated=clock)
    made = governor_setup.governor(store, metrics, settings, keeper, name, shadow=shadow, once=once)
    loop: Loop[Any, Any, Any] = Loop(governor.build(metrics, made, p), store, metrics, clock or WallClock())
    return Governing(name, directory, store, keeper, made, loop)


# ---- what other programs write


def plan(client: Client, plan_id: str, symbol: str, action: str, ts: float | str, **fields: object) -> str:
    """One plan, as another program proposes it; fields that are None are left out.

    Args:
        client: of the server.
        plan_id: of the plan.
        symbol: the symbol.
        action: ENTRY, FULL_CLOSE_PROPOSED and their like.
        ts: its time.
        fields: side, qty, price, kill_score, reduceOnly; decision, where it is not EXECUTE.
    """
    told = {"plan_id": plan_id, "symbol": symbol, "action": action, "decision": "EXECUTE", "timestamp": ts, **fields}
    added: str = client.xadd(PLANS, {n: str(v) for n, v in told.items() if v is not None})
    return added


def opening(client: Client, plan_id: str, symbol: str, ts: float | str, **fields: object) -> str:
    """A plan that opens 100 USD at a price of 100; ``fields`` change that.

    Args:
        client: of the server.
        plan_id: of the plan.
        symbol: the symbol.
        ts: its time.
        fields: as of ``plan``.
    """
    own = {"side": "BUY", "qty": 1, "price": 100, "kill_score": 0.1}
    return plan(client, plan_id, symbol, str(fields.pop("action", "ENTRY")), ts, **{**own, **fields})


def closing(client: Client, plan_id: str, symbol: str, ts: float | str, **fields: object) -> str:
    """A plan that closes the whole position; ``action`` and further fields change that.

    Args:
        client: of the server.
        plan_id: of the plan.
        symbol: the symbol.
        ts: its time.
        fields: as of ``plan``.
    """
    return plan(client, plan_id, symbol, str(fields.pop("action", "FULL_CLOSE_PROPOSED")), ts, **fields)


def portfolio(client: Client, ts: float, notional_usd: float = 0.0, count: int = 0) -> None:
    """The portfolio, as far as the governor reads it.

    Args:
        client: of the server.
        ts: its time.
        notional_usd: of all positions.
        count: symbols with a position.
    """
    told = {"positions_notional_usd": notional_usd, "positions_count": count, "timestamp": repr(ts), "ts": repr(ts)}
    client.hset(LIVE.portfolio, mapping=told)


def position(client: Client, symbol: str, qty: float, ts: float, mark_usd: float = 100.0) -> None:
    """A position.

    Args:
        client: of the server.
        symbol: the symbol.
        qty: signed.
        ts: its time.
        mark_usd: its mark.
    """
    told = {"position_amt": repr(qty), "mark_price": repr(mark_usd), "ts_epoch": repr(ts)}
    client.hset(LIVE.position(symbol), mapping=told)


def market(client: Client, symbol: str, price: float, ts: float) -> None:
    """A market state.

    Args:
        client: of the server.
        symbol: the symbol.
        price: USD.
        ts: its time.
    """
    client.hset(LIVE.market(symbol), mapping={"price": repr(price), "timestamp": repr(ts)})


def target(client: Client, symbol: str, usd: float, ts: float, mode: str = "enforce", confidence: float = 0.9) -> None:
    """An allocation target.

    Args:
        client: of the server.
        symbol: the symbol.
        usd: USD.
        ts: its time.
        mode: enforce or shadow.
        confidence: 0..1.
    """
    told = {"target_usd": repr(usd), "mode": mode, "confidence": repr(confidence), "timestamp": repr(ts)}
    client.hset(LIVE.target(symbol), mapping=told)


def budget(client: Client, symbol: str, usd: float, ts: float, mode: str = "enforce") -> None:
    """A budget.

    Args:
        client: of the server.
        symbol: the symbol.
        usd: USD.
        ts: its time.
        mode: enforce or shadow.
    """
    client.hset(LIVE.budget(symbol), mapping={"budget_usd": repr(usd), "mode": mode, "timestamp": repr(ts)})


def consume(client: Client, plan_id: str, at_us: int) -> bool:
    """Take a permit as the apply layer does; False where there is none.

    Args:
        client: of the server.
        plan_id: of its plan.
        at_us: microseconds.
    """
    if client.delete(LIVE.permit(plan_id)) == 0:
        return False
    raw = client.hget(LIVE.book, plan_id)
    if raw is not None:
        client.hset(LIVE.book, plan_id, f"{raw.rsplit(' ', 1)[0]} {at_us}")
    return True


def rearm(client: Client, at: float, by: str = "tester", why: str = "test") -> None:
    """Clear the latch of the kill switch as the command does.

    Args:
        client: of the server.
        at: unix seconds.
        by: who.
        why: the reason.
    """
    client.hset(LIVE.rearm, mapping={"at": f"{at:.6f}", "by": by, "why": why})
    client.delete(LIVE.latch)


# ---- what governors have written


def server_now(client: Client) -> float:
    """The server's clock, unix seconds."""
    s, us = client.time()
    return float(s) + float(us) / US


def events(client: Client, *names: str) -> list[dict[str, str]]:
    """Entries of the event stream, in order.

    Args:
        client: of the server.
        names: of events; none for all.
    """
    found = [fields for _, fields in client.xrange(EVENTS)]
    return [f for f in found if not names or f["event"] in names]


@dataclass(frozen=True)
class Issue:
    """One entry of a ledger.

    Attributes:
        at_us: when it was issued.
        movement: open or close.
        usd: notional.
        qty: of a close without a price.
    """

    at_us: int
    movement: str
    usd: float
    qty: float


@dataclass(frozen=True)
class Waiting:
    """One outstanding open of the book.

    Attributes:
        symbol: the symbol.
        usd: notional.
        at_us: when it was permitted.
        until_us: when its permit expires.
        consumed_us: when it was taken; 0 while nobody has.
    """

    symbol: str
    usd: float
    at_us: int
    until_us: int
    consumed_us: int


def ledger(client: Client, symbol: str) -> dict[str, Issue]:
    """A symbol's permits, by plan id.

    Args:
        client: of the server.
        symbol: the symbol.
    """
    found = {}
    for plan_id, raw in client.hgetall(LIVE.ledger(symbol)).items():
        if not plan_id.startswith(":"):
            at, movement, usd, qty = raw.split(" ")
            found[plan_id] = Issue(int(at), movement, float(usd), float(qty))
    return found


def revision(client: Client, symbol: str) -> int:
    """How many permits a symbol's ledger says that it ever had.

    Args:
        client: of the server.
        symbol: the symbol.
    """
    return int(client.hget(LIVE.ledger(symbol), ":rev") or 0)


def book(client: Client) -> dict[str, Waiting]:
    """Outstanding opens, by plan id.

    Args:
        client: of the server.
    """
    found = {}
    for plan_id, raw in client.hgetall(LIVE.book).items():
        if not plan_id.startswith(":"):
            symbol, usd, at, until, consumed = raw.split(" ")
            found[plan_id] = Waiting(symbol, float(usd), int(at), int(until), int(consumed))
    return found


def tombstone(client: Client, plan_id: str) -> Mapping[str, Any]:
    """The first answer to an id; empty where there is none.

    Args:
        client: of the server.
        plan_id: of the plan.
    """
    raw = client.get(LIVE.tombstone(plan_id))
    told: Mapping[str, Any] = {} if raw is None else json.loads(raw)
    return told


def pending(client: Client) -> int:
    """Plans that were delivered and not answered.

    Args:
        client: of the server.
    """
    groups = client.xinfo_groups(PLANS) if client.exists(PLANS) else []
    return sum(int(g["pending"]) for g in groups)


def unread(client: Client) -> int:
    """Plans that no governor has been given yet.

    Args:
        client: of the server.
    """
    groups = client.xinfo_groups(PLANS) if client.exists(PLANS) else []
    last = groups[0]["last-delivered-id"] if groups else "0-0"
    return len(client.xrange(PLANS, f"({last}"))


def journalled(*directories: Path) -> list[Entry]:
    """Permits of the journals of some state directories, each directory once; those that came to nothing left out.

    Args:
        directories: of governors.
    """
    paths = sorted({p for d in directories for p in d.glob(f"*{journals.SUFFIX}")})
    return [entry for path in paths for entry in journals.read(path)]
