"""One cycle of allocation, attribution, efficiency or proposer, against the server's own time for its commands.

The commands of a real cycle are captured and replayed as packed bytes, replies only counted: that is the floor.
Cycle and floor are measured in turn, A B A B, and their medians' ratio is what counts. It reports; it asserts nothing.

    cycles.py [SERVICE ...] [SYMBOLS ...]
"""

from __future__ import annotations

import select
import socket
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import hiredis

from quantum_alloc.adapters.clock import SetClock
from quantum_alloc.adapters.effects import Command, HashSet
from quantum_alloc.adapters.embedded import EmbeddedServer, free_port
from quantum_alloc.adapters.keys import LIVE
from quantum_alloc.adapters.metrics import Metrics
from quantum_alloc.adapters.store import Store
from quantum_alloc.core import AttributionState, EfficiencyState, Execution
from quantum_alloc.core.attribution import advance
from quantum_alloc.services.app import MODE_VARIABLES as MODES
from quantum_alloc.services.app import Parts, assemble, paced_source
from quantum_alloc.services.loop import Loop
from quantum_alloc.services.options import load

SERVICES = ("allocation", "attribution", "efficiency", "proposer")
NOW = 1769577495.0
END = b"ENDMARKER\r\n"


class Capturing(Store):
    """Remembers what it sends, and how long reading and writing took."""

    sent: list[Command]

    def _batch(self, commands: Sequence[Command], **how: Any) -> list[object]:  # type: ignore[override]
        self.sent.extend(commands)
        return super()._batch(commands, **how)  # type: ignore[return-value]


def floor_s(port: int, commands: Sequence[Command]) -> float:
    """Seconds from the first byte sent to the last reply received."""
    blob = memoryview(b"".join(hiredis.pack_command(c) for c in (*commands, ("ECHO", "ENDMARKER"))))  # type: ignore[arg-type]
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.setblocking(False)
        inbox, sent, tail = bytearray(1 << 20), 0, b""
        started = time.perf_counter()
        while not tail.endswith(END):
            readable, writable, _ = select.select([sock], [sock] if sent < len(blob) else [], [])
            if writable:
                sent += sock.send(blob[sent : sent + (1 << 18)])
            if readable:
                n = sock.recv_into(inbox)
                tail = (tail + bytes(inbox[max(0, n - 32) : n]))[-32:]
        return time.perf_counter() - started


def fill(store: Store, names: Sequence[str]) -> None:
    """What the services read: a portfolio, and for each symbol a budget, an attribution, a target, an efficiency."""
    keys, ts = LIVE, str(int(NOW))
    store.apply([(HashSet(keys.portfolio, {"equity_usd": "1e6", "drawdown": "0.01", "timestamp": ts}),)])
    for i in range(0, len(names), 500):
        some = names[i : i + 500]
        effects = [HashSet(keys.budget(s), {"budget_usd": "1820.93", "timestamp": ts}) for s in some]
        target = {"target_usd": "1820.93", "confidence": "0.8", "timestamp": ts}
        effects += [HashSet(keys.target(s), target) for s in some]
        performance = {"performance_factor": "0.61", "confidence": "0.8", "ts_utc": ts}
        effects += [HashSet(keys.attribution(s), performance) for s in some]
        effects += [
            HashSet(keys.efficiency(s), {"efficiency_score": "0.61", "confidence": "0.8", "ts": ts}) for s in some
        ]
        store.apply([tuple(effects)])
    state = EfficiencyState(2.3456789, 1.2345678, 0.5123456, NOW - 60, 0.61, 1820.93, NOW).text()
    own = {"_pos": "0-0", "_version": "1", "_cycle": "1"}
    store.apply([(HashSet(keys.efficiency_state, {**own, **dict.fromkeys(names, state)}),)])
    window = AttributionState()
    for i in range(20):
        window = advance(window, Execution(names[0], NOW - 60, 1.37 * i - 9.1, signal="s1"))
    paid = replace(window, seen_ts=NOW).text()
    store.apply([(HashSet(keys.attribution_state, {**own, **dict.fromkeys(names, paid)}),)])


def loop_of(service: str, store: Store) -> Loop[Any, Any, Any]:
    """The service in enforce, with its defaults."""
    settings = load([service], {MODES[service]: "enforce"} if service in MODES else {})
    parts = Parts(settings, store, Metrics(service), SetClock(NOW), paced_source(settings))
    return assemble(service, parts)[0]


def measure(service: str, n: int, rounds: int) -> None:
    """Print the ratio for n symbols."""
    port = free_port()
    with EmbeddedServer(port=port) as server:
        store = Capturing(server.url, timeout_s=5.0)
        store.sent = []
        fill(store, [f"SYM{i:05}USDT" for i in range(n)])
        loop = loop_of(service, store)
        loop.once()
        ratios, ours, floors = [], [], []
        for _ in range(rounds):
            store.sent = []
            if not loop.once():
                raise SystemExit(loop.last_error)
            ours.append(loop.last_duration_s)
            sent = [c for c in store.sent if c[0] not in ("WATCH", "UNWATCH")]
            floors.append(floor_s(port, sent))
            ratios.append(ours[-1] / floors[-1])
        cycle_us, floor_us = (statistics.median(x) / n * 1e6 for x in (ours, floors))
        print(
            f"{service:12} n={n:6} cycle {cycle_us:7.1f} us a symbol  floor {floor_us:6.1f}  "
            f"ratio {statistics.median(ratios):.2f}",
            flush=True,
        )
        store.close()


if __name__ == "__main__":
    given = sys.argv[1:]
    sizes = [int(a) for a in given if a.isdigit()] or [11, 1000, 10_000]
    for name in [a for a in given if not a.isdigit()] or SERVICES:
        for size in sizes:
            measure(name, size, 21 if size <= 1000 else 7)
