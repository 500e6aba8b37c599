"""What services answer on their ports: every page once, all at once, and again after a cycle of each.

    pages(settings)                          the first look, or the second
    waited(settings, first, names, ...)      the second, once each service has finished a cycle more

At the first look metrics are asked before the page, later after it: what they count in between is at least what the
page does. Whatever answers is taken for a stranger: an answer has an end in time and in bytes, and a page that is not
as ours are is another program's.
"""

from __future__ import annotations

import json
import math
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from quantum_alloc.adapters.server_check import Facts as Server
from quantum_alloc.adapters.server_check import is_another
from quantum_alloc.services.app import SERVICES
from quantum_alloc.services.options import Settings

ASK_TIMEOUT_S = 3.0
"""A whole answer may take so long."""
PAGE_LIMIT_BYTES = 16 * 1024 * 1024
CHUNK_BYTES = 65_536
NUMBERS = ("cycles", "interval_s", "loop_age_s", "last_cycle_at", "clock_offset_s", "started_at")
"""What a page tells as numbers; one of them may be absent."""
LOOK_EVERY_S = 0.2
WAIT_INTERVALS, WAIT_MORE_S = 3, 5.0
BY_EVENT = ("feed", "desk", "governor", "apply")
"""Services that are not waited for: they turn when something comes, or once a minute."""
OTHER, NOBODY, ELSEWHERE = "another program", "nothing answers", "works on another Redis"
Labels = Mapping[str, str]
Samples = Mapping[str, Sequence[tuple[Labels, float]]]
Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Page:
    """What one service answers on its port.

    Attributes:
        service: its CLI name.
        port: that was asked.
        status: of ``/health``; 0 where nothing answers as HTTP does.
        health: the body; empty where it is none of ours.
        ready: status of ``/ready``.
        samples: of ``/metrics``, by name.
        families: names of the metrics that are told of, with or without a sample.
        asked: this machine's clock, unix seconds.
        why: what answers in its place, or does not; empty where it is here.
    """

    service: str
    port: int
    status: int = 0
    health: Mapping[str, Any] = field(default_factory=dict)
    ready: int = 0
    samples: Samples = field(default_factory=dict)
    families: frozenset[str] = frozenset()
    asked: float = 0.0
    why: str = ""

    @property
    def is_here(self) -> bool:
        """Whether the service itself answers there."""
        return self.health.get("service") == self.service

    @property
    def mode(self) -> str:
        """Its mode; empty where it has none."""
        return str(self.health.get("mode") or "")

    @property
    def cycles(self) -> int:
        """Cycles that it has finished."""
        return int(self.health.get("cycles") or 0)

    @property
    def interval_s(self) -> float:
        """Its cadence, seconds."""
        return float(self.health.get("interval_s") or 0.0)

    @property
    def offset_s(self) -> float:
        """Its clock less this machine's, seconds."""
        return float(self.health.get("clock_offset_s") or 0.0)

    def sum(self, name: str) -> float:
        """The sum of a metric's samples; 0 without any."""
        return sum(value for _, value in self.samples.get(name, ()))


def page(settings: Settings, name: str, *, is_first: bool = False) -> Page:
    """What one service answers.

    Args:
        settings: they name its address.
        name: of the service.
        is_first: whether it is the first look.
    """
    host, port = settings.common.metrics_host, settings.services[name].port
    asked = "127.0.0.1" if host in ("0.0.0.0", "::") else host  # noqa: S104 - asked, not bound
    now, text, status = time.time(), b"", 0
    try:
        if is_first:
            _, text = _get(asked, port, "/metrics")
        status, raw = _get(asked, port, "/health")
        health = _health(raw)
        if health.get("service") != name:
            other = health.get("service") if health.get("service") in [*SERVICES] else OTHER
            return Page(name, port, status, health, asked=now, why=f"{other} answers")
        ready, _ = _get(asked, port, "/ready")
        if not is_first:
            _, text = _get(asked, port, "/metrics")
        samples, families = parsed(text.decode())
    except ConnectionRefusedError:
        return Page(name, port, asked=now, why=NOBODY)
    except OSError as error:
        return Page(name, port, status, asked=now, why=f"no whole answer came ({error})")
    except (ArithmeticError, LookupError, RecursionError, TypeError, ValueError):
        return Page(name, port, status, asked=now, why=f"{OTHER} answers")
    return Page(name, port, status, health, ready, samples, families, now)


