"""Apply layers and a fault at every command, and every interleaving of two: one fill a permit, whatever happens.

A scenario of a few permits is run through a proxy that ends the connection after the k-th command, or has the k-th
carried out and keeps its reply, or swallows it, for every k; at the end of it and after every cycle the laws are looked
at from outside. Two apply layers are run against each other: one is held at each of its calls while the other runs to
its end. A script whose sender has given up is carried out later, at any of the calls that follow.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from quantum_alloc.adapters import consume
from quantum_alloc.adapters.clock import SetClock
from quantum_alloc.adapters.effects import Command, Reply
from quantum_alloc.adapters.embedded import EmbeddedServer
from quantum_alloc.adapters.keys import LIVE
from quantum_alloc.adapters.store import Script, Store, StoreError
from quantum_alloc.core.limits import US
from tests.conftest import CI
from tests.support import applying as ap
from tests.support import governing as gov
from tests.support.applying import NOW, Applying, Venue
from tests.support.faulting import Image
from tests.support.worlds import Client
from tests.tools.fault_proxy import FaultProxy

BTC, ETH = "BTCUSDT", "ETHUSDT"
IDS = ("p1", "p2", "p3", "p4")
SNAPSHOT_AT, SIMULATED_AT = 3, 5  # of the script's arguments


def tell(capsys: pytest.CaptureFixture[str], text: str) -> None:
    """Print a line that is seen."""
    with capsys.disabled():
        print(text, file=sys.stderr)


@pytest.fixture
def venue(one_server: EmbeddedServer, one_client: Client, tmp_path: Path) -> Iterator[Venue]:
    """An open account that holds 2 BTC, and permits of four plans: an open and a close of BTC, a second open of it,
    and an open of ETH."""
    one = Venue(one_server, one_client, tmp_path, SetClock(NOW))
    one.price(BTC, 100.0)
    one.price(ETH, 50.0)
    one.apply.settle()
    one.filled("p0", BTC, qty=2)
    one.wait(1)
    one.permit("p1", BTC)
    one.permit("p2", BTC, "PARTIAL_50")
    one.permit("p3", BTC, qty=0.5)
    one.permit("p4", ETH, side="SELL")
    one_client.xadd(LIVE.transfers, {"usd": "50"})
    yield one
    one.close()


@pytest.fixture
def image(venue: Venue) -> Iterator[Image]:
    """The venue's server, to be put back."""
    found = Image(venue.client, venue.server.url)
    yield found
    found.close()


@pytest.fixture
def proxy(one_server: EmbeddedServer) -> Iterator[FaultProxy]:
    """A fault proxy in front of the server."""
    with FaultProxy(str(one_server.socket)) as found:
        yield found


def whole(client: Client, what: str) -> None:
    """Each permit is consumed with one fill and one result, in the order of issue; the money is there."""
    assert ap.permits(client) == {}, what
    assert [f["plan_id"] for f in ap.fills(client)] == ["p0", *IDS], what
    assert ap.fates(client) == dict.fromkeys(("p0", *IDS), "filled"), what
    ap.check(client)
    a = ap.account(client)
    assert {s: h.qty for s, h in a.held.items()} == {BTC: 2.5, ETH: -1.0}, what
    assert a.paid_in_usd == ap.EQUITY_USD + 50.0, what
    c = a.permits.counts
    assert (c.issued, c.consumed, c.without_permit, c.above_permit) == (5, 5, 0, 0), what


def through(proxy: FaultProxy, clock: SetClock) -> Applying:
    """An apply layer behind the proxy."""
    return ap.applying(Store(proxy.url, timeout_s=0.25), clock=clock)


def moments(one: Applying, client: Client) -> list[Callable[[], object]]:
    """The scenario: HALT before the first cycle, then off and rearmed, and three more."""

    def rearmed() -> None:
        client.set(LIVE.kill, "off")
        client.delete(LIVE.latch)

    return [lambda: client.set(LIVE.kill, "1"), one.once, rearmed, *[one.once] * 3]


FAULTS = ("cut", "reply", "swallowed")


