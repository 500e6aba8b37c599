"""The governor: plan to permit on an idle machine, a burst of plans, and the gate chain alone.

    idle     one plan at a time, from XADD sent to the commit acknowledged, against a bare client that answers the same
             entry with a value of the permit's length: XREADGROUP, SETEX, XACK; the loop waits when the plan comes
    burst    20,000 plans of 100 symbols at default limits, against the server's own time for the captured commands,
             replayed on a second server in the same state, where the script runs at its snapshot's time
    gates    decide_batch and evaluate for an open that passes everything

Ours and floor are measured in turn, A B A B; what counts is the ratio. It reports; it asserts nothing.

    governor.py [idle | burst | gates ...]
"""

from __future__ import annotations

import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from queue import SimpleQueue
from threading import Thread
from typing import Any, cast

import hiredis
from cycles import floor_s

from quantum_alloc.adapters.clock import WallClock
from quantum_alloc.adapters.effects import Command, HashSet, Reply
from quantum_alloc.adapters.embedded import EmbeddedServer, free_port
from quantum_alloc.adapters.keys import LIVE
from quantum_alloc.adapters.metrics import Metrics
from quantum_alloc.adapters.store import Script, Store
from quantum_alloc.core.governor import decide_batch, evaluate
from quantum_alloc.core.governor_inputs import Holding, Inputs, Limit, Snapshot, SymbolSnapshot, Totals
from quantum_alloc.core.governor_params import GovernorParams
from quantum_alloc.core.limits import US
from quantum_alloc.core.plan import Plan, Side
from quantum_alloc.core.proposal import Efficiency
from quantum_alloc.core.reading import Fresh
from quantum_alloc.core.verdicts import Permit
from quantum_alloc.services.app import Parts, assemble, paced_source
from quantum_alloc.services.loop import Loop
from quantum_alloc.services.options import load

PLANS, GROUP, FLOOR = "quantum:stream:apply.plan", "governor", "bench:floor"
SYMBOLS = [f"SYM{i:03}USDT" for i in range(100)]
PARTS = ("idle", "burst", "gates")
DURABILITIES = ("none", "journal")
BURST, BURST_ROUNDS = 20_000, 3
IDLE_ROUNDS = 1000
SETTLES_S = 0.002
ARGS, SNAPSHOT_ARG, CLOCK_ARG = 3, 4, 6
"""Where the arguments of EVALSHA begin behind its keys, and two of the commit's arguments."""


class Capturing(Store):
    """Remembers what it sends, and when a script was last answered."""

    sent: list[Command]
    answered_at: float

    def _batch(self, commands: Sequence[Command], **how: Any) -> list[Reply]:
        self.sent.extend(commands)
        return super()._batch(commands, **how)

    def run(self, script: Script, keys: Sequence[str], args: Sequence[str | bytes | int], connection: int) -> Reply:
        reply = super().run(script, keys, args, connection)
        self.answered_at = time.perf_counter()
        return reply


class Bare:
    """A socket, packed commands and hiredis' replies."""

    def __init__(self, port: int) -> None:
        """Connect."""
        self._sock = socket.create_connection(("127.0.0.1", port))
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._reader = hiredis.Reader()

    def send(self, *command: str | bytes | int) -> None:
        """Send one command."""
        self._sock.sendall(cast(bytes, hiredis.pack_command(command)))  # type: ignore[arg-type]  # Command, in effect

    def reply(self) -> Any:
        """The next reply."""
        while (reply := self._reader.gets()) is False:
            self._reader.feed(self._sock.recv(1 << 16))
        return reply

    def ask(self, *command: str | bytes | int) -> Any:
        """Send one command and wait for its reply."""
        self.send(*command)
        return self.reply()

    def close(self) -> None:
        """Disconnect."""
        self._sock.close()


def inputs_of(symbols: Sequence[str]) -> list[HashSet]:
    """What opens of these symbols hang on: a portfolio, and for each symbol a price, a target, a budget, a score."""
    ts = str(int(time.time()))
    portfolio = {"positions_notional_usd": "0.0", "positions_count": "0", "timestamp": ts}
    effects = [HashSet(LIVE.portfolio, portfolio)]
    for s in symbols:
        limit = {"mode": "enforce", "timestamp": ts}
        effects += [
            HashSet(LIVE.market(s), {"price": "90.25", "timestamp": ts}),
            HashSet(LIVE.target(s), {"target_usd": "1820.93", "confidence": "0.8", **limit}),
            HashSet(LIVE.budget(s), {"budget_usd": "1820.93", **limit}),
            HashSet(LIVE.efficiency(s), {"efficiency_score": "0.61", "confidence": "0.8", "ts": ts}),
        ]
    return effects


