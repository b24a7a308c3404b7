"""The blocking twin of ``Reservation``."""

from __future__ import annotations

from types import TracebackType

from codomyrmex.concurrency.context_managers import BlockingOnly
from codomyrmex.concurrency.recipes import reservation as twin
from codomyrmex.concurrency.recipes.reserving import end_block
from codomyrmex.concurrency.sync.blocking import blocking, text_of
from codomyrmex.concurrency.sync.portal import portal
from codomyrmex.concurrency.sync.session import Loss


class Reservation(BlockingOnly):
    """``codomyrmex.concurrency.Reservation`` for code without an event loop. ``with reservation: ...`` releases it at
    the block's end. Any thread may use it."""

    def __init__(self, reservation: twin.Reservation) -> None:
        self._twin = reservation
        self._lost = Loss(reservation.lost)

    @property
    @text_of(twin.Reservation.handle)
    def handle(self) -> str:
        return self._twin.handle

    @property
    @text_of(twin.Reservation.token)
    def token(self) -> int:
        return self._twin.token

    @property
    @text_of(twin.Reservation.names)
    def names(self) -> tuple[str, ...]:
        return self._twin.names

    @property
    @text_of(twin.Reservation.tree)
    def tree(self) -> str | None:
        return self._twin.tree

    @property
    @text_of(twin.Reservation.paths)
    def paths(self) -> tuple[str, ...]:
        return self._twin.paths

    @property
    @text_of(twin.Reservation.ttl)
    def ttl(self) -> int:
        return self._twin.ttl

    @property
    @text_of(twin.Reservation.shared)
    def shared(self) -> bool:
        return self._twin.shared

    @property
    @text_of(twin.Reservation.note)
    def note(self) -> str:
        return self._twin.note

    @property
    @text_of(twin.Reservation.left)
    def left(self) -> str:
        return self._twin.left

    @property
    @text_of(twin.Reservation.left_by)
    def left_by(self) -> str:
        return self._twin.left_by

    @property
    def lost(self) -> Loss:
        """An event that is set when a call, or the renewal of ``keepalive=True``, finds it gone."""
        return self._lost

    expires_in = blocking(twin.Reservation.expires_in)
    check = blocking(twin.Reservation.check)
    renew = blocking(twin.Reservation.renew)
    put = blocking(twin.Reservation.put)
    get = blocking(twin.Reservation.get)
    delete = blocking(twin.Reservation.delete)
    txn = blocking(twin.Reservation.txn)
    release = blocking(twin.Reservation.release)

    def __enter__(self) -> Reservation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        portal().run(end_block(self._twin, error))

    def __repr__(self) -> str:
        return repr(self._twin)
