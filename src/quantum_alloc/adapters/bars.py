"""Bars out of their streams: what each symbol's stream holds, kept up to date with a few entries a cycle.

At first, and whenever the entries that are known are not among the newest ones any more (a restart, a gap in reading, a
stream begun again), a stream is read whole; else only its newest entries are. So the bars are those of the stream, with
or without a restart; an entry that is deleted from the middle is noticed at the next start. An entry that is malformed,
or more than 5 s ahead, is left out and counted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quantum_alloc.adapters import codec, wire
from quantum_alloc.adapters.effects import Failed, Reply
from quantum_alloc.adapters.keys import Keys
from quantum_alloc.adapters.store import Store
from quantum_alloc.core.reading import FUTURE_TOLERANCE_S
from quantum_alloc.core.returns import Bars

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

NEWEST = 8
PAGE = 50
SYMBOLS_PER_BATCH = 100

Bar = tuple[float, float, float]
"""Close time, close, length."""
NOTHING: Bar = (math.nan, math.nan, math.nan)


def decode_bar(entry: Reply) -> Bar | None:
    """One entry of a bar stream; None when malformed.

    Args:
        entry: [id, [field, value, ...]].

    >>> decode_bar([b"1-0", [b"ts", b"60", b"close", b"2.5", b"bar_s", b"60"]])
    (60.0, 2.5, 60.0)
    """
    raw = wire.entry_fields(entry)
    if raw is None:
        return None
    name = next((n for n in ("ts", *wire.TIME_ALIASES) if n in raw), "")
    ts = codec.unix_seconds(raw.get(name, b""))
    close, bar_s = codec.number(raw.get("close", b""), 0.0), codec.number(raw.get("bar_s", b""), 0.0, 1e8)
    if ts is None or not close or not bar_s:
        return None
    return ts, close, bar_s


@dataclass(frozen=True, slots=True, eq=False)
class Tape:
    """The newest entries of one symbol's stream.

    Attributes:
        newest_id: of the newest entry that was read.
        rows: (n, 3) close time, close, length, in the order of the stream; NaN for a malformed entry.
    """

    newest_id: bytes
    rows: Floats


def _id(entry: Reply) -> bytes:
    return entry[0] if isinstance(entry, list) and entry and isinstance(entry[0], bytes) else b""


def bars_in(rows: Floats, now: float) -> Bars:
    """Bars by close time, the last of equal times, without malformed ones and those more than 5 s ahead.

    Args:
        rows: (n, 3), in the order of the stream.
        now: unix seconds.
    """
    import numpy as np

    good = rows[np.floor(rows[:, 0]) - np.floor(now) <= FUTURE_TOLERANCE_S]  # not of NaN
    if not (np.diff(good[:, 0]) > 0.0).all():
        good = good[np.argsort(good[:, 0], kind="stable")]
        good = good[np.append(np.diff(good[:, 0]) > 0.0, True)]
    return Bars(good[:, 0], good[:, 1], good[:, 2])


class BarReader:
    """Keeps the bars of many symbols up to date."""

    def __init__(self, keys: Keys, keep: int) -> None:
        """Nothing is known yet.

        Args:
            keys: the names.
            keep: how many bars of a symbol are kept, the latest.
        """
        self._keys = keys
        self._keep = keep
        self._tapes: dict[str, Tape] = {}
        self.malformed = 0

    def read(self, store: Store, symbols: Sequence[str], now: float) -> dict[str, Bars]:
        """The bars of each symbol that has any.

        Args:
            store: where the streams are.
            symbols: which; what was known of others is forgotten.
            now: unix seconds; later bars are left out.

        Raises:
            StoreError: the store did not answer.
        """
        wanted = set(symbols)
        self._tapes = {s: t for s, t in self._tapes.items() if s in wanted}
        behind = []
        known = [s for s in symbols if s in self._tapes]
        for symbol, reply in self._newest(store, known):
            tape = self._tapes[symbol]
            if tape.newest_id in {_id(e) for e in reply}:
                self._tapes[symbol] = self._extended(tape, reply)
            else:
                behind.append(symbol)
        for symbol in [s for s in symbols if s not in self._tapes] + behind:
            self._tapes.pop(symbol, None)
            whole = self._whole(store, symbol)
            if whole is not None:
                self._tapes[symbol] = whole
        found = {s: bars_in(t.rows, now) for s, t in sorted(self._tapes.items())}
        return {s: b for s, b in found.items() if b.times.size}

    def _newest(self, store: Store, symbols: Sequence[str]) -> Iterator[tuple[str, list[Reply]]]:
        """The newest entries of each symbol, some symbols at a time, so that raw entries do not pile up."""
        for i in range(0, len(symbols), SYMBOLS_PER_BATCH):
            some = symbols[i : i + SYMBOLS_PER_BATCH]
            replies = store.read([("XREVRANGE", self._keys.bars(s), "+", "-", "COUNT", NEWEST) for s in some])
            for symbol, reply in zip(some, replies, strict=True):
                self.malformed += isinstance(reply, Failed)
                yield symbol, reply if isinstance(reply, list) else []

    def _whole(self, store: Store, symbol: str) -> Tape | None:
        """The newest entries that are kept, read backwards page by page; None where there are none."""
        import numpy as np

        bars: list[Bar] = []
        newest, end = b"", b"+"
        while len(bars) < self._keep:
            count = min(PAGE, self._keep - len(bars))
            page = store.read([("XREVRANGE", self._keys.bars(symbol), end, "-", "COUNT", count)])[0]
            if not isinstance(page, list) or not page:
                break
            bars += self._decoded(page)
            newest, end = newest or _id(page[0]), b"(" + _id(page[-1])
            if len(page) < count:
                break
        return Tape(newest, np.array(bars[::-1], dtype=np.float64)) if bars else None

    def _decoded(self, entries: Sequence[Reply]) -> list[Bar]:
        found = [decode_bar(e) for e in entries]
        self.malformed += sum(bar is None for bar in found)
        return [bar or NOTHING for bar in found]

    def _extended(self, tape: Tape, newest_first: Sequence[Reply]) -> Tape:
        import numpy as np

        fresh = []
        for entry in newest_first:
            if _id(entry) == tape.newest_id:
                break
            fresh.append(entry)
        more = self._decoded(fresh)
        if not more:
            return tape
        rows = np.concatenate([tape.rows, np.array(more[::-1], dtype=np.float64)])
        return Tape(_id(newest_first[0]), rows[-self._keep :])
