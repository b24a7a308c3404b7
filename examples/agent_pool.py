"""A fleet shares three agents: whoever asks gets one that is free, or waits for it. Run it with an etcd around it:

codomyrmex concurrency dev -- python examples/agent_pool.py

Four processes check out agents at the same time. One of them is killed while it has an agent, which comes back when
the lease of that process ends.
"""

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import pairwise

from codomyrmex.concurrency import DistributedLock, Semaphore, Session

AGENTS = ("coder-1", "coder-2", "reviewer-1")
PROCESSES = 4
TASKS = 4


class AgentPool:
    """Agents by name; the semaphore says that one is free, the lock of each says which."""

    def __init__(self, agents: Sequence[str], session: Session | None = None) -> None:
        self._agents = agents
        self._session = session
        self._free = Semaphore("agents", max_concurrent=len(agents), session=session)

    @asynccontextmanager
    async def checkout(self, timeout: float | None = None) -> AsyncIterator[str]:
        async with self._free.hold(timeout=timeout):
            lock = await self._take_one()
            try:
                yield lock.name.removeprefix("agent:")
            finally:
                await lock.release()

    async def _take_one(self) -> DistributedLock:
        while True:
            for agent in self._agents:
                lock = DistributedLock(f"agent:{agent}", self._session)
                if await lock.try_acquire():
                    return lock


async def work(killed: bool) -> None:
    """Use an agent for each task and print when that was."""
    async with Session(session_ttl=2) as session:
        pool = AgentPool(AGENTS, session)
        for _ in range(TASKS):
            async with pool.checkout() as agent:
                began = time.monotonic()
                await asyncio.sleep(0.02)
                print(json.dumps((agent, began, time.monotonic())), flush=True)
                if killed:
                    os.kill(os.getpid(), signal.SIGKILL)


async def uses(*arguments: str) -> list[tuple[str, float, float]]:
    """The output of a process."""
    process = await asyncio.create_subprocess_exec(sys.executable, __file__, *arguments, stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    print(f"a process that {arguments[0]} ended with {process.returncode}")
    return [tuple(json.loads(line)) for line in output.splitlines()]


async def main() -> None:
    found = await asyncio.gather(uses("is killed"), *(uses("works") for _ in range(PROCESSES - 1)))
    every = sorted(use for process in found for use in process)
    if any(agent == other and ended > began for (agent, _, ended), (other, began, _) in pairwise(every)):
        raise SystemExit("an agent was used twice at once")
    print(f"{len(every)} uses, no agent used twice at once")
    pool = AgentPool(AGENTS)
    async with AsyncExitStack() as stack:
        back = [await stack.enter_async_context(pool.checkout(timeout=10)) for _ in AGENTS]
        print("all agents are back:", ", ".join(sorted(back)))


if __name__ == "__main__":
    asyncio.run(work(sys.argv[1] == "is killed") if sys.argv[1:] else main())
