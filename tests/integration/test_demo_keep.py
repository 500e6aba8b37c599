"""A demo that is kept: an installation that runs, beside which a person or a test can stand."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import pytest
import redis

from quantum_alloc.adapters import server_check
from quantum_alloc.adapters.embedded import EmbeddedServer, ServerError
from quantum_alloc.adapters.keys import Keys
from quantum_alloc.services import cli, demo, demo_keep, demo_onward, demo_view, env_file, status
from quantum_alloc.services.app import SERVICES, open_market
from quantum_alloc.services.options import FeedOptions, Settings, load, port_variables
from tests.integration.test_demo import as_json
from tests.support.running import CLEAN, port_offset, until

SYMBOLS = "BTCUSDT,ETHUSDT,SOLUSDT"
SOME = ("--bars", "12", "--speed", "600", "--symbols", SYMBOLS)
SOON = {"QA_DESK_CHANNEL_BARS": "3", "P25_INTERVAL_SEC": "0.5", "P29_INTERVAL_SEC": "0.5"}
"""The desk trades within a few bars, and a cycle need not be waited for."""


class Kept:
    """An installation that a demo has left, as its JSON tells."""

    def __init__(self, found: dict[str, Any]) -> None:
        self.found = found
        self.server, self.services = int(found["pid"]), int(found["services_pid"])
        self.env_file = Path(found["env_file"])
        self.directory = self.env_file.parent
        self.environ = env_file.beneath({}, self.env_file)
        self.settings: Settings = load(list(SERVICES), self.environ)
        self.client: Any = redis.Redis.from_url(found["url"], decode_responses=True)

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        """A command with nothing but the file of settings."""
        code = "import sys; from quantum_alloc.services.cli import main; sys.exit(main())"
        line = [sys.executable, "-W", "error", "-c", code, "--env-file", str(self.env_file), *words]
        return subprocess.run(line, env=CLEAN, capture_output=True, text=True, timeout=60, check=False)

    @property
    def ports(self) -> list[int]:
        """Every port of every service."""
        return [p for options in self.settings.services.values() for p in port_variables(options).values()]

    def end(self) -> None:
        """End what is still there."""
        self.client.close()
        for pid in (self.services, self.server):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.directory, ignore_errors=True)


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def children() -> list[int]:
    """Services of ours that run although nobody kept them."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            mine = int((directory / "stat").read_text().rpartition(")")[2].split()[1]) == os.getpid()
            if mine and demo_keep.MODULE in (directory / "cmdline").read_text():
                found.append(int(directory.name))
    return found


def answers(port: int) -> bool:
    """Whether somebody listens at a port."""
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def kept() -> Iterator[Kept]:
    """One for all: ten candles a second, so that a test need not wait a minute for one."""
    offset = port_offset()
    made = Kept(as_json(*SOME, "--keep", **SOON, QA_PORT_OFFSET=offset))
    assert made.environ["QA_PORT_OFFSET"] == offset, "what the environment says is the first choice"
    yield made
    made.end()


def test_everything_is_ready_when_the_command_returns(kept: Kept) -> None:
    """All twelve services answer, are ready, and have finished a cycle."""
    rows = status.services(kept.settings)
    assert [(r["service"], r["state"]) for r in rows] == [(name, "ok") for name in SERVICES]
    assert all(r["cycles"] > 0 for r in rows)


def test_it_goes_on(kept: Kept) -> None:
    """Bars, cycles and records grow without anybody's doing, and the bars are those that the simulator has next."""

    def counts() -> tuple[int, ...]:
        c = kept.client
        cycles = {r["service"]: r["cycles"] for r in status.services(kept.settings)}
        streams = c.xlen("quantum:stream:market.bars:BTCUSDT"), c.xlen("quantum:stream:allocation.cycle")
        return *streams, cycles["portfolio"], cycles["allocation"], cycles["governor"], cycles["apply"]

    first = counts()
    until(lambda: all(b > a for a, b in zip(first, counts(), strict=True)), 15, "all of them grow")
    closes = [float(f["close"]) for _, f in kept.client.xrange("quantum:stream:market.bars:BTCUSDT", count=60)]
    plan = demo.Plan(symbols=tuple(SYMBOLS.split(",")))
    market = open_market(demo.settings_of(plan, {}).of(FeedOptions), plan.symbols)
    expected = [c.close for step, _ in zip(market.steps, closes, strict=False) for c in step.candles][
        :: len(plan.symbols)
    ]
    assert len(closes) > 12
    assert closes == expected


