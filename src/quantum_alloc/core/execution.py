"""One execution, as the rules that learn from executions see it.

Attribution (P3.0) and efficiency (P3.1) read the same stream; what an entry says is decided once, where bytes become
values, and both see the same thing. An execution without a PnL is an open: it moves no average.
Source: the project's contract, "Executions".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from quantum_alloc.core.fields import compact

UNKNOWN = "UNKNOWN"
"""The bucket of executions that name no regime, cluster or signal."""


@dataclass(frozen=True, slots=True)
class Execution:
    """One fill.

    Attributes:
        symbol: the symbol.
        ts: when it happened, unix seconds.
        pnl_usd: realised PnL, USD; None for an open.
        regime: market regime at the time, UNKNOWN when not told.
        cluster: the symbol's cluster, UNKNOWN when not told.
        signal: what proposed it, UNKNOWN when not told.
    """

    symbol: str
    ts: float
    pnl_usd: float | None = None
    regime: str = UNKNOWN
    cluster: str = UNKNOWN
    signal: str = UNKNOWN


def finite(value: object) -> float:
    """A finite number out of JSON.

    Args:
        value: what the JSON held.

    Raises:
        ValueError: it is something else.

    >>> finite(3), finite(0.25)
    (3.0, 0.25)
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError("not a number")
    number = float(value) if abs(value) < 1e308 else math.inf
    if not math.isfinite(number):
        raise ValueError("not a finite number")
    return number


def finite_or_none(value: object) -> float | None:
    """A finite number or nothing, out of JSON.

    Args:
        value: what the JSON held.

    Raises:
        ValueError: it is something else.
    """
    return None if value is None else finite(value)


def fills_text(fills: Sequence[Execution]) -> str:
    """Executions of one symbol as JSON: columns ts, pnl_usd, and the labels by index into a list of their own.

    Args:
        fills: of one symbol.

    >>> fills_text([Execution("BTCUSDT", 5.0, 2.5)])
    '{"ts":[5.0],"pnl_usd":[2.5],"names":["UNKNOWN"],"labels":[[0,0,0]]}'
    """
    names: dict[str, int] = {}
    labels = [[names.setdefault(n, len(names)) for n in (e.regime, e.cluster, e.signal)] for e in fills]
    columns = {
        "ts": [float(e.ts) for e in fills],
        "pnl_usd": [None if e.pnl_usd is None else float(e.pnl_usd) for e in fills],
        "names": list(names),
        "labels": labels,
    }
    return compact(columns)


def read_fills(symbol: str, columns: object) -> tuple[Execution, ...]:
    """Executions that ``fills_text`` wrote.

    Args:
        symbol: whose they are.
        columns: the parsed JSON.

    Raises:
        ValueError: something else.
    """
    if not isinstance(columns, dict) or columns.keys() != {"ts", "pnl_usd", "names", "labels"}:
        raise ValueError("not the columns of executions")
    names = columns["names"]
    if not (isinstance(names, list) and all(isinstance(n, str) for n in names)):
        raise ValueError("labels are not texts")
    fills = []
    try:
        for ts, pnl, label in zip(columns["ts"], columns["pnl_usd"], columns["labels"], strict=True):
            regime, cluster, signal = (names[i] for i in label)
            fills.append(Execution(symbol, finite(ts), finite_or_none(pnl), regime, cluster, signal))
    except (TypeError, IndexError) as error:
        raise ValueError("not the columns of executions") from error
    return tuple(fills)
