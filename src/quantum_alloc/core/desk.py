"""The desk: a small paper strategy that opens on a breakout, closes by a trailing stop, and paces itself.

    channel      the closes of the ``channel_bars`` bars before the newest one
    exposure     |qty| x mark; where no mark is known, the newest close is taken
    stop         a long's:  close <= highest close since it was opened x (1 - stop_sigmas x sigma)
                 a short's: close >= lowest close since it was opened x (1 + stop_sigmas x sigma)

The first of these that holds:

    1  no bar, an old one, or one that a plan was made of; position, limits or own state unknown; the last plan is
       unanswered                                                                          nothing
    2  held, and the stop is hit                                                           FULL_CLOSE_PROPOSED
    3  held, and exposure > target x (1 + target_slack)                                    the smallest closing share
                                                                                           that brings it to the target
    4  close > max(channel): BREAKOUT_LONG        close < min(channel): BREAKOUT_SHORT     an open of
       min(target - exposure, trade_usd, max_notional_per_trade_usd), never against what is held

    kill score of an open = 1 - (1 - clamp01(drawdown / drawdown_full)) x (1 - clamp01(sigma / sigma_full))

What is unknown in it counts as full: whether the score is too high is the governor's business. No plan is made that the
governor's rate, burst, cooldown or daily limits would block by what is known of them, since a burst of opens disarms
it; and none while the one before it may still be answered, since what that would use up is not counted yet. A quantity
is such that neither quantity x price nor the exposure after it is above its limit by a rounding.
Source: the project's contract, sections 1 and 3, and its governor, section 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Any

from quantum_alloc.core.isolate import Attempt, plainly
from quantum_alloc.core.limits import BURST_S, HOUR_S, NO_USAGE, US, Usage
from quantum_alloc.core.numeric import clamp01
from quantum_alloc.core.params import check, positive
from quantum_alloc.core.plan import CLOSING_SHARE, FULL_CLOSE, Movement, Side
from quantum_alloc.core.reading import Fresh, Reading, Reason, Unusable, age_s
from quantum_alloc.core.table import Explained, Table

RULES_VERSION = "desk_v1"
BREAKOUT = {Side.BUY: "BREAKOUT_LONG", Side.SELL: "BREAKOUT_SHORT"}
ACTIONS = (*CLOSING_SHARE, *BREAKOUT.values())
"""Every action that a plan of the desk may have."""
_SMALLEST_FIRST = tuple(sorted(CLOSING_SHARE.items(), key=lambda pair: pair[1]))


class DeskReason(StrEnum):
    """Why there is a plan, or why there is none; a closed set, safe as a metric label."""

    STOP = "trailing_stop"
    ABOVE_TARGET = "above_target"
    BREAKOUT = "breakout"
    NO_BAR = "no_bar"
    OLD_BAR = "old_bar"
    BAR_DONE = "bar_done"
    POSITION_UNKNOWN = "position_unknown"
    STATE_UNREADABLE = "state_unreadable"
    UNANSWERED = "unanswered"
    PACED = "paced"
    NO_CHANNEL = "no_channel"
    NO_BREAKOUT = "no_breakout"
    HELD_OTHER_WAY = "held_other_way"
    NO_TARGET = "no_target"
    NO_ROOM = "no_room"


@dataclass(frozen=True, slots=True)
class DeskParams:
    """The numbers of the desk, and the governor's limits that it paces itself by.

    Attributes:
        channel_bars: bars of the channel, the newest one not among them.
        stop_sigmas: distance of the trailing stop, hourly sigmas.
        trade_usd: greatest notional of one open, USD.
        min_trade_usd: smallest notional of one open, USD.
        target_slack: share of the target that the exposure may be above it.
        drawdown_full: drawdown from which on the kill score is 1.
        sigma_full: hourly sigma from which on the kill score is 1.
        target_stale_s: greatest age of a target, seconds.
        bar_stale_s: greatest age of the newest bar, seconds.
        plan_max_age_s: seconds after which the governor answers a plan no more.
        max_exec_per_hour: opens of a symbol in 3600 s.
        max_exec_per_5min: opens of a symbol in 300 s.
        max_close_per_hour: closes of a symbol in 3600 s.
        max_close_per_5min: closes of a symbol in 300 s.
        symbol_cooldown_s: seconds from a symbol's last permit to its next open.
        max_notional_per_trade_usd: of one open, USD.
        max_reduce_notional_per_day_usd: of a symbol's partial closes in a UTC day, USD.

    Raises:
        ValueError: naming every contradiction.
    """

    channel_bars: int = 20
    stop_sigmas: float = 1.0
    trade_usd: float = 500.0
    min_trade_usd: float = 10.0
    target_slack: float = 0.05
    drawdown_full: float = 0.15
    sigma_full: float = 0.03
    target_stale_s: int = 300
    bar_stale_s: int = 180
    plan_max_age_s: int = 120
    max_exec_per_hour: int = 3
    max_exec_per_5min: int = 2
    max_close_per_hour: int = 30
    max_close_per_5min: int = 10
    symbol_cooldown_s: int = 60
    max_notional_per_trade_usd: float = 200.0
    max_reduce_notional_per_day_usd: float = 5000.0

    def __post_init__(self) -> None:
        """Refuse contradictions."""
        check(
            (self.channel_bars >= 1, "channel_bars must be at least 1"),
            positive("stop_sigmas", self.stop_sigmas),
            positive("min_trade_usd", self.min_trade_usd),
            (self.min_trade_usd <= self.trade_usd, "min_trade_usd must be at most trade_usd"),
            (self.target_slack >= 0.0, "target_slack must be at least 0"),
            positive("drawdown_full", self.drawdown_full),
            positive("sigma_full", self.sigma_full),
            positive("target_stale_s", self.target_stale_s),
            positive("bar_stale_s", self.bar_stale_s),
            positive("plan_max_age_s", self.plan_max_age_s),
            (min(self.max_exec_per_5min, self.max_exec_per_hour) >= 0, "no limit of opens may be negative"),
            (min(self.max_close_per_5min, self.max_close_per_hour) >= 0, "no limit of closes may be negative"),
            (self.symbol_cooldown_s >= 0, "symbol_cooldown_s must be at least 0"),
            (self.max_notional_per_trade_usd >= 0.0, "max_notional_per_trade_usd must be at least 0"),
        )


DEFAULTS = DeskParams()


@dataclass(frozen=True, slots=True)
class LastPlan:
    """What is remembered of a symbol's last plan.

    Attributes:
        bar_ts: close time of the bar that it was made of, unix seconds; None where there was none yet.
        unanswered_us: when it was made, where nobody has answered it, microseconds; None where somebody has.
    """

    bar_ts: float | None = None
    unanswered_us: int | None = None


NO_PLAN = LastPlan()


@dataclass(frozen=True, slots=True)
class DeskInputs:
    """What one symbol's plan is made from.

    Attributes:
        symbol: the symbol.
        now_us: the decision's clock, microseconds.
        closes: closes in the order of time, USD, above 0: the newest, and those of the channel before it.
        bar_ts: close time of the newest bar, unix seconds; None for none.
        extreme_usd: highest close since a long was opened, lowest since a short was, USD; None where it is not known.
        qty: signed position; 0 is known flat, None unknown.
        mark_usd: price that the position is valued at, above 0; None where none is known.
        target: allocation target, USD, graded by ``target_stale_s``; of any mode.
        sigma: hourly, at least 0; None where it is not known.
        drawdown: fraction of the peak, 0..1; None where it is not known.
        usage: what the governor's limits have counted; None where that cannot be read.
        next_open_ts: unix seconds before which the apply layer fills no open of it; 0 for none.
        last: its last plan; None where that cannot be read.
    """

    symbol: str
    now_us: int
    closes: tuple[float, ...] = ()
    bar_ts: float | None = None
    extreme_usd: float | None = None
    qty: float | None = None
    mark_usd: float | None = None
    target: Reading[float] = Unusable(Reason.MISSING)  # noqa: RUF009 - a frozen value
    sigma: float | None = None
    drawdown: float | None = None
    usage: Usage | None = NO_USAGE
    next_open_ts: float = 0.0
    last: LastPlan | None = NO_PLAN

    @property
    def now(self) -> float:
        """The decision's clock, unix seconds."""
        return self.now_us / US


