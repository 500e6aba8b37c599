"""Cases of gate 0.5: a plan that goes beyond its symbol's target, with a target in shadow, enforced, old, or missing.

The plan is blocked where the target is enforced and fresh, and there alone; a close is never blocked. Source: the
project's governor, section 1.
"""

from __future__ import annotations

import json
from typing import Any

from quantum_alloc.core.limits import TARGET_STALE_S
from quantum_alloc.services.options import GovernorOptions
from quantum_alloc.services.proof import Result
from quantum_alloc.services.proof_bench import PRICE_USD, Bench, Lane
from quantum_alloc.services.proof_cases_governor import (
    GROUP,
    OVER,
    TARGET_USD,
    events_of,
    object_of,
    permit_of,
    permitted,
    plan,
    prepared,
)
from quantum_alloc.services.proof_judging import differences, judged, lives
from quantum_alloc.services.proof_service import Trouble
from quantum_alloc.services.proof_settings import A

BLOCK_TTL_S = 3600


def _gate(lane: Lane, plan_id: str) -> list[Any]:
    """What gate 0.5 said of a plan, as the decision's record tells it: outcome, reason, observed, limit."""
    record = next((e for e in events_of(lane, plan_id) if e.get("event") in ("PERMIT", "BLOCK")), {})
    try:
        rows = json.loads(record.get("gates", "[]"))
        return next((list(row[1:]) for row in rows if row[0] == "0.5"), [])
    except (ValueError, TypeError, KeyError, IndexError):
        raise Trouble(f"the gates of the record are no list of rows: {record.get('gates')!r:.100}") from None


def _passes(check: str, case: str, lane: Lane, due: list[str], *, closes: bool = False) -> list[Result]:
    plan(lane, "p1", closes=closes)
    lane.once("governor")
    said = _gate(lane, "p1")
    wrong = [] if said == due else [f"gate 0.5 says {said}, due {due}"]
    more: dict[str, object] = {"movement": "close", "reduce_only": True, "side": "SELL"} if closes else {}
    wrong += permitted(lane, "p1", more)
    wrong += ["there is a block"] if lane.text(lane.keys.block("p1")) is not None else []
    return [judged((GROUP, check, case), wrong, f"gate 0.5 says {' '.join(due)}, and there is a permit")]


def shadow(bench: Bench) -> list[Result]:
    """A plan beyond a target in shadow passes."""
    lane = prepared(bench.lane("gate-shadow"), held=True)
    lane.target(A, TARGET_USD, "shadow")
    return _passes("gate-shadow", "beyond a target in shadow", lane, ["fail_open", "shadow"])


def stale(bench: Bench) -> list[Result]:
    """A plan beyond an enforced target a second too old passes."""
    lane = prepared(bench.lane("gate-stale"), held=True)
    lane.target(A, TARGET_USD, age_s=TARGET_STALE_S + 1.0)
    return _passes("gate-stale", "beyond a target too old", lane, ["fail_open", "stale"])


def missing(bench: Bench) -> list[Result]:
    """A plan without a target passes."""
    lane = prepared(bench.lane("gate-missing"), held=True)
    return _passes("gate-missing", "no target", lane, ["fail_open", "missing"])


def close(bench: Bench) -> list[Result]:
    """A plan that closes a position beyond an enforced target passes."""
    lane = prepared(bench.lane("gate-close"), held=True)
    lane.target(A, TARGET_USD)
    return _passes("gate-close", "a close beyond the target", lane, ["not_applicable"], closes=True)


def enforce(bench: Bench) -> list[Result]:
    """A plan beyond an enforced target is blocked: no permit, and everything that tells why."""
    lane = prepared(bench.lane("gate-enforce"), held=True)
    p = lane.settings.of(GovernorOptions).params()
    lane.target(A, TARGET_USD, age_s=TARGET_STALE_S)  # the greatest age that counts
    plan(lane, "p1")
    made = lane.once("governor")
    observed = 2.0 * PRICE_USD if p.exposure_after else PRICE_USD
    block = object_of(lane.text(lane.keys.block("p1")))
    due: dict[str, object] = {
        "reason": OVER, "symbol": A, "gate": "0.5", "observed": observed, "limit": TARGET_USD,
        "timestamp": int(lane.now), "retry_after_s": None,
    }  # fmt: skip
    wrong = differences(due, block) if block else ["there is no block"]
    wrong += lives(lane.life_s(lane.keys.block("p1")), BLOCK_TTL_S) if block else []
    said, gate = _gate(lane, "p1"), ["block", OVER, observed, TARGET_USD, TARGET_USD - observed]
    wrong += [] if said == gate else [f"gate 0.5 says {said}, due {gate}"]
    wrong += ["there is a permit"] if permit_of(lane, "p1") else []
    told = {e.get("event"): e for e in events_of(lane, "p1")}
    names = ["BLOCK", "P29_ALLOCATION_CAP_BLOCK"]
    wrong += [] if sorted(map(str, told)) == names else [f"the events are {sorted(map(str, told))}, due {names}"]
    cap: dict[str, object] = {
        "position_notional_usd": f"{PRICE_USD:.2f}", "exposure_after_usd": f"{observed:.2f}",
        "target_usd": f"{TARGET_USD:.2f}", "mode": "enforce", "confidence": "0.80", "reason": OVER, "symbol": A,
    }  # fmt: skip
    wrong += differences(cap, told.get("P29_ALLOCATION_CAP_BLOCK", {}))
    wrong += differences({"n": 1.0}, {"n": made.metrics.value("gov_p29_block_total", A)})
    fine = f"blocked: {observed:g} USD over {TARGET_USD:g}, with block, events and no permit"
    return [judged((GROUP, "gate-enforce", "beyond an enforced target"), wrong, fine)]
