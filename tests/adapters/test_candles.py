"""Laws of the candle reader: any file gives steps in the order of time, flaws with their lines, or one clear error."""

from __future__ import annotations

import gzip
import io
import random
import tempfile
import tracemalloc
import zipfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantum_alloc.adapters.candle_rows import LINE_BYTES_MAX
from quantum_alloc.adapters.candles import Candle, CandleError, Candles, Step, is_gap, read_candles

SAMPLE = Path(__file__).parents[2].parent / "shared" / "data" / "klines_1m_2025-12-13_18.csv.gz"
HEADER = "timestamp_ms,symbol,open,high,low,close,volume"
SHORT = "timestamp_ms,symbol,close,volume"
BINANCE = (
    "open_time,open,high,low,close,volume,close_time,quote_volume,count,taker_buy_volume,taker_buy_quote_volume,ignore"
)
T0 = 1_765_649_880_000
GOOD = f"{T0},BTCUSDT,2,4,1,3,5"


def write(folder: Path, text: str | bytes, name: str = "a.csv") -> Path:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def lines(*rows: str, header: str = HEADER) -> str:
    return "\n".join([header, *rows]) + "\n"


def candles(read: Candles) -> list[Candle]:
    return [candle for step in read.steps for candle in step.candles]


def kline(open_time: int, close_time: int, close: str = "3") -> str:
    return f"{open_time},2,4,1,{close},5,{close_time},100,7,1,2,0"


# --- formats


def test_columns_are_found_by_name(tmp_path: Path) -> None:
    """The order of columns, columns of other names, their absence, case and quotes change nothing."""
    plain = candles(read_candles([write(tmp_path, lines(GOOD))]))
    assert plain == [Candle("BTCUSDT", T0 / 1000 + 60.0, 60.0, 3.0, 5.0)]
    for text in (
        lines(f"x,5,3,BTCUSDT,{T0}", header="note,volume,close,symbol,timestamp_ms"),
        lines(f'"a, b","5","3","BTCUSDT","{T0}"', header='"note","volume","close","symbol","timestamp_ms"'),
        lines(f"{T0},BTCUSDT,3,5,,", header="Timestamp ms, Symbol ,CLOSE,Volume,,"),
        lines(f"{T0},BTCUSDT,3,5,,", header=SHORT),
        lines(f"{T0}.0,BTCUSDT,3e0,+5.", header=SHORT),
    ):
        assert candles(read_candles([write(tmp_path, text)])) == plain


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("bom", ["", "\ufeff"])
def test_bom_line_ends_and_blank_lines_are_nothing(tmp_path: Path, bom: str, end: str) -> None:
    """A byte order mark, CRLF, blank lines and a missing last line end are no flaws."""
    text = bom + end.join([HEADER, "", GOOD, "  ", f"{T0 + 60_000},BTCUSDT,2,4,1,3,5"])
    read = read_candles([write(tmp_path, text)])
    assert (read.rows, read.malformed, read.bar_s) == (2, 0, 60.0)


@pytest.mark.parametrize("header", [True, False])
@pytest.mark.parametrize(("unit", "scale"), [("s", 1), ("ms", 1_000), ("us", 1_000_000), ("ns", 1_000_000_000)])
def test_binance_files_in_any_unit(tmp_path: Path, header: bool, unit: str, scale: int) -> None:
    """A kline file means the same in every unit, with or without its header line; the row tells the bar."""
    seconds = T0 // 1000
    rows = [kline((seconds + 300 * i) * scale, (seconds + 300 * (i + 1)) * scale - 1) for i in range(3)]
    text = "\n".join([BINANCE, *rows] if header else rows)
    read = read_candles([write(tmp_path, text, f"BTCUSDT-5m-{unit}.csv")])
    assert candles(read) == [Candle("BTCUSDT", seconds + 300.0 * (i + 1), 300.0, 3.0, 5.0) for i in range(3)]


