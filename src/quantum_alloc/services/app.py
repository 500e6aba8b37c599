"""The composition root: settings to running services, in one place.

``assemble`` builds one service's loop; ``run_once`` and ``run_for_good`` run some. One thread and one connection a
service; the main thread waits for SIGTERM or SIGINT, and every service finishes or does not begin its cycle, within two
seconds. systemd is told when the ports are open and, after each finished cycle, that all loops are alive.
"""

from __future__ import annotations

import faulthandler
import importlib.util
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any

from quantum_alloc import __version__
from quantum_alloc.adapters.candles import Candles, Step, read_candles
from quantum_alloc.adapters.clock import Clock, offset_s, runs
from quantum_alloc.adapters.cluster import Nodes
from quantum_alloc.adapters.connecting import options_of
from quantum_alloc.adapters.keys import ShadowKeys
from quantum_alloc.adapters.locate import Locator, Sentinels
from quantum_alloc.adapters.metrics import Metrics
from quantum_alloc.adapters.server_check import Lack, Once, ServerCheck
from quantum_alloc.adapters.simulator import DEFAULT_SYMBOLS, simulate
from quantum_alloc.adapters.store import TIMEOUT_S, Store
from quantum_alloc.adapters.universe import Universe
from quantum_alloc.adapters.wire import MAP_FIELDS_LIMIT as STATE_SYMBOLS
from quantum_alloc.adapters.writes import Target
from quantum_alloc.core import config_hash
from quantum_alloc.core.paper import Book, Tape, open_book
from quantum_alloc.services import (
    allocation,
    apply,
    attribution,
    budget,
    clusters,
    desk,
    efficiency,
    feed,
    governor,
    governor_setup,
    http,
    portfolio,
    proposer,
    regime,
)
from quantum_alloc.services.logs import changed, say
from quantum_alloc.services.loop import LATE_INTERVALS, Loop
from quantum_alloc.services.options import (
    AllocationOptions,
    ApplyOptions,
    AttributionOptions,
    BudgetOptions,
    ClustersOptions,
    DeskOptions,
    EfficiencyOptions,
    FeedOptions,
    GovernorOptions,
    PortfolioOptions,
    ProposerOptions,
    RegimeOptions,
    Settings,
    port_variables,
)
from quantum_alloc.services.settings import SettingsError

AnyLoop = Loop[Any, Any, Any]
About = Mapping[str, str | float]
Built = tuple[AnyLoop, About, Store]
Source = Callable[[FeedOptions, Metrics], tuple[feed.Source, "Market"]]
STOP_WITHIN_S = 1.5
STARTED_AT = round(time.time(), 3)
"""When this process began, unix seconds."""
log = logging.getLogger("quantum_alloc")


@dataclass(frozen=True, slots=True)
class Market:
    """Where candles come from, and what the paper book needs to know of them.

    Attributes:
        steps: in the order of time.
        symbols: all that will ever come.
        bar_s: smallest bar length, seconds.
        candles: the files' contents, None for the simulator.
        tapes: of a feed that goes on, by symbol.
        newest: close of its last candle, unix seconds.
    """

    steps: Iterator[Step]
    symbols: tuple[str, ...]
    bar_s: float
    candles: Candles | None
    tapes: Mapping[str, Tape] = field(default_factory=dict)
    newest: float = 0.0


@dataclass(frozen=True, slots=True)
class Parts:
    """What a service is built from.

    Attributes:
        settings: of all services of the process.
        store: its connection.
        metrics: its metrics.
        clock: its clock.
        source: opens the feed's candles.
        once: it runs one cycle, which takes all that is there.
        own_server: the demo that this process belongs to started the server.
        tell: is given what the server lacks.
    """

    settings: Settings
    store: Store
    metrics: Metrics
    clock: Clock
    source: Source
    once: bool = False
    own_server: bool = False
    tell: Callable[[Lack, str], None] = lambda _lack, _text: None  # whoever runs one cycle by hand asks ``status``


