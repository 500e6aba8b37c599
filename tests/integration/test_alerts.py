"""Prometheus' rules: every alert fires where it must and is quiet where it must, and nothing countable is unwatched."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from quantum_alloc.adapters import metrics
from quantum_alloc.adapters.connecting import CODES
from quantum_alloc.adapters.input_table import STATES
from quantum_alloc.adapters.server_check import Lack
from quantum_alloc.core.governor_inputs import Kill
from quantum_alloc.core.governor_params import BLOCK_REASONS
from quantum_alloc.services import alert_files, dashboard
from quantum_alloc.services.alert_classes import CLASSES, ELSEWHERE, STORE_CLASSES, Elsewhere
from quantum_alloc.services.alert_kit import PREFIX, UNIT, Alert
from quantum_alloc.services.alert_rules import ALERTS, RECORDINGS
from quantum_alloc.services.cli import main
from quantum_alloc.services.dashboard_panels import PANELS
from quantum_alloc.services.units import UNITS
from tests.conftest import absent
from tests.support.rule_cases import CASES, EVERY_S, Case, values

MEMORY = Path("/dev/shm")
DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
ROWS = {row.name: row for rows in (metrics.COMMON, *metrics.TABLES.values()) for row in rows}
CODED = frozenset(
    {
        "reason",
        "code",
        "result",
        "outcome",
        "fate",
        "why",
        "what",
        "how",
        "which",
        "level",
        "data_source",
        "action",
        "state",
    }
)
"""Labels that tell a case apart: each value must be looked at, or be explained."""
PROMETHEUS_OWN = {"up", "ALERTS"}
SELECTOR = re.compile(r"(?<![\w:\"$.])([a-zA-Z_][a-zA-Z0-9_:]*+)(?:\{([^}]*)\})?(?!\s*\()")
MATCHER = re.compile(r'(\w+)\s*(=~|!~|!=|=)\s*"((?:[^"\\]|\\.)*)"')
WORDS = {
    "sum", "by", "rate", "increase", "or", "and", "unless", "on", "ignoring", "le", "count", "max", "job", "instance",
    "avg", "without", "offset", "topk", "vector",
}  # fmt: skip


def promtool() -> str:
    """The program; Debian's package prometheus has it."""
    found = shutil.which("promtool")
    if found is None:
        absent("promtool")
    return str(found)


def run(*words: object) -> subprocess.CompletedProcess[str]:
    """A command of promtool, to its end; its hundreds of small stores need no disk."""
    environ = {**os.environ, **({"TMPDIR": str(MEMORY)} if os.access(MEMORY, os.W_OK) else {})}
    command = [promtool(), *map(str, words)]
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=120, check=False)


def selectors(expr: str) -> Iterator[tuple[str, list[tuple[str, str, str]]]]:
    """Each series that an expression names, with its matchers."""
    inside = re.sub(r"\b(by|on|ignoring|without) \([^)]*\)", "", expr)
    inside = re.sub(r'label_replace\((.*?), "gate".*?\)"\)', r"\1", inside)
    for name, matchers in SELECTOR.findall(re.sub(r"\[[^\]]*\]", "", inside)):
        if name not in WORDS and not re.fullmatch(r"\d+[smhd]", name):
            yield name, MATCHER.findall(matchers)


def base(name: str) -> str:
    """A histogram's name without what its series end in."""
    return re.sub(r"_(bucket|count|sum)$", "", name)


def matches(matcher: tuple[str, str, str], value: str) -> bool:
    """Whether a label's value is one that a matcher asks for."""
    _, operator, wanted = matcher
    found = re.fullmatch(wanted, value) is not None if "~" in operator else value == wanted
    return found != operator.startswith("!")


def looked_at(row: metrics.Row, counts: tuple[str, ...], exprs: Sequence[str]) -> bool:
    """Whether an expression looks at one count of a metric; to divide by all of them, or to
    ask whether there are any, is no look."""
    told = dict(zip(row.labels, counts, strict=True))
    return any(
        name == row.name and all(matches(m, told[m[0]]) for m in matchers if m[0] in told)
        for expr in exprs
        for name, matchers in selectors(re.sub(r"(/ sum by|and on \(\)) .*", "", expr))
    )


def expressions() -> list[str]:
    """What alerts look at, through what is recorded."""
    recorded = {row.name: row.expr for row in RECORDINGS}
    return [
        expr
        for alert in ALERTS
        for expr in (alert.expr, *(recorded[n] for n, _ in selectors(alert.expr) if n in recorded))
    ]


