"""Redis, as the services see it: batched reads, groups of effects applied in one MULTI, one exception type.

- A batch is packed beforehand, sent in chunks with two in flight, and answered as a list; no command waits for another.
- Time-outs are 200 ms. A read is tried once more on a fresh connection when the old one turned out to be closed; a
  write is never sent twice.
- What a WATCH guards is lost with its connection: until the next EXEC or UNWATCH, or a cycle that writes nothing, a
  batch that would go out on another one is refused as a conflict, and so is one that would be sent again.
- A server's refusal of one key (WRONGTYPE) is a ``Failed`` reply; a refusal that concerns every key (LOADING, OOM,
  NOAUTH and their like), and every trouble of the connection, is a ``StoreError``.

- Where a locator tells where the primary is, every new socket is asked for its role first, and what refuses to be one
  (READONLY, MOVED) is let go of: the next batch goes where the primary is then.

Authentication, TLS and reconnects are redis-py's; this uses its connection beneath the Pipeline object. RESP2 is fixed:
its replies are flat lists of bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import hiredis
import redis
from redis.exceptions import ReadOnlyError, RedisError, ResponseError

from quantum_alloc.adapters.connecting import (
    ADDRESS_HINT,
    CODES,
    CONFIGURATION_CODES,
    STORE_CODES,
    TIMEOUT_S,
    StoreError,
    code_of,
    is_tls,
    options_of,
    store_error,
)
from quantum_alloc.adapters.effects import Command, Failed, Group, Reply
from quantum_alloc.adapters.locate import Locator, Place

__all__ = ["CODES", "CONFIGURATION_CODES", "STORE_CODES", "TIMEOUT_S", "Script", "Store", "StoreError"]

CHUNK_COMMANDS = 300
NOPERM_IN_SCRIPTS = ("ACL failure in script", "The user executing the script can't")
"""How servers say, without the code, that a script lacks a right."""
ELSEWHERE = frozenset({"READONLY", "MASTERDOWN", "NOREPLICAS", "LOADING", "MOVED", "ASK", "CLUSTERDOWN"})
"""Refusals of a server that is the primary no more, or may not be: where there is a locator, it is asked again."""


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua script.

    Attributes:
        text: the script.
        sha1: its name on the server.
    """

    text: str
    sha1: str = field(init=False)

    def __post_init__(self) -> None:
        """Work out its name."""
        digest = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()
        object.__setattr__(self, "sha1", digest)


_pack = cast(Callable[[Command], bytes], hiredis.pack_command)


def _failed(error: ResponseError) -> Failed:
    return Failed(code_of(error), str(error))


