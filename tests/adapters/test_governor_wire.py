"""The governor's own keys and inputs: bytes to values, and what cannot be read."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import quantum_alloc.core as qa
from quantum_alloc.adapters import codec, wire
from quantum_alloc.adapters import governor_wire as gw
from quantum_alloc.adapters.effects import Failed
from tests.property.strategies import HOSTILE, hostile

NOW = 1769577495.0
S = "BTCUSDT"

replies: st.SearchStrategy[Any] = st.recursive(
    st.one_of(st.none(), st.integers(), hostile, st.just(Failed("WRONGTYPE"))),
    lambda inner: st.lists(inner, max_size=6),
    max_leaves=20,
)


def finite(*values: float) -> bool:
    """True where every value is a finite number, at least 0."""
    return all(math.isfinite(v) and v >= 0.0 for v in values)


# --- kill switch -----------------------------------------------------------------------------------------------------

KILLS: dict[qa.Kill, list[Any]] = {
    qa.Kill.OFF: [None, b"", b"0", b"false", b"off"],
    qa.Kill.REDUCE_ONLY: [b"reduce"],
    qa.Kill.HALT: [
        b"1", b"true", b"on", b"halt",
        b"OFF", b"Off", b"FALSE", b"REDUCE", b"HALT", b" off", b"off ", b"00", b"no", b"reduce\n", b"\x00", b"\xff",
        Failed("WRONGTYPE"), Failed("NOPERM"), 0, 1, [], [b"off"],
    ],
}  # fmt: skip


@pytest.mark.parametrize(("state", "raw"), [(s, r) for s, raws in KILLS.items() for r in raws], ids=str)
def test_what_a_kill_key_says(state: qa.Kill, raw: Any) -> None:
    """The exact texts; anything else, and a key of another type, halts."""
    assert gw.kill_state(raw) is state


@given(replies)
def test_a_kill_key_that_nobody_knows_halts(raw: Any) -> None:
    """(1) Any reply says something, and OFF only by the exact texts."""
    state = gw.kill_state(raw)
    assert (state is qa.Kill.OFF) == (raw is None or raw in ([b"", b"0", b"false", b"off"]))
    assert (state is qa.Kill.REDUCE_ONLY) == (raw == b"reduce")
    assert not gw.OFF & gw.HALT
    assert all(gw.kill_state(text) is qa.Kill.HALT for text in gw.HALT)


@given(replies)
def test_a_latch_that_cannot_be_read_holds(raw: Any) -> None:
    """(1) Only a hash that is not there does not."""
    assert gw.is_latched(raw) is not (isinstance(raw, list) and all(v is None for v in raw))


# --- ledger ----------------------------------------------------------------------------------------------------------

ENTRY = b"1769577495000000 open 180.5 0.0"
BAD_ENTRIES = [
    b"", b"1769577495000000", b"1769577495000000 open 180.5", b"1769577495000000 open 180.5 0.0 x",
    b" 1769577495000000 open 180.5 0.0", b"1769577495000000  open 180.5 0.0", b"-1 open 1.0 0.0", b"1.5 open 1.0 0.0",
    b"1e3 open 1.0 0.0", b"x open 1.0 0.0", b"1 OPEN 1.0 0.0", b"1 both 1.0 0.0", b"1 \xff 1.0 0.0", b"1  1.0 0.0",
    b"1 open NaN 0.0", b"1 open inf 0.0", b"1 open -1 0.0", b"1 open 1e400 0.0", b"1 open 1.0 NaN", b"1 open 1.0 -0.5",
    b"1 open 1.0 ", "１ open 1.0 0.0".encode(), b"9" * 19 + b" open 1.0 0.0", b"1 open 1_0 0.0",
]  # fmt: skip
BAD_WHOLES = [b"", b"-1", b"1.0", b"x", b"1e3", b" 1", b"9" * 19, "１".encode(), b"+1"]


def test_a_ledger_is_what_was_written() -> None:
    """Revision and a permit a field; nothing there is an empty one; fields of our own are no permits."""
    told = gw.ledger([b":rev", b"7", b"p1", ENTRY, b"p2", b"5 close 0.0 0.25", b":later", b"x"])
    assert told == qa.Ledger(
        "7",
        {
            "p1": qa.Issued(1769577495000000, qa.Movement.OPEN, 180.5, 0.0),
            "p2": qa.Issued(5, qa.Movement.CLOSE, 0.0, 0.25),
        },
    )
    assert gw.ledger([]) == qa.Ledger()


@pytest.mark.parametrize("raw", BAD_ENTRIES, ids=str)
def test_one_entry_that_cannot_be_read_makes_the_ledger_unreadable(raw: bytes) -> None:
    """Whatever else stands in it."""
    assert gw.ledger([b":rev", b"1", b"p1", ENTRY, b"p2", raw]) is None


@pytest.mark.parametrize("raw", BAD_WHOLES, ids=str)
def test_a_revision_that_is_none_makes_it_unreadable(raw: bytes) -> None:
    """A whole number of at most 18 digits, or none at all."""
    assert gw.ledger([b":rev", raw, b"p1", ENTRY]) is None
    assert gw.book([b":rev", raw]).outstanding is None
    assert gw.book([b":watermark", raw]).outstanding is None


NO_HASHES: list[Any] = [
    None, 5, b"x", Failed("WRONGTYPE"), [b":rev"], [b":rev", b"1", b"p1"], [b":rev", b"1", b"p1", 5],
    [b":rev", b"1", 5, ENTRY], [b":rev", b"1", b"p1", None], [[b":rev", b"1"]],
]  # fmt: skip


@pytest.mark.parametrize("reply", NO_HASHES, ids=str)
def test_what_is_no_hash_is_unreadable(reply: Any) -> None:
    """Nothing of it is dropped in silence: what is not counted could be a permit."""
    assert gw.ledger(reply) is None
    assert gw.book(reply).outstanding is None


@pytest.mark.parametrize("name", [b"p 1", b"x" * 65, b"\xff", b"p33:x", b""], ids=str)
def test_a_permit_of_an_id_that_there_is_not_makes_it_unreadable(name: bytes) -> None:
    """No plan has such an id; two names that are not text would be one and the same."""
    assert gw.ledger([b":rev", b"1", name, ENTRY]) is None
    assert gw.book([b":rev", b"1", name, b"BTCUSDT 1.0 5 60 0"]).outstanding is None


def test_more_fields_than_limits_allow_are_unreadable() -> None:
    """20,000 fields are read, one more is not."""
    flat: list[Any] = [x for i in range(gw.STATE_LIMIT) for x in (b"p%d" % i, b"1 open 1.0 0.0")]
    whole = gw.ledger(flat)
    assert whole is not None
    assert len(whole.issued) == gw.STATE_LIMIT
    assert gw.ledger([*flat, b"one_more", ENTRY]) is None


times = st.integers(0, 10**17)
amounts = st.floats(0.0, 1e15)
ids = st.from_regex(r"[A-Za-z0-9_.-]{1,64}", fullmatch=True)


@given(st.integers(0, 10**9), st.dictionaries(ids, st.tuples(times, st.booleans(), amounts, amounts), max_size=5))
def test_a_ledger_reads_back_bit_for_bit(revision: int, entries: dict[str, Any]) -> None:
    """(3) Texts and back."""
    flat: list[Any] = [b":rev", str(revision).encode()]
    issued = {}
    for name, (at, is_open, usd, qty) in entries.items():
        movement = qa.Movement.OPEN if is_open else qa.Movement.CLOSE
        flat += [name.encode(), f"{at} {movement.value} {usd!r} {qty!r}".encode()]
        issued[name] = qa.Issued(at, movement, usd, qty)
    assert gw.ledger(flat) == qa.Ledger(str(revision), issued)


# --- book ------------------------------------------------------------------------------------------------------------


def test_a_book_is_what_was_written() -> None:
    """In the order of their permits; not consumed is 0."""
    found = gw.book(
        [
            b":rev",
            b"3",
            b":watermark",
            b"9",
            b":pos",
            b"5-1",
            b"p2",
            b"ETHUSDT 2.5 7 67 8",
            b"p1",
            b"BTCUSDT 1.5 7 67 0",
        ]
    )
    assert (found.revision, found.watermark_us, found.pos) == ("3", 9, "5-1")
    assert found.outstanding == (
        qa.Outstanding("p1", S, 1.5, 7, 67),
        qa.Outstanding("p2", "ETHUSDT", 2.5, 7, 67, 8),
    )
    empty = gw.book([])
    assert (empty.revision, empty.watermark_us, empty.pos, empty.outstanding) == ("0", 0, "", ())


BAD_OPENS = [
    b"", b"BTCUSDT 1.0 5 60", b"BTCUSDT 1.0 5 60 0 0", b"btc 1.0 5 60 0", b" 1.0 5 60 0", b"BTCUSDT NaN 5 60 0",
    b"BTCUSDT -1 5 60 0", b"BTCUSDT 1.0 -5 60 0", b"BTCUSDT 1.0 5 6.5 0", b"BTCUSDT 1.0 5 60 x", b"BTCUSDT 1.0 5 60 ",
    b"BTC\nUSDT 1.0 5 60 0", b"BTCUSDT inf 5 60 0",
]  # fmt: skip


@pytest.mark.parametrize("raw", BAD_OPENS, ids=str)
def test_one_open_that_cannot_be_read_makes_the_book_unreadable(raw: bytes) -> None:
    """Opens are then blocked: its revision is none that a commit would find."""
    found = gw.book([b":rev", b"1", b":pos", b"5-1", b"p1", b"BTCUSDT 1.0 5 60 0", b"p2", raw])
    assert (found.revision, found.watermark_us, found.pos, found.outstanding) == ("", 0, "", None)


hashes = st.one_of(
    replies,
    st.lists(
        st.tuples(
            st.one_of(st.sampled_from([b":rev", b":watermark", b":pos", b"p1", b"p2"]), hostile),
            st.one_of(
                hostile, st.sampled_from([ENTRY, b"7", b"BTCUSDT 1.0 5 60 0", *BAD_ENTRIES, *BAD_OPENS, *BAD_WHOLES])
            ),
        ),
        max_size=6,
    ).map(lambda pairs: [x for pair in pairs for x in pair]),
)


@given(hashes)
def test_ledger_and_book_are_total(reply: Any) -> None:
    """(1) (2) Any reply: finite values, or unreadable as a whole, never an exception."""
    told = gw.ledger(reply)
    if told is not None:
        assert isinstance(reply, list)
        assert told.revision.isdigit()
        assert all(one.at_us >= 0 and finite(one.usd, one.qty) for one in told.issued.values())
    found = gw.book(reply)
    assert found.watermark_us >= 0
    if found.outstanding is not None:
        assert found.revision.isdigit()
        for one in found.outstanding:
            assert codec.symbol(one.symbol.encode()) == one.symbol
            assert finite(one.usd, one.at_us, one.until_us)
            assert one.consumed_us is None or one.consumed_us > 0


# --- first answers ---------------------------------------------------------------------------------------------------

TOMBSTONE = {"verdict": "PERMIT", "reason": "ok", "content": "c" * 16, "decision_id": "d" * 16, "stamp_us": 5}


def test_a_first_answer_is_what_was_written() -> None:
    """Its four texts, whatever else stands there."""
    assert gw.answer(json.dumps(TOMBSTONE).encode()) == qa.Answer("PERMIT", "ok", "c" * 16, "d" * 16)
    blocked = json.dumps({**TOMBSTONE, "verdict": "BLOCK", "reason": "reduce_only"}).encode()
    assert gw.answer(blocked) == qa.Answer("BLOCK", "reduce_only", "c" * 16, "d" * 16)
    assert gw.answer(None) is None


BAD_ANSWERS: list[Any] = [
    b"", b"x", b"{}", b"[]", b"5", b"null", b'"PERMIT"', b"[" * 100_000, b"\xff", 5, [], Failed("WRONGTYPE"),
    *(json.dumps({n: v for n, v in TOMBSTONE.items() if n != gone}).encode()
      for gone in ("verdict", "reason", "content", "decision_id")),
    *(json.dumps({**TOMBSTONE, "verdict": v}).encode() for v in ("", "permit", "OTHER", None, 1, ["PERMIT"])),
    *(json.dumps({**TOMBSTONE, n: None}).encode() for n in ("reason", "content", "decision_id")),
    *(json.dumps({**TOMBSTONE, n: 1}).encode() for n in ("reason", "content", "decision_id")),
]  # fmt: skip


@pytest.mark.parametrize("raw", BAD_ANSWERS, ids=lambda r: repr(r)[:40])
def test_an_answer_that_cannot_be_read_is_one_without_a_verdict(raw: Any) -> None:
    """There was one: the plan is not decided again."""
    assert gw.answer(raw) == qa.Answer("")


@given(st.one_of(replies, st.dictionaries(st.sampled_from(list(TOMBSTONE)), st.one_of(
    st.text(max_size=5), st.sampled_from(["PERMIT", "BLOCK"]), st.none(), st.integers()
)).map(lambda told: json.dumps({**TOMBSTONE, **told}).encode())))  # fmt: skip
def test_answers_are_total_and_can_be_told_again(reply: Any) -> None:
    """(1) Any reply: no answer, one without a verdict, or four texts that an event can carry."""
    found = gw.answer(reply)
    assert (found is None) == (reply is None)
    if found is not None:
        assert found.verdict in ("", "PERMIT", "BLOCK")
        for text in (found.reason, found.content, found.decision_id):
            assert text.encode("utf-8").decode("utf-8") == text


def test_an_answer_that_no_event_could_carry_cannot_be_read() -> None:
    """Half a character is no text: its replay could never be written."""
    raw = json.dumps({**TOMBSTONE, "reason": "\ud800"}).encode()
    assert gw.answer(raw) == qa.Answer("")


# --- violations ------------------------------------------------------------------------------------------------------


def told(symbol: Any = S, usd: Any = 501.5, age: float = 0, **more: Any) -> Any:
    """One entry of the stream of violations."""
    record = {"symbol": symbol, "position_notional": usd, "timestamp": int(NOW - age), **more}
    return [b"1-0", [b"json", json.dumps(record).encode()]]


def test_the_greatest_young_violation_of_a_symbol_counts() -> None:
    """In any order; one that is too old or of the future does not hide it; symbols are apart."""
    entries = [told(usd=500.0), told(usd=900.0, age=30), told(usd=700.0, age=29), told(usd=600.0), told("ETHUSDT", 5.0)]
    entries.append(told(usd=901.0, age=-6))
    for order in (entries, entries[::-1]):
        found = gw.violations(order, NOW, [S, "ETHUSDT", "SOLUSDT"])
        assert found[S] == qa.Fresh(700.0, NOW - 29, 29)
        assert found["ETHUSDT"].value == 5.0
        assert found["SOLUSDT"].state == "missing"
    assert gw.violations([told(age=30)], NOW, [S])[S].state == "stale"
    assert gw.violations([told(age=-6)], NOW, [S])[S].state == "future_ts"
    assert gw.violations(Failed("WRONGTYPE"), NOW, [S]) == {S: qa.Unusable(qa.Reason.STORE)}
    assert gw.violations([told()], NOW, []) == {}


def test_a_violations_time_has_other_names() -> None:
    """As that of any other record: the writer's own first, then the common ones."""
    record = {"symbol": S, "position_notional": 501.5, "ts": int(NOW)}
    found = gw.violations([[b"1-0", [b"json", json.dumps(record).encode()]]], NOW, [S])
    assert found[S] == qa.Fresh(501.5, NOW, 0)


