"""Laws of the apply layer: what a permit may come to, whatever the market, the account and the switch."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from hypothesis import assume, example, given
from hypothesis import strategies as st

import quantum_alloc.core as qa
from quantum_alloc.core.account import Held
from quantum_alloc.core.apply import Application, ApplyInputs, ApplyParams, ApplyReason, Fate, Terms, apply_permit
from quantum_alloc.core.governor_inputs import Kill
from quantum_alloc.core.limits import US
from quantum_alloc.core.plan import Side
from quantum_alloc.core.reading import Fresh, Reading, Reason, Unusable, grade
from quantum_alloc.core.record_apply import apply_fields

NOW_US = 1_769_577_495_123_456
NOW = NOW_US / US
MODES = ("dry_run", "testnet", "production")

amounts = st.one_of(st.sampled_from([0.1, 0.5, 1.0, 2.0, 100.0, 200.0]), st.floats(1e-9, 1e6), st.floats(5e-324, 1e15))
prices = st.one_of(st.sampled_from([0.1, 50.0, 100.0, 200.0]), st.floats(1e-6, 1e6), st.floats(5e-324, 1e15))
factors = st.one_of(st.sampled_from([0.25, 0.4444, 0.5, 0.9998, 1.0]), st.floats(0.0, 1.0, exclude_min=True))
moments = st.sampled_from([NOW_US - 1, NOW_US, NOW_US + 1, NOW_US + 60 * US, 0])
words = st.text("abcdefABC0123456789", max_size=16)
params = st.builds(
    ApplyParams, st.sampled_from(MODES), st.sampled_from([0.0, 4.0, 5.5, 1000.0]), st.booleans(),
    st.sampled_from([1, 60]),
)  # fmt: skip
limits = st.tuples(
    st.sampled_from([0, 60, 60, 3600]), st.sampled_from([0, 1, 2, 2, 9]), st.sampled_from([0, 1, 3, 3, 9])
)
terms = st.builds(
    Terms, amounts, st.one_of(st.just(0.0), amounts, st.floats(0.0, 1e30)), st.sampled_from([*Side, None]),
    st.booleans(), st.sampled_from(MODES), st.booleans(), st.booleans(), factors, st.integers(0, 86_400), words, limits,
)  # fmt: skip
ages_s = st.sampled_from([0, 59.999999, 60, 299.999999, 300, 3599.999999, 3600, 4000, -1])
fill_times = st.one_of(ages_s.map(lambda s: NOW_US - round(s * US)), st.integers(NOW_US - 4000 * US, NOW_US))
last_fills = st.one_of(st.just(0), fill_times)
open_times = st.lists(fill_times, max_size=4).map(lambda times: tuple(sorted(times)))
holdings = st.one_of(
    st.builds(Held, next_open_us=moments, last_fill_us=last_fills, opens_us=open_times),
    st.builds(lambda size, is_long, *rest: Held(size if is_long else -size, *rest),
              amounts, st.booleans(), prices, st.integers(0, NOW_US), moments, last_fills, open_times),
)  # fmt: skip


@st.composite
def readings(draw: st.DrawFn) -> Reading[float]:
    """Any price that the wire can give; mostly a fresh one."""
    kind = draw(st.sampled_from(["ok"] * 6 + ["stale", "future_ts", "missing", "malformed", "redis_error"]))
    ages = {"ok": [0, 1, -5, 60], "stale": [61, 1000], "future_ts": [-6, -100]}
    if kind in ages:
        return grade(draw(prices), NOW - draw(st.sampled_from(ages[kind])), NOW, 60)
    return Unusable(Reason(kind))


@st.composite
def worlds(draw: st.DrawFn, *, ready: bool = False, reduce_only: bool | None = None) -> tuple[ApplyInputs, ApplyParams]:
    """Anything that a cycle can come to; ``ready`` ones have nothing in the way of a fill but quantity and cooldown."""
    p, of = draw(params), draw(terms)
    kill = draw(st.sampled_from([Kill.OFF] * 4 + [*Kill]))
    until = draw(st.sampled_from([NOW_US - 1, NOW_US, NOW_US + 1, *[NOW_US + 60 * US] * 5]))
    price, readable, there = draw(readings()), draw(st.integers(0, 7)) > 0, draw(st.integers(0, 7)) > 0
    if ready:
        p = replace(p, apply_mode=draw(st.sampled_from(MODES[1:])))
        kill, until, price, readable, there = Kill.OFF, NOW_US + 60 * US, Fresh(draw(prices), NOW), True, True
    if ready or draw(st.integers(0, 3)):
        of = replace(of, apply_mode=p.apply_mode, dry_run=p.apply_mode == "dry_run")
    if reduce_only is not None:
        of = replace(of, reduce_only=reduce_only)
    told = of if readable else None
    return ApplyInputs("p1", draw(st.sampled_from(["BTCUSDT", "A0"])), told, NOW_US, until, kill, draw(holdings), price,
                       there), p  # fmt: skip


any_world = st.one_of(worlds(), worlds(ready=True))
opens, closes = worlds(ready=True, reduce_only=False), worlds(ready=True, reduce_only=True)
World = tuple[ApplyInputs, ApplyParams]


def too_soon(held: Held, now_us: int, of: Terms) -> str:
    """Why an open would come too soon, by the text of the rules; empty where it would not."""
    cooldown_s, burst, hour = of.limits
    if now_us < held.next_open_us:
        return "extra_cooldown"
    if held.last_fill_us > 0 and now_us - held.last_fill_us < cooldown_s * US:
        return "symbol_cooldown"
    if len([at for at in held.opens_us if now_us - at < 3600 * US]) + 1 > hour:
        return "hourly_limit_exceeded"
    if len([at for at in held.opens_us if now_us - at < 300 * US]) + 1 > burst:
        return "burst_limit_exceeded"
    return ""


def expected(i: ApplyInputs, p: ApplyParams) -> tuple[str, str]:  # noqa: PLR0911 - one a sentence
    """Fate and reason by the text of the rules, one sentence after the other."""
    if i.now_us >= i.until_us:
        return "expired", "permit_expired"
    if not i.is_there:
        return "refused", "permit_gone"
    if i.terms is None:
        return "refused", "bad_permit"
    t = i.terms
    if t.apply_mode != p.apply_mode or t.dry_run is not (p.apply_mode == "dry_run"):
        return "refused", "mode_mismatch"
    if i.kill is Kill.HALT:
        return "waits", "kill_switch_active"
    if i.kill is Kill.REDUCE_ONLY and not t.reduce_only:
        return "waits", "reduce_only"
    if t.dry_run:
        return "void", "dry_run"
    if i.price_usd.state != "ok":
        return "waits", "price_unknown"
    if t.reduce_only:
        if i.held.qty == 0.0:
            return "void", "nothing_to_close"
        adds = t.side is not None and (t.side is Side.BUY) is (i.held.qty > 0.0)
        return ("void", "would_add") if adds else ("filled", "ok")
    delayed = too_soon(i.held, i.now_us, t)
    if delayed:
        return "waits", delayed
    qty = t.qty * (t.factor if p.apply_downsize and t.downsizes else 1.0)
    price = i.price_usd.value or 0.0
    if t.side is None or qty == 0.0 or (qty * price > t.notional_usd and t.notional_usd / price == 0.0):
        return "refused", "bad_permit"
    return "filled", "ok"


def unlimited(held: Held) -> Held:
    """Without anything that delays an open."""
    return replace(held, next_open_us=0, last_fill_us=0, opens_us=())


def traded(made: Application) -> tuple[float, float, Terms]:
    """Signed quantity, price, and terms of a fill."""
    assert made.trade is not None
    assert made.inputs.terms is not None
    return made.trade.qty, made.trade.price_usd, made.inputs.terms


@given(any_world)
def test_a_fate_is_that_of_the_rules(drawn: World) -> None:
    """Fate and reason as the rules put them; what is not filled changes nothing, a fill is at the market's price."""
    i, p = drawn
    made = apply_permit(i, p)
    fate, reason = expected(i, p)
    if (fate, reason) == ("filled", "ok") and made.reason is ApplyReason.BAD_PERMIT:
        assert i.terms is not None
        assert i.terms.notional_usd < 1e-300, "what could be bought is no number above 0"
    else:
        assert (made.fate.value, made.reason.value) == (fate, reason)
    assert (made.trade is not None) == (made.fate is Fate.FILLED)
    assert made.is_consumed == (made.fate in (Fate.FILLED, Fate.VOID))
    if made.trade is None:
        assert (made.held, made.factor) == (i.held, 1.0)
        return
    qty, price, of = traded(made)
    assert price == i.price_usd.value
    assert 0.0 < abs(qty) <= of.qty
    assert made.held == made.trade.after
    assert made.held.qty == i.held.qty + qty
    plain = qa.trade(unlimited(i.held), qty, price, p.fee_bps, i.now_us)
    assert (made.trade.pnl_usd, made.trade.fee_usd) == (plain.pnl_usd, plain.fee_usd)
    assert unlimited(made.held) == plain.after
    assert made.held.last_fill_us == i.now_us
    recent = [at for at in i.held.opens_us if i.now_us - at < 3600 * US]
    assert made.held.opens_us == (i.held.opens_us if of.reduce_only else (*recent, i.now_us))


