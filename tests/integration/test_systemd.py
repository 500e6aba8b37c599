"""Units started for real: a machine is booted, quantum-alloc is installed on it by its command, and things happen."""

from __future__ import annotations

import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from quantum_alloc.services import install_release
from quantum_alloc.services.env_file import parse
from quantum_alloc.services.programs import InstallError
from quantum_alloc.services.seal import seal
from quantum_alloc.services.units import SECRETS, TARGET, UNITS, Unit
from tests.conftest import absent
from tests.support.machine import PYTHON, SERVICES, Machine, wheel
from tests.support.running import until

pytestmark = [pytest.mark.xdist_group("systemd"), pytest.mark.timeout(300)]

PASSWORD = "pa55-canary-5f1e0c"
SIGNING = "s1gning-canary-77b2d4e1a9c05f3366aa"
INTERVAL_S = 1
INTERVALS = (
    "P25_INTERVAL_SEC", "QA_REGIME_INTERVAL_SEC", "QA_CLUSTERS_INTERVAL_SEC", "P28_INTERVAL_SEC", "P29_INTERVAL_SEC",
    "P30_INTERVAL_SEC", "P31_LOOP_SEC", "LOOP_INTERVAL_SEC", "QA_FEED_REWRITE_SEC", "QA_APPLY_MARK_SEC",
)  # fmt: skip
DROP_INS = "/etc/systemd/system/quantum-.service.d"
PROGRAM = Path(sys.executable).with_name("quantum-alloc")
NOWHERE = "redis://127.0.0.1:1/0"
"""No Redis: an installation from outside must not meet one of this machine."""
PLACES = ("/etc", "/opt/quantum-alloc", "/usr/local", "/var/lib")
OPEN = ("/etc", "/opt/quantum-alloc", "/usr/local/bin", "/usr/local/share", "/var/lib", "/var/log", "/run", "/srv")
WATCHDOG_S = 6
RESTART_S = 0.2
"""Instead of the 2 s of the units."""
VOLATILE = re.compile(r"/etc/(\.pwd\.lock|(passwd|group|shadow|gshadow|subuid|subgid)-?)$|/var/lib/(?!quantum-alloc)")
HANGS = """
import os, pathlib, sys, time
from quantum_alloc.services import cli, loop
hung, once = pathlib.Path(os.environ["STATE_DIRECTORY"], "hung"), loop.Loop.once
def hangs(self):
    if self.cycles >= 2 and not hung.exists():
        hung.touch()
        time.sleep(600)
    return once(self)
loop.Loop.once = hangs
sys.exit(cli.main(["run", *sys.argv[1:]]))
"""
"""A service whose first life hangs in its third cycle."""


def listing(machine: Machine) -> dict[str, str]:
    """Every file of the places that an installation touches, with its rights and owner."""
    told = machine.tried("find", *PLACES, "-xdev", "-printf", r"%p\t%y %m %u %g %l\n").stdout
    found = dict(line.split("\t", 1) for line in told.splitlines())
    assert "/etc/fstab" in found or len(found) > 100
    return {path: rest for path, rest in found.items() if not VOLATILE.search(path)}


def changes(machine: Machine, was: dict[str, str]) -> set[str]:
    """Files that are there or not, or have other rights, than at a listing before."""
    return {path for path, _ in set(listing(machine).items()) ^ set(was.items())}


