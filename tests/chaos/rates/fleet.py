"""Drives a run: starts the provider and the clients, makes the faults, and gathers what all of them say."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path

from tests.chaos.documents.history import Event, Followers
from tests.chaos.documents.journal import Journal, read
from tests.chaos.documents.servers import Servers, die_with_parent
from tests.chaos.rates.client import Demand
from tests.chaos.rates.run import Limits, Run
from tests.chaos.reservations.drive import begin
from tests.helpers import eventually

BEGINS_WITHIN = 60.0  # seconds in which all clients must have begun
ENDS_WITHIN = 30.0
EXPIRES_LATE = (
    12.0  # seconds after a period in which etcd must have ended every lease: a slice's life, and etcd's delay
)


class Fleet:
    """The provider and the clients of one run."""

    def __init__(self, cluster: Servers, folder: Path, limits: Limits, seed: int = 0) -> None:
        self.cluster, self.folder, self.limits = cluster, folder, limits
        self.chance = random.Random(seed)
        self.journal = Journal(folder, "driver")
        self.socket = folder / "provider"
        self.running: dict[str, tuple[Demand, subprocess.Popen[bytes]]] = {}
        self.halted: set[str] = set()
        self._numbers = itertools.count(1)
        self._provider: subprocess.Popen[bytes] | None = None

    async def serve(self) -> None:
        """Start the provider, and wait until it listens."""
        command = [sys.executable, "-m", "tests.chaos.rates.provider", f"--socket={self.socket}"]
        command += [f"--folder={self.folder}", f"--limits={json.dumps(self.limits)}"]
        self._provider = subprocess.Popen(command, preexec_fn=die_with_parent)
        await eventually(self.socket.exists, BEGINS_WITHIN)

    def start(self, demand: Demand) -> str:
        name = f"client{next(self._numbers)}"
        command = [sys.executable, "-m", "tests.chaos.rates.client", f"--name={name}", f"--folder={self.folder}"]
        command += [f"--endpoints={self.cluster.endpoints}", f"--socket={self.socket}"]
        command += [f"--limits={json.dumps(self.limits)}", f"--demand={demand.text()}"]
        command += [f"--seed={self.chance.randrange(1 << 30)}"]
        with open(self.folder / f"{name}.stderr", "wb") as told:
            self.running[name] = demand, subprocess.Popen(command, stderr=told, preexec_fn=begin)
        return name

    async def begun(self) -> None:
        """Wait until each client has a session."""
        for name in list(self.running):
            await eventually(lambda name=name: "session" in self._said(name), BEGINS_WITHIN)

    def _said(self, name: str) -> str:
        journal = self.folder / f"{name}.jsonl"
        return journal.read_text() if journal.exists() else ""

    def any(self) -> str | None:
        """A client that runs and is not stopped."""
        names = sorted(set(self.running) - self.halted)
        return self.chance.choice(names) if names else None

    async def kill(self, name: str) -> None:
        """End a client by SIGKILL, and start another of its demand."""
        demand, process = self.running.pop(name)
        self.journal.say("killed", of=name)
        process.kill()
        await asyncio.to_thread(process.wait)
        self._exit(name, process, killed=True)
        self.start(demand)

    async def stop(self, name: str, seconds: float) -> None:
        """Let a client stand still."""
        self.halted.add(name)
        self.journal.say("stopped", of=name)
        self.running[name][1].send_signal(signal.SIGSTOP)
        await asyncio.sleep(seconds)
        self.running[name][1].send_signal(signal.SIGCONT)
        self.halted.discard(name)

    async def kill_leader(self, away: float = 3.0) -> None:
        if leader := await asyncio.to_thread(self.cluster.leader):
            self.journal.say("leader killed", of=leader.name)
            await asyncio.to_thread(leader.kill)
            await asyncio.sleep(away)
            self.cluster.start(leader)
            await asyncio.to_thread(self.cluster.ready)

    async def stop_member(self, seconds: float) -> None:
        """Let the first member of etcd stand still."""
        member = self.cluster.members[0]
        self.journal.say("member stopped", of=member.name)
        member.send(signal.SIGSTOP)
        await asyncio.sleep(seconds)
        member.send(signal.SIGCONT)

    async def end(self) -> None:
        """All end in order."""
        for _, process in self.running.values():
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGCONT)
                process.send_signal(signal.SIGTERM)
        for name, (_, process) in self.running.items():
            try:
                await asyncio.to_thread(process.wait, ENDS_WITHIN)
            except subprocess.TimeoutExpired:
                process.kill()
                await asyncio.to_thread(process.wait)
            self._exit(name, process, killed=False)
        self.running.clear()

    def _exit(self, name: str, process: subprocess.Popen[bytes], killed: bool) -> None:
        told = (self.folder / f"{name}.stderr").read_text(errors="replace")[-4000:]
        self.journal.say("exit", of=name, code=process.returncode, killed=killed, stderr=told)

    def close(self) -> None:
        processes = [process for _, process in self.running.values()]
        for process in [*processes, *([self._provider] if self._provider else [])]:
            process.kill()
            process.wait()
        self.journal.close()


Work = Callable[[Fleet, float], Awaitable[None]]


async def peace(fleet: Fleet, until: float) -> None:
    """No fault."""
    await asyncio.sleep(max(0.0, until - time.monotonic()))


async def run(
    cluster: Servers,
    folder: Path,
    limits: Limits,
    demands: Sequence[Demand],
    seconds: float,
    work: Work = peace,
    seed: int = 0,
    expire: bool = True,
) -> Run:
    """One run: so many seconds of work from when all have begun. ``expire``: wait until etcd is empty again."""
    async with _gathering(cluster) as events, _fleet(cluster, folder, limits, seed) as fleet:
        await fleet.serve()
        for demand in demands:
            fleet.start(demand)
        await fleet.begun()
        began = time.monotonic()
        await work(fleet, began + seconds)
        ended = time.monotonic()
        await fleet.end()
        leases = await _leases_left(cluster, limits) if expire else None
        return Run(limits, read(folder), await events(), began, ended, work is peace, leases=leases)


@contextlib.asynccontextmanager
async def _gathering(cluster: Servers) -> AsyncIterator[Callable[[], Awaitable[list[Event]]]]:
    followers = Followers([member.endpoint for member in cluster.members])
    followers.start()
    try:
        yield lambda: asyncio.to_thread(followers.caught_up, cluster.gateway())
    finally:
        await asyncio.to_thread(followers.end)


@contextlib.asynccontextmanager
async def _fleet(cluster: Servers, folder: Path, limits: Limits, seed: int) -> AsyncIterator[Fleet]:
    fleet = Fleet(cluster, folder, limits, seed)
    try:
        yield fleet
    finally:
        fleet.close()


async def _leases_left(cluster: Servers, limits: Limits) -> list[int]:
    """The leases and the keys' leases that are still there when all must have expired."""
    longest = max(per for _, per in limits.values())
    elections = longest if len(cluster.members) > 1 else 0.0  # a new leader gives every lease its whole time again
    deadline = time.monotonic() + longest + elections + EXPIRES_LATE
    while left := await asyncio.to_thread(_leases, cluster):
        if time.monotonic() > deadline:
            break
        await asyncio.sleep(0.5)
    return left


def _leases(cluster: Servers) -> list[int]:
    return [int(one["ID"]) for one in cluster.gateway().call("lease/leases").get("leases", ())]
