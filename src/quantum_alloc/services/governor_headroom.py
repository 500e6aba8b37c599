"""How much of each limit the governor's symbols have used: the gauge, and a line where little is left.

Windows and cooldown loosen with time and are worked out when they are read, by the clock of the last cycle; the rest is
what the last plan found that the gate looked at, for an hour.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from quantum_alloc.adapters.metrics import Labels, Metrics
from quantum_alloc.core.governor_params import GATES, GovernorParams
from quantum_alloc.core.headroom import KEPT_S, WARN_ENDS, WARN_USED, WARNED, is_warned, of_checks, of_windows
from quantum_alloc.core.limits import HOUR_S, US
from quantum_alloc.core.plan import Movement
from quantum_alloc.core.verdicts import Block, Permit
from quantum_alloc.services.logs import Fields, changed

log = logging.getLogger("quantum_alloc.governor")
NAMES: Mapping[str, str] = {gate.gate: gate.name for gate in GATES}
FORGET_EVERY_US = 60 * US
LINES_AN_HOUR = 20


@dataclass(slots=True)
class _Used:
    """What is remembered of one symbol."""

    at_us: int
    shares: dict[str, tuple[float, int]] = field(default_factory=dict)
    opens_us: tuple[int, ...] = ()
    closes_us: tuple[int, ...] = ()
    last_us: int | None = None


class Headroom:
    """What verdicts have told of limits."""

    def __init__(self, metrics: Metrics, params: GovernorParams, symbols_max: int) -> None:
        """Start at nothing.

        Args:
            metrics: of the governor.
            params: its limits.
            symbols_max: so many symbols are remembered.
        """
        self._metrics, self._params, self._symbols_max = metrics, params, symbols_max
        self._of: dict[str, _Used] = {}
        self._all: dict[str, tuple[float, int]] = {}
        self._new: set[str] = set()
        self._short: frozenset[tuple[str, str]] = frozenset()
        self._told = self._told_since_us = 0
        self._now_us = self._looked_us = self._forgot_us = 0
        metrics.at_scrape("quantum_alloc_limit_used_ratio", self._gauge)

    def see(self, made: Permit | Block) -> None:
        """Remember what a verdict tells.

        Args:
            made: of a plan without a flaw.
        """
        symbol, now_us, use = made.plan.symbol, made.inputs.now_us, made.inputs.usage
        if symbol not in self._of and len(self._of) >= self._symbols_max:
            return
        one = self._of.setdefault(symbol, _Used(now_us))
        one.at_us = now_us
        found = {gate: (share, now_us) for gate, share in of_checks(made.checks).items()}
        one.shares = {**one.shares, **found}  # never changed in place: the gauge is read in another thread
        self._all.update({gate: told for gate, told in found.items() if WARNED.get(gate) is False})
        if use is not None:
            one.opens_us, one.closes_us, one.last_us = use.opens_us, use.closes_us, use.last_us
            if isinstance(made, Permit):
                one.last_us = now_us
                if made.movement is Movement.OPEN:
                    one.opens_us = (*one.opens_us, now_us)
                else:
                    one.closes_us = (*one.closes_us, now_us)
        self._new.add(symbol)

    def tell(self, now_us: int) -> None:
        """Go on to a clock, and tell of limits that are nearly used up, or no more.

        Args:
            now_us: the decision's clock, microseconds.
        """
        self._now_us = now_us
        if abs(now_us - self._forgot_us) >= FORGET_EVERY_US:
            self._forgot_us = now_us
            for symbol in [s for s, one in self._of.items() if not 0 <= now_us - one.at_us < KEPT_S * US]:
                del self._of[symbol]
        is_due = bool(self._short) and abs(now_us - self._looked_us) >= US
        if not self._new and not is_due:
            return
        looked = set(self._new)
        self._new.clear()
        if is_due:
            self._looked_us = now_us
            looked |= {symbol for _, symbol in self._short}
        shares = {key: share for symbol in looked for key, share in self._warned(symbol, now_us)}
        short = frozenset(key for key, share in shares.items() if is_warned(share, key in self._short))
        short |= {key for key in self._short if key[1] and key[1] not in looked}
        self._say(sorted(short - self._short), shares, is_short=True)
        self._say(sorted(self._short - short), shares, is_short=False)
        self._short = short

    def _warned(self, symbol: str, now_us: int) -> Iterator[tuple[tuple[str, str], float]]:
        """The shares that are worth a line: the symbol's own, and those of all symbols under an empty name."""
        for gate, share in self._shares(symbol, now_us).items():
            if WARNED.get(gate):
                yield (gate, symbol), share
        for gate, (share, at_us) in self._all.items():
            if now_us - at_us < KEPT_S * US:
                yield (gate, ""), share

    def _shares(self, symbol: str, now_us: int) -> dict[str, float]:
        one = self._of.get(symbol)
        if one is None:
            return {}
        told = {gate: self._all.get(gate, share) for gate, share in one.shares.items()}
        young = {gate: share for gate, (share, at_us) in told.items() if now_us - at_us < KEPT_S * US}
        return {**young, **of_windows(one.opens_us, one.closes_us, one.last_us, now_us, self._params)}

    def _gauge(self) -> dict[Labels, float]:
        now_us = self._now_us
        shown = [symbol for symbol in list(self._of) if self._metrics.shows(symbol)]
        return {(gate, symbol): share for symbol in shown for gate, share in self._shares(symbol, now_us).items()}

    def _say(self, keys: list[tuple[str, str]], shares: Mapping[tuple[str, str], float], *, is_short: bool) -> None:
        """A line each, and not more an hour than people read."""
        before, after = ("ok", "short") if is_short else ("short", "ok")
        end = f"used to {WARN_USED * 100:g} % or more" if is_short else f"used to less than {WARN_ENDS * 100:g} % again"
        if keys and not 0 <= self._now_us - self._told_since_us < HOUR_S * US:
            self._told_since_us, self._told = self._now_us, 0
        for key in keys:
            self._told += 1
            if self._told > LINES_AN_HOUR:
                continue
            gate, symbol = key
            told: Fields = {"gate": gate, "used": shares.get(key, 0.0)}
            if symbol:
                told["symbol"] = symbol
            of = f" of {symbol}" if symbol else ""
            text = f"the limit of gate {gate}, {NAMES[gate]},{of} is {end}"
            if self._told == LINES_AN_HOUR:
                text = f"{text}; more are not told for an hour: see 'quantum-alloc status'"
            changed(log, logging.WARNING, text, "headroom", before, after, told)
