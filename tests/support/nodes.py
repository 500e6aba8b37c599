"""Installations of more than one server, on loopback: a primary with replicas and sentinels, and a cluster.

Each server is a process of its own with a configuration file in a temporary directory (sentinels rewrite theirs), ends
with this process, and is ended by its id. Replicas log in at their primary as the user ``copy``, so that ``cut`` can
keep a primary's last writes from ever reaching them. Start them from the main thread.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import redis

from quantum_alloc.adapters.embedded import find_server, free_port
from quantum_alloc.adapters.locate import Place
from tests.support.running import until
from tests.support.worlds import Client

HOST = "127.0.0.1"
NAME = "mymaster"


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)


def client_of(place: Place, **how: Any) -> Client:
    """A client of one server, that tries nothing twice."""
    found: Any = redis.Redis(
        host=place[0],
        port=place[1],
        protocol=2,
        decode_responses=True,
        socket_timeout=5,
        socket_connect_timeout=5,
        **how,
    )
    return found


class Node:
    """One server process.

    Attributes:
        port: where it listens.
        directory: its temporary directory.
        client: of it.
    """

    def __init__(self, lines: Sequence[str] = (), *, sentinel: bool = False, program: Path | None = None) -> None:
        """Prepare; ``start`` starts."""
        self.port = free_port()
        self.directory = Path(tempfile.mkdtemp(prefix="qa-node-"))
        self.file = self.directory / "node.conf"
        self._command = [str(program or find_server()), str(self.file), *(["--sentinel"] if sentinel else [])]
        self._lines = (f"port {self.port}", f"bind {HOST}", f"dir {self.directory}", *lines)
        self.configure()
        self.process: subprocess.Popen[bytes] | None = None
        self.client = client_of(self.place)

    def configure(self, *more: str) -> None:
        """Write its configuration file anew, with more lines; what a sentinel has written there is gone."""
        self.file.write_text("\n".join([*self._lines, *more]) + "\n", encoding="utf-8")

    @property
    def place(self) -> Place:
        """Host and port."""
        return HOST, self.port

    def start(self) -> Node:
        """Start it; ``until_up`` waits."""
        with (self.directory / "node.log").open("ab") as log:
            self.process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=_die_with_parent,  # noqa: PLW1509 - it calls prctl and nothing else
            )
        return self

    def until_up(self) -> Node:
        """Wait until it answers."""
        until(self.answers, 20, f"the server at {self.port} answers: {self.directory}")
        return self

    def answers(self) -> bool:
        """Whether it answers a PING now."""
        with suppress(redis.RedisError, OSError):
            return bool(self.client.ping())
        return False

    def kill(self) -> None:
        """SIGKILL, as a crash."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None
        self.client.connection_pool.disconnect(inuse_connections=False)  # another thread may be reading

    def signal(self, number: int) -> None:
        """SIGSTOP, SIGCONT."""
        assert self.process is not None
        os.kill(self.process.pid, number)

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """It hangs for the length of the block."""
        self.signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.signal(signal.SIGCONT)

    def end(self) -> None:
        """End it and remove its directory."""
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)


DATA = (
    'save ""',
    "appendonly no",
    "repl-diskless-sync yes",
    "repl-diskless-sync-delay 0",
    "repl-ping-replica-period 1",
    "repl-timeout 5",
    "user default on nopass ~* &* +@all",
    "user copy on >copied +psync +replconf +ping",
    "masteruser copy",
    "masterauth copied",
)
"""Of every server that holds data and may be another one's replica."""


def _follows(primary: Node) -> str:
    return f"replicaof {HOST} {primary.port}"


def is_level(primary: Node, replicas: int) -> bool:
    """Whether so many replicas have everything that a server holds now."""
    primary.client.ping()  # what WAIT waits for is what this connection has seen
    return int(primary.client.wait(replicas, 500)) >= replicas


class Group:
    """Servers that start and end together; use it as a context manager."""

    def __init__(self) -> None:
        """None yet."""
        self.nodes: list[Node] = []

    def add(self, node: Node) -> Node:
        """One more."""
        self.nodes.append(node)
        return node

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        """End them all."""
        for node in self.nodes:
            node.end()


