"""A lease that is taken while its user still waits, so that it costs no time when it is needed."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import NamedTuple

from codomyrmex.concurrency import clock
from codomyrmex.concurrency.errors import ConcurrencyError
from codomyrmex.concurrency.session_core import SessionCore

_FRESH = 1.0  # seconds for which a lease that was taken ahead is kept


class TakenLease(NamedTuple):
    """A lease with its TTL in seconds, and the time on ``clock`` at which it was asked for."""

    id: int
    ttl: int
    asked_at: float


class EarlyLease:
    """A lease of ``ttl`` seconds, asked for at once.

    A user that waits for longer than a second gets another one in the end: the first is revoked by then, so a waiter
    that is killed leaves no lease of a day behind.
    """

    def __init__(self, session: SessionCore, ttl: int) -> None:
        self._session = session
        self._ttl = ttl
        self._taking = self._take()
        self._timer = asyncio.get_running_loop().call_later(_FRESH, self._let_go)
        self._let_go_of = False

    async def ready(self) -> TakenLease:
        """The lease, with its whole time left but for a second."""
        self._timer.cancel()
        if self._let_go_of:
            self._taking, self._let_go_of = self._take(), False
        return await asyncio.shield(self._taking)

    def revoke(self) -> None:
        """Revoke it, with its keys, in the background, if etcd answers."""
        self._timer.cancel()
        if not self._let_go_of:
            self._let_go()

    def _let_go(self) -> None:
        self._let_go_of = True
        self._session.keep(asyncio.create_task(self._revoked(self._taking)))

    async def _revoked(self, taking: asyncio.Task[TakenLease]) -> None:
        with suppress(ConcurrencyError):
            await self._session.transport.revoke((await asyncio.shield(taking)).id)

    def _take(self) -> asyncio.Task[TakenLease]:
        task = asyncio.create_task(self._granted())
        task.add_done_callback(_told)
        return task

    async def _granted(self) -> TakenLease:
        asked_at = clock.now()
        lease = await self._session.transport.grant(self._ttl)
        return TakenLease(lease.id, lease.ttl, asked_at)


def _told(task: asyncio.Task[TakenLease]) -> None:
    """Leave no warning for an error that nobody waits for any more."""
    if not task.cancelled():
        task.exception()
