"""Regime and clusters over a real server: bars in, regime, map and stress out."""

from __future__ import annotations

import json
import math
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import quantum_alloc.core as qa
from quantum_alloc.adapters import universe
from quantum_alloc.adapters.bars import NEWEST, BarReader, bars_in, decode_bar
from quantum_alloc.adapters.clock import SetClock
from quantum_alloc.adapters.embedded import EmbeddedServer
from quantum_alloc.adapters.keys import LIVE
from quantum_alloc.adapters.metrics import Metrics
from quantum_alloc.adapters.store import Store
from quantum_alloc.adapters.writes import Target
from quantum_alloc.services import clusters, regime
from quantum_alloc.services.cli import main
from quantum_alloc.services.clusters import MapError, read_static_map
from quantum_alloc.services.loop import Loop
from tests.integration.test_effects import monitored
from tests.property.test_clusters import blocks
from tests.property.test_regime import ar1
from tests.support.flow import run
from tests.support.running import ALONE, Service, until
from tests.support.worlds import Client

Floats = NDArray[np.float64]
NOW = 1769577480
REGIMES = "quantum:stream:regime.state"


def trade(client: Client, returns: Floats, end: float = NOW, bar_s: float = 60.0) -> list[str]:
    """Bars of S00, S01, ... with these returns, the last closing at ``end``."""
    pipe = client.pipeline(transaction=False)
    names = [f"S{i:02}USDT" for i in range(len(returns))]
    for name, steps in zip(names, returns, strict=True):
        closes = np.exp(np.concatenate([[0.0], np.cumsum(steps)]))
        for k, close in enumerate(closes):
            ts = end - bar_s * (closes.size - 1 - k)
            pipe.xadd(
                LIVE.bars(name), {"ts": repr(ts), "close": repr(float(close)), "volume": "1", "bar_s": repr(bar_s)}
            )
    pipe.execute()
    return names


def hold(client: Client, name: str, notional: float, now: int = NOW) -> None:
    """A position of this signed notional."""
    fields = {"position_amt": notional, "mark_price": 1, "unrealized_pnl": 0, "ts_epoch": now}
    client.hset(LIVE.position(name), mapping=fields)


def regimes(client: Client) -> list[dict[str, str]]:
    """All entries."""
    return [f for _, f in client.xrange(REGIMES)]


def test_a_trend_is_published_and_moves_targets(client: Client, any_server: EmbeddedServer) -> None:
    """A universe with momentum: TREND with its statistic and confidence, which the next allocation uses; the record is
    made again from its statistic."""
    trade(client, np.array([ar1(np.random.default_rng(5), 500, 0.4)]))
    run(any_server.url, "regime", now=NOW)
    (found,) = regimes(client)
    assert found["regime"] == "TREND"
    assert float(found["z"]) > 1.64
    assert 0.9 < float(found["confidence"]) <= 1.0
    assert (found["bars"], found["timestamp"], found["ts"]) == ("240", str(NOW), str(NOW))
    assert qa.differences(found) == {}
    assert qa.recompute(found).to_dict()["regime"] == "TREND"
    client.hset("quantum:state:portfolio", mapping={"equity_usd": 1e5, "drawdown": 0, "timestamp": NOW})
    client.hset(LIVE.budget("S00USDT"), mapping={"budget_usd": 1000, "timestamp": NOW})
    run(any_server.url, "allocation", now=NOW)
    made = client.xrange("quantum:stream:allocation.decision")[-1][1]
    assert (made["regime"], made["regime_factor"], made["target_usd"]) == ("TREND", "1.2", "1200.0")


@pytest.mark.parametrize(
    ("bars", "later", "why"), [(100, 0, "too_few_bars"), (500, 180, "stale_bars"), (0, 0, "no_bars")]
)
def test_what_is_no_regime_is_not_published(
    bars: int, later: int, why: str, client: Client, any_server: EmbeddedServer, capfd: pytest.CaptureFixture[str]
) -> None:
    """Too few bars, old ones, none: no entry, and the log says why; 179 s later they still count."""
    if bars:
        trade(client, np.array([ar1(np.random.default_rng(5), bars, 0.4)]))
    run(any_server.url, "regime", now=NOW + later, LOG_LEVEL="INFO")
    assert regimes(client) == []
    assert f"nothing is written: {why}" in capfd.readouterr().err
    if later:
        run(any_server.url, "regime", now=NOW + 179)
        assert len(regimes(client)) == 1


