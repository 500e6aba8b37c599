"""The settings of the apply layer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from quantum_alloc.core import ApplyMode, ApplyParams
from quantum_alloc.services.service_options import EXECUTION_STREAM, port_var, stream_var
from quantum_alloc.services.settings import var

_A = ApplyParams()


@dataclass(frozen=True, slots=True)
class ApplyOptions:
    """Permits in, fills on paper out; it holds the paper account."""

    SERVICE: ClassVar[str] = "apply"
    DEFAULT_PORT: ClassVar[int] = 8043

    port: int = port_var(DEFAULT_PORT)
    apply_mode: ApplyMode = var(  # noqa: RUF009 - a field
        "APPLY_MODE",
        ApplyMode.DRY_RUN,
        help="The governor's mode: a permit of another one is refused; in dry_run nothing is filled.",
    )
    fee_bps: float = var(
        "PAPER_FEE_BPS", _A.fee_bps, unit="hundredths of a percent", lo=0, hi=1000, help="Fee of a fill."
    )
    apply_downsize: bool = var("P31_APPLY_DOWNSIZE", False, help="Apply the downsize hint of a permit to opens.")
    paper_equity_usd: float = var(
        "QA_PAPER_EQUITY_USD", 100_000.0, unit="USD", above=0, hi=1e12, help="Balance that a new account starts with."
    )
    mark_every_s: float = var(
        "QA_APPLY_MARK_SEC",
        5.0,
        unit="seconds",
        lo=0.1,
        hi=30,
        help="Time after which positions and balance are written again, so that they stay fresh.",
    )
    clock: str = var(
        "CLOCK",
        "server",
        choices=("server", "simulated"),
        help="Whose time counts; simulated is refused but on a server that this process started.",
    )
    events_stream: str = stream_var("STREAM_EVENTS", "quantum:stream:governor.events", "the governor's events")
    results_stream: str = stream_var("STREAM_RESULTS", "quantum:stream:apply.result", "results")
    execution_stream: str = stream_var("EXECUTION_STREAM", EXECUTION_STREAM, "executions")
    signing_key_file: Path | None = var(  # noqa: RUF009 - a field
        "GOV_SIGNING_KEY_FILE",
        None,
        example="/etc/quantum/governor-signing-key",
        help="File of the governor's keys: a permit that none of them signed is refused; else the systemd credential "
        "`governor-signing-key` is read; without either permits are taken unsigned.",
    )

    @property
    def interval_s(self) -> float:
        """Seconds within which a cycle ends: it waits for permits, but no longer than the marks may."""
        return self.mark_every_s

    def params(self) -> ApplyParams:
        """The numbers of the apply layer."""
        return ApplyParams(self.apply_mode.value, self.fee_bps, self.apply_downsize)
