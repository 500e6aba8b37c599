"""What laws draw from: whole worlds, and hostile bytes."""

from __future__ import annotations

import json

from hypothesis import strategies as st

from quantum_alloc.adapters.keys import LIVE
from tests.support.worlds import World, as_bytes

NOW = 1769577495
SYMBOLS = ("ADAUSDT", "BNBUSDT", "BTCUSDT", "ETHUSDT", "SOLUSDT", "XRPUSDT")

usd = st.floats(0.0, 1e7, allow_subnormal=False)
unit = st.floats(0.0, 1.0, allow_subnormal=False)
ages = st.sampled_from([0, 1, 59, 60])
bad_ages = st.sampled_from([61, 100, 301, -6, -600])

HOSTILE = (
    b"NaN", b"nan",
    b"inf", b"-inf", b"", b" ", b"-1", b"-0.0001", b"1e400", b"-1e400", b"1_000", b"0x10", b"1,5", b"1 ",
    b"\x00", b"\xff\xfe", b"\xd9\xa1", "１２".encode(), b"None", b"null", b"true", b"{}", b"[]", b"1e5e5", b"--1", b".",
    b"e", b"9" * 5000, b"x" * 1_000_000,
)  # fmt: skip
hostile = st.one_of(st.sampled_from(HOSTILE), st.binary(max_size=40), st.text(max_size=20).map(str.encode))


@st.composite
def worlds(draw: st.DrawFn, *, sound: bool = False) -> World:
    """Any world of up to six symbols; ``sound`` ones have every input that is there fresh."""

    def ts() -> int:
        return NOW - draw(ages if sound or draw(st.integers(0, 3)) else bad_ages)

    world = World(NOW).put(
        LIVE.portfolio, equity_usd=draw(st.floats(1.0, 1e8)), drawdown=draw(unit), timestamp=NOW - draw(ages)
    )
    present = draw(st.lists(st.sampled_from(SYMBOLS), unique=True, min_size=1))
    clusters: dict[str, list[str]] = {}
    for s in present:
        world = world.put(LIVE.budget(s), budget_usd=repr(draw(usd)), timestamp=ts())
        if draw(st.booleans()):
            fields = {"performance_factor": repr(draw(st.floats(-2, 3))), "ts_utc": ts()}
            if draw(st.booleans()):
                fields["confidence"] = repr(draw(unit))
            world = world.put(LIVE.attribution(s), **fields)
        cid = draw(st.sampled_from(["C1", "C2", ""]))
        if cid:
            clusters.setdefault(cid, []).append(s)
    for cid, members in clusters.items():
        world = world.put(LIVE.clusters, **{cid: json.dumps(members)})
        if draw(st.booleans()):
            world = world.put(LIVE.stress(cid), stress=repr(draw(unit)), timestamp=ts())
    if draw(st.booleans()):
        entry = {"regime": draw(st.sampled_from(["TREND", "MEAN_REVERSION", "CHOP", "NEUTRAL", "SIDEWAYS"]))}
        if draw(st.booleans()):
            entry["confidence"] = repr(draw(unit))
        entry["timestamp"] = str(ts())
        raw = {k: as_bytes(v) for k, v in entry.items()}
        world = World(world.now, world.hashes, {LIVE.stream("regime.state"): [raw]})
    return world


def budgets_of(world: World) -> list[str]:
    """The symbols with a budget."""
    prefix = LIVE.budget("")
    return sorted(k.removeprefix(prefix) for k in world.hashes if k.startswith(prefix))
