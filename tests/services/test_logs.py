"""Log lines: plain and JSON, for people, programs and the journal."""

from __future__ import annotations

import ast
import io
import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from quantum_alloc.services import logs

SOURCE = Path(logs.__file__).parent
KNOWN = {*logs.COMMON, *logs.FIELDS}
LINE_LIMIT = 64_000


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    """What a test sets up does not stay."""
    root = logging.getLogger("quantum_alloc")
    before = root.handlers[:], root.level, root.propagate
    yield
    root.handlers, root.level, root.propagate = before[0], before[1], before[2]


def written(formatter: logging.Formatter, text: str, fields: Any, level: int = logging.WARNING, **more: Any) -> str:
    """What one line comes to."""
    stream = io.StringIO()
    handler = logs._Handler(stream)
    handler.setFormatter(formatter)
    log = logging.Logger("quantum_alloc.governor", logging.DEBUG)
    log.addHandler(handler)
    logs.say(log, level, "cycle", text, fields, **more)
    return stream.getvalue()


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=2_000) | st.binary(max_size=50),
    lambda v: st.lists(v, max_size=30) | st.dictionaries(st.text(max_size=400), v, max_size=20),
    max_leaves=60,
)


@example("\x7f\u2028\udcff\x1b[2J", {"reason": "\x7f", "ms": float("nan")})
@given(st.text(max_size=5_000), st.dictionaries(st.sampled_from([*logs.FIELDS, "password", "x"]), values, max_size=30))
def test_every_json_line_parses(text: str, fields: dict[str, object]) -> None:
    """Any text, any values: one bounded line of ASCII without control characters, strict JSON, known names alone."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    out = written(logs.Json(), text, fields)
    assert out.endswith("\n")
    assert re.fullmatch(r"[ -~]+", out[:-1])
    assert len(out) < LINE_LIMIT
    entry = json.loads(out, parse_constant=refuse)
    assert entry.keys() <= KNOWN
    assert (entry["level"], entry["service"], entry["event"]) == ("WARNING", "governor", "cycle")
    if len(text) <= logs.TEXT_LIMIT:
        assert entry["message"] == text


@given(st.text(max_size=5_000))
def test_a_plain_line_is_one_line(text: str) -> None:
    """Nothing that was read from outside begins a line or moves the cursor."""
    out = written(logs.Plain(), text, {})
    assert len(out.splitlines()) == 1
    assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ WARNING governor: ", out)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", out)
    assert len(out) < 10 * logs.TEXT_LIMIT + 100


@pytest.mark.parametrize("journal", [False, True])
def test_a_traceback_forges_no_line(journal: bool) -> None:
    """Each of its lines is marked; the text of an exception cannot look like a line of ours."""
    try:
        raise ValueError("x\n2026-11-21T00:00:00Z INFO governor: all is well\n<0>\x1b[2J")
    except ValueError:
        plain = written(logs.Plain(journal=journal), "failed", {}, logging.ERROR, failed=True)
        whole = written(logs.Json(journal=journal), "failed", {}, logging.ERROR, failed=True)
    first, *rest = plain.splitlines()
    mark = "<3>" if journal else ""
    assert first.endswith("ERROR governor: failed")
    assert rest
    assert all(line.startswith(f"{mark}  | ") for line in rest)
    assert "\x1b" not in plain
    assert whole.startswith(mark)
    assert "all is well" in json.loads(whole.removeprefix(mark))["traceback"]


def test_a_line_that_cannot_be_made() -> None:
    """Logging never raises: a bad format, a value that fails, a closed stream."""

    class Fails:
        def __str__(self) -> str:
            raise RuntimeError("secret")

    for formatter in (logs.Json(), logs.Plain()):
        stream = io.StringIO()
        handler = logs._Handler(stream)
        handler.setFormatter(formatter)
        log = logging.Logger("quantum_alloc.apply")
        log.addHandler(handler)
        log.warning("%d", "no number")
        log.warning("%s", Fails())
        assert stream.getvalue().count("a log line could not be made: TypeError") == 1
        assert stream.getvalue().count("a log line could not be made: RuntimeError") == 1
        assert "secret" not in stream.getvalue()
        stream.close()
        log.warning("into the void")
    assert "could not be made: RuntimeError" in written(logs.Json(), "x", {"reason": Fails()})


CLOSED = """\
import logging
from quantum_alloc.services.logs import say, set_up
set_up("DEBUG", "{form}")
[say(logging.getLogger("quantum_alloc.apply"), level, "message", "hello") for level in (10, 20, 30, 40)]
print("goes on")
"""


@pytest.mark.parametrize("form", ["plain", "json"])
def test_a_closed_standard_error_ends_nothing(form: str) -> None:
    """Started with ``2>&-``: lines go nowhere, and what logs goes on."""
    command = ["sh", "-c", 'exec "$@" 2>&-', "sh", sys.executable, "-c", CLOSED.format(form=form)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "goes on\n")


def test_the_names_are_one_closed_set() -> None:
    """What mypy lets through is what is documented, and what the page tells."""
    assert set(logs.Fields.__annotations__) == set(logs.FIELDS)
    assert set(logs.Case.__annotations__) <= set(logs.FIELDS)
    assert set(get_args(logs.Event)) == set(logs.EVENTS)
    assert not set(logs.COMMON) & set(logs.FIELDS)
    page = logs.reference_page()
    for name in (*logs.EVENTS, *logs.STATES, *KNOWN):
        assert f"| `{name}` |" in page


def calls() -> Iterator[tuple[Path, ast.Call]]:
    """Every call in the services."""
    for path in sorted(SOURCE.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                yield path, node


def test_every_line_says_what_it_tells() -> None:
    """Services log through say and changed alone, and name states that are documented."""
    states = set()
    for path, call in calls():
        name = ast.unparse(call.func)
        if path.name in ("logs.py", "log_names.py"):
            continue
        assert not re.fullmatch(r"(\w+\.)*log\.(debug|info|warning|error|exception|critical|log)", name), (
            f"{path.name} line {call.lineno}: use logs.say or logs.changed"
        )
        if name == "changed":
            told = call.args[3]
            if isinstance(told, ast.Constant):
                assert told.value in logs.STATES, f"{path.name} line {call.lineno}"
                states.add(told.value)
            else:
                assert (path.name, ast.unparse(told)) == ("loop.py", "state")
    assert states | {"store", "cycle"} == set(logs.STATES)


SAY = """\
import logging
from quantum_alloc.services.logs import say, set_up
set_up("DEBUG", "{form}")
[say(logging.getLogger("quantum_alloc.apply"), level, "message", "hello") for level in (10, 20, 30, 40)]
"""


@pytest.mark.parametrize("form", ["plain", "json"])
def test_under_systemd(tmp_path: Path, form: str) -> None:
    """Where standard error is the journal, lines carry their priority, and plain ones no time; a JOURNAL_STREAM that
    names another file, as a child of a unit inherits it, counts for nothing."""
    code = SAY.format(form=form)
    path = tmp_path / "err"
    for is_ours in (True, False):
        with path.open("w") as file:
            found = os.fstat(file.fileno())
            stream = f"{found.st_dev}:{found.st_ino + (not is_ours)}"
            environ = {**os.environ, "JOURNAL_STREAM": stream}
            subprocess.run([sys.executable, "-c", code], stderr=file, env=environ, check=True)
        lines = path.read_text().splitlines()
        if is_ours:
            assert [line[:3] for line in lines] == ["<7>", "<6>", "<4>", "<3>"]
            lines = [line[3:] for line in lines]
        levels = ["DEBUG", "INFO", "WARNING", "ERROR"]
        if form == "json":
            assert [json.loads(line)["level"] for line in lines] == levels
        elif is_ours:
            assert lines == [f"{level} apply: hello" for level in levels]
        else:
            assert all(re.match(r"\d{4}-.*Z \w+ apply: hello$", line) for line in lines)


def test_no_journal_where_there_is_no_file() -> None:
    """A stream without a descriptor is never the journal."""
    assert not logs.is_journal(io.StringIO(), {"JOURNAL_STREAM": "1:1"})
    assert not logs.is_journal(None, {"JOURNAL_STREAM": "1:1"})
