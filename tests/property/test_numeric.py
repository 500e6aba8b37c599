"""Laws of the primitives, and of one formula serving floats and arrays."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import quantum_alloc.core as qa
from quantum_alloc.core.numeric import exact_sum, smaller

finite = st.floats(-1e12, 1e12)
unit = st.floats(0.0, 1.0)


def same(a: float, b: float) -> bool:
    """Equal bit for bit."""
    return np.float64(a).tobytes() == np.float64(b).tobytes()


@given(finite, finite, finite)
def test_clamp_holds_within(x: float, a: float, b: float) -> None:
    """lo <= clamp(x) <= hi, x itself when inside, and twice is once."""
    lo, hi = min(a, b), max(a, b)
    y = qa.clamp(x, lo, hi)
    assert lo <= y <= hi
    assert y == x or not lo <= x <= hi
    assert qa.clamp(y, lo, hi) == y


def test_clamp_lets_no_nan_become_a_bound() -> None:
    """NaN stays NaN, for floats and arrays."""
    assert math.isnan(qa.clamp(math.nan, 0.0, 1.0))
    assert np.isnan(qa.clamp(np.array([math.nan]), 0.0, 1.0)).all()


@given(finite, finite, st.floats(1e-6, 1.0))
def test_ewma_lies_between_its_inputs(prev: float, x: float, alpha: float) -> None:
    """(20) min(prev, x) <= ewma <= max(prev, x)."""
    assert min(prev, x) <= qa.ewma(prev, x, alpha) <= max(prev, x)


@given(finite, finite, finite, st.floats(1e-6, 1.0))
def test_ewma_is_monotone(prev: float, x: float, y: float, alpha: float) -> None:
    """(20) A greater observation never gives a smaller average."""
    lo, hi = min(x, y), max(x, y)
    assert qa.ewma(prev, lo, alpha) <= qa.ewma(prev, hi, alpha)


@given(unit, unit, st.floats(0.05, 1.0), st.integers(1, 60))
def test_ewma_converges(prev: float, x: float, alpha: float, n: int) -> None:
    """(20) After n equal observations the distance is (1 - a)^n of the first, within 1e-12."""
    value = prev
    for _ in range(n):
        value = qa.ewma(value, x, alpha)
    assert abs((value - x) - (1 - alpha) ** n * (prev - x)) <= 1e-12


@given(st.lists(finite, min_size=1), st.randoms())
def test_exact_sum_does_not_know_order(values: list[float], random: object) -> None:
    """(10) The order of the values changes no bit."""
    shuffled = list(values)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert same(exact_sum(values), exact_sum(shuffled))


@given(st.lists(st.tuples(unit, unit, unit, st.floats(0, 1e7)), min_size=1, max_size=30))
def test_arrays_equal_the_scalar_loop(rows: list[tuple[float, float, float, float]]) -> None:
    """Every formula gives the same bits for an array as for its elements one by one."""
    a, b, c, usd = (np.array(column) for column in zip(*rows, strict=True))
    pairs = [
        (qa.cluster_factor(a), [qa.cluster_factor(r[0]) for r in rows]),
        (qa.drawdown_factor(a), [qa.drawdown_factor(r[0]) for r in rows]),
        (qa.performance_factor(a, b), [qa.performance_factor(r[0], r[1]) for r in rows]),
        (qa.vol_regime(a / 10), [qa.vol_regime(r[0] / 10) for r in rows]),
        (qa.stress_factor(a, b, c), [qa.stress_factor(*r[:3]) for r in rows]),
        (qa.budget(usd, a, b, c), [qa.budget(r[3], *r[:3]) for r in rows]),
        (qa.ewma(a, b, 0.25), [qa.ewma(r[0], r[1], 0.25) for r in rows]),
        (qa.uncapped_target(usd, a, b, c, a), [qa.uncapped_target(r[3], r[0], r[1], r[2], r[0]) for r in rows]),
        (smaller(a, b), [smaller(r[0], r[1]) for r in rows]),
    ]
    for array, loop in pairs:
        assert array.tobytes() == np.array(loop, dtype=np.float64).tobytes()


@given(
    st.lists(st.tuples(st.floats(0, 1e6), unit, st.floats(-1, 2), unit, st.integers(0, 3)), min_size=1, max_size=20),
    st.floats(1.0, 1e7),
    unit,
    st.sampled_from(["TREND", "CHOP", "X"]),
)
def test_allocate_arrays_equals_allocate_portfolio(
    rows: list[tuple[float, float, float, float, int]], equity: float, drawdown: float, regime: str
) -> None:
    """Targets over arrays are those of the portfolio, bit for bit, caps included."""
    shared = qa.SharedInputs(0.0, qa.fresh(qa.Portfolio(equity, drawdown)), qa.fresh(qa.Regime(regime)))
    # stress belongs to a cluster; here every symbol brings its own, as arrays may
    book = [
        qa.SymbolInputs(f"S{i:02}", qa.fresh(b), f"C{g}", qa.fresh(s), qa.fresh(qa.Attribution(pf, conf)))
        for i, (b, s, pf, conf, g) in enumerate(rows)
    ]
    one_by_one = [d.target_usd for d in qa.allocate_portfolio(book, shared).decisions]
    b, s, pf, conf, g = (np.array(column) for column in zip(*rows, strict=True))
    at_once = qa.allocate_arrays(
        b.astype(float),
        equity,
        drawdown=drawdown,
        regime_factor=qa.regime_factor(regime),
        stress=s,
        performance=pf,
        performance_confidence=conf,
        group=g,
    )
    assert at_once.tobytes() == np.array(one_by_one).tobytes()


@pytest.mark.parametrize(
    "bad",
    [
        {"cluster_stress_min": 0.9, "cluster_stress_max": 0.2},
        {"dd_low_threshold": 0.3},
        {"dd_factor_mid": 0.1},
        {"perf_factor_min": 1.2},
        {"perf_factor_max": 0.9},
        {"max_symbol_pct": 0.0},
        {"max_cluster_pct": 1.5},
        {"stale_data_s": 0},
        {"regime_factor_chop": -1.0},
        {"unmapped_cluster_policy": "none"},
        {"max_symbol_pct": math.nan},
    ],
)
def test_contradictions_are_refused(bad: dict[str, float | str]) -> None:
    """Parameters that contradict each other cannot be made."""
    with pytest.raises(ValueError, match=next(iter(bad)).split("_", maxsplit=1)[0]):
        qa.AllocationParams(**bad)  # type: ignore[arg-type]
