"""``quantum-alloc demo``: the whole chain on simulated time, over a real server of its own.

One driver in one process sets the clock to each candle's close and then steps the services in a fixed order, each at
most once a bar. A gap in the candles is a jump of the clock. The same candles and seed give the same decisions; their
sha256 says so. The address of Redis in the environment is ignored: the demo never touches a server that it did not
start.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from threading import Event

from quantum_alloc.adapters.apply_wire import Account, decode_state
from quantum_alloc.adapters.candles import CandleError, Step
from quantum_alloc.adapters.clock import SetClock
from quantum_alloc.adapters.effects import Failed, Group, HashSet, Reply
from quantum_alloc.adapters.embedded import EmbeddedServer
from quantum_alloc.adapters.keys import Keys, tag_of
from quantum_alloc.adapters.metrics import Metrics
from quantum_alloc.adapters.rights import user_of
from quantum_alloc.adapters.run_records import Records, streams_of
from quantum_alloc.adapters.store import Script, Store, StoreError
from quantum_alloc.services import drill, feed
from quantum_alloc.services.app import SERVICES, AnyLoop, Market, Parts, assemble, count_market, open_market
from quantum_alloc.services.conserve import Check, checks
from quantum_alloc.services.demo_watch import Tally, Watch
from quantum_alloc.services.options import (
    ApplyOptions,
    FeedOptions,
    GovernorOptions,
    RedisOptions,
    Settings,
    load,
)
from quantum_alloc.services.settings import variables
from quantum_alloc.services.values import render

NOT_FROM_OUTSIDE = (
    *(v.spec.env for v in variables(RedisOptions) if v.spec.env != "QA_HASH_TAG"),
    "METRICS_PORT", "QA_FEED_CANDLES", "QA_FEED_SEED", "QA_FEED_STRICT", "QA_FEED_SPEED", "QA_SYMBOLS", "NOTIFY_SOCKET",
    "STATE_DIRECTORY", "CLOCK", "GOV_CONSUMER", "GOV_DURABILITY",
    "GOV_SIGNING_KEY_FILE", "P31_RUN_ONCE", "P29_METRICS_PORT", "P30_METRICS_PORT", "P31_PORT", "P31_HEALTH_PORT",
)  # fmt: skip
OWN = {"CLOCK": "simulated", "GOV_CONSUMER": "demo", "GOV_DURABILITY": "none", "PAPER_BOOK": "1", "SHADOW_LANE": "1"}
PROFILE = {
    "P28_MODE": "enforce", "P29_MODE": "enforce", "P30_MODE": "enforce", "P31_MODE": "enforce",
    "APPLY_MODE": "production", "GOV_MAX_OPEN_POSITIONS": "50", "GOV_MAX_NOTIONAL_PER_TRADE_USDT": "500",
    "GOV_MAX_TOTAL_NOTIONAL_USDT": "60000", "GOV_MAX_EXEC_PER_HOUR": "30", "GOV_MAX_EXEC_PER_5MIN": "4",
}  # fmt: skip
"""What the demo runs with where the environment says nothing else; it prints this at its start."""
JOURNEY = (
    "feed", "apply", "portfolio", "regime", "clusters", "budget", "attribution", "allocation", "efficiency", "proposer",
    "desk", "governor", "apply",
)  # fmt: skip
"""The services of a bar: marks first, and fills last."""
BY_EVENT = ("governor", "apply")
STRESS = Keys().stress("")
"""What the names of clusters' strains begin with, behind a hash tag."""
HELD_BACK = ("paced", "unanswered", "held_other_way", "no_room", "no_target")
"""Why the desk proposes nothing although a rule of its strategy would; see ``core.desk``."""
Crash = Callable[[int, str], str]
"""Bar and service to ``before`` or ``after``, where it is to crash at its write, else nothing."""


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
        drill: add a burst, a kill and a balance shock.
        report: keep what a report needs.
    """

    candles: tuple[str, ...] = ()
    symbols: tuple[str, ...] = ()
    seed: int = 7
    bars: int | None = 1000
    speed: float | None = None
    strict: bool = False
    drill: bool = False
    report: bool = False


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
    """A store that keeps the strain of clusters that goes through it, and can be made to fail at a write."""

    def __init__(self, url: str, password: str | None = None) -> None:
        """Connect to the embedded server.

        Args:
            url: of the server.
            password: None for none.
        """
        super().__init__(url, password, shown="the demo's server", timeout_s=5.0)
        self.stress: dict[str, Mapping[str, str]] = {}
        self.fails = ""

    def apply(self, groups: Sequence[Group]) -> list[tuple[str, Failed]]:
        """Write, then take note."""
        self._fail("before", bool(groups))
        refused = super().apply(groups)
        self._fail("after", bool(groups))
        for effect in (e for group in groups for e in group):
            name = tag_of(effect.key)[1]
            if isinstance(effect, HashSet) and name.startswith(STRESS):
                self.stress[name.removeprefix(STRESS)] = effect.fields
        return refused

    def run(self, script: Script, keys: Sequence[str], args: Sequence[str | bytes | int], connection: int) -> Reply:
        """Run a script."""
        self._fail("before", True)
        reply = super().run(script, keys, args, connection)
        self._fail("after", True)
        return reply

    def _fail(self, when: str, is_write: bool) -> None:
        if is_write and self.fails == when:
            raise StoreError("closed", "the demo lets the service crash here")


class Taps:
    """One connection for all, or one for each that has a login of its own."""

    def __init__(self, url: str, passwords: Mapping[str, str]) -> None:
        """Prepare.

        Args:
            url: of the server.
            passwords: by service, and of ``operator`` and ``watch``; empty where the server asks for none.
        """
        self._url, self._passwords = url, passwords
        self._open: dict[str, Tap] = {}

    def of(self, name: str) -> Tap:
        """The connection of one of them."""
        who = name if self._passwords else ""
        if who not in self._open:
            login = f"?username={user_of(name)}" if who else ""
            self._open[who] = Tap(f"{self._url}{login}", self._passwords[name] if who else None)
        return self._open[who]

    def close(self) -> None:
        """Close them all."""
        for tap in self._open.values():
            tap.close()


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
    efficiency: dict[str, Mapping[str, str]] = field(default_factory=dict)
    proposals: dict[str, Mapping[str, str]] = field(default_factory=dict)
    regime: Mapping[str, str] = field(default_factory=dict)
    clusters: Mapping[str, str] = field(default_factory=dict)
    stress: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    positions: dict[str, float] = field(default_factory=dict)
    tally: Tally = field(default_factory=Tally)
    cycles: int = 0
    targets: int = 0

    def see(self, records: Records) -> None:
        """The newest of each record."""
        for cycle in records.cycles:
            self.cycle, self.cycles = cycle, self.cycles + 1
        if records.cycles:
            self.rows, self.targets = records.decisions, self.targets + len(records.decisions)
        self.portfolio = records.portfolio[-1] if records.portfolio else self.portfolio
        self.regime = records.regimes[-1] if records.regimes else self.regime
        self.efficiency.update((e["symbol"], e) for e in records.efficiencies)
        self.proposals.update((e["symbol"], e) for e in records.proposals)
        for done in records.results:
            if done["executed"] == "true":
                self.positions[done["symbol"]] = float(done["position_after"]) * float(done["price"])


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the demo came to.

    Attributes:
        progress: where it ended.
        symbols: that the candles have.
        fallbacks: by service, input and reason, how often an input was not used.
        candles: by what became of them.
        executions: by what became of them.
        proposals: by reason.
        profile: what it ran with.
        account: the paper account at the end.
        held_back: by reason, how often the desk proposed nothing although it wanted to.
        drill: what the drill did, a line each.
        checks: what must hold, and whether it does.
        records: what a report needs.
        sha256: of all records, in order.
    """

    progress: Progress
    symbols: tuple[str, ...]
    fallbacks: Mapping[str, int]
    candles: Mapping[str, int]
    executions: Mapping[str, int]
    proposals: Mapping[str, int]
    profile: Mapping[str, str]
    account: Account
    held_back: Mapping[str, int]
    drill: tuple[str, ...]
    checks: tuple[Check, ...]
    records: Records
    sha256: str

    @property
    def holds(self) -> bool:
        """True where every check is passed."""
        return all(check.ok for check in self.checks)


