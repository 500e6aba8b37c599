"""What a person sees of the demo: a live table with a progress bar on a terminal, else the last table once."""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, TextIO

from quantum_alloc.adapters.embedded import EmbeddedServer
from quantum_alloc.adapters.keys import Keys
from quantum_alloc.services import report
from quantum_alloc.services.demo import Outcome, Progress
from quantum_alloc.services.demo_keep import Kept
from quantum_alloc.services.demo_watch import Tally
from quantum_alloc.services.plot import PlotError
from quantum_alloc.services.show import table

REFRESH_S = 0.1
NARROW_COLUMNS = ("symbol", "base", "regime", "cluster", "drawdown", "perf", "cap", "target", "position", "reason")
COLUMNS = ("symbol", "base", "regime", "cluster", "moved", "drawdown", "perf", "cap", "target", "position", "reason")
CLUSTER_COLUMNS = ("cluster", "members", "weight", "one way", "correlation", "stress", "factor", "alpha")
LIVE_COLUMNS = (
    "symbol", "base", "regime", "cluster", "drawdown", "perf", "target", "position", "score", "pressure", "confidence",
    "multiplier", "proposed", "why", "reason",
)  # fmt: skip
LIVE_WIDTH = 130
"""Columns of a terminal from which on the live table shows efficiency and proposal too."""
EFFICIENCY_COLUMNS = ("symbol", "target", "score", "average", "pressure", "confidence", "multiplier", "proposed", "why")


class View(Protocol):
    """Shows progress."""

    def __call__(self, progress: Progress, /) -> None:
        """Called after every bar."""
        ...


def reason(row: Mapping[str, str]) -> str:
    """Why a target is what it is, in a few words: the cap that bound, and the inputs that were not there.

    Args:
        row: the fields of a decision record.

    >>> reason({"bound": "symbol", "budget_state": "ok", "stress_state": "stale", "attribution_state": "ok"})
    'symbol cap; cluster stale'
    """
    parts = [] if row["bound"] == "none" else [row["bound"].replace("+", " and ") + " cap"]
    unused: dict[str, list[str]] = {}
    for name, key in (("budget", "budget"), ("cluster", "stress"), ("perf", "attribution")):
        state = row[f"{key}_state"]
        if state != "ok":
            unused.setdefault(state, []).append(name)
    parts += [f"{', '.join(names)} {state}" for state, names in unused.items()]
    return "; ".join(parts) or "all inputs used"


def rows_of(progress: Progress) -> list[dict[str, Any]]:
    """One row a symbol, sorted.

    Args:
        progress: where the demo is.
    """
    rows = sorted(progress.rows, key=lambda r: r["symbol"])
    return [
        {
            "symbol": r["symbol"],
            "base": float(r["base_usd"]),
            "regime": float(r["regime_factor"]),
            "cluster": float(r["cluster_factor"]),
            "moved": f"{float(r['regime_factor']) * float(r['cluster_factor']) - 1.0:+.1%}",
            "drawdown": float(r["drawdown_factor"]),
            "perf": float(r["performance_factor"]),
            "cap": float(r["symbol_cap_usd"]),
            "target": float(r["target_usd"]),
            "position": progress.positions.get(r["symbol"], 0.0),
            "reason": reason(r),
        }
        for r in rows
    ]


def cluster_rows(progress: Progress) -> list[dict[str, Any]]:
    """Members and strain of each cluster, sorted; empty before there is a map.

    Args:
        progress: where the demo is.
    """
    factors = {r["cluster_id"]: float(r["cluster_factor"]) for r in progress.rows}
    out: list[dict[str, Any]] = []
    for name in sorted(progress.clusters):
        s = progress.stress.get(name, {})
        strain = {key: float(s[field]) if field in s else None for key, field in _STRAINS}
        members = " ".join(json.loads(progress.clusters[name]))
        out.append({"cluster": name, "members": members, **strain, "factor": factors.get(name)})
    return out


_STRAINS = (
    ("weight", "weight"), ("one way", "concentration"), ("correlation", "correlation"), ("stress", "stress"),
    ("alpha", "alpha"),
)  # fmt: skip


