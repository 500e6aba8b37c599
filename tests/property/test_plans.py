"""Laws of decoding plans: any bytes give a plan, a flaw or a refusal."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import quantum_alloc.core as qa
from quantum_alloc.adapters import codec
from quantum_alloc.adapters.effects import Failed
from quantum_alloc.adapters.plans import SIDES, BadId, NotGoverned, decode
from quantum_alloc.core.plan import CLOSING_SHARE
from tests.property.strategies import HOSTILE, hostile

NOW = 1769577495
SOUND = {
    "plan_id": b"p1", "symbol": b"BTCUSDT", "action": b"ENTRY", "decision": b"EXECUTE", "timestamp": b"%d" % NOW,
    "side": b"BUY", "qty": b"0.5", "price": b"90000.5", "kill_score": b"0.1", "reduceOnly": b"0",
}  # fmt: skip
FIELDS = (*SOUND, "close_qty", "notional_usd", "ts", "ts_utc", "ts_epoch", "updated_ts", "signal")


def entry(fields: dict[str, Any]) -> Any:
    """A stream entry of some fields; a field of None is left out."""
    return [b"1-0", [x for n, v in fields.items() if v is not None for x in (n.encode(), v)]]


def plan_of(**changes: Any) -> qa.Plan:
    """The sound plan with some fields changed, as it is decoded."""
    found = decode(entry({**SOUND, **changes}))
    assert isinstance(found, qa.Plan)
    return found


replies: st.SearchStrategy[Any] = st.recursive(
    st.one_of(st.none(), st.integers(), st.binary(max_size=20), st.just(Failed("WRONGTYPE"))),
    lambda inner: st.lists(inner, max_size=6),
    max_leaves=20,
)
entries = st.builds(
    entry, st.dictionaries(st.sampled_from(FIELDS), st.one_of(hostile, *map(st.just, SOUND.values())), max_size=12)
)


@given(st.one_of(replies, entries, st.lists(hostile, max_size=200).map(lambda flat: [b"1-0", flat])))
def test_decoding_is_total(reply: Any) -> None:
    """(1) (2) Any reply, any fields, any bytes: a plan with finite values in range, one with a flaw, or no plan."""
    found = decode(reply)
    if isinstance(found, BadId):
        assert len(found.shown) <= 4 * 64
        assert found.shown.isprintable()
        return
    if isinstance(found, NotGoverned):
        return
    assert re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", found.plan_id)
    assert re.fullmatch(r"[0-9a-f]{16}", found.content)
    assert math.isfinite(found.ts)
    assert found.symbol.isprintable()
    assert found.action.isprintable()
    if found.flaw:
        assert found.flaw in FIELDS
        assert (found.side, found.qty, found.price_usd, found.kill_score, found.reduce_only) == (None,) * 4 + (False,)
        return
    assert re.fullmatch(r"[A-Z0-9]{2,30}", found.symbol)
    assert found.ts >= 0.0
    for value in (found.qty, found.price_usd):
        assert value is None or 0.0 < value <= 1e15
    assert found.kill_score is None or 0.0 <= found.kill_score <= 1e15


@given(st.sampled_from(list(SOUND)), hostile)
def test_a_malformed_field_is_a_flaw_and_a_block(name: str, raw: bytes) -> None:
    """(14) A plan with any bytes in one field is sound with them, or blocked as bad_plan, or no plan of ours; and its
    verdict is made again from its record."""
    found = decode(entry({**SOUND, name: raw}))
    if isinstance(found, qa.Plan):
        assert found.flaw in ("", name)
        inputs = qa.Inputs(found, NOW * 1_000_000)
        made = qa.evaluate(inputs)
        record = qa.governor_fields(made, qa.GovernorParams())
        assert qa.recompute(record) == made
        if found.flaw:
            assert (made.to_dict()["reason"], made.to_dict()["gate"]) == ("bad_plan", "plan")
    else:
        assert name in ("plan_id", "decision")


def test_a_sound_plan_is_what_it_says() -> None:
    """Every field of it."""
    assert plan_of() == qa.Plan("p1", "BTCUSDT", "ENTRY", float(NOW), qa.Side.BUY, 0.5, 90000.5, 0.1, False)
    bare = decode(entry({n: SOUND[n] for n in ("plan_id", "symbol", "action", "decision", "timestamp")}))
    assert bare == qa.Plan("p1", "BTCUSDT", "ENTRY", float(NOW))


BAD_NUMBERS = [b"NaN", b"nan", b"inf", b"-inf", b"", b" ", b"-0.1", b"1e400", b"1_0", b"0x1", b"1 ", b"9" * 5000]


@pytest.mark.parametrize("raw", BAD_NUMBERS, ids=lambda r: repr(r[:10]))
@pytest.mark.parametrize("name", ["kill_score", "qty", "price", "close_qty", "timestamp"])
def test_a_number_that_is_none_is_a_flaw(name: str, raw: bytes) -> None:
    """NaN, empty, out of range, negative; on a close as well."""
    assert plan_of(**{name: raw}).flaw == name
    assert plan_of(action=b"FULL_CLOSE_PROPOSED", **{name: raw}).flaw == name


@pytest.mark.parametrize("plan_id", [b"p33:x", b"", b"x" * 65, "п1".encode(), b"p 1", b"p1\n", b"\xff", b":rev", None])
def test_an_id_that_names_no_key_is_no_plan(plan_id: bytes | None) -> None:
    """A colon, nothing, 65 characters, other scripts: refused, and shown escaped."""
    found = decode(entry({**SOUND, "plan_id": plan_id}))
    assert isinstance(found, BadId)
    assert found.shown.isprintable()
    assert found.shown == codec.printable(plan_id or b"")
    assert isinstance(decode(entry({**SOUND, "plan_id": b"x" * 64})), qa.Plan)


@pytest.mark.parametrize("symbol", [b"BTC\nUSDT", b"btcusdt", b"B", b"B" * 31, b"BTCUSDT\x00", b"", b"BTC:USDT"])
def test_a_symbol_that_names_no_key_is_a_flaw(symbol: bytes) -> None:
    """A newline, small letters, too long: escaped, and blocked as bad_plan."""
    found = plan_of(symbol=symbol)
    assert (found.flaw, found.symbol) == ("symbol", codec.printable(symbol))
    assert "\n" not in found.symbol
    assert plan_of(symbol=None).flaw == "symbol"


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        ("action", b"A B"), ("action", b""), ("action", None), ("decision", None), ("decision", b""),
        ("decision", b"EXE CUTE"), ("side", b"buy"), ("side", b""), ("side", b"BOTH"), ("reduceOnly", b""),
        ("reduceOnly", b"yes"), ("reduceOnly", b"2"), ("reduceOnly", b"1 "), ("timestamp", None), ("timestamp", b"-1"),
        ("qty", b"0"), ("price", b"0"), ("close_qty", b"0.25"),
    ],
    ids=str,
)  # fmt: skip
def test_what_else_is_a_flaw(name: str, raw: bytes | None) -> None:
    """Each is named; ``qty`` and ``close_qty`` that differ are a contradiction."""
    assert plan_of(**{name: raw}).flaw == name


def test_the_first_flaw_is_told() -> None:
    """One reason each."""
    assert plan_of(symbol=b"", side=b"", qty=b"").flaw == "symbol"


@pytest.mark.parametrize("decision", [b"SKIP", b"HOLD", b"execute", b"EXECUTE_LATER"])
def test_other_decisions_are_not_governed(decision: bytes) -> None:
    """Any other word, whatever else the entry holds."""
    assert decode(entry({**SOUND, "decision": decision})) == NotGoverned()
    assert decode(entry({"plan_id": b"p1", "decision": decision})) == NotGoverned()


@pytest.mark.parametrize(("raw", "side"), [*SIDES.items()])
def test_sides_have_two_names(raw: bytes, side: qa.Side) -> None:
    """BUY or LONG, SELL or SHORT: the same plan."""
    assert plan_of(side=raw).side is side
    assert plan_of(side=raw) == plan_of(side=side.value.encode())
    assert (side is qa.Side.BUY) == (raw in (b"BUY", b"LONG"))


@pytest.mark.parametrize(
    ("raw", "wanted"),
    [(b"1", True), (b"true", True), (b"TRUE", True), (b"True", True), (b"0", False), (b"false", False),
     (b"False", False), (None, False)],
)  # fmt: skip
def test_reduce_only_is_case_folded(raw: bytes | None, wanted: bool) -> None:
    """{1, true} is yes, {0, false, absent} is no."""
    found = plan_of(reduceOnly=raw)
    assert (found.flaw, found.reduce_only, found.closes) == ("", wanted, wanted)


@pytest.mark.parametrize("action", CLOSING_SHARE)
def test_a_quantity_of_nothing_on_a_close_is_none(action: str) -> None:
    """0 says nothing there, under either name; beside it the other counts."""
    assert plan_of(action=action.encode(), qty=b"0").qty is None
    assert plan_of(action=action.encode(), qty=b"0", close_qty=b"2").qty == 2.0
    assert plan_of(reduceOnly=b"1", qty=b"0.0", close_qty=b"0").flaw == ""
    assert plan_of(qty=None, close_qty=b"0").flaw == "close_qty"


def test_either_name_of_a_quantity_counts() -> None:
    """``qty`` and ``close_qty`` alone or alike."""
    assert (
        plan_of(qty=None, close_qty=b"2").qty == plan_of(qty=b"2").qty == plan_of(qty=b"2", close_qty=b"2.0").qty == 2
    )


@pytest.mark.parametrize(
    "stamp",
    [{"ts": b"%d" % NOW}, {"ts_epoch": b"%d000" % NOW}, {"updated_ts": b"%d000000" % NOW},
     {"ts_utc": b"2026-01-28T05:18:15Z"}, {"ts": b"%d" % NOW, "updated_ts": b"nonsense"}],
    ids=str,
)  # fmt: skip
def test_a_time_has_other_names(stamp: dict[str, bytes]) -> None:
    """The writer's own first, then the common ones in their order; any unit, any of them."""
    assert plan_of(timestamp=None, **stamp).ts == float(NOW)
    assert plan_of(**dict.fromkeys(stamp, b"5")).ts == float(NOW)
    assert plan_of(timestamp=None, ts=b"", updated_ts=b"%d" % NOW).flaw == "ts"


