"""The options that every command has, and the questions that commands ask before they change something."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from codomyrmex.concurrency import EtcdSettings

F = TypeVar("F", bound=Callable[..., Any])

_FORMATS = ("table", "wide", "json", "jsonl", "name")


def options_with(*formats: str) -> Callable[[F], F]:
    """A decorator that adds -o with these ``formats``, the first of which is the default; --endpoints, --namespace and
    --color. Given on a group, they hold for its commands too."""

    def shared(*names: str, **attributes: Any) -> Callable[[F], F]:
        return click.option(*names, callback=_remember, expose_value=False, **attributes)

    def decorated(command: F) -> F:
        for option in (
            shared("--color", type=click.Choice(["auto", "always", "never"]), help="Default: auto; NO_COLOR counts."),
            shared("--namespace", metavar="NAME", help="Default: CODOMYRMEX_ETCD_NAMESPACE, or codomyrmex."),
            shared("--endpoints", metavar="URL[,URL]", help="Default: CODOMYRMEX_ETCD_ENDPOINTS."),
            shared("-o", "--output", type=click.Choice(formats), help=f"Default: {formats[0]}."),
        ):
            command = option(command)
        return command

    return decorated


common_options = options_with(*_FORMATS)


def _remember(context: click.Context, param: click.Parameter, value: str | None) -> None:
    options = context.ensure_object(dict)
    if value is not None and param.name:
        options[param.name] = value


def output_format(context: click.Context) -> str:
    """The form of output that -o names."""
    return str(context.obj.get("output", "table"))


def settings(context: click.Context) -> EtcdSettings:
    """The connection settings from the options and the environment. A bad one is a usage error."""
    from codomyrmex.concurrency.session import make_settings  # here, so that --help is fast

    given = {name: context.obj[name] for name in ("endpoints", "namespace") if name in context.obj}
    try:
        return make_settings(None, given)
    except ValueError as error:
        raise click.UsageError(str(error)) from None


def namespace(context: click.Context) -> str:
    """The namespace and the etcd that the command reads, in words."""
    chosen = settings(context)
    return f"the namespace {chosen.namespace!r} at {', '.join(chosen.endpoints)}"


def where(context: click.Context, prefix: str = "") -> str:
    """The end of the message that there is nothing: which names were looked for, and in which namespace."""
    return f"{f'with a name that starts with {prefix!r} ' if prefix else ''}in {namespace(context)}"


def is_terminal() -> bool:
    """True if stdout is a terminal."""
    return sys.stdout.isatty()


def needs_yes(given: bool, warning: str) -> None:
    """Raise a usage error with ``warning`` off a terminal, where nobody can be asked, unless -y was given."""
    if not given and not is_terminal():
        raise click.UsageError(f"{warning}; off a terminal, confirm with -y")


async def confirmed(yes: bool, question: str) -> bool:
    """True if -y was given, or the user answers ``question`` with yes."""
    return yes or await asyncio.to_thread(click.confirm, question)


def possible_limit(limit: int) -> int:
    """``limit`` if a semaphore can have it; else a usage error."""
    from codomyrmex.concurrency.recipes.semaphore_limit import check_limit  # here, so that --help is fast

    try:
        return check_limit(limit)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
