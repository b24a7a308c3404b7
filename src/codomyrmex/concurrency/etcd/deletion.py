"""Deleting entries, repeated until etcd has answered. ``commit.py`` sends a removal along with what else is to be sent;
removals alone travel in delete-only transactions.

A key is removed by nobody else, and used again only if ``gone`` said so: its removal was answered at the first
attempt, so no late one can be under way. That is why a release needs no compare and cannot be refused (in a shared
transaction it stands in both branches), why its lost answer needs no fence, and why it works in a full database, where
anything that may put is refused.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from codomyrmex.concurrency.errors import ConcurrencyError, EtcdError, EtcdQuotaExceeded
from codomyrmex.concurrency.etcd.supervision import Broken, guarded
from codomyrmex.concurrency.etcd.transports.protocol import Delete, Deleted, Op, OpResult, Put, Transport

log = logging.getLogger("codomyrmex.concurrency")

_PAUSE, _LONG_PAUSE = 0.1, 1.0  # seconds

Gone = Callable[[bool], object]
"""Called when a key is gone, with whether it may be used again."""


@dataclass(slots=True, eq=False)
class Removal:
    """``note`` is written together with the deletion; it is left out where it cannot be written."""

    key: bytes
    gone: Gone | None
    note: Put | None = None
    done: asyncio.Future[bool] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    repeated: bool = False
    late: bool = False  # it was said that it takes long
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


class Lane(Protocol):
    """Where removals line up to be sent."""

    @property
    def free(self) -> bool: ...
    def submit(self, item: Removal) -> None: ...
    async def send_now(self, item: Removal) -> None: ...


class Remover:
    """Deletes keys. A removal goes on until it is done or the session ends, also after its caller was told of an
    error, after ``limit`` seconds, or has gone. ``broken`` is called when it cannot go on."""

    def __init__(self, transport: Transport, lane: Lane, limit: float, broken: Broken) -> None:
        self._transport = transport
        self._lane = lane
        self._limit = limit
        self._broken = broken
        self._closed: ConcurrencyError | None = None

    def remove(self, key: bytes, gone: Gone | None = None, note: Put | None = None) -> asyncio.Future[bool]:
        """Delete ``key``; the result says whether it was still there."""
        removal = Removal(key, gone, note)
        self._line_up(removal)
        return removal.done

    async def removed(self, key: bytes, gone: Gone, note: Put | None = None) -> bool:
        """``remove``, and wait for it; by itself it is sent from the caller's own task."""
        if self._closed or not self._lane.free:
            return await self.remove(key, gone, note)
        removal = Removal(key, gone, note)
        await self._lane.send_now(removal)
        return await removal.done

    def abandon(self, error: ConcurrencyError) -> None:
        """The session is gone, and its lease takes every key along."""
        self._closed = error

    async def send(self, batch: Sequence[Removal]) -> None:
        """Removals that travel alone."""
        try:
            if len(batch) == 1 and not batch[0].note:  # costs etcd less than a transaction
                await self._delete(batch[0])
            else:
                result = await self._transport.txn((), [*deletions(batch), *notes(batch)])
                answer(batch, result.results)
        except EtcdError as error:
            await self.failed(batch, error)
        except asyncio.CancelledError:
            self.interrupted(batch)
            raise

    async def failed(self, batch: Sequence[Removal], error: EtcdError) -> None:
        """What carried them failed. If it was refused, that may be for what else was in it, so each goes alone: before
        3.4.20 and 3.5.7 a full database refuses every transaction, but takes plain deletes."""
        if not isinstance(error, EtcdQuotaExceeded) and (error.retryable or error.applied != "no"):
            self._later(batch, error)
            return
        for removal in batch:
            try:
                await self._delete(removal)
            except EtcdError as another:
                self._later([removal], another)

    def interrupted(self, batch: Sequence[Removal]) -> None:
        """The session has closed, and whoever waits is told; or a caller was cancelled in the middle of its own
        sending: then the removal goes on."""
        if not self._closed:
            for removal in batch:
                removal.done.cancel()
        self._again(batch)

    def _later(self, batch: Sequence[Removal], error: EtcdError) -> None:
        for removal in batch:
            if (time.monotonic() - removal.asked_at >= self._limit or not error.retryable) and not removal.late:
                removal.late = True
                log.warning(
                    "%r could not be deleted yet, and is tried again while the session lasts: %s", removal.key, error
                )
                removal.fail(error)
        pause = _LONG_PAUSE if all(removal.late for removal in batch) else _PAUSE
        again = guarded(partial(self._again, batch), "removing keys", self._broken)
        asyncio.get_running_loop().call_later(pause, again)

    def _again(self, batch: Sequence[Removal]) -> None:
        for removal in batch:
            removal.repeated = True
            self._line_up(removal)

    def _line_up(self, removal: Removal) -> None:
        if self._closed:
            removal.fail(self._closed)
        else:
            self._lane.submit(removal)

    async def _delete(self, removal: Removal) -> None:
        removal.answer(await self._transport.delete(Delete(removal.key)) > 0)


def deletions(batch: Sequence[Removal]) -> list[Op]:
    return [Delete(removal.key) for removal in batch]


def notes(batch: Sequence[Removal]) -> list[Op]:
    return [removal.note for removal in batch if removal.note]


def answer(batch: Sequence[Removal], results: Sequence[OpResult]) -> None:
    """Each removal's share of a transaction's results, which begin with those of its ``deletions``."""
    for removal, deleted in zip(batch, results, strict=False):
        removal.answer(isinstance(deleted, Deleted) and deleted.keys > 0)
