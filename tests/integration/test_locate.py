"""Store and locator over real servers: who is found, who is let go of, and how long it takes when some hang."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from quantum_alloc.adapters import locate
from quantum_alloc.adapters.cluster import Nodes
from quantum_alloc.adapters.connecting import TIMEOUT_S, options_of
from quantum_alloc.adapters.effects import TextSet
from quantum_alloc.adapters.embedded import free_port
from quantum_alloc.adapters.governor_scripts import DISARM
from quantum_alloc.adapters.locate import Place, Sentinels
from quantum_alloc.adapters.store import Store, StoreError
from quantum_alloc.core import GovernorParams
from tests.support import governing as gov
from tests.support.nodes import DATA, HOST, NAME, Group, Node, Watched
from tests.support.running import until

OPTIONS = options_of("redis://localhost", None, None, None, TIMEOUT_S)
BOUND_S = 1.0
"""Of one look, generously: it waits 0.2 s, and this machine may be busy."""
PARAMS = GovernorParams(apply_mode="production")


class Told:
    """A locator that says what it is told to."""

    def __init__(self, place: Place) -> None:
        """Begin with a place."""
        self.place = place
        self.asked = 0
        self.heard: list[tuple[str, Place]] = []

    def find(self) -> Place:
        """The place."""
        self.asked += 1
        return self.place

    def moved(self) -> Place | None:
        """The place, too."""
        return self.place

    def told(self, message: str, by: Place) -> None:
        """Remember it."""
        self.heard.append((message, by))

    def close(self) -> None:
        """Nothing is held."""


def store_of(locator: locate.Locator) -> Store:
    """A store that goes where a locator says."""
    return Store("redis://localhost", shown="the pair", locator=locator)


def sentinels(watched: Watched, *more: Place) -> Sentinels:
    """Who asks the sentinels of an installation, and further places."""
    return Sentinels([*(n.place for n in watched.sentinels), *more], NAME, OPTIONS)


@pytest.fixture(scope="module")
def watched() -> Iterator[Watched]:
    """A primary, two replicas, three sentinels; the tests leave it as it is."""
    with Watched() as found:
        yield found


@pytest.fixture
def pair() -> Iterator[tuple[Node, Node]]:
    """A primary and its replica, without sentinels."""
    group = Group()
    first, second = group.add(Node(DATA)), group.add(Node(DATA))
    try:
        first.start().until_up()
        second.start().until_up()
        second.client.replicaof(HOST, first.port)
        until(lambda: second.client.info("replication")["master_link_status"] == "up", 20, "the replica is level")
        yield first, second
    finally:
        group.__exit__(None, None, None)


def swap(first: Node, second: Node) -> None:
    """The replica becomes the primary, by hand; no connection is closed by that."""
    second.client.replicaof("no", "one")
    first.client.replicaof(HOST, second.port)


def test_sentinels_tell_the_primary_and_the_store_goes_there(watched: Watched) -> None:
    """What is written through the store is on the primary; the connection counts as one."""
    store = store_of(sentinels(watched))
    store.apply([(TextSet("a", "1"),)])
    assert watched.primary().client.get("a") == "1"
    first = store.connections
    assert store.read([("GET", "a")] * 3) == [b"1"] * 3
    assert store.connections == first
    store.close()


@pytest.mark.parametrize("hanging", [1, 2])
def test_sentinels_that_hang_cost_one_time_out(watched: Watched, hanging: int) -> None:
    """One or two of three are stopped, a fourth is dead: the primary is found all the same, within a time-out."""
    asked = sentinels(watched, (HOST, free_port()))
    asked.find()
    try:
        for node in watched.sentinels[:hanging]:
            node.signal(signal.SIGSTOP)
        for _ in range(3):
            started = time.monotonic()
            assert asked.find() == watched.primary_place()
            assert time.monotonic() - started < BOUND_S
    finally:
        for node in watched.sentinels[:hanging]:
            node.signal(signal.SIGCONT)
        asked.close()


def test_when_no_sentinel_answers_the_known_primary_goes_on(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """All three are stopped: a store that knows the primary keeps its connection, a new one says so, and soon."""
    monkeypatch.setattr(locate, "LOOK_EVERY_S", 0.0)
    known, new = store_of(sentinels(watched)), store_of(sentinels(watched))
    known.ping()
    connection = known.connections
    try:
        for node in watched.sentinels:
            node.signal(signal.SIGSTOP)
        for _ in range(3):
            started = time.monotonic()
            known.apply([(TextSet("a", "2"),)])
            assert time.monotonic() - started < BOUND_S
        started = time.monotonic()
        with pytest.raises(StoreError, match="3 sentinels") as caught:
            new.ping()
        assert time.monotonic() - started < 2 * BOUND_S
        assert caught.value.code == "timeout"
    finally:
        for node in watched.sentinels:
            node.signal(signal.SIGCONT)
    assert known.connections == connection
    until(lambda: answers(new), 10, "the new store finds the primary")
    known.close()
    new.close()


def answers(store: Store) -> bool:
    """Whether a store reaches its server."""
    try:
        store.ping()
    except StoreError:
        return False
    return True


def test_dead_sentinels_and_an_unknown_name_are_one_sentence_each(watched: Watched) -> None:
    """Nobody listens: unreachable; nobody knows the name: the variable that tells it is named."""
    dead = store_of(Sentinels([(HOST, free_port()), (HOST, free_port())], NAME, OPTIONS))
    with pytest.raises(StoreError, match="2 sentinels cannot be reached") as caught:
        dead.ping()
    assert caught.value.code == "unreachable"
    other = store_of(Sentinels([n.place for n in watched.sentinels], "nobody", OPTIONS))
    with pytest.raises(StoreError, match="REDIS_SENTINEL_NAME"):
        other.ping()


@pytest.mark.parametrize("epochs", [(7, 8), (8, 7)])
def test_the_newest_configuration_is_believed(epochs: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two sentinels that do not agree the one with the greater epoch counts, in either order; odd answers do not."""

    def reply(port: int, epoch: int) -> list[object]:
        return [[b"127.0.0.1", str(port).encode()], [b"name", b"mymaster", b"config-epoch", str(epoch).encode()]]

    asked = Sentinels([(HOST, 1), (HOST, 2)], NAME, OPTIONS)
    odd: list[list[object]] = [[None, []], [[b"h", b"x"], [b"config-epoch", b"9"]], [[b"h", b"1"], []], [b"", b""]]
    replies = [(None, r) for r in [*odd, reply(epochs[0], epochs[0]), reply(epochs[1], epochs[1]), *odd]]
    monkeypatch.setattr(asked, "_ask", lambda *_: (replies, []))
    assert asked.find() == (HOST, 8)