def install(machine: Machine, *words: str, program: object = "quantum-alloc", **environ: str) -> tuple[int, str]:
    """Run the installer, with this machine's network; exit code and output."""
    kept = {k: v for k, v in os.environ.items() if k.lower().startswith("pip_") or k.lower().endswith("_proxy")}
    done = machine.tried(str(program), "install", *words, network=False, **{"REDIS_URL": NOWHERE, **kept, **environ})
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Future[Path]]:
    """This checkout as a wheel, made while the machine boots."""
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(wheel, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory, shared: Path, made: Future[Path]) -> Iterator[Machine]:
    """A machine without quantum-alloc."""
    if os.geteuid() != 0:
        absent("root, which boots a machine of its own,")
    for program in ("systemd-nspawn", "nsenter", "redis-server"):
        if shutil.which(program) is None:
            absent(program)
    try:
        install_release.interpreter(None)
    except InstallError as error:
        absent(f"an interpreter that a unit can see ({error})")
    machine = Machine(shared / "tools" / "boot_systemd.sh", tmp_path_factory.mktemp("machine"))
    try:
        machine.start()
        yield machine
    finally:
        machine.stop()


@pytest.fixture(scope="module")
def before(bare: Machine) -> dict[str, str]:
    """The disk before the installation."""
    return listing(bare)


@pytest.fixture(scope="module")
def package(bare: Machine, made: Future[Path]) -> str:
    """This checkout as a wheel, on the machine."""
    place = bare.path("/srv/wheel")
    place.mkdir()
    shutil.copy(made.result(), place)
    return f"/srv/wheel/{made.result().name}"


@pytest.fixture(scope="module")
def machine(bare: Machine, package: str, before: dict[str, str]) -> Machine:
    """A machine with quantum-alloc, a password and a signing key; every service is ready."""
    code, planned = install(bare, "--paper", "--source", package, "--dry-run", program=PROGRAM)
    assert (code, changes(bare, before)) == (0, set()), planned
    code, told = install(bare, "--paper", "--source", package, program=PROGRAM)
    assert code == 0, told
    actions = planned.splitlines()[:-1]
    assert told.splitlines()[: len(actions)] == actions
    assert "The OPS ledger does not tell of it" in told
    secrets = bare.path(str(SECRETS))
    for name in [f"{u.user}.redis-password" for u in UNITS.values()] + ["qa-operator.redis-password"]:
        (secrets / name).write_text(f"{PASSWORD}\n")
    (secrets / "governor-signing-key").write_text(f"k1 {SIGNING}\n")
    for file in secrets.iterdir():
        file.chmod(0o600)
    with bare.path("/etc/redis/redis.conf").open("a") as conf:
        conf.write(f"\nrequirepass {PASSWORD}\n")
    with bare.path("/etc/quantum/operator.env").open("a") as env:
        env.write(f"REDIS_PASSWORD_FILE={SECRETS}/qa-operator.redis-password\n")
    drop_in = bare.path(DROP_INS)
    drop_in.mkdir()
    (drop_in / "quick.conf").write_text(
        f"[Service]\nWatchdogSec={WATCHDOG_S}\nRestartSec={RESTART_S}\n"
        + "".join(f"Environment={name}={INTERVAL_S}\n" for name in INTERVALS)
    )
    bare.run("systemctl", "daemon-reload")
    bare.run("systemctl", "restart", "redis-server")
    bare.up()
    return bare


def test_every_service_is_ready_under_its_own_user(machine: Machine) -> None:
    """All reach ready; each runs as its user, keeps its state where only it may read, and was started once."""
    machine.up()
    for unit in UNITS.values():
        told = machine.shown(unit.file, "ActiveState", "NRestarts", "MainPID", "User", "NotifyAccess")
        assert (told["ActiveState"], told["NRestarts"]) == ("active", "0"), unit.name
        owner = machine.run("stat", "-c", "%U %a", f"/var/lib/quantum-alloc/{unit.service}").split()
        assert owner == [unit.user, "700"]
        assert machine.run("ps", "-o", "user:32=", "-p", told["MainPID"]).strip() == unit.user
    assert machine.run("systemctl", "is-active", TARGET).strip() == "active"
    assert "quantum-" not in machine.run("systemctl", "list-units", "--failed", "--plain", "--no-legend")