def profile_of(settings: Settings) -> dict[str, str]:
    """What the demo runs with, by variable.

    Args:
        settings: of the demo: the environment counts where it says anything.
    """
    found = {
        v.spec.env: render(getattr(group, v.field))
        for group in settings.services.values()
        for v in variables(type(group))
    }
    others = sorted(settings.given & found.keys() - PROFILE.keys() - OWN.keys() - {"QA_FEED_SEED", "QA_FEED_STRICT"})
    return {name: found[name] for name in (*PROFILE, *others)}


def environ_of(plan: Plan, environ: Mapping[str, str], directory: Path | None = None) -> dict[str, str]:
    """The environment's rules, and the demo's own candles and state.

    Args:
        plan: files, symbols and seed.
        environ: the process' environment.
        directory: where services keep their files; None where none is started.
    """
    own = {k: v for k, v in environ.items() if k not in NOT_FROM_OUTSIDE}
    fixed = {"PAPER_BOOK": "1", "QA_FEED_SEED": str(plan.seed), "QA_FEED_STRICT": str(int(plan.strict))}
    own = {**OWN, **PROFILE, **{k: v for k, v in own.items() if v.strip()}, **fixed}
    if directory is not None:
        own["STATE_DIRECTORY"] = str(directory)
    if plan.candles:
        own["QA_FEED_CANDLES"] = ":".join(plan.candles)
    if plan.symbols:
        own["QA_SYMBOLS"] = ",".join(plan.symbols)
    return own


