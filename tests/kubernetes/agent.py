"""A client in a pod, for the tests: it takes locks, writes under them, and tells each hold and gap as a line of JSON.

    python agent.py steady LOCK            hold one lock until SIGTERM, and write under it ten times a second
    python agent.py turns LOCK...          take these locks by turns, each for a moment
    python agent.py wait LOCK              take one lock when it is free, and hold it until SIGTERM

Times are those of the monotonic clock, which all pods of the lab share.
"""

import asyncio
import json
import random
import signal
import socket
import sys
import time

from codomyrmex.concurrency import ConcurrencyError, DistributedLock, Grant, Session

GAP = 0.5  # seconds; a write that takes longer is told
ME = socket.gethostname()


def tell(kind: str, **facts: object) -> None:
    print(json.dumps({"kind": kind, "who": ME, "at": time.monotonic(), **facts}), flush=True)


async def write(grant: Grant, key: str) -> None:
    """Write under the grant, and tell how long it took if that is long."""
    began = time.monotonic()
    error = ""
    try:
        await asyncio.wait_for(grant.put(key, str(began)), 20)
    except (ConcurrencyError, TimeoutError) as failed:
        error = f"{type(failed).__name__}: {failed}"[:400]
    if error or time.monotonic() - began > GAP:
        tell("gap", seconds=time.monotonic() - began, error=error)


async def hold(session: Session, name: str, seconds: float, ending: asyncio.Event) -> None:
    """Take a lock, write under it for some time, and tell the hold as this process believed in it."""
    asked = time.monotonic()
    lock = DistributedLock(name, session)
    async with lock as grant:
        since = time.monotonic()
        tell("granted", lock=name, token=grant.token, waited=since - asked)
        until = since + seconds
        try:
            while time.monotonic() < until and not ending.is_set():
                await write(grant, f"/codomyrmex/probe/{name}")
                await asyncio.sleep(0.1)
        finally:  # a loss cancels the block
            lost = grant.lost.is_set()
            tell("hold", lock=name, token=grant.token, since=since, until=time.monotonic(), lost=lost)


async def live(session: Session, mode: str, names: list[str], ending: asyncio.Event) -> None:
    while not ending.is_set() and not session.lost.is_set():
        seconds = random.uniform(0.1, 0.4) if mode == "turns" else float("inf")
        await hold(session, random.choice(names), seconds, ending)


async def main(mode: str, names: list[str]) -> None:
    ending = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ending.set)
    while not ending.is_set():
        try:
            async with Session() as session:
                tell("session")
                life = asyncio.create_task(live(session, mode, names, ending))
                end = asyncio.create_task(ending.wait())
                await asyncio.wait((life, end), return_when=asyncio.FIRST_COMPLETED)
                if not life.done():  # a step at hand ends by itself; a wait does not
                    await asyncio.wait((life,), timeout=1)
                    life.cancel()
                end.cancel()
                await asyncio.gather(life, return_exceptions=True)
                if life.done() and not life.cancelled() and (error := life.exception()):
                    raise error
        except ConcurrencyError as error:
            tell("failed", error=f"{type(error).__name__}: {error}"[:400])
            await asyncio.sleep(0.5)
    tell("ended")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2:]))
