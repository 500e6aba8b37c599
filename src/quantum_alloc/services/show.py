"""How commands show rows: an aligned table, one that fits a terminal, or JSON."""

from __future__ import annotations

import json
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from quantum_alloc.services.logs import escape

Row = Mapping[str, Any]
WIDTH, WIDTH_LEAST = 80, 60
WORD = 12
"""A column of text is not made narrower than this for the sake of others."""


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


def width_of_terminal() -> int:
    """Columns of the terminal, ``COLUMNS`` where it is set; 80 where there is none."""
    return max(WIDTH_LEAST, shutil.get_terminal_size((WIDTH, 24)).columns)


def wrapped(text: str) -> str:
    """A sentence on lines no wider than the terminal."""
    return textwrap.fill(text, width_of_terminal())


def fitted(
    rows: Sequence[Row], columns: Sequence[str] | None = None, width: int | None = None, below: Sequence[str] = ()
) -> str:
    """Rows as a table that is no wider than a terminal: a single row that is too long is shown downwards, texts are
    wrapped, numbers never.

    Args:
        rows: at least one.
        columns: which ones; None for those of the first row.
        width: greatest number of characters in a line; None for the terminal's.
        below: columns that are told under their row, indented, where the table would be too wide.

    >>> rows = [{"name": "a", "text": "one two three", "n": 7}, {"name": "b", "text": "four", "n": 10}]
    >>> print(fitted(rows, width=20))
    name  text       n
    a     one two    7
          three
    b     four      10
    >>> print(fitted([{"equity_usd": 100000.0, "regime": "TREND"}], width=16))
    equity_usd  100,000.00
    regime      TREND
    """
    limit, names = width or width_of_terminal(), list(columns or rows[0])
    whole = table(rows, names)
    if max(map(len, whole.splitlines())) <= limit:
        return whole
    if len(rows) == 1:
        label = max(map(len, names))
        told = {n: textwrap.wrap(cell(rows[0].get(n)), max(WORD, limit - label - 2)) for n in names}
        lines = [f"{n if not i else '':{label}}  {text}" for n in names for i, text in enumerate(told[n])]
        return "\n".join(lines)
    below = below if set(names) - set(below) else ()  # something must stand at the head
    beside = [n for n in names if n not in below]
    numeric = {n: all(isinstance(row.get(n), (int, float)) or row.get(n) is None for row in rows) for n in beside}
    widths = _widths(rows, beside, numeric, limit)
    lines = _row({n: n for n in beside}, widths, numeric)
    for row in rows:
        lines += _row({n: cell(row.get(n)) for n in beside}, widths, numeric)
        for name in below:
            if row.get(name) not in (None, ""):
                lines += textwrap.wrap(cell(row[name]), limit, initial_indent="  ", subsequent_indent="  ")
    return "\n".join(lines)


def _widths(rows: Sequence[Row], names: Sequence[str], numeric: Mapping[str, bool], limit: int) -> dict[str, int]:
    """Widths of columns; the widest text is narrowed first, down to its longest word."""
    cells = {n: [cell(row.get(n)) for row in rows] for n in names}
    widths = {n: max(len(n), *map(len, cells[n])) for n in names}
    words = {n: max((len(w) for text in (n, *cells[n]) for w in text.split()), default=1) for n in names}
    least = {n: max(min(words[n], WORD), max(map(len, cells[n])) if numeric[n] else 1) for n in names}
    while sum(widths.values()) + 2 * (len(names) - 1) > limit:
        wider = [n for n in names if widths[n] > least[n]]
        if not wider:
            break
        widths[max(wider, key=widths.__getitem__)] -= 1
    return widths


def _row(texts: Mapping[str, str], widths: Mapping[str, int], numeric: Mapping[str, bool]) -> list[str]:
    wrapped = {n: textwrap.wrap(texts[n], w) for n, w in widths.items()}
    lines = []
    for i in range(max(map(len, wrapped.values()))):
        parts = [(lines_of[i] if i < len(lines_of) else "", n) for n, lines_of in wrapped.items()]
        padded = [text.rjust(widths[n]) if numeric[n] else text.ljust(widths[n]) for text, n in parts]
        lines.append("  ".join(padded).rstrip())
    return lines


def as_json(value: object) -> str:
    """Indented JSON."""
    return json.dumps(value, indent=2, default=str)
