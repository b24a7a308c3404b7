"""The faults of a random run: to etcd, to the network before it, to its disk space, to TLS files, to the processes."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

from codomyrmex.concurrency.testing import TcpProxy
from tests.chaos.documents.gateway import coded
from tests.chaos.documents.history import BALLAST, Follower
from tests.chaos.documents.servers import Server, Servers
from tests.chaos.documents.tls import renew
from tests.chaos.documents.workload import NAMESPACE, REQUEST, TTL

if TYPE_CHECKING:
    from tests.chaos.documents.fleet import Fleet

QUOTA = 192 << 20
GARBAGE = (
    b"",
    b"\xff",
    b"[" * 50_000,
    b"9" * 5000,
    b'{"since": Infinity, "pid": 1, "host": "h", "task": "t"}',
    b"null",
)


class Faults:
    """The faults of a run, one at a time, each with its end."""

    def __init__(
        self, servers: Servers, follower: Follower, fleet: Fleet, near: list[TcpProxy], far: list[TcpProxy], seed: int
    ) -> None:
        self.servers, self.follower, self.fleet = servers, follower, fleet
        self.near, self.far = near, far  # before each member: of most processes, of those with pools
        self.tls: Path | None = None
        self.chance = random.Random(seed)
        self.done: Counter[str] = Counter()

    async def one(self) -> None:
        """One fault, to its end; the next may come when the fleet had a moment of peace."""
        kinds: list[Callable[[], Awaitable[None]]] = [
            self.still,
            self.server_killed,
            self.cut,
            self.answers_lost,
            self.pools_cut_off,
            self.pools_cut_off,
            self.full,
            self.process_killed,
            self.process_killed,
            self.process_stopped,
            self.lagging,
            self.lagging,
            self.garbage,
            *([self.files_replaced] * 2 if self.tls else []),
        ]
        fault = self.chance.choice(kinds)
        name = getattr(fault, "__name__", "fault").replace("_", " ")
        self.fleet.journal.say("fault", what=name)
        self.done[name] += 1
        await fault()
        self.fleet.journal.say("fault over", what=name)

    def _member(self) -> Server:
        """The leader as often as not, for it is who matters."""
        leader = self.servers.leader() if len(self.servers.members) > 1 and self.chance.random() < 0.6 else None
        return leader or self.chance.choice(self.servers.members)

    async def still(self) -> None:
        """Etcd stands still, at times for longer than twice the time limit of a call."""
        member = await asyncio.to_thread(self._member)
        member.send(signal.SIGSTOP)
        await asyncio.sleep(self.chance.choice((0.5, 2.2 * REQUEST, 2.2 * REQUEST, 1.2 * TTL)))
        member.send(signal.SIGCONT)

    async def server_killed(self) -> None:
        member = await asyncio.to_thread(self._member)
        await asyncio.to_thread(member.kill)
        await asyncio.sleep(self.chance.uniform(0.1, 4))
        self.servers.start(member)
        await asyncio.to_thread(self.servers.ready)

    async def cut(self) -> None:
        """Connections break, and new ones are refused for a moment."""
        for proxy in self.near:
            proxy.refuse()
            proxy.cut()
        await asyncio.sleep(self.chance.choice((0.0, 0.5, 2.5)))
        for proxy in self.near:
            proxy.resume()

    async def answers_lost(self) -> None:
        """The answers to some writes are lost, each with its connection."""
        for _ in range(self.chance.randint(1, 5)):
            match = self.chance.choice((b"/entry/", b"/claim/", b"/lock/", b"/semaphore/"))
            for proxy in (*self.near, *self.far):
                proxy.drop_next_answer(b"/v1" + match if match in (b"/lock/", b"/semaphore/") else match)
            await asyncio.sleep(self.chance.uniform(0.2, 1))

    async def pools_cut_off(self) -> None:
        """Processes with pools lose etcd, at times with answers under way, for long enough to spill."""
        if self.chance.random() < 0.5:
            for proxy in self.far:
                proxy.blackhole(up=False, down=True)
            await asyncio.sleep(self.chance.uniform(0.1, 0.5))
        for proxy in self.far:
            proxy.refuse()
            proxy.cut()
        await asyncio.sleep(self.chance.choice((1.0, 5.0, 10.0)))
        for proxy in self.far:
            proxy.resume()

    async def full(self) -> None:
        """The database is full for some seconds, then it is compacted, defragmented and disarmed."""
        await asyncio.to_thread(self._fill)
        await asyncio.sleep(self.chance.uniform(1, 4))
        await asyncio.to_thread(self.free)

    def _fill(self) -> None:
        with contextlib.suppress(OSError):
            gateway = self.servers.gateway()
            for _ in range(QUOTA // 1_000_000 + 20):
                gateway.put(BALLAST, b"x" * 1_000_000)

    def free(self) -> None:
        """Give the space back, once the history was read up to what is compacted, on every member."""
        gateway = self.servers.gateway(timeout=30)
        self.follower.caught_up(gateway)
        gateway.call("kv/compaction", revision=str(self.follower.upto), physical=True)
        for member in self.servers.members:
            self.servers.gateway(member, 30).call("maintenance/defragment")
        for alarm in gateway.call("maintenance/alarm", action="GET").get("alarms", ()):
            gateway.call("maintenance/alarm", action="DEACTIVATE", **alarm)

    async def process_killed(self) -> None:
        if (name := self.fleet.any(self.chance)) is not None:
            await self.fleet.kill(name)

    async def process_stopped(self) -> None:
        """A process stands still, past its lease or while many revisions pass."""
        if (name := self.fleet.any(self.chance)) is not None:
            self.fleet.stop(name)
            await asyncio.sleep(self.chance.choice((1.5, 3.0, 2.5 * TTL)))
            self.fleet.go_on(name)

    async def lagging(self) -> None:
        """A process stands still, or connections are broken, while others add thousands of entries."""
        for _ in range(2):
            self.fleet.start("burst")
        await asyncio.sleep(2)  # until they have begun
        name = self.fleet.any(self.chance, "serve", "follow")
        if name is not None and self.chance.random() < 0.4:
            self.fleet.stop(name)
            await asyncio.sleep(0.45 * TTL)
            self.fleet.go_on(name)
            return
        for proxy in self.near:
            proxy.refuse()
            proxy.cut()
        await asyncio.sleep(0.32 * TTL)
        for proxy in self.near:
            proxy.resume()

    async def garbage(self) -> None:
        """Keys and values that nobody can read come under the prefix, and go."""
        await asyncio.to_thread(self._garbage)

    def _garbage(self) -> None:
        gateway, root = self.servers.gateway(), f"/{NAMESPACE}/v1"
        places = [f"{kind}/x{n}" for n in range(3) for kind in ("lock/lock-0", "semaphore/gate", "dead/jobs/entry")]
        places += ["semaphore/gate/limit-" + "9" * 5000, "lock/lock-1/x." + "9" * 5000, "dead/jobs/entry/" + "9" * 5000]
        with contextlib.suppress(OSError):
            for place in places:
                gateway.put(f"{root}/{place}", self.chance.choice(GARBAGE))
        with contextlib.suppress(OSError):
            for place in places:
                gateway.call("kv/deleterange", key=coded(f"{root}/{place}"))

    async def files_replaced(self) -> None:
        """TLS files are replaced, and then calls fail."""
        assert self.tls
        await asyncio.to_thread(renew, self.tls)
        await self.cut()
