"""What the governor's answers look like in Redis: permits, blocks, tombstones, events, dead letters.

Every answer has one event with its whole record; beside it stand WOULD_BLOCK for gates that are not enforced,
P29_ALLOCATION_CAP_BLOCK for a block by gate 0.5, and AUTO_DISARM. Source: the project's contract and governor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from quantum_alloc.adapters.commit import BLOCK_TOMBSTONE_S, Item
from quantum_alloc.adapters.permits import SigningKey, block_json, permit_json
from quantum_alloc.adapters.writes import stamp
from quantum_alloc.core.fields import compact, number
from quantum_alloc.core.gates import Outcome, facts
from quantum_alloc.core.governor_inputs import Answer
from quantum_alloc.core.governor_params import GATES, GovernorParams
from quantum_alloc.core.limits import US
from quantum_alloc.core.plan import Movement, Plan
from quantum_alloc.core.reading import shown
from quantum_alloc.core.record_governor import governor_fields
from quantum_alloc.core.verdicts import Block, Conflict, Permit, Replay

_WOULD_BLOCK = Outcome.WOULD_BLOCK
BOOK_REASONS = ("max_positions_reached", "total_notional_exceeded")
"""Blocks that an open before them in the batch may have brought about."""
FAILED = "decision_failed"
"""Why a plan that could not be decided is blocked."""


def event(name: str, plan_id: str, symbol: str, reason: str, now: float, more: Mapping[str, str]) -> dict[str, str]:
    """An entry of the event stream.

    Args:
        name: of the event.
        plan_id: of the plan; escaped where it is none; empty where none is concerned.
        symbol: of the plan.
        reason: a code.
        now: unix seconds.
        more: further fields.
    """
    return {"event": name, "plan_id": plan_id, "symbol": symbol, "reason": reason, **stamp(now), **more}


def _tombstone(answer: Answer, plan: Plan, now_us: int, by: str = "") -> str:
    told = {
        "verdict": answer.verdict,
        "reason": answer.reason,
        "content": answer.content,
        "decision_id": answer.decision_id,
        "symbol": plan.symbol,
        "now_us": now_us,
        "by": by,
    }
    return compact(told)[:-1]


def _would_block(made: Permit | Block, now: float) -> list[dict[str, str]]:
    out: list[dict[str, str]] = []
    if _WOULD_BLOCK not in [check.outcome for check in made.checks]:
        return out
    for gate, check in zip(GATES, made.checks, strict=True):
        if check.outcome is _WOULD_BLOCK:
            more = {
                "gate": gate.gate,
                "observed": number(check.observed),
                "limit": number(check.limit),
                "decision_id": made.decision_id,
            }
            out.append(event("WOULD_BLOCK", made.plan.plan_id, made.plan.symbol, check.reason, now, more))
    return out


def _cap_block(made: Block, params: GovernorParams, now: float) -> dict[str, str]:
    f, target = facts(made.inputs, params), shown(made.inputs.target)
    held = abs(f.position_qty or 0.0) * (f.mark_usd or 0.0)
    confidence = None if target is None else target.confidence
    more = {
        "position_notional_usd": f"{held:.2f}",
        "exposure_after_usd": f"{f.exposure_usd or 0.0:.2f}",
        "target_usd": f"{0.0 if target is None else target.usd:.2f}",
        "mode": "" if target is None else target.mode,
        "confidence": "" if confidence is None else f"{confidence:.2f}",
    }
    return event("P29_ALLOCATION_CAP_BLOCK", made.plan.plan_id, made.plan.symbol, made.reason, now, more)


def permit_item(
    entry: str, made: Permit, params: GovernorParams, keys: Sequence[SigningKey], tombstone_ttl_s: int, by: str = ""
) -> Item:
    """A permit.

    Args:
        entry: id of the plan's entry.
        made: the verdict.
        params: the numbers of the governor.
        keys: that sign.
        tombstone_ttl_s: life of its tombstone.
        by: the governor's name.
    """
    now, issued = made.inputs.now_us / US, made.issued
    record = governor_fields(made, params)
    own = event("PERMIT", made.plan.plan_id, made.plan.symbol, "ok", now, record)
    return Item(
        entry,
        made.plan.plan_id,
        made.plan.symbol,
        _tombstone(made.answer, made.plan, made.inputs.now_us, by),
        tombstone_ttl_s,
        permit=permit_json(made, params, keys),
        issued=f"{issued.movement.value} {issued.usd!r} {issued.qty!r}",
        usd=made.computed_notional_usd if made.movement is Movement.OPEN else None,
        valid_until_us=round(made.plan.ts * US) + params.plan_max_age_s * US,
        events=(*_would_block(made, now), own),
    )


def block_item(entry: str, made: Block, params: GovernorParams) -> Item:
    """A block.

    Args:
        entry: id of the plan's entry.
        made: the verdict.
        params: the numbers of the governor.
    """
    now = made.inputs.now_us / US
    own = event("BLOCK", made.plan.plan_id, made.plan.symbol, made.reason, now, governor_fields(made, params))
    events = [*_would_block(made, now), own]
    if made.gate == "0.5":
        events.append(_cap_block(made, params, now))
    if made.disarms:
        events.append(disarm_event(made.reason, compact({"symbol": made.plan.symbol, "observed": made.observed}), now))
        events[-1]["plan_id"], events[-1]["symbol"] = made.plan.plan_id, made.plan.symbol
    return Item(
        entry,
        made.plan.plan_id,
        "" if made.plan.flaw else made.plan.symbol,
        _tombstone(made.answer, made.plan, made.inputs.now_us),
        BLOCK_TOMBSTONE_S,
        block=block_json(made),
        disarms=made.disarms,
        on_book=made.reason in BOOK_REASONS,
        events=tuple(events),
    )


def disarm_event(reason: str, context: str, now: float) -> dict[str, str]:
    """AUTO_DISARM.

    Args:
        reason: burst_limit_exceeded or error_count.
        context: JSON, what led to it.
        now: unix seconds.
    """
    more = {"context": context, "action_taken": "kill_switch_reduce"}
    return event("AUTO_DISARM", "", "", reason, now, more)


def again_item(entry: str, made: Replay | Conflict) -> Item:
    """The answer to an id that has one.

    Args:
        entry: id of the plan's entry.
        made: the verdict.
    """
    now, plan = made.now_us / US, made.plan
    if isinstance(made, Conflict):
        return Item(
            entry, plan.plan_id, plan.symbol if not plan.flaw else "",
            events=(event("CONFLICT", plan.plan_id, plan.symbol, made.reason, now, {"content": plan.content}),),
        )  # fmt: skip
    more = {"verdict": made.answer.verdict, "decision_id": made.answer.decision_id}
    return Item(
        entry, plan.plan_id, plan.symbol if not plan.flaw else "",
        events=(event("REPLAY", plan.plan_id, plan.symbol, made.reason, now, more),),
    )  # fmt: skip


def bad_id_item(entry: str, shown_id: str, now: float) -> Item:
    """A plan whose id names no key: an event with the escaped id, and no key.

    Args:
        entry: id of its entry.
        shown_id: escaped and short.
        now: unix seconds.
    """
    return Item(entry, events=(event("BLOCK", shown_id, "", "bad_plan", now, {"gate": "plan", "detail": "plan_id"}),))


def given_up_item(entry: str, plan: Plan | None, letter: Mapping[str, str], now_us: int) -> Item:
    """A plan that was delivered too often without an answer: a dead letter and a block.

    Args:
        entry: id of its entry.
        plan: as far as it could be read; None where even that fails.
        letter: fields of the dead letter.
        now_us: microseconds.
    """
    now = now_us / US
    if plan is None:
        told = event("BLOCK", "", "", FAILED, now, {"gate": "plan", "entry": entry})
        return Item(entry, dead=letter, events=(told,))
    answer = Answer("BLOCK", FAILED, plan.content, "")
    block = {
        "reason": FAILED, "symbol": plan.symbol, "timestamp": now_us // US, "ts": now_us // US, "gate": "plan",
        "observed": None, "limit": None, "retry_after_s": None,
    }  # fmt: skip
    return Item(
        entry,
        plan.plan_id,
        "",
        _tombstone(answer, plan, now_us),
        block=compact(block),
        dead=letter,
        events=(event("BLOCK", plan.plan_id, plan.symbol, FAILED, now, {"gate": "plan"}),),
    )