@dataclass(frozen=True, slots=True)
class DeskDecision(Explained):
    """One symbol's plan, or none, with everything that made it.

    Attributes:
        symbol: the symbol.
        reason: why there is a plan, or why there is none.
        inputs: what it was made from.
        action: what the plan proposes; empty without one.
        side: of an open; None for a close, whose side and quantity follow from the position.
        qty: of an open, above 0.
        price_usd: of a plan; an open's is the greater of newest close and mark, a close's is the newest close.
        kill_score: of an open, 0..1.
    """

    symbol: str
    reason: DeskReason
    inputs: DeskInputs
    action: str = ""
    side: Side | None = None
    qty: float | None = None
    price_usd: float | None = None
    kill_score: float | None = None

    @property
    def is_plan(self) -> bool:
        """True when something is proposed."""
        return self.action != ""

    @property
    def plan_id(self) -> str:
        """The plan's id; empty without one."""
        ts = self.inputs.bar_ts
        return plan_id(self.symbol, ts) if self.is_plan and ts is not None else ""


@dataclass(frozen=True, slots=True)
class DeskCycle(Table):
    """One cycle of all symbols.

    Attributes:
        params: the numbers of the desk.
        decisions: in the order of the symbols' names.
    """

    params: DeskParams
    decisions: tuple[DeskDecision, ...]

    @property
    def plans(self) -> tuple[DeskDecision, ...]:
        """Those decisions that propose something."""
        return tuple(d for d in self.decisions if d.is_plan)

    def rows(self) -> list[dict[str, Any]]:
        """Symbol, reason and plan, one row a symbol."""
        names = ("symbol", "reason", "action", "side", "qty", "price_usd", "kill_score")
        return [{n: getattr(d, n) for n in names} for d in self.decisions]


