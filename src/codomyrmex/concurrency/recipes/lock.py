"""``DistributedLock``: one name, held by one task of one process of the fleet at a time, in order of arrival.

The wait queue grants the lock. This file keeps the grants that tasks got through one object, and finds the one that a
release or the end of a block belongs to.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any

from codomyrmex.concurrency.affinity import current_task
from codomyrmex.concurrency.context_managers import AsyncOnly
from codomyrmex.concurrency.errors import NotHeld
from codomyrmex.concurrency.keys import LOCK, check_name
from codomyrmex.concurrency.models import LockInfo
from codomyrmex.concurrency.recipes.acquire import AcquireRequest, OnDeadlock
from codomyrmex.concurrency.recipes.hold import Hold, OnLoss
from codomyrmex.concurrency.session import Session, ready
from codomyrmex.concurrency.waitqueue import inspect
from codomyrmex.concurrency.waitqueue.grant import Grant
from codomyrmex.concurrency.waitqueue.hold_options import HoldOptions
from codomyrmex.concurrency.waitqueue.rules import exclusive

_RULES = (exclusive,)


class DistributedLock(AsyncOnly):
    """A fair lock on ``name`` across the fleet. Many tasks may use one object at once, as with ``asyncio.Lock``.

    The lock is not reentrant: a task that holds it and acquires it again waits for itself.

    Args:
        name: any printable text up to 512 bytes in UTF-8.
        session: the session to use; the process's default one when left out.
        on_loss: ``"cancel"`` cancels the body of ``async with`` before anyone else can be granted and raises
            ``LockLost`` at its end; ``"notify"`` only sets ``grant.lost``. A lock taken with ``acquire()`` has no
            body to cancel.
        metadata: JSON-like data that commands and ``info`` show with the queue.
        lock_delay: seconds for which the name stays closed after a holder has died (its lease expired), so that its
            operations under way can end. A release has no delay. It costs one more write per grant.
        max_hold: seconds after which a grant is lost, as if its session were: the block is cancelled. The lock goes
            to the next waiter when the block has ended, or a third of ``session_ttl`` later, even if the event loop
            is blocked all the while.
        max_idle: seconds after which a grant without progress is lost in the same way. They count from the grant, and
            anew from each ``grant.progress()`` that etcd has answered, from the time at which it was called.
        deadlock: ``"fail"`` raises ``Deadlock`` from a wait that is the youngest of those that wait for each other in a
            cycle and ask for it. ``"report"`` only logs and counts the cycle.

    Raises ``InvalidName`` for a name that cannot be used, and ``TypeError`` or ``ValueError`` for other arguments.

    The queue is that of etcd's own recipe (the lowest create revision under the lock's prefix holds; Burrows, "The
    Chubby lock service", 2006, for sessions and fencing), so ``etcdctl lock`` on the same prefix takes its turn too.
    """

    def __init__(
        self,
        name: str,
        session: Session | None = None,
        on_loss: OnLoss = "cancel",
        metadata: dict[str, Any] | None = None,
        lock_delay: float = 0.0,
        max_hold: float | None = None,
        max_idle: float | None = None,
        deadlock: OnDeadlock = "report",
    ) -> None:
        self._name = check_name(name)
        self._session = session
        self._request = AcquireRequest(
            session=session,
            queues=((LOCK, self._name),),
            on_loss=on_loss,
            metadata=metadata,
            deadlock=deadlock,
            options=HoldOptions.checked(max_hold, lock_delay, max_idle),
        )
        self._holds: dict[Grant, Hold] = {}

    @property
    def name(self) -> str:
        """The name of the lock, in NFC."""
        return self._name

    @property
    def held(self) -> bool:
        """True if a task of this process holds the lock through this object and may trust it."""
        return self.grant is not None

    @property
    def grant(self) -> Grant | None:
        """The grant held through this object, if any."""
        return next((grant for grant, hold in self._holds.items() if hold.held), None)

    async def acquire(self, timeout: float | None = None) -> Grant:
        """Wait for the lock and return the grant.

        ``timeout`` is in seconds. None waits as long as it takes. 0 tries once, and ends when etcd has answered, or
        after ``request_timeout``. Raises ``LockTimeout``, ``Deadlock``, ``SessionLost``, ``LockLost`` (an operator
        deleted the entry) or an ``EtcdError``. After an error or a cancelled wait, no key stays in etcd.
        """
        return self._keep(await self._request.attempt(_RULES, timeout))

    async def try_acquire(self) -> Grant | None:
        """Acquire the lock if it is free right now; else returns None, and does not wait in the queue."""
        hold = await self._request.attempt_now(_RULES)
        return self._keep(hold) if hold else None

    async def release(self) -> None:
        """Release the lock: the grant of the current task if it has one, else the one held through this object.

        Does nothing for a lock that was lost. Raises ``NotHeld`` if there is nothing to release, and an ``EtcdError``
        if etcd does not confirm the release in time. The lock is given back all the same: the removal goes on until
        etcd answers or the lease ends. The end of ``async with`` logs that error and does not raise it.
        """
        self._drop_released()
        if not self._holds:
            raise NotHeld(f"the lock {self._name!r} is not held through this object")
        next(iter(self._holds.values())).check_here()
        await self._holds.pop(self._mine() or next(reversed(self._holds))).release()

    async def info(self) -> LockInfo | None:
        """The holders and waiters, as etcd has them at one revision; None if there are none."""
        return await inspect.info(await ready(self._session), self._name)

    async def __aenter__(self) -> Grant:
        hold = await self._request.attempt(_RULES, None)
        hold.protect()
        return self._keep(hold)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        mine = self._mine()
        if mine:
            await self._holds.pop(mine).leave(kind, error)
        elif kind is None:
            for hold in self._holds.values():
                hold.check_here()

    def __repr__(self) -> str:
        return f"<DistributedLock {self._name!r} {'held' if self.held else 'not held'}>"

    def _mine(self) -> Grant | None:
        """The latest grant of the current task."""
        task = current_task()
        for grant, hold in reversed(self._holds.items()):
            if hold.task is task:
                return grant
        return None

    def _keep(self, hold: Hold) -> Grant:
        self._drop_released()
        self._holds[hold.grants[0]] = hold
        return hold.grants[0]

    def _drop_released(self) -> None:
        """Forget the holds that were released through their grants."""
        for grant in [grant for grant, hold in self._holds.items() if hold.released]:
            del self._holds[grant]
