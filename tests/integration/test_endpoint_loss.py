"""Members that change their addresses, and one that is lost together with DNS: holders keep their locks.

Every transport of the settings is tried. Holders are processes that ask a DNS server of our own.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import get_args
from urllib.parse import urlsplit

import pytest

from codomyrmex.concurrency.cli.process import dying_with_us
from codomyrmex.concurrency.settings import EtcdSettings
from codomyrmex.concurrency.testing import TcpProxy
from tests import dns
from tests.cluster import cluster
from tests.helpers import eventually

_TRANSPORTS = get_args(EtcdSettings.model_fields["transport"].annotation)
_TTL = 6

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(bool(why := dns.missing()), reason=str(why)),
    pytest.mark.parametrize("transport", _TRANSPORTS),
]


class Members:
    """Three members, each behind a name; a proxy listens at the address that the name has at the moment."""

    def __init__(self, server: dns.DnsServer, targets: list[tuple[str, int]]) -> None:
        self.server = server
        self.endpoints: list[str] = []
        self.proxies: list[TcpProxy] = []
        self._targets = targets
        self._moves = 0

    async def start(self) -> None:
        for number, target in enumerate(self._targets):
            with socket.create_server((self._address(number, 1), 0)) as free:
                port = free.getsockname()[1]
            self.endpoints.append(f"http://m{number}.members.test:{port}")
            self.proxies.append(await TcpProxy(*target).start(self._address(number, 1), port))
            self.server.names[f"m{number}.members.test"] = self._address(number, 1)

    async def move(self, number: int) -> None:
        """Take a member away for a moment, and bring it back at another address."""
        await self.proxies[number].stop()
        await asyncio.sleep(0.5)
        self._moves += 1
        address = self._address(number, 1 + self._moves)
        port = urlsplit(self.endpoints[number]).port or 0
        self.proxies[number] = await TcpProxy(*self._targets[number]).start(address, port)
        self.server.names[f"m{number}.members.test"] = address

    def endpoints_from(self, first: int) -> str:
        return ",".join(self.endpoints[first:] + self.endpoints[:first])

    async def stop(self) -> None:
        self.server.stop()
        for proxy in self.proxies:
            await proxy.stop()

    @staticmethod
    def _address(number: int, version: int) -> str:
        return f"127.53.78.{10 * version + number}"


class Holder:
    """A process of ``holder.py``, with the times of its writes."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    @property
    def lost(self) -> bool:
        return "lost" in self.lines

    @property
    def longest_gap(self) -> float:
        """The longest time between two writes, in seconds; it is not known what the end of a lost one is."""
        times = [float(line) for line in self.lines if line[0].isdigit()]
        return max(later - earlier for earlier, later in pairwise(times))

    @asynccontextmanager
    async def running(
        self, folder: Path, name: str, endpoints: str, transport: str, namespace: str
    ) -> AsyncIterator[Holder]:
        settings = {"ENDPOINTS": endpoints, "TRANSPORT": transport, "NAMESPACE": namespace, "SESSION_TTL": str(_TTL)}
        settings["REQUEST_TIMEOUT"] = "3"
        process = await asyncio.create_subprocess_exec(
            *dns.asking_it(folder),
            *dying_with_us((sys.executable, "-m", "tests.integration.holder", name)),
            env={**os.environ, **{f"CODOMYRMEX_ETCD_{key}": value for key, value in settings.items()}},
            stdout=asyncio.subprocess.PIPE,
        )
        reading = asyncio.create_task(self._read(process))
        try:
            yield self
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()
            await reading

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout
        async for line in process.stdout:
            self.lines.append(line.decode().strip())


@asynccontextmanager
async def holding(
    tmp_path: Path, transport: str, namespace: str, request: pytest.FixtureRequest
) -> AsyncIterator[tuple[Members, list[Holder]]]:
    """Three holders, each of which begins at another member."""
    async with AsyncExitStack() as stack:
        three = await stack.enter_async_context(cluster(request.config.getoption("--etcd-binary")))
        targets = [(str(urlsplit(one.endpoint).hostname), urlsplit(one.endpoint).port or 0) for one in three.members]
        members = Members(await dns.DnsServer().start(), targets)
        stack.push_async_callback(members.stop)
        await members.start()
        holders = []
        for number in range(3):
            running = Holder().running(tmp_path, f"lock{number}", members.endpoints_from(number), transport, namespace)
            holders.append(await stack.enter_async_context(running))
        await eventually(lambda: all(len(holder.lines) > 20 for holder in holders), 20)
        yield members, holders


async def test_members_that_come_back_at_new_addresses_cost_no_lock(
    tmp_path: Path, namespace: str, request: pytest.FixtureRequest, transport: str
) -> None:
    async with holding(tmp_path, transport, namespace, request) as (members, holders):
        for number in (0, 1, 2, 0, 1, 2):  # in the second round, no address is left that a holder learnt at first
            await members.move(number)
            await asyncio.sleep(2)
        assert not any(holder.lost for holder in holders)
        assert max(holder.longest_gap for holder in holders) < 2.5


async def test_a_member_that_falls_silent_with_dns_costs_its_holders_one_time_out_and_no_lock(
    tmp_path: Path, namespace: str, request: pytest.FixtureRequest, transport: str
) -> None:
    async with holding(tmp_path, transport, namespace, request) as (members, holders):
        members.proxies[0].blackhole()
        members.server.silent = True
        await asyncio.sleep(_TTL + 2)  # longer than a lease without keepalives
        assert not any(holder.lost for holder in holders)
        assert holders[0].longest_gap < 2.5  # half of the request's 3 s, and the next write
        assert max(holder.longest_gap for holder in holders[1:]) < 1
