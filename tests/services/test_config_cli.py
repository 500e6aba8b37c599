"""``quantum-alloc config``: what it says of an environment or an env file, and that it never shows a password."""

from __future__ import annotations

import argparse
import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantum_alloc.services import config_cli
from quantum_alloc.services.app import SERVICES
from quantum_alloc.services.env_file import parse
from quantum_alloc.services.options import GROUPS, KNOWN, load
from quantum_alloc.services.settings import SettingsError
from quantum_alloc.services.variables import RETIRED

CANARY = "pa55-canary-9f3"
SECRETIVE = {"REDIS_URL": f"redis://app:{CANARY}@cache:6379/0?password={CANARY}"}


def run(*argv: str, environ: Mapping[str, str] | None = None) -> tuple[int, str, str]:
    """One command: exit code, what went out, what went to errors."""
    parser = argparse.ArgumentParser()
    config_cli.add_parser(parser.add_subparsers(required=True))
    args, out, err = parser.parse_args(["config", *argv]), io.StringIO(), io.StringIO()
    code: int = args.handler(args, environ or {}, out, err)
    return code, out.getvalue(), err.getvalue()


def check_file(path: Path, text: str, *names: str) -> tuple[int, str]:
    """The check of an env file of this content."""
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    code, out, err = run("check", *names, "--env-file", str(path))
    assert err == ""
    return code, out


def test_warnings_are_told_beside_errors() -> None:
    """A mode that is none and a retired variable are warned of, errors or not."""
    environ = {"REDIS_PASSWORD": "s", "P30_MODE": "on", "P31_PORT": "0"}
    code, out, _ = run("check", environ=environ)
    assert code == 78
    assert [line.split(":")[0] for line in out.splitlines()[:-1]] == ["error", "warning", "warning"]
    assert "P30_MODE='on'" in out
    assert "REDIS_PASSWORD: retired" in out


def test_a_good_environment_passes() -> None:
    """No finding is exit code 0 and one line."""
    code, out, err = run("check", environ={"P29_MODE": "enforce", "P29_INTERVAL_SEC": "2"})
    assert (code, err) == (0, "")
    assert out == f"The settings of {', '.join(SERVICES)} can be used; 2 are set.\n"


def test_every_error_is_listed_and_exit_code_78() -> None:
    """check prints one line for each error and says how many there are."""
    code, out, _ = run("check", environ={"P29_INTERVAL_SEC": "5s", "P29_MOD": "x", "MAX_BUDGET_K": "1"})
    assert code == 78
    lines = out.splitlines()
    assert [re.split("[:=]", line.removeprefix("error: "))[0] for line in lines] == [
        "MIN_BUDGET_K",
        "P29_INTERVAL_SEC",
        "P29_MOD",
        "3 errors",
    ]
    assert lines[-1] == "3 errors: nothing would start."


def test_warnings_are_no_errors() -> None:
    """An unrecognised mode and a retired variable are told, with exit code 0."""
    code, out, _ = run("check", environ={"P28_MODE": "on", "P27_ALLOWLIST": "BTCUSDT"})
    assert code == 0
    assert [line.partition(" ")[0] for line in out.splitlines()] == ["warning:", "warning:", "The"]


def test_only_the_named_services_are_checked() -> None:
    """Another service's settings do not count; METRICS_PORT counts as where the named services run together."""
    assert run("check", "feed", environ={"P29_INTERVAL_SEC": "5s"})[0] == 0
    assert run("check", "allocation", environ={"P29_INTERVAL_SEC": "5s"})[0] == 78
    assert run("check", environ={"METRICS_PORT": "9100"})[0] == 0
    assert run("check", "feed", environ={"METRICS_PORT": "9100"})[0] == 0
    assert run("check", "feed", "budget", environ={"METRICS_PORT": "9100"})[0] == 78


@pytest.mark.parametrize("argv", [("check", "alocation"), ("show", "feed", "alocation"), ("example", "alocation")])
def test_a_mistaken_name_is_one_sentence_with_the_list(argv: tuple[str, ...]) -> None:
    """A service that is none: exit code 2, the names that there are, and nothing on standard output."""
    code, out, err = run(*argv)
    assert (code, out) == (2, "")
    assert err == f"quantum-alloc: 'alocation' is not a service: there are {', '.join(SERVICES)}\n"


