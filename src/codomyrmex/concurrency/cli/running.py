"""Runs the coroutine of a command, and turns its end into the exit code of the process."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Coroutine
from typing import Any, NoReturn

import click

EXIT_FAILED, EXIT_USAGE, EXIT_UNREACHABLE, EXIT_TIMEOUT, EXIT_LOST, EXIT_NOT_RESERVED = 1, 2, 69, 75, 76, 77

# The meaning of each code, for users; 128 + N says that the signal N ended the command.
EXIT_CODES = {
    0: "done",
    EXIT_FAILED: "failed or not found",
    EXIT_USAGE: "usage",
    EXIT_UNREACHABLE: "etcd unreachable",
    EXIT_TIMEOUT: "not acquired in time",
    EXIT_LOST: "lock or reservation lost",
    EXIT_NOT_RESERVED: "a path is not reserved by this agent",
}


def run(main: Coroutine[Any, Any, int | None], stop: asyncio.Event | None = None) -> NoReturn:
    """Run ``main`` and exit: with its result, else with the code that belongs to its error.

    SIGTERM and Ctrl-C cancel it, and the exit code is 128 + N. With ``stop``, the first of these signals sets ``stop``,
    so that the command can end in good order, and the second cancels it.
    """
    from codomyrmex.concurrency.errors import ConcurrencyError  # here, so that --help is fast

    ended_by: list[int] = []
    try:
        code = asyncio.run(_interruptible(main, stop, ended_by))
    except (KeyboardInterrupt, asyncio.CancelledError):
        code = 128 + (ended_by[0] if ended_by else signal.SIGINT)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except ConcurrencyError as error:
        click.echo(f"error: {error}", err=True)
        code = exit_code(error)
    sys.exit(code)


async def _interruptible(main: Coroutine[Any, Any, int | None], stop: asyncio.Event | None, ended_by: list[int]) -> int:
    """The result of ``main``. A signal that cancels it is added to ``ended_by``."""
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


def exit_code(error: Exception) -> int:
    """The exit code that belongs to an error of the library."""
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
