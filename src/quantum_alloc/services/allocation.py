"""``allocation`` (P2.9): the target of every symbol, every 5 s.

Three reads: what all share, what each symbol has, what each cluster has. In enforce and above 1,000 symbols also the
targets that stand now, so that lowered ones can be written first. In shadow with ``SHADOW_LANE`` the shadow lane's
attribution counts where the live one is absent; enforce never reads that lane, and never uses a proposal that was made
from it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from quantum_alloc.adapters import wire
from quantum_alloc.adapters.effects import Command, Group, Reply
from quantum_alloc.adapters.keys import LIVE, HashKeys, Keys, Lane
from quantum_alloc.adapters.metrics import Metrics
from quantum_alloc.adapters.store import Store
from quantum_alloc.adapters.universe import Symbols, Universe
from quantum_alloc.adapters.writes import ENFORCE, SYMBOLS_PER_GROUP, Target, allocation_effects
from quantum_alloc.core import (
    AllocationCycle,
    AllocationParams,
    Fresh,
    Proposal,
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
from quantum_alloc.services.vacuity import Values, Watch, value_of

NAME = "allocation"
DONE = "Allocation cycle complete"


@dataclass(frozen=True, slots=True)
class Seen:
    """Everything that one cycle read."""

    symbols: Symbols
    shared: SharedInputs
    inputs: tuple[SymbolInputs, ...]
    clusters: wire.ClusterMap
    prior_usd: Mapping[str, float]


def _tell_shared(m: Metrics, made: AllocationCycle) -> None:
    regime, portfolio = made.shared.regime, made.shared.portfolio
    m.set("p29_regime_factor", regime_factor(regime.value.name, made.params) if isinstance(regime, Fresh) else 1.0)
    if isinstance(portfolio, Fresh):
        dd = portfolio.value.drawdown
        m.set("p29_drawdown_factor", made.params.dd_factor_high if dd is None else drawdown_factor(dd, made.params))


@dataclass(frozen=True, slots=True)
class Sources:
    """Where a cycle reads from.

    Attributes:
        keys: the live names.
        shadow: names of the shadow lane where it is read; never in enforce.
        enforces: whether the targets count.
        standing: names of the target hashes that this service writes; None where it writes none.
    """

    keys: Keys
    shadow: HashKeys | None
    enforces: bool
    standing: HashKeys | None


def _proposal(reply: Reply, now: float, limit_s: float, enforces: bool) -> tuple[Reading[Proposal], Lane]:
    reading, lane = wire.out_of(wire.decode(wire.PROPOSAL, reply, now, limit_s), Lane.LIVE)
    return (missing(), lane) if enforces and lane is Lane.SHADOW else (reading, lane)


def read(
    store: Store,
    universe: Universe,
    source: Sources,
    params: AllocationParams,
    factors: Mapping[str, float],
    now: float,
) -> Seen:
    """All inputs of a cycle, in three batches; nothing more where the portfolio already halts it."""
    limit, keys = params.stale_data_s, source.keys
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
    names = symbols.names
    nobody: Sequence[str] = ()
    wants_prior = source.enforces and len(names) > SYMBOLS_PER_GROUP
    columns: list[list[Command]] = [
        [wire.BUDGET.query(keys.budget(s)) for s in names],
        [wire.ATTRIBUTION.query(keys.attribution(s)) for s in names],
        [] if source.shadow is None else [wire.ATTRIBUTION.query(source.shadow.attribution(s)) for s in names],
        [wire.PROPOSAL.query(keys.proposed(s)) for s in (names if params.use_proposed else nobody)],
        [wire.PRIOR.query(keys.target(s)) for s in (names if wants_prior else nobody)],
        []
        if source.standing is None
        else [wire.FACTOR.query(source.standing.target(s)) for s in (names if params.use_proposed else nobody)],
    ]
    batch: list[Command] = [] if too_large else [("HGETALL", keys.clusters)]
    replies = store.read([*batch, *(command for column in columns for command in column)])
    clusters = wire.oversized_clusters() if too_large else wire.decode_clusters(replies.pop(0))
    read_in: list[list[Reply]] = []
    for column in columns:
        read_in.append(replies[: len(column)])
        replies = replies[len(column) :]
    budgets, performance, aside, proposals, prior, applied = read_in
    # what stands in Redis is what the last cycle applied, also after a restart or a lost reply
    stands = {s: wire.decode(wire.FACTOR, r, now, limit) for s, r in zip(names, applied, strict=False)}
    before = {**factors, **{s: r.value for s, r in stands.items() if isinstance(r, Fresh)}}

    used = sorted({clusters.of[s] for s in names if s in clusters.of})
    stress: dict[str, Reading[float]] = {
        cid: wire.decode(wire.STRESS, r, now, limit)
        for cid, r in zip(used, store.read([wire.STRESS.query(keys.stress(c)) for c in used]), strict=True)
    }
    inputs = []
    for i, symbol in enumerate(names):
        attribution, lane = wire.in_lanes(performance[i], aside[i] if aside else None)
        proposal: tuple[Reading[Proposal], Lane] = (missing(), Lane.LIVE)
        if proposals:
            proposal = _proposal(proposals[i], now, limit, source.enforces)
        cid = clusters.of.get(symbol, UNMAPPED)
        inputs.append(
            SymbolInputs(
                symbol,
                wire.decode(wire.BUDGET, budgets[i], now, limit),
                cid,
                stress.get(cid, missing()),
                wire.decode(wire.ATTRIBUTION, attribution, now, limit),
                lane,
                *proposal,
                before.get(symbol, 1.0),
            )
        )
    standing = (wire.decode(wire.PRIOR, r, now, limit) for r in prior)
    return Seen(
        symbols,
        SharedInputs(now, portfolio, regime, clusters.readable),
        tuple(inputs),
        clusters,
        {s: r.value for s, r in zip(names, standing, strict=False) if isinstance(r, Fresh)},
    )


def _tell_inputs(m: Metrics, watch: Watch, seen: Seen, made: AllocationCycle) -> None:
    now, portfolio, regime = made.shared.now, made.shared.portfolio, made.shared.regime
    looked: Counter[tuple[str, str]] = Counter()
    looked["portfolio", portfolio.state] += 1
    looked["regime", regime.state] += 1
    looked["clusters", seen.clusters.state] += 1
    stresses: dict[str, Reading[float]] = {}
    for i in seen.inputs:
        looked["budget", i.budget_usd.state] += 1
        looked["performance", i.attribution.state] += 1
        if i.cluster_id != UNMAPPED:
            stresses[i.cluster_id] = i.stress
    looked.update(("cluster", stress.state) for stress in stresses.values())
    if isinstance(portfolio, Fresh):
        looked["drawdown", "malformed" if portfolio.value.drawdown is None else "ok"] += 1
    if made.params.use_proposed:
        looked.update(("proposal", i.proposal.state) for i in seen.inputs)
    for (name, state), n in looked.items():
        if state not in ("ok", "missing") and name != "proposal":
            source = {"clusters": "cluster", "drawdown": "portfolio"}.get(name, name)
            m.add("p29_stale_fallback_total", source, amount=n)
    # NEUTRAL has no confidence of its own: it may stand for hours
    is_neutral = isinstance(regime, Fresh) and regime.value.name == "NEUTRAL"
    values: Values = {
        "portfolio": value_of(portfolio),
        "regime": {} if is_neutral else value_of(regime),
        "budget": {i.symbol: i.budget_usd.value for i in seen.inputs if isinstance(i.budget_usd, Fresh)},
        "performance": {i.symbol: i.attribution.value for i in seen.inputs if isinstance(i.attribution, Fresh)},
        "proposal": {i.symbol: i.proposal.value for i in seen.inputs if isinstance(i.proposal, Fresh)},
        "cluster": {c: stress.value for c, stress in stresses.items() if isinstance(stress, Fresh)},
    }
    watch.inputs(now, looked, values, due=() if made.halted else ("budget",))
    watch.tell(now)


def tell(metrics: Metrics, watch: Watch, mode: str, seen: Seen, made: AllocationCycle, took_s: float) -> Told:
    """Metrics and the cycle's line."""
    m = metrics
    m.observe("p29_loop_duration_seconds", took_s)
    m.set("quantum_alloc_symbols", len(seen.symbols.names))
    m.set("quantum_alloc_refused_names", seen.symbols.refused + seen.clusters.refused)
    m.set("quantum_alloc_dropped_symbols", seen.symbols.dropped)
    m.set("quantum_alloc_targets", len(made.decisions))
    _tell_inputs(m, watch, seen, made)
    if made.params.use_proposed:
        m.replace("quantum_alloc_proposed_factor", {d.symbol: d.proposed_factor for d in made.decisions})
    for s in made.skipped:
        m.add("quantum_alloc_skipped_total", s.reason)
    m.replace("p29_target_usd", {d.symbol: d.target_usd for d in made.decisions})
    m.replace("p29_allocation_confidence", {d.symbol: d.confidence for d in made.decisions})
    m.replace("p29_cluster_factor", {d.cluster_id: d.cluster_factor for d in made.decisions})
    m.replace("quantum_alloc_performance_factor", {d.symbol: d.performance_factor for d in made.decisions})
    if made.halted:
        return Told(DONE, made.halted, {"symbols": len(seen.symbols.names), "targets": 0, "mode": mode})
    for d in made.decisions:
        m.add("p29_targets_computed_total", d.symbol)
        if mode == ENFORCE:
            m.add("p29_enforce_overrides_total", d.symbol)
    if mode != ENFORCE:
        m.add("p29_shadow_pass_total", amount=len(made.decisions))
    _tell_shared(m, made)
    n = len(made.decisions) + len(made.skipped)
    return Told(DONE, fields={"symbols": n, "targets": len(made.decisions), "mode": mode})


