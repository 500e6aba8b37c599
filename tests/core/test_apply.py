"""What becomes of a permit: every fate with every reason, by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product
from typing import Any

import pytest

import quantum_alloc.core as qa
from quantum_alloc.core.account import FLAT, Held
from quantum_alloc.core.apply import ApplyInputs, ApplyParams, ApplyReason, Fate, Terms, apply_permit, within
from quantum_alloc.core.governor_inputs import Kill
from quantum_alloc.core.limits import US
from quantum_alloc.core.plan import Side
from quantum_alloc.core.reading import Fresh, Reading, Reason, Unusable, grade
from quantum_alloc.core.record_apply import applied, apply_fields, apply_inputs, apply_params

NOW_US = 1_769_577_495_123_456
NOW = NOW_US / US
PARAMS = ApplyParams("production")
HINTED = ApplyParams("production", apply_downsize=True)
OPEN = Terms(2.0, 200.0, Side.BUY, False, "production", False, True, 0.5, 90, "d" * 16)
CLOSE = Terms(2.0, 200.0, None, True, "production", False, False, 1.0, 0, "d" * 16)
BEFORE = NOW_US - 4000 * US
LONG, SHORT = Held(3.0, 90.0, 5, 7, BEFORE, (BEFORE,)), Held(-3.0, 110.0, 5, 7, BEFORE, (BEFORE,))
PRICE: Reading[float] = Fresh(100.0, NOW)
READY = ApplyInputs("p1", "BTCUSDT", OPEN, NOW_US, NOW_US + 30 * US, price_usd=PRICE)
CLOSING = replace(READY, terms=CLOSE, held=LONG)
UNPRICED: list[Reading[float]] = [
    Unusable(Reason.MISSING), Unusable(Reason.MALFORMED), Unusable(Reason.STORE), grade(100.0, NOW - 61, NOW, 60),
    grade(100.0, NOW + 6, NOW, 60),
]  # fmt: skip


def fate(inputs: ApplyInputs, params: ApplyParams = PARAMS) -> tuple[Fate, ApplyReason]:
    """Fate and reason, after checking that what is not filled changes nothing and that the fate can be made again."""
    made = apply_permit(inputs, params)
    assert made.inputs is inputs
    assert made.is_consumed is (made.fate in (Fate.FILLED, Fate.VOID))
    if made.fate is not Fate.FILLED:
        assert (made.trade, made.factor, made.held) == (None, 1.0, inputs.held)
    else:
        assert made.trade is not None
        assert (made.trade.before, made.trade.after) == (inputs.held, made.held)
    record = apply_fields(made, params)
    assert qa.differences(record) == {}
    assert qa.recompute(record) == made
    return made.fate, made.reason


def opened(*ages_s: float) -> Held:
    """Held after opens of some ages, seconds, and no other fill."""
    times = tuple(NOW_US - round(age * US) for age in ages_s)
    return replace(LONG, last_fill_us=times[-1], opens_us=times)


# --- fates -----------------------------------------------------------------------------------------------------------

FATES: dict[str, tuple[ApplyInputs, ApplyParams, Fate, ApplyReason]] = {
    "an open": (READY, PARAMS, Fate.FILLED, ApplyReason.OK),
    "a close": (CLOSING, PARAMS, Fate.FILLED, ApplyReason.OK),
    "a close of a short": (replace(CLOSING, held=SHORT), PARAMS, Fate.FILLED, ApplyReason.OK),
    "a close with its side": (
        replace(CLOSING, terms=replace(CLOSE, side=Side.SELL)), PARAMS, Fate.FILLED, ApplyReason.OK,
    ),
    "the last microsecond": (replace(READY, until_us=NOW_US + 1), PARAMS, Fate.FILLED, ApplyReason.OK),
    "its time is over": (replace(READY, until_us=NOW_US), PARAMS, Fate.EXPIRED, ApplyReason.PERMIT_EXPIRED),
    "long over, and gone": (
        replace(READY, until_us=0, is_there=False, terms=None, kill=Kill.HALT), PARAMS,
        Fate.EXPIRED, ApplyReason.PERMIT_EXPIRED,
    ),
    "a close whose time is over": (replace(CLOSING, until_us=NOW_US), PARAMS, Fate.EXPIRED, ApplyReason.PERMIT_EXPIRED),
    "gone": (replace(READY, is_there=False, terms=None), PARAMS, Fate.REFUSED, ApplyReason.PERMIT_GONE),
    "unreadable": (replace(READY, terms=None), PARAMS, Fate.REFUSED, ApplyReason.BAD_PERMIT),
    "unreadable under HALT": (
        replace(READY, terms=None, kill=Kill.HALT), PARAMS, Fate.REFUSED, ApplyReason.BAD_PERMIT,
    ),
    "an open without a side": (
        replace(READY, terms=replace(OPEN, side=None)), PARAMS, Fate.REFUSED, ApplyReason.BAD_PERMIT,
    ),
    "an open of nothing": (
        replace(READY, terms=replace(OPEN, notional_usd=0.0)), PARAMS, Fate.REFUSED, ApplyReason.BAD_PERMIT,
    ),
    "another mode": (
        replace(READY, terms=replace(OPEN, apply_mode="testnet")), PARAMS, Fate.REFUSED, ApplyReason.MODE_MISMATCH,
    ),
    "another mode under HALT": (
        replace(READY, terms=replace(OPEN, apply_mode="testnet"), kill=Kill.HALT), PARAMS,
        Fate.REFUSED, ApplyReason.MODE_MISMATCH,
    ),
    "HALT": (replace(READY, kill=Kill.HALT), PARAMS, Fate.WAITS, ApplyReason.KILL_SWITCH),
    "HALT and a close": (replace(CLOSING, kill=Kill.HALT), PARAMS, Fate.WAITS, ApplyReason.KILL_SWITCH),
    "HALT and a dry run": (
        replace(READY, terms=replace(OPEN, apply_mode="dry_run", dry_run=True), kill=Kill.HALT), ApplyParams(),
        Fate.WAITS, ApplyReason.KILL_SWITCH,
    ),
    "REDUCE_ONLY and an open": (
        replace(READY, kill=Kill.REDUCE_ONLY), PARAMS, Fate.WAITS, ApplyReason.REDUCE_ONLY,
    ),
    "REDUCE_ONLY and an open of a dry run": (
        replace(READY, terms=replace(OPEN, apply_mode="dry_run", dry_run=True), kill=Kill.REDUCE_ONLY), ApplyParams(),
        Fate.WAITS, ApplyReason.REDUCE_ONLY,
    ),
    "REDUCE_ONLY and a close": (replace(CLOSING, kill=Kill.REDUCE_ONLY), PARAMS, Fate.FILLED, ApplyReason.OK),
    "a dry run": (
        replace(READY, terms=replace(OPEN, apply_mode="dry_run", dry_run=True)), ApplyParams(),
        Fate.VOID, ApplyReason.DRY_RUN,
    ),
    "a dry run without a price": (
        replace(READY, terms=replace(OPEN, apply_mode="dry_run", dry_run=True), price_usd=UNPRICED[0]), ApplyParams(),
        Fate.VOID, ApplyReason.DRY_RUN,
    ),
    "a close of nothing": (replace(CLOSING, held=FLAT), PARAMS, Fate.VOID, ApplyReason.NOTHING_TO_CLOSE),
    "a close that would add to a long": (
        replace(CLOSING, terms=replace(CLOSE, side=Side.BUY)), PARAMS, Fate.VOID, ApplyReason.WOULD_ADD,
    ),
    "a close that would add to a short": (
        replace(CLOSING, terms=replace(CLOSE, side=Side.SELL), held=SHORT), PARAMS, Fate.VOID, ApplyReason.WOULD_ADD,
    ),
    "in the extra cooldown": (
        replace(READY, held=replace(LONG, next_open_us=NOW_US + 1)), PARAMS, Fate.WAITS, ApplyReason.EXTRA_COOLDOWN,
    ),
    "at the end of the extra cooldown": (
        replace(READY, held=replace(LONG, next_open_us=NOW_US)), PARAMS, Fate.FILLED, ApplyReason.OK,
    ),
    "a close in the extra cooldown": (
        replace(CLOSING, held=replace(LONG, next_open_us=NOW_US + 1)), PARAMS, Fate.FILLED, ApplyReason.OK,
    ),
    "in the cooldown": (
        replace(READY, held=opened(59.999999)), PARAMS, Fate.WAITS, ApplyReason.COOLDOWN,
    ),
    "in the cooldown after a close, and flat": (
        replace(READY, held=Held(last_fill_us=NOW_US - 60 * US + 1)), PARAMS, Fate.WAITS, ApplyReason.COOLDOWN,
    ),
    "at the end of the cooldown": (
        replace(READY, held=opened(60)), PARAMS, Fate.FILLED, ApplyReason.OK,
    ),
    "no cooldown": (
        replace(READY, terms=replace(OPEN, limits=(0, 2, 3)), held=opened(0)), PARAMS, Fate.FILLED, ApplyReason.OK,
    ),
    "a cooldown of a fill that is still to come": (
        replace(READY, held=opened(-5)), PARAMS, Fate.WAITS, ApplyReason.COOLDOWN,
    ),
    "one open in five minutes": (replace(READY, held=opened(61)), PARAMS, Fate.FILLED, ApplyReason.OK),
    "two opens in five minutes": (
        replace(READY, held=opened(299.999999, 61)), PARAMS, Fate.WAITS, ApplyReason.BURST,
    ),
    "two opens, one five minutes ago": (replace(READY, held=opened(300, 61)), PARAMS, Fate.FILLED, ApplyReason.OK),
    "two opens, of three in five minutes": (
        replace(READY, terms=replace(OPEN, limits=(60, 3, 3)), held=opened(299, 61)), PARAMS,
        Fate.FILLED, ApplyReason.OK,
    ),
    "two opens in five minutes, one still to come": (
        replace(READY, held=replace(opened(299, -5), last_fill_us=0)), PARAMS,
        Fate.WAITS, ApplyReason.BURST,
    ),
    "no open in five minutes": (
        replace(READY, terms=replace(OPEN, limits=(60, 0, 3))), PARAMS, Fate.WAITS, ApplyReason.BURST,
    ),
    "two opens in an hour": (replace(READY, held=opened(3599, 301)), PARAMS, Fate.FILLED, ApplyReason.OK),
    "three opens in an hour": (
        replace(READY, held=opened(3599.999999, 900, 301)), PARAMS, Fate.WAITS, ApplyReason.HOURLY,
    ),
    "three opens, one an hour ago": (
        replace(READY, held=opened(3600, 900, 301)), PARAMS, Fate.FILLED, ApplyReason.OK,
    ),
    "no open in an hour": (
        replace(READY, terms=replace(OPEN, limits=(60, 2, 0))), PARAMS, Fate.WAITS, ApplyReason.HOURLY,
    ),
    "the hour is told before the five minutes": (
        replace(READY, held=opened(200, 150, 100)), PARAMS, Fate.WAITS, ApplyReason.HOURLY,
    ),
    "the cooldown is told before the hour": (
        replace(READY, held=opened(200, 150, 59)), PARAMS, Fate.WAITS, ApplyReason.COOLDOWN,
    ),
    "the extra cooldown is told before the cooldown": (
        replace(READY, held=replace(opened(200, 150, 59), next_open_us=NOW_US + 1)), PARAMS,
        Fate.WAITS, ApplyReason.EXTRA_COOLDOWN,
    ),
    "an open in the cooldown without a price": (
        replace(READY, held=opened(59), price_usd=UNPRICED[0]), PARAMS, Fate.WAITS, ApplyReason.PRICE_UNKNOWN,
    ),
    "an open without a side in the cooldown": (
        replace(READY, terms=replace(OPEN, side=None), held=opened(59)), PARAMS, Fate.WAITS, ApplyReason.COOLDOWN,
    ),
    **{
        f"a close {what}": (replace(CLOSING, terms=replace(CLOSE, limits=of), held=held), PARAMS, Fate.FILLED,
                            ApplyReason.OK)
        for what, of, held in (
            ("in the cooldown", (60, 2, 3), opened(0)), ("after two opens", (60, 2, 3), opened(299, 61)),
            ("after three opens", (60, 2, 3), opened(3599, 900, 301)),
            ("where nothing may be opened", (60, 0, 0), LONG),
        )
    },
    **{
        f"{what}, its price {price.state}": (
            replace(ready, price_usd=price), PARAMS, Fate.WAITS, ApplyReason.PRICE_UNKNOWN,
        )
        for what, ready in (("an open", READY), ("a close", CLOSING), ("nothing to close", replace(CLOSING, held=FLAT)))
        for price in UNPRICED
    },
}  # fmt: skip


@pytest.mark.parametrize("name", FATES)
def test_what_becomes_of_a_permit(name: str) -> None:
    """Fate and reason; only a fill changes what is held; the record makes it again bit for bit."""
    inputs, params, *wanted = FATES[name]
    assert [*fate(inputs, params)] == wanted


def test_every_fate_and_reason_has_a_case() -> None:
    """None is left out above."""
    assert {f for _, _, f, _ in FATES.values()} == set(Fate)
    assert {r for *_, r in FATES.values()} == set(ApplyReason)


MODES = ("dry_run", "testnet", "production")


@pytest.mark.parametrize(("ours", "theirs", "is_dry", "reduce_only"), list(product(MODES, MODES, *[(False, True)] * 2)))
def test_a_mode_that_is_not_ours_is_refused(ours: str, theirs: str, is_dry: bool, reduce_only: bool) -> None:
    """Whatever the pair, for opens and closes; so is a permit that contradicts itself about being dry."""
    base = CLOSING if reduce_only else READY
    terms = replace(base.terms or OPEN, apply_mode=theirs, dry_run=is_dry)
    found = fate(replace(base, terms=terms), ApplyParams(ours))
    if theirs != ours or is_dry != (ours == "dry_run"):
        assert found == (Fate.REFUSED, ApplyReason.MODE_MISMATCH)
    else:
        assert found == ((Fate.VOID, ApplyReason.DRY_RUN) if is_dry else (Fate.FILLED, ApplyReason.OK))


# --- fills -----------------------------------------------------------------------------------------------------------


def filled(inputs: ApplyInputs, params: ApplyParams = PARAMS) -> Any:
    """What was filled."""
    assert fate(inputs, params) == (Fate.FILLED, ApplyReason.OK)
    return apply_permit(inputs, params)


def test_an_open_is_filled_at_the_market() -> None:
    """Quantity and side of the permit, the price of the market, the fee of the parameters."""
    made = filled(READY)
    assert made.trade.qty == 2.0
    assert made.trade.price_usd == 100.0
    assert made.trade.fee_usd == 0.08
    assert made.trade.pnl_usd is None
    assert made.held == Held(2.0, 100.0, NOW_US, 0, NOW_US, (NOW_US,))
    sold = filled(replace(READY, terms=replace(OPEN, side=Side.SELL)))
    assert sold.held == Held(-2.0, 100.0, NOW_US, 0, NOW_US, (NOW_US,))
    assert filled(READY, ApplyParams("production", fee_bps=0.0)).trade.fee_usd == 0.0


def test_a_market_that_has_risen_buys_less() -> None:
    """The notional of the permit is the most that is paid, to the bit; one that has fallen buys no more."""
    risen = filled(replace(READY, price_usd=Fresh(160.0, NOW)))
    assert risen.trade.qty == 1.25
    assert filled(replace(READY, price_usd=Fresh(50.0, NOW))).trade.qty == 2.0
    odd = filled(replace(READY, price_usd=Fresh(100.00000000000001, NOW)))
    assert odd.trade.qty * 100.00000000000001 <= 200.0


def test_a_close_takes_no_more_than_there_is() -> None:
    """The smaller of permit and position, whatever the market; the entry of what is left stays."""
    part = filled(replace(CLOSING, price_usd=Fresh(500.0, NOW)))
    assert (part.trade.qty, part.trade.pnl_usd, part.held) == (-2.0, 820.0, replace(LONG, qty=1.0, last_fill_us=NOW_US))
    whole = filled(replace(CLOSING, terms=replace(CLOSE, qty=50.0)))
    assert (whole.trade.qty, whole.trade.pnl_usd, whole.held) == (-3.0, 30.0, Held(0.0, 0.0, 0, 7, NOW_US, (BEFORE,)))
    cover = filled(replace(CLOSING, held=SHORT, terms=replace(CLOSE, side=Side.BUY, qty=3.0)))
    assert (cover.trade.qty, cover.trade.pnl_usd, cover.held) == (3.0, 30.0, Held(0.0, 0.0, 0, 7, NOW_US, (BEFORE,)))


def test_a_fill_is_remembered_for_the_limits() -> None:
    """The last of any kind, and the opens of the last hour, this one with them; a close keeps them as they are."""
    hour = NOW_US - 3600 * US
    times = (hour - 1, hour, hour + 1, NOW_US - 301 * US)
    held = replace(LONG, last_fill_us=times[-1], opens_us=times)
    made = filled(replace(READY, held=held))
    assert (made.held.last_fill_us, made.held.opens_us) == (NOW_US, (*times[2:], NOW_US))
    flipped = filled(replace(READY, terms=replace(OPEN, qty=5.0, notional_usd=500.0, side=Side.SELL), held=held))
    assert (flipped.held.qty, flipped.held.opens_us) == (-2.0, (*times[2:], NOW_US))
    closed = filled(replace(CLOSING, held=held))
    assert (closed.held.last_fill_us, closed.held.opens_us) == (NOW_US, times)
    void = apply_permit(replace(CLOSING, held=replace(held, qty=0.0)), PARAMS)
    assert void.held == replace(held, qty=0.0), "without a fill nothing is remembered"
    ahead = replace(held, opens_us=(NOW_US + 5 * US,), last_fill_us=0)
    assert filled(replace(READY, held=ahead)).held.opens_us == (NOW_US + 5 * US, NOW_US)


def test_a_hint_is_applied_to_an_open_where_that_is_on() -> None:
    """Quantity x factor, and the symbol's next open after cooldown + extra cooldown; else nothing of it."""
    made = filled(READY, HINTED)
    assert (made.factor, made.trade.qty, made.held.next_open_us) == (0.5, 1.0, NOW_US + 150 * US)
    assert made.trade.after == made.held
    later = replace(READY, terms=replace(OPEN, limits=(5, 2, 3)))
    assert filled(later, HINTED).held.next_open_us == NOW_US + 95 * US
    at_once = replace(READY, terms=replace(OPEN, extra_cooldown_s=0, limits=(0, 2, 3)))
    assert filled(at_once, HINTED).held.next_open_us == NOW_US
    off = filled(replace(READY, held=replace(LONG, next_open_us=7)), PARAMS)
    assert (off.factor, off.trade.qty, off.held.next_open_us) == (1.0, 2.0, 7)
    none = filled(replace(READY, terms=replace(OPEN, downsizes=False)), HINTED)
    assert (none.factor, none.trade.qty, none.held.next_open_us) == (1.0, 2.0, 0)
    close = filled(replace(CLOSING, terms=replace(CLOSE, downsizes=True, factor=0.5, extra_cooldown_s=90)), HINTED)
    assert (close.factor, close.trade.qty, close.held.next_open_us) == (1.0, -2.0, 7)


