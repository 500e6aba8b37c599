"""What regime, clusters, attribution, efficiency and proposer write.

The first group of a service that reads executions begins with its state and position, and holds the dead letters: what
follows in it is applied in the same MULTI, what comes in later groups can be lost and is published anew in the next
cycle. A watched state key makes a second instance's write fail instead of counting an execution twice.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence

from quantum_alloc.adapters.effects import Effect, Group, HashReplace, HashSet, SetRemove, StreamAdd, in_groups
from quantum_alloc.adapters.writes import SYMBOLS_PER_GROUP, Target, stamp, universe_effects
from quantum_alloc.core import (
    AttributionCycle,
    ClusterCycle,
    EfficiencyCycle,
    ProposalCycle,
    RegimeDecision,
    RegimeParams,
    attribution_fields,
    efficiency_fields,
    proposal_fields,
    regime_fields,
)
from quantum_alloc.core.clusters import RULES_VERSION as CLUSTER_RULES
from quantum_alloc.core.efficiency import RULES_VERSION as EFFICIENCY_RULES
from quantum_alloc.core.fields import number

DEAD_LETTERS = "execution.deadletter"
STRESS_TTL_S = 180
UNIVERSE_LIMIT = 10_000
"""Symbols that come from executions alone are added to the universe up to so many, and taken out when forgotten."""
ATTRIBUTION_HASH = (
    "performance_factor", "alpha_score", "confidence", "window", "source", "lkg_age_s", "last_exec_ts", "mode",
    "regime_contrib", "cluster_contrib", "signal_contrib", "time_contrib",
)  # fmt: skip
EFFICIENCY_HASH = (
    "efficiency_score", "efficiency_raw", "efficiency_ewma", "capital_pressure", "reallocation_weight", "confidence",
    "inputs_ok", "stale_flags", "p30_perf", "p30_conf", "p29_target_usd", "volatility_ewma", "dd_proxy",
    "hold_time_penalty", "lane", "mode",
)  # fmt: skip
PROPOSAL_HASH = (
    "symbol", "base_target", "proposed_target", "multiplier", "eff_score", "eff_confidence", "eff_stale", "reason",
    "eff_lane", "base_lane", "mode",
)  # fmt: skip


def _grouped(
    first: Sequence[Effect], per_symbol: Sequence[Sequence[Effect]], more: Sequence[Effect] = ()
) -> tuple[Group, ...]:
    groups = in_groups(per_symbol, SYMBOLS_PER_GROUP) or ((),)
    return ((*first, *groups[0]), *in_groups([[e] for e in more], SYMBOLS_PER_GROUP), *groups[1:])


def _names(symbols: Sequence[str], dropped: Sequence[str], known: frozenset[str], to: Target) -> tuple[Effect, ...]:
    """What keeps the universe as small as what is remembered."""
    gone = tuple(s for s in dropped if s in known)
    room = max(0, UNIVERSE_LIMIT - len(known) + len(gone))
    new = [s for s in symbols if s not in known][:room]
    added = universe_effects(new, known, to.keys)
    return (*added, SetRemove(to.keys.universe, gone)) if gone else added


def _first_group(
    state: HashSet, dead: Sequence[Effect], names: Sequence[Effect], per_symbol: Sequence[Sequence[Effect]]
) -> tuple[Group, ...]:
    """State and position first; a flood of dead letters is cut into transactions of its own."""
    some, more = dead[:SYMBOLS_PER_GROUP], dead[SYMBOLS_PER_GROUP:]
    return _grouped([state, *some, *names], per_symbol, more)


def letters(entries: Sequence[Mapping[str, str]], to: Target) -> list[Effect]:
    """The dead letters of a cycle.

    Args:
        entries: fields of each.
        to: stream length and names.
    """
    return [StreamAdd(to.keys.stream(DEAD_LETTERS), fields, to.maxlen) for fields in entries]


def _published(
    records: Sequence[tuple[str, Mapping[str, str]]],
    stream: str,
    to: Target,
    key: Callable[[str], str] | None,
    names: Sequence[str],
    when: Mapping[str, str],
    more: Mapping[str, str],
) -> list[list[Effect]]:
    """A stream entry a symbol, and its hash where one is written."""
    out: list[list[Effect]] = []
    for symbol, record in records:
        fields = {**record, **when}
        effects: list[Effect] = [StreamAdd(stream, fields, to.maxlen)]
        if key is not None:
            effects.append(HashSet(key(symbol), {**{n: record[n] for n in names}, **when, **more}, to.ttl_s))
        out.append(effects)
    return out


def regime_effects(decision: RegimeDecision, params: RegimeParams, to: Target) -> tuple[Group, ...]:
    """The entry of a regime.

    Args:
        decision: the regime.
        params: the numbers of the detector.
        to: stream length and names.
    """
    fields = {**regime_fields(decision, params), **stamp(decision.now)}
    return ((StreamAdd(to.keys.stream("regime.state"), fields, to.maxlen),),)


def cluster_effects(cycle: ClusterCycle, now: float, to: Target, *, with_map: bool) -> tuple[Group, ...]:
    """The map, replaced whole where it is due, and a stress record a cluster, in one transaction.

    Args:
        cycle: the clusters and their strains.
        now: unix seconds.
        to: names.
        with_map: whether the map is written.
    """
    if not cycle.clusters:
        return ()
    effects: list[Effect] = []
    if with_map:
        lists = {name: json.dumps(list(members), separators=(",", ":")) for name, members in cycle.clusters.items()}
        effects.append(HashReplace(to.keys.clusters, lists))
    for s in cycle.stresses:
        fields = {
            "stress": number(s.stress),
            "alpha": number(s.alpha),
            "weight": number(s.weight),
            "concentration": number(s.concentration),
            "correlation": number(s.correlation),
            "members": str(len(s.members)),
            "rules": CLUSTER_RULES,
            **stamp(now),
        }
        effects.append(HashSet(to.keys.stress(s.cluster_id), fields, STRESS_TTL_S))
    return (tuple(effects),)


def attribution_effects(
    cycle: AttributionCycle, state: HashSet, dead: Sequence[Mapping[str, str]], to: Target, known: frozenset[str]
) -> tuple[Group, ...]:
    """The writes of an attribution cycle.

    Args:
        cycle: the decisions.
        state: what saves states and position.
        dead: dead letters.
        to: mode, expiry, stream length and names.
        known: the universe as read.
    """
    when = stamp(cycle.now, "ts_utc")
    hashes = to.hash_keys
    per_symbol = _published(
        [(d.symbol, attribution_fields(d, cycle.params, to.mode)) for d in cycle.decisions],
        to.keys.stream("alpha.attribution"),
        to,
        None if hashes is None else hashes.attribution,
        ATTRIBUTION_HASH,
        when,
        {},
    )
    return _first_group(
        state, letters(dead, to), _names([d.symbol for d in cycle.decisions], cycle.dropped, known, to), per_symbol
    )


def efficiency_effects(
    cycle: EfficiencyCycle,
    state: HashSet,
    dead: Sequence[Mapping[str, str]],
    to: Target,
    stream: str,
    known: frozenset[str],
) -> tuple[Group, ...]:
    """The writes of an efficiency cycle.

    Args:
        cycle: the decisions.
        state: what saves states and position.
        dead: dead letters.
        to: mode, expiry, stream length and names.
        stream: where decisions go.
        known: the universe as read.
    """
    when = {"ts": stamp(cycle.now)["ts"]}
    hashes = to.hash_keys
    per_symbol = _published(
        [(d.symbol, efficiency_fields(d, cycle.params, to.mode)) for d in cycle.decisions],
        stream,
        to,
        None if hashes is None else hashes.efficiency,
        EFFICIENCY_HASH,
        when,
        {"version": EFFICIENCY_RULES},
    )
    return _first_group(
        state, letters(dead, to), _names([d.symbol for d in cycle.decisions], cycle.dropped, known, to), per_symbol
    )


def proposal_effects(cycle: ProposalCycle, to: Target, stream: str, known: frozenset[str]) -> tuple[Group, ...]:
    """The writes of a proposer cycle: the proposal's own hash in the live lane, and in the shadow lane where it is on.

    Args:
        cycle: the proposals.
        to: expiry, stream length and names.
        stream: where proposals go.
        known: the universe as read.
    """
    if not cycle.decisions:
        return ()
    when = stamp(cycle.now, "ts_epoch")
    last = {"last_update_ts_epoch": when["ts_epoch"]}
    per_symbol = _published(
        [(d.symbol, proposal_fields(d, cycle.params)) for d in cycle.decisions],
        stream,
        to,
        to.keys.proposed,
        PROPOSAL_HASH,
        when,
        last,
    )
    if to.shadow is not None:
        for effects in per_symbol:
            effects += [
                HashSet(to.shadow.proposed(e.fields["symbol"]), e.fields, e.ttl_s)
                for e in effects
                if isinstance(e, HashSet)
            ]
    first = universe_effects([d.symbol for d in cycle.decisions], known, to.keys)
    return _grouped(first, per_symbol)
