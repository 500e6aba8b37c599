"""The page on a run: what it tells, that numbers are those on record, and that text from records stays text."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import json
import re
from html.parser import HTMLParser
from itertools import pairwise
from typing import Any

import pytest

from quantum_alloc.adapters.run_records import Records
from quantum_alloc.services import report
from quantum_alloc.services.plot import PlotError

T0 = 1769577480
HOSTILE = '<script>alert("1")</script><img src=x onerror=alert(2)>'
FACTS = (("bars", "3 of 60 s"), ("seed", "7"), ("decisions sha256", "9f86d0"))
CHECKS = (("replay", True, "6 of 6 made again"), ("caps", False, "C1 above its cap"))
TARGETS = {"BTCUSDT": (1820.93, 1801.123456789, 0.1 + 0.2), "ETHUSDT": (40.0, 41.0, 42.5)}


class Seen(HTMLParser):
    """What a reader of HTML finds: tables as cells, texts of scripts, tags with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.scripts: list[str] = []
        self.words: list[str] = []
        self._rows: list[list[str]] | None = None
        self._inside = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Notes the tag."""
        self.tags.append((tag, dict(attrs)))
        if tag == "table":
            self._rows = self.tables.setdefault(dict(attrs)["id"] or "", [])
        elif tag == "tr" and self._rows is not None:
            self._rows.append([])
        elif tag in ("td", "th") and self._rows is not None:
            self._rows[-1].append("")
        elif tag == "script":
            self.scripts.append("")
        self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        """Leaves it."""
        self._inside = ""
        self._rows = None if tag == "table" else self._rows

    def handle_data(self, data: str) -> None:
        """Notes the text."""
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside in ("td", "th") and self._rows is not None:
            self._rows[-1][-1] += data
        elif self._inside != "style":
            self.words.append(data)

    @property
    def data(self) -> dict[str, Any]:
        """What the charts are drawn from."""
        found: dict[str, Any] = json.loads(self.scripts[0])
        return found

    def rows(self, table: str) -> list[dict[str, str]]:
        """The rows of a table by the names of its columns."""
        head, *rows = self.tables[table]
        return [dict(zip(head, row, strict=True)) for row in rows]


def decision(symbol: str, i: int, target_usd: float) -> dict[str, str]:
    """The fields of a decision that the page reads."""
    factors = {"regime_factor": "1.2", "cluster_factor": "0.87654321", "drawdown_factor": "1.0"}
    return {
        "symbol": symbol, "target_usd": repr(target_usd), "drawdown_zone": "LOW", "regime": "TREND", **factors,
        "performance_factor": "0.75", "timestamp": str(T0 + 60 * i), "ts": str(T0 + 60 * i),
    }  # fmt: skip


def event(name: str, reason: str, at: int = 0, **more: str) -> dict[str, str]:
    """An event of the governor."""
    return {"event": name, "plan_id": "p1", "symbol": "BTCUSDT", "reason": reason, "ts": str(T0 + at), **more}


def fill(symbol: str, i: int, side: str, qty: str, price: str, after: str, **more: str) -> dict[str, str]:
    """What was done with a permit."""
    return {
        "plan_id": f"plan{i}", "symbol": symbol, "decision": "EXECUTE", "executed": "true", "error": "", "side": side,
        "filled_qty": qty, "price": price, "fee_usd": "0.5", "pnl_usd": "", "position_after": after,
        "consumed_us": str((T0 + i) * 10**6), "timestamp": str(T0 + i), "ts": str(T0 + i), **more,
    }  # fmt: skip


def run() -> Records:
    """Three bars of two symbols, every kind of event, and text that would like to be markup."""
    gates = json.dumps([["-1", "pass"], ["0.5", "would_block", "p29_allocation_cap", 9.0, 1.0, -8.0]])
    return Records(
        portfolio=tuple(
            {"equity_usd": e, "peak_equity_usd": "100000.0", "drawdown": d, "ts": str(T0 + 60 * i)}
            for i, (e, d) in enumerate((("100000.0", "0.0"), ("94000.0", "0.06"), ("99000.5", "0.009995")))
        ),
        decisions=tuple(decision(s, i, t) for i in range(3) for s, of in TARGETS.items() for t in of[i : i + 1]),
        efficiencies=tuple(
            {"symbol": "BTCUSDT", "efficiency_score": "0.6", "efficiency_ewma": "0.55", "confidence": "0.3",
             "ts": str(T0 + i)}
            for i in range(3)
        ),
        events=(
            event("WOULD_BLOCK", "p29_allocation_cap", gate="0.5"),
            event("PERMIT", "ok", gates=gates, eff_action="DOWNSIZE", eff_reason="low_eff"),
            event("PERMIT", "ok", 60, gates=gates, eff_action="DOWNSIZE", eff_reason="low_eff"),
            event("BLOCK", "symbol_cooldown", 120, gate="4.cooldown", gates='[["4.cooldown","block"]]'),
            event("BLOCK", HOSTILE, 120, gate="plan", gates="no JSON"),
            event("AUTO_DISARM", "burst_limit_exceeded", 120),
        ),
        results=(
            fill("BTCUSDT", 0, "BUY", "0.0200000000000001", "90000.1", "0.0200000000000001"),
            fill("BTCUSDT", 60, "SELL", "0.05", "90100.0", "-0.03", pnl_usd="-12.25"),
            fill("BTCUSDT", 61, "BUY", "", "", "", executed="false", error=HOSTILE),
            fill("=1+1", 62, "BUY", "1", "1.5e-07", "1"),
        ),
    )  # fmt: skip


@pytest.fixture(scope="module")
def text() -> str:
    """The page of the run."""
    return report.page(run(), FACTS, CHECKS)


@pytest.fixture(scope="module")
def seen(text: str) -> Seen:
    """What is found in it."""
    return Seen(text)


def test_facts_and_checks_are_told(seen: Seen) -> None:
    """What ran stands on the page, and a check that failed is named in words."""
    words = " ".join(seen.words)
    for name, value in FACTS:
        assert name in words
        assert value in words
    assert "✗ 1 of 2 checks FAILED: caps." in words
    assert [(r["check"], r["result"], r["detail"]) for r in seen.rows("checks")] == [
        ("replay", "ok", "6 of 6 made again"),
        ("caps", "FAILED", "C1 above its cap"),
    ]


def test_when_all_checks_are_ok_it_says_so() -> None:
    """Nothing failed: one line says it, and the word FAILED is not there."""
    words = " ".join(Seen(report.page(Records(), (), CHECKS[:1])).words)
    assert "✓ All 1 checks are ok." in words
    assert "FAILED" not in words


def test_targets_and_positions_are_the_last_on_record(seen: Seen) -> None:
    """Targets digit by digit; exposure is |position| x price at the last fill, beside the target."""
    rows = {r["symbol"]: r for r in seen.rows("standing")}
    assert list(rows) == ["=1+1", "BTCUSDT", "ETHUSDT"]
    btc, eth = rows["BTCUSDT"], rows["ETHUSDT"]
    assert (btc["target_usd"], btc["zone"], btc["regime"]) == ("0.30000000000000004", "LOW", "TREND")
    assert (btc["position"], btc["fill price"]) == ("-0.03", "90100.0")
    assert (btc["exposure_usd"], btc["exposure - target"]) == ("2703.00", "2702.70")
    assert (btc["decided (UTC)"], btc["last fill (UTC)"]) == ("2026-01-28 05:20:00", "2026-01-28 05:19:00")
    assert (eth["target_usd"], eth["position"], eth["exposure_usd"]) == ("42.5", "", "")
    assert (rows["=1+1"]["target_usd"], rows["=1+1"]["exposure - target"]) == ("", "")


def test_fills_are_told_digit_by_digit(seen: Seen) -> None:
    """The newest first, every number as on record and without exponent; sums are of what was executed."""
    rows = seen.rows("fills")
    assert [r["plan_id"] for r in rows] == ["plan62", "plan61", "plan60", "plan0"]
    assert rows[0]["price"] == "0.00000015"
    assert rows[1]["executed"] == "false"
    assert (rows[2]["side"], rows[2]["pnl_usd"], rows[2]["position_after"]) == ("SELL", "-12.25", "-0.03")
    assert (rows[3]["filled_qty"], rows[3]["price"]) == ("0.0200000000000001", "90000.1")
    words = " ".join(seen.words)
    assert "4 on record: 3 executed, 1 not; fees 1.50 USD, realised profit and loss -12.25 USD." in words


def test_only_the_last_fills_are_listed() -> None:
    """At most 200, the newest; the sum is of all."""
    many = tuple(fill("A", i, "BUY", "1", "2", str(i)) for i in range(report.FILLS_SHOWN + 5))
    found = Seen(report.page(Records(results=many), (), ()))
    assert [r["plan_id"] for r in found.rows("fills")] == [f"plan{i}" for i in range(204, 4, -1)]
    assert "205 on record: 205 executed, 0 not; fees 102.50 USD" in " ".join(found.words)


def test_events_gates_and_hints_are_counted(seen: Seen) -> None:
    """Each event by gate and reason, what each gate said, and the hints of permits."""
    counts = {(r["event"], r["gate"], r["reason"]): r["count"] for r in seen.rows("reasons")}
    assert counts == {
        ("PERMIT", "", "ok"): "2",
        ("WOULD_BLOCK", "0.5", "p29_allocation_cap"): "1",
        ("BLOCK", "4.cooldown", "symbol_cooldown"): "1",
        ("BLOCK", "plan", HOSTILE): "1",
        ("AUTO_DISARM", "", "burst_limit_exceeded"): "1",
    }
    gates = {r["gate"]: r for r in seen.rows("gates")}
    assert list(gates) == ["-1", "0.5", "4.cooldown"]
    assert (gates["-1"]["pass"], gates["0.5"]["would_block"], gates["4.cooldown"]["block"]) == ("2", "2", "1")
    assert gates["0.5"]["name"] == "allocation target (P2.9)"
    assert seen.rows("hints") == [{"eff_action": "DOWNSIZE", "eff_reason": "low_eff", "count": "2"}]


def test_without_gate_vectors_there_is_no_table_of_gates() -> None:
    """A record that leaves the vectors out is no empty table; its events are counted all the same."""
    found = Seen(report.page(Records(events=(event("BLOCK", "symbol_cooldown", gate="4.cooldown"),)), (), ()))
    assert set(found.tables) == {"reasons"}
    assert not any("What each gate said" in words for words in found.words)


def test_the_charts_have_the_numbers_of_the_record(seen: Seen) -> None:
    """Columns to six significant digits, exposure at each fill, the verdicts by time; what is missing is null."""
    data = seen.data
    assert data["equity"]["equity_usd"] == [100000, 94000, 99000.5]
    assert data["equity"]["drawdown"] == [0, 0.06, 0.009995]
    assert (data["span"], data["zones"]) == ([T0, T0 + 120], [0.05, 0.15])
    names = [of["name"] for of in data["symbols"]]
    assert names == ["=1+1", "BTCUSDT", "ETHUSDT"]
    _, btc, eth = data["symbols"]
    assert data["times"][btc["targets"]["t"]] == [T0, 60, 60]
    assert btc["targets"]["t"] == eth["targets"]["t"]
    assert btc["targets"]["target_usd"] == [1820.93, 1801.12, 0.3]
    assert btc["targets"]["cluster_factor"] == [0.876543] * 3
    assert (btc["fills"]["exposure_usd"], btc["fills"]["side"]) == ([1800, 2703], ["BUY", "SELL"])
    assert btc["efficiency"]["efficiency_ewma"] == [0.55] * 3
    assert (eth["efficiency"], "fills" in eth) == (None, False)
    verdicts = data["verdicts"]
    assert verdicts["width_s"] == 5
    assert {name: sum(counts) for name, counts in verdicts["answers"]} == {
        "PERMIT": 2, "BLOCK 4.cooldown symbol_cooldown": 1, f"BLOCK plan {HOSTILE}"[:60]: 1,
    }  # fmt: skip
    assert verdicts["answers"][0][1][:1] + verdicts["answers"][0][1][12:13] == [1, 1]
    assert [(name, sum(counts)) for name, counts in verdicts["would"]] == [("WOULD_BLOCK 0.5 p29_allocation_cap", 1)]


def test_text_of_records_stays_text(text: str, seen: Seen) -> None:
    """Markup in an error, a reason, a fact or a symbol makes no tag and ends no script."""
    assert any(r["error"] == HOSTILE for r in seen.rows("fills"))
    assert "<script>alert" not in text
    assert "<img" not in text
    assert len(seen.scripts) == 3
    records = Records(decisions=({**decision("A", 0, 1.0), "symbol": HOSTILE},))
    hostile = report.page(records, ((HOSTILE, HOSTILE),), ((HOSTILE, False, HOSTILE),))
    found = Seen(hostile)
    assert "<script>alert" not in hostile
    assert len(found.scripts) == 3
    assert found.data["symbols"][0]["name"] == HOSTILE
    assert "img" not in {tag for tag, _ in found.tags}


def test_text_that_is_no_text_can_be_written() -> None:
    """A file name that is no UTF-8 and control characters leave a page that encodes and shows them escaped."""
    made = report.page(Records(), (("file", "a\udcff.csv"), ("note", "a\x1b[31m\x00b")), ())
    assert "a\\udcff.csv" in made
    assert "\x1b" not in made
    assert "\x00" not in made
    assert made.encode("utf-8")


def test_nothing_is_asked_of_another_host(text: str, seen: Seen) -> None:
    """No tag names a source, links stay on the page, and the page's policy names its own two scripts and no host."""
    for tag, attrs in seen.tags:
        assert not attrs.keys() & {"src", "srcset", "action", "data", "poster", "background"}, tag
        assert (attrs.get("href") or "#").startswith("#"), tag
        assert tag not in ("link", "iframe", "object", "embed", "base")
    (policy,) = (a["content"] or "" for t, a in seen.tags if t == "meta" and a.get("http-equiv"))
    hashes = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in seen.scripts[1:]]
    assert policy.startswith("default-src 'none'; ")
    assert f"script-src 'sha256-{hashes[0]}' 'sha256-{hashes[1]}';" in policy
    assert "http" not in policy
    style = text[text.index("<style>") : text.index("</style>")]
    assert not re.search(r"url\(|@import", style)


