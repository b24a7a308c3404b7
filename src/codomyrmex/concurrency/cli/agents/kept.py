"""The reservations that an agent keeps: opened, used, and forgotten once they are lost."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass

import click

from codomyrmex.concurrency import InvalidHandle, LockLost, LockManager, Reservation
from codomyrmex.concurrency.cli.agents.handle_store import HandleStore, KeptHandle
from codomyrmex.concurrency.cli.agents.wanted import Wanted
from codomyrmex.concurrency.cli.views.reservation_text import scope


@dataclass(frozen=True, slots=True)
class Kept:
    """A kept reservation: its file, and itself."""

    handle: KeptHandle
    reservation: Reservation

    @property
    def names(self) -> tuple[str, ...]:
        """The names that it holds."""
        return self.handle.names

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths that it holds."""
        return self.handle.paths

    @property
    def tree(self) -> str | None:
        """The tree of its paths; None if it holds no paths."""
        return self.handle.tree if self.handle.paths else None

    @property
    def shared(self) -> bool:
        """True if it is a reader's."""
        return self.handle.shared

    async def use(self, store: HandleStore, step: Callable[[Reservation], Awaitable[object]]) -> None:
        """Take ``step`` on it. If it was lost, its file is removed, and ``LockLost`` is raised."""
        try:
            await step(self.reservation)
        except LockLost:
            store.drop(self.handle)
            raise


def opened(manager: LockManager, handles: Iterable[KeptHandle]) -> Iterator[Kept]:
    """The reservations of these handles. A warning tells of a handle that is none."""
    for one in handles:
        try:
            yield Kept(one, manager.reservation(one.handle))
        except InvalidHandle as error:
            click.echo(f"warning: the handle of {scope(one)} is left out: {error}", err=True)


async def still_held(
    manager: LockManager, store: HandleStore, wanted: Wanted, ttl: float, note: str | None
) -> list[Kept]:
    """The kept reservations that have a name or a path in common with ``wanted``. Those that hold a part of it are
    renewed for at least ``ttl`` seconds. A warning tells of each that was lost."""
    found = []
    for one in opened(manager, wanted.touched(store.all())):

        async def touch(reservation: Reservation, one: Kept = one) -> None:
            await reservation.check()  # tells the TTL that it has now, which its handle may not know
            if wanted.without([one]) != wanted:
                await reservation.renew(note=note, ttl=max(ttl, reservation.ttl))

        try:
            await one.use(store, touch)
            found.append(one)
        except LockLost as error:
            click.echo(f"warning: the reservation of {scope(one)} was lost: {error}", err=True)
    return found
