"""``apply``: permits in, fills on paper out; it holds the paper account. By event, and every few seconds for the marks.

    entries  <- events, results, executions and transfers since the last ones, with kill switch, latch and the account
    prices   <- permits, markets, regime and clusters of what waits or is held
    fates    <- core.apply, one permit after the other, in the order in which they were issued
    consume  -> one script: permits deleted and marked, account, positions, balance, executions, results

The account in Redis is the only memory: a cycle that was cut is there whole or not at all, and the next one reads on
from what is there. What was not consumed before its time is reported as expired. Source: the project's governor,
section 4.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice

from quantum_alloc.adapters import apply_wire as aw
from quantum_alloc.adapters import codec, consume, wire
from quantum_alloc.adapters import governor_wire as gw
from quantum_alloc.adapters.clock import runs
from quantum_alloc.adapters.effects import Command, Reply
from quantum_alloc.adapters.governor_files import seconds
from quantum_alloc.adapters.governor_scripts import LATCH
from quantum_alloc.adapters.keys import LIVE, Keys
from quantum_alloc.adapters.metrics import Metrics
from quantum_alloc.adapters.store import Store, StoreError
from quantum_alloc.adapters.universe import Universe
from quantum_alloc.core.account import Held
from quantum_alloc.core.apply import Application, Fate
from quantum_alloc.core.fields import number
from quantum_alloc.core.governor_inputs import Kill
from quantum_alloc.core.isolate import Attempt
from quantum_alloc.core.limits import US
from quantum_alloc.core.reading import Fresh
from quantum_alloc.core.reconcile import Stage
from quantum_alloc.services.apply_account import PAGE, Entries, Made, Seen, Set, effects, entries_of, step_account
from quantum_alloc.services.apply_lost import Memory
from quantum_alloc.services.logs import NAMED, Case, Fields, changed, few, say
from quantum_alloc.services.loop import Cycle, Told
from quantum_alloc.services.vacuity import Watch, values_of

__all__ = ["NAME", "PAGE", "Applier", "Made", "Seen", "Set", "build", "universe_of"]

NAME = "apply"
log = logging.getLogger("quantum_alloc.apply")
BLOCK_S = 0.5
BLOCK_LATE_S = 0.4
AGAIN_S = 0.1
OUTSTANDING_MAX = 4_000
"""From so many permits on no more are taken up until some have ended."""
LAST = 1 << 60
"""Behind every number: a permit that is new in this cycle."""
MOST_POSITIONS = 100_000
HEAD = 7
"""Answers before those of the streams."""
REFUSED_OFTEN = 10
"""From so many refusals in a row on, it is told."""
VAIN_CYCLES = 20
"""After so many refusals ``--once`` leaves what waits."""
SPOILED_S = 5.0
"""A position, balance or universe that holds another type is left out for so long; everything else goes on."""
LABEL_STALE_S = 180


class Applier:
    """One apply layer: what it reads, decides and writes."""

    def __init__(self, store: Store, metrics: Metrics, settings: Set, universe: Universe) -> None:
        """Put the parts together; nothing is read yet."""
        self._store, self._metrics, self._set, self._universe = store, metrics, settings, universe
        self._positions: dict[str, str] = {}
        self._marked_us = 0
        self._idle_until = 0.0
        self._is_idle = False
        self._refused = ""
        self._is_more = False
        self._without = -1
        self._vain = 0
        self._batch = PAGE
        self._has_held = self._is_negative = False
        self._spoiled: dict[str, float] = {}
        self._said: set[str] = set()
        self._memory = Memory(store, metrics)
        self._watch = Watch(metrics, "")
        self._written_again: frozenset[str] = frozenset()
        self._kill = Kill.OFF

    # ---- read

    def read(self, now: float) -> Seen:
        """The streams, the account, and what the permits that wait need."""
        self._wait()
        opened: aw.Account | None = None  # once: where it begins to read must not move while it is looked for
        for _ in range(3):
            head = self._head()
            connection = self._store.connections  # what is read on another one may be another server's
            now_us = self._now_us(head[0])
            loaded = aw.decode_state(head[3])
            if loaded.trouble:
                key = self._set.names.apply_state
                raise StoreError("other", f"the account {key} cannot be read: {loaded.trouble}: mend it, or delete it")
            self._memory.look(loaded.account, now_us, connection)
            self._has_held = self._has_held or loaded.account is not None
            account = loaded.account or opened
            if account is None:
                account = opened = self._opened(now_us, now)
            if account.streams != self._set.streams:
                key = self._set.names.apply_state
                told = ", ".join(account.streams)
                raise StoreError("other", f"the account {key} follows {told}: name these streams, or delete it")
            if dict(account.positions) == self._positions:
                return self._seen(head, loaded, account, now_us, connection)
            self._positions = dict(account.positions)
        raise StoreError("conflict", "another apply layer writes the same account: does the service run twice?")

    def _wait(self) -> None:
        """Where nothing is to be done, until an event comes or the marks are due."""
        left = min(BLOCK_S, self._idle_until - time.monotonic())
        if self._set.once or not runs(self._set.simulated) or not self._is_idle or left <= 0.0:
            return
        since = self._positions["events"], self._positions["transfers"]
        ms = max(1, round(left * 1000))
        streams = (self._set.events, self._set.names.transfers, *since)
        self._store.read([("XREAD", "COUNT", 1, "BLOCK", ms, "STREAMS", *streams)], left + BLOCK_LATE_S)

    def _head(self) -> list[Reply]:
        k = self._set.names
        commands: list[Command] = [
            ("TIME",), ("GET", k.kill), ("HMGET", k.latch, "state", "since"), ("HGETALL", k.apply_state),
            ("HLEN", k.clusters), ("HMGET", k.rearm, "at"), ("XINFO", "STREAM", self._set.events),
        ]  # fmt: skip
        if self._positions:
            for name, stream in zip(aw.STREAMS, self._set.streams, strict=True):
                commands.append(("XRANGE", stream, f"({self._positions[name]}", "+", "COUNT", PAGE))
        return self._store.read_together(commands)

    def _now_us(self, reply: Reply) -> int:
        if self._set.simulated is not None:
            return round(self._set.simulated.now() * US)
        server_us = gw.time_us(reply)
        if server_us is None:
            raise StoreError("other", "the server does not tell its time")
        return server_us

    def _opened(self, now_us: int, now: float) -> aw.Account:
        """A new account: what stands in Redis is taken over, else what the settings say is paid in."""
        s, k = self._set, self._set.names
        universe = self._universe.find(self._store, self._store.read(self._universe.query), now)
        if not universe.complete:
            raise StoreError("other", "the positions to take over are still being looked for")
        names = universe.names
        asked = ("position_amt", "entry_price")
        balance, *positions = self._store.read(
            [("HGET", k.balance, "balance"), *(("HMGET", k.position(n), *asked) for n in names)]
        )
        known = codec.number(balance) if isinstance(balance, bytes) else None
        if balance is not None and known is None:
            raise StoreError("other", f"{k.balance} cannot be read, and is not guessed at: mend it, or delete it")
        usd = s.equity_usd if known is None else known
        held = {}
        for symbol, reply in zip(names, positions, strict=True):
            if wire.absent(reply):
                continue
            told = [codec.number(r) if isinstance(r, bytes) else None for r in reply] if isinstance(reply, list) else []
            qty, entry = told if len(told) == 2 else (None, None)
            if qty is None or (qty != 0.0 and not (entry and entry > 0.0)):
                text = f"{k.position(symbol)} cannot be read, and is not guessed at: mend it, or delete it"
                raise StoreError("other", text)
            if qty != 0.0 and entry is not None:
                held[symbol] = Held(qty, entry, now_us)
        told_of = "that was there" if known is not None else "of QA_PAPER_EQUITY_USD"
        text = f"the account is opened with a balance {told_of}, {number(usd)} USD, and {len(held)} positions"
        say(log, logging.WARNING, "account", text, {"usd": usd, "positions": len(held)})
        if self._has_held:
            text = "the account that was held so far is gone from the server: this one is another"
            say(log, logging.ERROR, "account", text)
            self._has_held = False
        first = {name: self._first_id(name, now_us) for name in aw.STREAMS}
        return aw.Account(0, s.streams, first, usd, usd, held=held)

    def _first_id(self, name: str, now_us: int) -> str:
        """Where a new account begins to read: permits that may still be open, and what comes from now on."""
        if self._set.simulated is not None:
            return "0-0"
        back_s = aw.PERMIT_LIFE_S + aw.LIFE_SLACK_S if name == "events" else 0
        return f"{max(0, now_us // 1000 - back_s * 1000)}-0"

    def _seen(
        self, head: Sequence[Reply], loaded: aw.Loaded, account: aw.Account, now_us: int, connection: int
    ) -> Seen:
        s, k = self._set, self._set.names
        entries = (
            entries_of(head[HEAD:], self._set.streams, now_us, aw.ever_added(head[6]))
            if len(head) > HEAD
            else Entries()
        )
        if sum(one.is_outstanding for one in account.permits.permits.values()) >= OUTSTANDING_MAX:
            held_back = {name: at for name, at in entries.positions.items() if name != "events"}
            entries = replace(entries, issued=(), positions=held_back, is_more=False, events=0, added=None)
        waiting = {p: one for p, one in account.permits.permits.items() if one.stage is Stage.WAITING}
        waiting.update((p, one) for p, one in entries.issued if one.stage is Stage.WAITING and p not in waiting)
        waiting = dict(islice(sorted(waiting.items(), key=lambda pair: (pair[1].number or LAST, pair[0])), self._batch))
        symbols = sorted({*account.held, *(one.symbol for one in waiting.values())})
        commands: list[Command] = [wire.newest(k.stream("regime.state"))]
        size = head[4]
        has_map = bool(waiting) and isinstance(size, int) and size <= wire.MAP_FIELDS_LIMIT
        commands += [("HGETALL", k.clusters)] if has_map else []
        at = len(commands)
        commands += [("GET", k.permit(p)) for p in waiting]
        commands += [gw.MARKET.query(k.market(n)) for n in symbols]
        replies = self._store.read_together(commands)
        raws, markets = replies[at : at + len(waiting)], replies[at + len(waiting) :]
        now = now_us / US
        stale_s = s.params.market_stale_s
        kill = Kill.HALT if gw.is_latched(head[2]) else gw.kill_state(head[1])
        regime = wire.decode_newest(wire.REGIME, replies[0], now, LABEL_STALE_S)
        clusters = wire.decode_clusters(replies[1] if has_map else [])
        prices = {n: wire.decode(gw.MARKET, r, now, stale_s) for n, r in zip(symbols, markets, strict=True)}
        states = Counter({("regime", regime.state): 1, **({("clusters", clusters.state): 1} if has_map else {})})
        states.update(("market", price.state) for price in prices.values())
        revision = loaded.texts.get("_rev", "")
        simulated_us = None if s.simulated is None else now_us
        barred = self._memory.barred
        kill_seen, latch_seen = gw.seen_kill(head[1]), gw.seen_latch(head[2])
        basis = consume.Basis(kill_seen, latch_seen, revision, now_us, connection, simulated_us)
        return Seen(
            now_us, basis, kill, loaded, account, entries,
            frozenset(waiting),
            {p: raw for p, raw in zip(waiting, raws, strict=True) if isinstance(raw, bytes) and p not in barred},
            prices,
            (regime.value.name if isinstance(regime, Fresh) else "", clusters.of),
            _rearmed(head[5]),
            now_us >= self._marked_us + round(s.mark_every_s * US) or now_us < self._marked_us,
            states,
        )  # fmt: skip

    # ---- write

    def write(self, seen: Seen, made: Made) -> None:
        """Everything of the cycle in one script, or nothing."""
        self._refused = ""
        self._latch(seen)
        if made.is_write:
            taken = [
                consume.Taken(
                    a.inputs.plan_id, seen.raws[a.inputs.plan_id], a.inputs.until_us,
                    a.inputs.terms is not None and not a.inputs.terms.reduce_only,
                )
                for a in made.ended if a.is_consumed
            ]  # fmt: skip
            now_s = time.monotonic()
            self._spoiled = {key: until for key, until in self._spoiled.items() if now_s < until}
            writes = [e for e in effects(seen, made, self._set) if e.key not in self._spoiled]
            keys, args = consume.call(taken, writes, seen.basis, self._set.names)
            self._refused, spoiled = self._memory.run(keys, args, seen, made)
            if spoiled:
                self._leave_out(spoiled)
            elif self._said and not self._refused:
                self._written_again = frozenset(e.key for e in writes) & self._said
        if not self._refused:
            self._positions = dict(made.account.positions)
            if made.is_write:
                self._marked_us = seen.now_us
                self._idle_until = time.monotonic() + self._set.mark_every_s
        # what was just reported is read at once, so that it is reconciled
        self._is_more = (seen.entries.is_more or bool(made.ended)) and not self._refused
        self._vain = self._vain + 1 if self._refused else 0
        if self._refused == "old":
            self._batch = max(1, self._batch // 2)
        elif not self._refused:
            self._batch = min(2 * self._batch, PAGE)
        self._is_idle = not (self._refused or made.waiting or self._is_more)

    def _latch(self, seen: Seen) -> None:
        """A halt that is seen here first is latched here: no governor may have seen it when it is taken back."""
        s, k = self._set, self._set.names
        if seen.kill is not Kill.HALT or seen.basis.latch != "-":
            return
        now_s = seen.now_us // US
        args: list[str | bytes | int] = [seen.rearmed, seconds(seen.now_us), NAME, "seen by the apply layer", now_s]
        self._store.run(LATCH, [k.latch, k.rearm, s.events], [*args, s.maxlen], seen.basis.connection)

    def _leave_out(self, key: str) -> None:
        """A key of another type stops its own symbol and nothing else; ours cannot be left out."""
        k = self._set.names
        if key not in (k.balance, k.universe) and not key.startswith(k.position("")):
            text = f"{self._store.shown}: {key} holds another type of value: delete it, or name another key"
            raise StoreError("other", text)
        if key not in self._said:
            self._said.add(key)
            text = f"{key} holds another type of value and is not written: delete it"
            changed(log, logging.ERROR, text, "key", "ok", "refused", {"key": key})
        self._spoiled[key] = time.monotonic() + SPOILED_S

    # ---- what is told

    def tell(self, seen: Seen, made: Made) -> Told:
        """Metrics, alarms, and the cycle's line; an idle cycle has none."""
        m, a = self._metrics, made.account
        for state in Kill:
            m.set("quantum_alloc_kill_state", float(seen.kill is state), state.value)
        self._tell_states(seen)
        now = seen.now_us / US
        self._watch.inputs(now, seen.states, {"market": values_of(seen.prices)})
        self._watch.tell(now)
        if self._refused:
            m.add("quantum_alloc_apply_refused_total", self._refused)
            return Told("", f"the write is refused: {self._refused}" if self._vain >= REFUSED_OFTEN else "")
        for usd in seen.entries.paid_in_usd:
            text = f"{number(usd)} USD are paid into the account: the balance is {number(a.balance_usd)} USD"
            say(log, logging.WARNING, "account", text, {"usd": usd})
        for done in made.ended:
            m.add("quantum_alloc_apply_results_total", done.fate.value, done.reason.value)
            if done.fate is Fate.REFUSED:
                case = _case(done)
                text = f"the permit of plan {case['plan_id']} of {case['symbol']} is refused: {case['reason']}"
                say(log, logging.WARNING, "account", text, case)
            if done.trade is not None:
                symbol = done.inputs.symbol
                m.add("quantum_alloc_fills_total", symbol, "BUY" if done.trade.qty > 0.0 else "SELL")
                m.add(
                    "quantum_alloc_fill_notional_usd_total", symbol, amount=abs(done.trade.qty) * done.trade.price_usd
                )
                m.add("quantum_alloc_hints_applied_total", amount=done.factor != 1.0)
        if made.missed:
            text = f"{made.missed} of the governor's events were gone before they were read: their permits expire"
            say(log, logging.WARNING, "fault", text, {"count": made.missed})
        self._gauges(seen, a, made.waiting, made.missed)
        if not made.ended:
            return Told("")
        filled = [done.inputs.symbol for done in made.ended if done.trade is not None]
        unfilled = [_case(done) for done in made.ended if done.trade is None]
        fields: Fields = {"fills": len(filled), "ended": len(made.ended), "waiting": made.waiting}
        if filled:
            fields["filled"] = few(list(dict.fromkeys(filled)))
        if unfilled:
            fields["unfilled"] = unfilled[:NAMED]
        return Told("Apply cycle complete", fields={**fields, "mode": self._set.params.apply_mode})

    def _tell_states(self, seen: Seen) -> None:
        """The kill switch, and keys that are written again, when that changes."""
        if seen.kill is not self._kill:
            text = f"the kill switch is {seen.kill.value}"
            changed(log, logging.WARNING, text, "kill_switch", self._kill.value, seen.kill.value)
            self._kill = seen.kill
        for key in sorted(self._written_again):
            changed(log, logging.WARNING, f"{key} is written again", "key", "refused", "ok", {"key": key})
        self._said -= self._written_again
        self._written_again = frozenset()

    def _gauges(self, seen: Seen, a: aw.Account, waiting: int, missed: int) -> None:
        m, c = self._metrics, a.permits.counts
        m.set("quantum_alloc_symbols", len(a.held))
        m.set("quantum_alloc_balance_usd", a.balance_usd)
        m.set("quantum_alloc_realized_pnl_usd", a.realised_usd)
        m.set("quantum_alloc_fees_usd", a.fees_usd)
        m.set("quantum_alloc_permits_waiting", waiting)
        m.set("quantum_alloc_permits_outstanding", c.outstanding)
        m.add("quantum_alloc_permit_events_odd_total", amount=seen.entries.odd)
        m.add("quantum_alloc_executions_unreadable_total", amount=seen.entries.unreadable)
        m.add("quantum_alloc_permit_events_missed_total", amount=missed)
        for name, total in (
            ("quantum_alloc_fills_elsewhere_total", c.elsewhere),
            ("quantum_alloc_permits_issued_total", c.issued),
            ("quantum_alloc_permits_consumed_total", c.consumed),
            ("quantum_alloc_permits_expired_total", c.expired),
            ("quantum_alloc_fills_without_permit_total", c.without_permit),
            ("quantum_alloc_fills_above_permit_total", c.above_permit),
        ):
            m.add(name, amount=max(0.0, total - m.value(name)))
        marks = {s: h.qty * p.value for s, h in a.held.items() if isinstance(p := seen.prices.get(s), Fresh)}
        m.replace("quantum_alloc_position_usd", marks)
        wrong = c.without_permit + c.above_permit + c.elsewhere
        if wrong > max(self._without, 0):
            kinds = f"{c.without_permit} fills without a permit, {c.above_permit} above theirs, {c.elsewhere} not in"
            text = f"{kinds} the account: see 'quantum-alloc status'"
            say(log, logging.ERROR, "fault", text, {"count": wrong})
        self._without = wrong
        if (a.balance_usd < 0.0) != self._is_negative:
            self._is_negative = not self._is_negative
            text = f"the balance is {'below 0' if self._is_negative else 'above 0 again'}"
            before, after = ("ok", "negative") if self._is_negative else ("negative", "ok")
            changed(log, logging.WARNING, text, "balance", before, after, {"usd": a.balance_usd})

    @property
    def has_more(self) -> bool:
        """True while a page of some stream was full, its own reports are still to be read, or a write was refused."""
        return self._is_more or 0 < self._vain < VAIN_CYCLES

    def wait_s(self, _: float) -> float:
        """Reading waits for events; what waits for something else is looked at again after a moment."""
        return 0.0 if self._is_idle or self._is_more else AGAIN_S


