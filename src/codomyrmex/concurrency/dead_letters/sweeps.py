"""Changes of many entries at once. Each works on a snapshot: entries that change meanwhile are left alone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection
from datetime import datetime

from codomyrmex.concurrency.dead_letters import record, steps
from codomyrmex.concurrency.dead_letters.record import DeadLetter
from codomyrmex.concurrency.dead_letters.store import Store


async def redrive(store: Store, states: Collection[str], operation: str | None, rate: float | None) -> int:
    """Send back the entries of these states, at most ``rate`` a second; returns their number."""
    snapshot = [
        (stored.entry.id, stored.revision)
        async for stored in store.all()
        if stored.entry.state in states and operation in (None, stored.entry.operation)
    ]
    started, done = time.monotonic(), 0
    for number, (entry_id, revision) in enumerate(snapshot):
        if rate is not None:
            await asyncio.sleep(max(0.0, started + number / rate - time.monotonic()))
        stored = await store.get(entry_id)
        if stored and stored.revision == revision:
            done += await store.change(stored, steps.redriven(stored.entry, record.now()))
    return done


async def purge(store: Store, states: Collection[str], before: datetime | None) -> int:
    """Delete the entries of these states that were created ``before`` then; returns their number.

    An entry whose deletion had to be repeated, since etcd's answer was lost, is not counted.
    """
    snapshot = [
        stored._replace(entry=_slim(stored.entry))
        async for stored in store.all()
        if stored.entry.state in states and (before is None or stored.entry.created_at < before)
    ]
    return sum([await store.remove(stored) for stored in snapshot])


async def evict(store: Store, surplus: int) -> bool:
    """Delete the ``surplus`` oldest resolved entries; False if there are fewer."""
    oldest = []
    async for stored in store.all():
        if stored.entry.state == "resolved":
            oldest.append(stored)
            if len(oldest) == surplus:
                break
    for stored in oldest:
        await store.remove(stored)
    return len(oldest) == surplus


def _slim(entry: DeadLetter) -> DeadLetter:
    """The parts of an entry that its deletion needs: a snapshot of very many must not hold their arguments."""
    return DeadLetter(entry.id, entry.operation, {}, "", entry.created_at, dedup=entry.dedup)
