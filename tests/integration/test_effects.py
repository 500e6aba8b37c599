"""What is written, seen from outside: MONITOR, universes, bounded state."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread
from typing import Any

import pytest
import redis

import quantum_alloc.core as qa
from quantum_alloc.adapters import universe
from quantum_alloc.adapters.clock import SetClock
from quantum_alloc.adapters.effects import HashSet, StreamAdd
from quantum_alloc.adapters.embedded import EmbeddedServer
from quantum_alloc.adapters.keys import Keys, Lane
from quantum_alloc.adapters.metrics import COMMON, OTHER, TABLES, Metrics
from quantum_alloc.adapters.store import Store, StoreError
from quantum_alloc.adapters.universe import Universe
from quantum_alloc.adapters.writes import Target
from quantum_alloc.core.params import from_json
from quantum_alloc.services import allocation
from quantum_alloc.services.cli import main
from quantum_alloc.services.loop import Loop
from tests.conftest import absent
from tests.property.strategies import NOW
from tests.support.worlds import Client, World, load, memory, written

WRITES = frozenset(
    {"HSET", "HDEL", "SET", "DEL", "EXPIRE", "XADD", "SADD", "SREM", "PERSIST", "XTRIM", "HMSET", "RENAME"}
)
SHADOW_MAY = (
    "quantum:stream:allocation.decision", "quantum:stream:allocation.cycle", "quantum:stream:budget.violation",
    "quantum:stream:portfolio.state", "quantum:state:portfolio", "quantum:portfolio:peak", "quantum:portfolio:budget:",
    "quantum:universe",
)  # fmt: skip


@contextmanager
def monitored(url: str, verbs: frozenset[str] = WRITES) -> Iterator[list[str]]:
    """Every key that these commands name meanwhile, as the server saw it; of a scan its pattern."""
    keys: list[str] = []
    client = redis.Redis.from_url(url, protocol=2, decode_responses=True)
    monitor_of: Any = client.monitor
    with monitor_of() as monitor:

        def listen() -> None:
            for entry in monitor.listen():
                words = str(entry["command"]).split()
                if words[:2] == ["ECHO", "the-end"]:
                    return
                if words and words[0].upper() in verbs:
                    keys.append(words[3] if words[0].upper() == "SCAN" else words[1])

        thread = Thread(target=listen)
        thread.start()
        yield keys
        client.echo("the-end")
        thread.join(5)
    client.close()


def a_world(symbols: int = 3) -> World:
    """A balance, a position that is over its budget, markets and budgets."""
    world = World(NOW).put("quantum:account:balance", balance=100_000, timestamp=NOW)
    for i in range(symbols):
        s = f"S{i}USDT"
        world = world.put(f"quantum:state:market:{s}", price=10, sigma=0.01, timestamp=NOW)
        world = world.put(
            f"quantum:state:positions:{s}", position_amt=1000, mark_price=10, unrealized_pnl=-1, ts_epoch=NOW
        )
    return world


def run(url: str, *names: str, mode: str = "shadow", **environ: str) -> None:
    """One cycle of each service."""
    own = {"REDIS_URL": url, "LOG_LEVEL": "ERROR", "P28_MODE": mode, "P29_MODE": mode, **environ}
    for name in names:
        # a loaded machine may keep the server from answering within its 200 ms: exit code 69
        codes = [main(["run", name, "--once", "--now", str(NOW)], own)]
        while codes[-1] == 69 and len(codes) < 4:
            codes.append(main(["run", name, "--once", "--now", str(NOW)], own))
        assert codes[-1] == 0


@pytest.mark.parametrize("mode", ["shadow", "", "Enforced", "ENFORCE!", "0"])
def test_shadow_writes_its_own_alone(mode: str, client: Client, any_server: EmbeddedServer) -> None:
    """(37) Seen with MONITOR: in shadow, and (39) in any unknown mode, nothing but the service's own is written."""
    load(client, a_world())
    with monitored(any_server.url) as keys:
        run(any_server.url, "portfolio", "budget", "allocation", mode=mode)
    assert {k for k in keys if not k.startswith(SHADOW_MAY)} == set()
    assert len(keys) > 10
    found = written(client)
    assert found.hashes == {}
    assert len(found.decisions) == 3
    assert {d["mode"] for d in found.decisions.values()} == {"shadow"}
    assert client.hget("quantum:portfolio:budget:S0USDT", "mode") == "shadow"