def test_bars_are_those_of_the_stream_with_and_without_a_restart(client: Client, any_server: EmbeddedServer) -> None:
    """A reader that follows the stream and one that begins anew hold the same bars: while bars come one by one or many
    at once, out of order, twice, malformed, from the future, and after the stream was begun again."""
    rng = np.random.default_rng(3)
    store, keep = Store(any_server.url), 50
    following, now, name = BarReader(LIVE, keep), float(NOW), LIVE.bars("AAUSDT")
    for round_ in range(60):
        for _ in range(int(rng.choice([0, 1, 1, 2, NEWEST, 3 * NEWEST]))):
            now += 60.0
            ts = now - 60.0 * int(rng.choice([0, 0, 0, 1, 3]))
            fields: dict[str, Any] = {"ts": ts, "close": round(1 + rng.random(), 6), "volume": 1, "bar_s": 60}
            if rng.random() < 0.1:
                fields[str(rng.choice(["ts", "close", "bar_s"]))] = str(rng.choice(["NaN", "", "-1", "0x1"]))
            elif rng.random() < 0.05:
                fields["ts"] = now + 1e6
            client.xadd(name, fields)
        client.xtrim(name, maxlen=2 * keep, approximate=False)
        if round_ == 40:
            client.delete(name)
        followed = following.read(store, ["AAUSDT", "BBUSDT"], now)
        anew = BarReader(LIVE, keep).read(store, ["AAUSDT", "BBUSDT"], now)
        assert followed.keys() == anew.keys()
        for symbol, bars in anew.items():
            mine = followed[symbol]
            assert mine.times.tolist() == bars.times.tolist()
            assert mine.closes.tolist() == bars.closes.tolist()
            assert (np.diff(mine.times) > 0).all()
            assert mine.times.size <= keep
            assert mine.times[-1] <= now + 5
    assert following.malformed > 0
    store.close()


@pytest.mark.parametrize(
    "entry", [None, [b"1-0", [b"ts", b"60"]], [b"1-0", [b"ts", b"60", b"close", b"0", b"bar_s", b"60"]], [b"1-0", b"x"]]
)
def test_malformed_bars_are_none(entry: Any) -> None:
    """No entry, no close, a close of 0, no fields."""
    assert decode_bar(entry) is None
    assert bars_in(np.empty((0, 3)), 0.0).times.size == 0


def test_the_last_of_equal_times_counts() -> None:
    """A bar that is given twice: the later entry; malformed ones and those from the future are left out."""
    nan = math.nan
    rows = np.array([[60, 1, 60], [120, 2, 60], [nan, nan, nan], [60, 3, 60], [120, 4, 60], [9e9, 5, 60]])
    found = bars_in(rows, 126.0)
    assert (found.times.tolist(), found.closes.tolist()) == ([60.0, 120.0], [3.0, 4.0])
    assert bars_in(rows[:2], 114.0).times.tolist() == [60.0]
    assert bars_in(rows[:2], 115.0).times.tolist() == [60.0, 120.0]


