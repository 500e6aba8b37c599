"""The ledger of vacuity over a real server: each way in which real data ends turns it red.

Producers are written by hand, with the fields of the contract; the services that read them are the real ones, on a
clock of the test's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from quantum_alloc.adapters import server_check
from quantum_alloc.adapters.clock import SetClock
from quantum_alloc.adapters.embedded import EmbeddedServer
from quantum_alloc.adapters.keys import LIVE
from quantum_alloc.adapters.metrics import Metrics
from quantum_alloc.adapters.store import Store
from quantum_alloc.adapters.writes import Target
from quantum_alloc.core import AllocationParams, GovernorParams
from quantum_alloc.services import allocation, governor_status, http, status, status_inputs
from quantum_alloc.services.app import SERVICES
from quantum_alloc.services.cli import main
from quantum_alloc.services.loop import Loop
from quantum_alloc.services.options import GovernorOptions, load, port_variables
from quantum_alloc.services.proof_pages import Page, parsed
from quantum_alloc.services.status_inputs import BLIND, CONSTANT, NEVER, OFF, UNUSABLE, WELL
from tests.support import governing as g
from tests.support.worlds import Client

NOW = 1769577495
STEP_S = 120
AnyLoop = Loop[Any, Any, Any]
Fields = dict[str, str]
S, CID = "BTCUSDT", "C1"


@dataclass(frozen=True)
class Producer:
    """One record of other programs.

    Attributes:
        key: where it stands.
        time: the field of its time.
        value: the field that the reader needs.
        fields: of a time; the value moves with it.
        stream: whether it is one.
    """

    key: str
    time: str
    value: str
    fields: Callable[[float, float], Fields]
    stream: bool = False


def stamped(time: str, now: float, **fields: object) -> Fields:
    """Fields with their named time and ``ts``."""
    return {**{k: str(v) for k, v in fields.items()}, time: str(int(now)), "ts": str(int(now))}


def _portfolio(now: float, moved: float) -> Fields:
    return stamped(
        "timestamp", now, equity_usd=100_000 + moved, balance_usd=100_000, unrealized_pnl_usd=moved,
        positions_notional_usd=0, positions_count=0, peak_equity_usd=120_000, drawdown=0.1, source="test",
        ts_utc=int(now),
    )  # fmt: skip


def _budget(now: float, moved: float) -> Fields:
    return stamped(
        "timestamp", now, symbol=S, budget_usd=1_800 + moved, stress_factor=1, equity_usd=100_000, portfolio_heat=0,
        cluster_stress=0.1, vol_regime=0.1, mode="enforce", base_risk_pct=0.02,
    )  # fmt: skip


def _attribution(now: float, moved: float) -> Fields:
    return stamped(
        "ts_utc", now, performance_factor=0.5 + moved / 1e4, alpha_score=0, confidence=0.9, window=5, source="live",
        lkg_age_s=0, last_exec_ts=NOW, regime_contrib="{}", cluster_contrib="{}", signal_contrib="{}",
        time_contrib="{}", mode="enforce",
    )  # fmt: skip


def _regime(now: float, moved: float) -> Fields:
    return stamped("timestamp", now, regime="TREND", confidence=0.5 + moved / 1e4)


def _stress(now: float, moved: float) -> Fields:
    return stamped("timestamp", now, stress=0.2 + moved / 1e4, alpha=0)


PRODUCERS: Mapping[str, Producer] = {
    "portfolio": Producer(LIVE.portfolio, "timestamp", "equity_usd", _portfolio),
    "regime": Producer(LIVE.stream("regime.state"), "timestamp", "regime", _regime, stream=True),
    "budget": Producer(LIVE.budget(S), "timestamp", "budget_usd", _budget),
    "performance": Producer(LIVE.attribution(S), "ts_utc", "performance_factor", _attribution),
    "cluster": Producer(LIVE.stress(CID), "timestamp", "stress", _stress),
}
"""By the input of the allocation that they are."""


def as_it_is(fields: Fields, _: Producer) -> Fields:
    """No fault."""
    return fields


def renamed(fields: Fields, of: Producer) -> Fields:
    """The value under another name."""
    return {f"{k}_new" if k == of.value else k: v for k, v in fields.items()}


def other_alias(fields: Fields, of: Producer) -> Fields:
    """The time under another alias than the contract's; readers find it all the same."""
    left = {k: v for k, v in fields.items() if k not in (of.time, "ts", "ts_utc", "timestamp")}
    return {**left, "ts_epoch": fields["ts"]}


