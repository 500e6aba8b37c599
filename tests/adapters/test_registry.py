"""The registry: complete against the tables of names and rights, total on any bytes, strict where it may be."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantum_alloc.adapters import registry, registry_page
from quantum_alloc.adapters.key_patterns import BY_ID, BY_SYMBOL, IN_SHADOW, KNOWN, Names
from quantum_alloc.adapters.keys import STREAMS, Keys
from quantum_alloc.adapters.registry_json import Json, Nullable, Quoted, json_fields
from quantum_alloc.adapters.registry_record import Field, Kind, Record
from quantum_alloc.adapters.registry_types import (
    AnyTime,
    Choice,
    EntryId,
    Iso,
    Number,
    Pattern,
    Symbol,
    Text,
    Time,
    Type,
    Whole,
    Word,
)
from quantum_alloc.adapters.rights import USERS, When
from quantum_alloc.adapters.wire import TIME_ALIASES
from quantum_alloc.core.attribution import AttributionSource
from quantum_alloc.core.downsize import HintAction
from quantum_alloc.core.efficiency import Pressure
from quantum_alloc.core.factors import Zone
from quantum_alloc.core.governor_params import ApplyMode
from quantum_alloc.core.proposal import ProposalReason
from quantum_alloc.services.governor_options import GovernorOptions
from quantum_alloc.services.service_options import (
    AllocationOptions,
    AttributionOptions,
    EfficiencyOptions,
    ProposerOptions,
)
from quantum_alloc.services.settings import variables

EXAMPLES = {"{S}": "BTCUSDT", "{plan}": "p-1.x", "{cid}": "C1", "{name}": "governor-a@b"}


def example(key: str) -> str:
    """A key of a kind, its variable part filled in."""
    for part, text in EXAMPLES.items():
        key = key.replace(part, text)
    return key


def test_each_key_has_a_row_and_each_row_a_key() -> None:
    """The names of the registry are those of the tables of names, and each row says its own."""
    assert registry.RECORDS.keys() == set(KNOWN)
    assert all(of.name == name for name, of in registry.RECORDS.items())
    assert {n for n, of in registry.RECORDS.items() if of.kind is Kind.STREAM} == {*STREAMS, "bars"}


def test_every_row_has_a_writer_and_every_writer_a_row() -> None:
    """Who writes and reads comes from the rights; a right that is no row's would be a key that nobody describes."""
    for name in registry.RECORDS:
        assert registry.access(name).writers, name
    assert {r.key for user in USERS.values() for r in user.rights} - {"everything"} <= set(registry.RECORDS)
    assert registry.access("target").writers == (("allocation", When.ENFORCE), ("operator", When.ALWAYS))
    assert "governor" in registry.access("target").readers


@pytest.mark.parametrize("keys", [Keys(), Keys(tag="q"), Keys(tag="S"), Keys(tag="plan"), Keys(proof="7:a")], ids=str)
@pytest.mark.parametrize("name", KNOWN)
def test_a_key_falls_under_its_row_alone(name: str, keys: Keys) -> None:
    """Every key, with or without a hash tag, in a lane of a proof, and streams named otherwise; nothing longer, nothing
    of another installation."""
    names = Names(keys, {"plans": "my[plans]", "executions": "{q}fills"})
    key = registry.key_of(name, names)
    whole = keys.root + example(key.removeprefix(keys.root)) if key.startswith(keys.root) else key
    assert [row.name for row in registry.records_of(whole, names)] == [name]
    assert registry.records_of(f"{whole}\n", names) == ()
    assert registry.records_of(f"x{whole}", names) == ()
    if keys != Keys():
        assert registry.records_of(whole) == ()


def test_names_that_the_patterns_refuse_fall_under_no_row() -> None:
    """A symbol in small letters, an id with a colon: no key of ours."""
    for name in (*BY_SYMBOL, *(f"shadow_{n}" for n in IN_SHADOW)):
        assert registry.records_of(registry.key_of(name).replace("{S}", "btc")) == ()
    for name in set(BY_ID) - {"ops_head_of"}:
        key = registry.key_of(name).replace("{plan}", "p:1").replace("{cid}", "C 1")
        assert registry.records_of(key) == ()


