"""What ``status`` makes of whatever answers on a service's port, and how long it waits for it."""

from __future__ import annotations

import json
import math
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from threading import Event, Thread
from typing import Any

import pytest

from quantum_alloc.adapters.clock import offset_s
from quantum_alloc.adapters.embedded import EmbeddedServer, free_port
from quantum_alloc.adapters.server_check import Facts
from quantum_alloc.services import app, status
from quantum_alloc.services.cli import main
from quantum_alloc.services.options import Settings, load
from tests.support.running import ALONE

BODY = json.dumps({"service": "allocation", "ready": True, "status": "ok", "mode": "enforce", "cycles": 3}).encode()
Talk = Callable[[socket.socket, Event], None]


@contextmanager
def answering(talk: Talk) -> Iterator[int]:
    """A port on which every caller is talked to in a thread of its own; its number."""
    end, threads = Event(), []
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=64))
        listener.settimeout(0.05)

        def one(caller: socket.socket) -> None:
            with caller:
                try:
                    caller.recv(1000)
                    talk(caller, end)
                except OSError:
                    pass

        def accept() -> None:
            while not end.is_set():
                try:
                    caller, _ = listener.accept()
                except TimeoutError:
                    continue
                caller.settimeout(5.0)
                threads.append(Thread(target=one, args=(caller,)))
                threads[-1].start()

        first = Thread(target=accept)
        first.start()
        try:
            yield listener.getsockname()[1]
        finally:
            end.set()
            first.join()
            for thread in threads:
                thread.join()


def whole(code: str, body: bytes = BODY, *headers: str) -> Talk:
    """One answer, and the end."""

    def talk(caller: socket.socket, _: Event) -> None:
        head = "\r\n".join((f"HTTP/1.0 {code}", *headers, "", ""))
        caller.sendall(head.encode() + body)

    return talk


def drips(begin: bytes) -> Talk:
    """A byte now and then, for as long as somebody listens."""

    def talk(caller: socket.socket, end: Event) -> None:
        caller.sendall(begin)
        while not end.wait(0.1):
            caller.sendall(b" ")

    return talk


def settings(port: int) -> Settings:
    """With every service on this port."""
    found = load(list(app.SERVICES), {}, together=False)
    services: Any = found.services
    moved: Any = {name: replace(one, port=port) for name, one in services.items()}
    return replace(found, services=moved)


@pytest.mark.parametrize("begin", [b"", b"HTTP/1.0 200 OK\r\n", b"HTTP/1.0 200 OK\r\n\r\n", b"HTTP/1.0 200 OK\r\nX: "])
def test_what_answers_slowly_is_given_up(begin: bytes) -> None:
    """After a second over the whole of it; all services are asked at once."""
    with answering(drips(begin)) as port:
        started = time.monotonic()
        rows = status.services(settings(port))
        assert time.monotonic() - started < 3 * status.ASK_TIMEOUT_S
    assert {(row["port"], row["state"]) for row in rows} == {(port, "not reached")}
    assert [row["service"] for row in rows] == list(app.SERVICES)


