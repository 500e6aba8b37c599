"""High availability by Redis Sentinel: three sentinels, a primary and two replicas, and the primary dies.

Real processes on loopback. Replication is asynchronous: ``cut`` keeps a primary's last writes from its replicas, so
that a failover loses exactly those. Sentinels call a server down after half a second, and elect who promotes another.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random
from threading import Event, Thread

import pytest
import redis

from quantum_alloc.adapters import journal
from quantum_alloc.adapters.clock import WallClock
from quantum_alloc.adapters.keys import LIVE
from quantum_alloc.adapters.locate import Sentinels
from quantum_alloc.adapters.metrics import Metrics
from quantum_alloc.adapters.store import Store
from quantum_alloc.core import GovernorParams
from quantum_alloc.services import app
from quantum_alloc.services.options import load
from tests.conftest import CI
from tests.integration.test_apply_processes import WIDE
from tests.integration.test_locate import OPTIONS
from tests.support import applying as ap
from tests.support import governing as gov
from tests.support.nodes import NAME, Node, Watched
from tests.support.running import Service, until
from tests.support.worlds import Client

SYMBOLS = ("AAUSDT", "BBUSDT", "CCUSDT")
BACK_S = 5.0
"""Within so much of the primary's death everything goes on."""
OURS_S = 2.5
"""So much of it, at most, is ours: the rest is how long sentinels took to promote another server."""
PARAMS = GovernorParams(**{**{f: getattr(ap.WIDE, f) for f in ("max_exec_per_hour", "max_exec_per_5min")},
    "apply_mode": "production", "symbol_cooldown_s": 0, "max_total_notional_usd": 1e12, "disarm_on_burst": False,
    "max_open_positions": 1000})  # fmt: skip
OTHERS = ("portfolio", "budget", "attribution", "allocation", "efficiency", "proposer")


def settings(watched: Watched) -> dict[str, str]:
    """What a service is told."""
    return {"REDIS_SENTINELS": watched.places}


def store_of(watched: Watched) -> Store:
    """A store that asks the sentinels."""
    locator = Sentinels([node.place for node in watched.sentinels], NAME, OPTIONS)
    return Store("redis://localhost", shown="the installation", locator=locator)


def fresh(client: Client) -> float:
    """Prices, a portfolio and a balance of now; the server's clock."""
    now = gov.server_now(client)
    for symbol in SYMBOLS:
        gov.market(client, symbol, 100.0, now)
        gov.budget(client, symbol, 1e7, now)
    gov.portfolio(client, now)
    client.hset(LIVE.portfolio, mapping={"equity_usd": "100000", "drawdown": "0.01"})
    return now


@contextmanager
def told(watched: Watched, pause_s: float, sent: list[str] | None = None) -> Iterator[None]:
    """Prices stay fresh, and plans come, wherever the primary is, until the end of the block."""
    stop = Event()

    def run() -> None:
        at, n = 0.0, 0
        while not stop.wait(pause_s):
            with suppress(redis.RedisError, OSError, LookupError):
                client = watched.primary().client
                if time.monotonic() >= at:
                    fresh(client)
                    at = time.monotonic() + 1.0
                if sent is not None:
                    now = repr(gov.server_now(client))
                    plan_id = f"p{n}"
                    gov.opening(client, plan_id, SYMBOLS[n % 3], now)
                    sent.append(plan_id)
                    n += 1
                    if n % 4 == 0:  # a producer that does not know whether it got through tells it again
                        gov.opening(client, sent[max(0, n - 20)], SYMBOLS[max(0, n - 20) % 3], now)

    thread = Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(20)


@contextmanager
def rest(watched: Watched) -> Iterator[list[app.AnyLoop]]:
    """The services beside governor and apply layer, each with its loop, thread and connection, in this process."""
    quick = {"P29_INTERVAL_SEC": "1", "P30_INTERVAL_SEC": "1", "P31_LOOP_SEC": "1", "LOOP_INTERVAL_SEC": "1"}
    loaded = load(OTHERS, {**settings(watched), **quick, "P28_INTERVAL_SEC": "1"}, together=False)
    stop, loops, stores = Event(), [], []
    for name in OTHERS:
        store = app.open_store(loaded)
        metrics = Metrics(name)
        loop, _ = app.assemble(name, app.Parts(loaded, store, metrics, WallClock(), app.paced_source(loaded)))
        loops.append(loop)
        stores.append(store)
    threads = [Thread(target=loop.run, args=(stop,)) for loop in loops]
    for thread in threads:
        thread.start()
    try:
        yield loops
    finally:
        stop.set()
        for thread in threads:
            thread.join(10)
        for store in stores:
            store.close()


