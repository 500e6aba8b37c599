"""Entries of the execution stream: every accepted spelling, and bytes of every kind."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantum_alloc.adapters import state
from quantum_alloc.adapters.effects import Failed, Reply
from quantum_alloc.adapters.executions import Rejected, dead_letter, decode, entry_id, nested
from quantum_alloc.core import AttributionState, EfficiencyState, Execution
from tests.property.strategies import HOSTILE, hostile

NOW = 1769577495.0
ID = b"1769577450500-0"


def entry(fields: dict[str, Any], given_id: bytes = ID) -> Reply:
    """An entry as the server answers it."""
    flat: list[Reply] = []
    for name, value in fields.items():
        flat += [name.encode(), value if isinstance(value, bytes) else str(value).encode()]
    return [given_id, flat]


def payload(fields: Any) -> dict[str, Any]:
    """The same as one field."""
    return {"payload": json.dumps(fields)}


BASE = {"symbol": "BTCUSDT", "ts": "1769577450.5"}
GOOD: dict[str, tuple[dict[str, Any], Execution]] = {
    "flat": ({**BASE, "pnl_usd": "-3.5"}, Execution("BTCUSDT", 1769577450.5, -3.5)),
    "realized_pnl": ({**BASE, "realized_pnl": "2e1"}, Execution("BTCUSDT", 1769577450.5, 20.0)),
    "pnl": ({**BASE, "pnl": "+.5"}, Execution("BTCUSDT", 1769577450.5, 0.5)),
    "pnl_usd first": (
        {**BASE, "pnl": "NaN", "realized_pnl": "x", "pnl_usd": "1"},
        Execution("BTCUSDT", 1769577450.5, 1.0),
    ),
    "realized_pnl second": ({**BASE, "pnl": "NaN", "realized_pnl": "1"}, Execution("BTCUSDT", 1769577450.5, 1.0)),
    "an open": ({**BASE, "filled_qty": "2"}, Execution("BTCUSDT", 1769577450.5)),
    "milliseconds": ({"symbol": "BTCUSDT", "timestamp": "1769577450500"}, Execution("BTCUSDT", 1769577450.5)),
    "microseconds": ({"symbol": "BTCUSDT", "ts_epoch": "1769577450500000"}, Execution("BTCUSDT", 1769577450.5)),
    "ISO": ({"symbol": "BTCUSDT", "ts_utc": "2026-01-28T05:17:30.5Z"}, Execution("BTCUSDT", 1769577450.5)),
    "ISO, naive": ({"symbol": "BTCUSDT", "updated_ts": "2026-01-28T05:17:30.5"}, Execution("BTCUSDT", 1769577450.5)),
    "no time": ({"symbol": "BTCUSDT", "pnl": "1"}, Execution("BTCUSDT", 1769577450.5, 1.0)),
    "labels": (
        {**BASE, "pnl": "1", "regime": "TREND", "cluster": "C1", "signal": "s-1", "plan_id": "p1"},
        Execution("BTCUSDT", 1769577450.5, 1.0, "TREND", "C1", "s-1"),
    ),
    "labels that are none": (
        {**BASE, "regime": "no word", "cluster": "", "signal": b"\xff"},
        Execution("BTCUSDT", 1769577450.5),
    ),
    "nested": (
        payload({"symbol": "BTCUSDT", "pnl_usd": -3.5, "ts": 1769577450.5}),
        Execution("BTCUSDT", 1769577450.5, -3.5),
    ),
    "nested texts": (
        payload({**BASE, "pnl_usd": "-3.5", "regime": "CHOP"}),
        Execution("BTCUSDT", 1769577450.5, -3.5, "CHOP"),
    ),
    "nested, time beside": (
        {**payload({"symbol": "BTCUSDT"}), "timestamp": "1769577450500"},
        Execution("BTCUSDT", 1769577450.5),
    ),
    "nested, inner time first": (
        {**payload({"symbol": "BTCUSDT", "updated_ts": 1769577450500}), "ts": "1"},
        Execution("BTCUSDT", 1769577450.5),
    ),
    "nested, others beside ignored": (
        {**payload({"symbol": "BTCUSDT", "ts": 1769577450.5}), "symbol": "ETHUSDT", "pnl": "5", "regime": "CHOP"},
        Execution("BTCUSDT", 1769577450.5),
    ),
    "nested null is absent": (
        payload({"symbol": "BTCUSDT", "pnl_usd": None, "pnl": 2, "ts": None}),
        Execution("BTCUSDT", 1769577450.5, 2.0),
    ),
    "five seconds ahead": ({"symbol": "BTCUSDT", "ts": "1769577500.9"}, Execution("BTCUSDT", 1769577500.9)),
}


@pytest.mark.parametrize("name", GOOD)
def test_accepted_spellings(name: str) -> None:
    """Every spelling of the contract gives the execution that it says."""
    fields, expected = GOOD[name]
    assert decode(entry(fields), NOW) == expected


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "NaN": ({**BASE, "pnl_usd": "NaN"}, "pnl"),
    "inf": ({**BASE, "pnl": "inf"}, "pnl"),
    "empty PnL": ({**BASE, "pnl_usd": "", "pnl": "1"}, "pnl"),
    "too much": ({**BASE, "pnl": "1e16"}, "pnl"),
    "no symbol": ({"pnl": "1"}, "symbol"),
    "a symbol that is none": ({"symbol": "btcusdt"}, "symbol"),
    "time": ({"symbol": "BTCUSDT", "ts": "soon", "timestamp": "1769577450"}, "time"),
    "negative time": ({"symbol": "BTCUSDT", "ts": "-5"}, "time"),
    "future": ({"symbol": "BTCUSDT", "ts": "1769577501"}, "future_ts"),
    "nested NaN": ({"payload": '{"symbol":"BTCUSDT","pnl":NaN}'}, "pnl"),
    "nested bool": (payload({"symbol": "BTCUSDT", "pnl": True}), "pnl"),
    "nested list": (payload({"symbol": "BTCUSDT", "pnl": [1]}), "pnl"),
    "nested symbol": (payload({"symbol": 5}), "symbol"),
    "nested time": (payload({"symbol": "BTCUSDT", "ts": {"s": 1}}), "time"),
    "no JSON": ({"payload": "{", "symbol": "BTCUSDT"}, "payload"),
    "JSON that is no object": ({"payload": "[1]"}, "payload"),
    "no UTF-8": ({"payload": b"\xff\xfe"}, "payload"),
    "deep JSON": ({"payload": "[" * 4000}, "payload"),
    "long JSON": (payload({"symbol": "BTCUSDT", "note": "x" * 4096}), "payload"),
    "wide JSON": (payload({f"a{i}": 1 for i in range(65)}), "payload"),
    "many fields": ({f"a{i}": 1 for i in range(65)}, "entry"),
    "no id and no time": ({"symbol": "BTCUSDT", "pnl": "1"}, "time"),
}


@pytest.mark.parametrize("name", BAD)
def test_malformed_entries_have_one_reason(name: str) -> None:
    """Each is set aside for its first flaw; no other spelling is tried in its place."""
    fields, flaw = BAD[name]
    found = decode(entry(fields, b"oops" if name.startswith("no id") else ID), NOW)
    assert isinstance(found, Rejected)
    assert found.flaw == flaw


@pytest.mark.parametrize("raw", HOSTILE, ids=repr)
@pytest.mark.parametrize("name", ["symbol", "pnl_usd", "ts", "payload"])
def test_hostile_bytes_never_make_an_execution(raw: bytes, name: str) -> None:
    """(1) Every hostile value in a field that is used: a reason, but for what is a value there."""
    found = decode(entry({**BASE, "pnl_usd": "1", name: raw}), NOW)
    if isinstance(found, Execution):
        assert (name, raw) in [("pnl_usd", b"-1"), ("pnl_usd", b"-0.0001")]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
names = st.sampled_from(["symbol", "pnl_usd", "realized_pnl", "pnl", "ts", "timestamp", "payload", "regime", "x"])
values = st.one_of(
    hostile,
    st.sampled_from([b"BTCUSDT", b"1769577450.5", b"5"]),
    st.dictionaries(names, json_values, max_size=5).map(lambda d: json.dumps(d).encode()),
)


@given(st.dictionaries(names, values, max_size=6), st.one_of(st.just(ID), st.binary(max_size=20)))
def test_decoding_is_total(fields: dict[str, bytes], given_id: bytes) -> None:
    """(1) (2) Any bytes: an execution whose numbers are finite and in range, or one reason; and a dead letter of it has
    bounded, printable fields."""
    raw = entry(fields, given_id)
    found = decode(raw, NOW)
    if isinstance(found, Execution):
        assert 0 <= found.ts < NOW + 6
        assert found.pnl_usd is None or abs(found.pnl_usd) <= 1e15
    else:
        letter = dead_letter(raw, found, "efficiency", NOW)
        assert all(len(v) <= 10_000 and v.isascii() and v.isprintable() for v in letter.values())


@given(st.recursive(st.none() | st.integers() | st.binary(max_size=5), lambda x: st.lists(x, max_size=4), max_leaves=8))
def test_any_reply_is_an_entry_or_not(reply: Any) -> None:
    """(1) A reply of any shape."""
    found = decode(reply, NOW)
    assert isinstance(found, (Execution, Rejected))
    if isinstance(found, Rejected):
        assert dead_letter(reply, found, "efficiency", NOW)["reason"] == found.flaw


def test_dead_letters_are_bounded() -> None:
    """A megabyte that was set aside leaves some kilobytes, with what was first in it."""
    raw = entry({"symbol": "BTC\nUSDT", "pnl": b"x" * 1_000_000, "more": "z"})
    found = decode(raw, NOW)
    assert isinstance(found, Rejected)
    letter = dead_letter(raw, found, "attribution", NOW)
    assert len(letter["entry"]) < 5000
    assert json.loads(letter["entry"])[:2] == ["symbol", "BTC\\nUSDT"]
    assert letter["entry"].endswith('"..."]')
    assert (letter["id"], letter["service"], letter["reason"]) == (ID.decode(), "attribution", "symbol")
    assert letter["timestamp"] == letter["ts"] == "1769577495"


def test_ids() -> None:
    """Milliseconds and sequence, within 64 bits."""
    assert entry_id(b"5-0") == (5, 0)
    assert entry_id(b"18446744073709551615-1") == (2**64 - 1, 1)
    for bad in (b"18446744073709551616-0", b"5-18446744073709551616", b"5", b"-", b"", b"5-0 ", b"a-1", b"5-\xd9\xa1"):
        assert entry_id(bad) is None
    assert nested(b'{"a": "\\ud800"}') == {"a": "\ud800".encode("utf-8", "surrogatepass")}
    late = decode(entry({"symbol": "BTCUSDT"}, b"99999999999999-0"), NOW)
    assert late == Execution("BTCUSDT", NOW), "an id from the future counts as now"


# --- saved state -----------------------------------------------------------------------------------------------------

GOOD_STATE = EfficiencyState(1.5, seen_ts=NOW).text().encode()


def efficiency_state(_: str, text: str) -> EfficiencyState:
    """As the service reads it."""
    return EfficiencyState.of_text(text)


def flat(fields: dict[bytes, bytes]) -> list[Reply]:
    """As HGETALL answers."""
    return [x for pair in fields.items() for x in pair]


OWN = {b"_pos": b"5-1", b"_version": b"1", b"_cycle": b"7", b"_read": b"3"}


def test_a_state_is_read_with_its_position() -> None:
    """States, position and counts; a symbol that cannot be read is named and begins anew."""
    fields = {**OWN, b"BTCUSDT": GOOD_STATE, b"ETHUSDT": b"oops", b"no symbol": GOOD_STATE, b"XUSDT": b"[" * 300_000}
    fields[b"DEEPUSDT"] = b"[" * 100_000
    saved = state.decode(9, flat(fields), "fills", efficiency_state)
    assert (saved.refused, saved.pos, saved.cycle, saved.read) == ("", "5-1", 7, 3)
    assert saved.states == {"BTCUSDT": EfficiencyState(1.5, seen_ts=NOW)}
    assert saved.malformed == (b"DEEPUSDT", b"ETHUSDT", b"XUSDT", b"no symbol")
    save = state.saving("k", "fills", saved, {"BTCUSDT": GOOD_STATE.decode(), "SOLUSDT": "{}"}, "6-0", 4)
    assert save.fields == {
        "SOLUSDT": "{}",
        "_pos": "6-0",
        "_cycle": "8",
        "_version": "1",
        "_read": "4",
        "_stream": "fills",
    }
    assert save.delete == (b"DEEPUSDT", b"ETHUSDT", b"XUSDT", b"no symbol")
    assert "_read" not in state.saving("k", "fills", saved, {}, "6-0", None).fields


def test_the_first_start_has_nothing() -> None:
    """No hash: from the stream's beginning."""
    saved = state.decode(0, [], "fills", efficiency_state)
    assert (saved.refused, saved.pos, saved.cycle, saved.read, saved.states) == ("", "0-0", 0, None, {})


