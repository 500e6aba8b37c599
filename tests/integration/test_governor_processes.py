"""Governors as an operator runs them: processes, signals, kill switch and state directory, over a real server."""

from __future__ import annotations

import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from random import Random
from threading import Event, Thread
from typing import Any

import pytest
import redis

from quantum_alloc.adapters import journal as journals
from quantum_alloc.adapters.embedded import EmbeddedServer, free_port
from quantum_alloc.adapters.governor_scripts import LATCH
from quantum_alloc.adapters.keys import LIVE
from quantum_alloc.adapters.store import Store
from quantum_alloc.services.cli import main
from tests.conftest import CI
from tests.support import governing as gov
from tests.support.running import Service, until
from tests.support.worlds import Client

BTC, ETH, SOL = "BTCUSDT", "ETHUSDT", "SOLUSDT"
WIDE = {
    "APPLY_MODE": "production",
    "GOV_ENABLE_AUTO_DISARM": "0",
    "GOV_SYMBOL_COOLDOWN_SECONDS": "0",
    "GOV_MAX_EXEC_PER_HOUR": "10000",
    "GOV_MAX_EXEC_PER_5MIN": "10000",
    "GOV_MAX_CLOSE_PER_HOUR": "800",
    "GOV_MAX_CLOSE_PER_5MIN": "10000",
    "GOV_MAX_OPEN_POSITIONS": "1000",
    "GOV_MAX_TOTAL_NOTIONAL_USDT": "1e12",
    "GOV_MAX_REDUCE_NOTIONAL_PER_DAY_USD": "1e12",
    "LOG_LEVEL": "WARNING",
}
"""Limits that stop nothing; a test states those that it is about."""


def connected(url: str) -> Client:
    """A client."""
    found: Any = redis.Redis.from_url(url, protocol=2, decode_responses=True)
    return found


def governor(url: str, directory: Path, consumer: str = "gov-a", **environ: str) -> Service:
    """A governor; entering starts it."""
    return Service("governor", url, **{**WIDE, "STATE_DIRECTORY": str(directory), "GOV_CONSUMER": consumer, **environ})


def is_settled(client: Client) -> bool:
    """True when no plan waits."""
    return gov.pending(client) == 0 and gov.unread(client) == 0


def fresh(client: Client, *held: str) -> float:
    """A fresh portfolio, positions of 5 at 100 USD, and the server's clock."""
    now = gov.server_now(client)
    gov.portfolio(client, now, 500.0 * len(held), len(held))
    for symbol in held:
        gov.position(client, symbol, 5.0, now)
    return now


def permits(client: Client) -> Counter[str]:
    """PERMIT events by plan id."""
    return Counter(f["plan_id"] for f in gov.events(client, "PERMIT"))


def agree(client: Client, symbols: list[str], *directories: Path) -> None:
    """Permits, PERMIT events, ledger entries and the journals' permit outcomes are the same plans, each once."""
    told = permits(client)
    assert not [i for i, n in told.items() if n > 1], "a second PERMIT event"
    assert Counter(i for s in symbols for i in gov.ledger(client, s)) == told
    standing = {k.rpartition(":")[2] for k in client.scan_iter(match=LIVE.permit("*"), count=10_000)}
    since = client.time()[0] - 50  # an older one may have expired
    young = {f["plan_id"] for _, f in client.xrange(gov.EVENTS, since * 1000) if f["event"] == "PERMIT"}
    assert young <= standing <= told.keys()
    assert Counter(e.plan_id for e in gov.journalled(*directories) if e.is_done) == told


def answered(client: Client) -> Counter[str]:
    """How many plan entries of each id have an answer."""
    return Counter(f["plan_id"] for f in gov.events(client, "PERMIT", "BLOCK", "REPLAY", "CONFLICT"))


@contextmanager
def flow(url: str, send: Callable[[Client, int, float], None], pause_s: float) -> Iterator[None]:
    """Plans in a steady flow, and inputs that stay fresh, until the end of the block."""
    stop = Event()
    troubles: list[BaseException] = []

    def run() -> None:
        client, n, at = connected(url), 0, 0.0
        try:
            while not stop.is_set():
                if time.monotonic() >= at:
                    fresh(client, SOL)
                    at = time.monotonic() + 1.0
                send(client, n, gov.server_now(client))
                n += 1
                stop.wait(pause_s)
        except BaseException as error:
            troubles.append(error)
        finally:
            client.close()

    thread = Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(10)
    assert not troubles, troubles


