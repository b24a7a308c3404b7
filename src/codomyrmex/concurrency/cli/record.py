"""``record``: appends every step of locks and path locks to a file, for longer than etcd keeps its history."""

from __future__ import annotations

import asyncio
from pathlib import Path

import click

from codomyrmex.concurrency.cli.command_classes import Command
from codomyrmex.concurrency.cli.options import common_options, settings, where
from codomyrmex.concurrency.cli.running import run


@click.command(cls=Command)
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--prefix", default="", metavar="P", help="Only locks and trees whose name starts with P.")
@common_options
@click.pass_context
def record(context: click.Context, file: Path, prefix: str) -> None:
    """Append every step of locks and path locks to FILE as JSON lines, until Ctrl-C or SIGTERM.

    Started again with the same FILE, it goes on at the revision at which it stopped. What etcd has compacted meanwhile
    is marked as a gap. While etcd is away, it waits.

    \b
    Examples:
      codomyrmex concurrency record locks.jsonl
      codomyrmex concurrency record deploys.jsonl --prefix deploy
      codomyrmex concurrency locks history deploy --from locks.jsonl
    """
    stop = asyncio.Event()
    run(_record(context, file, prefix, stop), stop)


async def _record(context: click.Context, path: Path, prefix: str, stop: asyncio.Event) -> int:
    from codomyrmex.concurrency.recipes import recording  # here, so that --help is fast
    from codomyrmex.concurrency.recipes.record_file import RecordFile

    def told(revision: int) -> None:
        click.echo(f"recording locks {where(context, prefix)} to {path}, after revision {revision}", err=True)

    chosen = settings(context)
    with RecordFile(path, chosen.namespace, prefix) as file:
        work = asyncio.create_task(recording.record(chosen, file, prefix, told))
        stopped = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait([work, stopped], return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
        finally:
            for task in (work, stopped):
                task.cancel()
            await asyncio.gather(work, stopped, return_exceptions=True)
    return 0
