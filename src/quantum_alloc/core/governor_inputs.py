"""What the governor decides on: the inputs of one plan's verdict, and the snapshot of a batch that they come from.

Source: the project's governor, sections 1 and 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from quantum_alloc.core.limits import BookUse, Ledger, Outstanding, Usage
from quantum_alloc.core.plan import Plan
from quantum_alloc.core.proposal import Efficiency
from quantum_alloc.core.reading import Lane, Reading, Reason, Unusable


class Kill(StrEnum):
    """What the kill switch says, its latch included."""

    OFF = "OFF"
    REDUCE_ONLY = "REDUCE_ONLY"
    HALT = "HALT"


@dataclass(frozen=True, slots=True)
class Holding:
    """A symbol's position, as the governor needs it.

    Attributes:
        qty: signed quantity; 0 is flat.
        mark_usd: its mark, above 0; None where it does not tell.
    """

    qty: float
    mark_usd: float | None = None


@dataclass(frozen=True, slots=True)
class Limit:
    """A budget or a target, as a limit.

    Attributes:
        usd: USD.
        mode: of its writer; only ``enforce`` limits anything.
        confidence: 0..1, None where it does not tell; no gate looks at it.
    """

    usd: float
    mode: str
    confidence: float | None = None


@dataclass(frozen=True, slots=True)
class Totals:
    """What all positions come to.

    Attributes:
        notional_usd: sum of |notional|, USD.
        count: symbols with a position.
    """

    notional_usd: float
    count: int


@dataclass(frozen=True, slots=True)
class Inputs:
    """Everything that one plan's verdict is made from.

    Attributes:
        plan: the plan.
        now_us: the decision's clock, microseconds.
        kill: what the kill switch says.
        hold: empty, or why no open is permitted: recovery_hold, clock_unstable.
        hold_until_us: when the hold ends at the earliest, where that is known.
        position: missing is unknown; a symbol that is known flat has a quantity of 0.
        market_usd: price of the market state.
        target: the allocation target.
        budget: the base budget.
        violation_usd: greatest notional that a young violation of the budget tells of.
        usage: what the limits of the symbol have counted; None where that cannot be read.
        totals: of all positions.
        book: what is outstanding; None where that cannot be read.
        efficiency: for the hint.
        eff_lane: where it came from.
    """

    plan: Plan
    now_us: int
    kill: Kill = Kill.OFF
    hold: str = ""
    hold_until_us: int | None = None
    position: Reading[Holding] = Unusable(Reason.MISSING)  # noqa: RUF009 - a frozen value
    market_usd: Reading[float] = Unusable(Reason.MISSING)  # noqa: RUF009 - a frozen value
    target: Reading[Limit] = Unusable(Reason.MISSING)  # noqa: RUF009 - a frozen value
    budget: Reading[Limit] = Unusable(Reason.MISSING)  # noqa: RUF009 - a frozen value
    violation_usd: Reading[float] = Unusable(Reason.MISSING)  # noqa: RUF009 - a frozen value
    usage: Usage | None = Usage()  # noqa: RUF009 - a frozen value
    totals: Reading[Totals] = Unusable(Reason.MISSING)  # noqa: RUF009 - a frozen value
    book: BookUse | None = BookUse()  # noqa: RUF009 - a frozen value
    efficiency: Reading[Efficiency] = Unusable(Reason.MISSING)  # noqa: RUF009 - a frozen value
    eff_lane: Lane = Lane.LIVE


@dataclass(frozen=True, slots=True)
class Answer:
    """The first answer to a plan id, as its tombstone keeps it.

    Attributes:
        verdict: PERMIT or BLOCK; empty for a tombstone that cannot be read.
        reason: ok, or why it was blocked.
        content: of the plan that it was given to.
        decision_id: of the decision.
    """

    verdict: str
    reason: str = ""
    content: str = ""
    decision_id: str = ""


@dataclass(frozen=True, slots=True)
class SymbolSnapshot:
    """What was read for one symbol.

    Attributes:
        ledger: its permits; None where they cannot be read.
        position: as read; missing where there is none.
        market_usd: price of the market state.
        target: the allocation target.
        budget: the base budget.
        violation_usd: greatest notional that a young violation tells of.
        efficiency: for the hint.
        eff_lane: where it came from.
    """

    ledger: Ledger | None = Ledger()  # noqa: RUF009 - a frozen value
    position: Reading[Holding] = Unusable(Reason.MISSING)  # noqa: RUF009 - a frozen value
    market_usd: Reading[float] = Unusable(Reason.MISSING)  # noqa: RUF009 - a frozen value
    target: Reading[Limit] = Unusable(Reason.MISSING)  # noqa: RUF009 - a frozen value
    budget: Reading[Limit] = Unusable(Reason.MISSING)  # noqa: RUF009 - a frozen value
    violation_usd: Reading[float] = Unusable(Reason.MISSING)  # noqa: RUF009 - a frozen value
    efficiency: Reading[Efficiency] = Unusable(Reason.MISSING)  # noqa: RUF009 - a frozen value
    eff_lane: Lane = Lane.LIVE


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What one round trip read.

    Attributes:
        now_us: the decision's clock, microseconds: the server's, or the watermark where that is later.
        kill: the kill switch, its latch included.
        hold: empty, or why no open is permitted.
        hold_until_us: when that ends at the earliest, where it is known.
        totals: of all positions.
        book: outstanding opens; None where they cannot be read.
        symbols: by symbol, those of the plans and of the book.
        answers: by plan id, those that have one.
        taken: plan ids with a permit that nobody here gave.
    """

    now_us: int
    kill: Kill = Kill.OFF
    hold: str = ""
    hold_until_us: int | None = None
    totals: Reading[Totals] = Unusable(Reason.MISSING)  # noqa: RUF009 - a frozen value
    book: tuple[Outstanding, ...] | None = ()
    symbols: Mapping[str, SymbolSnapshot] = field(default_factory=dict)
    answers: Mapping[str, Answer] = field(default_factory=dict)
    taken: frozenset[str] = frozenset()


NOTHING_READ = SymbolSnapshot()
