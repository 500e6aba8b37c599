"""``allocation`` (P2.9): the target of every symbol, every 5 s.

Three reads: what all share, what each symbol has, what each cluster has. In enforce and above 1,000 symbols also the
targets that stand now, so that lowered ones can be written first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from quantum_alloc.adapters import wire
from quantum_alloc.adapters.effects import Command, Group
from quantum_alloc.adapters.keys import LIVE, Keys
from quantum_alloc.adapters.metrics import Metrics
from quantum_alloc.adapters.store import Store
from quantum_alloc.adapters.universe import Symbols, Universe
from quantum_alloc.adapters.writes import ENFORCE, SYMBOLS_PER_GROUP, Target, allocation_effects
from quantum_alloc.core import (
    AllocationCycle,
    AllocationParams,
    Fresh,
    Reading,
    SharedInputs,
    SymbolInputs,
    allocate_portfolio,
    drawdown_factor,
    missing,
    regime_factor,
)
from quantum_alloc.core.allocation import UNMAPPED, halted
from quantum_alloc.core.isolate import Attempt
from quantum_alloc.services.loop import Cycle, Told

NAME = "allocation"


@dataclass(frozen=True, slots=True)
class Seen:
    """Everything that one cycle read."""

    symbols: Symbols
    shared: SharedInputs
    inputs: tuple[SymbolInputs, ...]
    clusters: wire.ClusterMap
    prior_usd: Mapping[str, float]


def read(store: Store, universe: Universe, keys: Keys, params: AllocationParams, mode: str, now: float) -> Seen:
    """All inputs of a cycle, in three batches; nothing more where the portfolio already halts it."""
    limit = params.stale_data_s
    first = store.read(
        [
            wire.PORTFOLIO.query(keys.portfolio),
            wire.newest(keys.stream("regime.state")),
            ("HLEN", keys.clusters),
            *universe.query,
        ]
    )
    symbols = universe.find(store, first[3:], now)
    portfolio = wire.decode(wire.PORTFOLIO, first[0], now, limit)
    regime = wire.decode_newest(wire.REGIME, first[1], now, limit)
    if halted(SharedInputs(now, portfolio, regime)):
        return Seen(symbols, SharedInputs(now, portfolio, regime), (), wire.decode_clusters([]), {})

    too_large = isinstance(first[2], int) and first[2] > wire.MAP_FIELDS_LIMIT
    batch: list[Command] = [] if too_large else [("HGETALL", keys.clusters)]
    names = symbols.names
    batch += [wire.BUDGET.query(keys.budget(s)) for s in names]
    batch += [wire.ATTRIBUTION.query(keys.attribution(s)) for s in names]
    wants_prior = mode == ENFORCE and len(names) > SYMBOLS_PER_GROUP
    if wants_prior:
        batch += [wire.TARGET.query(keys.target(s)) for s in names]
    replies = store.read(batch)
    clusters = wire.oversized_clusters() if too_large else wire.decode_clusters(replies.pop(0))
    n = len(names)
    budgets = [wire.decode(wire.BUDGET, r, now, limit) for r in replies[:n]]
    performance = [wire.decode(wire.ATTRIBUTION, r, now, limit) for r in replies[n : 2 * n]]
    prior = [wire.decode(wire.TARGET, r, now, limit) for r in replies[2 * n :]]

    used = sorted({clusters.of[s] for s in names if s in clusters.of})
    stress: dict[str, Reading[float]] = {
        cid: wire.decode(wire.STRESS, r, now, limit)
        for cid, r in zip(used, store.read([wire.STRESS.query(keys.stress(c)) for c in used]), strict=True)
    }
    inputs = []
    for symbol, budget, attribution in zip(names, budgets, performance, strict=True):
        cid = clusters.of.get(symbol, UNMAPPED)
        inputs.append(SymbolInputs(symbol, budget, cid, stress.get(cid, missing()), attribution))
    return Seen(
        symbols,
        SharedInputs(now, portfolio, regime, clusters.readable),
        tuple(inputs),
        clusters,
        {s: r.value for s, r in zip(names, prior, strict=False) if isinstance(r, Fresh)},
    )


def tell(metrics: Metrics, mode: str, seen: Seen, made: AllocationCycle, took_s: float) -> Told:
    """Metrics and the cycle's line."""
    m = metrics
    m.observe("p29_loop_duration_seconds", took_s)
    m.set("quantum_alloc_symbols", len(seen.symbols.names))
    m.set("quantum_alloc_refused_names", seen.symbols.refused + seen.clusters.refused)
    m.set("quantum_alloc_dropped_symbols", seen.symbols.dropped)
    m.set("quantum_alloc_targets", len(made.decisions))
    looked: Counter[tuple[str, str]] = Counter()
    looked["portfolio", made.shared.portfolio.state] += 1
    looked["regime", made.shared.regime.state] += 1
    looked["clusters", seen.clusters.state] += 1
    stresses: dict[str, str] = {}
    for i in seen.inputs:
        looked["budget", i.budget_usd.state] += 1
        looked["performance", i.attribution.state] += 1
        if i.cluster_id != UNMAPPED:
            stresses[i.cluster_id] = i.stress.state
    for state in stresses.values():
        looked["cluster", state] += 1
    portfolio = made.shared.portfolio
    if isinstance(portfolio, Fresh):
        looked["drawdown", "malformed" if portfolio.value.drawdown is None else "ok"] += 1
    for (name, state), n in looked.items():
        m.add("quantum_alloc_inputs_total", name, state, amount=n)
        if state not in ("ok", "missing"):
            source = {"clusters": "cluster", "drawdown": "portfolio"}.get(name, name)
            m.add("p29_stale_fallback_total", source, amount=n)
    for s in made.skipped:
        m.add("quantum_alloc_skipped_total", s.reason)
    m.replace("p29_target_usd", {d.symbol: d.target_usd for d in made.decisions})
    m.replace("p29_allocation_confidence", {d.symbol: d.confidence for d in made.decisions})
    m.replace("p29_cluster_factor", {d.cluster_id: d.cluster_factor for d in made.decisions})
    if made.halted:
        return Told(f"Allocation cycle complete symbols={len(seen.symbols.names)} targets=0 mode={mode}", made.halted)
    for d in made.decisions:
        m.add("p29_targets_computed_total", d.symbol)
        if mode == ENFORCE:
            m.add("p29_enforce_overrides_total", d.symbol)
    if mode != ENFORCE:
        m.add("p29_shadow_pass_total", amount=len(made.decisions))
    regime = made.shared.regime
    m.set("p29_regime_factor", regime_factor(regime.value.name, made.params) if isinstance(regime, Fresh) else 1.0)
    if isinstance(portfolio, Fresh):
        dd = portfolio.value.drawdown
        m.set("p29_drawdown_factor", made.params.dd_factor_high if dd is None else drawdown_factor(dd, made.params))
    n = len(made.decisions) + len(made.skipped)
    return Told(f"Allocation cycle complete symbols={n} targets={len(made.decisions)} mode={mode}")


