"""The governor's worked cases: the downsize hint, and batches with their exact answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest

import quantum_alloc.core as qa
from quantum_alloc.adapters.keys import LIVE
from quantum_alloc.core.governor import known_position, released
from quantum_alloc.core.limits import US
from quantum_alloc.core.plan import FULL_CLOSE
from quantum_alloc.core.record_flow import params_of, record_of
from tests.core.test_examples import cases

T = TypeVar("T")
NOW_US = 1_769_577_495_000_000
NOW = NOW_US / US
S, OTHER = "BTCUSDT", "ETHUSDT"
DOWNSIZE = cases("downsize")
PARAMS = qa.GovernorParams()
PRODUCTION = qa.GovernorParams(apply_mode="production")

# --- the hint --------------------------------------------------------------------------------------------------------


def read(score: float, confidence: float, age_s: int) -> qa.Reading[qa.Efficiency]:
    """An efficiency of an age."""
    return qa.grade(qa.Efficiency(score, confidence), NOW - age_s, NOW, PARAMS.eff_stale_s)


@pytest.mark.parametrize("case", DOWNSIZE, ids=str)
def test_downsize_cases_hold_exactly(case: dict[str, Any], shared: Path) -> None:
    """Every worked case, to the last bit; the permit carries it, and is the permit that there would be without."""
    efficiency: qa.Reading[qa.Efficiency] = qa.missing()
    if case["score"] is not None:
        efficiency = read(case["score"], case["confidence"], case["age_s"])
    hint = qa.downsize(efficiency)
    found = {
        "action": hint.action.value,
        "factor": hint.factor,
        "extra_cooldown_sec": hint.extra_cooldown_sec,
        "reason": hint.reason.value,
    }
    assert found == case["expect"]
    made = decide(an_open(), world(efficiency=efficiency))
    assert isinstance(made, qa.Permit)
    assert made.hint == hint
    plain = decide(an_open(), world())
    assert isinstance(plain, qa.Permit)
    assert replace(made, hint=plain.hint, inputs=plain.inputs) == plain


def test_arrays_go_through_the_same_hint(shared: Path) -> None:
    """(25) The array forms are the scalar loop, bit for bit; halves go to the even second in both."""
    scores = [c["score"] for c in DOWNSIZE if c["score"] is not None] + [i / 800 for i in range(801)]
    array = np.array(scores)
    assert qa.downsize_factor(array).tolist() == [qa.downsize_factor(s) for s in scores]
    assert qa.extra_cooldown_s(array).tolist() == [qa.extra_cooldown_s(s) for s in scores]


def test_the_hint_says_why_there_is_none() -> None:
    """The order of reasons; NONE is factor 1.0 and no cooldown; half to even."""
    assert qa.extra_cooldown_s(0.4375) == 68.0  # 67.5
    assert qa.extra_cooldown_s(0.4125) == 70.0  # 70.5
    table: tuple[tuple[qa.Reading[qa.Efficiency], str], ...] = (
        (qa.missing(), "missing_eff"),
        (qa.Unusable(qa.Reason.MALFORMED), "redis_error"),
        (qa.Unusable(qa.Reason.STORE), "redis_error"),
        (qa.Unusable(qa.Reason.FUTURE), "stale_eff"),
        (read(0.0, 0.1, 601), "stale_eff"),
        (read(0.0, 0.649, 0), "low_conf"),
        (read(0.45, 0.65, 0), "ok"),
    )
    for reading, reason in table:
        assert qa.downsize(reading) == qa.Hint(qa.HintAction.NONE, 1.0, 0, qa.ProposalReason(reason))


# --- batches ---------------------------------------------------------------------------------------------------------


def an_open(plan_id: str = "p1", symbol: str = S, **more: Any) -> qa.Plan:
    """A sound open of 100 USD."""
    told: dict[str, Any] = {"side": qa.Side.BUY, "qty": 1.0, "price_usd": 100.0, "kill_score": 0.1, **more}
    return qa.Plan(plan_id, symbol, told.pop("action", "ENTRY"), told.pop("ts", NOW), **told)


def a_close(plan_id: str, symbol: str = S, action: str = FULL_CLOSE) -> qa.Plan:
    """A close without any number."""
    return qa.Plan(plan_id, symbol, action, NOW)


def world(ledger: qa.Ledger | None = qa.Ledger(), qty: float = 0.0, **more: Any) -> qa.Snapshot:  # noqa: B008 - frozen
    """A snapshot in which both symbols look the same; names of the snapshot's own go to it."""
    own = {n: more.pop(n) for n in list(more) if n in qa.Snapshot.__dataclass_fields__}
    of = qa.SymbolSnapshot(ledger, qa.fresh(qa.Holding(qty, 100.0), NOW), **more)
    told: dict[str, Any] = {"totals": qa.fresh(qa.Totals(0.0, 0), NOW), "symbols": {S: of, OTHER: of}, **own}
    return qa.Snapshot(NOW_US, **told)


