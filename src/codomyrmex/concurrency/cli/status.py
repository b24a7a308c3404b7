"""``status``: the cluster's health in one view, and in the exit code."""

from __future__ import annotations

import click
from rich.text import Text

from codomyrmex.concurrency.cli import tables, views
from codomyrmex.concurrency.cli.options import EXIT_FAILED, common_options, output, run, settings
from codomyrmex.concurrency.health import cluster_status


@click.command()
@common_options
@click.pass_context
def status(context: click.Context) -> None:
    """Endpoints, leader, versions, database size, alarms, sessions. Exits with 1 if anything is wrong.

    \b
    Example:  codomyrmex concurrency status -o json
    """
    run(_status(context))


async def _status(context: click.Context) -> int:
    found = await cluster_status(settings(context))
    form = output(context)
    if form in ("json", "jsonl"):
        views.print_json(found, lines=form == "jsonl")
    else:
        console = views.console(context)
        console.print(tables.status(found), crop=False)
        console.print(f"cluster {found.cluster_id}: {found.sessions} sessions, {found.locks} locks in use")
        for text in found.problems:
            console.print(Text.assemble(("problem: ", "bold red"), views.visible(text)), soft_wrap=True)
        for text in found.warnings:
            console.print(Text.assemble(("warning: ", "yellow"), views.visible(text)), soft_wrap=True)
    return EXIT_FAILED if found.problems else 0
