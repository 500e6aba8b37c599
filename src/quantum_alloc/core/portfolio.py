"""Portfolio state (P2.5): equity, its peak, and the drawdown that every target pays for.

    equity_usd   = balance_usd + sum of unrealised PnL
    peak_usd     = greatest equity ever seen; it has no expiry and is reset only by command
    drawdown     = 1 - equity / peak, within [0, 1]

What an unusable input does:

- balance: there is no equity, nothing is published;
- a position whose only fault is its age counts with its last values: the position is still held;
- a position that cannot be read counts as it last could (``PortfolioState.held``), or not at all if it never could;
  then the equity raises no peak;
- a peak that is there but cannot be read is never replaced by today's equity, for that would forget a drawdown: the
  peak of memory counts, and without one the drawdown is unknown (readers then take the HIGH zone).

Source: the project's rules, section 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from quantum_alloc.core.numeric import clamp01, exact_sum
from quantum_alloc.core.reading import Reading, Reason, Unusable

RULES_VERSION = "p25_v1"


@dataclass(frozen=True, slots=True)
class Portfolio:
    """What other rules need of a portfolio.

    Attributes:
        equity_usd: USD, finite.
        drawdown: fraction of the peak in [0, 1]; None when absent or malformed.
    """

    equity_usd: float
    drawdown: float | None


@dataclass(frozen=True, slots=True)
class Position:
    """One symbol's position.

    Attributes:
        qty: signed quantity.
        mark_price_usd: USD, above 0.
        unrealized_pnl_usd: USD.
    """

    qty: float
    mark_price_usd: float
    unrealized_pnl_usd: float

    @property
    def notional_usd(self) -> float:
        """|qty x mark|, USD."""
        return abs(self.qty * self.mark_price_usd)


@dataclass(frozen=True, slots=True)
class PortfolioInputs:
    """Everything that one cycle reads.

    Attributes:
        now: unix seconds.
        balance_usd: wallet balance.
        positions: by symbol; a symbol without a position record is absent or missing.
        peak_usd: greatest equity on record.
    """

    now: float
    balance_usd: Reading[float]
    positions: Mapping[str, Reading[Position]]
    peak_usd: Reading[float]


@dataclass(frozen=True, slots=True)
class PortfolioState:
    """What is remembered from cycle to cycle.

    Attributes:
        held: the last readable position of each symbol whose record is still there.
        peak_usd: the last known peak, USD; None before the first.
    """

    held: Mapping[str, Position] = field(default_factory=dict)
    peak_usd: float | None = None


@dataclass(frozen=True, slots=True)
class PortfolioDecision:
    """The portfolio as published.

    Attributes:
        now: unix seconds.
        equity_usd: balance + unrealised PnL.
        balance_usd: wallet balance.
        unrealized_pnl_usd: sum over positions.
        positions_notional_usd: sum of |qty x mark|.
        positions_count: positions with a quantity other than 0.
        peak_equity_usd: None when it cannot be known.
        drawdown: fraction of the peak, None when it cannot be known.
        held_over: symbols counted by their last readable or out-of-date values.
        left_out: symbols whose position never could be read.
    """

    now: float
    equity_usd: float
    balance_usd: float
    unrealized_pnl_usd: float
    positions_notional_usd: float
    positions_count: int
    peak_equity_usd: float | None
    drawdown: float | None
    held_over: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


def drawdown(equity_usd: float, peak_usd: float | None) -> float | None:
    """1 - equity / peak, within [0, 1]; None without a positive peak.

    Args:
        equity_usd: USD.
        peak_usd: USD, or None.

    >>> drawdown(92_000.0, 100_000.0)
    0.07999999999999996
    """
    if peak_usd is None or not peak_usd > 0.0:
        return None
    return clamp01(1.0 - equity_usd / peak_usd)


def _peak(equity_usd: float, on_record: Reading[float], remembered: float | None, *, whole: bool) -> float | None:
    """The greatest equity seen; one that lacks a position, or is not positive, raises no peak."""
    seen = [x for x in (on_record.value, remembered) if x is not None]
    if seen:
        return max(*seen, equity_usd) if whole else max(seen)
    is_first = isinstance(on_record, Unusable) and on_record.reason is Reason.MISSING
    return equity_usd if is_first and whole and equity_usd > 0.0 else None


def step_portfolio(
    state: PortfolioState, inputs: PortfolioInputs
) -> tuple[PortfolioState, PortfolioDecision | Unusable[float]]:
    """One cycle: the portfolio, or why there is none.

    Args:
        state: what the cycle before remembered.
        inputs: what this cycle read.

    Returns:
        The state to remember, and the decision; the unusable balance instead when there is no equity.

    >>> from quantum_alloc.core.reading import fresh, missing
    >>> inputs = PortfolioInputs(0.0, fresh(100_000.0), {"BTCUSDT": fresh(Position(0.5, 90_000.0, -800.0))}, missing())
    >>> state, decision = step_portfolio(PortfolioState(), inputs)
    >>> decision.equity_usd, decision.positions_notional_usd, decision.drawdown
    (99200.0, 45000.0, 0.0)
    """
    if isinstance(inputs.balance_usd, Unusable):
        return state, inputs.balance_usd
    counted: dict[str, Position] = {}
    held_over: list[str] = []
    left_out: list[str] = []
    for symbol in sorted(inputs.positions):
        reading = inputs.positions[symbol]
        if isinstance(reading, Unusable) and reading.reason is Reason.MISSING:
            continue
        position = reading.value if reading.value is not None else state.held.get(symbol)
        if position is None:
            left_out.append(symbol)
            continue
        if isinstance(reading, Unusable):
            held_over.append(symbol)
        counted[symbol] = position
    unrealized = exact_sum(p.unrealized_pnl_usd for p in counted.values())
    equity = inputs.balance_usd.value + unrealized
    peak = _peak(equity, inputs.peak_usd, state.peak_usd, whole=not left_out)
    decision = PortfolioDecision(
        now=inputs.now,
        equity_usd=equity,
        balance_usd=inputs.balance_usd.value,
        unrealized_pnl_usd=unrealized,
        positions_notional_usd=exact_sum(p.notional_usd for p in counted.values()),
        positions_count=sum(1 for p in counted.values() if p.qty != 0.0),
        peak_equity_usd=peak,
        drawdown=drawdown(equity, peak),
        held_over=tuple(held_over),
        left_out=tuple(left_out),
    )
    return PortfolioState(counted, peak), decision
