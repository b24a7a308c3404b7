"""A lease that is taken while its user still waits, so that it costs no time when it is needed."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import NamedTuple

from codomyrmex.concurrency import clock
from codomyrmex.concurrency.errors import ConcurrencyError
from codomyrmex.concurrency.session_core import SessionCore

_FRESH = 1.0  # seconds for which a lease that was taken ahead may be used as it is


class TakenLease(NamedTuple):
    """A lease with its TTL in seconds, and the time on ``clock`` at which it, or its renewal, was asked for."""

    id: int
    ttl: int
    asked_at: float


class EarlyLease:
    """A lease of ``ttl`` seconds, asked for at once. It has no key until its user gives it one, so one that nobody
    uses or revokes ends by itself and does no harm."""

    def __init__(self, session: SessionCore, ttl: int) -> None:
        self._session = session
        self._ttl = ttl
        self._taking = asyncio.create_task(self._take())
        self._taking.add_done_callback(_told)

    async def ready(self) -> TakenLease:
        """The lease, with its whole time left but for a second: it is renewed if its user waited for longer."""
        lease = await asyncio.shield(self._taking)
        if (now := clock.now()) - lease.asked_at <= _FRESH:
            return lease
        if await self._session.transport.keep_alive(lease.id):
            return lease._replace(asked_at=now)
        return await self._take()

    async def revoke(self) -> None:
        """Revoke it, with its keys, if etcd answers."""
        with suppress(ConcurrencyError):
            lease = await asyncio.shield(self._taking)
            await self._session.transport.revoke(lease.id)

    async def _take(self) -> TakenLease:
        asked_at = clock.now()
        lease = await self._session.transport.grant(self._ttl)
        return TakenLease(lease.id, lease.ttl, asked_at)


def _told(task: asyncio.Task[TakenLease]) -> None:
    """Leave no warning for an error that nobody waits for any more."""
    if not task.cancelled():
        task.exception()
