"""Reconciliation of permits and fills: worked cases, and the edges of what is waited for and remembered."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module

import pytest

from quantum_alloc.core.limits import US
from quantum_alloc.core.reconcile import (
    GRACE_S,
    JUST_ENDED_S,
    KNOWN_MAX,
    REMEMBERED_MAX,
    REMEMBERED_S,
    TOLERANCE,
    Counts,
    Known,
    Reconciled,
    SeenFill,
    Stage,
    reconcile,
)

MODULE = import_module("quantum_alloc.core.reconcile")
UNTIL = 60 * US
PERMIT = Known("BTCUSDT", 2.0, UNTIL, action="ENTRY")
FILL = SeenFill("p1", "BTCUSDT", 2.0)
ISSUED = reconcile(Reconciled(), 1, [("p1", PERMIT)])


def counts(state: Reconciled) -> tuple[int, ...]:
    """Issued, consumed, expired, outstanding, without and above a permit, fills."""
    c = state.counts
    assert c.is_wrong == (c.without_permit + c.above_permit + c.elsewhere > 0)
    return c.issued, c.consumed, c.expired, c.outstanding, c.without_permit, c.above_permit, c.fills


def test_nothing_is_nothing() -> None:
    """An account that has just been opened."""
    assert reconcile(Reconciled(), 0) == Reconciled()
    assert counts(Reconciled()) == (0,) * 7


def test_a_permit_is_outstanding_until_it_is_consumed() -> None:
    """Issued, consumed, filled: once each, whoever tells first."""
    assert counts(ISSUED) == (1, 0, 0, 1, 0, 0, 0)
    assert ISSUED.permits == {"p1": replace(PERMIT, number=1)}
    used = reconcile(ISSUED, 5, consumed=["p1"])
    assert counts(used) == (1, 1, 0, 0, 0, 0, 0)
    assert used.permits["p1"] == replace(PERMIT, number=1, stage=Stage.CONSUMED, ended_us=5)
    seen = reconcile(used, 6, fills=[FILL])
    assert counts(seen) == (1, 1, 0, 0, 0, 0, 1)
    assert seen.permits["p1"] == replace(used.permits["p1"], filled_qty=2.0)
    filled = reconcile(ISSUED, 5, fills=[FILL])
    assert counts(filled) == (1, 1, 0, 0, 0, 0, 1)
    assert counts(reconcile(filled, 6, consumed=["p1"])) == (1, 1, 0, 0, 0, 0, 1)
    assert counts(reconcile(ISSUED, 5, consumed=["p1", "p1"], fills=[FILL])) == (1, 1, 0, 0, 0, 0, 1)
    assert counts(reconcile(Reconciled(), 5, [("p1", PERMIT)], ["p1"], [FILL])) == (1, 1, 0, 0, 0, 0, 1)


def test_a_fill_of_a_permit_that_somebody_else_consumed_is_elsewhere() -> None:
    """So is one of a permit that nobody has reported; what this account has taken is its own, whoever tells of it."""
    for own in (
        reconcile(ISSUED, 5, taken=["p1"]),
        reconcile(ISSUED, 5, consumed=["p1"], taken=["p1"]),
        reconcile(reconcile(ISSUED, 5, taken=["p1"]), 5, consumed=["p1"]),
    ):
        assert own.permits["p1"] == replace(PERMIT, number=1, stage=Stage.CONSUMED, ended_us=5, is_own=True)
        assert own.counts == Counts(1, 1)
        seen = reconcile(own, 6, fills=[FILL])
        assert seen.counts == Counts(1, 1, fills=1)
        assert not seen.counts.is_wrong
        above = reconcile(own, 6, fills=[FILL, FILL]).counts
        assert (above.above_permit, above.elsewhere, above.is_wrong) == (1, 0, True)
    for other in (ISSUED, reconcile(ISSUED, 5, consumed=["p1"])):
        made = reconcile(other, 6, fills=[FILL])
        assert made.counts == Counts(1, 1, fills=1, elsewhere=1)
        assert made.counts.is_wrong
        assert not made.permits["p1"].is_own
        again = reconcile(made, 7, taken=["p1"])
        assert again == made, "it was used up before"
        assert reconcile(made, 7, fills=[FILL]).counts == Counts(1, 1, 0, 0, 1, 2, 2)
    assert reconcile(ISSUED, 5, taken=["p2"]) == ISSUED
    waiting = Reconciled({"p1": replace(PERMIT, waited="price_unknown", number=1)}, ISSUED.counts)
    assert reconcile(waiting, 5, taken=["p1"]).permits["p1"].waited == ""
    assert reconcile(ISSUED, UNTIL + GRACE_S * US, taken=["p1"]).counts == Counts(1, 1)


@pytest.mark.parametrize(
    ("counted", "is_wrong"),
    [(Counts(9, 4, 3, fills=4), False), (Counts(without_permit=1), True), (Counts(above_permit=1), True),
     (Counts(elsewhere=1), True)],
)  # fmt: skip
def test_what_raises_an_alarm(counted: Counts, is_wrong: bool) -> None:
    """Any fill that is not as it must be, and nothing else."""
    assert counted.is_wrong is is_wrong


def test_what_is_consumed_no_longer_waits() -> None:
    """Why it waited is forgotten with its consumption."""
    waiting = Reconciled({"p1": replace(PERMIT, waited="price_unknown", number=1)}, ISSUED.counts)
    assert reconcile(waiting, 5).permits["p1"].waited == "price_unknown"
    assert reconcile(waiting, 5, consumed=["p1"]).permits["p1"].waited == ""


def test_an_id_is_issued_once() -> None:
    """What it was first counts; numbers tell the order, and go on from what was counted before."""
    other = replace(PERMIT, qty=9.0)
    made = reconcile(ISSUED, 2, [("p1", other), ("p2", PERMIT), ("p2", other), ("p3", other)])
    assert counts(made) == (3, 0, 0, 3, 0, 0, 0)
    assert {p: (one.qty, one.number) for p, one in made.permits.items()} == {
        "p1": (2.0, 1),
        "p2": (2.0, 2),
        "p3": (9.0, 3),
    }
    assert list(made.permits) == ["p1", "p2", "p3"]
    assert counts(reconcile(reconcile(ISSUED, 2, consumed=["p1"]), 3, [("p1", PERMIT)])) == (1, 1, 0, 0, 0, 0, 0)


def test_what_was_never_issued_is_not_consumed() -> None:
    """Somebody else's permit."""
    assert reconcile(ISSUED, 5, consumed=["p2"]) == ISSUED


