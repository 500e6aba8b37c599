"""A paper book: equal notional in each symbol, rebalanced now and then, valued at every candle.

    share_usd      = equity_usd x exposure / number of symbols
    qty            = share_usd / first close of the symbol
    unrealised PnL = qty x (mark - entry)

Every ``rebalance_bars`` bars of a symbol, counted from when it was bought and shifted by one for each symbol bought
before it, half of the position is sold, which realises its PnL into the balance, and the position is bought back to
its share at the same close; the entry becomes the average. Neither costs anything, so that equity moves with prices
alone. The market state that the book is valued at keeps the closes of the last 60 bars as returns, gap returns left
out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from quantum_alloc.core.market import SIGMA_BARS, hourly_sigma, log_return


@dataclass(frozen=True, slots=True)
class Holding:
    """One symbol of the book.

    Attributes:
        qty: quantity, above 0.
        entry_price_usd: average price that it was bought at.
        bars: bars since it was bought, and one for each symbol that was bought before it.
    """

    qty: float
    entry_price_usd: float
    bars: int = 0

    def unrealized_pnl_usd(self, mark_price_usd: float) -> float:
        """qty x (mark - entry), USD."""
        return self.qty * (mark_price_usd - self.entry_price_usd)


@dataclass(frozen=True, slots=True)
class Fill:
    """One trade of the book.

    Attributes:
        symbol: the symbol.
        qty: signed quantity, below 0 for a sale.
        price_usd: USD.
        pnl_usd: realised, USD; None where nothing was closed.
    """

    symbol: str
    qty: float
    price_usd: float
    pnl_usd: float | None


@dataclass(frozen=True, slots=True)
class Tape:
    """What is known of one symbol's candles.

    Attributes:
        close: last close, USD.
        close_time: when that bar closed, unix seconds.
        bar_s: length of a bar, seconds.
        returns: one entry for each of the last 60 bars; None where the bar has no bar directly before it.
    """

    close: float
    close_time: float
    bar_s: float
    returns: tuple[float | None, ...] = (None,)

    @property
    def sigma(self) -> float | None:
        """Standard deviation of log returns per hour; None when unknown."""
        return hourly_sigma([r for r in self.returns if r is not None], self.bar_s)

    def next(self, close: float, close_time: float, bar_s: float, *, gap: bool) -> Tape:
        """The tape with one more bar.

        Args:
            close: USD, above 0.
            close_time: unix seconds.
            bar_s: seconds.
            gap: True when the bar does not follow the last one directly.
        """
        change = None if gap else log_return(self.close, close)
        return Tape(close, close_time, bar_s, (*self.returns[1 - SIGMA_BARS :], change))


@dataclass(frozen=True, slots=True)
class Book:
    """All holdings.

    Attributes:
        balance_usd: wallet balance.
        share_usd: what each symbol is held for; 0 for a book that holds nothing.
        holdings: by symbol.
        rebalance_bars: bars from one rebalancing of a symbol to the next; 0 for never.
    """

    balance_usd: float
    share_usd: float
    holdings: Mapping[str, Holding] = field(default_factory=dict)
    rebalance_bars: int = 0

    def trade(self, marks: Mapping[str, float]) -> tuple[Book, tuple[Fill, ...]]:
        """The book after a bar, and its trades: what it does not hold is bought, what is due rebalanced.

        Args:
            marks: closes by symbol of those that have a bar, USD, above 0.

        >>> book, fills = Book(100_000.0, 10_000.0).trade({"BTCUSDT": 50_000.0})
        >>> book.holdings, fills[0].qty, fills[0].pnl_usd
        ({'BTCUSDT': Holding(qty=0.2, entry_price_usd=50000.0, bars=0)}, 0.2, None)
        """
        if self.share_usd <= 0.0:
            return self, ()
        holdings, balance, fills = dict(self.holdings), self.balance_usd, []
        for symbol in sorted(marks):
            price, held = marks[symbol], holdings.get(symbol)
            if held is None:
                holdings[symbol] = Holding(self.share_usd / price, price, len(holdings))
                fills.append(Fill(symbol, self.share_usd / price, price, None))
                continue
            bars = held.bars + 1
            if self.rebalance_bars and bars % self.rebalance_bars == 0:
                half = held.qty / 2.0
                sold = Fill(symbol, -half, price, half * (price - held.entry_price_usd))
                bought = self.share_usd / price - half
                balance += sold.pnl_usd or 0.0
                fills.append(sold)
                if bought > 0.0:
                    fills.append(Fill(symbol, bought, price, None))
                    entry = (half * held.entry_price_usd + bought * price) / (half + bought)
                    held = Holding(half + bought, entry)
                else:  # it has doubled: what is left is still worth a share
                    held = Holding(half, held.entry_price_usd)
            holdings[symbol] = Holding(held.qty, held.entry_price_usd, bars)
        return Book(balance, self.share_usd, holdings, self.rebalance_bars), tuple(fills)


def open_book(equity_usd: float, exposure: float, symbols: int, rebalance_bars: int = 0) -> Book:
    """An empty book that will hold the same notional in each symbol.

    Args:
        equity_usd: USD at the start, above 0.
        exposure: sum of notionals as a fraction of equity, at least 0.
        symbols: how many there will be.
        rebalance_bars: bars from one rebalancing of a symbol to the next; 0 for never.

    >>> open_book(100_000.0, 0.20, 11).share_usd
    1818.1818181818182
    """
    share_usd = equity_usd * exposure / symbols if symbols else 0.0
    return Book(equity_usd, share_usd, rebalance_bars=rebalance_bars)
