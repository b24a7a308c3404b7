"""The blocking twin of ``Grant``, for one lock and for several.

A thread cannot be cancelled. When a lock is lost, ``grant.lost`` is set at once, ``grant.check()`` raises, fenced
writes are refused, and the end of the block raises ``LockLost``.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import datetime
from types import TracebackType
from typing import Literal

from codomyrmex.concurrency.callsite import users_line
from codomyrmex.concurrency.context_managers import BlockingOnly
from codomyrmex.concurrency.errors import LockLost
from codomyrmex.concurrency.recipes.hold import Hold
from codomyrmex.concurrency.recipes.hold import OnLoss as AsyncOnLoss
from codomyrmex.concurrency.sync.blocking import blocking
from codomyrmex.concurrency.sync.portal import portal
from codomyrmex.concurrency.sync.session import Loss
from codomyrmex.concurrency.waitqueue import grant as twin
from codomyrmex.concurrency.waitqueue.entry import Requester

OnLoss = Literal["raise", "notify"]


def this_thread() -> Requester:
    """The requester of an acquisition: the calling thread, and the line of the user's code that it runs."""
    return Requester.of(threading.current_thread(), users_line())


def at_loss(on_loss: OnLoss) -> AsyncOnLoss:
    """The value of ``on_loss`` for the asyncio classes. Raises ``ValueError`` for an unknown one."""
    if on_loss not in ("raise", "notify"):
        raise ValueError(f"on_loss must be 'raise' or 'notify' here, where no block can be cancelled, not {on_loss!r}")
    return "cancel" if on_loss == "raise" else "notify"


class Grant(BlockingOnly):
    """A granted lock. ``with grant: ...`` releases it at the block's end, and so does ``release``.

    ``token`` is the fencing token; ``waited`` is in seconds. The fenced writes and their errors are those of
    ``codomyrmex.concurrency.Grant``.
    """

    def __init__(self, hold: Hold, grant: twin.Grant, forget: Callable[[], object] = lambda: None) -> None:
        self._hold = hold
        self._twin = grant
        self._forget = forget
        self.lost = Loss(grant.lost)

    @property
    def name(self) -> str:
        """The lock's name."""
        return self._twin.name

    @property
    def token(self) -> int:
        """The fencing token, which rises with every grant of the name."""
        return self._twin.token

    @property
    def key(self) -> str:
        """The key of the holder's entry in etcd."""
        return self._twin.key

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths of a path lock, normalised, with globs widened to directories; empty for other locks."""
        return self._twin.paths

    @property
    def tree(self) -> str:
        """The tree of a path lock, which is also its ``name``; empty for other locks."""
        return self._twin.tree

    @property
    def acquired_at(self) -> datetime:
        """The time of the grant, in UTC."""
        return self._twin.acquired_at

    @property
    def waited(self) -> float:
        """The time from the request to the grant, in seconds."""
        return self._twin.waited

    deadline = blocking(twin.Grant.deadline)

    def check(self) -> None:
        """Raise ``LockLost`` if the grant can no longer be trusted. Call this between the steps of long work.

        Raises ``UsedElsewhere`` in a forked child: the grant is its parent's.
        """
        self._hold.check_process()
        if self._twin.lost.is_set() or self.deadline() <= 0:
            raise LockLost(f"{self.name!r} is no longer held with token {self.token}") from self.lost.reason

    put = blocking(twin.Grant.put)
    get = blocking(twin.Grant.get)
    delete = blocking(twin.Grant.delete)
    txn = blocking(twin.Grant.txn)
    progress = blocking(twin.Grant.progress)

    def release(self) -> None:
        """Release the lock; does nothing if it was lost or released before.

        Locks that were acquired together are released together.
        """
        portal().run(self._release())

    async def _release(self) -> None:
        self._hold.check_here()
        self._forget()
        await self._hold.release()

    async def _leave(self, kind: type[BaseException] | None, error: BaseException | None) -> None:
        self._forget()
        await self._hold.leave(kind, error)

    def __enter__(self) -> Grant:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        portal().run(self._leave(kind, error))

    def __repr__(self) -> str:
        return repr(self._twin)


class Grants(BlockingOnly, list[Grant]):
    """Locks that were acquired together: ``with grants: ...`` releases them together."""

    def release(self) -> None:
        """Release all of them."""
        if self:
            self[0].release()  # all of them are one hold

    def __enter__(self) -> Grants:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self:
            self[0].__exit__(kind, error, trace)
