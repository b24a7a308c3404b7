"""``aetcd``'s lock: a compare-and-set, then a watch of the key by all who wait."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import aetcd


@asynccontextmanager
async def locks(endpoint: str, names: Sequence[str]) -> AsyncIterator[list[Any]]:
    address = urlsplit(endpoint)
    async with aetcd.Client(address.hostname, address.port) as client:
        yield [client.lock(name.encode(), ttl=60) for name in names]
