"""The apply layer's account, permits and entries: bytes to values and back, and what cannot be read."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import quantum_alloc.core as qa
from quantum_alloc.adapters import apply_wire as aw
from quantum_alloc.adapters import codec
from quantum_alloc.adapters.effects import Failed, Reply
from quantum_alloc.adapters.permits import SigningKey, permit_json
from quantum_alloc.core.account import Held
from quantum_alloc.core.apply import ApplyInputs, ApplyParams, Fate, Terms, apply_permit
from quantum_alloc.core.fields import compact
from quantum_alloc.core.limits import US
from quantum_alloc.core.plan import FULL_CLOSE, Side
from quantum_alloc.core.reconcile import Counts, Known, Reconciled, SeenFill, Stage
from tests.property.strategies import hostile

NOW_US = 1_769_577_495_123_456
NOW = NOW_US / US
S = "BTCUSDT"
NEW, OLD = SigningKey("2026b", b"0123456789abcdef0123"), SigningKey("2026a", b"fedcba9876543210fedc")

replies: st.SearchStrategy[Any] = st.recursive(
    st.one_of(st.none(), st.integers(), hostile, st.just(Failed("WRONGTYPE"))),
    lambda inner: st.lists(inner, max_size=6),
    max_leaves=20,
)


def entry(**fields: str | bytes) -> list[Reply]:
    """One entry of a stream."""
    flat: list[Reply] = [x.encode() if isinstance(x, str) else x for pair in fields.items() for x in pair]
    return [b"1769577495000-0", flat]


# --- the account -----------------------------------------------------------------------------------------------------

ACCOUNT = aw.Account(
    7,
    ("e", "r", "x", "t"),
    {"events": "1-0", "results": "2-1", "fills": "0-0", "transfers": "18446744073709551615-3"},
    100_000.1,
    100_000.0,
    0.30000000000000004,
    0.2,
    {S: Held(-0.1, 90_000.5, NOW_US, 0, NOW_US, (5, NOW_US)), "ETHUSDT": Held(0.0, 0.0, 0, NOW_US, 9)},
    Reconciled(
        {
            "p2": Known(S, 1.5, NOW_US, Stage.WAITING, 0.0, 0, "ENTRY", "price_unknown", 1),
            "p1": Known("ETHUSDT", 1e-9, NOW_US, Stage.CONSUMED, 1e-9, NOW_US, "", "", 2, True),
        },
        Counts(2, 1, 0, 3, 4, 5, 6),
    ),
)
TEXTS = {
    "_version": "1", "_rev": "7", "_of": '["e","r","x","t"]', "_events": "1-0", "_results": "2-1", "_fills": "0-0",
    "_transfers": "18446744073709551615-3", "_balance": "100000.1", "_paid_in": "100000.0",
    "_realised": "0.30000000000000004", "_fees": "0.2", "_counts": "[2,1,0,3,4,5,6]",
    f"S:{S}": f"[-0.1,90000.5,{NOW_US},0,{NOW_US},[5,{NOW_US}]]", "S:ETHUSDT": f"[0.0,0.0,0,{NOW_US},9,[]]",
    "P:p2": f'["BTCUSDT",1.5,{NOW_US},"waiting",0.0,0,"ENTRY","price_unknown",1,false]',
    "P:p1": f'["ETHUSDT",1e-09,{NOW_US},"consumed",1e-09,{NOW_US},"","",2,true]',
}  # fmt: skip


def hash_of(texts: dict[str, str]) -> list[Reply]:
    """What HGETALL answers."""
    return [x.encode("utf-8", "surrogatepass") for pair in texts.items() for x in pair]


def test_an_account_is_what_was_written() -> None:
    """Every field by name and text, and back; permits in the order in which they were issued."""
    assert aw.texts_of(ACCOUNT) == TEXTS
    assert aw.decode_state(hash_of(TEXTS)) == aw.Loaded(ACCOUNT, "", TEXTS)
    backwards = aw.decode_state(hash_of(dict(reversed(TEXTS.items())))).account
    assert backwards == ACCOUNT
    assert list(backwards.permits.permits) == ["p2", "p1"]
    counted = replace(ACCOUNT, events_seen=41)
    assert aw.texts_of(counted) == {**TEXTS, "_events_seen": "41"}
    assert aw.decode_state(hash_of(aw.texts_of(counted))).account == counted
    assert aw.decode_state([]) == aw.Loaded()


WITHOUT = {
    f"its {gone} is absent" if gone != "_version" else "its _version is '', not 1": gone
    for gone in TEXTS
    if gone.startswith("_")
}
OTHERS: dict[str, list[str]] = {
    "_version": ["", "2", "1.0", "01", " 1"],
    "_rev": ["", "-1", "1.0", "x", "true", '"1"', "null", "[]", "1" * 19, "1" * 5000],
    "_events_seen": ["", "-1", "1.0", "x", "true", "null"],
    "_of": ["", "x", "5", "null", "[5]", "[null]", '["\\ud800"]', "[" * 100_000],
    **{n: ["", "0", "1-", "-", "$", "x-0", "99999999999999999999-0", "1-0 "] for n in (
        "_events", "_results", "_fills", "_transfers")},
    **{n: ["", "x", "NaN", "Infinity", "1e308", "1e400", "null", "true", '"1"', "[1]"] for n in (
        "_balance", "_paid_in", "_realised", "_fees")},
    "_counts": ["", "x", "{}", "[]", "[9,2,3,4,5]", "[9,2,3,4,5,6]", "[9,2,3,4,5,6,7,8]", "[9,2,3,4,5,6,-7]",
                "[9,2,3,4,5,6,true]", "[9,2,3,4,5,6,7.0]", "5", "[4,2,3,0,0,0,0]", "[0,1,0,0,0,0,0]",
                "[0,0,1,0,0,0,0]", "[-1,0,0,0,0,0,0]"],
    "S:BTCUSDT": ["", "x", "[]", "[1,2,3,4]", "[1,2,3,4,5]", "[1,2,3,4,5,[],6]", "[1,2,3,4.0,5,[]]",
                  "[1,2,-3,4,5,[]]", "[NaN,2,3,4,5,[]]", "[1,null,3,4,5,[]]", "[true,2,3,4,5,[]]",
                  '["1",2,3,4,5,[]]', "{}", "5", "[1,2,3,null,5,[]]", "[1,2,3,4,-5,[]]", "[1,2,3,4,5.0,[]]",
                  "[1,2,3,4,null,[]]", "[1,2,3,4,true,[]]", "[1,2,3,4,5,6]", "[1,2,3,4,5,null]", "[1,2,3,4,5,[6.0]]",
                  "[1,2,3,4,5,[-6]]", "[1,2,3,4,5,[null]]", '[1,2,3,4,5,"6"]', "[1,2,3,4,5,[[6]]]",
                  "[1,2,3,4,5,[6,true]]", "[1,2,3,4,5,[%s]]" % 10**18, "[" * 100_000],
    "S:btc": ["[1,2,3,4,5,[]]"],
    "S:": ["[1,2,3,4,5,[]]"],
    "P:p 1": [TEXTS["P:p1"]],
    "P:": [TEXTS["P:p1"]],
    "P:p1": ["", "[]", '["A0",1,2,"waiting",0,0,"","",1]', '["A0",1,2,"waiting",0,0,"","",1,true,2]',
          '["A0",1,2,"waiting",0,0,"","",1,5]', '["A0",1,2,"waiting",0,0,"","",1,null]',
             '["A0",1,2,"open",0,0,"","",1,true]', '[5,1,2,"waiting",0,0,"","",1,true]',
             '["A0",NaN,2,"waiting",0,0,"","",1,true]', '["A0",1,2.0,"waiting",0,0,"","",1,true]',
             '["A0",1,2,"waiting",null,0,"","",1,true]', '["A0",1,2,"waiting",0,true,"","",1,true]',
             '["A0",1,2,"waiting",0,0,5,"",1,true]', '["A0",1,2,"waiting",0,0,"",null,1,true]',
             '["A0",1,2,"waiting",0,0,"","",-1,true]', '["A0",1,2,[],0,0,"","",1,true]'],
}  # fmt: skip


@pytest.mark.parametrize(("named", "gone"), WITHOUT.items(), ids=str)
def test_an_account_without_one_of_its_fields_cannot_be_read(named: str, gone: str) -> None:
    """It is named; nothing is made up in its place."""
    loaded = aw.decode_state(hash_of({n: t for n, t in TEXTS.items() if n != gone}))
    assert loaded == aw.Loaded(trouble=named)


@pytest.mark.parametrize(("name", "text"), [(n, t) for n, texts in OTHERS.items() for t in texts], ids=lambda x: x[:30])
def test_one_field_that_cannot_be_read_makes_the_account_unreadable(name: str, text: str) -> None:
    """It is named, whatever else stands there: an account that is guessed at is worse than none."""
    trouble = f"its {name} is malformed"
    if name in ("S:btc", "S:", "P:p 1", "P:"):
        trouble = f"its field {name} is none of ours"
    elif name == "_version":
        trouble = f"its _version is {text!r}, not 1"
    assert aw.decode_state(hash_of({**TEXTS, name: text})) == aw.Loaded(trouble=trouble)


def test_a_name_that_cannot_be_shown_is_not() -> None:
    """Of a field that is none of ours: without control characters, and not at any length."""
    trouble = aw.decode_state(hash_of({**TEXTS, "S:\x1b[2J" + "x" * 1000: "[]"})).trouble
    assert trouble.startswith("its field S:")
    assert trouble.endswith("is none of ours")
    assert trouble.isprintable()
    assert len(trouble) < 500


def test_a_field_of_nobody_goes_with_the_next_write() -> None:
    """It is neither a symbol's nor a permit's, and nothing hangs on it."""
    loaded = aw.decode_state(hash_of({**TEXTS, "other": "x", "_later": "y", "": ""}))
    assert (loaded.account, loaded.trouble) == (ACCOUNT, "")
    assert aw.saving("k", loaded.texts, ACCOUNT).delete == ("", "_later", "other")


NO_HASHES: list[Any] = [
    None, 5, b"x", Failed("WRONGTYPE"), [b"_version"], [b"_version", b"1", b"_rev"], [b"_version", b"\xff"],
    [b"\xff", b"1"], [b"_version", 5], [*hash_of(TEXTS), b"x"],
]  # fmt: skip


@pytest.mark.parametrize("reply", NO_HASHES, ids=lambda r: repr(r)[:40])
def test_what_is_no_hash_is_no_account(reply: Any) -> None:
    """A trouble that says why; of another type of key its code."""
    loaded = aw.decode_state(reply)
    assert (loaded.account, loaded.texts) == (None, {})
    assert loaded.trouble == ("WRONGTYPE" if isinstance(reply, Failed) else loaded.trouble)
    assert loaded.trouble


def test_more_fields_than_there_may_be_are_unreadable() -> None:
    """``FIELDS_LIMIT`` are read, one more is not."""
    assert aw.FIELDS_LIMIT == 20_000
    more = {f"X{i}": "" for i in range(aw.FIELDS_LIMIT - len(TEXTS))}
    assert aw.decode_state(hash_of({**TEXTS, **more})).account == ACCOUNT
    assert "more than 20000" in aw.decode_state(hash_of({**TEXTS, **more, "X": ""})).trouble


usd = st.floats(-1e300, 1e300)
times = st.integers(0, 10**18 - 1)
entry_ids = st.builds(lambda ms, seq: f"{ms}-{seq}", st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
names = st.from_regex(r"[A-Za-z0-9_.-]{1,64}", fullmatch=True)
symbols = st.from_regex(r"[A-Z0-9]{2,30}", fullmatch=True)
helds = st.builds(Held, usd, usd, times, times, times, st.lists(times, max_size=3).map(tuple))
knowns = st.builds(
    Known,
    symbols,
    usd,
    times,
    st.sampled_from(Stage),
    usd,
    times,
    st.text(max_size=9),
    st.text(max_size=9),
    times,
    st.booleans(),
)
counts = st.builds(
    lambda consumed, expired, outstanding, *fills: Counts(consumed + expired + outstanding, consumed, expired, *fills),
    *[st.integers(0, 10**17)] * 3, *[times] * 4,
)  # fmt: skip
streams = st.tuples(*[st.text(max_size=9)] * 4)
accounts = st.builds(
    aw.Account, times, streams, st.fixed_dictionaries(dict.fromkeys(aw.STREAMS, entry_ids)),
    usd, usd, usd, usd, st.dictionaries(symbols, helds, max_size=4),
    st.builds(Reconciled, st.dictionaries(names, knowns, max_size=4), counts),
)  # fmt: skip


@given(accounts)
def test_an_account_reads_back_bit_for_bit(account: aw.Account) -> None:
    """(3) Texts and back."""
    texts = aw.texts_of(account)
    loaded = aw.decode_state(hash_of(texts))
    assert loaded.account == account
    assert loaded.texts == texts
    again = loaded.account
    assert list(again.permits.permits.values()) == sorted(again.permits.permits.values(), key=lambda one: one.number)
    for one, other in ((again.balance_usd, account.balance_usd), (again.fees_usd, account.fees_usd)):
        assert math.copysign(1.0, one) == math.copysign(1.0, other)


@given(st.one_of(
    replies,
    st.lists(st.one_of(hostile, st.sampled_from([x.encode() for pair in TEXTS.items() for x in pair])), max_size=8),
    st.tuples(st.sampled_from(sorted(TEXTS)), hostile).map(
        lambda put: [x for n, t in TEXTS.items() for x in (n.encode(), put[1] if n == put[0] else t.encode())]),
    st.tuples(st.sampled_from(["S:", "P:", ""]), hostile, hostile).map(
        lambda put: [*hash_of(TEXTS), put[0].encode() + put[1], put[2]]),
    st.dictionaries(st.sampled_from(sorted(TEXTS)), st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3), st.sampled_from([*Stage])),
        lambda inner: st.lists(inner, max_size=10), max_leaves=12,
    ).map(json.dumps)).map(lambda put: hash_of({**TEXTS, **put})),
))  # fmt: skip
def test_a_state_is_total(reply: Any) -> None:
    """(1) (2) Any reply: an account that can be written again, none yet, or a trouble; never an exception."""
    loaded = aw.decode_state(reply)
    assert (loaded.account is None) == (loaded.texts == {})
    assert loaded.account is None or not loaded.trouble
    if loaded.account is not None:
        a = loaded.account
        texts = aw.texts_of(a)
        assert aw.decode_state(hash_of(texts)).account == a
        assert all(math.isfinite(v) for v in (a.balance_usd, a.paid_in_usd, a.realised_usd, a.fees_usd))
    elif not loaded.trouble:
        assert reply == [] or (isinstance(reply, list) and not any(isinstance(part, bytes) for part in reply))


@given(accounts, accounts)
def test_saving_writes_what_changed_and_deletes_what_is_gone(before: aw.Account, after: aw.Account) -> None:
    """What stood there, with the fields set and deleted, is what is to stand there; nothing is written that stands."""
    stands = aw.texts_of(before)
    effect = aw.saving("k", stands, after)
    assert (effect.key, effect.ttl_s) == ("k", None)
    assert all(stands.get(name) != text for name, text in effect.fields.items())
    assert set(effect.delete) <= stands.keys()
    assert not set(effect.delete) & effect.fields.keys()
    made = {n: t for n, t in stands.items() if n not in effect.delete} | dict(effect.fields)
    assert made == aw.texts_of(after)
    assert list(effect.delete) == sorted(map(str, effect.delete))


def test_saving_the_same_writes_nothing_but_a_first_one_everything() -> None:
    """A new symbol, a changed one and one that is gone, by name."""
    assert aw.saving("k", {}, ACCOUNT).fields == TEXTS
    same = aw.saving("k", TEXTS, ACCOUNT)
    assert (same.fields, same.delete) == ({}, ())
    later = replace(ACCOUNT, revision=8, held={"ETHUSDT": Held(1.0, 2.0, 3, 4, 5, (6,))}, permits=Reconciled())
    effect = aw.saving("k", {**TEXTS, "other": "x"}, later)
    assert effect.fields == {"_rev": "8", "_counts": "[0,0,0,0,0,0,0]", "S:ETHUSDT": "[1.0,2.0,3,4,5,[6]]"}
    assert effect.delete == ("P:p1", "P:p2", f"S:{S}", "other")


# --- permits ---------------------------------------------------------------------------------------------------------

PARAMS = qa.GovernorParams(apply_mode="production")
LOOSE = qa.GovernorParams(
    apply_mode="production", symbol_cooldown_s=7, max_exec_per_5min=5, max_exec_per_hour=11,
    max_notional_per_trade_usd=1e30, max_total_notional_usd=1e30,
    max_reduce_notional_per_day_usd=1e30,
)  # fmt: skip
PLAN = qa.Plan("p1", S, "ENTRY", NOW, Side.BUY, 1.5, 100.0, 0.1)
SNAPSHOT = qa.Snapshot(
    NOW_US,
    totals=qa.fresh(qa.Totals(0.0, 0), NOW),
    symbols={
        S: qa.SymbolSnapshot(
            qa.Ledger(), qa.fresh(qa.Holding(0.0, 100.0), NOW), efficiency=qa.fresh(qa.Efficiency(0.2, 0.9), NOW)
        )
    },
)


def permit(plan: qa.Plan = PLAN, snapshot: qa.Snapshot = SNAPSHOT, params: qa.GovernorParams = PARAMS) -> qa.Permit:
    """A permit of the governor."""
    made = qa.decide(plan, snapshot, params)
    assert isinstance(made, qa.Permit), made
    return made


def held(qty: float | None, **more: Any) -> qa.Snapshot:
    """The snapshot with another position; None for one that is not known."""
    unreadable: qa.Reading[qa.Holding] = qa.Unusable(qa.Reason.MALFORMED)
    position = unreadable if qty is None else qa.fresh(qa.Holding(qty, 100.0), NOW)
    return replace(SNAPSHOT, symbols={S: replace(SNAPSHOT.symbols[S], position=position, **more)})


RAW = permit_json(permit(), PARAMS).encode()
SIGNED = permit_json(permit(), PARAMS, [NEW, OLD]).encode()
TOLD = json.loads(RAW)
TERMS = Terms(1.5, 150.0, Side.BUY, False, "production", False, True, 0.4444, 96, TOLD["decision_id"])
UNTIL = NOW_US + 61 * US
CLOSE_KNOWN = permit(qa.Plan("p1", S, FULL_CLOSE, NOW), held(-2.0))
CLOSE_UNKNOWN = permit(qa.Plan("p1", S, FULL_CLOSE, NOW, qty=0.01), held(None))


def read(raw: bytes, *keys: SigningKey) -> tuple[Terms, int] | None:
    """The terms of plan p1 of BTCUSDT."""
    return aw.terms_of(raw, "p1", S, keys)


def changed(**fields: Any) -> bytes:
    """The permit without a signature, with other fields; Ellipsis leaves one out."""
    told = {n: v for n, v in {**TOLD, **fields}.items() if v is not ... and n != "sig"}
    return json.dumps({**told, "sig": ""}, separators=(",", ":")).encode()


def test_a_permit_of_the_governor_is_accepted() -> None:
    """Signed and not, by either key; what it permits to the bit, and a life of 60 s and one of slack."""
    assert read(RAW) == (TERMS, UNTIL)
    assert read(changed()) == (TERMS, UNTIL)
    assert read(SIGNED, NEW, OLD) == (TERMS, UNTIL)
    assert read(SIGNED, OLD, NEW) == (TERMS, UNTIL)
    assert read(SIGNED) == (TERMS, UNTIL), "without a key nothing is verified"
    assert read(SIGNED, OLD) is None
    assert read(RAW, NEW) is None


def test_terms_of_closes_and_of_hints() -> None:
    """The side of a close where it is known; a hint only where the live lane made it."""
    known = read(permit_json(CLOSE_KNOWN, PARAMS).encode())
    assert known is not None
    assert known[0] == replace(
        TERMS, qty=2.0, notional_usd=200.0, reduce_only=True, decision_id=CLOSE_KNOWN.decision_id
    )
    unknown = read(permit_json(CLOSE_UNKNOWN, PARAMS).encode())
    assert unknown is not None
    assert (unknown[0].qty, unknown[0].notional_usd, unknown[0].side, unknown[0].reduce_only) == (0.01, 0.0, None, True)
    shadow = read(permit_json(permit(snapshot=held(0.0, eff_lane=qa.Lane.SHADOW)), PARAMS).encode())
    assert shadow is not None
    assert (shadow[0].downsizes, shadow[0].factor, shadow[0].extra_cooldown_s) == (False, 0.4444, 96)
    none = read(permit_json(permit(snapshot=held(0.0, efficiency=qa.missing())), PARAMS).encode())
    assert none is not None
    assert (none[0].downsizes, none[0].factor, none[0].extra_cooldown_s) == (False, 1.0, 0)
    dry = qa.GovernorParams()
    dried = read(permit_json(permit(params=dry), dry).encode())
    assert dried is not None
    assert (dried[0].apply_mode, dried[0].dry_run) == ("dry_run", True)


@given(
    st.floats(1e-6, 1e15), st.floats(1e-6, 1e15), st.floats(0.0, 1.0), st.floats(0.65, 1.0), st.sampled_from(Side),
    st.booleans(), st.one_of(st.none(), st.floats(-1e15, 1e15).filter(lambda q: abs(q) > 1e-6)),
)  # fmt: skip
def test_every_permit_of_the_governor_is_accepted(
    qty: float, price: float, score: float, confidence: float, side: Side, is_signed: bool, position: float | None
) -> None:
    """(3) Any open, any close: quantity, notional, side and lane are what was decided, the hint as it was written."""
    efficiency = qa.fresh(qa.Efficiency(score, confidence), NOW)
    if position is None:
        made = permit(replace(PLAN, qty=qty, price_usd=price, side=side), held(0.0, efficiency=efficiency), LOOSE)
    else:
        made = permit(qa.Plan("p1", S, FULL_CLOSE, NOW, qty=qty), held(position, efficiency=efficiency), LOOSE)
    keys = [NEW, OLD] if is_signed else []
    found = read(permit_json(made, LOOSE, keys).encode(), *keys)
    assert found is not None
    terms, until_us = found
    assert (terms.qty, terms.notional_usd, terms.side) == (made.computed_qty, made.computed_notional_usd, made.side)
    assert (terms.reduce_only, terms.dry_run, terms.apply_mode) == (position is not None, False, "production")
    assert (terms.factor, terms.extra_cooldown_s) == (round(made.hint.factor, 4), made.hint.extra_cooldown_sec)
    assert terms.downsizes == (made.hint.action is qa.HintAction.DOWNSIZE)
    assert terms.limits == (7, 5, 11)
    assert abs(until_us - UNTIL) <= 1
    filled = apply_permit(ApplyInputs(
        "p1", S, terms, NOW_US, until_us, held=Held(position or 0.0, 100.0), price_usd=qa.fresh(price, NOW)
    ), ApplyParams("production", 1000.0, apply_downsize=True))  # fmt: skip
    assert filled.fate is Fate.FILLED
    assert filled.trade is not None
    assert all(map(math.isfinite, (filled.trade.qty, filled.trade.fee_usd, filled.trade.balance_usd(0.0))))


FLAWS: dict[str, list[Any]] = {
    "plan_id": ["p2", "", None, 5, ["p1"], ...],
    "symbol": ["ETHUSDT", "btcusdt", None, 5, ...],
    "decision": ["HOLD", "execute", True, None, ...],
    "granted": [False, 1, "true", None, ...],
    "computed_qty": [0, 0.0, -1.5, math.nan, math.inf, -math.inf, True, "1.5", None, [1.5], 1e308, 10**400, 1.1e15],
    "computed_notional": [-0.01, math.nan, math.inf, True, "150.0", None, 10**400, ...],
    "created_at": [math.nan, math.inf, 1e305, True, "1769577495.1", None, ...],
    "side": ["LONG", "buy", 1, True, ["BUY"], ...],
    "reduce_only": [0, 1, "false", "", None, ...],
    "dry_run": [0, 1, "false", "", None, ...],
    "apply_mode": [None, 5, True, ["production"], ...],
    "decision_id": [None, 5, ["d"], "\ud800", ...],
    "eff_factor": ["0", "0.0", "-0.5", "1.0001", "2", "nan", "inf", "", "x", True, 1.0, 0.5, None, [0.5], ...],
    "extra_cooldown_sec": ["-1", "86401", "96.0", "1e2", "", "x", "nan", True, 96, 96.0, None, "9" * 5000, ...],
    "limits": [[86_401, 2, 3], [10**13, 2, 3], [60, 2], [60, 2, 3, 4], [], [60, 2, 3.0], [60, 2, True],
               [60, 2, None], [-60, 2, 3], ["60", 2, 3], [60, [2], 3], [10**18, 2, 3],
               [math.nan, 2, 3], "123", 5, None, {}, {"1": 2, "3": 4, "5": 6}, ...],
    "eff_action": [...],
    "eff_lane": [...],
}  # fmt: skip


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, values in FLAWS.items() for v in values], ids=repr)
def test_a_permit_with_a_flaw_is_refused(name: str, value: Any) -> None:
    """Any field that is another's, absent, out of its range or of another type."""
    assert read(changed(**{name: value})) is None


