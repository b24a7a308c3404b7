"""All dead letter queues in view: their names, their workers, and a new reading after each change."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import TypeVar

from codomyrmex.concurrency import watching
from codomyrmex.concurrency.dead_letters import presence, reader
from codomyrmex.concurrency.dead_letters.presence import WorkerInfo
from codomyrmex.concurrency.dead_letters.reader import Reader
from codomyrmex.concurrency.session_core import SessionCore

T = TypeVar("T")


async def queue_names(session: SessionCore) -> list[str]:
    """The names of the queues that hold anything; one small read for each."""
    return await reader.queues(session)


async def queues_with_entries(session: SessionCore) -> list[str]:
    """The names of the queues that hold an entry in any state."""
    return [name for name in await reader.queues(session) if await Reader(session, name).count()]


async def workers(session: SessionCore, queue: str) -> list[WorkerInfo]:
    """The workers that a queue has at this moment. Workers of release 0.1 do not announce themselves."""
    return await presence.workers(Reader(session, queue))


def snapshots(
    session: SessionCore, read: Callable[[], Awaitable[T]], queue: str | None = None
) -> AsyncGenerator[T, None]:
    """The result of ``read``, at once and again after changes in ``queue``, or in any queue when left out.

    Raises ``SessionLost`` when the session is over.
    """
    prefix = reader.under(session) if queue is None else Reader(session, queue).prefix
    return watching.snapshots(session, prefix, read)
