"""A real etcd for the whole run, a namespace of its own for each test, and a session in it: those of the plugin."""

from __future__ import annotations

import gc
import os
from collections.abc import AsyncIterator, Iterator

import pytest
from hypothesis import settings

from codomyrmex.concurrency import EmbeddedEtcd, Session, skipped_keys
from codomyrmex.concurrency.etcd.transports import factory

settings.register_profile("untimed", deadline=None)  # no test is timed
settings.load_profile("untimed")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--etcd", choices=("testcontainers",), help="run etcd in a container")
    parser.addoption(
        "--transport", default="native", choices=("native", "grpc", "gateway"), help="how to speak to etcd"
    )


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
    """The plugin's etcd, or one in a container."""
    if request.config.getoption("--etcd") is None:
        yield request.getfixturevalue("etcd")
        return
    from tests import containers

    if why := containers.missing():
        pytest.fail(f"--etcd=testcontainers: {why}")
    with containers.served(request.config.getoption("--etcd-binary")) as address:
        yield EmbeddedEtcd(address=address).start_sync()


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
def namespace(etcd_namespace: str) -> str:
    return etcd_namespace


@pytest.fixture
def session(etcd_session: Session) -> Session:
    return etcd_session


@pytest.fixture
async def other(etcd_namespace: str) -> AsyncIterator[Session]:
    """A second session of the same namespace: another member of the fleet."""
    async with Session() as opened:
        yield opened
