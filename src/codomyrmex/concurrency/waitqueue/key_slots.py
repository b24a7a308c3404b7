"""Key slots: the numbers in the keys of a session's entries. The smallest one free in the queue is used again.

etcd keeps a deleted key in its index until the history is compacted, and walks over it whenever the queue's range is
read. With a new key for every acquisition, a lock taken a thousand times a second would slow down by the minute. A slot
is free again once the removal of its key was answered and no other attempt at the removal can be under way. A slot
whose removal was ever in doubt is never used again by this session, so a late removal cannot meet a newer entry.
"""

from __future__ import annotations

import heapq


class _Queue:
    __slots__ = ("free", "next", "used")

    def __init__(self) -> None:
        self.free: list[int] = []
        self.next = 0
        self.used = 0


class KeySlots:
    """The key slots of one session, by queue. It keeps nothing of a queue in which no slot is taken."""

    def __init__(self) -> None:
        self._queues: dict[bytes, _Queue] = {}

    def take(self, queue: bytes) -> int:
        """Take the smallest slot that is free in ``queue``."""
        known = self._queues.get(queue)
        if known is None:
            known = self._queues[queue] = _Queue()
        known.used += 1
        if known.free:
            return heapq.heappop(known.free)
        known.next += 1
        return known.next - 1

    def give_back(self, queue: bytes, slot: int) -> None:
        """Free ``slot``, which was taken in ``queue``."""
        known = self._queues[queue]
        known.used -= 1
        if known.used:
            heapq.heappush(known.free, slot)
        else:
            del self._queues[queue]
