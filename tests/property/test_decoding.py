"""Decoding: total, finite, in range, and blind to what it does not use."""

from __future__ import annotations

import math
import struct
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import quantum_alloc.core as qa
from quantum_alloc.adapters import codec, wire
from quantum_alloc.adapters.effects import Failed, Reply
from quantum_alloc.core.fields import number
from tests.property.strategies import HOSTILE, NOW, hostile

SCHEMAS: list[wire.Schema[Any]] = [v for v in vars(wire).values() if isinstance(v, wire.Schema)]
RANGES = {
    "equity_usd": (-1e15, 1e15), "drawdown": (0.0, 1.0), "budget_usd": (0.0, 1e15), "stress": (0.0, 1.0),
    "confidence": (0.0, 1.0), "mark_price_usd": (0.0, 1e15), "price_usd": (0.0, 1e15), "sigma": (0.0, 1e6),
}  # fmt: skip

bulk: st.SearchStrategy[Reply] = st.one_of(
    st.none(), hostile, st.floats().map(lambda x: repr(x).encode()), st.integers().map(lambda i: b"%d" % i)
)
replies: st.SearchStrategy[Reply] = st.recursive(
    st.one_of(bulk, st.integers(), st.just(Failed("WRONGTYPE"))),
    lambda inner: st.lists(inner, max_size=12),
    max_leaves=20,
)


def numbers_in(value: object) -> list[tuple[str, float]]:
    """Every number in a decoded value, with its name."""
    if isinstance(value, float):
        return [("", value)]
    slots = getattr(type(value), "__slots__", ())
    return [(n, v) for n in slots if isinstance(v := getattr(value, n), float)]


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda s: s.name)
@given(st.data())
def test_decoding_is_total(schema: wire.Schema[Any], data: st.DataObject) -> None:
    """(1) Any reply gives a value or a reason, never an exception; (2) a value is finite and in range."""
    n = len(schema.asked)
    full: st.SearchStrategy[Reply] = st.lists(bulk, min_size=n, max_size=n)
    reply = data.draw(st.one_of(full, replies))
    reading = wire.decode(schema, reply, NOW, 60)
    assert isinstance(reading, (qa.Fresh, qa.Unusable))
    if isinstance(reading, qa.Fresh):
        for name, value in numbers_in(reading.value):
            lo, hi = RANGES.get(name, (-1e308, 1e308))
            assert math.isfinite(value)
            assert lo <= value <= hi


@given(replies)
def test_stream_entries_and_maps_decode_totally(reply: Reply) -> None:
    """(1) So do stream entries and the cluster map."""
    assert isinstance(wire.decode_newest(wire.REGIME, reply, NOW, 60), (qa.Fresh, qa.Unusable))
    found = wire.decode_clusters(reply)
    assert set(found.of.values()) <= set(found.ids)
    assert wire.entry_fields(reply) is None or isinstance(reply, list)


@given(st.lists(st.tuples(st.sampled_from([b"C1", b"C2", b"bad id", b"UNKNOWN"]), st.binary(max_size=30)), max_size=4))
@example([(b"C1", b"[" * 100_000)])
@example([(b"C1", b"1" * 5_000)])
def test_maps_of_any_bytes_decode(pairs: list[tuple[bytes, bytes]]) -> None:
    """(1) Any values in the cluster map, deeply nested JSON too."""
    assert wire.decode_clusters([x for pair in pairs for x in pair]).of == {}


@given(st.floats(-1e15, 1e15))
def test_numbers_read_back(x: float) -> None:
    """(3) decode(encode(x)) = x bit for bit."""
    assert struct.pack("d", codec.number(number(x).encode()) or 0.0 * x) == struct.pack("d", x)


@pytest.mark.parametrize("raw", [r for r in HOSTILE if r not in (b"-1", b"-0.0001")], ids=lambda r: repr(r)[:20])
def test_what_is_no_number(raw: bytes) -> None:
    """Not a finite ASCII decimal of at most 4 kB: malformed."""
    assert codec.number(raw, -1e308, 1e308) is None
    assert codec.unix_seconds(raw) is None


@given(st.text())
def test_only_ascii_decimals_are_numbers(text: str) -> None:
    """Whatever is read as a number is one for float() as well, is ASCII and has no underscore."""
    value = codec.number(text.encode("utf-8", "surrogatepass"), -1e308, 1e308)
    if value is not None:
        assert value == float(text)
        assert text.isascii()
        assert not set(text) - set("0123456789+-.eE")


@given(st.integers(10**9, 10**10 - 1), st.sampled_from([1, 10**3, 10**6, 10**9]))
def test_times_in_any_unit(seconds: int, unit: int) -> None:
    """Seconds, milli-, micro- and nanoseconds are told apart by magnitude."""
    assert codec.unix_seconds(b"%d" % (seconds * unit)) == pytest.approx(seconds, abs=1e-5)


