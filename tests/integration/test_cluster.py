"""Redis Cluster by QA_HASH_TAG: three nodes share the slots, and everything of an installation is in one of them.

Real processes on loopback. The address that services are given is that of a node that does not hold their slot.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread

import pytest
import redis

from quantum_alloc.adapters.clock import WallClock
from quantum_alloc.adapters.cluster import Nodes
from quantum_alloc.adapters.connecting import TIMEOUT_S
from quantum_alloc.adapters.effects import TextSet
from quantum_alloc.adapters.embedded import EmbeddedServer, free_port
from quantum_alloc.adapters.keys import Keys
from quantum_alloc.adapters.metrics import Metrics
from quantum_alloc.adapters.store import Store, StoreError
from quantum_alloc.services import app
from quantum_alloc.services.cli import main
from quantum_alloc.services.options import load
from quantum_alloc.services.settings import SettingsError
from tests.integration.test_apply_processes import WIDE
from tests.integration.test_locate import OPTIONS, Told
from tests.support import chain
from tests.support.nodes import HOST, Cluster, Node
from tests.support.running import Service, until
from tests.support.worlds import Client

TAG = "quantum"
KEYS = Keys(tag=TAG)
SLOT = Nodes(TAG, OPTIONS).slot
SYMBOLS = ("AAUSDT", "BBUSDT")
OTHERS = ("portfolio", "budget", "attribution", "allocation", "efficiency", "proposer")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Three primaries, each with a replica."""
    with Cluster(replicas=True) as found:
        yield found


@pytest.fixture
def empty(cluster: Cluster) -> Cluster:
    """The cluster without a key."""
    for node in cluster.data:
        if node.process is not None and node.client.role()[0] == "master":
            node.client.flushall()
    return cluster


def stranger(cluster: Cluster) -> Node:
    """A primary that does not hold the slot."""
    owner = cluster.owner(SLOT)
    return next(n for n in cluster.data if n is not owner and n.process is not None and n.client.role()[0] == "master")


def settings(cluster: Cluster, node: Node | None = None) -> dict[str, str]:
    """What a service is told."""
    there = node or stranger(cluster)
    return {"REDIS_HOST": HOST, "REDIS_PORT": str(there.port), "REDIS_CLUSTER": "1", "QA_HASH_TAG": TAG}


def store_of(cluster: Cluster, node: Node | None = None, timeout_s: float = TIMEOUT_S) -> Store:
    """A store that knows one node."""
    there = node or stranger(cluster)
    waits = {"socket_timeout": timeout_s, "socket_connect_timeout": timeout_s}
    nodes = Nodes(TAG, {**OPTIONS, **waits, "host": HOST, "port": there.port}, timeout_s)
    return Store("redis://localhost", shown="it", timeout_s=timeout_s, locator=nodes)