def test_systemd_finds_nothing_to_say_about_the_units(machine: Machine) -> None:
    """verify prints nothing: it returns 0 for keys that it does not know."""
    done = machine.tried("systemd-analyze", "verify", *SERVICES, TARGET)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_systemd_reads_an_env_file_as_config_check_does(machine: Machine) -> None:
    """Every example, with each variable set, gives systemd's process the very values that are checked."""
    place = machine.path("/srv/env")
    place.mkdir(exist_ok=True)
    for unit in UNITS.values():
        example = machine.path(f"/etc/quantum/{unit.env_file}").read_text()
        text = re.sub(r"(?m)^#(?=[A-Z][A-Z0-9_]*=)", "", example)
        (place / unit.env_file).write_text(text)
        found, errors = parse(text)
        assert errors == []
        words = ["systemd-run", "--wait", "--pipe", "--quiet", f"--property=EnvironmentFile=/srv/env/{unit.env_file}"]
        told = dict(line.split("=", 1) for line in machine.run(*words, "env").splitlines())
        assert {name: told[name] for name in found} == found


def test_a_killed_service_is_ready_again_within_five_seconds_of_its_start(machine: Machine) -> None:
    """SIGKILL: systemd waits RestartSec and starts it; all at once come back too."""
    machine.up()
    took = killed(machine, UNITS["governor"])
    if took >= 5:  # a machine under load gets another try
        took = killed(machine, UNITS["governor"])
    assert took < 5
    machine.run("systemctl", "kill", "--kill-whom=main", "--signal=KILL", *SERVICES)
    until(lambda: all(int(n) >= 1 for n in machine.every("NRestarts").values()), 30, "systemd starts all of them again")
    machine.ready(60)


def killed(machine: Machine, unit: Unit) -> float:
    """Kill a service; seconds until it is ready again."""
    times = int(machine.shown(unit.file, "NRestarts")["NRestarts"])
    machine.run("systemctl", "kill", "--kill-whom=main", "--signal=KILL", unit.file)
    began = time.monotonic()
    machine.restarted(unit.file, times + 1, 30)
    machine.ready(30, unit.ports)
    return time.monotonic() - began - RESTART_S


def test_a_loop_that_hangs_is_started_anew(machine: Machine) -> None:
    """Its page still answers, but no cycle finishes: the watchdog ends it, and its next life is ready."""
    machine.up()
    unit = UNITS["portfolio"]
    machine.path("/srv/hangs.py").write_text(HANGS)
    drop_in = machine.path(f"/etc/systemd/system/{unit.file}.d")
    drop_in.mkdir()
    quick = "Environment=P25_INTERVAL_SEC=0.2\nWatchdogSec=3"
    text = f"[Service]\n{quick}\nExecStart=\nExecStart={PYTHON} /srv/hangs.py {unit.service}\n"
    (drop_in / "hangs.conf").write_text(text)
    try:
        machine.run("systemctl", "daemon-reload")
        machine.run("systemctl", "restart", unit.file)
        machine.ready(30, unit.ports)
        hung = machine.path(f"/var/lib/quantum-alloc/{unit.service}/hung")
        until(hung.exists, 30, "it hangs")
        assert machine.asked("/health", 200, 5, unit.ports)[0] < 5  # nobody but the watchdog sees it yet
        machine.restarted(unit.file, 1, 30)
        machine.ready(30, unit.ports)
        said = machine.run("journalctl", "--no-pager", "--output=cat", "--unit", unit.file)
        assert "Watchdog timeout" in said
        assert re.search(r'File "/srv/hangs.py", line \d+ in hangs', said)  # the journal says where it hung
    finally:
        shutil.rmtree(drop_in)
        machine.run("systemctl", "daemon-reload")
        machine.run("systemctl", "restart", unit.file)


