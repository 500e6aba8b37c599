"""What a failover loses, and what was never done: fills, consuming writes without an answer, refused commits.

Two servers on loopback, the second a replica of the first until ``part``: what the first is told from then on is lost
when everybody goes to the second.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from quantum_alloc.adapters.apply_wire import Account
from quantum_alloc.adapters.connecting import CODES
from quantum_alloc.adapters.effects import Reply
from quantum_alloc.adapters.embedded import EmbeddedServer
from quantum_alloc.adapters.keys import LIVE
from quantum_alloc.adapters.metrics import Metrics
from quantum_alloc.adapters.refusals import NEVER_BEGUN, never_began
from quantum_alloc.adapters.store import Script, Store, StoreError
from quantum_alloc.core.limits import US
from quantum_alloc.core.reconcile import REMEMBERED_MAX, Known, Reconciled, Stage, reconcile
from quantum_alloc.services.apply_lost import Memory
from tests.integration.test_locate import Told, swap
from tests.support import applying as ap
from tests.support import governing as gov
from tests.support.nodes import DATA, HOST, Group, Node
from tests.support.running import until
from tests.support.worlds import Client

S = "AAUSDT"
LOST = "quantum_alloc_account_writes_lost_total"


class Faulty(Store):
    """A store whose next script comes to trouble: its reply is lost, or it is, or it is refused."""

    fault: str = ""
    wanted: str = LIVE.permit("p1")

    def run(self, script: Script, keys: Sequence[str], args: Sequence[str | bytes | int], connection: int) -> Reply:
        """Run it, but for the fault."""
        fault = self.fault if self.wanted in keys else ""
        if not fault:
            return super().run(script, keys, args, connection)
        self.fault = ""
        if fault == "done":
            super().run(script, keys, args, connection)
        if fault in ("done", "not done"):
            self.close()  # as a time-out does
            raise StoreError("timeout", "no answer")
        raise StoreError(fault, "refused")


class Parted:
    """Two servers, a governor, and apply layers that all go where they are told.

    Attributes:
        first: the primary.
        second: its replica, until ``part``.
        governor: that permits.
    """

    def __init__(self, first: Node, second: Node, directory: Path) -> None:
        """Build the governor, and let the replica become level."""
        self.first, self.second = first, second
        self._told = Told(first.place)
        self._layers: list[ap.Applying] = []
        self.governor = gov.governing(self.store(), directory, "one", params=ap.WIDE)
        self.fresh(first.client)
        until(self.governor.once, 10, "a first cycle")

    def store(self) -> Faulty:
        """A store that goes where it is told."""
        return Faulty("redis://localhost", shown="the pair", locator=self._told)

    def layer(self, **settings: Any) -> ap.Applying:
        """One more apply layer."""
        made = ap.applying(self.store(), symbols=(S,), **settings)
        self._layers.append(made)
        until(made.once, 10, "a first cycle")
        return made

    @staticmethod
    def fresh(client: Client) -> None:
        """A price and a portfolio of now."""
        now = gov.server_now(client)
        gov.market(client, S, 100.0, now)
        gov.portfolio(client, now)

    def permit(self, plan_id: str = "p1") -> None:
        """A plan that is permitted, on both servers."""
        client = self.first.client
        gov.opening(client, plan_id, S, repr(gov.server_now(client)))
        until(lambda: self.governor.once() and client.exists(LIVE.permit(plan_id)), 10, "it is permitted")
        until(lambda: self.second.client.exists(LIVE.permit(plan_id)), 10, "the replica has the permit")

    def part(self) -> None:
        """The replica follows nobody any more."""
        self.second.client.replicaof("no", "one")

    def go(self) -> Client:
        """Everybody goes to the second server; a client of it."""
        self._told.place = self.second.place
        self.fresh(self.second.client)
        return self.second.client

    def fill(self, layer: ap.Applying) -> None:
        """A layer fills what is permitted, on the first server."""
        client = self.first.client
        until(lambda: layer.once() and len(ap.fills(client)) == 1, 10, "it is filled")

    def close(self) -> None:
        """Let go of everything."""
        for layer in self._layers:
            layer.crash()
        self.governor.crash()


@pytest.fixture
def parted(tmp_path: Path) -> Iterator[Parted]:
    """A primary and its replica, a governor, and no apply layer yet."""
    group = Group()
    first, second = group.add(Node(DATA)), group.add(Node(DATA))
    try:
        first.start().until_up()
        second.start().until_up()
        second.client.replicaof(HOST, first.port)
        until(lambda: second.client.info("replication")["master_link_status"] == "up", 20, "the replica is level")
        made = Parted(first, second, tmp_path)
        yield made
        made.close()
    finally:
        group.__exit__(None, None, None)


def fails(layer: ap.Applying, fault: str) -> None:
    """The next write that fills comes to a fault."""
    store = layer.store
    assert isinstance(store, Faulty)
    store.fault = fault
    until(lambda: not layer.once() and not store.fault, 10, "the write has failed")


def said(caplog: pytest.LogCaptureFixture, words: str) -> list[str]:
    """Lines of the log that hold some words."""
    return [r.getMessage() for r in caplog.records if words in r.getMessage()]


# ---- fills that another layer has made


def test_a_fill_that_another_layer_made_is_not_made_again(parted: Parted, caplog: pytest.LogCaptureFixture) -> None:
    """(27) Two apply layers: one fills, the other has seen it, the fill is lost, and the other one is the first on the
    new primary. The permit is not filled a second time; both say and count it."""
    a, b = parted.layer(), parted.layer()
    parted.permit()
    parted.part()
    parted.fill(a)
    until(b.once, 10, "the other one sees it")
    client = parted.go()
    assert (len(ap.fills(client)), len(ap.permits(client))) == (0, 1)
    until(lambda: b.once() and len(ap.results(client)) == 1, 10, "it has its result")
    for _ in range(3):
        a.once()
        b.once()
    assert (ap.fills(client), ap.fates(client)) == ([], {"p1": "permit_gone"})
    assert [x.metrics.value(LOST) >= 1.0 for x in (a, b)] == [True, True]
    lines = said(caplog, "has lost the last writes")
    assert len(lines) == 2
    assert all("used up in them: p1; these are not filled again" in line for line in lines)
    ap.check(client)


def test_a_revision_that_has_caught_up_hides_nothing(parted: Parted, caplog: pytest.LogCaptureFixture) -> None:
    """(27) Before a layer that knows of the fill looks, another one has written the account of the new primary past the
    revision that was lost, and the permit waits there for a price: it is not filled a second time."""
    a = parted.layer()
    parted.permit()
    parted.part()
    parted.fill(a)
    client = parted.go()
    client.delete(LIVE.market(S))
    c = parted.layer(mark_every_s=0.0)
    lost_at = int(parted.first.client.hget(LIVE.apply_state, "_rev"))
    until(lambda: c.once() and int(client.hget(LIVE.apply_state, "_rev")) > lost_at, 10, "the account is written on")
    assert ap.permits(client)
    assert a.once()
    parted.fresh(client)
    until(lambda: a.once() and ap.results(client), 10, "it has its result")
    assert (ap.fills(client), ap.fates(client)) == ([], {"p1": "permit_gone"})
    assert a.metrics.value(LOST) == 1.0
    assert "used up in them: p1;" in said(caplog, "has lost the last writes")[0]
    ap.check(client)


def test_a_second_fill_that_could_not_be_hindered_is_said(parted: Parted, caplog: pytest.LogCaptureFixture) -> None:
    """A layer that has not seen the fill makes it again on the new primary; the one that has does not say that it is
    not filled again, but that it was."""
    a = parted.layer()
    parted.permit()
    parted.part()
    parted.fill(a)
    client = parted.go()
    c = parted.layer()
    until(lambda: c.once() and len(ap.fills(client)) == 1, 10, "it is filled a second time")
    assert a.once()
    assert a.metrics.value(LOST) == 1.0
    (line,) = said(caplog, "has lost the last writes")
    assert "used up in them: none;" in line
    assert line.endswith("a second time: p1")
    for _ in range(3):
        assert a.once()
    assert a.metrics.value(LOST) == 1.0, "it is said once"


def test_what_the_account_forgets_is_not_lost(one_server: EmbeddedServer, caplog: pytest.LogCaptureFixture) -> None:
    """Of more permits than an account remembers the earliest leave it, and nothing is said; where one that must be
    there is missing, it is."""
    store, metrics = Store(one_server.url), Metrics("apply")
    store.ping()
    memory, now_us = Memory(store, metrics), round(ap.NOW * US)
    known = {
        f"p{n:04}": Known(S, 1.0, now_us, Stage.CONSUMED, ended_us=now_us - 6 * US + n)
        for n in range(REMEMBERED_MAX + 10)
    }
    account = Account(7, (), {}, 0.0, 0.0, permits=Reconciled(known))
    later = reconcile(account.permits, now_us)
    assert len(later.permits) == REMEMBERED_MAX
    memory.look(account, now_us, store.connections)
    memory.look(replace(account, permits=later), now_us, store.connections)
    assert (list(memory.barred), metrics.value(LOST), caplog.records) == ([], 0.0, [])
    rest = {p: one for p, one in later.permits.items() if p != "p1500"}
    memory.look(replace(account, permits=Reconciled({**rest, "q": known["p2009"]})), now_us, store.connections)
    assert (list(memory.barred), metrics.value(LOST)) == (["p1500"], 1.0)
    store.close()


# ---- writes whose answer did not come


@pytest.mark.parametrize("fault", ["done", "not done"])
def test_a_doubtful_write_on_a_server_that_is_gone(
    fault: str, parted: Parted, caplog: pytest.LogCaptureFixture
) -> None:
    """(27) The write that fills had no answer, and the server is another one: nobody knows whether it was done, so the
    permit is not filled again, and that is said and counted."""
    a = parted.layer()
    parted.permit()
    parted.part()
    fails(a, fault)
    assert len(ap.fills(parted.first.client)) == (fault == "done")
    client = parted.go()
    until(lambda: a.once() and ap.results(client), 10, "it has its result")
    for _ in range(3):
        assert a.once()
    assert (ap.fills(client), ap.fates(client)) == ([], {"p1": "permit_gone"})
    assert a.metrics.value(LOST) == 1.0
    (line,) = said(caplog, "was not answered")
    assert "may have used up: p1; these are not filled again" in line
    ap.check(client)


@pytest.mark.parametrize("fault", ["done", "not done"])
def test_a_doubtful_write_on_the_same_server(fault: str, parted: Parted, caplog: pytest.LogCaptureFixture) -> None:
    """The write had no answer, and the server is the same: it was done, or it is tried again; nothing is lost."""
    a = parted.layer()
    parted.permit()
    fails(a, fault)
    client = parted.first.client
    until(lambda: a.once() and ap.results(client), 10, "it has its result")
    for _ in range(3):
        assert a.once()
    assert (len(ap.fills(client)), ap.fates(client)) == (1, {"p1": "filled"})
    assert (a.metrics.value(LOST), said(caplog, "lost")) == (0.0, [])
    ap.check(client)


def test_a_server_that_does_not_tell_its_run(parted: Parted, caplog: pytest.LogCaptureFixture) -> None:
    """Without the right to INFO a layer works, and any other connection may be to another server: after a write without
    an answer its permit is not filled again."""
    client = parted.first.client
    client.execute_command("ACL", "SETUSER", "default", "-info")
    a = parted.layer()
    parted.permit()
    fails(a, "not done")
    until(lambda: a.once() and ap.results(client), 10, "it has its result")
    assert (ap.fills(client), ap.fates(client)) == ([], {"p1": "permit_gone"})
    assert (a.metrics.value(LOST), len(said(caplog, "was not answered"))) == (1.0, 1)


@pytest.mark.parametrize("code", ["READONLY", "MOVED", "conflict"])
def test_a_refused_write_on_a_server_that_is_gone(code: str, parted: Parted) -> None:
    """The write that fills was refused before it began, by a server that is left then: nothing was done, and the permit
    is filled on the new primary."""
    a = parted.layer()
    parted.permit()
    parted.part()
    fails(a, code)
    client = parted.go()
    until(lambda: a.once() and ap.results(client), 10, "it has its result")
    assert (len(ap.fills(client)), ap.fates(client)) == (1, {"p1": "filled"})
    assert a.metrics.value(LOST) == 0.0
    ap.check(client)


# ---- two servers in one cycle


def test_a_cycle_that_read_from_two_servers_writes_nothing(parted: Parted, monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams and account are read on the old primary, permits and prices on the new one: what comes of it is refused,
    and money that only the old one knew of is not in the account."""
    a = parted.layer()
    parted.permit()
    until(lambda: a.once() and len(ap.fills(parted.second.client)) == 1, 10, "both have the fill")
    a.settle()
    opened = ap.account(parted.first.client)
    until(lambda: ap.account(parted.second.client) == opened, 10, "both have the account")
    parted.part()
    client = parted.first.client
    client.xadd(LIVE.transfers, {"usd": "5000", "by": "me", "timestamp": str(gov.server_now(client))})
    reads, whole = [0], a.store.read_together

    def between(commands: Sequence[Any]) -> list[Reply]:
        replies = whole(commands)
        reads[0] += 1
        if reads[0] == 1:
            parted.go()
        return replies

    monkeypatch.setattr(a.store, "read_together", between)
    assert not a.once()
    assert a.metrics.values("quantum_alloc_store_errors_total") == {("conflict",): 1.0}
    assert ap.account(parted.second.client) == opened
    a.settle()
    assert ap.account(parted.second.client).paid_in_usd == ap.EQUITY_USD
    ap.check(parted.second.client)


