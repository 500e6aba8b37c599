"""What a governor must know before it may permit: that the server is the one it worked with, and that no HALT stands.

    server's run id   in the store (E), in the state directory (D), and the server's own (R)
        neither E nor D         a first start
        E = R, D = R or none    go on
        anything else           the server may have lost its last writes: permits of the journals are put back, and
                                where there is none, or another governor keeps one elsewhere, opens are held back
    latch             HALT at its first sight is written to a file and to Redis; a rearm later than it clears the file

Source: the project's governor, 2.9 and 3.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from quantum_alloc.adapters import governor_wire as gw
from quantum_alloc.adapters import journal as journals
from quantum_alloc.adapters.clock import Clock
from quantum_alloc.adapters.effects import Command, Reply, StreamAdd
from quantum_alloc.adapters.governor_files import Known, KnownFile, Latch, LatchFile, microseconds, seconds
from quantum_alloc.adapters.governor_scripts import LATCH, RESTORE
from quantum_alloc.adapters.governor_writes import event
from quantum_alloc.adapters.journal import Entry, Journal
from quantum_alloc.adapters.keys import Keys
from quantum_alloc.adapters.store import Store, StoreError
from quantum_alloc.core.governor_inputs import Kill
from quantum_alloc.core.governor_params import GovernorParams
from quantum_alloc.core.limits import DAY_S, HOUR_S, US
from quantum_alloc.services.logs import changed, say

RESTORE_AT_ONCE = 100
CHANGES = {
    "missing": "the server does not know of this governor any more (flushed, or a new one)",
    "restarted": "the server was started again",
    "different": "the server is another one than this governor worked with",
}
log = logging.getLogger("quantum_alloc.governor")


@dataclass(frozen=True, slots=True)
class Where:
    """Names and numbers that the keeper writes with.

    Attributes:
        keys: the names.
        events: stream of events.
        maxlen: about how many entries it keeps.
        directory: the state directory.
        consumer: the governor's name.
    """

    keys: Keys
    events: str
    maxlen: int
    directory: Path
    consumer: str


class Keeper:
    """Keeps the epoch, the latch and the journal of one governor.

    Attributes:
        where: names and numbers.
        journal: of permits.
        epoch: the server's run that was verified; empty before.
        fence: number of this verification, in the book; a commit with another one is refused.
        changes: how often the server was found to be another one.
        restored: permits that were put back.
    """

    def __init__(
        self,
        store: Store,
        where: Where,
        params: GovernorParams,
        journal: Journal,
        known: KnownFile,
        simulated: Clock | None = None,
    ) -> None:
        """Prepare; nothing is read yet."""
        self._simulated = simulated
        self._store, self.where, self._params, self._file = store, where, params, known
        self.journal = journal
        self.latch = LatchFile(where.directory, where.consumer)
        self.epoch = self.fence = ""
        self.changes = self.restored = 0
        self._verified = -1
        self._resolved = False

    @property
    def known(self) -> Known:
        """What is known of the server."""
        return self._file.known

    @property
    def is_current(self) -> bool:
        """True while the connection is the one that was verified."""
        return self._verified == self._store.connections

    def doubt(self) -> None:
        """Verify again before the next permit."""
        self._verified = -1

    def see_others(self, consumers: frozenset[str]) -> None:
        """Note which governors do not share the directory."""
        here = {p.name for p in self.where.directory.glob(f"*{journals.SUFFIX}")}
        strangers = sorted(c for c in consumers - {self.where.consumer} if journals.file_name(c) not in here)
        if consumers:
            self._keep(others=tuple(strangers[:100]))

    def note_clock(self, *, is_stable: bool) -> None:
        """Note whether the server's clock can be trusted, so that a restart does not forget it."""
        self._keep(is_unstable=not is_stable)

    def _keep(self, **changed: object) -> None:
        try:
            self._file.write(replace(self.known, **changed))  # type: ignore[arg-type]  # fields of Known
        except OSError as error:
            raise StoreError("journal", f"the state directory cannot be written ({error.strerror})") from None

    def verify(self) -> list[Entry]:
        """Find out which run of the server this is, and put back what it may have lost.

        Returns:
            Permits whose commit had not been acknowledged, and that are found to stand.

        Raises:
            StoreError: the store did not answer.
        """
        keys = self.where.keys
        # the fence first: a commit that was given up and is still under way is refused from now on
        fence: Command = ("HINCRBY", keys.book, gw.fence_field(self.where.consumer), 1)
        fenced, info, told, clock = self._store.read([fence, ("INFO", "server"), ("GET", keys.epoch), ("TIME",)])
        connection = self._store.connections
        run, epoch = _run_id(info), told.decode("utf-8", "replace") if isinstance(told, bytes) else ""
        now_us = self._now_us(clock)
        if not run or now_us is None:
            raise StoreError("other", "the server does not tell its run id: INFO and TIME must be allowed")
        known = self.known.epoch
        if epoch.partition("@")[0] == run and known in ("", epoch):
            mark, found = epoch, self._settle(epoch)
            self._keep(epoch=mark)
        elif not epoch and not known and not self._is_known_here():
            mark, found = self._mark("", run), self._settle(run)
            self._keep(epoch=mark)
        else:
            found = []
            mark = epoch if epoch.partition("@")[0] == run else run if epoch else f"{run}@{now_us}"
            mark = self._changed(mark, epoch, now_us)
        self.epoch, self._verified = mark, connection
        self.fence = str(fenced) if isinstance(fenced, int) else ""
        return found

    def _now_us(self, reply: Reply) -> int | None:
        """The server's time, or what stands for it."""
        return gw.time_us(reply) if self._simulated is None else round(self._simulated.now() * US)

    def _is_known_here(self) -> bool:
        here = self.where.directory
        return any(KnownFile(p).known.epoch for p in here.glob("governor-*.known"))

    def _mark(self, epoch: str, mark: str) -> str:
        """Write the epoch; where it was missing the first governor to do so names it for all."""
        key = self.where.keys.epoch
        _, told = self._store.read([("SET", key, mark, *(() if epoch else ("NX",))), ("GET", key)])
        if isinstance(told, bytes):
            return told.decode("utf-8", "replace")
        self._store.read([("SET", key, mark)])  # it held another type
        return mark

    def _settle(self, run: str) -> list[Entry]:
        """The same server: an intent without a tombstone is void, one with it is done."""
        if not self._resolved:
            entries = self.journal.read()
            loose = [e for e in entries if not e.is_done]
            if loose:
                lost = [e for e in loose if e.run != run]
                self._put_back(lost, None)
                stands = {**{e.plan_id: e.at_us for e in lost}, **self._standing(loose)}
                done = [e for e in entries if e.is_done]
                done += [replace(e, is_done=True, at_us=stands[e.plan_id]) for e in loose if e.plan_id in stands]
                self.journal.resolve(done)
            self._resolved = True
            return []
        found: list[Entry] = []
        for number, batch in list(self.journal.unresolved.items()):
            stands = self._standing(batch)
            found += [e for e in batch if e.plan_id in stands]
            self.journal.outcome(number, stands, max(stands.values(), default=0))
        return found

    def _standing(self, entries: Sequence[Entry]) -> dict[str, int]:
        """Of some intents those that were committed, and when."""
        keys, found = self.where.keys, {}
        replies = self._store.read([("GET", keys.tombstone(e.plan_id)) for e in entries])
        for entry, reply in zip(entries, replies, strict=True):
            stamp = _stamp(reply, entry)
            if stamp is not None:
                found[entry.plan_id] = stamp
        return found

    def _changed(self, run: str, epoch: str, now_us: int) -> str:
        """Another server, or one that forgot: put back what the journals know, hold opens back where they do not."""
        known = self.known.epoch
        reason = "missing" if not epoch else "restarted" if epoch == known else "different"
        own = self.journal.path
        entries = [
            e
            for path in sorted(self.where.directory.glob(f"*{journals.SUFFIX}"))
            for e in journals.read(path)
            if e.is_done or path == own or e.run != epoch  # of the run that stands: another one is about to commit it
        ]
        lacking = self._put_back(entries, now_us)
        holds = self.journal.path is None or bool(self.known.others) or not known
        until = self.known.hold_until_us
        if holds:
            hold_s = max(self._params.permit_ttl_s, self._params.plan_max_age_s, HOUR_S, self._params.symbol_cooldown_s)
            until = max(until, now_us + hold_s * US)
            self._store.read([("HSET", self.where.keys.book, gw.HOLD, until)])  # one that joins later holds too
        self.journal.resolve([replace(e, is_done=True) for e in self.journal.read()])
        self._resolved = True
        more = {"epoch": run, "epoch_before": epoch or known, "restored": str(lacking), "held": str(int(holds))}
        told = event("STORE_EPOCH_CHANGE", "", "", reason, now_us / US, more)
        self._store.apply([(StreamAdd(self.where.events, told, self.where.maxlen),)])
        run = self._mark(epoch, run)
        self._keep(epoch=run, hold_until_us=until)
        self.changes += 1
        held = f", opens are held back until {until // US}" if holds else ""
        text = f"{CHANGES[reason]}: {lacking} permits put back{held}"
        say(log, logging.WARNING, "store", text, {"count": lacking, "reason": reason})
        return run

    def _put_back(self, entries: Sequence[Entry], now_us: int | None) -> int:
        """Tombstones, ledger entries and outstanding opens that the store lacks."""
        keys, p, lacking, unwritten = self.where.keys, self._params, 0, 0
        if now_us is None:
            now_us = self._now_us(self._store.read([("TIME",)])[0]) or 0
        since, today = now_us - max(HOUR_S, p.symbol_cooldown_s) * US, now_us // (DAY_S * US)
        for at in range(0, len(entries), RESTORE_AT_ONCE):
            names = [keys.book, self.where.events]
            args: list[str | bytes | int] = [now_us, self.where.maxlen, 2 * DAY_S + p.symbol_cooldown_s]
            for e in entries[at : at + RESTORE_AT_ONCE]:
                of_today = e.issued.startswith("close") and e.at_us // (DAY_S * US) >= today
                counted = e.at_us > since or of_today
                names += [keys.tombstone(e.plan_id), keys.ledger(e.symbol)]
                usd = "" if e.usd is None else repr(e.usd)
                args += [e.plan_id, e.symbol, e.issued, usd, e.tombstone, e.tombstone_ttl_s * 1000, e.at_us]
                args += [e.until_us, int(counted), _decision_id(e), int(e.is_done)]
            reply = self._store.run(RESTORE, names, args, self._store.connections)
            found, failed = reply if isinstance(reply, list) and len(reply) == 2 else (None, None)
            if not isinstance(found, int) or not isinstance(failed, int):
                raise StoreError("other", f"{keys.book} or {self.where.events} holds another type: delete it")
            lacking += found
            unwritten += failed
        self.restored += lacking
        if unwritten:
            text = f"{unwritten} permits cannot be put back: a tombstone or a ledger of theirs holds another type"
            raise StoreError("other", f"{text}: delete it")
        return lacking

    def kill(self, replies: Sequence[Reply], now_us: int) -> tuple[Kill, bool]:
        """What the kill switch says, its latches included, and whether the latch in Redis was just written.

        Args:
            replies: to GET of the key, HMGET of the latch's fields, HMGET of the rearm's.
            now_us: microseconds.

        Raises:
            StoreError: the latch cannot be kept.
        """
        state = gw.kill_state(replies[0])
        is_latched = gw.is_latched(replies[1])
        latch, rearm = replies[1], replies[2]
        rearmed = rearm[0] if isinstance(rearm, list) and isinstance(rearm[0], bytes) else None
        rearmed_us = microseconds(rearmed)
        try:
            if self.latch.latch is not None and rearmed_us is not None and rearmed_us > self.latch.latch.since_us:
                self.latch.clear()
                changed(log, logging.WARNING, "the kill switch was rearmed", "latch", "latched", "off")
            if self.latch.latch is None and (state is Kill.HALT or is_latched):
                self.latch.write(_latch_of(latch, max(now_us, (rearmed_us or 0) + 1)))
                text = "the kill switch is at HALT: it is latched until somebody rearms"
                changed(log, logging.WARNING, text, "latch", "off", "latched")
        except OSError as error:
            raise StoreError("journal", f"the latch cannot be kept in the state directory ({error.strerror})") from None
        wrote = False
        if self.latch.latch is not None and not is_latched:
            mine = self.latch.latch
            args: list[str | bytes | int] = [
                rearmed or b"",
                seconds(mine.since_us),
                mine.by,
                mine.why,
                now_us // US,
                self.where.maxlen,
            ]
            keys = self.where.keys
            reply = self._store.run(LATCH, [keys.latch, keys.rearm, self.where.events], args, self._store.connections)
            wrote = reply == 1  # else somebody has, or has rearmed, or it cannot be: the commit tells
        if self.latch.latch is not None or is_latched:
            return Kill.HALT, wrote
        return state, wrote

    def queries(self) -> list[Command]:
        """The commands whose replies ``kill`` takes."""
        keys = self.where.keys
        return [
            ("GET", keys.kill),
            ("HMGET", keys.latch, "state", "since", "by", "why"),
            ("HMGET", keys.rearm, "at"),
        ]


