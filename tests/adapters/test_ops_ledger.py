"""The OPS ledger: every change is found, every crash is survived, and there is one chain."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from quantum_alloc.adapters import ops_entry, ops_ledger
from quantum_alloc.adapters.effects import Failed, Group
from quantum_alloc.adapters.embedded import EmbeddedServer
from quantum_alloc.adapters.keys import LIVE
from quantum_alloc.adapters.ops_chain import FILE, HEAD_FILE, PENDING_FILE, against, look_at
from quantum_alloc.adapters.ops_entry import Entry, LedgerError, Operation, canonical, make, read_line
from quantum_alloc.adapters.ops_ledger import LOCK_FILE, OpsLedger, Unsound
from quantum_alloc.adapters.store import Store, StoreError
from tests.support.worlds import Client

NOW = 1_769_577_450.0  # 2026-01-28T05:17:30Z
DONE = Operation("mode-change", "anna", "P29 enforces from now on", "limits that hold", hostname="h1")
LINES = 5
HEAD_KEY = LIVE.ops_head


@pytest.fixture
def store(one_client: Client, one_server: EmbeddedServer) -> Iterator[Store]:
    """A connection to an empty server."""
    found = Store(one_server.url)
    yield found
    found.close()


def filled(directory: Path, store: Store, n: int = LINES) -> OpsLedger:
    """A ledger with entries."""
    ledger = OpsLedger(directory, store)
    for i in range(n):
        ledger.append(replace(DONE, notes=f"number {i}", blast_radius="é"), NOW + i)
    return ledger


def files(directory: Path) -> dict[str, bytes]:
    """What a directory holds."""
    return {p.name: p.read_bytes() for p in directory.iterdir()} if directory.exists() else {}


def refused(ledger: OpsLedger, directory: Path) -> bool:
    """Whether an append is refused, and changes nothing."""
    before = files(directory)
    with pytest.raises(Unsound, match="Nothing was recorded: `quantum-alloc ledger verify` tells"):
        ledger.append(DONE, NOW + 99)
    return files(directory) == before


def ids(ledger: OpsLedger) -> list[str]:
    """The entries' ids."""
    return [e.id for e in ledger.entries()]


def notes(ledger: OpsLedger) -> list[str]:
    """The entries' notes."""
    return [e.values["notes"] for e in ledger.entries()]


def test_an_entry_has_what_the_contract_asks_for(tmp_path: Path, store: Store, one_client: Client) -> None:
    """All fields, chained by hash; the head is in the directory and in Redis."""
    ledger = filled(tmp_path, store, 1)
    whole = replace(
        DONE,
        approved_by="bert",
        risk_class="SERVICE_RESTART",
        blast_radius="allocation",
        outcome="ROLLBACK",
        rollback_of="OPS-2026-01-28-001",
        services_status="allocation=active",
        notes="é\n\U0001f600",
        git_commit="c0ffee",
        started=NOW - 1.5,
    )
    entry = ledger.append(whole, NOW + 1)
    first, second = (json.loads(line) for line in (tmp_path / FILE).read_bytes().splitlines())
    assert second == entry.values
    assert second.pop("hash") == hashlib.sha256(canonical(second)).hexdigest() == entry.hash
    assert first["previous"] == "0" * 64
    assert second == {
        "operation_id": "OPS-2026-01-28-002",
        "operation_name": "mode-change",
        "requested_by": "anna",
        "approved_by": "bert",
        "timestamps": {"started": "2026-01-28T05:17:28.500Z", "finished": "2026-01-28T05:17:31.000Z"},
        "git_commit": "c0ffee",
        "hostname": "h1",
        "risk_class": "SERVICE_RESTART",
        "blast_radius": "allocation",
        "changes_summary": "P29 enforces from now on",
        "objective": "limits that hold",
        "outcome": "ROLLBACK",
        "rollback_of": "OPS-2026-01-28-001",
        "services_status": "allocation=active",
        "notes": "é\n\U0001f600",
        "previous": first["hash"],
    }
    head = {"count": "2", "head": entry.hash, "ts": "2026-01-28T05:17:31.000Z"}
    assert one_client.hgetall("quantum:ops:head") == head
    assert json.loads((tmp_path / "ops-head.json").read_bytes()) == {**head, "count": 2}
    assert ledger.verify() == []
    assert not (tmp_path / PENDING_FILE).exists()


