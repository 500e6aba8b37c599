"""Laws of the regime detector: against an independent implementation, on simulated markets, on broken ones."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray

import quantum_alloc.core as qa
from quantum_alloc.core.regime import statistic_over_time, variance_ratio
from quantum_alloc.core.returns import returns_of

Floats = NDArray[np.float64]
START = 1_769_577_480.0
BAR = 60.0


def bars_of(returns: Floats, start: float = START, skip: tuple[int, ...] = ()) -> qa.Bars:
    """Bars with these log returns, some of them left out."""
    closes = np.exp(np.concatenate([[0.0], np.cumsum(returns)]))
    keep = np.array([i for i in range(closes.size) if i not in skip])
    times = start + BAR * np.arange(closes.size)
    return qa.Bars(times[keep], closes[keep], np.full(keep.size, BAR))


def classified(returns: Floats, params: qa.RegimeParams | None = None) -> qa.RegimeDecision:
    """The regime of one symbol with these returns, at its last bar."""
    bars = bars_of(returns)
    made = qa.classify_regime({"BTCUSDT": bars}, float(bars.times[-1]), params)
    assert isinstance(made, qa.RegimeDecision), made
    return made


def by_arch(returns: Floats, q: int) -> tuple[float, float]:
    """Variance ratio and robust statistic by another's hand."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from arch.unitroot import VarianceRatio

        found: Any = VarianceRatio(
            np.concatenate([[0.0], np.cumsum(returns)]), lags=q, trend="c", debiased=True, robust=True, overlap=True
        )
        return float(found.vr), float(found.stat)


@given(
    st.integers(0, 2**32 - 1), st.integers(2, 12), st.sampled_from([60, 240, 1000]), st.sampled_from([-0.3, 0.0, 0.3])
)
def test_the_statistic_is_that_of_an_independent_implementation(seed: int, q: int, n: int, phi: float) -> None:
    """z* and the variance ratio agree to 1e-10 with PyPI `arch`, on walks, trends, reversals, quiet and wild spells."""
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal(n) * rng.choice([1e-4, 1e-3, 1e-2], n)
    returns = noise.copy()
    for t in range(1, n):
        returns[t] += phi * returns[t - 1]
    found = variance_ratio(returns, q)
    assert found is not None
    vr, z = by_arch(returns, q)
    assert found[0] == pytest.approx(vr, rel=1e-10)
    assert found[1] == pytest.approx(z, rel=1e-10, abs=1e-10)


def rates(simulated: list[Floats], params: qa.RegimeParams) -> tuple[float, float]:
    """How often TREND and MEAN_REVERSION are called."""
    names = [classified(r, params).regime for r in simulated]
    return names.count("TREND") / len(names), names.count("MEAN_REVERSION") / len(names)


def garch(rng: np.random.Generator, n: int) -> Floats:
    """GARCH(1,1) returns without any direction."""
    out, variance = np.empty(n), 1.0
    for t in range(n):
        out[t] = math.sqrt(variance) * rng.standard_normal()
        variance = 0.05 + 0.10 * out[t] ** 2 + 0.85 * variance
    return out * 1e-3


def ar1(rng: np.random.Generator, n: int, phi: float) -> Floats:
    """AR(1) returns."""
    out = rng.standard_normal(n + 50)
    for t in range(1, out.size):
        out[t] += phi * out[t - 1]
    return out[50:] * 1e-3


@pytest.mark.parametrize("kind", ["constant", "garch"])
def test_random_walks_are_called_at_the_stated_rate(kind: str) -> None:
    """2,000 walks of 240 bars, with constant and with GARCH variance: each regime at 5 % within Monte Carlo error, at
    most 7 %."""
    rng = np.random.default_rng(7)
    walks = [rng.standard_normal(240) * 1e-3 if kind == "constant" else garch(rng, 240) for _ in range(2000)]
    up, down = rates(walks, qa.RegimeParams())
    error = 3 * math.sqrt(0.05 * 0.95 / 2000)
    assert 0.05 - error <= up <= 0.07
    assert 0.05 - error <= down <= 0.07
    assert up + down <= 0.13