def test_interval_of_the_name_stands_in_for_close_time(tmp_path: Path) -> None:
    """Without a close time the interval in the name is the bar; without both it is inferred."""
    text = lines(f"{T0},3,5", f"{T0 + 900_000},3,5", f"{T0 + 1_800_000},3,5", header="open_time,close,volume")
    assert read_candles([write(tmp_path, text, "BTCUSDT-1h-2025.csv")]).bar_s == 3600.0
    assert read_candles([write(tmp_path, text, "BTCUSDT.csv")]).bar_s == 900.0


@pytest.mark.parametrize("name", ["klines.csv", "btcusdt-1m.csv", "BTC_USDT-1m.csv", "-1m.csv", "ß.csv"])
def test_a_name_without_a_symbol_is_refused(tmp_path: Path, name: str) -> None:
    """A kline file whose name tells no symbol is refused with the way out."""
    with pytest.raises(CandleError, match=r"does not begin with a symbol: rename it to something like BTCUSDT-1m"):
        read_candles([write(tmp_path, kline(T0, T0 + 59_999), name)])


@pytest.mark.parametrize("close_time", [T0 - 1, T0 + 60_000, T0 + 10**12, 0])
def test_a_kline_must_fit_the_interval_of_its_name(tmp_path: Path, close_time: int) -> None:
    """A close time before the open time or beyond the interval of the name is a flaw of that line."""
    text = "\n".join([kline(T0, close_time), kline(T0 + 60_000, T0 + 119_999)])
    read = read_candles([write(tmp_path, text, "BTCUSDT-1m.csv")])
    assert (read.rows, read.malformed, read.bar_s) == (1, 1, 60.0)


def test_gzip_is_told_by_content(tmp_path: Path) -> None:
    """The name of a file says nothing about its packing."""
    packed, plain = write(tmp_path, gzip.compress(lines(GOOD).encode()), "p.csv"), write(tmp_path, lines(GOOD), "q.gz")
    assert candles(read_candles([packed])) == candles(read_candles([plain]))


# --- flaws

BAD_ROWS = [
    ("1,BTCUSDT,2,4,1", "5 columns instead of 7"),
    (f"{GOOD},9", "8 columns instead of 7"),
    (f"{T0},btcusdt,2,4,1,3,5", "symbol is not 2 to 30 capital letters and digits: 'btcusdt'"),
    (f"{T0},BTC USDT,2,4,1,3,5", "symbol is not"),
    (f"{T0},,2,4,1,3,5", "symbol is not"),
    ("0,BTCUSDT,2,4,1,3,5", "timestamp_ms is not a whole number above 0: '0'"),
    ("-60000,BTCUSDT,2,4,1,3,5", "timestamp_ms is not a whole number"),
    ("1.5,BTCUSDT,2,4,1,3,5", "timestamp_ms is not a whole number"),
    ("nan,BTCUSDT,2,4,1,3,5", "timestamp_ms is not a whole number"),
    (f"{T0}000,BTCUSDT,2,4,1,3,5", "timestamp_ms is not in milliseconds"),
    (f"{'9' * 5000},BTCUSDT,2,4,1,3,5", "timestamp_ms is not a whole number"),
    *[
        (f"{T0},BTCUSDT,2,4,1,{close},5", "close is not a price from 1e-12 to below 1e15")
        for close in (
            "",
            "0",
            "-3",
            "nan",
            "inf",
            "1e999",
            "1e-999",
            "1e-320",
            "9.9e-13",
            "1_0",
            "0x3",
            " 3",
            "3 ",
            "٣",
            "1e15",
            "3\0",
            "3d",
        )
    ],
    (f"{T0},BTCUSDT,2,x,1,3,5", "high is not a price"),
    (f"{T0},BTCUSDT,2,4,0,3,5", "low is not a price"),
    (f"{T0},BTCUSDT,,4,1,3,5", "open is not a price"),
    (f"{T0},BTCUSDT,2,1,4,3,5", "low is above high"),
    (f"{T0},BTCUSDT,2,4,1,4.01,5", "open or close is outside"),
    (f"{T0},BTCUSDT,0.5,4,1,3,5", "open or close is outside"),
    *[(f"{T0},BTCUSDT,2,4,1,3,{volume}", "volume is not a number of at least 0") for volume in ("-1", "", "inf", "?")],
    (f'{T0},"BTCUSDT,2,4,1,3,5', "quotes do not match"),
    ("\0\x01\x02", "1 columns instead of 7"),
    (HEADER, "symbol is not"),
]


