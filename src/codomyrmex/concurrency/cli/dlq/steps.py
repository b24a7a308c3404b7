"""One step for each entry that is named on the command line, and the preview that ``--dry-run`` shows."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import click

from codomyrmex.concurrency import (
    ConcurrencyError,
    DeadLetter,
    DeadLetterNotFound,
    DeadLetterQueue,
    EtcdError,
    SessionLost,
)
from codomyrmex.concurrency.cli.dlq.queues import Opened
from codomyrmex.concurrency.cli.running import EXIT_FAILED
from codomyrmex.concurrency.cli.views.text import visible


def preview(verb: str, entries: Sequence[DeadLetter]) -> None:
    """Print what would be done to these entries."""
    for entry in entries:
        click.echo(f"would {verb} {visible(entry.id)} {visible(entry.operation)} ({entry.state})")
    click.echo(f"{len(entries)} entries", err=True)


async def preview_each(opened: Opened, ids: Sequence[str], verb: str) -> int:
    """Print what would be done to each of the entries named; returns the exit code. An id that is not there is told."""

    async def look(queue: DeadLetterQueue, entry_id: str) -> None:
        entry = await queue.get(entry_id)
        if entry is None:
            raise DeadLetterNotFound(f"there is no dead letter {entry_id!r} {opened.where}")
        preview(verb, [entry])

    return await each(opened, ids, look)


async def each(opened: Opened, ids: Sequence[str], step: Callable[[DeadLetterQueue, str], Awaitable[None]]) -> int:
    """Take ``step`` for each id; returns the exit code. An error of one entry is printed, and the others go on.

    Raises ``EtcdError`` and ``SessionLost``, after which no other entry would fare better.
    """
    code = 0
    for entry_id in ids:
        try:
            await step(opened.queue, entry_id)
        except (EtcdError, SessionLost):
            raise
        except ConcurrencyError as error:
            click.echo(f"error: {error}", err=True)
            code = EXIT_FAILED
    return code
