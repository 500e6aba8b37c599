"""Files of a machine: read, told apart, and written as a whole or not at all."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath


def sha(text: str) -> str:
    """The hash of a file's text.

    Args:
        text: of the file.
    """
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def read(path: Path) -> str | None:
    """A file's text; None where there is none.

    Args:
        path: of the file.
    """
    try:
        return path.read_bytes().decode("utf-8", "surrogateescape")
    except FileNotFoundError:
        return None


def within(root: Path, path: PurePosixPath | str) -> Path:
    """A path of the machine, beneath its root directory.

    Args:
        root: the machine's root directory.
        path: absolute.
    """
    return root / str(path).lstrip("/")


def _is_there(directory: Path) -> bool:
    try:
        return directory.is_dir()
    except PermissionError:  # a dry run of somebody who may not look
        return True


def put(path: Path, text: str, mode: int) -> Callable[[], None]:
    """Write a file as a whole or not at all.

    Args:
        path: of the file.
        text: what it is to hold.
        mode: its rights.

    Returns:
        What takes it back.
    """
    before = read(path)
    rights = path.stat().st_mode & 0o7777 if before is not None else mode
    fresh = path.with_name(f".{path.name}.quantum-alloc")
    try:
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(text.encode("utf-8", "surrogateescape"))
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        os.replace(fresh, path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise

    def back() -> None:
        if before is None:
            path.unlink(missing_ok=True)
        else:
            put(path, before, rights)

    return back


def missing_directories(paths: Iterable[PurePosixPath], root: Path) -> list[PurePosixPath]:
    """The directories that paths need and that are not there, parents first.

    Args:
        paths: of directories.
        root: the machine's root directory.
    """
    needed = {p for path in paths for p in (path, *path.parents) if not _is_there(within(root, p))}
    return sorted(needed, key=lambda p: (len(p.parts), str(p)))
