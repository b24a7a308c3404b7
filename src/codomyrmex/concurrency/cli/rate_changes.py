"""``rates resize``, ``pause``, ``resume`` and ``delete``: changes of a rate limiter for the whole fleet."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import click

from codomyrmex.concurrency import Rate, Session
from codomyrmex.concurrency.cli.command_classes import Command
from codomyrmex.concurrency.cli.completion import names_of
from codomyrmex.concurrency.cli.duration_types import Duration
from codomyrmex.concurrency.cli.options import common_options, confirmed, needs_yes, settings
from codomyrmex.concurrency.cli.rate_amounts import (
    UNNAMED,
    Amount,
    AmountType,
    amounts,
    check_dimensions,
    in_dimension,
)
from codomyrmex.concurrency.cli.rate_limiters import existing, limiter
from codomyrmex.concurrency.cli.running import EXIT_FAILED, run
from codomyrmex.concurrency.cli.views import rate_table, text
from codomyrmex.concurrency.rates.rate import LONGEST, period

_LEAST, _ROUNDED = 2.0, 2.0  # seconds: the shortest pause of etcd, and the most by which it lengthens one


@click.command("resize", cls=Command)
@click.argument("name", shell_complete=names_of("rate limiter"))
@click.argument("given", metavar="[DIMENSION=]N...", nargs=-1, required=True, type=AmountType())
@click.option("--dry-run", is_flag=True, help="Show what would change.")
@common_options
@click.pass_context
def resize(context: click.Context, name: str, given: Sequence[Amount], dry_run: bool) -> None:
    """Change limits of a rate limiter for everyone, at once.

    The time that a limit is counted over stays. After a smaller limit, nothing is granted until less is used.

    \b
    Examples:
      codomyrmex concurrency rates resize provider 50
      codomyrmex concurrency rates resize anthropic tokens=80000 --dry-run
    """
    run(_resize(context, name, amounts(given), dry_run))


async def _resize(context: click.Context, name: str, wanted: dict[str, int], dry_run: bool) -> None:
    async with Session(settings(context)) as session:
        info = await existing(context, session, name)
        check_dimensions(name, [use.dimension for use in info.uses], wanted)
        rates = {use.dimension: _rate(wanted[use.dimension], use.per) for use in info.uses if use.dimension in wanted}
        if not dry_run:
            unnamed = rates.pop(UNNAMED, None)
            await limiter(info, session).resize(unnamed, **rates)
    for use in info.uses:
        if use.dimension not in wanted:
            continue
        limit, new = f"the limit of {text.visible(name)}{in_dimension(use.dimension)}", wanted[use.dimension]
        if dry_run:
            click.echo(f"would change {limit} from {use.limit} to {new} per {period(use.per)}; {use.used} are used")
        else:
            click.echo(f"{limit} is {new} per {period(use.per)}, and was {use.limit}")


def _rate(amount: int, per: float) -> Rate:
    try:
        return Rate(amount, per)
    except ValueError as error:
        raise click.UsageError(str(error)) from None


@click.command("pause", cls=Command)
@click.argument("name", shell_complete=names_of("rate limiter"))
@click.option("--for", "seconds", required=True, type=Duration(), metavar="30s", help="The length of the pause.")
@common_options
@click.pass_context
def pause(context: click.Context, name: str, seconds: float) -> None:
    """Pause a rate limiter: nobody in the fleet spends from it until the time is over.

    It then goes on by itself. Calls that have begun go on. etcd counts a pause in whole seconds, two at the least.

    \b
    Example:  codomyrmex concurrency rates pause anthropic --for 30s
    """
    if not 0 < seconds <= LONGEST:
        raise click.UsageError("--for must be more than 0 and at most 7 days")
    run(_pause(context, name, seconds))


async def _pause(context: click.Context, name: str, seconds: float) -> None:
    async with Session(settings(context)) as session:
        info = await existing(context, session, name)
        await limiter(info, session).throttled(seconds)
        ends = datetime.now(UTC) + timedelta(seconds=max(seconds, _LEAST))
        info = await existing(context, session, name)
    longer = info.paused_until and info.paused_until > ends + timedelta(seconds=_ROUNDED)
    stays = "; that longer pause stays, and `rates resume` ends it" if longer else ""
    click.echo(f"the rate limiter {text.visible(name)} is {rate_table.paused(info) or 'not paused any more'}{stays}")


@click.command("resume", cls=Command)
@click.argument("name", shell_complete=names_of("rate limiter"))
@common_options
@click.pass_context
def resume(context: click.Context, name: str) -> None:
    """End every pause of a rate limiter.

    \b
    Example:  codomyrmex concurrency rates resume anthropic
    """
    run(_resume(context, name))


async def _resume(context: click.Context, name: str) -> None:
    async with Session(settings(context)) as session:
        was_paused = await limiter(await existing(context, session, name), session).resume()
    click.echo(f"the rate limiter {text.visible(name)} {'is resumed' if was_paused else 'was not paused'}")


@click.command("delete", cls=Command)
@click.argument("name", shell_complete=names_of("rate limiter"))
@click.option("-y", "--yes", is_flag=True, help="Do not ask; needed off a terminal.")
@common_options
@click.pass_context
def delete(context: click.Context, name: str, yes: bool) -> None:
    """Delete a rate limiter that nobody uses. Fails while anything is counted or waited for.

    \b
    Example:  codomyrmex concurrency rates delete anthropic -y
    """
    needs_yes(yes, "this deletes the rate limiter and its limits")
    run(_delete(context, name, yes))


async def _delete(context: click.Context, name: str, yes: bool) -> int:
    if not await confirmed(yes, f"delete the rate limiter {text.visible(name)}?"):
        return EXIT_FAILED
    async with Session(settings(context)) as session:
        info = await existing(context, session, name)
        await limiter(info, session).delete()
    click.echo(f"the rate limiter {text.visible(name)}, of {rate_table.limits(info)}, is deleted")
    return 0
