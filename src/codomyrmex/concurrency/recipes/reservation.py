"""``Reservation``: a hold on a lease of its own, which outlives the process that asked for it.

A reservation waits as a lock does, and is granted as a lock is. Then its entries move to a lease of their own, and the
session is no longer concerned with them. Whoever has the handle renews, writes and releases it, from any process.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from types import TracebackType

from codomyrmex.concurrency.context_managers import AsyncOnly
from codomyrmex.concurrency.etcd.transports.protocol import Compare, Op, TxnResult
from codomyrmex.concurrency.loss import Loss


class Reservation(AsyncOnly):
    """Names and paths that are held until they are released or their time is over, whatever becomes of this process.

    It has no keepalive of its own: ``renew`` gives it its whole time again. Each call that finds it gone raises
    ``LockLost``, which says when it expired, if this process knows, and who holds its names now. An ``EtcdError`` says
    nothing about the reservation: ask again.
    """

    @property
    def handle(self) -> str:
        """The text with which any process may renew, write under and release it. Keep it secret: it is a capability."""
        raise NotImplementedError

    @property
    def token(self) -> int:
        """The fencing token, one for all names and paths: it is higher than that of every earlier holder of them."""
        raise NotImplementedError

    @property
    def names(self) -> tuple[str, ...]:
        """The names that it holds, in the order in which they were given."""
        raise NotImplementedError

    @property
    def tree(self) -> str | None:
        """The tree of its paths; None if it holds no paths."""
        raise NotImplementedError

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths that it holds, normalised. One opened from a handle knows them after ``check`` or ``renew``."""
        raise NotImplementedError

    @property
    def ttl(self) -> int:
        """The seconds that a renewal gives it."""
        raise NotImplementedError

    @property
    def note(self) -> str:
        """Its last note. One opened from a handle knows it after ``check`` or ``renew``."""
        raise NotImplementedError

    @property
    def left(self) -> str:
        """The note of the last predecessor that expired without a release; empty if there is none, and for a
        reservation that was opened from a handle."""
        raise NotImplementedError

    @property
    def left_by(self) -> str:
        """The owner who left that note: the agent's name, else its host and pid; empty if there is none."""
        raise NotImplementedError

    @property
    def lost(self) -> Loss:
        """An event, awaitable, that is set when a call, or the renewal of ``keepalive=True``, finds it gone."""
        raise NotImplementedError

    def expires_in(self) -> float:
        """The seconds until it expires, counted from when the last answered renewal was sent; 0 if it has expired,
        and for one opened from a handle, until ``check`` or ``renew`` has asked etcd."""
        raise NotImplementedError

    async def check(self) -> float:
        """Ask etcd if it is held, without renewing it; returns ``expires_in()``. Raises ``LockLost``."""
        raise NotImplementedError

    async def renew(self, note: str | None = None, ttl: float | None = None) -> float:
        """Give it its whole time again, from now; returns ``expires_in()``.

        ``note`` replaces its note; it has at most 4 KiB. ``ttl`` gives it another TTL, in seconds, from now on. The
        handle stays valid. Raises ``LockLost``.
        """
        raise NotImplementedError

    async def put(self, key: str | bytes, value: str | bytes) -> int:
        """Write ``value`` if it is still held; returns the revision written. Raises ``LockLost``, and then nothing was
        written."""
        raise NotImplementedError

    async def get(self, key: str | bytes) -> bytes | None:
        """The value of ``key``, read only if it is still held; None if there is none. Raises ``LockLost``."""
        raise NotImplementedError

    async def delete(self, key: str | bytes) -> bool:
        """Delete ``key`` if it is still held; returns whether the key existed. Raises ``LockLost``."""
        raise NotImplementedError

    async def txn(self, *ops: Op, compare: Sequence[Compare] = ()) -> TxnResult:
        """Run ``Put``, ``Get`` and ``Delete`` operations in one transaction if it is still held, as ``Grant.txn`` does.
        Raises ``LockLost``."""
        raise NotImplementedError

    async def release(self, note: str | None = None) -> None:
        """Give everything back, and return when etcd has confirmed it; does nothing if this object has released it.

        ``note`` is told to those who watch. Raises ``LockLost`` if it was gone before, and ``EtcdError`` if etcd does
        not confirm in time; then call it again.
        """
        raise NotImplementedError


class Reserving(AsyncOnly):
    """The result of ``LockManager.reserve``: await it for a ``Reservation``, or use it with ``async with``, which
    releases it at the end."""

    def __await__(self) -> Generator[object, None, Reservation]:
        raise NotImplementedError

    async def __aenter__(self) -> Reservation:
        raise NotImplementedError

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        raise NotImplementedError
