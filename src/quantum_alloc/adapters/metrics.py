"""Metrics: one table a service, read off decisions; served in Prometheus' text format.

A metric must stand in its service's table, which also makes the reference page and is checked by a test. Counters only
grow; gauges with labels are replaced as a whole, so that a symbol that went away leaves no old value. A ``symbol``
label comes from the validated universe: at most ``max_symbols`` get one, counters of the others go to ``other`` and
their gauges are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from quantum_alloc.adapters.connecting import CODES
from quantum_alloc.adapters.consume import REFUSALS
from quantum_alloc.adapters.executions import Flaw
from quantum_alloc.adapters.input_table import INPUTS, STATES
from quantum_alloc.core.apply import ApplyReason, Fate
from quantum_alloc.core.desk import ACTIONS, DeskReason
from quantum_alloc.core.downsize import HintAction
from quantum_alloc.core.gates import Outcome
from quantum_alloc.core.governor_params import BLOCK_REASONS, GATES, Failure
from quantum_alloc.core.proposal import ProposalReason
from quantum_alloc.core.reading import Reason

OTHER = "other"
Labels = tuple[str, ...]
DURATIONS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0)


@dataclass(frozen=True, slots=True)
class Row:
    """One metric.

    Attributes:
        name: as Prometheus sees it; a counter's ends in ``_total``.
        kind: counter, gauge or histogram.
        help: one sentence.
        labels: label names.
        start: labels that are there at 0 from the start: a counter over a closed set has all of them, so that
            Prometheus sees the first one as an increase.
    """

    name: str
    kind: str
    help: str
    labels: Labels = ()
    start: tuple[Labels, ...] = ()


def _each(*values: str) -> tuple[Labels, ...]:
    """One label's values, as labels that are there from the start."""
    return tuple((value,) for value in values)


UNUSABLE = tuple(reason.value for reason in Reason)
CANNOT_TELL = (*UNUSABLE, "shadow", "position_unknown", "price_unknown", "state_unreadable")
"""Why gates 0 and 0.5 fail open."""


def _gate_outcomes() -> tuple[Labels, ...]:
    """What each gate may say, and why."""
    found: list[Labels] = []
    for gate in GATES:
        found += [(gate.gate, Outcome.PASS.value, ""), (gate.gate, Outcome.NOT_APPLICABLE.value, "")]
        found += [(gate.gate, Outcome.BLOCK.value, reason) for reason in gate.reasons]
        if gate.failure is Failure.OPEN:
            found += [(gate.gate, Outcome.WOULD_BLOCK.value, reason) for reason in gate.reasons]
            found += [(gate.gate, Outcome.FAIL_OPEN.value, reason) for reason in CANNOT_TELL]
    return tuple(found)


OUTCOMES = ("ok", "nothing", "store", "error")
ENDS: tuple[Labels, ...] = tuple(
    (fate.value, reason.value)
    for fate, reasons in (
        (Fate.FILLED, (ApplyReason.OK,)),
        (Fate.VOID, (ApplyReason.DRY_RUN, ApplyReason.NOTHING_TO_CLOSE, ApplyReason.WOULD_ADD)),
        (Fate.REFUSED, (ApplyReason.BAD_PERMIT, ApplyReason.MODE_MISMATCH, ApplyReason.PERMIT_GONE)),
        (Fate.EXPIRED, (ApplyReason.PERMIT_EXPIRED,)),
    )
    for reason in reasons
)
"""How a permit may end."""
REFUSED_WRITES = (*sorted(REFUSALS), "type")
PLANNED = (DeskReason.STOP, DeskReason.ABOVE_TARGET, DeskReason.BREAKOUT)
HINTS = (
    *((HintAction.NONE.value, r.value) for r in ProposalReason),
    (HintAction.DOWNSIZE.value, ProposalReason.OK.value),
)