def plan_id(symbol: str, bar_ts: float) -> str:
    """The id of the plan that a bar leads to: a symbol and a bar have one at most.

    Args:
        symbol: the symbol.
        bar_ts: close time of the bar, unix seconds.

    >>> plan_id("BTCUSDT", 1769577480.0)
    'desk-BTCUSDT-1769577480'
    """
    return f"desk-{symbol}-{int(bar_ts)}"


def kill_score(drawdown: float | None, sigma: float | None, params: DeskParams | None = None) -> float:
    """How much speaks against an open, 0..1; what is unknown counts as full.

    Args:
        drawdown: fraction of the peak, 0..1; None where it is not known.
        sigma: hourly, at least 0; None where it is not known.
        params: the numbers of the desk.

    >>> kill_score(0.0, 0.0), kill_score(0.075, 0.015), kill_score(0.15, 0.0), kill_score(None, 0.0)
    (0.0, 0.75, 1.0, 1.0)
    """
    p = params or DEFAULTS
    fallen = 1.0 if drawdown is None else clamp01(drawdown / p.drawdown_full)
    shaken = 1.0 if sigma is None else clamp01(sigma / p.sigma_full)
    return clamp01(1.0 - (1.0 - fallen) * (1.0 - shaken))


def closing_action(exposure_usd: float, target_usd: float) -> str:
    """The smallest closing share that brings an exposure to its target or below.

    Args:
        exposure_usd: at least 0.
        target_usd: at least 0; 0 closes the whole.

    >>> [closing_action(1000.0, usd) for usd in (750.0, 500.0, 250.0, 249.0, 0.0)]
    ['PARTIAL_25', 'PARTIAL_50', 'PARTIAL_75', 'FULL_CLOSE_PROPOSED', 'FULL_CLOSE_PROPOSED']
    """
    enough = (a for a, share in _SMALLEST_FIRST if target_usd > 0.0 and exposure_usd * (1.0 - share) <= target_usd)
    return next(enough, FULL_CLOSE)


def stop_is_hit(qty: float, close: float, extreme_usd: float | None, distance: float | None) -> bool:
    """Whether the trailing stop of a position is hit; never where it has no extreme or no distance.

    Args:
        qty: signed position, not 0.
        close: newest close, USD.
        extreme_usd: highest close of a long, lowest of a short; None where it is not known.
        distance: fraction of the extreme; None where sigma is not known.

    >>> stop_is_hit(1.0, 99.0, 100.0, 0.01), stop_is_hit(-1.0, 99.0, 100.0, 0.01), stop_is_hit(1.0, 99.0, 100.0, None)
    (True, False, False)
    """
    if extreme_usd is None or distance is None or distance <= 0.0:
        return False
    return close <= extreme_usd * (1.0 - distance) if qty > 0.0 else close >= extreme_usd * (1.0 + distance)