def test_the_notional_counts_after_the_hint() -> None:
    """Half the quantity at three times the price: what the notional allows."""
    made = filled(replace(READY, price_usd=Fresh(320.0, NOW)), HINTED)
    assert (made.factor, made.trade.qty) == (0.5, 0.625)
    bound = filled(replace(READY, price_usd=Fresh(200.0, NOW)), HINTED)
    assert bound.trade.qty == 1.0


@pytest.mark.parametrize(
    ("qty", "price", "usd", "most"),
    [(2.0, 100.0, 200.0, 2.0), (2.0, 100.0, 150.0, 1.5), (2.0, 100.0, 0.0, 0.0), (1.0, 3.0, 1.0, 1 / 3),
     (1e308, 1e308, 1e15, 1e-293), (1.0, 1e15, 5e-324, 0.0), (5e-324, 1.0, 5e-324, 5e-324)],
)  # fmt: skip
def test_the_greatest_quantity_within_an_amount(qty: float, price: float, usd: float, most: float) -> None:
    """At most the quantity, and what it costs is at most the amount."""
    found = within(qty, price, usd)
    assert found == pytest.approx(most, rel=1e-15)
    assert found <= qty
    assert found * price <= usd


def test_rounding_never_costs_more() -> None:
    """A quotient that has been rounded up is taken down by a bit."""
    assert 49.0 * (1.0 / 49.0) < 1.0
    price, usd = 0.7, 0.1
    up = [(p, u) for p, u in product((0.7, 1.1, 3.3, 0.9, 1.3), (0.1, 0.3, 1.7, 9.1, 2.9)) if (u / p) * p > u]
    assert up, "some quotient is rounded up"
    for price, usd in up:
        found = within(1e9, price, usd)
        assert found < usd / price
        assert found * price <= usd


