"""The items that wait to be sent, and the number of batches under way: pure, without an event loop.

``batching.py`` sends from such a queue; ``ledger.py`` decides when the queue is paused.
"""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class SendQueue(Generic[T]):
    """A queue of which at most ``depth`` batches are under way at a time. Under load the batches grow by themselves.

    A further batch begins beside one that is under way only if ``enough`` items wait.
    """

    __slots__ = ("active", "depth", "enough", "items", "paused")

    def __init__(self, depth: int, enough: int = 1) -> None:
        self.items: deque[T] = deque()
        self.depth = depth
        self.enough = enough
        self.active = 0
        self.paused = False

    @property
    def is_free(self) -> bool:
        """True if a new item would be sent at once and by itself."""
        return not (self.active or self.items or self.paused)

    @property
    def has_room(self) -> bool:
        """True if another batch may be sent now."""
        if self.paused or self.active >= self.depth:
            return False
        return not self.active or len(self.items) >= self.enough

    def begin(self) -> None:
        """Count a batch that is about to be sent."""
        self.active += 1

    def end(self) -> None:
        """Count a batch whose sending is over."""
        self.active -= 1

    def empty(self) -> list[T]:
        """Remove and return the items that have not been sent."""
        items = list(self.items)
        self.items.clear()
        return items
