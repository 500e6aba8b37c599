"""``clusters`` (P2.7): which symbols move together, every 60 s, and the strain of each group, every 15 s.

The map in Redis is the memory of the names. With a static map from a file the groups are those of the file, and only
their strains are worked out. A map is written whole in one step; without any bar nothing is written and the map stays.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from quantum_alloc.adapters import codec, wire
from quantum_alloc.adapters.bars import BarReader
from quantum_alloc.adapters.effects import Command, Group
from quantum_alloc.adapters.flow_writes import cluster_effects
from quantum_alloc.adapters.keys import LIVE, Keys
from quantum_alloc.adapters.metrics import Metrics
from quantum_alloc.adapters.store import Store
from quantum_alloc.adapters.universe import Symbols, Universe
from quantum_alloc.adapters.writes import Target
from quantum_alloc.core import Bars, ClusterCycle, ClusterParams, Fresh, cluster_stresses
from quantum_alloc.core.allocation import UNMAPPED
from quantum_alloc.core.clusters import Correlations, correlations, groups_of, name_groups
from quantum_alloc.core.isolate import Attempt
from quantum_alloc.services.logs import Fields
from quantum_alloc.services.loop import Cycle, Told
from quantum_alloc.services.vacuity import Watch, bars_seen

NAME = "clusters"
CORRELATIONS_EVERY_S = 60
NEWEST_BAR_S = 86_400
"""A symbol without a bar for a day is clustered no more."""
POSITION_STALE_S = 60
ALPHA_STALE_S = 300

Members = Mapping[str, tuple[str, ...]]


class MapError(Exception):
    """A static map that cannot be used; the text is one sentence with the way out."""


def _no_doubles(pairs: list[tuple[str, object]]) -> dict[str, object]:
    out = dict(pairs)
    if len(out) != len(pairs):
        raise ValueError("an id stands twice")
    return out


def read_static_map(path: Path) -> dict[str, tuple[str, ...]]:
    """Cluster id to members, out of a JSON file; a symbol in two belongs to the first id in sort order.

    Args:
        path: of the file.

    Raises:
        MapError: it cannot be read, or is something else.
    """
    try:
        found = json.loads(path.read_bytes(), object_pairs_hook=_no_doubles)
    except (OSError, ValueError, RecursionError) as error:
        why = getattr(error, "strerror", None) or "no JSON"
        raise MapError(
            f"The cluster map {path} cannot be read ({why}): give a JSON object of ids to symbols."
        ) from None
    if not isinstance(found, dict) or not found:
        raise MapError(f"The cluster map {path} is no JSON object of ids to lists of symbols.")
    taken: set[str] = set()
    out: dict[str, tuple[str, ...]] = {}
    for name in sorted(found):
        members = found[name]
        if codec.word(name.encode("utf-8", "replace")) is None or name == UNMAPPED:
            told = f"{codec.printable(name)!r} is no id: 1 to 64 letters, digits, '_', '.', '-', and not UNKNOWN"
            raise MapError(f"The cluster map {path} has a bad entry: {told}.")
        if not isinstance(members, list):
            raise MapError(f"The cluster map {path} has a bad entry: {name!r} is no list of symbols.")
        for symbol in members:
            if not isinstance(symbol, str) or codec.symbol(symbol.encode("utf-8", "replace")) is None:
                told = f"{codec.printable(str(symbol))!r} in {name!r} is no symbol: 2 to 30 capital letters or digits"
                raise MapError(f"The cluster map {path} has a bad entry: {told}.")
        own = tuple(sorted({s for s in members if s not in taken}))
        taken.update(own)
        if own:
            out[name] = own
    longest = max((len(json.dumps(own)) for own in out.values()), default=0)
    if not out or len(out) > wire.MAP_FIELDS_LIMIT or longest > wire.MAP_VALUE_LIMIT_BYTES:
        raise MapError(f"The cluster map {path} is empty, has over 10,000 ids, or an id with over 256 kB of symbols.")
    return out


@dataclass(frozen=True, slots=True)
class State:
    """What is remembered from cycle to cycle.

    Attributes:
        worked_out: clock of the last correlations; None before the first.
        found: the correlations.
        clusters: the groups.
    """

    worked_out: float | None = None
    found: Correlations | None = None
    clusters: Members = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Seen:
    """Everything that one cycle read."""

    now: float
    symbols: Symbols
    bars: Mapping[str, Bars]
    before: wire.ClusterMap
    notional_usd: Mapping[str, float]
    alpha_score: Mapping[str, float]
    malformed: int
    looked: Mapping[tuple[str, str], int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Made:
    """What one cycle publishes."""

    now: float
    cycle: ClusterCycle
    map_is_due: bool
    nothing: str = ""


def members_of(of: wire.ClusterMap) -> dict[str, tuple[str, ...]]:
    """A map the other way round: cluster id to members.

    Args:
        of: as it was read.
    """
    out: dict[str, list[str]] = {}
    for symbol, name in of.of.items():
        out.setdefault(name, []).append(symbol)
    return {name: tuple(sorted(members)) for name, members in out.items()}


def step(state: State, seen: Seen, params: ClusterParams, static: Members | None) -> tuple[State, Made]:
    """One cycle: correlations and groups where they are due, strains always."""
    if not seen.symbols.complete:
        return state, Made(seen.now, ClusterCycle({}, ()), False, "scanning")
    since = CORRELATIONS_EVERY_S - 1.0  # cycles do not start to the millisecond
    due = state.worked_out is None or not 0 <= seen.now - state.worked_out < since
    before = members_of(seen.before)
    if due:
        found = correlations(seen.bars, params, seen.now - NEWEST_BAR_S)
        if static is not None:
            groups = dict(static)
        elif found.is_known:
            groups = name_groups(groups_of(found, params), before, seen.notional_usd)
        else:
            groups = {}
        state = State(seen.now if groups else None, found, groups)
    if not state.clusters or state.found is None:
        some = state.found is not None and bool(state.found.symbols)
        why = "no_correlations" if some else "stale_bars" if seen.bars else "no_bars"
        return state, Made(seen.now, ClusterCycle({}, ()), False, why)
    stresses = cluster_stresses(state.clusters, state.found, seen.notional_usd, seen.alpha_score)
    differs = due or not seen.before.readable or before != state.clusters
    return state, Made(seen.now, ClusterCycle(state.clusters, stresses), differs)


def tell(m: Metrics, watch: Watch, seen: Seen, made: Made) -> Told:
    """Metrics and the cycle's line."""
    m.set("quantum_alloc_symbols", sum(len(g) for g in made.cycle.clusters.values()))
    m.set("quantum_alloc_refused_names", seen.symbols.refused + seen.before.refused)
    m.set("quantum_alloc_dropped_symbols", seen.symbols.dropped)
    m.set("quantum_alloc_bars_malformed", seen.malformed)
    bars, closes = bars_seen(seen.bars, seen.symbols.names, seen.now)
    values = {**closes, "position": seen.notional_usd, "attribution": seen.alpha_score}
    due = ("bars",) if seen.symbols.complete else ()
    watch.inputs(seen.now, Counter(seen.looked) + Counter(bars), values, due)
    watch.tell(seen.now)
    m.set("quantum_alloc_clusters", len(made.cycle.clusters))
    m.replace("quantum_alloc_cluster_stress", {s.cluster_id: s.stress for s in made.cycle.stresses})
    grouped = {s for members in made.cycle.clusters.values() for s in members}
    unmapped = 0 if made.nothing else len(seen.bars.keys() - grouped)
    m.set("quantum_alloc_unmapped_symbols", unmapped)
    told: Fields = {"symbols": len(grouped), "clusters": len(made.cycle.clusters), "unmapped": unmapped}
    return Told("Clusters cycle complete", made.nothing, told)


