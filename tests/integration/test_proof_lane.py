"""The cases of a proof on real servers: all pass, nothing of the live lane is touched, and no key stays behind."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest

from quantum_alloc.adapters import lane_store
from quantum_alloc.adapters.clock import WallClock
from quantum_alloc.adapters.effects import HashSet, StreamAdd
from quantum_alloc.adapters.embedded import EmbeddedServer
from quantum_alloc.adapters.key_patterns import Names
from quantum_alloc.adapters.keys import Keys
from quantum_alloc.adapters.lane_store import GUARD_S, LaneStore
from quantum_alloc.adapters.rights import Rules
from quantum_alloc.adapters.store import StoreError
from quantum_alloc.services import app, proof_lane
from quantum_alloc.services.options import GROUPS, Settings, load
from quantum_alloc.services.proof import GROUPS as CHECKED
from quantum_alloc.services.proof import Result
from quantum_alloc.services.proof_bench import Bench
from quantum_alloc.services.proof_lane import CASES, run_cases
from tests.support import chain
from tests.support.ruling import PASSWORDS, Ruled, ruled
from tests.support.running import Service, until
from tests.support.worlds import Client

ROOT = "quantum:proof:t1:"
STRANGE = {
    "otherwise": {
        "SHADOW_LANE": "1", "P29_USE_PROPOSED": "1", "QA_SYMBOLS": "BTCUSDT", "METRICS_MAX_SYMBOLS": "0",
        "MAX_SYMBOLS": "1", "STREAM_PLANS": "plans", "EXECUTION_STREAM": "fills", "GOV_EXPOSURE_BASIS": "position",
        "P31_MIN_CONF": "0", "APPLY_MODE": "testnet", "P29_MODE": "enforce", "STREAM_MAXLEN": "100",
        "UNMAPPED_CLUSTER_POLICY": "exempt", "LOOKBACK_WINDOW": "1", "DD_LOW_THRESHOLD": "0",
    },
    "narrow": {
        "P31_MIN_CONF": "1", "P31_DOWNSIZE_THRESHOLD": "0.1", "P31_BASE": "0.9", "P31_SCALE": "3",
        "P31_STALE_SEC": "1", "P31_EFF_TTL_SEC": "1", "GOV_PLAN_MAX_AGE_SEC": "1", "STALE_DATA_SEC": "1",
        "GOV_MAX_EXEC_PER_HOUR": "0", "GOV_MAX_TOTAL_NOTIONAL_USDT": "0", "GOV_KILL_SCORE_CRITICAL": "0",
        "GOV_MAX_OPEN_POSITIONS": "0", "ATTRIBUTION_MAX_AGE_SEC": "1", "MAX_LKG_AGE_SEC": "0",
        "MAX_SYMBOL_PCT": "0.001", "MAX_CLUSTER_PCT": "0.001", "TARGET_TTL_SEC": "7200", "PROPOSE_KEY_TTL": "901",
        "P31_KEY_TTL_SEC": "900", "QA_HASH_TAG": "q", "GOV_DURABILITY": "none", "GOV_MAX_CLOSE_PER_HOUR": "0",
    },
}  # fmt: skip


def settings_of(url: str, **environ: str) -> Settings:
    """The settings of an installation."""
    return load(list(GROUPS), {"REDIS_URL": url, **environ}, together=False)


def proved(settings: Settings, proof_id: str = "t1") -> list[Result]:
    """All cases."""
    store = app.open_store(settings)
    try:
        return run_cases(settings, store, list(CHECKED), proof_id)
    finally:
        store.close()


def failed(results: list[Result]) -> list[str]:
    """What failed, to be read."""
    return [f"{r.check} ({r.case}): {r.detail}" for r in results if not r.ok]


def everything(client: Client) -> dict[str, Any]:
    """Every key's bytes and whether it expires."""
    return {key: (client.dump(key), client.ttl(key) > 0) for key in client.scan_iter()}


def test_all_cases_pass_on_an_empty_server(any_server: EmbeddedServer, client: Client) -> None:
    """Every check has its results, each passes, in less than three seconds of work, and no key is left."""
    began = time.process_time()
    results = proved(settings_of(any_server.url))
    assert time.process_time() - began < 3.0
    assert failed(results) == []
    assert {r.check: r.group for r in results} == {check: case.group for check, case in CASES.items()}
    assert len(results) > len(CASES)
    assert list(client.scan_iter()) == []


