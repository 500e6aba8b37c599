"""The installer without a machine: where things come from, what is done about a file, and what is refused."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path, PurePosixPath

import pytest

from quantum_alloc import __version__
from quantum_alloc.services import disk, install_files, install_release, programs
from quantum_alloc.services.cli import main
from quantum_alloc.services.env_file import beneath
from quantum_alloc.services.install_files import File, Manifest, wanted
from quantum_alloc.services.options import load
from quantum_alloc.services.programs import InstallError
from quantum_alloc.services.seal import seal
from quantum_alloc.services.secret_files import exposed
from quantum_alloc.services.settings import SettingsError

UNIT = PurePosixPath("/etc/systemd/system/quantum-governor.service")
ENV = PurePosixPath("/etc/quantum/governor.env")
OURS, OLDER = seal("[Unit]\nDescription=new\n"), seal("[Unit]\nDescription=old\n")


def verbs(file: File, root: Path, manifest: Manifest | None = None) -> list[tuple[str, str]]:
    """What is to be done, and where."""
    return [(w.verb, str(w.path)) for w in wanted(file, root, manifest or Manifest())]


@pytest.mark.parametrize(
    ("here", "expected"),
    [
        (None, [("write", "")]),
        (OURS, [("unchanged", "")]),
        (OLDER, [("replace", "")]),
        (OLDER + "MemoryMax=1G\n", [("keep", ""), ("write", ".new")]),
    ],
)
def test_a_made_file_is_replaced_while_nobody_edited_it(
    here: str | None, expected: list[tuple[str, str]], tmp_path: Path
) -> None:
    """Absent, the same, an older one of ours, an edited one."""
    path = tmp_path / str(UNIT).lstrip("/")
    path.parent.mkdir(parents=True)
    if here is not None:
        path.write_text(here)
    assert verbs(File(UNIT, OURS), tmp_path) == [(verb, f"{UNIT}{suffix}") for verb, suffix in expected]


def test_a_file_that_never_was_ours_is_not_touched(tmp_path: Path) -> None:
    """An older system's unit of the same name stops the installation, with the way out."""
    path = tmp_path / str(UNIT).lstrip("/")
    path.parent.mkdir(parents=True)
    path.write_text("[Unit]\nDescription=of somebody else\n")
    with pytest.raises(InstallError, match="was not made by quantum-alloc: move it away first"):
        verbs(File(UNIT, OURS), tmp_path)


def test_a_file_without_a_seal_is_told_by_the_manifest(tmp_path: Path) -> None:
    """A man page has no line for a seal: its hash is in the manifest."""
    page = PurePosixPath("/usr/local/share/man/man1/quantum-alloc.1")
    path = tmp_path / str(page).lstrip("/")
    path.parent.mkdir(parents=True)
    path.write_text("old")
    known = Manifest(files={str(page): disk.sha("old")})
    assert verbs(File(page, "new"), tmp_path, known) == [("replace", str(page))]
    path.write_text("mine")
    assert verbs(File(page, "new"), tmp_path, known) == [("keep", str(page)), ("write", f"{page}.new")]


def test_settings_are_the_operators_as_soon_as_they_are_there(tmp_path: Path) -> None:
    """They are never replaced; the example beside them is, where it differs."""
    file = File(ENV, "#P=1\n", 0o640, settings=True)
    path = tmp_path / str(ENV).lstrip("/")
    path.parent.mkdir(parents=True)
    assert verbs(file, tmp_path) == [("write", str(ENV))]
    path.write_text("#P=1\n")
    assert verbs(file, tmp_path) == [("unchanged", str(ENV))]
    path.write_text("P=2\n")
    beside = path.with_name("governor.env.example")
    assert verbs(file, tmp_path) == [("keep", str(ENV)), ("write", f"{ENV}.example")]
    beside.write_text("#P=0\n")
    assert verbs(file, tmp_path)[1] == ("replace", f"{ENV}.example")
    beside.write_text("#P=1\n")
    assert verbs(file, tmp_path)[1] == ("unchanged", f"{ENV}.example")


