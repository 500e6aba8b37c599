"""``quantum-alloc explain PLAN_ID``: the governor's verdict on a plan, gate by gate, and what would turn it.

The verdict is read off the event stream, newest first, at most ``explain.LOOK_BACK`` entries; where it was trimmed,
what its tombstone still tells is shown. Nothing is written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from quantum_alloc.adapters import governor_wire as gw
from quantum_alloc.adapters.keys import Keys
from quantum_alloc.adapters.store import Store
from quantum_alloc.core.explain_governor import governor_knobs
from quantum_alloc.core.fields import Fields
from quantum_alloc.core.flips import flips
from quantum_alloc.core.governor_inputs import Holding, Inputs
from quantum_alloc.core.governor_params import GATES
from quantum_alloc.core.limits import US
from quantum_alloc.core.reading import Reading, shown
from quantum_alloc.core.record_governor import governor_inputs
from quantum_alloc.services.explain import UNREADABLE, Explanation, age_of, backwards, foreign, short

VERDICTS = ("PERMIT", "BLOCK")
NAMES = {g.gate: g.name for g in GATES}
SERVICE = "governor"


def explain(
    store: Store, keys: Keys, stream: str, plans: str, plan_id: str, now: float, results: str = ""
) -> Explanation:
    """The verdict on a plan, and what became of its permit.

    Args:
        store: where to look.
        keys: the names.
        stream: of events.
        plans: stream of plans, for one that has no verdict yet.
        plan_id: the plan.
        now: unix seconds.
        results: stream of what became of permits; empty to leave that out.

    Raises:
        StoreError: Redis does not answer.
    """
    later: list[Fields] = []
    for f in backwards(store, stream):
        if f.get("plan_id") != plan_id:
            continue
        if f.get("event") in VERDICTS:
            told = _fate(store, results, plan_id) if f.get("event") == "PERMIT" and results else ""
            told = told or _permit(store, keys, plan_id)
            return verdict(f, now, tuple(later), told)
        if f.get("event") in ("REPLAY", "CONFLICT"):
            later.append(f)
    first = gw.answer(store.read([("GET", keys.tombstone(plan_id))])[0])
    if first is not None and first.verdict:
        says = f"It got {first.verdict} ({first.reason}); the record of it is gone from the stream."
        return Explanation(SERVICE, says, record={"plan_id": plan_id, "reason": first.reason})
    if later:
        return Explanation(SERVICE, "Its first answer is gone from the stream; it was asked for again since.")
    plan = next((f for f in backwards(store, plans) if f.get("plan_id") == plan_id), None)
    if plan is None:
        hint = "" if plan_id == plan_id.upper() else " (Symbols are written in capitals.)"
        return Explanation(SERVICE, f"Nothing is on record for this plan, and it is not in the stream of plans.{hint}")
    says = "It waits: no governor has answered it yet."
    if plan.get("decision") != "EXECUTE":
        says = f"Its decision is {plan.get('decision', 'absent')!r}, not EXECUTE: it is not governed."
    return Explanation(SERVICE, says, age_of(plan, now, "timestamp"), record=plan)


def _permit(store: Store, keys: Keys, plan_id: str) -> str:
    """The permit that stands now, and for how long; empty for none."""
    key = keys.permit(plan_id)
    raw, left = store.read([("GET", key), ("TTL", key)])
    if not isinstance(raw, bytes) or not isinstance(left, int):
        return ""
    return f"the permit stands for another {left} s, {key}: {raw.decode('utf-8', 'backslashreplace')}"


def _fate(store: Store, results: str, plan_id: str) -> str:
    """What became of a permit that stands no more; empty where nobody has told."""
    done = next((f for f in backwards(store, results) if f.get("plan_id") == plan_id), None)
    if done is None:
        return ""
    if done.get("executed") != "true":
        waited = f", after it waited for {done['waited_for']}" if done.get("waited_for") else ""
        return f"the permit was not filled: {done.get('error') or 'no reason is told'}{waited}"
    pnl = f", realised {_figure(done, 'pnl_usd')} USD" if done.get("pnl_usd") else ""
    less = f", x {_figure(done, 'factor')} by the hint" if done.get("factor", "1.0") != "1.0" else ""
    qty, price, fee = (_figure(done, name) for name in ("filled_qty", "price", "fee_usd"))
    return f"the permit was filled: {done.get('side', '')} {qty} at {price} USD{less}, fee {fee} USD{pnl}"


def _figure(record: Fields, name: str) -> str:
    """A number of a record that any program may have written."""
    try:
        return short(record[name])
    except (KeyError, ValueError):
        return "an unknown amount"


def last_of(store: Store, stream: str, symbol: str, now: float) -> Explanation:
    """The last verdict on a plan of a symbol.

    Args:
        store: where to look.
        stream: of events.
        symbol: the symbol.
        now: unix seconds.

    Raises:
        StoreError: Redis does not answer.
    """
    found = (f for f in backwards(store, stream) if f.get("symbol") == symbol and f.get("event") in VERDICTS)
    record = next(found, None)
    return Explanation(SERVICE, "There is no verdict on record.") if record is None else verdict(record, now)


def verdict(record: Fields, now: float, later: tuple[Fields, ...] = (), permit: str = "") -> Explanation:
    """A verdict in words.

    Args:
        record: fields of a PERMIT or BLOCK event.
        now: unix seconds.
        later: fields of what was answered to the same id afterwards, newest first.
        permit: what to say of the permit that stands; empty for none.
    """
    age = age_of(record, now, "timestamp")
    if "gates" not in record:
        says = f"{record.get('event')} ({record.get('reason')}); it was not decided by the gates."
        if record.get("reason") == "restored":
            says = "PERMIT; it was put back after the server had lost it, and its record was lost with it."
        return Explanation(SERVICE, says, age, record=record)
    try:
        inputs = governor_inputs(record)
        gates = tuple(_row(row) for row in json.loads(record["gates"]))
        blocking = [g for g in gates if g["outcome"] == "block"]
        turns = flips(governor_knobs(record))
        why = _because(record, blocking, bool(turns), later, permit)
        return Explanation(SERVICE, _says(record, inputs), age, why, _inputs(inputs), turns, record, gates)
    except UNREADABLE as error:
        return foreign(SERVICE, record, error, age)


def _says(record: Fields, inputs: Inputs) -> str:
    plan, mode = inputs.plan, record["apply_mode"]
    order = f"{plan.action} {inputs.plan.symbol}"
    if record["event"] == "PERMIT":
        side = f"{record['side']} " if record["side"] else ""
        qty, usd = short(record["computed_qty"]), short(record["computed_notional"])
        return f"PERMIT: {order} may {side}{qty}, {usd} USD, as {record['movement']} (mode {mode})."
    flaw = f" ({record['detail']})" if record.get("detail") else ""
    return f"BLOCK: {order} is blocked by gate {record['gate']}: {record['reason']}{flaw} (mode {mode})."


def _because(
    record: Fields, blocking: Sequence[Mapping[str, Any]], has_turns: bool, later: tuple[Fields, ...], permit: str
) -> tuple[str, ...]:
    out = [permit] if permit else []
    if record["event"] == "PERMIT":
        out.append(f"hint {record['eff_action']} x {short(record['eff_factor'])}: {record['eff_reason']}")
    if len(blocking) > 1:
        out.append("more than one gate blocks: " + ", ".join(f"{g['gate']} {g['reason']}" for g in blocking))
    if record["event"] == "BLOCK":
        retry = record.get("retry_after_s", "")
        when = f"time alone would lift it after {short(retry)} s, for a plan with a new id" if retry else ""
        out.append(when or "time alone would not lift it")
    if blocking and not has_turns:
        out.append("no single number of the plan or its inputs would turn it")
    out += [f"asked again: {f.get('event')} ({f.get('reason')})" for f in later[:5]]
    return tuple(out)


def _row(row: list[Any]) -> dict[str, Any]:
    names = ("gate", "outcome", "reason", "observed", "limit", "margin")
    told = {**dict.fromkeys(names), **dict(zip(names, row, strict=False))}
    return {"gate": told["gate"], "looks at": NAMES.get(row[0], ""), **told, "reason": told["reason"] or None}


def _held(position: Holding | None) -> str:
    if position is None or position.qty == 0.0:
        return "flat"
    return f"{position.qty!r} at {position.mark_usd!r} USD" if position.mark_usd is not None else repr(position.qty)


def _inputs(i: Inputs) -> tuple[dict[str, Any], ...]:
    now = i.now_us / US

    def row(name: str, reading: Reading[Any], told: str) -> dict[str, Any]:
        value = shown(reading)
        age = None if reading.ts is None else int(now // 1) - int(reading.ts // 1)
        return {"input": name, "value": None if value is None else told, "state": reading.state, "age_s": age}

    position, target, budget = shown(i.position), shown(i.target), shown(i.budget)
    totals, efficiency = shown(i.totals), shown(i.efficiency)
    rows = [
        row("position", i.position, _held(position)),
        row("market price", i.market_usd, f"{shown(i.market_usd)} USD"),
        row("target", i.target, "" if target is None else f"{target.usd:,.2f} USD, {target.mode}"),
        row("budget", i.budget, "" if budget is None else f"{budget.usd:,.2f} USD, {budget.mode}"),
        row("violation", i.violation_usd, f"{shown(i.violation_usd)} USD"),
        row("all positions", i.totals, "" if totals is None else f"{totals.notional_usd:,.2f} USD in {totals.count}"),
        row(
            f"efficiency ({i.eff_lane.value})",
            i.efficiency,
            "" if efficiency is None else f"score {efficiency.score:.4f}, confidence {efficiency.confidence:.3f}",
        ),
    ]
    if i.book is not None:
        told = f"{i.book.usd:,.2f} USD, of the symbol {i.book.symbol_usd:,.2f}"
        rows.append({"input": "outstanding opens", "value": told, "state": "ok", "age_s": 0})
    return tuple(rows)