BAD_FILES: list[tuple[str, str]] = [
    ("P29_MODE\n", "line 1: no '='"),
    ("# fine\n\nP29_MODE=shadow\njust words\n", "line 4: no '='"),
    ("export P29_MODE=shadow\n", "line 1: systemd knows no 'export'"),
    ("export P29_MODE\n", "line 1: systemd knows no 'export'"),
    ("=5\n", "line 1:"),
    ("P29-MODE=shadow\n", "line 1: P29-MODE"),
    ("P29 MODE=shadow\n", "line 1: P29 is"),
    ("9LIVES=1\n", "line 1: 9LIVES"),
    ("P29_MODE\x00=1\n", "line 1:"),
    ("\ufeffP29_MODE=1\n", "line 1:"),
    ('P29_INTERVAL_SEC="5\n', "line 1: P29_INTERVAL_SEC"),
    ("P29_INTERVAL_SEC='5\n", "line 1: P29_INTERVAL_SEC"),
    ('P29_INTERVAL_SEC="5" # seconds\n', "systemd keeps inline comments"),
    ('P29_INTERVAL_SEC="5"s\n', "line 1: P29_INTERVAL_SEC"),
    ("# a path: C:\\\nP29_MODE=enforce\n", "line 1: a comment must not end in a backslash"),
    ("A=1 \\\n  2\nP29_INTERVAL_SEC=5 \\\n\n\nwords\n", "line 6: no '='"),
    ("P29_INTERVAL_SEC=5 # seconds\n", "P29_INTERVAL_SEC='5 # seconds'"),
    ("P29_INTERVAL_SEC=5 ; seconds\n", "P29_INTERVAL_SEC='5 ; seconds'"),
    ("P29_INTERVAL_SEC=$FIVE\n", "P29_INTERVAL_SEC='$FIVE'"),
    ("P29_INTERVAL_SEC=1\\_000\n", "P29_INTERVAL_SEC='1_000'"),
    ("P29_INTERVAL_SEC=5\nP29_INTERVAL_SEC=five\n", "P29_INTERVAL_SEC='five'"),
    ("TARGET_TTL_SEC=\udcff\n", "line 1: it is not UTF-8"),
    ("P29_MOD=enforce\n", "did you mean P29_MODE?"),
    ("LOG_LEVEL=DEBUG INFO\n", "LOG_LEVEL='DEBUG INFO'"),
]


@pytest.mark.parametrize(("text", "told"), BAD_FILES)
def test_a_bad_env_file_is_an_error_that_says_where(tmp_path: Path, text: str, told: str) -> None:
    """A line that systemd would take otherwise than meant, or a bad value, is exit code 78 and said."""
    code, out = check_file(tmp_path / "x.env", text)
    assert code == 78
    assert told in out
    assert out.endswith("1 error: nothing would start.\n")


def test_a_files_errors_and_its_values_errors_come_together(tmp_path: Path) -> None:
    """Lines that cannot be read do not hide values that cannot be used."""
    _, out = check_file(tmp_path / "x.env", "words\nP29_INTERVAL_SEC=five\nTARGET_TTL_SEC=0\n")
    assert [line.split()[1].partition("=")[0] for line in out.splitlines()[:-1]] == [
        "line",
        "P29_INTERVAL_SEC",
        "TARGET_TTL_SEC",
    ]


def test_a_file_is_checked_in_place_of_the_environment(tmp_path: Path) -> None:
    """With --env-file the process' environment does not count."""
    (tmp_path / "x.env").write_text("P29_MODE=enforce\n")
    code, out, _ = run("check", "--env-file", str(tmp_path / "x.env"), environ={"P29_INTERVAL_SEC": "five"})
    assert (code, "1 are set" in out) == (0, True)


@pytest.mark.parametrize("name", ["none.env", "."])
def test_a_file_that_cannot_be_read_is_one_sentence(tmp_path: Path, name: str) -> None:
    """No file, or a directory: exit code 78 and one line."""
    code, out, err = run("check", "--env-file", str(tmp_path / name))
    assert (code, out) == (78, "")
    assert err.count("\n") == 1
    assert "cannot be read" in err