def test_a_file_is_put_whole_with_its_rights_and_can_be_taken_back(tmp_path: Path) -> None:
    """A new one goes again, a replaced one is what it was, rights included."""
    path = tmp_path / "x.env"
    back = disk.put(path, "a", 0o640)
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("a", 0o640)
    path.chmod(0o600)
    again = disk.put(path, "b", 0o640)
    again()
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("a", 0o600)
    back()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "prefix", ["opt/x", "/", "/opt", "/home/me/qa", "/run/user/0/qa", "/tmp/qa", "/opt/a b", "/opt/../home/x"]
)
def test_a_prefix_that_a_unit_cannot_use_is_refused(prefix: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Relative, hidden from units, or not plain."""
    with pytest.raises(SystemExit) as ended:
        main(["install", "--dry-run", "--prefix", prefix], {})
    assert ended.value.code == 2
    assert "name an absolute path like /opt/quantum-alloc" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["install", "uninstall"])
def test_without_root_one_sentence_says_so(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 77, and nothing was looked at."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert main([command], {}) == 77
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"quantum-alloc: {command} needs root: run it with sudo, or look first with --dry-run\n")


def script(path: Path, text: str) -> Path:
    """A program."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def answering(path: Path, version: str, base: str = "/usr", venv: str = "true") -> Path:
    """A program that answers as an interpreter does."""
    return script(path, f"echo '[{version}, \"{base}\", {venv}]'")


@pytest.fixture
def visible(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A directory that counts as one that units see; the running interpreter counts as hidden."""
    own = Path(sys.base_prefix)
    monkeypatch.setattr(install_release, "HIDDEN", (Path("/home"), own))
    return tmp_path


def test_an_interpreter_that_a_unit_can_see_is_found(visible: Path) -> None:
    """The minor version that runs comes first, then the newest; a hidden or unfit one is passed over."""
    running = f"{sys.version_info[0]}, {sys.version_info[1]}"
    for minor in (11, 12, 13):
        answering(visible / f"python3.{minor}", f"[3, {minor}]")
    assert install_release.interpreter(None, str(visible)) == visible / f"python3.{sys.version_info[1]}"
    answering(visible / f"python3.{sys.version_info[1]}", f"[{running}]", venv="false")
    newest = max(m for m in (11, 12, 13) if m != sys.version_info[1])
    assert install_release.interpreter(None, str(visible)) == visible / f"python3.{newest}"


@pytest.mark.parametrize(
    ("version", "base", "venv", "said"),
    [
        ("[3, 10]", "/usr", "true", "it is Python 3.10: 3.11 to 3.13 is needed"),
        ("[3, 14]", "/usr", "true", "it is Python 3.14: 3.11 to 3.13 is needed"),
        ("[3, 12]", "/home/me/.pyenv", "true", "home or temporary directory"),
        ("[3, 12]", "/usr", "false", "apt-get install python3-venv"),
        ("nonsense", "/usr", "true", "it is no Python that runs"),
    ],
)
def test_an_interpreter_that_cannot_be_used_is_named_with_the_reason(
    version: str, base: str, venv: str, said: str, visible: Path
) -> None:
    """The one that was given, and all that were looked at."""
    python = answering(visible / "python3.12", version, base, venv)
    with pytest.raises(InstallError, match=re.escape(said)):
        install_release.interpreter(python)
    with pytest.raises(InstallError, match=f"(?s){re.escape(said)}.*or name one with --python"):
        install_release.interpreter(None, str(visible))


def test_the_package_comes_from_the_running_checkout_or_from_what_is_named(tmp_path: Path) -> None:
    """A changed file changes the key; a wheel counts by its bytes; anything else is refused."""
    top = Path(install_release.__file__).parents[3]
    assert install_release.source(None).asked == str(top)
    checkout = tmp_path / "checkout"
    (checkout / "src" / "quantum_alloc").mkdir(parents=True)
    (checkout / "pyproject.toml").write_text("[project]")
    module = checkout / "src" / "quantum_alloc" / "a.py"
    module.write_text("1")
    first = install_release.source(checkout)
    module.write_text("2")
    assert install_release.source(checkout).key != first.key
    (module.parent / "__pycache__").mkdir()
    (module.parent / "__pycache__" / "a.pyc").write_text("x")
    assert install_release.source(checkout).key == install_release.source(checkout).key
    wheel = tmp_path / "q-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("a", "b")
    assert install_release.source(wheel).asked == str(wheel)
    for wrong in (tmp_path, tmp_path / "absent.whl"):
        with pytest.raises(InstallError, match="name one"):
            install_release.source(wrong)


def test_the_dependencies_of_a_release_are_those_that_run() -> None:
    """Every dependency of the program, at the version of this environment, and nothing of the development's."""
    held = dict(line.split("==") for line in install_release.constraints())
    assert {"numpy", "redis", "hiredis", "prometheus-client", "scipy"} <= set(held)
    assert not {"pytest", "mypy", "quantum-alloc", "pandas"} & set(held)
    assert held["numpy"] == __import__("numpy").__version__


def test_a_release_is_named_after_what_is_in_it() -> None:
    """The same of everything is the same name."""
    python, origin = Path("/usr/bin/python3.11"), install_release.Source("x==1", "k")
    name = install_release.name_of(python, origin, ["numpy==2"])
    assert name.startswith(f"{__version__}-")
    assert name == install_release.name_of(python, origin, ["numpy==2"])
    assert name != install_release.name_of(python, origin, ["numpy==3"])
    assert name != install_release.name_of(python, install_release.Source("x==1", "l"), ["numpy==2"])


def test_a_program_that_fails_is_one_sentence_with_what_it_said() -> None:
    """pip's error line, or the last one."""
    with pytest.raises(InstallError, match=r"^it failed: ERROR: no such package$"):
        programs.run(["sh", "-c", "echo 'ERROR: no such package' >&2; echo done >&2; exit 1"], "it")
    with pytest.raises(InstallError, match=r"^it: /nowhere/x cannot be run: No such file or directory$"):
        programs.run(["/nowhere/x"], "it")


def test_an_env_file_stands_beneath_the_environment(tmp_path: Path) -> None:
    """What the environment sets counts; a file that cannot be read or parsed is an error of the settings."""
    file = tmp_path / "operator.env"
    file.write_text("REDIS_PORT=6390\nREDIS_DB=3\n")
    assert beneath({"REDIS_DB": "4"}, file) == {"REDIS_PORT": "6390", "REDIS_DB": "4"}
    file.write_text("export REDIS_PORT=1\n")
    with pytest.raises(SettingsError, match="line 1"):
        beneath({}, file)
    with pytest.raises(SettingsError, match="cannot be read: No such file"):
        beneath({}, tmp_path / "absent")


def test_the_command_takes_an_env_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--env-file before the command."""
    file = tmp_path / "operator.env"
    file.write_text("REDIS_PORT=6390\n")
    assert main(["--env-file", str(file), "config", "show", "--format", "json"], {}) == 0
    assert '"value": 6390' in capsys.readouterr().out
    assert main(["--env-file", str(tmp_path / "absent"), "config", "show"], {}) == 78


def test_the_command_on_the_path_is_a_shell_script_that_passes_everything_on(tmp_path: Path) -> None:
    """Words with spaces survive; the operator's settings go in front where they can be read."""
    program = script(tmp_path / "venv" / "bin" / "quantum-alloc", 'for word in "$@"; do echo "[$word]"; done')
    text = install_files.command_text(PurePosixPath(tmp_path)).replace(str(install_files.OPERATOR), f"{tmp_path}/o.env")
    command = tmp_path / "command"
    command.write_text(text)
    words = ["sh", str(command), "kill", "halt", "--why", "a b"]
    assert program.exists()
    plain = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split("\n")
    assert plain == ["[kill]", "[halt]", "[--why]", "[a b]", ""]
    (tmp_path / "o.env").write_text("")
    told = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split("\n")
    assert told == ["[--env-file]", f"[{tmp_path}/o.env]", *plain]


@pytest.mark.parametrize(
    ("variable", "services"), [("REDIS_PASSWORD_FILE", ["feed"]), ("GOV_SIGNING_KEY_FILE", ["apply", "governor"])]
)
def test_a_secret_that_every_user_may_read_is_warned_of_once(
    variable: str, services: list[str], tmp_path: Path
) -> None:
    """One sentence with the way out; none for a file of its owner's, or for one that is not there."""
    file = tmp_path / "secret"
    settings = load(services, {variable: str(file)}, together=False)
    assert exposed(settings) == []
    file.write_text("x")
    file.chmod(0o640)
    assert exposed(settings) == []
    file.chmod(0o644)
    assert exposed(settings) == [f"{variable}={str(file)!r}: every user may read it: chmod 0600 it"]
