"""A kept demo, and a real Prometheus that scrapes it: both end with the test."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantum_alloc.adapters.embedded import free_port
from quantum_alloc.services import alert_files
from quantum_alloc.services.env_file import parse_bytes
from quantum_alloc.services.options import GROUPS, load, port_variables
from tests.conftest import absent
from tests.support.running import CLEAN, port_offset, until

DEMO = [
    sys.executable,
    "-W",
    "error",
    "-c",
    "import sys; from quantum_alloc.services.cli import main; sys.exit(main())",
]


@dataclass(frozen=True)
class Kept:
    """A demo that goes on."""

    environ: Mapping[str, str]
    env_file: Path
    services_pid: int

    @property
    def ports(self) -> dict[str, int]:
        """Where each service has its metrics."""
        services = load(list(GROUPS), self.environ, together=True).services
        return {name: next(iter(port_variables(options).values())) for name, options in services.items()}

    def page(self, service: str) -> str:
        """The metrics of a service."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.ports[service]}/metrics", timeout=5) as answer:
            return str(answer.read().decode())


def _gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


@contextmanager
def kept_demo(*words: str) -> Iterator[Kept]:
    """A demo with ``--keep``; its server and its services have ended afterwards."""
    command = [*DEMO, "demo", "--keep", "--format", "json", *words]
    environ = {**CLEAN, "QA_PORT_OFFSET": port_offset()}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    file = Path(told["env_file"])
    try:
        environ, errors = parse_bytes(file.read_bytes())
        assert not errors
        yield Kept(environ, file, told["services_pid"])
    finally:
        os.kill(told["pid"], signal.SIGTERM)
        until(lambda: _gone(told["services_pid"]) and _gone(told["pid"]), 10, "the kept demo has ended")


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)


class Prometheus:
    """Prometheus with the rules and jobs that are shipped, on a port and in a directory of its own."""

    def __init__(self, directory: Path, ports: Mapping[str, int]) -> None:
        """Write its files; entering starts it."""
        program = shutil.which("prometheus")
        if program is None:
            absent("prometheus")
        (directory / "prometheus.yml").write_text(alert_files.scrape_text(ports, every_s=1))
        (directory / alert_files.RULES).write_text(alert_files.rules_text())
        self.port = free_port()
        self._log = directory / "log"
        self._command = [
            str(program),
            f"--config.file={directory / 'prometheus.yml'}",
            f"--storage.tsdb.path={directory / 'data'}",
            f"--web.listen-address=127.0.0.1:{self.port}",
            "--log.level=warn",
        ]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Prometheus:
        """Start it, and wait until it is ready."""
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command,
                stdout=log,
                stderr=log,
                env=CLEAN,
                preexec_fn=_die_with_parent,  # noqa: PLW1509 - one system call
            )
        until(self._ready, 20, f"Prometheus is ready: {self._log.read_text()}")
        return self

    def __exit__(self, *_: object) -> None:
        """End it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def _ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/-/ready", timeout=2) as answer:
                return int(answer.status) == 200
        except OSError:
            return False

    def ask(self, path: str, **parameters: str) -> Any:
        """The data of an answer of its API; the error's text where it refuses."""
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            with error:
                raise AssertionError(json.load(error)["error"]) from None

    def query(self, expr: str) -> list[dict[str, Any]]:
        """The samples of an expression now."""
        return list(self.ask("query", query=expr)["result"])
