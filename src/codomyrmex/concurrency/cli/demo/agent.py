"""One agent of the demo, which runs in a process of its own.

    python -m codomyrmex.concurrency.cli.demo.agent NAME ROLE [ARGUMENT...]

It reports its steps on stdout, one JSON object a line. The roles:

- ``worker EDITS FILE...`` edits files, each under its lock.
- ``stuck FILE`` takes a file's lock and keeps it, so that the demo can kill or stop a holder.
- ``host`` maps items through a pool. After a line on stdin, it retries dead letters.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from pathlib import Path
from typing import Any

from codomyrmex.concurrency import (
    AsyncWorkerPool,
    Attempt,
    DeadLetter,
    DeadLetterQueue,
    DistributedLock,
    FencedWriteRejected,
    Grant,
    LockLost,
    Semaphore,
    Session,
)
from codomyrmex.concurrency.cli.demo.pools import ITEMS, LIMIT
from codomyrmex.concurrency.cli.demo.stage import logged_by


def say(event: str, **what: Any) -> None:
    """Report a step on stdout."""
    print(json.dumps({"event": event, **what}), flush=True)  # noqa: T201


async def edit(name: str, file: Path, grant: Grant) -> None:
    """Read a file, wait, and write it. Without the lock, agents would overwrite each other's lines."""
    text = await asyncio.to_thread(file.read_text)
    await asyncio.sleep(random.uniform(0.02, 0.08))
    await asyncio.to_thread(file.write_text, f"{text}{grant.token} {name}\n")
    await grant.put(f"/codomyrmex/demo/{file.name}", str(grant.token))


async def work(session: Session, name: str, edits: int, files: list[Path]) -> None:
    """Make ``edits`` edits, each of a random file under its lock."""
    for _ in range(edits):
        file = random.choice(files)
        async with DistributedLock(f"file_edit:{file.name}", session, metadata={"agent": name}) as grant:
            await edit(name, file, grant)
            say("edited", agent=name, file=file.name, token=grant.token, waited=round(grant.waited, 3))


async def hold(session: Session, name: str, file: Path) -> None:
    """Keep the lock of ``file``. If it is lost, try a late write, which etcd must refuse."""
    grant = None
    try:
        async with DistributedLock(f"file_edit:{file.name}", session, metadata={"agent": name}) as grant:
            say("holding", agent=name, file=file.name, token=grant.token)
            await asyncio.sleep(3600)
    except LockLost as error:
        say("lost", agent=name, file=file.name, reason=str(error))
        assert grant
        try:
            await grant.put(f"/codomyrmex/demo/{file.name}", "late")
            say("overwrote", agent=name, file=file.name)
        except FencedWriteRejected:
            say("refused", agent=name, file=file.name, token=grant.token)


async def analyse(item: int) -> None:
    """Call a provider that is overloaded now and then."""
    since = time.monotonic()
    await asyncio.sleep(0.15)
    failed = item % 7 == 3
    say("called", item=item, since=since, until=time.monotonic(), failed=failed)
    if failed:
        raise ConnectionError("503: the provider is overloaded")


async def host(session: Session, name: str) -> None:
    """Map items through a pool; then retry the failed ones."""
    provider = Semaphore("provider", max_concurrent=LIMIT, session=session)
    first = ITEMS * (int(name.rpartition("-")[2]) - 1)
    async with (
        DeadLetterQueue("analysis", session=session) as queue,
        AsyncWorkerPool(4, name="analysis", session=session, report=0.3, dlq=queue) as pool,
    ):

        @queue.handler(AsyncWorkerPool.operation_of(analyse))
        async def retry(entry: DeadLetter, attempt: Attempt) -> None:
            async with provider:
                await asyncio.sleep(0.15)
                say("retried", item=entry.args["args"][0], attempt=attempt.number)

        await pool.map(analyse, range(first, first + ITEMS), semaphore=provider)
        say("mapped")
        await asyncio.to_thread(sys.stdin.readline)
        async with queue.worker(concurrency=1) as worker:
            await worker.settled()


async def main() -> None:
    """Play the role that the command line names."""
    name, role, *arguments = sys.argv[1:]
    logged_by(lambda text: say("logged", text=text))
    async with Session() as session:
        if role == "host":
            await host(session, name)
        elif role == "stuck":
            await hold(session, name, Path(arguments[0]))
        else:
            await work(session, name, int(arguments[0]), [Path(path) for path in arguments[1:]])


if __name__ == "__main__":
    asyncio.run(main())
