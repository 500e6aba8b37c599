"""What a governor must not overlook: a new name on old ground, a position without its fields, an absurd quantity."""

from __future__ import annotations

from pathlib import Path

from quantum_alloc.adapters import governor_wire as gw
from quantum_alloc.adapters.clock import SetClock
from quantum_alloc.adapters.embedded import EmbeddedServer
from quantum_alloc.adapters.journal import Entry
from quantum_alloc.adapters.keys import LIVE
from quantum_alloc.adapters.store import Store
from quantum_alloc.core import GovernorParams
from quantum_alloc.core.isolate import plainly
from tests.support import governing as gov
from tests.support.worlds import Client

S = "AAUSDT"
PARAMS = GovernorParams(apply_mode="production")


def test_a_new_name_in_a_directory_that_was_used_is_no_first_start(
    one_server: EmbeddedServer, one_client: Client, tmp_path: Path
) -> None:
    """(27) Another governor's journal in the directory is put back, and a plan that it permitted gets no second one."""
    clock = SetClock(gov.NOW)
    gov.portfolio(one_client, gov.NOW)
    first = gov.governing(Store(one_server.url), tmp_path, "one", clock=clock, params=PARAMS)
    gov.opening(one_client, "p1", S, gov.NOW)
    first.drain()
    first.crash()
    one_client.flushall()
    gov.portfolio(one_client, gov.NOW)
    gov.opening(one_client, "p1", S, gov.NOW)
    second = gov.governing(Store(one_server.url), tmp_path, "two", clock=clock, params=PARAMS)
    second.drain()
    second.crash()
    found = [(e["event"], e["reason"]) for e in gov.events(one_client) if e["plan_id"] == "p1"]
    assert found == [("PERMIT", "restored"), ("REPLAY", "ok")]
    assert one_client.exists(LIVE.permit("p1")) == 0


def test_a_position_without_its_fields_is_not_flat(
    one_server: EmbeddedServer, one_client: Client, tmp_path: Path
) -> None:
    """(14) Its key is there, so it is malformed: opens wait for a position that can be read."""
    gov.portfolio(one_client, gov.NOW)
    one_client.hset(LIVE.position(S), "entry_price", "90")
    gov.opening(one_client, "p1", S, gov.NOW)
    g = gov.governing(Store(one_server.url), tmp_path, "one", clock=SetClock(gov.NOW), params=PARAMS)
    g.drain()
    g.crash()
    (told,) = gov.events(one_client)
    assert (told["event"], told["reason"]) == ("BLOCK", "position_unknown")
    one_client.delete(LIVE.position(S))


def test_the_greatest_close_that_is_let_in_can_be_read_again() -> None:
    """No quantity and price that a plan may have makes a ledger that cannot be read."""
    ledger = gw.ledger([b":rev", b"1", b"p1", f"1000000 close {1e15 * 1e15!r} 0.0".encode()])
    assert ledger is not None
    assert ledger.issued["p1"].usd == 1e30


def test_an_intent_whose_plan_was_blocked_since_is_not_put_back(
    one_server: EmbeddedServer, one_client: Client, tmp_path: Path
) -> None:
    """(29, 34) A governor ends between intent and commit, another one blocks the plan, the server forgets its epoch:
    the block stands, and neither ledger nor book nor an event tells of a permit."""
    clock = SetClock(gov.NOW)
    gov.portfolio(one_client, gov.NOW)
    first = gov.governing(Store(one_server.url), tmp_path / "a", "one", clock=clock, params=PARAMS)
    first.drain()
    at_us = round(gov.NOW * 1e6)
    told = '{"verdict":"PERMIT","reason":"ok","content":"c","decision_id":"d1","symbol":"AAUSDT","by":"one"'
    run = first.keeper.epoch
    first.keeper.journal.intent(run, [Entry(run, "p1", S, "open 100.0 0.0", 100.0, told, 7200, at_us, at_us + 60)])
    first.crash()
    gov.opening(one_client, "p1", S, gov.NOW, kill_score=0.9)
    second = gov.governing(Store(one_server.url), tmp_path / "b", "two", clock=clock, params=PARAMS)
    second.drain()
    second.crash()
    one_client.set(LIVE.epoch, "another")
    again = gov.governing(Store(one_server.url), tmp_path / "a", "one", clock=clock, params=PARAMS)
    again.drain()
    again.crash()
    assert again.keeper.changes == 1
    assert [e["event"] for e in gov.events(one_client) if e["plan_id"] == "p1"] == ["BLOCK"]
    assert (gov.ledger(one_client, S), gov.book(one_client)) == ({}, {})


def test_a_block_by_a_cap_waits_for_the_open_before_it(
    one_server: EmbeddedServer, one_client: Client, tmp_path: Path
) -> None:
    """(29) There is room for one position, and the open that was to take it is not committed: the block that counted on
    it is not given either, and both are decided again."""
    params = GovernorParams(apply_mode="production", max_open_positions=1)
    gov.portfolio(one_client, gov.NOW)
    g = gov.governing(Store(one_server.url), tmp_path, "one", clock=SetClock(gov.NOW), params=params)
    g.drain()
    gov.opening(one_client, "p1", S, gov.NOW)
    gov.opening(one_client, "p2", "BBUSDT", gov.NOW)
    seen = g.governor.read(gov.NOW)
    one_client.hset(LIVE.ledger(S), ":rev", 7)
    made = g.governor.decide(seen, plainly)
    assert [getattr(a, "reason", "ok") for a in made.answers] == ["ok", "max_positions_reached"]
    g.governor.write(seen, made)
    assert (g.governor.moved, gov.events(one_client)) == (2, [])
    g.drain()
    g.crash()
    assert [(e["event"], e["plan_id"]) for e in gov.events(one_client)] == [("PERMIT", "p1"), ("BLOCK", "p2")]
