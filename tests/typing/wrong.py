"""Wrong uses, each of which both type checkers must refuse: one that they let pass is an error of ``make lint``."""

from __future__ import annotations

from codomyrmex.concurrency import AsyncWorkerPool, DeadLetterQueue, EtcdSettings, LockManager, Semaphore, Session, sync


async def measure(path: str) -> int:
    return len(path)


async def wrong(pool: AsyncWorkerPool, manager: LockManager) -> None:
    EtcdSettings(endpoint="http://a:2379")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    EtcdSettings(session_ttl="5")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Session(endpoints=2379)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Session(ttl=5)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    sync.Session(ttl=5)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    Semaphore("provider")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    DeadLetterQueue("mail").worker().settled_now  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    await pool.submit(measure, 7)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    await pool.submit(measure, "a", depth=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await pool.map(measure, [7])  # type: ignore[arg-type]  # pyright: ignore[reportCallIssue, reportArgumentType]
    text: str = (await pool.submit(measure, "a")).unwrap()  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    print(text)
    async with manager.acquire("a", timeout="5") as grant:  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        print(grant)
    sync.LockManager().locks(7)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    sync.LockManager().force_release("a")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await sync.LockManager().locks()  # type: ignore[misc]  # pyright: ignore[reportGeneralTypeIssues]
    sync.DeadLetterQueue("mail").entries(operation=7)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    with manager.acquire("a"):  # type: ignore[attr-defined]  # pyright: ignore[reportGeneralTypeIssues]
        pass
