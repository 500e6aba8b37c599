"""How commands show rows: an aligned table, or JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from quantum_alloc.services.logs import escape

Row = Mapping[str, Any]


def cell(value: object) -> str:
    """One value as people read it.

    >>> cell(1820.9300001), cell(0.5), cell(None), cell(True)
    ('1,820.93', '0.5', '-', 'yes')
    """
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.2f}" if abs(value) >= 100 else f"{value:.4g}"
    return escape(str(value))


def table(rows: Sequence[Row], columns: Sequence[str] | None = None) -> str:
    """Rows as an aligned table; numbers to the right.

    >>> print(table([{"symbol": "BTCUSDT", "usd": 1820.93}, {"symbol": "X", "usd": 5.0}]))
    symbol        usd
    BTCUSDT  1,820.93
    X               5
    """
    names = list(columns or (rows[0] if rows else ()))
    cells = [[cell(row.get(n)) for n in names] for row in rows]
    right = [all(isinstance(row.get(n), (int, float)) or row.get(n) is None for row in rows) for n in names]
    widths = [max(len(n), *(len(c[i]) for c in cells), 0) if cells else len(n) for i, n in enumerate(names)]

    def line(texts: Sequence[str]) -> str:
        return "  ".join(t.rjust(w) if r else t.ljust(w) for t, w, r in zip(texts, widths, right, strict=True)).rstrip()

    return "\n".join(line(texts) for texts in (names, *cells))


def as_json(value: object) -> str:
    """Indented JSON."""
    return json.dumps(value, indent=2, default=str)
