"""kill, rearm, explain PLAN_ID, status and run governor, as a person uses them."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from quantum_alloc.adapters.embedded import EmbeddedServer
from tests.integration.test_trial_commands import call
from tests.support.running import ALONE, Service, until
from tests.support.worlds import Client

S = "BTCUSDT"
PLANS, EVENTS = "quantum:stream:apply.plan", "quantum:stream:governor.events"


@pytest.fixture
def environ(client: Client, any_server: EmbeddedServer, tmp_path: Path) -> dict[str, str]:
    """An empty server and a state directory in the environment."""
    return {
        "REDIS_URL": any_server.url,
        "LOG_LEVEL": "ERROR",
        "STATE_DIRECTORY": str(tmp_path),
        "APPLY_MODE": "production",
    }


def world(client: Client) -> None:
    """A portfolio without positions, and a price."""
    now = int(time.time())
    client.hset(
        "quantum:state:portfolio", mapping={"positions_notional_usd": 0, "positions_count": 0, "timestamp": now}
    )
    client.hset(f"quantum:state:market:{S}", mapping={"price": 90_000, "timestamp": now})


def put(capsys: pytest.CaptureFixture[str], environ: dict[str, str], plan_id: str, *more: str) -> None:
    """A plan, and the governor's answer to it."""
    flags = ("--plan-id", plan_id, "--qty", "0.002", "--kill-score", "0.1", *more)
    assert call(capsys, environ, "inject", "plan", S, *flags)[0] == 0
    assert call(capsys, environ, "run", "governor", "--once")[0] == 0


def events(client: Client, name: str) -> list[dict[str, Any]]:
    """The events of a name."""
    return [f for _, f in client.xrange(EVENTS) if f["event"] == name]


