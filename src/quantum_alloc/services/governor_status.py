"""What ``quantum-alloc status`` shows of the governor: its gates, the kill switch, windows and limits that are used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from quantum_alloc.adapters import governor_wire as gw
from quantum_alloc.adapters import wire
from quantum_alloc.adapters.effects import Command, Reply
from quantum_alloc.adapters.governor_wire import time_us
from quantum_alloc.adapters.keys import Keys
from quantum_alloc.adapters.store import Store
from quantum_alloc.adapters.universe import Universe
from quantum_alloc.core.gates import ENFORCE
from quantum_alloc.core.governor_params import GATES, GovernorParams
from quantum_alloc.core.headroom import cooldown_used, is_warned, used
from quantum_alloc.core.limits import (
    BUDGET_STALE_S,
    BURST_S,
    PORTFOLIO_STALE_S,
    TARGET_STALE_S,
    US,
    Booked,
    Usage,
    usage,
)
from quantum_alloc.core.plan import Movement
from quantum_alloc.core.reading import Fresh
from quantum_alloc.services.options import GovernorOptions, Settings

NEAR, OVER = "near", "over"
"""How a limit is marked of which 80 % are used, and one of which more than all is."""
DAILY = ("5", "5 without a price")
EXEMPT = (
    "Of gate 5: full closes, and every close in an emergency, are exempt from the daily limit and counted; so more "
    "than all of it may be used."
)


def note(rows: Sequence[Mapping[str, Any]]) -> str:
    """What to know of rows of headroom; empty for nothing.

    Args:
        rows: as ``headroom`` gives them.

    >>> note([{"gate": "5", "mark": "near"}]), note([{"gate": "5", "mark": "over"}])[:21]
    ('', 'Of gate 5: full close')
    """
    return EXEMPT if any(row["gate"] in DAILY and row["mark"] == OVER for row in rows) else ""


def gates(params: GovernorParams) -> list[dict[str, Any]]:
    """One row a gate: what it does in this mode, how it fails, whom it concerns.

    Args:
        params: of the governor's settings.
    """
    return [
        {
            "gate": g.gate,
            "looks at": g.name,
            "mode": "enforce" if params.enforces(g) else "would_block",
            "fails": g.failure.value,
            "scope": g.scope.value,
            "blocks with": ", ".join(g.reasons),
        }
        for g in GATES
    ]


def _text(reply: Reply) -> str:
    return reply.decode("utf-8", "backslashreplace") if isinstance(reply, bytes) else ""


def state(store: Store, keys: Keys) -> dict[str, Any]:
    """The kill switch, its latch, and what is outstanding.

    Args:
        store: where to look.
        keys: the names.

    Raises:
        StoreError: Redis does not answer.
    """
    kill, latch, raw = store.read(
        [("GET", keys.kill), ("HMGET", keys.latch, "state", "since", "by", "why"), ("HGETALL", keys.book)]
    )
    told = latch if isinstance(latch, list) else [None] * 4
    is_latched, book = gw.is_latched(latch), gw.book(raw)
    outstanding = book.outstanding
    return {
        "kill": gw.kill_state(kill).value,
        "latched": is_latched,
        "by": _text(told[2]) if is_latched else None,
        "why": _text(told[3]) if is_latched else None,
        "reserved opens": "unreadable" if outstanding is None else len(outstanding),
        "reserved_usd": None if outstanding is None else sum(o.usd for o in outstanding),
    }


def windows(store: Store, settings: Settings, now: float) -> list[dict[str, Any]]:
    """One row a symbol with permits on record: what its limits have counted, of how much.

    Args:
        store: where to look.
        settings: with the governor's.
        now: unix seconds: for the search of symbols, and the clock of a demo that was kept; else the server's counts.

    Raises:
        StoreError: Redis does not answer.
    """
    p = settings.of(GovernorOptions).params()
    keys = settings.keys
    universe = Universe(keys, (keys.ledger(""),), (), settings.common.max_symbols)
    universe.whole = True
    names = universe.find(store, store.read(universe.query), now).names
    clock, *replies = store.read([("TIME",), *(("HGETALL", keys.ledger(s)) for s in names)])
    now_us = _now_us(clock, settings, now)
    rows = []
    for symbol, reply in zip(names, replies, strict=True):
        ledger = gw.ledger(reply)
        if ledger is None:
            rows.append({"symbol": symbol, "opens in 1 h": "unreadable"})
        elif ledger.issued:
            rows.append({"symbol": symbol, **_row(usage(ledger.issued.values(), now_us), p, now_us)})
    return rows


def _now_us(server_time: Reply, settings: Settings, now: float) -> int:
    """The clock that the governor counts by, microseconds: the server's, or that of a demo that was kept."""
    simulated = settings.of(GovernorOptions).clock == "simulated"
    return round(now * US) if simulated else time_us(server_time) or round(now * US)


