"""``portfolio`` (P2.5): equity, peak and drawdown from the balance and all positions, every 5 s."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from quantum_alloc.adapters import wire
from quantum_alloc.adapters.effects import Group
from quantum_alloc.adapters.keys import LIVE, Keys
from quantum_alloc.adapters.metrics import Metrics
from quantum_alloc.adapters.store import Store
from quantum_alloc.adapters.universe import Symbols, Universe
from quantum_alloc.adapters.writes import Target, portfolio_effects
from quantum_alloc.core import (
    Fresh,
    PortfolioDecision,
    PortfolioInputs,
    PortfolioState,
    Reason,
    Unusable,
    step_portfolio,
)
from quantum_alloc.core.isolate import Attempt
from quantum_alloc.services.logs import Fields
from quantum_alloc.services.loop import Cycle, Told
from quantum_alloc.services.vacuity import Watch

NAME = "portfolio"
DONE = "Portfolio cycle complete"
Made = PortfolioDecision | Unusable[float]


@dataclass(frozen=True, slots=True)
class Seen:
    """Everything that one cycle read."""

    symbols: Symbols
    inputs: PortfolioInputs


def read(store: Store, universe: Universe, keys: Keys, balance_s: float, position_s: float, now: float) -> Seen:
    """All inputs of a cycle, in two batches."""
    first = store.read([wire.BALANCE.query(keys.balance), wire.PEAK.query(keys.peak), *universe.query])
    symbols = universe.find(store, first[2:], now)
    replies = store.read([wire.POSITION.query(keys.position(s)) for s in symbols.names])
    positions = {s: wire.decode(wire.POSITION, r, now, position_s) for s, r in zip(symbols.names, replies, strict=True)}
    balance = wire.decode(wire.BALANCE, first[0], now, balance_s)
    return Seen(symbols, PortfolioInputs(now, balance, positions, wire.decode(wire.PEAK, first[1], now, 0)))


def tell(metrics: Metrics, watch: Watch, seen: Seen, made: Made) -> Told:
    """Metrics and the cycle's line."""
    m = metrics
    m.set("quantum_alloc_symbols", len(seen.symbols.names))
    m.set("quantum_alloc_refused_names", seen.symbols.refused)
    m.set("quantum_alloc_dropped_symbols", seen.symbols.dropped)
    looked: Counter[tuple[str, str]] = Counter(("position", r.state) for r in seen.inputs.positions.values())
    looked["balance", seen.inputs.balance_usd.state] += 1
    looked["peak", seen.inputs.peak_usd.state] += 1
    watch.inputs(seen.inputs.now, looked)
    watch.tell(seen.inputs.now)
    if isinstance(made, Unusable):
        return Told(DONE, made.detail or f"balance_{made.reason}", {"equity": None})
    m.set("quantum_alloc_equity_usd", made.equity_usd)
    m.set("quantum_alloc_positions", made.positions_count)
    m.set("quantum_alloc_positions_unusable", len(made.held_over), "held_over")
    m.set("quantum_alloc_positions_unusable", len(made.left_out), "left_out")
    if made.peak_equity_usd is not None:
        m.set("quantum_alloc_peak_equity_usd", made.peak_equity_usd)
    if made.drawdown is not None:
        m.set("quantum_alloc_drawdown_ratio", made.drawdown)
    told: Fields = {"equity": made.equity_usd, "drawdown": made.drawdown, "positions": made.positions_count}
    return Told(DONE, fields=told)


def build(
    store: Store,
    metrics: Metrics,
    universe: Universe,
    to: Target,
    interval_s: float,
    balance_s: float,
    position_s: float,
) -> Cycle[PortfolioState, Seen, Made]:
    """The service.

    Args:
        store: where it reads.
        metrics: where it counts.
        universe: its symbols.
        to: stream length and names.
        interval_s: cadence.
        balance_s: greatest age of the balance, seconds.
        position_s: age from which a position counts as out of date, seconds.
    """

    watch = Watch(metrics, "")

    def decide(state: PortfolioState, seen: Seen, _: Attempt) -> tuple[PortfolioState, Made]:
        if not seen.symbols.complete:  # the equity of some of the positions would raise a peak that never was
            return state, Unusable(Reason.MISSING, detail="scanning")
        return step_portfolio(state, seen.inputs)

    def effects(seen: Seen, made: Made) -> tuple[Group, ...]:
        if isinstance(made, Unusable):
            return ()
        on_record = seen.inputs.peak_usd
        return portfolio_effects(made, on_record.value if isinstance(on_record, Fresh) else None, to)

    return Cycle(
        name=NAME,
        mode="",
        interval_s=interval_s,
        initial=PortfolioState(),
        read=lambda now: read(store, universe, to.keys, balance_s, position_s, now),
        decide=decide,
        effects=effects,
        tell=lambda seen, made, _: tell(metrics, watch, seen, made),
    )


def universe_of(keys: Keys = LIVE, fixed: tuple[str, ...] = (), limit: int = 10_000) -> Universe:
    """Symbols with a position."""
    return Universe(keys, (keys.position(""),), fixed, limit)