def test_a_market_that_has_not_moved_gives_the_whole_quantity() -> None:
    """What costs exactly the amount is not worked out again: a quotient would lose a bit of it."""
    lost = [(q, p) for q, p in product((0.1, 0.3, 0.7, 1.1, 2.9), (3.0, 0.7, 91.3, 107.7)) if (q * p) / p < q]
    assert lost, "some quotient is rounded down"
    for qty, price in lost:
        assert within(qty, price, qty * price) == qty


CONTRADICTIONS: dict[str, dict[str, Any]] = {
    "apply_mode": {"apply_mode": "Production"},
    "fee_bps must be": {"fee_bps": -0.5},
    "fee_bps must": {"fee_bps": 1000.5},
    "fee_bps": {"fee_bps": float("nan")},
    "market_stale_s": {"market_stale_s": 0},
}


@pytest.mark.parametrize("told", CONTRADICTIONS)
def test_parameters_refuse_contradictions(told: str) -> None:
    """Each is named; the edges are allowed."""
    with pytest.raises(ValueError, match=told):
        ApplyParams(**CONTRADICTIONS[told])
    assert ApplyParams("testnet", 0.0, market_stale_s=1).fee_bps == 0.0
    assert ApplyParams("dry_run", 1000.0).fee_bps == 1000.0


