"""The services as processes: started before Redis, ended at random instants, killed, and beside a port that is taken.

One process runs all twelve, as ``quantum-alloc run NAME...`` does, on an address of 127.0.0.0/8 of its own with the
ports of the contract; so one start serves a line of the table for everybody.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from threading import Event

import pytest
import redis

from quantum_alloc.adapters.embedded import EmbeddedServer, free_port
from quantum_alloc.adapters.keys import LIVE
from quantum_alloc.services.cli import main
from quantum_alloc.services.options import load, port_variables
from tests.conftest import CI
from tests.support import applying as ap
from tests.support import faulting as f
from tests.support.faulting import FAST, NAMES
from tests.support.running import Service, until
from tests.support.worlds import Client

READY_S = 2.0
ENDS_S = 2.0
_random = Random(20261121)


class Twelve(Service):
    """All twelve in one process."""

    def __init__(self, url: str, directory: Path, **environ: str) -> None:
        """Prepare; entering starts it.

        Args:
            url: of the server.
            directory: of their state.
            environ: further settings.
        """
        super().__init__(NAMES[0], url, *NAMES[1:])
        self.host = f"127.{_random.randrange(1, 255)}.{os.getpid() % 250 + 1}.{_random.randrange(2, 255)}"
        ports = {"METRICS_PORT", "P31_HEALTH_PORT"}
        self.environ = {n: text for n, text in self.environ.items() if n not in ports}
        self.environ |= {"QA_METRICS_HOST": self.host, "STATE_DIRECTORY": str(directory), **environ}

    def __enter__(self) -> Twelve:
        """Start it."""
        super().__enter__()
        return self

    def page(self, name: str, path: str) -> int:
        """The status of a service's page; 0 where nothing answers."""
        options = load([name], {}).services[name]
        (port, *_) = port_variables(options).values()
        try:
            with urllib.request.urlopen(f"http://{self.host}:{port}{path}", timeout=2) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code
        except OSError:
            return 0

    def all_are(self, path: str, status: int) -> list[str]:
        """Services whose page says something else."""
        return [n for n in NAMES if self.page(n, path) != status]

    @property
    def is_up(self) -> bool:
        """Whether the process is there."""
        return self.process is not None and self.process.poll() is None


@pytest.fixture
def running() -> Iterator[tuple[EmbeddedServer, Client]]:
    """A server on a port, and a client of it."""
    with EmbeddedServer(port=free_port()) as server:
        client: Client = redis.Redis.from_url(server.url, protocol=2, decode_responses=True)
        yield server, client
        client.close()


@pytest.mark.parametrize("names", [NAMES], ids=["all"])
def test_redis_down_at_start(names: Sequence[str], tmp_path: Path) -> None:
    """Redis comes 3 s later: until then everybody is healthy and not ready and nobody ends; then ready in under 2 s."""
    assert names == NAMES
    server = EmbeddedServer(port=free_port())
    with Twelve(server.url, tmp_path) as process:
        try:
            until(lambda: not process.all_are("/health", 200), 20, "everybody is healthy")
            began = time.monotonic()
            while time.monotonic() - began < 3.0:
                assert process.all_are("/ready", 503) == []
                assert process.all_are("/health", 200) == []
                assert process.is_up
                Event().wait(0.3)
            server.start()
            until(lambda: not process.all_are("/ready", 200), READY_S, "ready in under 2 s")
            assert process.terminate()[0] == 0
        finally:
            server.stop()
    given_up = [line for line in process.output.splitlines() if "given up" in line]
    assert len(given_up) == len(NAMES), "told once by each"


def live(directory: Path) -> dict[str, str]:
    """Settings of a paper market that goes at sixty times its pace, with everything that has an effect."""
    environ = {n: text for n, text in f.ENVIRON.items() if n not in ("PAPER_BOOK", "QA_PAPER_REBALANCE_BARS")}
    paced = {"QA_FEED_SPEED": "120", "QA_SYMBOLS": "BTCUSDT,ETHUSDT", "QA_DESK_CHANNEL_BARS": "2", "LOG_LEVEL": "ERROR"}
    loose = {"GOV_SYMBOL_COOLDOWN_SECONDS": "0", "GOV_MAX_EXEC_PER_HOUR": "1000", "GOV_MAX_EXEC_PER_5MIN": "1000"}
    return {**environ, **FAST, **paced, **loose, "STATE_DIRECTORY": str(directory)}