def test_the_edges_of_a_permits_fields() -> None:
    """What is just within its range counts."""
    for fields in (
        {"computed_qty": 5e-324}, {"computed_qty": 1e15}, {"computed_qty": 2}, {"computed_notional": 0},
        {"eff_factor": "1"}, {"eff_factor": "0.0001"}, {"extra_cooldown_sec": "0"}, {"extra_cooldown_sec": "86400"},
        {"side": ""}, {"side": None}, {"created_at": -5}, {"consumed": True}, {"limits": [0, 0, 0]},
    ):  # fmt: skip
        assert read(changed(**fields)) is not None, fields
    found = read(changed(created_at=5, side=""))
    assert found is not None
    assert (found[0].side, found[1]) == (None, 66 * US)
    found = read(changed(limits=[7, 5, 11]))
    assert found is not None
    assert found[0] == replace(TERMS, limits=(7, 5, 11))
    assert aw.terms_of(RAW, "p2", S, ()) is None
    assert aw.terms_of(RAW, "p1", "ETHUSDT", ()) is None


def test_a_permit_above_4_kb_is_refused() -> None:
    """4096 bytes are read, one more is not."""
    size = codec.VALUE_LIMIT_BYTES - len(changed(more=""))
    assert len(changed(more="x" * size)) == 4096
    assert read(changed(more="x" * size)) == (TERMS, UNTIL)
    assert read(changed(more="x" * (size + 1))) is None


