"""``dlq list`` and ``dlq show``: the entries of a queue, and one of them in full."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import click

from codomyrmex.concurrency import DeadLetter, DeadLetterNotFound, DeadLetterQueue, Session
from codomyrmex.concurrency.cli.command_classes import Command
from codomyrmex.concurrency.cli.dlq import queues
from codomyrmex.concurrency.cli.dlq.options import operation_option, queue_option, watch_option
from codomyrmex.concurrency.cli.duration_types import Age
from codomyrmex.concurrency.cli.options import common_options, output_format
from codomyrmex.concurrency.cli.running import run
from codomyrmex.concurrency.cli.views import dead_letter_page, dead_letter_table, live, output
from codomyrmex.concurrency.dead_letters import overview
from codomyrmex.concurrency.dead_letters.record import State
from codomyrmex.concurrency.names import checked
from codomyrmex.concurrency.session import core_of

_SCREEN = 200  # entries that a live table holds


class _Choice(NamedTuple):
    """The entries that the options ask for. ``since`` is in seconds before now."""

    operation: str | None = None
    state: State | None = None
    since: float | None = None
    limit: int | None = None

    async def of(self, queue: DeadLetterQueue) -> list[DeadLetter]:
        """These entries of a queue, the oldest first."""
        since = None if self.since is None else datetime.now(UTC) - timedelta(seconds=self.since)
        return await queue.list_entries(self.operation, since, self.state, self.limit)

    def has(self, entry: DeadLetter) -> bool:
        """True if an entry is one of these; ``limit`` does not count."""
        age = (datetime.now(UTC) - entry.created_at).total_seconds()
        return (
            self.operation in (None, entry.operation)
            and self.state in (None, entry.state)
            and (self.since is None or age <= self.since)
        )


@click.command("list", cls=Command)
@queue_option
@operation_option
@click.option(
    "--state", type=click.Choice(["waiting", "running", "parked", "resolved"]), help="Only entries in this state."
)
@click.option("--since", type=Age(), metavar="1h", help="Only entries added in this time.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="At most so many, the oldest first.")
@watch_option
@common_options
@click.pass_context
def list_command(
    context: click.Context,
    queue: str,
    operation: str | None,
    state: State | None,
    since: float | None,
    limit: int | None,
    watch: bool,
) -> None:
    """List the entries of a queue, the oldest first.

    ATTEMPTS counts the attempts in the queue and, for an entry of a pool, those in the pool before: 0, 3 in pool.

    \b
    Examples:
      codomyrmex concurrency dlq list --state parked -o wide
      codomyrmex concurrency dlq list --watch
    """
    choice = _Choice(operation, state, since, limit)
    run(_watch(context, queue, choice) if watch else _list(context, queue, choice))


async def _list(context: click.Context, name: str, choice: _Choice) -> None:
    async with queues.opened(context, name) as opened:
        entries, otherwise = await choice.of(opened.queue), ""
        if not entries:
            await queues.need_operation(opened, choice.operation)
            otherwise = await queues.nothing_in(opened)
    output.show_list(context, entries, dead_letter_table.dead_letters, otherwise, names=lambda one: (one.id,))


async def _watch(context: click.Context, name: str, choice: _Choice) -> int:
    name = checked(name)

    async def events(session: Session) -> AsyncGenerator[DeadLetter, None]:
        async with aclosing(DeadLetterQueue(name, session=session).watch()) as entries:
            async for entry in entries:
                if choice.has(entry):
                    yield entry

    def readings(session: Session) -> AsyncGenerator[list[DeadLetter], None]:
        queue = DeadLetterQueue(name, session=session)
        most = choice._replace(limit=choice.limit or _SCREEN)
        return overview.snapshots(core_of(session), lambda: most.of(queue), name)

    return await live.watch(
        context,
        events,
        dead_letter_table.dead_letter_line,
        readings,
        lambda entries: dead_letter_table.dead_letters(entries, wide=output_format(context) == "wide"),
    )


@click.command(cls=Command)
@click.argument("id")
@queue_option
@common_options
@click.pass_context
def show(context: click.Context, id: str, queue: str) -> None:
    """Show everything on record about one entry.

    That is its arguments, error, traceback, and attempts: each one in the queue, and the number in its pool before.

    \b
    Example:  codomyrmex concurrency dlq show 0199d5a1b2c3d4e5f6a7b8c9
    """
    run(_show(context, queue, id))


async def _show(context: click.Context, name: str, entry_id: str) -> None:
    async with queues.opened(context, name) as opened:
        entry = await opened.queue.get(entry_id)
    if entry is None:
        raise DeadLetterNotFound(f"there is no dead letter {entry_id!r} {opened.where}")
    output.show(context, entry, dead_letter_page.dead_letter, name=entry.id)
