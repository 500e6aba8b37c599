"""One loop for every service: read all, decide all, write all, then tell.

``Cycle`` is what a service is: four functions and a cadence. ``Loop`` runs it. The only ``while`` of the services and
the only broad ``except`` are here: a programmer's error costs one symbol where a symbol's step raised it, else one
cycle, and is counted and logged; trouble with the store costs the cycle, which is not sent again: the next one reads
and decides anew. After a failed cycle the loop tries again after 0.1, 0.2 and 0.4 s, then probes each second.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from threading import Event
from typing import Generic, TypeVar

from quantum_alloc.adapters.clock import Clock
from quantum_alloc.adapters.codec import printable
from quantum_alloc.adapters.effects import Group
from quantum_alloc.adapters.metrics import Metrics
from quantum_alloc.adapters.store import Store, StoreError
from quantum_alloc.core.isolate import Attempt

S = TypeVar("S")
Seen = TypeVar("Seen")
Made = TypeVar("Made")
T = TypeVar("T")

BREAKER_FAILURES = 3
PROBE_S = 1.0
BACKOFF_S = 0.1
LATE_INTERVALS = 3
LATE_AT_LEAST_S = 15.0


@dataclass(frozen=True, slots=True)
class Told:
    """What a cycle came to, for its log line and its state.

    Attributes:
        line: the INFO line without its duration; empty for a cycle that is not worth one.
        nothing: empty, or why nothing was written.
    """

    line: str
    nothing: str = ""


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
        self.ready = False
        self.cycles = 0
        self.last_now: float | None = None
        self.last_error = ""
        self.last_line = ""
        self.last_nothing = ""
        self.last_duration_s = 0.0
        self.finished_at = time.monotonic()
        self.on_finished: Callable[[], None] = lambda: None
        self._store = store
        self._clock = clock
        self._state = cycle.initial
        self._failures = 0
        self._symbol_errors: set[str] = set()
        self._refused: frozenset[str] = frozenset()

    def once(self) -> bool:
        """One cycle.

        Returns:
            True when it ended, with or without output.
        """
        try:
            self._probe()
            self._run()
        except StoreError as error:
            self._given_up("store", str(error))
            self.metrics.add("quantum_alloc_store_errors_total", error.code)
            return False
        except Exception as error:
            self._given_up("error", f"{type(error).__name__}: {error}")
            self.log.debug("the cycle failed", exc_info=True)
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
                due = now + min(PROBE_S, BACKOFF_S * 2 ** min(self._failures - 1, 10))
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
            return run()
        except Exception:
            self.metrics.add("quantum_alloc_symbol_errors_total")
            if symbol not in self._symbol_errors:
                self._symbol_errors.add(symbol)
                self.log.exception("the step of symbol %s failed: it is left out", printable(symbol))
            return None

    def _probe(self) -> None:
        if self._failures >= BREAKER_FAILURES:
            self._store.ping()

    def _run(self) -> None:
        cycle, now, started = self.cycle, self._clock.now(), time.perf_counter()
        seen = cycle.read(now)
        state, made = cycle.decide(self._state, seen, self.attempt)
        refused = self._store.apply(cycle.effects(seen, made))
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
        for key in sorted(keys - self._refused):
            self.log.warning("the server refuses to write %s: it holds another type; delete it", printable(key))
        self._refused = keys

    def _finished(self, now: float, told: Told, took: float) -> None:
        m = self.metrics
        m.add("quantum_alloc_cycles_total", "nothing" if told.nothing else "ok")
        m.observe("quantum_alloc_cycle_duration_seconds", took)
        m.set("quantum_alloc_last_cycle_timestamp_seconds", now)
        m.set("quantum_alloc_ready", 1.0)
        if self._failures and self.last_error:
            self.log.warning("the store answers again after %d failed cycles", self._failures)
        if told.nothing != self.last_nothing:
            self.log.warning("nothing is written: %s", told.nothing) if told.nothing else self.log.warning(
                "writes again"
            )
        if told.line:
            self.log.info("%s ms=%.0f", told.line, took * 1e3)
        self.cycles += 1
        self.ready, self.last_now, self.last_duration_s = True, now, took
        self.last_error, self.last_line, self.last_nothing = "", told.line or self.last_line, told.nothing
        self._failures = 0

    def _given_up(self, outcome: str, text: str) -> None:
        self.metrics.add("quantum_alloc_cycles_total", outcome)
        self.metrics.set("quantum_alloc_ready", 0.0)
        self.ready = False
        if text != self.last_error:
            self.log.error("the cycle was given up: %s", printable(text, 300))
        self.last_error = text
        self._failures += 1
