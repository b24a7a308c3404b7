"""``dlq``: the dead letter queues: what failed, retried, discarded, purged; live; a worker for them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import click

from codomyrmex.concurrency import (
    ConcurrencyError,
    DeadLetter,
    DeadLetterNotFound,
    DeadLetterQueue,
    EtcdError,
    Session,
    SessionLost,
)
from codomyrmex.concurrency.cli import live, queues, tables, views
from codomyrmex.concurrency.cli.completion import names_of
from codomyrmex.concurrency.cli.groups import Group
from codomyrmex.concurrency.cli.options import (
    EXIT_FAILED,
    Age,
    common_options,
    confirmed,
    namespace,
    needs_yes,
    output,
    run,
    settings,
    where,
)
from codomyrmex.concurrency.cli.work import work
from codomyrmex.concurrency.dead_letters import overview
from codomyrmex.concurrency.dead_letters.record import State
from codomyrmex.concurrency.dead_letters.stats import OperationSummary, summarize
from codomyrmex.concurrency.names import checked

_SCREEN = 200  # entries that a live table holds

_queue = click.option(
    "-q",
    "--queue",
    default=queues.DEFAULT,
    show_default=True,
    metavar="NAME",
    shell_complete=names_of("dead letter queue"),
    help="Which queue.",
)
_operation = click.option("--operation", metavar="NAME", help="Only entries of this operation.")
_watch_flag = click.option("--watch", "-w", is_flag=True, help="Follow it live; off a terminal, one line per change.")
_yes = click.option("-y", "--yes", is_flag=True, help="Do not ask; needed off a terminal.")
_dry = click.option("--dry-run", is_flag=True, help="Show what would be done.")


@click.group(cls=Group)
@common_options
def dlq() -> None:
    """Dead letters: operations that failed, kept until they are dealt with.

    \b
    Examples:
      codomyrmex concurrency dlq stats
      codomyrmex concurrency dlq list --state parked
      codomyrmex concurrency dlq retry --all --operation send_mail --rate 5
    """


class _Choice(NamedTuple):
    """Which entries are meant."""

    operation: str | None = None
    state: State | None = None
    since: float | None = None
    limit: int | None = None

    async def of(self, queue: DeadLetterQueue) -> list[DeadLetter]:
        since = None if self.since is None else datetime.now(UTC) - timedelta(seconds=self.since)
        return await queue.list_entries(self.operation, since, self.state, self.limit)

    def has(self, entry: DeadLetter) -> bool:
        age = (datetime.now(UTC) - entry.created_at).total_seconds()
        return (
            self.operation in (None, entry.operation)
            and self.state in (None, entry.state)
            and (self.since is None or age <= self.since)
        )


dlq.add_command(work)


@dlq.command("list")
@_queue
@_operation
@click.option("--state", type=click.Choice(["waiting", "running", "parked", "resolved"]), help="Only in this state.")
@click.option("--since", type=Age(), metavar="1h", help="Only added in this time.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="At most so many, the oldest first.")
@_watch_flag
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
    """The entries of a queue, the oldest first.

    ATTEMPTS counts those in the queue, and adds those that its pool had made before: 0, 3 in pool.

    \b
    Examples:
      codomyrmex concurrency dlq list --state parked -o wide
      codomyrmex concurrency dlq list --watch
    """
    choice = _Choice(operation, state, since, limit)
    run(_watch_entries(context, queue, choice) if watch else _list(context, queue, choice))


async def _list(context: click.Context, name: str, choice: _Choice) -> None:
    async with queues.opened(context, name) as opened:
        entries, otherwise = await choice.of(opened.queue), ""
        if not entries:
            await queues.need_operation(opened, choice.operation)
            otherwise = await queues.nothing_in(opened)
    views.show_list(context, entries, tables.dead_letters, otherwise, name="id")


async def _watch_entries(context: click.Context, name: str, choice: _Choice) -> int:
    name = checked(name)

    async def events(session: Session) -> AsyncGenerator[DeadLetter, None]:
        async with aclosing(DeadLetterQueue(name, session=session).watch()) as entries:
            async for entry in entries:
                if choice.has(entry):
                    yield entry

    def pictures(session: Session) -> AsyncGenerator[list[DeadLetter], None]:
        queue = DeadLetterQueue(name, session=session)
        most = choice._replace(limit=choice.limit or _SCREEN)
        return overview.snapshots(session, lambda: most.of(queue), name)

    return await live.watch(
        context,
        events,
        tables.dead_letter_line,
        pictures,
        lambda entries: tables.dead_letters(entries, wide=output(context) == "wide"),
    )


@dlq.command()
@click.argument("id")
@_queue
@common_options
@click.pass_context
def show(context: click.Context, id: str, queue: str) -> None:
    """Everything on record about one entry.

    Arguments, error, traceback, attempts: those in the queue, and how many its pool had made before.

    \b
    Example:  codomyrmex concurrency dlq show 0199d5a1b2c3d4e5f6a7b8c9
    """
    run(_show(context, queue, id))


async def _show(context: click.Context, name: str, entry_id: str) -> None:
    async with queues.opened(context, name) as opened:
        entry = await opened.queue.get(entry_id)
    if entry is None:
        raise DeadLetterNotFound(f"there is no dead letter {entry_id!r} {opened.place}")
    views.show(context, entry, tables.dead_letter, name=entry.id)


@dlq.command()
@click.argument("ids", nargs=-1, metavar="[ID]...")
@click.option("--all", "everything", is_flag=True, help="Every waiting and parked entry there is now.")
@_operation
@click.option("--state", type=click.Choice(["waiting", "parked"]), help="With --all: only those; else both.")
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), metavar="N", help="At most so many a second.")
@_queue
@_yes
@_dry
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

    They become due, with all their attempts before them. Warns when no worker is there that would take them; those of
    release 0.1 are not seen.

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
    async with queues.opened(context, name) as opened:
        done, code = await _each(opened, ids, dry_run, "retry", "due now", lambda queue, one: queue.replay(one))
        if done:
            await queues.warn_of_no_worker(opened, {entry.operation for entry in done})
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
            _would("retry", found)
            return 0
        if not await confirmed(yes, f"retry {len(found)} entries?"):
            return EXIT_FAILED
        count = await queue.replay_all(operation, rate, state)
        click.echo(f"{count} entries are due now {opened.place}")
        if count:
            await queues.warn_of_no_worker(opened, {entry.operation for entry in found})
    return 0


@dlq.command()
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@click.option("--reason", required=True, help="Recorded with the entry.")
@_queue
@_yes
@_dry
@common_options
@click.pass_context
def discard(context: click.Context, ids: tuple[str, ...], reason: str, queue: str, yes: bool, dry_run: bool) -> None:
    """Resolve entries without retrying them.

    They stay to be seen for the retention time.

    \b
    Example:  codomyrmex concurrency dlq discard 0199d5a1b2c3d4e5f6a7b8c9 --reason "the customer has left"
    """
    if not reason.strip():
        raise click.UsageError("--reason must say something, for those who ask later")
    needs_yes(yes or dry_run, "these operations will never be retried")

    async def main() -> int:
        if not dry_run and not await confirmed(yes, f"discard {len(ids)} entries, never to be retried?"):
            return EXIT_FAILED
        async with queues.opened(context, queue) as opened:
            _, code = await _each(
                opened, ids, dry_run, "discard", "discarded", lambda queue, one: queue.discard(one, reason=reason)
            )
        return code

    run(main())


@dlq.command()
@click.option("--older-than", type=Age(), metavar="7d", help="Only entries added longer ago.")
@click.option("--state", type=click.Choice(["parked", "resolved"]), help="Only in this state; else both.")
@_queue
@_yes
@_dry
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
            _would("delete", found)
            return 0
        if not await confirmed(yes, f"delete {len(found)} entries for good?"):
            return EXIT_FAILED
        count = await queue.purge(before, state)
    click.echo(f"{count} entries are deleted {opened.place}")
    return 0


@dlq.command()
@click.option(
    "-q",
    "--queue",
    metavar="NAME",
    shell_complete=names_of("dead letter queue"),
    help="Only this queue; else all there are.",
)
@_watch_flag
@common_options
@click.pass_context
def stats(context: click.Context, queue: str | None, watch: bool) -> None:
    """Count the entries of all queues, by operation and state.

    KINDS is how many different failures they are: entries whose errors differ in numbers, hex and quoted text alone are
    of one kind.

    \b
    Example:  codomyrmex concurrency dlq stats --watch
    """
    run(_watch_stats(context, queue) if watch else _stats(context, queue))


async def _stats(context: click.Context, queue: str | None) -> None:
    queue = None if queue is None else checked(queue)
    async with Session(settings(context)) as session:
        if queue is not None:
            await queues.need(context, session, queue)
        found = await _summaries(session, queue)
    place = where(context) if queue is None else f"in the queue {queue!r} of {namespace(context)}"
    views.show_list(context, found, tables.summaries, f"no dead letters {place}", name="queue")


async def _watch_stats(context: click.Context, queue: str | None) -> int:
    queue = None if queue is None else checked(queue)
    return await live.watch_changes(
        context,
        lambda session: overview.snapshots(session, lambda: _summaries(session, queue)),
        tables.summaries,
        tables.summary_line,
        key=lambda one: (one.queue, one.operation),
        gone=lambda one: OperationSummary(one.queue, one.operation),
    )


async def _summaries(session: Session, queue: str | None) -> list[OperationSummary]:
    found = []
    for name in [queue] if queue is not None else await overview.queue_names(session):
        found += await summarize(name, DeadLetterQueue(name, session=session).entries())
    return found


def _would(what: str, entries: list[DeadLetter]) -> None:
    for entry in entries:
        click.echo(f"would {what} {views.visible(entry.id)} {views.visible(entry.operation)} ({entry.state})")
    click.echo(f"{len(entries)} entries", err=True)


async def _each(
    opened: queues.Opened,
    ids: tuple[str, ...],
    dry_run: bool,
    what: str,
    done: str,
    act: Callable[[DeadLetterQueue, str], Coroutine[Any, Any, DeadLetter]],
) -> tuple[list[DeadLetter], int]:
    """Do it to each entry; returns those to which it was done, and the exit code. What cannot be done to one is told,
    and does not keep the others from it."""
    changed, code = list[DeadLetter](), 0
    for entry_id in ids:
        try:
            if not dry_run:
                changed.append(await act(opened.queue, entry_id))
                click.echo(f"{views.visible(entry_id)} is {done}")
            elif entry := await opened.queue.get(entry_id):
                _would(what, [entry])
            else:
                raise DeadLetterNotFound(f"there is no dead letter {entry_id!r} {opened.place}")
        except (EtcdError, SessionLost):
            raise
        except ConcurrencyError as error:
            click.echo(f"error: {error}", err=True)
            code = EXIT_FAILED
    return changed, code
