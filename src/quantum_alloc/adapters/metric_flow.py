"""The metrics of those who answer plans and fill them: governor, apply layer and desk."""

from __future__ import annotations

from quantum_alloc.adapters.consume import REFUSALS
from quantum_alloc.adapters.metric_row import UNUSABLE, Labels, Row, each
from quantum_alloc.core.apply import ApplyReason, Fate
from quantum_alloc.core.desk import ACTIONS, DeskReason
from quantum_alloc.core.downsize import HintAction
from quantum_alloc.core.gates import Outcome
from quantum_alloc.core.governor_params import BLOCK_REASONS, GATES, Failure
from quantum_alloc.core.proposal import ProposalReason

CANNOT_TELL = (*UNUSABLE, "shadow", "position_unknown", "price_unknown", "state_unreadable")
"""Why gates 0 and 0.5 fail open."""


def _gate_outcomes() -> tuple[Labels, ...]:
    """What each gate may say, and why."""
    found: list[Labels] = []
    for gate in GATES:
        found += [(gate.gate, Outcome.PASS.value, ""), (gate.gate, Outcome.NOT_APPLICABLE.value, "")]
        found += [(gate.gate, Outcome.BLOCK.value, reason) for reason in gate.reasons]
        if gate.failure is Failure.OPEN:
            found += [(gate.gate, Outcome.WOULD_BLOCK.value, reason) for reason in gate.reasons]
            found += [(gate.gate, Outcome.FAIL_OPEN.value, reason) for reason in CANNOT_TELL]
    return tuple(found)


ENDS: tuple[Labels, ...] = tuple(
    (fate.value, reason.value)
    for fate, reasons in (
        (Fate.FILLED, (ApplyReason.OK,)),
        (Fate.VOID, (ApplyReason.DRY_RUN, ApplyReason.NOTHING_TO_CLOSE, ApplyReason.WOULD_ADD)),
        (Fate.REFUSED, (ApplyReason.BAD_PERMIT, ApplyReason.MODE_MISMATCH, ApplyReason.PERMIT_GONE)),
        (Fate.EXPIRED, (ApplyReason.PERMIT_EXPIRED,)),
    )
    for reason in reasons
)
"""How a permit may end."""
REFUSED_WRITES = (*sorted(REFUSALS), "type")
PLANNED = (DeskReason.STOP, DeskReason.ABOVE_TARGET, DeskReason.BREAKOUT)
HINTS = (
    *((HintAction.NONE.value, r.value) for r in ProposalReason),
    (HintAction.DOWNSIZE.value, ProposalReason.OK.value),
)

