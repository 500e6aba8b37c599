"""Files of a machine: read, told apart, and written as a whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath

from quantum_alloc.adapters.journal import sync


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
    finally:
        fresh.unlink(missing_ok=True)  # there it is only where it found no room

    def back() -> None:
        if before is None:
            path.unlink(missing_ok=True)
        else:
            put(path, before, rights)

    return back


def put_secret(path: Path, text: str) -> None:
    """Write a file for its owner alone, as a whole or not at all; a link stays, and the file that it names is replaced.

    Args:
        path: of the file; one that is there keeps owner and group.
        text: what it is to hold.

    Raises:
        OSError: it cannot be written; what was there stands.
    """
    path = Path(os.path.realpath(path))
    there = path.stat() if path.exists() else None
    if there is not None and not stat.S_ISREG(there.st_mode):
        raise OSError(errno.EINVAL, "it is no file")
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # mode 0600
    try:
        with os.fdopen(descriptor, "wb") as file:
            if there is not None:
                os.fchown(file.fileno(), there.st_uid, there.st_gid)
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)  # where it did not take its place
    sync(path.parent)


def missing_directories(paths: Iterable[PurePosixPath], root: Path) -> list[PurePosixPath]:
    """The directories that paths need and that are not there, parents first.

    Args:
        paths: of directories.
        root: the machine's root directory.
    """
    needed = {p for path in paths for p in (path, *path.parents) if not _is_there(within(root, p))}
    return sorted(needed, key=lambda p: (len(p.parts), str(p)))