def settings_of(plan: Plan, environ: Mapping[str, str], directory: Path | None = None) -> Settings:
    """The demo's settings: the environment's rules, its own server, candles and state.

    Args:
        plan: files, symbols and seed.
        environ: the process' environment.
        directory: where services keep their files; None where none is started.

    Raises:
        SettingsError: every error at once.
    """
    return load(list(SERVICES), environ_of(plan, environ, directory))


class Services:
    """The services of the demo, on one clock; one that crashes is built anew."""

    def __init__(self, settings: Settings, taps: Taps, clock: SetClock, source: Offered, market: Market) -> None:
        """Build them all.

        Args:
            settings: of all.
            taps: their stores.
            clock: their clock.
            source: the feed's.
            market: where the candles come from.
        """
        self._settings, self._taps, self._clock = settings, taps, clock
        self._source, self._market = source, market
        self.metrics = {name: Metrics(name, settings.common.metrics_max_symbols) for name in SERVICES}
        self._loops: dict[str, AnyLoop] = {}
        self._last_run: dict[str, float] = {}
        self._levels: dict[str, int] = {}
        count_market(market, self.metrics["feed"])
        for name in SERVICES:
            self._build(name)

    def _build(self, name: str) -> None:
        def offered(_: FeedOptions, __: Metrics) -> tuple[feed.Source, Market]:
            return self._source, self._market

        parts = Parts(self._settings, self._taps.of(name), self.metrics[name], self._clock, offered, own_server=True)
        self._loops[name], _ = assemble(name, parts)
        log = self._loops[name].log
        self._levels.setdefault(name, log.level)
        log.setLevel(logging.ERROR)  # what a warm-up lacks is in the summary

    def run(self, name: str, crash: str = "") -> None:
        """One service's turn at this bar, if it is due.

        Args:
            name: of the service.
            crash: ``before`` or ``after`` its write, or nothing.

        Raises:
            StoreError: it could not finish its cycle.
        """
        now, interval_s = self._clock.now(), self._loops[name].cycle.interval_s
        is_due = name == "feed" or name in BY_EVENT or now - self._last_run.get(name, -math.inf) >= interval_s
        if not is_due:
            return
        self._last_run[name] = now
        if crash:
            step = self._source.step
            self._taps.of(name).fails = crash
            self._loops[name].log.setLevel(logging.CRITICAL)  # it is meant to crash
            written = self._loops[name].once()
            self._taps.of(name).fails = ""
            self._loops[name].cycle.close()
            self._build(name)
            if name == "feed" and crash == "before":
                self._source.step = step  # what was not written is offered again
            if written or (crash == "after" and name not in BY_EVENT):
                return
        loop = self._loops[name]
        ended = loop.once()
        while ended and loop.cycle.more is not None and loop.cycle.more():
            ended = loop.once()
        if not ended:
            raise StoreError("other", f"the service {name} could not finish its cycle: {loop.last_error}")

    def close(self) -> None:
        """Let go of what they hold; they log as before."""
        for name, loop in self._loops.items():
            loop.cycle.close()
            loop.log.setLevel(self._levels[name])


