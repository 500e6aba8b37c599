"""The apply layer over a real server: permits of a real governor in, fills, positions, balance and reports out."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from quantum_alloc.adapters.candles import Candle, Step
from quantum_alloc.adapters.clock import SetClock
from quantum_alloc.adapters.embedded import EmbeddedServer
from quantum_alloc.adapters.keys import LIVE, ShadowKeys
from quantum_alloc.adapters.metrics import Metrics
from quantum_alloc.adapters.permits import SigningKey
from quantum_alloc.adapters.store import Store, StoreError
from quantum_alloc.adapters.writes import Target
from quantum_alloc.core import GovernorParams
from quantum_alloc.core.limits import US
from quantum_alloc.core.paper import Book
from quantum_alloc.core.record_apply import applied, apply_fields, apply_params
from quantum_alloc.services import apply, feed, kill_switch
from quantum_alloc.services.cli import main
from quantum_alloc.services.loop import Loop
from tests.support import applying as ap
from tests.support import governing as gov
from tests.support.applying import NOW, Venue
from tests.support.worlds import Client

BTC, ETH = "BTCUSDT", "ETHUSDT"
NEW, OLD, OTHER = (SigningKey(n, f"{n}-canary-canary-canary".encode()) for n in ("new", "old", "other"))
Maker = Callable[..., Venue]


def maker(server: EmbeddedServer, client: Client, directory: Path) -> Iterator[Maker]:
    """Makes venues over a server, and lets go of them."""
    made: list[Venue] = []

    def make(**settings: Any) -> Venue:
        one = Venue(server, client, directory / str(len(made)), SetClock(NOW), **settings)
        made.append(one)
        return one

    yield make
    for one in made:
        one.close()


@pytest.fixture
def venues(one_server: EmbeddedServer, one_client: Client, tmp_path: Path) -> Iterator[Maker]:
    """Venues over a server."""
    yield from maker(one_server, one_client, tmp_path)


@pytest.fixture
def venue(venues: Maker) -> Venue:
    """A server, a governor and an apply layer whose account is open; BTC at 100 USD."""
    return started(venues())


@pytest.fixture
def each(any_server: EmbeddedServer, client: Client, tmp_path: Path) -> Iterator[Venue]:
    """The same over a server of each kind."""
    for make in maker(any_server, client, tmp_path):
        yield started(make())


def started(one: Venue) -> Venue:
    """With an open account and prices."""
    one.price(BTC, 100.0)
    one.price(ETH, 50.0)
    one.apply.settle()
    return one


def last(client: Client) -> dict[str, str]:
    """The newest result."""
    return ap.results(client)[-1]


# ---- fills, positions, balance


def test_a_position_from_its_opening_to_a_flip(each: Venue) -> None:
    """Open, add, partial close, full close, flip: quantity, entry, PnL, fee and balance by hand; no PnL for what only
    opens; the permit is gone, and the record gives its fate again."""
    client, usd = each.client, ap.EQUITY_USD
    first = each.filled("p1", BTC, qty=2)
    assert (first["side"], first["filled_qty"], first["price"], first["signal"]) == ("BUY", "2.0", "100.0", "ENTRY")
    assert "pnl_usd" not in first, "an open has no PnL"
    assert float(first["fee_usd"]) == pytest.approx(0.08)
    usd -= 0.08
    assert client.exists(LIVE.permit("p1")) == 0
    assert ap.balance(client) == pytest.approx(usd)
    each.wait(2)
    each.price(BTC, 110.0)
    added = each.filled("p2", BTC, qty=2)
    assert "pnl_usd" not in added
    usd -= 0.088
    held = ap.position(client, BTC)
    assert (held["position_amt"], held["entry_price"], held["mark_price"]) == (4.0, 105.0, 110.0)
    assert (held["unrealized_pnl"], held["leverage"], held["opened_ts"], held["next_open_ts"]) == (20.0, 1.0, NOW, 0.0)
    assert held["ts_epoch"] == held["ts"] == each.now
    each.wait(2)
    each.price(BTC, 115.0)
    part = each.filled("p3", BTC, "PARTIAL_25")
    assert (part["side"], part["filled_qty"], part["pnl_usd"]) == ("SELL", "1.0", "10.0")
    usd += 10.0 - 0.046
    assert ap.position(client, BTC)["entry_price"] == 105.0, "the entry of what is left stays"
    each.wait(2)
    whole = each.filled("p4", BTC, "FULL_CLOSE_PROPOSED")
    assert (whole["side"], whole["filled_qty"], whole["pnl_usd"]) == ("SELL", "3.0", "30.0")
    usd += 30.0 - 3 * 0.046
    assert ap.position(client, BTC)["position_amt"] == ap.position(client, BTC)["entry_price"] == 0.0
    each.wait(2)
    each.filled("p5", BTC, side="SELL", qty=1)
    usd -= 0.046
    each.wait(2)
    each.price(BTC, 100.0)
    flip = each.filled("p6", BTC, qty=3)
    assert (flip["side"], flip["filled_qty"], flip["pnl_usd"]) == ("BUY", "3.0", "15.0")
    usd += 15.0 - 0.12
    held = ap.position(client, BTC)
    assert (held["position_amt"], held["entry_price"], held["opened_ts"]) == (2.0, 100.0, float(int(each.now)))
    assert ap.balance(client) == pytest.approx(usd)
    a = ap.account(client)
    assert a.realised_usd == pytest.approx(55.0)
    assert a.paid_in_usd == ap.EQUITY_USD
    c = a.permits.counts
    assert (c.issued, c.consumed, c.expired, c.fills, c.without_permit, c.above_permit) == (6, 6, 0, 6, 0, 0)
    ap.check(client)
    for record in ap.results(client):
        again = apply_fields(applied(record), apply_params(record))
        assert {n: record[n] for n in again} == again, "made again from its record"


def test_fills_are_executions_for_attribution_and_efficiency(each: Venue) -> None:
    """The entries decode as executions: symbol, time, PnL, and the labels of that moment."""
    each.client.xadd(LIVE.stream("regime.state"), {"regime": "TREND", "confidence": "0.8", "timestamp": str(int(NOW))})
    each.client.hset(LIVE.clusters, "c1", json.dumps([BTC]))
    each.filled("p1", BTC)
    each.wait(2)
    each.price(BTC, 90.0)
    each.filled("p2", BTC, "PARTIAL_50")
    opened, closed = ap.executions(each.client, each.now)
    assert (opened.symbol, opened.ts, opened.pnl_usd) == (BTC, NOW, None)
    assert (opened.regime, opened.cluster, opened.signal) == ("TREND", "c1", "ENTRY")
    assert (closed.ts, closed.pnl_usd, closed.signal) == (NOW + 2, -5.0, "PARTIAL_50")


def test_marks_are_written_again_without_events(venue: Venue) -> None:
    """Positions and balance stay fresh although nothing happens; a price that has grown old leaves the position to
    grow old too; one that is flat and without a price goes away."""
    client = venue.client
    venue.filled("p1", BTC, qty=2)
    venue.wait(6)
    venue.price(BTC, 130.0)
    venue.apply.settle()
    held = ap.position(client, BTC)
    assert (held["ts_epoch"], held["mark_price"], held["unrealized_pnl"]) == (int(NOW) + 6, 130.0, 60.0)
    assert client.hget(LIVE.balance, "timestamp") == str(int(NOW) + 6)
    seen = venue.now
    venue.clock.set(venue.now + 61)  # type: ignore[union-attr]  # the price is old from here on
    venue.apply.settle()
    assert ap.position(client, BTC)["ts_epoch"] == seen
    assert client.hget(LIVE.balance, "timestamp") == str(int(venue.now))
    venue.wait(6)
    venue.apply.settle()
    venue.wait(1)
    venue.filled("p2", BTC, "FULL_CLOSE_PROPOSED")
    assert ap.position(client, BTC)["position_amt"] == 0.0
    venue.clock.set(venue.now + 61)  # type: ignore[union-attr]
    venue.apply.settle()
    assert client.exists(LIVE.position(BTC)) == 0
    ap.check(client)


def test_marks_are_not_written_before_they_are_due(venue: Venue) -> None:
    """Cycles between two marks write nothing at all."""
    venue.filled("p1", BTC)
    before = venue.client.hget(LIVE.apply_state, "_rev")
    venue.wait(4.9)
    for _ in range(5):
        assert venue.apply.once()
    assert venue.client.hget(LIVE.apply_state, "_rev") == before
    venue.wait(0.1)
    assert venue.apply.once()
    assert int(venue.client.hget(LIVE.apply_state, "_rev")) == int(before) + 1


def test_the_governor_sees_what_was_consumed(venue: Venue) -> None:
    """The book holds the time of consumption, its revision is raised, and once position and portfolio are newer the
    governor lets the open go; a close is not in the book."""
    client = venue.client
    venue.permit("p1", BTC)
    assert gov.book(client)["p1"].consumed_us == 0
    revision = int(client.hget(LIVE.book, ":rev"))
    venue.apply.settle()
    assert gov.book(client)["p1"].consumed_us == round(NOW * US)
    assert int(client.hget(LIVE.book, ":rev")) == revision + 1
    venue.permit("p2", ETH)
    assert set(gov.book(client)) == {"p1", "p2"}, "the portfolio is not newer yet"
    venue.wait(6)
    venue.apply.settle()
    venue.wait(1)
    venue.permit("p3", ETH, qty=2)
    assert set(gov.book(client)) == {"p2", "p3"}, "the position of p2 is not newer than its consumption"
    revision = int(client.hget(LIVE.book, ":rev"))
    venue.permit("p4", BTC, "FULL_CLOSE_PROPOSED")
    assert "p4" not in gov.book(client)
    ap.check(client)


# ---- kill switch


def set_kill(client: Client, state: str) -> None:
    """The kill switch at HALT, each way that it can be."""
    client.delete(LIVE.kill, LIVE.latch)
    if state == "latch":
        client.hset(LIVE.latch, mapping={"state": "HALT", "since": "1", "by": "x", "why": "y"})
    elif state == "a latch of another type":
        client.set(LIVE.latch, "x")
    elif state == "another type":
        client.hset(LIVE.kill, "a", "b")
    else:
        client.set(LIVE.kill, state)


HALTS = ("1", "true", "on", "halt", "OFF", "maybe", "latch", "a latch of another type", "another type")


@pytest.mark.parametrize("state", HALTS)
def test_at_halt_nothing_is_consumed(state: str, venue: Venue) -> None:
    """(26) At HALT, by key or latch, of whatever content, permits wait, closes too; after the rearm they are filled
    within their life, each once."""
    client = venue.client
    venue.filled("p0", BTC)
    venue.wait(1)
    venue.permit("p1", BTC)
    venue.permit("p2", ETH)
    venue.permit("p3", BTC, "PARTIAL_50")
    set_kill(client, state)
    before = ap.account(client)
    venue.apply.settle()
    assert set(ap.permits(client)) == {"p1", "p2", "p3"}
    assert len(ap.fills(client)) == 1
    assert venue.apply.metrics.value("quantum_alloc_kill_state", "HALT") == 1.0
    assert venue.apply.metrics.value("quantum_alloc_permits_waiting") == 3.0
    venue.wait(6)
    venue.apply.settle()
    assert ap.account(client).balance_usd == before.balance_usd
    assert client.hget(LIVE.balance, "timestamp") == str(int(venue.now)), "it is halted, not dead"
    client.delete(LIVE.kill)
    gov.rearm(client, venue.now)
    venue.apply.settle()
    assert [f["plan_id"] for f in ap.fills(client)] == ["p0", "p1", "p2", "p3"]
    assert last(client)["waited_for"] == "kill_switch_active"
    ap.check(client)


def test_what_waited_at_halt_too_long_expires(venue: Venue) -> None:
    """(26) A permit whose life ends at HALT is reported as expired, with what it waited for."""
    venue.permit("p1", BTC)
    set_kill(venue.client, "1")
    venue.apply.settle()
    venue.wait(60)
    venue.apply.settle()
    gov.rearm(venue.client, venue.now)
    venue.client.delete(LIVE.kill)
    venue.apply.settle()
    (told,) = ap.results(venue.client)
    assert (told["error"], told["waited_for"], told["consumed"]) == ("permit_expired", "kill_switch_active", "0")
    assert ap.fills(venue.client) == []


def test_at_reduce_only_closes_go_on(venue: Venue) -> None:
    """(26) At REDUCE_ONLY opens wait and closes are filled; afterwards the opens are."""
    client = venue.client
    venue.filled("p0", BTC, qty=4)
    venue.wait(1)
    venue.permit("p1", ETH)
    venue.permit("p2", BTC, "PARTIAL_50")
    client.set(LIVE.kill, "reduce")
    venue.apply.settle()
    assert ap.fates(client) == {"p0": "filled", "p2": "filled"}
    assert venue.apply.metrics.value("quantum_alloc_kill_state", "REDUCE_ONLY") == 1.0
    client.set(LIVE.kill, "off")
    venue.apply.settle()
    assert ap.fates(client) == {"p0": "filled", "p2": "filled", "p1": "filled"}
    assert last(client)["waited_for"] == "reduce_only"
    ap.check(client)


# ---- modes


def test_dry_run_consumes_and_does_not_fill(venues: Maker) -> None:
    """In dry_run a permit is used up, nothing is filled, and the governor gets its room back."""
    venue = started(venues_of(venues, GovernorParams(apply_mode="dry_run"), "dry_run"))
    venue.permit("p1", BTC)
    venue.apply.settle()
    (told,) = ap.results(venue.client)
    assert (told["fate"], told["error"], told["consumed"], told["executed"]) == ("void", "dry_run", "1", "false")
    assert venue.client.exists(LIVE.permit("p1")) == 0
    assert gov.book(venue.client)["p1"].consumed_us > 0
    assert ap.fills(venue.client) == []
    assert ap.position(venue.client, BTC) == {}
    ap.check(venue.client)


def venues_of(venues: Maker, params: Any, mode: str) -> Venue:
    """A venue whose governor and apply layer have modes of their own."""
    one = venues(params=params)
    one.apply.crash()
    one.apply = one.another(params=ap.production(apply_mode=mode))
    return one


@pytest.mark.parametrize(
    ("of_governor", "of_apply"),
    [("production", "dry_run"), ("production", "testnet"), ("testnet", "production"), ("dry_run", "production")],
)
def test_a_permit_of_another_mode_is_refused(of_governor: str, of_apply: str, venues: Maker) -> None:
    """It is reported once and left to expire: the key stands, nothing is filled, and it is expired in the end."""
    venue = started(venues_of(venues, GovernorParams(apply_mode=of_governor), of_apply))
    venue.permit("p1", BTC)
    for _ in range(3):
        venue.apply.settle()
        venue.wait(6)
    assert ap.fates(venue.client) == {"p1": "mode_mismatch"}
    assert set(ap.permits(venue.client)) == {"p1"}
    assert ap.account(venue.client).permits.counts.outstanding == 1
    venue.wait(60)
    venue.apply.settle()
    c = ap.account(venue.client).permits.counts
    assert (c.issued, c.consumed, c.expired, c.outstanding) == (1, 0, 1, 0)
    assert ap.fates(venue.client) == {"p1": "mode_mismatch"}
    ap.check(venue.client)


# ---- the end of a permit


@pytest.mark.parametrize("away_s", [60, 62, 65, 66, 600, 7200])
def test_a_permit_that_nobody_took_in_time_is_reported_once(away_s: int, venue: Venue) -> None:
    """Expired while the apply layer was there, away for a while, or away for long: one result, never a fill."""
    venue.permit("p1", BTC)
    venue.wait(away_s)
    for _ in range(3):
        venue.apply.settle()
        venue.wait(6)
    assert ap.fates(venue.client) == {"p1": "permit_expired"}
    assert last(venue.client)["fate"] == "expired"
    assert ap.fills(venue.client) == []
    venue.wait(10)
    venue.apply.settle()
    c = ap.account(venue.client).permits.counts
    assert (c.issued, c.consumed, c.expired, c.outstanding) == (1, 0, 1, 0)
    assert venue.apply.metrics.value("quantum_alloc_permits_expired_total") == 1.0


@pytest.mark.parametrize("away_s", [60, 66, 7200])
def test_a_permit_that_waited_is_reported_though_the_layer_was_away(away_s: int, venue: Venue) -> None:
    """It was seen, it waited for a price, and the apply layer was away when its life ended."""
    venue.client.delete(LIVE.market(BTC))
    venue.prices.pop(BTC)
    venue.permit("p1", BTC)
    venue.apply.settle()
    assert ap.fates(venue.client) == {}
    venue.wait(away_s)
    again = venue.another()
    again.settle()
    again.crash()
    assert ap.fates(venue.client) == {"p1": "permit_expired"}
    assert last(venue.client)["waited_for"] == "price_unknown"


def test_a_permit_that_somebody_deleted(venue: Venue) -> None:
    """Gone before its time: reported once, not filled, not consumed."""
    venue.permit("p1", BTC)
    venue.client.delete(LIVE.permit("p1"))
    venue.apply.settle()
    venue.wait(6)
    venue.apply.settle()
    assert ap.fates(venue.client) == {"p1": "permit_gone"}
    assert last(venue.client)["consumed"] == "0"
    ap.check(venue.client)


def test_no_price_waits_then_fills(venue: Venue) -> None:
    """A permit without a fresh price waits, and is filled at the first one; an old one does not count."""
    client = venue.client
    del venue.prices[BTC]
    client.delete(LIVE.market(BTC))
    venue.permit("p1", BTC)
    venue.apply.settle()
    gov.market(client, BTC, 100.0, venue.now - 61)
    venue.wait(2)
    venue.apply.settle()
    assert set(ap.permits(client)) == {"p1"}
    assert venue.apply.loop.cycle.wait_s is not None
    assert 0.0 < venue.apply.loop.cycle.wait_s(0.0) <= 1.0, "it looks again soon, and not at once"
    venue.price(BTC, 99.0)
    venue.apply.settle()
    assert ap.fates(client) == {"p1": "filled"}
    assert (last(client)["price"], last(client)["waited_for"]) == ("99.0", "price_unknown")
    ap.check(client)


def test_a_dearer_market_buys_less(venue: Venue) -> None:
    """The notional that was permitted is never exceeded at the price that is paid."""
    venue.permit("p1", BTC, qty=2)
    venue.price(BTC, 130.0)
    venue.apply.settle()
    (fill,) = ap.fills(venue.client)
    assert float(fill["filled_qty"]) < 2
    assert 199.999 < float(fill["filled_qty"]) * 130.0 <= 200.0


def test_a_close_of_what_is_already_flat(venue: Venue) -> None:
    """Two closes were permitted before the first was filled: the second is used up and closes nothing."""
    venue.filled("p0", BTC)
    venue.wait(1)
    venue.permit("p1", BTC, "FULL_CLOSE_PROPOSED")
    venue.permit("p2", BTC, "FULL_CLOSE_PROPOSED")
    venue.apply.settle()
    assert ap.fates(venue.client) == {"p0": "filled", "p1": "filled", "p2": "nothing_to_close"}
    assert ap.position(venue.client, BTC)["position_amt"] == 0.0
    ap.check(venue.client)


def test_plans_of_one_symbol_in_one_batch(venue: Venue) -> None:
    """Filled in the order in which they were permitted, each on what the one before has left."""
    venue.filled("p0", BTC)
    venue.wait(1)
    for plan_id, action in (("b", "ENTRY"), ("a", "PARTIAL_50"), ("c", "ENTRY"), ("0", "PARTIAL_50")):
        venue.permit(plan_id, BTC, action)
    venue.apply.settle()
    assert [f["plan_id"] for f in ap.fills(venue.client)] == ["p0", "b", "a", "c", "0"]
    assert [float(r["position_after"]) for r in ap.results(venue.client)] == [1.0, 2.0, 1.5, 2.5, 2.0]
    ap.check(venue.client)


# ---- signatures


@pytest.mark.parametrize(
    ("signs", "knows", "fate"),
    [
        ((), (NEW,), "bad_permit"),
        ((OTHER,), (NEW, OLD), "bad_permit"),
        ((OLD,), (NEW, OLD), "filled"),
        ((NEW, OLD), (NEW, OLD), "filled"),
        ((NEW,), (SigningKey("new", b"another secret of that name"),), "bad_permit"),
        ((NEW,), (), "filled"),
    ],
)
def test_signed_permits(signs: tuple[SigningKey, ...], knows: tuple[SigningKey, ...], fate: str, venues: Maker) -> None:
    """(36) Only what a known key signed is filled, the old one included; without keys anything is."""
    venue = started(venues(signing=signs, keys=knows))
    venue.permit("p1", BTC)
    venue.apply.settle()
    assert ap.fates(venue.client) == {"p1": fate}
    assert bool(ap.permits(venue.client)) == (fate == "bad_permit"), "what is refused is left to expire"
    ap.check(venue.client)


def test_a_permit_with_any_byte_changed_is_refused(venues: Maker) -> None:
    """(36) Each byte in turn: none is filled."""
    venue = started(venues(signing=(NEW,), keys=(NEW, OLD)))
    venue.permit("p0", BTC)
    raw = venue.client.get(LIVE.permit("p0"))
    for n, at in enumerate(range(0, len(raw), max(1, len(raw) // 60)), 1):
        plan_id = f"p{n}"
        venue.permit(plan_id, BTC)
        told = venue.client.get(LIVE.permit(plan_id))
        flipped = chr(ord(told[at]) ^ 1)
        venue.client.set(LIVE.permit(plan_id), told[:at] + flipped + told[at + 1 :])
    venue.apply.settle()
    fates = ap.fates(venue.client)
    assert fates.pop("p0") == "filled"
    assert set(fates.values()) == {"bad_permit"}
    assert len(fates) > 50


def test_a_permit_of_another_plan_or_symbol_is_refused(venues: Maker) -> None:
    """A signed permit under another plan's key, and a signed one whose event names another symbol."""
    venue = started(venues(signing=(NEW,), keys=(NEW,)))
    venue.permit("p1", BTC)
    venue.permit("p2", BTC)
    venue.client.set(LIVE.permit("p2"), venue.client.get(LIVE.permit("p1")))
    venue.permit("p3", BTC)
    entry_id, event = venue.client.xrevrange(gov.EVENTS, count=1)[0]
    venue.client.xdel(gov.EVENTS, entry_id)
    venue.client.xadd(gov.EVENTS, {**event, "symbol": ETH})
    venue.apply.settle()
    assert ap.fates(venue.client) == {"p1": "filled", "p2": "bad_permit", "p3": "bad_permit"}


