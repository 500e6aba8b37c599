"""Programs that an installation runs, and the signals that end it.

While a machine is changed, SIGINT, SIGTERM and SIGHUP are noted: a program that is waited for is ended with all that it
started, an action that has begun is finished, and the next one does not begin. What takes back is never cut short.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
LOOK_S = 0.1
END_WITHIN_S = 3.0
_noted: list[int] = []


class InstallError(Exception):
    """It cannot be installed; the text is one sentence with the way out."""


@contextmanager
def signals_noted() -> Iterator[None]:
    """Note signals that would end the process; one that is ignored already stays so."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    _noted.clear()
    try:
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, lambda got, _: _noted.append(got))
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _noted.clear()


def heed() -> None:
    """Go no further once a signal was noted.

    Raises:
        InstallError: one was.
    """
    if _noted:
        raise InstallError(f"it was interrupted ({signal.Signals(_noted[0]).name})")


def run(words: Sequence[object], what: str, *, to_the_end: bool = False) -> str:
    """Run a program to its end.

    Args:
        words: the program and its arguments.
        what: it is for, for the message.
        to_the_end: whatever signals were noted.

    Raises:
        InstallError: it failed, with the last line that it said; or a signal was noted.
    """
    environ = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON") and k != "VIRTUAL_ENV"}
    try:
        child = subprocess.Popen(  # noqa: S603 - of our own words
            list(map(str, words)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env=environ,
            start_new_session=True,
        )
    except OSError as error:
        raise InstallError(f"{what}: {words[0]} cannot be run: {error.strerror}") from None
    with child:
        try:
            out, err = _waited_for(child, to_the_end)
        finally:
            if child.returncode is None:
                _end(child)
    if child.returncode:
        said = [line for line in f"{out}\n{err}".splitlines() if line.strip()]
        errors = [line for line in said if line.startswith("ERROR")] or said[-1:]
        raise InstallError(f"{what} failed: {errors[-1].strip() if errors else f'exit code {child.returncode}'}")
    return out


def _waited_for(child: subprocess.Popen[str], to_the_end: bool) -> tuple[str, str]:
    while True:
        try:
            return child.communicate(timeout=LOOK_S)
        except subprocess.TimeoutExpired:
            if not to_the_end:
                heed()


def _end(child: subprocess.Popen[str]) -> None:
    """End a program with all that it started; it may tidy up first."""
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGINT)
    with suppress(subprocess.TimeoutExpired):
        child.wait(END_WITHIN_S)
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
