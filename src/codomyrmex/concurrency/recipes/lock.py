"""``DistributedLock``: one name, held by one task of one process of the fleet at a time, in order of arrival.

The queue decides who holds; this file decides what that means to the code of a holder: how it waits, what happens to
its block when the lock is lost, and which grant a release belongs to.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any

from codomyrmex.concurrency.affinity import current_task
from codomyrmex.concurrency.context_managers import AsyncOnly
from codomyrmex.concurrency.errors import NotHeld
from codomyrmex.concurrency.keys import LOCK, check_name
from codomyrmex.concurrency.models import LockInfo
from codomyrmex.concurrency.recipes.acquire import Claim
from codomyrmex.concurrency.recipes.hold import Hold, OnLoss
from codomyrmex.concurrency.session import Session, ready
from codomyrmex.concurrency.waitqueue import inspect
from codomyrmex.concurrency.waitqueue.grant import Grant
from codomyrmex.concurrency.waitqueue.hold_options import HoldOptions
from codomyrmex.concurrency.waitqueue.rules import exclusive

_RULES = (exclusive,)


class DistributedLock(AsyncOnly):
    """A fair lock on ``name`` across the fleet. One object may be used by many tasks at once, as ``asyncio.Lock``.

    Like that one it is not reentrant: a task that holds the lock and acquires it again waits for itself.

    Args:
        name: any printable text up to 512 bytes in UTF-8.
        session: the session to use; the process's default one when left out.
        on_loss: ``"cancel"`` cancels the body of ``async with`` before anyone else can be granted and raises
            ``LockLost`` at its end; ``"notify"`` only sets ``grant.lost``. A lock taken with ``acquire()`` has no
            body to cancel.
        metadata: JSON-like data shown to whoever looks at the queue.
        lock_delay: seconds for which the name stays closed after a holder has died (its lease expired), so that what
            the dead one still had under way can end; not after a release. Costs one more write per grant.
        max_hold: seconds after which a grant is lost, as if its session were: the block is cancelled, and the lock
            goes to the next when the block has ended, or a third of ``session_ttl`` later, also if the event loop is
            blocked all the while.

    Raises ``InvalidName`` for a name that cannot be used, ``TypeError`` or ``ValueError`` for other arguments that
    cannot.

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
    ) -> None:
        self._name = check_name(name)
        self._session = session
        self._claim = Claim(session, LOCK, (self._name,), on_loss, metadata, HoldOptions.checked(max_hold, lock_delay))
        self._holds: dict[Grant, Hold] = {}

    @property
    def name(self) -> str:
        return self._name

    @property
    def held(self) -> bool:
        """Whether a task of this process holds the lock through this object and may trust it."""
        return self.grant is not None

    @property
    def grant(self) -> Grant | None:
        """The grant held through this object, if any."""
        return next((grant for grant, hold in self._holds.items() if hold.held), None)

    async def acquire(self, timeout: float | None = None) -> Grant:
        """Wait for the lock and return the grant.

        ``timeout`` is in seconds; None waits as long as it takes, 0 tries once (and ends when etcd has answered, or
        after ``request_timeout``). Raises ``LockTimeout``,
        ``SessionLost``, ``LockLost`` (an operator deleted the place in the queue) or an ``EtcdError``; nothing stays
        behind in etcd then, nor when the wait is cancelled.
        """
        return self._keep(await self._claim.attempt(_RULES, timeout))

    async def try_acquire(self) -> Grant | None:
        """The grant if the lock is free right now, else None. Never joins the queue."""
        hold = await self._claim.attempt_now(_RULES)
        return self._keep(hold) if hold else None

    async def release(self) -> None:
        """Release the lock: the grant of the current task if it has one, else the one held through this object.

        Does nothing for a lock that was lost; raises ``NotHeld`` if there is nothing to release. Raises an
        ``EtcdError`` if etcd does not confirm it in time; the lock is given back all the same: the removal goes on
        until etcd answers or the lease ends. At the end of ``async with`` that is logged, not raised.
        """
        self._drop_released()
        if not self._holds:
            raise NotHeld(f"the lock {self._name!r} is not held through this object")
        next(iter(self._holds.values())).check_here()
        await self._holds.pop(self._mine() or next(reversed(self._holds))).release()

    async def info(self) -> LockInfo | None:
        """Who holds and who waits, as etcd has it; None if nobody does."""
        return await inspect.info(await ready(self._session), self._name)

    async def __aenter__(self) -> Grant:
        hold = await self._claim.attempt(_RULES, None)
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
        """The grant that the current task got last."""
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
        """Forget what was released by its grant."""
        for grant in [grant for grant, hold in self._holds.items() if hold.released]:
            del self._holds[grant]
