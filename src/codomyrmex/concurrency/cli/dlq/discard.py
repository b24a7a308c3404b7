"""``dlq discard``: resolves entries without a retry."""

from __future__ import annotations

import click

from codomyrmex.concurrency import DeadLetterQueue
from codomyrmex.concurrency.cli.command_classes import Command
from codomyrmex.concurrency.cli.dlq import queues, steps
from codomyrmex.concurrency.cli.dlq.options import dry_run_option, queue_option, yes_option
from codomyrmex.concurrency.cli.options import common_options, confirmed, needs_yes
from codomyrmex.concurrency.cli.running import EXIT_FAILED, run
from codomyrmex.concurrency.cli.views.text import visible


@click.command(cls=Command)
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@click.option("--reason", required=True, help="Recorded with the entry.")
@queue_option
@yes_option
@dry_run_option
@common_options
@click.pass_context
def discard(context: click.Context, ids: tuple[str, ...], reason: str, queue: str, yes: bool, dry_run: bool) -> None:
    """Resolve entries without retrying them.

    The entries can still be seen for the retention time.

    \b
    Example:  codomyrmex concurrency dlq discard 0199d5a1b2c3d4e5f6a7b8c9 --reason "the customer has left"
    """
    if not reason.strip():
        raise click.UsageError("--reason must say something, for those who ask later")
    needs_yes(yes or dry_run, "these operations will never be retried")
    run(_discard(context, queue, ids, reason, yes, dry_run))


async def _discard(
    context: click.Context, name: str, ids: tuple[str, ...], reason: str, yes: bool, dry_run: bool
) -> int:
    async def step(queue: DeadLetterQueue, entry_id: str) -> None:
        await queue.discard(entry_id, reason=reason)
        click.echo(f"{visible(entry_id)} is discarded")

    if not dry_run and not await confirmed(yes, f"discard {len(ids)} entries, never to be retried?"):
        return EXIT_FAILED
    async with queues.opened(context, name) as opened:
        if dry_run:
            return await steps.preview_each(opened, ids, "discard")
        return await steps.each(opened, ids, step)
