"""The commands for looking closely and for trying things out: ``explain``, ``diff-lanes``, ``plot``, ``inject``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from quantum_alloc.adapters import codec, wire
from quantum_alloc.adapters.effects import Effect, HashSet, StreamAdd
from quantum_alloc.services import app, explain, explain_plan, inject, lanes, plot, show, status
from quantum_alloc.services.options import ApplyOptions, ClustersOptions, GovernorOptions, RegimeOptions, Settings, load

DONE, USAGE = 0, 2
HASHED = ("attribution", "efficiency")
MOST_ENTRIES = 10_000
EMPTY_LANES = (
    "Neither lane holds a target, an attribution, an efficiency or a proposal: services in shadow write them with "
    "SHADOW_LANE=1."
)


def symbol(text: str) -> str:
    """One symbol."""
    name = codec.symbol(text.encode("utf-8", "replace"))
    if name is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a symbol: 2 to 30 capital letters or digits")
    return name


def word(text: str) -> str:
    """A plain word."""
    found = codec.word(text.encode("utf-8", "replace"))
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a plain word: 1 to 64 letters, digits, '_', '.', '-'")
    return found


def amount(text: str) -> float:
    """A finite number."""
    value = codec.number(text.encode("utf-8", "replace"))
    if value is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number")
    return value


def positive(text: str) -> float:
    """A number above 0."""
    value = codec.number(text.encode("utf-8", "replace"))
    if value is None or value <= 0.0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def share(text: str) -> float:
    """A number from 0 to 1."""
    value = codec.number(text.encode("utf-8", "replace"), 0.0, 1.0)
    if value is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return value


def whole(text: str) -> int:
    """A whole number, 0 or more."""
    if not (text.isascii() and text.isdigit() and len(text) < 9):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 on")
    return int(text)


def epoch(text: str) -> float:
    """A time."""
    seconds = codec.unix_seconds(text.encode("utf-8", "replace"))
    if seconds is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time: give unix seconds or ISO-8601")
    return seconds


def count(text: str) -> int:
    """How many entries."""
    if not (text.isascii() and text.isdigit() and 0 < int(text[:9]) <= MOST_ENTRIES and len(text) < 9):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 to {MOST_ENTRIES:,}")
    return int(text)


def _format(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--format", choices=("table", "json"), default="table")


def add_parsers(commands: Any) -> None:
    """Add the commands.

    Args:
        commands: the subparsers of ``quantum-alloc``.
    """
    about = "the last decision of each service for a symbol, or the verdict on a plan, and what would turn it"
    why = commands.add_parser("explain", help=about, description=about)
    why.add_argument("what", type=word, metavar="SYMBOL|PLAN_ID")
    why.add_argument("--plan", action="store_true", help="it is a plan id, although it could be a symbol")
    _format(why)
    why.set_defaults(handler=_explain)

    both = commands.add_parser("diff-lanes", help="what stands in the live lane and in the shadow lane, per symbol")
    both.add_argument("symbols", type=symbol, nargs="*", metavar="SYMBOL", help="only these")
    _format(both)
    both.set_defaults(handler=_diff_lanes)

    draw = commands.add_parser(
        "plot", help="a picture as one HTML page: the clusters' correlations, the regime over time"
    )
    draw.add_argument("what", choices=("clusters", "regime"))
    draw.add_argument("--out", type=Path, required=True, metavar="FILE.html", help="where the page goes")
    draw.set_defaults(handler=_plot)

    put = commands.add_parser("inject", help="write a well-formed sample entry, for trying things out")
    kinds = put.add_subparsers(dest="kind", required=True, metavar="KIND")
    _inject_parsers(kinds)


def _inject_parsers(kinds: Any) -> None:
    def kind(name: str, help: str, *, of_symbol: bool = True) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = kinds.add_parser(name, help=help, description=help)
        if of_symbol:
            parser.add_argument("symbol", type=symbol, metavar="SYMBOL")
        parser.add_argument(
            "--lane",
            choices=("live", "shadow"),
            default="live",
            help="where (live); shadow for attribution and efficiency",
        )
        parser.add_argument("--ts", type=epoch, metavar="TIME", help="its time, unix seconds or ISO-8601 (now)")
        parser.set_defaults(handler=_inject)
        return parser

    done = kind("execution", "an execution")
    done.add_argument("--pnl", type=amount, metavar="USD", help="realised PnL; none for an open")
    done.add_argument("--qty", type=positive, default=1.0, metavar="Q", help="filled quantity (1)")
    for name in ("plan-id", "regime", "cluster", "signal"):
        done.add_argument(f"--{name}", type=word, metavar="WORD")
    done.add_argument("--nested", action="store_true", help="as one JSON object in the field payload")
    done.add_argument("--count", type=count, default=1, metavar="N", help="how many times (1)")

    attributed = kind("attribution", "a symbol's attribution")
    attributed.add_argument("--performance", type=share, default=0.5, metavar="X", help="0 to 1, 0.5 neutral (0.5)")
    attributed.add_argument("--confidence", type=share, default=1.0, metavar="X", help="0 to 1 (1)")

    efficient = kind("efficiency", "a symbol's efficiency")
    efficient.add_argument("--score", type=share, default=0.5, metavar="X", help="0 to 1 (0.5)")
    efficient.add_argument("--confidence", type=share, default=1.0, metavar="X", help="0 to 1 (1)")

    market = kind("regime", "a market regime", of_symbol=False)
    market.add_argument(
        "name", type=word, metavar="NAME", help="TREND, MEAN_REVERSION, CHOP, NEUTRAL, or another word (factor 1)"
    )
    market.add_argument("--confidence", type=share, default=0.8, metavar="X", help="0 to 1 (0.8)")

    priced = kind("market", "a symbol's market state")
    priced.add_argument("--price", type=positive, required=True, metavar="USD")
    held = kind("position", "a symbol's position")
    held.add_argument("--qty", type=amount, required=True, metavar="Q", help="signed; 0 is flat")
    held.add_argument("--mark", type=positive, required=True, metavar="USD", help="its mark price")
    owned = kind("portfolio", "the portfolio", of_symbol=False)
    owned.add_argument("--equity", type=amount, default=100_000.0, metavar="USD", help="(100000)")
    owned.add_argument("--notional", type=amount, default=0.0, metavar="USD", help="of all positions (0)")
    owned.add_argument("--positions", type=whole, default=0, metavar="N", help="how many (0)")

    paid = kind("transfer", "money paid into the paper account, or out of it", of_symbol=False)
    paid.add_argument("--usd", type=amount, required=True, metavar="USD", help="below 0 to pay out")

    planned = kind("plan", "a plan, as a strategy proposes it")
    planned.add_argument("--plan-id", type=word, metavar="ID", help="(made from its content)")
    planned.add_argument("--action", type=word, default="ENTRY_PROPOSED", metavar="WORD", help="(ENTRY_PROPOSED)")
    planned.add_argument("--decision", type=word, default="EXECUTE", metavar="WORD", help="(EXECUTE)")
    planned.add_argument("--side", choices=("BUY", "SELL", "LONG", "SHORT"), help="(BUY; none for what closes)")
    planned.add_argument("--qty", type=positive, default=1.0, metavar="Q", help="(1)")
    planned.add_argument("--price", type=positive, metavar="USD")
    planned.add_argument("--kill-score", type=share, default=0.1, metavar="X", help="0 to 1 (0.1)")
    planned.add_argument("--reduce-only", action="store_true")


def _settings(environ: Mapping[str, str]) -> Settings:
    return load(list(app.SERVICES), environ, together=False)


def _explain(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    settings = _settings(environ)
    store, now = app.open_store(settings), status.clock_of(settings).now()
    is_symbol = not args.plan and codec.symbol(args.what.encode()) is not None
    events = settings.of(GovernorOptions).events_stream
    try:
        if is_symbol:
            found = explain.gather(settings, store, args.what, now)
            found.append(explain_plan.last_of(store, events, args.what, now))
        else:
            results, plans, keys = settings.of(ApplyOptions).results_stream, settings.common.plans_stream, settings.keys
            found = [explain_plan.explain(store, keys, events, plans, args.what, now, results)]
    finally:
        store.close()
    if args.format == "json":
        kind = "symbol" if is_symbol else "plan_id"
        print(show.as_json({kind: args.what, "decisions": [e.to_dict() for e in found]}))
    elif is_symbol:
        print(explain.text(args.what, found))
    else:
        print(explain.parts(args.what, found))
    return DONE


def _diff_lanes(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    settings = _settings(environ)
    store, now = app.open_store(settings), status.clock_of(settings).now()
    try:
        only = tuple(args.symbols) or settings.common.symbols
        names = lanes.symbols(store, settings.keys, only, settings.common.max_symbols, now)
        rows = lanes.rows(store, settings.keys, names, now)
    finally:
        store.close()
    if args.format == "json":
        print(show.as_json(rows))
    else:
        print(show.table(rows) if rows else EMPTY_LANES)
    return DONE


def _plot(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    settings = _settings(environ)
    store = app.open_store(settings)
    try:
        plot.needs_plotly()
        options, only = settings.of(ClustersOptions), settings.common.symbols
        bars = plot.bars_of(
            store, settings.keys, only, options.max_symbols, plot.KEPT_BARS, status.clock_of(settings).now()
        )
        if args.what == "clusters":
            of = wire.decode_clusters(store.read([("HGETALL", settings.keys.clusters)])[0])
            page = plot.clusters(bars, of, options.params())
        else:
            page = plot.regime(bars, settings.of(RegimeOptions).params())
        args.out.write_text(page, encoding="utf-8")
    except (plot.PlotError, OSError) as error:
        why = f"{args.out} cannot be written: {error.strerror}" if isinstance(error, OSError) else str(error)
        print(f"quantum-alloc: {why}", file=sys.stderr)
        return USAGE
    finally:
        store.close()
    print(f"{args.out}: {args.what} of {len(bars)} symbols, {len(page) / 1e6:.1f} MB")
    return DONE


def _effects(args: argparse.Namespace, where: inject.Where) -> list[Effect]:
    a = args
    if a.kind == "execution":
        given = {"plan_id": a.plan_id, "regime": a.regime, "cluster": a.cluster, "signal": a.signal}
        labels = {name: text for name, text in given.items() if text is not None}
        return [inject.execution(where, a.symbol, a.pnl, a.qty, labels, nested=a.nested)] * a.count
    made: Mapping[str, Callable[[], Effect]] = {
        "attribution": lambda: inject.attribution(where, a.symbol, a.performance, a.confidence),
        "efficiency": lambda: inject.efficiency(where, a.symbol, a.score, a.confidence),
        "regime": lambda: inject.regime(where, a.name, a.confidence),
        "market": lambda: inject.market(where, a.symbol, a.price),
        "position": lambda: inject.position(where, a.symbol, a.qty, a.mark),
        "portfolio": lambda: inject.portfolio(where, a.equity, a.notional, a.positions),
        "transfer": lambda: inject.transfer(where, a.usd),
        "plan": lambda: inject.plan(where, inject.plan_fields(a.symbol, where.now, vars(a))),
    }
    return [made[a.kind]()]


def _inject(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    if args.lane == "shadow" and args.kind not in HASHED:
        text = f"{args.kind} entries exist in the live lane alone: --lane shadow is for {' and '.join(HASHED)}"
        print(f"quantum-alloc: {text}", file=sys.stderr)
        return USAGE
    settings = _settings(environ)
    now = status.clock_of(settings).now() if args.ts is None else args.ts
    where = inject.Where(settings, now, args.lane == "shadow")
    effects = _effects(args, where)
    store = app.open_store(settings)
    try:
        refused = store.apply([tuple(effects)])
    finally:
        store.close()
    for key, failure in refused:
        print(f"quantum-alloc: the server refuses to write {key}: {failure.message}", file=sys.stderr)
    if refused:
        return USAGE
    first = effects[0]
    if isinstance(first, (HashSet, StreamAdd)):
        times = f" x {len(effects)}" if len(effects) > 1 else ""
        print(f"{first.key}{times}", *(f"  {name}={text}" for name, text in first.fields.items()), sep="\n")
    return DONE