@given(any_world, st.booleans())
def test_the_kill_switch_holds(drawn: World, is_halt: bool) -> None:
    """HALT consumes nothing at all, REDUCE_ONLY only what is reduce-only."""
    i, p = drawn
    made = apply_permit(replace(i, kill=Kill.HALT if is_halt else Kill.REDUCE_ONLY), p)
    if made.is_consumed:
        assert not is_halt
        assert made.inputs.terms is not None
        assert made.inputs.terms.reduce_only


@given(any_world, st.integers(0, 120 * US))
def test_nothing_is_filled_when_its_time_is_over(drawn: World, late_us: int) -> None:
    """At its last moment and after it a permit is expired, whatever else there is."""
    i, p = drawn
    late = apply_permit(replace(i, now_us=i.until_us + late_us), p)
    assert (late.fate, late.reason) == (Fate.EXPIRED, ApplyReason.PERMIT_EXPIRED)


@given(closes)
def test_a_close_never_adds(drawn: World) -> None:
    """A reduce-only fill brings the position nearer to zero and not past it, and never takes more than its permit."""
    i, p = drawn
    made = apply_permit(i, p)
    assert made.factor == 1.0
    if made.trade is None:
        assert made.fate is Fate.VOID
        assert made.held == i.held
        return
    qty, _, of = traded(made)
    assert abs(made.held.qty) <= abs(i.held.qty)
    assert made.held.qty * i.held.qty >= 0.0
    assert qty * i.held.qty < 0.0 or (qty < 0.0) is not (i.held.qty < 0.0)
    assert abs(qty) == min(of.qty, abs(i.held.qty))
    assert made.trade.pnl_usd is not None
    assert made.held.next_open_us == i.held.next_open_us
    assert of.side in (None, Side.BUY if qty > 0.0 else Side.SELL)


