"""``quantum-alloc demo``: the whole chain on simulated time, over a real server of its own.

One driver in one process sets the clock to each candle's close and then steps the services in a fixed order, each at
most once a bar. A gap in the candles is a jump of the clock. The same candles and seed give the same decisions; their
sha256 says so. The address of Redis in the environment is ignored: the demo never touches a server that it did not
start.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from threading import Event

from quantum_alloc.adapters.candles import Step
from quantum_alloc.adapters.clock import SetClock
from quantum_alloc.adapters.effects import Failed, Group, HashReplace, HashSet, StreamAdd
from quantum_alloc.adapters.embedded import EmbeddedServer
from quantum_alloc.adapters.keys import LIVE
from quantum_alloc.adapters.metrics import Metrics
from quantum_alloc.adapters.store import Store, StoreError
from quantum_alloc.services import feed
from quantum_alloc.services.app import SERVICES, AnyLoop, Market, Parts, assemble, count_market, open_market
from quantum_alloc.services.options import EfficiencyOptions, FeedOptions, ProposerOptions, Settings, load

DECISIONS = LIVE.stream("allocation.decision")
CYCLES = LIVE.stream("allocation.cycle")
ATTRIBUTIONS = LIVE.stream("alpha.attribution")
REGIMES = LIVE.stream("regime.state")
NOT_FROM_OUTSIDE = (
    "REDIS_URL", "REDIS_HOST", "REDIS_PORT", "REDIS_DB", "REDIS_PASSWORD_FILE", "CREDENTIALS_DIRECTORY",
    "METRICS_PORT", "QA_FEED_CANDLES", "QA_FEED_SEED", "QA_FEED_STRICT", "QA_FEED_SPEED", "QA_SYMBOLS", "NOTIFY_SOCKET",
    "STATE_DIRECTORY", "CLOCK", "GOV_CONSUMER", "GOV_DURABILITY",
    "P31_RUN_ONCE", "P29_METRICS_PORT", "P30_METRICS_PORT", "P31_PORT", "P31_HEALTH_PORT",
)  # fmt: skip
PROFILE = {
    "CLOCK": "simulated", "GOV_CONSUMER": "demo", "GOV_DURABILITY": "none",
    "PAPER_BOOK": "1", "P28_MODE": "enforce", "P29_MODE": "enforce", "P30_MODE": "enforce", "SHADOW_LANE": "1",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run.

    Attributes:
        candles: files, empty for the simulator.
        symbols: which, empty for all.
        seed: of the simulator.
        bars: how many at most, None for no limit.
        speed: times real time, None for as fast as it goes.
        strict: stop at the first malformed candle.
    """

    candles: tuple[str, ...] = ()
    symbols: tuple[str, ...] = ()
    seed: int = 7
    bars: int | None = 1000
    speed: float | None = None
    strict: bool = False


class Offered:
    """A source that hands out the one step that it was offered."""

    ended = False

    def __init__(self) -> None:
        """Nothing is offered yet."""
        self.step: Step | None = None

    def take(self, _: float) -> Step | None:
        """The step, once."""
        step, self.step = self.step, None
        return step

    def wait_s(self, _: float) -> float:
        """Nobody waits on simulated time."""
        return 0.0


