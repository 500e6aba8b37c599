"""Governors over a real server and whatever may happen to them, in any order: the laws, as another program sees them.

A machine of one to three governors, with a clock that the test sets. The laws are read off the event stream, the keys
and the state directories, never off a governor's memory. What the server loses, it loses as in a failover: governor's
keys and plans are put back as they were at an earlier time, and the server tells another run id; the event stream
stands for what was recorded elsewhere and is kept.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

import quantum_alloc.core as qa
from quantum_alloc.adapters import intake
from quantum_alloc.adapters.clock import SetClock
from quantum_alloc.adapters.effects import Command, Reply
from quantum_alloc.adapters.embedded import EmbeddedServer
from quantum_alloc.adapters.keys import LIVE
from quantum_alloc.adapters.store import Store
from quantum_alloc.core.limits import US
from tests.support import governing as gov
from tests.support.worlds import Client
from tests.tools.fault_proxy import FaultProxy

NOW = gov.NOW
SYMBOLS = ("AAUSDT", "BBUSDT", "CCUSDT")
PARAMS = qa.GovernorParams(
    max_exec_per_5min=2,
    max_exec_per_hour=3,
    max_close_per_5min=2,
    max_close_per_hour=4,
    symbol_cooldown_s=10,
    max_open_positions=2,
    max_total_notional_usd=450.0,
    max_reduce_notional_per_day_usd=250.0,
)
"""The caps bind."""
ROOMY = replace(
    PARAMS, max_open_positions=10, max_total_notional_usd=1e6, symbol_cooldown_s=0, disarm_on_burst=False,
    max_reduce_notional_per_day_usd=1e6,
)  # fmt: skip
"""The rates bind."""
HOUR_US, DAY_US = 3600 * US, 86_400 * US
WINDOWS = {
    "open": ((300 * US, PARAMS.max_exec_per_5min), (HOUR_US, PARAMS.max_exec_per_hour)),
    "close": ((300 * US, PARAMS.max_close_per_5min), (HOUR_US, PARAMS.max_close_per_hour)),
}
FOREVER_MS = 10**9
ID = re.compile(r"[A-Za-z0-9_.-]{1,64}")


@dataclass
class Run:
    """Which run of the server it says that it is."""

    number: int = 1

    @property
    def text(self) -> str:
        """The run id."""
        return f"{self.number:040x}"


class Told(Store):
    """A store whose server tells the run id and the time of the test."""

    def __init__(self, url: str, run: Run, clock: SetClock) -> None:
        """Nothing is sent yet."""
        super().__init__(url, timeout_s=2.0)
        self._told, self._clock = run, clock

    def read(self, commands: Sequence[Command], wait_s: float = 0.0) -> list[Reply]:
        """The replies, but for the run id and the time."""
        replies = super().read(commands, wait_s)
        for i, command in enumerate(commands):
            reply = replies[i]
            if command[0] == "INFO" and isinstance(reply, bytes):
                replies[i] = re.sub(rb"run_id:\w+", b"run_id:" + self._told.text.encode(), reply)
            elif command[0] == "TIME" and isinstance(reply, list):
                now_us = round(self._clock.now() * US)
                replies[i] = [b"%d" % (now_us // US), b"%d" % (now_us % US)]
        return replies


@dataclass
class Given:
    """A permit, from its event.

    Attributes:
        plan_id: of its plan.
        symbol: the symbol.
        movement: open or close.
        action: of its plan.
        usd: its notional.
        at_us: when it was issued.
        consumed_us: when it was taken; 0 while nobody has.
        is_filled: True once position and portfolio tell of it.
    """

    plan_id: str
    symbol: str
    movement: str
    action: str
    side: str
    usd: float
    at_us: int
    consumed_us: int = 0
    is_filled: bool = False


@dataclass
class Seen:
    """What has been seen of the events.

    Attributes:
        last: id of the newest.
        permits: in their order.
        verdicts: how many verdicts each plan has had since the server last lost anything.
        restored: plan ids of permits that were put back.
    """

    last: str = "0-0"
    permits: list[Given] = field(default_factory=list)
    verdicts: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    restored: set[str] = field(default_factory=set)
    answered: set[str] = field(default_factory=set)


def forbids(client: Client) -> str:
    """What the kill key and the latch say, by the table of the contract: HALT, REDUCE_ONLY or OFF."""
    if client.exists(LIVE.latch):
        return "HALT"
    kind = client.type(LIVE.kill)
    if kind == "none":
        return "OFF"
    if kind != "string":
        return "HALT"
    value = client.get(LIVE.kill)
    return "OFF" if value in ("", "0", "false", "off") else "REDUCE_ONLY" if value == "reduce" else "HALT"


def put_kill(client: Client, value: str | None) -> None:
    """Set the kill key, whatever it was; ``hash`` makes it one, None takes it away."""
    client.delete(LIVE.kill)
    if value == "hash":
        client.hset(LIVE.kill, "a", "b")
    elif value is not None:
        client.set(LIVE.kill, value)


KEPT = (gov.EVENTS,)
GOVERNED = ("quantum:governor:*", "quantum:permit:*", "quantum:kill*", gov.PLANS)


def governed_keys(raw: Any) -> list[bytes]:
    """Keys that a server can lose."""
    return [k for pattern in GOVERNED for k in raw.scan_iter(pattern, count=1000)]


PLANS_OF: tuple[Mapping[str, object], ...] = (
    {"action": "ENTRY", "side": "BUY", "qty": 1, "price": 100, "kill_score": 0.1},
    {"action": "ENTRY", "side": "BUY", "qty": 1, "price": 100, "kill_score": 0.1},
    {"action": "ENTRY", "side": "SELL", "qty": 1.5, "price": 100, "kill_score": 0.2},
    {"action": "FULL_CLOSE_PROPOSED"},
    {"action": "FULL_CLOSE_PROPOSED", "qty": 1},
    {"action": "PARTIAL_50", "qty": 0.5},
    {"action": "EXIT", "reduceOnly": "true", "qty": 0.7},
)
BAD: tuple[Mapping[str, object], ...] = (
    {"kill_score": "NaN"}, {"kill_score": "1e400"}, {"symbol": "BB\nUSDT"}, {"qty": -1}, {"decision": "HOLD"},
    {"timestamp": "soon"}, {"plan_id": "p33:x"}, {"plan_id": ""}, {"side": "UP"}, {"kill_score": None},
)  # fmt: skip


Proposal = tuple[str, Mapping[str, object], float, int, int, Mapping[str, object]]
AGO = st.sampled_from([0.0] * 20 + [110.0, 119.9, 130.0, -3.0, -30.0])
PROPOSALS = st.lists(
    st.tuples(
        st.sampled_from(SYMBOLS),
        st.sampled_from([*PLANS_OF[:3] * 6, *PLANS_OF * 4, *({**PLANS_OF[0], **bad} for bad in BAD)]),
        AGO,
        st.sampled_from([1, 1, 1, 2, 3]),
        st.sampled_from([0, 0, 0, 0, 1, 3]),
        st.sampled_from([{}, {}, {"qty": 2}, {"action": "PARTIAL_25"}]),
    ),
    min_size=1,
    max_size=4,
)
"""Symbol, content, age, copies, how far back one is sent again, and what is then changed."""
FAULTS = st.sampled_from(["cut", "cut", "reply"])


class Machine(RuleBasedStateMachine):
    """Governors, what other programs do, and faults."""

    url: str
    client: Client
    raw: Any
    proxy: FaultProxy
    root: Path
    patch: pytest.MonkeyPatch
    number = 0

    @initialize(
        count=st.integers(1, 3),
        shared=st.booleans(),
        journalled=st.sampled_from([True, True, True, False]),
        steal=st.booleans(),
        held=st.sampled_from([1.0, 0.0, 1.5, -2.0]),
        params=st.sampled_from([PARAMS, ROOMY]),
    )
    def begin(
        self, count: int, shared: bool, journalled: bool, steal: bool, held: float, params: qa.GovernorParams
    ) -> None:
        """Empty server, new directories, a flat portfolio or one position."""
        self.client.flushall()
        self.proxy.heal()
        Machine.number += 1
        self.params = params
        self.symbols = SYMBOLS if params is PARAMS else SYMBOLS[:1]
        self.home = self.root / str(Machine.number)
        self.clock, self.run, self.seen = SetClock(NOW), Run(), Seen()
        self.shared, self.journalled = shared or count == 1, journalled
        self.patch.setattr(intake, "IDLE_MS", 0 if steal else FOREVER_MS)
        self.patch.setattr(intake, "TICK_S", 0.0)
        self.positions: dict[str, float] = {SYMBOLS[0]: held} if held else {}
        self.portfolio_at = NOW
        self.filled: dict[str, float] = {}
        self.sent: list[dict[str, object]] = []
        self.expiry: dict[str, float] = {}
        self.image: list[tuple[bytes, bytes]] = []
        self.halted = [False] * count
        self.losses = 0
        self.unsettled: set[int] = set()
        self.floor = self.latest = NOW
        self.exempt_before_us = 0
        self.stamps: dict[str, float] = {}
        self.governors = [self.made(i) for i in range(count)]
        self.publish(positions=True, portfolio=True)
        for g in (*self.governors, *self.governors):  # each has met the others
            assert g.once()

    def made(self, i: int) -> gov.Governing:
        """A governor at its start."""
        directory = self.home / ("all" if self.shared else f"g{i}")
        store = Told(self.proxy.url, self.run, self.clock)
        return gov.governing(
            store, directory, f"g{i}", clock=self.clock, params=self.params, journalled=self.journalled
        )

    # ---- what other programs do

    def publish(self, positions: bool, portfolio: bool) -> None:
        """Positions and portfolio are written as they are now, fills included; or only one of them."""
        now = self.clock.now()
        if positions:
            for given in self.seen.permits:
                if given.consumed_us and given.plan_id not in self.filled and given.consumed_us < now * US:
                    sign = 1.0 if given.side == "BUY" else -1.0
                    qty = sign * given.usd / 100.0
                    self.filled[given.plan_id] = qty
                    self.positions[given.symbol] = self.positions.get(given.symbol, 0.0) + qty
            for symbol, qty in self.positions.items():
                gov.position(self.client, symbol, qty, now)
            self.positions_at = now
        if portfolio:
            held = [abs(q) for q in self.positions.values() if abs(q) > 1e-9]
            self.portfolio, self.portfolio_at = (100.0 * sum(held), len(held)), now
            gov.portfolio(self.client, now, *self.portfolio)

    def propose(self, proposal: Proposal) -> None:
        """A plan, once or several times; one that is bad, or one that was sent before, as it was or otherwise."""
        symbol, of, ago, copies, back, more = proposal
        symbol = symbol if symbol in self.symbols else self.symbols[0]
        if back and len(self.sent) >= back:
            self.send({**self.sent[-back], **more})
            return
        told = {"plan_id": f"p{len(self.sent)}", "symbol": symbol, "timestamp": repr(self.clock.now() - ago), **of}
        self.sent.append(told)
        self.stamps[str(told["plan_id"])] = self.clock.now() - ago
        for _ in range(copies):
            self.send(told)

    def send(self, told: Mapping[str, object]) -> None:
        """Add a plan to the stream."""
        fields = {"decision": "EXECUTE", **told}
        self.client.xadd(gov.PLANS, {n: str(v) for n, v in fields.items() if v is not None})

    @rule(
        seconds=st.sampled_from(
            [0.5, 9.5, 10.0, 11.0, 11.0, 59.0, 61.0, 61.0, 290.0, 301.0, 3601.0, 86_400.0, -0.3, -5.0, -70.0, -4000.0]
        ),
        publishes=st.sampled_from([True, True, True, False]),
    )
    def wait(self, seconds: float, publishes: bool) -> None:
        """Time goes by, or the server's clock is set back, though not to before it lost its memory of what time it
        was; permits expire."""
        self.clock.set(max(self.floor, self.clock.now() + seconds))
        self.latest = max(self.latest, self.clock.now())
        self.expire()
        if publishes:
            self.publish(positions=True, portfolio=True)

    def expire(self) -> None:
        """Permits end when their time is over."""
        for plan_id, until in list(self.expiry.items()):
            if until <= self.clock.now():
                self.client.delete(LIVE.permit(plan_id))
                del self.expiry[plan_id]

    @rule(back=st.integers(1, 3), marks=st.sampled_from([True, True, True, False]))
    def consume(self, back: int, marks: bool) -> None:
        """A permit is taken, as the apply layer does; or its key vanishes."""
        live = [g for g in self.seen.permits if not g.consumed_us and self.client.exists(LIVE.permit(g.plan_id))]
        if len(live) < back:
            return
        given = live[-back]
        if marks:
            given.consumed_us = round(self.clock.now() * US)
            assert gov.consume(self.client, given.plan_id, given.consumed_us)
        else:
            self.client.delete(LIVE.permit(given.plan_id))

    def rearm(self) -> None:
        """The kill key is taken away, and somebody rearms."""
        self.clock.set(self.clock.now() + 0.5)
        put_kill(self.client, None)
        gov.rearm(self.client, self.clock.now())
        self.halted = [False] * len(self.governors)

    # ---- faults

    def forget_the_group(self) -> None:
        """The consumer group is destroyed."""
        if self.client.exists(gov.PLANS):
            self.client.xgroup_destroy(gov.PLANS, gov.GROUP)

    def trim(self) -> None:
        """The oldest plans are trimmed away, answered or not."""
        self.client.xtrim(gov.PLANS, maxlen=2, approximate=False)

    @rule(
        what=st.sampled_from(
            [
                "remember",
                "remember",
                "lose",
                "lose by hand",
                "flush",
                "trim",
                "forget",
                "rearm",
                "rearm",
                "rearm",
                "publish",
            ]
        ),
    )
    def disturb(self, what: str) -> None:
        """Something that is rarer than work."""
        acts: dict[str, Callable[[], None]] = {
            "remember": self.remember,
            "lose": lambda: self.lose(keeps_run=False),
            "lose by hand": lambda: self.lose(keeps_run=True),
            "flush": self.flush,
            "trim": self.trim,
            "forget": self.forget_the_group,
            "rearm": self.rearm,
            "publish": lambda: self.publish(positions=False, portfolio=True),
        }
        acts[what]()

    @rule(
        value=st.sampled_from(["off", "", "1", "halt", "reduce", "reduce", "hash", "OFF", "maybe"]), i=st.integers(0, 2)
    )
    def kill(self, value: str, i: int) -> None:
        """The kill key is set to something, maybe rearmed soon."""
        put_kill(self.client, value)
        self.step(i, "none", 0)
        if value in ("reduce", "OFF", "maybe"):
            self.rearm()

    @rule(i=st.integers(0, 2))
    def restart(self, i: int) -> None:
        """A governor's process ends, and another begins in its place."""
        i %= len(self.governors)
        self.governors[i].crash()
        self.governors[i] = self.made(i)

    def remember(self) -> None:
        """A replica is this far."""
        self.image = [(k, self.raw.dump(k)) for k in governed_keys(self.raw)]

    def lose(self, keeps_run: bool) -> None:
        """A failover to that replica; or by hand, on the same server."""
        gone = governed_keys(self.raw)
        if gone:
            self.raw.delete(*gone)
        for key, value in self.image:
            self.raw.restore(key, 0, value)
        if keeps_run and self.one_notices_for_all:
            self.raw.delete(LIVE.epoch)
        else:
            self.run.number += 1
            for g in self.governors:
                g.store.close()
        self.lost()

    def flush(self) -> None:
        """All keys of the governor are deleted; the plans stay."""
        gone = [k for k in governed_keys(self.raw) if k != gov.PLANS.encode()]
        if gone:
            self.raw.delete(*gone)
        if not self.one_notices_for_all:
            self.run.number += 1
            for g in self.governors:
                g.store.close()
        self.lost()

    @property
    def one_notices_for_all(self) -> bool:
        """True where the governor that first sees what was lost puts back what all of them permitted."""
        return len(self.governors) == 1 or (self.shared and self.journalled)

    def lost(self) -> None:
        """What no longer can be asked for: blocks are given anew, nobody knows what was consumed, and closes are not
        held back where a journal lies elsewhere."""
        self.losses += 1
        self.unsettled = set(range(len(self.governors)))
        self.floor = self.latest
        self.clock.set(self.latest)
        self.seen.verdicts.clear()
        self.expire()
        for given in self.seen.permits:
            if not given.is_filled:
                given.is_filled = given.consumed_us != 0
        if not (self.shared and self.journalled):
            self.exempt_before_us = max([g.at_us for g in self.seen.permits], default=0)

    @rule(
        i=st.integers(0, 2),
        what=st.sampled_from(["book", "ledger", "tombstone", "permit", "last", "portfolio", "events"]),
    )
    def cycle_with_a_spoiled_key(self, i: int, what: str) -> None:
        """A key holds another type during a cycle, though not while what was lost is put back."""
        if self.unsettled:
            return
        symbol = SYMBOLS[i]
        newest = str(self.sent[-1]["plan_id"]) if self.sent else "p0"
        plan_id = newest if ID.fullmatch(newest) else "p0"
        key = {
            "book": LIVE.book, "ledger": LIVE.ledger(symbol), "tombstone": LIVE.tombstone(plan_id),
            "permit": LIVE.permit(plan_id), "last": LIVE.last_exec(symbol), "portfolio": LIVE.portfolio,
            "events": gov.EVENTS,
        }[what]  # fmt: skip
        aside = f"aside:{key}"
        had = bool(self.client.exists(key))
        if had:
            self.client.rename(key, aside)
        if what in ("tombstone", "permit", "last"):
            self.client.hset(key, "a", "b")
        else:
            self.client.set(key, "x")
        state = forbids(self.client)
        ended = self.governors[i % len(self.governors)].once()
        if what == "last" and self.client.type(key) == "string":
            self.client.delete(aside)
        else:
            self.client.delete(key)
            if had:
                self.client.rename(aside, key)
        self.after_cycle(i % len(self.governors), state, ended)

    @rule(
        proposals=PROPOSALS,
        i=st.integers(0, 2),
        after_s=st.sampled_from([11.0, 0.0, 45.0, 61.0, 250.0, 301.0]),
        takes=st.booleans(),
        lags=st.sampled_from([False, False, True]),
    )
    def work(self, proposals: list[Proposal], i: int, after_s: float, takes: bool, lags: bool) -> None:
        """Maybe a permit is taken; after a while, of which maybe only the portfolio tells, some plans and a cycle."""
        if takes:
            self.consume(1, marks=True)
        self.wait(after_s, publishes=not lags)
        if lags:
            self.publish(positions=False, portfolio=True)
        for one in proposals:
            self.propose(one)
        self.step(i, "none", 0)

    @rule(proposals=PROPOSALS, i=st.integers(0, 2), j=st.integers(0, 2), fault=FAULTS, k=st.integers(0, 45))
    def work_with_a_fault(self, proposals: list[Proposal], i: int, j: int, fault: str, k: int) -> None:
        """Some plans, a cycle with the connection cut at some command or a reply lost, and another's."""
        for one in proposals:
            self.propose(one)
        self.step(i, fault, k)
        self.step(j, "none", 0)

    @rule(proposals=PROPOSALS, i=st.integers(0, 2), k=st.integers(0, 45), fault=FAULTS)
    def work_and_restart(self, proposals: list[Proposal], i: int, k: int, fault: str) -> None:
        """Some plans, a cycle with a fault, the end of the process, and another in its place."""
        for one in proposals:
            self.propose(one)
        self.step(i, fault, k)
        self.restart(i)
        self.step(i, "none", 0)

    @rule(i=st.integers(0, 2), fault=FAULTS, k=st.integers(0, 45))
    def cycle(self, i: int, fault: str, k: int) -> None:
        """A cycle."""
        self.step(i, fault, k)

    def step(self, i: int, fault: str, k: int) -> None:
        """A governor's cycle, with the connection cut at some command, or a reply lost."""
        i %= len(self.governors)
        g = self.governors[i]
        if fault != "none":
            g.store.close()
        if fault == "cut":
            self.proxy.cut_after(k)
        elif fault == "reply":
            self.proxy.cut_reply_after(k + 1)
        state, before = forbids(self.client), self.counted()
        ended = g.once()
        self.proxy.heal()
        if not ended:
            g.store.close()
        new = self.after_cycle(i, state, ended)
        self.changed_by(new, before)

    # ---- laws

    def counted(self) -> tuple[dict[str, int], dict[str, set[str]], set[str]]:
        """Revisions, and plan ids in ledgers and book."""
        return (
            {s: gov.revision(self.client, s) for s in SYMBOLS},
            {s: set(gov.ledger(self.client, s)) for s in SYMBOLS},
            set(gov.book(self.client)),
        )

    def changed_by(self, new: list[dict[str, str]], before: tuple[Any, Any, Any]) -> None:
        """(29) Only permits enter ledger and book and raise a revision; a block changes neither."""
        after = self.counted()
        for symbol in SYMBOLS:
            given = {e["plan_id"] for e in new if e["event"] == "PERMIT" and e["symbol"] == symbol}
            assert after[1][symbol] - before[1][symbol] == given
            assert after[0][symbol] - before[0][symbol] == len(given)
        opened = {e["plan_id"] for e in new if e["event"] == "PERMIT" and e.get("movement") == "open"}
        restored = {e["plan_id"] for e in new if e.get("reason") == "restored"}
        assert opened <= after[2] - before[2] <= opened | restored | self.all_permitted()

    def all_permitted(self) -> set[str]:
        """Plan ids that were permitted, or put back."""
        return {g.plan_id for g in self.seen.permits} | self.seen.restored

    def after_cycle(self, i: int, state: str, ended: bool) -> list[dict[str, str]]:
        """What one cycle added to the events, held against the laws."""
        if self.halted[i]:
            state = "HALT"
        new = self.take_events()
        for e in new:
            if e["event"] == "AUTO_DISARM" and state == "OFF":
                state = "REDUCE_ONLY"
            if e["event"] == "PERMIT" and e["reason"] != "restored":
                assert state != "HALT", f"(26) a permit at HALT: {e}"
                assert state == "OFF" or e["movement"] == "close", f"(26) an open at REDUCE_ONLY: {e}"
        if ended and state == "HALT":
            self.halted[i] = True
        if ended:
            self.unsettled.discard(i)
        return new

    def take_events(self) -> list[dict[str, str]]:
        """The events that are new, noted and held against the laws that each must keep."""
        found = self.client.xrange(gov.EVENTS, f"({self.seen.last}")
        for entry_id, e in found:
            self.seen.last = entry_id
            self.seen.answered.add(e["plan_id"])
            if e["event"] in gov.VERDICTS and e["reason"] == "restored":
                self.seen.restored.add(e["plan_id"])
            elif e["event"] in gov.VERDICTS:
                self.verdict(e)
        return [e for _, e in found]

    def verdict(self, e: dict[str, str]) -> None:
        """One PERMIT or BLOCK."""
        plan_id = e["plan_id"]
        if "gates" in e:
            assert qa.differences(e) == {}, "every verdict is what its record says, bit for bit"
        if ID.fullmatch(plan_id):
            self.seen.verdicts[plan_id] += 1
            assert self.seen.verdicts[plan_id] == 1, f"the first answer is final: {e}"
        if e["event"] != "PERMIT":
            return
        at_us = int(e["issued_us"])
        given = Given(plan_id, e["symbol"], e["movement"], e["action"], e["side"], float(e["computed_notional"]), at_us)
        is_safe = given.movement == "open" or not self.exempt_before_us
        if is_safe:
            assert plan_id not in self.all_permitted(), f"(27) a second permit: {e}"
        assert at_us <= round(self.stamps[plan_id] * US) + self.params.plan_max_age_s * US, f"(35) an old plan: {e}"
        assert self.losses or all(g.at_us <= at_us for g in self.seen.permits), f"time goes back: {e}"
        self.rates(given)
        if given.movement == "open":
            self.caps(given, e)
        self.seen.permits.append(given)
        self.expiry[plan_id] = self.clock.now() + self.params.permit_ttl_s

    def rates(self, given: Given) -> None:
        """(28) Windows, cooldown and day, of one symbol."""
        before = [g for g in self.seen.permits if g.symbol == given.symbol]
        if given.movement == "close":
            before = [g for g in before if g.at_us > self.exempt_before_us]
        same = [g.at_us for g in before if g.movement == given.movement]
        for window_us, most in WINDOWS[given.movement]:
            inside = 1 + sum(at > given.at_us - window_us for at in same)
            assert inside <= most, f"(28) {inside} permits in {window_us // US} s: {given}"
        if given.movement == "open":
            assert all(given.at_us - g.at_us >= self.params.symbol_cooldown_s * US for g in before), (
                f"cooldown: {given}"
            )
        elif given.action != "FULL_CLOSE_PROPOSED" and forbids(self.client) == "OFF":
            today = [g.usd for g in before if g.movement == "close" and g.at_us // DAY_US == given.at_us // DAY_US]
            assert sum(today) + given.usd <= self.params.max_reduce_notional_per_day_usd + 1e-6, f"day: {given}"

    def caps(self, given: Given, e: Mapping[str, str]) -> None:
        """(42) Portfolio and outstanding opens and this one stay within the global caps."""
        now_us = round(float(e["now"]) * US)
        waiting = [g for g in self.seen.permits if g.movement == "open" and self.waits(g, now_us)]
        usd, count = self.portfolio
        total = usd + sum(g.usd for g in waiting) + given.usd
        assert total <= self.params.max_total_notional_usd + 1e-6, f"(42) {total} USD: {given}"
        held = {s for s, q in self.positions.items() if abs(q) > 1e-9}
        slots = {g.symbol for g in waiting} - held
        if given.symbol not in held | slots:
            assert count + len(slots) + 1 <= self.params.max_open_positions, f"(42) {count} and {slots}: {given}"

    def waits(self, g: Given, now_us: int) -> bool:
        """Whether an open is not yet a position and can still become one."""
        if g.consumed_us:
            until_us = max(g.at_us + self.params.permit_ttl_s * US, g.consumed_us)
            is_gone = g.symbol not in self.positions and int(self.portfolio_at) * US > until_us  # it came to nothing
            return g.plan_id not in self.filled and not g.is_filled and not is_gone
        return now_us < g.at_us + self.params.permit_ttl_s * US

    @invariant()
    def nothing_happens_behind_the_back(self) -> None:
        """No event comes but from a cycle."""
        if hasattr(self, "seen"):
            assert self.client.xrange(gov.EVENTS, f"({self.seen.last}") == []

    def teardown(self) -> None:
        """Faults stop: within two cycles each everything is answered, and all that was written agrees."""
        if not hasattr(self, "governors"):
            return
        try:
            self.proxy.heal()
            self.patch.setattr(intake, "IDLE_MS", 0)
            for g in (*self.governors, *self.governors):
                state = forbids(self.client)
                g.drain()
                self.after_cycle(self.governors.index(g), state, True)
            self.agree()
        finally:
            for g in self.governors:
                g.crash()
            shutil.rmtree(self.home, ignore_errors=True)

    def agree(self) -> None:
        """(30, 34) Nothing waits; events, ledgers, tombstones and journals tell of the same permits."""
        client = self.client
        assert gov.pending(client) == gov.unread(client) == 0, "(30) a plan waits"
        for _, plan in client.xrange(gov.PLANS):
            is_governed = plan.get("decision") == "EXECUTE" and ID.fullmatch(plan.get("plan_id", ""))
            assert not is_governed or plan["plan_id"] in self.seen.answered, f"(30) no answer: {plan}"
        assert client.exists(gov.DEAD) == 0
        now_us = max([round(self.latest * US), *(g.at_us for g in self.seen.permits)])
        known = self.all_permitted()
        young = {g.plan_id for g in self.seen.permits if g.at_us > now_us - HOUR_US}
        for symbol in SYMBOLS:
            assert set(gov.ledger(client, symbol)) <= known, "(34) a ledger entry without an event"
        listed = {p for s in SYMBOLS for p in gov.ledger(client, s)}
        if self.journalled or not self.losses:
            assert young <= listed, "(34) a permit without a ledger entry"
            for p in young:  # where journals lie apart, another may have answered before the permit was put back
                known_answers = {"PERMIT"} if self.one_notices_for_all or not self.losses else gov.VERDICTS
                assert gov.tombstone(client, p).get("verdict") in known_answers, f"(27) the tombstone of {p}"
        if not self.losses:
            issued = {p: at for s in SYMBOLS for p, at in gov.ledger(client, s).items()}
            assert all(issued[g.plan_id].at_us == g.at_us for g in self.seen.permits if g.plan_id in issued)
            assert sum(gov.revision(client, s) for s in SYMBOLS) == len(self.seen.permits)
        if self.journalled:
            noted = [e for e in gov.journalled(*self.home.iterdir()) if e.is_done]
            lately = {g.plan_id for g in self.seen.permits if g.at_us > now_us - DAY_US}
            assert lately <= {e.plan_id for e in noted}, "(34) a permit that the journal does not know"
            assert self.losses or {e.plan_id for e in noted} <= known, "(34) the journal knows a permit that is none"


@pytest.fixture
def machine(one_server: EmbeddedServer, one_client: Client, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Machine]]:
    """What a machine needs."""
    memory = Path("/dev/shm")
    root = Path(tempfile.mkdtemp(prefix="qa-", dir=memory if memory.is_dir() else None))
    raw: Any = redis.Redis.from_url(one_server.url, protocol=2)
    with FaultProxy(str(one_server.socket)) as proxy:
        Machine.client, Machine.raw, Machine.proxy = one_client, raw, proxy
        Machine.root, Machine.patch = root, monkeypatch
        yield Machine
    raw.close()
    shutil.rmtree(root, ignore_errors=True)


