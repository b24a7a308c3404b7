"""``members``: the members of all groups, or of one, with their capabilities; also live."""

from __future__ import annotations

import click

from codomyrmex.concurrency import Member, Session
from codomyrmex.concurrency.cli.command_classes import NamedGroup
from codomyrmex.concurrency.cli.completion import names_of
from codomyrmex.concurrency.cli.options import common_options, output_format, settings, where
from codomyrmex.concurrency.cli.running import EXIT_FAILED, run
from codomyrmex.concurrency.cli.views import group_table, live, output, owners, text
from codomyrmex.concurrency.recipes import membership
from codomyrmex.concurrency.session import core_of
from codomyrmex.concurrency.waitqueue import shared_values
from codomyrmex.concurrency.waitqueue.shared_values import SharedEntries


@click.group(cls=NamedGroup, invoke_without_command=True, subcommand_metavar="[NAME]")
@click.option("--watch", "-w", is_flag=True, help="Follow it live; off a terminal, one line per change.")
@click.option("--prefix", default="", metavar="P", help="Only groups whose name starts with P; without NAME.")
@common_options
@click.pass_context
def members(context: click.Context, watch: bool, prefix: str) -> None:
    """Show the members of all groups, or of one, with their capabilities.

    Off a terminal, --watch tells every member that joins, leaves, or changes its capabilities.

    \b
    Examples:
      codomyrmex concurrency members --watch
      codomyrmex concurrency members workers -o json | jq '.[] | select(.capabilities.gpu)'
    """
    if context.invoked_subcommand is None:
        run(_watch(context, None, prefix) if watch else _list(context, prefix))


@members.command(hidden=True)
@click.argument("name", shell_complete=names_of("group"))
@click.option("--watch", "-w", is_flag=True, help="Follow it live; off a terminal, one line per change.")
@common_options
@click.pass_context
def show(context: click.Context, name: str, watch: bool) -> None:
    """Show the members of one group in the order in which they joined, with their capabilities.

    \b
    Example:  codomyrmex concurrency members workers --watch
    """
    assert context.parent
    watch = watch or context.parent.params["watch"]
    run(_watch(context, name) if watch else _show(context, name))


async def _list(context: click.Context, prefix: str) -> None:
    async with Session(settings(context)) as session:
        found = _by_group(await shared_values.read(core_of(session), membership.queues(prefix=prefix)))
    if output_format(context) == "name":
        found = list({member.group: member for member in found}.values())
    empty = f"no group has members {where(context, prefix)}"
    output.show_list(context, found, group_table.members, empty, names=lambda member: (member.group,))


async def _show(context: click.Context, name: str) -> int:
    of = membership.queues(name)
    async with Session(settings(context)) as session:
        found = _by_group(await shared_values.read(core_of(session), of))
    if not found:
        click.echo(f"error: the group {text.visible(name)} has no members {where(context)}", err=True)
        return EXIT_FAILED
    output.show_list(context, found, group_table.members, "", names=lambda member: (owners.owner(member.owner),))
    return 0


async def _watch(context: click.Context, name: str | None, prefix: str = "") -> int:
    of = membership.queues(name, prefix)
    return await live.watch(
        context,
        events=lambda session: membership.changes(core_of(session), of),
        line=group_table.member_line,
        pictures=lambda session: shared_values.latest(core_of(session), of),
        draw=lambda found: group_table.members(_by_group(found), wide=output_format(context) == "wide"),
    )


def _by_group(found: SharedEntries) -> list[Member]:
    """The members by group, and in the order in which they joined it."""
    return sorted(membership.members(found.entries), key=lambda member: member.group)
