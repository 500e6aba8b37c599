"""When an open that was consumed stops counting: a position of that second, and a portfolio from after its life."""

from __future__ import annotations

from typing import Any

import pytest

import quantum_alloc.core as qa
from quantum_alloc.core.limits import US, is_released, us

CONSUMED, END = 30.4, 61.0
LATE = 70.4


def seen(seconds: float | None, reason: qa.Reason | None = None) -> qa.Reading[float]:
    """A record of a time: fresh, or unusable for a reason."""
    if reason is not None:
        return qa.Unusable(reason, ts=seconds)
    return qa.missing() if seconds is None else qa.fresh(0.0, seconds)


CASES: dict[str, tuple[float, qa.Reading[float], qa.Reading[float], bool]] = {
    "of its second, portfolio from after its life": (CONSUMED, seen(30.0), seen(62.0), True),
    "of its second, portfolio a microsecond after its life": (CONSUMED, seen(30.0), seen(61.000001), True),
    "of its second, portfolio of the end of its life": (CONSUMED, seen(30.0), seen(END), False),
    "of its second, portfolio from before the end": (CONSUMED, seen(30.0), seen(40.0), False),
    "of its second, no portfolio": (CONSUMED, seen(30.0), seen(None), False),
    "of its second, a portfolio that cannot be read": (CONSUMED, seen(30.0), seen(62.0, qa.Reason.MALFORMED), False),
    "of its second, both too old to be used": (
        CONSUMED, seen(30.0, qa.Reason.STALE), seen(62.0, qa.Reason.STALE), True,
    ),
    "of its very moment": (CONSUMED, seen(CONSUMED), seen(62.0), True),
    "of the second before": (CONSUMED, seen(29.0), seen(62.0), False),
    "a second before, to the microsecond": (CONSUMED, seen(29.4), seen(62.0), False),
    "a microsecond less": (CONSUMED, seen(29.400001), seen(62.0), True),
    "long before": (CONSUMED, seen(1.0), seen(1000.0), False),
    "of the next second, portfolio too": (CONSUMED, seen(31.0), seen(31.0), True),
    "of the next second, portfolio of its second": (CONSUMED, seen(31.0), seen(30.0), False),
    "taken late, portfolio from between its life and that": (LATE, seen(70.0), seen(70.0), False),
    "taken late, portfolio of that very moment": (LATE, seen(70.0), seen(LATE), False),
    "taken late, portfolio from after that": (LATE, seen(70.0), seen(71.0), True),
    "taken late, of the second before": (LATE, seen(69.0), seen(71.0), False),
    "a position that cannot be read": (CONSUMED, seen(30.0, qa.Reason.MALFORMED), seen(62.0), False),
    "no position, portfolio from after its life": (CONSUMED, seen(None), seen(62.0), True),
    "no position, portfolio of the end of its life": (CONSUMED, seen(None), seen(END), False),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_when_a_consumed_open_is_released(name: str) -> None:
    """Times of positions are whole seconds: one of the second of the consumption may be of before it."""
    consumed, position, portfolio, released = CASES[name]
    one = qa.Outstanding("p1", "BTCUSDT", 10.0, us(1.0), us(END), us(consumed))
    assert is_released(one, us(portfolio.ts or 0.0) + 5 * US, position, portfolio) is released


@pytest.mark.parametrize("position", [seen(30.0), seen(None), seen(90.0)], ids=repr)
def test_one_that_nobody_took_is_released_at_its_end(position: qa.Reading[Any]) -> None:
    """Whatever position and portfolio say."""
    one = qa.Outstanding("p1", "BTCUSDT", 10.0, us(1.0), us(END))
    assert [is_released(one, us(END) + by, position, seen(90.0)) for by in (-1, 0)] == [False, True]
