"""``efficiency`` (P3.1): how well each symbol's capital works, every 5 s.

State and new executions first, then attribution and target of every symbol that has any of the three. With
``SHADOW_LANE`` the shadow lane's record counts where the live one is absent. Scores are published every cycle, with or
without executions. State and position are saved with the first outputs in one MULTI, in shadow too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from quantum_alloc.adapters import wire
from quantum_alloc.adapters.effects import Command, Group, Reply
from quantum_alloc.adapters.flow_writes import efficiency_effects
from quantum_alloc.adapters.keys import LIVE, HashKeys, Keys
from quantum_alloc.adapters.metrics import Metrics
from quantum_alloc.adapters.state import saving
from quantum_alloc.adapters.store import Store
from quantum_alloc.adapters.universe import Symbols, Universe
from quantum_alloc.adapters.writes import ENFORCE, Target
from quantum_alloc.core import (
    EfficiencyCycle,
    EfficiencyInputs,
    EfficiencyParams,
    EfficiencyState,
    Pressure,
    efficiency_cycle,
)
from quantum_alloc.core.efficiency import outliers
from quantum_alloc.core.isolate import Attempt
from quantum_alloc.services import following
from quantum_alloc.services.following import Followed, Follower
from quantum_alloc.services.logs import Fields
from quantum_alloc.services.loop import Cycle, Told
from quantum_alloc.services.vacuity import Watch, values_of

NAME = "efficiency"


@dataclass(frozen=True, slots=True)
class Seen:
    """Everything that one cycle read."""

    now: float
    symbols: Symbols
    followed: Followed[EfficiencyState]
    inputs: tuple[EfficiencyInputs, ...]


def queries(keys: HashKeys, names: Sequence[str]) -> list[Command]:
    """Attributions, then targets, of one lane."""
    return [
        *(wire.ATTRIBUTION.query(keys.attribution(s)) for s in names),
        *(wire.TARGET.query(keys.target(s)) for s in names),
    ]


def read(
    store: Store,
    universe: Universe,
    follower: Follower[EfficiencyState],
    params: EfficiencyParams,
    lanes: tuple[Keys, HashKeys | None],
    now: float,
) -> Seen:
    """State and new executions, then attribution and target of every symbol."""
    followed = follower.read(store, now)
    symbols = universe.find(store, store.read(universe.query), now)
    if followed.saved.refused:
        return Seen(now, symbols, followed, ())
    fills = followed.batch.fills
    names = sorted({*symbols.names, *filter(follower.accepts, followed.saved.states), *fills})
    live, shadow = lanes
    replies = store.read([*queries(live, names), *(queries(shadow, names) if shadow else [])])
    n = len(names)
    aside: Sequence[Reply | None] = replies[2 * n :] if shadow else [None] * (2 * n)
    inputs = []
    for i, symbol in enumerate(names):
        attribution, attribution_lane = wire.in_lanes(replies[i], aside[i])
        target, target_lane = wire.in_lanes(replies[n + i], aside[n + i])
        inputs.append(
            EfficiencyInputs(
                symbol,
                now,
                wire.decode(wire.ATTRIBUTION, attribution, now, params.stale_s_p30),
                wire.decode(wire.TARGET, target, now, params.stale_s_p29),
                fills.get(symbol, ()),
                attribution_lane,
                target_lane,
            )
        )
    return Seen(now, symbols, followed, tuple(inputs))


def tell(m: Metrics, watch: Watch, mode: str, seen: Seen, made: EfficiencyCycle, took_s: float) -> Told:
    """Metrics and the cycle's line."""
    m.add("p31_loops_total")
    m.observe("p31_loop_duration_seconds", took_s)
    m.set("quantum_alloc_symbols", len(made.decisions))
    m.set("quantum_alloc_refused_names", seen.symbols.refused)
    m.set("quantum_alloc_dropped_symbols", seen.symbols.dropped)
    following.tell(m, seen.followed, len(made.states), len(made.dropped))
    attributions = {d.symbol: d.inputs.attribution for d in made.decisions}
    targets = {d.symbol: d.inputs.target for d in made.decisions}
    looked = Counter(following.looked(seen.followed))
    looked.update(("attribution", r.state) for r in attributions.values())
    looked.update(("target", r.state) for r in targets.values())
    values = {"attribution": values_of(attributions), "target": values_of(targets)}
    due = () if seen.followed.saved.refused else ("attribution", "target")
    watch.inputs(seen.now, looked, values, due)
    watch.tell(seen.now)
    for symbol, fills in seen.followed.batch.fills.items():
        m.add("p31_exec_events_total", symbol, amount=len(fills))
    for d in made.decisions:
        for flag in d.stale_flags:
            which, _, kind = flag.partition("_")
            name = "p31_inputs_stale_total" if kind == "STALE" else "p31_inputs_missing_total"
            m.add(name, d.symbol, which.lower())
        if not d.inputs_ok:
            m.add("p31_lkg_used_total", d.symbol)
        if mode == ENFORCE:
            m.add("p31_written_total", d.symbol)
        strange = outliers(seen.followed.batch.fills.get(d.symbol, ()), d.target_usd)
        if strange:
            m.add("quantum_alloc_outliers_total", d.symbol, amount=strange)
    m.replace("p31_efficiency_score", {d.symbol: d.efficiency_score for d in made.decisions})
    m.replace("p31_confidence", {d.symbol: d.confidence for d in made.decisions})
    pressures = Counter(d.capital_pressure for d in made.decisions)
    for pressure in Pressure:
        m.set("quantum_alloc_pressure_symbols", pressures[pressure], pressure.value)
    told: Fields = {"symbols": len(made.decisions), **following.executions(seen.followed), "mode": mode}
    return Told("Efficiency cycle complete", seen.followed.saved.refused, told)