def test_a_permit_with_any_bit_changed_is_refused() -> None:
    """(36) Every single bit, of fields and signature alike."""
    assert read(SIGNED, NEW, OLD) is not None
    for bit in range(8 * len(SIGNED)):
        flipped = bytearray(SIGNED)
        flipped[bit // 8] ^= 1 << bit % 8
        assert read(bytes(flipped), NEW, OLD) is None, bit


def test_a_permit_of_another_signature_is_refused() -> None:
    """Of another secret under the same name, of the same under another name, and signed fields of another permit."""
    assert read(permit_json(permit(), PARAMS, [SigningKey(NEW.kid, OLD.secret)]).encode(), NEW, OLD) is None
    assert read(permit_json(permit(), PARAMS, [SigningKey("x", NEW.secret)]).encode(), NEW, OLD) is None
    other = permit_json(permit(replace(PLAN, qty=1.0, content="")), PARAMS, [NEW])
    assert read(RAW[:-2] + other[-67:].encode(), NEW) is None


values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.just(10**400)),
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(st.text(max_size=2), inner, max_size=2)),
    max_leaves=4,
)


@given(st.one_of(
    hostile,
    hostile.map(lambda raw: b'{"granted":true,' + raw + b',"sig":""}'),
    st.dictionaries(st.sampled_from(sorted(TOLD)), values, max_size=3).map(lambda put: changed(**put)),
))  # fmt: skip
def test_terms_are_total(raw: bytes) -> None:
    """(1) (2) Any bytes: terms in their ranges that a record can carry, or None; none without its signature."""
    found = read(raw)
    assert read(raw, NEW, OLD) is None
    if found is not None:
        t, until_us = found
        assert 0.0 < t.qty <= codec.USD_LIMIT
        assert 0.0 <= t.notional_usd < math.inf
        assert 0.0 < t.factor <= 1.0
        assert 0 <= t.extra_cooldown_s <= aw.COOLDOWN_MAX_S
        assert isinstance(until_us, int)
        assert [type(n) for n in t.limits] == [int] * 3
        assert min(t.limits) >= 0
        record = qa.apply_fields(apply_permit(ApplyInputs("p1", S, t, NOW_US, until_us)), ApplyParams())
        assert all(text.encode() for text in record.values() if text)


