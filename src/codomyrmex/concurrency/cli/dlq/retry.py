"""``dlq retry``: makes entries due now."""

from __future__ import annotations

import click

from codomyrmex.concurrency import DeadLetterQueue
from codomyrmex.concurrency.cli.command_classes import Command
from codomyrmex.concurrency.cli.dlq import queues, steps
from codomyrmex.concurrency.cli.dlq.options import dry_run_option, operation_option, queue_option, yes_option
from codomyrmex.concurrency.cli.options import common_options, confirmed, needs_yes
from codomyrmex.concurrency.cli.running import EXIT_FAILED, run
from codomyrmex.concurrency.cli.views.text import visible
from codomyrmex.concurrency.dead_letters.record import State


@click.command(cls=Command)
@click.argument("ids", nargs=-1, metavar="[ID]...")
@click.option("--all", "everything", is_flag=True, help="Every waiting and parked entry there is now.")
@operation_option
@click.option("--state", type=click.Choice(["waiting", "parked"]), help="With --all: only those; else both.")
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), metavar="N", help="At most so many a second.")
@queue_option
@yes_option
@dry_run_option
@common_options
@click.pass_context
def retry(
    context: click.Context,
    ids: tuple[str, ...],
    everything: bool,
    operation: str | None,
    state: State | None,
    rate: float | None,
    queue: str,
    yes: bool,
    dry_run: bool,
) -> None:
    """Have a worker retry entries now.

    The entries become due, and their attempts are counted from 0 again. Prints a warning if no worker would take them.

    \b
    Examples:
      codomyrmex concurrency dlq retry 0199d5a1b2c3d4e5f6a7b8c9
      codomyrmex concurrency dlq retry --all --operation send_mail --rate 5
    """
    if bool(ids) == everything:
        raise click.UsageError("give the ids of entries, or --all")
    if ids and (operation or state or rate):
        raise click.UsageError("--operation, --state and --rate go with --all")
    if ids:
        run(_retry(context, queue, ids, dry_run))
    needs_yes(yes or dry_run, "this runs every failed operation again")
    run(_retry_all(context, queue, operation, state, rate, yes, dry_run))


async def _retry(context: click.Context, name: str, ids: tuple[str, ...], dry_run: bool) -> int:
    operations: set[str] = set()

    async def replay(queue: DeadLetterQueue, entry_id: str) -> None:
        operations.add((await queue.replay(entry_id)).operation)
        click.echo(f"{visible(entry_id)} is due now")

    async with queues.opened(context, name) as opened:
        if dry_run:
            return await steps.preview_each(opened, ids, "retry")
        code = await steps.each(opened, ids, replay)
        if operations:
            await queues.warn_of_no_worker(opened, operations)
    return code


async def _retry_all(
    context: click.Context,
    name: str,
    operation: str | None,
    state: State | None,
    rate: float | None,
    yes: bool,
    dry_run: bool,
) -> int:
    states = (state,) if state else ("waiting", "parked")
    async with queues.opened(context, name) as opened:
        queue = opened.queue
        found = [one async for one in queue.entries(operation) if one.state in states]
        if not found:
            await queues.need_operation(opened, operation)
        if dry_run:
            steps.preview("retry", found)
            return 0
        if not await confirmed(yes, f"retry {len(found)} entries?"):
            return EXIT_FAILED
        count = await queue.replay_all(operation, rate, state)
        click.echo(f"{count} entries are due now {opened.where}")
        if count:
            await queues.warn_of_no_worker(opened, {entry.operation for entry in found})
    return 0
