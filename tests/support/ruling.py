"""A server whose users have the rights of the table, and nobody else any."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import redis

from quantum_alloc.adapters.embedded import EmbeddedServer
from quantum_alloc.adapters.rights import USERS, Rules, user_of
from quantum_alloc.adapters.store import Store
from quantum_alloc.services import acl_cli
from tests.support.worlds import Client

ADMIN = "qa-admin"
PASSWORDS = {name: f"pass of {name}, 7" for name in USERS}
SECRETS = {**{user_of(n): p for n, p in PASSWORDS.items()}, **{u: f"pass-of-{u}" for u in acl_cli.SERVER_USERS}}


def client_of(url: str, user: str = "", password: str | None = None) -> Client:
    """A client of a user; of nobody in particular without one."""
    found: Any = redis.Redis.from_url(
        url, username=user or None, password=SECRETS.get(user) if password is None else password, protocol=2,
        decode_responses=True, driver_info=None,
    )  # fmt: skip
    return found


def store_of(url: str, name: str, timeout_s: float = 5.0) -> Store:
    """A store of a service's user."""
    return Store(f"{url}?username={user_of(name)}", PASSWORDS[name], shown="the server", timeout_s=timeout_s)


class Ruled:
    """A server with rights.

    Attributes:
        server: itself.
        admin: a client of its administrator.
    """

    def __init__(self, server: EmbeddedServer, file: Path) -> None:
        """Take it over from the default user, who has no rights any more."""
        self.server, self._file = server, file
        first = client_of(server.url)
        self._write(Rules())
        first.execute_command("ACL", "LOAD")
        first.close()
        self.admin = client_of(server.url, ADMIN)

    @property
    def url(self) -> str:
        """How to reach it."""
        return self.server.url

    def _write(self, rules: Rules) -> None:
        self._file.write_text("".join(f"{line}\n" for line in acl_cli.lines(rules, passwords=SECRETS)))

    def load(self) -> None:
        """Load the file; Redis 7.0 then closes every connection, this one too."""
        self.admin.execute_command("ACL", "LOAD")
        self.admin.connection_pool.disconnect()

    def begin(self, rules: Rules) -> None:
        """The rights of an installation, loaded as an operator would; an empty server, nothing in its log."""
        self._write(rules)
        self.load()
        self.admin.flushall()
        self.admin.execute_command("ACL", "LOG", "RESET")

    @property
    def refused(self) -> list[str]:
        """What was refused since: user, reason and object of each."""
        log = self.admin.acl_log(100)
        return [f"{e['username']} {e['context']} {e['reason']} {e['object']}" for e in log]

    def close(self) -> None:
        """Close the client."""
        self.admin.close()


@contextmanager
def ruled(program: Path | None = None, port: int | None = None) -> Iterator[Ruled]:
    """A server that lets nobody in but the users of the file."""
    with TemporaryDirectory(prefix="qa-acl-") as directory:
        file = Path(directory) / "users.acl"
        file.touch()
        with EmbeddedServer(program, port=port, config=[f"aclfile {file}"]) as server:
            found = Ruled(server, file)
            yield found
            found.close()