def efficiency_rows(progress: Progress) -> list[dict[str, Any]]:
    """Score, pressure and proposal of each symbol, sorted; empty where there is none yet.

    Args:
        progress: where the demo is.
    """
    out: list[dict[str, Any]] = []
    for row in rows_of(progress):
        e, p = progress.efficiency.get(row["symbol"], {}), progress.proposals.get(row["symbol"], {})

        def value(fields: Mapping[str, str], name: str) -> float | None:
            return float(fields[name]) if fields.get(name) else None

        out.append(
            {
                "symbol": row["symbol"],
                "target": row["target"],
                "score": value(e, "efficiency_score"),
                "average": value(e, "efficiency_ewma"),
                "pressure": e.get("capital_pressure"),
                "confidence": value(e, "confidence"),
                "multiplier": value(p, "multiplier"),
                "proposed": value(p, "proposed_target"),
                "why": p.get("reason"),
            }
        )
    return out


def live_rows(progress: Progress) -> list[dict[str, Any]]:
    """Targets and efficiencies joined, one row a symbol.

    Args:
        progress: where the demo is.
    """
    return [{**e, **t} for t, e in zip(rows_of(progress), efficiency_rows(progress), strict=True)]


def _short(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:,.2f}" if isinstance(value, float) else str(value)


def moment(ts: float) -> str:
    """A time as people read it, UTC.

    >>> moment(1765649940.0)
    '2025-12-13 18:19'
    """
    return datetime.fromtimestamp(ts, UTC).strftime("%Y-%m-%d %H:%M")


def headline(progress: Progress) -> str:
    """Time, equity, drawdown and regime of the last bar."""
    p, c = progress.portfolio, progress.cycle
    equity = f"equity {float(p['equity_usd']):,.2f} USD" if p else "equity unknown"
    drawdown = f"drawdown {float(p['drawdown']):.2%}" if "drawdown" in p else "drawdown unknown"
    state = c.get("regime_state", "unknown")
    regime = f"regime {c['regime'] if state == 'ok' else state}"
    if state == "ok" and "z" in progress.regime:
        regime += f" z {float(progress.regime['z']):+.2f} confidence {float(progress.regime['confidence']):.2f}"
    return f"{moment(progress.now)}  {equity}  {drawdown}  {regime}"


def targets(progress: Progress) -> str:
    """The headline and the tables as plain text."""
    tables = [table(rows_of(progress), COLUMNS)]
    if progress.clusters:
        tables.append(table(cluster_rows(progress), CLUSTER_COLUMNS))
    tables.append(table(efficiency_rows(progress), EFFICIENCY_COLUMNS))
    return "\n\n".join((headline(progress), *tables))


def _counted(found: Mapping[str, int]) -> str:
    """Counts in the order of their size, on one line."""
    ordered = sorted(found.items(), key=lambda pair: (-pair[1], pair[0]))
    return ", ".join(f"{name} {n:,}" for name, n in ordered if n) or "none"


def profile(outcome: Mapping[str, str]) -> str:
    """What the demo runs with, for its first lines.

    Args:
        outcome: by variable.
    """
    return "profile: " + " ".join(f"{name}={text}" for name, text in outcome.items())


def verdicts(tally: Tally) -> list[str]:
    """What governor and apply layer have come to, a line each.

    Args:
        tally: so far.
    """
    return [
        f"permits {tally.permits:,}: " + _counted(tally.fates),
        f"fills: opens {tally.opens:,}, closes {tally.closes:,}",
        f"blocks {sum(tally.blocks.values()):,}: " + _counted(tally.blocks),
        "would have blocked: " + _counted(tally.would_block),
        "hints: " + _counted(tally.hints),
        *(["events: " + _counted(tally.events)] if tally.events else []),
    ]