# ---- many plans, several governors

OPENS_5MIN, CLOSES_5MIN, PLANS_SENT, SYMBOLS_SENT = 4, 7, 20_000 if CI else 6_000, 100


def test_four_governors_give_what_one_gives(
    one_server: EmbeddedServer, one_client: Client, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """20,000 plans of 100 symbols (6,000 outside CI), half of them repeats, four governors that share a directory; at
    most 4 opens and 7 closes of a symbol in 300 s. Each symbol gets exactly that many permits, no id two, nothing is
    left pending, every plan has its answer, and permits, events, ledgers and journals agree (27, 28, 30, 34)."""
    symbols = [f"S{n:03}" for n in range(SYMBOLS_SENT)]
    held = symbols[SYMBOLS_SENT // 2 :]
    now = fresh(one_client, *held)
    entries = [n for n in range(PLANS_SENT // 2) for _ in range(2)]
    Random(7).shuffle(entries)
    pipe = one_client.pipeline(transaction=False)
    for n in entries:
        symbol = symbols[n % SYMBOLS_SENT]
        what = {"action": "PARTIAL_25"} if symbol in held else {"action": "ENTRY", "side": "BUY", "qty": "1"}
        pipe.xadd(
            gov.PLANS,
            {"plan_id": f"p{n}", "symbol": symbol, "decision": "EXECUTE", "timestamp": repr(now), **what}
            | ({} if symbol in held else {"price": "100", "kill_score": "0.1"}),
        )
    pipe.execute()
    limits = {"GOV_MAX_EXEC_PER_5MIN": str(OPENS_5MIN), "GOV_MAX_CLOSE_PER_5MIN": str(CLOSES_5MIN)}
    with ExitStack() as stack:
        running = [stack.enter_context(governor(one_server.url, tmp_path, f"gov-{n}", **limits)) for n in range(4)]
        until(lambda: one_client.xlen(gov.EVENTS), 15, "the first answers")
        started = time.monotonic()
        while one_client.xlen(gov.EVENTS) < PLANS_SENT:
            assert time.monotonic() - started < 120, f"{one_client.xlen(gov.EVENTS)} of {PLANS_SENT} answers"
            fresh(one_client, *held)
            time.sleep(0.1)
        took = time.monotonic() - started
        until(lambda: is_settled(one_client), 5, "nothing is pending")
        worked = {
            s.environ["GOV_CONSUMER"]: s.metric("quantum_alloc_plans_total" + '{result="permit"}') for s in running
        }
        for service in running:
            assert service.terminate()[0] == 0, service.output
    with capsys.disabled():
        print(f"\n4 governors: {PLANS_SENT} plans in {took:.1f} s, {PLANS_SENT / took:.0f} plans/s", end="")
    told = gov.events(one_client)
    assert len(told) == PLANS_SENT
    assert answered(one_client) == Counter(f"p{n}" for n in entries)
    first = Counter(f["plan_id"] for f in told if f["event"] in gov.VERDICTS)
    assert first == Counter(f"p{n}" for n in range(PLANS_SENT // 2)), "one verdict an id"
    assert {f["event"] for f in told} == {"PERMIT", "BLOCK", "REPLAY"}
    of_symbol = Counter(f["symbol"] for f in told if f["event"] == "PERMIT")
    assert of_symbol == {s: CLOSES_5MIN if s in held else OPENS_5MIN for s in symbols}
    assert sum(n > 0 for n in worked.values()) >= 2, f"the work was shared: {worked}"
    agree(one_client, symbols, tmp_path)


@pytest.mark.parametrize("cap", ["total notional", "positions"])
def test_four_governors_share_the_global_caps(
    cap: str, one_server: EmbeddedServer, one_client: Client, tmp_path: Path
) -> None:
    """Opens of 600 symbols at four running governors, room for 203 of them in all: 203 permits, neither more nor
    fewer (42)."""
    room, sent = 203, 600
    symbols = [f"S{n:04}" for n in range(sent)]
    limits = {
        "total notional": {"GOV_MAX_TOTAL_NOTIONAL_USDT": str(100 * room), "GOV_MAX_OPEN_POSITIONS": "10000"},
        "positions": {"GOV_MAX_OPEN_POSITIONS": str(room)},
    }[cap]
    with ExitStack() as stack:
        running = [stack.enter_context(governor(one_server.url, tmp_path, f"gov-{n}", **limits)) for n in range(4)]
        for service in running:
            until(service.ready, 15, "ready")
        for at in range(0, sent, 20):
            now = fresh(one_client)
            pipe = one_client.pipeline(transaction=False)
            for n in range(at, at + 20):
                gov.opening(pipe, f"p{n}", symbols[n], repr(now))
            pipe.execute()
        until(lambda: one_client.xlen(gov.EVENTS) >= sent and is_settled(one_client), 60, "every plan has its answer")
    assert answered(one_client) == Counter(f"p{n}" for n in range(sent))
    assert len(permits(one_client)) == room
    assert len(gov.book(one_client)) == room
    agree(one_client, symbols, tmp_path)


# ---- SIGKILL

KILLS = 60 if CI else 10


def test_sigkill_at_random_instants(one_server: EmbeddedServer, one_client: Client, tmp_path: Path) -> None:
    """A governor killed and started again and again under a steady flow of plans, a third of them repeats: each plan
    has its answer, none two permits, none is given up, nothing is left pending (27, 30, 34)."""
    rng = Random(11)
    fresh(one_client, SOL)
    symbols = [*(f"S{n:02}" for n in range(10)), SOL]
    stamps: dict[int, str] = {}

    def send(client: Client, n: int, now: float) -> None:
        of = n - 2 if n % 3 == 2 else n
        stamp = stamps.setdefault(of, repr(now))
        if of % 11 == 10:
            gov.closing(client, f"p{of}", SOL, stamp, action="PARTIAL_25")
        else:
            gov.opening(client, f"p{of}", symbols[of % 11], stamp)
        stamps.pop(n - 10, None)

    killed = 0
    with flow(one_server.url, send, 0.02):
        while killed < KILLS:
            before = one_client.xlen(gov.EVENTS)
            with governor(one_server.url, tmp_path) as service:
                until(lambda before=before: one_client.xlen(gov.EVENTS) > before, 10, "it answers")  # type: ignore[misc]
                time.sleep(rng.random() * 0.25)
                assert service.process is not None
                service.process.kill()
                assert service.wait() == -signal.SIGKILL
                killed += 1
    with governor(one_server.url, tmp_path) as service:
        until(service.ready, 10, "its journal is read")
        until(lambda: is_settled(one_client), 10, "nothing is pending")
    sent = Counter(f["plan_id"] for _, f in one_client.xrange(gov.PLANS))
    assert answered(one_client) == sent
    assert len(sent) > 5 * KILLS
    blocks = {f["reason"] for f in gov.events(one_client, "BLOCK")}
    assert blocks == set(), "the limits stop nothing here"
    assert not one_client.exists(gov.DEAD)
    agree(one_client, symbols, tmp_path)


# ---- SIGTERM


def test_sigterm_at_random_instants(one_server: EmbeddedServer, one_client: Client, tmp_path: Path) -> None:
    """SIGTERM under load: exit 0 within 2 s, and a batch was finished or not begun: every intent of the journal has
    its outcome, and every plan is answered or still there."""
    rng = Random(5)
    fresh(one_client, SOL)

    def send(client: Client, n: int, now: float) -> None:
        gov.opening(client, f"p{n}", f"S{n % 10:02}", repr(now))

    with flow(one_server.url, send, 0.02):
        for _ in range(30 if CI else 6):
            with governor(one_server.url, tmp_path) as service:
                until(lambda service=service: service.get("/health")[0] == 200, 10, "it runs")  # type: ignore[misc]
                time.sleep(rng.random() * 0.5)
                code, took = service.terminate()
                assert (code, took < 2.0) == (0, True), service.output
            path = tmp_path / journals.file_name("gov-a")
            assert all(e.is_done for e in journals.read(path)), "an intent without an outcome"
            assert Counter(e.plan_id for e in journals.read(path)) == permits(one_client)
    with governor(one_server.url, tmp_path) as service:
        until(service.ready, 10, "its journal is read")
        until(lambda: is_settled(one_client), 10, "nothing is pending")
    assert answered(one_client) == Counter(f["plan_id"] for _, f in one_client.xrange(gov.PLANS))
    agree(one_client, [f"S{n:02}" for n in range(10)], tmp_path)


def test_the_end_leaves_nothing_open(one_server: EmbeddedServer, one_client: Client, tmp_path: Path) -> None:
    """After SIGTERM the log has no warning of the interpreter's: every file was closed."""
    fresh(one_client)
    with governor(one_server.url, tmp_path) as service:
        until(service.ready, 10, "ready")
        assert service.terminate()[0] == 0
        assert "Warning" not in service.output


# ---- kill switch

DRILLS = 50 if CI else 5


def mark(client: Client, state: str | None, marker: str) -> None:
    """Set or delete the kill key, and write a marker between the events in the same step."""
    pipe = client.pipeline(transaction=True)
    if state is None:
        pipe.delete(LIVE.kill)
    elif state == "of another type":
        pipe.delete(LIVE.kill)
        pipe.hset(LIVE.kill, "a", "hash")
    else:
        pipe.set(LIVE.kill, state)
    pipe.xadd(gov.EVENTS, {"event": "MARKER", "reason": marker})
    pipe.execute()


def after(client: Client, marker: str) -> list[dict[str, str]]:
    """Events behind a marker, up to the next one."""
    told = gov.events(client)
    start = max(n for n, f in enumerate(told) if f["event"] == "MARKER" and f["reason"] == marker)
    rest = told[start + 1 :]
    end = next((n for n, f in enumerate(rest) if f["event"] == "MARKER"), len(rest))
    return rest[:end]


def test_kill_drills(one_server: EmbeddedServer, one_client: Client, tmp_path: Path) -> None:
    """Two governors under load. After HALT, a key of another type or an unknown word no PERMIT follows, also when the
    key is off again, until a rearm; after reduce none that opens, and closes go on, until the key is off. Order is
    that of the server: a marker is written in the step that sets the key (26)."""
    rng = Random(3)
    fresh(one_client, SOL)

    def send(client: Client, n: int, now: float) -> None:
        if n % 4 == 3:
            gov.closing(client, f"p{n}", SOL, repr(now), action="PARTIAL_25")
        else:
            gov.opening(client, f"p{n}", f"S{n % 10:02}", repr(now))

    def opens(marker: str) -> list[str]:
        found = after(one_client, marker)
        return [f["plan_id"] for f in found if f["event"] == "PERMIT" and f["movement"] == "open"]

    def moves(marker: str) -> set[str]:
        return {f["movement"] for f in after(one_client, marker) if f["event"] == "PERMIT"}

    def halted(marker: str) -> int:
        return sum(f.get("reason") == "kill_switch_active" for f in after(one_client, marker))

    def rearmed() -> bool:
        return not one_client.exists(LIVE.latch) and not list(tmp_path.glob("*.latch"))

    with ExitStack() as stack:
        running = [stack.enter_context(governor(one_server.url, tmp_path, f"gov-{n}")) for n in range(2)]
        for service in running:
            until(service.ready, 15, "ready")
        stack.enter_context(flow(one_server.url, send, 0.003))
        mark(one_client, None, "begin")
        until(lambda: moves("begin") == {"open", "close"}, 5, "permits flow")
        for n in range(DRILLS):
            state = ("halt", "reduce", "of another type", "stop", "1")[n % 5]
            time.sleep(rng.random() * 0.1)
            mark(one_client, state, f"set {n}")
            if state == "reduce":
                until(lambda n=n: moves(f"set {n}"), 5, "closes go on")  # type: ignore[misc]
                time.sleep(0.05)
                assert opens(f"set {n}") == []
            else:
                until(lambda n=n: halted(f"set {n}") > 5, 5, "plans are blocked")  # type: ignore[misc]
                assert moves(f"set {n}") == set()
                mark(one_client, "off" if n % 2 else None, f"off {n}")
                until(lambda n=n: halted(f"off {n}") > 10, 5, "the latch holds")  # type: ignore[misc]
                assert moves(f"off {n}") == set()
                until(lambda: len(list(tmp_path.glob("*.latch"))) == 2, 5, "each governor keeps it")
                gov.rearm(one_client, gov.server_now(one_client))
                until(rearmed, 2, "each governor has seen the rearm")
            mark(one_client, None, f"end {n}")
            until(lambda n=n: moves(f"end {n}") == {"open", "close"}, 2, "it permits again")  # type: ignore[misc]
            assert not one_client.exists(LIVE.latch)
            assert not list(tmp_path.glob("*.latch"))
        for service in running:
            assert service.terminate()[0] == 0, service.output


def test_a_halt_outlives_server_and_governor(
    one_server: EmbeddedServer, one_client: Client, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The commands: halt latches; off does not rearm and says so; FLUSHALL and a governor started anew leave it
    halted, and the latch is written to Redis again; a rearm before off is refused, after it permits again (26)."""
    environ = {"REDIS_URL": one_server.url, "STATE_DIRECTORY": str(tmp_path / "ops"), "LOG_LEVEL": "ERROR"}

    def reason(plan_id: str) -> str:
        gov.opening(one_client, plan_id, BTC, repr(fresh(one_client)))
        until(lambda: answered(one_client)[plan_id], 5, f"{plan_id} is answered")
        (told,) = [f for f in gov.events(one_client, "PERMIT", "BLOCK") if f["plan_id"] == plan_id]
        return told["reason"]

    with governor(one_server.url, tmp_path) as service:
        until(service.ready, 10, "ready")
        assert reason("p1") == "ok"
        assert main(["kill", "halt", "--by", "drill", "--why", "a drill"], environ) == 0
        assert reason("p2") == "kill_switch_active"
        assert one_client.hget(LIVE.latch, "state") == "HALT"
        assert service.metric("quantum_alloc_kill_latched") == 1.0
        assert main(["rearm", "--by", "drill", "--why", "too soon"], environ) == 2
        assert main(["kill", "off", "--by", "drill"], environ) == 0
        assert "rearm" in capsys.readouterr().out
        assert reason("p3") == "kill_switch_active"
        one_client.flushall()
        assert reason("p4") == "kill_switch_active"
        assert one_client.hget(LIVE.latch, "state") == "HALT"
        service.terminate()
    one_client.flushall()
    with governor(one_server.url, tmp_path) as service:
        assert reason("p5") == "kill_switch_active"
        assert one_client.hget(LIVE.latch, "state") == "HALT"
        assert main(["rearm", "--by", "drill", "--why", "the drill is over"], environ) == 0
        assert reason("p6") == "ok"
        assert not list(tmp_path.glob("*.latch"))
        assert main(["kill", "reduce", "--by", "drill"], environ) == 0
        assert reason("p7") == "reduce_only"
        assert not one_client.exists(LIVE.latch)
        assert main(["kill", "off", "--by", "drill"], environ) == 0
        assert reason("p8") == "ok"


def test_a_latch_that_is_put_back_keeps_its_time(one_server: EmbeddedServer, one_client: Client) -> None:
    """`ts` beside `since` is the same time in whole seconds, however much later it is written; the event is of now."""
    store = Store(one_server.url)
    store.ping()
    store.run(
        LATCH, [LIVE.latch, LIVE.rearm, LIVE.events], ["", "100.500000", "me", "why", 200, 1000], store.connections
    )
    store.close()
    found = {"state": "HALT", "since": "100.500000", "by": "me", "why": "why", "ts": "100"}
    assert one_client.hgetall(LIVE.latch) == found
    assert [event["ts"] for event in gov.events(one_client, "KILL")] == ["200"]


def test_a_governor_that_was_away_halts_by_the_latch(
    one_server: EmbeddedServer, one_client: Client, tmp_path: Path
) -> None:
    """A governor that did not run while HALT was set and taken back: the latch in Redis halts it, and it keeps it; one
    that was away during halt and rearm permits."""
    with governor(one_server.url, tmp_path, "gov-a") as service:
        until(service.ready, 10, "ready")
        one_client.set(LIVE.kill, "halt")
        until(lambda: one_client.exists(LIVE.latch), 5, "latched")
        one_client.delete(LIVE.kill)
        service.terminate()
    gov.opening(one_client, "p1", BTC, repr(fresh(one_client)))
    with governor(one_server.url, tmp_path, "gov-b") as service:
        until(lambda: answered(one_client)["p1"], 10, "answered")
        assert gov.tombstone(one_client, "p1")["reason"] == "kill_switch_active"
        assert (tmp_path / journals.state_file("gov-b", "latch")).exists()
        service.terminate()
    gov.rearm(one_client, gov.server_now(one_client))
    gov.opening(one_client, "p2", BTC, repr(fresh(one_client)))
    with governor(one_server.url, tmp_path, "gov-a") as service:
        until(lambda: answered(one_client)["p2"], 10, "answered")
        assert gov.tombstone(one_client, "p2")["verdict"] == "PERMIT"


# ---- starting


def test_started_before_redis(tmp_path: Path) -> None:
    """Redis down at the start: it starts, is not ready, is healthy, and is ready within 2 s of Redis."""
    server = EmbeddedServer(port=free_port())
    with governor(server.url, tmp_path) as service:
        until(lambda: service.get("/health")[0] == 200, 10, "healthy")
        began = time.monotonic()
        while time.monotonic() - began < 3.0:
            assert service.get("/ready")[0] == 503
            assert service.get("/health")[0] == 200
            time.sleep(0.2)
        server.start()
        try:
            until(service.ready, 2.0, "ready within 2 s")
            assert service.metric('quantum_alloc_store_errors_total{code="unreachable"}') >= 1
            client = connected(server.url)
            gov.opening(client, "p1", BTC, repr(fresh(client)))
            until(lambda: answered(client)["p1"], 5, "it answers")
            assert len(permits(client)) == 1
            client.close()
            assert service.terminate()[0] == 0
        finally:
            server.stop()


def refused(service: Service) -> str:
    """What a governor says that does not start: one line, with exit code 78."""
    with service:
        assert service.wait() == 78, service.output
    lines = [line for line in service.output.splitlines() if line.strip()]
    assert not any("Traceback" in line for line in lines)
    assert len(lines) <= 2, lines
    return service.output


def test_two_governors_of_one_name(one_server: EmbeddedServer, one_client: Client, tmp_path: Path) -> None:
    """The second one with the same name and directory exits 78 with a sentence that names the way out; the first goes
    on; a third one may take its place once it has gone, killed or not."""
    with governor(one_server.url, tmp_path) as first:
        until(first.ready, 10, "ready")
        said = refused(governor(one_server.url, tmp_path))
        assert "gov-a" in said
        assert "GOV_CONSUMER" in said
        gov.opening(one_client, "p1", BTC, repr(fresh(one_client)))
        until(lambda: answered(one_client)["p1"], 5, "the first goes on")
        assert first.process is not None
        first.process.kill()
        first.wait()
    with governor(one_server.url, tmp_path) as third:
        until(third.ready, 10, "ready")
        assert third.terminate()[0] == 0


def test_a_directory_that_cannot_be_written(one_server: EmbeddedServer, tmp_path: Path) -> None:
    """STATE_DIRECTORY that cannot be one: exit 78 with one sentence."""
    (tmp_path / "file").write_text("")
    for directory in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/nowhere")):
        said = refused(governor(one_server.url, directory))
        assert "STATE_DIRECTORY" in said
        assert str(directory) in said


@pytest.mark.parametrize(
    "text",
    [
        "canary-without-a-name",
        "kid canary",
        "k canary-canary-canary\nk canary-canary-canary",
        "",
        "a canary-canary-canary\nb canary-canary-canary\nc canary-canary-canary",
        "bad/kid canary-canary-canary",
        "canary-" * 1000,
        "\udcff canary",
    ],
    ids=range(8),
)
def test_a_bad_signing_key(text: str, one_server: EmbeddedServer, tmp_path: Path) -> None:
    """A key file that cannot be used: exit 78, and no word of what is in it."""
    file = tmp_path / "key"
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    file.chmod(0o600)
    said = refused(governor(one_server.url, tmp_path, GOV_SIGNING_KEY_FILE=str(file)))
    assert "GOV_SIGNING_KEY_FILE" in said
    assert "canary" not in said


def test_what_is_refused_at_the_start(one_server: EmbeddedServer, tmp_path: Path) -> None:
    """A key file that is not there, a simulated clock on a server that is not its own, a port that is taken, a bad
    name: exit 78, each named."""
    assert "GOV_SIGNING_KEY_FILE" in refused(
        governor(one_server.url, tmp_path, GOV_SIGNING_KEY_FILE=str(tmp_path / "none"))
    )
    assert "CLOCK" in refused(governor(one_server.url, tmp_path, CLOCK="simulated"))
    assert "GOV_CONSUMER" in refused(governor(one_server.url, tmp_path, "not a name"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert "METRICS_PORT" in refused(governor(one_server.url, tmp_path, METRICS_PORT=port))


def test_signed_permits(one_server: EmbeddedServer, one_client: Client, tmp_path: Path) -> None:
    """With a key file the permits that a running governor gives are signed with its first key, and the log does not
    show it."""
    file = tmp_path / "key"
    file.write_text("new canary-canary-canary-1\nold canary-canary-canary-2\n")
    file.chmod(0o600)
    with governor(one_server.url, tmp_path, GOV_SIGNING_KEY_FILE=str(file), LOG_LEVEL="DEBUG") as service:
        gov.opening(one_client, "p1", BTC, repr(fresh(one_client)))
        until(lambda: one_client.exists(LIVE.permit("p1")), 10, "permitted")
        assert '"kid":"new"' in one_client.get(LIVE.permit("p1"))
        assert service.terminate()[0] == 0
        assert "canary" not in service.output