def test_a_plan_is_explained_gate_by_gate(
    client: Client, environ: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Permit and block: the outcome, each gate with observed, limit and margin, and what would turn it."""
    world(client)
    put(capsys, environ, "p1")
    put(capsys, environ, "p2")
    code, out, err = call(capsys, environ, "explain", "p1", "--format", "json")
    assert (code, err) == (0, "")
    (told,) = json.loads(out)["decisions"]
    assert told["says"].startswith("PERMIT: ENTRY_PROPOSED BTCUSDT may BUY 0.002, 180.00 USD")
    gates = {g["gate"]: g for g in told["gates"]}
    assert (gates["4.trade"]["observed"], gates["4.trade"]["limit"], gates["4.trade"]["margin"]) == (180.0, 200.0, 20.0)
    turns = {f["input"]: f["at"] for f in told["would_change"]}
    assert turns.keys() >= {"quantity", "kill score", "market price", "age of portfolio"}
    assert (turns["age of portfolio"], turns["kill score"]) == (61.0, 0.8)
    assert any(line.startswith("the permit stands for another ") for line in told["because"])
    code, out, _ = call(capsys, environ, "explain", "p2")
    assert code == 0
    for words in ("blocked by gate 4: symbol_cooldown", "time alone would lift it after", "4.cooldown", "margin"):
        assert words in out
    assert "ENTRY_PROPOSED BTCUSDT is blocked" in call(capsys, environ, "explain", S)[1]
    code, out, _ = call(capsys, environ, "explain", "never-seen")
    assert (code, "Nothing is on record for this plan" in out) == (0, True)
    for name, flags, words in (
        ("w1", (), "It waits: no governor"),
        ("w2", ("--decision", "HOLD"), "'HOLD', not EXECUTE"),
    ):
        assert call(capsys, environ, "inject", "plan", S, "--plan-id", name, *flags)[0] == 0
        assert words in call(capsys, environ, "explain", name)[1]
    client.delete(EVENTS)
    assert "It got PERMIT (ok); the record of it is gone" in call(capsys, environ, "explain", "p1")[1]
    put(capsys, environ, "p1")
    assert "It got PERMIT (ok)" in call(capsys, environ, "explain", "p1")[1]


def test_a_plan_id_that_could_be_a_symbol(
    client: Client, environ: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """``--plan`` says that it is a plan."""
    world(client)
    put(capsys, environ, "PLAN77")
    assert "Nothing is on record for PLAN77" in call(capsys, environ, "explain", "PLAN77")[1]
    assert "PERMIT" in call(capsys, environ, "explain", "PLAN77", "--plan")[1]


def test_status_shows_gates_and_windows(
    client: Client, environ: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Each gate of the mode, the kill switch, and what a symbol has used; nothing is written."""
    environ = {**environ, **ALONE}
    world(client)
    put(capsys, environ, "p1")
    before = {k: client.object("encoding", k) for k in client.keys("*")}
    code, out, err = call(capsys, environ, "status", "--format", "json")
    assert (code, "governor not reached" in err) == (1, True)  # no service runs here
    found = json.loads(out)
    rows = {g["gate"]: g for g in found["gates"]}
    assert [rows[g]["mode"] for g in ("0", "0.5", "1")] == ["enforce"] * 3
    assert (rows["0.5"]["fails"], rows["1"]["fails"], rows["5"]["scope"]) == ("open", "closed", "closes")
    (window,) = found["windows"]
    assert (window["symbol"], window["opens in 1 h"], window["in 5 min"]) == (S, "1 of 3", "1 of 2")
    assert 0 < window["cooldown_s"] <= 60
    assert (found["governor"]["kill"], found["governor"]["reserved opens"]) == ("OFF", 1)
    assert {k: client.object("encoding", k) for k in client.keys("*")} == before
    testnet = json.loads(call(capsys, {**environ, "APPLY_MODE": "testnet"}, "status", "--format", "json")[1])
    assert {g["gate"]: g["mode"] for g in testnet["gates"]}["0.5"] == "would_block"
    assert "kill_switch_active, reduce_only" in call(capsys, environ, "status")[1]
    client.set("quantum:governor:ledger:ETHUSDT", "x")
    client.set("quantum:governor:book", "x")
    broken = json.loads(call(capsys, environ, "status", "--format", "json")[1])
    assert "unreadable" in json.dumps(broken["windows"])
    assert broken["governor"]["reserved opens"] == "unreadable"


def test_halt_latches_until_rearmed(
    client: Client, environ: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Halt, off and rearm by hand: the key, the latch, the events, the OPS ledger; off alone permits nothing."""
    world(client)
    code, out, err = call(capsys, environ, "kill", "halt", "--by", "ann", "--why", "drill")
    assert (code, err) == (0, "")
    assert "The kill switch is HALT." in out
    assert client.get("quantum:kill") == "halt"
    latch = client.hgetall("quantum:kill:latch")  # before any governor has seen it
    assert (latch["state"], latch["by"], latch["why"]) == ("HALT", "ann", "drill")
    assert json.loads(call(capsys, environ, "status", "--format", "json")[1])["governor"]["why"] == "drill"
    put(capsys, environ, "p1")
    code, _, err = call(capsys, environ, "rearm", "--by", "ann", "--why", "done")
    assert (code, err) == (
        2,
        "quantum-alloc: the kill switch is HALT: set it off first, with `quantum-alloc kill off`\n",
    )
    assert client.exists("quantum:kill:latch") == 1
    code, out, _ = call(capsys, environ, "kill", "off")
    assert code == 0
    assert "A halt is latched: nothing is permitted until `quantum-alloc rearm" in out
    put(capsys, environ, "p2")
    client.flushdb()
    world(client)
    put(capsys, environ, "p3")  # the file latches too
    assert client.hget("quantum:kill:latch", "since") == latch["since"]
    assert [e["reason"] for e in events(client, "BLOCK")] == ["kill_switch_active"]
    code, out, _ = call(capsys, environ, "rearm", "--by", "ann", "--why", "done")
    assert (code, "Rearmed" in out) == (0, True)
    assert client.exists("quantum:kill:latch") == 0
    assert client.hget("quantum:kill:rearm", "by") == "ann"
    put(capsys, environ, "p4")
    assert [e["plan_id"] for e in events(client, "PERMIT")] == ["p4"]
    assert [e["reason"] for e in events(client, "REARM")] == ["rearm"]
    code, out, _ = call(capsys, environ, "ledger", "show", "--format", "json")
    assert [e["operation_name"] for e in json.loads(out)] == ["kill_halt", "kill_off", "rearm"]
    assert call(capsys, environ, "ledger", "verify")[0] == 0


def test_reduce_does_not_latch(client: Client, environ: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    """Opens wait, exits go on, and off is enough."""
    world(client)
    now = int(time.time())
    fields = {"position_amt": "0.01", "mark_price": "90000", "ts_epoch": now}
    client.hset(f"quantum:state:positions:{S}", mapping=fields)
    assert call(capsys, environ, "kill", "reduce")[0] == 0
    put(capsys, environ, "p1")
    put(capsys, environ, "p2", "--action", "PARTIAL_50", "--side", "SELL")
    assert [(e["plan_id"], e["reason"]) for e in events(client, "BLOCK")] == [("p1", "reduce_only")]
    assert [e["plan_id"] for e in events(client, "PERMIT")] == ["p2"]
    assert client.exists("quantum:kill:latch") == 0
    code, out, _ = call(capsys, environ, "kill", "off")
    assert (code, "latched" in out) == (0, False)


def test_kill_works_whatever_stands_in_the_way(
    client: Client, environ: dict[str, str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A key of another type, an event stream of another type and a ledger that cannot be written keep no halt back."""
    client.rpush("quantum:kill", "x")
    client.set(EVENTS, "x")
    blocked = tmp_path / "file"
    blocked.write_text("")
    code, out, err = call(capsys, {**environ, "STATE_DIRECTORY": str(blocked)}, "kill", "halt")
    assert (code, client.get("quantum:kill")) == (1, "halt")
    assert "The kill switch is HALT." in out
    assert "does not tell of it" in err
    assert "done, but the OPS ledger does not tell of it" in err


def test_words_that_are_refused(environ: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    """A clock for the governor, a rearm without a name, a name of control characters."""
    code, _, err = call(capsys, environ, "run", "governor", "--once", "--now", "5")
    assert (code, "takes its time from the server" in err) == (2, True)
    assert call(capsys, environ, "rearm", "--by", "ann")[0] == 2
    assert call(capsys, environ, "kill", "halt", "--by", "a\nb")[0] == 2
    assert call(capsys, environ, "kill", "stop")[0] == 2
    code, _, err = call(capsys, {**environ, "REDIS_URL": "redis://127.0.0.1:1"}, "kill", "halt")
    assert (code, "cannot be reached" in err) == (69, True)


def test_a_bad_plan_names_its_field(
    client: Client, environ: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """What is wrong with it stands in the block, in the event and in the explanation."""
    world(client)
    now = int(time.time())
    good = {"plan_id": "b", "symbol": S, "action": "ENTRY", "decision": "EXECUTE", "timestamp": str(now), "side": "BUY",
            "qty": "0.002", "kill_score": "0.1"}  # fmt: skip
    bad: dict[str, tuple[dict[str, str], str]] = {
        "b1": ({"qty": "abc"}, "qty"),
        "b2": ({"kill_score": ""}, "kill_score"),
        "b3": ({"timestamp": str(now + 500)}, "timestamp: it is ahead of the server's clock"),
        "b4": ({"action": "CLOSE_LONG"}, "action: it says close and would open"),
        "b5": ({"side": "UP"}, "side"),
    }
    for name, (change, _) in bad.items():
        client.xadd(PLANS, {**good, **change, "plan_id": name})
    assert call(capsys, environ, "run", "governor", "--once")[0] == 0
    for name, (_, detail) in bad.items():
        block = json.loads(client.get(f"quantum:governor:block:{name}"))
        assert (block["reason"], block["detail"]) == ("bad_plan", detail)
        assert f"bad_plan ({detail})" in call(capsys, environ, "explain", name)[1]


def test_an_idle_governor_is_ready(client: Client, any_server: EmbeddedServer, tmp_path: Path) -> None:
    """A server that answers a blocked read late, by its own timer, is no trouble: no cycle is given up."""
    with Service("governor", any_server.url, STATE_DIRECTORY=str(tmp_path)) as service:
        until(service.ready, 10, "ready")
        until(lambda: service.metric('quantum_alloc_cycles_total{outcome="ok"}') >= 15, 15, "fifteen cycles")
        assert service.metric('quantum_alloc_cycles_total{outcome="store"}') == 0
        assert service.ready()
