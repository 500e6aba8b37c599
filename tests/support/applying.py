"""Apply layers in this process, over a server, and a governor that issues their permits; what they wrote, read back.

The clock is the test's (``SetClock``) or the server's own (None). An apply layer keeps nothing but its state in Redis,
so that another one with a store of its own stands for the next process. A ``Venue`` is a server with a governor in
production mode and one apply layer: prices, plans and the portfolio are written as other programs write them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from quantum_alloc.adapters import apply_wire as aw
from quantum_alloc.adapters.clock import SetClock, WallClock
from quantum_alloc.adapters.effects import Reply
from quantum_alloc.adapters.embedded import EmbeddedServer
from quantum_alloc.adapters.executions import decode
from quantum_alloc.adapters.keys import LIVE, ShadowKeys
from quantum_alloc.adapters.metrics import Metrics
from quantum_alloc.adapters.permits import SigningKey
from quantum_alloc.adapters.store import Store
from quantum_alloc.core import ApplyParams, Execution, GovernorParams
from quantum_alloc.core.limits import US
from quantum_alloc.services import apply
from quantum_alloc.services.loop import Loop
from tests.support import governing as gov
from tests.support.worlds import Client

NOW = gov.NOW
FILLS = LIVE.stream("execution.result")
RESULTS = LIVE.results
EQUITY_USD = 100_000.0
FEE_BPS = 4.0
PARAMS = ApplyParams("production", FEE_BPS)
WIDE = GovernorParams(
    apply_mode="production",
    max_exec_per_hour=10_000,
    max_exec_per_5min=10_000,
    max_close_per_hour=10_000,
    max_close_per_5min=10_000,
    symbol_cooldown_s=0,
    max_open_positions=1_000,
    max_notional_per_trade_usd=1e9,
    max_total_notional_usd=1e12,
    max_reduce_notional_per_day_usd=1e12,
    max_reduce_qty_per_day=1e12,
    disarm_on_burst=False,
)
"""Limits that stop nothing."""


@dataclass
class Applying:
    """One apply layer and its parts.

    Attributes:
        store: its connection.
        metrics: what it counts.
        loop: that runs it.
    """

    store: Store
    metrics: Metrics
    loop: Loop[Any, Any, Any]

    def once(self) -> bool:
        """One cycle; True when it ended."""
        return self.loop.once()

    def settle(self, cycles: int = 3) -> None:
        """Cycles until its own entries are read back; each must end.

        Args:
            cycles: how many at least.
        """
        for n in range(cycles + 400):
            assert self.loop.once(), self.loop.last_error
            more = self.loop.cycle.more
            if n >= cycles - 1 and more is not None and not more():
                return
        raise AssertionError("it has more to do for ever")

    def crash(self) -> None:
        """What the end of a process lets go of: its connection."""
        self.store.close()


def applying(
    store: Store,
    *,
    clock: SetClock | None = None,
    params: ApplyParams = PARAMS,
    symbols: tuple[str, ...] = (),
    **settings: Any,
) -> Applying:
    """An apply layer.

    Args:
        store: its own.
        clock: in the place of the server's; None for the server's.
        params: the numbers of its rules.
        symbols: of positions to take over; none has it look for them.
        settings: further fields of ``apply.Set``.
    """
    metrics = Metrics("apply")
    told = apply.Set(params, **{"simulated": clock, "once": True, "equity_usd": EQUITY_USD, **settings})
    cycle = apply.build(store, metrics, told, apply.universe_of())
    return Applying(store, metrics, Loop(cycle, store, metrics, clock or WallClock()))


# ---- what an apply layer has written


def fills(client: Client) -> list[dict[str, str]]:
    """Entries of the execution stream, in order."""
    return [fields for _, fields in client.xrange(FILLS)]


def results(client: Client) -> list[dict[str, str]]:
    """Entries of the result stream, in order."""
    return [fields for _, fields in client.xrange(RESULTS)]


def fates(client: Client) -> dict[str, str]:
    """Reason of the result of each plan id; an id with two results is an error."""
    told = results(client)
    assert len({r["plan_id"] for r in told}) == len(told), f"a second result: {told}"
    return {r["plan_id"]: r["error"] or "filled" for r in told}


def executions(client: Client, now: float) -> list[Execution]:
    """The fills, as attribution and efficiency read them.

    Args:
        client: of the server.
        now: the reader's clock.
    """
    found = []
    for entry_id, fields in client.xrange(FILLS):
        flat: list[Reply] = [x.encode() for pair in fields.items() for x in pair]
        read = decode([entry_id.encode(), flat], now)
        assert isinstance(read, Execution), read
        found.append(read)
    return found


def account(client: Client) -> aw.Account:
    """The account that stands."""
    told: list[Reply] = [x.encode() for pair in client.hgetall(LIVE.apply_state).items() for x in pair]
    loaded = aw.decode_state(told)
    assert loaded.account is not None, loaded.trouble or "there is no account"
    return loaded.account


def position(client: Client, symbol: str) -> dict[str, float]:
    """A position's numbers; empty where there is none."""
    return {name: float(text) for name, text in client.hgetall(LIVE.position(symbol)).items()}