def test_an_interval_that_the_watchdog_would_cut_prolongs_it(machine: Machine) -> None:
    """Five times the usual interval: systemd waits for more than three of them."""
    unit = UNITS["portfolio"]
    env = machine.path(f"/etc/quantum/{unit.env_file}")
    text = env.read_text()
    try:
        env.write_text("P25_INTERVAL_SEC=25\n")
        machine.run("systemctl", "restart", unit.file)
        assert machine.shown(unit.file, "WatchdogUSec")["WatchdogUSec"] == "1min 33.750000s"
    finally:
        env.write_text(text)
        machine.run("systemctl", "restart", unit.file)
    assert machine.shown(unit.file, "WatchdogUSec")["WatchdogUSec"] == f"{WATCHDOG_S}s"


def test_redis_gone_for_longer_than_the_watchdog_restarts_nothing(machine: Machine) -> None:
    """The same processes go on, say so on /ready alone, and are ready within 5 s of its return."""
    machine.up()
    pids, restarts = machine.every("MainPID"), machine.every("NRestarts")
    machine.run("systemctl", "stop", "redis-server")
    gone = time.monotonic()
    machine.asked("/ready", 503, 30)
    until(lambda: time.monotonic() - gone > WATCHDOG_S + 2, WATCHDOG_S + 4, "longer than the watchdog")
    took, found = machine.asked("/health", 200, 1)
    assert {code for code, _ in found.values()} == {200}, (took, found)
    machine.run("systemctl", "start", "redis-server")
    machine.ready(5)
    assert (machine.every("MainPID"), machine.every("NRestarts")) == (pids, restarts)


def stopped(machine: Machine) -> tuple[float, dict[str, dict[str, str]]]:
    """Stop the target; seconds until the last service has ended by systemd's own clock, and how each ended."""
    machine.run("systemctl", "stop", TARGET)
    until(lambda: set(machine.every("ActiveState").values()) == {"inactive"}, 30, "all have ended")
    names = ("ExecMainStatus", "Result", "InactiveEnterTimestampMonotonic")
    ended = {u.service: machine.shown(u.file, *names) for u in UNITS.values()}
    began = int(machine.shown(TARGET, names[2])[names[2]])
    return max(int(told[names[2]]) - began for told in ended.values()) / 1e6, ended


def test_a_stop_of_the_target_ends_all_within_five_seconds_and_in_order(machine: Machine) -> None:
    """Each ends with exit code 0, before what feeds it; a start goes the other way round, also without Redis."""
    machine.up()
    took, ended = stopped(machine)
    if took >= 5:  # a machine under load gets another try
        machine.up()
        took, ended = stopped(machine)
    assert took < 5
    assert {(told["ExecMainStatus"], told["Result"]) for told in ended.values()} == {("0", "success")}
    machine.run("systemctl", "stop", "redis-server")
    machine.run("systemctl", "mask", "--runtime", "redis-server")
    try:
        machine.run("systemctl", "start", TARGET)
        assert set(machine.every("ActiveState").values()) == {"active"}
        assert {code for code, _ in machine.asked("/health", 200, 30)[1].values()} == {200}
        assert {code for code, _ in machine.asked("/ready", 503, 30)[1].values()} == {503}
    finally:
        machine.run("systemctl", "unmask", "--runtime", "redis-server")
    machine.run("systemctl", "start", "redis-server")
    machine.ready(5)
    began_at = {u.service: machine.shown(u.file, "ActiveEnterTimestampMonotonic") for u in UNITS.values()}
    for unit in UNITS.values():
        for feeder in unit.fed_by:
            first, last = ended[unit.service], ended[feeder]
            assert int(first["InactiveEnterTimestampMonotonic"]) <= int(last["InactiveEnterTimestampMonotonic"])
            assert int(next(iter(began_at[feeder].values()))) <= int(next(iter(began_at[unit.service].values())))


@pytest.fixture
def spoilt(machine: Machine) -> Iterator[Path]:
    """The settings of the allocation, put back afterwards."""
    path = machine.path(f"/etc/quantum/{UNITS['allocation'].env_file}")
    text = path.read_text()
    yield path
    path.write_text(text)
    machine.up()


