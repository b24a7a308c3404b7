"""Scenarios 1 and 2: watchers that lag, TLS files that are replaced, what a watch cannot read."""

from __future__ import annotations

import asyncio
import signal

from codomyrmex.concurrency import Attempt, DeadLetter, DeadLetterQueue, LockManager, Semaphore
from tests.chaos.documents.instruments import cli_belief
from tests.chaos.documents.rig import NAMESPACE, Rig
from tests.chaos.documents.tls import renew


async def nothing(entry: DeadLetter, attempt: Attempt) -> None:
    """A handler that succeeds at once."""


async def worker_lags(rig: Rig) -> None:
    """A worker's connection breaks for a moment while thousands of entries are added."""
    proxy = await rig.proxy()
    worker_session, adder_session = await rig.session(proxy), await rig.session(request_timeout=10)
    mine, theirs = (DeadLetterQueue("lag", session=session) for session in (worker_session, adder_session))
    rig.does.handle(mine, work=nothing)
    async with mine.worker(concurrency=64) as worker:
        await rig.does.add(theirs, "work")
        await worker.settled()
        proxy.refuse()
        proxy.cut()
        for _ in range(2500):  # one after another, for what is added at once shares a revision
            await rig.does.add(theirs, "work", limit=10)
        proxy.resume()
        await asyncio.sleep(2)
        await rig.does.within(12, "settled() after the connection came back", worker.settled())
        await rig.mark()


async def followers_lag(rig: Rig) -> None:
    """Those who follow the locks and a queue lose their connection while thousands of revisions pass."""
    proxy = await rig.proxy()
    near, far = await rig.session(), await rig.session(proxy)
    manager, queue = LockManager(near), DeadLetterQueue("seen", session=near)
    belief: dict[str, set[int]] = {}
    states: dict[str, str] = {}

    async def follow_queue() -> None:
        async for entry in DeadLetterQueue("seen", session=far).watch():
            states[entry.id] = entry.state

    following = [
        asyncio.create_task(rig.does.believe_locks(LockManager(far), belief)),
        asyncio.create_task(follow_queue()),
    ]
    command = await rig.command("locks", "--watch", "-o", "jsonl", proxy=proxy)
    shown = asyncio.create_task(command.communicate())
    await asyncio.sleep(2)
    grants = [await manager.acquire(f"held-{n}") for n in range(30)]
    ids = [await rig.does.add(queue, "work") for _ in range(30)]
    await rig.until(lambda: len(belief) == 30 and len(states) == 30, 5)
    proxy.refuse()
    proxy.cut()
    for n in range(1300):
        async with manager.acquire(f"churn-{n % 3}"):
            await queue.add(operation="work", args={}, error="e") if n < 1200 else None
    for grant in grants:
        await manager.release(grant)
    for number in ids:
        await queue.discard(str(number), reason="nobody needs it")
    proxy.resume()
    await asyncio.sleep(6)
    rig.does.say_locks(belief)
    command.send_signal(signal.SIGINT)
    out, errors = await shown
    rig.does.say("exit", of="locks --watch", code=command.returncode, stderr=errors.decode(errors="replace"))
    rig.does.say_locks(cli_belief(out.decode().splitlines()))
    rig.does.say("belief", what="dead", ns=NAMESPACE, queue="seen", believed=states)
    await rig.mark()
    for task in following:
        task.cancel()
    await asyncio.wait(following)


