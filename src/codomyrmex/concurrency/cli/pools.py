"""``pools``: every worker pool that reports, per host; also live."""

from __future__ import annotations

from collections.abc import Sequence

import click

from codomyrmex.concurrency import ClusterPoolStats, Session
from codomyrmex.concurrency.cli.options import common_options, output_format, settings, where
from codomyrmex.concurrency.cli.running import run
from codomyrmex.concurrency.cli.views import live, output, pool_table
from codomyrmex.concurrency.pool import cluster
from codomyrmex.concurrency.session import core_of


@click.command()
@click.option("--watch", "-w", is_flag=True, help="Follow it live; off a terminal, one line per change.")
@click.option("--prefix", default="", metavar="P", help="Only pools whose name starts with P.")
@click.option(
    "--sort", type=click.Choice(["name", "running", "waiting", "queued", "failed"]), default="name", show_default=True
)
@common_options
@click.pass_context
def pools(context: click.Context, watch: bool, prefix: str, sort: str) -> None:
    """Show every worker pool that reports: its figures per host, and their sums.

    RUNNING counts tasks that work. WAITING counts tasks that have begun and wait for a lock, a permit or another
    attempt. QUEUED counts tasks that have not begun.

    \b
    Examples:
      codomyrmex concurrency pools --watch
      codomyrmex concurrency pools -o json | jq '.[] | {name, running, queued}'
    """
    run(_watch(context, prefix, sort) if watch else _list(context, prefix, sort))


def _sorted(found: Sequence[ClusterPoolStats], sort: str) -> list[ClusterPoolStats]:
    if sort == "name":
        return sorted(found, key=lambda pool: pool.name)
    if sort == "running":
        return sorted(found, key=lambda pool: pool.waiting - pool.running)
    return sorted(found, key=lambda pool: -getattr(pool, sort))


async def _list(context: click.Context, prefix: str, sort: str) -> None:
    async with Session(settings(context)) as session:
        found = _sorted(await cluster.pools(core_of(session), prefix), sort)
    output.show_list(context, found, pool_table.pools, f"no pools report {where(context, prefix)}")


async def _watch(context: click.Context, prefix: str, sort: str) -> int:
    return await live.watch_changes(
        context,
        lambda session: cluster.follow(core_of(session), prefix),
        lambda found: pool_table.pools(_sorted(found, sort), wide=output_format(context) == "wide"),
        pool_table.pool_line,
        key=lambda pool: pool.name,
        gone=lambda pool: ClusterPoolStats(pool.name, ()),
    )
