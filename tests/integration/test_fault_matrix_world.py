"""What other programs and the clock do to each service: streams that go, names that lie, values without bounds, hours
that jump.

Each service has its world and runs; then the world is changed under it. Nobody ends or makes a programming error, the
labels of the metrics stay bounded, sound symbols get what they get, and when the world is sound again so is the output.
"""

from __future__ import annotations

import io
import json
import logging
import math
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from quantum_alloc.adapters.clock import SetClock
from quantum_alloc.adapters.embedded import EmbeddedServer
from quantum_alloc.adapters.keys import LIVE
from quantum_alloc.services.logs import Plain
from tests.conftest import CI
from tests.support import faulting as f
from tests.support import governing as gov
from tests.support.faulting import AA, BB, CC, NAMES, NOW, Case
from tests.support.worlds import Client

HOSTILE = ("btcusdt", "A", "X" * 31, "BTC USDT", "BTC\nUSDT", "\x1b[2JUSDT", "proposed:BTCUSDT", "AAUSDT:x", "ÄÖÜ", "")
FLOOD = "FLOOD"
FEW, MANY = 600, 10_000
"""Symbols of a flood: more than get a label of their own, and the most that there may be."""
TURNS = 3
OF_FIELDS = ("portfolio", "clusters", "budget", "allocation", "efficiency", "proposer")
"""Those that read a number of each symbol in every turn."""
LABELS_MAX = 501
"""METRICS_MAX_SYMBOLS, and ``other``."""
FIELDS = {
    LIVE.market: "price", LIVE.position: "position_amt", LIVE.budget: "budget_usd", LIVE.target: "target_usd",
    LIVE.attribution: "performance_factor", LIVE.efficiency: "efficiency_score",
}  # fmt: skip
"""A number in each hash of a symbol."""
STREAMS = {
    "feed": (LIVE.bars(AA), LIVE.bars(BB), LIVE.stream("execution.result")),
    "portfolio": (LIVE.stream("portfolio.state"),),
    "regime": (LIVE.bars(AA), LIVE.bars(BB), LIVE.stream("regime.state")),
    "clusters": (LIVE.bars(AA), LIVE.bars(BB)),
    "budget": (LIVE.stream("budget.violation"),),
    "attribution": (LIVE.stream("execution.result"), LIVE.stream("alpha.attribution")),
    "allocation": (LIVE.stream("regime.state"), LIVE.stream("allocation.decision"), LIVE.stream("allocation.cycle")),
    "efficiency": (LIVE.stream("execution.result"), LIVE.stream("capital.efficiency.decision")),
    "proposer": (LIVE.stream("allocation.target.proposed"),),
    "desk": (LIVE.bars(AA), LIVE.bars(BB), gov.PLANS),
    "governor": (gov.PLANS, LIVE.events, LIVE.stream("budget.violation")),
    "apply": (LIVE.events, LIVE.results, LIVE.stream("execution.result"), LIVE.transfers),
}
"""The streams that each service reads or writes."""


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """What is logged, as it is written."""
    text = io.StringIO()
    handler = logging.StreamHandler(text)
    handler.setFormatter(Plain())
    root = logging.getLogger("quantum_alloc")
    root.addHandler(handler)
    yield text
    root.removeHandler(handler)


def sound(one: Case, what: str) -> None:
    """A turn that ends, without an error of ours."""
    assert one.turn(), f"{what}: {one.loop.last_error}"
    assert one.counted("quantum_alloc_cycles_total").get("error", 0.0) == 0.0, what
    assert one.metrics.value("quantum_alloc_symbol_errors_total") == 0.0, what
    assert one.loop.ready, what


def anew(client: Client, name: str, now: float, number: int) -> None:
    """The world is written again, as other programs do, with new work for those that go by event."""
    plans = client.xlen(gov.PLANS)
    f.seed(client, now, name, plans=0)
    assert client.xlen(gov.PLANS) == plans
    if name in ("governor", "apply"):
        gov.opening(client, f"n{number}", AA, repr(now), price=f.price(AA, f.BARS))
    if name == "desk":  # a bar that no plan was made for
        ts = math.floor(now / 60.0) * 60.0 + 1.0
        client.xadd(LIVE.bars(AA), {"ts": ts, "close": 130.0 + number, "volume": 1, "bar_s": 60})