MALFORMED = (
    "", "{}", "null", "[]", "x", '{"granted":true}', "{" * 3000, '{"sig":""}', '{"granted":true,"sig":""}',
    '{"a":' + "9" * 3000 + ',"sig":""}', "x" * 5000, "\x00\x01",
)  # fmt: skip


@pytest.mark.parametrize("raw", MALFORMED, ids=range(len(MALFORMED)))
def test_a_malformed_permit_is_refused(raw: str, venue: Venue) -> None:
    """Whatever stands in its key: refused, left to expire, and the next one is filled."""
    venue.permit("p1", BTC)
    venue.client.set(LIVE.permit("p1"), raw)
    venue.permit("p2", BTC)
    venue.apply.settle()
    assert ap.fates(venue.client) == {"p1": "bad_permit", "p2": "filled"}
    assert venue.client.get(LIVE.permit("p1")) == raw


@pytest.mark.parametrize(
    "changed",
    [
        {"computed_qty": "NaN"}, {"computed_qty": -1.0}, {"computed_qty": 0.0}, {"computed_qty": "1"},
        {"computed_qty": True}, {"computed_notional": None}, {"computed_notional": 1e400}, {"side": "UP"},
        {"side": ""}, {"reduce_only": 0}, {"eff_factor": "0"}, {"eff_factor": "1.5"}, {"eff_factor": "nan"},
        {"extra_cooldown_sec": "-1"}, {"extra_cooldown_sec": "86401"}, {"granted": False}, {"decision": "HOLD"},
        {"created_at": "now"}, {"apply_mode": 1},
    ],
    ids=str,
)  # fmt: skip
def test_a_permit_with_a_field_of_nonsense_is_refused(changed: dict[str, Any], venue: Venue) -> None:
    """Unsigned permits are read with the same distrust: nothing is filled by them."""
    venue.permit("p1", BTC)
    told = {**json.loads(venue.client.get(LIVE.permit("p1"))), **changed}
    venue.client.set(LIVE.permit("p1"), json.dumps(told, separators=(",", ":")))
    venue.apply.settle()
    assert set(ap.fates(venue.client).values()) <= {"bad_permit", "mode_mismatch"}
    assert len(ap.results(venue.client)) == 1
    assert ap.fills(venue.client) == []