@given(st.datetimes(min_value=datetime(1970, 1, 2), max_value=datetime(2200, 1, 1)))  # noqa: DTZ001 - naive is meant
def test_iso_times(when: datetime) -> None:
    """ISO-8601, naive as UTC, with Z and with an offset."""
    expected = when.replace(tzinfo=UTC).timestamp()
    for text in (when.isoformat(), when.isoformat() + "Z", when.isoformat(" ") + "+00:00"):
        assert codec.unix_seconds(text.encode()) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("raw", [b"2026-02-30", b"2026-01-01T25:00", b"1969-01-01", b"2026-01-01T00:00+99:00", b"-5"])
def test_what_is_no_time(raw: bytes) -> None:
    """No such day, hour or offset, or before 1970: malformed."""
    assert codec.unix_seconds(raw) is None


@given(st.permutations(wire.TIME_ALIASES), st.integers(0, 60))
def test_unknown_fields_and_order_change_nothing(order: list[str], age: int) -> None:
    """(4) Field order and unknown fields change nothing; the writer's own name for the time counts first."""
    plain = {"budget_usd": b"1000", "timestamp": b"%d" % (NOW - age)}
    noisy: dict[str, bytes] = {"zzz": b"\xff", "mode": b"enforce", "ts_epoch": b"1"}
    for name in order:
        noisy.setdefault(name, b"1")
    noisy.update(plain)
    assert wire.decode_fields(wire.BUDGET, noisy, NOW, 60) == wire.decode_fields(wire.BUDGET, plain, NOW, 60)


@pytest.mark.parametrize("alias", wire.TIME_ALIASES)
def test_times_under_each_alias(alias: str) -> None:
    """A time is found under each of the common names."""
    assert wire.decode_fields(wire.BUDGET, {"budget_usd": b"1", alias: b"%d" % NOW}, NOW, 60).state == "ok"


@given(st.binary(max_size=60))
def test_names_are_matched_whole(raw: bytes) -> None:
    """A symbol or id that passes is built of its pattern's characters alone: keys cannot be aliased."""
    symbol, word = codec.symbol(raw), codec.word(raw)
    assert symbol is None or (
        symbol.isascii() and symbol.isalnum() and symbol == symbol.upper() and 2 <= len(raw) <= 30
    )
    assert word is None or (len(raw) <= 64 and ":" not in word and "\n" not in word)
    assert "\n" not in codec.printable(raw)
    assert codec.printable(raw).isprintable()


def test_a_map_with_too_many_fields_or_too_large_a_value() -> None:
    """Beyond 256 kB a cluster's list is malformed; a symbol in two clusters belongs to the first."""
    large = b'["' + b'A1","' * 60_000 + b'A1"]'
    assert wire.decode_clusters([b"C1", large]).state == "malformed"
    both = wire.decode_clusters([b"C2", b'["BTCUSDT"]', b"C1", b'["BTCUSDT","bad name"]'])
    assert (both.of, both.refused, both.state) == ({"BTCUSDT": "C1"}, 1, "ok")
    assert not wire.oversized_clusters().readable


def test_an_entry_with_too_many_fields_is_malformed() -> None:
    """More than 64 fields in a stream entry: not read."""
    flat: list[Reply] = [x for i in range(65) for x in (b"f%d" % i, b"1")]
    assert wire.decode_newest(wire.REGIME, [[b"1-1", flat]], NOW, 60).state == "malformed"
    assert wire.decode_newest(wire.REGIME, [[b"1-1", [b"other", b"1"]]], NOW, 60).state == "malformed"


@pytest.mark.parametrize(
    ("ts", "now", "state", "age"),
    [
        (100.0, 160.0, "ok", 60),
        (100.0, 160.999, "ok", 60),
        (100.999, 161.0, "stale", 61),
        (100.4, 161.1, "stale", 61),
        (100.9, 100.1, "ok", 0),
        (105.999, 100.0, "ok", -5),
        (106.0, 100.999, "future_ts", -6),
    ],
)
def test_ages_are_differences_of_whole_seconds(ts: float, now: float, state: str, age: int) -> None:
    """age = floor(now) - floor(ts), to the whole second, on both sides of each limit."""
    reading = qa.grade(1.0, ts, now, 60)
    assert (reading.state, reading.age_s) == (state, age)


def test_a_value_beyond_four_kilobytes_is_not_looked_at() -> None:
    """At most 4 kB a value, however plain the number or time in it."""
    assert codec.number(b"1." + b"0" * 4094) == 1.0
    assert codec.number(b"1." + b"0" * 4095) is None
    assert codec.unix_seconds(b"5." + b"0" * 4095) is None
