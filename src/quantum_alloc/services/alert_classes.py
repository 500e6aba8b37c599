"""Which alert looks at which code: block reasons and store codes in classes, and what needs no alert, with the reason.

Every value of every closed set that a metric counts by is looked at by an alert of ``alert_rules`` or has a row in
``ELSEWHERE``; a test proves it, so that a new reason cannot come without either.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from quantum_alloc.adapters.connecting import CONFIGURATION_CODES


@dataclass(frozen=True, slots=True)
class BlockClass:
    """Reasons of blocks that one alert looks at.

    Attributes:
        name: of the class, as the alert's name has it.
        about: the same in words.
        reasons: of ``BLOCK_REASONS``.
        more_than: so many blocks in 15 minutes are nothing unusual.
        severity: of the alert.
        todo: what an operator does about it.
    """

    name: str
    about: str
    reasons: tuple[str, ...]
    more_than: int
    severity: str
    todo: str


WINDOW = "15m"
CLASSES: tuple[BlockClass, ...] = (
    BlockClass(
        "KillSwitch", "the kill switch", ("kill_switch_active", "reduce_only"), 0, "warning",
        "Plans go on coming while the kill switch is on: see who set it (`quantum-alloc status`), and stop who plans.",
    ),
    BlockClass(
        "Plan", "a bad, late or pointless plan", ("bad_plan", "plan_expired", "nothing_to_close"), 2, "warning",
        "Look at one of them with `quantum-alloc explain PLAN --plan`, and mend the producer of plans or its clock.",
    ),
    BlockClass(
        "StoreAndClock", "lost writes or an unstable clock", ("recovery_hold", "clock_unstable"), 0, "warning",
        "Opens are held back until the hold is over: see `quantum-alloc status`, and mend the clock or the server.",
    ),
    BlockClass(
        "Budget", "the budget", ("p28_budget_violation",), 3, "warning",
        "Symbols stand above their budgets, or their producer ignores them: compare plans and budgets.",
    ),
    BlockClass(
        "Target", "the allocation target", ("p29_allocation_cap",), 3, "warning",
        "Plans go above the targets: compare both with `quantum-alloc explain SYMBOL`; were the targets cut just now?",
    ),
    BlockClass(
        "KillScore", "the kill score", ("kill_score_critical_non_close",), 0, "warning",
        "A producer calls its own plans critical: look at why its kill score is at the limit.",
    ),
    BlockClass(
        "Rates", "rates and cooldown", ("hourly_limit_exceeded", "burst_limit_exceeded", "symbol_cooldown"), 10,
        "warning",
        "More plans come than may pass: is a producer looping? Burst limits disarm: see QuantumAllocDisarmed.",
    ),
    BlockClass(
        "Caps", "a cap on positions or notional",
        ("max_positions_reached", "notional_per_trade_exceeded", "total_notional_exceeded"), 5, "warning",
        "The book is full, or plans are too large: close, or look at the producer's sizes.",
    ),
    BlockClass(
        "UnknownState", "unknown positions, prices or limits",
        ("state_unreadable", "position_unknown", "price_unknown"), 0, "critical",
        "The governor cannot see what it needs: see that portfolio, positions and markets are fresh"
        " (`quantum-alloc status`), and that no other program has written the governor's keys.",
    ),
    BlockClass(
        "DailyLimit", "the daily limit of closes", ("daily_limit_exceeded",), 0, "warning",
        "A symbol may reduce no more today: positions stay open. A full close, or one under REDUCE_ONLY, passes.",
    ),
)  # fmt: skip
"""One alert a class; together all of ``BLOCK_REASONS``, none twice."""

LOGIN_CODES = tuple(sorted(CONFIGURATION_CODES | {"tls"}))
LOST_CODES = ("closed", "timeout", "unreachable")
CONFLICT_CODES = ("conflict",)
JOURNAL_CODES = ("journal",)
REFUSING_CODES = (
    "ASK", "BUSY", "CLUSTERDOWN", "CROSSSLOT", "EXECABORT", "LOADING", "MASTERDOWN", "MISCONF", "MOVED",
    "NOREPLICAS", "OOM", "READONLY", "TRYAGAIN", "evicting", "other",
)  # fmt: skip
STORE_CLASSES: Mapping[str, tuple[str, ...]] = {
    "login": LOGIN_CODES,
    "lost": LOST_CODES,
    "refusing": REFUSING_CODES,
    "conflict": CONFLICT_CODES,
    "journal": JOURNAL_CODES,
}
"""Codes of the store by what an operator does about them; together all of ``CODES``, none twice."""


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """Counts that no alert looks at.

    Attributes:
        metric: of the tables.
        why: none is needed.
        labels: which of its counts, as a pattern a label; none for all.
    """

    metric: str
    why: str
    labels: Mapping[str, str] = field(default_factory=dict)


ELSEWHERE: tuple[Elsewhere, ...] = (
    Elsewhere(
        "quantum_alloc_inputs_total",
        "what is missing or too old is told as blind, and to P2.9 as a stale fallback; most are so by right",
        {"reason": "ok|missing|stale"},
    ),
    Elsewhere(
        "quantum_alloc_log_lines_total",
        "the time of the last ERROR is watched: it also knows of one that came before the first scrape",
        {"level": "ERROR"},
    ),
    Elsewhere("quantum_alloc_last_log_line_timestamp_seconds", "warnings are counted", {"level": "WARNING"}),
    Elsewhere(
        "quantum_alloc_cycles_total", "each has a code in quantum_alloc_store_errors_total", {"outcome": "store"}
    ),
    Elsewhere("p29_shadow_proposed_total", "the work itself", {"reason": "ok"}),
    Elsewhere("quantum_alloc_feed_candles_total", "the work itself", {"result": "published"}),
    Elsewhere("quantum_alloc_execution_entries_total", "the work itself", {"result": "applied|open|other_symbol"}),
    Elsewhere("p31_inputs_missing_total", "the same as a blind input, per symbol: for looking closer"),
    Elsewhere("p31_inputs_stale_total", "the same as a blind input, per symbol: for looking closer"),
    Elsewhere(
        "quantum_alloc_not_proposed_total",
        "no target at all is told by QuantumAllocNoTargets; in shadow without SHADOW_LANE it is so by right",
        {"reason": "base_missing"},
    ),
    Elsewhere("quantum_govern_block_total", "the same blocks as quantum_alloc_blocks_total, with symbols"),
    Elsewhere(
        "quantum_alloc_plans_total",
        "verdicts are told by their reasons; a repeated plan gets its first answer, and what is not governed is passed",
        {"result": "permit|block|replay|not_governed"},
    ),
    Elsewhere(
        "quantum_alloc_gate_outcomes_total",
        "blocks are told by their reasons; would_block is there to be looked at before a gate is armed",
        {"outcome": "pass|block|would_block|not_applicable"},
    ),
    Elsewhere("p32_eff_apply_total", "a hint changes no verdict; its input is watched"),
    Elsewhere(
        "quantum_alloc_apply_results_total",
        "the work itself; what waits in vain is told when it expires",
        {"fate": "filled|void|waits", "reason": "(?!permit_gone).*"},
    ),
    Elsewhere("quantum_alloc_desk_plans_total", "the desk is a demo's paper strategy"),
    Elsewhere("quantum_alloc_desk_quiet_total", "the desk is a demo's paper strategy"),
    Elsewhere("quantum_alloc_kill_state", "the normal state", {"state": "OFF"}),
)
"""What needs no alert, and why."""
