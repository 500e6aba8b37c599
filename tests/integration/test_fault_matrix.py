"""Which test shows what each fault does to each service: a line of the failure table, a service, and its tests.

``TABLE`` is complete over the lines of the table and the services, by a test, and names only tests that there are. A
test that is in ``everybody`` runs for each service, or for all of them at once, as its parameters say.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from quantum_alloc.services.app import SERVICES
from quantum_alloc.services.cli import main
from quantum_alloc.services.options import GROUPS
from quantum_alloc.services.settings import variables
from tests.support.faulting import NAMES

CUTS, REFUSALS, SLOW, PROCESSES, TYPES, WORLD = (
    f"integration.test_fault_matrix_{name}" for name in ("cuts", "refusals", "slow", "processes", "types", "world")
)
HERE = "integration.test_fault_matrix"
FAULTS, GOVERNOR, MACHINE, ONCE = (
    f"integration.test_{name}" for name in ("faults", "governor_faults", "governor_machine", "exactly_once")
)
APPLY, APPLY_CUT, APPLY_RUN, GOVERNOR_RUN, GOVERNOR_CUT = (
    f"integration.test_{name}"
    for name in ("apply", "apply_schedules", "apply_processes", "governor_processes", "governor_schedules")
)
EFFECTS, GROUPED, DESK, BAD, SENTINEL, SETTINGS = (
    "integration.test_effects", "integration.test_regime_clusters", "integration.test_desk",
    "integration.test_bad_values", "integration.test_sentinel", "services.test_settings",
)  # fmt: skip


@dataclass(frozen=True)
class Line:
    """A line of the table.

    Attributes:
        fault: its first column.
        everybody: tests with every service among their parameters.
        more: what some services have besides: what is special about them.
    """

    fault: str
    everybody: tuple[str, ...]
    more: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


TABLE = (
    Line(
        "Redis down at start",
        (f"{PROCESSES}::test_redis_down_at_start",),
        {
            "allocation": (f"{FAULTS}::test_started_before_redis",),
            "governor": (f"{GOVERNOR_RUN}::test_started_before_redis",),
            "apply": (f"{APPLY_RUN}::test_started_before_redis",),
        },
    ),
    Line(
        "Redis gone in mid-cycle",
        (f"{CUTS}::test_cut_after_every_command", f"{SLOW}::test_killed_server"),
        {
            "allocation": (
                f"{FAULTS}::test_a_cut_after_any_command_leaves_no_half_cycle",
                f"{FAULTS}::test_large_portfolios_are_written_lowered_first",
            ),
            "feed": (f"{FAULTS}::test_what_was_not_written_is_not_remembered",),
            "attribution": (f"{ONCE}::test_a_cut_after_every_command",),
            "efficiency": (f"{ONCE}::test_a_cut_after_every_command",),
            "desk": (f"{DESK}::test_any_cut_proposes_once",),
            "governor": (f"{GOVERNOR_CUT}::test_every_order_of_two_governors_with_a_fault_at_every_point",),
            "apply": (f"{APPLY_CUT}::test_a_fault_at_every_command_of_the_opening",),
        },
    ),
    Line(
        "slow, stuck, half-open",
        (
            f"{SLOW}::test_stuck_server",
            f"{SLOW}::test_slow_server",
            f"{CUTS}::test_reply_swallowed_at_every_command",
        ),
        {
            "allocation": (f"{FAULTS}::test_a_swallowing_server_is_given_up_in_time",),
            "governor": (
                f"{GOVERNOR}::test_an_answer_within_800_ms_or_none",
                f"{GOVERNOR}::test_a_commit_that_comes_too_late_writes_nothing",
            ),
            "apply": (f"{APPLY_RUN}::test_a_server_that_hangs",),
        },
    ),
    Line(
        "reply lost after the work was done",
        (f"{CUTS}::test_reply_lost_at_every_command",),
        {
            "allocation": (f"{FAULTS}::test_a_lost_reply_sends_nothing_twice",),
            "governor": (
                f"{GOVERNOR}::test_a_reply_lost_at_every_command",
                f"{GOVERNOR}::test_a_commit_that_was_given_up_and_comes_after_all",
            ),
            "apply": (f"{APPLY_CUT}::test_a_fault_at_every_command", f"{APPLY_CUT}::test_a_script_that_arrives_late"),
        },
    ),
    Line(
        "OOM, READONLY, MASTERDOWN, LOADING, NOREPLICAS, MISCONF, BUSY",
        (f"{REFUSALS}::test_refusing_server",),
        {
            "allocation": (f"{FAULTS}::test_a_refusing_server", f"{FAULTS}::test_a_busy_server"),
            "governor": (f"{GOVERNOR}::test_a_refusing_server", f"{GOVERNOR}::test_a_server_that_cannot_save"),
        },
    ),
    Line("NOAUTH, NOPERM", (f"{REFUSALS}::test_without_rights",)),
    Line(
        "WRONGTYPE",
        (f"{TYPES}::test_every_key_of_another_type",),
        {
            "allocation": (f"{BAD}::test_a_key_of_another_type", f"{TYPES}::test_an_adjuster_of_another_type"),
            "governor": (f"{GOVERNOR}::test_a_key_of_another_type",),
            "apply": (f"{APPLY}::test_a_key_of_another_type", f"{APPLY}::test_a_permit_of_another_type"),
            "desk": (f"{DESK}::test_a_state_of_another_type_stops_it",),
        },
    ),
    Line(
        "NOSCRIPT, NOGROUP, stream deleted or trimmed",
        (f"{WORLD}::test_streams_deleted_or_trimmed",),
        {
            "attribution": (f"{ONCE}::test_gaps_are_counted", f"{ONCE}::test_an_unreadable_stream_stops_no_score"),
            "efficiency": (f"{ONCE}::test_gaps_are_counted", f"{ONCE}::test_an_unreadable_stream_stops_no_score"),
            "clusters": (f"{GROUPED}::test_bars_are_those_of_the_stream_with_and_without_a_restart",),
            "governor": (
                f"{GOVERNOR}::test_scripts_flushed_while_running",
                f"{GOVERNOR}::test_a_group_destroyed_while_running",
                f"{GOVERNOR}::test_the_stream_of_plans_deleted_while_running",
                f"{GOVERNOR}::test_plans_trimmed_before_they_were_read",
            ),
            "apply": (f"{APPLY}::test_scripts_flushed_while_it_runs", f"{APPLY}::test_events_that_are_trimmed_away"),
        },
    ),
    Line(
        "failover or restart that lost writes",
        (f"{SLOW}::test_killed_server",),
        {
            "portfolio": (f"{EFFECTS}::test_the_peak_outlives_a_restart",),
            "clusters": (f"{GROUPED}::test_a_lost_map_is_written_anew_at_once",),
            "governor": (
                f"{GOVERNOR}::test_a_server_restarted_empty_with_a_journal",
                f"{GOVERNOR}::test_what_the_server_may_have_forgotten_holds_opens_back",
                f"{MACHINE}::test_every_governor_notices_what_the_server_has_lost",
                f"{SENTINEL}::test_a_permit_that_a_failover_lost_is_never_given_again",
            ),
            "apply": (f"{SENTINEL}::test_a_fill_that_a_failover_lost_is_not_filled_again",),
        },
    ),
    Line(
        "clock jumps",
        (f"{WORLD}::test_clock_jumps",),
        {
            "feed": ("services.test_running::test_a_clock_set_back_does_not_silence_the_feed",),
            "governor": (
                f"{GOVERNOR}::test_a_clock_that_cannot_be_trusted",
                f"{GOVERNOR}::test_an_untrusted_clock_raises_no_watermark",
            ),
            "apply": (f"{APPLY}::test_a_clock_that_is_set_back",),
        },
    ),
    Line(
        "crash at any point",
        (
            f"{PROCESSES}::test_killed_at_random_instants",
            f"{CUTS}::test_cut_after_every_command",
            f"{CUTS}::test_reply_lost_at_every_command",
        ),
        {
            "attribution": (f"{ONCE}::test_any_schedule_of_crashes", f"{ONCE}::test_killed_at_random_instants"),
            "efficiency": (f"{ONCE}::test_any_schedule_of_crashes", f"{ONCE}::test_killed_at_random_instants"),
            "desk": (f"{DESK}::test_a_crash_before_the_write_loses_nothing",),
            "governor": (f"{GOVERNOR_RUN}::test_sigkill_at_random_instants",),
            "apply": (f"{APPLY_RUN}::test_sigkill_at_random_instants",),
        },
    ),
    Line(
        "SIGTERM",
        (f"{PROCESSES}::test_sigterm_at_random_instants",),
        {
            "governor": (f"{GOVERNOR_RUN}::test_sigterm_at_random_instants",),
            "apply": (f"{APPLY_RUN}::test_sigterm_at_random_instants",),
        },
    ),
    Line(
        "bad configuration",
        (f"{HERE}::test_bad_settings_of_each_service",),
        {
            "allocation": (
                f"{SETTINGS}::test_the_table_of_bad_values_is_long_enough",
                f"{SETTINGS}::test_every_error_is_told_at_once",
                f"{SETTINGS}::test_an_inline_comment_is_named_as_such",
                f"{SETTINGS}::test_an_unknown_name_that_looks_like_ours_is_an_error_with_a_suggestion",
                f"{SETTINGS}::test_retired_variables_are_warned_of_once_and_ignored",
                f"{SETTINGS}::test_a_mode_is_never_an_error",
            ),
            "governor": (f"{SETTINGS}::test_an_apply_mode_that_is_none_is_dry_run",),
        },
    ),
    Line("port taken", (f"{PROCESSES}::test_port_taken",)),
    Line(
        "10,000 symbols, 1 MB field, binary, poison entry, flood",
        (f"{WORLD}::test_hostile_world",),
        {
            "allocation": (
                f"{EFFECTS}::test_ten_thousand_symbols_in_one_cycle",
                f"{EFFECTS}::test_symbols_that_come_and_go_leave_labels_bounded",
                f"{BAD}::test_a_bad_number",
            ),
            "attribution": (f"{ONCE}::test_large_entries_are_met_a_few_at_a_time",),
            "efficiency": (
                f"{ONCE}::test_a_flood_of_malformed_entries_is_cut_into_transactions",
                f"{ONCE}::test_ten_thousand_symbols_come_and_go",
            ),
            "regime": (f"{GROUPED}::test_malformed_bars_are_none",),
            "clusters": (f"{GROUPED}::test_five_hundred_symbols_fit",),
            "governor": (f"{GOVERNOR}::test_a_flood", f"{GOVERNOR}::test_a_plan_that_fails_every_time"),
            "apply": (f"{APPLY}::test_a_flood_of_permits_and_events",),
        },
    ),
    Line(
        "hostile names",
        (f"{WORLD}::test_names_cannot_be_aliased", f"{WORLD}::test_hostile_world"),
        {
            "allocation": (f"{BAD}::test_hostile_names",),
            "governor": (f"{GOVERNOR}::test_an_id_that_names_no_key",),
            "clusters": (f"{GROUPED}::test_a_bad_static_map_is_one_sentence_and_78",),
        },
    ),
)


def the(test: str) -> Any:
    """A test by its name."""
    module, _, name = test.partition("::")
    return getattr(importlib.import_module(f"tests.{module}"), name)


def parameters(test: Any) -> Iterator[object]:
    """Every value that a test runs with, those inside a tuple too."""
    for mark in getattr(test, "pytestmark", ()):
        for given in mark.args[1] if mark.name == "parametrize" else ():
            for value in given if isinstance(given, tuple) else (given,):
                yield from value if isinstance(value, tuple) else (value,)


def test_the_table_is_complete(shared: Path) -> None:
    """Each line of the failure table is here, once, in its order, and has a test for each service."""
    text = (shared / "spec" / "failure.md").read_text(encoding="utf-8").partition("## 1.")[2].partition("## 2.")[0]
    rows = [row.split("|")[1].strip() for row in text.splitlines() if row.startswith("|")]
    assert [line.fault for line in TABLE] == rows[2:]


@pytest.mark.parametrize("line", TABLE, ids=[line.fault[:30] for line in TABLE])
def test_each_line_has_a_test_for_each_service(line: Line) -> None:
    """Those that say that they run for everybody do, and every test that is named is there."""
    for name in line.everybody:
        given = set(parameters(the(name)))
        assert given.issuperset(SERVICES), f"{name} leaves out {sorted(SERVICES.keys() - given)}"
    assert line.everybody
    assert line.more.keys() <= SERVICES.keys()
    for names in line.more.values():
        assert all(inspect.isfunction(the(name)) for name in names)


def test_no_test_of_the_matrix_is_left_out() -> None:
    """Whatever these files test stands in the table."""
    named = {name for line in TABLE for name in (*line.everybody, *(n for ns in line.more.values() for n in ns))}
    for module in (CUTS, REFUSALS, SLOW, PROCESSES, TYPES, WORLD):
        found = vars(importlib.import_module(f"tests.{module}"))
        tests = {f"{module}::{name}" for name in found if name.startswith("test_")}
        assert tests <= named, sorted(tests - named)


@pytest.mark.parametrize("name", NAMES)
def test_bad_settings_of_each_service(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Every variable of a service is bad, with an inline comment: each is told at once with its raw text, the comment
    is named as such, a mode is no error, and the exit code is 78."""
    given = [v.spec for v in variables(GROUPS[name])]
    environ = {spec.env: "?? # x" for spec in given}
    code = main(["run", name, "--once"], {**environ, "LOG_LEVEL": "ERROR"})
    err = capsys.readouterr().err
    assert code == 78
    modes = {"P28_MODE", "P29_MODE", "P30_MODE", "P31_MODE", "APPLY_MODE"}
    told = {env for env in environ if f"{env}='?? # x'" in err}
    assert told == environ.keys() - modes, sorted(environ.keys() - modes - told)
    assert "inline comments" in err
    assert "Traceback" not in err