@given(opens)
def test_an_open_never_takes_more_than_its_permit(drawn: World) -> None:
    """Quantity, and notional at the price that is paid, bit for bit; on the permit's side."""
    made = apply_permit(*drawn)
    if made.trade is None:
        return
    qty, price, of = traded(made)
    assert abs(qty) <= of.qty
    assert abs(qty) * price <= of.notional_usd
    assert of.side is (Side.BUY if qty > 0.0 else Side.SELL)


@given(opens)
def test_an_open_in_a_market_that_has_not_moved_takes_all(drawn: World) -> None:
    """Where the notional is that of the quantity at the price that is paid, bit for bit."""
    i, p = drawn
    assert i.terms is not None
    usd = i.terms.qty * (i.price_usd.value or 0.0)
    made = apply_permit(replace(i, terms=replace(i.terms, notional_usd=usd)), replace(p, apply_downsize=False))
    if made.trade is not None:
        assert abs(made.trade.qty) == i.terms.qty


@given(opens)
def test_an_open_takes_what_it_may(drawn: World) -> None:
    """Where the notional binds, no representable quantity more than two bits above it would do."""
    i, p = drawn
    made = apply_permit(i, p)
    if made.trade is None:
        return
    qty, price, of = traded(made)
    wanted = of.qty * made.factor
    if abs(qty) != wanted:
        assert wanted * price > of.notional_usd
        more = abs(qty) * (1.0 + 1e-15) + 1e-323
        assert more * price > of.notional_usd or more >= wanted


@given(any_world)
def test_a_hint_counts_only_where_it_is_to(drawn: World) -> None:
    """Switched off, of the shadow lane, or of a close: the factor is exactly 1 and no cooldown is added."""
    i, p = drawn
    made = apply_permit(i, p)
    of = i.terms
    if made.trade is None or of is None or not (p.apply_downsize and of.downsizes) or of.reduce_only:
        assert made.factor == 1.0
        assert made.held.next_open_us == i.held.next_open_us
    off = apply_permit(i, replace(p, apply_downsize=False))
    if of is not None:
        unhinted = apply_permit(replace(i, terms=replace(of, downsizes=False)), p)
        assert (off.fate, off.trade, off.held) == (unhinted.fate, unhinted.trade, unhinted.held)


