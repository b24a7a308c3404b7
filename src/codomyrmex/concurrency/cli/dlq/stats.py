"""``dlq stats``: the entries of all queues, counted by operation and state."""

from __future__ import annotations

import click

from codomyrmex.concurrency import DeadLetterQueue, Session
from codomyrmex.concurrency.cli.command_classes import Command
from codomyrmex.concurrency.cli.completion import names_of
from codomyrmex.concurrency.cli.dlq import queues
from codomyrmex.concurrency.cli.dlq.options import watch_option
from codomyrmex.concurrency.cli.options import common_options, namespace, settings, where
from codomyrmex.concurrency.cli.running import run
from codomyrmex.concurrency.cli.views import live, operation_table, output
from codomyrmex.concurrency.dead_letters import overview
from codomyrmex.concurrency.dead_letters.stats import OperationSummary, summarize
from codomyrmex.concurrency.names import checked
from codomyrmex.concurrency.session import core_of


@click.command(cls=Command)
@click.option(
    "-q",
    "--queue",
    metavar="NAME",
    shell_complete=names_of("dead letter queue"),
    help="Only this queue. Default: all queues.",
)
@watch_option
@common_options
@click.pass_context
def stats(context: click.Context, queue: str | None, watch: bool) -> None:
    """Count the entries of all queues, by operation and state.

    KINDS is how many different failures there are. Errors that differ only in numbers, hex or quoted text are of one
    kind.

    \b
    Example:  codomyrmex concurrency dlq stats --watch
    """
    run(_watch(context, queue) if watch else _stats(context, queue))


async def _stats(context: click.Context, queue: str | None) -> None:
    queue = None if queue is None else checked(queue)
    async with Session(settings(context)) as session:
        if queue is not None:
            await queues.need(context, session, queue)
        found = await _summaries(session, queue)
    looked = where(context) if queue is None else f"in the queue {queue!r} of {namespace(context)}"
    output.show_list(
        context, found, operation_table.summaries, f"no dead letters {looked}", names=lambda one: (one.queue,)
    )


async def _watch(context: click.Context, queue: str | None) -> int:
    queue = None if queue is None else checked(queue)
    return await live.watch_changes(
        context,
        lambda session: overview.snapshots(core_of(session), lambda: _summaries(session, queue)),
        operation_table.summaries,
        operation_table.summary_line,
        key=lambda one: (one.queue, one.operation),
        gone=lambda one: OperationSummary(one.queue, one.operation),
    )


async def _summaries(session: Session, queue: str | None) -> list[OperationSummary]:
    found = []
    for name in [queue] if queue is not None else await overview.queue_names(core_of(session)):
        found += await summarize(name, DeadLetterQueue(name, session=session).entries())
    return found