@pytest.mark.parametrize(("row", "reason"), BAD_ROWS)
def test_a_bad_line_is_told_and_passed(tmp_path: Path, row: str, reason: str) -> None:
    """A bad line gives a flaw with file, physical line and reason; the run goes on, and strict stops there."""
    path = write(tmp_path, f"{HEADER}\n\n{GOOD}\n{row}\n{T0 + 60_000},BTCUSDT,2,4,1,3,5\n")
    read = read_candles([path])
    assert (read.rows, read.malformed, len(read.flaws)) == (2, 1, 1)
    assert (read.flaws[0].file, read.flaws[0].line) == (str(path), 4)
    assert read.flaws[0].reason.startswith(reason)
    assert read.flaws[0].reason.isascii()
    assert read.flaws[0].reason.isprintable()
    with pytest.raises(CandleError) as caught:
        read_candles([path], strict=True)
    assert str(caught.value) == f"{path}, line 4: {read.flaws[0].reason}"


def test_bytes_that_are_not_utf8(tmp_path: Path) -> None:
    """Bytes of no encoding spoil a line where they are read, and are ignored where the column is."""
    text = (
        f"{SHORT},note\n{T0},BTCUSDT,3,5,".encode() + b"\xff\xfe\n" + f"{T0},B\udcff,3,5,x".encode("utf-8", "replace")
    )
    read = read_candles([write(tmp_path, text + b"\n\xff\n")])
    assert (read.rows, read.malformed) == (1, 2)


def test_an_endless_line_costs_no_memory(tmp_path: Path) -> None:
    """A line of 10 MB is one flaw, read in pieces; the line after it is read."""
    huge = b"x" * 10_000_000
    path = write(tmp_path, gzip.compress(f"{HEADER}\n".encode() + huge + f"\n{GOOD}\n".encode()))
    tracemalloc.start()
    try:
        read = read_candles([path])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (read.rows, [f.line for f in read.flaws]) == (1, [2])
    assert peak < 2_000_000


@pytest.mark.parametrize("extra", [-1, 0, 1, 2, 3, LINE_BYTES_MAX])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_the_longest_line_is_exact(tmp_path: Path, extra: int, end: bytes) -> None:
    """A line of the limit is read, one byte more is a flaw, and no line number is lost."""
    head = f"{T0},BTCUSDT,3,5,".encode()
    row = head + b"x" * (LINE_BYTES_MAX + extra - len(head))
    text = f"{SHORT},note\n".encode() + row + end + f"{T0 + 60_000},BTCUSDT,3,5,x\nbad".encode()
    read = read_candles([write(tmp_path, text)])
    long = extra > 0
    assert read.rows == 2 - long
    assert [f.line for f in read.flaws] == ([2, 4] if long else [4])


def test_only_the_first_hundred_flaws_are_kept(tmp_path: Path) -> None:
    """All malformed lines are counted, a hundred are told, in the order of files and lines."""
    one, two = write(tmp_path, lines(GOOD, *["x"] * 70)), write(tmp_path, lines(*["y"] * 70), "b.csv")
    read = read_candles([two, one])
    assert (read.malformed, len(read.flaws)) == (140, 100)
    assert [f.line for f in read.flaws] == [*range(2, 72), *range(3, 33)]


