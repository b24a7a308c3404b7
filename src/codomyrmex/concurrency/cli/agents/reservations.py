"""``reservations``: all reservations of the namespace, with their owners, notes and time left; also live."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from datetime import UTC, datetime

import click

from codomyrmex.concurrency import LockManager, ReservationInfo, Session
from codomyrmex.concurrency.cli.agents.agent import agent_of, agent_option
from codomyrmex.concurrency.cli.agents.reservation_events import ReservationEvent, events
from codomyrmex.concurrency.cli.options import common_options, output_format, settings, where
from codomyrmex.concurrency.cli.running import run
from codomyrmex.concurrency.cli.views import live, output, reservation_table

_PERIOD = 1.0  # seconds between two readings: the time left changes without an event of etcd


@click.command()
@click.option("--mine", is_flag=True, help="Only those of this agent; --as is enough.")
@click.option("--watch", "-w", is_flag=True, help="Follow it live; off a terminal, one line per change.")
@agent_option
@common_options
@click.pass_context
def reservations(context: click.Context, mine: bool, watch: bool, agent: str | None) -> None:
    """Show who has reserved what, for how much longer, and with which note.

    \b
    Examples:
      codomyrmex concurrency reservations --mine
      codomyrmex concurrency reservations --watch
      codomyrmex concurrency reservations -o json | jq '.[] | {owner, paths, note}'
    """
    owner = agent_of(agent) if mine or agent else None
    run(_watch(context, owner) if watch else _list(context, owner))


async def _list(context: click.Context, owner: str | None) -> None:
    async with Session(settings(context)) as session:
        found = await LockManager(session).reservations(owner)
    of = f" by {owner}" if owner else ""
    none = f"nothing is reserved{of} {where(context)}"
    output.show_list(context, found, reservation_table.reservations, none, names=lambda one: (*one.names, *one.paths))


async def _watch(context: click.Context, owner: str | None) -> int:
    async def pictures(session: Session) -> AsyncGenerator[list[ReservationInfo], None]:
        manager = LockManager(session)
        while True:
            yield await manager.reservations(owner)
            await asyncio.sleep(_PERIOD)

    known: list[ReservationInfo] = []

    async def changes(session: Session) -> AsyncGenerator[ReservationEvent, None]:
        async for newer in pictures(session):
            for event in events(known, newer, datetime.now(UTC)):
                yield event
            known[:] = newer

    return await live.watch(
        context,
        events=changes,
        line=reservation_table.event,
        pictures=pictures,
        draw=lambda found: reservation_table.reservations(found, wide=output_format(context) == "wide"),
    )
