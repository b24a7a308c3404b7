"""The same behind a link of 5 ms each way, where round trips count for more than computing."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

from benchmarks.sample import Sample
from codomyrmex.concurrency.testing import TcpProxy

_ONE_WAY = 0.005  # seconds


async def far(endpoint: str, seconds: float, run: Callable[[str, float], Awaitable[Sample]]) -> Sample:
    address = urlsplit(endpoint)
    assert address.hostname and address.port
    async with TcpProxy(address.hostname, address.port) as proxy:
        proxy.delay(_ONE_WAY)
        return await run(proxy.endpoint, seconds)