# ---- replays


def test_a_restored_permit_without_a_key(venue: Venue) -> None:
    """A PERMIT event of what was put back after lost writes: nobody knows whether it was consumed, so it is not
    filled, not even where the key stands; a fill of it by another is not one without a permit."""
    venue.permit("p1", BTC)
    entry_id, event = venue.client.xrevrange(gov.EVENTS, count=1)[0]
    venue.client.xdel(gov.EVENTS, entry_id)
    venue.client.xadd(gov.EVENTS, {**event, "reason": "restored"})
    venue.apply.settle()
    assert ap.fills(venue.client) == ap.results(venue.client) == []
    venue.client.delete(LIVE.permit("p1"))
    venue.client.xadd(ap.FILLS, {"symbol": BTC, "filled_qty": "7", "plan_id": "p1", "ts": str(int(NOW))})
    venue.apply.settle()
    c = ap.account(venue.client).permits.counts
    assert (c.issued, c.consumed, c.without_permit, c.above_permit) == (1, 1, 0, 0)


@pytest.mark.parametrize("restarts", [False, True])
@pytest.mark.parametrize("after_s", [0, 1, 30, 61, 3000])
def test_a_replay_is_never_filled_again(after_s: int, restarts: bool, venue: Venue) -> None:
    """A consumed permit's bytes are put back under its key, and its event comes once more: not filled again."""
    venue.permit("p1", BTC)
    raw = venue.client.get(LIVE.permit("p1"))
    venue.apply.settle()
    venue.wait(after_s)
    ap.put_back(venue.client, "p1", raw)
    one = venue.another() if restarts else venue.apply
    for _ in range(3):
        one.settle()
    assert ap.fates(venue.client) == {"p1": "filled"}
    assert len(ap.fills(venue.client)) == 1
    assert ap.account(venue.client).permits.counts.issued == 1
    ap.check(venue.client)
    if restarts:
        one.crash()


