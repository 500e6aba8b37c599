"""Laws of reconciliation: over any sequence of entries permits add up, and fills are judged as a simple model does."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from quantum_alloc.core.limits import US
from quantum_alloc.core.reconcile import Counts, Known, Reconciled, SeenFill, Stage, reconcile

MODULE = import_module("quantum_alloc.core.reconcile")
IDS = [f"p{i}" for i in range(5)]
SYMBOLS = ["BTCUSDT", "ETHUSDT"]
LIFE_S, GRACE_S, REMEMBERED_S = 60, 5, 3600

ids, symbols = st.sampled_from(IDS), st.sampled_from(SYMBOLS)
quantities = st.sampled_from([0.0, 0.5, 1.0, 1.0, 2.0])
issues = st.tuples(ids, symbols, st.sampled_from([1.0, 2.0]), st.sampled_from([0, 30, 60]), st.booleans())
fills = st.builds(SeenFill, st.sampled_from([*IDS, ""]), symbols, quantities)
steps = st.one_of(
    st.tuples(st.just("issue"), issues), st.tuples(st.just("consume"), ids), st.tuples(st.just("take"), ids),
    st.tuples(st.just("fill"), fills),
    st.tuples(st.just("wait"), st.sampled_from([0, 1, US, 30 * US, 64 * US, 65 * US - 1, 65 * US, 3600 * US])),
)  # fmt: skip
sequences = st.lists(steps, max_size=30)


@dataclass
class Model:
    """Every permit that there ever was, looked at one entry after the other.

    Attributes:
        now_us: the clock.
        permits: id -> symbol, quantity, expiry, what has become of it, when, what was filled, and whether it is ours.
        totals: issued, consumed, expired, without, above, fills, elsewhere.
    """

    now_us: int = 0
    permits: dict[str, list[Any]] = field(default_factory=dict)
    totals: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(
            ("issued", "consumed", "expired", "without", "above", "fills", "elsewhere"), 0
        )
    )

    def issue(self, plan_id: str, symbol: str, qty: float, life_s: int) -> None:
        """A permit that is not known is new."""
        if plan_id not in self.permits:
            self.permits[plan_id] = [symbol, qty, self.now_us + life_s * US, "open", 0, 0.0, False]
            self.totals["issued"] += 1

    def consume(self, plan_id: str, is_own: bool = False) -> None:
        """An open one is used up, by this account or another."""
        one = self.permits.get(plan_id)
        if one and one[3] == "open":
            one[3:5] = "used", self.now_us
            one[6] = is_own
            self.totals["consumed"] += 1

    def fill(self, told: SeenFill) -> None:
        """A fill uses its permit up."""
        self.totals["fills"] += 1
        one = self.permits.get(told.plan_id)
        if not one or one[0] != told.symbol or one[3] == "late":
            self.totals["without"] += 1
            return
        self.consume(told.plan_id)
        one[5] += told.qty
        self.totals["above"] += one[5] > one[1]
        self.totals["elsewhere"] += not one[6]

    def end(self) -> None:
        """What is over expires; what has long ended is forgotten."""
        for one in self.permits.values():
            if one[3] == "open" and self.now_us >= one[2] + GRACE_S * US:
                one[3:5] = "late", self.now_us
                self.totals["expired"] += 1
        self.permits = {
            p: one for p, one in self.permits.items()
            if one[3] == "open" or self.now_us < one[4] + REMEMBERED_S * US
        }  # fmt: skip

    @property
    def counts(self) -> Counts:
        """As they should be."""
        return Counts(*self.totals.values())


def known(now_us: int, told: tuple[str, str, float, int, bool]) -> tuple[str, Known]:
    """A permit as its event tells of it."""
    plan_id, symbol, qty, life_s, is_restored = told
    return plan_id, Known(symbol, qty, now_us + life_s * US, Stage.REFUSED if is_restored else Stage.WAITING)


def adds_up(state: Reconciled) -> None:
    """issued = consumed + expired + outstanding, and each of them is there."""
    c = state.counts
    assert c.issued == c.consumed + c.expired + c.outstanding
    assert (
        min(c.issued, c.consumed, c.expired, c.outstanding, c.without_permit, c.above_permit, c.fills, c.elsewhere) >= 0
    )
    assert c.outstanding == sum(one.is_outstanding for one in state.permits.values())
    assert c.without_permit <= c.fills
    assert c.above_permit <= c.fills - c.without_permit
    assert c.elsewhere <= c.fills - c.without_permit
    assert c.is_wrong == any((c.without_permit, c.above_permit, c.elsewhere))
    for one in state.permits.values():
        assert (one.ended_us == 0) or not one.is_outstanding


@given(sequences)
def test_permits_add_up_and_fills_are_judged(drawn: list[tuple[str, Any]]) -> None:
    """At any moment of any sequence of entries and times, as a model that looks at one entry after the other."""
    state, model = Reconciled(), Model()
    for what, told in drawn:
        if what == "issue":
            state = reconcile(state, model.now_us, [known(model.now_us, told)])
            model.issue(*told[:4])
        elif what == "consume":
            state = reconcile(state, model.now_us, consumed=[told])
            model.consume(told)
        elif what == "take":
            state = reconcile(state, model.now_us, taken=[told])
            model.consume(told, is_own=True)
        elif what == "fill":
            state = reconcile(state, model.now_us, fills=[told])
            model.fill(told)
        else:
            model.now_us += told
            state = reconcile(state, model.now_us)
        model.end()
        adds_up(state)
        assert state.counts == model.counts
        assert state.permits.keys() == model.permits.keys()
        for plan_id, one in state.permits.items():
            symbol, qty, until_us, stage, ended_us, filled, is_own = model.permits[plan_id]
            assert (one.symbol, one.qty, one.until_us, one.ended_us, one.filled_qty, one.is_own) == (
                symbol, qty, until_us, ended_us, filled, is_own,
            )  # fmt: skip
            assert (one.stage is Stage.CONSUMED, one.stage is Stage.EXPIRED) == (stage == "used", stage == "late")


pages = st.lists(ids, max_size=6)


@given(sequences, st.lists(issues, max_size=6), pages, pages, st.lists(fills, max_size=6))
def test_many_entries_at_once_are_as_one_after_the_other(
    drawn: list[tuple[str, Any]], issued: list[Any], taken: list[str], consumed: list[str], filled: list[SeenFill]
) -> None:
    """Permits, then consumptions, this account's own first, then fills of one moment, read in one page or in many."""
    now_us, state = 0, Reconciled()
    for what, told in drawn:
        now_us += told if what == "wait" else 0
        state = reconcile(
            state, now_us, [known(now_us, told)] if what == "issue" else (), [told] if what == "consume" else (),
            [told] if what == "fill" else (), [told] if what == "take" else (),
        )  # fmt: skip
    state = reconcile(state, now_us)
    whole = reconcile(state, now_us, [known(now_us, one) for one in issued], consumed, filled, taken)
    for one in issued:
        state = reconcile(state, now_us, [known(now_us, one)])
    for plan_id in taken:
        state = reconcile(state, now_us, taken=[plan_id])
    for plan_id in consumed:
        state = reconcile(state, now_us, consumed=[plan_id])
    for fill in filled:
        state = reconcile(state, now_us, fills=[fill])
    assert whole == state
    adds_up(whole)


