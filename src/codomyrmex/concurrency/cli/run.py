"""``run``: runs a command while it holds locks or a permit of a semaphore, and ends it when they are lost.

A rate limiter may say when the command begins."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from contextlib import AsyncExitStack

import click

from codomyrmex.concurrency import (
    ConcurrencyError,
    Grant,
    Session,
)
from codomyrmex.concurrency.cli.completion import names_of
from codomyrmex.concurrency.cli.duration_types import Duration
from codomyrmex.concurrency.cli.notify import reports
from codomyrmex.concurrency.cli.options import common_options, possible_limit, settings
from codomyrmex.concurrency.cli.process import Command
from codomyrmex.concurrency.cli.rate_amounts import Amount, AmountType, Limit, LimitType, amounts, limits
from codomyrmex.concurrency.cli.rate_request import RateRequest
from codomyrmex.concurrency.cli.run_request import RunRequest, acquire
from codomyrmex.concurrency.cli.running import EXIT_LOST
from codomyrmex.concurrency.cli.running import run as run_main
from codomyrmex.concurrency.cli.views import text
from codomyrmex.concurrency.names import checked
from codomyrmex.concurrency.session import core_of

_MARGIN = 0.8  # of the third of a TTL between the end of trust and the end of the lease


@click.command(context_settings={"allow_interspersed_args": False})
@click.option(
    "--lock",
    "locks",
    multiple=True,
    metavar="NAME",
    shell_complete=names_of("lock"),
    help="A lock to hold; several are held together.",
)
@click.option("--shared", is_flag=True, help="Hold the locks as a reader, together with other readers.")
@click.option(
    "--semaphore",
    metavar="NAME",
    shell_complete=names_of("semaphore"),
    help="A semaphore; one permit of it is held.",
)
@click.option(
    "--max",
    "limit",
    type=click.IntRange(min=1),
    metavar="N",
    help="The semaphore's limit, which a new semaphore needs. Default: its present limit.",
)
@click.option(
    "--rate",
    metavar="NAME",
    shell_complete=names_of("rate limiter"),
    help="A rate limiter; CMD begins when its cost fits the limit.",
)
@click.option(
    "--cost",
    "costs",
    multiple=True,
    type=AmountType(),
    metavar="[DIMENSION=]N",
    help="The amount that CMD spends of the rate; once for each dimension. Default: 1, if there is only one.",
)
@click.option(
    "--rate-limit",
    "rate_limits",
    multiple=True,
    type=LimitType(),
    metavar="[DIMENSION=]N/TIME",
    help="The rate limiter's limit, which a new one needs; once for each dimension. Default: its present limits.",
)
@click.option("--max-hold", type=Duration(), metavar="TIME", help="Release everything, and end CMD, after this time.")
@click.option(
    "--max-idle", type=Duration(), metavar="TIME", help="Do so after this time without a report of progress from CMD."
)
@click.option(
    "--lock-delay",
    type=Duration(),
    default=0.0,
    metavar="TIME",
    help="Keep the locks closed for this time if this host dies.",
)
@click.option(
    "--metadata",
    multiple=True,
    metavar="KEY=TEXT",
    help="Shown to others; agent=NAME names the holder. May be repeated.",
)
@click.option("--timeout", type=Duration(), metavar="TIME", help="Give up waiting after this time; exits with 75.")
@click.option(
    "--kill-after",
    type=Duration(),
    default=5.0,
    metavar="TIME",
    help="Send SIGKILL this time after SIGTERM; after a loss, at most 4/15 of the session's TTL after it. Default: 5s.",
)
@click.argument("command", nargs=-1, required=True, metavar="-- CMD...", type=click.UNPROCESSED)
@common_options
@click.pass_context
def run(
    context: click.Context,
    locks: tuple[str, ...],
    shared: bool,
    semaphore: str | None,
    limit: int | None,
    rate: str | None,
    costs: tuple[Amount, ...],
    rate_limits: tuple[Limit, ...],
    max_hold: float | None,
    max_idle: float | None,
    lock_delay: float,
    metadata: tuple[str, ...],
    timeout: float | None,
    kill_after: float,
    command: tuple[str, ...],
) -> None:
    """Run CMD while holding locks, or a permit of a semaphore, or at the turn that a rate limiter gives it, or all of
    these. Exits with CMD's exit code, or with 76 if a lock or the permit was lost meanwhile.

    Several locks are acquired together or not at all. A permit is acquired after the locks. CMD finds
    CODOMYRMEX_FENCING_TOKEN and CODOMYRMEX_LOCK_NAME (one name a line) in its environment. When a lock or the permit is
    lost, CMD and its whole process group are ended. If the session can no longer be trusted, they have ended before
    another waiter is granted; after a forced release they may overlap with the next holder.

    With --rate, CMD begins when its cost fits the limit. It spends the cost after the locks and the permit are
    acquired, and gives nothing of it back.

    With --max-idle, CMD reports progress to NOTIFY_SOCKET, as `systemd-notify WATCHDOG=1` does, or with a note as
    `systemd-notify --status=TEXT` does.

    Others see the holder as --metadata agent=NAME, else as CODOMYRMEX_AGENT. A time without a unit is in seconds.

    \b
    Examples:
      codomyrmex concurrency run --lock deploy --timeout 10m -- ./deploy.sh
      codomyrmex concurrency run --lock a.py --metadata agent=parser -- ./edit.sh
      codomyrmex concurrency run --semaphore gpu --max 2 -- ./train.sh
      codomyrmex concurrency run --rate anthropic --cost requests=1 --cost tokens=400 -- ./ask.sh
    """
    if settings(context).endpoints == ("embedded",):
        raise click.UsageError("an etcd embedded in this command would exclude nobody; start one with `dev`")
    holds = bool(locks) or semaphore is not None
    if not holds and rate is None:
        raise click.UsageError("give --lock, --semaphore or --rate: what CMD is to hold, or to wait for")
    if rate is None and (costs or rate_limits):
        raise click.UsageError("--cost and --rate-limit go with --rate")
    if not holds and (max_hold is not None or max_idle is not None):
        raise click.UsageError("--max-hold and --max-idle go with --lock or --semaphore: a rate is not held")
    if (shared and not locks) or (limit is not None and semaphore is None):
        raise click.UsageError("--shared goes with --lock, and --max with --semaphore")
    if max_hold == 0:
        raise click.UsageError("--max-hold must be more than 0")
    if max_idle == 0:
        raise click.UsageError("--max-idle must be more than 0")
    if limit is not None:
        possible_limit(limit)
    told = {"command": " ".join(command)[:200], **_pairs(metadata)}
    spending = RateRequest(rate, amounts(costs), limits(rate_limits)) if rate is not None else None
    wanted = RunRequest(locks, shared, semaphore, limit, max_hold, max_idle, lock_delay, told, spending)
    run_main(_run(context, wanted, timeout, kill_after, command))


def _pairs(given: Sequence[str]) -> dict[str, str]:
    for pair in given:
        if not pair.partition("=")[0] or "=" not in pair:
            raise click.UsageError(f"--metadata takes KEY=TEXT, such as agent=parser, not {text.visible(pair)!r}")
    return {key: text for key, _, text in (pair.partition("=") for pair in given)}


async def _run(
    context: click.Context, wanted: RunRequest, timeout: float | None, kill_after: float, command: tuple[str, ...]
) -> int:
    wanted = wanted._replace(locks=tuple(map(checked, wanted.locks)))
    if wanted.rate:
        wanted = wanted._replace(rate=wanted.rate._replace(name=checked(wanted.rate.name)))
    async with Session(settings(context)) as session, AsyncExitStack() as held:
        grants = await acquire(session, wanted, timeout, held)
        return await _hold(session, wanted, grants, command, kill_after)


async def _hold(
    session: Session, wanted: RunRequest, grants: Sequence[Grant], argv: tuple[str, ...], kill_after: float
) -> int:
    if reason := _lost(grants):  # one of them, while it waited for another
        raise reason
    async with reports(_apart(wanted, grants), wanted.max_idle, _environment(session, wanted, grants)) as told:
        command = Command(argv, told, may_continue=lambda: all(grant.deadline() > 0 for grant in grants))
        return await _see_through(session, grants, command, kill_after)


def _environment(session: Session, wanted: RunRequest, grants: Sequence[Grant]) -> dict[str, str]:
    """The command's environment. Without ``grants`` it keeps the token and the names of a ``run`` around this one."""
    environment = {
        **os.environ,
        "CODOMYRMEX_ETCD_ENDPOINTS": ",".join(session.settings.endpoints),
        "CODOMYRMEX_ETCD_NAMESPACE": session.settings.namespace,
    }
    if grants:
        environment["CODOMYRMEX_LOCK_NAME"] = "\n".join(dict.fromkeys(wanted.locks))
        environment["CODOMYRMEX_FENCING_TOKEN"] = str(grants[0].token)
    return environment


