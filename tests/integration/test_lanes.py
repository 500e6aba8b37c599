"""The shadow lane: the whole chain can be watched, and nothing that counts is touched."""

from __future__ import annotations

import json
from typing import Any

import pytest

import quantum_alloc.core as qa
from quantum_alloc.adapters.clock import SetClock
from quantum_alloc.adapters.embedded import EmbeddedServer
from quantum_alloc.adapters.keys import LIVE, Keys, ShadowKeys
from quantum_alloc.adapters.store import Store
from quantum_alloc.adapters.writes import Target
from quantum_alloc.services.cli import main
from tests.integration.test_effects import SHADOW_MAY, a_world, monitored
from tests.support.flow import PERFORMANCE, PROPOSALS, SCORES, efficiency_loop, newest, performance, run, sold, target
from tests.support.worlds import Client, load

NOW = 1769577495
S = "S0USDT"
SHADOW = ShadowKeys()
CHAIN = ("portfolio", "budget", "attribution", "allocation", "efficiency", "proposer")
FLOW_MAY = (
    *SHADOW_MAY, "quantum:stream:alpha.attribution", "quantum:stream:capital.efficiency.decision",
    "quantum:stream:allocation.target.proposed", "quantum:allocation:target:proposed:",
    "quantum:stream:execution.deadletter", "quantum:p30:state", "quantum:p31:state",
)  # fmt: skip


def decisions(client: Client) -> dict[str, dict[str, str]]:
    """The last allocation decisions."""
    return newest(client, "quantum:stream:allocation.decision")


READS = frozenset({"HMGET", "HGETALL", "HGET", "XREVRANGE", "SCAN"})


@pytest.mark.parametrize("lane", ["1", "0"])
def test_in_shadow_the_chain_writes_its_own_alone(lane: str, client: Client, any_server: EmbeddedServer) -> None:
    """(37) Seen with MONITOR over runs of all services in shadow: nothing but their own streams and dead letters, their
    state, the budget hash, the proposed keys, the universe, and with SHADOW_LANE the shadow lane; no live key."""
    load(client, a_world())
    for i in range(25):
        sold(client, S, 10.0 + i, NOW - 30 + i)
    sold(client, S, "NaN", NOW)
    may = (*FLOW_MAY, "quantum:shadow:") if lane == "1" else FLOW_MAY
    with monitored(any_server.url) as keys:
        for i in range(3):
            run(any_server.url, *CHAIN, now=NOW + i, SHADOW_LANE=lane, P30_MODE="Enforced", P31_MODE="on")
    assert {k for k in keys if not k.startswith(may)} == set()
    wrote_shadow = {k.rpartition(":")[0] for k in keys if k.startswith("quantum:shadow:")}
    expected = {
        "quantum:shadow:alpha:attribution", "quantum:shadow:allocation:target", "quantum:shadow:capital:efficiency",
        "quantum:shadow:allocation:target:proposed",
    }  # fmt: skip
    assert wrote_shadow == (expected if lane == "1" else set())
    live = [LIVE.target(S), LIVE.attribution(S), LIVE.efficiency(S)]
    assert client.exists(*live) == 0
    if lane == "1":
        shadow = [SHADOW.target(S), SHADOW.attribution(S), SHADOW.efficiency(S), SHADOW.proposed(S)]
        assert client.exists(*shadow) == 4
        assert all(0 < client.ttl(k) <= 600 for k in shadow)
        assert {client.hget(k, "mode") for k in shadow} == {"shadow"}