@pytest.mark.timeout(900)  # a failure is made small for some minutes
def test_whatever_happens_to_governors(machine: type[Machine]) -> None:
    """(26-31, 34, 35, 42) Governors that share a state directory or do not, plans of all kinds, cuts at any command,
    lost replies, crashes, clocks set on and back, consumption, expiry, the kill switch, a group that vanishes, a
    trimmed stream, spoiled keys, a server that loses its last writes, in any order: at most one permit a plan, no
    window and no cap is exceeded, no permit against the kill switch, and in the end everything is answered."""
    profile = settings()
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=profile.max_examples * 6 // 10,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


@dataclass
class Pair:
    """Two governors and what they stand on."""

    client: Client
    clock: SetClock
    run: Run
    both: list[gov.Governing]


@pytest.fixture(params=["journals", "no journal"])
def pair(
    request: pytest.FixtureRequest, one_server: EmbeddedServer, one_client: Client, tmp_path: Path
) -> Iterator[Pair]:
    """Two governors that know each other and share no directory; the second has permitted an open."""
    clock, run = SetClock(NOW), Run()
    both = [
        gov.governing(
            Told(one_server.url, run, clock), tmp_path / name, name, clock=clock, params=PARAMS,
            journalled=request.param == "journals",
        )
        for name in ("one", "two")
    ]  # fmt: skip
    gov.portfolio(one_client, NOW)
    for g in (*both, *both):
        assert g.once()
    gov.opening(one_client, "p1", "AAUSDT", NOW)
    both[1].drain()
    assert [e["plan_id"] for e in gov.events(one_client, "PERMIT")] == ["p1"]
    yield Pair(one_client, clock, run, both)
    for g in both:
        g.crash()