# --- entries ---------------------------------------------------------------------------------------------------------

EVENT = {
    "event": "PERMIT", "plan_id": "p1", "symbol": S, "issued_us": str(NOW_US), "computed_qty": "1.5", "action": "ENTRY",
    "reason": "ok",
}  # fmt: skip
KNOWN = Known(S, 1.5, NOW_US + 60 * US, action="ENTRY")


def test_a_permits_event() -> None:
    """Id, symbol, quantity, action, and a life of 60 s from its issue."""
    assert aw.permit_event(entry(**EVENT)) == ("p1", KNOWN)
    assert aw.permit_event(entry(**{**EVENT, "issued_us": "9" * 18})) is not None
    assert aw.permit_event(entry(**{**EVENT, "issued_us": "0"})) == ("p1", replace(KNOWN, until_us=60 * US))
    assert aw.permit_event(entry(**{**EVENT, "action": "no word"})) == ("p1", replace(KNOWN, action=""))


def test_a_permit_whose_quantity_is_not_told_bounds_no_fill() -> None:
    """So it is with one that was put back after lost writes, which nobody may consume any more: it is refused."""
    unknown = replace(KNOWN, qty=codec.USD_LIMIT)
    for qty in ("", "x", "-1", "NaN", "inf", "1e16", "1_0"):
        assert aw.permit_event(entry(**{**EVENT, "computed_qty": qty})) == ("p1", unknown)
    assert aw.permit_event(entry(**{n: t for n, t in EVENT.items() if n != "computed_qty"})) == ("p1", unknown)
    assert aw.permit_event(entry(**{**EVENT, "computed_qty": "0"})) == ("p1", replace(KNOWN, qty=0.0))
    restored = aw.permit_event(entry(**{**EVENT, "reason": "restored"}))
    assert restored == ("p1", replace(unknown, stage=Stage.REFUSED))


