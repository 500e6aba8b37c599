"""``quantum-alloc diff-lanes``: what stands in the live lane and in the shadow lane, per symbol, side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from quantum_alloc.adapters import wire
from quantum_alloc.adapters.keys import HashKeys, Keys
from quantum_alloc.adapters.store import Store
from quantum_alloc.adapters.universe import Universe
from quantum_alloc.core import Reading
from quantum_alloc.core.reading import shown

HOUR_S = 3600

Record = tuple[str, wire.Schema[Any], Callable[[HashKeys, str], str], Callable[[Any], float]]
RECORDS: Sequence[Record] = (
    ("target_usd", wire.TARGET, lambda keys, s: keys.target(s), lambda v: float(v.target_usd)),
    (
        "performance_factor",
        wire.ATTRIBUTION,
        lambda keys, s: keys.attribution(s),
        lambda v: float(v.performance_factor),
    ),
    ("efficiency_score", wire.EFFICIENCY, lambda keys, s: keys.efficiency(s), lambda v: float(v.value.score)),
    ("proposed multiplier", wire.PROPOSAL, lambda keys, s: keys.proposed(s), lambda v: float(v.value.multiplier)),
)


def symbols(store: Store, keys: Keys, fixed: tuple[str, ...], limit: int, now: float) -> tuple[str, ...]:
    """Every symbol with a record in either lane, or in the universe.

    Args:
        store: where to look.
        keys: the names.
        fixed: a list that replaces all finding; empty for none.
        limit: greatest number.
        now: unix seconds.
    """
    prefixes = [key(lane, "") for lane in (keys, keys.shadow) for _, _, key, _ in RECORDS]
    universe = Universe(keys, prefixes, fixed, limit)
    universe.whole = True
    return universe.find(store, store.read(universe.query), now).names


def _cell(reading: Reading[Any], read: Callable[[Any], float]) -> float | str | None:
    value = shown(reading)
    if value is not None:
        return read(value)
    return None if reading.state == "missing" else reading.state


def rows(store: Store, keys: Keys, names: Sequence[str], now: float) -> list[dict[str, Any]]:
    """One row for each symbol and record that stands in a lane.

    Args:
        store: where to look.
        keys: the names.
        names: symbols.
        now: unix seconds.

    Raises:
        StoreError: Redis does not answer.
    """
    out: list[dict[str, Any]] = []
    both: tuple[HashKeys, ...] = keys, keys.shadow
    commands = [s.query(key(lane, n)) for n in names for _, s, key, _ in RECORDS for lane in both]
    replies = iter(store.read(commands))
    for symbol in names:
        for record, schema, _, read in RECORDS:
            live, aside = (wire.decode(schema, next(replies), now, HOUR_S) for _ in range(2))
            if live.state == aside.state == "missing":
                continue
            a, b = _cell(live, read), _cell(aside, read)
            out.append(
                {
                    "symbol": symbol,
                    "record": record,
                    "live": a,
                    "live_age_s": live.age_s,
                    "shadow": b,
                    "shadow_age_s": aside.age_s,
                    "difference": b - a if isinstance(a, float) and isinstance(b, float) else None,
                }
            )
    return out
