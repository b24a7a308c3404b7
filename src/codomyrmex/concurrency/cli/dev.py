"""``dev``: an etcd for development, alone or around a command."""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path

import click

from codomyrmex.concurrency import EmbeddedEtcd
from codomyrmex.concurrency.cli.options import EXIT_FAILED, common_options, run
from codomyrmex.concurrency.cli.process import Command

_LOOK = 0.5


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("--data-dir", type=click.Path(path_type=Path), help="Keep the data here; else it is thrown away.")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@common_options
def dev(data_dir: Path | None, command: tuple[str, ...]) -> None:
    """An embedded etcd for development. With CMD, runs it with the environment set and stops after it.

    \b
    Examples:
      codomyrmex concurrency dev
      codomyrmex concurrency dev -- python examples/quickstart.py
    """
    run(_dev(data_dir, command))


async def _dev(data_dir: Path | None, command: tuple[str, ...]) -> int:
    async with EmbeddedEtcd(data_dir=data_dir) as etcd:
        environment = {"CODOMYRMEX_ETCD_ENDPOINTS": etcd.endpoint}
        if command:
            return await Command(command, {**os.environ, **environment}).run()
        click.echo(f"etcd {etcd.version} serves at {etcd.endpoint}; Ctrl-C ends it. In another terminal:\n")
        click.echo(f"export CODOMYRMEX_ETCD_ENDPOINTS={etcd.endpoint}")
        with contextlib.suppress(asyncio.CancelledError):
            while _lives(etcd.pid):  # noqa: ASYNC110 # a grandchild's end is told to nobody
                await asyncio.sleep(_LOOK)
            click.echo("error: etcd has ended by itself", err=True)
            return EXIT_FAILED
    return 0


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
