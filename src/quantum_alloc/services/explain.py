"""``quantum-alloc explain SYMBOL``: the last decision of each service for a symbol, in plain words.

Decisions are read off the decision streams, newest first, at most ``LOOK_BACK`` entries each; budgets off their hash.
Nothing is written. What would have to change is asked of the rules themselves (``core.flips``).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from quantum_alloc.adapters import codec, wire
from quantum_alloc.adapters.keys import Keys
from quantum_alloc.adapters.store import Store
from quantum_alloc.core.explain import attribution_knobs, budget_knobs, efficiency_knobs, proposal_knobs
from quantum_alloc.core.explain_allocation import allocated, allocation_knobs
from quantum_alloc.core.fields import Fields
from quantum_alloc.core.flips import Flip, flips
from quantum_alloc.core.reading import age_s
from quantum_alloc.services.logs import escape
from quantum_alloc.services.options import EfficiencyOptions, ProposerOptions, Settings
from quantum_alloc.services.show import table

UNREADABLE = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""What a record of another version or of another program can raise."""
LOOK_BACK = 20_000
PAGE = 500


@dataclass(frozen=True, slots=True)
class Explanation:
    """One service's last decision for a symbol.

    Attributes:
        service: its CLI name.
        says: the outcome in one sentence.
        age_s: seconds since it was decided; None where there is none.
        because: sentences on how it came about.
        inputs: one row an input: name, value, state, age, lane.
        flips: the nearest change of each input that would turn an outcome.
        record: fields of the decision record.
        gates: one row a gate, for a verdict of the governor.
    """

    service: str
    says: str
    age_s: int | None = None
    because: tuple[str, ...] = ()
    inputs: tuple[Mapping[str, Any], ...] = ()
    flips: tuple[Flip, ...] = ()
    record: Fields = field(default_factory=dict)
    gates: tuple[Mapping[str, Any], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """For ``--format json``."""
        turns = [{**f.to_dict(), "side": f.side} for f in self.flips]
        return {
            "service": self.service,
            "says": self.says,
            "age_s": self.age_s,
            "because": list(self.because),
            "inputs": [dict(i) for i in self.inputs],
            "would_change": turns,
            **({"gates": [dict(g) for g in self.gates]} if self.gates else {}),
            "record": dict(self.record),
        }


def backwards(store: Store, stream: str) -> Iterator[Fields]:
    """The entries of a stream as text, newest first."""
    last, seen = "+", 0
    while seen < LOOK_BACK:
        page = store.read([("XREVRANGE", stream, last, "-", "COUNT", PAGE)])[0]
        if not isinstance(page, list) or not page:
            return
        for entry in page:
            raw = wire.entry_fields(entry)
            if raw is not None:
                yield {n: v.decode("utf-8", "replace") for n, v in raw.items()}
        seen += len(page)
        newest = page[-1]
        given = newest[0] if isinstance(newest, list) else None
        if len(page) < PAGE or not isinstance(given, bytes):
            return
        last = f"({given.decode('ascii')}"


def _last(store: Store, stream: str, symbol: str) -> Fields | None:
    return next((f for f in backwards(store, stream) if f.get("symbol") == symbol), None)


def age_of(record: Fields, now: float, name: str = "now") -> int | None:
    """Age of a record in whole seconds."""
    ts = codec.unix_seconds(record.get(name, "").encode())
    return None if ts is None else age_s(ts, now)


def _input(name: str, value: str, record: Fields, prefix: str, at: float, lane: str = "live") -> dict[str, Any]:
    ts = codec.unix_seconds(record.get(f"{prefix}_ts", "").encode())
    return {
        "input": name,
        "value": value or None,
        "state": record[f"{prefix}_state"],
        "age_s": None if ts is None else age_s(ts, at),
        "lane": lane,
    }


def short(text: str) -> str:
    """A number as people read it."""
    value = float(text)
    return f"{value:,.2f}" if abs(value) >= 100 else f"{value:.4g}"


def budget(store: Store, keys: Keys, symbol: str, now: float) -> Explanation:
    """The budget hash."""
    reply = store.read([("HGETALL", keys.budget(symbol))])[0]
    flat = reply if isinstance(reply, list) else []
    raw = {
        n.decode("utf-8", "replace"): v.decode("utf-8", "replace")
        for n, v in zip(flat[::2], flat[1::2], strict=False)
        if isinstance(n, bytes) and isinstance(v, bytes)
    }
    if not raw:
        return Explanation("budget", "There is no budget.")
    try:
        stress = float(raw["stress_factor"])
        says = f"Its base budget, before any factor, is {short(raw['budget_usd'])} USD (mode {raw['mode']})."
        because = (
            f"equity {short(raw['equity_usd'])} x {raw['base_risk_pct']} x (1 - stress {stress:.4g}), "
            "within its bounds",
            f"stress of heat {short(raw['portfolio_heat'])}, clusters {short(raw['cluster_stress'])}, "
            f"volatility class {short(raw['vol_regime'])}",
        )
        return Explanation("budget", says, age_of(raw, now, "timestamp"), because, (), flips(budget_knobs(raw)), raw)
    except UNREADABLE as error:
        return foreign("budget", raw, error, age_of(raw, now, "timestamp"))


def foreign(service: str, record: Fields, error: Exception, age: int | None) -> Explanation:
    """A record that this version cannot explain."""
    why = f"it has no field {error}" if isinstance(error, KeyError) else str(error)
    return Explanation(service, f"The record is not one that this version can explain: {why}.", age, record=record)


def attribution(store: Store, keys: Keys, symbol: str, now: float) -> Explanation:
    """The last attribution record."""
    r = _last(store, keys.stream("alpha.attribution"), symbol)
    if r is None:
        return Explanation("attribution", "There is none on record.")
    try:
        because = [
            f"performance {short(r['performance_factor'])} of alpha score {short(r['alpha_score'])} "
            f"over executions with a PnL: {r['window']}",
            f"the last execution was {r['lkg_age_s']} s before: source {r['source']}, "
            f"confidence {short(r['confidence'])}",
        ]
        for name in ("regime", "cluster", "signal", "time"):
            parts = json.loads(r[f"{name}_contrib"])
            because.append(
                f"share of all PnL moved, by {name}: " + ", ".join(f"{k} {v:+.2f}" for k, v in parts.items())
            )
        pf = float(r["performance_factor"])
        word = "has paid" if pf > 0.5 else "has cost" if pf < 0.5 else "has neither paid nor cost"
        says = f"Its capital {word}: performance {pf:.4g}, 0.5 is neutral (mode {r['mode']})."
        return Explanation("attribution", says, age_of(r, now), tuple(because), (), flips(attribution_knobs(r)), r)
    except UNREADABLE as error:
        return foreign("attribution", r, error, age_of(r, now))


def _cycle_of(store: Store, keys: Keys, symbol: str) -> tuple[Fields | None, list[Fields]]:
    """The symbol's last decision, and the others of its cycle."""
    mine: Fields | None = None
    others: list[Fields] = []
    for f in backwards(store, keys.stream("allocation.decision")):
        if mine is None and others and f.get("cycle_id") != others[-1].get("cycle_id"):
            others = []
        if mine is not None and f.get("cycle_id") != mine.get("cycle_id"):
            break
        if mine is None and f.get("symbol") == symbol:
            mine = f
        else:
            others.append(f)
    if mine is None:
        return None, []
    cycle = mine.get("cycle_id")
    # a cycle that was repeated with the same clock has the same id: each member once
    once = {o.get("symbol", ""): o for o in others if o.get("cycle_id") == cycle and o.get("symbol") != symbol}
    return mine, list(once.values())


def allocation(store: Store, keys: Keys, symbol: str, now: float) -> Explanation:
    """The last allocation decision, with its cycle."""
    r, others = _cycle_of(store, keys, symbol)
    newest = next(backwards(store, keys.stream("allocation.cycle")), None)
    skipped = _skipped(newest, symbol)
    if newest is not None and skipped and (r is None or r.get("cycle_id") != newest.get("cycle_id")):
        return Explanation("allocation", f"It has no target: {skipped}.", age_of(newest, now), (), (), (), newest)
    if r is None:
        return Explanation("allocation", "There is no decision on record.")
    cycles = backwards(store, keys.stream("allocation.cycle"))
    top = next((c for c in cycles if c.get("cycle_id") == r.get("cycle_id")), None)
    if top is None:
        says = f"It may hold {r.get('target_usd', 'an unknown amount of')} USD; the record of its cycle is gone."
        return Explanation("allocation", says, record=r)
    try:
        of = allocated(top, r, others)
        at = of.shared.now
        product = " x ".join(
            f"{name} {short(r[key])}"
            for name, key in (
                ("regime", "regime_factor"), ("cluster", "cluster_factor"), ("drawdown", "drawdown_factor"),
                ("performance", "performance_factor"), ("proposal", "proposed_factor"),
            )
            if key in r
        )  # fmt: skip
        because = [f"budget {short(r['base_usd'])} USD x {product} = {short(r['uncapped_usd'])} USD"]
        because.append(_caps(r, top))
        if not of.is_complete:
            because.append("records of others of its group are gone: what would turn the cluster cap cannot be told")
        why = f"regime {r['regime']}, drawdown zone {r['drawdown_zone']}, confidence {short(r['confidence'])}"
        because.append(why)
        regime = top["regime"] + (f" {short(top['regime_confidence'])}" if top["regime_confidence"] else "")
        performance = r["attribution_factor"] and f"{short(r['attribution_factor'])}, confidence " + (
            short(r["attribution_confidence"]) if r["attribution_confidence"] else "not told"
        )
        inputs = [
            _input(
                "portfolio",
                f"{short(top['equity_usd'])} USD, drawdown {top['drawdown'] or 'unknown'}",
                top,
                "portfolio",
                at,
            ),
            _input("regime", regime, top, "regime", at),
            _input("budget", f"{short(r['base_usd'])} USD", r, "budget", at),
            _input(f"stress of cluster {r['cluster_id']}", r["stress"] and short(r["stress"]), r, "stress", at),
            _input("performance", performance, r, "attribution", at, r.get("attribution_lane", "live")),
        ]
        if "proposal_state" in r:
            told = r["proposal_multiplier"] and f"{short(r['proposal_multiplier'])}, reason {r['proposal_reason']}"
            if r["proposal_state"] == "missing" and r["proposal_lane"] == "shadow":
                told = "made from the shadow lane: not used in enforce"
            inputs.append(_input("proposal", told, r, "proposal", at, r["proposal_lane"]))
        says = f"It may hold {short(r['target_usd'])} USD (mode {r['mode']})."
        turns = flips(allocation_knobs(of))
        return Explanation("allocation", says, age_of(top, now), tuple(because), tuple(inputs), turns, r)
    except UNREADABLE as error:
        return foreign("allocation", r, error, age_of(top, now))


def _skipped(cycle: Fields | None, symbol: str) -> str:
    try:
        found = json.loads(cycle["skipped"]).get(symbol, "") if cycle is not None else ""
    except UNREADABLE:
        return ""
    return str(found)


def _caps(r: Fields, top: Fields) -> str:
    group = json.loads(top["group_sums_usd"]).get(r["cluster_id"])
    told = {
        "none": "no cap binds",
        "symbol": f"the symbol cap binds: {short(r['symbol_cap_usd'])} USD",
        "cluster": f"the cluster cap binds: its group {r['cluster_id']} is scaled by {float(r['cluster_ratio']):.6g}",
        "symbol+cluster": f"both caps bind: {short(r['symbol_cap_usd'])} USD, then x {float(r['cluster_ratio']):.6g}",
    }.get(r["bound"], r["bound"])
    if group is not None:
        cap = float(top["equity_usd"]) * float(json.loads(top["params"])["max_cluster_pct"])
        told += f"; symbol cap {short(r['symbol_cap_usd'])} USD, group {r['cluster_id']} sums to {short(repr(group))} "
        told += f"of {short(repr(cap))} USD"
    return told


def efficiency(store: Store, symbol: str, now: float, stream: str) -> Explanation:
    """The last efficiency record."""
    r = _last(store, stream, symbol)
    if r is None:
        return Explanation("efficiency", "There is none on record.")
    try:
        at = float(r["now"])
        target = f"{short(r['p29_target_usd'])} USD" if r["p29_target_usd"] else "none yet"
        because = (
            f"score {short(r['efficiency_score'])} = performance {short(r['p30_perf'])} over 1 + penalties of "
            f"volatility {short(r['volatility_ewma'])} USD and losses {short(r['dd_proxy'])} USD "
            f"over a target of {target}, "
            f"hold {short(r['hold_time_penalty'])}",
            f"average {short(r['efficiency_ewma'])}, confidence {short(r['confidence'])}, "
            f"weight {short(r['reallocation_weight'])}, flags {r['stale_flags'] or 'none'}",
        )
        performance = r["attribution_factor"] and f"{short(r['attribution_factor'])}"
        sure = r["attribution_confidence"] and f", confidence {short(r['attribution_confidence'])}"
        wanted = r["target_usd"] and f"{short(r['target_usd'])} USD, confidence {short(r['target_confidence'])}"
        inputs = (
            _input("performance", performance + sure, r, "attribution", at, r["attribution_lane"]),
            _input("target", wanted, r, "target", at, r["target_lane"]),
        )
        says = f"Capital pressure {r['capital_pressure']} at score {short(r['efficiency_score'])} (mode {r['mode']})."
        return Explanation("efficiency", says, age_of(r, now), because, inputs, flips(efficiency_knobs(r)), r)
    except UNREADABLE as error:
        return foreign("efficiency", r, error, age_of(r, now))


def proposal(store: Store, symbol: str, now: float, stream: str) -> Explanation:
    """The last proposal record."""
    r = _last(store, stream, symbol)
    if r is None:
        return Explanation("proposer", "There is no proposal on record.")
    try:
        at = float(r["now"])
        why = {
            "ok": "the efficiency counts",
            "missing_eff": "there is no efficiency",
            "redis_error": "the efficiency cannot be read",
            "stale_eff": "the efficiency is too old, or from the future",
            "low_conf": "the efficiency is not certain enough",
        }.get(r["reason"], r["reason"])
        because = (f"{short(r['base_target'])} USD x {r['multiplier']}: {r['reason']}, {why}",)
        value = r["eff_score"] and f"score {short(r['eff_score'])}, confidence {short(r['eff_confidence'])}"
        inputs = (
            _input("base target", f"{short(r['base_target'])} USD", r, "base", at, r["base_lane"]),
            _input("efficiency", value, r, "eff", at, r["eff_lane"]),
        )
        says = f"It would hold {short(r['proposed_target'])} USD if efficiency counted (always shadow)."
        return Explanation("proposer", says, age_of(r, now), because, inputs, flips(proposal_knobs(r)), r)
    except UNREADABLE as error:
        return foreign("proposer", r, error, age_of(r, now))


def gather(settings: Settings, store: Store, symbol: str, now: float) -> list[Explanation]:
    """The last decision of each service for a symbol.

    Args:
        settings: of efficiency and proposer, for the names of keys and of their streams.
        store: where to look.
        symbol: the symbol.
        now: unix seconds.

    Raises:
        StoreError: Redis does not answer.
    """
    return [
        budget(store, settings.keys, symbol, now),
        attribution(store, settings.keys, symbol, now),
        allocation(store, settings.keys, symbol, now),
        efficiency(store, symbol, now, settings.of(EfficiencyOptions).efficiency_stream),
        proposal(store, symbol, now, settings.of(ProposerOptions).propose_stream),
    ]


def exact(value: float, unit: str) -> str:
    """A value with all its digits: a rounded one would not turn anything.

    >>> exact(0.15, ""), exact(61.0, "s"), exact(-3.5, "USD")
    ('0.15', '61 s', '-3.5 USD')
    """
    text = str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)
    return f"{text} {unit}".rstrip()


