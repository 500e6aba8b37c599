"""What must hold of running services, judged on their pages alone: up, in time, of one build, moving.

Every judge is a pure function of the facts and a group of checks, and answers a finding a case. Where a service does
not answer, ``up`` says so, and the others leave it out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from quantum_alloc import __version__
from quantum_alloc.adapters import metrics
from quantum_alloc.services.options import GovernorOptions
from quantum_alloc.services.proof_pages import BY_EVENT, ELSEWHERE, NOBODY, Page
from quantum_alloc.services.proof_said import moved_by
from quantum_alloc.services.proof_seen import Facts

REQUIRED: Mapping[str, tuple[str, ...]] = {
    "allocation": ("portfolio", "regime", "clusters", "budget", "allocation"),
    "efficiency": ("attribution", "efficiency"),
    "proposer": ("proposer",),
    "governor": ("governor",),
}
"""Services that a group is about."""
WHERE_RUN: Mapping[str, tuple[str, ...]] = {"allocation": ("feed",), "governor": ("apply", "desk")}
"""Services that other programs may stand in for: they count where they run."""
CLOCK_S = 2.0
"""Clocks may differ by so much: what the governor takes for stable."""
EARLIER_S = 1.0


@dataclass(frozen=True, slots=True)
class Finding:
    """One case of a check.

    Attributes:
        case: what was looked at.
        ok: whether it holds.
        detail: one sentence.
        needed: False where this installation does not have it.
    """

    case: str
    ok: bool
    detail: str
    needed: bool = True


Judge = Callable[[Facts, str], list[Finding]]


def without(case: str, why: str) -> Finding:
    """A case that this installation does not have.

    Args:
        case: what would be looked at.
        why: one sentence.
    """
    return Finding(case, True, why, needed=False)


def services_of(group: str) -> tuple[str, ...]:
    """Every service that a group may look at.

    Args:
        group: of checks.
    """
    return (*REQUIRED[group], *WHERE_RUN.get(group, ()))


def here(f: Facts, group: str) -> Iterator[tuple[Page, Page]]:
    """Both pages of every service of a group that answers in both looks.

    Args:
        f: what was read.
        group: of checks.
    """
    for name in services_of(group):
        if f.first[name].is_here and f.second[name].is_here:
            yield f.first[name], f.second[name]


def up(f: Facts, group: str) -> list[Finding]:
    """Each service answers on its port as itself, in both looks."""
    found = []
    for name in services_of(group):
        a, b = f.first[name], f.second[name]
        optional = name in WHERE_RUN.get(group, ())
        if a.is_here and b.is_here:
            found.append(Finding(name, True, f"answers on port {b.port}, {b.cycles} cycles"))
        elif optional and a.why == b.why == NOBODY:
            found.append(without(name, f"it does not run here: nothing of it answers on port {b.port}"))
        elif ELSEWHERE in (a.why, b.why):
            way = "give it and `prove` the same server"
            found.append(Finding(name, False, f"the service on port {b.port} {ELSEWHERE}: {way}"))
        elif a.is_here or b.is_here:
            found.append(Finding(name, False, f"it answered on port {b.port} in one look of two"))
        else:
            way = f"start it, or give `prove` the settings that move its port: {moved_by(f.settings.services[name])}"
            found.append(Finding(name, False, f"{b.why} on port {b.port}: {way}"))
    return found


def ready(f: Facts, group: str) -> list[Finding]:
    """Each service has reached Redis and finished a cycle, in both looks."""
    return [
        Finding(
            b.service,
            a.ready == b.ready == 200,
            "ready" if a.ready == b.ready == 200 else str(b.health.get("last_error") or "it has finished no cycle yet"),
        )
        for a, b in here(f, group)
    ]


def on_time(f: Facts, group: str) -> list[Finding]:
    """No loop is late, by its page and by its metric."""
    found = []
    for a, b in here(f, group):
        late = a.status != 200 or b.status != 200 or b.sum("quantum_alloc_loop_late") != 0.0
        age = float(b.health.get("loop_age_s") or 0.0)
        told = f"its last cycle ended {age:.1f} s before, interval {b.interval_s:g} s"
        found.append(Finding(b.service, not late, told))
    return found


def one_version(f: Facts, group: str) -> list[Finding]:
    """All services are of the version of this program."""
    found = []
    for _, b in here(f, group):
        told = str(b.health.get("version"))
        others = "" if told == __version__ else f": this program is {__version__}; restart the service, or update it"
        found.append(Finding(b.service, not others, f"version {told}{others}"))
    return found


def modes(f: Facts, group: str) -> list[Finding]:
    """Each mode variable was understood, and page and metric tell one mode."""
    found = []
    modeless = [b.service for _, b in here(f, group) if not b.mode]
    if modeless:
        found.append(without(", ".join(modeless), "a service that has no mode"))
    for _, b in here(f, group):
        if not b.mode:
            continue
        on = [labels.get("mode") for labels, value in b.samples.get("quantum_alloc_mode_info", ()) if value]
        known = not b.sum("quantum_alloc_mode_unrecognised")
        ok = known and on == [b.mode]
        why = "" if ok else ": its metric tells " + ", ".join(map(str, on)) if known else ": it was not understood"
        found.append(Finding(b.service, ok, f"mode {b.mode}{why}"))
    return found


def one_clock(f: Facts, group: str) -> list[Finding]:
    """Services tell one offset, their cycles are of now on that clock, and the server's clock agrees."""
    found = []
    for _, b in here(f, group):
        by = b.offset_s - f.offset_s
        at = b.health.get("last_cycle_at")
        age = float(b.health.get("loop_age_s") or 0.0)
        ahead = float(at or 0.0) - (b.asked + b.offset_s)
        behind = max(0.0, -ahead - age - CLOCK_S - EARLIER_S)
        simulated = f.settings.of(GovernorOptions).clock == "simulated" or not b.offset_s
        if abs(by) > EARLIER_S:
            told = f"its clock is {by:+.1f} s off that of the others"
        elif not simulated:
            told = f"its clock is {b.offset_s:+.1f} s off this machine's, which only a kept demo may be"
        elif at is None:
            told = "it does not say when its last cycle was"
        elif ahead > CLOCK_S or behind > max(15.0, b.interval_s):
            told = f"its last cycle was at {ahead:+.1f} s from now"
        else:
            found.append(
                Finding(b.service, True, f"offset {b.offset_s:+.1f} s, last cycle {max(0.0, -ahead):.0f} s ago")
            )
            continue
        found.append(Finding(b.service, False, told))
    skew = f.server_now - f.now
    found.append(Finding("Redis", abs(skew) <= CLOCK_S, f"its clock is {skew:+.2f} s off this machine's"))
    return found