def test_clusters_are_published_whole_with_their_strain(client: Client, any_server: EmbeddedServer) -> None:
    """Three groups of correlated symbols: the map is replaced as a whole, each stress expires after 180 s and carries
    what it is made of and the members' alpha; seen with MONITOR, nothing else is written."""
    names = trade(client, blocks(np.random.default_rng(1), [3, 2, 1]))
    for i, name in enumerate(names):
        hold(client, name, 100.0 * (i + 1) * (-1 if i == 4 else 1))
    client.hset(LIVE.attribution(names[0]), mapping={"alpha_score": "0.4", "ts_utc": NOW})
    client.hset(LIVE.attribution(names[1]), mapping={"alpha_score": "0.2", "ts_utc": NOW})
    client.hset(LIVE.clusters, mapping={"OLD": '["GONEUSDT"]', "x": "oops"})
    with monitored(any_server.url) as keys:
        run(any_server.url, "clusters", now=NOW)
    found = {c: json.loads(m) for c, m in client.hgetall(LIVE.clusters).items()}
    assert found == {names[2]: names[:3], names[4]: names[3:5], names[5]: names[5:]}
    assert {re.sub(r":S\d\dUSDT$", "", k) for k in keys} == {LIVE.clusters, "quantum:cluster:stress"}
    one = client.hgetall(LIVE.stress(names[2]))
    weight, corr = 600 / 2100, float(one["correlation"])
    assert 0.85 < corr < 0.95
    assert float(one["weight"]) == pytest.approx(weight)
    assert float(one["concentration"]) == 1.0
    assert float(one["stress"]) == pytest.approx(weight * corr)
    assert float(one["alpha"]) == pytest.approx(0.3)
    two = client.hgetall(LIVE.stress(names[4]))
    assert float(two["concentration"]) == pytest.approx(100 / 900)
    assert 0 < client.ttl(LIVE.stress(names[2])) <= 180
    assert client.ttl(LIVE.clusters) == -1


