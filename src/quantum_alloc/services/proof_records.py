"""What must hold of streams and keys by themselves: well formed, of now, with their expiry, numbers in their ranges.

Entries and keys are held against the registry. A stream that nothing is in yet is left out where the service that
writes it says why, and fails otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping

from quantum_alloc.adapters import codec
from quantum_alloc.adapters.registry import RECORDS, Kind, fields_in
from quantum_alloc.core.reading import age_s
from quantum_alloc.services.proof_facts import TAIL
from quantum_alloc.services.proof_pages import WAIT_INTERVALS, WAIT_MORE_S
from quantum_alloc.services.proof_said import other_kind, wrong_in
from quantum_alloc.services.proof_seen import Facts, Tail
from quantum_alloc.services.proof_services import Finding, without
from quantum_alloc.services.settings import variables

KEYS_OF: Mapping[str, tuple[str, ...]] = {
    "allocation": (
        "universe", "balance", "portfolio", "peak", "position", "market", "clusters", "stress", "budget", "target",
        "shadow_target",
    ),
    "efficiency": (
        "attribution", "shadow_attribution", "attribution_state", "efficiency", "shadow_efficiency", "efficiency_state",
    ),
    "proposer": ("proposed", "shadow_proposed"),
    "governor": (
        "kill", "latch", "rearm", "epoch", "book", "ledger", "last_exec", "tombstone", "permit", "block", "ops_head",
        "apply_state", "desk_state",
    ),
}  # fmt: skip
STREAMS_OF: Mapping[str, tuple[str, ...]] = {
    "allocation": ("bars", "portfolio_states", "regimes", "violations", "cycles", "decisions"),
    "efficiency": ("executions", "dead_executions", "attributions", "efficiencies"),
    "proposer": ("proposals",),
    "governor": ("plans", "dead_plans", "events", "results", "transfers"),
}
WRITER: Mapping[str, tuple[str, str]] = {
    "portfolio_states": ("portfolio", ""),
    "regimes": ("regime", "says"),
    "cycles": ("allocation", ""),
    "decisions": ("allocation", "quantum_alloc_targets"),
    "attributions": ("attribution", "p30_attributions_computed_total"),
    "efficiencies": ("efficiency", "quantum_alloc_symbols"),
    "proposals": ("proposer", "p29_shadow_proposed_total"),
}
"""Streams with an entry a cycle: who writes them, and the metric that counts its entries. ``says`` stands for a service
that tells why it writes nothing; without either there must be entries."""
TOO_EARLY = ("too_few_bars", "no_correlations")
"""What a service says while its market is too young for it; bars that do not come, or stand still, are a fault."""
HASH_OF: Mapping[str, tuple[str, str, str]] = {
    "decisions": ("target", "allocation", "timestamp"),
    "attributions": ("attribution", "attribution", "ts_utc"),
    "efficiencies": ("efficiency", "efficiency", "ts"),
    "proposals": ("proposed", "proposer", "ts_epoch"),
}
"""The hash that tells the same as an entry, who writes it, and the field of its time."""
SHARES: Mapping[str, tuple[tuple[str, float, float], ...]] = {
    "target": (("confidence", 0.0, 1.0), ("weight", 0.0, 1.0)),
    "attribution": (("confidence", 0.0, 1.0), ("performance_factor", 0.0, 1.0), ("alpha_score", -1.0, 1.0)),
    "efficiency": (
        ("confidence", 0.0, 1.0), ("efficiency_score", 0.0, 1.0), ("p30_conf", 0.0, 1.0),
        ("reallocation_weight", -1.0, 1.0),
    ),
    "proposed": (("eff_confidence", 0.0, 1.0), ("eff_score", 0.0, 1.0)),
    "regimes": (("confidence", 0.0, 1.0),),
    "cycles": (("regime_confidence", 0.0, 1.0),),
}  # fmt: skip
"""Numbers of hashes, and of the entries that tell the same, with their ranges."""
SHARES_OF: Mapping[str, tuple[str, ...]] = {
    "allocation": ("regimes", "cycles", "target"),
    "efficiency": ("attribution", "efficiency"),
    "proposer": ("proposed",),
}


def _tails(f: Facts, name: str) -> list[Tail]:
    """The streams of a name: one, or one a symbol."""
    if name != "bars":
        return [f.tail(name)]
    return [t for n, t in f.tails.items() if n.startswith("bars:")]


def too_early(f: Facts, service: str) -> str | None:
    """Why a service cannot write yet; None where it should.

    Args:
        f: what was read.
        service: its CLI name.
    """
    why = f.second[service].health.get("nothing_written")
    return f"the service says: {why}" if why in TOO_EARLY else None


def why_empty(f: Facts, name: str) -> str | None:
    """Why nothing may be in a stream; None where something must be.

    Args:
        f: what was read.
        name: of the stream.
    """
    if name not in WRITER:
        return "nothing has come yet"
    service, metric = WRITER[name]
    page = f.second[service]
    if not page.is_here:
        return None
    if metric == "says":
        return too_early(f, service)
    if metric and not page.sum(metric):
        return f"{service} has had nothing to decide: {metric} is 0"
    return None


def empty(f: Facts, name: str) -> Finding:
    """What is told of a stream that nothing is in.

    Args:
        f: what was read.
        name: of the stream.
    """
    why, other = why_empty(f, name), no_stream(f, name)
    if other:
        return Finding(name, False, other)
    return Finding(name, False, "nothing is in the stream") if why is None else without(name, why)


def no_stream(f: Facts, name: str) -> str:
    """That what should be a stream is none; empty where it is one, or is not there.

    Args:
        f: what was read.
        name: of the stream.
    """
    other = next((t for t in _tails(f, name) if t.kind not in (Kind.STREAM.value, "none")), None)
    return f"{other.key} {other_kind(name, other.kind, Kind.STREAM.value)}" if other else ""


def streams(f: Facts, group: str) -> list[Finding]:
    """The newest entries of each stream are what the registry says."""
    found = []
    for name in STREAMS_OF[group]:
        tails = [t for t in _tails(f, name) if t.entries]
        if other := no_stream(f, name):
            found.append(Finding(name, False, other))
            continue
        if not tails:
            found.append(empty(f, name))
            continue
        looked, wrong = 0, ""
        for tail in tails:
            for at, entry in list(zip(tail.ids, tail.entries, strict=True))[-TAIL:]:
                looked += 1
                told = wrong_in(RECORDS[name], entry)
                wrong = wrong or (f"{tail.key} {at}: {'; '.join(told[:3])}" if told else "")
        found.append(Finding(name, not wrong, wrong or f"{looked} entries"))
    return found


def streams_moving(f: Facts, group: str) -> list[Finding]:
    """The newest entry of a stream that has one a cycle is of now."""
    found = []
    for name, (service, _) in WRITER.items():
        if name not in STREAMS_OF[group]:
            continue
        tail, page = f.tail(name), f.second[service]
        why = why_empty(f, name)
        if why is not None or not tail.entries:
            found.append(empty(f, name))
            continue
        limit = WAIT_INTERVALS * page.interval_s + WAIT_MORE_S
        last = tail.entries[-1]
        ts = codec.unix_seconds(last.get("ts") or last.get("timestamp") or b"")
        age = None if ts is None else age_s(ts, f.clock)
        ok = age is not None and -WAIT_MORE_S <= age <= limit
        told = "its newest entry has no time" if age is None else f"its newest entry is {age} s old"
        found.append(Finding(name, ok, f"{told}, at most {limit:.0f} s are due"))
    return found


def keys(f: Facts, group: str) -> list[Finding]:
    """The keys that stand are what the registry says, in kind and in fields."""
    found = []
    for name in KEYS_OF[group]:
        record, there = RECORDS[name], f.named(name)
        wrong = ""
        for key in there:
            if key.kind != record.kind.value:
                told = [other_kind(name, key.kind, record.kind.value)]
            elif key.kind == "hash":
                told = wrong_in(record, key.fields)
            elif key.kind == "string":
                told = wrong_in(record, fields_in(record, key.text))
            else:
                told = []
            wrong = wrong or (f"{key.key} {'; '.join(told[:3])}" if told else "")
        if there:
            found.append(Finding(name, not wrong, wrong or _many(len(there), "key")))
    return [*found, *_absent(f, group)]


def _many(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def _absent(f: Facts, group: str) -> list[Finding]:
    """The keys of which there is none, in one line."""
    none = [name for name in KEYS_OF[group] if not f.named(name)]
    return [without(", ".join(none), "there is none")] if none else []


def ttl(f: Facts, group: str) -> list[Finding]:
    """A key that expires has an expiry, and no longer one than its own; one that stays has none."""
    found = []
    for name in KEYS_OF[group]:
        there = f.named(name)
        if not there:
            continue
        most, grows = _expiry_s(f, name), RECORDS[name].ttl_grows
        bad = [k for k in there if (k.ttl_s != -1 if most is None else k.ttl_s < 0 or (k.ttl_s > most and not grows))]
        due = "none is due" if most is None else "one is due" if grows else f"at most {most:,} s are due"
        if bad:
            told = "no expiry" if bad[0].ttl_s == -1 else f"{bad[0].ttl_s:,} s"
            found.append(Finding(name, False, f"{bad[0].key} has {told}: {due}"))
        else:
            left = "" if most is None else f", {min(k.ttl_s for k in there):,} s and more left"
            found.append(Finding(name, True, f"{_many(len(there), 'key')}{left}: {due}"))
    return [*found, *_absent(f, group)]


def _expiry_s(f: Facts, name: str) -> int | None:
    record = RECORDS[name]
    if record.ttl_s is None or not record.ttl_from:
        return record.ttl_s
    for group in (f.settings.common, *f.settings.services.values()):
        for v in variables(type(group)):
            if v.spec.env == record.ttl_from:
                return max(record.ttl_s, int(getattr(group, v.field)))
    return record.ttl_s


def shares(f: Facts, group: str) -> list[Finding]:
    """Confidences, scores and factors of hashes and entries are within their ranges."""
    stream_of = {hash_: stream for stream, (hash_, _, _) in HASH_OF.items()}
    found = []
    for name in SHARES_OF[group]:
        wrong, looked = "", 0
        tail = f.tail(stream_of.get(name, name))
        rows = [(f"{tail.key} {at}", e) for at, e in zip(tail.ids, tail.entries, strict=True)]
        for prefix in ("", "shadow_"):
            rows += [(k.key, k.fields) for k in f.named(f"{prefix}{name}")]
        for where, fields in rows:
            for field, low, high in SHARES[name]:
                if not fields.get(field):
                    continue  # missing inputs have none; the registry says where one must be
                looked += 1
                if codec.number(fields[field], low, high) is None:
                    told = codec.printable(fields[field])
                    wrong = wrong or f"{where}: {field} is {told}, due is {low:g}..{high:g}"
        if looked:
            found.append(Finding(name, not wrong, wrong or f"{looked} numbers in their ranges"))
        else:
            found.append(empty(f, stream_of.get(name, name)))
    return found