@pytest.mark.parametrize("mode", ["enforce", " Enforce ", "ENFORCE"])
def test_enforce_writes_targets(mode: str, client: Client, any_server: EmbeddedServer) -> None:
    """Exactly enforce, trimmed and case-folded, writes the target hashes, each with its expiry."""
    load(client, a_world())
    run(any_server.url, "portfolio", "budget", "allocation", mode=mode, TARGET_TTL_SEC="77")
    assert len(written(client).hashes) == 3
    assert 0 < client.ttl("quantum:allocation:target:S0USDT") <= 77
    assert client.smembers("quantum:universe") == {"S0USDT", "S1USDT", "S2USDT"}
    assert client.xlen("quantum:stream:budget.violation") == 3


def test_the_proposals_are_not_taken_for_targets(client: Client, any_server: EmbeddedServer) -> None:
    """A scan for targets passes the proposed ones over, in both lanes, and does not count them as refused names."""
    client.hset("quantum:allocation:target:proposed:BTCUSDT", mapping={"x": 1})
    client.hset("quantum:allocation:target:BTCUSDT", mapping={"x": 1})
    store = Store(any_server.url)
    client.hset("quantum:shadow:allocation:target:proposed:ETHUSDT", mapping={"x": 1})
    client.hset("quantum:shadow:allocation:target:SOLUSDT", mapping={"x": 1})
    looking = Universe(Keys(), ("quantum:allocation:target:", "quantum:shadow:allocation:target:"))
    found = looking.find(store, store.read(looking.query), NOW)
    assert (found.names, found.refused) == (("BTCUSDT", "SOLUSDT"), 0)
    store.close()


def test_the_universe_is_bounded_and_joined(client: Client, any_server: EmbeddedServer) -> None:
    """Set and scan are joined every 60 s; beyond the limit what has keys comes first; a flood is bounded; QA_SYMBOLS
    replaces both."""
    store = Store(any_server.url)
    client.sadd("quantum:universe", *(f"A{i:04}" for i in range(30)), "bad name")
    client.hset("quantum:portfolio:budget:ZZUSDT", mapping={"x": 1})
    looking = Universe(Keys(), ("quantum:portfolio:budget:",), limit=10)
    found = looking.find(store, store.read(looking.query), 0.0)
    assert len(found.names) == 10
    assert "ZZUSDT" in found.names
    assert (found.dropped, found.refused) == (21, 1)
    client.hset("quantum:portfolio:budget:YYUSDT", mapping={"x": 1})
    assert "YYUSDT" not in looking.find(store, store.read(looking.query), 59.0).names
    assert "YYUSDT" in looking.find(store, store.read(looking.query), 60.0).names
    client.sadd("quantum:universe", *(f"B{i:05}" for i in range(500)))
    assert len(looking.find(store, store.read(looking.query), 61.0).names) == 10
    fixed = Universe(Keys(), ("quantum:portfolio:budget:",), ("BTCUSDT", "AAUSDT", "BTCUSDT"))
    assert fixed.find(store, store.read(fixed.query), 0.0).names == ("AAUSDT", "BTCUSDT")
    store.close()


def test_symbols_that_come_and_go_leave_labels_bounded() -> None:
    """(41) 10,000 symbols that come and go: at most METRICS_MAX_SYMBOLS labels, the rest counts as `other`."""
    metrics = Metrics("allocation", max_symbols=50)
    for i in range(10_000):
        metrics.add("p29_targets_computed_total", f"S{i}")
        metrics.replace("p29_target_usd", {f"S{i}": 1.0})
        metrics.replace("p29_cluster_factor", {f"C{j}": 1.0 for j in range(i % 90)})
    counted = metrics.values("p29_targets_computed_total")
    assert len(counted) == 51
    assert sum(counted.values()) == 10_000
    assert counted[(OTHER,)] == 9_950
    assert len(metrics.values("p29_target_usd")) == 0
    assert len(metrics.values("p29_cluster_factor")) <= 50
    assert len(metrics.render()) < 20_000


