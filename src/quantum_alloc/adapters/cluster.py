"""Where the primary of a slot is: asked of the nodes of a Redis Cluster.

All keys of an installation are in the slot of its hash tag. One node is named by the settings, the others are learnt
from it; a node that has lost the slot says where it went (MOVED), and that is tried first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, cast

from redis.crc import key_slot
from redis.exceptions import ResponseError

from quantum_alloc.adapters.connecting import TIMEOUT_S, StoreError
from quantum_alloc.adapters.locate import Asked, Place

NODES_MAX = 20


class Nodes(Asked):
    """Nodes of a cluster, one of them known; the others are learnt from it."""

    def __init__(self, tag: str, options: Mapping[str, Any], timeout_s: float = TIMEOUT_S) -> None:
        """Prepare; nothing is sent yet.

        Args:
            tag: the hash tag, whose slot all keys are in.
            options: of connections, see ``connecting.options_of``; they name one node.
            timeout_s: how long the nodes are waited for, all together.
        """
        seed = str(options.get("host", "localhost")), int(options.get("port", 6379))
        super().__init__((seed,), options, "the nodes of the cluster", timeout_s)
        self._seed = seed
        self.slot = int(cast(Any, key_slot)(tag.encode()))
        self._hint: Place | None = None

    def moved(self) -> Place | None:
        """Nothing: a node that has lost the slot says so by itself."""
        return None

    def told(self, message: str, by: Place) -> None:
        """Where a node sends us: the next thing that is tried; where it names no host, its own is meant."""
        host, _, port = message.rpartition(" ")[2].rpartition(":")
        if port.isdigit() and 0 < int(port) <= 65535:
            self._hint = (by[0] if host in ("", "?") else host.strip("[]"), int(port))

    def _found(self) -> Place:
        hint, self._hint = self._hint, None
        if hint is not None:
            return hint
        good, bad = self._ask(("CLUSTER", "SLOTS"))
        votes: Counter[Place] = Counter()
        known: dict[Place, None] = {}
        for peer, (slots,) in good:
            for first, last, nodes in _ranges(slots, peer.place[0]):
                known.update(dict.fromkeys(nodes))
                if first <= self.slot <= last:
                    votes[nodes[0]] += 1
        self._learn(known)
        if votes:
            return votes.most_common(1)[0][0]
        refused = [r for _, replies in good for r in replies if isinstance(r, ResponseError)]
        if any("cluster support disabled" in str(e) for e in refused):
            raise StoreError("other", f"{self._seed[0]}:{self._seed[1]} is no node of a cluster: set REDIS_CLUSTER=0")
        if good and not refused:
            raise StoreError("CLUSTERDOWN", f"no node of the cluster serves slot {self.slot}, which QA_HASH_TAG names")
        raise self._nobody([*refused, *bad])

    def _learn(self, known: Mapping[Place, None]) -> None:
        """Ask these from now on; the one that settings name stays among them."""
        if not known:
            return
        wanted = dict.fromkeys([self._seed, *list(known)[: NODES_MAX - 1]])
        for place in [p for p in self._peers if p not in wanted]:
            self._peers.pop(place).close()
        for place in wanted:
            if place not in self._peers:
                self._peers[place] = self.peer(place)


def _ranges(reply: object, host: str) -> list[tuple[int, int, list[Place]]]:
    """First and last slot, and the nodes that hold them, the primary first."""
    out = []
    for row in reply if isinstance(reply, list) else []:
        if not (isinstance(row, list) and len(row) > 2 and isinstance(row[0], int) and isinstance(row[1], int)):
            continue
        nodes = []
        for node in row[2:]:
            if isinstance(node, list) and len(node) > 1 and isinstance(node[1], int) and node[1] > 0:
                name = node[0].decode("utf-8", "replace") if isinstance(node[0], bytes) else ""
                nodes.append((host if name in ("", "?") else name, node[1]))
        if nodes:
            out.append((row[0], row[1], nodes))
    return out