def balance(client: Client) -> float:
    """The balance as other programs read it."""
    return float(client.hget(LIVE.balance, "balance"))


def permits(client: Client) -> dict[str, dict[str, Any]]:
    """Permits whose keys stand, by plan id."""
    found = {}
    for key in client.scan_iter(LIVE.permit("*"), count=1000):
        if client.type(key) == "string":
            found[key.removeprefix(LIVE.permit(""))] = json.loads(client.get(key))
    return found


def signed_qty(fill: Mapping[str, str]) -> float:
    """A fill's quantity, below 0 for a sale."""
    return float(fill["filled_qty"]) * (1.0 if fill["side"] == "BUY" else -1.0)


def check(client: Client, opened_usd: float | None = EQUITY_USD) -> None:
    """What is so at any moment, as other programs see it: at most one fill and one result a permit, a fill without its
    result never, positions are the sum of fills bit for bit, money is conserved, permits add up.

    Args:
        client: of the server.
        opened_usd: what the account was opened with; None where positions were taken over, or fills are foreign.
    """
    told, done = fills(client), results(client)
    known = {r["plan_id"]: r for r in done}
    assert len(known) == len(done), f"a permit with two results: {done}"
    ids = [f["plan_id"] for f in told if f.get("plan_id") in known or opened_usd is not None]
    assert len(set(ids)) == len(ids), f"a permit with two fills: {ids}"
    assert {p for p, r in known.items() if r["executed"] == "true"} == set(ids), "fills and results differ"
    for f in told:
        if f.get("plan_id") in known:
            assert float(known[f["plan_id"]]["filled_qty"]) == float(f["filled_qty"])
    if not client.exists(LIVE.apply_state):
        assert not told, "a fill without an account"
        assert not done, "a result without an account"
        return
    a = account(client)
    c = a.permits.counts
    assert c.outstanding == sum(one.is_outstanding for one in a.permits.permits.values()), "permits do not add up"
    consumed = {p for p, r in known.items() if r["consumed"] == "1"}
    for p in consumed:
        assert p not in a.permits.permits or not a.permits.permits[p].is_outstanding, f"{p} is consumed"
    if opened_usd is None:
        return
    sums: dict[str, float] = {}
    pnl = fees = 0.0
    for f in told:
        sums[f["symbol"]] = sums.get(f["symbol"], 0.0) + signed_qty(f)
        pnl, fees = pnl + float(f.get("pnl_usd", 0.0)), fees + float(f["fee_usd"])
    assert sums == {s: h.qty for s, h in a.held.items()}, "positions are not the sum of fills"
    for s, h in a.held.items():
        standing = client.hget(LIVE.position(s), "position_amt")
        assert h.qty == 0.0 or standing is not None, f"no position of {s}"
        assert standing is None or float(standing) == h.qty, f"the position of {s} is not that of the account"
    assert abs(a.realised_usd - pnl) < 1e-6, "realised PnL"
    assert abs(a.fees_usd - fees) < 1e-6, "fees"
    assert abs(a.balance_usd - (a.paid_in_usd + pnl - fees)) < 1e-6, "money is lost or made"
    assert balance(client) == a.balance_usd
    assert c.consumed == len(consumed), "consumed permits"


