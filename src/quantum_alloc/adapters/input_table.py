"""Which inputs each service looks at, whether their absence is an alarm, and whether their value ought to move.

One table, read by the metrics (a count of 0 for each from the start), the ledger of vacuity and the docs. An input that
is expected is armed wherever its service's output counts (``is_armed``): without real data for ten minutes it makes
the service blind. The others may be absent in good health, each for the reason that stands with it: that one of them is
missing counts as no look.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from quantum_alloc.core.reading import Reason

STATES = ("ok", *(reason.value for reason in Reason))
"""What may become of an input; all but ``ok`` are no real data."""


@dataclass(frozen=True, slots=True)
class Input:
    """One input of one service.

    Attributes:
        name: as the label ``input`` tells it.
        record: the row of the registry that it comes from.
        absent: why it may be absent in good health; empty where its absence is an alarm.
        constant: why its value may stand still in good health, or that it has none; empty where it ought to move.
        lapses: whether one that is out of date is as good as absent.
        rests: without which of ``MOVERS`` a value that ought to move stands still in good health; empty for none.
    """

    name: str
    record: str
    absent: str = ""
    constant: str = ""
    lapses: bool = False
    rests: str = ""

    @property
    def is_expected(self) -> bool:
        """True where its absence is an alarm."""
        return not self.absent

    @property
    def no_looks(self) -> frozenset[str]:
        """States in which there was nothing to look at."""
        if self.is_expected:
            return frozenset()
        return frozenset({Reason.MISSING.value, Reason.STALE.value} if self.lapses else {Reason.MISSING.value})


FLAT = "a symbol that is held by nobody has no position"
HINT = "a hint, which no verdict hangs on; absent while P3.1 is in shadow"
MAP = "a map of clusters stands for hours"
NOT_A_VALUE = "only whether it can be read counts"
RESTS = "what is held may rest"
POSITIONS, EXECUTIONS = "positions", "executions"
MOVERS = (POSITIONS, EXECUTIONS)
"""What moves a value that rests in a flat book, or while nothing is filled."""

INPUTS: Mapping[str, tuple[Input, ...]] = {
    "feed": (),
    "portfolio": (
        Input("balance", "balance", constant="it moves with closes and fees alone"),
        Input("position", "position", FLAT, RESTS),
        Input("peak", "peak", "there is none before the first equity", "it stands until equity is above it"),
    ),
    "regime": (Input("bars", "bars"),),
    "clusters": (
        Input("bars", "bars"),
        Input("clusters", "clusters", "its own map, absent before the first", MAP),
        Input("position", "position", FLAT, RESTS),
        Input("attribution", "attribution", "a symbol without executions has none", rests=EXECUTIONS),
    ),
    "budget": (
        Input("portfolio", "portfolio", rests=POSITIONS),
        Input("clusters", "clusters", constant=MAP),
        Input("position", "position", FLAT, RESTS),
        Input("market", "market"),
        Input("cluster", "stress", rests=POSITIONS),
    ),
    "attribution": (Input("executions", "executions", constant=NOT_A_VALUE),),
    "allocation": (
        Input("portfolio", "portfolio", rests=POSITIONS),
        Input("regime", "regimes"),
        Input("clusters", "clusters", constant=MAP),
        Input("budget", "budget"),
        Input("performance", "attribution", rests=EXECUTIONS),
        Input("cluster", "stress", rests=POSITIONS),
        Input("drawdown", "portfolio", constant="it is 0 for as long as equity rises"),
        Input("proposal", "proposed", rests=EXECUTIONS),
    ),
    "efficiency": (
        Input("executions", "executions", constant=NOT_A_VALUE),
        Input("attribution", "attribution", rests=EXECUTIONS),
        Input("target", "target"),
    ),
    "proposer": (Input("target", "target"), Input("efficiency", "efficiency", rests=EXECUTIONS)),
    "desk": (
        Input("portfolio", "portfolio", rests=POSITIONS),
        Input("position", "position", FLAT, RESTS),
        Input("market", "market"),
        Input("ledger", "ledger", constant=NOT_A_VALUE),
        Input("target", "target", "absent while P2.9 is in shadow: then the desk opens nothing"),
    ),
    "governor": (
        Input("portfolio", "portfolio", rests=POSITIONS),
        Input("position", "position", FLAT, RESTS),
        Input("market", "market"),
        Input("target", "target"),
        Input("budget", "budget"),
        Input("violation", "violations", "only what is above its budget has one", RESTS, lapses=True),
        Input("efficiency", "efficiency", HINT, rests=EXECUTIONS),
    ),
    "apply": (
        Input("regime", "regimes", "only told with a fill", "a regime may last"),
        Input("clusters", "clusters", "only told with a fill", MAP),
        Input("market", "market"),
    ),
}
"""By service: every input that ``quantum_alloc_inputs_total`` counts."""

NEVER_COUNTS = frozenset({"proposer"})
"""Services whose output counts in no mode."""


def is_armed(service: str, mode: str, row: Input, *, is_used: bool = True) -> bool:
    """Whether an input that is never real is an alarm.

    Args:
        service: its CLI name.
        mode: shadow or enforce; empty for a service without one, whose output always counts.
        row: of the service.
        is_used: False where settings leave the input out.

    >>> row = Input("budget", "budget")
    >>> is_armed("allocation", "enforce", row), is_armed("allocation", "shadow", row), is_armed("regime", "", row)
    (True, False, True)
    """
    return row.is_expected and is_used and mode != "shadow" and service not in NEVER_COUNTS
