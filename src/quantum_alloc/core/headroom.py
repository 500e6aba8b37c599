"""Headroom: how much of each gate's limit is used, per symbol; 0 for nothing, 1 for all of it.

    used             = observed / limit                  of a gate that passes up to its limit
    used (cooldown)  = 1 - elapsed / cooldown, at least 0
    used (rates)     = permits in the window / limit     the greater of opens and closes

A limit without end uses nothing up; of a limit of 0 nothing is left. What is far above its limit is told as USED_MAX.
From WARN_USED on people are warned, and no more below WARN_ENDS. Source: the project's issue on headroom; the limits
are those of ``gates``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import isfinite, isnan

from quantum_alloc.core.gates import Checked
from quantum_alloc.core.governor_params import GATES, GovernorParams
from quantum_alloc.core.limits import BURST_S, HOUR_S, US

WARN_USED, WARN_ENDS, USED_MAX = 0.8, 0.75, 10.0
KEPT_S = 3600.0
"""What the last plan of a symbol used is told for so long."""
COOLDOWN, TIMED = "4.cooldown", ("2", "3", "4.cooldown")
"""Gates whose use loosens with time alone."""
WARNED: Mapping[str, bool] = {"0": True, "0.5": True, "2": True, "4.positions": False, "4.total": False, "5": True}
"""Gates whose use is worth a warning, and whether it is a symbol's own. Of the others, a plan's age, kill score and
size are its own and not used up; burst window and cooldown are used up by a permit or two and free themselves soon."""


def used(observed: float | None, limit: float | None) -> float | None:
    """Share of a limit that is used.

    Args:
        observed: what a gate looked at; None where it told nothing.
        limit: what that is held against; None where there is none.

    >>> used(150.0, 200.0), used(3.0, 2.0), used(0.0, 0.0), used(1.0, 0.0), used(5.0, float("inf")), used(None, 1.0)
    (0.75, 1.5, 1.0, 10.0, 0.0, None)
    """
    if observed is None or limit is None or isnan(observed) or isnan(limit):
        return None
    if limit == 0.0:
        return 1.0 if observed <= 0.0 else USED_MAX
    if not isfinite(limit):
        return 0.0
    return max(0.0, min(USED_MAX, observed / limit))


def cooldown_used(elapsed_s: float | None, cooldown_s: float) -> float:
    """Share of a cooldown that is still to come.

    Args:
        elapsed_s: seconds since the symbol's last permit; None without one.
        cooldown_s: seconds, at least 0.

    >>> cooldown_used(15.0, 60.0), cooldown_used(60.0, 60.0), cooldown_used(None, 60.0), cooldown_used(0.0, 0.0)
    (0.75, 0.0, 0.0, 0.0)
    """
    if elapsed_s is None or cooldown_s <= 0.0:
        return 0.0
    return max(0.0, min(1.0, 1.0 - elapsed_s / cooldown_s))


def of_checks(checks: Sequence[Checked]) -> dict[str, float]:
    """What a plan's gates have used of their limits, but for those that time loosens (``of_windows``).

    Args:
        checks: what each gate said, in the order of ``GATES``.
    """
    found = {}
    for gate, check in zip(GATES, checks, strict=True):
        share = None if gate.gate in TIMED else used(check.observed, check.limit)
        if share is not None:
            found[gate.gate] = share
    return found


def _counted(times_us: Iterable[int], since_us: int) -> float:
    return float(sum(at > since_us for at in times_us))


def of_windows(
    opens_us: Sequence[int], closes_us: Sequence[int], last_us: int | None, now_us: int, params: GovernorParams
) -> dict[str, float]:
    """What a symbol's permits have used of the limits that loosen with time.

    Args:
        opens_us: times of its opens, microseconds.
        closes_us: times of its closes.
        last_us: time of its last permit; None without one.
        now_us: microseconds.
        params: the limits.

    >>> of_windows((0,), (), 0, 15 * US, GovernorParams())
    {'2': 0.3333333333333333, '3': 0.5, '4.cooldown': 0.75}
    """
    found = {}
    for gate, window_s, opens, closes in (
        ("2", HOUR_S, params.max_exec_per_hour, params.max_close_per_hour),
        ("3", BURST_S, params.max_exec_per_5min, params.max_close_per_5min),
    ):
        since_us = now_us - window_s * US
        shares = (used(_counted(opens_us, since_us), opens), used(_counted(closes_us, since_us), closes))
        found[gate] = max(share for share in shares if share is not None)
    elapsed_s = None if last_us is None else (now_us - last_us) / US
    found[COOLDOWN] = cooldown_used(elapsed_s, float(params.symbol_cooldown_s))
    return found


def is_warned(share: float, before: bool) -> bool:
    """Whether a share is worth a warning.

    Args:
        share: of a limit.
        before: whether it was before.

    >>> is_warned(0.8, False), is_warned(0.79, False), is_warned(0.79, True), is_warned(0.74, True)
    (True, False, True, False)
    """
    return share >= (WARN_ENDS if before else WARN_USED)