BAD_VIOLATIONS: list[Any] = [
    None, 5, b"x", [], [b"1-0"], [b"1-0", []], [b"1-0", [b"json"]], [b"1-0", [b"other", b"{}"]],
    *([b"1-0", [b"json", raw]] for raw in (
        b"", b"x", b"{}", b"[]", b"null", b"5", b"\xff", b"[" * 3000, b'{"symbol":"BTCUSDT"}', b" " * 5000 + b"{}",
        b'{"symbol":"\\ud800","position_notional":1,"timestamp":1769577495}',
    )),
    told(symbol="btc"), told(symbol=None), told(symbol=[S]), told(usd=None), told(usd=True), told(usd=-1),
    told(usd="x"),
    told(usd=math.nan), told(usd=math.inf), told(usd=[5]), told(timestamp=None), told(timestamp="x"),
    told(timestamp=math.nan), told(timestamp=-1),
]  # fmt: skip


@pytest.mark.parametrize("entry", BAD_VIOLATIONS, ids=lambda e: repr(e)[:50])
def test_a_violation_that_cannot_be_read_is_passed_over(entry: Any) -> None:
    """It hides none of the others."""
    assert gw.violations([entry], NOW, [S])[S].state == "missing"
    assert gw.violations([entry, told(), entry], NOW, [S])[S].value == 501.5


