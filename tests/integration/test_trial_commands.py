"""explain and inject, as a person uses them; and the chain that they look at, alive on real candles."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import redis

import quantum_alloc.core as qa
from quantum_alloc.adapters import universe
from quantum_alloc.adapters.embedded import EmbeddedServer
from quantum_alloc.adapters.keys import LIVE, ShadowKeys
from quantum_alloc.adapters.simulator import DEFAULT_SYMBOLS
from quantum_alloc.services import demo
from quantum_alloc.services.cli import main
from quantum_alloc.services.demo import Plan, Progress
from tests.integration.test_demo import ELEVEN
from tests.support.flow import EXECUTIONS, PERFORMANCE, SCORES, newest, run, sold, target
from tests.support.worlds import Client

REAL = tuple(ELEVEN.split(","))
S = "BTCUSDT"


def call(capsys: pytest.CaptureFixture[str], environ: Mapping[str, str], *argv: str) -> tuple[int, str, str]:
    """Exit code, output, errors."""
    try:
        code = main(list(argv), environ)
    except SystemExit as stop:
        code = int(stop.code or 0)
    out = capsys.readouterr()
    return code, out.out, out.err


@pytest.fixture
def environ(client: Client, any_server: EmbeddedServer) -> dict[str, str]:
    """An empty server in the environment."""
    return {"REDIS_URL": any_server.url, "LOG_LEVEL": "ERROR"}


def test_injected_entries_are_well_formed(
    client: Client, any_server: EmbeddedServer, environ: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Every kind is taken by the service that reads it, as another program's would be."""
    now = int(time.time())

    def inject(*argv: str) -> None:
        code, out, err = call(capsys, environ, "inject", *argv)
        assert (code, err) == (0, ""), err
        assert "ts=" in out or "payload=" in out

    inject("execution", S, "--pnl", "-12.5", "--regime", "TREND", "--signal", "s1", "--count", "3")
    inject("execution", S, "--pnl", "4", "--nested", "--cluster", "C1")
    inject("execution", "ETHUSDT")
    inject("regime", "TREND")
    inject("attribution", S, "--performance", "0.8", "--confidence", "0.9")
    inject("efficiency", S, "--score", "0.9", "--confidence", "0.7", "--lane", "shadow")
    inject("plan", S, "--action", "ENTRY_PROPOSED", "--qty", "0.5", "--price", "90000", "--kill-score", "0.2")
    assert client.xlen(EXECUTIONS) == 5
    assert client.hget(ShadowKeys().efficiency(S), "lane") == "shadow"
    run(any_server.url, "attribution", "efficiency", now=float(now) + 1, SHADOW_LANE="1")
    assert client.xlen("quantum:stream:execution.deadletter") == 0
    paid = json.loads(client.hget("quantum:p30:state", S))["window"]
    assert paid["pnl_usd"] == [-12.5, -12.5, -12.5, 4.0]
    assert set(paid["names"]) == {"TREND", "UNKNOWN", "s1", "C1"}
    assert newest(client, SCORES)[S]["p30_perf"] == "0.8"
    client.hset("quantum:state:portfolio", mapping={"equity_usd": 1e5, "drawdown": 0, "timestamp": now})
    client.hset(LIVE.budget(S), mapping={"budget_usd": 1000, "timestamp": now})
    run(any_server.url, "allocation", now=float(now) + 1)
    made = newest(client, "quantum:stream:allocation.decision")[S]
    assert (made["regime"], made["attribution_factor"], made["attribution_confidence"]) == ("TREND", "0.8", "0.9")
    ((_, plan),) = client.xrange("quantum:stream:apply.plan")
    wanted = {"symbol": S, "action": "ENTRY_PROPOSED", "decision": "EXECUTE", "side": "BUY", "qty": "0.5"}
    assert wanted.items() <= plan.items()
    assert {"plan_id", "timestamp", "ts", "kill_score", "price"} <= plan.keys()
    assert 0 < client.ttl(LIVE.attribution(S)) <= 300
    assert 0 < client.ttl(ShadowKeys().efficiency(S)) <= 600


