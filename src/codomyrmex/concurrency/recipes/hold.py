"""The entries and grants of one acquisition, and the block that they protect: a loss cancels it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any, Literal

from codomyrmex.concurrency.errors import EtcdError, LockLost
from codomyrmex.concurrency.waitqueue.entry import Entry, State
from codomyrmex.concurrency.waitqueue.grant import Grant

log = logging.getLogger("codomyrmex.concurrency")

OnLoss = Literal["cancel", "notify"]


class Hold:
    """One acquisition of ``task``, of one name or several. In ``async with`` it protects the body of the block."""

    __slots__ = ("_cancelled", "_cancelling", "entries", "grants", "on_loss", "task")

    def __init__(
        self, entries: Sequence[Entry], grants: Sequence[Grant], on_loss: OnLoss, task: asyncio.Task[Any] | None
    ) -> None:
        self.entries = entries
        self.grants = grants
        self.on_loss = on_loss
        self.task = task
        self._cancelling = 0
        self._cancelled = False

    @property
    def held(self) -> bool:
        return all(entry.remaining() > 0 for entry in self.entries)

    def check_here(self) -> None:
        """As ``Entry.check_here``. Managers call it before they drop the hold from their own tables."""
        for entry in self.entries:
            entry.check_here()

    def check_process(self) -> None:
        """Raise ``UsedElsewhere`` in a forked child; any thread of the hold's own process may go on."""
        for entry in self.entries:
            entry.session.home.check_process(entry.queue_ref.what, entry.queue_ref.name)

    @property
    def released(self) -> bool:
        return bool(self.entries) and all(entry.state is State.OVER for entry in self.entries)

    async def release(self) -> None:
        """Release every entry, as ``Entry.release`` does."""
        self.check_here()
        await self._release()

    async def _release(self) -> None:
        for entry in self.entries[:1]:
            await (entry.group or entry).release()

    def protect(self) -> None:
        """Make the current task the body of the block, which a loss cancels."""
        self.task = asyncio.current_task()
        if self.on_loss == "cancel" and self.task:
            self._cancelling = self.task.cancelling()
            for entry in self.entries:
                entry.on_lost = self._cancel
                if entry.is_lost:
                    self._cancel()

    async def leave(self, kind: type[BaseException] | None, error: BaseException | None) -> None:
        """End the block: release in any case, then raise ``LockLost`` if the block was cancelled for a loss, or if the
        lock was lost unnoticed. The cancel is taken back as ``asyncio.timeout`` does.

        A release that etcd does not confirm is logged, not raised, and goes on: the work of the block is done, and a
        caller that caught the error would take it for a failed acquire and do the work twice.
        """
        if kind is None:
            self.check_here()
        elif not all(entry.session.home.is_here() for entry in self.entries):
            return  # a fork has copied this block, which ends by an error of its own
        for entry in self.entries:
            entry.on_lost = None
        for entry in self.entries:
            entry.notice_loss()
        ours = self._cancelled and await self._take_back_cancel(kind)
        try:
            await self._release()
        except EtcdError as failure:
            first = self.entries[0]
            log.warning(
                "the release of the %s %r (token %d) is not confirmed yet, and goes on until etcd answers or the lease "
                "ends: %s", first.queue_ref.what, first.queue_ref.name, first.token, failure,
            )  # fmt: skip
        lost = next((entry for entry in self.entries if entry.is_lost), None)
        if lost is None or self.on_loss != "cancel":
            return
        if kind is None or ours:
            raise LockLost(await lost.explain()) from (error or lost.lost.reason)
        if error is not None and not isinstance(error, asyncio.CancelledError):
            error.add_note(
                f"{lost.queue_ref.what} {lost.queue_ref.name!r} was lost while this happened: {lost.lost.reason}"
            )
            if self._cancelled:
                _insert(LockLost(str(lost.lost.reason)), error)

    def _cancel(self) -> None:
        if self.task and not self._cancelled:
            self._cancelled = True
            self.task.cancel(f"{self.entries[0].queue_ref.what} {self.entries[0].queue_ref.name!r} was lost")

    async def _take_back_cancel(self, kind: type[BaseException] | None) -> bool:
        """Undo the cancel of this hold; returns True if the block ended by this cancel alone."""
        assert self.task
        by_cancel = kind is not None and issubclass(kind, asyncio.CancelledError)
        if not by_cancel:
            # The block was over before the cancel reached it. Before Python 3.13 the cancel would strike at the next
            # await of the task, outside the block.
            try:
                await asyncio.sleep(0)
            except asyncio.CancelledError:
                if self.task.cancelling() > self._cancelling + 1:
                    self.task.uncancel()
                    raise
        return self.task.uncancel() <= self._cancelling and by_cancel


def _insert(lost: LockLost, error: BaseException) -> None:
    """Put ``lost`` between ``error`` and the cancel that caused it, as ``asyncio.timeout`` does."""
    while error.__context__ is not None:
        if isinstance(error.__context__, asyncio.CancelledError):
            lost.__context__ = lost.__cause__ = error.__context__
            error.__context__ = lost
            return
        error = error.__context__