@given(st.lists(st.tuples(ids, st.sampled_from(["fill", "consume", "take"])), max_size=8), st.permutations(IDS))
def test_consumption_and_fill_of_a_permit_count_once(told: list[tuple[str, str]], order: list[str]) -> None:
    """In any order and however often they are told; an id that is issued again is the same permit."""
    state = reconcile(Reconciled(), 1, [(p, Known("BTCUSDT", 100.0, 60 * US)) for p in [*order, *order]])
    assert state.counts.issued == len(IDS)
    for plan_id, what in told:
        if what == "fill":
            state = reconcile(state, 2, fills=[SeenFill(plan_id, "BTCUSDT", 1.0)])
        elif what == "take":
            state = reconcile(state, 2, taken=[plan_id])
        else:
            state = reconcile(state, 2, consumed=[plan_id])
        state = reconcile(state, 2, [(plan_id, Known("BTCUSDT", 100.0, 60 * US))])
    c = state.counts
    assert (c.issued, c.consumed, c.expired) == (len(IDS), len({p for p, _ in told}), 0)
    assert (c.without_permit, c.above_permit, c.fills) == (0, 0, sum(what == "fill" for _, what in told))
    own = {p for n, (p, what) in enumerate(told) if what == "take" and p not in {q for q, _ in told[:n]}}
    assert {p for p, one in state.permits.items() if one.is_own} == own, "who was the first to tell"
    assert c.elsewhere == sum(what == "fill" and p not in own for p, what in told)
    assert [one.number for one in state.permits.values()] == list(range(1, len(IDS) + 1))
    adds_up(state)


@given(fills, st.integers(0, 10 * US))
def test_a_late_fill_is_without_a_permit(fill: SeenFill, later_us: int) -> None:
    """Of a permit that has expired: it is not consumed by it, and its quantity is not added."""
    end = (LIFE_S + GRACE_S) * US
    state = reconcile(Reconciled(), 1, [(p, Known("BTCUSDT", 1.0, LIFE_S * US)) for p in IDS])
    gone = reconcile(state, end)
    late = reconcile(gone, end + later_us, fills=[fill], consumed=IDS)
    assert late.counts == replace(gone.counts, without_permit=1, fills=1)
    assert late.permits == gone.permits