def test_status_shows_clusters_with_their_alpha(
    client: Client, any_server: EmbeddedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """One row a cluster: members, stress, its age, alpha."""
    now = int(time.time())
    names = trade(client, blocks(np.random.default_rng(1), [2, 1]), end=now)
    hold(client, names[0], 100, now)
    client.hset(LIVE.attribution(names[0]), mapping={"alpha_score": "0.4", "ts_utc": now})
    run(any_server.url, "clusters", now=now)
    assert main(["status", "--format", "json"], {"REDIS_URL": any_server.url, **ALONE}) == 1
    rows = {r["cluster"]: r for r in json.loads(capsys.readouterr().out)["clusters"]}
    assert rows.keys() == {names[0], names[2]}
    assert (rows[names[0]]["members"], rows[names[0]]["alpha"]) == (2, 0.4)
    assert rows[names[0]]["stress"] > 0.8
    assert main(["status"], {"REDIS_URL": any_server.url, **ALONE}) == 1
    assert "alpha" in capsys.readouterr().out


def test_names_live_in_redis(client: Client, any_server: EmbeddedServer) -> None:
    """After a restart a cluster keeps its name although another member is the largest now, and one has left."""
    names = trade(client, blocks(np.random.default_rng(1), [3, 3]))
    hold(client, names[1], 500)
    run(any_server.url, "clusters", now=NOW)
    assert set(client.hkeys(LIVE.clusters)) == {names[1], names[3]}
    client.delete(LIVE.bars(names[0]))
    hold(client, names[2], 9000)
    hold(client, names[5], -9000)
    run(any_server.url, "clusters", now=NOW + 30)
    assert {c: json.loads(m) for c, m in client.hgetall(LIVE.clusters).items()} == {
        names[1]: names[1:3], names[3]: names[3:],
    }  # fmt: skip


def test_caps_work_on_real_clusters(client: Client, any_server: EmbeddedServer) -> None:
    """Three symbols that move together share one cap, a fourth that moves alone does not feel it."""
    names = trade(client, blocks(np.random.default_rng(1), [3, 1]))
    client.hset("quantum:state:portfolio", mapping={"equity_usd": 1e5, "drawdown": 0, "timestamp": NOW})
    for name in names:
        client.hset(LIVE.budget(name), mapping={"budget_usd": 30_000, "timestamp": NOW})
    run(any_server.url, "clusters", "allocation", now=NOW)
    made = {f["symbol"]: f for _, f in client.xrange("quantum:stream:allocation.decision")}
    assert [made[n]["bound"] for n in names] == ["cluster"] * 3 + ["none"]
    assert sum(float(made[n]["target_usd"]) for n in names[:3]) == pytest.approx(60_000)
    assert made[names[3]]["target_usd"] == "30000.0"


def test_a_lost_map_is_written_anew_at_once(client: Client, any_server: EmbeddedServer) -> None:
    """A map that was deleted, or whose write failed, stands again after the next cycle and not a minute later."""
    names = trade(client, blocks(np.random.default_rng(1), [2, 1]))
    store, clock = Store(any_server.url), SetClock(NOW)
    cycle = clusters.build(store, Metrics("clusters"), clusters.universe_of(), qa.ClusterParams(), Target(), 15.0)
    loop = Loop(cycle, store, Metrics("clusters"), clock)
    assert loop.once()
    client.delete(LIVE.clusters)
    clock.set(NOW + 15)
    assert loop.once()
    found = {c: json.loads(m) for c, m in client.hgetall(LIVE.clusters).items()}
    assert found == {names[0]: names[:2], names[2]: names[2:]}
    store.close()


def test_nothing_is_grouped_before_all_symbols_are_found(
    client: Client, any_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the first scan goes on a map would be half a map: nothing is written, by clusters and by regime."""
    trade(client, np.array([ar1(np.random.default_rng(5), 300, 0.4)]))
    monkeypatch.setattr(universe, "PAGES_PER_CYCLE", 2)
    client.mset({f"other:{i}": "" for i in range(6_000)})
    store, clock = Store(any_server.url), SetClock(NOW)
    built: list[Any] = [
        clusters.build(store, Metrics("clusters"), clusters.universe_of(), qa.ClusterParams(), Target(), 15.0),
        regime.build(store, Metrics("regime"), regime.universe_of(), qa.RegimeParams(), Target(), 30.0),
    ]
    for cycle in built:
        loop: Any = Loop(cycle, store, Metrics(cycle.name), clock)
        assert loop.once()
        assert loop.last_nothing == "scanning"
        for _ in range(9):
            assert loop.once()
        assert loop.last_nothing == ""
    store.close()


def test_before_any_correlation_is_known_there_is_no_map(
    client: Client, any_server: EmbeddedServer, capfd: pytest.CaptureFixture[str]
) -> None:
    """Three symbols of twenty bars: a map of clusters of one would lift the cap that unmapped symbols share; nothing is
    written. One symbol alone has a map."""
    names = trade(client, blocks(np.random.default_rng(1), [3], n=20))
    run(any_server.url, "clusters", now=NOW, LOG_LEVEL="INFO")
    assert "nothing is written: no_correlations" in capfd.readouterr().err
    assert client.exists(LIVE.clusters) == 0
    run(any_server.url, "clusters", now=NOW, QA_SYMBOLS=names[0])
    assert set(client.hkeys(LIVE.clusters)) == {names[0]}


def test_without_bars_the_map_stays(client: Client, any_server: EmbeddedServer) -> None:
    """No bars: nothing is written, and a map that is there is left as it is."""
    client.hset(LIVE.clusters, mapping={"C1": '["BTCUSDT"]'})
    run(any_server.url, "clusters", now=NOW)
    assert client.hgetall(LIVE.clusters) == {"C1": '["BTCUSDT"]'}
    assert client.keys("quantum:cluster:stress:*") == []


def test_a_static_map_takes_the_place_of_correlations(
    client: Client, any_server: EmbeddedServer, tmp_path: Path
) -> None:
    """The groups of the file, a symbol in two to the first, with the strain of their own bars."""
    names = trade(client, blocks(np.random.default_rng(1), [2, 2]))
    for name in names:
        hold(client, name, 100)
    hold(client, "NEWUSDT", -1000)
    file = tmp_path / "map.json"
    file.write_text(json.dumps({"left": [names[0], names[2]], "right": [names[2], names[3], "NEWUSDT"], "none": []}))
    run(any_server.url, "clusters", now=NOW, QA_CLUSTER_MAP=str(file))
    assert {c: json.loads(m) for c, m in client.hgetall(LIVE.clusters).items()} == {
        "left": [names[0], names[2]], "right": ["NEWUSDT", names[3]],
    }  # fmt: skip
    strain = client.hgetall(LIVE.stress("left"))
    assert float(strain["weight"]) == pytest.approx(200 / 1400), "positions without bars weigh too"
    assert client.exists(LIVE.stress("right")) == 0, "no correlation is known: neutral, and not a stress of 0"
    assert float(strain["correlation"]) < 0.5


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"A": []}',
        '{"A": ["BTCUSDT"], "A": ["ETHUSDT"]}',
        "x",
        '{"a b": ["BTCUSDT"]}',
        '{"UNKNOWN": []}',
        '{"A": ["btc"]}',
        '{"A": 5}',
        "[" * 9999,
    ],
)
def test_a_bad_static_map_is_one_sentence_and_78(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The file is named, and what it must be."""
    file = tmp_path / "map.json"
    file.write_text(text)
    with pytest.raises(MapError):
        read_static_map(file)
    assert main(["run", "clusters", "--once"], {"QA_CLUSTER_MAP": str(file), "REDIS_PORT": "1"}) == 78
    assert str(file) in capsys.readouterr().err
    assert main(["run", "clusters", "--once"], {"QA_CLUSTER_MAP": str(tmp_path / "no"), "REDIS_PORT": "1"}) == 78


def test_five_hundred_symbols_fit(one_client: Client, one_server: EmbeddedServer) -> None:
    """500 symbols x 361 bars in the real process: clustered, resident memory below 150 MB."""
    returns = blocks(np.random.default_rng(2), [10] * 50)
    now = float(int(time.time()))
    pipe = one_client.pipeline(transaction=False)
    for i, steps in enumerate(returns):
        closes = np.exp(np.concatenate([[0.0], np.cumsum(steps)]))
        for k, close in enumerate(closes):
            pipe.xadd(
                LIVE.bars(f"S{i:03}"), {"ts": repr(now - 60.0 * (360 - k)), "close": repr(float(close)), "bar_s": "60"}
            )
        if i % 50 == 49:
            pipe.execute()
    with Service("clusters", one_server.url, QA_CLUSTERS_INTERVAL_SEC="0.5") as running:
        until(running.ready, 20, "ready")
        until(lambda: running.metric("quantum_alloc_clusters") == 50, 20, "50 clusters")
        until(lambda: running.health()["cycles"] >= 3, 20, "three cycles")
        assert running.process is not None
        status = Path(f"/proc/{running.process.pid}/status")
        if status.exists():
            resident_kb = int(re.findall(r"VmRSS:\s+(\d+)", status.read_text())[0])
            assert resident_kb < 150_000, f"{resident_kb} kB"
        code, took = running.terminate()
        assert (code, took < 2.0) == (0, True)
    assert one_client.hlen(LIVE.clusters) == 50


def test_pictures_hold_their_own_script(
    client: Client, any_server: EmbeddedServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """plot writes one page for each; no script of another host is asked for; without bars it says what to do."""
    environ = {"REDIS_URL": any_server.url}
    out = tmp_path / "page.html"
    for what in ("clusters", "regime"):
        assert main(["plot", what, "--out", str(out)], environ) == 2
        assert "There are no bars to draw" in capsys.readouterr().err
        assert not out.exists()
    names = trade(client, blocks(np.random.default_rng(1), [3, 2]))
    run(any_server.url, "clusters", now=NOW)
    for what, words in (("clusters", [*names, "2 clusters"]), ("regime", ["z*", "TREND (", "window 240"])):
        assert main(["plot", what, "--out", str(out)], environ) == 0
        page = out.read_text()
        assert all(json.dumps(w)[1:-1] in page for w in words), what
        assert not re.search(r"<(script|link|img|iframe)[^>]*(src|href)=", page)
        assert what in capsys.readouterr().out
    assert main(["plot", "regime", "--out", str(tmp_path / "no" / "page.html")], environ) == 2
    assert "cannot be written" in capsys.readouterr().err
    client.flushall()
    trade(client, blocks(np.random.default_rng(1), [2], n=50))
    assert main(["plot", "regime", "--out", str(out)], environ) == 2
    assert "fewer bars than the window" in capsys.readouterr().err


def test_what_is_not_installed_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without scipy or plotly: which extra to install, and a meaningful exit code."""
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert main(["run", "clusters", "--once"], {"REDIS_PORT": "1"}) == 78
    assert "quantum-alloc[clusters]" in capsys.readouterr().err
    assert main(["plot", "regime", "--out", str(tmp_path / "x.html")], {"REDIS_PORT": "1"}) == 2
    assert "quantum-alloc[plot]" in capsys.readouterr().err
