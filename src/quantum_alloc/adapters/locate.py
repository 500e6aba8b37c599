"""Where the primary is: asked of sentinels, or of the nodes of a cluster (``adapters.cluster``).

Everybody is asked at once, and nobody is waited for longer than one time-out: servers that are dead or hang cost no
more than that, however many they are. Of sentinels that do not agree the newest configuration is believed, of equally
new ones and of nodes the most. Who is found is asked for its role before it is used (the store does that), so that what
was true a moment ago harms nobody.

The client's own sentinel support asks one after the other, takes the first answer and does not ask for the role; its
cluster support keeps a connection to every node and follows every key. All keys of an installation are in one slot, so
one connection is enough. Its connections, with their login and TLS, are what is used here.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from queue import Empty, SimpleQueue
from threading import Lock, Thread
from typing import Any, Protocol

import redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from quantum_alloc.adapters.connecting import TIMEOUT_S, StoreError, is_tls, store_error

Place = tuple[str, int]
LOOK_EVERY_S = 1.0
LOOK_AGAIN_S = 5.0
"""While nobody who is asked answers; the primary that is known goes on being used."""
GRACE_S = 0.03
"""How long the rest is waited for once more than half have answered."""


class Locator(Protocol):
    """Who is asked where the primary is."""

    def find(self) -> Place:
        """Host and port of the primary.

        Raises:
            StoreError: nobody can tell.
        """

    def moved(self) -> Place | None:
        """Another look, when it is due: where the primary is now; None where that is not known, or not asked."""

    def told(self, message: str, by: Place) -> None:
        """A server has said where to go (MOVED), and which one it was."""

    def close(self) -> None:
        """Close its connections."""


class _Peer:
    """One of those who are asked; its connection is kept."""

    def __init__(self, place: Place, options: Mapping[str, Any]) -> None:
        """Prepare; nothing is sent yet."""
        self.place = place
        own = {**options, "host": place[0], "port": place[1]}
        made = own.pop("connection_class", redis.Connection)
        self._connection: Any = made(**own)
        self._busy = Lock()
        self._has_answered = False

    def ask(self, commands: Sequence[Sequence[str]], answers: SimpleQueue[tuple[_Peer, object]]) -> None:
        """Put the replies, or the error, into the queue."""
        if not self._busy.acquire(blocking=False):
            answers.put((self, RedisTimeoutError("it has not answered the last question")))
            return
        try:
            is_used, self._has_answered = self._has_answered, False
            try:
                answers.put((self, self._replies(commands)))
            except RedisConnectionError:
                self._connection.disconnect()
                if not is_used:
                    raise
                answers.put((self, self._replies(commands)))  # it was started again since
        except (RedisError, OSError, ValueError) as error:  # ValueError: of a name that no resolver takes
            self._connection.disconnect()
            answers.put((self, error))
        finally:
            self._busy.release()

    def _replies(self, commands: Sequence[Sequence[str]]) -> list[object]:
        self._connection.connect()
        for command in commands:
            self._connection.send_command(*command, check_health=False)
        replies: list[object] = []
        for _ in commands:
            try:
                replies.append(self._connection.read_response())
            except ResponseError as error:
                replies.append(error)
        self._has_answered = True
        return replies

    def close(self) -> None:
        """Close the connection, unless it is in use: then its own time-out does."""
        if self._busy.acquire(blocking=False):
            self._connection.disconnect()
            self._busy.release()


class Asked(ABC):
    """What sentinels and nodes have in common: asking all of them, and when to do it again."""

    def __init__(self, places: Sequence[Place], options: Mapping[str, Any], what: str, timeout_s: float) -> None:
        """Prepare; nothing is sent yet."""
        self._options = {k: v for k, v in options.items() if k not in ("host", "port", "path")}
        self._peers = {place: self.peer(place) for place in places}
        self._what, self._timeout_s = what, timeout_s
        self._due = 0.0

    def peer(self, place: Place) -> _Peer:
        """One more who may be asked."""
        return _Peer(place, self._options)

    def _ask(self, *commands: Sequence[str]) -> tuple[list[tuple[_Peer, list[object]]], list[Exception]]:
        """Replies of those who answered in time, and the errors of the others."""
        answers: SimpleQueue[tuple[_Peer, object]] = SimpleQueue()
        peers = list(self._peers.values())
        for peer in peers:
            Thread(target=peer.ask, args=(commands, answers), name="locate", daemon=True).start()
        good: list[tuple[_Peer, list[object]]] = []
        bad: list[Exception] = []
        deadline = time.monotonic() + self._timeout_s
        while len(good) + len(bad) < len(peers):
            if 2 * len(good) > len(peers):
                deadline = min(deadline, time.monotonic() + GRACE_S)
            try:
                peer, told = answers.get(timeout=max(0.0, deadline - time.monotonic()))
            except Empty:
                break
            if isinstance(told, Exception):
                bad.append(told)
            elif isinstance(told, list):
                good.append((peer, told))
        return good, bad

    def _nobody(self, bad: Sequence[Exception]) -> StoreError:
        """Why nothing was found out."""
        tls, secret, hint = is_tls(self._options), self._options.get("password"), "does any of them run?"
        found = [store_error(e, self._what, opening=True, tls=tls, hint=hint, secret=secret) for e in bad]
        found.sort(key=lambda e: (not e.is_configuration, e.code == "unreachable", e.code))
        return found[0] if found else StoreError("timeout", f"no answer from {self._what}")

    def find(self) -> Place:
        """Where the primary is."""
        self._due = time.monotonic() + LOOK_EVERY_S
        return self._found()

    @abstractmethod
    def _found(self) -> Place:
        """What those who answered agree upon."""

    def close(self) -> None:
        """Close all connections."""
        for peer in self._peers.values():
            peer.close()


class Sentinels(Asked):
    """Sentinels, by the name under which they watch the primary."""

    def __init__(
        self, places: Sequence[Place], name: str, options: Mapping[str, Any], timeout_s: float = TIMEOUT_S
    ) -> None:
        """Prepare; nothing is sent yet.

        Args:
            places: host and port of each.
            name: what they call the primary.
            options: of their connections, see ``connecting.options_of``.
            timeout_s: how long they are waited for, all together.
        """
        what = "the sentinel" if len(places) == 1 else f"{len(places)} sentinels"
        super().__init__(places, {k: v for k, v in options.items() if k != "db"}, what, timeout_s)
        self._name = name
        self._epoch = self._held = -1
        self._is_agreed = False

    def find(self) -> Place:
        """Where the primary is; what is newer than this counts from now on."""
        found = super().find()
        self._held = self._epoch
        return found

    def moved(self) -> Place | None:
        """Where it is by a newer configuration than the known one, or by what most of the sentinels say.

        One that was away tells an older one, and so do those that have not heard of a failover yet; where they were
        given another primary by hand (REMOVE and MONITOR) all of them begin with the epoch 0 again.
        """
        if time.monotonic() < self._due:
            return None
        try:
            found = super().find()
        except StoreError:
            self._due = time.monotonic() + LOOK_AGAIN_S
            return None
        return found if self._epoch > self._held or self._is_agreed else None

    def told(self, message: str, by: Place) -> None:
        """Sentinels redirect nobody."""

    def _found(self) -> Place:
        good, bad = self._ask(("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._name), ("SENTINEL", "MASTER", self._name))
        claims = [claim for _, replies in good if (claim := _claim(replies)) is not None]
        if claims:
            votes = Counter(place for _, place in claims)
            epoch, place = max(claims, key=lambda claim: (claim[0], votes[claim[1]], claim[1]))
            if epoch >= self._held or 2 * len(claims) > len(self._peers):  # else they may all have been away
                self._epoch, self._is_agreed = epoch, 2 * votes[place] > len(self._peers)
                return place
            raise StoreError("unreachable", "the sentinels that answer know an older configuration than this service")
        refused = [r for _, replies in good for r in replies if isinstance(r, ResponseError)]
        rights = [e for e in refused if store_error(e, "").is_configuration]
        if good and not rights:
            text = f"the sentinels know no primary called {self._name!r}: is REDIS_SENTINEL_NAME what they watch?"
            raise StoreError("unreachable", text)
        raise self._nobody([*rights, *bad])


def _claim(replies: Sequence[object]) -> tuple[int, Place] | None:
    """Epoch of the configuration, and the primary in it; None where a sentinel knows none."""
    address, state = replies
    if not (isinstance(address, list) and len(address) == 2 and isinstance(state, list)):
        return None
    fields = dict(zip(state[::2], state[1::2], strict=False))
    epoch, port = _whole(fields.get(b"config-epoch")), _whole(address[1])
    if epoch is None or not port or not isinstance(address[0], bytes):
        return None
    return epoch, (address[0].decode("utf-8", "replace"), port)


def _whole(raw: object) -> int | None:
    if isinstance(raw, int):
        return raw
    return int(raw) if isinstance(raw, bytes) and raw.isdigit() and len(raw) < 19 else None