def permits(client: Client, url: str, directory: Path, clock: SetClock) -> None:
    """A governor answers, where it is the apply layer that is looked at."""
    where = directory / "governor"
    governor = Case("governor", url, where, clock, GOV_MAX_EXEC_PER_HOUR="1000", GOV_MAX_EXEC_PER_5MIN="1000")
    assert governor.turn(), governor.loop.last_error
    governor.end()
    assert gov.events(client)[-1]["event"] == "PERMIT", gov.events(client)[-1]


def works(one: Case, client: Client, url: str, directory: Path, clock: SetClock, number: int) -> None:
    """With a sound world, at the present clock, the service writes what it is there for within three turns."""
    anew(client, one.name, clock.now(), number)
    if one.name == "apply":
        sound(one, "marks")  # positions are as fresh as prices are
        permits(client, url, directory, clock)
    before = f.dump(client)
    for _ in range(3):
        sound(one, f"{one.name}, {number}")
        clock.set(clock.now() + 1.0)
    assert one.loop.last_nothing == "", f"{one.name}, {number}: {one.loop.last_nothing}"
    changed = f.differing(before, f.dump(client))
    assert f.OUTPUT[one.name] in changed, f"{one.name}, {number}: {changed}"


@pytest.mark.parametrize("how", ["deleted", "trimmed", "scripts flushed"])
@pytest.mark.parametrize("name", NAMES)
def test_streams_deleted_or_trimmed(
    name: str, how: str, one_server: EmbeddedServer, one_client: Client, tmp_path: Path
) -> None:
    """Each stream that a service reads or writes, and the groups on it, deleted or trimmed while it runs, or every
    script forgotten: it goes on, and takes up what comes afterwards."""
    clock = SetClock(NOW)
    f.prepared(name, one_server, one_client, tmp_path / "prepared", clock)
    one = Case(name, one_server.url, tmp_path, clock)
    try:
        sound(one, name)
        streams = STREAMS[name] if how != "scripts flushed" else ("",)
        for n, stream in enumerate(streams if CI else streams[:2], 1):
            if how == "deleted":
                one_client.delete(stream)
            elif how == "trimmed":
                one_client.xtrim(stream, maxlen=1, approximate=False)
            else:
                one_client.script_flush()
            clock.set(clock.now() + 5.0)
            sound(one, f"{name}, {stream} {how}")
            clock.set(clock.now() + 180.0)  # an unanswered plan is none any more
            works(one, one_client, one_server.url, tmp_path, clock, n)
    finally:
        one.end()


@pytest.mark.parametrize("name", NAMES)
def test_clock_jumps(name: str, one_server: EmbeddedServer, one_client: Client, tmp_path: Path) -> None:
    """Everybody's clock jumps by six hours forward, and then back by twelve: no crash, and with inputs of the new time
    the service works again at once: nothing of its own that is stamped ahead keeps it from that."""
    clock = SetClock(NOW)
    f.prepared(name, one_server, one_client, tmp_path / "prepared", clock)
    one = Case(name, one_server.url, tmp_path, clock)
    try:
        sound(one, name)
        for n, hours in enumerate((6, -12), 1):
            clock.set(clock.now() + 3600.0 * hours)
            sound(one, f"{name}, {hours} hours")  # on inputs of another time
            if hours > 0 or name not in WATERMARK:
                clock.set(clock.now() + 61.0)  # keys are looked for once a minute
                newcomer(one_client, name, clock.now(), f"N{n}USDT")
                works(one, one_client, one_server.url, tmp_path, clock, n)
                symbols = one.metrics.value("quantum_alloc_symbols")
                if name == "clusters":
                    assert f"N{n}USDT" in "".join(one_client.hvals(LIVE.clusters))
                new = 1 if name in OF_BARS else n
                assert name not in SCANS or symbols == len(f.SYMBOLS) + new, f"{name}, {hours} hours: {symbols} symbols"
            else:
                stands_still(one, one_client, one_server.url, tmp_path, clock)
    finally:
        one.end()


