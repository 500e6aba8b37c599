"""The checks of a run: each passes on a run that is sound, and sees the fault that it is there for."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest

import quantum_alloc.core as qa
from quantum_alloc.adapters.apply_wire import STREAMS, Account
from quantum_alloc.adapters.run_records import Entry, Records
from quantum_alloc.core.account import FLAT, Held
from quantum_alloc.core.apply import ApplyInputs, ApplyParams, Fate, Terms, apply_permit
from quantum_alloc.core.fields import number
from quantum_alloc.core.limits import US
from quantum_alloc.core.plan import Side
from quantum_alloc.core.reconcile import Known, Reconciled, SeenFill, reconcile
from quantum_alloc.services import conserve
from quantum_alloc.services.conserve import Recomputer

T0 = 1_769_577_480
BTC, ETH, SOL = "BTCUSDT", "ETHUSDT", "SOLUSDT"
PARAMS = qa.GovernorParams(apply_mode="production", max_open_positions=2, max_total_notional_usd=400.0)
APPLY = ApplyParams("production")
PAID_IN = 1000.0
Run = tuple[Records, Account]
Order = tuple[float, str, float, float]
"""Seconds after the beginning, symbol, signed quantity, price."""
ANY = (0, 1_000, 1_000)
"""Limits of permits that keep no fill from being made: it is for the checks to see that one should not have been."""
NAMES = {
    "money": "balance + unrealised = equity",
    "positions": "sum of fills = position",
    "permits": "permits = consumed + expired + outstanding",
    "fills": "every fill has its permit",
    "limits": "no limit exceeded by the fills",
    "kills": "the kill switch holds",
}


def run(*orders: Order, bars: bool = True) -> Run:
    """A run of some fills, one permit each, and a portfolio record a second after each; all by the rules."""
    held: dict[str, Held] = {}
    marks: dict[str, float] = {}
    balance, realised, fees = PAID_IN, 0.0, 0.0
    known = Reconciled()
    events: list[Entry] = []
    results: list[Entry] = []
    executions: list[Entry] = []
    portfolio: list[Entry] = []
    for n, (at, symbol, qty, price) in enumerate(orders, 1):
        plan_id, now_us, before = f"p{n}", round((T0 + at) * US), held.get(symbol, FLAT)
        closes = before.qty * qty < 0.0 and abs(qty) <= abs(before.qty)
        side = Side.BUY if qty > 0.0 else Side.SELL
        terms = Terms(abs(qty), abs(qty) * price, side, closes, "production", False, False, 1.0, 0, "d" * 16, ANY)
        inputs = ApplyInputs(
            plan_id, symbol, terms, now_us, now_us + 60 * US, held=before, price_usd=qa.fresh(price, T0 + at)
        )
        made = apply_permit(inputs, APPLY)
        assert made.fate is Fate.FILLED
        assert made.trade is not None
        stamp = {"timestamp": str(math.floor(T0 + at)), "ts": str(math.floor(T0 + at))}
        told = {"computed_qty": number(terms.qty), "computed_notional": number(terms.notional_usd)}
        movement = "close" if closes else "open"
        events.append({"event": "PERMIT", "plan_id": plan_id, "symbol": symbol, "movement": movement, **told, **stamp})
        results.append({**qa.apply_fields(made, APPLY), "waited_for": "", "consumed_us": str(now_us), **stamp})
        pnl = {} if made.trade.pnl_usd is None else {"pnl_usd": number(made.trade.pnl_usd)}
        executions.append(
            {"symbol": symbol, **pnl, "filled_qty": number(abs(made.trade.qty)), "side": side.value,
             "price": number(price), "fee_usd": number(made.trade.fee_usd), "plan_id": plan_id, **stamp}
        )  # fmt: skip
        held[symbol], marks[symbol] = made.held, price
        balance = made.trade.balance_usd(balance)
        realised, fees = realised + (made.trade.pnl_usd or 0.0), fees + made.trade.fee_usd
        permit = Known(symbol, terms.qty, now_us + 60 * US)
        known = reconcile(known, now_us, [(plan_id, permit)], (), [SeenFill(plan_id, symbol, abs(qty))], [plan_id])
        open_pnl = sum(h.unrealized_pnl_usd(marks[s]) for s, h in held.items())
        notional = sum(abs(h.qty) * marks[s] for s, h in held.items())
        portfolio.append(
            {"timestamp": str(math.floor(T0 + at) + 1), "balance_usd": number(balance),
             "unrealized_pnl_usd": number(open_pnl), "equity_usd": number(balance + open_pnl),
             "positions_notional_usd": number(notional)}
        )  # fmt: skip
    positions = dict.fromkeys(STREAMS, "0-0")
    account = Account(5, ("e", "r", "x", "t"), positions, balance, PAID_IN, realised, fees, held, known)
    told_of = tuple(portfolio) if bars else ()
    return Records(told_of, events=tuple(events), results=tuple(results), executions=tuple(executions)), account


def sound() -> Run:
    """Opens, an add, a close of a part and of all, on both sides; and permits that were never filled: one used up
    without a fill, one expired, one outstanding."""
    records, account = run(
        (0, BTC, 1.0, 100.0), (10, ETH, -2.0, 50.0), (100, BTC, 0.3, 110.0), (200.5, BTC, -1.3, 120.0),
        (300, ETH, 0.5, 45.0),
    )  # fmt: skip
    other = {"event": "PERMIT", "symbol": BTC, "computed_qty": "1.0", "computed_notional": "9.0", "movement": "open"}
    more = tuple({**other, "plan_id": p} for p in ("p6", "p7", "p8"))
    void = {"plan_id": "p6", "symbol": BTC, "consumed": "1", "executed": "false", "error": "nothing_to_close"}
    late = {"plan_id": "p7", "symbol": BTC, "consumed": "0", "executed": "false", "error": "permit_expired"}
    now_us, until_us = (T0 + 500) * US, (T0 + 490) * US
    issued = [(p, Known(BTC, 1.0, until_us + (100 * US if p == "p8" else 0))) for p in ("p6", "p7", "p8")]
    known = reconcile(account.permits, now_us, issued, taken=["p6"])
    noise = ({"event": "BLOCK", "plan_id": "p9"}, {"event": "REPLAY", "plan_id": "p1"}, {"no": "event"})
    events, results = (*records.events, *more, *noise), (*records.results, void, late)
    return replace(records, events=events, results=results), replace(account, permits=known)


def red(one: Run, params: qa.GovernorParams = PARAMS) -> dict[str, str]:
    """What each check that does not hold says."""
    found = conserve.checks(*one, params)
    assert [c.name for c in found] == list(NAMES.values())
    assert all(c.detail for c in found)
    return {name: c.detail for name, c in zip(NAMES, found, strict=True) if not c.ok}


def test_a_sound_run_passes() -> None:
    """Every check, with figures that tell what was looked at."""
    assert red(sound()) == {}
    money, positions, permits, fills, limits, kills = conserve.checks(*sound(), PARAMS)
    assert money.detail == (
        "balance 1,025.34 USD = 1,000.00 paid in +25.50 realised -0.16 fees; at the last bar 1,025.34 +7.50 unrealised"
        " = 1,032.84"
    )
    assert not conserve.money(*run((0, BTC, 1.0, 100.0), bars=False)).detail.count("bar")
    assert positions.detail == "5 fills of 2 symbols"
    assert permits.detail == "8 = 6 consumed + 1 expired + 1 outstanding"
    assert fills.detail == "5 fills, none above its permit"
    assert limits.detail == "3 opens within windows, cooldown, notional, positions and total"
    assert kills.detail == "0 changes of it, 5 fills"


def test_a_run_without_anything_passes() -> None:
    """Nothing was traded."""
    assert red(run()) == {}
    assert red((Records(), Account())) == {}


# --- one fault each --------------------------------------------------------------------------------------------------


def put(stream: str, at: int, **fields: str | None) -> Callable[[Run], Run]:
    """An entry of a stream with other fields; None takes one out."""

    def change(one: Run) -> Run:
        entries = list(getattr(one[0], stream))
        entries[at] = {n: t for n, t in {**entries[at], **fields}.items() if t is not None}
        return replace(one[0], **{stream: tuple(entries)}), one[1]

    return change


def drop(stream: str, at: int) -> Callable[[Run], Run]:
    """A stream without one of its entries."""

    def change(one: Run) -> Run:
        entries = getattr(one[0], stream)
        return replace(one[0], **{stream: entries[:at] + entries[at + 1 :]}), one[1]

    return change


def twice(stream: str, at: int) -> Callable[[Run], Run]:
    """A stream with one of its entries once more."""

    def change(one: Run) -> Run:
        entries = getattr(one[0], stream)
        return replace(one[0], **{stream: (*entries, entries[at])}), one[1]

    return change


def kept(**fields: Callable[[Any], Any]) -> Callable[[Run], Run]:
    """The account with some fields changed."""

    def change(one: Run) -> Run:
        return one[0], replace(one[1], **{n: of(getattr(one[1], n)) for n, of in fields.items()})

    return change


def counted(**more: int) -> Callable[[Run], Run]:
    """The account's counts with something added."""

    def change(known: Reconciled) -> Reconciled:
        c = known.counts
        return replace(known, counts=replace(c, **{n: getattr(c, n) + by for n, by in more.items()}))

    return kept(permits=change)


