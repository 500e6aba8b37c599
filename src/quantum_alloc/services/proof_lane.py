"""The cases that a proof works in lanes of its own, with the services' real code on the real server.

    CASES                                       id, group, meaning and code of each
    run_cases(settings, store, groups, id)      works those of some groups, and leaves no key behind

Every key of a proof begins with ``quantum:proof:ID:``; the connection refuses any other before it is sent, so nothing
of the live lane is read or written. Afterwards, also after an error, Ctrl-C or SIGTERM, every key is deleted. A proof
that is killed outright leaves keys that expire, and the next proof deletes them.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

from quantum_alloc.adapters.keys import Keys
from quantum_alloc.adapters.lane_store import LaneStore, all_of, found, lease, remove, sweep
from quantum_alloc.adapters.store import Store, StoreError
from quantum_alloc.services import (
    app,
    proof_cases_again,
    proof_cases_flow,
    proof_cases_gate,
    proof_cases_governor,
    proof_cases_proposer,
    proof_cases_worked,
)
from quantum_alloc.services.options import Settings
from quantum_alloc.services.proof import Result
from quantum_alloc.services.proof_bench import Bench
from quantum_alloc.services.proof_service import Trouble


@dataclass(frozen=True, slots=True)
class Case:
    """One check that is worked in lanes.

    Attributes:
        group: of checks.
        meaning: what it shows, one line.
        work: works it.
    """

    group: str
    meaning: str
    work: Callable[[Bench], list[Result]]


_P, _G, _T = proof_cases_proposer, proof_cases_governor, proof_cases_gate
_F, _W, _R = proof_cases_flow, proof_cases_worked, proof_cases_again
CASES: Mapping[str, Case] = {
    "allocation-shadow": Case(
        "allocation", "P2.9 in shadow writes its records and nothing that others act on", _F.allocation_shadow
    ),
    "allocation-enforce": Case(
        "allocation",
        "P2.9 in enforce decides as in shadow, and writes targets as the rule says, with an expiry",
        _W.allocation,
    ),
    "budget-modes": Case("allocation", "P2.8 writes the same budgets in both modes", _F.budget_modes),
    "allocation-restart": Case(
        "allocation", "a restart of P2.9 between two cycles changes nothing", _R.allocation_restart
    ),
    "allocation-twice": Case(
        "allocation", "the same inputs twice give the same budgets and targets", _R.allocation_twice
    ),
    "attribution-shadow": Case(
        "efficiency", "P3.0 in shadow writes its records and nothing that others act on", _F.attribution_shadow
    ),
    "attribution-enforce": Case(
        "efficiency",
        "P3.0 in enforce decides as in shadow, and writes attributions as the rule says, with an expiry",
        _W.attribution,
    ),
    "attribution-restart": Case(
        "efficiency", "a restart of P3.0 counts no execution twice and moves no state", _R.attribution_restart
    ),
    "efficiency-shadow": Case(
        "efficiency", "P3.1 in shadow writes its records and nothing that others act on", _F.efficiency_shadow
    ),
    "efficiency-enforce": Case(
        "efficiency",
        "P3.1 in enforce decides as in shadow, and writes efficiencies as the rule says, with an expiry",
        _W.efficiency,
    ),
    "efficiency-restart": Case(
        "efficiency", "a restart of P3.1 counts no execution twice and moves no state", _R.efficiency_restart
    ),
    "efficiency-twice": Case(
        "efficiency", "the same inputs twice give the same attributions and efficiencies", _R.efficiency_twice
    ),
    "proposer-high": Case("proposer", "a high efficiency raises the proposal as the rule says", _P.high),
    "proposer-low": Case("proposer", "a low efficiency lowers the proposal as the rule says", _P.low),
    "proposer-missing": Case("proposer", "without an efficiency the proposal is the target", _P.absent),
    "proposer-low-confidence": Case("proposer", "below the smallest confidence the proposal is the target", _P.unsure),
    "proposer-stale": Case("proposer", "beyond the greatest age the proposal is the target", _P.stale),
    "proposer-healthy": Case("proposer", "an ordinary efficiency counts up to its last second", _P.healthy),
    "proposer-restart": Case(
        "proposer", "a restart of the proposer between two cycles changes nothing", _R.proposer_restart
    ),
    "proposer-twice": Case("proposer", "the same inputs twice give the same proposals", _R.proposer_twice),
    "governor-low-efficiency": Case(
        "governor", "a low efficiency puts a smaller size and a pause on the permit", _G.low
    ),
    "governor-high-efficiency": Case("governor", "a high efficiency leaves the permit as it is", _G.high),
    "governor-missing": Case("governor", "without an efficiency the permit is as it is, and says why", _G.absent),
    "governor-low-confidence": Case(
        "governor", "below the smallest confidence the permit is as it is, and says why", _G.unsure
    ),
    "governor-metrics": Case("governor", "the counters move by exactly the permits and blocks made", _G.metrics),
    "governor-health": Case("governor", "its pages say that it is ready and well", _G.health),
    "gate-shadow": Case("governor", "gate 0.5 lets a plan pass a target in shadow", _T.shadow),
    "gate-enforce": Case("governor", "gate 0.5 blocks a plan beyond an enforced target, and tells why", _T.enforce),
    "gate-stale": Case("governor", "gate 0.5 lets a plan pass a target that is too old", _T.stale),
    "gate-missing": Case("governor", "gate 0.5 lets a plan pass where there is no target", _T.missing),
    "gate-close": Case("governor", "gate 0.5 never blocks a close", _T.close),
    "governor-restart": Case(
        "governor", "after a restart a repeated plan gets REPLAY, a pending one its permit, once", _R.governor_restart
    ),
    "governor-twice": Case("governor", "the same plans twice give the same permits and blocks", _R.governor_twice),
}
"""Every check that is worked in lanes, by its id."""


@contextmanager
def _quiet() -> Iterator[None]:
    """The lanes' services say nothing: what they do on purpose is no trouble of the installation."""
    log = logging.getLogger("quantum_alloc")
    handlers, passes_on = log.handlers[:], log.propagate
    log.handlers, log.propagate = [logging.NullHandler()], False
    try:
        yield
    finally:
        log.handlers, log.propagate = handlers, passes_on


