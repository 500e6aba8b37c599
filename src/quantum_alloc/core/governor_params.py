"""The governor's numbers and its policy: which gate is enforced in which mode, how it fails, and whom it concerns.

The order of ``GATES`` is the order of the verdict. The core decides by this table, ``quantum-alloc status`` prints it,
and the tests walk it. Source: the project's governor, section 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from quantum_alloc.core.downsize import DownsizeParams
from quantum_alloc.core.params import check, positive

RULES_VERSION = "p32_v1"


class ApplyMode(StrEnum):
    """How far the governor's word goes."""

    DRY_RUN = "dry_run"
    TESTNET = "testnet"
    PRODUCTION = "production"


class Scope(StrEnum):
    """Which plans a gate concerns."""

    ALL = "all"
    OPENS = "opens"
    CLOSES = "closes"


class Failure(StrEnum):
    """What a gate does when it cannot be decided."""

    OPEN = "open"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class Gate:
    """One row of the policy.

    Attributes:
        gate: its number, or its name where it has none; those of gate 4 each with a name behind it.
        name: what it looks at.
        scope: which plans.
        failure: open for adjusters, closed for hard limits.
        enforced: modes in which it blocks; in the others it says would_block.
        reasons: why it blocks.
    """

    gate: str
    name: str
    scope: Scope
    failure: Failure
    enforced: frozenset[ApplyMode]
    reasons: tuple[str, ...]

    @property
    def number(self) -> str:
        """The number alone, as blocks and events tell it."""
        return self.gate.partition(".")[0] if self.gate.startswith("4.") else self.gate


ALWAYS = frozenset(ApplyMode)
PRODUCTION = frozenset({ApplyMode.PRODUCTION})


def _hard(gate: str, name: str, scope: Scope, *reasons: str) -> Gate:
    return Gate(gate, name, scope, Failure.CLOSED, ALWAYS, reasons)


def _adjuster(gate: str, name: str, *reasons: str) -> Gate:
    return Gate(gate, name, Scope.OPENS, Failure.OPEN, PRODUCTION, reasons)


GATES: tuple[Gate, ...] = (
    _hard("-1", "kill switch", Scope.ALL, "kill_switch_active", "reduce_only"),
    _hard("plan", "plan", Scope.ALL, "bad_plan", "plan_expired", "nothing_to_close", "position_unknown"),
    _hard("hold", "store and clock", Scope.OPENS, "recovery_hold", "clock_unstable"),
    _adjuster("0", "budget (P2.8)", "p28_budget_violation"),
    _adjuster("0.5", "allocation target (P2.9)", "p29_allocation_cap"),
    _hard("1", "kill score", Scope.OPENS, "kill_score_critical_non_close"),
    _hard("2", "hourly rate", Scope.ALL, "hourly_limit_exceeded", "state_unreadable"),
    _hard("3", "burst", Scope.ALL, "burst_limit_exceeded", "state_unreadable"),
    _hard("4.cooldown", "symbol cooldown", Scope.OPENS, "symbol_cooldown", "state_unreadable"),
    _hard("4.positions", "open positions", Scope.OPENS, "max_positions_reached", "state_unreadable"),
    _hard("4.trade", "notional per trade", Scope.OPENS, "notional_per_trade_exceeded"),
    _hard("4.total", "total notional", Scope.OPENS, "total_notional_exceeded", "state_unreadable"),
    _hard("4.known", "position and price known", Scope.OPENS, "position_unknown", "price_unknown"),
    _hard("5", "daily limits", Scope.CLOSES, "daily_limit_exceeded", "state_unreadable"),
)
"""Every gate, in the order in which the first that blocks gives the verdict."""

BLOCK_REASONS = tuple(dict.fromkeys(r for gate in GATES for r in gate.reasons))
"""A closed set, safe as a metric label."""


