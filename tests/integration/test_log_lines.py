"""What every service logs, cycle by cycle, on a real server: one INFO line a cycle, and states when they change."""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from quantum_alloc.adapters.clock import SetClock
from quantum_alloc.adapters.embedded import EmbeddedServer
from quantum_alloc.adapters.keys import LIVE
from quantum_alloc.adapters.store import StoreError
from quantum_alloc.services import app, logs
from quantum_alloc.services.loop import MOST_REMEMBERED, MOST_TROUBLES, TOLD_AT_ONCE
from tests.support import governing as gov
from tests.support.faulting import AA, BARS, BB, CC, NAMES, NOW, OUTPUT, Case, prepared, price
from tests.support.running import until
from tests.support.worlds import Client
from tests.tools.fault_proxy import FaultProxy

BY_EVENT = ("feed", "governor", "apply")
TIMED = tuple(n for n in NAMES if n not in BY_EVENT)
Entry = dict[str, Any]
REFUSED = {"governor": "the commit is refused: kill", "apply": "the write is refused: kill"}


class Lines:
    """What was logged, in both forms."""

    def __init__(self) -> None:
        """Listen."""
        self._streams = io.StringIO(), io.StringIO()
        self._root = logging.getLogger("quantum_alloc")
        self._before = self._root.handlers[:], self._root.level, self._root.propagate
        self._root.handlers = []
        for stream, formatter in zip(self._streams, (logs.Json(), logs.Plain()), strict=True):
            handler = logs._Handler(stream)
            handler.setFormatter(formatter)
            self._root.addHandler(handler)
        self._root.setLevel(logging.DEBUG)
        self._root.propagate = False

    def end(self) -> None:
        """As it was."""
        self._root.handlers, self._root.level, self._root.propagate = self._before

    def take(self) -> list[Entry]:
        """All entries since the last time."""
        found = [json.loads(line) for line in self._streams[0].getvalue().splitlines()]
        for entry in found:
            assert entry.keys() <= {*logs.COMMON, *logs.FIELDS}
            assert "could not be made" not in entry["message"]
        for stream in self._streams:
            stream.seek(0)
            stream.truncate()
        return found

    @property
    def plain(self) -> str:
        """What was written as plain text."""
        return self._streams[1].getvalue()


@pytest.fixture
def lines() -> Iterator[Lines]:
    """Everything that is logged."""
    found = Lines()
    yield found
    found.end()


def cycles(found: list[Entry]) -> list[Entry]:
    """The INFO lines."""
    return [e for e in found if e["level"] == "INFO"]


def states(found: list[Entry], *names: str) -> list[tuple[str, str, str]]:
    """Changes of state; of some states alone, where they are named."""
    told = [(e["state"], e["from"], e["to"]) for e in found if e["event"] == "state"]
    return [t for t in told if t[0] != "pace" and (not names or t[0] in names)]


def at(case: Case, clock: SetClock, turns: int) -> int:
    """Cycles at the service's own pace; how many ended."""
    ended = 0
    for _ in range(turns):
        clock.set(clock.now() + 0.001)
        ended += case.once()
    return ended


@pytest.mark.parametrize("name", NAMES)
def test_one_line_a_cycle(
    name: str, one_server: EmbeddedServer, one_client: Client, tmp_path: Path, lines: Lines
) -> None:
    """Each service with work to do: a cycle that did something has one INFO line, made of its fields; an idle one of
    governor and apply has none. Nothing else is told of a sound system."""
    clock = SetClock(NOW)
    prepared(name, one_server, one_client, tmp_path / "other", clock)
    case = Case(name, one_server.url, tmp_path, clock)
    lines.take()
    assert case.turn()
    first = lines.take()
    assert at(case, clock, 4) == 4
    plain = lines.plain
    rest = lines.take()
    case.end()
    assert cycles(first), "it had work"
    assert len(cycles(rest)) == (0 if name in ("governor", "apply") else 4)
    assert states([*first, *rest]) == []
    for entry in cycles([*first, *rest]):
        what = "Governor batch complete" if name == "governor" else f"{name.capitalize()} cycle complete"
        assert (entry["event"], entry["service"]) == ("cycle", name)
        assert entry["message"].startswith(f"{what} ")
        assert re.search(r" ms=\d+$", entry["message"])
        assert entry["ms"] >= 0.0
        for key, value in entry.items():
            if key in logs.FIELDS and isinstance(value, (int, str)):
                assert f" {key}={value}" in entry["message"], key
    alarms = [e for e in [*first, *rest] if e["level"] in ("WARNING", "ERROR") and e.get("state") != "pace"]
    assert [e["event"] for e in alarms] == (["fault"] if name == "apply" else []), (
        "fills that were there without a permit"
    )
    if name == "allocation":
        line = r"^\S+Z INFO allocation: Allocation cycle complete symbols=3 targets=3 mode=enforce ms=\d+$"
        assert len(re.findall(line, plain, re.MULTILINE)) == 4


