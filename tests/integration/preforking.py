"""A process that uses etcd, forks without exec, and goes on: ``python -m tests.integration.preforking KIND ROLE``.

KIND is ``async`` (a session in a coroutine, which forks), ``blocking`` (the blocking twin in a main program, as
gunicorn and Celery fork workers) or ``exit`` (a child that does nothing and ends by sys.exit). ROLE is that of the
children: ``work``, or ``refused`` if they cannot use etcd and only tell the error that they get. The settings come from
the environment. The process prints a JSON object for each child and for what happens to itself.
"""

from __future__ import annotations

import asyncio
import gc
import json
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from codomyrmex.concurrency import ConcurrencyError, DistributedLock, Grant, Session, sync

FORKED = 8  # children at once; every second one ends by sys.exit
TTL = 3  # seconds


def tell(**told: Any) -> None:
    os.write(1, json.dumps(told).encode() + b"\n")


# A child


async def own_locks(number: int) -> None:
    """A session of the child's own: a lock of its own and one that all children take in turn."""
    async with Session() as session:
        async with DistributedLock(f"child-{number}", session) as grant:
            await grant.put(f"/preforked/{number}", "x")
        async with DistributedLock("shared", session, on_loss="notify"):
            await asyncio.sleep(0.01)


def own_blocking_locks(number: int) -> None:
    with sync.Session() as session:
        with sync.DistributedLock(f"child-{number}", session) as grant:
            grant.put(f"/preforked/{number}", "x")
        with sync.DistributedLock("shared", session, on_loss="notify"):
            time.sleep(0.01)


def refusal(attempt: Callable[[], object]) -> str:
    """The kind of the error that ``attempt`` raises."""
    try:
        attempt()
    except ConcurrencyError as error:
        return type(error).__name__
    return ""


def work(number: int, inherited: Any, role: str, blocking: bool) -> None:
    """The work of a child: the inherited session refuses it, and one of its own does not."""
    if role == "refused":
        gc.disable()  # gRPC's leftovers may crash the child
        tell(child=number, own=refusal(lambda: Session().open().send(None)))
        return
    old = refusal(inherited.open if blocking else lambda: inherited.open().send(None))
    use = own_blocking_locks if blocking and number % 4 < 2 else lambda number: asyncio.run(own_locks(number))
    try:
        use(number)
        tell(child=number, inherited=old, own="")
    except BaseException as error:
        tell(child=number, inherited=old, own=f"{type(error).__name__}: {error}")


# The parent


def connections() -> list[str]:
    """The local ports of this process's established connections, of which only those to etcd exist."""
    inodes = set()
    for file in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            inodes.add(os.readlink(f"/proc/self/fd/{file}").removeprefix("socket:[").removesuffix("]"))
    rows = []
    for table in ("tcp", "tcp6"):
        rows += [line.split() for line in Path("/proc/self/net", table).read_text().splitlines()[1:]]
    return sorted(row[1] for row in rows if row[9] in inodes and row[3] == "01")


def fork(inherited: Any, role: str, blocking: bool) -> list[int]:
    """Fork the children, all before one is waited for."""
    children = []
    for number in range(FORKED):
        child = os.fork()
        if child == 0:
            work(number, inherited, role, blocking)
            if blocking and number % 2:
                sys.exit(0)  # the interpreter ends in order, with all that it has inherited
            os._exit(0)
        children.append(child)
    return children


def spread(inherited: Any, role: str, blocking: bool) -> list[Any]:
    """Two children of multiprocessing."""
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=work, args=(FORKED + number, inherited, role, blocking)) for number in (0, 1)]
    for child in children:
        child.start()
    return children


def wait(children: list[int], processes: list[Any]) -> list[int]:
    """Wait for all children, and return their exit codes."""
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    for process in processes:
        process.join()
    return codes + [process.exitcode for process in processes]


async def prefork(role: str) -> None:
    async with Session(session_ttl=TTL) as session:
        async with DistributedLock("parent", session, on_loss="notify") as grant:
            signal = asyncio.create_task(DistributedLock("signal", session).acquire())
            await asyncio.sleep(TTL / 2)  # by now the keepalive has its connection
            before = connections()
            children, processes = fork(session, role, False), spread(session, role, False)
            meanwhile = asyncio.create_task(write(grant))
            codes = await asyncio.to_thread(wait, children, processes)
            await asyncio.sleep(TTL + 0.5)
            meanwhile.cancel()
            lost, alive, after = grant.lost.is_set(), session.alive, connections()
            tell(event="waiting")
            await asyncio.wait_for(signal, 10)
            tell(event="signalled", lost=lost, alive=alive, codes=codes, before=before, after=after)
        await asyncio.wait((meanwhile,))


async def write(grant: Grant) -> None:
    """Write under the lock over and over; the first failure is told, and ends the program's success."""
    try:
        while True:
            await asyncio.wait_for(grant.put("/preforked/parent", "x"), 2)
            await asyncio.sleep(0.01)
    except (ConcurrencyError, TimeoutError) as error:
        tell(event="failed", error=f"{type(error).__name__}: {error}")


def prefork_blocking(role: str) -> None:
    with sync.Session(session_ttl=TTL) as session, sync.DistributedLock("parent", session, on_loss="notify") as grant:
        granted = threading.Event()

        def acquire() -> None:
            sync.DistributedLock("signal", session).acquire()
            granted.set()

        waiting = threading.Thread(target=acquire, daemon=True)
        waiting.start()
        time.sleep(TTL / 2)  # by now the keepalive has its connection
        before = connections()
        children, processes = fork(session, role, True), spread(session, role, True)
        codes = wait(children, processes)
        end = time.monotonic() + TTL + 0.5
        while time.monotonic() < end:
            grant.put("/preforked/parent", "x")
        lost, alive, after = grant.lost.is_set(), session.alive, connections()
        tell(event="waiting")
        granted.wait(10)
        tell(event="signalled", lost=lost, alive=alive, codes=codes, before=before, after=after)


def child_that_exits() -> None:
    with sync.Session(session_ttl=TTL):
        began = time.monotonic()
        child = os.fork()
        if child == 0:
            sys.exit(0)
        os.waitpid(child, 0)
        tell(event="ended", seconds=time.monotonic() - began)


if __name__ == "__main__":
    if sys.argv[1] == "async":
        asyncio.run(prefork(sys.argv[2]))
    elif sys.argv[1] == "exit":
        child_that_exits()
    else:
        prefork_blocking(sys.argv[2])
