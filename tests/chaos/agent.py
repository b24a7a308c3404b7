"""A member of the chaos fleet: works for ever, survives every loss, and says what it did and believed, as JSON lines.

    python -m tests.chaos.agent ENDPOINT NAMESPACE ROLE...

Roles, all at the same time: ``lock``, ``semaphore``, ``paths`` and ``lead`` take turns and write fenced; ``reserve``
does the same under reservations, which it renews and releases by their handles; ``reign`` leads until its end and
writes fenced; ``join`` has many members in a group; ``add`` adds dead letters; ``retry`` retries them, with a clock
that is ``ahead=SECONDS`` if so asked. The handlers of ``deadly`` entries kill their process.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import sys
import time
from datetime import timedelta
from typing import Any

from codomyrmex.concurrency import (
    Attempt,
    ConcurrencyError,
    DeadLetter,
    DeadLetterQueue,
    DistributedLock,
    Election,
    Group,
    LockManager,
    RetryPolicy,
    Semaphore,
    Session,
)
from codomyrmex.concurrency.dead_letters import record
from codomyrmex.concurrency.session import core_of
from tests.helpers import begin_at_the_first

LIMIT = 3
MEMBERS = 50
PATHS = (
    ["src/"],
    ["src/a.py", "docs/"],
    ["src/parser/"],
    ["src/parser/b.py"],
    ["docs/x", "README.md"],
    ["tests/"],
    [""],
)
POLICY = RetryPolicy(max_attempts=4, initial=0.4, jitter=0)


def say(what: str, **more: Any) -> None:
    print(json.dumps({"what": what, **more}), flush=True)


async def lock(session: Session) -> None:
    turns = DistributedLock("x", session)
    while True:
        async with turns as grant:
            since = time.monotonic()
            await asyncio.sleep(random.uniform(0, 0.03))
            await grant.put(f"/{core_of(session).layout.namespace}/lock", str(grant.token))
            say("lock", token=grant.token, since=since, until=time.monotonic())


async def semaphore(session: Session) -> None:
    provider = Semaphore("s", max_concurrent=LIMIT, session=session)
    while True:
        permits = random.randint(1, LIMIT)
        async with provider.hold(permits) as grant:
            since = time.monotonic()
            await asyncio.sleep(random.uniform(0, 0.03))
            await grant.put(f"/{core_of(session).layout.namespace}/semaphore", str(grant.token))
            say("semaphore", token=grant.token, since=since, until=time.monotonic(), permits=permits)


async def reserve(session: Session) -> None:
    manager = LockManager(session)
    register = f"/{core_of(session).layout.namespace}/reserved"
    while True:
        mine = await manager.reserve("r", ttl=10, note="begun")
        since = time.monotonic()
        await mine.put(register, str(mine.token))
        await asyncio.sleep(random.uniform(0, 0.03))
        later = manager.reservation(mine.handle)
        await later.renew(note="half done" if random.random() < 0.5 else None)
        await later.put(register, str(mine.token))
        if mine.expires_in() > 0:
            say("reserve", token=mine.token, since=since, until=time.monotonic(), left=mine.left)
        await later.release()


async def paths(session: Session) -> None:
    """Paths that are disjoint, or overlap, at random."""
    manager = LockManager(session)
    while True:
        wanted, shared = random.choice(PATHS), random.random() < 0.3
        async with manager.acquire_paths(wanted, tree="t", shared=shared) as grant:
            since = time.monotonic()
            await asyncio.sleep(random.uniform(0, 0.03))
            await grant.put(f"/{core_of(session).layout.namespace}/paths", str(grant.token))
            until = time.monotonic()
            say("paths", token=grant.token, since=since, until=until, paths=grant.paths, shared=shared)


async def lead(session: Session) -> None:
    election = Election("e", session)
    while True:
        async with election.campaign() as term:
            since = time.monotonic()
            await asyncio.sleep(random.uniform(0, 0.03))
            await term.grant.put(f"/{core_of(session).layout.namespace}/elected", str(term.token))
            await term.proclaim(term.token)
            say("lead", token=term.token, since=since, until=time.monotonic())


async def reign(session: Session) -> None:
    async with Election("e", session).campaign({"pid": os.getpid()}) as term:
        say("reign", token=term.token, session=session.id)
        while True:
            await term.grant.put(f"/{core_of(session).layout.namespace}/elected", str(term.token))
            await asyncio.sleep(0.01)


async def join(session: Session) -> None:
    async def be_one(number: int) -> None:
        async with Group("g", session).join({"number": number}):
            say("joined")
            await asyncio.Event().wait()

    async with asyncio.TaskGroup() as group:
        for number in range(MEMBERS):
            group.create_task(be_one(number))


async def add(session: Session) -> None:
    queue = DeadLetterQueue("q", session=session)
    while True:
        entry_id = await queue.add(operation=random.choice(("flaky", "fine")), args={}, error="e")
        say("added", id=entry_id)
        await asyncio.sleep(random.uniform(0.05, 0.3))


async def retry(session: Session) -> None:
    queue = DeadLetterQueue("q", session=session, retry=POLICY)

    @queue.handler("fine")
    async def fine(entry: DeadLetter, attempt: Attempt) -> None:
        say("started", id=entry.id, token=attempt.token, at=time.monotonic())
        await asyncio.sleep(random.uniform(0.02, 0.1))

    @queue.handler("flaky")
    async def flaky(entry: DeadLetter, attempt: Attempt) -> None:
        await fine(entry, attempt)
        if attempt.number < 3:
            say("failed", id=entry.id, at=time.monotonic())
            raise ValueError("not yet")

    @queue.handler("deadly")
    async def deadly(entry: DeadLetter, attempt: Attempt) -> None:
        say("started", id=entry.id, token=attempt.token, at=time.monotonic())
        os.kill(os.getpid(), signal.SIGKILL)

    async with queue.worker(concurrency=3) as worker:
        await worker.settled()
        say("settled")
        await asyncio.Event().wait()


def set_clock(offset: timedelta) -> None:
    right = record.now
    record.now = lambda: right() + offset


_WORK = {
    "lock": lock,
    "semaphore": semaphore,
    "paths": paths,
    "lead": lead,
    "reign": reign,
    "join": join,
    "reserve": reserve,
    "add": add,
    "retry": retry,
}


async def main() -> None:
    endpoint, namespace, *roles = sys.argv[1:]
    begin_at_the_first()  # a test may want all agents at one member
    for role in roles:
        if role.startswith("ahead="):
            set_clock(timedelta(seconds=float(role.removeprefix("ahead="))))
    while True:
        with contextlib.suppress(ConcurrencyError, ExceptionGroup):
            async with (
                Session(endpoints=endpoint, namespace=namespace, session_ttl=2) as session,
                asyncio.TaskGroup() as group,
            ):
                for role in roles:
                    if work := _WORK.get(role):
                        group.create_task(work(session))
        await asyncio.sleep(0.1)


if __name__ == "__main__":
    asyncio.run(main())