@pytest.mark.parametrize("after_s", [61, 3700, 100_000])
def test_a_replay_with_a_new_event_is_not_filled(after_s: int, venue: Venue) -> None:
    """Long after, when the account has forgotten it, with an event of that moment: the permit's own time is over."""
    venue.permit("p1", BTC)
    raw = venue.client.get(LIVE.permit("p1"))
    venue.apply.settle()
    venue.wait(after_s)
    venue.apply.settle()
    ap.put_back(venue.client, "p1", raw, issued_us=str(ap.us(venue.now)))
    for _ in range(3):
        venue.apply.settle()
    assert len(ap.fills(venue.client)) == 1


def test_what_another_program_consumed_is_not_filled(venue: Venue) -> None:
    """A result of another program that says it executed the plan, and a fill of another that names it: both use the
    permit up, although its key stands."""
    venue.permit("p1", BTC)
    venue.permit("p2", BTC)
    venue.client.xadd(ap.RESULTS, {"plan_id": "p1", "symbol": BTC, "executed": "True", "timestamp": str(int(NOW))})
    venue.client.xadd(ap.FILLS, {"plan_id": "p2", "symbol": BTC, "filled_qty": "0.5", "ts": str(int(NOW))})
    venue.apply.settle()
    assert len(ap.fills(venue.client)) == 1
    c = ap.account(venue.client).permits.counts
    assert (c.issued, c.consumed, c.without_permit, c.above_permit) == (2, 2, 0, 0)


# ---- hints


def efficiency(client: Client, symbol: str, score: float, now: float, root: Any = LIVE) -> None:
    """An efficiency that asks for less."""
    told = {"efficiency_score": score, "confidence": 0.9, "ts": str(int(now)), "lane": "live"}
    client.hset(root.efficiency(symbol), mapping={n: str(v) for n, v in told.items()})


@pytest.mark.parametrize("applies", [False, True])
def test_a_hint_is_applied_only_where_told_to(applies: bool, venues: Maker) -> None:
    """With P31_APPLY_DOWNSIZE an open is as much smaller as its hint says, and the symbol's next open waits cooldown
    and extra; else the permit counts as it is. Closes know no hint."""
    venue = started(venues())
    venue.apply.crash()
    venue.apply = venue.another(params=ap.production(apply_downsize=applies))
    client = venue.client
    venue.price(BTC, 100.0)
    efficiency(client, BTC, 0.225, venue.now)
    permit = venue.filled("p1", BTC, qty=2)
    assert float(permit["filled_qty"]) == (1.0 if applies else 2.0)
    assert last(client)["factor"] == ("0.5" if applies else "1.0")
    assert venue.apply.metrics.value("quantum_alloc_hints_applied_total") == float(applies)
    client.delete(LIVE.efficiency(BTC))
    venue.wait(1)
    venue.permit("p2", BTC)
    venue.permit("p3", BTC, "PARTIAL_50")
    venue.permit("p4", ETH)
    venue.apply.settle()
    if not applies:
        assert ap.fates(client) == dict.fromkeys(("p1", "p2", "p3", "p4"), "filled")
        return
    assert ap.fates(client) == dict.fromkeys(("p1", "p3", "p4"), "filled")
    extra_s = 93  # (1 - 0.225) x 120; the governor's own cooldown is 0 here
    assert ap.position(client, BTC)["next_open_ts"] == NOW + extra_s
    venue.wait(60)
    venue.apply.settle()
    assert ap.fates(client)["p2"] == "permit_expired"
    assert last(client)["waited_for"] == "extra_cooldown"
    for plan_id, at in (("p5", NOW + 92.9), ("p6", NOW + 93.0)):
        venue.wait(at - venue.now)
        venue.permit(plan_id, BTC)
        venue.apply.settle()
        assert (plan_id in ap.fates(client)) == (plan_id == "p6")
    ap.check(client)


