"""Admission: at most ``ADMITTED`` tasks of one process have entries in a queue; its other tasks wait in the process.

To read the newest entry of a queue etcd reads them all, so each entry makes every join and every reading of the queue
slower: with 3,000 waiters of one process a join took 11 ms instead of 3. A task that is not admitted yet costs etcd
nothing. The tasks of a process are admitted in order of arrival; between processes the order is that of joining.
"""

from __future__ import annotations

import asyncio
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from itertools import chain

from codomyrmex.concurrency import clock
from codomyrmex.concurrency.errors import ConcurrencyError, fresh

ADMITTED = 64


@dataclass(slots=True)
class _Line:
    """The tasks of the process that wait for admission to one queue, by number. The lowest number is admitted first."""

    waiters: dict[int, tuple[asyncio.Future[None], str, float]] = field(default_factory=dict)
    first: int = 0
    next: int = 0


class Admission:
    """The admission of one session's tasks to its queues. Each ``enter`` that returns is followed by one ``leave``.

    ``queue`` is the queue's prefix, and for paths the prefix with the paths: requests of different paths, which may be
    disjoint, do not wait for each other.
    """

    def __init__(self) -> None:
        self._admitted: dict[Hashable, int] = {}
        self._lines: dict[Hashable, _Line] = {}
        self._closed: ConcurrencyError | None = None

    def is_full(self, queue: Hashable) -> bool:
        """True if ``enter`` would have to wait now."""
        return self._admitted.get(queue, 0) >= ADMITTED

    async def enter(self, queue: Hashable, what: str) -> None:
        """Wait for admission to ``queue``; ``what`` is its kind. Raises ``SessionLost`` when the session is over."""
        admitted = self._admitted.get(queue, 0)
        if admitted < ADMITTED:  # then no task waits in line
            self._admitted[queue] = admitted + 1
            return
        if self._closed:
            raise self._closed
        line = self._lines.get(queue)
        if line is None:
            line = self._lines[queue] = _Line()
        number, line.next = line.next, line.next + 1
        turn = asyncio.get_running_loop().create_future()
        line.waiters[number] = turn, what, clock.now()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and not turn.exception():
                self.leave(queue)  # it was admitted just as it was cancelled
            raise
        finally:
            line.waiters.pop(number, None)

    def leave(self, queue: Hashable) -> None:
        """End one admission to ``queue``, and admit the task that has waited longest."""
        line = self._lines.get(queue)
        while line and line.first < line.next:
            turn, _, _ = line.waiters.pop(line.first, (None, "", 0.0))
            line.first += 1
            if turn and not turn.done():
                turn.set_result(None)
                return
        self._lines.pop(queue, None)
        if self._admitted[queue] > 1:
            self._admitted[queue] -= 1
        else:
            del self._admitted[queue]

    def waits(self) -> Iterator[tuple[str, float]]:
        """For each task in line: the kind of its queue, and the time on ``clock`` since when it waits. Any thread may
        call it."""
        lines = (list(line.waiters.values()) for line in list(self._lines.values()))
        return ((what, since) for _, what, since in chain.from_iterable(lines))

    def close(self, reason: ConcurrencyError) -> None:
        """End every wait with ``reason``: the session is over, and no further task is admitted."""
        self._closed = reason
        for line in self._lines.values():
            for turn, _, _ in line.waiters.values():
                if not turn.done():
                    turn.set_exception(fresh(reason))
