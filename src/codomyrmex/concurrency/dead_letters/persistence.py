"""Writes that must be made in the end: tried again, after growing pauses, for as long as the session lasts."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from codomyrmex.concurrency.errors import EtcdError, SessionLost

log = logging.getLogger("codomyrmex.concurrency")

FIRST_PAUSE, LONGEST_PAUSE = 0.2, 5.0  # seconds


class Pauses:
    """The pauses between tries, in seconds: each is twice as long as the one before, up to ``longest``."""

    def __init__(self, first: float = FIRST_PAUSE, longest: float = LONGEST_PAUSE) -> None:
        self._first = first
        self._longest = longest
        self.next = first

    @property
    def is_first(self) -> bool:
        return self.next == self._first

    @property
    def is_longest(self) -> bool:
        return self.next == self._longest

    def take(self) -> float:
        """The next pause; the one after it is longer."""
        pause = self.next
        self.next = min(self._longest, pause * 2)
        return pause

    def reset(self) -> None:
        """A try succeeded: the next pause is the first one again."""
        self.next = self._first


async def persist(write: Callable[[], Awaitable[object]], problem: str) -> None:
    """Call ``write`` until etcd takes it, or until the session is lost: then the claim goes with the lease.

    A failure is logged, after ``problem``, when the pauses begin, and at each pause of the full length.
    """
    pauses = Pauses()
    while True:
        try:
            await write()
            return
        except SessionLost:
            return
        except EtcdError as error:
            if pauses.is_first or pauses.is_longest:
                log.warning("%s: %s", problem, error)
            await asyncio.sleep(pauses.take())