@pytest.mark.parametrize(("bars", "power"), [(1000, 0.95), (240, 0.7)])
@pytest.mark.parametrize("phi", [0.2, -0.2])
def test_autocorrelation_is_seen(phi: float, bars: int, power: float) -> None:
    """AR(1) with phi 0.2 and -0.2: power above 0.95 at 1,000 bars and above 0.7 at 240."""
    rng = np.random.default_rng(11)
    up, down = rates([ar1(rng, bars, phi) for _ in range(400)], qa.RegimeParams(window=bars))
    assert (up if phi > 0 else down) > power
    assert (down if phi > 0 else up) < 0.01


@given(st.floats(-10, 10), st.floats(0, 10))
def test_confidence_is_that_of_the_statistic(z: float, ratio: float) -> None:
    """2 Phi(|z|) - 1 for trend and reversion, 2 (1 - Phi(|z|)) for noise, one half for neither; always 0..1."""
    name, confidence = qa.regime_of(z, ratio)
    phi = 0.5 * (1.0 + math.erf(abs(z) / math.sqrt(2.0)))
    expected = {"TREND": 2 * phi - 1, "MEAN_REVERSION": 2 * phi - 1, "CHOP": 2 * (1 - phi), "NEUTRAL": 0.5}[name]
    assert confidence == pytest.approx(expected, abs=1e-12)
    assert 0.0 <= confidence <= 1.0
    called = "TREND" if z > 1.64 else "MEAN_REVERSION" if z < -1.64 else "CHOP" if ratio > 1.5 else "NEUTRAL"
    assert name == called


def test_noise_without_direction_is_chop() -> None:
    """A calm day, then four hours of three times the noise: CHOP, with a confidence that falls as direction shows."""
    rng = np.random.default_rng(3)
    for _ in range(50):
        returns = np.concatenate([rng.standard_normal(1000) * 1e-4, rng.standard_normal(240) * 3e-4])
        made = classified(returns)
        if abs(made.z) <= 1.64:
            assert (made.regime, made.volatility_ratio > 2.0) == ("CHOP", True)
            assert made.confidence == pytest.approx(math.erfc(abs(made.z) / math.sqrt(2.0)))


def test_the_median_is_that_of_the_last_day() -> None:
    """Wild noise of two days ago does not make today's noise look calm."""
    rng = np.random.default_rng(8)
    calm, wild = rng.standard_normal(700) * 1e-4, rng.standard_normal(240) * 3e-4
    old = rng.standard_normal(500) * 9e-4
    today = np.concatenate([calm, wild])
    start = bars_of(old)
    closes = start.closes[-1] * np.exp(np.cumsum(today))
    times = start.times[-1] + 2 * 86_400 + BAR * np.arange(1, today.size + 1)
    both = qa.Bars(
        np.concatenate([start.times, times]),
        np.concatenate([start.closes, closes]),
        np.full(start.times.size + times.size, BAR),
    )
    made = qa.classify_regime({"A1": both}, float(times[-1]))
    assert isinstance(made, qa.RegimeDecision)
    assert made.volatility_ratio > 1.5


def test_rounding_is_no_regime() -> None:
    """Prices that grow by the same factor every bar do not vary: only their last bits do."""
    for growth in (1e-3, 1e-4):
        closes: Floats = np.array([100.0 * (1.0 + growth) ** k for k in range(500)])
        bars = qa.Bars(np.array([START + BAR * k for k in range(500)]), closes, np.full(500, BAR))
        made = qa.classify_regime({"A1": bars}, float(bars.times[-1]))
        assert isinstance(made, qa.NoRegime)
        assert made.reason == "constant_prices"


