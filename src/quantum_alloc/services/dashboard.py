"""Grafana's dashboard as JSON, made from the table of panels; it imports as it stands, into any Grafana from 9 on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from quantum_alloc.services.dashboard_panels import PANELS, Panel

SCHEMA = 39
FILE = "quantum-alloc.json"
COLUMNS, HEIGHT, ROW_HEIGHT = 24, 8, 1
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
VARIABLES: Mapping[str, tuple[str, str]] = {
    "service": ("label_values(quantum_alloc_build_info, job)", "Service"),
    "symbol": ("label_values(p29_target_usd, symbol)", "Symbol"),
}
"""Query and label of each variable but the source of data."""
EVERYTHING = ".*"
"""What a variable stands for while nothing is chosen."""


def _variable(name: str, query: str, label: str) -> dict[str, Any]:
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": query, "refId": name},
        "definition": query,
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": EVERYTHING,
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
    }


def _templating() -> list[dict[str, Any]]:
    source = {"name": "datasource", "label": "Source", "type": "datasource", "query": "prometheus", "current": {}}
    return [source, *(_variable(name, *about) for name, about in VARIABLES.items())]


def _thresholds(panel: Panel) -> dict[str, Any]:
    steps = panel.steps or (("green", None),)
    return {"mode": "absolute", "steps": [{"color": color, "value": value} for color, value in steps]}


def _defaults(panel: Panel) -> dict[str, Any]:
    made: dict[str, Any] = {"unit": panel.unit, "thresholds": _thresholds(panel)}
    made["color"] = {"mode": "palette-classic" if panel.kind == "timeseries" else "thresholds"}
    ends = {"min": panel.low, "max": panel.high}
    made.update({key: value for key, value in ends.items() if value is not None})
    if panel.kind == "timeseries":
        made["custom"] = {
            "drawStyle": "line",
            "lineWidth": 1,
            "showPoints": "never",
            "fillOpacity": 30 if panel.is_stacked else 0,
            "stacking": {"mode": "normal" if panel.is_stacked else "none", "group": "A"},
            "thresholdsStyle": {"mode": "dashed" if panel.steps else "off"},
        }
    return made


def _options(panel: Panel) -> dict[str, Any]:
    if panel.kind == "stat":
        return {"reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False}, "graphMode": "area"}
    if panel.kind == "table":
        return {"showHeader": True}
    legend = {"displayMode": "list", "placement": "bottom", "showLegend": True}
    if panel.kind == "state-timeline":
        return {"legend": legend, "mergeValues": True, "showValue": "never"}
    return {
        "legend": {**legend, "displayMode": "table", "calcs": ["lastNotNull"]},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }


def _target(panel: Panel, index: int) -> dict[str, Any]:
    expr, legend = panel.queries[index]
    instant = panel.kind in ("stat", "table")
    return {
        "refId": chr(ord("A") + index),
        "datasource": SOURCE,
        "expr": expr,
        "legendFormat": legend,
        "instant": instant,
        "range": not instant,
        "format": "table" if panel.kind == "table" else "time_series",
    }


def _panel(panel: Panel, number: int, x: int, y: int) -> dict[str, Any]:
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.about,
        "datasource": SOURCE,
        "gridPos": {"x": x, "y": y, "w": panel.width, "h": HEIGHT},
        "targets": [_target(panel, i) for i in range(len(panel.queries))],
        "fieldConfig": {"defaults": _defaults(panel), "overrides": []},
        "options": _options(panel),
    }


def _laid_out(panels: Sequence[Panel]) -> list[dict[str, Any]]:
    """Rows of panels from left to right; a panel without room begins the next line."""
    made: list[dict[str, Any]] = []
    y = 0
    for title, members in groupby(panels, lambda panel: panel.row):
        grid = {"x": 0, "y": y, "w": COLUMNS, "h": ROW_HEIGHT}
        made.append({"id": len(made) + 1, "type": "row", "title": title, "collapsed": False, "gridPos": grid,
                     "panels": []})  # fmt: skip
        x, y = 0, y + ROW_HEIGHT
        for panel in members:
            if x + panel.width > COLUMNS:
                x, y = 0, y + HEIGHT
            made.append(_panel(panel, len(made) + 1, x, y))
            x += panel.width
        y += HEIGHT
    return made


def dashboard(panels: Sequence[Panel] = PANELS) -> dict[str, Any]:
    """The dashboard as Grafana imports it.

    Args:
        panels: in their order.
    """
    return {
        "id": None,
        "uid": "quantum-alloc",
        "title": "Quantum allocation",
        "description": "Health, efficiency, pressure, targets, verdicts, inputs. Made by: quantum-alloc config deploy",
        "tags": ["quantum-alloc"],
        "schemaVersion": SCHEMA,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "timezone": "utc",
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {"list": _templating()},
        "annotations": {"list": []},
        "links": [],
        "panels": _laid_out(panels),
    }


PROVIDER = """\
# Made by: quantum-alloc config deploy DIR
# For /etc/grafana/provisioning/dashboards: Grafana then reads the dashboard from the directory below.
apiVersion: 1
providers:
  - name: quantum-alloc
    type: file
    options:
      path: /var/lib/grafana/dashboards
"""


def files() -> dict[str, str]:
    """Grafana's files, by name."""
    return {FILE: json.dumps(dashboard(), indent=2) + "\n", "provisioning/quantum-alloc.yml": PROVIDER}
