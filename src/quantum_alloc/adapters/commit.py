"""Answers to keys and arguments of the commit script, and its result back to what became of each.

The order in which arguments are written here is the order in which ``commit.lua`` takes them. Every key that the script
touches is named in KEYS. Source: the project's governor, section 2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import chain

from quantum_alloc.adapters.effects import Reply
from quantum_alloc.adapters.governor_wire import fence_field
from quantum_alloc.adapters.keys import LIVE, Keys
from quantum_alloc.adapters.store import StoreError
from quantum_alloc.core.governor import released
from quantum_alloc.core.governor_inputs import NOTHING_READ, Snapshot, Totals
from quantum_alloc.core.governor_params import GovernorParams
from quantum_alloc.core.limits import DAY_S, HOUR_S, forgotten
from quantum_alloc.core.reading import Fresh

SNAPSHOT_AGE_MAX_US = 800_000
BLOCK_TTL_S = 3600
BLOCK_TOMBSTONE_S = 86_400
FORGOTTEN_AT_ONCE = 1000
"""Entries that one commit takes away; the next one goes on."""
Event = Mapping[str, str]


class Status(StrEnum):
    """What became of one plan of a batch; the last two never reached the script."""

    OK = "ok"
    GONE = "gone"
    MOVED = "moved"
    TAKEN = "taken"
    TYPE = "type"
    FAILED = "failed"
    WAITS = "waits"


@dataclass(frozen=True, slots=True)
class Basis:
    """What the answers were decided on, as the script compares it.

    Attributes:
        snapshot: as decided on.
        snapshot_us: the server's time in it, without the watermark.
        kill: the kill key's bytes behind a +, ``-`` where absent, ``!`` for another type.
        latch: state and time of the latch behind a +, ``-`` where absent, ``!`` for another type.
        epoch: the epoch key.
        book_revision: as text.
        connection: the store's number of connections then.
        is_stable: whether the watermark may rise.
        simulated_us: the clock that stands for the server's; None for the server's own.
        consumer: the governor's name.
        fence: of its last verification; empty where the book cannot be written.
    """

    snapshot: Snapshot
    snapshot_us: int
    kill: str | bytes
    latch: str | bytes
    epoch: str
    book_revision: str
    connection: int
    is_stable: bool = True
    simulated_us: int | None = None
    consumer: str = ""
    fence: str = ""


@dataclass(frozen=True, slots=True)
class Item:
    """One answer, as the script writes it.

    Attributes:
        entry: id of the plan's stream entry.
        plan_id: empty where it has no keys.
        symbol: whose ledger it was decided on; empty for none.
        tombstone: JSON without its last brace; empty for none.
        tombstone_ttl_s: life of the tombstone.
        permit: JSON; empty for none.
        issued: ``open USD QTY`` or ``close USD QTY``, for the ledger.
        usd: notional of an open; None for a close.
        valid_until_us: when the plan is too old.
        block: JSON; empty for none.
        disarms: whether it sets the kill switch to reduce.
        on_book: whether opens before it in the batch count in it.
        dead: fields of a dead letter; empty for none.
        events: fields of each.
    """

    entry: str
    plan_id: str = ""
    symbol: str = ""
    tombstone: str = ""
    tombstone_ttl_s: int = BLOCK_TOMBSTONE_S
    permit: str = ""
    issued: str = ""
    usd: float | None = None
    valid_until_us: int = 0
    block: str = ""
    disarms: bool = False
    on_book: bool = False
    dead: Mapping[str, str] = field(default_factory=dict)
    events: tuple[Event, ...] = ()


@dataclass(frozen=True, slots=True)
class Committed:
    """What the script answered.

    Attributes:
        refused: empty, or why nothing was written: kill, latch, epoch, old.
        stamp_us: the time of everything that was written.
        statuses: one an item.
    """

    refused: str
    stamp_us: int = 0
    statuses: tuple[Status, ...] = ()


class _Writer:
    """Arguments and keys, each key once."""

    def __init__(self, first: Sequence[str]) -> None:
        self.keys = {key: i for i, key in enumerate(first, 1)}
        self.args: list[str | bytes | int] = []

    def key(self, name: str) -> int:
        return self.keys.setdefault(name, len(self.keys) + 1)

    def list(self, values: Sequence[str]) -> None:
        self.args.append(len(values))
        self.args.extend(values)


def call(
    items: Sequence[Item],
    basis: Basis,
    params: GovernorParams,
    *,
    group: str,
    plans: str,
    events: str,
    maxlen: int,
    position: str = "",
    keys: Keys = LIVE,
) -> tuple[list[str], list[str | bytes | int]]:
    """Keys and arguments of the script.

    Args:
        items: in the order of the stream.
        basis: what they were decided on.
        params: the numbers of the governor.
        group: the consumer group.
        plans: stream of plans.
        events: stream of events.
        maxlen: about how many entries streams keep.
        position: greatest entry id that is answered after this; empty to leave it.
        keys: the names.
    """
    dead = keys.stream("apply.plan.deadletter")
    w = _Writer((keys.kill, keys.latch, keys.epoch, keys.book, events, plans, dead))
    s = basis.snapshot
    simulated = "" if basis.simulated_us is None else basis.simulated_us
    ledger_ttl_s = 2 * DAY_S + params.symbol_cooldown_s
    w.args += [group, basis.kill, basis.latch, basis.epoch, basis.snapshot_us, SNAPSHOT_AGE_MAX_US, simulated]
    w.args += [int(basis.is_stable), maxlen, position, ledger_ttl_s, fence_field(basis.consumer), basis.fence]
    totals = s.totals.value if isinstance(s.totals, Fresh) else Totals(0.0, 0)
    w.args += [basis.book_revision, repr(params.max_total_notional_usd), params.max_open_positions]
    w.args += [repr(totals.notional_usd), totals.count]
    w.list([name for name, of in s.symbols.items() if isinstance(of.position, Fresh) and of.position.value.qty != 0.0])
    w.list(released(s))
    places = {name: i for i, name in enumerate(dict.fromkeys(i.symbol for i in items if i.symbol), 1)}
    w.args.append(len(places))
    for name in places:
        ledger = s.symbols.get(name, NOTHING_READ).ledger
        gone = () if ledger is None else forgotten(ledger, s.now_us, max(HOUR_S, params.symbol_cooldown_s))
        revision = "" if ledger is None else ledger.revision
        w.args += [name, w.key(keys.ledger(name)), w.key(keys.last_exec(name)), revision]
        w.list(gone[:FORGOTTEN_AT_ONCE])
    w.args.append(len(items))
    for item in items:
        one = _item(w, item, places.get(item.symbol, 0), params, keys)
        w.args.append(len(one))
        w.args += one
    return list(w.keys), w.args


def _item(w: _Writer, item: Item, place: int, params: GovernorParams, keys: Keys) -> list[str | bytes | int]:
    kind = "P" if item.permit else "B" if item.tombstone else "E"
    out: list[str | bytes | int] = [kind, item.entry, item.plan_id, place]
    if item.tombstone:
        out += [w.key(keys.tombstone(item.plan_id)), item.tombstone, item.tombstone_ttl_s * 1000]
    if kind == "B":
        out += [int(item.disarms), int(item.on_book), w.key(keys.block(item.plan_id)), item.block, BLOCK_TTL_S]
    if kind == "P":
        is_open = item.usd is not None
        usd = repr(item.usd) if item.usd is not None else "0"
        out += [w.key(keys.permit(item.plan_id)), item.permit, params.permit_ttl_s * 1000, item.issued]
        out += [int(is_open), usd, item.valid_until_us]
    out += [2 * len(item.dead), *chain.from_iterable(item.dead.items()), len(item.events)]
    for fields in item.events:
        out += [2 * len(fields), *chain.from_iterable(fields.items())]
    return out


def committed(reply: Reply, shown: str) -> Committed:
    """What the script answered.

    Args:
        reply: of the script.
        shown: the server, for messages.

    Raises:
        StoreError: a stream holds another type, or the answer is none.
    """
    words = [w.decode("utf-8", "replace") for w in reply if isinstance(w, bytes)] if isinstance(reply, list) else []
    if words[:1] == ["type"]:
        raise StoreError("other", f"{shown}: {words[1]} is no stream: delete it, or name another one")
    if words[:1] != ["ok"]:
        if words and words[0] in ("kill", "latch", "epoch", "old"):
            return Committed(words[0])
        raise StoreError("other", f"{shown}: the commit script answered something else")
    return Committed("", int(words[1]), tuple(Status(w) for w in words[2:]))
