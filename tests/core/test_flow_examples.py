"""The worked cases of attribution, efficiency and proposal, through the core and again through Redis."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import quantum_alloc.core as qa
from quantum_alloc.adapters.embedded import EmbeddedServer
from quantum_alloc.adapters.keys import LIVE
from tests.core.test_examples import cases
from tests.support.flow import PERFORMANCE, PROPOSALS, SCORES, newest, performance, run, sold, target
from tests.support.worlds import Client

NOW = 1769577495
S = "BTCUSDT"
ATTRIBUTION, EFFICIENCY, PROPOSAL = cases("attribution"), cases("efficiency"), cases("proposal")


def close(found: Any, wanted: float) -> None:
    """Within 1e-9 relative."""
    assert float(found) == pytest.approx(wanted, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("case", ATTRIBUTION, ids=lambda c: str(c.get("pnl_usd", c))[:50])
def test_attribution_cases_hold_in_the_core(case: dict[str, Any], shared: Path) -> None:
    """Every worked case is what the core says, whether the executions come in one cycle or one by one."""
    fills = [qa.Execution(S, float(NOW), pnl) for pnl in case["pnl_usd"]]
    _, at_once = qa.attribute(S, qa.AttributionState(), fills, NOW)
    state, one_by_one = qa.AttributionState(), None
    for fill in fills:
        state, one_by_one = qa.attribute(S, state, [fill], NOW)
    for made in (at_once, one_by_one):
        assert made is not None
        for name, wanted in case["expect"].items():
            close(getattr(made, name), wanted)


@pytest.mark.parametrize("case", ATTRIBUTION, ids=lambda c: str(c.get("pnl_usd", c))[:50])
def test_attribution_cases_hold_through_redis(
    case: dict[str, Any], shared: Path, client: Client, any_server: EmbeddedServer
) -> None:
    """Every worked case comes back from the command, stream and hash alike."""
    for pnl in case["pnl_usd"]:
        sold(client, S, pnl, NOW)
    run(any_server.url, "attribution", now=NOW, P30_MODE="enforce")
    record, hashed = newest(client, PERFORMANCE)[S], client.hgetall(LIVE.attribution(S))
    for name, wanted in case["expect"].items():
        close(record[name], wanted)
        assert hashed[name] == record[name]
    assert (hashed["ts_utc"], hashed["ts"], hashed["mode"], hashed["source"]) == (str(NOW), str(NOW), "enforce", "live")
    assert 0 < client.ttl(LIVE.attribution(S)) <= 300
    assert qa.differences(record) == {}


NAMES = {
    "raw": "efficiency_raw", "score": "efficiency_score", "ewma": "efficiency_ewma", "confidence": "confidence",
    "vol": "volatility_ewma", "dd": "dd_proxy", "hold": "hold_time_penalty", "weight": "reallocation_weight",
}  # fmt: skip


def before(given: dict[str, Any]) -> qa.EfficiencyState:
    """The state that a case starts from."""
    last = None if given["hold_s"] is None or given["pnls"] else NOW - given["hold_s"]
    state = qa.EfficiencyState(given.get("vol0", 0.0), given.get("dd0", 0.0), given.get("prev", 0.5), last)
    return replace(state, seen_ts=float(NOW))


def ages(given: dict[str, Any]) -> tuple[int | None, int | None]:
    """Age of attribution and target; None for a missing one."""
    flags = given.get("flags", 0)
    if given["target"] is None:
        return None, None
    return (301 if flags >= 1 else 0), (301 if flags >= 2 else 0)


@pytest.mark.parametrize("case", EFFICIENCY, ids=lambda c: str(c.get("name")))
def test_efficiency_cases_hold_in_the_core(case: dict[str, Any], shared: Path) -> None:
    """Every worked case is what the core measures."""
    given, expect = case["input"], case["expect"]
    old_p30, old_p29 = ages(given)
    attribution: qa.Reading[qa.Attribution] = qa.missing()
    if old_p30 is not None:
        attribution = qa.grade(qa.Attribution(given["pf"], given["pconf"]), NOW - old_p30, NOW, 300)
    wanted: qa.Reading[qa.AllocationTarget] = qa.missing()
    if old_p29 is not None:
        wanted = qa.grade(qa.AllocationTarget(given["target"], given["tconf"]), NOW - old_p29, NOW, 300)
    fills = tuple(qa.Execution(S, NOW - (given["hold_s"] or 0.0), pnl) for pnl in given["pnls"])
    _, made = qa.efficiency_step(before(given), qa.EfficiencyInputs(S, NOW, attribution, wanted, fills))
    for short, name in NAMES.items():
        close(getattr(made, name), expect[short])
    assert made.capital_pressure.value == expect["pressure"]


@pytest.mark.parametrize("case", EFFICIENCY, ids=lambda c: str(c.get("name")))
def test_efficiency_cases_hold_through_redis(
    case: dict[str, Any], shared: Path, client: Client, any_server: EmbeddedServer
) -> None:
    """Every worked case comes back from the command, stream and hash alike."""
    given, expect = case["input"], case["expect"]
    old_p30, old_p29 = ages(given)
    client.hset(LIVE.efficiency_state, mapping={S: before(given).text(), "_pos": "0-0", "_version": "1"})
    if old_p30 is not None:
        performance(client, S, given["pf"], given["pconf"], NOW - old_p30)
    if old_p29 is not None:
        target(client, S, given["target"], given["tconf"], NOW - old_p29)
    for pnl in given["pnls"]:
        sold(client, S, pnl, NOW - given["hold_s"])
    run(any_server.url, "efficiency", now=NOW, P31_MODE="enforce")
    record, hashed = newest(client, SCORES)[S], client.hgetall(LIVE.efficiency(S))
    for short, name in NAMES.items():
        close(record[name], expect[short])
        assert hashed[name] == record[name]
    assert record["capital_pressure"] == hashed["capital_pressure"] == expect["pressure"]
    assert (hashed["version"], hashed["ts"], hashed["mode"]) == ("p31_v1", str(NOW), "enforce")
    assert 0 < client.ttl(LIVE.efficiency(S)) <= 600
    assert qa.differences(record) == {}


def test_the_rules_worked_figures_hold() -> None:
    """The figures that the rules state beside the formula."""
    assert round(qa.score_efficiency(0.72, qa.per_target(2.5, 800.0), 0.0, 0.0), 6) == 0.718204
    assert round(qa.score_efficiency(0.72, 1.0, 0.6, 1.0), 6) == 0.230769
    assert round(qa.score_efficiency(0.8, 0.0, 0.0, 0.5), 6) == 0.615385


def test_the_trace_is_as_its_readers_take_it_apart(client: Client, any_server: EmbeddedServer) -> None:
    """Two decimals, none, and a flag; what was never seen is 0."""
    performance(client, S, 0.6, 0.3, NOW)
    target(client, S, 348.6, 0.9, NOW)
    performance(client, "ETHUSDT", 0.6, 0.3, NOW)
    run(any_server.url, "efficiency", now=NOW)
    found = newest(client, SCORES)
    assert found[S]["trace"] == "p30_conf=0.30,p29_tgt=349,inputs_ok=1"
    assert found["ETHUSDT"]["trace"] == "p30_conf=0.30,p29_tgt=0,inputs_ok=0"
    assert found["ETHUSDT"]["stale_flags"] == "P29_MISSING"


@pytest.mark.parametrize("case", PROPOSAL, ids=str)
def test_proposal_cases_hold_in_the_core(case: dict[str, Any], shared: Path) -> None:
    """Every worked case is what the core proposes."""
    efficiency: qa.Reading[qa.Efficiency] = qa.missing()
    if case["score"] is not None:
        efficiency = qa.grade(qa.Efficiency(case["score"], case["confidence"]), NOW - case["age_s"], NOW, 600)
    made = qa.propose(qa.ProposalInputs(S, NOW, qa.fresh(1000.0), efficiency))
    assert isinstance(made, qa.ProposalDecision)
    close(made.multiplier, case["expect"]["multiplier"])
    assert made.reason.value == case["expect"]["reason"]
    close(made.proposed_target_usd, 1000.0 * case["expect"]["multiplier"])


@pytest.mark.parametrize("case", PROPOSAL, ids=str)
def test_proposal_cases_hold_through_redis(
    case: dict[str, Any], shared: Path, client: Client, any_server: EmbeddedServer
) -> None:
    """Every worked case comes back from the command, stream and hash alike; no target is written."""
    target(client, S, 1000.0, 0.9, NOW)
    if case["score"] is not None:
        fields = {"efficiency_score": case["score"], "confidence": case["confidence"], "ts": NOW - case["age_s"]}
        client.hset(LIVE.efficiency(S), mapping=fields)
    standing = client.hgetall(LIVE.target(S))
    run(any_server.url, "proposer", now=NOW)
    record, hashed = newest(client, PROPOSALS)[S], client.hgetall(LIVE.proposed(S))
    assert record["multiplier"] == hashed["multiplier"] == f"{case['expect']['multiplier']:.4f}"
    assert record["reason"] == hashed["reason"] == case["expect"]["reason"]
    close(record["proposed_target"], 1000.0 * case["expect"]["multiplier"])
    assert record["eff_stale"] == ("1" if case["expect"]["reason"] == "stale_eff" else "0")
    assert (record["eff_score"] == "") == (case["score"] is None)
    assert hashed["last_update_ts_epoch"] == hashed["ts_epoch"] == record["ts_epoch"] == str(NOW)
    assert hashed["mode"] == "shadow"
    assert 0 < client.ttl(LIVE.proposed(S)) <= 600
    assert client.hgetall(LIVE.target(S)) == standing
    assert qa.differences(record) == {}
