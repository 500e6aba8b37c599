"""Cases of doing it again: a restart has no effect of its own, and the same inputs give the same outputs.

- restart: one lane with a service that runs two cycles, one with a service that is built anew between them: both
  lanes hold the same afterwards, to the letter, and every execution counts once; the governor answers a plan that comes
  again with REPLAY, and one that was delivered and not answered with one permit;
- twice: the same inputs and clock in two lanes: both hold the same, but for the ids of entries
"""

from __future__ import annotations

from collections.abc import Callable

from quantum_alloc.adapters.effects import HashSet
from quantum_alloc.adapters.writes import stamp
from quantum_alloc.services import inject
from quantum_alloc.services.options import AllocationOptions, GovernorOptions, ProposerOptions
from quantum_alloc.services.proof import Result
from quantum_alloc.services.proof_bench import Bench, Lane
from quantum_alloc.services.proof_cases_flow import OWN, SYMBOLS, executions, feed
from quantum_alloc.services.proof_cases_governor import events_of, pending, permit_of, plan, prepared
from quantum_alloc.services.proof_judging import apart, judged
from quantum_alloc.services.proof_service import Service
from quantum_alloc.services.proof_settings import A
from quantum_alloc.services.settings import Mode

GROUP_OF = {
    "allocation": "allocation", "attribution": "efficiency", "efficiency": "efficiency", "proposer": "proposer",
    "governor": "governor",
}  # fmt: skip


def _fed(bench: Bench, label: str, service: str) -> Lane:
    """A lane with all inputs of a service; of the allocation also proposals, which it follows by steps."""
    lane = bench.lane(label, Mode.ENFORCE)
    if service == "proposer":
        for symbol in SYMBOLS:
            lane.target(symbol, 800.0)
        lane.put(*(inject.efficiency(lane.aged(), s, 0.8, 0.9) for s in SYMBOLS))
    elif service == "governor":
        prepared(lane, held=True)
    else:
        feed(lane, service)
    if service == "allocation" and lane.settings.of(AllocationOptions).use_proposed:
        fields = {"multiplier": "1.4000", "reason": "ok", "eff_lane": "live", "base_lane": "live"}
        when = stamp(lane.now, "ts_epoch")
        lane.put(*(HashSet(lane.keys.proposed(s), {**fields, **when}, 600) for s in SYMBOLS))
    return lane


def _told(lane: Lane, service: str) -> list[dict[str, str]]:
    """The records that a service has written in its own stream."""
    proposes = service == "proposer"
    return lane.entries(lane.settings.of(ProposerOptions).propose_stream if proposes else OWN[service][2](lane)[0])


def _few(lane: Lane, service: str, due: int) -> list[str]:
    """Fewer records than are due, or more: two lanes in which nothing is written are alike."""
    n = len(_told(lane, service))
    return [] if n == due else [f"{service} has written {n} records, due {due}"]


def _applied(made: Service) -> float:
    return made.metrics.value("quantum_alloc_execution_entries_total", "applied")


def _restart(bench: Bench, service: str) -> list[Result]:
    check = f"{service}-restart"
    through, anew = (_fed(bench, f"{check}-{name}", service) for name in ("through", "anew"))
    one = through.begin(service)
    runs = [one.cycle(), anew.once(service)]
    before = anew.dump()
    one.cycle()
    again = anew.once(service)
    wrong = [*_few(anew, service, 2 * len(SYMBOLS)), *apart(through.dump(), anew.dump())]
    fine = "the same records, state and position as without one"
    if service in ("attribution", "efficiency"):
        due = float(executions(bench.lane(f"{check}-count")))
        counts = [_applied(runs[0]), _applied(runs[1]) + _applied(again)]
        wrong += [f"{n:g} executions are applied, due {due:g}" for n in counts if n != due]
        wrong += [] if _applied(again) == 0.0 else ["the restart applies executions again"]
        where = anew.plain(anew.keys.attribution_state if service == "attribution" else anew.keys.efficiency_state)
        wrong += _moved(before.get(where), anew.dump().get(where))
        fine = f"{fine}; {due:g} executions, each once"
    return [judged((GROUP_OF[service], check, "a cycle, a restart, a cycle"), wrong, fine)]


def _moved(before: object, after: object) -> list[str]:
    """A position that is not what it was, where nothing new came."""
    a, b = (s.get("_pos") if isinstance(s, dict) else None for s in (before, after))
    return [] if a == b and a is not None else [f"the position is {b!r}, was {a!r}"]


def allocation_restart(bench: Bench) -> list[Result]:
    """P2.9."""
    return _restart(bench, "allocation")


def attribution_restart(bench: Bench) -> list[Result]:
    """P3.0."""
    return _restart(bench, "attribution")


def efficiency_restart(bench: Bench) -> list[Result]:
    """P3.1."""
    return _restart(bench, "efficiency")


