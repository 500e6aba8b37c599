"""The account of the apply layer, from cycle to cycle: what was read, what comes of it, and what that writes.

    Entries   what is new in the streams                Seen   everything that one cycle read
    Made      step_account(Seen): pure                  effects(Seen, Made): all that is written, as data

Source: the project's governor, section 4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from quantum_alloc.adapters import apply_wire as aw
from quantum_alloc.adapters import consume
from quantum_alloc.adapters.clock import Clock
from quantum_alloc.adapters.effects import Delete, Effect, Failed, HashSet, Reply, StreamAdd
from quantum_alloc.adapters.keys import LIVE, Keys
from quantum_alloc.adapters.permits import SigningKey
from quantum_alloc.adapters.store import StoreError
from quantum_alloc.adapters.writes import stamp, universe_effects
from quantum_alloc.core.account import FLAT, Held
from quantum_alloc.core.apply import Application, ApplyInputs, ApplyParams, Fate, apply_permit
from quantum_alloc.core.fields import number
from quantum_alloc.core.governor_inputs import Kill
from quantum_alloc.core.isolate import Attempt
from quantum_alloc.core.limits import US
from quantum_alloc.core.reading import Fresh, Reading, missing
from quantum_alloc.core.reconcile import Known, Reconciled, SeenFill, Stage, reconcile
from quantum_alloc.core.record_apply import apply_fields

PAGE = 500
"""Entries of a stream, and permits, that one cycle takes."""
AHEAD_S = 5
"""A permit that was issued further ahead than this is none."""


@dataclass(frozen=True, slots=True)
class Set:
    """What an apply layer is set to.

    Attributes:
        params: the numbers of the rules.
        events: stream of the governor's events.
        results: stream of what became of each permit.
        executions: stream of fills.
        equity_usd: what the account is opened with where nobody has written a balance.
        mark_every_s: seconds after which positions and balance are written again.
        maxlen: about how many entries streams keep.
        keys: that may have signed permits.
        simulated: a clock in the place of the server's; None for the server's.
        once: never wait for an event.
        names: of keys.
    """

    params: ApplyParams
    events: str = LIVE.events
    results: str = LIVE.results
    executions: str = LIVE.stream("execution.result")
    equity_usd: float = 100_000.0
    mark_every_s: float = 5.0
    maxlen: int = 200_000
    keys: tuple[SigningKey, ...] = ()
    simulated: Clock | None = None
    once: bool = False
    names: Keys = LIVE

    @property
    def streams(self) -> tuple[str, ...]:
        """The streams that are followed, in the order of ``apply_wire.STREAMS``."""
        return self.events, self.results, self.executions, self.names.transfers


@dataclass(frozen=True, slots=True)
class Entries:
    """What is new in the streams that are followed.

    Attributes:
        issued: plan id and permit of each PERMIT.
        consumed: plan ids of permits that somebody reports to have used up.
        fills: of the execution stream.
        paid_in_usd: one a transfer.
        positions: stream -> id of its last entry.
        is_more: whether there is more to read at once.
        odd: PERMIT events of a time that has not come.
        events: how many entries of the stream of events there are here.
        added: how many it has ever had, where these are its last ones; None where that is not known.
        unreadable: entries of the execution stream that are no fill.
    """

    issued: tuple[tuple[str, Known], ...] = ()
    consumed: tuple[str, ...] = ()
    fills: tuple[SeenFill, ...] = ()
    paid_in_usd: tuple[float, ...] = ()
    positions: Mapping[str, str] = field(default_factory=dict)
    is_more: bool = False
    odd: int = 0
    events: int = 0
    added: int | None = None
    unreadable: int = 0

    def seen(self, before: int | None) -> tuple[int | None, int]:
        """How many events there had been by now, and how many of them were gone before they were read.

        Args:
            before: how many there had been before these.

        >>> Entries(events=2, added=7).seen(4), Entries(events=2, added=7).seen(None), Entries(events=500).seen(4)
        ((7, 1), (7, 0), (504, 0))
        """
        total = None if before is None else before + self.events
        if self.added is None:
            return total, 0
        return self.added, 0 if total is None else max(0, self.added - total)


@dataclass(frozen=True, slots=True)
class Seen:
    """Everything that one cycle read.

    Attributes:
        now_us: the clock.
        basis: what the script compares.
        kill: what the kill switch says, its latch included.
        loaded: the account as it stands.
        account: the account to go on from.
        entries: since the last ones.
        looked: plan ids of the permits that were looked for.
        raws: by plan id, those that are there.
        prices: by symbol.
        labels: regime, and cluster by symbol.
        rearmed: when the kill switch was last rearmed, as it stands; empty for never.
        is_due: whether positions and balance are to be written again.
        states: how many inputs of each kind were in which state.
    """

    now_us: int
    basis: consume.Basis
    kill: Kill
    loaded: aw.Loaded
    account: aw.Account
    entries: Entries
    looked: frozenset[str]
    raws: Mapping[str, bytes]
    prices: Mapping[str, Reading[float]]
    labels: tuple[str, Mapping[str, str]]
    rearmed: bytes
    is_due: bool
    states: Mapping[tuple[str, str], int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Made:
    """What one cycle comes to.

    Attributes:
        account: after it.
        ended: the fates that are final.
        waiting: how many permits go on waiting.
        is_write: whether there is anything to write.
        missed: events that were gone before they were read.
    """

    account: aw.Account
    ended: tuple[Application, ...] = ()
    waiting: int = 0
    is_write: bool = False
    missed: int = 0


def step_account(seen: Seen, params: ApplyParams, keys: Sequence[SigningKey], attempt: Attempt) -> Made:
    """The account after a cycle; pure.

    Args:
        seen: everything that was read.
        params: the numbers of the apply layer.
        keys: that may have signed permits.
        attempt: runs one permit's step.
    """
    before, e, now_us = seen.account, seen.entries, seen.now_us
    known = reconcile(before.permits, now_us, e.issued, e.consumed, e.fills)
    permits, held = dict(known.permits), dict(before.held)
    balance, paid_in, realised, fees = before.balance_usd, before.paid_in_usd, before.realised_usd, before.fees_usd
    for usd in e.paid_in_usd:
        balance, paid_in = balance + usd, paid_in + usd
    ended, taken, waiting = [], [], 0
    waited = {p for p, one in e.issued if one.stage is Stage.WAITING}
    waited |= {p for p, one in before.permits.permits.items() if one.stage is Stage.WAITING}
    for plan_id, one in sorted(known.permits.items(), key=lambda pair: pair[1].number):
        is_late = one.stage is Stage.EXPIRED and one.ended_us == now_us and plan_id in waited
        if one.stage is not Stage.WAITING and not is_late:
            continue
        if plan_id not in seen.looked and not is_late:
            waiting += 1
            continue
        inputs = _inputs(plan_id, one, seen, keys, held.get(one.symbol, FLAT))
        made = attempt(one.symbol, partial(apply_permit, inputs, params))
        if made is None or made.fate is Fate.WAITS:
            waiting += 1
            permits[plan_id] = replace(one, waited=one.waited if made is None else made.reason.value)
            continue
        ended.append(made)
        if made.is_consumed:
            taken.append(plan_id)
        elif not is_late:
            permits[plan_id] = replace(one, stage=Stage.REFUSED)
        if made.trade is not None:
            held[one.symbol] = made.held
            balance = made.trade.balance_usd(balance)
            realised, fees = realised + (made.trade.pnl_usd or 0.0), fees + made.trade.fee_usd
    after = reconcile(Reconciled(permits, known.counts), now_us, taken=taken)
    total, missed = e.seen(before.events_seen)
    account = aw.Account(
        before.revision, before.streams, {**before.positions, **e.positions}, balance, paid_in, realised, fees, held,
        after, total,
    )  # fmt: skip
    is_write = seen.is_due or seen.loaded.account is None or account != before
    return Made(replace(account, revision=before.revision + is_write), tuple(ended), waiting, is_write, missed)


def _inputs(plan_id: str, one: Known, seen: Seen, keys: Sequence[SigningKey], held: Held) -> ApplyInputs:
    raw = seen.raws.get(plan_id)
    read = None if raw is None else aw.terms_of(raw, plan_id, one.symbol, keys)
    terms, until_us = (None, one.until_us) if read is None else (read[0], min(read[1], one.until_us))
    price = seen.prices.get(one.symbol, missing())
    return ApplyInputs(plan_id, one.symbol, terms, seen.now_us, until_us, seen.kill, held, price, raw is not None)


def entries_of(replies: Sequence[Reply], streams: Sequence[str], now_us: int, added: int | None) -> Entries:
    """What is new in the streams.

    Args:
        replies: one page a stream.
        streams: their names, in the order of ``apply_wire.STREAMS``.
        now_us: the clock.
        added: how many entries the stream of events has ever had; None where that is not known.

    Raises:
        StoreError: one is no stream.
    """
    pages = []
    for stream, reply in zip(streams, replies, strict=True):
        if isinstance(reply, Failed) or not isinstance(reply, list):
            raise StoreError("other", f"{stream} cannot be read as a stream: delete it, or name another one")
        pages.append(reply)
    events, results, fills, transfers = pages
    positions = {n: ids[-1] for n, page in zip(aw.STREAMS, pages, strict=True) if (ids := aw.ids_of(page))}
    told = [p for e in events if (p := aw.permit_event(e)) is not None]
    issued = tuple(p for p in told if p[1].until_us <= now_us + (aw.PERMIT_LIFE_S + AHEAD_S) * US)
    of_fills = [f for e in fills if (f := aw.fill_of(e)) is not None]
    return Entries(
        issued,
        tuple(c for e in results if (c := aw.consumed_by(e)) is not None),
        tuple(of_fills),
        tuple(aw.transfer_usd(e) for e in transfers),
        positions,
        any(len(page) >= PAGE for page in pages),
        len(told) - len(issued),
        len(events),
        added if len(events) < PAGE else None,
        len(fills) - len(of_fills),
    )


def effects(seen: Seen, made: Made, s: Set) -> list[Effect]:
    """Everything that a cycle writes beside the permits that it uses up.

    Args:
        seen: everything that was read.
        made: what came of it.
        s: what the apply layer is set to.
    """
    k, now = s.names, seen.now_us / US
    out: list[Effect] = [aw.saving(k.apply_state, seen.loaded.texts, made.account)]
    out.append(HashSet(k.balance, {"balance": number(made.account.balance_usd), **stamp(now)}))
    out += universe_effects(sorted({a.inputs.symbol for a in made.ended if a.trade}), frozenset(), k)
    for symbol, held in made.account.held.items():
        price = seen.prices.get(symbol, missing())
        if isinstance(price, Fresh):
            out.append(HashSet(k.position(symbol), _position(held, price.value, now)))
        elif held.qty == 0.0:
            out.append(Delete(k.position(symbol)))  # flat, and nobody tells its price any more
    for a in made.ended:
        waited = seen.account.permits.permits.get(a.inputs.plan_id)
        told = {**apply_fields(a, s.params), "waited_for": "" if waited is None else waited.waited, **stamp(now)}
        if a.trade is not None:
            told["consumed_us"] = str(seen.now_us)
            out.append(StreamAdd(s.executions, _execution(a, seen), s.maxlen))
        out.append(StreamAdd(s.results, told, s.maxlen))
    return out


def _position(held: Held, mark_usd: float, now: float) -> dict[str, str]:
    return {
        "position_amt": number(held.qty),
        "entry_price": number(held.entry_price_usd),
        "mark_price": number(mark_usd),
        "unrealized_pnl": number(held.unrealized_pnl_usd(mark_usd)),
        "leverage": "1",
        "opened_ts": number(held.opened_us / US),
        "next_open_ts": number(held.next_open_us / US),
        **stamp(now, "ts_epoch"),
    }


def _execution(a: Application, seen: Seen) -> dict[str, str]:
    done, symbol = a.trade, a.inputs.symbol
    if done is None:
        raise ValueError("no fill")
    regime, clusters = seen.labels
    known = seen.account.permits.permits.get(a.inputs.plan_id)
    known = known or dict(seen.entries.issued)[a.inputs.plan_id]
    labels = {"regime": regime, "cluster": clusters.get(symbol, ""), "signal": known.action}
    return {
        "symbol": symbol,
        **({} if done.pnl_usd is None else {"pnl_usd": number(done.pnl_usd)}),
        "filled_qty": number(abs(done.qty)),
        "side": "BUY" if done.qty > 0.0 else "SELL",
        "price": number(done.price_usd),
        "fee_usd": number(done.fee_usd),
        "plan_id": a.inputs.plan_id,
        **{name: text for name, text in labels.items() if text},
        **stamp(seen.now_us / US),
    }