@pytest.mark.parametrize("how", ["failover", "by hand"])
def test_every_governor_notices_what_the_server_has_lost(how: str, pair: Pair) -> None:
    """(27, 28) All governor's keys are lost, by a failover or by hand on the server that goes on. Whichever governor
    is the first to see it, the others see it too: the one that permitted puts its permits back, where it has a
    journal, and none permits an open in the dark."""
    client = pair.client
    gone = list(client.scan_iter("quantum:governor:*", count=1000))
    client.delete(*gone, LIVE.permit("p1"))
    if how == "failover":
        pair.run.number += 1
        for g in pair.both:
            g.store.close()
    pair.clock.set(NOW + 1.0)
    for g in pair.both:
        g.drain()
    gov.opening(client, "p1", "AAUSDT", NOW)
    gov.opening(client, "p2", "AAUSDT", NOW + 1.0)
    pair.both[1].drain()
    assert [e["plan_id"] for e in gov.events(client, "PERMIT") if e["reason"] == "ok"] == ["p1"]
    assert len(gov.events(client, "STORE_EPOCH_CHANGE")) == 2, "each governor tells of it"


def test_lost_writes_are_put_back_by_the_clock_that_stands_for_the_server_s(
    one_server: EmbeddedServer, one_client: Client, tmp_path: Path
) -> None:
    """(34) At a clock that somebody sets, long before the server's own: a permit that was lost is put back into the
    ledger, since by that clock it is young."""
    store = Store(one_server.url)
    g = gov.governing(store, tmp_path, "one", clock=SetClock(NOW), params=PARAMS)
    gov.portfolio(one_client, NOW)
    gov.opening(one_client, "p1", "AAUSDT", NOW)
    g.drain()
    assert list(gov.ledger(one_client, "AAUSDT")) == ["p1"]
    one_client.delete(LIVE.ledger("AAUSDT"), LIVE.book, LIVE.tombstone("p1"), LIVE.epoch)
    g.drain()
    g.crash()
    assert list(gov.ledger(one_client, "AAUSDT")) == ["p1"]
    assert list(gov.book(one_client)) == ["p1"]


