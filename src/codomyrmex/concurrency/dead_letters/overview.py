"""All dead letter queues in view: their names, their workers, and a new reading after each change."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import TypeVar

from codomyrmex.concurrency import watching
from codomyrmex.concurrency.dead_letters import presence, store
from codomyrmex.concurrency.dead_letters.presence import WorkerInfo
from codomyrmex.concurrency.dead_letters.store import Store
from codomyrmex.concurrency.session_core import SessionCore

T = TypeVar("T")

_RETENTION = 1.0  # seconds; nothing is resolved through these stores, so any value will do


async def queue_names(session: SessionCore) -> list[str]:
    """The names of the queues that hold anything; one small read for each."""
    return await store.queues(session)


async def queues_with_entries(session: SessionCore) -> list[str]:
    """The names of the queues that hold an entry in any state."""
    return [name for name in await store.queues(session) if await Store(session, name, _RETENTION).count()]


async def workers(session: SessionCore, queue: str) -> list[WorkerInfo]:
    """The workers that a queue has at this moment. Workers of release 0.1 do not announce themselves."""
    return await presence.workers(Store(session, queue, _RETENTION))


def snapshots(
    session: SessionCore, read: Callable[[], Awaitable[T]], queue: str | None = None
) -> AsyncGenerator[T, None]:
    """The result of ``read``, at once and again after changes in ``queue``, or in any queue when left out.

    Raises ``SessionLost`` when the session is over.
    """
    prefix = store.under(session) if queue is None else Store(session, queue, _RETENTION).prefix
    return watching.snapshots(session, prefix, read)
