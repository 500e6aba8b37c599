"""Fail-open of efficiency and proposal: any bytes in place of an input give what missing, or a valid reading, gives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantum_alloc.adapters.clock import SetClock
from quantum_alloc.adapters.effects import StreamAdd
from quantum_alloc.adapters.keys import LIVE
from tests.property.strategies import HOSTILE, NOW, hostile, unit
from tests.support.flow import PROPOSALS, SCORES, AnyLoop, efficiency_loop, proposer_loop
from tests.support.worlds import MemoryStore, World

S = "BTCUSDT"
TARGET = {"target_usd": b"800", "confidence": b"0.9", "timestamp": b"%d" % NOW}
ATTRIBUTION = {"performance_factor": b"0.7", "confidence": b"0.8", "ts_utc": b"%d" % NOW}
EFFICIENCY = {"efficiency_score": b"0.9", "confidence": b"0.8", "ts": b"%d" % NOW}
SOUND = (
    World(NOW)
    .put(LIVE.target(S), **TARGET)
    .put(LIVE.attribution(S), **ATTRIBUTION)
    .put(LIVE.efficiency(S), **EFFICIENCY)
)


def made(world: World, stream: str) -> tuple[dict[str, str], AnyLoop]:
    """The one record that the service writes over a world, empty for none."""
    store = MemoryStore(world)
    build = efficiency_loop if stream == SCORES else proposer_loop
    loop = build(store, SetClock(float(NOW)))
    assert loop.once(), loop.last_error
    found = [e.fields for g in store.groups for e in g if isinstance(e, StreamAdd) and e.key == stream]
    assert len(found) <= 1
    return (dict(found[0]) if found else {}), loop


def outcome(record: Mapping[str, str], *names: str) -> tuple[str, ...]:
    """What was decided."""
    return tuple(record.get(n, "") for n in names)


PROPOSED = ("multiplier", "proposed_target", "base_target")
SCORED = ("efficiency_score", "efficiency_ewma", "confidence", "capital_pressure", "reallocation_weight", "p30_perf")


def kinds(key: str, fields: Mapping[str, bytes], number: str, time: str, limit: int) -> list[tuple[str, World]]:
    """Every kind of unusable record in place of one."""
    out = [
        ("missing", SOUND.without(key)),
        ("redis_error", SOUND.wrong_type(key)),
        ("stale", SOUND.put(key, **{**fields, time: b"%d" % (NOW - limit - 1)})),
        ("future_ts", SOUND.put(key, **{**fields, time: b"%d" % (NOW + 6)})),
    ]
    out += [("malformed", SOUND.put(key, **{**fields, number: raw})) for raw in HOSTILE]
    out += [("malformed", SOUND.put(key, **{**fields, time: raw})) for raw in HOSTILE]
    return out


REASONS = {"missing": "missing_eff", "redis_error": "redis_error", "malformed": "redis_error"}


def test_every_unusable_efficiency_proposes_the_base_itself() -> None:
    """(15) (16) (18) All kinds agree but for the reason: multiplier exactly 1, one reason, one count each."""
    for kind, world in kinds(LIVE.efficiency(S), EFFICIENCY, "efficiency_score", "ts", 600):
        record, loop = made(world, PROPOSALS)
        reason = REASONS.get(kind, "stale_eff")
        assert outcome(record, *PROPOSED) == ("1.0000", "800.0", "800.0")
        assert record["reason"] == reason
        assert loop.metrics.values("p29_shadow_proposed_total") == {(reason,): 1.0}
        assert (record["eff_score"] == "") == (kind in REASONS)
        assert record["eff_stale"] == str(int(kind in ("stale", "future_ts")))


def test_without_a_usable_base_nothing_is_proposed() -> None:
    """Every kind: no record, no hash, counted by why."""
    for kind, world in kinds(LIVE.target(S), TARGET, "target_usd", "timestamp", 300):
        record, loop = made(world, PROPOSALS)
        assert record == {}
        assert loop.metrics.values("quantum_alloc_not_proposed_total") == {(f"base_{kind}",): 1.0}


@pytest.mark.parametrize(
    ("key", "fields", "number", "time", "prefix"),
    [
        (LIVE.target(S), TARGET, "target_usd", "timestamp", "P29"),
        (LIVE.target(S), TARGET, "confidence", "timestamp", "P29"),
        (LIVE.attribution(S), ATTRIBUTION, "performance_factor", "ts_utc", "P30"),
        (LIVE.attribution(S), ATTRIBUTION, "confidence", "ts_utc", "P30"),
    ],
)
def test_every_unusable_input_of_efficiency_is_the_last_known_good(
    key: str, fields: Mapping[str, bytes], number: str, time: str, prefix: str
) -> None:
    """(15) Missing, future, malformed and unreadable agree but for the flag; a stale one keeps its value and halves the
    confidence; a score is published in every case, and the counters say why."""
    neutral, _ = made(SOUND.without(key), SCORES)
    for kind, world in kinds(key, fields, number, time, 300):
        record, loop = made(world, SCORES)
        flag = f"{prefix}_" + {"missing": "MISSING", "stale": "STALE"}.get(kind, "ERROR")
        if number == "performance_factor" and kind == "malformed" and record["stale_flags"] == "":
            # the one number without a range: it is clamped
            assert world.hashes[key][number] in (b"-1", b"-0.0001")
            continue
        assert record["stale_flags"] == flag
        if kind == "stale":
            assert float(record["confidence"]) == 0.4
            assert record["inputs_ok"] == "1"
            continue
        assert outcome(record, *SCORED) == outcome(neutral, *SCORED)
        assert (record["confidence"], record["inputs_ok"]) == ("0.0", "0")
        assert loop.metrics.value("p31_inputs_missing_total", S, prefix.lower()) == 1


records = st.dictionaries(
    st.sampled_from(
        ["target_usd", "confidence", "timestamp", "ts", "performance_factor", "efficiency_score", "ts_utc"]
    ),
    st.one_of(hostile, st.just(b"%d" % NOW), unit.map(lambda x: repr(x).encode())),
    max_size=6,
)


@given(records, records, records)
def test_any_bytes_give_a_decision(target: Any, attribution: Any, efficiency: Any) -> None:
    """(14) (18) Any records: the cycles end, a score is there, each input has one reason, and the counters add up."""
    world = World(NOW).put(LIVE.target(S), **target).put(LIVE.attribution(S), **attribution)
    world = world.put(LIVE.efficiency(S), **efficiency)
    scored, loop = made(world, SCORES)
    counted: Counter[str] = Counter()
    for (name, _), n in loop.metrics.values("quantum_alloc_inputs_total").items():
        counted[name] += int(n)
    assert counted["attribution"] == counted["target"] == (1 if scored else 0)
    if scored:
        assert 0.0 <= float(scored["efficiency_score"]) <= 1.0
    proposed, loop = made(world, PROPOSALS)
    reasons = loop.metrics.values("p29_shadow_proposed_total")
    without = loop.metrics.values("quantum_alloc_not_proposed_total")
    assert sum(reasons.values()) + sum(without.values()) == 1
    assert bool(proposed) == bool(reasons)
    if proposed:
        assert 0.5 <= float(proposed["multiplier"]) <= 1.5
        assert (proposed["reason"] == "ok") or proposed["multiplier"] == "1.0000"


@given(st.lists(st.tuples(st.text(max_size=6), st.binary(max_size=8)), max_size=4), st.randoms())
def test_unknown_fields_and_their_order_change_nothing(more: list[tuple[str, bytes]], random: Any) -> None:
    """(4) Fields that nobody knows, in any order."""
    known = {"ts", "timestamp", "ts_utc", "ts_epoch", "updated_ts", "lane", *TARGET, *ATTRIBUTION, *EFFICIENCY}
    strange = [(n, v) for n, v in more if n not in known]
    pairs = [*EFFICIENCY.items(), *strange]
    random.shuffle(pairs)
    world = World(NOW, {**SOUND.hashes, LIVE.efficiency(S): dict(pairs)})
    assert made(world, PROPOSALS)[0] == made(SOUND, PROPOSALS)[0]
