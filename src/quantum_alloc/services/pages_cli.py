"""``quantum-alloc completion bash|zsh`` and ``quantum-alloc man``: print what a shell and ``man`` read of this program.

The files are part of the package, made from the parser by ``make docs``; ``install`` copies them to where
a shell and ``man`` look for them.

    eval "$(quantum-alloc completion bash)"          for this shell
    quantum-alloc man | man -l -                     to read the page
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SHARE = Path(__file__).resolve().parents[1] / "share"
PAGES: Mapping[str, str] = {"bash": "quantum-alloc.bash", "zsh": "_quantum-alloc", "man": "quantum-alloc.1"}
"""Name of each file below ``SHARE``."""
DONE = 0


def add_parsers(commands: Any) -> None:
    """Add the commands.

    Args:
        commands: the subparsers of ``quantum-alloc``.
    """
    about = "print the completion of a shell"
    usage = f'{about}: eval "$(quantum-alloc completion bash)"'
    shell = commands.add_parser("completion", help=about, description=usage)
    shell.add_argument("page", choices=("bash", "zsh"))
    shell.set_defaults(handler=_print)

    about = "print the manual page"
    manual = commands.add_parser("man", help=about, description=f"{about}: quantum-alloc man | man -l -")
    manual.set_defaults(handler=_print, page="man")


def page(name: str) -> str:
    """One of the files.

    Args:
        name: of ``PAGES``.
    """
    return (SHARE / PAGES[name]).read_text(encoding="utf-8")


def _print(args: argparse.Namespace, _: Mapping[str, str]) -> int:
    print(page(args.page), end="")
    return DONE