def _health(raw: bytes) -> dict[str, Any]:
    """The body of a page of ours, its numbers finite; ValueError for any other."""
    found = json.loads(raw)
    if not isinstance(found, dict):
        raise ValueError("no object")
    for name in NUMBERS:
        value = found.get(name)
        if value is not None and (isinstance(value, bool) or not math.isfinite(value)):
            raise ValueError(f"{name} is no number")
    return found


def _get(host: str, port: int, path: str) -> tuple[int, bytes]:
    until = time.monotonic() + ASK_TIMEOUT_S
    with socket.create_connection((host, port), timeout=ASK_TIMEOUT_S) as caller:
        caller.sendall(f"GET {path} HTTP/1.0\r\nHost: {host}\r\n\r\n".encode())
        told = bytearray()
        while chunk := caller.recv(CHUNK_BYTES):
            told += chunk
            left = until - time.monotonic()
            if left <= 0.0 or len(told) > PAGE_LIMIT_BYTES:
                raise TimeoutError("it is too slow" if left <= 0.0 else "it is too long")
            caller.settimeout(left)
    head, _, body = bytes(told).partition(b"\r\n\r\n")
    protocol, status = head.split(maxsplit=2)[:2]
    if not protocol.startswith(b"HTTP/"):
        raise ValueError("no HTTP")
    return int(status), body


def parsed(text: str) -> tuple[Samples, frozenset[str]]:
    """A page of metrics: samples by their names, and the names of all metrics that it tells of.

    Args:
        text: in Prometheus' format.

    Raises:
        ValueError: it is in another.

    >>> samples, names = parsed("# TYPE a_total counter\\na_total{x=\\"1\\"} 2.0\\n# TYPE b gauge\\n")
    >>> samples["a_total"], sorted(names)
    ([({'x': '1'}, 2.0)], ['a_total', 'b'])
    """
    samples: dict[str, list[tuple[Labels, float]]] = {}
    families = set()
    for family in text_string_to_metric_families(text):
        families.add(f"{family.name}_total" if family.type == "counter" else family.name)
        for sample in family.samples:
            samples.setdefault(sample.name, []).append((sample.labels, sample.value))
    return samples, frozenset(families)


def pages(settings: Settings, *, is_first: bool = False) -> dict[str, Page]:
    """What every service answers; all are asked at once.

    Args:
        settings: of all services.
        is_first: whether it is the first look.
    """
    with ThreadPoolExecutor(len(SERVICES)) as threads:
        found = list(threads.map(lambda name: page(settings, name, is_first=is_first), SERVICES))
    return {p.service: p for p in found}


def ours(found: Mapping[str, Page], server: Server, now: float) -> dict[str, Page]:
    """The pages, with nothing taken from services that work on another server.

    Args:
        found: pages of one look.
        server: what ours tells of itself.
        now: this machine's clock when it told, unix seconds.
    """

    def is_elsewhere(page: Page) -> bool:
        looked_s = float(page.health.get("loop_age_s") or 0.0) + now - page.asked
        return page.is_here and is_another(page.health.get("redis_run_id"), looked_s, server)

    return {
        name: Page(name, page.port, page.status, asked=page.asked, why=ELSEWHERE) if is_elsewhere(page) else page
        for name, page in found.items()
    }


def patience(first: Mapping[str, Page], names: Sequence[str]) -> float:
    """How long a further cycle of each service may take, seconds.

    Args:
        first: pages of the first look.
        names: services that matter.
    """
    return max((WAIT_INTERVALS * first[n].interval_s for n in _waited_for(first, names)), default=0.0) + WAIT_MORE_S


def _waited_for(first: Mapping[str, Page], names: Sequence[str]) -> list[str]:
    return [n for n in names if n not in BY_EVENT and first[n].is_here]


def waited(
    settings: Settings, first: Mapping[str, Page], names: Sequence[str], wait_s: float | None, tell: Tell
) -> dict[str, Page]:
    """The second look, once each service that has a cadence has finished a cycle more.

    Args:
        settings: of all services.
        first: the first look.
        names: services that matter.
        wait_s: at most so long, seconds; None for three intervals of the slowest and 5 s.
        tell: is told whom it waits for.
    """
    left = _waited_for(first, names)
    until = time.monotonic() + (patience(first, names) if wait_s is None else wait_s)
    while left and time.monotonic() < until:
        time.sleep(LOOK_EVERY_S)
        with ThreadPoolExecutor(len(left)) as threads:
            now = list(threads.map(lambda name: page(settings, name), left))
        left = [p.service for p in now if p.is_here and p.cycles <= first[p.service].cycles]
        tell(f"waiting for a cycle of {', '.join(left)}" if left else "")
    return pages(settings)
