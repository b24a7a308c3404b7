"""Readings of locks and semaphores for a live view: one at once, and another after each change.

A grant that happens between two readings is timed by this host's clock, see ``grant_times.py``. Each stream raises
``SessionLost`` when its session is over.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from datetime import UTC, datetime
from typing import TypeVar

from codomyrmex.concurrency.keys import LOCK, PATH, SEMAPHORE, check_name, prefix_end
from codomyrmex.concurrency.models import LockInfo, SemaphoreInfo
from codomyrmex.concurrency.session_core import SessionCore
from codomyrmex.concurrency.waitqueue import inspect
from codomyrmex.concurrency.waitqueue.grant_times import Sightings
from codomyrmex.concurrency.watching import snapshots

Q = TypeVar("Q", bound=LockInfo | SemaphoreInfo)


def locks(session: SessionCore, prefix: str = "") -> AsyncGenerator[list[LockInfo], None]:
    """Every lock and tree whose name starts with ``prefix``, by name."""
    layout = session.layout
    end = prefix_end(layout.under(PATH))
    return _timed(session, layout.under(LOCK), lambda: inspect.locks(session, prefix), end)


def semaphores(session: SessionCore, prefix: str = "") -> AsyncGenerator[list[SemaphoreInfo], None]:
    """Every semaphore whose name starts with ``prefix``, by name."""
    return _timed(session, session.layout.under(SEMAPHORE), lambda: inspect.semaphores(session, prefix))


def semaphore(session: SessionCore, name: str) -> AsyncGenerator[list[SemaphoreInfo], None]:
    """One semaphore, as a list of one; without a limit while there is none of that name."""

    async def read() -> list[SemaphoreInfo]:
        return [await inspect.semaphore(session, name)]

    return _timed(session, session.layout.queue(check_name(name), SEMAPHORE), read)


def _timed(
    session: SessionCore, prefix: bytes, read: Callable[[], Awaitable[list[Q]]], end: bytes = b""
) -> AsyncGenerator[list[Q], None]:
    sightings = Sightings()

    async def timed() -> list[Q]:
        return sightings.timed(await read(), datetime.now(UTC))

    return snapshots(session, prefix, timed, end)