class World:
    """The allocation in enforce, and what feeds it."""

    def __init__(self, client: Client, url: str) -> None:
        """Everything well; nothing has run."""
        self.client, self.store, self.clock, self.now = client, Store(url), SetClock(NOW), float(NOW)
        self.metrics = Metrics("allocation")
        cycle = allocation.build(
            self.store, self.metrics, allocation.universe_of(), AllocationParams(), Target("enforce", 60), 5.0
        )
        self.loop: AnyLoop = Loop(cycle, self.store, self.metrics, self.clock)
        self.changed: dict[str, Callable[[Fields, Producer], Fields] | None] = {}
        self.still: set[str] = set()
        client.hset(LIVE.clusters, mapping={CID: json.dumps([S])})
        client.sadd(LIVE.universe, S)

    def run(self, seconds: float, step_s: float = STEP_S) -> None:
        """Producers write, and the allocation turns, until so much time has gone by; once at least."""
        until = self.now + seconds
        while True:
            self.clock.set(self.now)
            for name, of in PRODUCERS.items():
                change = self.changed.get(name, as_it_is)
                if change is None:
                    continue
                fields = change(of.fields(self.now, 0.0 if name in self.still else self.now - NOW), of)
                if of.stream:
                    self.client.xadd(of.key, fields)
                else:
                    self.client.delete(of.key)
                    self.client.hset(of.key, mapping=fields)
            assert self.loop.once(), self.loop.last_error
            if self.now >= until:
                return
            self.now = min(self.now + step_s, until)

    def rows(self) -> dict[str, dict[str, Any]]:
        """The ledger's rows of the allocation, as the command makes them."""
        settings = load(list(SERVICES), {"REDIS_URL": "unix:///nowhere"}, together=False)
        found = {name: Page(name, 0) for name in SERVICES}
        found["allocation"] = page_of(self.metrics)
        rows = status_inputs.ledger(found, status_inputs.contract(self.store, settings, self.now))
        return {row["name"]: row for row in rows if row["service"] == "allocation"}


def page_of(metrics: Metrics) -> Page:
    """What a service with these metrics answers."""
    samples, families = parsed(metrics.render().decode())
    return Page(metrics.service, 0, 200, {"service": metrics.service}, 200, samples, families)


@pytest.fixture
def world(one_server: EmbeddedServer, one_client: Client) -> Iterator[World]:
    """The allocation over an empty server."""
    found = World(one_client, one_server.url)
    yield found
    found.store.close()


def test_all_is_well_while_real_data_comes(world: World) -> None:
    """The producers of these tests are those of the contract: red is the fault's alone."""
    world.run(4_800.0)
    rows = world.rows()
    assert {name: (rows[name]["state"], rows[name]["contract"]) for name in PRODUCERS} == dict.fromkeys(
        PRODUCERS, (WELL, "")
    )
    assert all(rows[name]["armed"] and rows[name]["real"] == 1.0 for name in PRODUCERS)
    assert rows["proposal"]["armed"] is False
    assert not status_inputs.is_red(list(rows.values()))


@pytest.mark.parametrize("fault", ["renamed", "stopped"])
@pytest.mark.parametrize("name", PRODUCERS)
def test_a_renamed_field_and_a_producer_that_stops_go_blind(world: World, name: str, fault: str) -> None:
    """At 600 s after the last real look and not before; a renamed field breaks the contract at once."""
    world.run(600.0)
    assert world.rows()[name]["state"] == WELL
    world.changed[name] = renamed if fault == "renamed" else None
    if fault == "stopped":
        of = PRODUCERS[name]
        world.client.delete(of.key)
    last_real = world.now
    world.now += 1.0
    world.run(597.0)
    assert world.now == last_real + 598.0
    assert world.rows()[name]["state"] == (OFF if fault == "renamed" else UNUSABLE)  # but not blind yet
    world.now = last_real + 600.0
    world.run(0.0)
    row = world.rows()[name]
    assert row["state"] == BLIND
    assert row["age_s"] == 600
    assert bool(row["contract"]) == (fault == "renamed")
    world.changed.clear()
    world.run(0.0)
    assert world.rows()[name]["state"] != BLIND