@pytest.mark.parametrize("spoiled", ["tombstone", "ledger"])
def test_what_cannot_be_put_back_is_not_passed_over(
    spoiled: str, one_server: EmbeddedServer, one_client: Client, tmp_path: Path
) -> None:
    """(28, 34) A key holds another type while lost permits are put back: the rest is put back all the same, and when
    the key is gone no limit has forgotten the permit."""
    clock, run = SetClock(NOW), Run()
    g = gov.governing(Told(one_server.url, run, clock), tmp_path, "one", clock=clock, params=PARAMS)
    gov.portfolio(one_client, NOW)
    gov.opening(one_client, "p1", "AAUSDT", NOW)
    g.drain()
    one_client.delete(LIVE.ledger("AAUSDT"), LIVE.book, LIVE.tombstone("p1"), LIVE.epoch)
    key = LIVE.ledger("AAUSDT") if spoiled == "ledger" else LIVE.tombstone("p1")
    one_client.lpush(key, "x")
    g.once()
    one_client.delete(key)
    gov.opening(one_client, "p2", "AAUSDT", NOW)
    for _ in range(5):
        g.once()
    g.crash()
    assert list(gov.ledger(one_client, "AAUSDT")) == ["p1"]
    assert [e["plan_id"] for e in gov.events(one_client, "PERMIT") if e["reason"] == "ok"] == ["p1"]
    assert gov.tombstone(one_client, "p2")["reason"] == "symbol_cooldown"


