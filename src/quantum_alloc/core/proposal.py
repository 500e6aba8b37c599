"""Allocation target proposer (step 1): what the target would be if efficiency counted. It never is one.

    efficiency missing                       1.0  missing_eff
    malformed or unreadable                  1.0  redis_error
    older than STALE_SEC, or of the future   1.0  stale_eff
    confidence < MIN_CONF                    1.0  low_conf
    else    clamp(BASE + SCALE (score - 0.5), MIN_MULT, MAX_MULT)  ok

    proposed_target = base_target x multiplier

Without a base target that is at most 300 s old nothing is proposed. Source: the project's rules, section 5.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Any

from quantum_alloc.core.isolate import Attempt, plainly
from quantum_alloc.core.numeric import Num, clamp
from quantum_alloc.core.params import check, positive
from quantum_alloc.core.reading import Fresh, Lane, Reading, Reason, Unusable, shown
from quantum_alloc.core.table import Explained, Table

RULES_VERSION = "p29_shadow_v1"
NEUTRAL = 1.0


class ProposalReason(StrEnum):
    """What became of the efficiency; a closed set, safe as a metric label."""

    OK = "ok"
    MISSING = "missing_eff"
    UNREADABLE = "redis_error"
    STALE = "stale_eff"
    LOW_CONFIDENCE = "low_conf"


@dataclass(frozen=True, slots=True)
class ProposalParams:
    """The numbers of the proposer.

    Attributes:
        base: multiplier at score 0.5.
        scale: what one unit of score moves it by.
        min_mult: smallest multiplier.
        max_mult: greatest multiplier.
        min_conf: smallest confidence of an efficiency that counts.
        stale_s: greatest age of an efficiency, seconds.
        base_stale_s: greatest age of a base target, seconds.

    Raises:
        ValueError: naming every contradiction.
    """

    base: float = 1.0
    scale: float = 1.0
    min_mult: float = 0.5
    max_mult: float = 1.5
    min_conf: float = 0.65
    stale_s: int = 600
    base_stale_s: int = 300

    def __post_init__(self) -> None:
        """Refuse contradictions."""
        check(
            (0.0 <= self.min_mult <= 1.0 <= self.max_mult, "0 <= min_mult <= 1 <= max_mult does not hold"),
            (self.min_mult <= self.base <= self.max_mult, "min_mult <= base <= max_mult does not hold"),
            (self.scale >= 0.0, "scale must be at least 0"),
            (0.0 <= self.min_conf <= 1.0, "min_conf must be from 0 to 1"),
            positive("stale_s", self.stale_s),
            positive("base_stale_s", self.base_stale_s),
        )


DEFAULTS = ProposalParams()


@dataclass(frozen=True, slots=True)
class Efficiency:
    """A symbol's efficiency, as P3.1 published it.

    Attributes:
        score: 0..1.
        confidence: 0..1.
    """

    score: float
    confidence: float


@dataclass(frozen=True, slots=True)
class ProposalInputs:
    """What one symbol's proposal is made from.

    Attributes:
        symbol: the symbol.
        now: unix seconds.
        base_target_usd: P2.9's target, graded by ``base_stale_s``.
        efficiency: graded by ``stale_s``.
        base_lane: where the target was read.
        eff_lane: shadow when the efficiency was read there, or was made from something that was.
    """

    symbol: str
    now: float
    base_target_usd: Reading[float] = Unusable(Reason.MISSING)  # noqa: RUF009 - a frozen value
    efficiency: Reading[Efficiency] = Unusable(Reason.MISSING)  # noqa: RUF009 - a frozen value
    base_lane: Lane = Lane.LIVE
    eff_lane: Lane = Lane.LIVE


@dataclass(frozen=True, slots=True)
class ProposalDecision(Explained):
    """One symbol's proposal, with everything that made it.

    Attributes:
        symbol: the symbol.
        base_target_usd: P2.9's target, USD.
        proposed_target_usd: base x multiplier, USD.
        multiplier: 1.0 unless the reason is ok.
        reason: ok, or why the efficiency does not count.
        inputs: the readings.
    """

    symbol: str
    base_target_usd: float
    proposed_target_usd: float
    multiplier: float
    reason: ProposalReason
    inputs: ProposalInputs

    @property
    def efficiency(self) -> Efficiency | None:
        """What was read, used or not; None when missing or unreadable."""
        return shown(self.inputs.efficiency)

    @property
    def eff_stale(self) -> bool:
        """True when the age of the efficiency is the reason."""
        return self.reason is ProposalReason.STALE


@dataclass(frozen=True, slots=True)
class NotProposed:
    """A symbol without a proposal, and why.

    Attributes:
        symbol: the symbol.
        reason: ``base_`` and the reading's reason.
        inputs: the readings.
    """

    symbol: str
    reason: str
    inputs: ProposalInputs


def multiplier(score: Num, params: ProposalParams | None = None) -> Num:
    """clamp(base + scale (score - 0.5), min, max).

    Args:
        score: efficiency score, 0..1, float or array.
        params: the numbers of the proposer.

    >>> [multiplier(s) for s in (0.0, 0.5, 0.9, 1.0)]
    [0.5, 1.0, 1.4, 1.5]
    """
    p = params or DEFAULTS
    return clamp(p.base + p.scale * (score - 0.5), p.min_mult, p.max_mult)


def efficiency_reason(efficiency: Reading[Efficiency], min_conf: float) -> ProposalReason:
    """What becomes of an efficiency, for the proposal and for the downsize hint.

    Args:
        efficiency: graded by its greatest age.
        min_conf: smallest confidence that counts.

    >>> efficiency_reason(Fresh(Efficiency(0.9, 0.64), 0.0), 0.65).value
    'low_conf'
    """
    if isinstance(efficiency, Fresh):
        enough = efficiency.value.confidence >= min_conf
        return ProposalReason.OK if enough else ProposalReason.LOW_CONFIDENCE
    return {
        Reason.MISSING: ProposalReason.MISSING,
        Reason.STALE: ProposalReason.STALE,
        Reason.FUTURE: ProposalReason.STALE,
    }.get(efficiency.reason, ProposalReason.UNREADABLE)


def proposal_reason(efficiency: Reading[Efficiency], params: ProposalParams | None = None) -> ProposalReason:
    """What becomes of an efficiency.

    Args:
        efficiency: graded by ``stale_s``.
        params: the smallest confidence.

    >>> proposal_reason(Fresh(Efficiency(0.9, 0.65), 0.0)).value, proposal_reason(Unusable(Reason.FUTURE)).value
    ('ok', 'stale_eff')
    """
    return efficiency_reason(efficiency, (params or DEFAULTS).min_conf)


def propose(inputs: ProposalInputs, params: ProposalParams | None = None) -> ProposalDecision | NotProposed:
    """One symbol's proposal.

    Args:
        inputs: the readings.
        params: the numbers of the proposer.

    >>> from quantum_alloc.core.reading import fresh
    >>> made = propose(ProposalInputs("BTCUSDT", 0.0, fresh(1000.0), fresh(Efficiency(0.75, 0.9))))
    >>> made.proposed_target_usd, made.reason.value
    (1250.0, 'ok')
    """
    p = params or DEFAULTS
    base = inputs.base_target_usd
    if isinstance(base, Unusable):
        return NotProposed(inputs.symbol, f"base_{base.reason}", inputs)
    reason = proposal_reason(inputs.efficiency, p)
    factor = NEUTRAL
    if reason is ProposalReason.OK and isinstance(inputs.efficiency, Fresh):
        factor = multiplier(inputs.efficiency.value.score, p)
    return ProposalDecision(inputs.symbol, base.value, base.value * factor, factor, reason, inputs)


@dataclass(frozen=True, slots=True)
class ProposalCycle(Table):
    """One cycle's proposals.

    Attributes:
        now: unix seconds.
        params: the numbers of the proposer.
        decisions: in the order of the symbols' names.
        not_proposed: symbols without a proposal, and why.
    """

    now: float
    params: ProposalParams
    decisions: tuple[ProposalDecision, ...]
    not_proposed: tuple[NotProposed, ...] = ()

    @property
    def reasons(self) -> Mapping[str, int]:
        """How often each reason was given, the symbols without a proposal included."""
        found = Counter(d.reason.value for d in self.decisions)
        found.update(n.reason for n in self.not_proposed)
        return found

    def rows(self) -> list[dict[str, Any]]:
        """Symbol, proposal and reason, one row a symbol."""
        names = ("symbol", "base_target_usd", "multiplier", "proposed_target_usd", "reason")
        return [{n: getattr(d, n) for n in names} for d in self.decisions]


def proposal_cycle(
    inputs: Sequence[ProposalInputs],
    now: float,
    params: ProposalParams | None = None,
    attempt: Attempt = plainly,
) -> ProposalCycle:
    """Proposals of all symbols.

    Args:
        inputs: one entry a symbol.
        now: unix seconds.
        params: the numbers of the proposer.
        attempt: how one symbol's step is run (``core.isolate``).
    """
    p = params or DEFAULTS
    decisions: list[ProposalDecision] = []
    without: list[NotProposed] = []
    for one in sorted(inputs, key=lambda i: i.symbol):
        made = attempt(one.symbol, partial(propose, one, p))
        if isinstance(made, ProposalDecision):
            decisions.append(made)
        elif made is not None:
            without.append(made)
    return ProposalCycle(now, p, tuple(decisions), tuple(without))