class Watched(Group):
    """A primary, two replicas, and three sentinels that watch them.

    Attributes:
        data: the three servers, in the order in which they were started.
        sentinels: the three sentinels.
    """

    def __init__(
        self, lines: Sequence[str] = (), sentinel_lines: Sequence[str] = (), *, down_after_ms: int = 1000
    ) -> None:
        """Prepare; entering starts it."""
        super().__init__()
        self.name = name = NAME
        self.data = [self.add(Node([*DATA, *lines])) for _ in range(3)]
        for node in self.data[1:]:
            node.configure(_follows(self.data[0]))
        first = self.data[0].port
        watch = (
            f"sentinel monitor {name} {HOST} {first} 2",
            f"sentinel down-after-milliseconds {name} {down_after_ms}",
            f"sentinel failover-timeout {name} 3000",
            f"sentinel parallel-syncs {name} 2",
            *sentinel_lines,
        )
        self.sentinels = [self.add(Node(watch, sentinel=True)) for _ in range(3)]

    def __enter__(self) -> Watched:
        """Start it, and wait until all know each other."""
        try:
            for node in self.data:
                node.start().until_up()
            until(lambda: is_level(self.data[0], 2), 30, "the replicas are level")
            for node in self.sentinels:
                node.start()
            until(self._is_agreed, 30, "the sentinels know each other and the replicas")
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def _is_agreed(self) -> bool:
        try:
            states = [node.client.sentinel_master(self.name) for node in self.sentinels]
        except (redis.RedisError, OSError):
            return False
        return all(s["num-other-sentinels"] == 2 and s["num-slaves"] == 2 for s in states)

    @property
    def places(self) -> str:
        """As REDIS_SENTINELS tells them."""
        return ",".join(f"{HOST}:{node.port}" for node in self.sentinels)

    def primary(self) -> Node:
        """Who has the role now, by its own word and that of a sentinel."""
        for node in self.data:
            with suppress(redis.RedisError, OSError):
                if node.process is not None and node.client.role()[0] == "master" and node.port in self._named():
                    return node
        raise LookupError("there is no primary")

    def primary_place(self) -> Place:
        """Where the primary is, by its own word."""
        (found,) = [node for node in self.data if node.process is not None and node.client.role()[0] == "master"]
        return found.place

    def _named(self) -> set[int]:
        told = set()
        for node in self.sentinels:
            with suppress(redis.RedisError, OSError):
                told.add(int(node.client.sentinel_get_master_addr_by_name(self.name)[1]))
        return told

    def until_primary(self, other_than: Node, within: float = 30.0) -> float:
        """Wait until another server is the primary; the seconds it took."""

        def is_there() -> bool:
            with suppress(LookupError):
                return self.primary() is not other_than
            return False

        return until(is_there, within, "another primary is promoted")

    def until_level(self, replicas: int = 2) -> Node:
        """Wait until so many replicas have everything that the primary holds by now; who that is."""
        seen: list[Node] = []

        def are_level() -> bool:
            with suppress(LookupError, redis.RedisError, OSError):
                seen[:] = [self.primary()]
                return is_level(seen[0], replicas)
            return False

        until(are_level, 40, "the replicas are level")
        return seen[0]

    @staticmethod
    def cut(primary: Node) -> None:
        """From now on no write of the primary reaches a replica."""
        primary.client.execute_command("ACL", "SETUSER", "copy", "off")
        primary.client.execute_command("CLIENT", "KILL", "TYPE", "replica")

    @staticmethod
    def mend(primary: Node) -> None:
        """Replicas may follow it again."""
        primary.client.execute_command("ACL", "SETUSER", "copy", "on")

    def fail_over(self, lose: Callable[[], None] | None = None) -> Node:
        """Kill the primary; who is it now.

        Args:
            lose: what is written before that, and lost with it.
        """
        old = self.until_level(sum(n.process is not None for n in self.data) - 1)
        if lose is not None:
            self.cut(old)
            lose()
        old.kill()
        self.until_primary(old)
        return old

    def bring_back(self, node: Node) -> None:
        """Start a server that was killed as a replica, and wait until it is level."""
        node.configure(_follows(self.primary()))
        node.start().until_up()
        until(lambda: node.client.role()[0] == "slave", 40, "the old primary is a replica")
        self.until_level()


