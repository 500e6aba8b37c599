"""The page on a run in a real browser: it draws, it copies, and it asks no host for anything."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from quantum_alloc.adapters.run_records import Records
from quantum_alloc.services import report
from tests.conftest import absent
from tests.services.test_report import CHECKS, FACTS, HOSTILE, T0, decision, run
from tests.support.running import until

QUIET = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
CHARTS = ("equity", "targets", "factors", "efficiency", "verdicts")
BTC, ETH = 1, 2
"""Places in the list of symbols, behind ``=1+1``."""
WIDTH = "document.querySelector('#equity-chart .main-svg').getBoundingClientRect().width"
NO_CLIPBOARD = "Object.defineProperty(navigator, 'clipboard', {value: undefined});"
REFUSED = "navigator.clipboard.writeText = () => Promise.reject(new Error('no'));"


@dataclass
class Opened:
    """A page, and what the browser said and asked for meanwhile."""

    page: Page
    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def traces(self, chart: str) -> list[dict[str, Any]]:
        """What a chart draws: names and numbers."""
        told = "d => d.data.map(t => ({name: t.name, x: Array.from(t.x), y: Array.from(t.y)}))"
        found: list[dict[str, Any]] = self.page.locator(f"#{chart}-chart").evaluate(told)
        return found

    def range(self, chart: str) -> list[str]:
        """From when to when a chart is shown."""
        found: list[str] = self.page.locator(f"#{chart}-chart").evaluate("d => d._fullLayout.xaxis.range")
        return found


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """The browser of this machine."""
    program = shutil.which("chromium")
    if program is None:
        absent("chromium")
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=program, args=list(QUIET))
        yield found
        found.close()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a run, as a file."""
    path = tmp_path_factory.mktemp("report") / "run.html"
    path.write_text(report.page(run(), FACTS, CHECKS), encoding="utf-8")
    return path


def opened(browser: Browser, file: Path, width: int = 1280, before: str = "") -> Opened:
    """The page, opened with every request but for itself refused and noted."""
    page = browser.new_page(viewport={"width": width, "height": 900})
    found = Opened(page)

    def decide(route: Any) -> None:
        if route.request.url == file.as_uri():
            route.continue_()
        else:
            route.abort()

    page.on("console", lambda message: found.said.append(message.text))
    page.on("pageerror", lambda error: found.said.append(str(error)))
    page.on("request", lambda request: found.asked.append(request.url))
    page.route("**/*", decide)
    if before:
        page.add_init_script(before)
    page.goto(file.as_uri())
    return found


@pytest.fixture
def seen(browser: Browser, file: Path) -> Iterator[Opened]:
    """The page at 1280 px; at the end nothing was said on the console and nothing asked for but the file."""
    found = opened(browser, file)
    yield found
    found.page.close()
    assert found.said == []
    assert [url for url in found.asked if not url.startswith(("data:", "blob:"))] == [file.as_uri()]


def test_the_charts_are_drawn(seen: Opened) -> None:
    """Each chart stands there as a picture with its traces, from the first symbol on."""
    for chart in CHARTS:
        assert seen.page.locator(f"#{chart}-chart svg.main-svg").count() > 0, chart
    assert [t["name"] for t in seen.traces("equity")] == ["equity", "peak", "drawdown"]
    assert seen.traces("equity")[0]["y"] == [100000, 94000, 99000.5]
    assert seen.traces("equity")[0]["x"] == [1000 * (T0 + 60 * i) for i in range(3)]
    assert seen.page.locator("#equity-chart .scatterlayer .trace").count() == 3
    bars = "paths => paths.filter(p => p.getBBox().height > 0).length"
    assert seen.page.locator("#verdicts-chart .barlayer .point path").evaluate_all(bars) == 5
    assert [t["name"] for t in seen.traces("targets")] == ["exposure", "fill (▲ BUY, ▼ SELL)"]
    assert seen.page.locator("#factors-none").is_visible()
    buttons = seen.page.locator("#equity-chart .modebar-btn").evaluate_all("of => of.map(b => b.dataset.title)")
    assert [
        title for title in buttons if "PNG" not in title and not title.startswith(("Zoom", "Pan", "Auto", "Reset"))
    ] == []
    zones = seen.page.locator("#equity-chart .annotation-text").all_text_contents()
    assert zones == ["LOW: below 5%", "MID: below 15%", "HIGH: 15% and more"]