def test_a_hint_from_the_shadow_lane_is_never_applied(venues: Maker) -> None:
    """The permit tells the hint, and its lane: it is filled whole."""
    venue = started(venues(shadow=ShadowKeys(), params=ap.WIDE))
    venue.apply.crash()
    venue.apply = venue.another(params=ap.production(apply_downsize=True))
    efficiency(venue.client, BTC, 0.1, venue.now, ShadowKeys())
    venue.permit("p1", BTC, qty=2)
    told = ap.permits(venue.client)["p1"]
    assert (told["eff_action"], told["eff_lane"]) == ("DOWNSIZE", "shadow")
    venue.apply.settle()
    assert [float(f["filled_qty"]) for f in ap.fills(venue.client)] == [2.0]
    assert ap.position(venue.client, BTC)["next_open_ts"] == 0.0


# ---- money


def pay(client: Client, usd: object) -> None:
    """A transfer."""
    client.xadd(LIVE.transfers, {"usd": str(usd), "by": "tester", "why": "test", "timestamp": str(int(NOW))})


def test_transfers_are_counted_once(venue: Venue) -> None:
    """Paid in, paid out, and what cannot be read: the balance moves once, with or without a restart between."""
    client = venue.client
    for usd in (250.5, -100, "nonsense", "NaN", "1e400"):
        pay(client, usd)
    client.xadd(LIVE.transfers, {"amount": "5"})
    for _ in range(2):
        venue.apply.settle()
        again = venue.another()
        again.settle()
        again.crash()
    assert ap.balance(client) == ap.EQUITY_USD + 150.5
    assert ap.account(client).paid_in_usd == ap.EQUITY_USD + 150.5
    ap.check(client)


# ---- opening


def candles(close: float, at: float) -> Step:
    """A step of BTC."""
    return Step(at, (Candle(BTC, at, 60.0, close, 1.0),))


class Given:
    """A source of steps that the test hands out."""

    ended = False

    def __init__(self) -> None:
        """Nothing is due."""
        self.step: Step | None = None

    def take(self, _: float) -> Step | None:
        """What was given, once."""
        step, self.step = self.step, None
        return step

    def wait_s(self, _: float) -> float:
        """Never asked."""
        return 1.0


def test_it_takes_over_the_paper_book_of_the_feed(venue: Venue) -> None:
    """A feed with a paper book has run: the account opens with its balance and positions, and from then on the feed
    leaves position, balance and executions alone, while it still writes prices."""
    client = venue.client
    client.flushall()
    store, source, metrics = Store(venue.server.url, timeout_s=2.0), Given(), Metrics("feed")
    clock = SetClock(NOW)
    book = Book(50_000.0, 25_000.0, rebalance_bars=5)
    loop: Loop[Any, Any, Any] = Loop(
        feed.build(store, metrics, source, book, Target(), paper=True), store, metrics, clock
    )
    source.step = candles(100.0, NOW)
    assert loop.once()
    bought = ap.position(client, BTC)
    assert bought["position_amt"] > 0.0
    paid, told = ap.balance(client), len(ap.fills(client))
    one = venue.another()
    one.settle()
    a = ap.account(client)
    assert (a.held[BTC].qty, a.held[BTC].entry_price_usd) == (bought["position_amt"], bought["entry_price"])
    assert (a.balance_usd, a.paid_in_usd) == (paid, paid)
    pay(client, 10)
    clock.set(NOW + 60)
    venue.clock.set(NOW + 60)  # type: ignore[union-attr]
    one.settle()
    standing = client.hgetall(LIVE.position(BTC)), client.hgetall(LIVE.balance)
    for n in range(1, 30):
        clock.set(NOW + 60 * n)
        source.step = candles(120.0 + n, NOW + 60 * n)
        assert loop.once()
    assert (client.hgetall(LIVE.position(BTC)), client.hgetall(LIVE.balance)) == standing
    assert len(ap.fills(client)) == told
    assert client.hget(LIVE.market(BTC), "price") == "149.0"
    venue.clock.set(NOW + 60 * 29)  # type: ignore[union-attr]
    one.settle()
    assert ap.position(client, BTC)["mark_price"] == 149.0
    assert ap.balance(client) == paid + 10
    store.close()
    one.crash()


@pytest.mark.parametrize("positions", [0, 3, 500])
def test_it_opens_an_account_by_the_server_s_clock(
    positions: int, one_server: EmbeddedServer, one_client: Client
) -> None:
    """The first cycle opens it, however long it takes to find the positions that are there."""
    for n in range(positions):
        gov.position(one_client, f"S{n:03}USDT", 1.0, gov.server_now(one_client))
        one_client.hset(LIVE.position(f"S{n:03}USDT"), "entry_price", "90")
    one = ap.applying(Store(one_server.url, timeout_s=2.0))
    assert one.once(), one.loop.last_error
    one.settle()
    one.crash()
    assert len(ap.account(one_client).held) == positions


def test_an_account_is_opened_with_what_is_there(one_server: EmbeddedServer, one_client: Client) -> None:
    """Balance and positions that stand, of any age; none that is flat, and none that nothing is known of."""
    one_client.hset(LIVE.balance, "balance", "777.5")
    one_client.hset(LIVE.position("SOLUSDT"), "leverage", "1")
    for symbol, qty, entry in ((BTC, "-2", "90"), (ETH, "0", "50")):
        one_client.hset(LIVE.position(symbol), mapping={"position_amt": qty, "entry_price": entry, "ts_epoch": "1"})
    one = ap.applying(Store(one_server.url, timeout_s=2.0), clock=SetClock(NOW))
    one.settle()
    one.crash()
    a = ap.account(one_client)
    assert {s: (h.qty, h.entry_price_usd) for s, h in a.held.items()} == {BTC: (-2.0, 90.0)}
    assert (a.balance_usd, a.paid_in_usd) == (777.5, 777.5)


@pytest.mark.parametrize(
    ("key", "fields"),
    [
        (LIVE.balance, {"balance": "NaN"}), (LIVE.balance, {"balance": ""}), (LIVE.balance, None),
        (LIVE.position(BTC), {"position_amt": "3", "entry_price": ""}), (LIVE.position(BTC), {"position_amt": "3"}),
        (LIVE.position(BTC), {"position_amt": "nan", "entry_price": "1"}), (LIVE.position(BTC), None),
        (LIVE.position(BTC), {"position_amt": "1", "entry_price": "-1"}), (LIVE.position(BTC), {"entry_price": "1"}),
    ],
)  # fmt: skip
def test_an_account_is_not_guessed_at(
    key: str, fields: dict[str, str] | None, one_server: EmbeddedServer, one_client: Client
) -> None:
    """A balance or a position that is there and cannot be read opens no account; one sentence names the key."""
    if fields is None:
        one_client.set(key, "x")
    else:
        one_client.hset(key, mapping=fields)
    one = ap.applying(Store(one_server.url, timeout_s=2.0), clock=SetClock(NOW))
    assert not one.once()
    assert f"{key} cannot be read, and is not guessed at" in one.loop.last_error
    assert not one_client.exists(LIVE.apply_state)
    one_client.delete(key)
    one.settle()
    one.crash()
    assert ap.account(one_client).held == {}


