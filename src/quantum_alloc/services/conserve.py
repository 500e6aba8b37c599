"""What must hold over any run, checked on what the run has put on record.

    money       balance = paid in + realised PnL - fees; equity = balance + unrealised PnL, in every portfolio record
    positions   the sum of all fills of a symbol, in their order, is its position, bit for bit
    permits     issued = consumed + expired + outstanding, as counted and as recounted from the streams
    fills       each has its permit, takes no more than that, and is the only one of it
    limits      no window, cooldown, notional or number of positions was exceeded, as computed from the fills
    value       each portfolio record is what fills and candles come to; each fill is at the close of its bar
    kill        nothing is filled during a halt, and no open while only what reduces is permitted
    records     every decision, verdict and fate of a permit is made again bit for bit

The checks look at records and at the account alone, and not at what services remember.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from quantum_alloc.adapters import codec
from quantum_alloc.adapters.apply_wire import Account
from quantum_alloc.adapters.run_records import Entry, Records
from quantum_alloc.core.governor_params import GovernorParams
from quantum_alloc.core.limits import BURST_S, HOUR_S, US
from quantum_alloc.core.reconcile import TOLERANCE
from quantum_alloc.core.record import differences

EXACT = 1e-9
"""Relative; what sums of floats in another order may differ by."""


@dataclass(frozen=True, slots=True)
class Check:
    """One check.

    Attributes:
        name: what was checked.
        ok: whether it holds.
        detail: figures where it holds, else the first thing that does not.
    """

    name: str
    ok: bool
    detail: str


def _near(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=EXACT, abs_tol=1e-6)


def _amount(entry: Entry, name: str) -> float:
    """A number of an entry that any program may have written; 0 where it tells none."""
    return codec.number(entry.get(name, "").encode()) or 0.0


def money(records: Records, account: Account) -> Check:
    """Money neither comes nor goes but by what is on record.

    Args:
        records: of the run.
        account: at its end.
    """
    pnl = math.fsum(_amount(e, "pnl_usd") for e in records.executions)
    fees = math.fsum(_amount(e, "fee_usd") for e in records.executions)
    due = account.paid_in_usd + pnl - fees
    name = "balance + unrealised = equity"
    if not (_near(account.balance_usd, due) and _near(account.realised_usd, pnl) and _near(account.fees_usd, fees)):
        return Check(name, False, f"the balance is {account.balance_usd!r} USD and comes to {due!r} by the fills")
    for state in records.portfolio:
        balance, open_pnl, equity = (float(state[n]) for n in ("balance_usd", "unrealized_pnl_usd", "equity_usd"))
        if balance + open_pnl != equity:
            return Check(name, False, f"at {state['timestamp']}: {balance!r} + {open_pnl!r} is not {equity!r}")
    paid = f"balance {account.balance_usd:,.2f} USD = {account.paid_in_usd:,.2f} paid in {pnl:+,.2f} realised"
    last = ""
    if records.portfolio:
        state = records.portfolio[-1]
        cash, open_pnl, equity = (float(state[n]) for n in ("balance_usd", "unrealized_pnl_usd", "equity_usd"))
        last = f"; at the last bar {cash:,.2f} {open_pnl:+,.2f} unrealised = {equity:,.2f}"
    return Check(name, True, f"{paid} {-fees:+,.2f} fees{last}")


def positions(records: Records, account: Account) -> Check:
    """The fills of a symbol sum up to its position.

    Args:
        records: of the run.
        account: at its end, opened flat.
    """
    name, sums = "sum of fills = position", defaultdict[str, float](float)
    for e in records.executions:
        sums[e.get("symbol", "")] += _amount(e, "filled_qty") * (1.0 if e.get("side") == "BUY" else -1.0)
    for symbol in sorted({*sums, *account.held}):
        held = account.held[symbol].qty if symbol in account.held else 0.0
        if sums[symbol] != held:
            return Check(name, False, f"{symbol}: the fills sum up to {sums[symbol]!r}, the position is {held!r}")
    return Check(name, True, f"{len(records.executions):,} fills of {len(sums)} symbols")


def _permits(records: Records) -> dict[str, Entry]:
    return {e["plan_id"]: e for e in records.events if e.get("event") == "PERMIT"}


def permits(records: Records, account: Account) -> Check:
    """Each permit is consumed, expired or outstanding.

    Args:
        records: of the run.
        account: at its end.
    """
    c, issued = account.permits.counts, _permits(records)
    used = [e["plan_id"] for e in records.results if e.get("consumed") == "1"]
    counted = f"{c.issued} = {c.consumed} consumed + {c.expired} expired + {c.outstanding} outstanding"
    still = sum(k.is_outstanding for k in account.permits.permits.values())
    ok = (len(issued), len(used), still) == (c.issued, c.consumed, c.outstanding) and issued.keys() >= {*used}
    recount = f"; the streams tell of {len(issued)} permits, {len(used)} used up, {still} outstanding"
    return Check("permits = consumed + expired + outstanding", ok, counted if ok else counted + recount)


def fills(records: Records, account: Account) -> Check:
    """Each fill has a permit of its own, and takes no more than that.

    Args:
        records: of the run.
        account: at its end.
    """
    name, issued, seen = "every fill has its permit", _permits(records), set[str]()
    c = account.permits.counts
    for e in records.executions:
        plan_id, qty, symbol = e.get("plan_id", ""), _amount(e, "filled_qty"), e.get("symbol", "")
        permit = issued.get(plan_id)
        if permit is None or permit["symbol"] != symbol or plan_id in seen:
            why = "a second fill of its permit" if plan_id in seen else "no permit"
            return Check(name, False, f"{plan_id or 'a fill without a plan'} of {symbol}: {why}")
        seen.add(plan_id)
        most_usd = float(permit["computed_notional"]) if permit["movement"] == "open" else math.inf
        if qty > float(permit["computed_qty"]) * (1.0 + TOLERANCE) or qty * _amount(e, "price") > most_usd:
            return Check(name, False, f"{plan_id} of {symbol}: {qty!r} is more than its permit")
    if c.is_wrong:
        counted = (
            f"{c.without_permit} without a permit, {c.above_permit} above theirs, {c.elsewhere} not in the account"
        )
        return Check(name, False, f"{counted} were counted")
    return Check(name, True, f"{len(seen):,} fills, none above its permit")


class Recomputer:
    """Makes records again as they come, and remembers the first that is not the same."""

    def __init__(self) -> None:
        """Nothing was looked at yet."""
        self._done = 0
        self._wrong = ""

    def look(self, records: Records) -> None:
        """Make some records again.

        Args:
            records: decisions with their cycles, and what stands alone.
        """
        cycles = {c.get("cycle_id", ""): c for c in records.cycles}
        for decision in records.decisions:
            self._one(cycles.get(decision.get("cycle_id", ""), {}), decision)
        for alone in (records.attributions, records.efficiencies, records.proposals, records.regimes, records.results):
            for told in alone:
                self._one(told)
        for told in records.plans:
            if "desk" in told:
                self._one(told)
        for told in records.events:
            if told.get("event") in ("PERMIT", "BLOCK") and "inputs" in told:
                self._one(told)

    def _one(self, *told: Entry) -> None:
        self._done += 1
        try:
            wrong: Mapping[str, tuple[str, str]] = differences(*told)
        except (ValueError, KeyError, TypeError, ArithmeticError, RecursionError) as error:
            wrong = {"the record": (f"{type(error).__name__}: {error}", "nothing")}
        if wrong and not self._wrong:
            name, (was, now) = next(iter(wrong.items()))
            self._wrong = f"{told[-1].get('symbol', '')} at {told[-1].get('ts', '?')}: {name} is {was!r}, again {now!r}"

    @property
    def check(self) -> Check:
        """What came of it."""
        return Check(
            "every decision recomputes", not self._wrong, self._wrong or f"{self._done:,} records, bit for bit"
        )


class Valuer:
    """The account from fills and candles alone, bar by bar, against the portfolio on record."""

    def __init__(self, balance_usd: float) -> None:
        """An account without positions.

        Args:
            balance_usd: that it is opened with.
        """
        self._balance, self._paid = balance_usd, 0.0
        self._qty = defaultdict[str, float](float)
        self._marks: dict[str, float] = {}
        self._done = 0
        self._wrong = ""

    def look(self, records: Records, closes: Mapping[str, float]) -> None:
        """One bar: the portfolio is published before anything is filled.

        Args:
            records: of the bar.
            closes: by symbol.
        """
        self._balance += self._paid
        self._marks.update(closes)
        value = math.fsum(qty * self._marks[s] for s, qty in self._qty.items() if qty)
        for state in records.portfolio:
            self._done += 1
            equity = float(state["equity_usd"])
            if not _near(equity, self._balance + value):
                self._note(
                    f"at {state['timestamp']}: equity {equity!r}, by fills and candles {self._balance + value!r}"
                )
        for e in records.executions:
            symbol, price = e.get("symbol", ""), _amount(e, "price")
            if price != self._marks.get(symbol):
                self._note(
                    f"{e.get('plan_id', '')} of {symbol}: filled at {price!r}, the close is {self._marks.get(symbol)!r}"
                )
            qty = _amount(e, "filled_qty") * (1.0 if e.get("side") == "BUY" else -1.0)
            self._qty[symbol] += qty
            self._balance -= qty * price + _amount(e, "fee_usd")
            self._marks.setdefault(symbol, price)
        self._paid = math.fsum(_amount(t, "usd") for t in records.transfers)

    def _note(self, what: str) -> None:
        self._wrong = self._wrong or what

    @property
    def check(self) -> Check:
        """What came of it."""
        told = self._wrong or f"{self._done:,} portfolio records, every fill at the close of its bar"
        return Check("equity by fills and candles", not self._wrong, told)


def kills(records: Records, _: Account) -> Check:
    """Nothing is filled during a halt, and no open while only what reduces is permitted.

    Args:
        records: of the run.
    """
    name, halted, reduced = "the kill switch holds", False, False
    changes = [e for e in records.events if e.get("event") in ("KILL", "REARM", "AUTO_DISARM")]
    fills = [e for e in records.results if e.get("executed") == "true"]
    at = 0
    opens = {p for p, e in _permits(records).items() if e.get("movement") == "open"}
    for fill in fills:
        while at < len(changes) and int(changes[at]["timestamp"]) <= int(fill["timestamp"]):
            event, reason = changes[at]["event"], changes[at].get("reason", "")
            halted = (halted or reason in ("halt", "latched")) and event != "REARM"
            reduced = event == "AUTO_DISARM" or (reduced and event != "KILL") or reason == "reduce"
            at += 1
        if halted or (reduced and fill["plan_id"] in opens):
            state = "a halt" if halted else "REDUCE_ONLY"
            return Check(name, False, f"{fill['plan_id']} of {fill['symbol']} was filled during {state}")
    return Check(name, True, f"{len(changes)} changes of it, {len(fills):,} fills")


def limits(records: Records, params: GovernorParams) -> Check:
    """No limit of opens was exceeded, as computed from the fills.

    Args:
        records: of the run.
        params: of the governor.
    """
    name, p = "no limit exceeded by the fills", params
    held, opens = defaultdict[str, float](float), defaultdict[str, list[int]](list)
    closes, issued = defaultdict[str, list[int]](list), _permits(records)
    last = dict[str, int]()
    bars = sorted((int(s["timestamp"]), float(s["positions_notional_usd"])) for s in records.portfolio)
    at, added, before = -1, 0.0, 0.0
    for e in (e for e in records.results if e.get("executed") == "true"):
        symbol, now_us, usd = e["symbol"], int(e["consumed_us"]), float(e["filled_qty"]) * float(e["price"])
        after = float(e["position_after"])
        is_open = abs(after) > abs(held[symbol]) or after * held[symbol] < 0.0
        while at + 1 < len(bars) and bars[at + 1][0] * US <= now_us:
            at, added = at + 1, 0.0
            before = bars[at][1]
        was, held[symbol] = held[symbol], after
        if not is_open:
            last[symbol] = now_us
            # closes are never held back, so that their windows are those of their permits
            issued_us = int(issued.get(e["plan_id"], {}).get("issued_us") or now_us)
            closes[symbol] = times = sorted([*closes[symbol], issued_us])
            hour, burst = _within(times, HOUR_S), _within(times, BURST_S)
            if hour > p.max_close_per_hour or burst > p.max_close_per_5min:
                return Check(name, False, f"{e['plan_id']} of {symbol}: {hour} closes in an hour, {burst} in 5 minutes")
            continue
        added += usd
        times = [*opens[symbol], now_us]
        opens[symbol] = times
        count = sum(qty != 0.0 for qty in held.values())
        broken = {
            f"{usd:.2f} USD in one open, of {p.max_notional_per_trade_usd:g}": usd > p.max_notional_per_trade_usd,
            f"{count} positions, of {p.max_open_positions}": count > p.max_open_positions and was == 0.0,
            f"{before + added:.2f} USD in all, of {p.max_total_notional_usd:g}": before + added
            > p.max_total_notional_usd * (1.0 + EXACT),
            f"{_within(times, HOUR_S)} opens in an hour": _within(times, HOUR_S) > p.max_exec_per_hour,
            f"{_within(times, BURST_S)} opens in five minutes": _within(times, BURST_S) > p.max_exec_per_5min,
            "an open within the cooldown": symbol in last and now_us - last[symbol] < p.symbol_cooldown_s * US,
        }
        last[symbol] = now_us
        for what, is_broken in broken.items():
            if is_broken:
                return Check(name, False, f"{e['plan_id']} of {symbol}: {what}")
    n = sum(map(len, opens.values()))
    return Check(name, True, f"{n:,} opens within windows, cooldown, notional, positions and total")


def _within(times: list[int], window_s: int) -> int:
    return sum(t > times[-1] - window_s * US for t in times)


def checks(records: Records, account: Account, params: GovernorParams) -> tuple[Check, ...]:
    """All of them but the recomputing.

    Args:
        records: of the run; of decisions none are looked at.
        account: at its end, opened flat.
        params: of the governor.
    """
    return (
        money(records, account),
        positions(records, account),
        permits(records, account),
        fills(records, account),
        limits(records, params),
        kills(records, account),
    )
