"""Times of grants, found by comparing successive readings of queues, by the reader's own clock. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import TypeVar

from codomyrmex.concurrency.models import LockInfo, Owner, SemaphoreInfo

Q = TypeVar("Q", bound=LockInfo | SemaphoreInfo)


class Sightings:
    """The owners of the last reading, with the times at which they were first seen to wait and to hold.

    An owner of the first reading joined at an unknown time, so its own record of the times stands.
    """

    def __init__(self) -> None:
        self._joined: dict[tuple[str, int], datetime | None] = {}  # None: it was there at the first reading
        self._granted: dict[tuple[str, int], datetime | None] = {}
        self._first = True

    def timed(self, queues: Sequence[Q], now: datetime) -> list[Q]:
        """The queues, read at ``now``, with the times of the grants that happened between two readings."""
        unseen = None if self._first else now
        holders: list[Owner] = []
        owners: list[Owner] = []
        for queue in queues:
            holders += queue.holders
            owners += (*queue.holders, *queue.waiters)
        self._joined = {_id(one): self._joined.get(_id(one), unseen) for one in owners}
        self._granted = {_id(one): self._granted.get(_id(one), unseen) for one in holders}
        self._first = False
        return [replace(queue, holders=tuple(map(self._timed, queue.holders))) for queue in queues]

    def _timed(self, one: Owner) -> Owner:
        granted, joined = self._granted[_id(one)], self._joined[_id(one)]
        if granted is None:
            return one
        waited = (granted - joined).total_seconds() if joined else one.waited
        return replace(one, granted_at=granted, waited=waited)


def _id(one: Owner) -> tuple[str, int]:
    return one.key, one.token
