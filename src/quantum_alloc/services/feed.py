"""``feed``: candles in; market state, bars and, on paper, a book valued at the candles out.

A ``Source`` hands out one step of candles at a time. Everything is stamped with the clock: the machine's, or in the
demo the close of the candle. As soon as an apply layer holds the account, the book here is at rest. A feed that starts
again takes up its tapes from the bars that it has written, where those come before its candles: in the demo, and not
where old candles are replayed at the wall clock's pace. A step whose write was cut is published by the next cycle, or
passed where its bars are found to stand: the newest one tells. Between two bars the market states and positions of the
symbols whose candles still come are written again every 10 s, so that they stay fresh; a symbol that has ended is left
to grow old.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from quantum_alloc.adapters import wire
from quantum_alloc.adapters.bars import decode_bar
from quantum_alloc.adapters.candles import Candle, Step, is_gap
from quantum_alloc.adapters.effects import Command, Effect, Group, HashSet, Reply, StreamAdd, in_groups
from quantum_alloc.adapters.keys import Keys
from quantum_alloc.adapters.metrics import Metrics
from quantum_alloc.adapters.store import Store
from quantum_alloc.adapters.writes import BARS_MAXLEN, SYMBOLS_PER_GROUP, Target, stamp, universe_effects
from quantum_alloc.core.fields import number
from quantum_alloc.core.isolate import Attempt
from quantum_alloc.core.market import SIGMA_BARS
from quantum_alloc.core.paper import Book, Fill, Tape
from quantum_alloc.services.logs import Fields, changed
from quantum_alloc.services.loop import Cycle, Told

NAME = "feed"
log = logging.getLogger("quantum_alloc.feed")
NOTHING_BEGUN: tuple[Mapping[str, Tape], float] = ({}, 0.0)
LIVE_BARS = 3
"""A symbol without a candle for this many bars has ended, or pauses."""


class Source(Protocol):
    """Where steps come from."""

    def take(self, now: float) -> Step | None:
        """The step that is due at ``now``, or None when it is only time to write again."""
        ...

    def wait_s(self, now: float) -> float:
        """Seconds until something is due."""
        ...

    @property
    def ended(self) -> bool:
        """True when no step will come any more."""
        ...


class Paced:
    """Steps at the pace of the wall clock: one every bar / speed; a gap in the candles is not waited for."""

    def __init__(
        self, steps: Iterator[Step], bar_s: float, speed: float, rewrite_s: float, due: float | None = None
    ) -> None:
        """Start with the first step, due at ``due`` or, where that is None, at once."""
        self._steps = steps
        self._every_s = bar_s / speed
        self._rewrite_s = rewrite_s
        self._due = due
        self._rewritten = 0.0
        self._next = next(steps, None)

    @property
    def ended(self) -> bool:
        """True when no step will come any more."""
        return self._next is None

    def take(self, now: float) -> Step | None:
        """The step that is due, if one is."""
        if now < self._rewritten:  # the clock was set back: what was due then is due now
            self._due = min(self._due, now) if self._due is not None else None
        self._rewritten = now
        if self._next is None or (self._due is not None and now < self._due):
            return None
        step, self._next = self._next, next(self._steps, None)
        # never in a hurry to make up for lost time
        self._due = max((self._due if self._due is not None else now) + self._every_s, now)
        return step

    def wait_s(self, now: float) -> float:
        """Seconds until the next step or the next time to write again."""
        rewrite = min(self._rewritten + self._rewrite_s - now, self._rewrite_s)
        return rewrite if self._due is None or self._next is None else min(rewrite, self._due - now)


@dataclass(frozen=True, slots=True)
class Seen:
    """What one cycle has to go on."""

    now: float
    step: Step | None
    ended: bool
    paper: bool = True
    tapes: Mapping[str, Tape] = field(default_factory=dict)
    stands: State | None = None


@dataclass(frozen=True, slots=True)
class State:
    """What is remembered: a tape a symbol, the book, and the time of the newest bar."""

    book: Book
    tapes: Mapping[str, Tape] = field(default_factory=dict)
    newest: float = 0.0


@dataclass(frozen=True, slots=True)
class Made:
    """What one cycle publishes."""

    now: float
    state: State
    fresh: tuple[str, ...]
    bars: Mapping[str, tuple[float, float, float]]
    gaps: int
    fills: tuple[Fill, ...] = ()


def step_feed(state: State, seen: Seen) -> tuple[State, Made]:
    """The tapes and the book after a step; without one, what is still alive is published again."""
    state = state if seen.stands is None else seen.stands
    if seen.step is None:
        alive = () if seen.ended else _alive(state)
        return state, Made(seen.now, state, alive, {}, 0)
    tapes, gaps = {**seen.tapes, **state.tapes}, 0
    bars: dict[str, tuple[float, float, float]] = {}
    for c in seen.step.candles:
        before = tapes.get(c.symbol)
        if before is None:
            tapes[c.symbol] = Tape(c.close, c.close_time, c.bar_s)
        else:
            gap = is_gap(before.close_time, c)
            gaps += gap
            tapes[c.symbol] = before.next(c.close, c.close_time, c.bar_s, gap=gap)
        bars[c.symbol] = (c.close, c.volume, c.bar_s)
    book, fills = state.book.trade({s: close for s, (close, _, _) in bars.items()} if seen.paper else {})
    after = State(book, tapes, seen.step.close_time)
    return after, Made(seen.now, after, tuple(sorted(bars)), bars, gaps, fills)


def tape_of(reply: Reply, candle: Candle) -> Tape | None:
    """The tape that a symbol's stream of bars holds; None where the candle does not come after it.

    Args:
        reply: the newest bars, newest first.
        candle: the symbol's next candle.
    """
    found = [decode_bar(entry) for entry in reversed(reply)] if isinstance(reply, list) else []
    bars = [bar for bar in found if bar is not None]
    if not bars or bars[-1][0] >= candle.close_time:
        return None
    ts, close, bar_s = bars[0]
    tape = Tape(close, ts, bar_s)
    for ts, close, bar_s in bars[1:]:
        tape = tape.next(close, ts, bar_s, gap=is_gap(tape.close_time, Candle(candle.symbol, ts, bar_s, close, 0.0)))
    return tape


def _alive(state: State) -> tuple[str, ...]:
    return tuple(sorted(s for s, t in state.tapes.items() if t.close_time > state.newest - LIVE_BARS * t.bar_s))


def _bar(made: Made, symbol: str) -> dict[str, str]:
    close, volume, bar_s = made.bars[symbol]
    return {"close": number(close), "volume": number(volume), "bar_s": number(bar_s), **stamp(made.now, "ts")}


def _symbol_effects(made: Made, symbol: str, to: Target, *, paper: bool) -> list[Effect]:
    tape, when = made.state.tapes[symbol], stamp(made.now)
    fields = {"price": number(tape.close), "bar_s": number(tape.bar_s), **when}
    sigma = tape.sigma
    if sigma is not None:
        fields["sigma"] = number(sigma)
    effects: list[Effect] = [HashSet(to.keys.market(symbol), fields, delete=() if sigma is not None else ("sigma",))]
    if symbol in made.bars:
        effects.append(StreamAdd(to.keys.bars(symbol), _bar(made, symbol), BARS_MAXLEN))
    holding = made.state.book.holdings.get(symbol)
    if paper and holding is not None:
        position = {
            "position_amt": number(holding.qty),
            "entry_price": number(holding.entry_price_usd),
            "mark_price": number(tape.close),
            "unrealized_pnl": number(holding.unrealized_pnl_usd(tape.close)),
            "leverage": "1",
            **stamp(made.now, "ts_epoch"),
        }
        effects.append(HashSet(to.keys.position(symbol), position))
    return effects


def _execution(fill: Fill, now: float) -> dict[str, str]:
    pnl = {} if fill.pnl_usd is None else {"pnl_usd": number(fill.pnl_usd)}
    return {
        "symbol": fill.symbol,
        **pnl,
        "filled_qty": number(abs(fill.qty)),
        "side": "SELL" if fill.qty < 0.0 else "BUY",
        "price": number(fill.price_usd),
        "signal": "rebalance" if fill.pnl_usd is not None else "hold_share",
        **stamp(now),
    }


def effects(made: Made, to: Target, *, paper: bool, executions: str) -> tuple[Group, ...]:
    """The writes of a cycle; on paper the balance for as long as candles come, and the book's trades."""
    if not made.fresh:
        return ()
    groups = in_groups([_symbol_effects(made, s, to, paper=paper) for s in made.fresh], SYMBOLS_PER_GROUP)
    first: tuple[Effect, ...] = universe_effects(made.fresh, frozenset(), to.keys)
    if paper:
        first += (HashSet(to.keys.balance, {"balance": number(made.state.book.balance_usd), **stamp(made.now)}),)
        first += tuple(StreamAdd(executions, _execution(fill, made.now), to.maxlen) for fill in made.fills)
    return ((*first, *groups[0]), *groups[1:])


