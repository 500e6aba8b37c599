"""The notebooks run as they stand: on a kernel of this Python, without a network, and with nothing left behind."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from playwright.sync_api import sync_playwright
from traitlets.config import Config

from tests.conftest import absent

NOTEBOOKS = Path(__file__).parents[2] / "docs" / "notebooks"
CORE, RUN = NOTEBOOKS / "core-on-candles.ipynb", NOTEBOOKS / "records-of-a-run.ipynb"
BOTH = pytest.mark.parametrize("path", [CORE, RUN], ids=lambda path: path.stem)
CELL_TIMEOUT_S = 240
SOURCE = re.compile(r"<(?:script|link|img|iframe)[^>]*\b(?:src|href)=", re.IGNORECASE)
FIGURE = 'class="plotly-graph-div"'
PLACE = re.compile(r"(?<![\w.:/])/(?:home|Users|root|tmp|work|usr|opt|var|mnt|private)/|[A-Z]:\\\\", re.ASCII)
FAILURE = "raise RuntimeError('here it stops')"

pytestmark = pytest.mark.timeout(2 * CELL_TIMEOUT_S)


@pytest.fixture
def kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A kernel of this Python under the name that notebooks ask for, and Jupyter's files where the test's are.

    Gives a short directory for the kernel's sockets: the path of a unix socket has room for about a hundred bytes.
    """
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = tmp_path / "jupyter" / "kernels" / "python3" / "kernel.json"
    spec.parent.mkdir(parents=True)
    spec.write_text(json.dumps({"argv": argv, "display_name": "this Python", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
        (tmp_path / name.lower()).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    with tempfile.TemporaryDirectory(prefix="qa-") as sockets:
        yield Path(sockets)


def execute(notebook: Any, sockets: Path, where: Path) -> None:
    """Run every cell; the kernel is asked to end afterwards, as a notebook that is closed asks it."""
    over_sockets = {"transport": "ipc", "ip": str(sockets / "kernel")}
    client = NotebookClient(
        notebook,
        timeout=CELL_TIMEOUT_S,
        kernel_name="python3",
        resources={"metadata": {"path": str(where)}},
        config=Config({"KernelManager": over_sockets}),
    )
    client.execute()


def read(path: Path) -> Any:
    """A notebook as it stands in the repository."""
    return nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call] # nbformat brings no types


def told(notebook: Any) -> dict[str, dict[str, str]]:
    """What each cell showed, by its id: text and html."""
    shown: dict[str, dict[str, str]] = {}
    for cell in notebook.cells:
        of = shown.setdefault(cell.id, {"text": "", "html": ""})
        for output in cell.get("outputs", []):
            assert output.output_type != "error", f"{cell.id}: {output.evalue}"
            assert output.get("name") != "stderr", f"{cell.id}: {output.text}"
            data = output.get("data", {})
            of["text"] += output.get("text", "") or data.get("text/plain", "")
            of["html"] += data.get("text/html", "")
    return shown


def with_asserts(notebook: Any, source: str) -> None:
    """Add a last cell."""
    cell = nbformat.v4.new_code_cell(source, id="asserts")  # type: ignore[no-untyped-call] # nbformat brings no types
    notebook.cells.append(cell)


def answers(address: str) -> bool:
    """Whether a server accepts connections at a unix socket."""
    with socket.socket(socket.AF_UNIX) as line, suppress(OSError):
        line.connect(address.removeprefix("unix://"))
        return True
    return False


def is_running(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits to be reaped does not."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    with suppress(ProcessLookupError):
        os.kill(pid, 0)
        return sys.platform != "linux"
    return False


def ended(pid: int, address: str) -> bool:
    """Whether a server has ended, waiting for it a little."""
    deadline = time.monotonic() + 10.0
    while (is_running(pid) or answers(address)) and time.monotonic() < deadline:
        time.sleep(0.05)
    if not is_running(pid) and not answers(address):
        return True
    os.kill(pid, signal.SIGTERM)  # a test that fails leaves nothing either
    return False


def asks_nobody(notebook: Any) -> int:
    """The number of figures, after looking that no output fetches anything and that plotly's script is there once."""
    outputs = [text["html"] for text in told(notebook).values()]
    scripts = [html for html in outputs if len(html) > 1_000_000]
    assert len(scripts) == 1
    others = [html for html in outputs if html is not scripts[0]]
    assert not [found for html in others for found in SOURCE.findall(html)]
    assert not [html for html in others if "https://" in html or "http://" in html.replace("http://www.w3.org", "")]
    assert scripts[0].startswith("<script>/**")  # inline, from its first byte
    return sum(html.count(FIGURE) for html in outputs)


def drawn(notebook: Any, tmp_path: Path) -> tuple[int, list[str]]:
    """How many figures a browser draws out of the outputs, and what it asked for or complained about meanwhile."""
    program = shutil.which("chromium")
    if program is None:
        absent("chromium")
    page_file = tmp_path / "page.html"
    body = "\n".join(text["html"] for text in told(notebook).values())
    page_file.write_text(f'<!DOCTYPE html><meta charset="utf-8"><body>{body}</body>', encoding="utf-8")
    noise: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        page.on("request", lambda request: noise.append(request.url))
        page.on("pageerror", lambda error: noise.append(str(error)))
        page.goto(page_file.as_uri())
        page.wait_for_function("document.querySelectorAll('.plotly-graph-div').length > 0")
        waits = "[...document.querySelectorAll('.plotly-graph-div')].every(d => d.querySelector('.main-svg'))"
        page.wait_for_function(waits)
        count = page.locator(".plotly-graph-div .main-svg:first-child").count()
        browser.close()
    noise.remove(page_file.as_uri())
    return count, noise


@BOTH
def test_it_is_stored_without_outputs(path: Path) -> None:
    """No output, no count, no path of a machine; format 4.5, an id a cell, the kernel that every Jupyter has."""
    text = path.read_text(encoding="utf-8")
    notebook = json.loads(text)
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert set(notebook["metadata"]) == {"kernelspec", "language_info"}
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    assert all(cell["metadata"] == {} for cell in notebook["cells"])
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids)
    assert PLACE.search(text) is None
    nbformat.validate(notebook)


@BOTH
def test_every_section_says_what_it_shows(path: Path) -> None:
    """Prose and code take turns, so that every result has its words before it."""
    kinds = [cell.cell_type for cell in read(path).cells]
    assert kinds == ["markdown", "code"] * (len(kinds) // 2)


def test_the_core_on_candles(kernels: Path, tmp_path: Path) -> None:
    """It runs through, its tables and figures say what its text says, and no figure asks a host for anything."""
    notebook = read(CORE)
    with_asserts(
        notebook,
        "assert list(called)[0::2] == ['TREND', 'MEAN_REVERSION']\n"
        "assert len(targets) == len(made.decisions) == 20_000\n"
        "assert (verdicts['production'].gate, type(verdicts['dry_run'])) == ('0.5', qa.Permit)\n"
        "assert passes < plan.qty and abs(passes * price_usd - 0.4 * limit_usd) < 1e-6\n"
        "assert held_now == qa.Held()\n"
        "print('all of it holds')",
    )
    execute(notebook, kernels, tmp_path)
    shown = told(notebook)
    assert shown["asserts"]["text"] == "all of it holds\n"
    assert shown["gate-vector"]["html"].count("would_block") == 2
    assert "just passes" in shown["bisection"]["text"]
    assert asks_nobody(notebook) == 5
    assert drawn(notebook, tmp_path) == (5, [])


def test_your_own_candles(kernels: Path, tmp_path: Path) -> None:
    """A file in place of the simulation: two symbols with gaps, in another order, of bars of five minutes."""
    lines = ["timestamp_ms,symbol,open,high,low,close,volume"]
    for i in range(400):
        for k, symbol in enumerate(("ETHUSDT", "BTCUSDT")):
            price = (1_000.0 + 100.0 * k) * (1.0 + 0.002 * ((i * (7 + k)) % 11))
            if (i + k) % 97:
                lines.append(f"{1_767_225_600_000 + 300_000 * i},{symbol},{price},{price},{price},{price},1.0")
    (tmp_path / "own.csv").write_text("\n".join(lines))
    notebook = read(CORE)
    cell = next(cell for cell in notebook.cells if cell.id == "own-csv")
    cell.source = cell.source.replace('CSV = ""', 'CSV = "own.csv"')
    execute(notebook, kernels, tmp_path)
    shown = told(notebook)
    assert "own.csv" in cell.source
    assert re.search(r"BTCUSDT +396", shown["bars-of"]["text"])
    assert asks_nobody(notebook) == 5


def test_the_records_of_a_run(kernels: Path, tmp_path: Path) -> None:
    """It runs through, explains its allocation, block and fill from their records, and ends the server it started."""
    notebook = read(RUN)
    with_asserts(
        notebook,
        "assert made == qa.recompute(cycle, record) and qa.differences(cycle, record) == {}\n"
        "assert (block.gate, block.reason) == ('0.5', 'p29_allocation_cap')\n"
        "assert list(turned.verdict).count('Permit') >= 3\n"
        "assert application.trade.pnl_usd == by_hand\n"
        "assert counted['issued'] == sum(counted.values()) - counted['issued'] > 100\n"
        "import json\n"
        "print(json.dumps({'url': answer['url'], 'pid': answer['pid'], 'directory': str(directory)}))",
    )
    execute(notebook, kernels, tmp_path)
    shown = told(notebook)
    server = json.loads(shown["asserts"]["text"])
    assert ended(server["pid"], server["url"])
    assert not Path(server["directory"]).exists()
    text = shown["one-allocation"]["text"]
    assert re.match(r"BTCUSDT may hold [\d,.]+ USD; made again from its record: no differences\n", text)
    assert all(step in text for step in ("base budget", "regime", "cluster", "drawdown", "performance", "caps"))
    assert "blocked by gate 0.5, p29_allocation_cap" in shown["one-block"]["text"]
    assert shown["end-server"]["text"] == "the server has ended\n"
    assert asks_nobody(notebook) == 4
    assert drawn(notebook, tmp_path) == (4, [])


def test_a_cell_that_fails_leaves_no_server(kernels: Path, tmp_path: Path) -> None:
    """Where a cell fails and the last one is never reached, the end of the kernel ends the server."""
    notebook = read(RUN)
    at = next(i for i, cell in enumerate(notebook.cells) if cell.id == "run-demo")
    del notebook.cells[at + 1 :]
    cell = notebook.cells[at]
    cell.source = cell.source.replace('"300", "--drill"', '"20"') + f"\nprint(servers, answer['url'])\n{FAILURE}"
    with pytest.raises(CellExecutionError, match="here it stops"):
        execute(notebook, kernels, tmp_path)
    stream = next(output for output in cell.outputs if output.output_type == "stream")
    found = re.search(r"\[(\d+)\] (unix://\S+)", stream.text)
    assert found is not None
    assert ended(int(found[1]), found[2])
    assert not Path(found[2].removeprefix("unix://")).parents[1].exists()


def test_a_run_that_was_interrupted_leaves_no_server(kernels: Path, tmp_path: Path) -> None:
    """Where the run never told its process, the directory of its server does."""
    notebook = read(RUN)
    at = next(i for i, cell in enumerate(notebook.cells) if cell.id == "run-demo")
    del notebook.cells[at + 1 :]
    cell = notebook.cells[at]
    cell.source = (
        cell.source.replace('"300", "--drill"', '"20"').replace(
            'servers.append(answer["pid"])', "print(answer['pid'], answer['url'])"
        )
        + f"\n{FAILURE}"
    )
    with pytest.raises(CellExecutionError, match="here it stops"):
        execute(notebook, kernels, tmp_path)
    stream = next(output for output in cell.outputs if output.output_type == "stream")
    found = re.search(r"(\d+) (unix://\S+)", stream.text)
    assert found is not None
    assert ended(int(found[1]), found[2])
    assert not Path(found[2].removeprefix("unix://")).parents[1].exists()
