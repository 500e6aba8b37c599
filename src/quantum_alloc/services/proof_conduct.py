"""How running services conduct themselves: what they log, what they decide on, and what they leave alone in shadow."""

from __future__ import annotations

from collections.abc import Mapping

from quantum_alloc.core.reading import age_s
from quantum_alloc.services.proof_pages import Page
from quantum_alloc.services.proof_records import HASH_OF, why_empty
from quantum_alloc.services.proof_seen import Facts
from quantum_alloc.services.proof_services import Finding, here, without
from quantum_alloc.services.units import UNITS

OF_SHADOW: Mapping[str, str] = {"allocation": "target", "attribution": "attribution", "efficiency": "efficiency"}
"""Hashes that a service writes in enforce alone."""
STREAM_OF = {service: stream for stream, (_, service, _) in HASH_OF.items()}
CLEAN_S = 3600
"""An error is held against a service for so long, seconds."""


def clean_logs(f: Facts, group: str) -> list[Finding]:
    """No ERROR within the last hour, and none while this looked; warnings are counted."""
    found = []
    for a, b in here(f, group):
        errors, warnings = (_lines(b, level) for level in ("ERROR", "WARNING"))
        if errors is None or warnings is None:
            found.append(Finding(b.service, False, "it does not count its log lines"))
            continue
        last = _last(b, "ERROR")
        new = errors - (_lines(a, "ERROR") or 0.0)
        age = None if last is None else age_s(last, b.asked)
        recent = age is not None and age <= CLEAN_S
        told = f"{errors:.0f} errors and {warnings:.0f} warnings since its start"
        if recent or new > 0:
            again = "an hour after it" if age is None else f"in {max(0, CLEAN_S - age) + 1} s"
            told += "; one just now" if age is None else f"; the last error {age} s ago"
            told += f": {_where(f, b.service)}, and this passes again {again}"
        elif _lines(a, "WARNING") != warnings:
            told += "; a warning just now"
        found.append(Finding(b.service, not recent and new <= 0, told))
    return found


def _where(f: Facts, service: str) -> str:
    """What tells the lines of a service."""
    if f.log:
        return f"{f.log} tells which"
    return f"`journalctl -u {UNITS[service].name} -p err` tells which" if service in UNITS else "its log tells which"


def _lines(page: Page, level: str) -> float | None:
    return next(
        (v for ls, v in page.samples.get("quantum_alloc_log_lines_total", ()) if ls.get("level") == level), None
    )


def _last(page: Page, level: str) -> float | None:
    name = "quantum_alloc_last_log_line_timestamp_seconds"
    return next((v for labels, v in page.samples.get(name, ()) if labels.get("level") == level and v), None)


def not_blind(f: Facts, group: str) -> list[Finding]:
    """Nothing that is armed decides without real data."""
    found = []
    for _, b in here(f, group):
        armed = b.samples.get("quantum_alloc_armed_but_blind", ())
        blind = [f"{ls.get('kind')} {ls.get('name')}" for ls, value in armed if value]
        if not armed:
            found.append(without(b.service, "nothing of it counts: it is armed nowhere"))
        elif blind:
            more = f" and {len(blind) - 5} more" if len(blind) > 5 else ""
            told = f"{', '.join(blind[:5])}{more}: no real data for 10 minutes; `status --inputs` tells why"
            found.append(Finding(b.service, False, told))
        else:
            found.append(Finding(b.service, True, f"{len(armed)} armed, none blind"))
    return found


def shadow_writes_nothing(f: Facts, group: str) -> list[Finding]:
    """Hashes of a service in shadow stood still between the looks, while it finished cycles."""
    found = []
    for a, b in here(f, group):
        name = OF_SHADOW.get(b.service)
        if name is None:
            continue
        if b.mode != "shadow":
            found.append(without(b.service, f"mode {b.mode}: its hashes are meant to be written; cases in a lane of "
                                 "its own prove its shadow"))  # fmt: skip
            continue
        after = {k.key: k.fields for k in f.named(name)}
        changed = sorted(k for k, fields in after.items() if f.before.get(k) != fields)
        cycles, idle = b.cycles - a.cycles, why_empty(f, STREAM_OF[b.service])
        if idle and not changed:
            found.append(without(b.service, idle))
            continue
        if changed:
            told = f"{changed[0]} was written, by it or by another program that writes the same keys"
        else:
            told = f"{len(after)} live hashes stand, none was written in {cycles} cycles"
        found.append(Finding(b.service, not changed and cycles > 0, told))
    return found
