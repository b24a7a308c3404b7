"""``Semaphore``: a limit that the whole fleet shares, on the wait queue; first come, first served.

The queue decides who is granted; this file says what a permit is to its holder, and keeps the limit in etcd. The limit
is part of a key's name beside the entries, so whoever reads or watches the queue sees the two change in one order.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Any

from codomyrmex.concurrency.affinity import current_task
from codomyrmex.concurrency.callsite import users_line, warn
from codomyrmex.concurrency.context_managers import AsyncOnly
from codomyrmex.concurrency.decode import MAX_NUMBER
from codomyrmex.concurrency.durations import check_timeout
from codomyrmex.concurrency.errors import ConcurrencyError, LimitMismatch, NotHeld, SemaphoreInUse
from codomyrmex.concurrency.etcd.commit import Request
from codomyrmex.concurrency.etcd.transports.protocol import Compare, Delete, Get, GetResult, Op, Put, Target
from codomyrmex.concurrency.keys import SEMAPHORE, check_name, limit_key, limit_range, permits_of, prefix_end
from codomyrmex.concurrency.models import SemaphoreInfo
from codomyrmex.concurrency.recipes.acquire import Claim
from codomyrmex.concurrency.recipes.hold import Hold, OnLoss
from codomyrmex.concurrency.session import Session, ready
from codomyrmex.concurrency.waitqueue import inspect
from codomyrmex.concurrency.waitqueue.entry import By
from codomyrmex.concurrency.waitqueue.grant import Grant
from codomyrmex.concurrency.waitqueue.hold_options import HoldOptions
from codomyrmex.concurrency.waitqueue.rules import Permits, holding
from codomyrmex.concurrency.waitqueue.view import is_entry, is_limit, limit_in

_TRIES = 20


class Permit(AsyncOnly):
    """What ``acquire`` returns: ``permits`` of the semaphore, held until ``release`` or until the session is lost.

    ``grant`` has the fencing token, the time left to trust it, and fenced writes, as a lock's.
    """

    def __init__(self, hold: Hold, permits: int) -> None:
        self._hold = hold
        self.permits = permits
        self.grant: Grant = hold.grants[0]
        self._released = False

    async def release(self) -> None:
        """Give the permits back; does nothing if they were lost. Raises ``NotHeld`` the second time. An ``EtcdError``
        means, as with ``DistributedLock``, that etcd has not confirmed it yet."""
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
    """Permits for the time of a block: ``async with sem.hold(permits=n)``; good for one use."""

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

    The limit lives in etcd and is set by whoever opens the semaphore first; to open it with another one raises
    ``LimitMismatch`` at the first use. ``resize`` changes it for everyone. Requests are served in order of arrival,
    large ones too: small ones behind a large one wait for it. Permits of a process that dies come back with its lease.

    Args:
        name: as a lock's; semaphores and locks of one name are apart.
        max_concurrent: the limit, at least 1.
        session: the session to use; the process's default one when left out.
        on_loss: as ``DistributedLock``'s: whether a block is cancelled when its permits are lost.
        max_hold: seconds after which a permit is lost, as ``DistributedLock``'s.
        metadata: shown to others with each permit, as ``DistributedLock``'s.

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
        metadata: dict[str, Any] | None = None,
    ) -> None:
        self._name = check_name(name)
        self._limit = check_limit(max_concurrent)
        self._session = session
        self._agreed: Session | None = None  # the session in which its limit was found to be the fleet's
        self._claim = Claim(
            session, SEMAPHORE, (self._name,), on_loss, metadata, HoldOptions.checked(max_hold), prepare=self._agree
        )
        self._blocks: dict[asyncio.Task[object] | None, list[Permit]] = {}

    @property
    def name(self) -> str:
        return self._name

    async def acquire(self, permits: int = 1, timeout: float | None = None) -> Permit:
        """Wait for ``permits`` permits, for at most ``timeout`` seconds (None: as long as it takes; 0: one try).

        Raises ``LockTimeout``, ``LimitMismatch`` (opened with another limit; or more permits than it has become),
        ``ValueError`` for more permits than the limit, ``SessionLost`` or an ``EtcdError``; nothing stays behind then.
        """
        return await self._acquire(permits, timeout)

    async def _acquire(self, permits: int, timeout: float | None, by: By | None = None) -> Permit:
        """``by``: who asks, if that is not the current task."""
        check_timeout(timeout)
        await self._check_permits(permits)
        return Permit(await self._claim.attempt((Permits(permits),), timeout, by), permits)

    async def try_acquire(self, permits: int = 1) -> Permit | None:
        """The permits if they are free right now and nobody waits for them, else None."""
        return await self._try_acquire(permits)

    async def _try_acquire(self, permits: int, by: By | None = None) -> Permit | None:
        await self._check_permits(permits)
        hold = await self._claim.attempt_now((Permits(permits),), by)
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
        """Permits that nobody holds right now; they may be spoken for by those who wait. Of a semaphore that is not in
        etcd yet, all that it would have."""
        info = await self.info()
        return self._limit if info.limit is None else info.available

    async def info(self) -> SemaphoreInfo:
        """The limit, who holds and who waits, as etcd has it at one revision; without a limit if it is not in etcd.

        To look does not create it: the first ``acquire`` or ``resize`` does. Raises ``LimitMismatch`` as these do.
        """
        session = await ready(self._session)
        info = await inspect.semaphore(session, self._name)
        if info.limit == self._limit:
            self._agreed = session
        elif info.limit is not None and self._agreed is not session:
            raise self._mismatch(info.limit)
        return info

    async def resize(self, limit: int) -> None:
        """Change the limit for everyone, at once; whoever waits is granted by the new one.

        Permits held beyond a smaller limit stay held until they are released. A request waiting for more permits than
        there are now fails with ``LimitMismatch``. Raises ``ValueError`` for a limit below 1.
        """
        check_limit(limit)
        await resize(await self._claim.session(), self._name, limit)
        self._limit = limit

    async def delete(self) -> None:
        """Remove the semaphore from etcd. Raises ``SemaphoreInUse`` while anybody holds permits or waits for them, and
        ``NotHeld`` if there is none.

        The next ``acquire`` through this object creates it anew; another object that has used it raises
        ``LimitMismatch`` at its next acquire.
        """
        await delete(await ready(self._session), self._name)
        self._agreed = None
        self._claim.forget_session()

    async def __aenter__(self) -> Grant:
        permit = await self.acquire()
        self._blocks.setdefault(asyncio.current_task(), []).append(permit)
        return await permit.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        task = current_task()
        if task not in self._blocks:  # in a forked child, where no task is the one that entered
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

    async def _agree(self, session: Session) -> None:
        """Agree with the fleet on the limit, once in each session. What lies among the limits but is none is passed
        over: only what was created after it was seen can be one."""
        if self._agreed is session:
            return
        queue = session.layout.queue(self._name, SEMAPHORE)
        start, end = limit_range(queue)
        mine = Put(limit_key(queue, self._limit), b"")
        seen = 0
        for _ in range(_TRIES):
            first = Compare(start, Target.CREATE_REVISION, seen + 1, end, less=True)
            request = Request((start,), (mine,), compares=(first,), otherwise=(Get(start, end),), again=(), alone=True)
            reply = await session.committer.commit(request)
            if reply.succeeded:
                self._agreed = session
                return
            found = reply.results[0]
            assert isinstance(found, GetResult)
            limit = limit_in(found.kvs)
            if limit == self._limit:
                self._agreed = session
                return
            if limit is not None:
                raise self._mismatch(limit)
            seen = found.revision
        raise ConcurrencyError(f"others keep writing among the limits of the semaphore {self._name!r}; try again")


async def resize(session: Session, name: str, limit: int) -> int | None:
    """Set the limit of a semaphore that exists; returns the former one. Raises ``NotHeld`` if there is none."""
    queue = session.layout.queue(check_name(name), SEMAPHORE)
    start, end = limit_range(queue)
    for _ in range(_TRIES):
        found = await session.transport.get(Get(start, end))
        former, new = limit_in(found.kvs), limit_key(queue, check_limit(limit))
        if former is None:
            raise NotHeld(f"there is no semaphore {name!r}")
        if former == limit:
            return former
        # The old key's deletion is what those who wait are told of.
        old = [kv for kv in found.kvs if is_limit(kv) and kv.key != new]
        same = [Compare(kv.key, Target.CREATE_REVISION, kv.create_revision) for kv in old]
        change: list[Op] = [*(Delete(kv.key) for kv in old), Put(new, b"")]
        reply = await session.committer.commit(Request((start,), change, compares=same, alone=True))
        if reply.succeeded:
            return former
    raise ConcurrencyError(f"others keep changing the limit of the semaphore {name!r}; try again")


async def delete(session: Session, name: str) -> int:
    """Remove a semaphore that nobody uses; returns the limit that it had. See ``Semaphore.delete``."""
    queue = session.layout.queue(check_name(name), SEMAPHORE)
    for _ in range(_TRIES):
        found = await session.transport.get(Get(queue, prefix_end(queue)))
        limit = limit_in(found.kvs)
        if limit is None:
            raise NotHeld(f"there is no semaphore {name!r}")
        if entries := sorted((kv for kv in found.kvs if is_entry(kv)), key=lambda kv: kv.create_revision):
            held = holding([kv.key for kv in entries], limit)
            permits = sum(permits_of(kv.key) for kv in entries[:held])
            raise SemaphoreInUse(
                f"the semaphore {name!r} is in use: {permits} of {limit} permits are held, "
                f"{len(entries) - held} wait for more; nothing was deleted"
            )
        limits = [kv for kv in found.kvs if is_limit(kv)]
        same = [Compare(kv.key, Target.CREATE_REVISION, kv.create_revision) for kv in limits]
        # The compares say that nobody has joined since and the limit is the same; whoever joins later finds none.
        same.append(Compare(queue, Target.CREATE_REVISION, found.revision + 1, prefix_end(queue), less=True))
        change = [Delete(kv.key) for kv in limits]
        if (await session.committer.commit(Request((queue,), change, compares=same, alone=True))).succeeded:
            return limit
    raise ConcurrencyError(f"others keep changing the semaphore {name!r}; try again")


def check_limit(limit: int) -> int:
    """Return ``limit`` if it can be one; raises ``ValueError`` or ``TypeError``."""
    if isinstance(limit, bool) or not isinstance(limit, int):
        raise TypeError(f"max_concurrent must be an int, not {type(limit).__name__}")
    if limit < 1:
        raise ValueError(f"max_concurrent must be at least 1, not {limit}")
    if limit > MAX_NUMBER:
        raise ValueError(f"max_concurrent may be {MAX_NUMBER} at most")
    return limit


def check_permits(permits: int) -> int:
    """Return ``permits`` if one can ask for them; raises ``ValueError`` or ``TypeError``."""
    if isinstance(permits, bool) or not isinstance(permits, int):
        raise TypeError(f"permits must be an int, not {type(permits).__name__}")
    if permits < 1:
        raise ValueError(f"permits must be at least 1, not {permits}")
    return permits
