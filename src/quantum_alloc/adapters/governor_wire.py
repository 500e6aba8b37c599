"""The governor's own keys and its inputs: bytes to values.

    quantum:kill                    1 true on halt -> HALT; reduce -> REDUCE_ONLY; absent "" 0 false off -> OFF;
                                    anything else, or a key of another type -> HALT
    quantum:governor:ledger:SYMBOL  :rev, and a field a permit: AT_US open|close USD QTY
    quantum:governor:book           :rev :watermark :pos :hold :fence:NAME, and a field an open:
                                    SYMBOL USD AT_US UNTIL_US CONSUMED_US (0 while nobody has consumed it)
    quantum:governor:plan:PLAN      JSON {verdict, reason, content, decision_id, ...}

Fields of our own begin with a colon, which no plan id has. A ledger, a book or a tombstone that cannot be read as a
whole is unreadable: the limits that need it then block. Source: the project's contract and governor.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quantum_alloc.adapters import codec, wire
from quantum_alloc.adapters.effects import Command, Reply
from quantum_alloc.adapters.wire import Fields, Schema
from quantum_alloc.core.governor_inputs import Answer, Holding, Kill, Limit, Totals
from quantum_alloc.core.limits import US, Issued, Ledger, Outstanding
from quantum_alloc.core.plan import Movement
from quantum_alloc.core.reading import Reading, Reason, Unusable, age_s, grade, missing

OFF = frozenset({b"", b"0", b"false", b"off"})
HALT = frozenset({b"1", b"true", b"on", b"halt"})
REDUCE = b"reduce"
REV, WATERMARK, POS, HOLD = ":rev", ":watermark", ":pos", ":hold"
VIOLATION_YOUNG_S = 30
STATE_LIMIT = 20_000
"""Fields of a ledger or a book; more cannot come of any limits that settings allow."""
AMOUNT_MAX = codec.USD_LIMIT * codec.USD_LIMIT * 10.0
"""No product of a quantity and a price that we let in is greater."""
VIOLATIONS_AT_ONCE = 1000
NO_VIOLATION: Reading[float] = missing()


def fence_field(consumer: str) -> str:
    """The book's field of a governor's fence.

    Args:
        consumer: its name.
    """
    return f":fence:{consumer}"


def _price(f: Fields, name: str) -> float | None:
    """A price above 0 that may be absent; 0 is none."""
    return (f.number(name, 0.0) or None) if name in f.raw else None


def _market_price(f: Fields) -> float:
    price = f.number("price", 0.0)
    if price == 0.0:
        f.bad = f.bad or "price"
    return price


def _mode(f: Fields) -> str:
    return "enforce" if f.raw.get("mode") == b"enforce" else "shadow"


def _limit(name: str) -> Any:
    def build(f: Fields) -> Limit:
        told = f.raw.get("confidence", b"")  # shown in an event, looked at by no gate
        return Limit(f.number(name, 0.0), _mode(f), codec.number(told, 0.0, 1.0))

    return build


def _totals(f: Fields) -> Totals:
    count = f.number("positions_count", 0.0, 1e9)
    if not count.is_integer():
        f.bad = f.bad or "positions_count"
    return Totals(f.number("positions_notional_usd", 0.0), int(count))


POSITION = Schema(
    "position",
    "ts_epoch",
    ("position_amt", "mark_price"),
    lambda f: Holding(f.number("position_amt"), _price(f, "mark_price")),
)
MARKET = Schema("market", "timestamp", ("price",), _market_price)
TARGET = Schema("target", "timestamp", ("target_usd", "mode", "confidence"), _limit("target_usd"))
BUDGET = Schema("budget", "timestamp", ("budget_usd", "mode"), _limit("budget_usd"))
TOTALS = Schema("portfolio", "timestamp", ("positions_notional_usd", "positions_count"), _totals)


def kill_state(reply: Reply) -> Kill:
    """What the kill key says.

    Args:
        reply: what GET was answered with.

    >>> from quantum_alloc.adapters.effects import Failed
    >>> kill_state(None).value, kill_state(b"reduce").value, kill_state(b"OFF").value, kill_state(Failed("X")).value
    ('OFF', 'REDUCE_ONLY', 'HALT', 'HALT')
    """
    if reply is None or (isinstance(reply, bytes) and reply in OFF):
        return Kill.OFF
    return Kill.REDUCE_ONLY if reply == REDUCE else Kill.HALT


def is_latched(reply: Reply) -> bool:
    """Whether the latch holds: any hash, or a key of another type.

    Args:
        reply: what HMGET of its fields was answered with.

    >>> from quantum_alloc.adapters.effects import Failed
    >>> is_latched([None, None]), is_latched([b"HALT", None]), is_latched(Failed("WRONGTYPE"))
    (False, True, True)
    """
    return not wire.absent(reply)


def seen_kill(reply: Reply) -> str | bytes:
    """The kill key as scripts compare it: its bytes behind a +, ``-`` where absent, ``!`` for another type.

    Args:
        reply: what GET was answered with.
    """
    if reply is None:
        return "-"
    return b"+" + reply if isinstance(reply, bytes) else "!"


def seen_latch(reply: Reply) -> str | bytes:
    """The latch as scripts compare it: state and time behind a +, ``-`` where absent, ``!`` for another type.

    Args:
        reply: what HMGET of ``state`` and ``since`` was answered with.
    """
    if not isinstance(reply, list):
        return "!"
    state, since = reply[0], reply[1]
    if state is None and since is None:
        return "-"
    return b"+" + (state if isinstance(state, bytes) else b"") + b"|" + (since if isinstance(since, bytes) else b"")


def time_us(reply: Reply) -> int | None:
    """TIME's answer as microseconds; None where it is none.

    Args:
        reply: of the command.

    >>> time_us([b"1769577492", b"5"])
    1769577492000005
    """
    if not isinstance(reply, list) or len(reply) != 2:
        return None
    s, us = reply
    return int(s) * US + int(us) if isinstance(s, bytes) and isinstance(us, bytes) else None


def _pairs(reply: Reply) -> Mapping[str, bytes] | None:
    """The fields of a hash of ours: our own names, and plan ids; None where anything else is in it."""
    if not isinstance(reply, list) or len(reply) > 2 * STATE_LIMIT:
        return None
    texts = [part for part in reply if isinstance(part, bytes)]
    if len(texts) != len(reply) or len(texts) % 2:
        return None
    names = [name.decode("utf-8", "replace") if name[:1] == b":" else codec.word(name) for name in texts[::2]]
    known = [name for name in names if name is not None]
    return dict(zip(known, texts[1::2], strict=True)) if len(known) == len(names) else None


def _whole(raw: bytes) -> int:
    if not raw.isdigit() or len(raw) > 18 or (raw[:1] == b"0" and raw != b"0"):
        raise ValueError("not a whole number")
    return int(raw)


def _amount(raw: bytes) -> float:
    value = codec.number(raw, 0.0, AMOUNT_MAX)
    if value is None:
        raise ValueError("not an amount")
    return value


def ledger(reply: Reply) -> Ledger | None:
    """A symbol's permits; None where they cannot be read.

    Args:
        reply: what HGETALL was answered with.

    >>> ledger([b":rev", b"1", b"p1", b"1000000 open 180.0 0.0"]).issued["p1"].usd
    180.0
    """
    fields = _pairs(reply)
    if fields is None:
        return None
    issued = {}
    try:
        for name, raw in fields.items():
            if not name.startswith(":"):
                at, movement, usd, qty = raw.split(b" ")
                issued[name] = Issued(_whole(at), Movement(movement.decode("ascii")), _amount(usd), _amount(qty))
        return Ledger(str(_whole(fields.get(REV, b"0"))), issued)
    except ValueError:
        return None


@dataclass(frozen=True, slots=True)
class Book:
    """The book as read.

    Attributes:
        revision: as text.
        watermark_us: greatest time that was ever decided at.
        pos: greatest id of a plan entry that was answered.
        outstanding: None where they cannot be read.
        hold_until_us: until when no open is permitted, for what the server may have forgotten.
    """

    revision: str = ""
    watermark_us: int = 0
    pos: str = ""
    outstanding: tuple[Outstanding, ...] | None = None
    hold_until_us: int = 0


def book(reply: Reply) -> Book:
    """The book.

    Args:
        reply: what HGETALL was answered with.

    >>> book([b":rev", b"2", b"p1", b"BTCUSDT 180.0 5 60000005 0"]).outstanding[0].until_us
    60000005
    """
    fields = _pairs(reply)
    if fields is None:
        return Book()
    found = []
    try:
        revision, watermark = str(_whole(fields.get(REV, b"0"))), _whole(fields.get(WATERMARK, b"0"))
        hold = _whole(fields.get(HOLD, b"0"))
        for name, raw in fields.items():
            if not name.startswith(":"):
                symbol, usd, at, until, consumed = raw.split(b" ")
                known = codec.symbol(symbol)
                if known is None:
                    raise ValueError("not a symbol")
                taken = _whole(consumed)
                found.append(Outstanding(name, known, _amount(usd), _whole(at), _whole(until), taken or None))
    except ValueError:
        return Book()
    pos = fields.get(POS, b"").decode("ascii", "replace")
    return Book(revision, watermark, pos, tuple(sorted(found, key=lambda o: (o.at_us, o.plan_id))), hold)


def answer(reply: Reply) -> Answer | None:
    """The first answer to a plan id; None where there is none, without a verdict where it cannot be read.

    Args:
        reply: what GET was answered with.

    >>> answer(None), answer(b"?").verdict
    (None, '')
    """
    if reply is None:
        return None
    unreadable = Answer("")
    if not isinstance(reply, bytes):
        return unreadable
    try:
        told = json.loads(reply)
        texts = [told[name] for name in ("verdict", "reason", "content", "decision_id")]
        "".join(texts).encode()  # half a surrogate is valid JSON, and no text that an event could carry
    except (ValueError, KeyError, TypeError, RecursionError):
        return unreadable
    known = all(isinstance(t, str) for t in texts) and texts[0] in ("PERMIT", "BLOCK")
    return Answer(*texts) if known else unreadable


def violations_query(stream: str, since_ms: int | None) -> Command:
    """The command that reads the young violations of all symbols, newest first.

    Args:
        stream: of violations.
        since_ms: milliseconds of the oldest entry that matters; None for the newest thousand.
    """
    return ("XREVRANGE", stream, "+", "-" if since_ms is None else since_ms, "COUNT", VIOLATIONS_AT_ONCE)


def violations(reply: Reply, now: float, symbols: Sequence[str]) -> Mapping[str, Reading[float]]:
    """The greatest notional that a young violation tells of, by symbol; an entry that cannot be read is passed over.

    Args:
        reply: what ``violations_query`` was answered with.
        now: unix seconds.
        symbols: those that matter.
    """
    wanted, found = set(symbols), dict[str, Reading[float]]()
    if not isinstance(reply, list):
        return {s: Unusable(Reason.STORE) for s in symbols}
    told: tuple[str, float, float] | None = None
    for entry in reply:
        told = _violation(wire.entry_fields(entry) or {})
        if told is None or told[0] not in wanted:
            continue
        symbol, usd, ts = told
        reading = grade(usd, ts, now, VIOLATION_YOUNG_S - 1)
        best = found.get(symbol)
        if best is None or _greater(reading, best):
            found[symbol] = reading
    absent = NO_VIOLATION
    is_whole = told is not None and age_s(told[2], now) >= VIOLATION_YOUNG_S  # the oldest is not young any more
    if len(reply) >= VIOLATIONS_AT_ONCE and not is_whole:  # there are more: what was not seen is not known
        absent = Unusable(Reason.STORE, detail="too many violations")
    return {s: found.get(s, absent) for s in symbols}


def _greater(one: Reading[float], other: Reading[float]) -> bool:
    if one.state != "ok" or one.value is None:
        return False
    return other.state != "ok" or other.value is None or one.value > other.value


def _violation(raw: Mapping[str, bytes]) -> tuple[str, float, float] | None:
    text = raw.get("json", b"")
    if len(text) > codec.VALUE_LIMIT_BYTES:
        return None
    try:
        told = json.loads(text, parse_int=str, parse_float=str, parse_constant=str)
        stamp = next((n for n in ("timestamp", *wire.TIME_ALIASES) if n in told), "timestamp")
        named = {n: str(told[n]).encode() for n in ("symbol", "position_notional", stamp)}
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    symbol, usd = codec.symbol(named["symbol"]), codec.number(named["position_notional"], 0.0)
    ts = codec.unix_seconds(named[stamp])
    return None if symbol is None or usd is None or ts is None else (symbol, usd, ts)