def open_market(options: FeedOptions, symbols: Sequence[str]) -> Market:
    """The candle files of the settings, or the simulator.

    Args:
        options: files or seed.
        symbols: which ones; empty for all.

    Raises:
        CandleError: a file cannot be used.
    """
    if options.candles:
        read = read_candles(options.candles, symbols=symbols, strict=options.strict)
        return Market(iter(read.steps), read.symbols, read.bar_s, read)
    names = tuple(sorted(symbols or DEFAULT_SYMBOLS))
    return Market(simulate(options.seed, symbols=names), names, 60.0, None)


def count_market(market: Market, metrics: Metrics) -> None:
    """What was wrong with the candle files, as metrics and one warning a kind."""
    read = market.candles
    if read is None:
        return
    for result, n in (("late", read.late), ("repeated", read.repeated), ("malformed", read.malformed)):
        metrics.add("quantum_alloc_feed_candles_total", result, amount=n)
    for flaw in read.flaws[:10]:
        text = f"{Path(flaw.file).name}, line {flaw.line} is left out: {flaw.reason}"
        say(log, logging.WARNING, "settings", text)
    if read.late or read.repeated or read.malformed:
        text = f"candles late={read.late} repeated={read.repeated} malformed={read.malformed}"
        say(log, logging.WARNING, "settings", text, {"count": read.late + read.repeated + read.malformed})


def paced_source(settings: Settings) -> Source:
    """Candles at the pace of the wall clock."""

    def source(options: FeedOptions, metrics: Metrics) -> tuple[feed.Source, Market]:
        market = open_market(options, settings.common.symbols)
        count_market(market, metrics)
        return feed.Paced(market.steps, market.bar_s, options.speed, options.rewrite_s), market

    return source


def book_of(options: FeedOptions, symbols: int) -> Book:
    """The paper book at its start: the same notional in each symbol."""
    return open_book(
        options.paper_equity_usd, options.paper_exposure_pct, symbols, rebalance_bars=options.paper_rebalance_bars
    )


def _feed(parts: Parts) -> tuple[AnyLoop, str]:
    options = parts.settings.of(FeedOptions)
    source, market = parts.source(options, parts.metrics)
    book = book_of(options, len(market.symbols))
    to = Target(maxlen=parts.settings.common.stream_maxlen, keys=parts.settings.keys)
    cycle = feed.build(
        parts.store,
        parts.metrics,
        source,
        book,
        to,
        paper=options.paper_book,
        executions=options.execution_stream,
        interval_s=options.interval_s,
        begun=(market.tapes, market.newest),
    )
    return Loop(cycle, parts.store, parts.metrics, parts.clock), ""


def _portfolio(parts: Parts) -> tuple[AnyLoop, str]:
    options, common = parts.settings.of(PortfolioOptions), parts.settings.common
    to = Target(maxlen=common.stream_maxlen, keys=parts.settings.keys)
    universe = _found(portfolio.universe_of(to.keys, common.symbols, common.max_symbols), parts)
    cycle = portfolio.build(
        parts.store,
        parts.metrics,
        universe,
        to,
        options.interval_s,
        options.balance_stale_s,
        options.position_stale_s,
    )
    return Loop(cycle, parts.store, parts.metrics, parts.clock), ""


def _regime(parts: Parts) -> tuple[AnyLoop, str]:
    options, common = parts.settings.of(RegimeOptions), parts.settings.common
    to = Target(maxlen=common.stream_maxlen, keys=parts.settings.keys)
    universe = _found(regime.universe_of(to.keys, common.symbols, options.max_symbols), parts)
    params = options.params()
    cycle = regime.build(parts.store, parts.metrics, universe, params, to, options.interval_s)
    return Loop(cycle, parts.store, parts.metrics, parts.clock), config_hash(params)