def decide(plan: qa.Plan, snapshot: qa.Snapshot, params: qa.GovernorParams = PRODUCTION) -> Any:
    """The answer to one plan."""
    return qa.decide(plan, snapshot, params)


def words(made: tuple[Any, ...]) -> list[str]:
    """Each answer in a word or two."""
    out = []
    for one in made:
        name = type(one).__name__.lower()
        out.append(name if isinstance(one, (qa.Permit, qa.Undecided)) else f"{name} {one.reason}")
    return out


def ledger(*ago_s: float, movement: qa.Movement = qa.Movement.OPEN) -> qa.Ledger:
    """Permits some seconds ago."""
    issued = {f"old{i}": qa.Issued(NOW_US - round(a * US), movement, 100.0) for i, a in enumerate(ago_s)}
    return qa.Ledger(str(len(issued)), issued)


def test_a_permit_counts_for_the_plans_after_it() -> None:
    """It enters ledger and book at once: the second open of the symbol meets its cooldown, another symbol does not."""
    made = qa.decide_batch([an_open("p1"), an_open("p2"), an_open("p3", OTHER)], world(), PRODUCTION)
    assert words(made) == ["permit", "block symbol_cooldown", "permit"]
    last = made[2]
    assert isinstance(last, qa.Permit)
    assert last.inputs.book == qa.BookUse(100.0, 1, 0.0, False)


def test_the_total_counts_what_the_batch_permitted() -> None:
    """Twenty opens of 100 USD in twenty symbols fit below 2000, the next one does not."""
    names = [f"S{i:02}USDT" for i in range(21)]
    symbols = {s: qa.SymbolSnapshot(position=qa.fresh(qa.Holding(0.0, 100.0), NOW)) for s in names}
    params = qa.GovernorParams(max_open_positions=30)
    made = qa.decide_batch([an_open(s, s) for s in names], world(symbols=symbols), params)
    assert words(made) == ["permit"] * 20 + ["block total_notional_exceeded"]
    few = qa.decide_batch([an_open(s, s) for s in names], world(symbols=symbols), PARAMS)
    assert words(few) == ["permit"] * 10 + ["block max_positions_reached"] * 11


def test_a_burst_of_opens_leaves_only_exits_to_those_after_it() -> None:
    """The kill switch stands at REDUCE_ONLY for the rest of the batch, once; a burst of closes only blocks."""
    snapshot = world(ledger(70.0, 80.0), qty=2.0)
    plans = [an_open("p1"), an_open("p2"), an_open("p3", OTHER), a_close("p4"), a_close("p5", OTHER)]
    made = qa.decide_batch(plans, snapshot, PRODUCTION)
    assert words(made) == [
        "block burst_limit_exceeded", "block reduce_only", "block reduce_only", "permit", "permit",
    ]  # fmt: skip
    assert [getattr(m, "disarms", None) for m in made] == [True, False, False, None, None]
    calm = qa.decide_batch(plans, snapshot, replace(PRODUCTION, disarm_on_burst=False))
    assert words(calm)[:3] == ["block burst_limit_exceeded"] * 3
    assert not any(m.disarms for m in calm if isinstance(m, qa.Block))
    closes = world(ledger(*[float(i) for i in range(10)], movement=qa.Movement.CLOSE), qty=2.0)
    made = qa.decide_batch([a_close("p1"), an_open("p2", symbol="ADAUSDT")], closes, PRODUCTION)
    assert words(made) == ["block burst_limit_exceeded", "permit"]
    assert isinstance(made[0], qa.Block)
    assert not made[0].disarms