@pytest.mark.parametrize("fresh", [False, True], ids=["goes on", "starts anew"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_at_every_command(
    fault: str, fresh: bool, venue: Venue, image: Image, proxy: FaultProxy, capsys: pytest.CaptureFixture[str]
) -> None:
    """The connection ends after the k-th command, or its reply is lost, for every k of a scenario with a HALT in it;
    then the same apply layer goes on, or another begins: each permit is consumed once, with one fill and one result,
    and nothing half-done is ever seen."""
    client, clock = venue.client, venue.clock
    assert clock is not None
    proxy.reset()
    one = through(proxy, clock)
    for act in moments(one, client):
        act()
    one.crash()
    total = len(proxy.log)
    whole(client, "no fault")
    assert total >= 20
    step = 7 if fault == "swallowed" and not CI else 1  # each of these costs a time-out
    for k in range(1 if fault != "cut" else 0, total + 1, step):
        image.put_back()
        one, what = through(proxy, clock), f"{fault} {k} of {total}"
        {"cut": proxy.cut_after, "reply": proxy.cut_reply_after, "swallowed": proxy.drop_reply}[fault](k)
        halted = True
        for n, act in enumerate(moments(one, client)):
            act()
            halted = n < 2
            ap.check(client)
            assert not halted or len(ap.fills(client)) == 1, f"{what}: a fill at HALT"
        proxy.heal()
        if fresh:
            one.crash()
            one = through(proxy, clock)
        one.settle(4)
        one.crash()
        whole(client, what)
    tell(capsys, f"{fault}: {total} commands")


@pytest.mark.parametrize("fault", ["cut", "reply"])
def test_a_fault_at_every_command_of_the_opening(
    fault: str, venue: Venue, proxy: FaultProxy, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same while the account is opened with a position and a balance that are there: opened once, with them."""
    client, clock = venue.client, venue.clock
    assert clock is not None

    def begin() -> None:
        client.flushall()
        gov.market(client, BTC, 100.0, NOW)
        client.hset(LIVE.position(BTC), mapping={"position_amt": "3", "entry_price": "90", "ts_epoch": str(NOW)})
        client.hset(LIVE.balance, "balance", "500")
        client.xadd(LIVE.transfers, {"usd": "7"})

    begin()
    proxy.reset()
    one = through(proxy, clock)
    one.settle(2)
    one.crash()
    total = len(proxy.log)
    for k in range(1, total + 1):
        begin()
        one = through(proxy, clock)
        (proxy.cut_after if fault == "cut" else proxy.cut_reply_after)(k)
        for _ in range(2):
            one.once()
            assert not client.exists(LIVE.apply_state) or BTC in ap.account(client).held
        proxy.heal()
        one.settle(3)
        one.crash()
        a = ap.account(client)
        assert (a.balance_usd, a.paid_in_usd, a.held[BTC].qty) == (507.0, 507.0, 3.0), f"{fault} {k} of {total}"
    tell(capsys, f"opening, {fault}: {total} commands")


# ---- two at once


class Held(Store):
    """A store that does something at its n-th call, before it is sent."""

    def __init__(self, url: str, clock: SetClock) -> None:
        """Nothing is sent yet."""
        super().__init__(url, timeout_s=5.0)
        self.clock = clock
        self.calls = 0
        self.names: list[str] = []
        self.at: int | None = None
        self.act: Callable[[], object] = lambda: None
        self.late: Callable[[], object] | None = None
        self.defers = False

    def _arrive(self, what: str) -> None:
        self.calls += 1
        self.names.append(what)
        if self.at == self.calls:
            self.at = None
            self.act()

    def read(self, commands: Sequence[Command], wait_s: float = 0.0) -> list[Reply]:
        """A call."""
        self._arrive(str(commands[1][0] if commands[0][0] == "MULTI" else commands[0][0]))
        return super().read(commands, wait_s)

    def run(self, script: Script, keys: Sequence[str], args: Sequence[str | bytes | int], connection: int) -> Reply:
        """A call; where told to, its sender gives up, and the server carries it out when ``late`` is called."""
        self._arrive("script")
        if self.defers:
            self.defers = False
            told = list(args)

            def carried_out() -> None:
                told[SIMULATED_AT] = round(self.clock.now() * US)
                Store.read(self, [("EVAL", script.text, len(keys), *keys, *told)])

            self.late = carried_out
            self.close()
            raise StoreError("timeout", "the reply is late")
        return super().run(script, keys, args, connection)


def held(venue: Venue) -> tuple[Held, Applying]:
    """An apply layer whose calls can be told."""
    assert venue.clock is not None
    store = Held(venue.server.url, venue.clock)
    return store, ap.applying(store, clock=venue.clock)


def test_two_at_once(venue: Venue, image: Image, capsys: pytest.CaptureFixture[str]) -> None:
    """One is held at each of its calls, in each of its cycles, while another runs to its end on the same account:
    each permit has one fill, and both go on afterwards."""
    seen: list[str] = []
    for restarts in (False, True):
        for n in range(1, 14):
            image.put_back()
            store, first = held(venue)
            second = venue.another()
            if not restarts:  # at HALT it reads all and fills nothing: what it had filled it would not fill again
                venue.client.set(LIVE.kill, "1")
                second.settle(0)
                image.put_back()
            store.at, store.act = n, second.settle
            for _ in range(4):
                first.once()
                ap.check(venue.client)
            what = f"held at call {n}: {store.names[n - 1] if len(store.names) >= n else 'none'}"
            for one in (second, first, second):
                one.settle()
                ap.check(venue.client)
            whole(venue.client, what)
            seen.append(store.names[n - 1])
            first.crash()
            second.crash()
    tell(capsys, f"{len(seen)} interleavings")
    assert {"TIME", "script", "XREVRANGE"} <= set(seen)


def test_two_that_take_turns(venue: Venue, image: Image) -> None:
    """Two on one account, one step each in turn, permits coming all the while: one fill each, and both work on."""
    client = venue.client
    first, second = venue.another(), venue.another()
    for n in range(20):
        if n % 3 == 0:
            venue.permit(f"q{n}", (BTC, ETH)[n % 2], "PARTIAL_25" if n in (6, 12) else "ENTRY")
        for one in (first, second):
            assert one.once(), one.loop.last_error
            ap.check(client)
    assert set(ap.fates(client).values()) == {"filled"}
    assert ap.permits(client) == {}
    c = ap.account(client).permits.counts
    assert (c.consumed, c.without_permit, c.above_permit) == (c.issued, 0, 0)
    first.crash()
    second.crash()


@pytest.mark.parametrize("delay_s", [0.0, 2.0], ids=["at once", "after 2 s"])
def test_a_script_that_arrives_late(delay_s: float, venue: Venue, image: Image) -> None:
    """An apply layer's patience ends while its script is under way; the server carries it out at any of the calls that
    follow, of the same apply layer or of the next: one fill each."""
    at = venue.now
    for after in range(1, 9):
        for fresh in (False, True):
            image.put_back()
            store, one = held(venue)
            store.clock.set(at)
            store.defers = True
            while store.late is None:
                assert not one.once() or store.late is None
            late, what = store.late, f"carried out at call {after}"
            store.clock.set(at + delay_s)
            if fresh:
                one.crash()
                store, one = held(venue)
            store.at, store.act = store.calls + after, late
            for _ in range(4):
                one.once()
                ap.check(venue.client)
            one.settle()
            if store.at is not None:
                late()
            one.settle()
            whole(venue.client, what)
            one.crash()


# ---- the script alone


def prepared(venue: Venue) -> tuple[Held, list[str], list[str | bytes | int]]:
    """Keys and arguments of a script that would consume all permits now, not sent."""
    store, one = held(venue)
    caught: list[tuple[list[str], list[str | bytes | int]]] = []

    def catch(script: Script, keys: Sequence[str], args: Sequence[str | bytes | int], connection: int) -> Reply:
        caught.append((list(keys), list(args)))
        raise StoreError("timeout", "caught")

    store.run = catch  # type: ignore[method-assign]
    assert not one.once()
    keys, args = caught[0]
    return store, keys, args


def sent(venue: Venue, keys: Sequence[str], args: Sequence[str | bytes | int]) -> str:
    """What the script answers first."""
    reply = venue.client.eval(consume.CONSUME.text, len(keys), *keys, *args)
    return str(reply[0])


def standing(client: Client) -> dict[str, object]:
    """Everything that a server holds."""
    found: dict[str, object] = {}
    for key in sorted(client.keys("*")):
        read = {"hash": client.hgetall, "stream": client.xrange, "set": client.smembers}.get(
            client.type(key), client.get
        )
        found[key] = read(key)
    return found


MOVES: tuple[tuple[str, Command], ...] = (
    ("kill", ("SET", LIVE.kill, "1")),
    ("kill", ("SET", LIVE.kill, "reduce")),
    ("kill", ("SET", LIVE.kill, "off")),
    ("kill", ("SET", LIVE.kill, "")),
    ("kill", ("HSET", LIVE.kill, "a", "b")),
    ("latch", ("HSET", LIVE.latch, "state", "HALT")),
    ("latch", ("SET", LIVE.latch, "x")),
    ("state", ("HSET", LIVE.apply_state, "_rev", "99")),
    ("state", ("HDEL", LIVE.apply_state, "_rev")),
    ("state", ("DEL", LIVE.apply_state)),
    ("permit", ("DEL", LIVE.permit("p1"))),
    ("permit", ("SET", LIVE.permit("p4"), "x")),
    ("permit", ("APPEND", LIVE.permit("p2"), " ")),
)  # fmt: skip


@pytest.mark.parametrize(("word", "move"), MOVES, ids=[f"{n}-{m[0]}" for n, m in enumerate(MOVES)])
def test_what_moved_is_refused(word: str, move: Command, venue: Venue) -> None:
    """Anything that it was decided on is not as it was: nothing is written."""
    store, keys, args = prepared(venue)
    venue.client.execute_command(*move)
    before = standing(venue.client)
    assert sent(venue, keys, args) == word
    assert standing(venue.client) == before
    store.close()


@pytest.mark.parametrize("what", ["permit", "type"])
def test_a_key_that_turned_into_another(what: str, venue: Venue) -> None:
    """A permit, or a key that is written, is of another type by then."""
    store, keys, args = prepared(venue)
    key = LIVE.permit("p1") if what == "permit" else ap.FILLS
    venue.client.delete(key)
    venue.client.hset(key, "a", "b")
    assert sent(venue, keys, args) == what
    assert len(ap.results(venue.client)) == 1
    store.close()


@pytest.mark.parametrize(("late_us", "word"), [(0, "ok"), (800_000, "ok"), (800_001, "old")])
def test_an_old_snapshot_is_refused(late_us: int, word: str, venue: Venue) -> None:
    """A script that arrives more than 800 ms after its snapshot writes nothing."""
    store, keys, args = prepared(venue)
    assert args[SIMULATED_AT] == args[SNAPSHOT_AT] == round(venue.now * US)
    args[SIMULATED_AT] = int(args[SNAPSHOT_AT]) + late_us
    assert sent(venue, keys, args) == word
    assert len(ap.fills(venue.client)) == (5 if word == "ok" else 1)
    store.close()


def test_the_server_s_own_clock_is_asked(venue: Venue) -> None:
    """Without a simulated clock the age of the snapshot is that of the server: one from years ago is refused."""
    store, keys, args = prepared(venue)
    args[SIMULATED_AT] = ""
    assert sent(venue, keys, args) == "old"
    store.close()


@pytest.mark.parametrize(("before_us", "word"), [(1, "ok"), (0, "permit"), (-1, "permit")])
def test_a_permit_whose_time_ends_on_the_way(before_us: int, word: str, venue: Venue) -> None:
    """The last microsecond of its life counts, the first after it does not."""
    store, keys, args = prepared(venue)
    untils = [int(a) for a in args[7:] if isinstance(a, int) and a > round(venue.now * US)]
    args[SNAPSHOT_AT] = args[SIMULATED_AT] = min(untils) - before_us
    assert sent(venue, keys, args) == word
    store.close()


# ---- the kill switch at every step

SWITCHES: tuple[tuple[str, Command], ...] = (
    ("halt", ("SET", LIVE.kill, "1")),
    ("reduce", ("SET", LIVE.kill, "reduce")),
    ("wrong type", ("HSET", LIVE.kill, "a", "b")),
    ("latch", ("HSET", LIVE.latch, "state", "HALT", "since", "1")),
)


@pytest.mark.parametrize(("name", "command"), SWITCHES, ids=[s[0] for s in SWITCHES])
def test_nothing_forbidden_is_consumed_after_the_kill_switch(
    name: str, command: Command, venue: Venue, image: Image
) -> None:
    """(26) It is set before any call of the apply layer: what had been consumed by then stays, and from then on
    nothing that it forbids is, whatever had been decided; after the rearm the rest is filled."""
    seen = set()
    for n in range(1, 12):
        image.put_back()
        store, one = held(venue)
        before: list[set[str]] = []

        def act(before: list[set[str]] = before) -> None:
            venue.client.execute_command(*command)
            before.append(set(ap.permits(venue.client)))

        store.at, store.act = n, act
        for _ in range(4):
            one.once()
            ap.check(venue.client)
        if not before:
            act()
        one.once()
        left = set(ap.permits(venue.client))
        allowed = {"p2"} if name == "reduce" else set()
        assert before[0] - left <= allowed, f"{name} before call {n}"
        assert name != "reduce" or "p2" not in left, "closes go on"
        seen.add(len(before[0]))
        venue.client.delete(LIVE.kill)
        gov.rearm(venue.client, venue.now)
        one.settle()
        assert ap.permits(venue.client) == {}
        assert set(ap.fates(venue.client).values()) == {"filled"}
        ap.check(venue.client)
        one.crash()
    assert seen == {0, 4}


def test_what_was_refused_is_due_again_at_once(venue: Venue) -> None:
    """The kill key changes between snapshot and script of a cycle in which marks were due: the very next cycle writes
    them."""
    store, one = held(venue)
    one.settle()
    before = venue.client.hget(LIVE.balance, "timestamp")
    venue.wait(6)
    store.at, store.act = store.calls + 3, lambda: venue.client.set(LIVE.kill, "off")
    assert one.once()
    assert store.names[-1] == "script"
    assert one.metrics.value("quantum_alloc_apply_refused_total", "kill") == 1.0
    assert venue.client.hget(LIVE.balance, "timestamp") == before
    assert one.once()
    assert venue.client.hget(LIVE.balance, "timestamp") == str(int(venue.now))
    one.crash()
