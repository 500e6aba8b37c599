"""A paper account: average-price accounting, one trade at a time.

    adds to the position       entry = (|before| entry + |qty| price) / (|before| + |qty|)
    takes from it              realised = closed x (price - entry) x sign(before), closed = min(|qty|, |before|);
                               the entry of what is left stays
    goes past zero (a flip)    all of it is closed as above, the rest is opened at the price
    fee                        |qty| x price x fee_bps / 10,000
    balance                    balance + realised - fee

PnL is before fees, as exchanges report it; the fee stands beside it. After a trade the position is the float sum of
what it was and of the trade, so that the sum of all trades, in their order, is the position bit for bit.
Source: the project's governor, section 4.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from quantum_alloc.core.numeric import clamp

BPS = 10_000.0


@dataclass(frozen=True, slots=True)
class Held:
    """One symbol of an account.

    Attributes:
        qty: signed quantity; 0 is flat.
        entry_price_usd: average price of what is held; 0 where nothing is.
        opened_us: when it left zero, or changed its sign, microseconds; 0 where nothing is held.
        next_open_us: no open is filled before, microseconds; 0 for at any time.
        last_fill_us: of the last fill of any kind, microseconds; 0 for none.
        opens_us: of the fills of opens in the last hour, microseconds, oldest first.
    """

    qty: float = 0.0
    entry_price_usd: float = 0.0
    opened_us: int = 0
    next_open_us: int = 0
    last_fill_us: int = 0
    opens_us: tuple[int, ...] = ()

    def unrealized_pnl_usd(self, mark_usd: float) -> float:
        """qty x (mark - entry), USD.

        Args:
            mark_usd: price, USD.

        >>> Held(-2.0, 100.0).unrealized_pnl_usd(90.0)
        20.0
        """
        return self.qty * (mark_usd - self.entry_price_usd)


FLAT = Held()


@dataclass(frozen=True, slots=True)
class Trade:
    """What one trade comes to.

    Attributes:
        before: what was held.
        after: what is held then.
        qty: signed, of the trade.
        price_usd: that it was made at.
        pnl_usd: realised, before the fee; None where nothing was closed.
        fee_usd: of the trade.
    """

    before: Held
    after: Held
    qty: float
    price_usd: float
    pnl_usd: float | None
    fee_usd: float

    def balance_usd(self, before_usd: float) -> float:
        """The balance after it.

        Args:
            before_usd: balance before it, USD.
        """
        return before_usd + (self.pnl_usd or 0.0) - self.fee_usd


def fee(qty: float, price_usd: float, fee_bps: float) -> float:
    """|qty| x price x fee_bps / 10,000, USD.

    Args:
        qty: quantity.
        price_usd: USD, above 0.
        fee_bps: hundredths of a percent.

    >>> fee(-0.5, 90_000.0, 4.0)
    18.0
    """
    return abs(qty) * price_usd * fee_bps / BPS


def trade(held: Held, qty: float, price_usd: float, fee_bps: float, now_us: int) -> Trade:
    """A trade at a price.

    Args:
        held: what is held before it.
        qty: signed; not 0.
        price_usd: USD, above 0.
        fee_bps: hundredths of a percent of its notional.
        now_us: microseconds, for the time that a position is opened.

    >>> bought = trade(Held(1.0, 100.0), 1.0, 110.0, 0.0, 0)
    >>> bought.after.entry_price_usd, trade(bought.after, -3.0, 115.0, 0.0, 7).pnl_usd
    (105.0, 20.0)
    """
    before, after = held.qty, held.qty + qty
    cost = fee(qty, price_usd, fee_bps)
    if before == 0.0 or (before > 0.0) == (qty > 0.0):
        entry = price_usd
        if before != 0.0:
            mean = (abs(before) * held.entry_price_usd + abs(qty) * price_usd) / (abs(before) + abs(qty))
            entry = clamp(mean, min(held.entry_price_usd, price_usd), max(held.entry_price_usd, price_usd))
        opened_us = now_us if before == 0.0 else held.opened_us
        more = replace(held, qty=after, entry_price_usd=entry, opened_us=opened_us)
        return Trade(held, more, qty, price_usd, None, cost)
    closed = min(abs(qty), abs(before))
    pnl = closed * (price_usd - held.entry_price_usd) * (1.0 if before > 0.0 else -1.0)
    if after == 0.0:
        left = replace(held, qty=0.0, entry_price_usd=0.0, opened_us=0)
    elif (after > 0.0) == (before > 0.0):
        left = replace(held, qty=after)
    else:
        left = replace(held, qty=after, entry_price_usd=price_usd, opened_us=now_us)
    return Trade(held, left, qty, price_usd, pnl, cost)