def test_it_lives_on_the_demos_clock(kept: Kept) -> None:
    """Every service tells the same offset, ages are judged with it, and the records carry its time."""
    rows = status.services(kept.settings)
    (offset,) = {r["clock_offset_s"] for r in rows}
    assert offset < -86_400
    assert all(0.0 <= time.time() - r["started_at"] < 600 for r in rows)
    clock = status.clock_of(kept.settings)
    assert abs(clock.now() - (time.time() + offset)) < 0.1
    written = float(kept.client.hget("quantum:state:portfolio", "timestamp"))
    assert -1.0 <= clock.now() - written < 15.0
    assert kept.found["last"] <= clock.now() < kept.found["last"] + 600


def test_the_file_of_settings_is_enough(kept: Kept, capsys: pytest.CaptureFixture[str]) -> None:
    """status, explain and diff-lanes work with it alone, and see an installation whose inputs are fresh."""

    def told(*words: str) -> str:
        assert cli.main(["--env-file", str(kept.env_file), *words], {}) == 0, words
        out, err = capsys.readouterr()
        assert err == "", words
        return out

    found = json.loads(told("status", "--format", "json"))
    states = {row["input"]: row["state"] for row in found["inputs"]}
    fresh = ("balance", "portfolio", "market", "budget", "target", "efficiency", "proposal")
    assert {name: states[name] for name in fresh} == dict.fromkeys(fresh, "fresh")
    assert found["permits"]["reconciled"] == "ok"
    counted = {w["symbol"]: int(w["opens in 1 h"].split()[0]) for w in found["windows"]}
    rates = [r["symbol"] for r in found["headroom"] if r["gate"] == "2 opens"]
    assert rates
    assert all(counted[s] > 0 for s in rates), "both are counted by the demo's clock"
    assert "own clock: it is 2026-01-01" in " ".join(told("status").split())
    assert "BTCUSDT" in told("diff-lanes")
    decisions = json.loads(told("explain", "BTCUSDT", "--format", "json"))["decisions"]
    ages = [d["age_s"] for d in decisions if d.get("age_s") is not None]
    assert ages
    assert all(-1.0 <= age < 900.0 for age in ages)