# ---- commits that were refused


def test_a_commit_that_a_demoted_server_refused_uses_nothing_up(
    tmp_path: Path, parted: Parted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """(34) READONLY, met for real by the commit: nobody was told of a permit, so the plan is not put back as one whose
    permit is lost, but decided on the new primary."""
    g = parted.governor
    gov.opening(parted.first.client, "p1", S, repr(gov.server_now(parted.first.client)))
    until(lambda: parted.second.client.xlen(gov.PLANS) == 1, 10, "the replica has the plan")
    whole, errors = g.store.run, list[str]()

    def late(script: Script, keys: Sequence[str], args: Sequence[str | bytes | int], connection: int) -> Reply:
        if not errors and LIVE.permit("p1") in keys:
            swap(parted.first, parted.second)
            parted.go()
        try:
            return whole(script, keys, args, connection)
        except StoreError as error:
            errors.append(error.code)
            raise

    monkeypatch.setattr(g.store, "run", late)
    assert not g.once()
    client = parted.second.client
    until(lambda: g.once() and gov.events(client, "PERMIT"), 20, "the plan is answered")
    assert errors == ["READONLY"]
    assert [(e["event"], e["reason"]) for e in gov.events(client) if e["plan_id"] == "p1"] == [("PERMIT", "ok")]
    assert client.exists(LIVE.permit("p1"))
    assert [e.plan_id for e in gov.journalled(tmp_path) if e.is_done] == ["p1"]


@pytest.mark.parametrize("code", sorted(CODES - {"journal", "evicting"}))
def test_an_intent_is_void_where_it_is_certain(
    code: str, one_server: EmbeddedServer, one_client: Client, tmp_path: Path
) -> None:
    """(34) A refusal before the commit has begun closes the journal's intent at once; after any other trouble it stays
    open, until the store says what became of it."""
    store = Faulty(one_server.url)
    g = gov.governing(store, tmp_path, "one", params=ap.WIDE)
    gov.portfolio(one_client, gov.server_now(one_client))
    gov.opening(one_client, "p1", S, repr(gov.server_now(one_client)))
    store.fault = code
    until(lambda: not g.once() and store.fault == "", 10, "the commit is refused")
    is_open = [e.plan_id for batch in g.keeper.journal.unresolved.values() for e in batch] == ["p1"]
    in_file = [e.plan_id for e in gov.journalled(tmp_path)] == ["p1"]
    g.crash()
    assert (is_open, in_file) == ((False, False) if code in NEVER_BEGUN else (True, True))


def limited(client: Client) -> None:
    """Room for one more megabyte."""
    client.config_set("maxmemory", int(client.info("memory")["used_memory"]) + (1 << 20))


def test_a_script_that_has_begun_is_not_stopped_by_memory(any_server: EmbeddedServer, client: Client) -> None:
    """OOM is told before the first write, or never: of a script that had too much room taken by its own first write,
    the second is there."""
    store = Store(any_server.url, timeout_s=2.0)
    store.ping()
    script = Script(
        "#!lua\nredis.call('SET', KEYS[1], string.rep('x', 8000000)) return redis.call('SET', KEYS[2], 'y')"
    )
    limited(client)
    try:
        store.run(script, ["a", "b"], [], store.connections)
        assert (client.strlen("a"), client.get("b")) == (8_000_000, "y")
        with pytest.raises(StoreError) as caught:
            store.run(script, ["c", "d"], [], store.connections)
    finally:
        client.config_set("maxmemory", 0)
    assert caught.value.code == "OOM"
    assert client.exists("c", "d") == 0
    store.close()


def test_a_missing_right_may_show_in_the_middle(any_server: EmbeddedServer, client: Client) -> None:
    """NOPERM is no refusal of which it is certain that nothing ran: the first write stands."""
    client.execute_command("ACL", "SETUSER", "half", "on", "nopass", "~*", "+@all", "-xadd")
    store = Store(any_server.url, "x", username="half")
    try:
        store.ping()
        script = Script("#!lua\nredis.call('SET', KEYS[1], 'y') return redis.call('XADD', KEYS[2], '*', 'f', 'v')")
        with pytest.raises(StoreError) as caught:
            store.run(script, ["a", "b"], [], store.connections)
    finally:
        store.close()
        client.execute_command("ACL", "DELUSER", "half")
    assert caught.value.code == "NOPERM"
    assert client.get("a") == "y"
    assert not never_began(caught.value)


def test_replicas_that_lag_refuse_before_the_first_write(any_server: EmbeddedServer, client: Client) -> None:
    """NOREPLICAS and READONLY: nothing of the script is there."""
    store = Store(any_server.url, timeout_s=2.0)
    store.ping()
    script = Script("#!lua\nlocal n = redis.call('EXISTS', KEYS[1]) redis.call('SET', KEYS[1], 'y') return n")
    faults: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "NOREPLICAS": (
            lambda: client.config_set("min-replicas-to-write", 1),
            lambda: client.config_set("min-replicas-to-write", 0),
        ),
        "READONLY": (lambda: client.replicaof(HOST, 1), lambda: client.replicaof("no", "one")),
    }
    for code, (on, off) in faults.items():
        on()
        try:
            with pytest.raises(StoreError) as caught:
                store.run(script, ["a"], [], store.connections)
        finally:
            off()
        assert caught.value.code == code
        assert client.exists("a") == 0
    store.close()
