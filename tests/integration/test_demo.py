"""The demo, as a person or a script would run it."""

from __future__ import annotations

import csv
import gzip
import json
import os
import signal
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import redis

from quantum_alloc.adapters.embedded import EmbeddedServer
from quantum_alloc.core.record import differences
from tests.support.running import CLEAN
from tests.support.worlds import Client

ELEVEN = "BTCUSDC,ETHUSDT,SOLUSDT,BNBUSDT,XRPUSDT,ADAUSDT,DOTUSDT,LINKUSDT,AVAXUSDT,UNIUSDT,ATOMUSDT"


def demo(*args: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run it to its end."""
    command = [
        sys.executable,
        "-W",
        "error",
        "-c",
        "import sys; from quantum_alloc.services.cli import main; sys.exit(main())",
    ]
    return subprocess.run(
        [*command, "demo", *args], env={**CLEAN, **environ}, capture_output=True, text=True, timeout=120, check=False
    )


def as_json(*args: str, **environ: str) -> dict[str, Any]:
    """Run it and read its JSON."""
    done = demo(*args, "--format", "json", **environ)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_the_same_seed_gives_the_same_decisions() -> None:
    """Twice the same sha256, whatever the hash seed; another seed, another sha256."""
    one = as_json("--bars", "120", PYTHONHASHSEED="1")
    two = as_json("--bars", "120", PYTHONHASHSEED="2")
    other = as_json("--bars", "120", "--seed", "8")
    assert one["sha256"] == two["sha256"] != other["sha256"]
    assert (one["cycles"], one["targets"], len(one["symbols"])) == (120, 1320, 11)
    assert one["fallbacks"]["allocation: regime missing"] == 120


def test_what_a_person_sees() -> None:
    """Without a terminal: the last table once, what happened, the hash, and where to look further."""
    done = demo("--bars", "30")
    assert done.returncode == 0
    assert done.stderr == ""
    for word in (
        "symbol",
        "target",
        "BTCUSDT",
        "30 bars of 11 symbols",
        "30 allocation cycles",
        "sha256",
        "Look further",
    ):
        assert word in done.stdout
    assert "\x1b" not in done.stdout
    head = next(line for line in done.stdout.splitlines() if "multiplier" in line)
    assert head.split() == [
        "symbol", "target", "score", "average", "pressure", "confidence", "multiplier", "proposed", "why",
    ]  # fmt: skip
    assert "executions: applied" in done.stdout
    assert "proposals: low_conf" in done.stdout


def test_every_factor_is_alive() -> None:
    """With the real producers: a regime with its statistic, the simulator's own groups as clusters, stress and alpha,
    and proposals with reason ok for the symbols of low-stress clusters."""
    found = as_json("--bars", "600")
    assert {tuple(m) for m in found["clusters"].values()} == {
        ("ADAUSDT", "ATOMUSDT", "AVAXUSDT", "DOTUSDT", "SOLUSDT"), ("BNBUSDT", "BTCUSDT", "ETHUSDT", "XRPUSDT"),
        ("LINKUSDT", "UNIUSDT"),
    }  # fmt: skip
    assert found["stress"].keys() >= found["clusters"].keys()
    assert all(0.0 < float(found["stress"][c]["stress"]) < 1.0 for c in found["clusters"])
    assert found["regime"]["regime"] in ("TREND", "MEAN_REVERSION", "CHOP", "NEUTRAL")
    assert differences(found["regime"]) == {}
    assert found["proposals"]["ok"] > 500
    factors = {d["cluster_id"]: float(d["cluster_factor"]) for d in found["last_decisions"]}
    assert factors.keys() == found["clusters"].keys()
    assert all(f == pytest.approx(1 - float(found["stress"][c]["stress"])) for c, f in factors.items())
    done = demo("--bars", "300")
    assert done.stderr == ""
    for words in ("regime ", " z ", "one way", "correlation", "alpha", "moved"):
        assert words in done.stdout


def test_the_paper_book_feeds_the_chain() -> None:
    """Executions with a PnL flow, and every symbol has a score, a pressure and a proposal; without rebalancing there
    are only the purchases, and attribution stays silent."""
    found = as_json("--bars", "60")
    assert found["executions"]["applied"] == sum((59 + place) // 15 for place in range(11))
    assert {e["capital_pressure"] for e in found["last_efficiencies"]} <= {"INCREASE", "HOLD", "DECREASE"}
    assert len(found["last_efficiencies"]) == len(found["last_proposals"]) == 11
    assert {p["eff_lane"] for p in found["last_proposals"]} == {"shadow"}
    assert all(float(p["p30_conf"]) >= 0.15 for p in found["last_efficiencies"])
    still = as_json("--bars", "60", QA_PAPER_REBALANCE_BARS="0")
    assert still["executions"] == {"open": 11}
    assert still["fallbacks"]["efficiency: attribution missing"] == 660


def test_it_never_touches_a_server_that_it_did_not_start(client: Client, any_server: EmbeddedServer) -> None:
    """Whatever the environment says, an existing server stays as it was."""
    client.set("mine", "1")
    elsewhere = {"REDIS_URL": any_server.url, "REDIS_HOST": "example.invalid", "REDIS_PORT": "1", "METRICS_PORT": "1"}
    own = {"QA_FEED_CANDLES": "/nowhere.csv", "QA_SYMBOLS": "ZZUSDT", "QA_FEED_SEED": "9"}
    found = as_json("--bars", "5", **elsewhere, **own, P29_MODE="enforce")
    assert client.keys() == ["mine"]
    assert found["sha256"] == as_json("--bars", "5")["sha256"]


def test_keep_leaves_the_server_and_its_keys() -> None:
    """--keep: the server is up after the end, its keys do not expire, every record decides again, status reads it."""
    found = as_json("--bars", "20", "--keep")
    try:
        client: Any = redis.Redis.from_url(found["url"], decode_responses=True)
        assert client.ttl("quantum:allocation:target:BTCUSDT") == -1
        cycles = {f["cycle_id"]: f for _, f in client.xrange("quantum:stream:allocation.cycle")}
        decisions = [f for _, f in client.xrange("quantum:stream:allocation.decision")]
        assert (len(cycles), len(decisions)) == (20, 220)
        assert all(differences(cycles[d["cycle_id"]], d) == {} for d in decisions)
        assert client.xlen("quantum:stream:market.bars:BTCUSDT") == 20
        client.close()
    finally:
        os.kill(found["pid"], signal.SIGTERM)


def test_it_ends_by_a_signal() -> None:
    """--forever ends by SIGTERM with its summary and exit code 0, and its server with it."""
    code = "import sys; from quantum_alloc.services.cli import main; sys.exit(main())"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "demo", "--forever", "--speed", "6000"],
        env=CLEAN, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(2.0)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=5)
    assert (process.returncode, err) == (0, "")
    assert "sha256" in out


def closes(path: Path, symbols: set[str]) -> dict[int, dict[str, float]]:
    """Closes by open time in ms, read independently of the project."""
    found: dict[int, dict[str, float]] = defaultdict(dict)
    with gzip.open(path, "rt") as file:
        for row in csv.DictReader(file):
            if row["symbol"] in symbols:
                found[int(row["timestamp_ms"])][row["symbol"]] = float(row["close"])
    return found


def test_equity_and_drawdown_follow_the_candles(shared: Path) -> None:
    """On real candles equity and drawdown are those of an independent calculation: equal notional at the first close,
    20 % of 100,000 USD, each symbol back at its share every 15 bars, one after the other; PnL is notional x return."""
    path = shared / "data" / "klines_1m_2025-12-13_18.csv.gz"
    found = as_json("--candles", str(path), "--symbols", ELEVEN, "--bars", "2000", "--keep")
    try:
        client: Any = redis.Redis.from_url(found["url"], decode_responses=True)
        states = [f for _, f in client.xrange("quantum:stream:portfolio.state")]
        client.close()
    finally:
        os.kill(found["pid"], signal.SIGTERM)
    symbols = set(ELEVEN.split(","))
    bars = closes(path, symbols)
    assert len(states) == len(bars) == 2000
    last, share = bars[min(bars)], 20_000 / 11
    notional = dict.fromkeys(sorted(symbols), share)
    equity, peak, worst = 100_000.0, 0.0, 0.0
    for bar, (state, opened) in enumerate(zip(states, sorted(bars), strict=True)):
        for place, s in enumerate(notional):
            moved = notional[s] * bars[opened][s] / last[s]
            equity += moved - notional[s]
            due = bar > 0 and (bar + place) % 15 == 0
            notional[s] = share if due else moved
        last = bars[opened]
        peak = max(peak, equity)
        worst = max(worst, 1 - equity / peak)
        assert int(state["timestamp"]) == opened // 1000 + 60
        assert float(state["equity_usd"]) == pytest.approx(equity, rel=1e-9)
        assert float(state["drawdown"]) == pytest.approx(1 - equity / peak, abs=1e-9)
    assert worst > 0.001
    assert found["jumps"] == 2
    assert found["candles"]["gaps"] == 22


RAGGED = """timestamp_ms,symbol,open,high,low,close,volume
60000000000,AAUSDT,1,1,1,1,5
60000000000,BBUSDT,10,10,10,10,5
60000060000,AAUSDT,1,1.1,1,1.1,5
60000060000,AAUSDT,1,1.1,1,1.1,5
oops
60000120000,AAUSDT,1,1,1,NaN,5
60000180000,AAUSDT,1,1.2,1,1.2,5
60000240000,AAUSDT,1,1.2,1,1.2,5
60000300000,AAUSDT,1,1.2,1,1.2,5
60000300000,CCUSDT,3,3,3,3,5
60000240000,CCUSDT,3,3,3,3,5
60000360000,CCUSDT,3,3,3,3,0
60000000000,BBUSDT,99,99,99,99,5
"""


def test_ragged_candles(tmp_path: Path) -> None:
    """Gaps, late, repeated and malformed candles, symbols that start late or end early: handled, counted and named."""
    path = tmp_path / "ragged.csv"
    path.write_text(RAGGED)
    done = demo("--candles", str(path), "--format", "json")
    found = json.loads(done.stdout)
    assert found["candles"] == {"published": 9, "late": 1, "repeated": 2, "malformed": 2, "gaps": 1}
    assert "ragged.csv, line 6" in done.stderr
    assert "ragged.csv, line 7" in done.stderr
    assert {d["symbol"] for d in found["last_decisions"]} == {"AAUSDT", "BBUSDT", "CCUSDT"}
    equity = 100_000 + 20_000 / 3 * 0.2
    assert float(found["portfolio"]["equity_usd"]) == pytest.approx(equity, rel=1e-9)
    strict = demo("--candles", str(path), "--strict")
    assert strict.returncode == 65
    assert "line 6" in strict.stderr
    assert strict.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["--candles", "/nowhere.csv"], 65, "/nowhere.csv"),
        (["--symbols", "btc"], 2, "capital letters"),
        (["--bars", "0"], 2, "whole number"),
        (["--seed", "x"], 2, "4,294,967,295"),
        (["--bars", "5", "--forever"], 2, "not allowed with"),
        (["--speed", "nan"], 2, "number from"),
    ],
)
def test_mistakes_get_one_sentence(args: list[str], code: int, says: str) -> None:
    """A user's mistake: one clear sentence, a meaningful exit code, no traceback."""
    done = demo(*args)
    assert done.returncode == code
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_a_symbol_given_twice_counts_once() -> None:
    """--symbols A,A is --symbols A; seed 0 is a seed."""
    assert as_json("--symbols", "BTCUSDT,BTCUSDT", "--bars", "3", "--seed", "0")["symbols"] == ["BTCUSDT"]
