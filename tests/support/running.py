"""Running services as an operator would: a process, its ports, its signals."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

from quantum_alloc.adapters.embedded import free_port

RUN = [sys.executable, "-W", "error", "-m", "quantum_alloc.services"]
CLEAN = {k: v for k, v in os.environ.items() if k in ("PATH", "HOME", "LANG", "TMPDIR")}


PORTS = {"allocation": "P29_METRICS_PORT", "attribution": "P30_METRICS_PORT", "efficiency": "P31_PORT"}

OFFSETS = range(10_000, 20_000)


ALONE = {"QA_PORT_OFFSET": "23300"}
"""Ports on which no service answers, whatever runs beside a test: above those of every demo that is kept."""


def port_offset() -> str:
    """QA_PORT_OFFSET for a demo that is kept: never the contract's ports, which other tests beside it use or probe."""
    return str(secrets.choice(OFFSETS))


class Service:
    """One service in a process of its own; use it as a context manager."""

    def __init__(self, name: str, url: str, *flags: str, **environ: str) -> None:
        """Prepare; entering starts it."""
        self.name = name
        self.port = free_port()
        ports = {PORTS.get(name, "METRICS_PORT"): str(self.port)}
        if name == "efficiency":
            ports["P31_HEALTH_PORT"] = str(free_port())
        self.environ = {**CLEAN, "REDIS_URL": url, **ports, **environ}
        self.flags = flags
        self.process: subprocess.Popen[str] | None = None
        self.output = ""

    def __enter__(self) -> Service:
        """Start it."""
        self.process = subprocess.Popen(
            [*RUN, self.name, *self.flags],
            env=self.environ,
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        """End it."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
        self.wait()

    def wait(self, timeout: float = 10.0) -> int:
        """Its exit code; what it logged is in ``output``."""
        assert self.process is not None
        if not self.process.stderr or self.process.stderr.closed:
            return int(self.process.returncode)
        _, err = self.process.communicate(timeout=timeout)
        self.output += err
        return int(self.process.returncode)

    def terminate(self) -> tuple[int, float]:
        """SIGTERM; exit code and the seconds it took."""
        assert self.process is not None
        started = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        return self.wait(), time.monotonic() - started

    def get(self, path: str) -> tuple[int, str]:
        """A page; status 0 where nothing answers."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=2) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def health(self) -> dict[str, Any]:
        """What /health says."""
        return dict(json.loads(self.get("/health")[1]))

    def ready(self) -> bool:
        """True when /ready is 200."""
        return self.get("/ready")[0] == 200

    def metric(self, line: str) -> float:
        """The value of one metric line; 0 where it is absent."""
        for found in self.get("/metrics")[1].splitlines():
            if found.startswith(line + " "):
                return float(found.rsplit(" ", 1)[1])
        return 0.0


def until(condition: Callable[[], object], within: float, what: str) -> float:
    """Wait for a condition; the seconds it took."""
    started = time.monotonic()
    while time.monotonic() - started < within:
        if condition():
            return time.monotonic() - started
        time.sleep(0.02)
    raise AssertionError(f"not within {within} s: {what}")


def seed(client: Any, now: float, symbols: Mapping[str, float]) -> None:
    """A fresh portfolio and budgets, as other programs write them."""
    ts = int(now)
    pipe = client.pipeline(transaction=False)
    pipe.hset("quantum:state:portfolio", mapping={"equity_usd": 100_000, "drawdown": 0.01, "timestamp": ts})
    for s, usd in symbols.items():
        pipe.hset(f"quantum:portfolio:budget:{s}", mapping={"budget_usd": usd, "timestamp": ts})
    pipe.execute()
