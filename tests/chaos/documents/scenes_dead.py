"""Scenarios 3 to 7 and 15: what may go wrong between a dead letter, its claim, its run and its record."""

from __future__ import annotations

import asyncio
import contextlib
import random

from codomyrmex.concurrency import (
    Attempt,
    ConcurrencyError,
    DeadLetter,
    DeadLetterQueue,
    Park,
    PayloadTooLarge,
    Retry,
    RetryPolicy,
)
from tests.chaos.documents.gateway import Gateway
from tests.chaos.documents.history import BALLAST
from tests.chaos.documents.rig import Rig

SOON = RetryPolicy(max_attempts=5, initial=0.5, maximum=2.0, jitter=0.1)


async def nothing(entry: DeadLetter, attempt: Attempt) -> None:
    """A handler that succeeds at once."""


async def second_time(entry: DeadLetter, attempt: Attempt) -> None:
    """A handler that asks for a second attempt, a while later, and succeeds then."""
    if attempt.number == 1:
        raise Retry(delay=float(entry.args["delay"]))


async def still_while_claiming(rig: Rig) -> None:
    """Etcd stands still for longer than twice the time limit while entries come due and are claimed."""
    session = await rig.session(request_timeout=1.0, session_ttl=20)
    queue = DeadLetterQueue("still", session=session, retry=SOON)
    rig.does.handle(queue, work=second_time)
    async with queue.worker(concurrency=30) as worker:
        for _ in range(30):
            await rig.does.add(queue, "work", args={"delay": 1.0})
        await asyncio.sleep(0.6)
        async with rig.standing_still():
            await asyncio.sleep(3.5)
        await asyncio.sleep(1)
        await rig.does.within(10, "settled() after etcd went on", worker.settled())
        await rig.mark()


async def left_while_cancelled(rig: Rig) -> None:
    """Tasks that leave the worker's block are cancelled while it waits for its handlers; the session lives on."""
    session = await rig.session()
    chance = random.Random(4)

    async def short(entry: DeadLetter, attempt: Attempt) -> None:
        await asyncio.sleep(chance.random() * 0.01)

    queue = DeadLetterQueue("left", session=session)
    rig.does.handle(queue, work=short)
    for _ in range(12):
        await asyncio.gather(*(rig.does.add(queue, "work") for _ in range(75)))
        await _leave_and_cancel(rig, queue, 0.03 + chance.random() * 0.1, chance.random() * 0.02)
    await asyncio.sleep(0.5)
    async with queue.worker(concurrency=32) as worker:
        await rig.does.within(12, "settled() of a later worker", worker.settled())
        await rig.mark()


async def _leave_and_cancel(rig: Rig, queue: DeadLetterQueue, working: float, leaving_for: float) -> None:
    leaving = asyncio.Event()

    async def work() -> None:
        async with queue.worker(concurrency=64):
            await asyncio.sleep(working)
            leaving.set()

    task = asyncio.create_task(work())
    await leaving.wait()
    await asyncio.sleep(leaving_for)
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled() and (error := task.exception()):
        rig.does.raised("the worker's block", error)


async def full_while_due(rig: Rig) -> None:
    """The database is full while entries are due, and then it has space again."""
    session = await rig.session(request_timeout=2.0)
    queue = DeadLetterQueue("full", session=session, retry=SOON)
    rig.does.handle(queue, work=second_time)
    async with queue.worker(concurrency=20) as worker:
        for _ in range(20):
            await rig.does.add(queue, "work", args={"delay": 2.0})
        await asyncio.to_thread(fill, rig.gateway)
        await asyncio.sleep(3.5)
        await asyncio.to_thread(rig.gateway.free_space)
        await rig.does.within(12, "settled() after space came back", worker.settled())
        await asyncio.sleep(0.5)
        await rig.mark()


def fill(gateway: Gateway, most: int = 400) -> None:
    """Write ballast until etcd refuses more."""
    with contextlib.suppress(OSError):
        for _ in range(most):
            gateway.put(BALLAST, b"x" * 500_000)


