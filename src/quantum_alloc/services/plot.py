"""``quantum-alloc plot clusters|regime --out FILE.html``: one page a person can open anywhere.

The page holds its own script and asks no host for anything. Bars, and the names of the clusters, are read from Redis;
nothing is written there.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from quantum_alloc.adapters import wire
from quantum_alloc.adapters.bars import BarReader
from quantum_alloc.adapters.keys import Keys
from quantum_alloc.adapters.store import Store
from quantum_alloc.adapters.universe import Universe
from quantum_alloc.core import Bars, ClusterParams, RegimeParams, regime_of
from quantum_alloc.core.allocation import UNMAPPED
from quantum_alloc.core.clusters import correlations
from quantum_alloc.core.regime import statistic_over_time

KEPT_BARS = 1_500
AHEAD_S = 1e11
"""Bars are drawn whatever the time: the demo's clock stands in the past."""
COLOURS = {"TREND": "#1b7f4b", "MEAN_REVERSION": "#8a4fbf", "CHOP": "#c2571a", "NEUTRAL": "#6b7280"}


class PlotError(Exception):
    """Why there is no picture; the text is one sentence with the way out."""


def needs_plotly() -> None:
    """Raise ``PlotError`` where plotly is not installed."""
    if importlib.util.find_spec("plotly") is None:
        raise PlotError("plot needs plotly: install quantum-alloc[plot].")


def bars_of(store: Store, keys: Keys, fixed: tuple[str, ...], limit: int, keep: int, now: float) -> dict[str, Bars]:
    """The bars that there are.

    Args:
        store: where to look.
        keys: the names.
        fixed: a list that replaces all finding; empty for none.
        limit: greatest number of symbols.
        keep: bars of each.
        now: unix seconds.

    Raises:
        PlotError: there are none.
        StoreError: Redis does not answer.
    """
    universe = Universe(keys, (keys.bars(""),), fixed, limit)
    universe.whole = True
    names = universe.find(store, store.read(universe.query), now).names
    found = BarReader(keys, keep).read(store, names, AHEAD_S)
    if not found:
        raise PlotError("There are no bars to draw: run the service feed, or the demo with --keep and its REDIS_URL.")
    return found


def _page(figure: Any) -> str:
    quiet = {"displaylogo": False, "plotlyServerURL": "", "showSendToCloud": False, "responsive": True}
    return str(figure.to_html(include_plotlyjs=True, include_mathjax=False, full_html=True, config=quiet))


def clusters(bars: Mapping[str, Bars], of: wire.ClusterMap, params: ClusterParams) -> str:
    """The correlation map, ordered by cluster.

    Args:
        bars: by symbol.
        of: which cluster each belongs to.
        params: the numbers of P2.7.
    """
    import numpy as np
    import plotly.graph_objects as go  # type: ignore[import-untyped] # plotly brings no types

    found = correlations(bars, params)
    cluster_of = {s: of.of.get(s, UNMAPPED) for s in found.symbols}
    order = sorted(range(len(found.symbols)), key=lambda i: (cluster_of[found.symbols[i]], found.symbols[i]))
    names = [found.symbols[i] for i in order]
    labels = [f"{s} · {cluster_of[s]}" for s in names]
    values = found.values[np.ix_(order, order)]
    cells = [[None if np.isnan(c) else round(float(c), 4) for c in row] for row in values]
    heat = go.Heatmap(
        z=cells, x=names, y=labels, zmin=-1, zmax=1, colorscale="RdBu", reversescale=True,
        colorbar={"title": "correlation"}, hovertemplate="%{x}<br>%{y}<br>%{z}<extra></extra>",
    )  # fmt: skip
    figure = go.Figure(heat)
    edges = [i - 0.5 for i in range(1, len(names)) if cluster_of[names[i]] != cluster_of[names[i - 1]]]
    for at in edges:
        figure.add_shape(type="line", x0=at, x1=at, y0=-0.5, y1=len(names) - 0.5, line={"width": 2})
        figure.add_shape(type="line", y0=at, y1=at, x0=-0.5, x1=len(names) - 0.5, line={"width": 2})
    groups = f"{len(set(cluster_of.values()))} clusters"
    title = f"Correlation of log returns, {len(names)} symbols in {groups}, at most {params.lookback} bars"
    figure.update_layout(title=title, template="plotly_white", width=900, height=900, font={"size": 11})
    figure.update_yaxes(autorange="reversed")
    return _page(figure)


def regime(bars: Mapping[str, Bars], params: RegimeParams) -> str:
    """The statistic over time, with what it is called.

    Args:
        bars: by symbol.
        params: the numbers of the detector.

    Raises:
        PlotError: there are fewer bars than the window.
    """
    import plotly.graph_objects as go

    series = statistic_over_time(bars, params)
    if not series:
        raise PlotError(f"There are fewer bars than the window of {params.window}: nothing to draw yet.")
    when = [datetime.fromtimestamp(ts, UTC) for ts, _, _ in series]
    names = [regime_of(z, ratio, params)[0] for _, z, ratio in series]
    figure = go.Figure(
        go.Scatter(x=when, y=[z for _, z, _ in series], mode="lines", name="z*", line={"color": "#9ca3af", "width": 1})
    )
    for name, colour in COLOURS.items():
        at = [i for i, n in enumerate(names) if n == name]
        figure.add_trace(
            go.Scatter(
                x=[when[i] for i in at], y=[series[i][1] for i in at], mode="markers", name=f"{name} ({len(at)})",
                marker={"size": 4, "color": colour},
            )
        )  # fmt: skip
    for level in (params.z, -params.z):
        figure.add_hline(y=level, line={"dash": "dash", "width": 1, "color": "#374151"}, annotation_text=f"{level:g}")
    title = f"Variance ratio statistic z*, {len(bars)} symbols, window {params.window} bars, horizon {params.horizon}"
    figure.update_layout(
        title=title, template="plotly_white", width=1100, height=520, yaxis_title="z*", xaxis_title="UTC"
    )
    return _page(figure)
