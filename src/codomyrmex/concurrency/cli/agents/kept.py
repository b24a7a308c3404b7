"""The reservations that an agent keeps, opened: renewed, checked or released, and forgotten once they are lost."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import click

from codomyrmex.concurrency import InvalidHandle, LockLost, LockManager, Reservation
from codomyrmex.concurrency.cli.agents.handle_store import HandleStore, KeptHandle
from codomyrmex.concurrency.cli.agents.wanted import Wanted
from codomyrmex.concurrency.cli.views.reservation_text import scope


async def use(
    manager: LockManager, store: HandleStore, kept: KeptHandle, step: Callable[[Reservation], Awaitable[object]]
) -> Reservation:
    """Take ``step`` on a kept reservation. Raises ``LockLost`` after its file is removed, if it was lost."""
    reservation = manager.reservation(kept.handle)
    try:
        await step(reservation)
    except LockLost:
        store.drop(kept)
        raise
    return reservation


async def still_held(
    manager: LockManager, store: HandleStore, wanted: Wanted, ttl: float, note: str | None
) -> list[tuple[KeptHandle, Reservation]]:
    """The kept reservations that have a name or a path in common with ``wanted``. Those that hold a part of it are
    renewed for at least ``ttl`` seconds. A warning tells of each that was lost."""
    found = []
    for kept in wanted.touched(store.all()):

        async def touch(one: Reservation, kept: KeptHandle = kept) -> None:
            if wanted.without([kept]) == wanted:
                await one.check()
            else:
                await one.renew(note=note, ttl=max(ttl, one.ttl))

        try:
            found.append((kept, await use(manager, store, kept, touch)))
        except InvalidHandle as error:
            click.echo(f"warning: the handle of {scope(kept)} is left out: {error}", err=True)
        except LockLost as error:
            click.echo(f"warning: the reservation of {scope(kept)} was lost: {error}", err=True)
    return found
