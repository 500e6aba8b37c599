"""Cases of the governor: its hint on real permits, its metrics, and its pages.

Every plan is a real entry of the lane's plan stream, every answer comes from the commit script. The lane's governor
enforces all gates, whatever APPLY_MODE the installation has; nobody fills its permits, and they are deleted. What is
due is worked out here from the installation's numbers. Source: the project's rules, section 6.
"""

from __future__ import annotations

import json
from typing import Any

from quantum_alloc.core import GovernorParams
from quantum_alloc.services import http, inject
from quantum_alloc.services.options import GovernorOptions
from quantum_alloc.services.proof import Result
from quantum_alloc.services.proof_bench import EQUITY_USD, PRICE_USD, Bench, Lane
from quantum_alloc.services.proof_cases_proposer import Given, reason_of
from quantum_alloc.services.proof_judging import differences, judged, lives
from quantum_alloc.services.proof_service import Service, Trouble
from quantum_alloc.services.proof_settings import A

GROUP = "governor"
PERMIT_TTL_S = 60
TARGET_USD = 50.0
OVER = "p29_allocation_cap"


def prepared(lane: Lane, *, held: bool = False) -> Lane:
    """A lane with a portfolio, a price, and where wanted a position of one piece.

    Args:
        lane: where.
        held: whether there is a position.
    """
    where = lane.aged()
    usd = PRICE_USD if held else 0.0
    lane.put(inject.portfolio(where, EQUITY_USD, usd, int(held)), inject.market(where, A, PRICE_USD))
    if held:
        lane.put(inject.position(where, A, 1.0, PRICE_USD))
    return lane


def plan(lane: Lane, plan_id: str, *, closes: bool = False) -> str:
    """A plan of one piece, as a strategy proposes it.

    Args:
        lane: where.
        plan_id: its id.
        closes: whether it closes the position.

    Returns:
        The id of its entry.
    """
    told: dict[str, Any] = {
        "plan_id": plan_id, "action": "FULL_CLOSE_PROPOSED" if closes else "ENTRY_PROPOSED", "decision": "EXECUTE",
        "side": None if closes else "BUY", "qty": 1.0, "price": PRICE_USD, "kill_score": 0.1, "reduce_only": False,
    }  # fmt: skip
    now = str(int(lane.now))
    fields = {**inject.plan_fields(A, lane.now, told), "timestamp": now, "ts": now}
    return lane.add(lane.settings.common.plans_stream, fields)


def permit_of(lane: Lane, plan_id: str) -> dict[str, Any]:
    """The permit of a plan; empty where there is none."""
    return object_of(lane.text(lane.keys.permit(plan_id)))


def events_of(lane: Lane, plan_id: str) -> list[dict[str, str]]:
    """What the governor told of a plan."""
    events = lane.settings.of(GovernorOptions).events_stream
    return [e for e in lane.entries(events) if e.get("plan_id") == plan_id]


def pending(lane: Lane) -> int:
    """Plans without an answer."""
    reply = lane.ask(("XPENDING", lane.settings.common.plans_stream, "governor"))
    return reply[0] if isinstance(reply, list) and isinstance(reply[0], int) else -1


def object_of(text: str | None) -> dict[str, Any]:
    """A JSON object; empty where there is no text.

    Args:
        text: as a key or a page holds it.

    Raises:
        Trouble: it is no JSON.
    """
    try:
        told = json.loads(text or "{}")
    except ValueError:
        raise Trouble(f"{text!r:.100} is no JSON") from None
    return told if isinstance(told, dict) else {}


# ---- the hint


def hint_of(given: Given | None, p: GovernorParams) -> dict[str, object]:
    """What a permit is to say of an efficiency, by the rule.

    Args:
        given: the efficiency; None for none.
        p: the installation's numbers.
    """
    reason = reason_of(given, p.min_conf, p.eff_stale_s)
    action, factor, cooldown = "NONE", 1.0, 0
    if given is not None and reason == "ok" and given.score < p.threshold:
        share = given.score / p.threshold
        action, factor = "DOWNSIZE", share if share > p.min_factor else p.min_factor
        cooldown = round((1.0 - given.score) * p.max_extra_cooldown_s)
    return {
        "eff_reason": reason,
        "eff_action": action,
        "eff_factor": f"{factor:.4f}",
        "downsize_factor": f"{factor:.4f}",
        "extra_cooldown_sec": str(cooldown),
        "eff_score": "" if given is None else f"{given.score:.4f}",
        "eff_confidence": "" if given is None else f"{given.confidence:.3f}",
        "eff_stale": "1" if reason == "stale_eff" else "0",
    }


def permitted(lane: Lane, plan_id: str, due: dict[str, object]) -> list[str]:
    """What is wrong with the permit of a plan of one piece, and with what stands beside it.

    Args:
        lane: where.
        plan_id: of the plan.
        due: what the permit says beside what every one of these says.
    """
    permit = permit_of(lane, plan_id)
    whole: dict[str, object] = {
        "granted": True, "consumed": False, "symbol": A, "decision": "EXECUTE", "plan_id": plan_id,
        "computed_qty": 1.0, "computed_notional": PRICE_USD, "created_at": lane.now, "apply_mode": "production",
        "dry_run": False, **due,
    }  # fmt: skip
    wrong = differences(whole, permit) if permit else ["there is no permit"]
    if permit:
        wrong += lives(lane.life_s(lane.keys.permit(plan_id)), PERMIT_TTL_S)
    told = [e.get("event") for e in events_of(lane, plan_id)]
    wrong += [] if told == ["PERMIT"] else [f"the events are {told}, due PERMIT alone"]
    wrong += [] if pending(lane) == 0 else [f"{pending(lane)} plans wait unanswered, due 0"]
    wrong += [] if lane.text(lane.keys.tombstone(plan_id)) else ["there is no tombstone"]
    return wrong


