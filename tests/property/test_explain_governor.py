"""What would turn a verdict: every turn that is told is asked of the rule, and so is the value just short of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

import quantum_alloc.core as qa
from quantum_alloc.core.explain_governor import governor_knobs
from quantum_alloc.core.flips import Flip
from tests.property.test_explain import holds

NOW_US = 1_769_577_495_000_000
PLAN = qa.Plan("p1", "BTCUSDT", "ENTRY", NOW_US / 1e6, qa.Side.BUY, 0.002, 90_000.0, 0.1)
usd = st.floats(0.0, 1e5)
positive = st.floats(1e-6, 1e5)


@st.composite
def verdicts(draw: st.DrawFn) -> tuple[qa.Inputs, qa.GovernorParams]:
    """A plan of any kind at a position of any kind, near its limits more often than not."""
    qty = draw(st.one_of(st.just(0.0), st.floats(-10, 10)))
    plan = qa.Plan(
        "p1",
        "BTCUSDT",
        draw(st.sampled_from(["ENTRY", "FULL_CLOSE_PROPOSED", "PARTIAL_50"])),
        NOW_US / 1e6 - draw(st.sampled_from([0.0, 119.0, 121.0])),
        draw(st.sampled_from(list(qa.Side))),
        draw(positive),
        draw(st.one_of(st.none(), positive)),
        draw(st.floats(0, 1)),
        draw(st.booleans()),
    )
    limit = st.builds(qa.Limit, usd, st.sampled_from(["enforce", "shadow"]))
    inputs = qa.Inputs(
        plan,
        NOW_US,
        draw(st.sampled_from([qa.Kill.OFF, qa.Kill.OFF, qa.Kill.REDUCE_ONLY])),
        position=qa.fresh(qa.Holding(qty, draw(st.one_of(st.none(), positive))), NOW_US / 1e6),
        market_usd=draw(st.one_of(st.just(qa.missing()), positive.map(lambda x: qa.fresh(x, NOW_US / 1e6)))),
        target=draw(limit.map(lambda x: qa.fresh(x, NOW_US / 1e6))),
        budget=draw(limit.map(lambda x: qa.fresh(x, NOW_US / 1e6))),
        usage=qa.Usage(day_usd=draw(usd)),
        totals=qa.fresh(qa.Totals(draw(usd), draw(st.integers(0, 11))), NOW_US / 1e6),
        book=qa.BookUse(draw(usd), draw(st.integers(0, 11)), draw(usd), draw(st.booleans())),
    )
    roomy = {name: draw(st.sampled_from([1e4, 1e12])) for name in (
        "max_notional_per_trade_usd", "max_total_notional_usd", "max_reduce_notional_per_day_usd",
    )}  # fmt: skip
    return inputs, qa.GovernorParams(apply_mode="production", **roomy)  # type: ignore[arg-type]


@given(verdicts())
def test_every_turn_of_a_verdict_turns(case: tuple[qa.Inputs, qa.GovernorParams]) -> None:
    """The value told gives the other verdict, its neighbour does not, and where none is told the end gives the same."""
    inputs, params = case
    record = qa.governor_fields(qa.evaluate(inputs, params), params)
    found = holds(governor_knobs(record))
    for flip in found:
        assert flip.before == ("PERMIT" if record["reason"] == "ok" else "BLOCK")


def turns(inputs: qa.Inputs, params: qa.GovernorParams) -> dict[str, Flip]:
    """The turns of a verdict, by input and side."""
    record = qa.governor_fields(qa.evaluate(inputs, params), params)
    return {f"{f.input} {f.side}": f for f in holds(governor_knobs(record))}


def test_worked_turns() -> None:
    """An open of 180 USD under its caps: each cap's own threshold, to the last float, equal passing."""
    at = NOW_US / 1e6
    inputs = qa.Inputs(
        PLAN,
        NOW_US,
        position=qa.fresh(qa.Holding(0.0), at),
        target=qa.fresh(qa.Limit(1820.93, "enforce"), at),
        totals=qa.fresh(qa.Totals(1000.0, 1), at),
    )
    found = turns(inputs, qa.GovernorParams(apply_mode="production"))
    assert found["kill score up"].at == 0.8
    assert found["target down"].at < 180.0 <= PLAN.qty * 90_000.0 if PLAN.qty else False
    assert found["notional of all positions up"].at == pytest.approx(1820.0)
    assert found["outstanding opens of the symbol up"].at == pytest.approx(1640.93)
    assert found["quantity up"].at == pytest.approx(200 / 90_000)
    assert found["age of portfolio up"].at == 61.0
    assert "age of target up" not in found  # without it the plan would pass as well
    blocked = turns(replace(inputs, plan=replace(PLAN, kill_score=0.9)), qa.GovernorParams(apply_mode="production"))
    assert set(blocked) == {"kill score down"}
    assert blocked["kill score down"].at < 0.8


def test_what_is_not_known_has_no_knob() -> None:
    """Position, portfolio, ledger and book that cannot be read: only the plan's own numbers are left to turn."""
    inputs = qa.Inputs(PLAN, NOW_US, usage=None, book=None)
    record = qa.governor_fields(qa.evaluate(inputs, qa.GovernorParams()), qa.GovernorParams())
    assert {k.input for k in governor_knobs(record)} == {"quantity", "price", "kill score"}
    assert holds(governor_knobs(record)) == ()
