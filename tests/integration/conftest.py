"""Fixtures of the integration tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from codomyrmex.concurrency import EmbeddedEtcd
from tests.integration.command_line import Cli


@pytest.fixture
def cli(etcd: EmbeddedEtcd, namespace: str) -> Cli:
    return Cli(etcd.endpoint, namespace)


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as opened:
        yield opened
