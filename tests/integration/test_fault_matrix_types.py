"""Every key that a service reads or writes holds another type of value, one at a time.

Which keys those are is taken from what the service really sends. A hash, a stream or a set is made a string, a string
a hash. Nobody crashes: there is no programming error, the other symbols get what they get, and a metric tells of it;
once the key is put right the next turn is as any other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from quantum_alloc.adapters.clock import SetClock
from quantum_alloc.adapters.embedded import EmbeddedServer
from quantum_alloc.adapters.keys import LIVE
from tests.conftest import CI
from tests.support import applying as ap
from tests.support import faulting as f
from tests.support import governing as gov
from tests.support.faulting import NAMES, NOW, Case, Image
from tests.support.worlds import Client
from tests.tools.fault_proxy import Command, FaultProxy

STRINGS = (":permit:", ":governor:plan:", ":governor:block:", ":governor:last_exec:", ":governor:epoch")
UNTOLD = frozenset({
    "quantum_alloc_cycle_duration_seconds", "quantum_alloc_last_cycle_timestamp_seconds", "p29_loop_duration_seconds",
    "p30_loop_duration_seconds", "p31_loop_duration_seconds",
})  # fmt: skip
STOPS = {
    "apply": {LIVE.apply_state, LIVE.events, LIVE.results, LIVE.stream("execution.result"), LIVE.transfers},
    "governor": {LIVE.events, gov.PLANS},
}
"""Keys without which a service cannot be safe: it writes nothing, says which key it is, and goes on when it is mended.
"""
UNREAD = {
    "feed": (LIVE.apply_state,),  # whether it is there
    "desk": (LIVE.tombstone(""),),  # the same
    "governor": (  # written over, read at HALT alone, written where a plan is given up
        *(LIVE.block(""), LIVE.last_exec(""), LIVE.epoch, LIVE.rearm, gov.DEAD),
    ),
    "apply": (LIVE.book, LIVE.rearm),  # the governor's, which tells of the one, and writes over the other
}
"""Keys of which a service does not ask the value: there is nothing to tell."""


def keys_of(commands: list[Command]) -> set[str]:
    """The keys that some commands name."""
    found: set[bytes] = set()
    for command in commands:
        verb, *rest = command
        verb = verb.upper()
        if verb in (b"EVALSHA", b"EVAL"):
            found |= set(rest[2 : 2 + int(rest[1])])
        elif verb in (b"XREADGROUP", b"XREAD"):
            streams = rest[[word.upper() for word in rest].index(b"STREAMS") + 1 :]
            found |= set(streams[: len(streams) // 2])
        elif verb in (b"XINFO", b"XGROUP"):
            found.add(rest[1])
        elif rest and verb not in (b"SCAN", b"INFO", b"TIME", b"MULTI", b"EXEC", b"PING", b"UNWATCH", b"SCRIPT"):
            found.add(rest[0])
    return {key.decode() for key in found if key.startswith(b"quantum:")}


@pytest.fixture
def proxy(one_server: EmbeddedServer) -> Iterator[FaultProxy]:
    """Listens to what a service sends."""
    with FaultProxy(str(one_server.socket)) as found:
        yield found


def spoil(client: Client, key: str) -> None:
    """Make it a value of another type."""
    kind = client.type(key)
    client.delete(key)
    if kind == "string" or key == LIVE.kill or any(word in key for word in STRINGS):
        client.hset(key, mapping={"x": "y"})
    else:
        client.set(key, "x")


def told(one: Case) -> dict[str, Any]:
    """Everything that a service counts, but for times."""
    lines = one.metrics.render().decode().splitlines()
    pairs = [line.rsplit(" ", 1) for line in lines if not line.startswith("#")]
    return {n: v for n, v in pairs if not n.startswith(tuple(UNTOLD))}


def of_others(changed: list[str], key: str) -> set[str]:
    """Keys of the symbols that the spoiled key is not of."""
    mine = next((s for s in f.SYMBOLS if s in key), "")
    return {k for k in changed if any(s in k for s in f.SYMBOLS if s != mine) and (not mine or mine not in k)}


@pytest.mark.parametrize("name", NAMES)
def test_every_key_of_another_type(
    name: str, proxy: FaultProxy, one_server: EmbeddedServer, one_client: Client, tmp_path: Path
) -> None:
    """The laws of this file, for every key that this service names."""
    clock = SetClock(NOW)
    f.prepared(name, one_server, one_client, tmp_path / "prepared", clock)
    image = Image(one_client, one_server.url)
    before = f.dump(one_client)
    proxy.reset()
    with_all = Case(name, proxy.url, tmp_path / "all", clock)
    assert with_all.turn()
    clock.set(NOW + 5)
    assert with_all.turn()
    keys, usual = sorted(keys_of(proxy.log)), told(with_all)
    whole = f.differing(before, f.dump(one_client))
    with_all.end()
    assert len(keys) >= 5, keys
    cases = [(key, at) for n, key in enumerate(keys) for at in moments(name, key, n)]
    for n, (key, at) in enumerate(cases):
        clock.set(NOW)
        image.put_back()
        one, what = Case(name, proxy.url, tmp_path / str(n), clock), f"{name}, {key}, {at}"
        try:
            if at == "from the start":
                spoil(one_client, key)
            ended = one.turn()
            if at == "while it runs":
                assert ended, what
                spoil(one_client, key)
            clock.set(NOW + 5)
            ended = one.turn() and ended
            counted = one.counted("quantum_alloc_cycles_total")
            assert counted.get("error", 0.0) == 0.0, f"{what}: {one.loop.last_error}"
            assert one.metrics.value("quantum_alloc_symbol_errors_total") == 0.0, what
            assert told(one) != usual or key.startswith(UNREAD.get(name, ())), f"{what}: nobody is told"
            wrote = f.differing(before, f.dump(one_client))
            if key in STOPS.get(name, ()):
                assert not ended or one.loop.last_nothing, what
            else:
                assert ended, f"{what}: {one.loop.last_error}"
                if any(s in key for s in f.SYMBOLS):
                    missing = of_others(whole, key) - of_others(wrote, key)
                    assert not missing, f"{what}: {missing} of the other symbols"
            safe(name, key, one_client)
            one_client.delete(key)
            restored(image, one_client, key)
            clock.set(NOW + 10)
            one.turn()
            clock.set(NOW + 15)
            assert one.turn(), f"{what}, mended: {one.loop.last_error}"
            assert one.loop.ready, what
        finally:
            one.end()
    image.close()


def moments(name: str, key: str, n: int) -> tuple[str, ...]:
    """When a key is spoiled; elsewhere than in CI by turns. What goes by event is done after a turn."""
    if name in ("governor", "apply", "desk") or key.endswith("deadletter"):
        return ("from the start",)
    both = "from the start", "while it runs"
    return both if CI else (both[n % 2],)


def restored(image: Image, client: Client, key: str) -> None:
    """The key as it was, and nothing else."""
    image.put_back_one(key)
    assert client.type(key) in ("hash", "stream", "set", "string", "none")


def safe(name: str, key: str, client: Client) -> None:
    """A kill key that cannot be read halts; a close is never lost for want of an adjuster."""
    if key != LIVE.kill:
        return
    if name == "governor":
        assert gov.events(client, "PERMIT") == []
        assert client.hget(LIVE.latch, "state") == "HALT"
    if name == "apply":
        assert ap.results(client) == []


ADJUSTERS: dict[str, tuple[str, Callable[[Client], object]]] = {
    "regime.state": ("allocation", lambda c: _decision(c)["regime_state"]),
    "attribution": ("allocation", lambda c: _decision(c)["attribution_state"]),
    "stress": ("allocation", lambda c: _decision(c)["stress_state"]),
}
"""Where a neutral adjuster says why."""
SPOILED = {
    "regime.state": LIVE.stream("regime.state"),
    "attribution": LIVE.attribution(f.AA),
    "stress": LIVE.stress(f.AA),
}


def _decision(client: Client) -> dict[str, str]:
    stream = LIVE.stream("allocation.decision")
    found = {e["symbol"]: e for _, e in client.xrange(stream)}[f.AA]
    (cycle,) = [e for _, e in client.xrange(LIVE.stream("allocation.cycle"))]
    return {**cycle, **found}


@pytest.mark.parametrize("which", ADJUSTERS)
def test_an_adjuster_of_another_type(
    which: str, one_server: EmbeddedServer, one_client: Client, tmp_path: Path
) -> None:
    """An adjuster of another type is neutral, and the decision says redis_error."""
    name, reason = ADJUSTERS[which]
    clock = SetClock(NOW)
    f.prepared(name, one_server, one_client, tmp_path / "prepared", clock)
    spoil(one_client, SPOILED[which])
    one = Case(name, one_server.url, tmp_path, clock)
    assert one.once()
    one.end()
    assert reason(one_client) == "redis_error"
