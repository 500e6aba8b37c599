"""Alerts about verdicts, plans, permits and fills."""

from __future__ import annotations

from quantum_alloc.core.headroom import WARN_USED, WARNED
from quantum_alloc.services.alert_classes import CLASSES, WINDOW, BlockClass
from quantum_alloc.services.alert_kit import WHO, Alert, any_of, grown, more

PLANS = "quantum_alloc_plans_total"
RESULTS = "quantum_alloc_apply_results_total"


def _used(*, is_own: bool, by: str) -> str:
    """Limits that are nearly used, of those that are worth a warning."""
    gates = [gate for gate, own in WARNED.items() if own is is_own]
    return f'max by ({by}) (quantum_alloc_limit_used_ratio{{gate=~"{any_of(gates)}"}}) >= {WARN_USED}'


def _blocks(row: BlockClass) -> Alert:
    often = f"more than {row.more_than} blocks" if row.more_than else "any block"
    return Alert(
        "Verdicts",
        f"Blocks{row.name}",
        row.severity,
        more(f'quantum_alloc_blocks_total{{reason=~"{any_of(row.reasons)}"}}', WINDOW, row.more_than),
        "0s",
        f"{{{{ $value | humanize }}}} plans were blocked by {row.about} in 15 minutes",
        f"{often[0].upper()}{often[1:]} for {row.about} in 15 minutes: {', '.join(f'`{r}`' for r in row.reasons)}.",
        row.todo,
    )


