"""The async fixture of the plugin, for pytest-asyncio in each of its modes, and for anyio."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

try:
    from pytest_asyncio import fixture
except ImportError:
    from pytest import fixture  # type: ignore[no-redef]

if TYPE_CHECKING:
    from codomyrmex.concurrency import Session


@fixture
async def etcd_session(etcd_namespace: str) -> AsyncIterator[Session]:
    """An open session in the test's namespace and event loop."""
    from codomyrmex.concurrency import Session

    async with Session() as session:
        yield session