def headroom(store: Store, settings: Settings, now: float) -> list[dict[str, Any]]:
    """One row a limit that is used, the most used first: what is used, of how much; near from 80 % on, over above it.

    Args:
        store: where to look.
        settings: with the governor's.
        now: unix seconds, for the search of symbols and for ages.

    Raises:
        StoreError: Redis does not answer.
    """
    p, keys = settings.of(GovernorOptions).params(), settings.keys
    universe = Universe(keys, (keys.ledger(""), keys.position("")), (), settings.common.max_symbols)
    universe.whole = True
    names = universe.find(store, store.read(universe.query), now).names
    clock, totals, raw_book = store.read([("TIME",), gw.TOTALS.query(keys.portfolio), ("HGETALL", keys.book)])
    now_us = _now_us(clock, settings, now)
    all_of, book = wire.decode(gw.TOTALS, totals, now, PORTFOLIO_STALE_S), gw.book(raw_book).outstanding or ()
    waiting = Booked((one for one in book if one.until_us > now_us), {}).use("")
    rows = []
    if isinstance(all_of, Fresh):
        count, usd = all_of.value.count, all_of.value.notional_usd
        rows.append(_used("4.positions", "", count + waiting.slots, p.max_open_positions))
        rows.append(_used("4.total", "", usd + waiting.usd, p.max_total_notional_usd))
    width = 4
    replies = store.read([c for s in names for c in _asked(keys, s)])
    for i, symbol in enumerate(names):
        issued, *told = replies[width * i : width * (i + 1)]
        ledger = gw.ledger(issued)
        if ledger is not None and ledger.issued:
            rows += _of_ledger(symbol, usage(ledger.issued.values(), now_us), p, now_us)
        rows += _of_exposure(symbol, told, p, now)
    used = [row for row in rows if row is not None and row["used"] > 0.0]
    return sorted(used, key=lambda row: (-row["used"], row["gate"], row["symbol"]))


def _asked(keys: Keys, symbol: str) -> list[Command]:
    return [
        ("HGETALL", keys.ledger(symbol)),
        gw.POSITION.query(keys.position(symbol)),
        gw.BUDGET.query(keys.budget(symbol)),
        gw.TARGET.query(keys.target(symbol)),
    ]


def _used(gate: str, symbol: str, observed: float, limit: float, share: float | None = None) -> dict[str, Any] | None:
    found = used(observed, limit) if share is None else share
    if found is None:
        return None
    mark = OVER if found > 1.0 else NEAR if is_warned(found, before=False) else ""
    return {"gate": gate, "symbol": symbol, "used": found, "observed": observed, "limit": limit, "mark": mark}


def _of_ledger(symbol: str, use: Usage, p: GovernorParams, now_us: int) -> list[dict[str, Any] | None]:
    since_us = now_us - BURST_S * US
    waited_s = p.symbol_cooldown_s if use.last_us is None else (now_us - use.last_us) / US
    left_s = max(0.0, p.symbol_cooldown_s - waited_s)
    return [
        _used("2 opens", symbol, len(use.opens_us), p.max_exec_per_hour),
        _used("3 opens", symbol, sum(at > since_us for at in use.opens_us), p.max_exec_per_5min),
        _used("2 closes", symbol, len(use.closes_us), p.max_close_per_hour),
        _used("3 closes", symbol, sum(at > since_us for at in use.closes_us), p.max_close_per_5min),
        _used("4.cooldown", symbol, left_s, p.symbol_cooldown_s, cooldown_used(waited_s, p.symbol_cooldown_s)),
        _used("5", symbol, use.day_usd, p.max_reduce_notional_per_day_usd),
        _used("5 without a price", symbol, use.day_qty, p.max_reduce_qty_per_day),
    ]


def _of_exposure(symbol: str, told: Sequence[Reply], p: GovernorParams, now: float) -> list[dict[str, Any] | None]:
    """What is held against budget and target, where they are fresh and limit anything."""
    held = wire.decode(gw.POSITION, told[0], now, p.position_max_age_s)
    if not isinstance(held, Fresh) or held.value.mark_usd is None:
        return []
    exposure_usd, rows = abs(held.value.qty) * held.value.mark_usd, []
    limits = (("0", gw.BUDGET, told[1], BUDGET_STALE_S), ("0.5", gw.TARGET, told[2], TARGET_STALE_S))
    for gate, schema, reply, stale_s in limits:
        limit = wire.decode(schema, reply, now, stale_s)
        if isinstance(limit, Fresh) and limit.value.mode == ENFORCE:
            rows.append(_used(gate, symbol, exposure_usd, limit.value.usd))
    return rows


def _row(use: Usage, p: GovernorParams, now_us: int) -> dict[str, Any]:
    since = now_us - BURST_S * US

    def used(movement: Movement, hour: int, burst: int) -> tuple[str, str]:
        times = use.of(movement)
        return f"{len(times)} of {hour}", f"{sum(at > since for at in times)} of {burst}"

    opens = used(Movement.OPEN, p.max_exec_per_hour, p.max_exec_per_5min)
    closes = used(Movement.CLOSE, p.max_close_per_hour, p.max_close_per_5min)
    left_us = 0 if use.last_us is None else max(0, use.last_us + p.symbol_cooldown_s * US - now_us)
    return {
        "opens in 1 h": opens[0],
        "in 5 min": opens[1],
        "closes in 1 h": closes[0],
        "closes in 5 min": closes[1],
        "cooldown_s": round(left_us / US, 1),
        "closed today": f"{use.day_usd:,.2f} of {p.max_reduce_notional_per_day_usd:,.0f} USD",
        "without a price": f"{use.day_qty:g} of {p.max_reduce_qty_per_day:g}",
    }
