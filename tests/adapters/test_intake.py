"""Plans out of the stream: none is passed over, whose turn it is, and how much is read at a time."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from quantum_alloc.adapters import plans
from quantum_alloc.adapters.commit import Status
from quantum_alloc.adapters.effects import Command
from quantum_alloc.adapters.embedded import EmbeddedServer
from quantum_alloc.adapters.execution_reader import PAGE_BYTES
from quantum_alloc.adapters.intake import BATCH, FIRST_PAGE, PENDING_PAGE, Entry, Intake, Tries
from quantum_alloc.adapters.store import Store
from quantum_alloc.core.plan import Plan
from tests.support.worlds import Client

STREAM, GROUP, ME = "plans", "governor", "gov-a"


@pytest.fixture
def store(one_server: EmbeddedServer, one_client: Client) -> Iterator[Store]:
    """A connection to an empty server."""
    found = Store(one_server.url)
    yield found
    found.close()
    assert one_client.ping()


def intake(store: Store, path: Path | None = None, consumer: str = ME) -> Intake:
    """An intake that never waits."""
    return Intake(store, STREAM, GROUP, consumer, 120, Tries(path), once=True)


def send(client: Client, *ids: str, size: int = 0) -> list[str]:
    """Plans; the ids of their entries."""
    pipe = client.pipeline(transaction=False)
    for i in ids:
        more = {"note": "x" * size} if size else {}
        pipe.xadd(STREAM, {"plan_id": i, "symbol": "BTCUSDT", "action": "ENTRY", "decision": "EXECUTE", **more})
    return [str(found) for found in pipe.execute()]


def names(batch: Sequence[Entry]) -> list[str]:
    """Plan ids of a batch."""
    found = []
    for entry in batch:
        made = plans.decode(entry.raw)
        assert isinstance(made, Plan)
        found.append(made.plan_id)
    return found


def answer(client: Client, taken: Intake, batch: Sequence[Entry], status: Status = Status.OK) -> None:
    """Settle a batch as the commit does."""
    if batch and status is Status.OK:
        client.xack(STREAM, GROUP, *(e.id for e in batch))
    taken.settle([status] * len(batch))


def drained(client: Client, taken: Intake, most: int = 200) -> list[str]:
    """Everything that is handed out until there is no more, each batch answered."""
    found: list[str] = []
    for _ in range(most):
        batch = taken.take("")
        if not batch:
            return found
        found += names(batch)
        answer(client, taken, batch)
    raise AssertionError("there is more")


def watched(store: Store, monkeypatch: pytest.MonkeyPatch) -> list[Command]:
    """Every reading command that the store is asked from now on."""
    real, asked = store.read, list[Command]()

    def read(commands: Sequence[Command], *rest: Any, **how: Any) -> Any:
        asked.extend(commands)
        return real(commands, *rest, **how)

    monkeypatch.setattr(store, "read", read)
    return asked


def counts(asked: Sequence[Command]) -> list[int]:
    """How many entries each read of new ones asked for."""
    return [int(c[c.index("COUNT") + 1]) for c in asked if c[0] == "XREADGROUP"]


# ---- tries


def began(tries: Tries, *ids: str) -> dict[str, int]:
    """One more try of each; what is counted then."""
    tries.begun(ids)
    return {i: tries.count(i) for i in ids}


def test_tries_outlive_the_process(tmp_path: Path) -> None:
    """Each delivery that the process did not survive counts one, an answer forgets them, trouble with the store takes
    its own back."""
    path = tmp_path / "tries"
    assert [began(Tries(path), "1-0", "2-0") for _ in range(3)] == [{"1-0": n, "2-0": n} for n in (1, 2, 3)]
    tries = Tries(path)
    tries.excused(["1-0", "9-0"])
    tries.ended(["2-0", "9-0"])
    assert began(Tries(path), "1-0", "2-0") == {"1-0": 3, "2-0": 1}
    assert began(Tries(path)) == {}


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"7", b'{"1-0":"5"}', b'{"1-0":null}', b"\xff", b'{"2-0":4}'])
def test_a_file_of_tries_that_cannot_be_read_counts_nothing(raw: bytes, tmp_path: Path) -> None:
    """Anything in its place: begun anew."""
    path = tmp_path / "tries"
    path.write_bytes(raw)
    assert began(Tries(path), "1-0") == {"1-0": 1}
    assert began(Tries(path), "1-0") == {"1-0": 2}


def test_tries_without_a_file_or_with_one_that_cannot_be_written(tmp_path: Path) -> None:
    """Nothing is kept, and nothing breaks."""
    for path in (None, tmp_path / "nowhere" / "tries"):
        tries = Tries(path)
        assert began(tries, "1-0") == {"1-0": 1}
        tries.excused(["1-0"])
        tries.ended(["1-0"])
    assert list(tmp_path.iterdir()) == []


def test_the_file_of_tries_stays_small(store: Store, one_client: Client, tmp_path: Path) -> None:
    """Entries that were trimmed, or answered by another governor, leave the file too (41)."""
    path = tmp_path / "tries"
    for n in range(4):
        send(one_client, *(f"p{n}-{k}" for k in range(10)))
        if n == 0:
            one_client.xgroup_create(STREAM, GROUP, "0")
        one_client.xreadgroup(GROUP, ME, {STREAM: ">"})
        begun = intake(store, path)
        if n % 2:
            one_client.xtrim(STREAM, maxlen=0, approximate=False)
            assert begun.take("") == []
            assert begun.missed == 10
        else:
            batch = begun.take("")
            one_client.xack(STREAM, GROUP, *(e.id for e in batch))
            begun.doubt()
            assert begun.take("") == []
    assert intake(store, path).take("") == []
    assert not path.exists() or json.loads(path.read_bytes()) == {}


# ---- what is handed out


def test_own_pending_of_several_pages(store: Store, one_client: Client) -> None:
    """More pending entries than a page of them holds: all are handed out, once, in the order of the stream, a batch
    at a time (30)."""
    ids = [f"p{n:05}" for n in range(2 * PENDING_PAGE + 337)]
    send(one_client, *ids)
    one_client.xgroup_create(STREAM, GROUP, "0")
    one_client.xreadgroup(GROUP, ME, {STREAM: ">"})
    begun = intake(store)
    batch = begun.take("")
    assert names(batch) == ids[:BATCH]
    assert begun.waiting == len(ids)
    answer(one_client, begun, batch)
    assert drained(one_client, begun) == ids[BATCH:]
    assert one_client.xpending(STREAM, GROUP)["pending"] == 0


@pytest.mark.parametrize("n", [1, PENDING_PAGE - 1, PENDING_PAGE, PENDING_PAGE + 1])
def test_own_pending_at_the_edge_of_a_page(n: int, store: Store, one_client: Client) -> None:
    """Exactly a page of pending entries, one less, one more."""
    ids = [f"p{k}" for k in range(n)]
    send(one_client, *ids)
    one_client.xgroup_create(STREAM, GROUP, "0")
    one_client.xreadgroup(GROUP, ME, {STREAM: ">"})
    assert drained(one_client, intake(store)) == ids


def test_pending_ones_first_and_all_in_the_order_of_the_stream(store: Store, one_client: Client) -> None:
    """Own pending entries, those of a silent consumer, and new ones: one batch, sorted as the stream is; those of a
    consumer that is not silent stay its own."""
    send(one_client, "a")
    one_client.xgroup_create(STREAM, GROUP, "0")
    entries = send(one_client, "b", "c", "d", "e", "f")
    one_client.xreadgroup(GROUP, "gov-dead", {STREAM: ">"}, count=2)
    one_client.xreadgroup(GROUP, ME, {STREAM: ">"}, count=1)
    one_client.xreadgroup(GROUP, "gov-alive", {STREAM: ">"}, count=1)
    one_client.xreadgroup(GROUP, ME, {STREAM: ">"}, count=1)
    one_client.xclaim(STREAM, GROUP, "gov-dead", 0, [entries[0]], idle=10_000, justid=True)
    one_client.xclaim(STREAM, GROUP, "gov-dead", 0, [one_client.xrange(STREAM)[0][0]], idle=10_000, justid=True)
    begun = intake(store)
    assert names(begun.take("")) == ["a", "b", "c", "e", "f"]
    assert begun.consumers == {"gov-dead", "gov-alive", ME}


def test_many_entries_of_a_silent_consumer(store: Store, one_client: Client) -> None:
    """More than one claim takes: a further part each second, all of them in the end, each once."""
    ids = [f"p{n}" for n in range(2 * BATCH + 50)]
    entries = send(one_client, *ids)
    one_client.xgroup_create(STREAM, GROUP, "0")
    one_client.xreadgroup(GROUP, "gov-dead", {STREAM: ">"})
    one_client.xclaim(STREAM, GROUP, "gov-dead", 0, entries, idle=60_000, justid=True)
    begun = intake(store)
    found: list[str] = []
    deadline = time.monotonic() + 10
    while len(found) < len(ids):
        assert time.monotonic() < deadline
        batch = begun.take("")
        found += names(batch)
        answer(one_client, begun, batch)
        time.sleep(0.05)
    assert sorted(found) == sorted(ids)
    assert one_client.xpending(STREAM, GROUP)["pending"] == 0


def test_what_is_not_settled_is_handed_out_again(store: Store, one_client: Client) -> None:
    """Moved, taken, of another type, failed, waiting: held, each at its own price; settled ones are not."""
    send(one_client, *"abcdefg")
    begun = intake(store)
    batch = begun.take("")
    statuses = [Status.OK, Status.GONE, Status.MOVED, Status.TAKEN, Status.TYPE, Status.FAILED, Status.WAITS]
    one_client.xack(STREAM, GROUP, batch[0].id, batch[1].id)
    assert begun.settle(statuses) == [batch[0].id, batch[1].id]
    again = begun.take("")
    assert names(again) == list("cdfg"), "what met a key of another type lets the others pass for a second"
    assert [(e.moved, e.tries, e.taken) for e in again] == [(1, 0, False), (1, 0, True), (0, 1, False), (0, 0, False)]
    assert begun.waiting == 5
    begun.settle([Status.WAITS] * 4)
    time.sleep(1.05)
    assert names(begun.take("")) == list("cdefg")


def test_one_that_moves_for_ever_lets_the_others_pass(store: Store, one_client: Client) -> None:
    """(30) After some tries alone it yields to those behind it."""
    send(one_client, "a", "b")
    begun = intake(store)
    for _ in range(3):
        begun.take("")
        begun.settle([Status.MOVED] * 2)
    seen = []
    for _ in range(12):
        batch = begun.take("")
        seen += names(batch)
        if names(batch) == ["b"]:
            answer(one_client, begun, batch)
        else:
            begun.settle([Status.MOVED])
    assert "b" in seen


def test_what_a_process_did_not_survive_twice_is_handed_out_alone(
    store: Store, one_client: Client, tmp_path: Path
) -> None:
    """A first redelivery comes in a batch; one that ended again comes alone, so that it takes no other with it."""
    send(one_client, "a", "b", "c")
    one_client.xgroup_create(STREAM, GROUP, "0")
    one_client.xreadgroup(GROUP, ME, {STREAM: ">"})
    path = tmp_path / "tries"
    assert names(intake(store, path).take("")) == ["a", "b", "c"]
    for n in range(3):
        batch = intake(store, path).take("")
        assert (names(batch), batch[0].tries, batch[0].is_given_up) == (["a"], n + 2, False)
    begun = intake(store, path)
    batch = begun.take("")
    assert (names(batch), batch[0].is_given_up) == (["a"], True)
    answer(one_client, begun, batch)
    for name in "bc":
        batch = begun.take("")
        assert (names(batch), batch[0].is_given_up) == ([name], False)
        answer(one_client, begun, batch)


def test_what_moved_three_times_is_handed_out_alone(store: Store, one_client: Client) -> None:
    """After three times one by one, until something of it is settled."""
    send(one_client, "a", "b", "c")
    begun = intake(store)
    for _ in range(3):
        batch = begun.take("")
        assert names(batch) == ["a", "b", "c"]
        begun.settle([Status.MOVED] * 3)
    for name in "abc":
        batch = begun.take("")
        assert names(batch) == [name]
        answer(one_client, begun, batch)
    assert begun.take("") == []


def test_an_error_of_ours_is_looked_for_one_by_one(store: Store, one_client: Client) -> None:
    """A batch that was never settled is handed out one by one, and only what fails alone counts a try."""
    send(one_client, "a", "b", "c")
    begun = intake(store)
    assert names(begun.take("")) == ["a", "b", "c"]
    batch = begun.take("")
    assert (names(batch), batch[0].tries) == (["a"], 0)
    answer(one_client, begun, batch)
    assert names(begun.take("")) == ["b", "c"], "it was another one"
    for tries in range(5):
        batch = begun.take("")
        assert (names(batch), batch[0].tries, batch[0].is_given_up) == (["b"], tries, False)
    (given_up,) = begun.take("")
    assert given_up.is_given_up
    answer(one_client, begun, [given_up])
    assert names(begun.take("")) == ["c"]


def test_doubt_makes_the_queue_what_is_pending(store: Store, one_client: Client) -> None:
    """After trouble with the store: what is not pending any more has its answer, what is keeps what it has cost, and
    what was delivered unseen is found."""
    send(one_client, "a", "b")
    begun = intake(store)
    batch = begun.take("")
    begun.settle([Status.FAILED, Status.MOVED])
    send(one_client, "c")
    one_client.xreadgroup(GROUP, ME, {STREAM: ">"})
    one_client.xack(STREAM, GROUP, batch[1].id)
    begun.take("")
    begun.doubt()
    again = begun.take("")
    assert names(again) == ["a", "c"]
    assert [e.tries for e in again] == [1, 0]


# ---- groups and gaps


def test_a_group_that_vanished_is_made_at_the_last_answer_less_the_life_of_a_plan(
    store: Store, one_client: Client
) -> None:
    """Entries older than a plan can be valid before the last answer are not read again, younger ones are; before the
    first answer everything is."""
    at = 1_769_577_495_000
    for name, ms in (("old", at - 126_000), ("young", at - 124_000), ("last", at), ("new", at + 5)):
        one_client.xadd(STREAM, {"plan_id": name, "symbol": "BTCUSDT"}, id=f"{ms}-0")
    begun = intake(store)
    assert names(begun.take("")) == ["old", "young", "last", "new"]
    assert begun.groups_made == 0
    one_client.xgroup_destroy(STREAM, GROUP)
    begun = intake(store)
    assert names(begun.take(f"{at}-0")) == ["young", "last", "new"]
    assert begun.groups_made == 1


@pytest.mark.parametrize("position", ["", "nonsense", "-", "5"])
def test_a_position_that_is_none(position: str, store: Store, one_client: Client) -> None:
    """A position that cannot be read is none: everything is read, and the age of plans protects."""
    send(one_client, "a")
    begun = intake(store)
    assert names(begun.take(position)) == ["a"]


def test_gaps_are_counted_once(store: Store, one_client: Client) -> None:
    """Entries that were trimmed before they were read, and pending ones that the stream no longer has."""
    send(one_client, *"abcdefghij")
    begun = intake(store)
    one_client.xgroup_create(STREAM, GROUP, "0")
    one_client.xreadgroup(GROUP, ME, {STREAM: ">"}, count=3)
    one_client.xtrim(STREAM, maxlen=2, approximate=False)
    assert names(begun.take("")) == ["i", "j"]
    for _ in range(2):
        begun._tick_at = 0.0
        begun.take("")
        assert begun.missed == 8, "3 pending ones and 5 unread ones"
    assert begun.oldest_ms is not None
    assert abs(begun.oldest_ms - time.time() * 1e3) < 60_000


# ---- how much at a time


def test_pages_grow_while_entries_are_small(store: Store, one_client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first page is small and the next ones twice as long, up to a batch."""
    send(one_client, *(f"p{n}" for n in range(1000)))
    asked = watched(store, monkeypatch)
    begun = intake(store)
    assert len(drained(one_client, begun)) == 1000
    found = counts(asked)
    assert found[:5] == [FIRST_PAGE, 2 * FIRST_PAGE, 4 * FIRST_PAGE, 8 * FIRST_PAGE, BATCH]
    assert max(found) == BATCH


