"""A fleet and its etcd, one member or three, are killed, stopped and continued at random; then the checker judges.

make chaos SECONDS=600        CHAOS_SEED=7 make chaos    # the same faults again
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial

import pytest

from codomyrmex.concurrency import EmbeddedEtcd, LockManager, Session
from codomyrmex.concurrency.health import renews_wrongly
from codomyrmex.concurrency.session import core_of
from tests.chaos.agent import LIMIT
from tests.chaos.checker import (
    crowds,
    dead_letter_violations,
    overlapping_paths,
    overlaps,
    path_violations,
    semaphore_violations,
    violations,
)
from tests.chaos.members import Members, members
from tests.chaos.past import differences
from tests.chaos.recorder import Recorder
from tests.cluster import Cluster, cluster
from tests.helpers import eventually

_TTL = 2
_RESERVED = 10  # seconds, the shortest that a reservation may have
_ROLES = (
    [("lock", "semaphore", "paths", "lead")] * 4 + [("reserve",)] * 3 + [("add",), ("retry",), ("retry", "ahead=3600")]
)


async def _hurt_one(etcd: EmbeddedEtcd, chance: random.Random) -> str:
    await asyncio.to_thread(etcd.kill)
    await asyncio.sleep(chance.uniform(0, 1))
    await etcd.start()
    return "restart etcd"


async def _hurt_three(three: Cluster, chance: random.Random) -> str:
    """One member, the leader every other time, is killed or hangs; the others go on."""
    victim = await three.leader() if chance.random() < 0.5 else chance.choice(three.members)
    if chance.random() < 0.5:
        await victim.kill()
        await asyncio.sleep(chance.uniform(0, 3))
        await victim.start(three.members)
        await three.leader()
        return "kill a member"
    victim.send(signal.SIGSTOP)
    await asyncio.sleep(chance.uniform(0, 3))
    victim.send(signal.SIGCONT)
    return "stop a member"


async def _hurt(fleet: Members, hurt_server: Callable[[], Awaitable[str]], chance: random.Random) -> str:
    """One fault, and what heals it."""
    fault = chance.choice(["kill", "kill", "stop", "stop", "pause", "server"])
    victim = chance.choice(fleet.living)
    if fault == "kill":
        await fleet.replace(victim)
    elif fault == "server":
        fault = await hurt_server()
    else:
        victim.stop()
        await asyncio.sleep(chance.uniform(0.1, 1) if fault == "pause" else _TTL * 2)
        victim.go_on()
    await asyncio.sleep(chance.uniform(0, 1))
    return fault


@pytest.mark.chaos
@pytest.mark.parametrize("count", [1, 3])
async def test_a_fleet_under_random_faults_never_breaks_the_promise(
    count: int, namespace: str, request: pytest.FixtureRequest
) -> None:
    """Half of the time against one etcd, half against three."""
    seconds = float(os.environ.get("CHAOS_SECONDS", "30")) / 2
    seed = int(os.environ.get("CHAOS_SEED", random.randrange(2**32)))
    print(f"\nchaos for {seconds:g} s against {count} etcd with CHAOS_SEED={seed}")
    chance = random.Random(seed)
    binary = request.config.getoption("--etcd-binary")
    faults: Counter[str] = Counter()
    async with AsyncExitStack() as stack:
        if count == 1:
            etcd = await stack.enter_async_context(EmbeddedEtcd(binary=binary))
            endpoints, hurt_server = etcd.endpoint, partial(_hurt_one, etcd, chance)
        else:
            three = await stack.enter_async_context(cluster(binary))
            endpoints, hurt_server = three.endpoints, partial(_hurt_three, three, chance)
        watcher = Session(endpoints=endpoints, namespace="watcher", session_ttl=60)
        session = await stack.enter_async_context(watcher)
        version = (await core_of(session).transport.member(endpoints.split(",")[0])).version
        fleet = await stack.enter_async_context(members(endpoints, namespace))
        recorder = Recorder(session, namespace)
        for roles in _ROLES:
            await fleet.start(*roles)
        await asyncio.sleep(2)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            faults[await _hurt(fleet, hurt_server, chance)] += 1
        healed = time.monotonic()
        for member in fleet.living:
            what = {"lock": "lock", "reserve": "reserve", "add": "added", "retry": "started"}[member.roles[0]]
            said, limit = len(member.said), 3 * _TTL + 4 + (_RESERVED if what == "reserve" else 0)
            await eventually(lambda m=member, n=said, w=what: any(s["what"] == w for s in m.said[n:]), limit)
        print(f"everybody goes on {time.monotonic() - healed:.1f} s after the last fault")
        for member in fleet.living:
            if member.roles[0] != "retry":
                await member.end()
        added = [said["id"] for said in fleet.said("added")]
        started = [(said["id"], said["token"]) for said in fleet.said("started")]
        await eventually(lambda: not dead_letter_violations(recorder.dead_letters, added, ()), 30)
        await fleet.end()
        await asyncio.sleep(2 * _TTL + 2)  # the leases of the killed run out
        await eventually(lambda: not violations(recorder.reserved), _RESERVED + 5)
        added = [said["id"] for said in fleet.said("added")]
        started = [(said["id"], said["token"]) for said in fleet.said("started")]
        onlooker = await stack.enter_async_context(Session(endpoints=endpoints, namespace=namespace))
        manager = LockManager(onlooker)
        pasts = [await manager.history("x"), await manager.history("r"), await manager.history("t", kind="path")]
    counts = Counter(change.kind for change in recorder.lock)
    permits = Counter(change.kind for change in recorder.semaphore)
    print(f"etcd {version} under {faults.total()} faults: {dict(faults)}")
    paths = Counter(change.kind for change in recorder.paths)
    reserved = Counter(change.kind for change in recorder.reserved)
    left = sum(bool(said["left"]) for said in fleet.said("reserve"))
    print(
        f"{counts['wrote']} writes under the lock, {permits['wrote']} under the semaphore, {paths['wrote']} under paths"
    )
    led = Counter(change.kind for change in recorder.election)
    print(f"{led['wrote']} writes by leaders")
    print(f"{reserved['wrote']} writes under reservations, {left} of which found the note of an expired one")
    print(f"{len(added)} dead letters, {len(started)} attempts")
    assert min(counts["wrote"], permits["wrote"], paths["wrote"], led["wrote"]) > 2 * seconds
    assert len(added) > seconds and not recorder.gaps
    logs = zip(pasts, (recorder.lock, recorder.reserved, recorder.paths), ("lock", "reserve", "paths"), strict=True)
    for past, log, what in logs:
        print(f"etcd tells {len(past.holds)} holds of {past.name!r}: {dict(Counter(one.how for one in past.holds))}")
        assert past.holds and differences(past, log, [said.token for said in fleet.holds(what)]) == []
    assert violations(recorder.lock) == [] and reserved["wrote"] > 2
    assert violations(recorder.reserved) == []
    assert violations(recorder.election) == []
    assert semaphore_violations(recorder.semaphore) == []
    assert path_violations(recorder.paths) == []
    assert dead_letter_violations(recorder.dead_letters, added, started) == []
    if not (faults["stop a member"] and renews_wrongly(version)):  # see SPEC.md, servers
        assert overlaps(fleet.holds("lock")) == []
        assert overlaps(fleet.holds("reserve")) == []
        assert overlaps(fleet.holds("lead")) == []
        assert crowds(fleet.holds("semaphore"), LIMIT) == []
        assert overlapping_paths(fleet.holds("paths")) == []