@pytest.mark.parametrize("cut", [1, 5, 9, 40, 200])
def test_a_truncated_gzip_keeps_what_was_read(tmp_path: Path, cut: int) -> None:
    """A gzip that ends early gives the rows before the break and one flaw; strict refuses it."""
    rows = [f"{T0 + 60_000 * i},BTCUSDT,2,4,1,3,{random.Random(i).random()}" for i in range(500)]
    path = write(tmp_path, gzip.compress(lines(*rows).encode())[:-cut])
    read = read_candles([path])
    assert 300 < read.rows <= 500
    assert "reading stops here" in read.flaws[-1].reason
    with pytest.raises(CandleError, match="reading stops here"):
        read_candles([path], strict=True)


def test_a_damaged_checksum_is_a_flaw(tmp_path: Path) -> None:
    """A gzip whose checksum does not fit its content is told."""
    packed = bytearray(gzip.compress(lines(GOOD).encode()))
    packed[-6] ^= 1
    read = read_candles([write(tmp_path, bytes(packed))])
    assert (read.rows, read.malformed) == (1, 1)


# --- errors


def test_what_cannot_be_opened_is_one_clear_sentence(tmp_path: Path) -> None:
    """A missing file, a directory, no file and an impossible name are refused with the way out."""
    cases: list[tuple[Sequence[str | Path], str]] = [
        ([tmp_path / "none.csv"], r"none\.csv does not exist: check the path\.$"),
        ([tmp_path], r"is a directory: name the candle files in it\.$"),
        ([tmp_path / "a.csv" / "b"], r"cannot be opened \(Not a directory\)"),
        (["a\0b"], r"a\\x00b cannot be opened"),
        ([], r"No candle in no files: give a file with candles\.$"),
    ]
    write(tmp_path, lines(GOOD))
    for paths, message in cases:
        with pytest.raises(CandleError, match=message):
            read_candles(paths)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"no readable header \(it is empty\): begin it with a line timestamp_ms,symbol,"),
        (b"\n\r\n  \n", r"no readable header \(it is empty\)"),
        (HEADER.encode(), r"^No candle in .*a\.csv: give a file with candles\.$"),
        (f"{HEADER}\nx\n".encode(), r"first flaw: .*a\.csv, line 2: 1 columns instead of 7"),
        (b"timestamp_ms,symbol,price,volume\n", r"no readable header \(no column close\)"),
        (b"time;close\n", r"no readable header \(no column close, open_time, volume\)"),
        (GOOD.encode(), r"no readable header \(no column close, open_time, volume\)"),
        (b"timestamp_ms,symbol,close,close,volume\n", r"has the column close twice"),
        (HEADER.encode("utf-16"), r"no readable header"),
        (bytes(range(256)) * 40, r"no readable header"),
        (b"x" * 1_000_000, r"no readable header \(the line is longer than 65536 bytes\)"),
        (b'"', r"no readable header \(quotes do not match"),
        (b"\x1f\x8b", r"no readable header \(reading stops here"),
        (b"\x1f\x8bxxxxxxxxxxxxxxxxx", r"no readable header \(reading stops here"),
        (gzip.compress(b"", mtime=0), r"no readable header \(it is empty\)"),
    ],
)
def test_a_file_without_candles_is_one_clear_sentence(tmp_path: Path, content: bytes, message: str) -> None:
    """Nothing to read: one sentence that says what a file should look like."""
    with pytest.raises(CandleError, match=message) as caught:
        read_candles([write(tmp_path, content)])
    assert "\n" not in str(caught.value)