def test_in_shadow_with_the_lane_the_chain_produces_opinions(client: Client, any_server: EmbeddedServer) -> None:
    """From executions and portfolio alone, everything in shadow: scores, proposals and reasons, each saying that its
    inputs came from the shadow lane; without the lane they stay without input for ever."""
    for lane in ("0", "1"):
        load(client, a_world())
        for i in range(25):
            sold(client, S, 10.0 + i, NOW - 30 + i)
        client.xadd("quantum:stream:regime.state", {"regime": "TREND", "confidence": "0.8", "timestamp": NOW})
        for _ in range(2):
            run(any_server.url, *CHAIN, now=NOW, SHADOW_LANE=lane)
        allocation, score, proposal = decisions(client)[S], newest(client, SCORES)[S], newest(client, PROPOSALS).get(S)
        assert newest(client, PERFORMANCE)[S]["source"] == "live"
        if lane == "0":
            assert (allocation["performance_source"], allocation["attribution_lane"]) == ("fallback", "live")
            assert score["stale_flags"] == "P30_MISSING,P29_MISSING"
            assert proposal is None
            continue
        assert (allocation["performance_source"], allocation["attribution_lane"]) == ("P3.0", "shadow")
        assert (score["stale_flags"], score["lane"]) == ("", "shadow")
        assert (score["attribution_lane"], score["target_lane"]) == ("shadow", "shadow")
        assert float(score["confidence"]) == 0.8
        assert proposal is not None
        assert (proposal["reason"], proposal["eff_lane"], proposal["base_lane"]) == ("ok", "shadow", "shadow")
        assert proposal["base_target"] == allocation["target_usd"]
        assert qa.differences(score) == qa.differences(proposal) == {}
        cycle = client.xrange("quantum:stream:allocation.cycle")[-1][1]
        assert qa.differences(cycle, allocation) == {}


def test_the_live_key_comes_first(client: Client, any_server: EmbeddedServer) -> None:
    """The shadow lane counts only where the live key is absent: a stale or malformed live key is not replaced."""
    performance(client, S, 0.9, 0.9, NOW, keys=SHADOW)
    target(client, S, 500.0, 0.9, NOW, keys=SHADOW)
    store, clock = Store(any_server.url), SetClock(NOW)
    loop = efficiency_loop(store, clock, lane=True, symbols=(S,))

    def seen() -> tuple[str, str, str]:
        assert loop.once()
        f = newest(client, SCORES)[S]
        return f["stale_flags"], f["attribution_lane"], f["target_lane"]

    assert seen() == ("", "shadow", "shadow")
    performance(client, S, 0.2, 0.9, NOW)
    assert seen() == ("", "live", "shadow")
    target(client, S, "NaN", 0.9, NOW)
    assert seen() == ("P29_ERROR", "live", "live")
    target(client, S, 100.0, 0.9, NOW - 301)
    assert seen() == ("P29_STALE", "live", "live")
    client.delete(LIVE.target(S))
    client.set(LIVE.target(S), "x")
    assert seen() == ("P29_ERROR", "live", "live")
    store.close()


def test_enforce_never_reads_the_lane(client: Client, any_server: EmbeddedServer) -> None:
    """P2.9 in enforce, with SHADOW_LANE=1 and a fresh attribution in the shadow lane: not one command names that lane,
    and the factor is exactly 1."""
    load(client, a_world())
    run(any_server.url, "portfolio", "budget", now=NOW)
    performance(client, S, 1.0, 1.0, NOW, keys=SHADOW)
    with monitored(any_server.url, READS) as keys:
        run(any_server.url, "allocation", now=NOW, P29_MODE="enforce", SHADOW_LANE="1", P29_USE_PROPOSED="1")
    assert len(keys) > 5
    assert [k for k in keys if "shadow" in k] == []
    assert decisions(client)[S]["performance_factor"] == "1.0"
    with monitored(any_server.url, READS) as keys:
        run(any_server.url, "allocation", now=NOW, SHADOW_LANE="1")
    assert [k for k in keys if "shadow" in k] == [SHADOW.attribution(f"S{i}USDT") for i in range(3)]
    assert decisions(client)[S]["performance_factor"] == "1.5"


