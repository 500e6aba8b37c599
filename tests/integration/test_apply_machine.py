"""A governor and apply layers over a real server and whatever may happen to them, in any order: the laws, from outside.

One or two apply layers share an account; the clock is the test's. The laws are read off the streams and keys, never off
a service's memory, and hold after every step.
"""

from __future__ import annotations

import shutil
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from quantum_alloc.adapters.clock import SetClock
from quantum_alloc.adapters.embedded import EmbeddedServer
from quantum_alloc.adapters.keys import LIVE
from quantum_alloc.adapters.store import Store
from quantum_alloc.core import GovernorParams
from quantum_alloc.core.limits import US
from quantum_alloc.core.record_apply import applied, apply_fields, apply_params
from tests.support import applying as ap
from tests.support import governing as gov
from tests.support.worlds import Client
from tests.tools.fault_proxy import FaultProxy

NOW = gov.NOW
SYMBOLS = ("AAUSDT", "BBUSDT", "CCUSDT")
PARAMS = GovernorParams(
    apply_mode="production",
    max_exec_per_hour=1000,
    max_exec_per_5min=1000,
    max_close_per_hour=1000,
    max_close_per_5min=1000,
    symbol_cooldown_s=0,
    max_open_positions=2,
    max_notional_per_trade_usd=200.0,
    max_total_notional_usd=450.0,
    max_reduce_notional_per_day_usd=1e9,
    max_reduce_qty_per_day=1e9,
    disarm_on_burst=False,
)
"""The global caps bind, the rates do not."""
LIFE_US = PARAMS.permit_ttl_s * US
TINY = 1e-9
ACTIONS = ("ENTRY", "ENTRY", "ENTRY", "FULL_CLOSE_PROPOSED", "PARTIAL_50", "PARTIAL_25")

PLANS = st.lists(
    st.tuples(
        st.sampled_from(SYMBOLS),
        st.sampled_from(ACTIONS),
        st.sampled_from(["BUY", "BUY", "SELL"]),
        st.sampled_from([0.1, 1.0, 1.0, 1.5, 1.9, 2.5]),
        st.sampled_from([1, 1, 2]),
    ),
    min_size=1,
    max_size=3,
)
"""Symbol, action, side, quantity, copies."""
Plan = tuple[str, str, str, float, int]
SOON = st.sampled_from([0.1, 1.0, 6.0, 6.0, 6.0, 30.0])
FAULTS = st.sampled_from(["cut", "reply"])
HALTS = ("halt", "reduce")
WHAT = st.sampled_from(
    [
        *HALTS, "off", "of another type", "rearm", "rearm", "long", "stop", "gone", "go", "go", "pay", "delete",
        "foreign", "replay", "replay", "restart", "govern",
    ]
)  # fmt: skip


@dataclass
class Issued:
    """A permit, from its event, and its bytes.

    Attributes:
        symbol: the symbol.
        is_open: whether it opens.
        qty: that it permits.
        usd: its notional.
        at_us: when it was issued.
        raw: as its key held it; empty where that was gone when it was looked at.
        fill: what was filled, USD; None for nothing.
    """

    symbol: str
    is_open: bool
    qty: float
    usd: float
    at_us: int
    raw: str
    fill: float | None = None


@dataclass
class Ledger:
    """What has been seen of the streams.

    Attributes:
        issued: by plan id.
        last: of each stream, the newest id.
        qty: sum of the fills, by symbol.
        pnl, fees, paid: USD.
        foreign: ids of entries of the execution stream that the test wrote.
        named: plan ids that those name.
        ended: plan ids that have a result.
    """

    issued: dict[str, Issued] = field(default_factory=dict)
    last: dict[str, str] = field(default_factory=lambda: defaultdict(lambda: "0-0"))
    qty: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    pnl: float = 0.0
    fees: float = 0.0
    paid: float = ap.EQUITY_USD
    foreign: set[str] = field(default_factory=set)
    named: set[str] = field(default_factory=set)
    ended: set[str] = field(default_factory=set)
    n_fills: int = 0