def _clusters(parts: Parts) -> tuple[AnyLoop, str]:
    options, common = parts.settings.of(ClustersOptions), parts.settings.common
    to = Target(maxlen=common.stream_maxlen, keys=parts.settings.keys)
    universe = _found(clusters.universe_of(to.keys, common.symbols, options.max_symbols), parts)
    params = options.params()
    static = None if options.static_map is None else clusters.read_static_map(options.static_map)
    if static is None and importlib.util.find_spec("scipy") is None:
        raise clusters.MapError(
            "The service clusters needs scipy: install quantum-alloc[clusters], or set QA_CLUSTER_MAP."
        )
    cycle = clusters.build(parts.store, parts.metrics, universe, params, to, options.interval_s, static)
    return Loop(cycle, parts.store, parts.metrics, parts.clock), config_hash(params)


def _budget(parts: Parts) -> tuple[AnyLoop, str]:
    options, common = parts.settings.of(BudgetOptions), parts.settings.common
    to = Target(options.mode.value, maxlen=common.stream_maxlen, keys=parts.settings.keys)
    universe = _found(budget.universe_of(to.keys, common.symbols, common.max_symbols), parts)
    params = options.params()
    cycle = budget.build(parts.store, parts.metrics, universe, params, to, options.interval_s)
    return Loop(cycle, parts.store, parts.metrics, parts.clock), config_hash(params)


def _found(universe: Universe, parts: Parts) -> Universe:
    """The universe of a service; one that runs a single cycle scans to the end."""
    universe.whole = parts.once
    return universe


def _aside(settings: Settings) -> ShadowKeys | None:
    """The names of the shadow lane, where it is used."""
    return settings.keys.shadow if settings.common.shadow_lane else None


def _target(mode: str, ttl_s: int, settings: Settings) -> Target:
    """How a service with hashes in two lanes writes."""
    return Target(mode, ttl_s, settings.common.stream_maxlen, keys=settings.keys, shadow=_aside(settings))


def _allocation(parts: Parts) -> tuple[AnyLoop, str]:
    options, common = parts.settings.of(AllocationOptions), parts.settings.common
    to = _target(options.mode.value, options.target_ttl_s, parts.settings)
    universe = _found(allocation.universe_of(to.keys, common.symbols, common.max_symbols), parts)
    params = options.params()
    cycle = allocation.build(
        parts.store, parts.metrics, universe, params, to, options.interval_s, shadow_lane=common.shadow_lane
    )
    return Loop(cycle, parts.store, parts.metrics, parts.clock), config_hash(params)


def _attribution(parts: Parts) -> tuple[AnyLoop, str]:
    options, common = parts.settings.of(AttributionOptions), parts.settings.common
    to = _target(options.mode.value, options.attribution_ttl_s, parts.settings)
    universe = _found(attribution.universe_of(to.keys, common.symbols, common.max_symbols), parts)
    limit = None if parts.once else options.max_events
    follower = attribution.follower_of(options.execution_stream, limit, common.symbols, to.keys)
    params = options.params()
    cycle = attribution.build(
        parts.store,
        parts.metrics,
        universe,
        follower,
        params,
        to,
        options.interval_s,
        min(common.max_symbols, STATE_SYMBOLS),
    )
    return Loop(cycle, parts.store, parts.metrics, parts.clock), config_hash(params)


def _efficiency(parts: Parts) -> tuple[AnyLoop, str]:
    options, common = parts.settings.of(EfficiencyOptions), parts.settings.common
    to = _target(options.mode.value, options.key_ttl_s, parts.settings)
    lane = common.shadow_lane
    universe = _found(efficiency.universe_of(to.keys, common.symbols, common.max_symbols, shadow_lane=lane), parts)
    limit = None if parts.once else options.max_events
    follower = efficiency.follower_of(options.execution_stream, limit, common.symbols, to.keys)
    params = options.params()
    cycle = efficiency.build(
        parts.store,
        parts.metrics,
        universe,
        follower,
        params,
        to,
        options.efficiency_stream,
        options.interval_s,
        min(common.max_symbols, STATE_SYMBOLS),
        shadow_lane=lane,
    )
    return Loop(cycle, parts.store, parts.metrics, parts.clock), config_hash(params)