def test_the_page_can_be_found_through_without_eyes(seen: Seen) -> None:
    """A language, headings without a gap, every head cell with a scope, every button and choice with a name."""
    tags = seen.tags
    assert ("html", {"lang": "en"}) in tags
    levels = [int(t[1]) for t, _ in tags if re.fullmatch("h[1-6]", t)]
    assert (levels[0], levels.count(1)) == (1, 1)
    assert all(b <= a + 1 for a, b in pairwise(levels))
    assert all(a.get("scope") in ("col", "row") for t, a in tags if t == "th")
    assert all(a.get("aria-label") for t, a in tags if t == "button")
    idents = [a["id"] for _, a in tags if "id" in a]
    assert len(idents) == len(set(idents))
    named = [a[key] for _, a in tags for key in ("aria-labelledby", "for", "data-table") if key in a]
    assert named
    assert set(named) <= set(idents)


def test_without_records_every_section_says_so() -> None:
    """Nothing ran: a page all the same, whose every section says that nothing is on record."""
    found = Seen(report.page(Records(), (), ()))
    assert found.words.count("Nothing on record.") == 7
    assert found.tables == {}
    assert found.data == {
        "times": [], "span": None, "zones": [0.05, 0.15], "equity": None, "symbols": [], "verdicts": None,
    }  # fmt: skip


