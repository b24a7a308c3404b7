"""``semaphores``: limits, holders and waiters; live; one in full; resized; deleted."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import click

from codomyrmex.concurrency import NotHeld, SemaphoreInfo, Session
from codomyrmex.concurrency.cli import live, tables, views
from codomyrmex.concurrency.cli.completion import names_of
from codomyrmex.concurrency.cli.options import EXIT_FAILED, common_options, output, run, settings
from codomyrmex.concurrency.follow import snapshots
from codomyrmex.concurrency.keys import SEMAPHORE, check_name
from codomyrmex.concurrency.queue import observe
from codomyrmex.concurrency.semaphore import check_limit, delete, resize


class _Named(click.Group):
    """``semaphores NAME`` is ``semaphores show NAME``."""

    def resolve_command(
        self, context: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in self.commands:
            args = ["show", *args]
        return super().resolve_command(context, args)


@click.group(cls=_Named, invoke_without_command=True, subcommand_metavar="[NAME | resize NAME N | delete NAME]")
@click.option("--watch", "-w", is_flag=True, help="Follow it live; off a terminal, one line per change.")
@click.option("--prefix", default="", metavar="P", help="Only semaphores whose name starts with P.")
@common_options
@click.pass_context
def semaphores(context: click.Context, watch: bool, prefix: str) -> None:
    """Limits, holders and waiters of all semaphores, or the whole queue of one.

    \b
    Examples:
      codomyrmex concurrency semaphores --watch
      codomyrmex concurrency semaphores provider -o json
      codomyrmex concurrency semaphores resize provider 5
      codomyrmex concurrency semaphores delete provider
    """
    if context.invoked_subcommand is None:
        run(_watch(context, prefix) if watch else _list(context, prefix))


@semaphores.command(hidden=True)
@click.argument("name", shell_complete=names_of("semaphore"))
@click.option("--watch", "-w", is_flag=True, help="Follow it live; off a terminal, one line per change.")
@common_options
@click.pass_context
def show(context: click.Context, name: str, watch: bool) -> None:
    """The whole queue of one semaphore: owners, permits, tokens, waiting times.

    \b
    Example:  codomyrmex concurrency semaphores provider --watch
    """
    assert context.parent
    watch = watch or context.parent.params["watch"]
    run(_watch_one(context, name) if watch else _show(context, name))


async def _list(context: click.Context, prefix: str) -> None:
    async with Session(settings(context)) as session:
        infos = await observe.semaphores(session, prefix)
    views.show_list(context, infos, tables.semaphores, "there are no semaphores")


async def _show(context: click.Context, name: str) -> int:
    async with Session(settings(context)) as session:
        info = await observe.semaphore(session, name)
    if info.limit is None:
        click.echo(f"error: there is no semaphore {views.visible(name)}", err=True)
        return EXIT_FAILED
    views.show(context, info, tables.semaphore)
    return 0


async def _watch(context: click.Context, prefix: str) -> int:
    def pictures(session: Session) -> AsyncGenerator[list[SemaphoreInfo], None]:
        return snapshots(session, session.layout.under(SEMAPHORE), lambda: observe.semaphores(session, prefix))

    return await live.watch_changes(
        context,
        pictures,
        lambda infos: tables.semaphores(infos, wide=output(context) == "wide"),
        tables.semaphore_line,
        key=_name,
    )


async def _watch_one(context: click.Context, name: str) -> int:
    check_name(name)

    def pictures(session: Session) -> AsyncGenerator[list[SemaphoreInfo], None]:
        async def read() -> list[SemaphoreInfo]:
            return [await observe.semaphore(session, name)]

        return snapshots(session, session.layout.queue(name, SEMAPHORE), read)

    return await live.watch_changes(
        context, pictures, lambda infos: tables.semaphore(infos[0]), tables.semaphore_line, key=_name
    )


def _name(info: SemaphoreInfo) -> str:
    return info.name


@semaphores.command("resize")
@click.argument("name", shell_complete=names_of("semaphore"))
@click.argument("limit", metavar="N", type=click.IntRange(min=1))
@click.option("--dry-run", is_flag=True, help="Show what would change.")
@common_options
@click.pass_context
def resize_command(context: click.Context, name: str, limit: int, dry_run: bool) -> None:
    """Change a semaphore's limit for everyone, at once.

    Permits held beyond a smaller limit stay held until they are released.

    \b
    Example:  codomyrmex concurrency semaphores resize provider 5
    """
    run(_resize(context, name, check_limit(limit), dry_run))


async def _resize(context: click.Context, name: str, limit: int, dry_run: bool) -> int:
    async with Session(settings(context)) as session:
        if dry_run:
            info = await observe.semaphore(session, name)
            if info.limit is None:
                raise NotHeld(f"there is no semaphore {name!r}")
            held = sum(owner.permits for owner in info.holders)
            click.echo(
                f"would change the limit of {views.visible(name)} from {info.limit} to {limit}; "
                f"{held} permits are held, {len(info.waiters)} wait"
            )
            return 0
        former = await resize(session, name, limit)
    click.echo(f"the limit of {views.visible(name)} is {limit}, and was {former}")
    return 0


@semaphores.command("delete")
@click.argument("name", shell_complete=names_of("semaphore"))
@common_options
@click.pass_context
def delete_command(context: click.Context, name: str) -> None:
    """Remove a semaphore that nobody uses; refused while permits are held or waited for.

    \b
    Example:  codomyrmex concurrency semaphores delete provider
    """
    run(_delete(context, name))


async def _delete(context: click.Context, name: str) -> None:
    async with Session(settings(context)) as session:
        limit = await delete(session, name)
    click.echo(f"the semaphore {views.visible(name)}, of {limit} permits, is deleted")
