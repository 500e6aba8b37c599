"""``quantum-alloc prove`` on an installation that runs, and each of its checks on one that has a fault."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import redis

from quantum_alloc.adapters.embedded import free_port
from quantum_alloc.adapters.store import Store
from quantum_alloc.services import app, env_file, proof_checks, proof_conduct, proof_facts, proof_lane, prove_cli
from quantum_alloc.services.cli import main
from quantum_alloc.services.options import Settings, load
from quantum_alloc.services.proof import GROUPS, Result
from quantum_alloc.services.proof_seen import Facts
from quantum_alloc.services.proof_services import services_of
from tests.services.test_proof_cases import FAULTS
from tests.support.ruling import PASSWORDS, ruled
from tests.support.running import port_offset

EVERY = tuple(GROUPS)
NAMES = [name for group in GROUPS for name in services_of(group)]
FAST = {
    "P25_INTERVAL_SEC": "1", "QA_REGIME_INTERVAL_SEC": "1", "QA_CLUSTERS_INTERVAL_SEC": "1", "P28_INTERVAL_SEC": "1",
    "P29_INTERVAL_SEC": "1", "P30_INTERVAL_SEC": "1", "P31_LOOP_SEC": "1", "LOOP_INTERVAL_SEC": "1",
}  # fmt: skip
"""A cycle a second, so that nobody waits long for the next one."""
SYMBOLS = "BTCUSDT,ETHUSDT,SOLUSDT"
BARS = "250"
"""As many as the regime needs before it can be called."""
CLEAN_S, TRIES = 3, 6
"""On a machine that is too busy the server answers after 200 ms, which services log as an error, and rightly so: here
one is forgiven after seconds and not after an hour, and a look is tried again."""
COMMON = {k: v for k, v in os.environ.items() if k in ("PATH", "HOME", "LANG", "TMPDIR")}


def said(*words: str, environ: Mapping[str, str]) -> tuple[int, str, str]:
    """Exit code of a command, and what it wrote to both streams."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main(words, environ)
    return code, out.getvalue(), err.getvalue()


@dataclass
class Running:
    """A demo that goes on."""

    settings: Settings
    environ: Mapping[str, str]
    services: int
    server: int
    client: Any
    store: Store

    def prove(self, *words: str) -> tuple[int, dict[str, Any]]:
        """The command, as JSON."""
        code, out, err = said("prove", *words, "--format", "json", environ=self.environ)
        assert not err, err
        return code, json.loads(out)

    def healthy(self) -> Facts:
        """What ``prove`` reads where all is well."""
        wrong: list[Result] = []
        for n in range(TRIES):
            time.sleep(CLEAN_S if n else 0)
            found = proof_facts.facts(self.settings, self.store, NAMES)
            wrong = [r for r in proof_checks.judged(found, EVERY) if not r.ok]
            if not wrong:
                return found
        raise AssertionError(wrong)