def test_pages_shrink_while_entries_are_large(
    store: Store, one_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Large entries after a page has grown: within a few reads it is one entry at a time, and small ones let
    it grow again; none is passed over."""
    send(one_client, *(f"s{n}" for n in range(300)))
    send(one_client, *(f"b{n}" for n in range(200)), size=PAGE_BYTES)
    asked = watched(store, monkeypatch)
    begun = intake(store)
    found: list[str] = []
    while len(found) < 500:
        batch = begun.take("")
        found += names(batch)
        answer(one_client, begun, batch)
    assert found == [*(f"s{n}" for n in range(300)), *(f"b{n}" for n in range(200))]
    assert counts(asked)[-1] == 1
    send(one_client, *(f"t{n}" for n in range(300)))
    before = len(asked)
    assert len(drained(one_client, begun)) == 300
    assert max(counts(asked[before:])) == BATCH


def test_what_is_held_is_bounded(store: Store, one_client: Client) -> None:
    """Plans that cannot be settled: no more than a batch is held, however many wait (41)."""
    send(one_client, *(f"p{n}" for n in range(1000)))
    begun = intake(store)
    for _ in range(30):
        batch = begun.take("")
        begun.settle([Status.WAITS] * len(batch))
    assert begun.waiting == BATCH
    assert one_client.xpending(STREAM, GROUP)["pending"] == BATCH