@pytest.mark.parametrize("name", PRODUCERS)
def test_a_time_under_another_alias_breaks_the_contract(world: World, name: str) -> None:
    """Readers take it, so nothing is blind; the contract's column tells it."""
    world.changed[name] = other_alias
    world.run(0.0)
    row = world.rows()[name]
    assert row["state"] == OFF
    assert row["real"] == 1.0
    assert "ts_epoch" in row["contract"]
    assert status_inputs.is_red([row])


@pytest.mark.parametrize("name", PRODUCERS)
def test_an_input_that_is_constant_for_an_hour_is_told(world: World, name: str) -> None:
    """Fresh times around a value that stands still."""
    world.still.add(name)
    world.run(3_599.0)
    assert world.rows()[name]["state"] == WELL
    world.run(1.0)
    rows = world.rows()
    assert rows[name]["state"] == CONSTANT
    assert [n for n in PRODUCERS if rows[n]["state"] != WELL] == [name]


def test_a_market_without_a_regime_is_not_constant(world: World) -> None:
    """NEUTRAL says 0.5 by rule for as long as it lasts: nothing has stopped."""
    world.changed["regime"] = lambda fields, _: {**fields, "regime": "NEUTRAL", "confidence": "0.5"}
    world.run(7_200.0)
    assert world.rows()["regime"]["state"] == WELL
    assert world.metrics.values("quantum_alloc_input_constant_seconds").get(("regime",), 0.0) < 600.0


def test_a_loop_that_hangs_is_late_at_the_next_scrape(world: World) -> None:
    """Nothing but the page itself has to run for it: no cycle for 15 s and three intervals."""
    world.run(0.0)
    assert page_of(world.metrics).sum("quantum_alloc_loop_late") == 0.0
    world.loop.finished_at -= 16.0
    assert page_of(world.metrics).sum("quantum_alloc_loop_late") == 1.0


def test_budgets_that_are_all_gone_are_blindness(world: World) -> None:
    """With the last budget the universe is empty, and nothing is looked at: that must not look like rest."""
    world.run(0.0)
    world.changed["budget"] = None
    world.client.delete(LIVE.budget(S))
    world.client.srem(LIVE.universe, S)
    world.now += 600.0
    world.run(0.0)
    assert world.metrics.value("quantum_alloc_symbols") == 0.0
    assert world.rows()["budget"]["state"] == BLIND


@pytest.fixture
def governed(one_server: EmbeddedServer, tmp_path: Path) -> Iterator[tuple[g.Governing, SetClock]]:
    """A governor in production on a clock of the test's."""
    store, clock = Store(one_server.url), SetClock(NOW)
    params = GovernorParams(
        apply_mode="production", max_exec_per_hour=100, max_exec_per_5min=100, disarm_on_burst=False
    )
    found = g.governing(store, tmp_path, "one", clock=clock, params=params)
    yield found, clock
    found.crash()
    store.close()


def asked(client: Client, one: g.Governing, clock: SetClock, at: float, plan_id: str) -> None:
    """One opening plan, on a market and a portfolio that are there."""
    clock.set(at)
    g.portfolio(client, at)
    g.position(client, S, 1.0, at)
    g.market(client, S, 100.0, at)
    g.opening(client, plan_id, S, at)
    assert one.once()


