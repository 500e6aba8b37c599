"""Vacuity: looks, ages and blindness over time, and what counts as a change of value."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantum_alloc.core.gates import Checked, Outcome
from quantum_alloc.core.governor_params import GATES, Failure
from quantum_alloc.core.vacuity import BLIND_S, BUCKET_S, SYMBOLS_MAX, UNKNOWING, WINDOW_S, Constancy, Watched, is_real

TIMES = st.floats(0.0, 5_000.0)
LOOKS = st.lists(st.tuples(TIMES, st.integers(0, 5), st.integers(0, 5)), max_size=40)


def after(looks: list[tuple[float, int, int]]) -> Watched:
    """What is remembered after looks in the order of time."""
    one = Watched()
    for now, n, real in looks:
        one = one.look(now, n, min(n, real))
    return one


@given(LOOKS)
def test_the_share_is_that_of_the_looks_of_the_window(looks: list[tuple[float, int, int]]) -> None:
    """It counts every look of the last ten minutes, to a bucket, and no other."""
    looks = sorted(looks)
    now = looks[-1][0] if looks else 0.0
    since = now // BUCKET_S - WINDOW_S / BUCKET_S
    kept = [(n, min(n, real)) for at, n, real in looks if at // BUCKET_S > since]
    seen = sum(n for n, _ in kept)
    found = after(looks).ratio(now)
    assert found == (sum(real for _, real in kept) / seen if seen else None)


@given(LOOKS, TIMES)
def test_what_is_remembered_is_bounded_and_never_negative(looks: list[tuple[float, int, int]], now: float) -> None:
    """In whatever order clocks come: so many buckets, an age of at least 0, a share from 0 to 1."""
    one = after(looks)
    assert len(one.buckets) <= WINDOW_S / BUCKET_S
    assert one.age_s(now) is None or one.age_s(now) >= 0.0  # type: ignore[operator]
    ratio = one.ratio(now)
    assert ratio is None or 0.0 <= ratio <= 1.0


@given(LOOKS)
def test_nothing_is_blind_that_was_real_at_its_last_look(looks: list[tuple[float, int, int]]) -> None:
    """However long ago that was."""
    one = after(looks).look(5_000.0, 3, 1)
    assert not one.is_blind(5_000.0)
    assert not one.is_blind(1e9)


@given(TIMES, st.floats(0.0, 1_199.0))
def test_it_is_blind_from_the_six_hundredth_second_on(real: float, waits: float) -> None:
    """Time alone makes it so, and the last real look is what counts, not the first unreal one."""
    one = Watched().look(real, 1, 1).look(real + 1.0, 4, 0)
    assert one.is_blind(real + waits) == (waits >= BLIND_S or real + waits - real >= BLIND_S)


def test_it_is_never_blind_before_it_was_looked_at() -> None:
    """No look, and a look at nothing, are no blindness."""
    assert not Watched().look(0.0, 0, 0).is_blind(1e9)
    assert Watched().age_s(5.0) is None


def test_a_clock_that_is_set_back_is_no_shelter() -> None:
    """What was real in a time that has not come yet counts as just now: ten minutes later it is blind."""
    one = Watched().look(10_000.0, 1, 1).look(100.0, 1, 0)
    assert one.age_s(100.0) == 0.0
    assert not one.is_blind(699.0)
    assert one.is_blind(700.0)
    assert one.ratio(100.0) == 0.0


@pytest.mark.parametrize("gate", GATES, ids=lambda g: g.gate)
def test_each_reason_of_a_gate_is_real_or_not(gate: object) -> None:
    """A block for want of knowledge, and failing open, are on no real data; every other verdict is."""
    reasons = next(g.reasons for g in GATES if g is gate)
    for reason in reasons:
        for outcome in (Outcome.BLOCK, Outcome.WOULD_BLOCK):
            assert is_real(Checked(outcome, reason)) is (reason not in UNKNOWING)
    assert is_real(Checked(Outcome.PASS)) is True
    assert is_real(Checked(Outcome.FAIL_OPEN, "missing")) is False
    assert is_real(Checked(Outcome.NOT_APPLICABLE)) is None


def test_all_reasons_of_not_knowing_belong_to_a_gate() -> None:
    """A renamed reason would make a gate that knows nothing look well."""
    known = {reason for gate in GATES if gate.failure is Failure.CLOSED for reason in gate.reasons}
    assert known >= UNKNOWING


VALUES = st.dictionaries(st.sampled_from("ABCD"), st.integers(0, 3), max_size=4)


@given(st.lists(VALUES, max_size=30))
def test_constancy_is_the_time_since_a_value_changed(looks: list[dict[str, int]]) -> None:
    """Against the plain definition: the last value of each symbol, over all symbols, symbols that come or go aside."""
    one, last, changed, seen = Constancy(), dict[str, int](), None, None
    for i, values in enumerate(looks):
        now = float(i)
        one = one.look(now, dict(values))
        if values:
            if changed is None or any(last.get(s, v) != v for s, v in values.items()):
                changed = now
            last.update(values)
            seen = now
    assert one.constant_s == (None if seen is None or changed is None else seen - changed)


def test_a_symbol_that_comes_back_with_another_value_has_changed() -> None:
    """Also where no two looks in a row had it."""
    one = Constancy().look(0.0, {"A": 1}).look(60.0, {"B": 5}).look(120.0, {"A": 1, "B": 5})
    assert one.constant_s == 120.0
    assert one.look(180.0, {"C": 1}).look(240.0, {"A": 2}).constant_s == 0.0


def test_one_of_many_that_goes_is_not_forgotten() -> None:
    """What stands in two looks counts once against the bound."""
    many = {f"S{i}": 1 for i in range(SYMBOLS_MAX - 1_000)}
    one = Constancy().look(0.0, many).look(60.0, {s: 1 for s in many if s != "S0"})
    assert one.look(120.0, {"S0": 2}).constant_s == 0.0
    assert one.look(120.0, {"S0": 1}).constant_s == 120.0


def test_an_input_that_ends_does_not_become_constant() -> None:
    """What is not there any more is blind, not constant: the time of the last value is what counts."""
    one = Constancy().look(0.0, {"A": 1}).look(60.0, {"A": 1}).look(7_200.0, {})
    assert one.constant_s == 60.0


def test_values_of_many_symbols_are_bounded() -> None:
    """Symbols that come and go for ever fill no memory."""
    one = Constancy()
    for i in range(0, 5 * SYMBOLS_MAX, SYMBOLS_MAX // 2):
        one = one.look(float(i), {f"S{i + j}": 1 for j in range(SYMBOLS_MAX // 2)})
        assert len(one.values) <= SYMBOLS_MAX
    assert one.constant_s is not None


def test_a_clock_that_is_set_back_makes_no_constancy_below_nothing() -> None:
    """The change is then told to be now."""
    assert Constancy().look(1_000.0, {"A": 1}).look(10.0, {"A": 1}).constant_s == 0.0