def drive(
    plan: Plan,
    environ: Mapping[str, str],
    server: EmbeddedServer,
    stop: Event,
    show: Callable[[Progress], None],
    crash: Crash = lambda _bar, _name: "",
    passwords: Mapping[str, str] | None = None,
    begun: Callable[[], None] = lambda: None,
) -> Outcome:
    """Run the chain over the candles.

    Args:
        plan: what to run.
        environ: for the rules' parameters.
        server: started already.
        stop: ends it after the current bar.
        show: called after every bar.
        crash: which services crash, and when.
        passwords: of each service, ``operator`` and ``watch``, on a server with rights; None on one without.
        begun: called when the candles are read, before the first bar.

    Raises:
        CandleError, SettingsError, StoreError: it cannot go on.
    """
    settings = settings_of(plan, environ, server.directory / "state")
    market = open_market(settings.of(FeedOptions), plan.symbols)
    begun()
    taps, clock, source = Taps(server.url, passwords or {}), SetClock(0.0), Offered()
    streams = streams_of(settings.keys, **settings.streams)
    equity_usd = settings.of(ApplyOptions).paper_equity_usd
    watch = Watch(taps.of("watch"), streams, equity_usd, series=plan.report, keys=settings.keys)
    services = Services(settings, taps, clock, source, market)
    where = drill.Where(streams.plans, streams.events, settings.common.stream_maxlen, settings.keys)
    drilled = None
    if plan.drill and plan.bars is not None:
        there = plan.bars if market.candles is None else sum(1 for _ in islice(market.candles.steps, plan.bars))
        if there < drill.BARS_MIN:
            raise CandleError(f"--drill needs {drill.BARS_MIN} bars at least: the candles have {there}")
        drilled = drill.Drill(taps.of("operator"), where, market.symbols, there, market.bar_s)
    try:
        progress = _walk(plan, market, clock, source, services, watch, taps, drilled, stop, show, crash)
        loaded = decode_state(taps.of("watch").read([("HGETALL", settings.keys.apply_state)])[0])
    finally:
        services.close()
        taps.close()
    account = loaded.account or Account()
    made, kept = services.metrics, watch.kept
    quiet = _by_label(made["desk"], "quantum_alloc_desk_quiet_total")
    return Outcome(
        progress=progress,
        symbols=market.symbols,
        fallbacks=_fallbacks(made),
        candles={
            **{labels[0]: int(n) for labels, n in made["feed"].values("quantum_alloc_feed_candles_total").items()},
            "gaps": int(made["feed"].value("quantum_alloc_feed_gaps_total")),
        },
        executions=_by_label(made["attribution"], "quantum_alloc_execution_entries_total"),
        proposals=_by_label(made["proposer"], "p29_shadow_proposed_total"),
        profile=profile_of(settings),
        account=account,
        held_back={name: n for name, n in quiet.items() if name in HELD_BACK},
        drill=() if drilled is None else tuple(drilled.said),
        checks=(
            *checks(kept, account, settings.of(GovernorOptions).params()),
            watch.valuer.check,
            watch.recomputer.check,
        ),
        records=kept,
        sha256=watch.sha256,
    )


def _walk(
    plan: Plan,
    market: Market,
    clock: SetClock,
    source: Offered,
    services: Services,
    watch: Watch,
    taps: Taps,
    drilled: drill.Drill | None,
    stop: Event,
    show: Callable[[Progress], None],
    crash: Crash,
) -> Progress:
    progress = Progress(total=plan.bars, tally=watch.tally, stress=taps.of("clusters").stress)
    for step in _steps(market, plan.bars):
        if stop.is_set():
            break
        now = step.close_time
        progress.jumps += bool(progress.now) and now - progress.now > 1.5 * market.bar_s
        clock.set(now)
        if not progress.first:
            progress.first = now
            services.run("apply")  # the account is opened before anything is traded
        source.step = step
        for name in JOURNEY:
            if name == "desk" and drilled is not None:
                drilled.act(progress.bars + 1, now)
            services.run(name, crash(progress.bars + 1, name))
        progress.bars += 1
        progress.now = now
        progress.see(watch.look({c.symbol: c.close for c in step.candles}))
        progress.clusters = watch.clusters
        show(progress)
        if plan.speed is not None:
            stop.wait(market.bar_s / plan.speed)
    services.run("apply")  # it reads its own last results
    progress.see(watch.look({}))
    return progress


def _by_label(metrics: Metrics, name: str) -> dict[str, int]:
    return {labels[0]: int(n) for labels, n in sorted(metrics.values(name).items())}


def _steps(market: Market, bars: int | None) -> Iterator[Step]:
    return market.steps if bars is None else islice(market.steps, bars)


def _fallbacks(metrics: Mapping[str, Metrics]) -> dict[str, int]:
    found: Counter[str] = Counter()
    for name, counted in metrics.items():
        for (source, reason), n in counted.values("quantum_alloc_inputs_total").items():
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
