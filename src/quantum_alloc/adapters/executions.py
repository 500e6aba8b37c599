"""Entries of the execution stream: bytes to executions, or the one reason why an entry is set aside.

    flat      symbol, a time, pnl_usd (else realized_pnl, else pnl; absent for an open), regime, cluster, signal
    nested    one field ``payload``: a JSON object with those names; a time inside counts before one beside it, and
              other fields beside it are ignored

An entry counts as a whole: where the field that is chosen is malformed the entry is, and no other spelling is tried
in its place. Labels only name buckets: one that cannot be used is UNKNOWN. An entry without any time uses that of its
stream id, but never a later one than the reader's clock. ``null`` in JSON is the same as absent. Decoding is total.
Source: the project's contract, "Executions".
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from quantum_alloc.adapters import codec
from quantum_alloc.adapters.effects import Reply
from quantum_alloc.adapters.wire import ENTRY_FIELDS_LIMIT, TIME_ALIASES, entry_fields
from quantum_alloc.core import Execution
from quantum_alloc.core.execution import UNKNOWN
from quantum_alloc.core.reading import FUTURE_TOLERANCE_S, age_s

PNL_NAMES = ("pnl_usd", "realized_pnl", "pnl")
PAYLOAD = "payload"
START = "0-0"
"""The position before every entry."""
_ID = re.compile(rb"([0-9]{1,20})-([0-9]{1,20})")
_ID_LIMIT = 2**64


class Flaw(StrEnum):
    """Why an entry is set aside; a closed set, safe as a metric label."""

    ENTRY = "entry"
    PAYLOAD = "payload"
    SYMBOL = "symbol"
    PNL = "pnl"
    TIME = "time"
    FUTURE = "future_ts"


@dataclass(frozen=True, slots=True)
class Rejected:
    """An entry that no rule may see.

    Attributes:
        flaw: the first that was found.
        detail: what was there, escaped and short, for people.
    """

    flaw: Flaw
    detail: str = ""


class _Literal(str):
    """A number as it stands in the JSON text, so that its bytes are judged and not a float made of them."""

    __slots__ = ()


def entry_id(raw: bytes) -> tuple[int, int] | None:
    """Milliseconds and sequence of a stream id; None when it is none.

    Args:
        raw: its bytes.

    >>> entry_id(b"1769577450500-3"), entry_id(b"soon")
    ((1769577450500, 3), None)
    """
    found = _ID.fullmatch(raw)
    if found is None:
        return None
    ms, seq = int(found[1]), int(found[2])
    return (ms, seq) if ms < _ID_LIMIT and seq < _ID_LIMIT else None


def _raw(value: Any) -> bytes | None:
    """The bytes of a JSON value that a field may hold; a value of another kind is bytes that nothing accepts."""
    if value is None:
        return None
    return value.encode("utf-8", "surrogatepass") if isinstance(value, str) else b""


def nested(payload: bytes) -> dict[str, bytes] | None:
    """The fields of a JSON object; None when it is not one.

    Args:
        payload: at most 4 kB.

    >>> nested(b'{"symbol": "BTCUSDT", "pnl_usd": -1.50, "regime": null}')
    {'symbol': b'BTCUSDT', 'pnl_usd': b'-1.50'}
    """
    if len(payload) > codec.VALUE_LIMIT_BYTES:
        return None
    try:
        data = json.loads(payload.decode(), parse_int=_Literal, parse_float=_Literal, parse_constant=_Literal)
    except (ValueError, RecursionError):
        return None
    if not isinstance(data, dict) or len(data) > ENTRY_FIELDS_LIMIT:
        return None
    return {name: raw for name, value in data.items() if (raw := _raw(value)) is not None}


def _label(raw: Mapping[str, bytes], name: str) -> str:
    return codec.word(raw.get(name, b"")) or UNKNOWN


def _fields(entry: Reply) -> dict[str, bytes] | Rejected:
    beside = entry_fields(entry)
    if beside is None:
        return Rejected(Flaw.ENTRY)
    if PAYLOAD not in beside:
        return beside
    inside = nested(beside[PAYLOAD])
    if inside is None:
        return Rejected(Flaw.PAYLOAD, codec.printable(beside[PAYLOAD]))
    timed = any(name in inside for name in TIME_ALIASES)
    times = {} if timed else {name: beside[name] for name in TIME_ALIASES if name in beside}
    return {**times, **inside}


def fields_of(entry: Reply) -> dict[str, bytes]:
    """The fields of an entry, flat or nested; none where it cannot be read.

    Args:
        entry: [id, [field, value, ...]].

    >>> fields_of([b"1-0", [b"payload", b'{"symbol": "BTCUSDT"}']]), fields_of([b"1-0", [b"payload", b"?"]])
    ({'symbol': b'BTCUSDT'}, {})
    """
    found = _fields(entry)
    return {} if isinstance(found, Rejected) else found


def decode(entry: Reply, now: float) -> Execution | Rejected:
    """One entry as an execution.

    Args:
        entry: [id, [field, value, ...]].
        now: the reader's clock, unix seconds.

    >>> decode([b"1769577450500-0", [b"symbol", b"BTCUSDT", b"pnl", b"-3.5"]], 1769577451.0)
    Execution(symbol='BTCUSDT', ts=1769577450.5, pnl_usd=-3.5, regime='UNKNOWN', cluster='UNKNOWN', signal='UNKNOWN')
    """
    raw = _fields(entry)
    if isinstance(raw, Rejected):
        return raw
    symbol = codec.symbol(raw.get("symbol", b""))
    if symbol is None:
        return Rejected(Flaw.SYMBOL, codec.printable(raw.get("symbol", b"absent")))
    pnl_name = next((n for n in PNL_NAMES if n in raw), None)
    pnl = None if pnl_name is None else codec.number(raw[pnl_name])
    if pnl_name is not None and pnl is None:
        return Rejected(Flaw.PNL, f"{pnl_name} {codec.printable(raw[pnl_name])}")
    ts = _time(raw, entry[0] if isinstance(entry, list) else None, now)
    if ts is None:
        return Rejected(Flaw.TIME)
    if age_s(ts, now) < -FUTURE_TOLERANCE_S:
        return Rejected(Flaw.FUTURE, f"{math.floor(ts)} at {math.floor(now)}")
    return Execution(symbol, ts, pnl, _label(raw, "regime"), _label(raw, "cluster"), _label(raw, "signal"))


def _time(raw: Mapping[str, bytes], given_id: Reply, now: float) -> float | None:
    name = next((n for n in TIME_ALIASES if n in raw), None)
    if name is not None:
        return codec.unix_seconds(raw[name])
    found = entry_id(given_id) if isinstance(given_id, bytes) else None
    return None if found is None else min(found[0] / 1e3, now)


def dead_letter(entry: Reply, rejected: Rejected, service: str, now: float) -> dict[str, str]:
    """What is kept of an entry that was set aside.

    Args:
        entry: [id, [field, value, ...]].
        rejected: why.
        service: who set it aside.
        now: unix seconds.
    """
    given = entry[0] if isinstance(entry, list) and entry else b""
    fields = entry[1] if isinstance(entry, list) and len(entry) == 2 and isinstance(entry[1], list) else []
    shown, room = [], codec.VALUE_LIMIT_BYTES // 2
    for part in fields:
        if room <= 0:
            shown.append("...")
            break
        text = codec.printable(part, room) if isinstance(part, bytes) else ""
        shown.append(text[:room])
        room -= len(shown[-1])
    whole = str(math.floor(now))
    return {
        "id": codec.printable(given) if isinstance(given, bytes) else "",
        "service": service,
        "reason": rejected.flaw.value,
        "detail": rejected.detail,
        "entry": json.dumps(shown, separators=(",", ":")),
        "timestamp": whole,
        "ts": whole,
    }
