"""``attribution`` (P3.0): how well each symbol's executions have paid, every 5 s.

State and new executions are read first. An attribution moves once an execution and not per cycle, and is published
every cycle. State and position are saved with the dead letters and the first outputs in one MULTI, in shadow too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from quantum_alloc.adapters.effects import Group
from quantum_alloc.adapters.flow_writes import attribution_effects
from quantum_alloc.adapters.keys import LIVE, Keys
from quantum_alloc.adapters.metrics import Metrics
from quantum_alloc.adapters.state import saving
from quantum_alloc.adapters.store import Store
from quantum_alloc.adapters.universe import Symbols, Universe
from quantum_alloc.adapters.writes import Target
from quantum_alloc.core import (
    AttributionCycle,
    AttributionParams,
    AttributionSource,
    AttributionState,
    attribution_cycle,
)
from quantum_alloc.core.isolate import Attempt
from quantum_alloc.services import following
from quantum_alloc.services.following import Followed, Follower
from quantum_alloc.services.logs import Fields
from quantum_alloc.services.loop import Cycle, Told
from quantum_alloc.services.vacuity import Watch

NAME = "attribution"


@dataclass(frozen=True, slots=True)
class Seen:
    """Everything that one cycle read."""

    now: float
    symbols: Symbols
    followed: Followed[AttributionState]


def read(store: Store, universe: Universe, follower: Follower[AttributionState], now: float) -> Seen:
    """State, new executions, and which symbols are known."""
    followed = follower.read(store, now)
    return Seen(now, universe.find(store, store.read(universe.query), now), followed)


def tell(m: Metrics, watch: Watch, mode: str, seen: Seen, made: AttributionCycle, took_s: float) -> Told:
    """Metrics and the cycle's line."""
    m.observe("p30_loop_duration_seconds", took_s)
    m.set("quantum_alloc_symbols", len(made.decisions))
    following.tell(m, seen.followed, len(made.states), len(made.dropped))
    watch.inputs(seen.now, following.looked(seen.followed))
    watch.tell(seen.now)
    for d in made.decisions:
        m.add("p30_attributions_computed_total", d.symbol)
        if d.source is AttributionSource.LKG:
            m.add("p30_lkg_used_total", d.symbol)
    m.replace("p30_alpha_score", {d.symbol: d.alpha_score for d in made.decisions})
    m.replace("p30_performance_factor", {d.symbol: d.performance_factor for d in made.decisions})
    m.replace("p30_confidence", {d.symbol: d.confidence for d in made.decisions})
    told: Fields = {"symbols": len(made.decisions), **following.executions(seen.followed), "mode": mode}
    return Told("Attribution cycle complete", seen.followed.saved.refused, told)


def build(
    store: Store,
    metrics: Metrics,
    universe: Universe,
    follower: Follower[AttributionState],
    params: AttributionParams,
    to: Target,
    interval_s: float,
    max_symbols: int,
) -> Cycle[None, Seen, AttributionCycle]:
    """The service.

    Args:
        store: where it reads.
        metrics: where it counts.
        universe: which symbols are known.
        follower: its state and the executions.
        params: the numbers of P3.0.
        to: mode, expiry, stream length and names.
        interval_s: cadence.
        max_symbols: how many symbols are remembered.
    """

    watch = Watch(metrics, to.mode)

    def decide(_: None, seen: Seen, attempt: Attempt) -> tuple[None, AttributionCycle]:
        followed = seen.followed
        if followed.saved.refused:
            return None, AttributionCycle(seen.now, params, ())
        made = attribution_cycle(followed.saved.states, followed.batch.fills, seen.now, params, max_symbols, attempt)
        return None, replace(made, decisions=tuple(d for d in made.decisions if follower.accepts(d.symbol)))

    def effects(seen: Seen, made: AttributionCycle) -> tuple[Group, ...]:
        followed = seen.followed
        if followed.saved.refused:
            return ()
        texts = {s: state.text() for s, state in made.states.items()}
        save = saving(follower.key, follower.stream, followed.saved, texts, followed.batch.pos, followed.batch.read)
        return attribution_effects(made, save, followed.batch.letters, to, seen.symbols.known)

    return Cycle(
        name=NAME,
        mode=to.mode,
        interval_s=interval_s,
        initial=None,
        read=lambda now: read(store, universe, follower, now),
        decide=decide,
        effects=effects,
        tell=lambda seen, made, took_s: tell(metrics, watch, to.mode, seen, made, took_s),
    )


def follower_of(
    stream: str, limit: int | None, fixed: tuple[str, ...] = (), keys: Keys = LIVE
) -> Follower[AttributionState]:
    """State and executions of this service."""
    of_text: Callable[[str, str], AttributionState] = AttributionState.of_text
    return Follower(NAME, keys.attribution_state, stream, of_text, limit, frozenset(fixed))


def universe_of(keys: Keys = LIVE, fixed: tuple[str, ...] = (), limit: int = 10_000) -> Universe:
    """Which symbols are known; this service's own come from the executions."""
    return Universe(keys, (), fixed, limit)