def refused(machine: Machine, service: str) -> str:
    """Start a service that cannot start; what it said. It is left ended, and nothing tries again."""
    unit = UNITS[service].file
    done = machine.tried("systemctl", "restart", unit)
    assert done.returncode != 0
    told = machine.shown(unit, "ActiveState", "SubState", "ExecMainStatus", "NRestarts", "Result")
    assert told == {
        "ActiveState": "failed", "SubState": "failed", "ExecMainStatus": "78", "NRestarts": "0", "Result": "exit-code",
    }  # fmt: skip
    return machine.said(unit)


def test_a_bad_env_file_is_one_message_and_no_loop(machine: Machine, spoilt: Path) -> None:
    """Every mistake at once, an inline comment named as such; exit 78, no restart."""
    spoilt.write_text("P29_INTERVAL_SEC=5 # seconds\nP29_MOD=enforce\n")
    said = refused(machine, "allocation")
    assert said.count("the settings cannot be used") == 1
    assert "put the comment on a line of its own" in said
    assert "did you mean P29_MODE?" in said
    assert "Traceback" not in said
    dropped = {  # systemd itself goes on with the defaults
        b"P29_MODE enforce\n": "line 1: no '='",
        b"export P29_MODE=enforce\n": "line 1: systemd knows no 'export'",
        b"\xef\xbb\xbfP29_MODE=enforce\n": "line 1: it begins with a byte order mark",
        b"P29_MODE=enforce\nQA_SYMBOLS=\xe4\n": "line 2: it is not UTF-8",
        b"P29_MODE=enforce\0\n": "line 1: it holds a NUL byte",
    }
    for raw, why in dropped.items():
        spoilt.write_bytes(raw)
        assert f"/etc/quantum/{spoilt.name}: {why}" in refused(machine, "allocation")


def test_a_port_that_is_taken_is_one_line_and_no_loop(machine: Machine, spoilt: Path) -> None:
    """Two services on one port: the second says so and ends with 78."""
    machine.up()
    spoilt.write_text(f"P29_METRICS_PORT={UNITS['governor'].ports[0]}\n")
    said = refused(machine, "allocation")
    (line,) = (line for line in said.splitlines() if "cannot open 127.0.0.1:8044" in line)
    assert "P29_METRICS_PORT" in line
    assert "Traceback" not in said


def test_a_secret_that_is_not_there_is_no_failure_of_the_unit(machine: Machine) -> None:
    """Without a password file the service runs, and says what Redis refuses."""
    unit = UNITS["regime"]
    file = machine.path(f"{SECRETS}/{unit.user}.redis-password")
    away = file.rename(file.with_suffix(".away"))
    try:
        machine.run("systemctl", "restart", unit.file)
        assert machine.shown(unit.file, "ActiveState")["ActiveState"] == "active"
        assert machine.asked("/ready", 503, 30, unit.ports)[1][str(unit.ports[0])][0] == 503
        until(lambda: "auth" in machine.said(unit.file).casefold(), 30, "it says that Redis wants a password")
    finally:
        away.rename(file)
        machine.run("systemctl", "restart", unit.file)


def leaks(machine: Machine) -> dict[str, str]:
    """Everything that is shown to anybody, by where it is."""
    found = {"journal": machine.run("journalctl", "--no-pager", "--all", "--output=export")}
    for unit in UNITS.values():
        pid = machine.shown(unit.file, "MainPID")["MainPID"]
        found[f"{unit.name} environ"] = machine.run("cat", f"/proc/{pid}/environ")
        found[f"{unit.name} cmdline"] = machine.run("cat", f"/proc/{pid}/cmdline")
        found[f"{unit.name} show"] = machine.run("systemctl", "show", unit.file)
    for page in ("/metrics", "/health", "/ready"):
        found[page] = str(machine.asked(page, 200, 30))
    found["status"] = machine.run("quantum-alloc", "status", "--format", "json")
    found["settings"] = machine.run("quantum-alloc", "config", "show")
    found["files"] = readable(machine, *OPEN)
    return found


