"""The tables of metrics: what every service has, what each has of its own, and the reference page."""

from __future__ import annotations

from collections.abc import Mapping

from quantum_alloc.adapters.connecting import CODES
from quantum_alloc.adapters.executions import Flaw
from quantum_alloc.adapters.metric_flow import APPLY, DESK, GOVERNOR
from quantum_alloc.adapters.metric_row import UNUSABLE, Row, each
from quantum_alloc.core.proposal import ProposalReason
from quantum_alloc.core.reading import Reason

OUTCOMES = ("ok", "nothing", "store", "error")

COMMON = (
    Row(
        "quantum_alloc_cycles_total",
        "counter",
        "Cycles by outcome: ok, nothing, store, error.",
        ("outcome",),
        each(*OUTCOMES),
    ),
    Row("quantum_alloc_cycle_duration_seconds", "histogram", "First read sent to last write acknowledged."),
    Row("quantum_alloc_inputs_total", "counter", "Inputs looked at, by what became of them.", ("input", "reason")),
    Row(
        "quantum_alloc_store_errors_total",
        "counter",
        "Cycles given up for the store, by code.",
        ("code",),
        each(*sorted(CODES)),
    ),
    Row(
        "quantum_alloc_write_refused_total",
        "counter",
        "Commands that the server refused alone.",
        ("code",),
        each("WRONGTYPE", "ERR", "other"),
    ),
    Row("quantum_alloc_symbol_errors_total", "counter", "Programming errors that cost one symbol of one cycle."),
    Row("quantum_alloc_refused_names", "gauge", "Names found that are no symbols or cluster ids."),
    Row("quantum_alloc_dropped_symbols", "gauge", "Symbols beyond MAX_SYMBOLS."),
    Row("quantum_alloc_symbols", "gauge", "Symbols of the last cycle."),
    Row("quantum_alloc_ready", "gauge", "1 when Redis is reached and a cycle has finished."),
    Row("quantum_alloc_last_cycle_timestamp_seconds", "gauge", "The decision clock of the last finished cycle."),
    Row("quantum_alloc_server_lacks", "gauge", "1 for what the server lacks that the guarantees need.", ("what",)),
    Row("quantum_alloc_mode_info", "gauge", "1 for the mode that is on.", ("mode",)),
    Row("quantum_alloc_mode_unrecognised", "gauge", "1 when the mode variable was not understood: it runs in shadow."),
    Row("quantum_alloc_build_info", "gauge", "1 for what runs here.", ("version", "config")),
    Row("quantum_alloc_start_timestamp_seconds", "gauge", "When the process started, by the machine's clock."),
    Row("quantum_alloc_loop_late", "gauge", "1 while no cycle has finished for three intervals and 15 s."),
    Row(
        "quantum_alloc_log_lines_total",
        "counter",
        "Log lines of a level, shown or not; those of the process count for each of its services.",
        ("level",),
        each("WARNING", "ERROR"),
    ),
    Row(
        "quantum_alloc_last_log_line_timestamp_seconds",
        "gauge",
        "When the last log line of a level was told, by the machine's clock; absent until there is one.",
        ("level",),
    ),
    Row(
        "quantum_alloc_real_data_ratio",
        "gauge",
        "Share of the looks of the last 10 minutes that were on real data, of a gate or an input; absent without any.",
        ("kind", "name"),
    ),
    Row(
        "quantum_alloc_real_data_age_seconds",
        "gauge",
        "Seconds since a gate or an input was last decided on real data, or first looked at where it never was.",
        ("kind", "name"),
    ),
    Row(
        "quantum_alloc_armed_but_blind",
        "gauge",
        "1 while a gate or an input counts, is looked at, and has had no real data for 10 minutes.",
        ("kind", "name"),
    ),
    Row(
        "quantum_alloc_input_constant_seconds",
        "gauge",
        "Seconds for which no usable value of an input has changed, over all symbols; absent until there was one.",
        ("input",),
    ),
)