def test_closes_of_the_batch_count_for_the_day() -> None:
    """A close's notional is what the next one finds counted; a full close passes and is counted too."""
    cut = [a_close(f"p{i}", action="PARTIAL_50") for i in range(3)]
    made = qa.decide_batch([*cut, a_close("p4"), a_close("p5", action="PARTIAL_25")], world(qty=50.0), PRODUCTION)
    assert words(made) == ["permit", "permit", "block daily_limit_exceeded", "permit", "block daily_limit_exceeded"]
    last = made[4]
    assert isinstance(last, qa.Block)
    assert (last.observed, last.limit) == (10_000.0 + 1250.0, 5000.0)


def test_the_first_answer_is_final() -> None:
    """A second copy gets it, permit or block; other content is a conflict; what cannot be read is one too."""
    again = an_open("p1", kill_score=0.7, price_usd=50.0)  # the same symbol, action, side, quantity and reduceOnly
    made = qa.decide_batch([an_open("p1"), again, an_open("p1", qty=2.0)], world(), PRODUCTION)
    assert words(made) == ["permit", "replay ok", "conflict other_content"]
    first = made[0]
    assert isinstance(first, qa.Permit)
    assert isinstance(made[1], qa.Replay)
    assert made[1].answer == first.answer == qa.Answer("PERMIT", "ok", first.plan.content, first.decision_id)
    stood = world(answers={"p1": qa.Answer("BLOCK", "reduce_only", an_open().content, "d1"), "p2": qa.Answer("")})
    later = [an_open("p1"), an_open("p1", side=qa.Side.SELL), an_open("p2"), an_open("p3")]
    assert words(qa.decide_batch(later, stood, PRODUCTION)) == [
        "replay reduce_only", "conflict other_content", "conflict answer_unreadable", "permit",
    ]  # fmt: skip
    taken = world(taken=frozenset({"p1"}), answers={"p1": first.answer})
    assert words(qa.decide_batch([an_open("p1")], taken, PRODUCTION)) == ["conflict permit_exists"]


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"ts": NOW - 1.0}, True),
        ({"price_usd": 99.0}, True),
        ({"kill_score": 0.2}, True),
        ({"symbol": OTHER}, False),
        ({"action": "SCALE_IN"}, False),
        ({"side": qa.Side.SELL}, False),
        ({"side": None}, False),
        ({"qty": 1.5}, False),
        ({"qty": None}, False),
        ({"reduce_only": True}, False),
    ],
    ids=str,
)
def test_what_makes_a_plan_the_same_plan(change: dict[str, Any], same: bool) -> None:
    """Symbol, action, side, quantity, reduceOnly, and nothing else."""
    assert (an_open(**change).content == an_open().content) is same


def test_a_block_uses_nothing_up() -> None:
    """(29) After a hundred blocks the next plan gets what it would have got."""
    blocked = [an_open(f"p{i}", kill_score=0.9) for i in range(100)]
    made = qa.decide_batch([*blocked, an_open("last")], world(), PRODUCTION)
    assert words(made) == ["block kill_score_critical_non_close"] * 100 + ["permit"]
    assert made[-1] == decide(an_open("last"), world())


def test_a_step_that_fails_holds_back_its_symbol_and_its_id() -> None:
    """Nothing is decided after it that could hang on it; the rest is."""

    def attempt(symbol: str, run: Callable[[], T], /) -> T | None:
        return None if symbol == S else run()

    plans = [an_open("p1"), an_open("p2"), an_open("p1", OTHER), an_open("p3", OTHER)]
    made = qa.decide_batch(plans, world(), PRODUCTION, attempt)
    assert words(made) == ["undecided", "undecided", "undecided", "permit"]
    assert [m.failed for m in made if isinstance(m, qa.Undecided)] == [True, False, False]


