"""Laws of portfolio state, budget, market state and the paper book."""

from __future__ import annotations

import math
import statistics
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

import quantum_alloc.core as qa
from quantum_alloc.core.budget import HEAT_LIMIT
from quantum_alloc.core.paper import Book, Tape, open_book
from quantum_alloc.core.portfolio import PortfolioState

usd = st.floats(-1e6, 1e6)
prices = st.floats(1e-3, 1e6)
position = st.builds(qa.Position, st.floats(-1e4, 1e4), prices, usd)
reading: st.SearchStrategy[Any] = st.one_of(
    position.map(qa.fresh),
    position.map(lambda p: qa.Unusable(qa.Reason.STALE, p, 0.0, 99)),
    st.sampled_from([qa.Unusable(r) for r in qa.Reason if r is not qa.Reason.STALE]),
)
books = st.dictionaries(st.sampled_from(["BTCUSDT", "ETHUSDT", "XRPUSDT"]), reading)


class Peak(RuleBasedStateMachine):
    """The peak, through cycles, unreadable records and restarts."""

    def __init__(self) -> None:
        """A first start."""
        super().__init__()
        self.state = PortfolioState()
        self.on_record: float | None = None
        self.highest = -math.inf
        self.decision: qa.PortfolioDecision | None = None

    @rule(balance=st.floats(-1e5, 1e6), book=books, readable=st.sampled_from(["yes", "malformed", "redis_error"]))
    def cycle(self, balance: float, book: dict[str, qa.Reading[qa.Position]], readable: str) -> None:
        """One cycle; the record of the peak may be unreadable."""
        if readable != "yes":
            peak: qa.Reading[float] = qa.Unusable(qa.Reason(readable))
        else:
            peak = qa.missing() if self.on_record is None else qa.fresh(self.on_record)
        inputs = qa.PortfolioInputs(0.0, qa.fresh(balance), book, peak)
        self.state, made = qa.step_portfolio(self.state, inputs)
        assert isinstance(made, qa.PortfolioDecision)
        self.decision = made
        if made.peak_equity_usd is not None:
            self.on_record = made.peak_equity_usd
            assert made.peak_equity_usd > 0.0
        if made.peak_equity_usd is not None and not made.left_out:
            self.highest = max(self.highest, made.equity_usd)

    @rule()
    def restart(self) -> None:
        """Memory is gone; the record stays."""
        self.state = PortfolioState()

    @invariant()
    def a_peak_is_never_forgotten(self) -> None:
        """The record never falls, and no known drawdown is smaller than the one from the highest equity seen."""
        if self.decision is None or self.decision.peak_equity_usd is None:
            return
        assert self.on_record is not None
        assert self.on_record >= self.highest
        d = self.decision.drawdown
        assert d is None or 0.0 <= d <= 1.0
        assert self.decision.left_out or self.decision.peak_equity_usd >= self.decision.equity_usd


TestPeak = Peak.TestCase


@given(st.floats(0, 1e6), books)
def test_equity_is_balance_plus_pnl(balance: float, book: dict[str, qa.Reading[qa.Position]]) -> None:
    """equity = balance + sum of the readable or outdated positions; what cannot be read is named, never guessed."""
    inputs = qa.PortfolioInputs(0.0, qa.fresh(balance), book, qa.missing())
    _, made = qa.step_portfolio(PortfolioState(), inputs)
    assert isinstance(made, qa.PortfolioDecision)
    known = [r.value for r in book.values() if r.value is not None]
    assert made.equity_usd == balance + math.fsum(p.unrealized_pnl_usd for p in known)
    assert made.positions_notional_usd == math.fsum(abs(p.qty * p.mark_price_usd) for p in known)
    assert set(made.left_out) == {s for s, r in book.items() if r.value is None and r.state != "missing"}


@given(position, st.sampled_from(["malformed", "redis_error", "future_ts"]))
def test_a_position_that_turns_unreadable_counts_as_it_last_did(p: qa.Position, why: str) -> None:
    """An unreadable position counts with the value that is remembered; a missing one is flat."""
    inputs = qa.PortfolioInputs(0.0, qa.fresh(1e5), {"BTCUSDT": qa.fresh(p)}, qa.missing())
    state, before = qa.step_portfolio(PortfolioState(), inputs)
    broken: dict[str, qa.Reading[qa.Position]] = {"BTCUSDT": qa.Unusable(qa.Reason(why))}
    _, after = qa.step_portfolio(state, qa.PortfolioInputs(1.0, qa.fresh(1e5), broken, qa.missing()))
    gone: dict[str, qa.Reading[qa.Position]] = {"BTCUSDT": qa.missing()}
    _, flat = qa.step_portfolio(state, qa.PortfolioInputs(1.0, qa.fresh(1e5), gone, qa.missing()))
    assert isinstance(before, qa.PortfolioDecision)
    assert isinstance(after, qa.PortfolioDecision)
    assert isinstance(flat, qa.PortfolioDecision)
    assert (after.equity_usd, after.held_over) == (before.equity_usd, ("BTCUSDT",))
    assert flat.equity_usd == 1e5