def test_dead_symbols_do_not_fill_the_window() -> None:
    """A live symbol of twenty bars beside one that ended a year ago: too few bars; an old short bar hides no hour."""
    rng = np.random.default_rng(2)
    dead = bars_of(rng.standard_normal(400) * 1e-3, start=START - 3e7)
    young = bars_of(rng.standard_normal(20) * 1e-3)
    made = qa.classify_regime({"A1": dead, "B1": young}, float(young.times[-1]))
    assert isinstance(made, qa.NoRegime)
    assert (made.reason, made.symbols) == ("too_few_bars", 1)
    hours: Floats = np.array([START + 3600.0 * k for k in range(300)])
    lengths = np.full(300, 3600.0)
    lengths[3] = 60.0
    slow = qa.Bars(hours, np.exp(np.cumsum(rng.standard_normal(300) * 1e-3)), lengths)
    assert isinstance(qa.classify_regime({"A1": slow}, float(hours[-1]) + 600), qa.RegimeDecision)


def test_what_is_no_regime_has_a_reason() -> None:
    """No bars, too few, too old, constant prices, one symbol that has just begun: a reason and no regime."""
    rng = np.random.default_rng(5)
    good = bars_of(rng.standard_normal(240) * 1e-3)
    end = float(good.times[-1])
    assert isinstance(qa.classify_regime({"A1": good}, end), qa.RegimeDecision)

    def reason(bars: dict[str, qa.Bars], now: float) -> str:
        made = qa.classify_regime(bars, now)
        assert isinstance(made, qa.NoRegime)
        return made.reason

    empty = qa.Bars(np.empty(0), np.empty(0), np.empty(0))
    assert reason({}, end) == reason({"A1": empty}, end) == "no_bars"
    assert reason({"A1": bars_of(rng.standard_normal(239) * 1e-3)}, end) == "too_few_bars"
    assert reason({"A1": good}, end + 180) == "stale_bars"
    assert isinstance(qa.classify_regime({"A1": good}, end + 179), qa.RegimeDecision)
    assert reason({"A1": bars_of(np.zeros(300))}, START + 300 * BAR) == "constant_prices"
    assert reason({"A1": bars_of(np.full(300, 0.5))}, START + 300 * BAR) in ("constant_prices", "too_few_bars")
    slow = qa.Bars(good.times * 60, good.closes, good.bar_s * 60)
    assert isinstance(qa.classify_regime({"A1": slow}, float(slow.times[-1]) + 10_799), qa.RegimeDecision)
    assert reason({"A1": slow}, float(slow.times[-1]) + 10_800) == "stale_bars"


def test_returns_without_a_statistic() -> None:
    """Two lone moves in a still market have no variance of the statistic: no regime; drawn over time, such windows are
    left out and the others are those of the moment."""
    lone = np.zeros(240)
    lone[0], lone[120] = 1e-3, -1e-3
    assert variance_ratio(lone, 4) is None
    made = qa.classify_regime({"A1": bars_of(lone)}, START + 240 * BAR)
    assert isinstance(made, qa.NoRegime)
    assert made.reason == "constant_prices"
    returns = np.concatenate([np.zeros(250), np.random.default_rng(1).standard_normal(300) * 1e-3])
    series = statistic_over_time({"A1": bars_of(returns)})
    assert 290 <= len(series) <= 300
    last = classified(returns)
    assert series[-1] == (last.newest_ts, last.z, last.volatility_ratio)
    assert statistic_over_time({"A1": bars_of(returns[:100])}) == []


def test_bars_ahead_of_the_clock_do_not_count() -> None:
    """In a backtest the regime at a moment is that of the bars until then; a bar may be 5 s ahead."""
    returns = np.random.default_rng(4).standard_normal(400) * 1e-3
    whole = bars_of(returns)
    at = float(whole.times[300])
    seen = qa.classify_regime({"A1": whole}, at)
    assert seen == qa.classify_regime({"A1": bars_of(returns[:300])}, at)
    assert whole.until(at).times.size == whole.until(at + 54.9).times.size == 301
    assert whole.until(at + 55).times.size == 302


