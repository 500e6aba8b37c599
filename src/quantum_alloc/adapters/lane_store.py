"""A connection that reaches the keys of one proof and no others, and leaves none of them behind.

    LaneStore      refuses every command that names a key outside the proof, before it is sent; remembers the keys that
                   it named; what would stay for ever, or long, gets an expiry of 15 minutes in the same step
    lease, sweep   a proof that runs says so in a key of its own; keys of proofs that do not are deleted

So a proof that is killed leaves keys for 15 minutes at most, and a later one deletes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from quantum_alloc.adapters.effects import Command, Failed, Reply
from quantum_alloc.adapters.key_patterns import Names, literal
from quantum_alloc.adapters.keys import Keys
from quantum_alloc.adapters.store import Script, Store, StoreError

GUARD_S = 900
"""Greatest life of a key that its writer would keep for ever."""
PAGE_KEYS = 1000
_BARE = frozenset({"EXEC", "INFO", "MULTI", "PING", "TIME", "UNWATCH"})
_MANY = frozenset({"DEL", "EXISTS", "WATCH"})
_SECOND = frozenset({"XGROUP", "XINFO"})
_EXPIRING = frozenset({"EXPIRE", "DEL"})
_STAYING = frozenset({"HINCRBY", "HSET", "HSETNX", "SADD", "SET", "XADD", "XGROUP"})
"""Commands that make a key without an expiry where there was none."""


def _text(part: object) -> str:
    return part.decode("utf-8", "backslashreplace") if isinstance(part, bytes) else str(part)


def keys_of(command: Command) -> list[str]:
    """The keys that a command names; of SCAN the pattern, which must begin as they do.

    Args:
        command: one that services send.

    >>> keys_of(("XREADGROUP", "GROUP", "g", "me", "COUNT", 1, "STREAMS", "plans", ">"))
    ['plans']
    >>> keys_of(("EVALSHA", "abc", 2, "a", "b", "x")), keys_of(("XINFO", "STREAM", "a")), keys_of(("MULTI",))
    (['a', 'b'], ['a'], [])
    """
    words = [_text(part) for part in command]
    name = words[0].upper()
    if name in _BARE:
        return []
    if name in ("EVAL", "EVALSHA"):
        return words[3 : 3 + int(words[2])]
    if name == "SCAN":
        return [words[words.index("MATCH") + 1] if "MATCH" in words else "*"]
    if name == "XREADGROUP":
        behind = words[words.index("STREAMS") + 1 :]
        return behind[: len(behind) // 2]
    if name in _SECOND:
        return words[2:3]
    return words[1:] if name in _MANY else words[1:2]


class LaneStore(Store):
    """One connection to one server, for the keys of one proof.

    Attributes:
        named: every key that was named, wanted or written.
        guarded: seconds that the writer gave a key whose expiry was shortened; -1 where it gave it none.
    """

    def __init__(self, root: str, *args: Any, **more: Any) -> None:
        """Prepare; nothing is sent yet.

        Args:
            root: what every key begins with.
            args: of ``Store``.
            more: of ``Store``.
        """
        super().__init__(*args, **more)
        self._root = root
        self.named: set[str] = set()
        self.guarded: dict[str, int] = {}

    def read(self, commands: Sequence[Command], wait_s: float = 0.0) -> list[Reply]:
        """As ``Store.read``; what a command makes gets an expiry.

        Raises:
            StoreError: nothing can be said about any of them, or one names a key outside the proof.
        """
        replies = super().read(commands, wait_s)
        self._guard([key for c in commands if str(c[0]).upper() in _STAYING for key in keys_of(c)])
        return replies

    def run(self, script: Script, keys: Sequence[str], args: Sequence[str | bytes | int], connection: int) -> Reply:
        """As ``Store.run``; what the script makes gets an expiry.

        Raises:
            StoreError: it was refused, nobody knows whether it ran, or it names a key outside the proof.
        """
        reply = super().run(script, keys, args, connection)
        self._guard(keys)
        return reply

    def _transaction(self, commands: list[Command]) -> list[tuple[str, Failed]]:
        expiring = {key for c in commands if c[0] in _EXPIRING for key in keys_of(c)}
        staying = {key: -1 for c in commands if c[0] in _STAYING for key in keys_of(c) if key not in expiring}
        self.guarded = {k: s for k, s in self.guarded.items() if k not in expiring} | staying
        refused = super()._transaction([*commands, *(("EXPIRE", key, GUARD_S) for key in staying)])
        self._guard(list(expiring))
        return refused

    def _batch(self, commands: Sequence[Command], *, guarded: bool = False, wait_s: float = 0.0) -> list[Reply]:
        keys = [key for command in commands for key in keys_of(command)]
        outside = next((key for key in keys if not key.startswith(self._root)), None)
        if outside is not None:
            raise StoreError("other", f"{outside[:100]} is no key of this proof: the command is not sent")
        self.named.update(keys)
        return super()._batch(commands, guarded=guarded, wait_s=wait_s)

    def _guard(self, keys: Sequence[str]) -> None:
        """Give an expiry to what has none, or a long one."""
        some = list(dict.fromkeys(keys))
        if not some:
            return
        lives = zip(some, self._batch([("TTL", key) for key in some]), strict=True)
        long = {key: s for key, s in lives if isinstance(s, int) and (s == -1 or s > GUARD_S)}
        if long:
            self.guarded.update(long)
            self._batch([("EXPIRE", key, GUARD_S) for key in long])


def lease(store: Store, keys: Keys) -> None:
    """Say that a proof runs, for 15 minutes from now.

    Args:
        store: a connection.
        keys: of the proof, without a lane.

    Raises:
        StoreError: the store did not answer, or refused it.
    """
    told = store.read([("SET", keys.key("began"), "1", "EX", GUARD_S)])[0]
    if isinstance(told, Failed):
        raise StoreError(told.code, f"{keys.key('began')} cannot be written: {told.message[:200]}")


def found(store: Store, pattern: str) -> list[str]:
    """The keys that match a pattern, with SCAN; each once, in sort order.

    Args:
        store: a connection.
        pattern: of names.

    Raises:
        StoreError: the store did not answer.
    """
    names: set[str] = set()
    cursor: bytes = b"0"
    while True:
        reply = store.read([("SCAN", cursor, "MATCH", pattern, "COUNT", PAGE_KEYS)])[0]
        if not (isinstance(reply, list) and isinstance(reply[0], bytes) and isinstance(reply[1], list)):
            raise StoreError("other", f"{store.shown} cannot be scanned: {reply!r:.200}")
        names.update(_text(name) for name in reply[1])
        cursor = reply[0]
        if cursor == b"0":
            return sorted(names)


def remove(store: Store, names: Sequence[str]) -> None:
    """Delete keys, some hundred at once.

    Args:
        store: a connection.
        names: of keys of proofs.

    Raises:
        StoreError: the store did not answer.
    """
    for at in range(0, len(names), PAGE_KEYS):
        store.read([("DEL", name) for name in names[at : at + PAGE_KEYS]])


def sweep(store: Store, keys: Keys) -> int:
    """Delete what proofs left that do not run any more.

    A SCAN is no snapshot: it may show a key of a proof that began just now and not its lease. A lease is there before
    any other key, so it is asked for afterwards.

    Args:
        store: a connection that reaches all proofs.
        keys: the live names.

    Returns:
        How many keys that were.

    Raises:
        StoreError: the store did not answer.
    """
    head = f"{keys.root}proof:"
    names = found(store, Names(keys).proofs)
    by_id = {name: name.removeprefix(head).partition(":")[0] for name in names}
    ids = sorted(set(by_id.values()))
    leases = store.read([("EXISTS", f"{head}{i}:began") for i in ids])
    over = {i for i, lease in zip(ids, leases, strict=True) if lease == 0}
    dead = [name for name, i in by_id.items() if i in over]
    remove(store, dead)
    return len(dead)


def all_of(keys: Keys) -> str:
    """The pattern of every key of a proof.

    Args:
        keys: of the proof, without a lane.
    """
    return f"{literal(keys.root)}*"
