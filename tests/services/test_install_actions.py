"""What an installation does, keeps and takes back, without a machine of its own."""

from __future__ import annotations

import argparse
import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from quantum_alloc import __version__
from quantum_alloc.adapters.embedded import EmbeddedServer
from quantum_alloc.services import (
    disk,
    install,
    install_files,
    install_release,
    install_system,
    programs,
    releases,
    secret_files,
    units,
)
from quantum_alloc.services.cli import main
from quantum_alloc.services.install_files import SYSTEMD, Manifest
from quantum_alloc.services.install_steps import MANIFEST, Steps
from quantum_alloc.services.programs import InstallError
from tests.support.running import until

HERE, OTHER = PurePosixPath("/opt/quantum-alloc"), PurePosixPath("/srv/qa")


def planned(root: Path, prefix: PurePosixPath = HERE, *, paper: bool = False) -> None:
    """What an installation would do to a disk."""
    args = argparse.Namespace(prefix=prefix, python=None, source=None, paper=paper)
    install._put_all(args, Steps(dry=True, root=root))


def put_units(root: Path, prefix: PurePosixPath) -> None:
    """The units of a prefix."""
    disk.within(root, SYSTEMD).mkdir(parents=True)
    for name, text in units.systemd_files(prefix).items():
        disk.within(root, SYSTEMD / name).write_text(text)


def test_a_second_installation_at_another_prefix_is_refused(tmp_path: Path) -> None:
    """Both would share units, users and settings; the sentence names the one that is there."""
    put_units(tmp_path, OTHER)
    disk.within(tmp_path, OTHER).mkdir(parents=True)
    manifest = disk.within(tmp_path, OTHER / MANIFEST)
    manifest.write_text(Manifest().text())
    with pytest.raises(InstallError, match=f"run the installation at {OTHER}: .*uninstall --prefix {OTHER}"):
        planned(tmp_path)
    planned(tmp_path, OTHER)


def test_units_of_an_installation_that_is_gone_are_said_and_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Somebody removed its directory by hand."""
    put_units(tmp_path, OTHER)
    planned(tmp_path)
    assert f"the units of {OTHER}, where nothing is installed any more" in capsys.readouterr().out


def test_paper_services_that_stay_enabled_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line with the way out; none where they were asked for, and none where they are not enabled."""
    wants = disk.within(tmp_path, SYSTEMD / f"{units.TARGET}.wants")
    wants.mkdir(parents=True)
    planned(tmp_path)
    assert "to end it" not in capsys.readouterr().out
    for unit in (u for u in units.UNITS.values() if u.paper):
        (wants / unit.file).symlink_to("/nowhere")
    planned(tmp_path)
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "to end it" in line)
    assert "systemctl disable --now quantum-market-feed.service quantum-apply-layer.service" in line
    planned(tmp_path, paper=True)
    assert "to end it" not in capsys.readouterr().out


def test_what_may_not_be_looked_at_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A dry run of somebody who is not root goes on; nothing of that is written into a manifest."""
    hidden = disk.within(tmp_path, units.ETC)
    (hidden / "secrets").mkdir(parents=True)
    reads, stats = Path.read_bytes, Path.stat

    def read_bytes(path: Path) -> bytes:
        if hidden in path.parents:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return reads(path)

    def stat(path: Path, **words: Any) -> os.stat_result:
        if hidden in path.parents:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return stats(path, **words)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    monkeypatch.setattr(Path, "stat", stat)
    planned(tmp_path)
    told = capsys.readouterr().out
    assert "unseen    /etc/quantum/governor.env (only root may look)" in told
    assert "unseen    /etc/quantum/secrets/ (only root may look)" in told
    assert "write     /etc/systemd/system/quantum-governor.service" in told


def test_the_secrets_are_shut_and_open_ones_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """0700 on the directory, which can be taken back; a file that others may read is named."""
    directory = disk.within(tmp_path, units.SECRETS)
    directory.mkdir(parents=True)
    directory.chmod(0o755)
    (directory / "open").write_text("x")
    (directory / "open").chmod(0o644)
    (directory / "shut").write_text("x")
    (directory / "shut").chmod(0o600)
    steps = Steps(dry=False, root=tmp_path)
    install_system.secrets(steps)
    told = capsys.readouterr().out
    assert directory.stat().st_mode & 0o777 == 0o700
    assert [line.split()[0] for line in told.splitlines()] == ["shut", "warn"]
    assert f"{directory}/open: every user may read it: chmod 0600 it" in told
    install_system.secrets(Steps(dry=False, root=tmp_path))
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["warn"]
    steps.take_back()
    assert directory.stat().st_mode & 0o777 == 0o755


def test_status_tells_root_of_open_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], one_server: EmbeddedServer
) -> None:
    """And nobody else, who could not look."""
    (tmp_path / "key").write_text("x")
    (tmp_path / "key").chmod(0o644)
    monkeypatch.setattr(units, "SECRETS", PurePosixPath(tmp_path))
    for user, is_told in ((0, True), (1000, False)):
        monkeypatch.setattr(os, "geteuid", lambda user=user: user)
        main(["status"], {"REDIS_URL": one_server.url})
        assert (f"{tmp_path}/key: every user may read it" in capsys.readouterr().err) == is_told
    assert secret_files.opened(tmp_path / "absent") == []


def test_a_file_that_finds_no_room_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full: what was there stays, and nothing is beside it."""
    path = tmp_path / "x"
    path.write_text("old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        disk.put(path, "new", 0o644)
    assert (path.read_text(), list(tmp_path.iterdir())) == ("old", [path])


def test_the_release_that_ran_before_a_switch_stays(tmp_path: Path) -> None:
    """A, B, back to A, then C: B goes, and a run that switches nothing removes nothing."""
    for name, age in (("A", 3), ("B", 2), ("C", 1)):
        (tmp_path / "releases" / name).mkdir(parents=True)
        os.utime(tmp_path / "releases" / name, (time.time() - age, time.time() - age))
    releases.remove_old(Steps(dry=False), tmp_path, "A", "A")
    assert len(list((tmp_path / "releases").iterdir())) == 3
    releases.remove_old(Steps(dry=False), tmp_path, "C", "A")
    assert {p.name for p in (tmp_path / "releases").iterdir()} == {"A", "C"}


def test_a_package_that_is_nowhere_is_not_asked_of_an_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Anybody may hold the name there, and it would run as root."""
    package = tmp_path / "lib" / "python3" / "quantum_alloc"
    monkeypatch.setattr("quantum_alloc.__file__", str(package / "__init__.py"))
    monkeypatch.setattr(install_release, "_wheel", lambda: None)
    with pytest.raises(InstallError, match="name it with --source"):
        install_release.source(None)


def test_a_release_keeps_the_wheel_that_it_was_made_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pip is given the copy inside: a later installation has its source there."""
    wheel = tmp_path / "quantum_alloc-1-py3-none-any.whl"
    wheel.write_text("x")
    at, asked = tmp_path / "release", list[str]()

    def run(words: list[object], what: str) -> str:
        asked.append(str(words[-1]))
        if "wheel" in words:
            (at / wheel.name).write_text("y")
        return f"quantum-alloc {__version__}\n"

    monkeypatch.setattr(install_release, "run", run)
    for origin, text in ((wheel, "x"), (tmp_path, "y")):
        asked.clear()
        install_release.build(at, Path("python3"), install_release.Source(str(origin), "k"), ["numpy==2"])
        assert (at / wheel.name).read_text() == text
        assert f"{at / wheel.name}[clusters]" in asked
        assert not [word for word in asked if "==" in word]


def test_users_of_an_installation_that_fails_go_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that it made, also where it made only some of them."""
    there = {"qa-feed"}
    asked: list[list[str]] = []

    def run(words: list[str], what: str, *, to_the_end: bool = False) -> str:
        asked.append(words)
        if words[0] == "systemd-sysusers":
            there.update({"qa-governor", "qa-budget"})
            raise InstallError("systemd-sysusers failed")
        return ""

    monkeypatch.setattr(install_system, "run", run)
    monkeypatch.setattr(install_system, "_has_user", there.__contains__)
    steps = Steps(dry=False, root=tmp_path)
    with pytest.raises(InstallError):
        install_system.users(steps)
    steps.take_back()
    assert sorted(words[-1] for words in asked if words[0] == "userdel") == ["qa-budget", "qa-governor"]


PROGRAM = """
import argparse, subprocess, sys
from pathlib import Path
from quantum_alloc.services import install, install_steps
from quantum_alloc.services.programs import run
mark = Path(sys.argv[1])
def put_all(args, steps):
    steps.do("make", "one", lambda: [mark.mkdir(), mark.rmdir][1])
    steps.later(lambda: run(["sh", "-c", f"sleep 0.5; touch {mark}.back"], "back", to_the_end=True))
    steps.do("run", "pip", lambda: run(["sh", "-c", "sleep 600 & echo $$ >$0.pid; wait", str(mark)], "pip"))
install._put_all = put_all
trouble = install._tried(None, install_steps.Steps(dry=False))
print("trouble:", trouble)
sys.exit(install_steps.FAILED if trouble else 0)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_on_the_way_takes_everything_back(number: signal.Signals, tmp_path: Path) -> None:
    """The program that is waited for ends with its children, and a second signal does not cut the taking back."""
    mark, pid = tmp_path / "mark", tmp_path / "mark.pid"
    words = [sys.executable, "-c", PROGRAM, str(mark)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        until(lambda: pid.exists() and pid.read_text().strip() != "", 30, "it waits")
        group = int(pid.read_text())
        try:
            assert mark.is_dir()
            process.send_signal(number)
            until(lambda: not alive(group), 30, "the child ends")
            process.send_signal(signal.SIGTERM)
            out, _ = process.communicate(timeout=30)
        finally:
            process.kill()
            if alive(group):
                os.killpg(group, signal.SIGKILL)
    assert process.returncode == 1, out
    assert f"it was interrupted ({number.name})" in out
    assert (mark.exists(), (tmp_path / "mark.back").exists()) == (False, True)


def alive(group: int) -> bool:
    """Whether some process of a group is."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_signal_between_two_actions_lets_the_next_one_not_begin(tmp_path: Path) -> None:
    """The one that has begun is whole, and goes back."""
    steps = Steps(dry=False, root=tmp_path)
    begun: list[str] = []

    def interrupted() -> None:
        begun.append("a")
        os.kill(os.getpid(), signal.SIGTERM)

    with programs.signals_noted():
        steps.do("make", "a", interrupted)
        with pytest.raises(InstallError, match="SIGTERM"):
            steps.do("make", "b", lambda: begun.append("b"))
    assert begun == ["a"]


@pytest.mark.parametrize(("needs", "changed", "expected"), [("no", False, 0), ("yes", False, 1), ("no", True, 1)])
def test_systemd_reads_its_units_anew_where_it_has_to(
    needs: str, changed: bool, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run before this one may have been cut after it wrote them."""
    disk.within(tmp_path, "/run/systemd/system").mkdir(parents=True)
    asked: list[str] = []

    def run(words: list[str], what: str) -> str:
        asked.append(" ".join(words))
        return f"NeedDaemonReload=no\n\nNeedDaemonReload={needs}\n"

    monkeypatch.setattr(install_system, "run", run)
    monkeypatch.setattr("quantum_alloc.services.install_steps.run", run)
    install_system.reload(Steps(dry=False, root=tmp_path), changed)
    assert sum("daemon-reload" in line for line in asked) == expected


def test_a_slip_in_an_operators_file_keeps_no_halt_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], one_server: EmbeddedServer
) -> None:
    """A variable that nobody knows is warned of; a bad value of one that is needed refuses."""
    environ = {"REDIS_URL": one_server.url, "STATE_DIRECTORY": str(tmp_path)}
    assert main(["kill", "halt"], {**environ, "P29_MOD": "x", "P29_INTERVAL_SEC": "x"}) == 0
    said = capsys.readouterr()
    assert "The kill switch is HALT" in said.out
    assert "P29_MOD: no service knows this variable; did you mean P29_MODE?" in said.err
    assert main(["kill", "halt"], {**environ, "REDIS_PORT": "x"}) == 78
    assert main(["status"], {**environ, "P29_MOD": "x"}) == 78


def test_the_files_of_an_installation_are_those_that_a_manifest_may_name() -> None:
    """Also beside edited ones; whatever is added to an installation belongs into the check."""
    found = Manifest(version="1")
    for file in install_files.files(OTHER):
        beside = ".example" if file.settings else ".new"
        found.files.update({str(file.path): "0" * 64, f"{file.path}{beside}": "0" * 64})
    found.directories = [str(OTHER), f"{OTHER}/releases", "/etc/quantum", "/etc/quantum/secrets", "/var/lib"]
    found.check(OTHER)
