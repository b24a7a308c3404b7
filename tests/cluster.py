"""Three real etcd members, on loopback or on hosts of their own; each can be killed, stopped and started again."""

from __future__ import annotations

import asyncio
import shutil
import signal
import socket
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

from codomyrmex.concurrency import EtcdSettings
from codomyrmex.concurrency.cli.process import dying_with_us
from codomyrmex.concurrency.etcd.embedded import find_etcd
from codomyrmex.concurrency.health import cluster_status
from codomyrmex.concurrency.testing import TcpProxy
from tests.helpers import eventually
from tests.network import Host


class Member:
    def __init__(
        self, name: str, folder: Path, client: int, peer: int, binary: str | None, host: Host | None = None
    ) -> None:
        self.name = name
        self._state = "new"
        address = host.address if host else "127.0.0.1"
        self.endpoint = f"http://{address}:{client}"
        self._listens = f"http://{address}:{peer}"
        self.peer = self._listens  # what the others are told; may be a proxy's
        self._prefix = host.prefix if host else ()
        self._folder = folder
        self._binary = binary or str(find_etcd())
        self._process: asyncio.subprocess.Process | None = None

    async def start(self, members: list[Member]) -> None:
        command = (
            *self._prefix,
            self._binary,
            f"--name={self.name}",
            f"--data-dir={self.data}",
            f"--listen-client-urls={self.endpoint}",
            f"--advertise-client-urls={self.endpoint}",
            f"--listen-peer-urls={self._listens}",
            f"--initial-advertise-peer-urls={self.peer}",
            "--initial-cluster=" + ",".join(f"{member.name}={member.peer}" for member in members),
            f"--initial-cluster-state={self._state}",
            "--heartbeat-interval=50",
            "--election-timeout=500",
            "--snapshot-count=100",
        )
        with open(self._folder / f"{self.name}.log", "ab") as log:
            self._process = await asyncio.create_subprocess_exec(*dying_with_us(command), stdout=log, stderr=log)

    @property
    def data(self) -> Path:
        return self._folder / self.name

    @property
    def pid(self) -> int:
        assert self._process
        return self._process.pid

    def become_new(self) -> None:
        """Forget everything, to join as a member that did not exist before."""
        shutil.rmtree(self.data)
        self._state = "existing"

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
        return self.endpoints_from(self.members[0])

    def endpoints_from(self, first: Member) -> str:
        """All endpoints, with that of ``first`` ahead; clients begin there after ``begin_at_the_first``."""
        others = [member for member in self.members if member is not first]
        return ",".join(member.endpoint for member in (first, *others))

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
async def cluster(
    binary: str | None = None, hosts: Sequence[Host] = (), proxies: Sequence[TcpProxy] = ()
) -> AsyncIterator[Cluster]:
    """``hosts``: where each is to run. ``proxies``: what stands before each for the other members."""
    with tempfile.TemporaryDirectory() as folder:
        ports = [2379] * 3 + [2380] * 3 if hosts else _free_ports(6)
        members = [
            Member(f"m{n}", Path(folder), ports[n], ports[3 + n], binary, hosts[n] if hosts else None) for n in range(3)
        ]
        for member, proxy in zip(members, proxies, strict=False):
            address = urlsplit(member.peer)
            proxy.target = str(address.hostname), int(address.port or 0)
            member.peer = proxy.endpoint
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