def metrics_there(f: Facts, group: str) -> list[Finding]:
    """Every metric of a service's table is told of, and nothing else; those without labels have a value."""
    found = []
    for _, b in here(f, group):
        rows = (*metrics.COMMON, *metrics.TABLES[b.service])
        made = {f"{r.name}_created" for r in rows}
        missing = [r.name for r in rows if r.name not in b.families]
        strange = sorted(b.families - {r.name for r in rows} - made)
        empty = [r.name for r in rows if r.name in b.families and (not r.labels or r.start) and not _values(b, r)]
        wrong = [*(f"{n} is not there" for n in missing), *(f"{n} is not in the docs" for n in strange)]
        wrong += [f"{n} has no value" for n in empty]
        found.append(Finding(b.service, not wrong, "; ".join(wrong[:4]) or f"{len(rows)} metrics"))
    return found


def _values(page: Page, row: metrics.Row) -> bool:
    """Whether a metric has the values that it has from the start."""
    if row.kind == "histogram":
        return f"{row.name}_count" in page.samples
    there = {tuple(labels.get(n, "") for n in row.labels) for labels, _ in page.samples.get(row.name, ())}
    return there >= set(row.start or [()])


def metrics_moving(f: Facts, group: str) -> list[Finding]:
    """Each service finishes cycles, by its page and by its metrics; one that waits for events is alive."""
    found = []
    for a, b in here(f, group):
        pages, told = b.cycles - a.cycles, b.sum("quantum_alloc_cycles_total") - a.sum("quantum_alloc_cycles_total")
        if pages < 0 or told < 0:
            found.append(Finding(b.service, False, "it was started again while it was looked at"))
        elif told < pages:
            found.append(Finding(b.service, False, f"its page tells {pages} cycles more, its metrics {told:.0f}"))
        elif pages:
            found.append(Finding(b.service, True, f"{pages} cycles between two looks"))
        elif b.service in BY_EVENT:
            age = float(b.health.get("loop_age_s") or 0.0)
            ok = bool(b.cycles) and age <= max(15.0, 3 * b.interval_s)
            found.append(Finding(b.service, ok, f"nothing came; its loop turned {age:.1f} s before"))
        else:
            what = f"no cycle in {b.asked - a.asked:.1f} s, interval {b.interval_s:g} s"
            found.append(Finding(b.service, False, what))
    return found