def plan_fields(n: int, symbol: str) -> list[str]:
    """An open of 180 USD, flat."""
    fields = {
        "plan_id": f"plan-{n:08}", "symbol": symbol, "action": "ENTRY", "decision": "EXECUTE", "side": "BUY",
        "qty": "2.0", "price": "90.0", "kill_score": "0.12", "timestamp": f"{time.time():.3f}",
    }  # fmt: skip
    return [part for pair in fields.items() for part in pair]


@contextmanager
def governor(port: int, durability: str) -> Iterator[tuple[Loop[Any, Any, Any], Capturing]]:
    """A governor at default limits, in a state directory of its own."""
    with tempfile.TemporaryDirectory(prefix="qa-bench-") as directory:
        environ = {"GOV_DURABILITY": durability, "GOV_ENABLE_AUTO_DISARM": "0", "STATE_DIRECTORY": directory}
        settings = load(["governor"], environ)
        store = Capturing(f"redis://127.0.0.1:{port}/0", timeout_s=5.0)
        store.sent, store.answered_at = [], 0.0
        parts = Parts(settings, store, Metrics("governor"), WallClock(), paced_source(settings))
        yield assemble("governor", parts)[0], store
        store.close()


def percentiles(times: Sequence[float]) -> tuple[float, float]:
    """Median and 99th percentile, microseconds."""
    return statistics.median(times) * 1e6, statistics.quantiles(times, n=100)[98] * 1e6


class Turns:
    """A thread that waits for work and answers when it ended."""

    def __init__(self) -> None:
        """Start it."""
        self._work: SimpleQueue[Callable[[], float] | None] = SimpleQueue()
        self._done: SimpleQueue[float] = SimpleQueue()
        self._thread = Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            self._done.put(work())

    def timed(self, work: Callable[[], float], client: Bare, entry: Sequence[str]) -> float:
        """Seconds from an entry's XADD to the moment that ``work``, which waits for it, gives."""
        self._work.put(work)
        time.sleep(SETTLES_S)
        started = time.perf_counter()
        client.ask("XADD", *entry)
        return self._done.get() - started

    def end(self) -> None:
        """End the thread."""
        self._work.put(None)
        self._thread.join()


def idle(durability: str, rounds: int) -> None:
    """Print median and 99th percentile of plan to permit, and of the floor."""
    port = free_port()
    with EmbeddedServer(port=port), governor(port, durability) as (loop, store):
        client, bare, turns = Bare(port), Bare(port), Turns()
        client.ask("XGROUP", "CREATE", FLOOR, GROUP, "0", "MKSTREAM")
        value = b""

        def governed() -> float:
            before = store.answered_at
            while store.answered_at == before:
                if not loop.once():
                    raise SystemExit(loop.last_error)
            return store.answered_at

        def answered() -> float:
            command = ("XREADGROUP", "GROUP", GROUP, "one", "COUNT", 8, "BLOCK", 1000, "STREAMS", FLOOR, ">")
            entry_id, fields = bare.ask(*command)[0][1][0]
            bare.ask("SETEX", b"bench:permit:" + fields[1], 60, value)
            bare.ask("XACK", FLOOR, GROUP, entry_id)
            return time.perf_counter()

        ours, floors = [], []
        for n in range(-50, rounds):
            symbol = SYMBOLS[n % len(SYMBOLS)]
            for effect in inputs_of([symbol]):
                client.ask(*effect.commands()[0])
            store.sent.clear()
            took = turns.timed(governed, client, [PLANS, "*", *plan_fields(n, symbol)])
            value = client.ask("GET", LIVE.permit(f"plan-{n:08}"))
            if value is None:
                raise SystemExit(f"plan {n} was not permitted")
            client.ask("HDEL", LIVE.book, f"plan-{n:08}")  # seen in position and portfolio, and closed long since
            client.ask("DEL", LIVE.ledger(symbol))
            bare_took = turns.timed(answered, client, [FLOOR, "*", *plan_fields(n, symbol)])
            if n >= 0:
                ours.append(took)
                floors.append(bare_took)
        turns.end()
        client.close()
        bare.close()
    (median, p99), (floor, floor_p99) = percentiles(ours), percentiles(floors)
    print(
        f"plan to permit  durability={durability:7}  median {median:6.0f} us  p99 {p99:6.0f}  "
        f"floor {floor:6.0f}  p99 {floor_p99:6.0f}  ratio {median / floor:.2f}  p99 {p99 / floor_p99:.2f}",
        flush=True,
    )


def filling(n: int) -> list[Command]:
    """Inputs of all symbols, and plans under ids of their own, so that another server can hold the same."""
    out = [command for effect in inputs_of(SYMBOLS) for command in effect.commands()]
    ms = int(time.time() * 1000)
    return out + [("XADD", PLANS, f"{ms}-{i + 1}", *plan_fields(i, SYMBOLS[i % len(SYMBOLS)])) for i in range(n)]


