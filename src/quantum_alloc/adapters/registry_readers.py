"""Which service reads which record, by which fields: the other end of the registry's rows.

Each row takes the fields of a record and gives what its service makes of them, or None where it can make nothing. A
contract test hands it what the writers have really written, and mutations of that. ``asked`` are the fields that it
looks at; those in ``mild`` may be absent or unusable without making the rest so. Aliases of times are not told.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

from quantum_alloc.adapters import apply_wire, bars, codec, executions, plans, state, wire
from quantum_alloc.adapters import governor_wire as gw
from quantum_alloc.adapters.effects import Reply
from quantum_alloc.adapters.governor_files import microseconds
from quantum_alloc.adapters.wire import Schema
from quantum_alloc.core.attribution import AttributionState
from quantum_alloc.core.efficiency import EfficiencyState
from quantum_alloc.core.fields import compact
from quantum_alloc.core.plan import Plan
from quantum_alloc.core.reading import Fresh

Raw = Mapping[str, bytes]
Read = Callable[[Raw, float], object | None]
FOREVER_S = 1e12
"""No age counts here: what is asked is whether a record can be read, not whether it is young."""


@dataclass(frozen=True, slots=True)
class Reader:
    """How one or several services read a record.

    Attributes:
        record: its row's name.
        users: the services.
        asked: the fields that they look at; none where they take the record as a whole.
        mild: those of them that may be absent or unusable, and the rest still counts.
        read: fields and clock to a value; None where there is none.
        of: which entries it is about.
    """

    record: str
    users: tuple[str, ...]
    asked: tuple[str, ...]
    mild: tuple[str, ...]
    read: Read
    of: Callable[[Raw], bool] = lambda _: True


def by_schema(record: str, users: str, schema: Schema[Any], mild: str = "") -> Reader:
    """A reader that asks for a schema's fields.

    Args:
        record: its row's name.
        users: the services, with spaces between.
        schema: of the record.
        mild: fields that may be absent or unusable, with spaces between.
    """

    def read(raw: Raw, now: float) -> object | None:
        asked = {n: v for n, v in raw.items() if n in schema.asked}
        made = wire.decode_fields(schema, asked, now, FOREVER_S)
        return made.value if isinstance(made, Fresh) else None

    asked = (*schema.fields, *((schema.time,) if schema.time and schema.time not in schema.fields else ()))
    return Reader(record, tuple(users.split()), asked, tuple(mild.split()), read)


def _entry(raw: Raw) -> Reply:
    return [b"1-0", _flat(raw)]


def _flat(raw: Raw) -> list[Reply]:
    return list(chain.from_iterable((name.encode(), value) for name, value in raw.items()))


def text_of(raw: Raw) -> bytes:
    """The JSON text that some fields came from, as our writers write it.

    Args:
        raw: by name, each as JSON.
    """
    return b"{" + b",".join(compact(name).encode() + b":" + value for name, value in raw.items()) + b"}"


def _plan(raw: Raw, _: float) -> object | None:
    made = plans.decode(_entry(raw))
    return made if isinstance(made, Plan) and not made.flaw else None


def _execution(raw: Raw, now: float) -> object | None:
    made = executions.decode(_entry(raw), now)
    return None if isinstance(made, executions.Rejected) else made


def _violation(raw: Raw, now: float) -> object | None:
    inner = executions.nested(raw.get("json", b"")) or {}
    symbol = inner.get("symbol", b"").decode("utf-8", "replace")
    made = gw.violations([_entry(raw)], now, [symbol])[symbol]
    return made.value if isinstance(made, Fresh) else None


def _permit(raw: Raw, _: float) -> object | None:
    def told(name: str) -> str:
        return raw.get(name, b"").decode("utf-8", "replace").strip('"')

    return apply_wire.terms_of(text_of(raw), told("plan_id"), told("symbol"), ())


def _state_of(of_text: Callable[[str, str], object]) -> Read:
    def read(raw: Raw, _: float) -> object | None:
        stream = raw.get("_stream", b"").decode("utf-8", "replace")
        made = state.decode(len(raw), _flat(raw), stream, of_text)
        return None if made.refused or made.malformed or not raw else (made.states, made.pos, made.cycle)

    return read


def _clusters(raw: Raw, _: float) -> object | None:
    made = wire.decode_clusters(_flat(raw))
    return made if made.state == "ok" else None


def _answer(raw: Raw, _: float) -> object | None:
    made = gw.answer(text_of(raw))
    return made if made is not None and made.verdict else None


def _book(raw: Raw, _: float) -> object | None:
    made = gw.book(_flat(raw))
    return None if made.outstanding is None else made


def _fill(raw: Raw, _: float) -> object | None:
    made = apply_wire.fill_of(_entry(raw))
    return made if made is not None and made.plan_id else None


def _is_permit(raw: Raw) -> bool:
    return raw.get("event") == b"PERMIT"


_STATE = ("_pos", "_stream", "_version", "_read", "_cycle", "{S}")
_HEAD = ("count", "head", "ts")
_KILL = Reader("kill", ("apply", "governor"), ("",), ("",), lambda raw, _: gw.kill_state(raw.get("", None)))
READERS: tuple[Reader, ...] = (
    by_schema("portfolio", "allocation budget desk", wire.PORTFOLIO, "drawdown"),
    by_schema("portfolio", "governor", gw.TOTALS),
    by_schema("balance", "portfolio", wire.BALANCE),
    Reader("balance", ("apply",), ("balance",), (), lambda raw, _: codec.number(raw.get("balance", b""))),
    by_schema("peak", "portfolio", wire.PEAK),
    by_schema("position", "budget clusters portfolio", wire.POSITION),
    by_schema("position", "governor", gw.POSITION, "mark_price"),
    by_schema("market", "budget desk", wire.MARKET, "sigma"),
    by_schema("market", "apply governor", gw.MARKET),
    Reader("bars", ("clusters", "desk", "feed", "regime"), ("ts", "close", "bar_s"), (),
        lambda raw, _: bars.decode_bar(_entry(raw))),
    by_schema("budget", "allocation", wire.BUDGET),
    by_schema("budget", "governor", gw.BUDGET, "mode"),
    Reader("violations", ("governor",), ("json",), (), _violation),
    by_schema("regimes", "allocation apply", wire.REGIME, "confidence"),
    Reader("clusters", ("allocation", "apply", "budget", "clusters"), ("{cid}",), (), _clusters),
    by_schema("stress", "allocation budget", wire.STRESS),
    by_schema("attribution", "allocation efficiency", wire.ATTRIBUTION, "confidence"),
    by_schema("shadow_attribution", "allocation efficiency", wire.ATTRIBUTION, "confidence"),
    by_schema("attribution", "clusters", wire.ALPHA),
    by_schema("target", "efficiency", wire.TARGET),
    by_schema("shadow_target", "efficiency", wire.TARGET),
    by_schema("target", "desk proposer", wire.BASE_TARGET),
    by_schema("shadow_target", "proposer", wire.BASE_TARGET),
    by_schema("target", "governor", gw.TARGET, "mode confidence"),
    by_schema("target", "allocation", wire.PRIOR),
    by_schema("target", "allocation", wire.FACTOR),
    by_schema("shadow_target", "allocation", wire.FACTOR),
    by_schema("efficiency", "governor proposer", wire.EFFICIENCY, "lane"),
    by_schema("shadow_efficiency", "governor proposer", wire.EFFICIENCY, "lane"),
    by_schema("proposed", "allocation", wire.PROPOSAL, "eff_lane"),
    by_schema("shadow_proposed", "allocation", wire.PROPOSAL, "eff_lane"),
    Reader("executions", ("attribution", "efficiency"),
        ("symbol", "timestamp", "pnl_usd", "realized_pnl", "pnl", "regime", "cluster", "signal"),
        ("timestamp", "pnl_usd", "realized_pnl", "pnl", "regime", "cluster", "signal"), _execution),
    Reader("executions", ("apply",), ("symbol", "filled_qty", "plan_id"), (), _fill),
    Reader("attribution_state", ("attribution",), _STATE, ("_read", "_cycle", "_stream"),
        _state_of(AttributionState.of_text)),
    Reader("efficiency_state", ("efficiency",), _STATE, ("_read", "_cycle", "_stream"),
        _state_of(lambda _, text: EfficiencyState.of_text(text))),
    Reader("universe", (
        "allocation", "apply", "attribution", "budget", "clusters", "desk", "efficiency", "portfolio", "proposer",
        "regime",
    ), ("",), (), lambda raw, _: wire.symbols_of([raw.get("", b"")])[0] or None),
    Reader("plans", ("governor",), (
        "plan_id", "symbol", "action", "decision", "timestamp", "side", "qty", "close_qty", "kill_score", "price",
        "reduceOnly",
    ), ("side", "qty", "close_qty", "kill_score", "price", "reduceOnly"), _plan),
    Reader("permit", ("apply",), (
        "granted", "symbol", "decision", "computed_qty", "computed_notional", "created_at", "eff_factor", "eff_action",
        "extra_cooldown_sec", "plan_id", "reduce_only", "side", "eff_lane", "apply_mode", "dry_run", "decision_id",
        "limits", "sig",
    ), ("eff_lane",), _permit),
    Reader("tombstone", ("governor",), ("verdict", "reason", "content", "decision_id"), (), _answer),
    Reader("ledger", ("desk", "governor"), (":rev", "{plan}"), (":rev",), lambda raw, _: gw.ledger(_flat(raw))),
    Reader("book", ("apply", "governor"), (":rev", ":watermark", ":pos", ":hold", "{plan}"),
        (":rev", ":watermark", ":pos", ":hold"), _book),
    Reader("events", ("apply",), ("event", "plan_id", "symbol", "issued_us", "computed_qty", "reason", "action"),
        ("computed_qty", "reason", "action"), lambda raw, _: apply_wire.permit_event(_entry(raw)), _is_permit),
    Reader("results", ("apply",), ("plan_id", "consumed", "executed"), ("consumed", "executed"),
        lambda raw, _: apply_wire.consumed_by(_entry(raw)), lambda raw: raw.get("consumed") == b"1"),
    Reader("transfers", ("apply",), ("usd",), (), lambda raw, _: apply_wire.transfer_usd(_entry(raw)) or None),
    Reader("apply_state", ("apply",), (
        "_version", "_rev", "_of", "_events", "_results", "_fills", "_transfers", "_balance", "_paid_in", "_realised",
        "_fees", "_counts", "_events_seen", "S:{S}", "P:{plan}",
    ), ("_events_seen",), lambda raw, _: apply_wire.decode_state(_flat(raw)).account),
    _KILL,
    Reader("latch", ("apply", "governor"), ("state", "since"), ("state", "since"),
        lambda raw, _: gw.is_latched([raw.get("state"), raw.get("since")]) or None),
    Reader("rearm", ("apply", "governor"), ("at",), (), lambda raw, _: microseconds(raw.get("at"))),
    Reader("epoch", ("governor",), ("",), ("",), lambda raw, _: raw.get("")),
    *(Reader(name, ("governor",), _HEAD, _HEAD, lambda raw, _: tuple(raw.get(name) for name in _HEAD))
      for name in ("ops_head", "ops_head_of")),
)  # fmt: skip
"""Every reading of a service. The desk's of positions and of its own state stand with the desk."""
