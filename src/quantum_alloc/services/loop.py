"""One loop for every service: read all, decide all, write all, then tell.

``Cycle`` is what a service is: four functions and a cadence. ``Loop`` runs it. The only ``while`` of the services and
the only broad ``except`` are here: a programmer's error costs one symbol where a symbol's step raised it, else one
cycle, and is counted and logged; trouble with the store costs the cycle, which is not sent again: the next one reads
and decides anew. After a failed cycle the loop tries again after 0.1, 0.2, 0.4 and 0.8 s, then each second, from the
third on with a probe first; a fault of configuration (a wrong password, a missing right) is named once, and looked at
again after four seconds. ``check`` looks at the server before a cycle, and again between its reads and its writes.
"""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Event
from typing import Generic, TypeVar

from quantum_alloc.adapters.clock import Clock
from quantum_alloc.adapters.codec import printable
from quantum_alloc.adapters.effects import Group
from quantum_alloc.adapters.metrics import Metrics
from quantum_alloc.adapters.store import Store, StoreError
from quantum_alloc.core.isolate import Attempt
from quantum_alloc.services.logs import NAMED, Fields, changed, count_lines, say, text_of

S = TypeVar("S")
Seen = TypeVar("Seen")
Made = TypeVar("Made")
T = TypeVar("T")

BREAKER_FAILURES = 3
PROBE_S = 1.0
BACKOFF_S = 0.1
CONFIGURATION_S = 4.0
"""Pause after a fault that waiting alone does not mend: slow, and still back within 5 s of its end."""
LATE_INTERVALS = 3
LATE_AT_LEAST_S = 15.0
LONG_CYCLE_S = 2.0
IN_TIME_AGAIN = 5
"""So many cycles in a row must be in time before it is told that they are."""
MOST_TROUBLES = 8
"""So many troubles are told of one outage in each state; after that one of each code that was not told yet."""
MOST_REMEMBERED = 100
"""So many symbols that fail are told of, and the rest counted; beyond so many, refused keys that are written no more
are forgotten."""
TOLD_AT_ONCE = 4 * NAMED
"""So many keys are named when they are refused together; the rest is counted."""


@dataclass(frozen=True, slots=True)
class Told:
    """What a cycle came to, for its log line and its state.

    Attributes:
        what: how the INFO line begins; empty for a cycle that is not worth one.
        nothing: empty, or why nothing was written.
        fields: what the line goes on with.
    """

    what: str
    nothing: str = ""
    fields: Fields = field(default_factory=Fields)

    @property
    def line(self) -> str:
        """The INFO line without its duration."""
        return text_of(self.what, self.fields) if self.what else ""


@dataclass(frozen=True, slots=True)
class Cycle(Generic[S, Seen, Made]):
    """A service as functions.

    Attributes:
        name: its CLI name.
        mode: shadow, enforce, or empty where it has none.
        interval_s: cadence, seconds.
        initial: the state that it starts with.
        read: everything it needs, at ``now``.
        decide: state and readings to state and decision; pure.
        effects: what to write.
        tell: metrics and summary; gets the seconds the cycle took.
        wait_s: seconds until it is due again, for a service without a fixed cadence.
        write: what is written otherwise than by ``effects``, which then come to nothing more.
        more: whether there is more to do at once, for a service that drains a stream.
        close: lets go of what it holds beside its connection.
    """

    name: str
    mode: str
    interval_s: float
    initial: S
    read: Callable[[float], Seen]
    decide: Callable[[S, Seen, Attempt], tuple[S, Made]]
    effects: Callable[[Seen, Made], tuple[Group, ...]]
    tell: Callable[[Seen, Made, float], Told]
    wait_s: Callable[[float], float] | None = None
    write: Callable[[Seen, Made], None] | None = None
    more: Callable[[], bool] | None = None
    close: Callable[[], None] = lambda: None