@pytest.mark.parametrize(
    ("times", "closes", "lengths"),
    [
        ([1.0, 2.0], [1.0, 1.0], 60.0), (np.arange(3.0), np.ones(2), np.ones(3)), (np.ones(3), np.ones(3), np.ones(3)),
        (np.arange(3.0), -np.ones(3), np.ones(3)), (np.arange(3.0), np.ones(3), np.zeros(3)),
        (np.arange(3.0), np.array([1.0, np.nan, 1.0]), np.ones(3)),
    ],
)  # fmt: skip
def test_bars_that_no_stream_gives_are_refused(times: Any, closes: Any, lengths: Any) -> None:
    """Lists, columns of different lengths, times that do not ascend, closes that are no price."""
    with pytest.raises(ValueError, match="must"):
        qa.Bars(times, closes, lengths)


def test_gaps_are_dropped_and_counted() -> None:
    """A return across a gap is no return: it is left out of the universe where no symbol has one, and counted."""
    rng = np.random.default_rng(9)
    returns = rng.standard_normal(300) * 1e-3
    whole = bars_of(returns)
    end = float(whole.times[-1])
    holed = bars_of(returns, skip=(20, 21, 50))
    made, filled = qa.classify_regime({"A1": holed}, end), qa.classify_regime({"A1": holed, "B1": whole}, end)
    assert isinstance(made, qa.RegimeDecision)
    assert isinstance(filled, qa.RegimeDecision)
    assert (made.gaps, filled.gaps) == (2, 0)
    jump = qa.Bars(
        np.concatenate([whole.times, whole.times[-1] + 172_800 + whole.times - whole.times[0] + BAR]),
        np.concatenate([whole.closes, 50.0 * whole.closes]),
        np.full(2 * whole.times.size, BAR),
    )
    after = qa.classify_regime({"A1": jump}, float(jump.times[-1]))
    assert isinstance(after, qa.RegimeDecision)
    assert after.gaps == 1
    assert after.z == pytest.approx(classified(returns).z, rel=1e-9), "the fifty-fold jump over two days is no return"


@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.randoms())
def test_the_universe_weighs_all_alike(seed: int, n: int, random: Any) -> None:
    """The order of symbols changes no bit; a symbol given twice under two names counts twice; scale changes nothing."""
    rng = np.random.default_rng(seed)
    bars = {f"S{i}": bars_of(rng.standard_normal(250) * 1e-3) for i in range(n)}
    end = float(bars["S0"].times[-1])
    shuffled = list(bars.items())
    random.shuffle(shuffled)
    made = qa.classify_regime(bars, end)
    assert qa.classify_regime(dict(shuffled), end) == made
    assert isinstance(made, qa.RegimeDecision)
    table = returns_of(bars)
    universe = np.nanmean(table.values[:, 1:], axis=0)
    found = variance_ratio(universe[-240:], 4)
    assume(found is not None)
    assert found is not None
    assert made.z == pytest.approx(found[1], rel=1e-12)
    scaled = {s: qa.Bars(b.times, 7.0 * b.closes, b.bar_s) for s, b in bars.items()}
    again = qa.classify_regime(scaled, end)
    assert isinstance(again, qa.RegimeDecision)
    assert again.z == pytest.approx(made.z, rel=1e-6)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [({"horizon": 1}, "horizon"), ({"window": 7}, "window"), ({"z": 0.0}, "z"), ({"chop_vol": 0.0}, "chop_vol")],
)
def test_contradictions_are_refused(wrong: dict[str, Any], named: str) -> None:
    """Each contradiction is named."""
    with pytest.raises(ValueError, match=named):
        qa.RegimeParams(**wrong)
