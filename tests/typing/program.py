# pyright: strict
"""A user's program with every primitive of README.md, for the type checkers of ``make lint``; nothing runs it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from typing import Any, assert_type

from codomyrmex.concurrency import (
    KV,
    Acquisition,
    AsyncWorkerPool,
    Attempt,
    ClusterPoolStats,
    Compare,
    DeadLetter,
    DeadLetterQueue,
    Deleted,
    DistributedLock,
    Done,
    Election,
    EmbeddedEtcd,
    EtcdOptions,
    EtcdSettings,
    Get,
    GetResult,
    Grant,
    Group,
    Holding,
    JointAcquisition,
    Leader,
    LockEvent,
    LockInfo,
    LockManager,
    LockStats,
    Loss,
    Member,
    Membership,
    Owner,
    Park,
    Permit,
    PoolStats,
    Put,
    Rate,
    RateLimiter,
    Retry,
    RetryPolicy,
    Semaphore,
    SemaphoreInfo,
    Session,
    Target,
    TaskResult,
    Term,
    TxnResult,
    Worker,
    sync,
    telemetry,
)
from codomyrmex.concurrency.prometheus import Metrics


async def settings() -> None:
    async with EmbeddedEtcd() as etcd:
        EtcdSettings(endpoints=etcd.endpoint, session_ttl=5)
        EtcdSettings(endpoints=["http://a:2379", "http://b:2379"], password="secret", username="agent")
        assert_type(EtcdSettings().endpoints, tuple[str, ...])
    options: EtcdOptions = {"endpoints": "http://a:2379", "namespace": "trial"}
    async with Session(EtcdSettings(), **options) as session, Session(session_ttl=15):
        assert_type(session.id, int)
        assert_type(session.lost, Loss)
        assert_type(session.deadline(), float)


async def locks(manager: LockManager) -> None:
    lock = DistributedLock("file_edit:main.py", metadata={"ticket": 7})
    async with lock as grant:
        assert_type(grant, Grant)
        assert_type(await grant.put("/files/main.py", "text"), int)
        assert_type(await grant.get("/files/main.py"), bytes | None)
        done = await grant.txn(Put(b"/a", b"1"), Get(b"/b"), compare=[Compare(b"/a", Target.VERSION, 0)])
        assert_type(done, TxnResult)
        assert_type(done.results, Sequence[GetResult | Deleted | Done])
        if isinstance(done.results[1], GetResult):
            assert_type(done.results[1].kvs, Sequence[KV])
    assert_type(await lock.try_acquire(), Grant | None)
    assert_type(await lock.info(), LockInfo | None)
    acquisition = manager.acquire("index", timeout=10, shared=True)
    assert_type(acquisition, Acquisition)
    async with acquisition as grant:
        assert_type(grant, Grant)
    assert_type(await manager.acquire("index"), Grant)
    together = manager.acquire_all(["main.py", "README.md"], timeout=30)
    assert_type(together, JointAcquisition)
    async with together as grants:
        assert_type(grants, tuple[Grant, ...])
    assert_type(await manager.locks("file_edit:"), list[LockInfo])
    async for event in manager.watch():
        assert_type(event, LockEvent)
    assert_type(await manager.force_release("index", reason="its host is gone"), Owner)


async def semaphores() -> None:
    provider = Semaphore("provider", max_concurrent=3)
    async with provider as grant:
        assert_type(grant, Grant)
    holding = provider.hold(permits=2, timeout=30)
    assert_type(holding, Holding)
    async with holding as grant:
        assert_type(grant.token, int)
    assert_type(await provider.acquire(2), Permit)
    assert_type(await provider.available(), int)
    assert_type(await provider.info(), SemaphoreInfo)


async def summarize(path: str, depth: int = 1) -> int:
    return len(path) * depth


def shout(text: str) -> str:
    return text.upper()


async def paths() -> AsyncIterator[str]:
    yield "a.py"


async def pools(provider: Semaphore, queue: DeadLetterQueue) -> None:
    async with AsyncWorkerPool(4, dlq=queue, retry=RetryPolicy(max_attempts=3), report=True) as pool:
        assert_type(await pool.submit(summarize, "a.py"), TaskResult[int])
        assert_type(await pool.submit(summarize, "a.py", depth=2), TaskResult[int])
        assert_type(await pool.submit(summarize, "a.py", task_id="7"), TaskResult[int])
        assert_type(await pool.submit(shout, "a"), TaskResult[str])
        assert_type(await pool.submit(shout, "a", task_id="7"), TaskResult[str])
        assert_type((await pool.submit(shout, "a")).result, str | None)
        assert_type((await pool.submit(shout, "a")).unwrap(), str)
        assert_type(await pool.map(summarize, ["a.py"]), list[TaskResult[int]])
        assert_type(await pool.map(len, ["a.py"]), list[TaskResult[int]])
        assert_type(
            await pool.map(int, ["1"], lock=lambda text: text.strip(), semaphore=provider), list[TaskResult[int]]
        )
        limiter = RateLimiter("provider", limits={"requests": Rate(100, per=60), "tokens": Rate(50_000, per=60)})
        costs = await pool.map(len, ["1"], rate=limiter, cost=lambda text: {"requests": 1, "tokens": len(text)})
        assert_type(costs, list[TaskResult[int]])
        assert_type(await pool.map(len, ["1"], rate=limiter, cost={"requests": 1}), list[TaskResult[int]])
        assert_type(await pool.map(shout, paths()), list[TaskResult[str]])
        async for result in pool.imap(summarize, paths(), ordered=True):
            assert_type(result, TaskResult[int])
        plain: list[TaskResult] = await pool.map(shout, ["a"])
        assert_type(plain[0].unwrap(), Any)
        assert_type(pool.stats(), PoolStats)
        assert_type(await pool.cluster_stats(), ClusterPoolStats)


dlq = DeadLetterQueue("mail", retry=RetryPolicy(max_attempts=5))


@dlq.handler("send")
async def send(entry: DeadLetter, attempt: Attempt) -> None:
    assert_type(entry.args, dict[str, Any])
    await attempt.checkpoint()
    if attempt.number == 1:
        raise Retry(delay=0.1)
    raise Park("no address")


async def dead_letters(since: datetime) -> None:
    assert_type(await dlq.add(operation="send", args={"to": "ops"}, error="the server was away"), str)
    handle = dlq.worker(concurrency=4)
    assert_type(handle, Worker)
    async with handle as worker:
        await worker.settled()
    assert_type(await dlq.list_entries(since=since, state="parked"), list[DeadLetter])
    async for entry in dlq.entries():
        assert_type(entry, DeadLetter)


async def metrics() -> None:
    async with Metrics(dead_letters=[dlq]) as observed:
        assert_type(observed.serve(port=0), int)
    telemetry.observe(telemetry.Observer())


def blocking(session: sync.Session, queue: sync.DeadLetterQueue) -> None:
    with sync.LockManager(session).acquire("a") as grant:
        assert_type(grant, sync.Grant)
        grant.check()
    with sync.LockManager().acquire_all(["a", "b"]) as grants:
        assert_type(grants, sync.Grants)
    assert_type(sync.DistributedLock("deploy").try_acquire(), sync.Grant | None)
    assert_type(sync.Semaphore("calls", max_concurrent=3).hold(permits=2), sync.Permit)
    with sync.AsyncWorkerPool(4, dlq=queue) as pool:
        assert_type(pool.submit(shout, "a"), TaskResult[str])
        assert_type(pool.submit(summarize, "a.py", depth=2), TaskResult[int])
        assert_type(pool.submit(summarize, "a.py", task_id="7"), TaskResult[int])
        assert_type(pool.map(int, ["1"]), list[TaskResult[int]])
        limiter = sync.RateLimiter("provider", Rate(100, per=60))
        assert_type(pool.map(int, ["1"], rate=limiter, cost=len), list[TaskResult[int]])
        with limiter.reserve(4, timeout=5) as spend:
            assert_type(spend, sync.Spend)
            spend.used(3)
        for result in pool.imap(summarize, ["a.py"]):
            assert_type(result.unwrap(), int)
    with queue.worker() as worker:
        assert_type(worker, sync.Worker)
        worker.settled(timeout=5)
    assert_type(sync.Session(endpoints="http://a:2379", session_ttl=5).deadline(), float)


def forwarded(manager: sync.LockManager, grant: sync.Grant, queue: sync.DeadLetterQueue, since: datetime) -> None:
    """Methods that ``blocking`` makes: a coroutine, an async generator, a plain method."""
    assert_type(manager.locks("file_edit:"), list[LockInfo])
    assert_type(manager.force_release("index", reason="its host is gone", token=7), Owner)
    for event in manager.watch(prefix="file_edit:"):
        assert_type(event, LockEvent)
    assert_type(manager.stats(), LockStats)
    assert_type(grant.put("/files/main.py", "text"), int)
    assert_type(grant.txn(Get(b"/b"), compare=[Compare(b"/a", Target.VERSION, 0)]), TxnResult)
    assert_type(sync.Semaphore("calls", max_concurrent=3).info(), SemaphoreInfo)
    assert_type(queue.add(operation="send", args={"to": "ops"}, error="the server was away"), str)
    assert_type(queue.list_entries(since=since, state="parked"), list[DeadLetter])
    for entry in queue.entries("send", since):
        assert_type(entry, DeadLetter)


async def leading() -> None:
    assert_type(await Election("scheduler").leader(), Leader | None)
    async with Election("scheduler").campaign({"url": "http://a"}) as term, Group("workers").join({"gpu": 1}) as member:
        assert_type(term, Term)
        assert_type(member, Membership)
        assert_type(term.grant, Grant)
    async for leader in Election("scheduler").observe():
        assert_type(leader, Leader)
    async for event in Group("workers").watch():
        assert_type(event.member, Member)
    with sync.Election("scheduler").campaign(timeout=5) as term_here, sync.Group("workers").join() as member_here:
        assert_type(term_here, sync.Term)
        assert_type(member_here, sync.Membership)
    for leader in sync.Election("scheduler").observe():
        assert_type(leader, Leader)
    assert_type(sync.Group("workers").members(), tuple[Member, ...])
