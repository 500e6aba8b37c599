"""Capital efficiency (P3.1): how well a symbol's capital works.

On each execution with a PnL
    vol = EWMA(|pnl|, VOL_ALPHA)         dd = EWMA(max(-pnl, 0), DD_ALPHA)         both from 0, USD
each cycle
    T = max(target_usd, 1)     vol_n = vol / T     dd_n = dd / T     hold = clamp01((now - last_exec_ts) / HOLD_MAX)
    raw = pf / (1 + W_VOL vol_n + W_DD dd_n + W_HOLD hold)     score = clamp01(raw)     ewma = EWMA(score, SCORE_ALPHA)
    confidence = min(attribution's, target's), halved once by any flag
    pressure   INCREASE where ewma >= 0.65 and confidence > 0.5; else DECREASE where ewma <= 0.35 or dd_n > 0.5; HOLD
    weight     clamp(2 (ewma - 0.5), -1, 1) x confidence

A stale input keeps its value and its confidence; one that is missing, from the future, malformed or unreadable is
replaced by the last known good value with confidence 0. Each leaves a flag. With no target ever seen vol_n and dd_n
are 0; a symbol that never executed has hold 0. Source: the project's rules, section 4.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import partial
from typing import Any

from quantum_alloc.core.allocation import Attribution
from quantum_alloc.core.attribution import RECORDED_FILLS, kept
from quantum_alloc.core.execution import Execution, finite, finite_or_none
from quantum_alloc.core.isolate import Attempt, plainly
from quantum_alloc.core.numeric import Num, clamp, clamp01, ewma, step
from quantum_alloc.core.params import check, positive, unit_interval
from quantum_alloc.core.reading import Fresh, Lane, Reading, Reason, Unusable
from quantum_alloc.core.table import Explained, Table

RULES_VERSION = "p31_v1"
OUTLIER_TARGETS = 10.0
"""A PnL above so many targets is counted as an outlier; it is applied all the same."""
INCREASE_FROM, INCREASE_CONFIDENCE = 0.65, 0.5
DECREASE_TO, DECREASE_DD = 0.35, 0.5
FLAGGED = 0.5
"""What any flag multiplies the confidence by, once."""


class Pressure(StrEnum):
    """Which way capital should move."""

    INCREASE = "INCREASE"
    HOLD = "HOLD"
    DECREASE = "DECREASE"


@dataclass(frozen=True, slots=True)
class EfficiencyParams:
    """The numbers of P3.1.

    Attributes:
        vol_alpha: weight of the newest |PnL|.
        dd_alpha: weight of the newest loss.
        w_vol: weight of the volatility.
        w_dd: weight of the losses.
        w_hold: weight of the time since the last execution.
        hold_penalty_max_s: seconds without an execution at which that penalty is full.
        score_alpha: weight of the newest score.
        stale_s_p30: greatest age of an attribution, seconds.
        stale_s_p29: greatest age of a target, seconds.

    Raises:
        ValueError: naming every contradiction.
    """

    vol_alpha: float = 0.20
    dd_alpha: float = 0.20
    w_vol: float = 0.8
    w_dd: float = 1.2
    w_hold: float = 0.6
    hold_penalty_max_s: float = 3600.0
    score_alpha: float = 0.25
    stale_s_p30: int = 300
    stale_s_p29: int = 300

    def __post_init__(self) -> None:
        """Refuse contradictions."""
        check(
            unit_interval("vol_alpha", self.vol_alpha),
            unit_interval("dd_alpha", self.dd_alpha),
            unit_interval("score_alpha", self.score_alpha),
            (min(self.w_vol, self.w_dd, self.w_hold) >= 0.0, "w_vol, w_dd and w_hold must be at least 0"),
            positive("hold_penalty_max_s", self.hold_penalty_max_s),
            positive("stale_s_p30", self.stale_s_p30),
            positive("stale_s_p29", self.stale_s_p29),
        )


DEFAULTS = EfficiencyParams()


@dataclass(frozen=True, slots=True)
class AllocationTarget:
    """A symbol's target, as P2.9 published it.

    Attributes:
        target_usd: USD, at least 0.
        confidence: 0..1.
    """

    target_usd: float
    confidence: float


@dataclass(frozen=True, slots=True)
class EfficiencyState:
    """What is remembered of one symbol.

    Attributes:
        volatility_ewma: of |PnL|, USD.
        dd_proxy: EWMA of the losses, USD.
        efficiency_ewma: of the score, 0..1.
        last_exec_ts: latest execution, unix seconds; None when there never was one.
        performance: last known good performance factor, 0..1.
        target_usd: last known good target, USD; None when there never was one.
        seen_ts: clock of the last cycle with any input, unix seconds.
    """

    volatility_ewma: float = 0.0
    dd_proxy: float = 0.0
    efficiency_ewma: float = 0.5
    last_exec_ts: float | None = None
    performance: float = 0.5
    target_usd: float | None = None
    seen_ts: float = 0.0

    def text(self) -> str:
        """JSON that ``of_text`` reads back bit for bit."""
        values = (getattr(self, name) for name in _STATE_NAMES)
        numbers = ["null" if x is None else repr(float(x)) for x in values]
        if any(n[-1] in "nf" for n in numbers):  # nan, inf
            raise ValueError("the state is no number")
        return _STATE_TEXT % tuple(numbers)

    @staticmethod
    def of_text(text: str | bytes) -> EfficiencyState:
        """The state that ``text`` wrote.

        Args:
            text: JSON.

        Raises:
            ValueError: something else, or a number that no step gives.

        >>> EfficiencyState.of_text(EfficiencyState(2.5).text()) == EfficiencyState(2.5)
        True
        """
        data = json.loads(text)
        if not isinstance(data, dict) or data.keys() != set(_STATE_NAMES):
            raise ValueError("not the state of an efficiency")
        state = EfficiencyState(
            finite(data["volatility_ewma"]),
            finite(data["dd_proxy"]),
            finite(data["efficiency_ewma"]),
            finite_or_none(data["last_exec_ts"]),
            finite(data["performance"]),
            finite_or_none(data["target_usd"]),
            finite(data["seen_ts"]),
        )
        shares = (state.efficiency_ewma, state.performance)
        if min(state.volatility_ewma, state.dd_proxy, state.target_usd or 0.0, *shares) < 0.0 or max(shares) > 1.0:
            raise ValueError("the state is out of range")
        return state


_STATE_NAMES = tuple(EfficiencyState.__dataclass_fields__)
_STATE_TEXT = "{" + ",".join(f'"{name}":%s' for name in _STATE_NAMES) + "}"
NOTHING = EfficiencyState()


@dataclass(frozen=True, slots=True)
class EfficiencyInputs:
    """What one symbol's cycle has to go on.

    Attributes:
        symbol: the symbol.
        now: unix seconds.
        attribution: performance, graded by ``stale_s_p30``.
        target: target, graded by ``stale_s_p29``.
        fills: executions since the last cycle, in the order of the stream.
        attribution_lane: where the attribution was read.
        target_lane: where the target was read.
    """

    symbol: str
    now: float
    attribution: Reading[Attribution] = Unusable(Reason.MISSING)  # noqa: RUF009 - a frozen value
    target: Reading[AllocationTarget] = Unusable(Reason.MISSING)  # noqa: RUF009 - a frozen value
    fills: tuple[Execution, ...] = ()
    attribution_lane: Lane = Lane.LIVE
    target_lane: Lane = Lane.LIVE


@dataclass(frozen=True, slots=True)
class EfficiencyDecision(Explained):
    """One symbol's efficiency, with everything that made it.

    Attributes:
        symbol: the symbol.
        efficiency_score: clamp01(raw).
        efficiency_raw: before it is clamped.
        efficiency_ewma: 0..1.
        capital_pressure: INCREASE, HOLD or DECREASE.
        reallocation_weight: -1..1.
        confidence: 0..1.
        stale_flags: P30_ or P29_ and MISSING, STALE or ERROR, at most one of each.
        performance: performance factor used, 0..1.
        performance_confidence: its confidence.
        target_usd: target used, USD; None when none was ever seen.
        target_confidence: its confidence.
        volatility_ewma: USD.
        dd_proxy: USD.
        hold_time_penalty: 0..1.
        before: the state before the executions of ``inputs``.
        inputs: readings and executions, the last ones where there were many.
    """

    symbol: str
    efficiency_score: float
    efficiency_raw: float
    efficiency_ewma: float
    capital_pressure: Pressure
    reallocation_weight: float
    confidence: float
    stale_flags: tuple[str, ...]
    performance: float
    performance_confidence: float
    target_usd: float | None
    target_confidence: float
    volatility_ewma: float
    dd_proxy: float
    hold_time_penalty: float
    before: EfficiencyState
    inputs: EfficiencyInputs

    @property
    def inputs_ok(self) -> bool:
        """True when both inputs were read, fresh or stale."""
        return not any(flag.endswith(("_MISSING", "_ERROR")) for flag in self.stale_flags)

    @property
    def lane(self) -> Lane:
        """Shadow when an input that was used came from the shadow lane."""
        i = self.inputs
        used = ((i.attribution.value, i.attribution_lane), (i.target.value, i.target_lane))
        return Lane.SHADOW if any(v is not None and lane is Lane.SHADOW for v, lane in used) else Lane.LIVE


def advance(state: EfficiencyState, fill: Execution, params: EfficiencyParams | None = None) -> EfficiencyState:
    """The state after one execution.

    Args:
        state: of the symbol.
        fill: the execution; one without a PnL only moves ``last_exec_ts``.
        params: the two weights.

    >>> advance(EfficiencyState(), Execution("BTCUSDT", 7.0, -10.0)).dd_proxy
    2.0
    """
    p = params or DEFAULTS
    last = fill.ts if state.last_exec_ts is None else max(state.last_exec_ts, fill.ts)
    if fill.pnl_usd is None:
        return replace(state, last_exec_ts=last)
    loss = -fill.pnl_usd if fill.pnl_usd < 0.0 else 0.0
    return replace(
        state,
        volatility_ewma=ewma(state.volatility_ewma, abs(fill.pnl_usd), p.vol_alpha),
        dd_proxy=ewma(state.dd_proxy, loss, p.dd_alpha),
        last_exec_ts=last,
    )


def score_efficiency(performance: Num, vol_n: Num, dd_n: Num, hold: Num, params: EfficiencyParams | None = None) -> Num:
    """pf / (1 + w_vol vol_n + w_dd dd_n + w_hold hold).

    Args:
        performance: performance factor, 0..1, float or array.
        vol_n: volatility over the target, at least 0.
        dd_n: losses over the target, at least 0.
        hold: hold penalty, 0..1.
        params: the weights.

    >>> round(score_efficiency(0.72, 2.5 / 800, 0.0, 0.0), 6), round(score_efficiency(0.72, 1.0, 0.6, 1.0), 6)
    (0.718204, 0.230769)
    """
    p = params or DEFAULTS
    return performance / (1.0 + p.w_vol * vol_n + p.w_dd * dd_n + p.w_hold * hold)


def per_target(amount_usd: Num, target_usd: Num) -> Num:
    """amount / max(target, 1).

    Args:
        amount_usd: USD, float or array.
        target_usd: USD, at least 0.

    >>> per_target(60.0, 100.0), per_target(3.0, 0.2)
    (0.6, 3.0)
    """
    return amount_usd / step(target_usd, 1.0, 1.0, target_usd)


def hold_penalty(held_s: Num, params: EfficiencyParams | None = None) -> Num:
    """clamp01(seconds since the last execution / HOLD_MAX).

    Args:
        held_s: seconds, float or array.
        params: the time at which it is full.

    >>> hold_penalty(1800.0), hold_penalty(-3.0)
    (0.5, 0.0)
    """
    p = params or DEFAULTS
    return clamp01(held_s / p.hold_penalty_max_s)


def reallocation_weight(efficiency_ewma: Num, confidence: Num) -> Num:
    """clamp(2 (ewma - 0.5), -1, 1) x confidence.

    Args:
        efficiency_ewma: 0..1, float or array.
        confidence: 0..1.

    >>> reallocation_weight(0.75, 0.5)
    0.25
    """
    return clamp(2.0 * (efficiency_ewma - 0.5), -1.0, 1.0) * confidence


def pressure(efficiency_ewma: float, confidence: float, dd_n: float) -> Pressure:
    """Which way capital should move.

    Args:
        efficiency_ewma: 0..1.
        confidence: 0..1.
        dd_n: losses over the target.

    >>> pressure(0.7, 0.6, 0.9).value, pressure(0.7, 0.5, 0.9).value, pressure(0.5, 1.0, 0.5).value
    ('INCREASE', 'DECREASE', 'HOLD')
    """
    if efficiency_ewma >= INCREASE_FROM and confidence > INCREASE_CONFIDENCE:
        return Pressure.INCREASE
    if efficiency_ewma <= DECREASE_TO or dd_n > DECREASE_DD:
        return Pressure.DECREASE
    return Pressure.HOLD


def outliers(fills: Sequence[Execution], target_usd: float | None) -> int:
    """How many executions have a |PnL| above ten targets; none where no target is known.

    Args:
        fills: of one symbol.
        target_usd: USD, or None.

    >>> outliers([Execution("BTCUSDT", 0.0, -101.0), Execution("BTCUSDT", 0.0, 100.0)], 10.0)
    1
    """
    return 0 if target_usd is None else sum(abs(f.pnl_usd or 0.0) > OUTLIER_TARGETS * target_usd for f in fills)


def _flag(prefix: str, reading: Reading[Any]) -> tuple[str, ...]:
    if isinstance(reading, Fresh):
        return ()
    kind = {Reason.MISSING: "MISSING", Reason.STALE: "STALE"}.get(reading.reason, "ERROR")
    return (f"{prefix}_{kind}",)


def efficiency_step(
    before: EfficiencyState, inputs: EfficiencyInputs, params: EfficiencyParams | None = None
) -> tuple[EfficiencyState, EfficiencyDecision]:
    """One symbol's cycle: its new executions, then the score.

    Args:
        before: its state.
        inputs: readings and executions.
        params: the numbers of P3.1.

    >>> from quantum_alloc.core.reading import fresh
    >>> sold = (Execution("BTCUSDT", 0.0, 12.5),)
    >>> attribution, target = fresh(Attribution(0.72, 0.9)), fresh(AllocationTarget(800.0, 0.7))
    >>> inputs = EfficiencyInputs("BTCUSDT", 0.0, attribution, target, sold)
    >>> state, made = efficiency_step(EfficiencyState(), inputs)
    >>> round(made.efficiency_raw, 6), made.confidence, made.capital_pressure.value
    (0.718204, 0.7, 'HOLD')
    """
    p = params or DEFAULTS
    now, fills = inputs.now, inputs.fills
    state = before
    for fill in fills[:-RECORDED_FILLS]:
        state = advance(state, fill, p)
    recorded, last = state, fills[-RECORDED_FILLS:]
    for fill in last:
        state = advance(state, fill, p)

    pf, pf_confidence = state.performance, 0.0
    known = inputs.attribution.value  # only a fresh or a stale reading has a value
    if known is not None:
        pf = clamp01(known.performance_factor)
        pf_confidence = 1.0 if known.confidence is None else known.confidence
    target, target_confidence = state.target_usd, 0.0
    if inputs.target.value is not None:
        target, target_confidence = inputs.target.value.target_usd, inputs.target.value.confidence
    flags = (*_flag("P30", inputs.attribution), *_flag("P29", inputs.target))
    confidence = min(pf_confidence, target_confidence) * (FLAGGED if flags else 1.0)

    vol_n = dd_n = 0.0
    if target is not None:
        vol_n, dd_n = per_target(state.volatility_ewma, target), per_target(state.dd_proxy, target)
    hold = 0.0 if state.last_exec_ts is None else hold_penalty(now - state.last_exec_ts, p)
    raw = score_efficiency(pf, vol_n, dd_n, hold, p)
    score = clamp01(raw)
    averaged = ewma(state.efficiency_ewma, score, p.score_alpha)
    has_input = bool(fills) or known is not None or inputs.target.value is not None
    after = EfficiencyState(
        state.volatility_ewma,
        state.dd_proxy,
        averaged,
        state.last_exec_ts,
        pf,
        target,
        max(state.seen_ts, now) if has_input else state.seen_ts,
    )
    return after, EfficiencyDecision(
        symbol=inputs.symbol,
        efficiency_score=score,
        efficiency_raw=raw,
        efficiency_ewma=averaged,
        capital_pressure=pressure(averaged, confidence, dd_n),
        reallocation_weight=reallocation_weight(averaged, confidence),
        confidence=confidence,
        stale_flags=flags,
        performance=pf,
        performance_confidence=pf_confidence,
        target_usd=target,
        target_confidence=target_confidence,
        volatility_ewma=state.volatility_ewma,
        dd_proxy=state.dd_proxy,
        hold_time_penalty=hold,
        before=recorded,
        inputs=inputs if len(fills) == len(last) else replace(inputs, fills=last),
    )


@dataclass(frozen=True, slots=True)
class EfficiencyCycle(Table):
    """One cycle's efficiencies.

    Attributes:
        now: unix seconds.
        params: the numbers of P3.1.
        decisions: in the order of the symbols' names.
        states: what is remembered of each symbol afterwards.
        dropped: symbols whose state is forgotten.
    """

    now: float
    params: EfficiencyParams
    decisions: tuple[EfficiencyDecision, ...]
    states: Mapping[str, EfficiencyState] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()

    def rows(self) -> list[dict[str, Any]]:
        """Symbol, score and what made it, one row a symbol."""
        names = (
            "symbol", "performance", "target_usd", "volatility_ewma", "dd_proxy", "hold_time_penalty",
            "efficiency_score", "efficiency_ewma", "confidence", "capital_pressure", "reallocation_weight",
        )  # fmt: skip
        return [{n: getattr(d, n) for n in names} for d in self.decisions]


def efficiency_cycle(
    states: Mapping[str, EfficiencyState],
    inputs: Sequence[EfficiencyInputs],
    now: float,
    params: EfficiencyParams | None = None,
    limit: int = 10_000,
    attempt: Attempt = plainly,
) -> EfficiencyCycle:
    """Efficiencies of all symbols that have state, an execution, an attribution or a target.

    Args:
        states: what is remembered.
        inputs: one entry a symbol, names distinct; one that is remembered and not among them keeps its state as it is.
        now: unix seconds.
        params: the numbers of P3.1.
        limit: greatest number of symbols remembered.
        attempt: how one symbol's step is run (``core.isolate``).

    Raises:
        ValueError: a symbol is given twice.
    """
    p = params or DEFAULTS
    if len({i.symbol for i in inputs}) != len(inputs):
        raise ValueError("a symbol is given twice: its executions would be counted twice")
    after: dict[str, EfficiencyState] = dict(states)
    decisions = []
    for one in sorted(inputs, key=lambda i: i.symbol):
        there = one.fills or any(r.state != Reason.MISSING for r in (one.attribution, one.target))
        if one.symbol not in states and not there:
            continue
        before = states.get(one.symbol, replace(NOTHING, seen_ts=now))
        made = attempt(one.symbol, partial(efficiency_step, before, one, p))
        if made is not None:
            after[one.symbol], decision = made
            decisions.append(decision)
    stay = kept({s: state.seen_ts for s, state in after.items()}, now, limit)
    return EfficiencyCycle(
        now,
        p,
        tuple(d for d in decisions if d.symbol in stay),
        {s: state for s, state in after.items() if s in stay},
        tuple(sorted({*states, *after} - stay)),
    )