@pytest.mark.parametrize("why", list(qa.Reason))
def test_no_balance_no_portfolio(why: qa.Reason) -> None:
    """Without a usable balance nothing is published, and the reason is told."""
    state = PortfolioState({}, 5.0)
    after, made = qa.step_portfolio(state, qa.PortfolioInputs(0.0, qa.Unusable(why), {}, qa.missing()))
    assert after is state
    assert isinstance(made, qa.Unusable)
    assert made.reason is why


@given(st.floats(1e-6, 1e9), st.floats(0, 5), st.floats(0, 1), st.floats(0, 1), st.floats(0, 5))
def test_budget_is_bounded_and_monotone(e: float, heat: float, stress: float, vol: float, more: float) -> None:
    """MIN..MAX and never above equity; more heat, stress or volatility never raises it, more equity never lowers it."""
    made = qa.budget(e, heat, stress, vol)
    assert made <= e
    assert made <= 10_000
    assert made >= min(500.0, e)
    assert qa.budget(e, heat + more, stress, vol) <= made <= qa.budget(e + more, heat, stress, vol)
    assert 0.0 <= qa.stress_factor(heat, stress, vol) <= 1.0


@given(books, st.dictionaries(st.sampled_from(["BTCUSDT", "SOLUSDT"]), st.floats(1e-6, 1e3)), st.floats(1, 1e7))
def test_a_budget_cycle_covers_positions_and_markets(
    book: dict[str, qa.Reading[qa.Position]], sigmas: dict[str, float], e: float
) -> None:
    """One budget for each symbol with a position or a market state; unreadable members add no heat; over is over."""
    markets: dict[str, qa.Reading[qa.Market]] = {s: qa.fresh(qa.Market(1.0, v)) for s, v in sigmas.items()}
    inputs = qa.BudgetInputs(0.0, qa.fresh(qa.Portfolio(e, 0.0)), book, markets, {"C1": qa.fresh(0.1)})
    cycle = qa.budget_cycle(inputs)
    there = {s for s, r in book.items() if r.state != "missing"} | set(markets)
    assert {d.symbol for d in cycle.decisions} == there
    usable = {s: r.value for s, r in book.items() if isinstance(r, qa.Fresh)}
    heat = math.fsum(p.notional_usd * sigmas[s] for s, p in usable.items() if s in sigmas) / e
    for d in cycle.decisions:
        assert d.portfolio_heat == pytest.approx(min(heat, HEAT_LIMIT), rel=1e-12)
        assert (d.over_budget_usd > 0) == (d.symbol in usable and usable[d.symbol].notional_usd > d.budget_usd)


@pytest.mark.parametrize(
    ("portfolio", "why"),
    [
        (qa.missing(), "portfolio_missing"),
        (qa.Unusable(qa.Reason.STALE, qa.Portfolio(1.0, 0.0)), "portfolio_stale"),
        (qa.fresh(qa.Portfolio(0.0, 0.0)), "equity_not_positive"),
        (qa.fresh(qa.Portfolio(-5.0, None)), "equity_not_positive"),
    ],
)
def test_no_portfolio_no_budget(portfolio: qa.Reading[qa.Portfolio], why: str) -> None:
    """Portfolio missing, stale, or equity not positive: no budget, and why."""
    markets: dict[str, qa.Reading[qa.Market]] = {"BTCUSDT": qa.fresh(qa.Market(1.0, None))}
    cycle = qa.budget_cycle(qa.BudgetInputs(0.0, portfolio, {}, markets, {}))
    assert (cycle.halted, cycle.decisions) == (why, ())


@given(st.lists(st.tuples(prices, st.booleans()), min_size=1, max_size=150))
def test_sigma_is_the_deviation_of_the_last_sixty_bars(bars: list[tuple[float, bool]]) -> None:
    """sigma = stdev of the last 60 bars' log returns, gap returns left out, scaled to one hour; unknown below two."""
    tape = Tape(bars[0][0], 0.0, 60.0)
    returns: list[float | None] = [None]
    for i, (close, gap) in enumerate(bars[1:]):
        returns.append(None if gap else math.log(close / tape.close))
        tape = tape.next(close, 60.0 * (i + 1), 60.0, gap=gap)
    used = [r for r in returns[-60:] if r is not None]
    if len(used) < 2:
        assert tape.sigma is None
    else:
        assert tape.sigma == pytest.approx(statistics.stdev(used) * math.sqrt(60), rel=1e-9, abs=1e-15)


