"""An agent of a fleet: takes its turn at files until it is told to end, and gives back what it holds before it does.

SIGTERM ends it after the file at hand: leaving the session's block releases everything and revokes the lease. It has
`terminationGracePeriodSeconds` for that; liveness is its own loop's, never etcd's: a pod that is restarted because etcd
is away helps nobody.
"""

import asyncio
import os
import random
import signal
import socket
from pathlib import Path

from codomyrmex.concurrency import ConcurrencyError, LockManager, Session
from codomyrmex.concurrency.prometheus import Metrics

ALIVE = Path(os.environ.get("AGENT_ALIVE_FILE", "/tmp/alive"))
METRICS = os.environ.get("AGENT_METRICS_ADDRESS", "127.0.0.1")  # in a pod: 0.0.0.0, behind its network policy
FILES = [f"file_edit:module_{number}.py" for number in range(5)]


async def work(ending: asyncio.Event) -> None:
    while not ending.is_set():
        try:
            async with Session() as session:
                manager = LockManager(session)
                while not ending.is_set() and not session.lost.is_set():
                    async with manager.acquire(random.choice(FILES), timeout=30) as grant:
                        print(f"{socket.gethostname()} edits {grant.name} with token {grant.token}", flush=True)
                        await asyncio.sleep(random.uniform(0.5, 2))
        except ConcurrencyError as error:
            print(f"{socket.gethostname()}: {error}", flush=True)
            await asyncio.sleep(1)


async def beat() -> None:
    while True:
        ALIVE.touch()
        await asyncio.sleep(5)


async def main() -> None:
    ending = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ending.set)
    async with Metrics() as metrics:
        metrics.serve(int(os.environ.get("AGENT_METRICS_PORT", "9464")), METRICS)
        beating = asyncio.create_task(beat())
        await work(ending)
        beating.cancel()


if __name__ == "__main__":
    asyncio.run(main())