# --- records ---------------------------------------------------------------------------------------------------------


def test_a_record_of_a_fill() -> None:
    """Every field as text that reads back bit for bit."""
    made = apply_permit(replace(CLOSING, terms=replace(CLOSE, qty=0.1)), PARAMS)
    record = apply_fields(made, PARAMS)
    assert record == {
        "plan_id": "p1", "symbol": "BTCUSDT", "decision": "EXECUTE", "executed": "true", "error": "", "consumed": "1",
        "fate": "filled", "side": "SELL", "filled_qty": "0.1", "price": "100.0", "fee_usd": "0.004", "pnl_usd": "1.0",
        "factor": "1.0", "position_after": "2.9", "entry_after": "90.0",
        "held_after": f"[2.9,90.0,5,7,{NOW_US},[{BEFORE}]]",
        "decision_id": "d" * 16, "now": "1769577495.123456", "inputs": record["inputs"], "rules": "apply_v1",
        "params_hash": qa.config_hash(PARAMS), "params": '{"apply_mode":"production"}',
    }  # fmt: skip
    assert json.loads(record["inputs"]) == {
        "now_us": NOW_US, "until_us": NOW_US + 30 * US, "kill": "OFF",
        "terms": [0.1, 200.0, None, True, "production", False, False, 1.0, 0, "d" * 16, [60, 2, 3]],
        "held": [3.0, 90.0, 5, 7, BEFORE, [BEFORE]], "price": ["ok", NOW, 100.0], "there": True,
    }  # fmt: skip
    assert (apply_inputs(record), apply_params(record), applied(record)) == (made.inputs, PARAMS, made)