def governor(watched: Watched, directory: Path) -> Service:
    """A governor; entering starts it."""
    return Service(
        "governor", "redis://localhost", **{**WIDE, **settings(watched)}, STATE_DIRECTORY=str(directory),
        GOV_CONSUMER="gov-a",
    )  # fmt: skip


def applying(watched: Watched) -> Service:
    """An apply layer; entering starts it."""
    return Service("apply", "redis://localhost", APPLY_MODE="production", LOG_LEVEL="WARNING", **settings(watched))


def cycles(service: Service) -> float:
    """Cycles that ended."""
    return service.metric('quantum_alloc_cycles_total{outcome="ok"}')


def test_the_primary_dies_and_everything_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Killed with SIGKILL: within 5 s every service is ready again and has finished a cycle on the new primary, and the
    server that comes back as an empty primary of its own is nobody's."""
    with Watched(down_after_ms=500) as watched, told(watched, 0.1):
        with governor(watched, tmp_path) as first, applying(watched) as second, rest(watched) as loops:
            until(lambda: first.ready() and second.ready() and all(x.ready for x in loops), 30, "all are ready")
            before = {s.name: cycles(s) for s in (first, second)}
            finished = {loop.cycle.name: loop.cycles for loop in loops}
            old = watched.primary()
            old.kill()
            killed = time.monotonic()
            promoted_s = watched.until_primary(old)
            old.configure()
            old.start()
            until(lambda: all(s.ready() and cycles(s) > before[s.name] for s in (first, second)), 20, "both are ready")
            took_s = time.monotonic() - killed
            until(lambda: all(x.ready for x in loops), 20, "the rest is ready")
            all_s = time.monotonic() - killed
            assert took_s <= max(BACK_S, promoted_s + OURS_S), f"{took_s:.1f} s, promoted after {promoted_s:.1f} s"
            assert all_s <= max(BACK_S, promoted_s + OURS_S), f"{all_s:.1f} s, promoted after {promoted_s:.1f} s"
            with capsys.disabled():
                print(f" [promoted {promoted_s:.1f} s, governor and apply {took_s:.1f} s, all {all_s:.1f} s]", end="")
            client = watched.primary().client
            gov.opening(client, "after", SYMBOLS[0], repr(gov.server_now(client)))
            until(lambda: ap.fates(client).get("after") == "filled", 10, "a plan is permitted and filled")
            until(lambda: all(x.cycles > finished[x.cycle.name] for x in loops), 20, "all have finished a cycle")
            until(lambda: old.client.role()[0] == "slave", 40, "the old primary is a replica")
            assert first.ready()
            assert watched.primary() is not old
            for service in (first, second):
                assert service.metric('quantum_alloc_store_errors_total{code="other"}') == 0.0
            code, _ = first.terminate()
            assert code == 0
        assert "Traceback" not in first.output + second.output


def test_started_before_the_sentinels() -> None:
    """Neither sentinels nor servers are up: it is not ready, it does not end, says so, and works when they come."""
    watched = Watched()
    with applying(watched) as service:
        until(lambda: service.get("/health")[0] == 200, 20, "the port is open")
        until(lambda: service.metric('quantum_alloc_store_errors_total{code="unreachable"}') >= 2, 20, "it has tried")
        assert not service.ready()
        with watched:
            until(service.ready, 20, "it is ready")
            assert watched.primary().client.exists(LIVE.apply_state)
            code, _ = service.terminate()
    assert code == 0
    assert len([line for line in service.output.splitlines() if "ERROR" in line]) <= 2, service.output
    assert "3 sentinels cannot be reached" in service.output


ROUNDS = 5 if CI else 2