def readable(machine: Machine, *places: str) -> str:
    """Files with a secret in them that every user may read."""
    words = ["grep", "-rlsF", "--exclude-dir=site-packages", "-e", PASSWORD, "-e", SIGNING, *places]
    return machine.tried("runuser", "-u", "nobody", "--", *words).stdout


def test_no_secret_is_to_be_found(machine: Machine) -> None:
    """A password and a signing key in use are in no environment, argument, log, page, property or readable file."""
    machine.up()
    shown = leaks(machine)
    for where, text in shown.items():
        assert PASSWORD not in text, where
        assert SIGNING not in text, where
    assert shown["files"] == ""
    assert '"redis": "redis://localhost:6379/0"' in shown["status"]
    assert all(len(text) > 20 for where, text in shown.items() if where != "files")
    plant = machine.path("/srv/plant")
    plant.write_text(PASSWORD)  # what looks for it finds it
    plant.chmod(0o644)
    try:
        assert readable(machine, *OPEN).split() == ["/srv/plant"]
    finally:
        plant.unlink()


def test_a_credential_is_its_own_units_alone(machine: Machine) -> None:
    """The service's user reads its password; another service's user and nobody do not; the key goes to two units."""
    machine.up()
    path = f"/run/credentials/{UNITS['governor'].file}"
    assert machine.run("runuser", "-u", "qa-governor", "--", "cat", f"{path}/redis-password").strip() == PASSWORD
    assert (
        machine.run("runuser", "-u", "qa-governor", "--", "cat", f"{path}/governor-signing-key").split()[1] == SIGNING
    )
    for user in ("qa-apply", "qa-feed", "nobody"):
        for name in ("redis-password", "governor-signing-key"):
            assert machine.tried("runuser", "-u", user, "--", "cat", f"{path}/{name}").returncode != 0
        assert machine.tried("runuser", "-u", user, "--", "ls", str(SECRETS)).returncode != 0
    holding = machine.run("find", "/run/credentials", "-name", "governor-signing-key").split()
    assert sorted(Path(p).parent.name for p in holding) == ["quantum-apply-layer.service", "quantum-governor.service"]


def test_a_second_installation_changes_nothing(machine: Machine, package: str) -> None:
    """Not one file, but for the example beside settings that were edited; and a dry run says the same."""
    assert install(machine)[0] == 0
    was = listing(machine)
    for words in (["--paper"], ["--paper", "--source", package], ["--dry-run"]):
        code, told = install(machine, *words)
        assert code == 0, told
        assert {line.split()[0] for line in told.splitlines()[:-1]} == {"unchanged", "keep"}
    done = machine.tried("runuser", "-u", "nobody", "--", "quantum-alloc", "install", "--dry-run")
    assert done.returncode == 0, done.stderr
    verbs = {line.split()[1]: line.split()[0] for line in done.stdout.splitlines()[:-1]}
    assert (verbs["/etc/quantum/governor.env"], verbs["/etc/quantum/secrets/"]) == ("unseen", "unseen")
    assert set(verbs.values()) == {"unchanged", "keep", "unseen"}
    assert changes(machine, was) == set()
    assert "/etc/quantum/operator.env.example" in was


