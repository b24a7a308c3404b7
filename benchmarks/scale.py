"""How cost grows with size: ``python -m benchmarks.scale``. Curves, as tables, JSON and a picture.

Waiters for one lock in one process; clients on one member and on three; dead letters in one queue; a pool's items.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import resource
import time
import tracemalloc
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.contest import crowd
from benchmarks.ours import NAMESPACE
from codomyrmex.concurrency import AsyncWorkerPool, DeadLetterQueue, DistributedLock, EmbeddedEtcd, Session
from codomyrmex.concurrency.session import core_of
from tests.cluster import cluster

Row = dict[str, float]
_LATEST = Path(__file__).parent / "results" / "scale.json"


async def waiters(count: int) -> Row:
    """So many tasks of one process wait for one lock, and each passes it on at once."""
    async with EmbeddedEtcd() as etcd, Session(endpoints=etcd.endpoint, namespace=NAMESPACE) as session:
        order: list[int] = []

        async def wait(number: int) -> None:
            async with DistributedLock("x", session):
                order.append(number)

        async with DistributedLock("x", session):
            gc.collect()
            tracemalloc.start()
            tasks = [asyncio.create_task(_idle()) for _ in range(count)]
            await asyncio.sleep(0)
            bare = tracemalloc.get_traced_memory()[0]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            del tasks
            tracemalloc.stop()
            gc.collect()
            tracemalloc.start()
            began = time.perf_counter()
            tasks = [asyncio.create_task(wait(number)) for number in range(count)]
            await _queued(session, count)
            joined = time.perf_counter() - began
            await asyncio.sleep(1)
            held = tracemalloc.get_traced_memory()[0]
            tracemalloc.stop()
            began = time.perf_counter()
        await asyncio.gather(*tasks)
        drained = time.perf_counter() - began
        return {
            "joined a second": count / joined,
            "handoffs a second": count / drained,
            "bytes each": (held - bare) / count,
            "in order": float(order == sorted(order)),
        }


async def _idle() -> None:
    await asyncio.Event().wait()


async def _queued(session: Session, count: int) -> None:
    while len(core_of(session).waits()) < count:
        await asyncio.sleep(0.05)


async def clients(processes: int, members: int, seconds: float) -> Row:
    """So many processes, each with 16 workers at locks of their own; then all at one lock."""
    async with _etcd(members) as endpoints:
        own = await crowd(endpoints, seconds, "lock", processes, 16)
        one = await crowd(endpoints, seconds, "lock", processes, 0)
        return {
            "own locks: cycles a second": own.cycles / own.seconds,
            "own locks: p99 wait, ms": own.p99_wait_ms,
            "one lock: handoffs a second": one.handoffs / one.seconds,
            "one lock: p99 wait, ms": one.p99_wait_ms,
            "one lock: busiest x equal share": one.busiest_share * processes,
        }


@asynccontextmanager
async def _etcd(members: int) -> AsyncIterator[str]:
    if members == 1:
        async with EmbeddedEtcd() as etcd:
            yield etcd.endpoint
    else:
        async with cluster() as three:
            yield three.endpoints


async def dead_letters(count: int) -> Row:
    """So many entries in one queue: added, then read page by page."""
    async with EmbeddedEtcd() as etcd, Session(endpoints=etcd.endpoint, namespace=NAMESPACE) as session:
        queue = DeadLetterQueue(f"many-{uuid.uuid4().hex}", session=session)
        began = time.perf_counter()
        error = "ConnectionError: 503: the provider is overloaded"
        for start in range(0, count, 1_000):
            numbers = range(start, min(start + 1_000, count))
            await asyncio.gather(*(queue.add(operation="nothing", args={"n": n}, error=error) for n in numbers))
        added = time.perf_counter() - began
        gc.collect()
        tracemalloc.start()
        began = time.perf_counter()
        listed = 0
        async with aclosing(queue.entries()) as entries:
            async for _ in entries:
                listed += 1
        took = time.perf_counter() - began
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert listed == count
        return {
            "added a second": count / added,
            "listed a second": count / took,
            "peak while listing, MiB": peak / 2**20,
        }


async def pool_items(count: int) -> Row:
    """So many items through ``imap``, their results dropped as they come."""
    began = time.perf_counter()
    async with AsyncWorkerPool(4) as pool:
        async for _ in pool.imap(_nothing, range(count)):
            pass
    took = time.perf_counter() - began
    return {"items a second": count / took, "peak of the process, MiB": _peak()}


async def _nothing(item: int) -> int:
    return item


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def curves(seconds: float) -> dict[str, dict[str, Callable[[], Awaitable[Row]]]]:
    """Each curve's points in the order they are measured; the pool first, since a process's peak never falls."""
    return {
        "items through a pool": {f"{n:,}": partial(pool_items, n) for n in (10_000, 100_000, 1_000_000)},
        "waiters in one process": {f"{n:,}": partial(waiters, n) for n in (100, 1_000, 10_000)},
        **{
            f"client processes, {members} member{'s' * (members > 1)}": {
                f"{n}": partial(clients, n, members, seconds) for n in (1, 2, 4, 8, 16, 32)
            }
            for members in (1, 3)
        },
        "dead letters in one queue": {f"{n:,}": partial(dead_letters, n) for n in (1_000, 10_000, 100_000)},
    }


async def _measure(wanted: Sequence[str], seconds: float, console: Console) -> dict[str, dict[str, Row]]:
    figures: dict[str, dict[str, Row]] = {}
    for curve, points in curves(seconds).items():
        if wanted and not any(part in curve for part in wanted):
            continue
        rows = figures[curve] = {}
        for size, measure in points.items():
            rows[size] = await measure()
        console.print(_table(curve, rows))
    return figures


def _table(curve: str, rows: dict[str, Row]) -> Table:
    table = Table(title=curve, title_justify="left", padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True)
    for name in next(iter(rows.values())):
        table.add_column(name, justify="right")
    for size, row in rows.items():
        table.add_row(size, *(f"{value:,.1f}" if value < 100 else f"{value:,.0f}" for value in row.values()))
    return table


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0, help="how long each point of clients runs (default 2)")
    parser.add_argument("--json", type=Path, default=_LATEST, help="where to write the figures")
    parser.add_argument("--curve", nargs="+", default=[], help="only curves with these words in their names")
    options = parser.parse_args()
    console = Console(width=120)
    figures: dict[str, Any] = asyncio.run(_measure(options.curve, options.seconds, console))
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(figures, indent=2) + "\n")
    try:
        from benchmarks.plot import draw_curves
    except ImportError:
        console.print("no picture: matplotlib is not installed (extra `bench`)")
    else:
        draw_curves(figures, options.json.with_suffix(".png"))


if __name__ == "__main__":
    main()
