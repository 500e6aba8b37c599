"""Around a loop: the pace of the candles under a jumping clock, what systemd is told, an end before the beginning."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from quantum_alloc.adapters.candles import Step
from quantum_alloc.adapters.clock import SetClock
from quantum_alloc.adapters.embedded import free_port
from quantum_alloc.services import app
from quantum_alloc.services.feed import Paced
from quantum_alloc.services.options import load
from tests.support.running import RUN, Service, until

REWRITE_S = 10.0


@pytest.mark.parametrize("back_s", [1.0, 3_600.0, 1e9])
def test_a_clock_set_back_does_not_silence_the_feed(back_s: float) -> None:
    steps = [Step(60.0 * k, ()) for k in (1, 2, 3)]
    paced = Paced(iter(steps), bar_s=60.0, speed=1.0, rewrite_s=REWRITE_S)
    begin = 1.765e9
    assert paced.take(begin) is steps[0]
    now = begin - back_s
    assert 0.0 < paced.wait_s(now) <= REWRITE_S
    assert paced.take(now) is steps[1]
    assert paced.take(now + 59.0) is None
    assert paced.take(now + 60.0) is steps[2]
    assert paced.ended


def test_a_feed_that_goes_on_waits_for_its_next_candle() -> None:
    """With a time for the first step nothing is handed out before it, and states are written again until then."""
    step = Step(60.0, ())
    paced = Paced(iter([step]), bar_s=60.0, speed=1.0, rewrite_s=REWRITE_S, due=1_060.0)
    assert paced.take(1_001.0) is None
    assert paced.wait_s(1_001.0) == REWRITE_S
    assert (paced.take(1_059.9), paced.ended) == (None, False)
    assert paced.wait_s(1_059.9) == pytest.approx(0.1)
    assert paced.take(1_060.0) is step


@pytest.fixture
def systemd(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[socket.socket]:
    """The socket that systemd would listen at."""
    path = str(tmp_path_factory.mktemp("n") / "s")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(path)
        listening.settimeout(5.0)
        monkeypatch.setenv("NOTIFY_SOCKET", path)
        yield listening


def test_systemd_is_told(systemd: socket.socket) -> None:
    app.notify("READY=1")
    assert systemd.recv(64) == b"READY=1"


def test_exhausted_descriptors_do_not_end_a_loop(systemd: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*_: object) -> socket.socket:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patched:
        patched.setattr(socket, "socket", none_left)
        app.notify("WATCHDOG=1")
    app.notify("WATCHDOG=2")
    assert systemd.recv(64) == b"WATCHDOG=2"


def test_a_service_with_a_closed_standard_error_runs(tmp_path: Path) -> None:
    """Started with ``2>&-``, without a Redis, and watched: it goes on trying, answers its pages, and ends when told."""
    watched = {"WATCHDOG_USEC": "30000000", "STATE_DIRECTORY": str(tmp_path)}
    service = Service("regime", f"redis://127.0.0.1:{free_port()}", **watched)
    process = subprocess.Popen(["sh", "-c", 'exec "$@" 2>&-', "sh", *RUN, "regime"], env=service.environ)
    try:
        failed = 'quantum_alloc_cycles_total{outcome="store"}'
        until(lambda: process.poll() is not None or service.metric(failed) >= 3, 30.0, "it tried")
        assert process.poll() is None
        assert service.get("/health")[0] == 200
        process.terminate()
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_before_the_services_stand_ends_at_once(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def reading_candles(*_: object) -> list[object]:
        os.kill(os.getpid(), number)
        pytest.fail("the signal was kept for later")

    monkeypatch.setattr(app, "_build", reading_candles)
    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        with pytest.raises(SystemExit) as ended:
            app.run_for_good(["portfolio"], load(["portfolio"], {}), SetClock(1.765e9))
    finally:
        for n, handler in before.items():
            signal.signal(n, handler)
    assert ended.value.code == 0