SCANS = ("portfolio", "regime", "clusters", "budget", "allocation", "efficiency", "proposer")
"""Those that find new symbols by their keys, now and then."""

OF_BARS = ("regime", "clusters")
"""Those that leave out a bar that is ahead: what came at the later time is none any more."""


def newcomer(client: Client, name: str, now: float, symbol: str) -> None:
    """A symbol that nobody has put into the universe: it has the keys of another."""
    f.seed(client, now, name, plans=0)
    for key in (*FIELDS, LIVE.bars):
        assert client.copy(key(BB), key(symbol), replace=True)


WATERMARK = {
    "governor": "its windows never go back: plans of an earlier time wait until the clock has caught up",
    "apply": "its permits come from a governor",
    "desk": "a plan is made of a bar that is newer than that of the last one: an older one would be expired anyway",
}
"""Those that do not follow a clock that is set back."""


def stands_still(one: Case, client: Client, url: str, directory: Path, clock: SetClock) -> None:
    """Nothing is permitted or filled by a clock that went back; it goes on from where it was."""
    before = len(gov.events(client, "PERMIT"))
    anew(client, one.name, clock.now(), 7)
    if one.name != "apply":
        sound(one, "set back")
        assert len(gov.events(client, "PERMIT")) == before
    clock.set(clock.now() + 12 * 3600.0 + 600.0)
    works(one, client, url, directory, clock, 8)


def hostile(client: Client, now: float, many: int) -> None:
    """Names that are none, fields of a megabyte and of any bytes, entries that are poison, and a flood of symbols."""
    pipe = client.pipeline(transaction=False)
    for n in HOSTILE:
        pipe.sadd(LIVE.universe, n)
        for key, field in FIELDS.items():
            pipe.hset(key(n), mapping={field: 1, "timestamp": int(now)})
        pipe.xadd(LIVE.bars(n), {"ts": now, "close": 1, "bar_s": 60})
        pipe.xadd(LIVE.stream("execution.result"), {"symbol": n, "pnl_usd": 1, "timestamp": int(now)})
        plan = {"plan_id": n, "symbol": n, "action": n, "decision": "EXECUTE", "timestamp": now, "side": n, "qty": 1}
        pipe.xadd(gov.PLANS, plan)
        pipe.xadd(LIVE.events, {"event": "PERMIT", "plan_id": n, "symbol": n, "reason": n, "timestamp": now})
        pipe.hset(LIVE.clusters, n or "\x00", json.dumps([n, AA, {"x": n}]))
    for key, field in FIELDS.items():
        pipe.hset(key(AA), mapping={field: "0" * 1_000_000 + "800", "\x00\xff": b"\xff\xfe" * 50})
        pipe.hset(key(BB), mapping={field: b"\x00\xff\x13"})
    poison: list[dict[str | bytes, str | bytes]] = [
        {b"\xff": b"\xfe"},
        {"symbol": "7" * 1_000_000},
        {"json": "{" * 500},
    ]
    poison.append({"payload": "[" * 5000, "event": "PERMIT", "plan_id": "p" * 5000})
    for stream in (LIVE.bars(AA), LIVE.stream("execution.result"), gov.PLANS, LIVE.events, LIVE.results,
                   LIVE.transfers, LIVE.stream("regime.state"), LIVE.stream("budget.violation")):  # fmt: skip
        for entry in poison:
            pipe.xadd(stream, entry)
    flood = [f"{FLOOD}{i:05}USDT" for i in range(many)]
    pipe.sadd(LIVE.universe, *flood)
    told = {"position_amt": 0.001, "mark_price": 1, "ts_epoch": int(now), "price": 1, "budget_usd": 1, "target_usd": 1}
    for symbol in flood:
        for key in (LIVE.market, LIVE.position, LIVE.budget, LIVE.target):
            pipe.hset(key(symbol), mapping={**told, "timestamp": int(now)})
    pipe.execute()


