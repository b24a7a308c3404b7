"""The role of the workload that fails in pools, whose dead letters may go to a file; and who sweeps up."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from typing import TYPE_CHECKING

from codomyrmex.concurrency import AsyncWorkerPool, DeadLetterQueue, TaskResult
from tests.chaos.documents.rig import state_folder
from tests.chaos.documents.roles import QUEUES, STEADY, handle, queue_of
from tests.chaos.documents.tasks import (
    POOL_QUEUES,
    TASKS,
    fails,
    fails_soon,
    kills_its_process,
    stops,
    succeeds,
    succeeds_soon,
)

if TYPE_CHECKING:
    from tests.chaos.documents.workload import Member

MIXES = {
    "thread": (fails, succeeds, succeeds, stops),
    "process": (fails, succeeds, kills_its_process),
    "auto": (fails_soon, succeeds_soon, succeeds_soon),
}
FIGURES = ("submitted", "completed", "failed", "timed_out", "cancelled", "running", "queued")
_pools = itertools.count(1)


async def pool(member: Member) -> None:
    """Pools of all kinds, one after another, each with a dead letter queue."""
    while member.on:
        executor = member.chance.choice(("thread", "thread", "auto", "auto", "process"))
        name = member.chance.choice(POOL_QUEUES)
        async with queue_of(member, name) as queue:
            await _rounds(member, executor, queue)


async def _rounds(member: Member, executor: str, queue: DeadLetterQueue) -> None:
    results: list[TaskResult] = []
    number = next(_pools)
    made = AsyncWorkerPool(4, executor=executor, dlq=queue, task_timeout=20)
    async with made:
        for round_ in range(member.chance.randint(1, 6)):
            chosen = [
                (member.chance.choice(MIXES[executor]), f"{member.name}-{member.sessions}-{number}-{round_}-{n}")
                for n in range(6)
            ]
            pending = [asyncio.create_task(made.submit(function, task)) for function, task in chosen]
            _, late = await asyncio.wait(pending, timeout=30)
            if late:
                names = sorted({chosen[pending.index(task)][0].__name__ for task in late})
                member.does.say("never", what=f"{names} in a pool of {executor} end within 30 s")
                for task in late:
                    task.cancel()
                return
            for (function, task), ended in zip(chosen, pending, strict=True):
                results.append(_judged(member, queue.name, executor, function.__name__, task, ended.result()))
            await member.rest(member.chance.uniform(0, 0.5))
    counted = Counter(result.status for result in results)
    member.does.say("pool", figures={name: getattr(made.stats(), name) for name in FIGURES}, results=counted)


def _judged(member: Member, queue: str, executor: str, function: str, task: str, result: TaskResult) -> TaskResult:
    good = function.startswith("succeeds")
    # An innocent neighbour of a child that was killed may fail with it; nobody promises more.
    wanted = ["failed"] if not good else ["ok", "failed"] if executor == "process" else ["ok"]
    what = f"{function} in a pool of {executor}"
    member.does.say("task", what=what, status=result.status, wanted=wanted, error=result.error)
    if result.status != "ok" and (result.dead_letter_id or "spill" in (result.dead_letter_note or "")):
        member.does.say("failed", ns=member.does.namespace, queue=queue, task=task)
    return result


async def sweep(member: Member) -> None:
    """After the faults: send what is spilled, and work until nothing is left to do."""
    async with asyncio.TaskGroup() as group:
        for name in (*QUEUES, STEADY):
            group.create_task(_sweep_one(member, name))
    for _ in range(150):
        if not any(path.is_file() and path.stat().st_size for path in state_folder().rglob("*")):
            break
        await member.rest(0.1)
    await member.does.spill_file(state_folder(), 0)
    member.stopping.set()


async def _sweep_one(member: Member, name: str) -> None:
    async with queue_of(member, name) as queue, AsyncWorkerPool(1, dlq=queue) as own:
        member.does.handle(queue, work=handle, **{AsyncWorkerPool.operation_of(task): handle for task in TASKS})
        if name in POOL_QUEUES:
            result = await own.submit(fails, f"{member.name}-{member.sessions}-{name}")
            _judged(member, name, "auto", "fails", f"{member.name}-{member.sessions}-{name}", result)
        async with queue.worker(concurrency=16) as worker:
            await member.rest(6.0)
            await member.does.within(25, f"settled() of {name} after the faults", worker.settled())


ROLES = {"pool": pool, "sweep": sweep}
