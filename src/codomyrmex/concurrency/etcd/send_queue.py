"""The items that wait to be sent, and the number of batches under way: pure, the time is passed in.

``batching.py`` sends from such a queue; ``ledger.py`` decides when the queue is paused.
"""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class SendQueue(Generic[T]):
    """A queue of which at most ``depth`` batches are under way at a time. Under load the batches grow by themselves.

    A further batch begins beside one that is under way if ``enough`` items wait, or if none has begun for ``late``
    seconds: etcd is far away then, or slow, and an item does not wait for the whole answer.
    """

    __slots__ = ("_begun", "active", "depth", "enough", "items", "late", "paused")

    def __init__(self, depth: int, enough: int = 1, late: float = 0.005) -> None:
        self.items: deque[T] = deque()
        self.depth = depth
        self.enough = enough
        self.late = late
        self.active = 0
        self.paused = False
        self._begun = 0.0  # the time at which the last batch began

    @property
    def is_free(self) -> bool:
        """True if a new item would be sent at once and by itself."""
        return not (self.active or self.items or self.paused)

    def has_room(self, now: float) -> bool:
        """True if another batch may be sent now."""
        if self.paused or self.active >= self.depth:
            return False
        return not self.active or len(self.items) >= self.enough or now - self._begun >= self.late

    def begin(self, now: float) -> None:
        """Count a batch that is about to be sent."""
        self.active += 1
        self._begun = now

    def end(self) -> None:
        """Count a batch whose sending is over."""
        self.active -= 1

    def empty(self) -> list[T]:
        """Remove and return the items that have not been sent."""
        items = list(self.items)
        self.items.clear()
        return items
