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
from tests.conftest import CI
from tests.support.running import CLEAN, until
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
    assert done.stdout.startswith("profile: P28_MODE=enforce P29_MODE=enforce P30_MODE=enforce P31_MODE=enforce ")
    for words in (
        "APPLY_MODE=production", "GOV_MAX_OPEN_POSITIONS=50", "GOV_MAX_NOTIONAL_PER_TRADE_USDT=500",
        "GOV_MAX_TOTAL_NOTIONAL_USDT=60000", "GOV_MAX_EXEC_PER_HOUR=30", "GOV_MAX_EXEC_PER_5MIN=4", "permits ",
        "blocks ", "would have blocked: ", "hints: ", "equity ", "reconciled: issued ",
        "  ok   balance + unrealised = equity", "  ok   every decision recomputes", "proposals: low_conf",
    ):  # fmt: skip
        assert words in done.stdout
    assert "FAIL" not in done.stdout


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


def test_the_desk_feeds_the_chain() -> None:
    """Permits become fills, fills executions: every symbol has a score, a pressure and a proposal; before there is a
    channel there are no plans, and attribution stays silent."""
    found = as_json("--bars", "120")
    assert found["permits"] == found["opens"] + found["closes"] > 60
    assert found["executions"] == {"applied": found["closes"], "open": found["opens"]}
    assert {e["capital_pressure"] for e in found["last_efficiencies"]} <= {"INCREASE", "HOLD", "DECREASE"}
    assert len(found["last_efficiencies"]) == len(found["last_proposals"]) == 11
    assert {p["eff_lane"] for p in found["last_proposals"]} == {"live"}
    assert all(c["ok"] for c in found["checks"])
    still = as_json("--bars", "60", QA_DESK_CHANNEL_BARS="500")
    assert (still["executions"], still["permits"]) == ({}, 0)
    assert still["fallbacks"]["efficiency: attribution missing"] == 660


def test_the_environment_counts_in_the_profile() -> None:
    """What the environment says takes the place of the profile, and is printed; what only a server knows does not."""
    mine = {"GOV_SIGNING_KEY_FILE": "/nowhere", "PAPER_FEE_BPS": "2", "P28_MODE": " Enforce "}
    done = demo("--bars", "2", P31_MODE="shadow", GOV_MAX_OPEN_POSITIONS="7", **mine)
    assert (done.returncode, done.stderr) == (0, "")
    assert " PAPER_FEE_BPS=2" in done.stdout
    assert "profile: P28_MODE=enforce " in done.stdout
    assert " P31_MODE=shadow " in done.stdout
    assert " GOV_MAX_OPEN_POSITIONS=7 " in done.stdout


def test_the_drill_needs_room() -> None:
    """Too few bars for a drill, or no end: one sentence, exit code 2; so for a report that cannot be written."""
    for args in (["--drill", "--bars", "119"], ["--drill", "--forever"]):
        done = demo(*args)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert "--bars of 120" in done.stderr
    done = demo("--bars", "5", "--report", "report.pdf")
    assert (done.returncode, done.stdout) == (2, "")
    assert "report.pdf is no page" in done.stderr
    done = demo("--bars", "5", "--report", "/nowhere/report.html")
    assert (done.returncode, done.stdout) == (2, "")
    assert "/nowhere/report.html cannot be written" in done.stderr


def test_the_drill_needs_candles(tmp_path: Path) -> None:
    """Files with fewer bars than a drill needs are refused, whatever --bars says."""
    path = tmp_path / "few.csv"
    rows = [f"{60_000 * n},AAUSDT,1,1,1,1,1" for n in range(1_000_000, 1_000_050)]
    path.write_text("\n".join(["timestamp_ms,symbol,open,high,low,close,volume", *rows]) + "\n")
    done = demo("--candles", str(path), "--drill")
    assert done.returncode == 65
    assert "--drill needs 120 bars at least: the candles have 50" in done.stderr


def test_the_report_is_written(tmp_path: Path) -> None:
    """--report writes one page with the run's hash and checks, and says where."""
    path = tmp_path / "report.html"
    done = demo("--bars", "40", "--report", str(path))
    assert (done.returncode, done.stderr) == (0, "")
    page = path.read_text()
    sha = next(line.split()[-1] for line in done.stdout.splitlines() if line.startswith("records sha256"))
    assert sha in page
    assert "every fill has its permit" in page
    assert f"Report: {path}" in done.stdout


def test_it_never_touches_a_server_that_it_did_not_start(client: Client, any_server: EmbeddedServer) -> None:
    """Whatever the environment says, an existing server stays as it was."""
    client.set("mine", "1")
    elsewhere = {"REDIS_URL": any_server.url, "REDIS_HOST": "example.invalid", "REDIS_PORT": "1", "METRICS_PORT": "1"}
    own = {"QA_FEED_CANDLES": "/nowhere.csv", "QA_SYMBOLS": "ZZUSDT", "QA_FEED_SEED": "9"}
    found = as_json("--bars", "5", **elsewhere, **own, P29_MODE="enforce")
    assert client.keys() == ["mine"]
    assert found["sha256"] == as_json("--bars", "5")["sha256"]


def test_keep_leaves_the_server_and_its_keys(tmp_path: Path) -> None:
    """--keep=server: the server is up after the end, its keys do not expire, every record decides again."""
    found = as_json("--bars", "20", "--keep=server", TMPDIR=str(tmp_path))
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


