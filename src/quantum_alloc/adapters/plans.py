"""Entries of the plan stream: bytes to plans. Decoding is total.

    id that the pattern refuses         no plan: it has no keys, and is told of with its id escaped
    decision other than EXECUTE         not governed
    anything else malformed             a plan with a flaw, which the governor blocks as ``bad_plan``

A field counts as it is named: ``qty`` before ``close_qty``, and both only where they agree. A quantity of 0 on a close
is none. Source: the project's contract, "Plans".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from quantum_alloc.adapters import codec
from quantum_alloc.adapters.effects import Reply
from quantum_alloc.adapters.wire import TIME_ALIASES, entry_fields
from quantum_alloc.core.fields import number
from quantum_alloc.core.plan import CLOSING_SHARE, Plan, Side, content_of

SIDES: Mapping[bytes, Side] = {b"BUY": Side.BUY, b"LONG": Side.BUY, b"SELL": Side.SELL, b"SHORT": Side.SELL}
TRUTH: Mapping[bytes, bool] = {b"1": True, b"true": True, b"0": False, b"false": False}
EXECUTE = b"EXECUTE"
TIMES = ("timestamp", *(a for a in TIME_ALIASES if a != "timestamp"))


@dataclass(frozen=True, slots=True)
class BadId:
    """A plan whose id names no key.

    Attributes:
        shown: the id, escaped and short.
    """

    shown: str


@dataclass(frozen=True, slots=True)
class NotGoverned:
    """A plan that is not to be executed."""


class _Fields:
    """The fields of a plan; remembers those that are malformed."""

    __slots__ = ("flaws", "raw")

    def __init__(self, raw: Mapping[str, bytes]) -> None:
        self.raw = raw
        self.flaws: list[str] = []

    def bad(self, name: str) -> None:
        self.flaws.append(name)

    def positive(self, name: str) -> float | None:
        """A number above 0 that may be absent."""
        if name not in self.raw:
            return None
        value = codec.number(self.raw[name], 0.0)
        if value is None or value == 0.0:
            self.bad(name)
            return None
        return value

    def quantity(self, *, closes: bool) -> float | None:
        """``qty``, else ``close_qty``; two that differ are a contradiction."""
        found = []
        for name in ("qty", "close_qty"):
            none = closes and name in self.raw and codec.number(self.raw[name], 0.0) == 0.0
            value = None if none else self.positive(name)
            if value is not None:
                found.append(value)
        if len(set(found)) > 1:
            self.bad("close_qty")
        return found[0] if found else None

    def score(self) -> float | None:
        """The kill score, at least 0."""
        if "kill_score" not in self.raw:
            return None
        value = codec.number(self.raw["kill_score"], 0.0)
        if value is None:
            self.bad("kill_score")
        return value


def decode(entry: Reply) -> Plan | BadId | NotGoverned:
    """One entry as a plan.

    Args:
        entry: [id, [field, value, ...]].

    >>> decode([b"1-0", [b"plan_id", b"p33:x"]])
    BadId(shown='p33:x')
    >>> raw = {b"plan_id": b"p1", b"symbol": b"btc", b"action": b"ENTRY", b"decision": b"EXECUTE", b"timestamp": b"1"}
    >>> decode([b"1-0", [x for pair in raw.items() for x in pair]]).flaw
    'symbol'
    """
    raw = entry_fields(entry)
    if raw is None:
        return BadId("")
    plan_id = codec.word(raw.get("plan_id", b""))
    if plan_id is None:
        return BadId(codec.printable(raw.get("plan_id", b"")))
    if raw.get("decision", EXECUTE) != EXECUTE and codec.word(raw["decision"]) is not None:
        return NotGoverned()
    return _plan(plan_id, raw)


def _plan(plan_id: str, raw: Mapping[str, bytes]) -> Plan:
    f = _Fields(raw)
    symbol = codec.symbol(raw.get("symbol", b""))
    if symbol is None:
        f.bad("symbol")
    action = codec.word(raw.get("action", b""))
    if action is None:
        f.bad("action")
    if raw.get("decision") != EXECUTE:
        f.bad("decision")
    stamp = next((n for n in TIMES if n in raw), "timestamp")
    ts = codec.unix_seconds(raw[stamp]) if stamp in raw else None
    if ts is None:
        f.bad(stamp)
    side = SIDES.get(raw["side"]) if "side" in raw else None
    if "side" in raw and side is None:
        f.bad("side")
    told = raw.get("reduceOnly", b"0").lower()
    reduce_only = TRUTH.get(told)
    if reduce_only is None:
        f.bad("reduceOnly")
    qty = f.quantity(closes=bool(reduce_only) or action in CLOSING_SHARE)
    price, score = f.positive("price"), f.score()
    if not f.flaws and symbol and action and ts is not None:
        return Plan(plan_id, symbol, action, ts, side, qty, price, score, bool(reduce_only))
    return Plan(
        plan_id,
        symbol or codec.printable(raw.get("symbol", b"")),
        action or codec.printable(raw.get("action", b"")),
        ts or 0.0,
        flaw=f.flaws[0],
        content=_content(f, symbol, action, side, qty, told),
    )


def _content(
    f: _Fields, symbol: str | None, action: str | None, side: Side | None, qty: float | None, told: bytes
) -> str:
    """What makes a malformed plan the same plan: the same bytes where no value could be made of them."""

    def shown(name: str) -> str:
        return codec.printable(f.raw.get(name, b""), codec.VALUE_LIMIT_BYTES)

    bad_qty = {"qty", "close_qty"} & set(f.flaws)
    return content_of(
        symbol or shown("symbol"),
        action or shown("action"),
        shown("side") if side is None else side.value,
        f"{shown('qty')} {shown('close_qty')}" if bad_qty else number(qty),
        str(int(TRUTH[told])) if told in TRUTH else shown("reduceOnly"),
    )