# --- content ---------------------------------------------------------------------------------------------------------

SAME: list[dict[str, bytes]] = [
    {"side": b"LONG"}, {"qty": b"5e-1"}, {"qty": b"+0.50"}, {"reduceOnly": b"false"}, {"price": b"1"},
    {"kill_score": b"0.7"}, {"timestamp": b"5"}, {"close_qty": b".5"}, {"notional_usd": b"x"}, {"signal": b"\xff"},
    {"kill_score": b"NaN"}, {"timestamp": b"x"}, {"price": b"-1"}, {"decision": b""},
]  # fmt: skip
OTHER: list[dict[str, bytes]] = [
    {"symbol": b"ETHUSDT"}, {"symbol": b"btcusdt"}, {"action": b"TRIM"}, {"action": b"EN TRY"}, {"side": b"SELL"},
    {"side": b"buy"}, {"side": b""}, {"qty": b"0.6"}, {"qty": b"NaN"}, {"qty": b"0"}, {"close_qty": b"0.6"},
    {"reduceOnly": b"1"}, {"reduceOnly": b"yes"},
]  # fmt: skip


@pytest.mark.parametrize("change", SAME, ids=str)
def test_the_same_content(change: dict[str, bytes]) -> None:
    """1 and 1.0, BUY and LONG, false and absent; price, kill score and time are no part of it, malformed or not."""
    assert plan_of(**change).content == plan_of().content
    assert plan_of(reduceOnly=None).content == plan_of().content


