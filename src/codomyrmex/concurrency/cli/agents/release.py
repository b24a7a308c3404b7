"""``release``: gives an agent's reservations back."""

from __future__ import annotations

import click

from codomyrmex.concurrency import Reservation
from codomyrmex.concurrency.cli.agents.agent import agent_option, noted
from codomyrmex.concurrency.cli.agents.chosen import Step, kept_names, on_chosen
from codomyrmex.concurrency.cli.options import common_options


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...", shell_complete=kept_names)
@click.option("--all", "everything", is_flag=True, help="All reservations that this agent keeps here.")
@noted("Shown by `locks --watch` with the release.")
@agent_option
@common_options
@click.pass_context
def release(
    context: click.Context, names: tuple[str, ...], everything: bool, note: str | None, agent: str | None
) -> None:
    """Release reservations of this agent by a name or a path that they hold. Exits with 76 if one was lost before.

    Names that were reserved together are released together. A path counts in every tree.

    \b
    Examples:
      codomyrmex concurrency release src/parser/ --note "done, tests pass"
      codomyrmex concurrency release --all
    """

    async def step(reservation: Reservation) -> None:
        await reservation.release(note=note)

    on_chosen(context, agent, names, everything, Step("released", step))
