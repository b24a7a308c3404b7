"""New calls that wait for a rate limit: an answer of etcd confirms them, or they fail.

A new call may wait behind others whose slice stands in the queue. That slice waits on through an outage, so it does not
tell the new call that etcd is away.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection

from codomyrmex.concurrency.errors import ConcurrencyError, EtcdUnavailable
from codomyrmex.concurrency.etcd.transports.protocol import Get
from codomyrmex.concurrency.rates.budget import Call
from codomyrmex.concurrency.session_core import SessionCore

_DELAY = 1.0  # seconds, at most, that a call waits before etcd is asked


class Confirmation:
    """Asks etcd for ``key``, at most once a second, while there are new calls. A call that is confirmed waits on.

    ``answered`` is called after an answer, and ``failed`` with the calls that got none.
    """

    def __init__(
        self,
        session: SessionCore,
        key: bytes,
        answered: Callable[[], None],
        failed: Callable[[EtcdUnavailable, Collection[Call]], None],
    ) -> None:
        self._session = session
        self._key = key
        self._answered = answered
        self._failed = failed
        self._new: set[Call] = set()
        self._asking: asyncio.Task[None] | None = None

    def add(self, call: Call) -> None:
        """A call begins to wait."""
        self._new.add(call)
        if self._asking is None:
            self._asking = self._session.start(self._ask(), "the confirmation of calls that wait for a rate limit")

    def discard(self, call: Call) -> None:
        """A call waits no more."""
        self._new.discard(call)

    def end(self) -> None:
        """Ask no more."""
        if self._asking:
            self._asking.cancel()

    async def _ask(self) -> None:
        try:
            while self._new:
                await asyncio.sleep(min(_DELAY, self._session.settings.request_timeout / 5))
                if calls := self._new.copy():
                    await self._ask_for(calls)
        finally:
            self._asking = None

    async def _ask_for(self, calls: set[Call]) -> None:
        try:
            await self._session.transport.get(Get(self._key))
        except EtcdUnavailable as error:
            self._failed(error, calls & self._new)
        except ConcurrencyError:
            pass  # etcd answers; the slice has the same error
        else:
            self._answered()
        self._new -= calls
