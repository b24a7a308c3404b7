"""The cost of one more disjoint request in a tree, by the number of its live entries: ``python -m benchmarks.paths``.

One session acquires and releases paths of its own, one after the other, beside the entries of another session.
"""

from __future__ import annotations

import asyncio
import resource
import time
import uuid
from statistics import median

from benchmarks.ours import NAMESPACE
from codomyrmex.concurrency import EmbeddedEtcd, LockManager, Session

SIZES = (10, 100, 1_000)
CYCLES = 200
ROUNDS = 5


async def cost(endpoint: str, entries: int) -> dict[str, float]:
    """Milliseconds of one cycle of acquire and release beside so many live entries: on the clock, and of this
    process's CPU."""
    tree = uuid.uuid4().hex
    async with (
        Session(endpoints=endpoint, namespace=NAMESPACE) as holders,
        Session(endpoints=endpoint, namespace=NAMESPACE) as session,
    ):
        several = LockManager(holders)
        held = await asyncio.gather(
            *(
                several.acquire_paths([f"src/package_{n}/", f"tests/test_{n}.py"], tree=tree)._first()
                for n in range(entries)
            )
        )
        manager = LockManager(session)
        rounds = []
        for _ in range(ROUNDS):
            began, used = time.perf_counter(), _cpu()
            for number in range(CYCLES):
                async with manager.acquire_paths([f"docs/page_{number}.md"], tree=tree):
                    pass
            rounds.append((time.perf_counter() - began, _cpu() - used))
        await asyncio.gather(*(several.release(grant) for grant in held))
    return {name: median(one[n] for one in rounds) * 1000 / CYCLES for n, name in enumerate(("wall ms", "cpu ms"))}


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def main() -> None:
    async with EmbeddedEtcd() as etcd:
        await cost(etcd.endpoint, 1)
        for entries in SIZES:
            found = await cost(etcd.endpoint, entries)
            print(f"{entries:5} live entries: " + ", ".join(f"{name} {value:.2f}" for name, value in found.items()))


if __name__ == "__main__":
    asyncio.run(main())
