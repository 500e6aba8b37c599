"""The governor's scripts beside the commit: the latch, a disarm by errors, putting back what a server has lost."""

from __future__ import annotations

from importlib.resources import files

from quantum_alloc.adapters.store import Script


def _script(name: str) -> Script:
    return Script(files("quantum_alloc.adapters").joinpath(name).read_text(encoding="utf-8"))


COMMIT = _script("commit.lua")
LATCH = _script("latch.lua")
DISARM = _script("disarm.lua")
RESTORE = _script("restore.lua")
