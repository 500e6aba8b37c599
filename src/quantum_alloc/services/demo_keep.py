"""``quantum-alloc demo --keep``: the demo's services are left running in a process of their own.

    demo --(stdin: Onward)--> python -m quantum_alloc.services.demo_onward --(stdout: one line)--> demo

The line comes when every service is ready; where the process ends before, the demo ends the server and says why. The
settings to reach the services with stand in a file in the server's directory, which nobody else can read.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Event
from typing import IO

from quantum_alloc.adapters.embedded import EmbeddedServer, ServerError
from quantum_alloc.services import app
from quantum_alloc.services.demo import Progress
from quantum_alloc.services.demo_onward import PORT_TAKEN, Onward
from quantum_alloc.services.options import KNOWN, Settings, load, port_variables

MODULE = "quantum_alloc.services.demo_onward"
ENV, LOG = "demo.env", "services.log"
"""In the server's directory: the settings, and what the services log."""
READY_WITHIN_S = 60.0
BARS_READ_PER_S = 500
"""So many bars are read again in a second at the least, until the place is found where the demo stopped."""
OFFSETS = range(4_000, 23_000)
"""Of ports, where those that come first are taken: below those that the kernel gives to outgoing connections."""
NOT_HANDED_ON = KNOWN | {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "JOURNAL_STREAM", "CREDENTIALS_DIRECTORY"}
TRIES = 3


@dataclass(frozen=True, slots=True)
class Kept:
    """Services that go on.

    Attributes:
        pid: their process.
        env_file: the settings to reach them with.
        log_file: what they log.
        ended: True where the candles have ended.
        port_offset: what was added to every port of the contract.
    """

    pid: int
    env_file: Path
    log_file: Path
    ended: bool
    port_offset: int = 0


def environ_of(own: Mapping[str, str], server: EmbeddedServer, speed: float | None) -> dict[str, str]:
    """The settings of the services that go on.

    Args:
        own: the demo's.
        server: of the demo.
        speed: of the candles, times real time; None for 1.

    Raises:
        ServerError: there are no free ports.
    """
    found = {name: text for name, text in own.items() if name in KNOWN}
    found["QA_FEED_CANDLES"] = ":".join(os.path.abspath(p) for p in found.get("QA_FEED_CANDLES", "").split(":") if p)
    found |= {"REDIS_URL": server.url, "PAPER_BOOK": "0"}  # the apply layer holds the account
    if speed is not None:
        found["QA_FEED_SPEED"] = str(speed)
    offset = free_offset(load(list(app.SERVICES), found))
    return {name: text for name, text in {**found, "QA_PORT_OFFSET": str(offset or "")}.items() if text}


def free_offset(settings: Settings) -> int:
    """What to add to every port, so that all are free now: what the settings say, or 0, where those are free.

    Args:
        settings: of all services, whose own offset comes first.

    Raises:
        ServerError: there is nothing.
    """
    own = settings.common.port_offset
    ports = [port - own for options in settings.services.values() for port in port_variables(options).values()]
    for offset in (own, *(secrets.choice(OFFSETS) for _ in range(100))):
        if all(_is_free(settings.common.metrics_host, port + offset) for port in ports):
            return offset
    raise ServerError(
        f"no ports are free at {settings.common.metrics_host} (QA_METRICS_HOST) for the services that are to go on: "
        "end what holds them, or take --keep=server"
    )


def _is_free(host: str, port: int) -> bool:
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((host, port))
        except OSError:
            return False
    return True


def env_text(environ: Mapping[str, str]) -> str:
    """An environment file, as ``env_file`` and systemd read it.

    Args:
        environ: names and texts.

    >>> env_text({"QA_SYMBOLS": "BTCUSDT", "X": 'a "b" $c'})
    'QA_SYMBOLS="BTCUSDT"\\nX="a \\\\"b\\\\" \\\\$c"\\n'
    """
    escaped = {name: re.sub(r'([\\"`$])', r"\\\1", text) for name, text in sorted(environ.items())}
    return "".join(f'{name}="{text}"\n' for name, text in escaped.items())


def go_on(
    own: Mapping[str, str], server: EmbeddedServer, speed: float | None, progress: Progress, stop: Event
) -> Kept | None:
    """Start the services, and wait until all are ready; the demo's clock runs from now on.

    Args:
        own: the demo's settings.
        server: of the demo.
        speed: of the candles, times real time; None for 1.
        progress: of the demo, at its end.
        stop: set by a signal in the meantime; they are ended then.

    Returns:
        None where it was told to stop.

    Raises:
        ServerError: they did not come up; the sentence says why.
    """
    directory, offset_s = str(server.directory), progress.now - time.time()
    code = PORT_TAKEN
    for _ in range(TRIES):
        environ = environ_of(own, server, speed)
        kept, code = start(Onward(environ, directory, server.pid, offset_s, progress.bars, progress.now), stop)
        if kept is not None or stop.is_set():
            return kept
        if code != PORT_TAKEN:  # else somebody has just taken a port that was free
            break
    lines = (server.directory / LOG).read_text(errors="replace").strip().splitlines()[-1:]
    why = lines[0] if lines else f"they logged nothing and ended with exit code {code}"
    if code in (0, -signal.SIGTERM, -signal.SIGKILL):  # we ended them
        why = f"not all were ready in time, and the last line of their log is {why!r}"
    raise ServerError(f"the demo's services did not come up: {why}: try again, or take --keep=server")


def start(onward: Onward, stop: Event) -> tuple[Kept | None, int]:
    """Start the services, and wait until all are ready.

    Args:
        onward: where and with what.
        stop: set by a signal in the meantime; they are ended then.

    Returns:
        The services, or None and the exit code of their process.
    """
    env_file, log_file = Path(onward.directory, ENV), Path(onward.directory, LOG)
    with os.fdopen(os.open(env_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        file.write(env_text(onward.environ))
    with log_file.open("ab") as log_to:
        process = subprocess.Popen(  # noqa: S603 - ourselves
            [sys.executable, "-P", "-m", MODULE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log_to,
            text=True,
            start_new_session=True,
            env={name: text for name, text in os.environ.items() if name not in NOT_HANDED_ON},
        )
    told = ""
    try:
        with process.stdin as to, process.stdout as answers:  # type: ignore[union-attr]  # both are pipes
            with contextlib.suppress(BrokenPipeError):  # it has ended already: its log says why
                json.dump(asdict(onward), to)
                to.close()
            told = _line(answers, stop, READY_WITHIN_S + onward.bars / BARS_READ_PER_S)
    finally:
        if not told:
            _end(process)
    if told:
        pid, process.returncode = process.pid, 0  # not ours to wait for any more
        offset = int(onward.environ.get("QA_PORT_OFFSET") or 0)
        return Kept(pid, env_file, log_file, bool(json.loads(told)["ended"]), offset), 0
    return None, process.returncode


def _line(answers: IO[str], stop: Event, within_s: float) -> str:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline and not stop.is_set():
        if select.select([answers], [], [], 0.1)[0]:
            return answers.readline()
    return ""


def _end(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(3)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
