"""Tables that fit a terminal: nothing is lost, numbers are never broken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from quantum_alloc.adapters.embedded import EmbeddedServer
from quantum_alloc.adapters.keys import LIVE
from quantum_alloc.services import show
from quantum_alloc.services.cli import main
from tests.support.faulting import NAMES, prepared
from tests.support.running import Service, until
from tests.support.worlds import Client

words = st.lists(st.text("abcdefg_,", min_size=1, max_size=10), max_size=12).map(" ".join)
columns = st.lists(st.sampled_from(["state", "why", "reason", "seen in 1 h", "n", "usd"]), min_size=1, unique=True)


@st.composite
def tables(draw: Any) -> list[dict[str, Any]]:
    """Rows with the same columns; n and usd are numbers."""
    names = draw(columns)
    values = {n: st.integers(-(10**6), 10**6) if n in ("n", "usd") else words for n in names}
    return draw(st.lists(st.fixed_dictionaries(values), min_size=1, max_size=6))  # type: ignore[no-any-return]


@example([{"why": "", "reason": ""}, {"why": "a_b " * 12, "reason": "c_d " * 12}], ("why", "reason"))
@given(tables(), st.sampled_from([(), ("why",), ("why", "reason")]))
def test_a_fitted_table_fits_and_loses_nothing(rows: list[dict[str, Any]], below: tuple[str, ...]) -> None:
    """80 columns hold six columns of any text: every word and number is there; a table that fits is left alone."""
    out = show.fitted(rows, width=80, below=below)
    assert max(map(len, out.splitlines())) <= 80
    plain = show.table(rows)
    if max(map(len, plain.splitlines())) <= 80:
        assert out == plain
    found = out.split()
    for row in rows:
        for value in (v for v in row.values() if v != ""):
            assert all(found.count(w) or w in "".join(found) for w in show.cell(value).split()), value
            if isinstance(value, int):
                assert show.cell(value) in found


def test_the_width_of_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """COLUMNS counts; below 60 a table is as wide as 60."""
    for told, width in (("100", 100), ("20", 60), ("", 80)):
        monkeypatch.setenv("COLUMNS", told)
        assert show.width_of_terminal() == width


@pytest.mark.parametrize("mode", ["production", "testnet"])
def test_status_fits_a_terminal(
    mode: str,
    one_server: EmbeddedServer,
    one_client: Client,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A whole system with a service that has something to tell: 80 columns; with --wide a line a row."""
    monkeypatch.setenv("COLUMNS", "80")
    prepared("apply", one_server, one_client, tmp_path / "other", None)
    environ = {"REDIS_URL": one_server.url, "STATE_DIRECTORY": str(tmp_path), "APPLY_MODE": mode}
    one_client.delete(LIVE.portfolio)
    with Service("allocation", one_server.url, P29_INTERVAL_SEC="0.2") as service:
        environ["P29_METRICS_PORT"] = str(service.port)
        until(lambda: one_client.exists(LIVE.stream("allocation.decision")) or service.ready(), 20, "it runs")
        one_client.config_set("requirepass", "x")
        one_client.client_kill_filter(skipme=True, _type="normal")
        try:
            until(lambda: service.health()["last_error"], 20, "it has something to tell")
        finally:
            one_client.config_set("requirepass", "")
        assert main(["status"], environ) == 1
        narrow = capsys.readouterr().out
        assert main(["status", "--wide"], environ) == 1
        wide = capsys.readouterr().out
    assert max(map(len, narrow.splitlines())) <= 80
    assert max(map(len, wide.splitlines())) > 80
    assert narrow.splitlines()[0].split() == ["service", "port", "state", "mode", "cycles", "last_cycle_s", "ms"]
    for name in NAMES:
        assert any(line.startswith(f"{name} ") for line in narrow.splitlines())
    assert "\n  NOAUTH: " in narrow
    assert "NOAUTH: " in next(line for line in wide.splitlines() if line.startswith("allocation "))
    assert "notional_per_trade_exceeded" in narrow
    assert set(narrow.split()) >= {"kill_score_critical_non_close", "BBUSDT", "without", "price"}
