"""``locks --stuck``: the holders without progress, timed by this command's own clock."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from datetime import UTC, datetime

import click

from codomyrmex.concurrency import LockManager, Session, clock
from codomyrmex.concurrency.cli.options import output_format, settings, where
from codomyrmex.concurrency.cli.views import live, output, stuck_table, text
from codomyrmex.concurrency.session import core_of
from codomyrmex.concurrency.waitqueue import follow
from codomyrmex.concurrency.waitqueue.idle_times import IdleTimes, StuckHolder

_STEP = 0.5  # seconds between two looks at the time


async def show(context: click.Context, limit: float, prefix: str) -> None:
    """Read the locks, wait for ``limit`` seconds, read them again, and list the holders without progress in between.

    Ctrl-C ends it without a list: nothing is known of the whole time then.
    """
    times = IdleTimes()
    await _read(context, prefix, times)
    click.echo(
        f"watching for {text.span(limit)}: the holders without progress in that time are listed then; with --watch "
        "they are listed live",
        err=True,
    )
    await asyncio.sleep(limit)
    now = clock.now()
    await _read(context, prefix, times)
    none = f"no lock's holder was without progress for {text.span(limit)} {where(context, prefix)}"
    output.show_list(context, times.stuck(limit, now), stuck_table.holders, none)


async def _read(context: click.Context, prefix: str, times: IdleTimes) -> None:
    async with Session(settings(context)) as session:  # it is not kept for the time between the readings
        infos = await LockManager(session).locks(prefix)
    times.read(infos, clock.now(), datetime.now(UTC))


async def watch(context: click.Context, limit: float, prefix: str) -> int:
    """Show the holders without progress for ``limit`` seconds live, until the user ends it."""
    times = IdleTimes()  # it outlasts a session of this command

    async def pictures(session: Session) -> AsyncGenerator[list[StuckHolder], None]:
        async with aclosing(follow.locks(core_of(session), prefix)) as readings:
            reading = asyncio.ensure_future(anext(readings))
            try:
                while True:
                    await asyncio.wait([reading], timeout=_STEP)
                    if reading.done():
                        times.read(reading.result(), clock.now(), datetime.now(UTC))
                        reading = asyncio.ensure_future(anext(readings))
                    if core_of(session).alive:  # while etcd does not answer, progress would not be seen
                        yield times.stuck(limit, clock.now())
            finally:
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)

    return await live.watch_changes(
        context,
        pictures,
        lambda holders: stuck_table.holders(holders, wide=output_format(context) == "wide"),
        stuck_table.event,
        key=lambda holder: (holder.owner.key, holder.owner.token),
        gone=lambda holder: replace(holder, stuck=False),
    )
