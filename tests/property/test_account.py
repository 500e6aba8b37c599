"""Laws of the paper account: quantity, entry, PnL, fees and money over any sequence of trades."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from quantum_alloc.core.account import BPS, FLAT, Held, Trade, trade

sizes = st.one_of(st.sampled_from([0.1, 0.25, 0.3, 0.5, 1.0, 2.0]), st.floats(1e-9, 1e6))
signed = st.builds(lambda size, is_buy: size if is_buy else -size, sizes, st.booleans())
prices = st.one_of(st.sampled_from([0.1, 90.0, 100.0, 110.0]), st.floats(1e-6, 1e6))
bps = st.sampled_from([0.0, 1.0, 4.0, 1000.0])
closing = st.sampled_from([-1.0, -0.5, -0.25, -1.5])
orders = st.lists(st.tuples(st.one_of(signed, closing.map(lambda share: share * 1e12)), prices), max_size=12)
"""Quantities from 2.5e11 on stand for a share of what is held then: closes to the bit and flips are drawn often."""
wide_sizes = st.one_of(sizes, st.floats(1e-300, 1e15), st.sampled_from([5e-324, 1e15]))
positions = st.builds(
    lambda size, is_long, *rest: Held(size if is_long else -size, *rest),
    wide_sizes, st.booleans(), prices, st.integers(0, 10**16), st.integers(0, 10**16), st.integers(0, 10**16),
    st.lists(st.integers(0, 10**16), max_size=3).map(tuple),
)  # fmt: skip


def played(drawn: list[tuple[float, float]], fee_bps: float, held: Held = FLAT) -> list[Trade]:
    """The trades of a sequence, each a microsecond after the one before; shares of nothing are left out."""
    made = []
    for at, (qty, price) in enumerate(drawn, 1):
        wanted = qty if abs(qty) < 2e11 else held.qty * qty / 1e12
        if wanted != 0.0:
            made.append(trade(held, wanted, price, fee_bps, at))
            held = made[-1].after
    return made


def limited(held: Held) -> tuple[int, int, tuple[int, ...]]:
    """What the limits of opens look at: a trade leaves it as it is."""
    return held.next_open_us, held.last_fill_us, held.opens_us


@given(orders, bps)
def test_a_position_is_the_float_sum_of_its_trades(drawn: list[tuple[float, float]], fee_bps: float) -> None:
    """In their order, bit for bit; each trade begins where the one before ended."""
    total, held = 0.0, FLAT
    for made in played(drawn, fee_bps):
        assert made.before == held
        total, held = total + made.qty, made.after
        assert held.qty.hex() == total.hex()
        assert (held.qty == 0.0) == (held.entry_price_usd == 0.0) == (held.opened_us == 0)


@given(orders, bps, prices, st.floats(0.0, 1e6))
def test_no_money_comes_or_goes(drawn: list[tuple[float, float]], fee_bps: float, mark: float, paid_in: float) -> None:
    """Equity = paid in + what each fill has gained by now - fees, as fractions, within 1e-9 of the gross turnover; and
    balance = paid in + realised - fees."""
    made = played(drawn, fee_bps)
    balance, realised, fees = paid_in, Fraction(0), Fraction(0)
    gain = turnover = Fraction(0)
    size = 0.0
    for one in made:
        balance = one.balance_usd(balance)
        size = max(size, abs(balance))
        realised += Fraction(one.pnl_usd or 0.0)
        fees += Fraction(one.fee_usd)
        gain += Fraction(one.qty) * (Fraction(mark) - Fraction(one.price_usd))
        turnover += abs(Fraction(one.qty)) * (Fraction(one.price_usd) + Fraction(mark))
        exact_fee = abs(Fraction(one.qty)) * Fraction(one.price_usd) * Fraction(fee_bps) / Fraction(BPS)
        assert abs(Fraction(one.fee_usd) - exact_fee) <= exact_fee * Fraction(1, 10**12)
    held = made[-1].after if made else FLAT
    equity = Fraction(balance) + Fraction(held.unrealized_pnl_usd(mark))
    within = Fraction(1, 10**9) * (turnover + Fraction(paid_in))
    assert abs(equity - (Fraction(paid_in) + gain - fees)) <= within
    assert abs(Fraction(balance) - (Fraction(paid_in) + realised - fees)) <= within
    assert fees >= 0


@given(orders)
def test_an_entry_lies_between_the_prices_that_were_paid(drawn: list[tuple[float, float]]) -> None:
    """Between the least and the greatest price of what has added to the position since it was last flat or flipped."""
    paid: list[float] = []
    for made in played(drawn, 0.0):
        before, after = made.before.qty, made.after.qty
        if before * after <= 0.0:
            paid = []
        if after != 0.0 and (before == 0.0 or before * made.qty > 0.0 or before * after < 0.0):
            paid.append(made.price_usd)
        if after != 0.0:
            assert min(paid) <= made.after.entry_price_usd <= max(paid)


@given(positions, st.one_of(signed, wide_sizes), prices)
@example(Held(5e-324, 0.1), 5e-324, 0.3)
def test_adding_never_leaves_the_prices(held: Held, size: float, price: float) -> None:
    """Whatever underflows: the entry lies between the old one and the price; time of opening and next open stay."""
    qty = abs(size) if held.qty > 0.0 else -abs(size)
    after = trade(held, qty, price, 4.0, 1).after
    lo, hi = sorted((held.entry_price_usd, price))
    assert lo <= after.entry_price_usd <= hi
    assert after.opened_us == held.opened_us
    assert limited(after) == limited(held)


@given(positions, st.one_of(signed, wide_sizes, wide_sizes.map(lambda size: -size)), prices, st.integers(0, 10**16))
def test_realised_is_told_only_where_something_was_closed(held: Held, qty: float, price: float, now_us: int) -> None:
    """None for an open and for what adds, else the PnL of what was closed; opened where it left zero or flipped."""
    made = trade(held, qty, price, 4.0, now_us)
    takes = held.qty * qty < 0.0 or (held.qty < 0.0) != (qty < 0.0)
    assert (made.pnl_usd is not None) == takes
    assert made.fee_usd >= 0.0
    assert limited(made.after) == limited(held)
    after = made.after
    if after.qty == 0.0:
        assert (after.entry_price_usd, after.opened_us) == (0.0, 0)
    elif (after.qty > 0.0) != (held.qty > 0.0):
        assert (after.entry_price_usd, after.opened_us) == (price, now_us)
    else:
        assert after.opened_us == held.opened_us
        assert not takes or after.entry_price_usd == held.entry_price_usd
    opened = trade(Held(0.0, 0.0, 0, *limited(held)), qty, price, 4.0, now_us)
    assert opened.pnl_usd is None
    assert opened.after == Held(qty, price, now_us, *limited(held))


@given(positions, prices, st.floats(1e-6, 1e6))
def test_a_flip_realises_what_a_full_close_would(held: Held, price: float, more: float) -> None:
    """Bit for bit, and opens the rest at the price; a close of a part realises no more than the whole."""
    whole = trade(held, -held.qty, price, 4.0, 5)
    assert whole.after == Held(0.0, 0.0, 0, *limited(held))
    flip = trade(held, -held.qty - (more if held.qty > 0.0 else -more), price, 4.0, 5)
    assume(flip.after.qty != 0.0)
    assert flip.pnl_usd == whole.pnl_usd
    assert flip.after == Held(held.qty + flip.qty, price, 5, *limited(held))
    part = trade(held, -held.qty / 2, price, 4.0, 5)
    assert whole.pnl_usd is not None
    assert part.pnl_usd is None or abs(part.pnl_usd) <= abs(whole.pnl_usd)


@given(positions, st.floats(0.0, 2.0, exclude_min=True))
def test_a_close_at_the_entry_realises_nothing(held: Held, share: float) -> None:
    """0 USD, never None, for a part, all and a flip."""
    qty = -held.qty * share
    assume(qty != 0.0)
    assert trade(held, qty, held.entry_price_usd, 4.0, 1).pnl_usd == 0.0


@given(positions, prices)
def test_unrealised_becomes_realised(held: Held, price: float) -> None:
    """A full close realises what was unrealised, bit for bit."""
    assert trade(held, -held.qty, price, 0.0, 1).pnl_usd == held.unrealized_pnl_usd(price)


@given(orders, st.sampled_from([0.25, 2.0, 1024.0]), st.sampled_from([0.25, 2.0, 1024.0]))
def test_a_larger_account_is_the_same_account(drawn: list[tuple[float, float]], more: float, dearer: float) -> None:
    """Quantities x a and prices x b, powers of two: entries x b, PnL and fees x a b, bit for bit."""
    small = played(drawn, 4.0)
    large = []
    held = FLAT
    for at, one in enumerate(small):
        large.append(trade(held, one.qty * more, one.price_usd * dearer, 4.0, at))
        held = large[-1].after
    for one, scaled in zip(small, large, strict=True):
        assert scaled.after.qty == one.after.qty * more
        assert scaled.after.entry_price_usd == one.after.entry_price_usd * dearer
        assert scaled.fee_usd == pytest.approx(one.fee_usd * more * dearer, rel=1e-15)
        assert scaled.pnl_usd == (None if one.pnl_usd is None else one.pnl_usd * more * dearer)


@given(orders, bps)
def test_the_other_way_round_is_the_mirror(drawn: list[tuple[float, float]], fee_bps: float) -> None:
    """Shorts in the place of longs: the same entries, times and fees, and PnL of the other sign; bit for bit."""
    held = FLAT
    for at, one in enumerate(played(drawn, fee_bps), 1):
        mirrored = trade(held, -one.qty, one.price_usd, fee_bps, at)
        held = mirrored.after
        assert (held.qty, held.entry_price_usd) == (-one.after.qty, one.after.entry_price_usd)
        assert mirrored.fee_usd == one.fee_usd
        assert mirrored.pnl_usd == (None if one.pnl_usd is None else -one.pnl_usd)