@given(opens)
def test_a_hint_makes_an_open_smaller_and_the_next_one_later(drawn: World) -> None:
    """Quantity x factor unless the notional binds, and the next open after cooldown + extra cooldown, to the µs."""
    i, p = drawn
    assert i.terms is not None
    i = replace(i, terms=replace(i.terms, downsizes=True))
    made = apply_permit(i, replace(p, apply_downsize=True))
    if made.trade is None:
        return
    qty, price, of = traded(made)
    assert made.factor == of.factor
    wanted = of.qty * of.factor
    assert abs(qty) == wanted if wanted * price <= of.notional_usd else abs(qty) < wanted
    assert made.held.next_open_us == i.now_us + (of.limits[0] + of.extra_cooldown_s) * US
    plain = apply_permit(i, replace(p, apply_downsize=False))
    assert plain.trade is not None
    assert abs(plain.trade.qty) >= abs(qty)


@given(st.one_of(opens, closes), st.integers(-2, 10 * US))
def test_the_extra_cooldown_delays_opens_and_not_closes(drawn: World, ahead_us: int) -> None:
    """Until its last microsecond; a close is what it is without."""
    i, p = drawn
    assert i.terms is not None
    later = replace(i, held=replace(i.held, next_open_us=i.now_us + ahead_us))
    never = replace(i, held=replace(i.held, next_open_us=0))
    found, plain = apply_permit(later, p), apply_permit(never, p)
    if i.terms.reduce_only or ahead_us <= 0:
        assert (found.fate, found.reason, found.factor) == (plain.fate, plain.reason, plain.factor)
    else:
        assert (found.fate, found.reason) == (Fate.WAITS, ApplyReason.EXTRA_COOLDOWN)


@given(any_world, st.sampled_from(MODES), st.booleans())
def test_a_permit_of_another_mode_is_never_consumed(drawn: World, mode: str, is_dry: bool) -> None:
    """Nor one that contradicts itself about being dry; and none is filled in a dry run."""
    i, p = drawn
    assume(i.terms is not None)
    assert i.terms is not None
    made = apply_permit(replace(i, terms=replace(i.terms, apply_mode=mode, dry_run=is_dry)), p)
    if mode != p.apply_mode or is_dry is not (p.apply_mode == "dry_run"):
        assert made.fate in (Fate.REFUSED, Fate.EXPIRED)
    if p.apply_mode == "dry_run":
        assert made.trade is None


@given(any_world)
def test_without_a_fresh_price_nothing_is_filled(drawn: World) -> None:
    """Missing, malformed, unreadable, stale or from the future: one and the same, and it waits, if anything."""
    i, p = drawn
    bad: list[Reading[float]] = [Unusable(r) for r in Reason if r is not Reason.STALE]
    bad.append(Unusable(Reason.STALE, 100.0, NOW - 61, 61))
    found = {(made.fate, made.reason) for made in (apply_permit(replace(i, price_usd=b), p) for b in bad)}
    assert len(found) == 1
    assert found.isdisjoint({(Fate.FILLED, ApplyReason.OK)})


# --- the limits, by fills ---------------------------------------------------------------------------------------------

few = st.tuples(st.sampled_from([0, 1, 60, 120]), st.integers(0, 3), st.integers(0, 4))
waits_us = st.one_of(
    st.sampled_from([0, 1, US, 59 * US, 60 * US - 1, 60 * US, 150 * US, 299 * US, 300 * US - 1, 300 * US, 1200 * US]),
    st.integers(0, 400 * US),
)
orders = st.tuples(waits_us, st.booleans(), st.sampled_from(Side), st.sampled_from([0.5, 1.0, 2.0]), st.booleans(), few)
"""A permit, the time after the one before it at which it is looked at, and the limits that it may carry."""


LIMITING = (ApplyReason.EXTRA_COOLDOWN, ApplyReason.COOLDOWN, ApplyReason.HOURLY, ApplyReason.BURST)


