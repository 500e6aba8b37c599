"""The worked cases, through the core and again through Redis."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import quantum_alloc.core as qa
from quantum_alloc.adapters.embedded import EmbeddedServer
from quantum_alloc.core.allocation import UNMAPPED
from tests.conftest import SHARED
from tests.support.worlds import Client, over_redis, world_of

FIELDS = {
    "base": "base_usd", "regime": "regime", "regime_factor": "regime_factor", "cluster_id": "cluster_id",
    "cluster_factor": "cluster_factor", "drawdown_zone": "drawdown_zone", "drawdown_factor": "drawdown_factor",
    "performance_factor": "performance_factor", "performance_source": "performance_source", "confidence": "confidence",
    "target": "target_usd", "weight": "weight",
}  # fmt: skip


def cases(name: str) -> list[dict[str, Any]]:
    """The cases of a file, or one placeholder where they are not beside this checkout."""
    path = SHARED / "examples" / f"{name}.json"
    return list(json.loads(path.read_text())["cases"]) if path.is_file() else [{"name": "absent"}]


ALLOCATION, BUDGET = cases("allocation"), cases("budget")


def names(case: Mapping[str, Any]) -> str:
    """A test's id."""
    return str(case.get("name", case))[:60]


def agree(found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Same texts, and numbers within 1e-9 relative."""
    for short, field in FIELDS.items():
        want, got = expected[short], found[field]
        if isinstance(want, str):
            assert got == want, short
        else:
            assert float(got) == pytest.approx(want, rel=1e-9, abs=0.0), short


def through_core(case: Mapping[str, Any]) -> qa.AllocationCycle:
    """A case as readings, decided."""
    now, limit = case["now"], qa.AllocationParams().stale_data_s
    p, r, clusters, attribution = case["portfolio"], case["regime"], case["clusters"], case["attribution"]
    regime: qa.Reading[qa.Regime] = qa.missing()
    if r:
        regime = qa.grade(qa.Regime(r["regime"], r["confidence"]), r["ts"], now, limit)
    portfolio = qa.grade(qa.Portfolio(p["equity_usd"], abs(p["drawdown"])), p["ts"], now, limit)
    symbols = []
    for s, b in case["budgets"].items():
        c, a = clusters.get(s), attribution.get(s)
        stress: qa.Reading[float] = qa.grade(c["stress"], c["ts"], now, limit) if c else qa.missing()
        pf: qa.Reading[qa.Attribution] = (
            qa.grade(qa.Attribution(a["performance_factor"], a["confidence"]), a["ts"], now, limit)
            if a
            else qa.missing()
        )
        budget = qa.grade(b["budget_usd"], b["ts"], now, limit)
        symbols.append(qa.SymbolInputs(s, budget, c["cluster_id"] if c else UNMAPPED, stress, pf))
    return qa.allocate_portfolio(symbols, qa.SharedInputs(now, portfolio, regime))


@pytest.mark.parametrize("case", ALLOCATION, ids=names)
def test_allocation_cases_hold_in_the_core(case: dict[str, Any], shared: Path) -> None:
    """Every worked case of allocation is what the core decides."""
    made = {d.symbol: d.to_dict() for d in through_core(case).decisions}
    assert made.keys() == case["expect"].keys()
    for symbol, expected in case["expect"].items():
        agree(made[symbol], expected)


@pytest.mark.parametrize("case", ALLOCATION, ids=names)
def test_allocation_cases_hold_through_redis(
    case: dict[str, Any], shared: Path, client: Client, any_server: EmbeddedServer
) -> None:
    """Every worked case, written as another program would, comes back from the command: stream and hash agree."""
    result = over_redis(client, any_server.url)(world_of(case))
    assert result.decisions.keys() == case["expect"].keys() == result.hashes.keys()
    for symbol, expected in case["expect"].items():
        agree(result.decisions[symbol], expected)
        hashed = result.hashes[symbol]
        for field in ("target_usd", "weight", "cluster_id", "regime", "drawdown_zone", "confidence", "timestamp", "ts"):
            assert hashed[field] == result.decisions[symbol][field]
        assert hashed["mode"] == "enforce"
        assert 0 < client.ttl(f"quantum:allocation:target:{symbol}") <= 300


@pytest.mark.parametrize("case", BUDGET, ids=lambda c: str(c.get("equity_usd")))
def test_budget_cases_hold_in_the_core(case: dict[str, Any], shared: Path) -> None:
    """Every worked case of budget is what the core decides."""
    args = (case["equity_usd"], case["heat"], case["cluster_stress"], case["vol"])
    assert qa.budget(*args) == pytest.approx(case["expect"]["budget_usd"], rel=1e-9)
    assert qa.stress_factor(*args[1:]) == pytest.approx(case["expect"]["stress_factor"], rel=1e-9)


SIGMA_OF_VOL = {0.33: None, 0.67: 0.025, 1.0: 0.05, 0.0: 0.001}


@pytest.mark.parametrize("case", BUDGET, ids=lambda c: str(c.get("equity_usd")))
def test_budget_cases_hold_through_redis(
    case: dict[str, Any], shared: Path, client: Client, any_server: EmbeddedServer
) -> None:
    """Every worked case comes back from the command, heat and stress made by positions, markets and clusters."""
    from quantum_alloc.services.cli import main

    now, equity = 1769577495, case["equity_usd"]
    client.hset("quantum:state:portfolio", mapping={"equity_usd": equity, "drawdown": 0, "timestamp": now})
    market: dict[str, Any] = {"price": 100.0, "timestamp": now}
    sigma = SIGMA_OF_VOL[case["vol"]]
    if sigma is not None:
        market["sigma"] = sigma
    client.hset("quantum:state:market:BTCUSDT", mapping=market)
    # the heat comes from another symbol, so that the volatility class stays as the case has it
    client.hset("quantum:state:market:ETHUSDT", mapping={"price": 1.0, "sigma": 0.5, "timestamp": now})
    qty = case["heat"] * equity / 0.5
    position = {"position_amt": -qty, "mark_price": 1.0, "unrealized_pnl": 0, "ts_epoch": now}
    client.hset("quantum:state:positions:ETHUSDT", mapping=position)
    client.hset("quantum:portfolio:clusters", mapping={"C1": '["BTCUSDT"]'})
    client.hset("quantum:cluster:stress:C1", mapping={"stress": case["cluster_stress"], "timestamp": now})
    environ = {"REDIS_URL": any_server.url, "LOG_LEVEL": "ERROR"}
    assert main(["run", "budget", "--once", "--now", str(now)], environ) == 0
    found = client.hgetall("quantum:portfolio:budget:BTCUSDT")
    assert float(found["budget_usd"]) == pytest.approx(case["expect"]["budget_usd"], rel=1e-9)
    assert float(found["stress_factor"]) == pytest.approx(case["expect"]["stress_factor"], rel=1e-9)
    assert float(found["portfolio_heat"]) == pytest.approx(case["heat"], rel=1e-9)
    assert found["mode"] == "shadow"
    assert 0 < client.ttl("quantum:portfolio:budget:BTCUSDT") <= 300
    events = [json.loads(f["json"]) for _, f in client.xrange("quantum:stream:budget.violation")]
    over = qty > float(client.hgetall("quantum:portfolio:budget:ETHUSDT")["budget_usd"])
    assert [e["symbol"] for e in events] == (["ETHUSDT"] if over else [])
    for e in events:
        assert e.keys() == {
            "event_type",
            "symbol",
            "position_notional",
            "budget_usd",
            "over_budget",
            "mode",
            "timestamp",
        }
