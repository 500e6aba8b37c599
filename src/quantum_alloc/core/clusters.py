"""Clusters (P2.7): which symbols move together, and how much strain each group puts on the portfolio.

    corr(i, j)   correlation of log returns over the bars in common, of the last LOOKBACK bars; undefined below
                 MIN_COMMON of them, and where either does not vary
    distance     sqrt((1 - corr) / 2); after Mantegna (1999), "Hierarchical structure in financial markets",
                 European Physical Journal B 11, 193-197
    clusters     average linkage (UPGMA: Sokal and Michener, 1958), cut where corr is CORR_MIN
    weight       notional of the cluster / all notional
    concentration  |sum of signed notional| / notional of the cluster
    stress       clamp01(weight x concentration x mean pairwise correlation)
    alpha        mean alpha_score of the members

An undefined pair is as far apart as can be; a symbol without any defined pair is a cluster of its own. A cluster is
named after its member with the largest notional when it is first seen, and keeps the name while at least half of its
members stay together (an even split: the half with the namesake). Source: the project's rules, section 7.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from quantum_alloc.core.allocation import UNMAPPED
from quantum_alloc.core.numeric import Num, clamp01, exact_sum
from quantum_alloc.core.params import check
from quantum_alloc.core.regime import STILL
from quantum_alloc.core.returns import Bars, returns_of
from quantum_alloc.core.table import Explained, Table

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

RULES_VERSION = "p27_v1"
FAR = 1.0
"""Distance of an undefined pair: that of a correlation of -1."""


@dataclass(frozen=True, slots=True)
class ClusterParams:
    """The numbers of P2.7.

    Attributes:
        lookback: bars that the correlations look at.
        corr_min: correlation at which the tree is cut.
        min_common: bars that two symbols must have in common.

    Raises:
        ValueError: naming every contradiction.
    """

    lookback: int = 360
    corr_min: float = 0.70
    min_common: int = 30

    def __post_init__(self) -> None:
        """Refuse contradictions."""
        check(
            (self.min_common >= 3, "min_common must be at least 3"),
            (self.lookback >= self.min_common, "lookback must be at least min_common"),
            (-1.0 < self.corr_min < 1.0, "corr_min must be between -1 and 1"),
        )


DEFAULTS = ClusterParams()


@dataclass(frozen=True, slots=True)
class ClusterStress(Explained):
    """One cluster's strain on the portfolio.

    Attributes:
        cluster_id: its name.
        members: its symbols, in sort order.
        weight: its notional over all notional, 0..1.
        concentration: 0 when longs and shorts are even, 1 when all point one way.
        correlation: mean over its pairs; 0 for one member.
        stress: 0..1.
        alpha: mean alpha_score of the members that have one, 0 without.
    """

    cluster_id: str
    members: tuple[str, ...]
    weight: float
    concentration: float
    correlation: float
    stress: float
    alpha: float


@dataclass(frozen=True, slots=True, eq=False)
class Correlations:
    """Pairwise correlations.

    Attributes:
        symbols: in sort order.
        values: (n, n), 1 on the diagonal; NaN where undefined.
        common: (n, n) bars that each pair has in common.
    """

    symbols: tuple[str, ...]
    values: Floats
    common: Floats

    @property
    def is_known(self) -> bool:
        """False where there are several symbols and no pair of them has a correlation yet."""
        import numpy as np

        n = len(self.symbols)
        return n == 1 or int((~np.isnan(self.values)).sum()) > n


@dataclass(frozen=True, slots=True)
class ClusterCycle(Table):
    """The map and its strains.

    Attributes:
        clusters: by name, the members in sort order.
        stresses: one a cluster whose correlation is known, in the order of the names.
    """

    clusters: Mapping[str, tuple[str, ...]]
    stresses: tuple[ClusterStress, ...]

    def rows(self) -> list[dict[str, Any]]:
        """Cluster, members and stress, one row a cluster."""
        names = ("cluster_id", "members", "weight", "concentration", "correlation", "stress", "alpha")
        return [{n: getattr(s, n) for n in names} for s in self.stresses]


def distance(correlation: Num) -> Num:
    """sqrt((1 - corr) / 2): 0 at 1, 1 at -1.

    Args:
        correlation: -1..1, float or array.

    >>> distance(1.0), distance(-1.0)
    (0.0, 1.0)
    """
    apart: Num = clamp01((1.0 - correlation) / 2.0) ** 0.5
    return apart


def correlations(
    bars: Mapping[str, Bars], params: ClusterParams | None = None, since: float = -math.inf
) -> Correlations:
    """Correlations of log returns over the bars in common.

    Args:
        bars: by symbol.
        params: lookback and least number of common bars.
        since: symbols whose newest bar closed before are left out, unix seconds.
    """
    import numpy as np

    p = params or DEFAULTS
    table = returns_of(bars, p.lookback, since)
    values = table.values
    there = ~np.isnan(values)
    mask = there.astype(np.float64)
    counts = mask.sum(axis=1)
    held = np.where(there, values, 0.0)
    means = held.sum(axis=1) / np.maximum(counts, 1.0)
    centred = np.where(there, values - means[:, None], 0.0)  # small numbers: sums of squares keep their digits
    scale = np.sqrt((centred**2).sum(axis=1) / np.maximum(counts, 1.0))
    moves = scale > STILL
    centred /= np.where(moves, scale, 1.0)[:, None]
    common = mask @ mask.T
    n = np.maximum(common, 1.0)
    sums = centred @ mask.T  # of i over the bars in common with j
    squares = (centred**2) @ mask.T
    spread = squares - sums**2 / n
    with np.errstate(divide="ignore", invalid="ignore"):
        corr = (centred @ centred.T - sums * sums.T / n) / np.sqrt(spread * spread.T)
    alive = moves[:, None] & moves[None, :] & (common >= p.min_common) & (spread > 1e-12) & (spread.T > 1e-12)
    corr = np.where(alive, np.clip(corr, -1.0, 1.0), np.nan)
    corr = (corr + corr.T) / 2.0
    np.fill_diagonal(corr, 1.0)
    return Correlations(table.symbols, corr, common)


def groups_of(found: Correlations, params: ClusterParams | None = None) -> list[tuple[str, ...]]:
    """Groups of symbols by average linkage, each in sort order, the list too.

    Args:
        found: the correlations.
        params: where the tree is cut.
    """
    import numpy as np

    p = params or DEFAULTS
    names, corr = found.symbols, found.values
    off = ~np.isnan(corr) & ~np.eye(len(names), dtype=bool)
    linked = np.flatnonzero(off.any(axis=1))
    alone = [(names[i],) for i in range(len(names)) if i not in set(linked.tolist())]
    if linked.size < 2:
        return sorted(alone)
    from scipy.cluster.hierarchy import fcluster, linkage  # type: ignore[import-untyped] # scipy brings no types

    some = corr[np.ix_(linked, linked)]
    apart = np.where(np.isnan(some), FAR, distance(np.nan_to_num(some)))
    tree = linkage(apart[np.triu_indices(linked.size, 1)], method="average")
    labels = fcluster(tree, distance(p.corr_min), criterion="distance")
    groups: dict[int, list[str]] = {}
    for i, label in zip(linked.tolist(), labels.tolist(), strict=True):
        groups.setdefault(label, []).append(names[i])
    return sorted([*alone, *(tuple(g) for g in groups.values())])


def _first_name(members: Sequence[str], notional_usd: Mapping[str, float], taken: set[str]) -> str:
    by_size = sorted(members, key=lambda s: (-abs(notional_usd.get(s, 0.0)), s))
    free = [s for s in by_size if s not in taken and s != UNMAPPED]
    if free:
        return free[0]
    n = 2
    while f"{by_size[0]}.{n}" in taken:
        n += 1
    return f"{by_size[0]}.{n}"


def name_groups(
    groups: Sequence[Sequence[str]], before: Mapping[str, Sequence[str]], notional_usd: Mapping[str, float]
) -> dict[str, tuple[str, ...]]:
    """Names for groups: those of before where at least half of the members are still together.

    Args:
        groups: disjoint.
        before: name to members, as they were.
        notional_usd: signed notional by symbol; absent counts 0.

    >>> name_groups([["A1", "B1"], ["C1"]], {"A1": ["A1", "B1", "C1"]}, {"C1": 5.0})
    {'A1': ('A1', 'B1'), 'C1': ('C1',)}
    """
    claims = []
    for name, old in before.items():
        for i, group in enumerate(groups):
            stay = len(set(old) & set(group))
            if stay and 2 * stay >= len(set(old)):
                claims.append((-stay, name.partition(".")[0] not in group, name, i))
    named: dict[int, str] = {}
    taken: set[str] = set()
    for _, _, name, i in sorted(claims):
        if i not in named and name not in taken:
            named[i] = name
            taken.add(name)
    rest = [i for i in range(len(groups)) if i not in named]
    for i in sorted(rest, key=lambda i: sorted(groups[i])):
        named[i] = _first_name(groups[i], notional_usd, taken)
        taken.add(named[i])
    return {named[i]: tuple(sorted(groups[i])) for i in sorted(named, key=lambda i: named[i])}


def mean_correlation(members: Sequence[str], found: Correlations) -> float | None:
    """Mean over the defined pairs of a group; 0 for one member, None for several without a defined pair.

    Args:
        members: symbols.
        found: the correlations.
    """
    place = {s: i for i, s in enumerate(found.symbols)}
    at = [place[s] for s in members if s in place]
    pairs = [float(found.values[i, j]) for k, i in enumerate(at) for j in at[k + 1 :]]
    defined = [c for c in pairs if not math.isnan(c)]
    if len(members) == 1:
        return 0.0
    return exact_sum(defined) / len(defined) if defined else None


def stress_of(weight: Num, concentration: Num, correlation: Num) -> Num:
    """clamp01(weight x concentration x correlation).

    Args:
        weight: 0..1, float or array.
        concentration: 0..1.
        correlation: mean pairwise.

    >>> stress_of(0.5, 1.0, 0.8)
    0.4
    """
    return clamp01(weight * concentration * correlation)


def cluster_stresses(
    clusters: Mapping[str, Sequence[str]],
    found: Correlations,
    notional_usd: Mapping[str, float],
    alpha_score: Mapping[str, float],
) -> tuple[ClusterStress, ...]:
    """The strain of each cluster; one whose correlation is not known has none, which readers take as neutral.

    Args:
        clusters: name to members.
        found: the correlations.
        notional_usd: signed notional by symbol; absent counts 0.
        alpha_score: by symbol; absent is left out of the mean.
    """
    everything = exact_sum(abs(x) for x in notional_usd.values())
    out = []
    for name in sorted(clusters):
        members = tuple(sorted(clusters[name]))
        signed = [notional_usd[s] for s in members if s in notional_usd]
        own = exact_sum(abs(x) for x in signed)
        weight = own / everything if everything > 0.0 else 0.0
        concentration = abs(exact_sum(signed)) / own if own > 0.0 else 0.0
        correlation = mean_correlation(members, found)
        if correlation is None:
            continue
        scores = [alpha_score[s] for s in members if s in alpha_score]
        out.append(
            ClusterStress(
                name,
                members,
                weight,
                concentration,
                correlation,
                stress_of(weight, concentration, correlation),
                exact_sum(scores) / len(scores) if scores else 0.0,
            )
        )
    return tuple(out)


def cluster(
    bars: Mapping[str, Bars],
    before: Mapping[str, Sequence[str]] | None = None,
    notional_usd: Mapping[str, float] | None = None,
    alpha_score: Mapping[str, float] | None = None,
    params: ClusterParams | None = None,
) -> ClusterCycle:
    """Clusters of all symbols that have bars, with names and strains.

    Args:
        bars: by symbol.
        before: name to members, as they were; None for none.
        notional_usd: signed notional by symbol; None for none.
        alpha_score: by symbol; None for none.
        params: the numbers of P2.7.
    """
    p, notional = params or DEFAULTS, notional_usd or {}
    found = correlations(bars, p)
    named = name_groups(groups_of(found, p), before or {}, notional)
    return ClusterCycle(named, cluster_stresses(named, found, notional, alpha_score or {}))
