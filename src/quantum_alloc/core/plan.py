"""A plan, and what it would do to the position: open, reduce, or nothing that makes sense.

    closing action or reduceOnly, position known     side from the position, a given side that adds to it is bad
        FULL_CLOSE_PROPOSED 1.0, PARTIAL_75 0.75, PARTIAL_50 0.50, PARTIAL_25 0.25 of |position|
        reduceOnly alone                             min(qty, |position|)
    the same, position known flat                    nothing to close
    the same, position unknown                       the plan's own quantity, reduce-only; without one it is refused
    an order against the position, not past it       reduces, at its own quantity
    anything else                                    an open: needs a side, a quantity, a kill score, and an action
                                                     that does not speak of closing

What reduces is counted as a close by the rate gates and is never blocked by gates 0, 0.5, 1 and 4.
Source: the project's governor, section 1.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import StrEnum

from quantum_alloc.core.fields import number

FULL_CLOSE = "FULL_CLOSE_PROPOSED"
CLOSING_SHARE = {FULL_CLOSE: 1.0, "PARTIAL_75": 0.75, "PARTIAL_50": 0.5, "PARTIAL_25": 0.25}
"""Share of the position that each closing action closes."""
CLOSING_WORDS = ("CLOSE", "EXIT", "REDUCE", "FLATTEN")
"""What an action of another name must not contain where its order would open."""


class Side(StrEnum):
    """Direction of an order."""

    BUY = "BUY"
    SELL = "SELL"

    @property
    def sign(self) -> float:
        """1 for BUY, -1 for SELL."""
        return 1.0 if self is Side.BUY else -1.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What a strategy proposes.

    Attributes:
        plan_id: its id.
        symbol: the symbol; for a plan with a flaw as it could be shown.
        action: a word; some close (``CLOSING_SHARE``).
        ts: its time, unix seconds.
        side: BUY or SELL, None where it does not say.
        qty: above 0, None where it does not say.
        price_usd: above 0, None where it does not say.
        kill_score: at least 0, None where it does not say.
        reduce_only: True when it may only reduce.
        flaw: empty, or the field that is missing or malformed; then nothing else of it counts.
        content: what makes it the same plan; made of symbol, action, side, qty and reduce_only where not given.
    """

    plan_id: str
    symbol: str
    action: str
    ts: float
    side: Side | None = None
    qty: float | None = None
    price_usd: float | None = None
    kill_score: float | None = None
    reduce_only: bool = False
    flaw: str = ""
    content: str = ""

    def __post_init__(self) -> None:
        """Make the content where it was not given."""
        if not self.content:
            side = "" if self.side is None else self.side.value
            own = content_of(self.symbol, self.action, side, number(self.qty), str(int(self.reduce_only)))
            object.__setattr__(self, "content", own)

    @property
    def closes(self) -> bool:
        """True when it says itself that it closes."""
        return self.reduce_only or self.action in CLOSING_SHARE


def content_of(*parts: str) -> str:
    """What makes a plan the same plan, in 16 hexadecimal digits.

    Args:
        parts: symbol, action, side, quantity and reduceOnly, as text.

    >>> content_of("BTCUSDT", "ENTRY", "BUY", "0.5", "0")
    '799027f0fe706307'
    """
    return hashlib.sha256("\x1f".join(parts).encode("utf-8", "backslashreplace")).hexdigest()[:16]


class Movement(StrEnum):
    """What a plan does to the position."""

    OPEN = "open"
    CLOSE = "close"


@dataclass(frozen=True, slots=True)
class Order:
    """What a plan comes to at a position.

    Attributes:
        movement: which limits count it.
        reduces: True where gates 0, 0.5, 1 and 4 never block it.
        side: of the order; None where neither plan nor position tells.
        qty: of the order, at least 0.
        trouble: empty, or why there is no order: bad_plan, nothing_to_close, position_unknown.
        detail: what is wrong, for people.
    """

    movement: Movement
    reduces: bool
    side: Side | None
    qty: float
    trouble: str = ""
    detail: str = ""


def order_of(plan: Plan, position_qty: float | None, *, needs_kill_score: bool = True) -> Order:
    """What a plan comes to at a position.

    Args:
        plan: without a flaw.
        position_qty: signed; 0 is known flat, None unknown.
        needs_kill_score: whether an open without a kill score is refused.

    >>> order_of(Plan("p1", "BTCUSDT", "PARTIAL_25", 0.0), -2.0)
    Order(movement=<Movement.CLOSE: 'close'>, reduces=True, side=<Side.BUY: 'BUY'>, qty=0.5, trouble='', detail='')
    """
    if plan.closes:
        return _close(plan, position_qty)
    if plan.side is None or plan.qty is None:
        return Order(Movement.OPEN, False, plan.side, 0.0, "bad_plan", "side" if plan.side is None else "qty")
    against = position_qty is not None and position_qty * plan.side.sign < 0.0
    if against and position_qty is not None and plan.qty <= abs(position_qty):
        return Order(Movement.CLOSE, True, plan.side, plan.qty)
    if any(word in plan.action.upper() for word in CLOSING_WORDS):
        return Order(Movement.OPEN, False, plan.side, plan.qty, "bad_plan", "action: it says close and would open")
    if needs_kill_score and plan.kill_score is None:
        return Order(Movement.OPEN, False, plan.side, plan.qty, "bad_plan", "kill_score")
    return Order(Movement.OPEN, False, plan.side, plan.qty)


def _close(plan: Plan, position_qty: float | None) -> Order:
    share = CLOSING_SHARE.get(plan.action)
    if share is None and plan.qty is None:  # how much is not for us to guess
        return Order(Movement.CLOSE, position_qty != 0.0, plan.side, 0.0, "bad_plan", "qty")
    if position_qty is None:
        if plan.qty is None:
            return Order(Movement.CLOSE, True, plan.side, 0.0, "position_unknown")
        return Order(Movement.CLOSE, True, plan.side, plan.qty)
    if position_qty == 0.0:
        return Order(Movement.CLOSE, False, plan.side, 0.0, "nothing_to_close")
    side = Side.SELL if position_qty > 0.0 else Side.BUY
    if plan.side not in (None, side):
        return Order(Movement.CLOSE, True, plan.side, 0.0, "bad_plan", "side: it would add to the position")
    held = abs(position_qty)
    own = plan.qty if plan.qty is not None else held
    return Order(Movement.CLOSE, True, side, held * share if share is not None else min(own, held))