@pytest.mark.parametrize("word", ["halt", "1", "anything"])
def test_a_halt_is_latched_at_its_first_sight(word: str, venue: Venue) -> None:
    """A halt that no governor saw, and that is taken back: the apply layer has latched it, and fills nothing before a
    rearm; after one it does."""
    venue.permit("p1", BTC)
    venue.client.set(LIVE.kill, word)
    venue.apply.once()
    venue.client.set(LIVE.kill, "off")
    venue.apply.settle()
    assert venue.client.hgetall(LIVE.latch)["by"] == "apply"
    assert set(ap.permits(venue.client)) == {"p1"}
    now_us = round(venue.now * US)
    moved = kill_switch.rearm(venue.apply.store, "me", "tried", events=gov.EVENTS, maxlen=1000, now_us=now_us)
    assert moved.trouble == ""
    venue.apply.settle()
    assert ap.fates(venue.client) == {"p1": "filled"}
    assert [e["state"] for _, e in venue.client.xrange(gov.EVENTS) if e["event"] == "KILL"] == ["HALT"]


def test_a_permit_that_waited_keeps_to_the_windows(venues: Maker) -> None:
    """Permits that could not be filled at once are filled within the governor's cooldown and windows, as the fills
    count, or not at all; closes are never delayed by that."""
    venue = started(venues(params=replace(ap.WIDE, max_exec_per_5min=2, max_exec_per_hour=3, symbol_cooldown_s=20)))
    client = venue.client
    venue.price(BTC, 100.0)
    venue.permit("p1", BTC)
    venue.client.delete(LIVE.market(BTC))  # no price: it waits
    venue.apply.settle()
    assert ap.fates(client) == {}
    venue.wait(25)
    venue.price(BTC, 100.0)
    venue.permit("p2", BTC)
    venue.apply.settle()
    assert ap.fates(client) == {"p1": "filled"}
    assert ap.account(client).permits.permits["p2"].waited == "symbol_cooldown"
    venue.permit("c1", BTC, "PARTIAL_50")
    venue.apply.settle()
    assert ap.fates(client) == {"p1": "filled", "c1": "filled"}
    venue.wait(20)
    venue.price(BTC, 100.0)
    venue.apply.settle()
    assert ap.fates(client) == {"p1": "filled", "c1": "filled", "p2": "filled"}
    ap.check(client)


def test_a_permit_of_a_time_that_has_not_come_is_left_out(venue: Venue) -> None:
    """A PERMIT event far ahead reserves nothing for ever, and leaves the account readable."""
    for n, issued in enumerate((10**18 - 1, 99 * 10**16, round((NOW + 6) * US))):
        told = {"event": "PERMIT", "plan_id": f"x{n}", "symbol": BTC, "issued_us": str(issued)}
        venue.client.xadd(gov.EVENTS, told)
    venue.apply.settle()
    assert venue.apply.metrics.value("quantum_alloc_permit_events_odd_total") == 3.0
    assert ap.account(venue.client).permits.counts.issued == 0
    venue.filled("p1", BTC)


def test_a_burst_of_waiting_permits(venue: Venue) -> None:
    """Thousands of permits that end together: each is reported once, no fill is taken for one without a permit, and no
    more are taken up than the account can hold."""
    client, n = venue.client, 4_500
    pipe = client.pipeline(transaction=False)
    for i in range(n):
        fields = {"event": "PERMIT", "plan_id": f"x{i}", "symbol": BTC, "issued_us": str(round(NOW * US))}
        pipe.xadd(gov.EVENTS, {**fields, "computed_qty": "1"})
    pipe.execute()
    client.set(LIVE.kill, "reduce")
    for _ in range(12):
        venue.apply.once()
    a = ap.account(client)
    assert apply.OUTSTANDING_MAX <= a.permits.counts.outstanding < apply.OUTSTANDING_MAX + apply.PAGE
    venue.wait(70)
    for _ in range(40):
        venue.apply.once()
    c = ap.account(client).permits.counts
    assert (c.issued, c.expired, c.without_permit, c.outstanding) == (n, n, 0, 0)
    assert venue.apply.metrics.value("quantum_alloc_permit_events_missed_total") == 0.0
    assert len(ap.fates(client)) == n


def test_an_account_that_is_opened_while_the_feed_is_at_work(one_server: EmbeddedServer, one_client: Client) -> None:
    """The account is opened between a feed's look and its write: what the feed would have bought is not written, and
    from then on it leaves positions and balance alone."""
    store = Store(one_server.url, timeout_s=2.0)
    source = Given()
    cycle = feed.build(store, Metrics("feed"), source, Book(1000.0, 500.0), Target(), paper=True)
    loop = Loop(cycle, store, Metrics("feed"), SetClock(NOW))
    source.step = Step(NOW, (Candle(BTC, NOW, 60.0, 100.0, 1.0),))
    seen = cycle.read(NOW)
    one = ap.applying(Store(one_server.url, timeout_s=2.0), clock=SetClock(NOW))
    one.settle()
    _, made = cycle.decide(cycle.initial, seen, loop.attempt)
    with pytest.raises(StoreError) as error:
        store.apply(cycle.effects(seen, made))
    assert error.value.code == "conflict"
    assert not one_client.exists(LIVE.position(BTC))
    source.step = Step(NOW + 60, (Candle(BTC, NOW + 60, 60.0, 101.0, 1.0),))
    assert loop.once()
    assert loop.once()
    assert float(one_client.hget(LIVE.market(BTC), "price")) == 101.0
    assert not one_client.exists(LIVE.position(BTC))
    assert float(one_client.hget(LIVE.balance, "balance")) == ap.EQUITY_USD
    one.crash()
    store.close()


