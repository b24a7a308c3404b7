"""A dead letter queue as a command opens it, and the messages about a queue, an operation, an entry or a worker that
is missing: each names those that there are."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import aclosing, asynccontextmanager
from typing import NamedTuple

import click

from codomyrmex.concurrency import ConcurrencyError, DeadLetterQueue, Session
from codomyrmex.concurrency.cli.options import namespace, settings, where
from codomyrmex.concurrency.dead_letters import overview
from codomyrmex.concurrency.session import core_of

DEFAULT = "default"  # the queue of a user who names none; it exists even when it is empty
_MOST = 20  # names in a message


class Opened(NamedTuple):
    """A queue, its session, and the end of a message that says where it was looked for."""

    queue: DeadLetterQueue
    session: Session
    where: str


@asynccontextmanager
async def opened(context: click.Context, name: str) -> AsyncIterator[Opened]:
    """Open the queue of this name. Raises an error that names the queues there are if there is none of this name."""
    async with Session(settings(context)) as session:
        queue = DeadLetterQueue(name, session=session)
        await need(context, session, name)
        try:
            yield Opened(queue, session, f"in the queue {name!r} of {namespace(context)}")
        finally:
            await queue.close()


async def need(context: click.Context, session: Session, name: str) -> None:
    """Raise an error that names the queues there are, unless ``name`` is one of them."""
    if name == DEFAULT or name in (known := await overview.queue_names(core_of(session))):
        return
    raise ConcurrencyError(f"there is no dead letter queue {name!r} {where(context)}; {_named('queue', known)}")


async def need_operation(found: Opened, operation: str | None) -> None:
    """Raise an error that names the operations there are, if the queue has entries and none is of this one."""
    if operation is None:
        return
    async with aclosing(found.queue.entries()) as entries:
        known = {entry.operation async for entry in entries}
    if known and operation not in known:
        raise ConcurrencyError(
            f"there are no dead letters of the operation {operation!r} {found.where}; {_named('operation', known)}"
        )


async def nothing_in(found: Opened) -> str:
    """The message that no entry was found: in which queue, and which other queues have some."""
    if count := await found.queue.count():
        return f"none of the {count} dead letters {found.where} is among those asked for"
    others = await overview.queues_with_entries(core_of(found.session))
    elsewhere = f"; there are some in {_list(others)}; see them with --queue" if others else ""
    return f"no dead letters {found.where}{elsewhere}"


async def warn_of_no_worker(found: Opened, operations: Iterable[str]) -> None:
    """Print a warning about the operations that no worker of the queue retries, if there are any."""
    there = await overview.workers(core_of(found.session), found.queue.name)
    handled = {operation for worker in there for operation in worker.operations}
    if not there:
        click.echo(
            f"warning: the queue {found.queue.name!r} has no worker at the moment, so this waits until there is one. "
            "To run one: codomyrmex concurrency dlq work --app MODULE:QUEUE",
            err=True,
        )
    elif missing := sorted(set(operations) - handled):
        click.echo(
            f"warning: no worker of the queue {found.queue.name!r} (there are {len(there)}) has a handler for "
            f"{_list(missing)}, so this waits until one has",
            err=True,
        )


def _named(noun: str, known: Iterable[str]) -> str:
    names = sorted(known)
    return f"the {noun}s there are: {_list(names)}" if names else "there is none at all"


def _list(names: list[str]) -> str:
    more = f" and {len(names) - _MOST} more" if len(names) > _MOST else ""
    return ", ".join(repr(name) for name in names[:_MOST]) + more
