"""Candle files to steps: all candles that close at one instant, in the order of time, whatever order the files had.

    close_time   open time + bar length, unix seconds
    bar length   what the row says; else the most frequent difference between successive open times of its symbol
                 (the smaller of two equally frequent; one that occurs once is no evidence), else the most frequent
                 over all symbols that were asked for, else 60 s
    repeated     same symbol and open time: the first one given is kept
    late         opens before the greatest time that its symbol had in its file so far: put in its right place
    malformed    a line that is no candle: counted, told, passed over (``strict`` makes the first one an error)

Rows are held as columns, 32 bytes each; candles exist only while somebody looks at them. ``candle_rows`` has the
formats. Source: the project's contract, sections 2 and 3.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import merge
from itertools import groupby, islice
from operator import itemgetter, lt, sub
from pathlib import Path

from quantum_alloc.adapters.candle_rows import CandleError, Flaw, Row, read_rows

__all__ = ["Candle", "CandleError", "Candles", "Flaw", "Step", "Steps", "is_gap", "read_candles"]

FLAWS_KEPT = 100
BAR_US = 60_000_000
"""Length of a bar where nothing tells it, microseconds."""


@dataclass(frozen=True, slots=True)
class Candle:
    """One closed candle.

    Attributes:
        symbol: the symbol.
        close_time: END of the bar, unix seconds.
        bar_s: length of the bar, seconds, above 0.
        close: last price, USD, above 0.
        volume: at least 0, in units of the asset.
    """

    symbol: str
    close_time: float
    bar_s: float
    close: float
    volume: float


@dataclass(frozen=True, slots=True)
class Step:
    """All candles that close at one instant.

    Attributes:
        close_time: unix seconds.
        candles: sorted by symbol, at most one a symbol, never empty.
    """

    close_time: float
    candles: tuple[Candle, ...]


@dataclass(slots=True)
class _Series:
    """One symbol's rows as columns of equal length; once assembled, open times rise strictly."""

    open_us: array[int] = field(default_factory=lambda: array("q"))
    bar_us: array[int] = field(default_factory=lambda: array("q"))
    close: array[float] = field(default_factory=lambda: array("d"))
    volume: array[float] = field(default_factory=lambda: array("d"))

    def add(self, row: Row) -> None:
        self.open_us.append(row.open_us)
        self.bar_us.append(row.bar_us)
        self.close.append(row.close)
        self.volume.append(row.volume)

    def take(self, order: Sequence[int]) -> None:
        """Keep these rows, in this order."""
        self.open_us = array("q", map(self.open_us.__getitem__, order))
        self.bar_us = array("q", map(self.bar_us.__getitem__, order))
        self.close = array("d", map(self.close.__getitem__, order))
        self.volume = array("d", map(self.volume.__getitem__, order))

    def rising(self) -> bool:
        return all(map(lt, self.open_us, islice(self.open_us, 1, None)))

    def candles(self, symbol: str) -> Iterator[tuple[int, str, Candle]]:
        """Close time in microseconds, symbol, candle: sorts without looking at the candle."""
        for opened, bar, close, volume in zip(self.open_us, self.bar_us, self.close, self.volume, strict=True):
            yield opened + bar, symbol, Candle(symbol, (opened + bar) / 1e6, bar / 1e6, close, volume)


@dataclass(frozen=True, slots=True)
class Steps:
    """The steps in the order of time, built anew each time they are walked through."""

    _series: Mapping[str, _Series]

    def __iter__(self) -> Iterator[Step]:
        """Each step once."""
        rows = merge(*(series.candles(symbol) for symbol, series in self._series.items()))
        for close_us, group in groupby(rows, key=itemgetter(0)):
            yield Step(close_us / 1e6, tuple([candle for _, _, candle in group]))


@dataclass(frozen=True)
class Candles:
    """What a set of candle files holds.

    Attributes:
        steps: in the order of time; can be walked through any number of times.
        symbols: sorted.
        bar_s: the smallest of the symbols' usual bar lengths, seconds.
        rows: candles kept.
        repeated: rows left out, because their symbol and time had been there.
        late: rows that stood behind a later one of their symbol in their file, repeated ones included.
        malformed: lines that are no candle, of any symbol.
        flaws: the first 100 of them.
        first_time: close time of the first step, unix seconds.
        last_time: close time of the last step, unix seconds.
    """

    steps: Steps
    symbols: tuple[str, ...]
    bar_s: float
    rows: int
    repeated: int
    late: int
    malformed: int
    flaws: tuple[Flaw, ...]
    first_time: float
    last_time: float


def is_gap(previous_close_time: float, candle: Candle) -> bool:
    """Whether bars are missing (or overlap) between the candle before and this one, by more than half a bar.

    Args:
        previous_close_time: close time of the same symbol's candle before, unix seconds.
        candle: this candle.

    >>> is_gap(60.0, Candle("BTCUSDT", 120.0, 60.0, 1.0, 0.0)), is_gap(60.0, Candle("BTCUSDT", 180.0, 60.0, 1.0, 0.0))
    (False, True)
    """
    return abs(candle.close_time - previous_close_time - candle.bar_s) > candle.bar_s / 2


