"""What ``status`` makes of whatever answers on a service's port, and how long it waits for it."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from threading import Event, Thread
from typing import Any

import pytest

from quantum_alloc.adapters.embedded import free_port
from quantum_alloc.services import app, status
from quantum_alloc.services.options import Settings, load

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
        (whole("200 OK", BODY.replace(b"allocation", b"budget")), "budget answers here"),
        (lambda caller, _: caller.sendall(b"SSH-2.0-OpenSSH\r\n"), "another program answers here"),
        (lambda _caller, _end: None, "not reached"),
    ],
)
def test_whatever_answers(talk: Talk, state: str) -> None:
    """A service that is not well, another service, another program."""
    with answering(talk) as port:
        assert status.service(settings(port), "allocation")["state"] == state
