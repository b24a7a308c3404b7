"""The agent that a command acts for, and the options that the agents' commands share."""

from __future__ import annotations

import getpass
import os
import socket
import unicodedata
from collections.abc import Callable
from typing import Any, TypeVar

import click

from codomyrmex.concurrency import decode
from codomyrmex.concurrency.cli.completion import names_of
from codomyrmex.concurrency.cli.duration_types import Duration
from codomyrmex.concurrency.cli.options import settings
from codomyrmex.concurrency.cli.views.text import visible
from codomyrmex.concurrency.recipes.reservation import check_ttl
from codomyrmex.concurrency.waitqueue.progress import check_note

F = TypeVar("F", bound=Callable[..., Any])

TREE = "default"

agent_option = click.option("--as", "agent", metavar="AGENT", help="Default: CODOMYRMEX_AGENT, or user@host.")
tree_option = click.option(
    "--tree",
    default=TREE,
    show_default=True,
    metavar="T",
    shell_complete=names_of("tree"),
    help="The tree of the paths.",
)


def lasting(**attributes: Any) -> Callable[[F], F]:
    """The option --for: a time that a reservation can have."""
    return click.option("--for", "ttl", type=Duration(), metavar="TIME", callback=_possible(check_ttl), **attributes)


def noted(help: str) -> Callable[[F], F]:
    """The option --note: a text that fits an entry."""
    return click.option("--note", metavar="TEXT", callback=_possible(check_note), help=help)


def _possible(check: Callable[[Any], object]) -> Callable[[click.Context, click.Parameter, Any], Any]:
    """A callback that makes a usage error of a value which ``check`` refuses."""

    def checked(context: click.Context, param: click.Parameter, value: Any) -> Any:
        try:
            if value is not None:
                check(value)
        except ValueError as error:
            raise click.BadParameter(str(error), context, param) from None
        return value

    return checked


def agent_of(given: str | None) -> str:
    """The name of the agent in NFC: ``given`` by ``--as``, else by the environment, else the user and the host."""
    if given is not None and not given.strip():
        raise click.UsageError("--as must name an agent")
    name = given or os.environ.get("CODOMYRMEX_AGENT") or f"{_user()}@{socket.gethostname()}"
    return unicodedata.normalize("NFC", decode.storable(name))


def acting_agent(given: str | None) -> str:
    """The name of the agent that reserves or writes. A line on stderr says if nobody has given it a name."""
    agent = agent_of(given)
    if not (given or os.environ.get("CODOMYRMEX_AGENT")):
        click.echo(
            f"warning: no agent is named: this acts as {visible(agent)}; set CODOMYRMEX_AGENT or give --as, or agents "
            "of one user share their reservations",
            err=True,
        )
    return agent


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run under an id without a name
        return str(os.getuid())


def need_a_server(context: click.Context) -> None:
    """Raise a usage error if etcd would be embedded in this command, and end with it."""
    if settings(context).endpoints == ("embedded",):
        raise click.UsageError("an etcd embedded in this command ends with it; start one with `dev`")