@pytest.mark.parametrize("stream", ["portfolio", "cycles", "decisions", "efficiencies", "events", "results"])
@pytest.mark.parametrize(
    "entry",
    [
        {},
        {"symbol": "A", "event": "BLOCK", "ts": "nan", "equity_usd": "inf", "executed": "true", "params": "["},
        {"symbol": "A", "event": "PERMIT", "ts": "1e300", "gates": "[1]", "params": "[]", "equity_usd": "1"},
        {"symbol": "A", "event": "PERMIT", "ts": "5", "gates": '[[1],{"a":1},null]', "price": "x", "executed": "TRUE"},
        {"symbol": "A", "ts": "5", "executed": "true", "position_after": "1e999", "price": "1", "fee_usd": "-"},
    ],
    ids=["empty", "no time", "no such time", "other shapes", "no numbers"],
)
def test_entries_that_cannot_be_read_leave_a_page(stream: str, entry: dict[str, str]) -> None:
    """An entry that is not what it should be costs itself, never the page; what is drawn is still JSON."""
    found = Seen(report.page(Records(**{stream: (entry, entry)}), (), ()))
    assert "Report of a run" in found.words
    assert found.data["equity"] is None
    assert found.data["zones"] == [0.05, 0.15]


def test_zones_are_those_of_the_run() -> None:
    """Where the run was set to other thresholds, they are drawn; a contradiction is not."""

    def zones(params: object) -> object:
        return Seen(report.page(Records(cycles=({"params": json.dumps(params)},)), (), ())).data["zones"]

    assert zones({"dd_low_threshold": 0.02, "dd_high_threshold": 0.1}) == [0.02, 0.1]
    assert zones({"dd_low_threshold": 0.5, "dd_high_threshold": 0.1}) == [0.05, 0.15]


