"""The services that read executions, over a store and a clock that a test sets."""

from __future__ import annotations

from typing import Any

from quantum_alloc.adapters.clock import SetClock
from quantum_alloc.adapters.keys import LIVE, ShadowKeys
from quantum_alloc.adapters.metrics import Metrics
from quantum_alloc.adapters.store import Store
from quantum_alloc.adapters.writes import Target
from quantum_alloc.core import AttributionParams, EfficiencyParams, ProposalParams
from quantum_alloc.services import attribution, efficiency, proposer
from quantum_alloc.services.cli import main
from quantum_alloc.services.loop import Loop
from tests.support.worlds import Client

EXECUTIONS = "quantum:stream:execution.result"
DEAD = "quantum:stream:execution.deadletter"
SCORES = "quantum:stream:capital.efficiency.decision"
PERFORMANCE = "quantum:stream:alpha.attribution"
PROPOSALS = "quantum:stream:allocation.target.proposed"
AnyLoop = Loop[Any, Any, Any]


def attribution_loop(
    store: Store,
    clock: SetClock,
    limit: int | None = 2000,
    most: int = 10_000,
    symbols: tuple[str, ...] = (),
    **to: Any,
) -> AnyLoop:
    """The attribution service."""
    metrics = Metrics("attribution")
    cycle = attribution.build(
        store,
        metrics,
        attribution.universe_of(fixed=symbols),
        attribution.follower_of(EXECUTIONS, limit),
        AttributionParams(),
        Target(**to),
        5.0,
        most,
    )
    return Loop(cycle, store, metrics, clock)


def efficiency_loop(
    store: Store,
    clock: SetClock,
    limit: int | None = 2000,
    most: int = 10_000,
    lane: bool = False,
    symbols: tuple[str, ...] = (),
    **to: Any,
) -> AnyLoop:
    """The efficiency service; with a list of symbols it needs no scan to find them."""
    metrics = Metrics("efficiency")
    cycle = efficiency.build(
        store,
        metrics,
        efficiency.universe_of(fixed=symbols, shadow_lane=lane),
        efficiency.follower_of(EXECUTIONS, limit),
        EfficiencyParams(),
        Target(shadow=ShadowKeys() if lane else None, **to),
        SCORES,
        5.0,
        most,
        shadow_lane=lane,
    )
    return Loop(cycle, store, metrics, clock)


def proposer_loop(store: Store, clock: SetClock, lane: bool = False, **to: Any) -> AnyLoop:
    """The proposer."""
    metrics = Metrics("proposer")
    cycle = proposer.build(
        store,
        metrics,
        proposer.universe_of(shadow_lane=lane),
        ProposalParams(),
        Target(shadow=ShadowKeys() if lane else None, **to),
        PROPOSALS,
        10.0,
        shadow_lane=lane,
    )
    return Loop(cycle, store, metrics, clock)


def run(url: str, *names: str, now: float, **environ: str) -> None:
    """One cycle of each service, as an operator runs it."""
    own = {"REDIS_URL": url, "LOG_LEVEL": "ERROR", **environ}
    for name in names:
        codes = [main(["run", name, "--once", "--now", repr(now)], own)]
        while codes[-1] == 69 and len(codes) < 4:  # a loaded machine may keep the server from answering in time
            codes.append(main(["run", name, "--once", "--now", repr(now)], own))
        assert codes[-1] == 0


def sold(client: Client, symbol: str, pnl_usd: object, ts: object, **more: object) -> None:
    """One execution, as another program writes it."""
    client.xadd(EXECUTIONS, {"symbol": symbol, "pnl_usd": str(pnl_usd), "timestamp": str(ts), **more})


def target(client: Client, symbol: str, usd: object, confidence: object, ts: object, *, keys: Any = LIVE) -> None:
    """A target hash, as another program writes it."""
    client.hset(
        keys.target(symbol), mapping={"target_usd": str(usd), "confidence": str(confidence), "timestamp": str(ts)}
    )


def performance(client: Client, symbol: str, pf: object, confidence: object, ts: object, *, keys: Any = LIVE) -> None:
    """An attribution hash, as another program writes it."""
    fields = {"performance_factor": str(pf), "confidence": str(confidence), "ts_utc": str(ts)}
    client.hset(keys.attribution(symbol), mapping=fields)


def newest(client: Client, stream: str) -> dict[str, dict[str, str]]:
    """The last entry of each symbol."""
    return {f["symbol"]: f for _, f in client.xrange(stream)}
