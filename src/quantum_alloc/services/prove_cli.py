"""``quantum-alloc prove [allocation|efficiency|proposer|governor|all]``: the acceptance of a running installation.

It asks every service on its port, twice, reads Redis, works cases in lanes of its own, and judges what it read. Nothing
is written outside those lanes, and no key of theirs is left: ``nothing-left`` looks for one.

Exit codes: 0 every check passed; 1 one did not, or the results cannot be written; 2 a mistake in the command; 69 Redis
does not answer; 78 a mistake in the settings; 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import secrets
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from textwrap import fill
from typing import Any

from quantum_alloc.adapters.keys import Keys
from quantum_alloc.adapters.lane_store import all_of, found
from quantum_alloc.adapters.store import Store
from quantum_alloc.services import app, proof_checks, proof_facts, proof_lane, show
from quantum_alloc.services.logs import escape
from quantum_alloc.services.options import Settings, load
from quantum_alloc.services.proof import GROUPS, Count, Result, counted
from quantum_alloc.services.proof_said import nobody
from quantum_alloc.services.proof_services import services_of
from quantum_alloc.services.trial_cli import count

DONE, FAILED, STOPPED = 0, 1, 130
ALL = "all"
NOTHING_LEFT = "nothing-left"
NOTHING_LEFT_MEANS = "no key of the proof's lanes is left behind"
TOLD_AFTER_S = 2.0
BY_HAND_S = (0.0, 600.0)


def _wait(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not BY_HAND_S[0] <= value <= BY_HAND_S[1]:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 0 to 600")
    return value


def add_parser(commands: Any) -> None:
    """Add the command.

    Args:
        commands: the subparsers of ``quantum-alloc``.
    """
    about = "the acceptance of a running installation: checks of what runs, and cases in lanes of its own"
    prove = commands.add_parser(
        "prove",
        help=about,
        description=f"{about}. It reads ports and Redis, writes nothing but its lanes (quantum:proof:), leaves no key "
        "of them behind, and exits 0 where every check passed, else 1. docs/how-to/prove.md tells what each looks at.",
    )
    prove.add_argument("group", nargs="?", choices=(*GROUPS, ALL), default=ALL, help="which checks (all)")
    prove.add_argument("--format", choices=("table", "json"), default="table")
    prove.add_argument("--verbose", action="store_true", help="a line a case, also of those that passed")
    prove.add_argument(
        "--wait", type=_wait, metavar="SECONDS", help="for a cycle more of each service (3 intervals and 5 s)"
    )
    prove.add_argument(
        "--symbols", type=count, default=proof_facts.SYMBOLS, metavar="N", help="symbols that are looked at (200)"
    )
    prove.add_argument("--only-look", action="store_true", help="leave the cases out: nothing at all is written")
    prove.add_argument("--list", action="store_true", help="say which checks there are, and look at nothing")
    prove.set_defaults(handler=_prove)


def due(groups: Sequence[str], *, only_look: bool) -> list[tuple[str, str]]:
    """Group and id of every check that is to be made.

    Args:
        groups: of ``GROUPS``.
        only_look: without the cases in lanes.
    """
    found = proof_checks.due(groups)
    if not only_look:
        found += [(case.group, name) for name, case in proof_lane.CASES.items() if case.group in groups]
        found += [(group, NOTHING_LEFT) for group in groups]
    return sorted(found, key=lambda at: list(groups).index(at[0]))


def meanings() -> dict[str, str]:
    """What each check holds, by its id."""
    looks = {check.id: check.meaning for check in proof_checks.CHECKS}
    cases = {name: case.meaning for name, case in proof_lane.CASES.items()}
    return {**looks, **cases, NOTHING_LEFT: NOTHING_LEFT_MEANS}


def in_lanes(settings: Settings, store: Store, groups: Sequence[str], proof_id: str) -> list[Result]:
    """The cases, and whether a key of theirs is left.

    Args:
        settings: of all services.
        store: where the lanes are.
        groups: of ``GROUPS``.
        proof_id: of the lanes.

    Raises:
        StoreError: Redis does not answer.
    """
    results = proof_lane.run_cases(settings, store, groups, proof_id)
    names = found(store, all_of(Keys(tag=settings.redis.hash_tag, proof=proof_id)))
    told = f"{len(names)} are left, {names[0]} is one: they expire, or the next proof deletes them" if names else ""
    where = f"of {Keys(tag=settings.redis.hash_tag, proof=proof_id).root}"
    return results + [
        Result(group, NOTHING_LEFT, "lanes", not names, told or f"no key {where} is left") for group in groups
    ]


class _Progress:
    """A line on the terminal, from the third second on."""

    def __init__(self) -> None:
        self._since = time.monotonic()
        self._shown = False

    def __call__(self, text: str) -> None:
        if sys.stderr is not None and sys.stderr.isatty() and time.monotonic() - self._since > TOLD_AFTER_S:
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
            self._shown = True

    def end(self) -> None:
        if self._shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def prove(
    settings: Settings,
    store: Store,
    groups: Sequence[str],
    *,
    most: int = proof_facts.SYMBOLS,
    wait_s: float | None = None,
    only_look: bool = False,
    tell: Callable[[str], None] = lambda _: None,
) -> tuple[list[Result], list[Count], str]:
    """Every check of some groups, what each came to, and what is to be said first.

    Args:
        settings: of all services.
        store: a connection.
        groups: of ``GROUPS``.
        most: symbols that are looked at.
        wait_s: for a further cycle, seconds; None for three intervals of the slowest and 5 s.
        only_look: without the cases in lanes.
        tell: is told how far it is.

    Raises:
        StoreError: Redis does not answer.
    """
    names = [name for group in groups for name in services_of(group)]
    facts = proof_facts.facts(settings, store, names, most=most, wait_s=wait_s, tell=tell)
    results = proof_checks.judged(facts, groups)
    if not only_look:
        tell("working the cases in lanes")
        results += in_lanes(settings, store, groups, f"p{secrets.token_hex(5)}")
    note = nobody([facts.first[n] for n in names], [facts.second[n] for n in names])
    return results, counted(results, due(groups, only_look=only_look)), note


def _row(count: Count) -> dict[str, Any]:
    return {
        "group": count.group,
        "check": count.check,
        "result": "PASS" if count.ok and count.passed else "NOT NEEDED" if count.ok else "FAIL",
        "passed": count.passed,
        "failed": count.failed,
        "not needed": count.not_needed,
    }


def _told(results: Sequence[Result], counts: Sequence[Count], *, verbose: bool) -> str:
    rows = [_row(c) for c in counts]
    parts = [show.table(rows)]
    shown = [r for r in results if verbose or not r.ok or not r.needed]
    width = show.width_of_terminal()
    for verdict in ("FAIL", "NOT NEEDED", "PASS"):
        lines = [f"{verdict}  {r.group} {r.check}: {r.case}: {r.detail}" for r in shown if r.verdict == verdict]
        if lines:
            parts.append("\n".join(fill(escape(line), width, subsequent_indent="  ") for line in lines))
    return "\n\n".join(parts)


def _total(counts: Sequence[Count]) -> str:
    failed = [c for c in counts if not c.ok]
    cases = sum(c.passed for c in counts), sum(c.failed for c in counts), sum(c.not_needed for c in counts)
    idle = sum(c.ok and not c.passed for c in counts)
    said = "PASS" if not failed else f"FAIL: {len(failed)} of"
    of = f", {idle} of them not needed here" if idle else ""
    return f"{said} {len(counts)} checks{of}; {cases[0]} cases passed, {cases[1]} failed, {cases[2]} not needed"


def _prove(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    groups = tuple(GROUPS) if args.group == ALL else (args.group,)
    if args.list:
        told = meanings()
        wanted = due(groups, only_look=args.only_look)
        rows = [{"group": g, "check": c, "holds": told[c]} for g, c in wanted]
        return _shown(show.as_json(rows) if args.format == "json" else show.table(rows), DONE)
    settings = load(list(app.SERVICES), environ, together=False)
    store, progress = app.open_store(settings), _Progress()
    try:
        results, counts, note = prove(
            settings, store, groups, most=args.symbols, wait_s=args.wait, only_look=args.only_look, tell=progress
        )
    except KeyboardInterrupt:
        progress.end()
        print("quantum-alloc: stopped, and the lanes are cleared", file=sys.stderr)
        return STOPPED
    finally:
        progress.end()
        store.close()
    passed = all(c.ok for c in counts)
    if args.format == "json":
        found_ = {
            "passed": passed,
            "note": note,
            "checks": [_row(c) for c in counts],
            "cases": [{**_case(r), "verdict": r.verdict} for r in results],
        }
        text = show.as_json(found_)
    else:
        first = f"{fill(note[0].upper() + note[1:], show.width_of_terminal())}.\n\n" if note else ""
        text = f"{first}{_told(results, counts, verbose=args.verbose)}\n\n{_total(counts)}"
    return _shown(text, DONE if passed else FAILED)


def _shown(text: str, code: int) -> int:
    """Print, and answer the exit code: that of the checks, but where nobody can know what they said."""
    try:
        print(text, flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing is left to write at the end
        if not isinstance(error, BrokenPipeError):  # a reader who has seen enough does not make a PASS of it
            print(f"quantum-alloc: the results cannot be written: {error.strerror}", file=sys.stderr)
            return FAILED
    return code


def _case(r: Result) -> dict[str, Any]:
    return {"group": r.group, "check": r.check, "case": r.case, "ok": r.ok, "detail": r.detail}
