"""The table of units and the texts that are made of it: laws that hold without a systemd."""

from __future__ import annotations

import re
import shutil
import subprocess
from graphlib import TopologicalSorter
from pathlib import Path, PurePosixPath

import pytest

from quantum_alloc.adapters.clock import SetClock
from quantum_alloc.services import app, install_files, units
from quantum_alloc.services.app import SERVICES
from quantum_alloc.services.cli import main
from quantum_alloc.services.env_file import parse
from quantum_alloc.services.governor_setup import signing_keys
from quantum_alloc.services.loop import LATE_AT_LEAST_S, LATE_INTERVALS
from quantum_alloc.services.options import load
from quantum_alloc.services.seal import is_sealed
from quantum_alloc.services.settings import SettingsError
from quantum_alloc.services.units import UNITS, Unit
from tests.conftest import absent

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
EVERY = pytest.mark.parametrize("unit", UNITS.values(), ids=lambda u: u.service)
CONTRACT = """
feed quantum-market-feed 8045 feed
portfolio quantum-portfolio-state-publisher 8046 portfolio
regime quantum-regime-detector 8047 regime
clusters quantum-portfolio-clusters 8048 clusters
budget quantum-portfolio-risk-governor 8049 budget
allocation quantum-capital-allocation 8059 capital-allocation
attribution quantum-performance-attribution 8061 attribution
efficiency quantum-capital-efficiency 8062,8063 capital-efficiency
proposer quantum-allocation-target 8065 allocation-target
governor quantum-governor 8044 governor
apply quantum-apply-layer 8043 apply-layer
"""
"""Service, unit, ports and env file, as other programs and dashboards know them."""


def sections(text: str) -> dict[str, dict[str, list[str]]]:
    """A unit as sections, names and values; a name may stand more than once."""
    found: dict[str, dict[str, list[str]]] = {}
    for line in text.splitlines():
        if line.startswith("["):
            found[line[1:-1]] = {}
        elif line and not line.startswith("#"):
            name, _, value = line.partition("=")
            found[list(found)[-1]].setdefault(name, []).append(value)
    return found


def test_every_service_but_the_demos_has_its_unit_of_the_contract() -> None:
    """Names, ports and env files are those that others rely on; the desk is the demo's alone."""
    rows = {u.service: (u.name, ",".join(map(str, u.ports)), u.env_file.removesuffix(".env")) for u in UNITS.values()}
    assert rows == {name: tuple(rest) for name, *rest in (line.split() for line in CONTRACT.split("\n") if line)}
    assert set(SERVICES) - set(UNITS) == {"desk"}


def test_what_feeds_a_service_never_goes_in_a_circle() -> None:
    """There is an order to start them in, and the table is in that order."""
    order = {name: k for k, name in enumerate(UNITS)}
    for unit in UNITS.values():
        assert set(unit.fed_by) <= set(UNITS)
        assert all(order[feeder] < order[unit.service] for feeder in unit.fed_by)
    assert set(TopologicalSorter({u.service: u.fed_by for u in UNITS.values()}).static_order()) == set(UNITS)


@EVERY
def test_a_unit_waits_for_what_feeds_it_and_requires_nothing(unit: Unit) -> None:
    """After= and Wants= Redis and the feeders; a paper service is never pulled in, and nothing is required."""
    found = sections(units.unit_text(unit))["Unit"]
    feeders = {UNITS[name].file: UNITS[name].paper for name in unit.fed_by}
    (after,), (wants,) = found["After"], found["Wants"]
    assert set(after.split()) == {"network.target", *units.REDIS, *feeders}
    assert set(wants.split()) == {*units.REDIS, *(file for file, paper in feeders.items() if not paper)}
    assert found["PartOf"] == [units.TARGET]
    assert not {"Requires", "BindsTo", "Requisite"} & set(found)


@EVERY
def test_a_unit_says_what_the_guarantees_need(unit: Unit) -> None:
    """Readiness, watchdog, restarts without a loop, limits, state, user, settings and secrets."""
    found = sections(units.unit_text(unit, PurePosixPath("/srv/qa")))["Service"]
    expected = {
        "Type": "notify",
        "NotifyAccess": "main",
        "ExecStart": f"/srv/qa/venv/bin/quantum-alloc run {unit.service}",
        "EnvironmentFile": f"-/etc/quantum/{unit.env_file}",
        "WatchdogSec": str(unit.watchdog_s),
        "Restart": "always",
        "RestartSec": "2",
        "RestartPreventExitStatus": "78",
        "StateDirectory": f"quantum-alloc/{unit.service}",
        "User": f"qa-{unit.service}",
        "Group": f"qa-{unit.service}",
        "LimitCORE": "0",
    }
    assert {name: found[name] for name in expected} == {name: [value] for name, value in expected.items()}
    assert int(found["MemoryMax"][0].removesuffix("M")) >= 128
    assert found["CPUQuota"][0].endswith("%")
    assert int(found["TimeoutStopSec"][0]) <= 5
    assert all(not re.search("password|key", value, re.IGNORECASE) for value in found["Environment"])


