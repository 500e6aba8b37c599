"""The settings of a lane: this installation's, with the names of the lane.

What an installation may set otherwise and the cases are not about is set so that it does not matter: the governor's
rates and caps are wide, the symbols are the lane's. Thresholds, factors, ages and lives are the installation's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from quantum_alloc.adapters.keys import Keys, tag_of
from quantum_alloc.core import ApplyMode
from quantum_alloc.services.options import (
    AllocationOptions,
    AttributionOptions,
    BudgetOptions,
    EfficiencyOptions,
    GovernorOptions,
    Settings,
)
from quantum_alloc.services.settings import Mode

A, B = "PROOFAUSDT", "PROOFBUSDT"
CONSUMER = "proof"
MAXLEN = 1_000
WIDE: Mapping[str, Any] = {
    "apply_mode": ApplyMode.PRODUCTION, "testnet_enable_p29": False, "consumer": CONSUMER, "durability": "journal",
    "clock": "simulated", "signing_key_file": None, "auto_disarm": False, "error_count": 0,
    "kill_score_critical": 0.8, "kill_score_absent": None, "symbol_cooldown_s": 0, "max_open_positions": 100,
    "max_exec_per_hour": 100, "max_exec_per_5min": 100, "max_close_per_hour": 100, "max_close_per_5min": 100,
    "max_notional_per_trade_usd": 1e6, "max_total_notional_usd": 1e9, "max_reduce_notional_per_day_usd": 1e9,
}  # fmt: skip
"""What the lanes' governor is set to, whatever the installation's is: every gate enforced, no limit near."""
MODES = (BudgetOptions, AttributionOptions, AllocationOptions, EfficiencyOptions)


def lane_settings(settings: Settings, proof: str, directory: Path, mode: Mode, *, shadow_lane: bool) -> Settings:
    """An installation's settings, in a lane of a proof.

    Args:
        settings: of all services.
        proof: id of the proof and name of the lane, a colon between.
        directory: where files of the lane go.
        mode: of all services that have one.
        shadow_lane: whether the lane's shadow lane is on.
    """
    keys = Keys(tag=settings.redis.hash_tag, proof=proof)

    def of_lane(group: Any) -> Any:
        changed: dict[str, Any] = {}
        for name in (f.name for f in fields(group) if f.name.endswith("_stream")):
            told = tag_of(getattr(group, name))[1]
            ours = told.startswith("quantum:")
            changed[name] = keys.key(told.removeprefix("quantum:") if ours else f"named:{told}")
        if isinstance(group, MODES):
            changed["mode"] = mode
        if isinstance(group, GovernorOptions):
            changed.update(WIDE)
        return replace(group, **changed)

    common = replace(
        of_lane(settings.common),
        symbols=(A, B),
        max_symbols=10_000,
        metrics_max_symbols=100,
        stream_maxlen=MAXLEN,
        shadow_lane=shadow_lane,
        state_directory=directory,
    )
    services = {name: of_lane(group) for name, group in settings.services.items()}
    redis = replace(settings.redis, credentials_directory=None)
    return replace(settings, redis=redis, common=common, services=services, proof=proof, unrecognised_modes=())