@given(st.integers(1, 4), st.lists(st.lists(st.tuples(st.integers(0, 40), st.booleans()), max_size=8), max_size=8))
def test_what_is_remembered_is_bounded(limit: int, drawn: list[list[tuple[int, bool]]]) -> None:
    """(41) Of what has ended the latest ``REMEMBERED_MAX``; what is outstanding is never forgotten."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MODULE, "REMEMBERED_MAX", limit)
        patch.setattr(MODULE, "JUST_ENDED_S", 0)
        state = Reconciled()
        for at, page in enumerate(drawn, 1):
            before = state
            issued = [(f"p{n}", Known("BTCUSDT", 1.0, LIFE_S * US)) for n, _ in page]
            done = [f"p{n}" for n, is_done in page if is_done]
            state = reconcile(state, at, issued, done)
            adds_up(state)
            ended = [one.ended_us for one in state.permits.values() if not one.is_outstanding]
            assert len(ended) <= limit
            dropped = [before.permits[p].ended_us for p in before.permits.keys() - state.permits.keys()]
            assert not dropped or not ended or max(dropped) <= min(ended)
            assert all(not before.permits[p].is_outstanding or p in done for p in before.permits.keys() - state.permits)


@given(
    st.integers(1, 3),
    st.integers(1, 9),
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 6)), max_size=8),
)
def test_what_has_just_ended_is_remembered(limit: int, more: int, drawn: list[tuple[int, int]]) -> None:
    """(41) The latest ``REMEMBERED_MAX``, or all of the last 5 s where they are more, at most ``KNOWN_MAX``."""
    most, now_us, n = limit + more, 0, 0
    ended: list[tuple[int, str]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MODULE, "REMEMBERED_MAX", limit)
        patch.setattr(MODULE, "KNOWN_MAX", most)
        state = Reconciled()
        for wait_s, size in drawn:
            now_us += wait_s * US
            page = [f"q{n + i:03}" for i in range(size)]
            n += size
            state = reconcile(state, now_us, [(p, Known("A0", 1.0, 10**17)) for p in page], taken=page)
            ended = sorted([*ended, *((now_us, p) for p in page)], reverse=True)
            just = sum(now_us - at < 5 * US for at, _ in ended)
            ended = ended[: min(max(limit, just), most)]
            assert state.permits.keys() == {p for _, p in ended}
            adds_up(state)


class Accounts(RuleBasedStateMachine):
    """Any number of permits, over any time that passes."""

    @initialize()
    def opened(self) -> None:
        """Nothing has been issued."""
        self.state, self.now_us, self.issued = Reconciled(), 0, 0

    @rule(life=st.integers(0, 60), is_restored=st.booleans(), symbol=symbols)
    def issue(self, life: int, is_restored: bool, symbol: str) -> None:
        """A new permit."""
        self.issued += 1
        told = f"q{self.issued}", symbol, 1.0, life, is_restored
        self.state = reconcile(self.state, self.now_us, [known(self.now_us, told)])

    @rule(back=st.integers(0, 5), qty=quantities, symbol=symbols)
    def fill(self, back: int, qty: float, symbol: str) -> None:
        """One of the last, or of none."""
        told = SeenFill(f"q{self.issued - back}", symbol, qty)
        self.state = reconcile(self.state, self.now_us, fills=[told])

    @rule(back=st.integers(0, 5))
    def consume(self, back: int) -> None:
        """One of the last, or of none."""
        self.state = reconcile(self.state, self.now_us, consumed=[f"q{self.issued - back}"])

    @rule(back=st.integers(0, 5))
    def take(self, back: int) -> None:
        """One of the last, or of none, by this account."""
        self.state = reconcile(self.state, self.now_us, taken=[f"q{self.issued - back}"])

    @rule(us=st.one_of(st.integers(0, 70 * US), st.just(3600 * US), st.integers(-US, 0)))
    def wait(self, us: int) -> None:
        """Time passes, or a clock is set back."""
        self.now_us = max(0, self.now_us + us)
        self.state = reconcile(self.state, self.now_us)

    @invariant()
    def holds(self) -> None:
        """Every id was new, so that every issue counts."""
        adds_up(self.state)
        assert self.state.counts.issued == self.issued


TestAccounts = Accounts.TestCase
TestAccounts.settings = settings(max_examples=50, stateful_step_count=25)