NO_ENTRIES: list[Any] = [
    None, 5, b"x", [], [b"1-0"], [b"1-0", []], [b"1-0", None], [b"1-0", b"x"], [b"1-0", [b"event"]], [b"1-0", [], b"x"],
    [b"1-0", [5, 5]], Failed("WRONGTYPE"), [b"1-0", [b"f%d" % i for i in range(1000)]],
]  # fmt: skip
NO_EVENTS: list[Any] = [
    *NO_ENTRIES,
    *(entry(**{**EVENT, **put}) for put in (
        {"event": "BLOCK"}, {"event": "permit"}, {"event": ""}, {"plan_id": ""}, {"plan_id": "p 1"},
        {"plan_id": "x" * 65}, {"symbol": "btc"}, {"symbol": ""}, {"issued_us": ""}, {"issued_us": "-1"},
        {"issued_us": "1.0"}, {"issued_us": " 1"}, {"issued_us": "9" * 19}, {"issued_us": "１"},
    )),
    *(entry(**{n: t for n, t in EVENT.items() if n != gone}) for gone in ("event", "plan_id", "symbol", "issued_us")),
    entry(payload=json.dumps(EVENT)),
]  # fmt: skip


@pytest.mark.parametrize("told", NO_EVENTS, ids=lambda e: repr(e)[:60])
def test_what_is_no_permits_event_is_none(told: Any) -> None:
    """Other events, what no permit could have, and a nested one: the governor writes them flat."""
    assert aw.permit_event(told) is None


