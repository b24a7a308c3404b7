"""Looks up names for aiohttp's new connections. aiohttp's own resolver trusts an address for 10 s by default."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from aiohttp.abc import AbstractResolver

from codomyrmex.concurrency.etcd.transports.addresses import Address, Addresses

if TYPE_CHECKING:
    from aiohttp.abc import ResolveResult  # since aiohttp 3.10


class Resolver(AbstractResolver):
    """The addresses of one endpoint, in aiohttp's form."""

    def __init__(self, addresses: Addresses) -> None:
        self._addresses = addresses

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """The addresses of ``host``. Raises ``OSError`` if there are none."""
        try:
            return [_result(host, address) for address in await self._addresses.look_up()]
        except OSError as error:  # aiohttp shows only the text beside an error's number
            raise socket.gaierror(socket.EAI_NONAME, str(error)) from None

    async def close(self) -> None:
        """Do nothing: the thread of a lookup ends by itself."""


def _result(host: str, address: Address) -> ResolveResult:
    numeric, port = socket.getnameinfo(address.where, socket.NI_NUMERICHOST | socket.NI_NUMERICSERV)
    flags = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
    return {"hostname": host, "host": numeric, "port": int(port), "family": address.family, "proto": 0, "flags": flags}