def _proposer(parts: Parts) -> tuple[AnyLoop, str]:
    options, common = parts.settings.of(ProposerOptions), parts.settings.common
    to = _target("shadow", options.propose_ttl_s, parts.settings)
    lane = common.shadow_lane
    universe = _found(proposer.universe_of(to.keys, common.symbols, common.max_symbols, shadow_lane=lane), parts)
    params = options.params()
    cycle = proposer.build(
        parts.store,
        parts.metrics,
        universe,
        params,
        to,
        options.propose_stream,
        options.interval_s,
        shadow_lane=lane,
    )
    return Loop(cycle, parts.store, parts.metrics, parts.clock), config_hash(params)


def _simulated(parts: Parts, clock: str) -> Clock | None:
    """The clock that stands for the server's; None for the server's own.

    Raises:
        SettingsError: the server is not one that this process started.
    """
    if clock != "simulated":
        return None
    if not parts.own_server:
        text = "CLOCK='simulated': refused but on a server that this process started: set CLOCK=server"
        raise SettingsError([text])
    return parts.clock


def _desk(parts: Parts) -> tuple[AnyLoop, str]:
    options, common = parts.settings.of(DeskOptions), parts.settings.common
    to = Target(maxlen=common.stream_maxlen, keys=parts.settings.keys)
    universe = _found(desk.universe_of(to.keys, common.symbols, common.max_symbols), parts)
    params = options.params()
    simulated = parts.clock if parts.own_server else None
    cycle = desk.build(
        parts.store, parts.metrics, universe, params, to, common.plans_stream, options.interval_s, simulated
    )
    return Loop(cycle, parts.store, parts.metrics, parts.clock), config_hash(params)


def _apply(parts: Parts) -> tuple[AnyLoop, str]:
    options, common = parts.settings.of(ApplyOptions), parts.settings.common
    simulated, params = _simulated(parts, options.clock), options.params()
    settings = apply.Set(
        params,
        events=options.events_stream,
        results=options.results_stream,
        executions=options.execution_stream,
        equity_usd=options.paper_equity_usd,
        mark_every_s=options.mark_every_s,
        maxlen=common.stream_maxlen,
        keys=governor_setup.signing_keys(options.signing_key_file, parts.settings.redis.credentials_directory),
        simulated=simulated,
        once=parts.once,
        names=parts.settings.keys,
    )
    cycle = apply.build(parts.store, parts.metrics, settings, apply.universe_of(settings.names))
    return Loop(cycle, parts.store, parts.metrics, parts.clock), config_hash(params)


def _governor(parts: Parts) -> tuple[AnyLoop, str]:
    options, common = parts.settings.of(GovernorOptions), parts.settings.common
    clock = _simulated(parts, options.clock)
    params, consumer = options.params(), options.consumer or governor_setup.consumer_name()
    signing = governor_setup.signing_keys(options.signing_key_file, parts.settings.redis.credentials_directory)
    keeper = governor_setup.keeper(
        parts.store, common.state_directory, consumer, params, options.events_stream, common.stream_maxlen,
        journalled=options.durability == "journal", simulated=clock, keys=parts.settings.keys,
    )  # fmt: skip
    made = governor_setup.governor(
        parts.store,
        parts.metrics,
        governor.Set(
            params,
            plans=common.plans_stream,
            tombstone_permit_s=options.tombstone_permit_s,
            error_count=options.error_count if options.auto_disarm else 0,
            keys=signing,
            simulated=clock,
        ),
        keeper,
        consumer,
        shadow=_aside(parts.settings),
        once=parts.once or not runs(clock),
    )
    cycle = governor.build(parts.metrics, made, params)
    return Loop(cycle, parts.store, parts.metrics, parts.clock), config_hash(params)


SERVICES: Mapping[str, Callable[[Parts], tuple[AnyLoop, str]]] = {
    "feed": _feed,
    "portfolio": _portfolio,
    "regime": _regime,
    "clusters": _clusters,
    "budget": _budget,
    "attribution": _attribution,
    "allocation": _allocation,
    "efficiency": _efficiency,
    "proposer": _proposer,
    "desk": _desk,
    "governor": _governor,
    "apply": _apply,
}
"""In the order in which one symbol's journey goes through them."""

