"""How results are counted and shown, and judges on facts that no running installation has."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from quantum_alloc.services import app, proof_checks, proof_lane, prove_cli
from quantum_alloc.services import proof_agree as agree
from quantum_alloc.services import proof_conduct as conduct
from quantum_alloc.services import proof_inputs as inputs
from quantum_alloc.services import proof_records as records
from quantum_alloc.services import proof_services as services
from quantum_alloc.services.options import load
from quantum_alloc.services.proof import GROUPS, Count, Result, counted, not_needed
from quantum_alloc.services.proof_pages import Page, parsed, patience
from quantum_alloc.services.proof_seen import Facts, Key, Tail

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "prove.md"
NOW = 1_767_268_800.0
SETTINGS = load(list(app.SERVICES), {})


def page(name: str, **health: object) -> Page:
    """A service that answers."""
    return Page(name, 1, 200, {"service": name, "cycles": 3, "interval_s": 5.0, **health}, 200, asked=NOW)


def facts(**changed: object) -> Facts:
    """An installation of which every service answers, with nothing on the server."""
    pages = {name: page(name) for name in app.SERVICES}
    return replace(Facts(SETTINGS, NOW, NOW, pages, pages), **changed)  # type: ignore[arg-type]


def seen(f: Facts, **changed: Page) -> Facts:
    """Other pages at the second look."""
    return replace(f, second={**f.second, **changed})


def test_a_check_without_a_result_has_failed() -> None:
    """What was due and has no result counts as failed; passed, failed and not needed are counted apart."""
    told = [Result("governor", "up", "a", True, ""), not_needed("governor", "up", "b", "it does not run")]
    found = counted(told, [("governor", "up"), ("governor", "ready")])
    assert found == [Count("governor", "up", 1, 0, 1), Count("governor", "ready", 0, 0, 0)]
    assert [c.ok for c in found] == [True, False]
    assert [r.verdict for r in (*told, Result("governor", "up", "c", False, ""))] == ["PASS", "NOT NEEDED", "FAIL"]


def test_a_judge_that_looks_at_nothing_fails() -> None:
    """Where no service of a group answers, ``up`` fails, and so does every check that had nothing to look at."""
    nobody = {name: Page(name, 1) for name in app.SERVICES}
    found = proof_checks.judged(facts(first=nobody, second=nobody), tuple(GROUPS))
    missed = {r.check for r in found if r.detail == proof_checks.NOTHING}
    assert missed >= {"ready", "on-time", "one-version", "metrics-there", "metrics-moving", "clean-logs", "not-blind"}
    assert all(not r.ok for r in found if r.check in missed)
    assert {r.case for r in found if r.check == "up" and r.needed} == {
        n for ns in services.REQUIRED.values() for n in ns
    }


def test_every_check_is_of_a_group_and_told_in_the_docs() -> None:
    """Ids are unique over checks and cases, groups are known, and docs/how-to/prove.md has a line for each."""
    ids = [c.id for c in proof_checks.CHECKS] + list(proof_lane.CASES)
    assert len(ids) == len(set(ids))
    assert {g for c in proof_checks.CHECKS for g in c.groups} <= GROUPS.keys()
    told = set(re.findall(r"^\| `([a-z][a-z0-9-]*)` \|", PAGE.read_text(), re.MULTILINE))
    assert told == {*ids, prove_cli.NOTHING_LEFT}


@pytest.mark.parametrize(
    ("name", "changed", "part"),
    [
        ("up", {"service": "feed"}, "feed answers on port"),
        ("up", {"service": None}, "another program answers"),
    ],
)
def test_another_program_on_a_port(name: str, changed: dict[str, object], part: str) -> None:
    """Who answers in the place of a service is named."""
    other = page("allocation", **changed)
    pages = {**facts().first, "allocation": other}
    found = next(f for f in services.up(facts(first=pages, second=pages), "allocation") if f.case == "allocation")
    assert not found.ok, name
    assert part in found.detail


def test_a_service_that_comes_and_goes_is_not_up() -> None:
    """One look of two is not enough, also for a service that need not run."""
    gone = seen(facts(), feed=Page("feed", 1), allocation=Page("allocation", 1))
    wrong = {f.case for f in services.up(gone, "allocation") if not f.ok}
    assert wrong == {"feed", "allocation"}


def test_a_service_that_was_started_again_has_not_moved() -> None:
    """Fewer cycles than before are another process."""
    f = seen(facts(), proposer=page("proposer", cycles=1))
    assert services.metrics_moving(f, "proposer") == [
        services.Finding("proposer", False, "it was started again while it was looked at")
    ]


def test_metrics_move_with_the_page() -> None:
    """Cycles that the page tells and the metrics do not count fail; a service that finishes none fails too."""

    def told(cycles: int, counted: int) -> Page:
        samples, families = parsed(f'quantum_alloc_cycles_total{{outcome="ok"}} {counted}\n')
        return replace(page("proposer", cycles=cycles), samples=samples, families=families)

    def moves(cycles: int, counted: int) -> bool:
        base = facts()
        f = replace(seen(base, proposer=told(cycles, counted)), first={**base.first, "proposer": told(3, 3)})
        return services.metrics_moving(f, "proposer")[0].ok

    assert [moves(5, 5), moves(4, 5), moves(5, 3), moves(5, 4), moves(3, 3)] == [True, True, False, False, False]


@pytest.mark.parametrize(("age", "ok"), [(15.0, True), (15.1, False)])
def test_a_service_of_events_is_alive_while_its_loop_turns(age: float, ok: bool) -> None:
    """Nothing need come, but the loop turns within three intervals, and within 15 s."""
    f = seen(facts(), governor=page("governor", loop_age_s=age))
    assert services.metrics_moving(f, "governor")[0].ok is ok


def test_clocks_beside_the_machines_are_for_a_kept_demo_alone() -> None:
    """All services 100 s off: fine where CLOCK says simulated, a fault elsewhere; a cycle that is not of now always."""
    off = {n: page(n, clock_offset_s=100.0, last_cycle_at=NOW + 100.0) for n in app.SERVICES}
    simulated = load(list(app.SERVICES), {"CLOCK": "simulated"})
    found = {
        name: [f.ok for f in services.one_clock(facts(first=off, second=off, settings=s), "proposer")]
        for name, s in (("kept", simulated), ("real", SETTINGS))
    }
    assert found == {"kept": [True, True], "real": [False, True]}
    apart = {
        n: page(n, clock_offset_s=o, last_cycle_at=NOW + o)
        for n, o in (*dict.fromkeys(off, 9.0).items(), ("desk", 7.0))
    }
    told = services.one_clock(facts(first=apart, second=apart, settings=simulated), "governor")
    assert [f.case for f in told if not f.ok] == ["desk"]
    for at in (NOW + 3.0, NOW - 30.0):
        late = {n: page(n, last_cycle_at=at) for n in app.SERVICES}
        assert not services.one_clock(facts(first=late, second=late), "proposer")[0].ok


def test_errors_of_an_hour_ago_are_forgiven() -> None:
    """A line of ERROR counts for an hour; one without a time that came between the looks counts too."""

    def f(ago: float | None, before: float = 1.0) -> Facts:
        last = (
            f'quantum_alloc_last_log_line_timestamp_seconds{{level="ERROR"}} {NOW - ago}\n' if ago is not None else ""
        )

        def told(errors: float) -> Page:
            lines = f'quantum_alloc_log_lines_total{{level="ERROR"}} {errors}\n'
            warnings = 'quantum_alloc_log_lines_total{level="WARNING"} 2\n'
            samples, families = parsed(lines + warnings + last)
            return replace(page("proposer"), samples=samples, families=families)

        base = facts()
        return replace(seen(base, proposer=told(1.0)), first={**base.first, "proposer": told(before)})

    found = [conduct.clean_logs(x, "proposer")[0].ok for x in (f(3601), f(3600), f(None), f(3601, 0.0))]
    assert found == [True, False, True, False]
    assert not conduct.clean_logs(facts(), "proposer")[0].ok


def test_an_empty_stream_is_a_fault_unless_the_service_says_why() -> None:
    """Cycles must be there; a regime need not while the service tells why; attributions need executions."""
    empty = {r.case: r for r in records.streams(facts(), "allocation")}
    assert not empty["cycles"].ok
    assert not empty["regimes"].ok
    assert not empty["violations"].needed
    said = seen(facts(), regime=page("regime", nothing_written="too_few_bars"))
    assert not {r.case: r for r in records.streams(said, "allocation")}["regimes"].needed
    assert not {r.case: r for r in records.streams(facts(), "efficiency")}["attributions"].needed
    samples, families = parsed('p30_attributions_computed_total{symbol="BTCUSDT"} 3\n')
    some = seen(facts(), attribution=replace(page("attribution"), samples=samples, families=families))
    assert not {r.case: r for r in records.streams(some, "efficiency")}["attributions"].ok
    for n in (0, 3):
        samples, families = parsed(f"quantum_alloc_symbols {n}\n")
        of = seen(facts(), efficiency=replace(page("efficiency"), samples=samples, families=families))
        told = {r.case: r for r in records.streams(of, "efficiency")}["efficiencies"]
        assert (told.ok, told.needed) == ((True, False) if n == 0 else (False, True))
    gone = seen(facts(), attribution=Page("attribution", 1))
    assert not {r.case: r for r in records.streams(gone, "efficiency")}["attributions"].ok


def test_what_only_enforce_writes_is_looked_for_in_its_lane() -> None:
    """Allocation in shadow: no target is due; with the shadow lane it is due there; in enforce live."""
    entry = {"symbol": b"BTCUSDT", "ts": b"1767268800"}
    tails = {"decisions": Tail("decisions", "d", ("1-0",), (entry,))}
    fields = {"target_usd": b"5", "confidence": b"1", "timestamp": b"1767268800"}
    live, aside = (Key(f"{p}target", "k", "BTCUSDT", "hash", 9, fields) for p in ("", "shadow_"))
    lane = load(list(app.SERVICES), {"SHADOW_LANE": "1"})

    def verdict(mode: str, settings: object, *keys: Key) -> tuple[bool, bool]:
        f = seen(facts(tails=tails, settings=settings, keys=keys, symbols=("BTCUSDT",)),
                 allocation=page("allocation", mode=mode))  # fmt: skip
        found = next(r for r in inputs.inputs_fresh(f, "efficiency") if r.case == "target")
        return found.ok, found.needed

    assert verdict("shadow", SETTINGS) == (True, False)
    assert verdict("shadow", lane, aside) == (True, True)
    assert verdict("shadow", lane, live) == (False, True)
    assert verdict("enforce", SETTINGS, live) == (True, True)
    assert verdict("enforce", SETTINGS) == (False, True)
    silent = seen(facts(tails={"decisions": replace(tails["decisions"], entries=({**entry, "mode": b"enforce"},))},
                        symbols=("BTCUSDT",)), allocation=Page("allocation", 1))  # fmt: skip
    assert [r.ok for r in inputs.inputs_fresh(silent, "proposer") if r.case == "target"] == [False]


def test_a_record_that_cannot_be_read_fails_its_check() -> None:
    """Cycles, caps and records of another program are told of, and never raise."""
    cycle = {"cycle_id": b"a", "skipped": b"[", "ts": b"1"}
    decision = {"cycle_id": b"a", "symbol": b"BTCUSDT", "target_usd": b"x", "ts": b"1"}
    tails = {
        "cycles": Tail("cycles", "c", ("1-0",), (cycle,)),
        "decisions": Tail("decisions", "d", ("1-0",), (decision,)),
        "regimes": Tail("regimes", "r", ("1-0",), ({"regime": b"TREND"},)),
    }
    f = facts(tails=tails)
    for judge in (agree.cycle_complete, agree.caps, agree.recompute):
        found = judge(f, "allocation")
        assert found
        assert not any(r.ok for r in found)


def test_a_cycle_whose_decisions_were_not_all_read_is_left_out() -> None:
    """Of a universe that is too large to be read whole a cycle is judged where all its decisions were read."""
    cycle = {"cycle_id": b"a", "skipped": b"{}", "targets": b"2", "symbols": b"2"}
    made = tuple({"cycle_id": b"a", "symbol": s} for s in (b"BTCUSDT", b"ETHUSDT"))

    def verdict(at: str, first: str, *, whole: bool, n: int = 2) -> tuple[bool, bool]:
        ids, decisions = (first, "99-0")[:n], made[:n]
        tails = {
            "cycles": Tail("cycles", "c", (at,), (cycle,)),
            "decisions": Tail("decisions", "d", ids, decisions, whole),
        }
        (found,) = agree.cycle_complete(facts(tails=tails), "allocation")
        return found.ok, found.needed

    assert verdict("50-0", "50-0", whole=True) == (True, True)
    assert verdict("50-0", "49-7", whole=False) == (True, True)
    assert verdict("50-0", "49-7", whole=False, n=1) == (False, True)
    assert verdict("50-0", "50-1", whole=False, n=1) == (True, False)


def test_the_wait_is_that_of_the_slowest_with_a_cadence() -> None:
    """Three intervals and 5 s of the slowest; services that wait for events are not waited for."""
    pages = {**facts().first, "regime": page("regime", interval_s=30.0), "desk": page("desk", interval_s=60.0)}
    assert patience(pages, ("allocation", "regime", "desk")) == 95.0
    assert patience(pages, ("desk",)) == 5.0


def test_fills_need_permits_of_their_own() -> None:
    """A second fill of a permit, and one without, are told; fills of which the permit may be beyond are left out."""

    def tail(name: str, *entries: tuple[str, dict[str, bytes]], whole: bool = True) -> Tail:
        return Tail(name, name, tuple(at for at, _ in entries), tuple(e for _, e in entries), whole)

    permit = ("1000-0", {"event": b"PERMIT", "plan_id": b"a"})

    def fills(*plans: bytes, at: int = 70_000, whole: bool = True) -> tuple[bool, bool]:
        entries = [(f"{at}-{n}", {"plan_id": plan}) for n, plan in enumerate(plans)]
        f = facts(tails={"events": tail("events", permit, whole=whole), "executions": tail("executions", *entries)})
        found = inputs._fills(f)
        return found.ok, found.needed

    assert fills(b"a") == (True, True)
    assert fills(b"a", b"a") == (False, True)
    assert fills(b"b") == (False, True)
    assert fills(b"b", at=2_000, whole=False) == (True, False)
    assert fills() == (True, False)
