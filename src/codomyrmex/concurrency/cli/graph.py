"""``locks graph``: the requesters that wait for each other, and the deadlocks among them."""

from __future__ import annotations

import dataclasses

import click

from codomyrmex.concurrency import LockManager, Session, Waits
from codomyrmex.concurrency.cli.options import options_with, output_format, settings, where
from codomyrmex.concurrency.cli.running import run
from codomyrmex.concurrency.cli.views import output, wait_graph


@click.command()
@click.option("--prefix", default="", metavar="P", help="Only waits for names that start with P.")
@options_with("text", "dot", "json")
@click.pass_context
def graph(context: click.Context, prefix: str) -> None:
    """Show all waits and deadlocks: over locks, paths, semaphores, elections, reservations.

    A line for each wait tells the holders and the waiter just ahead, and a line for each deadlock its cycle. All of it
    is read at one revision. -o dot prints a graph for Graphviz, with deadlocks in red.

    \b
    Examples:
      codomyrmex concurrency locks graph
      codomyrmex concurrency locks graph -o dot | dot -Tsvg > waits.svg
      codomyrmex concurrency locks graph -o json | jq '.cycles | length'
    """
    run(_show(context, prefix))


async def _show(context: click.Context, prefix: str) -> None:
    async with Session(settings(context)) as session:
        found = _with_prefix(await LockManager(session).waits(), prefix)
    form = output_format(context)
    if form in ("json", "jsonl"):
        output.print_json(found, lines=form == "jsonl")
    elif form == "dot":
        click.echo("\n".join(wait_graph.dot(found)))
    elif found.edges:
        click.echo("\n".join(wait_graph.lines(found)))
    else:
        click.echo(f"no requester waits for another one {where(context, prefix)}", err=True)


def _with_prefix(found: Waits, prefix: str) -> Waits:
    """The waits for names with this prefix, and the deadlocks of which one is part."""
    return dataclasses.replace(
        found,
        edges=tuple(edge for edge in found.edges if edge.queue.name.startswith(prefix)),
        cycles=tuple(cycle for cycle in found.cycles if any(edge.queue.name.startswith(prefix) for edge in cycle)),
    )
