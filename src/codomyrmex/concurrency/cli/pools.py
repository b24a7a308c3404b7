"""``pools``: every worker pool of the fleet that reports, per host; live."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence

import click

from codomyrmex.concurrency import ClusterPoolStats, Session
from codomyrmex.concurrency.cli import live, tables, views
from codomyrmex.concurrency.cli.options import common_options, output, run, settings, where
from codomyrmex.concurrency.pool import cluster, reporting
from codomyrmex.concurrency.watching import snapshots


@click.command()
@click.option("--watch", "-w", is_flag=True, help="Follow it live; off a terminal, one line per change.")
@click.option("--prefix", default="", metavar="P", help="Only pools whose name starts with P.")
@click.option(
    "--sort", type=click.Choice(["name", "running", "waiting", "queued", "failed"]), default="name", show_default=True
)
@common_options
@click.pass_context
def pools(context: click.Context, watch: bool, prefix: str, sort: str) -> None:
    """Every worker pool that reports: its figures per host, and their sums.

    RUNNING tasks work. WAITING ones have begun, and wait for a lock, a permit or another attempt. QUEUED ones have not.

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
        found = _sorted(await cluster.pools(session, prefix), sort)
    views.show_list(context, found, tables.pools, f"no pools report {where(context, prefix)}")


async def _watch(context: click.Context, prefix: str, sort: str) -> int:
    def pictures(session: Session) -> AsyncGenerator[list[ClusterPoolStats], None]:
        return snapshots(session, reporting.reports(session), lambda: cluster.pools(session, prefix))

    return await live.watch_changes(
        context,
        pictures,
        lambda found: tables.pools(_sorted(found, sort), wide=output(context) == "wide"),
        tables.pool_line,
        key=lambda pool: pool.name,
        gone=lambda pool: ClusterPoolStats(pool.name, ()),
    )
