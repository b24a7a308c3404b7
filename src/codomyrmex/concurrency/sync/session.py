"""The blocking twin of ``Session``."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Unpack

from codomyrmex.concurrency import session as twin
from codomyrmex.concurrency.context_managers import BlockingOnly
from codomyrmex.concurrency.durations import check_timeout
from codomyrmex.concurrency.errors import ConcurrencyError
from codomyrmex.concurrency.loss import Loss as AsyncLoss
from codomyrmex.concurrency.settings import EtcdOptions, EtcdSettings
from codomyrmex.concurrency.sync.portal import portal


class Loss:
    """Set when something is gone; any thread may ask or wait. ``reason`` says why."""

    def __init__(self, loss: AsyncLoss) -> None:
        self._loss = loss

    @property
    def reason(self) -> ConcurrencyError | None:
        return self._loss.reason

    def is_set(self) -> bool:
        return self._loss.is_set()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is set, for at most ``timeout`` seconds; whether it is."""
        check_timeout(timeout)
        return portal().run(self._wait(timeout))

    async def _wait(self, timeout: float | None) -> bool:
        try:
            async with asyncio.timeout(timeout):
                await self._loss.wait()
        except TimeoutError:
            return self._loss.is_set()
        return True


class Session(BlockingOnly):
    """``codomyrmex.concurrency.Session`` for code without an event loop: ``with Session(...) as session``.

    Any number of threads may share it.
    """

    def __init__(self, settings: EtcdSettings | None = None, **overrides: Unpack[EtcdOptions]) -> None:
        self._session = twin.Session(settings, **overrides)
        self.lost = Loss(self._session.lost)

    @property
    def id(self) -> int:
        """The lease id; 0 before the session is open."""
        return self._session.id

    @property
    def alive(self) -> bool:
        """Whether the lease may be trusted right now."""
        return self._session.alive

    @property
    def settings(self) -> EtcdSettings:
        return self._session.settings

    def deadline(self) -> float:
        """Seconds for which the lease may still be trusted; 0 when it may not."""
        return self._session.deadline()

    def open(self) -> Session:
        """Connect and take a lease; does nothing if that is done already. Raises as the asyncio class."""
        portal().run(self._session.open())
        return self

    def close(self) -> None:
        """Release everything held at once, then give the lease back. Calling it again does nothing."""
        portal().run(self._session.close())

    def __enter__(self) -> Session:
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return repr(self._session)


def unwrapped(session: Session | None) -> twin.Session | None:
    """What the asyncio classes take; raises ``TypeError`` for a session of theirs, which has another event loop."""
    if session is None or isinstance(session, Session):
        return session._session if session else None
    raise TypeError(f"session must be a codomyrmex.concurrency.sync.Session, not {type(session).__name__}")
