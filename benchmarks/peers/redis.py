"""``redis-py``'s lock: ``SET NX`` tried again every tenth of a second, released by a script."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from redis.asyncio import Redis


@asynccontextmanager
async def locks(endpoint: str, names: Sequence[str]) -> AsyncIterator[list[Any]]:
    async with Redis.from_url(endpoint, max_connections=len(names) + 1) as client:
        yield [client.lock(name, timeout=60) for name in names]