async def _see_through(session: Session, grants: Sequence[Grant], command: Command, kill_after: float) -> int:
    """Run the command to its end, or end it when a grant is lost; returns the exit code."""
    running = asyncio.create_task(command.run())
    losses = [asyncio.create_task(grant.lost.wait()) for grant in grants]
    try:
        await asyncio.wait([running, *losses], return_when=asyncio.FIRST_COMPLETED)
        if (reason := _lost(grants)) is None:
            return running.result()
        click.echo(f"error: {reason}; ending the command", err=True)
        # Trust ends a third of the TTL before etcd can grant anyone else; the command must be gone by then.
        await command.end(min(kill_after, _MARGIN * core_of(session).ttl / 3))
        return EXIT_LOST
    finally:
        for task in (running, *losses):
            task.cancel()
        await asyncio.gather(running, *losses, return_exceptions=True)


def _apart(wanted: RunRequest, grants: Sequence[Grant]) -> Sequence[Grant]:
    """One grant of each acquisition: progress counts for all grants that were acquired together."""
    return (grants[0], grants[-1]) if wanted.locks and wanted.semaphore is not None else grants[:1]


def _lost(grants: Sequence[Grant]) -> ConcurrencyError | None:
    return next((grant.lost.reason for grant in grants if grant.lost.is_set()), None)