def test_lives_are_those_of_the_settings() -> None:
    """Where a variable sets how long a key lives, the row tells its default."""
    lives = {
        v.spec.env: v.spec.default
        for options in (AllocationOptions, AttributionOptions, EfficiencyOptions, GovernorOptions, ProposerOptions)
        for v in variables(options)
    }
    told = {of.ttl_from: of.ttl_s for of in registry.RECORDS.values() if of.ttl_from}
    assert told == {name: lives[name] for name in told}
    assert told.keys() == {
        "TARGET_TTL_SEC", "ATTRIBUTION_TTL_SEC", "P31_KEY_TTL_SEC", "PROPOSE_KEY_TTL", "GOV_TOMBSTONE_PERMIT_SEC",
    }  # fmt: skip


WORDS: tuple[tuple[str, str, type[StrEnum]], ...] = (
    ("target", "drawdown_zone", Zone), ("attribution", "source", AttributionSource),
    ("efficiency", "capital_pressure", Pressure), ("proposed", "reason", ProposalReason),
    ("permit", "eff_action", HintAction), ("permit", "apply_mode", ApplyMode),
)  # fmt: skip


@pytest.mark.parametrize(("name", "field", "code"), WORDS)
def test_the_code_has_the_words_of_the_contract(name: str, field: str, code: type[StrEnum]) -> None:
    """Those that a short run does not come to are the contract's too."""
    (kind,) = (f.type for f in registry.record(name).fields if f.name == field)
    of = kind.of if isinstance(kind, Quoted) else kind
    assert isinstance(of, Choice)
    assert set(of.words) == {word.value for word in code}


@pytest.mark.parametrize("name", KNOWN)
def test_rows_make_sense(name: str) -> None:
    """Field names are there once in each variant, the time is a field of the row and required, discriminators are the
    values of their fields, and every meaning is told."""
    of = registry.record(name)
    for fields in (of.fields, *((*of.fields, *v.fields) for v in of.variants)):
        names = [f.name for f in fields]
        assert len(names) == len(set(names)), names
    assert not of.time or any(f.name == of.time and not f.optional and not f.empty for f in of.fields)
    for variant in of.variants:
        for field_name, value in variant.when:
            kinds = [f.type for f in of.fields if f.name == field_name]
            assert [kind.wrong(value.encode()) for kind in kinds] == [""]
    assert of.meaning.endswith(".")
    assert all(f.meaning for f in of.all_fields)
    assert all(f.type.told for f in of.all_fields)


RAW = st.dictionaries(
    st.one_of(st.sampled_from(sorted({f.name for of in registry.RECORDS.values() for f in of.all_fields})), st.text()),
    st.one_of(
        st.binary(max_size=40),
        st.sampled_from(
            [b"1", b"-1", b"1769577492", b"1769577492000", b"NaN", b"", b"{}", b"[]", b'"x"', b"null", b"{"]
        ),
        st.floats().map(lambda x: repr(x).encode()),
        st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5), st.lists).map(
            lambda x: json.dumps(x).encode()
        ),
    ),
    max_size=8,
)


@given(st.sampled_from(sorted(registry.RECORDS)), RAW, st.sampled_from([True, False, None]))
def test_any_bytes_are_answered(name: str, raw: dict[str, bytes], ours: bool | None) -> None:
    """Whatever stands there, there is an answer, in one line each, and a stricter look finds no less."""
    of = registry.record(name)
    found = registry.violations(of, raw, ours=ours)
    assert all(text and "\n" not in text for text in found)
    assert len(registry.violations(of, raw, ours=False)) <= len(registry.violations(of, raw, ours=True))


@given(st.binary(max_size=60))
def test_any_string_is_answered(raw: bytes) -> None:
    """The value of a string key, whatever it is, becomes fields, and is judged."""
    for name in ("permit", "block", "tombstone", "kill", "epoch", "last_exec"):
        of = registry.record(name)
        fields = registry.fields_in(of, raw)
        assert fields
        if of.is_json:
            assert registry.violations(of, fields)