def _end(number: int, _: object) -> None:
    raise SystemExit(128 + number)


@contextmanager
def _ending_in_order() -> Iterator[None]:
    """What would end the process on the spot ends it as Ctrl-C does; what is ignored (nohup) stays so."""
    is_main = threading.current_thread() is threading.main_thread()
    ours = [n for n in (signal.SIGTERM, signal.SIGHUP) if is_main and signal.getsignal(n) is signal.SIG_DFL]
    for number in ours:
        signal.signal(number, _end)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


def _worked(check: str, case: Case, bench: Bench) -> list[Result]:
    try:
        return case.work(bench)
    except (Trouble, StoreError) as error:
        return [Result(case.group, check, "the case itself", False, f"it could not be worked: {error}")]
    finally:
        bench.close()


def run_cases(settings: Settings, store: Store, groups: Sequence[str], proof_id: str) -> list[Result]:
    """Work the cases of some groups, and leave no key behind.

    Args:
        settings: of all services of the installation.
        store: a connection to its server, by which keys of proofs are deleted; the lanes have one of their own.
        groups: of checks.
        proof_id: letters, digits or . _ -, at most 64; no other proof that runs may have it.

    Returns:
        One result or more for each case, in the order of the table.

    Raises:
        StoreError: the server did not answer when the proof began, or when its keys were to be deleted.
        ValueError: the id is none.
    """
    keys = Keys(tag=settings.redis.hash_tag, proof=proof_id)
    lane_store = cast(LaneStore, app.open_store(settings, partial(LaneStore, keys.root)))
    out: list[Result] = []
    with _ending_in_order():
        try:
            sweep(store, settings.keys)
            lease(store, keys)
            with TemporaryDirectory(prefix="qa-proof-") as directory, _quiet():
                bench = Bench(settings, lane_store, proof_id, Path(directory))
                for check, case in CASES.items():
                    if case.group in groups:
                        out += _worked(check, case, bench)
        finally:
            lane_store.close()
            remove(store, found(store, all_of(keys)))
    return out