@pytest.fixture(autouse=True)
def _soon_forgiven(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proof_conduct, "CLEAN_S", CLEAN_S)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One installation for all, as ``demo --keep`` leaves it."""
    handlers = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}
    flags = ("--keep", "--bars", BARS, "--symbols", SYMBOLS, "--format", "json")
    code, out, err = said("demo", *flags, environ={**COMMON, **FAST, "QA_PORT_OFFSET": port_offset()})
    for number, handler in handlers.items():
        signal.signal(number, handler)
    assert code == 0, err
    told = json.loads(out)
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, Path(told["env_file"]).parent, ignore_errors=True)
        for pid in (int(told["pid"]), int(told["services_pid"])):
            stack.callback(ended, pid)
        environ = env_file.beneath(COMMON, Path(told["env_file"]))
        settings = load(list(app.SERVICES), environ, together=False)
        client: Any = stack.enter_context(redis.Redis.from_url(told["url"], decode_responses=True))
        store = app.open_store(settings)
        stack.callback(store.close)
        yield Running(settings, environ, int(told["services_pid"]), int(told["pid"]), client, store)


def ended(pid: int) -> None:
    """A process is gone, before what it writes is removed."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)
        os.kill(pid, signal.SIGKILL)
        for _ in range(200):
            if (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return
            time.sleep(0.01)


@contextmanager
def stopped(running: Running) -> Iterator[None]:
    """The services stand still: what is changed on the server stays as it is."""
    os.kill(running.services, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(running.services, signal.SIGCONT)


def failed(results: Sequence[Result]) -> set[str]:
    """Checks of which a case does not hold."""
    return {r.check for r in results if not r.ok}


@contextmanager
def put_back(client: Any, keys: Sequence[str]) -> Iterator[None]:
    """Whatever happens to some keys is undone, expiry included."""
    raw: Any = redis.Redis(connection_pool=redis.ConnectionPool(
        connection_class=redis.UnixDomainSocketConnection, path=client.connection_pool.connection_kwargs["path"]
    ))  # fmt: skip
    before = [(key, raw.dump(key), raw.pttl(key)) for key in keys]
    try:
        yield
    finally:
        for key, value, ttl in before:
            if value is None:
                raw.delete(key)
            else:
                raw.restore(key, max(0, ttl), value, replace=True)
        raw.connection_pool.disconnect()


def as_it_is(f: Facts) -> Facts:
    """The pages as they are."""
    return f


@dataclass(frozen=True)
class OnServer:
    """A fault that is put into Redis.

    Attributes:
        check: that sees it.
        group: of the check.
        keys: that it touches.
        put: puts it there.
        also: checks that see it too.
        looked: what the pages are taken to say.
    """

    check: str
    group: str
    keys: Callable[[Running], Sequence[str]]
    put: Callable[[Running], object]
    also: frozenset[str] = frozenset()
    looked: Callable[[Facts], Facts] = as_it_is


def key(text: str) -> Callable[[Running], Sequence[str]]:
    """One key."""
    return lambda _: (text,)


def last(r: Running, stream: str, back: int = 0) -> tuple[str, dict[str, str]]:
    """An entry of a stream, the newest, or so many before it."""
    found = r.client.xrevrange(stream, count=back + 1)[back]
    return found[0], dict(found[1])


def again(r: Running, stream: str, at: str = "*", without: Sequence[str] = (), **changed: str) -> None:
    """The newest entry once more, with other fields."""
    fields = {k: v for k, v in last(r, stream)[1].items() if k not in without}
    r.client.xadd(stream, {**fields, **changed}, id=at)


def older_plan(r: Running) -> None:
    """A plan that came a millisecond after the newest, by another program, and that nobody has answered."""
    at = f"{int(last(r, PLANS)[0].split('-')[0]) + 1}-0"
    again(r, PLANS, at, ("desk", "source"), plan_id="nobody-answered-this")


def cut_decision(r: Running) -> None:
    """A decision of the cycle before the newest is gone."""
    cycle = last(r, CYCLES, 1)[1]["cycle_id"]
    at = next(a for a, e in r.client.xrevrange(DECISIONS, count=20) if e["cycle_id"] == cycle)
    r.client.xdel(DECISIONS, at)


def half_of_equity(r: Running) -> None:
    """A decision of the newest cycle once more, beyond its cap."""
    usd = float(last(r, CYCLES)[1]["equity_usd"])
    again(r, DECISIONS, target_usd=repr(0.5 * usd))


def in_shadow(f: Facts) -> Facts:
    """Allocation says that it is in shadow."""
    b = f.second["allocation"]
    return replace(f, second={**f.second, "allocation": replace(b, health={**b.health, "mode": "shadow"})})


PLANS, CYCLES = "quantum:stream:apply.plan", "quantum:stream:allocation.cycle"
DECISIONS, PROPOSALS = "quantum:stream:allocation.decision", "quantum:stream:allocation.target.proposed"
PORTFOLIO, TRANSFERS = "quantum:stream:portfolio.state", "quantum:stream:account.transfer"
TARGET, BUDGET = "quantum:allocation:target:BTCUSDT", "quantum:portfolio:budget:BTCUSDT"
POSITION, EFFICIENCY = "quantum:state:positions:BTCUSDT", "quantum:capital:efficiency:BTCUSDT"
MARKET, CLUSTERS = "quantum:state:market:BTCUSDT", "quantum:portfolio:clusters"
DEAD = "quantum:stream:apply.plan.deadletter"
LAST = "quantum:governor:last_exec:BTCUSDT"
PEAK, ACCOUNT, KILL = "quantum:portfolio:peak", "quantum:apply:state", "quantum:kill"


ON_SERVER: tuple[OnServer, ...] = (
    OnServer("streams", "governor", key(TRANSFERS), lambda r: r.client.xadd(TRANSFERS, {"usd": "much"})),
    OnServer("streams", "governor", key(DEAD), lambda r: r.client.set(DEAD, "no stream")),
    OnServer("streams-moving", "allocation", key(PORTFOLIO),
             lambda r: again(r, PORTFOLIO, **dict.fromkeys(("timestamp", "ts", "ts_utc"), "1767225600"))),
    OnServer("keys", "allocation", key(PEAK), lambda r: r.client.hset(PEAK, "peak_equity_usd", "NaN")),
    OnServer("keys", "governor", key(KILL), lambda r: r.client.hset(KILL, "state", "0"), frozenset(["kill-switch"])),
    OnServer("keys", "governor", key(LAST), lambda r: (r.client.delete(LAST), r.client.sadd(LAST, "1")),
             frozenset(["ttl"])),
    OnServer("ttl", "allocation", key(BUDGET), lambda r: r.client.persist(BUDGET)),
    OnServer("ttl", "allocation", key(PEAK), lambda r: r.client.expire(PEAK, 1000)),
    OnServer("ttl", "allocation", key(BUDGET), lambda r: r.client.expire(BUDGET, 100_000)),
    OnServer("budgets", "allocation", key(BUDGET), lambda r: r.client.hset(BUDGET, "budget_usd", "0.0")),
    OnServer("confidence", "proposer", key(PROPOSALS), lambda r: again(r, PROPOSALS, eff_confidence="1.5"),
             frozenset(["streams", "recompute"])),
    OnServer("one-configuration", "allocation", key(CYCLES),
             lambda r: again(r, CYCLES, mode="shadow", cycle_id="0123456789abcdef"), frozenset(["cycle-complete"])),
    OnServer("inputs-fresh", "governor", key(MARKET), lambda r: r.client.delete(MARKET)),
    OnServer("inputs-fresh", "allocation", key(CLUSTERS), lambda r: r.client.delete(CLUSTERS)),
    OnServer("recompute", "proposer", key(PROPOSALS), lambda r: again(r, PROPOSALS, multiplier="1.2345")),
    OnServer("confidence", "efficiency", key(EFFICIENCY), lambda r: r.client.hset(EFFICIENCY, "confidence", "1.5"),
             frozenset(["keys", "hashes-agree"])),
    OnServer("hashes-agree", "allocation", key(TARGET), lambda r: r.client.hset(TARGET, "target_usd", "7.0")),
    OnServer("hashes-agree", "allocation", key(TARGET), lambda r: r.client.delete(TARGET)),
    OnServer("inputs-fresh", "governor", key(POSITION),
             lambda r: r.client.hset(POSITION, mapping={"ts_epoch": "1767225600", "ts": "1767225600"})),
    OnServer("inputs-fresh", "allocation", key(POSITION),
             lambda r: r.client.hset(POSITION, mapping={"ts_epoch": "1767225600", "ts": "1767225600"})),
    OnServer("budgets", "allocation", key(BUDGET), lambda r: r.client.delete(BUDGET)),
    OnServer("cycle-complete", "allocation", key(DECISIONS), cut_decision),
    OnServer("caps", "allocation", key(DECISIONS), half_of_equity, frozenset(["recompute", "cycle-complete"])),
    OnServer("plans-answered", "governor", key(PLANS), older_plan,
             looked=lambda f: replace(f, server_now=f.server_now + 10.0)),
    OnServer("permits", "governor", key(ACCOUNT), lambda r: r.client.hset(
        ACCOUNT, "_counts", json.dumps([*json.loads(r.client.hget(ACCOUNT, "_counts"))[:3], 1,
                                        *json.loads(r.client.hget(ACCOUNT, "_counts"))[4:]]))),
    OnServer("kill-switch", "governor", key(KILL), lambda r: r.client.set(KILL, "1")),
    OnServer("one-configuration", "proposer", key(PROPOSALS),
             lambda r: again(r, PROPOSALS, params_hash="0123456789ab"), frozenset(["recompute"])),
    OnServer("shadow", "allocation", key(TARGET), lambda r: r.client.hset(TARGET, "weight", "0.5"),
             frozenset(["hashes-agree", "modes"]), in_shadow),
)  # fmt: skip
"""One fault or more for each check of what Redis holds."""


def of_page(service: str, /, **changed: Any) -> Callable[[Facts], Facts]:
    """The later page of a service, with other fields."""
    return lambda f: replace(f, second={**f.second, service: replace(f.second[service], **changed)})


def of_health(service: str, /, **changed: Any) -> Callable[[Facts], Facts]:
    """The later ``/health`` of a service, with other fields."""

    def put(f: Facts) -> Facts:
        page = f.second[service]
        return replace(f, second={**f.second, service: replace(page, health={**page.health, **changed})})

    return put


def of_metric(service: str, name: str, *samples: tuple[dict[str, str], float]) -> Callable[[Facts], Facts]:
    """The later ``/metrics`` of a service, with other samples of one metric; none takes it away."""

    def put(f: Facts) -> Facts:
        page = f.second[service]
        families = page.families - ({name} if not samples else set())
        told = {k: v for k, v in page.samples.items() if k != name}
        changed = replace(page, samples={**told, **({name: samples} if samples else {})}, families=families)
        return replace(f, second={**f.second, service: changed})

    return put


def strange_metric(f: Facts) -> Facts:
    """A metric that no page of the docs has."""
    page = f.second["budget"]
    return of_page("budget", families=page.families | {"quantum_alloc_secret"})(f)


def standing(f: Facts) -> Facts:
    """The later page of a service is its earlier one: it has not moved."""
    return replace(f, second={**f.second, "efficiency": replace(f.first["efficiency"], asked=f.second["budget"].asked)})


def an_error_now(f: Facts) -> Facts:
    """A line of ERROR between two looks."""
    at = "quantum_alloc_last_log_line_timestamp_seconds"
    lines = "quantum_alloc_log_lines_total"
    f = of_metric("regime", lines, ({"level": "ERROR"}, 1.0), ({"level": "WARNING"}, 0.0))(f)
    return of_metric("regime", at, ({"level": "ERROR"}, f.second["regime"].asked - 1.0))(f)


ON_PAGES: tuple[tuple[str, str, Callable[[Facts], Facts]], ...] = (
    ("up", "allocation", of_page("budget", status=0, health={})),
    ("up", "efficiency", of_health("attribution", service="efficiency")),
    ("ready", "allocation", of_page("budget", ready=503)),
    ("on-time", "allocation", of_page("regime", status=503)),
    ("on-time", "efficiency", of_metric("efficiency", "quantum_alloc_loop_late", ({}, 1.0))),
    ("one-version", "governor", of_health("governor", version="0.0.9")),
    ("modes", "efficiency", of_metric("attribution", "quantum_alloc_mode_unrecognised", ({}, 1.0))),
    ("modes", "governor", of_metric("governor", "quantum_alloc_mode_info", ({"mode": "dry_run"}, 1.0))),
    ("one-clock", "allocation", of_health("clusters", clock_offset_s=0.0)),
    ("one-clock", "governor", lambda f: replace(f, server_now=f.server_now + 5.0)),
    ("metrics-there", "allocation", of_metric("allocation", "p29_drawdown_factor")),
    ("metrics-there", "allocation", strange_metric),
    ("metrics-there", "governor", of_metric("governor", "quantum_alloc_blocks_total", ({"reason": "bad_plan"}, 0.0))),
    ("metrics-moving", "efficiency", standing),
    ("clean-logs", "allocation", an_error_now),
    ("not-blind", "governor", of_metric("governor", "quantum_alloc_armed_but_blind",
                                        ({"kind": "gate", "name": "0.5"}, 1.0))),
    ("server", "governor", lambda f: replace(f, lacks={"noeviction": "maxmemory-policy is allkeys-lru"})),
)  # fmt: skip
"""Faults of pages and of what the server tells of itself."""


def test_a_healthy_installation_passes(running: Running) -> None:
    """Every check passes on a demo that goes on, each looks at something or says why not, and no key is left."""
    names = set(running.client.scan_iter("*proof*"))
    code, told = running.prove()
    for _ in range(TRIES if code else 0):
        running.healthy()
        code, told = running.prove()
    wrong = [c for c in told["cases"] if not c["ok"]]
    assert not wrong, wrong
    assert code == 0
    assert told["passed"]
    assert told["note"] == ""
    assert {(c["group"], c["check"]) for c in told["checks"]} == set(prove_cli.due(EVERY, only_look=False))
    assert all(c["passed"] + c["not needed"] > 0 for c in told["checks"])
    looked = {c["check"] for c in told["checks"] if c["passed"]}
    assert prove_cli.meanings().keys() - looked == {"ledger", "shadow"}
    assert set(running.client.scan_iter("*proof*")) == names


def test_a_fault_is_told_and_its_end_too(running: Running) -> None:
    """A key without its expiry fails the command, exit code 1 and one sentence; with one again it passes."""
    name = f"quantum:governor:plan:{last(running, PLANS)[1]['plan_id']}"
    left = running.client.ttl(name)
    running.healthy()
    running.client.persist(name)
    code, out, _ = said("prove", "governor", "--only-look", environ=running.environ)
    assert code == 1
    assert f"FAIL governor ttl: tombstone: {name} has no expiry" in " ".join(out.split())
    assert out.splitlines()[-1].startswith("FAIL: 1 of ")
    running.client.expire(name, left)
    code, out, _ = said("prove", "governor", "--only-look", environ=running.environ)
    assert code == 0, out
    assert out.splitlines()[-1].startswith("PASS ")


def test_each_check_of_what_stands_sees_its_fault(running: Running) -> None:
    """A fault on the server fails its check and no other, and the check passes again when it is undone."""
    base = running.healthy()
    with stopped(running):
        hashes = proof_facts.Reader(running.settings, running.store).enforced()
        base = replace(base, before=hashes)

        def judged(group: str, fault: OnServer) -> set[str]:
            looked = fault.looked(base)
            found = proof_facts.stored(running.settings, running.store, looked)
            return failed(proof_checks.judged(replace(found, now=looked.now, server_now=looked.server_now), (group,)))

        before: dict[tuple[str, object], set[str]] = {}
        for fault in ON_SERVER:
            told, at = (fault.check, fault.group), (fault.group, fault.looked)
            if at not in before:
                before[at] = judged(fault.group, fault)
            assert fault.check not in before[at], told
            with put_back(running.client, fault.keys(running)):
                fault.put(running)
                found = judged(fault.group, fault)
            assert fault.check in found, told
            # what the fault before has left would be among these
            assert found - before[at] <= {fault.check, *fault.also}, told
        for fault in {f.group: f for f in ON_SERVER}.values():
            assert judged(fault.group, fault) == before[fault.group, fault.looked]


def test_each_check_of_pages_sees_its_fault(running: Running) -> None:
    """A fault on a page fails its check and no other of its group."""
    base = running.healthy()
    for check, group, put in ON_PAGES:
        assert failed(proof_checks.judged(put(base), (group,))) == {check}, (check, group)


def test_a_service_that_listens_elsewhere_is_not_up(running: Running) -> None:
    """Where nothing answers on the port of a service that must run, ``up`` says so."""
    port = {"P29_METRICS_PORT": "1111"}
    settings = load(list(app.SERVICES), {**running.environ, **port}, together=False)
    facts = proof_facts.facts(settings, running.store, NAMES)
    wrong = [r for r in proof_checks.judged(facts, ("allocation",)) if not r.ok]
    assert wrong[0].check == "up"
    assert wrong[0].detail.startswith("nothing answers on port")
    assert "P29_METRICS_PORT, QA_PORT_OFFSET" in wrong[0].detail


def test_a_service_on_another_server_is_seen(running: Running) -> None:
    """Services that tell another run of a server than that which is read fail ``up``, and are not looked at further."""
    found = running.healthy()
    told = {n: p.health.get("redis_run_id") for n, p in found.second.items()}
    assert set(told.values()) == {running.client.info("server")["run_id"]}
    away = of_health("budget", redis_run_id="0" * 40)(found)
    again_ = proof_facts.stored(running.settings, running.store, away)
    wrong = [r for r in proof_checks.judged(again_, ("allocation",)) if r.case == "budget" and not r.ok]
    assert [r.check for r in wrong if "works on another Redis" in r.detail] == ["up"]
    assert not again_.second["budget"].health


def test_without_a_service_it_is_said_first(running: Running) -> None:
    """On a server whose services all answer elsewhere the first sentence says so, in both formats; exit code 1."""
    offset = {**running.environ, "QA_PORT_OFFSET": str((int(running.environ["QA_PORT_OFFSET"]) + 20_000) % 50_000)}
    code, out, _ = said("prove", "proposer", "--only-look", "--wait", "0", environ=offset)
    assert code == 1
    assert " ".join(out.split()).startswith("No service answers: nothing answers on port")
    code, out, _ = said("prove", "proposer", "--only-look", "--wait", "0", "--format", "json", environ=offset)
    assert (code, json.loads(out)["note"][:19]) == (1, "no service answers:")


def test_a_ledger_that_somebody_changed_is_seen(running: Running) -> None:
    """Without a ledger the check is not needed; a sound one passes, and one with another word in it fails."""
    found = running.healthy()
    assert [r.verdict for r in proof_checks.judged(found, ("governor",)) if r.check == "ledger"] == ["NOT NEEDED"]
    words = (
        "--operation",
        "reset",
        "--by",
        "me",
        "--risk",
        "READ_ONLY",
        "--summary",
        "nothing",
        "--objective",
        "a test",
    )
    assert said("ledger", "append", *words, environ=running.environ)[0] == 0
    file = running.settings.common.state_directory / "ops-ledger.jsonl"
    text = file.read_text()
    for content, verdict in ((text, "PASS"), (text.replace("nothing", "nothinh"), "FAIL"), (text, "PASS")):
        file.write_text(content)
        found = proof_facts.stored(running.settings, running.store, found)
        assert [r.verdict for r in proof_checks.judged(found, ("governor",)) if r.check == "ledger"] == [verdict]


def test_a_key_that_is_left_is_seen(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proof that leaves a key behind fails, whatever else passed."""
    real = proof_lane.run_cases

    def leaves(settings: Settings, store: Store, groups: Sequence[str], proof_id: str) -> list[Result]:
        results = real(settings, store, groups, proof_id)
        running.client.set(f"quantum:proof:{proof_id}:forgotten", "1", ex=60)
        return results

    monkeypatch.setattr(proof_lane, "run_cases", leaves)
    results = prove_cli.in_lanes(running.settings, running.store, ("proposer",), "left")
    assert failed(results) == {"nothing-left"}
    running.client.delete("quantum:proof:left:forgotten")
    monkeypatch.undo()
    assert not failed(prove_cli.in_lanes(running.settings, running.store, ("proposer",), "left"))


def test_who_stops_it_is_told_so(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the midst of the cases ends it with 130 and a sentence, and no key is left."""

    def stop(*_: object) -> None:
        running.client.set("quantum:proof:midst", "1", ex=60)
        raise KeyboardInterrupt

    monkeypatch.setattr(proof_lane, "_worked", stop)
    code, _, err = said("prove", "proposer", environ=running.environ)
    assert (code, err) == (130, "quantum-alloc: stopped, and the lanes are cleared\n")
    assert running.client.delete("quantum:proof:midst")
    assert not list(running.client.scan_iter("quantum:proof:*"))


def test_a_reader_that_hangs_up_makes_no_pass_of_a_fault(running: Running) -> None:
    """Where the reader of the output has gone, the exit code is still that of the checks, and nothing is said."""
    read, write = os.pipe()
    os.close(read)
    program = "import sys; from quantum_alloc.services.cli import main; sys.exit(main())"
    words = (sys.executable, "-c", program, "prove", "proposer", "--only-look", "--wait", "0")
    with os.fdopen(write, "wb") as pipe:
        found = subprocess.run(words, check=False, env=dict(running.environ), stdout=pipe, stderr=subprocess.PIPE)
    assert (found.returncode, found.stderr) == (1, b"")


def test_every_check_has_a_fault() -> None:
    """No check is without a fault that it was seen to find: here, or among those of the cases in lanes."""
    faults = {f.check for f in ON_SERVER} | {check for check, _, _ in ON_PAGES} | {"ledger"}
    assert faults == {check.id for check in proof_checks.CHECKS}
    assert faults | {prove_cli.NOTHING_LEFT} | FAULTS.keys() == prove_cli.meanings().keys()


def test_only_looking_takes_no_more_rights_than_watch(tmp_path: Path) -> None:
    """``--only-look`` works as who only looks, the whole as an operator; without the right it says who has it."""
    with ruled() as server:
        for user, words, code in (("watch", ["--only-look"], 1), ("operator", [], 1), ("watch", [], 69)):
            file = tmp_path / user
            file.write_text(PASSWORDS[user])
            file.chmod(0o600)
            environ = {**COMMON, "REDIS_URL": server.url, "REDIS_USERNAME": f"qa-{user}", "QA_PORT_OFFSET": "31000"}
            environ["REDIS_PASSWORD_FILE"] = str(file)
            server.admin.execute_command("ACL", "LOG", "RESET")
            found, out, err = said("prove", *words, "--format", "json", environ=environ)
            assert found == code, (user, out, err)
            if code == 69:
                assert "qa-operator" in err
                continue
            assert not server.refused
            told = {(c["group"], c["check"]): c["result"] for c in json.loads(out)["checks"]}
            assert told["proposer", "up"] == "FAIL"
            worked = {r for (_, check), r in told.items() if check in (*proof_lane.CASES, prove_cli.NOTHING_LEFT)}
            assert worked == (set() if words else {"PASS"})


def test_without_a_server_and_with_a_mistake() -> None:
    """69 where Redis does not answer, 2 for a word that is none, 78 for a setting that cannot be used."""
    away = {**COMMON, "REDIS_URL": f"redis://127.0.0.1:{free_port()}"}
    assert said("prove", environ=away)[0] == 69
    assert said("prove", environ={**away, "P29_MODE": "shadow", "P29_INTERVAL_SEC": "never"})[0] == 78
    for words in (("everything",), ("--wait", "soon"), ("--symbols", "0")):
        with pytest.raises(SystemExit) as caught:
            said("prove", *words, environ=away)
        assert caught.value.code == 2
    code, out, _ = said("prove", "proposer", "--list", environ=away)
    assert code == 0
    assert all(name in out for _, name in prove_cli.due(("proposer",), only_look=False))
