"""``reserve``: reserves names and paths beyond the life of this process, or tells their holders."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import NamedTuple

import click

from codomyrmex.concurrency import ConcurrencyError, LockManager, LockTimeout, Reservation, Session
from codomyrmex.concurrency.cli.agents import kept
from codomyrmex.concurrency.cli.agents.agent import agent_of, agent_option, need_a_server, next_command, tree_option
from codomyrmex.concurrency.cli.agents.handle_store import HandleStore, KeptHandle
from codomyrmex.concurrency.cli.agents.obstacles import Obstacles, obstacles
from codomyrmex.concurrency.cli.agents.outcomes import HeldReservation, Holder, ReserveOutcome
from codomyrmex.concurrency.cli.agents.wanted import Wanted
from codomyrmex.concurrency.cli.completion import names_of
from codomyrmex.concurrency.cli.duration_types import Duration
from codomyrmex.concurrency.cli.options import common_options, output_format, settings
from codomyrmex.concurrency.cli.running import EXIT_TIMEOUT, run
from codomyrmex.concurrency.cli.views import output
from codomyrmex.concurrency.cli.views import reservation_text as text

_SAY_AFTER = 1.0  # seconds


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...", shell_complete=names_of("lock"))
@click.option("--path", "paths", multiple=True, metavar="P", help="A path; src/ is all below src. May be repeated.")
@tree_option
@click.option("--for", "ttl", type=Duration(), default="15m", show_default=True, metavar="TIME", help="10s to 24h.")
@click.option("--timeout", type=Duration(), default="30s", show_default=True, metavar="TIME", help="Of the wait.")
@click.option("--shared", is_flag=True, help="Reserve as a reader, together with other readers.")
@click.option("--note", default="", metavar="TEXT", help="Shown to others, and to the next one if this expires.")
@agent_option
@common_options
@click.pass_context
def reserve(
    context: click.Context,
    names: tuple[str, ...],
    paths: tuple[str, ...],
    tree: str,
    ttl: float,
    timeout: float,
    shared: bool,
    note: str,
    agent: str | None,
) -> None:
    """Reserve names and paths for an agent, all or none; or tell who has them, and exit with 75.

    A reservation outlives this process. It ends when `release` gives it back, or when its time is over and no `renew`
    came. Paths are relative to the root of their tree, from whatever directory; a glob is taken as the directory that
    it begins with. What this agent holds already is renewed.

    \b
    Examples:
      codomyrmex concurrency reserve --path src/parser/ --note "renaming the parser"
      codomyrmex concurrency reserve deploy --for 1h --timeout 5m
      codomyrmex concurrency reserve --path README.md --shared -o json
    """
    need_a_server(context)
    try:
        wanted = Wanted.of(names, paths, tree, shared)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    if not wanted:
        raise click.UsageError("give a NAME or --path: what to reserve")
    for given in paths:
        if (widened := Wanted.of((), [given], tree, shared).paths[0]) != given and any(char in given for char in "*?["):
            click.echo(f"note: {given!r} is taken as the directory {widened or '(the whole tree)'!r}", err=True)
    run(_Reserve(context, agent_of(agent), wanted, ttl, timeout, note).run())


class _Reserve(NamedTuple):
    """One run of the command."""

    context: click.Context
    agent: str
    wanted: Wanted
    ttl: float
    timeout: float
    note: str

    async def run(self) -> int:
        store = HandleStore(settings(self.context).namespace, self.agent)
        store.open()
        async with Session(settings(self.context)) as session:
            outcome = await self._reserve(session, store)
        show(self.context, outcome)
        return 0 if outcome.acquired else EXIT_TIMEOUT

    async def _reserve(self, session: Session, store: HandleStore) -> ReserveOutcome:
        manager = LockManager(session)
        held = await self._held(manager, store)
        missing = self.wanted.without(one for one, _ in held)
        if not missing:
            return self._acquired([reservation for _, reservation in held])
        if own := [one for one, _ in held if missing.conflicts_with(one)]:
            return self._in_its_own_way(own)
        reading: list[Obstacles] = []
        try:
            async with _telling(session, missing, reading):
                reservation = await self._ask(manager, missing)
        except LockTimeout:
            held = await self._held(manager, store)  # a parallel call of this agent may have been faster
            if not self.wanted.without(one for one, _ in held):
                return self._acquired([reservation for _, reservation in held])
            return self._busy(await obstacles(session, missing), reading)
        await _keep(store, reservation, missing)
        return self._acquired([one for _, one in held], reservation)

    async def _held(self, manager: LockManager, store: HandleStore) -> list[tuple[KeptHandle, Reservation]]:
        return await kept.still_held(manager, store, self.wanted, self.ttl, self.note or None)

    async def _ask(self, manager: LockManager, missing: Wanted) -> Reservation:
        try:
            reserving = manager.reserve(
                *missing.names,
                paths=missing.paths,
                tree=missing.tree,
                ttl=self.ttl,
                timeout=self.timeout,
                note=self.note,
                owner=self.agent,
                shared=missing.shared,
            )
        except ValueError as error:  # a time or a note that no reservation can have
            raise click.UsageError(str(error)) from None
        return await reserving

    def _acquired(self, renewed: list[Reservation], new: Reservation | None = None) -> ReserveOutcome:
        shared = self.wanted.shared
        held = [_described(one, shared, renewed=True) for one in renewed]
        held += [_described(new, shared, renewed=False)] if new else []
        following = [next_command(self.context, word, arguments=_some_name(held[-1])) for word in ("renew", "release")]
        return ReserveOutcome(True, self.agent, tuple(held), (), None, "", tuple(following))

    def _in_its_own_way(self, own: list[KeptHandle]) -> ReserveOutcome:
        reason = f"{self.agent} holds {'; '.join(map(text.scope, own))} itself, which overlaps: release that first"
        following = [next_command(self.context, "release", arguments=_some_name(one)) for one in own]
        return ReserveOutcome(False, self.agent, (), (), None, reason, tuple(following))

    def _busy(self, now: Obstacles, readings: list[Obstacles]) -> ReserveOutcome:
        own = next((one.own for one in readings), None)
        reason = "not granted" + (f" within {self.timeout:g} s" if self.timeout else " at once")
        if mine := [one for one in now.holders if one.agent == self.agent]:
            reason += f"; {self.agent} reserved {text.scope(mine[0])} elsewhere, and its handle is not kept here"
        return ReserveOutcome(False, self.agent, (), now.holders, now.position(own), reason, self._ways_on(now.holders))

    def _ways_on(self, holders: tuple[Holder, ...]) -> tuple[str, ...]:
        words = [word for path in self.wanted.paths for word in ("--path", path)]
        words += ["--tree", self.wanted.tree] if self.wanted.paths else []
        words += ["--shared"] if self.wanted.shared else []
        longest = max((one.expires_in or 0.0 for one in holders), default=0.0)
        longer = f"{max(60, int(longest) + 60)}s"
        again = next_command(self.context, "reserve", *words, "--timeout", longer, arguments=self.wanted.names)
        return again, next_command(self.context, "reservations")


async def _keep(store: HandleStore, reservation: Reservation, wanted: Wanted) -> None:
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
        click.echo(f"waiting for {text.scope(wanted)}, number {now.position(now.own)} in the queue; held by {holders}", err=True)

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


def _some_name(one: HeldReservation | KeptHandle) -> tuple[str, ...]:
    """A name or a path by which ``renew`` and ``release`` find a reservation."""
    return (one.names or one.paths)[:1]


def show(context: click.Context, outcome: ReserveOutcome) -> None:
    """Print the result in the form that ``-o`` names."""
    form = output_format(context)
    if form in ("json", "jsonl"):
        output.print_json(outcome, lines=form == "jsonl")
    elif form == "name":
        for one in outcome.reservations if outcome.acquired else ():
            for name in (*one.names, *one.paths):
                click.echo(text.visible(name))
    elif outcome.acquired:
        for one in outcome.reservations:
            click.echo("\n".join(text.held(one, outcome.agent)))
        click.echo(f"next: {text.visible(outcome.next[0])}, and in the end: {text.visible(outcome.next[1])}")
    else:
        click.echo("\n".join(_refusal(outcome)), err=True)


def _refusal(outcome: ReserveOutcome) -> list[str]:
    lines = [f"not reserved: {text.visible(outcome.reason)}"]
    lines += [f"held: {text.scope(one)} by {text.holder(one)}" for one in outcome.held_by]
    if outcome.position is not None:
        lines.append(f"place in the queue: {outcome.position}; this call has left it")
    return lines + [f"next: {text.visible(command)}" for command in outcome.next]
