"""``semaphores``: limits, holders and waiters of all, also live; one queue in full; resize; delete."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import click

from codomyrmex.concurrency import NotHeld, SemaphoreInfo, Session
from codomyrmex.concurrency.cli.command_classes import NamedGroup
from codomyrmex.concurrency.cli.completion import names_of
from codomyrmex.concurrency.cli.options import (
    common_options,
    confirmed,
    needs_yes,
    output_format,
    possible_limit,
    settings,
    where,
)
from codomyrmex.concurrency.cli.running import EXIT_FAILED, run
from codomyrmex.concurrency.cli.views import live, output, owners, semaphore_table, text
from codomyrmex.concurrency.cli.views.text import count
from codomyrmex.concurrency.names import checked
from codomyrmex.concurrency.recipes.semaphore_limit import delete, resize
from codomyrmex.concurrency.session import core_of
from codomyrmex.concurrency.waitqueue import follow, inspect


@click.group(cls=NamedGroup, invoke_without_command=True, subcommand_metavar="[NAME | resize NAME N | delete NAME]")
@click.option("--watch", "-w", is_flag=True, help="Follow it live; off a terminal, one line per change.")
@click.option("--prefix", default="", metavar="P", help="Only semaphores whose name starts with P.")
@click.option("--sort", type=click.Choice(["name", "free", "held", "waiters"]), default="name", show_default=True)
@common_options
@click.pass_context
def semaphores(context: click.Context, watch: bool, prefix: str, sort: str) -> None:
    """Show limits, holders and waiters of all semaphores, or the whole queue of one.

    \b
    Examples:
      codomyrmex concurrency semaphores --watch
      codomyrmex concurrency semaphores provider -o json
      codomyrmex concurrency semaphores resize provider 5
      codomyrmex concurrency semaphores delete provider
    """
    if context.invoked_subcommand is None:
        choice = _Choice(prefix, sort)
        run(_watch(context, choice) if watch else _list(context, choice))


class _Choice(NamedTuple):
    """The semaphores that the options ask for, in their order."""

    prefix: str
    sort: str

    def of(self, infos: Sequence[SemaphoreInfo]) -> list[SemaphoreInfo]:
        if self.sort == "free":
            return sorted(infos, key=lambda info: info.available)
        if self.sort == "held":
            return sorted(infos, key=lambda info: owners.longest(info) or 0.0, reverse=True)
        if self.sort == "waiters":
            return sorted(infos, key=lambda info: len(info.waiters), reverse=True)
        return sorted(infos, key=_name)


@semaphores.command(hidden=True)
@click.argument("name", shell_complete=names_of("semaphore"))
@click.option("--watch", "-w", is_flag=True, help="Follow it live; off a terminal, one line per change.")
@common_options
@click.pass_context
def show(context: click.Context, name: str, watch: bool) -> None:
    """Show the whole queue of one semaphore: owners, permits, tokens, waiting times.

    \b
    Example:  codomyrmex concurrency semaphores provider --watch
    """
    assert context.parent
    watch = watch or context.parent.params["watch"]
    run(_watch_one(context, name) if watch else _show(context, name))


async def _list(context: click.Context, choice: _Choice) -> None:
    async with Session(settings(context)) as session:
        infos = choice.of(await inspect.semaphores(core_of(session), choice.prefix))
    output.show_list(
        context, infos, semaphore_table.semaphores, f"there are no semaphores {where(context, choice.prefix)}"
    )


async def _show(context: click.Context, name: str) -> int:
    async with Session(settings(context)) as session:
        info = await inspect.semaphore(core_of(session), name)
    if info.limit is None:
        click.echo(f"error: there is no semaphore {text.visible(name)} {where(context)}", err=True)
        return EXIT_FAILED
    output.show(context, info, semaphore_table.semaphore)
    return 0


async def _watch(context: click.Context, choice: _Choice) -> int:
    return await live.watch_changes(
        context,
        lambda session: follow.semaphores(core_of(session), choice.prefix),
        lambda infos: semaphore_table.semaphores(choice.of(infos), wide=output_format(context) == "wide"),
        semaphore_table.semaphore_line,
        key=_name,
    )


async def _watch_one(context: click.Context, name: str) -> int:
    name = checked(name)
    return await live.watch_changes(
        context,
        lambda session: follow.semaphore(core_of(session), name),
        lambda infos: semaphore_table.semaphore(infos[0]),
        semaphore_table.semaphore_line,
        key=_name,
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
    run(_resize(context, name, possible_limit(limit), dry_run))


async def _resize(context: click.Context, name: str, limit: int, dry_run: bool) -> int:
    async with Session(settings(context)) as session:
        if dry_run:
            info = await inspect.semaphore(core_of(session), name)
            if info.limit is None:
                raise NotHeld(f"there is no semaphore {name!r}")
            held = sum(owner.permits for owner in info.holders)
            click.echo(
                f"would change the limit of {text.visible(name)} from {info.limit} to {limit}; "
                f"{held} permits are held, {len(info.waiters)} wait"
            )
            return 0
        former = await resize(core_of(session), name, limit)
    click.echo(f"the limit of {text.visible(name)} is {limit}, and was {former}")
    return 0


@semaphores.command("delete")
@click.argument("name", shell_complete=names_of("semaphore"))
@click.option("-y", "--yes", is_flag=True, help="Do not ask; needed off a terminal.")
@common_options
@click.pass_context
def delete_command(context: click.Context, name: str, yes: bool) -> None:
    """Delete a semaphore that nobody uses. Fails while permits are held or waited for.

    \b
    Example:  codomyrmex concurrency semaphores delete provider -y
    """
    needs_yes(yes, "this deletes the semaphore and its limit")
    run(_delete(context, name, yes))


async def _delete(context: click.Context, name: str, yes: bool) -> int:
    if not await confirmed(yes, f"delete the semaphore {text.visible(name)}?"):
        return EXIT_FAILED
    async with Session(settings(context)) as session:
        limit = await delete(core_of(session), name)
    click.echo(f"the semaphore {text.visible(name)}, of {count(limit, 'permit')}, is deleted")
    return 0