def test_an_upgrade_replaces_what_nobody_touched_and_keeps_what_somebody_edited(machine: Machine) -> None:
    """An older unit of ours is replaced; an edited one and edited settings stay, with the new text beside them."""
    old, edited = (machine.path(f"/etc/systemd/system/{UNITS[name].file}") for name in ("budget", "proposer"))
    env = machine.path(f"/etc/quantum/{UNITS['budget'].env_file}")
    unit, other, settings = old.read_text(), edited.read_text(), env.read_text()
    old.write_text(seal("[Service]\nExecStart=/bin/false\n"))
    edited.write_text(other + "# mine\n")
    env.write_text("P28_INTERVAL_SEC=10\n")
    told = machine.run("quantum-alloc", "install")
    assert "Written down as OPS-" in told
    assert old.read_text() == unit
    assert edited.read_text() == other + "# mine\n"
    assert edited.with_name(f"{edited.name}.new").read_text() == other
    assert (env.read_text(), env.with_name(f"{env.name}.example").read_text()) == ("P28_INTERVAL_SEC=10\n", settings)
    verbs = {line.split()[1]: line.split()[0] for line in told.splitlines() if line.startswith(("replace", "keep"))}
    assert verbs[f"/etc/systemd/system/{old.name}"] == "replace"
    assert verbs[f"/etc/systemd/system/{edited.name}"] == verbs[f"/etc/quantum/{env.name}"] == "keep"
    edited.write_text(other)
    edited.with_name(f"{edited.name}.new").unlink()


def test_what_fails_on_the_way_is_taken_back(machine: Machine) -> None:
    """A package that is none, and a systemd that does not reload: exit 1, a reason, and the disk as it was."""
    machine.path("/srv/none-1-py3-none-any.whl").write_text("no wheel")
    fake = machine.path("/srv/fake/systemctl")
    fake.parent.mkdir()
    fake.write_text("#!/bin/sh\nexit 1\n")
    fake.chmod(0o755)
    unit = machine.path(f"/etc/systemd/system/{UNITS['budget'].file}")
    text = unit.read_text()
    unit.write_text(seal("[Service]\nExecStart=/bin/false\n"))
    was, old = listing(machine), unit.read_text()
    code, told = install(machine, "--source", "/srv/none-1-py3-none-any.whl")
    assert (code, "pip install" in told.splitlines()[-1]) == (1, True), told
    assert (changes(machine, was), unit.read_text()) == (set(), old)
    code, told = install(machine, PATH=f"/srv/fake:{os.defpath}:/usr/local/bin")
    assert (code, "systemctl daemon-reload failed" in told.splitlines()[-1]) == (1, True), told
    assert (changes(machine, was), unit.read_text()) == (set(), old)
    unit.write_text(text)


def test_an_uninstallation_leaves_nothing(machine: Machine, before: dict[str, str]) -> None:
    """It ends the services and removes what was put; settings, secrets, state and users go with --purge alone."""
    machine.up()
    shutil.rmtree(machine.path(DROP_INS))
    during = listing(machine)
    assert "Nothing was done" in machine.run("quantum-alloc", "uninstall", "--purge", "--dry-run")
    assert changes(machine, during) == set()
    done = machine.tried("quantum-alloc", "uninstall", "--purge", "--prefix", "/srv/other")
    assert (done.returncode, "--prefix /opt/quantum-alloc" in done.stdout) == (2, True)
    assert install(machine, "--prefix", "/srv/other")[0] == 1
    assert changes(machine, during) == set()
    assert set(machine.every("ActiveState").values()) == {"active"}
    told = machine.run("quantum-alloc", "uninstall")
    assert "Written down as OPS-" in told
    kept = listing(machine)
    assert {p for p in set(kept) - set(before) if not p.startswith(("/etc/quantum", "/var/lib/quantum-alloc"))} == set()
    assert "/etc/quantum/secrets/governor-signing-key" in kept
    assert machine.tried("pgrep", "-f", "quantum-alloc run").returncode == 1
    assert "quantum-" not in machine.run("systemctl", "list-units", "--all", "--plain", "--no-legend")
    done = machine.tried(str(PROGRAM), "uninstall")
    assert (done.returncode, "nothing" in done.stdout) == (2, True)
    machine.run(str(PROGRAM), "uninstall", "--purge")
    assert changes(machine, before) == set()
    assert not re.search("(?m)^qa-", machine.path("/etc/passwd").read_text())
