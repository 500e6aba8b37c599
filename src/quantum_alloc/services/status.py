"""``quantum-alloc status``: which services run, in which mode, how old their inputs are, and the last cycle.

Services are asked on their ports; inputs, the last allocation cycle and the server's settings are read from Redis.
Nothing is written.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from quantum_alloc.adapters import codec, server_check, wire
from quantum_alloc.adapters.clock import Clock, ShiftedClock, WallClock, offset_s
from quantum_alloc.adapters.flow_writes import STRESS_TTL_S
from quantum_alloc.adapters.keys import Keys
from quantum_alloc.adapters.server_check import Facts, is_another
from quantum_alloc.adapters.store import Store, StoreError
from quantum_alloc.adapters.universe import Universe
from quantum_alloc.core import Reading, age_s
from quantum_alloc.services import apply_status, governor_status
from quantum_alloc.services.app import SERVICES
from quantum_alloc.services.options import (
    AllocationOptions,
    BudgetOptions,
    EfficiencyOptions,
    GovernorOptions,
    PortfolioOptions,
    ProposerOptions,
    Settings,
)
from quantum_alloc.services.units import UNITS

ASK_TIMEOUT_S = 1.0
"""From the first packet to the last: what answers slowly is not waited for."""
ANSWER_LIMIT_BYTES = 64 * 1024
OFFSET_MOST_S = 1e10
OF_OURS = (b"200", b"503")
"""How a service answers, well or not."""
NOT_OURS = " answers here"
OK, NOT_REACHED, ELSEWHERE = "ok", "not reached", "works on another Redis"
NEEDED = frozenset(name for name, unit in UNITS.items() if not unit.paper)
"""Services of quantum-alloc.target, without which an installation does not work; the others count where they answer."""


def services(settings: Settings) -> list[dict[str, Any]]:
    """One row a service, from its ``/health``; all are asked at once."""
    with ThreadPoolExecutor(len(SERVICES)) as threads:
        return list(threads.map(lambda name: service(settings, name), SERVICES))


def service(settings: Settings, name: str) -> dict[str, Any]:
    """What a service says of itself on its port.

    Args:
        settings: they name its address.
        name: of the service.
    """
    host, port = settings.common.metrics_host, settings.services[name].port
    asked = "127.0.0.1" if host in ("0.0.0.0", "::") else host  # noqa: S104 - asked, not bound
    return _service(name, asked, port)


def _service(name: str, host: str, port: int) -> dict[str, Any]:
    row: dict[str, Any] = {"service": name, "port": port}
    try:
        body = _body(_ask(host, port))
    except (OSError, ValueError):
        return {**row, "state": NOT_REACHED}
    if body.get("service") != name:
        return {**row, "state": f"{body.get('service', 'another program')}{NOT_OURS}"}
    state = body.get("status", "unknown") if body.get("ready") else "not ready"
    return {
        **row,
        "state": state,
        "mode": body.get("mode"),
        "cycles": body.get("cycles"),
        "last_cycle_s": body.get("loop_age_s"),
        "ms": body.get("last_cycle_ms"),
        "note": body.get("last_error") or body.get("nothing_written"),
        "clock_offset_s": body.get("clock_offset_s", 0.0),
        "started_at": body.get("started_at"),
        "redis_run_id": body.get("redis_run_id"),
    }


def judged(rows: Sequence[dict[str, Any]], ours: Facts) -> list[dict[str, Any]]:
    """The services' rows, with nothing taken from those that work on another server than ours.

    Args:
        rows: what the services said.
        ours: what our server tells of itself.
    """
    return [
        {"service": row["service"], "port": row["port"], "state": ELSEWHERE}
        if is_another(row.get("redis_run_id"), row.get("last_cycle_s"), ours)
        else row
        for row in rows
    ]


def down(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is not well, a few words each: of what an installation needs everything, of the others those that answer.

    Args:
        rows: of the services.

    >>> down([{"service": "feed", "state": "not reached"}, {"service": "budget", "state": "not reached"}])
    ['budget not reached']
    """
    wrong = (row for row in rows if row["state"] != OK)
    return [f"{r['service']} {r['state']}" for r in wrong if r["service"] in NEEDED or not _is_absent(r["state"])]


def _is_absent(state: str) -> bool:
    return state == NOT_REACHED or state.endswith(NOT_OURS)


