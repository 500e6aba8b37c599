"""The ledger of vacuity of one service: what is armed, what is counted, and what is told of it."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from quantum_alloc.adapters.input_table import INPUTS, NEVER_COUNTS, STATES, is_armed
from quantum_alloc.adapters.metrics import COMMON, TABLES, Metrics
from quantum_alloc.adapters.registry import RECORDS
from quantum_alloc.core.returns import Bars
from quantum_alloc.services.logs import count_lines, say
from quantum_alloc.services.vacuity import Watch, bars_seen

BLIND = "quantum_alloc_armed_but_blind"
CLOSED = {"reason", "code", "result", "outcome", "fate", "level", "data_source", "action", "gate", "input"}
"""Labels whose values are a closed set."""


@pytest.mark.parametrize("service", TABLES)
def test_every_counter_over_a_closed_set_is_there_at_nothing(service: str) -> None:
    """Prometheus sees the first one as an increase only where there was a 0 before it."""
    page = Metrics(service).render().decode()
    rows = (*COMMON, *TABLES[service])
    counted = [r for r in rows if r.kind == "counter" and set(r.labels) <= CLOSED and r.labels]
    assert counted
    for row in counted:
        there = [line for line in page.splitlines() if line.startswith(f"{row.name}{{")]
        wanted = len(row.start) if row.name != "quantum_alloc_inputs_total" else len(INPUTS[service]) * len(STATES)
        assert len(there) == wanted, row.name
        assert wanted or not INPUTS[service], row.name
        assert all(line.endswith(" 0.0") for line in there), row.name
    for row in rows:
        if row.kind == "counter" and not row.labels:
            assert f"{row.name} 0.0" in page.splitlines()


@pytest.mark.parametrize("service", INPUTS)
def test_what_is_armed_is_there_from_the_start(service: str) -> None:
    """At 0: an alert can tell what is not blind from what nobody watches."""
    metrics = Metrics(service)
    watch = Watch(metrics, "enforce")
    expected = {("input", r.name) for r in INPUTS[service] if is_armed(service, "enforce", r)}
    assert watch.armed == expected
    assert metrics.values(BLIND) == dict.fromkeys(expected, 0.0)
    assert Watch(Metrics(service), "shadow").armed == frozenset()


def test_the_proposer_counts_in_no_mode() -> None:
    """Its output changes nothing that counts."""
    assert Watch(Metrics("proposer"), "enforce").armed == frozenset()


@pytest.mark.parametrize("service", INPUTS)
def test_every_input_comes_from_a_row_of_the_registry(service: str) -> None:
    """So that the ledger can hold live records against the contract."""
    assert {r.record for r in INPUTS[service]} <= RECORDS.keys()
    assert len({r.name for r in INPUTS[service]}) == len(INPUTS[service])


@pytest.mark.parametrize("service", INPUTS)
def test_the_reasons_stand_in_the_docs(service: str) -> None:
    """Why an input may be absent, or stand still, is for people to judge."""
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "watch-inputs.md").read_text()
    for row in INPUTS[service]:
        line = next(one for one in page.splitlines() if one.startswith(f"| `{service}` | `{row.name}` |"))
        absent, constant = (cell.strip() for cell in line.split("|")[3:5])
        assert absent == ("never" if service in NEVER_COUNTS else f"no: {row.absent}" if row.absent else "yes")
        moves = f"yes, where there are {row.rests}" if row.rests else "yes"
        assert constant == (f"no: {row.constant}" if row.constant else moves)


def test_a_service_goes_blind_at_ten_minutes_and_says_so_once(heard: pytest.LogCaptureFixture) -> None:
    """At 600 s and not before, with time alone; one line when it begins and one when it ends."""
    metrics = Metrics("allocation")
    watch = Watch(metrics, "enforce", unused=("proposal",))
    watch.inputs(1_000.0, {("budget", "stale"): 3})
    for now, blind in ((1_000.0, 0.0), (1_599.999, 0.0), (1_600.0, 1.0), (1_700.0, 1.0)):
        watch.tell(now)
        assert metrics.value(BLIND, "input", "budget") == blind
    assert metrics.value("quantum_alloc_real_data_age_seconds", "input", "budget") == 700.0
    watch.inputs(1_701.0, {("budget", "ok"): 1, ("budget", "missing"): 1})
    watch.tell(1_701.0)
    assert metrics.value(BLIND, "input", "budget") == 0.0
    assert metrics.value("quantum_alloc_real_data_ratio", "input", "budget") == 0.5
    told = [(r.levelname, r.fields["to"], r.fields["what"]) for r in heard.records]  # type: ignore[attr-defined]
    assert told == [("WARNING", "blind", "input budget"), ("WARNING", "ok", "input budget")]


def test_what_may_be_absent_is_no_look_while_it_is(heard: pytest.LogCaptureFixture) -> None:
    """A position that nobody holds says nothing; one that is out of date does."""
    metrics = Metrics("budget")
    watch = Watch(metrics, "enforce")
    watch.inputs(0.0, {("position", "missing"): 4})
    watch.tell(0.0)
    assert metrics.values("quantum_alloc_real_data_ratio") == {}
    assert metrics.values("quantum_alloc_real_data_age_seconds") == {}
    watch.tell(900.0)
    assert metrics.value("quantum_alloc_inputs_total", "position", "missing") == 4.0
    watch.inputs(900.0, {("position", "missing"): 4, ("position", "stale"): 1})
    assert metrics.value("quantum_alloc_real_data_ratio", "input", "position") == 0.0
    assert not heard.records


def test_none_where_some_were_due_is_a_look_at_nothing() -> None:
    """All budgets are gone, and with them the universe: that is blindness, not idleness."""
    metrics = Metrics("allocation")
    watch = Watch(metrics, "enforce")
    watch.inputs(0.0, {("budget", "ok"): 2}, due=("budget",))
    watch.inputs(60.0, {}, due=("budget",))
    watch.tell(600.0)
    assert metrics.value(BLIND, "input", "budget") == 1.0


def test_only_what_ought_to_move_is_compared() -> None:
    """A map of clusters stands for hours; a budget does not."""
    metrics = Metrics("allocation")
    watch = Watch(metrics, "enforce")
    for now in (0.0, 4_000.0):
        watch.inputs(now, {}, {"budget": {"A": 1.0}, "clusters": {"": "map"}})
    assert metrics.values("quantum_alloc_input_constant_seconds") == {("budget",): 4_000.0}


def test_bars_are_fresh_as_the_regime_sees_them() -> None:
    """Three bars, and 180 s at least; a symbol without any is missing."""
    one = Bars(np.array([60.0, 120.0]), np.array([1.0, 2.0]), np.array([60.0, 60.0]))
    looked, values = bars_seen({"A": one}, ("A", "B"), 300.0)
    assert Counter(looked) == {("bars", "ok"): 1, ("bars", "missing"): 1}
    assert values == {"bars": {"A": 2.0}}
    assert bars_seen({"A": one}, ("A",), 301.0) == ({("bars", "stale"): 1}, {"bars": {}})


def test_lines_are_counted_for_the_service_and_those_of_the_process_for_all() -> None:
    """WARNING and ERROR, shown or not; INFO is not counted, and nobody is kept alive by it."""
    one, two = Metrics("feed"), Metrics("budget")
    count_lines("quantum_alloc.feed", one)
    count_lines("quantum_alloc.budget", two)
    log = logging.getLogger("quantum_alloc.feed")
    level, log.level = log.level, logging.CRITICAL
    try:
        say(log, logging.INFO, "process", "one")
        say(log, logging.WARNING, "process", "two")
        say(log, logging.ERROR, "process", "three")
        say(logging.getLogger("quantum_alloc"), logging.ERROR, "process", "four")
    finally:
        log.level = level
    name, last = "quantum_alloc_log_lines_total", "quantum_alloc_last_log_line_timestamp_seconds"
    assert one.values(name) == {("WARNING",): 1.0, ("ERROR",): 2.0}
    assert two.values(name) == {("ERROR",): 1.0}
    assert one.value(last, "ERROR") >= one.value(last, "WARNING") > 1.6e9
    assert two.values(last).keys() == {("ERROR",)}
    del two
    say(logging.getLogger("quantum_alloc"), logging.ERROR, "process", "five")
    assert one.value(name, "ERROR") == 3.0