def test_an_older_configuration_moves_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look that finds an older epoch changes nothing; when the primary is lost, a minority that knows only an older
    one is not believed, and most of them are."""

    def reply(port: int, epoch: int) -> tuple[None, list[object]]:
        return None, [[b"127.0.0.1", str(port).encode()], [b"config-epoch", str(epoch).encode()]]

    monkeypatch.setattr(locate, "LOOK_EVERY_S", 0.0)
    asked = Sentinels([(HOST, n) for n in (1, 2, 3)], NAME, OPTIONS)
    told = [reply(1, 5)]
    monkeypatch.setattr(asked, "_ask", lambda *_: (told, []))
    assert asked.find() == (HOST, 1)
    assert asked.moved() is None
    told[:] = [reply(2, 4)]
    assert asked.moved() is None
    with pytest.raises(StoreError, match="older configuration"):
        asked.find()
    told[:] = [reply(2, 4), reply(2, 4)]
    assert asked.find() == (HOST, 2)
    told[:] = [reply(3, 6), reply(2, 4)]
    assert asked.moved() == (HOST, 3)
    asked.find()
    told[:] = [reply(3, 6), reply(2, 4), reply(2, 4)]  # as after a failover, before the others have heard of it
    assert asked.moved() is None
    assert asked.find() == (HOST, 3)
    told[:] = [reply(2, 4), reply(4, 4), reply(2, 4)]
    assert asked.moved() == (HOST, 2)
    told[:] = [reply(2, 4), reply(4, 4)]
    assert asked.moved() is None
    assert asked.find() == (HOST, 4)  # more than half have answered, and it was asked for
    told[:] = [reply(2, 4), reply(4, 4), reply(2, 4)]  # as without any failover, while two of three were repointed
    assert asked.moved() == asked.find() == (HOST, 2)


def test_a_running_store_goes_where_sentinels_were_repointed(
    pair: tuple[Node, Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    """REMOVE and MONITOR begin with the epoch 0 again: once most sentinels name the new primary, it is gone to, and a
    halt that is set there is seen."""
    first, second = pair
    monkeypatch.setattr(locate, "LOOK_EVERY_S", 0.0)
    group = Group()
    try:
        lines = (f"sentinel monitor {NAME} {HOST} {first.port} 2", f"sentinel config-epoch {NAME} 7")
        guards = [group.add(Node(lines, sentinel=True)).start() for _ in range(3)]
        for guard in guards:
            guard.until_up()
        store = store_of(Sentinels([guard.place for guard in guards], NAME, OPTIONS))
        store.apply([(TextSet("a", "old"),)])
        second.client.replicaof("no", "one")
        second.client.set("a", "halt")
        for guard in guards:
            guard.client.execute_command("SENTINEL", "REMOVE", NAME)
            guard.client.execute_command("SENTINEL", "MONITOR", NAME, HOST, second.port, 2)
        until(lambda: store.read([("GET", "a")]) == [b"halt"], 10, "it goes to the new primary")
        store.close()
    finally:
        group.__exit__(None, None, None)


def test_a_primary_that_was_demoted_is_left_at_its_first_refusal(pair: tuple[Node, Node]) -> None:
    """READONLY, met for real: one cycle fails, nothing is sent twice, and the next one writes to the new primary."""
    first, second = pair
    store = store_of(told := Told(first.place))
    told.moved = lambda: None  # type: ignore[method-assign]  # nobody looks before the refusal
    store.apply([(TextSet("a", "1"),)])
    before = store.connections
    swap(first, second)
    told.place = second.place
    with pytest.raises(StoreError) as caught:
        store.apply([(TextSet("a", "2"),)])
    assert caught.value.code == "READONLY"
    store.apply([(TextSet("a", "3"),)])
    assert (second.client.get("a"), store.connections > before) == ("3", True)
    store.close()


def test_a_server_that_is_no_primary_is_never_used(pair: tuple[Node, Node]) -> None:
    """The locator names a replica: reads are refused too, before they are sent."""
    first, second = pair
    store = store_of(told := Told(second.place))
    with pytest.raises(StoreError, match="READONLY"):
        store.read([("GET", "a")])
    told.place = first.place
    assert store.read([("GET", "a")]) == [None]
    store.close()


def test_a_replica_without_its_primary_is_masterdown(pair: tuple[Node, Node]) -> None:
    """MASTERDOWN, met for real on a connection from before: it is called by its name, and let go of."""
    first, second = pair
    store = store_of(told := Told(first.place))
    store.ping()
    first.client.config_set("replica-serve-stale-data", "no")
    first.client.replicaof(HOST, free_port())
    told.place = second.place
    told.moved = lambda: None  # type: ignore[method-assign]  # nobody looks before the refusal
    with pytest.raises(StoreError) as caught:
        store.read([("GET", "a")])
    assert caught.value.code == "MASTERDOWN"
    second.client.replicaof("no", "one")
    assert store.read([("GET", "a")]) == [None]
    store.close()


def test_a_primary_that_was_left_behind_is_seen_without_an_error(pair: tuple[Node, Node]) -> None:
    """The old one still answers and believes in itself: the next read goes to the new one."""
    first, second = pair
    store = store_of(told := Told(first.place))
    store.apply([(TextSet("a", "old"),)])
    until(lambda: second.client.get("a") == "old", 10, "the replica has it")
    second.client.replicaof("no", "one")
    second.client.set("a", "new")
    told.place = second.place
    assert store.read([("GET", "a")]) == [b"new"]
    store.close()


def test_a_watched_state_is_never_left_between_watch_and_exec(pair: tuple[Node, Node]) -> None:
    """The primary moves after WATCH: the transaction goes to the server that was read, which refuses it."""
    first, second = pair
    store = store_of(told := Told(first.place))
    store.read([("WATCH", "a"), ("GET", "a")])
    swap(first, second)
    told.place = second.place
    with pytest.raises(StoreError) as caught:
        store.apply([(TextSet("a", "1"),)])
    assert caught.value.code == "READONLY"
    assert second.client.get("a") is None
    with pytest.raises(StoreError):
        store.run(DISARM, ["k", "e"], [1, "a", "b"], 1)  # of the connection that is gone
    assert second.client.keys() == []
    store.close()


@pytest.mark.parametrize("ended", ["unwatch", "nothing written"])
def test_a_watch_that_met_no_transaction_does_not_stop_the_look(pair: tuple[Node, Node], ended: str) -> None:
    """A cycle that watched and wrote nothing: the next one goes to the new primary all the same."""
    first, second = pair
    store = store_of(told := Told(first.place))
    store.read([("UNWATCH",), ("WATCH", "a"), ("GET", "a")])
    if ended == "nothing written":
        assert store.apply([()]) == []
    second.client.replicaof("no", "one")
    second.client.set("a", "new")
    told.place = second.place
    first_of_next = [("UNWATCH",), ("WATCH", "a")] if ended == "unwatch" else [("TIME",)]
    assert store.read([*first_of_next, ("GET", "a")])[-1] == b"new"
    store.apply([(TextSet("a", "mine"),)])
    assert second.client.get("a") == "mine"
    store.close()


def test_a_governor_whose_primary_changed_behind_its_back(pair: tuple[Node, Node], tmp_path: Path) -> None:
    """(27) Between snapshot and commit another server becomes the primary: nothing is permitted on either, and then
    the plan is answered once; the journal's intent is void."""
    first, second = pair
    store = store_of(told := Told(first.place))
    g = gov.governing(store, tmp_path, "one", params=PARAMS)
    client = first.client
    gov.portfolio(client, gov.server_now(client))
    gov.opening(client, "p0", "AAUSDT", repr(gov.server_now(client)))
    g.drain()
    gov.opening(client, "p1", "BBUSDT", repr(gov.server_now(client)))
    seen = g.governor.read(0.0)
    made = g.governor.decide(seen, lambda _symbol, run: run())
    until(lambda: second.client.xlen(gov.PLANS) == 2, 10, "the replica has the plan")
    swap(first, second)
    told.place = second.place
    with pytest.raises(StoreError) as caught:
        g.governor.write(seen, made)
    assert caught.value.code in ("READONLY", "conflict")
    until(lambda: g.once() and "p1" in permitted(second), 20, "the plan is answered")
    g.crash()
    assert permitted(second) == ["p0", "p1"]
    assert g.keeper.changes == 1
    assert sorted(e.plan_id for e in g.keeper.journal.read() if e.is_done) == ["p0", "p1"]