def kill_state(client: Client) -> str:
    """HALT, REDUCE_ONLY or OFF, by the table of the contract."""
    if client.exists(LIVE.latch):
        return "HALT"
    value = client.get(LIVE.kill)
    return "OFF" if value in (None, "off") else "REDUCE_ONLY" if value == "reduce" else "HALT"


class Machine(RuleBasedStateMachine):
    """What happens, and the laws."""

    client: Client
    proxy: FaultProxy
    root: Path
    number = 0
    reached: dict[str, int]

    @initialize(count=st.integers(1, 2))
    def begin(self, count: int) -> None:
        """An empty server, prices, a flat portfolio, and an account."""
        self.client.flushall()
        self.proxy.heal()
        Machine.number += 1
        self.home = self.root / str(Machine.number)
        self.clock, self.seen, self.sent = SetClock(NOW), Ledger(), 0
        self.prices = dict.fromkeys(SYMBOLS, 100.0)
        self.priced = dict.fromkeys(SYMBOLS, NOW)
        self.stopped: set[str] = set()
        self.published: dict[str, float] = {}
        self.since: list[Issued] = []
        self.layers = [self.layer() for _ in range(count)]
        self.governor = self.governing()
        self.publish()
        for one in self.layers:
            one.settle()

    def layer(self) -> ap.Applying:
        """An apply layer at its start."""
        return ap.applying(Store(self.proxy.url, timeout_s=2.0), clock=self.clock)

    def governing(self) -> gov.Governing:
        """The governor at its start."""
        store = Store(self.proxy.url, timeout_s=2.0)
        return gov.governing(store, self.home, "g", clock=self.clock, params=PARAMS, journalled=False)

    # ---- what other programs do

    def publish(self) -> None:
        """Prices of those that have not stopped, and the portfolio at these prices."""
        now = self.clock.now()
        for s in SYMBOLS:
            if s not in self.stopped:
                gov.market(self.client, s, self.prices[s], now)
                self.priced[s] = now
        worth = {s: abs(q) * self.prices[s] for s, q in self.seen.qty.items() if q}
        gov.portfolio(self.client, now, sum(worth.values()), len(worth))
        self.published, self.since = worth, []

    @rule(plans=PLANS, after_s=SOON, works=st.integers(0, 3))
    def trade(self, plans: list[Plan], after_s: float, works: int) -> None:
        """A while later some plans, the governor's answers, and maybe cycles of the apply layers."""
        self.wait(after_s)
        self.propose(plans)
        for i in range(works):
            self.step(i, "none", 0)

    @rule(plans=PLANS, after_s=SOON, i=st.integers(0, 1), fault=FAULTS, k=st.integers(0, 24), restarts=st.booleans())
    def trade_with_a_fault(self, plans: list[Plan], after_s: float, i: int, fault: str, k: int, restarts: bool) -> None:
        """The same with a fault in a cycle, then maybe another process in its place, and a cycle of the other."""
        self.wait(after_s)
        self.propose(plans)
        self.step(i, fault, k)
        if restarts:
            i %= len(self.layers)
            self.layers[i].crash()
            self.layers[i] = self.layer()
        self.step(i + 1, "none", 0)

    @rule(
        plans=PLANS, what=WHAT, i=st.integers(0, 1), after_s=st.sampled_from([0.0, 0.5, 55.0, 59.9, 60.0, 64.0, 70.0])
    )
    def trade_and_disturb(self, plans: list[Plan], what: str, i: int, after_s: float) -> None:
        """Plans are permitted, then something happens, and the apply layer comes to them sooner or later."""
        self.wait(6.0)
        self.propose(plans)
        self.disturb(what, i)
        self.step(i, "none", 0)
        self.wait(after_s)
        self.step(i + 1, "none", 0)
        if what in HALTS:
            self.disturb("rearm", i)
            self.step(i, "none", 0)

    @rule(what=WHAT, i=st.integers(0, 2))
    def disturb(self, what: str, i: int) -> None:
        """Something that is rarer than work."""
        acts: dict[str, Callable[[], None]] = {
            "long": lambda: self.wait(4000.0),
            "stop": lambda: self.source(SYMBOLS[i], "stop"),
            "gone": lambda: self.source(SYMBOLS[i], "gone"),
            "go": lambda: self.source(SYMBOLS[i], "go"),
            "pay": lambda: self.pay((100.0, -30.0, 0.25)[i]),
            "delete": lambda: self.delete_a_permit(i + 1),
            "foreign": lambda: self.foreign_fill(i, (0.1, 5.0, 0.1)[i]),
            "replay": lambda: self.replay(i + 1),
            "restart": self.restart_the_governor,
            "govern": lambda: self.govern(("cut", "reply")[i % 2], 7 * i),
        }
        if what in acts:
            acts[what]()
        else:
            self.kill(what)

    def propose(self, plans: list[Plan]) -> None:
        """Plans, and the governor's answers."""
        for symbol, action, side, qty, copies in plans:
            plan_id, self.sent = f"p{self.sent}", self.sent + 1
            own: dict[str, object] = {"side": side, "qty": qty, "price": 100, "kill_score": 0.1}
            for _ in range(copies):
                now = f"{self.clock.now():.6f}"
                gov.plan(self.client, plan_id, symbol, action, now, **(own if action == "ENTRY" else {}))
        self.govern("none", 0)

    def wait(self, seconds: float) -> None:
        """Time goes by; permits end, and prices and portfolio are written again."""
        self.clock.set(self.clock.now() + seconds)
        now_us = round(self.clock.now() * US)
        for plan_id, one in self.seen.issued.items():
            if now_us >= one.at_us + LIFE_US:
                self.client.delete(LIVE.permit(plan_id))
        self.publish()

    @rule(symbol=st.sampled_from(SYMBOLS), usd=st.sampled_from([80.0, 99.5, 100.0, 101.0, 130.0]))
    def move(self, symbol: str, usd: float) -> None:
        """A price moves."""
        self.prices[symbol] = usd
        if symbol not in self.stopped:
            gov.market(self.client, symbol, usd, self.clock.now())
            self.priced[symbol] = self.clock.now()

    def source(self, symbol: str, how: str) -> None:
        """A symbol's prices stop coming, vanish, or come again."""
        if how == "go":
            self.stopped.discard(symbol)
            self.move(symbol, self.prices[symbol])
            return
        self.stopped.add(symbol)
        if how == "gone":
            self.client.delete(LIVE.market(symbol))
            self.priced[symbol] = 0.0

    def kill(self, value: str) -> None:
        """The kill key is set to something, or taken away with its latch."""
        self.client.delete(LIVE.kill)
        if value == "of another type":
            self.client.hset(LIVE.kill, "a", "b")
            for i in range(len(self.layers)):
                self.step(i, "none", 0, state="HALT")
            self.client.delete(LIVE.kill)
        elif value == "rearm":
            self.clock.set(self.clock.now() + 0.1)
            gov.rearm(self.client, self.clock.now())
        else:
            self.client.set(LIVE.kill, value)

    def pay(self, usd: float) -> None:
        """Money is paid in or out."""
        self.client.xadd(LIVE.transfers, {"usd": repr(usd), "by": "tester", "why": "test"})
        self.seen.paid += usd

    def delete_a_permit(self, back: int) -> None:
        """A permit's key vanishes."""
        live = [p for p in self.seen.issued if self.client.exists(LIVE.permit(p))]
        if len(live) >= back:
            self.client.delete(LIVE.permit(live[-back]))

    def foreign_fill(self, back: int, qty: float) -> None:
        """Another program reports a fill, of no permit or of one."""
        ids = list(self.seen.issued)
        plan_id = ids[-back] if 0 < back <= len(ids) else "nobody"
        told = {"plan_id": plan_id, "symbol": SYMBOLS[0], "filled_qty": repr(qty), "ts": str(int(self.clock.now()))}
        self.seen.foreign.add(self.client.xadd(ap.FILLS, told))
        self.seen.named.add(plan_id)

    def replay(self, back: int) -> None:
        """The bytes of a permit that was used up are put back, and its event comes again, within an hour."""
        since_us = round((self.clock.now() - 3000.0) * US)
        done = [p for p, one in self.seen.issued.items() if one.fill is not None and one.raw and one.at_us > since_us]
        if len(done) >= back:
            ap.put_back(self.client, done[-back], self.seen.issued[done[-back]].raw)
            self.take()

    # ---- what the services do

    def govern(self, fault: str, k: int) -> None:
        """A cycle of the governor."""
        self.fault(self.governor.store, fault, k)
        self.governor.once()
        self.proxy.heal()
        self.take()

    @rule(i=st.integers(0, 1), fault=st.sampled_from(["none", "none", "none", "cut", "reply"]), k=st.integers(0, 24))
    def work(self, i: int, fault: str, k: int) -> None:
        """A cycle of an apply layer."""
        self.step(i, fault, k)

    def restart_the_governor(self) -> None:
        """Another process in its place."""
        self.governor.crash()
        self.governor = self.governing()

    def fault(self, store: Store, fault: str, k: int) -> None:
        """The connection will be cut at a command, or a reply be lost."""
        if fault == "none":
            return
        store.close()
        if fault == "cut":
            self.proxy.cut_after(k)
        else:
            self.proxy.cut_reply_after(k + 1)

    def step(self, i: int, fault: str, k: int, state: str = "") -> None:
        """An apply layer's cycle, held against the laws."""
        one = self.layers[i % len(self.layers)]
        state = state or kill_state(self.client)
        before = {p for p in self.seen.issued if self.client.exists(LIVE.permit(p))}
        self.fault(one.store, fault, k)
        ended = one.once()
        self.proxy.heal()
        assert ended or fault != "none", one.loop.last_error
        self.count(f"{fault}: {'ended' if ended else 'given up'}")
        after = {p for p in self.seen.issued if self.client.exists(LIVE.permit(p))}
        self.take(before, after, state)

    # ---- laws

    def count(self, what: str) -> None:
        """For the summary."""
        self.reached[what] = self.reached.get(what, 0) + 1

    def new(self, stream: str) -> list[tuple[str, dict[str, str]]]:
        """Entries since the last ones."""
        found: list[tuple[str, dict[str, str]]] = self.client.xrange(stream, f"({self.seen.last[stream]}")
        if found:
            self.seen.last[stream] = found[-1][0]
        return found

    def take(self, before: set[str] = frozenset(), after: set[str] = frozenset(), state: str = "") -> None:  # type: ignore[assignment]
        """What is new in the streams, held against the laws."""
        for _, e in self.new(gov.EVENTS):
            if e["event"] == "PERMIT" and e["plan_id"] not in self.seen.issued:
                self.issue(e)
        fills = [(i, f) for i, f in self.new(ap.FILLS) if i not in self.seen.foreign]
        results = [r for _, r in self.new(ap.RESULTS)]
        for _, f in fills:
            self.filled(f, before, after, state)
        for r in results:
            self.count(f"{r['fate']} {r['error']}".strip())
            assert r["plan_id"] not in self.seen.ended, f"a second result: {r}"
            self.seen.ended.add(r["plan_id"])
            again = apply_fields(applied(r), apply_params(r))
            assert {n: r[n] for n in again} == again, "a result is not what its record says"
            if r["consumed"] == "1":
                assert r["plan_id"] in before - after, f"consumed, but its key was not there, or still is: {r}"
                assert state != "HALT", f"(26) consumed at HALT: {r}"
        assert {r["plan_id"] for r in results if r["executed"] == "true"} == {f["plan_id"] for _, f in fills}
        assert before - after == {r["plan_id"] for r in results if r["consumed"] == "1"}, "a permit was lost"

    def issue(self, e: dict[str, str]) -> None:
        """One PERMIT: the caps, from fills at the marks of the last portfolio."""
        one = Issued(
            e["symbol"], e["movement"] == "open", float(e["computed_qty"]), float(e["computed_notional"]),
            int(e["issued_us"]), self.client.get(LIVE.permit(e["plan_id"])) or "",
        )  # fmt: skip
        self.count(f"permit {e['movement']}")
        if one.is_open:
            assert one.usd <= PARAMS.max_notional_per_trade_usd + TINY
            waiting = [
                w for w in self.seen.issued.values() if w.is_open and w.fill is None and one.at_us < w.at_us + LIFE_US
            ]
            recent = [w for w in self.since if w.is_open]
            total = sum(self.published.values()) + sum(w.fill or 0.0 for w in recent) + sum(w.usd for w in waiting)
            assert total + one.usd <= PARAMS.max_total_notional_usd + 1e-6, f"(42) {total} USD and {e}"
            held = set(self.published) | {w.symbol for w in (*recent, *waiting)}
            assert one.symbol in held or len(held) < PARAMS.max_open_positions, f"(42) {held} and {e}"
        self.seen.issued[e["plan_id"]] = one

    def filled(self, f: dict[str, str], before: set[str], after: set[str], state: str) -> None:
        """One fill."""
        plan_id, symbol = f["plan_id"], f["symbol"]
        assert plan_id in self.seen.issued, f"a fill without a permit: {f}"
        one, now_us = self.seen.issued[plan_id], round(self.clock.now() * US)
        assert one.fill is None, f"a permit filled twice: {f}"
        assert plan_id in before - after, f"filled, but its key was not there, or still is: {f}"
        assert symbol == one.symbol
        assert now_us < one.at_us + LIFE_US, f"filled after its time: {f}"
        qty, price = ap.signed_qty(f), float(f["price"])
        assert price == self.prices[symbol], "not the market's price"
        assert int(self.clock.now()) - int(self.priced[symbol]) <= 60, f"filled at an old price: {f}"
        assert abs(qty) <= one.qty * (1 + TINY), f"more than was permitted: {f}"
        held = self.seen.qty[symbol]
        if one.is_open:
            assert abs(qty) * price <= one.usd * (1 + TINY), f"dearer than was permitted: {f}"
            assert state == "OFF", f"(26) an open at {state}: {f}"
        else:
            assert held * qty < 0.0, f"a close that adds: {f}"
            assert abs(qty) <= abs(held), f"a close past zero: {f}"
            assert state != "HALT", f"(26) a close at HALT: {f}"
        one.fill = abs(qty) * price
        self.since.append(one)
        self.seen.n_fills += 1
        self.seen.qty[symbol] = held + qty
        self.seen.pnl += float(f.get("pnl_usd", 0.0))
        self.seen.fees += float(f["fee_usd"])

    @invariant()
    def the_account_is_what_the_fills_say(self) -> None:
        """Positions are the sum of fills bit for bit, money is conserved, permits add up, nothing comes unseen."""
        if not hasattr(self, "seen"):
            return
        for stream in (gov.EVENTS, ap.FILLS, ap.RESULTS):
            unseen = [i for i, _ in self.client.xrange(stream, f"({self.seen.last[stream]}")]
            assert set(unseen) <= self.seen.foreign, f"an entry of {stream} comes but from no cycle"
        a = ap.account(self.client)
        assert {s: h.qty for s, h in a.held.items() if h.qty} == {s: q for s, q in self.seen.qty.items() if q}
        for s, h in a.held.items():
            standing = self.client.hget(LIVE.position(s), "position_amt")
            assert standing is None if h.qty == 0.0 and standing is None else float(standing) == h.qty
        assert abs(a.realised_usd - self.seen.pnl) < 1e-6
        assert abs(a.fees_usd - self.seen.fees) < 1e-6
        assert abs(a.balance_usd - (a.paid_in_usd + a.realised_usd - a.fees_usd)) < 1e-6, "money is lost or made"
        assert ap.balance(self.client) == a.balance_usd
        c = a.permits.counts
        assert c.issued <= len(self.seen.issued)
        assert c.outstanding == sum(one.is_outstanding for one in a.permits.permits.values()), "permits do not add up"
        assert c.without_permit + c.above_permit <= len(self.seen.foreign), "its own fills are none of these"

    def teardown(self) -> None:
        """Faults stop: what still can be is filled, the rest expires, and all is accounted for."""
        if not hasattr(self, "layers"):
            return
        try:
            self.proxy.heal()
            self.kill("rearm")
            self.stopped.clear()
            self.publish()
            self.govern("none", 0)
            self.governor.drain()
            self.take()
            for _ in range(2):
                for i in range(len(self.layers)):
                    self.step(i, "none", 0)
            self.the_account_is_what_the_fills_say()
            now_us = round(self.clock.now() * US)
            for plan_id, one in self.seen.issued.items():
                young = now_us < one.at_us + LIFE_US
                lives = self.client.exists(LIVE.permit(plan_id)) and plan_id not in self.seen.ended | self.seen.named
                assert not (young and lives), f"{plan_id} still waits"
            self.wait(70.0)
            for _ in range(2):
                for i in range(len(self.layers)):
                    self.step(i, "none", 0)
            self.all_told()
        finally:
            self.governor.crash()
            for layer in self.layers:
                layer.crash()
            shutil.rmtree(self.home, ignore_errors=True)

    def all_told(self) -> None:
        """Every permit has its result, but one that another program says it used up; every transfer is in."""
        a = ap.account(self.client)
        assert a.paid_in_usd == pytest.approx(self.seen.paid)
        c = a.permits.counts
        assert (c.issued, c.outstanding) == (len(self.seen.issued), 0)
        assert c.fills == self.seen.n_fills + len(self.seen.foreign)
        assert set(self.seen.issued) - self.seen.named <= self.seen.ended <= set(self.seen.issued)
        assert all(p in self.seen.ended for p, one in self.seen.issued.items() if one.fill is not None)