def at_its_time(command: Command) -> Command:
    """A script's call as it is replayed: the clock that it is given is that of its snapshot."""
    if command[0] not in ("EVALSHA", "EVAL"):
        return command
    first = ARGS + int(command[2])
    return (*command[: first + CLOCK_ARG], command[first + SNAPSHOT_ARG], *command[first + CLOCK_ARG + 1 :])


def burst_once(durability: str, n: int) -> tuple[float, float, str]:
    """Seconds of a burst, seconds of the server alone, and what came of it."""
    held = filling(n)
    port = free_port()
    with EmbeddedServer(port=port) as server, governor(port, durability) as (loop, store):
        store.read(held)
        store.sent.clear()
        results: dict[tuple[str, ...], float] = {}
        started = time.perf_counter()
        while sum(results.values()) < n:
            if not loop.once():
                raise SystemExit(loop.last_error)
            results = loop.metrics.values("quantum_alloc_plans_total")
        took = store.answered_at - started
        events = store.read([("XLEN", LIVE.events)])
        sent = [at_its_time(command) for command in store.sent[:-1]]
    port = free_port()
    with EmbeddedServer(port=port) as server:
        again = Store(server.url, timeout_s=5.0)
        again.read(held)
        floor = floor_s(port, sent)
        if again.read([("XLEN", LIVE.events)]) != events:
            raise SystemExit("the replay was answered otherwise: it is no floor")
        again.close()
    return took, floor, " ".join(f"{labels[0]}={count:.0f}" for labels, count in sorted(results.items()))


def burst(durability: str, n: int, rounds: int) -> None:
    """Print plans a second, and the server's share."""
    made = [burst_once(durability, n) for _ in range(rounds)]
    took, floor = (statistics.median(times) for times in list(zip(*made, strict=True))[:2])
    print(
        f"burst of {n} plans  durability={durability:7}  {n / took:6.0f} plans/s  {took / n * 1e6:6.1f} us a plan  "
        f"floor {floor / n * 1e6:6.1f}  ratio {statistics.median(t / f for t, f, _ in made):.2f}  {made[0][2]}",
        flush=True,
    )


def best_us(run: Callable[[], object], each: int) -> float:
    """Median microseconds of one of ``each`` steps."""
    times = []
    for _ in range(300):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return statistics.median(times) / each * 1e6


def gates() -> None:
    """Print microseconds a plan of the core alone."""
    now_us, n = 1_769_577_495 * US, len(SYMBOLS)
    now = now_us / US
    params = GovernorParams(
        apply_mode="production", max_open_positions=2 * n, max_total_notional_usd=1e6, disarm_on_burst=False
    )
    one = SymbolSnapshot(
        position=Fresh(Holding(0.5, 90.25), now),
        market_usd=Fresh(90.25, now),
        target=Fresh(Limit(1820.93, "enforce", 0.8), now),
        budget=Fresh(Limit(1820.93, "enforce"), now),
        efficiency=Fresh(Efficiency(0.61, 0.8), now),
    )
    snapshot = Snapshot(now_us, totals=Fresh(Totals(45.0, 1), now), symbols=dict.fromkeys(SYMBOLS, one))
    plans = [Plan(f"plan-{i:08}", s, "ENTRY", now, Side.BUY, 2.0, 90.0, 0.12) for i, s in enumerate(SYMBOLS)]
    inputs = Inputs(
        plans[0], now_us, position=one.position, market_usd=one.market_usd, target=one.target, budget=one.budget,
        totals=snapshot.totals, efficiency=one.efficiency,
    )  # fmt: skip
    decided = (*decide_batch(plans, snapshot, params), evaluate(inputs, params))
    if not all(isinstance(made, Permit) for made in decided):
        raise SystemExit("an open was blocked")
    batch = best_us(lambda: decide_batch(plans, snapshot, params), n)
    alone = best_us(lambda: [decide_batch((plan,), snapshot, params) for plan in plans], n)
    verdict = best_us(lambda: [evaluate(inputs, params) for _ in range(n)], n)
    print(
        f"gate chain  decide_batch of {n} {batch:.2f} us a plan  of one {alone:.2f}  evaluate {verdict:.2f}", flush=True
    )


def main(parts: Sequence[str]) -> None:
    """Run some parts."""
    for durability in DURABILITIES if "idle" in parts else ():
        idle(durability, IDLE_ROUNDS)
    for durability in DURABILITIES if "burst" in parts else ():
        burst(durability, BURST, BURST_ROUNDS)
    if "gates" in parts:
        gates()


if __name__ == "__main__":
    main(sys.argv[1:] or PARTS)
