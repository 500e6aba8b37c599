"""Two governors, two plans, a fault at every point of a cycle, and every interleaving: one permit, whatever happens.

A governor's cycle is cut where what it does can meet the other's: it finds out which server this is, takes plans, reads
its snapshot, commits. Every order of those steps of two governors is tried, and in each the first governor meets a
fault at one of its points, which are all its calls to the store and all its writes to the journal. Afterwards
governors work without faults until there is nothing left to do, and the laws are looked at from outside.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from itertools import combinations, product
from pathlib import Path
from typing import Any

import pytest

from quantum_alloc.adapters import intake
from quantum_alloc.adapters.clock import SetClock
from quantum_alloc.adapters.effects import Command, Failed, Group, Reply
from quantum_alloc.adapters.embedded import EmbeddedServer
from quantum_alloc.adapters.governor_scripts import COMMIT
from quantum_alloc.adapters.journal import Entry, Journal
from quantum_alloc.adapters.keys import LIVE
from quantum_alloc.adapters.store import Script, Store, StoreError
from quantum_alloc.core import GovernorParams
from quantum_alloc.core.limits import US
from tests.conftest import CI
from tests.support import governing as gov
from tests.support.worlds import Client

NOW = gov.NOW
MACRO = ("verify", "take", "snapshot", "commit")
NEVER_MS = 10**9
SIMULATED_AT = 6  # of the commit's arguments: the clock that stands for the server's


class Crash(BaseException):
    """The process ends here."""


class Fault(Enum):
    """What happens at one point of a cycle."""

    BEFORE = "crash before"
    AFTER = "crash after the effect"
    LOST = "reply lost"
    REFUSED = "no effect, an error"
    PAUSE = "a pause of a second"


@dataclass
class Turn:
    """One governor's side of the schedule.

    Attributes:
        name: of the governor.
        clock: of the world.
        fault: what happens, and at which point; None for nothing.
        point: points that have been passed.
        fired: the point at which it happened, by what was called there.
        steps: what it did, in order.
        yields: hands control back and waits for the next turn; None outside of a schedule.
    tick_s: how long a step takes.
    """

    name: str
    clock: SetClock
    fault: tuple[int, Fault] | None = None
    point: int = 0
    fired: str = ""
    steps: list[str] = field(default_factory=list)
    yields: Callable[[str], None] | None = None
    tick_s: float = 2e-6

    def step(self, what: str) -> None:
        """A step begins: whose turn it is, is the schedule's business; the server's clock never stands still."""
        self.clock.set(self.clock.now() + self.tick_s)
        if self.yields is not None:
            self.steps.append(what)
            self.yields(what)

    def here(self, what: str) -> Fault | None:
        """A point is reached; the fault that happens at it."""
        self.point += 1
        if self.fault is None or self.point - 1 != self.fault[0]:
            return None
        found = self.fault[1]
        self.fired = f"{found.name} {self.point - 1} {what}"
        if found is Fault.PAUSE:
            self.clock.set(self.clock.now() + 1.0)
            return None
        if found is Fault.BEFORE:
            raise Crash
        return found


def named(commands: Sequence[Command]) -> str:
    """What a batch is for."""
    return str(commands[0][0] if commands[0][0] != "MULTI" else "snapshot")


STEP_OF = {"HINCRBY": "verify", "XAUTOCLAIM": "take", "snapshot": "snapshot"}


class Stepped(Store):
    """A store whose calls are points of a schedule."""

    def __init__(self, url: str, name: str) -> None:
        """Nothing is sent yet."""
        super().__init__(url, timeout_s=5.0)
        self.turn = Turn(name, SetClock(NOW))
        self.late: tuple[int, Callable[[], object]] | None = None
        self.defers: int | None = None

    def at_this_moment(self, args: Sequence[str | bytes | int]) -> list[str | bytes | int]:
        """The commit's arguments with the clock as it is when the server carries it out, not when it was decided."""
        return [*args[:SIMULATED_AT], round(self.turn.clock.now() * US), *args[SIMULATED_AT + 1 :]]

    def _point(self, what: str, act: Callable[[], Reply | list[Reply] | list[tuple[str, Failed]]]) -> object:
        self._arrive()
        fault = self.turn.here(what)
        if fault is Fault.REFUSED:
            raise StoreError("BUSY", "refused by the test")
        reply = act()
        if fault is Fault.AFTER:
            raise Crash
        if fault is Fault.LOST:
            self.close()
            raise StoreError("timeout", "the reply was lost")
        return reply

    def _arrive(self) -> None:
        if self.late is not None:
            left, act = self.late
            self.late = (left - 1, act) if left else None
            if not left:
                act()

    def read(self, commands: Sequence[Command], wait_s: float = 0.0) -> list[Reply]:
        """A point, and a step where it is one."""
        what = named(commands)
        if what in STEP_OF:
            self.turn.step(STEP_OF[what])
        replies = self._point(what, lambda: Store.read(self, commands, wait_s))
        assert isinstance(replies, list)
        return replies

    def apply(self, groups: Sequence[Group]) -> list[tuple[str, Failed]]:
        """A point where anything is written."""
        if not groups:
            return []
        self._point("write", lambda: Store.apply(self, groups))
        return []

    def run(self, script: Script, keys: Sequence[str], args: Sequence[str | bytes | int], connection: int) -> Reply:
        """A point; the commit is a step."""
        if script is not COMMIT:
            return self._point("script", lambda: Store.run(self, script, keys, args, connection))  # type: ignore[return-value]
        self.turn.step("commit")
        args = self.at_this_moment(args)
        if self.defers is not None:
            self.late, self.defers = (self.defers, lambda: carried_out(self, script, keys, args)), None
            self.close()
            raise StoreError("timeout", "the reply is late")
        return self._point("commit", lambda: Store.run(self, script, keys, args, connection))  # type: ignore[return-value]


