"""What is remembered of headroom: bounded in symbols, labels and lines, and safe to read in another thread."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest

from quantum_alloc.adapters.metrics import Metrics
from quantum_alloc.core.gates import NOT_APPLICABLE, Checked, Outcome
from quantum_alloc.core.governor_params import GATES, GovernorParams
from quantum_alloc.core.limits import US
from quantum_alloc.core.verdicts import Block
from quantum_alloc.services.governor_headroom import LINES_AN_HOUR, Headroom

NAME = "quantum_alloc_limit_used_ratio"
P = GovernorParams()


def seen(symbol: str, now_s: float, **observed: float) -> Block:
    """A verdict as headroom looks at it: shares of a limit of 1, by gate, with _ for the point."""
    by_gate = {gate.replace("_", ".").removeprefix("g"): share for gate, share in observed.items()}
    checks = tuple(
        Checked(Outcome.PASS, "", by_gate[gate.gate], 1.0) if gate.gate in by_gate else NOT_APPLICABLE for gate in GATES
    )
    inputs = SimpleNamespace(now_us=round(now_s * US), usage=None)
    return cast(Block, SimpleNamespace(plan=SimpleNamespace(symbol=symbol), inputs=inputs, checks=checks))


def test_what_is_used_by_all_is_the_same_for_all() -> None:
    """Positions and notional are those of the book: the newest plan of any symbol tells of them, for every symbol."""
    metrics = Metrics("governor")
    one = Headroom(metrics, P, 10)
    one.see(seen("A", 0.0, g4_total=0.9, g0_5=0.9))
    one.see(seen("B", 60.0, g4_total=0.2, g0_5=0.2))
    one.tell(60 * US)
    assert (metrics.value(NAME, "4.total", "A"), metrics.value(NAME, "0.5", "A")) == (0.2, 0.9)


def test_symbols_beyond_the_labels_are_left_out() -> None:
    """So are those beyond what is remembered; the first ones stay."""
    metrics = Metrics("governor", max_symbols=2)
    one = Headroom(metrics, P, 3)
    for symbol in "ABCDE":
        one.see(seen(symbol, 0.0, g0_5=0.5))
    one.tell(0)
    assert {symbol for _, symbol in metrics.values(NAME)} == {"A", "B"}


def test_a_symbol_stays_short_until_it_is_looked_at_again(heard: pytest.LogCaptureFixture) -> None:
    """Verdicts on others end no warning; what nobody knows any more after an hour does, at the next second."""
    one = Headroom(Metrics("governor"), P, 10)
    one.see(seen("A", 0.0, g0_5=0.9))
    one.tell(0)
    for i in range(1, 4):
        one.see(seen("B", 0.1 * i, g0_5=0.1))
        one.tell(round(0.1 * i * US))
    assert len(heard.records) == 1
    one.tell(3_601 * US)
    assert [r.fields["to"] for r in heard.records] == ["short", "ok"]  # type: ignore[attr-defined]


def test_lines_are_bounded_however_many_symbols_come_and_go(heard: pytest.LogCaptureFixture) -> None:
    """A busy governor whose symbols are short in one cycle and well in the next: at most 20 lines in an hour."""
    one = Headroom(Metrics("governor"), P, 10_000)
    for i in range(0, 3_600, 10):
        for symbol in range(3):
            share = 0.9 * (i // 10 % 2)
            one.see(seen(f"S{(i + symbol) % 200}", i, g0_5=share, g5=0.9, g4_total=share))
        one.tell(i * US)
    assert len(heard.records) == LINES_AN_HOUR
    assert "more are not told for an hour" in heard.records[-1].getMessage()
    one.see(seen("NEW", 3_600.0, g0_5=0.9))
    one.tell(3_600 * US)
    assert len(heard.records) > LINES_AN_HOUR


def test_a_page_is_read_while_verdicts_come() -> None:
    """The gauge is read in another thread: what it goes through is replaced and never changed."""
    one = Headroom(Metrics("governor"), P, 10)
    one.see(seen("A", 0.0, g0_5=0.1))
    (read,) = [used.shares for used in one._of.values()]
    one.see(seen("A", 1.0, g0_5=0.2, g4_trade=0.3))
    assert read == {"0.5": (0.1, 0)}