@EVERY
def test_a_secret_is_a_credential_with_a_default(unit: Unit) -> None:
    """Each credential is of the secrets, but for the settings, and one whose file is missing fails no start."""
    found = sections(units.unit_text(unit))["Service"]
    loaded = dict(value.split(":", 1) for value in found["LoadCredential"])
    assert loaded["redis-password"] == f"/etc/quantum/secrets/{unit.user}.redis-password"
    assert ("governor-signing-key" in loaded) == (unit.service in ("governor", "apply"))
    assert found["SetCredential"] == [rf"{name}:\n" for name in loaded]
    assert loaded.pop("settings") == f"/etc/quantum/{unit.env_file}"
    assert all(path.startswith("/etc/quantum/secrets/") for path in loaded.values())


@EVERY
def test_the_watchdog_is_more_patient_than_the_loop(unit: Unit) -> None:
    """It fires after three intervals, and after the loop itself calls a cycle late."""
    assert unit.watchdog_s > LATE_INTERVALS * unit.interval_s
    assert unit.watchdog_s > LATE_AT_LEAST_S


def test_the_target_groups_the_services_and_leaves_paper_out() -> None:
    """What writes simulated prices or fills is wanted only where it was asked for."""
    found = sections(units.target_text())
    assert found["Unit"]["Wants"][0].split() == [u.file for u in UNITS.values() if not u.paper]
    assert {u.service for u in UNITS.values() if u.paper} == {"feed", "apply"}
    assert {sections(units.unit_text(u))["Install"]["WantedBy"][0] for u in UNITS.values()} == {units.TARGET}


def test_each_service_has_a_user_of_its_own() -> None:
    """One line a user, without a home and a shell; systemd-sysusers takes it."""
    lines = [line for line in units.sysusers_text().splitlines() if not line.startswith("#")]
    assert [line.split()[:3] for line in lines] == [["u", u.user, "-"] for u in UNITS.values()]
    assert all(line.endswith('" - -') for line in lines)
    assert len({u.user for u in UNITS.values()}) == len(UNITS)


def test_a_seal_tells_any_change() -> None:
    """Every changed, added or missing line breaks it; a text without one is nobody's."""
    made = units.unit_text(UNITS["governor"])
    assert is_sealed(made) is True
    lines = made.splitlines(keepends=True)
    sealed = next(k for k, line in enumerate(lines) if "sha256" in line)
    for k in range(len(lines)):
        less = "".join(lines[:k] + lines[k + 1 :])
        assert is_sealed(less) is (None if k == sealed else False)
    assert is_sealed(made + "MemoryMax=1G\n") is False
    script = install_files.command_text(units.PREFIX)
    assert script.startswith("#!/bin/sh\n")
    assert is_sealed(script) is True


