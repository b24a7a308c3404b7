"""A cluster of three real etcd members on loopback, each of which can be killed, stopped and started again."""

from __future__ import annotations

import asyncio
import signal
import socket
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from codomyrmex.concurrency import EtcdSettings
from codomyrmex.concurrency.cli.process import _dying_with_us
from codomyrmex.concurrency.etcd.embedded import find_etcd
from codomyrmex.concurrency.inspect_cluster import cluster_status
from tests.helpers import eventually


class Member:
    def __init__(self, name: str, folder: Path, client: int, peer: int, binary: str | None) -> None:
        self.name = name
        self.endpoint = f"http://127.0.0.1:{client}"
        self.peer = f"http://127.0.0.1:{peer}"
        self._folder = folder
        self._binary = binary or str(find_etcd())
        self._process: asyncio.subprocess.Process | None = None

    async def start(self, members: list[Member]) -> None:
        command = (
            self._binary,
            f"--name={self.name}",
            f"--data-dir={self._folder / self.name}",
            f"--listen-client-urls={self.endpoint}",
            f"--advertise-client-urls={self.endpoint}",
            f"--listen-peer-urls={self.peer}",
            f"--initial-advertise-peer-urls={self.peer}",
            "--initial-cluster=" + ",".join(f"{member.name}={member.peer}" for member in members),
            "--heartbeat-interval=50",
            "--election-timeout=500",
            "--snapshot-count=100",
        )
        with open(self._folder / f"{self.name}.log", "ab") as log:
            self._process = await asyncio.create_subprocess_exec(*_dying_with_us(command), stdout=log, stderr=log)

    def send(self, number: signal.Signals) -> None:
        assert self._process
        self._process.send_signal(number)

    async def kill(self) -> None:
        if self._process and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()


class Cluster:
    def __init__(self, members: list[Member]) -> None:
        self.members = members

    @property
    def endpoints(self) -> str:
        return ",".join(member.endpoint for member in self.members)

    async def restart(self, member: Member) -> None:
        await member.kill()
        await member.start(self.members)

    async def leader(self) -> Member:
        async def found() -> Member | None:
            settings = EtcdSettings(endpoints=self.endpoints, dial_timeout=1.0, request_timeout=1.0)
            try:
                status = await cluster_status(settings)
            except Exception:
                return None
            leaders = [member.endpoint for member in status.members if member.leader]
            return next((member for member in self.members if leaders == [member.endpoint]), None)

        leader: Member = await eventually(found, 30)
        return leader


@asynccontextmanager
async def cluster(binary: str | None = None) -> AsyncIterator[Cluster]:
    with tempfile.TemporaryDirectory() as folder:
        ports = _free_ports(6)
        members = [Member(f"m{n}", Path(folder), ports[n], ports[3 + n], binary) for n in range(3)]
        try:
            for member in members:
                await member.start(members)
            started = Cluster(members)
            await started.leader()
            yield started
        finally:
            await asyncio.gather(*(member.kill() for member in members))


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports
