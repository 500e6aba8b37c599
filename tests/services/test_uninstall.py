"""What an uninstallation refuses, keeps and removes, on a disk of its own: nothing of another installation goes."""

from __future__ import annotations

import shutil
from pathlib import Path, PurePosixPath

import pytest

from quantum_alloc.services import disk, install_files, programs, uninstall, units
from quantum_alloc.services.install_files import COMMAND, SYSTEMD, Manifest
from quantum_alloc.services.install_steps import MANIFEST, Steps
from quantum_alloc.services.programs import InstallError
from quantum_alloc.services.seal import seal

HERE, OTHER = PurePosixPath("/opt/quantum-alloc"), PurePosixPath("/srv/qa")
SECRET = units.SECRETS / "governor-signing-key"
KEPT = (SECRET, units.STATE / "governor" / "known", units.ETC / "governor.env")
"""What an operator loses with --purge."""


def write(root: Path, path: PurePosixPath, text: str) -> Path:
    """A file on the disk."""
    here = disk.within(root, path)
    here.parent.mkdir(parents=True, exist_ok=True)
    here.write_text(text)
    return here


def installed(root: Path, prefix: PurePosixPath, *, manifest: bool = True) -> None:
    """An installation with settings, a secret and state; the program apart."""
    told = Manifest(version="1")
    for file in install_files.files(prefix):
        write(root, file.path, file.text)
        told.files[str(file.path)] = disk.sha(file.text)
    for path in KEPT:
        write(root, path, "x")
    write(root, prefix / "releases" / "1-a" / "x", "x")
    if manifest:
        write(root, prefix / MANIFEST, told.text())


def tree(root: Path) -> set[str]:
    """Every path of the disk."""
    return {str(p.relative_to(root)) for p in root.rglob("*")}


def take(root: Path, prefix: PurePosixPath = HERE, *, purge: bool = False) -> int:
    """Uninstall; the exit code."""
    return uninstall.uninstall(prefix, Steps(dry=False, root=root), {"REDIS_URL": "redis://127.0.0.1:1"}, purge=purge)


