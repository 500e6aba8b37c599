"""``proposer`` (step 1): what each target would be if efficiency counted, every 10 s. It never writes a target.

Two reads: which symbols there are, then target and efficiency of each. With ``SHADOW_LANE`` the shadow lane's record
counts where the live one is absent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from quantum_alloc.adapters import wire
from quantum_alloc.adapters.effects import Command, Reply
from quantum_alloc.adapters.flow_writes import proposal_effects
from quantum_alloc.adapters.keys import LIVE, HashKeys, Keys
from quantum_alloc.adapters.metrics import Metrics
from quantum_alloc.adapters.store import Store
from quantum_alloc.adapters.universe import Symbols, Universe
from quantum_alloc.adapters.writes import Target
from quantum_alloc.core import ProposalCycle, ProposalInputs, ProposalParams, proposal_cycle
from quantum_alloc.core.isolate import Attempt
from quantum_alloc.services.loop import Cycle, Told
from quantum_alloc.services.vacuity import Watch, values_of

NAME = "proposer"


@dataclass(frozen=True, slots=True)
class Seen:
    """Everything that one cycle read."""

    now: float
    symbols: Symbols
    inputs: tuple[ProposalInputs, ...]


def queries(keys: HashKeys, names: Sequence[str]) -> list[Command]:
    """Targets, then efficiencies, of one lane."""
    return [
        *(wire.BASE_TARGET.query(keys.target(s)) for s in names),
        *(wire.EFFICIENCY.query(keys.efficiency(s)) for s in names),
    ]


def read(
    store: Store, universe: Universe, params: ProposalParams, lanes: tuple[Keys, HashKeys | None], now: float
) -> Seen:
    """Target and efficiency of every symbol."""
    symbols = universe.find(store, store.read(universe.query), now)
    names = symbols.names
    live, shadow = lanes
    replies = store.read([*queries(live, names), *(queries(shadow, names) if shadow else [])])
    n = len(names)
    aside: Sequence[Reply | None] = replies[2 * n :] if shadow else [None] * (2 * n)
    inputs = []
    for i, symbol in enumerate(names):
        base, base_lane = wire.in_lanes(replies[i], aside[i])
        given, given_lane = wire.in_lanes(replies[n + i], aside[n + i])
        efficiency, eff_lane = wire.out_of(wire.decode(wire.EFFICIENCY, given, now, params.stale_s), given_lane)
        target = wire.decode(wire.BASE_TARGET, base, now, params.base_stale_s)
        inputs.append(ProposalInputs(symbol, now, target, efficiency, base_lane, eff_lane))
    return Seen(now, symbols, tuple(inputs))


def tell(m: Metrics, watch: Watch, mode: str, seen: Seen, made: ProposalCycle, *, shadow_lane: bool) -> Told:
    """Metrics and the cycle's line."""
    m.add("p29_shadow_loops_total")
    m.set("quantum_alloc_symbols", len(seen.inputs))
    m.set("quantum_alloc_refused_names", seen.symbols.refused)
    m.set("quantum_alloc_dropped_symbols", seen.symbols.dropped)
    targets = {i.symbol: i.base_target_usd for i in seen.inputs}
    efficiencies = {i.symbol: i.efficiency for i in seen.inputs}
    looked = Counter(("target", r.state) for r in targets.values())
    looked.update(("efficiency", r.state) for r in efficiencies.values())
    values = {"target": values_of(targets), "efficiency": values_of(efficiencies)}
    watch.inputs(seen.now, looked, values, due=("target", "efficiency"))
    watch.tell(seen.now)
    for d in made.decisions:
        m.add("p29_shadow_proposed_total", d.reason.value)
    for n in made.not_proposed:
        m.add("quantum_alloc_not_proposed_total", n.reason)
    m.replace("p29_shadow_multiplier", {d.symbol: d.multiplier for d in made.decisions})
    known = {d.symbol: d.efficiency for d in made.decisions}
    m.replace("p29_shadow_eff_score", {s: e.score for s, e in known.items() if e is not None})
    m.replace("p29_shadow_eff_confidence", {s: e.confidence for s, e in known.items() if e is not None})
    ok = sum(d.reason.value == "ok" for d in made.decisions)
    why = ""
    if not made.decisions:
        hint = "" if shadow_lane else "; targets in shadow are read with SHADOW_LANE=1"
        why = f"no usable base target{hint}"
    return Told("Proposer cycle complete", why, {"symbols": len(made.decisions), "ok": ok, "mode": mode})


def build(
    store: Store,
    metrics: Metrics,
    universe: Universe,
    params: ProposalParams,
    to: Target,
    stream: str,
    interval_s: float,
    *,
    shadow_lane: bool,
) -> Cycle[None, Seen, ProposalCycle]:
    """The service.

    Args:
        store: where it reads.
        metrics: where it counts.
        universe: symbols with a target or an efficiency.
        params: the numbers of the proposer.
        to: expiry, stream length and names.
        stream: where proposals go.
        interval_s: cadence.
        shadow_lane: whether the shadow lane counts where the live one is absent.
    """
    lanes = (to.keys, to.keys.shadow if shadow_lane else None)

    watch = Watch(metrics, to.mode)

    def decide(_: None, seen: Seen, attempt: Attempt) -> tuple[None, ProposalCycle]:
        return None, proposal_cycle(seen.inputs, seen.now, params, attempt)

    return Cycle(
        name=NAME,
        mode=to.mode,
        interval_s=interval_s,
        initial=None,
        read=lambda now: read(store, universe, params, lanes, now),
        decide=decide,
        effects=lambda seen, made: proposal_effects(made, to, stream, seen.symbols.known),
        tell=lambda seen, made, _: tell(metrics, watch, to.mode, seen, made, shadow_lane=shadow_lane),
    )


def universe_of(
    keys: Keys = LIVE, fixed: tuple[str, ...] = (), limit: int = 10_000, *, shadow_lane: bool = False
) -> Universe:
    """Symbols with a target or an efficiency, in either lane where both are read."""
    prefixes = [keys.target(""), keys.efficiency("")]
    if shadow_lane:
        aside = keys.shadow
        prefixes += [aside.target(""), aside.efficiency("")]
    return Universe(keys, prefixes, fixed, limit)
