"""Downsize hint (step 2): how much smaller, and how much later, an open of an inefficient symbol should be.

    efficiency missing                       NONE  missing_eff
    malformed or unreadable                  NONE  redis_error
    older than EFF_TTL_SEC, or of the future NONE  stale_eff
    confidence < MIN_CONF                    NONE  low_conf
    score >= THRESHOLD                       NONE  ok
    else                                     DOWNSIZE  ok
        factor             = max(MIN_FACTOR, score / THRESHOLD)
        extra_cooldown_sec = round((1 - score) x MAX_EXTRA_COOLDOWN_SEC), half to even

NONE is factor 1.0 and no cooldown. It is a hint on the permit: it changes no verdict and no quantity. The order of
reasons is the proposer's. Source: the project's rules, section 6.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, cast

from quantum_alloc.core.numeric import Num, clamp, clamp01
from quantum_alloc.core.params import check, positive
from quantum_alloc.core.proposal import Efficiency, ProposalReason, efficiency_reason
from quantum_alloc.core.reading import Fresh, Reading
from quantum_alloc.core.table import Explained


class HintAction(StrEnum):
    """What the hint asks for."""

    NONE = "NONE"
    DOWNSIZE = "DOWNSIZE"


@dataclass(frozen=True, slots=True)
class DownsizeParams:
    """The numbers of the hint.

    Attributes:
        threshold: score from which on nothing is asked for.
        min_factor: smallest factor.
        max_extra_cooldown_s: cooldown at score 0, seconds.
        min_conf: smallest confidence of an efficiency that counts.
        eff_stale_s: greatest age of an efficiency, seconds.

    Raises:
        ValueError: naming every contradiction.
    """

    threshold: float = 0.45
    min_factor: float = 0.25
    max_extra_cooldown_s: int = 120
    min_conf: float = 0.65
    eff_stale_s: int = 600

    def __post_init__(self) -> None:
        """Refuse contradictions."""
        check(
            (0.0 < self.threshold <= 1.0, "threshold must be above 0 and at most 1"),
            (0.0 < self.min_factor <= 1.0, "min_factor must be above 0 and at most 1"),
            (self.max_extra_cooldown_s >= 0, "max_extra_cooldown_s must be at least 0"),
            (0.0 <= self.min_conf <= 1.0, "min_conf must be from 0 to 1"),
            positive("eff_stale_s", self.eff_stale_s),
        )


DEFAULTS = DownsizeParams()


@dataclass(frozen=True, slots=True)
class Hint(Explained):
    """What a permit tells the apply layer.

    Attributes:
        action: NONE or DOWNSIZE.
        factor: 1.0 unless the action is DOWNSIZE.
        extra_cooldown_sec: whole seconds, 0 unless the action is DOWNSIZE.
        reason: ok, or why the efficiency does not count.
    """

    action: HintAction
    factor: float
    extra_cooldown_sec: int
    reason: ProposalReason


def downsize_factor(score: Num, params: DownsizeParams | None = None) -> Num:
    """max(min_factor, score / threshold), at most 1.

    Args:
        score: efficiency score, 0..1, float or array.
        params: the numbers of the hint.

    >>> round(downsize_factor(0.2), 4), downsize_factor(0.1), downsize_factor(0.45)
    (0.4444, 0.25, 1.0)
    """
    p = params or DEFAULTS
    return clamp(score / p.threshold, p.min_factor, 1.0)


def extra_cooldown_s(score: Num, params: DownsizeParams | None = None) -> Num:
    """round((1 - score) x max_extra_cooldown_s), half to even, for a score below the threshold.

    Args:
        score: efficiency score, 0..1, float or array.
        params: the numbers of the hint.

    >>> extra_cooldown_s(0.2), extra_cooldown_s(0.4375)
    (96.0, 68.0)
    """
    p = params or DEFAULTS
    raw: Any = clamp01(1.0 - score) * p.max_extra_cooldown_s
    if isinstance(raw, (float, int)):
        whole: Any = float(round(raw))
        return cast(Num, whole)
    import numpy as np

    return cast(Num, np.rint(raw))


def downsize(efficiency: Reading[Efficiency], params: DownsizeParams | None = None) -> Hint:
    """The hint for one symbol.

    Args:
        efficiency: graded by ``eff_stale_s``.
        params: the numbers of the hint.

    >>> from quantum_alloc.core.reading import fresh
    >>> downsize(fresh(Efficiency(score=0.1, confidence=0.65))).factor
    0.25
    """
    p = params or DEFAULTS
    reason = efficiency_reason(efficiency, p.min_conf)
    if reason is ProposalReason.OK and isinstance(efficiency, Fresh) and efficiency.value.score < p.threshold:
        score = efficiency.value.score
        return Hint(HintAction.DOWNSIZE, downsize_factor(score, p), int(extra_cooldown_s(score, p)), reason)
    return Hint(HintAction.NONE, 1.0, 0, reason)
