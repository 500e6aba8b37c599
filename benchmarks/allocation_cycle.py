"""One allocation cycle in enforce, read to last write acknowledged, against the server's own time for its commands.

The commands of a real cycle are captured and replayed as packed bytes, replies only counted: that is the floor.
Cycle and floor are measured in turn, A B A B, and their medians' ratio is what counts. It reports; it asserts nothing.
"""

from __future__ import annotations

import select
import socket
import statistics
import sys
import time
from collections.abc import Sequence

import hiredis

from quantum_alloc.adapters.clock import SetClock
from quantum_alloc.adapters.effects import Command, HashSet
from quantum_alloc.adapters.embedded import EmbeddedServer, free_port
from quantum_alloc.adapters.metrics import Metrics
from quantum_alloc.adapters.store import Store
from quantum_alloc.adapters.writes import Target
from quantum_alloc.core import AllocationParams
from quantum_alloc.services import allocation
from quantum_alloc.services.loop import Loop

NOW = 1769577495.0
END = b"ENDMARKER\r\n"


class Capturing(Store):
    """Remembers what it sends, and how long reading and writing took."""

    sent: list[Command]

    def _batch(self, commands: Sequence[Command]) -> list[object]:  # type: ignore[override]
        self.sent.extend(commands)
        return super()._batch(commands)  # type: ignore[return-value]


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


def measure(n: int, rounds: int) -> None:
    """Print the ratio for n symbols."""
    port = free_port()
    with EmbeddedServer(port=port) as server:
        store = Capturing(server.url, timeout_s=5.0)
        store.sent = []
        ts = str(int(NOW))
        names = [f"SYM{i:05}USDT" for i in range(n)]
        keys = Target().keys
        store.apply([(HashSet(keys.portfolio, {"equity_usd": "1e6", "drawdown": "0.01", "timestamp": ts}),)])
        store.apply([tuple(HashSet(keys.budget(s), {"budget_usd": "1820.93", "timestamp": ts}) for s in names)])
        metrics = Metrics("allocation")
        universe = allocation.universe_of(keys)
        cycle = allocation.build(store, metrics, universe, AllocationParams(), Target("enforce"), 5.0)
        loop = Loop(cycle, store, metrics, SetClock(NOW))
        loop.once()
        ratios, ours, floors = [], [], []
        for _ in range(rounds):
            store.sent = []
            loop.once()
            ours.append(loop.last_duration_s)
            floors.append(floor_s(port, store.sent))
            ratios.append(ours[-1] / floors[-1])
        cycle_us, floor_us = (statistics.median(x) / n * 1e6 for x in (ours, floors))
        print(
            f"n={n:6} cycle {cycle_us:7.1f} us a symbol  floor {floor_us:6.1f}  ratio {statistics.median(ratios):.2f}"
        )
        store.close()


if __name__ == "__main__":
    for size in [int(a) for a in sys.argv[1:]] or [11, 1000, 10_000]:
        measure(size, 21 if size <= 1000 else 7)
