"""What every command shares: its common options, how a coroutine is run, and which error ends with which code."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

if TYPE_CHECKING:
    from codomyrmex.concurrency.settings import EtcdSettings

F = TypeVar("F", bound=Callable[..., Any])

EXIT_FAILED, EXIT_USAGE, EXIT_UNREACHABLE, EXIT_TIMEOUT, EXIT_LOST = 1, 2, 69, 75, 76
_FORMATS = ("table", "wide", "json", "jsonl", "name")


_UNITS = {"ms": 0.001, "s": 1.0, "": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_LONGEST = 100 * 365 * 86400.0


class Duration(click.ParamType):  # type: ignore[type-arg,unused-ignore] # generic since click 8.5
    """Seconds, from ``5``, ``5s``, ``250ms``, ``2m`` or ``1h30m``; a plain number is seconds."""

    name = "duration"
    plain = True  # whether a number may stand without a unit

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, int | float):
            return float(value)
        parts = re.findall(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|)", value)
        if not parts or "".join(number + unit for number, unit in parts) != value:
            self.fail(f"{value!r} is not a duration such as 5s, 250ms, 2m or 1h30m", param, ctx)
        if not self.plain and any(not unit and float(number) for number, unit in parts):
            self.fail(f"{value!r} has no unit; say {value}s, {value}m, {value}h or {value}d", param, ctx)
        seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
        if seconds > _LONGEST:
            self.fail(f"{value[:30]!r} is longer than a hundred years", param, ctx)
        return seconds


class Age(Duration):
    """An age. It needs a unit: a person who means days must not be given seconds, least of all where this deletes."""

    name = "age"
    plain = False


def common_options(command: F) -> F:
    """Add -o, --endpoints, --namespace and --color; given on a group, they hold for its commands too."""

    def shared(*names: str, **attributes: Any) -> Callable[[F], F]:
        return click.option(*names, callback=_remember, expose_value=False, **attributes)

    for option in (
        shared("--color", type=click.Choice(["auto", "always", "never"]), help="Default: auto; NO_COLOR counts."),
        shared("--namespace", metavar="NAME", help="Default: CODOMYRMEX_ETCD_NAMESPACE, or codomyrmex."),
        shared("--endpoints", metavar="URL[,URL]", help="Default: CODOMYRMEX_ETCD_ENDPOINTS."),
        shared("-o", "--output", type=click.Choice(_FORMATS), help="Default: table."),
    ):
        command = option(command)
    return command


def _remember(context: click.Context, param: click.Parameter, value: str | None) -> None:
    options = context.ensure_object(dict)
    if value is not None and param.name:
        options[param.name] = value


def settings(context: click.Context) -> EtcdSettings:
    """The connection settings from the options and the environment; a bad one is a usage error."""
    from codomyrmex.concurrency.session import make_settings

    given = {name: context.obj[name] for name in ("endpoints", "namespace") if name in context.obj}
    try:
        return make_settings(None, given)
    except ValueError as error:
        raise click.UsageError(str(error)) from None


def namespace(context: click.Context) -> str:
    """The namespace that is looked at, and at which etcd, in words."""
    looked = settings(context)
    return f"the namespace {looked.namespace!r} at {', '.join(looked.endpoints)}"


def where(context: click.Context, prefix: str = "") -> str:
    """The end of a sentence that nothing is there: for which names and in which namespace was looked."""
    return f"{f'with a name that starts with {prefix!r} ' if prefix else ''}in {namespace(context)}"


def output(context: click.Context) -> str:
    return str(context.obj.get("output", "table"))


def is_terminal() -> bool:
    return sys.stdout.isatty()


def needs_yes(given: bool, what: str) -> None:
    """Refuse ``what``, off a terminal, unless it was confirmed on the command line."""
    if not given and not is_terminal():
        raise click.UsageError(f"{what}; off a terminal, confirm with -y")


async def confirmed(yes: bool, question: str) -> bool:
    """Whether to go on: ``-y`` was given, or the person at the terminal agrees."""
    return yes or await asyncio.to_thread(click.confirm, question)


def run(main: Coroutine[Any, Any, int | None], stop: asyncio.Event | None = None) -> NoReturn:
    """Run a command's coroutine and exit with the code that belongs to how it ended; SIGTERM ends it like Ctrl-C.

    With ``stop`` the first of these signals sets that, so that the command can end in good order, and the next ends it.
    """
    from codomyrmex.concurrency.errors import ConcurrencyError

    ended_by: list[int] = []

    async def interruptible() -> int:
        task = asyncio.current_task()
        assert task

        def end(number: int) -> None:
            if stop and not stop.is_set():
                stop.set()
                return
            ended_by.append(number)
            task.cancel()

        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, end, number)
        return await main or 0

    try:
        code = asyncio.run(interruptible())
    except (KeyboardInterrupt, asyncio.CancelledError):
        code = 128 + (ended_by[0] if ended_by else signal.SIGINT)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except ConcurrencyError as error:
        click.echo(f"error: {error}", err=True)
        code = exit_code(error)
    sys.exit(code)


def exit_code(error: Exception) -> int:
    from codomyrmex.concurrency import errors

    if isinstance(error, errors.EtcdUnavailable):
        return EXIT_UNREACHABLE
    if isinstance(error, errors.LockTimeout):
        return EXIT_TIMEOUT
    if isinstance(error, errors.LockLost | errors.SessionLost):
        return EXIT_LOST
    if isinstance(error, errors.InvalidName):
        return EXIT_USAGE
    return EXIT_FAILED
