"""``quantum-alloc status --inputs``: the ledger of vacuity of a running installation, and what breaks the contract.

    services   their /metrics: looks, real share, reasons, ages, and what is armed but blind
    Redis      a small sample of the live records of each input, held against the registry
    rows       one a service and input or gate, red ones first; worked out by pure functions

A row is BLIND where what counts has had no real data for ten minutes, off contract where a live record is not what the
registry says, and else says how much of the last ten minutes was real. Nothing is written.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from math import isfinite
from typing import Any

from quantum_alloc.adapters.effects import Command, Reply
from quantum_alloc.adapters.input_table import INPUTS
from quantum_alloc.adapters.key_patterns import BY_SYMBOL, FIXED, Names
from quantum_alloc.adapters.keys import STREAMS
from quantum_alloc.adapters.registry import Kind, Record, key_of, record, violations
from quantum_alloc.adapters.store import Store, StoreError
from quantum_alloc.adapters.universe import Universe
from quantum_alloc.adapters.wire import decode_clusters, entry_fields
from quantum_alloc.core.gates import Outcome
from quantum_alloc.core.governor_params import GATES
from quantum_alloc.core.vacuity import UNKNOWING
from quantum_alloc.services.app import SERVICES
from quantum_alloc.services.options import Settings
from quantum_alloc.services.proof_pages import Labels, Page, pages
from quantum_alloc.services.status import ELSEWHERE, NOT_REACHED
from quantum_alloc.services.vacuity import GATE, INPUT

SAMPLE = 20
"""So many symbols and clusters are looked at."""
ENTRIES = 5
"""So many of the newest entries of a stream are."""
FIELDS_MOST = 1_000
CONSTANT_S = 3600.0
OFF, BLIND, UNUSABLE, PARTLY, CONSTANT = "off contract", "BLIND", "unusable", "partly blind", "constant"
NEVER, WELL = "never reached", "ok"
ORDER = (BLIND, OFF, ELSEWHERE, UNUSABLE, PARTLY, CONSTANT, NOT_REACHED, WELL, NEVER)
"""States, the worst first."""
MEANING: Mapping[str, str] = {
    BLIND: "it counts, and has had no real data for 10 minutes",
    OFF: "a live record is not what the registry says",
    UNUSABLE: "nothing of the last 10 minutes was real",
    PARTLY: "some of the last 10 minutes was not real",
    CONSTANT: "no usable value has changed for an hour",
    ELSEWHERE: "the service on this port belongs to another installation",
    NOT_REACHED: "the service does not answer on its port",
    WELL: "all of the last 10 minutes was real, or nothing was looked at",
    NEVER: "nothing has been looked at since the start",
}
NOBODY = "no service answers on its port, so nothing is known of what they look at: see 'quantum-alloc status'"
COLUMNS = ("service", "name", "state", "armed", "looks", "real", "age_s", "same_s", "not_real", "contract")
ROWS: Mapping[tuple[str, str], str] = {(service, r.name): r.record for service, rows in INPUTS.items() for r in rows}


# ---- read


def _key_parts(of: Record, names: Names, symbols: Sequence[str], clusters: Sequence[str]) -> list[tuple[str, str]]:
    """What is looked at of a row: a name for people, and the key."""
    told = key_of(of.name, names)
    if of.name in STREAMS and "{S}" not in told:
        return [(told, told)]
    if of.name in FIXED:
        return [(told, told)]
    part, of_these = ("{S}", symbols) if of.name in BY_SYMBOL else ("{cid}", clusters)
    return [(one, told.replace(part, one)) for one in of_these]


def _hash_of(reply: Reply) -> dict[str, bytes]:
    flat = reply if isinstance(reply, list) else []
    pairs = zip(flat[::2], flat[1::2], strict=False)
    return {n.decode("utf-8", "backslashreplace"): v for n, v in pairs if isinstance(n, bytes) and isinstance(v, bytes)}


def contract(store: Store, settings: Settings, now: float) -> dict[str, str]:
    """The first thing that is wrong with a sample of the live records of each row that is an input; empty for nothing.

    Args:
        store: where to look.
        settings: the names.
        now: unix seconds, for the search of symbols.

    Raises:
        StoreError: Redis does not answer.
    """
    keys, names = settings.keys, Names(settings.keys, settings.streams)
    prefixes = (keys.budget(""), keys.position(""), keys.market(""), keys.target(""), keys.efficiency(""))
    universe = Universe(keys, prefixes, settings.common.symbols, settings.common.max_symbols)
    universe.whole = True
    symbols = universe.find(store, store.read(universe.query), now).names[:SAMPLE]
    size = store.read([("HLEN", keys.clusters)])[0]
    of_map = store.read([("HGETALL", keys.clusters)])[0] if isinstance(size, int) and size <= FIELDS_MOST else []
    clusters = decode_clusters(of_map).ids[:SAMPLE]
    found: dict[str, str] = {}
    for name in sorted(set(ROWS.values())):
        of = record(name)
        looked_at = _key_parts(of, names, symbols, clusters)
        if of.kind is Kind.STREAM:
            found[name] = _of_streams(store, of, looked_at)
        else:
            found[name] = _of_hashes(store, of, looked_at)
    return found


def _of_hashes(store: Store, of: Record, looked_at: Sequence[tuple[str, str]]) -> str:
    sizes = store.read([("HLEN", key) for _, key in looked_at])
    few = []
    for (who, key), size in zip(looked_at, sizes, strict=True):
        if not isinstance(size, int):
            return f"{key} holds another type"
        if 0 < size <= FIELDS_MOST:  # what is larger is not read beside a running service
            few.append((who, key))
    replies = store.read([("HGETALL", key) for _, key in few])
    return _first((who, violations(of, _hash_of(reply))) for (who, _), reply in zip(few, replies, strict=True))


def _of_streams(store: Store, of: Record, looked_at: Sequence[tuple[str, str]]) -> str:
    commands: list[Command] = [("XREVRANGE", key, "+", "-", "COUNT", ENTRIES) for _, key in looked_at]
    found = []
    for (who, key), reply in zip(looked_at, store.read(commands), strict=True):
        if not isinstance(reply, list):
            return f"{key} holds another type"
        for entry in reply:
            fields = entry_fields(entry)
            found.append((who, ["an entry is none"] if fields is None else violations(of, fields)))
    return _first(found)


def _first(found: Iterable[tuple[str, Sequence[str]]]) -> str:
    return next((f"{who}: {wrong[0]}" for who, wrong in found if wrong), "")


# ---- decide


def _samples(page: Page, metric: str) -> Iterator[tuple[Labels, float]]:
    """The samples of a metric that are numbers: a page may come from anybody."""
    return ((labels, value) for labels, value in page.samples.get(metric, ()) if isfinite(value))


def _sample(page: Page, metric: str, kind: str, name: str) -> float | None:
    for labels, value in _samples(page, metric):
        if labels.get("kind") == kind and labels.get("name") == name:
            return value
    return None


def _looks(page: Page, kind: str, name: str) -> tuple[float, dict[str, float]]:
    """How often something was looked at since the start, and how often for nothing, by reason."""
    looks, reasons = 0.0, dict[str, float]()
    if kind == INPUT:
        for labels, n in _samples(page, "quantum_alloc_inputs_total"):
            if labels.get("input") == name:
                looks += n
                if labels.get("reason") != "ok" and n:
                    reasons[labels.get("reason", "")] = n
        return looks, reasons
    for labels, n in _samples(page, "quantum_alloc_gate_outcomes_total"):
        if labels.get("gate") != name or labels.get("outcome") == Outcome.NOT_APPLICABLE.value:
            continue
        reason = labels.get("reason", "")
        looks += n
        if n and (labels.get("outcome") == Outcome.FAIL_OPEN.value or reason in UNKNOWING):
            reasons[reason] = reasons.get(reason, 0.0) + n
    return looks, reasons


def state_of(
    *, armed: bool, blind: bool, wrong: str, looks: float, ratio: float | None, constant_s: float | None
) -> str:
    """The state of a row.

    Args:
        armed: whether it counts.
        blind: whether it is told to be blind.
        wrong: what breaks the contract.
        looks: since the start.
        ratio: share of real looks in the window; None without a look.
        constant_s: how long no value has changed; None where that is not compared.

    >>> state_of(armed=True, blind=False, wrong="", looks=9, ratio=0.5, constant_s=None)
    'partly blind'
    """
    if armed and blind:
        return BLIND
    if wrong:
        return OFF
    if not looks:
        return NEVER
    if ratio is not None and ratio < 1.0:
        return PARTLY if ratio else UNUSABLE
    return CONSTANT if constant_s is not None and constant_s >= CONSTANT_S else WELL


def _row(page: Page, kind: str, name: str, wrong: str) -> dict[str, Any]:
    flag = _sample(page, "quantum_alloc_armed_but_blind", kind, name)
    ratio = _sample(page, "quantum_alloc_real_data_ratio", kind, name)
    constants = _samples(page, "quantum_alloc_input_constant_seconds")
    constant_s = next((v for labels, v in constants if kind == INPUT and labels.get("input") == name), None)
    looks, reasons = _looks(page, kind, name)
    state = state_of(
        armed=flag is not None, blind=flag == 1.0, wrong=wrong, looks=looks, ratio=ratio, constant_s=constant_s
    )
    often = sorted(reasons.items(), key=lambda one: (-one[1], one[0]))
    age_s = _sample(page, "quantum_alloc_real_data_age_seconds", kind, name)
    return {
        "service": page.service,
        "kind": kind,
        "name": f"gate {name}" if kind == GATE else name,
        "state": state,
        "armed": flag is not None,
        "looks": int(looks),
        "real": None if ratio is None else round(ratio, 3),
        "age_s": None if age_s is None else round(age_s),
        "same_s": None if constant_s is None else round(constant_s),
        "not_real": ", ".join(f"{reason} {n:.0f}" for reason, n in often),
        "contract": wrong,
    }


def ledger(
    found: Mapping[str, Page], wrong: Mapping[str, str], elsewhere: Collection[str] = ()
) -> list[dict[str, Any]]:
    """One row a service and input or gate, the worst first.

    Args:
        found: what each service answers.
        wrong: by row of the registry, what breaks the contract; empty where Redis was not asked.
        elsewhere: services that work on another server: nothing is taken from them.
    """
    rows: list[dict[str, Any]] = []
    for service in SERVICES:
        page, inputs = found[service], INPUTS[service]
        if not page.is_here or service in elsewhere:
            if inputs:
                state = ELSEWHERE if service in elsewhere else NOT_REACHED
                rows.append({**dict.fromkeys(COLUMNS), "kind": "", "service": service, "state": state})
            continue
        rows += [_row(page, INPUT, one.name, wrong.get(one.record, "")) for one in inputs]
        if service == "governor":
            rows += [_row(page, GATE, gate.gate, "") for gate in GATES]
    return sorted(rows, key=lambda row: ORDER.index(row["state"]))


def summary(rows: Sequence[Mapping[str, Any]]) -> str:
    """How many rows are in which state, the worst first.

    Args:
        rows: of the ledger.

    >>> summary([{"state": "ok"}, {"state": "BLIND"}, {"state": "ok"}])
    '3 inputs and gates: 1 BLIND, 2 ok'
    """
    counts = ((state, sum(row["state"] == state for row in rows)) for state in ORDER)
    told = ", ".join(f"{n} {state}" for state, n in counts if n)
    return f"{len(rows)} inputs and gates: {told}"


def is_red(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether something that counts is BLIND or off contract.

    Args:
        rows: of the ledger.
    """
    return any(row["armed"] and row["state"] in (BLIND, OFF) for row in rows)


