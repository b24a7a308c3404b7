"""The roles of the workload that need etcd at all times: who adds, who works, who holds, who looks on."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

from codomyrmex.concurrency import (
    AsyncWorkerPool,
    Attempt,
    ConcurrencyError,
    DeadLetter,
    DeadLetterQueue,
    Discard,
    LockManager,
    Park,
    Retry,
    RetryPolicy,
    Semaphore,
)
from tests.chaos.documents.tasks import POOL_QUEUES, TASKS

if TYPE_CHECKING:
    from tests.chaos.documents.workload import Member

STEADY = "steady"  # the queue of the one worker that is never left, and of nobody else until all is swept up
QUEUES = ("jobs", "mail", "mail.eu", "bounded", *POOL_QUEUES)
SOON = RetryPolicy(max_attempts=4, initial=0.2, maximum=1.0, jitter=0.5)
KINDS = ("ok", "ok", "ok", "fail", "retry", "park", "discard", "brief", "long", "once")
BURST = 1200  # adds, one after another: more revisions than etcd sends in one batch
LARGE = 1_048_000  # bytes of an argument, near the limit of a dead letter


def queue_of(member: Member, name: str) -> DeadLetterQueue:
    return DeadLetterQueue(
        name,
        session=member.session,
        retry=SOON,
        retention=60 if name == "mail" else None,
        max_entries=60 if name == "bounded" else None,
    )


async def handle(entry: DeadLetter, attempt: Attempt) -> None:
    """Do as the entry's arguments say."""
    kind = entry.args.get("do", "ok")
    if kind == "fail":
        raise ValueError("it cannot be done " + "y" * entry.args.get("length", 0))
    if kind == "retry" and attempt.number < 3:
        raise Retry(delay=0.3 * attempt.number)
    if kind == "park":
        raise Park("no person is there " + "x" * entry.args.get("length", 0))
    if kind == "discard":
        raise Discard("it is of no use")
    if kind == "once" and attempt.number == 1:
        raise RuntimeError("the first time it always fails")
    if kind in ("brief", "long"):
        await asyncio.sleep(0.05 if kind == "brief" else 2.5)
        await attempt.checkpoint()


async def add(member: Member) -> None:
    """Adds of all kinds; now and then what persons do: replay, discard, purge."""
    chance = member.chance
    queues = [queue_of(member, name) for name in ("jobs", "mail", "mail.eu", "bounded", STEADY)]
    recent: list[tuple[DeadLetterQueue, str]] = []
    while member.on:
        queue = chance.choice(queues)
        await member.rest(chance.expovariate(40))
        if chance.random() < 0.06 and recent:
            with contextlib.suppress(ConcurrencyError):
                await _as_a_person(member, queues[0], *chance.choice(recent[-200:]))
        burst = BURST if chance.random() < 0.001 else 1
        for _ in range(burst):
            about: dict[str, Any] = {"args": {"do": "ok" if burst > 1 else chance.choice(KINDS)}}
            if chance.random() < 0.02:
                about["args"]["length"] = chance.choice((1_000, 200_000, 2_000_000))
            if chance.random() < 0.005:
                about["args"]["text"] = "z" * (LARGE + chance.randrange(700))
            if chance.random() < 0.3:
                about["dedup_key"] = f"key-{chance.randrange(30)}"
            number = await member.does.add(queue, "work", limit=3.0, **about)
            if number is None:
                break
            recent.append((queue, number))


async def burst(member: Member) -> None:
    """Thousands of adds, one after another, so that whoever lags is sent them in batches."""
    queue = queue_of(member, STEADY)
    for _ in range(2 * BURST):
        if member.on:
            await member.does.add(queue, "work", limit=3.0)
    member.stopping.set()


async def _as_a_person(member: Member, jobs: DeadLetterQueue, queue: DeadLetterQueue, number: str) -> None:
    say, namespace = member.does.say, member.does.namespace
    match member.chance.randrange(5):
        case 0 | 1:
            say("replay", ns=namespace, queue=queue.name, id=number)
            await member.does.call("replay", 3.0, queue.replay(number))
        case 2:
            await member.does.call("discard", 3.0, queue.discard(number, reason="a person says so"))
        case 3:
            state = member.chance.choice(("resolved", "parked"))
            say("purge", ns=namespace, queue=queue.name, state=state)
            await member.does.call("purge", 30.0, queue.purge(state=state))
        case _:
            say("replay_all", ns=namespace, queue=jobs.name, state="parked")
            await member.does.call("replay_all", 30.0, jobs.replay_all(state="parked"))