def test_a_record_of_no_fill() -> None:
    """Its reason as error, numbers of a fill empty, and what is held as it was."""
    opened = apply_fields(apply_permit(READY, PARAMS), PARAMS)
    assert (opened["side"], opened["pnl_usd"], opened["position_after"]) == ("BUY", "", "2.0")
    record = apply_fields(apply_permit(replace(CLOSING, terms=None), PARAMS), PARAMS)
    wanted = {
        "executed": "false", "error": "bad_permit", "consumed": "0", "fate": "refused", "side": "", "filled_qty": "",
        "price": "", "fee_usd": "", "pnl_usd": "", "factor": "1.0", "position_after": "3.0", "entry_after": "90.0",
        "held_after": f"[3.0,90.0,5,7,{BEFORE},[{BEFORE}]]", "decision_id": "",
    }  # fmt: skip
    assert {n: record[n] for n in wanted} == wanted
    void = apply_fields(apply_permit(replace(CLOSING, held=FLAT), PARAMS), PARAMS)
    assert (void["executed"], void["error"], void["consumed"]) == ("false", "nothing_to_close", "1")


def test_a_record_of_other_defaults_is_refused() -> None:
    """The hash names all parameters, those that were not written included."""
    record = apply_fields(apply_permit(READY, HINTED), HINTED)
    with pytest.raises(ValueError, match="defaults of ApplyParams"):
        applied({**record, "params_hash": "0" * 12})
    with pytest.raises(ValueError, match="defaults of ApplyParams"):
        applied({**record, "params": "{}"})