@pytest.mark.parametrize("name", NAMES)
def test_an_outage_is_told_once(
    name: str, one_server: EmbeddedServer, one_client: Client, tmp_path: Path, lines: Lines
) -> None:
    """Each service: Redis refuses, then hangs, then refuses again: each kind once and its end once, not each cycle."""
    clock = SetClock(NOW)
    prepared(name, one_server, one_client, tmp_path / "other", clock)
    with FaultProxy(str(one_server.socket)) as proxy:
        case = Case(name, proxy.url, tmp_path, clock)
        assert case.turn()
        lines.take()
        cut = partial(proxy.cut_after, 0)
        for fault in (cut, proxy.swallow, cut):
            fault()
            assert at(case, clock, 3) == 0
        broken = lines.take()
        proxy.heal()
        until(case.once, 10, "back")
        assert at(case, clock, 2) == 2
        back = lines.take()
        case.end()
    told = [e for e in broken if e["level"] == "ERROR"]
    kinds = {e["message"] for e in told}
    assert 1 <= len(told) == len(kinds) <= 4, kinds
    assert all(s == "store" for s, _, _ in states(broken))
    assert states(broken)[0][1] == "ok"
    assert [(s, to) for s, _, to in states(back) if s == "store"] == [("store", "ok")]
    (end,) = [e for e in back if e.get("state") == "store"]
    assert end["cycles"] >= 9
    assert end["message"] == f"the store answers again after {end['cycles']} failed cycles"
    assert not cycles(broken)


@pytest.mark.parametrize("name", NAMES)
def test_a_refused_key_is_told_once(
    name: str, one_server: EmbeddedServer, one_client: Client, tmp_path: Path, lines: Lines
) -> None:
    """Each service: the key that it writes holds another type: told once when it begins, and once when it ends."""
    clock = SetClock(NOW)
    prepared(name, one_server, one_client, tmp_path / "other", clock)
    key = LIVE.stress(AA) if name == "clusters" else OUTPUT[name]  # the map is replaced, whatever it was
    one_client.delete(key)
    one_client.set(key, "x")
    case = Case(name, one_server.url, tmp_path, clock)
    lines.take()
    for _ in range(4):
        case.once()
    begun = states(lines.take(), "key", "store", "output")
    one_client.delete(key)
    for _ in range(4):
        case.once()
    ended = states(lines.take(), "key", "store", "output")
    case.end()
    if name == "desk":  # a plan that could not be written is not proposed again at the same bar
        assert begun == [("key", "ok", "refused")]
        return
    assert len(begun) == 1, begun
    state, before, after = begun[0]
    assert (before, ended) == ("ok", [(state, after, "ok")])


@pytest.mark.parametrize("name", TIMED)
def test_nothing_written_is_told_once(
    name: str, one_server: EmbeddedServer, one_client: Client, tmp_path: Path, lines: Lines
) -> None:
    """Each service by the clock on an empty server: why nothing is written is told once, and that it writes again."""
    one_client.flushall()
    clock = SetClock(NOW)
    if name in ("attribution", "efficiency"):
        state = LIVE.attribution_state if name == "attribution" else LIVE.efficiency_state
        one_client.set(state, "no hash")
    case = Case(name, one_server.url, tmp_path, clock)
    assert at(case, clock, 4) == 4
    found = lines.take()
    begun = states(found)
    assert len(cycles(found)) == 4
    prepared(name, one_server, one_client, tmp_path / "other", clock)
    clock.set(NOW + 61.0 if name in ("regime", "clusters") else NOW + 1.0)
    if name == "clusters":
        prepared(name, one_server, one_client, tmp_path / "other", clock)
    assert at(case, clock, 4) == 4
    ended = states(lines.take())
    case.end()
    if name == "desk":  # it proposes nothing, which is no trouble
        assert (begun, ended) == ([], [])
        return
    assert [(s, b) for s, b, _ in begun] == [("output", "ok")]
    assert ended == [("output", begun[0][2], "ok")]