def test_the_copies_in_the_repository_are_those_that_are_put(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """deploy/ is as `make deploy` would write it now, with no file of an earlier version."""
    assert main(["config", "deploy", str(tmp_path)], {}) == 0
    capsys.readouterr()
    folders = ("systemd", "sysusers.d", "env")
    made, here = (
        {str(p.relative_to(top)): p.read_text() for f in folders for p in (top / f).rglob("*") if p.is_file()}
        for top in (tmp_path, DEPLOY)
    )
    assert here == made, "run `make deploy`"
    assert made == install_files.copies()


def test_the_copies_cannot_be_written_into_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A directory that is none is one sentence."""
    (tmp_path / "systemd").write_text("")
    assert main(["config", "deploy", str(tmp_path)], {}) == 1
    assert "cannot be written" in capsys.readouterr().err


@EVERY
def test_an_example_of_settings_can_be_used_as_it_is(unit: Unit) -> None:
    """Comments stand on lines of their own; with every variable set it gives the defaults."""
    text = install_files.env_files()[unit.env_file]
    assert parse(text) == ({}, [])
    assert not re.search(r"(?m)^#?[A-Z][A-Z0-9_]*=.*#", text)
    assert f"/etc/quantum/{unit.env_file}" in text.splitlines()[0]
    environ, errors = parse(re.sub(r"(?m)^#(?=[A-Z][A-Z0-9_]*=)", "", text))
    assert errors == []
    assert load([unit.service], environ).services == load([unit.service], {}).services


def test_an_operators_settings_can_be_used_as_they_are() -> None:
    """They name the directory of the ledger and no secret."""
    environ, errors = parse(install_files.operator_text())
    assert (environ, errors) == ({"STATE_DIRECTORY": "/var/lib/quantum-alloc/operator"}, [])
    load(list(SERVICES), environ, together=False)


@EVERY
def test_a_unit_is_hardened(unit: Unit, tmp_path: Path) -> None:
    """At most 1.5 of 10 in systemd's own table, and nothing that its parser would ignore."""
    if shutil.which("systemd-analyze") is None:
        absent("systemd-analyze")
    prefix = PurePosixPath(tmp_path)
    program = tmp_path / "venv" / "bin" / "quantum-alloc"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    for name, text in units.systemd_files(prefix).items():
        (tmp_path / name).write_text(text)
    words = ["systemd-analyze", "security", "--offline=true", "--threshold=15", "--no-pager", unit.file]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    (level,) = re.findall(r"exposure level for \S+: ([0-9.]+)", done.stdout)
    assert float(level) <= 1.5, done.stdout
    words = ["systemd-analyze", "verify", f"./{unit.file}"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.parametrize("default", ["", "\n"])
def test_a_credential_that_is_an_empty_line_is_none(default: str, tmp_path: Path) -> None:
    """What the unit sets where there is no file counts as not configured; a named file that is empty is an error."""
    for name in ("redis-password", "redis-sentinel-password", "governor-signing-key"):
        (tmp_path / name).write_text(default)
    redis = load(["governor"], {"CREDENTIALS_DIRECTORY": str(tmp_path)}).redis
    assert redis.password() is None
    assert signing_keys(None, tmp_path) == ()
    with pytest.raises(SettingsError, match="one password"):
        load(["governor"], {"REDIS_PASSWORD_FILE": str(tmp_path / "redis-password")}).redis.password()
    with pytest.raises(SettingsError, match="GOV_SIGNING_KEY_FILE"):
        signing_keys(tmp_path / "governor-signing-key", None)


@pytest.mark.parametrize(
    ("interval", "given_us", "told"),
    [("5", "20000000", ""), ("60", "20000000", "\nWATCHDOG_USEC=225000000"), ("60", "", ""), ("60", "x", "")],
)
def test_the_watchdog_is_told_of_an_interval_that_it_would_cut(interval: str, given_us: str, told: str) -> None:
    """An interval longer than the unit's watchdog foresees prolongs it; nothing is told where nobody watches."""
    settings = load(["portfolio"], {"P25_INTERVAL_SEC": interval})
    ((loop, _, store),) = app._build(["portfolio"], settings, SetClock(0.0))
    assert app.Watchdog([loop]).patience(given_us) == told
    loop.cycle.close()
    store.close()


INTERVALS = {
    "feed": "QA_FEED_REWRITE_SEC=50", "portfolio": "P25_INTERVAL_SEC=33", "regime": "QA_REGIME_INTERVAL_SEC=33",
    "clusters": "QA_CLUSTERS_INTERVAL_SEC=33", "budget": "P28_INTERVAL_SEC=33", "allocation": "P29_INTERVAL_SEC=33",
    "attribution": "P30_INTERVAL_SEC=33", "efficiency": "P31_LOOP_SEC=33", "proposer": "LOOP_INTERVAL_SEC=33",
    "governor": "", "apply": "QA_APPLY_MARK_SEC=29",
}  # fmt: skip
"""The cadence of each service as an operator sets it; the governor's is fixed."""


@EVERY
def test_a_loop_has_the_interval_of_its_settings(unit: Unit, tmp_path: Path) -> None:
    """Lateness and watchdog follow it: a loop that kept another would be ended for ever while it is well."""
    name, _, value = INTERVALS[unit.service].partition("=")
    environ = {"STATE_DIRECTORY": str(tmp_path), **({name: value} if name else {})}
    settings = load([unit.service], environ)
    ((loop, _, store),) = app._build([unit.service], settings, SetClock(0.0))
    assert loop.cycle.interval_s == settings.services[unit.service].interval_s == float(value or 1)
    loop.cycle.close()
    store.close()
