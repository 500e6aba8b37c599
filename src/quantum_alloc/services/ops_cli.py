"""``quantum-alloc kill`` and ``rearm``: the kill switch by hand.

    kill halt|reduce|off [--by NAME] [--why TEXT]     sets the key; nothing may keep a halt from being set
    rearm --by NAME --why TEXT                        after ``off``: takes the latch away, and is written down

Both are written into the OPS ledger. A halt latches at every governor that sees it: ``off`` alone does not rearm.
Source: the project's governor, section 3.
"""

from __future__ import annotations

import argparse
import getpass
import sys
from collections.abc import Mapping
from typing import Any

from quantum_alloc.adapters.ops_entry import LedgerError
from quantum_alloc.adapters.store import Store, StoreError
from quantum_alloc.core.governor_inputs import Kill
from quantum_alloc.services import app, kill_switch, ledger_cli
from quantum_alloc.services.options import GovernorOptions, Settings, load

DONE, NOT_RECORDED, USAGE = 0, 1, 2
TEXT_LIMIT = 500


def line(text: str) -> str:
    """One line of plain text."""
    if not text.strip() or not text.isprintable() or len(text) > TEXT_LIMIT:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a line of 1 to {TEXT_LIMIT} printable characters")
    return text.strip()


def add_parsers(commands: Any) -> None:
    """Add the commands.

    Args:
        commands: the subparsers of ``quantum-alloc``.
    """
    about = "stop permits (halt, until a rearm), permit only what reduces (reduce), or neither (off)"
    kill = commands.add_parser("kill", help=about, description=about)
    kill.add_argument("state", choices=tuple(kill_switch.STATES))
    kill.add_argument("--by", type=line, default=None, metavar="NAME", help="who (the user)")
    kill.add_argument("--why", type=line, default="not told", metavar="TEXT", help="the reason")
    kill.set_defaults(handler=_kill)

    about = "take the latch of a halt away, once the kill switch is off again"
    rearm = commands.add_parser("rearm", help=about, description=about)
    rearm.add_argument("--by", type=line, required=True, metavar="NAME", help="who")
    rearm.add_argument("--why", type=line, required=True, metavar="TEXT", help="the reason")
    rearm.set_defaults(handler=_rearm)


def user() -> str:
    """The name of who runs the command."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return "unknown"


def _recorded(settings: Settings, store: Store, name: str, by: str, why: str, summary: str) -> int:
    """Write it down; what was done stays done where that fails."""
    try:
        entry = ledger_cli.record(settings, store, name, by, why, summary=summary)
    except (LedgerError, StoreError, OSError) as error:
        print(f"quantum-alloc: done, but the OPS ledger does not tell of it: {error}", file=sys.stderr)
        return NOT_RECORDED
    print(f"Written down as {entry.id}.")
    return DONE


def _kill(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    settings = load(["governor"], environ, together=False, strangers_pass=True)  # a slip elsewhere keeps no halt back
    for warning in settings.warnings:
        print(f"quantum-alloc: {warning}", file=sys.stderr)
    store, by = app.open_store(settings), args.by or user()
    events, maxlen = settings.of(GovernorOptions).events_stream, settings.common.stream_maxlen
    try:
        moved = kill_switch.set_to(store, args.state, by, args.why, events=events, maxlen=maxlen, keys=settings.keys)
        state = kill_switch.STATES[args.state]
        print(f"The kill switch is {state.value}.")
        if moved.error is not None:
            raise moved.error
        if moved.unlatched:
            text = f"the halt is set; governors that see it latch it: {moved.unlatched}"
            print(f"quantum-alloc: {text}", file=sys.stderr)
        _untold(moved)
        if state is not Kill.HALT and moved.is_latched:
            print("A halt is latched: nothing is permitted until `quantum-alloc rearm --by NAME --why TEXT`.")
        return _recorded(settings, store, f"kill_{args.state}", by, args.why, f"{settings.keys.kill} = {args.state}")
    finally:
        store.close()


def _untold(moved: kill_switch.Moved) -> None:
    for key, failure in moved.untold:
        print(f"quantum-alloc: {key} does not tell of it: {failure.message}", file=sys.stderr)


def _rearm(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    settings = load(list(app.SERVICES), environ, together=False)
    store = app.open_store(settings)
    events, maxlen = settings.of(GovernorOptions).events_stream, settings.common.stream_maxlen
    try:
        moved = kill_switch.rearm(store, args.by, args.why, events=events, maxlen=maxlen, keys=settings.keys)
        if moved.trouble:
            print(f"quantum-alloc: {moved.trouble}", file=sys.stderr)
            return USAGE
        _untold(moved)
        print("Rearmed: every governor that runs permits again, and one that does not once it has started.")
        return _recorded(settings, store, "rearm", args.by, args.why, f"{settings.keys.latch} taken away")
    finally:
        store.close()
