"""How decisions show themselves, and what parameters read back."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import pytest

import quantum_alloc.core as qa
from quantum_alloc.core.paper import Holding
from quantum_alloc.core.params import from_json, to_json
from quantum_alloc.core.table import html_table

T = TypeVar("T")


def a_cycle() -> qa.AllocationCycle:
    """Two symbols, one capped, one skipped."""
    shared = qa.SharedInputs(0.0, qa.fresh(qa.Portfolio(100_000.0, 0.0)), qa.fresh(qa.Regime("TREND", 0.8)))
    book = [qa.SymbolInputs("BTCUSDT", qa.fresh(90_000.0), "<C1>"), qa.SymbolInputs("ETHUSDT", qa.missing())]
    return qa.allocate_portfolio(book, shared)


def test_a_decision_shows_itself() -> None:
    """As a dictionary of plain values, as escaped HTML, as one row a symbol."""
    cycle = a_cycle()
    decision = cycle.decisions[0]
    shown = decision.to_dict()
    assert shown["bound"] == "symbol"
    assert shown["inputs"]["budget_usd"] == {"state": "ok", "value": 90_000.0, "ts": 0.0, "age_s": 0}
    assert "&lt;C1&gt;" in decision._repr_html_()
    assert "<C1>" not in cycle._repr_html_()
    assert cycle.rows()[0]["target_usd"] == 40_000.0
    assert cycle.to_dict()["skipped"][0]["reason"] == "budget_missing"
    missing = {name for name, state in decision.reasons.items() if state == "missing"}
    assert missing == {"cluster", "performance"}
    assert len(decision.reasons) == 6
    assert qa.AllocationCycle(cycle.shared, cycle.params, "", (), (), {})._repr_html_() == html_table([], [])


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_tables_convert(library: str) -> None:
    """To a data frame where the library is installed; else the error names what is missing."""
    convert = getattr(a_cycle(), f"to_{library}")
    if importlib.util.find_spec(library) is None:
        with pytest.raises(ModuleNotFoundError, match=library):
            convert()
    else:
        assert len(convert()) == 1


def test_parameters_read_back() -> None:
    """from_json(to_json(p)) = p; something else is refused; the hash names the content."""
    params = qa.AllocationParams(max_symbol_pct=0.1 + 0.2)
    assert from_json(qa.AllocationParams, to_json(params)) == params
    assert qa.config_hash(params) != qa.config_hash(qa.AllocationParams())
    assert qa.config_hash(qa.AllocationParams()) == qa.config_hash(qa.AllocationParams())
    with pytest.raises(ValueError, match="not the parameters"):
        from_json(qa.AllocationParams, "[]")


@pytest.mark.parametrize(
    "bad", [{"alpha_heat": -1.0}, {"min_budget_usd": 2e4}, {"base_risk_pct": 0.0}, {"stale_data_s": 0}]
)
def test_budget_contradictions_are_refused(bad: dict[str, float]) -> None:
    """Parameters that contradict each other cannot be made."""
    with pytest.raises(ValueError, match=next(iter(bad)).split("_", maxsplit=1)[0]):
        qa.BudgetParams(**bad)  # type: ignore[arg-type]


def test_an_error_in_one_symbol_costs_that_symbol() -> None:
    """A programmer's error in one symbol's step leaves the others' decisions as they were."""

    def attempt(symbol: str, run: Callable[[], T], /) -> T | None:
        return None if symbol == "BTCUSDT" else run()

    shared = qa.SharedInputs(0.0, qa.fresh(qa.Portfolio(100_000.0, 0.0)), qa.missing())
    book = [qa.SymbolInputs(s, qa.fresh(1000.0)) for s in ("BTCUSDT", "ETHUSDT")]
    assert [d.symbol for d in qa.allocate_portfolio(book, shared, attempt=attempt).decisions] == ["ETHUSDT"]
    markets: dict[str, qa.Reading[qa.Market]] = {s: qa.fresh(qa.Market(1.0, None)) for s in ("BTCUSDT", "ETHUSDT")}
    inputs = qa.BudgetInputs(0.0, shared.portfolio, {}, markets, {})
    assert [d.symbol for d in qa.budget_cycle(inputs, attempt=attempt).decisions] == ["ETHUSDT"]


def test_only_an_outdated_reading_keeps_its_value() -> None:
    """A reading that cannot be used for another reason than its age has no value to be used by mistake."""
    with pytest.raises(ValueError, match="malformed"):
        qa.Unusable(qa.Reason.MALFORMED, 1.0)


def test_arrays_without_options_are_the_plain_rule() -> None:
    """Budgets alone: every factor 1, both caps."""
    assert qa.allocate_arrays(np.array([50_000.0, 1.0]), 100_000.0).tolist() == [40_000.0, 1.0]
    pf = np.array([1.0, 0.5])
    assert qa.allocate_arrays(np.array([100.0, 100.0]), 1e5, performance=pf).tolist() == [150.0, 100.0]


def test_a_holding_is_valued_at_the_mark() -> None:
    """qty x (mark - entry)."""
    assert Holding(2.0, 10.0).unrealized_pnl_usd(11.0) == 2.0


def test_notebook_mistakes_do_not_pass_silently() -> None:
    """A symbol given twice is refused; a budget below 0 or NaN is skipped; a halted cycle shows why."""
    shared = qa.SharedInputs(0.0, qa.fresh(qa.Portfolio(100_000.0, 0.0)))
    twice = [qa.SymbolInputs("BTCUSDT", qa.fresh(1.0))] * 2
    with pytest.raises(ValueError, match="twice"):
        qa.allocate_portfolio(twice, shared)
    for bad in (-5.0, float("nan")):
        cycle = qa.allocate_portfolio([qa.SymbolInputs("BTCUSDT", qa.fresh(bad))], shared)
        assert ([s.reason for s in cycle.skipped], cycle.decisions) == (["budget_malformed"], ())
    halted = qa.allocate_portfolio([], qa.SharedInputs(0.0, qa.missing()))
    assert "portfolio_missing" in halted._repr_html_()
