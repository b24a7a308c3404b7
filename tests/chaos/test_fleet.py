"""A fleet is killed, stopped and continued at random, and its etcd restarted; then the checker judges what it did.

make chaos SECONDS=600        CHAOS_SEED=7 make chaos    # the same faults again
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
import time

import pytest

from codomyrmex.concurrency import EmbeddedEtcd, Session
from codomyrmex.concurrency.etcd.transport import WatchRequest
from codomyrmex.concurrency.etcd.watch import Changed, Notice, Started
from codomyrmex.concurrency.keys import prefix_end
from tests.chaos.checker import Change, Hold, overlaps, violations

_MEMBERS = 6
_TTL = 2


class _Member:
    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.holds: list[Hold] = []
        self.was_stopped = False
        self.reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stdout
        async for line in self.process.stdout:
            if line.endswith(b"\n"):
                self.holds.append(Hold(**json.loads(line)))

    async def end(self) -> None:
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()
        await self.reading


class _Recorder:
    """Everything that happens in the namespace, in etcd's order."""

    def __init__(self, session: Session, namespace: str) -> None:
        self.history: list[Change] = []
        self.gaps = 0
        self._layout = session.layout
        self._register = f"/{namespace}/register".encode()
        start = f"/{namespace}/".encode()
        session.hub.subscribe(WatchRequest(start, prefix_end(start)), self._notice)

    def _notice(self, notice: Notice) -> None:
        if isinstance(notice, Started):
            self.gaps += notice.gap
        elif isinstance(notice, Changed):
            for event in notice.events:
                kv = event.kv
                if kv.key == self._register:
                    self.history.append(Change(kv.mod_revision, "wrote", int(kv.value)))
                elif self._layout.name_of(kv.key):
                    kind = "left" if event.deleted else "joined"
                    self.history.append(Change(kv.mod_revision, kind, kv.create_revision, kv.key))


class _Chaos:
    def __init__(self, etcd: EmbeddedEtcd, namespace: str, seed: int) -> None:
        self._etcd = etcd
        self._namespace = namespace
        self._random = random.Random(seed)
        self.all: list[_Member] = []
        self.living: list[_Member] = []

    async def start_one(self) -> None:
        command = (sys.executable, "-m", "tests.chaos.agent", self._etcd.endpoint, self._namespace)
        member = _Member(await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE))
        self.all.append(member)
        self.living.append(member)

    async def hurt(self) -> str:
        """One fault, and what heals it."""
        fault = self._random.choice(["kill", "kill", "stop", "stop", "pause", "restart etcd"])
        victim = self._random.choice(self.living)
        if fault == "kill":
            self.living.remove(victim)
            await victim.end()
            await self.start_one()
        elif fault == "restart etcd":
            await asyncio.to_thread(self._etcd.kill)
            await asyncio.sleep(self._random.uniform(0, 1))
            await self._etcd.start()
        else:
            victim.was_stopped = True
            victim.process.send_signal(signal.SIGSTOP)
            await asyncio.sleep(self._random.uniform(0.1, 1) if fault == "pause" else _TTL * 2)
            victim.process.send_signal(signal.SIGCONT)
        await asyncio.sleep(self._random.uniform(0, 1))
        return fault


@pytest.mark.chaos
async def test_a_fleet_under_random_faults_never_breaks_the_promise(namespace: str) -> None:
    seconds = float(os.environ.get("CHAOS_SECONDS", "30"))
    seed = int(os.environ.get("CHAOS_SEED", random.randrange(2**32)))
    print(f"\nchaos for {seconds:g} s with CHAOS_SEED={seed}")
    faults: dict[str, int] = {}
    async with EmbeddedEtcd() as etcd, Session(endpoints=etcd.endpoint, namespace="watcher", session_ttl=60) as session:
        session.layout = type(session.layout)(namespace)
        recorder = _Recorder(session, namespace)
        chaos = _Chaos(etcd, namespace, seed)
        for _ in range(_MEMBERS):
            await chaos.start_one()
        try:
            await asyncio.sleep(2)
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                fault = await chaos.hurt()
                faults[fault] = faults.get(fault, 0) + 1
            healed = time.monotonic()
            await asyncio.sleep(3 * _TTL + 2)
            progress = [member for member in chaos.living if any(hold.since > healed for hold in member.holds)]
            assert len(progress) == _MEMBERS, "after healing, somebody makes no progress"
        finally:
            await asyncio.gather(*(member.end() for member in chaos.all))
        await asyncio.sleep(2 * _TTL + 2)  # the leases of the killed run out
    writes = sum(change.kind == "wrote" for change in recorder.history)
    print(f"{writes} fenced writes under {sum(faults.values())} faults: {faults}")
    assert writes > 20 * seconds / 10 and not recorder.gaps
    assert violations(recorder.history) == []
    # A stopped holder believes in its hold until it wakes; fencing stands in for it there.
    assert overlaps(hold for member in chaos.all if not member.was_stopped for hold in member.holds) == []
