"""Completion and manual page: current with the parser, in the package, and as real programs take them."""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from quantum_alloc.services import install_files
from quantum_alloc.services.app import SERVICES
from quantum_alloc.services.cli import command_line, main
from quantum_alloc.services.pages_cli import PAGES, SHARE
from tests.conftest import absent
from tests.tools import shell_pages

ROOT = Path(__file__).parents[2]


Words = tuple[str, ...]


def commands(parser: argparse.ArgumentParser, words: Words = ()) -> Iterator[tuple[Words, set[str]]]:
    """Every command with its options."""
    yield words, {name for action in parser._actions for name in action.option_strings if name.startswith("--")}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, child in action.choices.items():
                yield from commands(child, (*words, name))


ALL = dict(commands(command_line()))


@pytest.mark.parametrize("name", PAGES)
def test_the_files_are_up_to_date(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """They stand in the package as they would be made now, and are what the command prints: run `make docs`."""
    made = shell_pages.MAKERS[name]()
    assert (SHARE / PAGES[name]).read_text(encoding="utf-8") == made, "run `make docs`"
    assert main(["man"] if name == "man" else ["completion", name], {}) == 0
    assert capsys.readouterr().out == made
    assert not re.search(r"/(root|home|work|tmp)\b", made)


def test_install_finds_them() -> None:
    """What `install` looks for is what there is."""
    assert set(install_files.SHARED) == set(PAGES.values()) == {p.name for p in SHARE.iterdir()}


def completed(*words: str) -> list[str]:
    """What bash offers for the last word."""
    bash = shutil.which("bash") or "bash"
    quoted = " ".join(f"'{w}'" for w in words)
    script = (
        f"source '{SHARE / PAGES['bash']}'; COMP_WORDS=(quantum-alloc {quoted}); COMP_CWORD={len(words)}; "
        "function=$(complete -p quantum-alloc | sed -E 's/.*-F ([^ ]+) .*/\\1/'); $function; "
        "printf '%s\\n' \"${COMPREPLY[@]}\""
    )
    done = subprocess.run([bash, "--norc", "-uc", script], capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout.split()


def test_bash_completes_every_command_and_option() -> None:
    """A real bash: each command's subcommands and long options, as the parser has them."""
    for words, options in ALL.items():
        below = {w[len(words)] for w in ALL if len(w) == len(words) + 1 and w[: len(words)] == words}
        if below:
            assert set(completed(*words, "")) == below, words
        assert set(completed(*words, "--")) == options, words


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("ki",), ["kill"]),
        (("kill", ""), ["halt", "reduce", "off"]),
        (("kill", "halt", "--w"), ["--why"]),
        (("run", "al"), ["allocation"]),
        (("run", "governor", "ap"), ["apply"]),
        (("run", "--once", ""), list(SERVICES)),
        (("config", "check", "cl"), ["clusters"]),
        (("status", "--format", ""), ["table", "json"]),
        (("clear-targets", "--format", "j"), ["json"]),
        (("completion", ""), ["bash", "zsh"]),
        (("run", "feed", "--candles", "pyproj"), ["pyproject.toml"]),
        (("nonsense", "--format", ""), None),
    ],
)
def test_bash_completes_values(words: tuple[str, ...], offered: list[str] | None) -> None:
    """Choices, services, files."""
    found = completed(*words)
    if offered is not None:
        assert found == offered


def test_zsh_takes_it() -> None:
    """A real zsh loads the function, and it knows every command."""
    zsh = shutil.which("zsh")
    if zsh is None:
        absent("zsh")
    script = (
        f"fpath=('{SHARE}' $fpath); autoload -Uz compinit; compinit -D -u; "
        "print -r -- ${_comps[quantum-alloc]}; autoload +X _quantum-alloc && functions _quantum-alloc"
    )
    done = subprocess.run([str(zsh), "-fc", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("_quantum-alloc\n")
    text = (SHARE / PAGES["zsh"]).read_text()
    for words, options in ALL.items():
        for name in (*words, *options):
            assert name in text


def test_the_manual_page_is_rendered() -> None:
    """groff renders it without a warning; every command, option and section is there, no line is wider than 80."""
    groff = shutil.which("groff")
    if groff is None:
        absent("groff")
    done = subprocess.run(
        [str(groff), "-man", "-ww", "-Tascii", "-P-cbou", str(SHARE / PAGES["man"])],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    page = done.stdout
    assert max(map(len, page.splitlines())) <= 80
    flat = re.sub(r"\s+", " ", page)
    for words, options in ALL.items():
        assert " ".join(("quantum-alloc", *words)) in flat, words
        for name in options - {"--help"}:
            assert name in flat, (words, name)
    for title in ("NAME", "SYNOPSIS", "EXIT STATUS", "ENVIRONMENT", "FILES", "SEE ALSO"):
        assert f"\n{title}\n" in page
    assert "REDIS_PASSWORD_FILE" in page


def test_the_manual_page_is_sound() -> None:
    """Without a renderer: requests of the man macros alone, nothing that is neither text nor an escape."""
    text = (SHARE / PAGES["man"]).read_text()
    requests = {line.split(" ")[0] for line in text.splitlines() if line.startswith((".", "'"))}
    assert requests <= {".TH", ".SH", ".TP", ".PP", ".B", ".ad", ".nh"}
    assert set(re.findall(r"\\[^-]", text)) <= {r"\f", r"\(", r"\&", r"\e", r"\:", r"\,", r"\/"}
    assert re.fullmatch(r"[\n -~]+", text)


def test_exit_codes_are_those_of_the_program() -> None:
    """The page tells every exit code that a command names."""
    told = {int(code) for code, _ in shell_pages.EXIT_STATUS}
    named = set()
    for path in (ROOT / "src" / "quantum_alloc" / "services").glob("*.py"):
        for names, codes in re.findall(r"^([A-Z_]+(?:, [A-Z_]+)+) = (\d+(?:, \d+)+)$", path.read_text(), re.MULTILINE):
            if "DONE" in names:
                named |= {int(code) for code in codes.split(", ")}
    assert named <= told
    assert {0, 2, 65, 69, 70, 78} <= named


def test_a_wheel_holds_them(tmp_path: Path) -> None:
    """A real build, without a network: the files are in the wheel."""
    copy = tmp_path / "project"
    shutil.copytree(ROOT / "src", copy / "src", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, copy)
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "dist")]
    subprocess.run(build, cwd=copy, check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        for name in PAGES.values():
            assert archive.read(f"quantum_alloc/share/{name}").decode() == (SHARE / name).read_text()


def test_the_program_needs_neither_maker() -> None:
    """The installed program prints them without the packages that made them, and starts without importing them."""
    code = (
        "import sys; sys.modules.update(shtab=None, argparse_manpage=None); "
        "from quantum_alloc.services.cli import main; sys.exit(main(['man'], {}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(".TH")
