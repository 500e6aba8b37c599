"""What the limits count: permits of a symbol in sliding windows and of the day, and opens that are not yet positions.

    ledger      one entry a permit of the symbol; (t - W, t] counts, so an entry exactly W old is out, and one that a
                clock set back has left in the future is in
    day         closes of the UTC day, USD and quantity counted apart
    book        opens that were permitted and are not yet seen in position and portfolio; released at their expiry
                when nobody consumed them, else when position and portfolio are newer than their consumption

Times are whole microseconds of the server's clock, so that windows are exact. Source: the project's governor, 1 and 2.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from quantum_alloc.core.numeric import exact_sum
from quantum_alloc.core.plan import Movement
from quantum_alloc.core.reading import Fresh, Reading, Reason, Unusable

S = TypeVar("S")
T = TypeVar("T")
US = 1_000_000
HOUR_S, BURST_S, DAY_S = 3600, 300, 86_400
BUDGET_STALE_S, MARKET_STALE_S, PORTFOLIO_STALE_S, TARGET_STALE_S = 60, 60, 60, 300
"""Greatest age of what the gates look at, whole seconds."""


def us(seconds: float) -> int:
    """Seconds as whole microseconds.

    Args:
        seconds: finite.

    >>> us(1769577495.000001)
    1769577495000001
    """
    return round(seconds * US)


@dataclass(frozen=True, slots=True)
class Issued:
    """A permit, as the ledger keeps it.

    Attributes:
        at_us: when it was issued.
        movement: open or close.
        usd: notional; 0 where no price was known.
        qty: quantity of a close without a known price, else 0.
    """

    at_us: int
    movement: Movement
    usd: float = 0.0
    qty: float = 0.0


@dataclass(frozen=True, slots=True)
class Ledger:
    """The permits of one symbol that some limit still counts.

    Attributes:
        revision: number of permits ever issued for it, as text.
        issued: by plan id.
    """

    revision: str = "0"
    issued: Mapping[str, Issued] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Usage:
    """What the limits of one symbol have counted by a moment.

    Attributes:
        opens_us: times of the opens of the last hour, sorted.
        closes_us: times of the closes of the last hour, sorted.
        last_us: time of the last permit; None without one.
        day_usd: closed today at known prices, USD.
        day_qty: closed today without a known price.
    """

    opens_us: tuple[int, ...] = ()
    closes_us: tuple[int, ...] = ()
    last_us: int | None = None
    day_usd: float = 0.0
    day_qty: float = 0.0

    def of(self, movement: Movement) -> tuple[int, ...]:
        """The times of the last hour that count for a movement.

        Args:
            movement: open or close.
        """
        return self.opens_us if movement is Movement.OPEN else self.closes_us


NO_USAGE = Usage()


def usage(issued: Iterable[Issued], now_us: int) -> Usage:
    """What the limits count at a moment.

    Args:
        issued: of one symbol.
        now_us: microseconds.

    >>> usage([Issued(0, Movement.OPEN)], 3600 * US - 1).opens_us, usage([Issued(0, Movement.OPEN)], 3600 * US).opens_us
    ((0,), ())
    """
    since, today = now_us - HOUR_S * US, now_us // (DAY_S * US)
    opens: list[int] = []
    closes: list[int] = []
    closed_today: list[Issued] = []
    last: int | None = None
    for one in issued:
        if last is None or one.at_us > last:
            last = one.at_us
        if one.at_us > since:
            (opens if one.movement is Movement.OPEN else closes).append(one.at_us)
        if one.movement is Movement.CLOSE and one.at_us // (DAY_S * US) >= today:
            closed_today.append(one)
    if last is None:
        return NO_USAGE
    usd, qty = exact_sum(d.usd for d in closed_today), exact_sum(d.qty for d in closed_today)
    return Usage(tuple(sorted(opens)), tuple(sorted(closes)), last, usd, qty)


def forgotten(ledger: Ledger, now_us: int, keep_s: int) -> tuple[str, ...]:
    """Plan ids of the entries that no limit counts any more.

    Args:
        ledger: of one symbol.
        now_us: microseconds.
        keep_s: seconds that an entry counts at least.
    """
    since, today = now_us - max(HOUR_S, keep_s) * US, now_us // (DAY_S * US)
    return tuple(
        plan_id
        for plan_id, one in ledger.issued.items()
        if one.at_us <= since and (one.movement is Movement.OPEN or one.at_us // (DAY_S * US) < today)
    )


@dataclass(frozen=True, slots=True)
class Outstanding:
    """An open that was permitted and may not be a position yet.

    Attributes:
        plan_id: of its plan.
        symbol: the symbol.
        usd: its notional.
        at_us: when it was permitted.
        until_us: when its permit expires.
        consumed_us: when the apply layer took it; None while nobody has.
    """

    plan_id: str
    symbol: str
    usd: float
    at_us: int
    until_us: int
    consumed_us: int | None = None


def seen_s(reading: Reading[T]) -> float | None:
    """The time of a record that could be read, fresh or old; None for any other.

    Args:
        reading: of a position or a portfolio.
    """
    readable = isinstance(reading, Fresh) or reading.reason is Reason.STALE
    return reading.ts if readable else None


def is_released(one: Outstanding, now_us: int, position: Reading[T], portfolio: Reading[S]) -> bool:
    """Whether an outstanding open no longer counts.

    Args:
        one: the open.
        now_us: microseconds.
        position: of its symbol, as read.
        portfolio: as read.

    >>> from quantum_alloc.core.reading import missing
    >>> one = Outstanding("p1", "BTCUSDT", 100.0, 0, 60 * US)
    >>> is_released(one, 60 * US - 1, Fresh(0, 0.0), Fresh(0, 0.0)), is_released(one, 60 * US, missing(), missing())
    (False, True)
    """
    if one.consumed_us is None:
        return now_us >= one.until_us
    position_s, portfolio_s = seen_s(position), seen_s(portfolio)
    if portfolio_s is None:
        return False
    after = portfolio_s * US > max(one.until_us, one.consumed_us)
    if position_s is not None:
        if min(position_s, portfolio_s) * US > one.consumed_us:
            return True
        # a market that ended right after the fill marks its position no more; written in that second, it has the fill
        return after and (position_s + 1.0) * US > one.consumed_us
    # no position: closed again, or not written yet; a portfolio from after the permit's life knows
    absent = isinstance(position, Unusable) and position.reason is Reason.MISSING
    return absent and after


@dataclass(frozen=True, slots=True)
class BookUse:
    """What the outstanding opens come to, for one plan.

    Attributes:
        usd: of all symbols.
        slots: symbols with one and without a position.
        symbol_usd: of the plan's symbol.
        has_slot: True when the plan's symbol has a position or an outstanding open.
    """

    usd: float = 0.0
    slots: int = 0
    symbol_usd: float = 0.0
    has_slot: bool = False


class Booked:
    """The outstanding opens of a fold, summed up as they come.

    One that was consumed and is not released takes a slot although its symbol has a position: the portfolio may not
    have counted that position yet.
    """

    __slots__ = ("_held", "_of", "_usd", "_waiting")

    def __init__(self, book: Iterable[Outstanding], held: Mapping[str, bool]) -> None:
        """Take those that count.

        Args:
            book: those that count.
            held: whether each symbol has a position; one that is unknown counts as none.
        """
        self._held = held
        self._usd: list[float] = []
        self._waiting: set[str] = set()
        self._of: dict[str, list[float]] = {}
        for one in book:
            self.add(one)

    def add(self, one: Outstanding) -> None:
        """One more."""
        self._usd.append(one.usd)
        self._of.setdefault(one.symbol, []).append(one.usd)
        if one.consumed_us is not None or not self._held.get(one.symbol, False):
            self._waiting.add(one.symbol)

    def use(self, symbol: str) -> BookUse:
        """What they come to, for a plan of a symbol."""
        has_slot = symbol in self._waiting or self._held.get(symbol, False)
        return BookUse(exact_sum(self._usd), len(self._waiting), exact_sum(self._of.get(symbol, ())), has_slot)