def build(
    store: Store,
    metrics: Metrics,
    universe: Universe,
    params: ClusterParams,
    to: Target,
    interval_s: float,
    static: Members | None = None,
) -> Cycle[State, Seen, Made]:
    """The service.

    Args:
        store: where it reads.
        metrics: where it counts.
        universe: symbols with bars.
        params: the numbers of P2.7.
        to: names.
        interval_s: cadence.
        static: groups of a file; None for those of the correlations.
    """
    keys = to.keys
    watch = Watch(metrics, "")
    reader = BarReader(keys, params.lookback + 1)

    def read(now: float) -> Seen:
        first = store.read([("HLEN", keys.clusters), *universe.query])
        symbols = universe.find(store, first[1:], now)
        too_large = isinstance(first[0], int) and first[0] > wire.MAP_FIELDS_LIMIT
        batch: list[Command] = [] if too_large else [("HGETALL", keys.clusters)]
        names = sorted({*symbols.names, *(s for members in (static or {}).values() for s in members)})
        batch += [wire.POSITION.query(keys.position(s)) for s in names]
        batch += [wire.ALPHA.query(keys.attribution(s)) for s in names]
        replies = store.read(batch)
        before = wire.oversized_clusters() if too_large else wire.decode_clusters(replies.pop(0))
        notional: dict[str, float] = {}
        alpha: dict[str, float] = {}
        n = len(names)
        looked = Counter({("clusters", before.state): 1})
        for symbol, position, score in zip(names, replies[:n], replies[n:], strict=True):
            held = wire.decode(wire.POSITION, position, now, POSITION_STALE_S)
            if isinstance(held, Fresh):
                notional[symbol] = held.value.qty * held.value.mark_price_usd
            scored = wire.decode(wire.ALPHA, score, now, ALPHA_STALE_S)
            if isinstance(scored, Fresh):
                alpha[symbol] = scored.value
            looked["position", held.state] += 1
            looked["attribution", scored.state] += 1
        bars = reader.read(store, symbols.names, now)
        return Seen(now, symbols, bars, before, notional, alpha, reader.malformed, looked)

    def decide(state: State, seen: Seen, _: Attempt) -> tuple[State, Made]:
        return step(state, seen, params, static)

    def effects(_: Seen, made: Made) -> tuple[Group, ...]:
        return cluster_effects(made.cycle, made.now, to, with_map=made.map_is_due)

    return Cycle(
        name=NAME,
        mode="",
        interval_s=interval_s,
        initial=State(),
        read=read,
        decide=decide,
        effects=effects,
        tell=lambda seen, made, _: tell(metrics, watch, seen, made),
    )


def universe_of(keys: Keys = LIVE, fixed: tuple[str, ...] = (), limit: int = 1_000) -> Universe:
    """Symbols with bars or a position."""
    return Universe(keys, (keys.bars(""), keys.position("")), fixed, limit)
