"""Performance attribution (P3.0): how well a symbol's executions have paid.

    alpha            = tanh(mean_pnl / (2 PNL_SCALE_USD)), mean over the last LOOKBACK_WINDOW executions with a PnL
    alpha_score      = EWMA(alpha, EWMA_ALPHA), its first value alpha itself; one step an execution, none a loop
    performance      = (alpha_score + 1) / 2
    confidence       = min(1, n / LOOKBACK_WINDOW), and from MAX_LKG_AGE_SEC after the last execution on falling
                       linearly to 0 at ATTRIBUTION_MAX_AGE_SEC, where nothing is published any more
    contribution     = summed PnL of a bucket / sum of absolute PnL, by regime, cluster, signal and time of day

tanh(x / 2) is 2 / (1 + exp(-x)) - 1. An execution without a PnL changes nothing here. Source: the project's rules,
section 3.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from typing import Any

from quantum_alloc.core.execution import Execution, fills_text, finite, finite_or_none, read_fills
from quantum_alloc.core.fields import compact
from quantum_alloc.core.isolate import Attempt, plainly
from quantum_alloc.core.numeric import Num, clamp01, ewma, exact_sum, smaller, tanh
from quantum_alloc.core.params import check, positive, unit_interval
from quantum_alloc.core.reading import age_s
from quantum_alloc.core.table import Explained, Table

RULES_VERSION = "p30_v1"
DROPPED_AFTER_S = 7 * 86_400
"""State without any input for so long is dropped."""
RECORDED_FILLS = 50
"""A record holds at most so many of a cycle's executions, the last ones, and the state before them."""
HOURS = ("00-06", "06-12", "12-18", "18-24")


class AttributionSource(StrEnum):
    """Whether executions are recent: LIVE, or last known good."""

    LIVE = "live"
    LKG = "LKG"


@dataclass(frozen=True, slots=True)
class AttributionParams:
    """The numbers of P3.0.

    Attributes:
        lookback_window: how many executions count.
        pnl_scale_usd: mean PnL at which alpha is 0.46, USD.
        ewma_alpha: weight of the newest alpha.
        max_lkg_age_s: seconds after the last execution from which on the source is LKG.
        attribution_max_age_s: seconds after the last execution at which publishing stops.

    Raises:
        ValueError: naming every contradiction.
    """

    lookback_window: int = 20
    pnl_scale_usd: float = 100.0
    ewma_alpha: float = 0.3
    max_lkg_age_s: int = 900
    attribution_max_age_s: int = 86_400

    def __post_init__(self) -> None:
        """Refuse contradictions."""
        check(
            (self.lookback_window >= 1, "lookback_window must be at least 1"),
            positive("pnl_scale_usd", self.pnl_scale_usd),
            unit_interval("ewma_alpha", self.ewma_alpha),
            (
                0 <= self.max_lkg_age_s < self.attribution_max_age_s,
                "0 <= max_lkg_age_s < attribution_max_age_s does not hold",
            ),
        )


DEFAULTS = AttributionParams()


@dataclass(frozen=True, slots=True)
class AttributionState:
    """What is remembered of one symbol.

    Attributes:
        window: its last executions with a PnL, in the order of the stream.
        alpha_score: None before the first.
        last_exec_ts: latest time among the executions with a PnL, unix seconds.
        seen_ts: clock of the last cycle that brought one, unix seconds.
    """

    window: tuple[Execution, ...] = ()
    alpha_score: float | None = None
    last_exec_ts: float | None = None
    seen_ts: float = 0.0

    def text(self) -> str:
        """JSON that ``of_text`` reads back bit for bit."""
        fixed = {"alpha_score": self.alpha_score, "last_exec_ts": self.last_exec_ts, "seen_ts": self.seen_ts}
        return compact(fixed)[:-1] + f',"window":{fills_text(self.window)}}}'

    @staticmethod
    def of_text(symbol: str, text: str | bytes) -> AttributionState:
        """The state that ``text`` wrote.

        Args:
            symbol: whose it is.
            text: JSON.

        Raises:
            ValueError: something else, or a number that no step gives.
        """
        data = json.loads(text)
        if not isinstance(data, dict) or data.keys() != {"alpha_score", "last_exec_ts", "seen_ts", "window"}:
            raise ValueError("not the state of an attribution")
        window = read_fills(symbol, data["window"])
        alpha, last = finite_or_none(data["alpha_score"]), finite_or_none(data["last_exec_ts"])
        if (alpha is None) != (not window) or (last is None) != (not window) or not -1.0 <= (alpha or 0.0) <= 1.0:
            raise ValueError("the state contradicts itself")
        if any(e.pnl_usd is None for e in window):
            raise ValueError("the state contradicts itself")
        return AttributionState(window, alpha, last, finite(data["seen_ts"]))


NOTHING = AttributionState()


