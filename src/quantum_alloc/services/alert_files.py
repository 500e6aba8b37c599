"""Prometheus' files and the page of alerts, as text from the tables.

YAML is written by hand: expressions as literal blocks, every other text as a JSON string, which is YAML too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence

from quantum_alloc.services.alert_kit import UNIT, Alert, Recording, with_unit
from quantum_alloc.services.alert_rules import ALERTS, RECORDINGS
from quantum_alloc.services.options import GROUPS, Settings, load, port_variables
from quantum_alloc.services.units import UNITS

RULES = "quantum_alloc.rules.yml"
SCRAPE_S = 15
_MADE = "# Made by: quantum-alloc config deploy DIR"


def _block(expr: str, indent: str) -> list[str]:
    return [f"{indent}expr: |-", *(f"{indent}  {line}" for line in expr.splitlines())]


def _recording(row: Recording) -> Iterator[str]:
    yield f"      # {row.help}"
    yield f"      - record: {row.name}"
    yield from _block(row.expr, "        ")


def _alert(row: Alert) -> Iterator[str]:
    yield f"      - alert: {row.full_name}"
    yield from _block(row.expr, "        ")
    if row.wait != "0s":
        yield f"        for: {row.wait}"
    yield "        labels:"
    yield f"          severity: {row.severity}"
    yield "        annotations:"
    action = with_unit(row.todo, {job: unit.name for job, unit in UNITS.items()})
    for name, text in (("summary", row.summary), ("description", row.when), ("action", action)):
        yield f"          {name}: {json.dumps(text)}"


def groups(alerts: Sequence[Alert] = ALERTS) -> Mapping[str, list[Alert]]:
    """The alerts of each group, by the group's title.

    Args:
        alerts: rows of the table.
    """
    found: dict[str, list[Alert]] = {}
    for row in alerts:
        found.setdefault(row.group, []).append(row)
    return found


def group_name(title: str) -> str:
    """A group's name in the file.

    Args:
        title: as the page has it.

    >>> group_name("Plans and permits")
    'quantum_alloc_plans_and_permits'
    """
    return f"quantum_alloc_{title.lower().replace(' ', '_')}"


RECORDED = group_name("recorded")


def rules_text(alerts: Sequence[Alert] = ALERTS, recordings: Sequence[Recording] = RECORDINGS) -> str:
    """The file of recording and alerting rules.

    Args:
        alerts: rows of the table.
        recordings: rows of the table.
    """
    lines = [
        _MADE,
        "# What each alert means and what to do: docs/reference/alerts.md",
        "groups:",
    ]
    if recordings:
        lines += [f"  - name: {RECORDED}", "    rules:", *(line for row in recordings for line in _recording(row))]
    for title, rows in groups(alerts).items():
        lines += [f"  - name: {group_name(title)}", "    rules:", *(line for row in rows for line in _alert(row))]
    return "\n".join(lines) + "\n"


def ports_of(settings: Settings) -> dict[str, int]:
    """Where each service has its metrics.

    Args:
        settings: of the services that are asked for.
    """
    return {name: next(iter(port_variables(options).values())) for name, options in settings.services.items()}


def scrape_text(ports: Mapping[str, int] | None = None, every_s: int = SCRAPE_S) -> str:
    """Prometheus' own configuration: one job a service.

    Args:
        ports: by service; None for the defaults of all.
        every_s: seconds between two scrapes, and between two looks at the rules.
    """
    found = ports_of(load(list(GROUPS), {})) if ports is None else ports
    lines = [
        _MADE,
        "# Metrics are served on loopback: Prometheus runs on the same host, or scrapes through a tunnel or a proxy.",
        "# Rules and dashboard go by the names of the jobs. Services that are not run here may be taken out, but for",
        "# those that every installation has; feed, apply and desk are not missed where they never were.",
        "global:",
        f"  scrape_interval: {every_s}s",
        f"  evaluation_interval: {every_s}s",
        "rule_files:",
        f"  - {RULES}",
        "# alerting:",
        "#   alertmanagers:",
        "#     - static_configs:",
        '#         - targets: ["127.0.0.1:9093"]',
        "scrape_configs:",
    ]
    for name, port in found.items():
        lines += [f"  - job_name: {name}", "    static_configs:", f'      - targets: ["127.0.0.1:{port}"]']
    return "\n".join(lines) + "\n"


_INTRODUCTION = """\
# Alerts

Made by `quantum-alloc config docs alerts`, like the rules themselves (`quantum-alloc config deploy DIR` writes them).
How to put them in place: [watch with Prometheus](../how-to/watch-with-prometheus.md).

- **critical**: money or permits are at risk, or nobody knows: now. **warning**: today. **info**: when you look anyway.
- Every name begins with `QuantumAlloc`. "at once" fires at the next evaluation, else it must hold that long.
- Thresholds of counts are about right, not exact: Prometheus works them out between its samples."""


def alerts_page() -> str:
    """The reference of all alerts and recorded series, as Markdown."""
    lines = [_INTRODUCTION, ""]
    for title, rows in groups().items():
        lines += [f"## {title}", "", "| alert | severity | after | means | what to do |", "|---|---|---|---|---|"]
        lines += [
            f"| `{row.full_name}` | {row.severity} | {'at once' if row.wait == '0s' else row.wait}"
            f" | {row.when} | {row.todo} |"
            for row in rows
        ]
        lines.append("")
    lines += ["## Units", "", f"What an alert fills in for `{UNIT}`; `desk` has none.", ""]
    lines += ["| job | unit |", "|---|---|"]
    lines += [f"| `{job}` | `{unit.name}` |" for job, unit in UNITS.items()]
    lines += ["", "## Recorded series", "", "| series | meaning |", "|---|---|"]
    lines += [f"| `{row.name}` | {row.help} |" for row in RECORDINGS]
    return "\n".join(lines)


def files(settings: Settings | None = None) -> dict[str, str]:
    """Prometheus' files, by name.

    Args:
        settings: of every service, for the ports of its jobs; None for the defaults.
    """
    return {"prometheus.yml": scrape_text(ports_of(settings) if settings else None), RULES: rules_text()}