TYPES: tuple[tuple[Type, tuple[bytes, ...], tuple[bytes, ...]], ...] = (
    (Number(0.0, 1.0), (b"0", b"1.0", b"5e-1", b"1e0"), (b"", b"1.1", b"-0.1", b"NaN", b"inf", b"1_0", b"0x1", b" 1")),
    (Number(0.0, 9.0, positive=True), (b"1e-9", b"9"), (b"0", b"-1", b"0.0", b"10")),
    (Number(decimals=4), (b"1.0000", b"-0.5000"), (b"1.0", b"1.00000", b"1e0", b"x")),
    (Whole(1, 9), (b"1", b"9"), (b"0", b"10", b"1.0", b"-1", b"+1", b"", "\u0661".encode())),
    (Time(), (b"0", b"1769577492"), (b"1769577492000", b"1769577492.5", b"-1", b"soon", b"2026-01-28")),
    (Time(fraction=True), (b"1769577492", b"1769577492.5"), (b"1769577492000.0", b"1.", b"")),
    (AnyTime(), (b"1769577492000", b"2026-01-28T05:17:30Z"), (b"soon", b"-1", b"")),
    (Iso(), (b"2026-11-21T20:39:25.980Z",), (b"1769577492", b"\xff", b"2026-13-01T00:00:00Z")),
    (Text(3), (b"", b"abc", "\u00e9".encode()), (b"abcd", b"\xff")),
    (Word(), (b"C1",), (b"", b"a b", b"p33:x")),
    (Symbol(), (b"BTCUSDT",), (b"btc", b"B", b"")),
    (Choice(("a", "")), (b"a", b""), (b"b", b"A", b"\xff")),
    (Pattern("[0-9a-f]{2}", "two"), (b"0f",), (b"0F", b"0f\n", b"")),
    (EntryId(), (b"1-0",), (b"1", b"", b"a-b")),
    (Json(), (b"{}", b'{"a":[1]}'), (b"[]", b"{", b"", b'"x"', b"1", b"\xff", b"[" * 100_000)),
    (Json(list, Whole()), (b"[]", b"[1,2]"), (b"{}", b"[1.5]", b'["1"]', b"[null]", b"1")),
    (Json(dict, Quoted(Symbol())), (b'{"a":"BTC"}',), (b'{"a":"btc"}', b'{"a":1}', b'["BTC"]', b"true")),
    (Quoted(Number(decimals=4), empty=True), (b'"0.5000"', b'""'), (b"0.5000", b'"0.5"', b"null", b'"')),
    (Quoted(Choice(("0", "1"))), (b'"1"',), (b"1", b"01", b'"2"')),
    (Quoted(Symbol()), (b'"BTC"',), (b'""', b"BTC", b'"\\ud800"')),
    (Nullable(Number()), (b"null", b"1.5"), (b'"1.5"', b"", b"true")),
)


@pytest.mark.parametrize(("kind", "good", "bad"), TYPES, ids=lambda t: type(t).__name__)
def test_types(kind: Type, good: tuple[bytes, ...], bad: tuple[bytes, ...]) -> None:
    """What each type takes, and what it refuses with a sentence's end in one line."""
    assert [kind.wrong(raw) for raw in good] == [""] * len(good)
    for raw in bad:
        said = kind.wrong(raw)
        assert said, raw
        assert "\n" not in said
        assert len(said) < 200


def test_json_keeps_numbers_as_they_stand() -> None:
    """A number is judged by its digits and not by the float that is made of it; too long is no JSON."""
    raw = b'{"a": 1.50, "b": "1.50", "c": null, "d": [1, {"e": NaN}], "f": true}'
    assert json_fields(raw) == {"a": b"1.50", "b": b'"1.50"', "c": b"null", "d": b'[1,{"e":NaN}]', "f": b"true"}
    assert json_fields(b"[]") is None
    assert json_fields(b'{"a":"' + b"x" * 300_000 + b'"}') is None


def row(*fields: Field, **how: Any) -> Record:
    """A row of one's own."""
    return Record("x", Kind.HASH, "X.", fields, **how)


WHEN = (Field("timestamp", Time(), "t"), Field("ts", Time(), "t"))
OPEN = row(Field("a", Number(), "a"), Field("b", Number(), "b", ours=True), *WHEN, time="timestamp", is_open=True)
CLOSED = row(Field("a", Number(), "a"), *WHEN, time="timestamp")