def proposer_restart(bench: Bench) -> list[Result]:
    """Step 1."""
    return _restart(bench, "proposer")


def governor_restart(bench: Bench) -> list[Result]:
    """A plan that comes again gets its first answer; one delivered and not answered gets one permit."""
    check, events = "governor-restart", "events"
    lane = _fed(bench, check, "governor")
    plan(lane, "p1")
    lane.once("governor")
    first, entry = permit_of(lane, "p1"), plan(lane, "p2")
    stream = lane.settings.common.plans_stream
    # as a process that ends between reading and answering leaves it
    lane.ask(("XREADGROUP", "GROUP", "governor", lane.settings.of(GovernorOptions).consumer, "STREAMS", stream, ">"))
    held = pending(lane)
    plan(lane, "p1")
    lane.once("governor")
    told = {p: [e.get("event") for e in events_of(lane, p)] for p in ("p1", "p2")}
    wrong = [] if told["p1"] == ["PERMIT", "REPLAY"] else [f"{events} of p1 are {told['p1']}, due PERMIT, REPLAY"]
    wrong += [] if held == 1 else [f"{held} plans wait before the restart, due 1 ({entry})"]
    wrong += [] if told["p2"] == ["PERMIT"] else [f"{events} of p2 are {told['p2']}, due PERMIT"]
    wrong += [] if first and permit_of(lane, "p1") == first else ["the permit of p1 is not the one first given"]
    wrong += [] if permit_of(lane, "p2") else ["p2 has no permit"]
    permits = [n for n in lane.names if n.startswith(lane.keys.permit(""))]
    wrong += [] if len(permits) == 2 else [f"{len(permits)} permits, due 2"]
    wrong += [] if pending(lane) == 0 else [f"{pending(lane)} plans wait unanswered, due 0"]
    counted = sum(not name.startswith(":") for name in lane.hash(lane.keys.ledger(A)))
    wrong += [] if counted == 2 else [f"the ledger counts {counted} permits, due 2"]
    fine = "a repeated plan got REPLAY and no permit, a pending one its permit, once"
    return [judged(("governor", check, "a permit, a restart, the plan again"), wrong, fine)]


# ---- twice


def _governed(lane: Lane) -> list[str]:
    """Permit, block, and a plan that comes again; what is not as it should be, as of each of these."""
    lane.put(inject.efficiency(lane.aged(), A, 0.2, 0.9))
    plan(lane, "p1")
    lane.once("governor")
    lane.target(A, 50.0)
    plan(lane, "p2")
    plan(lane, "p1")
    lane.once("governor")
    told = [e.get("event", "") for p in ("p1", "p2") for e in events_of(lane, p)]
    due = ["PERMIT", "REPLAY", "BLOCK", "P29_ALLOCATION_CAP_BLOCK"]
    return [] if told == due else [f"the events are {told}, due {due}"]


def _allocated(lane: Lane) -> list[str]:
    budgets = [lane.keys.budget(s) for s in SYMBOLS]
    lane.ask(("DEL", *budgets))
    lane.once("budget")
    wrong = [] if all(map(lane.hash, budgets)) else ["budget has written no budget"]
    lane.once("allocation")
    return [*wrong, *_few(lane, "allocation", len(SYMBOLS))]


def _measured(lane: Lane) -> list[str]:
    lane.once("attribution")
    for symbol in SYMBOLS:
        lane.target(symbol, 800.0)
    lane.once("efficiency")
    return [text for service in ("attribution", "efficiency") for text in _few(lane, service, len(SYMBOLS))]


def _proposed(lane: Lane) -> list[str]:
    lane.once("proposer")
    return _few(lane, "proposer", len(SYMBOLS))


def _twice(bench: Bench, group: str, fed: str, run: Callable[[Lane], list[str]]) -> list[Result]:
    check, held, wrong = f"{group}-twice", [], []
    for name in ("a", "b"):
        lane = _fed(bench, f"{check}-{name}", fed)
        wrong += run(lane)
        held.append(lane.dump())
    records = sum(len(content) for content in held[0].values() if isinstance(content, list))
    fine = f"{len(held[0])} keys and {records} entries, the same in both lanes"
    return [judged((group, check, "the same inputs in two lanes"), [*wrong, *apart(*held)], fine)]


def allocation_twice(bench: Bench) -> list[Result]:
    """Budgets and targets."""
    return _twice(bench, "allocation", "allocation", _allocated)


def efficiency_twice(bench: Bench) -> list[Result]:
    """Attribution and efficiency."""
    return _twice(bench, "efficiency", "attribution", _measured)


def proposer_twice(bench: Bench) -> list[Result]:
    """Proposals."""
    return _twice(bench, "proposer", "proposer", _proposed)


def governor_twice(bench: Bench) -> list[Result]:
    """Permit, block, and a plan that comes again."""
    return _twice(bench, "governor", "governor", _governed)
