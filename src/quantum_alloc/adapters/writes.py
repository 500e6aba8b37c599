"""Decisions to effects: what each service writes, under the names of the contract.

Shadow and enforce differ here and nowhere else. Every written time stands under the contract's name and under ``ts``.
More than 1,000 symbols are written in groups of 1,000, lowered targets first and raised ones last, so that a cut
between two groups never leaves a cluster above its cap.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from quantum_alloc.adapters.effects import Effect, Group, HashSet, SetAdd, StreamAdd, in_groups
from quantum_alloc.adapters.keys import LIVE, HashKeys, Keys, ShadowKeys
from quantum_alloc.core import (
    AllocationCycle,
    BudgetCycle,
    BudgetParams,
    PortfolioDecision,
    config_hash,
    cycle_fields,
    decision_fields,
)
from quantum_alloc.core.budget import RULES_VERSION as BUDGET_RULES
from quantum_alloc.core.fields import number
from quantum_alloc.core.params import to_json

SYMBOLS_PER_GROUP = 1000
PORTFOLIO_TTL_S = 120
BUDGET_TTL_S = 300
BARS_MAXLEN = 1500
ENFORCE = "enforce"


@dataclass(frozen=True, slots=True)
class Target:
    """How a service writes.

    Attributes:
        mode: ``shadow`` or ``enforce``.
        ttl_s: expiry of its hashes, seconds.
        maxlen: about how many entries its streams keep.
        keys: the names.
        shadow: the names of the shadow lane, where it is written in shadow mode; None where it is not.
    """

    mode: str = "shadow"
    ttl_s: int = 300
    maxlen: int = 200_000
    keys: Keys = LIVE
    shadow: ShadowKeys | None = None

    @property
    def hash_keys(self) -> HashKeys | None:
        """Names of the hashes that others act on: live in enforce, else of the shadow lane, else none are written."""
        return self.keys if self.mode == ENFORCE else self.shadow


def stamp(now: float, name: str = "timestamp") -> dict[str, str]:
    """A written time: whole unix seconds under the contract's name and under ``ts``.

    Args:
        now: unix seconds.
        name: the contract's name.

    >>> stamp(1769577495.9)
    {'timestamp': '1769577495', 'ts': '1769577495'}
    """
    whole = str(int(now // 1))
    return {name: whole, "ts": whole}


def universe_effects(symbols: Sequence[str], known: frozenset[str], keys: Keys) -> tuple[Effect, ...]:
    """What makes new symbols known to the other services; nothing where all are known.

    Args:
        symbols: what this service writes for.
        known: what the universe held when it was read.
        keys: the names.
    """
    new = tuple(s for s in symbols if s not in known)
    return (SetAdd(keys.universe, new),) if new else ()


def allocation_effects(
    cycle: AllocationCycle, to: Target, known: frozenset[str], prior_usd: Mapping[str, float]
) -> tuple[Group, ...]:
    """The writes of an allocation cycle.

    Args:
        cycle: the decisions.
        to: mode, expiry, stream length and names.
        known: the universe as read.
        prior_usd: targets that stand in Redis now; only needed above 1,000 symbols.
    """
    if cycle.halted or not (cycle.decisions or cycle.skipped):
        return ()
    keys, when = to.keys, stamp(cycle.shared.now)
    shared = cycle_fields(cycle, to.mode)
    first: tuple[Effect, ...] = (
        StreamAdd(keys.stream("allocation.cycle"), {**shared, **when}, to.maxlen),
        *universe_effects([d.symbol for d in cycle.decisions], known, keys),
    )
    stream, hashes = keys.stream("allocation.decision"), to.hash_keys
    raised: list[list[Effect]] = []
    lowered: list[list[Effect]] = []
    for d in cycle.decisions:
        fields = {**decision_fields(d, shared["cycle_id"], to.mode, cycle.params), **when}
        effects: list[Effect] = [StreamAdd(stream, fields, to.maxlen)]
        if hashes is not None:
            names = ["target_usd", "weight", "cluster_id", "regime", "drawdown_zone", "confidence", "cycle_id", "mode"]
            names += ["proposed_factor"] if cycle.params.use_proposed else []
            effects.append(HashSet(hashes.target(d.symbol), {**{n: fields[n] for n in names}, **when}, to.ttl_s))
        before = prior_usd.get(d.symbol)
        (raised if before is None or d.target_usd > before else lowered).append(effects)
    groups = in_groups([*lowered, *raised], SYMBOLS_PER_GROUP) or ((),)
    return ((*first, *groups[0]), *groups[1:])


def budget_effects(cycle: BudgetCycle, params: BudgetParams, to: Target, known: frozenset[str]) -> tuple[Group, ...]:
    """The writes of a budget cycle: the hash in both modes, and an event for each violation.

    Args:
        cycle: the decisions.
        params: the numbers of P2.8, written beside each budget so that it can be made again.
        to: mode, stream length and names.
        known: the universe as read.
    """
    when = stamp(cycle.now)
    shared = {
        "rules": BUDGET_RULES,
        "params": to_json(params),
        "params_hash": config_hash(params),
        "mode": to.mode,
        **when,
    }
    per_symbol: list[list[Effect]] = []
    for d in cycle.decisions:
        fields = {
            "symbol": d.symbol,
            "budget_usd": number(d.budget_usd),
            "stress_factor": number(d.stress_factor),
            "equity_usd": number(d.equity_usd),
            "portfolio_heat": number(d.portfolio_heat),
            "cluster_stress": number(d.cluster_stress),
            "vol_regime": number(d.vol_regime),
            "base_risk_pct": number(params.base_risk_pct),
            **shared,
        }
        effects: list[Effect] = [HashSet(to.keys.budget(d.symbol), fields, BUDGET_TTL_S)]
        if d.over_budget_usd > 0.0:
            event = {
                "event_type": "budget.violation",
                "symbol": d.symbol,
                "position_notional": d.position_notional_usd,
                "budget_usd": d.budget_usd,
                "over_budget": d.over_budget_usd,
                "mode": to.mode,
                "timestamp": int(cycle.now // 1),
            }
            effects.append(StreamAdd(to.keys.stream("budget.violation"), {"json": json.dumps(event)}, to.maxlen))
        per_symbol.append(effects)
    if not per_symbol:
        return ()
    groups = in_groups(per_symbol, SYMBOLS_PER_GROUP)
    first = universe_effects([d.symbol for d in cycle.decisions], known, to.keys)
    return ((*first, *groups[0]), *groups[1:])


def portfolio_effects(decision: PortfolioDecision, peak_on_record: float | None, to: Target) -> tuple[Group, ...]:
    """The writes of a portfolio cycle: hash, stream entry, and the peak where it rose.

    Args:
        decision: the portfolio.
        peak_on_record: the peak that stands in Redis, None where there is none or it cannot be read.
        to: stream length and names.
    """
    whole = str(int(decision.now // 1))
    fields = {
        "equity_usd": number(decision.equity_usd),
        "balance_usd": number(decision.balance_usd),
        "unrealized_pnl_usd": number(decision.unrealized_pnl_usd),
        "positions_notional_usd": number(decision.positions_notional_usd),
        "positions_count": str(decision.positions_count),
        "source": "partial" if decision.left_out else "positions",
        "held_over": str(len(decision.held_over)),
        "left_out": str(len(decision.left_out)),
        "timestamp": whole,
        "ts_utc": whole,
        "ts": whole,
    }
    unknown = []
    for name, value in (("peak_equity_usd", decision.peak_equity_usd), ("drawdown", decision.drawdown)):
        if value is None:
            unknown.append(name)
        else:
            fields[name] = number(value)
    effects: list[Effect] = [
        HashSet(to.keys.portfolio, fields, PORTFOLIO_TTL_S, tuple(unknown)),
        StreamAdd(to.keys.stream("portfolio.state"), fields, to.maxlen),
    ]
    peak = decision.peak_equity_usd
    if peak is not None and peak != peak_on_record:
        effects.append(HashSet(to.keys.peak, {"peak_equity_usd": number(peak), "ts": whole}))
    return (tuple(effects),)