def test_once_drains_what_is_there(
    one_server: EmbeddedServer, one_client: Client, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """``run apply --once``: more than a page of events is read to its end, and every permit of it filled; a second
    run does nothing more."""
    venue = Venue(one_server, one_client, tmp_path)  # by the server's clock
    environ = {"REDIS_URL": one_server.url, "APPLY_MODE": "production", "LOG_LEVEL": "ERROR"}
    assert main(["run", "apply", "--once"], environ) == 0
    for n in range(40):
        venue.price(f"S{n % 10}", 100.0)
    venue.publish()
    noise = one_client.pipeline(transaction=False)
    for n in range(1200):
        noise.xadd(gov.EVENTS, {"event": "BLOCK", "plan_id": f"x{n}", "symbol": BTC})
    noise.execute()
    for n in range(40):
        gov.opening(one_client, f"p{n}", f"S{n % 10}", repr(venue.now))
    venue.govern()
    assert len(ap.permits(one_client)) == 40
    for _ in range(2):
        assert main(["run", "apply", "--once"], environ) == 0
        assert ap.permits(one_client) == {}
        assert len(ap.fates(one_client)) == 40
    venue.close()
    ap.check(one_client)


# ---- spoiled keys


WRITTEN = ("state", "fills", "results")
LEFT_OUT = ("position", "balance", "universe")
STOPS = ("events", "transfers")
NEUTRAL = ("book", "clusters", "regime")


def key_of(what: str) -> str:
    """The key that is meant."""
    names: dict[str, str] = {
        "state": LIVE.apply_state, "position": LIVE.position(BTC), "balance": LIVE.balance, "fills": ap.FILLS,
        "results": ap.RESULTS, "universe": LIVE.universe, "events": gov.EVENTS, "transfers": LIVE.transfers,
        "book": LIVE.book, "clusters": LIVE.clusters, "regime": LIVE.stream("regime.state"), "kill": LIVE.kill,
        "latch": LIVE.latch, "permit": LIVE.permit("p1"), "market": LIVE.market(BTC),
    }  # fmt: skip
    return names[what]


@pytest.mark.parametrize("what", [*WRITTEN, *LEFT_OUT, *STOPS, *NEUTRAL, "kill", "latch", "market"])
@pytest.mark.parametrize("kind", ["string", "list"])
def test_a_key_of_another_type(what: str, kind: str, each: Venue, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it must write or follow stops it, and the message names the key; a position, the balance or the universe is
    left out and stops nobody's exit; kill switch and latch are HALT; a market that cannot be read is no price; labels
    and book are left out. In each case nothing is half done, and when the key is gone everything goes on."""
    monkeypatch.setattr(apply, "SPOILED_S", 0.05)
    client, key = each.client, key_of(what)
    if kind == "string" and what == "kill":
        kind = "hash"
    each.permit("p1", BTC)
    aside = "aside"
    had = client.exists(key)
    if had:
        client.rename(key, aside)
    if kind == "string":
        client.set(key, "x")
    elif kind == "hash":
        client.hset(key, "a", "b")
    else:
        client.rpush(key, "x")
    before = {k: client.type(k) for k in client.keys("*")}
    ended = each.apply.once()
    if what in (*WRITTEN, *STOPS):
        assert not ended
        assert key in each.apply.loop.last_error
        assert not each.apply.loop.ready
        assert {k: client.type(k) for k in client.keys("*")} == before
        assert set(ap.permits(client)) == {"p1"}
    elif what in NEUTRAL:
        assert ended
        assert "p1" in ap.fates(client)
    elif what in LEFT_OUT:
        assert ended
        each.apply.settle()
        assert ap.fates(client) == {"p1": "filled"}
        assert client.type(key) == kind
        time.sleep(0.06)
        assert each.clock is not None
        each.clock.set(each.now + 6.0)  # the marks are due again
    else:
        assert ended
        assert set(ap.permits(client)) == {"p1"}
        assert what not in ("kill", "latch") or each.apply.metrics.value("quantum_alloc_kill_state", "HALT") == 1.0
    client.delete(key, *([LIVE.latch] if what == "kill" else []))  # a halt of any kind is latched, and rearmed
    if had and what not in LEFT_OUT:
        client.rename(aside, key)
    each.apply.settle()
    assert ap.fates(client) == {"p1": "filled"}
    ap.check(client)


def test_a_permit_of_another_type(venue: Venue) -> None:
    """A permit's key that is no string is no permit."""
    venue.permit("p1", BTC)
    venue.client.delete(LIVE.permit("p1"))
    venue.client.hset(LIVE.permit("p1"), "granted", "true")
    venue.permit("p2", BTC)
    venue.apply.settle()
    assert ap.fates(venue.client) == {"p1": "permit_gone", "p2": "filled"}


@pytest.mark.parametrize("revision", ["abc", "", "1.5", "9223372036854775807", "-3", " 7"])
def test_a_book_whose_revision_is_spoiled(revision: str, each: Venue) -> None:
    """Somebody has written nonsense into the book: a permit is consumed and filled, or neither."""
    each.permit("p1", BTC)
    each.client.hset(LIVE.book, ":rev", revision)
    each.apply.once()
    assert (ap.permits(each.client) == {}) == (len(ap.fills(each.client)) == 1), "consumed and not filled"
    ap.check(each.client)
    each.client.hset(LIVE.book, ":rev", "1")
    each.apply.settle()
    assert ap.fates(each.client) == {"p1": "filled"}


@pytest.mark.parametrize("field", ["nonsense", "BTCUSDT 100.0 5 6 x", "", "BTCUSDT 100.0 5 6 %1"])
def test_a_book_whose_entry_is_spoiled(field: str, venue: Venue) -> None:
    """Nonsense in the place of the open: it is consumed and filled all the same."""
    venue.permit("p1", BTC)
    venue.client.hset(LIVE.book, "p1", field)
    venue.apply.settle()
    assert ap.fates(venue.client) == {"p1": "filled"}
    ap.check(venue.client)


def test_no_book_is_not_made_up(venue: Venue) -> None:
    """The governor's book is gone: the permit is filled, and nothing that looks like an open is written."""
    venue.permit("p1", BTC)
    venue.client.delete(LIVE.book)
    venue.apply.settle()
    assert ap.fates(venue.client) == {"p1": "filled"}
    assert gov.book(venue.client) == {}


def test_events_that_are_trimmed_away(venue: Venue) -> None:
    """A permit whose event nobody has read is left to expire, and the gap is counted; what was waiting goes on, and so
    does what comes."""
    client = venue.client
    venue.permit("p1", BTC)
    client.set(LIVE.kill, "1")
    venue.apply.settle()
    client.delete(LIVE.kill)
    gov.rearm(client, venue.now)
    venue.apply.settle()
    missed = "quantum_alloc_permit_events_missed_total"
    assert venue.apply.metrics.value(missed) == 0.0
    there = client.xlen(gov.EVENTS)
    venue.permit("p2", BTC)
    unread = client.xlen(gov.EVENTS) - there
    client.xtrim(gov.EVENTS, maxlen=0, approximate=False)
    venue.permit("p3", BTC)
    venue.apply.settle()
    assert ap.fates(client) == {"p1": "filled", "p3": "filled"}
    assert venue.apply.metrics.value(missed) == unread > 0
    client.delete(gov.EVENTS, ap.RESULTS, ap.FILLS, LIVE.transfers)
    venue.permit("p4", BTC)
    venue.apply.settle()
    assert ap.fates(client) == {"p4": "filled"}
    assert venue.apply.metrics.value(missed) == unread


SPOILED_STATES = (
    {"_version": "9"}, {"_version": ""}, {"_rev": "x"}, {"_rev": "-1"}, {"_balance": "NaN"}, {"_balance": "1e999"},
    {"_events": "soon"}, {"_counts": "[1,2]x"}, {"_counts": "[1,2,3,4,5,-6]"}, {"S:BTCUSDT": "[1]"},
    {"S:btc": "[0,0,0,0]"}, {"P:p1": "{}"}, {"P:a b": "[]"},
    {"other": "x"}, {"_of": "[1]"}, {"_of": "[]"}, {"_of": '["a","b","c","d"]'},
    {"S:BTCUSDT": '["1",0,0,0]'}, {"P:p1": '["BTCUSDT",1,1,"gone",0,0,"","",1]'}, {"_fees": "[" * 50_000},
)  # fmt: skip


@pytest.mark.parametrize("fields", SPOILED_STATES, ids=lambda f: f"{next(iter(f))}-{next(iter(f.values()))[:12]}")
def test_a_state_that_cannot_be_read_stops_it(
    fields: dict[str, str], venue: Venue, caplog: pytest.LogCaptureFixture
) -> None:
    """Malformed, of another version, or of other streams: not ready, one sentence that names the hash, nothing is
    written, and no permit is touched."""
    client = venue.client
    venue.permit("p1", BTC)
    if fields == {"other": "x"}:  # a field that is none of ours is carried along by nobody: it goes away
        client.hset(LIVE.apply_state, mapping=fields)
        venue.apply.settle()
        assert ap.fates(client) == {"p1": "filled"}
        return
    client.hset(LIVE.apply_state, mapping=fields)
    before = {k: client.hgetall(k) if client.type(k) == "hash" else client.type(k) for k in sorted(client.keys("*"))}
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            assert not venue.apply.once()
    after = {k: client.hgetall(k) if client.type(k) == "hash" else client.type(k) for k in sorted(client.keys("*"))}
    assert after == before
    assert not venue.apply.loop.ready
    assert LIVE.apply_state in venue.apply.loop.last_error
    assert [r.message for r in caplog.records if r.levelno >= logging.ERROR] == caplog.messages[:1], "said once"
    assert ap.fills(client) == []


@pytest.mark.parametrize("name", ["_version", "_rev", "_balance", "_events", "_counts", "_of", "_transfers"])
def test_a_state_that_lacks_a_field_stops_it(name: str, venue: Venue) -> None:
    """The same for a field that is gone; mended, it goes on."""
    told = venue.client.hget(LIVE.apply_state, name)
    venue.client.hdel(LIVE.apply_state, name)
    venue.permit("p1", BTC)
    assert not venue.apply.once()
    assert LIVE.apply_state in venue.apply.loop.last_error
    assert ap.fills(venue.client) == []
    venue.client.hset(LIVE.apply_state, name, told)
    venue.apply.settle()
    assert ap.fates(venue.client) == {"p1": "filled"}


def test_other_streams_than_those_of_the_account(venue: Venue) -> None:
    """An apply layer that is told to follow other streams does not touch the account of these."""
    before = venue.client.hgetall(LIVE.apply_state)
    other = venue.another(events="quantum:stream:test.events")
    assert not other.once()
    assert "follows" in other.loop.last_error
    other.crash()
    assert venue.client.hgetall(LIVE.apply_state) == before


# ---- reconciliation


def test_a_foreign_fill_raises_an_alarm_once(venue: Venue, caplog: pytest.LogCaptureFixture) -> None:
    """A fill without a permit: counted, told once as an error, in the metric, over a restart too; positions are those
    of the account."""
    client = venue.client
    venue.filled("p1", BTC)
    with caplog.at_level(logging.ERROR, "quantum_alloc.apply"):
        client.xadd(ap.FILLS, {"symbol": BTC, "filled_qty": "5", "side": "BUY", "ts": str(int(NOW))})
        client.xadd(ap.FILLS, {"payload": json.dumps({"symbol": ETH, "plan_id": "nobody", "filled_qty": 1})})
        for _ in range(3):
            venue.apply.settle()
            venue.wait(6)
    assert len([r for r in caplog.records if "without a permit" in r.message]) == 1
    c = ap.account(client).permits.counts
    assert (c.fills, c.without_permit, c.above_permit) == (3, 2, 0)
    assert venue.apply.metrics.value("quantum_alloc_fills_without_permit_total") == 2.0
    assert ap.position(client, BTC)["position_amt"] == 1.0
    again = venue.another()
    again.settle()
    assert again.metrics.value("quantum_alloc_fills_without_permit_total") == 2.0
    again.crash()


def test_what_is_no_execution_is_no_fill(venue: Venue, caplog: pytest.LogCaptureFixture) -> None:
    """An entry that names no symbol raises no alarm, is counted apart, and what comes after it is read; one that names
    a symbol and not how much is somebody's execution all the same."""
    client = venue.client
    venue.filled("p1", BTC)
    with caplog.at_level(logging.ERROR, "quantum_alloc.apply"):
        for fields in ({"foo": "bar"}, {"payload": "?"}, {"symbol": "?", "filled_qty": "1", "plan_id": "p1"}):
            client.xadd(ap.FILLS, fields)
        venue.apply.settle()
    assert caplog.records == []
    c = ap.account(client).permits.counts
    assert (c.fills, c.is_wrong) == (1, False)
    assert venue.apply.metrics.value("quantum_alloc_executions_unreadable_total") == 3.0
    client.xadd(ap.FILLS, {"symbol": BTC, "filled_qty": "?"})
    venue.apply.settle()
    c = ap.account(client).permits.counts
    assert (c.fills, c.without_permit) == (2, 1)
    assert venue.apply.metrics.value("quantum_alloc_executions_unreadable_total") == 3.0


def test_a_fill_above_its_permit(venue: Venue, caplog: pytest.LogCaptureFixture) -> None:
    """A second fill that names a consumed permit, and one that names it for another symbol."""
    client = venue.client
    venue.filled("p1", BTC)
    with caplog.at_level(logging.ERROR, "quantum_alloc.apply"):
        client.xadd(ap.FILLS, {"symbol": BTC, "filled_qty": "0.001", "plan_id": "p1", "ts": str(int(NOW))})
        venue.apply.settle()
        client.xadd(ap.FILLS, {"symbol": ETH, "filled_qty": "0.001", "plan_id": "p1", "ts": str(int(NOW))})
        venue.apply.settle()
    c = ap.account(client).permits.counts
    assert (c.consumed, c.without_permit, c.above_permit) == (1, 1, 1)
    assert venue.apply.metrics.value("quantum_alloc_fills_above_permit_total") == 1.0
    assert len([r for r in caplog.records if "above theirs" in r.message]) == 2


def test_metrics_say_what_happened(venue: Venue) -> None:
    """Fills, notional, results, gauges: as the account has them, also after a restart."""
    venue.filled("p1", BTC, qty=2)
    venue.wait(6)
    venue.permit("p2", ETH, side="SELL")
    venue.apply.settle()
    m = venue.apply.metrics
    assert m.value("quantum_alloc_fills_total", BTC, "BUY") == m.value("quantum_alloc_fills_total", ETH, "SELL") == 1.0
    assert m.value("quantum_alloc_fill_notional_usd_total", BTC) == 200.0
    assert m.value("quantum_alloc_apply_results_total", "filled", "ok") == 2.0
    assert (m.value("quantum_alloc_position_usd", BTC), m.value("quantum_alloc_position_usd", ETH)) == (200.0, -50.0)
    assert m.value("quantum_alloc_balance_usd") == pytest.approx(ap.EQUITY_USD - 0.1)
    again = venue.another()
    again.settle()
    for name in ("issued", "consumed", "expired"):
        full = f"quantum_alloc_permits_{name}_total"
        assert again.metrics.value(full) == m.value(full) == (0.0 if name == "expired" else 2.0)
    again.crash()


# ---- the script


def test_scripts_flushed_while_it_runs(each: Venue) -> None:
    """SCRIPT FLUSH: the script is sent again, and nothing is done twice."""
    for n in range(3):
        each.client.script_flush()
        each.filled(f"p{n}", BTC)
    assert len(ap.fates(each.client)) == 3
    ap.check(each.client)


def test_a_flood_of_permits_and_events(venue: Venue) -> None:
    """More permits than one page: all filled, in their order, each once."""
    for n in range(700):
        gov.opening(venue.client, f"p{n}", (BTC, ETH)[n % 2], repr(NOW), price=(100, 50)[n % 2])
    venue.govern()
    venue.apply.settle()
    told = [f["plan_id"] for f in ap.fills(venue.client)]
    assert told == [e["plan_id"] for e in gov.events(venue.client, "PERMIT")]
    assert len(told) == 700
    venue.apply.settle()
    c = ap.account(venue.client).permits.counts
    assert (c.issued, c.consumed, c.without_permit, c.above_permit) == (700, 700, 0, 0)
    ap.check(venue.client)


@pytest.mark.parametrize("back_s", [0.5, 30, 3600])
def test_a_clock_that_is_set_back(back_s: float, venue: Venue) -> None:
    """What was filled or had expired by the clock of before stays so; marks are written and new permits filled."""
    client = venue.client
    venue.permit("p1", BTC)
    raw = client.get(LIVE.permit("p1"))
    venue.apply.settle()
    venue.permit("p2", BTC)
    venue.wait(61)
    venue.apply.settle()
    assert ap.fates(client) == {"p1": "filled", "p2": "permit_expired"}
    assert venue.clock is not None
    venue.clock.set(venue.now - back_s)
    venue.publish()
    client.delete(LIVE.permit("p2"))
    ap.put_back(client, "p1", raw)
    ap.put_back(client, "p2", raw.replace("p1", "p2"))
    venue.apply.settle()
    assert ap.fates(client) == {"p1": "filled", "p2": "permit_expired"}
    assert ap.position(client, BTC)["ts_epoch"] == int(venue.now), "marked by the clock as it is"
    ap.check(client)