class Loop(Generic[S, Seen, Made]):
    """Runs one service's cycle, once or until it is told to stop."""

    def __init__(self, cycle: Cycle[S, Seen, Made], store: Store, metrics: Metrics, clock: Clock) -> None:
        """Prepare; nothing runs yet."""
        self.cycle = cycle
        self.metrics = metrics
        self.log = logging.getLogger(f"quantum_alloc.{cycle.name}")
        count_lines(self.log.name, metrics)
        metrics.at_scrape("quantum_alloc_loop_late", lambda: {(): float(self.is_late())})
        self.ready = False
        self.cycles = 0
        self.last_now: float | None = None
        self.last_error = ""
        self.last_line = ""
        self.last_nothing = ""
        self.last_duration_s = 0.0
        self.finished_at = time.monotonic()
        self.on_finished: Callable[[], None] = lambda: None
        self.check: Callable[[bool], None] = lambda _after_trouble: None
        self.server_run_id: Callable[[], str] = lambda: ""
        self._store = store
        self._clock = clock
        self._state = cycle.initial
        self._failures = 0
        self._is_configuration = False
        self._symbol_errors: set[str] = set()
        self._refused: frozenset[str] = frozenset()
        self._troubles: dict[tuple[str, str], str] = {}
        self._in_time: int | None = None

    def once(self) -> bool:
        """One cycle.

        Returns:
            True when it ended, with or without output.
        """
        try:
            self._probe()
            self.check(self._failures > 0)
            self._run()
        except StoreError as error:
            self._given_up("store", error.code, str(error), is_configuration=error.is_configuration)
            self.metrics.add("quantum_alloc_store_errors_total", error.code)
            return False
        except Exception as error:
            text = traceback.format_exception_only(error)[-1].strip()  # also of one whose own text fails
            self._given_up("error", type(error).__name__, text)
            say(self.log, logging.DEBUG, "fault", "the cycle failed", failed=True)
            return False
        finally:
            self.finished_at = time.monotonic()
            self.on_finished()
        return True

    def run(self, stop: Event) -> None:
        """Cycles until ``stop`` is set; the current one is finished."""
        due = time.monotonic()
        while not stop.is_set():
            ended = self.once()
            now = time.monotonic()
            if not ended:
                due = now + self._pause_s()
            elif self.cycle.wait_s is not None:
                due = now + max(0.0, self.cycle.wait_s(self._clock.now()))
            else:
                due = max(due + self.cycle.interval_s, now)
            stop.wait(due - now)

    def is_late(self) -> bool:
        """True when no cycle has finished for three intervals, and for 15 s."""
        age = time.monotonic() - self.finished_at
        return age > max(LATE_AT_LEAST_S, LATE_INTERVALS * self.cycle.interval_s)

    def attempt(self, symbol: str, run: Callable[[], T], /) -> T | None:
        """Run one symbol's step; a programmer's error costs the symbol and is counted."""
        try:
            done = run()
        except Exception:
            self.metrics.add("quantum_alloc_symbol_errors_total")
            if symbol not in self._symbol_errors and len(self._symbol_errors) < MOST_REMEMBERED:
                self._symbol_errors.add(symbol)
                name = printable(symbol)
                text = f"the step of symbol {name} failed: it is left out"
                changed(self.log, logging.ERROR, text, "symbol", "ok", "failed", {"symbol": name}, failed=True)
            return None
        if symbol in self._symbol_errors:
            self._symbol_errors.discard(symbol)
            name = printable(symbol)
            text = f"the step of symbol {name} works again"
            changed(self.log, logging.WARNING, text, "symbol", "failed", "ok", {"symbol": name})
        return done

    def _pause_s(self) -> float:
        """Seconds from a failed cycle to the next."""
        if self._is_configuration:
            return CONFIGURATION_S
        return float(min(PROBE_S, BACKOFF_S * 2 ** min(self._failures - 1, 10)))

    def _probe(self) -> None:
        if self._failures >= BREAKER_FAILURES:
            self._store.ping()

    def _run(self) -> None:
        cycle, now, started = self.cycle, self._clock.now(), time.perf_counter()
        seen = cycle.read(now)
        self.check(False)  # reading may have opened another connection: nothing is written before it is looked at
        state, made = cycle.decide(self._state, seen, self.attempt)
        groups = cycle.effects(seen, made)
        refused = self._store.apply(groups)
        if cycle.write is not None:
            cycle.write(seen, made)
        self._state = state  # what was not written is not remembered
        took = time.perf_counter() - started
        told = cycle.tell(seen, made, took)
        self._finished(now, told, took)
        for _, failure in refused:
            known = failure.code if failure.code in ("WRONGTYPE", "ERR") else "other"
            self.metrics.add("quantum_alloc_write_refused_total", known)
        keys = frozenset(key for key, _ in refused)
        if keys or self._refused:
            self._tell_refused(keys, frozenset(effect.key for group in groups for effect in group))

    def _finished(self, now: float, told: Told, took: float) -> None:
        m = self.metrics
        m.add("quantum_alloc_cycles_total", "nothing" if told.nothing else "ok")
        m.observe("quantum_alloc_cycle_duration_seconds", took)
        m.set("quantum_alloc_last_cycle_timestamp_seconds", now)
        m.set("quantum_alloc_ready", 1.0)
        self._tell_end_of_trouble()
        if told.nothing != self.last_nothing:
            text = f"nothing is written: {told.nothing}" if told.nothing else "writes again"
            changed(self.log, logging.WARNING, text, "output", self.last_nothing or "ok", told.nothing or "ok")
        self._tell_pace(took)
        line = told.line
        if line:
            fields: Fields = {**told.fields, "ms": took * 1e3}
            say(self.log, logging.INFO, "cycle", f"{line} ms={took * 1e3:.0f}", fields)
        self.cycles += 1
        self.ready, self.last_now, self.last_duration_s = True, now, took
        self.last_error, self.last_line, self.last_nothing = "", line or self.last_line, told.nothing
        self._failures = 0

    def _given_up(self, outcome: str, code: str, text: str, *, is_configuration: bool = False) -> None:
        self.metrics.add("quantum_alloc_cycles_total", outcome)
        self.metrics.set("quantum_alloc_ready", 0.0)
        self.ready = False
        state = "store" if outcome == "store" else "cycle"
        codes = [c for (s, _), c in self._troubles.items() if s == state]
        if (state, text) not in self._troubles and (code not in codes or len(codes) < MOST_TROUBLES):
            self._troubles[state, text] = code
            told = f"the cycle was given up: {printable(text, 300)}"
            changed(self.log, logging.ERROR, told, state, codes[-1] if codes else "ok", code, {"reason": code})
        self.last_error, self._is_configuration = text, is_configuration
        self._failures += 1

    def _tell_end_of_trouble(self) -> None:
        for state, text in (("store", "the store answers again"), ("cycle", "cycles end again")):
            codes = [code for (s, _), code in self._troubles.items() if s == state]
            if codes:
                told: Fields = {"cycles": self._failures}
                after = f"{text} after {self._failures} failed cycles"
                changed(self.log, logging.WARNING, after, state, codes[-1], "ok", told)
        self._troubles.clear()

    def _tell_pace(self, took: float) -> None:
        """Cycles that are too long, and that they are in time again; the first one loads things, and does not count."""
        limit = LONG_CYCLE_S if self.cycle.wait_s is not None else min(self.cycle.interval_s, LONG_CYCLE_S)
        told: Fields = {"ms": took * 1e3}
        if took > limit and self.cycles:
            if self._in_time is None:
                text = f"cycles take too long: {took:.1f} s, more than {limit:g} s"
                changed(self.log, logging.WARNING, text, "pace", "ok", "late", told)
            self._in_time = 0
        elif self._in_time is not None:
            self._in_time += 1
            if self._in_time >= IN_TIME_AGAIN:
                self._in_time = None
                changed(self.log, logging.WARNING, "cycles are in time again", "pace", "late", "ok", told)

    def _tell_refused(self, keys: frozenset[str], written: frozenset[str]) -> None:
        """Keys that the server refuses to write, and those that it takes again."""
        ended = (self._refused & written) - keys
        why = "the server refuses to write {}: it holds another type; delete it"
        self._tell_keys(sorted(keys - self._refused), why, "ok", "refused")
        self._tell_keys(sorted(ended), "{} is written again", "refused", "ok")
        self._refused = (self._refused | keys) - ended if len(self._refused) < MOST_REMEMBERED else keys

    def _tell_keys(self, keys: list[str], text: str, before: str, after: str) -> None:
        for key in keys[:TOLD_AT_ONCE]:
            told = printable(key)
            changed(self.log, logging.WARNING, text.format(told), "key", before, after, {"key": told})
        more = len(keys) - TOLD_AT_ONCE
        if more > 0:
            told = text.format(f"{more} more keys")
            changed(self.log, logging.WARNING, told, "key", before, after, {"count": more})