@pytest.mark.parametrize(
    ("of", "fields", "ours", "said"),
    [
        (CLOSED, {"a": b"1", "timestamp": b"5", "ts": b"5"}, None, []),
        (CLOSED, {"a": b"1", "timestamp": b"5"}, None, ["ts is missing"]),
        (CLOSED, {"a": b"1", "timestamp": b"5", "ts": b"6"}, None, ["ts is 6, timestamp is 5"]),
        (CLOSED, {"a": b"1", "ts": b"5"}, None, ["the time stands under ts, not under timestamp"]),
        (CLOSED, {"a": b"1", "ts": b"5", "ts_utc": b"5"}, None,
         ["the time stands under ts_utc, not under timestamp", "ts_utc is no field of it"]),
        (CLOSED, {"a": b"1"}, None, ["timestamp is missing", "ts is missing"]),
        (CLOSED, {"a": b"1", "timestamp": b"5", "ts": b"5", "x\n": b""}, None, ["x\\n is no field of it"]),
        (CLOSED, {"a": b"1", "timestamp": b"5000000000000", "ts": b"5000000000000"}, None,
         ["timestamp is not in seconds: 5000000000000", "ts is not in seconds: 5000000000000"]),
        (OPEN, {"a": b"1", "timestamp": b"5000000000000", "c": b"x"}, None, []),
        (OPEN, {"a": b"1", "timestamp": b"2026-01-28"}, None, []),
        (OPEN, {"a": b"1", "timestamp": b"soon"}, None, ["timestamp is malformed: 'soon'"]),
        (OPEN, {"a": b"1", "b": b"x", "timestamp": b"5"}, None, ["b is malformed: 'x'"]),
        (OPEN, {"a": b"1", "ts": b"5"}, None, ["the time stands under ts, not under timestamp"]),
        (OPEN, {"b": b"1", "timestamp": b"5"}, None, ["a is missing"]),
        (OPEN, {"a": b"1", "timestamp": b"5", "c": b"x"}, True,
         ["b is missing", "ts is missing", "c is no field of it"]),
        (CLOSED, {"a": b"1", "timestamp": b"5", "c": b"x"}, False, []),
    ],
)  # fmt: skip
def test_what_is_wrong(of: Record, fields: dict[str, bytes], ours: bool | None, said: list[str]) -> None:
    """Missing, unknown, malformed, moved, in another unit; other programs are judged more mildly."""
    assert registry.violations(of, fields, ours=ours) == said


def test_a_time_of_an_execution_may_stand_anywhere() -> None:
    """The contract asks for a time there and no more; a nested one is judged as a flat one is."""
    of = registry.record("executions")
    told = {"symbol": "BTCUSDT", "pnl": -1.5, "filled_qty": 1, "ts_utc": 1769577492000}
    assert registry.violations(of, {"symbol": b"BTCUSDT", "filled_qty": b"1", "updated_ts": b"5"}) == []
    assert registry.violations(of, {"payload": json.dumps(told).encode()}) == []
    said = registry.violations(of, {"payload": json.dumps({**told, "pnl": "x"}).encode()})
    assert said == ["pnl is malformed: 'x'"]
    assert registry.violations(of, {"payload": b"[]"}) == ["payload is no JSON object of at most 64 fields"]
    assert registry.violations(of, {"payload": b"{"}) == ["payload is no JSON object of at most 64 fields"]
    assert registry.violations(registry.record("violations"), {"symbol": b"BTCUSDT"}) == ["json is missing"]


EXECUTED = {"symbol": b"BTCUSDT", "filled_qty": b"1"}