def test_nobody_is_asked_between_snapshot_and_commit(pair: tuple[Node, Node], tmp_path: Path) -> None:
    """A look at sentinels that hang would make a snapshot too old: the commit goes to the server that was read."""
    first, _ = pair
    store = store_of(told := Told(first.place))
    g = gov.governing(store, tmp_path, "one", params=PARAMS)
    gov.portfolio(first.client, gov.server_now(first.client))
    until(g.once, 10, "a first cycle")
    gov.opening(first.client, "p1", "AAUSDT", repr(gov.server_now(first.client)))
    seen = g.governor.read(0.0)
    made = g.governor.decide(seen, lambda _symbol, run: run())
    asked: list[float] = []

    def looked() -> Place:
        asked.append(time.monotonic())
        return first.place

    told.moved = looked  # type: ignore[method-assign]  # from now on it is counted
    g.governor.write(seen, made)
    g.crash()
    assert asked == []
    assert permitted(first) == ["p1"]


def permitted(node: Node) -> list[str]:
    """Plan ids of PERMIT events."""
    return sorted(e["plan_id"] for e in gov.events(node.client, "PERMIT"))


def test_a_redirection_is_where_the_next_read_goes(pair: tuple[Node, Node]) -> None:
    """What MOVED says is tried next and once; a node without a name is the one that answered."""
    first, _ = pair
    nodes = Nodes("q", {**OPTIONS, "host": HOST, "port": first.port})
    nodes.told("16287 10.0.0.1:7001", ("10.0.0.9", 7000))
    assert nodes.find() == ("10.0.0.1", 7001)
    for nameless in ("16287 :7002", "16287 ?:7002"):
        nodes.told(nameless, ("10.0.0.9", 7000))
        assert nodes.find() == ("10.0.0.9", 7002)
    with pytest.raises(StoreError, match="is no node of a cluster: set REDIS_CLUSTER=0"):
        nodes.find()
    nodes.close()


