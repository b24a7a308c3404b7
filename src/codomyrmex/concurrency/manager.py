"""``LockManager``: locks by name, everybody's locks in view, and the operator's ways to intervene."""

from __future__ import annotations

from collections.abc import AsyncIterator, Generator
from types import TracebackType
from typing import Any

from codomyrmex.concurrency.errors import NotHeld
from codomyrmex.concurrency.locks import DistributedLock, Hold, OnLoss, check_timeout
from codomyrmex.concurrency.models import LockEvent, LockInfo, LockStats, Owner
from codomyrmex.concurrency.queue import observe
from codomyrmex.concurrency.queue.grant import Grant
from codomyrmex.concurrency.session import Session, ready


class Acquisition:
    """What ``LockManager.acquire`` returns: await it for a grant, or use it with ``async with``. Good for one use."""

    def __init__(self, manager: LockManager, lock: DistributedLock, timeout: float | None) -> None:
        self._manager = manager
        self._lock = lock
        self._timeout = timeout
        self._hold: Hold | None = None
        self._grant: Grant | None = None

    def __await__(self) -> Generator[Any, None, Grant]:
        return self._manager._acquire(self._lock, self._timeout).__await__()

    async def __aenter__(self) -> Grant:
        self._grant = await self._manager._acquire(self._lock, self._timeout)
        self._hold = self._manager._holds[self._grant]
        self._hold.protect()
        return self._grant

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._hold and self._grant
        if self._manager._forget(self._grant):
            await self._hold.leave(kind, error)


class LockManager:
    """Locks by name on one session, the process's default one when left out.

    Unlike a ``DistributedLock`` it is not bound to a name, sees all locks of the namespace, and keeps count.
    """

    def __init__(self, session: Session | None = None) -> None:
        self._session = session
        self._locks: dict[str, DistributedLock] = {}
        self._names: set[str] = set()
        self._holds: dict[Grant, Hold] = {}
        self._acquisitions = self._releases = self._contended = 0

    def acquire(
        self,
        name: str,
        timeout: float | None = None,
        metadata: dict[str, Any] | None = None,
        on_loss: OnLoss = "cancel",
    ) -> Acquisition:
        """Acquire ``name``: ``async with manager.acquire(name) as grant``, or ``grant = await
        manager.acquire(name)`` and later ``await manager.release(grant)``. Arguments and errors are those of
        ``DistributedLock``."""
        check_timeout(timeout)
        return Acquisition(self, DistributedLock(name, self._session, on_loss, metadata), timeout)

    async def release(self, grant: Grant) -> None:
        """Release a grant of this manager; does nothing if it was lost, raises ``NotHeld`` if it is not held."""
        hold = self._forget(grant)
        if hold is None:
            raise NotHeld(f"{grant.name!r} with token {grant.token} is not held through this manager")
        await hold.entry.release()

    def lock(self, name: str) -> DistributedLock:
        """The ``DistributedLock`` of ``name`` on this manager's session; the same object each time."""
        if name not in self._locks:
            self._locks[name] = DistributedLock(name, self._session)
        return self._locks[name]

    async def locks(self, prefix: str = "") -> list[LockInfo]:
        """Every lock that is held or waited for and whose name starts with ``prefix``, by name."""
        return await observe.locks(await ready(self._session), prefix)

    async def info(self, name: str) -> LockInfo | None:
        """Holders and waiters of one lock, or None if there are none."""
        return await observe.info(await ready(self._session), name)

    async def watch(self, prefix: str = "") -> AsyncIterator[LockEvent]:
        """Follow every step of every lock whose name starts with ``prefix``, beginning with what is there now."""
        async for event in observe.watch(await ready(self._session), prefix):
            yield event

    async def force_release(self, name: str, *, reason: str, token: int | None = None) -> Owner:
        """Take the lock away from its holder and return who that was.

        The holder is told (its block is cancelled, its fenced writes are refused), the next waiter is granted, and
        ``reason`` is recorded with your user name. With ``token`` only the holder with that token is released.
        Raises ``NotHeld`` if nobody holds it, or somebody else by now.
        """
        return await observe.force_release(await ready(self._session), name, reason, token)

    def stats(self) -> LockStats:
        """Counters since this manager was made; ``total_locks`` is the number of distinct names acquired."""
        return LockStats(
            total_locks=len(self._names),
            total_acquisitions=self._acquisitions,
            total_releases=self._releases,
            active_locks=sum(hold.entry.remaining() > 0 for hold in self._holds.values()),
            lock_contention=self._contended,
        )

    async def _acquire(self, lock: DistributedLock, timeout: float | None) -> Grant:
        hold, grant = await lock._attempt(timeout)
        self._contended += hold.entry.contended
        self._names.add(lock.name)
        self._acquisitions += 1
        self._holds[grant] = hold
        return grant

    def _forget(self, grant: Grant) -> Hold | None:
        hold = self._holds.pop(grant, None)
        self._releases += hold is not None
        return hold
