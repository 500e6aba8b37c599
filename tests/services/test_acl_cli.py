"""``quantum-alloc config acl`` and ``config redis`` as an operator gives them."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from pathlib import Path

import pytest

from quantum_alloc.adapters.rights import USERS, user_of
from quantum_alloc.services import acl_cli
from quantum_alloc.services.cli import main

CANARY = "canary-7f3a secret"


def given(capsys: pytest.CaptureFixture[str], *words: str, **environ: str) -> tuple[int, list[str], str]:
    """A command; exit code, lines of output, errors."""
    code = main(["config", *words], environ)
    told = capsys.readouterr()
    assert CANARY not in told.out + told.err
    return code, told.out.splitlines(), told.err


def secrets(directory: Path, *users: str) -> Path:
    """Files with a password for users."""
    directory.mkdir(exist_ok=True)
    for user in users:
        file = directory / f"{user}.redis-password"
        file.write_text(f"{CANARY} {user}\n")
        file.chmod(0o600)
    return directory


def test_the_whole_file(capsys: pytest.CaptureFixture[str]) -> None:
    """Every user, those for the server's own care, and the default user off; nobody can log in yet."""
    code, lines, err = given(capsys, "acl")
    assert (code, err) == (0, "")
    users = [line.split()[1] for line in lines]
    assert users == [*sorted(map(user_of, USERS)), *acl_cli.SERVER_USERS, "default"]
    assert all(line.startswith(f"user {user} on resetpass ") for line, user in zip(lines[:-1], users, strict=False))
    assert lines[-1].startswith("user default off resetpass ")
    assert not [line for line in lines if "nopass" in line or ">" in line or "#" in line]
    assert "".join(f"{line}\n" for line in lines) == acl_cli.files()["users.acl"]


def test_some_services(capsys: pytest.CaptureFixture[str]) -> None:
    """Only their lines, in order, each once."""
    code, lines, _ = given(capsys, "acl", "governor", "feed", "governor")
    assert (code, [line.split()[1] for line in lines]) == (0, ["qa-feed", "qa-governor"])


def test_in_shadow(capsys: pytest.CaptureFixture[str]) -> None:
    """The target can be read and not written."""
    whole, shadow = (given(capsys, "acl", "allocation", *more)[1][0].split() for more in ((), ("--shadow",)))
    assert set(whole) - set(shadow) == {"~quantum:allocation:target:[A-Z0-9]*"}
    assert set(shadow) - set(whole) == {"%R~quantum:allocation:target:[A-Z0-9]*"}


