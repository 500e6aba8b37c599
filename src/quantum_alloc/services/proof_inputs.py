"""What must hold of what services act upon: inputs fresh, budgets there, plans answered, permits and fills agree.

Which inputs there must be is read off the installation: a hash that only enforce writes is looked for where its writer
says that it enforces, in the shadow lane where that is on, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quantum_alloc.adapters import codec, wire
from quantum_alloc.services.options import (
    AllocationOptions,
    BudgetOptions,
    EfficiencyOptions,
    PortfolioOptions,
    ProposerOptions,
    Settings,
)
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
ANSWER_S = 5.0
CRITICAL = ("noeviction", "settings")
"""What a server must not lack for a service that enforces; the rest is told."""


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
    """Each input that this installation has is there, can be read, and is not too old."""
    return [_input(f, name) for name in INPUTS_OF[group]]


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
    tail, page = f.tail("regimes"), f.second["regime"]
    why = str(page.health.get("nothing_written") or "")
    if not tail.entries:
        return (
            without("regime", f"the service says: {why}") if why else Finding("regime", False, "nothing is on record")
        )
    state, age = _state(f, "regime", tail.entries[-1])
    told = f"the newest is {state}, {'of no time' if age is None else f'{age} s old'}"
    return Finding("regime", state == "fresh", told)


def _clusters(f: Facts, name: str) -> Finding:
    page = f.second["clusters"]
    why = str(page.health.get("nothing_written") or "")
    if f.clusters.state == "missing" and why:
        return without(name, f"the service says: {why}")
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
    if not enforces and not f.settings.common.shadow_lane:
        return without(name, f"{service} does not enforce, and SHADOW_LANE is off: there is none")
    prefix = "" if enforces else "shadow_"
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
    none = [s for s, k in there.items() if not (codec.number(k.fields.get("budget_usd", b"")) or 0.0) > 0.0]
    found = _judged(f, "budget", there, f.symbols)
    more = "" if f.universe == len(f.symbols) else f"; looked at {len(f.symbols)} of {f.universe} symbols"
    if not f.symbols:
        return [Finding("budget", False, "there is no symbol")]
    if found.ok and none:
        return [Finding("budget", False, f"{none[0]} has a budget of nothing")]
    return [Finding("budget", found.ok, found.detail + more)]


def plans_answered(f: Facts, _: str) -> list[Finding]:
    """Each of the newest plans to execute has an answer, 5 s after it came."""
    tail = f.tail("plans")
    told = {e.get("plan_id", "") for e in f.tail("events").texts} | {k.of for k in f.named("tombstone")}
    told |= {e.get("plan_id", "") for e in f.tail("dead_plans").texts}
    looked, open_ = 0, []
    for at, plan in list(zip(tail.ids, tail.texts, strict=True))[-60:]:
        age = f.server_now - int(at.partition("-")[0]) / 1e3
        name = plan.get("plan_id", "")
        if plan.get("decision") != "EXECUTE" or codec.word(name.encode()) is None:
            continue
        if name not in told and age < ANSWER_S:
            continue  # it may be answered yet
        looked += 1
        if name not in told:
            open_.append(f"{name} of {plan.get('symbol', '')} has had no answer for {age:.0f} s")
    if not looked:
        return [without("plans", "no plan to execute has come, or none that could have an answer yet")]
    return [Finding("plans", not open_, open_[0] if open_ else f"{looked} plans, each with its answer")]


def permits_reconcile(f: Facts, _: str) -> list[Finding]:
    """Permits and fills of the paper account agree, and each fill that is read has a permit of its own."""
    page, account = f.second["apply"], f.loaded.account
    if f.loaded.trouble:
        return [Finding("account", False, f"it cannot be read: {f.loaded.trouble}")]
    if account is None:
        if page.is_here:
            return [Finding("account", False, "the service apply runs and has opened none")]
        return [without("account", "there is no paper account: the service apply does not run here")]
    c = account.permits.counts
    still = sum(k.is_outstanding for k in account.permits.permits.values())
    told = f"{c.issued} permits = {c.consumed} consumed + {c.expired} expired + {c.outstanding} outstanding"
    if c.is_wrong:
        told = f"fills: {c.without_permit} without a permit, {c.above_permit} above, {c.elsewhere} not in the account"
    elif c.outstanding != still:
        told += f", of which the account holds {still}"
    return [Finding("account", not c.is_wrong and c.outstanding == still, told), _fills(f)]


def _fills(f: Facts) -> Finding:
    events, fills = f.tail("events"), f.tail("executions")
    issued = {e.get("plan_id", "") for e in events.texts if e.get("event") == "PERMIT"}
    first = _id(events.ids[0]) if events.ids and not events.whole else (0, 0)
    seen: set[str] = set()
    wrong, looked = "", 0
    for at, fill in zip(fills.ids, fills.texts, strict=True):
        plan = fill.get("plan_id", "")
        # a permit lives 60 s: of a fill soon after the first event that was read it may be beyond
        if not plan or _id(at)[0] < first[0] + 61_000:
            continue
        looked += 1
        if plan in seen or plan not in issued:
            wrong = wrong or f"{plan}: {'a second fill of its permit' if plan in seen else 'no permit'}"
        seen.add(plan)
    if not looked:
        return without("fills", "no fill is as new as the events that were read")
    return Finding("fills", not wrong, wrong or f"{looked} fills, each with a permit of its own")


def _id(text: str) -> tuple[int, int]:
    ms, _, n = text.partition("-")
    return int(ms), int(n or 0)


def kill_off(f: Facts, _: str) -> list[Finding]:
    """The kill switch is off, and not latched."""
    told = f"it says {f.kill}" + (", latched: `quantum-alloc rearm` when the reason is gone" if f.latched else "")
    return [Finding("kill switch", f.kill == "OFF" and not f.latched, told)]


def server(f: Facts, _: str) -> list[Finding]:
    """The server lacks nothing that a service in enforce refuses to run without."""
    worst = [f.lacks[name] for name in CRITICAL if name in f.lacks]
    told = f"lacks {', '.join(f.lacks)}: no service refuses for that" if f.lacks else "it lacks nothing"
    return [Finding("Redis", not worst, worst[0] if worst else told)]


def ledger(f: Facts, _: str) -> list[Finding]:
    """The chain of the OPS ledger is whole, and Redis knows the same head."""
    if f.ledger is None:
        return [without("OPS ledger", f"there is none in {f.settings.common.state_directory}")]
    told = f.ledger[0] if f.ledger else f"{f.ledger_entries} entries, chained"
    return [Finding("OPS ledger", not f.ledger, told)]
