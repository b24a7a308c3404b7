"""``status``: the cluster's health in one view, and in the exit code."""

from __future__ import annotations

import click
from rich.text import Text

from codomyrmex.concurrency.cli.options import common_options, output_format, settings
from codomyrmex.concurrency.cli.running import EXIT_FAILED, run
from codomyrmex.concurrency.cli.views import member_table, output
from codomyrmex.concurrency.cli.views.text import visible
from codomyrmex.concurrency.health import cluster_status


@click.command()
@common_options
@click.pass_context
def status(context: click.Context) -> None:
    """Show endpoints, leader, versions, database size, alarms and sessions. Exits with 1 if anything is wrong.

    \b
    Example:  codomyrmex concurrency status -o json
    """
    run(_status(context))


async def _status(context: click.Context) -> int:
    found = await cluster_status(settings(context))
    form = output_format(context)
    if form in ("json", "jsonl"):
        output.print_json(found, lines=form == "jsonl")
    else:
        console = output.console(context)
        console.print(member_table.members(found), crop=False)
        console.print(f"cluster {found.cluster_id}: {found.sessions} sessions, {found.locks} locks in use")
        for text in found.problems:
            console.print(Text.assemble(("problem: ", "bold red"), visible(text)), soft_wrap=True)
        for text in found.warnings:
            console.print(Text.assemble(("warning: ", "yellow"), visible(text)), soft_wrap=True)
    return EXIT_FAILED if found.problems else 0