@pytest.mark.parametrize(
    ("fields", "plan_id"),
    [
        ({"plan_id": "p1", "consumed": "1"}, "p1"),
        ({"plan_id": "p1", "consumed": "true"}, "p1"),
        ({"plan_id": "p1", "consumed": "True", "executed": "false"}, "p1"),
        ({"plan_id": "p1", "executed": "true"}, "p1"),
        ({"plan_id": "p1", "executed": "1"}, "p1"),
        ({"plan_id": "p1", "consumed": "0", "executed": "true"}, None),
        ({"plan_id": "p1", "consumed": "", "executed": "true"}, None),
        ({"plan_id": "p1", "executed": "false"}, None),
        ({"plan_id": "p1", "executed": "yes"}, None),
        ({"plan_id": "p1"}, None),
        ({"plan_id": "p 1", "consumed": "1"}, None),
        ({"consumed": "1"}, None),
        ({"payload": '{"plan_id":"p1","consumed":"1"}'}, None),
    ],
    ids=str,
)
def test_who_says_that_a_permit_is_used_up(fields: dict[str, str], plan_id: str | None) -> None:
    """``consumed``, and of programs that do not tell it ``executed``."""
    assert aw.consumed_by(entry(**fields)) == plan_id


FILL = {"symbol": S, "plan_id": "p1", "filled_qty": "1.5"}
UNREAD = None