COMMON = (
    Row(
        "quantum_alloc_cycles_total",
        "counter",
        "Cycles by outcome: ok, nothing, store, error.",
        ("outcome",),
        _each(*OUTCOMES),
    ),
    Row("quantum_alloc_cycle_duration_seconds", "histogram", "First read sent to last write acknowledged."),
    Row("quantum_alloc_inputs_total", "counter", "Inputs looked at, by what became of them.", ("input", "reason")),
    Row(
        "quantum_alloc_store_errors_total",
        "counter",
        "Cycles given up for the store, by code.",
        ("code",),
        _each(*sorted(CODES)),
    ),
    Row(
        "quantum_alloc_write_refused_total",
        "counter",
        "Commands that the server refused alone.",
        ("code",),
        _each("WRONGTYPE", "ERR", "other"),
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
        _each("WARNING", "ERROR"),
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
        _each("published", "late", "repeated", "malformed"),
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
        _each("portfolio", "regime", "cluster", "budget", "performance"),
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
        _each(*(f"budget_{reason}" for reason in UNUSABLE if reason != Reason.STALE)),
    ),
)
EXECUTIONS = (
    Row(
        "quantum_alloc_execution_entries_total",
        "counter",
        "Entries of the execution stream: applied, open (no PnL), other_symbol, or why they were set aside.",
        ("result",),
        _each("applied", "open", "other_symbol", *(flaw.value for flaw in Flaw)),
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
        _each(*(reason.value for reason in ProposalReason)),
    ),
    Row("p29_shadow_multiplier", "gauge", "Multiplier proposed.", ("symbol",)),
    Row("p29_shadow_eff_confidence", "gauge", "Confidence of the efficiency.", ("symbol",)),
    Row("p29_shadow_eff_score", "gauge", "Efficiency score.", ("symbol",)),
    Row(
        "quantum_alloc_not_proposed_total",
        "counter",
        "Symbols without a usable base target, by why.",
        ("reason",),
        _each(*(f"base_{reason}" for reason in UNUSABLE)),
    ),
)
GOVERNOR = (
    Row("quantum_govern_allow_total", "counter", "Permits.", ("symbol",)),
    Row("quantum_govern_block_total", "counter", "Blocks, by the reason of the first gate.", ("symbol", "reason")),
    Row(
        "quantum_alloc_blocks_total",
        "counter",
        "Blocks, by the reason of the verdict.",
        ("reason",),
        _each(*BLOCK_REASONS),
    ),
    Row(
        "quantum_govern_disarm_total",
        "counter",
        "Times that the kill switch was set to reduce.",
        ("reason",),
        _each("burst_limit_exceeded", "error_count"),
    ),
    Row(
        "quantum_alloc_limit_used_ratio",
        "gauge",
        "Headroom: observed over limit of each gate that has one, of a symbol's last plan; 1 is used up.",
        ("gate", "symbol"),
    ),
    Row(
        "quantum_govern_exec_count_hour",
        "gauge",
        "Permits in an hour, as of its last plan.",
        ("symbol",),
    ),
    Row("quantum_govern_exec_count_5min", "gauge", "Permits in five minutes, as of its last plan.", ("symbol",)),
    Row("gov_p29_checked_total", "counter", "Plans that gate 0.5 looked at.", ("symbol",)),
    Row("gov_p29_block_total", "counter", "Plans that gate 0.5 blocked.", ("symbol",)),
    Row("gov_p29_missing_total", "counter", "Plans that passed gate 0.5 for want of a target.", ("symbol",)),
    Row("gov_p29_stale_total", "counter", "Plans that passed gate 0.5 because the target was too old.", ("symbol",)),
    Row("p32_eff_apply_total", "counter", "Downsize hints on permits.", ("action", "reason"), HINTS),
    Row("p32_eff_factor", "gauge", "Factor of the last hint.", ("symbol",)),
    Row(
        "quantum_alloc_plans_total",
        "counter",
        "Plans by answer: permit, block, replay, conflict, not_governed, bad_id, dead_letter.",
        ("result",),
        _each("permit", "block", "replay", "conflict", "not_governed", "bad_id", "dead_letter"),
    ),
    Row(
        "quantum_alloc_gate_outcomes_total",
        "counter",
        "What each gate said: pass, block, would_block, fail_open, not_applicable, and why.",
        ("gate", "outcome", "reason"),
        _gate_outcomes(),
    ),
    Row("quantum_alloc_plans_waiting", "gauge", "Plans that are held and not answered yet."),
    Row("quantum_alloc_plans_moved_total", "counter", "Answers decided again because something had changed."),
    Row("quantum_alloc_plans_missed_total", "counter", "Plans that were gone from the stream before their answer."),
    Row("quantum_alloc_plan_groups_made_total", "counter", "Times that the consumer group had vanished."),
    Row("quantum_alloc_kill_state", "gauge", "1 for what the kill switch says, its latch included.", ("state",)),
    Row("quantum_alloc_kill_latched", "gauge", "1 while the kill switch is latched."),
    Row("quantum_alloc_hold", "gauge", "1 while opens are held back.", ("reason",)),
    Row("quantum_alloc_clock_skew_seconds", "gauge", "The server's clock less this machine's."),
    Row("quantum_alloc_store_epoch_changes_total", "counter", "Times that the server was found to be another run."),
    Row("quantum_alloc_permits_restored_total", "counter", "Permits put back after a loss of writes."),
)
APPLY = (
    Row(
        "quantum_alloc_apply_results_total",
        "counter",
        "Permits by what became of them, and why.",
        ("fate", "reason"),
        ENDS,
    ),
    Row(
        "quantum_alloc_apply_refused_total",
        "counter",
        "Writes refused because something had changed.",
        ("reason",),
        _each(*REFUSED_WRITES),
    ),
    Row("quantum_alloc_fills_total", "counter", "Fills.", ("symbol", "side")),
    Row("quantum_alloc_fill_notional_usd_total", "counter", "Notional of fills.", ("symbol",)),
    Row("quantum_alloc_hints_applied_total", "counter", "Opens that were filled with less because of a hint."),
    Row("quantum_alloc_balance_usd", "gauge", "Balance of the paper account."),
    Row("quantum_alloc_realized_pnl_usd", "gauge", "Realised PnL before fees, since the account was opened."),
    Row("quantum_alloc_fees_usd", "gauge", "Fees paid since the account was opened."),
    Row("quantum_alloc_position_usd", "gauge", "Signed notional of what is held, at a fresh price.", ("symbol",)),
    Row("quantum_alloc_permits_waiting", "gauge", "Permits that may still be filled."),
    Row("quantum_alloc_permits_outstanding", "gauge", "Permits neither consumed nor expired."),
    Row("quantum_alloc_permits_issued_total", "counter", "Permits seen since the account was opened."),
    Row("quantum_alloc_permits_consumed_total", "counter", "Permits used up."),
    Row("quantum_alloc_permits_expired_total", "counter", "Permits that nobody used."),
    Row("quantum_alloc_fills_without_permit_total", "counter", "Fills that no permit is known for: an alarm."),
    Row("quantum_alloc_fills_elsewhere_total", "counter", "Fills of permits that the account did not use: an alarm."),
    Row("quantum_alloc_permit_events_missed_total", "counter", "Governor's events gone before they were read."),
    Row("quantum_alloc_permit_events_odd_total", "counter", "PERMIT events of a time that has not come: left out."),
    Row("quantum_alloc_account_writes_lost_total", "counter", "Writes that a server lost, or may have: an alarm."),
    Row("quantum_alloc_fills_above_permit_total", "counter", "Fills of more than their permit had left: an alarm."),
    Row("quantum_alloc_kill_state", "gauge", "1 for what the kill switch says, its latch included.", ("state",)),
)
DESK = (
    Row("quantum_alloc_desk_plans_total", "counter", "Plans that were proposed.", ("action",), _each(*ACTIONS)),
    Row(
        "quantum_alloc_desk_quiet_total",
        "counter",
        "Symbols of a cycle without a plan, and why.",
        ("reason",),
        _each(*(reason.value for reason in DeskReason if reason not in PLANNED)),
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


class Metrics(Collector):
    """The metrics of one service."""

    def __init__(self, service: str, max_symbols: int = 500) -> None:
        """Start at nothing.

        Args:
            service: a name of ``TABLES``.
            max_symbols: symbols that get a label of their own.
        """
        self.service = service
        self._rows = {row.name: row for row in (*COMMON, *TABLES.get(service, ()))}
        self._values: dict[str, dict[Labels, float]] = {
            row.name: (dict.fromkeys(row.start, 0.0) if row.labels else {(): 0.0})
            for row in self._rows.values()
            if row.kind != "histogram"
        }
        for one in INPUTS.get(service, ()):
            self._values["quantum_alloc_inputs_total"].update({(one.name, state): 0.0 for state in STATES})
        self._at_scrape: dict[str, Callable[[], Mapping[Labels, float]]] = {}
        self._max_symbols = max_symbols
        self._symbols: set[str] = set()
        self._registry = CollectorRegistry()
        self._histograms = {
            row.name: Histogram(row.name, row.help, buckets=DURATIONS_S, registry=self._registry)
            for row in self._rows.values()
            if row.kind == "histogram"
        }
        self._registry.register(self)

    def _has_label(self, symbol: str) -> bool:
        if symbol not in self._symbols:
            if len(self._symbols) >= self._max_symbols:
                return False
            self._symbols.add(symbol)
        return True

    def add(self, name: str, *labels: str, amount: float = 1.0) -> None:
        """Let a counter grow.

        Args:
            name: of the table.
            labels: values, in the table's order.
            amount: at least 0.
        """
        if self._rows[name].labels[:1] == ("symbol",) and not self._has_label(labels[0]):
            labels = (OTHER, *labels[1:])
        values = self._values[name]
        values[labels] = values.get(labels, 0.0) + amount

    def set(self, name: str, value: float, *labels: str) -> None:
        """Set one value of a gauge.

        Args:
            name: of the table.
            value: any number.
            labels: values, in the table's order.
        """
        self._values[name][labels] = value

    def replace(self, name: str, values: Mapping[str, float]) -> None:
        """Replace all values of a gauge with one label.

        Args:
            name: of the table.
            values: by label value.
        """
        if self._rows[name].labels == ("symbol",):
            shown = [k for k in values if self._has_label(k)]
        else:
            shown = sorted(values)[: self._max_symbols]
        self._values[name] = {(k,): values[k] for k in shown}

    def at_scrape(self, name: str, work_out: Callable[[], Mapping[Labels, float]]) -> None:
        """Work a gauge out whenever it is read.

        Args:
            name: of the table.
            work_out: its values by labels; it must be quick, and safe in another thread.
        """
        self._at_scrape[name] = work_out

    def _read(self, name: str) -> dict[Labels, float]:
        """The values of a metric as they are now; a gauge's symbols are those that get a label of their own."""
        work_out = self._at_scrape.get(name)
        if work_out is None:
            return self._values[name].copy()
        found, labels = dict(work_out()), self._rows[name].labels
        if "symbol" not in labels:
            return found
        at = labels.index("symbol")
        return {k: v for k, v in found.items() if self._has_label(k[at])}

    def observe(self, name: str, value: float) -> None:
        """Put a value into a histogram.

        Args:
            name: of the table.
            value: seconds.
        """
        self._histograms[name].observe(value)

    def value(self, name: str, *labels: str) -> float:
        """What a counter or gauge shows now; 0 where nothing was counted.

        Args:
            name: of the table.
            labels: values, in the table's order.
        """
        values = self._read(name) if name in self._at_scrape else self._values[name]
        return values.get(labels, 0.0)

    def values(self, name: str) -> dict[Labels, float]:
        """All values of a gauge, or what a counter has counted, by labels."""
        values = self._read(name)
        return {k: v for k, v in values.items() if v} if self._rows[name].kind == "counter" else values

    def collect(self) -> Iterator[Metric]:
        """The snapshot that Prometheus reads."""
        for name, row in self._rows.items():
            if row.kind == "histogram":
                continue
            family = CounterMetricFamily if row.kind == "counter" else GaugeMetricFamily
            metric = family(name, row.help, labels=row.labels)
            for labels, value in self._read(name).items():
                metric.add_metric(labels, value)
            yield metric

    def render(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self._registry)


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
