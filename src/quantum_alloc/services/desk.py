"""``desk``: a small paper strategy that proposes plans, every 60 s.

    quantum:desk:state   a field a symbol that a plan was made for: BAR_TS AT_US of its last one

A bar leads to one plan at most. Plans and state go into one MULTI, and the state is watched from the moment it is read,
so that a crash loses and repeats nothing and a second desk's write in between refuses the cycle's. The desk remembers
nothing beside it: what it acts on is read anew in each cycle. Whether the last plan of a symbol was answered is read
before the ledgers, so that the ledger of an answered one holds its permit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from quantum_alloc.adapters import codec, governor_wire, wire
from quantum_alloc.adapters.bars import BarReader
from quantum_alloc.adapters.clock import Clock
from quantum_alloc.adapters.effects import Command, Effect, Failed, Group, HashSet, Reply, StreamAdd
from quantum_alloc.adapters.keys import LIVE, Keys
from quantum_alloc.adapters.metrics import Metrics
from quantum_alloc.adapters.store import Store, StoreError
from quantum_alloc.adapters.universe import Symbols, Universe
from quantum_alloc.adapters.wire import Fields, Schema
from quantum_alloc.adapters.writes import Target, stamp, universe_effects
from quantum_alloc.core import Bars, Fresh, Portfolio, Reading, Reason
from quantum_alloc.core.desk import (
    NO_PLAN,
    DeskCycle,
    DeskDecision,
    DeskInputs,
    DeskParams,
    LastPlan,
    desk_cycle,
    plan_id,
)
from quantum_alloc.core.fields import number
from quantum_alloc.core.isolate import Attempt
from quantum_alloc.core.limits import MARKET_STALE_S, PORTFOLIO_STALE_S, US, usage
from quantum_alloc.core.record_desk import desk_fields
from quantum_alloc.services.loop import Cycle, Told
from quantum_alloc.services.vacuity import Watch, value_of, values_of

NAME = "desk"
KEPT_BARS = 1500
POSITION_STALE_S = 60
TIME_MAX = 1e11


@dataclass(frozen=True, slots=True)
class Held:
    """A symbol's position, as the desk needs it.

    Attributes:
        qty: signed quantity; 0 is flat.
        mark_usd: its mark, above 0; None where it does not tell.
        opened_ts: unix seconds when it left zero; None where it does not tell.
        next_open_ts: unix seconds before which the apply layer fills no open of it; 0 for none.
    """

    qty: float = 0.0
    mark_usd: float | None = None
    opened_ts: float | None = None
    next_open_ts: float = 0.0


@dataclass(frozen=True, slots=True)
class Seen:
    """Everything that one cycle read.

    Attributes:
        now: the decision's clock, unix seconds.
        symbols: of this cycle.
        inputs: one entry a symbol.
        nothing: empty, or why nothing is proposed.
        looked: how many inputs of each kind were in which state.
        values: the usable ones of those that are compared.
    """

    now: float
    symbols: Symbols
    inputs: tuple[DeskInputs, ...] = ()
    nothing: str = ""
    looked: Mapping[tuple[str, str], int] = field(default_factory=dict)
    values: Mapping[str, Mapping[str, object]] = field(default_factory=dict)


def _held(f: Fields) -> Held:
    return Held(
        f.number("position_amt"),
        f.number_or_none("mark_price", 0.0, codec.USD_LIMIT) or None,
        f.number_or_none("opened_ts", 0.0, TIME_MAX),
        f.number_or_none("next_open_ts", 0.0, TIME_MAX) or 0.0,
    )


POSITION = Schema("position", "ts_epoch", ("position_amt", "mark_price", "opened_ts", "next_open_ts"), _held)


def last_plan(reply: Reply) -> LastPlan | None:
    """A symbol's field of the state, its plan not answered yet; None where it cannot be read.

    Args:
        reply: the field.

    >>> last_plan(b"1769577480.0 1769577495000001")
    LastPlan(bar_ts=1769577480.0, unanswered_us=1769577495000001)
    >>> last_plan(None), last_plan(b"1769577480.0")
    (LastPlan(bar_ts=None, unanswered_us=None), None)
    """
    if reply is None:
        return NO_PLAN
    parts = reply.split(b" ") if isinstance(reply, bytes) else []
    if len(parts) != 2 or not parts[1].isdigit() or len(parts[1]) > 18:
        return None
    bar_ts = codec.number(parts[0], 0.0, TIME_MAX)
    return None if bar_ts is None else LastPlan(bar_ts, int(parts[1]))


def position_of(there: Reply, read: Reading[Held], portfolio: Reading[Portfolio]) -> Held | None:
    """What a position is known to be: one that is absent while the portfolio is fresh is flat; None for unknown.

    Args:
        there: what EXISTS of its key was answered with.
        read: its reading.
        portfolio: of all positions.
    """
    if isinstance(read, Fresh):
        return read.value
    absent = there == 0 and read.reason is Reason.MISSING
    return Held() if absent and isinstance(portfolio, Fresh) else None


def extreme_usd(bars: Bars, held: Held) -> float | None:
    """The highest close since a long was opened, the lowest since a short was, the newest one always among them.

    Args:
        bars: of its symbol, at least one.
        held: the position; without the time when it was opened there is none.
    """
    if held.qty == 0.0 or held.opened_ts is None:
        return None
    since = bars.times > held.opened_ts - bars.bar_s
    since[-1] = True
    closes = bars.closes[since]
    return float(closes.max() if held.qty > 0.0 else closes.min())


def _time_us(reply: Reply) -> int:
    if not (isinstance(reply, list) and len(reply) == 2 and all(isinstance(r, bytes) and r.isdigit() for r in reply)):
        raise StoreError("other", "the server does not tell its time")
    s, us = (int(r) for r in reply if isinstance(r, bytes))
    return s * US + us


class _Reader:
    """Reads what a cycle decides on."""

    def __init__(
        self, store: Store, universe: Universe, params: DeskParams, keys: Keys, simulated: Clock | None
    ) -> None:
        self._store, self._universe, self._params, self._keys = store, universe, params, keys
        self._simulated = simulated
        self._bars = BarReader(keys, KEPT_BARS)
        self._looked: Counter[tuple[str, str]] = Counter()
        self._prices: dict[str, object] = {}

    def read(self) -> Seen:
        """Time and symbols, own state, bars, then everything else in one batch."""
        told, *sizes = self._store.read([("TIME",), *self._universe.query])
        now_us = _time_us(told) if self._simulated is None else round(self._simulated.now() * US)
        now = now_us / US
        symbols = self._universe.find(self._store, sizes, now)
        if not symbols.complete:
            return Seen(now, symbols, nothing="scanning")
        if not symbols.names:
            return Seen(now, symbols)
        key = self._keys.desk_state
        state = self._store.read([("UNWATCH",), ("WATCH", key), ("HMGET", key, *symbols.names)])[2]
        if not isinstance(state, list):
            code = state.code if isinstance(state, Failed) else "unexpected reply"
            return Seen(now, symbols, nothing=f"{key} cannot be read: {code}")
        last = dict(zip(symbols.names, map(last_plan, state), strict=True))
        bars = self._bars.read(self._store, symbols.names, now)
        first, *replies = self._store.read(
            [wire.PORTFOLIO.query(self._keys.portfolio), *(c for s in last for c in self._queries(s, last[s]))]
        )
        portfolio = wire.decode(wire.PORTFOLIO, first, now, PORTFOLIO_STALE_S)
        self._looked, self._prices = Counter({("portfolio", portfolio.state): 1}), {}
        width = len(replies) // len(last)
        rows = (replies[i : i + width] for i in range(0, len(replies), width))
        inputs = tuple(
            self._inputs(s, now_us, last[s], bars.get(s), portfolio, row) for s, row in zip(last, rows, strict=True)
        )
        values = {"portfolio": value_of(portfolio), "market": self._prices}
        return Seen(now, symbols, inputs, looked=self._looked, values=values)

    def _queries(self, symbol: str, last: LastPlan | None) -> list[Command]:
        """Of one symbol; whether its last plan was answered comes before its ledger."""
        keys = self._keys
        bar_ts = last.bar_ts if last is not None and last.bar_ts is not None else 0.0
        return [
            ("EXISTS", keys.tombstone(plan_id(symbol, bar_ts))),
            ("HGETALL", keys.ledger(symbol)),
            ("EXISTS", keys.position(symbol)),
            POSITION.query(keys.position(symbol)),
            wire.MARKET.query(keys.market(symbol)),
            wire.BASE_TARGET.query(keys.target(symbol)),
        ]

    def _inputs(
        self,
        symbol: str,
        now_us: int,
        last: LastPlan | None,
        bars: Bars | None,
        portfolio: Reading[Portfolio],
        replies: Sequence[Reply],
    ) -> DeskInputs:
        answered, issued, there, position, market, target = replies
        now, ledger = now_us / US, governor_wire.ledger(issued)
        read = wire.decode(POSITION, position, now, POSITION_STALE_S)
        held = position_of(there, read, portfolio)
        state = wire.decode(wire.MARKET, market, now, MARKET_STALE_S)
        self._looked.update([("position", read.state), ("market", state.state)])
        self._looked["ledger", "ok" if ledger is not None else "malformed"] += 1
        if isinstance(state, Fresh):
            self._prices[symbol] = state.value
        price, sigma = (state.value.price_usd, state.value.sigma) if isinstance(state, Fresh) else (None, None)
        closes: tuple[float, ...] = ()
        if bars is not None:
            closes = tuple(bars.closes[-self._params.channel_bars - 1 :].tolist())
        return DeskInputs(
            symbol,
            now_us,
            closes,
            None if bars is None else float(bars.times[-1]),
            None if bars is None or held is None else extreme_usd(bars, held),
            None if held is None else held.qty,
            price if held is None or held.mark_usd is None else held.mark_usd,
            wire.decode(wire.BASE_TARGET, target, now, self._params.target_stale_s),
            sigma,
            portfolio.value.drawdown if isinstance(portfolio, Fresh) else None,
            None if ledger is None else usage(ledger.issued.values(), now_us),
            0.0 if held is None else held.next_open_ts,
            LastPlan(last.bar_ts) if last is not None and answered == 1 else last,
        )


def plan_fields(made: DeskDecision, params: DeskParams) -> dict[str, str]:
    """A plan's entry; a close carries neither side nor quantity: the governor takes both from the position.

    Args:
        made: a decision with a plan.
        params: the numbers that it was made with.
    """
    opens = {
        "side": "" if made.side is None else made.side.value,
        "qty": number(made.qty),
        "kill_score": number(made.kill_score),
    }
    return {
        "plan_id": made.plan_id,
        "symbol": made.symbol,
        "action": made.action,
        "decision": "EXECUTE",
        "price": number(made.price_usd),
        **{name: text for name, text in opens.items() if text},
        "source": NAME,
        **desk_fields(made, params),
        **stamp(made.inputs.now),
    }


def effects(seen: Seen, made: DeskCycle, to: Target, plans_stream: str) -> tuple[Group, ...]:
    """Plans and what is remembered of them, in one step.

    Args:
        seen: what was read.
        made: the decisions.
        to: stream length and names.
        plans_stream: where plans go.
    """
    if not made.plans:
        return ()
    plans: list[Effect] = [StreamAdd(plans_stream, plan_fields(d, made.params), to.maxlen) for d in made.plans]
    done = {d.symbol: f"{number(d.inputs.bar_ts)} {d.inputs.now_us}" for d in made.plans}
    known = universe_effects([d.symbol for d in made.plans], seen.symbols.known, to.keys)
    return ((*known, *plans, HashSet(to.keys.desk_state, done)),)


def tell(m: Metrics, watch: Watch, seen: Seen, made: DeskCycle) -> Told:
    """Metrics and the cycle's line."""
    m.set("quantum_alloc_symbols", len(seen.inputs))
    m.set("quantum_alloc_refused_names", seen.symbols.refused)
    m.set("quantum_alloc_dropped_symbols", seen.symbols.dropped)
    targets = {i.symbol: i.target for i in seen.inputs}
    looked = Counter(seen.looked)
    looked.update(("target", r.state) for r in targets.values())
    watch.inputs(seen.now, looked, {**seen.values, "target": values_of(targets)})
    watch.tell(seen.now)
    for d in made.decisions:
        if d.is_plan:
            m.add("quantum_alloc_desk_plans_total", d.action)
        else:
            m.add("quantum_alloc_desk_quiet_total", d.reason.value)
    return Told("Desk cycle complete", seen.nothing, {"symbols": len(made.decisions), "plans": len(made.plans)})