def test_other_archives_are_named(tmp_path: Path) -> None:
    """A zip, as the exchange hands it out, is refused by its kind."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("BTCUSDT-1m.csv", kline(T0, T0 + 59_999))
    with pytest.raises(CandleError, match="is a zip archive: unpack it first"):
        read_candles([write(tmp_path, packed.getvalue(), "BTCUSDT-1m.zip")])


# --- assembling


def test_symbols_are_chosen_and_missing_ones_named(tmp_path: Path) -> None:
    """Only the symbols asked for are kept; one that is nowhere is an error that names what is there."""
    path = write(tmp_path, lines(GOOD, f"{T0},ETHUSDT,2,4,1,3,5", f"{T0},XRPUSDT,2,4,1,x,5"))
    assert read_candles([path]).symbols == ("BTCUSDT", "ETHUSDT")
    assert read_candles([path], symbols=("ETHUSDT",)).symbols == ("ETHUSDT",)
    for absent in ("SOLUSDT", "btcusdt", "XRPUSDT"):
        with pytest.raises(
            CandleError, match=rf"No candle of {absent} in the files: .*present \(BTCUSDT, ETHUSDT\)\.$"
        ):
            read_candles([path], symbols=("BTCUSDT", absent))


def test_repeated_and_late_rows(tmp_path: Path) -> None:
    """Of equal times the first given is kept; a row behind a later one is counted and put in its place."""
    rows = [f"{T0 + 60_000 * i},BTCUSDT,{10 + i},{n}" for n, i in enumerate([0, 1, 1, 3, 2, 0, 3, 4])]
    read = read_candles([write(tmp_path, lines(*rows, header=SHORT))])
    assert [(c.close, c.volume) for c in candles(read)] == [(10.0, 0.0), (11, 1), (12, 4), (13, 3), (14, 7)]
    assert (read.rows, read.repeated, read.late, read.malformed) == (5, 3, 2, 0)


@pytest.mark.parametrize(
    ("times", "bar_s"),
    [
        ({"AA": [0, 60, 120]}, {"AA": 60.0}),
        ({"AA": [0, 300, 600, 660]}, {"AA": 300.0}),
        ({"AA": [0, 60, 120, 420, 720]}, {"AA": 60.0}),
        ({"AA": [0]}, {"AA": 60.0}),
        ({"AA": [0, 300]}, {"AA": 300.0}),
        ({"AA": [0, 300, 600], "BB": [0]}, {"AA": 300.0, "BB": 300.0}),
        ({"AA": [0, 300, 600], "BB": [0, 86_400]}, {"AA": 300.0, "BB": 300.0}),
        ({"AA": [0, 300, 600], "BB": [0, 60, 120]}, {"AA": 300.0, "BB": 60.0}),
    ],
)
def test_bar_length_is_the_most_frequent_difference(
    tmp_path: Path, times: dict[str, list[int]], bar_s: dict[str, float]
) -> None:
    """The bar is the most frequent difference of the symbol, else of all, else a minute; the set's is the smallest."""
    rows = [f"{T0 + 1000 * t},{s},3,5" for s, at in times.items() for t in at]
    read = read_candles([write(tmp_path, lines(*rows, header=SHORT))])
    assert {c.symbol: c.bar_s for c in candles(read)} == bar_s
    assert read.bar_s == min(bar_s.values())


def test_mixed_bar_lengths_over_one_time_are_refused(tmp_path: Path) -> None:
    """One symbol's bars of two lengths may follow each other but not lie over each other, in any order of files."""
    minute = write(
        tmp_path, "\n".join(kline(T0 + 60_000 * i, T0 + 60_000 * i + 59_999) for i in range(5)), "BTC-1m.csv"
    )
    five = write(tmp_path, kline(T0, T0 + 299_999), "BTC-5m.csv")
    after = write(tmp_path, kline(T0 + 300_000, T0 + 599_999), "BTC-5m-2.csv")
    for paths in ([minute, five], [five, minute]):
        with pytest.raises(CandleError, match="BTC has bars of 60 s and of 300 s over the same time"):
            read_candles(paths)
    read = read_candles([after, minute])
    assert [c.bar_s for c in candles(read)] == [60.0] * 5 + [300.0]
    assert (read.bar_s, read.first_time, read.last_time) == (60.0, T0 / 1000 + 60, T0 / 1000 + 600)


