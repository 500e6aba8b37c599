"""The contract's records: which fields are asked for, and how they become readings.

One table row a record: the time field that its writer uses, the fields that the rules need, and how they build a
value. ``decode`` is total: any reply gives a reading. A record counts as a whole, so one malformed field that a rule
uses makes the record malformed. Times are looked for under the writer's name first, then under the common aliases.
Source: the project's contract, "Time, numbers, names" and "Inputs and outputs".
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from quantum_alloc.adapters import codec
from quantum_alloc.adapters.effects import Command, Failed, Reply
from quantum_alloc.core import (
    AllocationTarget,
    Attribution,
    Efficiency,
    Lane,
    Market,
    Portfolio,
    Position,
    Proposal,
    Reading,
    Reason,
    Regime,
    Unusable,
    grade,
    missing,
)
from quantum_alloc.core.allocation import UNMAPPED
from quantum_alloc.core.reading import Fresh, shown

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

TIME_ALIASES = ("ts", "timestamp", "ts_utc", "ts_epoch", "updated_ts")
ENTRY_FIELDS_LIMIT = 64
MAP_FIELDS_LIMIT = 10_000
MAP_VALUE_LIMIT_BYTES = 256 * 1024
MULTIPLIER_MAX = 10.0
"""No proposer is allowed a greater multiplier: see P31_MAX_MULT."""
FLOAT_MAX = 1.7976931348623157e308


class Fields:
    """The fields of one record; remembers the first that is malformed."""

    __slots__ = ("bad", "raw")

    def __init__(self, raw: Mapping[str, bytes]) -> None:
        """Take the fields that are there."""
        self.raw = raw
        self.bad = ""

    def number(self, name: str, low: float = -codec.USD_LIMIT, high: float = codec.USD_LIMIT) -> float:
        """A number that must be there; 0 and a note of its name when it is absent or malformed."""
        value = codec.number(self.raw[name], low, high) if name in self.raw else None
        if value is None:
            self.bad = self.bad or name
            return 0.0
        return value

    def number_or_none(self, name: str, low: float, high: float) -> float | None:
        """A number that may be absent; a malformed one is noted."""
        return self.number(name, low, high) if name in self.raw else None

    def word(self, name: str) -> str:
        """A plain word that must be there."""
        value = codec.word(self.raw.get(name, b""))
        if value is None:
            self.bad = self.bad or name
            return ""
        return value

    def lane(self, name: str) -> Lane:
        """A lane; live where the record does not say, shadow where it says anything but live."""
        return Lane.LIVE if self.raw.get(name, b"live") == b"live" else Lane.SHADOW


@dataclass(frozen=True, slots=True)
class InLane(Generic[T_co]):
    """A value, and the lane of what it was made from.

    Attributes:
        value: the value.
        lane: shadow when anything in it came from there; live where the record does not say.
    """

    value: T_co
    lane: Lane


@dataclass(frozen=True, slots=True)
class Schema(Generic[T]):
    """One record of the contract.

    Attributes:
        name: what it is called in logs and metrics.
        time: the field that its writer puts the time into; empty for a record whose age does not matter.
        fields: the fields that the rules need.
        build: fields to a value; notes what is malformed.
        asked: the fields that a reader asks for, times included.
    """

    name: str
    time: str
    fields: tuple[str, ...]
    build: Callable[[Fields], T]

    asked: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        """Work out once which fields a reader asks for."""
        times = (self.time, *(a for a in TIME_ALIASES if a != self.time)) if self.time else ()
        object.__setattr__(self, "asked", (*self.fields, *times))

    def query(self, key: str) -> Command:
        """The command that reads the record of a key."""
        return ("HMGET", key, *self.asked)


def _portfolio(f: Fields) -> Portfolio:
    drawdown = codec.number(f.raw["drawdown"], -1.0, 1.0) if "drawdown" in f.raw else None
    return Portfolio(f.number("equity_usd"), None if drawdown is None else abs(drawdown))


def _position(f: Fields) -> Position:
    return Position(f.number("position_amt"), f.number("mark_price", 0.0), f.number("unrealized_pnl"))


def _market(f: Fields) -> Market:
    price = f.number("price", 0.0)
    if price == 0.0:
        f.bad = f.bad or "price"
    return Market(price, f.number_or_none("sigma", 0.0, 1e6))


def _regime(f: Fields) -> Regime:
    return Regime(f.word("regime"), f.number_or_none("confidence", 0.0, 1.0))


def _attribution(f: Fields) -> Attribution:
    # the one number without a range: it is clamped
    return Attribution(f.number("performance_factor", -FLOAT_MAX, FLOAT_MAX), f.number_or_none("confidence", 0.0, 1.0))


def _target(f: Fields) -> AllocationTarget:
    return AllocationTarget(f.number("target_usd", 0.0), f.number("confidence", 0.0, 1.0))


def _efficiency(f: Fields) -> InLane[Efficiency]:
    return InLane(Efficiency(f.number("efficiency_score", 0.0, 1.0), f.number("confidence", 0.0, 1.0)), f.lane("lane"))


def _proposal(f: Fields) -> InLane[Proposal]:
    return InLane(Proposal(f.number("multiplier", 0.0, MULTIPLIER_MAX), f.word("reason")), f.lane("eff_lane"))


PORTFOLIO = Schema("portfolio", "timestamp", ("equity_usd", "drawdown"), _portfolio)
BALANCE = Schema("balance", "timestamp", ("balance",), lambda f: f.number("balance"))
PEAK = Schema("peak", "", ("peak_equity_usd",), lambda f: f.number("peak_equity_usd", 0.0))
POSITION = Schema("position", "ts_epoch", ("position_amt", "mark_price", "unrealized_pnl"), _position)
MARKET = Schema("market", "timestamp", ("price", "sigma"), _market)
BUDGET = Schema("budget", "timestamp", ("budget_usd",), lambda f: f.number("budget_usd", 0.0))
STRESS = Schema("cluster", "timestamp", ("stress",), lambda f: f.number("stress", 0.0, 1.0))
ATTRIBUTION = Schema("performance", "ts_utc", ("performance_factor", "confidence"), _attribution)
ALPHA = Schema("alpha", "ts_utc", ("alpha_score",), lambda f: f.number("alpha_score", -1.0, 1.0))
REGIME = Schema("regime", "timestamp", ("regime", "confidence"), _regime)
FACTOR = Schema("proposed factor", "", ("proposed_factor",), lambda f: f.number("proposed_factor", 0.0, MULTIPLIER_MAX))
PRIOR = Schema("prior", "", ("target_usd",), lambda f: f.number("target_usd", 0.0))
TARGET = Schema("target", "timestamp", ("target_usd", "confidence"), _target)
BASE_TARGET = Schema("target", "timestamp", ("target_usd",), lambda f: f.number("target_usd", 0.0))
EFFICIENCY = Schema("efficiency", "ts", ("efficiency_score", "confidence", "lane"), _efficiency)
PROPOSAL = Schema("proposal", "ts_epoch", ("multiplier", "reason", "eff_lane"), _proposal)


def decode(schema: Schema[T], reply: Reply, now: float, limit_s: float) -> Reading[T]:
    """A hash's reply as a reading.

    Args:
        schema: the record.
        reply: what ``schema.query`` was answered with.
        now: unix seconds.
        limit_s: greatest age that is fresh, whole seconds.

    >>> decode(BUDGET, [b"1820.93", b"1769577492", None, None, None, None], 1769577495, 60)
    Fresh(value=1820.93, ts=1769577492.0, age_s=3)
    """
    if not isinstance(reply, list):
        code = reply.code if isinstance(reply, Failed) else "unexpected reply"
        return Unusable(Reason.STORE, detail=code)
    raw = {n: v for n, v in zip(schema.asked, reply, strict=False) if isinstance(v, bytes)}
    return decode_fields(schema, raw, now, limit_s)


def decode_fields(schema: Schema[T], raw: Mapping[str, bytes], now: float, limit_s: float) -> Reading[T]:
    """A record's fields as a reading.

    Args:
        schema: the record.
        raw: the fields that are there.
        now: unix seconds.
        limit_s: greatest age that is fresh, whole seconds.
    """
    if not raw:
        return missing()
    fields = Fields(raw)
    value = schema.build(fields)
    if not schema.time:
        return Unusable(Reason.MALFORMED, detail=fields.bad) if fields.bad else Fresh(value, now)
    stamp = next((n for n in (schema.time, *TIME_ALIASES) if n in raw), None)
    ts = None if stamp is None else codec.unix_seconds(raw[stamp])
    if fields.bad or ts is None:
        return Unusable(Reason.MALFORMED, ts=ts, detail=fields.bad or stamp or f"{schema.time} is absent")
    return grade(value, ts, now, limit_s)


def absent(reply: Reply) -> bool:
    """True when a hash's reply holds none of the fields that were asked for.

    Args:
        reply: what ``Schema.query`` was answered with.

    >>> absent([None, None]), absent([b"", None]), absent(Failed("WRONGTYPE"))
    (True, False, False)
    """
    return isinstance(reply, list) and all(value is None for value in reply)


def in_lanes(live: Reply, shadow: Reply | None) -> tuple[Reply, Lane]:
    """The reply that counts: the live one, or the shadow lane's where the live one is absent and the other is not.

    Args:
        live: of the live key.
        shadow: of the shadow lane's key; None where that lane is not read.
    """
    if shadow is not None and absent(live) and not absent(shadow):
        return shadow, Lane.SHADOW
    return live, Lane.LIVE


def out_of(reading: Reading[InLane[T]], read_from: Lane) -> tuple[Reading[T], Lane]:
    """A reading without its lane, and the lane: shadow where it was read there or says so itself.

    Args:
        reading: of a record that names the lane of its inputs.
        read_from: where the record was read.
    """
    told = shown(reading)
    lane = Lane.SHADOW if told is not None and told.lane is Lane.SHADOW else read_from
    if isinstance(reading, Fresh):
        return Fresh(reading.value.value, reading.ts, reading.age_s), lane
    kept, seen = reading.value, reading.shown
    return Unusable(
        reading.reason,
        None if kept is None else kept.value,
        reading.ts,
        reading.age_s,
        reading.detail,
        shown=None if seen is None else seen.value,
    ), lane


def entry_fields(entry: Reply) -> dict[str, bytes] | None:
    """The fields of one stream entry; None when it has too many or is no entry.

    Args:
        entry: [id, [field, value, ...]].
    """
    if not (isinstance(entry, list) and len(entry) == 2 and isinstance(entry[1], list)):
        return None
    flat = entry[1]
    if len(flat) > 2 * ENTRY_FIELDS_LIMIT:
        return None
    pairs = zip(flat[::2], flat[1::2], strict=False)
    return {n.decode("utf-8", "replace"): v for n, v in pairs if isinstance(n, bytes) and isinstance(v, bytes)}


def newest(stream: str) -> Command:
    """The command that reads a stream's newest entry.

    Args:
        stream: its name.
    """
    return ("XREVRANGE", stream, "+", "-", "COUNT", 1)


def decode_newest(schema: Schema[T], reply: Reply, now: float, limit_s: float) -> Reading[T]:
    """The newest entry of a stream as a reading.

    Args:
        schema: the record.
        reply: what ``newest`` was answered with.
        now: unix seconds.
        limit_s: greatest age that is fresh, whole seconds.
    """
    if not isinstance(reply, list):
        return decode(schema, reply, now, limit_s)
    if not reply:
        return missing()
    raw = entry_fields(reply[0])
    if raw is None:
        return Unusable(Reason.MALFORMED, detail="entry")
    return decode_fields(schema, {n: v for n, v in raw.items() if n in schema.asked} or {"": b""}, now, limit_s)


@dataclass(frozen=True, slots=True)
class ClusterMap:
    """Which cluster each symbol belongs to.

    Attributes:
        of: symbol -> cluster id.
        ids: cluster ids, sorted.
        state: ``ok``, ``missing``, or why all or part of it could not be read.
        refused: symbols and ids that the patterns refuse.
    """

    of: Mapping[str, str]
    ids: tuple[str, ...]
    state: str
    refused: int = 0

    @property
    def readable(self) -> bool:
        """False when a map is there but all or part of it cannot be read."""
        return self.state in ("ok", "missing")


def _members(raw: bytes) -> list[str] | None:
    if len(raw) > MAP_VALUE_LIMIT_BYTES:
        return None
    try:
        names = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return names if isinstance(names, list) and all(isinstance(n, str) for n in names) else None


def decode_clusters(reply: Reply) -> ClusterMap:
    """The cluster map; a cluster that cannot be read leaves its symbols unmapped and the others as they are.

    Args:
        reply: what HGETALL was answered with, or a failure.

    >>> decode_clusters([b"C1", b'["BTCUSDT", "ETHUSDT"]', b"C2", b"oops"])
    ClusterMap(of={'BTCUSDT': 'C1', 'ETHUSDT': 'C1'}, ids=('C1',), state='malformed', refused=0)
    """
    if not isinstance(reply, list):
        return ClusterMap({}, (), Reason.STORE.value)
    if not reply:
        return ClusterMap({}, (), Reason.MISSING.value)
    of: dict[str, str] = {}
    ids: list[str] = []
    refused, state = 0, "ok"
    pairs = [
        (n, v) for n, v in zip(reply[::2], reply[1::2], strict=False) if isinstance(n, bytes) and isinstance(v, bytes)
    ]
    for name, value in sorted(pairs):
        cluster_id, names = codec.word(name), _members(value)
        if cluster_id is None or cluster_id == UNMAPPED:
            refused += 1
            state = Reason.MALFORMED.value
            continue
        if names is None:
            state = Reason.MALFORMED.value
            continue
        ids.append(cluster_id)
        for text in names:
            symbol = codec.symbol(text.encode("utf-8", "replace"))
            if symbol is None:
                refused += 1
            else:
                of.setdefault(symbol, cluster_id)
    return ClusterMap(of, tuple(ids), state, refused)


def oversized_clusters() -> ClusterMap:
    """The reading of a cluster map with more fields than a map may have."""
    return ClusterMap({}, (), Reason.MALFORMED.value)


def symbols_of(names: Sequence[Reply]) -> tuple[set[str], int]:
    """The valid symbols among some names, and how many were refused.

    Args:
        names: replies that should be names.

    >>> sorted(symbols_of([b"BTCUSDT", b"no name"])[0])
    ['BTCUSDT']
    """
    valid = {s for n in names if isinstance(n, bytes) and (s := codec.symbol(n)) is not None}
    return valid, len(names) - len(valid)