def whole(client: Client) -> None:
    """Nothing is half-written, and nothing is there twice."""
    cycles = {e["cycle_id"] for _, e in client.xrange(LIVE.stream("allocation.cycle"))}
    decided = Counter(e["cycle_id"] for _, e in client.xrange(LIVE.stream("allocation.decision")))
    assert decided.keys() <= cycles, "a decision without its cycle"
    assert set(decided.values()) <= {1, 2}
    for stream, wanted in ((LIVE.stream("apply.plan"), ""), (LIVE.events, "PERMIT"), (LIVE.results, "")):
        told = Counter(e["plan_id"] for _, e in client.xrange(stream) if not wanted or e["event"] == wanted)
        assert set(told.values()) <= {1}, f"{stream}: {told}"
    last = client.xrevrange(LIVE.stream("execution.result"), count=1)
    for key in (LIVE.attribution_state, LIVE.efficiency_state):
        state = client.hgetall(key)
        assert not state or state["_version"] == "1"
        assert not state or not last or _order(state["_pos"]) <= _order(last[0][0]), "a position beyond the stream"
    peak = client.hget(LIVE.peak, "peak_equity_usd")
    equities = [float(e["equity_usd"]) for _, e in client.xrange(LIVE.stream("portfolio.state"))]
    assert not equities or float(peak) >= max(equities), "the peak fell"
    ap.check(client, 100_000.0)


def _order(entry_id: str) -> tuple[int, int]:
    ms, _, number = entry_id.partition("-")
    return int(ms), int(number or 0)


@pytest.mark.parametrize("names", [NAMES], ids=["all"])
def test_sigterm_at_random_instants(
    names: Sequence[str], running: tuple[EmbeddedServer, Client], tmp_path: Path
) -> None:
    """Ended at any instant, from the first moment on: exit code 0 within 2 s, and every cycle is there whole or not."""
    assert names == NAMES
    server, client = running
    for n in range(8 if CI else 3):
        with Twelve(server.url, tmp_path, **live(tmp_path)) as process:
            if n:
                until(lambda: process.page("apply", "/health") == 200, 20, "the ports are open")
            Event().wait(_random.random() * (1.5 if n else 1.0))
            code, took = process.terminate()
        early = () if n else (-signal.SIGTERM,)  # before Python itself runs
        assert code in (0, *early), f"{code}: {process.output}"
        assert took < ENDS_S, f"{took:.1f} s"
        assert "Traceback" not in process.output
        whole(client)


@pytest.mark.parametrize("names", [NAMES], ids=["all"])
def test_killed_at_random_instants(
    names: Sequence[str], running: tuple[EmbeddedServer, Client], tmp_path: Path
) -> None:
    """SIGKILL at random instants, and the next process on the same state: nothing is lost, counted twice or left half
    done; at the end everybody is ready and what was proposed has its answer."""
    assert names == NAMES
    server, client = running
    for n in range(6 if CI else 3):
        with Twelve(server.url, tmp_path, **live(tmp_path)) as process:
            until(lambda: process.page("apply", "/ready") == 200, 20, "it runs")
            Event().wait(0.3 + _random.random() * 1.5)
            assert process.process is not None
            process.process.kill()
            assert process.wait() == -signal.SIGKILL, f"round {n}: {process.output}"
        whole(client)
    with Twelve(server.url, tmp_path, **live(tmp_path)) as process:
        until(lambda: not process.all_are("/ready", 200), 20, "everybody is ready")
        until(lambda: client.xlen(LIVE.results) > 0, 20, "something was filled")
        code, took = process.terminate()
    assert (code, took < ENDS_S) == (0, True), process.output
    whole(client)


@pytest.mark.parametrize("name", NAMES)
def test_port_taken(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One clear line that names the variable, and exit code 78; nothing was started."""
    (variable, *_) = port_variables(load([name], {}).services[name])
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        environ = {variable: str(port), "STATE_DIRECTORY": str(tmp_path), "REDIS_URL": "redis://127.0.0.1:1"}
        try:
            code = main(["run", name], {**environ, "LOG_LEVEL": "ERROR"})
        finally:
            for number, handler in before.items():
                with contextlib.suppress(TypeError):
                    signal.signal(number, handler)
    told = capsys.readouterr()
    lines = [line for line in (told.out + told.err).splitlines() if line.strip()]
    assert (code, len(lines)) == (78, 1), lines
    assert all(word in lines[0] for word in (name, str(port), variable)), lines
