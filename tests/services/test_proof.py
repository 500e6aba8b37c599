"""How results are counted and shown, and judges on facts that no running installation has."""

from __future__ import annotations

import contextlib
import re
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from quantum_alloc.adapters.apply_wire import Account, Loaded
from quantum_alloc.adapters.embedded import free_port
from quantum_alloc.adapters.key_patterns import KNOWN
from quantum_alloc.adapters.registry import RECORDS
from quantum_alloc.adapters.server_check import Facts as Server
from quantum_alloc.services import app, proof_checks, proof_facts, proof_lane, proof_pages, prove_cli
from quantum_alloc.services import proof_agree as agree
from quantum_alloc.services import proof_conduct as conduct
from quantum_alloc.services import proof_inputs as inputs
from quantum_alloc.services import proof_permits as permits
from quantum_alloc.services import proof_records as records
from quantum_alloc.services import proof_said as said
from quantum_alloc.services import proof_services as services
from quantum_alloc.services.options import Settings, load
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


def test_an_answer_that_is_kept_for_long_is_no_fault() -> None:
    """A tombstone lives as long as the oldest plan of the stream has stood there: after a month that is more than
    settings say. One without an expiry is a fault, and so is any other key that lives longer."""
    told = {}
    for name, ttl_s in (("tombstone", 90 * 86_400), ("tombstone", -1), ("block", 90 * 86_400)):
        found = records.ttl(facts(keys=(Key(name, "k", "p1", "string", ttl_s),)), "governor")
        told[name, ttl_s] = next(f.ok for f in found if f.case == name)
    assert list(told.values()) == [True, False, False]


def test_a_judge_that_looks_at_nothing_fails() -> None:
    """Where no service of a group answers, ``up`` fails, and so does every check that had nothing to look at."""
    nobody = {name: Page(name, 1, why=proof_pages.NOBODY) for name in app.SERVICES}
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


def at_ports(**ports: int) -> Settings:
    """The settings with some services elsewhere."""
    moved: Any = {n: replace(SETTINGS.services[n], port=p) for n, p in ports.items()}  # type: ignore[type-var]
    return replace(SETTINGS, services={**SETTINGS.services, **moved})


OURS = b'HTTP/1.0 200 OK\r\n\r\n{"service": "feed", "cycles": 3, "interval_s": '
ANSWERS: tuple[tuple[str, bytes, float, str], ...] = (
    ("page", b"HTTP/1.0 404 Not Found\r\n\r\n<html>", 0.0, "another program answers"),
    ("no HTTP", b"-ERR unknown command\r\n", 0.0, "another program answers"),
    ("bytes", bytes(range(256)) * 9, 0.0, "another program answers"),
    ("deep", b"HTTP/1.0 200 OK\r\n\r\n" + b"[" * 100_000, 0.0, "another program answers"),
    ("list", b"HTTP/1.0 200 OK\r\n\r\n[]", 0.0, "another program answers"),
    ("text for a number", OURS + b'"5"}', 0.0, "another program answers"),
    ("endless interval", OURS + b"1e999}", 0.0, "another program answers"),
    ("stranger", b'HTTP/1.0 200 OK\r\n\r\n{"service": "x"}', 0.0, "another program answers"),
    ("the desk", b'HTTP/1.0 200 OK\r\n\r\n{"service": "desk"}', 0.0, "desk answers"),
    ("nothing", b"", 0.0, "another program answers"),
    ("long", b"HTTP/1.0 200 OK\r\n\r\n" + b"[" * 300_000, 0.0, "no whole answer came (it is too long)"),
    ("slow", b"HTTP/1.0 200 OK\r\n" * 50, 0.02, "no whole answer came"),
)


