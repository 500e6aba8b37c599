"""Average-price accounting: worked cases by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import pytest

from quantum_alloc.core.account import FLAT, Held, Trade, fee, trade

THEN, NOW = 1_769_577_000_000_000, 1_769_577_495_123_456
LONG = Held(2.0, 100.0, THEN, 7, THEN + 1, (THEN - 5, THEN + 1))
SHORT = replace(LONG, qty=-2.0)
TINY, HUGE = 5e-324, 1e15

# before, signed quantity, price -> after (quantity, entry, opened), realised; None where nothing was closed
CASES: dict[str, tuple[Held, float, float, tuple[float, float, int], float | None]] = {
    "open long": (FLAT, 2.0, 100.0, (2.0, 100.0, NOW), None),
    "open short": (FLAT, -2.0, 100.0, (-2.0, 100.0, NOW), None),
    "open again": (Held(0.0, 0.0, 0, 7, THEN, (THEN,)), 0.5, 3.0, (0.5, 3.0, NOW), None),
    "add to long": (LONG, 2.0, 110.0, (4.0, 105.0, THEN), None),
    "add to long, dearer by a third": (LONG, 1.0, 130.0, (3.0, 110.0, THEN), None),
    "add to long, cheaper": (LONG, 6.0, 60.0, (8.0, 70.0, THEN), None),
    "add to short": (SHORT, -2.0, 90.0, (-4.0, 95.0, THEN), None),
    "add to short, dearer": (SHORT, -6.0, 140.0, (-8.0, 130.0, THEN), None),
    "add at the entry": (LONG, 5.0, 100.0, (7.0, 100.0, THEN), None),
    "close half of long with a gain": (LONG, -1.0, 115.0, (1.0, 100.0, THEN), 15.0),
    "close half of long with a loss": (LONG, -1.0, 85.0, (1.0, 100.0, THEN), -15.0),
    "close a quarter of short with a gain": (SHORT, 0.5, 90.0, (-1.5, 100.0, THEN), 5.0),
    "close a quarter of short with a loss": (SHORT, 0.5, 110.0, (-1.5, 100.0, THEN), -5.0),
    "close long": (LONG, -2.0, 110.0, (0.0, 0.0, 0), 20.0),
    "close short": (SHORT, 2.0, 110.0, (0.0, 0.0, 0), -20.0),
    "close at the entry": (SHORT, 2.0, 100.0, (0.0, 0.0, 0), 0.0),
    "flip to short": (LONG, -3.0, 110.0, (-1.0, 110.0, NOW), 20.0),
    "flip to long": (SHORT, 5.0, 90.0, (3.0, 90.0, NOW), 20.0),
    "flip at a loss": (LONG, -4.0, 75.0, (-2.0, 75.0, NOW), -50.0),
    "the least that there is": (Held(1.0, 100.0, THEN, 7), -TINY, 200.0, (1.0, 100.0, THEN), TINY * 100.0),
    "the least that there is, closed": (Held(TINY, 0.25, THEN), -TINY, 4.0, (0.0, 0.0, 0), TINY * 3.75),
    "added to the least that there is": (Held(TINY, 0.1, THEN), TINY, 0.2, (2 * TINY, 0.1, THEN), None),
    "as much as there may be": (Held(HUGE, HUGE, THEN), HUGE, HUGE / 2, (2 * HUGE, 0.75 * HUGE, THEN), None),
    "next to nothing added to much": (Held(HUGE, 1.0, THEN), 1e-9, HUGE, (HUGE, 1.0 + 1e-9, THEN), None),
}


@pytest.mark.parametrize("name", CASES)
def test_a_trade_comes_to(name: str) -> None:
    """Quantity, entry, time of opening and realised PnL, each by hand; the fee stands beside the PnL."""
    before, qty, price, (after, entry, opened_us), pnl = CASES[name]
    made = trade(before, qty, price, 4.0, NOW)
    assert made.before is before
    assert (made.qty, made.price_usd) == (qty, price)
    assert made.after.qty == after
    assert made.after.entry_price_usd == pytest.approx(entry, rel=1e-15)
    assert made.after.opened_us == opened_us
    assert (made.after.next_open_us, made.after.last_fill_us) == (before.next_open_us, before.last_fill_us)
    assert made.after.opens_us is before.opens_us
    assert (made.pnl_usd is None) == (pnl is None)
    assert made.pnl_usd == (None if pnl is None else pytest.approx(pnl, rel=1e-15))
    assert made.fee_usd == pytest.approx(abs(qty) * price * 4e-4, rel=1e-15)


def test_a_full_close_leaves_nothing_behind() -> None:
    """Exactly 0.0, without a sign, at no entry and of no time, whatever sums of floats the position was made of."""
    held = Held(0.0, 0.0, 0, 7, THEN, (THEN,))
    for _ in range(10):
        held = trade(held, 0.1, 3.0, 0.0, NOW).after
    assert held.qty == 0.9999999999999999, "a float sum"
    for sign in (1.0, -1.0):
        whole = trade(replace(held, qty=sign * held.qty), -sign * held.qty, 5.0, 0.0, NOW).after
        assert whole == replace(held, qty=0.0, entry_price_usd=0.0, opened_us=0)
        assert math.copysign(1.0, whole.qty) == 1.0


def test_the_entry_is_the_average_of_what_was_paid() -> None:
    """Of three buys as fractions; a sale in between changes the quantity that weighs and not the entry."""
    bought = [(0.3, 101.25), (1.7, 99.5), (0.25, 140.0)]
    held, paid, weight = FLAT, Fraction(0), Fraction(0)
    for qty, price in bought:
        held = trade(held, qty, price, 0.0, NOW).after
        paid, weight = paid + Fraction(qty) * Fraction(price), weight + Fraction(qty)
    assert held.entry_price_usd == pytest.approx(float(paid / weight), rel=1e-14)
    sold = trade(held, -1.0, 500.0, 0.0, NOW).after
    assert sold.entry_price_usd == held.entry_price_usd
    again = trade(sold, 0.5, 80.0, 0.0, NOW).after
    left = Fraction(sold.qty)
    entry = (left * Fraction(sold.entry_price_usd) + Fraction(1, 2) * 80) / (left + Fraction(1, 2))
    assert again.entry_price_usd == pytest.approx(float(entry), rel=1e-14)


def test_an_average_of_prices_of_which_one_is_lost_to_rounding_stays_between_them() -> None:
    """Sums round: the mean of 0.1 and 0.1 is not above 0.1, and that of subnormal quantities not 0."""
    assert trade(Held(3.0, 0.1, THEN), 7.0, 0.1, 0.0, NOW).after.entry_price_usd == 0.1
    assert trade(Held(TINY, 0.1, THEN), TINY, 0.3, 0.0, NOW).after.entry_price_usd == 0.1
    assert trade(Held(TINY, 0.3, THEN), TINY, 0.1, 0.0, NOW).after.entry_price_usd == 0.1


@pytest.mark.parametrize(
    ("qty", "price", "bps", "usd"),
    [(0.5, 90_000.0, 4.0, 18.0), (-0.5, 90_000.0, 4.0, 18.0), (2.0, 100.0, 0.0, 0.0), (1.0, 50.0, 1000.0, 5.0),
     (1e15, 1e15, 10_000.0, 1e30)],
)  # fmt: skip
def test_a_fee(qty: float, price: float, bps: float, usd: float) -> None:
    """Hundredths of a percent of |quantity| x price; never below 0."""
    assert fee(qty, price, bps) == usd


def test_a_balance_takes_the_pnl_and_gives_the_fee() -> None:
    """An open only costs its fee; a close brings its PnL too."""
    opened = trade(FLAT, 2.0, 100.0, 50.0, NOW)
    assert (opened.pnl_usd, opened.fee_usd) == (None, 1.0)
    assert opened.balance_usd(1000.0) == 999.0
    closed = trade(opened.after, -1.0, 90.0, 100.0, NOW)
    assert (closed.pnl_usd, closed.fee_usd) == (-10.0, 0.9)
    assert closed.balance_usd(999.0) == 999.0 - 10.0 - 0.9
    assert Trade(FLAT, FLAT, 0.0, 1.0, 0.0, 0.25).balance_usd(1.0) == 0.75


@pytest.mark.parametrize(
    ("held", "mark", "usd"),
    [(FLAT, 123.0, 0.0), (LONG, 110.0, 20.0), (LONG, 90.0, -20.0), (SHORT, 110.0, -20.0), (SHORT, 100.0, 0.0)],
)
def test_unrealised_pnl(held: Held, mark: float, usd: float) -> None:
    """Quantity x (mark - entry); nothing where nothing is held."""
    assert held.unrealized_pnl_usd(mark) == usd