def test_a_state_does_not_count(one_server: EmbeddedServer, one_client: Client, tmp_path: Path, lines: Lines) -> None:
    """A proposer without a base target says so once, however many symbols come."""
    one_client.flushall()
    clock = SetClock(NOW)
    case = Case("proposer", one_server.url, tmp_path, clock)
    for n in range(4):
        one_client.sadd(LIVE.universe, f"S{n}USDT")
        assert at(case, clock, 1) == 1
    case.end()
    assert len(states(lines.take())) == 1


def test_the_end_of_the_candles(one_server: EmbeddedServer, one_client: Client, tmp_path: Path, lines: Lines) -> None:
    """A feed without candles says so once and is silent from then on; an account of another program's is told of when
    it comes and when it goes."""
    clock = SetClock(NOW)
    prepared("feed", one_server, one_client, tmp_path / "other", clock)
    case = Case("feed", one_server.url, tmp_path, clock)
    assert at(case, clock, 2) == 2
    one_client.hset(LIVE.apply_state, mapping={"_rev": "1"})
    assert at(case, clock, 3) == 3
    one_client.delete(LIVE.apply_state)
    assert at(case, clock, 3) == 3
    assert states(lines.take()) == [("paper_book", "trades", "rests"), ("paper_book", "rests", "trades")]
    case.candles.take = lambda _: None  # type: ignore[assignment,method-assign,return-value]
    case.candles.ended = True
    assert at(case, clock, 4) == 4
    found = lines.take()
    case.end()
    assert states(found) == [("output", "ok", "the candles have ended")]
    assert cycles(found) == []


@pytest.mark.parametrize("name", ["governor", "apply"])
def test_the_kill_switch_is_told_once(
    name: str, one_server: EmbeddedServer, one_client: Client, tmp_path: Path, lines: Lines
) -> None:
    """REDUCE_ONLY and back, HALT with its latch and the rearm: each change once."""
    clock = SetClock(NOW)
    prepared(name, one_server, one_client, tmp_path / "other", clock)
    case = Case(name, one_server.url, tmp_path, clock)
    assert case.turn()
    lines.take()
    one_client.set(LIVE.kill, "reduce")
    assert at(case, clock, 3) == 3
    one_client.delete(LIVE.kill)
    assert at(case, clock, 3) == 3
    assert states(lines.take()) == [("kill_switch", "OFF", "REDUCE_ONLY"), ("kill_switch", "REDUCE_ONLY", "OFF")]
    one_client.set(LIVE.kill, "halt")
    assert at(case, clock, 3) == 3
    one_client.delete(LIVE.kill)
    assert at(case, clock, 3) == 3
    halted = states(lines.take())
    assert [t for t in halted if t[0] == "kill_switch"] == [("kill_switch", "OFF", "HALT")], "it is latched"
    gov.rearm(one_client, clock.now() + 1.0)
    clock.set(clock.now() + 2.0)
    assert at(case, clock, 3) == 3
    rearmed = states(lines.take())
    case.end()
    assert [t for t in rearmed if t[0] == "kill_switch"] == [("kill_switch", "HALT", "OFF")]
    if name == "governor":
        assert [t for t in [*halted, *rearmed] if t[0] == "latch"] == [
            ("latch", "off", "latched"), ("latch", "latched", "off"),
        ]  # fmt: skip


def test_a_hold_is_told_once(one_server: EmbeddedServer, one_client: Client, tmp_path: Path, lines: Lines) -> None:
    """A governor without a journal whose server forgot: opens are held back, told when it begins and when it ends."""
    clock = SetClock(NOW)
    prepared("governor", one_server, one_client, tmp_path / "other", clock)
    case = Case("governor", one_server.url, tmp_path, clock, GOV_DURABILITY="none")
    assert case.turn()
    lines.take()
    one_client.delete(LIVE.epoch)
    case.store._pool.disconnect()
    for _ in range(3):
        assert case.turn()
    assert states(lines.take()) == [("hold", "ok", "recovery_hold")]
    clock.set(NOW + 4000.0)
    for _ in range(3):
        assert case.turn()
    assert states(lines.take()) == [("hold", "recovery_hold", "ok")]
    case.end()