def tell(metrics: Metrics, seen: Seen, made: Made) -> Told:
    """Metrics and the cycle's line."""
    metrics.add("quantum_alloc_feed_candles_total", "published", amount=len(made.bars))
    metrics.add("quantum_alloc_feed_gaps_total", amount=made.gaps)
    metrics.set("quantum_alloc_symbols", len(made.state.tapes))
    metrics.set("quantum_alloc_feed_live_symbols", 0 if seen.ended and seen.step is None else len(_alive(made.state)))
    metrics.replace("quantum_alloc_price_usd", {s: t.close for s, t in made.state.tapes.items()})
    done = "the candles have ended" if seen.ended and seen.step is None else ""
    told: Fields = {"symbols": len(made.fresh), "bars": len(made.bars), "gaps": made.gaps}
    return Told("Feed cycle complete" if made.fresh else "", done, told)


def _tapes(store: Store, keys: Keys, candles: Sequence[Candle]) -> dict[str, Tape]:
    """The tapes of symbols that were not seen since the start, as far as their bars are on record."""
    replies = store.read([("XREVRANGE", keys.bars(c.symbol), "+", "-", "COUNT", SIGMA_BARS + 1) for c in candles])
    found = {c.symbol: tape_of(reply, c) for c, reply in zip(candles, replies, strict=True)}
    return {symbol: tape for symbol, tape in found.items() if tape is not None}