def _most_frequent(counts: Counter[int]) -> int:
    """The most frequent value, the smaller of two; 0 where there is none."""
    return min(counts, key=lambda value: (-counts[value], value), default=0)


def _sort(series: _Series) -> None:
    """By open time; of equal ones the first given stays first."""
    if not series.rising():
        series.take(sorted(range(len(series.open_us)), key=series.open_us.__getitem__))


def _fill_bars(book: Mapping[str, _Series]) -> None:
    """Give every row without a bar length the one that its symbol's times tell. The series are sorted."""
    unknown = {s: series for s, series in book.items() if 0 in series.bar_us}
    counts = {s: Counter(map(sub, islice(u.open_us, 1, None), u.open_us)) for s, u in unknown.items()}
    pooled: Counter[int] = Counter()
    for count in counts.values():
        del count[0]  # repeated rows
        pooled.update(count)
    for symbol, series in unknown.items():
        own = _most_frequent(counts[symbol])
        bar_us = (own if counts[symbol][own] > 1 else _most_frequent(pooled)) or BAR_US
        series.bar_us = array("q", [bar or bar_us for bar in series.bar_us])


def _refuse_mixture(symbol: str, series: _Series) -> None:
    """Bars of different lengths may follow each other, but two of them over the same time would be traded twice."""
    if len(set(series.bar_us)) < 2:
        return
    rows = list(zip(series.open_us, series.bar_us, strict=True))
    for (opened, bar), (next_opened, next_bar) in zip(rows, islice(rows, 1, None), strict=False):
        if bar != next_bar and next_opened < opened + bar:
            small, great = sorted((bar / 1e6, next_bar / 1e6))
            raise CandleError(
                f"{symbol} has bars of {small:g} s and of {great:g} s over the same time: give files of one bar length."
            )


def _drop_repeated(series: _Series) -> int:
    """Keep the first of equal open times; how many went. The series is sorted."""
    times = series.open_us
    if series.rising():
        return 0
    keep = [i for i, opened in enumerate(times) if i == 0 or opened != times[i - 1]]
    dropped = len(times) - len(keep)
    series.take(keep)
    return dropped


def _check_present(wanted: Iterable[str], book: Mapping[str, _Series], others: set[str]) -> None:
    absent = sorted(set(wanted) - book.keys())
    if absent:
        present = sorted(others | book.keys())
        shown = ", ".join(present[:12]) + (", ..." if len(present) > 12 else "")
        raise CandleError(f"No candle of {', '.join(absent)} in the files: choose from those present ({shown}).")


def read_candles(paths: Sequence[str | Path], *, symbols: Sequence[str] = (), strict: bool = False) -> Candles:
    """All candles of some files, merged by time.

    Args:
        paths: CSV files, plain or gzip. Their order changes nothing but which of two equal times is the first.
        symbols: keep only these; empty keeps all.
        strict: raise at the first line that is no candle.

    Raises:
        CandleError: a file that cannot be opened or has no readable header, no candle at all, a symbol of ``symbols``
            that is nowhere, bars of different lengths over the same time; with ``strict`` any flaw.
    """
    wanted, others = frozenset(symbols), set[str]()
    book: dict[str, _Series] = {}
    flaws: list[Flaw] = []
    malformed = late = 0
    for path in paths:
        newest: dict[str, int] = {}
        for row in read_rows(path):
            if isinstance(row, Flaw):
                if strict:
                    raise CandleError(f"{row.file}, line {row.line}: {row.reason}")
                malformed += 1
                if len(flaws) < FLAWS_KEPT:
                    flaws.append(row)
                continue
            symbol, open_us = row.symbol, row.open_us
            if wanted and symbol not in wanted:
                others.add(symbol)
                continue
            if open_us < newest.get(symbol, 0):
                late += 1
            else:
                newest[symbol] = open_us
            if symbol not in book:
                book[symbol] = _Series()
            book[symbol].add(row)
    if not book and not others:
        first = f" (first flaw: {flaws[0].file}, line {flaws[0].line}: {flaws[0].reason})" if flaws else ""
        raise CandleError(f"No candle in {', '.join(map(str, paths)) or 'no files'}{first}: give a file with candles.")
    _check_present(wanted, book, others)
    for series in book.values():
        _sort(series)
    _fill_bars(book)
    repeated = 0
    for symbol, series in book.items():
        _refuse_mixture(symbol, series)
        repeated += _drop_repeated(series)
    return Candles(
        steps=Steps(book),
        symbols=tuple(sorted(book)),
        bar_s=min(_most_frequent(Counter(series.bar_us)) for series in book.values()) / 1e6,
        rows=sum(len(series.open_us) for series in book.values()),
        repeated=repeated,
        late=late,
        malformed=malformed,
        flaws=tuple(flaws),
        first_time=min(s.open_us[0] + s.bar_us[0] for s in book.values()) / 1e6,
        last_time=max(s.open_us[-1] + s.bar_us[-1] for s in book.values()) / 1e6,
    )
