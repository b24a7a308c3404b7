"""An agent of a fleet: it edits files, one at a time, and holds a file's lock while it edits.

SIGTERM ends a wait at once. An edit that has begun is finished first. Then the agent releases its lock and revokes its
lease, so that the next agent need not wait for the end of the lease. All of this takes at most ``EDIT_LIMIT`` seconds
and a few more for etcd's answers; ``terminationGracePeriodSeconds`` must be longer.

An error of etcd, or a lock that is not granted in time, does not end the session. Only the loss of its lease does.

The probes read two files, and none of them asks etcd: the agent touches one every few seconds (alive), the other when
its first session opens (ready). A restart of the agent does not help when etcd is away.
"""

import asyncio
import os
import random
import signal
import socket
from pathlib import Path

from codomyrmex.concurrency import ConcurrencyError, Grant, LockManager, Session
from codomyrmex.concurrency.prometheus import Metrics

ALIVE = Path(os.environ.get("AGENT_ALIVE_FILE", "/tmp/alive"))
READY = Path(os.environ.get("AGENT_READY_FILE", "/tmp/ready"))
METRICS = os.environ.get("AGENT_METRICS_ADDRESS", "127.0.0.1")  # 0.0.0.0 in a pod, where a NetworkPolicy guards it
FILES = [f"file_edit:module_{number}.py" for number in range(5)]
WAIT_LIMIT = 30.0  # seconds to wait for one file before the agent tries another
EDIT_LIMIT = 20.0  # seconds; a longer edit is cancelled
PAUSE = 1.0  # seconds after an error


def say(text: str) -> None:
    print(f"{socket.gethostname()}: {text}", flush=True)


async def edit(grant: Grant) -> None:
    """The work under the lock; yours replaces this."""
    say(f"edits {grant.name} with token {grant.token}")
    await asyncio.sleep(random.uniform(0.5, 2))


class Agent:
    def __init__(self) -> None:
        self._editing = False
        self._ending = False
        self._task = asyncio.current_task()

    def end(self) -> None:
        """Cancel every wait; an edit goes on to its end."""
        first, self._ending = not self._ending, True
        if first and not self._editing and self._task:
            self._task.cancel()

    async def run(self) -> None:
        while not self._ending:
            try:
                async with Session() as session:
                    READY.touch()
                    await self._edit_files(session)
                    error = session.lost.reason
            except ConcurrencyError as problem:
                error = problem
            if not self._ending:
                say(f"{error}; opens a new session in {PAUSE:g} s")
                await asyncio.sleep(PAUSE)

    async def _edit_files(self, session: Session) -> None:
        manager = LockManager(session)
        while not self._ending and not session.lost.is_set():
            try:
                await self._edit_one(manager, random.choice(FILES))
            except ConcurrencyError as error:
                if not self._ending and not session.lost.is_set():
                    say(f"{error}; tries the next file in {PAUSE:g} s")
                    await asyncio.sleep(PAUSE)

    async def _edit_one(self, manager: LockManager, name: str) -> None:
        try:
            async with manager.acquire(name, timeout=WAIT_LIMIT) as grant:
                self._editing = True
                async with asyncio.timeout(EDIT_LIMIT):
                    await edit(grant)
        except TimeoutError:
            if not self._editing:  # the lock was not granted in time
                raise
            say(f"the edit of {name} took longer than {EDIT_LIMIT:g} s; it is cancelled")
        finally:
            self._editing = False  # only now: the release belongs to the edit


async def beat() -> None:
    while True:
        ALIVE.touch()
        await asyncio.sleep(5)


async def main() -> None:
    READY.unlink(missing_ok=True)  # left by an earlier container of this pod
    agent = Agent()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, agent.end)
    async with Metrics() as metrics:
        metrics.serve(int(os.environ.get("AGENT_METRICS_PORT", "9464")), METRICS)
        beating = asyncio.create_task(beat())
        try:
            await agent.run()
        except asyncio.CancelledError:
            say("ended while it waited")
        finally:
            beating.cancel()


if __name__ == "__main__":
    asyncio.run(main())
