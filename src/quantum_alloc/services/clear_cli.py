"""``quantum-alloc clear-targets``: take enforced targets away, for the way back from enforce to shadow.

A target that was written in enforce lives on for its expiry (``TARGET_TTL_SEC``, 300 s) after ``P29_MODE`` is shadow
again, and gate 0.5 goes on blocking by it; gate 0 takes it for a limit beside the budget. This deletes
``quantum:allocation:target:{S}`` of the named symbols, or of all that a SCAN finds, whatever type the key holds;
proposals and the shadow lane are never touched. It is written into the OPS ledger.

Nothing else that enforce has written outlives its mode with an effect of its own: a budget is written in both modes, so
that its mode is shadow within a cycle, and gate 0 looks at none older than 60 s; an attribution or an efficiency ages
out by itself, and neither blocks anything.

Exit codes: 0 done, or nothing there; 1 done, but not written down, or some were left out, or allocation still enforces
and writes them again; 2 a mistake in the command; 69 Redis does not answer, and what may be gone is written down as
PARTIAL; 78 a mistake in the settings.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from quantum_alloc.adapters import governor_wire as gw
from quantum_alloc.adapters import ops_ledger, wire
from quantum_alloc.adapters.effects import Command, Delete, in_groups
from quantum_alloc.adapters.keys import Keys
from quantum_alloc.adapters.ops_entry import LedgerError
from quantum_alloc.adapters.store import Store, StoreError
from quantum_alloc.adapters.universe import Universe
from quantum_alloc.core.governor_inputs import Limit
from quantum_alloc.core.limits import BUDGET_STALE_S, TARGET_STALE_S, US
from quantum_alloc.core.reading import Fresh, Reading
from quantum_alloc.services import app, ledger_cli, ops_cli, show, status
from quantum_alloc.services.options import AllocationOptions, Settings, load
from quantum_alloc.services.trial_cli import symbol

DONE, NOT_WHOLE = 0, 1
MOST_TARGETS = 100_000
AT_ONCE = 500
NOT_DONE = ops_ledger.NOT_DONE | {"unreachable"}
"""Failures after which nothing of a group is deleted for certain; after the others nobody knows."""
NAMED = 10
"""So many symbols are named to a person; all of them in JSON."""
NAMED_IN_LEDGER = 100
ENFORCE = "enforce"
NOT_REACHED = "not reached"
NOTHING = "There is no enforced target{}: nothing is deleted."
AGAIN = "set P29_MODE=shadow and restart it, then clear again"


@dataclass(frozen=True, slots=True)
class Found:
    """What stands in Redis before anything is deleted.

    Attributes:
        targets: symbols with a target, in sort order.
        absent: named symbols without one.
        other_type: type of each target that is no hash.
        youngest_s: age of the newest target in enforce, seconds; None where none can be read.
        by_budget: symbols that gate 0 limits by a fresh budget in enforce.
        left_out: symbols beyond the limit of one call.
    """

    targets: tuple[str, ...]
    absent: tuple[str, ...] = ()
    other_type: Mapping[str, str] = field(default_factory=dict)
    youngest_s: int | None = None
    by_budget: tuple[str, ...] = ()
    left_out: int = 0


def add_parser(commands: Any) -> None:
    """Add the command.

    Args:
        commands: the subparsers of ``quantum-alloc``.
    """
    about = "delete enforced targets, which live on for 300 s after P29_MODE is shadow again"
    clear = commands.add_parser(
        "clear-targets",
        help=about,
        description=f"{about}. Proposals and the shadow lane are not touched; budgets, attributions and efficiencies "
        "need no clearing, their effect ends by itself. Without a target gate 0.5 passes, and gate 0, where P28_MODE "
        "is enforce, limits a symbol to its budget alone. It is written into the OPS ledger.",
    )
    clear.add_argument("symbols", type=symbol, nargs="*", metavar="SYMBOL", help="only these (all)")
    clear.add_argument("--by", type=ops_cli.line, default=None, metavar="NAME", help="who (the user)")
    clear.add_argument("--why", type=ops_cli.line, default="not told", metavar="TEXT", help="the reason")
    clear.add_argument("--dry-run", action="store_true", help="say what would be deleted, and delete nothing")
    clear.add_argument("--format", choices=("table", "json"), default="table")
    clear.set_defaults(handler=_clear)


def find(store: Store, keys: Keys, named: Sequence[str]) -> Found:
    """The targets that there are.

    Args:
        store: where to look.
        keys: the live names.
        named: only these symbols; empty for all.

    Raises:
        StoreError: Redis does not answer, or not to SCAN.
    """
    names, left_out = tuple(sorted(set(named))), 0
    now_us = gw.time_us(store.read([("TIME",)])[0])
    if now_us is None:
        raise StoreError("other", "the server does not tell its time")
    if not names:
        universe = Universe(keys, (keys.target(""),), (), MOST_TARGETS)
        universe.whole = True
        symbols = universe.find(store, [0], now_us / US)  # as with an empty universe: by the scan alone
        if not symbols.complete:
            raise StoreError("other", "the server refuses SCAN: name the symbols")
        names, left_out = symbols.names, symbols.dropped
    commands: list[Command] = [("TYPE", keys.target(s)) for s in names]
    commands += [gw.TARGET.query(keys.target(s)) for s in names]
    commands += [gw.BUDGET.query(keys.budget(s)) for s in names]
    replies, n, now = store.read(commands), len(names), now_us / US
    kinds = {s: r.decode() for s, r in zip(names, replies[:n], strict=True) if isinstance(r, bytes) and r != b"none"}
    ages = []
    for reply in replies[n : 2 * n]:
        target = wire.decode(gw.TARGET, reply, now, TARGET_STALE_S)
        if _enforced(target) and target.age_s is not None:
            ages.append(target.age_s)
    budgets = {s: wire.decode(gw.BUDGET, r, now, BUDGET_STALE_S) for s, r in zip(names, replies[2 * n :], strict=True)}
    return Found(
        tuple(kinds),
        tuple(s for s in names if named and s not in kinds),
        {s: kind for s, kind in kinds.items() if kind != "hash"},
        min(ages, default=None),
        tuple(s for s in kinds if _enforced(budgets[s])),
        left_out,
    )


def _enforced(reading: Reading[Limit]) -> bool:
    return isinstance(reading, Fresh) and reading.value.mode == ENFORCE


class BrokeOff(StoreError):
    """Deleting broke off; the text says after how many.

    Attributes:
        done: symbols whose targets are deleted for certain.
        maybe: symbols whose targets may be deleted.
    """

    def __init__(self, error: StoreError, symbols: Sequence[str], done: int, maybe: int) -> None:
        """Say how many of the symbols, in order, are done for certain, and how many more may be."""
        told = f"{done} of {len(symbols)} targets are deleted for certain: give the command again"
        super().__init__(error.code, f"{error.detail}; {told}")
        self.done, self.maybe = tuple(symbols[:done]), tuple(symbols[done : done + maybe])


def delete(store: Store, keys: Keys, symbols: Sequence[str]) -> None:
    """Delete the targets of symbols.

    Args:
        store: where they are.
        keys: the live names.
        symbols: whose.

    Raises:
        BrokeOff: Redis refused, or its answer did not come.
    """
    groups = in_groups([[Delete(keys.target(s))] for s in symbols], AT_ONCE)
    for done, group in enumerate(groups):
        try:
            store.apply([group])
        except StoreError as error:
            raise BrokeOff(error, symbols, done * AT_ONCE, 0 if error.code in NOT_DONE else AT_ONCE) from None


def still_enforces(settings: Settings, found: Found) -> tuple[str, str]:
    """What allocation runs as, and a warning where it may write the targets again.

    Args:
        settings: they name its port and cadence.
        found: with the age of the newest target.
    """
    row, o = status.service(settings, "allocation"), settings.of(AllocationOptions)
    mode = row.get("mode")
    if isinstance(mode, str) and mode:
        if mode != ENFORCE:
            return mode, ""
        when = f"within {o.interval_s:g} s"
        return mode, f"the service allocation enforces on port {o.port}, and writes its targets again {when}: {AGAIN}"
    if found.youngest_s is None or found.youngest_s > 2 * o.interval_s + 1:
        return NOT_REACHED, ""
    seen = f"no service allocation answers on port {o.port} here, but the newest target was {found.youngest_s} s old"
    return NOT_REACHED, f"{seen}: if it still enforces on another machine it writes them again: {AGAIN}"


def _names(symbols: Sequence[str], most: int = NAMED) -> str:
    more = f" and {len(symbols) - most} more" if len(symbols) > most else ""
    return ", ".join(symbols[:most]) + more


def _text(found: Found, *, dry_run: bool) -> list[str]:
    if not found.targets:
        return [NOTHING.format(f" of {_names(found.absent)}" if found.absent else "")]
    n = len(found.targets)
    did = "Would delete" if dry_run else "Deleted"
    lines = [f"{did} {n} enforced {'target' if n == 1 else 'targets'}: {_names(found.targets)}."]
    if found.absent:
        lines.append(f"Without a target: {_names(found.absent)}.")
    if found.other_type:
        lines.append(f"Held another type than a hash: {_names([f'{s} ({t})' for s, t in found.other_type.items()])}.")
    if found.left_out and dry_run:
        lines.append(f"{found.left_out} more would be left out, for another call.")
    held = f"gate 0 (P28_MODE=enforce) limits {len(found.by_budget)} of them to the budget alone"
    free = "no budget of theirs is fresh and in enforce, so the hard gates alone limit them"
    by_budget = held if found.by_budget else free
    lines.append(f"Without a target gate 0.5 passes; {by_budget}.")
    return lines


def _clear(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    settings = load(list(app.SERVICES), environ, together=False)
    store, keys, by = app.open_store(settings), settings.keys, args.by or ops_cli.user()
    operation, unrecorded = None, ""
    try:
        found = find(store, keys, args.symbols)
        does = bool(found.targets) and not args.dry_run
        left_out = f"{found.left_out} more were left out" if found.left_out and does else ""
        if does:
            try:
                delete(store, keys, found.targets)
            except BrokeOff as error:
                raise _written_down(settings, store, error, len(found.targets), by, args.why) from None
        mode, warning = still_enforces(settings, found)
        if does:
            summary = f"{len(found.targets)} of {keys.target('{S}')} deleted: {_names(found.targets, NAMED_IN_LEDGER)}"
            summary += f"; {left_out}" if left_out else ""
            try:
                entry = ledger_cli.record(
                    settings, store, "clear_targets", by, args.why, summary=summary, notes=warning
                )
                operation = entry.id
            except (LedgerError, StoreError, OSError) as error:
                unrecorded = f"done, but the OPS ledger does not tell of it: {error}"
    finally:
        store.close()
    warnings = [text for text in (left_out and f"{left_out}: give the command again", warning, unrecorded) if text]
    if args.format == "json":
        told = {
            "dry_run": args.dry_run, "targets": found.targets, "count": len(found.targets), "absent": found.absent,
            "other_type": found.other_type, "left_out": found.left_out, "limited_by_budget": found.by_budget,
            "allocation": mode, "operation": operation, "warnings": warnings,
        }  # fmt: skip
        print(show.as_json(told))
    else:
        print(*_text(found, dry_run=args.dry_run), sep="\n")
        if operation:
            print(f"Written down as {operation}.")
    for text in warnings:
        print(f"quantum-alloc: {text}", file=sys.stderr)
    return NOT_WHOLE if does and warnings else DONE


def _written_down(settings: Settings, store: Store, error: BrokeOff, of: int, by: str, why: str) -> StoreError:
    """What to raise for a deletion that broke off, once what may be gone is in the ledger as far as that can be."""
    if not error.done and not error.maybe:
        return error
    gone = (*error.done, *error.maybe)
    maybe = f", {len(error.maybe)} more may be gone" if error.maybe else ""
    summary = f"{len(error.done)} of {of} targets at {settings.keys.target('{S}')} deleted{maybe}"
    try:
        entry = ledger_cli.record(
            settings, store, "clear_targets", by, why, outcome="PARTIAL", notes=str(error),
            summary=f"{summary}: {_names(gone, NAMED_IN_LEDGER)}",
        )  # fmt: skip
    except (LedgerError, StoreError, OSError) as trouble:
        way = "write it down with `quantum-alloc ledger append`"
        told = f"the OPS ledger does not tell of it ({trouble}): {way}"
    else:
        told = f"written down as {entry.id}"
    return StoreError(error.code, f"{error.detail}; {told}")
