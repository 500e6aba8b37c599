"""How decisions show themselves: as a dictionary, as a small HTML table, as a data frame."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from enum import Enum
from html import escape
from importlib import import_module
from typing import Any


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        named = {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"state": value.state, **named} if hasattr(value, "state") else named
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (tuple, list)) else value


def html_table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A plain HTML table, every cell escaped.

    Args:
        head: column names.
        rows: cells, floats shown with six significant digits.

    >>> html_table(["a"], [[1.5], ["<b>"]])
    '<table><thead><tr><th>a</th></tr></thead><tbody><tr><td>1.5</td></tr><tr><td>&lt;b&gt;</td></tr></tbody></table>'
    """

    def cell(value: object) -> str:
        return escape(f"{value:.6g}" if isinstance(value, float) else str(value))

    top = "".join(f"<th>{cell(h)}</th>" for h in head)
    body = "".join("<tr>" + "".join(f"<td>{cell(c)}</td>" for c in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


class Explained:
    """A frozen dataclass that shows itself."""

    __slots__ = ()

    def to_dict(self) -> dict[str, Any]:
        """All fields, nested ones too, as plain dictionaries, lists, numbers and texts."""
        return dict(_plain(self))

    def _repr_html_(self) -> str:
        flat = {k: v for k, v in self.to_dict().items() if not isinstance(v, (dict, list))}
        return html_table(["field", "value"], list(flat.items()))


class Table:
    """Decisions as rows."""

    __slots__ = ()

    def rows(self) -> list[dict[str, Any]]:
        """One flat dictionary a decision."""
        raise TypeError(f"{type(self).__name__} has no rows")  # pragma: no cover - each table defines its own

    def _repr_html_(self) -> str:
        rows = self.rows()
        return html_table(list(rows[0]) if rows else [], [list(r.values()) for r in rows])

    def to_pandas(self) -> Any:
        """The rows as a pandas data frame (pandas must be installed)."""
        return import_module("pandas").DataFrame(self.rows())

    def to_polars(self) -> Any:
        """The rows as a polars data frame (polars must be installed)."""
        return import_module("polars").DataFrame(self.rows())
