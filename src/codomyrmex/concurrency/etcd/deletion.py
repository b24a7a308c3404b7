"""Deletes entries and repeats each deletion until etcd has answered it.

``commit.py`` sends a removal along with the requests that wait. Removals without requests travel in delete-only
transactions. ``deletion_state.py`` decides what an answer or an error means.

A release needs no compare and cannot be refused, because only its owner deletes a key: in a shared transaction the
deletion stands in both branches. For the same reason its lost answer needs no fence. It works in a full database, where
etcd refuses everything that may put.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from codomyrmex.concurrency.errors import ConcurrencyError, EtcdError, fresh
from codomyrmex.concurrency.etcd.deletion_state import (
    AfterFailure,
    Deletion,
    after_failure,
    deletes,
    found,
    markers,
    pause,
)
from codomyrmex.concurrency.etcd.supervision import Broken, guarded
from codomyrmex.concurrency.etcd.transports.protocol import Delete, OpResult, Put, Transport

log = logging.getLogger("codomyrmex.concurrency")

Gone = Callable[[bool], object]
"""Called when a key is gone. The argument is true if the key may be used again."""


@dataclass(slots=True, eq=False)
class Removal(Deletion):
    """A deletion with its caller. ``done`` becomes true if the key was still there."""

    gone: Gone | None = None
    done: asyncio.Future[bool] = field(kw_only=True)

    def answer(self, result: bool) -> None:
        """Tell the caller; ``result`` is true if etcd found the key."""
        if self.gone:
            self.gone(self.is_reusable)
        if not self.done.done():
            self.done.set_result(self.existed(result))

    def fail(self, error: ConcurrencyError) -> None:
        """Tell the caller of an error."""
        if not self.done.done():
            self.done.set_exception(fresh(error))
            self.done.exception()  # a caller that is gone leaves no warning


class Lane(Protocol):
    """The queue through which removals are sent."""

    @property
    def free(self) -> bool: ...
    def submit(self, item: Removal) -> None: ...
    async def send_now(self, item: Removal) -> None: ...


class Remover:
    """Deletes keys.

    A removal goes on until it is done or the session ends. It goes on when its caller was told of an error after
    ``limit`` seconds, and when its caller is gone. ``broken`` is called when it cannot go on.
    """

    def __init__(self, transport: Transport, lane: Lane, limit: float, broken: Broken) -> None:
        self._transport = transport
        self._lane = lane
        self._limit = limit
        self._broken = broken
        self._closed: ConcurrencyError | None = None
        self._told: type[EtcdError] | None = None  # the kind of error of the last warning, until a deletion succeeds
        self._loop = asyncio.get_running_loop()

    def remove(self, key: bytes, gone: Gone | None = None, marker: Put | None = None) -> asyncio.Future[bool]:
        """Delete ``key`` in the background. The result is true if the key was still there."""
        removal = self._removal(key, gone, marker)
        self._line_up(removal)
        return removal.done

    async def remove_and_wait(self, key: bytes, gone: Gone, marker: Put | None = None) -> bool:
        """Delete ``key`` and wait until it is gone. If nothing else is under way the caller's own task sends it."""
        if self._closed or not self._lane.free:
            return await self.remove(key, gone, marker)
        removal = self._removal(key, gone, marker)
        await self._lane.send_now(removal)
        return await removal.done

    def _removal(self, key: bytes, gone: Gone | None, marker: Put | None) -> Removal:
        return Removal(key, marker, time.monotonic(), gone=gone, done=self._loop.create_future())

    def abandon(self, error: ConcurrencyError) -> None:
        """Delete nothing more: the session is gone, and its lease takes every key along."""
        self._closed = error

    async def send(self, batch: Sequence[Removal]) -> None:
        """Send removals that travel without requests."""
        try:
            if len(batch) == 1 and not batch[0].marker:  # costs etcd less than a transaction
                await self._delete(batch[0])
            else:
                result = await self._transport.txn((), [*deletes(batch), *markers(batch)])
                answer(batch, result.results)
        except EtcdError as error:
            await self.failed(batch, error)
        except asyncio.CancelledError:
            self.interrupted(batch)
            raise
        else:
            self._told = None

    async def failed(self, batch: Sequence[Removal], error: EtcdError) -> None:
        """Go on after the transaction that carried ``batch`` failed."""
        if after_failure(error) is AfterFailure.LATER:
            self._later(batch, error)
            return
        for removal in batch:
            try:
                await self._delete(removal)
            except EtcdError as another:
                self._later([removal], another)

    def interrupted(self, batch: Sequence[Removal]) -> None:
        """Go on after the sending of ``batch`` was cancelled.

        If the session has closed, the callers are told so. Else a caller was cancelled in the middle of its own
        sending, and the removal goes on without it.
        """
        if not self._closed:
            for removal in batch:
                removal.done.cancel()
        self._again(batch)

    def _later(self, batch: Sequence[Removal], error: EtcdError) -> None:
        now = time.monotonic()
        late = [removal for removal in batch if removal.becomes_late(error, now, self._limit)]
        if late and self._told is not type(error):
            self._told = type(error)
            log.warning(
                "keys could not be deleted yet, such as %r; they are tried again while the session lasts: %s",
                late[0].key.decode(errors="backslashreplace"),
                error,
            )
        for removal in late:
            removal.fail(error)
        again = guarded(partial(self._again, batch), "removing keys", self._broken)
        self._loop.call_later(pause(batch), again)

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


def answer(batch: Sequence[Deletion], results: Sequence[OpResult]) -> None:
    """Answer each deletion from the results of a transaction that begins with the ``deletes`` of ``batch``."""
    for deletion, result in zip(batch, results, strict=False):
        deletion.answer(found(result))