async def tls_replaced(rig: Rig) -> None:
    """The files are replaced while waiters wait, a worker works and a follower follows, and then some call fails."""
    assert rig.tls
    session, other = await rig.session(request_timeout=1.0), await rig.session(request_timeout=1.0)
    manager, theirs = LockManager(session), LockManager(other)
    queue, adder = DeadLetterQueue("tls", session=session), DeadLetterQueue("tls", session=other)
    rig.does.handle(queue, work=nothing)
    grant = await theirs.acquire("door")

    async def wait() -> None:
        async with rig.does.hold("lock", "door", manager.acquire("door")):
            await asyncio.sleep(0.01)

    async with queue.worker():
        waiting = [asyncio.create_task(rig.does.within(40, f"waiter {n} of a lock", wait())) for n in range(20)]
        reading = [asyncio.create_task(read(rig, queue)) for _ in range(4)]
        await asyncio.sleep(1)
        renew(rig.tls)
        async with rig.standing_still():
            await asyncio.sleep(2.0)  # what is read meanwhile fails, once
        await asyncio.sleep(2)
        await theirs.release(grant)
        for _ in range(10):
            await rig.does.add(adder, "work")
        await asyncio.wait(waiting, timeout=6)  # the safety net of a look each 10 s shall not be what catches them
        if late := sum(not task.done() for task in waiting):
            rig.does.say("never", what=f"{late} of 20 waiters were not granted within 6 s of the release")
        for task in reading:
            task.cancel()
        await rig.mark()
        if not session.alive:
            rig.does.say("never", what="the session lives on when its TLS files are replaced")
        await asyncio.wait([*waiting, *reading], timeout=12)


async def read(rig: Rig, queue: DeadLetterQueue) -> None:
    """Read for ever; a call that fails as documented is no more than that."""
    while True:
        try:
            await rig.does.call("count()", 1.0, queue.count())
        except asyncio.CancelledError:
            if (me := asyncio.current_task()) and me.cancelling():
                raise
            return
        except Exception:
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.02)


async def sink_chokes(rig: Rig) -> None:
    """A key with 5,000 digits comes to those who follow a semaphore and the locks; the session serves on."""
    session, other = await rig.session(), await rig.session()
    manager, theirs = LockManager(session), LockManager(other)
    queue, adder = DeadLetterQueue("sinks", session=session), DeadLetterQueue("sinks", session=other)
    mine, full = (Semaphore("gate", max_concurrent=1, session=one) for one in (session, other))
    rig.does.handle(queue, work=nothing)
    belief: dict[str, set[int]] = {}
    following = asyncio.create_task(rig.does.believe_locks(manager, belief))
    grant, permit = await theirs.acquire("door"), await full.acquire()

    async def wait(name: str) -> None:
        acquiring = manager.acquire("door") if name == "lock" else mine.hold()
        async with rig.does.hold(name, "door" if name == "lock" else "gate", acquiring):
            pass

    async with queue.worker():
        waiting = [asyncio.create_task(wait(name)) for name in ("lock", "semaphore")]
        await asyncio.sleep(1)
        lease = rig.gateway.call("lease/grant", TTL="60")["ID"]
        for key in ("semaphore/gate/limit-" + "9" * 5000, "semaphore/gate/limit-x", "lock/door/x." + "9" * 5000):
            rig.gateway.put(f"/{NAMESPACE}/v1/{key}", lease=0 if "limit" in key else int(lease))
            await asyncio.sleep(0.2)
            rig.gateway.delete(f"/{NAMESPACE}/v1/{key}")
        for key in ("dead/sinks/entry/x", "dead/sinks/claim/x", "dead/sinks/dedup/x", "lock/door/" + "9" * 5000):
            rig.gateway.put(f"/{NAMESPACE}/v1/{key}", b"[" * 5000)
        await asyncio.sleep(0.5)
        await theirs.release(grant)
        await permit.release()
        for _ in range(10):
            await rig.does.add(adder, "work")
        done, late = await asyncio.wait(waiting, timeout=6)
        for task in done:
            if error := task.exception():
                rig.does.raised("a waiter", error)
        for _ in late:
            rig.does.say("never", what="a waiter was not granted within 6 s of the release")
        if following.done() and (error := following.exception()):
            rig.does.raised("LockManager.watch", error)
        await rig.mark()
        for task in (following, *late):
            task.cancel()
        await asyncio.wait([following, *waiting])


SCENES = {
    "01-worker-lags": worker_lags,
    "01-followers-lag": followers_lag,
    "02-tls-replaced": tls_replaced,
    "02-sink-chokes": sink_chokes,
}