def test_a_name_that_cannot_be_looked_up_is_unreachable() -> None:
    """What no resolver takes, of the settings or told by a server: a sentence, no traceback, whoever is asked."""
    odd = ("a..b", "a" * 64, "a\0b")
    stores = [Store(f"redis://{name}", shown="it") for name in odd[:2]]
    stores += [store_of(Told((name, 1))) for name in odd]
    stores += [store_of(Sentinels([(name, 1), (HOST, free_port())], NAME, OPTIONS)) for name in odd]
    stores += [store_of(Nodes("q", {**OPTIONS, "host": name})) for name in odd]
    for store in stores:
        with pytest.raises(StoreError, match="cannot be reached") as caught:
            store.ping()
        assert caught.value.code == "unreachable"
        store.close()


def test_logins_of_sentinels_are_asked_for_and_named() -> None:
    """A sentinel that wants a password says NOAUTH, a wrong one WRONGPASS: a fault of configuration, no secret told."""
    group = Group()
    try:
        data = group.add(Node(DATA)).start().until_up()
        lines = (f"sentinel monitor {NAME} {HOST} {data.port} 1", "requirepass right", "sentinel sentinel-pass right")
        guard = group.add(Node(lines, sentinel=True)).start()
        guard.client.connection_pool.connection_kwargs["password"] = "right"
        guard.until_up()

        def error_of(password: str | None) -> StoreError:
            options = options_of("redis://", None, password, None, TIMEOUT_S)
            try:
                Sentinels([guard.place], NAME, options).find()
            except StoreError as error:
                return error
            raise AssertionError("it was let in")

        for password, code in ((None, "NOAUTH"), ("canary-wrong", "WRONGPASS")):
            error = error_of(password)
            assert (error.code, error.is_configuration) == (code, True)
            assert "canary" not in str(error)
        good = options_of("redis://", None, "right", None, TIMEOUT_S)
        assert Sentinels([guard.place], NAME, good).find() == data.place
    finally:
        group.__exit__(None, None, None)


def test_a_login_with_no_rights_is_enough_to_be_asked_for_the_role(pair: tuple[Node, Node]) -> None:
    """The role is asked for by a command that no ACL takes away."""
    first, _ = pair
    first.client.execute_command("ACL", "SETUSER", "least", "on", ">pw", "~*", "+get", "+client|setname")
    store = Store("redis://localhost", "pw", username="least", locator=Told(first.place))
    assert store.read([("GET", "a")]) == [None]
    store.close()
    with pytest.raises(redis.exceptions.NoPermissionError):
        redis.Redis(HOST, first.port, username="least", password="pw", protocol=2).role()