GOVERNOR = (
    Row("quantum_govern_allow_total", "counter", "Permits.", ("symbol",)),
    Row("quantum_govern_block_total", "counter", "Blocks, by the reason of the first gate.", ("symbol", "reason")),
    Row(
        "quantum_alloc_blocks_total",
        "counter",
        "Blocks, by the reason of the verdict.",
        ("reason",),
        each(*BLOCK_REASONS),
    ),
    Row(
        "quantum_govern_disarm_total",
        "counter",
        "Times that the kill switch was set to reduce.",
        ("reason",),
        each("burst_limit_exceeded", "error_count"),
    ),
    Row(
        "quantum_alloc_limit_used_ratio",
        "gauge",
        "Headroom: observed over limit of each gate that has one, of a symbol's last plan; 1 is used up.",
        ("gate", "symbol"),
    ),
    Row(
        "quantum_govern_exec_count_hour",
        "gauge",
        "Permits in an hour, as of its last plan.",
        ("symbol",),
    ),
    Row("quantum_govern_exec_count_5min", "gauge", "Permits in five minutes, as of its last plan.", ("symbol",)),
    Row("gov_p29_checked_total", "counter", "Plans that gate 0.5 looked at.", ("symbol",)),
    Row("gov_p29_block_total", "counter", "Plans that gate 0.5 blocked.", ("symbol",)),
    Row("gov_p29_missing_total", "counter", "Plans that passed gate 0.5 for want of a target.", ("symbol",)),
    Row("gov_p29_stale_total", "counter", "Plans that passed gate 0.5 because the target was too old.", ("symbol",)),
    Row("p32_eff_apply_total", "counter", "Downsize hints on permits.", ("action", "reason"), HINTS),
    Row("p32_eff_factor", "gauge", "Factor of the last hint.", ("symbol",)),
    Row(
        "quantum_alloc_plans_total",
        "counter",
        "Plans by answer: permit, block, replay, conflict, not_governed, bad_id, dead_letter.",
        ("result",),
        each("permit", "block", "replay", "conflict", "not_governed", "bad_id", "dead_letter"),
    ),
    Row(
        "quantum_alloc_gate_outcomes_total",
        "counter",
        "What each gate said: pass, block, would_block, fail_open, not_applicable, and why.",
        ("gate", "outcome", "reason"),
        _gate_outcomes(),
    ),
    Row("quantum_alloc_plans_waiting", "gauge", "Plans that are held and not answered yet."),
    Row("quantum_alloc_plans_moved_total", "counter", "Answers decided again because something had changed."),
    Row("quantum_alloc_plans_missed_total", "counter", "Plans that were gone from the stream before their answer."),
    Row("quantum_alloc_plan_groups_made_total", "counter", "Times that the consumer group had vanished."),
    Row("quantum_alloc_kill_state", "gauge", "1 for what the kill switch says, its latch included.", ("state",)),
    Row("quantum_alloc_kill_latched", "gauge", "1 while the kill switch is latched."),
    Row("quantum_alloc_hold", "gauge", "1 while opens are held back.", ("reason",)),
    Row("quantum_alloc_clock_skew_seconds", "gauge", "The server's clock less this machine's."),
    Row("quantum_alloc_store_epoch_changes_total", "counter", "Times that the server was found to be another run."),
    Row("quantum_alloc_permits_restored_total", "counter", "Permits put back after a loss of writes."),
)
APPLY = (
    Row(
        "quantum_alloc_apply_results_total",
        "counter",
        "Permits by what became of them, and why.",
        ("fate", "reason"),
        ENDS,
    ),
    Row(
        "quantum_alloc_apply_refused_total",
        "counter",
        "Writes refused because something had changed.",
        ("reason",),
        each(*REFUSED_WRITES),
    ),
    Row("quantum_alloc_fills_total", "counter", "Fills.", ("symbol", "side")),
    Row("quantum_alloc_fill_notional_usd_total", "counter", "Notional of fills.", ("symbol",)),
    Row("quantum_alloc_hints_applied_total", "counter", "Opens that were filled with less because of a hint."),
    Row("quantum_alloc_balance_usd", "gauge", "Balance of the paper account."),
    Row("quantum_alloc_realized_pnl_usd", "gauge", "Realised PnL before fees, since the account was opened."),
    Row("quantum_alloc_fees_usd", "gauge", "Fees paid since the account was opened."),
    Row("quantum_alloc_position_usd", "gauge", "Signed notional of what is held, at a fresh price.", ("symbol",)),
    Row("quantum_alloc_permits_waiting", "gauge", "Permits that may still be filled."),
    Row("quantum_alloc_permits_outstanding", "gauge", "Permits neither consumed nor expired."),
    Row("quantum_alloc_permits_issued_total", "counter", "Permits seen since the account was opened."),
    Row("quantum_alloc_permits_consumed_total", "counter", "Permits used up."),
    Row("quantum_alloc_permits_expired_total", "counter", "Permits that nobody used."),
    Row("quantum_alloc_fills_without_permit_total", "counter", "Fills that no permit is known for: an alarm."),
    Row(
        "quantum_alloc_executions_unreadable_total",
        "counter",
        "Entries of the execution stream that name no symbol: no fill, and counted here alone.",
    ),
    Row("quantum_alloc_fills_elsewhere_total", "counter", "Fills of permits that the account did not use: an alarm."),
    Row("quantum_alloc_permit_events_missed_total", "counter", "Governor's events gone before they were read."),
    Row("quantum_alloc_permit_events_odd_total", "counter", "PERMIT events of a time that has not come: left out."),
    Row("quantum_alloc_account_writes_lost_total", "counter", "Writes that a server lost, or may have: an alarm."),
    Row("quantum_alloc_fills_above_permit_total", "counter", "Fills of more than their permit had left: an alarm."),
    Row("quantum_alloc_kill_state", "gauge", "1 for what the kill switch says, its latch included.", ("state",)),
)
DESK = (
    Row("quantum_alloc_desk_plans_total", "counter", "Plans that were proposed.", ("action",), each(*ACTIONS)),
    Row(
        "quantum_alloc_desk_quiet_total",
        "counter",
        "Symbols of a cycle without a plan, and why.",
        ("reason",),
        each(*(reason.value for reason in DeskReason if reason not in PLANNED)),
    ),
)