def test_another_symbol_is_drawn_when_it_is_chosen(seen: Opened) -> None:
    """Headings and numbers follow the choice, there and back; what a symbol has no record of is said."""
    page = seen.page
    page.get_by_label("Symbol", exact=True).select_option(index=BTC)
    assert page.locator(".of-symbol").all_text_contents() == ["BTCUSDT"] * 3
    target, exposure, fills = seen.traces("targets")
    assert (target["name"], target["y"]) == ("target", [1820.93, 1801.12, 0.3])
    assert [v for i, v in enumerate(exposure["y"]) if v not in exposure["y"][:i]] == [1800, 2703]
    assert exposure["x"][-1] == 1000 * (T0 + 120)
    assert fills["y"] == [1800, 2703]
    assert [t["y"][0] for t in seen.traces("factors")] == [1.2, 0.876543, 1, 0.75]
    assert [t["y"][0] for t in seen.traces("efficiency")] == [0.6, 0.55, 0.3]
    assert page.locator("#targets-chart .scatterlayer .trace").count() == 3
    assert not page.locator("#efficiency-none").is_visible()
    page.get_by_label("Symbol", exact=True).select_option(index=ETH)
    assert page.locator(".of-symbol").all_text_contents() == ["ETHUSDT"] * 3
    assert [(t["name"], t["y"]) for t in seen.traces("targets")] == [("target", [40, 41, 42.5])]
    assert seen.traces("efficiency") == []
    assert page.locator("#efficiency-none").is_visible()


def test_zooming_one_chart_zooms_all(seen: Opened) -> None:
    """A range chosen in one chart is shown in every chart."""
    before = seen.range("equity")
    panel = seen.page.locator("#targets-chart .nsewdrag")
    panel.scroll_into_view_if_needed()
    box = panel.bounding_box()
    assert box is not None
    seen.page.mouse.move(box["x"] + box["width"] / 4, box["y"] + 40)
    seen.page.mouse.down()
    seen.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 42, steps=5)
    seen.page.mouse.up()
    until(lambda: seen.range("verdicts")[0] != before[0], 5, "the other charts are zoomed")
    ranges = [seen.range(chart) for chart in CHARTS]
    assert ranges == [ranges[0]] * len(CHARTS)
    assert before[0] < ranges[0][0] < ranges[0][1] < before[1]


@pytest.mark.parametrize("before", ["", NO_CLIPBOARD, REFUSED], ids=["clipboard", "no clipboard", "refused"])
def test_tables_are_copied_with_tabs(browser: Browser, file: Path, before: str) -> None:
    """What is pasted is the table, a tab between cells, a line a row; a formula is disarmed, a number is not; with the
    clipboard of the page, and where there is none or it is refused."""
    found = opened(browser, file, before=before)
    page = found.page
    if not before:
        page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.evaluate("document.body.append(Object.assign(document.createElement('textarea'), {id: 'paste'}))")
    page.locator("#paste").fill("what was copied before")
    page.locator("#paste").select_text()
    page.keyboard.press("Control+X")
    button = page.locator("button[data-table=standing]")
    button.click()
    until(lambda: button.text_content() == "Copied", 5, "the button says so")
    assert page.get_by_role("status").text_content() == "3 rows copied"
    page.locator("#paste").focus()
    page.keyboard.press("Control+V")
    until(lambda: page.locator("#paste").input_value() != "", 5, "the text is pasted")
    head, *rows = [line.split("\t") for line in page.locator("#paste").input_value().splitlines()]
    assert head[:3] == ["symbol", "decided (UTC)", "target_usd"]
    assert [row[0] for row in rows] == ["'=1+1", "BTCUSDT", "ETHUSDT"]
    btc = dict(zip(head, rows[1], strict=True))
    assert (btc["target_usd"], btc["position"]) == ("0.30000000000000004", "-0.03")
    assert found.said == []
    page.close()


