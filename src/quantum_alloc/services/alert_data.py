"""Alerts about targets, about inputs and about executions."""

from __future__ import annotations

from quantum_alloc.adapters.input_table import EXECUTIONS as FILLS
from quantum_alloc.adapters.input_table import INPUTS, POSITIONS
from quantum_alloc.services.alert_kit import ONE, WHO, Alert, any_of, more

ARMED = 'label_replace(quantum_alloc_armed_but_blind{kind="gate"}, "gate", "$1", "name", "(.*)")'
ENTRIES = "quantum_alloc_execution_entries_total"
CANDLES = 'quantum_alloc_feed_candles_total{result!="published"}'


MOVED = {
    "": "",
    POSITIONS: "\nand on () sum(quantum_alloc_positions) > 0",
    FILLS: f'\nand on () sum(increase({ENTRIES}{{result="applied"}}[55m])) > 0',
}
"""What an input that rests without positions, or without fills, is only expected to move with."""


def _constant() -> str:
    """Inputs that ought to move, where there is what moves them; services tell of no others."""
    parts = []
    for rests, moved in MOVED.items():
        names = {row.name for rows in INPUTS.values() for row in rows if not row.constant and row.rests == rests}
        parts.append(f'(quantum_alloc_input_constant_seconds{{input=~"{any_of(sorted(names))}"}} >= 3600{moved})')
    return "\nor\n".join(parts)


