"""``locks``: all locks and trees with holders and waiters, also live; one queue in full, its past; release by force."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial

import click
from rich.console import Group, RenderableType

from codomyrmex.concurrency import LockInfo, LockManager, NotHeld, Session
from codomyrmex.concurrency.cli import stuck as stuck_holders
from codomyrmex.concurrency.cli.command_classes import NamedGroup
from codomyrmex.concurrency.cli.completion import lock_names
from codomyrmex.concurrency.cli.duration_types import Age
from codomyrmex.concurrency.cli.graph import graph
from codomyrmex.concurrency.cli.history import history
from codomyrmex.concurrency.cli.options import common_options, confirmed, needs_yes, output_format, settings, where
from codomyrmex.concurrency.cli.running import EXIT_FAILED, run
from codomyrmex.concurrency.cli.views import live, lock_table, output, owners, queue_table, text, trees
from codomyrmex.concurrency.cli.views.grid import Grid
from codomyrmex.concurrency.models import QueueKind
from codomyrmex.concurrency.session import core_of
from codomyrmex.concurrency.waitqueue import follow, inspect


@click.group(
    cls=NamedGroup, invoke_without_command=True, subcommand_metavar="[NAME | graph | history NAME | release NAME]"
)
@click.option("--watch", "-w", is_flag=True, help="Follow it live; off a terminal, one line per event.")
@click.option("--prefix", default="", metavar="P", help="Only locks whose name starts with P.")
@click.option(
    "--held-longer-than", type=Age(), metavar="5m", help="Only locks held for longer, counted from their grant."
)
@click.option(
    "--stuck", type=Age(), metavar="10m", help="Watch for so long, then list the holders without progress meanwhile."
)
@click.option(
    "--sort",
    type=click.Choice(["name", "held", "waited", "waiters", "age"]),
    default="name",
    show_default=True,
    help="age is the same as held.",
)
@common_options
@click.pass_context
def locks(
    context: click.Context, watch: bool, prefix: str, held_longer_than: float | None, stuck: float | None, sort: str
) -> None:
    """Show holders, waiters and fencing tokens of all locks, with the times of holding and waiting; or the whole queue
    of one lock.

    HELD counts from the grant. A holder records the time of its grant half a second to a second later. Until then HELD
    is `?`; it stays `?` for clients that record nothing. A live view times the grants that it sees by its own clock.

    A holder makes progress by a call of grant.progress(). --stuck times that by this command's own clock, from what it
    has seen itself; with --watch it lists the holders without progress live.

    Paths of a tree have a row for each holder, with the waiters that it keeps out; see `show --tree`.

    The state is `deadlock` where a waiter is part of a cycle of waits; `locks graph` shows it.

    \b
    Examples:
      codomyrmex concurrency locks --prefix file_edit: --sort held
      codomyrmex concurrency locks deploy
      codomyrmex concurrency locks --watch
      codomyrmex concurrency locks --stuck 10m
      codomyrmex concurrency locks -o json | jq '.[].name'
    """
    if stuck is not None:
        _check_stuck(context, stuck, held_longer_than)
        run(stuck_holders.watch(context, stuck, prefix) if watch else stuck_holders.show(context, stuck, prefix))
    if context.invoked_subcommand is None:
        choice = _Choice(prefix, held_longer_than, sort)
        run(_watch(context, choice) if watch else _list(context, choice))


locks.add_command(graph)
locks.add_command(history)


def _check_stuck(context: click.Context, stuck: float, held_longer_than: float | None) -> None:
    if context.invoked_subcommand is not None:
        raise click.UsageError("--stuck lists the holders of many locks; for one, add --prefix and its name")
    if not stuck:
        raise click.UsageError("--stuck must be more than 0")
    if held_longer_than is not None:
        raise click.UsageError("give --stuck or --held-longer-than, not both")


_Picture = tuple[list[LockInfo], frozenset[lock_table.Wait]]


class _Choice:
    """The locks that the options ask for, in their order."""

    def __init__(self, prefix: str, held_longer_than: float | None, sort: str) -> None:
        self.prefix = prefix
        self._longer = held_longer_than
        self._sort = sort

    def of(self, infos: list[LockInfo]) -> list[LockInfo]:
        if self._longer:  # each has been held for longer than no time
            infos = [info for info in infos if (owners.longest(info) or 0.0) > self._longer]
        if self._sort in ("held", "age"):
            return sorted(infos, key=lambda info: owners.longest(info) or 0.0, reverse=True)
        if self._sort == "waited":
            return sorted(infos, key=lambda info: info.holders[0].waited or 0.0, reverse=True)
        if self._sort == "waiters":
            return sorted(infos, key=lambda info: len(info.waiters), reverse=True)
        return sorted(infos, key=lambda info: info.name)

    def also(self) -> str:
        """The further condition on the locks that are shown, in words."""
        return f" for longer than {self._longer:g} s" if self._longer else ""

    def note(self, infos: list[LockInfo]) -> str:
        """A note on the locks that ``of`` leaves out because their times are not known."""
        if not self._longer:
            return ""
        unknown = sum(owners.longest(info) is None and _in_line(info) > self._longer for info in infos)
        return f"{unknown} left out: since when they are held is not known" if unknown else ""


def _in_line(info: LockInfo) -> float:
    """For how many seconds its holder has been in the queue at least: it cannot have held for longer."""
    since = info.holders[0].since
    return float("inf") if since is None else (datetime.now(UTC) - since).total_seconds()


async def _list(context: click.Context, choice: _Choice) -> None:
    async with Session(settings(context)) as session:
        found = await LockManager(session).locks(choice.prefix)
        deadlocked = await _deadlocked(session, found) if _draws(context) else frozenset()
    if note := choice.note(found):
        click.echo(f"note: {note}", err=True)
    empty = f"no locks are held {where(context, choice.prefix)}{choice.also()}"
    rows = trees.by_holder(found) if _draws(context) else found  # other forms of output have a tree as one
    output.show_list(context, choice.of(rows), partial(lock_table.locks, deadlocked=deadlocked), empty)


def _draws(context: click.Context) -> bool:
    """True if the output is a table."""
    return output_format(context) in ("table", "wide")


async def _deadlocked(session: Session, infos: list[LockInfo]) -> frozenset[lock_table.Wait]:
    """The waits of deadlocks, which are read if anyone waits."""
    if not any(info.waiters for info in infos):
        return frozenset()
    return lock_table.waits_in((await LockManager(session).waits()).cycles)


async def _watch(context: click.Context, choice: _Choice) -> int:
    async def pictures(session: Session) -> AsyncGenerator[_Picture, None]:
        async with aclosing(follow.locks(core_of(session), choice.prefix)) as readings:
            async for infos in readings:
                yield infos, await _deadlocked(session, infos)

    def draw(picture: _Picture) -> Grid:
        infos, wide = trees.by_holder(picture[0]), output_format(context) == "wide"
        return lock_table.locks(choice.of(infos), wide=wide, remark=choice.note(infos), deadlocked=picture[1])

    return await live.watch(
        context,
        events=lambda session: inspect.watch(core_of(session), choice.prefix),
        line=lock_table.lock_event,
        pictures=pictures,
        draw=draw,
    )


def _kind(tree: bool) -> QueueKind:
    return "path" if tree else "lock"


@locks.command()
@click.argument("name", shell_complete=lock_names)
@click.option("--tree", is_flag=True, is_eager=True, help="NAME is a tree: show the holders of its paths.")
@common_options
@click.pass_context
def show(context: click.Context, name: str, tree: bool) -> None:
    """Show the whole queue of one lock or tree.

    It has owners and tokens, and the times of holding and waiting.

    \b
    Examples:
      codomyrmex concurrency locks deploy
      codomyrmex concurrency locks main --tree
    """
    assert context.parent
    if context.parent.params["watch"]:
        raise click.UsageError("--watch follows many locks; for one, add --prefix and its name")
    run(_show(context, name, _kind(tree)))


async def _show(context: click.Context, name: str, kind: QueueKind) -> int:
    async with Session(settings(context)) as session:
        manager = LockManager(session)
        info = await manager.info(name, kind)
        in_tree = info is None and kind == "lock" and await manager.info(name, kind="path")
    if info is None:
        what = "a path of the tree" if kind == "path" else "the lock"
        hint = "; there is a tree of that name: add --tree" if in_tree else ""
        click.echo(f"error: nobody holds {what} {text.visible(name)} {where(context)}{hint}", err=True)
        return EXIT_FAILED
    output.show(context, info, _whole)
    return 0


def _whole(info: LockInfo) -> RenderableType:
    name = f"tree {info.name}" if info.kind == "path" else info.name
    queue = queue_table.queue(name, info.holders, info.waiters)
    record = info.last_forced_release
    if record is None:
        return queue
    return Group(queue, text.safe(f"last forced release: {record.at:%c} by {record.by}: {record.reason}"))


@locks.command()
@click.argument("name", shell_complete=lock_names)
@click.option("--tree", is_flag=True, is_eager=True, help="NAME is a tree; needs --token.")
@click.option("--token", type=int, metavar="N", help="Only the holder with this token, as `locks` shows it.")
@click.option("--reason", required=True, help="Recorded, and shown to the holder.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask; needed off a terminal.")
@click.option("--dry-run", is_flag=True, help="Show what would be released.")
@common_options
@click.pass_context
def release(
    context: click.Context, name: str, tree: bool, token: int | None, reason: str, yes: bool, dry_run: bool
) -> None:
    """Take a lock, or paths of a tree, away from a holder.

    The next waiter is granted.

    \b
    Examples:
      codomyrmex concurrency locks release deploy --reason "runner is gone"
      codomyrmex concurrency locks release main --tree --token 421 --reason "agent is gone"
    """
    if tree and token is None:
        raise click.UsageError(f"a tree may have many holders: name one by --token, which `locks {name} --tree` shows")
    if not reason.strip():
        raise click.UsageError("--reason must say something: those who find their lock gone will read it")
    needs_yes(yes or dry_run, "this takes the lock away from its holder")
    run(_release(context, name, _kind(tree), token, reason, yes, dry_run))


async def _release(
    context: click.Context, name: str, kind: QueueKind, token: int | None, reason: str, yes: bool, dry_run: bool
) -> int:
    async with Session(settings(context)) as session:
        manager = LockManager(session)
        info = await manager.info(name, kind)
        if info is None:
            raise NotHeld(f"nobody holds the {'path lock' if kind == 'path' else 'lock'} {name!r}")
        row = next((row for row in _by_token(info) if token in (None, row.holders[0].token)), None)
        if row is None:
            tokens = ", ".join(str(one.token) for one in info.holders)
            raise NotHeld(f"{name!r} is held with token {tokens}, not {token}; look again")
        holder = row.holders[0]
        shown = f"{text.visible(trees.title(row))}, held by {owners.owner(holder)} with token {holder.token}"
        if dry_run:
            click.echo(f"would release {shown}; {len(row.waiters)} wait")
            return 0
        if not await confirmed(yes, f"release {shown}?"):
            return EXIT_FAILED
        await manager.force_release(name, reason=reason, token=holder.token, kind=kind)
    click.echo(f"released {shown}")
    return 0


def _by_token(info: LockInfo) -> list[LockInfo]:
    """The holders of a lock or tree, each with the waiters that it keeps out."""
    if info.kind == "path":
        return trees.by_holder([info])
    return [replace(info, holders=(one,)) for one in info.holders]
