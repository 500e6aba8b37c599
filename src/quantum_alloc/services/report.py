"""``quantum-alloc demo --report FILE.html``: one page on a whole run, for a person to open anywhere.

    what ran       facts and checks as given
    portfolio      equity and drawdown over time, with the zones
    one symbol     target against exposure, factors, efficiency: drawn for the symbol that is chosen
    governor       answers over time and counted, gate by gate; hints
    results        what was done with each permit

The data of the charts stand in the page once, as JSON rounded to six significant digits (the portfolio's USD to
eight); tables show what is on record, digit by digit. Everything that comes from records is text and stays text:
escaped in HTML, in JSON and for plotly, and the page's own policy lets nothing run but its three scripts and lets
nothing be fetched at all.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from importlib.resources import files
from typing import Any

from quantum_alloc.adapters.run_records import Entry, Records
from quantum_alloc.core.factors import AllocationParams
from quantum_alloc.core.gates import Outcome
from quantum_alloc.core.governor_params import GATES
from quantum_alloc.services.logs import escape
from quantum_alloc.services.plot import needs_plotly

FILLS_SHOWN = 200
BINS = 60
"""Bars at most over the run."""
REASONS_DRAWN = 12
"""Reasons with a colour of their own, the most frequent; the rest are drawn as one, and all are in the table."""
NAME_CHARS = 60
WIDTHS_S = (1, 5, 15, 60, 300, 900, 1800, 3600, 7200, 14_400, 28_800, 86_400)
LAST_TS = 253_402_300_800.0
"""Unix seconds from which on there is no date, year 10000."""
FACTORS = ("regime_factor", "cluster_factor", "drawdown_factor", "performance_factor")
SCORES = ("efficiency_score", "efficiency_ewma", "confidence")
OTHER = "all others"
FAILED = "FAILED"
NOTHING = '<p class="none">Nothing on record.</p>'
GATE_NAMES = {gate.gate: gate.name for gate in GATES}
Fill = tuple[float, Entry, float, float]
"""Time, entry, quantity held after it, price."""


def _text(value: str) -> str:
    return html.escape(escape(value.encode("utf-8", "backslashreplace").decode("utf-8")))


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _when(entry: Entry) -> float | None:
    for name in ("ts", "timestamp"):
        ts = _number(entry.get(name))
        if ts is not None and 0.0 <= ts < LAST_TS:
            return ts
    return None


def _moment(ts: float | None) -> str:
    return "" if ts is None else f"{datetime.fromtimestamp(ts, UTC):%Y-%m-%d %H:%M:%S}"


def _short(value: float | None, digits: int = 6) -> float | int | None:
    if value is None:
        return None
    rounded = float(f"{value:.{digits}g}")
    return int(rounded) if rounded.is_integer() else rounded


def _digits(text: str) -> str:
    """A number without exponent, which spreadsheets and people read alike; other text as it is.

    >>> _digits("1.5e-07"), _digits("1820.93"), _digits("=1+1")
    ('0.00000015', '1820.93', '=1+1')
    """
    value = _number(text)
    return f"{Decimal(text):f}" if value and "e" in text.lower() and 1e-30 < abs(value) < 1e30 else text


class _Data:
    """What the charts draw; symbols of one cycle share their list of times."""

    def __init__(self) -> None:
        self._of: dict[tuple[float, ...], int] = {}

    def times(self, times: Iterable[float]) -> int:
        """The place of these times among the lists."""
        return self._of.setdefault(tuple(times), len(self._of))

    def columns(self, entries: Sequence[Entry], names: Sequence[str], digits: int = 6) -> dict[str, Any] | None:
        """Fields of entries as columns; None where no entry has a time."""
        timed = [(ts, e) for e in entries if (ts := _when(e)) is not None]
        if not timed:
            return None
        found = {name: [_short(_number(e.get(name)), digits) for _, e in timed] for name in names}
        return {"t": self.times(ts for ts, _ in timed), **found}

    def lists(self) -> list[list[float | int]]:
        """Each list of times as differences, seconds, to the millisecond."""
        out: list[list[float | int]] = []
        for times in self._of:
            ms = [round(1000 * ts) for ts in times]
            out.append([_short((b - a) / 1000, 15) or 0 for a, b in zip([0, *ms], ms, strict=False)])
        return out

    def span(self) -> tuple[float, float] | None:
        """First and last time of all; None where there is none."""
        found = [ts for times in self._of for ts in times]
        return (min(found), max(found)) if found else None


def _by_symbol(entries: Iterable[Entry]) -> dict[str, list[Entry]]:
    found: dict[str, list[Entry]] = {}
    for entry in entries:
        if entry.get("symbol"):
            found.setdefault(entry["symbol"], []).append(entry)
    return found


def _executed(result: Entry) -> bool:
    return result.get("executed", "").lower() == "true"


def _fills(results: Iterable[Entry]) -> dict[str, list[Fill]]:
    found: dict[str, list[Fill]] = {}
    for e in results:
        ts, held, price = _when(e), _number(e.get("position_after")), _number(e.get("price"))
        if _executed(e) and e.get("symbol") and ts is not None and held is not None and price is not None:
            found.setdefault(e["symbol"], []).append((ts, e, held, price))
    return found


def _symbols(records: Records, data: _Data) -> list[dict[str, Any]]:
    decisions, scores = _by_symbol(records.decisions), _by_symbol(records.efficiencies)
    fills = _fills(records.results)
    out: list[dict[str, Any]] = []
    for symbol in sorted({*decisions, *scores, *fills}):
        of: dict[str, Any] = {
            "name": escape(symbol),
            "targets": data.columns(decisions.get(symbol, ()), ("target_usd", *FACTORS)),
            "efficiency": data.columns(scores.get(symbol, ()), SCORES),
        }
        if found := fills.get(symbol):
            of["fills"] = {
                "t": data.times(ts for ts, _, _, _ in found),
                "exposure_usd": [_short(abs(held) * price) for _, _, held, price in found],
                "side": [escape(e.get("side", ""))[:NAME_CHARS] for _, e, _, _ in found],
                "filled_qty": [_short(_number(e.get("filled_qty"))) for _, e, _, _ in found],
                "price": [_short(price) for _, _, _, price in found],
            }
        out.append(of)
    return out


def _width_s(span_s: float) -> int:
    for width in WIDTHS_S:
        if span_s / width <= BINS - 1:
            return width
    return WIDTHS_S[-1] * math.ceil(span_s / WIDTHS_S[-1] / (BINS - 1))


def _label(entry: Entry) -> str:
    parts = [entry["event"]] if entry["event"] == "PERMIT" else [entry["event"], _gate(entry), entry.get("reason", "")]
    return escape(" ".join(p for p in parts if p))[:NAME_CHARS]


def _verdicts(events: Iterable[Entry], data: _Data) -> dict[str, Any] | None:
    """Answers and would-be blocks by time and reason, in at most ``BINS`` bars."""
    told = [e for e in events if e.get("event") in ("PERMIT", "BLOCK", "WOULD_BLOCK")]
    timed = [(ts, e) for e in told if (ts := _when(e)) is not None]
    if not timed:
        return None
    first, last = min(ts for ts, _ in timed), max(ts for ts, _ in timed)
    data.times((first, last))
    width = _width_s(last - first)
    start = int(first // width)
    size = int(last // width) - start + 1

    def rows(names: tuple[str, ...]) -> list[tuple[str, list[int]]]:
        mine = [(int(ts // width) - start, _label(e)) for ts, e in timed if e["event"] in names]
        order = [name for name, _ in Counter(name for _, name in mine).most_common()]
        order.sort(key=lambda name: name != "PERMIT")
        kept = order[:REASONS_DRAWN]
        counts = {name: [0] * size for name in (*kept, *([OTHER] if len(order) > len(kept) else []))}
        for at, name in mine:
            counts[name if name in counts else OTHER][at] += 1
        return list(counts.items())

    return {
        "at": [_short((start + i + 0.5) * width, 15) for i in range(size)],
        "width_s": width,
        "answers": rows(("PERMIT", "BLOCK")),
        "would": rows(("WOULD_BLOCK",)),
    }


def _zones(cycles: Sequence[Entry]) -> tuple[float, float]:
    """Where MID and HIGH begin: what the run was set to where it is on record, else the defaults."""
    default = AllocationParams()
    low, high = default.dd_low_threshold, default.dd_high_threshold
    try:
        params = json.loads(cycles[-1].get("params", "")) if cycles else {}
        found = float(params.get("dd_low_threshold", low)), float(params.get("dd_high_threshold", high))
    except (ValueError, TypeError, AttributeError):
        return low, high
    return found if 0.0 < found[0] <= found[1] <= 1.0 else (low, high)


def _table(ident: str, caption: str, names: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "") -> str:
    """A table that copies; the first cell of a row names it. A column of numbers stands to the right."""
    if not rows:
        return f"<h3>{_text(caption)}</h3>{NOTHING}"

    told = [[text for row in rows if (text := row[i])] for i in range(len(names))]
    right = [i > 0 and bool(texts) and all(_number(t) is not None for t in texts) for i, texts in enumerate(told)]

    def cell(text: str, number: bool) -> str:
        kind = " class=n" if number else " class=bad" if text == FAILED else ""
        return f"<td{kind}>{_text(_digits(text) if number else text)}</td>"

    head = "".join(
        f'<th scope="col"{" class=n" if r else ""}>{_text(name)}</th>' for name, r in zip(names, right, strict=True)
    )
    body = "\n".join(
        f'<tr><th scope="row">{_text(row[0])}</th>{"".join(map(cell, row[1:], right[1:]))}</tr>' for row in rows
    )
    return (
        f'<div class="bar"><h3 id="{ident}-title">{_text(caption)}</h3><button type="button" class="copy"'
        f' data-table="{ident}" aria-label="Copy the table: {_text(caption)}">Copy</button></div>'
        f'<div class="scroll" tabindex="0" role="region" aria-labelledby="{ident}-title"><table id="{ident}"'
        f' class="{kind}" aria-labelledby="{ident}-title"><thead><tr>{head}</tr></thead><tbody>\n{body}\n'
        "</tbody></table></div>"
    )


def _figure(ident: str, kind: str, caption: str, none: str = "") -> str:
    hidden = f'<p class="none" id="{ident}-none" hidden>Nothing on record for this symbol.</p>' if none else ""
    return (
        f'<figure>{hidden}<div class="chart {kind}" id="{ident}-chart"></div>'
        f"<figcaption>{_text(caption)}</figcaption></figure>"
    )


def _heading(facts: Sequence[tuple[str, str]], checks: Sequence[tuple[str, bool, str]]) -> str:
    told = "".join(f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>" for name, value in facts)
    failed = [name for name, ok, _ in checks if not ok]
    if not checks:
        verdict = NOTHING
    elif failed:
        names = _text(", ".join(failed))
        verdict = f'<p class="verdict bad">✗ {len(failed)} of {len(checks)} checks {FAILED}: {names}.</p>'
    else:
        verdict = f'<p class="verdict">✓ All {len(checks)} checks are ok.</p>'
    rows = [(name, "ok" if ok else FAILED, detail) for name, ok, detail in checks]
    table = _table("checks", "Every check", ("check", "result", "detail"), rows, "long") if rows else ""
    return f"{f'<dl>{told}</dl>' if facts else NOTHING}<h2 id='checked'>Checks</h2>{verdict}{table}"


def _portfolio(entries: Sequence[Entry]) -> str:
    equities = [v for e in entries if (v := _number(e.get("equity_usd"))) is not None]
    drawdowns = [v for e in entries if (v := _number(e.get("drawdown"))) is not None]
    if not equities:
        return NOTHING
    told = f"From {equities[0]:.2f} to {equities[-1]:.2f} USD, lowest {min(equities):.2f}, highest {max(equities):.2f}."
    if drawdowns:
        told += f" Greatest drawdown {max(drawdowns):.2%} of the peak, {drawdowns[-1]:.2%} at the end."
    return f"<p>{told}</p>" + _figure("equity", "equity", "Times are UTC. Zooming one chart zooms all.")


def _symbol(symbols: Sequence[Mapping[str, Any]]) -> str:
    if not symbols:
        return NOTHING
    options = "".join(f"<option>{_text(of['name'])}</option>" for of in symbols)
    parts = (
        ("targets", "Target and exposure", "symbol", any(of["targets"] or "fills" in of for of in symbols),
         "Exposure is |position| × price at each fill; between fills it stands at the price of the last fill."),
        ("factors", "Factors", "small", any(of["targets"] for of in symbols),
         "What the budget is multiplied by: regime, cluster, drawdown, performance."),
        ("efficiency", "Efficiency", "small", any(of["efficiency"] for of in symbols),
         "Score of the cycle, its average, and the confidence in it."),
    )  # fmt: skip
    charts = "".join(
        f'<h3>{title}: <span class="of-symbol">{_text(symbols[0]["name"])}</span></h3>'
        + (_figure(ident, kind, caption, ident) if known else NOTHING)
        for ident, title, kind, known, caption in parts
    )
    picker = f'<div class="pick"><label for="symbol">Symbol</label><select id="symbol">{options}</select></div>'
    return picker + charts


def _standing(records: Records) -> str:
    decided = {symbol: found[-1] for symbol, found in _by_symbol(records.decisions).items()}
    held = {symbol: found[-1] for symbol, found in _fills(records.results).items()}
    rows: list[list[str]] = []
    for symbol in sorted({*decided, *held}):
        d = decided.get(symbol, {})
        row = [symbol, _moment(_when(d)), d.get("target_usd", ""), d.get("drawdown_zone", ""), d.get("regime", "")]
        if symbol in held:
            ts, fill, qty, price = held[symbol]
            exposure, target = abs(qty) * price, _number(d.get("target_usd"))
            beside = "" if target is None else f"{exposure - target:.2f}"
            row += [fill["position_after"], _moment(ts), fill["price"], f"{exposure:.2f}", beside]
        else:
            row += [""] * 5
        rows.append(row)
    names = ("symbol", "decided (UTC)", "target_usd", "zone", "regime", "position", "last fill (UTC)", "fill price",
             "exposure_usd", "exposure - target")  # fmt: skip
    whole = "<p>A number that is cut short on the screen is copied whole.</p>" if rows else ""
    return whole + _table("standing", "Last targets and positions", names, rows)


def _gate(entry: Entry) -> str:
    return entry.get("gate", "")


def _governor(events: Sequence[Entry], verdicts: Mapping[str, Any] | None) -> str:
    if not events:
        return NOTHING
    counted = Counter((e.get("event", ""), _gate(e), e.get("reason", "")) for e in events)
    rows = [
        (event, gate, GATE_NAMES.get(gate, ""), reason, str(n)) for (event, gate, reason), n in counted.most_common()
    ]
    reasons = _table("reasons", "Events by gate and reason", ("event", "gate", "gate's name", "reason", "count"), rows)
    outcomes: Counter[tuple[str, str]] = Counter()
    for e in events:
        try:
            vector = json.loads(e["gates"]) if "gates" in e else []
            outcomes.update((str(row[0]), str(row[1])) for row in vector)
        except (ValueError, TypeError, LookupError, RecursionError):
            continue
    seen = [gate for gate in GATES if any(outcomes[gate.gate, o.value] for o in Outcome)]
    table = [[gate.gate, gate.name, *(str(outcomes[gate.gate, o.value]) for o in Outcome)] for gate in seen]
    gates = (
        _table("gates", "What each gate said", ("gate", "name", *(o.value for o in Outcome)), table) if table else ""
    )
    hinted = Counter((e.get("eff_action", ""), e.get("eff_reason", "")) for e in events if e.get("event") == "PERMIT")
    told = [(action, reason, str(n)) for (action, reason), n in hinted.most_common() if action or reason]
    hints = _table("hints", "Hints of permits", ("eff_action", "eff_reason", "count"), told)
    caption = "Every plan has one answer: a permit, or a block by the first gate that blocks."
    if verdicts and verdicts["would"]:
        caption += " Below, what gates that are not enforced would have blocked."
    chart = _figure("verdicts", "verdicts", caption) if verdicts else NOTHING
    return f"<h3>Answers over the run</h3>{chart}{reasons}{gates}{hints}"


def _results(results: Sequence[Entry]) -> str:
    if not results:
        return NOTHING
    done = [e for e in results if _executed(e)]
    fees, pnl = (math.fsum(_number(e.get(name)) or 0.0 for e in done) for name in ("fee_usd", "pnl_usd"))
    told = (
        f"{len(results)} on record: {len(done)} executed, {len(results) - len(done)} not;"
        f" fees {fees:.2f} USD, realised profit and loss {pnl:.2f} USD."
    )
    names = ("symbol", "decision", "executed", "error", "side", "filled_qty", "price", "fee_usd", "pnl_usd",
             "position_after", "plan_id")  # fmt: skip
    newest = results[: -FILLS_SHOWN - 1 : -1]
    rows = [[_moment(_when(e)), *(e.get(name, "") for name in names)] for e in newest]
    return f"<p>{told}</p>" + _table(
        "fills", f"Fills: the last {len(rows)}, newest first", ("time (UTC)", *names), rows
    )


def _source(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode('utf-8')).digest()).decode('ascii')}"


def page(records: Records, facts: Sequence[tuple[str, str]], checks: Sequence[tuple[str, bool, str]]) -> str:
    """The page: HTML that holds all that it needs.

    Args:
        records: of the run; a stream without entries leaves its section saying so.
        facts: what ran, as name and value.
        checks: name, whether it is ok, and what was seen.

    Raises:
        PlotError: plotly is not installed.
    """
    needs_plotly()
    from plotly.offline import get_plotlyjs  # type: ignore[import-untyped] # plotly brings no types

    data = _Data()
    portfolio = [e for e in records.portfolio if _when(e) is not None and _number(e.get("equity_usd")) is not None]
    equity = data.columns(portfolio, ("equity_usd", "peak_equity_usd", "drawdown"), 8)
    symbols, verdicts = _symbols(records, data), _verdicts(records.events, data)
    told = {
        "times": data.lists(),
        "span": data.span(),
        "zones": _zones(records.cycles),
        "equity": equity,
        "symbols": symbols,
        "verdicts": verdicts,
    }
    drawn = json.dumps(told, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    here = files("quantum_alloc.services")
    style, script = (here.joinpath(f"report.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    plotly = str(get_plotlyjs())
    policy = f"default-src 'none'; script-src '{_source(plotly)}' '{_source(script)}'; style-src 'unsafe-inline'; " + (
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
    sections = (
        ("portfolio", "Portfolio", _portfolio(portfolio)),
        ("one-symbol", "One symbol", _symbol(symbols)),
        ("positions", "Targets and positions", _standing(records)),
        ("governor", "Governor", _governor(records.events, verdicts)),
        ("results", "Results", _results(records.results)),
    )
    links = "".join(f'<li><a href="#{ident}">{title}</a></li>' for ident, title, _ in sections)
    body = "\n".join(
        f'<section aria-labelledby="{ident}"><h2 id="{ident}">{title}</h2>\n{text}\n</section>'
        for ident, title, text in sections
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>quantum-alloc: report of a run</title>
<style>{style}</style>
</head>
<body>
<header><h1>Report of a run</h1>{_heading(facts, checks)}</header>
<nav aria-label="Sections"><ul>{links}</ul></nav>
<main>
<noscript><p>The charts need JavaScript; the tables do not.</p></noscript>
{body}
</main>
<p class="unseen" id="said" role="status"></p>
<script type="application/json" id="data">{drawn}</script>
<script>{plotly}</script>
<script>{script}</script>
</body>
</html>
"""
