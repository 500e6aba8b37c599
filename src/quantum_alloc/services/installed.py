"""Whose our units and our command are: the prefix that each starts its program from."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

from quantum_alloc.services import units
from quantum_alloc.services.disk import read, within
from quantum_alloc.services.install_files import COMMAND, SYSTEMD

_RUNS = re.compile(r"(?m)^(?:ExecStart=|exec )(/\S+)/venv/bin/quantum-alloc(?=\s)")


def owners(root: Path) -> dict[PurePosixPath, PurePosixPath | None]:
    """The units of the table and the command, where they are there, with their prefix; None where it is not told.

    Args:
        root: the machine's root directory.
    """
    texts = {path: read(within(root, path)) for path in (*(SYSTEMD / n for n in units.systemd_files()), COMMAND)}
    found = {path: _RUNS.search(text) for path, text in texts.items() if text is not None}
    return {path: PurePosixPath(match[1]) if match else None for path, match in found.items()}


def others(root: Path, prefix: PurePosixPath) -> list[PurePosixPath]:
    """The other prefixes that units or the command start a program from.

    Args:
        root: the machine's root directory.
        prefix: that is not another one.
    """
    return sorted({owner for owner in owners(root).values() if owner not in (None, prefix) and owner is not None})
