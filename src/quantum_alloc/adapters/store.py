"""Redis, as the services see it: batched reads, groups of effects applied in one MULTI, one exception type.

- A batch is packed beforehand, sent in chunks with two in flight, and answered as a list; no command waits for another.
- Time-outs are 200 ms. A read is tried once more on a fresh connection when the old one turned out to be closed; a
  write is never sent twice.
- What a WATCH guards is lost with its connection: until the next EXEC, a batch that would go out on another one is
  refused as a conflict.
- A server's refusal of one key (WRONGTYPE) is a ``Failed`` reply; a refusal that concerns every key (LOADING, OOM,
  NOAUTH and their like), and every trouble of the connection, is a ``StoreError``.

Authentication, TLS and reconnects are redis-py's; this uses its connection beneath the Pipeline object. RESP2 is fixed:
its replies are flat lists of bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import hiredis
import redis
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, RedisError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from quantum_alloc.adapters.effects import Command, Failed, Group, Reply

TIMEOUT_S = 0.2
CHUNK_COMMANDS = 300

CONFIGURATION_CODES = frozenset({"NOAUTH", "WRONGPASS", "NOPERM"})
STORE_CODES = CONFIGURATION_CODES | {
    "OOM", "READONLY", "MASTERDOWN", "LOADING", "NOREPLICAS", "MISCONF", "BUSY", "CLUSTERDOWN", "TRYAGAIN", "MOVED",
    "ASK", "CROSSSLOT", "EXECABORT",
}  # fmt: skip
"""Refusals that concern the server or our account, not one key."""
CODES = STORE_CODES | {"unreachable", "timeout", "closed", "conflict", "journal", "other"}
"""Every code a ``StoreError`` can carry: a closed set, safe as a metric label."""


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


class StoreError(Exception):
    """The store did not do what it was asked, as a whole.

    Attributes:
        code: one of ``CODES``.
        detail: for logs; holds no secret.
    """

    def __init__(self, code: str, detail: str = "") -> None:
        """Keep the code and the detail."""
        super().__init__(f"{code}: {detail}" if detail else code)
        self.code = code if code in CODES else "other"
        self.detail = detail

    @property
    def is_configuration(self) -> bool:
        """True for a wrong or missing password or right: waiting alone will not help."""
        return self.code in CONFIGURATION_CODES


def _code(error: RedisError) -> str:
    known = getattr(error, "status_code", None)
    text = str(error)
    if known is not None:
        return str(known)
    if isinstance(error, AuthenticationError):
        return "WRONGPASS"
    return text.split(" ", 1)[0] if text else "ERR"


def _store_error(error: Exception, where: str) -> StoreError:
    if isinstance(error, RedisTimeoutError):
        return StoreError("timeout", f"no answer from {where} within {TIMEOUT_S * 1e3:.0f} ms")
    code = _code(error) if isinstance(error, RedisError) else ""
    if code in STORE_CODES:
        return StoreError(code, f"{where} answered {code}")
    if isinstance(error, (RedisConnectionError, OSError)):
        refused = "onnecting to" in str(error) or "onnection refused" in str(error)
        if refused:
            hint = "is it running, and is it what REDIS_URL, or REDIS_HOST and REDIS_PORT, name?"
            return StoreError("unreachable", f"{where} cannot be reached: {hint}")
        return StoreError("closed", f"{where}: {error}")
    return StoreError("other", f"{where}: {type(error).__name__}")


def _failed(error: ResponseError) -> Failed:
    return Failed(_code(error), str(error))


class Store:
    """One connection to one server, for one thread."""

    def __init__(self, url: str, password: str | None = None, shown: str = "", timeout_s: float = TIMEOUT_S) -> None:
        """Prepare; nothing is sent yet.

        Args:
            url: redis://, rediss:// or unix:// address.
            password: None for none; it overrides one in the address.
            shown: the address as messages show it.
            timeout_s: of connecting, sending and receiving, each.

        Raises:
            ValueError: the address is of no known kind.
        """
        secret = {} if password is None else {"password": password}
        self.shown = shown or "the server"
        self._pool = redis.ConnectionPool.from_url(
            url,
            protocol=2,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 0),
            health_check_interval=0,
            client_name="quantum-alloc",
            **secret,
        )
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
        try:
            return self._batch(commands, wait_s=wait_s)
        except StoreError as error:
            if error.code != "closed":
                raise
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
            raise StoreError("other", f"{self.shown} refused the script: {reply.message[:200]}")
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
        self._pool.disconnect()

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

    def _batch(self, commands: Sequence[Command], *, guarded: bool = False, wait_s: float = 0.0) -> list[Reply]:
        try:
            connection: Any = self._pool.get_connection()
        except (RedisError, OSError) as error:
            self._watching = None
            raise _store_error(error, self.shown) from None
        connection.register_connect_callback(self._connected)
        if self._only not in (None, self._connects):
            self._pool.release(connection)
            raise StoreError("conflict", f"{self.shown}: the connection that the snapshot was read on is gone")
        here = (id(connection), self._connects)
        watches = any(command[0] == "WATCH" for command in commands)
        if self._watching not in (None, here) and not watches:
            self._watching = None
            self._pool.release(connection)
            raise StoreError("conflict", f"{self.shown}: the connection that watched the state is gone")
        self._watching = here if watches else None if commands[-1][0] == "EXEC" else self._watching
        return self._exchange(connection, commands, guarded, wait_s)

    def _connected(self, _: Any) -> None:
        """Another socket: nothing is watched on it."""
        self._connects += 1

    def _exchange(self, connection: Any, commands: Sequence[Command], guarded: bool, wait_s: float) -> list[Reply]:
        try:
            replies: list[Reply] = []
            if guarded:  # a MULTI that is refused must not let what follows through one by one
                connection.send_packed_command([_pack(commands[0])], check_health=False)
                replies.append(self._reply(connection))
                if isinstance(replies[0], Failed):
                    raise StoreError(replies[0].code, f"{self.shown} refuses MULTI: {replies[0].message[:200]}")
            sent = len(replies)
            while len(replies) < len(commands):
                while sent < len(commands) and sent - len(replies) <= CHUNK_COMMANDS:
                    chunk = commands[sent : sent + CHUNK_COMMANDS]
                    connection.send_packed_command([b"".join(map(_pack, chunk))], check_health=False)
                    sent += len(chunk)
                if wait_s and not replies:
                    connection.can_read(timeout=wait_s)
                replies += [self._reply(connection) for _ in range(min(CHUNK_COMMANDS, sent - len(replies)))]
        except (RedisError, OSError) as error:
            self._watching = None
            connection.disconnect()
            raise _store_error(error, self.shown) from None
        except BaseException:
            connection.disconnect()  # replies may be under way that belong to nobody
            raise
        finally:
            self._pool.release(connection)
        for reply in replies:
            if isinstance(reply, Failed) and reply.code in STORE_CODES and reply.code != "EXECABORT":
                raise StoreError(reply.code, f"{self.shown} answered {reply.message[:200]}")
        return replies

    def _reply(self, connection: Any) -> Reply:
        try:
            reply = connection.read_response(disable_decoding=True)
        except ResponseError as error:
            return _failed(error)
        if isinstance(reply, list):
            return [_failed(r) if isinstance(r, ResponseError) else cast(Reply, r) for r in reply]
        return cast(Reply, reply)
