"""The blocking twin of ``DistributedLock``."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Any

from codomyrmex.concurrency.context_managers import BlockingOnly
from codomyrmex.concurrency.errors import NotHeld
from codomyrmex.concurrency.keys import LOCK, check_name
from codomyrmex.concurrency.models import LockInfo
from codomyrmex.concurrency.recipes import lock as twin
from codomyrmex.concurrency.recipes.acquire import AcquireRequest, OnDeadlock
from codomyrmex.concurrency.recipes.hold import Hold
from codomyrmex.concurrency.session import ready
from codomyrmex.concurrency.sync.blocking import text_of
from codomyrmex.concurrency.sync.grant import Grant, OnLoss, at_loss, this_thread
from codomyrmex.concurrency.sync.portal import portal
from codomyrmex.concurrency.sync.session import Session, unwrapped
from codomyrmex.concurrency.waitqueue import inspect
from codomyrmex.concurrency.waitqueue.hold_options import HoldOptions
from codomyrmex.concurrency.waitqueue.rules import exclusive

_RULES = (exclusive,)


class DistributedLock(BlockingOnly):
    """``codomyrmex.concurrency.DistributedLock`` for code without an event loop: ``with DistributedLock("x"): ...``.

    Many threads may use one object at once; each releases its own grant. The arguments are those of the asyncio class,
    except ``on_loss``: ``"raise"`` raises ``LockLost`` at the block's end, and ``"notify"`` only sets ``grant.lost``.
    """

    def __init__(
        self,
        name: str,
        session: Session | None = None,
        on_loss: OnLoss = "raise",
        metadata: dict[str, Any] | None = None,
        lock_delay: float = 0.0,
        max_hold: float | None = None,
        max_idle: float | None = None,
        deadlock: OnDeadlock = "report",
    ) -> None:
        self._name = check_name(name)
        self._session = unwrapped(session)
        options = HoldOptions.checked(max_hold, lock_delay, max_idle)
        self._request = AcquireRequest(
            session=self._session,
            queues=((LOCK, self._name),),
            on_loss=at_loss(on_loss),
            metadata=metadata,
            deadlock=deadlock,
            options=options,
        )
        self._held: list[tuple[int, Grant]] = []
        self._guard = threading.Lock()

    @property
    def name(self) -> str:
        """The lock's name."""
        return self._name

    @property
    def held(self) -> bool:
        """True while a thread of this process holds the lock through this object and may trust it."""
        return self.grant is not None

    @property
    @text_of(twin.DistributedLock.grant)
    def grant(self) -> Grant | None:
        with self._guard:
            return next((grant for _, grant in self._held if grant.deadline() > 0), None)

    @text_of(twin.DistributedLock.acquire)
    def acquire(self, timeout: float | None = None) -> Grant:
        return self._keep(portal().run(self._request.attempt(_RULES, timeout, this_thread()), Hold.release))

    @text_of(twin.DistributedLock.try_acquire)
    def try_acquire(self) -> Grant | None:
        hold = portal().run(self._request.attempt_now(_RULES, this_thread()), _release_if_any)
        return self._keep(hold) if hold else None

    def release(self) -> None:
        """Release the grant of the current thread if it has one, else the latest grant held through this object.

        Does nothing for a lock that was lost. Raises ``NotHeld`` if there is nothing to release, and an ``EtcdError``
        if etcd does not confirm the release in time; the release goes on until etcd answers or the lease ends.
        """
        self._latest().release()

    @text_of(twin.DistributedLock.info)
    def info(self) -> LockInfo | None:
        return portal().run(self._info())

    async def _info(self) -> LockInfo | None:
        return await inspect.info(await ready(self._session), self._name)

    def __enter__(self) -> Grant:
        return self.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._latest().__exit__(kind, error, trace)

    def __repr__(self) -> str:
        return f"<DistributedLock {self._name!r} {'held' if self.held else 'not held'}>"

    def _keep(self, hold: Hold) -> Grant:
        grant = Grant(hold, hold.grants[0], lambda: self._drop(hold))
        with self._guard:
            self._held.append((threading.get_ident(), grant))
        return grant

    def _latest(self) -> Grant:
        mine = threading.get_ident()
        with self._guard:
            if not self._held:
                raise NotHeld(f"the lock {self._name!r} is not held through this object")
            return next((grant for thread, grant in reversed(self._held) if thread == mine), self._held[-1][1])

    def _drop(self, hold: Hold) -> None:
        with self._guard:
            self._held = [held for held in self._held if held[1]._hold is not hold]


async def _release_if_any(hold: Hold | None) -> None:
    if hold:
        await hold.release()
