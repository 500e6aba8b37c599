"""Everything that a run has put on record, read back from its streams as text: for checks, reports and notebooks.

Entries stand in the order of their streams. Source: the project's contract, section 3.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from quantum_alloc.adapters import wire
from quantum_alloc.adapters.effects import Failed
from quantum_alloc.adapters.keys import LIVE, STREAMS, Keys
from quantum_alloc.adapters.store import Store, StoreError

Entry = Mapping[str, str]
PAGE = 5_000


@dataclass(frozen=True, slots=True)
class Streams:
    """The streams' names.

    Attributes:
        portfolio: portfolio states.
        regimes: regimes.
        cycles: allocation cycles.
        decisions: allocation decisions.
        attributions: attributions.
        efficiencies: efficiency decisions.
        proposals: proposals.
        plans: plans.
        events: the governor's events, a PERMIT or BLOCK with its whole record.
        results: what the apply layer did with each permit.
        executions: fills.
        transfers: money paid in or out of the paper account.
    """

    portfolio: str
    regimes: str
    cycles: str
    decisions: str
    attributions: str
    efficiencies: str
    proposals: str
    plans: str
    events: str
    results: str
    executions: str
    transfers: str


def streams_of(keys: Keys = LIVE, **named: str) -> Streams:
    """The contract's names, where settings name no others.

    Args:
        keys: the names.
        named: by field, those that settings name otherwise.
    """
    own = {"portfolio": "portfolio_states"}
    default = {f.name: keys.stream(STREAMS[own.get(f.name, f.name)]) for f in fields(Streams)}
    return Streams(**{**default, **named})


@dataclass(frozen=True, slots=True)
class Records:
    """The entries of each stream, in order; see ``Streams`` for what each holds."""

    portfolio: tuple[Entry, ...] = ()
    regimes: tuple[Entry, ...] = ()
    cycles: tuple[Entry, ...] = ()
    decisions: tuple[Entry, ...] = ()
    attributions: tuple[Entry, ...] = ()
    efficiencies: tuple[Entry, ...] = ()
    proposals: tuple[Entry, ...] = ()
    plans: tuple[Entry, ...] = ()
    events: tuple[Entry, ...] = ()
    results: tuple[Entry, ...] = ()
    executions: tuple[Entry, ...] = ()
    transfers: tuple[Entry, ...] = ()


def read_stream(store: Store, stream: str) -> tuple[Entry, ...]:
    """All entries of a stream as text.

    Args:
        store: where it is.
        stream: its name; one that is not there is empty.

    Raises:
        StoreError: the store did not answer, or the key holds something else.
    """
    found: list[Entry] = []
    start = "-"
    while True:
        page = store.read([("XRANGE", stream, start, "+", "COUNT", PAGE)])[0]
        if isinstance(page, Failed) or not isinstance(page, list):
            raise StoreError("other", f"{stream} cannot be read as a stream")
        for entry in page:
            told = wire.entry_fields(entry) or {}
            found.append({name: text.decode("utf-8", "backslashreplace") for name, text in told.items()})
        if len(page) < PAGE:
            return tuple(found)
        last = page[-1]
        if isinstance(last, list) and isinstance(last[0], bytes):
            start = f"({last[0].decode('ascii')}"


def read_all(store: Store, streams: Streams) -> Records:
    """Every stream of a run.

    Args:
        store: where they are.
        streams: their names.

    Raises:
        StoreError: the store did not answer.
    """
    return Records(**{f.name: read_stream(store, getattr(streams, f.name)) for f in fields(Streams)})