def test_a_writer_of_the_lane_cannot_name_a_live_key() -> None:
    """By type: what writes the shadow lane has only hashes, and every name it can give begins with quantum:shadow:;
    in shadow there is no way from a target of writing to a live hash."""
    public = {n for n in dir(ShadowKeys) if not n.startswith("_")} - {"tag", "proof"}
    assert public == {"attribution", "target", "efficiency", "proposed"}
    for name in public:
        assert getattr(SHADOW, name)("BTCUSDT").startswith("quantum:shadow:")
        assert getattr(ShadowKeys("t"), name)("BTCUSDT").startswith("{t}quantum:shadow:")
        assert getattr(SHADOW, name)("BTCUSDT") == getattr(Keys(), name)("BTCUSDT").replace(
            "quantum:", "quantum:shadow:"
        )
    assert Target("shadow").hash_keys is None
    assert Target("anything").hash_keys is None
    assert Target("shadow", shadow=SHADOW).hash_keys is SHADOW
    assert isinstance(Target("enforce", shadow=SHADOW).hash_keys, Keys)


def test_shadow_and_enforce_decide_alike(client: Client, any_server: EmbeddedServer) -> None:
    """(38) The same inputs in shadow and in enforce: the same records but for the mode; (40) and again the same."""
    seen = []
    for mode in ("shadow", "enforce", "enforce"):
        load(client, a_world())
        for i in range(5):
            sold(client, S, 10.0 * i - 15.0, NOW - i)
        performance(client, S, 0.7, 0.9, NOW)
        target(client, S, 500.0, 0.9, NOW)
        run(any_server.url, "attribution", "efficiency", now=NOW, P30_MODE=mode, P31_MODE=mode)
        records = [newest(client, PERFORMANCE)[S], newest(client, SCORES)[S]]
        assert {r.pop("mode") for r in records} == {mode}
        seen.append(records)
    # in enforce attribution writes the hash that efficiency reads
    assert seen[0][0] == seen[1][0] == seen[2][0]
    assert seen[1] == seen[2]


def test_use_proposed_moves_ten_percent_a_cycle(client: Client, any_server: EmbeddedServer) -> None:
    """A fresh proposal with reason ok moves the factor by at most 10 % a cycle towards its multiplier; off by default;
    a stale one, or another reason, is exactly 1 at once; every record makes its decision again."""
    from quantum_alloc.adapters.metrics import Metrics
    from quantum_alloc.services import allocation
    from quantum_alloc.services.loop import Loop

    load(client, a_world(1))
    run(any_server.url, "portfolio", "budget", now=NOW)

    def propose(multiplier: str, reason: str = "ok", ago: int = 0, lane: str = "live") -> None:
        fields = {"multiplier": multiplier, "reason": reason, "ts_epoch": NOW - ago, "eff_lane": lane}
        client.hset(LIVE.proposed(S), mapping=fields)

    for mode in ("enforce", "shadow"):
        params, store = qa.AllocationParams(use_proposed=True), Store(any_server.url)
        metrics = Metrics("allocation")
        cycle = allocation.build(store, metrics, allocation.universe_of(), params, Target(mode), 5.0)
        loop = Loop(cycle, store, metrics, SetClock(NOW))

        def factor(loop: Any = loop) -> float:
            assert loop.once()
            f, top = decisions(client)[S], client.xrange("quantum:stream:allocation.cycle")[-1][1]
            assert qa.differences(top, f) == {}
            product = float(f["base_usd"]) * float(f["drawdown_factor"]) * float(f["proposed_factor"])
            assert float(f["uncapped_usd"]) == pytest.approx(product, rel=1e-12)
            return float(f["proposed_factor"])

        propose("1.4000")
        assert [round(factor(), 6) for _ in range(5)] == [1.1, 1.21, 1.331, 1.4, 1.4]
        propose("1.4000", ago=61)
        assert factor() == 1.0
        propose("1.4000")
        assert factor() == 1.1
        for bad in ({"reason": "low_conf"}, {"reason": "no word"}, {"multiplier": "NaN"}, {"ts_epoch": "x"}):
            propose("1.4000")
            client.hset(LIVE.proposed(S), mapping=bad)
            assert factor() == 1.0
        propose("0.5000")
        assert [round(factor(), 6) for _ in range(3)] == [0.9, 0.81, 0.729]
        propose("0.5000", lane="shadow")
        assert factor() == (1.0 if mode == "enforce" else pytest.approx(0.6561))
        store.close()
    run(any_server.url, "allocation", now=NOW)
    assert "proposed_factor" not in decisions(client)[S]
    record = client.xrange("quantum:stream:allocation.cycle")[-1][1]
    assert json.loads(record["params"])["use_proposed"] is False