MODE_VARIABLES = {
    "budget": "P28_MODE",
    "attribution": "P30_MODE",
    "allocation": "P29_MODE",
    "efficiency": "P31_MODE",
    "governor": "APPLY_MODE",
    "apply": "APPLY_MODE",
}


def open_store(settings: Settings, made: Callable[..., Store] = Store) -> Store:
    """A connection to the Redis of the settings; nothing is sent yet.

    Args:
        settings: where Redis is.
        made: makes the connection, with the arguments that ``Store`` has.
    """
    r = settings.redis
    url, password, authorities = r.connect_to(), r.password(), r.authorities()
    locator: Locator | None = None
    if r.sentinels:
        theirs = options_of(r.link(), r.sentinel_username, r.sentinel_password(), authorities, TIMEOUT_S)
        locator = Sentinels(r.places(), r.sentinel_name, theirs)
    elif r.cluster:
        locator = Nodes(r.hash_tag, options_of(url, r.username, password, authorities, TIMEOUT_S))
    return made(url, password, r.address(), username=r.username, ca_file=authorities, locator=locator)


def assemble(name: str, parts: Parts) -> tuple[AnyLoop, About]:
    """One service's loop, and what ``/health`` says about it."""
    loop, config = SERVICES[name](parts)
    m = parts.metrics
    m.set("quantum_alloc_build_info", 1.0, __version__, config)
    m.set("quantum_alloc_start_timestamp_seconds", STARTED_AT)
    if loop.cycle.mode:
        m.set("quantum_alloc_mode_info", 1.0, loop.cycle.mode)
        unknown = MODE_VARIABLES.get(name) in parts.settings.unrecognised_modes
        m.set("quantum_alloc_mode_unrecognised", float(unknown))
    if not parts.own_server or runs(parts.clock):
        check = ServerCheck(parts.store, m, loop.cycle.mode, parts.tell)
        loop.check, loop.server_run_id = check, lambda: check.run_id
    return loop, {
        "version": __version__,
        "config": config,
        "redis": parts.settings.redis.address(),
        "clock_offset_s": round(offset_s(parts.clock), 3),
        "started_at": STARTED_AT,
    }


def _tell_lack(lack: Lack, text: str) -> None:
    say(log, logging.WARNING, "settings", f"Redis: {text}", {"reason": lack.value})


def _build(names: Sequence[str], settings: Settings, clock: Clock, *, once: bool = False) -> list[Built]:
    built: list[Built] = []
    tell = Once(_tell_lack)
    for name in (n for n in SERVICES if n in names):
        store = open_store(settings)
        metrics = Metrics(name, settings.common.metrics_max_symbols)
        parts = Parts(settings, store, metrics, clock, paced_source(settings), once)
        parts = parts if once else replace(parts, tell=tell)
        built.append((*assemble(name, parts), store))
    return built


def run_once(names: Sequence[str], settings: Settings, clock: Clock) -> str:
    """One cycle of each service; no port is opened.

    Returns:
        Empty, or the first trouble that kept a cycle from ending.
    """
    trouble = ""
    for loop, _, store in _build(names, settings, clock, once=True):
        ended = loop.once()
        while ended and loop.cycle.more is not None and loop.cycle.more():
            ended = loop.once()
        if not ended:
            trouble = trouble or f"{loop.cycle.name}: {loop.last_error}"
        loop.cycle.close()
        store.close()
    return trouble


def _end_at_once(*_: object) -> None:
    raise SystemExit(0)


def run_for_good(names: Sequence[str], settings: Settings, clock: Clock) -> None:
    """Services until SIGTERM or SIGINT.

    Raises:
        PortTaken: a port cannot be opened; nothing was started.
    """
    serve(lambda: _build(names, settings, clock), settings, lambda _, stop: stop.wait())