@dataclass(frozen=True, slots=True)
class GovernorParams:
    """The numbers of the governor.

    Attributes:
        apply_mode: dry_run, testnet or production.
        testnet_enable_p29: whether testnet enforces gate 0.5.
        exposure_after: whether gates 0 and 0.5 look at the exposure after the plan; False: at the position alone.
        plan_max_age_s: greatest age of a plan, seconds.
        position_max_age_s: greatest age of a known position, seconds.
        kill_score_critical: kill score from which on only what reduces passes.
        kill_score_absent: the kill score of an open that does not tell one; None: it is a bad plan.
        max_exec_per_hour: opens of a symbol in 3600 s.
        max_exec_per_5min: opens of a symbol in 300 s.
        max_close_per_hour: closes of a symbol in 3600 s.
        max_close_per_5min: closes of a symbol in 300 s.
        symbol_cooldown_s: seconds from a symbol's last permit to its next open.
        max_open_positions: symbols with a position or an outstanding open.
        max_notional_per_trade_usd: of one open, USD.
        max_total_notional_usd: of all positions and outstanding opens, USD.
        max_reduce_notional_per_day_usd: of a symbol's closes in a UTC day, USD.
        max_reduce_qty_per_day: the same where no price is known, quantity.
        permit_ttl_s: life of a permit, seconds.
        disarm_on_burst: whether a burst of opens sets the kill switch to reduce.
        threshold, min_factor, max_extra_cooldown_s, min_conf, eff_stale_s: see ``DownsizeParams``.

    Raises:
        ValueError: naming every contradiction.
    """

    apply_mode: str = ApplyMode.DRY_RUN.value
    testnet_enable_p29: bool = False
    exposure_after: bool = True
    plan_max_age_s: int = 120
    position_max_age_s: int = 60
    kill_score_critical: float = 0.8
    kill_score_absent: float | None = None
    max_exec_per_hour: int = 3
    max_exec_per_5min: int = 2
    max_close_per_hour: int = 30
    max_close_per_5min: int = 10
    symbol_cooldown_s: int = 60
    max_open_positions: int = 10
    max_notional_per_trade_usd: float = 200.0
    max_total_notional_usd: float = 2000.0
    max_reduce_notional_per_day_usd: float = 5000.0
    max_reduce_qty_per_day: float = 0.02
    permit_ttl_s: int = 60
    disarm_on_burst: bool = True
    threshold: float = 0.45
    min_factor: float = 0.25
    max_extra_cooldown_s: int = 120
    min_conf: float = 0.65
    eff_stale_s: int = 600

    def __post_init__(self) -> None:
        """Refuse contradictions."""
        check(
            (self.apply_mode in set(ApplyMode), "apply_mode must be dry_run, testnet or production"),
            positive("plan_max_age_s", self.plan_max_age_s),
            positive("position_max_age_s", self.position_max_age_s),
            (self.kill_score_critical >= 0.0, "kill_score_critical must be at least 0"),
            (self.kill_score_absent is None or self.kill_score_absent >= 0.0, "kill_score_absent must be at least 0"),
            (min(self.max_exec_per_5min, self.max_exec_per_hour) >= 0, "no limit of opens may be negative"),
            (min(self.max_close_per_5min, self.max_close_per_hour) >= 0, "no limit of closes may be negative"),
            (self.symbol_cooldown_s >= 0, "symbol_cooldown_s must be at least 0"),
            (self.max_open_positions >= 0, "max_open_positions must be at least 0"),
            positive("permit_ttl_s", self.permit_ttl_s),
        )
        _ = self.hint  # refuses contradictions of its own

    @property
    def hint(self) -> DownsizeParams:
        """The numbers of the downsize hint."""
        return DownsizeParams(
            self.threshold, self.min_factor, self.max_extra_cooldown_s, self.min_conf, self.eff_stale_s
        )

    @property
    def mode(self) -> ApplyMode:
        """How far the governor's word goes."""
        return ApplyMode(self.apply_mode)

    def enforces(self, gate: Gate) -> bool:
        """Whether a gate blocks in this mode.

        Args:
            gate: of the table.
        """
        extra = gate.gate == "0.5" and self.testnet_enable_p29 and self.mode is ApplyMode.TESTNET
        return extra or self.mode in gate.enforced


DEFAULTS = GovernorParams()
