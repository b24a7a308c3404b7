"""``Reserving``: what ``LockManager.reserve`` gives, before it is awaited or entered."""

from __future__ import annotations

import logging
from collections.abc import Coroutine, Generator, Sequence
from types import TracebackType
from typing import Any

from codomyrmex.concurrency.affinity import current_task
from codomyrmex.concurrency.callsite import users_line, warn
from codomyrmex.concurrency.context_managers import AsyncOnly
from codomyrmex.concurrency.errors import EtcdError, LockLost
from codomyrmex.concurrency.recipes.acquire import AcquireRequest
from codomyrmex.concurrency.recipes.handle import Handle
from codomyrmex.concurrency.recipes.reservation import Reservation
from codomyrmex.concurrency.session import Session
from codomyrmex.concurrency.waitqueue.detach import Detached, detach
from codomyrmex.concurrency.waitqueue.entry import Entry, Requester
from codomyrmex.concurrency.waitqueue.rules import Rule

log = logging.getLogger("codomyrmex.concurrency")


class Reserving(AsyncOnly):
    """The result of ``LockManager.reserve``: await it for a ``Reservation``, or use it with ``async with``, which
    releases it at the end."""

    def __init__(
        self,
        session: Session | None,
        request: AcquireRequest,
        rules: Sequence[Rule],
        ttl: int,
        timeout: float | None,
        *,
        keepalive: bool,
    ) -> None:
        self._session = session
        self._request = request
        self._rules = rules
        self._ttl = ttl
        self._timeout = timeout
        self._keepalive = keepalive
        self._line = users_line()
        self._begun = False
        self._reservation: Reservation | None = None

    def __await__(self) -> Generator[Any, None, Reservation]:
        return self._reserve().__await__()

    async def __aenter__(self) -> Reservation:
        self._reservation = await self._reserve()
        return self._reservation

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._reservation
        await end_block(self._reservation, error)

    def _reserve(self, who: object = None) -> Coroutine[Any, Any, Reservation]:
        """``who`` is the requester if it is not the current task."""
        self._begun = True
        return self._reserved(who)

    async def _reserved(self, who: object) -> Reservation:
        by = Requester.of(who or current_task(), self._line)
        detached = await self._request.attempt_to(self._detach, self._rules, self._timeout, by)
        core = await self._request.session()
        lease = detached.lease
        handle = Handle(core.layout.namespace, lease.id, detached.token, lease.ttl, detached.keys)
        reservation = Reservation(self._session, handle)
        reservation._begun(lease.asked_at, detached.values, detached.left)
        if self._keepalive:
            reservation._keep_alive(core)
        return reservation

    async def _detach(self, entries: Sequence[Entry], started: float, only_if_free: bool) -> Detached | None:
        return await detach(entries, started, self._ttl, only_if_free=only_if_free)

    def __del__(self) -> None:
        if not self._begun:
            warn(
                self._line,
                f"the reservation of {self._request.describe()} was never awaited: nothing was reserved",
                RuntimeWarning,
            )


async def end_block(reservation: Reservation, error: BaseException | None) -> None:
    """Release at the end of a block, which ``error`` has ended. As with a lock, a release that etcd does not confirm is
    logged: the work of the block is done."""
    try:
        await reservation.release()
    except LockLost as lost:
        if error is None:
            raise
        error.add_note(str(lost))
    except EtcdError as failure:
        log.warning("%r is not released yet, and ends by itself when its time is over: %s", reservation, failure)
