"""``Semaphore``: a limit that the whole fleet shares, on the wait queue; first come, first served.

The wait queue grants permits. This file keeps the permits that were got through one object. ``semaphore_limit.py``
keeps the limit in etcd.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Any

from codomyrmex.concurrency.affinity import current_task
from codomyrmex.concurrency.callsite import users_line, warn
from codomyrmex.concurrency.context_managers import AsyncOnly
from codomyrmex.concurrency.durations import check_timeout
from codomyrmex.concurrency.errors import LimitMismatch, NotHeld
from codomyrmex.concurrency.keys import SEMAPHORE, check_name
from codomyrmex.concurrency.models import SemaphoreInfo
from codomyrmex.concurrency.recipes import semaphore_limit
from codomyrmex.concurrency.recipes.acquire import AcquireRequest, OnDeadlock
from codomyrmex.concurrency.recipes.hold import Hold, OnLoss
from codomyrmex.concurrency.recipes.semaphore_limit import check_limit
from codomyrmex.concurrency.session import Session, ready
from codomyrmex.concurrency.session_core import SessionCore
from codomyrmex.concurrency.waitqueue import inspect
from codomyrmex.concurrency.waitqueue.entry import Requester
from codomyrmex.concurrency.waitqueue.grant import Grant
from codomyrmex.concurrency.waitqueue.hold_options import HoldOptions
from codomyrmex.concurrency.waitqueue.rules import Permits


class Permit(AsyncOnly):
    """Permits of a semaphore, held until ``release`` or until the session is lost. ``acquire`` returns it.

    ``permits`` is their number. ``grant`` has the fencing token, the time left to trust it, and fenced writes, as a
    lock's grant does.
    """

    def __init__(self, hold: Hold, permits: int) -> None:
        self._hold = hold
        self.permits = permits
        self.grant: Grant = hold.grants[0]
        self._released = False

    async def release(self) -> None:
        """Give the permits back; does nothing if they were lost.

        Raises ``NotHeld`` the second time. An ``EtcdError`` means, as with ``DistributedLock``, that etcd has not
        confirmed the release yet.
        """
        self._hold.check_here()
        if self._released:
            raise NotHeld(f"this permit of the semaphore {self.grant.name!r} was released before")
        self._released = True
        await self._hold.release()

    async def __aenter__(self) -> Grant:
        self._hold.protect()
        return self.grant

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._released = True
        await self._hold.leave(kind, error)

    def __repr__(self) -> str:
        return f"<Permit of {self.permits} of {self.grant.name!r}>"


class Holding(AsyncOnly):
    """Permits for the time of a block: ``async with sem.hold(permits=n)``. It can be used once."""

    def __init__(self, semaphore: Semaphore, permits: int, timeout: float | None) -> None:
        self._semaphore = semaphore
        self._permits = permits
        self._timeout = timeout
        self._line = users_line()
        self._begun = False
        self._permit: Permit | None = None

    async def __aenter__(self) -> Grant:
        self._begun = True
        self._permit = await self._semaphore.acquire(self._permits, self._timeout)
        return await self._permit.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._permit
        await self._permit.__aexit__(kind, error, trace)

    def __del__(self) -> None:
        if not self._begun:
            text = f"hold() of the semaphore {self._semaphore.name!r} was never entered by `async with`"
            warn(self._line, f"{text}: nothing was acquired", RuntimeWarning)


class Semaphore(AsyncOnly):
    """At most ``max_concurrent`` permits held at once by all processes of the fleet together.

    The first use by any process sets the limit in etcd. An object with another limit raises ``LimitMismatch`` at its
    first use. ``resize`` changes the limit for everyone. Requests are served in order of arrival, whatever their size:
    a small request waits for a large one before it. Permits of a process that dies come back when its lease ends.

    Args:
        name: as a lock's; semaphores and locks of one name are apart.
        max_concurrent: the limit, at least 1.
        session: the session to use; the process's default one when left out.
        on_loss: as ``DistributedLock``'s: ``"cancel"`` cancels a block whose permits are lost.
        max_hold, max_idle: seconds after which a permit is lost, as ``DistributedLock``'s.
        metadata: shown to others with each permit, as ``DistributedLock``'s.
        deadlock: ``"fail"`` raises ``Deadlock`` from a wait, as ``DistributedLock``'s.

    Raises ``ValueError`` for a limit below 1, ``InvalidName`` for a name that cannot be used.
    """

    def __init__(
        self,
        name: str = "default",
        *,
        max_concurrent: int,
        session: Session | None = None,
        on_loss: OnLoss = "cancel",
        max_hold: float | None = None,
        max_idle: float | None = None,
        metadata: dict[str, Any] | None = None,
        deadlock: OnDeadlock = "report",
    ) -> None:
        self._name = check_name(name)
        self._limit = check_limit(max_concurrent)
        self._session = session
        self._agreed: SessionCore | None = None  # the session in which its limit was found to be the fleet's
        self._request = AcquireRequest(
            session=session,
            queues=((SEMAPHORE, self._name),),
            on_loss=on_loss,
            metadata=metadata,
            deadlock=deadlock,
            options=HoldOptions.checked(max_hold, max_idle=max_idle),
            prepare=self._agree,
        )
        self._blocks: dict[asyncio.Task[object] | None, list[Permit]] = {}

    @property
    def name(self) -> str:
        """The name of the semaphore, in NFC."""
        return self._name

    async def acquire(self, permits: int = 1, timeout: float | None = None) -> Permit:
        """Wait for ``permits`` permits, for at most ``timeout`` seconds (None: as long as it takes; 0: one try).

        Raises ``LockTimeout``, ``LimitMismatch`` (the semaphore has another limit, or was resized below ``permits``),
        ``ValueError`` for more permits than the limit, ``SessionLost`` or an ``EtcdError``. After an error, no key
        stays in etcd.
        """
        return await self._acquire(permits, timeout)

    async def _acquire(self, permits: int, timeout: float | None, by: Requester | None = None) -> Permit:
        """``by`` is the requester if it is not the current task."""
        check_timeout(timeout)
        await self._check_permits(permits)
        return Permit(await self._request.attempt((Permits(permits),), timeout, by), permits)

    async def try_acquire(self, permits: int = 1) -> Permit | None:
        """Acquire the permits if they are free right now and have no waiters; else returns None."""
        return await self._try_acquire(permits)

    async def _try_acquire(self, permits: int, by: Requester | None = None) -> Permit | None:
        await self._check_permits(permits)
        hold = await self._request.attempt_now((Permits(permits),), by)
        return Permit(hold, permits) if hold else None

    async def _check_permits(self, permits: int) -> None:
        if check_permits(permits) > self._limit:
            limit = (await self.info()).limit or self._limit
            if permits > limit:
                raise ValueError(f"{permits} permits were asked for, but the semaphore {self._name!r} has only {limit}")

    def hold(self, permits: int = 1, timeout: float | None = None) -> Holding:
        """Hold ``permits`` permits during a block: ``async with sem.hold(permits=4): ...``."""
        check_timeout(timeout)
        return Holding(self, check_permits(permits), timeout)

    async def available(self) -> int:
        """The number of permits without a holder at this moment; waiters may be about to get them.

        A semaphore that is not in etcd yet has all its permits.
        """
        info = await self.info()
        return self._limit if info.limit is None else info.available

    async def info(self) -> SemaphoreInfo:
        """The limit, the holders and the waiters, as etcd has them at one revision.

        A semaphore that is not in etcd has no limit: the first ``acquire`` creates it, ``info`` does not. Raises
        ``LimitMismatch`` if the semaphore has another limit.
        """
        session = await ready(self._session)
        info = await inspect.semaphore(session, self._name)
        if info.limit == self._limit:
            self._agreed = session
        elif info.limit is not None and self._agreed is not session:
            raise self._mismatch(info.limit)
        return info

    async def resize(self, limit: int) -> None:
        """Change the limit for everyone, at once; waiters are granted by the new limit.

        Permits held beyond a smaller limit stay held until they are released. A waiter for more permits than the new
        limit fails with ``LimitMismatch``. Raises ``ValueError`` for a limit below 1.
        """
        check_limit(limit)
        await semaphore_limit.resize(await self._request.session(), self._name, limit)
        self._limit = limit

    async def delete(self) -> None:
        """Remove the semaphore from etcd.

        Raises ``SemaphoreInUse`` while it has holders or waiters, and ``NotHeld`` if it is not in etcd. The next
        ``acquire`` through this object creates it anew. Another object that has used it raises ``LimitMismatch`` at
        its next acquire.
        """
        await semaphore_limit.delete(await ready(self._session), self._name)
        self._agreed = None
        self._request.forget_session()

    async def __aenter__(self) -> Grant:
        permit = await self.acquire()
        self._blocks.setdefault(asyncio.current_task(), []).append(permit)
        return await permit.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        task = current_task()
        if task not in self._blocks:  # a forked child, in which no task entered the block
            task = next(iter(self._blocks))
        permits = self._blocks[task]
        permit = permits.pop()
        if not permits:
            del self._blocks[task]
        await permit.__aexit__(kind, error, trace)

    def __repr__(self) -> str:
        return f"<Semaphore {self._name!r} of {self._limit}>"

    def _mismatch(self, limit: int) -> LimitMismatch:
        return LimitMismatch(
            f"the semaphore {self._name!r} has a limit of {limit} in etcd, not {self._limit}; open it with that, or "
            "change it for everyone with resize"
        )

    async def _agree(self, session: SessionCore) -> None:
        """Agree with the fleet on the limit, once in each session."""
        if self._agreed is session:
            return
        limit = await semaphore_limit.agree(session, self._name, self._limit)
        if limit != self._limit:
            raise self._mismatch(limit)
        self._agreed = session


def check_permits(permits: int) -> int:
    """Return ``permits`` if a request may have that many; raises ``ValueError`` or ``TypeError``."""
    if isinstance(permits, bool) or not isinstance(permits, int):
        raise TypeError(f"permits must be an int, not {type(permits).__name__}")
    if permits < 1:
        raise ValueError(f"permits must be at least 1, not {permits}")
    return permits
