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
from codomyrmex.concurrency.sync.blocking import blocking, text_of
from codomyrmex.concurrency.sync.portal import portal


class Loss:
    """An event that is set when a lock, a permit or a session is lost. Any thread may read it or wait for it.

    ``reason`` is the error that says why.
    """

    def __init__(self, loss: AsyncLoss) -> None:
        self._twin = loss

    @property
    def reason(self) -> ConcurrencyError | None:
        """The error that says why; None before the loss."""
        return self._twin.reason

    def is_set(self) -> bool:
        """True after the loss."""
        return self._twin.is_set()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the event is set, for at most ``timeout`` seconds. Returns True if it is set."""
        check_timeout(timeout)
        return portal().run(self._wait(timeout))

    async def _wait(self, timeout: float | None) -> bool:
        try:
            async with asyncio.timeout(timeout):
                await self._twin.wait()
        except TimeoutError:
            return self._twin.is_set()
        return True


class Session(BlockingOnly):
    """``codomyrmex.concurrency.Session`` for code without an event loop: ``with Session(...) as session``.

    Any number of threads may share it.
    """

    def __init__(self, settings: EtcdSettings | None = None, **overrides: Unpack[EtcdOptions]) -> None:
        self._twin = twin.Session(settings, **overrides)
        self._lost = Loss(self._twin.lost)

    @property
    @text_of(twin.Session.lost)
    def lost(self) -> Loss:
        return self._lost

    @property
    @text_of(twin.Session.id)
    def id(self) -> int:
        return self._twin.id

    @property
    @text_of(twin.Session.alive)
    def alive(self) -> bool:
        return self._twin.alive

    @property
    def settings(self) -> EtcdSettings:
        """The settings that the session was made with."""
        return self._twin.settings

    deadline = blocking(twin.Session.deadline)

    @text_of(twin.Session.open)
    def open(self) -> Session:
        portal().run(self._twin.open())
        return self

    close = blocking(twin.Session.close)

    def __enter__(self) -> Session:
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return repr(self._twin)


def unwrapped(session: Session | None) -> twin.Session | None:
    """The asyncio twin of ``session``. Raises ``TypeError`` for an asyncio session, which has another event loop."""
    if session is None or isinstance(session, Session):
        return session._twin if session else None
    raise TypeError(f"session must be a codomyrmex.concurrency.sync.Session, not {type(session).__name__}")