FEED = (
    Row(
        "quantum_alloc_feed_candles_total",
        "counter",
        "Candles by what became of them.",
        ("result",),
        each("published", "late", "repeated", "malformed"),
    ),
    Row("quantum_alloc_feed_gaps_total", "counter", "Candles that do not follow the one before them directly."),
    Row("quantum_alloc_feed_live_symbols", "gauge", "Symbols that still have candles."),
    Row("quantum_alloc_price_usd", "gauge", "Last close.", ("symbol",)),
)
PORTFOLIO = (
    Row("quantum_alloc_equity_usd", "gauge", "Balance and unrealised PnL."),
    Row("quantum_alloc_peak_equity_usd", "gauge", "Greatest equity on record."),
    Row("quantum_alloc_drawdown_ratio", "gauge", "1 - equity / peak."),
    Row("quantum_alloc_positions", "gauge", "Positions with a quantity other than 0."),
    Row("quantum_alloc_positions_unusable", "gauge", "Positions counted by old values, or left out.", ("how",)),
)
REGIME = (
    Row("quantum_alloc_regime_z", "gauge", "Robust variance ratio statistic of the universe's returns."),
    Row("quantum_alloc_regime_confidence", "gauge", "Confidence of the regime that is on.", ("regime",)),
    Row("quantum_alloc_regime_bars", "gauge", "Returns that the statistic looked at, or that there are."),
    Row("quantum_alloc_regime_gaps", "gauge", "Returns of the universe left out because no bar follows directly."),
    Row("quantum_alloc_bars_malformed", "gauge", "Bar entries that could not be read, since the start."),
)
CLUSTERS = (
    Row("quantum_alloc_clusters", "gauge", "Clusters of the last cycle."),
    Row("quantum_alloc_unmapped_symbols", "gauge", "Symbols with bars that are in no cluster: they share UNKNOWN."),
    Row("quantum_alloc_cluster_stress", "gauge", "Stress, 0 to 1.", ("cluster",)),
    Row("quantum_alloc_bars_malformed", "gauge", "Bar entries that could not be read, since the start."),
)
BUDGET = (
    Row("quantum_alloc_budget_usd", "gauge", "Base budget.", ("symbol",)),
    Row("quantum_alloc_portfolio_heat_ratio", "gauge", "Sum of |notional| x hourly sigma over equity."),
    Row(
        "quantum_alloc_budget_violations_total",
        "counter",
        "Cycles in which |notional| was above the budget.",
        ("symbol",),
    ),
)
ALLOCATION = (
    Row("p29_targets_computed_total", "counter", "Targets computed.", ("symbol",)),
    Row("p29_shadow_pass_total", "counter", "Targets computed in shadow, one a symbol and cycle."),
    Row("p29_enforce_overrides_total", "counter", "Target hashes written.", ("symbol",)),
    Row(
        "p29_stale_fallback_total",
        "counter",
        "Inputs that were there but could not be used.",
        ("data_source",),
        each("portfolio", "regime", "cluster", "budget", "performance"),
    ),
    Row("p29_allocation_confidence", "gauge", "Confidence of the target.", ("symbol",)),
    Row("p29_target_usd", "gauge", "Target.", ("symbol",)),
    Row("p29_regime_factor", "gauge", "Regime factor of the cycle."),
    Row("p29_cluster_factor", "gauge", "Cluster factor.", ("cluster",)),
    Row("p29_drawdown_factor", "gauge", "Drawdown factor of the cycle."),
    Row("quantum_alloc_performance_factor", "gauge", "Performance factor that was applied.", ("symbol",)),
    Row("p29_loop_duration_seconds", "histogram", "First read sent to last write acknowledged."),
    Row("quantum_alloc_targets", "gauge", "Targets of the last cycle."),
    Row("quantum_alloc_proposed_factor", "gauge", "The proposer's factor, with P29_USE_PROPOSED.", ("symbol",)),
    Row(
        "quantum_alloc_skipped_total",
        "counter",
        "Symbols without a target, by reason.",
        ("reason",),
        each(*(f"budget_{reason}" for reason in UNUSABLE if reason != Reason.STALE)),
    ),
)
EXECUTIONS = (
    Row(
        "quantum_alloc_execution_entries_total",
        "counter",
        "Entries of the execution stream: applied, open (no PnL), other_symbol, or why they were set aside.",
        ("result",),
        each("applied", "open", "other_symbol", *(flaw.value for flaw in Flaw)),
    ),
    Row("quantum_alloc_execution_missed_total", "counter", "Entries that were gone before they were read."),
    Row("quantum_alloc_execution_stream_restarts_total", "counter", "Times that the stream was found begun again."),
    Row("quantum_alloc_execution_beyond", "gauge", "1 while the position is beyond the stream: nothing is read."),
    Row("quantum_alloc_execution_behind", "gauge", "1 while there is more to read than one cycle takes."),
    Row("quantum_alloc_state_symbols", "gauge", "Symbols that are remembered."),
    Row("quantum_alloc_state_malformed_total", "counter", "Symbols whose state could not be read and began anew."),
    Row("quantum_alloc_state_dropped_total", "counter", "Symbols forgotten after seven days, or beyond MAX_SYMBOLS."),
)
ATTRIBUTION = (
    Row("p30_attributions_computed_total", "counter", "Attributions published.", ("symbol",)),
    Row("p30_alpha_score", "gauge", "Alpha score, -1 to 1.", ("symbol",)),
    Row("p30_performance_factor", "gauge", "Performance factor, 0 to 1, 0.5 neutral.", ("symbol",)),
    Row("p30_confidence", "gauge", "Confidence of the attribution.", ("symbol",)),
    Row("p30_lkg_used_total", "counter", "Attributions published from executions that are not recent.", ("symbol",)),
    Row("p30_loop_duration_seconds", "histogram", "First read sent to last write acknowledged."),
    *EXECUTIONS,
)
EFFICIENCY = (
    Row("p31_loops_total", "counter", "Cycles that ended."),
    Row("p31_loop_duration_seconds", "histogram", "First read sent to last write acknowledged."),
    Row("p31_exec_events_total", "counter", "Executions applied.", ("symbol",)),
    Row("p31_inputs_missing_total", "counter", "Inputs missing or unusable: p30, p29.", ("symbol", "which")),
    Row("p31_inputs_stale_total", "counter", "Inputs out of date and still used: p30, p29.", ("symbol", "which")),
    Row("p31_efficiency_score", "gauge", "Efficiency score, 0 to 1.", ("symbol",)),
    Row("p31_confidence", "gauge", "Confidence of the efficiency.", ("symbol",)),
    Row("quantum_alloc_pressure_symbols", "gauge", "Symbols by capital pressure.", ("pressure",)),
    Row("p31_written_total", "counter", "Efficiency hashes written, in the live lane.", ("symbol",)),
    Row("p31_lkg_used_total", "counter", "Cycles in which a last known good value stood in.", ("symbol",)),
    Row("quantum_alloc_outliers_total", "counter", "Executions with a PnL above ten targets.", ("symbol",)),
    *EXECUTIONS,
)
PROPOSER = (
    Row("p29_shadow_loops_total", "counter", "Cycles that ended."),
    Row(
        "p29_shadow_proposed_total",
        "counter",
        "Proposals by reason.",
        ("reason",),
        each(*(reason.value for reason in ProposalReason)),
    ),
    Row("p29_shadow_multiplier", "gauge", "Multiplier proposed.", ("symbol",)),
    Row("p29_shadow_eff_confidence", "gauge", "Confidence of the efficiency.", ("symbol",)),
    Row("p29_shadow_eff_score", "gauge", "Efficiency score.", ("symbol",)),
    Row(
        "quantum_alloc_not_proposed_total",
        "counter",
        "Symbols without a usable base target, by why.",
        ("reason",),
        each(*(f"base_{reason}" for reason in UNUSABLE)),
    ),
)

TABLES: Mapping[str, tuple[Row, ...]] = {
    "feed": FEED,
    "portfolio": PORTFOLIO,
    "regime": REGIME,
    "clusters": CLUSTERS,
    "budget": BUDGET,
    "attribution": ATTRIBUTION,
    "allocation": ALLOCATION,
    "efficiency": EFFICIENCY,
    "proposer": PROPOSER,
    "governor": GOVERNOR,
    "apply": APPLY,
    "desk": DESK,
}


def reference_page() -> str:
    """The reference of all metrics, as Markdown."""
    lines = [
        "# Metrics",
        "",
        "Made by `quantum-alloc config docs metrics`. Every service also has the common ones.",
        "",
    ]
    for title, rows in (("Common", COMMON), *((name, rows) for name, rows in TABLES.items())):
        lines += [f"## {title}", "", "| metric | kind | labels | meaning |", "|---|---|---|---|"]
        lines += [
            f"| `{r.name}` | {r.kind} | {', '.join(r.labels) or '-'} | {r.help.replace('|', chr(92) + '|')} |"
            for r in rows
        ]
        lines.append("")
    return "\n".join(lines)
