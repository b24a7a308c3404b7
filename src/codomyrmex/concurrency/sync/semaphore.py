"""The blocking twin of ``Semaphore``."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Any

from codomyrmex.concurrency.context_managers import BlockingOnly
from codomyrmex.concurrency.models import SemaphoreInfo
from codomyrmex.concurrency.recipes import semaphore as twin
from codomyrmex.concurrency.sync.lock import Grant, OnLoss, at_loss, this_thread
from codomyrmex.concurrency.sync.portal import portal
from codomyrmex.concurrency.sync.session import Session, unwrapped


class Permit(BlockingOnly):
    """``permits`` of a semaphore, held until ``release`` or the end of ``with permit: ...``."""

    def __init__(self, permit: twin.Permit) -> None:
        self._permit = permit
        self.permits = permit.permits
        self.grant = Grant(permit._hold, permit.grant)

    def release(self) -> None:
        """Give the permits back; does nothing if they were lost. Raises ``NotHeld`` the second time."""
        portal().run(self._permit.release())

    def __enter__(self) -> Grant:
        return self.grant

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        portal().run(self._permit.__aexit__(kind, error, trace))


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
        metadata: dict[str, Any] | None = None,
    ) -> None:
        self._semaphore = twin.Semaphore(
            name,
            max_concurrent=max_concurrent,
            session=unwrapped(session),
            on_loss=at_loss(on_loss),
            max_hold=max_hold,
            metadata=metadata,
        )
        self._blocks = threading.local()

    @property
    def name(self) -> str:
        return self._semaphore.name

    def acquire(self, permits: int = 1, timeout: float | None = None) -> Permit:
        """Wait for ``permits`` permits, for at most ``timeout`` seconds; errors as in the asyncio class."""
        return Permit(portal().run(self._semaphore._acquire(permits, timeout, this_thread()), twin.Permit.release))

    def try_acquire(self, permits: int = 1) -> Permit | None:
        """The permits if they are free right now and nobody waits for them, else None."""
        permit = portal().run(self._semaphore._try_acquire(permits, this_thread()), _release_if_any)
        return Permit(permit) if permit else None

    def hold(self, permits: int = 1, timeout: float | None = None) -> Permit:
        """Hold ``permits`` permits during a block: ``with semaphore.hold(permits=4): ...``."""
        return self.acquire(permits, timeout)

    def available(self) -> int:
        """Permits that nobody holds right now; they may be spoken for by those who wait. Of a semaphore that is not in
        etcd yet, all that it would have."""
        return portal().run(self._semaphore.available())

    def info(self) -> SemaphoreInfo:
        """The limit, who holds and who waits, as etcd has it at one revision; without a limit if it is not in etcd."""
        return portal().run(self._semaphore.info())

    def resize(self, limit: int) -> None:
        """Change the limit for everyone, at once."""
        portal().run(self._semaphore.resize(limit))

    def delete(self) -> None:
        """Remove the semaphore from etcd; raises as the asyncio class, also while it is in use."""
        portal().run(self._semaphore.delete())

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
        return repr(self._semaphore)


async def _release_if_any(permit: twin.Permit | None) -> None:
    if permit:
        await permit.release()