def test_numbers_count_within_a_day(tmp_path: Path, store: Store) -> None:
    """NNN begins anew every UTC day, goes on where a clock is set back, and grows beyond three digits."""
    ledger = OpsLedger(tmp_path, store)
    for now in (NOW, NOW + 1, NOW + 86_400, NOW, NOW + 86_400):
        ledger.append(DONE, now)
    assert [i.removeprefix("OPS-2026-01-") for i in ids(ledger)] == ["28-001", "28-002", "29-001", "28-003", "29-002"]
    assert ledger.verify() == []
    late = replace(make(DONE, [], NOW), values={"operation_id": "OPS-2026-01-28-999", "hash": "0" * 64})
    assert make(DONE, [late], NOW).id == "OPS-2026-01-28-1000"
    assert read_line(make(DONE, [late], NOW).line[:-1])[0] is not None


def test_every_byte_counts(tmp_path: Path, store: Store) -> None:
    """Every byte of ledger and head file, changed, taken out or with a space before it; and every truncation."""
    ledger = filled(tmp_path, store, 3)
    for name in (FILE, HEAD_FILE):
        path = tmp_path / name
        good = path.read_bytes()
        for i in range(len(good)):
            before, byte, after = good[:i], good[i], good[i + 1 :]
            edits = [
                before + bytes([byte ^ bit]) + after for bit in (1, 32)
            ]  # 32: another case, the same JSON in \u00e9
            for bad in (*edits, before + after, before, before + b" " + good[i:]):
                path.write_bytes(bad)
                assert ledger.verify(), (name, i, bad)
                assert ledger.verify_files(), (name, i, bad)
        path.write_bytes(good)
    assert ledger.verify() == []


@given(data=st.data())
def test_every_edit_is_found(tmp_path: Path, store: Store, data: st.DataObject) -> None:
    """Any byte to any other; and the append after it is refused."""
    for name in (FILE, HEAD_FILE, PENDING_FILE):
        (tmp_path / name).unlink(missing_ok=True)
    store.read([("FLUSHALL",)])
    ledger = filled(tmp_path, store)
    path = tmp_path / data.draw(st.sampled_from([FILE, HEAD_FILE]))
    good = path.read_bytes()
    at = data.draw(st.integers(0, len(good) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda b: b != good[at]))
    path.write_bytes(good[:at] + bytes([byte]) + good[at + 1 :])
    assert ledger.verify()
    assert refused(ledger, tmp_path)
    path.write_bytes(good)
    assert ledger.verify() == []


def rechained(lines: list[bytes], start: int) -> bytes:
    """The lines from one on with hashes that fit, as a forger would make them."""
    out, previous = [], json.loads(lines[start - 1])["hash"] if start else "0" * 64
    for line in lines[start:]:
        values = {**json.loads(line), "previous": previous}
        del values["hash"]
        values["hash"] = previous = hashlib.sha256(canonical(values)).hexdigest()
        out.append(canonical(values) + b"\n")
    return b"".join([*lines[:start], *out])


def test_every_deletion_swap_and_copy_of_lines_is_found(tmp_path: Path, store: Store) -> None:
    """As they are, and with all hashes made to fit; by the files alone, and, with the head file made to fit, by
    Redis."""
    ledger = filled(tmp_path, store)
    good, head = (tmp_path / FILE).read_bytes(), (tmp_path / HEAD_FILE).read_bytes()
    lines = good.splitlines(keepends=True)
    forged = [lines[:i] + lines[i + 1 :] for i in range(LINES)]
    # one more at the end, with the head file made to fit, is an append to a Redis that was set back
    forged += [lines[:i] + lines[i : i + 1] + lines[i:] for i in range(LINES - 1)]
    for i in range(LINES):
        for j in range(i):
            swapped = list(lines)
            swapped[i], swapped[j] = lines[j], lines[i]
            forged.append(swapped)
    forged += [[line.replace(f"number {i}".encode(), b"nothing") for line in lines] for i in range(LINES)]
    assert len(forged) == 24
    for bad in forged:
        for raw in (b"".join(bad), rechained(bad, 0)):
            (tmp_path / FILE).write_bytes(raw)
            assert ledger.verify_files(), bad
            assert ledger.verify(), bad
            assert refused(ledger, tmp_path)
        last = json.loads(raw.splitlines()[-1])
        fits = {"count": len(bad), "head": last["hash"], "ts": last["timestamps"]["finished"]}
        (tmp_path / HEAD_FILE).write_bytes(canonical(fits) + b"\n")
        assert ledger.verify_files() == []
        assert ledger.verify(), bad
        assert refused(ledger, tmp_path)
        (tmp_path / HEAD_FILE).write_bytes(head)
    (tmp_path / FILE).write_bytes(good)
    assert ledger.verify() == []