@pytest.mark.parametrize("left", ["all", "unit", "command"])
def test_a_purge_without_a_manifest_spares_a_living_installation(
    left: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One unit or the command is enough: exit 2, the other prefix is named, and nothing is gone."""
    installed(tmp_path, OTHER)
    for file in install_files.files(OTHER):
        is_left = {"all": True, "unit": file.path == SYSTEMD / "quantum-governor.service"}
        if not is_left.get(left, file.path == COMMAND) and file.path.parent != units.ETC:
            disk.within(tmp_path, file.path).unlink()
    was = tree(tmp_path)
    assert take(tmp_path, purge=True) == 2
    assert tree(tmp_path) == was
    assert f"--prefix {OTHER}" in capsys.readouterr().out


def test_a_purge_that_finds_only_the_units_of_its_own_prefix_tells_the_way(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The manifest alone is gone: nothing is removed, and `install` puts it back."""
    installed(tmp_path, HERE, manifest=False)
    was = tree(tmp_path)
    assert take(tmp_path, purge=True) == 2
    assert tree(tmp_path) == was
    assert f"quantum-alloc install --prefix {HERE}" in capsys.readouterr().out


def test_a_purge_after_an_uninstallation_takes_what_was_kept(tmp_path: Path) -> None:
    """No manifest, no unit, no command: settings, secrets and state go."""
    installed(tmp_path, HERE)
    assert take(tmp_path) == 0
    assert all(disk.within(tmp_path, path).is_file() for path in KEPT)
    assert take(tmp_path, purge=True) == 0
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_of_two_installations_only_the_named_one_goes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The units, the command and what both share stay with the other one; its purge is refused."""
    installed(tmp_path, HERE)
    installed(tmp_path, OTHER)
    was = tree(tmp_path)
    assert take(tmp_path, purge=True) == 2
    assert tree(tmp_path) == was
    assert f"--prefix {OTHER}" in capsys.readouterr().out
    assert take(tmp_path) == 0
    assert {path for path in was - tree(tmp_path) if not path.startswith("opt")} == set()
    assert not disk.within(tmp_path, HERE).exists()


def test_a_file_goes_only_as_it_was_put(tmp_path: Path) -> None:
    """An edited unit stays; so does a sealed one that neither the manifest knows nor this prefix made."""
    installed(tmp_path, HERE)
    edited = disk.within(tmp_path, SYSTEMD / "quantum-governor.service")
    edited.write_text(edited.read_text() + "# mine\n")
    target = disk.within(tmp_path, SYSTEMD / units.TARGET)
    target.write_text(seal("[Unit]\nDescription=of another version\n"))
    assert take(tmp_path) == 0
    assert (edited.is_file(), target.is_file()) == (True, True)


@pytest.mark.parametrize("place", [units.SECRETS, units.STATE, SECRET, units.STATE / "governor", units.ETC])
def test_a_link_is_told_and_kept(place: PurePosixPath, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What lies behind it would stay: exit 1, and the users stay with it."""
    installed(tmp_path, HERE)
    here, away = disk.within(tmp_path, place), tmp_path / "away"
    shutil.move(here, away)
    here.symlink_to(away)
    assert take(tmp_path, purge=True) == 1
    assert (here.is_symlink(), away.exists()) == (True, True)
    told = capsys.readouterr()
    assert f"{place} (a link to {away}" in told.out
    assert "Taken away" not in told.out
    assert not disk.within(tmp_path, SYSTEMD / "quantum-governor.service").exists()


def test_a_secret_that_cannot_be_removed_is_no_success(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error is told, and no user is taken away."""
    installed(tmp_path, HERE)
    forgotten: list[str] = []
    monkeypatch.setattr("pwd.getpwnam", forgotten.append)

    def fails(*_: object, **__: object) -> None:
        raise OSError(16, "Device or resource busy", str(units.SECRETS))

    monkeypatch.setattr("os.rmdir", fails)
    with pytest.raises(OSError, match="busy"):
        take(tmp_path, purge=True)
    assert forgotten == []


@pytest.mark.parametrize(
    "text",
    [
        '{"files": []}',
        '{"files": {"/etc/passwd": "SHA"}}',
        '{"files": {"/etc/systemd/system/../../passwd": "SHA"}}',
        '{"files": {"/etc/systemd/system/sshd.service": "SHA"}}',
        '{"files": {"etc/systemd/system/quantum-governor.service": "SHA"}}',
        '{"files": {"/etc/systemd/system//quantum-governor.service": "SHA"}}',
        '{"files": {"/etc/systemd/system/quantum-governor.service": 1}}',
        '{"directories": {"/etc": 1}}',
        '{"directories": ["/home"]}',
        '{"directories": ["/opt/quantum-alloc/../x"]}',
        '{"version": 1}',
        "[]",
        "{",
    ],
)
def test_a_damaged_manifest_removes_nothing(text: str, tmp_path: Path) -> None:
    """One sentence, whatever is wrong with it."""
    installed(tmp_path, HERE)
    path = disk.within(tmp_path, HERE / MANIFEST)
    path.write_text(text.replace("SHA", "0" * 64))
    was = tree(tmp_path)
    for purge in (False, True):
        with pytest.raises(InstallError, match="put it back from a backup, or move it away") as told:
            take(tmp_path, purge=purge)
        assert "\n" not in str(told.value)
    assert tree(tmp_path) == was


def test_units_are_stopped_by_the_names_of_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that are there, whatever the manifest lists; and those that run though their file is gone."""
    installed(tmp_path, HERE)
    disk.within(tmp_path, HERE / MANIFEST).write_text(Manifest().text())
    disk.within(tmp_path, SYSTEMD / "quantum-governor.service").unlink()
    disk.within(tmp_path, PurePosixPath("/run/systemd/system")).mkdir(parents=True)
    asked: list[str] = []

    def run(words: list[object], what: str) -> str:
        asked.append(" ".join(map(str, words)))
        return "quantum-governor.service loaded active running x\n" if "list-units" in words else ""

    monkeypatch.setattr(programs, "run", run)
    monkeypatch.setattr(uninstall, "run", run)
    monkeypatch.setattr("quantum_alloc.services.install_steps.run", run)
    take(tmp_path)
    (disabled,) = (line for line in asked if "disable --now" in line)
    assert set(disabled.split()[4:]) == set(units.systemd_files()) - {"quantum-governor.service"}
    assert "systemctl --quiet stop quantum-governor.service" in asked