@pytest.mark.parametrize(
    ("size", "reply", "why"),
    [
        (1, Failed("WRONGTYPE"), "cannot be read: WRONGTYPE"),
        (Failed("WRONGTYPE"), [], "cannot be read: WRONGTYPE"),
        (10_006, [], "more than"),
        (None, [], "more than"),
        (1, flat({**OWN, b"_version": b"2"}), "_version is '2'"),
        (1, flat({b"BTCUSDT": GOOD_STATE}), "_version is ''"),
        (1, flat({**OWN, b"_pos": b"x"}), "_pos is 'x'"),
        (1, flat({b"_version": b"1"}), "_pos is ''"),
        (1, flat({**OWN, b"_stream": b"others"}), "is of stream 'others': to follow 'fills'"),
    ],
)
def test_a_state_that_cannot_be_trusted_stops_the_service(size: Reply, reply: Reply, why: str) -> None:
    """Another type, too large, an unknown version, no position: refused, in one sentence."""
    assert why in state.decode(size, reply, "fills", efficiency_state).refused


@given(st.dictionaries(st.binary(max_size=12), st.binary(max_size=40), max_size=6))
def test_reading_a_state_is_total(fields: dict[bytes, bytes]) -> None:
    """(1) Any bytes in a state hash."""
    saved = state.decode(len(fields), flat({**OWN, **fields}), "fills", AttributionState.of_text)
    assert saved.refused or all(isinstance(s, AttributionState) for s in saved.states.values())


@pytest.mark.parametrize("raw", [b"", b"x", b"-1", b"9" * 30, "１".encode()])
def test_counts_that_are_none(raw: bytes) -> None:
    """A count of entries that cannot be read is not known; the cycle's number begins anew."""
    saved = state.decode(4, flat({**OWN, b"_read": raw, b"_cycle": raw}), "fills", efficiency_state)
    assert (saved.read, saved.cycle, saved.refused) == (None, 0, "")
