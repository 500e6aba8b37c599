"""A run's streams read back: whole, in order, as text, in as many pages as there are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import astuple, fields
from typing import Any

import pytest

from quantum_alloc.adapters import run_records
from quantum_alloc.adapters.effects import Command, Reply
from quantum_alloc.adapters.embedded import EmbeddedServer
from quantum_alloc.adapters.keys import LIVE
from quantum_alloc.adapters.run_records import Records, Streams, read_all, read_stream, streams_of
from quantum_alloc.adapters.store import Store, StoreError

STREAM = "a.stream"


@pytest.fixture
def store(one_server: EmbeddedServer, one_client: Any) -> Iterator[Store]:
    """A connection to an empty server."""
    found = Store(one_server.url, timeout_s=2.0)
    yield found
    found.close()


@pytest.mark.parametrize("page", [1, 2, 3, 5_000])
@pytest.mark.parametrize("n", range(8))
def test_a_stream_is_read_whole(
    store: Store, one_client: Any, monkeypatch: pytest.MonkeyPatch, n: int, page: int
) -> None:
    """Every entry once, in its order, whatever the size of a page; entries of one millisecond are told apart."""
    monkeypatch.setattr(run_records, "PAGE", page)
    for i in range(n):
        one_client.xadd(STREAM, {"i": str(i), "half": str(i // 2)}, f"{1_769_577_495_000 + i // 3}-{i % 3}")
    assert read_stream(store, STREAM) == tuple({"i": str(i), "half": str(i // 2)} for i in range(n))


def test_pages_are_asked_for_one_after_the_other(
    store: Store, one_client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each from behind the last entry of the one before; a page that is not full is the last."""
    monkeypatch.setattr(run_records, "PAGE", 2)
    for i in range(1, 6):
        one_client.xadd(STREAM, {"i": str(i)}, f"{i}-0")
    asked: list[Any] = []
    answer = store.read

    def read(commands: list[Command]) -> list[Reply]:
        asked.extend(commands)
        return answer(commands)

    monkeypatch.setattr(store, "read", read)
    assert len(read_stream(store, STREAM)) == 5
    assert asked == [("XRANGE", STREAM, start, "+", "COUNT", 2) for start in ("-", "(2-0", "(4-0")]


def test_bytes_that_are_no_text_are_escaped(store: Store, one_client: Any) -> None:
    """Nothing is lost and nothing raises: an entry of any program can be read."""
    one_client.execute_command("XADD", STREAM, "*", "name", b"a\xffb", b"\xfe", "x")
    one_client.execute_command("XADD", STREAM, "*", "name", "ü\n")
    (first, second) = read_stream(store, STREAM)
    assert first["name"] == "a\\xffb"
    assert list(first.values())[1] == "x"
    assert second == {"name": "ü\n"}


def test_a_stream_that_is_not_there_is_empty(store: Store) -> None:
    """As at the beginning of a run."""
    assert read_stream(store, STREAM) == ()
    assert read_all(store, streams_of()) == Records()


def test_another_type_of_key_is_no_stream(store: Store, one_client: Any) -> None:
    """It is named, rather than taken for empty."""
    one_client.set(STREAM, "x")
    with pytest.raises(StoreError, match=f"{STREAM} cannot be read as a stream") as told:
        read_stream(store, STREAM)
    assert told.value.code == "other"
    with pytest.raises(StoreError, match=STREAM):
        read_all(store, streams_of(executions=STREAM))


def test_an_answer_that_is_no_page_is_refused(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is made of it."""
    monkeypatch.setattr(store, "read", lambda _: [None])
    with pytest.raises(StoreError, match="cannot be read"):
        read_stream(store, STREAM)


def test_every_stream_of_a_run_is_read(store: Store, one_client: Any) -> None:
    """Each into its own field; those that settings name otherwise from there."""
    streams = streams_of(plans="plans.of.mine")
    names = [f.name for f in fields(Streams)]
    assert names == [f.name for f in fields(Records)]
    assert len(set(astuple(streams))) == len(names)
    for name in names:
        one_client.xadd(getattr(streams, name), {"of": name})
    found = read_all(store, streams)
    assert {name: getattr(found, name) for name in names} == {name: ({"of": name},) for name in names}
    assert read_all(store, streams_of()).plans == ()


def test_the_streams_are_those_of_the_contract() -> None:
    """By name; keys of a lane of its own have streams of their own."""
    s = streams_of()
    assert (s.plans, s.events, s.results) == (LIVE.stream("apply.plan"), LIVE.events, LIVE.results)
    assert s.executions == "quantum:stream:execution.result"
    assert s.portfolio == "quantum:stream:portfolio.state"
    assert s.transfers == LIVE.transfers
    assert streams_of(events="e").events == "e"
