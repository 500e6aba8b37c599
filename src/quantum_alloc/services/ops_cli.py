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

from quantum_alloc.adapters import governor_wire as gw
from quantum_alloc.adapters.effects import Delete, HashSet, StreamAdd, TextSet
from quantum_alloc.adapters.governor_files import microseconds, seconds
from quantum_alloc.adapters.governor_scripts import LATCH
from quantum_alloc.adapters.governor_writes import event
from quantum_alloc.adapters.keys import LIVE
from quantum_alloc.adapters.ops_entry import LedgerError
from quantum_alloc.adapters.store import Store, StoreError
from quantum_alloc.core.governor_inputs import Kill
from quantum_alloc.core.limits import US
from quantum_alloc.services import app, ledger_cli
from quantum_alloc.services.governor_keeper import time_us
from quantum_alloc.services.options import GovernorOptions, Settings, load

DONE, NOT_RECORDED, USAGE = 0, 1, 2
TEXT_LIMIT = 500
STATES = {"halt": Kill.HALT, "reduce": Kill.REDUCE_ONLY, "off": Kill.OFF}


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
    kill.add_argument("state", choices=tuple(STATES))
    kill.add_argument("--by", type=line, default=None, metavar="NAME", help="who (the user)")
    kill.add_argument("--why", type=line, default="not told", metavar="TEXT", help="the reason")
    kill.set_defaults(handler=_kill)

    about = "take the latch of a halt away, once the kill switch is off again"
    rearm = commands.add_parser("rearm", help=about, description=about)
    rearm.add_argument("--by", type=line, required=True, metavar="NAME", help="who")
    rearm.add_argument("--why", type=line, required=True, metavar="TEXT", help="the reason")
    rearm.set_defaults(handler=_rearm)


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return "unknown"


def _now_us(store: Store) -> int:
    found = time_us(store.read([("TIME",)])[0])
    if found is None:
        raise StoreError("other", "the server does not tell its time")
    return found


def _recorded(settings: Settings, store: Store, name: str, by: str, why: str, summary: str) -> int:
    """Write it down; what was done stays done where that fails."""
    try:
        entry = ledger_cli.record(settings, store, name, by, why, summary=summary)
    except (LedgerError, StoreError, OSError) as error:
        print(f"quantum-alloc: done, but the OPS ledger does not tell of it: {error}", file=sys.stderr)
        return NOT_RECORDED
    print(f"Written down as {entry.id}.")
    return DONE


def _latch(store: Store, settings: Settings, now_us: int, by: str, why: str) -> None:
    """Latch at once: nobody else may have seen the halt when the switch is off again."""
    rearm = store.read([("HMGET", LIVE.rearm, "at")])[0]
    seen = rearm[0] if isinstance(rearm, list) and isinstance(rearm[0], bytes) else b""
    args: list[str | bytes | int] = [seen, seconds(now_us), by, why, now_us // US, settings.common.stream_maxlen]
    events = settings.of(GovernorOptions).events_stream
    try:
        store.run(LATCH, [LIVE.latch, LIVE.rearm, events], args, store.connections)
    except StoreError as error:
        print(f"quantum-alloc: the halt is set; governors that see it latch it: {error}", file=sys.stderr)


def _kill(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    settings = load(list(app.SERVICES), environ, together=False)
    store, by = app.open_store(settings), args.by or _user()
    try:
        store.apply([(TextSet(LIVE.kill, args.state),)])  # alone and first: nothing else may keep it from being set
        now_us = _now_us(store)
        state = STATES[args.state]
        print(f"The kill switch is {state.value}.")
        if state is Kill.HALT:
            _latch(store, settings, now_us, by, args.why)
        told = event("KILL", "", "", args.state, now_us / US, {"state": state.value, "by": by, "why": args.why})
        events = settings.of(GovernorOptions).events_stream
        refused = store.apply([(StreamAdd(events, told, settings.common.stream_maxlen),)])
        for key, failure in refused:
            print(f"quantum-alloc: {key} does not tell of it: {failure.message}", file=sys.stderr)
        latch = store.read([("HMGET", LIVE.latch, "state", "since", "by", "why")])[0]
        if state is not Kill.HALT and gw.is_latched(latch):
            print("A halt is latched: nothing is permitted until `quantum-alloc rearm --by NAME --why TEXT`.")
        return _recorded(settings, store, f"kill_{args.state}", by, args.why, f"{LIVE.kill} = {args.state}")
    finally:
        store.close()


def _rearm(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    settings = load(list(app.SERVICES), environ, together=False)
    store = app.open_store(settings)
    try:
        _, kill, latch = store.read([("WATCH", LIVE.kill), ("GET", LIVE.kill), ("HMGET", LIVE.latch, "state", "since")])
        state = gw.kill_state(kill)
        if state is not Kill.OFF:
            store.read([("UNWATCH",)])
            text = f"the kill switch is {state.value}: set it off first, with `quantum-alloc kill off`"
            print(f"quantum-alloc: {text}", file=sys.stderr)
            return USAGE
        since = latch[1] if isinstance(latch, list) and isinstance(latch[1], bytes) else None
        at_us = max(_now_us(store), (microseconds(since) or 0) + 1)
        fields = {"at": seconds(at_us), "by": args.by, "why": args.why, "ts": str(at_us // US)}
        told = event("REARM", "", "", "rearm", at_us / US, {"by": args.by, "why": args.why})
        events = settings.of(GovernorOptions).events_stream
        try:
            refused = store.apply(
                [
                    (
                        Delete(LIVE.latch),
                        Delete(LIVE.rearm),
                        HashSet(LIVE.rearm, fields),
                        StreamAdd(events, told, settings.common.stream_maxlen),
                    )
                ]
            )
        except StoreError as error:
            if error.code != "conflict":
                raise
            print("quantum-alloc: the kill switch was set in the meantime: nothing was rearmed", file=sys.stderr)
            return USAGE
        for key, failure in refused:
            print(f"quantum-alloc: {key} does not tell of it: {failure.message}", file=sys.stderr)
        print("Rearmed: every governor that runs permits again, and one that does not once it has started.")
        return _recorded(settings, store, "rearm", args.by, args.why, f"{LIVE.latch} taken away")
    finally:
        store.close()
