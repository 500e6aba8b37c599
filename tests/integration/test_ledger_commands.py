"""ledger append, show and verify, as a person uses them, and the entries that other commands write."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

import quantum_alloc
from quantum_alloc.adapters.embedded import EmbeddedServer
from quantum_alloc.adapters.ops_ledger import LedgerError
from quantum_alloc.adapters.store import StoreError
from quantum_alloc.services import app, ledger_cli
from quantum_alloc.services.options import load
from tests.support.worlds import Client

APPEND = (
    "append", "--operation", "mode-change", "--by", "anna", "--risk", "LOW_RISK_CONFIG", "--summary", "P29 enforces",
    "--objective", "limits that hold",
)  # fmt: skip


def call(capsys: pytest.CaptureFixture[str], environ: Mapping[str, str], *argv: str) -> tuple[int, str, str]:
    """Exit code, output, errors; Redis' troubles are told as the command line tells them."""
    parser = argparse.ArgumentParser()
    ledger_cli.add_parsers(parser.add_subparsers(required=True))
    try:
        args = parser.parse_args(["ledger", *argv])
        code = int(args.handler(args, environ))
    except SystemExit as stop:
        code = int(stop.code or 0)
    except StoreError as error:
        code = 69
        print(error, file=sys.stderr)
    out = capsys.readouterr()
    return code, out.out, out.err


@pytest.fixture
def environ(one_client: Client, one_server: EmbeddedServer, tmp_path: Path) -> dict[str, str]:
    """An empty server and a directory that does not exist yet."""
    return {"REDIS_URL": one_server.url, "STATE_DIRECTORY": str(tmp_path / "state")}


def without_redis(environ: Mapping[str, str]) -> dict[str, str]:
    """The same directory, and nobody who answers."""
    return {"STATE_DIRECTORY": environ["STATE_DIRECTORY"], "REDIS_PORT": "1"}


