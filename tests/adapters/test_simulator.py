"""Laws of the simulated market: a seed is a path, prices stay sane, and regimes and groups are what they claim."""

from __future__ import annotations

import hashlib
import math
import os
import statistics
import subprocess
import sys
from functools import lru_cache
from itertools import combinations, islice, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantum_alloc.adapters.candles import Step, is_gap
from quantum_alloc.adapters.simulator import (
    DEFAULT_SYMBOLS,
    PHI,
    REGIMES,
    START,
    TrueRegime,
    asset,
    simulate,
    simulate_with_regime,
)

BARS = 12_000
SEEDS = st.integers(-(10**30), 10**30)
NAMES = st.lists(st.text("ABCXYZ0189", min_size=2, max_size=30), min_size=1, max_size=4, unique=True)


def digest(seed: int, bars: int = 3000) -> str:
    text = "\n".join(repr(pair) for pair in islice(simulate_with_regime(seed), bars))
    return hashlib.sha256(text.encode()).hexdigest()


@lru_cache(maxsize=4)
def run(seed: int) -> tuple[dict[str, list[float]], list[TrueRegime]]:
    """Log returns by symbol and the regime of each, of ``BARS`` bars."""
    pairs = list(islice(simulate_with_regime(seed), BARS))
    closes = {s: [step.candles[i].close for step, _ in pairs] for i, s in enumerate(sorted(DEFAULT_SYMBOLS))}
    returns = {s: [math.log(b / a) for a, b in pairwise(p)] for s, p in closes.items()}
    return returns, [regime for _, regime in pairs][1:]


def market(returns: dict[str, list[float]]) -> list[float]:
    return [statistics.fmean(bar) for bar in zip(*returns.values(), strict=True)]


def test_a_seed_is_one_path_for_ever() -> None:
    """A seed's first steps, through all regimes, are pinned: a change of model, Python or machine would show."""
    assert digest(1) == "5437252d16d383e504c4665edf450de56da796173cb4bf524ab04c1ab969c64a"
    assert digest(1) != digest(8)


def test_the_hash_seed_changes_nothing() -> None:
    """Another process with another hash seed gives the same bits."""
    code = (
        "from itertools import islice; from quantum_alloc.adapters.simulator import simulate_with_regime as s; "
        "import hashlib; t = '\\n'.join(repr(p) for p in islice(s(1), 3000)); "
        "print(hashlib.sha256(t.encode()).hexdigest())"
    )
    for hash_seed in ("1", "2"):
        env = {**os.environ, "PYTHONHASHSEED": hash_seed}
        out = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
        assert out.stdout.strip() == digest(1)


@given(seed=SEEDS, names=NAMES)
def test_a_symbol_depends_on_seed_and_name_only(seed: int, names: list[str]) -> None:
    """Which other symbols are simulated, and their order, changes no candle and no regime."""
    together = list(islice(simulate_with_regime(seed, symbols=names), 20))
    assert together == list(islice(simulate_with_regime(seed, symbols=names[::-1]), 20))
    for i, name in enumerate(sorted(names)):
        alone = islice(simulate_with_regime(seed, symbols=[name]), 20)
        assert [(s.candles[0], r) for s, r in alone] == [(s.candles[i], r) for s, r in together]


@given(seed=SEEDS, names=NAMES, bar_s=st.sampled_from([1.0, 60.0, 300.0, 86_400.0, 1e7]))
def test_candles_are_sane_at_any_bar_length(seed: int, names: list[str], bar_s: float) -> None:
    """Prices are finite, positive and near enough to their start; volumes positive; bars follow without a gap."""
    before = START
    for step in islice(simulate(seed, symbols=names, bar_s=bar_s), 50):
        assert [c.symbol for c in step.candles] == sorted(names)
        assert not any(is_gap(before, c) for c in step.candles)
        before = step.close_time
        for c in step.candles:
            assert (c.close_time, c.bar_s) == (step.close_time, bar_s)
            start = asset(c.symbol).start_usd
            assert start / 100.1 < c.close < start * 100.1
            assert 0.0 < c.volume < math.inf
            assert float(f"{c.close:.8g}") == c.close
            assert float(f"{c.volume:.8g}") == c.volume