class Cluster(Group):
    """Three primaries that share the slots, and a replica of each where wanted.

    Attributes:
        data: primaries, then replicas.
    """

    def __init__(self, lines: Sequence[str] = (), *, replicas: bool = False) -> None:
        """Prepare; entering starts it."""
        super().__init__()
        for _ in range(6 if replicas else 3):
            bus = f"cluster-port {free_port()}"
            own = ("cluster-enabled yes", "cluster-config-file nodes.conf", "cluster-node-timeout 700", bus)
            self.add(Node([*DATA, *own, "cluster-replica-validity-factor 0", *lines]))
        self.data = self.nodes

    def __enter__(self) -> Cluster:
        """Start it, and wait until all slots are served."""
        try:
            for node in self.data:
                node.start()
            for node in self.data:
                node.until_up()
            ranges = ((0, 5461), (5462, 10922), (10923, 16383))
            for node, (low, high) in zip(self.data, ranges, strict=False):
                node.client.execute_command("CLUSTER", "ADDSLOTSRANGE", low, high)
            first = self.data[0]
            for i, node in enumerate(self.data):
                node.client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", i + 1)
            for node in self.data[1:]:
                bus = node.client.config_get("cluster-port")["cluster-port"]
                first.client.execute_command("CLUSTER", "MEET", HOST, node.port, bus)
            until(self.is_whole, 40, "the cluster serves all slots")
            for primary, replica in zip(self.data[:3], self.data[3:], strict=False):
                replica.client.execute_command("CLUSTER", "REPLICATE", self.id_of(primary))
            if len(self.data) > 3:
                until(lambda: all(is_level(n, 1) for n in self.data[:3]), 30, "the replicas are level")
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    @staticmethod
    def id_of(node: Node) -> str:
        """A node's name in the cluster."""
        return str(node.client.execute_command("CLUSTER", "MYID"))

    def is_whole(self) -> bool:
        """Whether every node that runs knows all others and finds all slots served."""
        for node in self.data:
            if node.process is None:
                continue
            told = str(node.client.execute_command("CLUSTER", "INFO"))
            if "cluster_state:ok" not in told or f"cluster_known_nodes:{len(self.data)}" not in told:
                return False
        return True

    def owner(self, slot: int) -> Node:
        """Who serves a slot, by what the nodes that run say."""
        by_port = {node.port: node for node in self.data}
        for node in self.data:
            if node.process is None:
                continue
            for low, high, port in _slots(node):
                if low <= slot <= high and by_port[port].process is not None:
                    return by_port[port]
        raise LookupError(f"nobody serves slot {slot}")

    def move(self, slot: int, to: Node) -> None:
        """Move a slot with all its keys to another node, as a rebalance does.

        Between two moves all have to know the first: with an epoch that is spread by halves the loser drops its keys.
        """
        until(self.is_agreed, 20, "all nodes tell the same slots and epochs")
        source = self.owner(slot)
        to.client.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", self.id_of(source))
        source.client.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", self.id_of(to))
        while True:
            keys = source.client.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 100)
            if not keys:
                break
            source.client.execute_command("MIGRATE", HOST, to.port, "", 0, 5000, "KEYS", *keys)
        for node in (to, source, *self.data):
            if node.process is not None and node.client.role()[0] == "master":
                node.client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", self.id_of(to))
        until(lambda: self.owner(slot) is to and self.is_agreed(), 20, "all nodes know who serves the slot")

    def is_agreed(self) -> bool:
        """Whether the nodes that run tell the same epochs, no two primaries the same one, and the same slots."""
        views = []
        for node in self.data:
            if node.process is not None:
                seen = [row.split() for row in str(node.client.execute_command("CLUSTER", "NODES")).splitlines()]
                rows = [r for r in seen if "master" in r[2] and "fail" not in r[2]]
                served = [(r[0], r[6], [slots for slots in r[8:] if not slots.startswith("[")]) for r in rows]
                views.append(sorted(served))
        return all(view == views[0] for view in views) and len({epoch for _, epoch, _ in views[0]}) == len(views[0])


def _slots(node: Node) -> list[tuple[int, int, int]]:
    """First and last slot and the port of who serves them, as a node sees it."""
    rows = node.client.execute_command("CLUSTER", "SLOTS", NEVER_DECODE=True)
    return [(int(row[0]), int(row[1]), int(row[2][1])) for row in rows]
