"""What ``quantum-alloc status`` shows of the governor: its gates, the kill switch, and the windows that are used."""

from __future__ import annotations

from typing import Any

from quantum_alloc.adapters import governor_wire as gw
from quantum_alloc.adapters.effects import Reply
from quantum_alloc.adapters.governor_wire import time_us
from quantum_alloc.adapters.keys import Keys
from quantum_alloc.adapters.store import Store
from quantum_alloc.adapters.universe import Universe
from quantum_alloc.core.governor_params import GATES, GovernorParams
from quantum_alloc.core.limits import BURST_S, US, Usage, usage
from quantum_alloc.core.plan import Movement
from quantum_alloc.services.options import GovernorOptions, Settings


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
        now: unix seconds, for the search of symbols.

    Raises:
        StoreError: Redis does not answer.
    """
    p = settings.of(GovernorOptions).params()
    keys = settings.keys
    universe = Universe(keys, (keys.ledger(""),), (), settings.common.max_symbols)
    universe.whole = True
    names = universe.find(store, store.read(universe.query), now).names
    clock, *replies = store.read([("TIME",), *(("HGETALL", keys.ledger(s)) for s in names)])
    now_us = time_us(clock) or round(now * US)
    rows = []
    for symbol, reply in zip(names, replies, strict=True):
        ledger = gw.ledger(reply)
        if ledger is None:
            rows.append({"symbol": symbol, "opens in 1 h": "unreadable"})
        elif ledger.issued:
            rows.append({"symbol": symbol, **_row(usage(ledger.issued.values(), now_us), p, now_us)})
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
