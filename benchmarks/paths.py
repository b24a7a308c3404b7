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
from codomyrmex.concurrency.etcd.transports.protocol import Put
from codomyrmex.concurrency.keys import PATH
from codomyrmex.concurrency.session import core_of
from codomyrmex.concurrency.session_core import SessionCore
from codomyrmex.concurrency.waitqueue.scopes import Scopes

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
        await _hold(core_of(holders), tree, entries)
        manager = LockManager(session)
        rounds = []
        for _ in range(ROUNDS):
            began, used = time.perf_counter(), _cpu()
            for number in range(CYCLES):
                async with manager.acquire_paths([f"docs/page_{number}.md"], tree=tree):
                    pass
            rounds.append((time.perf_counter() - began, _cpu() - used))
    return {name: median(one[n] for one in rounds) * 1000 / CYCLES for n, name in enumerate(("wall ms", "cpu ms"))}


async def _hold(core: SessionCore, tree: str, entries: int) -> None:
    """Put the entries as holders do. Real ones would do work of their own in this process."""
    queue = core.layout.queue(tree, PATH)
    for number in range(entries):
        fields = Scopes.of([f"src/package_{number}/", f"tests/test_{number}.py"]).fields()
        value = f'{{"host":"{core.host}","pid":1{fields},"task":"Task-1","since":{time.time():.3f}}}'
        await core.transport.txn((), (Put(core.layout.entry(queue, core.id, number), value.encode(), core.id),))


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