def test_loopback_is_asked_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever proxy the environment names."""
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    with answering(whole("200 OK")) as port:
        row = status.service(settings(port), "allocation")
    assert (row["state"], row["mode"], row["cycles"]) == ("ok", "enforce", 3)


def test_a_redirect_is_not_followed() -> None:
    """Nobody sends us elsewhere."""
    with answering(whole("200 OK")) as real:
        where = f"Location: http://127.0.0.1:{real}/health"
        with answering(whole("302 Found", b"", where)) as port:
            assert status.service(settings(port), "allocation")["state"] == "another program answers here"


@pytest.mark.parametrize(
    ("talk", "state"),
    [
        (whole("503 Service Unavailable"), "ok"),
        (whole("404 Not Found"), "another program answers here"),
        (whole("200 OK", b"[]"), "another program answers here"),
        (whole("200 OK", b"x" * 10**7), "another program answers here"),
        (whole("200 OK", b"[" * 60_000), "another program answers here"),
        (whole("200 OK", BODY.replace(b"allocation", b"budget")), "budget answers here"),
        (lambda caller, _: caller.sendall(b"SSH-2.0-OpenSSH\r\n"), "another program answers here"),
        (lambda _caller, _end: None, "not reached"),
    ],
)
def test_whatever_answers(talk: Talk, state: str) -> None:
    """A service that is not well, another service, another program."""
    with answering(talk) as port:
        assert status.service(settings(port), "allocation")["state"] == state


def test_a_service_of_another_server_is_not_ours() -> None:
    """Nothing is taken from a row that tells another run of a server; what is not known, or was seen before our server
    was started, stays as it is."""
    row = {"service": "budget", "port": 1, "state": "ok", "mode": "enforce", "clock_offset_s": 5.0, "last_cycle_s": 3.0}
    theirs = {**row, "redis_run_id": "b"}
    ours = Facts(run_id="a", up_s=60)
    assert status.judged([theirs], ours) == [{"service": "budget", "port": 1, "state": "works on another Redis"}]
    same = [row, {**row, "redis_run_id": "a"}, {**row, "redis_run_id": ""}, {**theirs, "last_cycle_s": 60.0}]
    assert status.judged(same, ours) == same
    assert status.judged([theirs], Facts()) == [theirs]


@pytest.mark.parametrize(
    ("name", "state", "is_down"),
    [
        ("governor", "ok", False),
        ("governor", "not reached", True),
        ("governor", "not ready", True),
        ("governor", "late", True),
        ("governor", "another program answers here", True),
        ("feed", "not reached", False),
        ("apply", "budget answers here", False),
        ("desk", "not reached", False),
        ("desk", "not ready", True),
        ("apply", "late", True),
        ("feed", "works on another Redis", True),
    ],
)
def test_what_an_installation_cannot_do_without(name: str, state: str, *, is_down: bool) -> None:
    """The services of quantum-alloc.target count always; those that write paper, and the desk, where they answer."""
    assert status.down([{"service": name, "state": state}]) == [f"{name} {state}"] * is_down


def test_the_exit_code_of_status(
    one_server: EmbeddedServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """1 where a service that is needed is not ready or works on another server, 0 once all are well, 69 without
    Redis; with --inputs too."""
    environ = {"REDIS_URL": one_server.url, **ALONE}
    well = [
        {"service": name, "port": 1, "state": "ok" if name in status.NEEDED else "not reached"} for name in app.SERVICES
    ]
    for change, told in (
        ({}, ""), ({"state": "not ready"}, "governor not ready"), ({"state": "late"}, "governor late"),
        ({"redis_run_id": "x"}, "governor works on another Redis"),
    ):  # fmt: skip
        rows = [{**row, **change} if row["service"] == "governor" else row for row in well]
        monkeypatch.setattr(status, "services", lambda _, rows=rows: rows)
        assert main(["status"], environ) == bool(told)
        assert capsys.readouterr().err == (f"quantum-alloc: not well: {told}\n" if told else "")
        assert main(["status", "--format", "json"], environ) == bool(told)
        assert json.loads(capsys.readouterr().out)["down"] == [told] * bool(told)
        assert main(["status", "--inputs", "--format", "json"], environ) == 1  # in truth nobody answers
        assert json.loads(capsys.readouterr().out)["down"] == [told] * bool(told)
        for words in (["status"], ["status", "--inputs"]):
            assert main(words, {"REDIS_URL": f"redis://127.0.0.1:{free_port()}"}) == 69
        capsys.readouterr()


OWN = {"CLOCK": "simulated"}


@pytest.mark.parametrize(
    ("environ", "told", "expected"),
    [
        (OWN, [-500.0] * 12, -500.0),
        (OWN, [-500.0, None, -500], -500.0),
        (OWN, [-500.0, 0.0], 0.0),
        (OWN, [-500.0, -400.0], 0.0),
        (OWN, [], 0.0),
        (OWN, [None, "1", [1], {}], 0.0),
        (OWN, [math.nan], 0.0),
        (OWN, [math.inf], 0.0),
        (OWN, [10**400], 0.0),
        ({}, [-500.0] * 12, 0.0),
    ],
)
def test_whose_clock_counts(environ: dict[str, str], told: list[object], expected: float) -> None:
    """The services' where the settings are a kept demo's and all that answer tell the same; else the machine's."""
    settings = load(list(app.SERVICES), environ)
    assert offset_s(status.clock_of(settings, [{"clock_offset_s": one} for one in told])) == expected