@pytest.mark.parametrize(
    ("shift_s", "gap"), [(60, False), (89, False), (91, True), (31, False), (29, True), (3600, True)]
)
def test_a_gap_is_more_than_half_a_bar(shift_s: int, gap: bool) -> None:
    """A candle that closes more than half a bar from where it should is a gap."""
    assert is_gap(6000.0, Candle("BTCUSDT", 6000.0 + shift_s, 60.0, 1.0, 0.0)) is gap


def test_steps_can_be_walked_again(tmp_path: Path) -> None:
    """Steps are the same on each walk, also when two walks run side by side."""
    rows = [f"{T0 + 60_000 * i},{s},3,5" for i in range(5) for s in ("BB", "AA")]
    steps = read_candles([write(tmp_path, lines(*rows, header=SHORT))]).steps
    assert list(steps) == list(steps)
    assert all(one == two for one, two in zip(steps, steps, strict=True))
    assert [c.symbol for c in next(iter(steps)).candles] == ["AA", "BB"]


# --- properties

PRICES = st.floats(min_value=1e-12, max_value=9e14)
NAMES = st.text("ABCXYZ0189", min_size=2, max_size=30)
ROWS = st.lists(
    st.tuples(st.integers(0, 40), st.sampled_from(["AA", "BB", "CC"]), PRICES, st.floats(0.0, 1e18)),
    min_size=1,
    max_size=40,
    unique_by=lambda r: r[:2],
)
TOKENS = st.sampled_from(
    [
        *(b"timestamp_ms", b"open_time", b"symbol", b"close", b"volume", b"close_time", b"high", b"low", b"BTC"),
        *(b",", b",", b"\n", b"\r", b'"', b" ", b"\0", b"\xff", b"\xef\xbb\xbf"),
        *(b"1765649880000", b"1765649939999", b"3", b"1e3", b"-0"),
    ]
)
ANY = st.binary(max_size=300) | st.lists(TOKENS, max_size=60).map(b"".join)
BODY = lines(GOOD, f"{T0 + 60_000},BTCUSDT,2,4,1,3,5", f"{T0},ETHUSDT,2,4,1,3,5").encode()


def read_texts(*contents: bytes, name: str = "BTCUSDT-1m-{}.csv", strict: bool = False) -> Candles:
    with tempfile.TemporaryDirectory() as folder:
        return read_candles(
            [write(Path(folder), content, name.format(i)) for i, content in enumerate(contents)], strict=strict
        )


def row_text(rows: Sequence[tuple[int, str, float, float]]) -> bytes:
    return lines(*(f"{T0 + 60_000 * i},{s},{c!r},{v!r}" for i, s, c, v in rows), header=SHORT).encode()


def check_any(content: bytes, strict: bool) -> None:
    try:
        read = read_texts(content, strict=strict)
    except CandleError:
        return
    steps = list(read.steps)
    assert [s.close_time for s in steps] == sorted({s.close_time for s in steps})
    assert sum(len(s.candles) for s in steps) == read.rows > 0
    for step in steps:
        names = [c.symbol for c in step.candles]
        assert names == sorted(set(names))
        assert all(0 < c.close < 1e15 and c.volume >= 0 and c.bar_s > 0 for c in step.candles)
        assert {c.close_time for c in step.candles} == {step.close_time}


@given(content=ANY, packed=st.booleans(), headed=st.booleans(), strict=st.booleans())
def test_any_bytes_are_read_or_refused(content: bytes, packed: bool, headed: bool, strict: bool) -> None:
    """Any content gives ordered valid steps or a CandleError, and nothing else, ever."""
    text = f"{SHORT}\n".encode() + content if headed else content
    check_any(gzip.compress(text, mtime=0) if packed else text, strict)