@pytest.mark.parametrize(
    ("beside", "inside", "said"),
    [
        ({}, None, ["timestamp is missing"]),
        ({"time": b"5"}, None, ["timestamp is missing"]),
        ({"updated_ts": b"soon"}, None, ["updated_ts is malformed: 'soon'"]),
        ({}, {"time": "5"}, ["timestamp is missing"]),
        ({"ts_epoch": b"5"}, {}, []),
        ({"ts_epoch": b"soon"}, {}, ["ts_epoch is malformed: 'soon'"]),
        ({"ts_epoch": b"soon"}, {"ts": "5"}, []),
        ({}, {"ts": "5", "x": "y" * 5000}, ["payload is longer than 4096 bytes"]),
        ({}, {"ts": "5", **{f"x{n}": "" for n in range(64)}}, ["payload is no JSON object of at most 64 fields"]),
        ({}, {"ts": "5", "pnl": True}, ["pnl is empty"]),
    ],
)
def test_an_execution_is_judged_as_its_readers_read_it(
    beside: dict[str, bytes], inside: dict[str, Any] | None, said: list[str]
) -> None:
    """A time must stand somewhere; one inside the payload counts before one beside it; what readers refuse as too much
    is told of. Without a time readers take the entry's id, so that nobody else would notice that it was renamed."""
    of = registry.record("executions")
    told = {n: v.decode() for n, v in EXECUTED.items()}
    fields = EXECUTED if inside is None else {"payload": json.dumps({**told, **inside}).encode()}
    assert registry.violations(of, {**fields, **beside}) == said


def test_too_much_is_told_of() -> None:
    """Values above 4 kB and records of more than 64 fields, which readers refuse, in one line and at once."""
    latch = {"state": b"HALT", "since": b"1." + b"1" * 10_000_000, "by": b"a", "why": b"b", "ts": b"1"}
    assert registry.violations(registry.record("latch"), latch) == ["since is longer than 4096 bytes"]
    plan = {"plan_id": b"p1", "symbol": b"BTCUSDT", "action": b"X", "decision": b"EXECUTE", "timestamp": b"5"}
    many = {**plan, **{f"x{n}": b"" for n in range(60)}}
    assert registry.violations(registry.record("plans"), plan) == []
    assert registry.violations(registry.record("plans"), many) == ["it has 65 fields, at most 64 are read"]
    clusters = {f"C{n}": b"[]" for n in range(10_001)}
    said = "it has 10001 fields, at most 10000 are read"
    assert registry.violations(registry.record("clusters"), clusters) == [said]
    state = {f"S{n}": b"{}" for n in range(10_001)}
    assert said not in registry.violations(registry.record("efficiency_state"), state)


@pytest.mark.parametrize("raw", [b"x", b"[]", b"", b'{"granted": tru', b"\xff", b'"' + b"x" * 10_000_000 + b'"'])
def test_a_text_that_is_no_json_is_told_of_as_that(raw: bytes) -> None:
    """And not by the list of everything that it lacks."""
    for name in ("permit", "block", "tombstone"):
        of = registry.record(name)
        assert registry.violations(of, registry.fields_in(of, raw)) == ["the value is no JSON object"]


def test_an_answer_may_be_kept_longer_than_settings_say() -> None:
    """A tombstone lives as long as the oldest plan of the stream has stood there: that is no fault after a month."""
    of = registry.record("tombstone")
    assert registry.expiry_trouble(of, 31 * 86_400) == ""
    assert registry.expiry_trouble(of, -1) == "has no expiry"
    assert "expires after 2,592,000 s or more" in registry_page.reference_page()


def test_an_event_of_no_known_kind_is_told_of() -> None:
    """A new kind of event needs a variant of its own: without one nothing is known of its fields."""
    told = {"event": b"PARTY", "plan_id": b"", "symbol": b"", "reason": b"ok", "timestamp": b"5", "ts": b"5"}
    said = registry.violations(registry.record("events"), told)
    assert said[-1] == "nothing is known of an entry of its kind"
    assert said[0].startswith("event is none of PERMIT, BLOCK")


def test_the_page_tells_all() -> None:
    """Every key, every field, who writes it and how long it stays are on the reference page."""
    page = registry_page.reference_page()
    for name, of in registry.RECORDS.items():
        assert f"`{registry.key_of(name)}`" in page
        for field in of.all_fields:
            assert not field.name or f"| `{field.name}` |" in page
    assert "expires after at most 300 s, set by `TARGET_TTL_SEC`" in page
    assert "Written by allocation (in enforce alone), operator." in page
    assert "| `price` | number above 0 | USD | newest close |" in page
    assert "| `bar_s` | number above 0, at most 1e+08 | s |" in page
    assert set(TIME_ALIASES) <= set(page.replace("`", " ").replace(",", " ").split())
