"""Whether the server is set up as the guarantees need it: nothing evicted, kept on disk, kept on a replica.

    noeviction     another maxmemory-policy may throw away permits, tombstones and targets: what enforces refuses to run
    appendonly     without it a restart of the server forgets everything
    min_replicas   without it a primary that was cut off goes on taking writes, which a failover loses
    settings       the server tells none of this

The policy alone counts, and not maxmemory: without a limit nothing is evicted today, but a limit can be set at any time
without anybody asking the services. Only ``noeviction`` never evicts, so every other word is taken for one that does.

INFO tells all of it and shows no secret; CONFIG GET would show passwords, so no service has the right to it. It is only
asked where INFO is refused or lacks the policy. The server is looked at before the first cycle, before each cycle after
one that failed, and once there is a new connection (it may be another server), before a cycle's outputs are written. On
a connection that is held it is looked at every 5 s by who enforces, every minute by the others: so long may go by after
somebody has changed the policy. A look is one INFO, a reply of 3.5 kB: 0.2 ms of a service, 12 us of the server. Twelve
services that look every 5 s take 0.003 % of the server's time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from quantum_alloc.adapters.codec import printable
from quantum_alloc.adapters.effects import Command, Failed, Reply
from quantum_alloc.adapters.metrics import Metrics
from quantum_alloc.adapters.store import Store, StoreError

LOOK_EVERY_S = 60.0
GUARD_EVERY_S = 5.0
"""So often on a connection that is held: by those that warn, and by those that refuse."""
GUARDING = frozenset({"enforce", "production"})
"""Modes in which others act on what a service writes."""
NO_EVICTION = "noeviction"
_SECTIONS = ("server", "memory", "persistence", "replication")
_ASKED = ("maxmemory-policy", "maxmemory", "appendonly", "min-replicas-to-write")


class Lack(StrEnum):
    """What a server may lack: a closed set, safe as a metric label."""

    NOEVICTION = "noeviction"
    APPENDONLY = "appendonly"
    MIN_REPLICAS = "min_replicas"
    SETTINGS = "settings"


@dataclass(frozen=True, slots=True)
class Facts:
    """What a server tells of itself; None where it does not.

    Attributes:
        version: its kind and version.
        policy: what it evicts when its memory is full.
        maxmemory: bytes; 0 for no limit.
        appendonly: whether it keeps every write on disk.
        min_replicas: whether it stops to take writes when too few replicas have them.
        replicas: that are connected.
        run_id: of its process: another start is another one.
        up_s: whole seconds since it was started.
    """

    version: str | None = None
    policy: str | None = None
    maxmemory: int | None = None
    appendonly: bool | None = None
    min_replicas: bool | None = None
    replicas: int | None = None
    run_id: str | None = None
    up_s: int | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is thought of a server.

    Attributes:
        lacks: what it lacks, and what to set, one sentence each.
        refuses: why a service that enforces does not run on it; empty where it does.
    """

    lacks: Mapping[Lack, str]
    refuses: str = ""


def judge(facts: Facts, *, guards: bool) -> Verdict:
    """What is thought of a server.

    Args:
        facts: what it tells of itself.
        guards: whether the service enforces.

    >>> judge(Facts("redis 7.0.15", "noeviction", 0, True, True, 1), guards=True)
    Verdict(lacks={}, refuses='')
    >>> judge(Facts(policy="allkeys-lru"), guards=True).refuses.partition(":")[0]
    'maxmemory-policy is allkeys-lru, which may throw away permits and targets'
    """
    lacks: dict[Lack, str] = {}
    if facts.policy is None:
        unknown = "the server does not tell its settings (neither INFO nor CONFIG GET)"
        lacks[Lack.SETTINGS] = f"{unknown}: see to it that maxmemory-policy is {NO_EVICTION} and appendonly yes"
    elif facts.policy != NO_EVICTION:
        told = f"maxmemory-policy is {facts.policy}, which may throw away permits and targets"
        lacks[Lack.NOEVICTION] = f"{told}: set it to {NO_EVICTION}, with CONFIG SET and in redis.conf"
    if facts.appendonly is False:
        lacks[Lack.APPENDONLY] = (
            "appendonly is no, so a restart of the server forgets everything: set it to yes, with CONFIG SET and in "
            "redis.conf"
        )
    if facts.min_replicas is False:
        lacks[Lack.MIN_REPLICAS] = (
            "min-replicas-to-write is 0, so a failover may lose writes: where there is a replica set it to 1"
        )
    return Verdict(lacks, lacks.get(Lack.NOEVICTION, "") if guards else "")