def test_blocks_name_the_gate(one_server: EmbeddedServer, one_client: Client, tmp_path: Path, lines: Lines) -> None:
    """The batch's INFO line names symbols, gates and reasons, of gate 0.5 `P2.9 allocation`, and stays short; at DEBUG
    each block has a line of its own."""
    clock = SetClock(NOW)
    one_client.flushall()
    prepared("governor", one_server, one_client, tmp_path / "other", clock, plans=1)
    gov.target(one_client, AA, 1.0, NOW)
    for i in range(8):
        gov.opening(one_client, f"k{i}", BB, repr(NOW), price=price(BB, BARS), kill_score="0.9")
    case = Case("governor", one_server.url, tmp_path, clock)
    assert case.turn()
    case.end()
    plain = lines.plain
    found = lines.take()
    batch, *more = cycles(found)
    assert sum(e["plans"] for e in (batch, *more)) == 9
    assert batch["plans"] == batch["block"] > len(batch["blocked"]) == logs.NAMED
    cap = {"plan_id": "g1", "symbol": AA, "gate": "P2.9 allocation", "reason": "p29_allocation_cap"}
    assert batch["blocked"][0] == cap
    assert f"{AA} by P2.9 allocation: p29_allocation_cap, {BB} by gate 1 (" in batch["message"]
    assert len(batch["message"]) < 600
    told = [e for e in found if e["event"] == "decision"]
    assert len(told) == 9
    assert {k: told[0][k] for k in cap} == cap
    assert told[0]["level"] == "DEBUG"
    assert f"plan g1 of {AA} is blocked by P2.9 allocation: p29_allocation_cap" in plain


def test_fills_name_the_symbols(one_server: EmbeddedServer, one_client: Client, tmp_path: Path, lines: Lines) -> None:
    """The apply layer's INFO line names what was filled, and what ended without a fill and why."""
    clock = SetClock(NOW)
    prepared("apply", one_server, one_client, tmp_path / "other", clock)
    lines.take()
    case = Case("apply", one_server.url, tmp_path, clock)
    assert case.turn()
    (line,) = [e for e in cycles(lines.take()) if e.get("fills")]
    case.end()
    assert (line["fills"], sorted(line["filled"])) == (2, [BB, CC])
    assert "filled=" in line["message"]
    prepared("apply", one_server, one_client, tmp_path / "other2", clock)
    lines.take()
    case = Case("apply", one_server.url, tmp_path / "mismatch", clock, APPLY_MODE="testnet")
    assert case.turn()
    found = lines.take()
    case.end()
    (line,) = [e for e in cycles(found) if e.get("unfilled")]
    assert {u["reason"] for u in line["unfilled"]} == {"mode_mismatch"}
    assert {u["plan_id"] for u in line["unfilled"]} == {"g1", "g2"}
    assert [e["reason"] for e in found if e["event"] == "account"] == ["mode_mismatch"] * 2


def test_slow_cycles_are_told_once(
    one_server: EmbeddedServer, one_client: Client, tmp_path: Path, lines: Lines
) -> None:
    """Cycles longer than their interval: told when it begins, and once some in a row were in time."""
    clock = SetClock(NOW)
    prepared("allocation", one_server, one_client, tmp_path / "other", clock)
    with FaultProxy(str(one_server.socket)) as proxy:
        case = Case("allocation", proxy.url, tmp_path, clock, P29_INTERVAL_SEC="0.3")
        assert at(case, clock, 2) == 2
        lines.take()
        proxy.delay(0.12)
        assert at(case, clock, 4) == 4
        slow = [e for e in lines.take() if e.get("state") == "pace"]
        assert [(e["from"], e["to"]) for e in slow] == [("ok", "late")]
        assert slow[0]["ms"] > 300.0
        proxy.heal()
        told: list[Entry] = []

        def over() -> bool:
            assert case.once()
            told.extend(e for e in lines.take() if e.get("state") == "pace")
            return bool(told)

        until(over, 30, "in time again")
        case.end()
    assert [(e["from"], e["to"]) for e in told] == [("late", "ok")]


