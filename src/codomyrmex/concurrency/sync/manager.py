"""The blocking twin of ``LockManager``."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any

from codomyrmex.concurrency.keys import check_name
from codomyrmex.concurrency.recipes import manager as twin
from codomyrmex.concurrency.recipes.acquire import OnDeadlock
from codomyrmex.concurrency.recipes.hold import Hold
from codomyrmex.concurrency.recipes.reservation import Reservation as AsyncReservation
from codomyrmex.concurrency.sync.blocking import blocking, text_of
from codomyrmex.concurrency.sync.grant import Grant, Grants, OnLoss, at_loss
from codomyrmex.concurrency.sync.lock import DistributedLock
from codomyrmex.concurrency.sync.portal import portal
from codomyrmex.concurrency.sync.reservation import Reservation
from codomyrmex.concurrency.sync.session import Session, unwrapped


class LockManager:
    """``codomyrmex.concurrency.LockManager`` for code without an event loop."""

    def __init__(self, session: Session | None = None) -> None:
        self._session = session
        self._twin = twin.LockManager(unwrapped(session))
        self._locks: dict[str, DistributedLock] = {}

    @text_of(twin.LockManager.acquire)
    def acquire(
        self,
        name: str,
        timeout: float | None = None,
        shared: bool = False,
        metadata: dict[str, Any] | None = None,
        on_loss: OnLoss = "raise",
        lock_delay: float = 0.0,
        max_hold: float | None = None,
        max_idle: float | None = None,
        deadlock: OnDeadlock = "report",
    ) -> Grant:
        acquisition = self._twin.acquire(
            name, timeout, shared, metadata, at_loss(on_loss), lock_delay, max_hold, max_idle, deadlock
        )
        return self._wrap(portal().run(acquisition._acquire(threading.current_thread()), self._undo))[0]

    @text_of(twin.LockManager.acquire_all)
    def acquire_all(
        self,
        names: Iterable[str | twin.Shared],
        timeout: float | None = None,
        shared: bool = False,
        metadata: dict[str, Any] | None = None,
        on_loss: OnLoss = "raise",
        lock_delay: float = 0.0,
        max_hold: float | None = None,
        max_idle: float | None = None,
        deadlock: OnDeadlock = "report",
    ) -> Grants:
        acquisition = self._twin.acquire_all(
            names, timeout, shared, metadata, at_loss(on_loss), lock_delay, max_hold, max_idle, deadlock
        )
        return self._wrap(portal().run(acquisition._acquire(threading.current_thread()), self._undo))

    @text_of(twin.LockManager.acquire_paths)
    def acquire_paths(
        self,
        paths: Iterable[str],
        tree: str = "default",
        timeout: float | None = None,
        shared: bool = False,
        metadata: dict[str, Any] | None = None,
        on_loss: OnLoss = "raise",
        lock_delay: float = 0.0,
        max_hold: float | None = None,
        max_idle: float | None = None,
        deadlock: OnDeadlock = "report",
    ) -> Grant:
        acquisition = self._twin.acquire_paths(
            paths, tree, timeout, shared, metadata, at_loss(on_loss), lock_delay, max_hold, max_idle, deadlock
        )
        return self._wrap(portal().run(acquisition._acquire(threading.current_thread()), self._undo))[0]

    def reserve(
        self,
        *names: str | twin.Shared | Iterable[str | twin.Shared],
        ttl: float,
        timeout: float | None = None,
        note: str = "",
        owner: str | None = None,
        shared: bool = False,
        paths: Iterable[str] = (),
        tree: str = "default",
        metadata: dict[str, Any] | None = None,
        keepalive: bool = False,
        deadlock: OnDeadlock = "report",
    ) -> Reservation:
        """Reserve names and paths for ``ttl`` seconds, whatever becomes of this process. ``with manager.reserve("x",
        ttl=60) as reservation: ...`` releases it at the block's end. The arguments and the errors are those of the
        asyncio class."""
        reserving = self._twin.reserve(
            *names,
            ttl=ttl,
            timeout=timeout,
            note=note,
            owner=owner,
            shared=shared,
            paths=paths,
            tree=tree,
            metadata=metadata,
            keepalive=keepalive,
            deadlock=deadlock,
        )
        made = portal().run(reserving._reserve(threading.current_thread()), AsyncReservation.release)
        return Reservation(made)

    @text_of(twin.LockManager.reservation)
    def reservation(self, handle: str) -> Reservation:
        return Reservation(portal().run(self._open(handle)))

    async def _open(self, handle: str) -> AsyncReservation:
        return self._twin.reservation(handle)

    reservations = blocking(twin.LockManager.reservations)

    @text_of(twin.LockManager.release)
    def release(self, grant: Grant) -> None:
        if not isinstance(grant, Grant):
            raise TypeError(
                f"release takes the Grant that acquire gave, not {type(grant).__name__}; "
                "a name is released by lock(name).release()"
            )
        portal().run(self._twin.release(grant._twin))

    @text_of(twin.LockManager.lock)
    def lock(self, name: str) -> DistributedLock:
        return self._locks.setdefault(check_name(name), DistributedLock(name, self._session))

    locks = blocking(twin.LockManager.locks)
    info = blocking(twin.LockManager.info)
    watch = blocking(twin.LockManager.watch)
    waits = blocking(twin.LockManager.waits)
    history = blocking(twin.LockManager.history)
    force_release = blocking(twin.LockManager.force_release)
    stats = blocking(twin.LockManager.stats)

    def _wrap(self, hold: Hold) -> Grants:
        def forget() -> None:
            for entry in hold.entries:
                self._twin._forget(entry)

        return Grants(Grant(hold, grant, forget) for grant in hold.grants)

    async def _undo(self, hold: Hold) -> None:
        for entry in hold.entries:
            self._twin._forget(entry)
        await hold.release()