def test_the_whole_chain_is_in_one_slot(empty: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every service once, in both modes, a permit, a fill, a halt, every command: all keys are on the node of the slot,
    none is anywhere else, and each has the tag."""
    chain.run_chain(chain.environment(tmp_path, **settings(empty)), capsys)
    by_node = {n.port: chain.names_of(n.client) for n in empty.data if n.client.role()[0] == "master"}
    owner = empty.owner(SLOT)
    own = by_node.pop(owner.port)
    assert len(own) > 80
    assert not chain.untagged(own, TAG)
    assert all(not names for names in by_node.values())
    assert {owner.client.execute_command("CLUSTER", "KEYSLOT", name) for name in own} == {SLOT}


def opening(client: Client, plan_id: str, symbol: str) -> None:
    """A plan that opens 100 USD, with a price and a portfolio of now."""
    s, us = client.time()
    now = repr(s + us / 1e6)
    client.hset(KEYS.market(symbol), mapping={"price": "100", "timestamp": now})
    told = {"positions_notional_usd": "0", "positions_count": "0", "equity_usd": "100000", "drawdown": "0"}
    client.hset(KEYS.portfolio, mapping={**told, "timestamp": now, "ts": now})
    plan = {
        "plan_id": plan_id, "symbol": symbol, "action": "ENTRY", "decision": "EXECUTE", "timestamp": now,
        "side": "BUY", "qty": "1", "price": "100", "kill_score": "0.1",
    }  # fmt: skip
    client.xadd(KEYS.stream("apply.plan"), plan)


def results(client: Client) -> dict[str, str]:
    """What became of each permit."""
    return {f["plan_id"]: f["error"] or "filled" for _, f in client.xrange(KEYS.results)}


def test_running_services_follow_the_slot_and_a_failover(empty: Cluster, tmp_path: Path) -> None:
    """Governor and apply layer as processes, the rest beside them: the slot is moved to another node, then that node
    is killed and its replica takes over; each time plans are permitted and filled again, and no key strays."""
    told = settings(empty)
    with (
        Service("governor", "", **{**WIDE, **told}, STATE_DIRECTORY=str(tmp_path), GOV_CONSUMER="a") as first,
        Service("apply", "", APPLY_MODE="production", LOG_LEVEL="WARNING", **told) as second,
        _rest(told) as loops,
    ):
        until(lambda: first.ready() and second.ready() and all(x.ready for x in loops.all), 30, "all are ready")
        source = empty.owner(SLOT)
        opening(source.client, "before", SYMBOLS[0])
        until(lambda: results(source.client).get("before") == "filled", 15, "the first plan is filled")
        target = stranger(empty)
        empty.move(SLOT, target)
        moved = time.monotonic()
        opening(target.client, "moved", SYMBOLS[1])
        until(lambda: results(target.client).get("moved") == "filled", 15, "a plan is filled after the move")
        assert first.ready()
        assert second.ready()
        assert source.client.dbsize() == 0
        replica = next(n for n in empty.data if n.client.role()[0] == "slave" and n.client.role()[2] == target.port)
        until(lambda: replica.client.dbsize() == target.client.dbsize(), 20, "the replica has the slot")
        target.kill()
        until(lambda: replica.client.role()[0] == "master", 20, "the replica takes over")
        promoted = time.monotonic()
        until(lambda: first.ready() and second.ready() and all(x.ready for x in loops.all), 15, "all are ready again")
        assert time.monotonic() - promoted < 5.0
        assert promoted - moved < 60.0
        opening(replica.client, "after", SYMBOLS[0])
        until(lambda: results(replica.client).get("after") == "filled", 15, "a plan is filled after the failover")
        assert not chain.untagged(chain.names_of(replica.client), TAG)
        for service in (first, second):
            assert service.metric('quantum_alloc_store_errors_total{code="CROSSSLOT"}') == 0.0
            assert service.metric('quantum_alloc_store_errors_total{code="other"}') == 0.0
        assert not any(x.metrics.value("quantum_alloc_store_errors_total", "CROSSSLOT") for x in loops.all)
        permits = [f["plan_id"] for _, f in replica.client.xrange(KEYS.events) if f["event"] == "PERMIT"]
        assert sorted(set(permits)) == sorted(permits)
        target.start().until_up()
    until(empty.is_whole, 40, "the cluster is whole again")


class _rest:
    """The services beside governor and apply layer, each with its loop, thread and connection, in this process."""

    def __init__(self, told: dict[str, str]) -> None:
        """Build them."""
        loaded = load(OTHERS, {**told, "P29_MODE": "enforce", "P29_INTERVAL_SEC": "1"}, together=False)
        self.all: list[app.AnyLoop] = []
        self._stores = [app.open_store(loaded) for _ in OTHERS]
        self._stop = Event()
        for name, store in zip(OTHERS, self._stores, strict=True):
            parts = app.Parts(loaded, store, Metrics(name), WallClock(), app.paced_source(loaded))
            self.all.append(app.assemble(name, parts)[0])
        self._threads = [Thread(target=loop.run, args=(self._stop,)) for loop in self.all]

    def __enter__(self) -> _rest:
        """Start them."""
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End them."""
        self._stop.set()
        for thread in self._threads:
            thread.join(10)
        for store in self._stores:
            store.close()


def test_a_slot_that_moves_costs_a_read_nothing(empty: Cluster) -> None:
    """A read follows MOVED at once; a write that meets it fails, is not sent again, and the next one goes right."""
    store = store_of(empty)
    first, second = KEYS.key("a"), KEYS.key("b")
    store.apply([(TextSet(first, "1"), TextSet(second, "2"))])
    empty.move(SLOT, stranger(empty))
    assert store.read([("GET", first), ("GET", second)]) == [b"1", b"2"]
    empty.move(SLOT, stranger(empty))
    with pytest.raises(StoreError) as caught:
        store.apply([(TextSet(first, "3"),)])
    assert caught.value.code == "MOVED"
    assert empty.owner(SLOT).client.get(first) == "1"
    store.apply([(TextSet(first, "4"),)])
    assert empty.owner(SLOT).client.get(first) == "4"
    store.close()


def test_a_slot_that_moves_between_watch_and_exec_is_a_conflict(empty: Cluster) -> None:
    """A read after WATCH meets MOVED: it is not followed, because what was watched is not watched there."""
    store, name = store_of(empty, timeout_s=5.0), KEYS.key("state")
    store.read([("UNWATCH",), ("WATCH", name), ("GET", name)])
    empty.move(SLOT, stranger(empty))
    with pytest.raises(StoreError) as caught:
        store.read([("GET", KEYS.key("other"))])
    assert caught.value.code == "conflict"
    empty.owner(SLOT).client.set(name, "somebody else's")
    assert store.read([("UNWATCH",), ("WATCH", name), ("GET", name)])[2] == b"somebody else's"
    empty.move(SLOT, stranger(empty))
    assert store.read([("UNWATCH",), ("WATCH", name), ("GET", name)])[2] == b"somebody else's"
    store.apply([(TextSet(name, "mine"),)])
    assert empty.owner(SLOT).client.get(name) == "mine"
    store.close()


def test_who_redirects_is_told_with_it(empty: Cluster) -> None:
    """A MOVED may name no host: the locator hears which node said it."""
    told = Told(stranger(empty).place)
    store = Store("redis://localhost", shown="it", timeout_s=5.0, locator=told)
    with pytest.raises(StoreError) as caught:
        store.apply([(TextSet(KEYS.key("a"), "1"),)])
    assert caught.value.code == "MOVED"
    ((message, by),) = told.heard
    assert (str(SLOT) in message, by) == (True, told.place)
    store.close()


def test_while_a_slot_is_on_its_way_nothing_is_half_done(empty: Cluster) -> None:
    """ASK and TRYAGAIN are refusals by their names: a transaction is done as a whole or not at all."""
    store = store_of(empty)
    names = [KEYS.key("k", str(i)) for i in range(4)]
    store.apply([tuple(TextSet(n, "1") for n in names)])
    source, target = empty.owner(SLOT), stranger(empty)
    target.client.execute_command("CLUSTER", "SETSLOT", SLOT, "IMPORTING", empty.id_of(source))
    source.client.execute_command("CLUSTER", "SETSLOT", SLOT, "MIGRATING", empty.id_of(target))
    source.client.execute_command("MIGRATE", HOST, target.port, "", 0, 5000, "KEYS", *names[:2])
    try:
        with pytest.raises(StoreError) as caught:
            store.apply([tuple(TextSet(n, "2") for n in reversed(names))])
        assert caught.value.code in ("ASK", "TRYAGAIN", "EXECABORT")
        assert [source.client.get(n) for n in names[2:]] == ["1", "1"]
    finally:
        source.client.execute_command("CLUSTER", "SETSLOT", SLOT, "STABLE")
        target.client.execute_command("CLUSTER", "SETSLOT", SLOT, "STABLE")
        with suppress(redis.RedisError):
            target.client.execute_command("CLUSTER", "SETSLOT", SLOT, "IMPORTING", empty.id_of(source))
        empty.move(SLOT, target)
    assert store.read([("GET", n) for n in names]) == [b"1"] * 4
    store.close()


def test_a_cluster_that_is_down_is_called_that(empty: Cluster) -> None:
    """Its slot is served by nobody: CLUSTERDOWN, on a connection from before and on a new one, until it is again."""
    known, new, owner = store_of(empty), store_of(empty), empty.owner(SLOT)
    known.ping()
    for node in empty.data:
        node.client.execute_command("CLUSTER", "DELSLOTS", SLOT)
    try:
        for store in (known, new):
            with pytest.raises(StoreError) as caught:
                store.apply([(TextSet(KEYS.key("a"), "1"),)])
            assert caught.value.code == "CLUSTERDOWN"
    finally:
        owner.client.execute_command("CLUSTER", "ADDSLOTS", SLOT)
        until(empty.is_whole, 30, "the slot is served again")
    until(lambda: _writes(known), 10, "it writes again")
    known.close()
    new.close()


def _writes(store: Store) -> bool:
    with suppress(StoreError):
        store.apply([(TextSet(KEYS.key("a"), "2"),)])
        return True
    return False


def test_the_nodes_are_learnt(empty: Cluster) -> None:
    """The node of the settings dies: a store that has asked once finds its way by the others."""
    seed = stranger(empty)
    store = store_of(empty, seed)
    store.ping()
    with seed.stopped():
        store._leave()  # as after an error
        assert store.read([("GET", KEYS.key("a"))]) == [None]
    store.close()


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"REDIS_CLUSTER": "1"}, ("REDIS_CLUSTER='1'", "QA_HASH_TAG")),
        ({"REDIS_CLUSTER": "1", "QA_HASH_TAG": "t", "REDIS_DB": "2"}, ("REDIS_DB='2'", "REDIS_CLUSTER")),
        ({"REDIS_CLUSTER": "1", "QA_HASH_TAG": "t", "REDIS_URL": "redis://a/3"}, ("REDIS_URL=", "database 0")),
        ({"REDIS_CLUSTER": "1", "QA_HASH_TAG": "t", "REDIS_URL": "unix:///s"}, ("REDIS_URL=", "REDIS_CLUSTER")),
        ({"REDIS_CLUSTER": "1", "QA_HASH_TAG": "t", "REDIS_SENTINELS": "a:1"}, ("REDIS_SENTINELS=", "REDIS_CLUSTER")),
    ],
)
def test_contradictions_are_one_sentence(environ: dict[str, str], words: tuple[str, ...]) -> None:
    """What a cluster cannot be combined with, in the names of the environment."""
    with pytest.raises(SettingsError) as caught:
        load([], environ)
    (error,) = caught.value.errors
    assert all(word in error for word in words), error


def test_a_node_without_the_setting_and_a_server_with_it(
    empty: Cluster, one_server: EmbeddedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """A cluster that is taken for a server names the two variables; a port that is dead names the cluster."""
    plain = {"REDIS_HOST": HOST, "REDIS_PORT": str(stranger(empty).port)}
    assert main(["kill", "reduce", "--by", "me"], plain) == 69
    assert "REDIS_CLUSTER=1 and QA_HASH_TAG" in capsys.readouterr().err
    dead = {**plain, "REDIS_PORT": str(free_port()), "REDIS_CLUSTER": "1", "QA_HASH_TAG": TAG}
    assert main(["kill", "reduce", "--by", "me"], dead) == 69
    assert "the nodes of the cluster cannot be reached" in capsys.readouterr().err