def test_many_reasons_are_drawn_as_few() -> None:
    """More reasons than can be told apart: the rarest are one, and no plan is lost; bars are at most 60."""
    events = tuple(event("BLOCK", f"r{i}", 977 * i, gate="plan") for i in range(30) for _ in range(i + 1))
    verdicts = Seen(report.page(Records(events=events), (), ())).data["verdicts"]
    names = [name for name, _ in verdicts["answers"]]
    assert len(names) == report.REASONS_DRAWN + 1
    assert (names[0], names[-1]) == ("BLOCK plan r29", report.OTHER)
    assert sum(sum(counts) for _, counts in verdicts["answers"]) == len(events)
    assert all(len(counts) == len(verdicts["at"]) <= report.BINS for _, counts in verdicts["answers"])


@pytest.mark.parametrize("days", [0.0001, 0.2082, 0.3, 5, 59, 60, 61, 500])
def test_bars_are_at_most_so_many(days: float) -> None:
    """However long the run, and wherever it begins, there are at most 60 bars, and all events are in them."""
    events = tuple(event("PERMIT", "ok", at) for at in (0, int(86_400 * days)))
    verdicts = Seen(report.page(Records(events=events), (), ())).data["verdicts"]
    assert len(verdicts["at"]) <= report.BINS
    assert sum(verdicts["answers"][0][1]) == 2


def test_a_long_run_stays_small() -> None:
    """1,000 bars of 11 symbols are below 8 MB, plotly included."""
    symbols = [f"S{i:02}USDT" for i in range(11)]
    decisions = tuple(decision(s, i, 1000 / (7 + i)) for i in range(1000) for s in symbols)
    scores = tuple(
        {"symbol": s, "efficiency_score": repr(1 / (3 + i)), "efficiency_ewma": repr(2 / (7 + i)),
         "confidence": repr(3 / (11 + i)), "ts": str(T0 + 60 * i)}
        for i in range(1000) for s in symbols
    )  # fmt: skip
    made = report.page(Records(decisions=decisions, efficiencies=scores), (), ())
    assert len(made.encode()) < 8_000_000
    assert len(Seen(made).data["times"]) == 1


def test_without_plotly_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """One sentence with the way out."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(PlotError, match=r"quantum-alloc\[plot\]"):
        report.page(Records(), (), ())
