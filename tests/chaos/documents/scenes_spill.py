"""Scenarios 8 to 10: dead letters of a pool that go to a local file while etcd is away, and come from it."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys

from codomyrmex.concurrency import AsyncWorkerPool, Attempt, DeadLetter, DeadLetterQueue, Session
from tests.chaos.documents.rig import NAMESPACE, Rig, state_folder
from tests.chaos.documents.servers import free_ports


def fails(task: str) -> None:
    """What a pool is given: it fails for good."""
    raise ValueError(f"{task} cannot be done")


async def nothing(entry: DeadLetter, attempt: Attempt) -> None:
    """A handler that succeeds at once."""


async def fail(rig: Rig, pool: AsyncWorkerPool, queue: str, tasks: list[str]) -> None:
    """Let tasks fail in a pool; each becomes a fact, wherever its dead letter goes first."""
    for task in tasks:
        rig.does.say("failed", ns=NAMESPACE, queue=queue, task=task)
    for result in await pool.map(fails, tasks):
        rig.does.say("task", what="a task that fails", status=result.status, wanted=["failed"])


async def away_and_back(rig: Rig) -> None:
    """Etcd is out of reach for a while after tasks have failed; the file must not grow, each must arrive once."""
    proxy = await rig.proxy()
    session = await rig.session(proxy, request_timeout=0.5, dial_timeout=0.5, session_ttl=30)
    async with DeadLetterQueue("away", session=session) as queue, AsyncWorkerPool(4, dlq=queue) as pool:
        await fail(rig, pool, "away", ["before"])
        proxy.refuse()
        proxy.cut()
        await fail(rig, pool, "away", [f"away-{n}" for n in range(3)])
        for _ in range(13):
            await asyncio.sleep(1)
            await rig.does.spill_file(state_folder(), 3)
        proxy.resume()
        await asyncio.sleep(10)
        await rig.does.spill_file(state_folder(), 0)
        await rig.mark()


async def spilled_in_doubt(rig: Rig) -> None:
    """The answers to adds are lost and etcd is out of reach; others resolve the records before the file is sent."""
    proxy = await rig.proxy()
    session = await rig.session(proxy, request_timeout=0.5, dial_timeout=0.5, session_ttl=30)
    near = await rig.session()
    worked = DeadLetterQueue("doubt", session=near)
    rig.does.handle(worked, **{AsyncWorkerPool.operation_of(fails): nothing})
    async with (
        worked.worker(concurrency=16) as worker,
        DeadLetterQueue("doubt", session=session) as queue,
        AsyncWorkerPool(40, dlq=queue) as pool,
    ):
        await fail(rig, pool, "doubt", ["first"])
        proxy.blackhole(up=False, down=True)  # what is asked is done, and no answer comes
        failing = asyncio.create_task(fail(rig, pool, "doubt", [f"doubt-{n}" for n in range(40)]))
        await asyncio.sleep(0.3)
        proxy.refuse()
        proxy.cut()
        await rig.does.within(8, "map() while etcd is away", failing)
        await asyncio.sleep(1)
        await rig.does.within(5, "settled() while another is cut off", worker.settled())
        proxy.resume()
        await asyncio.sleep(6)
        await rig.does.within(5, "settled() after all was sent", worker.settled())
        await rig.mark()


async def leave(queue: str, namespace: str, task: str) -> None:
    """In a process of its own, which then dies: spill one dead letter, for no etcd is there."""
    session = Session(
        endpoints=f"http://127.0.0.1:{free_ports(1)[0]}", namespace=namespace, request_timeout=0.5, dial_timeout=0.5
    )
    pool = AsyncWorkerPool(1, dlq=DeadLetterQueue(queue, session=session))
    result = await pool.submit(fails, task)
    print(result.dead_letter_note, flush=True)
    os._exit(0)


async def taken_over(rig: Rig) -> None:
    """Processes died and left spilled dead letters; those with like names of queue and namespace come after them."""
    left = [("mail.eu", NAMESPACE), ("mail", NAMESPACE), ("c", "a.b"), ("b.c", "a"), ("post.eu.1", NAMESPACE)]
    for queue, namespace in left:
        rig.does.say("failed", ns=namespace, queue=queue, task=f"{namespace}/{queue}")
        command = [sys.executable, "-m", "tests.chaos.documents.scenes_spill", queue, namespace]
        made = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=20)
        if made.returncode:
            rig.does.say("raised", what="spilling", error=made.stderr[-300:], documented=False)
    order = [("mail", NAMESPACE), ("b.c", "a"), ("post", NAMESPACE), ("post.eu", NAMESPACE)]
    order += [("c", "a.b"), ("mail.eu", NAMESPACE), ("post.eu.1", NAMESPACE)]
    for number, (queue, namespace) in enumerate(order):
        session = await rig.session(namespace=namespace)
        opened = await rig.stack.enter_async_context(DeadLetterQueue(queue, session=session))
        pool = await rig.stack.enter_async_context(AsyncWorkerPool(1, dlq=opened))
        rig.does.say("failed", ns=namespace, queue=queue, task=f"own of {namespace}/{queue}")
        await pool.submit(fails, f"own of {namespace}/{queue}")
        await asyncio.sleep(2.5 if number == 3 else 0)
    await asyncio.sleep(4)
    await rig.mark()


SCENES = {
    "08-away-and-back": away_and_back,
    "09-spilled-in-doubt": spilled_in_doubt,
    "10-taken-over": taken_over,
}

if __name__ == "__main__":
    asyncio.run(leave(sys.argv[1], sys.argv[2], f"{sys.argv[2]}/{sys.argv[1]}"))
