"""clear-targets, as an operator uses it on the way back from enforce to shadow; on a real server of each kind."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from threading import Event

import pytest

from quantum_alloc.adapters.effects import Delete, Failed, Group
from quantum_alloc.adapters.embedded import EmbeddedServer, free_port
from quantum_alloc.adapters.keys import LIVE, Keys, ShadowKeys
from quantum_alloc.adapters.store import Store, StoreError
from quantum_alloc.services import clear_cli
from tests.integration.test_status_ports import answering
from tests.integration.test_trial_commands import call
from tests.support.running import Service, seed, until
from tests.support.worlds import Client

A, B, C = "BTCUSDT", "ETHUSDT", "XRPUSDT"


@pytest.fixture
def environ(client: Client, any_server: EmbeddedServer, tmp_path: Path) -> dict[str, str]:
    """An empty server, a ledger of our own, and a port on which nobody answers."""
    return {
        "REDIS_URL": any_server.url,
        "LOG_LEVEL": "ERROR",
        "STATE_DIRECTORY": str(tmp_path),
        "P29_METRICS_PORT": str(free_port()),
    }


def world(client: Client, *symbols: str, age_s: int = 60) -> int:
    """Targets of the symbols and everything beside them that must stay; how many keys that must stay."""
    ts = int(time.time()) - age_s
    stay = [
        LIVE.proposed(A), ShadowKeys().target(A), ShadowKeys().proposed(A), LIVE.budget(A), LIVE.efficiency(A),
        LIVE.attribution(A), LIVE.target("not-a-symbol"), LIVE.key("allocation", "target"), "a:" + LIVE.target(A),
        Keys(tag="other").target(A),
    ]  # fmt: skip
    pipe = client.pipeline()
    for s in symbols:
        pipe.hset(LIVE.target(s), mapping={"target_usd": 100, "confidence": 1, "mode": "enforce", "timestamp": ts})
        pipe.expire(LIVE.target(s), 300)
    for key in stay:
        pipe.hset(key, mapping={"mode": "enforce", "timestamp": ts})
    pipe.execute()
    return len(stay)


def targets(client: Client) -> list[str]:
    """Symbols of the live targets."""
    return sorted(
        k.rpartition(":")[2] for k in client.scan_iter(LIVE.target("*")) if k.count(":") == 3 and "-" not in k
    )


def ledger(environ: dict[str, str], capsys: pytest.CaptureFixture[str]) -> list[dict[str, str]]:
    """What the OPS ledger holds."""
    code, out, _ = call(capsys, environ, "ledger", "show", "--format", "json")
    assert code == 0
    return list(json.loads(out))


def test_all_targets_and_nothing_else(
    client: Client, environ: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Every enforced target goes, whatever its type; proposals, the shadow lane and other names stay; written down."""
    stay = world(client, A, B)
    client.set(LIVE.target(C), "no hash")
    client.config_resetstat()
    code, out, err = call(capsys, environ, "clear-targets", "--by", "anna", "--why", "back to shadow")
    assert (code, err) == (0, "")
    assert "cmdstat_keys" not in client.info("commandstats")
    assert targets(client) == []
    assert client.dbsize() == stay + 1, "what is no target of ours stays; the ledger's head is new"
    assert out.splitlines()[:2] == [
        f"Deleted 3 enforced targets: {A}, {B}, {C}.",
        f"Held another type than a hash: {C} (string).",
    ]
    assert "no budget of theirs is fresh and in enforce, so the hard gates alone limit them" in out
    (entry,) = ledger(environ, capsys)
    assert f"Written down as {entry['operation_id']}." in out
    assert (entry["operation_name"], entry["requested_by"], entry["objective"]) == (
        "clear_targets", "anna", "back to shadow",
    )  # fmt: skip
    assert entry["changes_summary"] == f"3 of quantum:allocation:target:{{S}} deleted: {A}, {B}, {C}"
    again = call(capsys, environ, "clear-targets")
    assert again == (0, "There is no enforced target: nothing is deleted.\n", "")
    assert len(ledger(environ, capsys)) == 1, "nothing was done, nothing is written down"


