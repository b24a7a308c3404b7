"""Looks up names for aiohttp's new connections. aiohttp's own resolver trusts an address for 10 s by default."""

from __future__ import annotations

import asyncio
import socket
import time
from typing import TYPE_CHECKING

from aiohttp.abc import AbstractResolver
from aiohttp.resolver import ThreadedResolver

if TYPE_CHECKING:
    from aiohttp.abc import ResolveResult  # since aiohttp 3.10

_MEMORY = 1.0  # seconds for which an answer is used again; a replaced member has a new address
_PATIENCE = 0.3  # seconds until the last answer is used because DNS gives no new one


class Resolver(AbstractResolver):
    """Looks up one host. DNS that does not answer costs an earlier answer nothing; DNS that denies the name ends it."""

    def __init__(self) -> None:
        self._dns = ThreadedResolver()
        self._known: list[ResolveResult] = []
        self._answered_at = 0.0
        self._asking: asyncio.Task[list[ResolveResult]] | None = None  # one at a time, for each takes up a thread

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """The addresses of ``host``. Raises ``OSError`` if there are none."""
        if self._known and time.monotonic() - self._answered_at < _MEMORY:
            return self._known
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask(host, port, family))
            self._asking.add_done_callback(_retrieve)
        await asyncio.wait((self._asking,), timeout=_PATIENCE if self._known else None)
        if not self._asking.done():
            return self._known
        try:
            return self._asking.result()
        except socket.gaierror as error:
            if self._known and error.errno == socket.EAI_AGAIN:
                return self._known
            raise

    async def _ask(self, host: str, port: int, family: socket.AddressFamily) -> list[ResolveResult]:
        found = await self._dns.resolve(host, port, family)
        self._known, self._answered_at = found, time.monotonic()
        return found

    async def close(self) -> None:
        """Ask no more."""
        if self._asking:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)
        await self._dns.close()


def _retrieve(asking: asyncio.Task[list[ResolveResult]]) -> None:
    """Take note of an error, which asyncio would log if no connection waits for the answer any more."""
    if not asking.cancelled():
        asking.exception()
