"""The numbers of dead letters by operation and state, which an operator looks at first."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterable
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime

from codomyrmex.concurrency.dead_letters.record import DeadLetter, State
from codomyrmex.concurrency.dead_letters.store import Store
from codomyrmex.concurrency.etcd.transports.protocol import WatchRequest
from codomyrmex.concurrency.etcd.watch import Changed
from codomyrmex.concurrency.keys import prefix_end
from codomyrmex.concurrency.watching import notices


@dataclass(frozen=True, slots=True)
class OperationSummary:
    """The entries of one operation in one queue, counted by state. ``fingerprints`` is the number of different failures
    among them, ``oldest`` the time when the oldest unresolved one was added."""

    queue: str
    operation: str
    waiting: int = 0
    running: int = 0
    parked: int = 0
    resolved: int = 0
    fingerprints: int = 0
    oldest: datetime | None = None


async def summarize(queue: str, entries: AsyncIterable[DeadLetter]) -> list[OperationSummary]:
    """One summary for each operation, sorted by name."""
    counts: dict[str, dict[str, int]] = {}
    kinds: dict[str, set[str]] = {}
    oldest: dict[str, datetime] = {}
    async for entry in entries:
        states = counts.setdefault(entry.operation, {})
        states[entry.state] = states.get(entry.state, 0) + 1
        kinds.setdefault(entry.operation, set()).add(entry.fingerprint)
        if entry.state != "resolved":
            oldest[entry.operation] = min(entry.created_at, oldest.get(entry.operation, entry.created_at))
    return [
        OperationSummary(queue, name, **counts[name], fingerprints=len(kinds[name]), oldest=oldest.get(name))
        for name in sorted(counts)
    ]


class Census:
    """The entries of one queue, counted by state, kept up to date by one watch."""

    def __init__(self) -> None:
        self._entries: dict[bytes, tuple[int, State, datetime]] = {}
        self.current = False  # True while the entries are those in etcd

    def forget(self) -> None:
        """Drop the counts: they are out of date, since the queue is not followed any more."""
        self.current = False
        self._entries = {}

    def counts(self) -> Counter[State]:
        """The number of entries in each state. Any thread may call this."""
        return Counter(state for _, state, _ in self._entries.copy().values())

    def oldest(self) -> datetime | None:
        """The time when the oldest unresolved entry was added; None if there is none. Any thread may call this."""
        return min((added for _, state, added in self._entries.copy().values() if state != "resolved"), default=None)

    async def follow(self, store: Store) -> None:
        """Keep the counts up to date until the session is over; raises the reason."""
        request = WatchRequest(store.entries, prefix_end(store.entries))
        async with aclosing(notices(store.session, request)) as news:
            async for notice in news:
                if not isinstance(notice, Changed):
                    self._entries = {
                        store.key(stored.entry.id): (stored.revision, stored.entry.state, stored.entry.created_at)
                        async for stored in store.all()
                    }
                    self.current = True
                    continue
                for event in notice.events:
                    known = self._entries.get(event.kv.key)
                    if known and known[0] >= event.kv.mod_revision:
                        continue
                    if event.deleted:
                        self._entries.pop(event.kv.key, None)
                    elif stored := store.decode(event.kv):
                        entry = stored.entry
                        self._entries[event.kv.key] = stored.revision, entry.state, entry.created_at