def without(plan_id: str) -> Callable[[Run], Run]:
    """The account with one permit forgotten."""
    return kept(permits=lambda known: replace(known, permits={p: k for p, k in known.permits.items() if p != plan_id}))


def held(symbol: str, of: Callable[[float], float]) -> Callable[[Run], Run]:
    """The account with another quantity."""
    return kept(held=lambda all_: {**all_, symbol: replace(all_.get(symbol, FLAT), qty=of(all_.get(symbol, FLAT).qty))})


def up(x: float) -> float:
    """The next float."""
    return math.nextafter(x, math.inf)


FAULTS: dict[str, tuple[Callable[[Run], Run], str, str]] = {
    "a cent too much": (kept(balance_usd=lambda usd: usd + 0.01), "money", "comes to"),
    "a cent too little": (kept(balance_usd=lambda usd: usd - 0.01), "money", "comes to"),
    "paid in and not in the balance": (kept(paid_in_usd=lambda usd: usd + 0.01), "money", "comes to"),
    "realised PnL off": (kept(realised_usd=lambda usd: usd + 0.01), "money", "comes to"),
    "fees off": (kept(fees_usd=lambda usd: usd - 0.01), "money", "comes to"),
    "a PnL that was not": (put("executions", 0, pnl_usd="0.01"), "money", "comes to"),
    "a fee that was not paid": (put("executions", 2, fee_usd="0"), "money", "comes to"),
    "a portfolio off by a bit": (
        lambda one: put("portfolio", 4, equity_usd=repr(up(float(one[0].portfolio[4]["equity_usd"]))))(one),
        "money", f"at {T0 + 301}",
    ),
    "a portfolio without its losses": (put("portfolio", 2, unrealized_pnl_usd="0.0"), "money", f"at {T0 + 101}"),
    "a fill missing": (drop("executions", 4), "positions", f"{ETH}: the fills sum up to -2.0, the position is -1.5"),
    "the first fill missing": (drop("executions", 0), "positions", f"{BTC}: the fills sum up to -1.0"),
    "a position off by a bit": (held(ETH, up), "positions", ETH),
    "a position of a symbol without a fill": (held(SOL, lambda _: 1.0), "positions", f"{SOL}: the fills sum up to 0.0"),
    "a position lost": (
        kept(held=lambda all_: {s: h for s, h in all_.items() if s != ETH}), "positions", "the position is 0.0",
    ),
    "a fill on the other side": (put("executions", 1, side="BUY"), "positions", f"{ETH}: the fills sum up to 2.5"),
    "a fill of a bit more": (put("executions", 1, filled_qty=repr(up(2.0))), "positions", ETH),
    "an issue too many": (counted(issued=1), "permits", "the streams tell of 8 permits"),
    "a consumption too many": (counted(consumed=1), "permits", "6 used up, 1 outstanding"),
    "a consumption for an issue": (counted(issued=1, consumed=1), "permits", "8 permits"),
    "a consumption for an expiry": (counted(consumed=1, expired=-1), "permits", "6 used up"),
    "an expiry too many": (counted(expired=1), "permits", "0 outstanding; the streams"),
    "an outstanding permit forgotten": (without("p8"), "permits", "0 outstanding"),
    "a permit not on record": (drop("events", 6), "permits", "7 permits"),
    "a consumption not on record": (put("results", 5, consumed="0"), "permits", "5 used up"),
    "a consumption that is only on record": (put("results", 6, consumed="1"), "permits", "7 used up"),
    "a permit consumed twice": (twice("results", 5), "permits", "7 used up"),
    "a consumption of no permit": (put("results", 5, plan_id="p99"), "permits", "6 used up"),
    "a fill of no permit": (put("executions", 0, plan_id="p99"), "fills", f"p99 of {BTC}: no permit"),
    "a fill without a plan": (put("executions", 0, plan_id=None), "fills", f"a fill without a plan of {BTC}"),
    "a permit of another symbol": (put("events", 1, symbol=SOL), "fills", f"p2 of {ETH}: no permit"),
    "a permit of less": (put("events", 1, computed_qty="1.99"), "fills", f"p2 of {ETH}: 2.0 is more"),
    "a permit of a little less": (
        put("events", 1, computed_qty=repr(2.0 / (1.0 + 2e-9))), "fills", f"p2 of {ETH}: 2.0 is more",
    ),
    "a close of more than its permit": (put("events", 4, computed_qty="0.49"), "fills", f"p5 of {ETH}: 0.5 is more"),
    "a permit of a lower notional": (
        put("events", 1, computed_notional=repr(math.nextafter(100.0, 0.0))), "fills", f"p2 of {ETH}: 2.0 is more",
    ),
    "a dearer open": (put("executions", 1, price="50.000001"), "fills", f"p2 of {ETH}: 2.0 is more"),
    "a permit filled twice": (put("executions", 2, plan_id="p1"), "fills", f"p1 of {BTC}: a second fill"),
    "a fill without a permit counted": (
        counted(without_permit=1), "fills", "1 without a permit, 0 above theirs, 0 not in the account were counted",
    ),
    "a fill above its permit counted": (
        counted(above_permit=1), "fills", "0 without a permit, 1 above theirs, 0 not in the account were counted",
    ),
    "a fill elsewhere counted": (
        counted(elsewhere=1), "fills", "0 without a permit, 0 above theirs, 1 not in the account were counted",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_seen(name: str) -> None:
    """By the check that is there for it, which says what is wrong."""
    change, check, said = FAULTS[name]
    found = red(change(sound()))
    assert check in found, found
    assert said in found[check]


FINE: dict[str, Callable[[Run], Run]] = {
    "rounding": kept(balance_usd=up, realised_usd=up, fees_usd=up),
    "a close at a better price than it was decided at": put("events", 3, computed_notional="1.0"),
    "rounding of a quantity": put("events", 1, computed_qty=repr(2.0 / (1.0 + 5e-10))),
    "a permit of more": put("events", 0, computed_qty="2.0", computed_notional="500.0"),
    "a permit told twice": twice("events", 0),
    "a symbol that is flat": held(SOL, lambda _: 0.0),
    "somebody else's number": put("executions", 0, pnl_usd="none"),
}


@pytest.mark.parametrize("name", FINE)
def test_what_is_no_fault_is_not_seen(name: str) -> None:
    """Rounding, and what no rule forbids."""
    assert red(FINE[name](sound())) == {}


# --- limits ----------------------------------------------------------------------------------------------------------

LIMITS: dict[str, tuple[Run, dict[str, Any], str]] = {
    "opens of 200 USD": (run((0, BTC, 2.0, 100.0)), {}, ""),
    "an open of more": (run((0, BTC, 2.0, 100.01)), {}, "p1 of BTCUSDT: 200.02 USD in one open, of 200"),
    "a close of more": (run((0, BTC, 1.0, 150.0), (60, BTC, -1.0, 250.0)), {}, ""),
    "two opens in five minutes": (run((0, BTC, 0.1, 9.0), (60, BTC, 0.1, 9.0)), {}, ""),
    "three": (run(*((60 * i, BTC, 0.1, 9.0) for i in range(3))), {}, "p3 of BTCUSDT: 3 opens in five minutes"),
    "three on their way through zero": (
        run((0, BTC, 0.1, 9.0), (60, BTC, -0.2, 9.0), (120, BTC, 0.15, 9.0)), {}, "3 opens in five minutes",
    ),
    "three, one of another symbol": (run((0, BTC, 0.1, 9.0), (60, ETH, 0.1, 9.0), (120, BTC, 0.1, 9.0)), {}, ""),
    "three, one a close": (run((0, BTC, 0.1, 9.0), (60, BTC, -0.05, 9.0), (120, BTC, 0.1, 9.0)), {}, ""),
    "three in five minutes to the microsecond": (
        run((0, BTC, 0.1, 9.0), (99, BTC, 0.1, 9.0), (300, BTC, 0.1, 9.0)), {}, "",
    ),
    "three in a microsecond less": (
        run((0, BTC, 0.1, 9.0), (99, BTC, 0.1, 9.0), (299.999999, BTC, 0.1, 9.0)), {}, "3 opens in five minutes",
    ),
    "three in an hour": (run(*((600 * i, BTC, 0.1, 9.0) for i in range(3))), {}, ""),
    "four in an hour": (run(*((600 * i, BTC, 0.1, 9.0) for i in range(4))), {}, "p4 of BTCUSDT: 4 opens in an hour"),
    "four in an hour to the microsecond": (run(*((1200 * i, BTC, 0.1, 9.0) for i in range(4))), {}, ""),
    "four in a microsecond less": (
        run(*((1199.9999996 * i, BTC, 0.1, 9.0) for i in range(4))), {}, "4 opens in an hour",
    ),
    "a cooldown to the microsecond": (run((0, BTC, 0.1, 9.0), (60, BTC, 0.1, 9.0)), {}, ""),
    "a cooldown broken": (
        run((0, BTC, 0.1, 9.0), (59.999999, BTC, 0.1, 9.0)), {}, "p2 of BTCUSDT: an open within the cooldown",
    ),
    "a cooldown after a close": (
        run((0, BTC, 0.2, 9.0), (100, BTC, -0.1, 9.0), (159, BTC, 0.1, 9.0)), {}, "p3 of BTCUSDT: an open within the",
    ),
    "a close within a cooldown": (run((0, BTC, 0.2, 9.0), (1, BTC, -0.1, 9.0), (2, BTC, -0.1, 9.0)), {}, ""),
    "a cooldown of another symbol": (run((0, BTC, 0.2, 9.0), (1, ETH, 0.1, 9.0)), {}, ""),
    "no cooldown": (run((0, BTC, 0.1, 9.0), (0, BTC, 0.1, 9.0)), {"symbol_cooldown_s": 0}, ""),
    "two positions": (run((0, BTC, 0.1, 9.0), (1, ETH, -0.1, 9.0)), {}, ""),
    "three positions": (
        run((0, BTC, 0.1, 9.0), (1, ETH, -0.1, 9.0), (2, SOL, 0.1, 9.0)), {}, "p3 of SOLUSDT: 3 positions, of 2",
    ),
    "a third where one was closed": (
        run((0, BTC, 0.1, 9.0), (1, ETH, -0.1, 9.0), (2, ETH, 0.1, 9.0), (3, SOL, 0.1, 9.0)), {}, "",
    ),
    "an add at the greatest number": (run((0, BTC, 0.1, 9.0), (60, BTC, 0.1, 9.0)), {"max_open_positions": 1}, ""),
    "a flip at the greatest number": (
        run((0, BTC, 0.1, 9.0), (1, ETH, 0.1, 9.0), (60, BTC, -0.2, 9.0)), {"max_open_positions": 2}, "",
    ),
    "all that may be held": (run((0, BTC, 2.0, 100.0), (1, ETH, 4.0, 50.0)), {}, ""),
    "a little more": (
        run((0, BTC, 2.0, 100.0), (2, ETH, 3.9, 50.0), (61, ETH, 0.11, 50.0)), {}, "p3 of ETHUSDT: 400.50 USD in all",
    ),
    "all that may be held, between two records": (
        run((0, BTC, 2.0, 100.0), (1, ETH, 4.0, 50.0), bars=False), {}, "",
    ),
    "a little more between two records": (
        run((0, BTC, 2.0, 100.0), (1, ETH, 3.0, 50.0), (61, ETH, 1.1, 50.0), bars=False), {},
        "p3 of ETHUSDT: 405.00 USD in all",
    ),
    "more, where some was closed in between": (
        run((0, BTC, 2.0, 100.0), (2, BTC, -2.0, 100.0), (70, BTC, 2.0, 100.0), (72, ETH, 4.0, 50.0)), {}, "",
    ),
    "a record of the very second counts": (
        run((0, BTC, 2.0, 100.0), (1.5, ETH, 2.0, 100.0), (60, BTC, -2.0, 100.0), (61, SOL, 2.0, 100.0)), {}, "",
    ),
    "what has grown by itself counts": (
        run((0, BTC, 1.0, 100.0), (60, BTC, 0.001, 301.0), (70, ETH, 1.0, 100.0)), {},
        "p3 of ETHUSDT: 401.30 USD in all",
    ),
}  # fmt: skip


CLOSES = [(60 * i, BTC, -0.1, 9.0) for i in range(1, 4)]
LIMITS |= {
    "closes of five minutes": (run((0, BTC, 1.0, 9.0), *CLOSES), {"max_close_per_5min": 3}, ""),
    "a close too many in five minutes": (
        run((0, BTC, 1.0, 9.0), *CLOSES), {"max_close_per_5min": 2},
        "p4 of BTCUSDT: 3 closes in an hour, 3 in 5 minutes",
    ),
    "closes of another symbol": (
        run((0, BTC, 1.0, 9.0), (0, ETH, 1.0, 9.0), *CLOSES[:2], (150, ETH, -0.1, 9.0)), {"max_close_per_5min": 2}, "",
    ),
    "three closes in five minutes to the microsecond": (
        run((0, BTC, 1.0, 9.0), *CLOSES[:2], (360, BTC, -0.1, 9.0)), {"max_close_per_5min": 2}, "",
    ),
    "three closes in a microsecond less": (
        run((0, BTC, 1.0, 9.0), *CLOSES[:2], (359.999999, BTC, -0.1, 9.0)), {"max_close_per_5min": 2},
        "p4 of BTCUSDT: 3 closes in an hour, 3 in 5 minutes",
    ),
    "closes of an hour": (
        run((0, BTC, 1.0, 9.0), *CLOSES[:2], (3660, BTC, -0.1, 9.0)), {"max_close_per_hour": 2}, "",
    ),
    "a close too many in an hour": (
        run((0, BTC, 1.0, 9.0), *CLOSES[:2], (3659.999999, BTC, -0.1, 9.0)), {"max_close_per_hour": 2},
        "p4 of BTCUSDT: 3 closes in an hour, 1 in 5 minutes",
    ),
}  # fmt: skip


def test_a_close_that_waited_keeps_the_window_of_its_permit() -> None:
    """Closes are never held back: three that are filled within five minutes, of permits that kept the window, are no
    fault; without what their events tell of the times of issue they are one."""
    records, account = run((0, BTC, 1.0, 9.0), (159, BTC, -0.1, 9.0), (200, BTC, -0.1, 9.0), (401, BTC, -0.1, 9.0))
    params = replace(PARAMS, max_close_per_5min=2)
    assert red((records, account), params).keys() == {"limits"}
    issued = {"p2": 100, "p3": 200, "p4": 401}
    events = tuple(
        {**e, **({"issued_us": str((T0 + issued[e["plan_id"]]) * US)} if e["plan_id"] in issued else {})}
        for e in records.events
    )
    assert red((replace(records, events=events), account), params) == {}


@pytest.mark.parametrize("name", LIMITS)
def test_limits_by_the_fills(name: str) -> None:
    """To their edges and no further; everything else about these runs is sound."""
    one, changed, said = LIMITS[name]
    found = red(one, replace(PARAMS, **changed))
    assert found.keys() == ({"limits"} if said else set())
    assert said in found.get("limits", "")


def test_the_limits_are_those_of_the_parameters() -> None:
    """Each by its own."""
    one = run((0, BTC, 1.0, 100.0), (100, BTC, 1.0, 100.0))
    for changed in (
        {"max_exec_per_hour": 1}, {"max_exec_per_5min": 1}, {"symbol_cooldown_s": 101}, {"max_open_positions": 0},
        {"max_notional_per_trade_usd": 99.9}, {"max_total_notional_usd": 199.9},
    ):  # fmt: skip
        assert red(one, replace(PARAMS, **changed)).keys() == {"limits"}, changed
        assert red(one) == {}


def test_what_was_not_filled_counts_for_no_limit() -> None:
    """Fates without a fill are passed over."""
    records, account = run((0, BTC, 2.0, 100.0))
    more = tuple({"plan_id": f"q{i}", "symbol": BTC, "executed": "false", "consumed": "0"} for i in range(9))
    assert red((replace(records, results=(*more, *records.results, *more)), account)) == {}


# --- the kill switch -------------------------------------------------------------------------------------------------

Change = tuple[float, str, str]
"""Seconds after the beginning, event and reason."""
TRADES = run(
    (0, BTC, 1.0, 100.0), (100, BTC, -0.2, 100.0), (200, ETH, 1.0, 50.0), (300, BTC, -0.2, 100.0), (400, BTC, 0.1, 90.0)
)
"""p1 opens, p2 closes a part, p3 opens, p4 closes a part, p5 opens."""
HALT, LATCH, OFF, REDUCE = ("KILL", "halt"), ("KILL", "latched"), ("KILL", "off"), ("KILL", "reduce")
REARM, DISARM = ("REARM", "rearm"), ("AUTO_DISARM", "burst_limit")


def switched(*changes: Change) -> Run:
    """The trades, with the switch moved in between."""
    told: list[Entry] = [
        {"event": event, "plan_id": "", "symbol": "", "reason": reason, "timestamp": str(math.floor(T0 + at))}
        for at, event, reason in changes
    ]
    return replace(TRADES[0], events=(*TRADES[0].events, *told)), TRADES[1]


KILLS: dict[str, tuple[tuple[Change, ...], str]] = {
    "never moved": ((), ""),
    "off": (((50, *OFF),), ""),
    "a halt after all": (((401, *HALT),), ""),
    "a close during a halt": (((50, *HALT),), "p2 of BTCUSDT was filled during a halt"),
    "an open during a halt": (((150, *HALT),), "p3 of ETHUSDT was filled during a halt"),
    "the last one": (((350, *HALT),), "p5 of BTCUSDT was filled during a halt"),
    "of the second of the halt": (((400, *HALT),), "p5 of BTCUSDT was filled during a halt"),
    "during a halt that a governor saw first": (((50, *LATCH),), "p2 of BTCUSDT was filled during a halt"),
    "off, but latched": (((101, *HALT), (102, *LATCH), (103, *OFF)), "p3 of ETHUSDT was filled during a halt"),
    "off, but not rearmed": (((101, *HALT), (103, *OFF)), "p3 of ETHUSDT was filled during a halt"),
    "reduce, but latched": (((201, *HALT), (203, *REDUCE)), "p4 of BTCUSDT was filled during a halt"),
    "off and rearmed": (((101, *HALT), (102, *LATCH), (103, *OFF), (104, *REARM)), ""),
    "rearmed and halted again": (
        ((101, *HALT), (103, *OFF), (104, *REARM), (250, *HALT)), "p4 of BTCUSDT was filled during a halt",
    ),
    "rearmed too late": (
        ((101, *HALT), (201, *OFF), (202, *REARM)), "p3 of ETHUSDT was filled during a halt",
    ),
    "a close while it reduces": (((50, *REDUCE), (150, *OFF)), ""),
    "an open while it reduces": (((50, *REDUCE),), "p3 of ETHUSDT was filled during REDUCE_ONLY"),
    "an open while it has disarmed itself": (((50, *DISARM),), "p3 of ETHUSDT was filled during REDUCE_ONLY"),
    "a close while it has disarmed itself": (((250, *DISARM), (350, *OFF)), ""),
    "an open after off": (((50, *DISARM), (150, *OFF)), ""),
    "an open after the second disarming": (
        ((50, *DISARM), (150, *OFF), (350, *DISARM)), "p5 of BTCUSDT was filled during REDUCE_ONLY",
    ),
    "a disarming does not end a halt": (((50, *HALT), (60, *DISARM)), "p2 of BTCUSDT was filled during a halt"),
    "disarmed, set to reduce": (((50, *DISARM), (60, *REDUCE)), "p3 of ETHUSDT was filled during REDUCE_ONLY"),
}  # fmt: skip


@pytest.mark.parametrize("name", KILLS)
def test_the_kill_switch_by_the_fills(name: str) -> None:
    """A halt lets nothing through until it is off and rearmed; what reduces goes through a switch at reduce."""
    changes, said = KILLS[name]
    assert red(switched(*changes)) == ({"kills": said} if said else {})
    if not said:
        assert conserve.kills(*switched(*changes)).detail == f"{len(changes)} changes of it, 5 fills"


# --- value by fills and candles --------------------------------------------------------------------------------------


class Bars:
    """Bars of an account without fees of its own: each its transfers, candles, fills and portfolio."""

    def __init__(self) -> None:
        """Nothing was looked at yet."""
        self.seen: list[tuple[Records, dict[str, float]]] = []

    def bar(
        self, equity_usd: float, closes: dict[str, float], *fills: tuple[str, float, float, float], paid: float = 0.0
    ) -> None:
        """A bar's portfolio and candles; symbol, signed quantity, price and fee of each fill; what is paid in."""
        n = len(self.seen)
        made: list[Entry] = [
            {"symbol": s, "filled_qty": repr(abs(q)), "side": "BUY" if q > 0.0 else "SELL", "price": repr(price),
             "fee_usd": repr(fee), "plan_id": f"p{n}-{i}"}
            for i, (s, q, price, fee) in enumerate(fills)
        ]  # fmt: skip
        state = {"timestamp": str(T0 + 60 * n), "equity_usd": repr(equity_usd)}
        moved: tuple[Entry, ...] = ({"usd": repr(paid)},) if paid else ()
        self.seen.append((Records((state,), executions=tuple(made), transfers=moved), closes))


def valued(seen: list[tuple[Records, dict[str, float]]]) -> conserve.Check:
    """What comes of some bars."""
    valuer = conserve.Valuer(1000.0)
    for records, closes in seen:
        valuer.look(records, closes)
    return valuer.check


def sound_bars() -> list[tuple[Records, dict[str, float]]]:
    """Opens, a part closed, a flip, a symbol without a candle for a bar, and money paid in and out; by hand."""
    b = Bars()
    b.bar(1000.0, {BTC: 100.0, ETH: 50.0}, (BTC, 2.0, 100.0, 1.0), (ETH, -1.0, 50.0, 0.5))
    b.bar(1014.5, {BTC: 110.0, ETH: 54.0}, (BTC, -1.0, 110.0, 0.5))  # 998.5 + 20 - 4
    b.bar(1024.0, {BTC: 120.0}, (ETH, 1.5, 54.0, 0.0), paid=500.0)  # 1014.0 + 10; ETH at its last
    b.bar(1521.0, {BTC: 115.0, ETH: 58.0}, paid=-200.0)  # 1024.0 + 500 - 5 + 0.5 x 4
    b.bar(1321.0, {BTC: 115.0, ETH: 58.0}, (BTC, -1.0, 115.0, 1.0), (ETH, -0.5, 58.0, 0.0))
    b.bar(1320.0, {BTC: 500.0, ETH: 1.0})
    return b.seen


def test_a_sound_account_is_what_fills_and_candles_come_to() -> None:
    """Bar by bar; a look without a portfolio, as the last one is, counts none."""
    wanted = conserve.Check(
        "equity by fills and candles", True, "6 portfolio records, every fill at the close of its bar"
    )
    assert valued(sound_bars()) == wanted
    assert valued([*sound_bars(), (Records(), {})]) == wanted
    assert valued([]).detail == "0 portfolio records, every fill at the close of its bar"


Bar = tuple[Records, dict[str, float]]


def at(bar: int, change: Callable[[Run], Run]) -> Callable[[list[Bar]], list[Bar]]:
    """One bar's records changed."""
    return lambda seen: [
        (change((records, Account()))[0], closes) if n == bar else (records, closes)
        for n, (records, closes) in enumerate(seen)
    ]


def candles(bar: int, **closes: float) -> Callable[[list[Bar]], list[Bar]]:
    """One bar's candles changed."""
    return lambda seen: [(r, {**told, **closes} if n == bar else told) for n, (r, told) in enumerate(seen)]


def paid_at(bar: int, *usd: str) -> Callable[[list[Bar]], list[Bar]]:
    """One bar's transfers replaced."""
    return at(bar, lambda one: (replace(one[0], transfers=tuple({"usd": u} for u in usd)), one[1]))


VALUES: dict[str, tuple[Callable[[list[Bar]], list[Bar]], str]] = {
    "equity off by a cent": (at(3, put("portfolio", 0, equity_usd="1521.01")), f"at {T0 + 180}: equity 1521.01, by"),
    "equity off at the first bar": (at(0, put("portfolio", 0, equity_usd="999.99")), f"at {T0}: equity 999.99, by"),
    "equity off at the last bar": (at(5, put("portfolio", 0, equity_usd="1320.1")), "by fills and candles 1320.0"),
    "a position without a fill": (at(0, drop("executions", 1)), f"at {T0 + 60}: equity 1014.5, by fills"),
    "a fill that is in no position": (at(1, twice("executions", 0)), f"at {T0 + 120}: equity 1024.0, by"),
    "a fill on the other side": (at(0, put("executions", 0, side="SELL")), f"at {T0 + 60}: equity"),
    "a fill of more": (at(0, put("executions", 0, filled_qty="2.01")), f"at {T0 + 60}: equity"),
    "a fill of another symbol": (at(0, put("executions", 0, symbol=ETH)), "p0-0 of ETHUSDT: filled at 100.0"),
    "a fee that was not paid": (at(0, put("executions", 0, fee_usd="0")), f"at {T0 + 60}: equity"),
    "a fill away from the close": (
        at(1, put("executions", 0, price="110.00000000000001")),
        "p1-0 of BTCUSDT: filled at 110.00000000000001, the close is 110.0",
    ),
    "a fill at the close before": (at(1, put("executions", 0, price="100.0")), "filled at 100.0, the close is 110.0"),
    "a fill without a price": (at(1, put("executions", 0, price=None)), "filled at 0.0, the close is 110.0"),
    "a fill of a symbol that never had a candle": (
        at(1, put("executions", 0, symbol=SOL)), "p1-0 of SOLUSDT: filled at 110.0, the close is None",
    ),
    "another candle": (candles(3, ETHUSDT=58.5), f"at {T0 + 180}: equity 1521.0, by fills and candles 1521.25"),
    "a candle where there was none": (candles(2, ETHUSDT=60.0), f"at {T0 + 120}: equity 1024.0, by"),
    "money that is nowhere told": (paid_at(2), f"at {T0 + 180}: equity 1521.0, by fills and candles 1021.0"),
    "money that is not there": (paid_at(1, "10"), f"at {T0 + 120}: equity 1024.0, by fills and candles 1034.0"),
    "money a bar too early": (
        lambda seen: paid_at(1, "500.0")(paid_at(2)(seen)), "1024.0, by fills and candles 1524.0",
    ),
    "money a bar too late": (
        lambda seen: paid_at(3, "300.0")(paid_at(2)(seen)), f"at {T0 + 180}: equity 1521.0, by",
    ),
    "money twice": (paid_at(2, "500.0", "500.0"), "by fills and candles 2021.0"),
}  # fmt: skip


@pytest.mark.parametrize("name", VALUES)
def test_a_value_that_is_not_that_of_fills_and_candles_is_seen(name: str) -> None:
    """The first one is told, with its time or its permit."""
    change, said = VALUES[name]
    found = valued(change(sound_bars()))
    assert found.name == "equity by fills and candles"
    assert not found.ok
    assert said in found.detail


RIGHT: dict[str, Callable[[list[Bar]], list[Bar]]] = {
    "rounding": at(3, put("portfolio", 0, equity_usd=repr(up(1521.0)))),
    "a symbol that nobody holds": candles(3, SOLUSDT=1.0),
    "a bar without a portfolio": at(2, drop("portfolio", 0)),
    "a portfolio told twice": at(2, twice("portfolio", 0)),
    "money in two parts": paid_at(2, "300.0", "200.0"),
    "a transfer that cannot be read": paid_at(1, "much"),
}


@pytest.mark.parametrize("name", RIGHT)
def test_a_value_that_is_right_stays_so(name: str) -> None:
    """Rounding, and what no equity hangs on."""
    assert valued(RIGHT[name](sound_bars())).ok


def test_the_first_wrong_value_is_remembered() -> None:
    """Whatever comes after it."""
    one, two = VALUES["a fill away from the close"][0], VALUES["equity off at the last bar"][0]
    assert valued(two(one(sound_bars()))).detail == valued(one(sound_bars())).detail


# --- records ---------------------------------------------------------------------------------------------------------

SHARED = qa.SharedInputs(T0, qa.fresh(qa.Portfolio(100_000.0, 0.1), T0), qa.fresh(qa.Regime("TREND", 0.9), T0))
CYCLE = qa.allocate_portfolio(
    [qa.SymbolInputs(s, qa.fresh(1820.93, T0), "C1", qa.fresh(0.5, T0)) for s in (BTC, ETH)], SHARED
)
TOP: Mapping[str, str] = qa.cycle_fields(CYCLE, "enforce")
DECISIONS = tuple(qa.decision_fields(d, TOP["cycle_id"], "enforce") for d in CYCLE.decisions)
PLAN = qa.Plan("p1", BTC, "ENTRY", T0, Side.BUY, 1.0, 100.0, 0.1)
SNAPSHOT = qa.Snapshot(
    T0 * US,
    totals=qa.fresh(qa.Totals(0.0, 0), T0),
    symbols={BTC: qa.SymbolSnapshot(qa.Ledger(), qa.fresh(qa.Holding(0.0, 100.0), T0))},
)


def verdict(**changed: Any) -> Entry:
    """A verdict's event with its whole record."""
    made = qa.decide(replace(PLAN, **changed, content=""), SNAPSHOT, PARAMS)
    assert isinstance(made, (qa.Permit, qa.Block))
    name = "PERMIT" if isinstance(made, qa.Permit) else "BLOCK"
    return {"event": name, **qa.governor_fields(made, PARAMS), "ts": str(T0)}


WHOLE = Records(
    cycles=(TOP,),
    decisions=DECISIONS,
    plans=({"plan_id": "p1", "qty": "of another program"},),
    events=(verdict(), verdict(qty=9.0), {"event": "REPLAY", "inputs": "?"}, {"event": "PERMIT", "plan_id": "p0"}),
    results=run((0, BTC, 1.0, 100.0), (60, BTC, -1.0, 110.0))[0].results,
)


def looked(*seen: Records) -> conserve.Check:
    """What comes of some records, one look after the other."""
    recomputer = Recomputer()
    for records in seen:
        recomputer.look(records)
    return recomputer.check


def test_records_that_are_whole_are_made_again() -> None:
    """Decisions with their cycles, verdicts and fates; what is no record of ours is not looked at."""
    assert [e["event"] for e in WHOLE.events[:2]] == ["PERMIT", "BLOCK"]
    assert looked() == conserve.Check("every decision recomputes", True, "0 records, bit for bit")
    assert looked(WHOLE) == conserve.Check("every decision recomputes", True, "6 records, bit for bit")
    assert looked(WHOLE, Records(), WHOLE).detail == "12 records, bit for bit"


ENDLESS = {
    stream: json.dumps({**json.loads(getattr(WHOLE, stream)[0]["inputs"]), "now_us": 10**400})
    for stream in ("events", "results")
}
WRONG: dict[str, tuple[Callable[[Run], Run], str]] = {
    "a digit of a target": (put("decisions", 1, target_usd=DECISIONS[1]["target_usd"][:-1] + "3"), "target_usd is"),
    "a digit of a base": (put("decisions", 0, base_usd="1820.94"), f"{BTC} at"),
    "a cycle that is not there": (drop("cycles", 0), f"{BTC} at ?: the record is \"KeyError: 'params'"),
    "a decision without a cycle": (put("decisions", 0, cycle_id=None), "KeyError"),
    "a cycle without an id": (put("cycles", 0, cycle_id=None), "KeyError"),
    "a quantity of a permit": (put("events", 0, computed_qty="1.1"), f"{BTC} at {T0}: computed_qty is '1.1', again"),
    "a reason of a block": (put("events", 1, reason="reduce_only"), "reason is 'reduce_only', again 'notional"),
    "an input of a verdict": (put("events", 1, inputs="{}"), "KeyError"),
    "a digit of a PnL": (put("results", 1, pnl_usd="10.1"), f"{BTC} at {T0 + 60}: pnl_usd is '10.1', again '10.0'"),
    "a factor of a fill": (put("results", 0, factor="0.5"), "factor is '0.5', again '1.0'"),
    "a fate that cannot be read": (put("results", 0, inputs="x"), "JSONDecodeError"),
    "a fate of a time without end": (put("results", 0, inputs=ENDLESS["results"]), "the record is"),
    "a verdict of a time without end": (put("events", 0, inputs=ENDLESS["events"]), "OverflowError"),
    "a fate of brackets": (put("results", 0, inputs="[" * 100_000), "the record is"),
    "a verdict of brackets": (put("events", 0, inputs="[" * 100_000), "RecursionError"),
    "a fate of other rules": (put("results", 0, rules="apply_v0"), "apply_v0"),
    "a fate without rules": (put("results", 0, rules=None), "KeyError"),
    "a plan of the desk": (put("plans", 0, desk="{}"), "KeyError"),
    **{
        f"something else among the {stream}": (
            lambda one, stream=stream: (replace(one[0], **{stream: ({"symbol": SOL},)}), one[1]),  # type: ignore[misc]
            f"{SOL} at ?: the record is \"KeyError: 'rules'",
        )
        for stream in ("attributions", "efficiencies", "proposals", "regimes")
    },
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_record_that_was_changed_is_seen(name: str) -> None:
    """One digit, or what cannot be read at all; it is named with its symbol and time."""
    change, said = WRONG[name]
    found = looked(change((WHOLE, Account()))[0])
    assert not found.ok
    assert said in found.detail


def test_the_first_wrong_record_is_remembered() -> None:
    """Whatever comes after it, wrong or right."""
    first, second = put("results", 1, pnl_usd="10.1"), put("results", 1, pnl_usd="10.2")
    found = looked(WHOLE, first((WHOLE, Account()))[0], second((WHOLE, Account()))[0], WHOLE)
    assert not found.ok
    assert "'10.1'" in found.detail