def _case(done: Application) -> Case:
    """A permit that came to its end, as lines tell it."""
    return {"plan_id": done.inputs.plan_id, "symbol": done.inputs.symbol, "reason": done.reason.value}


def _rearmed(reply: Reply) -> bytes:
    told = reply[0] if isinstance(reply, list) and reply else None
    return told if isinstance(told, bytes) else b""


def build(store: Store, metrics: Metrics, settings: Set, universe: Universe) -> Cycle[None, Seen, Made]:
    """The service.

    Args:
        store: where it reads and writes.
        metrics: where it counts.
        settings: what it is set to.
        universe: symbols with a position, for an account that is opened anew.
    """
    applier = Applier(store, metrics, settings, universe)

    def decide(_: None, seen: Seen, attempt: Attempt) -> tuple[None, Made]:
        return None, step_account(seen, settings.params, settings.keys, attempt)

    return Cycle(
        name=NAME,
        mode=settings.params.apply_mode,
        interval_s=settings.mark_every_s,
        initial=None,
        read=applier.read,
        decide=decide,
        effects=lambda _seen, _made: (),
        write=applier.write,
        tell=lambda seen, made, _: applier.tell(seen, made),
        wait_s=applier.wait_s,
        more=lambda: applier.has_more,
    )


def universe_of(keys: Keys = LIVE) -> Universe:
    """Every symbol with a position, whatever universe the services are given: an account takes all of them over."""
    found = Universe(keys, (keys.position(""),), (), MOST_POSITIONS)
    found.whole = True
    return found
