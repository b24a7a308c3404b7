"""``Semaphore``: a limit that the whole fleet shares, on the wait queue; first come, first served.

The queue decides who is granted; this file says what a permit is to its holder, and keeps the limit in etcd. The limit
is part of a key's name beside the entries, so whoever reads or watches the queue sees the two change in one order.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Any

from codomyrmex.concurrency.claim import Claim
from codomyrmex.concurrency.decode import MAX_NUMBER
from codomyrmex.concurrency.errors import ConcurrencyError, LimitMismatch, LockTimeout, NotHeld
from codomyrmex.concurrency.etcd.commit import Request
from codomyrmex.concurrency.etcd.transport import Compare, Delete, Get, GetResult, Op, Put, Target
from codomyrmex.concurrency.hold import Hold, OnLoss
from codomyrmex.concurrency.keys import SEMAPHORE, check_name, limit_key, limit_range
from codomyrmex.concurrency.models import SemaphoreInfo
from codomyrmex.concurrency.queue import observe
from codomyrmex.concurrency.queue.grant import Grant
from codomyrmex.concurrency.queue.reading import is_limit, limit_in
from codomyrmex.concurrency.queue.rules import Permits
from codomyrmex.concurrency.queue.terms import Terms
from codomyrmex.concurrency.session import Session

_TRIES = 20


class Permit:
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


class Holding:
    """What ``Semaphore.hold`` returns: ``async with sem.hold(permits=n)``; good for one use."""

    def __init__(self, semaphore: Semaphore, permits: int, timeout: float | None) -> None:
        self._semaphore = semaphore
        self._permits = permits
        self._timeout = timeout
        self._permit: Permit | None = None

    async def __aenter__(self) -> Grant:
        self._permit = await self._semaphore.acquire(self._permits, self._timeout)
        return await self._permit.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._permit
        await self._permit.__aexit__(kind, error, trace)


class Semaphore:
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
        self._claim = Claim(
            session, SEMAPHORE, (self._name,), on_loss, metadata, Terms.checked(max_hold), prepare=self._agree
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
        if check_permits(permits) > self._limit:
            limit = (await self.info()).limit or 0
            if permits > limit:
                raise ValueError(f"{permits} permits were asked for, but the semaphore {self._name!r} has only {limit}")
        return Permit(await self._claim.attempt(Permits(permits), timeout), permits)

    async def try_acquire(self, permits: int = 1) -> Permit | None:
        """The permits if they are free right now and nobody waits for them, else None."""
        try:
            return await self.acquire(permits, timeout=0)
        except LockTimeout:
            return None

    def hold(self, permits: int = 1, timeout: float | None = None) -> Holding:
        """Hold ``permits`` permits during a block: ``async with sem.hold(permits=4): ...``."""
        return Holding(self, check_permits(permits), timeout)

    async def available(self) -> int:
        """Permits that nobody holds right now; they may be spoken for by those who wait."""
        return (await self.info()).available

    async def info(self) -> SemaphoreInfo:
        """The limit, who holds and who waits, as etcd has it at one revision."""
        return await observe.semaphore(await self._claim.session(), self._name)

    async def resize(self, limit: int) -> None:
        """Change the limit for everyone, at once; whoever waits is granted by the new one.

        Permits held beyond a smaller limit stay held until they are released. A request waiting for more permits than
        there are now fails with ``LimitMismatch``. Raises ``ValueError`` for a limit below 1.
        """
        check_limit(limit)
        await resize(await self._claim.session(), self._name, limit)
        self._limit = limit

    async def __aenter__(self) -> Grant:
        permit = await self.acquire()
        self._blocks.setdefault(asyncio.current_task(), []).append(permit)
        return await permit.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        task = asyncio.current_task()
        permits = self._blocks[task]
        permit = permits.pop()
        if not permits:
            del self._blocks[task]
        await permit.__aexit__(kind, error, trace)

    def __repr__(self) -> str:
        return f"<Semaphore {self._name!r} of {self._limit}>"

    async def _agree(self, session: Session) -> None:
        """Agree with the fleet on the limit, once in each session. What lies among the limits but is none is passed
        over: only what was created after it was seen can be one."""
        queue = session.layout.queue(self._name, SEMAPHORE)
        start, end = limit_range(queue)
        mine = Put(limit_key(queue, self._limit), b"")
        seen = 0
        for _ in range(_TRIES):
            first = Compare(start, Target.CREATE_REVISION, seen + 1, end, less=True)
            request = Request((start,), (mine,), compares=(first,), otherwise=(Get(start, end),), again=(), alone=True)
            reply = await session.committer.commit(request)
            if reply.succeeded:
                return
            found = reply.results[0]
            assert isinstance(found, GetResult)
            limit = limit_in(found.kvs)
            if limit == self._limit:
                return
            if limit is not None:
                raise LimitMismatch(
                    f"the semaphore {self._name!r} has a limit of {limit} in etcd, not {self._limit}; open it with "
                    "that, or change it for everyone with resize"
                )
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
