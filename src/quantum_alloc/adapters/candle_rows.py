"""One candle file to rows and flaws: every line is a row, a flaw with its number and reason, or blank.

    layout A   timestamp_ms,symbol[,open][,high][,low],close,volume    by name, any order, other columns ignored
    layout B   open_time,open,high,low,close,volume,close_time,...     Binance's kline file of 12 columns, its header
               line optional; the symbol is the file name before its first "-"
    bar        close_time + 1 unit - open_time, else the interval in the file name (BTCUSDT-1m-2025-12.csv), or unknown
    row        prices in (0, 1e15), volume >= 0, low <= open, close <= high where given, time whole and above 0

``timestamp_ms`` is milliseconds; times of layout B tell their unit by magnitude. Plain or gzip is told by the first
bytes and not by the name. Lines are read in bounded pieces, so neither an endless line nor a bomb fills the memory.
Source: the project's contract, "Time, numbers, names"; Binance's public data description for layout B.
"""

from __future__ import annotations

import csv
import gzip
import math
import re
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import NamedTuple

from quantum_alloc.adapters.codec import USD_LIMIT, number, printable, symbol

LINE_BYTES_MAX = 65_536
BAR_US_MAX = 31 * 86_400_000_000
"""The longest candle there is, one month."""

_EXPECTED = (
    "begin it with a line timestamp_ms,symbol,open,high,low,close,volume, or give a Binance kline file "
    "(open_time,open,high,low,close,volume,close_time,...)"
)
_BINANCE = ("open_time", "open", "high", "low", "close", "volume", "close_time")
_BINANCE_COLUMNS = 12
_PRICE_MIN, _PRICE_MAX = 1e-12, math.nextafter(USD_LIMIT, 0.0)
_INTERVAL = re.compile(r"([1-9][0-9]?)([smhdw])")
_INTERVAL_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_FOREIGN = {b"PK\x03\x04": "zip", b"BZh": "bzip2", b"\xfd7zX": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


class CandleError(Exception):
    """A mistake in what was given; its text is one sentence that names the way out."""


class _BadLine(Exception):
    """Why a line is no candle."""


@dataclass(frozen=True, slots=True)
class Flaw:
    """A line that is no candle.

    Attributes:
        file: the file as it was named.
        line: number of the physical line, from 1.
        reason: what is wrong, safe to print.
    """

    file: str
    line: int
    reason: str


class Row(NamedTuple):
    """One line's candle.

    Attributes:
        symbol: the symbol.
        open_us: begin of the bar, unix microseconds, above 0.
        bar_us: length of the bar, microseconds; 0 where the file does not say.
        close: last price, above 0.
        volume: at least 0.
    """

    symbol: str
    open_us: int
    bar_us: int
    close: float
    volume: float


@dataclass(frozen=True, slots=True)
class _Layout:
    columns: int
    at: dict[str, int]  # column by name
    time: str  # which column is the time: timestamp_ms or open_time
    symbol: str = ""  # from the file name, where there is no such column
    interval_us: int = 0


def _named(path: str | Path) -> tuple[str, int]:
    """Symbol and interval in microseconds (0 for none) out of a file name."""
    parts = Path(path).name.split(".")[0].split("-")
    name = symbol(parts[0].encode("utf-8", "replace"))
    if name is None:
        raise CandleError(
            f"{path} has no symbol column and its name does not begin with a symbol: "
            "rename it to something like BTCUSDT-1m-2025-12.csv."
        )
    match = _INTERVAL.fullmatch(parts[1]) if len(parts) > 1 else None
    return name, int(match[1]) * _INTERVAL_S[match[2]] * 1_000_000 if match else 0


def _layout(path: str | Path, fields: list[bytes]) -> tuple[_Layout, bool]:
    """The layout that a file's first line tells, and whether that line is a header."""
    if fields[0].isdigit() and (len(fields) < 2 or symbol(fields[1]) is None or number(fields[1]) is not None):
        at = {name: i for i, name in enumerate(_BINANCE)}
        return _Layout(_BINANCE_COLUMNS, at, "open_time", *_named(path)), False
    names = [f.decode("utf-8", "replace").strip().lower().replace(" ", "_") for f in fields]
    while names and not names[-1]:
        names.pop()
    at = {name: i for i, name in enumerate(names)}
    time = "timestamp_ms" if "timestamp_ms" in at else "open_time"
    needed = {time, "close", "volume"} | ({"symbol"} if time == "timestamp_ms" else set())
    lacking = sorted(needed - at.keys())
    if lacking:
        raise CandleError(f"{path} has no readable header (no column {', '.join(lacking)}): {_EXPECTED}.")
    twice = sorted(n for n in {*_BINANCE, "timestamp_ms", "symbol"} if names.count(n) > 1)
    if twice:
        raise CandleError(f"{path} has the column {twice[0]} twice: name one of them otherwise.")
    return _Layout(len(names), at, time, *(("", 0) if "symbol" in at else _named(path))), True


def _fields(line: bytes) -> list[bytes]:
    """The columns of one line; a quoted field may hold commas but no line break."""
    if b'"' not in line:
        return line.split(b",")
    try:
        return [f.encode("latin-1") for f in next(csv.reader([line.decode("latin-1")], strict=True))]
    except csv.Error as error:
        raise _BadLine(f"quotes do not match ({error})") from None


def _time_us(raw: bytes, name: str) -> tuple[int, int]:
    """A whole time and its unit, both in microseconds; the unit is told by the magnitude, but for timestamp_ms."""
    value = int(raw) if raw.isdigit() and len(raw) <= 19 else number(raw, 1.0, 2.0**53)
    if not value or value != int(value):
        raise _BadLine(f"{name} is not a whole number above 0: {printable(raw)!r}")
    ticks = int(value)
    if name == "timestamp_ms" and ticks >= 10**14:
        raise _BadLine(f"timestamp_ms is not in milliseconds: {printable(raw)!r}")
    if name == "timestamp_ms" or 10**11 <= ticks < 10**14:
        return ticks * 1000, 1000
    if ticks < 10**11:
        return ticks * 1_000_000, 1_000_000
    return (ticks, 1) if ticks < 10**17 else (ticks // 1000, 1)


def _price(fields: list[bytes], layout: _Layout, name: str) -> float:
    raw = fields[layout.at[name]]
    value = number(raw, _PRICE_MIN, _PRICE_MAX)
    if value is None:
        raise _BadLine(f"{name} is not a price from 1e-12 to below 1e15: {printable(raw)!r}")
    return value


def _bar_us(fields: list[bytes], layout: _Layout, open_us: int) -> int:
    if layout.time != "open_time" or "close_time" not in layout.at:
        return layout.interval_us
    end_us, unit_us = _time_us(fields[layout.at["close_time"]], "close_time")
    bar_us = end_us + unit_us - open_us
    if not 0 < bar_us <= (layout.interval_us or BAR_US_MAX):
        raise _BadLine("close_time is before open_time, or later than the interval in the file's name allows")
    return bar_us


def _row(fields: list[bytes], layout: _Layout, symbols: dict[bytes, str]) -> Row:
    """A line's candle.

    Args:
        fields: the line's columns.
        layout: what they mean.
        symbols: the names seen so far, so that each is checked and held once.
    """
    at = layout.at
    if len(fields) != layout.columns and (len(fields) < layout.columns or any(fields[layout.columns :])):
        raise _BadLine(f"{len(fields)} columns instead of {layout.columns}")
    name = layout.symbol
    if not name:
        raw = fields[at["symbol"]]
        known = symbols.get(raw) or symbol(raw)
        if known is None:
            raise _BadLine(f"symbol is not 2 to 30 capital letters and digits: {printable(raw)!r}")
        name = symbols[raw] = known
    open_us, _ = _time_us(fields[at[layout.time]], layout.time)
    close = _price(fields, layout, "close")
    high = _price(fields, layout, "high") if "high" in at else math.inf
    low = _price(fields, layout, "low") if "low" in at else 0.0
    opened = _price(fields, layout, "open") if "open" in at else close
    if low > high:
        raise _BadLine("low is above high")
    if not (low <= close <= high and low <= opened <= high):
        raise _BadLine("open or close is outside of low to high")
    volume = number(fields[at["volume"]], 0.0, sys.float_info.max)
    if volume is None:
        raise _BadLine(f"volume is not a number of at least 0: {printable(fields[at['volume']])!r}")
    return Row(name, open_us, _bar_us(fields, layout, open_us), close, volume + 0.0)  # + 0.0: no negative zero


def _open(path: str | Path) -> BufferedReader:
    try:
        return open(path, "rb")
    except IsADirectoryError:
        raise CandleError(f"{path} is a directory: name the candle files in it.") from None
    except FileNotFoundError:
        raise CandleError(f"{path} does not exist: check the path.") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        why = getattr(error, "strerror", None) or error
        name = printable(str(path), 200)
        raise CandleError(f"{name} cannot be opened ({why}): give a file that can be read.") from None


def _lines(stream: BufferedReader | gzip.GzipFile) -> Iterator[bytes]:
    """Physical lines without their end; of one that is too long, a little more than the limit."""
    while line := stream.readline(LINE_BYTES_MAX + 2):
        rest = line
        while rest and not rest.endswith(b"\n") and len(line) > LINE_BYTES_MAX:
            rest = stream.readline(LINE_BYTES_MAX)
        yield line.rstrip(b"\r\n")


def read_rows(path: str | Path) -> Iterator[Row | Flaw]:
    """A file's rows and flaws, in the order of its lines.

    Args:
        path: a CSV file, plain or gzip.

    Raises:
        CandleError: the file cannot be opened, or its first line tells no layout.
    """
    file, layout, at, stopped = str(path), None, 0, ""
    symbols: dict[bytes, str] = {}
    with _open(path) as raw:
        try:
            magic = raw.peek(4)
            for mark, kind in _FOREIGN.items():
                if magic.startswith(mark):
                    raise CandleError(f"{path} is a {kind} archive: unpack it first, or pack it with gzip.")
            stream = gzip.GzipFile(fileobj=raw) if magic.startswith(b"\x1f\x8b") else raw
            for at, line in enumerate(_lines(stream), start=1):
                try:
                    if len(line) > LINE_BYTES_MAX:
                        raise _BadLine(f"the line is longer than {LINE_BYTES_MAX} bytes")
                    text = line.removeprefix(b"\xef\xbb\xbf") if at == 1 else line
                    if not text.strip():
                        continue
                    fields = _fields(text)
                    if layout is None:
                        layout, header = _layout(path, fields)
                        if header:
                            continue
                    yield _row(fields, layout, symbols)
                except _BadLine as bad:
                    if layout is None:
                        raise CandleError(f"{path} has no readable header ({bad}): {_EXPECTED}.") from None
                    yield Flaw(file, at, str(bad))
        except (EOFError, OSError, zlib.error) as error:
            stopped = f"reading stops here, the rest is damaged or missing ({error})"
    if layout is None:
        raise CandleError(f"{path} has no readable header ({stopped or 'it is empty'}): {_EXPECTED}.")
    if stopped:
        yield Flaw(file, at + 1, stopped)