class Venue:
    """A server with prices, a governor and an apply layer, on one clock.

    Attributes:
        server: the server.
        client: of it.
        clock: of everybody; None for the server's own.
        governor: that issues permits.
        apply: that takes them.
    """

    def __init__(
        self,
        server: EmbeddedServer,
        client: Client,
        directory: Path,
        clock: SetClock | None = None,
        *,
        params: GovernorParams = WIDE,
        signing: tuple[SigningKey, ...] = (),
        shadow: ShadowKeys | None = None,
        **settings: Any,
    ) -> None:
        """Build governor and apply layer, and tell the governor that everything is flat."""
        self.server, self.client, self.clock = server, client, clock
        self.settings = settings
        self.governor = gov.governing(
            Store(server.url, timeout_s=2.0), directory, "g", clock=clock, params=params, journalled=False,
            signing=signing, shadow=shadow,
        )  # fmt: skip
        self.apply = self.another()
        self.prices: dict[str, float] = {}
        self.publish()

    def another(self, **settings: Any) -> Applying:
        """A further apply layer over the same account, as after a restart."""
        store = Store(self.server.url, timeout_s=2.0)
        return applying(store, clock=self.clock, **{**self.settings, **settings})

    def close(self) -> None:
        """Let go of everything."""
        self.governor.crash()
        self.apply.crash()

    @property
    def now(self) -> float:
        """The clock."""
        return gov.server_now(self.client) if self.clock is None else self.clock.now()

    def wait(self, seconds: float) -> None:
        """Time goes by, and prices and portfolio are written again."""
        assert self.clock is not None
        self.clock.set(self.clock.now() + seconds)
        self.publish()

    def price(self, symbol: str, usd: float) -> None:
        """A symbol's price from now on."""
        self.prices[symbol] = usd
        gov.market(self.client, symbol, usd, self.now)

    def publish(self) -> None:
        """Prices and portfolio as they are now; positions are left to the apply layer."""
        now = self.now
        for symbol, usd in self.prices.items():
            gov.market(self.client, symbol, usd, now)
        held = [position(self.client, s) for s in self.prices]
        worth = [abs(h["position_amt"]) * self.prices[s] for s, h in zip(self.prices, held, strict=True) if h]
        worth = [usd for usd in worth if usd]
        gov.portfolio(self.client, now, sum(worth), len(worth))

    def permit(self, plan_id: str, symbol: str, action: str = "ENTRY", **fields: object) -> None:
        """A plan that the governor permits; an open of 1 at the symbol's price unless told otherwise."""
        own: dict[str, object] = {}
        if action == "ENTRY":
            own = {"side": "BUY", "qty": 1, "price": self.prices.get(symbol, 100.0), "kill_score": 0.1}
        gov.plan(self.client, plan_id, symbol, action, f"{self.now:.6f}", **{**own, **fields})
        self.govern()
        assert gov.events(self.client)[-1]["event"] == "PERMIT", gov.events(self.client)[-1]

    def govern(self) -> None:
        """The governor answers what there is."""
        self.governor.drain()

    def filled(self, plan_id: str, symbol: str, action: str = "ENTRY", **fields: object) -> dict[str, str]:
        """A plan that is permitted and filled; its entry in the execution stream."""
        self.permit(plan_id, symbol, action, **fields)
        self.apply.settle()
        (found,) = [f for f in fills(self.client) if f.get("plan_id") == plan_id]
        return found


def put_back(client: Client, plan_id: str, raw: str, *, life_s: int = 60, **changed: str) -> None:
    """A permit's key as it was, and its PERMIT event once more.

    Args:
        client: of the server.
        plan_id: of the plan.
        raw: bytes of the permit.
        life_s: of the key.
        changed: fields of the event that differ.
    """
    (event,) = [e for e in gov.events(client, "PERMIT") if e["plan_id"] == plan_id][:1]
    client.set(LIVE.permit(plan_id), raw, ex=life_s)
    client.xadd(gov.EVENTS, {**event, **changed})


def production(**changed: Any) -> ApplyParams:
    """The usual numbers with some changed."""
    return replace(PARAMS, **changed)


def us(seconds: float) -> int:
    """Microseconds."""
    return round(seconds * US)