@given(at=st.integers(0, 400), byte=st.integers(0, 255), packed=st.booleans(), cut=st.booleans())
def test_any_damage_is_read_or_refused(at: int, byte: int, packed: bool, cut: bool) -> None:
    """A good file with one byte changed, or cut anywhere, gives valid steps or a CandleError."""
    damaged = bytearray(gzip.compress(BODY, mtime=0) if packed else BODY)
    damaged[at % len(damaged)] = byte
    check_any(bytes(damaged[: at % len(damaged)] if cut else damaged), strict=False)


@given(
    name=NAMES,
    bar_s=st.integers(1, 86_400),
    slots=st.lists(st.integers(1, 10_000), min_size=1, max_size=30, unique=True),
    data=st.data(),
)
def test_what_is_written_is_read(name: str, bar_s: int, slots: list[int], data: st.DataObject) -> None:
    """Klines written from candles are read as the same candles, bit for bit."""
    want = [
        Candle(name, T0 / 1000 + bar_s * (i + 1), float(bar_s), data.draw(PRICES), data.draw(st.floats(0.0, 1e18)))
        for i in sorted(slots)
    ]
    rows = [
        f"{T0 + 1000 * bar_s * i},{c.close!r},{c.close!r},{c.close!r},{c.close!r},{c.volume!r},"
        f"{T0 + 1000 * bar_s * (i + 1) - 1},0,0,0,0,0"
        for i, c in zip(sorted(slots), want, strict=True)
    ]
    read = read_texts("\n".join(rows).encode(), name=name + "-{}.csv")
    assert list(read.steps) == [Step(c.close_time, (c,)) for c in want]
    assert (read.symbols, read.bar_s, read.late, read.malformed) == ((name,), bar_s, 0, 0)


@given(rows=ROWS, data=st.data())
def test_order_changes_nothing_but_late(rows: list[tuple[int, str, float, float]], data: st.DataObject) -> None:
    """The order of rows, and how they are spread over files in which order, changes nothing but the late counter."""
    rows.sort()
    want = read_texts(row_text(rows))
    mixed = data.draw(st.permutations(rows))
    cut = data.draw(st.integers(0, len(rows)))
    for read in (read_texts(row_text(mixed)), read_texts(row_text(mixed[cut:]), row_text(mixed[:cut]))):
        assert list(read.steps) == list(want.steps)
        for name in ("symbols", "bar_s", "rows", "repeated", "malformed", "flaws", "first_time", "last_time"):
            assert getattr(read, name) == getattr(want, name)
    assert (want.rows, want.late) == (len(rows), 0)


@given(rows=ROWS)
def test_reading_twice_repeats(rows: list[tuple[int, str, float, float]]) -> None:
    """The same file given twice adds repeated rows and nothing else."""
    one, two = read_texts(row_text(rows)), read_texts(row_text(rows), row_text(rows))
    assert list(two.steps) == list(one.steps)
    assert (two.rows, two.repeated) == (len(rows), len(rows))


@pytest.mark.skipif(not SAMPLE.exists(), reason="the sample candles are not beside the repository")
def test_the_sample_file() -> None:
    """The real sample is clean: 44 symbols, 2000 steps, two gaps a symbol."""
    read = read_candles([SAMPLE], strict=True)
    assert (read.rows, len(read.symbols), read.bar_s) == (88_000, 44, 60.0)
    assert (read.repeated, read.late, read.malformed, read.flaws) == (0, 0, 0, ())
    steps = list(read.steps)
    assert len(steps) == 2000
    assert (steps[0].close_time, steps[-1].close_time) == (read.first_time, read.last_time)
    assert all(len(step.candles) == 44 for step in steps)
    gaps = [is_gap(a.close_time, c) for a, b in pairwise(steps) for c in b.candles]
    assert sum(gaps) == 2 * 44
