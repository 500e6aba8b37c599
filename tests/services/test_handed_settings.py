"""What systemd drops from a settings file without a word: the service that is handed the file refuses it."""

from __future__ import annotations

from pathlib import Path

import pytest

from quantum_alloc.adapters.embedded import EmbeddedServer
from quantum_alloc.services import config_cli
from quantum_alloc.services.cli import main
from quantum_alloc.services.env_file import parse_bytes

SECRET = "c4nary"
DROPPED = {
    "no sign": (b"P29_MODE enforce\n", "line 1: no '=': write NAME=value"),
    "export": (b"A=1\nexport P29_MODE=enforce\n", "line 2: systemd knows no 'export': write NAME=value"),
    "mark": (b"\xef\xbb\xbfP29_MODE=enforce\n", "line 1: it begins with a byte order mark"),
    "latin-1": (b"#\nQA_SYMBOLS=\xe4\n", "line 2: it is not UTF-8: save the file as UTF-8"),
    "nul": (b"P29_MODE=enf\0orce\n", "line 1: it holds a NUL byte"),
    "half a secret": (f"{SECRET}+/==\n".encode(), "line 1: before '=' there is no variable's name"),
    "secret": (f"REDIS_URL redis://:{SECRET}@h/0?a=b\n".encode(), "line 1: REDIS_URL is no variable's name"),
}


@pytest.mark.parametrize("name", DROPPED)
def test_a_line_that_systemd_drops_is_told_with_the_other_errors(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit 78; one sentence with the file's name and the line; errors of the environment stand beside it."""
    raw, told = DROPPED[name]
    (tmp_path / "settings").write_bytes(raw)
    environ = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    assert main(["run", "--once", "allocation"], {**environ, "P29_INTERVAL_SEC": "x"}) == 78
    said = capsys.readouterr().err
    assert f"/etc/quantum/capital-allocation.env: {told}" in said
    assert "P29_INTERVAL_SEC='x': expected" in said
    assert (SECRET in said, said.count("the settings cannot be used")) == (False, 1)
    assert main(["run", "--once", "allocation"], environ) == 78
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("raw", [None, b"\n", b"# \xc3\xa4\nP29_MODE=shadow\n"])
def test_a_good_file_or_none_is_nothing_to_refuse(
    raw: bytes | None, tmp_path: Path, one_server: EmbeddedServer
) -> None:
    """The service runs; the file's values are systemd's matter."""
    if raw is not None:
        (tmp_path / "settings").write_bytes(raw)
    environ = {"CREDENTIALS_DIRECTORY": str(tmp_path), "REDIS_URL": one_server.url, "LOG_LEVEL": "ERROR"}
    assert main(["run", "--once", "portfolio"], environ) == 0


@pytest.mark.parametrize("name", DROPPED)
def test_the_check_of_a_file_finds_the_same(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`config check --env-file` says before a start what the start would say."""
    raw, told = DROPPED[name]
    (tmp_path / "x.env").write_bytes(raw)
    assert main(["config", "check", "allocation", "--env-file", str(tmp_path / "x.env")], {}) == config_cli.BAD_SETTINGS
    said = capsys.readouterr().out
    assert told in said
    assert SECRET not in said


def test_every_fault_of_a_file_is_told_at_once() -> None:
    """A mark, a byte and a line."""
    found, errors = parse_bytes(b"\xef\xbb\xbfA=1\nB=\xff\nC\n")
    assert found["A"] == "1"
    assert [error.split(":")[0] for error in errors] == ["line 1", "line 2", "line 3"]