ALLOCATION = (
    Alert(
        "Allocation", "StaleFallbacks", "warning", "job:p29_stale_fallback:per_minute5m > 10",
        "0s", "P2.9 decides on fallbacks {{ $value | humanize }} times a minute",
        "More than 10 inputs a minute were there but stale or unreadable, over 5 minutes.",
        "`quantum-alloc status --inputs`: which input, and which producer stopped.",
    ),
    Alert(
        "Allocation", "StaleFallbackShare", "warning", "job:p29_stale_fallback:ratio_rate5m > 0.01",
        "5m", "P2.9 decides {{ $value | humanizePercentage }} of its inputs by fallback",
        "More than 1 % of the inputs that P2.9 looked at, for 5 minutes.",
        "`quantum-alloc status --inputs`: which input, and which producer stopped.",
    ),
    Alert(
        "Allocation", "NoTargets", "critical", "job:p29_targets_computed:rate1m == 0",
        "5m", f"{WHO} has computed no target for 5 minutes",
        "Not one target in 5 minutes, whether it cannot be reached, is halted or has no symbols.",
        "`nothing_written` and `last_error` of its `/health`; portfolio and budgets must be fresh.",
    ),
    Alert(
        "Allocation", "TargetsShrunk", "warning",
        "quantum_alloc_targets <= 0.5 * max_over_time(quantum_alloc_targets[30m])\n"
        "and max_over_time(quantum_alloc_targets[30m]) > 0",
        "1m", f"{WHO} has {{{{ $value }}}} targets left",
        "Half of the targets of the last 30 minutes, or fewer, are left for a minute.",
        "Which budgets are gone? `quantum-alloc status --inputs`, and the service `budget`.",
    ),
    Alert(
        "Allocation", "SymbolsSkipped", "warning", more("quantum_alloc_skipped_total", "5m", by="reason"),
        "5m", f"{WHO} leaves symbols out: {{{{ $labels.reason }}}}",
        "Symbols without a usable budget, going on for 5 minutes.",
        "See what writes `quantum:portfolio:budget:*`, and what the reason says of it.",
    ),
    Alert(
        "Allocation", "Drawdown", "warning", "quantum_alloc_drawdown_ratio >= 0.15",
        "0s", "The drawdown is {{ $value | humanizePercentage }}",
        "Equity is 15 % or more below its peak: with default settings every target is cut to 0.4.",
        "No fault of the system: for whoever answers for the money.",
    ),
    Alert(
        "Allocation", "OverBudget", "info", more("quantum_alloc_budget_violations_total", "5m", by="symbol"),
        "5m", "{{ $labels.symbol }} is above its budget",
        "A position above its budget, going on for 5 minutes.",
        "New opens of it are blocked in production; budgets fall with stress, positions do not.",
    ),
)  # fmt: skip
INPUT_ALERTS = (
    Alert(
        "Inputs", "GateBlind", "critical", 'quantum_alloc_armed_but_blind{kind="gate"} == 1',
        "0s", "Gate {{ $labels.name }} is armed and sees nothing",
        "It is enforced, was asked, and has decided nothing on real data for 10 minutes: it lets everything pass, or"
        " blocks for want of knowledge.",
        "`quantum-alloc status --inputs` says which input it lacks and why.",
    ),
    Alert(
        "Inputs", "InputBlind", "warning", 'quantum_alloc_armed_but_blind{kind="input"} == 1',
        "0s", f"{WHO} has had no real {{{{ $labels.name }}}} for 10 minutes",
        "An input of a service whose output counts was looked at and never usable for 10 minutes.",
        "`quantum-alloc status --inputs`: the producer stopped, renamed a field, or its clock is off.",
    ),
    Alert(
        "Inputs", "GateFailsOpen", "warning",
        "gate:quantum_alloc_fail_open:ratio_rate30m > 0.2\n"
        f"and on ({ONE}, gate) {ARMED}",
        "5m", "Gate {{ $labels.gate }} lets {{ $value | humanizePercentage }} of the plans pass unseen",
        "An armed gate failed open for more than 20 % of the plans of 30 minutes.",
        "`quantum-alloc status --inputs`: which symbols or inputs are missing.",
    ),
    Alert(
        "Inputs", "InputConstant", "warning", _constant(),
        "0s", f"{{{{ $labels.input }}}} of {WHO} has not changed for an hour",
        "No value of an input that ought to move has changed for an hour, over all symbols: it is fresh, and frozen."
        " What moves with positions or fills alone is told of only where there are any.",
        "Look at its producer: it repeats itself.",
    ),
    Alert(
        "Inputs", "InputsUnreadable", "warning",
        more('quantum_alloc_inputs_total{reason=~"malformed|future_ts|redis_error"}', "5m", by="input, reason"),
        "5m", f"{WHO} cannot read {{{{ $labels.input }}}}: {{{{ $labels.reason }}}}",
        "Inputs that are malformed, from the future or of another type of key, going on for 5 minutes.",
        "`quantum-alloc status --inputs` names what is off the contract; mend its producer.",
    ),
    Alert(
        "Inputs", "PositionsUnusable", "warning", "quantum_alloc_positions_unusable > 0",
        "2m", "{{ $value }} positions are {{ $labels.how }}",
        "Positions counted by old values, or left out of the equity, for 2 minutes.",
        "Look at the fields of `quantum:state:positions:*`, and what writes them.",
    ),
    Alert(
        "Inputs", "ProposalsNeutral", "info",
        f'sum by ({ONE}) (rate(p29_shadow_proposed_total{{reason!="ok"}}[30m]))\n'
        f"  / sum by ({ONE}) (rate(p29_shadow_proposed_total[30m])) > 0.5",
        "30m", "{{ $value | humanizePercentage }} of the proposals are neutral",
        "More than half of the proposals find no usable efficiency, for 30 minutes.",
        "Efficiency needs executions and targets: is P3.1 alive, and are its inputs?",
    ),
    Alert(
        "Inputs", "BaseTargetsUnusable", "info",
        more('quantum_alloc_not_proposed_total{reason!="base_missing"}', "5m", by="reason"),
        "5m", f"{WHO} cannot use targets: {{{{ $labels.reason }}}}",
        "Targets that are stale, malformed or unreadable, going on for 5 minutes.",
        "See P2.9: do its targets still come?",
    ),
    Alert(
        "Inputs", "CandlesLeftOut", "info",
        f'{more(CANDLES, "1h", by="result")}\n'
        f"or ({CANDLES} > 0 and on ({ONE}) time() - quantum_alloc_start_timestamp_seconds < 3600)",
        "0s", "{{ $value | humanize }} candles were {{ $labels.result }}",
        "Candles of the feed's files that were late, repeated or malformed, within an hour or its first.",
        "The log names files and lines.",
    ),
)  # fmt: skip
EXECUTIONS = (
    Alert(
        "Executions", "ExecutionsMissed", "warning", more("quantum_alloc_execution_missed_total", "15m"),
        "0s", f"{WHO} has missed {{{{ $value | humanize }}}} executions",
        "Entries were trimmed before they were read, within 15 minutes.",
        "Make the stream longer, or see why the service was away; what is missed stays missed.",
    ),
    Alert(
        "Executions", "ExecutionsBehind", "warning", "quantum_alloc_execution_behind == 1",
        "5m", f"{WHO} does not keep up with executions", "More to read than a cycle takes, for 5 minutes.",
        "Normal after a first start on a long stream; else raise the limit of entries a cycle.",
    ),
    Alert(
        "Executions", "ExecutionsBeyond", "critical", "quantum_alloc_execution_beyond == 1",
        "1m", f"{WHO} reads no executions", "Its position is beyond the stream, which was begun again, for a minute.",
        "See the how-to on recovery: set `_pos`, or let the stream's ids pass it.",
    ),
    Alert(
        "Executions", "ExecutionStreamRestarted", "warning",
        more("quantum_alloc_execution_stream_restarts_total", "1h"),
        "0s", f"{WHO} found the execution stream begun again", "The stream was deleted or lost within an hour.",
        "Find out who deleted it; scores go on from the state that is kept.",
    ),
    Alert(
        "Executions", "ExecutionsSetAside", "warning",
        more(f'{ENTRIES}{{result!~"applied|open|other_symbol"}}', "15m", by="result"),
        "0s", f"{WHO} sets executions aside: {{{{ $labels.result }}}}",
        "Any entry of the last 15 minutes that could not be read; one without a symbol is no fill to the apply layer"
        " either (`quantum_alloc_executions_unreadable_total`).",
        "They stand in `quantum:stream:execution.deadletter` with the reason; mend who reports executions.",
    ),
    Alert(
        "Executions", "StateMalformed", "warning", more("quantum_alloc_state_malformed_total", "1h"),
        "0s", f"{WHO} began symbols anew", "State that could not be read, within an hour.",
        "Did another program write `quantum:p30:state` or `quantum:p31:state`?",
    ),
)  # fmt: skip
