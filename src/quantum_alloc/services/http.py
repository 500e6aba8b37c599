"""``/metrics``, ``/health`` and ``/ready`` of one service, on loopback unless told otherwise.

/health   200 while the loop finishes cycles (a cycle given up for the store counts), else 503
/ready    200 once Redis is reached and a cycle has finished, 503 before and while Redis is gone
/metrics  Prometheus' text format
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import BoundedSemaphore, Thread
from typing import Any

from quantum_alloc.services.logs import say
from quantum_alloc.services.loop import Loop

Answer = tuple[int, str, bytes]
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class PortTaken(Exception):
    """The port cannot be opened; the text is one sentence with the way out."""


def describe(loop: Loop[Any, Any, Any], about: Mapping[str, str | float]) -> dict[str, Any]:
    """What ``/health`` says.

    Args:
        loop: the service.
        about: version, configuration hash, the clock's offset and the like.
    """
    age = time.monotonic() - loop.finished_at
    return {
        "service": loop.cycle.name,
        "status": "late" if loop.is_late() else "ok",
        "ready": loop.ready,
        "mode": loop.cycle.mode,
        "cycles": loop.cycles,
        "loop_age_s": round(age, 3),
        "interval_s": loop.cycle.interval_s,
        "last_cycle_at": loop.last_now,
        "last_cycle_ms": round(loop.last_duration_s * 1e3, 3),
        "last_line": loop.last_line,
        "nothing_written": loop.last_nothing,
        "last_error": loop.last_error,
        "redis_run_id": loop.server_run_id(),
        **about,
    }


def routes(loop: Loop[Any, Any, Any], about: Mapping[str, str | float]) -> dict[str, Callable[[], Answer]]:
    """The three pages.

    Args:
        loop: the service.
        about: version, configuration hash, the clock's offset and the like.
    """

    def page(ok: bool, body: dict[str, Any]) -> Answer:
        return 200 if ok else 503, "application/json", json.dumps(body).encode() + b"\n"

    def health() -> Answer:
        body = describe(loop, about)
        return page(body["status"] == "ok", body)

    def ready() -> Answer:
        return page(loop.ready, {"ready": loop.ready, "last_error": loop.last_error})

    return {"/health": health, "/ready": ready, "/metrics": lambda: (200, METRICS_TYPE, loop.metrics.render())}


MOST_AT_ONCE = 32


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    pages: Mapping[str, Callable[[], Answer]]
    log: logging.Logger

    def __init__(self, *args: Any) -> None:
        """Answer at most so many at once: idle clients must not use up the descriptors."""
        self._room = BoundedSemaphore(MOST_AT_ONCE)
        super().__init__(*args)

    def process_request(self, request: Any, client_address: Any) -> None:
        """In a thread while there is room, else not at all."""
        if not self._room.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer, then make room."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, *_: object) -> None:
        """Nothing is said of a client that hangs up, one line of anything else."""
        error = sys.exception()
        if not isinstance(error, (ConnectionError, TimeoutError)):
            text = f"a page could not be answered: {type(error).__name__}: {error}"
            say(self.log, logging.DEBUG, "fault", text)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = 5.0

    def do_GET(self) -> None:
        """Answer one of the pages."""
        page = self.server.pages.get(self.path.split("?", 1)[0])
        status, kind, body = page() if page else (404, "text/plain", b"/metrics /health /ready\n")
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def serve(host: str, port: int, pages: Mapping[str, Callable[[], Answer]], what: str, variable: str) -> _Server:
    """Open the port and answer in a thread.

    Args:
        host: address to bind.
        port: port; 0 for any.
        pages: by path.
        what: the service, for the message.
        variable: the setting that moves the port, for the message.

    Raises:
        PortTaken: it cannot be opened.
    """
    try:
        server = _Server((host, port), _Handler)
    except OSError as error:
        why = f"{what} cannot open {host}:{port} ({error.strerror})"
        raise PortTaken(f"{why}: end what holds it, or choose another port with {variable}") from None
    server.pages, server.log = pages, logging.getLogger(f"quantum_alloc.{what}")
    Thread(target=server.serve_forever, args=(0.1,), name=f"http-{what}", daemon=True).start()
    return server
