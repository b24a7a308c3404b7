"""Which nonce an entry's key gets: the smallest one free in its queue, so that a busy lock uses the same few keys.

etcd keeps a deleted key in its index until the history is compacted, and walks over it whenever the queue's range is
read. With a new key for every acquisition a lock taken a thousand times a second would slow down by the minute. A
nonce is free again once the removal of its key was answered and no other attempt at it can be under way; one whose
removal was ever in doubt is never used again by this session, so a late removal cannot meet a newer entry.
"""

from __future__ import annotations

import heapq


class _Queue:
    __slots__ = ("free", "next", "used")

    def __init__(self) -> None:
        self.free: list[int] = []
        self.next = 0
        self.used = 0


class Nonces:
    """The nonces in use by one session, by queue; remembers nothing of queues where none is."""

    def __init__(self) -> None:
        self._queues: dict[bytes, _Queue] = {}

    def take(self, queue: bytes) -> int:
        """The smallest nonce that is free in ``queue``."""
        known = self._queues.get(queue)
        if known is None:
            known = self._queues[queue] = _Queue()
        known.used += 1
        if known.free:
            return heapq.heappop(known.free)
        known.next += 1
        return known.next - 1

    def give_back(self, queue: bytes, nonce: int) -> None:
        known = self._queues[queue]
        known.used -= 1
        if known.used:
            heapq.heappush(known.free, nonce)
        else:
            del self._queues[queue]