def _counted(times_us: Sequence[int], now_us: int, window_s: int) -> int:
    """How many lie in the window (now - W, now]; one of the future counts."""
    return sum(at > now_us - window_s * US for at in times_us)


def is_paced(movement: Movement, usage: Usage, now_us: int, params: DeskParams | None = None) -> bool:
    """Whether one more permit of a kind would be against the governor's rate, burst or cooldown limits.

    Args:
        movement: open or close.
        usage: what the limits have counted.
        now_us: microseconds.
        params: the limits.

    >>> is_paced(Movement.OPEN, Usage((0,), (), 0), 60 * US), is_paced(Movement.OPEN, Usage((0,), (), 0), 60 * US - 1)
    (False, True)
    """
    p = params or DEFAULTS
    times = usage.of(movement)
    hour, burst = _counted(times, now_us, HOUR_S), _counted(times, now_us, BURST_S)
    if movement is Movement.CLOSE:
        return hour >= p.max_close_per_hour or burst >= p.max_close_per_5min
    cools = usage.last_us is not None and now_us - usage.last_us < p.symbol_cooldown_s * US
    return cools or hour >= p.max_exec_per_hour or burst >= p.max_exec_per_5min


def _affordable(usd: float, price_usd: float) -> float:
    """A quantity whose product with the price is not above an amount, by no rounding either."""
    qty = usd / price_usd
    while qty * price_usd > usd:
        qty = math.nextafter(qty, 0.0)
    return qty


def open_qty(target_usd: float, held_qty: float, mark_usd: float, price_usd: float, params: DeskParams) -> float:
    """Quantity of an open; 0 where there is no room for one.

    Args:
        target_usd: allocation target, USD.
        held_qty: |position|.
        mark_usd: that it is valued at, USD.
        price_usd: of the open, USD.
        params: the limits.

    >>> open_qty(1000.0, 0.0, 100.0, 100.0, DEFAULTS), open_qty(1000.0, 9.5, 100.0, 100.0, DEFAULTS)
    (2.0, 0.5)
    >>> open_qty(1000.0, 9.95, 100.0, 100.0, DEFAULTS)
    0.0
    """
    usd = min(target_usd - held_qty * mark_usd, params.trade_usd, params.max_notional_per_trade_usd)
    if usd < params.min_trade_usd:
        return 0.0
    whole = _affordable(target_usd, mark_usd)
    room = whole - held_qty
    while held_qty + room > whole:
        room = math.nextafter(room, -math.inf)
    return max(0.0, min(_affordable(usd, price_usd), room))


@dataclass(frozen=True, slots=True)
class _Known:
    """What is known of a symbol that a plan may be made for."""

    close: float
    qty: float
    mark_usd: float
    usage: Usage

    @property
    def exposure_usd(self) -> float:
        return abs(self.qty) * self.mark_usd


def _known(i: DeskInputs, p: DeskParams) -> _Known | DeskReason:
    if i.bar_ts is None or not i.closes:
        return DeskReason.NO_BAR
    if age_s(i.bar_ts, i.now) > p.bar_stale_s:
        return DeskReason.OLD_BAR
    if i.qty is None:
        return DeskReason.POSITION_UNKNOWN
    if i.usage is None or i.last is None:
        return DeskReason.STATE_UNREADABLE
    if i.last.bar_ts is not None and i.bar_ts <= i.last.bar_ts:
        return DeskReason.BAR_DONE
    waits = i.last.unanswered_us is not None and i.now_us - i.last.unanswered_us <= p.plan_max_age_s * US
    close = i.closes[-1]
    return DeskReason.UNANSWERED if waits else _Known(close, i.qty, i.mark_usd or close, i.usage)