@pytest.mark.parametrize("change", OTHER, ids=str)
def test_other_content(change: dict[str, bytes]) -> None:
    """Symbol, action, side, quantity, reduceOnly, also where they are malformed; the same bytes are the same."""
    assert plan_of(**change).content != plan_of().content
    assert plan_of(**change).content == plan_of(**change, price=b"1").content


def test_different_malformed_bytes_are_different_content() -> None:
    """Two plans that differ are no replay of each other, whatever is wrong with them."""
    contents = {plan_of(qty=raw).content for raw in dict.fromkeys(HOSTILE) if codec.number(raw, 0.0) is None}
    assert len(contents) == len({r for r in HOSTILE if codec.number(r, 0.0) is None and len(r) <= 4096}) + 2
    crossed = {plan_of(qty=b"x", close_qty=b"").content, plan_of(qty=b"", close_qty=b"x").content}
    assert len(crossed) == 2


@given(
    st.permutations(list(SOUND.items())), st.dictionaries(st.text(max_size=8), st.binary(max_size=8), max_size=4)
)  # fmt: skip
def test_field_order_and_unknown_fields_change_nothing(pairs: list[Any], more: dict[str, bytes]) -> None:
    """(4) Fields that nobody knows, in any order."""
    strange = {n: v for n, v in more.items() if n not in FIELDS}
    assert decode(entry({**strange, **dict(pairs)})) == decode(entry(SOUND))
    assert decode(entry({**dict(pairs), **strange})) == decode(entry(SOUND))


def test_too_many_fields_are_no_entry() -> None:
    """64 at most."""
    many = {f"f{i}": b"1" for i in range(64 - len(SOUND))}
    assert decode(entry({**SOUND, **many})) == decode(entry(SOUND))
    assert decode(entry({**SOUND, **many, "one_more": b"1"})) == BadId("")


positive = st.floats(0.0, 1e15, exclude_min=True)


@given(positive, positive, st.floats(0.0, 1e15), st.floats(0.0, 9e10))
def test_numbers_come_through_bit_for_bit(qty: float, price: float, score: float, ts: float) -> None:
    """(3) What repr writes is what is read."""
    found = plan_of(
        qty=repr(qty).encode(), price=repr(price).encode(), kill_score=repr(score).encode(), timestamp=repr(ts).encode()
    )
    assert (found.qty, found.price_usd, found.kill_score, found.ts) == (qty, price, score, ts)
