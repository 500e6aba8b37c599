"""Laws of the clusters: recovered from simulated blocks, stable names, defined answers for broken data."""

from __future__ import annotations

import csv
import gzip
import math
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import quantum_alloc.core as qa
from quantum_alloc.core.clusters import Correlations, correlations, groups_of, mean_correlation, name_groups, stress_of
from tests.property.test_regime import BAR, START, bars_of

Floats = NDArray[np.float64]


def blocks(
    rng: np.random.Generator, sizes: list[int], within: float = 0.9, between: float = 0.1, n: int = 360
) -> Floats:
    """Returns with these correlations, one row a symbol."""
    market, rows = rng.standard_normal(n), []
    for size in sizes:
        group = rng.standard_normal(n)
        for _ in range(size):
            own = rng.standard_normal(n)
            rows.append(math.sqrt(between) * market + math.sqrt(within - between) * group + math.sqrt(1 - within) * own)
    return np.array(rows) * 1e-3


def named_bars(returns: Floats, **skip: tuple[int, ...]) -> dict[str, qa.Bars]:
    """Bars of S00, S01, ... with these returns."""
    return {f"S{i:02}": bars_of(r, skip=skip.get(f"S{i:02}", ())) for i, r in enumerate(returns)}


def members(cycle: qa.ClusterCycle) -> list[tuple[str, ...]]:
    """The groups without their names."""
    return sorted(cycle.clusters.values())


@given(st.integers(0, 2**32 - 1), st.lists(st.integers(1, 5), min_size=1, max_size=5), st.randoms())
def test_blocks_are_recovered(seed: int, sizes: list[int], random: Any) -> None:
    """Correlations of 0.9 within and 0.1 between: exactly the blocks, whatever the order of the symbols."""
    bars = named_bars(blocks(np.random.default_rng(seed), sizes))
    names = iter(sorted(bars))
    expected = [tuple(next(names) for _ in range(size)) for size in sizes]
    shuffled = list(bars.items())
    random.shuffle(shuffled)
    made = qa.cluster(dict(shuffled))
    assert members(made) == sorted(expected)
    assert made == qa.cluster(bars)


@given(st.integers(0, 2**32 - 1), st.integers(2, 5), st.data())
def test_names_stay(seed: int, size: int, data: st.DataObject) -> None:
    """Names are unchanged when one member leaves, a bar is missing, the order changes, or notionals change."""
    rng = np.random.default_rng(seed)
    bars = named_bars(blocks(rng, [size, size + 1, 3]))
    notional = {s: float(rng.uniform(-1000, 1000)) for s in bars}
    first = qa.cluster(bars, None, notional)
    for name, group in first.clusters.items():
        assert name == max(group, key=lambda s: abs(notional[s]))
    gone = data.draw(st.sampled_from(sorted(bars)))
    fewer = {s: b for s, b in bars.items() if s != gone}
    holed = {s: bars_of(np.diff(np.log(b.closes)), skip=(data.draw(st.integers(1, 300)),)) for s, b in bars.items()}
    other = {s: -x for s, x in reversed(notional.items())}
    again = qa.cluster(holed, first.clusters, other)
    assert again.clusters == first.clusters
    left = qa.cluster(fewer, first.clusters, other)
    for name, group in first.clusters.items():
        if group != (gone,):
            assert left.clusters[name] == tuple(s for s in group if s != gone)


def test_names_by_table() -> None:
    """Half and more keeps a name, an even split goes with the namesake, a merger takes the greater overlap, a name that
    is taken is not given twice, and none is UNKNOWN."""

    def named(groups: list[list[str]], before: dict[str, list[str]], **usd: float) -> dict[str, tuple[str, ...]]:
        return name_groups(groups, before, usd)

    assert named([["A1", "B1"]], {}, A1=1.0, B1=-2.0) == {"B1": ("A1", "B1")}
    assert named([["A1", "B1"], ["C1", "D1"]], {"C1": ["A1", "B1", "C1", "D1"]}) == {
        "A1": ("A1", "B1"), "C1": ("C1", "D1"),
    }  # fmt: skip
    kept = named([["A1"], ["B1", "C1"]], {"A1": ["A1", "B1", "C1"]})
    assert kept["A1"] == ("B1", "C1"), "two of three stay together"
    assert kept["A1.2"] == ("A1",), "its namesake left, and the name is taken"
    merged = named([["A1", "B1", "C1", "D1", "E1"]], {"A1": ["A1", "B1"], "C1": ["C1", "D1", "E1"]})
    assert merged == {"C1": ("A1", "B1", "C1", "D1", "E1")}
    assert named([["A1", "B1"]], {"Z9": ["X1", "A1"]}) == {"Z9": ("A1", "B1")}
    assert named([["A1", "B1"]], {"Z9": ["X1", "Y1", "A1"]}) == {"A1": ("A1", "B1")}
    assert "UNKNOWN" not in named([["UNKNOWN"]], {})
    assert named([["UNKNOWN"]], {"UNKNOWN.2": ["UNKNOWN"]}) == {"UNKNOWN.2": ("UNKNOWN",)}
    assert named([["UNKNOWN"], ["B1"]], {"UNKNOWN.2": ["B1"]}) == {"UNKNOWN.2": ("B1",), "UNKNOWN.3": ("UNKNOWN",)}
    assert named([], {"A1": ["A1"]}) == {}