def test_ten_thousand_symbols_in_one_cycle(one_client: Client, one_server: EmbeddedServer) -> None:
    """10,000 symbols are allocated in one cycle; one more is dropped and counted."""
    pipe = one_client.pipeline(transaction=False)
    pipe.hset("quantum:state:portfolio", mapping={"equity_usd": 1e6, "drawdown": 0.0, "timestamp": NOW})
    for i in range(10_001):
        pipe.hset(f"quantum:portfolio:budget:S{i:05}", mapping={"budget_usd": 10 + i, "timestamp": NOW})
    pipe.execute()
    run(one_server.url, "allocation", mode="enforce", STREAM_MAXLEN="1000000")
    found = written(one_client)
    assert len(found.decisions) == len(found.hashes) == 10_000
    assert sum(float(h["target_usd"]) for h in found.hashes.values()) <= 0.6e6 * (1 + 1e-9)


def test_lanes_and_tags() -> None:
    """Names of the shadow lane never coincide with live ones; a hash tag puts all into one slot."""
    live, shadow, tagged = Keys(), Keys(Lane.SHADOW), Keys(tag="q")
    for name in ("portfolio", "peak", "balance", "clusters", "universe"):
        assert getattr(shadow, name) == getattr(live, name).replace("quantum:", "quantum:shadow:")
        assert getattr(tagged, name) == "{q}" + getattr(live, name)
    assert live.bars("BTCUSDT") == "quantum:stream:market.bars:BTCUSDT"
    assert live.attribution("X1") == "quantum:alpha:attribution:X1"


def test_memory_engine_and_command_agree(client: Client, any_server: EmbeddedServer) -> None:
    """The laws' in-memory engine gives the records of the command over a real server."""
    world = World(NOW).put("quantum:state:portfolio", equity_usd=1e5, drawdown=0.2, timestamp=NOW)
    world = world.put("quantum:portfolio:budget:BTCUSDT", budget_usd=1820.93, timestamp=NOW)
    load(client, world)
    run(any_server.url, "allocation")
    assert written(client).decisions == memory(world).decisions


def test_budget_hashes_can_be_made_again(client: Client, any_server: EmbeddedServer) -> None:
    """A budget hash carries what made it: the formula over its own fields gives its budget, bit for bit."""
    load(client, a_world())
    run(any_server.url, "portfolio", "budget", P28_STALE_DATA_SEC="30", ALPHA_HEAT="0.7")
    for s in ("S0USDT", "S1USDT", "S2USDT"):
        h = client.hgetall(f"quantum:portfolio:budget:{s}")
        params = from_json(qa.BudgetParams, h["params"])
        assert params.alpha_heat == 0.7
        equity, heat, stress, vol = (
            float(h[n]) for n in ("equity_usd", "portfolio_heat", "cluster_stress", "vol_regime")
        )
        assert repr(qa.budget(equity, heat, stress, vol, params)) == h["budget_usd"]
        assert h["params_hash"] == qa.config_hash(params)


def test_a_halted_cycle_shows_no_old_targets(client: Client, any_server: EmbeddedServer) -> None:
    """When the portfolio turns unusable the gauges of targets are empty, and the cycle counts as nothing written."""
    world = World(NOW).put("quantum:state:portfolio", equity_usd=1e5, drawdown=0.2, timestamp=NOW)
    load(client, world.put("quantum:portfolio:budget:BTCUSDT", budget_usd=1820.93, timestamp=NOW))
    store, metrics, clock = Store(any_server.url), Metrics("allocation"), SetClock(NOW)
    build = allocation.build(store, metrics, allocation.universe_of(), qa.AllocationParams(), Target(), 5.0)
    loop = Loop(build, store, metrics, clock)
    assert loop.once()
    assert metrics.values("p29_target_usd") == {("BTCUSDT",): 1820.93 * 0.4}
    clock.set(NOW + 61)
    assert loop.once()
    assert metrics.values("p29_target_usd") == {}
    assert metrics.value("quantum_alloc_cycles_total", "nothing") == 1.0
    assert (loop.last_nothing, loop.ready) == ("portfolio_stale", True)
    store.close()