def test_an_enforced_gate_without_its_target_goes_blind(
    one_client: Client, governed: tuple[g.Governing, SetClock]
) -> None:
    """Gate 0.5 fails open for ten minutes: armed but blind, also when no plan comes any more; and it sees again."""
    one, clock = governed
    m, flag = one.loop.metrics, ("quantum_alloc_armed_but_blind", "gate", "0.5")
    assert m.value(*flag) == 0.0
    g.target(one_client, S, 5_000.0, NOW)
    asked(one_client, one, clock, NOW, "real")
    one_client.delete(LIVE.target(S))
    for i, at in enumerate((100, 300, 580)):
        asked(one_client, one, clock, NOW + at, f"blind-{i}")
        assert m.value(*flag) == 0.0
    assert m.value("quantum_alloc_real_data_ratio", "gate", "0.5") == 0.25
    clock.set(NOW + 600)
    assert one.once()
    assert m.value(*flag) == 1.0
    assert m.value("quantum_alloc_armed_but_blind", "input", "target") == 1.0
    row = next(r for r in _governor_rows(m) if r["name"] == "gate 0.5")
    assert (row["state"], row["not_real"], row["looks"]) == (BLIND, "missing 3", 4)
    g.target(one_client, S, 5_000.0, NOW + 700)
    asked(one_client, one, clock, NOW + 700, "sees")
    assert m.value(*flag) == 0.0
    clock.set(NOW + 9_000)
    assert one.once()
    assert m.value(*flag) == 0.0


def _governor_rows(metrics: Metrics) -> list[dict[str, Any]]:
    found = {name: Page(name, 0) for name in SERVICES}
    found["governor"] = page_of(metrics)
    return [row for row in status_inputs.ledger(found, {}) if row["service"] == "governor"]


def test_headroom_follows_verdicts_and_loosens_with_time(
    one_client: Client, governed: tuple[g.Governing, SetClock]
) -> None:
    """Of a symbol's last plan what the gate saw; windows and cooldown by the clock; nothing after an hour."""
    one, clock = governed
    m, name = one.loop.metrics, "quantum_alloc_limit_used_ratio"
    g.target(one_client, S, 1_000.0, NOW)
    g.budget(one_client, S, 1_000.0, NOW)
    asked(one_client, one, clock, NOW, "p1")
    made = m.values(name)
    assert made["4.cooldown", S] == 1.0
    assert made["3", S] == made["2", S] == 0.01
    permitted = [e for e in g.events(one_client) if e.get("plan_id") == "p1"]
    assert permitted
    assert made["4.trade", S] == pytest.approx(made["4.total", S] * 10.0)
    assert made["0.5", S] == made["0", S] > 0.1
    clock.set(NOW + 30.0)
    assert one.once()
    assert m.value(name, "4.cooldown", S) == 0.5
    clock.set(NOW + 300.0)
    assert one.once()
    assert (m.value(name, "3", S), m.value(name, "2", S), m.value(name, "4.cooldown", S)) == (0.0, 0.01, 0.0)
    clock.set(NOW + 3_000.0)
    g.portfolio(one_client, NOW + 3_000.0)
    g.position(one_client, S, 1.0, NOW + 3_000.0)
    g.closing(one_client, "p2", S, NOW + 3_000.0)
    assert one.once()
    assert {"5", "0.5"} <= {gate for gate, _ in m.values(name)}
    clock.set(NOW + 3_600.0)  # what the open found is an hour old, what the close found is not
    assert one.once()
    assert {gate for gate, _ in m.values(name)} == {"plan", "5", "2", "3", "4.cooldown"}
    clock.set(NOW + 6_661.0)
    assert one.once()
    assert m.values(name) == {}


def test_a_limit_that_is_nearly_used_up_is_told_once(
    one_client: Client,
    governed: tuple[g.Governing, SetClock],
    heard: pytest.LogCaptureFixture,
) -> None:
    """From 80 % on one line, and one when it is below 75 % again; the gate's and the symbol's names stand in it."""
    one, clock = governed
    told: list[dict[str, Any]] = []
    steps = ((120.0, 1), (119.0, 1), (2_000.0, 2), (118.0, 3))  # 100 USD are held
    for i, (usd, lines) in enumerate(steps):
        at = NOW + 60.0 * i
        g.target(one_client, S, usd, at)
        g.budget(one_client, S, 1_000.0, at)
        asked(one_client, one, clock, at, f"p{i}")
        told = [r.fields for r in heard.records if getattr(r, "fields", {}).get("state") == "headroom"]  # type: ignore[attr-defined]
        assert len([f for f in told if f["gate"] == "0.5"]) == lines
    assert {(f["gate"], f["symbol"]) for f in told} == {("0.5", S)}
    assert [f["to"] for f in told] == ["short", "ok", "short"]


