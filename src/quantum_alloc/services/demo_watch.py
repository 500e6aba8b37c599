"""What the demo sees of its own run: the records of each bar, read back from the server, and what they come to.

Everything is taken from the streams, and nothing from the services' memory: so the hash, the tallies and the checks are
those of what stands on record, whatever crashed on the way.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields

from quantum_alloc.adapters import wire
from quantum_alloc.adapters.effects import Reply
from quantum_alloc.adapters.keys import LIVE, Keys
from quantum_alloc.adapters.run_records import Entry, Records, Streams
from quantum_alloc.adapters.store import Store
from quantum_alloc.services.conserve import Recomputer, Valuer

KEPT_WHOLE = ("portfolio", "executions", "transfers", "plans")
SERIES: Mapping[str, frozenset[str]] = {
    "decisions": frozenset(
        [
            "symbol", "target_usd", "regime", "regime_factor", "cluster_factor", "drawdown_factor",
            "performance_factor", "drawdown_zone", "base_usd", "cluster_id", "bound", "timestamp", "ts",
        ]
    ),
    "efficiencies": frozenset(
        [
            "symbol", "efficiency_score", "efficiency_raw", "efficiency_ewma", "confidence", "capital_pressure",
            "stale_flags", "timestamp", "ts",
        ]
    ),
}  # fmt: skip
"""What a report needs of the long streams; kept only for one."""
LEFT_OUT = frozenset(["inputs", "params"])
"""What verdicts and fates are made again from; that is done as they come."""
_NAMES = tuple(f.name for f in fields(Streams))


@dataclass
class Tally:
    """What the governor and the apply layer have come to.

    Attributes:
        permits: how many.
        blocks: by reason.
        would_block: by reason.
        hints: by action and reason.
        events: others, by name.
        fates: of permits, by fate and reason.
        opens, closes: fills.
    """

    permits: int = 0
    blocks: Counter[str] = field(default_factory=Counter)
    would_block: Counter[str] = field(default_factory=Counter)
    hints: Counter[str] = field(default_factory=Counter)
    events: Counter[str] = field(default_factory=Counter)
    fates: Counter[str] = field(default_factory=Counter)
    opens: int = 0
    closes: int = 0

    def add(self, records: Records) -> None:
        """Count some more records."""
        for e in records.events:
            kind = e.get("event", "")
            if kind == "PERMIT":
                self.permits += 1
                self.hints[f"{e.get('eff_action', '')} {e.get('eff_reason', '')}".strip()] += 1
            elif kind == "BLOCK":
                self.blocks[e.get("reason", "")] += 1
            elif kind == "WOULD_BLOCK":
                self.would_block[e.get("reason", "")] += 1
            elif kind != "P29_ALLOCATION_CAP_BLOCK":
                self.events[kind] += 1
        for e in records.results:
            reason = e.get("error") or "ok"
            self.fates[e["fate"] if reason == "ok" else f"{e['fate']} {reason}"] += 1
        closes = sum("pnl_usd" in e for e in records.executions)
        self.closes += closes
        self.opens += len(records.executions) - closes


class Watch:
    """Reads what is new after every bar."""

    def __init__(self, store: Store, streams: Streams, balance_usd: float, *, series: bool, keys: Keys = LIVE) -> None:
        """Begin at the beginning.

        Args:
            store: a connection.
            streams: their names.
            balance_usd: that the account is opened with.
            series: whether what a report needs is kept.
            keys: the names.
        """
        self._store, self._streams, self._keys = store, streams, keys
        self._from = dict.fromkeys(_NAMES, "0-0")
        self._series = series
        self._kept: dict[str, list[Entry]] = {name: [] for name in _NAMES}
        self._digest = hashlib.sha256()
        self._map: Mapping[str, str] = {}
        self.recomputer = Recomputer()
        self.valuer = Valuer(balance_usd)
        self.tally = Tally()

    def look(self, closes: Mapping[str, float]) -> Records:
        """The records since the last look.

        Args:
            closes: of the bar, by symbol.

        Raises:
            StoreError: the server does not answer.
        """
        names = [getattr(self._streams, n) for n in _NAMES]
        command = ("XREAD", "STREAMS", *names, *(self._from[n] for n in _NAMES))
        reply, clusters = self._store.read([command, ("HGETALL", self._keys.clusters)])
        by_stream: dict[str, list[Reply]] = {}
        for row in reply if isinstance(reply, list) else []:
            if isinstance(row, list) and isinstance(row[0], bytes) and isinstance(row[1], list):
                by_stream[row[0].decode()] = row[1]
        found = {n: self._entries(n, by_stream.get(getattr(self._streams, n), [])) for n in _NAMES}
        records = Records(**found)
        for n in _NAMES:
            for entry in found[n]:
                self._digest.update(json.dumps(dict(entry), sort_keys=True).encode())
        self._clusters(clusters)
        self.recomputer.look(records)
        self.valuer.look(records, closes)
        self.tally.add(records)
        self._keep(found)
        return records

    def _entries(self, name: str, rows: Sequence[Reply]) -> tuple[Entry, ...]:
        out: list[Entry] = []
        for row in rows:
            if isinstance(row, list) and isinstance(row[0], bytes):
                self._from[name] = row[0].decode("ascii")
            told = wire.entry_fields(row) or {}
            out.append({k: v.decode("utf-8", "backslashreplace") for k, v in told.items()})
        return tuple(out)

    def _clusters(self, reply: Reply) -> None:
        parts = [p.decode() for p in reply if isinstance(p, bytes)] if isinstance(reply, list) else []
        found = dict(zip(parts[::2], parts[1::2], strict=True))
        if found != self._map:
            self._map = found
            self._digest.update(json.dumps(found, sort_keys=True).encode())

    def _keep(self, found: Mapping[str, Sequence[Entry]]) -> None:
        for name in KEPT_WHOLE:
            self._kept[name] += found[name]
        for name in ("events", "results"):
            self._kept[name] += [{k: v for k, v in e.items() if k not in LEFT_OUT} for e in found[name]]
        if self._series:
            self._kept["cycles"] = list(found["cycles"][-1:]) or self._kept["cycles"]
            for name, wanted in SERIES.items():
                self._kept[name] += [{k: v for k, v in e.items() if k in wanted} for e in found[name]]

    @property
    def clusters(self) -> Mapping[str, str]:
        """The map as it stands."""
        return self._map

    @property
    def sha256(self) -> str:
        """Of all records so far, in order, and of every cluster map."""
        return self._digest.hexdigest()

    @property
    def kept(self) -> Records:
        """What the checks and a report need."""
        return Records(**{name: tuple(entries) for name, entries in self._kept.items()})
