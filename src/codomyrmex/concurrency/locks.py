"""``DistributedLock``: one name, held by one task of one process of the fleet at a time, in order of arrival.

The queue decides who holds; this file decides what that means to the code of a holder: how it waits, what happens to
its block when the lock is lost, and which grant a release belongs to.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import time
from functools import lru_cache
from types import TracebackType
from typing import Any, Literal

from codomyrmex.concurrency.errors import LockLost, LockTimeout, NotHeld
from codomyrmex.concurrency.keys import check_name
from codomyrmex.concurrency.models import LockInfo
from codomyrmex.concurrency.queue import observe
from codomyrmex.concurrency.queue.entry import Entry, Place, State
from codomyrmex.concurrency.queue.grant import Grant
from codomyrmex.concurrency.queue.rules import exclusive
from codomyrmex.concurrency.session import Session, ready

OnLoss = Literal["cancel", "notify"]
MAX_METADATA = 64 * 1024


class Hold:
    """One acquisition of a name and, in ``async with``, the block that it protects."""

    __slots__ = ("_cancelled", "_cancelling", "entry", "name", "on_loss", "task")

    entry: Entry

    def __init__(self, name: str, on_loss: OnLoss) -> None:
        self.name = name
        self.on_loss = on_loss
        self.task = asyncio.current_task()
        self._cancelling = 0
        self._cancelled = False

    def protect(self) -> None:
        """From here on the task that acquired is the body of the block; a loss cancels it."""
        if self.on_loss == "cancel" and self.task:
            self._cancelling = self.task.cancelling()
            self.entry.on_lost = self._cancel
            if self.entry.state is State.LOST:
                self._cancel()

    async def leave(self, kind: type[BaseException] | None, error: BaseException | None) -> None:
        """The block has ended: release, or raise ``LockLost`` if the lock was lost, as ``asyncio.timeout`` does."""
        self.entry.on_lost = None
        ours = self._cancelled and await self._take_back_cancel(kind)
        await self.entry.release()
        if self.entry.state is not State.LOST or self.on_loss != "cancel":
            return
        if kind is None or ours:
            raise LockLost(await self.entry.explain()) from (error or self.entry.lost.reason)
        if error is not None and not isinstance(error, asyncio.CancelledError):
            error.add_note(f"the lock {self.name!r} was lost while this happened: {self.entry.lost.reason}")

    def _cancel(self) -> None:
        if self.task and not self._cancelled:
            self._cancelled = True
            self.task.cancel(f"lock {self.name!r} was lost")

    async def _take_back_cancel(self, kind: type[BaseException] | None) -> bool:
        """Whether the block ended by our cancel and no other."""
        assert self.task
        by_cancel = kind is not None and issubclass(kind, asyncio.CancelledError)
        if not by_cancel:
            # The block was over before our cancel reached it; before Python 3.13 it would strike later.
            try:
                await asyncio.sleep(0)
            except asyncio.CancelledError:
                if self.task.cancelling() > self._cancelling + 1:
                    self.task.uncancel()
                    raise
        return self.task.uncancel() <= self._cancelling and by_cancel


class DistributedLock:
    """A fair lock on ``name`` across the fleet. One object may be used by many tasks at once, as ``asyncio.Lock``.

    Like that one it is not reentrant: a task that holds the lock and acquires it again waits for itself.

    Args:
        name: any printable text up to 512 bytes in UTF-8.
        session: the session to use; the process's default one when left out.
        on_loss: ``"cancel"`` cancels the body of ``async with`` before anyone else can be granted and raises
            ``LockLost`` at its end; ``"notify"`` only sets ``grant.lost``. A lock taken with ``acquire()`` has no
            body to cancel.
        metadata: JSON-like data shown to whoever looks at the queue.

    Raises ``InvalidName`` for a name that cannot be used, ``TypeError`` or ``ValueError`` for unusable metadata.

    The queue is that of etcd's own recipe (the lowest create revision under the lock's prefix holds; Burrows, "The
    Chubby lock service", 2006, for sessions and fencing), so ``etcdctl lock`` on the same prefix takes its turn too.
    """

    def __init__(
        self,
        name: str,
        session: Session | None = None,
        on_loss: OnLoss = "cancel",
        metadata: dict[str, Any] | None = None,
    ) -> None:
        if on_loss not in ("cancel", "notify"):
            raise ValueError(f"on_loss must be 'cancel' or 'notify', not {on_loss!r}")
        self._name = check_name(name)
        self._session = session
        self._on_loss: OnLoss = on_loss
        self._metadata = encode_metadata(metadata)
        self._place: tuple[Session, Place, str] | None = None
        self._holds: dict[Grant, Hold] = {}

    @property
    def name(self) -> str:
        return self._name

    @property
    def held(self) -> bool:
        """Whether a task of this process holds the lock through this object and may trust it."""
        return self.grant is not None

    @property
    def grant(self) -> Grant | None:
        """The grant held through this object, if any."""
        return next((g for g, hold in self._holds.items() if hold.entry.remaining() > 0), None)

    async def acquire(self, timeout: float | None = None) -> Grant:
        """Wait for the lock and return the grant.

        ``timeout`` is in seconds; None waits as long as it takes, 0 tries once (and ends when etcd has answered, or
        after ``request_timeout``). Raises ``LockTimeout``,
        ``SessionLost``, ``LockLost`` (an operator deleted the place in the queue) or an ``EtcdError``; nothing stays
        behind in etcd then, nor when the wait is cancelled.
        """
        _, grant = await self._acquire(timeout)
        return grant

    async def try_acquire(self) -> Grant | None:
        """The grant if the lock is free right now, else None. Never joins the queue."""
        try:
            return await self.acquire(timeout=0)
        except LockTimeout:
            return None

    async def release(self) -> None:
        """Release the lock: the grant of the current task if it has one, else the one held through this object.

        Does nothing for a lock that was lost; raises ``NotHeld`` if there is nothing to release.
        """
        if not self._holds:
            raise NotHeld(f"the lock {self._name!r} is not held through this object")
        await self._holds.pop(self._mine() or next(reversed(self._holds))).entry.release()

    async def info(self) -> LockInfo | None:
        """Who holds and who waits, as etcd has it; None if nobody does."""
        return await observe.info(await ready(self._session), self._name)

    async def __aenter__(self) -> Grant:
        hold, grant = await self._acquire(None)
        hold.protect()
        return grant

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        mine = self._mine()
        if mine:
            await self._holds.pop(mine).leave(kind, error)

    def __repr__(self) -> str:
        return f"<DistributedLock {self._name!r} {'held' if self.held else 'not held'}>"

    def _mine(self) -> Grant | None:
        """The grant that the current task got last."""
        task = asyncio.current_task()
        for grant, hold in reversed(self._holds.items()):
            if hold.task is task:
                return grant
        return None

    async def _acquire(self, timeout: float | None) -> tuple[Hold, Grant]:
        hold, grant = await self._attempt(timeout)
        self._holds[grant] = hold
        return hold, grant

    async def _attempt(self, timeout: float | None) -> tuple[Hold, Grant]:
        """An acquisition that nobody keeps account of yet. The timeout covers the opening of the session too."""
        check_timeout(timeout)
        if not timeout:
            attempt = await self._try(only_if_free=timeout == 0)
        else:
            try:
                async with asyncio.timeout(timeout) as limit:
                    attempt = await self._try(only_if_free=False)
            except TimeoutError:
                if not limit.expired():
                    raise
                attempt = None
        if attempt is None:
            raise LockTimeout(f"the lock {self._name!r} was not granted within {timeout:g} s")
        return attempt

    async def _try(self, *, only_if_free: bool) -> tuple[Hold, Grant] | None:
        hold = await self._hold()
        grant = await hold.entry.acquire(only_if_free=only_if_free)
        return (hold, grant) if grant else None

    async def _hold(self) -> Hold:
        session = await ready(self._session)
        if self._place is None or self._place[0] is not session:
            owner = json.dumps({"host": session.host, "pid": os.getpid()})[:-1]
            self._place = session, Place.of(session, self._name), f"{owner}{self._metadata}"
        _, place, owner = self._place
        hold = Hold(self._name, self._on_loss)
        # An ``OwnerRecord`` as JSON, put together from parts since it is on the hot path.
        task = _quoted(hold.task.get_name()) if hold.task else '""'
        value = f'{owner},"task":{task},"since":{time.time():.3f}}}'.encode()
        hold.entry = Entry(session, place, value, exclusive)
        return hold


_quoted = lru_cache(maxsize=1024)(json.dumps)


def encode_metadata(metadata: dict[str, Any] | None) -> str:
    """``metadata`` as the part of an owner's JSON that it becomes; raises if it cannot be JSON or is too large."""
    if metadata is None:
        return ""
    if not isinstance(metadata, dict):
        raise TypeError(f"metadata must be a dict, not {type(metadata).__name__}")
    try:
        text = json.dumps(metadata, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise TypeError(f"metadata must be JSON: {error}") from None
    except RecursionError:
        raise ValueError("metadata is nested too deeply") from None
    if len(text) > MAX_METADATA:
        raise ValueError(f"metadata may have {MAX_METADATA} bytes as JSON; this has {len(text)}")
    return f',"metadata":{text}'


def check_timeout(timeout: float | None) -> None:
    """Raise ``ValueError`` for a timeout that is negative or not a number."""
    if timeout is not None and (math.isnan(timeout) or timeout < 0):
        raise ValueError(f"timeout must be None or at least 0 seconds, not {timeout}")