def test_write_read_and_verify(environ: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    """What was appended is shown, by whom and on which machine, and the ledger is sound."""
    assert call(capsys, environ, "verify") == (0, "The ledger is sound: 0 entries.\n", "")
    assert call(capsys, environ, "show")[1] == f"{ledger_cli.NO_ENTRY}\n"
    assert call(capsys, environ, "show", "--format", "json") == (0, "[]\n", "")
    assert not Path(environ["STATE_DIRECTORY"]).exists()
    code, out, err = call(capsys, environ, *APPEND, "--approved-by", "bert", "--notes", "a\nb" + "c" * 100)
    assert (code, err) == (0, "")
    assert call(capsys, environ, "verify") == (0, "The ledger is sound: 1 entry.\n", "")
    first = out.split()[0]
    more = ("--outcome", "ROLLBACK", "--rollback-of", first, "--blast-radius", "P29", "--services-status", "all run")
    assert call(capsys, environ, *APPEND, *more)[0] == 0
    code, out, err = call(capsys, environ, "show", "--format", "json")
    assert (code, err) == (0, "")
    one, two = json.loads(out)
    assert (one["operation_id"], one["approved_by"], one["notes"]) == (first, "bert", "a\nb" + "c" * 100)
    assert (two["previous"], two["rollback_of"], two["outcome"]) == (one["hash"], first, "ROLLBACK")
    assert (two["blast_radius"], two["services_status"]) == ("P29", "all run")
    assert one["hostname"] == os.uname().nodename
    assert json.loads(call(capsys, environ, "show", "--last", "1", "--format", "json")[1]) == [two]
    code, out, _ = call(capsys, environ, "show", "--last", "1", "--wide")
    assert code == 0
    header, row = out.splitlines()
    assert header.split() == ["id", "finished", "operation", "by", "approved", "risk", "outcome", "summary"]
    assert row.split()[0] == two["operation_id"]
    sound = {"sound": True, "redis_asked": True, "entries": 2, "findings": []}
    assert json.loads(call(capsys, environ, "verify", "--format", "json")[1]) == sound


def test_long_summaries_are_shortened_in_the_table(environ: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    """And no line of the table can be forged."""
    assert call(capsys, environ, *APPEND, "--summary", "x\n" + "y" * 300)[0] == 0
    out = call(capsys, environ, "show", "--wide")[1]
    assert out.count("\n") == 2
    assert "x\\n" + "y" * 300 + "\n" in out
    text = "".join(call(capsys, environ, "show")[1].split())
    assert "x\\n" + "y" * 238 + "..." in text


def test_the_table_fits_a_terminal(
    environ: dict[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """80 columns: one entry downwards, several with the summary below each; nothing of it is lost."""
    monkeypatch.setenv("COLUMNS", "80")
    summary, out = " ".join(f"word{n}" for n in range(30)), ""
    for most in (1, 3):
        assert call(capsys, environ, *APPEND, "--summary", summary)[0] == 0
        assert most == 1 or call(capsys, environ, *APPEND, "--summary", "short")[0] == 0
        out = call(capsys, environ, "show")[1]
        assert max(map(len, out.splitlines())) <= 80
        assert summary in " ".join(out.split())
    assert out.splitlines()[0].split() == ["id", "finished", "operation", "by", "outcome"]


def test_a_changed_ledger_is_told_and_not_added_to(environ: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    """verify exits with 1 and says what is wrong; append refuses; show shows what it can, and says so."""
    for _ in range(3):
        assert call(capsys, environ, *APPEND)[0] == 0
    path = Path(environ["STATE_DIRECTORY"]) / "ops-ledger.jsonl"
    good = path.read_bytes()
    path.write_bytes(good.replace(b"anna", b"otto", 1))
    code, out, err = call(capsys, environ, "verify")
    assert (code, err) == (1, "")
    assert out.startswith("Line 1 is not what was written: OPS-")
    assert out.count("\n") == 1
    code, out, _ = call(capsys, environ, "verify", "--format", "json")
    assert (code, json.loads(out)["sound"], len(json.loads(out)["findings"])) == (1, False, 1)
    code, out, err = call(capsys, environ, *APPEND)
    assert (code, out) == (1, "")
    assert "`quantum-alloc ledger verify` tells all that is wrong" in err
    code, out, err = call(capsys, environ, "show", "--wide")
    assert (code, out.count("\n")) == (1, 3)
    assert "the ledger is not sound" in err
    code, out, err = call(capsys, without_redis(environ), "verify")
    assert (code, "Line 1" in out, "Redis could not be asked" in err) == (1, True, True)
    path.write_bytes(good)
    assert call(capsys, environ, "verify")[0] == 0


def test_without_redis(environ: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    """append is refused and writes nothing; show shows; verify looks at the files and says that this is not all."""
    nowhere, directory = without_redis(environ), Path(environ["STATE_DIRECTORY"])
    code, out, err = call(capsys, nowhere, *APPEND)
    assert (code, out, directory.exists()) == (69, "", False)
    assert "cannot be reached" in err
    assert call(capsys, environ, *APPEND)[0] == 0
    before = {p.name: p.read_bytes() for p in directory.iterdir()}
    assert call(capsys, nowhere, *APPEND)[0] == 69
    assert {p.name: p.read_bytes() for p in directory.iterdir()} == before
    code, out, err = call(capsys, nowhere, "show", "--wide")
    assert (code, out.count("\n"), err) == (0, 2, "")
    code, out, err = call(capsys, nowhere, "verify")
    assert (code, out) == (69, "The files of the ledger agree: 1 entry.\n")
    assert "Redis could not be asked, the files alone were looked at" in err
    code, out, _ = call(capsys, nowhere, "verify", "--format", "json")
    assert (code, json.loads(out)["sound"], json.loads(out)["redis_asked"]) == (69, None, False)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--operation", "two words"), "is not a plain word"),
        (("--risk", "HIGH"), "invalid choice"),
        (("--outcome", "FINE"), "invalid choice"),
        (("--by", ""), "requested_by is empty"),
        (("--summary", " "), "changes_summary is empty"),
        (("--objective", "x" * 4001), "give at most 4,000"),
        (("--notes", "\x1b]0;x"), "cannot be shown"),
        (("--rollback-of", "yesterday"), "give an id like"),
        (("--rollback-of", "OPS-2026-01-28-001"), "is not in the ledger"),
    ],
)
def test_mistakes_write_nothing(
    flags: tuple[str, ...], said: str, environ: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2 and one sentence."""
    code, out, err = call(capsys, environ, *APPEND, *flags)
    assert (code, out) == (2, "")
    assert said in err
    assert call(capsys, environ, "show", "--format", "json")[1] == "[]\n"
    assert call(capsys, environ, "show", "--last", "0")[0] == 2
    assert call(capsys, environ)[0] == 2


def test_other_commands_write_their_entries(
    environ: dict[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """record says who, why and what, and raises where it cannot."""
    settings = load(list(app.SERVICES), environ, together=False)
    store = app.open_store(settings)
    monkeypatch.setattr(ledger_cli, "git_commit", lambda: "c0ffee")
    entry = ledger_cli.record(settings, store, "rearm", "anna", "the feed is back", summary="P32 is armed", started=5.0)
    assert entry.values["objective"] == "the feed is back"
    assert entry.values["git_commit"] == "c0ffee"
    assert entry.values["timestamps"]["started"] == "1970-01-01T00:00:05.000Z"
    with pytest.raises(LedgerError, match="requested_by is empty"):
        ledger_cli.record(settings, store, "rearm", "", "why", summary="what")
    store.close()
    assert [e["operation_name"] for e in json.loads(call(capsys, environ, "show", "--format", "json")[1])] == ["rearm"]


def git(*words: str) -> str:
    """What git says."""
    return subprocess.run(["git", *words], check=True, capture_output=True, text=True).stdout.strip()


def test_the_commit_of_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the checkout that the package is in; not of another project around it; empty without git, or if it hangs."""
    root, author = tmp_path / "a", ("-c", "user.name=a", "-c", "user.email=a@b")
    for package in (root / "src" / "quantum_alloc", root / "lib" / "quantum_alloc"):
        package.mkdir(parents=True)
    monkeypatch.setattr(quantum_alloc, "__file__", str(root / "src" / "quantum_alloc" / "__init__.py"))
    assert ledger_cli.git_commit() == ""
    for name in [n for n in os.environ if n.startswith("GIT_")]:
        monkeypatch.delenv(name)
    git("init", "-q", str(root))
    assert ledger_cli.git_commit() == ""
    git("-C", str(root), *author, "commit", "-q", "--allow-empty", "-m", "x")
    commit = git("-C", str(root), "rev-parse", "HEAD")
    monkeypatch.setenv("GIT_DIR", str(tmp_path))
    assert (ledger_cli.git_commit(), len(commit)) == (commit, 40)
    monkeypatch.setattr(quantum_alloc, "__file__", str(root / "lib" / "quantum_alloc" / "__init__.py"))
    assert ledger_cli.git_commit() == ""
    monkeypatch.setattr(quantum_alloc, "__file__", str(root / "src" / "quantum_alloc" / "__init__.py"))
    slow = tmp_path / "git"
    slow.write_text("#!/bin/sh\nexec sleep 9\n")
    slow.chmod(0o755)
    monkeypatch.setattr(ledger_cli, "GIT_TIMEOUT_S", 0.05)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert ledger_cli.git_commit() == ""
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    assert ledger_cli.git_commit() == ""
