"""The services of a kept demo: they go on where it has stopped, at the machine's pace, until their server is gone.

The demo starts this as a process, hands it an ``Onward`` on standard input, and waits for a line on standard output.
The services live on the demo's clock, which from now on runs beside the machine's, with the demo's settings, its state
and its candles where the run has stopped. They are told so by the demo and by nothing in the environment, and they look
at the server that they are handed: it must be the one that the demo has started. When it is gone, however it went, they
end and remove its directory.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from threading import Event

from quantum_alloc.adapters.candles import CandleError
from quantum_alloc.adapters.clock import ShiftedClock
from quantum_alloc.adapters.metrics import Metrics
from quantum_alloc.adapters.store import Store, StoreError
from quantum_alloc.services import app, feed, logs
from quantum_alloc.services.http import PortTaken
from quantum_alloc.services.options import FeedOptions, Settings, load
from quantum_alloc.services.settings import SettingsError

LOOK_EVERY_S = 0.25
FAILED, PORT_TAKEN = 1, 3
"""How the process ends where the services cannot run."""


@dataclass(frozen=True, slots=True)
class Onward:
    """Where and with what the services go on.

    Attributes:
        environ: their settings.
        directory: of the demo's server.
        server_pid: its process.
        offset_s: of the demo's clock, seconds ahead of the machine's.
        bars: that the demo has used.
        last: close of the last one, on the demo's clock.
    """

    environ: Mapping[str, str]
    directory: str
    server_pid: int
    offset_s: float
    bars: int
    last: float

    @property
    def socket(self) -> Path:
        """Where the server listens."""
        return Path(self.directory, "redis.sock")


def _source(settings: Settings, onward: Onward, opened: list[feed.Source]) -> app.Source:
    """The demo's candles from where it stopped, with the tapes that they had made by then."""

    def source(options: FeedOptions, _: Metrics) -> tuple[feed.Source, app.Market]:
        market = app.open_market(options, settings.common.symbols)  # what is wrong with the files is told already
        state = feed.State(app.book_of(options, len(market.symbols)))
        for step in islice(market.steps, onward.bars):
            state, _made = feed.step_feed(state, feed.Seen(step.close_time, step, False, paper=False))
        due = onward.last + market.bar_s / options.speed
        paced = feed.Paced(market.steps, market.bar_s, options.speed, options.rewrite_s, due)
        opened.append(paced)
        return paced, app.Market(market.steps, market.symbols, market.bar_s, market.candles, state.tapes, state.newest)

    return source


def _is_ours(onward: Onward) -> bool:
    """Whether the server is the one that the demo says it has started."""
    store = Store(f"unix://{onward.socket}", shown="the demo's server")
    try:
        told = store.read([("INFO", "server")])[0]
    finally:
        store.close()
    return isinstance(told, bytes) and f"\r\nprocess_id:{onward.server_pid}\r\n".encode() in told


def is_gone(path: Path) -> bool:
    """Whether nobody listens at a unix socket any more.

    Args:
        path: of the socket.
    """
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(1.0)
        try:
            sock.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return True
        except OSError:  # it has no room for us now
            return False
    return False


def _while_up(onward: Onward, opened: Sequence[feed.Source]) -> Callable[[Sequence[app.AnyLoop], Event], None]:
    """Waits for a signal or the end of the server, and tells the demo when all services are ready."""

    def while_up(loops: Sequence[app.AnyLoop], stop: Event) -> None:
        told = False
        while not stop.wait(LOOK_EVERY_S) and not is_gone(onward.socket):
            if not told and all(loop.ready for loop in loops):
                told = True
                try:
                    print(json.dumps({"ended": opened[0].ended}), flush=True)
                except BrokenPipeError:  # the demo is gone, and nobody knows of us
                    os.kill(onward.server_pid, signal.SIGTERM)

    return while_up


def main() -> int:
    """The services, until the server ends or a signal comes."""
    onward, is_ours = Onward(**json.load(sys.stdin)), False
    try:
        settings = load(list(app.SERVICES), onward.environ)
        logs.set_up(settings.common.log_level, settings.common.log_format)
        is_ours = settings.redis.url == f"unix://{onward.socket}" and _is_ours(onward)
        if not is_ours:
            raise SettingsError([f"REDIS_URL={settings.redis.url!r}: no server that the demo has started"])
        opened: list[feed.Source] = []
        clock = ShiftedClock(onward.offset_s)
        source = _source(settings, onward, opened)
        app.serve(lambda: app.build_kept(settings, clock, source), settings, _while_up(onward, opened))
    except (SettingsError, PortTaken, CandleError, StoreError) as error:
        print(f"quantum-alloc: {error}", file=sys.stderr)
        return PORT_TAKEN if isinstance(error, PortTaken) else FAILED
    finally:
        if is_ours and is_gone(onward.socket):
            shutil.rmtree(onward.directory, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
