"""One process of the contended case: ``python -m benchmarks.contender ENDPOINT KIND NAME``.

It says it is ready, is told when to start and stop, and answers with every grant it got in between.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

from benchmarks.ours import NAMESPACE
from codomyrmex.concurrency import DistributedLock, Semaphore, Session


async def contend(endpoint: str, kind: str, name: str) -> list[dict[str, float]]:
    grants: list[dict[str, float]] = []
    async with Session(endpoints=endpoint, namespace=NAMESPACE) as session:
        lock = (
            DistributedLock(name, session)
            if kind == "lock"
            else Semaphore(name, max_concurrent=1, session=session)  # to be compared with the lock
        )
        async with lock:  # warms up
            pass
        print("ready", flush=True)
        start, stop = map(float, (await asyncio.to_thread(sys.stdin.readline)).split())
        await asyncio.sleep(start - time.monotonic())
        while (asked := time.monotonic()) < stop:
            async with lock as grant:
                now = time.monotonic()
                if now < stop:
                    grants.append({"token": grant.token, "waited": now - asked})
    return grants


if __name__ == "__main__":
    print(json.dumps(asyncio.run(contend(*sys.argv[1:]))), flush=True)