def test_times_do_not_drift() -> None:
    """The n-th step closes at start + n bars, and simulate is simulate_with_regime without the regime."""
    steps = list(islice(simulate(1, start=6000.0), 1000))
    assert [s.close_time for s in steps] == [6000.0 + 60.0 * (i + 1) for i in range(1000)]
    assert steps == [s for s, _ in islice(simulate_with_regime(1, start=6000.0), 1000)]
    assert START % 60 == 0


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_correlations_show_the_groups(seed: int) -> None:
    """Minute returns correlate 0.75 to 0.9 within a group and 0.3 to 0.6 across groups."""
    returns, _ = run(seed)
    for a, b in combinations(returns, 2):
        low, high = (0.75, 0.9) if asset(a).group == asset(b).group else (0.3, 0.6)
        assert low < statistics.correlation(returns[a], returns[b]) < high, (a, b)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_sigmas_are_plausible(seed: int) -> None:
    """A minute's sigma is 0.0006 to 0.0015 for majors and 0.0006 to 0.0025 for the rest; days stay days."""
    returns, _ = run(seed)
    for symbol, series in returns.items():
        assert 0.0006 < statistics.pstdev(series) < (0.0015 if asset(symbol).group == "majors" else 0.0025), symbol
        assert abs(sum(series)) < 1.0, symbol


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_regimes_are_what_they_say(seed: int) -> None:
    """The market return's autocorrelation has the regime's sign, CHOP is noisier, and regimes last hundreds of bars."""
    returns, regimes = run(seed)
    m = market(returns)
    noise: dict[TrueRegime, float] = {}
    for regime in REGIMES:
        at = [i for i in range(1, len(m)) if regimes[i] == regime]
        assert len(at) > 200, regime
        rho = statistics.correlation([m[i - 1] for i in at], [m[i] for i in at])
        assert abs(rho - 0.75 * PHI[regime]) < 0.12, regime
        noise[regime] = statistics.pstdev([m[i] for i in at])
    assert noise["CHOP"] > 1.4 * max(noise[r] for r in REGIMES if r != "CHOP")
    changes = sum(a != b for a, b in pairwise(regimes))
    assert 100 < BARS / changes < 1000


def test_volatility_clusters() -> None:
    """Within a regime the size of a return tells something about the next."""
    returns, regimes = run(1)
    m = [abs(x) for x in market(returns)]
    at = [i for i in range(5, len(m)) if "CHOP" not in regimes[i - 5 : i + 1]]
    assert statistics.correlation([m[i - 5] for i in at], [m[i] for i in at]) > 0.03


def test_unknown_symbols_get_a_price_from_their_name() -> None:
    """A name outside of the table has one plausible price for ever."""
    first = {s: next(simulate(1, symbols=[s])) for s in ("DOGEUSDT", "PEPEUSDT", "ZZ")}
    assert all(isinstance(step, Step) for step in first.values())
    assert len({asset(s).start_usd for s in first}) == 3
    assert all(0.1 <= asset(s).start_usd < 1000.0 for s in first)


@pytest.mark.parametrize(
    ("symbols", "start", "bar_s"),
    [
        ([], START, 60.0),
        (["BTCUSDT", "BTCUSDT"], START, 60.0),
        (["btc"], START, 60.0),
        (["\udcff"], START, 60.0),
        (["BTCUSDT"], 0.0, 60.0),
        (["BTCUSDT"], math.nan, 60.0),
        (["BTCUSDT"], START, 0.0),
        (["BTCUSDT"], START, math.inf),
    ],
)
def test_nonsense_is_refused_at_once(symbols: list[str], start: float, bar_s: float) -> None:
    """A bad argument is refused when it is given and not at the first step."""
    with pytest.raises(ValueError, match=r"symbol|positive"):
        simulate(1, symbols=symbols, start=start, bar_s=bar_s)