async def reasons_too_long(rig: Rig) -> None:
    """A reason of two megabytes, a long error beside arguments that just fit, and arguments at the limit itself."""
    session = await rig.session(request_timeout=5.0)
    queue = DeadLetterQueue("sizes", session=session, retry=RetryPolicy(max_attempts=2, initial=0.1))

    async def park(entry: DeadLetter, attempt: Attempt) -> None:
        raise Park("x" * 2_000_000)

    async def fail(entry: DeadLetter, attempt: Attempt) -> None:
        raise ValueError("y" * 200_000)

    fits = ""
    low, high = 500_000, 2_000_000  # the size of the largest argument that `add` takes, to the byte
    while high - low > 1:
        middle = (low + high) // 2
        try:
            number = await queue.add(operation="probe", args={"text": "z" * middle}, error="e")
        except PayloadTooLarge:
            high = middle
        else:
            low, fits = middle, number
    try:
        await queue.discard(fits, reason="it was a probe")
    except ConcurrencyError as error:
        rig.does.say("never", what=f"an entry that `add` took at its size limit is discarded; {type(error).__name__}")
    for operation in ("work", "fail", "park"):
        for less in (0, 1, 10, 100, 300, 1000):
            await rig.does.add(queue, operation, args={"text": "z" * (low - less)}, error="e", limit=5.0)
    await rig.does.add(queue, "park")
    rig.does.handle(queue, work=nothing, fail=fail, park=park)
    async with queue.worker(concurrency=4) as worker:
        await rig.does.within(12, "settled() of entries at the size limit", worker.settled())
        await rig.mark()


async def older_forgets_newer(rig: Rig) -> None:
    """An old entry is resolved again, purged or evicted while a newer one of the same dedup key is unresolved."""
    session = await rig.session()
    for way in ("replayed", "purged", "evicted", "discarded"):
        most = 2 if way == "evicted" else None
        queue = DeadLetterQueue(way, session=session, max_entries=most)
        rig.does.handle(queue, work=nothing)
        old = await rig.does.add(queue, "work", dedup_key="k")
        async with queue.worker() as worker:
            await worker.settled()
        await rig.does.add(queue, "unhandled", dedup_key="k")
        with contextlib.suppress(ConcurrencyError):
            await _end_older(rig, queue, way, str(old))
        unbounded = DeadLetterQueue(way, session=session)
        await rig.does.add(unbounded, "unhandled", dedup_key="k")
        await rig.does.add(unbounded, "unhandled", dedup_key="k")
    await rig.mark()


async def _end_older(rig: Rig, queue: DeadLetterQueue, way: str, old: str) -> None:
    if way == "replayed":
        rig.does.say("replay", ns=rig.does.namespace, queue=queue.name, id=old)
        await queue.replay(old)
        async with queue.worker() as worker:
            await worker.settled()
    elif way == "discarded":
        rig.does.say("replay", ns=rig.does.namespace, queue=queue.name, id=old)
        await queue.replay(old)
        await queue.discard(old, reason="it is old")
    elif way == "purged":
        rig.does.say("purge", ns=rig.does.namespace, queue=queue.name, state="resolved")
        await queue.purge(state="resolved")
    else:
        await rig.does.add(queue, "unhandled", dedup_key="another")


async def handler_hangs(rig: Rig) -> None:
    """The worker's block is left while a handler waits for what never comes; another worker finishes its entry."""
    session = await rig.session()
    left = asyncio.Event()

    async def hang(entry: DeadLetter, attempt: Attempt) -> None:
        if not left.is_set():
            await asyncio.Event().wait()

    async def leave(queue: DeadLetterQueue) -> None:
        async with queue.worker():
            await rig.does.add(queue, "work")
            await asyncio.sleep(0.5)

    queue = DeadLetterQueue("hangs", session=session)
    rig.does.handle(queue, work=hang)
    await rig.does.within(26, "leaving a worker whose handler hangs", leave(queue))  # 20 s, and 5 s after the cancel
    left.set()
    async with queue.worker() as worker:
        await rig.does.within(5, "what a hanging handler left behind", worker.settled())
    await rig.mark()


SCENES = {
    "03-still-while-claiming": still_while_claiming,
    "04-left-while-cancelled": left_while_cancelled,
    "05-full-while-due": full_while_due,
    "06-reasons-too-long": reasons_too_long,
    "07-older-forgets-newer": older_forgets_newer,
    "15-handler-hangs": handler_hangs,
}