@pytest.mark.parametrize(
    ("fill", "without", "above"),
    [
        (FILL, 0, 0),
        (SeenFill("p1", "BTCUSDT", 0.0), 0, 0),
        (SeenFill("p1", "BTCUSDT", 2.0 * (1.0 + TOLERANCE)), 0, 0),
        (SeenFill("p1", "BTCUSDT", 2.0 * (1.0 + 2 * TOLERANCE)), 0, 1),
        (SeenFill("p1", "ETHUSDT", 2.0), 1, 0),
        (SeenFill("p2", "BTCUSDT", 2.0), 1, 0),
        (SeenFill("", "BTCUSDT", 2.0), 1, 0),
    ],
)
def test_a_fill_has_a_permit(fill: SeenFill, without: int, above: int) -> None:
    """Of its id and symbol, and of its quantity; one without leaves the permits as they are."""
    made = reconcile(ISSUED, 5, fills=[fill])
    assert (made.counts.without_permit, made.counts.above_permit, made.counts.fills) == (without, above, 1)
    assert (made.permits == ISSUED.permits) == bool(without)
    assert made.counts.outstanding == without


def test_fills_of_one_permit_add_up() -> None:
    """Each that goes above it is counted."""
    half = replace(FILL, qty=1.0)
    made = reconcile(ISSUED, 5, fills=[half, half])
    assert counts(made) == (1, 1, 0, 0, 0, 0, 2)
    assert made.permits["p1"].filled_qty == 2.0
    assert made.permits["p1"].ended_us == 5
    more = reconcile(made, 6, fills=[half, half])
    assert counts(more) == (1, 1, 0, 0, 0, 2, 4)
    assert more.permits["p1"].ended_us == 5, "it ended when it was consumed"


