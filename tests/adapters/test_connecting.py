"""What a trouble with a server is called."""

from __future__ import annotations

import pytest

from quantum_alloc.adapters.embedded import EmbeddedServer
from quantum_alloc.adapters.store import Store, StoreError


def test_a_password_that_nobody_asked_for_is_a_fault_of_the_configuration(any_server: EmbeddedServer) -> None:
    """The server has no password set up: it is told as that, and not as a matter of TLS."""
    store = Store(any_server.url, "pa55-canary")
    with pytest.raises(StoreError, match="has no password set up for the default user") as told:
        store.read([("PING",)])
    store.close()
    assert (told.value.is_configuration, told.value.code) == (True, "WRONGPASS")
    assert "TLS" not in str(told.value)
    assert "canary" not in str(told.value)
