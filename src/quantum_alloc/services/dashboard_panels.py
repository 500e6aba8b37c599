"""What the dashboard shows: one table of panels.

Queries name two variables of the dashboard, ``$service`` and ``$symbol``, and ``$__rate_interval``, which Grafana fits
to the scrape interval. A test runs each of them against a real Prometheus.
"""

from __future__ import annotations

from dataclasses import dataclass

from quantum_alloc.core.headroom import WARNED

Query = tuple[str, str]
"""PromQL, and the legend of its series."""
Step = tuple[str, float | None]
"""A colour, and the value from which on it counts; None for the first."""
OF = '{symbol=~"$symbol"}'
IN = '{job=~"$service"}'
BY_SYMBOL = "{{symbol}}"
BY_SERVICE = "{{job}}"
ONE_IS_BAD: tuple[Step, ...] = (("green", None), ("red", 1.0))
ONE_IS_GOOD: tuple[Step, ...] = (("red", None), ("green", 1.0))


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel.

    Attributes:
        row: title of the row that it stands in.
        title: of the panel.
        about: its description: what is shown, and what to look for.
        unit: Grafana's name of the unit.
        queries: what is shown.
        kind: timeseries, stat, state-timeline or table.
        width: of 24.
        steps: colours by value; none for a palette.
        low: smallest value of the axis.
        high: greatest value of the axis.
        is_stacked: series stand on one another.
    """

    row: str
    title: str
    about: str
    unit: str
    queries: tuple[Query, ...]
    kind: str = "timeseries"
    width: int = 8
    steps: tuple[Step, ...] = ()
    low: float | None = None
    high: float | None = None
    is_stacked: bool = False


HEALTH, EFFICIENCY, PRESSURE = "Health", "Efficiency trends", "Capital pressure"
TARGETS, VERDICTS, INPUTS = "Targets by factor", "Verdicts", "Inputs and vacuity"

PANELS: tuple[Panel, ...] = (
    Panel(
        HEALTH, "Alerts", "How many alerts are firing.", "short",
        (('count(ALERTS{alertname=~"QuantumAlloc.*", alertstate="firing"}) or vector(0)', "firing"),), kind="stat",
        width=4, steps=ONE_IS_BAD,
    ),
    Panel(
        HEALTH, "Reached", "1 for a service that answers Prometheus.", "short", ((f"up{IN}", BY_SERVICE),),
        kind="state-timeline", width=10, steps=ONE_IS_GOOD,
    ),
    Panel(
        HEALTH, "Ready", "1 for a service that reaches Redis and has finished a cycle.", "short",
        ((f"quantum_alloc_ready{IN}", BY_SERVICE),), kind="state-timeline", width=10, steps=ONE_IS_GOOD,
    ),
    Panel(
        HEALTH, "Long cycles", "99 of 100 cycles are shorter; from 2 s on an alert.", "s",
        ((f"job:quantum_alloc_cycle_duration_seconds:p99_5m{IN}", BY_SERVICE),), low=0,
        steps=(("green", None), ("red", 2)),
    ),
    Panel(
        HEALTH, "Cycles a second", "By outcome: ok, nothing to write, given up for the store, an error.", "cps",
        ((f"job:quantum_alloc_cycles:rate5m{IN}", "{{job}} {{outcome}}"),), low=0,
    ),
    Panel(
        HEALTH, "Trouble with Redis in an hour", "Cycles given up for the store, by code.", "short",
        ((f"sum by (job, code) (increase(quantum_alloc_store_errors_total{IN}[1h]))", "{{job}} {{code}}"),), low=0,
        is_stacked=True,
    ),
    Panel(
        HEALTH, "Log lines in an hour", "Warnings and errors.", "short",
        ((f"sum by (job, level) (increase(quantum_alloc_log_lines_total{IN}[1h]))", "{{job}} {{level}}"),), low=0,
    ),
    Panel(
        HEALTH, "Running for", "Since the service was started.", "s",
        ((f"time() - quantum_alloc_start_timestamp_seconds{IN}", BY_SERVICE),), low=0,
    ),
    Panel(
        HEALTH, "What runs", "Version and hash of the configuration of each service.", "short",
        ((f"quantum_alloc_build_info{IN}", "{{job}} {{version}} {{config}}"),), kind="table",
    ),
    Panel(
        EFFICIENCY, "Efficiency score", "How well each symbol's capital works (P3.1). From 0.65 on the pressure is to"
        " increase, up to 0.35 to decrease, by the average and with enough confidence.", "percentunit",
        ((f"p31_efficiency_score{OF}", BY_SYMBOL),), low=0, high=1,
        steps=(("red", None), ("yellow", 0.35), ("green", 0.65)),
    ),
    Panel(
        EFFICIENCY, "Confidence of the efficiency", "The smaller of the confidences of attribution and target, halved"
        " by any flag. Below 0.65 the proposer stays neutral.", "percentunit",
        ((f"p31_confidence{OF}", BY_SYMBOL),), low=0, high=1, steps=(("red", None), ("green", 0.65)),
    ),
    Panel(
        EFFICIENCY, "Alpha score", "Average of the symbol's last executions (P3.0), -1 to 1.", "none",
        ((f"p30_alpha_score{OF}", BY_SYMBOL),), low=-1, high=1,
    ),
    Panel(
        EFFICIENCY, "Performance and its confidence", "Performance factor (0.5 is neutral) and confidence of the"
        " attribution, averages over the symbols.", "percentunit",
        ((f"avg(p30_performance_factor{OF})", "factor"), (f"avg(p30_confidence{OF})", "confidence")), low=0, high=1,
    ),
    Panel(
        EFFICIENCY, "Executions a minute", "Entries of the execution stream as P3.1 read them; what is neither applied"
        " nor open was set aside.", "cpm",
        (('60 * sum by (result) (rate(quantum_alloc_execution_entries_total{job="efficiency"}[$__rate_interval]))',
          "{{result}}"),), low=0, is_stacked=True,
    ),
    Panel(
        EFFICIENCY, "Proposed multiplier", "What the proposer would make of the target; 1 is neutral.", "none",
        ((f"p29_shadow_multiplier{OF}", BY_SYMBOL),), low=0.5, high=1.5,
    ),
    Panel(
        PRESSURE, "Symbols by pressure", "How many symbols ask for more capital, less, or neither.", "short",
        (("sum by (pressure) (quantum_alloc_pressure_symbols)", "{{pressure}}"),), low=0, is_stacked=True,
    ),
    Panel(
        PRESSURE, "Downsize factor", "Factor of each symbol's last hint on a permit; below 1 it asks for less.",
        "percentunit", ((f"p32_eff_factor{OF}", BY_SYMBOL),), low=0, high=1,
    ),
    Panel(
        PRESSURE, "Hints in an hour", "Downsize hints on permits, by action and reason.", "short",
        (("sum by (action, reason) (increase(p32_eff_apply_total[1h]))", "{{action}} {{reason}}"),), low=0,
        is_stacked=True,
    ),
    Panel(
        PRESSURE, "Budget", "Base budget of each symbol (P2.8), before any factor.", "currencyUSD",
        ((f"quantum_alloc_budget_usd{OF}", BY_SYMBOL),), low=0,
    ),
    Panel(
        PRESSURE, "Heat and stress", "Heat of the portfolio and stress of each cluster; both make budgets smaller.",
        "percentunit",
        (("quantum_alloc_portfolio_heat_ratio", "heat"), ("quantum_alloc_cluster_stress", "stress {{cluster}}")),
        low=0,
    ),
    Panel(
        PRESSURE, "Equity and drawdown", "Equity, its peak, and how far it is below. 5 % and 15 % are the default"
        " thresholds of the drawdown factor.", "currencyUSD",
        (("quantum_alloc_equity_usd", "equity"), ("quantum_alloc_peak_equity_usd", "peak")),
    ),
    Panel(
        TARGETS, "Targets", "Target of each symbol (P2.9), after all factors and caps.", "currencyUSD",
        ((f"p29_target_usd{OF}", BY_SYMBOL),), width=12, low=0,
    ),
    Panel(
        TARGETS, "Factors of the cycle", "What makes targets smaller or larger: regime and drawdown for all, cluster"
        " and performance on average. 1 is neutral.", "none",
        (
            ("p29_regime_factor", "regime"), ("p29_drawdown_factor", "drawdown"),
            ("avg(p29_cluster_factor)", "cluster, mean"),
            ("avg(quantum_alloc_performance_factor)", "performance, mean"),
        ), width=12, low=0,
    ),
    Panel(
        TARGETS, "Cluster factor", "1 - stress of each cluster, 0.3 to 1.", "none",
        (("p29_cluster_factor", "{{cluster}}"),), low=0, high=1,
    ),
    Panel(
        TARGETS, "Performance factor", "Multiplier that was applied to each symbol; 1 is neutral, also without an"
        " attribution.", "none", ((f"quantum_alloc_performance_factor{OF}", BY_SYMBOL),), low=0,
    ),
    Panel(
        TARGETS, "Confidence of the target", "Of regime and cluster; 0.5 where they are unknown.", "percentunit",
        ((f"p29_allocation_confidence{OF}", BY_SYMBOL),), low=0, high=1,
    ),
    Panel(
        TARGETS, "Drawdown", "How far equity is below its peak.", "percentunit",
        (("quantum_alloc_drawdown_ratio", "drawdown"),), kind="stat", width=6, low=0,
        steps=(("green", None), ("yellow", 0.05), ("red", 0.15)),
    ),
    Panel(
        TARGETS, "Targets of the last cycle", "How many symbols have one.", "short",
        (("quantum_alloc_targets", "targets"),), kind="stat", width=6, steps=(("red", None), ("green", 1)),
    ),
    Panel(
        TARGETS, "Positions", "What the paper account holds, signed.", "currencyUSD",
        ((f"quantum_alloc_position_usd{OF}", BY_SYMBOL),), width=12,
    ),
    Panel(
        VERDICTS, "Answers a minute", "Plans by the governor's answer.", "cpm",
        (("60 * sum by (result) (rate(quantum_alloc_plans_total[$__rate_interval]))", "{{result}}"),), low=0,
        is_stacked=True,
    ),
    Panel(
        VERDICTS, "Blocks by reason", "Blocks of the last 15 minutes by the reason of the verdict.", "short",
        (("reason:quantum_alloc_blocks:increase15m", "{{reason}}"),), low=0, is_stacked=True,
    ),
    Panel(
        VERDICTS, "Kill switch", "1 for what it says.", "short",
        (("max by (state) (quantum_alloc_kill_state)", "{{state}}"),), kind="state-timeline",
        steps=(("transparent", None), ("orange", 1)),
    ),
    Panel(
        VERDICTS, "Gates in an hour", "What each gate said of the plans of the last hour.", "short",
        (('sum by (gate, outcome) (increase(quantum_alloc_gate_outcomes_total{outcome!="not_applicable"}[1h]))',
          "{{gate}} {{outcome}}"),), kind="table", width=12,
    ),
    Panel(
        VERDICTS, "Limits nearly used", "The ten limits with the least headroom, of those that are not used up by each"
        " permit; from 80 % on an alert.", "percentunit",
        ((f'topk(10, max by (gate, symbol) (quantum_alloc_limit_used_ratio{{gate=~"{"|".join(WARNED)}"}}))',
          "{{gate}} {{symbol}}"),),
        width=12, low=0, steps=(("green", None), ("orange", 0.8), ("red", 1)),
    ),
    Panel(
        VERDICTS, "Permits of the last hour", "Permits of each symbol, as the governor's windows count them.", "short",
        ((f"quantum_govern_exec_count_hour{OF}", BY_SYMBOL),), width=12, low=0,
    ),
    Panel(
        VERDICTS, "Ends of permits in an hour", "What became of permits in the apply layer.", "short",
        (("sum by (fate, reason) (increase(quantum_alloc_apply_results_total[1h]))", "{{fate}} {{reason}}"),),
        width=12, low=0, is_stacked=True,
    ),
    Panel(
        INPUTS, "Armed but blind", "1 for a gate or input that counts and has had no real data for 10 minutes.",
        "short", ((f"quantum_alloc_armed_but_blind{IN}", "{{job}} {{kind}} {{name}}"),), kind="state-timeline",
        steps=ONE_IS_BAD,
    ),
    Panel(
        INPUTS, "Gates on real data", "Share of each gate's looks of the last 10 minutes that were on real data.",
        "percentunit", (('quantum_alloc_real_data_ratio{kind="gate"}', "{{name}}"),), low=0, high=1,
    ),
    Panel(
        INPUTS, "Inputs on real data", "Share of each input's looks of the last 10 minutes that were on real data.",
        "percentunit", (('quantum_alloc_real_data_ratio{kind="input", job=~"$service"}', "{{job}} {{name}}"),),
        low=0, high=1,
    ),
    Panel(
        INPUTS, "Fail-open share", "Share of the plans of 30 minutes that a gate let pass because it could not see.",
        "percentunit", (("gate:quantum_alloc_fail_open:ratio_rate30m", "{{gate}}"),), low=0, high=1,
        steps=(("green", None), ("red", 0.2)),
    ),
    Panel(
        INPUTS, "Stale fallbacks a minute", "Inputs of P2.9 that were there and could not be used.", "cpm",
        (("job:p29_stale_fallback:per_minute5m", "all"),
         ("60 * sum by (data_source) (rate(p29_stale_fallback_total[5m]))", "{{data_source}}")), low=0,
        steps=(("green", None), ("red", 10)),
    ),
    Panel(
        INPUTS, "Unusable share", "Share of each input's looks without a usable value, whatever the reason.",
        "percentunit", ((f"input:quantum_alloc_unusable:ratio_rate5m{IN}", "{{job}} {{input}}"),), low=0, high=1,
    ),
    Panel(
        INPUTS, "Constant for", "How long no value of an input has changed, over all symbols.", "s",
        ((f"quantum_alloc_input_constant_seconds{IN}", "{{job}} {{input}}"),), low=0,
        steps=(("green", None), ("red", 3600)),
    ),
    Panel(
        INPUTS, "Age of real data", "How long ago a gate or an input was last decided on real data.", "s",
        ((f"quantum_alloc_real_data_age_seconds{IN}", "{{job}} {{name}}"),), low=0,
        steps=(("green", None), ("red", 600)),
    ),
)  # fmt: skip
"""Every panel, in the order of the dashboard."""