@pytest.mark.parametrize("service", TABLES)
def test_prometheus_accepts_the_metrics(service: str) -> None:
    """promtool check metrics finds nothing in what a service serves."""
    promtool = shutil.which("promtool")
    if promtool is None:
        absent("promtool")
    metrics = Metrics(service)
    for row in (*COMMON, *TABLES[service]):
        labels = ["x"] * len(row.labels)
        if row.kind == "counter":
            metrics.add(row.name, *labels)
        elif row.kind == "gauge":
            metrics.set(row.name, 1.0, *labels)
        else:
            metrics.observe(row.name, 0.1)
    done = subprocess.run([str(promtool), "check", "metrics"], input=metrics.render(), capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


BAD_RECORDS: dict[str, tuple[str, dict[str, object]]] = {
    "position, malformed": ("quantum:state:positions:S1USDT", {"position_amt": "NaN"}),
    "position, stale": ("quantum:state:positions:S1USDT", {"ts_epoch": NOW - 61}),
    "position, future": ("quantum:state:positions:S1USDT", {"ts_epoch": NOW + 6}),
    "market, malformed": ("quantum:state:market:S1USDT", {"sigma": "-1"}),
    "market, no price": ("quantum:state:market:S1USDT", {"price": "0"}),
    "market, stale": ("quantum:state:market:S1USDT", {"timestamp": NOW - 61}),
}


@pytest.mark.parametrize("name", BAD_RECORDS)
def test_a_bad_position_or_market_costs_its_own_heat_alone(
    name: str, client: Client, any_server: EmbeddedServer
) -> None:
    """The others' budgets are those of a portfolio in which this symbol has no heat; its own one is there still,
    and a portfolio of eleven loses nothing but what that record said."""
    key, fields = BAD_RECORDS[name]
    world = a_world(11).put("quantum:state:portfolio", equity_usd=1e6, drawdown=0, timestamp=NOW)
    load(client, world.without(key.replace("positions", "market")).without(key.replace("market", "positions")))
    run(any_server.url, "budget")
    without_heat = {s: client.hget(f"quantum:portfolio:budget:S{s}USDT", "budget_usd") for s in range(11) if s != 1}
    load(client, world.put(key, **fields))
    run(any_server.url, "budget")
    found = {s: client.hget(f"quantum:portfolio:budget:S{s}USDT", "budget_usd") for s in range(11)}
    assert float(found.pop(1)) > 0
    assert found == without_heat


def test_one_unreadable_position_is_left_out_and_told(client: Client, any_server: EmbeddedServer) -> None:
    """Equity counts the ten readable positions; the eleventh is named by a count and the source is partial."""
    load(client, a_world(11).wrong_type("quantum:state:positions:S1USDT"))
    run(any_server.url, "portfolio")
    h = client.hgetall("quantum:state:portfolio")
    assert (float(h["equity_usd"]), h["positions_count"], h["left_out"], h["source"]) == (
        99_990.0,
        "10",
        "1",
        "partial",
    )
    assert 0 < client.ttl("quantum:state:portfolio") <= 120
    assert client.exists("quantum:portfolio:peak") == 0, "an equity that lacks a position raises no peak"
    load(client, a_world(11))
    run(any_server.url, "portfolio")
    assert client.ttl("quantum:portfolio:peak") == -1
    assert float(client.hget("quantum:portfolio:peak", "peak_equity_usd")) == 99_989.0


@pytest.mark.parametrize("raw", ["NaN", "", "-1", "x" * 5000])
def test_an_unreadable_peak_stays_and_hides_the_drawdown(raw: str, client: Client, any_server: EmbeddedServer) -> None:
    """A peak that cannot be read is not replaced by today's equity; the drawdown is left out, so readers take HIGH."""
    world = a_world(1).put("quantum:portfolio:peak", peak_equity_usd=raw, ts=NOW)
    load(client, world.put("quantum:state:portfolio", drawdown="0.01"))
    run(any_server.url, "portfolio", "budget", "allocation")
    assert client.hget("quantum:portfolio:peak", "peak_equity_usd") == raw
    assert client.hget("quantum:state:portfolio", "drawdown") is None
    assert {d["drawdown_zone"] for d in written(client).decisions.values()} == {"HIGH"}


def test_the_peak_outlives_a_restart(client: Client, any_server: EmbeddedServer) -> None:
    """The peak on record makes the drawdown after a restart."""
    load(client, a_world(1).put("quantum:portfolio:peak", peak_equity_usd="125000", ts=1))
    run(any_server.url, "portfolio")
    assert float(client.hget("quantum:state:portfolio", "drawdown")) == pytest.approx(1 - 99_999 / 125_000)
    assert client.hget("quantum:portfolio:peak", "peak_equity_usd") == "125000"


@pytest.mark.parametrize("broken", [{"balance": "NaN"}, {"timestamp": NOW - 121}, {"timestamp": NOW + 6}, None])
def test_without_a_balance_nothing_is_written(
    broken: dict[str, object] | None, client: Client, any_server: EmbeddedServer
) -> None:
    """Balance missing, malformed, older than 120 s or from the future: no portfolio."""
    world = a_world(1)
    key = "quantum:account:balance"
    load(client, world.without(key) if broken is None else world.put(key, **broken))
    run(any_server.url, "portfolio")
    assert client.exists("quantum:state:portfolio", "quantum:portfolio:peak") == 0


def test_while_nothing_is_found_the_scan_is_not_put_off(client: Client, any_server: EmbeddedServer) -> None:
    """A service that starts before its inputs sees the first of them in its next cycle, not a minute later."""
    store = Store(any_server.url)
    looking = Universe(Keys(), ("quantum:portfolio:budget:",))
    assert looking.find(store, store.read(looking.query), 0.0).names == ()
    client.hset("quantum:portfolio:budget:BTCUSDT", mapping={"x": 1})
    assert looking.find(store, store.read(looking.query), 5.0).names == ("BTCUSDT",)
    store.close()


def test_half_a_scan_is_no_portfolio(
    client: Client, any_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the first scan of a large key space goes on, portfolio, budget and allocation write nothing: half of the
    positions would make a peak that never was, half of a group would get the whole of its cap."""
    from quantum_alloc.services import budget, portfolio

    world = a_world(3).put("quantum:state:portfolio", equity_usd=1e5, drawdown=0.0, timestamp=NOW)
    load(client, world.put("quantum:portfolio:budget:S0USDT", budget_usd=1000, timestamp=NOW))
    monkeypatch.setattr(universe, "PAGES_PER_CYCLE", 2)
    client.mset({f"other:{i}": "" for i in range(6_000)})
    store = Store(any_server.url)
    built: list[Any] = [
        portfolio.build(store, Metrics("portfolio"), portfolio.universe_of(), Target(), 5.0, 120, 60),
        budget.build(store, Metrics("budget"), budget.universe_of(), qa.BudgetParams(), Target(), 10.0),
        allocation.build(store, Metrics("allocation"), allocation.universe_of(), qa.AllocationParams(), Target(), 5.0),
    ]
    for cycle in built:
        loop: Any = Loop(cycle, store, Metrics(cycle.name), SetClock(NOW))
        assert loop.once()
        assert loop.last_nothing == "scanning", cycle.name
        for _ in range(9):
            assert loop.once()
        assert loop.last_nothing == "", cycle.name
    store.close()


@pytest.mark.parametrize("equity", [-5.0, 0.0])
def test_an_equity_that_is_not_positive_makes_no_peak(
    equity: float, client: Client, any_server: EmbeddedServer
) -> None:
    """Nothing is written that its own reader would refuse; the first positive equity is the first peak."""
    load(client, World(NOW).put("quantum:account:balance", balance=equity, timestamp=NOW))
    run(any_server.url, "portfolio")
    assert client.exists("quantum:portfolio:peak") == 0
    load(client, World(NOW).put("quantum:account:balance", balance=1000, timestamp=NOW))
    run(any_server.url, "portfolio")
    assert float(client.hget("quantum:portfolio:peak", "peak_equity_usd")) == 1000.0


def test_a_refused_multi_lets_nothing_through(client: Client, any_server: EmbeddedServer) -> None:
    """An account without the right to MULTI: not one of the commands is carried out."""
    client.execute_command("ACL", "SETUSER", "plain", "on", ">pw", "~*", "+@all", "-@transaction")
    store = Store(any_server.url.replace("unix://", "unix://plain:pw@"))
    with pytest.raises(StoreError) as caught:
        store.apply([(StreamAdd("s", {"a": "b"}, 100), HashSet("h", {"a": "b"}))])
    assert caught.value.is_configuration
    assert client.exists("s", "h") == 0
    store.close()
    client.execute_command("ACL", "DELUSER", "plain")