def test_passwords_are_told_by_their_hash(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As file and as commands; who has no file cannot log in, and is named."""
    directory = secrets(tmp_path, "qa-feed", "qa-governor")
    digest = hashlib.sha256(f"{CANARY} qa-feed".encode()).hexdigest()
    code, lines, err = given(capsys, "acl", "feed", "regime", "--passwords", str(directory))
    assert code == 0
    assert lines[0].startswith(f"user qa-feed on #{digest} ")
    assert lines[1].startswith("user qa-regime on resetpass ")
    assert err == f"quantum-alloc: qa-regime cannot log in: {directory} holds no password of theirs\n"
    code, lines, err = given(capsys, "acl", "feed", "--passwords", str(directory), "--format", "commands")
    assert lines[0].startswith(f"ACL SETUSER qa-feed reset on #{digest} ")
    assert (code, err) == (0, "")


@pytest.mark.parametrize(
    ("words", "environ", "code", "sentence"),
    [
        (("acl", "console"), {}, 2, "'console' has no user: there are allocation,"),
        (("acl", "--passwords", "/nowhere"), {}, 78, "/nowhere holds no password: write each password into a file"),
        (("acl",), {"STREAM_PLANS": "quantum:kill"}, 78, "STREAM_PLANS='quantum:kill'"),
    ],
)
def test_mistakes_get_one_sentence(
    words: tuple[str, ...], environ: dict[str, str], code: int, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the way out, and an exit code; a file that a shell makes of the output lets nobody in."""
    found, lines, err = given(capsys, *words, **environ)
    assert (found, lines) == (code, [f"user default {acl_cli.DEFAULT_OFF}"])
    assert sentence in err
    assert given(capsys, *words, "--format", "commands", **environ)[:2] == (code, [])


def test_an_empty_password_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It would let anybody in who leaves the password out."""
    secrets(tmp_path, "qa-feed").joinpath("qa-feed.redis-password").write_text("\n")
    code, lines, err = given(capsys, "acl", "feed", "--passwords", str(tmp_path))
    assert (code, lines) == (78, [f"user default {acl_cli.DEFAULT_OFF}"])
    assert "must hold one password" in err


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("config", "acl", "--pass"), 2),
        (("config", "acl", "--nonsense"), 2),
        (("config", "acl", "--format", "table"), 2),
        (("--env-file", "/nowhere.env", "config", "acl"), 78),
    ],
)
def test_a_command_that_never_begins(words: tuple[str, ...], code: int, capsys: pytest.CaptureFixture[str]) -> None:
    """The file that a shell makes of it lets nobody in either."""
    try:
        found = main(words, {})
    except SystemExit as stop:
        found = int(stop.code or 0)
    assert (found, capsys.readouterr().out) == (code, f"user default {acl_cli.DEFAULT_OFF}\n")


def test_other_commands_that_never_begin(capsys: pytest.CaptureFixture[str]) -> None:
    """Say nothing of users; nor does a page of help."""
    for words in (("config", "redis", "--nonsense"), ("config", "acl", "--help"), ("status", "--nonsense")):
        with pytest.raises(SystemExit):
            main(words, {})
        assert "user default" not in capsys.readouterr().out


def test_into_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As it would be printed, for its owner alone; one that is there keeps its owner and group, a link its place."""
    directory, target = secrets(tmp_path / "in", "qa-feed"), tmp_path / "redis" / "users.acl"
    target.parent.mkdir()
    words = ("acl", "--shadow", "--passwords", str(directory))
    printed = given(capsys, *words)
    assert given(capsys, *words, "--to", str(target)) == (0, [], printed[2])
    assert target.read_text().splitlines() == printed[1]
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    target.write_text("old\n")
    target.chmod(0o644)
    others = (12345, 12346) if os.geteuid() == 0 else (os.getuid(), os.getgid())
    os.chown(target, *others)
    link = tmp_path / "link.acl"
    link.symlink_to(target)
    assert given(capsys, *words, "--to", str(link)) == (0, [], printed[2])
    there = target.stat()
    assert (there.st_uid, there.st_gid, stat.S_IMODE(there.st_mode)) == (*others, 0o600)
    assert (link.is_symlink(), target.read_text().splitlines()) == (True, printed[1])
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (("--passwords", "/nowhere"), 78, "/nowhere holds no password"),
        (("feed",), 2, "--to writes the whole file of users: leave SERVICE and --format commands out"),
        (("--format", "commands"), 2, "--to writes the whole file of users: leave SERVICE and --format commands out"),
        (("console",), 2, "'console' has no user"),
    ],
)
def test_a_file_that_cannot_be_made_stays_as_it_is(
    words: tuple[str, ...], code: int, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is left beside it, and nothing is printed."""
    target = tmp_path / "users.acl"
    target.write_text("old\n")
    before = target.stat()
    found, lines, err = given(capsys, "acl", *words, "--to", str(target))
    assert (found, lines, err.count(sentence)) == (code, [], 1)
    assert (target.read_text(), target.stat(), list(tmp_path.iterdir())) == ("old\n", before, [target])


def test_a_file_that_cannot_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No directory, no file, a disk that fails in the middle: one sentence, exit 1, and the old file stands."""
    for path in (tmp_path / "nowhere" / "users.acl", tmp_path, Path("/dev/null")):
        code, lines, err = given(capsys, "acl", "--to", str(path))
        assert (code, lines, err.count("\n")) == (1, [], 1)
        assert err.startswith(f"quantum-alloc: '{path}' cannot be written: ")
    target = tmp_path / "users.acl"
    target.write_text("old\n")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    assert given(capsys, "acl", "--to", str(target))[:2] == (1, [])
    assert (target.read_text(), list(tmp_path.iterdir())) == ("old\n", [target])


def test_the_fragment_is_printed_as_it_is_in_the_repository(capsys: pytest.CaptureFixture[str]) -> None:
    """`config redis` and deploy/redis/redis.conf."""
    code, lines, _ = given(capsys, "redis")
    assert code == 0
    assert "".join(f"{line}\n" for line in lines) == acl_cli.files()["redis.conf"]
    settings = {line.split()[0]: line.split()[1] for line in lines if line and not line.startswith("#")}
    assert settings == {
        "aclfile": "/etc/redis/users.acl",
        "maxmemory-policy": "noeviction",
        "appendonly": "yes",
        "appendfsync": "everysec",
    }
    assert "# min-replicas-to-write 1" in lines
    assert "# min-replicas-max-lag 10" in lines


def test_deploy_writes_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Beside the units."""
    code, lines, _ = given(capsys, "deploy", str(tmp_path))
    assert code == 0
    assert str(tmp_path / "redis" / "users.acl") in lines
    assert {p.name: p.read_text() for p in (tmp_path / "redis").iterdir()} == acl_cli.files()
