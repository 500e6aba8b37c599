"""What a governor keeps in the state directory beside its journal: the kill switch's latch, and what it knows of the
server. A file is replaced as a whole, so that a crash leaves the old one or the new one.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from quantum_alloc.adapters.journal import state_file, sync
from quantum_alloc.core.limits import US


def replace_file(path: Path, told: Mapping[str, Any]) -> None:
    """Write a JSON file in the place of another, so that it survives a power cut.

    Args:
        path: of the file.
        told: what it holds.

    Raises:
        OSError: it cannot be written; the old one stands.
    """
    aside = path.with_suffix(f".new{os.getpid()}")
    with aside.open("w", encoding="utf-8") as file:
        json.dump(told, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)
    sync(path.parent)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        told = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return {}
    return told if isinstance(told, dict) else {}


@dataclass(frozen=True, slots=True)
class Latch:
    """A kill switch that was seen at HALT.

    Attributes:
        since_us: when, microseconds of the server's clock.
        by: who set it, as far as that is known.
        why: the reason, as far as that is known.
    """

    since_us: int
    by: str = ""
    why: str = ""


class LatchFile:
    """The latch in the state directory; one that cannot be read holds."""

    def __init__(self, directory: Path, consumer: str) -> None:
        """Read it.

        Args:
            directory: the state directory.
            consumer: the governor's name; each keeps a latch of its own.
        """
        self._path = directory / state_file(consumer, "latch")
        self.latch: Latch | None = None
        told = _read(self._path)
        if told is None:
            return
        try:
            self.latch = Latch(int(told["since_us"]), str(told["by"]), str(told["why"]))
        except (KeyError, ValueError, TypeError):
            self.latch = Latch(0, "", "the latch file cannot be read")

    def write(self, latch: Latch) -> None:
        """Latch.

        Raises:
            OSError: it cannot be written.
        """
        self.latch = latch
        replace_file(self._path, asdict(latch))

    def clear(self) -> None:
        """Rearmed."""
        self.latch = None
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()
        sync(self._path.parent)


@dataclass(frozen=True, slots=True)
class Known:
    """What a governor knows of the server.

    Attributes:
        epoch: the server's run that it last worked with; empty before the first.
        hold_until_us: until when no open is permitted, for what the server may have forgotten.
        is_unstable: whether its clock could not be trusted.
        others: governors that were seen and do not share the directory.
    """

    epoch: str = ""
    hold_until_us: int = 0
    is_unstable: bool = False
    others: tuple[str, ...] = ()


class KnownFile:
    """The file of what a governor knows of the server."""

    def __init__(self, path: Path) -> None:
        """Read it; one that cannot be read means that what was known is lost."""
        self._path = path
        told = _read(path)
        try:
            if told is None:
                self.known = Known()
            else:
                epoch, until = str(told["epoch"]), int(told["hold_until_us"])
                others = tuple(str(o) for o in told["others"])
                self.known = Known(epoch, until, bool(told["is_unstable"]), others)
        except (KeyError, ValueError, TypeError):
            # what was known is not known any more: as after a loss of writes
            self.known = Known(epoch="unreadable", others=("unknown",))

    def write(self, known: Known) -> None:
        """Keep it.

        Raises:
            OSError: it cannot be written.
        """
        if known != self.known:
            replace_file(self._path, asdict(known))
            self.known = known


def seconds(us: int) -> str:
    """Microseconds as seconds with all their digits.

    >>> seconds(1769577495000001)
    '1769577495.000001'
    """
    return f"{us // US}.{us % US:06}"


def microseconds(raw: bytes | None) -> int | None:
    """Seconds with up to six digits behind the point as microseconds; None for anything else.

    >>> microseconds(b"1769577495.000001"), microseconds(b"1769577495"), microseconds(b"soon")
    (1769577495000001, 1769577495000000, None)
    """
    whole, _, part = (raw or b"").partition(b".")
    if not whole.isdigit() or len(whole) > 12 or not (part.isdigit() or not part) or len(part) > 6:
        return None
    return int(whole) * US + int(part.ljust(6, b"0"))