GOOD_FILES: list[tuple[str, dict[str, str]]] = [
    ("", {}),
    ("# a\n; b\n   # c\n\n", {}),
    ("A=1", {"A": "1"}),
    ("A = 1 \r\nB=2\r\n", {"A": "1", "B": "2"}),
    ("A=\n", {"A": ""}),
    ("A=1\nA=2\n", {"A": "2"}),
    ("A=a=b\n", {"A": "a=b"}),
    ("A=\"a b\"\nB='a b'\n", {"A": "a b", "B": "a b"}),
    ('A="a \\"b\\" \\\\ \\$ \\` \\n"\n', {"A": 'a "b" \\ $ ` \\n'}),
    ("A='a \\ b'\n", {"A": "a \\ b"}),
    ("A=a\\b\\\\c\n", {"A": "ab\\c"}),
    ("A=a \\\nb\nB=1\n", {"A": "a b", "B": "1"}),
    ("A=5 # x\n", {"A": "5 # x"}),
    ('A=a"b"\n', {"A": 'a"b"'}),
    ("A=a\x85b\n", {"A": "a\x85b"}),
]


@pytest.mark.parametrize(("text", "found"), GOOD_FILES)
def test_an_env_file_is_read_as_systemd_reads_it(text: str, found: dict[str, str]) -> None:
    """Comments by line, optional quotes, backslashes eaten without quotes, the last assignment counts."""
    assert parse(text) == (found, [])


@given(st.text(st.characters(), max_size=200))
@settings(deadline=None)
def test_any_text_is_an_env_file_or_has_errors(text: str) -> None:
    """Reading a file never raises, and each error says its line."""
    _, errors = parse(text)
    assert all(re.match(r"line [0-9]+: ", error) and error.isprintable() for error in errors)


@given(
    st.dictionaries(
        st.from_regex(r"[A-Z_][A-Z0-9_]{0,9}", fullmatch=True), st.text(st.characters(exclude_characters="'\r\n"))
    )
)
def test_a_quoted_value_reads_back(environ: dict[str, str]) -> None:
    """What is written between single quotes is read as it is."""
    odd = {k: v for k, v in environ.items() if not v.endswith("\\")}
    assert parse("".join(f"{k}='{v}'\n" for k, v in odd.items())) == (odd, [])


def test_show_tells_value_unit_default_and_source() -> None:
    """Every variable of the services, of Redis and the common ones is a row, each once."""
    code, out, err = run("show", "allocation", "--format", "json", environ={"P29_INTERVAL_SEC": "2.5"})
    assert (code, err) == (0, "")
    rows = {row["variable"]: row for row in json.loads(out)}
    assert len(rows) == len(json.loads(out))
    assert rows["P29_INTERVAL_SEC"] == {
        "group": "allocation",
        "variable": "P29_INTERVAL_SEC",
        "value": 2.5,
        "unit": "seconds",
        "default": "5",
        "source": "environment",
    }
    assert rows["REDIS_PORT"]["source"] == "default"
    assert rows["P29_MODE"]["value"] == "shadow"
    assert rows["METRICS_PORT"]["value"] is None
    assert "ALPHA_HEAT" not in rows


def test_show_tells_what_counts_in_place_of_the_common_row() -> None:
    """METRICS_PORT is shown by the service whose port it is."""
    rows = json.loads(run("show", "budget", "--format", "json")[1])
    assert [(r["group"], r["value"]) for r in rows if r["variable"] == "METRICS_PORT"] == [("budget", 8049)]


def test_show_as_a_table_has_a_line_a_variable() -> None:
    """The table names every variable, and the exact value, not a rounded one."""
    code, out, _ = run("show", environ={"QA_PAPER_EQUITY_USD": "123456.789"})
    assert code == 0
    assert out.splitlines()[0].split() == ["group", "variable", "value", "unit", "default", "source"]
    assert {line.split()[1] for line in out.splitlines()[1:]} == {*_own()}
    assert re.search(r"QA_PAPER_EQUITY_USD +123456\.789 +USD +100000 +environment", out)


