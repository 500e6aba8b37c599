"""The loop by hand, as an operator runs it: plan, permit, fill, explanation, account, reconciliation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from quantum_alloc.adapters.embedded import EmbeddedServer
from quantum_alloc.services.cli import main
from tests.support.running import ALONE
from tests.support.worlds import Client

S = "XYZUSDT"


@pytest.fixture
def environ(any_server: EmbeddedServer, tmp_path: Path) -> dict[str, str]:
    """The settings of an operator's shell."""
    return {
        "REDIS_URL": any_server.url, "STATE_DIRECTORY": str(tmp_path), "APPLY_MODE": "production", "LOG_LEVEL": "ERROR",
        "GOV_CONSUMER": "tried", "GOV_SYMBOL_COOLDOWN_SECONDS": "0", "HOME": str(tmp_path),
    }  # fmt: skip


def call(capsys: pytest.CaptureFixture[str], environ: dict[str, str], *words: str) -> str:
    """A command that must succeed; what it printed. A loaded machine may keep the server from answering in time."""
    code, out, err = 69, "", ""
    for _ in range(4):
        code = main(list(words), {**environ, **ALONE})
        out, err = capsys.readouterr()
        if code != 69:
            break
    if words[0] == "status":  # no service runs here
        assert (code, err.startswith("quantum-alloc: not well: portfolio not reached")) == (1, True)
    else:
        assert (code, err) == (0, "")
    return out


def test_plan_permit_fill(client: Client, environ: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    """A plan is permitted, filled, and explained with its fill; status shows the account, reconciled."""
    assert "There is no paper account" in call(capsys, environ, "status")
    call(capsys, environ, "run", "apply", "--once")  # opens the account, before anything is traded
    call(capsys, environ, "inject", "portfolio")
    call(capsys, environ, "inject", "market", S, "--price", "90000")
    call(capsys, environ, "inject", "plan", S, "--plan-id", "p1", "--qty", "0.002")
    call(capsys, environ, "run", "governor", "--once")
    assert "the permit stands for another" in call(capsys, environ, "explain", "p1")
    call(capsys, environ, "run", "apply", "--once")
    told = call(capsys, environ, "explain", "p1")
    assert "the permit was filled: BUY 0.002 at 90,000.00 USD, fee 0.072 USD" in told
    assert float(client.hget(f"quantum:state:positions:{S}", "position_amt")) == 0.002
    found: dict[str, Any] = json.loads(call(capsys, environ, "status", "--format", "json"))
    assert found["account"]["balance_usd"] == pytest.approx(100_000 - 0.072)
    assert found["permits"] == {
        "permits": 1, "consumed": 1, "expired": 0, "outstanding": 0, "fills": 1, "without permit": 0, "above permit": 0,
        "not in account": 0, "reconciled": "ok",
    }  # fmt: skip

    call(capsys, environ, "inject", "plan", S, "--plan-id", "p2", "--action", "FULL_CLOSE_PROPOSED")
    call(capsys, environ, "run", "governor", "--once")
    call(capsys, environ, "run", "apply", "--once")
    assert "realised 0 USD" in call(capsys, environ, "explain", "p2")
    assert float(client.hget(f"quantum:state:positions:{S}", "position_amt")) == 0.0


def test_a_fill_without_a_permit_alarms(
    client: Client, environ: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Somebody trades beside the governor: status says so, and the account tells how often."""
    call(capsys, environ, "run", "apply", "--once")
    call(capsys, environ, "inject", "execution", S, "--pnl", "5")
    assert main(["run", "apply", "--once"], environ) == 0
    assert "1 fills without a permit" in capsys.readouterr().err
    assert "ALARM" in call(capsys, environ, "status")
    client.hset("quantum:apply:state", "_version", "9")
    out = call(capsys, environ, "status")
    assert "unreadable" in out
    assert "its _version is '9', not 1" in out


def test_money_in_and_out(client: Client, environ: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    """A transfer counts once, however often the service looks."""
    call(capsys, environ, "run", "apply", "--once")
    call(capsys, environ, "inject", "transfer", "--usd", "-8000")
    for _ in range(3):
        call(capsys, environ, "run", "apply", "--once")
    assert float(client.hget("quantum:account:balance", "balance")) == 92_000.0


def test_explain_of_what_other_programs_report(
    client: Client, environ: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A permit that was not filled says why; a foreign report without figures breaks nothing."""
    call(capsys, environ, "inject", "portfolio")
    call(capsys, environ, "inject", "market", S, "--price", "90000")
    for name in ("p1", "p2", "p3"):
        call(capsys, environ, "inject", "plan", S, "--plan-id", name, "--qty", "0.0001")
    call(capsys, environ, "run", "governor", "--once")
    client.delete("quantum:permit:p1", "quantum:permit:p2", "quantum:permit:p3")
    results = "quantum:stream:apply.result"
    client.xadd(
        results, {"plan_id": "p1", "executed": "false", "error": "permit_expired", "waited_for": "price_unknown"}
    )
    client.xadd(results, {"plan_id": "p2", "executed": "true", "filled_qty": "much"})
    told = call(capsys, environ, "explain", "p1")
    assert "the permit was not filled: permit_expired, after it waited for price_unknown" in told
    assert "the permit was filled:  an unknown amount at an unknown amount USD" in call(
        capsys, environ, "explain", "p2"
    )
    assert "the permit was" not in call(capsys, environ, "explain", "p3")


@pytest.mark.parametrize("name", ["apply", "desk", "governor"])
def test_a_clock_of_its_own_is_refused(name: str, environ: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    """These take their time from the server: --now and CLOCK=simulated are refused with one sentence."""
    assert main(["run", name, "--once", "--now", "5"], environ) == 2
    assert "takes its time from the server" in capsys.readouterr().err
    if name != "desk":
        assert main(["run", name, "--once"], {**environ, "CLOCK": "simulated"}) == 78
        assert "CLOCK=server" in capsys.readouterr().err


def test_a_halt_that_cannot_be_told_of_is_said_to_be_set(
    one_client: Client, one_server: EmbeddedServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The key is set and everything after it fails: the command says that the switch is HALT, and then what failed."""
    one_client.execute_command("ACL", "SETUSER", "hand", "on", "nopass", "~quantum:kill", "+@all")
    url = one_server.url.replace("unix://", "unix://hand:x@")
    try:
        code = main(["kill", "halt"], {"REDIS_URL": url, "STATE_DIRECTORY": str(tmp_path), "LOG_LEVEL": "ERROR"})
    finally:
        one_client.execute_command("ACL", "DELUSER", "hand")
    out, err = capsys.readouterr()
    assert (code, out) == (69, "The kill switch is HALT.\n")
    assert "NOPERM" in err
    assert one_client.get("quantum:kill") == "halt"
