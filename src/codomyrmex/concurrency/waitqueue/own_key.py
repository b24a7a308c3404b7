"""The watch on an entry's own key: it notices that the key was deleted by an operator or another client."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from codomyrmex.concurrency.errors import ConcurrencyError, EtcdError, LockLost
from codomyrmex.concurrency.etcd.transports.protocol import Get, WatchRequest
from codomyrmex.concurrency.etcd.watch import Changed, Notice, Started
from codomyrmex.concurrency.models import ForcedRelease
from codomyrmex.concurrency.session_core import SessionCore

_PAUSE, _LONGEST_PAUSE = 0.1, 2.0  # seconds


class KeyDeleted(LockLost):
    """The key of an entry was deleted, perhaps by a forced release, which has a reason."""


class OwnKey:
    """The watch on one entry's key, which was created at the revision ``token``. ``deleted`` is called when the key is
    gone. The watch may begin after the deletion, so the key is also read once the watch has begun."""

    __slots__ = ("_checking", "_deleted", "_key", "_session", "_token", "_watch")

    def __init__(self, session: SessionCore, key: bytes, token: int, deleted: Callable[[], None]) -> None:
        self._session = session
        self._key = key
        self._token = token
        self._deleted = deleted
        self._checking: asyncio.Task[None] | None = None
        self._watch = session.hub.subscribe(WatchRequest(key, deletes_only=True), self._notice)

    def stop(self) -> None:
        """End the watch and the check."""
        self._watch.cancel()
        if self._checking and self._checking is not asyncio.current_task():
            self._checking.cancel()

    def _notice(self, notice: Notice) -> None:
        if isinstance(notice, Changed):
            self._deleted()
        elif isinstance(notice, Started) and (notice.revision > self._token or notice.resumed or notice.gap):
            if self._checking:
                self._checking.cancel()
            self._checking = self._session.start(self._check(), "the check of an entry's key")

    async def _check(self) -> None:
        """Read the key, for it may have been deleted before the watch began."""
        pause = _PAUSE
        while True:
            try:
                found = await self._session.transport.get(Get(self._key))
                break
            except EtcdError:  # the check goes on for as long as the entry lasts, and nothing else depends on it
                await asyncio.sleep(pause)
                pause = min(_LONGEST_PAUSE, pause * 2)
        if not any(kv.create_revision == self._token for kv in found.kvs):
            self._deleted()


async def explain_deletion(session: SessionCore, audit: bytes, token: int, reason: KeyDeleted) -> str:
    """``reason`` as text, with the operator's reason if the lock was released by force, of which the key ``audit``
    tells."""
    try:
        found = await session.transport.get(Get(audit))
    except ConcurrencyError:
        return str(reason)
    record = ForcedRelease.decode(found.kvs[0].value) if found.kvs else None
    if record and record.token == token:
        return f"{reason}: released by force by {record.by}: {record.reason}"
    return str(reason)