def build_kept(settings: Settings, clock: Clock, source: Source) -> list[Built]:
    """All services of a demo that goes on, over the server that the demo has started.

    Args:
        settings: of all.
        clock: the demo's clock, which runs.
        source: opens the candles where the demo stopped.
    """
    built: list[Built] = []
    for name in SERVICES:
        store, metrics = open_store(settings), Metrics(name, settings.common.metrics_max_symbols)
        parts = Parts(settings, store, metrics, clock, source, own_server=True)
        built.append((*assemble(name, parts), store))
    return built


def serve(
    build: Callable[[], list[Built]], settings: Settings, while_up: Callable[[Sequence[AnyLoop], Event], object]
) -> None:
    """Open the ports of services and run their loops, until SIGTERM or SIGINT, or until ``while_up`` returns.

    Args:
        build: the services; a signal in the meantime ends the process at once.
        settings: of all of them.
        while_up: waits in the main thread; the event is set by a signal.

    Raises:
        PortTaken: a port cannot be opened; nothing was started.
    """
    stop = Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _end_at_once)  # nothing has begun: long candle files may still be read
    built = build()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    servers = []
    try:
        for loop, about, _ in built:
            options, host = settings.services[loop.cycle.name], settings.common.metrics_host
            for name, port in port_variables(options).items():
                servers.append(http.serve(host, port, http.routes(loop, about), loop.cycle.name, name))
                text = f"{loop.cycle.name} serves /metrics /health /ready on {host}:{port}"
                say(log, logging.INFO, "process", text, {"port": port})
        threads = [Thread(target=loop.run, args=(stop,), name=loop.cycle.name, daemon=True) for loop, _, _ in built]
        alive = Watchdog([loop for loop, _, _ in built])
        for loop, _, _ in built:
            loop.on_finished = alive.finished
        for thread in threads:
            thread.start()
        watched_us = os.environ.get("WATCHDOG_USEC", "")
        if watched_us and sys.stderr is not None:
            faulthandler.enable()  # the watchdog's SIGABRT then tells where every thread was
        notify("READY=1" + alive.patience(watched_us))
        while_up([loop for loop, _, _ in built], stop)
        stop.set()
        notify("STOPPING=1")
        deadline = time.monotonic() + STOP_WITHIN_S
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()
        for loop, _, store in built:
            loop.cycle.close()
            store.close()
    say(log, logging.INFO, "process", "ended")


class Watchdog:
    """Tells systemd that all loops are alive, after a finished cycle of any."""

    def __init__(self, loops: Sequence[AnyLoop]) -> None:
        """Watch these loops."""
        self._loops = loops
        self._late: frozenset[str] = frozenset()
        self._lock = Lock()

    def patience(self, given_us: str) -> str:
        """What systemd is told where its watchdog would end a loop between two cycles.

        Args:
            given_us: systemd's own setting, microseconds; empty where it does not watch.
        """
        wanted_us = int(1.25e6 * LATE_INTERVALS * max(loop.cycle.interval_s for loop in self._loops))
        return f"\nWATCHDOG_USEC={wanted_us}" if given_us.isdecimal() and int(given_us) < wanted_us else ""

    def finished(self) -> None:
        """A cycle has finished: ping, unless some loop hangs; that one cannot tell of it."""
        late = frozenset(loop.cycle.name for loop in self._loops if loop.is_late())
        if not late:
            notify("WATCHDOG=1")
        with self._lock:
            before, self._late = self._late, late
        for name in sorted(late - before):
            text = f"no cycle of {name} has finished for long: it hangs, and systemd is not told that all is well"
            changed(log, logging.ERROR, text, "loop", "ok", "hangs", {"reason": name})
        for name in sorted(before - late):
            changed(log, logging.WARNING, f"cycles of {name} finish again", "loop", "hangs", "ok", {"reason": name})


def notify(state: str) -> None:
    """sd_notify: one datagram to systemd's socket, where there is one."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path:
        return
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.connect("\0" + path[1:] if path.startswith("@") else path)
            sock.sendall(state.encode())
    except OSError as error:  # no descriptor left, no such socket: never the end of a loop
        say(log, logging.DEBUG, "process", f"systemd could not be told {state}: {error}")
