"""``capabilities``: the command line described for programs, read from the commands themselves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.metadata import version

import click

from codomyrmex.concurrency.cli import schemas
from codomyrmex.concurrency.cli.description import Argument, Capabilities, CommandDescription, Option
from codomyrmex.concurrency.cli.options import common_options, output_format
from codomyrmex.concurrency.cli.running import (
    EXIT_CODES,
    EXIT_FAILED,
    EXIT_LOST,
    EXIT_NOT_RESERVED,
    EXIT_TIMEOUT,
    EXIT_UNREACHABLE,
    EXIT_USAGE,
)
from codomyrmex.concurrency.cli.views import output
from codomyrmex.concurrency.cli.views.grid import Column, Grid

_EVERY = (0, EXIT_FAILED, EXIT_USAGE)
_WITHOUT_ETCD = {"capabilities", "demo", "dev", "guard install"}  # dev and demo start their own
_FURTHER = {
    "guard check": (EXIT_NOT_RESERVED,),
    "release": (EXIT_LOST,),
    "renew": (EXIT_LOST,),
    "reserve": (EXIT_TIMEOUT,),
    "run": (EXIT_TIMEOUT, EXIT_LOST),
}


@click.command()
@common_options
@click.pass_context
def capabilities(context: click.Context) -> None:
    """Show all commands, and with -o json their arguments, options, exit codes and JSON schemas. Asks no etcd.

    \b
    Examples:
      codomyrmex concurrency capabilities
      codomyrmex concurrency capabilities -o json | jq '.commands[] | select(.name == "reserve")'
    """
    assert context.parent
    found = described(context.parent)
    if output_format(context) in ("json", "jsonl"):
        output.print_json(found, lines=output_format(context) == "jsonl")
    else:
        output.show_list(context, found.commands, _table, "")


def described(context: click.Context) -> Capabilities:
    """The description of the group that ``context`` is of."""
    return Capabilities(
        version=version("codomyrmex-concurrency"),
        exit_codes=EXIT_CODES,
        commands=tuple(_commands(context, ())),
        schemas=schemas.schemas(),
    )


def _commands(context: click.Context, path: tuple[str, ...]) -> Iterator[CommandDescription]:
    group = context.command
    assert isinstance(group, click.Group)
    for word in group.list_commands(context):
        command = group.get_command(context, word)
        assert command
        below = click.Context(command, context, word)
        name = (*path, word)
        if not isinstance(command, click.Group) or command.invoke_without_command:
            yield _description(below, " ".join(name))
        if isinstance(command, click.Group):
            yield from _commands(below, name)


def _description(context: click.Context, name: str) -> CommandDescription:
    parameters = context.command.get_params(context)
    return CommandDescription(
        name=name,
        summary=context.command.get_short_help_str(200),
        arguments=tuple(_argument(one) for one in parameters if isinstance(one, click.Argument)),
        options=tuple(_option(one) for one in parameters if isinstance(one, click.Option)),
        exit_codes=(*_EVERY, *(() if name in _WITHOUT_ETCD else (EXIT_UNREACHABLE,)), *_FURTHER.get(name, ())),
        output=schemas.output_schema(name),
        event=schemas.event_schema(name),
    )


def _argument(one: click.Argument) -> Argument:
    return Argument(one.name or "", one.required, one.nargs == -1)


def _option(one: click.Option) -> Option:
    choices = tuple(map(str, one.type.choices)) if isinstance(one.type, click.Choice) else ()
    default = one.to_info_dict()["default"]
    told = isinstance(default, str | int | float) and not one.is_flag
    return Option(
        names=(*one.opts, *one.secondary_opts),
        value=None if one.is_flag else one.metavar or one.type.name.upper(),
        choices=choices,
        default=str(default) if told else None,
        required=one.required,
        many=one.multiple,
        help=one.help or "",
    )


def _table(commands: Sequence[CommandDescription], *, wide: bool = False) -> Grid:
    """One row a command; ``wide`` adds the options."""
    options = (Column("OPTIONS", 2, least=16),) if wide else ()
    grid = Grid((Column("COMMAND"), Column("DOES", 1, least=20), *options, Column("EXIT CODES")))
    for one in commands:
        names = [" ".join(option.names[-1] for option in one.options)] if wide else []
        grid.add(one.name, one.summary, *names, " ".join(map(str, one.exit_codes)))
    return grid