def test_a_symbol_that_fails_is_told_once(one_server: EmbeddedServer, tmp_path: Path, lines: Lines) -> None:
    """A programming error in one symbol's step: once with its traceback, and once when the step works again; one that
    costs the cycle: once, and its end."""
    case = Case("allocation", one_server.url, tmp_path, SetClock(NOW))

    def fails() -> int:
        raise ZeroDivisionError("x")

    for _ in range(3):
        assert case.loop.attempt(AA, fails) is None
        assert case.loop.attempt(CC, lambda: 1) == 1
    assert case.loop.attempt(AA, lambda: 2) == 2
    assert case.loop.attempt(AA, lambda: 2) == 2
    found = lines.take()
    assert states(found) == [("symbol", "ok", "failed"), ("symbol", "failed", "ok")]
    assert {e["symbol"] for e in found} == {AA}
    assert "ZeroDivisionError" in found[0]["traceback"]
    read = case.loop.cycle.read
    object.__setattr__(case.loop.cycle, "read", lambda _: fails())
    assert [case.once() for _ in range(3)] == [False] * 3
    object.__setattr__(case.loop.cycle, "read", read)
    assert [case.once() for _ in range(2)] == [True] * 2
    assert states(lines.take(), "cycle", "store") == [
        ("cycle", "ok", "ZeroDivisionError"),
        ("cycle", "ZeroDivisionError", "ok"),
    ]
    case.end()


def test_a_fault_of_configuration_is_always_named(one_server: EmbeddedServer, tmp_path: Path, lines: Lines) -> None:
    """However many troubles an outage has had, of the store and of ours: each kind that comes behind them is named
    once, and the lines stay bounded."""
    case = Case("allocation", one_server.url, tmp_path, SetClock(NOW))
    troubles: list[Exception] = [ValueError(f"bad value {n}") for n in range(30)]
    troubles += [StoreError("closed", f"closed {n}") for n in range(30)]
    troubles += [StoreError(code, "no") for code in ("NOPERM", "NOAUTH", "WRONGPASS", "tls", "evicting") * 3]

    def fails(_: float) -> None:
        raise troubles.pop(0)

    read = case.loop.cycle.read
    object.__setattr__(case.loop.cycle, "read", fails)
    for _ in range(len(troubles)):
        assert not case.once()
    object.__setattr__(case.loop.cycle, "read", read)
    told = states(lines.take(), "cycle", "store")
    assert next(t for t in told if t[0] == "cycle") == ("cycle", "ok", "ValueError")
    named = [to for _, _, to in told if to not in ("ValueError", "closed")]
    assert named == ["NOPERM", "NOAUTH", "WRONGPASS", "tls", "evicting"]
    assert "closed" in [to for _, _, to in told]
    assert len(told) <= 2 * MOST_TROUBLES + len(named)
    assert case.once(), case.loop.last_error
    assert states(lines.take(), "cycle", "store") == [("store", "evicting", "ok"), ("cycle", "ValueError", "ok")]
    case.end()


def test_what_is_remembered_of_failures_is_bounded(one_server: EmbeddedServer, tmp_path: Path, lines: Lines) -> None:
    """Ten thousand symbols that fail at once, and keys of ever other names that are refused: a bounded number of lines
    and of names; what was told ends, and what fails later is told."""
    case = Case("allocation", one_server.url, tmp_path, SetClock(NOW))

    def fails() -> int:
        raise ZeroDivisionError("x")

    symbols = [f"S{n}USDT" for n in range(10_000)]
    for step in (fails, lambda: 1, fails):
        for symbol in symbols:
            case.loop.attempt(symbol, step)
    assert case.metrics.value("quantum_alloc_symbol_errors_total") == 20_000
    told = states(lines.take())
    some = MOST_REMEMBERED
    assert told == [("symbol", "ok", "failed")] * some + [("symbol", "failed", "ok")] * some + told[:some]
    keys = frozenset[str]()
    for n in range(20):
        keys = frozenset(f"key:{n}:{k}" for k in range(500))
        case.loop._tell_refused(keys, keys)
    assert len(case.loop._refused) <= 2 * 500
    case.loop._tell_refused(frozenset(), keys)
    assert not case.loop._refused
    assert len(lines.take()) == 21 * (TOLD_AT_ONCE + 1)
    case.end()


class NoText(Exception):
    """An exception that cannot be shown."""

    def __str__(self) -> str:
        """Fail."""
        raise RuntimeError("no text")