def read_facts(store: Store) -> Facts:
    """What the server tells of itself.

    Raises:
        StoreError: it does not answer.
    """
    told = _info(_asked(store, [("INFO", *_SECTIONS)])[0])
    if "maxmemory_policy" in told:
        return Facts(
            _version(told),
            told["maxmemory_policy"],
            _whole(told.get("maxmemory")),
            None if "aof_enabled" not in told else told["aof_enabled"] != "0",
            "min_slaves_good_slaves" in told if "role" in told else None,  # it is told where the limit is on
            _whole(told.get("connected_slaves")),
            *_run(told),
        )
    config = _config(_asked(store, [("CONFIG", "GET", name) for name in _ASKED]))
    limit = _whole(config.get("min-replicas-to-write"))
    return Facts(
        _version(told),
        config.get("maxmemory-policy"),
        _whole(config.get("maxmemory")),
        None if "appendonly" not in config else config["appendonly"] == "yes",
        None if limit is None else limit > 0,
        _whole(told.get("connected_slaves")),
        *_run(told),
    )


def is_another(told: object, looked_s: object, facts: Facts) -> bool:
    """Whether who says on which run of a server it works is on another one than ours; False where it is not known.

    Args:
        told: the run id of its server; anything but a text that says something for none.
        looked_s: seconds since it last looked; what it saw before our server was started tells nothing.
        facts: of our server.

    >>> ours = Facts(run_id="a", up_s=60)
    >>> [is_another(told, 5.0, ours) for told in ("b", "a", "", None)], is_another("b", 60.0, ours)
    ([True, False, False, False], False)
    """
    if not isinstance(told, str) or not told or not facts.run_id or told == facts.run_id:
        return False
    return not (isinstance(looked_s, int | float) and facts.up_s is not None and looked_s > facts.up_s - 1)


def _asked(store: Store, commands: list[Command]) -> list[Reply]:
    """The replies; to what we have no right to, a refusal each."""
    try:
        return store.read(commands)
    except StoreError as error:
        if error.code != "NOPERM":
            raise
        return [Failed("NOPERM", error.detail) for _ in commands]


def _info(reply: Reply) -> dict[str, str]:
    lines = reply.split(b"\r\n") if isinstance(reply, bytes) else []
    pairs = (line.partition(b":") for line in lines)
    return {printable(name): printable(value) for name, _, value in pairs if value}


def _run(told: Mapping[str, str]) -> tuple[str | None, int | None]:
    return told.get("run_id"), _whole(told.get("uptime_in_seconds"))


def _version(told: Mapping[str, str]) -> str | None:
    if "valkey_version" in told:
        return f"valkey {told['valkey_version']}"
    return f"redis {told['redis_version']}" if "redis_version" in told else None


def _config(replies: list[Reply]) -> dict[str, str]:
    found = {}
    for reply in replies:
        if isinstance(reply, list) and len(reply) == 2:
            name, value = reply
            if isinstance(name, bytes) and isinstance(value, bytes):
                found[printable(name)] = printable(value)
    return found


def _whole(text: str | None) -> int | None:
    return int(text) if text is not None and text.isascii() and text.isdigit() and len(text) < 19 else None


class ServerCheck:
    """Looks at the server of one service when it is time to."""

    def __init__(self, store: Store, metrics: Metrics, mode: str, tell: Callable[[Lack, str], None]) -> None:
        """Prepare; nothing is sent yet.

        Args:
            store: the service's connection.
            metrics: where it is told what the server lacks.
            mode: of the service.
            tell: is given what the server lacks and a sentence about it, when it is found and again when it was mended
                in between; not where the service refuses to run, whose error says it.
        """
        self._store, self._metrics, self._tell = store, metrics, tell
        self._guards = mode in GUARDING
        self._every_s = GUARD_EVERY_S if self._guards else LOOK_EVERY_S
        self._connection = -1
        self._due = 0.0
        self._told: frozenset[Lack] = frozenset()
        self.run_id = ""
        """Of the server that was looked at last; empty before, and where it does not tell."""

    def __call__(self, after_trouble: bool = False) -> None:
        """Look at the server where it is time to.

        Args:
            after_trouble: whether the last cycle failed; then it is time.

        Raises:
            StoreError: ``evicting`` where the service must not run on it, or it does not answer.
        """
        is_same = self._store.connections == self._connection and time.monotonic() < self._due
        if is_same and not after_trouble:
            return
        self._connection = -1
        facts = read_facts(self._store)
        self.run_id = facts.run_id or ""
        verdict = judge(facts, guards=self._guards)
        for lack in Lack:
            self._metrics.set("quantum_alloc_server_lacks", float(lack in verdict.lacks), lack.value)
        for lack, text in verdict.lacks.items():
            if lack not in self._told and text != verdict.refuses:
                self._tell(lack, text)
        self._told = frozenset(verdict.lacks)
        if verdict.refuses:
            raise StoreError("evicting", f"{self._store.shown}: {verdict.refuses}")
        self._connection, self._due = self._store.connections, time.monotonic() + self._every_s


class Once:
    """Tells of each thing once in a process, however many services find it."""

    def __init__(self, tell: Callable[[Lack, str], None]) -> None:
        """Nothing is told yet."""
        self._tell, self._said = tell, set[Lack]()

    def __call__(self, lack: Lack, text: str) -> None:
        """Tell of it unless it was told."""
        if lack not in self._said:
            self._said.add(lack)
            self._tell(lack, text)