@pytest.mark.parametrize(("name", "many"), [*((n, FEW) for n in NAMES), *((n, MANY) for n in (SCANS if CI else ()))])
def test_hostile_world(
    name: str, many: int, one_server: EmbeddedServer, one_client: Client, tmp_path: Path, lines: io.StringIO
) -> None:
    """Hostile names are refused and counted, malformed entries passed, a megabyte is not looked at; the labels of the
    metrics and the memory stay bounded, no log line carries a control character, and the sound symbol has its output.
    """
    clock = SetClock(NOW)
    f.prepared(name, one_server, one_client, tmp_path / "prepared", clock)
    one = Case(name, one_server.url, tmp_path, clock, timeout_s=5.0)
    hostile(one_client, NOW, many)
    if name == "desk":  # a breakout of the one that is sound
        one_client.delete(LIVE.position(CC))
        one_client.xadd(LIVE.bars(CC), {"ts": NOW - 10.0, "close": 150.0, "volume": 1, "bar_s": 60})
    lenient: Client = redis.Redis.from_url(
        one_server.url, protocol=2, decode_responses=True, encoding_errors="backslashreplace"
    )
    before = f.dump(lenient, without=FLOOD)
    if many == FEW:  # it makes everything three times as slow
        tracemalloc.start()
    try:
        for n in range(TURNS):
            clock.set(NOW + n)
            sound(one, f"{name}, {n}")
        _, peak = tracemalloc.get_traced_memory()  # 0 where it is not traced
    finally:
        tracemalloc.stop()
        one.end()
    assert peak < 200e6, f"{peak / 1e6:.0f} MB"
    malformed = [
        n for (_, reason), n in one.metrics.values("quantum_alloc_inputs_total").items() if reason == "malformed"
    ]
    assert name not in OF_FIELDS or max(malformed, default=0) >= 2 * TURNS, f"both are counted each time: {malformed}"
    series: dict[str, set[str]] = {}
    for line in one.metrics.render().decode().splitlines():
        assert line.isprintable(), line
        label = line.partition('symbol="')[2].partition('"')[0]
        series.setdefault(line.partition("{")[0], set()).add(label)
    assert max(map(len, series.values())) <= LABELS_MAX, max(series, key=lambda found: len(series[found]))
    assert all(line.isprintable() for line in lines.getvalue().splitlines()), "a control character in the log"
    after = f.dump(lenient, without=FLOOD)
    lenient.close()
    mine = [k for k in f.differing(before, after) if CC in k or k == f.OUTPUT[name]]
    assert mine, f"{name}: nothing of the sound symbol"
    for key in after.keys() - before.keys():
        assert key.isprintable(), f"{name} wrote {key!r}"


@pytest.mark.parametrize("name", NAMES)
def test_names_cannot_be_aliased(name: str, one_server: EmbeddedServer, one_client: Client, tmp_path: Path) -> None:
    """What a service writes is the same with and without hostile names beside the sound ones."""
    clock, found = SetClock(NOW), []
    for is_hostile in (False, True):
        f.prepared(name, one_server, one_client, tmp_path / f"prepared{is_hostile}", clock)
        before = f.dump(one_client)
        if is_hostile:
            for n in HOSTILE:
                one_client.sadd(LIVE.universe, n)
                for key in FIELDS:
                    one_client.hset(key(n), mapping={"timestamp": int(NOW)})
        one = Case(name, one_server.url, tmp_path / str(is_hostile), clock)
        sound(one, name)
        one.end()
        after = f.dump(one_client)
        found.append({k: after.get(k) for k in f.differing(before, after) if k != LIVE.universe})
    plain, beside = found
    extra = {k for k in beside.keys() - plain.keys() if any(k == key(n) for key in FIELDS for n in HOSTILE)}
    assert {k: v for k, v in beside.items() if k not in extra} == plain