@given(st.integers(0, 2**32 - 1), st.integers(2, 12), st.floats(0.3, 0.95))
def test_nearest_neighbours_share_a_cluster(seed: int, n: int, within: float) -> None:
    """Two symbols that are each other's nearest neighbour at 0.70 or more always share one."""
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((n, n)) * rng.uniform(0, 1) + within
    returns = (mixed @ rng.standard_normal((n, 200))) * 1e-3
    found = correlations(named_bars(returns))
    of = {s: g for g in groups_of(found) for s in g}
    corr = np.where(np.eye(n, dtype=bool), -2.0, np.nan_to_num(found.values, nan=-2.0))
    for i in range(n):
        j = int(np.argmax(corr[i]))
        if int(np.argmax(corr[j])) == i and corr[i, j] >= 0.70 and (corr[i] == corr[i, j]).sum() == 1:
            assert of[found.symbols[i]] == of[found.symbols[j]]


@given(st.integers(0, 2**32 - 1), st.integers(2, 4), st.integers(40, 200))
def test_correlations_are_those_of_numpy(seed: int, n: int, length: int) -> None:
    """Over the bars in common of each pair, to 1e-9; NaN below thirty of them."""
    rng = np.random.default_rng(seed)
    returns = blocks(rng, [n], 0.6, 0.1, length)
    skips = {f"S{i:02}": tuple(int(x) for x in rng.choice(length, length // 8, replace=False)) for i in range(n)}
    bars = named_bars(returns, **skips)
    found = correlations(bars)
    table = {}
    for s, b in bars.items():
        steps = np.diff(np.log(b.closes))
        table[s] = {
            float(t): float(r) for t, r, gap in zip(b.times[1:], steps, np.diff(b.times), strict=True) if gap == BAR
        }
    for i, a in enumerate(found.symbols):
        for j, b_ in enumerate(found.symbols):
            common = sorted(table[a].keys() & table[b_].keys())
            if i != j:
                assert found.common[i, j] == len(common)
            if i != j and len(common) >= 30:
                expected = np.corrcoef([table[a][t] for t in common], [table[b_][t] for t in common])[0, 1]
                assert found.values[i, j] == pytest.approx(expected, abs=1e-9)
            elif i != j:
                assert math.isnan(found.values[i, j])


def test_broken_data_has_a_defined_answer() -> None:
    """Constant prices, one symbol, no bars in common, too few: each such symbol is a cluster of its own, stress 0."""
    rng = np.random.default_rng(1)
    good = named_bars(blocks(rng, [3]))
    still = {**good, "ZZ": bars_of(np.zeros(360))}
    assert members(qa.cluster(still)) == [("S00", "S01", "S02"), ("ZZ",)]
    elsewhere = {**good, "ZZ": bars_of(blocks(rng, [1])[0], start=START + 1e6 * BAR)}
    assert ("ZZ",) in members(qa.cluster(elsewhere, params=qa.ClusterParams(lookback=1000)))
    short = {**good, "ZZ": bars_of(blocks(rng, [1])[0][:20], start=START + 340 * BAR)}
    assert ("ZZ",) in members(qa.cluster(short))
    one = qa.cluster({"S00": good["S00"]}, None, {"S00": 5.0}, {"S00": 0.4})
    assert one.stresses == (qa.ClusterStress("S00", ("S00",), 1.0, 1.0, 0.0, 0.0, 0.4),)
    assert qa.cluster({}) == qa.ClusterCycle({}, ())
    assert qa.cluster({}).rows() == []
    only_one = {"A1": bars_of(np.array([0.1])), "B1": bars_of(np.array([0.1]))}
    assert members(qa.cluster(only_one)) == [("A1",), ("B1",)]


def test_one_odd_symbol_dissolves_nothing() -> None:
    """Bars of another length, off the grid, in gaps of the others, or of a year ago: the groups of the others stay."""
    rng = np.random.default_rng(4)
    good = named_bars(blocks(rng, [3, 2]))
    end = float(good["S00"].times[-1])
    ticks = np.arange(400.0)
    odd = {
        "seconds": qa.Bars(end - 400 + ticks, 1 + rng.random(400), np.ones(400)),
        "off the grid": qa.Bars(end - 20 * 400 + 20 * ticks, 1 + rng.random(400), np.full(400, 60.0)),
        "long dead": qa.Bars(end - 3e7 + 60 * ticks, 1 + rng.random(400), np.full(400, 60.0)),
        "mixed": qa.Bars(end - 60 * 400 + 60 * ticks, 1 + rng.random(400), np.where(ticks < 5, 1.0, 60.0)),
    }
    groups = members(qa.cluster(good))
    regime = qa.classify_regime(good, end)
    for name, bars in odd.items():
        found = members(qa.cluster({**good, "ZZUSDT": bars}))
        assert [g for g in found if "ZZUSDT" not in g] == groups, name
        made = qa.classify_regime({**good, "ZZUSDT": bars}, end)
        assert isinstance(made, qa.RegimeDecision), name
        if name in ("seconds", "long dead"):
            assert made == regime, name
    late = {s: qa.Bars(b.times + rng.uniform(-2, 2, b.times.size), b.closes, b.bar_s) for s, b in good.items()}
    assert members(qa.cluster(late)) == groups, "a grid of jittered times is one grid"
    half = {s: qa.Bars(b.times + 30.0, b.closes, b.bar_s) for s, b in late.items()}
    assert members(qa.cluster(half)) == groups, "wherever the minute begins"
    holed = {s: bars_of(np.diff(np.log(b.closes))[:340]) for s, b in good.items()}
    later = {s: qa.Bars(b.times[341:] + 1e5 * BAR, b.closes[341:], b.bar_s[341:]) for s, b in good.items()}
    both = {
        s: qa.Bars(*(np.concatenate(pair) for pair in zip(_rows(holed[s]), _rows(later[s]), strict=True))) for s in good
    }
    between = qa.Bars(both["S00"].times[340] + BAR * np.arange(1.0, 401.0), 1 + rng.random(400), np.full(400, BAR))
    alone = members(qa.cluster(both))
    assert alone == groups
    filled = members(qa.cluster({**both, "ZZUSDT": between}))
    assert [g for g in filled if "ZZUSDT" not in g] == groups, "bars in the others' gap take none of their columns"
    apart = {s: qa.Bars(b.times + 0.001 * i, b.closes, b.bar_s) for i, (s, b) in enumerate(good.items())}
    assert members(qa.cluster(apart)) == groups


def _rows(bars: qa.Bars) -> tuple[Floats, Floats, Floats]:
    return bars.times, bars.closes, bars.bar_s


def test_the_linkage_is_the_average_one() -> None:
    """A chain of three: single linkage would join all, complete linkage would join none of what average joins."""
    near, far = 0.9, 0.3

    def groups(ab: float, bc: float, ac: float) -> list[tuple[str, ...]]:
        values = np.array([[1.0, ab, ac], [ab, 1.0, bc], [ac, bc, 1.0]])
        return groups_of(Correlations(("A1", "B1", "C1"), values, np.full((3, 3), 99.0)))

    assert groups(near, 0.75, far) == [("A1", "B1"), ("C1",)], "single linkage would take C1 in at 0.75"
    assert groups(near, 0.85, 0.6) == [("A1", "B1", "C1")], "complete linkage would keep C1 out at 0.6"


def test_stress_is_weight_times_concentration_times_correlation() -> None:
    """By hand: two of three clusters hold the book, one long and short, one long alone."""
    found = Correlations(
        ("A1", "B1", "C1"), np.array([[1.0, 0.8, 0.2], [0.8, 1.0, np.nan], [0.2, np.nan, 1.0]]), np.zeros((3, 3))
    )
    usd = {"A1": 600.0, "B1": -200.0, "C1": 200.0}
    stresses = {
        s.cluster_id: s
        for s in qa.cluster_stresses({"X": ["A1", "B1"], "Y": ["C1"], "Z": ["Q1"]}, found, usd, {"A1": 0.5, "B1": 0.1})
    }
    x = stresses["X"]
    assert (x.weight, x.concentration, x.correlation) == (0.8, 0.5, 0.8)
    assert x.stress == stress_of(0.8, 0.5, 0.8) == pytest.approx(0.32)
    assert x.alpha == pytest.approx(0.3)
    assert (stresses["Y"].weight, stresses["Y"].correlation, stresses["Y"].stress) == (0.2, 0.0, 0.0)
    assert (stresses["Z"].weight, stresses["Z"].concentration, stresses["Z"].alpha) == (0.0, 0.0, 0.0)
    assert mean_correlation(["B1", "C1"], found) is None
    assert qa.cluster_stresses({"W": ["B1", "C1"]}, found, usd, {}) == (), "what is not known is no stress of 0"
    assert sum(s.weight for s in stresses.values()) == pytest.approx(1.0)


def real_bars(path: Path) -> dict[str, qa.Bars]:
    """All symbols of the market data."""
    rows: dict[str, list[tuple[float, float]]] = defaultdict(list)
    with gzip.open(path, "rt") as file:
        for row in csv.DictReader(file):
            rows[row["symbol"]].append((int(row["timestamp_ms"]) / 1000 + 60, float(row["close"])))
    return {
        s: qa.Bars(np.array([t for t, _ in r]), np.array([c for _, c in r]), np.full(len(r), 60.0))
        for s, r in ((s, sorted(r)) for s, r in rows.items())
    }


def test_contracts_of_a_coin_share_a_cluster_on_real_candles(shared: Path) -> None:
    """In every 360-bar window of the market data, two days' gap included: the USDC and USDT contracts of a coin share a
    cluster wherever their correlation is 0.70 or more."""
    bars = real_bars(shared / "data" / "klines_1m_2025-12-13_18.csv.gz")
    assert len(bars) == 44
    pairs = [(s, s.replace("USDC", "USDT")) for s in bars if s.endswith("USDC") and s.replace("USDC", "USDT") in bars]
    assert len(pairs) > 5
    times = np.unique(np.concatenate([b.times for b in bars.values()]))
    looked = 0
    for end in range(361, times.size + 1):
        window = {s: _until(b, times[end - 361], times[end - 1]) for s, b in bars.items()}
        found = correlations(window)
        of = {s: g for g in groups_of(found) for s in g}
        place = {s: i for i, s in enumerate(found.symbols)}
        for a, b in pairs:
            if a in place and b in place and found.values[place[a], place[b]] >= 0.70:
                looked += 1
                assert of[a] == of[b], (a, b, end)
    assert looked > 4000


def test_regime_and_clusters_of_real_candles_with_a_two_days_gap(shared: Path) -> None:
    """44 symbols, two gaps, one of two days: at every moment a regime or a reason, every symbol with bars of a day
    in exactly one cluster, and stress within 0..1."""
    bars = real_bars(shared / "data" / "klines_1m_2025-12-13_18.csv.gz")
    times = np.unique(np.concatenate([b.times for b in bars.values()]))
    called, reasons = set(), set()
    notional = {s: 100.0 * (-1) ** i for i, s in enumerate(bars)}
    for end in range(10, times.size, 90):
        now = float(times[end])
        seen = {s: _until(b, 0.0, now) for s, b in bars.items()}
        regime = qa.classify_regime(seen, now)
        if isinstance(regime, qa.NoRegime):
            reasons.add(regime.reason)
            assert end < 300
        else:
            called.add(regime.regime)
            assert 0.0 <= regime.confidence <= 1.0
            assert regime.gaps <= 2
        made = qa.cluster(seen, None, notional)
        grouped = [s for g in made.clusters.values() for s in g]
        assert sorted(grouped) == sorted(seen)
        assert all(0.0 <= s.stress <= 1.0 for s in made.stresses)
    assert reasons == {"too_few_bars"}
    assert len(called) >= 2


def _until(bars: qa.Bars, begin: float, end: float) -> qa.Bars:
    keep = (bars.times >= begin) & (bars.times <= end)
    return qa.Bars(bars.times[keep], bars.closes[keep], bars.bar_s[keep])


def test_five_hundred_symbols(capsys: pytest.CaptureFixture[str]) -> None:
    """500 symbols x 360 bars are clustered; the time is told, a benchmark judges it."""
    bars = named_bars(blocks(np.random.default_rng(2), [10] * 50))
    started = time.perf_counter()
    made = qa.cluster(bars)
    with capsys.disabled():
        print(f" 500 symbols in {time.perf_counter() - started:.2f} s", end="")
    assert len(made.clusters) == 50


@pytest.mark.parametrize(
    ("wrong", "named"),
    [({"min_common": 2}, "min_common"), ({"lookback": 10}, "lookback"), ({"corr_min": 1.0}, "corr_min")],
)
def test_contradictions_are_refused(wrong: dict[str, Any], named: str) -> None:
    """Each contradiction is named."""
    with pytest.raises(ValueError, match=named):
        qa.ClusterParams(**wrong)
