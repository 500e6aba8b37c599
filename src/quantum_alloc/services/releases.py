"""Releases side by side: PREFIX/venv is a link that points at one of PREFIX/releases."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

from quantum_alloc.services.install_steps import Steps, Undo, remove_tree


def points_at(link: Path) -> str:
    """The name of the release that a link points at; empty where there is none.

    Args:
        link: PREFIX/venv.
    """
    return Path(os.readlink(link)).name if link.is_symlink() else ""


def switch(link: Path, name: str) -> Undo:
    """Let the link point at a release, in one step.

    Args:
        link: PREFIX/venv.
        name: of the release.

    Returns:
        What takes it back.
    """
    before = points_at(link)
    fresh = link.with_name(".venv.new")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(Path("releases") / name)
    os.replace(fresh, link)
    return (lambda: switch(link, before)) if before else link.unlink


def remove_old(steps: Steps, at: Path, name: str, before: str) -> None:
    """Remove all releases but the new one and the one before it, which services that run may still read.

    Args:
        steps: where it is told.
        at: the prefix.
        name: of the release that counts.
        before: of the one that counted before the switch; where it is the same, nothing is removed.
    """
    try:
        found = sorted((at / "releases").iterdir(), key=lambda p: p.stat().st_mtime)
    except FileNotFoundError:
        return
    for directory in [p for p in found if p.name not in (name, before) and before != name]:
        steps.do("remove", directory, partial(remove_tree, directory))