def test_a_narrow_window_is_enough(browser: Browser, file: Path) -> None:
    """At 800 px nothing but the wide tables is wider than the window, and charts follow the window's width."""
    found = opened(browser, file, width=800)
    page = found.page
    assert page.evaluate("[document.documentElement.scrollWidth, document.body.scrollWidth]") == [800, 800]
    for chart in CHARTS:
        width = page.locator(f"#{chart}-chart .main-svg").first.bounding_box()
        assert width is not None
        assert 700 < width["width"] <= 800, chart
    wide = page.locator("#fills").evaluate("t => [t.scrollWidth, t.parentElement.clientWidth]")
    assert wide[0] > wide[1]
    page.set_viewport_size({"width": 1100, "height": 900})
    until(lambda: page.evaluate(WIDTH) > 1000, 5, "the chart is as wide as the window")
    page.close()


def test_printing_fits_the_paper_and_leaves_the_screen_as_it_was(seen: Opened, tmp_path: Path) -> None:
    """Charts are as wide as a sheet of paper while it prints, and as the window afterwards."""
    page = seen.page
    page.evaluate(f"window.addEventListener('beforeprint', () => {{ window.printed = {WIDTH}; }})")
    before = page.evaluate(WIDTH)
    page.pdf(path=tmp_path / "run.pdf", format="A4")
    assert page.evaluate("window.printed") == 680
    until(lambda: page.evaluate(WIDTH) == before, 5, "the chart is as it was")


def test_names_from_records_are_drawn_as_text(browser: Browser, tmp_path: Path) -> None:
    """Markup in a symbol, a side or a reason is shown letter by letter in headings and charts, and makes no link."""
    link = '<a href="https://example.org/">x</a>'
    records = Records(
        decisions=({**decision("A", 0, 1.0), "symbol": HOSTILE},),
        events=({"event": "BLOCK", "reason": link, "gate": "plan", "ts": str(T0)},),
        results=run().results,
    )
    path = tmp_path / "hostile.html"
    path.write_text(report.page(records, (), ()), encoding="utf-8")
    found = opened(browser, path)
    assert HOSTILE in found.page.locator("#symbol option").all_text_contents()
    found.page.get_by_label("Symbol", exact=True).select_option(label=HOSTILE)
    assert found.page.locator(".of-symbol").first.text_content() == HOSTILE
    assert found.page.locator("#verdicts-chart .legendtext").all_text_contents() == [f"BLOCK plan {link}"[:60]]
    assert found.page.locator("svg a").count() == 0
    assert found.said == []
    assert found.asked == [path.as_uri()]
    found.page.close()


def test_the_page_lets_nothing_be_fetched(browser: Browser, file: Path) -> None:
    """Whatever stood on the page, its policy keeps the browser from asking: no picture, no script, no call."""
    found = opened(browser, file)
    refused = found.page.evaluate(
        """async () => {
            const refused = [];
            const note = (e) => refused.push(`${e.disposition} ${e.effectiveDirective}`);
            document.addEventListener("securitypolicyviolation", note);
            document.body.append(Object.assign(new Image(), { src: "https://example.org/a.png" }));
            document.body.append(Object.assign(document.createElement("script"), { textContent: "window.ran = 1" }));
            await fetch("https://example.org/").catch(() => 0);
            await new Promise((done) => setTimeout(done, 100));
            return [refused.sort(), window.ran];
        }"""
    )
    assert refused == [["enforce connect-src", "enforce img-src", "enforce script-src-elem"], None]
    found.page.close()


def test_without_records_nothing_fails(browser: Browser, tmp_path: Path) -> None:
    """The page of an empty run opens without a word on the console."""
    path = tmp_path / "empty.html"
    path.write_text(report.page(Records(), (), ()), encoding="utf-8")
    found = opened(browser, path)
    assert found.page.locator(".none").all_text_contents() == ["Nothing on record."] * 7
    assert found.said == []
    found.page.close()