@given(st.one_of(replies, st.lists(hostile.map(lambda raw: [b"1-0", [b"json", raw]]), max_size=4)))
def test_violations_are_total(reply: Any) -> None:
    """(1) (2) Any reply: a reading a symbol, with a finite value or none."""
    found = gw.violations(reply, NOW, [S, "ETHUSDT"])
    assert list(found) == [S, "ETHUSDT"]
    assert all(r.value is None or finite(r.value) for r in found.values())


def test_how_violations_are_asked_for() -> None:
    """Newest first, those since a moment, or the newest thousand."""
    assert gw.violations_query("v", None) == ("XREVRANGE", "v", "+", "-", "COUNT", 1000)
    assert gw.violations_query("v", 5) == ("XREVRANGE", "v", "+", 5, "COUNT", 1000)


# --- inputs ----------------------------------------------------------------------------------------------------------

Raw = dict[str, bytes]
SCHEMAS: dict[str, tuple[Any, Raw, Any]] = {
    "position": (gw.POSITION, {"position_amt": b"-2.5", "mark_price": b"100.5"}, qa.Holding(-2.5, 100.5)),
    "market": (gw.MARKET, {"price": b"100.5"}, 100.5),
    "target": (
        gw.TARGET,
        {"target_usd": b"1820.93", "mode": b"enforce", "confidence": b"0.75"},
        qa.Limit(1820.93, "enforce", 0.75),
    ),
    "budget": (gw.BUDGET, {"budget_usd": b"500", "mode": b"enforce"}, qa.Limit(500.0, "enforce")),
    "portfolio": (gw.TOTALS, {"positions_notional_usd": b"1500.5", "positions_count": b"3"}, qa.Totals(1500.5, 3)),
}


