"""Fail-open: whatever stands in place of an optional input, the decision is that of nothing, or of a valid reading."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantum_alloc.adapters.keys import LIVE
from tests.property.strategies import HOSTILE, NOW, hostile, worlds
from tests.support.worlds import Result, World, memory

BASE = (
    World(NOW)
    .put(LIVE.portfolio, equity_usd=100_000, drawdown=0.03, timestamp=NOW)
    .put(LIVE.budget("BTCUSDT"), budget_usd=1820.93, timestamp=NOW)
    .put(LIVE.budget("ETHUSDT"), budget_usd=1820.93, timestamp=NOW)
    .put(LIVE.clusters, C1='["BTCUSDT"]')
)
REGIME = LIVE.stream("regime.state")


def regime(world: World, **fields: bytes) -> World:
    """With a newest regime entry."""
    return replace(world, streams={**world.streams, REGIME: [fields]})


def put(key: str) -> Callable[[World, Mapping[str, bytes]], World]:
    """How an input is written: as a hash."""
    return lambda world, fields: world.put(key, **fields)


INPUTS: dict[str, tuple[str, Callable[[World, Mapping[str, bytes]], World], dict[str, bytes], str]] = {
    "regime": (REGIME, lambda w, f: regime(w, **f), {"regime": b"CHOP", "confidence": b"0.9"}, "timestamp"),
    "cluster": (LIVE.stress("C1"), put(LIVE.stress("C1")), {"stress": b"0.9"}, "timestamp"),
    "performance": (
        LIVE.attribution("BTCUSDT"),
        put(LIVE.attribution("BTCUSDT")),
        {"performance_factor": b"0.9", "confidence": b"0.8"},
        "ts_utc",
    ),
}
KEPT = (
    "target_usd",
    "weight",
    "regime_factor",
    "cluster_factor",
    "performance_factor",
    "confidence",
    "regime",
    "bound",
)


def decided(result: Result) -> dict[str, dict[str, str]]:
    """The decisions without what tells the reason."""
    return {s: {k: d[k] for k in KEPT} for s, d in result.decisions.items()}


NEUTRAL = decided(memory(BASE))


def unusable(name: str) -> list[tuple[str, World]]:
    """Every kind of unusable input, with the reason that it should get."""
    key, write, fields, time = INPUTS[name]
    number = next(f for f in ("confidence", "stress", "performance_factor") if f in fields)
    kinds = [
        ("stale", write(BASE, {**fields, time: b"%d" % (NOW - 61)})),
        ("future_ts", write(BASE, {**fields, time: b"%d" % (NOW + 6)})),
        ("malformed", write(BASE, dict(fields))),
        ("redis_error", BASE.wrong_type(key)),
        ("missing", BASE),
    ]
    for raw in HOSTILE:
        kinds.append(("malformed", write(BASE, {**fields, time: b"%d" % NOW, number: raw})))
        if raw != b"0x10":
            kinds.append(("malformed", write(BASE, {**fields, time: raw})))
    return kinds


@pytest.mark.parametrize("name", INPUTS)
def test_all_unusable_kinds_agree(name: str) -> None:
    """(15) They differ in the reason alone; (16) neutral is exactly 1.0; (18) each has one reason, counted."""
    for reason, world in unusable(name):
        result = memory(world)
        assert decided(result) == NEUTRAL, reason
        m = result.metrics
        assert m is not None
        counted = {labels[1]: n for labels, n in m.values("quantum_alloc_inputs_total").items() if labels[0] == name}
        if name == "performance":
            expected = {reason: 2.0} if reason == "missing" else {reason: 1.0, "missing": 1.0}
        else:
            expected = {reason: 1.0}
        assert counted == expected
        assert m.value("p29_stale_fallback_total", name) == (0.0 if reason == "missing" else 1.0)
    for d in NEUTRAL.values():
        assert (d["regime_factor"], d["cluster_factor"], d["performance_factor"]) == ("1.0", "1.0", "1.0")
        assert (d["target_usd"], d["confidence"], d["regime"]) == ("1820.93", "0.5", "UNKNOWN")


@pytest.mark.parametrize("name", INPUTS)
@given(st.data())
def test_any_bytes_give_missing_or_a_valid_reading(name: str, data: st.DataObject) -> None:
    """(14) Any bytes in any field: the decision of missing, or of a valid reading; no target above the boosted base."""
    _, write, fields, time = INPUTS[name]
    field = data.draw(st.sampled_from([*fields, time]))
    result = memory(write(BASE, {**fields, time: b"%d" % NOW, field: data.draw(hostile)}))
    state = {"regime": result.cycle["regime_state"]}.get(name) or result.decisions["BTCUSDT"][
        {"cluster": "stress_state", "performance": "attribution_state"}[name]
    ]
    assert (decided(result) == NEUTRAL) or state == "ok"
    assert result.decisions.keys() == NEUTRAL.keys()
    for d in result.decisions.values():
        assert float(d["target_usd"]) <= 1820.93 * 1.5


@given(worlds())
def test_counters_add_up(world: World) -> None:
    """(18) One reason for each input of each decision: the counters of an input sum to what was looked at."""
    result = memory(world)
    m = result.metrics
    assert m is not None
    sums: dict[str, float] = {}
    for (name, _), n in m.values("quantum_alloc_inputs_total").items():
        sums[name] = sums.get(name, 0.0) + n
    symbols = int(result.cycle["symbols"])
    assert sums["regime"] == sums["portfolio"] == sums["clusters"] == sums["drawdown"] == 1.0
    assert sums["budget"] == sums["performance"] == symbols
    assert sum(m.values("quantum_alloc_skipped_total").values()) == symbols - len(result.decisions)
    assert sum(m.values("p29_targets_computed_total").values()) == len(result.decisions)
    assert m.value("p29_shadow_pass_total") == len(result.decisions)


@pytest.mark.parametrize("raw", [b"", b"NaN", b"1.5", b"-1.01", b"x" * 10_000, None])
def test_an_unknown_drawdown_is_high_and_counted(raw: bytes | None) -> None:
    """Absent or malformed drawdown in a fresh portfolio: zone HIGH, counted once."""
    world = BASE.without(LIVE.portfolio).put(LIVE.portfolio, equity_usd=100_000, timestamp=NOW)
    result = memory(world if raw is None else world.put(LIVE.portfolio, drawdown=raw))
    assert {d["drawdown_zone"] for d in result.decisions.values()} == {"HIGH"}
    assert result.target("BTCUSDT") == 1820.93 * 0.4
    assert result.metrics is not None
    assert result.metrics.value("p29_stale_fallback_total", "portfolio") == 1.0


@pytest.mark.parametrize(
    ("broken", "state"),
    [
        (BASE.put(LIVE.clusters, C1="[oops"), "malformed"),
        (BASE.put(LIVE.clusters, **{"bad id": '["ETHUSDT"]'}), "malformed"),
        (BASE.put(LIVE.clusters, UNKNOWN='["ETHUSDT"]'), "malformed"),
        (BASE.wrong_type(LIVE.clusters), "redis_error"),
        (BASE.put(LIVE.clusters, **{f"K{i}": "[]" for i in range(10_001)}), "malformed"),
    ],
)
def test_a_broken_map_is_told(broken: World, state: str) -> None:
    """A cluster map that cannot be read leaves its symbols unmapped, with the reason counted."""
    result = memory(broken)
    assert result.metrics is not None
    assert result.metrics.value("quantum_alloc_inputs_total", "clusters", state) == 1.0
    assert result.cycle["clusters_readable"] == "0"
    assert result.targets == {"BTCUSDT": "1820.93", "ETHUSDT": "1820.93"}


def test_absent_confidences() -> None:
    """An attribution without confidence counts 1, a regime without confidence 0.5; both are usable."""
    world = BASE.put(LIVE.attribution("BTCUSDT"), performance_factor=1, ts_utc=NOW)
    d = memory(regime(world, regime=b"TREND", timestamp=b"%d" % NOW)).decisions["BTCUSDT"]
    assert (d["performance_factor"], d["performance_source"], d["attribution_confidence"]) == ("1.5", "P3.0", "")
    assert (d["regime_factor"], d["confidence"], d["regime"]) == ("1.2", "0.5", "TREND")