def test_beside_another_server_its_services_are_strangers(
    kept: Kept,
    one_server: EmbeddedServer,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its services tell the run of their server; who looks from another installation's settings sees that they are
    not its own, takes nothing from them, and has exit code 1."""
    assert {r["redis_run_id"] for r in status.services(kept.settings)} == {kept.client.info("server")["run_id"]}
    words = ["--env-file", str(kept.env_file), "status", "--format", "json"]
    real = server_check.read_facts
    monkeypatch.setattr(server_check, "read_facts", lambda store: replace(real(store), up_s=3600))  # not just started
    for more in ([], ["--inputs"]):
        assert cli.main([*words, *more], {"REDIS_URL": one_server.url}) == 1
        out, err = capsys.readouterr()
        assert "governor works on another Redis" in err
        rows = json.loads(out)["inputs" if more else "services"]
        assert {row["state"] for row in rows} == {status.ELSEWHERE}
        assert not any(row.get("mode") or row.get("looks") for row in rows)


def test_the_simulated_clock_stays_with_the_demo(kept: Kept) -> None:
    """A governor that somebody runs with the file is refused: CLOCK=simulated counts for the demo's own services."""
    done = kept.command("run", "governor", "--once")
    assert done.returncode == 78
    assert "CLOCK='simulated': refused" in done.stderr


def test_nobody_else_can_read_the_settings(kept: Kept) -> None:
    assert stat.S_IMODE(kept.env_file.stat().st_mode) == 0o600
    assert stat.S_IMODE(kept.directory.stat().st_mode) == 0o700


def test_keys_live_as_long_as_in_an_installation(kept: Kept) -> None:
    """What expires with running services expires here, also what nobody writes again."""
    answers = list(kept.client.scan_iter("quantum:governor:plan:*"))
    assert answers
    assert all(kept.client.ttl(key) > 0 for key in (*answers, "quantum:allocation:target:BTCUSDT"))


def test_the_log_is_clean(kept: Kept) -> None:
    """No error, and no warning but that there are too few bars yet, and how far a limit is used up."""
    lines = (kept.directory / demo_keep.LOG).read_text().splitlines()
    assert lines
    known = ("too_few_bars", "no_correlations", "is used to 80 % or more")
    assert [line for line in lines if " INFO " not in line and not any(word in line for word in known)] == []


def test_who_has_nothing_to_do_waits(kept: Kept) -> None:
    """On a clock that runs beside the machine's, governor and apply layer wait for events as on the server's own."""

    def cycles() -> dict[str, int]:
        return {r["service"]: r["cycles"] for r in status.services(kept.settings)}

    before = cycles()
    time.sleep(0.5)
    after = cycles()
    assert all(0 <= after[name] - before[name] < 40 for name in ("governor", "apply"))


def test_the_run_is_the_same(kept: Kept) -> None:
    """Kept or not, the same candles give the same records."""
    found = as_json("--bars", "12", "--symbols", SYMBOLS, **SOON)
    assert found["sha256"] == kept.found["sha256"]
    assert kept.found.keys() - found.keys() == {"url", "pid", "services_pid", "env_file"}


def test_what_is_printed_can_be_pasted(kept: Kept) -> None:
    """Each command that the demo tells is one that a shell reads, comment and all."""
    server: Any = SimpleNamespace(socket=kept.directory / "redis.sock", pid=kept.server, url=kept.found["url"])
    outcome: Any = SimpleNamespace(symbols=("BTCUSDT",), progress=demo.Progress(now=1767225660.0))
    left = demo_keep.Kept(kept.services, kept.env_file, kept.directory / demo_keep.LOG, ended=False)
    lines = [*demo_view.where_server(server, outcome, Keys()), *demo_view.where_all(server, left, "BTCUSDT")]
    commands = [line[5:] for line in lines if line.startswith(("Try: ", "     "))]
    assert len(commands) == 8
    assert "ports: the contract's" in lines
    moved = demo_view.where_all(server, replace(left, port_offset=6556), "BTCUSDT")
    assert "ports: the contract's + 6556" in moved
    read = subprocess.run(["bash", "-n"], input="\n".join(commands), capture_output=True, text=True, check=False)
    assert (read.returncode, read.stderr) == (0, "")


def test_nothing_is_kept_of_a_run_without_a_bar() -> None:
    """A signal before the first bar: there is no time to go on from."""
    for keep in ("all", "server"):
        nothing: Any = SimpleNamespace(keep=keep, progress=demo.Progress())
        assert cli._leave(nothing, {}, Keys(), nothing, nothing, Event()) is None


def test_a_second_one_beside_it_and_its_end_by_sigkill(kept: Kept) -> None:
    """It gets ports of its own, where those that it was told are taken; a server that is killed takes its services,
    its ports and its directory with it."""
    taken = kept.environ["QA_PORT_OFFSET"]
    other = Kept(
        as_json("--bars", "3", "--symbols", "BTCUSDT", "--keep", QA_FEED_REWRITE_SEC="1", QA_PORT_OFFSET=taken)
    )

    def is_written_again() -> bool:
        return bool(float(other.client.hget("quantum:state:market:BTCUSDT", "timestamp")) > other.found["last"])

    try:
        assert not set(other.ports) & set(kept.ports)
        assert {r["state"] for r in status.services(other.settings)} == {"ok"}
        until(is_written_again, 8, "the market states, although the next candle is a minute away")
        assert other.client.xlen("quantum:stream:market.bars:BTCUSDT") == 3
        os.kill(other.server, signal.SIGKILL)
        until(lambda: not is_alive(other.services), 5, "the services end")
        assert not other.directory.exists()
        assert not any(map(answers, other.ports))
    finally:
        other.end()
    assert {r["state"] for r in status.services(kept.settings)} == {"ok"}


def test_a_stranger_is_not_served(one_server: EmbeddedServer, tmp_path: Path) -> None:
    """Another server's address, another server where the demo's was, or none: refused, and no directory is removed."""
    environ = {"REDIS_URL": one_server.url, "CLOCK": "simulated"}
    for environment, pid in (
        (environ, one_server.pid + 1),
        ({**environ, "REDIS_URL": "redis://localhost:1"}, one_server.pid),
    ):
        onward = demo_onward.Onward(environment, str(one_server.directory), pid, 0.0, 0, 0.0)
        done = subprocess.run(
            [sys.executable, "-P", "-m", demo_keep.MODULE],
            input=json.dumps(asdict(onward)), env=CLEAN, capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stdout) == (demo_onward.FAILED, "")
        assert "no server that the demo has started" in done.stderr
    elsewhere = tmp_path / "mine"
    elsewhere.mkdir()
    onward = demo_onward.Onward({"REDIS_URL": f"unix://{elsewhere}/redis.sock"}, str(elsewhere), 1, 0.0, 0, 0.0)
    done = subprocess.run(
        [sys.executable, "-P", "-m", demo_keep.MODULE],
        input=json.dumps(asdict(onward)), env=CLEAN, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert (done.returncode, elsewhere.exists()) == (demo_onward.FAILED, True)
    assert one_server.directory.exists()


def test_ready_is_told_when_all_are_ready_and_not_before(
    one_server: EmbeddedServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While one service is not ready nothing is told; once all are, one line, once."""
    monkeypatch.setattr(demo_onward, "LOOK_EVERY_S", 0.001)
    onward = demo_onward.Onward({}, str(one_server.directory), one_server.pid, 0.0, 0, 0.0)
    looks: list[str] = []

    class Late:
        """Ready at the fourth look; at the tenth it is over."""

        @property
        def ready(self) -> bool:
            looks.append(capsys.readouterr().out)
            return len(looks) > 3

    class Stop(Event):
        """Is set after so many looks."""

        left = 10

        def wait(self, timeout: float | None = None) -> bool:  # noqa: ARG002
            self.left -= 1
            return self.left < 0

    loops: Any = [type("Ready", (), {"ready": True}), Late()]
    opened: Any = [type("Source", (), {"ended": True})]
    demo_onward._while_up(onward, opened)(loops, Stop())
    assert looks == [""] * 4
    assert capsys.readouterr().out == '{"ended": true}\n'


def test_services_that_do_not_come_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last line of their log is told, they are gone, and a stop in the meantime is no fault."""
    with EmbeddedServer() as server:
        own = demo.environ_of(demo.Plan(), {"QA_PORT_OFFSET": port_offset()}, server.directory / "state")
        progress = demo.Progress(bars=1, now=1e9)
        bad = {**own, "P29_MODE": "enforce", "TARGET_TTL_SEC": "never"}
        monkeypatch.setattr(demo_keep, "environ_of", lambda *_: {**bad, "REDIS_URL": server.url})
        with pytest.raises(ServerError, match=r"did not come up: .*TARGET_TTL_SEC='never'"):
            demo_keep.go_on(own, server, None, progress, Event())
        monkeypatch.undo()
        stop = Event()
        stop.set()
        assert demo_keep.go_on(own, server, None, progress, stop) is None
    assert children() == []


def test_a_port_that_is_taken_in_the_meantime_and_the_two_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others are tried; a signal to the services ends them within 2 s and leaves the server, whose end ends all."""
    with EmbeddedServer() as server, socket.socket() as holds:
        holds.bind(("127.0.0.1", 0))
        holds.listen()
        free = demo_keep.free_offset(load(list(SERVICES), {"QA_PORT_OFFSET": port_offset()}))
        offsets = iter([holds.getsockname()[1] - 8059, free, free])
        monkeypatch.setattr(demo_keep, "free_offset", lambda _: next(offsets))
        own = demo.environ_of(demo.Plan(symbols=("BTCUSDT",)), {}, server.directory / "state")
        progress = demo.Progress(bars=1, now=1767225660.0)
        alone = demo_keep.go_on(own, server, None, progress, Event())
        assert alone is not None
        os.kill(alone.pid, signal.SIGTERM)
        assert until(lambda: not is_alive(alone.pid), 5, "they end") < 2.0
        ports = load(list(SERVICES), env_file.beneath({}, alone.env_file)).services.values()
        assert not any(answers(p) for options in ports for p in port_variables(options).values())
        both = demo_keep.go_on(own, server, None, progress, Event())  # so the server is up, and the ports are free
        assert both is not None
        assert list(offsets) == []
        os.kill(server.pid, signal.SIGTERM)
        until(lambda: not is_alive(both.pid), 5, "they end with it")
        assert not server.directory.exists()
