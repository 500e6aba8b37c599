"""The journal of permits: what a crash, a full disk and a long life leave of it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantum_alloc.adapters import journal as journals
from quantum_alloc.adapters.governor_files import Known, KnownFile, Latch, LatchFile
from quantum_alloc.adapters.journal import Entry, InUse, Journal
from quantum_alloc.adapters.store import StoreError
from quantum_alloc.core.limits import DAY_S, US

NOW_US = 1_769_577_495 * US
ENTRY = Entry("run-1", "p0", "BTCUSDT", "open 100.0 0.0", 100.0, '{"decision_id":"d"', 3600, NOW_US, NOW_US + 61 * US)
FSYNC = "quantum_alloc.adapters.journal.os.fsync"


def entry(plan_id: str, at_us: int = NOW_US, **changed: Any) -> Entry:
    """One permit."""
    return replace(ENTRY, plan_id=plan_id, at_us=at_us, **changed)


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[..., Journal]]:
    """Opens journals, and closes them at the end."""
    found: list[Journal] = []

    def open_one(directory: Path | None = tmp_path, name: str = "gov-a") -> Journal:
        found.append(Journal(directory, name))
        return found[-1]

    yield open_one
    for journal in found:
        journal.close()


Opened = Callable[..., Journal]


def again(directory: Path) -> list[Entry]:
    """What a governor started anew finds."""
    journal = Journal(directory, "gov-a")
    try:
        return journal.read()
    finally:
        journal.close()


def test_what_is_kept(opened: Opened, tmp_path: Path) -> None:
    """Intents without outcome are loose, those of an outcome done and stamped with its time, the others void; the
    same after a restart, bit for bit."""
    journal = opened()
    first = journal.intent("run-1", [entry("p1"), entry("p2", usd=None, issued="close 0.1 3e-05")])
    second = journal.intent("run-1", [entry("p3")])
    third = journal.intent("run-2", [entry("p4", run="run-2")])
    assert journal.unresolved.keys() == {first, second, third}
    journal.outcome(first, ["p2"], NOW_US + 7)
    journal.outcome(second, [], 0)
    assert journal.unresolved.keys() == {third}
    close = entry("p2", NOW_US + 7, usd=None, issued="close 0.1 3e-05", is_done=True)
    wanted = [close, entry("p4", run="run-2")]
    assert journal.read() == wanted
    journal.close()
    assert again(tmp_path) == wanted
    assert again(tmp_path) == wanted


def test_every_truncation_reads_to_a_prefix(opened: Opened, tmp_path: Path) -> None:
    """The file cut after any byte reads to what was true after some whole number of lines, and a governor started on
    it goes on from there (34)."""
    journal = opened()
    path = tmp_path / journals.file_name("gov-a")
    states = [journal.read()]
    for n in range(3):
        number = journal.intent("run-1", [entry(f"p{n}a"), entry(f"p{n}ü")])
        states.append(journal.read())
        journal.outcome(number, [f"p{n}a"], NOW_US + n)
        states.append(journal.read())
    journal.close()
    whole = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == 10]
    assert len(ends) == len(states) - 1
    for size in range(len(whole) + 1):
        cut = tmp_path / f"{size}"
        cut.mkdir()
        (cut / path.name).write_bytes(whole[:size])
        lines = sum(end - 1 <= size for end in ends)
        wanted = states[lines]
        assert journals.read(cut / path.name) == wanted, f"cut after {size} bytes"
        if size % 7 == 0 or size in ends:
            begun = opened(cut)
            assert begun.read() == wanted
            number = begun.intent("run-1", [entry("new")])
            begun.outcome(number, ["new"], NOW_US)
            begun.close()
            assert again(cut) == [*wanted, entry("new", is_done=True)], f"goes on after {size} bytes"


@given(garbage=st.binary(max_size=60), where=st.integers(min_value=0, max_value=4))
def test_a_line_that_cannot_be_read_costs_itself_alone(
    garbage: bytes, where: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Any bytes in a line of their own change nothing that the other lines tell (1)."""
    if b'"k"' in garbage:
        return
    directory = tmp_path_factory.mktemp("journal")
    journal = Journal(directory, "gov-a")
    for n in range(2):
        journal.outcome(journal.intent("run-1", [entry(f"p{n}")]), [f"p{n}"], NOW_US)
    wanted = journal.read()
    journal.close()
    path = directory / journals.file_name("gov-a")
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([*lines[:where], garbage, *lines[where:]]))
    assert journals.read(path) == wanted
    assert again(directory) == wanted