def _hint(bench: Bench, check: str, given: Given | None, fixed: dict[str, object]) -> list[Result]:
    lane, p = prepared(bench.lane(check)), bench.settings.of(GovernorOptions).params()
    if given is not None:
        lane.put(inject.efficiency(lane.aged(given.age_s), A, given.score, given.confidence))
    plan(lane, "p1")
    lane.once("governor")
    due = hint_of(given, p)
    wrong = differences(fixed, due) if p.min_conf > 0.0 else []
    wrong += permitted(lane, "p1", due)
    what = f"{given.score:g} at confidence {given.confidence:g}" if given else "none"
    fine = f"a permit with {due['eff_action']}, factor {due['eff_factor']}, {due['extra_cooldown_sec']} s"
    return [judged((GROUP, check, f"efficiency {what}"), wrong, fine)]


def low(bench: Bench) -> list[Result]:
    """Score 0.2, or half of a lower threshold: smaller, and a pause."""
    p = bench.settings.of(GovernorOptions).params()
    score = 0.2 if p.threshold > 0.2 else p.threshold / 2.0
    fixed: dict[str, object] = {"eff_action": "DOWNSIZE"}
    if (p.threshold, p.min_factor, p.max_extra_cooldown_s) == (0.45, 0.25, 120):
        fixed |= {"eff_factor": "0.4444", "extra_cooldown_sec": "96"}  # the contract's worked example
    return _hint(bench, "governor-low-efficiency", Given(score, max(0.8, p.min_conf)), fixed)


def high(bench: Bench) -> list[Result]:
    """Score 1.0 asks for nothing."""
    p = bench.settings.of(GovernorOptions).params()
    return _hint(bench, "governor-high-efficiency", Given(1.0, max(0.8, p.min_conf)), {"eff_action": "NONE"})


def absent(bench: Bench) -> list[Result]:
    """No efficiency asks for nothing, and says why."""
    return _hint(bench, "governor-missing", None, {"eff_action": "NONE", "eff_reason": "missing_eff"})


def unsure(bench: Bench) -> list[Result]:
    """A low score of low confidence asks for nothing, and says why."""
    p = bench.settings.of(GovernorOptions).params()
    given = Given(0.1 * p.threshold, max(0.0, p.min_conf - 0.01))
    return _hint(bench, "governor-low-confidence", given, {"eff_action": "NONE", "eff_reason": "low_conf"})


# ---- metrics and pages


def _worked(bench: Bench, check: str) -> Service:
    """A governor that has permitted two plans and blocked one."""
    lane = prepared(bench.lane(check), held=True)
    made = lane.begin("governor")
    for n in range(2):
        plan(lane, f"p{n}")
        made.cycle()
    lane.target(A, TARGET_USD)
    plan(lane, "p2")
    return made.cycle()


def metrics(bench: Bench) -> list[Result]:
    """The counters moved by exactly two permits and one block."""
    made = _worked(bench, "governor-metrics")
    due: dict[tuple[str, ...], float] = {
        ("quantum_govern_allow_total", A): 2.0,
        ("quantum_govern_block_total", A, OVER): 1.0,
        ("gov_p29_checked_total", A): 3.0,
        ("gov_p29_missing_total", A): 2.0,
        ("gov_p29_block_total", A): 1.0,
        ("gov_p29_stale_total", A): 0.0,
        ("p32_eff_apply_total", "NONE", "missing_eff"): 2.0,
        ("quantum_alloc_plans_total", "permit"): 2.0,
        ("quantum_alloc_plans_total", "block"): 1.0,
        ("quantum_alloc_gate_outcomes_total", "0.5", "fail_open", "missing"): 2.0,
        ("quantum_alloc_gate_outcomes_total", "0.5", "block", OVER): 1.0,
        ("quantum_alloc_symbol_errors_total",): 0.0,
    }
    found = {key: made.metrics.value(*key) for key in due}
    wrong = [f"{' '.join(key)} is {found[key]:g}, due {n:g}" for key, n in due.items() if found[key] != n]
    return [judged((GROUP, "governor-metrics", "two permits, one block"), wrong, f"{len(due)} counters as due")]


def health(bench: Bench) -> list[Result]:
    """The loop's pages: ready, not late, and the metrics in them."""
    made = _worked(bench, "governor-health")
    pages = {path: page() for path, page in http.routes(made.loop, made.about).items()}
    wrong = [f"{path} answers {page[0]}, due 200" for path, page in pages.items() if page[0] != 200]
    told = object_of(pages["/health"][2].decode())
    wrong += differences({"service": "governor", "status": "ok", "ready": True, "last_error": ""}, told)
    wrong += differences({"ready": True}, object_of(pages["/ready"][2].decode()))
    lines = pages["/metrics"][2].decode().splitlines()
    line = f'quantum_govern_allow_total{{symbol="{A}"}} 2.0'
    wrong += [] if line in lines else [f"/metrics lacks {line}"]
    at = (GROUP, "governor-health", "/health /ready /metrics")
    return [judged(at, wrong, f"ready after {told.get('cycles')} cycles, {len(lines)} lines of metrics")]