def decode(name: str, **changes: bytes | None) -> qa.Reading[Any]:
    """A record with some fields changed, or left out."""
    schema, fields, _ = SCHEMAS[name]
    raw = {schema.time: b"%d" % NOW, **fields, **changes}
    return wire.decode(schema, [raw.get(n) for n in schema.asked], NOW, 60)


@pytest.mark.parametrize("name", SCHEMAS)
def test_an_input_is_what_was_written(name: str) -> None:
    """Every field of it; nothing there is missing."""
    assert decode(name) == qa.Fresh(SCHEMAS[name][2], NOW, 0)
    schema = SCHEMAS[name][0]
    assert wire.decode(schema, [None] * len(schema.asked), NOW, 60).state == "missing"
    assert wire.decode(schema, Failed("WRONGTYPE"), NOW, 60).state == "redis_error"


UNUSED = {("target", "mode"), ("target", "confidence"), ("budget", "mode")}


@pytest.mark.parametrize(("name", "field"), [(n, f) for n, (_, fields, _) in SCHEMAS.items() for f in fields])
def test_one_malformed_field_makes_an_input_malformed(name: str, field: str) -> None:
    """But a mode that is not enforce, which is shadow, and a confidence that no gate looks at."""
    for raw in HOSTILE:
        if raw in (b"-1", b"-0.0001") and field == "position_amt":
            continue
        found = decode(name, **{field: raw})
        if (name, field) in UNUSED:
            assert isinstance(found, qa.Fresh)
            assert found.value.mode == ("shadow" if field == "mode" else "enforce")
            assert field == "mode" or found.value.confidence is None
        else:
            assert found.state == "malformed"
            assert found.value is None