def test_every_truncation_is_found(tmp_path: Path, store: Store, one_client: Client) -> None:
    """To a line's end with the head file of that time put back, Redis still knows; with Redis flushed or set back too,
    the head file does."""
    ledger = OpsLedger(tmp_path, store)
    heads: list[tuple[bytes, dict[str, str]]] = [(b"", {})]
    for i in range(LINES):
        ledger.append(DONE, NOW + i)
        heads.append(((tmp_path / HEAD_FILE).read_bytes(), one_client.hgetall(HEAD_KEY)))
    good = (tmp_path / FILE).read_bytes()
    lines = good.splitlines(keepends=True)
    for n in range(LINES):
        for torn in (b"", lines[n][:-1], lines[n][: len(lines[n]) // 2]):
            (tmp_path / FILE).write_bytes(b"".join(lines[:n]) + torn)
            (tmp_path / HEAD_FILE).unlink()
            if n:
                (tmp_path / HEAD_FILE).write_bytes(heads[n][0])
            assert any("taken away" in text or "missing" in text for text in ledger.verify()), (n, torn)
            assert refused(ledger, tmp_path)
            (tmp_path / HEAD_FILE).write_bytes(heads[LINES][0])
            for known in ({}, heads[n][1]):
                one_client.delete(HEAD_KEY)
                if known:
                    one_client.hset(HEAD_KEY, mapping=known)
                assert ledger.verify()
                assert refused(ledger, tmp_path)
            one_client.hset(HEAD_KEY, mapping=heads[LINES][1])
    for name in (FILE, HEAD_FILE):
        content = (tmp_path / name).read_bytes()
        (tmp_path / FILE).write_bytes(good)
        (tmp_path / name).unlink()
        assert ledger.verify_files()
        assert refused(ledger, tmp_path)
        (tmp_path / name).write_bytes(content if name != FILE else good)
    assert ledger.verify() == []


def test_what_was_put_in_is_found(tmp_path: Path, store: Store) -> None:
    """A well-made line that no append wrote, and a pending entry that fits nowhere."""
    ledger = filled(tmp_path, store)
    good = (tmp_path / FILE).read_bytes()
    more = make(DONE, ledger.entries(), NOW + 50)
    (tmp_path / FILE).write_bytes(good + more.line)
    assert "some were put in" in ledger.verify()[0]
    assert refused(ledger, tmp_path)
    (tmp_path / FILE).write_bytes(good)
    for kept in (b"", b"{}\n", b"[" * 20_000, make(DONE, [], NOW).line, more.line[:-9]):
        (tmp_path / PENDING_FILE).write_bytes(kept)
        assert PENDING_FILE in ledger.verify()[0]
        assert refused(ledger, tmp_path)
    (tmp_path / PENDING_FILE).write_bytes(more.line)
    (tmp_path / FILE).write_bytes(good + more.line + more.line)
    assert "some were put in" in ledger.verify()[0]
    assert refused(ledger, tmp_path)


@pytest.mark.parametrize(
    ("field", "text"),
    [("count", "04"), ("count", "x"), ("count", "99"), ("count", "9" * 5000), ("head", "0" * 64), ("ts", "5")],
)
def test_a_changed_head_in_redis_is_found(
    field: str, text: str, tmp_path: Path, store: Store, one_client: Client
) -> None:
    """Each of its fields, changed or taken out; and a key of another type."""
    ledger = filled(tmp_path, store)
    good = one_client.hgetall(HEAD_KEY)
    one_client.hset(HEAD_KEY, field, text)
    assert ledger.verify()
    assert refused(ledger, tmp_path)
    one_client.hdel(HEAD_KEY, field)
    assert ledger.verify()
    one_client.hset(HEAD_KEY, mapping=good)
    assert ledger.verify() == []
    one_client.delete(HEAD_KEY)
    one_client.set(HEAD_KEY, "x")
    assert "holds no head" in ledger.verify()[0]
    assert refused(ledger, tmp_path)


def test_redis_may_forget(tmp_path: Path, store: Store, one_client: Client) -> None:
    """Flushed, or set back to any earlier head: sound, and the next append brings the head back."""
    ledger = OpsLedger(tmp_path, store)
    heads: list[dict[str, str]] = [{}]
    for i in range(LINES):
        for known in heads:
            one_client.flushall()
            if known:
                one_client.hset(HEAD_KEY, mapping=known)
            assert ledger.verify() == []
        entry = ledger.append(DONE, NOW + i)
        heads.append(one_client.hgetall(HEAD_KEY))
        assert heads[-1] == {"count": str(i + 1), "head": entry.hash, "ts": entry.finished}
    assert ledger.verify() == []


def test_each_step_is_on_disk_before_the_next(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a crash test cannot see, because the kernel keeps what a process has written."""
    ledger = filled(tmp_path, store, 1)
    seen: list[str] = []

    def noted(owner: Any, name: str, told: Callable[..., str]) -> None:
        real = getattr(owner, name)

        def step(*args: Any) -> Any:
            seen.append(f"{name} {told(*args)}".strip())
            return real(*args)

        monkeypatch.setattr(owner, name, step)

    def named(descriptor: int) -> str:
        there = {os.stat(p).st_ino: p.name for p in (tmp_path, *tmp_path.iterdir())}
        return there[os.fstat(descriptor).st_ino]

    noted(os, "fsync", named)
    noted(os, "replace", lambda _, to: Path(to).name)
    noted(Store, "apply", lambda *_: "")
    noted(Path, "unlink", lambda path: path.name)
    ledger.append(DONE, NOW + 5)
    saved = ["fsync {0}.tmp", "replace {0}", f"fsync {tmp_path.name}"]
    assert seen == [
        *(step.format(PENDING_FILE) for step in saved),
        "apply",
        f"fsync {FILE}",
        f"fsync {tmp_path.name}",
        *(step.format(HEAD_FILE) for step in saved),
        f"unlink {PENDING_FILE}",
    ]


class Crash(BaseException):
    """The process ends here."""


FEWEST_STEPS = 30
"""No append has fewer steps than this."""


class Steps:
    """Ends the process before or after its n-th step that can be seen from outside."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, trouble: Callable[[], BaseException] = Crash) -> None:
        """Watch every such step."""
        self.left = -1
        self.trouble = trouble
        targets: list[tuple[Any, str]] = [
            (os, "open"), (os, "fsync"), (os, "replace"), (Path, "open"), (Path, "unlink"), (Path, "mkdir"),
        ]  # fmt: skip
        if trouble is Crash:
            targets += [(Store, "apply"), (Store, "read")]
        for owner, name in targets:
            monkeypatch.setattr(owner, name, self._step(getattr(owner, name)))

    def _step(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any, **more: Any) -> Any:
            self._tick()
            done = real(*args, **more)
            if real.__name__ != "open":  # what is open must be closed; the next step comes right after it
                self._tick()
            return done

        return step

    def _tick(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise self.trouble()


def after_a_crash(ledger: OpsLedger, told: list[str], flush: Callable[[], object] | None = None) -> None:
    """Nothing to find; nothing lost that was acknowledged; at most the one under way is there too; appends go on."""
    if flush is not None:
        flush()
    assert ledger.verify() == []
    told.append(ledger.append(replace(DONE, notes="afterwards"), NOW + 50).id)
    assert ledger.verify() == []
    found = ids(ledger)
    assert set(told) <= set(found)
    assert len(found) <= len(told) + 1
    assert found == sorted(set(found))


@pytest.mark.parametrize("flushed", [False, True])
@pytest.mark.parametrize("before", [0, 1, 3])
def test_a_crash_at_any_step_is_harmless(
    before: int, flushed: bool, tmp_path: Path, store: Store, one_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same for every step, also where Redis forgets everything in the crash."""
    steps, crashes = Steps(monkeypatch), 0
    for n in range(1, 500):
        one_client.flushall()
        ledger = filled(tmp_path / str(n), store, before)
        told = ids(ledger)
        steps.left = n
        try:
            told.append(ledger.append(replace(DONE, notes="crashed"), NOW + 40).id)
        except Crash:
            crashes += 1
        ended, steps.left = steps.left, -1
        after_a_crash(ledger, told, one_client.flushall if flushed else None)
        if ended > 0:
            break
    assert crashes >= FEWEST_STEPS


def test_a_crash_in_the_repair_of_a_crash_is_harmless(
    tmp_path: Path, store: Store, one_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every step of an append that finds what another has left at any of its steps."""
    steps, seen = Steps(monkeypatch), 0
    for n in range(1, FEWEST_STEPS + 1):
        for m in range(1, 200, 3):
            one_client.flushall()
            ledger = filled(tmp_path / f"{n}-{m}", store, 1)
            told = ids(ledger)
            steps.left = n
            with pytest.raises(Crash):
                ledger.append(replace(DONE, notes="first"), NOW + 40)
            left, steps.left = (tmp_path / f"{n}-{m}" / PENDING_FILE).exists(), m
            try:
                told.append(ledger.append(replace(DONE, notes="second"), NOW + 41).id)
            except Crash:
                seen += left
            ended, steps.left = steps.left, -1
            assert ledger.verify() == []
            told.append(ledger.append(replace(DONE, notes="afterwards"), NOW + 50).id)
            assert ledger.verify() == []
            assert set(told) <= set(ids(ledger))
            if ended > 0:
                break
    assert seen > 100


@pytest.mark.parametrize("reserved", [True, False])
@given(share=st.floats(0, 1))
@example(share=0.0)
@example(share=1.0)
def test_a_torn_line_is_written_again(
    reserved: bool, share: float, tmp_path: Path, store: Store, one_client: Client
) -> None:
    """However much of the line had come to the disk, and even other bytes in its place."""
    for name in (FILE, HEAD_FILE, PENDING_FILE):
        (tmp_path / name).unlink(missing_ok=True)
    store.read([("FLUSHALL",)])
    ledger = filled(tmp_path, store, 2)
    good, head = (tmp_path / FILE).read_bytes(), (tmp_path / HEAD_FILE).read_bytes()
    second = one_client.hgetall(HEAD_KEY)
    entry = ledger.append(replace(DONE, notes="torn"), NOW + 40)
    (tmp_path / HEAD_FILE).write_bytes(head)
    (tmp_path / PENDING_FILE).write_bytes(entry.line)
    if not reserved:
        one_client.hset(HEAD_KEY, mapping=second)
    cut = entry.line[: round(share * len(entry.line))]
    for torn in (cut, b"\0" * len(cut)):
        (tmp_path / FILE).write_bytes(good + torn)
        (tmp_path / HEAD_FILE).write_bytes(head)
        (tmp_path / PENDING_FILE).write_bytes(entry.line)
        assert ledger.verify() == []
    told = ledger.append(replace(DONE, notes="afterwards"), NOW + 50)
    assert notes(ledger) == ["number 0", "number 1", "torn", "afterwards"]
    assert (told.previous, ledger.verify()) == (entry.hash, [])


def test_a_torn_tail_that_nobody_counts_is_cut_off(tmp_path: Path, store: Store, one_client: Client) -> None:
    """Exactly it; a head that counts it makes it a finding."""
    ledger = filled(tmp_path, store, 2)
    good = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(good + b'{"approved_by"')
    assert ledger.verify() == []
    entry = ledger.append(DONE, NOW + 5)
    assert (tmp_path / FILE).read_bytes() == good + entry.line
    (tmp_path / FILE).write_bytes(good + entry.line[:-1])
    assert ledger.verify()
    assert refused(ledger, tmp_path)


KILLED = """
import sys, time
from pathlib import Path
from quantum_alloc.adapters.ops_ledger import OpsLedger, Operation
from quantum_alloc.adapters.store import Store
ledger = OpsLedger(Path(sys.argv[1]), Store(sys.argv[2], timeout_s=5.0))
print("ready", flush=True)
sys.stdin.readline()
for i in range(int(sys.argv[3])):
    entry = ledger.append(Operation("deploy", sys.argv[4], "s" * 3000, "o", notes=str(i)), 1769577450.0 + i)
    print(entry.id, flush=True)
    time.sleep(0.003)  # the other one's turn
"""


def start(directory: Path, url: str, n: int, name: str) -> subprocess.Popen[str]:
    """A process that appends, and tells each entry that was acknowledged."""
    words = [sys.executable, "-c", KILLED, str(directory), url, str(n), name]
    return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def released(writer: subprocess.Popen[str]) -> None:
    """Let a process begin that has come up."""
    assert writer.stdin is not None
    assert writer.stdout is not None
    assert writer.stdout.readline() == "ready\n"
    writer.stdin.write("go\n")
    writer.stdin.flush()


def test_a_killed_writer_loses_nothing(tmp_path: Path, store: Store, one_server: EmbeddedServer) -> None:
    """SIGKILL at random instants: every acknowledged entry is there, and the next writer goes on."""
    ledger, told, chance = OpsLedger(tmp_path, store), [], random.Random(7)
    for round_ in range(8):
        with start(tmp_path, one_server.url, 100_000, f"w{round_}") as writer:
            released(writer)
            assert writer.stdout is not None
            time.sleep(chance.uniform(0.0, 0.08))
            writer.send_signal(signal.SIGKILL)
            said = writer.stdout.read().splitlines(keepends=True)
        told += [line.strip() for line in said if line.endswith("\n")]
        assert ledger.verify() == []
    told.append(ledger.append(DONE, NOW + 50).id)
    found = ids(ledger)
    assert ledger.verify() == []
    assert set(told) <= set(found)
    assert len(found) == len(set(found)) <= len(told) + 8
    assert len(told) > 8


def test_two_processes_write_one_chain(tmp_path: Path, store: Store, one_server: EmbeddedServer) -> None:
    """Fifty entries each in one directory: a hundred, each once, in one chain."""
    writers = [start(tmp_path, one_server.url, 50, name) for name in ("a", "b")]
    for writer in writers:
        released(writer)
    told = [writer.communicate(timeout=120)[0].split() for writer in writers]
    assert [writer.returncode for writer in writers] == [0, 0]
    ledger = OpsLedger(tmp_path, store)
    assert ledger.verify() == []
    assert sorted(told[0] + told[1]) == ids(ledger) == [f"OPS-2026-01-28-{i:03d}" for i in range(1, 101)]
    by = [(e.values["requested_by"], e.values["notes"]) for e in ledger.entries()]
    for name in ("a", "b"):
        assert [n for b, n in by if b == name] == [str(i) for i in range(50)]
    assert sum(x[0] != y[0] for x, y in pairwise(by)) > 1, "they never took turns"


def test_a_second_directory_is_refused(tmp_path: Path, store: Store) -> None:
    """Empty, with a chain of its own, or a copy that has fallen behind."""
    ledger = filled(tmp_path / "a", store, 2)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    ledger.append(DONE, NOW + 5)
    for name in ("b", "c"):
        with pytest.raises(Unsound, match="another directory appends to this Redis"):
            OpsLedger(tmp_path / name, store).append(DONE, NOW + 6)
        assert OpsLedger(tmp_path / name, store).verify()
    assert files(tmp_path / "c") == {LOCK_FILE: b""}
    store.read([("FLUSHALL",)])
    other = OpsLedger(tmp_path / "d", store)
    other.append(replace(DONE, notes="another chain"), NOW)
    assert refused(ledger, tmp_path / "a")
    assert (ledger.verify() != [], other.verify()) == (True, [])


@pytest.mark.parametrize("n", [0, 2])
def test_two_directories_at_once_never_fork(n: int, tmp_path: Path, store: Store, one_server: EmbeddedServer) -> None:
    """Many copies of one ledger, one append each at the same time: one is taken, the others write no line."""
    filled(tmp_path / "origin", store, n)
    (tmp_path / "origin").mkdir(exist_ok=True)
    for round_ in range(10):
        names = [tmp_path / f"{round_}-{i}" for i in range(4)]
        for name in names:
            shutil.copytree(tmp_path / "origin", name)
        before = files(tmp_path / "origin").get(FILE, b"")
        taken: list[Path] = []
        gate = threading.Barrier(4)

        def one(name: Path, taken: list[Path] = taken, gate: threading.Barrier = gate) -> None:
            mine = Store(one_server.url, timeout_s=5.0)
            gate.wait()
            try:
                OpsLedger(name, mine).append(replace(DONE, notes=name.name), NOW + 60)
                taken.append(name)
            except Unsound:
                pass
            finally:
                mine.close()

        threads = [threading.Thread(target=one, args=(name,)) for name in names]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(taken) == 1
        for name in names:
            assert (files(name).get(FILE, b"") != before) == (name == taken[0])
            assert PENDING_FILE not in files(name)
            assert (OpsLedger(name, store).verify() == []) == (name == taken[0])
        shutil.rmtree(tmp_path / "origin")
        shutil.copytree(taken[0], tmp_path / "origin")


def test_a_head_that_moves_while_it_is_watched_is_a_refusal(
    tmp_path: Path, store: Store, one_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another directory's append between the look and the reservation: nothing is left of ours."""
    other_store = Store(one_server.url)
    ledger = filled(tmp_path / "a", store, 2)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    before, real = files(tmp_path / "a"), Store.apply

    def apply(self: Store, groups: list[Group]) -> Any:
        if self is store:
            OpsLedger(tmp_path / "b", other_store).append(DONE, NOW + 7)
        return real(self, groups)

    monkeypatch.setattr(Store, "apply", apply)
    with pytest.raises(Unsound, match="another ledger with the same Redis appended in the meantime"):
        ledger.append(DONE, NOW + 8)
    assert files(tmp_path / "a") == before
    other_store.close()


def failing(store: Store, monkeypatch: pytest.MonkeyPatch, code: str, *, applied: bool) -> None:
    """One write that fails, having been done or not."""
    real, left = store.apply, [1]

    def apply(groups: Any) -> Any:
        if left and left.pop():
            if applied:
                real(groups)
            raise StoreError(code, "the server")
        return real(groups)

    monkeypatch.setattr(store, "apply", apply)


@pytest.mark.parametrize("code", ["timeout", "closed", "other", "unreachable"])
def test_an_answer_that_never_came(code: str, tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Taken nevertheless: recorded. Not known: kept, said so, sound, and finished by the next append."""
    ledger = filled(tmp_path, store, 2)
    failing(store, monkeypatch, code, applied=True)
    ledger.append(replace(DONE, notes="taken"), NOW + 5)
    assert ledger.verify() == []
    failing(store, monkeypatch, code, applied=False)
    with pytest.raises(StoreError, match=r"OPS-2026-01-28-004 is kept in .* the next append finishes it") as caught:
        ledger.append(replace(DONE, notes="kept"), NOW + 6)
    assert caught.value.code == code
    assert ledger.verify() == []
    ledger.append(replace(DONE, notes="next"), NOW + 7)
    assert notes(ledger)[2:] == ["taken", "kept", "next"]
    assert ledger.verify() == []


def test_a_reservation_that_arrives_late_is_the_same(
    tmp_path: Path, store: Store, one_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first try's EXEC is done by a slow server while the repair watches: both wanted the same head."""
    ledger = filled(tmp_path, store, 2)
    failing(store, monkeypatch, "timeout", applied=False)
    with pytest.raises(StoreError):
        ledger.append(replace(DONE, notes="kept"), NOW + 6)
    kept = read_line((tmp_path / PENDING_FILE).read_bytes()[:-1])[0]
    assert kept is not None
    real, late = store.apply, [{"count": "3", "head": kept.hash, "ts": kept.finished}]

    def apply(groups: Any) -> Any:
        if late:
            one_client.hset(HEAD_KEY, mapping=late.pop())
        return real(groups)

    monkeypatch.setattr(store, "apply", apply)
    ledger.append(replace(DONE, notes="next"), NOW + 7)
    assert notes(ledger)[2:] == ["kept", "next"]
    assert ledger.verify() == []


@pytest.mark.parametrize("code", ["OOM", "READONLY", "NOPERM", "EXECABORT"])
def test_a_refusal_leaves_nothing(code: str, tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server has said that it did not write."""
    ledger = filled(tmp_path, store, 2)
    before = files(tmp_path)
    failing(store, monkeypatch, code, applied=False)
    with pytest.raises(StoreError) as caught:
        ledger.append(DONE, NOW + 6)
    assert (caught.value.code, files(tmp_path)) == (code, before)
    ledger.append(DONE, NOW + 7)
    assert ledger.verify() == []


def test_a_refusal_in_a_repair_keeps_what_is_to_be_repaired(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first reservation may still be on its way: the entry stays until Redis has said yes."""
    ledger = filled(tmp_path, store, 2)
    for code in ("timeout", "OOM"):
        failing(store, monkeypatch, code, applied=False)
        with pytest.raises(StoreError, match="OPS-2026-01-28-003 is kept in"):
            ledger.append(replace(DONE, notes="kept"), NOW + 6)
        assert (tmp_path / PENDING_FILE).exists()
    ledger.append(replace(DONE, notes="next"), NOW + 7)
    assert notes(ledger)[2:] == ["kept", "next"]


def test_without_redis_nothing_is_written(tmp_path: Path) -> None:
    """Not even the directory; the files can be looked at."""
    ledger = OpsLedger(tmp_path / "deep" / "down", Store("redis://127.0.0.1:1/0"))
    with pytest.raises(StoreError, match="cannot be reached"):
        ledger.append(DONE, NOW)
    assert list(tmp_path.iterdir()) == []
    assert (ledger.entries(), ledger.verify_files()) == ([], [])
    with pytest.raises(StoreError):
        ledger.verify()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told(tmp_path: Path, store: Store, one_client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """At every step: one sentence; then, with room again, everything goes on."""
    steps = Steps(monkeypatch, lambda: OSError(errno.ENOSPC, "No space left on device"))
    kept, said = 0, ""
    for n in range(1, 200):
        one_client.flushall()
        ledger = filled(tmp_path / str(n), store, 1)
        told = ids(ledger)
        steps.left = n
        try:
            told.append(ledger.append(replace(DONE, notes="no room"), NOW + 5).id)
        except LedgerError as error:
            said = str(error)
        ended, steps.left = steps.left, -1
        if len(told) == 1:
            assert "No space left on device" in said
            assert ("is kept" in said) == (one_client.hget(HEAD_KEY, "count") == "2")
            kept += "is kept" in said
        after_a_crash(ledger, told)
        if ended > 0:
            break
    assert kept > 5


def test_files_that_cannot_be_used_are_told(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory in a file's place, a file in the directory's place, a lock that is held."""
    (tmp_path / "a" / FILE).mkdir(parents=True)
    for read in (OpsLedger(tmp_path / "a", store).verify, OpsLedger(tmp_path / "a", store).entries):
        with pytest.raises(LedgerError, match="cannot be read: Is a directory"):
            read()
    (tmp_path / "b").write_text("x")
    with pytest.raises(LedgerError, match="cannot be written: File exists"):
        OpsLedger(tmp_path / "b", store).append(DONE, NOW)
    with pytest.raises(LedgerError, match="cannot be read: Not a directory"):
        OpsLedger(tmp_path / "b", store).verify()
    ledger = filled(tmp_path / "c", store, 1)
    monkeypatch.setattr(ops_ledger, "LOCK_WAIT_S", 0.05)
    with (tmp_path / "c" / LOCK_FILE).open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(LedgerError, match="another program has held"):
            ledger.append(DONE, NOW)
        with pytest.raises(LedgerError, match="another program has held"):
            ledger.verify()
    assert ledger.verify() == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"operation_name": "two words"}, "operation_name is 'two words'"),
        ({"requested_by": " "}, "requested_by is empty"),
        ({"changes_summary": ""}, "changes_summary is empty"),
        ({"objective": ""}, "objective is empty"),
        ({"risk_class": "HIGH"}, "give one of READ_ONLY"),
        ({"outcome": "success"}, "give one of SUCCESS"),
        ({"rollback_of": "OPS-1"}, "give an id like"),
        ({"rollback_of": "OPS-2026-01-28-001"}, "is not in the ledger"),
        ({"notes": "x" * 4001}, "has 4,001 characters"),
        ({"notes": "a\x1b[2J"}, r"notes holds the character U\+001B"),
        ({"requested_by": "a\udcff"}, r"requested_by holds the character U\+DCFF"),
        ({"hostname": "a\u202eb"}, r"hostname holds the character U\+202E"),
        ({"notes": "\U0001f600" * 4000, "blast_radius": "\U0001f600" * 4000}, "shorten its texts"),
        ({"started": float("nan")}, "is not a time"),
        ({"started": -1.0}, "is not a time"),
    ],
)
def test_mistakes_are_told(change: dict[str, Any], said: str, tmp_path: Path, store: Store) -> None:
    """One sentence; no entry."""
    ledger = OpsLedger(tmp_path, store)
    with pytest.raises(LedgerError, match=said):
        ledger.append(replace(DONE, **change), NOW)
    assert (ledger.entries(), ledger.verify()) == ([], [])
    with pytest.raises(LedgerError, match="is not a time"):
        ledger.append(DONE, 1e300)


@given(st.binary(max_size=300))
def test_reading_a_line_never_fails(raw: bytes) -> None:
    """Any bytes are an entry or a reason."""
    entry, why = read_line(raw)
    assert (entry is None) == bool(why)


@given(st.dictionaries(st.sampled_from(sorted(ops_entry.NAMES)), st.one_of(st.text(), st.integers(), st.none())))
def test_lines_of_other_types_are_none(values: dict[str, object]) -> None:
    """Fields that are missing, or of another type."""
    good: Entry = make(DONE, [], NOW)
    changed = {**good.values, **values}
    raw = canonical(changed)
    assert (read_line(raw)[0] is None) == (raw + b"\n" != good.line)
    assert read_line(canonical(values))[0] is None


def test_a_line_that_is_too_long_is_not_even_parsed() -> None:
    """64 kB are the most."""
    assert "more than 65,536" in read_line(b"[" * 70_000)[1]


def test_a_reply_that_is_no_head() -> None:
    """Whatever the server answers."""
    look = look_at(b"", None, None)
    assert against(look, [None, None, None], HEAD_KEY) == []
    for reply in (None, 5, Failed("WRONGTYPE"), [None, b"x", None], [b"1", None, None]):
        assert len(against(look, reply, HEAD_KEY)) == 1