def build(
    store: Store,
    metrics: Metrics,
    universe: Universe,
    params: DeskParams,
    to: Target,
    plans_stream: str,
    interval_s: float,
    simulated: Clock | None = None,
) -> Cycle[None, Seen, DeskCycle]:
    """The service.

    Args:
        store: where it reads.
        metrics: where it counts.
        universe: symbols with a market state.
        params: the numbers of the desk.
        to: stream length and names.
        plans_stream: where plans go.
        interval_s: cadence.
        simulated: a clock in the place of the server's; None for the server's.
    """
    watch = Watch(metrics, "")
    reader = _Reader(store, universe, params, to.keys, simulated)

    def decide(_: None, seen: Seen, attempt: Attempt) -> tuple[None, DeskCycle]:
        return None, desk_cycle(seen.inputs, params, attempt)

    return Cycle(
        name=NAME,
        mode="",
        interval_s=interval_s,
        initial=None,
        read=lambda _: reader.read(),
        decide=decide,
        effects=lambda seen, made: effects(seen, made, to, plans_stream),
        tell=lambda seen, made, _: tell(metrics, watch, seen, made),
    )


def universe_of(keys: Keys = LIVE, fixed: tuple[str, ...] = (), limit: int = 10_000) -> Universe:
    """Symbols with a market state."""
    return Universe(keys, (keys.market(""),), fixed, limit)