walks = st.lists(st.dictionaries(st.sampled_from(["A1", "B1", "C1"]), prices, min_size=1), min_size=1, max_size=20)


@given(walks)
def test_the_book_buys_each_symbol_once(steps: list[dict[str, float]]) -> None:
    """Without rebalancing: equal notional at the first price of each symbol, never bought again, no PnL."""
    book = open_book(100_000.0, 0.2, 3)
    first: dict[str, float] = {}
    for marks in steps:
        book, fills = book.trade(marks)
        assert [f.symbol for f in fills] == sorted(marks.keys() - first.keys())
        assert all(f.pnl_usd is None for f in fills)
        for s, p in marks.items():
            first.setdefault(s, p)
    assert {s: h.entry_price_usd for s, h in book.holdings.items()} == first
    for h in book.holdings.values():
        assert h.qty * h.entry_price_usd == pytest.approx(20_000 / 3, rel=1e-12)
    assert Book(1.0, 0.0).trade({"A1": 1.0}) == (Book(1.0, 0.0), ())
    assert open_book(1.0, 1.0, 0).share_usd == 0.0


@given(walks, st.integers(1, 5))
def test_rebalancing_moves_no_equity_and_restores_the_share(steps: list[dict[str, float]], every: int) -> None:
    """A rebalancing realises what half of the position has earned, leaves equity as it was, and ends at the share (or
    at half of what it was, where that is more)."""
    book = open_book(100_000.0, 0.2, 3, rebalance_bars=every)
    seen: dict[str, int] = {}
    for marks in steps:
        before = book
        book, fills = book.trade(marks)
        for s, p in sorted(marks.items()):
            held = before.holdings.get(s)
            new = book.holdings[s]
            if held is None:
                seen[s] = len(seen)
                continue
            seen[s] += 1
            own = [f for f in fills if f.symbol == s]
            if seen[s] % every:
                assert (own, new.qty) == ([], held.qty)
                continue
            worth = held.qty * p
            assert own[0].pnl_usd == pytest.approx(worth / 2 - held.qty / 2 * held.entry_price_usd, rel=1e-9, abs=1e-9)
            assert new.qty * p == pytest.approx(max(20_000 / 3, worth / 2), rel=1e-9)
        marked = [s for s in marks if s in before.holdings]
        values = [
            b.balance_usd + sum(b.holdings[s].unrealized_pnl_usd(marks[s]) for s in marked) for b in (before, book)
        ]
        assert values[1] == pytest.approx(values[0], rel=1e-9, abs=1e-3)


@given(st.floats(min_value=5e-324, max_value=1e-300), st.sampled_from([0.0, 0.4]))
def test_budgets_stay_numbers_for_an_equity_next_to_nothing(e: float, alpha: float) -> None:
    """Whatever equity, positions and weights: every number of a budget is finite."""
    book: dict[str, qa.Reading[qa.Position]] = {"BTCUSDT": qa.fresh(qa.Position(1e15, 1e15, 0.0))}
    markets: dict[str, qa.Reading[qa.Market]] = {"BTCUSDT": qa.fresh(qa.Market(1e15, 1e6))}
    inputs = qa.BudgetInputs(0.0, qa.fresh(qa.Portfolio(e, 0.0)), book, markets, {})
    for d in qa.budget_cycle(inputs, qa.BudgetParams(alpha_heat=alpha)).decisions:
        assert all(math.isfinite(x) for x in (d.budget_usd, d.stress_factor, d.portfolio_heat))


def test_returns_between_extreme_prices_are_finite() -> None:
    """A return stays finite where the ratio of two prices is no float."""
    assert math.isfinite(Tape(5e-324, 0.0, 60.0).next(1e15, 60.0, 60.0, gap=False).returns[-1] or math.inf)


def test_a_symbol_without_any_record_has_no_budget() -> None:
    """Neither a position nor a market state: no budget; a step that fails costs its own symbol."""
    absent: dict[str, qa.Reading[qa.Position]] = {
        "AAUSDT": qa.missing(),
        "BBUSDT": qa.fresh(qa.Position(1.0, 5.0, 0.0)),
    }
    inputs = qa.BudgetInputs(0.0, qa.fresh(qa.Portfolio(1e5, 0.0)), absent, {"AAUSDT": qa.missing()}, {})
    assert [d.symbol for d in qa.budget_cycle(inputs).decisions] == ["BBUSDT"]
    assert qa.budget_cycle(inputs, attempt=lambda *_: None).decisions == ()
