"""Groups: entries that were acquired together. When one is lost, all are; they are released together."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from codomyrmex.concurrency.errors import ConcurrencyError


class GroupEntry(Protocol):
    """An entry, as far as its group knows it."""

    group: Group | None

    def lose_with_group(self, reason: ConcurrencyError) -> None:
        """Another entry of the group is lost."""

    def begin_release(self) -> asyncio.Future[bool] | None:
        """Begin the removal of its key; None if it has nothing to release."""

    async def confirmed(self, removal: asyncio.Future[bool]) -> None:
        """Wait until etcd has confirmed the removal."""


class Group:
    """The entries of one acquisition of several names. ``first_lost`` is the entry whose loss took the others along."""

    __slots__ = ("entries", "first_lost")

    def __init__(self, entries: Sequence[GroupEntry]) -> None:
        self.entries = entries
        self.first_lost: GroupEntry | None = None
        for entry in entries:
            entry.group = self

    def lose(self, first: GroupEntry, reason: ConcurrencyError) -> None:
        """Lose every entry of the group, now that ``first`` is lost."""
        if self.first_lost is not None:
            return
        self.first_lost = first
        for entry in self.entries:
            if entry is not first:
                entry.lose_with_group(reason)

    async def release(self) -> None:
        """Release every entry. All removals begin before anything is awaited, so a cancel cannot come between; they
        travel in one transaction."""
        leaving = [(entry, removal) for entry in self.entries if (removal := entry.begin_release())]
        for entry, removal in leaving:
            await entry.confirmed(removal)