def test_a_position_that_is_not_there_is_flat_while_the_portfolio_is_fresh() -> None:
    """Else it is unknown, as is one that cannot be read or is too old."""
    totals: qa.Reading[qa.Totals] = qa.fresh(qa.Totals(5.0, 1), NOW)
    none: qa.Reading[qa.Holding] = qa.missing()
    assert known_position(none, totals) == qa.Fresh(qa.Holding(0.0), NOW, 0)
    stale: qa.Reading[qa.Totals] = qa.Unusable(qa.Reason.STALE, qa.Totals(5.0, 1), NOW - 61, 61)
    assert known_position(none, stale) is known_position(none, qa.missing()) is none
    for reason in (qa.Reason.MALFORMED, qa.Reason.STORE, qa.Reason.STALE, qa.Reason.FUTURE):
        unknown: qa.Reading[qa.Holding] = qa.Unusable(reason)
        assert known_position(unknown, totals) is unknown
    empty = qa.Snapshot(NOW_US, totals=totals)
    assert words((decide(an_open(), empty), decide(a_close("p2"), empty))) == ["permit", "block nothing_to_close"]
    blind = qa.Snapshot(NOW_US)
    assert words((decide(an_open(), blind), decide(a_close("p2"), blind))) == ["block position_unknown"] * 2


def test_without_ledger_or_book_there_is_no_open() -> None:
    """An open needs both, a close its ledger."""
    no_ledger, no_book = world(None, qty=2.0), world(qty=2.0, book=None)
    plans = [an_open("p1"), a_close("p2")]
    assert words(qa.decide_batch(plans, no_ledger, PRODUCTION)) == ["block state_unreadable"] * 2
    assert words(qa.decide_batch(plans, no_book, PRODUCTION)) == ["block state_unreadable", "permit"]


def test_the_book_of_the_snapshot_counts_what_is_not_released() -> None:
    """What has expired unconsumed is left out, and named for the commit; a symbol that is held takes no slot."""
    old = qa.Outstanding("old", OTHER, 70.0, NOW_US - 60 * US, NOW_US)
    young = qa.Outstanding("young", OTHER, 30.0, NOW_US - 59 * US, NOW_US + US)
    elsewhere = qa.Outstanding("elsewhere", "ADAUSDT", 5.0, NOW_US, NOW_US + US)
    snapshot = world(book=(old, young, elsewhere), qty=2.0)
    assert released(snapshot) == ("old",)
    assert released(world(book=None)) == ()
    made = decide(an_open(), snapshot)
    assert made.inputs.book == qa.BookUse(35.0, 1, 0.0, True)
    assert decide(an_open(symbol=OTHER), snapshot).inputs.book == qa.BookUse(35.0, 1, 30.0, True)


def test_a_decision_of_production_enforces_its_target_in_a_batch() -> None:
    """A first open fits below the target; the second would jump over it, with the first outstanding."""
    params = replace(PRODUCTION, symbol_cooldown_s=0)
    target = qa.fresh(qa.Limit(150.0, "enforce"), NOW)
    made = qa.decide_batch([an_open("p1"), an_open("p2")], world(target=target), params)
    assert words(made) == ["permit", "block p29_allocation_cap"]
    last = made[1]
    assert isinstance(last, qa.Block)
    assert (last.observed, last.limit, last.gate) == (200.0, 150.0, "0.5")


def test_decision_ids_are_made_of_content() -> None:
    """(40) The same answer has the same id; another clock, plan, content or answer another one."""
    first = decide(an_open(), world())
    assert decide(an_open(), world()) == first
    ids = {
        first.decision_id,
        decide(an_open(), replace(world(), now_us=NOW_US + 1)).decision_id,
        decide(an_open("p2"), world()).decision_id,
        decide(an_open(qty=1.5), world()).decision_id,
        decide(an_open(), world(kill=qa.Kill.HALT)).decision_id,
        decide(an_open(), world(hold="recovery_hold")).decision_id,
    }
    assert len(ids) == 6
    assert all(len(i) == 16 for i in ids)


# --- records ---------------------------------------------------------------------------------------------------------


def through_text(record: Mapping[str, str]) -> dict[str, str]:
    """As bytes and back."""
    return {n: v.encode().decode() for n, v in record.items()}