def test_an_error_without_a_text_ends_no_loop(one_server: EmbeddedServer, tmp_path: Path, lines: Lines) -> None:
    """An exception whose own text fails costs the cycle, as any other."""
    case = Case("allocation", one_server.url, tmp_path, SetClock(NOW))

    def fails(_: float) -> None:
        raise NoText

    read, finished = case.loop.cycle.read, []
    case.loop.on_finished = lambda: finished.append(1)
    object.__setattr__(case.loop.cycle, "read", fails)
    assert not case.once()
    assert "NoText" in case.loop.last_error
    object.__setattr__(case.loop.cycle, "read", read)
    assert case.once(), case.loop.last_error
    assert finished == [1, 1]
    assert states(lines.take(), "cycle") == [("cycle", "ok", "NoText"), ("cycle", "NoText", "ok")]
    case.end()


def test_a_loop_that_hangs_is_told_once(one_server: EmbeddedServer, tmp_path: Path, lines: Lines) -> None:
    """Of two services in a process one hangs: the other's cycles tell it once, and once that it goes on."""
    hangs, runs = (Case(n, one_server.url, tmp_path, SetClock(NOW)) for n in ("budget", "allocation"))
    alive = app.Watchdog([hangs.loop, runs.loop])
    alive.finished()
    hangs.loop.finished_at -= 60.0
    for _ in range(3):
        alive.finished()
    assert states(found := lines.take()) == [("loop", "ok", "hangs")]
    assert (found[0]["reason"], found[0]["service"]) == ("budget", "quantum_alloc")
    hangs.loop.finished_at += 60.0
    for _ in range(3):
        alive.finished()
    assert states(lines.take()) == [("loop", "hangs", "ok")]
    hangs.end()
    runs.end()


@pytest.mark.parametrize("name", ["governor", "allocation"])
def test_no_secret_is_logged(
    name: str, one_server: EmbeddedServer, one_client: Client, tmp_path: Path, lines: Lines
) -> None:
    """Password and signing key, right and wrong, at DEBUG: in no line of either form."""
    clock, canary = SetClock(NOW), "canary-5eCret-0123456789abcdef0123456789"
    prepared(name, one_server, one_client, tmp_path / "other", clock)
    key = tmp_path / "signing"
    key.write_text(f"k1 {canary}\n")
    key.chmod(0o600)
    one_client.config_set("requirepass", canary)
    try:
        case = Case(name, one_server.url, tmp_path, clock, canary, GOV_SIGNING_KEY_FILE=str(key))
        assert case.turn(), case.loop.last_error
        one_client.config_set("requirepass", canary + "x")
        case.store._pool.disconnect()
        assert at(case, clock, 3) == 0
        assert case.errors.keys() <= {"WRONGPASS", "NOAUTH"}
        case.end()
    finally:
        one_client.config_set("requirepass", "")
    plain = lines.plain
    found = lines.take()
    assert canary not in plain + json.dumps(found)
    assert [to for s, _, to in states(found) if s == "store"] in (["WRONGPASS"], ["NOAUTH"])


@pytest.mark.parametrize("name", ["governor", "apply"])
def test_commits_that_are_refused_for_long_are_told_once(
    name: str, one_server: EmbeddedServer, one_client: Client, tmp_path: Path, lines: Lines
) -> None:
    """Something moves before every write: nothing is told of a few refusals; of many, that nothing is written, once,
    and once when it is written again."""
    clock = SetClock(NOW)
    prepared(name, one_server, one_client, tmp_path / "other", clock)
    case = Case(name, one_server.url, tmp_path, clock)
    write, turns = case.loop.cycle.write, iter(range(1000))
    assert write is not None

    def moved(seen: Any, made: Any) -> None:
        one_client.set(LIVE.kill, ("off", "0")[next(turns) % 2])  # OFF before and after, and not the same text
        write(seen, made)

    object.__setattr__(case.loop.cycle, "write", moved)
    lines.take()
    assert at(case, clock, 5) == 5
    assert states(lines.take()) == []
    assert at(case, clock, 20) == 20
    assert states(lines.take()) == [("output", "ok", REFUSED[name])]
    object.__setattr__(case.loop.cycle, "write", write)
    assert at(case, clock, 5) == 5
    found = lines.take()
    case.end()
    assert states(found) == [("output", REFUSED[name], "ok")]
    assert cycles(found)
