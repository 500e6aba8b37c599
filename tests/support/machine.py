"""A machine of its own beside this one: a real systemd over a throw-away copy of the disk, with its own loopback."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from quantum_alloc.services.units import UNITS
from tests.support.running import until

ROOT = Path(__file__).resolve().parents[2]
PORTS = tuple(unit.ports[0] for unit in UNITS.values())
SERVICES = tuple(unit.file for unit in UNITS.values())
PYTHON = "/opt/quantum-alloc/venv/bin/python"
ASK = """
import json, sys, time, urllib.error, urllib.request
def ask(port, path):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=1) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
    except OSError:
        return 0, ""
path, wanted, within, *ports = sys.argv[1:]
began = time.monotonic()
while True:
    found = {port: ask(port, path) for port in ports}
    took = time.monotonic() - began
    if took > float(within) or all(status == int(wanted) for status, _ in found.values()):
        break
    time.sleep(0.05)
print(json.dumps([took, found]))
"""
"""Asks ports for a page until all answer as wanted, or for so many seconds."""


class Machine:
    """A booted machine; the commands that set it up are its own."""

    def __init__(self, boot: Path, directory: Path) -> None:
        """Prepare; ``start`` boots it.

        Args:
            boot: the script that boots.
            directory: where it keeps its disk.
        """
        self._boot = boot
        self.directory = directory
        self.leader = ""

    def start(self) -> None:
        """Boot."""
        environ = {**os.environ, "SYSTEMD_NSPAWN_TMPFS_TMP": "0"}  # the checkout may be in /tmp
        done = subprocess.run(
            [self._boot, "start", self.directory], capture_output=True, text=True, check=False, env=environ
        )
        assert done.returncode == 0, done.stderr
        self.leader = done.stdout.strip()
        if not self.path(str(ROOT)).exists():  # on a disk of its own
            shutil.copytree(ROOT, self.path(str(ROOT)), symlinks=True)

    def stop(self) -> None:
        """Power off and throw the disk away."""
        subprocess.run([self._boot, "stop", self.directory], capture_output=True, check=False, timeout=60)

    def path(self, inside: str) -> Path:
        """Where a file of its disk is."""
        return self.directory / "tree" / inside.lstrip("/")

    def tried(self, *words: str, network: bool = True, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run a command in it.

        Args:
            words: of the command.
            network: its own; else this machine's, for a package index.
            environ: variables beside a plain environment.
        """
        spaces = ["-a"] if network else ["-m", "-p", "-u", "-i"]
        entered = ["nsenter", "-t", self.leader, *spaces, "--"]
        plain = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", **environ}
        return subprocess.run(
            [*entered, *words], capture_output=True, text=True, errors="replace", env=plain, check=False, timeout=240
        )

    def run(self, *words: str) -> str:
        """The output of a command that succeeds."""
        done = self.tried(*words)
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout

    def shown(self, unit: str, *names: str) -> dict[str, str]:
        """Properties of a unit."""
        told = self.run("systemctl", "show", unit, *(f"--property={name}" for name in names))
        return dict(line.split("=", 1) for line in told.splitlines() if "=" in line)

    def every(self, name: str, units: Iterable[str] = SERVICES) -> dict[str, str]:
        """One property of every service."""
        names = list(units)
        told = self.run("systemctl", "show", *names, f"--property={name}")
        values = [line.partition("=")[2] for line in told.splitlines() if line]
        return dict(zip(names, values, strict=True))

    def said(self, unit: str) -> str:
        """What the last start of a service logged."""
        invocation = self.shown(unit, "InvocationID")["InvocationID"]
        return self.run("journalctl", "--no-pager", "--output=cat", f"_SYSTEMD_INVOCATION_ID={invocation}")

    def asked(
        self, path: str, status: int, within_s: float, ports: Iterable[int] = PORTS
    ) -> tuple[float, dict[str, tuple[int, str]]]:
        """Ask until every port answers with a status; the seconds it took, and the answers."""
        words = [path, str(status), str(within_s), *map(str, ports)]
        took, found = json.loads(self.run(PYTHON, "-c", ASK, *words))
        return took, {port: (code, text) for port, (code, text) in found.items()}

    def ready(self, within_s: float, ports: Iterable[int] = PORTS) -> float:
        """Wait until services are ready; the seconds it took."""
        took, found = self.asked("/ready", 200, within_s, ports)
        waiting = {port: answer for port, answer in found.items() if answer[0] != 200}
        assert not waiting, f"not ready within {within_s} s: {waiting}"
        return took

    def restarted(self, unit: str, times: int, within_s: float) -> None:
        """Wait until systemd itself has started a unit so many times again."""
        until(lambda: int(self.shown(unit, "NRestarts")["NRestarts"]) >= times, within_s, f"{unit} is started again")

    def up(self) -> None:
        """Everything runs and is ready, whatever was before."""
        self.run("systemctl", "reset-failed")
        self.run("systemctl", "start", "redis-server", "quantum-alloc.target")
        self.ready(60)


def wheel(directory: Path) -> Path:
    """This checkout as a wheel."""
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "-w", str(directory), str(ROOT)], check=True, capture_output=True)
    return next(directory.glob("*.whl"))
