"""The dashboard and the rules against a real Prometheus that scrapes a real installation."""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from quantum_alloc.adapters import metrics
from quantum_alloc.adapters.simulator import DEFAULT_SYMBOLS
from quantum_alloc.services import alert_files, dashboard
from quantum_alloc.services.alert_rules import ALERTS, RECORDINGS
from quantum_alloc.services.cli import main
from quantum_alloc.services.dashboard_panels import PANELS, Panel
from tests.conftest import absent
from tests.support.running import until
from tests.support.scraping import Kept, Prometheus, kept_demo

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "reference" / "metrics.md"
DEPLOY = ROOT / "deploy"
RUNNING = {"python_info"}


@pytest.fixture(scope="module")
def kept() -> Iterator[Kept]:
    """Every service, as ``demo --keep`` leaves them: ten bars a second."""
    with kept_demo("--bars", "60", "--speed", "600") as found:
        yield found


@pytest.fixture(scope="module")
def prometheus(kept: Kept, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus with the shipped rules that has seen each service twice, and plans that were answered."""
    with Prometheus(tmp_path_factory.mktemp("prometheus"), kept.ports) as found:
        until(lambda: len(found.query("up == 1")) == len(kept.ports), 20, "every service is scraped")
        for symbol in DEFAULT_SYMBOLS:
            for action in ("PARTIAL_25", "ENTRY_PROPOSED"):
                words = ["--env-file", str(kept.env_file), "inject", "plan", symbol, "--action", action]
                assert main([*words, "--plan-id", f"{action}-{symbol}", "--qty", "0.001"], {}) == 0
        yield found


def asked(expr: str) -> str:
    """A query with the dashboard's variables as they are while nothing is chosen."""
    for name in dashboard.VARIABLES:
        expr = expr.replace(f"${name}", dashboard.EVERYTHING)
    return expr.replace("$__rate_interval", "1m")


def without_data(prometheus: Prometheus, panels: Sequence[Panel], within_s: float) -> list[str]:
    """The queries that give nothing, for as long as it may take."""
    left = [expr for panel in panels for expr, _ in panel.queries]
    end = time.monotonic() + within_s
    while left and time.monotonic() < end:
        left = [expr for expr in left if not prometheus.query(asked(expr))]
        time.sleep(0.5 if left else 0)
    return left


def test_every_query_has_data(prometheus: Prometheus) -> None:
    """Each query of each panel gives at least one sample, and a query of a metric that is not there does not."""
    assert without_data(prometheus, PANELS, within_s=40) == []
    one = next(panel for panel in PANELS if panel.title == "Efficiency score")
    renamed = dataclasses.replace(one, queries=((one.queries[0][0].replace("p31_", "p31_x_"), ""),))
    assert without_data(prometheus, [renamed], within_s=0.1) == [renamed.queries[0][0]]


def test_pressure_and_performance_are_those_of_the_cycle(prometheus: Prometheus) -> None:
    """The symbols by pressure add up to the efficiency's symbols; each target has the performance factor that it was
    made with."""
    (pressed,) = prometheus.query("sum(quantum_alloc_pressure_symbols)")
    (symbols,) = prometheus.query('quantum_alloc_symbols{job="efficiency"}')
    assert float(pressed["value"][1]) == float(symbols["value"][1]) == len(DEFAULT_SYMBOLS)
    factors = prometheus.query("quantum_alloc_performance_factor")
    assert {f["metric"]["symbol"] for f in factors} == set(DEFAULT_SYMBOLS)
    assert all(0.5 <= float(f["value"][1]) <= 1.5 for f in factors)
    assert any(float(f["value"][1]) != 1.0 for f in factors), "nothing but neutral factors"


def test_every_variable_has_values(prometheus: Prometheus) -> None:
    """What a person may choose: the services and the symbols."""
    found = {}
    for name, (query, _) in dashboard.VARIABLES.items():
        match = re.fullmatch(r"label_values\((\w+), (\w+)\)", query)
        assert match
        found[name] = set(prometheus.ask(f"label/{match[2]}/values", **{"match[]": match[1]}))
    assert found == {"service": set(metrics.TABLES), "symbol": set(DEFAULT_SYMBOLS)}


def test_every_rule_is_well(prometheus: Prometheus) -> None:
    """Every recorded series has data, and Prometheus has no trouble with any rule; in a healthy installation no alert
    of money and permits fires."""
    left = [row.name for row in RECORDINGS]
    until(lambda: not [n for n in left if not prometheus.query(n)], 30, "every recorded series has data")

    def rules() -> list[dict[str, Any]]:
        return [rule for group in prometheus.ask("rules")["groups"] for rule in group["rules"]]

    until(lambda: all(r["health"] != "unknown" for r in rules()), 10, "every rule was looked at")
    assert [(r["name"], r.get("lastError")) for r in rules() if r["health"] != "ok" or r.get("lastError")] == []
    assert {r["name"] for r in rules()} == {*left, *(a.full_name for a in ALERTS)}
    alerts = prometheus.ask("alerts")["alerts"]
    bad = [a for a in alerts if a["state"] == "firing" and a["labels"]["severity"] == "critical"]
    assert bad == []


WANTS_TROUBLE = {
    "ServiceNotScraped", "NothingWritten", "LogErrors", "OverBudget", "FillWithoutPermit", "FillAbovePermit",
    "FillElsewhere",
}  # fmt: skip
"""Alerts whose series are there only in trouble, or that compare with what was an hour ago."""


def test_every_alert_has_something_to_look_at(prometheus: Prometheus) -> None:
    """Without its thresholds each alert's expression has data in a healthy installation: names, labels and matching
    are those of the real services, so that it can fire."""

    def deaf() -> set[str]:
        bare = {a.name: re.sub(r"(>=|<=|==|>|<) -?[\d.]+(?!\w)", "", a.expr) for a in ALERTS}
        return {name for name, expr in bare.items() if name not in WANTS_TROUBLE and not prometheus.query(expr)}

    until(lambda: not deaf(), 30, "every alert has data")
    assert {a.name for a in ALERTS} > WANTS_TROUBLE


def test_every_metric_of_a_page_has_a_line_in_the_docs(kept: Kept) -> None:
    """What the services really show is in the reference, and no service is without its own and the common ones;
    `promtool check metrics` finds nothing."""
    documented = set(re.findall(r"^\| `(\w+)` \|", PAGE.read_text(), re.MULTILINE))
    promtool = shutil.which("promtool")
    if promtool is None:
        absent("promtool")
    for service in kept.ports:
        page = kept.page(service)
        shown = {
            family.name + ("_total" if family.type == "counter" else "")
            for family in text_string_to_metric_families(page)
        }
        created = {n for n in shown if n.endswith("_created") and n.removesuffix("_created") in documented}
        assert shown - created <= documented, f"{service}: run `make docs`"
        assert {row.name for row in (*metrics.COMMON, *metrics.TABLES[service])} <= shown
        done = subprocess.run(
            [str(promtool), "check", "metrics"], input=page, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, ""), service


def test_panels_are_told() -> None:
    """Each panel has a title of its own, a description, a unit and a legend for each query; its thresholds rise."""
    assert len({panel.title for panel in PANELS}) == len(PANELS)
    for panel in PANELS:
        assert panel.about.endswith("."), panel.title
        assert panel.unit
        assert all(legend for _, legend in panel.queries)
        steps = [value for _, value in panel.steps]
        assert steps[:1] in ([], [None]), panel.title
        assert steps[1:] == sorted(value for value in steps[1:] if value is not None)
    rows = ["Health", "Efficiency trends", "Capital pressure", "Targets by factor", "Verdicts", "Inputs and vacuity"]
    assert list(dict.fromkeys(panel.row for panel in PANELS)) == rows
    assert [panel.title for panel in PANELS[:2]] == ["Alerts", "Reached"]


def test_the_dashboard_can_be_imported() -> None:
    """Ids are unlike, no panel lies on another or beyond the edge, everything asks the chosen source, and every
    variable that a query names is there."""
    made = dashboard.dashboard()
    panels = made["panels"]
    assert [p["id"] for p in panels] == list(range(1, len(panels) + 1))
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        grid = panel["gridPos"]
        cells = {(grid["x"] + i, grid["y"] + j) for i in range(grid["w"]) for j in range(grid["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < dashboard.COLUMNS
        taken |= cells
        assert panel["type"] == "row" or panel["datasource"] == dashboard.SOURCE
    names = {variable["name"] for variable in made["templating"]["list"]}
    used = {v for panel in PANELS for expr, _ in panel.queries for v in re.findall(r"\$(\w+)", expr)}
    assert used == (names - {"datasource"}) | {"__rate_interval"}


def jobs(text: str) -> dict[str, str]:
    """Names and ports of a scrape configuration's jobs."""
    return dict(re.findall(r'job_name: (\w+)\n.*\n.*"127.0.0.1:(\d+)"', text))


def test_deploy_takes_the_ports_of_the_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--env-file F config deploy DIR` writes jobs on the ports of F, of a kept demo or of an installation; units stay
    as they are shipped, and nothing is written where two services have one port."""
    file, there = tmp_path / "demo.env", tmp_path / "there"
    file.write_text('QA_PORT_OFFSET="1000"\nREDIS_URL="unix:///nowhere"\nP29_METRICS_PORT="7001"\n')
    assert main(["--env-file", str(file), "config", "deploy", str(there)], {}) == 0
    found = jobs((there / "prometheus" / "prometheus.yml").read_text())
    plain = jobs(alert_files.scrape_text())
    assert found == {**{job: str(int(port) + 1000) for job, port in plain.items()}, "allocation": "8001"}
    for unit in (DEPLOY / "systemd").iterdir():
        assert (there / "systemd" / unit.name).read_text() == unit.read_text()
    file.write_text("P29_METRICS_PORT=7001\nP31_PORT=7001\n")
    assert main(["--env-file", str(file), "config", "deploy", str(tmp_path / "bad")], {}) == 78
    assert "choose another port" in capsys.readouterr().err
    assert not (tmp_path / "bad").exists()


def test_each_service_is_a_job() -> None:
    """The shipped file asks every service on the contract's port."""
    found = jobs(alert_files.scrape_text())
    assert found.keys() == metrics.TABLES.keys()
    assert (found["governor"], found["allocation"], found["efficiency"]) == ("8044", "8059", "8062")
