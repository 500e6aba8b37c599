"""How a case of a proof is judged: what is due against what was found, each difference a clause."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from quantum_alloc.services.proof import Result

NEAR = 1e-9
"""Numbers of a rule that were worked out in two ways agree this closely, relative."""


def differences(due: Mapping[str, object], found: Mapping[str, Any]) -> list[str]:
    """What is not as it should be, a clause each; floats agree within 1e-9 relative, all else to the letter.

    Args:
        due: names and values.
        found: names and values, texts or numbers; others may be there.

    >>> differences({"multiplier": 1.4, "reason": "ok"}, {"multiplier": "1.4000", "reason": "low_conf"})
    ["reason is 'low_conf', due 'ok'"]
    """
    return [f"{n} is {found.get(n)!r}, due {v!r}" for n, v in due.items() if not _same(v, found.get(n))]


def same(due: Mapping[str, object], found: Mapping[str, Any]) -> list[str]:
    """What is not as it should be, a clause each; nothing else may be there.

    Args:
        due: names and values.
        found: names and values.

    >>> same({"a": "1"}, {"a": "1", "b": "2"})
    ['b is there, and not due']
    """
    return [*differences(due, found), *(f"{name} is there, and not due" for name in sorted(found.keys() - due.keys()))]


def _same(due: object, found: object) -> bool:
    if not isinstance(due, float) or isinstance(found, bool):
        return due == found and isinstance(due, bool) == isinstance(found, bool)
    try:
        return math.isclose(float(found), due, rel_tol=NEAR, abs_tol=NEAR)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return False


def judged(at: tuple[str, str, str], wrong: Sequence[str], fine: str) -> Result:
    """A result.

    Args:
        at: group, check and case.
        wrong: what is not as it should be; empty where all is.
        fine: what was found where all is.
    """
    return Result(*at, not wrong, "; ".join(wrong[:5]) if wrong else fine)


def lives(life_s: int | None, due_s: int) -> list[str]:
    """What is wrong with a key's expiry: nothing, or one clause.

    Args:
        life_s: what its writer set, seconds; None for nothing.
        due_s: what its writer is to set, seconds.
    """
    return [] if life_s is not None and due_s - 5 <= life_s <= due_s else [f"it lives {life_s} s, due {due_s}"]


def apart(a: Mapping[str, object], b: Mapping[str, object]) -> list[str]:
    """Where the contents of two lanes differ, a clause each.

    Args:
        a: of one lane.
        b: of the other.
    """
    wrong = [f"{name} is there once only" for name in sorted(a.keys() ^ b.keys())]
    unlike = [name for name in sorted(a.keys() & b.keys()) if a[name] != b[name]]
    return [*wrong, *(f"{name} differs: {_first_difference(a[name], b[name])}" for name in unlike)]


def _first_difference(a: object, b: object) -> str:
    if isinstance(a, list) and isinstance(b, list):
        if len(a) != len(b):
            return f"{len(a)} entries and {len(b)}"
        a, b = next((x, y) for x, y in zip(a, b, strict=True) if x != y)
    if isinstance(a, dict) and isinstance(b, dict):
        name = next(n for n in sorted(a.keys() | b.keys()) if a.get(n) != b.get(n))
        return f"{name} is {a.get(name)!r} and {b.get(name)!r}"[:300]
    return f"{a!r} and {b!r}"[:300]
