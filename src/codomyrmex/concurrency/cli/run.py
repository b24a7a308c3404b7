"""``run``: a command that holds a lock for as long as it runs, and no longer than the lock can be trusted."""

from __future__ import annotations

import asyncio
import os

import click

from codomyrmex.concurrency import DistributedLock, EtcdError, Grant, LockInfo, LockTimeout, Session
from codomyrmex.concurrency.cli import views
from codomyrmex.concurrency.cli.options import EXIT_LOST, Duration, common_options, settings
from codomyrmex.concurrency.cli.options import run as run_main
from codomyrmex.concurrency.cli.process import Command

_SAY_AFTER = 1.0
_MARGIN = 0.8


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("--lock", "name", required=True, metavar="NAME", help="The lock to hold.")
@click.option("--timeout", type=Duration(), metavar="30s", help="Give up waiting after this; exits with 75.")
@click.option("--kill-after", type=Duration(), default=5.0, metavar="5s", help="SIGKILL this long after SIGTERM.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@common_options
@click.pass_context
def run(context: click.Context, name: str, timeout: float | None, kill_after: float, command: tuple[str, ...]) -> None:
    """Run CMD while holding a lock. Passes its exit code on; exits with 76 if the lock was lost meanwhile.

    CMD finds CODOMYRMEX_LOCK_NAME and CODOMYRMEX_FENCING_TOKEN in its environment. When the lock can no longer be
    trusted, its whole process group is ended before anyone else can be granted.

    \b
    Example:  codomyrmex concurrency run --lock deploy --timeout 10m -- ./deploy.sh staging
    """
    if settings(context).endpoints == ("embedded",):
        raise click.UsageError("an etcd embedded in this command would exclude nobody; start one with `dev`")
    run_main(_run(context, name, timeout, kill_after, command))


async def _run(
    context: click.Context, name: str, timeout: float | None, kill_after: float, command: tuple[str, ...]
) -> int:
    async with Session(settings(context)) as session:
        lock = DistributedLock(name, session, on_loss="notify", metadata={"command": " ".join(command)[:200]})
        grant = await _acquire(lock, timeout)
        try:
            return await _hold(session, grant, command, kill_after)
        finally:
            await _release(lock)


async def _release(lock: DistributedLock) -> None:
    """The command has run: whatever becomes of the release, its exit code is what counts."""
    try:
        await lock.release()
    except EtcdError as error:
        click.echo(f"warning: the lock is not released yet, its lease will end it: {error}", err=True)


async def _acquire(lock: DistributedLock, timeout: float | None) -> Grant:
    waiting = asyncio.create_task(lock.acquire(timeout))
    try:
        await asyncio.wait([waiting], timeout=_SAY_AFTER)
        if not waiting.done():
            click.echo(f"waiting for the lock {views.visible(lock.name)}{_held_by(await lock.info())}", err=True)
        return await waiting
    except LockTimeout as error:
        info = await lock.info()
        raise LockTimeout(f"{error}{_held_by(info)}") from None
    finally:
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)


def _held_by(info: LockInfo | None) -> str:
    if info is None:
        return ""
    holder = info.holders[0]
    return f", held by {views.owner(holder)} for {views.age(holder.since)}"


async def _hold(session: Session, grant: Grant, argv: tuple[str, ...], kill_after: float) -> int:
    environment = {
        **os.environ,
        "CODOMYRMEX_LOCK_NAME": grant.name,
        "CODOMYRMEX_FENCING_TOKEN": str(grant.token),
        "CODOMYRMEX_ETCD_ENDPOINTS": ",".join(session.settings.endpoints),
        "CODOMYRMEX_ETCD_NAMESPACE": session.settings.namespace,
    }
    command = Command(argv, environment, may_continue=lambda: grant.deadline() > 0)
    running = asyncio.create_task(command.run())
    lost = asyncio.create_task(grant.lost.wait())
    try:
        await asyncio.wait([running, lost], return_when=asyncio.FIRST_COMPLETED)
        if not grant.lost.is_set():
            return running.result()
        click.echo(f"error: {grant.lost.reason}; ending the command", err=True)
        # Trust ends a third of the TTL before etcd can grant anyone else; the command must be gone by then.
        await command.end(min(kill_after, _MARGIN * session.ttl / 3))
        return EXIT_LOST
    finally:
        for task in (running, lost):
            task.cancel()
        await asyncio.gather(running, lost, return_exceptions=True)