@pytest.fixture
def machine(one_server: EmbeddedServer, one_client: Client) -> Iterator[type[Machine]]:
    """What a machine needs."""
    memory = Path("/dev/shm")
    root = Path(tempfile.mkdtemp(prefix="qa-", dir=memory if memory.is_dir() else None))
    with FaultProxy(str(one_server.socket)) as proxy:
        Machine.client, Machine.proxy, Machine.root, Machine.reached = one_client, proxy, root, {}
        yield Machine
    shutil.rmtree(root, ignore_errors=True)


@pytest.mark.timeout(900)  # a failure is made small for some minutes
def test_whatever_happens_to_permits(machine: type[Machine], capsys: pytest.CaptureFixture[str]) -> None:
    """(26, 27, 42) Plans of three symbols, prices that move, stop and vanish, the kill switch, restarts, cuts at any
    command, lost replies, payments, deleted permits, replays and foreign fills, in any order: at most one fill a
    permit, none that the kill switch forbids, none above its permit, no cap exceeded, money conserved, and in the end
    every permit is accounted for."""
    profile = settings()
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=profile.max_examples * 4 // 10,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    with capsys.disabled():
        print("\n" + ", ".join(f"{n} {what}" for what, n in sorted(machine.reached.items())), end="")
    for what in ("filled", "expired permit_expired", "permit open", "permit close"):
        assert machine.reached.get(what, 0) > 0, f"no {what}: {machine.reached}"
