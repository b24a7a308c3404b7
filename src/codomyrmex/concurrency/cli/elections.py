"""``elections``: the leaders of all elections, with their values and candidates, also live; one in full; end a term."""

from __future__ import annotations

import click

from codomyrmex.concurrency import NotHeld, Session
from codomyrmex.concurrency.cli.command_classes import NamedGroup
from codomyrmex.concurrency.cli.completion import names_of
from codomyrmex.concurrency.cli.election_rows import rows
from codomyrmex.concurrency.cli.options import common_options, confirmed, needs_yes, output_format, settings, where
from codomyrmex.concurrency.cli.running import EXIT_FAILED, run
from codomyrmex.concurrency.cli.views import election_table, live, output, owners, text
from codomyrmex.concurrency.cli.views.grid import Grid
from codomyrmex.concurrency.recipes.election import queues, succession
from codomyrmex.concurrency.session import core_of
from codomyrmex.concurrency.waitqueue import shared_values
from codomyrmex.concurrency.waitqueue.force_release import force_release
from codomyrmex.concurrency.waitqueue.shared_values import SharedEntries


@click.group(cls=NamedGroup, invoke_without_command=True, subcommand_metavar="[NAME | release NAME]")
@click.option("--watch", "-w", is_flag=True, help="Follow it live; off a terminal, one line per term and value.")
@click.option("--prefix", default="", metavar="P", help="Only elections whose name starts with P; without NAME.")
@common_options
@click.pass_context
def elections(context: click.Context, watch: bool, prefix: str) -> None:
    """Show the leader, the value and the candidates of all elections, or of one.

    LEADS counts from the grant, as HELD of `locks` does. Off a terminal, --watch tells every term, and every value that
    a leader proclaims.

    \b
    Examples:
      codomyrmex concurrency elections --watch
      codomyrmex concurrency elections scheduler -o json | jq .value
    """
    if context.invoked_subcommand is None:
        run(_watch(context, None, prefix) if watch else _list(context, prefix))


@elections.command(hidden=True)
@click.argument("name", shell_complete=names_of("election"))
@click.option("--watch", "-w", is_flag=True, help="Follow it live; off a terminal, one line per term and value.")
@common_options
@click.pass_context
def show(context: click.Context, name: str, watch: bool) -> None:
    """Show one election: its leader with its value and token, and its candidates in order of arrival.

    \b
    Example:  codomyrmex concurrency elections scheduler --watch
    """
    assert context.parent
    watch = watch or context.parent.params["watch"]
    run(_watch(context, name) if watch else _show(context, name))


@elections.command()
@click.argument("name", shell_complete=names_of("election"))
@click.option("--token", type=int, metavar="N", help="Only the term with this token, as `elections` shows it.")
@click.option("--reason", required=True, help="Recorded, and shown to the leader.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask; needed off a terminal.")
@click.option("--dry-run", is_flag=True, help="Show the term that would be ended.")
@common_options
@click.pass_context
def release(context: click.Context, name: str, token: int | None, reason: str, yes: bool, dry_run: bool) -> None:
    """End the term of a leader.

    The next candidate leads.

    \b
    Example:  codomyrmex concurrency elections release scheduler --reason "host is gone"
    """
    if not reason.strip():
        raise click.UsageError("--reason must say something: a leader whose term is ended will read it")
    needs_yes(yes or dry_run, "this ends the term of the leader")
    run(_release(context, name, token, reason, yes, dry_run))


async def _release(context: click.Context, name: str, token: int | None, reason: str, yes: bool, dry_run: bool) -> int:
    of = queues(name)
    async with Session(settings(context)) as session:
        found = rows(await shared_values.read(core_of(session), of))
        if not found:
            raise NotHeld(f"nobody leads the election {name!r}")
        row = found[0]
        if token not in (None, row.token):
            raise NotHeld(f"the election {name!r} is led with token {row.token}, not {token}; look again")
        shown = f"{text.visible(row.name)}, led by {owners.owner(row.leader)} with token {row.token}"
        if dry_run:
            click.echo(f"would release {shown}; {len(row.candidates)} wait")
            return 0
        if not await confirmed(yes, f"release {shown}?"):
            return EXIT_FAILED
        await force_release(core_of(session), row.name, reason, row.token, of.kind)
    click.echo(f"released {shown}")
    return 0


async def _list(context: click.Context, prefix: str) -> None:
    async with Session(settings(context)) as session:
        found = rows(await shared_values.read(core_of(session), queues(prefix=prefix)))
    output.show_list(context, found, election_table.elections, f"nobody leads an election {where(context, prefix)}")


async def _show(context: click.Context, name: str) -> int:
    of = queues(name)
    async with Session(settings(context)) as session:
        found = rows(await shared_values.read(core_of(session), of))
    if not found:
        click.echo(f"error: nobody leads the election {text.visible(name)} {where(context)}", err=True)
        return EXIT_FAILED
    output.show(context, found[0], election_table.election)
    return 0


async def _watch(context: click.Context, name: str | None, prefix: str = "") -> int:
    of = queues(name, prefix)

    def draw(found: SharedEntries) -> Grid:
        shown = rows(found)
        if name is not None and shown:
            return election_table.election(shown[0])
        return election_table.elections(shown, wide=output_format(context) == "wide")

    return await live.watch(
        context,
        events=lambda session: succession(core_of(session), of),
        line=election_table.term_line,
        pictures=lambda session: shared_values.latest(core_of(session), of),
        draw=draw,
    )
