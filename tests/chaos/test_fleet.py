"""A fleet is killed, stopped and continued at random, and its etcd restarted; then the checker judges what it did.

make chaos SECONDS=600        CHAOS_SEED=7 make chaos    # the same faults again
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections import Counter

import pytest

from codomyrmex.concurrency import EmbeddedEtcd, Session
from tests.chaos.agent import LIMIT
from tests.chaos.checker import crowds, dead_letter_violations, overlaps, semaphore_violations, violations
from tests.chaos.members import Members, members
from tests.chaos.recorder import Recorder
from tests.helpers import eventually

_TTL = 2
_ROLES = [("lock", "semaphore")] * 4 + [("add",), ("retry",), ("retry", "ahead=3600")]


async def _hurt(fleet: Members, etcd: EmbeddedEtcd, chance: random.Random) -> str:
    """One fault, and what heals it."""
    fault = chance.choice(["kill", "kill", "stop", "stop", "pause", "restart etcd"])
    victim = chance.choice(fleet.living)
    if fault == "kill":
        await fleet.replace(victim)
    elif fault == "restart etcd":
        await asyncio.to_thread(etcd.kill)
        await asyncio.sleep(chance.uniform(0, 1))
        await etcd.start()
    else:
        victim.stop()
        await asyncio.sleep(chance.uniform(0.1, 1) if fault == "pause" else _TTL * 2)
        victim.go_on()
    await asyncio.sleep(chance.uniform(0, 1))
    return fault


@pytest.mark.chaos
async def test_a_fleet_under_random_faults_never_breaks_the_promise(namespace: str) -> None:
    seconds = float(os.environ.get("CHAOS_SECONDS", "30"))
    seed = int(os.environ.get("CHAOS_SEED", random.randrange(2**32)))
    print(f"\nchaos for {seconds:g} s with CHAOS_SEED={seed}")
    chance = random.Random(seed)
    faults: Counter[str] = Counter()
    async with (
        EmbeddedEtcd() as etcd,
        Session(endpoints=etcd.endpoint, namespace="watcher", session_ttl=60) as session,
        members(etcd.endpoint, namespace) as fleet,
    ):
        recorder = Recorder(session, namespace)
        for roles in _ROLES:
            await fleet.start(*roles)
        await asyncio.sleep(2)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            faults[await _hurt(fleet, etcd, chance)] += 1
        healed = time.monotonic()
        for member in fleet.living:
            what = {"lock": "lock", "add": "added", "retry": "started"}[member.roles[0]]
            said = len(member.said)
            await eventually(lambda m=member, n=said, w=what: any(s["what"] == w for s in m.said[n:]), 3 * _TTL + 4)
        print(f"everybody goes on {time.monotonic() - healed:.1f} s after the last fault")
        for member in fleet.living:
            if member.roles[0] != "retry":
                await member.end()
        added = [said["id"] for said in fleet.said("added")]
        started = [(said["id"], said["token"]) for said in fleet.said("started")]
        await eventually(lambda: not dead_letter_violations(recorder.dead_letters, added, ()), 30)
        await fleet.end()
        await asyncio.sleep(2 * _TTL + 2)  # the leases of the killed run out
        added = [said["id"] for said in fleet.said("added")]
        started = [(said["id"], said["token"]) for said in fleet.said("started")]
    counts = Counter(change.kind for change in recorder.lock)
    permits = Counter(change.kind for change in recorder.semaphore)
    print(f"under {faults.total()} faults: {dict(faults)}")
    print(f"{counts['wrote']} writes under the lock, {permits['wrote']} under the semaphore")
    print(f"{len(added)} dead letters, {len(started)} attempts")
    assert min(counts["wrote"], permits["wrote"]) > 2 * seconds and len(added) > seconds and not recorder.gaps
    assert violations(recorder.lock) == []
    assert semaphore_violations(recorder.semaphore) == []
    assert dead_letter_violations(recorder.dead_letters, added, started) == []
    assert overlaps(fleet.holds("lock")) == []
    assert crowds(fleet.holds("semaphore"), LIMIT) == []
