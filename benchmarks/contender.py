"""One process at locks: ``python -m benchmarks.contender KIND ENDPOINT NAME…``, a task or a thread for each name.

It says it is ready, is told when to start and stop, and answers with every grant that each of them got in between.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from importlib import import_module

OURS = "benchmarks.ours"
KINDS = {
    "lock": OURS,
    "semaphore": OURS,
    "aetcd": "benchmarks.peers.aetcd",
    "python-etcd3": "benchmarks.peers.etcd3",
    "kazoo": "benchmarks.peers.kazoo",
    "redis-py": "benchmarks.peers.redis",
}
"""A kind of lock, and the module whose function of that kind's name, ``locks`` for peers, opens them."""

Grants = list[dict[str, float]]
_THREADED = {"python-etcd3", "kazoo"}


def main(kind: str, endpoint: str, *names: str) -> None:
    kind, _, loop = kind.partition("+")
    module = import_module(KINDS[kind])
    opened = getattr(module, f"{kind}s" if KINDS[kind] == OURS else "locks")(endpoint, names)
    if kind in _THREADED:
        grants = _threads(opened)
    else:
        factory = import_module("uvloop").new_event_loop if loop == "uvloop" else None
        with asyncio.Runner(loop_factory=factory) as runner:
            grants = runner.run(_tasks(opened))
    print(json.dumps(grants), flush=True)


async def _tasks(opened: AbstractAsyncContextManager[Sequence[AbstractAsyncContextManager[object]]]) -> list[Grants]:
    async def repeat(lock: AbstractAsyncContextManager[object]) -> Grants:
        own = []
        while (asked := time.monotonic()) < stop:
            async with lock:
                if (now := time.monotonic()) < stop:
                    own.append({"at": now, "waited": now - asked})
        return own

    async with opened as locks:
        for lock in locks:
            async with lock:  # warms up
                pass
        start, stop = await asyncio.to_thread(_times)
        await asyncio.sleep(start - time.monotonic())
        return await asyncio.gather(*map(repeat, locks))


def _threads(opened: AbstractContextManager[Sequence[AbstractContextManager[object]]]) -> list[Grants]:
    def repeat(lock: AbstractContextManager[object], own: Grants) -> None:
        while (asked := time.monotonic()) < stop:
            with lock:
                if (now := time.monotonic()) < stop:
                    own.append({"at": now, "waited": now - asked})

    with opened as locks:
        for lock in locks:
            with lock:
                pass
        grants: list[Grants] = [[] for _ in locks]
        start, stop = _times()
        time.sleep(max(0.0, start - time.monotonic()))
        threads = [threading.Thread(target=repeat, args=pair) for pair in zip(locks, grants, strict=True)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return grants


def _times() -> tuple[float, float]:
    print("ready", flush=True)
    start, stop = map(float, sys.stdin.readline().split())
    return start, stop


if __name__ == "__main__":
    main(*sys.argv[1:])