def test_zero_and_absence() -> None:
    """A mark of 0 or none is no mark; a price of 0 is malformed; a mode or confidence that is not told; an
    amount that is absent."""
    assert decode("position", mark_price=b"0").value == qa.Holding(-2.5)
    assert decode("position", mark_price=None).value == qa.Holding(-2.5)
    assert decode("position", position_amt=b"0").value == qa.Holding(0.0, 100.5)
    assert decode("position", position_amt=None).state == "malformed"
    assert decode("market", price=b"0").state == "malformed"
    assert decode("target", mode=None, confidence=None).value == qa.Limit(1820.93, "shadow")
    assert decode("target", target_usd=b"0").value == qa.Limit(0.0, "enforce", 0.75)
    assert decode("portfolio", positions_count=b"2.5").state == "malformed"
    assert decode("portfolio", positions_count=b"0").value == qa.Totals(1500.5, 0)
    assert decode("portfolio", positions_count=None).state == "malformed"


def test_more_violations_than_are_read_at_once() -> None:
    """What a flood of other symbols' violations may hide is not known, unless the oldest is not young; what was seen
    counts."""

    def told(symbol: str, ts: int = 100) -> Any:
        return [b"1-0", [b"json", json.dumps({"symbol": symbol, "position_notional": 5.0, "timestamp": ts}).encode()]]

    flood = [told("OTHERUSDT")] * (gw.VIOLATIONS_AT_ONCE - 1)
    seen = gw.violations([told("BTCUSDT"), *flood], 100.0, ["BTCUSDT", "ETHUSDT"])
    assert seen["BTCUSDT"].value == 5.0
    assert seen["ETHUSDT"].state == "redis_error"
    assert gw.violations(flood, 100.0, ["ETHUSDT"])["ETHUSDT"].state == "missing"
    young, old = told("OTHERUSDT", 71), told("OTHERUSDT", 70)
    for oldest, state in ((young, "redis_error"), (old, "missing"), (b"", "redis_error")):
        assert gw.violations([*flood, oldest], 100.0, ["ETHUSDT"])["ETHUSDT"].state == state


@pytest.mark.parametrize("reply", [None, b"1", [], [b"1"], [b"1", b"2", b"3"], [1, b"2"], [b"1", None]], ids=repr)
def test_a_time_that_is_none(reply: object) -> None:
    """Whatever is no answer to TIME tells no time."""
    assert gw.time_us(reply) is None  # type: ignore[arg-type] # that is the point
