"""The connection of each service is cut after the k-th command of a turn, or one reply is lost, for every k.

The laws are the same for all twelve, whatever they write. A turn that was cut has left nothing, or all of it (one
MULTI, one script); it is counted once, under its code. The next turn, of the same process or of another, leaves what a
run without the fault leaves: the server is compared whole, key by key and entry by entry, with two runs that were not
disturbed, one that had both turns and one that had only the second. So nothing is lost, sent twice or half-written.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from quantum_alloc.adapters.clock import SetClock
from quantum_alloc.adapters.embedded import EmbeddedServer
from quantum_alloc.adapters.keys import LIVE
from tests.conftest import CI
from tests.support import faulting as f
from tests.support.faulting import NOW, Case, Image
from tests.support.worlds import Client
from tests.tools.fault_proxy import FaultProxy

LATER_S = 5.0
GIVEN_UP_S = 2.0
"""One time-out of 200 ms, and room for a loaded machine."""
CUT = {"closed", "unreachable", "timeout", "conflict"}
"""Codes of a connection that ended, or did not answer, under way."""
BOOK = frozenset({LIVE.book})
"""A governor counts its verifications there before it reads its plans."""


@dataclass
class Stage:
    """A world of one service, and what undisturbed runs leave in it.

    Attributes:
        name: of the service.
        client: of the server.
        proxy: before it.
        image: of the world.
        directory: under which each run has one of its own.
        total: commands of the first cycle.
        before: the world.
        first: after one cycle.
        both: after a turn some seconds later.
        second: after a cycle that came to nothing, and that turn.
    """

    name: str
    client: Client
    proxy: FaultProxy
    image: Image
    directory: Path
    total: int
    before: dict[str, Any]
    first: dict[str, Any]
    both: dict[str, Any]
    second: dict[str, Any]
    cases: list[Case] = field(default_factory=list)

    def begin(self, clock: SetClock) -> Case:
        """The world as it was, and the service before it."""
        self.proxy.heal()
        self.image.put_back()
        return self._case(len(self.cases), clock)

    def again(self, one: Case, clock: SetClock) -> Case:
        """The next process, on the same state directory; a feed goes on with the candles that were not written."""
        one.end()
        found = self._case(self.cases.index(one), clock)
        found.candles.taken = int(self.client.xlen(LIVE.bars(f.AA))) - f.BARS
        return found

    def _case(self, number: int, clock: SetClock) -> Case:
        self.cases.append(Case(self.name, self.proxy.url, self.directory / str(number), clock))
        return self.cases[-1]


@pytest.fixture
def stages(one_server: EmbeddedServer, one_client: Client, tmp_path: Path) -> Iterator[Callable[[str], Stage]]:
    """Makes the stage of a service."""
    held: list[Stage] = []
    with FaultProxy(str(one_server.socket)) as proxy:

        def make(name: str) -> Stage:
            clock = SetClock(NOW)
            f.prepared(name, one_server, one_client, tmp_path / "prepared", clock, plans=1)
            image = Image(one_client, one_server.url)
            stage = Stage(name, one_client, proxy, image, tmp_path, 0, f.dump(one_client), {}, {}, {})
            held.append(stage)
            for _ in range(2):  # the first one has to load its scripts
                one = stage.begin(clock)
                proxy.reset()
                assert one.once(), one.loop.last_error
                stage.total, stage.first = len(proxy.log), f.dump(one_client)
            one = stage.begin(clock)
            assert one.once(), one.loop.last_error
            clock.set(NOW + LATER_S)
            assert one.turn(), one.loop.last_error
            stage.both = f.dump(one_client)
            one.end()
            clock.set(NOW)
            one = stage.begin(clock)
            proxy.cut_after(0)
            assert not one.once()
            proxy.heal()
            clock.set(NOW + LATER_S)
            assert one.turn(), one.loop.last_error
            stage.second = f.dump(one_client)
            one.end()
            assert f.OUTPUT[name] in f.differing(stage.before, stage.first), "it had work to do"
            return stage

        yield make
    for stage in held:
        stage.image.close()
        for one in stage.cases:
            one.end()


def some(total: int, least: int, step: int = 1) -> list[int]:
    """Which k are tried: the ends, and between them all in CI, elsewhere every fifth.

    Args:
        total: the last one.
        least: the first one.
        step: in CI too only every so many.
    """
    step = step if CI else 5
    return [k for k in range(least, total + 1) if k <= least + 1 or k >= total - 2 or k % step == 0]


def left(stage: Stage, what: str) -> bool:
    """After the fault the server holds all of the turn, or nothing of it; True for all."""
    found = f.dump(stage.client)
    away = found.keys() - stage.before.keys()
    plans = frozenset({LIVE.stream("apply.plan")}) if stage.name == "governor" else frozenset()  # their group
    nothing = [k for k in f.differing(found, stage.before) if k not in BOOK | plans]
    whole = f.differing(found, stage.first)
    assert not nothing or not whole, f"{what}: half a turn: {nothing} and not {whole}; new: {sorted(away)}"
    return not whole


def recovered(stage: Stage, one: Case, was_written: bool, what: str, process: str = "goes on") -> None:
    """After the next turn the server holds what runs without the fault leave."""
    assert one.turn(), f"{what}: {one.loop.last_error}"
    wanted = stage.both if was_written else stage.second
    found = f.dump(stage.client)
    differ = f.differing(found, wanted)
    if stage.name == "feed" and process != "goes on":
        differ = [k for k in differ if k.startswith(LIVE.bars(""))]  # its paper book lives as long as its process
    assert not differ, f"{what}: {[(k, found.get(k), wanted.get(k)) for k in differ]}"
    assert one.loop.ready, what
    assert one.metrics.value("quantum_alloc_ready") == 1.0


@pytest.mark.parametrize("process", ["goes on", "begins anew"])
@pytest.mark.parametrize("name", f.NAMES)
def test_cut_after_every_command(name: str, process: str, stages: Callable[[str], Stage]) -> None:
    """The connection ends after k commands and cannot be made again until it heals: the cycle is given up and counted
    once; nothing stands; the next turn writes what a run writes that begins then."""
    stage = stages(name)
    for k in some(stage.total - 1, 0, step=1 if process == "goes on" else 2):
        clock, what = SetClock(NOW), f"{name}: cut after {k} of {stage.total}"
        one = stage.begin(clock)
        stage.proxy.cut_after(k)
        ended = one.once()
        assert not ended, what
        assert one.counted("quantum_alloc_cycles_total") == {"store": 1.0}, what
        assert list(one.errors.values()) == [1.0], f"{what}: {one.errors}"
        assert one.errors.keys() <= CUT, f"{what}: {one.errors}"
        assert not one.loop.ready
        assert not left(stage, what), f"{what}: written, though the end was never sent"
        stage.proxy.heal()
        clock.set(NOW + LATER_S)
        if process == "begins anew":
            one = stage.again(one, clock)
        recovered(stage, one, False, what, process)
        one.end()


@pytest.mark.parametrize("process", ["goes on", "begins anew"])
@pytest.mark.parametrize("name", f.NAMES)
def test_reply_lost_at_every_command(name: str, process: str, stages: Callable[[str], Stage]) -> None:
    """Command k is carried out and its connection ends before the reply: a read may be asked again on another
    connection, a write is not sent twice; what was done stands once, and what was not is done in the next turn."""
    stage = stages(name)
    for k in some(stage.total, 1, step=1 if process == "goes on" else 2):
        clock, what = SetClock(NOW), f"{name}: reply {k} of {stage.total} lost"
        one = stage.begin(clock)
        stage.proxy.cut_reply_after(k)
        ended = one.once()
        assert ended or one.errors.keys() <= CUT, f"{what}: {one.errors}"
        assert ended or one.counted("quantum_alloc_cycles_total")["store"] == 1.0, what
        was_written = left(stage, what)
        assert was_written or not ended, what
        clock.set(NOW + LATER_S)
        if process == "begins anew":
            one = stage.again(one, clock)
        recovered(stage, one, was_written, what, process)
        one.end()


@pytest.mark.parametrize("name", f.NAMES)
def test_reply_swallowed_at_every_command(name: str, stages: Callable[[str], Stage]) -> None:
    """Command k is carried out and its reply never comes: the cycle is given up within its time-outs, as a time-out,
    and the next turn goes on from what stands."""
    stage = stages(name)
    few = some(stage.total, 1, step=2)
    for k in few if CI else [*few[:1], *few[len(few) // 2 :: 3], few[-1]]:  # each of these costs a time-out
        clock, what = SetClock(NOW), f"{name}: reply {k} of {stage.total} swallowed"
        one = stage.begin(clock)
        stage.proxy.drop_reply(k)
        began = time.monotonic()
        ended = one.once()
        assert time.monotonic() - began < GIVEN_UP_S, what
        assert ended or one.errors.keys() <= CUT, f"{what}: {one.errors}"
        was_written = left(stage, what)
        stage.proxy.heal()
        clock.set(NOW + LATER_S)
        recovered(stage, one, was_written, what)
        one.end()