def gather(
    settings: Settings, store: Store, now: float, elsewhere: Collection[str] = ()
) -> tuple[list[dict[str, Any]], str, str]:
    """The ledger, what kept it from reading Redis, and why it may not be ours.

    Args:
        settings: of all services.
        store: where to look.
        now: unix seconds.
        elsewhere: services that work on another server.
    """
    found, wrong, trouble = pages(settings), dict[str, str](), ""
    try:
        wrong = contract(store, settings, now)
    except StoreError as error:
        trouble = str(error)
    ours = {name: page for name, page in found.items() if page.is_here and name not in elsewhere}
    strange = strangers(ours, settings.redis.address()) if ours else NOBODY
    return ledger(found, wrong, elsewhere), trouble, strange


def strangers(found: Mapping[str, Page], address: str) -> str:
    """That services on our ports belong to another installation; empty where all are ours, or tell their server's run.

    Args:
        found: what each service answers.
        address: of the server that we look at.

    >>> ours = {"feed": Page("feed", 1, health={"service": "feed", "redis": "redis://me:***@a:6379/0"})}
    >>> strangers(ours, "redis://a:6379"), strangers(ours, "redis://b:6379")[:66]
    ('', 'feed: another server stands behind this port, a:6379/0 and not b:6')
    """
    told = {name: page.health for name, page in found.items() if page.is_here and not page.health.get("redis_run_id")}
    theirs = {name: _place(str(health.get("redis", ""))) for name, health in told.items()}
    others = {name: place for name, place in theirs.items() if place and _plain(place) != _plain(_place(address))}
    if not others:
        return ""
    place = next(iter(others.values()))
    which = "this port" if len(others) == 1 else "these ports"
    return (
        f"{', '.join(others)}: another server stands behind {which}, {place} and not {_place(address)}:"
        " is it another installation? If not, name the server as the services do"
    )


def _place(address: str) -> str:
    """Host, port and database of an address, without scheme, login and options."""
    return address.rpartition("://")[2].rpartition("@")[2].partition("?")[0]


def _plain(place: str) -> str:
    """The same for addresses that are the same but for what goes without saying."""
    return place.replace("localhost", "127.0.0.1").removesuffix("/").removesuffix("/0")
