"""Which symbols there are: a fixed list, or the shared set joined every 60 s with a scan of keys.

The set ``quantum:universe`` holds what our own writers write for; the scan finds what other programs write. KEYS is
never used, and a scan does at most ``PAGES_PER_CYCLE`` pages a cycle, so that a server with millions of keys cannot
hold a cycle up; what looks once (``whole``) scans to the end. Names that the symbol pattern refuses are counted; beyond
the limit, symbols found by the scan come before those that only the set names, both in sort order, and the rest is
counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from quantum_alloc.adapters.effects import Command, Failed, Reply
from quantum_alloc.adapters.keys import PROPOSED, Keys
from quantum_alloc.adapters.store import Store
from quantum_alloc.adapters.wire import symbols_of

REFRESH_S = 60
PAGE_KEYS = 1000
PAGES_PER_CYCLE = 200
SET_LIMIT_FACTOR = 10
_PROPOSED = f"{PROPOSED}:".encode()


@dataclass(frozen=True, slots=True)
class Symbols:
    """The symbols of a cycle.

    Attributes:
        names: in sort order.
        known: those that the shared set names.
        refused: names that are no symbols.
        dropped: symbols beyond the limit.
        complete: False while the first scan is not at its end.
    """

    names: tuple[str, ...]
    known: frozenset[str]
    refused: int = 0
    dropped: int = 0
    complete: bool = True


class Universe:
    """Finds the symbols for one service."""

    def __init__(self, keys: Keys, prefixes: Sequence[str], fixed: Sequence[str] = (), limit: int = 10_000) -> None:
        """Remember what to look for.

        Args:
            keys: the names.
            prefixes: what the keys that the service reads begin with, the symbol follows.
            fixed: a list that replaces all finding; empty for none.
            limit: greatest number of symbols.
        """
        self._keys = keys
        self._prefixes = tuple(prefixes)
        self._fixed = tuple(sorted(set(fixed)))
        self._limit = limit
        self.whole = False
        self._due = float("-inf")
        self._left: list[str] = []
        self._cursor: bytes = b"0"
        self._building: set[str] = set()
        self._refused_building = 0
        self._scanned: frozenset[str] = frozenset()
        self._refused = 0
        self._beyond = self._beyond_building = 0
        self._complete = self._failed = False

    @property
    def query(self) -> list[Command]:
        """What to add to the first read of a cycle."""
        return [("SCARD", self._keys.universe)]

    def find(self, store: Store, replies: Sequence[Reply], now: float) -> Symbols:
        """The symbols of this cycle.

        Args:
            store: where to scan.
            replies: what ``query`` was answered with.
            now: unix seconds; the scan is due every 60 s of this clock.

        Raises:
            StoreError: the store did not answer.
        """
        named, refused = self._members(store, replies[0])
        if self._fixed:
            return Symbols(self._fixed[: self._limit], frozenset(named), 0, max(0, len(self._fixed) - self._limit))
        if now >= self._due or now < self._due - 2 * REFRESH_S:
            if not self._left and self._cursor == b"0":
                self._left, self._building, self._refused_building = list(self._prefixes), set(), 0
                self._beyond_building = 0
            self._scan(store)
            if not self._left and self._failed:
                self._failed = False  # what was found before stands; look again at once
            elif not self._left:
                self._complete = True
                self._scanned, self._refused = frozenset(self._building), self._refused_building
                self._beyond = self._beyond_building
                self._due = now + (REFRESH_S if self._scanned else 0.0)  # nothing found: look again at once
        scanned = self._scanned or frozenset(self._building)  # a first scan that takes several cycles
        first = sorted(scanned)[: self._limit]
        rest = sorted(named - scanned)[: self._limit - len(first)]
        dropped = len(scanned | named) - len(first) - len(rest) + self._beyond
        names = tuple(sorted([*first, *rest]))
        return Symbols(names, frozenset(named), refused + self._refused, dropped, self._complete)

    def _members(self, store: Store, size: Reply) -> tuple[set[str], int]:
        if not isinstance(size, int) or size == 0:
            return set(), 1 if isinstance(size, Failed) else 0
        if size <= self._limit * SET_LIMIT_FACTOR:
            reply = store.read([("SMEMBERS", self._keys.universe)])[0]
        else:  # somebody floods the set: a bounded sample of it, the scan still finds what has keys
            reply = store.read([("SRANDMEMBER", self._keys.universe, self._limit)])[0]
        return symbols_of(reply) if isinstance(reply, list) else (set(), 1)

    def _scan(self, store: Store) -> None:
        pages = 0
        while self._left and (self.whole or pages < PAGES_PER_CYCLE):
            pages += 1
            prefix = self._left[0]
            reply = store.read([("SCAN", self._cursor, "MATCH", f"{prefix}*", "COUNT", PAGE_KEYS)])[0]
            if not (isinstance(reply, list) and isinstance(reply[0], bytes) and isinstance(reply[1], list)):
                self._left, self._cursor, self._failed = [], b"0", True
                return
            cut = len(prefix)
            rest = [k[cut:] for k in reply[1] if isinstance(k, bytes)]
            found, refused = symbols_of([name for name in rest if not name.startswith(_PROPOSED)])
            self._building |= found
            most = self._limit * SET_LIMIT_FACTOR
            if len(self._building) > 2 * most:  # somebody floods the key space
                self._beyond_building += len(self._building) - most
                self._building = set(sorted(self._building)[:most])
            self._refused_building += refused
            self._cursor = reply[0]
            if self._cursor == b"0":
                self._left.pop(0)