@pytest.mark.parametrize("which", STRANGE)
def test_other_settings_do_not_make_a_healthy_installation_fail(
    one_server: EmbeddedServer, one_client: Client, which: str
) -> None:
    """Thresholds, ages, limits, modes, names of streams, a hash tag: what is due follows them."""
    assert failed(proved(settings_of(one_server.url, **STRANGE[which]))) == []
    assert list(one_client.scan_iter()) == []


def test_only_the_groups_that_are_asked_for_are_worked(one_server: EmbeddedServer, one_client: Client) -> None:
    """A proof of the proposer is about the proposer."""
    settings = settings_of(one_server.url)
    store = app.open_store(settings)
    results = run_cases(settings, store, ["proposer"], "t1")
    store.close()
    assert {r.group for r in results} == {"proposer"}
    assert {r.check for r in results} == {c for c, case in CASES.items() if case.group == "proposer"}


# ---- nothing of the live lane


class Monitor:
    """Everything that a server is sent, as MONITOR tells it."""

    def __init__(self, client: Client) -> None:
        """Prepare."""
        self.seen: list[tuple[str, list[str]]] = []
        self._client, self._ready, self._thread = client, Event(), Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Monitor:
        """Begin, and wait until it has begun."""
        self._thread.start()
        assert self._ready.wait(5)
        return self

    def __exit__(self, *_: object) -> None:
        """Until the mark is seen."""
        self._client.echo("the end")
        self._thread.join(5)

    def _watch(self) -> None:
        with self._client.monitor() as monitor:
            self._ready.set()
            for told in monitor.listen():
                words = told["command"].split(" ")
                if words[0].upper() == "ECHO":
                    return
                self.seen.append((str(told["client_type"]), words))


def test_no_command_of_a_proof_names_a_key_outside_it(one_server: EmbeddedServer, one_client: Client) -> None:
    """What MONITOR shows, scripts and their commands included: every key begins as the proof's do."""
    settings = settings_of(one_server.url)
    proved(settings)  # the server knows the scripts by their names from now on
    with Monitor(one_client) as monitor:
        assert failed(proved(settings)) == []
    assert {words[0] for _, words in monitor.seen} >= {"EVALSHA", "XREADGROUP", "SCAN", "MULTI"}
    keys = [(who, words[0], key) for who, words in monitor.seen if words[0] not in ("CLIENT", "HELLO")
            for key in lane_store.keys_of(tuple(words))]  # fmt: skip
    assert len(keys) > 1000
    assert {who for who, _, _ in keys} == {"unix", "lua"}
    sweeping = ("unix", "SCAN", "quantum:proof:*")
    assert [k for k in keys if not k[2].startswith(ROOT) and k != sweeping] == []


