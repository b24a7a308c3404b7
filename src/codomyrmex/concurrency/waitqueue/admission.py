"""At most so many tasks of one process wait in a queue in etcd; the others wait here, in order of arrival.

To read the newest entry of a queue etcd reads them all, so every place taken in it makes joining and looking dearer for
everybody: with 3,000 waiters of one process a join took 11 ms instead of 3. Beyond ``PLACES`` a process therefore waits
in itself, at no cost to others. Its tasks are served in order; between processes the order is that of joining.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain

from codomyrmex.concurrency import clock
from codomyrmex.concurrency.errors import SessionLost

PLACES = 64


@dataclass(slots=True)
class _Outside:
    """Who waits before one door, by number; the lowest is first."""

    waiters: dict[int, tuple[asyncio.Future[None], str, float]] = field(default_factory=dict)
    first: int = 0
    next: int = 0


class Doors:
    """One before each queue that this process wants to join. Who is granted or gives up leaves by it."""

    def __init__(self) -> None:
        self._inside: dict[bytes, int] = {}
        self._outside: dict[bytes, _Outside] = {}
        self._closed: SessionLost | None = None

    def crowded(self, queue: bytes) -> bool:
        """Whether who came now would have to wait outside."""
        return self._inside.get(queue, 0) >= PLACES

    async def enter(self, queue: bytes, what: str) -> None:
        """Wait for a place, of which ``leave`` must be told; raises when the session is over."""
        inside = self._inside.get(queue, 0)
        if inside < PLACES:  # then nobody waits
            self._inside[queue] = inside + 1
            return
        if self._closed:
            raise self._closed
        outside = self._outside.get(queue)
        if outside is None:
            outside = self._outside[queue] = _Outside()
        number, outside.next = outside.next, outside.next + 1
        place = asyncio.get_running_loop().create_future()
        outside.waiters[number] = place, what, clock.now()
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled() and not place.exception():
                self.leave(queue)  # it was given just as its waiter was cancelled
            raise
        finally:
            outside.waiters.pop(number, None)

    def leave(self, queue: bytes) -> None:
        """Give the place to who has waited longest."""
        outside = self._outside.get(queue)
        while outside and outside.first < outside.next:
            place, _, _ = outside.waiters.pop(outside.first, (None, "", 0.0))
            outside.first += 1
            if place and not place.done():
                place.set_result(None)
                return
        self._outside.pop(queue, None)
        if self._inside[queue] > 1:
            self._inside[queue] -= 1
        else:
            del self._inside[queue]

    def waits(self) -> Iterator[tuple[str, float]]:
        """What is waited for outside, and since when. Any thread may ask."""
        lines = (list(outside.waiters.values()) for outside in list(self._outside.values()))
        return ((what, since) for _, what, since in chain.from_iterable(lines))

    def close(self, reason: SessionLost) -> None:
        """The session is over: nobody outside will come in."""
        self._closed = reason
        for outside in self._outside.values():
            for place, _, _ in outside.waiters.values():
                if not place.done():
                    place.set_exception(reason)
