"""What must hold between records: cycles complete, hashes as their records, targets within caps, all made again.

Cycles are judged by what they tell of themselves, records by the rules that they carry, hashes by the entry of their
time.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence

from quantum_alloc.adapters import codec
from quantum_alloc.core.fields import Fields
from quantum_alloc.core.record import differences
from quantum_alloc.services.explain import UNREADABLE
from quantum_alloc.services.proof_facts import TAIL
from quantum_alloc.services.proof_records import HASH_OF, STREAMS_OF, empty, no_stream
from quantum_alloc.services.proof_seen import Facts, Key
from quantum_alloc.services.proof_services import Finding, without

EXACT = 1e-9
"""Relative; what a sum of floats in another order may differ by."""
DECISIONS = 600
"""So many decisions are made again."""
MODED = ("allocation", "attribution", "efficiency")
"""Services whose records name their mode."""
ALONE: Mapping[str, tuple[str, ...]] = {
    "allocation": ("regimes",),
    "efficiency": ("attributions", "efficiencies"),
    "proposer": ("proposals",),
    "governor": ("plans", "events", "results"),
}
"""Streams whose records are made again from themselves."""
CONFIGURED: Mapping[str, str] = {
    "regime": "regimes", "allocation": "cycles", "attribution": "attributions", "efficiency": "efficiencies",
    "proposer": "proposals", "governor": "events", "apply": "results",
}  # fmt: skip
"""Where a service writes down with which parameters it decided."""


def cycle_complete(f: Facts, _: str) -> list[Finding]:
    """Each of the newest cycles has a decision for each target that it tells of, and tells why others have none."""
    found = []
    decisions = f.tail("decisions")
    of = defaultdict[str, list[str]](list)
    for entry in decisions.texts:
        of[entry.get("cycle_id", "")].append(entry.get("symbol", ""))
    first = "" if decisions.whole or not decisions.ids else decisions.ids[0]
    for at, cycle in zip(f.tail("cycles").ids, f.tail("cycles").texts, strict=True):
        name = cycle.get("cycle_id", "")
        if first and _ms(at) <= _ms(first):
            found.append(without(name, "its first decisions are beyond what was read"))
            continue
        made = of[name]
        try:
            skipped = set(json.loads(cycle["skipped"]))
            targets, symbols = int(cycle["targets"]), int(cycle["symbols"])
        except UNREADABLE as error:
            found.append(Finding(name, False, f"its record cannot be read: {error!r}"))
            continue
        told = f"{len(made)} decisions of {targets} targets, {len(skipped)} skipped, {symbols} symbols"
        # the same clock and inputs have the same id: a cycle that was repeated has each decision twice
        twice = {made.count(s) for s in made}
        ok = len(set(made)) == targets and targets + len(skipped) == symbols
        ok = ok and not set(made) & skipped and len(twice) <= 1
        found.append(Finding(name, ok, told))
    return found or [empty(f, "cycles")]


def _of_cycles(f: Facts) -> str:
    """Which stream it is that no decision with its cycle was found in."""
    return "cycles" if no_stream(f, "cycles") else "decisions"


def _ms(at: str) -> int:
    """The time in the id of an entry, milliseconds."""
    return int(at.partition("-")[0])


def recompute(f: Facts, group: str) -> list[Finding]:
    """The newest records are made again, bit for bit."""
    found = []
    if group == "allocation":
        cycles = {c.get("cycle_id", ""): c for c in f.tail("cycles").texts}
        pairs = [(cycles[d["cycle_id"]], d) for d in f.tail("decisions").texts if d.get("cycle_id", "") in cycles]
        found.append(_again("decisions", pairs[-DECISIONS:]) if pairs else empty(f, _of_cycles(f)))
    for name in ALONE[group]:
        records = [(e,) for e in f.tail(name).texts[-TAIL:] if _is_record(name, e)]
        found.append(_again(name, records) if records else empty(f, name))
    return found


def _is_record(name: str, entry: Fields) -> bool:
    """Whether an entry holds what it was made from; plans of other programs and changes of the kill switch do not."""
    if name == "plans":
        return "desk" in entry
    return name != "events" or (entry.get("event") in ("PERMIT", "BLOCK") and "inputs" in entry)


def _again(name: str, records: Sequence[tuple[Fields, ...]]) -> Finding:
    for told in records:
        try:
            wrong: Mapping[str, tuple[str, str]] = differences(*told)
        except UNREADABLE as error:
            wrong = {"the record": (f"{type(error).__name__}: {error}", "nothing")}
        if wrong:
            field, (was, again) = next(iter(wrong.items()))
            who = told[-1].get("symbol", "") or told[-1].get("plan_id", "")
            what = f"{who} at {told[-1].get('ts', '?')}: {field} is {was!r}, made again {again!r}"
            return Finding(name, False, what)
    return Finding(name, True, f"{len(records)} records, bit for bit")


def caps(f: Facts, _: str) -> list[Finding]:
    """Targets of the newest cycles are within their share of equity, and so are the sums of groups."""
    found = []
    of = defaultdict[str, dict[str, dict[str, str]]](dict)
    for entry in f.tail("decisions").texts:
        of[entry.get("cycle_id", "")][entry.get("symbol", "")] = entry
    for cycle in f.tail("cycles").texts:
        name = cycle.get("cycle_id", "")
        if not of[name]:
            continue
        try:
            params, equity = json.loads(cycle["params"]), _number(cycle["equity_usd"])
            targets = {s: (d["cluster_id"], _number(d["target_usd"])) for s, d in of[name].items()}
            symbol_pct, cluster_pct = _number(params["max_symbol_pct"]), _number(params["max_cluster_pct"])
            one, most, least = _greatest(targets.values(), equity)
        except UNREADABLE as error:
            found.append(Finding(name, False, f"its record cannot be read: {error!r}"))
            continue
        ok = equity > 0.0 and least >= 0.0 and one <= symbol_pct * (1.0 + EXACT) and most <= cluster_pct * (1.0 + EXACT)
        told = f"greatest target {one:.1%} of equity, at most {symbol_pct:.0%}; greatest group {most:.1%}, at most "
        found.append(Finding(name, ok, f"{told}{cluster_pct:.0%}"))
    return found or [empty(f, _of_cycles(f))]


def _number(text: object) -> float:
    value = float(str(text))
    if not math.isfinite(value):
        raise ValueError(f"{text} is no number")
    return value


def _greatest(targets: Collection[tuple[str, float]], equity: float) -> tuple[float, float, float]:
    """The greatest target and the greatest group as shares of equity, and the smallest target in USD."""
    sums = defaultdict[str, list[float]](list)
    for group, usd in targets:
        sums[group].append(usd)
    all_usd = [usd for _, usd in targets]
    return max(all_usd) / equity, max(map(math.fsum, sums.values())) / equity, min(all_usd)


def hashes_agree(f: Facts, group: str) -> list[Finding]:
    """Each hash says what its record in the stream says, and each record has its hash."""
    found = []
    for stream, (name, service, time) in HASH_OF.items():
        if stream not in STREAMS_OF[group]:
            continue
        lanes = _lanes(f, service, stream)
        if not lanes:
            found.append(without(name, f"{service} does not enforce, and SHADOW_LANE is off: it writes none"))
            continue
        records = [e for e in f.tail(stream).entries if e.get("symbol")]
        before = [e for e in records if (codec.unix_seconds(e.get("ts", b"")) or math.inf) <= f.clock - 1.0]
        if not before:
            found.append(empty(f, stream))
            continue
        wrong, there = "", {}
        for lane in lanes:
            there.update({k.of: k for k in f.named(f"{lane}{name}")})
        looked = {s.decode() for e in before if (s := e["symbol"]).decode("ascii", "replace") in f.symbols}
        for symbol in sorted(looked):
            mine = [e for e in records if e["symbol"] == symbol.encode()]
            wrong = wrong or _differs(there.get(symbol), mine, time, f"{symbol} has a record and no hash")
        for symbol in sorted(there.keys() - looked):
            mine = [e for e in records if e["symbol"] == symbol.encode()]
            newest = codec.unix_seconds(there[symbol].fields.get(time, b"")) or 0.0
            oldest = codec.unix_seconds(records[0].get("ts", b"")) or 0.0
            if newest >= oldest:  # older ones are on their way out
                wrong = wrong or _differs(there[symbol], mine, time, "")
        found.append(Finding(name, not wrong, wrong or f"{len(looked)} hashes say what their records say"))
    return found


def _lanes(f: Facts, service: str, stream: str) -> tuple[str, ...]:
    """Where a service writes its hash: live, in the shadow lane, or nowhere."""
    if service == "proposer":
        return ("", "shadow_")
    if f.mode_of(service, stream) == "enforce":
        return ("",)
    return ("shadow_",) if f.has_shadow_lane else ()


def _differs(key: Key | None, records: Sequence[Mapping[str, bytes]], time: str, absent: str) -> str:
    if key is None:
        return absent
    ts = codec.unix_seconds(key.fields.get(time, b""))
    same = [e for e in records if codec.unix_seconds(e.get("ts", b"")) == ts]
    if not same:
        return f"{key.key}: no record in the stream is of its time"
    wrong = ""
    for entry in same:
        apart = [n for n in sorted(key.fields.keys() & entry.keys()) if key.fields[n] != entry[n]]
        if not apart:
            return ""
        was, now = (codec.printable(x[apart[0]]) for x in (key.fields, entry))
        wrong = f"{key.key}: {apart[0]} is {was}, its record says {now}"
    return wrong


def one_configuration(f: Facts, group: str) -> list[Finding]:
    """What a service has decided since its start was decided with its parameters, in its mode."""
    found = []
    for service in (s for s in CONFIGURED if CONFIGURED[s] in STREAMS_OF[group]):
        page = f.second[service]
        if not page.is_here:
            continue
        tail = f.tail(CONFIGURED[service])
        since = float(page.health.get("started_at") or 0.0)
        skew = f.server_now - f.now
        mine = [
            e
            for at, e in zip(tail.ids, tail.texts, strict=True)
            if _ms(at) / 1e3 >= since + skew and "params_hash" in e
        ]
        config = str(page.health.get("config"))
        others = sorted({e["params_hash"] for e in mine} - {config})
        strange = sorted({e["mode"] for e in mine if e.get("mode")} - {page.mode}) if service in MODED else []
        if others or strange:
            what = f"configuration {others[0]}" if others else f"mode {strange[0]}"
            told = f"a record is of {what}, the service runs with {config}, mode {page.mode or '-'}: does it run twice?"
            found.append(Finding(service, False, told))
        elif mine:
            found.append(Finding(service, True, f"{len(mine)} records since its start, all of {config}"))
        else:
            found.append(without(service, "it has decided nothing since its start"))
    return found