def test_show_of_settings_that_cannot_be_used_lists_the_errors() -> None:
    """Errors go to standard error with exit code 78, warnings with exit code 0."""
    code, out, err = run("show", environ={"P29_INTERVAL_SEC": "five"})
    assert (code, out) == (78, "")
    assert "P29_INTERVAL_SEC='five'" in err
    code, _, err = run("show", environ={"P29_MODE": "on"})
    assert (code, err.startswith("warning: P29_MODE='on'")) == (0, True)


@pytest.mark.parametrize("argv", [("show",), ("show", "--format", "json"), ("check",), ("example", "feed")])
@pytest.mark.parametrize("extra", [{}, {"P29_INTERVAL_SEC": "five"}, {"REDIS_URL": f"redis://:{CANARY}/@x"}])
def test_no_command_shows_a_password(argv: tuple[str, ...], extra: dict[str, str], tmp_path: Path) -> None:
    """A password in the URL, in a file or in a retired variable is in no output, good settings or bad."""
    file = tmp_path / "pw"
    file.write_text(CANARY)
    environ = {**SECRETIVE, "REDIS_PASSWORD_FILE": str(file), "REDIS_PASSWORD": CANARY, **extra}
    _, out, err = run(*argv, environ=environ)
    assert CANARY not in out + err
    assert out + err


def _own() -> set[str]:
    return {row["variable"] for row in json.loads(run("show", "--format", "json")[1])}


def test_the_reference_page_names_every_variable() -> None:
    """config docs settings has every known and every retired variable; tables have the same number of columns."""
    code, out, _ = run("docs", "settings")
    assert code == 0
    for name in KNOWN | set(RETIRED):
        assert f"`{name}`" in out, name
    widths = {line.count("|") for line in out.splitlines() if line.startswith("|")}
    assert widths == {6, 3}
    assert "| `TARGET_TTL_SEC` | `300` | seconds | 1 to 86400 | Life of a written target. |" in out


def test_the_metric_page_is_that_of_the_metrics_table() -> None:
    """config docs metrics prints the metrics' own reference."""
    code, out, _ = run("docs", "metrics")
    assert code == 0
    assert "p29_target_usd" in out


@pytest.mark.parametrize("name", GROUPS)
def test_an_example_has_every_variable_at_its_default(name: str, tmp_path: Path) -> None:
    """The example as it is, and with every assignment uncommented, gives the default settings."""
    code, out, _ = run("example", name)
    assert code == 0
    assert parse(out) == ({}, [])
    assert not re.search(r"^#[A-Z][A-Z0-9_]*=.*#", out, re.MULTILINE)
    environ, errors = parse(re.sub(r"(?m)^#(?=[A-Z][A-Z0-9_]*=)", "", out))
    assert errors == []
    written, silent = load([name], environ), load([name], {})
    service: Any = written.services[name]
    assert (written.redis, written.services) == (silent.redis, silent.services)
    assert written.common.state_directory == silent.common.state_directory
    assert {k for k, v in environ.items() if v} == set(written.given)
    assert service.port == service.DEFAULT_PORT
    (tmp_path / "x.env").write_text(out)
    assert run("check", name, "--env-file", str(tmp_path / "x.env"))[0] == 0


def test_the_examples_variables_are_those_of_show() -> None:
    """Each variable of a service, of Redis and the common ones is in the example, once."""
    for name in GROUPS:
        shown = sorted(row["variable"] for row in json.loads(run("show", name, "--format", "json")[1]))
        assert sorted(re.findall(r"(?m)^#([A-Z][A-Z0-9_]*)=", run("example", name)[1])) == shown


def test_what_check_passes_starts_and_what_it_refuses_does_not() -> None:
    """check and load agree."""
    for environ in ({}, {"P29_MODE": "x"}, {"P29_MOD": "x"}, {"TARGET_TTL_SEC": "5"}, SECRETIVE):
        code, _, _ = run("check", environ=environ)
        try:
            load(list(GROUPS), environ, together=False)
        except SettingsError:
            assert code == 78
        else:
            assert code == 0
