"""``quantum-alloc ledger``: write an operation down, read what was done, and see whether anybody changed it since.

    ledger append --operation NAME --by NAME --risk CLASS --summary TEXT --objective TEXT ...
    ledger show [--last N] [--wide] [--format ...]      from the file alone, without Redis
    ledger verify [--format table|json]                 exit 0 sound, 1 not sound, 69 Redis could not be asked

Other commands (rearm, kill) write their own entries with ``record``.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import quantum_alloc
from quantum_alloc.adapters.clock import WallClock
from quantum_alloc.adapters.ops_entry import OUTCOMES, RISK_CLASSES, Entry, LedgerError, Operation
from quantum_alloc.adapters.ops_ledger import OpsLedger, Unsound
from quantum_alloc.adapters.store import Store, StoreError
from quantum_alloc.services import app, show
from quantum_alloc.services.options import Settings, load
from quantum_alloc.services.trial_cli import count, word

DONE, NOT_SOUND, USAGE, NO_REDIS = 0, 1, 2, 69
GIT_TIMEOUT_S = 2.0
SHOWN_CHARACTERS = 240
NARROW = ("id", "finished", "operation", "by", "outcome", "summary")
NO_ENTRY = "The ledger holds no entry yet: `quantum-alloc ledger append` writes one."


def git_commit() -> str:
    """The commit of the running installation; empty when it does not run from a checkout of its own."""
    package = Path(quantum_alloc.__file__).resolve().parent
    environ = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}  # a hook's name another checkout
    try:
        told = subprocess.run(  # noqa: S603 - no word of it comes from outside
            ["git", "-C", str(package), "rev-parse", "HEAD", "--show-toplevel"],  # noqa: S607 - git is where PATH says
            capture_output=True,
            timeout=GIT_TIMEOUT_S,
            env=environ,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    commit, _, top = told.stdout.decode("utf-8", "surrogateescape").strip().partition("\n")
    # installed into an environment that lies in another project's checkout, it is not that project's commit
    return commit if told.returncode == 0 and Path(top) / "src" / "quantum_alloc" == package else ""


def record(
    settings: Settings,
    store: Store,
    operation_name: str,
    by: str,
    why: str,
    *,
    summary: str,
    risk_class: str = "LOW_RISK_CONFIG",
    approved_by: str = "",
    blast_radius: str = "",
    outcome: str = "SUCCESS",
    rollback_of: str = "",
    services_status: str = "",
    notes: str = "",
    started: float | None = None,
) -> Entry:
    """Write down what was just done, with this installation's commit and this machine's name.

    A WATCH that the connection holds is given up, so it comes after the caller's own writes.

    Args:
        settings: they name the directory.
        store: where the head is kept.
        operation_name: a plain word.
        by: who wanted it.
        why: what it is for.
        summary: what is different now.
        risk_class: one of ``RISK_CLASSES``.
        approved_by: who agreed to it.
        blast_radius: what it can reach if it goes wrong.
        outcome: one of ``OUTCOMES``.
        rollback_of: id of the operation that it undoes.
        services_status: how the services were afterwards.
        notes: anything else.
        started: when it began, unix seconds; None for now.

    Raises:
        LedgerError: it cannot be recorded as it is; ``Unsound`` where somebody changed the ledger.
        StoreError: Redis did not answer.
    """
    operation = Operation(
        operation_name=operation_name,
        requested_by=by,
        changes_summary=summary,
        objective=why,
        risk_class=risk_class,
        approved_by=approved_by,
        blast_radius=blast_radius,
        outcome=outcome,
        rollback_of=rollback_of,
        services_status=services_status,
        notes=notes,
        started=started,
    )
    operation.check()
    whole = replace(operation, git_commit=git_commit(), hostname=socket.gethostname())
    return OpsLedger(settings.common.state_directory, store, settings.keys).append(whole, WallClock().now())


def add_parsers(commands: Any) -> None:
    """Add the commands.

    Args:
        commands: the subparsers of ``quantum-alloc``.
    """
    ledger = commands.add_parser("ledger", help="the OPS ledger: what was done to the system, by whom, and why")
    actions = ledger.add_subparsers(dest="ledger_command", required=True, metavar="COMMAND")

    add = actions.add_parser("append", help="write an operation down")
    add.add_argument(
        "--operation", type=word, required=True, metavar="NAME", help="mode-change, rearm, disarm, deploy, reset"
    )
    add.add_argument("--by", required=True, metavar="NAME", help="who wanted it")
    add.add_argument("--approved-by", default="", metavar="NAME", help="who agreed to it")
    add.add_argument("--risk", required=True, choices=RISK_CLASSES, help="what kind of thing was touched")
    add.add_argument("--summary", required=True, metavar="TEXT", help="what is different now")
    add.add_argument("--objective", required=True, metavar="TEXT", help="what it is for")
    add.add_argument("--blast-radius", default="", metavar="TEXT", help="what it can reach if it goes wrong")
    add.add_argument("--outcome", choices=OUTCOMES, default="SUCCESS", help="(SUCCESS)")
    add.add_argument("--rollback-of", default="", metavar="OPS-...", help="the operation that it undoes")
    add.add_argument("--services-status", default="", metavar="TEXT", help="how the services were afterwards")
    add.add_argument("--notes", default="", metavar="TEXT", help="anything else")
    add.set_defaults(handler=_told(_append))

    read = actions.add_parser("show", help="the entries, newest last; needs no Redis")
    read.add_argument("--last", type=count, metavar="N", help="only so many (all)")
    read.add_argument("--wide", action="store_true", help="every column, one line an entry")
    read.add_argument("--format", choices=("table", "json"), default="table")
    read.set_defaults(handler=_told(_show))

    test = actions.add_parser("verify", help="find every edit, deletion, swap and truncation")
    test.add_argument("--format", choices=("table", "json"), default="table")
    test.set_defaults(handler=_told(_verify))


Action = Callable[[argparse.Namespace, Settings, Store], int]
Handler = Callable[[argparse.Namespace, Mapping[str, str]], int]


def _told(action: Action) -> Handler:
    """A handler with the settings' ledger, that tells the ledger's refusals."""

    def handler(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
        settings = load(list(app.SERVICES), environ, together=False)
        store = app.open_store(settings)  # nothing is sent before something is asked
        try:
            return action(args, settings, store)
        except LedgerError as error:
            print(f"quantum-alloc: {error}", file=sys.stderr)
            return NOT_SOUND if isinstance(error, Unsound) else USAGE
        finally:
            store.close()

    return handler


def _append(args: argparse.Namespace, settings: Settings, store: Store) -> int:
    entry = record(
        settings,
        store,
        args.operation,
        args.by,
        args.objective,
        summary=args.summary,
        risk_class=args.risk,
        approved_by=args.approved_by,
        blast_radius=args.blast_radius,
        outcome=args.outcome,
        rollback_of=args.rollback_of,
        services_status=args.services_status,
        notes=args.notes,
    )
    print(f"{entry.id} is in the ledger: {args.operation}, hash {entry.hash}")
    return DONE


def _show(args: argparse.Namespace, settings: Settings, store: Store) -> int:
    ledger = OpsLedger(settings.common.state_directory, store, settings.keys)
    entries = ledger.entries()
    last = entries[-args.last :] if args.last else entries
    if args.format == "json":
        print(show.as_json([entry.values for entry in last]))
    else:
        rows = [_row(entry, wide=args.wide) for entry in last]
        if not rows:
            print(NO_ENTRY)
        else:
            print(show.table(rows) if args.wide else show.fitted(rows, NARROW, below=("summary",)))
    if ledger.verify_files():
        told = "the ledger is not sound, and entries may be missing here: `quantum-alloc ledger verify` tells what"
        print(f"quantum-alloc: {told}", file=sys.stderr)
        return NOT_SOUND
    return DONE


def _row(entry: Entry, *, wide: bool) -> dict[str, str]:
    values, summary = entry.values, str(entry.values["changes_summary"])
    short = summary if wide or len(summary) <= SHOWN_CHARACTERS else summary[:SHOWN_CHARACTERS] + "..."
    return {
        "id": entry.id,
        "finished": entry.finished,
        "operation": values["operation_name"],
        "by": values["requested_by"],
        "approved": values["approved_by"],
        "risk": values["risk_class"],
        "outcome": values["outcome"],
        "summary": short,
    }


def _verify(args: argparse.Namespace, settings: Settings, store: Store) -> int:
    ledger = OpsLedger(settings.common.state_directory, store, settings.keys)
    unasked = ""
    try:
        findings = ledger.verify()
    except StoreError as error:
        findings, unasked = ledger.verify_files(), str(error)
    held = len(ledger.entries())
    if args.format == "json":
        sound = None if unasked and not findings else not findings
        print(show.as_json({"sound": sound, "redis_asked": not unasked, "entries": held, "findings": findings}))
    elif findings:
        print(*findings, sep="\n")
    else:
        what = "files of the ledger agree" if unasked else "ledger is sound"
        print(f"The {what}: {held} {'entry' if held == 1 else 'entries'}.")
    if unasked:
        print(f"quantum-alloc: Redis could not be asked, the files alone were looked at: {unasked}", file=sys.stderr)
    if findings:
        return NOT_SOUND
    return NO_REDIS if unasked else DONE
