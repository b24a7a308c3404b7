"""A requester in a process of its own: it holds one thing, and waits for another one when it is told to.

python -m tests.integration.requester ENDPOINT NAMESPACE NAME HOLDS WAITS DEADLOCK

HOLDS and WAITS are things such as ``lock:a``. It says ``holding``, reads a line, and says how its wait ended, one JSON
object a line. Then it lets go of everything.
"""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import AbstractAsyncContextManager
from typing import Any

from codomyrmex.concurrency import Deadlock, LockManager, Semaphore, Session
from codomyrmex.concurrency.recipes.acquire import OnDeadlock


def say(**what: object) -> None:
    print(json.dumps(what), flush=True)


def acquisition(
    session: Session, agent: str, thing: str, *, deadlock: OnDeadlock, waits: bool, reserves: bool
) -> AbstractAsyncContextManager[Any]:
    """The holder of a thing has it as a reader, or all of it, and its waiter wants it as a writer, or a part."""
    manager = LockManager(session)
    kind, name = thing.split(":")
    me: dict[str, Any] = {"metadata": {"agent": agent}, "deadlock": deadlock}
    paths = ["src/x.py" if waits else "src/"]
    if kind == "reservation" or reserves:
        names, also = ((), paths) if kind == "paths" else ((name,), ())
        return manager.reserve(*names, paths=also, tree=name, ttl=60, owner=agent, deadlock=deadlock)
    if kind == "paths":
        return manager.acquire_paths(paths, tree=name, **me)
    if kind == "semaphore":
        return Semaphore(name, max_concurrent=2, session=session, **me).hold(permits=1 if waits else 2)
    return manager.acquire(name, shared=kind == "readers" and not waits, **me)


async def main() -> None:
    endpoint, namespace, agent, first, second, deadlock = sys.argv[1:]
    option: OnDeadlock = "fail" if deadlock == "fail" else "report"
    async with Session(endpoints=endpoint, namespace=namespace, session_ttl=3) as session:
        reserves = first.startswith("reservation")
        async with acquisition(session, agent, first, deadlock=option, waits=False, reserves=False):
            say(event="holding")
            await asyncio.to_thread(sys.stdin.readline)
            try:
                async with acquisition(session, agent, second, deadlock=option, waits=True, reserves=reserves):
                    say(event="granted")
            except Deadlock as error:
                say(event="deadlock", text=str(error), cycle=[edge.waiter.label for edge in error.cycle])


if __name__ == "__main__":
    asyncio.run(main())