def test_the_ten_percent_outlive_halts_and_restarts(client: Client, any_server: EmbeddedServer) -> None:
    """What stands is what the next step is measured from: after a cycle that wrote nothing, after a restart, after a
    symbol was skipped, the factor still moves by at most 10 %."""
    load(client, a_world(1))
    run(any_server.url, "portfolio", "budget", now=NOW)
    environ = {"P29_MODE": "enforce", "P29_USE_PROPOSED": "1"}

    def cycle(multiplier: str) -> float:
        fields = {"multiplier": multiplier, "reason": "ok", "ts_epoch": NOW}
        client.hset(LIVE.proposed(S), mapping=fields)
        run(any_server.url, "allocation", now=NOW, **environ)
        return float(client.hget(LIVE.target(S), "proposed_factor"))

    assert [round(cycle("0.5000"), 6) for _ in range(8)] == [0.9, 0.81, 0.729, 0.6561, 0.59049, 0.531441, 0.5, 0.5]
    for key, name in (("quantum:state:portfolio", "equity_usd"), (LIVE.budget(S), "budget_usd")):
        good = client.hget(key, name)
        client.hset(key, name, "x")
        assert cycle("1.5000") == 0.5, "nothing was written"
        client.hset(key, name, good)
        assert cycle("0.5000") == 0.5
    assert [round(cycle("1.5000"), 6) for _ in range(2)] == [0.55, 0.605]
    assert cycle("1000") == 1.0, "no proposer is allowed such a multiplier"


def test_a_proposal_never_lifts_a_target_above_a_cap(client: Client, any_server: EmbeddedServer) -> None:
    """The factor comes before the caps."""
    world = a_world(1).put("quantum:state:portfolio", equity_usd=1000, drawdown=0, timestamp=NOW)
    load(client, world.put(f"quantum:portfolio:budget:{S}", budget_usd=399, timestamp=NOW))
    client.hset(LIVE.proposed(S), mapping={"multiplier": "1.4000", "reason": "ok", "ts_epoch": NOW})
    run(any_server.url, "allocation", now=NOW, P29_USE_PROPOSED="1")
    f = decisions(client)[S]
    assert (float(f["target_usd"]), f["bound"], f["proposed_factor"]) == (400.0, "symbol", "1.1")


def test_diff_lanes_shows_both_side_by_side(
    client: Client, any_server: EmbeddedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """One row for each symbol and record that stands in a lane, with ages and the difference; JSON has the same."""
    target(client, S, 500.0, 0.9, NOW)
    target(client, S, 400.0, 0.9, NOW, keys=SHADOW)
    performance(client, "ETHUSDT", 0.7, 0.9, NOW, keys=SHADOW)
    target(client, "XXUSDT", "NaN", 0.9, NOW)
    environ = {"REDIS_URL": any_server.url}
    assert main(["diff-lanes", "--format", "json"], environ) == 0
    rows = {(r["symbol"], r["record"]): r for r in json.loads(capsys.readouterr().out)}
    assert rows.keys() == {(S, "target_usd"), ("ETHUSDT", "performance_factor"), ("XXUSDT", "target_usd")}
    both = rows[S, "target_usd"]
    assert (both["live"], both["shadow"], both["difference"]) == (500.0, 400.0, -100.0)
    assert both["live_age_s"] == both["shadow_age_s"] > 0
    assert rows["XXUSDT", "target_usd"]["live"] == "malformed"
    assert rows["ETHUSDT", "performance_factor"]["live"] is None
    assert main(["diff-lanes"], environ) == 0
    out = capsys.readouterr().out
    assert out.split()[:7] == ["symbol", "record", "live", "live_age_s", "shadow", "shadow_age_s", "difference"]
    client.flushall()
    assert main(["diff-lanes"], environ) == 0
    assert "Neither lane holds" in capsys.readouterr().out