def build(
    store: Store, metrics: Metrics, universe: Universe, params: AllocationParams, to: Target, interval_s: float
) -> Cycle[None, Seen, AllocationCycle]:
    """The service.

    Args:
        store: where it reads.
        metrics: where it counts.
        universe: its symbols.
        params: the numbers of P2.9.
        to: mode, expiry, stream length and names.
        interval_s: cadence.
    """

    def decide(_: None, seen: Seen, attempt: Attempt) -> tuple[None, AllocationCycle]:
        return None, allocate_portfolio(seen.inputs, seen.shared, params, attempt)

    def effects(seen: Seen, made: AllocationCycle) -> tuple[Group, ...]:
        return allocation_effects(made, to, seen.symbols.known, seen.prior_usd)

    return Cycle(
        name=NAME,
        mode=to.mode,
        interval_s=interval_s,
        initial=None,
        read=lambda now: read(store, universe, to.keys, params, to.mode, now),
        decide=decide,
        effects=effects,
        tell=lambda seen, made, took_s: tell(metrics, to.mode, seen, made, took_s),
    )


def universe_of(keys: Keys = LIVE, fixed: tuple[str, ...] = (), limit: int = 10_000) -> Universe:
    """Symbols with a budget."""
    return Universe(keys, (keys.budget(""),), fixed, limit)
