"""A member of a fleet in a process of its own: it says what happens to it, one JSON object a line.

python -m tests.integration.agent ENDPOINT NAMESPACE ROLE [NAME] [ARGUMENT]
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time

from codomyrmex.concurrency import DistributedLock, FencedWriteRejected, LockLost, Session
from codomyrmex.concurrency.session import core_of


def say(**what: object) -> None:
    print(json.dumps({"at": time.monotonic(), "pid": os.getpid(), **what}), flush=True)


async def once(session: Session, name: str, argument: str) -> None:
    """Wait for the lock once, say so, and let go."""
    say(event="ready")
    async with DistributedLock(name, session) as grant:
        say(event="granted", token=grant.token)
        await asyncio.sleep(float(argument or 0))
        say(event="releasing", token=grant.token)


async def hold(session: Session, name: str, argument: str) -> None:
    """Hold, with the hold options given as JSON, until killed or told of a loss; then try a late fenced write."""
    key = f"/{core_of(session).layout.namespace}/register"
    try:
        async with DistributedLock(name, session, **json.loads(argument or "{}")) as grant:
            say(event="granted", token=grant.token)
            await grant.put(key, str(grant.token))
            await asyncio.sleep(60)
    except LockLost as error:
        say(event="lost", reason=str(error))
        try:
            await grant.put(key, "late")
            say(event="late write committed")
        except FencedWriteRejected:
            say(event="late write refused")


async def block(session: Session, name: str, argument: str) -> None:
    """Hold the lock and block the event loop for some seconds, half asleep and half computing."""
    async with DistributedLock(name, session) as grant:
        say(event="granted", token=grant.token)
        time.sleep(float(argument) / 2)
        end = time.monotonic() + float(argument) / 2
        while time.monotonic() < end:
            sum(range(10_000))
        await grant.put(f"/{core_of(session).layout.namespace}/register", "still mine")
        say(event="still held", lost=grant.lost.is_set(), deadline=grant.deadline())


async def exceed(session: Session, name: str, argument: str) -> None:
    """Hold for a second at most, but block the event loop for longer; then go on as a member of the fleet."""
    try:
        async with DistributedLock(name, session, max_hold=1) as grant:
            say(event="granted", token=grant.token)
            time.sleep(float(argument))
            await asyncio.sleep(60)
    except LockLost as error:
        say(event="lost", reason=str(error), alive=session.alive)
        async with DistributedLock(name, session) as grant:
            say(event="granted", token=grant.token)


async def report(session: Session, name: str, argument: str) -> None:
    """Report progress some times, then none; sleep, or block the event loop, for five seconds; then report too late."""
    told = json.loads(argument)
    try:
        async with DistributedLock(name, session, max_idle=told["max_idle"]) as grant:
            say(event="granted", token=grant.token)
            for number in range(told["reports"]):
                await asyncio.sleep(told["every"])
                await grant.progress(f"step {number}")
            say(event="silent", token=grant.token)
            if told["blocks"]:
                time.sleep(5)
            await asyncio.sleep(5)
    except LockLost as error:
        say(event="lost", reason=str(error), alive=session.alive)
        try:
            await grant.progress("late")
            say(event="late progress counted")
        except FencedWriteRejected:
            say(event="late progress refused")


async def cycles(session: Session, name: str, argument: str) -> None:
    """Take turns at the lock, with an unguarded counter as the witness of exclusion."""
    key = f"/{core_of(session).layout.namespace}/counter"
    say(event="ready")
    lock = DistributedLock(name, session)
    for _ in range(int(argument)):
        async with lock as grant:
            count = int(await grant.get(key) or b"0")
            await grant.put(key, str(count + 1))
            say(event="counted", token=grant.token, count=count + 1)


ROLES = {"once": once, "hold": hold, "block": block, "exceed": exceed, "report": report, "cycles": cycles}


async def main() -> None:
    endpoint, namespace, role, name, argument, *_ = [*sys.argv[1:], "", ""]
    async with Session(endpoints=endpoint, namespace=namespace, session_ttl=3) as session:
        say(event="session", id=session.id)
        await ROLES[role](session, name, argument)


if __name__ == "__main__":
    asyncio.run(main())