@pytest.mark.parametrize("what", ["ledger", "book"])
def test_a_large_ledger_or_book_is_swept(
    what: str, one_server: EmbeddedServer, one_client: Client, tmp_path: Path
) -> None:
    """(30) As many entries as can be read, none of which counts any more: the next permit sweeps them, and no plan
    waits for ever."""
    clock = SetClock(NOW)
    g = gov.governing(Store(one_server.url, timeout_s=2.0), tmp_path, "one", clock=clock, params=PARAMS)
    old_us = round((NOW - 90_000) * US)
    if what == "ledger":
        rows = {f"o{i}": f"{old_us} open 100.0 0.0" for i in range(9000)}
        one_client.hset(LIVE.ledger("AAUSDT"), mapping={**rows, ":rev": 9000})
    else:
        rows = {f"o{i}": f"AAUSDT 1.0 {old_us} {old_us + 60 * US} 0" for i in range(9000)}
        one_client.hset(LIVE.book, mapping={**rows, ":rev": 9000})
    gov.portfolio(one_client, NOW)
    gov.opening(one_client, "p1", "AAUSDT", NOW)
    for _ in range(3):
        g.once()
    error, left = g.loop.last_error, len(gov.ledger(one_client, "AAUSDT")) + len(gov.book(one_client))
    g.crash()
    assert [e["event"] for e in gov.events(one_client)] == ["PERMIT"], error
    assert left <= 2 + 9000 - 1000
    assert gov.pending(one_client) == 0
