"""Files of secrets that others may read: warned of, never refused."""

from __future__ import annotations

import stat
from pathlib import Path

from quantum_alloc.services.options import Settings
from quantum_alloc.services.settings import variables

ENDINGS = ("_PASSWORD_FILE", "_SIGNING_KEY_FILE")
"""How the variables end that name such a file."""


def exposed(settings: Settings) -> list[str]:
    """One sentence for each file of a secret that every user of the machine may read.

    Args:
        settings: of a process.
    """
    named: dict[str, Path] = {}
    for group in (settings.redis, *settings.services.values()):
        for v in variables(type(group)):
            path = getattr(group, v.field)
            if v.spec.env.endswith(ENDINGS) and isinstance(path, Path):
                named[v.spec.env] = path
    return [f"{n}={str(path)!r}: every user may read it: chmod 0600 it" for n, path in named.items() if _is_open(path)]


def opened(directory: Path) -> list[str]:
    """One sentence for each file of a directory that every user may read, or could if the directory were not shut.

    Args:
        directory: of secrets; it may be absent.

    Raises:
        PermissionError: it cannot be looked at.
    """
    files = sorted(directory.iterdir()) if directory.is_dir() else []
    return [f"{file}: every user may read it: chmod 0600 it" for file in files if file.is_file() and _is_open(file)]


def _is_open(path: Path) -> bool:
    try:
        return bool(path.stat().st_mode & (stat.S_IROTH | stat.S_IWOTH))
    except (OSError, ValueError):  # what cannot be read is an error where it is read
        return False