def test_named_symbols_a_dry_run_and_json(
    client: Client, environ: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A dry run deletes and records nothing; named symbols alone are looked at, and those without a target are told."""
    world(client, A, B)
    client.hset(LIVE.budget(A), mapping={"budget_usd": 50, "mode": "enforce", "timestamp": int(time.time())})
    code, out, err = call(capsys, environ, "clear-targets", A, "SOLUSDT", "--dry-run", "--format", "json")
    told = json.loads(out)
    assert (code, err, told["targets"], told["absent"]) == (0, "", [A], ["SOLUSDT"])
    assert (told["dry_run"], told["operation"], told["limited_by_budget"]) == (True, None, [A])
    assert (told["allocation"], told["warnings"]) == ("not reached", [])
    assert targets(client) == [A, B]
    code, out, _ = call(capsys, environ, "clear-targets", A, "SOLUSDT", "--dry-run")
    assert out.startswith(f"Would delete 1 enforced target: {A}.\nWithout a target: SOLUSDT.\n")
    assert "gate 0 (P28_MODE=enforce) limits 1 of them to the budget alone" in out
    assert ledger(environ, capsys) == []
    code, out, _ = call(capsys, environ, "clear-targets", A, "SOLUSDT", "--format", "json")
    told = json.loads(out)
    assert (code, told["count"], targets(client)) == (0, 1, [B])
    assert told["operation"] == ledger(environ, capsys)[0]["operation_id"]
    assert call(capsys, environ, "clear-targets", "SOLUSDT")[1] == (
        "There is no enforced target of SOLUSDT: nothing is deleted.\n"
    )


def test_many_are_counted(
    one_client: Client, one_server: EmbeddedServer, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """1,234 targets among other keys: all go; a person sees ten names and the count, the ledger a hundred."""
    world(one_client, *(f"S{n:05}" for n in range(1234)))
    environ = {"REDIS_URL": one_server.url, "STATE_DIRECTORY": str(tmp_path), "P29_METRICS_PORT": str(free_port())}
    code, out, err = call(capsys, environ, "clear-targets")
    assert (code, err, targets(one_client)) == (0, "", [])
    assert out.startswith("Deleted 1234 enforced targets: S00000, S00001, ")
    assert "S00009 and 1224 more.\n" in out
    assert "S00010" not in out
    assert ledger(environ, capsys)[0]["changes_summary"].endswith("S00099 and 1134 more")


def test_allocation_that_still_enforces(
    one_client: Client, one_server: EmbeddedServer, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """It writes them again: warned of, exit 1, also in the ledger; in shadow there is no warning."""
    seed(one_client, time.time(), {A: 1000.0})
    own = {"P29_INTERVAL_SEC": "0.3", "TARGET_TTL_SEC": "300"}
    environ = {"REDIS_URL": one_server.url, "STATE_DIRECTORY": str(tmp_path)}
    with Service("allocation", one_server.url, P29_MODE="enforce", **own) as service:
        environ["P29_METRICS_PORT"] = str(service.port)
        until(lambda: targets(one_client) == [A], 20, "a target")
        until(service.ready, 20, "ready")
        code, out, err = call(capsys, environ, "clear-targets", "--dry-run")
        assert (code, "enforces on port" in err) == (0, True)
        code, out, err = call(capsys, environ, "clear-targets", "--format", "json")
        assert (code, json.loads(out)["allocation"]) == (1, "enforce")
        assert f"allocation enforces on port {service.port}" in err
        assert "P29_MODE=shadow" in err
        until(lambda: targets(one_client) == [A], 20, "the target is there again")
    assert "enforces on port" in ledger(environ, capsys)[0]["notes"]
    environ["P29_METRICS_PORT"] = str(free_port())
    one_client.hset(LIVE.target(A), mapping={"timestamp": int(time.time())})
    code, _, err = call(capsys, environ, "clear-targets")
    assert (code, "if it still enforces on another machine" in err) == (1, True)
    with Service("allocation", one_server.url, **own) as service:
        environ["P29_METRICS_PORT"] = str(service.port)
        until(service.ready, 20, "ready")
        world(one_client, B, age_s=0)
        code, out, err = call(capsys, environ, "clear-targets", "--format", "json")
        assert (code, err, json.loads(out)["allocation"], json.loads(out)["targets"]) == (0, "", "shadow", [B])
        assert targets(one_client) == []


def test_mistakes_and_troubles(
    one_client: Client, one_server: EmbeddedServer, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A bad symbol, a bad name, no Redis, a ledger that cannot be written: one sentence each, and its exit code."""
    environ = {"REDIS_URL": one_server.url, "STATE_DIRECTORY": str(tmp_path), "P29_METRICS_PORT": str(free_port())}
    world(one_client, A)
    for argv in (("proposed:BTCUSDT",), ("*",), ("--by", "a\nb"), ("--why", "")):
        assert call(capsys, environ, "clear-targets", *argv)[0] == 2
    assert call(capsys, {**environ, "P29_INTERVAL_SEC": "x"}, "clear-targets")[0] == 78
    code, out, err = call(capsys, {"REDIS_PORT": str(free_port()), "STATE_DIRECTORY": str(tmp_path)}, "clear-targets")
    assert (code, out, err.count("\n")) == (69, "", 1)
    assert targets(one_client) == [A]
    (tmp_path / "file").write_text("")
    code, out, err = call(capsys, {**environ, "STATE_DIRECTORY": str(tmp_path / "file")}, "clear-targets")
    assert (code, "Deleted 1 enforced target" in out) == (1, True)
    assert "done, but the OPS ledger does not tell of it" in err
    assert targets(one_client) == []


def test_it_breaks_off(one_client: Client, one_server: EmbeddedServer) -> None:
    """Redis goes away between two groups: it is said how many are gone for certain."""
    names = [f"S{n:05}" for n in range(1100)]
    world(one_client, *names)

    class Breaks(Store):
        left = 2

        def apply(self, groups: object) -> list[tuple[str, object]]:  # type: ignore[override]
            self.left -= 1
            if self.left < 0:
                one_client.config_set("maxclients", 1)
                one_client.client_kill_filter(skipme=True, _type="normal")
            return super().apply(groups)  # type: ignore[arg-type,return-value]

    store = Breaks(one_server.url)
    try:
        with pytest.raises(StoreError, match="1000 of 1100 targets are deleted for certain: give the command again"):
            clear_cli.delete(store, LIVE, names)
    finally:
        one_client.config_set("maxclients", 10_000)
        store.close()
    assert len(targets(one_client)) == 100


def breaking(monkeypatch: pytest.MonkeyPatch, at: int, code: str, *, done: bool, ledger_too: bool = False) -> None:
    """The n-th deletion fails, having been done or not; maybe everything that is written after it fails too."""
    real, seen = Store.apply, [0]

    def apply(self: Store, groups: Sequence[Group]) -> list[tuple[str, Failed]]:
        deletes = any(isinstance(e, Delete) for group in groups for e in group)
        seen[0] += deletes
        if deletes and seen[0] == at:
            if done:
                real(self, groups)
            raise StoreError(code, "as planted")
        if ledger_too and seen[0] >= at:
            raise StoreError("unreachable", "still away")
        return real(self, groups)

    monkeypatch.setattr(Store, "apply", apply)


@pytest.mark.parametrize(
    ("at", "code", "done", "summary"),
    [
        (3, "timeout", True, "1000 of 1100 targets at quantum:allocation:target:{S} deleted, 100 more may be gone: "),
        (3, "closed", False, "1000 of 1100 targets at quantum:allocation:target:{S} deleted, 100 more may be gone: "),
        (1, "timeout", True, "0 of 1100 targets at quantum:allocation:target:{S} deleted, 500 more may be gone: "),
        (2, "MISCONF", False, "500 of 1100 targets at quantum:allocation:target:{S} deleted: "),
        (1, "MISCONF", False, ""),
    ],
)
def test_what_broke_off_is_written_down(
    at: int, code: str, done: bool, summary: str, one_client: Client, one_server: EmbeddedServer,
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """As PARTIAL, with what may be gone; nothing where nothing can be gone. The trouble is told all the same."""
    world(one_client, *(f"S{n:05}" for n in range(1100)))
    environ = {"REDIS_URL": one_server.url, "STATE_DIRECTORY": str(tmp_path), "P29_METRICS_PORT": str(free_port())}
    breaking(monkeypatch, at, code, done=done)
    code_, out, err = call(capsys, environ, "clear-targets", "--by", "anna", "--why", "back")
    monkeypatch.undo()
    assert (code_, out, err.count("\n")) == (69, "", 1)
    assert f"{code}: as planted; " in err
    assert "1100 targets are deleted for certain: give the command again" in err
    entries = ledger(environ, capsys)
    assert len(entries) == bool(summary)
    assert [e["outcome"] for e in entries] == ["PARTIAL"] * len(entries)
    assert all(e["changes_summary"].startswith(f"{summary}S00000, ") and "as planted" in e["notes"] for e in entries)
    assert all(f"written down as {e['operation_id']}" in err for e in entries)
    monkeypatch.undo()
    assert call(capsys, environ, "clear-targets")[0] == 0
    assert targets(one_client) == []


def test_what_broke_off_and_cannot_be_written_down(
    one_client: Client, one_server: EmbeddedServer, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """It says so, and how to do it later."""
    world(one_client, A)
    environ = {"REDIS_URL": one_server.url, "STATE_DIRECTORY": str(tmp_path), "P29_METRICS_PORT": str(free_port())}
    breaking(monkeypatch, 1, "timeout", done=True, ledger_too=True)
    code, out, err = call(capsys, environ, "clear-targets")
    assert (code, out, err.count("\n")) == (69, "", 1)
    assert "0 of 1 targets are deleted for certain" in err
    assert "the OPS ledger does not tell of it (unreachable: still away" in err
    assert "`quantum-alloc ledger append`" in err


def test_those_left_out(
    one_client: Client, one_server: EmbeddedServer, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Exit 1 while some are left; members of the universe without a target are not left out."""
    monkeypatch.setattr(clear_cli, "MOST_TARGETS", 3)
    environ = {"REDIS_URL": one_server.url, "STATE_DIRECTORY": str(tmp_path), "P29_METRICS_PORT": str(free_port())}
    world(one_client, *(f"S{n}" for n in range(10, 15)))
    one_client.sadd(LIVE.universe, *(f"U{n}" for n in range(10, 30)))
    code, out, _ = call(capsys, environ, "clear-targets", "--dry-run", "--format", "json")
    assert (code, json.loads(out)["left_out"]) == (0, 2)
    code, out, err = call(capsys, environ, "clear-targets")
    assert (code, err) == (1, "quantum-alloc: 2 more were left out: give the command again\n")
    assert targets(one_client) == ["S13", "S14"]
    assert ledger(environ, capsys)[0]["changes_summary"].endswith("; 2 more were left out")
    code, out, err = call(capsys, environ, "clear-targets", "--format", "json")
    assert (code, err, json.loads(out)["left_out"], targets(one_client)) == (0, "", 0, [])


def test_targets_go_before_anybody_is_asked(
    one_client: Client, one_server: EmbeddedServer, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """When the service allocation is asked what it runs as, they are gone."""
    world(one_client, A, B)
    seen: list[list[str]] = []

    def look(caller: socket.socket, _: Event) -> None:
        seen.append(targets(one_client))
        caller.sendall(b"HTTP/1.0 200 OK\r\n\r\n{}")

    with answering(look) as port:
        environ = {"REDIS_URL": one_server.url, "STATE_DIRECTORY": str(tmp_path), "P29_METRICS_PORT": str(port)}
        assert call(capsys, environ, "clear-targets")[0] == 0
    assert seen == [[]]


def test_the_hash_tag(
    one_client: Client, one_server: EmbeddedServer, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """With a hash tag the tagged targets go, and the plain ones stay."""
    world(one_client, A)
    environ = {"REDIS_URL": one_server.url, "STATE_DIRECTORY": str(tmp_path), "P29_METRICS_PORT": str(free_port())}
    code, out, _ = call(capsys, {**environ, "QA_HASH_TAG": "other"}, "clear-targets", "--format", "json")
    assert (code, json.loads(out)["targets"]) == (0, [A])
    assert (one_client.exists(Keys(tag="other").target(A)), targets(one_client)) == (0, [A])