def ago(age_s: int) -> str:
    """An age as people read it.

    >>> ago(3), ago(-2), ago(864_000)
    ('3 s ago', '2 s ahead', '10 days ago')
    """
    if age_s < 0:
        return f"{-age_s:,} s ahead"
    return f"{age_s:,} s ago" if age_s < 2 * 86_400 else f"{age_s // 86_400:,} days ago"


def flip_rows(turns: Sequence[Flip]) -> list[dict[str, Any]]:
    """Turns as rows for people: what it was with six digits, what it would have to be exactly."""
    return [
        {
            "if only": f.input,
            "were": f"{exact(float(f'{f.value:.6g}'), f.unit)} -> {exact(f.at, f.unit)}",
            "then": f"{f.outcome} {f.before} -> {f.after}",
        }
        for f in turns
    ]


def text(symbol: str, found: Sequence[Explanation]) -> str:
    """Everything for people.

    Args:
        symbol: the symbol.
        found: one explanation a service.
    """
    if not any(e.record for e in found):
        hint = "--plan says that a plan id is meant"
        return f"Nothing is on record for {symbol}: status and diff-lanes show which symbols there are; {hint}."
    return parts(symbol, found)


def parts(name: str, found: Sequence[Explanation]) -> str:
    """Explanations under their title.

    Args:
        name: of the symbol or the plan.
        found: at least one.
    """
    out = [name]
    for e in found:
        age = "" if e.age_s is None else f", {ago(e.age_s)}"
        lines = [f"{e.service}{age}: {escape(e.says)}", *(f"  {escape(line)}" for line in e.because)]
        for rows in (e.gates, e.inputs, flip_rows(e.flips)):
            if rows:
                lines += ["", *(f"  {line}" for line in table(rows).splitlines())]
        out.append("\n".join(lines))
    return "\n\n".join(out)
