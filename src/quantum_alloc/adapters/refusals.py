"""Refusals of a script by which it is certain that nothing of it ran.

The scripts declare themselves with ``#!lua`` and no flags, so that a server looks at its own state before the first
line; and one that has begun to write is not stopped by that state any more, or half of it would stand.

    conflict                                        the store did not send it
    MOVED ASK TRYAGAIN CLUSTERDOWN                  its keys are looked at before it begins
    LOADING MASTERDOWN BUSY NOAUTH WRONGPASS        no command is taken
    READONLY NOREPLICAS MISCONF OOM                 before the first write, or never

Of all others nobody knows: where no answer came it may have run, and a right that is missing (NOPERM) may show in the
middle of it.
"""

from __future__ import annotations

from quantum_alloc.adapters.store import StoreError

NEVER_BEGUN = frozenset({
    "conflict", "MOVED", "ASK", "TRYAGAIN", "CLUSTERDOWN", "LOADING", "MASTERDOWN", "BUSY", "NOAUTH", "WRONGPASS",
    "READONLY", "NOREPLICAS", "MISCONF", "OOM",
})  # fmt: skip


def never_began(error: StoreError) -> bool:
    """Whether a script that was refused has certainly done nothing.

    Args:
        error: that running it came to.

    >>> never_began(StoreError("READONLY")), never_began(StoreError("timeout")), never_began(StoreError("NOPERM"))
    (True, False, False)
    """
    return error.code in NEVER_BEGUN