def _close(i: DeskInputs, k: _Known, p: DeskParams) -> tuple[str, DeskReason] | None:
    """Action and reason of a close; None where nothing is to be closed."""
    if k.qty == 0.0:
        return None
    if stop_is_hit(k.qty, k.close, i.extreme_usd, None if i.sigma is None else p.stop_sigmas * i.sigma):
        return FULL_CLOSE, DeskReason.STOP
    if isinstance(i.target, Fresh) and k.exposure_usd > i.target.value * (1.0 + p.target_slack):
        return closing_action(k.exposure_usd, i.target.value), DeskReason.ABOVE_TARGET
    return None


def _side(i: DeskInputs, k: _Known, p: DeskParams) -> Side | DeskReason:
    """The side of a breakout, or why there is none that may be followed."""
    channel = i.closes[-p.channel_bars - 1 : -1]
    if len(channel) < p.channel_bars:
        return DeskReason.NO_CHANNEL
    if min(channel) <= k.close <= max(channel):
        return DeskReason.NO_BREAKOUT
    side = Side.BUY if k.close > max(channel) else Side.SELL
    return DeskReason.HELD_OTHER_WAY if k.qty * side.sign < 0.0 else side


def _open(i: DeskInputs, k: _Known, p: DeskParams) -> DeskDecision:
    side = _side(i, k, p)
    if isinstance(side, DeskReason):
        return DeskDecision(i.symbol, side, i)
    if isinstance(i.target, Unusable):
        return DeskDecision(i.symbol, DeskReason.NO_TARGET, i)
    price = max(k.close, k.mark_usd)
    qty = open_qty(i.target.value, abs(k.qty), k.mark_usd, price, p)
    if qty == 0.0:
        return DeskDecision(i.symbol, DeskReason.NO_ROOM, i)
    if i.now < i.next_open_ts or is_paced(Movement.OPEN, k.usage, i.now_us, p):
        return DeskDecision(i.symbol, DeskReason.PACED, i)
    score = kill_score(i.drawdown, i.sigma, p)
    return DeskDecision(i.symbol, DeskReason.BREAKOUT, i, BREAKOUT[side], side, qty, price, score)


def propose_plan(inputs: DeskInputs, params: DeskParams | None = None) -> DeskDecision:
    """One symbol's plan, or why there is none.

    Args:
        inputs: of the symbol.
        params: the numbers of the desk.

    >>> from quantum_alloc.core.reading import fresh
    >>> flat = DeskInputs("BTCUSDT", 0, (*[100.0] * 20, 125.0), 0.0, qty=0.0, target=fresh(1000.0), sigma=0.006)
    >>> made = propose_plan(flat)
    >>> made.action, made.qty, made.price_usd, made.kill_score
    ('BREAKOUT_LONG', 1.6, 125.0, 1.0)
    >>> propose_plan(DeskInputs("BTCUSDT", 0, flat.closes, 0.0, qty=-1.0, target=fresh(1000.0))).reason.value
    'held_other_way'
    """
    p = params or DEFAULTS
    known = _known(inputs, p)
    if isinstance(known, DeskReason):
        return DeskDecision(inputs.symbol, known, inputs)
    close = _close(inputs, known, p)
    if close is None:
        return _open(inputs, known, p)
    action, reason = close
    part_usd = 0.0 if action == FULL_CLOSE else CLOSING_SHARE[action] * known.exposure_usd  # a full close passes
    beyond = part_usd > 0.0 and known.usage.day_usd + part_usd > p.max_reduce_notional_per_day_usd
    if beyond or is_paced(Movement.CLOSE, known.usage, inputs.now_us, p):
        return DeskDecision(inputs.symbol, DeskReason.PACED, inputs)
    return DeskDecision(inputs.symbol, reason, inputs, action, price_usd=known.close)


def desk_cycle(inputs: Sequence[DeskInputs], params: DeskParams | None = None, attempt: Attempt = plainly) -> DeskCycle:
    """Plans of all symbols.

    Args:
        inputs: one entry a symbol.
        params: the numbers of the desk.
        attempt: how one symbol's step is run (``core.isolate``).
    """
    p = params or DEFAULTS
    made = [attempt(one.symbol, partial(propose_plan, one, p)) for one in sorted(inputs, key=lambda i: i.symbol)]
    return DeskCycle(p, tuple(d for d in made if d is not None))
