"""What an apply layer remembers beside its account, so that it sees when a server has lost some of the writes.

    used      permits that the account held as used up when it was last read, or written here
    tried     writes of this layer whose answer did not come
    barred    plans whose permits were, or may have been, used up in a write that is lost

Replication is asynchronous: a replica that takes the primary's place may lack the last writes, though they were
acknowledged. What was filled in them is not in the account any more, and nobody can say who has seen those fills: their
permits, which the replica still holds, are not filled a second time. The account goes on from what stands.

This is remembered in memory: where every apply layer that has seen a fill ends too, before it has seen the new
primary, nobody tells.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from quantum_alloc.adapters import apply_wire as aw
from quantum_alloc.adapters import consume
from quantum_alloc.adapters.effects import Reply
from quantum_alloc.adapters.metrics import Metrics
from quantum_alloc.adapters.refusals import never_began
from quantum_alloc.adapters.store import Store, StoreError
from quantum_alloc.core.limits import US
from quantum_alloc.core.reconcile import REMEMBERED_MAX, Known, Stage
from quantum_alloc.services.apply_account import Made, Seen
from quantum_alloc.services.logs import few, say

REMEMBERED_S = 120
"""Longer than a permit lives."""
log = logging.getLogger("quantum_alloc.apply")


@dataclass(frozen=True, slots=True)
class _Try:
    """A write that was sent, and not answered yet.

    Attributes:
        server: that it was sent to.
        at_us: the clock in its snapshot.
        used: plan ids of the permits that it uses up.
    """

    server: str
    at_us: int
    used: tuple[str, ...]


class Memory:
    """What one apply layer remembers."""

    def __init__(self, store: Store, metrics: Metrics) -> None:
        """Nothing yet."""
        self._store, self._metrics = store, metrics
        self._server, self._connection = "", -1
        self._revision = 0
        self._used: dict[str, int] = {}
        self._tried: list[_Try] = []
        self._barred: dict[str, int] = {}

    @property
    def barred(self) -> Collection[str]:
        """Plan ids whose permits are not to be filled, though they stand."""
        return self._barred.keys()

    def look(self, account: aw.Account | None, now_us: int, connection: int) -> None:
        """Say what a server has lost of what was known; it cannot be had back.

        Args:
            account: that stands; None where there is none.
            now_us: the clock.
            connection: the store's number of connections when it was read.

        Raises:
            StoreError: the store did not answer, or by another connection.
        """
        server, since = self._server_of(connection), now_us - REMEMBERED_S * US
        revision = 0 if account is None else account.revision
        known: Mapping[str, Known] = {} if account is None else account.permits.permits
        stands = {p: one.ended_us for p, one in known.items() if one.stage is Stage.CONSUMED}
        ended = [one.ended_us for one in known.values() if not one.is_outstanding]
        first_us = min(ended) if len(ended) >= REMEMBERED_MAX else -1  # what ended before may have been forgotten
        used = {p: at for p, at in self._used.items() if at > since}
        gone = [p for p, at in used.items() if p not in stands and at > first_us]
        twice = [p for p, at in used.items() if stands.get(p, at) != at]
        elsewhere = [t for t in self._tried if t.server != server and t.at_us > since]
        doubtful = list(dict.fromkeys(p for t in elsewhere for p in t.used if p not in stands))
        self._barred = {p: at for p, at in self._barred.items() if at > since}
        self._barred.update(dict.fromkeys([*gone, *doubtful], now_us))
        self._say(max(self._revision - revision, int(bool(gone or twice))), revision, gone, twice)
        if doubtful:
            self._say_doubtful(doubtful)
        self._tried = [
            t
            for t in self._tried
            if t.server == server  # where it may still arrive, though not when its snapshot is too old
            and abs(now_us - t.at_us) <= consume.SNAPSHOT_AGE_MAX_US
            and not stands.keys() >= set(t.used)
        ]
        self._revision, self._used = revision, stands

    def run(self, keys: Sequence[str], args: Sequence[str | bytes | int], seen: Seen, made: Made) -> tuple[str, str]:
        """Write a cycle; what the script answered, see ``consume.answered``.

        Args:
            keys: of the script.
            args: of the script.
            seen: what it was decided on.
            made: what came of it.

        Raises:
            StoreError: it was refused, or nobody knows whether it ran.
        """
        used = tuple(a.inputs.plan_id for a in made.ended if a.is_consumed)
        tried = _Try(self._server, seen.now_us, used)
        self._tried.append(tried)
        try:
            reply = self._store.run(consume.CONSUME, keys, args, seen.basis.connection)
            answered = consume.answered(reply, self._store.shown)
        except StoreError as error:
            if never_began(error):
                self._tried.remove(tried)
            raise
        self._tried.remove(tried)
        if not answered[0]:
            known = made.account.permits.permits
            self._revision = made.account.revision
            self._used = {p: one.ended_us for p, one in known.items() if one.stage is Stage.CONSUMED}
        return answered

    def _server_of(self, connection: int) -> str:
        """Which run of which server a connection goes to; the connection itself where the server does not tell."""
        if connection != self._connection:
            try:
                told = self._store.read([("INFO", "server"), ("INFO", "replication")])
            except StoreError as error:
                if error.code != "NOPERM":
                    raise
                told = []
            if self._store.connections != connection:
                raise StoreError("conflict", f"{self._store.shown}: the connection to it does not last")
            self._server = _identity(told) or f"connection {connection}"
            self._connection = connection
        return self._server

    def _say(self, writes: int, revision: int, gone: Sequence[str], twice: Sequence[str]) -> None:
        if not writes:
            return
        self._metrics.add("quantum_alloc_account_writes_lost_total", amount=writes)
        if not revision and not gone:
            return  # that the account is gone is told where another is opened
        why = f"the server has lost the last writes of the account, at least {writes}, by a failover or a restore"
        text = f"{why}: plans whose permits were used up in them: {_few(gone)}; these are not filled again"
        if twice:
            text += f"; another apply layer has used these up a second time: {_few(twice)}"
        say(log, logging.ERROR, "account", text, {"count": writes})

    def _say_doubtful(self, plan_ids: Sequence[str]) -> None:
        self._metrics.add("quantum_alloc_account_writes_lost_total")
        why = "a write of the account was not answered, and the server is another one now: it may be lost"
        text = f"{why}: plans whose permits it may have used up: {_few(plan_ids)}; these are not filled again"
        say(log, logging.ERROR, "account", text, {"count": 1})


def _few(plan_ids: Sequence[str]) -> str:
    return ", ".join(few(list(plan_ids))) or "none"


def _identity(replies: Sequence[Reply]) -> str:
    """The server's run, and whose writes it goes on from; empty where it does not tell its run."""
    lines = [line for r in replies if isinstance(r, bytes) for line in r.split(b"\r\n")]
    told = dict(line.split(b":", 1) for line in lines if line.startswith((b"run_id:", b"master_replid:")))
    run, history = (told.get(name, b"").decode("ascii", "replace") for name in (b"run_id", b"master_replid"))
    return f"{run} {history}" if run else ""