def _latch_of(reply: Reply, now_us: int) -> Latch:
    texts = [r if isinstance(r, bytes) else b"" for r in reply] if isinstance(reply, list) else []
    if len(texts) == 4 and (since := microseconds(texts[1])) is not None:
        return Latch(since, texts[2].decode("utf-8", "replace"), texts[3].decode("utf-8", "replace"))
    return Latch(now_us)


def _run_id(reply: Reply) -> str:
    lines = reply.split(b"\r\n") if isinstance(reply, bytes) else []
    found = next((line for line in lines if line.startswith(b"run_id:")), b"")
    return found.partition(b":")[2].decode("ascii", "replace").strip()


def _told(entry: Entry) -> Mapping[str, object]:
    told: Mapping[str, object] = json.loads(entry.tombstone + "}")
    return told


def _decision_id(entry: Entry) -> str:
    return str(_told(entry).get("decision_id", ""))


def _stamp(reply: Reply, entry: Entry) -> int | None:
    """When the tombstone of a permit was written; None where it is another decision's, or another governor's."""
    try:
        told = json.loads(reply) if isinstance(reply, bytes) else {}
        mine = all(told.get(name) == _told(entry).get(name) for name in ("decision_id", "by"))
        return int(told["stamp_us"]) if mine else None
    except (ValueError, KeyError, TypeError):
        return None
