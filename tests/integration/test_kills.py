"""Semaphores and dead letters over real processes that are killed, judged by the chaos checker."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from itertools import pairwise

import pytest

from codomyrmex.concurrency import DeadLetter, DeadLetterQueue, EmbeddedEtcd, Semaphore, Session
from codomyrmex.concurrency.dead_letters.transitions import MAX_CRASHES
from tests.chaos.agent import LIMIT, POLICY
from tests.chaos.checker import crowds, dead_letter_violations, semaphore_violations
from tests.chaos.members import Members, members
from tests.chaos.recorder import Recorder
from tests.helpers import eventually

pytestmark = pytest.mark.long

_ONWARD = 0.05  # seconds by which two readings of the clock of one event may differ


@pytest.fixture
async def fleet(etcd: EmbeddedEtcd, namespace: str) -> AsyncIterator[Members]:
    async with members(etcd.endpoint, namespace) as started:
        yield started


@pytest.fixture
def recorder(session: Session, namespace: str) -> Recorder:
    return Recorder(session, namespace)


@pytest.fixture
async def queue(session: Session) -> DeadLetterQueue:
    return DeadLetterQueue("q", session=session)


async def _settled(queue: DeadLetterQueue, limit: float = 30.0) -> list[DeadLetter]:
    async def over() -> list[DeadLetter] | None:
        entries = await queue.list_entries()
        return entries if entries and all(entry.state in ("resolved", "parked") for entry in entries) else None

    found: list[DeadLetter] = await eventually(over, limit)
    return found


async def test_never_more_permits_than_the_limit_and_first_come_first_served_over_killed_processes(
    fleet: Members, recorder: Recorder, session: Session
) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    for _ in range(8):
        await fleet.start("semaphore")
    await eventually(lambda: len(fleet.said("semaphore")) > 50, 20)
    for _ in range(8):
        await fleet.replace(chance.choice(fleet.living))
        await asyncio.sleep(chance.uniform(0.1, 0.8))
    before = len(fleet.said("semaphore"))
    await eventually(lambda: len(fleet.said("semaphore")) > before + 50, 20)
    await fleet.end()
    provider = Semaphore("s", max_concurrent=LIMIT, session=session)
    async with provider.hold(LIMIT, timeout=10):  # what the dead held comes back
        pass
    await eventually(lambda: semaphore_violations(recorder.semaphore) == [], 10)
    holds = fleet.holds("semaphore")
    assert crowds(holds, LIMIT) == [] and max(hold.permits for hold in holds) == LIMIT
    assert sum(change.kind == "wrote" for change in recorder.semaphore) >= len(holds) > 100


async def test_dead_letters_are_neither_lost_nor_run_twice_at_once_while_processes_are_killed(
    fleet: Members, recorder: Recorder, queue: DeadLetterQueue
) -> None:
    adders = [await fleet.start("add") for _ in range(2)]
    for _ in range(3):
        await fleet.start("retry")
    await eventually(lambda: len(fleet.said("added")) > 10, 20)
    chance = random.Random()
    crashed = False
    for number in range(20):
        seen = len(fleet.said("started"))
        await eventually(lambda n=seen: len(fleet.said("started")) > n + 2, 20)
        await fleet.replace(chance.choice([member for member in fleet.living if member.roles == ("retry",)]))
        crashed = crashed or any(entry.crash_count for entry in await queue.list_entries())
        if number >= 4 and crashed:  # a kill may come between two attempts
            break
    await eventually(lambda: len(fleet.said("added")) > 25, 20)
    for adder in adders:
        await adder.end()
    entries = await _settled(queue)
    await fleet.end()
    added = [said["id"] for said in fleet.said("added")]
    started = [(said["id"], said["token"]) for said in fleet.said("started")]
    assert dead_letter_violations(recorder.dead_letters, added, started) == []
    assert len(added) > 20 and all(entry.state == "resolved" or entry.crash_count for entry in entries)
    outcomes = Counter(attempt.outcome for entry in entries for attempt in entry.attempts)
    assert outcomes["crashed"] >= 1 and outcomes["failed"] >= 1


async def test_an_entry_that_kills_its_workers_is_parked_and_harms_nobody_else(
    fleet: Members, recorder: Recorder, queue: DeadLetterQueue
) -> None:
    deadly = await queue.add(operation="deadly", args={}, error="e")
    others = [await queue.add(operation="fine", args={}, error="e") for _ in range(10)]
    workers = [await fleet.start("retry") for _ in range(2)]

    async def over() -> bool:
        for index, worker in enumerate(workers):
            if not worker.lives:
                workers[index] = await fleet.start("retry")
        return all(entry.state in ("resolved", "parked") for entry in await queue.list_entries())

    await eventually(over, 40)
    entry = await queue.get(deadly)
    assert entry and entry.state == "parked" and entry.crash_count == MAX_CRASHES
    assert [attempt.outcome for attempt in entry.attempts] == ["crashed"] * MAX_CRASHES
    assert len([said for said in fleet.said("started") if said["id"] == deadly]) == MAX_CRASHES
    assert {(await queue.get(other)).state for other in others} == {"resolved"}  # type: ignore[union-attr]
    await fleet.end()
    started = [(said["id"], said["token"]) for said in fleet.said("started")]
    assert dead_letter_violations(recorder.dead_letters, [deadly, *others], started) == []


@pytest.mark.parametrize("offset", [3600, -3600])
async def test_a_wrong_clock_starts_no_retry_storm_and_holds_nothing_back(
    fleet: Members, queue: DeadLetterQueue, offset: int
) -> None:
    await fleet.start("retry", f"ahead={offset}")
    await fleet.start("retry")
    await eventually(lambda: len(fleet.said("settled")) == 2, 15)  # both follow the queue
    ids = [await queue.add(operation="flaky", args={}, error="e") for _ in range(6)]
    began = time.monotonic()
    assert {entry.state for entry in await _settled(queue)} == {"resolved"}
    assert time.monotonic() - began < 15
    starts: defaultdict[str, list[float]] = defaultdict(list)
    for said in sorted(fleet.said("started"), key=lambda said: said["at"]):
        starts[said["id"]].append(said["at"])
    assert set(starts) == set(ids) and {len(own) for own in starts.values()} == {3}
    for own in starts.values():
        delays = [two - one for one, two in pairwise(own)]
        # A worker that must read the queue anew (its stream broke, say) may bring an attempt forward, and no more.
        assert sum(seen < POLICY.delay(n) - _ONWARD for n, seen in enumerate(delays, 1)) <= 1, delays
