"""A process that holds a lock and writes under it, over and over: ``python -m tests.integration.holder NAME``.

It begins at the first endpoint of its settings. It prints ``holds``, then the time of each write that was applied, on
the clock that all processes share, and ``lost`` when the lock is lost.
"""

from __future__ import annotations

import asyncio
import sys
import time

from codomyrmex.concurrency import DistributedLock, EtcdUnavailable, LockLost, Session, SessionLost
from tests.helpers import begin_at_the_first


async def main(name: str) -> None:
    begin_at_the_first()
    async with Session() as session:
        grant = await DistributedLock(name, session, on_loss="notify").acquire()
        print("holds", flush=True)
        while not grant.lost.is_set():
            try:
                await grant.put(f"/written/{name}", "x")
                print(time.monotonic(), flush=True)
            except EtcdUnavailable as error:
                print(error, file=sys.stderr, flush=True)
            except (LockLost, SessionLost):
                break
            await asyncio.sleep(0.02)
        print("lost", flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