@dataclass(frozen=True, slots=True)
class AttributionDecision(Explained):
    """One symbol's attribution, with everything that made it.

    Attributes:
        symbol: the symbol.
        performance_factor: 0..1, 0.5 neutral.
        alpha_score: -1..1.
        confidence: 0..1.
        window: executions that count.
        source: live or LKG.
        lkg_age_s: whole seconds since the last execution.
        last_exec_ts: unix seconds.
        regime_contrib: by regime, summed PnL over the sum of absolute PnL.
        cluster_contrib: by cluster.
        signal_contrib: by signal.
        time_contrib: by time of day, UTC.
        now: unix seconds.
        before: the state before ``fills``.
        fills: executions that this cycle brought, the last ones where there were many.
    """

    symbol: str
    performance_factor: float
    alpha_score: float
    confidence: float
    window: int
    source: AttributionSource
    lkg_age_s: int
    last_exec_ts: float
    regime_contrib: Mapping[str, float]
    cluster_contrib: Mapping[str, float]
    signal_contrib: Mapping[str, float]
    time_contrib: Mapping[str, float]
    now: float
    before: AttributionState
    fills: tuple[Execution, ...]


def alpha(mean_pnl_usd: Num, params: AttributionParams | None = None) -> Num:
    """tanh(mean / (2 scale)): -1..1, 0 at no PnL.

    Args:
        mean_pnl_usd: mean PnL of the executions, USD, float or array.
        params: the scale.

    >>> alpha(100.0)
    0.46211715726000974
    """
    p = params or DEFAULTS
    return tanh(mean_pnl_usd / (2.0 * p.pnl_scale_usd))


def performance(alpha_score: Num) -> Num:
    """(alpha_score + 1) / 2: 0..1, 0.5 neutral.

    Args:
        alpha_score: -1..1, float or array.

    >>> performance(0.0)
    0.5
    """
    return (alpha_score + 1.0) / 2.0


def attribution_confidence(executions: Num, age_s: Num, params: AttributionParams | None = None) -> Num:
    """min(1, n / window), falling linearly to 0 between the age of LKG and the greatest age.

    Args:
        executions: how many count, at least 0, float or array.
        age_s: seconds since the last one, float or array.
        params: window and ages.

    >>> attribution_confidence(20.0, 900.0), attribution_confidence(10.0, 43_650.0), attribution_confidence(20.0, 9e9)
    (1.0, 0.25, 0.0)
    """
    p = params or DEFAULTS
    span = float(p.attribution_max_age_s - p.max_lkg_age_s)
    return smaller(executions / p.lookback_window, 1.0) * clamp01((p.attribution_max_age_s - age_s) / span)


def advance(state: AttributionState, fill: Execution, params: AttributionParams | None = None) -> AttributionState:
    """The state after one execution; the same where it has no PnL.

    Args:
        state: of the symbol.
        fill: the execution.
        params: window, scale and weight.

    >>> state = advance(AttributionState(), Execution("BTCUSDT", 0.0, 100.0))
    >>> advance(state, Execution("BTCUSDT", 1.0)) == state, state.alpha_score
    (True, 0.46211715726000974)
    """
    if fill.pnl_usd is None:
        return state
    p = params or DEFAULTS
    window = (*state.window, fill)[-p.lookback_window :]
    newest = alpha(exact_sum(e.pnl_usd or 0.0 for e in window) / len(window), p)
    score = newest if state.alpha_score is None else ewma(state.alpha_score, newest, p.ewma_alpha)
    last = fill.ts if state.last_exec_ts is None else max(state.last_exec_ts, fill.ts)
    return AttributionState(window, score, last, state.seen_ts)


