"""The apply layer on paper: what becomes of one permit. Consumed once, filled at the market, or not at all.

    refused     malformed, signed by nobody, of another mode, or gone before its time: left to expire
    expired     its time is over before it could be filled
    waits       HALT; REDUCE_ONLY and it does not reduce; no fresh price; the extra cooldown of a hint; an open whose
                fill would be within the governor's cooldown or above its windows, counted by fills: tried again until
                it expires
    consumed    and filled, or without a fill: dry_run, nothing to close, or it would add to what it was to reduce

    close       min(computed_qty, |position|), against the position: it never adds to one and never goes past zero
    open        computed_qty x downsize factor where hints are applied, and never above computed_notional at the price
                that is paid: a market that has moved buys less, so that no limit in USD is exceeded by a fill
    cooldown    after an open with an applied hint the symbol's next one waits cooldown + extra seconds

A permit that waits is filled later than it was issued, and the windows of the governor count what was issued: so fills
are held against the limits that the permit carries, too.

A hint that was made from the shadow lane is never applied. Source: the project's governor, section 4, and rules,
section 6.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import StrEnum

from quantum_alloc.core.account import FLAT, Held, Trade, trade
from quantum_alloc.core.governor_inputs import Kill
from quantum_alloc.core.governor_params import ApplyMode
from quantum_alloc.core.limits import BURST_S, HOUR_S, MARKET_STALE_S, US
from quantum_alloc.core.params import check, positive
from quantum_alloc.core.plan import Side
from quantum_alloc.core.reading import Fresh, Reading, Reason, Unusable
from quantum_alloc.core.table import Explained

RULES_VERSION = "apply_v1"


class Fate(StrEnum):
    """What becomes of a permit in one look at it."""

    FILLED = "filled"
    VOID = "void"
    WAITS = "waits"
    REFUSED = "refused"
    EXPIRED = "expired"


class ApplyReason(StrEnum):
    """Why; a closed set, safe as a metric label."""

    OK = "ok"
    BAD_PERMIT = "bad_permit"
    MODE_MISMATCH = "mode_mismatch"
    PERMIT_EXPIRED = "permit_expired"
    PERMIT_GONE = "permit_gone"
    KILL_SWITCH = "kill_switch_active"
    REDUCE_ONLY = "reduce_only"
    DRY_RUN = "dry_run"
    PRICE_UNKNOWN = "price_unknown"
    NOTHING_TO_CLOSE = "nothing_to_close"
    WOULD_ADD = "would_add"
    EXTRA_COOLDOWN = "extra_cooldown"
    COOLDOWN = "symbol_cooldown"
    BURST = "burst_limit_exceeded"
    HOURLY = "hourly_limit_exceeded"


@dataclass(frozen=True, slots=True)
class ApplyParams:
    """The numbers of the apply layer.

    Attributes:
        apply_mode: dry_run, testnet or production; a permit of another mode is refused.
        fee_bps: hundredths of a percent of a fill's notional.
        apply_downsize: whether hints are applied to opens.
        market_stale_s: greatest age of a price, seconds.

    Raises:
        ValueError: naming every contradiction.
    """

    apply_mode: str = ApplyMode.DRY_RUN.value
    fee_bps: float = 4.0
    apply_downsize: bool = False
    market_stale_s: int = MARKET_STALE_S

    def __post_init__(self) -> None:
        """Refuse contradictions."""
        check(
            (self.apply_mode in set(ApplyMode), "apply_mode must be dry_run, testnet or production"),
            (0.0 <= self.fee_bps <= 1000.0, "fee_bps must be from 0 to 1000"),
            positive("market_stale_s", self.market_stale_s),
        )


@dataclass(frozen=True, slots=True)
class Terms:
    """What a permit permits.

    Attributes:
        qty: quantity, above 0.
        notional_usd: USD at the price that it was decided at; 0 where none was known.
        side: BUY or SELL; None for a close whose position the governor did not know.
        reduce_only: True for a close.
        apply_mode: of the governor.
        dry_run: True where it is not to be filled.
        downsizes: True where it hints at less, and the hint is not from the shadow lane.
        factor: of the hint, in (0, 1].
        extra_cooldown_s: of the hint, seconds.
        decision_id: of the governor's decision.
        limits: of opens, as the governor has them: cooldown in seconds, opens in 300 s, opens in 3600 s.
    """

    qty: float
    notional_usd: float
    side: Side | None
    reduce_only: bool
    apply_mode: str
    dry_run: bool
    downsizes: bool
    factor: float
    extra_cooldown_s: int
    decision_id: str
    limits: tuple[int, int, int] = (60, 2, 3)


@dataclass(frozen=True, slots=True)
class ApplyInputs:
    """Everything that one permit's fate is made from.

    Attributes:
        plan_id: of its plan.
        symbol: the symbol.
        terms: what it permits; None where it cannot be read or its signature is that of nobody.
        now_us: the clock, microseconds.
        until_us: when it expires, microseconds.
        kill: what the kill switch says, its latch included.
        held: what the account holds of the symbol.
        price_usd: of the market.
        is_there: False where the permit's key is gone before its time.
    """

    plan_id: str
    symbol: str
    terms: Terms | None
    now_us: int
    until_us: int
    kill: Kill = Kill.OFF
    held: Held = FLAT
    price_usd: Reading[float] = Unusable(Reason.MISSING)  # noqa: RUF009 - a frozen value
    is_there: bool = True


@dataclass(frozen=True, slots=True)
class Application(Explained):
    """What becomes of one permit.

    Attributes:
        inputs: what it was made from.
        fate: filled, void, waits, refused or expired.
        reason: why.
        factor: what the quantity was multiplied by; 1 where no hint was applied.
        trade: the fill; None for none.
        held: what the account holds of the symbol from now on.
    """

    inputs: ApplyInputs
    fate: Fate
    reason: ApplyReason
    factor: float = 1.0
    trade: Trade | None = None
    held: Held = FLAT

    @property
    def is_consumed(self) -> bool:
        """True where the permit is used up."""
        return self.fate in (Fate.FILLED, Fate.VOID)


def within(qty: float, price_usd: float, most_usd: float) -> float:
    """The greatest quantity, at most ``qty``, that costs no more than ``most_usd``.

    Args:
        qty: above 0.
        price_usd: USD, above 0.
        most_usd: USD, at least 0.

    >>> within(2.0, 100.0, 500.0), within(2.0, 100.0, 150.0)
    (2.0, 1.5)
    """
    if qty * price_usd <= most_usd:
        return qty
    less = min(qty, most_usd / price_usd)
    while less > 0.0 and less * price_usd > most_usd:
        less = math.nextafter(less, 0.0)
    return less


def _ended(i: ApplyInputs, terms: Terms, params: ApplyParams) -> tuple[Fate, ApplyReason] | None:
    """What ends it, or keeps it waiting, before any price is looked at."""
    mode = params.apply_mode
    if terms.apply_mode != mode or terms.dry_run != (mode == ApplyMode.DRY_RUN.value):
        return Fate.REFUSED, ApplyReason.MODE_MISMATCH
    if i.kill is Kill.HALT:
        return Fate.WAITS, ApplyReason.KILL_SWITCH
    if i.kill is Kill.REDUCE_ONLY and not terms.reduce_only:
        return Fate.WAITS, ApplyReason.REDUCE_ONLY
    if terms.dry_run:
        return Fate.VOID, ApplyReason.DRY_RUN
    return None


def apply_permit(inputs: ApplyInputs, params: ApplyParams | None = None) -> Application:
    """One permit's fate.

    Args:
        inputs: everything that it hangs on.
        params: the numbers of the apply layer.

    >>> terms = Terms(2.0, 200.0, Side.BUY, False, "production", False, True, 0.5, 60, "d1")
    >>> priced = ApplyInputs("p1", "BTCUSDT", terms, 0, 60 * US, price_usd=Fresh(100.0, 0.0))
    >>> apply_permit(priced, ApplyParams("production")).trade.qty
    2.0
    >>> made = apply_permit(priced, ApplyParams("production", apply_downsize=True))
    >>> made.held.qty, made.held.next_open_us
    (1.0, 120000000)
    """
    i, p = inputs, params or ApplyParams()
    if i.now_us >= i.until_us:
        return Application(i, Fate.EXPIRED, ApplyReason.PERMIT_EXPIRED, held=i.held)
    if not i.is_there:
        return Application(i, Fate.REFUSED, ApplyReason.PERMIT_GONE, held=i.held)
    terms = i.terms
    if terms is None:
        return Application(i, Fate.REFUSED, ApplyReason.BAD_PERMIT, held=i.held)
    ended = _ended(i, terms, p)
    if ended is not None:
        return Application(i, *ended, held=i.held)
    if not isinstance(i.price_usd, Fresh):
        return Application(i, Fate.WAITS, ApplyReason.PRICE_UNKNOWN, held=i.held)
    return _close(i, terms, p, i.price_usd.value) if terms.reduce_only else _open(i, terms, p, i.price_usd.value)


def _close(i: ApplyInputs, terms: Terms, p: ApplyParams, price_usd: float) -> Application:
    held = i.held
    if held.qty == 0.0:
        return Application(i, Fate.VOID, ApplyReason.NOTHING_TO_CLOSE, held=held)
    side = Side.SELL if held.qty > 0.0 else Side.BUY
    if terms.side not in (None, side):
        return Application(i, Fate.VOID, ApplyReason.WOULD_ADD, held=held)
    made = trade(held, side.sign * min(terms.qty, abs(held.qty)), price_usd, p.fee_bps, i.now_us)
    return _filled(i, made, 1.0, replace(made.after, last_fill_us=i.now_us))


def _filled(i: ApplyInputs, made: Trade, factor: float, after: Held) -> Application:
    return Application(i, Fate.FILLED, ApplyReason.OK, factor, replace(made, after=after), after)


def _too_soon(i: ApplyInputs, limits: tuple[int, int, int]) -> ApplyReason | None:
    """Which limit of opens a fill would break now, as the fills count; None for none."""
    held, now_us = i.held, i.now_us
    cooldown_s, burst, hour = limits
    if now_us < held.next_open_us:
        return ApplyReason.EXTRA_COOLDOWN
    if held.last_fill_us and now_us < held.last_fill_us + cooldown_s * US:
        return ApplyReason.COOLDOWN
    if sum(t > now_us - HOUR_S * US for t in held.opens_us) >= hour:
        return ApplyReason.HOURLY
    if sum(t > now_us - BURST_S * US for t in held.opens_us) >= burst:
        return ApplyReason.BURST
    return None


def _open(i: ApplyInputs, terms: Terms, p: ApplyParams, price_usd: float) -> Application:
    soon = _too_soon(i, terms.limits)
    if soon is not None:
        return Application(i, Fate.WAITS, soon, held=i.held)
    is_less = p.apply_downsize and terms.downsizes
    factor = terms.factor if is_less else 1.0
    qty = within(terms.qty * factor, price_usd, terms.notional_usd)
    if terms.side is None or qty <= 0.0:
        return Application(i, Fate.REFUSED, ApplyReason.BAD_PERMIT, held=i.held)
    made = trade(i.held, terms.side.sign * qty, price_usd, p.fee_bps, i.now_us)
    next_open_us = i.held.next_open_us
    if is_less:
        next_open_us = i.now_us + (terms.limits[0] + terms.extra_cooldown_s) * US
    opens_us = tuple(t for t in (*i.held.opens_us, i.now_us) if t > i.now_us - HOUR_S * US)
    after = replace(made.after, next_open_us=next_open_us, last_fill_us=i.now_us, opens_us=opens_us)
    return _filled(i, made, factor, after)
