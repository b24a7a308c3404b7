"""A lease that is taken while its user joins a queue, so that it costs no time if the user need not wait there."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import NamedTuple

from codomyrmex.concurrency import clock
from codomyrmex.concurrency.errors import ConcurrencyError
from codomyrmex.concurrency.etcd.supervision import unheard
from codomyrmex.concurrency.session_core import SessionCore
from codomyrmex.concurrency.waitqueue.lease_end import revoke


class TakenLease(NamedTuple):
    """A lease with its TTL in seconds, and the time on ``clock`` at which it was asked for."""

    id: int
    ttl: int
    asked_at: float


class EarlyLease:
    """A lease of ``ttl`` seconds, asked for at once.

    A user that has to wait lets go of it and gets another one in the end, so a waiter that is killed leaves no lease of
    a day behind.
    """

    def __init__(self, session: SessionCore, ttl: int) -> None:
        self._session = session
        self._ttl = ttl
        self._taking = self._take()
        self._has_gone = False

    async def ready(self) -> TakenLease:
        """The lease; another one if this was let go of."""
        if self._has_gone:
            self._taking, self._has_gone = self._take(), False
        return await asyncio.shield(self._taking)

    def let_go(self) -> None:
        """Revoke it, with its keys, in the background, if etcd answers."""
        if not self._has_gone:
            self._has_gone = True
            self._session.keep(asyncio.create_task(self._revoked(self._taking)))

    async def _revoked(self, taking: asyncio.Task[TakenLease]) -> None:
        with suppress(ConcurrencyError):
            revoke(self._session, (await asyncio.shield(taking)).id)

    def _take(self) -> asyncio.Task[TakenLease]:
        task = asyncio.create_task(self._granted())
        task.add_done_callback(unheard)
        return task

    async def _granted(self) -> TakenLease:
        asked_at = clock.now()
        lease = await self._session.transport.grant(self._ttl)
        return TakenLease(lease.id, lease.ttl, asked_at)