def test_status_shows_headroom_the_most_used_first(
    one_client: Client, one_server: EmbeddedServer, governed: tuple[g.Governing, SetClock]
) -> None:
    """From what stands in Redis: rates, cooldown, totals, exposure against budget and target; near from 80 % on."""
    one, clock = governed
    now = g.server_now(one_client)
    g.budget(one_client, S, 1_000.0, now)
    g.target(one_client, S, 105.0, now)
    asked(one_client, one, clock, now, "p1")
    g.portfolio(one_client, now, notional_usd=500.0, count=9)
    settings = load(list(SERVICES), {"REDIS_URL": one_server.url}, together=False)
    rows = governor_status.headroom(one.store, settings, now)
    found = {(row["gate"], row["symbol"]): row for row in rows}
    assert [row["used"] for row in rows] == sorted((row["used"] for row in rows), reverse=True)
    assert found["0.5", S]["used"] == pytest.approx(100.0 / 105.0)
    assert found["0.5", S]["mark"] == found["4.positions", ""]["mark"] == "near"
    assert found["0", S]["used"] == pytest.approx(0.1)
    assert found["4.total", ""]["used"] == pytest.approx(0.25)
    assert (found["4.positions", ""]["observed"], found["0", S]["mark"]) == (9, "")
    assert ("2 opens", S) not in found  # it was blocked: the target is below what it would come to
    assert one.loop.metrics.values("quantum_alloc_blocks_total") == {("p29_allocation_cap",): 1.0}
    g.target(one_client, S, 5_000.0, now + 1)
    asked(one_client, one, clock, now + 1, "p2")
    later = {(r["gate"], r["symbol"]): r for r in governor_status.headroom(one.store, settings, now + 1)}
    assert later["2 opens", S]["observed"] == later["3 opens", S]["observed"] == 1
    assert later["2 opens", S]["used"] == pytest.approx(1 / settings.of(GovernorOptions).params().max_exec_per_hour)
    assert later["4.cooldown", S]["used"] > 0.5
    simulated = load(list(SERVICES), {"REDIS_URL": one_server.url, "CLOCK": "simulated"})
    for of, at, opens in ((simulated, now + 2, "1 of 3"), (simulated, now + 4000, "0 of 3"), (settings, 5.0, "1 of 3")):
        assert governor_status.windows(one.store, of, at)[0]["opens in 1 h"] == opens, "by whose clock the permits are"
    g.target(one_client, S, 50.0, now + 1)
    above = {(r["gate"], r["symbol"]): r for r in governor_status.headroom(one.store, settings, now + 1)}
    assert above["0.5", S]["mark"] == "over"
    g.budget(one_client, S, 50.0, now + 1, mode="shadow")
    g.position(one_client, S, 1.0, now - 300)
    assert ("0", S) not in {(r["gate"], r["symbol"]) for r in governor_status.headroom(one.store, settings, now + 1)}


GOOD = """\
quantum_alloc_inputs_total{input="budget",reason="ok"} 2.0
quantum_alloc_real_data_ratio{kind="input",name="budget"} 1.0
quantum_alloc_real_data_age_seconds{kind="input",name="budget"} 1.0
quantum_alloc_input_constant_seconds{input="budget"} 4.0
quantum_alloc_armed_but_blind{kind="input",name="budget"} 0.0
"""


