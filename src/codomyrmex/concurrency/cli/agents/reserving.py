"""The steps of ``reserve``: renew what the agent holds already, reserve the rest, keep its handle."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import NamedTuple

import click
from click.core import ParameterSource

from codomyrmex.concurrency import ConcurrencyError, LockManager, LockTimeout, Reservation, Session
from codomyrmex.concurrency.cli.agents.handle_store import HandleStore, KeptHandle
from codomyrmex.concurrency.cli.agents.kept import Kept, still_held
from codomyrmex.concurrency.cli.agents.next_steps import list_command, next_command, reserve_command, some_name
from codomyrmex.concurrency.cli.agents.obstacles import Obstacles, obstacles
from codomyrmex.concurrency.cli.agents.outcomes import HeldReservation, Holder, ReserveOutcome
from codomyrmex.concurrency.cli.agents.wanted import Wanted
from codomyrmex.concurrency.cli.views import reservation_text as text

_SAY_AFTER = 1.0  # seconds


class Reserving(NamedTuple):
    """One run of ``reserve``."""

    context: click.Context
    agent: str
    wanted: Wanted
    ttl: float
    timeout: float
    note: str | None

    async def run(self, session: Session, store: HandleStore) -> ReserveOutcome:
        """Reserve it, or tell its holders."""
        manager = LockManager(session)
        held = await self._held(manager, store)
        missing = self.wanted.without(held)
        if not missing:
            return self._acquired(held)
        if own := [one for one in held if missing.conflicts_with(one)]:
            return self._in_its_own_way(own)
        reading: list[Obstacles] = []
        try:
            async with _telling(session, missing, reading):
                reservation = await self._ask(manager, missing)
        except LockTimeout:
            held = await self._held(manager, store)  # a parallel call of this agent may have been faster
            if not self.wanted.without(held):
                return self._acquired(held)
            return self._busy(await obstacles(session, missing), reading)
        await keep(store, reservation, missing)
        return self._acquired(held, reservation)

    async def _held(self, manager: LockManager, store: HandleStore) -> list[Kept]:
        return await still_held(manager, store, self.wanted, self.ttl, self.note)

    async def _ask(self, manager: LockManager, missing: Wanted) -> Reservation:
        try:
            reserving = manager.reserve(
                *missing.names,
                paths=missing.paths,
                tree=missing.tree,
                ttl=self.ttl,
                timeout=self.timeout,
                note=self.note or "",
                owner=self.agent,
                shared=missing.shared,
            )
        except ValueError as error:  # more names than fit one reservation
            raise click.UsageError(str(error)) from None
        return await reserving

    def _acquired(self, renewed: list[Kept], new: Reservation | None = None) -> ReserveOutcome:
        held = [_described(one.reservation, one.shared, renewed=True) for one in renewed]
        held += [_described(new, self.wanted.shared, renewed=False)] if new else []
        following = [next_command(self.context, word, arguments=some_name(held[-1])) for word in ("renew", "release")]
        return ReserveOutcome(True, self.agent, tuple(held), (), None, "", tuple(following))

    def _in_its_own_way(self, own: list[Kept]) -> ReserveOutcome:
        reason = f"{self.agent} holds {'; '.join(map(text.scope, own))} itself, which overlaps: release that first"
        following = [next_command(self.context, "release", arguments=some_name(one)) for one in own]
        return ReserveOutcome(False, self.agent, (), (), None, reason, tuple(following))

    def _busy(self, now: Obstacles, readings: list[Obstacles]) -> ReserveOutcome:
        own = next((one.own for one in readings), None)
        reason = "not granted" + (f" within {self.timeout:g} s" if self.timeout else " at once")
        if mine := [one for one in now.holders if one.agent == self.agent and one.expires_in is not None]:
            reason += f"; {self.agent} reserved {text.scope(mine[0])} elsewhere, and its handle is not kept here"
        return ReserveOutcome(False, self.agent, (), now.holders, now.position(own), reason, self._ways_on(now.holders))

    def _ways_on(self, holders: tuple[Holder, ...]) -> tuple[str, ...]:
        longest = max((one.expires_in or 0.0 for one in holders), default=0.0)
        longer = f"{int(longest) // 60 + 1}m"
        again = reserve_command(self.context, self.wanted, *self._given(), "--timeout", longer)
        return again, list_command(self.context)

    def _given(self) -> list[str]:
        """The options of this call that are not defaults, apart from those of every command."""
        default = self.context.get_parameter_source("ttl") is ParameterSource.DEFAULT
        return [*([] if default else ["--for", f"{self.ttl:g}s"]), *(["--note", self.note] if self.note else [])]


async def keep(store: HandleStore, reservation: Reservation, wanted: Wanted) -> None:
    """Keep the handle; if that fails, release the reservation, for nobody could use it."""
    try:
        store.keep(KeptHandle(reservation.handle, wanted.names, wanted.paths, wanted.tree, wanted.shared))
    except ConcurrencyError as error:
        await reservation.release()
        raise ConcurrencyError(f"{error}. The reservation was released again") from None


@contextlib.asynccontextmanager
async def _telling(session: Session, wanted: Wanted, reading: list[Obstacles]) -> AsyncIterator[None]:
    """Say after a second what is waited for, and add it to ``reading``."""

    async def tell() -> None:
        await asyncio.sleep(_SAY_AFTER)
        now = await obstacles(session, wanted)
        reading.append(now)
        holders = "; ".join(map(text.holder, now.holders)) or "nobody at the moment"
        queued = f"number {now.position(now.own)} in the queue"
        click.echo(f"waiting for {text.scope(wanted)}, {queued}; held by {holders}", err=True)

    telling = asyncio.create_task(tell())
    try:
        yield
    finally:
        telling.cancel()
        await asyncio.gather(telling, return_exceptions=True)


def _described(one: Reservation, shared: bool, *, renewed: bool) -> HeldReservation:
    return HeldReservation(
        names=one.names,
        paths=one.paths,
        tree=one.tree,
        shared=shared,
        token=one.token,
        ttl=one.ttl,
        expires_in=one.expires_in(),
        note=one.note,
        renewed=renewed,
        left=one.left,
        left_by=one.left_by,
    )
