"""A whole portfolio's targets: each symbol alone, then the caps that groups share.

Two passes over the same formula: the first gives every symbol's symbol-capped target, the exact sums per group follow
from it, the second applies each group's one ratio. So a decision can be made again from its own inputs and the one
number that it shares with others, the sum of its group. ``allocate_arrays`` is the same for numpy arrays, bit for bit.

Source: the project's rules, section 2, "Cluster cap".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from quantum_alloc.core.allocation import (
    AllocationDecision,
    SharedInputs,
    Skipped,
    SymbolInputs,
    allocate,
    cap_group,
    group_of,
    halted,
)
from quantum_alloc.core.factors import (
    DEFAULTS,
    AllocationParams,
    cluster_factor,
    cluster_ratio,
    drawdown_factor,
    performance_factor,
    uncapped_target,
)
from quantum_alloc.core.isolate import Attempt, plainly
from quantum_alloc.core.numeric import exact_sum, smaller
from quantum_alloc.core.table import Explained, Table

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class AllocationCycle(Explained, Table):
    """One cycle's targets.

    Attributes:
        shared: what all symbols share.
        params: the numbers of P2.9.
        halted: empty, or why nothing is written.
        decisions: in the order of the symbols' names.
        skipped: symbols without a target, and why.
        group_sums_usd: by group, the sum of symbol-capped targets before the cluster cap, USD.
    """

    shared: SharedInputs
    params: AllocationParams
    halted: str
    decisions: tuple[AllocationDecision, ...]
    skipped: tuple[Skipped, ...]
    group_sums_usd: Mapping[str, float]

    def rows(self) -> list[dict[str, Any]]:
        """Symbol, target and what made it, one row a symbol."""
        names = (
            "symbol", "base_usd", "regime_factor", "cluster_factor", "drawdown_factor", "performance_factor",
            "symbol_cap_usd", "cluster_id", "cluster_ratio", "target_usd", "weight", "confidence", "bound",
        )  # fmt: skip
        return [{n: getattr(d, n) for n in names} for d in self.decisions]

    def _repr_html_(self) -> str:
        return f"<p>nothing is written: {self.halted}</p>" if self.halted else Table._repr_html_(self)


def _equity_usd(shared: SharedInputs) -> float:
    return shared.portfolio.value.equity_usd if shared.portfolio.value is not None else 0.0


def allocate_portfolio(
    symbols: Sequence[SymbolInputs],
    shared: SharedInputs,
    params: AllocationParams | None = None,
    attempt: Attempt = plainly,
) -> AllocationCycle:
    """Targets of all symbols, caps included. The order of ``symbols`` changes nothing.

    Args:
        symbols: one entry a symbol, names distinct.
        shared: the cycle's readings.
        params: the numbers of P2.9.
        attempt: how one symbol's step is run (``core.isolate``).

    Raises:
        ValueError: a symbol is given twice.

    >>> from quantum_alloc.core.portfolio import Portfolio
    >>> from quantum_alloc.core.reading import fresh, missing
    >>> shared = SharedInputs(0.0, fresh(Portfolio(100_000.0, 0.0)), missing())
    >>> book = [SymbolInputs(s, fresh(30_000.0), "C1") for s in ("BTCUSDT", "ETHUSDT", "SOLUSDT")]
    >>> [round(d.target_usd, 6) for d in allocate_portfolio(book, shared).decisions]
    [20000.0, 20000.0, 20000.0]
    """
    p = params or DEFAULTS
    if len({s.symbol for s in symbols}) != len(symbols):
        raise ValueError("a symbol is given twice: its targets would be counted twice under the caps")
    why = halted(shared)
    if why:
        return AllocationCycle(shared, p, why, (), (), {})
    alone: list[AllocationDecision] = []
    skipped: list[Skipped] = []
    for inputs in sorted(symbols, key=lambda s: s.symbol):
        made = attempt(inputs.symbol, partial(allocate, inputs, shared, p))
        if isinstance(made, AllocationDecision):
            alone.append(made)
        elif made is not None:
            skipped.append(made)
    members: dict[str, list[float]] = {}
    for d in alone:
        group = group_of(d.inputs, shared, p)
        if group is not None:
            members.setdefault(group, []).append(d.target_usd)
    sums = {group: exact_sum(members[group]) for group in sorted(members)}
    equity = _equity_usd(shared)
    decisions = []
    for d in alone:
        group = group_of(d.inputs, shared, p)
        decisions.append(d if group is None else cap_group(d, sums[group], equity, p))
    return AllocationCycle(shared, p, "", tuple(decisions), tuple(skipped), sums)


def allocate_arrays(
    budget_usd: Floats,
    equity_usd: float,
    *,
    drawdown: float = 0.0,
    regime_factor: Floats | float = 1.0,
    stress: Floats | None = None,
    performance: Floats | None = None,
    performance_confidence: Floats | None = None,
    group: NDArray[np.intp] | None = None,
    params: AllocationParams | None = None,
) -> Floats:
    """Targets of n symbols at once, caps included: the same bits as ``allocate_portfolio``.

    Args:
        budget_usd: (n,) float64, USD, at least 0.
        equity_usd: USD, above 0.
        drawdown: fraction of the peak, 0..1.
        regime_factor: a factor for all, or (n,) float64.
        stress: (n,) float64, 0..1; None is neutral.
        performance: (n,) float64, 0.5 neutral; None is neutral.
        performance_confidence: (n,) float64, 0..1; None counts 1.
        group: (n,) integers from 0, the cluster of each symbol; None puts all into one.
        params: the numbers of P2.9.

    Returns:
        target_usd: (n,) float64, USD.

    >>> import numpy as np
    >>> allocate_arrays(np.full(3, 30_000.0), 100_000.0)
    array([20000., 20000., 20000.])
    """
    import numpy as np

    p = params or DEFAULTS
    base = np.asarray(budget_usd, dtype=np.float64)
    one = np.ones_like(base)
    f_cluster = one if stress is None else cluster_factor(stress, p)
    if performance is None:
        f_performance = one
    else:
        f_performance = performance_factor(
            performance, one if performance_confidence is None else performance_confidence, p
        )
    f_drawdown = np.full_like(base, drawdown_factor(drawdown, p))
    uncapped = uncapped_target(base, one * regime_factor, f_cluster, f_drawdown, f_performance)
    capped = smaller(uncapped, p.max_symbol_pct * equity_usd)
    members = np.zeros(base.shape, dtype=np.intp) if group is None else np.asarray(group, dtype=np.intp)
    cap = p.max_cluster_pct * equity_usd
    # a fast sum finds the groups that can be near their cap; only those need the exact one
    near = np.flatnonzero(np.bincount(members, weights=capped) > cap * (1.0 - 1e-6))
    ratios = np.ones(int(members.max(initial=0)) + 1)
    order = np.argsort(members, kind="stable")
    first, last = np.searchsorted(members[order], near, "left"), np.searchsorted(members[order], near, "right")
    for g, i, j in zip(near, first, last, strict=True):
        ratios[g] = cluster_ratio(exact_sum(capped[order[i:j]].tolist()), cap)
    return smaller(capped * ratios[members], capped)
