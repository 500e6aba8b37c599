"""The governor's snapshot: everything that a batch of plans is decided on, in one round trip and as of one moment.

    head     TIME, kill key, latch, rearm, epoch
    shared   portfolio, book, young violations of budgets
    symbol   ledger, position, market, target, budget, efficiency (its shadow too, where that lane is read)
    plan     tombstone

The positions of symbols with an outstanding open are read too, since a symbol that is held counts once. Which those are
is known from the snapshot before; where one is new the whole is read again. Without plans only the head is read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from quantum_alloc.adapters import governor_wire as gw
from quantum_alloc.adapters import wire
from quantum_alloc.adapters.effects import Command, Reply
from quantum_alloc.adapters.keys import Keys, ShadowKeys
from quantum_alloc.adapters.store import Store, StoreError
from quantum_alloc.core.governor_inputs import Holding, Kill, Snapshot, SymbolSnapshot
from quantum_alloc.core.governor_params import GovernorParams
from quantum_alloc.core.limits import BUDGET_STALE_S, MARKET_STALE_S, PORTFOLIO_STALE_S, TARGET_STALE_S, US
from quantum_alloc.core.plan import Plan
from quantum_alloc.core.reading import Reading, Reason, Unusable

HEAD = 5
KNOWN_MAX = 1000
VIOLATIONS_MARGIN_MS = (gw.VIOLATION_YOUNG_S + 10) * 1000


@dataclass(frozen=True, slots=True)
class Read:
    """A snapshot and what only the commit needs of it.

    Attributes:
        snapshot: for the rules.
        book_revision: as text.
    """

    snapshot: Snapshot
    book_revision: str = "0"


class Reader:
    """Asks for snapshots and makes values of the answers."""

    def __init__(self, store: Store, params: GovernorParams, keys: Keys, shadow: ShadowKeys | None) -> None:
        """Prepare.

        Args:
            store: where it reads.
            params: greatest ages.
            keys: the names.
            shadow: names of the shadow lane where it is read for the hint; None where it is not.
        """
        self._store, self._params, self._keys, self._shadow = store, params, keys, shadow
        self._in_book: tuple[str, ...] = ()
        self._seen_ms: int | None = None
        self._known: dict[str, tuple[int, list[Reply], SymbolSnapshot]] = {}

    def fetch(
        self, kill: Sequence[Command], plans: Sequence[Plan], simulated_us: int | None
    ) -> tuple[list[Reply], list[Reply], int]:
        """The answers: of the head, the others, and the connection that they came on.

        Args:
            kill: commands of kill key, latch and rearm.
            plans: to be decided.
            simulated_us: a clock in the place of the server's.

        Raises:
            StoreError: the store did not answer.
        """
        head: list[Command] = [("TIME",), *kill, ("GET", self._keys.epoch)]
        for _ in range(3):
            commands = self._queries(plans, simulated_us) if plans else []
            replies = self._store.read_together([*head, *commands])
            new = self._new_in_book(replies[HEAD + 1], plans) if plans else ()
            if not new:
                return replies[:HEAD], replies[HEAD:], self._store.connections
            self._in_book = tuple(sorted({*self._in_book, *new}))
        raise StoreError("conflict", "the book changes faster than it can be read")

    def _decoded(self, answered: Sequence[Reply], now: float) -> SymbolSnapshot:
        """A symbol's answers as values, its violations apart."""
        p = self._params
        there, position, ledger, market, target, budget, efficiency = answered[:7]
        given, lane = wire.in_lanes(efficiency, answered[7] if self._shadow is not None else None)
        known, eff_lane = wire.out_of(wire.decode(wire.EFFICIENCY, given, now, p.eff_stale_s), lane)
        return SymbolSnapshot(
            gw.ledger(ledger),
            _position(there, wire.decode(gw.POSITION, position, now, p.position_max_age_s)),
            wire.decode(gw.MARKET, market, now, MARKET_STALE_S),
            wire.decode(gw.TARGET, target, now, TARGET_STALE_S),
            wire.decode(gw.BUDGET, budget, now, BUDGET_STALE_S),
            efficiency=known,
            eff_lane=eff_lane,
        )

    def _names(self, plans: Sequence[Plan]) -> tuple[list[str], list[str]]:
        """Symbols of the plans, and those of the book beside them."""
        own = list(dict.fromkeys(p.symbol for p in plans if not p.flaw))
        return own, [s for s in self._in_book if s not in own]

    def _queries(self, plans: Sequence[Plan], simulated_us: int | None) -> list[Command]:
        keys, shadow = self._keys, self._shadow
        since = None if simulated_us is not None or self._seen_ms is None else self._seen_ms - VIOLATIONS_MARGIN_MS
        out: list[Command] = [
            gw.TOTALS.query(keys.portfolio),
            ("HGETALL", keys.book),
            gw.violations_query(keys.stream("budget.violation"), since),
        ]
        own, others = self._names(plans)
        for symbol in own:
            out += [
                ("EXISTS", keys.position(symbol)),
                gw.POSITION.query(keys.position(symbol)),
                ("HGETALL", keys.ledger(symbol)),
                gw.MARKET.query(keys.market(symbol)),
                gw.TARGET.query(keys.target(symbol)),
                gw.BUDGET.query(keys.budget(symbol)),
                wire.EFFICIENCY.query(keys.efficiency(symbol)),
            ]
            if shadow is not None:
                out.append(wire.EFFICIENCY.query(shadow.efficiency(symbol)))
        out += [gw.POSITION.query(keys.position(symbol)) for symbol in others]
        out += [("GET", keys.tombstone(p.plan_id)) for p in plans]
        return out

    def hold_until_us(self, replies: Sequence[Reply]) -> int:
        """Until when some governor holds opens back for all; 0 for never.

        Args:
            replies: without the head.
        """
        return gw.book(replies[1]).hold_until_us

    def _new_in_book(self, reply: Reply, plans: Sequence[Plan]) -> tuple[str, ...]:
        book = gw.book(reply).outstanding or ()
        own, others = self._names(plans)
        known = {*own, *others}
        return tuple(dict.fromkeys(o.symbol for o in book if o.symbol not in known))

    def snapshot(
        self,
        replies: Sequence[Reply],
        plans: Sequence[Plan],
        server_us: int,
        kill: Kill,
        hold: tuple[str, int | None],
        taken: frozenset[str],
    ) -> Read:
        """The snapshot that answers make.

        Args:
            replies: without the head.
            plans: that they were asked for.
            server_us: the server's clock, or what stands for it.
            kill: the kill switch.
            hold: why no open is permitted, and until when.
            taken: plan ids with a permit that was not given here.
        """
        self._seen_ms = server_us // 1000
        if not plans:
            return Read(Snapshot(server_us, kill, *hold))
        book = gw.book(replies[1])
        now_us = max(server_us, book.watermark_us)
        now, p = now_us / US, self._params
        totals = wire.decode(gw.TOTALS, replies[0], now, PORTFOLIO_STALE_S)
        own, others = self._names(plans)
        violations = gw.violations(replies[2], now, own)
        symbols: dict[str, SymbolSnapshot] = {}
        at, width = 3, 7 if self._shadow is None else 8
        second = math.floor(now)
        for symbol in own:
            answered = list(replies[at : at + width])
            at += width
            before = self._known.get(symbol)
            if before is not None and before[0] == second and before[1] == answered:
                s = before[2]  # age counts in whole seconds: the same bytes in the same second are the same readings
            else:
                s = self._decoded(answered, now)
                if len(self._known) >= KNOWN_MAX:
                    self._known.clear()
                self._known[symbol] = (second, answered, s)
            told = violations[symbol]
            symbols[symbol] = s if told is gw.NO_VIOLATION else replace(s, violation_usd=told)
        for symbol in others:
            symbols[symbol] = SymbolSnapshot(position=wire.decode(gw.POSITION, replies[at], now, p.position_max_age_s))
            at += 1
        answers = {}
        for plan, reply in zip(plans, replies[at:], strict=True):
            first = gw.answer(reply)
            if first is not None:
                answers[plan.plan_id] = first
        self._in_book = tuple(sorted({o.symbol for o in book.outstanding or ()}))
        return Read(Snapshot(now_us, kill, *hold, totals, book.outstanding, symbols, answers, taken), book.revision)


def _position(there: Reply, read: Reading[Holding]) -> Reading[Holding]:
    """A position whose key holds none of the fields that are asked for is malformed, and not flat."""
    absent = isinstance(read, Unusable) and read.reason is Reason.MISSING
    return Unusable(Reason.MALFORMED, detail="position_amt") if absent and there == 1 else read