def test_what_nobody_is_told_of_is_not_kept(tmp_path: Path) -> None:
    """--keep into a pipe whose reader is gone: nobody would know what to end, so nothing is left."""
    code = "import sys; from quantum_alloc.services.cli import main; sys.exit(main())"
    words = ["demo", "--bars", "1", "--symbols", "BTCUSDT", "--keep=server", "--format", "json"]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *words], env={**CLEAN, "TMPDIR": str(tmp_path)}, stdout=subprocess.PIPE
    )
    process.stdout.close()  # type: ignore[union-attr]  # it is a pipe
    try:
        assert process.wait(60) == 0
        assert list(tmp_path.glob("qa-*")) == []
    finally:
        for socket in tmp_path.glob("qa-*/redis.sock"):
            client: Any = redis.Redis(unix_socket_path=str(socket))
            client.shutdown(nosave=True)


def test_it_ends_by_a_signal(tmp_path: Path) -> None:
    """--forever ends by SIGTERM with its summary and exit code 0, and its server with it."""
    code = "import sys; from quantum_alloc.services.cli import main; sys.exit(main())"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "demo", "--forever", "--speed", "6000"],
        env={**CLEAN, "TMPDIR": str(tmp_path)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip

    def is_on_its_way() -> bool:
        for socket in tmp_path.glob("qa-*/redis.sock"):
            client: Any = redis.Redis(unix_socket_path=str(socket), protocol=2)
            try:
                return bool(client.exists("quantum:state:portfolio"))
            except redis.ConnectionError:
                return False
            finally:
                client.close()
        return False

    try:
        until(is_on_its_way, 30, "bars")
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=5)
    finally:
        process.kill()
    assert (process.returncode, err) == (0, "")
    assert "sha256" in out


def test_it_ends_while_it_reads(tmp_path: Path) -> None:
    """Long candle files: a signal ends it at once, with exit code 0, and its server with it."""
    path, opened = tmp_path / "endless.csv", []
    os.mkfifo(path)
    code = "import sys; from quantum_alloc.services.cli import main; sys.exit(main())"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "demo", "--candles", str(path)],
        env={**CLEAN, "TMPDIR": str(tmp_path)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip

    def is_read() -> bool:
        try:
            opened.append(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
        except OSError:  # nobody reads it yet
            return False
        return True

    try:
        until(is_read, 20, "it reads")
        os.write(opened[0], b"symbol,timestamp_ms,open,high,low,close,volume\nBTCUSDT,1760000000000,1,1,1,1,1\n")
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=5)
    finally:
        process.kill()
        for number in opened:
            os.close(number)
    assert (process.returncode, err, "sha256" in out) == (0, "", False)
    assert not list(tmp_path.glob("qa-*"))


def closes(path: Path, symbols: set[str]) -> dict[int, dict[str, float]]:
    """Closes by open time in ms, read independently of the project."""
    found: dict[int, dict[str, float]] = defaultdict(dict)
    with gzip.open(path, "rt") as file:
        for row in csv.DictReader(file):
            if row["symbol"] in symbols:
                found[int(row["timestamp_ms"])][row["symbol"]] = float(row["close"])
    return found


def test_equity_and_drawdown_follow_the_candles(shared: Path, tmp_path: Path) -> None:
    """On real candles equity and drawdown are those of an independent calculation, from fills and candles alone:
    100,000 USD, less 0.04 % of each fill, plus each position x the change of its close."""
    path, run = shared / "data" / "klines_1m_2025-12-13_18.csv.gz", 1000 if CI else 400
    words = ("--candles", str(path), "--symbols", ELEVEN, "--bars", str(run), "--keep=server")
    found = as_json(*words, TMPDIR=str(tmp_path))
    try:
        client: Any = redis.Redis.from_url(found["url"], decode_responses=True)
        states = [f for _, f in client.xrange("quantum:stream:portfolio.state")]
        fills = [f for _, f in client.xrange("quantum:stream:execution.result")]
        client.close()
    finally:
        os.kill(found["pid"], signal.SIGTERM)
    bars = closes(path, set(ELEVEN.split(",")))
    assert len(states) == run
    assert len(fills) > run // 10
    by_bar: dict[int, list[dict[str, str]]] = defaultdict(list)
    for fill in fills:
        by_bar[int(fill["timestamp"])].append(fill)
    qty, last = dict[str, float](), dict[str, float]()
    equity, peak, worst = 100_000.0, 0.0, 0.0
    for state, opened in zip(states, sorted(bars), strict=False):
        now = opened // 1000 + 60
        equity += sum(q * (bars[opened].get(s, last[s]) - last[s]) for s, q in qty.items())
        last.update(bars[opened])
        peak = max(peak, equity)
        worst = max(worst, 1 - equity / peak)
        assert int(state["timestamp"]) == now
        assert float(state["equity_usd"]) == pytest.approx(equity, rel=1e-9)
        assert float(state["drawdown"]) == pytest.approx(1 - equity / peak, abs=1e-9)
        for fill in by_bar[now]:  # filled after the portfolio was published
            size = float(fill["filled_qty"]) * (1.0 if fill["side"] == "BUY" else -1.0)
            assert float(fill["price"]) == last[fill["symbol"]]
            qty[fill["symbol"]] = qty.get(fill["symbol"], 0.0) + size
            equity -= abs(size) * last[fill["symbol"]] * 4 / 10_000
    assert worst > 0.0005


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
    assert all(c["ok"] for c in found["checks"])
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