def explained(row: metrics.Row, counts: tuple[str, ...], one: Elsewhere) -> bool:
    """Whether a row of the table is about this count."""
    told = dict(zip(row.labels, counts, strict=True))
    return one.metric == row.name and all(re.fullmatch(p, told[k]) for k, p in one.labels.items())


CLOSED: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "quantum_alloc_server_lacks": tuple((lack.value,) for lack in Lack),
    "quantum_alloc_kill_state": tuple((kill.value,) for kill in Kill),
    "quantum_alloc_inputs_total": tuple(("regime", state) for state in STATES),
    "quantum_alloc_last_log_line_timestamp_seconds": (("WARNING",), ("ERROR",)),
    "quantum_alloc_hold": tuple((r,) for row in CLASSES if row.name == "StoreAndClock" for r in row.reasons),
}
"""Closed sets of what is not counted from the start, or is so by service."""


def counts_of(row: metrics.Row) -> tuple[tuple[str, ...], ...]:
    """The counts of a metric whose labels are of a closed set; one that stands for all where they are not."""
    return row.start or CLOSED.get(row.name, (("any",) * len(row.labels),))


def test_every_code_has_an_alert_or_a_reason_why_not() -> None:
    """A count by reason, code, result ... is looked at by an alert, or the table tells why it needs none; no row of the
    table is about something that an alert looks at, or about nothing."""
    exprs = expressions()
    used: Counter[Elsewhere] = Counter()
    table: list[Elsewhere] = list(ELSEWHERE)
    for row in ROWS.values():
        if not CODED & set(row.labels):
            continue
        for counts in counts_of(row):
            why = [i for i, one in enumerate(table) if explained(row, counts, one)]
            watched = looked_at(row, counts, exprs)
            assert watched or why, f"{row.name}{counts}: write an alert, or a row of alert_classes.ELSEWHERE"
            assert not (watched and why), f"{row.name}{counts} has an alert: take it out of ELSEWHERE"
            used.update(why)  # type: ignore[arg-type]
    assert [one for i, one in enumerate(table) if i not in used] == []  # type: ignore[comparison-overlap]


