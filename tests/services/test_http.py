"""The pages of a service: what a client does to its connection is no line in the log."""

from __future__ import annotations

import logging
import socket
import struct
from collections.abc import Iterator
from io import StringIO
from threading import Event, Thread, current_thread

import pytest

from quantum_alloc.services import http, logs

LONG = b"x" * 8_000_000
"""More than a socket takes unread."""


@pytest.fixture
def written() -> Iterator[StringIO]:
    """What is logged, at DEBUG, as plain text."""
    root, stream = logging.getLogger("quantum_alloc"), StringIO()
    before = root.handlers, root.level, root.propagate
    handler = logs._Handler(stream)
    handler.setFormatter(logs.Plain())
    root.handlers, root.propagate = [handler], False
    root.setLevel(logging.DEBUG)
    yield stream
    root.handlers, root.propagate = before[0], before[2]
    root.setLevel(before[1])


class Page:
    """A page that is answered once it may; with what it is given, or by raising it."""

    def __init__(self, answer: bytes | Exception) -> None:
        """Wait."""
        self.asked, self.go, self._answer = Event(), Event(), answer
        self._thread: Thread | None = None

    def __call__(self) -> http.Answer:
        """The answer."""
        self._thread = current_thread()
        self.asked.set()
        assert self.go.wait(30)
        if isinstance(self._answer, Exception):
            raise self._answer
        return 200, "text/plain", self._answer

    def ended(self) -> None:
        """Wait until the server is done with the request."""
        assert self._thread is not None
        self._thread.join(30)
        assert not self._thread.is_alive()


def asked(page: Page, *, reset: bool) -> None:
    """Ask for a page, and hang up before it is answered."""
    server = http.serve("127.0.0.1", 0, {"/metrics": page}, "pages", "METRICS_PORT")
    try:
        with socket.create_connection(("127.0.0.1", server.server_port), 30) as client:
            client.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
            assert page.asked.wait(30)
            if reset:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        page.go.set()
        page.ended()
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("reset", [False, True])
def test_a_client_that_hangs_up_is_no_line(reset: bool, written: StringIO, capfd: pytest.CaptureFixture[str]) -> None:
    """Closed or reset before the answer: nothing is logged, and nothing is written beside the log."""
    asked(Page(LONG), reset=reset)
    assert written.getvalue() == ""
    assert capfd.readouterr() == ("", "")


def test_a_page_that_fails_is_one_line(written: StringIO, capfd: pytest.CaptureFixture[str]) -> None:
    """Of the service, at DEBUG, escaped; nothing is written beside the log."""
    asked(Page(ValueError("x\n2026-11-21T00:00:00Z ERROR governor: forged\x1b[2J")), reset=False)
    (line,) = written.getvalue().splitlines()
    assert " DEBUG pages: a page could not be answered: ValueError: x\\n2026" in line
    assert "\x1b" not in line
    assert capfd.readouterr() == ("", "")