@pytest.mark.parametrize(
    ("fields", "fill"),
    [
        (FILL, SeenFill("p1", S, 1.5)),
        ({"payload": json.dumps(FILL)}, SeenFill("p1", S, 1.5)),
        ({"payload": json.dumps({**FILL, "filled_qty": 1.5}), "symbol": "ETHUSDT"}, SeenFill("p1", S, 1.5)),
        ({"symbol": S}, SeenFill("", S, 0.0)),
        ({**FILL, "filled_qty": ""}, SeenFill("", S, 0.0)),
        ({"symbol": S, "plan_id": "p1"}, SeenFill("", S, 0.0)),
        ({**FILL, "filled_qty": "0"}, SeenFill("p1", S, 0.0)),
        ({**FILL, "plan_id": "p 1"}, SeenFill("", S, 1.5)),
        ({**FILL, "filled_qty": "x"}, SeenFill("", S, 0.0)),
        ({**FILL, "filled_qty": "-1.5"}, SeenFill("", S, 0.0)),
        ({**FILL, "filled_qty": "1e400"}, SeenFill("", S, 0.0)),
        ({"payload": json.dumps({"symbol": S, "plan_id": [5], "filled_qty": None})}, SeenFill("", S, 0.0)),
        ({**FILL, "symbol": "btc"}, UNREAD),
        ({"plan_id": "p1", "filled_qty": "1"}, UNREAD),
        ({"payload": "{"}, UNREAD),
        ({"payload": "[]", **FILL}, UNREAD),
        ({"payload": '{"symbol":["BTCUSDT"]}'}, UNREAD),
        ({"payload": "[" * 4000}, UNREAD),
        ({"payload": json.dumps({**FILL, "more": "x" * 4096})}, UNREAD),
    ],
    ids=lambda x: repr(x)[:60],
)
def test_a_fill_of_the_execution_stream(fields: dict[str, str], fill: SeenFill | None) -> None:
    """Flat or nested; one without an id or a quantity is a fill all the same, of no permit; without a symbol none."""
    assert aw.fill_of(entry(**fields)) == fill


