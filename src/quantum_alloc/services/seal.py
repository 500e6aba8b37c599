"""A line in a file with the SHA-256 of the other lines: whether it is still what was made.

Whoever edits such a file breaks its seal, and an upgrade leaves it alone.
"""

from __future__ import annotations

import hashlib
import re

_SEAL = re.compile(r"^# Made by quantum-alloc\. sha256 of the other lines: ([0-9a-f]{64})\n", re.MULTILINE)


def seal(text: str) -> str:
    """A text with a comment that holds the SHA-256 of the rest, behind the ``#!`` where there is one.

    Args:
        text: lines, of a kind in which ``#`` begins a comment.
    """
    line = f"# Made by quantum-alloc. sha256 of the other lines: {hashlib.sha256(text.encode()).hexdigest()}\n"
    first, rest = text.split("\n", 1) if text.startswith("#!") else ("", text)
    return f"{first}\n{line}{rest}" if first else line + rest


def is_sealed(text: str) -> bool | None:
    """Whether a text is as it was sealed; None where it never was.

    Args:
        text: of a file.

    >>> made = seal("[Unit]\\n")
    >>> is_sealed(made), is_sealed(made + "Wants=x\\n"), is_sealed("[Unit]\\n")
    (True, False, None)
    """
    found = _SEAL.search(text)
    if found is None:
        return None
    rest = text[: found.start()] + text[found.end() :]
    return hashlib.sha256(rest.encode()).hexdigest() == found[1]