def test_a_record_holds_the_whole_vector() -> None:
    """A row a gate in the order of the verdict; what is empty at the end is left out."""
    made = decide(an_open(), world(target=qa.fresh(qa.Limit(50.0, "enforce"), NOW)))
    record = through_text(qa.governor_fields(made, PRODUCTION))
    rows = json.loads(record["gates"])
    assert [r[0] for r in rows] == [g.gate for g in qa.GATES]
    assert rows[0] == ["-1", "pass"]
    assert rows[3] == ["0", "fail_open", "missing"]
    assert rows[4] == ["0.5", "block", "p29_allocation_cap", 100.0, 50.0, -50.0]
    assert rows[-1] == ["5", "not_applicable"]
    assert (record["reason"], record["gate"], record["observed"], record["limit"]) == (
        "p29_allocation_cap", "0.5", "100.0", "50.0",
    )  # fmt: skip
    assert (record["retry_after_s"], record["apply_mode"], record["rules"]) == ("", "production", "p32_v1")
    assert qa.recompute(record) == made


def test_a_record_of_a_permit() -> None:
    """What is permitted, and the hint."""
    record = qa.governor_fields(decide(an_open(), world(efficiency=read(0.2, 0.9, 1))), PRODUCTION)
    told = ("reason", "movement", "side", "computed_qty", "computed_notional", "eff_action", "eff_reason")
    assert [record[n] for n in told] == ["ok", "open", "BUY", "1.0", "100.0", "DOWNSIZE", "ok"]
    assert float(record["eff_factor"]) == 0.2 / 0.45
    assert (record["plan_id"], record["symbol"], record["action"]) == ("p1", S, "ENTRY")
    blind = qa.evaluate(qa.Inputs(replace(a_close("p1"), qty=0.01, content=""), NOW_US), PRODUCTION)
    assert qa.governor_fields(blind, PRODUCTION)["side"] == ""


def test_what_is_no_record_is_refused() -> None:
    """Other rules, parameters that are not those of its hash, an input that was read but holds nothing, a change."""
    params = qa.GovernorParams(max_exec_per_hour=5)
    made = decide(an_open(), world(), params)
    record = record_of(made, params, "production")
    assert record == qa.governor_fields(made, params)
    assert params_of(record) == params
    assert json.loads(record["params"]) == {"max_exec_per_hour": 5}
    with pytest.raises(ValueError, match="not known here"):
        qa.recompute({**record, "rules": "p99"})
    with pytest.raises(ValueError, match="defaults"):
        qa.recompute({**record, "params_hash": "0" * 12})
    told = json.loads(record["inputs"])
    for name, hollow in (("position", ["ok", NOW, None]), ("totals", ["ok", None, [0.0, 0]])):
        with pytest.raises(ValueError, match="no value or time"):
            qa.recompute({**record, "inputs": json.dumps({**told, name: hollow})})
    with pytest.raises(TypeError):
        record_of(made, qa.ProposalParams(), "production")
    assert qa.differences({**record, "computed_qty": "2.0"}) == {"computed_qty": ("2.0", "1.0")}
    told["plan"][3] = 5.0
    changed = qa.differences({**record, "inputs": json.dumps(told, separators=(",", ":"))})
    assert changed["reason"] == ("ok", "notional_per_trade_exceeded")


def test_a_malformed_input_makes_the_same_record_again() -> None:
    """What was wrong with it is for logs and not in the record; all texts are the same."""
    bad: qa.Reading[Any] = qa.Unusable(qa.Reason.MALFORMED, ts=NOW - 5, detail="target_usd")
    record = qa.governor_fields(decide(an_open(), world(target=bad, efficiency=bad)), PRODUCTION)
    assert qa.differences(through_text(record)) == {}


def test_names_of_the_governors_keys() -> None:
    """They are those of the contract."""
    assert LIVE.permit("p1") == "quantum:permit:p1"
    assert LIVE.block("p1") == "quantum:governor:block:p1"
    assert LIVE.tombstone("p1") == "quantum:governor:plan:p1"
    assert LIVE.ledger(S) == "quantum:governor:ledger:BTCUSDT"
    assert LIVE.last_exec(S) == "quantum:governor:last_exec:BTCUSDT"
    assert (LIVE.book, LIVE.epoch) == ("quantum:governor:book", "quantum:governor:epoch")
    assert (LIVE.kill, LIVE.latch, LIVE.rearm) == ("quantum:kill", "quantum:kill:latch", "quantum:kill:rearm")
    assert LIVE.events == "quantum:stream:governor.events"