def test_a_permit_expires_after_a_grace() -> None:
    """At its time and ``GRACE_S``, not a microsecond before; a consumption in that very moment still counts."""
    end = UNTIL + GRACE_S * US
    assert GRACE_S == 5
    assert counts(reconcile(ISSUED, end - 1)) == (1, 0, 0, 1, 0, 0, 0)
    gone = reconcile(ISSUED, end)
    assert counts(gone) == (1, 0, 1, 0, 0, 0, 0)
    assert gone.permits["p1"] == replace(PERMIT, number=1, stage=Stage.EXPIRED, ended_us=end)
    assert counts(reconcile(gone, end + 1)) == (1, 0, 1, 0, 0, 0, 0)
    assert counts(reconcile(ISSUED, end, consumed=["p1"])) == (1, 1, 0, 0, 0, 0, 0)
    assert counts(reconcile(ISSUED, end, fills=[FILL])) == (1, 1, 0, 0, 0, 0, 1)
    assert counts(reconcile(Reconciled(), end, [("p1", PERMIT)])) == (1, 0, 1, 0, 0, 0, 0)


def test_a_late_fill_is_one_without_a_permit() -> None:
    """The expiry stands, and so does a consumption that is told too late."""
    end = UNTIL + GRACE_S * US
    gone = reconcile(ISSUED, end)
    assert counts(reconcile(gone, end + 1, fills=[FILL])) == (1, 0, 1, 0, 1, 0, 1)
    assert counts(reconcile(gone, end + 1, consumed=["p1"])) == (1, 0, 1, 0, 0, 0, 0)


def test_a_refused_permit_is_outstanding() -> None:
    """Until it is consumed after all, or expires."""
    refused = Reconciled({"p1": replace(PERMIT, stage=Stage.REFUSED)}, Counts(1))
    assert reconcile(refused, 5) == refused
    assert counts(reconcile(refused, 5, consumed=["p1"])) == (1, 1, 0, 0, 0, 0, 0)
    assert counts(reconcile(refused, 5, fills=[FILL])) == (1, 1, 0, 0, 0, 0, 1)
    assert counts(reconcile(refused, UNTIL + GRACE_S * US)) == (1, 0, 1, 0, 0, 0, 0)
    assert [replace(PERMIT, stage=s).is_outstanding for s in Stage] == [True, True, False, False]


def test_what_has_ended_is_remembered_for_a_while() -> None:
    """For ``REMEMBERED_S``, not a microsecond longer; what is outstanding is never forgotten."""
    assert REMEMBERED_S == 3600
    used = reconcile(ISSUED, 5, consumed=["p1"])
    end = 5 + REMEMBERED_S * US
    assert reconcile(used, end - 1).permits == used.permits
    assert reconcile(used, end) == Reconciled({}, used.counts)
    assert counts(reconcile(used, end - 1, fills=[FILL])) == (1, 1, 0, 0, 0, 0, 1)
    assert counts(reconcile(reconcile(used, end), end, fills=[FILL])) == (1, 1, 0, 0, 1, 0, 1)
    later = Reconciled({"p1": replace(PERMIT, until_us=10**17)}, Counts(1))
    assert reconcile(later, 10**16) == later