class Tap(Store):
    """A store that looks at the decisions that go through it."""

    def __init__(self, url: str, efficiencies: str, proposals: str) -> None:
        """Connect to the embedded server.

        Args:
            url: of the server.
            efficiencies: stream of efficiency decisions.
            proposals: stream of proposals.
        """
        super().__init__(url, shown="the demo's server", timeout_s=5.0)
        self.digest = hashlib.sha256()
        self.efficiency: dict[str, Mapping[str, str]] = {}
        self.proposals: dict[str, Mapping[str, str]] = {}
        self.regime: Mapping[str, str] = {}
        self.clusters: Mapping[str, str] = {}
        self.stress: dict[str, Mapping[str, str]] = {}
        self._by_symbol = {efficiencies: self.efficiency, proposals: self.proposals}
        self._recorded = frozenset({REGIMES, DECISIONS, CYCLES, ATTRIBUTIONS, *self._by_symbol})
        self.cycle: Mapping[str, str] = {}
        self.rows: list[Mapping[str, str]] = []
        self.portfolio: Mapping[str, str] = {}

    def apply(self, groups: Sequence[Group]) -> list[tuple[str, Failed]]:
        """Write, then take note."""
        refused = super().apply(groups)
        for effect in (e for group in groups for e in group):
            if isinstance(effect, HashSet) and effect.key == LIVE.portfolio:
                self.portfolio = effect.fields
            if isinstance(effect, HashReplace) and effect.key == LIVE.clusters:
                self.clusters = effect.fields
                self.digest.update(json.dumps(dict(effect.fields), sort_keys=True).encode())
            if isinstance(effect, HashSet) and effect.key.startswith(LIVE.stress("")):
                self.stress[effect.key.removeprefix(LIVE.stress(""))] = effect.fields
            if isinstance(effect, StreamAdd) and effect.key in (
                REGIMES,
                DECISIONS,
                CYCLES,
                ATTRIBUTIONS,
                *self._by_symbol,
            ):
                self.digest.update(json.dumps(dict(effect.fields), sort_keys=True).encode())
                self._note(effect.key, effect.fields)
        return refused

    def _note(self, stream: str, fields: Mapping[str, str]) -> None:
        if stream == CYCLES:
            self.cycle, self.rows = fields, []
        elif stream == DECISIONS:
            self.rows.append(fields)
        elif stream == REGIMES:
            self.regime = fields
        elif stream in self._by_symbol:
            self._by_symbol[stream][fields["symbol"]] = fields


