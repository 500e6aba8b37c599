"""Makes what a shell and `man` read of the command line: completion for bash and zsh, and quantum-alloc(1).

``make docs`` runs it: ``python -m tests.tools.shell_pages``. The files go into the package, so that the installed
program can print them without the packages that made them. Widths, dates and versions of Python leave no trace in them.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import shtab
from argparse_manpage.manpage import Manpage  # type: ignore[import-untyped]

from quantum_alloc import __version__
from quantum_alloc.services import units
from quantum_alloc.services.app import SERVICES
from quantum_alloc.services.cli import command_line
from quantum_alloc.services.options import CommonOptions, RedisOptions
from quantum_alloc.services.pages_cli import PAGES, SHARE
from quantum_alloc.services.settings import variables
from quantum_alloc.services.values import render

WIDE = 100_000
"""No line is wrapped by argparse: the reader of the page does it."""
PURPOSE = "capital allocation and pre-trade governor"
EXIT_STATUS = (
    ("0", "done"),
    ("1", "done in part, not sound, a check of prove failed, or not written down: the message says which"),
    ("2", "a mistake in the command"),
    ("65", "candles that cannot be used"),
    ("69", "Redis does not answer, or refuses"),
    ("70", "a check of the demo failed"),
    ("77", "install or uninstall lacks the right: it wants root"),
    ("78", "a mistake in the settings, or a port that is taken"),
    ("130", "prove: stopped by Ctrl-C"),
)


def _walk(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                yield from _walk(child)


def _prepared() -> argparse.ArgumentParser:
    """The parser, with what may stand where it takes names of services, files and directories."""
    parser = command_line()
    for one in _walk(parser):
        one.formatter_class = lambda prog: argparse.HelpFormatter(prog, width=WIDE)
        for action in one._actions:
            metavar = action.metavar if isinstance(action.metavar, str) else ""
            if not action.option_strings and metavar in ("NAME", "SERVICE"):
                action.choices = list(SERVICES)
            elif metavar.startswith("FILE"):
                action.complete = shtab.FILE  # type: ignore[attr-defined]
            elif metavar.startswith("DIR"):
                action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
    return parser


def _bash() -> str:
    return str(shtab.complete(_prepared(), "bash"))


def _zsh() -> str:
    return str(shtab.complete(_prepared(), "zsh"))


def _roff(text: str) -> str:
    """Text as a page's source: hyphens are hyphens, and nothing begins a request."""
    plain = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq").replace("`", "\\(ga")
    return re.sub(r"^\.", r"\\&.", plain, flags=re.MULTILINE)


def _list(title: str, rows: Iterator[tuple[str, str]], before: str = "") -> str:
    lines = [f".SH {title}", *([_roff(before)] if before else [])]
    for name, what in rows:
        lines += [".TP", f"\\fB{_roff(name)}\\fR", _roff(what)]
    return "\n".join(lines)


def _environment() -> Iterator[tuple[str, str]]:
    for group in (RedisOptions, CommonOptions):
        for v in variables(group):
            default = render(v.spec.default)
            yield v.spec.env, v.spec.help + (f" Default: {default}." if default else "")


def _files() -> Iterator[tuple[str, str]]:
    yield str(units.ETC / "FILE.env"), "settings of a service, as its unit reads them"
    yield str(units.SECRETS), "passwords and signing keys, which units load as credentials"
    yield "$STATE_DIRECTORY", "what a service keeps: the governor's journal and latch, the OPS ledger"
    yield "~/.local/state/quantum-alloc", "the same, where STATE_DIRECTORY is not set"


def _man() -> str:
    parser = _prepared()
    own = {"project_name": "quantum-alloc", "version": __version__, "date": __version__, "description": PURPOSE}
    made = str(Manpage(parser, {**own, "manual_title": "quantum-alloc"}))
    head, _, rest = made.partition("\n")
    body = f"{head}\n.ad l\n.nh\n{rest}"  # ragged and without hyphens: long words are names
    body = re.sub(r"^usage: (.*)$", r"\1\n.PP", body, flags=re.MULTILINE)
    body = re.sub(r"^\.SH\n(.+)$", r".SH \1", body, flags=re.MULTILINE)
    body = re.sub(r"\{[^{}\s]+\}", lambda m: m[0].replace(",", ",\\:"), body)
    body = re.sub(r"\n(\s*\n)+", "\n", body)
    sections = (
        _list("EXIT STATUS", iter(EXIT_STATUS)),
        _list(
            "ENVIRONMENT",
            _environment(),
            "Every command reads the settings below, and those of the services that it concerns: "
            '"quantum-alloc config docs settings" tells them all, "quantum-alloc config check" every mistake in them.',
        ),
        _list("FILES", _files()),
        _list("SEE ALSO", iter(()), "systemctl(1), journalctl(1), redis-cli(1)"),
    )
    return "\n".join([body.rstrip("\n"), *sections]) + "\n"


MAKERS: dict[str, Callable[[], str]] = {"bash": _bash, "zsh": _zsh, "man": _man}


def main() -> None:
    """Write the files anew."""
    for name, make in MAKERS.items():
        path: Path = SHARE / PAGES[name]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(make(), encoding="utf-8")


if __name__ == "__main__":
    main()