@pytest.mark.parametrize(
    "line",
    ["[]", "null", "1", '{"k":"intent"}', '{"k":"intent","n":9,"permits":[{}],"run":"r"}', '{"k":"outcome","n":9}',
     '{"k":"outcome","n":9,"us":"x","ids":[]}', '{"k":"outcome","n":[],"us":1,"ids":[]}', '{"k":"void","n":1}',
     '{"k":"outcome","n":1,"us":1,"ids":7}', '{"k":"intent","n":9,"permits":7,"run":"r"}'],
    ids=range(11),
)  # fmt: skip
def test_a_line_of_another_shape(opened: Opened, line: str, tmp_path: Path) -> None:
    """A line that is JSON and no line of a journal is passed over."""
    journal = opened()
    journal.outcome(journal.intent("run-1", [entry("p1")]), ["p1"], NOW_US)
    journal.close()
    path = tmp_path / journals.file_name("gov-a")
    with path.open("ab") as file:
        file.write(line.encode() + b"\n")
    assert again(tmp_path) == [entry("p1", is_done=True)]


def test_numbers_never_clash_after_a_restart(opened: Opened, tmp_path: Path) -> None:
    """Outcomes of a governor started anew concern its own batches and no former one, however often it is started."""
    wanted: list[Entry] = []
    for n in range(6):
        journal = opened()
        assert journal.read() == wanted
        loose = journal.intent("run-1", [entry(f"loose{n}")])
        done = journal.intent("run-1", [entry(f"done{n}"), entry(f"moved{n}")])
        void = journal.intent("run-1", [entry(f"void{n}")])
        assert len({loose, done, void}) == 3
        journal.outcome(done, [f"done{n}"], NOW_US + n)
        journal.outcome(void, [], NOW_US)
        journal.close()
        stamped = replace(entry(f"done{n}"), at_us=NOW_US + n, is_done=True)
        wanted += [entry(f"loose{n}"), stamped]
    assert again(tmp_path) == wanted


def test_what_a_compaction_keeps(opened: Opened, tmp_path: Path) -> None:
    """A start forgets what is two days older than the newest permit, and keeps the rest as it was: done or loose, its
    run, its time."""
    journal = opened()
    old = NOW_US - 2 * DAY_S * US
    for n, at_us in enumerate((old - 1, old, old + 1, NOW_US)):
        number = journal.intent("run-1", [entry(f"done{n}", at_us), entry(f"void{n}", at_us)])
        journal.outcome(number, [f"done{n}"], at_us)
        journal.intent(f"run-{n}", [entry(f"loose{n}", at_us)])
    size = (tmp_path / journals.file_name("gov-a")).stat().st_size
    journal.close()
    found = again(tmp_path)
    assert {e.plan_id for e in found} == {"done2", "loose2", "done3", "loose3"}
    assert {(e.plan_id, e.run, e.is_done) for e in found if e.plan_id.startswith("loose")} == {
        ("loose2", "run-2", False),
        ("loose3", "run-3", False),
    }
    assert (tmp_path / journals.file_name("gov-a")).stat().st_size < size


