"""Actions on a machine: told as they are done, and those that were done can be taken back."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from quantum_alloc.services.disk import within
from quantum_alloc.services.programs import InstallError, heed, run

DONE, FAILED, USAGE, NOT_ROOT = 0, 1, 2, 77
MANIFEST = "manifest.json"
ROOT = Path("/")
Undo = Callable[[], object]


class Steps:
    """Actions, told as they are done; those that were done can be taken back."""

    def __init__(self, *, dry: bool, root: Path = ROOT) -> None:
        """Prepare.

        Args:
            dry: tell and do nothing.
            root: the machine's root directory.
        """
        self.dry = dry
        self.root = root
        self.changed = False
        self._done: list[Undo] = []

    def tell(self, verb: str, what: object) -> None:
        """Print one line.

        Args:
            verb: what is done.
            what: to what.
        """
        print(f"{verb:<10}{what}", flush=True)

    def do(self, verb: str, what: object, action: Callable[[], Undo | None]) -> None:
        """Tell an action and do it.

        Args:
            verb: what is done.
            what: to what.
            action: does it, and gives what takes it back; None where there is nothing to take back.
        """
        if not self.dry:
            heed()
        self.tell(verb, what)
        self.changed = True
        if not self.dry:
            back = action()
            if back is not None:
                self._done.append(back)

    def later(self, back: Undo) -> None:
        """Note what takes back an action that may stop half-way, before it begins.

        Args:
            back: takes it back; it may find nothing to do.
        """
        if not self.dry:
            self._done.append(back)

    def take_back(self) -> None:
        """Undo everything, the last action first."""
        for back in reversed(self._done):
            try:
                back()
            except (OSError, InstallError) as error:
                print(f"quantum-alloc: it could not be taken back: {error}", file=sys.stderr)
        self._done.clear()


def has_systemd(steps: Steps) -> bool:
    """Whether systemd runs on the machine.

    Args:
        steps: they know its root directory.
    """
    return within(steps.root, "/run/systemd/system").is_dir()


def systemctl(steps: Steps, *words: str) -> None:
    """Run systemctl where systemd runs, and tell it.

    Args:
        steps: where it is told.
        words: what it is asked for.
    """
    line = " ".join(("systemctl", *words))
    if not has_systemd(steps):
        steps.tell("skip", f"{line} (systemd does not run here)")
        return

    def ask() -> None:
        run(["systemctl", "--quiet", *words], line)

    steps.do("run", line, ask)


def remove_tree(directory: Path) -> None:
    """Remove a directory with all that is in it.

    Args:
        directory: that may be there.

    Raises:
        OSError: something in it stays.
    """
    if directory.is_dir():
        shutil.rmtree(directory)


def is_empty(directory: Path) -> bool:
    """Whether a directory is there and holds nothing.

    Args:
        directory: that may be there.
    """
    return directory.is_dir() and not any(directory.iterdir())
