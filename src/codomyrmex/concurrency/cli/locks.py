"""``locks``: who holds what and who waits; live; one queue in full; release by force."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import click
from rich.console import Group
from rich.live import Live
from rich.text import Text

from codomyrmex.concurrency import LockEvent, LockInfo, LockManager, NotHeld, Owner, Session, SessionLost
from codomyrmex.concurrency.cli import views
from codomyrmex.concurrency.cli.options import (
    EXIT_FAILED,
    Duration,
    common_options,
    is_terminal,
    output,
    run,
    settings,
)
from codomyrmex.concurrency.errors import EtcdUnavailable
from codomyrmex.concurrency.queue.rules import holding

_REDRAW = 0.25
_RETRY = 1.0


@click.group(invoke_without_command=True)
@click.option("--watch", "-w", is_flag=True, help="Follow it live; off a terminal, one line per event.")
@click.option("--prefix", default="", metavar="P", help="Only locks whose name starts with P.")
@click.option("--held-longer-than", type=Duration(), metavar="5m", help="Only locks held for longer.")
@click.option("--sort", type=click.Choice(["name", "age", "waiters"]), default="name", show_default=True)
@common_options
@click.pass_context
def locks(context: click.Context, watch: bool, prefix: str, held_longer_than: float | None, sort: str) -> None:
    """Holders, waiters, fencing tokens and ages of all locks.

    \b
    Examples:
      codomyrmex concurrency locks --prefix file_edit: --sort age
      codomyrmex concurrency locks --watch
      codomyrmex concurrency locks -o json | jq '.[].name'
    """
    if context.invoked_subcommand is None:
        choice = _Choice(prefix, held_longer_than, sort)
        run(_watch(context, choice) if watch else _list(context, choice))


class _Choice:
    """Which locks to show, and in which order."""

    def __init__(self, prefix: str, held_longer_than: float | None, sort: str) -> None:
        self.prefix = prefix
        self._longer = held_longer_than
        self._sort = sort

    def of(self, infos: list[LockInfo]) -> list[LockInfo]:
        if self._longer is not None:
            infos = [info for info in infos if self._age(info) > self._longer]
        if self._sort == "age":
            return sorted(infos, key=self._age, reverse=True)
        if self._sort == "waiters":
            return sorted(infos, key=lambda info: len(info.waiters), reverse=True)
        return sorted(infos, key=lambda info: info.name)

    @staticmethod
    def _age(info: LockInfo) -> float:
        since = info.holders[0].since
        return (datetime.now(UTC) - since).total_seconds() if since else 0.0


async def _list(context: click.Context, choice: _Choice) -> None:
    async with Session(settings(context)) as session:
        infos = choice.of(await LockManager(session).locks(choice.prefix))
    form = output(context)
    if form in ("json", "jsonl"):
        views.print_json(infos, lines=form == "jsonl")
    elif form == "name":
        for info in infos:
            click.echo(views.visible(info.name))
    elif infos:
        views.console(context).print(views.locks_table(infos, wide=form == "wide"))
    else:
        click.echo("no locks are held", err=True)


async def _watch(context: click.Context, choice: _Choice) -> int:
    with contextlib.suppress(asyncio.CancelledError, KeyboardInterrupt):
        if is_terminal() and output(context) in ("table", "wide"):
            await _redraw(context, choice)
        else:
            await _lines(context, choice)
    return 0


async def _events(context: click.Context, prefix: str) -> AsyncIterator[LockEvent | None]:
    """Events for as long as anybody listens, over as many sessions as that takes; None when the view begins anew."""
    while True:
        try:
            async with Session(settings(context)) as session:
                context.obj["session"] = session
                yield None
                async for event in LockManager(session).watch(prefix):
                    yield event
        except SessionLost as error:
            click.echo(f"reconnecting: {error}", err=True)
        except EtcdUnavailable as error:
            if context.obj.get("connected") is None:
                raise
            click.echo(f"waiting for etcd: {error}", err=True)
        context.obj["connected"] = True
        await asyncio.sleep(_RETRY)


async def _lines(context: click.Context, choice: _Choice) -> None:
    console = views.console(context)
    form = output(context)
    telling = asyncio.create_task(_tell_silence(context))
    try:
        async for event in _events(context, choice.prefix):
            if event is None:
                context.obj["connected"] = True
            elif form in ("json", "jsonl"):
                views.print_json(event, lines=True)
            else:
                console.print(views.event_line(event), soft_wrap=True)
    finally:
        telling.cancel()


def _silent(context: click.Context) -> bool:
    """Whether etcd has stopped answering, so that what is shown may be old."""
    session = context.obj.get("session")
    return session is not None and session.is_open and not session.alive


async def _tell_silence(context: click.Context) -> None:
    """Say on stderr when etcd falls silent, and when it is back."""
    silent = False
    while True:
        await asyncio.sleep(_REDRAW)
        if silent != _silent(context):
            silent = not silent
            click.echo("etcd does not answer; the last lines may be old" if silent else "etcd answers again", err=True)


async def _redraw(context: click.Context, choice: _Choice) -> None:
    """The table, redrawn in place a few times a second from what the events tell."""
    known: dict[str, list[LockEvent]] = {}

    async def follow() -> None:
        async for event in _events(context, choice.prefix):
            if event is None:
                context.obj["connected"] = True
                known.clear()
            elif event.kind == "enqueued":
                known.setdefault(event.name, []).append(event)
            elif event.kind in ("released", "expired"):
                queue = [e for e in known.pop(event.name, []) if e.owner.key != event.owner.key]
                if queue:
                    known[event.name] = queue

    def picture() -> Group:
        infos = [_info(name, [event.owner for event in queue]) for name, queue in known.items()]
        title = Text(f"{len(infos)} locks, {datetime.now():%H:%M:%S}, Ctrl-C ends", style="dim")
        if _silent(context):
            title = Text("etcd does not answer; this is what was known before", style="bold red")
        return Group(title, views.locks_table(choice.of(infos), wide=output(context) == "wide"))

    following = asyncio.create_task(follow())
    try:
        with Live(picture(), console=views.console(context), auto_refresh=False, screen=True) as live:
            while not following.done():
                live.update(picture(), refresh=True)
                await asyncio.wait([following], timeout=_REDRAW)
        await following
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


def _info(name: str, queue: list[Owner]) -> LockInfo:
    held = holding([owner.key.encode() for owner in queue])
    return LockInfo(name, tuple(queue[:held]), tuple(queue[held:]))


@locks.command()
@click.argument("name")
@common_options
@click.pass_context
def show(context: click.Context, name: str) -> None:
    """The whole queue of one lock: owners, tokens, waiting times.

    \b
    Example:  codomyrmex concurrency locks show deploy
    """
    run(_show(context, name))


async def _show(context: click.Context, name: str) -> int:
    async with Session(settings(context)) as session:
        info = await LockManager(session).info(name)
    if info is None:
        click.echo(f"error: nobody holds the lock {views.visible(name)}", err=True)
        return EXIT_FAILED
    form = output(context)
    if form in ("json", "jsonl"):
        views.print_json(info, lines=form == "jsonl")
    elif form == "name":
        click.echo(views.visible(info.name))
    else:
        console = views.console(context)
        console.print(views.queue_table(info))
        if info.last_forced_release:
            record = info.last_forced_release
            console.print(Text(views.visible(f"last forced release: {record.at:%c} by {record.by}: {record.reason}")))
    return 0


@locks.command()
@click.argument("name")
@click.option("--reason", required=True, help="Recorded, and told to the holder.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask; needed off a terminal.")
@click.option("--dry-run", is_flag=True, help="Show what would be released.")
@common_options
@click.pass_context
def release(context: click.Context, name: str, reason: str, yes: bool, dry_run: bool) -> None:
    """Take a lock away from its holder; the next waiter is granted.

    \b
    Example:  codomyrmex concurrency locks release deploy --reason "runner is gone"
    """
    if not reason.strip():
        raise click.UsageError("--reason must say something: those who find their lock gone will read it")
    if not (yes or dry_run or is_terminal()):
        raise click.UsageError("this takes the lock away from its holder; off a terminal, confirm with -y")
    run(_release(context, name, reason, yes, dry_run))


async def _release(context: click.Context, name: str, reason: str, yes: bool, dry_run: bool) -> int:
    async with Session(settings(context)) as session:
        manager = LockManager(session)
        info = await manager.info(name)
        if info is None:
            raise NotHeld(f"nobody holds the lock {name!r}")
        holder = info.holders[0]
        shown = f"{views.visible(name)}, held by {views.owner(holder)} with token {holder.token}"
        if dry_run:
            click.echo(f"would release {shown}; {len(info.waiters)} wait")
            return 0
        if not yes and not await asyncio.to_thread(click.confirm, f"release {shown}?"):
            return EXIT_FAILED
        await manager.force_release(name, reason=reason, token=holder.token)
    click.echo(f"released {shown}")
    return 0