@pytest.mark.parametrize("answer", ANSWERS, ids=[a[0] for a in ANSWERS])
def test_another_program_on_a_port(answer: tuple[str, bytes, float, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever answers in a service's place is a fault, told in one sentence in bounded time, where none is due too."""
    _, told, pause_s, part = answer
    monkeypatch.setattr(proof_pages, "ASK_TIMEOUT_S", 0.2)
    monkeypatch.setattr(proof_pages, "PAGE_LIMIT_BYTES", 200_000)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answers() -> None:
            with contextlib.suppress(OSError):
                while True:
                    caller, _ = server.accept()
                    with caller, contextlib.suppress(OSError):
                        caller.recv(1000)
                        for at in range(0, len(told), 20) if pause_s else (0,):
                            caller.sendall(told[at : at + 20] if pause_s else told)
                            time.sleep(pause_s)

        Thread(target=answers, daemon=True).start()
        settings = at_ports(feed=server.getsockname()[1])
        begun = time.monotonic()
        first, second = (proof_pages.page(settings, "feed", is_first=n) for n in (True, False))
        assert time.monotonic() - begun < 2.0
        server.shutdown(socket.SHUT_RDWR)
    pages = {**facts().first, "feed": first}
    f = facts(first=pages, second={**pages, "feed": second})
    found = next(f for f in services.up(f, "allocation") if f.case == "feed")
    assert not found.ok
    assert found.detail.startswith(part)


@pytest.mark.parametrize("value", ['"5"', "1e999", "NaN", "true", "[]", "9" * 400])
def test_a_page_with_a_number_that_is_none_is_not_ours(value: str) -> None:
    """What is not finite, or no number at all, is refused where it is read: nobody waits three endless intervals."""
    for name in proof_pages.NUMBERS:
        with pytest.raises((ArithmeticError, TypeError, ValueError)):
            proof_pages._health(f'{{"service": "feed", "{name}": {value}}}'.encode())
    assert proof_pages._health(b'{"cycles": 3, "last_cycle_at": null, "interval_s": 0.5}')["cycles"] == 3


def test_where_nothing_answers_is_told_from_another_program() -> None:
    """Of a port that refuses: a service that must run is a fault, one that others may stand in for is not needed."""
    settings = at_ports(feed=free_port(), budget=free_port())
    gone = {n: proof_pages.page(settings, n) for n in ("feed", "budget")}
    pages = {**facts().first, **gone}
    found = {r.case: (r.ok, r.needed) for r in services.up(facts(first=pages, second=pages), "allocation")}
    assert (found["feed"], found["budget"]) == ((True, False), (False, True))


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
    for why, is_early in (("too_few_bars", True), ("no_bars", False), ("stale_bars", False), ("", False)):
        said = seen(facts(), regime=page("regime", nothing_written=why))
        for judge in (records.streams, records.streams_moving):
            told = {r.case: r for r in judge(said, "allocation")}["regimes"]
            assert (told.ok, told.needed) == ((True, False) if is_early else (False, True)), why
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


def test_a_market_that_is_too_young_is_told_from_one_without_bars() -> None:
    """No regime and no clusters are due below their count of bars; where bars do not come the inputs are not there."""

    def verdicts(why: str) -> set[tuple[bool, bool]]:
        pages = {n: page(n, nothing_written=why) for n in ("regime", "clusters")}
        told = {r.case: r for r in inputs.inputs_fresh(seen(facts(), **pages), "allocation")}
        return {(told[n].ok, told[n].needed) for n in ("regime", "clusters", "stress")}

    assert verdicts("too_few_bars") == verdicts("no_correlations") == {(True, False)}
    assert verdicts("no_bars") == verdicts("stale_bars") == verdicts("") == {(False, True)}


def test_an_empty_installation_passes_no_group() -> None:
    """Services that are well and have nothing at all to decide about prove nothing, in whatever group."""
    idle = {n: page(n, mode="shadow", nothing_written="no_bars") for n in app.SERVICES}
    f = facts(first=idle, second={n: replace(p, health={**p.health, "cycles": 9}) for n, p in idle.items()})
    for group in GROUPS:
        found = {r.case: r for r in inputs.inputs_fresh(f, group)}
        assert not found["symbols"].ok, group
    assert all(not r.needed for r in conduct.shadow_writes_nothing(f, "efficiency"))
    written = Key("efficiency", "k", "BTCUSDT", "hash", 9, {"ts": b"1"})
    told = conduct.shadow_writes_nothing(replace(f, keys=(written,)), "efficiency")
    assert [r.ok for r in told if r.case == "efficiency"] == [False], "who is idle and writes is not in shadow"
    some = replace(f, keys=(Key("position", "k", "BTCUSDT", "hash", -1),))
    assert {r.case: r for r in inputs.inputs_fresh(some, "proposer")}["symbols"].ok


def test_a_stream_of_another_type_is_a_fault() -> None:
    """What cannot hold entries is not an empty stream, whether or not one is due."""
    for name, group in (("violations", "allocation"), ("plans", "governor"), ("cycles", "allocation")):
        f = facts(tails={name: Tail(name, "k", kind="string")})
        found = {r.case: r for r in records.streams(f, group)}[name]
        assert (found.ok, found.detail) == (False, "k is a string, not a stream: delete it, its writer makes it anew")
    every = {"streams", "streams-moving", "recompute", "confidence"}
    streams = {
        "cycles": ("allocation", {*every, "caps", "cycle-complete"}),
        "regimes": ("allocation", {*every, "inputs-fresh"}),
        "decisions": ("allocation", {*every, "caps", "hashes-agree"}),
        "attributions": ("efficiency", {*every, "hashes-agree", "inputs-fresh"}),
        "efficiencies": ("efficiency", {*every, "hashes-agree"}), "proposals": ("proposer", {*every, "hashes-agree"}),
    }  # fmt: skip
    enforcing = {n: page(n, mode="enforce") for n in app.SERVICES}
    for name, (group, due) in streams.items():
        f = facts(tails={name: Tail(name, "k", kind="string")}, second=enforcing)
        told = {r.check: r.ok for r in proof_checks.judged(f, (group,)) if r.detail.startswith("k is a string, not")}
        assert told == dict.fromkeys(due, False), name
    f = facts(
        tails={"bars:A": Tail("bars", "a", ("1-0",), ({},), kind="stream"), "bars:B": Tail("bars", "b", kind="set")}
    )
    assert {r.case: r.detail for r in records.streams(f, "allocation")}["bars"].startswith("b is a set, not a stream")


def test_every_key_and_stream_belongs_to_a_group() -> None:
    """A name that is added to the tables of keys is looked at by one group; heads of ledgers elsewhere are by none."""
    looked = [n for names in (*records.KEYS_OF.values(), *records.STREAMS_OF.values()) for n in names]
    assert sorted(looked) == sorted(set(KNOWN) - {"ops_head_of"})


def test_a_service_without_a_time_of_its_cycle_is_not_on_time() -> None:
    """A page that does not say when its last cycle was fails the check of clocks."""
    told = services.one_clock(facts(), "proposer")[0]
    assert (told.ok, told.detail) == (False, "it does not say when its last cycle was")


HOSTILE = (b"", b"x", b"\xff\xfe", b"[" * 5000, b"{}", b"5", b"null", b"nan", b"inf", b"-1", b"0", b"9" * 400)


@pytest.mark.parametrize("value", HOSTILE, ids=[repr(v[:9]) for v in HOSTILE])
def test_no_judge_raises_whatever_stands_in_redis(value: bytes) -> None:
    """Entries and hashes with the right names and any bytes are answered by every check, and none of the bytes pass for
    a cycle or a cap."""
    everything = {
        name: {**dict.fromkeys((f.name for f in RECORDS[name].all_fields), value), "symbol": b"BTCUSDT"}
        for name in RECORDS
    }
    cycle = {**everything["cycles"], "cycle_id": b"a"}
    tails = {
        name: Tail(name, name, ("1-0", "2-0"), (everything[name], {}), kind="stream")
        for names in records.STREAMS_OF.values()
        for name in names
    }
    tails["cycles"] = Tail("cycles", "c", ("1-0",), (cycle,))
    tails["decisions"] = Tail("decisions", "d", ("1-0",), ({**everything["decisions"], "cycle_id": b"a"},))
    keys = tuple(
        Key(name, name, "BTCUSDT", RECORDS[name].kind.value, 9, everything[name], value)
        for names in records.KEYS_OF.values()
        for name in names
    )
    f = facts(tails=tails, keys=keys, symbols=("BTCUSDT",), universe=1)
    proof_checks.judged(f, tuple(GROUPS))
    assert not any(r.ok for judge in (agree.cycle_complete, agree.caps) for r in judge(f, "allocation"))


@pytest.mark.parametrize(
    ("equity", "target", "ok"),
    [("100", "40", True), ("100", "41", False), ("0", "0", False), ("-100", "40", False), ("100", "nan", False),
     ("inf", "40", False), ("100", "-1", False)],
)  # fmt: skip
def test_caps_are_of_numbers_that_mean_something(equity: str, target: str, ok: bool) -> None:
    """A target within its share passes; without an equity above 0, or with a target that is no number, nothing does."""
    cycle = {"cycle_id": b"a", "equity_usd": equity.encode(),
             "params": b'{"max_symbol_pct": 0.4, "max_cluster_pct": 0.6}'}  # fmt: skip
    one = {"cycle_id": b"a", "cluster_id": b"c", "symbol": b"BTCUSDT", "target_usd": b"1"}
    other = {**one, "symbol": b"ETHUSDT", "target_usd": target.encode(), "cluster_id": b"d"}
    tails = {
        "cycles": Tail("cycles", "c", ("1-0",), (cycle,)),
        "decisions": Tail("d", "d", ("1-0", "2-0"), (one, other)),
    }
    assert [r.ok for r in agree.caps(facts(tails=tails), "allocation")] == [ok]


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
    assert verdict("shadow", SETTINGS, aside) == (True, True), "the lane is there, whatever the command's settings say"
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

    def fills(*plans: bytes, at: int = 70_000, whole: bool = True, ours: bool = False) -> tuple[bool, bool]:
        entries = [(f"{at}-{n}", {"plan_id": plan}) for n, plan in enumerate(plans)]
        f = facts(tails={"events": tail("events", permit, whole=whole), "executions": tail("executions", *entries)},
                  loaded=Loaded(Account() if ours else None))  # fmt: skip
        f = f if ours else seen(f, apply=Page("apply", 1))
        found = next(r for r in permits.permits_reconcile(f, "governor") if r.case == "fills")
        return found.ok, found.needed

    assert fills(b"a") == fills(b"a", ours=True) == (True, True)
    assert fills(b"a", b"a") == (True, True), "another executor may fill in parts"
    assert fills(b"a", b"a", ours=True) == (False, True)
    assert fills(b"b", ours=True) == (False, True)
    assert fills(b"b") == (False, True)
    assert fills(b"b", at=2_000, whole=False) == (True, False)
    assert fills() == (True, False)


def test_progress_without_a_stderr_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command whose stderr is closed goes on."""
    monkeypatch.setattr(prove_cli, "TOLD_AFTER_S", -1.0)
    monkeypatch.setattr(sys, "stderr", None)
    progress = prove_cli._Progress()
    progress("waiting")
    progress.end()


def test_the_last_line_tells_what_was_looked_at() -> None:
    """Checks that nothing was looked at by are not among those that passed without a word."""
    counts = [Count("proposer", "up", 1, 0, 0), Count("proposer", "streams", 0, 0, 2)]
    assert (
        prove_cli._total(counts) == "PASS 2 checks, 1 of them not needed here; 1 cases passed, 0 failed, 2 not needed"
    )
    counts[0] = Count("proposer", "up", 0, 1, 0)
    assert prove_cli._total(counts).startswith("FAIL: 1 of 2 checks, 1 of them not needed here;")


def test_where_no_service_answers_it_is_said_first() -> None:
    """All ports silent: one sentence with the ports and what it makes of the rest; one service that answers, none."""
    gone = [Page("budget", 7, why=proof_pages.NOBODY), Page("regime", 8, why=proof_pages.NOBODY)]
    other = Page("feed", 9, why="another program answers")
    end = ", so ages are judged by this machine's clock and most checks below fail for that"
    assert said.nobody(gone, gone) == f"no service answers: nothing answers on ports 7, 8{end}"
    assert said.nobody(gone[:1], [*gone[:1], other]) == (
        f"no service answers: nothing answers on port 7; another program answers on port 9{end}"
    )
    away = [Page("feed", 9, why=proof_pages.ELSEWHERE)]
    assert said.nobody(away, away) == f"no service answers: what is on port 9 works on another Redis{end}"
    assert said.nobody([*gone, page("feed")], gone) == said.nobody(gone, [*gone, page("feed")]) == ""


def test_what_failed_is_listed_first() -> None:
    """Failed cases stand before those that are not needed, and those before what passed."""
    results = [
        Result("proposer", "up", "a", True, "x"), not_needed("proposer", "up", "b", "y"),
        Result("proposer", "up", "c", False, "z"),
    ]  # fmt: skip
    told = prove_cli._told(results, [Count("proposer", "up", 1, 1, 1)], verbose=True)
    lines = [line for line in told.splitlines() if " proposer up: " in line]
    assert [line.split("  ")[0] for line in lines] == ["FAIL", "NOT NEEDED", "PASS"]


def test_a_port_is_told_with_what_moves_it() -> None:
    """``up`` names the variables that move a service's port: each of them does."""
    for name, own in SETTINGS.services.items():
        told = said.moved_by(own).split(", ")
        assert told[1:] == ["QA_PORT_OFFSET"]
        moved = [load([name], {variable: "7777"}).services[name].port for variable in told]
        assert moved == [7777, own.port + 7777], name
    port = SETTINGS.services["budget"].port
    pages = {**facts().first, "budget": Page("budget", port, why=proof_pages.NOBODY)}
    found = next(r for r in services.up(facts(first=pages, second=pages), "allocation") if not r.ok)
    assert found.detail == (
        f"nothing answers on port {port}: start it, or give `prove` the settings that move its port: "
        f"{said.moved_by(SETTINGS.services['budget'])}"
    )


def test_the_kill_switch_says_how_to_go_on() -> None:
    """Both commands in full for a halt, the second alone where the key is off and a halt is latched."""
    off, rearm = "`quantum-alloc kill off`", "`quantum-alloc rearm --by NAME --why TEXT`"
    told = {
        (kill, latched): permits.kill_off(facts(kill=kill, latched=latched), "governor")[0]
        for kill in ("OFF", "HALT", "REDUCE_ONLY")
        for latched in (False, True)
    }
    assert {at for at, r in told.items() if r.ok} == {("OFF", False)}
    assert told["OFF", True].detail == f"the key is off, but a halt is latched: when the reason is gone {rearm}"
    for at in (("HALT", False), ("HALT", True), ("REDUCE_ONLY", True)):
        assert told[at].detail.endswith(f": when the reason is gone {off}, then {rearm}"), at
    assert told["REDUCE_ONLY", False].detail == f"it says REDUCE_ONLY: when the reason is gone {off}"


def test_a_key_of_another_type_is_told_with_the_way_out() -> None:
    """``keys`` says what to do, ``budgets`` and inputs that it is no hash, and not that a field is missing."""
    keys = (
        Key("budget", "b", "BTCUSDT", "string", 9), Key("kill", "k", "", "hash", -1),
        Key("clusters", "c", "", "list", 9),
    )  # fmt: skip
    wrong = facts(symbols=("BTCUSDT",), universe=1, keys=keys)
    told = {(g, r.case): r.detail for g in ("allocation", "governor") for r in records.keys(wrong, g)}
    assert told["allocation", "budget"] == "b is a string, not a hash: delete it, its writer makes it anew"
    assert told["governor", "kill"].startswith("k is a hash, not a string: `quantum-alloc kill halt`")
    assert [r.detail for r in inputs.budgets(wrong, "allocation")] == ["b is a string, not a hash"]
    fresh = {r.case: r.detail for g in ("allocation", "governor") for r in inputs.inputs_fresh(wrong, g)}
    assert fresh["budget"] == "b is a string, not a hash"
    assert fresh["clusters"] == fresh["stress"] == "c is a list, not a hash"


def test_a_field_that_was_renamed_is_told() -> None:
    """One known field gone and one strange one there: it asks; with two strange ones, or a time under an alias, it does
    not. Of a record that other programs may write too, a strange field beside all its own is no fault."""
    peak = {"peak_equity_usd": b"1", "ts": b"1769577492"}
    strange = "peak_usd is no field of it"
    asked = said.wrong_in(RECORDS["peak"], {"peak_usd": b"1", "ts": b"1769577492"})
    assert asked[:2] == ["peak_equity_usd is missing", f"{strange}: renamed from peak_equity_usd?"]
    assert strange in said.wrong_in(RECORDS["peak"], {**peak, "peak_usd": b"1"})
    more = said.wrong_in(RECORDS["peak"], {"peak_usd": b"1", "more": b"1", "ts": b"1769577492"})
    time_ = said.wrong_in(RECORDS["peak"], {"peak_equity_usd": b"1", "timestamp": b"1769577492"})
    twin = said.wrong_in(RECORDS["peak"], {"ts": b"1769577492", "timestamp": b"1769577492"})
    assert not any("renamed" in t for t in (*more, *time_, *twin))
    found = records.keys(facts(keys=(Key("peak", "k", "", "hash", -1, {"peak_usd": b"1", **peak}),
                                     Key("balance", "b", "", "hash", -1, {}))), "allocation")  # fmt: skip
    assert {r.case: r.detail for r in found}["peak"] == f"k {strange}"
    market = RECORDS["market"]
    assert market.is_open
    gone = next(f.name for f in market.fields if not (f.optional or f.varies or f.ours) and f.name != market.time)
    fields = {f.name: b"1" for f in market.fields if not f.varies}
    moved = {"another" if n == gone else n: v for n, v in fields.items()}
    assert f"another is no field of it: renamed from {gone}?" in said.wrong_in(market, moved)
    assert not any("another" in t for t in said.wrong_in(market, {**fields, "another": b"1"}))


def test_where_the_lines_are_and_when_it_passes_again() -> None:
    """The unit's journal, a kept demo's file, or the log of a service without a unit; and the seconds that are left."""
    text = (
        'quantum_alloc_log_lines_total{level="ERROR"} 1\nquantum_alloc_log_lines_total{level="WARNING"} 0\n'
        f'quantum_alloc_last_log_line_timestamp_seconds{{level="ERROR"}} {NOW - 600}\n'
    )
    samples, families = parsed(text)
    bad = {n: replace(page(n), samples=samples, families=families) for n in app.SERVICES}
    f = facts(first=bad, second=bad)
    told = {r.case: r.detail for r in conduct.clean_logs(f, "governor")}
    unit = "`journalctl -u quantum-governor -p err` tells which"
    assert told["governor"].endswith(f"; the last error 600 s ago: {unit}, and this passes again in 3001 s")
    assert ": its log tells which, " in told["desk"]
    (kept,) = conduct.clean_logs(replace(f, log="/d/services.log"), "proposer")
    assert ": /d/services.log tells which, " in kept.detail


def test_a_kept_demos_log_is_found_beside_its_settings(tmp_path: Path) -> None:
    """Its file is named where a kept demo's settings stand beside it, and nothing elsewhere."""
    settings = load(list(app.SERVICES), {"STATE_DIRECTORY": str(tmp_path / "state")})
    (tmp_path / "services.log").touch()
    assert proof_facts._log(settings) == ""
    (tmp_path / "demo.env").touch()
    assert proof_facts._log(settings) == str(tmp_path / "services.log")


def test_a_service_on_another_server_is_not_up() -> None:
    """Another run than our server's: ``up`` fails and nothing else is taken from its page, also where it need not run.
    Without the field, with ours, or with what it last saw before our server was started it is as any other."""
    server = Server(run_id="ours", up_s=1000)

    def seen_of(name: str, **health: object) -> Page:
        return proof_pages.ours({name: page(name, **health)}, server, NOW + 10.0)[name]

    tolerated: tuple[dict[str, object], ...] = (
        {}, {"redis_run_id": ""}, {"redis_run_id": None}, {"redis_run_id": "ours"}, {"redis_run_id": 5},
        {"redis_run_id": "b", "loop_age_s": 995.0},
    )  # fmt: skip
    for told in tolerated:
        assert seen_of("budget", **told).is_here, told
    base = facts().first
    for name in ("budget", "feed"):
        away = seen_of(name, redis_run_id="another", loop_age_s=5.0)
        for first, second in ((away, away), (base[name], away), (away, base[name])):
            f = facts(first={**base, name: first}, second={**base, name: second})
            found = {r.case: r for r in services.up(f, "allocation")}
            assert [c for c, r in found.items() if not r.ok] == [name]
            assert found[name].detail == (
                f"the service on port {away.port} works on another Redis: give it and `prove` the same server"
            )
            assert name not in {r.case for judge in (services.ready, services.on_time) for r in judge(f, "allocation")}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
@pytest.mark.parametrize("words", [("--list",), ("--list", "--format", "json"), ("proposer", "--list", "--only-look")])
def test_results_that_cannot_be_written_are_no_pass(words: tuple[str, ...]) -> None:
    """A full disk under the output: exit code 1 and one sentence, and no traceback."""
    program = "import sys; from quantum_alloc.services.cli import main; sys.exit(main())"
    with Path("/dev/full").open("wb") as full:
        found = subprocess.run(
            (sys.executable, "-c", program, "prove", *words), check=False, stdout=full, stderr=subprocess.PIPE
        )
    text = b"quantum-alloc: the results cannot be written: No space left on device\n"
    assert (found.returncode, found.stderr) == (1, text)
