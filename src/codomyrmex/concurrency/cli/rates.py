"""``rates``: limits and use of all rate limiters, also live; one in full. The changes are in ``rate_changes``."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any, NamedTuple

import click

from codomyrmex.concurrency import RateLimitInfo, Session
from codomyrmex.concurrency.cli.command_classes import NamedGroup
from codomyrmex.concurrency.cli.completion import names_of
from codomyrmex.concurrency.cli.options import common_options, output_format, settings, where
from codomyrmex.concurrency.cli.rate_changes import delete, pause, resize, resume
from codomyrmex.concurrency.cli.rate_limiters import existing
from codomyrmex.concurrency.cli.rate_rows import RateRow, rows
from codomyrmex.concurrency.cli.running import run
from codomyrmex.concurrency.cli.views import live, output, rate_table
from codomyrmex.concurrency.names import checked
from codomyrmex.concurrency.rates import overview
from codomyrmex.concurrency.session import core_of


@click.group(
    cls=NamedGroup,
    invoke_without_command=True,
    subcommand_metavar="[NAME | resize NAME N | pause NAME | resume NAME | delete NAME]",
)
@click.option("--watch", "-w", is_flag=True, help="Follow it live; off a terminal, one line per change.")
@click.option("--prefix", default="", metavar="P", help="Only rate limiters whose name starts with P.")
@click.option("--sort", type=click.Choice(["name", "free", "waiting"]), default="name", show_default=True)
@common_options
@click.pass_context
def rates(context: click.Context, watch: bool, prefix: str, sort: str) -> None:
    """Show limits and use of all rate limiters, or the users of one.

    USED is what counts at this moment: what processes of the fleet have spent in the last time PER, and what they have
    been given to spend next. WAITING is the amount that they wait for; during a pause it is not known, and shown as -.

    \b
    Examples:
      codomyrmex concurrency rates --watch
      codomyrmex concurrency rates anthropic -o json
      codomyrmex concurrency rates resize anthropic tokens=80000
      codomyrmex concurrency rates pause anthropic --for 30s
    """
    if context.invoked_subcommand is None:
        choice = _Choice(prefix, sort)
        run(_watch(context, choice) if watch else _list(context, choice))


for _command in (resize, pause, resume, delete):
    rates.add_command(_command)


class _Choice(NamedTuple):
    """The rate limiters that the options ask for, in their order."""

    prefix: str
    sort: str

    def of(self, infos: Sequence[RateLimitInfo]) -> list[RateLimitInfo]:
        infos = sorted((info for info in infos if info.uses), key=_name)
        if self.sort == "free":
            infos.sort(key=lambda info: min(use.free / use.limit for use in info.uses))
        if self.sort == "waiting":
            infos.sort(key=lambda info: -info.waiting)
        return infos


@rates.command(hidden=True)
@click.argument("name", shell_complete=names_of("rate limiter"))
@click.option("--watch", "-w", is_flag=True, help="Follow it live; off a terminal, one line per change.")
@common_options
@click.pass_context
def show(context: click.Context, name: str, watch: bool) -> None:
    """Show one rate limiter: its limits, and the processes that use it and wait for it.

    \b
    Example:  codomyrmex concurrency rates anthropic --watch
    """
    assert context.parent
    watch = watch or context.parent.params["watch"]
    run(_watch_one(context, name) if watch else _show(context, name))


async def _list(context: click.Context, choice: _Choice) -> None:
    async with Session(settings(context)) as session:
        infos = choice.of(await overview.limiters(core_of(session), choice.prefix))
    shown: Sequence[Any] = infos if output_format(context) == "name" else rows(infos)
    output.show_list(
        context, shown, rate_table.rate_limiters, f"there are no rate limiters {where(context, choice.prefix)}"
    )


async def _show(context: click.Context, name: str) -> None:
    async with Session(settings(context)) as session:
        info = await existing(context, session, name)
    output.show(context, info, rate_table.rate_limiter)


async def _watch(context: click.Context, choice: _Choice) -> int:
    async def pictures(session: Session) -> AsyncGenerator[list[RateRow], None]:
        async with aclosing(overview.follow(core_of(session), choice.prefix)) as readings:
            async for infos in readings:
                yield rows(choice.of(infos))

    return await live.watch_changes(
        context,
        pictures,
        lambda shown: rate_table.rate_limiters(shown, wide=output_format(context) == "wide"),
        rate_table.rate_row_line,
        key=lambda row: (row.name, row.dimension),
    )


async def _watch_one(context: click.Context, name: str) -> int:
    name = checked(name)

    async def pictures(session: Session) -> AsyncGenerator[list[RateLimitInfo], None]:
        async with aclosing(overview.follow(core_of(session), name)) as readings:
            async for infos in readings:
                yield [info for info in infos if info.name == name] or [RateLimitInfo(name, ())]

    return await live.watch_changes(
        context,
        pictures,
        lambda infos: rate_table.rate_limiter(infos[0]),
        rate_table.rate_line,
        key=_name,
    )


def _name(info: RateLimitInfo) -> str:
    return info.name
