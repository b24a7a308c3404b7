"""A dead letter queue as a command opens it, and what is said where a queue, an operation, an entry or a worker is
missing: the names of those that there are."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import aclosing, asynccontextmanager
from typing import NamedTuple

import click

from codomyrmex.concurrency import ConcurrencyError, DeadLetterQueue, Session
from codomyrmex.concurrency.cli.options import namespace, settings, where
from codomyrmex.concurrency.dead_letters import overview

DEFAULT = "default"  # the queue of whoever names none; it is there even when it is empty
_MOST = 20  # names in a message


class Opened(NamedTuple):
    """A queue and the session that it is on."""

    queue: DeadLetterQueue
    session: Session
    place: str  # in words


@asynccontextmanager
async def opened(context: click.Context, name: str) -> AsyncIterator[Opened]:
    """The queue, if there is one of that name; else an error that names those there are."""
    async with Session(settings(context)) as session:
        queue = DeadLetterQueue(name, session=session)
        await need(context, session, name)
        try:
            yield Opened(queue, session, f"in the queue {name!r} of {namespace(context)}")
        finally:
            await queue.close()


async def need(context: click.Context, session: Session, name: str) -> None:
    """Raise an error that names the queues there are, unless ``name`` is one of them."""
    if name == DEFAULT or name in (known := await overview.queue_names(session)):
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
            f"there are no dead letters of the operation {operation!r} {found.place}; {_named('operation', known)}"
        )


async def nothing_in(found: Opened) -> str:
    """The answer where no entry was found: where it was looked for, and where entries are."""
    if count := await found.queue.count():
        return f"none of the {count} dead letters {found.place} is one of those asked for"
    others = [name for name in await overview.queue_names(found.session) if await _has_entries(found.session, name)]
    elsewhere = f"; there are some in {_list(others)}; see them with --queue" if others else ""
    return f"no dead letters {found.place}{elsewhere}"


async def warn_of_no_worker(found: Opened, operations: Iterable[str]) -> None:
    """Say on stderr which of these operations nobody will retry, as far as workers say that they are there."""
    there = await overview.workers(found.session, found.queue.name)
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


async def _has_entries(session: Session, name: str) -> bool:
    return await DeadLetterQueue(name, session=session).count() > 0


def _named(what: str, known: Iterable[str]) -> str:
    names = sorted(known)
    return f"the {what}s there are: {_list(names)}" if names else "there is none at all"


def _list(names: list[str]) -> str:
    more = f" and {len(names) - _MOST} more" if len(names) > _MOST else ""
    return ", ".join(repr(name) for name in names[:_MOST]) + more
