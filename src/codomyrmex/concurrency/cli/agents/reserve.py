"""``reserve``: reserves names and paths beyond the life of this process, or tells their holders."""

from __future__ import annotations

import click

from codomyrmex.concurrency import Session
from codomyrmex.concurrency.cli.agents.agent import (
    acting_agent,
    agent_option,
    lasting,
    need_a_server,
    noted,
    tree_option,
)
from codomyrmex.concurrency.cli.agents.handle_store import HandleStore
from codomyrmex.concurrency.cli.agents.outcomes import ReserveOutcome
from codomyrmex.concurrency.cli.agents.reserving import Reserving
from codomyrmex.concurrency.cli.agents.wanted import Wanted, is_like_a_path
from codomyrmex.concurrency.cli.completion import names_of
from codomyrmex.concurrency.cli.duration_types import Duration
from codomyrmex.concurrency.cli.options import common_options, output_format, settings
from codomyrmex.concurrency.cli.running import EXIT_TIMEOUT, run
from codomyrmex.concurrency.cli.views import output
from codomyrmex.concurrency.cli.views import reservation_text as text
from codomyrmex.concurrency.cli.views.text import visible


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...", shell_complete=names_of("lock"))
@click.option("--path", "paths", multiple=True, metavar="P", help="A path; src/ is all below src. May be repeated.")
@tree_option
@lasting(default="15m", show_default=True, help="10s to 24h.")
@click.option("--timeout", type=Duration(), default="30s", show_default=True, metavar="TIME", help="Of the wait.")
@click.option("--shared", is_flag=True, help="Reserve as a reader, together with other readers.")
@noted("Shown to others, and to the next one if this expires.")
@agent_option
@common_options
@click.pass_context
def reserve(
    context: click.Context,
    names: tuple[str, ...],
    paths: tuple[str, ...],
    tree: str,
    ttl: float,
    timeout: float,
    shared: bool,
    note: str | None,
    agent: str | None,
) -> None:
    """Reserve names and paths for an agent, all or none; or tell who has them, and exit with 75.

    A reservation does not end with this process. It ends when `release` gives it back, or when its time is over and no
    `renew` came. Paths are relative to the root of their tree, from whatever directory; a glob is taken as the
    directory that it begins with. What this agent holds already is renewed.

    \b
    Examples:
      codomyrmex concurrency reserve --path src/parser/ --note "renaming the parser"
      codomyrmex concurrency reserve deploy --for 1h --timeout 5m
      codomyrmex concurrency reserve --path README.md --shared -o json
    """
    need_a_server(context)
    try:
        wanted = Wanted.of(names, paths, tree, shared)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    if not wanted:
        raise click.UsageError("give a NAME or --path: what to reserve")
    for given in paths:
        if (widened := Wanted.of((), [given], tree, shared).paths[0]) != given and any(char in given for char in "*?["):
            click.echo(f"note: {given!r} is taken as the directory {widened or '(the whole tree)'!r}", err=True)
    run(_reserve(context, Reserving(context, acting_agent(agent), wanted, ttl, timeout, note)))


async def _reserve(context: click.Context, reserving: Reserving) -> int:
    store = HandleStore(settings(context).namespace, reserving.agent)
    store.open()
    async with Session(settings(context)) as session:
        outcome = await reserving.run(session, store)
    _show(context, outcome)
    for name in filter(is_like_a_path, reserving.wanted.names if outcome.acquired else ()):
        shown = visible(name)
        click.echo(f"note: {shown} is reserved as a name; for a path of the tree say --path {shown}", err=True)
    return 0 if outcome.acquired else EXIT_TIMEOUT


def _show(context: click.Context, outcome: ReserveOutcome) -> None:
    """Print the result in the form that ``-o`` names."""
    form = output_format(context)
    if form in ("json", "jsonl"):
        output.print_json(outcome, lines=form == "jsonl")
    elif form == "name":
        for one in outcome.reservations if outcome.acquired else ():
            for name in (*one.names, *one.paths):
                click.echo(visible(name))
    elif outcome.acquired:
        for one in outcome.reservations:
            click.echo("\n".join(text.held(one, outcome.agent)))
        click.echo(f"next: {visible(outcome.next[0])}, and in the end: {visible(outcome.next[1])}")
    else:
        click.echo("\n".join(_refusal(outcome)), err=True)


def _refusal(outcome: ReserveOutcome) -> list[str]:
    lines = [f"not reserved: {visible(outcome.reason)}"]
    lines += text.holders(outcome.held_by)
    if outcome.position is not None:
        lines.append(f"place in the queue: {outcome.position}; this call has left it")
    return lines + text.following(outcome.next)