def clock_of(settings: Settings, asked: Sequence[dict[str, Any]] | None = None) -> Clock:
    """The clock that the services live on: the machine's, or that of a demo that was kept.

    Args:
        settings: they name the services' addresses, and whether these may live on a clock of their own.
        asked: what the services said; None asks them, where that may be so.
    """
    if settings.of(GovernorOptions).clock != "simulated":
        return WallClock()
    rows = services(settings) if asked is None else asked
    told = {offset for row in rows if isinstance(offset := row.get("clock_offset_s"), int | float)}
    offset = told.pop() if len(told) == 1 else 0.0
    return ShiftedClock(float(offset)) if 0.0 < abs(offset) < OFFSET_MOST_S else WallClock()


def _ask(host: str, port: int) -> bytes:
    """Everything that a port answers, head and body: asked itself, whatever proxies the environment names."""
    deadline, answer = time.monotonic() + ASK_TIMEOUT_S, b""
    with socket.create_connection((host, port), timeout=ASK_TIMEOUT_S) as caller:
        caller.sendall(f"GET /health HTTP/1.0\r\nHost: {host}:{port}\r\n\r\n".encode())
        while len(answer) < ANSWER_LIMIT_BYTES:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            caller.settimeout(left)
            more = caller.recv(ANSWER_LIMIT_BYTES)
            if not more:
                break
            answer += more
    if not answer:
        raise ConnectionError
    return answer


def _body(answer: bytes) -> dict[str, Any]:
    """What a service says of itself; nothing for the answer of another program."""
    head, _, raw = answer.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.") or head[9:12] not in OF_OURS:
        return {}
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        return {}
    return body if isinstance(body, dict) else {}


def _row(name: str, reading: Reading[Any], limit_s: float, count: str = "") -> dict[str, Any]:
    state = "fresh" if reading.state == "ok" else reading.state
    return {"input": name, "state": state, "age_s": reading.age_s, "limit_s": limit_s, "symbols": count}


def inputs(store: Store, settings: Settings, now: float) -> list[dict[str, Any]]:
    """One row an input: the shared ones, and for those of symbols the oldest.

    Raises:
        StoreError: Redis does not answer.
    """
    a, b, p = settings.of(AllocationOptions), settings.of(BudgetOptions), settings.of(PortfolioOptions)
    e, s1 = settings.of(EfficiencyOptions), settings.of(ProposerOptions)
    keys = settings.keys
    prefixes = (keys.budget(""), keys.position(""), keys.market(""), keys.target(""), keys.efficiency(""))
    universe = Universe(keys, prefixes, settings.common.symbols, settings.common.max_symbols)
    universe.whole = True
    names = universe.find(store, store.read(universe.query), now).names
    rows = []
    shared = (
        ("balance", wire.BALANCE, keys.balance, p.balance_stale_s),
        ("portfolio", wire.PORTFOLIO, keys.portfolio, a.stale_data_s),
    )
    for name, schema, key, limit in shared:
        reading: Reading[Any] = wire.decode(schema, store.read([schema.query(key)])[0], now, limit)
        rows.append(_row(name, reading, limit))
    reply = store.read([wire.newest(keys.stream("regime.state"))])[0]
    rows.append(_row("regime", wire.decode_newest(wire.REGIME, reply, now, a.stale_data_s), a.stale_data_s))
    per_symbol: dict[str, tuple[wire.Schema[Any], Any, int]] = {
        "market": (wire.MARKET, keys.market, b.stale_data_s),
        "position": (wire.POSITION, keys.position, p.position_stale_s),
        "budget": (wire.BUDGET, keys.budget, a.stale_data_s),
        "attribution": (wire.ATTRIBUTION, keys.attribution, a.stale_data_s),
        "target": (wire.TARGET, keys.target, e.stale_s_p29),
        "efficiency": (wire.EFFICIENCY, keys.efficiency, s1.stale_s),
        "proposal": (wire.PROPOSAL, keys.proposed, a.stale_data_s),
    }
    if settings.common.shadow_lane:
        aside = keys.shadow
        per_symbol["attribution (shadow)"] = (wire.ATTRIBUTION, aside.attribution, a.stale_data_s)
        per_symbol["target (shadow)"] = (wire.TARGET, aside.target, e.stale_s_p29)
        per_symbol["efficiency (shadow)"] = (wire.EFFICIENCY, aside.efficiency, s1.stale_s)
    for name, (schema, key_of, limit) in per_symbol.items():
        readings = [wire.decode(schema, r, now, limit) for r in store.read([schema.query(key_of(s)) for s in names])]
        there = [r for r in readings if r.state != "missing"]
        good = sum(r.state == "ok" for r in there)
        ages = [r.age_s for r in there if r.age_s is not None]
        state = "missing" if not there else "fresh" if good == len(there) else "partly unusable" if good else "unusable"
        oldest = max(ages, default=None)
        rows.append(
            {"input": name, "state": state, "age_s": oldest, "limit_s": limit, "symbols": f"{good} of {len(names)}"}
        )
    return rows


