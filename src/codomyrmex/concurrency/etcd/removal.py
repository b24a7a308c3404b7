"""Deleting entries: delete-only transactions, batched, repeated until etcd has answered.

A key is removed by nobody else, and used again only if ``gone`` said so: its removal was answered at the first
attempt, so no late one can be under way. That is why a release needs no compare and cannot be refused, why its lost
answer needs no fence, and why it works in a full database, where anything that may put is refused.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from codomyrmex.concurrency.errors import ConcurrencyError, EtcdError, EtcdQuotaExceeded
from codomyrmex.concurrency.etcd.batch import Batcher
from codomyrmex.concurrency.etcd.commit import DEPTH, MAX_OPS
from codomyrmex.concurrency.etcd.transport import Delete, Deleted, Transport

_PAUSE = 0.1

Gone = Callable[[bool], object]
"""Called when a key is gone, with whether it may be used again."""


@dataclass(slots=True, eq=False)
class _Removal:
    key: bytes
    gone: Gone | None
    done: asyncio.Future[bool] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    repeated: bool = False
    asked_at: float = field(default_factory=time.monotonic)

    def answer(self, existed: bool) -> None:
        if self.gone:
            self.gone(not self.repeated)
        if not self.done.done():
            # After a lost answer a missing key says nothing: the first attempt may have deleted it.
            self.done.set_result(existed or self.repeated)

    def fail(self, error: ConcurrencyError) -> None:
        if not self.done.done():
            self.done.set_exception(error)
            self.done.exception()


class Remover:
    """Deletes keys. A removal goes on until it is done or the session ends, also after its caller was told of an
    error, after ``limit`` seconds, or has gone."""

    def __init__(self, transport: Transport, limit: float) -> None:
        self._transport = transport
        self._limit = limit
        self._batcher: Batcher[_Removal] = Batcher(_next_batch, self._send, DEPTH)
        self._closed: ConcurrencyError | None = None

    def remove(self, key: bytes, gone: Gone | None = None) -> asyncio.Future[bool]:
        """Delete ``key``; the result says whether it was still there."""
        removal = _Removal(key, gone)
        if self._closed:
            removal.fail(self._closed)
        else:
            self._batcher.submit(removal)
        return removal.done

    async def removed(self, key: bytes, gone: Gone) -> bool:
        """``remove``, and wait for it; by itself it is sent from the caller's own task."""
        if self._closed or not self._batcher.free:
            return await self.remove(key, gone)
        removal = _Removal(key, gone)
        await self._batcher.send_now(removal)
        return await removal.done

    async def idle(self) -> None:
        await self._batcher.idle()

    def abandon(self, error: ConcurrencyError) -> None:
        self._closed = error
        for removal in self._batcher.empty_queue():
            removal.fail(error)

    async def close(self) -> None:
        await self._batcher.close()

    async def _send(self, batch: list[_Removal]) -> None:
        try:
            if len(batch) == 1:  # costs etcd less than a transaction
                existed = [await self._transport.delete(Delete(batch[0].key)) > 0]
            else:
                result = await self._transport.txn((), [Delete(removal.key) for removal in batch])
                existed = [isinstance(deleted, Deleted) and deleted.keys > 0 for deleted in result.results]
        except EtcdQuotaExceeded:
            # Before 3.4.20 and 3.5.7 a full database refuses every transaction; plain deletes still work.
            await self._one_by_one(batch)
        except EtcdError as error:
            self._later(batch, error)
        except asyncio.CancelledError:
            # The session closes, or a caller was cancelled in the middle of its own sending: the removal goes on.
            for removal in batch:
                removal.done.cancel()
            self._again(batch)
            raise
        else:
            for removal, was_there in zip(batch, existed, strict=True):
                removal.answer(was_there)

    async def _one_by_one(self, batch: list[_Removal]) -> None:
        for removal in batch:
            try:
                removal.answer(await self._transport.delete(Delete(removal.key)) > 0)
            except EtcdError as error:
                self._later([removal], error)

    def _later(self, batch: list[_Removal], error: EtcdError) -> None:
        for removal in batch:
            if time.monotonic() - removal.asked_at >= self._limit or not error.retryable:
                removal.fail(error)
        asyncio.get_running_loop().call_later(_PAUSE, self._again, batch)

    def _again(self, batch: list[_Removal]) -> None:
        if not self._closed:
            for removal in batch:
                removal.repeated = True
                self._batcher.submit(removal)


def _next_batch(queue: deque[_Removal]) -> list[_Removal]:
    return [queue.popleft() for _ in range(min(MAX_OPS, len(queue)))]
