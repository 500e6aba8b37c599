"""The fault proxy does what the fault tests rely on, at an exact command."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from quantum_alloc.adapters.embedded import EmbeddedServer
from tests.tools.fault_proxy import FaultProxy


@pytest.fixture
def proxy(one_server: EmbeddedServer, one_client: Any) -> Iterator[FaultProxy]:
    """A proxy in front of an empty server."""
    with FaultProxy(str(one_server.socket)) as found:
        yield found


@pytest.fixture
def through(proxy: FaultProxy) -> Iterator[Any]:
    """A client that goes through the proxy and never tries twice."""
    client: Any = redis.Redis(
        port=proxy.port, protocol=2, decode_responses=True, retry=Retry(NoBackoff(), 0), socket_timeout=0.5
    )
    yield client
    client.close()


def three(client: Any, *, transaction: bool) -> None:
    """Three writes in one batch."""
    pipe = client.pipeline(transaction=transaction)
    for name in "abc":
        pipe.set(name, 1)
    pipe.execute()


def test_transparent(proxy: FaultProxy, through: Any) -> None:
    """Without a fault every command passes, in order, and is counted."""
    three(through, transaction=False)
    assert [c[1] for c in proxy.log] == [b"a", b"b", b"c"]
    assert proxy.commands >= 3
    proxy.reset()
    assert (proxy.log, proxy.commands) == ([], 0)


@pytest.mark.parametrize("k", range(3))
def test_a_cut_forwards_exactly_k(k: int, proxy: FaultProxy, through: Any, one_client: Any) -> None:
    """After k commands of one batch the connection ends; k were executed; new connections fail until heal()."""
    proxy.cut_after(k)
    with pytest.raises(redis.ConnectionError):
        three(through, transaction=False)
    assert sorted(one_client.keys()) == list("abc")[:k]
    with pytest.raises(redis.ConnectionError):
        through.get("a")
    proxy.heal()
    assert through.get("a") == ("1" if k else None)


@pytest.mark.parametrize("k", range(5))
def test_a_cut_inside_a_transaction_executes_nothing(k: int, proxy: FaultProxy, through: Any, one_client: Any) -> None:
    """MULTI, three writes, EXEC: cut before EXEC, nothing stands."""
    proxy.cut_after(k)
    with pytest.raises(redis.ConnectionError):
        three(through, transaction=True)
    assert one_client.keys() == []


def test_a_cut_reply_was_executed(proxy: FaultProxy, through: Any, one_client: Any) -> None:
    """Command k is executed and its reply never comes."""
    proxy.cut_reply_after(2)
    with pytest.raises(redis.ConnectionError):
        three(through, transaction=False)
    assert sorted(one_client.keys()) == ["a", "b"]


def test_one_dropped_reply(proxy: FaultProxy, through: Any, one_client: Any) -> None:
    """One reply is swallowed, the command was executed, and the client times out."""
    proxy.drop_reply(1)
    with pytest.raises(redis.TimeoutError):
        through.set("a", 1)
    assert one_client.get("a") == "1"


def test_swallowing_and_refusing(proxy: FaultProxy, through: Any, one_client: Any) -> None:
    """Half-open: nothing reaches the server; refusing: no connection; heal() ends both."""
    through.ping()
    proxy.swallow()
    with pytest.raises(redis.TimeoutError):
        through.set("a", 1)
    assert one_client.keys() == []
    proxy.refuse()
    with pytest.raises(redis.ConnectionError):
        through.ping()
    proxy.heal()
    assert through.ping()


def test_a_delay(proxy: FaultProxy, through: Any) -> None:
    """A delay longer than the client's patience is a time-out; heal() ends it."""
    through.ping()
    proxy.delay(2.0)
    with pytest.raises(redis.TimeoutError):
        through.get("a")
    proxy.heal()
    assert through.ping()
