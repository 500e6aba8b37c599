"""The ledger of vacuity of one service: which of its inputs, and of the governor its gates, decide on real data.

Counts looks, compares values, and tells when something that counts has gone blind and when it sees again. The gauges
are worked out when they are read, by the clock of the last decision; so they hold in simulated time too.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import TypeVar

from quantum_alloc.adapters.input_table import INPUTS, is_armed
from quantum_alloc.adapters.metrics import Labels, Metrics
from quantum_alloc.core.reading import Fresh, Reading, Reason
from quantum_alloc.core.regime import STALE_BARS, STALE_S
from quantum_alloc.core.returns import Bars
from quantum_alloc.core.vacuity import BLIND_S, Constancy, Watched
from quantum_alloc.services.logs import changed

T = TypeVar("T")
INPUT, GATE = "input", "gate"
Values = Mapping[str, Mapping[str, object]]
NO_VALUES: Values = {}


class Watch:
    """What one service has looked at."""

    def __init__(self, metrics: Metrics, mode: str, *, gates: Iterable[str] = (), unused: Iterable[str] = ()) -> None:
        """Start at nothing.

        Args:
            metrics: of the service.
            mode: shadow or enforce; anything else counts.
            gates: those that are enforced.
            unused: inputs that settings leave out, or that count for nothing here.
        """
        service, left_out = metrics.service, frozenset(unused)
        self._metrics = metrics
        self._log = logging.getLogger(f"quantum_alloc.{service}")
        rows = INPUTS.get(service, ())
        inputs = [(INPUT, r.name) for r in rows if is_armed(service, mode, r, is_used=r.name not in left_out)]
        self.armed: frozenset[Labels] = frozenset([*inputs, *((GATE, name) for name in gates)])
        self._no_looks = {(r.name, state) for r in rows for state in r.no_looks}
        self._moving = frozenset(r.name for r in rows if not r.constant)
        self._watched: dict[Labels, Watched] = {}
        self._constancy: dict[str, Constancy] = {}
        self._blind: frozenset[Labels] = frozenset()
        self._now = 0.0
        metrics.at_scrape("quantum_alloc_real_data_ratio", self._ratios)
        metrics.at_scrape("quantum_alloc_real_data_age_seconds", self._ages)
        metrics.at_scrape("quantum_alloc_armed_but_blind", self._flags)
        metrics.at_scrape("quantum_alloc_input_constant_seconds", self._constant)

    def inputs(
        self, now: float, looked: Mapping[tuple[str, str], int], values: Values = NO_VALUES, due: Iterable[str] = ()
    ) -> None:
        """Count a cycle's inputs.

        Args:
            now: the decision's clock, unix seconds.
            looked: how many inputs of each name were in which state.
            values: the usable ones by input and symbol; compared where the input ought to move.
            due: inputs that the cycle would have looked at if there had been any: none at all is a look at nothing.
        """
        looks: dict[str, int] = {}
        real: dict[str, int] = {}
        for (name, state), n in looked.items():
            if n:
                self._metrics.add("quantum_alloc_inputs_total", name, state, amount=n)
                if (name, state) in self._no_looks:
                    continue
                looks[name] = looks.get(name, 0) + n
                real[name] = real.get(name, 0) + (n if state == "ok" else 0)
        for name in due:
            looks.setdefault(name, 1)
        for name, n in looks.items():
            self.look(now, INPUT, name, n, real.get(name, 0))
        for name, found in values.items():
            if name in self._moving:
                self._constancy[name] = self._constancy.get(name, _NOT_SEEN).look(now, found)

    def look(self, now: float, kind: str, name: str, looks: int, real: int) -> None:
        """Count looks at one thing.

        Args:
            now: the decision's clock, unix seconds.
            kind: gate or input.
            name: its id.
            looks: how many.
            real: how many of them on real data.
        """
        key = (kind, name)
        self._watched[key] = self._watched.get(key, _NOT_LOOKED).look(now, looks, real)

    def tell(self, now: float) -> None:
        """Go on to a clock, and tell of what has gone blind, or sees again.

        Args:
            now: the decision's clock, unix seconds.
        """
        self._now = now
        blind = frozenset(key for key in self.armed & self._watched.keys() if self._watched[key].is_blind(now))
        if blind == self._blind:
            return
        for kind, name in sorted(blind - self._blind):
            text = f"{kind} {name} counts, and has had no real data for {BLIND_S / 60:g} minutes"
            changed(self._log, logging.WARNING, text, "vacuity", "ok", "blind", {"what": f"{kind} {name}"})
        for kind, name in sorted(self._blind - blind):
            text = f"{kind} {name} has real data again"
            changed(self._log, logging.WARNING, text, "vacuity", "blind", "ok", {"what": f"{kind} {name}"})
        self._blind = blind

    def _ratios(self) -> dict[Labels, float]:
        found = ((key, one.ratio(self._now)) for key, one in self._watched.copy().items())
        return {key: ratio for key, ratio in found if ratio is not None}

    def _ages(self) -> dict[Labels, float]:
        found = ((key, one.age_s(self._now)) for key, one in self._watched.copy().items())
        return {key: age for key, age in found if age is not None}

    def _flags(self) -> dict[Labels, float]:
        watched = self._watched.copy()
        return {key: float(watched.get(key, _NOT_LOOKED).is_blind(self._now)) for key in sorted(self.armed)}

    def _constant(self) -> dict[Labels, float]:
        found = ((name, one.constant_s) for name, one in self._constancy.copy().items())
        return {(name,): constant for name, constant in found if constant is not None}


_MISSING = Reason.MISSING.value
_NOT_LOOKED, _NOT_SEEN = Watched(), Constancy()


def value_of(reading: Reading[T]) -> dict[str, object]:
    """The value of an input that all symbols share, for ``Watch.inputs``.

    Args:
        reading: of the input.
    """
    return {"": reading.value} if isinstance(reading, Fresh) else {}


def values_of(readings: Mapping[str, Reading[T]]) -> dict[str, object]:
    """The values of an input of many symbols, for ``Watch.inputs``.

    Args:
        readings: by symbol.
    """
    return {symbol: one.value for symbol, one in readings.items() if isinstance(one, Fresh)}


def bars_seen(bars: Mapping[str, Bars], names: Iterable[str], now: float) -> tuple[dict[tuple[str, str], int], Values]:
    """How many symbols have bars that the regime would count, and the newest close of each.

    Args:
        bars: by symbol, as read.
        names: symbols that were looked for.
        now: unix seconds.
    """
    looked: dict[tuple[str, str], int] = {}
    closes: dict[str, object] = {}
    for symbol in names:
        one, state = bars.get(symbol), _MISSING
        if one is not None and one.times.size:
            is_young = now - float(one.times[-1]) <= max(STALE_S, STALE_BARS * float(one.bar_s[-1]))
            state = "ok" if is_young else Reason.STALE.value
            if is_young:
                closes[symbol] = float(one.closes[-1])
        looked["bars", state] = looked.get(("bars", state), 0) + 1
    return looked, {"bars": closes}
