"""The async fixture of the plugin, for pytest-asyncio in each of its modes, and for anyio."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import pytest

try:
    from pytest_asyncio import fixture as asyncio_fixture
except ImportError:
    asyncio_fixture = pytest.fixture  # type: ignore[assignment]

if TYPE_CHECKING:
    from codomyrmex.concurrency import Session


@pytest.fixture
def etcd_session(request: pytest.FixtureRequest) -> Session:
    """An open session in the test's namespace and event loop."""
    runner = "anyio" if "anyio_backend" in request.fixturenames else "asyncio"
    session: Session = request.getfixturevalue(f"_{runner}_session")
    return session


@asyncio_fixture
async def _asyncio_session(etcd_namespace: str) -> AsyncIterator[Session]:
    async with _session() as session:
        yield session


@pytest.fixture
async def _anyio_session(etcd_namespace: str) -> AsyncIterator[Session]:
    async with _session() as session:
        yield session


def _session() -> Session:
    from codomyrmex.concurrency import Session

    return Session()