def summary(outcome: Outcome, where: Sequence[str]) -> str:
    """What happened, in plain language.

    Args:
        outcome: of the demo.
        where: lines on where to look further.
    """
    p, c, a = outcome.progress, outcome.candles, outcome.account
    counts = a.permits.counts
    lines = [
        f"{p.bars:,} bars of {len(outcome.symbols)} symbols, {moment(p.first)} to {moment(p.now)} UTC"
        + (f", {p.jumps} gaps jumped" if p.jumps else ""),
        f"{p.cycles:,} allocation cycles, {p.targets:,} targets",
        "candles: " + ", ".join(f"{name} {n:,}" for name, n in sorted(c.items()) if n),
        *verdicts(p.tally),
        "desk held back: " + _counted(outcome.held_back),
        f"account: balance {a.balance_usd:,.2f} USD, paid in {a.paid_in_usd:,.2f}, realised {a.realised_usd:+,.2f}, "
        f"fees {a.fees_usd:,.2f}",
        f"reconciled: issued {counts.issued:,} = consumed {counts.consumed:,} + expired {counts.expired:,} "
        f"+ outstanding {counts.outstanding:,}; fills without a permit {counts.without_permit:,}, above theirs "
        f"{counts.above_permit:,}, not in the account {counts.elsewhere:,}",
        "executions: " + (", ".join(f"{name} {n:,}" for name, n in outcome.executions.items()) or "none"),
        "proposals: " + (", ".join(f"{name} {n:,}" for name, n in outcome.proposals.items()) or "none"),
        *(f"drill: {line}" for line in outcome.drill),
        "inputs not used, so exactly neutral (before a producer has what it needs):"
        if outcome.fallbacks
        else "every input was used",
        *(f"  {name:40} {n:>9,}" for name, n in outcome.fallbacks.items()),
        "checks:" if outcome.holds else "checks, of which some FAIL:",
        *(f"  {'ok  ' if check.ok else 'FAIL'} {check.name}: {check.detail}" for check in outcome.checks),
        f"records sha256 {outcome.sha256}",
        "",
        *where,
    ]
    return "\n".join(lines)


def where_server(server: EmbeddedServer, outcome: Outcome, keys: Keys) -> list[str]:
    """How to look at a server that was left up with its records standing still.

    Args:
        server: of the demo.
        outcome: of the demo.
        keys: its names.
    """
    symbol = outcome.symbols[0]
    return [
        f"The server stays up; end it with: kill {server.pid}",
        f"Try: redis-cli -s {server.socket} hgetall {keys.target(symbol)}",
        f"     export REDIS_URL={server.url} T={int(outcome.progress.now)}   # T: the demo's clock",
        "     export STATE_DIRECTORY=$(mktemp -d)   # before you run a governor on it",
        f"     quantum-alloc explain {symbol}   # in the virtual environment: . .venv/bin/activate",
    ]


def where_all(server: EmbeddedServer, kept: Kept, symbol: str) -> list[str]:
    """How to look at services that go on.

    Args:
        server: of the demo.
        kept: the services.
        symbol: to look at, for example.
    """
    with_settings = f"quantum-alloc --env-file {kept.env_file}"
    ended = ["The candles have ended: prices grow old from now on, and the services hold back."] if kept.ended else []
    return [
        f"All services go on at the clock's pace; they log to {kept.log_file}",
        "ports: the contract's" + (f" + {kept.port_offset}" if kept.port_offset else ""),
        *ended,
        f"End them and their server with: kill {server.pid}   (the services alone: kill {kept.pid})",
        f"Try: {with_settings} status   # in the virtual environment: . .venv/bin/activate",
        f"     {with_settings} prove all",
        f"     {with_settings} explain {symbol}",
        f"     redis-cli -s {server.socket}",
    ]


def as_dict(outcome: Outcome) -> dict[str, Any]:
    """The outcome for ``--format json``."""
    p = outcome.progress
    return {
        "bars": p.bars,
        "first": p.first,
        "last": p.now,
        "jumps": p.jumps,
        "symbols": list(outcome.symbols),
        "cycles": p.cycles,
        "targets": p.targets,
        "profile": dict(outcome.profile),
        "permits": p.tally.permits,
        "blocks": dict(p.tally.blocks),
        "would_block": dict(p.tally.would_block),
        "hints": dict(p.tally.hints),
        "events": dict(p.tally.events),
        "fates": dict(p.tally.fates),
        "opens": p.tally.opens,
        "closes": p.tally.closes,
        "held_back": dict(outcome.held_back),
        "account": {
            "balance_usd": outcome.account.balance_usd,
            "paid_in_usd": outcome.account.paid_in_usd,
            "realised_usd": outcome.account.realised_usd,
            "fees_usd": outcome.account.fees_usd,
            "positions": {s: h.qty for s, h in outcome.account.held.items()},
        },
        "reconciled": {
            **outcome.account.permits.counts.to_dict(),
            "outstanding": outcome.account.permits.counts.outstanding,
        },
        "drill": list(outcome.drill),
        "checks": [{"name": c.name, "ok": c.ok, "detail": c.detail} for c in outcome.checks],
        "fallbacks": dict(outcome.fallbacks),
        "candles": dict(outcome.candles),
        "executions": dict(outcome.executions),
        "proposals": dict(outcome.proposals),
        "portfolio": dict(p.portfolio),
        "regime": dict(p.regime),
        "clusters": {name: json.loads(members) for name, members in p.clusters.items()},
        "stress": {name: dict(p.stress[name]) for name in sorted(p.stress)},
        "last_cycle": dict(p.cycle),
        "last_decisions": [dict(r) for r in p.rows],
        "last_efficiencies": [dict(p.efficiency[s]) for s in sorted(p.efficiency)],
        "last_proposals": [dict(p.proposals[s]) for s in sorted(p.proposals)],
        "sha256": outcome.sha256,
    }