@given(st.lists(orders, max_size=40), st.one_of(st.none(), few), st.integers(0, 90), st.booleans())
@example([(60 * US, False, Side.BUY, 1.0, False, (0, 0, 0))] * 12, (60, 2, 3), 0, False)
@example([(300 * US, False, Side.BUY, 1.0, False, (0, 0, 0))] * 40, (60, 2, 3), 0, False)
@example([(60 * US - 1, False, Side.BUY, 1.0, True, (0, 0, 0))] * 9, (60, 2, 3), 90, True)
def test_fills_of_opens_never_exceed_the_limits(
    drawn: list[tuple[int, bool, Side, float, bool, tuple[int, int, int]]], shared: tuple[int, int, int] | None,
    extra_s: int, is_hinted: bool,
) -> None:  # fmt: skip
    """Whenever they are looked at: windows (t - W, t] and cooldown hold among the fills alone, an open that they allow
    is filled, and a close is filled at once."""
    now_us, held, p = NOW_US, Held(), ApplyParams("production", apply_downsize=is_hinted)
    opens: list[int] = []
    last_us, next_us = None, 0
    for wait_us, is_close, side, qty, downsizes, own in drawn:
        now_us += wait_us
        of = own if shared is None else shared
        cooldown_s, burst, hour = of
        told = Terms(
            qty, 1e9, None if is_close else side, is_close, "production", False, downsizes, 0.5, extra_s, "", of
        )
        until_us = now_us + 60 * US
        made = apply_permit(ApplyInputs("p1", "A0", told, now_us, until_us, held=held, price_usd=Fresh(1.0, 0.0)), p)
        assert (made.fate is Fate.VOID) == (is_close and held.qty == 0.0)
        after = {w: 1 + sum(now_us - w * US < at <= now_us for at in opens) for w in (300, 3600)}
        rested = now_us >= next_us and (last_us is None or now_us - last_us >= cooldown_s * US)
        fits = rested and after[300] <= burst and after[3600] <= hour
        if is_close:
            assert made.fate is not Fate.WAITS
        else:
            assert made.fate is (Fate.FILLED if fits else Fate.WAITS)
        if made.trade is not None:
            last_us = now_us
            if not is_close:
                opens.append(now_us)
                next_us = now_us + (cooldown_s + extra_s) * US if is_hinted and downsizes else next_us
        held = made.held
        assert held.opens_us == () or held.opens_us[-1] - held.opens_us[0] < 3600 * US


@given(st.one_of(closes, any_world), holdings, limits)
def test_a_close_is_never_delayed_by_the_limits(drawn: World, other: Held, of: tuple[int, int, int]) -> None:
    """Whatever was filled before it, and whatever its permit says of opens: it comes to the same."""
    i, p = drawn
    assume(i.terms is not None)
    assert i.terms is not None
    close = replace(i.terms, reduce_only=True)
    held = replace(i.held, next_open_us=other.next_open_us, last_fill_us=other.last_fill_us, opens_us=other.opens_us)
    limited = apply_permit(replace(i, terms=replace(close, limits=of), held=held), p)
    free = apply_permit(replace(i, terms=close, held=unlimited(i.held)), p)
    assert (limited.fate, limited.reason, limited.factor) == (free.fate, free.reason, free.factor)
    assert unlimited(limited.held) == unlimited(free.held)
    assert limited.reason not in LIMITING


@given(opens, st.sampled_from([300, 3600]), st.integers(1, 4), st.sampled_from([0, 1]))
def test_an_open_exactly_a_window_old_is_out(drawn: World, window_s: int, most: int, inside_us: int) -> None:
    """``most`` opens, the eldest a window old or a microsecond less."""
    i, p = drawn
    assert i.terms is not None
    times = (i.now_us - window_s * US + inside_us, *[i.now_us - 61 * US] * (most - 1))
    of = (60, most, 99) if window_s == 300 else (60, 99, most)
    held = replace(i.held, next_open_us=0, last_fill_us=i.now_us - 60 * US, opens_us=times)
    made = apply_permit(replace(i, terms=replace(i.terms, limits=of), held=held), p)
    reason = ApplyReason.BURST if window_s == 300 else ApplyReason.HOURLY
    assert ((made.fate, made.reason) == (Fate.WAITS, reason)) == bool(inside_us)
    assert made.reason not in LIMITING or inside_us


# --- records ---------------------------------------------------------------------------------------------------------