@pytest.mark.parametrize("most", [6, 7, 9])
def test_a_compaction_between_intent_and_outcome(
    opened: Opened, most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However the lines fall, a batch whose file was written anew before its outcome gets that outcome all the
    same (34)."""
    monkeypatch.setattr(journals, "LINES_MAX", most)
    journal = opened()
    wanted = []
    for n in range(20):
        number = journal.intent("run-1", [entry(f"p{n}", NOW_US + n), entry(f"moved{n}", NOW_US + n)])
        if n % 3 == 0:
            journal.intent("run-1", [entry(f"loose{n}", NOW_US + n)])
            wanted.append((f"loose{n}", False))
        journal.outcome(number, [f"p{n}"], NOW_US + n)
        wanted.append((f"p{n}", True))
    assert sorted((e.plan_id, e.is_done) for e in journal.read()) == sorted(wanted)
    journal.close()
    assert sorted((e.plan_id, e.is_done) for e in again(tmp_path)) == sorted(wanted)


def test_a_journal_of_many_permits_is_not_written_anew_at_every_line(
    opened: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More permits of two days than the file's limit of lines: it is written anew now and then, not each time, or no
    commit would come in time."""
    monkeypatch.setattr(journals, "LINES_MAX", 40)
    real, times = os.replace, list[object]()

    def counted(*args: Any) -> None:
        times.append(args)
        real(*args)

    monkeypatch.setattr("quantum_alloc.adapters.journal.os.replace", counted)
    journal = opened()
    for n in range(300):
        journal.outcome(journal.intent("run-1", [entry(f"p{n}")]), [f"p{n}"], NOW_US)
    assert [e.plan_id for e in journal.read()] == [f"p{n}" for n in range(300)]
    assert len(times) < 60
    journal.close()


def test_a_long_life_keeps_the_file_small(opened: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Permits that nobody needs any more leave the file while the governor runs (41)."""
    monkeypatch.setattr(journals, "LINES_MAX", 40)
    journal = opened()
    for n in range(500):
        at_us = NOW_US + n * DAY_S * US // 4
        journal.outcome(journal.intent("run-1", [entry(f"p{n}", at_us)]), [f"p{n}"], at_us)
    assert len((tmp_path / journals.file_name("gov-a")).read_bytes().splitlines()) <= 42
    assert [e.plan_id for e in journal.read()][-8:] == [f"p{n}" for n in range(492, 500)]
    journal.close()


def test_resolved(opened: Opened, tmp_path: Path) -> None:
    """What was found out replaces what stood there; later batches are not mistaken for former ones."""
    journal = opened()
    journal.intent("run-1", [entry("p1")])
    stale = journal.intent("run-1", [entry("p2")])
    journal.resolve([entry("p1", is_done=True)])
    assert journal.unresolved == {}
    number = journal.intent("run-1", [entry("p3")])
    assert number != stale
    journal.outcome(number, ["p3"], NOW_US)
    journal.close()
    assert again(tmp_path) == [entry("p1", is_done=True), entry("p3", is_done=True)]


# ---- the disk


def _fails(*_: object) -> None:
    raise OSError(28, "No space left on device")


def test_a_full_disk_is_trouble_with_the_store(opened: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither intent nor outcome nor resolving can be written: a StoreError with code ``journal`` that names the file
    and the way out."""
    journal = opened()
    number = journal.intent("run-1", [entry("p1")])
    attempts: Sequence[Any] = (
        lambda: journal.intent("run-1", [entry("p2")]),
        lambda: journal.outcome(number, ["p1"], NOW_US),
        lambda: journal.resolve([]),
    )
    with monkeypatch.context() as full:
        full.setattr(FSYNC, _fails)
        for attempt in attempts:
            with pytest.raises(StoreError) as caught:
                attempt()
            assert caught.value.code == "journal"
            assert str(tmp_path) in str(caught.value)
            assert "No space left" in str(caught.value)
    journal.close()


def test_an_outcome_that_could_not_be_written_is_not_forgotten(
    opened: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The batch stays unresolved, so that its outcome is written once there is room (34)."""
    journal = opened()
    number = journal.intent("run-1", [entry("p1"), entry("p2")])
    with monkeypatch.context() as full:
        full.setattr(FSYNC, _fails)
        with pytest.raises(StoreError):
            journal.outcome(number, ["p1"], NOW_US)
    assert number in journal.unresolved
    journal.outcome(number, ["p1"], NOW_US)
    assert journal.read() == [entry("p1", is_done=True)]
    journal.close()
    assert again(tmp_path) == [entry("p1", is_done=True)]


def test_an_intent_that_could_not_be_written_can_be_voided(
    opened: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether its line reached the disk or not: it is unresolved until it is found that nothing was committed."""
    journal = opened()
    with monkeypatch.context() as full:
        full.setattr(FSYNC, _fails)
        with pytest.raises(StoreError):
            journal.intent("run-1", [entry("p1")])
    (number,) = journal.unresolved
    journal.outcome(number, [], 0)
    assert journal.read() == []
    journal.close()
    assert again(tmp_path) == []


def test_every_line_is_on_the_disk_before_anything_follows(
    opened: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fsync is called with the line in the file, once for the intent and once for the outcome."""
    journal = opened()
    path = tmp_path / journals.file_name("gov-a")
    seen: list[list[str]] = []

    def fsync(handle: int) -> None:
        assert os.fstat(handle).st_ino == path.stat().st_ino
        seen.append([json.loads(line)["k"] for line in path.read_bytes().splitlines()])

    monkeypatch.setattr(FSYNC, fsync)
    number = journal.intent("run-1", [entry("p1")])
    assert seen == [["intent"]]
    journal.outcome(number, ["p1"], NOW_US)
    assert seen == [["intent"], ["intent", "outcome"]]
    journal.close()


def test_a_compaction_that_is_cut_leaves_the_old_file(
    opened: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end of the process anywhere in a compaction: the file is the old one or the new one, never half."""
    journal = opened()
    for n in range(3):
        journal.outcome(journal.intent("run-1", [entry(f"p{n}")]), [f"p{n}"], NOW_US)
    wanted = journal.read()
    journal.close()
    for name in ("fsync", "replace"):
        with monkeypatch.context() as cut:
            cut.setattr(f"quantum_alloc.adapters.journal.os.{name}", _fails)
            with pytest.raises(OSError, match="No space"):
                opened()
        assert journals.read(tmp_path / journals.file_name("gov-a")) == wanted
    assert again(tmp_path) == wanted


# ---- names and owners


def test_one_owner_at_a_time(opened: Opened, tmp_path: Path) -> None:
    """A second journal of the same name and directory is refused with the way out; another name, another directory or
    the same after its end are not."""
    first = opened()
    with pytest.raises(InUse, match="GOV_CONSUMER"):
        opened()
    for directory, name in ((tmp_path, "gov-b"), (tmp_path / "x", "gov-a")):
        directory.mkdir(exist_ok=True)
        opened(directory, name).close()
    first.intent("run-1", [entry("p1")])
    assert len(first.read()) == 1, "the refused one changed nothing"
    first.close()
    first.close()
    assert again(tmp_path) == [entry("p1")]


@pytest.mark.parametrize("name", ["../../etc/x", "a/b", "..", "a\nb", "a\0b", "x" * 300, ".hidden", "ü"])
def test_hostile_names_stay_in_the_directory(name: str) -> None:
    """A file's name is one name of an existing directory, whatever the consumer is called."""
    found = journals.file_name(name)
    assert "/" not in found
    assert found.isprintable()
    assert len(found) < 255
    assert found.startswith("governor-")
    assert found.endswith(journals.SUFFIX)


def test_no_journal(opened: Opened, tmp_path: Path) -> None:
    """None keeps nothing and refuses nothing."""
    journal = opened(None)
    number = journal.intent("run-1", [entry("p1")])
    journal.outcome(number, ["p1"], NOW_US)
    journal.resolve([entry("p1")])
    assert journal.read() == []
    assert journal.unresolved == {}
    journal.close()
    assert list(tmp_path.iterdir()) == []
    assert journals.read(tmp_path / "none") == []


# ---- the files beside it


def test_a_latch_that_cannot_be_read_holds(tmp_path: Path) -> None:
    """Cut after any byte, or anything else in its place: latched (26)."""
    file = LatchFile(tmp_path, "gov-a")
    assert file.latch is None
    file.write(Latch(NOW_US, "drill", "why"))
    assert LatchFile(tmp_path, "gov-a").latch == Latch(NOW_US, "drill", "why")
    assert LatchFile(tmp_path, "gov-b").latch is None
    path = tmp_path / journals.state_file("gov-a", "latch")
    whole = path.read_bytes()
    rng = Random(1)
    for size in range(len(whole)):
        path.write_bytes(whole[:size] if size % 2 else rng.randbytes(size))
        assert LatchFile(tmp_path, "gov-a").latch is not None, f"{path.read_bytes()!r}"
    path.unlink()
    path.mkdir()
    assert LatchFile(tmp_path, "gov-a").latch is not None
    path.rmdir()
    file.clear()
    assert LatchFile(tmp_path, "gov-a").latch is None


def test_a_latch_that_could_not_be_written_holds_in_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full at the first sight of HALT: latched all the same, and said."""
    file = LatchFile(tmp_path, "gov-a")
    monkeypatch.setattr("quantum_alloc.adapters.governor_files.os.fsync", _fails)
    with pytest.raises(OSError, match="No space"):
        file.write(Latch(NOW_US))
    assert file.latch == Latch(NOW_US)


def test_what_is_known_of_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kept over a restart; what cannot be read counts as lost writes beside strangers, which holds opens back; what
    could not be written is tried again."""
    path = tmp_path / "known"
    known = Known("run-1", NOW_US, True, ("gov-b",))
    file = KnownFile(path)
    assert file.known == Known()
    file.write(known)
    assert KnownFile(path).known == known
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        found = KnownFile(path).known
        assert found.epoch not in ("", "run-1")
        assert found.others
    with monkeypatch.context() as full:
        full.setattr("quantum_alloc.adapters.governor_files.os.fsync", _fails)
        with pytest.raises(OSError, match="No space"):
            file.write(Known("run-2"))
    file.write(Known("run-2"))
    assert KnownFile(path).known == Known("run-2")
