"""Rights where there is more than one server: replicas, sentinels and a cluster log in with users of their own too."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from quantum_alloc.adapters.key_patterns import Names
from quantum_alloc.adapters.lane_store import found
from quantum_alloc.adapters.rights import USERS, user_of
from quantum_alloc.services import acl_cli, app
from quantum_alloc.services.app import SERVICES
from quantum_alloc.services.cli import main
from quantum_alloc.services.options import GROUPS, load
from quantum_alloc.services.proof import GROUPS as CHECKED
from quantum_alloc.services.proof_lane import run_cases
from tests.support.nodes import HOST, NAME, Cluster, Node, Watched
from tests.support.ruling import PASSWORDS, SECRETS
from tests.support.running import ALONE

ENFORCING = dict.fromkeys(("P28_MODE", "P29_MODE", "P30_MODE", "P31_MODE"), "enforce")


def users(environ: Mapping[str, str]) -> list[str]:
    """The users of the file as lines of a configuration; these servers' own client keeps the default user."""
    rules = acl_cli.rules_of(load(list(GROUPS), environ, together=False))
    return [line for line in acl_cli.lines(rules, passwords=SECRETS) if not line.startswith("user default ")]


@contextmanager
def silent(nodes: Sequence[Node]) -> Iterator[None]:
    """Nothing is refused by any of them in the block."""
    for node in nodes:
        node.client.execute_command("ACL", "LOG", "RESET")
    yield
    found = {node.port: node.client.acl_log() for node in nodes if node.process is not None}
    assert not [log for log in found.values() if log]


def prove(environ: Mapping[str, str]) -> None:
    """The cases of a proof: all pass, whoever the primary is, and all of their keys are in one slot."""
    settings = load(list(GROUPS), environ, together=False)
    store = app.open_store(settings)
    assert [r for r in run_cases(settings, store, list(CHECKED), "t1") if not r.ok] == []
    assert found(store, Names(settings.keys).proofs) == []
    store.close()


def every_service(directory: Path, environ: Mapping[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    """One cycle of each service, and an operator's look, each with its own user."""
    for name in (*SERVICES, "operator", "watch"):
        secret = directory / f"{user_of(name)}.redis-password"
        secret.write_text(PASSWORDS[name])
        secret.chmod(0o600)
        login = {"REDIS_USERNAME": user_of(name), "REDIS_PASSWORD_FILE": str(secret), "LOG_LEVEL": "ERROR"}
        own = {**ENFORCING, **environ, **login, "STATE_DIRECTORY": str(directory / "state")}
        command, code = (["run", name, "--once"], 0) if name in SERVICES else (["status"], 1)  # none of them runs
        assert main(command, {**own, **ALONE}) == code, (name, capsys.readouterr().err)
        if name == "operator":
            prove(own)
    capsys.readouterr()


def test_with_sentinels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Services find the primary, replicas follow it, sentinels promote another: with the rights of the file alone."""
    replica = ["masteruser qa-replica", f"masterauth {SECRETS['qa-replica']}"]
    lines = [*users({"REDIS_SENTINELS": "a:1"}), *replica]
    theirs = [f"sentinel auth-user {NAME} qa-sentinel", f"sentinel auth-pass {NAME} {SECRETS['qa-sentinel']}"]
    with Watched(lines, theirs, down_after_ms=500) as watched, silent(watched.data):
        environ = {"REDIS_SENTINELS": watched.places}
        every_service(tmp_path, environ, capsys)
        old = watched.fail_over()
        assert watched.primary() is not old
        every_service(tmp_path, environ, capsys)


def test_in_a_cluster(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Under a hash tag, by way of a node that does not hold the slot."""
    tagged = {"REDIS_CLUSTER": "1", "QA_HASH_TAG": "quantum"}
    assert len(users(tagged)) == len(USERS) + len(acl_cli.SERVER_USERS)
    with Cluster(users(tagged)) as cluster, silent(cluster.data):
        for node in cluster.data:
            every_service(tmp_path, {**tagged, "REDIS_URL": f"redis://{HOST}:{node.port}"}, capsys)