def build(
    store: Store,
    metrics: Metrics,
    universe: Universe,
    follower: Follower[EfficiencyState],
    params: EfficiencyParams,
    to: Target,
    stream: str,
    interval_s: float,
    max_symbols: int,
    *,
    shadow_lane: bool,
) -> Cycle[None, Seen, EfficiencyCycle]:
    """The service.

    Args:
        store: where it reads.
        metrics: where it counts.
        universe: symbols with an attribution or a target.
        follower: its state and the executions.
        params: the numbers of P3.1.
        to: mode, expiry, stream length and names.
        stream: where decisions go.
        interval_s: cadence.
        max_symbols: how many symbols are remembered.
        shadow_lane: whether the shadow lane counts where the live one is absent.
    """
    lanes = (to.keys, to.keys.shadow if shadow_lane else None)

    watch = Watch(metrics, to.mode)

    def decide(_: None, seen: Seen, attempt: Attempt) -> tuple[None, EfficiencyCycle]:
        if seen.followed.saved.refused:
            return None, EfficiencyCycle(seen.now, params, ())
        states = seen.followed.saved.states
        return None, efficiency_cycle(states, seen.inputs, seen.now, params, max_symbols, attempt)

    def effects(seen: Seen, made: EfficiencyCycle) -> tuple[Group, ...]:
        followed = seen.followed
        if followed.saved.refused:
            return ()
        texts = {s: state.text() for s, state in made.states.items()}
        save = saving(follower.key, follower.stream, followed.saved, texts, followed.batch.pos, followed.batch.read)
        return efficiency_effects(made, save, followed.batch.letters, to, stream, seen.symbols.known)

    return Cycle(
        name=NAME,
        mode=to.mode,
        interval_s=interval_s,
        initial=None,
        read=lambda now: read(store, universe, follower, params, lanes, now),
        decide=decide,
        effects=effects,
        tell=lambda seen, made, took_s: tell(metrics, watch, to.mode, seen, made, took_s),
    )


def follower_of(
    stream: str, limit: int | None, fixed: tuple[str, ...] = (), keys: Keys = LIVE
) -> Follower[EfficiencyState]:
    """State and executions of this service."""

    def of_text(_: str, text: str) -> EfficiencyState:
        return EfficiencyState.of_text(text)

    return Follower(NAME, keys.efficiency_state, stream, of_text, limit, frozenset(fixed))


def universe_of(
    keys: Keys = LIVE, fixed: tuple[str, ...] = (), limit: int = 10_000, *, shadow_lane: bool = False
) -> Universe:
    """Symbols with an attribution or a target, in either lane where both are read."""
    prefixes = [keys.attribution(""), keys.target("")]
    if shadow_lane:
        aside = keys.shadow
        prefixes += [aside.attribution(""), aside.target("")]
    return Universe(keys, prefixes, fixed, limit)