def carried_out(store: Stepped, script: Script, keys: Sequence[str], args: Sequence[str | bytes | int]) -> None:
    """A commit that a connection had sent before it was closed: the server carries it out all the same, by its clock
    of that moment."""
    Store.read(store, [("EVAL", script.text, len(keys), *keys, *store.at_this_moment(args))])


class Journalled(Journal):
    """A journal whose writes are points of a schedule."""

    def __init__(self, directory: Path, consumer: str, turn: Turn) -> None:
        """Open it."""
        super().__init__(directory, consumer)
        self._turn = turn

    def _point(self, what: str, act: Callable[[], object]) -> None:
        fault = self._turn.here(what)
        if fault is Fault.REFUSED:
            raise StoreError("journal", "the disk is full")
        act()
        if fault is Fault.AFTER:
            raise Crash
        if fault is Fault.LOST and self.path is not None:  # half a line reaches the disk
            whole = self.path.read_bytes()
            last = whole.rstrip(b"\n").rpartition(b"\n")[2]
            os.truncate(self.path, len(whole) - len(last) // 2 - 1)
            raise Crash

    def intent(self, run: str, entries: Sequence[Entry]) -> int:
        """A point."""
        self._point("intent", lambda: Journal.intent(self, run, entries))
        return self._number

    def outcome(self, number: int, done: Iterable[str], stamp_us: int) -> None:
        """A point."""
        self._point("outcome", lambda: Journal.outcome(self, number, done, stamp_us))


@dataclass(frozen=True)
class Kind:
    """Two plans and what must come of them.

    Attributes:
        name: for the schedule's name.
        plans: plan id and symbol of each.
        answers: how many events of each kind there must be.
        params: the numbers of the rules.
        reason: of the block, where there is one.
        closes: whether they close positions; else they open.
        consumed: whether the apply layer takes each permit before the next step.
    """

    name: str
    plans: tuple[tuple[str, str], tuple[str, str]]
    answers: tuple[tuple[str, int], ...]
    params: GovernorParams
    reason: str = ""
    closes: bool = False
    consumed: bool = False


KINDS = (
    Kind("same id twice", (("p1", "AAUSDT"), ("p1", "AAUSDT")), (("PERMIT", 1), ("REPLAY", 1)), GovernorParams()),
    Kind(
        "a symbol with a limit of one",
        (("p1", "AAUSDT"), ("p2", "AAUSDT")),
        (("PERMIT", 1), ("BLOCK", 1)),
        GovernorParams(max_exec_per_hour=1, symbol_cooldown_s=0),
        "hourly_limit_exceeded",
    ),
    Kind(
        "two symbols and room for one position",
        (("p1", "AAUSDT"), ("p2", "BBUSDT")),
        (("PERMIT", 1), ("BLOCK", 1)),
        GovernorParams(max_open_positions=1),
        "max_positions_reached",
    ),
    Kind(
        "two symbols and money for one",
        (("p1", "AAUSDT"), ("p2", "BBUSDT")),
        (("PERMIT", 1), ("BLOCK", 1)),
        GovernorParams(max_total_notional_usd=150.0),
        "total_notional_exceeded",
    ),
    Kind(
        "same id for the positions of two symbols",
        (("p1", "AAUSDT"), ("p1", "BBUSDT")),
        (("PERMIT", 1), ("CONFLICT", 1)),
        GovernorParams(),
        closes=True,
        consumed=True,
    ),
    Kind(
        "two closes with a limit of one",
        (("p1", "AAUSDT"), ("p2", "AAUSDT")),
        (("PERMIT", 1), ("BLOCK", 1)),
        GovernorParams(max_close_per_hour=1),
        "hourly_limit_exceeded",
        closes=True,
    ),
)


@dataclass(frozen=True)
class Schedule:
    """One of them.

    Attributes:
        kind: the plans.
        order: whose turn it is, True for the first governor; the one that is left over goes on where one has ended.
        fault: what happens to the first governor, and at which point.
        stolen: True where each takes over the other's plans; else each is given one.
        shared: whether they share a state directory.
        helped: whether a third governor comes before the crashed one does.
    """

    kind: Kind
    order: tuple[bool, ...]
    fault: tuple[int, Fault] | None
    stolen: bool
    shared: bool
    helped: bool


class World:
    """A server, two stores with steps, and a directory in memory; used again and again."""

    def __init__(self, server: EmbeddedServer, client: Client, patch: pytest.MonkeyPatch) -> None:
        """Connect."""
        self.client, self.patch, self.clock = client, patch, SetClock(NOW)
        self.stores = {name: Stepped(server.url, name) for name in "abc"}
        self.plain = Store(server.url, timeout_s=5.0)
        memory = Path("/dev/shm")
        self.root = Path(tempfile.mkdtemp(prefix="qa-", dir=memory if memory.is_dir() else None))
        self.number = 0
        self.home = self.root

    def close(self) -> None:
        """Let go of everything."""
        for store in (*self.stores.values(), self.plain):
            store.close()
        shutil.rmtree(self.root, ignore_errors=True)

    def begin(self, kind: Kind, made_at: float = NOW) -> None:
        """An empty server with a portfolio and two plans, made at a time, and new directories."""
        shutil.rmtree(self.home, ignore_errors=True)
        self.number += 1
        self.home = self.root / str(self.number)
        self.clock.set(NOW)
        told = {"action": "ENTRY", "decision": "EXECUTE", "side": "BUY", "qty": "1", "price": "100"}
        flat = ("positions_notional_usd", "0", "positions_count", "0", "timestamp", f"{NOW:.0f}")
        commands: list[Command] = [("FLUSHALL",), ("HSET", LIVE.portfolio, *flat)]
        if kind.closes:
            told["action"] = "FULL_CLOSE_PROPOSED"
            held = ("position_amt", "1", "mark_price", "100", "ts_epoch", f"{NOW:.0f}")
            told["side"] = "SELL"
            commands += [("HSET", LIVE.position(symbol), *held) for _, symbol in kind.plans]
        for plan_id, symbol in kind.plans:
            own = {**told, "plan_id": plan_id, "symbol": symbol, "kill_score": "0.1", "timestamp": f"{made_at:.6f}"}
            commands.append(("XADD", gov.PLANS, "*", *[x for pair in own.items() for x in pair]))
        self.plain.read(commands)

    def governor(self, name: str, kind: Kind, turn: Turn, *, shared: bool) -> gov.Governing:
        """A governor at its start."""
        store = self.stores[name]
        store.turn = turn
        directory = self.home / ("all" if shared else name)

        def opened(where: Path, consumer: str) -> Journal:
            return Journalled(where, consumer, turn)

        return gov.governing(store, directory, name, clock=self.clock, params=kind.params, opened=opened)

    def deliver(self, *, stolen: bool) -> None:
        """How plans come to governors: each takes over what the other holds, or each is given one."""
        self.patch.setattr(intake, "IDLE_MS", 0 if stolen else NEVER_MS)
        self.patch.setattr(intake, "FIRST_PAGE", 8 if stolen else 1)
        self.patch.setattr(intake, "TICK_S", 0.0)


def interleave(
    order: Sequence[bool],
    a: Turn,
    b: Turn,
    acts: tuple[Callable[[], object], Callable[[], object]],
    meanwhile: Callable[[int], None] = lambda _: None,
) -> tuple[str, int]:
    """Run two governors' cycles step by step in an order: what came of it, as text, and how much of the order there
    was a choice in."""
    back = threading.Semaphore(0)
    go = (threading.Semaphore(0), threading.Semaphore(0))
    trouble: list[BaseException] = []
    ended = [False, False]
    trace: list[str] = []

    def live(who: int) -> None:
        try:
            go[who].acquire()
            acts[who]()
        except Crash:
            trace.append("ab"[who] + "!")
        except BaseException as error:
            trouble.append(error)
        ended[who] = True
        back.release()

    def yields(who: int) -> Callable[[str], None]:
        def hand_over(what: str) -> None:
            back.release()
            go[who].acquire()
            trace.append("ab"[who] + what[0])

        return hand_over

    a.yields, b.yields = yields(0), yields(1)
    threads = [threading.Thread(target=live, args=(who,), daemon=True) for who in (0, 1)]
    for who, thread in enumerate(threads):  # both wait at their first step
        thread.start()
        go[who].release()
        back.acquire()
    chosen = turn = 0
    while not all(ended):
        meanwhile(turn)
        turn += 1
        who = ended.index(False)
        if not any(ended):
            who = 0 if order[chosen] else 1
            chosen += 1
        go[who].release()
        back.acquire()
    for thread in threads:
        thread.join()
    a.yields = b.yields = None
    if trouble:
        raise trouble[0]
    return "".join(trace), chosen


def play(world: World, s: Schedule) -> tuple[str, int]:
    """One schedule from its beginning to the laws: what it was, as text, and how much of its order it used."""
    world.begin(s.kind)
    world.deliver(stolen=s.stolen)
    a, b = Turn("a", world.clock, s.fault), Turn("b", world.clock)
    first, second = world.governor("a", s.kind, a, shared=s.shared), world.governor("b", s.kind, b, shared=s.shared)

    def meanwhile(_: int) -> None:
        if s.kind.consumed:
            world.plain.read([("DEL", *(LIVE.permit(p) for p, _ in s.kind.plans))])

    trace, chosen = interleave(s.order, a, b, (first.loop.once, second.loop.once), meanwhile)
    meanwhile(0)
    a.fault = None
    crashed = "a!" in trace
    what = f"{s.kind.name}; {'stolen' if s.stolen else 'split'}; {'one' if s.shared else 'own'} directory; "
    what += f"{trace}; {a.fired or 'no fault'}; {'helped' if s.helped and crashed else ''}"
    world.deliver(stolen=True)
    alive = [second]
    if crashed:
        first.keeper.journal.close()
    else:
        alive.insert(0, first)
    if crashed and s.helped:
        third = world.governor("c", s.kind, Turn("c", world.clock), shared=s.shared)
        third.drain()
        alive.append(third)
    if crashed:
        again = world.governor("a", s.kind, Turn("a", world.clock), shared=s.shared)
        again.drain()
        alive.append(again)
    for one in alive:
        one.drain()
    for one in alive:
        one.keeper.journal.close()
    laws(world, s.kind, what)
    return what, chosen


@dataclass(frozen=True)
class Left:
    """What stands in a server after a schedule, read in one go.

    Attributes:
        events: in order.
        issued: time of each permit in the ledgers, by plan id.
        revisions: sum of the ledgers' revisions.
        book: plan ids of the outstanding opens.
        tombstones: by plan id.
        permits: plan ids that have a permit's key.
        blocks: plan ids that have a block's key.
        waiting: plans that are pending, or were never read, or are dead letters.
    """

    events: list[dict[str, str]]
    issued: dict[str, int]
    revisions: int
    book: list[str]
    tombstones: dict[str, dict[str, Any]]
    permits: set[str]
    blocks: set[str]
    waiting: int


def left(client: Client, kind: Kind) -> Left:
    """What stands in a server."""
    ids, symbols = sorted({p for p, _ in kind.plans}), sorted({s for _, s in kind.plans})
    pipe = client.pipeline(transaction=False)
    pipe.xrange(gov.EVENTS)
    pipe.xinfo_groups(gov.PLANS)
    pipe.xlen(gov.PLANS)
    pipe.exists(gov.DEAD)
    pipe.hgetall(LIVE.book)
    for symbol in symbols:
        pipe.hgetall(LIVE.ledger(symbol))
    for p in ids:
        pipe.get(LIVE.tombstone(p))
        pipe.exists(LIVE.permit(p))
        pipe.exists(LIVE.block(p))
    events, groups, plans, dead, book, *rest = pipe.execute()
    ledgers, keys = rest[: len(symbols)], rest[len(symbols) :]
    unread = plans - int(groups[0]["entries-read"])
    return Left(
        [fields for _, fields in events],
        {p: int(raw.split(" ")[0]) for one in ledgers for p, raw in one.items() if p != ":rev"},
        sum(int(one.get(":rev", 0)) for one in ledgers),
        [p for p in book if not p.startswith(":")],
        {p: json.loads(keys[3 * i] or "{}") for i, p in enumerate(ids)},
        {p for i, p in enumerate(ids) if keys[3 * i + 1]},
        {p for i, p in enumerate(ids) if keys[3 * i + 2]},
        int(groups[0]["pending"]) + unread + dead,
    )


def laws(world: World, kind: Kind, what: str, answers: Mapping[str, int] | None = None) -> Left:
    """What must be so whatever happened, as another program sees it."""
    now = left(world.client, kind)
    counted = Counter(e["event"] for e in now.events)
    wanted = dict(kind.answers) if answers is None else answers
    assert {n: counted[n] for n in wanted} == wanted, f"{what}: {counted}"
    assert sum(counted[n] for n in ("PERMIT", "BLOCK", "REPLAY", "CONFLICT")) == 2, f"{what}: {counted}"
    verdicts = {e["plan_id"]: e for e in now.events if e["event"] in gov.VERDICTS}
    assert sorted(verdicts) == sorted(now.tombstones), f"{what}: a plan without an answer, or with two"
    permits = [p for p, e in verdicts.items() if e["event"] == "PERMIT"]
    assert sorted(now.issued) == sorted(permits), f"{what}: the ledgers hold {now.issued}"
    assert now.revisions == len(permits), f"{what}: revisions"
    assert sorted(now.book) == ([] if kind.closes else sorted(permits)), f"{what}: the book"
    assert kind.consumed or now.permits == set(permits), f"{what}: keys of permits"
    assert now.blocks == set(verdicts) - set(permits), f"{what}: keys of blocks"
    for p, told in now.tombstones.items():
        assert told["verdict"] == verdicts[p]["event"], f"{what}: tombstone of {p}"
        assert told["decision_id"] == verdicts[p]["decision_id"], f"{what}: tombstone of {p}"
        if p in permits:
            assert int(told["stamp_us"]) == now.issued[p] == int(verdicts[p]["issued_us"]), f"{what}: times"
        elif answers is None:
            assert verdicts[p]["reason"] == kind.reason, what
    assert now.waiting == 0, f"{what}: a plan waits"
    entries = gov.journalled(*world.home.iterdir())
    assert all(e.is_done for e in entries), f"{what}: an intent without an outcome"
    assert sorted(e.plan_id for e in entries) == sorted(permits), f"{what}: the journal"
    return now


ORDERS = tuple(
    tuple(i in chosen for i in range(2 * len(MACRO))) for chosen in combinations(range(2 * len(MACRO)), len(MACRO))
)
FAULT_POINTS = 13
HARD = tuple(product(range(FAULT_POINTS), [f for f in Fault if f is not Fault.PAUSE]))
SOFT = tuple((point, Fault.PAUSE) for point in range(FAULT_POINTS))


@pytest.fixture
def world(one_server: EmbeddedServer, one_client: Client, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A server and what is needed to try schedules on it."""
    found = World(one_server, one_client, monkeypatch)
    yield found
    found.close()


def tell(capsys: pytest.CaptureFixture[str], text: str) -> None:
    """Print a line that is seen."""
    with capsys.disabled():
        print(text, file=sys.stderr)


COMBINED = (*product(KINDS, (False, True), (False,)), *product(KINDS[:3:2], (False, True), (True,)))
NAMES = [
    f"{kind.name.replace(' ', '-')}-{'stolen' if stolen else 'split'}-{'shared' if shared else 'own'}"
    for kind, stolen, shared in COMBINED
]


@pytest.mark.parametrize(("kind", "stolen", "shared"), COMBINED, ids=NAMES)
def test_every_order_of_two_governors_with_a_fault_at_every_point(
    kind: Kind, stolen: bool, shared: bool, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    """(27, 28, 30, 34, 42) Two governors and two plans, in every order of their steps, and one of them crashes, or
    loses a reply, or is refused, at any of its calls and writes: each plan has one answer, there is one permit where
    the limits allow one, nothing is pending, and permits, events, ledgers, book and journals agree. In CI all of them,
    more than ten thousand, for three kinds of plans, every third for the others; else every twenty-third."""
    seen: set[str] = set()
    fired: set[str] = set()
    is_whole = kind in KINDS[:3]
    few = (1 if is_whole else 3) if CI else 23
    tries = [*product((None, *HARD), ORDERS), *list(product(SOFT, ORDERS))[::8]]
    played: dict[tuple[int, Fault] | None, set[tuple[bool, ...]]] = {}
    for n, (fault, order) in enumerate(tries[::few]):
        known = played.setdefault(fault, set())
        if any(order[:m] in known for m in range(len(order) + 1)):
            continue  # the same schedule: it had ended, or had one governor left, before this order differs
        what, chosen = play(world, Schedule(kind, order, fault, stolen, shared, n % 2 == 1))
        known.add(order[:chosen])
        seen.add(what)
        fired.add(what.split("; ")[4].rpartition(" ")[2])
    tell(capsys, f"{len(seen)} distinct schedules of {kind.name!r}, {'stolen' if stolen else 'split'}")
    assert len(seen) >= (1000 if is_whole else 300) / (1 if CI else 16)
    assert {"HINCRBY", "XREADGROUP", "XAUTOCLAIM", "snapshot", "intent", "commit", "outcome"} <= fired


@dataclass(frozen=True)
class Switch:
    """What somebody sets the kill key to.

    Attributes:
        name: for the test's name.
        command: that does it.
        reason: of the blocks that follow.
    """

    name: str
    command: Command
    reason: str


SWITCHES = (
    Switch("halt", ("SET", LIVE.kill, "1"), "kill_switch_active"),
    Switch("reduce", ("SET", LIVE.kill, "reduce"), "reduce_only"),
    Switch("wrong type", ("HSET", LIVE.kill, "a", "b"), "kill_switch_active"),
)


@pytest.mark.parametrize("stolen", [False, True], ids=["split", "stolen"])
@pytest.mark.parametrize("switch", SWITCHES, ids=lambda s: s.name)
def test_no_permit_after_the_kill_switch_at_any_step(
    switch: Switch, stolen: bool, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    """(26) The kill key set before any step of any order of two governors: from then on there is no permit of an open,
    not even of one that was decided before; each plan has one answer, and nothing is pending."""
    kind, seen, permits = KINDS[1], set(), set()
    tries = list(product(range(2 * len(MACRO) + 1), ORDERS))
    for at, order in tries[:: 1 if CI else 11]:
        world.begin(kind)
        world.deliver(stolen=stolen)
        a, b = Turn("a", world.clock), Turn("b", world.clock)
        both = [world.governor("a", kind, a, shared=False), world.governor("b", kind, b, shared=False)]
        before: list[int] = []

        def set_it(turn: int, at: int = at, before: list[int] = before) -> None:
            if turn == at:
                world.plain.read([switch.command])
                before.append(len(gov.events(world.client, "PERMIT")))

        trace, _ = interleave(order, a, b, (both[0].loop.once, both[1].loop.once), set_it)
        if not before:
            set_it(at)
        world.deliver(stolen=True)
        for one in (*both, *both):
            one.drain()
            one.keeper.journal.close()
        what = f"{switch.name} before step {at} of {trace}"
        found = laws(world, kind, what, {"PERMIT": before[0]})
        reasons = Counter(e["reason"] for e in found.events if e["event"] == "BLOCK")
        assert set(reasons) <= {switch.reason, kind.reason}, f"{what}: {reasons}"
        assert reasons[kind.reason] <= before[0], f"{what}: {reasons}"
        seen.add(what)
        permits.add(before[0])
    tell(capsys, f"{len(seen)} distinct schedules with {switch.name}, {'stolen' if stolen else 'split'}")
    assert permits == {0, 1}


def test_no_permit_for_a_plan_that_expires_at_any_step(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    """(35) The plans' life ends between any two steps of any order of two governors: what was decided before that and
    is committed after it is no permit."""
    kind, seen, permits = KINDS[0], set(), set()
    life_s, step_s = kind.params.plan_max_age_s, 0.01
    for steps, order in list(product(range(2 * len(MACRO) + 1), ORDERS))[:: 1 if CI else 11]:
        made_at = NOW - life_s + steps * step_s + step_s / 2
        world.begin(kind, made_at)
        world.deliver(stolen=True)
        a, b = Turn("a", world.clock, tick_s=step_s), Turn("b", world.clock, tick_s=step_s)
        both = [world.governor("a", kind, a, shared=False), world.governor("b", kind, b, shared=False)]
        trace, _ = interleave(order, a, b, (both[0].loop.once, both[1].loop.once))
        for one in (*both, *both):
            one.drain()
            one.keeper.journal.close()
        what = f"ends after step {steps} of {trace}"
        found = laws(world, kind, what, {})
        assert all(at <= round((made_at + life_s) * US) for at in found.issued.values()), what
        seen.add(what)
        permits.add(len(found.issued))
    tell(capsys, f"{len(seen)} distinct schedules of plans that expire")
    assert permits == {0, 1}


@pytest.mark.parametrize("restarts", [False, True], ids=["lives on", "restarts"])
@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.name.replace(" ", "-"))
def test_a_commit_that_arrives_late(kind: Kind, restarts: bool, world: World) -> None:
    """(27, 34) The governor's patience ends, or its process does, while the commit is still under way; the server
    carries it out later, at whichever of the governor's following calls: one permit, and the journal knows it."""
    for calls in range(16):
        world.begin(kind)
        world.deliver(stolen=True)
        first = world.governor("a", kind, Turn("a", world.clock), shared=False)
        first.store.defers = calls  # type: ignore[attr-defined]  # the world's own store
        assert not first.once()
        what = f"{kind.name}, carried out after {calls} calls"
        if restarts:
            first.keeper.journal.close()
            first = world.governor("a", kind, Turn("a", world.clock), shared=False)
        for _ in range(20):  # time goes by, as between the tries of a governor
            world.clock.set(world.clock.now() + 0.1)
            first.once()
        first.drain()
        first.keeper.journal.close()
        assert world.stores["a"].late is None, "it has arrived"
        laws(world, kind, what)


def test_two_governors_that_decide_the_same_at_the_same_time(world: World) -> None:
    """(34) Two governors decide a plan at one and the same microsecond, as they do behind a clock that was set back;
    the one that noted it and crashed before its commit does not take the other's permit for its own."""
    kind = KINDS[0]
    for point in (10, 11):  # behind the intent, and before the commit, of the one that makes the group
        world.begin(kind)
        world.deliver(stolen=True)
        a, b = Turn("a", world.clock, (point, Fault.BEFORE), tick_s=0.0), Turn("b", world.clock, tick_s=0.0)
        both = [world.governor("a", kind, a, shared=False), world.governor("b", kind, b, shared=False)]
        order = (True, True, True, False, False, False, True, False)
        trace, _ = interleave(order, a, b, (both[0].loop.once, both[1].loop.once))
        both[0].keeper.journal.close()
        again = world.governor("a", kind, Turn("a", world.clock, tick_s=0.0), shared=False)
        both[1].drain()
        again.drain()
        again.keeper.journal.close()
        both[1].keeper.journal.close()
        laws(world, kind, f"{trace}, {a.fired}")