def build(
    store: Store,
    metrics: Metrics,
    universe: Universe,
    params: AllocationParams,
    to: Target,
    interval_s: float,
    *,
    shadow_lane: bool = False,
) -> Cycle[None, Seen, AllocationCycle]:
    """The service.

    Args:
        store: where it reads.
        metrics: where it counts.
        universe: its symbols.
        params: the numbers of P2.9.
        to: mode, expiry, stream length and names.
        interval_s: cadence.
        shadow_lane: whether in shadow the shadow lane counts where the live one is absent.
    """
    enforces = to.mode == ENFORCE
    aside = to.keys.shadow if shadow_lane and not enforces else None
    source = Sources(to.keys, aside, enforces, to.hash_keys)
    watch = Watch(metrics, to.mode, unused=() if params.use_proposed else ("proposal",))
    factors: dict[str, float] = {}  # what the last cycle whose writes were acknowledged used of the proposals

    def decide(_: None, seen: Seen, attempt: Attempt) -> tuple[None, AllocationCycle]:
        if not seen.symbols.complete:  # half of a group would get the whole of its cap
            return None, AllocationCycle(seen.shared, params, "scanning", (), (), {})
        return None, allocate_portfolio(seen.inputs, seen.shared, params, attempt)

    def effects(seen: Seen, made: AllocationCycle) -> tuple[Group, ...]:
        return allocation_effects(made, to, seen.symbols.known, seen.prior_usd)

    def told(seen: Seen, made: AllocationCycle, took_s: float) -> Told:
        names = frozenset(seen.symbols.names)
        for symbol in [s for s in factors if s not in names]:
            del factors[symbol]
        factors.update({d.symbol: d.proposed_factor for d in made.decisions})  # not of the skipped: theirs stand
        return tell(metrics, watch, to.mode, seen, made, took_s)

    return Cycle(
        name=NAME,
        mode=to.mode,
        interval_s=interval_s,
        initial=None,
        read=lambda now: read(store, universe, source, params, factors.copy(), now),
        decide=decide,
        effects=effects,
        tell=told,
    )


def universe_of(keys: Keys = LIVE, fixed: tuple[str, ...] = (), limit: int = 10_000) -> Universe:
    """Symbols with a budget."""
    return Universe(keys, (keys.budget(""),), fixed, limit)
