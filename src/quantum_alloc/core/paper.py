"""A paper book: equal notional in each symbol, bought once, valued at every candle.

    share_usd      = equity_usd x exposure / number of symbols
    qty            = share_usd / first close of the symbol
    unrealised PnL = qty x (mark - entry)

The balance stays what it was at the start: a held position moves equity through its unrealised PnL alone. The market
state that the book is valued at keeps the closes of the last 60 bars as returns, gap returns left out.
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
        entry_price_usd: what it was bought at.
    """

    qty: float
    entry_price_usd: float

    def unrealized_pnl_usd(self, mark_price_usd: float) -> float:
        """qty x (mark - entry), USD."""
        return self.qty * (mark_price_usd - self.entry_price_usd)


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
        share_usd: what each symbol is bought for; 0 for a book that holds nothing.
        holdings: by symbol.
    """

    balance_usd: float
    share_usd: float
    holdings: Mapping[str, Holding] = field(default_factory=dict)

    def buy(self, marks: Mapping[str, float]) -> Book:
        """The book after buying the symbols that it does not hold yet.

        Args:
            marks: prices by symbol, USD, above 0.

        >>> Book(100_000.0, 10_000.0).buy({"BTCUSDT": 50_000.0}).holdings
        {'BTCUSDT': Holding(qty=0.2, entry_price_usd=50000.0)}
        """
        new = {s: Holding(self.share_usd / p, p) for s, p in marks.items() if s not in self.holdings}
        if not new or self.share_usd <= 0.0:
            return self
        return Book(self.balance_usd, self.share_usd, {**self.holdings, **new})


def open_book(equity_usd: float, exposure: float, symbols: int) -> Book:
    """An empty book that will hold the same notional in each symbol.

    Args:
        equity_usd: USD at the start, above 0.
        exposure: sum of notionals as a fraction of equity, at least 0.
        symbols: how many there will be.

    >>> open_book(100_000.0, 0.20, 11).share_usd
    1818.1818181818182
    """
    return Book(equity_usd, equity_usd * exposure / symbols if symbols else 0.0)