def clusters(store: Store, keys: Keys, now: float) -> list[dict[str, Any]]:
    """One row a cluster of the map, with its strain.

    Args:
        store: where to look.
        keys: the names.
        now: unix seconds.

    Raises:
        StoreError: Redis does not answer.
    """
    reply = store.read([("HLEN", keys.clusters)])[0]
    if isinstance(reply, int) and reply > wire.MAP_FIELDS_LIMIT:
        return []
    of = wire.decode_clusters(store.read([("HGETALL", keys.clusters)])[0])
    stresses = store.read([wire.STRESS.query(keys.stress(c)) for c in of.ids])
    alphas = store.read([("HGET", keys.stress(c), "alpha") for c in of.ids])
    rows = []
    for name, stress, alpha in zip(of.ids, stresses, alphas, strict=True):
        reading = wire.decode(wire.STRESS, stress, now, STRESS_TTL_S)
        rows.append(
            {
                "cluster": name,
                "members": sum(c == name for c in of.of.values()),
                "stress": reading.value,
                "age_s": reading.age_s,
                "alpha": codec.number(alpha) if isinstance(alpha, bytes) else None,
            }
        )
    return rows


def last_cycle(store: Store, keys: Keys, now: float) -> dict[str, Any] | None:
    """The newest allocation cycle on record.

    Args:
        store: where to look.
        keys: the names.
        now: unix seconds.

    Raises:
        StoreError: Redis does not answer.
    """
    reply = store.read([wire.newest(keys.stream("allocation.cycle"))])[0]
    fields = wire.entry_fields(reply[0]) if isinstance(reply, list) and reply else None
    if not fields:
        return None
    text = {k: codec.printable(v) for k, v in fields.items()}
    when = codec.unix_seconds(fields.get("now", b""))
    names = ("cycle_id", "mode", "symbols", "targets", "equity_usd", "drawdown", "regime", "params_hash")
    shown: dict[str, Any] = {n: text.get(n, "") for n in names}
    for name in ("equity_usd", "drawdown"):
        shown[name] = codec.number(fields.get(name, b""))
    return {**shown, "age_s": None if when is None else age_s(when, now)}


def server(facts: Facts) -> dict[str, Any]:
    """What the server tells of its settings, and what it lacks.

    Args:
        facts: that it tells.
    """
    lacks = server_check.judge(facts, guards=False).lacks
    return {
        "server": facts.version,
        "maxmemory_policy": facts.policy,
        "maxmemory_bytes": facts.maxmemory,
        "appendonly": facts.appendonly,
        "min_replicas": facts.min_replicas,
        "replicas": facts.replicas,
        "lacks": {lack.value: text for lack, text in lacks.items()},
    }


def asked(settings: Settings, store: Store) -> tuple[list[dict[str, Any]], Facts | None, str]:
    """The services' rows, what our server tells of itself, and what kept us from reading it.

    Args:
        settings: of all services.
        store: where to look.
    """
    rows = services(settings)
    try:
        facts = server_check.read_facts(store)
    except StoreError as error:
        return rows, None, str(error)
    return judged(rows, facts), facts, ""


def gather(settings: Settings, store: Store) -> tuple[dict[str, Any], str]:
    """Everything that ``status`` shows, and what kept it from reading Redis; ages by the services' clock."""
    rows, facts, trouble = asked(settings, store)
    clock = clock_of(settings, rows)
    now = clock.now()
    found: dict[str, Any] = {"services": rows, "down": down(rows), "redis": settings.redis.address()}
    found["clock_offset_s"] = offset_s(clock)
    if facts is None:
        return found, trouble
    try:
        found["server"] = server(facts)
        found["inputs"] = inputs(store, settings, now)
        found["clusters"] = clusters(store, settings.keys, now)
        found["gates"] = governor_status.gates(settings.of(GovernorOptions).params())
        found["governor"] = governor_status.state(store, settings.keys)
        found["windows"] = governor_status.windows(store, settings, now)
        found["headroom"] = governor_status.headroom(store, settings, now)
        found["account"], found["permits"] = apply_status.state(store, settings.keys)
        found["last_cycle"] = last_cycle(store, settings.keys, now)
    except StoreError as error:
        return found, str(error)
    return found, ""