def test_a_new_reason_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A metric, or a value of one, that nobody has thought of makes the test before this one fail."""
    blocks = ROWS["quantum_alloc_blocks_total"]
    more = (
        dataclasses.replace(blocks, start=(*blocks.start, ("thought_of_by_nobody",))),
        metrics.Row("quantum_alloc_new_total", "counter", "New.", ("reason",)),
    )
    for row in more:
        monkeypatch.setitem(ROWS, row.name, row)
        with pytest.raises(AssertionError, match="write an alert"):
            test_every_code_has_an_alert_or_a_reason_why_not()
        monkeypatch.undo()


def test_classes_have_every_reason_once() -> None:
    """Block reasons and codes of the store: each in exactly one class."""
    assert sorted(r for row in CLASSES for r in row.reasons) == sorted(BLOCK_REASONS)
    assert sorted(code for codes in STORE_CLASSES.values() for code in codes) == sorted(CODES)


def test_rules_and_dashboard_name_what_there_is() -> None:
    """Every series is of the tables, recorded here or Prometheus' own; every label of a matcher is the metric's, and
    every value that is asked for is of its closed set where there is one."""
    own = {"job", "instance", "le", "alertname", "alertstate"}
    recorded = {row.name for row in RECORDINGS}
    exprs = [*(a.expr for a in ALERTS), *(r.expr for r in RECORDINGS), *(q for p in PANELS for q, _ in p.queries)]
    seen = set()
    for expr in exprs:
        for name, matchers in selectors(expr):
            assert name in ROWS or base(name) in ROWS or name in recorded | PROMETHEUS_OWN, f"{name} in {expr}"
            row = ROWS.get(name)
            seen.add(name)
            for label, operator, wanted in matchers:
                assert row is None or label in own | set(row.labels), f"{name} has no label {label}"
                if row is None or label not in row.labels or wanted.startswith("$"):
                    continue
                values_ = {counts[row.labels.index(label)] for counts in counts_of(row)}
                if values_ == {"any"} or (row.name, label) == ("quantum_alloc_inputs_total", "input"):
                    continue
                asked = wanted.split("|") if "~" in operator else [wanted]
                assert set(asked) <= values_, f"{name}: {label} is never {set(asked) - values_}"
    assert {"quantum_alloc_armed_but_blind", "quantum_alloc_limit_used_ratio", "p29_stale_fallback_total"} <= seen


def test_what_increase_counts_is_there_from_the_start() -> None:
    """`increase` does not see a counter's first sample: a counter that an alert counts is there at 0 from the start,
    but for those with a symbol, which go on growing while the alert waits."""
    shown: dict[str, set[tuple[str, ...]]] = {}
    for service in metrics.TABLES:
        for family in metrics.Metrics(service).collect():
            for sample in family.samples:
                shown.setdefault(sample.name, set()).add(tuple(sample.labels.values()))
    for alert in ALERTS:
        for name in re.findall(r"increase\((\w+)", alert.expr):
            row = ROWS[base(name)]
            if row.kind == "histogram" or "symbol" in row.labels:
                assert row.kind == "histogram" or alert.wait != "0s", alert.name
                continue
            assert shown.get(name), f"{alert.name}: {name} has no Row.start"
            assert shown[name] >= set(row.start)


def test_texts_of_alerts() -> None:
    """Unlike names, a known severity, whole sentences about what it means and what to do, and no label in a summary
    that the alert has not: its firing cases tell which it has."""
    assert len({a.name for a in ALERTS}) == len(ALERTS)
    fires = {c.alert: set(c.fires) for c in CASES if c.fires is not None}
    for a in ALERTS:
        assert a.severity in ("critical", "warning", "info")
        assert re.fullmatch(r"\d+[smh]", a.wait)
        assert a.when.endswith("."), a.name
        assert a.todo.endswith((".", "?")), a.name
        assert "{{" not in a.when + a.todo
        assert not a.summary.endswith(".")
        assert set(re.findall(r"\$labels\.(\w+)", a.summary)) <= fires[a.name], a.name


def test_the_copies_in_the_repository(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """deploy/prometheus and deploy/grafana are as `make deploy` would write them now."""
    assert main(["config", "deploy", str(tmp_path)], {}) == 0
    capsys.readouterr()
    for folder, files in (("prometheus", alert_files.files()), ("grafana", dashboard.files())):
        here, made = (
            {str(p.relative_to(top / folder)): p.read_text() for p in (top / folder).rglob("*") if p.is_file()}
            for top in (DEPLOY, tmp_path)
        )
        assert here == made, "run `make deploy`"
        assert made == files


def test_prometheus_takes_the_files() -> None:
    """`promtool check` finds nothing, with all its lints."""
    done = run("check", "rules", "--lint=all", "--lint-fatal", DEPLOY / "prometheus" / alert_files.RULES)
    assert done.returncode == 0, done.stdout + done.stderr
    done = run("check", "config", DEPLOY / "prometheus" / "prometheus.yml")
    assert done.returncode == 0, done.stdout + done.stderr


def severity(name: str) -> str:
    """Of an alert."""
    return next(a.severity for a in ALERTS if a.name == name)


def as_tests(cases: Mapping[int, Case], rules: str, order: Sequence[str]) -> str:
    """The cases as promtool reads them; JSON is YAML. What is asked is the series that Prometheus itself keeps, with a
    matcher that matches everything and tells the cases apart."""
    tests = []
    for number, case in cases.items():
        firing = f'ALERTS{{alertname="{PREFIX}{case.alert}",alertstate="firing",case!="{number}"}}'
        told = {"alertname": PREFIX + case.alert, "alertstate": "firing", "severity": severity(case.alert)}
        found = [] if case.fires is None else [{**told, **case.fires}]
        pairs = (",".join(f'{k}="{v}"' for k, v in sorted(one.items())) for one in found)
        asked = {
            "expr": firing,
            "eval_time": f"{round(case.minutes * 60)}s",
            "exp_samples": [{"labels": f"ALERTS{{{p}}}", "value": 1} for p in pairs],
        }
        tests.append(
            {
                "interval": f"{EVERY_S}s",
                "input_series": [{"series": s, "values": values(steps)} for s, steps in case.series.items()],
                "promql_expr_test": [asked],
            }
        )
    return json.dumps(
        {
            "rule_files": [rules],
            "evaluation_interval": "30s" if all(c.minutes < 100 for c in cases.values()) else "2m",
            "group_eval_order": order,
            "tests": tests,
        }
    )


def failed(directory: Path, cases: Sequence[Case], alerts: Sequence[Alert] = ALERTS) -> list[Case]:
    """The cases that do not come out as the table says; all in one run, with a file of rules for each alert."""
    files = []
    for alert in alerts:
        mine = {n: c for n, c in enumerate(cases) if c.alert == alert.name}
        rules, tests = directory / f"{alert.name}.rules.yml", directory / f"{alert.name}.yml"
        needed = [row for row in RECORDINGS if row.name in alert.expr]
        rules.write_text(alert_files.rules_text([alert], needed))
        order = [*([alert_files.RECORDED] if needed else []), alert_files.group_name(alert.group)]
        tests.write_text(as_tests(mine, rules.name, order))
        files += [tests] if mine else []
    done = run("test", "rules", *files)
    told = done.stdout + done.stderr
    found = sorted({int(n) for n in re.findall(r'case!=\\"(\d+)\\"', told)})
    assert (done.returncode == 0) == (not found), told
    return [cases[n] for n in found]


def test_every_alert_fires_and_is_quiet(tmp_path: Path) -> None:
    """Each alert with what must make it fire, its labels included, and with what must not: just below the threshold,
    too short, a restart."""
    assert failed(tmp_path, CASES) == []
    for alert in ALERTS:
        mine = [c for c in CASES if c.alert == alert.name]
        assert any(c.fires is not None for c in mine), f"{alert.name} is never seen firing"
        assert any(c.fires is None for c in mine), f"{alert.name} is never seen quiet"
        assert alert.wait == "0s" or any(c.what == "too short" for c in mine), alert.name
    assert {c.alert for c in CASES} == {a.name for a in ALERTS}


def test_a_remedy_names_the_unit(tmp_path: Path) -> None:
    """An alert about a service says which unit to look at, and all of them for a job that has none; the words that the
    tables have for it reach nobody."""
    alert = next(a for a in ALERTS if a.name == "ServiceDown")
    (tmp_path / "rules.yml").write_text(alert_files.rules_text([alert], []))
    names = {**{job: unit.name for job, unit in UNITS.items()}, "desk": "'quantum-*'"}
    expected = [
        {
            "exp_labels": {"job": job, "instance": "i", "severity": alert.severity},
            "exp_annotations": {
                "summary": f"{job} (i) cannot be reached",
                "description": alert.when,
                "action": alert.todo.replace(UNIT, name),
            },
        }
        for job, name in names.items()
    ]
    asked = {"eval_time": "5m", "alertname": alert.full_name, "exp_alerts": expected}
    series_ = [{"series": f'up{{job="{job}",instance="i"}}', "values": "1 0x10"} for job in names]
    test = {"interval": "1m", "input_series": series_, "alert_rule_test": [asked]}
    (tmp_path / "test.yml").write_text(json.dumps({"rule_files": ["rules.yml"], "tests": [test]}))
    done = run("test", "rules", tmp_path / "test.yml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert UNIT not in alert_files.rules_text()
    assert sum(UNIT in a.todo for a in ALERTS) >= 5


def emptied(alert: Alert) -> Alert:
    """An alert that can never fire."""
    return dataclasses.replace(alert, expr=f"({alert.expr}) and vector(1) == 2")


def hasty(alert: Alert) -> Alert:
    """An alert that waits for nothing."""
    return dataclasses.replace(alert, wait="0s")


def loosened(alert: Alert) -> Alert:
    """An alert whose last comparison lets the next lower, or the next greater, value through."""
    looser = {
        ">": lambda n: f"> {0.98 * n - 0.01:g}", ">=": lambda n: f">= {n - max(1, 0.02 * n) if n > 1 else n - 0.02:g}",
        "<=": lambda n: f"<= {n + 0.1:g}", "<": lambda n: f"<= {n}", "==": lambda n: f">= {min(n, 0):g}",
    }  # fmt: skip
    found = list(re.finditer(r"(>=|<=|==|>|<) (-?[\d.]+)", alert.expr))
    if not found:
        return dataclasses.replace(alert, expr="vector(1)")
    last = found[0] if alert.name in ("TargetsShrunk", "InputConstant") else found[-1]
    expr = alert.expr[: last.start()] + looser[last[1]](float(last[2])) + alert.expr[last.end() :]
    return dataclasses.replace(alert, expr=expr)


@pytest.mark.parametrize(
    ("change", "of"),
    [
        (emptied, list({c.alert: c for c in CASES if c.fires is not None and c.minutes < 100}.values())),
        (hasty, [c for c in CASES if c.what == "too short"]),
        (loosened, [c for c in CASES if c.is_edge]),
    ],
    ids=["emptied", "hasty", "loosened"],
)
def test_the_cases_can_fail(change: object, of: list[Case], tmp_path: Path) -> None:
    """With every alert emptied, without its wait, or with a looser threshold, every case that is about it fails."""
    assert callable(change)
    assert failed(tmp_path, of, [change(alert) for alert in ALERTS]) == of
    assert len(of) >= 25


def test_what_a_page_of_a_service_holds() -> None:
    """`promtool check metrics` finds nothing in the page of any service at its start."""
    for service in metrics.TABLES:
        done = subprocess.run(
            [promtool(), "check", "metrics"], input=metrics.Metrics(service).render(), capture_output=True, check=False
        )
        found: Mapping[str, object] = {"code": done.returncode, "said": done.stderr}
        assert done.returncode == 0, found
