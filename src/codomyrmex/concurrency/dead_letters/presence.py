"""The keys by which a queue's workers show that they are there: each says where one runs and what it handles.

They are only shown: no worker reads them, and no retry waits for them. A worker writes its key when it begins and when
a handler is added. The key is bound to the lease of the worker's session.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass

from pydantic import TypeAdapter

from codomyrmex.concurrency import decode, skipped_keys
from codomyrmex.concurrency.dead_letters.persistence import Pauses
from codomyrmex.concurrency.dead_letters.reader import Reader
from codomyrmex.concurrency.dead_letters.record import new_id
from codomyrmex.concurrency.dead_letters.store import Store
from codomyrmex.concurrency.errors import EtcdError, SessionLost
from codomyrmex.concurrency.etcd.commit import Request
from codomyrmex.concurrency.etcd.transports.protocol import Put

log = logging.getLogger("codomyrmex.concurrency")

_PAUSE, _LONGEST_PAUSE = 1.0, 30.0  # seconds between tries to write the key


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """A worker as its key describes it: where it runs, and the operations for which it has handlers."""

    host: str
    pid: int
    operations: tuple[str, ...]


_ADAPTER = TypeAdapter(WorkerInfo)


class Presence:
    """The key of one worker. ``handlers`` may grow; call ``changed`` then."""

    def __init__(self, store: Store, handlers: Iterable[str]) -> None:
        self._store = store
        self._handlers = handlers
        self._key = store.keys.worker(store.session.id, new_id())
        self._news = asyncio.Event()

    def changed(self) -> None:
        """A handler was added: write the key again."""
        self._news.set()

    async def keep(self) -> None:
        """Keep the key true until this is cancelled, then delete it. A failed write is tried again after a pause."""
        pauses = Pauses(_PAUSE, _LONGEST_PAUSE)
        try:
            while True:
                self._news.clear()
                try:
                    await self._write()
                except SessionLost:
                    return  # the worker notices that by itself
                except EtcdError as error:
                    log.debug("the worker of %r could not say that it is there: %s", self._store.queue, error)
                    await asyncio.sleep(pauses.take())
                else:
                    await self._news.wait()
        finally:
            self._store.session.remover.remove(self._key)  # without waiting; the lease takes the key along in any case

    async def _write(self) -> None:
        said = {"host": self._store.session.host, "pid": os.getpid(), "operations": sorted(self._handlers)}
        put = Put(self._key, json.dumps(said).encode(), self._store.session.id)
        await self._store.session.committer.commit(Request((self._key,), (put,), again=()))


async def workers(reader: Reader) -> list[WorkerInfo]:
    """The workers that a queue has at this moment, except those of release 0.1, which write no such key."""
    found = []
    async for page in reader.pages(reader.workers):
        for kv in page.kvs:
            info = decode.record(_ADAPTER, kv.value)
            if info is None or not kv.lease:
                skipped_keys.skip(kv.key, "workers of dead letters")
            else:
                found.append(info)
    return found