class _Taken:
    """Hands out a step until its bars are known to stand."""

    def __init__(self, store: Store, source: Source, keys: Keys) -> None:
        self._store, self._source, self._keys = store, source, keys
        self._step: Step | None = None
        self._sent: Made | None = None
        self._stands: State | None = None

    def take(self, now: float) -> tuple[Step | None, State | None]:
        """A step, and the state after the one before it where that was written and nobody said so."""
        if self._step is not None and self._sent is not None and self._has_arrived(self._sent):
            self._stands, self._step = self._sent.state, None
        if self._step is None:
            self._step, self._sent = self._source.take(now), None
        return self._step, self._stands

    def sent(self, made: Made) -> None:
        """What is about to be written."""
        self._sent = made

    def written(self) -> None:
        """It stands, and is remembered."""
        self._step = self._sent = self._stands = None

    def _has_arrived(self, made: Made) -> bool:
        if not made.bars:
            return False
        last = made.fresh[-1]  # of the last group: those before it stand too
        (reply,) = self._store.read([wire.newest(self._keys.bars(last))])
        newest = wire.entry_fields(reply[0]) if isinstance(reply, list) and reply else None
        return newest == {name: text.encode() for name, text in _bar(made, last).items()}


def build(
    store: Store,
    metrics: Metrics,
    source: Source,
    book: Book,
    to: Target,
    *,
    paper: bool,
    executions: str = "quantum:stream:execution.result",
    interval_s: float = 10.0,
    begun: tuple[Mapping[str, Tape], float] = NOTHING_BEGUN,
) -> Cycle[State, Seen, Made]:
    """The service.

    Args:
        store: pinged before a candle is taken.
        metrics: where it counts.
        source: where steps come from.
        book: the paper book at its start.
        to: stream lengths and names.
        paper: True when it holds the paper book.
        executions: stream of the paper book's trades.
        interval_s: seconds within which a cycle ends.
        begun: of a feed that goes on in another process: its tapes, and the time of its newest bar.
    """

    looked: set[str] = set()
    told: list[bool] = []
    taken = _Taken(store, source, to.keys)

    def read(now: float) -> Seen:
        # trouble is met before a candle is taken; an account that is opened in between refuses this cycle's write
        first: list[Command] = [("UNWATCH",), *([("WATCH", to.keys.apply_state)] if paper and not told else [])]
        held = store.read([*first, ("EXISTS", to.keys.apply_state)])[-1]
        if paper and held and not told:
            told.append(True)
            store.read([("UNWATCH",)])
            text = "the apply layer holds the account: the paper book of the feed is at rest"
            changed(log, logging.WARNING, text, "paper_book", "trades", "rests")
        elif told and not held:
            told.clear()
            text = "the account of the apply layer is gone: the paper book of the feed trades again"
            changed(log, logging.WARNING, text, "paper_book", "rests", "trades")
        step, stands = taken.take(now)
        new = [c for c in step.candles if c.symbol not in looked] if step is not None else []
        return Seen(now, step, source.ended, paper and not held, _tapes(store, to.keys, new), stands)

    def decide(state: State, seen: Seen, _: Attempt) -> tuple[State, Made]:
        return step_feed(state, seen)

    def written(seen: Seen, made: Made) -> tuple[Group, ...]:
        taken.sent(made)
        return effects(made, to, paper=seen.paper, executions=executions)

    def told_of(seen: Seen, made: Made, _: float) -> Told:
        taken.written()
        looked.update(made.bars)
        return tell(metrics, seen, made)

    return Cycle(
        name=NAME,
        mode="",
        interval_s=interval_s,
        initial=State(book, *begun),
        read=read,
        decide=decide,
        effects=written,
        tell=told_of,
        wait_s=source.wait_s,
    )
