"""``regime``: does the universe trend, revert, or only make noise; every 30 s.

The bars of every symbol are read from their streams, whole after a start and a few entries a cycle afterwards. A regime
that cannot be told is not published; the log and ``/health`` say why.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from quantum_alloc.adapters.bars import BarReader
from quantum_alloc.adapters.effects import Group
from quantum_alloc.adapters.flow_writes import regime_effects
from quantum_alloc.adapters.keys import LIVE, Keys
from quantum_alloc.adapters.metrics import Metrics
from quantum_alloc.adapters.store import Store
from quantum_alloc.adapters.universe import Symbols, Universe
from quantum_alloc.adapters.writes import Target
from quantum_alloc.core import Bars, NoRegime, RegimeDecision, RegimeParams, classify_regime
from quantum_alloc.core.isolate import Attempt
from quantum_alloc.core.regime import KEPT_BARS
from quantum_alloc.services.logs import Fields
from quantum_alloc.services.loop import Cycle, Told
from quantum_alloc.services.vacuity import Watch, bars_seen

NAME = "regime"
DONE = "Regime cycle complete"


@dataclass(frozen=True, slots=True)
class Seen:
    """Everything that one cycle read."""

    now: float
    symbols: Symbols
    bars: Mapping[str, Bars]
    malformed: int


def tell(m: Metrics, watch: Watch, seen: Seen, made: RegimeDecision | NoRegime) -> Told:
    """Metrics and the cycle's line."""
    m.set("quantum_alloc_symbols", made.symbols)
    m.set("quantum_alloc_refused_names", seen.symbols.refused)
    m.set("quantum_alloc_dropped_symbols", seen.symbols.dropped)
    m.set("quantum_alloc_bars_malformed", seen.malformed)
    if seen.symbols.complete:
        watch.inputs(seen.now, *bars_seen(seen.bars, seen.symbols.names, seen.now), due=("bars",))
        watch.tell(seen.now)
    m.set("quantum_alloc_regime_bars", made.bars)
    m.set("quantum_alloc_regime_gaps", made.gaps)
    if isinstance(made, NoRegime):
        m.replace("quantum_alloc_regime_confidence", {})
        return Told(DONE, made.reason, {"symbols": made.symbols, "bars": made.bars})
    m.set("quantum_alloc_regime_z", made.z)
    m.replace("quantum_alloc_regime_confidence", {made.regime: made.confidence})
    told: Fields = {"symbols": made.symbols, "regime": made.regime, "z": made.z, "bars": made.bars}
    return Told(DONE, fields=told)


def build(
    store: Store, metrics: Metrics, universe: Universe, params: RegimeParams, to: Target, interval_s: float
) -> Cycle[None, Seen, RegimeDecision | NoRegime]:
    """The service.

    Args:
        store: where it reads.
        metrics: where it counts.
        universe: symbols with bars.
        params: the numbers of the detector.
        to: stream length and names.
        interval_s: cadence.
    """
    watch = Watch(metrics, "")
    reader = BarReader(to.keys, max(KEPT_BARS, params.window + 1))

    def read(now: float) -> Seen:
        symbols = universe.find(store, store.read(universe.query), now)
        bars = reader.read(store, symbols.names, now)
        return Seen(now, symbols, bars, reader.malformed)

    def decide(_: None, seen: Seen, __: Attempt) -> tuple[None, RegimeDecision | NoRegime]:
        if not seen.symbols.complete:
            return None, NoRegime(seen.now, "scanning")
        return None, classify_regime(seen.bars, seen.now, params)

    def effects(_: Seen, made: RegimeDecision | NoRegime) -> tuple[Group, ...]:
        return () if isinstance(made, NoRegime) else regime_effects(made, params, to)

    return Cycle(
        name=NAME,
        mode="",
        interval_s=interval_s,
        initial=None,
        read=read,
        decide=decide,
        effects=effects,
        tell=lambda seen, made, _: tell(metrics, watch, seen, made),
    )


def universe_of(keys: Keys = LIVE, fixed: tuple[str, ...] = (), limit: int = 1_000) -> Universe:
    """Symbols with bars."""
    return Universe(keys, (keys.bars(""),), fixed, limit)
