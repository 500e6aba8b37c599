"""One bad symbol among eleven: every kind of bad value, in every field, against a real server."""

from __future__ import annotations

import json

import pytest

from quantum_alloc.adapters.embedded import EmbeddedServer
from quantum_alloc.adapters.keys import LIVE
from tests.property.strategies import NOW
from tests.support.worlds import Client, Result, World, over_redis

ELEVEN = tuple(
    f"{coin}USDT" for coin in ["BTC", "ETH", "DOT", "SOL", "ADA", "XRP", "BNB", "LINK", "AVAX", "UNI", "ATOM"]
)
BAD = "DOTUSDT"
KINDS: dict[str, bytes] = {
    "NaN": b"NaN", "inf": b"inf", "empty": b"", "negative": b"-5", "1e400": b"1e400", "binary": b"\x00\xff\x13",
    "1 MB": b"7" * 1_000_000, "underscore": b"1_000", "newline": b"1\n2", "other digits": "٣".encode(),
}  # fmt: skip
TIMES: dict[str, tuple[bytes, str]] = {
    "future": (b"%d" % (NOW + 600), "future_ts"),
    "stale": (b"%d" % (NOW - 61), "stale"),
    "milliseconds": (b"%d" % (NOW * 1000 - 500), "ok"),
    "ISO": (b"2026-01-28T05:18:14Z", "ok"),
    "ISO, naive": (b"2026-01-28T05:18:14.250", "ok"),
    "fraction": (b"%d.5" % (NOW - 1), "ok"),
}


def eleven() -> World:
    """Eleven symbols, each in a cluster of its own, every input there and fresh."""
    world = World(NOW).put(LIVE.portfolio, equity_usd=100_000, drawdown=0.06, timestamp=NOW)
    for i, s in enumerate(ELEVEN):
        world = world.put(LIVE.budget(s), budget_usd=1000 + i, timestamp=NOW)
        world = world.put(LIVE.attribution(s), performance_factor=0.7, confidence=0.5, ts_utc=NOW)
        world = world.put(LIVE.stress(f"C{i}"), stress=0.1, timestamp=NOW)
        world = world.put(LIVE.clusters, **{f"C{i}": json.dumps([s])})
    entry = {"regime": b"TREND", "confidence": b"0.8", "timestamp": b"%d" % NOW}
    return World(NOW, world.hashes, {LIVE.stream("regime.state"): [entry]})


CLUSTER = f"C{ELEVEN.index(BAD)}"
FIELDS = {
    "budget_usd": LIVE.budget(BAD), "performance_factor": LIVE.attribution(BAD), "confidence": LIVE.attribution(BAD),
    "stress": LIVE.stress(CLUSTER),
}  # fmt: skip
TIME_FIELDS = {
    "budget": (LIVE.budget(BAD), "timestamp"), "attribution": (LIVE.attribution(BAD), "ts_utc"),
    "stress": (LIVE.stress(CLUSTER), "timestamp"),
}  # fmt: skip


@pytest.fixture
def clean(client: Client, any_server: EmbeddedServer) -> Result:
    """What the eleven get when all is well."""
    return over_redis(client, any_server.url)(eleven())


def others_unchanged(clean: Result, found: Result) -> None:
    """The ten others are exactly as they were; every record still decides again."""
    assert len(clean.decisions) == 11
    for s in ELEVEN:
        if s != BAD:
            assert {**found.decisions[s], "cycle_id": ""} == {**clean.decisions[s], "cycle_id": ""}
            assert {**found.hashes[s], "cycle_id": ""} == {**clean.hashes[s], "cycle_id": ""}


def state_of(found: Result, name: str) -> str:
    """What became of the bad symbol's input."""
    if BAD not in found.decisions:
        return str(json.loads(found.cycle["skipped"])[BAD]).removeprefix("budget_")
    column = {"budget": "budget_state", "attribution": "attribution_state", "stress": "stress_state"}[name]
    return found.decisions[BAD][column]


def input_of(key: str) -> str:
    """Which input a key is."""
    return "budget" if ":budget:" in key else "stress" if ":stress:" in key else "attribution"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("field", FIELDS)
def test_a_bad_number(field: str, kind: str, clean: Result, client: Client, any_server: EmbeddedServer) -> None:
    """Each bad value in each field: that input is malformed and says so, the ten others are exactly as they were."""
    key, raw = FIELDS[field], KINDS[kind]
    found = over_redis(client, any_server.url)(eleven().put(key, **{field: raw}))
    others_unchanged(clean, found)
    lenient = field == "performance_factor" and kind in ("negative", "1 MB")
    if not (lenient and kind == "negative"):  # any finite performance factor is clamped
        assert state_of(found, input_of(key)) == "malformed"


@pytest.mark.parametrize("kind", [*KINDS, *TIMES])
@pytest.mark.parametrize("name", TIME_FIELDS)
def test_a_bad_time(name: str, kind: str, clean: Result, client: Client, any_server: EmbeddedServer) -> None:
    """Each bad time in each record: malformed, stale or future_ts; milliseconds and ISO are read; the ten stay."""
    key, field = TIME_FIELDS[name]
    raw, state = TIMES[kind] if kind in TIMES else (KINDS[kind], "malformed")
    found = over_redis(client, any_server.url)(eleven().put(key, **{field: raw}))
    others_unchanged(clean, found)
    assert state_of(found, name) == state


@pytest.mark.parametrize("name", TIME_FIELDS)
def test_a_key_of_another_type(name: str, clean: Result, client: Client, any_server: EmbeddedServer) -> None:
    """A key of another type is redis_error; the ten others are exactly as they were."""
    key, _ = TIME_FIELDS[name]
    found = over_redis(client, any_server.url)(eleven().wrong_type(key))
    others_unchanged(clean, found)
    assert state_of(found, name) == "redis_error"


def test_a_target_key_of_another_type(clean: Result, client: Client, any_server: EmbeddedServer) -> None:
    """A target key that another program made a string is refused alone; the ten others are written."""
    found = over_redis(client, any_server.url)
    world = eleven()
    wrong = World(world.now, world.hashes, world.streams, {LIVE.target("DOTUSDT"): b"mine"})
    with pytest.raises(Exception, match="WRONGTYPE"):
        found(wrong)  # reading back the one key fails; the command itself has ended well
    assert client.type(LIVE.target(BAD)) == "string"
    for s in ELEVEN:
        if s != BAD:
            assert client.hget(LIVE.target(s), "target_usd") == clean.hashes[s]["target_usd"]


def test_hostile_names(clean: Result, client: Client, any_server: EmbeddedServer) -> None:
    """Names that are no symbols are refused: no decision, no key, and the eleven stay."""
    world = eleven()
    for name in ("btcusdt", "A", "X" * 31, "BTC USDT", "BTC\nUSDT", "proposed:BTCUSDT", "BTCUSDT:x", "ÄÖÜ"):
        world = world.put(LIVE.budget(name), budget_usd=1000, timestamp=NOW)
    found = over_redis(client, any_server.url)(world)
    assert found.decisions.keys() == clean.decisions.keys() == found.hashes.keys()
    assert found.targets == clean.targets


def test_a_universe_of_another_type(client: Client, any_server: EmbeddedServer) -> None:
    """A universe key that is no set does not stop the scan from finding the symbols."""
    world = eleven()
    found = over_redis(client, any_server.url)(World(NOW, world.hashes, world.streams, {LIVE.universe: b"x"}))
    assert len(found.decisions) == 11