@dataclass
class Progress:
    """How far the demo is; what its views show."""

    bars: int = 0
    total: int | None = None
    now: float = 0.0
    first: float = 0.0
    jumps: int = 0
    cycle: Mapping[str, str] = field(default_factory=dict)
    rows: Sequence[Mapping[str, str]] = ()
    portfolio: Mapping[str, str] = field(default_factory=dict)
    efficiency: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    proposals: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    regime: Mapping[str, str] = field(default_factory=dict)
    clusters: Mapping[str, str] = field(default_factory=dict)
    stress: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the demo came to.

    Attributes:
        progress: where it ended.
        symbols: that the candles have.
        cycles: allocation cycles.
        targets: targets computed.
        fallbacks: by service, input and reason, how often an input was not used.
        candles: by what became of them.
        executions: by what became of them.
        proposals: by reason.
        sha256: of all decision and cycle records, in order.
    """

    progress: Progress
    symbols: tuple[str, ...]
    cycles: int
    targets: int
    fallbacks: Mapping[str, int]
    candles: Mapping[str, int]
    executions: Mapping[str, int]
    proposals: Mapping[str, int]
    sha256: str


def settings_of(plan: Plan, environ: Mapping[str, str], directory: Path | None = None) -> Settings:
    """The demo's settings: the environment's rules, its own server, candles and state.

    Args:
        plan: files, symbols and seed.
        environ: the process' environment.
        directory: where services keep their files; None where none is started.

    Raises:
        SettingsError: every error at once.
    """
    own = {k: v for k, v in environ.items() if k not in NOT_FROM_OUTSIDE}
    own = {**PROFILE, **own, "PAPER_BOOK": "1", "QA_FEED_SEED": str(plan.seed), "QA_FEED_STRICT": str(int(plan.strict))}
    if directory is not None:
        own["STATE_DIRECTORY"] = str(directory)
    if plan.candles:
        own["QA_FEED_CANDLES"] = ":".join(plan.candles)
    if plan.symbols:
        own["QA_SYMBOLS"] = ",".join(plan.symbols)
    return load(list(SERVICES), own)


def drive(
    plan: Plan, environ: Mapping[str, str], server: EmbeddedServer, stop: Event, show: Callable[[Progress], None]
) -> Outcome:
    """Run the chain over the candles.

    Args:
        plan: what to run.
        environ: for the rules' parameters.
        server: started already.
        stop: ends it after the current bar.
        show: called after every bar.

    Raises:
        CandleError, SettingsError, StoreError: it cannot go on.
    """
    settings = settings_of(plan, environ, server.directory / "state")
    market = open_market(settings.of(FeedOptions), plan.symbols)
    streams = settings.of(EfficiencyOptions).efficiency_stream, settings.of(ProposerOptions).propose_stream
    tap, clock, source = Tap(server.url, *streams), SetClock(0.0), Offered()

    def offered(_: FeedOptions, metrics: Metrics) -> tuple[feed.Source, Market]:
        count_market(market, metrics)
        return source, market

    loops: dict[str, AnyLoop] = {}
    for name in SERVICES:
        metrics = Metrics(name, settings.common.metrics_max_symbols)
        loops[name], _ = assemble(name, Parts(settings, tap, metrics, clock, offered, own_server=True))
        loops[name].log.setLevel(logging.ERROR)  # what a warm-up lacks is in the summary
    try:
        progress = _walk(plan, market, clock, source, tap, loops, stop, show)
    finally:
        for loop in loops.values():
            loop.cycle.close()
        tap.close()
    allocation, fed = loops["allocation"], loops["feed"].metrics
    return Outcome(
        progress=progress,
        symbols=market.symbols,
        cycles=int(allocation.metrics.value("quantum_alloc_cycles_total", "ok")),
        targets=int(sum(allocation.metrics.values("p29_targets_computed_total").values())),
        fallbacks=_fallbacks(loops),
        candles={
            **{labels[0]: int(n) for labels, n in fed.values("quantum_alloc_feed_candles_total").items()},
            "gaps": int(fed.value("quantum_alloc_feed_gaps_total")),
        },
        executions=_by_label(loops["attribution"], "quantum_alloc_execution_entries_total"),
        proposals=_by_label(loops["proposer"], "p29_shadow_proposed_total"),
        sha256=tap.digest.hexdigest(),
    )


def _walk(
    plan: Plan,
    market: Market,
    clock: SetClock,
    source: Offered,
    tap: Tap,
    loops: Mapping[str, AnyLoop],
    stop: Event,
    show: Callable[[Progress], None],
) -> Progress:
    progress = Progress(total=plan.bars)
    last_run: dict[str, float] = {}
    for step in _steps(market, plan.bars):
        if stop.is_set():
            break
        now = step.close_time
        progress.first = progress.first or now
        progress.jumps += bool(progress.now) and now - progress.now > 1.5 * market.bar_s
        clock.set(now)
        source.step = step
        for name, loop in loops.items():
            if name == "feed" or now - last_run.get(name, float("-inf")) >= loop.cycle.interval_s:
                last_run[name] = now
                if not loop.once():
                    raise StoreError("other", f"the service {name} could not finish its cycle: {loop.last_error}")
        progress.bars += 1
        progress.now, progress.cycle, progress.rows, progress.portfolio = now, tap.cycle, tap.rows, tap.portfolio
        progress.efficiency, progress.proposals = tap.efficiency, tap.proposals
        progress.regime, progress.clusters, progress.stress = tap.regime, tap.clusters, tap.stress
        show(progress)
        if plan.speed is not None:
            stop.wait(market.bar_s / plan.speed)
    return progress


def _by_label(loop: AnyLoop, name: str) -> dict[str, int]:
    return {labels[0]: int(n) for labels, n in sorted(loop.metrics.values(name).items())}


def _steps(market: Market, bars: int | None) -> Iterator[Step]:
    return market.steps if bars is None else islice(market.steps, bars)


def _fallbacks(loops: Mapping[str, AnyLoop]) -> dict[str, int]:
    found: Counter[str] = Counter()
    for name, loop in loops.items():
        for (source, reason), n in loop.metrics.values("quantum_alloc_inputs_total").items():
            if reason != "ok" and (source, reason) != ("peak", "missing"):  # a first start has no peak yet
                found[f"{name}: {source} {reason}"] += int(n)
    return dict(sorted(found.items()))


def keep(server: EmbeddedServer) -> None:
    """Take the expiry off every key of our own server, so that a person can look at them.

    Raises:
        StoreError: the server does not answer.
    """
    store = Store(server.url, shown="the demo's server")
    cursor = b"0"
    while True:
        page = store.read([("SCAN", cursor, "COUNT", 1000)])[0]
        if not (isinstance(page, list) and isinstance(page[0], bytes) and isinstance(page[1], list)):
            break
        store.read([("PERSIST", k) for k in page[1] if isinstance(k, bytes)])
        cursor = page[0]
        if cursor == b"0":
            break
    store.close()
