"""The apply layer's own state, and the entries and permits that it reads: bytes to values and back.

    quantum:apply:state     _version _rev                    of this layout; raised by every write
                            _of                              JSON, the streams that are followed
                            _events _results _fills          ids of the last entries that are in it
                            _transfers _events_seen          and how many events there had been, for counting gaps
                            _balance _paid_in _realised      USD: the wallet; what was paid in; PnL; fees
                            _fees
                            _counts                          JSON, see ``reconcile.Counts``
                            S:SYMBOL                         JSON [qty, entry, opened_us, next_open_us, last_fill_us,
                                                             [opens_us]]
                            P:PLAN                           JSON of a permit, see ``reconcile.Known``

A state that cannot be read as a whole stops the service: an account that is guessed at is worse than none. Decoding of
entries and permits is total: what is malformed is nothing. Source: the project's contract, and governor, section 4.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, TypeVar

from quantum_alloc.adapters import codec, executions
from quantum_alloc.adapters.effects import Failed, HashSet, Reply
from quantum_alloc.adapters.permits import SigningKey, verified
from quantum_alloc.adapters.wire import entry_fields
from quantum_alloc.core.account import Held
from quantum_alloc.core.apply import Terms
from quantum_alloc.core.execution import finite
from quantum_alloc.core.fields import compact, number
from quantum_alloc.core.limits import US
from quantum_alloc.core.plan import Side
from quantum_alloc.core.reconcile import Counts, Known, Reconciled, SeenFill, Stage

T = TypeVar("T")
VERSION = "1"
STREAMS = ("events", "results", "fills", "transfers")
"""The streams that are followed, in the order in which they are read."""
EVENTS_SEEN = "_events_seen"
AMOUNTS = ("balance", "paid_in", "realised", "fees")
FIELDS_LIMIT = 20_000
PERMIT_LIFE_S = 60
LIFE_SLACK_S = 1
"""A permit is decided up to this long before it is written."""
COOLDOWN_MAX_S = 86_400
UNKNOWN_QTY = codec.USD_LIMIT
"""Of a permit whose event does not tell how much it permits: no fill is above it."""


@dataclass(frozen=True, slots=True)
class Account:
    """The paper account and everything that is remembered with it.

    Attributes:
        revision: raised by every write.
        streams: names of those that are followed, in the order of ``STREAMS``.
        positions: stream -> id of its last entry that is in here.
        balance_usd: the wallet.
        paid_in_usd: at the opening and by transfers.
        realised_usd: PnL before fees.
        fees_usd: paid.
        held: by symbol.
        permits: what is known of permits.
        events_seen: how many entries the stream of events had ever had when it was last read to its end; None before.
    """

    revision: int = 0
    streams: tuple[str, ...] = ()
    positions: Mapping[str, str] = field(default_factory=dict)
    balance_usd: float = 0.0
    paid_in_usd: float = 0.0
    realised_usd: float = 0.0
    fees_usd: float = 0.0
    held: Mapping[str, Held] = field(default_factory=dict)
    permits: Reconciled = Reconciled()  # noqa: RUF009 - a frozen value
    events_seen: int | None = None


@dataclass(frozen=True, slots=True)
class Loaded:
    """What the state hash held.

    Attributes:
        account: None where there is none yet, or it cannot be read.
        trouble: empty, or why it cannot be read.
        texts: its fields as they stand.
    """

    account: Account | None = None
    trouble: str = ""
    texts: Mapping[str, str] = field(default_factory=dict)


def texts_of(account: Account) -> dict[str, str]:
    """Every field of the state hash.

    Args:
        account: to be kept.
    """
    a, c = account, account.permits.counts
    own = {
        "_version": VERSION,
        "_rev": str(a.revision),
        "_of": compact(a.streams),
        **{f"_{name}": a.positions[name] for name in STREAMS},
        "_balance": number(a.balance_usd),
        "_paid_in": number(a.paid_in_usd),
        "_realised": number(a.realised_usd),
        "_fees": number(a.fees_usd),
        **({} if a.events_seen is None else {EVENTS_SEEN: str(a.events_seen)}),
        "_counts": compact(dataclasses.astuple(c)),
    }
    held = {f"S:{s}": _held_text(h) for s, h in a.held.items()}
    return {**own, **held, **{f"P:{p}": _known_text(k) for p, k in a.permits.permits.items()}}


@lru_cache(maxsize=4096)
def _held_text(h: Held) -> str:
    return compact([h.qty, h.entry_price_usd, h.opened_us, h.next_open_us, h.last_fill_us, h.opens_us])


@lru_cache(maxsize=4096)
def _known_text(k: Known) -> str:
    amounts = (k.symbol, k.qty, k.until_us, k.stage.value, k.filled_qty)
    return compact([*amounts, k.ended_us, k.action, k.waited, k.number, k.is_own])


def saving(key: str, before: Mapping[str, str], account: Account) -> HashSet:
    """What makes the hash hold an account: the fields that changed.

    Args:
        key: the hash.
        before: its fields as they stand.
        account: to be kept.
    """
    after = texts_of(account)
    changed = {name: text for name, text in after.items() if before.get(name) != text}
    return HashSet(key, changed, delete=tuple(sorted(before.keys() - after.keys())))


def _int(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 10**18:
        raise ValueError("not a whole number")
    return value


def _truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("not true or false")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("not a text")
    value.encode()  # half a character is no text: no entry could carry it
    return value


@lru_cache(maxsize=4096)
def _held(text: str) -> Held:
    qty, entry, opened_us, next_open_us, last_us, opens_us = json.loads(text)
    opens = tuple(map(_int, opens_us))
    return Held(finite(qty), finite(entry), _int(opened_us), _int(next_open_us), _int(last_us), opens)


@lru_cache(maxsize=4096)
def _known(text: str) -> Known:
    symbol, qty, until_us, stage, filled, ended_us, action, waited, count, is_own = json.loads(text)
    return Known(
        _text(symbol), finite(qty), _int(until_us), Stage(stage), finite(filled), _int(ended_us), _text(action),
        _text(waited), _int(count), _truth(is_own),
    )  # fmt: skip


def _field(texts: Mapping[str, str], name: str, of: Callable[[str], T]) -> T:
    """One field's value.

    Raises:
        ValueError: it is absent or malformed, by its name.
    """
    try:
        return of(texts[name])
    except KeyError:
        raise ValueError(f"its {name} is absent") from None
    except (ValueError, TypeError, RecursionError):
        raise ValueError(f"its {codec.printable(name)} is malformed") from None


def _id(text: str) -> str:
    if executions.entry_id(text.encode()) is None:
        raise ValueError("not the id of a stream entry")
    return text


def _counts(text: str) -> Counts:
    names = [f.name for f in dataclasses.fields(Counts)]
    found = Counts(**dict(zip(names, map(_int, json.loads(text)), strict=True)))
    if found.outstanding < 0:
        raise ValueError("more ended than were issued")
    return found


def _names(text: str) -> tuple[str, ...]:
    told = json.loads(text)
    if not isinstance(told, list):
        raise ValueError("not a list")
    return tuple(map(_text, told))


def _account(texts: Mapping[str, str]) -> Account:
    if texts.get("_version") != VERSION:
        raise ValueError(f"its _version is {codec.printable(texts.get('_version', ''))!r}, not {VERSION}")

    def amount(name: str) -> float:
        return _field(texts, name, lambda text: finite(json.loads(text)))

    positions = {name: _field(texts, f"_{name}", _id) for name in STREAMS}
    own = {f"_{name}" for name in (*STREAMS, *AMOUNTS, "version", "rev", "of", "counts", "events_seen")}
    held: dict[str, Held] = {}
    permits: dict[str, Known] = {}
    for name in texts.keys() - own:
        symbol, plan_id = codec.symbol(name[2:].encode()), codec.word(name[2:].encode())
        if name.startswith("S:") and symbol is not None:
            held[symbol] = _field(texts, name, _held)
        elif name.startswith("P:") and plan_id is not None:
            permits[plan_id] = _field(texts, name, _known)
        elif name.startswith(("S:", "P:")):  # any other name is none of ours, and goes with the next write
            raise ValueError(f"its field {codec.printable(name)} is none of ours")
    in_order = dict(sorted(permits.items(), key=lambda pair: (pair[1].number, pair[0])))
    return Account(
        _field(texts, "_rev", lambda text: _int(json.loads(text))),
        _field(texts, "_of", _names),
        positions,
        amount("_balance"),
        amount("_paid_in"),
        amount("_realised"),
        amount("_fees"),
        dict(sorted(held.items())),
        Reconciled(in_order, _field(texts, "_counts", _counts)),
        _field(texts, EVENTS_SEEN, lambda text: _int(json.loads(text))) if EVENTS_SEEN in texts else None,
    )


def decode_state(reply: Reply) -> Loaded:
    """The state hash.

    Args:
        reply: what HGETALL was answered with.

    >>> decode_state([]), decode_state([b"_version", b"9"]).trouble
    (Loaded(account=None, trouble='', texts={}), "its _version is '9', not 1")
    """
    if not isinstance(reply, list):
        return Loaded(trouble=reply.code if isinstance(reply, Failed) else "no hash")
    if len(reply) > 2 * FIELDS_LIMIT:
        return Loaded(trouble=f"it has more than {FIELDS_LIMIT} fields")
    try:
        parts = [part.decode() for part in reply if isinstance(part, bytes)]
        texts = dict(zip(parts[::2], parts[1::2], strict=True))
        return Loaded(_account(texts), "", texts) if texts else Loaded()
    except UnicodeDecodeError:
        return Loaded(trouble="it holds what is no text")
    except ValueError as error:
        return Loaded(trouble=str(error))


def terms_of(raw: bytes, plan_id: str, symbol: str, keys: Sequence[SigningKey]) -> tuple[Terms, int] | None:
    """What a permit permits, and when it expires by its own word, microseconds; None where it cannot be trusted.

    Args:
        raw: as its key holds it.
        plan_id: that it must name.
        symbol: that it must name.
        keys: that may have signed it; none accepts a permit without a signature.
    """
    told = verified(raw, keys) if len(raw) <= codec.VALUE_LIMIT_BYTES else None
    try:
        return None if told is None else _terms(told, plan_id, symbol)
    except (ValueError, KeyError, TypeError, OverflowError):
        return None


def _terms(told: Mapping[str, Any], plan_id: str, symbol: str) -> tuple[Terms, int] | None:
    qty, usd = finite(told["computed_qty"]), finite(told["computed_notional"])
    factor, extra = float(_text(told["eff_factor"])), int(_text(told["extra_cooldown_sec"]))
    flags = (told["reduce_only"], told["dry_run"])
    side = Side(told["side"]) if told["side"] else None
    created_us = round(finite(told["created_at"]) * US)
    is_ours = (told["plan_id"], told["symbol"], told["decision"]) == (plan_id, symbol, "EXECUTE")
    is_well = all(isinstance(f, bool) for f in flags) and 0.0 < factor <= 1.0 and 0 <= extra <= COOLDOWN_MAX_S
    cooldown_s, burst, hour = map(_int, told["limits"])
    is_well = is_well and cooldown_s <= COOLDOWN_MAX_S
    if not (is_ours and is_well and 0.0 < qty <= codec.USD_LIMIT and usd >= 0.0):
        return None
    downsizes = told["eff_action"] == "DOWNSIZE" and told["eff_lane"] == "live"
    terms = Terms(
        qty, usd, side, flags[0], _text(told["apply_mode"]), flags[1], downsizes, factor, extra,
        _text(told["decision_id"]), (cooldown_s, burst, hour),
    )  # fmt: skip
    return terms, created_us + (PERMIT_LIFE_S + LIFE_SLACK_S) * US


def permit_event(entry: Reply) -> tuple[str, Known] | None:
    """A permit as an entry of the event stream tells of it; None for any other entry.

    Args:
        entry: [id, [field, value, ...]].
    """
    raw = entry_fields(entry) or {}
    if raw.get("event") != b"PERMIT":
        return None
    plan_id, symbol = codec.word(raw.get("plan_id", b"")), codec.symbol(raw.get("symbol", b""))
    issued = raw.get("issued_us", b"")
    if plan_id is None or symbol is None or not (issued.isdigit() and len(issued) <= 18):
        return None
    is_restored = raw.get("reason") == b"restored"  # its key was not put back: somebody may have consumed it
    told = codec.number(raw.get("computed_qty", b""), 0.0)
    qty = UNKNOWN_QTY if is_restored or told is None else told
    stage = Stage.REFUSED if is_restored else Stage.WAITING
    action = codec.word(raw.get("action", b"")) or ""
    return plan_id, Known(symbol, qty, int(issued) + PERMIT_LIFE_S * US, stage, action=action)


def consumed_by(entry: Reply) -> str | None:
    """The plan whose permit an entry of the result stream says is used up; None for any other entry.

    Args:
        entry: [id, [field, value, ...]].
    """
    raw = entry_fields(entry) or {}
    told = raw.get("consumed", raw.get("executed", b""))
    return codec.word(raw.get("plan_id", b"")) if told.lower() in (b"1", b"true") else None


def fill_of(entry: Reply) -> SeenFill | None:
    """A fill, as an entry of the execution stream tells of it; None for one that names no symbol, and so is no fill.

    Args:
        entry: [id, [field, value, ...]].
    """
    raw = executions.fields_of(entry)
    symbol = codec.symbol(raw.get("symbol", b""))
    if symbol is None:  # who follows the stream sets it aside as a dead letter
        return None
    qty = codec.number(raw.get("filled_qty", b""), 0.0)
    if qty is None:  # an execution all the same, and how much it was nobody permitted
        return SeenFill("", symbol, 0.0)
    return SeenFill(codec.word(raw.get("plan_id", b"")) or "", symbol, qty)


def ever_added(reply: Reply) -> int | None:
    """How many entries a stream has ever had; None where that is not known.

    Args:
        reply: what XINFO STREAM was answered with.

    >>> ever_added([b"length", 2, b"entries-added", 7]), ever_added(Failed("ERR"))
    (7, None)
    """
    if not isinstance(reply, list):
        return None
    told = {n: v for n, v in zip(reply[::2], reply[1::2], strict=False) if isinstance(n, bytes)}
    found = told.get(b"entries-added")
    return found if isinstance(found, int) else None


def transfer_usd(entry: Reply) -> float:
    """What an entry of the transfer stream pays in, USD; below 0 where it pays out, 0 where it cannot be read.

    Args:
        entry: [id, [field, value, ...]].
    """
    raw = entry_fields(entry) or {}
    return codec.number(raw.get("usd", b"")) or 0.0


def ids_of(entries: Sequence[Reply]) -> list[str]:
    """The ids of stream entries.

    Args:
        entries: of any stream.
    """
    named = (e[0] for e in entries if isinstance(e, list) and e)
    return [raw.decode("ascii") for raw in named if isinstance(raw, bytes) and executions.entry_id(raw)]
