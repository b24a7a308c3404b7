"""Holders without progress, found by comparing successive readings of locks, by the reader's own clock. Pure.

A hold without progress has the same entry, and the same number of reports, in each reading. A holder that records its
wait changes its entry too, but not that number. The times that other hosts wrote are not used.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from codomyrmex.concurrency.models import LockInfo, Owner


@dataclass(frozen=True, slots=True)
class StuckHolder:
    """A holder of the lock ``name`` that has made no progress since ``idle_since``, when the reader first saw it so.

    ``stuck`` is False in the last event about it: it has made progress, or holds no longer.
    """

    name: str
    owner: Owner
    idle_since: datetime
    stuck: bool = True


class _Sighting(NamedTuple):
    """The first sighting of a holder with its present number of reports, on the reader's two clocks."""

    now: float
    at: datetime


class IdleTimes:
    """The holders of the last reading, and since when each has made no progress."""

    def __init__(self) -> None:
        self._holders: list[tuple[str, Owner]] = []
        self._first_seen: dict[tuple[str, int, int], _Sighting] = {}

    def read(self, infos: Iterable[LockInfo], now: float, at: datetime) -> None:
        """Take a reading that ended at ``now`` on a clock that never jumps, which is ``at``."""
        self._holders = [(info.name, one) for info in infos for one in info.holders]
        seen = self._first_seen
        self._first_seen = {_hold(one): seen.get(_hold(one), _Sighting(now, at)) for _, one in self._holders}

    def stuck(self, limit: float, now: float) -> list[StuckHolder]:
        """The holders without progress for ``limit`` seconds or longer at ``now``, the longest first."""
        idle = [(self._first_seen[_hold(one)], name, one) for name, one in self._holders]
        found = [(seen, StuckHolder(name, one, seen.at)) for seen, name, one in idle if now - seen.now >= limit]
        return [holder for _, holder in sorted(found, key=lambda pair: (pair[0].now, pair[1].name))]


def _hold(one: Owner) -> tuple[str, int, int]:
    return one.key, one.token, one.progress
