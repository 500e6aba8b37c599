"""What a governor must not overlook: a new name on old ground, a position without its fields, an absurd quantity."""

from __future__ import annotations

from pathlib import Path

from quantum_alloc.adapters import governor_wire as gw
from quantum_alloc.adapters.clock import SetClock
from quantum_alloc.adapters.embedded import EmbeddedServer
from quantum_alloc.adapters.keys import LIVE
from quantum_alloc.adapters.store import Store
from quantum_alloc.core import GovernorParams
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
