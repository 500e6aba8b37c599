"""All rules of Prometheus: what is recorded, and every alert; files, page and tests are made from these."""

from __future__ import annotations

from quantum_alloc.services.alert_data import ALLOCATION, EXECUTIONS, INPUT_ALERTS
from quantum_alloc.services.alert_kit import ONE, Alert, Recording
from quantum_alloc.services.alert_services import CYCLE, REDIS, SERVICES
from quantum_alloc.services.alert_verdicts import APPLY, GOVERNOR

OUTCOMES = "quantum_alloc_gate_outcomes_total"
P29 = '{job="allocation"}'

RECORDINGS: tuple[Recording, ...] = (
    Recording(
        "job:quantum_alloc_cycles:rate5m",
        f"sum by ({ONE}, outcome) (rate(quantum_alloc_cycles_total[5m]))",
        "Cycles a second, by outcome.",
    ),
    Recording(
        f"job:{CYCLE}:p99_5m",
        f"histogram_quantile(0.99, sum by ({ONE}, le) (rate({CYCLE}_bucket[5m])))",
        "99 of 100 cycles are shorter, seconds.",
    ),
    Recording(
        "job:p29_targets_computed:rate1m",
        f"sum by ({ONE}) (rate(p29_targets_computed_total[1m])) or 0 * up{P29}",
        "Targets a second; 0 where the service cannot be asked.",
    ),
    Recording(
        "job:p29_stale_fallback:per_minute5m",
        f"60 * sum by ({ONE}) (rate(p29_stale_fallback_total[5m]))",
        "Inputs of P2.9 that were there and could not be used, a minute.",
    ),
    Recording(
        "job:p29_stale_fallback:ratio_rate5m",
        f"sum by ({ONE}) (rate(p29_stale_fallback_total[5m]))\n"
        f"  / sum by ({ONE}) (rate(quantum_alloc_inputs_total{P29}[5m]))",
        "The same as a share of the inputs that P2.9 looked at.",
    ),
    Recording(
        "gate:quantum_alloc_fail_open:ratio_rate30m",
        f'sum by ({ONE}, gate) (rate({OUTCOMES}{{outcome="fail_open"}}[30m]))\n'
        f'  / sum by ({ONE}, gate) (rate({OUTCOMES}{{outcome!="not_applicable"}}[30m]))',
        "Share of a gate's looks that failed open.",
    ),
    Recording(
        "input:quantum_alloc_unusable:ratio_rate5m",
        f'sum by ({ONE}, input) (rate(quantum_alloc_inputs_total{{reason!="ok"}}[5m]))\n'
        f"  / sum by ({ONE}, input) (rate(quantum_alloc_inputs_total[5m]))",
        "Share of an input's looks without a usable value.",
    ),
    Recording(
        "reason:quantum_alloc_blocks:increase15m",
        "sum by (reason) (increase(quantum_alloc_blocks_total[15m]))",
        "Blocks of the last 15 minutes, by reason, over all governors.",
    ),
)
"""What dashboards and alerts share."""


ALERTS: tuple[Alert, ...] = (*SERVICES, *REDIS, *ALLOCATION, *INPUT_ALERTS, *EXECUTIONS, *GOVERNOR, *APPLY)
"""Every alert, in the order of the page."""
