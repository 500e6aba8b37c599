"""The settings of the desk: its own few, and the governor's variables for the limits that it paces itself by."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

from quantum_alloc.core.desk import DeskParams
from quantum_alloc.services.service_options import port_var
from quantum_alloc.services.settings import var

_D = DeskParams()


def _limit(env: str, default: int, help: str, hi: int = 10_000) -> Any:
    return var(env, default, lo=0, hi=hi, help=help)


def _trade(env: str, default: float, help: str) -> Any:
    return var(env, default, unit="USD", above=0, hi=1e12, help=help)


@dataclass(frozen=True, slots=True)
class DeskOptions:
    """A small paper strategy that proposes plans."""

    SERVICE: ClassVar[str] = "desk"
    DEFAULT_PORT: ClassVar[int] = 8042

    port: int = port_var(DEFAULT_PORT)
    interval_s: float = var(
        "QA_DESK_INTERVAL_SEC", 60.0, unit="seconds", lo=0.1, hi=3600, help="Time from cycle to cycle."
    )
    channel_bars: int = var(
        "QA_DESK_CHANNEL_BARS",
        _D.channel_bars,
        unit="bars",
        lo=1,
        hi=500,
        help="Bars whose closes a breakout must leave behind.",
    )
    stop_sigmas: float = var(
        "QA_DESK_STOP_SIGMAS",
        _D.stop_sigmas,
        unit="hourly sigmas",
        above=0,
        hi=1000,
        help="Distance of the trailing stop from the best close.",
    )
    trade_usd: float = _trade("QA_DESK_TRADE_USD", _D.trade_usd, "Greatest notional of one open of the desk.")
    min_trade_usd: float = _trade("QA_DESK_MIN_TRADE_USD", _D.min_trade_usd, "Smallest notional of one open.")
    plan_max_age_s: int = var(
        "GOV_PLAN_MAX_AGE_SEC", _D.plan_max_age_s, unit="seconds", lo=1, hi=3600, help="Greatest age of a plan."
    )
    max_exec_per_hour: int = _limit("GOV_MAX_EXEC_PER_HOUR", _D.max_exec_per_hour, "Opens of a symbol in 3600 s.")
    max_exec_per_5min: int = _limit("GOV_MAX_EXEC_PER_5MIN", _D.max_exec_per_5min, "Opens of a symbol in 300 s.")
    max_close_per_hour: int = _limit(
        "GOV_MAX_CLOSE_PER_HOUR", _D.max_close_per_hour, "Closes of a symbol in 3600 s.", hi=800
    )
    max_close_per_5min: int = _limit("GOV_MAX_CLOSE_PER_5MIN", _D.max_close_per_5min, "Closes of a symbol in 300 s.")
    max_reduce_notional_per_day_usd: float = var(
        "GOV_MAX_REDUCE_NOTIONAL_PER_DAY_USD",
        _D.max_reduce_notional_per_day_usd,
        unit="USD",
        lo=0,
        hi=1e12,
        help="Notional of a symbol's closes in a UTC day.",
    )
    symbol_cooldown_s: int = var(
        "GOV_SYMBOL_COOLDOWN_SECONDS",
        _D.symbol_cooldown_s,
        unit="seconds",
        lo=0,
        hi=86_400,
        help="Time from a symbol's last permit to its next open.",
    )
    max_notional_per_trade_usd: float = var(
        "GOV_MAX_NOTIONAL_PER_TRADE_USDT",
        _D.max_notional_per_trade_usd,
        unit="USD",
        lo=0,
        hi=1e12,
        help="Notional of one open.",
    )

    def params(self) -> DeskParams:
        """The numbers of the desk.

        Raises:
            ValueError: naming every contradiction.
        """
        own = {f.name for f in dataclasses.fields(self)}
        names = [f.name for f in dataclasses.fields(DeskParams) if f.name in own]
        return DeskParams(**{name: getattr(self, name) for name in names})