def time_of_day(ts: float) -> str:
    """The quarter of the day, UTC.

    Args:
        ts: unix seconds.

    >>> time_of_day(0.0), time_of_day(86_399.0)
    ('00-06', '18-24')
    """
    return HOURS[math.floor(ts) % 86_400 // 21_600]


def contributions(window: Sequence[Execution], label: Callable[[Execution], str]) -> dict[str, float]:
    """Summed PnL of each bucket over the sum of absolute PnL; 0 where that is 0.

    Args:
        window: executions with a PnL.
        label: the bucket of one.

    >>> fills = [Execution("BTCUSDT", 0.0, 30.0, "TREND"), Execution("BTCUSDT", 0.0, -10.0, "CHOP")]
    >>> contributions(fills, lambda e: e.regime)
    {'CHOP': -0.25, 'TREND': 0.75}
    """
    buckets: dict[str, list[float]] = {}
    for e in window:
        buckets.setdefault(label(e), []).append(e.pnl_usd or 0.0)
    total = exact_sum(abs(e.pnl_usd or 0.0) for e in window)
    return {name: exact_sum(buckets[name]) / total if total > 0.0 else 0.0 for name in sorted(buckets)}


def attribute(
    symbol: str,
    before: AttributionState,
    fills: Sequence[Execution],
    now: float,
    params: AttributionParams | None = None,
) -> tuple[AttributionState, AttributionDecision | None]:
    """One symbol's cycle: its new executions, then what is published.

    Args:
        symbol: the symbol.
        before: its state.
        fills: its executions since, in the order of the stream.
        now: unix seconds.
        params: the numbers of P3.0.

    Returns:
        The state to remember, and the attribution; None before the first execution with a PnL, and when the last one is
        too long ago.

    >>> _, made = attribute("BTCUSDT", AttributionState(), [Execution("BTCUSDT", 0.0, 50.0)], 0.0)
    >>> made.performance_factor, made.confidence
    (0.6224593312018546, 0.05)
    """
    p = params or DEFAULTS
    state = before
    if len(before.window) > p.lookback_window:  # the setting was lowered
        state = AttributionState(
            before.window[-p.lookback_window :], before.alpha_score, before.last_exec_ts, before.seen_ts
        )
    for fill in fills[:-RECORDED_FILLS]:
        state = advance(state, fill, p)
    recorded, last = state, tuple(fills[-RECORDED_FILLS:])
    for fill in last:
        state = advance(state, fill, p)
    if any(fill.pnl_usd is not None for fill in fills):
        state = AttributionState(state.window, state.alpha_score, state.last_exec_ts, max(state.seen_ts, now))
    if state.alpha_score is None or state.last_exec_ts is None:
        return state, None
    age = max(0, age_s(state.last_exec_ts, now))
    if age >= p.attribution_max_age_s:
        return state, None
    window = state.window
    return state, AttributionDecision(
        symbol=symbol,
        performance_factor=performance(state.alpha_score),
        alpha_score=state.alpha_score,
        confidence=attribution_confidence(float(len(window)), float(age), p),
        window=len(window),
        source=AttributionSource.LKG if age >= p.max_lkg_age_s else AttributionSource.LIVE,
        lkg_age_s=age,
        last_exec_ts=state.last_exec_ts,
        regime_contrib=contributions(window, lambda e: e.regime),
        cluster_contrib=contributions(window, lambda e: e.cluster),
        signal_contrib=contributions(window, lambda e: e.signal),
        time_contrib=contributions(window, lambda e: time_of_day(e.ts)),
        now=now,
        before=recorded,
        fills=last,
    )


@dataclass(frozen=True, slots=True)
class AttributionCycle(Table):
    """One cycle's attributions.

    Attributes:
        now: unix seconds.
        params: the numbers of P3.0.
        decisions: in the order of the symbols' names.
        states: what is remembered of each symbol afterwards.
        dropped: symbols whose state is forgotten.
    """

    now: float
    params: AttributionParams
    decisions: tuple[AttributionDecision, ...]
    states: Mapping[str, AttributionState] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()

    def rows(self) -> list[dict[str, Any]]:
        """Symbol, attribution and what made it, one row a symbol."""
        names = ("symbol", "performance_factor", "alpha_score", "confidence", "window", "source", "lkg_age_s")
        return [{n: getattr(d, n) for n in names} for d in self.decisions]


def kept(seen_ts: Mapping[str, float], now: float, limit: int) -> frozenset[str]:
    """The symbols whose state stays: seen within seven days, and of those at most ``limit``, the latest.

    Args:
        seen_ts: when each had its last input, unix seconds.
        now: unix seconds.
        limit: greatest number of symbols.

    >>> sorted(kept({"A1": 0.0, "B1": 700_000.0, "C1": 800_000.0}, 800_000.0, 1))
    ['C1']
    """
    young = [s for s, ts in seen_ts.items() if now - ts <= DROPPED_AFTER_S]
    return frozenset(sorted(young, key=lambda s: (-seen_ts[s], s))[:limit])


def attribution_cycle(
    states: Mapping[str, AttributionState],
    fills: Mapping[str, Sequence[Execution]],
    now: float,
    params: AttributionParams | None = None,
    limit: int = 10_000,
    attempt: Attempt = plainly,
) -> AttributionCycle:
    """Attributions of all symbols that are remembered or have new executions.

    Args:
        states: what is remembered.
        fills: new executions by symbol, in the order of the stream.
        now: unix seconds.
        params: the numbers of P3.0.
        limit: greatest number of symbols remembered.
        attempt: how one symbol's step is run (``core.isolate``).

    >>> made = attribution_cycle({}, {"BTCUSDT": [Execution("BTCUSDT", 0.0, -100.0)]}, 0.0)
    >>> made.decisions[0].performance_factor
    0.2689414213699951
    """
    p = params or DEFAULTS
    after: dict[str, AttributionState] = {}
    decisions = []
    for symbol in sorted({*states, *fills}):
        before = states.get(symbol, NOTHING)
        made = attempt(symbol, partial(attribute, symbol, before, fills.get(symbol, ()), now, p))
        state, decision = (before, None) if made is None else made
        if state.window:
            after[symbol] = state
        if decision is not None:
            decisions.append(decision)
    stay = kept({s: state.seen_ts for s, state in after.items()}, now, limit)
    return AttributionCycle(
        now,
        p,
        tuple(d for d in decisions if d.symbol in stay),
        {s: state for s, state in after.items() if s in stay},
        tuple(sorted({*states, *after} - stay)),
    )