@pytest.mark.parametrize("line", GOOD.splitlines())
def test_a_page_of_anybody_ends_nothing(line: str) -> None:
    """Numbers that are none, and samples without their labels, are no samples: a ledger is made of the rest."""
    name = line.partition("{")[0]
    for other in (
        *(f"{line.rpartition(' ')[0]} {n}" for n in ("NaN", "+Inf", "-Inf")),
        f"{name} 1.0",
        name + '{input="budget"} 1.0',
    ):
        samples, families = parsed(GOOD.replace(line, other))
        found = {service: Page(service, 0) for service in SERVICES}
        found["allocation"] = Page("allocation", 1, 200, {"service": "allocation"}, 200, samples, families)
        (row,) = [r for r in status_inputs.ledger(found, {}) if r["name"] == "budget"]
        assert row["state"] in (WELL, NEVER), other
        json.dumps(row, allow_nan=False)


def test_a_ledger_of_nobody_is_no_good_news(one_server: EmbeddedServer, capsys: pytest.CaptureFixture[str]) -> None:
    """Where no service answers, nothing is known, and the exit code tells it."""
    nobody = {name: str(i) for i, name in enumerate((n for s in SERVICES for n in port_of(s)), 1)}
    assert main(["status", "--inputs"], {"REDIS_URL": one_server.url, **nobody}) == 1
    assert "no service answers" in capsys.readouterr().err


def test_the_command_shows_the_ledger(
    world: World,
    one_server: EmbeddedServer,
    one_client: Client,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Rows of services that answer and of those that do not, the worst first; 0 while all is well, 1 when it is not."""
    world.run(120.0)
    about: dict[str, Any] = {}
    server = http.serve("127.0.0.1", 0, http.routes(world.loop, about), "allocation", "P29_METRICS_PORT")
    port = server.server_address[1]
    variable = next(iter(port_of("allocation")))
    nobody = {name: str(i) for i, name in enumerate((n for s in SERVICES for n in port_of(s)), 1)}
    environ = {"REDIS_URL": one_server.url, **nobody, variable: str(port)}
    try:
        assert main(["status", "--inputs"], environ) == 1
        assert "not well: portfolio not reached, regime not reached" in capsys.readouterr().err
        monkeypatch.setattr(status, "NEEDED", frozenset(["allocation"]))
        assert main(["status", "--inputs", "--format", "json"], environ) == 0
        found = json.loads(capsys.readouterr().out)
        rows = {row["name"]: row for row in found["inputs"] if row["service"] == "allocation"}
        assert rows["budget"]["state"] == WELL
        assert {r["service"] for r in found["inputs"] if r["state"] == "not reached"} == {
            name for name in SERVICES if name not in ("allocation", "feed")
        }
        for place, code in ((one_server.url, 0), ("redis://somebody:***@192.0.2.1:6379/0", 1)):
            about["redis"] = place
            assert main(["status", "--inputs"], environ) == code
        assert "allocation: another server stands behind this port" in capsys.readouterr().err
        about["redis_run_id"] = "another"
        real = server_check.read_facts
        long_up = lambda store: replace(real(store), up_s=3600)  # noqa: E731 - it was not just started
        monkeypatch.setattr(server_check, "read_facts", long_up)
        assert main(["status", "--inputs"], environ) == 1
        out, err = capsys.readouterr()
        assert "allocation works on another Redis" in err
        assert [line.split()[:2] for line in out.splitlines() if line.startswith("allocation")] == [
            ["allocation", "-"]
        ], "nothing is taken from it"
        about["redis_run_id"] = one_client.info("server")["run_id"]
        assert main(["status", "--inputs"], environ) == 0, "the same server by another name"
        capsys.readouterr()
        about.clear()
        capsys.readouterr()
        world.changed["budget"] = renamed
        world.now += 1.0
        world.run(0.0)
        assert main(["status", "--inputs"], environ) == 1
        shown = capsys.readouterr().out
        assert shown.splitlines()[1].split()[:2] == ["allocation", "budget"]
        assert "budget_usd is missing" in shown
        assert "1 off contract" in shown
        assert max(map(len, shown.splitlines())) <= 80
    finally:
        server.shutdown()
        server.server_close()


def port_of(service: str) -> list[str]:
    """The variables of a service's ports."""
    settings = load(list(SERVICES), {"REDIS_URL": "unix:///nowhere"}, together=False)
    return list(port_variables(settings.services[service]))
