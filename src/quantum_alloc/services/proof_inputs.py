"""What must hold of what services act upon: inputs fresh, budgets there.

Which inputs there must be is read off the installation: a hash that only enforce writes is looked for where its writer
says that it enforces, in the shadow lane where that is on, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quantum_alloc.adapters import codec, wire
from quantum_alloc.adapters.registry import Kind
from quantum_alloc.services.options import (
    AllocationOptions,
    BudgetOptions,
    EfficiencyOptions,
    PortfolioOptions,
    ProposerOptions,
    Settings,
)
from quantum_alloc.services.proof_records import no_stream, too_early
from quantum_alloc.services.proof_said import is_a
from quantum_alloc.services.proof_seen import Facts, Key, Tail
from quantum_alloc.services.proof_services import Finding, without

INPUTS_OF: Mapping[str, tuple[str, ...]] = {
    "allocation": ("balance", "portfolio", "market", "position", "regime", "clusters", "stress", "attribution"),
    "efficiency": ("attribution", "target"),
    "proposer": ("target", "efficiency"),
    "governor": ("portfolio", "market", "position", "budget", "target", "efficiency"),
}
WRITTEN_IN_ENFORCE: Mapping[str, tuple[str, str]] = {
    "attribution": ("attribution", "attributions"),
    "target": ("allocation", "decisions"),
    "efficiency": ("efficiency", "efficiencies"),
}
"""Inputs that are there in enforce alone: who writes them, and the stream that tells for which symbols."""
BY_NATURE: Mapping[str, tuple[str, str]] = {
    "balance": ("portfolio", "there is no balance: services that hold an account write it"),
    "portfolio": ("portfolio", "there is no portfolio"),
    "market": ("feed", "no market state is there"),
    "budget": ("budget", "no budget is there"),
}
"""What must be there whatever the modes are: who has to do with it, and what it means that it is not."""


@dataclass(frozen=True, slots=True)
class Input:
    """How one input is judged.

    Attributes:
        schema: how it is read.
        limit_s: greatest age that is fresh, seconds.
    """

    schema: wire.Schema[Any]
    limit_s: Callable[[Settings], float]


INPUTS: Mapping[str, Input] = {
    "balance": Input(wire.BALANCE, lambda s: s.of(PortfolioOptions).balance_stale_s),
    "portfolio": Input(wire.PORTFOLIO, lambda s: s.of(AllocationOptions).stale_data_s),
    "market": Input(wire.MARKET, lambda s: s.of(BudgetOptions).stale_data_s),
    "position": Input(wire.POSITION, lambda s: s.of(PortfolioOptions).position_stale_s),
    "regime": Input(wire.REGIME, lambda s: s.of(AllocationOptions).stale_data_s),
    "stress": Input(wire.STRESS, lambda s: s.of(AllocationOptions).stale_data_s),
    "budget": Input(wire.BUDGET, lambda s: s.of(AllocationOptions).stale_data_s),
    "attribution": Input(wire.ATTRIBUTION, lambda s: s.of(AllocationOptions).stale_data_s),
    "target": Input(wire.TARGET, lambda s: s.of(EfficiencyOptions).stale_s_p29),
    "efficiency": Input(wire.EFFICIENCY, lambda s: s.of(ProposerOptions).stale_s),
}


def _state(f: Facts, name: str, fields: Mapping[str, bytes]) -> tuple[str, int | None]:
    """State and age of one record."""
    of = INPUTS[name]
    raw = {n: v for n, v in fields.items() if n in of.schema.asked}
    reading = wire.decode_fields(of.schema, raw, f.clock, of.limit_s(f.settings))
    return ("fresh" if reading.state == "ok" else reading.state), reading.age_s


def _judged(f: Facts, name: str, there: Mapping[str, Key], due: Sequence[str]) -> Finding:
    """Whether every record that is due is there and fresh, and every other that is there too."""
    missing = [s for s in due if s not in there]
    bad, oldest = "", 0
    for key in there.values():
        if key.kind != Kind.HASH.value:
            bad = bad or f"{key.key} {is_a(key.kind, Kind.HASH.value)}"
            continue
        state, age = _state(f, name, key.fields)
        oldest = max(oldest, age or 0)
        if state != "fresh":
            bad = bad or f"{key.key} is {state}" + ("" if age is None else f", {age} s old")
    if missing:
        few = ", ".join(missing[:4]) + (f" and {len(missing) - 4} more" if len(missing) > 4 else "")
        bad = f"there is none of {few}"
    limit = INPUTS[name].limit_s(f.settings)
    return Finding(name, not bad, bad or f"{len(there)} fresh, the oldest {oldest} s of {limit:g} s")


def inputs_fresh(f: Facts, group: str) -> list[Finding]:
    """Each input that this installation has is there, can be read, and is not too old; there is a market at all."""
    return [_market(f), *(_input(f, name) for name in INPUTS_OF[group])]


def _market(f: Facts) -> Finding:
    """Whether anything is there to decide about: services that have nothing to do prove nothing."""
    of = {k.of for name in ("market", "position") for k in f.named(name)}
    told = f"{len(of)} symbols have a market or a position" if of else "no symbol has a market or a position"
    return Finding("symbols", bool(of), told)


def _input(f: Facts, name: str) -> Finding:
    if name == "regime":
        return _regime(f)
    if name in ("clusters", "stress"):
        return _clusters(f, name)
    if name in WRITTEN_IN_ENFORCE:
        return _in_lane(f, name)
    there = {k.of: k for k in f.named(name)}
    if name == "position" and not there:
        return without(name, "there is none: absent means flat")
    if not there:
        return Finding(name, False, BY_NATURE[name][1])
    # a symbol without a position is flat, so that none is due
    due = () if name in ("balance", "portfolio", "position") else f.symbols
    return _judged(f, name, there, due)


def _regime(f: Facts) -> Finding:
    tail, why = f.tail("regimes"), too_early(f, "regime")
    if other := no_stream(f, "regimes"):
        return Finding("regime", False, other)
    if not tail.entries:
        return without("regime", why) if why else Finding("regime", False, _none_of(f, "regime"))
    state, age = _state(f, "regime", tail.entries[-1])
    told = f"the newest is {state}, {'of no time' if age is None else f'{age} s old'}"
    return Finding("regime", state == "fresh", told)


def _none_of(f: Facts, service: str) -> str:
    """What is told where a service should have written and has not."""
    why = str(f.second[service].health.get("nothing_written") or "")
    return "there is none" + (f": the service says {why}" if why else "")


def _clusters(f: Facts, name: str) -> Finding:
    why = too_early(f, "clusters")
    if other := next((k for k in f.named("clusters") if k.kind != Kind.HASH.value), None):
        return Finding(name, False, f"{other.key} {is_a(other.kind, Kind.HASH.value)}")
    if f.clusters.state == "missing":
        return without(name, why) if why else Finding(name, False, _none_of(f, "clusters"))
    if name == "clusters":
        told = f"{len(f.clusters.ids)} clusters of {len(f.clusters.of)} symbols"
        return Finding(
            name, f.clusters.state == "ok", told if f.clusters.state == "ok" else f"it is {f.clusters.state}"
        )
    if not f.clusters.ids:
        return Finding(name, False, "there is no cluster map to have a stress")
    return _judged(f, name, {k.of: k for k in f.named(name)}, f.clusters.ids)


def _in_lane(f: Facts, name: str) -> Finding:
    service, stream = WRITTEN_IN_ENFORCE[name]
    enforces = f.mode_of(service, stream) == "enforce"
    if not enforces and not f.has_shadow_lane:
        return without(name, f"{service} does not enforce, and SHADOW_LANE is off: there is none")
    prefix = "" if enforces else "shadow_"
    if other := no_stream(f, stream):
        return Finding(name, False, other)
    newest = _newest(f.tail(stream))
    if not newest:
        page = f.second[service]
        why = f"{service} has published none yet"
        return without(name, why) if page.is_here and name == "attribution" else Finding(name, False, why)
    return _judged(f, name, {k.of: k for k in f.named(f"{prefix}{name}")}, [s for s in newest if s in f.symbols])


def _newest(tail: Tail) -> list[str]:
    """Symbols of the last cycle that a stream tells of."""
    last = tail.entries[-1].get("ts") if tail.entries else None
    return sorted({e.get("symbol", "") for e in tail.texts if e.get("ts", "").encode() == last})


def budgets(f: Facts, _: str) -> list[Finding]:
    """Each symbol of the universe has a fresh budget above 0."""
    there = {k.of: k for k in f.named("budget")}
    none = [
        s
        for s, k in there.items()
        if k.kind == Kind.HASH.value and not (codec.number(k.fields.get("budget_usd", b"")) or 0.0) > 0.0
    ]
    found = _judged(f, "budget", there, f.symbols)
    more = "" if f.universe == len(f.symbols) else f"; looked at {len(f.symbols)} of {f.universe} symbols"
    if not f.symbols:
        return [Finding("budget", False, "there is no symbol")]
    if found.ok and none:
        return [Finding("budget", False, f"{none[0]} has a budget of nothing")]
    return [Finding("budget", found.ok, found.detail + more)]