async def work(member: Member) -> None:
    """Workers of all queues, that are left in order, or cancelled while they wait for their handlers."""
    chance = member.chance
    operations = {"work": handle, **{AsyncWorkerPool.operation_of(task): handle for task in TASKS}}
    queues = [queue_of(member, name) for name in QUEUES]
    for queue in queues:
        member.does.handle(queue, **operations)

    async def one(queue: DeadLetterQueue, seconds: float) -> None:
        async with queue.worker(concurrency=chance.choice((2, 8, 32))):
            await member.rest(seconds)

    while member.on:
        seconds = chance.uniform(2, 12)
        tasks = [asyncio.create_task(one(queue, seconds)) for queue in queues]
        done, late = await asyncio.wait(tasks, timeout=seconds + chance.uniform(0, 0.1))
        if chance.random() < 0.5:
            for task in late:
                task.cancel()
        if late:
            more, hanging = await asyncio.wait(late, timeout=25)
            done |= more
            if hanging:
                member.does.say("never", what=f"{len(hanging)} workers are left within 25 s")
                for task in hanging:
                    task.cancel()
        for task in done:
            if not task.cancelled() and (error := task.exception()):
                member.does.raised("a worker's block", error)


async def serve(member: Member) -> None:
    """One worker that goes on for as long as its session lives, so that whatever it misses stays missed."""
    queue = queue_of(member, STEADY)
    member.does.handle(queue, work=handle)
    async with queue.worker(concurrency=8):
        while member.on:
            await member.rest(1.0)


async def hold(member: Member) -> None:
    """Locks and permits of all kinds, by several tasks at once."""
    manager = LockManager(member.session)
    async with asyncio.TaskGroup() as group:
        for _ in range(6):
            group.create_task(_hold_on(member, manager))


async def _hold_on(member: Member, manager: LockManager) -> None:
    chance = member.chance
    while member.on:
        name, wait = f"lock-{chance.randrange(4)}", chance.choice((None, 0, 2.0))
        try:
            match chance.randrange(6):
                case 0:
                    taken, limit = chance.randint(1, 3), 3
                    semaphore = Semaphore("gate", max_concurrent=limit, session=member.session)
                    blocks = [member.does.hold("semaphore", "gate", semaphore.hold(permits=taken, timeout=wait))]
                case 1:
                    acquiring = manager.acquire(name, wait, shared=True)
                    blocks = [member.does.hold("lock", name, acquiring, shared=True)]
                case 2:
                    blocks = [member.does.hold("lock", name, manager.acquire(name, wait, lock_delay=1.0))]
                case 3:
                    blocks = [member.does.hold("lock", name, manager.acquire(name, wait, max_hold=0.5))]
                case 4:
                    names = ["lock-0", "lock-1"]
                    blocks = [member.does.hold_all(names, manager.acquire_all(names, wait))]
                case _:
                    blocks = [member.does.hold("lock", name, manager.acquire(name, wait))]
            for block in blocks:
                async with block:
                    await asyncio.sleep(chance.choice((0, 0.01, 0.05, 0.8)))
        except ConcurrencyError as error:
            member.does.raised("acquire", error)
            await member.rest(0.05)


async def follow(member: Member) -> None:
    """Follows the locks and a queue in one session, and says at the end what it believes."""
    belief: dict[str, set[int]] = {}
    states: dict[str, str] = {}

    async def follow_queue() -> None:
        async for entry in queue_of(member, STEADY).watch():
            states[entry.id] = entry.state

    following = [
        asyncio.create_task(member.does.believe_locks(LockManager(member.session), belief)),
        asyncio.create_task(follow_queue()),
    ]
    told = asyncio.create_task(member.stopping.wait())
    await asyncio.wait([told, *following], return_when=asyncio.FIRST_COMPLETED)
    if member.on:
        for task in following:
            if task.done():
                member.does.raised("a watch", task.exception() or RuntimeError("the watch ended by itself"))
    elif member.session.alive:
        member.does.say_locks(belief, partial=True)
        about = {"ns": member.does.namespace, "queue": STEADY, "believed": states, "partial": True}
        member.does.say("belief", what="dead", **about)
    for task in (told, *following):
        task.cancel()
    await asyncio.wait([told, *following])
    for task in following:
        if not task.cancelled():
            task.exception()  # it is told above, or it is the session's end


ROLES = {"add": add, "burst": burst, "work": work, "hold": hold, "follow": follow, "serve": serve}