def test_inject_writes_where_it_is_told(
    client: Client, environ: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Stream names and lives come from the settings, the time from --ts."""
    own = {**environ, "EXECUTION_STREAM": "fills", "STREAM_PLANS": "quantum:stream:plans", "ATTRIBUTION_TTL_SEC": "50"}
    assert call(capsys, own, "inject", "execution", S, "--ts", "1769577450.5")[0] == 0
    assert call(capsys, own, "inject", "plan", S, "--plan-id", "p1", "--reduce-only", "--ts", "5")[0] == 0
    assert call(capsys, own, "inject", "attribution", S)[0] == 0
    assert client.xrange("fills")[0][1]["timestamp"] == "1769577450"
    plan = client.xrange("quantum:stream:plans")[0][1]
    assert (plan["plan_id"], plan["reduceOnly"], plan["ts"]) == ("p1", "true", "5")
    assert 0 < client.ttl(LIVE.attribution(S)) <= 50


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("execution", "btc"), "is not a symbol"),
        (("execution", S, "--pnl", "NaN"), "is not a number"),
        (("execution", S, "--count", "0"), "whole number from 1"),
        (("execution", S, "--lane", "shadow"), "--lane shadow is for attribution and efficiency"),
        (("regime", "no word"), "is not a plain word"),
        (("efficiency", S, "--score", "1.1"), "from 0 to 1"),
        (("attribution", S, "--ts", "soon"), "is not a time"),
        (("plan", S, "--side", "UP"), "invalid choice"),
        ((), "required"),
        (("permit",), "invalid choice"),
    ],
)
def test_mistakes_in_inject_write_nothing(
    argv: tuple[str, ...], said: str, client: Client, environ: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2, one sentence, and an empty server."""
    code, out, err = call(capsys, environ, "inject", *argv)
    assert (code, out) == (2, "")
    assert said in err
    assert client.dbsize() == 0


def test_the_commands_are_kind_to_slips(
    client: Client, any_server: EmbeddedServer, environ: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Quantities and prices are above 0; diff-lanes takes symbols; --now goes with P31_RUN_ONCE; a proposer without a
    base target says why and what to do."""
    for flags in (("--qty", "0"), ("--qty", "-1"), ("--price", "0")):
        assert "is not a number above 0" in call(capsys, environ, "inject", "plan", S, *flags)[2]
    target(client, S, 500.0, 0.9, int(time.time()))
    target(client, "ETHUSDT", 500.0, 0.9, int(time.time()))
    out = call(capsys, environ, "diff-lanes", "ETHUSDT")[1]
    assert "ETHUSDT" in out
    assert S not in out
    assert call(capsys, {**environ, "P31_RUN_ONCE": "1"}, "run", "efficiency", "--now", "1769577495")[0] == 0
    code, _, err = call(capsys, environ, "run", "efficiency", "--now", "1769577495")
    assert (code, "give --once too" in err) == (2, True)
    client.delete(LIVE.target(S), LIVE.target("ETHUSDT"))
    loud = {**environ, "LOG_LEVEL": "INFO"}
    assert call(capsys, loud, "run", "proposer", "--once")[0] == 0
    with pytest.raises(ValueError, match="two records"):
        qa.recompute({"cycle_id": "c1", "symbol": S})


def test_inject_tells_when_the_server_refuses(
    client: Client, environ: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A key of another type: the server's refusal, and exit code 2; no server: 69."""
    client.set("quantum:stream:regime.state", "x")
    code, _, err = call(capsys, environ, "inject", "regime", "TREND")
    assert code == 2
    assert "quantum:stream:regime.state" in err
    for argv in (("inject", "regime", "TREND"), ("explain", S), ("diff-lanes",)):
        code, out, err = call(capsys, {"REDIS_PORT": "1"}, *argv)
        assert (code, out) == (69, "")
        assert "cannot be reached" in err


def test_explain_of_nothing_says_so(
    client: Client, environ: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """No record of any service: one sentence; with one of them, the others say that they have none."""
    code, out, err = call(capsys, environ, "explain", S)
    assert (code, err) == (0, "")
    assert out.startswith(f"Nothing is on record for {S}: status and diff-lanes show which symbols there are")
    client.hset(LIVE.budget(S), mapping={"budget_usd": "5", "timestamp": "5"})
    assert call(capsys, environ, "explain", S)[1].count("There is no") == 5


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The demo's whole chain over 400 simulated bars, with a regime of confidence 0.8 injected before each."""
    with EmbeddedServer() as server:
        client: Any = redis.Redis.from_url(server.url, protocol=2, decode_responses=True)

        def inject(progress: Progress) -> None:
            client.xadd("quantum:stream:regime.state", {"regime": "TREND", "confidence": "0.8", "ts": progress.now})

        # the detector says nothing yet: the injected regime is the only one
        alone = {"REGIME_WINDOW": "1400", "P31_MODE": "shadow"}
        outcome = demo.drive(Plan(bars=400, symbols=DEFAULT_SYMBOLS[:4]), alone, server, Event(), inject)
        yield server, client, outcome
        client.close()


def test_explain_tells_each_services_last_decision(chain: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Inputs with age and lane, each factor, what bound, and what would turn it, for all that decided."""
    server, client, _ = chain
    environ = {"REDIS_URL": server.url}
    code, out, _ = call(capsys, environ, "explain", "BNBUSDT", "--format", "json")
    assert code == 0
    found = {d["service"]: d for d in json.loads(out)["decisions"]}
    assert list(found) == ["budget", "attribution", "allocation", "efficiency", "proposer", "governor"]
    assert found.pop("governor")["says"].startswith(("PERMIT: ", "BLOCK"))
    assert all(d["would_change"] for d in found.values())
    last = newest(client, "quantum:stream:allocation.decision")["BNBUSDT"]
    assert found["allocation"]["record"] == last
    inputs = {i["input"]: i for i in found["allocation"]["inputs"]}
    assert (inputs["regime"]["state"], inputs["regime"]["lane"]) == ("ok", "live")
    assert inputs["regime"]["age_s"] == 60
    efficiency = {i["input"]: i["lane"] for i in found["proposer"]["inputs"]}
    assert efficiency == {"base target": "live", "efficiency": "shadow"}
    outcomes = {f["outcome"] for f in found["allocation"]["would_change"]}
    assert {"the symbol cap", "the drawdown zone is"} <= outcomes
    code, out, _ = call(capsys, environ, "explain", "BNBUSDT")
    assert code == 0
    for words in ("It may hold", "x regime 1.2 x", "Capital pressure", "if efficiency counted", "if only", "age of"):
        assert words in out
    assert call(capsys, environ, "explain", "no such thing")[0] == 2


def test_explain_of_foreign_records_says_so(
    client: Client, environ: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Records of other versions and of other programs are not explained wrongly, and nothing breaks."""
    for stream in ("allocation.decision", "alpha.attribution", "capital.efficiency.decision"):
        client.xadd(f"quantum:stream:{stream}", {"symbol": S, "rules": "p99", "cycle_id": "c1", "now": "5"})
    client.xadd("quantum:stream:allocation.target.proposed", {"symbol": S, "reason": "ok"})
    client.hset(LIVE.budget(S), mapping={"budget_usd": "5", "timestamp": "5"})
    code, out, err = call(capsys, environ, "explain", S)
    assert (code, err) == (0, "")
    assert out.count("not one that this version can explain") == 4
    assert "the record of its cycle is gone" in out
    client.xadd("quantum:stream:allocation.cycle", {"cycle_id": "c1", "skipped": "{"})
    assert "not one that this version can explain" in call(capsys, environ, "explain", S)[1]


def test_explain_of_a_skipped_symbol(
    client: Client, any_server: EmbeddedServer, environ: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A symbol that the last cycle left out: why."""
    now = int(time.time())
    client.hset("quantum:state:portfolio", mapping={"equity_usd": 1e5, "drawdown": 0, "timestamp": now})
    client.hset(LIVE.budget(S), mapping={"budget_usd": "NaN", "timestamp": now})
    run(any_server.url, "allocation", now=float(now))
    assert "It has no target: budget_malformed." in call(capsys, environ, "explain", S)[1]


HOSTILE_RECORDS: list[tuple[str, str, str]] = [
    ("budget", "params", '{"base_risk_pct":"0.02"}'), ("budget", "params", "[" * 3000),
    ("budget", "stress_factor", "inf"), ("cycle", "params", '{"max_symbol_pct":"x"}'), ("cycle", "now", "inf"),
    ("cycle", "group_sums_usd", "[]"), ("cycle", "group_sums_usd", '{"UNKNOWN":null}'), ("cycle", "skipped", "[]"),
    ("cycle", "portfolio_ts", "inf"), ("decision", "budget_ts", "inf"), ("decision", "base_usd", "NaN"),
    ("attribution", "regime_contrib", "[]"), ("attribution", "time_contrib", '{"a":null}'),
    ("attribution", "now", "inf"), ("attribution", "lkg_age_s", "inf"), ("attribution", "before", "[" * 3000),
    ("efficiency", "now", "inf"), ("efficiency", "attribution_ts", "inf"), ("efficiency", "before", "null"),
    ("efficiency", "params", '{"w_vol":"x"}'), ("efficiency", "attribution_lane", "other"),
    ("proposal", "now", "inf"), ("proposal", "params", "5"), ("proposal", "eff_state", "other"),
]  # fmt: skip
WHERE = {
    "cycle": "quantum:stream:allocation.cycle", "decision": "quantum:stream:allocation.decision",
    "attribution": PERFORMANCE, "efficiency": SCORES, "proposal": "quantum:stream:allocation.target.proposed",
}  # fmt: skip


@pytest.mark.parametrize(("kind", "name", "value"), HOSTILE_RECORDS)
def test_explain_survives_any_record(
    kind: str, name: str, value: str, one_client: Client, one_server: EmbeddedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever stands in one field of one record: the others are explained, and nothing breaks."""
    now = time.time()
    one_client.hset("quantum:state:portfolio", mapping={"equity_usd": 1e5, "drawdown": 0, "timestamp": int(now)})
    one_client.hset("quantum:state:market:BTCUSDT", mapping={"price": 5, "timestamp": int(now)})
    sold(one_client, S, 5.0, int(now))
    run(one_server.url, "budget", "attribution", "allocation", "efficiency", "proposer", now=now, SHADOW_LANE="1")
    if kind == "budget":
        one_client.hset(LIVE.budget(S), name, value)
    else:
        fields = one_client.xrevrange(WHERE[kind], count=1)[0][1]
        one_client.xadd(WHERE[kind], {**fields, name: value})
    code, out, err = call(capsys, {"REDIS_URL": one_server.url}, "explain", S)
    assert (code, err) == (0, "")
    assert out.count("not one that this version can explain") <= 1
    assert "Traceback" not in out


def test_explain_prints_no_control_characters(
    client: Client, environ: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Escapes for the terminal in a record come out escaped."""
    fields = {"symbol": S, "performance_factor": "0.6", "alpha_score": "0.2", "window": "\x1b[31m", "lkg_age_s": "1"}
    fields |= {"source": "\x1b[31m", "confidence": "0.5", "mode": "\x1b[31m", "now": "1"}
    fields |= {f"{n}_contrib": '{"\\u001b[31m":0.5}' for n in ("regime", "cluster", "signal", "time")}
    client.xadd(PERFORMANCE, fields)
    client.xadd("quantum:stream:allocation.target.proposed", {"symbol": S, "reason": "\x1b[31m\n"})
    for style in ("table", "json"):
        code, out, _ = call(capsys, environ, "explain", S, "--format", style)
        assert code == 0
        assert "\x1b" not in out


def test_commands_that_look_once_look_to_the_end(
    client: Client,
    any_server: EmbeddedServer,
    environ: dict[str, str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Among more keys than a cycle scans, each target is found by one cycle of the proposer and by diff-lanes."""
    monkeypatch.setattr(universe, "PAGES_PER_CYCLE", 2)
    now = time.time()
    client.mset({f"other:{i}": "" for i in range(6_000)})
    names = [f"S{i:03}" for i in range(300)]
    for name in names:
        target(client, name, 500.0, 0.9, int(now))
    run(any_server.url, "proposer", now=now)
    assert sorted(newest(client, "quantum:stream:allocation.target.proposed")) == names
    client.delete("quantum:universe")
    assert all(name in call(capsys, environ, "diff-lanes")[1] for name in (names[0], names[150], names[-1]))


def test_explain_of_a_cycle_that_was_repeated(
    client: Client, any_server: EmbeddedServer, environ: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """The same inputs and clock give the same cycle id: each member counts once, and the cluster cap is told."""
    now = int(time.time())
    client.hset("quantum:state:portfolio", mapping={"equity_usd": 1e5, "drawdown": 0, "timestamp": now})
    for s in ("AAUSDT", S, "CCUSDT"):
        client.hset(LIVE.budget(s), mapping={"budget_usd": "900", "timestamp": now})
    for _ in range(3):
        run(any_server.url, "allocation", now=float(now))
    found = json.loads(call(capsys, environ, "explain", S, "--format", "json")[1])["decisions"][2]
    assert any(f["outcome"] == "the cluster cap" for f in found["would_change"])


def test_explain_finds_a_decision_among_many(
    client: Client, any_server: EmbeddedServer, environ: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A symbol that went away 1,500 entries ago is still explained, with the group of its own cycle."""
    now = int(time.time())
    client.hset("quantum:state:portfolio", mapping={"equity_usd": 1e5, "drawdown": 0, "timestamp": now})
    for s in ("AAUSDT", S, "CCUSDT"):
        client.hset(LIVE.budget(s), mapping={"budget_usd": "900", "timestamp": now})
    run(any_server.url, "allocation", now=float(now))
    client.delete(LIVE.budget(S))
    client.srem("quantum:universe", S)
    pipe = client.pipeline(transaction=False)
    for i in range(1500):
        pipe.xadd("quantum:stream:allocation.decision", {"symbol": "AAUSDT", "cycle_id": f"c{i // 3}"})
    pipe.execute()
    found = json.loads(call(capsys, environ, "explain", S, "--format", "json")[1])["decisions"][2]
    assert found["record"]["target_usd"] == "900.0"
    told = {f["outcome"]: f for f in found["would_change"] if f["input"] == "equity_usd"}
    assert told["the cluster cap"]["at"] == pytest.approx(4500.0)


def test_the_chain_is_alive_on_real_candles(shared: Path) -> None:
    """Real candles, executions of another program, and a regime of confidence 0.8: confidence passes 0.65 for every
    active symbol, proposals with reason ok appear and move targets both from the score and not from nothing; every
    record of the run makes its decision again."""
    path = shared / "data" / "klines_1m_2025-12-13_18.csv.gz"
    with EmbeddedServer() as server:
        client: Any = redis.Redis.from_url(server.url, protocol=2, decode_responses=True)

        def inject(progress: Progress) -> None:
            client.xadd("quantum:stream:regime.state", {"regime": "TREND", "confidence": "0.8", "ts": progress.now})
            if progress.bars % 15 == 0:  # with no live target the desk opens nothing: another program trades
                for place, symbol in enumerate(REAL):
                    pnl = str(((progress.bars * (place + 3)) % 7 - 3) * 10 * (place + 1))
                    client.xadd("quantum:stream:execution.result", {"symbol": symbol, "pnl": pnl, "ts": progress.now})

        plan = Plan(candles=(str(path),), symbols=REAL, bars=500)
        alone = {"P31_MODE": "shadow", "P30_MODE": "shadow", "P29_MODE": "shadow", "REGIME_WINDOW": "1400"}
        outcome = demo.drive(plan, alone, server, Event(), inject)
        assert outcome.executions["applied"] > 300
        scores, proposals = newest(client, SCORES), newest(client, "quantum:stream:allocation.target.proposed")
        assert scores.keys() == proposals.keys() == set(REAL)
        assert all(float(f["confidence"]) >= 0.65 and f["lane"] == "shadow" for f in scores.values())
        assert Counter(f["reason"] for f in proposals.values()) == {"ok": 11}
        assert outcome.proposals["ok"] > 1500
        assert len({f["multiplier"] for f in proposals.values()}) > 5
        assert all(float(f["proposed_target"]) != float(f["base_target"]) for f in proposals.values())
        assert client.exists(*(LIVE.target(s) for s in REAL), *(LIVE.efficiency(s) for s in REAL)) == 0
        for stream in (PERFORMANCE, SCORES, "quantum:stream:allocation.target.proposed"):
            records = [f for _, f in client.xrange(stream)]
            assert len(records) > 4000
            assert all(qa.differences(f) == {} for f in records[::7])
        client.close()
