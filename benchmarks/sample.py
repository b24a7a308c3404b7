"""What one run of one case measured."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from itertools import pairwise

from pydantic import BaseModel


class Sample(BaseModel, frozen=True):
    """Work done in ``seconds``; the last four say how a contended lock was shared, and are 0 elsewhere."""

    cycles: int
    seconds: float
    handoffs: int = 0  # how often the lock went to another session than before
    longest_wait_ms: float = 0.0
    p99_wait_ms: float = 0.0
    busiest_share: float = 0.0


class Granted(BaseModel, frozen=True):
    """One grant, as its holder reports it; ``at`` was read while it was held, on the clock that all processes share."""

    at: float
    waited: float


async def repeat(cycles: Sequence[Callable[[], Awaitable[object]]], seconds: float) -> Sample:
    """Runs every cycle over and over, each in its own task, once beforehand to warm up."""

    async def work(cycle: Callable[[], Awaitable[object]]) -> int:
        done = 0
        while time.perf_counter() < deadline:
            await cycle()
            done += 1
        return done

    await asyncio.gather(*(cycle() for cycle in cycles))
    start = time.perf_counter()
    deadline = start + seconds
    done = await asyncio.gather(*(work(cycle) for cycle in cycles))
    return Sample(cycles=sum(done), seconds=time.perf_counter() - start)


def shared(grants: Sequence[Sequence[Granted]], seconds: float) -> Sample:
    """How several holders, each with its own list of grants, took turns."""
    times = sorted((grant.at, holder) for holder, own in enumerate(grants) for grant in own)
    order = [holder for _, holder in times]
    if not order:
        return Sample(cycles=0, seconds=seconds)
    waits = sorted(1000 * grant.waited for own in grants for grant in own)
    return Sample(
        cycles=len(order),
        seconds=seconds,
        handoffs=sum(before != after for before, after in pairwise(order)),
        longest_wait_ms=waits[-1],
        p99_wait_ms=waits[int(0.99 * (len(waits) - 1))],
        busiest_share=max(Counter(order).values()) / len(order),
    )