def written(drawn: World) -> tuple[Application, dict[str, str]]:
    """A fate and its record, as it comes back out of text."""
    i, p = drawn
    made = apply_permit(i, p)
    fields = apply_fields(made, p)
    assert all(isinstance(text, str) for text in fields.values())
    return made, json.loads(json.dumps(fields))


@given(any_world)
def test_a_fate_is_made_again_from_its_record(drawn: World) -> None:
    """(40) Bit for bit, whatever could be read and whatever not; further fields change nothing."""
    made, record = written(drawn)
    assert qa.recompute(record) == made
    assert qa.differences(record) == {}
    assert qa.differences({**record, "consumed_us": "1", "waited_for": "price_unknown", "ts": "1", "mode": "x"}) == {}


@given(any_world, st.data())
def test_a_field_that_was_changed_is_seen(drawn: World, data: st.DataObject) -> None:
    """Any field of the record but those that say whose it is: a difference, or no record any more."""
    _, record = written(drawn)
    name = data.draw(st.sampled_from(sorted(record.keys() - {"plan_id", "symbol", "inputs", "params", "rules"})))
    text = data.draw(
        st.one_of(st.text(max_size=5), st.sampled_from(["", "0", "1.0", "true", "filled", record[name] + "0"]))
    )
    assume(text != record[name])
    try:
        wrong = qa.differences({**record, name: text})
    except (ValueError, KeyError, TypeError):
        return
    assert name in wrong
    assert wrong[name][0] == text


@given(any_world, st.sampled_from(["held", "now_us", "until_us", "terms", "price"]))
def test_an_input_of_a_fill_that_was_changed_is_seen(drawn: World, name: str) -> None:
    """Position, times, terms and price each are part of what was decided, or the fate does not hang on them."""
    made, record = written(drawn)
    told = json.loads(record["inputs"])
    changes: dict[str, Any] = {
        "held": [1.0 + told["held"][0], *told["held"][1:]],
        "now_us": told["until_us"],
        "until_us": told["now_us"],
        "terms": None,
        "price": ["missing", None, None],
    }
    text = json.dumps({**told, name: changes[name]}, separators=(",", ":"))
    changed = {**record, "inputs": text}
    again = qa.recompute(changed)
    assert isinstance(again, Application)
    if made.fate is Fate.FILLED:
        assert qa.differences(changed)
    if again.inputs == made.inputs:
        assert again == made


leaves = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers().map(lambda n: n * 10**300), st.floats(), st.text(max_size=3),
    st.sampled_from(["ok", "stale", "BUY", "production", "HALT", 0, 0.0, -1.0, 1e308, NOW, NOW_US]),
)  # fmt: skip
garbage = st.recursive(
    leaves,
    lambda inner: st.one_of(st.lists(inner, max_size=12), st.dictionaries(st.text(max_size=3), inner, max_size=3)),
    max_leaves=12,
)  # fmt: skip
NAMES = ("now_us", "until_us", "kill", "terms", "held", "price", "there")


@given(any_world, st.sampled_from(NAMES), garbage, st.integers(0, 11))
@example((ApplyInputs("p", "A0", None, 0, 1), ApplyParams()), "now_us", 10**400, 0)
@example((ApplyInputs("p", "A0", None, 0, 1), ApplyParams()), "price", ["ok", float("inf"), 1.0], 0)
def test_a_record_of_anything_is_one_or_refused(drawn: World, name: str, put: Any, at: int) -> None:
    """(1) ValueError, KeyError or TypeError, and nothing else: whatever stands in the place of an input or in it."""
    _, record = written(drawn)
    told = json.loads(record["inputs"])
    if isinstance(told[name], list) and at < len(told[name]):
        told[name][at] = put
    else:
        told[name] = put
    try:
        again = qa.recompute({**record, "inputs": json.dumps(told)})
    except (ValueError, KeyError, TypeError):
        return
    assert isinstance(again, Application)


@given(
    st.one_of(st.text(max_size=30), garbage.map(json.dumps)),
    st.sampled_from(["inputs", "params", "params_hash", "rules"]),
)
def test_a_field_of_anything_is_one_or_refused(text: str, name: str) -> None:
    """(1) The same for a whole field."""
    made = apply_permit(ApplyInputs("p1", "BTCUSDT", None, NOW_US, NOW_US + 1))
    record = {**apply_fields(made, ApplyParams()), name: text}
    try:
        assert isinstance(qa.recompute(record), Application)
    except (ValueError, KeyError, TypeError):
        return
