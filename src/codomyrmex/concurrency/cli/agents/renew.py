"""``renew``: gives an agent's reservations their whole time again."""

from __future__ import annotations

import click

from codomyrmex.concurrency import Reservation
from codomyrmex.concurrency.cli.agents.agent import agent_option, lasting, noted
from codomyrmex.concurrency.cli.agents.chosen import Step, kept_names, on_chosen
from codomyrmex.concurrency.cli.options import common_options


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...", shell_complete=kept_names)
@click.option("--all", "everything", is_flag=True, help="All reservations that this agent keeps here.")
@lasting(help="10s to 24h. Default: as it was reserved.")
@noted("Replaces its note.")
@agent_option
@common_options
@click.pass_context
def renew(
    context: click.Context,
    names: tuple[str, ...],
    everything: bool,
    ttl: float | None,
    note: str | None,
    agent: str | None,
) -> None:
    """Renew reservations of this agent by a name or a path that they hold. Exits with 76 if one was lost meanwhile.

    The time counts from now. Names that were reserved together are renewed together. A path counts in every tree.

    \b
    Examples:
      codomyrmex concurrency renew src/parser/ --note "half done"
      codomyrmex concurrency renew --all
    """

    async def step(reservation: Reservation) -> None:
        await reservation.renew(note=note, ttl=ttl)

    on_chosen(context, agent, names, everything, Step("renewed", step))