@pytest.mark.parametrize(
    ("fields", "usd"),
    [({"usd": "5000.5"}, 5000.5), ({"usd": "-1e3"}, -1000.0), ({"usd": "0"}, 0.0), ({"usd": "1e15"}, 1e15),
     ({"usd": "1.1e15"}, 0.0), ({"usd": "NaN"}, 0.0), ({"usd": ""}, 0.0), ({"usd": "1,5"}, 0.0), ({"amount": "5"}, 0.0),
     ({"payload": '{"usd":5}'}, 0.0)],
    ids=str,
)  # fmt: skip
def test_a_transfer(fields: dict[str, str], usd: float) -> None:
    """What is paid in, or out below 0; what cannot be read pays nothing."""
    assert aw.transfer_usd(entry(**fields)) == usd


@pytest.mark.parametrize("told", NO_ENTRIES, ids=lambda e: repr(e)[:60])
def test_what_is_no_entry_tells_of_nothing(told: Any) -> None:
    """Of no consumption, no money and no fill."""
    assert (aw.consumed_by(told), aw.fill_of(told), aw.transfer_usd(told)) == (None, UNREAD, 0.0)


def test_ids_of_entries() -> None:
    """In order; what has none is passed over."""
    told: list[Any] = [entry(), [b"2-1", None], None, [], [5, []], b"x", [b"\xff", []], [b"soon", []], [b"3-0"]]
    assert aw.ids_of(told) == ["1769577495000-0", "2-1", "3-0"]


fields = st.lists(st.tuples(st.one_of(st.sampled_from(
    [b"event", b"plan_id", b"symbol", b"issued_us", b"computed_qty", b"action", b"reason", b"consumed", b"executed",
     b"filled_qty", b"payload", b"usd"]), hostile), st.one_of(st.sampled_from(
    [b"PERMIT", b"p1", b"BTCUSDT", b"1769577495123456", b"1.5", b"1", b"true", b"restored",
     json.dumps(FILL).encode()]), hostile)), max_size=8)  # fmt: skip
entries = st.one_of(
    replies, fields.map(lambda pairs: [b"1-0", [x for pair in pairs for x in pair]]),
    fields.map(lambda pairs: [b"1-0", [x for pair in [*((n.encode(), t.encode()) for n, t in EVENT.items()), *pairs]
                                       for x in pair]]),
)  # fmt: skip


@given(entries)
def test_entries_are_total(told: Any) -> None:
    """(1) (2) Any reply: values in their ranges that a state can keep, or nothing; never an exception."""
    permit_told, used, fill, usd_in = (
        aw.permit_event(told),
        aw.consumed_by(told),
        aw.fill_of(told),
        aw.transfer_usd(told),
    )
    if permit_told is not None:
        plan_id, one = permit_told
        assert codec.word(plan_id.encode()) == plan_id
        kept = aw.decode_state(hash_of({**TEXTS, f"P:{plan_id}": json.loads(compact(aw.texts_of(replace(
            ACCOUNT, permits=Reconciled({plan_id: one}, Counts())))[f"P:{plan_id}"]))}))  # fmt: skip
        assert kept.account is not None
        assert kept.account.permits.permits[plan_id] == one
    assert used is None or codec.word(used.encode()) == used
    if fill is not None:
        assert codec.symbol(fill.symbol.encode()) == fill.symbol
        assert 0.0 <= fill.qty <= codec.USD_LIMIT
        assert fill.plan_id == "" or codec.word(fill.plan_id.encode()) == fill.plan_id
    assert abs(usd_in) <= codec.USD_LIMIT
    assert all(isinstance(i, str) for i in aw.ids_of([told]))
