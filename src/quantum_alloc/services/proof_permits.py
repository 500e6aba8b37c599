"""What must hold of permits and what guards them: plans answered, fills permitted, kill switch, server, ledger."""

from __future__ import annotations

from quantum_alloc.adapters import codec
from quantum_alloc.services.proof_said import halted
from quantum_alloc.services.proof_seen import Facts
from quantum_alloc.services.proof_services import Finding, without

ANSWER_S = 5.0
CRITICAL = ("noeviction", "settings")
"""What a server must not lack for a service that enforces; the rest is told."""


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
        return [without("account", "there is no paper account: the service apply does not run here"), _fills(f)]
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
        # another executor may fill one permit in parts
        if (plan in seen and f.loaded.account is not None) or plan not in issued:
            wrong = wrong or f"{plan}: {'no permit' if plan not in issued else 'a second fill of its permit'}"
        seen.add(plan)
    if not looked:
        return without("fills", "no fill is as new as the events that were read")
    return Finding("fills", not wrong, wrong or f"{looked} fills, each with a permit")


def _id(text: str) -> tuple[int, int]:
    ms, _, n = text.partition("-")
    return int(ms), int(n or 0)


def kill_off(f: Facts, _: str) -> list[Finding]:
    """The kill switch is off, and not latched."""
    told = halted(f.kill, is_latched=f.latched)
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
