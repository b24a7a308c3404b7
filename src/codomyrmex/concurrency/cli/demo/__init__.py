"""``demo``: a fleet of real processes on a real etcd, shown in five acts, with its results checked at the end."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

import click
from rich.console import Console

from codomyrmex.concurrency.cli.demo.stage import TTL, Silent, Stage
from codomyrmex.concurrency.cli.options import common_options
from codomyrmex.concurrency.cli.running import EXIT_FAILED, run
from codomyrmex.concurrency.cli.views import output

_LIMIT = 60.0  # seconds for the whole demo


@click.command()
@click.option(
    "--agents", type=click.IntRange(2, 16), default=4, show_default=True, help="Number of processes that edit."
)
@click.option("--edits", type=click.IntRange(1, 500), default=8, show_default=True, help="Edits by each process.")
@common_options
@click.pass_context
def demo(context: click.Context, agents: int, edits: int) -> None:
    """Show a fleet at work, in about 20 seconds, on an etcd that is started for the demo.

    Agent processes take turns at files; one dies, and one freezes. Then three hosts work under one semaphore, and
    their failures are retried.

    \b
    Example:  codomyrmex concurrency demo --agents 8
    """
    run(_play(output.console(context), agents, edits))


async def _play(console: Console, agents: int, edits: int) -> int:
    stage = Stage(console)
    try:
        with tempfile.TemporaryDirectory() as folder, stage.logging():
            async with asyncio.timeout(_LIMIT):
                await _acts(stage, agents, edits, Path(folder))
    except TimeoutError:
        stage.expect(False, f"the demo did not come to its end within {_LIMIT:g} s; is this machine very busy?")
    except Silent as error:
        stage.expect(False, str(error))
    return _verdict(stage)


async def _acts(stage: Stage, agents: int, edits: int, folder: Path) -> None:
    from codomyrmex.concurrency import EmbeddedEtcd, Session
    from codomyrmex.concurrency.cli.demo.locks import Locks
    from codomyrmex.concurrency.cli.demo.pools import Pools
    from codomyrmex.concurrency.cli.dev import described

    stage.say("An etcd is started for the demo:")
    async with EmbeddedEtcd() as etcd:
        stage.endpoint = etcd.endpoint
        stage.say(f"\nA real etcd {etcd.version} serves at {etcd.endpoint}. {described(etcd)}")
        stage.say("While this runs, you may watch from a second terminal:")
        stage.say(f"\n  codomyrmex concurrency locks --watch --endpoints {etcd.endpoint}\n")
        try:
            async with Session(endpoints=etcd.endpoint, session_ttl=TTL) as session:
                await Locks(stage, agents, edits, folder).play(session)
                await Pools(stage).play(session)
        finally:
            await stage.end()


def _verdict(stage: Stage) -> int:
    for failure in stage.failures:
        stage.say(f"[bold red]failed:[/] {failure}")
    if not stage.failures:
        stage.say(
            "[bold green]No edit was lost, nobody waited for the dead, the limit was kept, "
            "and every failure was retried once.[/]"
        )
    stage.say("\nThis etcd is gone with the demo. For one of your own, in one terminal and in another:")
    stage.say("\n  codomyrmex concurrency dev\n  codomyrmex concurrency locks --watch")
    return EXIT_FAILED if stage.failures else 0
