"""The settings of the governor: one variable for each of its limits, and where it keeps what it must not forget."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from quantum_alloc.core import ApplyMode, GovernorParams
from quantum_alloc.services.service_options import age_var, port_var, share_var, stream_var
from quantum_alloc.services.settings import var

_CONSUMER = re.compile(r"[A-Za-z0-9._@-]{1,100}")


def _is_consumer(text: str) -> bool:
    return _CONSUMER.fullmatch(text) is not None


_G = GovernorParams()


def _limit(env: str, default: int, help: str) -> Any:
    return var(env, default, lo=0, hi=10_000, help=help)


def _usd(env: str, default: float, help: str) -> Any:
    return var(env, default, unit="USD", lo=0, hi=1e12, help=help)


@dataclass(frozen=True, slots=True)
class GovernorOptions:
    """A permit or a block for every plan (P3.2, step 2)."""

    SERVICE: ClassVar[str] = "governor"
    DEFAULT_PORT: ClassVar[int] = 8044

    port: int = port_var(DEFAULT_PORT)
    apply_mode: ApplyMode = var(  # noqa: RUF009 - a field
        "APPLY_MODE",
        ApplyMode.DRY_RUN,
        help="dry_run: permits are not filled; testnet: hard gates; production: all gates. Anything else is dry_run.",
    )
    testnet_enable_p29: bool = var("GOV_TESTNET_ENABLE_P29", False, help="In testnet, enforce gate 0.5 too.")
    consumer: str = var(
        "GOV_CONSUMER",
        "",
        accepts=_is_consumer,
        expects="1 to 100 letters, digits or . _ @ -",
        example="host1-governor-a",
        help="Name of this governor, stable over restarts; empty: host and unit.",
    )
    durability: str = var(
        "GOV_DURABILITY", "journal", choices=("journal", "none"), help="Whether permits are journalled to disk."
    )
    exposure_basis: str = var(
        "GOV_EXPOSURE_BASIS",
        "after",
        choices=("after", "position"),
        help="What gates 0 and 0.5 look at: the exposure after the plan, or the position alone.",
    )
    clock: str = var(
        "CLOCK",
        "server",
        choices=("server", "simulated"),
        help="Whose time counts; simulated is refused but on a server that this process started.",
    )
    events_stream: str = stream_var("STREAM_EVENTS", "quantum:stream:governor.events", "events")
    plan_max_age_s: int = var(
        "GOV_PLAN_MAX_AGE_SEC", _G.plan_max_age_s, unit="seconds", lo=1, hi=3600, help="Greatest age of a plan."
    )
    position_max_age_s: int = age_var("GOV_POSITION_MAX_AGE_SEC", _G.position_max_age_s, "a position")
    kill_score_critical: float = var(
        "GOV_KILL_SCORE_CRITICAL",
        _G.kill_score_critical,
        lo=0,
        hi=1e15,
        help="Kill score from which on only what reduces passes.",
    )
    kill_score_absent: float | None = var(
        "GOV_KILL_SCORE_ABSENT",
        None,
        lo=0,
        hi=1e15,
        example="0",
        help="Kill score of an open that does not tell one; without it such an open is a bad plan.",
    )
    max_exec_per_hour: int = _limit("GOV_MAX_EXEC_PER_HOUR", _G.max_exec_per_hour, "Opens of a symbol in 3600 s.")
    max_exec_per_5min: int = _limit("GOV_MAX_EXEC_PER_5MIN", _G.max_exec_per_5min, "Opens of a symbol in 300 s.")
    max_close_per_hour: int = var(
        "GOV_MAX_CLOSE_PER_HOUR", _G.max_close_per_hour, lo=0, hi=800, help="Closes of a symbol in 3600 s."
    )
    max_close_per_5min: int = _limit("GOV_MAX_CLOSE_PER_5MIN", _G.max_close_per_5min, "Closes of a symbol in 300 s.")
    symbol_cooldown_s: int = var(
        "GOV_SYMBOL_COOLDOWN_SECONDS",
        _G.symbol_cooldown_s,
        unit="seconds",
        lo=0,
        hi=86_400,
        help="Time from a symbol's last permit to its next open.",
    )
    max_open_positions: int = _limit(
        "GOV_MAX_OPEN_POSITIONS", _G.max_open_positions, "Symbols with a position or an outstanding open."
    )
    max_notional_per_trade_usd: float = _usd(
        "GOV_MAX_NOTIONAL_PER_TRADE_USDT", _G.max_notional_per_trade_usd, "Notional of one open."
    )
    max_total_notional_usd: float = _usd(
        "GOV_MAX_TOTAL_NOTIONAL_USDT", _G.max_total_notional_usd, "Notional of all positions and outstanding opens."
    )
    max_reduce_notional_per_day_usd: float = _usd(
        "GOV_MAX_REDUCE_NOTIONAL_PER_DAY_USD",
        _G.max_reduce_notional_per_day_usd,
        "Notional of a symbol's closes in a UTC day.",
    )
    max_reduce_qty_per_day: float = var(
        "GOV_MAX_REDUCE_QTY_PER_DAY",
        _G.max_reduce_qty_per_day,
        lo=0,
        hi=1e12,
        help="Quantity of a symbol's closes in a UTC day, of those whose price is not known.",
    )
    auto_disarm: bool = var("GOV_ENABLE_AUTO_DISARM", True, help="Let the governor set the kill switch to reduce.")
    burst_disarm: bool = var("GOV_DISARM_ON_BURST_BREACH", True, help="Disarm on a burst of opens.")
    error_count: int = var(
        "GOV_DISARM_ON_ERROR_COUNT", 5, lo=0, hi=1000, help="Programming errors in 60 s that disarm; 0 for never."
    )
    tombstone_permit_s: int = var(
        "GOV_TOMBSTONE_PERMIT_SEC",
        30 * 86_400,
        unit="seconds",
        lo=7200,
        hi=366 * 86_400,
        help="How long the answer to a permitted plan is remembered, at least.",
    )
    signing_key_file: Path | None = var(  # noqa: RUF009 - a field
        "GOV_SIGNING_KEY_FILE",
        None,
        example="/etc/quantum/governor-signing-key",
        help="File of one or two lines NAME SECRET: the first signs permits; else the systemd credential "
        "`governor-signing-key` is read.",
    )
    threshold: float = var(
        "P31_DOWNSIZE_THRESHOLD", _G.threshold, above=0, hi=1, help="Efficiency score below which a permit hints."
    )
    min_factor: float = var("P31_MIN_FACTOR", _G.min_factor, above=0, hi=1, help="Smallest factor of the hint.")
    max_extra_cooldown_s: int = var(
        "P31_MAX_EXTRA_COOLDOWN_SEC",
        _G.max_extra_cooldown_s,
        unit="seconds",
        lo=0,
        hi=86_400,
        help="Extra cooldown of the hint at score 0.",
    )
    min_conf: float = share_var("P31_MIN_CONF", _G.min_conf, "Smallest confidence of an efficiency that counts.")
    eff_stale_s: int = age_var("P31_EFF_TTL_SEC", _G.eff_stale_s, "an efficiency, by the hint")

    @property
    def interval_s(self) -> float:
        """Seconds within which a cycle ends: it waits for plans, but not for long."""
        return 1.0

    def params(self) -> GovernorParams:
        """The numbers of the governor.

        Raises:
            ValueError: naming every contradiction.
        """
        derived: dict[str, Any] = {
            "apply_mode": self.apply_mode.value,
            "exposure_after": self.exposure_basis == "after",
            "disarm_on_burst": self.auto_disarm and self.burst_disarm,
            "permit_ttl_s": _G.permit_ttl_s,
        }
        names = [f.name for f in dataclasses.fields(GovernorParams) if f.name not in derived]
        return GovernorParams(**derived, **{name: getattr(self, name) for name in names})
