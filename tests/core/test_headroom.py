"""Headroom: what share of each limit is used, against the gates themselves."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantum_alloc.core.gates import NOT_APPLICABLE, Checked, Outcome
from quantum_alloc.core.governor_params import GATES, GovernorParams
from quantum_alloc.core.headroom import (
    TIMED,
    USED_MAX,
    WARNED,
    cooldown_used,
    is_warned,
    of_checks,
    of_windows,
    used,
)
from quantum_alloc.core.limits import US

P = GovernorParams()


@given(st.floats(0.0, 1e12), st.floats(1e-3, 1e12))
def test_more_than_the_limit_is_more_than_all(observed: float, limit: float) -> None:
    """What a gate lets pass uses at most all of the limit, what it blocks more, and nothing is told above the most."""
    share = used(observed, limit)
    assert share is not None
    assert (share > 1.0) == (observed / limit > 1.0)
    assert 0.0 <= share <= USED_MAX


@pytest.mark.parametrize(
    ("observed", "limit", "share"),
    [
        (0.0, 0.0, 1.0),  # nothing is allowed, and nothing is left
        (0.1, 0.0, USED_MAX),
        (5.0, math.inf, 0.0),
        (math.nan, 1.0, None),
        (1.0, math.nan, None),
        (None, 1.0, None),
        (1.0, None, None),
        (-7.0, -5.0, 1.4),  # a plan from the future: seconds ahead of the tolerance
        (-1.0, 120.0, 0.0),
    ],
)
def test_limits_at_their_edges(observed: float | None, limit: float | None, share: float | None) -> None:
    """Limits of 0 and without end, numbers that are none, and none at all."""
    assert used(observed, limit) == share


def test_only_gates_with_a_limit_are_told() -> None:
    """Of a whole vector: those that observed something, but for those that time loosens."""
    vector = [Checked(Outcome.PASS, "", 150.0, 200.0) if g.gate == "4.trade" else NOT_APPLICABLE for g in GATES]
    vector[[g.gate for g in GATES].index("2")] = Checked(Outcome.PASS, "", 2.0, 3.0)
    assert of_checks(vector) == {"4.trade": 0.75}


@given(st.lists(st.integers(0, 7200), max_size=6), st.lists(st.integers(0, 7200), max_size=6), st.integers(0, 9000))
def test_windows_loosen_with_time_alone(opens: list[int], closes: list[int], later_s: int) -> None:
    """No permit in between: no share grows; an hour and more after the last one nothing is used."""
    opens_us, closes_us = [s * US for s in opens], [s * US for s in closes]
    last = max([*opens_us, *closes_us], default=None)
    at = max([7200, *opens, *closes])
    before = of_windows(opens_us, closes_us, last, at * US, P)
    after = of_windows(opens_us, closes_us, last, (at + later_s) * US, P)
    assert after.keys() == before.keys() == set(TIMED)
    assert all(after[gate] <= before[gate] for gate in TIMED)
    assert set(of_windows(opens_us, closes_us, last, (at + 3600) * US, P).values()) == {0.0}


def test_an_entry_exactly_as_old_as_the_window_is_out() -> None:
    """As in the ledger: (t - W, t] counts."""
    assert of_windows((0,), (), 0, 300 * US - 1, P)["3"] == 0.5
    assert of_windows((0,), (), 0, 300 * US, P)["3"] == 0.0
    assert of_windows((), (0,), 0, US, P)["3"] == 0.1


def test_a_cooldown_is_used_up_by_a_permit_and_comes_back() -> None:
    """All of it at once, half of it half way, nothing after it, and nothing where there is none."""
    assert [cooldown_used(s, 60.0) for s in (0.0, 30.0, 60.0, 90.0, -5.0)] == [1.0, 0.5, 0.0, 0.0, 1.0]
    assert cooldown_used(None, 60.0) == cooldown_used(0.0, 0.0) == 0.0


def test_a_warning_has_a_beginning_and_an_end_apart() -> None:
    """From 80 % on, and until it is below 75 %: what hovers is told once."""
    state, told = False, []
    for share in (0.79, 0.8, 0.79, 0.81, 0.75, 0.749, 0.79):
        state = is_warned(share, state)
        told.append(state)
    assert told == [False, True, True, True, True, False, False]


def test_the_gates_that_are_warned_of_are_gates() -> None:
    """A renamed gate would never warn."""
    assert set(WARNED) | set(TIMED) <= {gate.gate for gate in GATES}
