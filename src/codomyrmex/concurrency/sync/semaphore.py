"""The blocking twin of ``Semaphore``."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Any

from codomyrmex.concurrency.context_managers import BlockingOnly
from codomyrmex.concurrency.recipes import semaphore as twin
from codomyrmex.concurrency.recipes.acquire import OnDeadlock
from codomyrmex.concurrency.sync.blocking import blocking, text_of
from codomyrmex.concurrency.sync.grant import Grant, OnLoss, at_loss, this_thread
from codomyrmex.concurrency.sync.portal import portal
from codomyrmex.concurrency.sync.session import Session, unwrapped


class Permit(BlockingOnly):
    """``permits`` of a semaphore, held until ``release`` or the end of ``with permit: ...``."""

    def __init__(self, permit: twin.Permit) -> None:
        self._twin = permit
        self.permits = permit.permits
        self.grant = Grant(permit._hold, permit.grant)

    release = blocking(twin.Permit.release)

    def __enter__(self) -> Grant:
        return self.grant

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        portal().run(self._twin.__aexit__(kind, error, trace))


class Semaphore(BlockingOnly):
    """``codomyrmex.concurrency.Semaphore`` for code without an event loop: ``with semaphore: ...``."""

    def __init__(
        self,
        name: str = "default",
        *,
        max_concurrent: int,
        session: Session | None = None,
        on_loss: OnLoss = "raise",
        max_hold: float | None = None,
        max_idle: float | None = None,
        metadata: dict[str, Any] | None = None,
        deadlock: OnDeadlock = "report",
    ) -> None:
        self._twin = twin.Semaphore(
            name,
            max_concurrent=max_concurrent,
            session=unwrapped(session),
            on_loss=at_loss(on_loss),
            max_hold=max_hold,
            max_idle=max_idle,
            metadata=metadata,
            deadlock=deadlock,
        )
        self._blocks = threading.local()

    @property
    def name(self) -> str:
        """The semaphore's name."""
        return self._twin.name

    @text_of(twin.Semaphore.acquire)
    def acquire(self, permits: int = 1, timeout: float | None = None) -> Permit:
        return Permit(portal().run(self._twin._acquire(permits, timeout, this_thread()), twin.Permit.release))

    @text_of(twin.Semaphore.try_acquire)
    def try_acquire(self, permits: int = 1) -> Permit | None:
        permit = portal().run(self._twin._try_acquire(permits, this_thread()), _release_if_any)
        return Permit(permit) if permit else None

    @text_of(twin.Semaphore.hold)
    def hold(self, permits: int = 1, timeout: float | None = None) -> Permit:
        return self.acquire(permits, timeout)

    available = blocking(twin.Semaphore.available)
    info = blocking(twin.Semaphore.info)
    resize = blocking(twin.Semaphore.resize)
    delete = blocking(twin.Semaphore.delete)

    def __enter__(self) -> Grant:
        permit = self.acquire()
        if not hasattr(self._blocks, "permits"):
            self._blocks.permits = []
        self._blocks.permits.append(permit)
        return permit.grant

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._blocks.permits.pop().__exit__(kind, error, trace)

    def __repr__(self) -> str:
        return repr(self._twin)


async def _release_if_any(permit: twin.Permit | None) -> None:
    if permit:
        await permit.release()
