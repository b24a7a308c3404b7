"""``dlq purge``: deletes parked and resolved entries."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import click

from codomyrmex.concurrency.cli.command_classes import Command
from codomyrmex.concurrency.cli.dlq import queues, steps
from codomyrmex.concurrency.cli.dlq.options import dry_run_option, queue_option, yes_option
from codomyrmex.concurrency.cli.duration_types import Age
from codomyrmex.concurrency.cli.options import common_options, confirmed, needs_yes
from codomyrmex.concurrency.cli.running import EXIT_FAILED, run
from codomyrmex.concurrency.dead_letters.record import State


@click.command(cls=Command)
@click.option("--older-than", type=Age(), metavar="7d", help="Only entries added longer ago.")
@click.option("--state", type=click.Choice(["parked", "resolved"]), help="Only entries in this state. Default: both.")
@queue_option
@yes_option
@dry_run_option
@common_options
@click.pass_context
def purge(
    context: click.Context, older_than: float | None, state: State | None, queue: str, yes: bool, dry_run: bool
) -> None:
    """Delete parked and resolved entries for good.

    \b
    Example:  codomyrmex concurrency dlq purge --state resolved --older-than 7d
    """
    needs_yes(yes or dry_run, "this deletes entries for good")
    run(_purge(context, queue, older_than, state, yes, dry_run))


async def _purge(
    context: click.Context, name: str, older_than: float | None, state: State | None, yes: bool, dry_run: bool
) -> int:
    before = None if older_than is None else datetime.now(UTC) - timedelta(seconds=older_than)
    states = (state,) if state else ("parked", "resolved")
    async with queues.opened(context, name) as opened:
        queue = opened.queue
        found = [
            one async for one in queue.entries() if one.state in states and (before is None or one.created_at < before)
        ]
        if dry_run:
            steps.preview("delete", found)
            return 0
        if not await confirmed(yes, f"delete {len(found)} entries for good?"):
            return EXIT_FAILED
        count = await queue.purge(before, state)
    click.echo(f"{count} entries are deleted {opened.where}")
    return 0