GOVERNOR = (
    *(_blocks(row) for row in CLASSES),
    Alert(
        "Plans and permits", "PlansLost", "critical", more("quantum_alloc_plans_missed_total", "15m"),
        "0s", "{{ $value | humanize }} plans were gone before anybody answered them",
        "Any plan trimmed from the stream without an answer, within 15 minutes.",
        "Make the stream longer, or see why the governor was away.",
    ),
    Alert(
        "Plans and permits", "PlansUnanswered", "critical", "quantum_alloc_plans_waiting > 0",
        "1m", "{{ $value }} plans wait for an answer", "Plans are held for a minute; an answer takes less than 1 s.",
        "`quantum-alloc status`, and the governor's log: Redis, the journal, or a commit that is refused.",
    ),
    Alert(
        "Plans and permits", "PlanDeadLetters", "warning", more(f'{PLANS}{{result="dead_letter"}}', "15m"),
        "0s", "The governor gave plans up", "Any plan of the last 15 minutes delivered five times without an answer.",
        "It stands in `quantum:stream:apply.plan.deadletter`; the log has the error.",
    ),
    Alert(
        "Plans and permits", "PlanConflicts", "warning", more(f'{PLANS}{{result="conflict"}}', "15m"),
        "0s", "A plan id was used twice", "Another plan under a known id, within 15 minutes: it got no permit.",
        "Mend the producer: an id is used once.",
    ),
    Alert(
        "Plans and permits", "PlanBadIds", "warning", more(f'{PLANS}{{result="bad_id"}}', "15m"),
        "0s", "Plans without a valid id come in", "Any within 15 minutes: it cannot be answered.",
        "The events have the id, escaped; mend the producer.",
    ),
    Alert(
        "Plans and permits", "PlanGroupLost", "warning", more("quantum_alloc_plan_groups_made_total", "1h"),
        "0s", "The governor's consumer group had vanished", "It was made again, within an hour.",
        "Did somebody delete the plans' stream, or did the server lose writes?",
    ),
    Alert(
        "Plans and permits", "Halted", "critical", 'quantum_alloc_kill_state{state="HALT"} == 1',
        "0s", f"The kill switch is HALT, says {WHO}", "Nothing passes. A halt latches until a rearm.",
        "`quantum-alloc status` shows who and why; `quantum-alloc kill off`, then `quantum-alloc"
        " rearm --by NAME --why TEXT`.",
    ),
    Alert(
        "Plans and permits", "ReduceOnly", "warning", 'quantum_alloc_kill_state{state="REDUCE_ONLY"} == 1',
        "0s", f"The kill switch is REDUCE_ONLY, says {WHO}", "Only what reduces passes.",
        "`quantum-alloc status` shows who and why; then `quantum-alloc kill off`.",
    ),
    Alert(
        "Plans and permits", "Disarmed", "critical", more("quantum_govern_disarm_total", "15m", by="reason"),
        "0s", "The governor has disarmed itself: {{ $labels.reason }}",
        "A burst of opens, or programming errors, set the kill switch to reduce within 15 minutes.",
        "Find the cause first; then `quantum-alloc kill off`.",
    ),
    Alert(
        "Plans and permits", "OpensHeld", "warning", "quantum_alloc_hold == 1",
        "0s", "Opens are held back: {{ $labels.reason }}",
        "The server lost writes (`recovery_hold`), or clocks differ (`clock_unstable`).",
        "It ends by itself; `quantum-alloc status` tells when. Mend the clock where it is the clock.",
    ),
    Alert(
        "Plans and permits", "ClockSkew", "warning", "abs(quantum_alloc_clock_skew_seconds) > 1",
        "1m", "The server's clock is off by {{ $value }} s", "More than 1 s for a minute; above 2 s opens are held.",
        "NTP on both machines.",
    ),
    Alert(
        "Plans and permits", "PermitsRestored", "warning", more("quantum_alloc_permits_restored_total", "1h"),
        "0s", "{{ $value | humanize }} permits were put back after a loss of writes", "Within an hour.",
        "Compare fills and permits with `quantum-alloc status`.",
    ),
    Alert(
        "Plans and permits", "LimitNearlyUsed", "warning",
        _used(is_own=True, by="job, gate, symbol"),
        "1m", "Gate {{ $labels.gate }} of {{ $labels.symbol }} is used up to {{ $value | humanizePercentage }}",
        "80 % of a symbol's budget, target, hourly rate or daily closes, or more, for a minute. Not told: a plan's own"
        " age, score and size, and what a permit or two use up (burst window, cooldown).",
        "`quantum-alloc status` shows the headroom: what comes next may be blocked.",
    ),
    Alert(
        "Plans and permits", "BookNearlyFull", "warning", _used(is_own=False, by="job, gate"),
        "1m", "Gate {{ $labels.gate }} is used up to {{ $value | humanizePercentage }}",
        "80 % of `GOV_MAX_OPEN_POSITIONS` or of the total notional, or more, for a minute.",
        "`quantum-alloc status` shows the headroom: opens may be blocked, closes pass.",
    ),
)  # fmt: skip
APPLY = (
    Alert(
        "Fills", "FillWithoutPermit", "critical", grown("quantum_alloc_fills_without_permit_total"),
        "0s", "{{ $value }} fills are on record that no permit is known for", "Any within the last hour.",
        "Stop trading (`quantum-alloc kill halt`) and find who traded: `quantum-alloc status`, the execution stream.",
    ),
    Alert(
        "Fills", "FillAbovePermit", "critical", grown("quantum_alloc_fills_above_permit_total"),
        "0s", "{{ $value }} fills are on record of more than their permit", "Any within the last hour.",
        "As for a fill without permit.",
    ),
    Alert(
        "Fills", "FillElsewhere", "critical", grown("quantum_alloc_fills_elsewhere_total"),
        "0s", "{{ $value }} fills are on record of permits that the account did not use",
        "Any within the last hour.",
        "Two apply layers, or an account that lost writes: positions may be wrong; compare them.",
    ),
    Alert(
        "Fills", "AccountWritesLost", "critical", more("quantum_alloc_account_writes_lost_total", "1h"),
        "0s", "The account may have lost writes", "A server lost writes of the account within an hour, or may have.",
        "`quantum-alloc status` shows what is missing; see the how-to on recovery.",
    ),
    Alert(
        "Fills", "BadPermits", "critical", more(f'{RESULTS}{{fate="refused", reason="bad_permit"}}', "15m"),
        "0s", "Permits with a wrong signature or content", "Any permit of the last 15 minutes that does not verify.",
        "Do governor and apply layer have the same key? If so, somebody else writes permits: halt.",
    ),
    Alert(
        "Fills", "PermitsRefused", "warning",
        more(f'{RESULTS}{{fate="refused", reason!="bad_permit"}}', "15m", by="reason"),
        "0s", "The apply layer refuses permits: {{ $labels.reason }}", "Any of the last 15 minutes.",
        "`APPLY_MODE` of governor and apply layer must be the same.",
    ),
    Alert(
        "Fills", "PermitsGone", "warning", more(f'{RESULTS}{{reason="permit_gone"}}', "15m"),
        "0s", "Permits were gone when they were to be filled", "Any of the last 15 minutes: they are not filled.",
        "A failover that lost writes, or another program that consumes permits.",
    ),
    Alert(
        "Fills", "PermitsExpire", "info", more(f'{RESULTS}{{fate="expired"}}', "30m", 5, by="reason"),
        "0s", "Permits expire unused: {{ $labels.reason }}", "More than 5 in 30 minutes.",
        "The reason says what they waited for: a price, a cooldown, the kill switch.",
    ),
    Alert(
        "Fills", "ApplyWritesRefused", "warning", more("quantum_alloc_apply_refused_total", "10m", 10, by="reason"),
        "0s", "The apply layer's writes are refused: {{ $labels.reason }}", "More than 10 in 10 minutes.",
        "Two apply layers, or a slow Redis: now and then one is normal.",
    ),
    Alert(
        "Fills", "NegativeBalance", "critical", "quantum_alloc_balance_usd < 0",
        "0s", "The account's balance is {{ $value }} USD", "Below 0.",
        "Halt, and compare the account with its executions.",
    ),
    Alert(
        "Fills", "PermitEventsMissed", "warning", more("quantum_alloc_permit_events_missed_total", "15m"),
        "0s", "The apply layer missed events of the governor", "Any within 15 minutes: their permits expire.",
        "Make the stream of events longer, or see why the apply layer was away.",
    ),
    Alert(
        "Fills", "PermitEventsOdd", "warning", more("quantum_alloc_permit_events_odd_total", "15m"),
        "0s", "PERMIT events come from the future", "Any within 15 minutes: they are left out.",
        "Clocks, or another program that writes the governor's events.",
    ),
)  # fmt: skip
