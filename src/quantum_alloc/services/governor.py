"""``governor`` (P3.2, step 2): one answer for every plan, permit or block; by event, not by the clock.

    plans    <- the consumer group, up to 100
    snapshot <- one round trip: time, kill switch and latches, portfolio, book, and ledger and inputs of each symbol
    answers  <- decide_batch: pure
    commit   -> one script that tests what was decided on and writes permits, tombstones, ledgers, book, events

What moved in between is read and decided again. Trouble with the store issues nothing: the plans stay pending.
Source: the project's governor.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from quantum_alloc.adapters import commit, executions, plans
from quantum_alloc.adapters import governor_writes as gwrites
from quantum_alloc.adapters.clock import Clock
from quantum_alloc.adapters.commit import Basis, Item, Status
from quantum_alloc.adapters.governor_read import Reader
from quantum_alloc.adapters.governor_scripts import COMMIT, DISARM
from quantum_alloc.adapters.governor_wire import POS, seen_kill, seen_latch, time_us
from quantum_alloc.adapters.intake import TRIES, Entry, Intake
from quantum_alloc.adapters.journal import Entry as JournalEntry
from quantum_alloc.adapters.metrics import Metrics
from quantum_alloc.adapters.ops_entry import LedgerError, Operation
from quantum_alloc.adapters.ops_ledger import OpsLedger
from quantum_alloc.adapters.permits import SigningKey
from quantum_alloc.adapters.refusals import never_began
from quantum_alloc.adapters.store import Store, StoreError
from quantum_alloc.core.fields import compact
from quantum_alloc.core.governor import decide_batch
from quantum_alloc.core.governor_params import GovernorParams
from quantum_alloc.core.isolate import Attempt
from quantum_alloc.core.limits import US
from quantum_alloc.core.plan import Plan
from quantum_alloc.core.stability import ClockState, observe
from quantum_alloc.core.verdicts import Block, Conflict, Decision, Permit, Replay, Undecided
from quantum_alloc.services.governor_keeper import Keeper, Where
from quantum_alloc.services.governor_tell import Tally
from quantum_alloc.services.logs import say
from quantum_alloc.services.loop import Cycle, Told

NAME = "governor"
log = logging.getLogger("quantum_alloc.governor")
ERRORS_WITHIN_S = 60.0
TRY_AGAIN_S = 0.02
VAIN_CYCLES = 100
"""After so many cycles without an answer ``--once`` leaves what waits."""


@dataclass(frozen=True, slots=True)
class Set:
    """What a governor is set to.

    Attributes:
        params: the numbers of the rules.
        group: the consumer group.
        plans: stream of plans.
        tombstone_permit_s: life of a permit's tombstone, at least.
        error_count: programming errors within 60 s that disarm; 0 for never.
        keys: that sign permits.
        simulated: a clock in the place of the server's; None for the server's.
    """

    params: GovernorParams
    group: str = "governor"
    plans: str = "quantum:stream:apply.plan"
    tombstone_permit_s: int = 30 * 86_400
    error_count: int = 5
    keys: tuple[SigningKey, ...] = ()
    simulated: Clock | None = None


@dataclass(frozen=True, slots=True)
class Seen:
    """Everything that one cycle read.

    Attributes:
        entries: in the order of the stream.
        basis: what they are decided on.
        wrote_latch: True where the latch was just written, so that what was read of it is old.
    """

    entries: tuple[Entry, ...]
    basis: Basis
    wrote_latch: bool


@dataclass(frozen=True, slots=True)
class Made:
    """One cycle's answers.

    Attributes:
        answers: one an entry: a decision, a bad id, one that is not governed; None where it was given up.
    """

    answers: tuple[Decision | plans.BadId | plans.NotGoverned | None, ...] = ()


@dataclass(slots=True)
class Done:
    """What became of one cycle's answers.

    Attributes:
        refused: empty, or why the commit wrote nothing.
        settled: answers that stand now.
        moved: how many are decided again.
    """

    refused: str = ""
    settled: list[Decision | plans.BadId | plans.NotGoverned | None] = field(default_factory=list)
    moved: int = 0


class Governor:
    """One governor: its plans, what it knows of the server, and its commits."""

    def __init__(
        self,
        store: Store,
        metrics: Metrics,
        settings: Set,
        where: Where,
        keeper: Keeper,
        intake: Intake,
        reader: Reader,
    ) -> None:
        """Put the parts together; nothing is read yet."""
        self._store, self._metrics, self._set, self._where = store, metrics, settings, where
        self.keeper, self.intake, self._reader = keeper, intake, reader
        self._clock = ClockState()
        if keeper.known.is_unstable:
            self._clock = ClockState(None, _elapsed_us(), 0, _elapsed_us())
        self._position = ""
        self._consumers: frozenset[str] = frozenset()
        self._vain = 0
        self._errors: deque[float] = deque()
        self._errors_seen = 0.0
        self.done = Done()

    # ---- read

    def read(self, now: float) -> Seen:
        """Plans and the snapshot that they are decided on."""
        try:
            self._disarm_on_errors(now)
            for _ in range(3):
                if not self.keeper.is_current:
                    self._verify()
                entries = self.intake.take(self._position)
                seen = self._snapshot(entries)
                if self.keeper.is_current and seen.basis.epoch == self.keeper.epoch:
                    return seen
                self.keeper.doubt()
            raise StoreError("conflict", "the connection to the store does not last")
        except StoreError:
            self.intake.doubt()
            self.keeper.doubt()
            raise

    def _verify(self) -> None:
        found = self.keeper.verify()
        for entry in found:  # committed, and the reply was lost
            self._metrics.add("quantum_govern_allow_total", entry.symbol)
        position = self._store.read([("HGET", self._where.keys.book, POS)])[0]
        if isinstance(position, bytes) and executions.entry_id(position) is not None:
            self._position = position.decode("ascii")

    def _snapshot(self, entries: Sequence[Entry]) -> Seen:
        for entry in entries:
            if entry.plan is None and entry.tries < 2 * TRIES:  # where even this fails, it is given up unread
                entry.plan = plans.decode(entry.raw)
        wanted = [e.plan for e in entries if isinstance(e.plan, Plan)]
        simulated_us = None if self._set.simulated is None else round(self._set.simulated.now() * US)
        head, replies, connection = self._reader.fetch(self.keeper.queries(), wanted, simulated_us)
        read_us = time_us(head[0])
        if read_us is None:
            raise StoreError("other", "the server does not tell its time")
        server_us = read_us if simulated_us is None else simulated_us
        is_stable = True
        if simulated_us is None:
            self._clock = observe(self._clock, server_us, time.time_ns() // 1000, _elapsed_us())
            is_stable = self._clock.is_stable
            self.keeper.note_clock(is_stable=is_stable)
        kill, wrote = self.keeper.kill(head[1:4], server_us)
        epoch = head[4].decode("utf-8", "replace") if isinstance(head[4], bytes) else ""
        hold, until = "", None
        held_us = max(self.keeper.known.hold_until_us, self._reader.hold_until_us(replies) if wanted else 0)
        if held_us > server_us:
            hold, until = "recovery_hold", held_us
        elif not is_stable:
            hold = "clock_unstable"
        taken = frozenset(e.plan.plan_id for e in entries if e.taken and isinstance(e.plan, Plan))
        read = self._reader.snapshot(replies, wanted, server_us, kill, (hold, until), taken)
        basis = Basis(
            read.snapshot,
            server_us,
            seen_kill(head[1]),
            seen_latch(head[2]),
            epoch,
            read.book_revision,
            connection,
            is_stable,
            simulated_us,
            self._where.consumer,
            self.keeper.fence,
        )
        return Seen(tuple(entries), basis, wrote)

    # ---- decide

    def decide(self, seen: Seen, attempt: Attempt) -> Made:
        """The answers, in the order of the stream; pure but for what ``attempt`` counts."""
        if seen.wrote_latch:
            return Made()
        answers_by_id = seen.basis.snapshot.answers
        answered = {e.id for e in seen.entries if isinstance(e.plan, Plan) and e.plan.plan_id in answers_by_id}
        asked = [e.plan for e in seen.entries if isinstance(e.plan, Plan) and (not e.is_given_up or e.id in answered)]
        decided = iter(decide_batch(asked, seen.basis.snapshot, self._set.params, attempt))
        answers: list[Decision | plans.BadId | plans.NotGoverned | None] = []
        for entry in seen.entries:
            if entry.is_given_up and entry.id not in answered:
                answers.append(None)
            elif isinstance(entry.plan, Plan):
                answers.append(next(decided))
            else:
                answers.append(entry.plan)
        return Made(tuple(answers))

    # ---- write

    def write(self, seen: Seen, made: Made) -> None:
        """Commit the answers, and settle what was committed."""
        self.done = Done()
        ids = [e.id for e in seen.entries]
        if len(made.answers) != len(seen.entries):
            self.intake.wait(ids)
            self.done.refused = "latch"
            return
        items = [self._item(e, a, seen) for e, a in zip(seen.entries, made.answers, strict=True)]
        going = [item for item in items if item is not None]
        if not going:
            self.intake.settle([_undecided(a) for a in made.answers])
            return
        try:
            result = self._commit(going, seen)
        except StoreError:
            self.intake.doubt()
            self.keeper.doubt()
            raise
        if result.refused:
            self.intake.wait(ids)
            self.done.refused = result.refused
            if result.refused == "epoch":
                self.keeper.doubt()
            return
        told = iter(result.statuses)
        statuses = [
            _undecided(answer) if item is None else next(told) for item, answer in zip(items, made.answers, strict=True)
        ]
        settled = set(self.intake.settle(statuses))
        self._position = max((self._position, *settled), key=_order)
        for entry, answer, status in zip(seen.entries, made.answers, statuses, strict=True):
            if status is Status.OK:
                self.done.settled.append(answer)
            elif entry.id not in settled:
                self.done.moved += 1
            if status is Status.OK and isinstance(answer, Block) and answer.disarms:
                self._write_down(f"a burst of opens of {answer.plan.symbol}")

    def _commit(self, items: Sequence[Item], seen: Seen) -> commit.Committed:
        permits = [
            JournalEntry(
                self.keeper.epoch,
                item.plan_id,
                item.symbol,
                item.issued,
                item.usd,
                item.tombstone,
                item.tombstone_ttl_s,
                seen.basis.snapshot.now_us,
                seen.basis.snapshot.now_us + (self._set.params.permit_ttl_s + 1) * US,
            )
            for item in items
            if item.permit
        ]
        position = max((self._position, *(i.entry for i in items)), key=_order)
        keys, args = commit.call(
            items,
            seen.basis,
            self._set.params,
            group=self._set.group,
            plans=self._set.plans,
            events=self._where.events,
            maxlen=self._where.maxlen,
            position=position,
            keys=self._where.keys,
        )
        number = self.keeper.journal.intent(self.keeper.epoch, permits) if permits else 0
        try:
            reply = self._store.run(COMMIT, keys, args, seen.basis.connection)
        except StoreError as error:
            if number and never_began(error):  # else a server that takes its place would be told of permits
                self.keeper.journal.outcome(number, (), seen.basis.snapshot.now_us)
            raise
        result = commit.committed(reply, self._store.shown)
        if number:
            statuses = result.statuses or [Status.MOVED] * len(items)
            done = [i.plan_id for i, s in zip(items, statuses, strict=True) if i.permit and s is Status.OK]
            self.keeper.journal.outcome(number, done, result.stamp_us)
        return result

    def _item(self, entry: Entry, answer: Decision | plans.BadId | plans.NotGoverned | None, seen: Seen) -> Item | None:
        """An answer as the commit writes it; None for one that was not decided."""
        now_us, params = seen.basis.snapshot.now_us, self._set.params
        match answer:
            case Undecided():
                return None
            case Permit():
                ttl_s, by = self._tombstone_ttl_s(now_us), self._where.consumer
                made = gwrites.permit_item(entry.id, answer, params, self._set.keys, ttl_s, by)
            case Block():
                made = gwrites.block_item(entry.id, answer, params)
            case Replay() | Conflict():
                made = gwrites.again_item(entry.id, answer)
            case plans.BadId():
                made = gwrites.bad_id_item(entry.id, answer.shown, now_us / US)
            case plans.NotGoverned():
                made = Item(entry.id)
            case _:
                made = self._given_up(entry, now_us)
        return made

    def _given_up(self, entry: Entry, now_us: int) -> Item:
        plan = entry.plan if isinstance(entry.plan, Plan) else None
        rejected = executions.Rejected(executions.Flaw.ENTRY, f"delivered {entry.tries} times without an answer")
        letter = {**executions.dead_letter(entry.raw, rejected, NAME, now_us / US), "reason": gwrites.FAILED}
        return gwrites.given_up_item(entry.id, plan, letter, now_us)

    def _tombstone_ttl_s(self, now_us: int) -> int:
        """As long as settings say, and at least as long as the oldest entry of the stream has stood there."""
        oldest = self.intake.oldest_ms
        stood_s = 0 if oldest is None else (now_us // 1000 - oldest) // 1000 + 1
        return max(self._set.tombstone_permit_s, stood_s)

    # ---- errors of ours

    def _disarm_on_errors(self, now: float) -> None:
        """Too many programming errors in a minute set the kill switch to reduce, once."""
        m = self._metrics
        errors = m.value("quantum_alloc_symbol_errors_total") + m.value("quantum_alloc_cycles_total", "error")
        elapsed = _elapsed_us() / US
        self._errors.extend([elapsed] * int(errors - self._errors_seen))
        self._errors_seen = errors
        while self._errors and self._errors[0] <= elapsed - ERRORS_WITHIN_S:
            self._errors.popleft()
        if not 0 < self._set.error_count <= len(self._errors):
            return
        told = gwrites.disarm_event("error_count", compact({"errors": len(self._errors), "within_s": 60}), now)
        args: list[str | bytes | int] = [self._where.maxlen]
        for pair in told.items():
            args += pair
        self._store.ping()
        keys = [self._where.keys.kill, self._where.events]
        if self._store.run(DISARM, keys, args, self._store.connections) == 1:
            m.add("quantum_govern_disarm_total", "error_count")
            text = f"auto-disarm: {len(self._errors)} programming errors set the kill switch to reduce"
            say(log, logging.WARNING, "kill_switch", text, {"count": len(self._errors), "reason": "error_count"})
            self._write_down(f"{len(self._errors)} programming errors within a minute")
        self._errors.clear()

    def _write_down(self, why: str) -> None:
        """A disarm is an operation: the OPS ledger tells of it, as far as it can be written."""
        keys, by = self._where.keys, f"governor {self._where.consumer}"
        done = Operation(
            operation_name="auto_disarm", requested_by=by, risk_class="LOW_RISK_CONFIG", objective=why,
            changes_summary=f"{keys.kill} = reduce",
        )  # fmt: skip
        try:
            OpsLedger(self._where.directory, self._store, keys, self._where.consumer).append(done, time.time())
        except (LedgerError, StoreError, OSError) as error:
            say(log, logging.WARNING, "fault", f"the OPS ledger does not tell of the disarm: {error}")

    def look_around(self) -> None:
        """Note which other governors there are, when that has been looked up anew."""
        if self.intake.consumers is not self._consumers:
            self._consumers = self.intake.consumers
            self.keeper.see_others(self._consumers)

    @property
    def has_more(self) -> bool:
        """True while there are plans to decide, and deciding them comes to something."""
        self._vain = 0 if self.done.settled or not self.intake.waiting else self._vain + 1
        return bool(self.done.settled) or 0 < self._vain < VAIN_CYCLES

    def wait_s(self, _: float) -> float:
        """Reading waits for plans; what could not be settled is tried again after a moment."""
        return TRY_AGAIN_S if self.intake.waiting and not self.done.settled else 0.0

    @property
    def settled(self) -> list[Decision | plans.BadId | plans.NotGoverned | None]:
        """Answers that stand now."""
        return self.done.settled

    @property
    def moved(self) -> int:
        """Answers that are decided again."""
        return self.done.moved

    @property
    def refused(self) -> str:
        """Empty, or why the commit wrote nothing."""
        return self.done.refused

    @property
    def clock(self) -> ClockState:
        """What is remembered of the clocks."""
        return self._clock


def _undecided(answer: Decision | plans.BadId | plans.NotGoverned | None) -> Status:
    """A step that failed counts against its plan, one that had to wait for it does not."""
    return Status.FAILED if isinstance(answer, Undecided) and answer.failed else Status.WAITS


def _order(entry_id: str) -> tuple[int, int]:
    return executions.entry_id(entry_id.encode()) or (-1, 0)


def _elapsed_us() -> int:
    """A clock that nobody sets, and that goes on while the machine sleeps."""
    clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    return time.clock_gettime_ns(clock) // 1000


def build(metrics: Metrics, governor: Governor, params: GovernorParams) -> Cycle[None, Seen, Made]:
    """The service.

    Args:
        metrics: where it counts.
        governor: its parts.
        params: the numbers of the governor.
    """
    tally = Tally(metrics, params)

    def decide(_: None, seen: Seen, attempt: Attempt) -> tuple[None, Made]:
        return None, governor.decide(seen, attempt)

    def tell(seen: Seen, _made: Made, _took: float) -> Told:
        governor.look_around()
        return tally.tell(seen.basis, governor)

    return Cycle(
        name=NAME,
        mode=params.apply_mode,
        interval_s=1.0,
        initial=None,
        read=governor.read,
        decide=decide,
        effects=lambda _seen, _made: (),
        write=governor.write,
        tell=tell,
        wait_s=governor.wait_s,
        more=lambda: governor.has_more,
        close=governor.keeper.journal.close,
    )