class Store:
    """One connection to one server, for one thread."""

    def __init__(
        self,
        url: str,
        password: str | None = None,
        shown: str = "",
        timeout_s: float = TIMEOUT_S,
        *,
        username: str | None = None,
        ca_file: Path | None = None,
        locator: Locator | None = None,
    ) -> None:
        """Prepare; nothing is sent yet.

        Args:
            url: redis://, rediss:// or unix:// address.
            password: None for none; one in the address wins.
            shown: the address as messages show it.
            timeout_s: of connecting, sending and receiving, each.
            username: None for none, or the one in the address.
            ca_file: whose certificates the server's must come from, with rediss://; None for the system's.
            locator: tells where the primary is, in the place of the address; None where the address does.

        Raises:
            ValueError: the address is of no known kind.
        """
        self.shown = shown or "the server"
        self._options = options_of(url, username, password, ca_file, timeout_s)
        self._locator = locator
        self._place: Place | None = None
        self._pool: Any = redis.ConnectionPool(**self._options) if locator is None else None
        self._connects = 0
        self._only: int | None = None
        self._watching: tuple[int, int] | None = None

    def read(self, commands: Sequence[Command], wait_s: float = 0.0) -> list[Reply]:
        """The replies to a batch of reading commands, in order.

        Args:
            commands: any number.
            wait_s: how long the server may keep the answer back by right, for a command that blocks.

        Raises:
            StoreError: nothing can be said about any of them.
        """
        if not commands:
            return []
        watched = self._watching is not None
        try:
            return self._batch(commands, wait_s=wait_s)
        except StoreError as error:
            if error.code not in ("closed", "MOVED") or (error.code == "MOVED" and self._locator is None):
                raise
            if watched and not any(command[0] in ("WATCH", "UNWATCH") for command in commands):
                raise self._unguarded() from None
        return self._batch(commands, wait_s=wait_s)

    def apply(self, groups: Sequence[Group]) -> list[tuple[str, Failed]]:
        """Write groups of effects, each in one MULTI, in order; nothing is sent twice.

        Args:
            groups: the effects.

        Returns:
            Key and refusal of each command that the server refused alone (WRONGTYPE); the rest of its group stands.

        Raises:
            StoreError: a group was refused or the connection broke; the groups before it stand.
        """
        refused: list[tuple[str, Failed]] = []
        for group in groups:
            commands = [c for effect in group for c in effect.commands()]
            if commands:
                refused += self._transaction(commands)
        self._watching = None  # also where there was nothing to write: what was read is not acted upon any more
        return refused

    @property
    def connections(self) -> int:
        """How often a socket was opened: another number is another socket, and maybe another server."""
        return self._connects

    def read_together(self, commands: Sequence[Command]) -> list[Reply]:
        """The replies to reading commands that are answered as of one moment, in order.

        Args:
            commands: any number.

        Raises:
            StoreError: nothing can be said about any of them.
        """
        return self._outcome(self.read([("MULTI",), *commands, ("EXEC",)]))

    def run(self, script: Script, keys: Sequence[str], args: Sequence[str | bytes | int], connection: int) -> Reply:
        """Run a script, on one connection alone: what it was told was read there. It is never sent twice.

        Args:
            script: its text.
            keys: every key that it touches.
            args: its arguments.
            connection: the number of connections when that was read.

        Raises:
            StoreError: it was refused, or nobody knows whether it ran.
        """
        if connection != self._connects:
            raise StoreError("conflict", f"{self.shown}: the connection that the snapshot was read on is gone")
        call = (len(keys), *keys, *args)
        reply = self._on(connection, ("EVALSHA", script.sha1, *call))
        if isinstance(reply, Failed) and reply.code == "NOSCRIPT":
            reply = self._on(connection, ("EVAL", script.text, *call))
        if isinstance(reply, Failed):
            code = "NOPERM" if any(words in reply.message for words in NOPERM_IN_SCRIPTS) else "other"
            raise StoreError(code, f"{self.shown} refused the script: {reply.message[:200]}")
        return reply

    def _on(self, connection: int, command: Command) -> Reply:
        """One command, refused before it is sent where the socket is another one."""
        self._only = connection
        try:
            return self._batch([command])[0]
        finally:
            self._only = None

    def ping(self) -> None:
        """Raise StoreError unless the server answers."""
        self.read([("PING",)])

    def close(self) -> None:
        """Close the connection."""
        if self._pool is not None:
            self._pool.disconnect()
        if self._locator is not None:
            self._locator.close()

    def _transaction(self, commands: list[Command]) -> list[tuple[str, Failed]]:
        outcome = self._outcome(self._batch([("MULTI",), *commands, ("EXEC",)], guarded=True))
        return [(str(c[1]), r) for c, r in zip(commands, outcome, strict=True) if isinstance(r, Failed)]

    def _outcome(self, replies: Sequence[Reply]) -> list[Reply]:
        outcome = replies[-1]
        if outcome is None:  # a watched key is not what it was when it was read
            what = "wrote the same state in the meantime: does the service run twice?"
            raise StoreError("conflict", f"{self.shown}: another program {what}")
        if not isinstance(outcome, list):
            why = next((r for r in replies if isinstance(r, Failed) and r.code != "EXECABORT"), outcome)
            code = why.code if isinstance(why, Failed) else "other"
            raise StoreError(
                code, f"{self.shown} refused a transaction: {why.message if isinstance(why, Failed) else ''}"
            )
        return outcome

    def _unguarded(self) -> StoreError:
        """What was read under a WATCH may have changed unseen."""
        return StoreError("conflict", f"{self.shown}: the connection that watched the state is gone")

    def _batch(self, commands: Sequence[Command], *, guarded: bool = False, wait_s: float = 0.0) -> list[Reply]:
        if commands[0][0] == "UNWATCH":
            self._watching = None
        try:
            if self._locator is not None:
                self._settle(self._locator)
            connection: Any = self._pool.get_connection()
        except (StoreError, RedisError, OSError, ValueError) as error:  # ValueError: of a name that no resolver takes
            self._watching = None
            self._leave()
            hint = ADDRESS_HINT if self._locator is None else "it may have failed just now, and another takes its place"
            tls, secret = is_tls(self._options), self._options.get("password")
            raise store_error(error, self._where, opening=True, tls=tls, hint=hint, secret=secret) from None
        connection.register_connect_callback(self._connected)
        if self._only not in (None, self._connects):
            self._pool.release(connection)
            raise StoreError("conflict", f"{self.shown}: the connection that the snapshot was read on is gone")
        here = (id(connection), self._connects)
        watches = any(command[0] == "WATCH" for command in commands)
        if self._watching not in (None, here) and not watches:
            self._watching = None
            self._pool.release(connection)
            raise self._unguarded()
        self._watching = here if watches else None if commands[-1][0] == "EXEC" else self._watching
        return self._exchange(connection, commands, guarded, wait_s)

    def _connected(self, _: Any) -> None:
        """Another socket: nothing is watched on it."""
        self._connects += 1

    @property
    def _where(self) -> str:
        """The server, for messages."""
        return self.shown if self._place is None else f"{self.shown} (now {self._place[0]}:{self._place[1]})"

    def _settle(self, locator: Locator) -> None:
        """Have a pool of where the primary is; one that moved is left, but not between a WATCH and its EXEC."""
        if self._pool is not None and self._only is None and self._watching is None:
            now_at = locator.moved()
            if now_at is not None and now_at != self._place:
                self._leave()
        if self._pool is None:
            self._place = None
            host, port = self._place = locator.find()
            own = {**self._options, "host": host, "port": port, "redis_connect_func": _as_primary}
            self._pool = redis.ConnectionPool(**own)
            self._connects += 1

    def _leave(self, message: str = "") -> None:
        """Let go of a server that may be the primary no more."""
        if self._locator is None:
            return
        if message and self._place is not None:
            self._locator.told(message, self._place)
        if self._pool is not None:
            self._pool.disconnect()
            self._pool = None

    def _exchange(self, connection: Any, commands: Sequence[Command], guarded: bool, wait_s: float) -> list[Reply]:
        try:
            replies = self._talk(connection, commands, guarded, wait_s)
        except (RedisError, OSError) as error:
            self._watching = None
            connection.disconnect()
            where = self._where
            self._leave()
            raise store_error(error, where) from None
        except BaseException as error:
            connection.disconnect()  # replies may be under way that belong to nobody
            if isinstance(error, StoreError) and error.code in ELSEWHERE:
                self._leave()
            raise
        finally:
            if self._pool is not None:
                self._pool.release(connection)
        for reply in replies:
            if isinstance(reply, Failed) and reply.code in STORE_CODES and reply.code != "EXECABORT":
                where = self._where
                if reply.code in ELSEWHERE and self._locator is not None:
                    self._watching = None
                    self._leave(reply.message if reply.code == "MOVED" else "")
                raise StoreError(reply.code, f"{where} answered {reply.message[:200]}{self._hint(reply.code)}")
        return replies

    def _talk(self, connection: Any, commands: Sequence[Command], guarded: bool, wait_s: float) -> list[Reply]:
        replies: list[Reply] = []
        if guarded:  # a MULTI that is refused must not let what follows through one by one
            connection.send_packed_command([_pack(commands[0])], check_health=False)
            replies.append(self._reply(connection))
            if isinstance(replies[0], Failed):
                raise StoreError(replies[0].code, f"{self._where} refuses MULTI: {replies[0].message[:200]}")
        sent = len(replies)
        while len(replies) < len(commands):
            while sent < len(commands) and sent - len(replies) <= CHUNK_COMMANDS:
                chunk = commands[sent : sent + CHUNK_COMMANDS]
                connection.send_packed_command([b"".join(map(_pack, chunk))], check_health=False)
                sent += len(chunk)
            if wait_s and not replies:
                connection.can_read(timeout=wait_s)
            replies += [self._reply(connection) for _ in range(min(CHUNK_COMMANDS, sent - len(replies)))]
        return replies

    def _hint(self, code: str) -> str:
        """What a refusal says about the settings."""
        lost = self._locator is None and code in ("MOVED", "CROSSSLOT")
        return ": it is a node of a cluster, set REDIS_CLUSTER=1 and QA_HASH_TAG" if lost else ""

    def _reply(self, connection: Any) -> Reply:
        try:
            reply = connection.read_response(disable_decoding=True)
        except ResponseError as error:
            return _failed(error)
        if isinstance(reply, list):
            return [_failed(r) if isinstance(r, ResponseError) else cast(Reply, r) for r in reply]
        return cast(Reply, reply)


def _as_primary(connection: Any) -> None:
    """What is done with a new socket where a locator said whose it is: it must be the primary's."""
    connection.on_connect()
    connection.send_command("HELLO", 2, check_health=False)
    told = connection.read_response(disable_decoding=True)
    state = dict(zip(told[::2], told[1::2], strict=False)) if isinstance(told, list) else {}
    if state.get(b"role") != b"master":
        raise ReadOnlyError("it is no primary", status_code="READONLY")