def told(**changed: Any) -> dict[str, str]:
    """A record whose inputs differ."""
    record = apply_fields(apply_permit(READY, PARAMS), PARAMS)
    return {**record, "inputs": json.dumps({**json.loads(record["inputs"]), **changed})}


DEEP = "[" * 100_000
TERMS = json.loads(told()["inputs"])["terms"]
GARBAGE: dict[str, dict[str, str]] = {
    **{f"no {gone}": {n: t for n, t in told().items() if n != gone} for gone in ("inputs", "params", "rules")},
    **{f"inputs {text[:9]!r}": {**told(), "inputs": text} for text in ("", "x", "[]", "null", "5", "{}", DEEP)},
    **{f"params {text[:9]!r}": {**told(), "params": text} for text in ("", "x", "[]", '{"x":1}', DEEP)},
    "no clock": told(now_us=None),
    "a clock without end": told(now_us=10**400),
    "a kill switch of nobody": told(kill="off"),
    "a price without a value": told(price=["ok", NOW, None]),
    "a price without a time": told(price=["ok", None, 100.0]),
    "a price of no state": told(price=["fine", NOW, 100.0]),
    "a malformed price with a value": told(price=["malformed", NOW, 100.0]),
    "a price of two": told(price=["ok", NOW]),
    "a price of no time": told(price=["ok", float("inf"), 100.0]),
    "a price that is text": told(price=["ok", NOW, "100"]),
    "held of four": told(held=[1.0, 2.0, 3, 4]),
    "held of seven": told(held=[1.0, 2.0, 3, 4, 5, [], 6]),
    "held that is text": told(held=["x", 1.0, 2, 3, 4, []]),
    "a last fill that is text": told(held=[1.0, 2.0, 3, 4, "5", []]),
    "no list of opens": told(held=[1.0, 2.0, 3, 4, 5, 6]),
    "opens that are text": told(held=[1.0, 2.0, 3, 4, 5, ["6"]]),
    "terms without limits": told(terms=TERMS[:-1]),
    "no limits": told(terms=[*TERMS[:-1], None]),
    "limits of two": told(terms=[*TERMS[:-1], [60, 2]]),
    "limits that are text": told(terms=[*TERMS[:-1], [60, "2", "3"]]),
    "a cooldown that is text": told(terms=[*TERMS[:-1], ["60", 2, 3]], held=[1.0, 2.0, 3, 4, 5, []]),
    "terms of two": told(terms=[1.0, 2.0]),
    "terms of another side": told(terms=[*TERMS[:2], "LONG", *TERMS[3:]]),
    "a quantity without end": told(terms=[10**400, *TERMS[1:]]),
    "less than nothing at no price": told(terms=[1.0, -1.0, *TERMS[2:]], price=["ok", NOW, 0.0]),
    "other rules": {**told(), "rules": "apply_v0"},
    "of a cycle": {**told(), "cycle_id": "c"},
}  # fmt: skip


@pytest.mark.parametrize("name", GARBAGE)
def test_what_is_no_record_is_refused(name: str) -> None:
    """ValueError, KeyError or TypeError, and nothing else."""
    with pytest.raises((ValueError, KeyError, TypeError)):
        qa.recompute(GARBAGE[name])
    with pytest.raises((ValueError, KeyError, TypeError)):
        qa.differences(GARBAGE[name])
