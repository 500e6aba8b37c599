"""``budget`` (P2.8): the base budget of every symbol with a position or a market state, every 10 s."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from quantum_alloc.adapters import wire
from quantum_alloc.adapters.effects import Command, Group
from quantum_alloc.adapters.keys import LIVE, Keys
from quantum_alloc.adapters.metrics import Metrics
from quantum_alloc.adapters.store import Store
from quantum_alloc.adapters.universe import Symbols, Universe
from quantum_alloc.adapters.writes import Target, budget_effects
from quantum_alloc.core import BudgetCycle, BudgetInputs, BudgetParams, budget_cycle
from quantum_alloc.core.isolate import Attempt
from quantum_alloc.services.logs import Fields
from quantum_alloc.services.loop import Cycle, Told
from quantum_alloc.services.vacuity import Watch, value_of, values_of

NAME = "budget"
DONE = "Budget cycle complete"


@dataclass(frozen=True, slots=True)
class Seen:
    """Everything that one cycle read."""

    symbols: Symbols
    inputs: BudgetInputs
    clusters: wire.ClusterMap


def read(store: Store, universe: Universe, keys: Keys, params: BudgetParams, now: float) -> Seen:
    """All inputs of a cycle, in three batches."""
    first = store.read([wire.PORTFOLIO.query(keys.portfolio), ("HLEN", keys.clusters), *universe.query])
    symbols = universe.find(store, first[2:], now)
    names, limit = symbols.names, params.stale_data_s
    too_large = isinstance(first[1], int) and first[1] > wire.MAP_FIELDS_LIMIT
    batch: list[Command] = [] if too_large else [("HGETALL", keys.clusters)]
    batch += [wire.POSITION.query(keys.position(s)) for s in names]
    batch += [wire.MARKET.query(keys.market(s)) for s in names]
    replies = store.read(batch)
    clusters = wire.oversized_clusters() if too_large else wire.decode_clusters(replies.pop(0))
    n = len(names)
    stress = zip(clusters.ids, store.read([wire.STRESS.query(keys.stress(c)) for c in clusters.ids]), strict=True)
    inputs = BudgetInputs(
        now=now,
        portfolio=wire.decode(wire.PORTFOLIO, first[0], now, params.stale_portfolio_s),
        positions={s: wire.decode(wire.POSITION, r, now, limit) for s, r in zip(names, replies[:n], strict=True)},
        markets={s: wire.decode(wire.MARKET, r, now, limit) for s, r in zip(names, replies[n:], strict=True)},
        stress={c: wire.decode(wire.STRESS, r, now, limit) for c, r in stress},
    )
    return Seen(symbols, inputs, clusters)


def tell(metrics: Metrics, watch: Watch, mode: str, seen: Seen, made: BudgetCycle) -> Told:
    """Metrics and the cycle's line."""
    m, i = metrics, seen.inputs
    m.set("quantum_alloc_symbols", len(made.decisions))
    m.set("quantum_alloc_refused_names", seen.symbols.refused + seen.clusters.refused)
    m.set("quantum_alloc_dropped_symbols", seen.symbols.dropped)
    looked: Counter[tuple[str, str]] = Counter()
    looked["portfolio", i.portfolio.state] += 1
    looked["clusters", seen.clusters.state] += 1
    looked.update(("position", r.state) for r in i.positions.values())
    looked.update(("market", r.state) for r in i.markets.values())
    looked.update(("cluster", r.state) for r in i.stress.values())
    values = {"portfolio": value_of(i.portfolio), "market": values_of(i.markets), "cluster": values_of(i.stress)}
    watch.inputs(i.now, looked, values, due=("market",) if seen.symbols.complete else ())
    watch.tell(i.now)
    told: Fields = {"symbols": len(made.decisions), "mode": mode}
    if made.halted:
        return Told(DONE, made.halted, told)
    over = [d.symbol for d in made.decisions if d.over_budget_usd > 0.0]
    for symbol in over:
        m.add("quantum_alloc_budget_violations_total", symbol)
    m.replace("quantum_alloc_budget_usd", {d.symbol: d.budget_usd for d in made.decisions})
    if made.decisions:
        m.set("quantum_alloc_portfolio_heat_ratio", made.decisions[0].portfolio_heat)
    return Told(DONE, fields={**told, "violations": len(over)})


def build(
    store: Store, metrics: Metrics, universe: Universe, params: BudgetParams, to: Target, interval_s: float
) -> Cycle[None, Seen, BudgetCycle]:
    """The service.

    Args:
        store: where it reads.
        metrics: where it counts.
        universe: its symbols.
        params: the numbers of P2.8.
        to: mode, stream length and names.
        interval_s: cadence.
    """

    watch = Watch(metrics, to.mode)

    def decide(_: None, seen: Seen, attempt: Attempt) -> tuple[None, BudgetCycle]:
        if not seen.symbols.complete:  # half of the positions would be half of the heat
            return None, BudgetCycle(seen.inputs.now, "scanning", ())
        return None, budget_cycle(seen.inputs, params, attempt)

    def effects(seen: Seen, made: BudgetCycle) -> tuple[Group, ...]:
        return budget_effects(made, params, to, seen.symbols.known)

    return Cycle(
        name=NAME,
        mode=to.mode,
        interval_s=interval_s,
        initial=None,
        read=lambda now: read(store, universe, to.keys, params, now),
        decide=decide,
        effects=effects,
        tell=lambda seen, made, _: tell(metrics, watch, to.mode, seen, made),
    )


def universe_of(keys: Keys = LIVE, fixed: tuple[str, ...] = (), limit: int = 10_000) -> Universe:
    """Symbols with a position or a market state."""
    return Universe(keys, (keys.position(""), keys.market("")), fixed, limit)