def crowd(n: int) -> list[tuple[str, Known]]:
    """So many permits."""
    return [(f"p{i:05}", replace(PERMIT, until_us=10**17)) for i in range(n)]


def test_only_the_latest_that_have_ended_are_remembered() -> None:
    """``REMEMBERED_MAX`` of them, by the time when they ended and then by name; with all that are outstanding."""
    assert (REMEMBERED_MAX, JUST_ENDED_S) == (2_000, 5)
    issued = crowd(REMEMBERED_MAX + 3)
    state = reconcile(Reconciled(), 1, issued)
    state = reconcile(state, 2, consumed=[p for p, _ in issued[:REMEMBERED_MAX]])
    assert len(state.permits) == REMEMBERED_MAX + 3
    later = 2 + JUST_ENDED_S * US
    full = reconcile(state, later, consumed=[p for p, _ in issued[REMEMBERED_MAX : REMEMBERED_MAX + 2]])
    assert set(full.permits) == {p for p, _ in issued[2:]}
    assert list(full.permits) == sorted(full.permits), "in the order in which they were issued"
    assert counts(full) == (REMEMBERED_MAX + 3, REMEMBERED_MAX + 2, 0, 1, 0, 0, 0)
    set_back = reconcile(state, 1, consumed=[issued[REMEMBERED_MAX][0]])
    assert set_back.permits.keys() == state.permits.keys(), "what ended in times to come has just ended"


def test_those_that_have_just_ended_are_all_remembered() -> None:
    """For ``JUST_ENDED_S``, so that the fills of a burst are not taken for fills of no permit; and not longer."""
    issued = crowd(REMEMBERED_MAX + 3)
    early, late = [p for p, _ in issued[:2]], [p for p, _ in issued[2:]]
    state = reconcile(reconcile(Reconciled(), 1, issued), 2, taken=early)
    burst = reconcile(state, 3, taken=late)
    assert len(burst.permits) == REMEMBERED_MAX + 3
    assert reconcile(burst, 1 + JUST_ENDED_S * US).permits == burst.permits
    seen = reconcile(burst, 1 + JUST_ENDED_S * US, fills=[SeenFill(p, "BTCUSDT", 2.0) for p in (*early, *late)])
    assert not seen.counts.is_wrong
    assert set(reconcile(burst, 2 + JUST_ENDED_S * US).permits) == {*late}, "the first two ended before"
    assert set(reconcile(burst, 3 + JUST_ENDED_S * US).permits) == {*sorted(late)[1:]}


def test_a_burst_is_bounded_too() -> None:
    """At ``KNOWN_MAX``, whatever comes; what is outstanding is not among them."""
    assert KNOWN_MAX == 10_000
    issued = crowd(KNOWN_MAX + 2)
    made = reconcile(Reconciled(), 1, issued, taken=[p for p, _ in issued[:-1]])
    assert set(made.permits) == {p for p, _ in issued[1:]}
    assert made.counts == Counts(KNOWN_MAX + 2, KNOWN_MAX + 1)


def test_the_limits_are_those_of_the_module(monkeypatch: pytest.MonkeyPatch) -> None:
    """One is kept of two where only one may be, or has just ended; two where two have."""
    three = [("p3", PERMIT), ("p1", PERMIT), ("p2", PERMIT)]
    monkeypatch.setattr(MODULE, "REMEMBERED_MAX", 1)
    made = reconcile(Reconciled(), 1, three, ["p1", "p2", "p3"])
    assert list(made.permits) == ["p3", "p1", "p2"]
    monkeypatch.setattr(MODULE, "KNOWN_MAX", 2)
    made = reconcile(Reconciled(), 1, three, ["p1", "p2", "p3"])
    assert list(made.permits) == ["p3", "p2"]
    monkeypatch.setattr(MODULE, "JUST_ENDED_S", 0)
    made = reconcile(Reconciled(), 1, three, ["p1", "p2", "p3"])
    assert list(made.permits) == ["p3"]