def test_a_live_lane_is_as_it_was(
    one_server: EmbeddedServer, one_client: Client, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """After the whole chain has run, a proof changes no byte and no expiry of it, and no file of its state."""
    environ = chain.environment(tmp_path, REDIS_URL=one_server.url)
    chain.run_chain(environ, capsys)
    before, files = everything(one_client), {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert len(before) > 50
    assert failed(proved(load(list(GROUPS), environ, together=False))) == []
    assert everything(one_client) == before
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == files


def test_beside_live_services(one_server: EmbeddedServer, one_client: Client, tmp_path: Path) -> None:
    """Services that run on the same keys disturb no case, and see nothing of it."""
    common = {"STATE_DIRECTORY": str(tmp_path), "QA_METRICS_HOST": "127.0.0.1"}
    one_client.hset(Keys().target("BTCUSDT"), mapping={"target_usd": "1000", "mode": "enforce", "ts": int(time.time())})
    quick = {**common, "LOOP_INTERVAL_SEC": "0.1"}
    with (
        Service("governor", one_server.url, **common) as governor,
        Service("proposer", one_server.url, **quick) as proposer,
    ):
        for service in (governor, proposer):
            until(service.ready, 20, f"{service.name} is ready")
        cycles = proposer.health()["cycles"]
        assert failed(proved(settings_of(one_server.url))) == []
        until(lambda: proposer.health()["cycles"] > cycles, 5, "it goes on")
        shown = governor.get("/metrics")[1] + proposer.get("/metrics")[1]
    assert "p29_shadow_loops_total" in shown
    assert "quantum_alloc_plans_waiting" in shown
    assert "PROOFA" not in shown
    assert not [key for key in one_client.scan_iter() if "proof" in key.lower()]
    assert one_client.smembers(Keys().universe) == {"BTCUSDT"}


def test_a_connection_of_a_proof_sends_nothing_else(one_server: EmbeddedServer, one_client: Client) -> None:
    """A command, a transaction or a script that names a key outside the proof is refused before it is sent."""
    one_client.set("quantum:kill", "off")
    store = LaneStore(ROOT, one_server.url)
    for commands in ([("GET", "quantum:kill")], [("PING",), ("DEL", f"{ROOT}a", "quantum:kill")], [("SCAN", "0")]):
        with pytest.raises(StoreError, match="is no key of this proof"):
            store.read(commands)
    with pytest.raises(StoreError, match="is no key of this proof"):
        store.apply([(HashSet(f"{ROOT}a", {"x": "1"}), HashSet("quantum:proof:t2:a", {"x": "1"}))])
    with pytest.raises(StoreError, match="is no key of this proof"):
        store.read([("XREADGROUP", "GROUP", "g", "me", "STREAMS", f"{ROOT}a", "plans", ">", ">")])
    store.close()
    assert list(one_client.scan_iter()) == ["quantum:kill"]
    assert one_client.get("quantum:kill") == "off"


@pytest.mark.parametrize("text", ["", ":", "a:", "a:b:c", "a*", "{a}", "x" * 65, "a b"])
def test_what_is_no_id_of_a_proof_is_refused(text: str) -> None:
    """An id must not reach beyond its own keys, in a pattern or by a colon; empty is no proof."""
    if not text:
        assert Keys(proof=text) == Keys()
        return
    with pytest.raises(ValueError, match="is no id of a proof"):
        Keys(proof=text)


# ---- rights


@pytest.fixture(scope="module")
def secured() -> Iterator[Ruled]:
    """A server that lets nobody in but the users of the file."""
    with ruled() as found:
        yield found


@pytest.mark.parametrize("tag", ["", "q"])
def test_an_operator_may_prove_and_whoever_looks_may_not(secured: Ruled, tmp_path: Path, tag: str) -> None:
    """With the rights of the file all cases pass and nothing is refused; the proof's commands reach no live key."""
    secured.begin(Rules(Names(Keys(tag=tag))))
    found: dict[str, Settings] = {}
    for name in ("operator", "watch"):
        secret = tmp_path / name
        secret.write_text(PASSWORDS[name])
        secret.chmod(0o600)
        login = {"REDIS_USERNAME": f"qa-{name}", "REDIS_PASSWORD_FILE": str(secret), "QA_HASH_TAG": tag}
        found[name] = settings_of(secured.url, **login)
    assert failed(proved(found["operator"])) == []
    assert secured.refused == []
    with pytest.raises(StoreError, match="NOPERM"):
        proved(found["watch"])
    head = Keys(tag=tag).root
    for words in (
        f"SADD {head}universe X",
        f"XGROUP CREATE {head}stream:apply.plan g 0",
        f"HINCRBY {head}p30:state a 1",
    ):
        told = secured.admin.execute_command("ACL", "DRYRUN", "qa-operator", *words.split())
        assert "permission" in str(told), words
        inside = words.replace(head, f"{head}proof:x:")
        assert secured.admin.execute_command("ACL", "DRYRUN", "qa-operator", *inside.split()) == "OK", inside


# ---- what is left


def test_everything_that_a_killed_proof_leaves_expires(
    one_server: EmbeddedServer, one_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every key of a proof that deletes nothing lives 15 minutes at most; a proof that still runs keeps its keys, and
    of one that does not the next deletes them."""
    monkeypatch.setattr(proof_lane, "remove", lambda *_: None)
    assert failed(proved(settings_of(one_server.url, TARGET_TTL_SEC="7200"))) == []
    left = {key: one_client.ttl(key) for key in one_client.scan_iter()}
    assert len(left) > 200
    assert {key: s for key, s in left.items() if not 0 < s <= GUARD_S} == {}
    monkeypatch.undo()
    assert failed(proved(settings_of(one_server.url), "t2")) == []
    assert set(one_client.scan_iter()) == set(left)
    one_client.delete(f"{ROOT}began")
    one_client.set("quantum:proofs", "no key of a proof")
    assert failed(proved(settings_of(one_server.url), "t2")) == []
    assert list(one_client.scan_iter()) == ["quantum:proofs"]


def test_a_proof_that_began_while_another_looked_keeps_its_keys(
    one_server: EmbeddedServer, one_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A SCAN is no snapshot: it may show a key of a proof and not the lease that was there before the key. So the lease
    is asked for by name, afterwards."""
    one_client.mset({"quantum:proof:t9:began": "1", "quantum:proof:t9:a": "1", "quantum:proof:t8:a": "1"})
    monkeypatch.setattr(lane_store, "found", lambda *_: ["quantum:proof:t8:a", "quantum:proof:t9:a"])
    store = app.open_store(settings_of(one_server.url))
    assert lane_store.sweep(store, Keys()) == 1
    store.close()
    assert sorted(one_client.scan_iter()) == ["quantum:proof:t9:a", "quantum:proof:t9:began"]


ENDED = """
import os, signal, sys
from quantum_alloc.adapters.effects import StreamAdd
from quantum_alloc.services import app, proof_lane
from quantum_alloc.services.options import GROUPS, load

def ended(bench):
    lane = bench.lane("x")
    lane.put(StreamAdd(lane.keys.stream("x"), {"a": "1"}, 10))
    print("worked", flush=True)
    os.kill(os.getpid(), int(sys.argv[2]))
    return []

proof_lane.CASES = {"x": proof_lane.Case("governor", "is ended", ended)}
settings = load(list(GROUPS), {"REDIS_URL": sys.argv[1]}, together=False)
proof_lane.run_cases(settings, app.open_store(settings), ["governor"], "t1")
print("went on")
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_proof_that_is_told_to_end_leaves_nothing(
    one_server: EmbeddedServer, one_client: Client, number: signal.Signals
) -> None:
    """SIGTERM (``timeout``, systemd) and a terminal that closes end it only after every key was deleted."""
    argv = [sys.executable, "-c", ENDED, one_server.url, str(int(number))]
    told = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    assert told.stdout == "worked\n", told.stderr
    assert told.returncode == 128 + number
    assert told.stderr == ""
    assert list(one_client.scan_iter()) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_proof_that_is_interrupted_leaves_nothing(
    one_server: EmbeddedServer, one_client: Client, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    """Ctrl-C, and a fault in a case, are passed on after every key was deleted; loggers are as they were."""

    def interrupted(bench: Bench) -> list[Result]:
        lane = bench.lane("x")
        lane.put(StreamAdd(lane.keys.stream("x"), {"a": "1"}, 10))
        assert one_client.exists(lane.keys.stream("x"))
        raise error

    case = proof_lane.Case("governor", "is interrupted", interrupted)
    cases: Mapping[str, proof_lane.Case] = {"proposer-high": CASES["proposer-high"], "x": case}
    monkeypatch.setattr(proof_lane, "CASES", cases)
    handlers = (app.log.handlers[:], app.log.propagate)
    with pytest.raises(error):
        proved(settings_of(one_server.url))
    assert list(one_client.scan_iter()) == []
    assert (app.log.handlers, app.log.propagate) == handlers


def test_a_server_that_goes_away_fails_the_case_and_not_the_program(
    one_server: EmbeddedServer, one_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trouble with the store is a FAIL with its sentence; the cases after it are worked."""
    gone = iter([True])
    plain = LaneStore.read

    def read(self: LaneStore, *args: Any) -> Any:
        if next(gone, False):
            raise StoreError("timeout", "the server did not answer")
        return plain(self, *args)

    monkeypatch.setattr(LaneStore, "read", read)
    results = proved(settings_of(one_server.url))
    assert [(r.check, r.detail) for r in results if not r.ok] == [
        ("allocation-shadow", "it could not be worked: timeout: the server did not answer")
    ]
    assert list(one_client.scan_iter()) == []


def test_services_of_a_lane_are_those_of_the_installation() -> None:
    """A lane's settings differ from the installation's in what the table says, and in names, alone."""
    settings = settings_of("redis://localhost", P31_DOWNSIZE_THRESHOLD="0.3", P29_MODE="enforce")
    names = {"allocation", "attribution", "budget", "efficiency", "proposer"}
    lane = Bench(settings, LaneStore(ROOT, "redis://localhost"), "t1", Path("/nowhere")).lane("x")
    for name in names:
        mine, theirs = settings.services[name], lane.settings.services[name]
        unlike = {f for f in type(mine).__slots__ if getattr(mine, f) != getattr(theirs, f)}  # type: ignore[attr-defined]
        assert unlike <= {"mode", *(f for f in unlike if f.endswith("_stream"))}, name
    assert lane.keys.root == f"{ROOT}x:"
    assert all(stream.startswith(lane.keys.root) for stream in lane.settings.streams.values())
    assert WallClock().now() - lane.now > 86_400