def write_report(path: Path, outcome: Outcome, source: str) -> float:
    """Write the page about a run; its size in MB.

    Args:
        path: where it goes.
        outcome: of the demo, with what a report needs.
        source: of the candles.

    Raises:
        PlotError: plotly is missing, or the file cannot be written.
    """
    p = outcome.progress
    facts = [
        ("bars", f"{p.bars:,} of {len(outcome.symbols)} symbols"),
        ("from", f"{moment(p.first)} UTC"),
        ("to", f"{moment(p.now)} UTC"),
        ("candles", source),
        *outcome.profile.items(),
        ("paid in", f"{outcome.account.paid_in_usd:,.2f} USD in all; what is paid out is no loss, but draws down"),
        *(("drill", line) for line in outcome.drill),
        ("records sha256", outcome.sha256),
    ]
    page = report.page(outcome.records, facts, [(c.name, c.ok, c.detail) for c in outcome.checks])
    try:
        return path.write_bytes(page.encode()) / 1e6
    except OSError as error:
        raise PlotError(f"{path} cannot be written: {error.strerror}") from None


@contextmanager
def live(out: TextIO, *, quiet: bool = False) -> Iterator[View]:
    """A view that suits ``out``: rich on a terminal, one changing line on a terminal without rich, else nothing.

    Args:
        out: where to show.
        quiet: show nothing until the end.
    """
    if quiet or not out.isatty():
        yield lambda _: None
    elif importlib.util.find_spec("rich") is None:
        yield _line(out)
        out.write("\n")
    else:
        with _rich(out) as view:
            yield view


def _line(out: TextIO) -> View:
    last = 0.0

    def show(progress: Progress) -> None:
        nonlocal last
        if time.monotonic() - last >= REFRESH_S:
            last = time.monotonic()
            of = f" of {progress.total:,}" if progress.total else ""
            out.write(f"\r{progress.bars:,}{of} bars  {headline(progress)}")
            out.flush()

    return show


@contextmanager
def _rich(out: TextIO) -> Iterator[View]:
    from rich.console import Console, Group
    from rich.live import Live
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar
    from rich.table import Table

    console = Console(file=out)
    bar = Bar(TextColumn("bars"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console)
    task = bar.add_task("bars", total=None)
    last = 0.0
    with Live(console=console, auto_refresh=False, transient=True) as screen:

        def show(progress: Progress) -> None:
            nonlocal last
            if time.monotonic() - last < REFRESH_S and progress.bars != progress.total:
                return
            last = time.monotonic()
            bar.update(task, completed=progress.bars, total=progress.total)
            grid = Table(title=headline(progress), title_justify="left", box=None, pad_edge=False, padding=(0, 1))
            names = LIVE_COLUMNS if console.width >= LIVE_WIDTH else NARROW_COLUMNS
            for name in names:
                side: Any = "left" if name in ("symbol", "reason", "pressure", "why") else "right"
                least = {"reason": 6, "symbol": 8, "base": 8, "target": 8, "position": 9, "proposed": 8}.get(name, 4)
                grid.add_column(name, justify=side, min_width=least, no_wrap=True, overflow="ellipsis")
            rows, room = live_rows(progress), max(3, console.height - 11)
            for row in rows if len(rows) <= room else rows[: room - 1]:
                grid.add_row(*(_short(row[name]) for name in names))
            if len(rows) > room:
                grid.add_row(f"{len(rows) - room + 1} more")
            screen.update(Group(grid, "\n".join(verdicts(progress.tally)), bar), refresh=True)

        yield show


def is_terminal(out: TextIO | None = None) -> bool:
    """True when a person watches."""
    return (out or sys.stdout).isatty()