def test_one_permit_a_plan_over_random_kills(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """(27) Plans come all the time, some twice, and the primary is killed at random instants, each time with its last
    writes lost: no plan has two permits, on any primary that ever was, nor two fills; permits, ledger and journal
    agree; every plan that stands in the stream at the end is answered."""
    random, sent = Random(27), list[str]()
    seen: dict[str, set[str]] = {}
    stop = Event()
    with Watched(down_after_ms=500) as watched:
        fresh(watched.primary().client)
        watcher = Thread(target=_observe, args=(watched, seen, stop))
        watcher.start()
        try:
            with governor(watched, tmp_path) as first, applying(watched) as second:
                until(lambda: first.ready() and second.ready(), 30, "both are ready")
                with told(watched, 0.01, sent):
                    for _ in range(ROUNDS):
                        time.sleep(random.uniform(0.1, 0.6))  # the instant is the point
                        old = watched.fail_over(lambda: time.sleep(random.uniform(0.02, 0.2)))
                        until(lambda: first.ready() and second.ready(), 30, "both are ready again")
                        watched.bring_back(old)
                client = watched.primary().client
                fresh(client)
                until(lambda: _answered(client), 60, "every plan is answered")
                permits = Counter(e["plan_id"] for e in gov.events(client, "PERMIT"))
                until(
                    lambda: fresh(client) and ap.fates(client).keys() >= permits.keys() - _restored(client), 60, "fills"
                )
        finally:
            stop.set()
            watcher.join(10)
        assert max(permits.values()) == 1
        assert all(len(decisions) == 1 for decisions in seen.values()), "two permits of one plan"
        assert sum(len(gov.ledger(client, s)) for s in SYMBOLS) == len(permits)
        noted = Counter(e.plan_id for e in _journal(tmp_path) if e.is_done)
        assert max(noted.values()) == 1
        assert noted.keys() == permits.keys()
        ap.check(client)
        lost = len(_restored(client))
    with capsys.disabled():
        print(f" [{ROUNDS} kills, {len(sent)} plans, {len(permits)} permits, {lost} put back]", end="")
    assert lost > 0, "no failover has lost a permit"


def _observe(watched: Watched, seen: dict[str, set[str]], stop: Event) -> None:
    """Everything that a reader of permits ever saw, on whatever primary: decision ids by plan."""
    while not stop.wait(0.005):
        with suppress(redis.RedisError, OSError, LookupError):
            for node in [n for n in watched.data if n.process is not None]:
                for event in gov.events(node.client, "PERMIT"):
                    seen.setdefault(event["plan_id"], set()).add(event["decision_id"])


def _answered(client: Client) -> bool:
    return int(client.xpending(gov.PLANS, gov.GROUP)["pending"]) == 0 and _is_read(client)


def _is_read(client: Client) -> bool:
    (group,) = client.xinfo_groups(gov.PLANS)
    return bool(group["last-delivered-id"] == client.xinfo_stream(gov.PLANS)["last-generated-id"])


def _restored(client: Client) -> set[str]:
    return {e["plan_id"] for e in gov.events(client, "PERMIT") if e["reason"] == "restored"}


def _journal(directory: Path) -> list[journal.Entry]:
    return [e for path in directory.glob(f"*{journal.SUFFIX}") for e in journal.read(path)]


def test_a_permit_that_a_failover_lost_is_never_given_again(tmp_path: Path) -> None:
    """(27) Permitted, acknowledged, and lost with the primary; the plan is told again, by the same id: the journal puts
    ledger and tombstone back, the answer is a REPLAY, and no permit stands."""
    with Watched() as watched:
        g = gov.governing(store_of(watched), tmp_path, "one", params=PARAMS)
        client = watched.primary().client
        fresh(client)
        until(g.once, 10, "a first cycle")
        at = repr(gov.server_now(client))

        def lose() -> None:
            gov.opening(client, "p1", SYMBOLS[0], at)
            until(lambda: g.once() and client.exists(LIVE.permit("p1")), 10, "p1 is permitted")

        watched.fail_over(lose)
        client = watched.primary().client
        assert not client.exists(LIVE.permit("p1"), LIVE.tombstone("p1"))
        fresh(client)
        gov.opening(client, "p1", SYMBOLS[0], at)
        until(lambda: g.once() and gov.events(client, "REPLAY"), 20, "p1 is answered again")
        g.crash()
        assert [(e["event"], e["reason"]) for e in gov.events(client) if e["plan_id"] == "p1"] == [
            ("PERMIT", "restored"), ("REPLAY", "ok"),
        ]  # fmt: skip
        assert not client.exists(LIVE.permit("p1"))
        assert list(gov.ledger(client, SYMBOLS[0])) == ["p1"]
        assert (g.keeper.changes, g.keeper.restored) == (1, 1)


def test_a_halt_that_a_failover_lost_holds(tmp_path: Path) -> None:
    """(26) HALT was set, seen by the governor, and lost with the primary: nothing is permitted on the new one."""
    with Watched() as watched:
        g = gov.governing(store_of(watched), tmp_path, "one", params=PARAMS)
        client = watched.primary().client
        fresh(client)
        until(g.once, 10, "a first cycle")

        def lose() -> None:
            client.set(LIVE.kill, "halt")
            gov.opening(client, "p1", SYMBOLS[0], repr(gov.server_now(client)))
            until(lambda: g.once() and gov.events(client, "BLOCK"), 10, "the halt is seen")

        watched.fail_over(lose)
        client = watched.primary().client
        assert client.get(LIVE.kill) is None
        fresh(client)
        gov.opening(client, "p2", SYMBOLS[0], repr(gov.server_now(client)))
        until(lambda: g.once() and gov.events(client, "BLOCK"), 20, "p2 is answered")
        g.crash()
        assert [(e["plan_id"], e["reason"]) for e in gov.events(client, "BLOCK")] == [("p2", "kill_switch_active")]
        assert client.hget(LIVE.latch, "state") == "HALT"


def test_a_fill_that_a_failover_lost_is_not_filled_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The last write of the account is lost, with two fills; their permits still stand on the new primary: they are not
    filled a second time, the loss is said and counted, and the account that stands adds up."""
    with Watched() as watched:
        g = gov.governing(store_of(watched), tmp_path, "one", params=PARAMS)
        a = ap.applying(store_of(watched), symbols=SYMBOLS)
        client = watched.primary().client
        fresh(client)
        until(lambda: g.once() and a.once(), 10, "a first cycle")
        for n in (1, 2):
            gov.opening(client, f"p{n}", SYMBOLS[n], repr(gov.server_now(client)))
        until(lambda: g.once() and len(gov.events(client, "PERMIT")) == 2, 10, "both are permitted")

        def lose() -> None:
            until(lambda: a.once() and len(ap.fills(client)) == 2, 10, "both are filled")

        watched.fail_over(lose)
        client = watched.primary().client
        assert (len(ap.fills(client)), len(ap.permits(client))) == (0, 2)
        fresh(client)
        until(lambda: a.once() and len(ap.results(client)) == 2, 20, "both have their result")
        for _ in range(5):
            a.once()
        a.crash()
        g.crash()
        assert ap.fills(client) == []
        assert ap.fates(client) == {"p1": "permit_gone", "p2": "permit_gone"}
        assert a.metrics.value("quantum_alloc_account_writes_lost_total") >= 1.0
        (said,) = [r.getMessage() for r in caplog.records if "has lost the last" in r.getMessage()]
        assert "p1, p2" in said
        ap.check(client)


def test_without_replicas_nothing_is_permitted(tmp_path: Path) -> None:
    """NOREPLICAS, met for real: min-replicas-to-write is not fulfilled, so nothing is permitted, and nothing is lost;
    it goes on by itself when they are back."""
    with Watched(("min-replicas-to-write 1", "min-replicas-max-lag 10")) as watched:
        g = gov.governing(store_of(watched), tmp_path, "one", params=PARAMS)
        client = watched.primary().client
        fresh(client)
        until(g.once, 10, "a first cycle")
        gov.opening(client, "p1", SYMBOLS[0], repr(gov.server_now(client)))
        watched.cut(watched.primary())
        with pytest.raises(redis.ResponseError, match="NOREPLICAS"):
            client.set("x", "1")
        for _ in range(3):
            assert not g.once()
        assert g.loop.metrics.values("quantum_alloc_store_errors_total") == {("NOREPLICAS",): 3.0}
        assert gov.events(client) == []
        watched.mend(watched.primary())
        until(lambda: g.once() and gov.events(client, "PERMIT"), 30, "p1 is permitted")
        g.crash()


def test_a_primary_that_hangs_is_left(tmp_path: Path) -> None:
    """SIGSTOP in place of a death: its time-outs bound each cycle, another takes its place, and the one that wakes up
    as a primary of its own gets no permit."""
    with Watched() as watched:
        g = gov.governing(store_of(watched), tmp_path, "one", params=PARAMS)
        client = watched.primary().client
        fresh(client)
        until(g.once, 10, "a first cycle")
        old = watched.primary()
        with old.stopped():
            longest = 0.0

            def turned() -> bool:
                nonlocal longest
                started = time.monotonic()
                done = g.once()
                longest = max(longest, 0.0 if done else time.monotonic() - started)
                return done

            until(turned, 40, "a cycle on the new primary")
            new = _running_primary(watched, old)
        fresh(new.client)
        gov.opening(new.client, "p1", SYMBOLS[0], repr(gov.server_now(new.client)))
        until(lambda: g.once() and gov.events(new.client, "PERMIT"), 10, "p1 is permitted")
        g.crash()
        assert longest < 2.5, f"a cycle took {longest:.1f} s"
        assert json.loads(new.client.get(LIVE.permit("p1")))["granted"] is True


def _running_primary(watched: Watched, old: Node) -> Node:
    (found,) = [n for n in watched.data if n is not old and n.client.role()[0] == "master"]
    return found
