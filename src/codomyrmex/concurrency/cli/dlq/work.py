"""``dlq work``: a worker for a queue of the operator's own, named as ``MODULE:QUEUE``."""

from __future__ import annotations

import asyncio
import os
import sys
import traceback
from functools import reduce
from importlib import import_module

import click

from codomyrmex.concurrency import DeadLetterQueue
from codomyrmex.concurrency.cli.command_classes import Command
from codomyrmex.concurrency.cli.duration_types import Duration
from codomyrmex.concurrency.cli.options import common_options, settings
from codomyrmex.concurrency.cli.running import EXIT_FAILED, run
from codomyrmex.concurrency.cli.views.text import visible
from codomyrmex.concurrency.session import default_session


@click.command(cls=Command)
@click.option("--app", required=True, metavar="MODULE:QUEUE", help="The queue and its handlers.")
@click.option(
    "--concurrency", type=click.IntRange(min=1), default=4, show_default=True, help="Handlers that run at a time."
)
@click.option(
    "--drain", type=Duration(), default=30.0, metavar="30s", help="Cancel handlers that take longer than this to end."
)
@common_options
@click.pass_context
def work(context: click.Context, app: str, concurrency: int, drain: float) -> None:
    """Run a worker for a queue of your own.

    The worker retries entries that are due, with the handlers of QUEUE. QUEUE is a DeadLetterQueue in the module
    MODULE, which is imported as Python would import it from this directory.

    SIGTERM or Ctrl-C ends the worker in good order: it takes nothing more, lets running handlers end, and exits with 0.
    A second signal cancels the handlers, and it exits with 143 or 130. Another worker retries the cancelled entries, at
    no cost to their attempts.

    Exits with 1 if MODULE fails, 2 if there is no such queue or it has no handlers, 69 if etcd cannot be reached at the
    start; later it waits for etcd. --endpoints and --namespace hold for a queue that has no session of its own.

    \b
    Example:  codomyrmex concurrency dlq work --app myapp.mail:dlq --concurrency 8
    """
    looked = settings(context)
    os.environ["CODOMYRMEX_ETCD_ENDPOINTS"] = ",".join(looked.endpoints)
    os.environ["CODOMYRMEX_ETCD_NAMESPACE"] = looked.namespace
    queue = _queue(app)
    if not queue.operations:
        raise click.UsageError(f"the queue {app!r} has no handlers: register some in that module, by @queue.handler(…)")
    stop = asyncio.Event()
    run(_work(queue, concurrency, drain, stop), stop)


async def _work(queue: DeadLetterQueue, concurrency: int, drain: float, stop: asyncio.Event) -> None:
    try:
        async with queue, queue.worker(concurrency, drain_timeout=drain):
            handled = ", ".join(map(visible, queue.operations))
            click.echo(f"a worker of the queue {queue.name!r} retries {handled}; Ctrl-C or SIGTERM ends it", err=True)
            await stop.wait()
            click.echo(
                f"the worker takes nothing more; it ends with its running handlers, after at most {drain:g} s", err=True
            )
    finally:
        await default_session().close()  # that of a queue without one of its own


def _queue(app: str) -> DeadLetterQueue:
    """The object that ``app`` names; whatever is wrong is told, and ends the command."""
    module_name, _, path = app.partition(":")
    if not module_name or not path:
        raise click.UsageError(f"--app is MODULE:QUEUE, such as myapp.mail:dlq, not {app!r}")
    module = _imported(module_name)
    try:
        found: object = reduce(getattr, path.split("."), module)
    except AttributeError:
        found = None
    if isinstance(found, DeadLetterQueue):
        return found
    there = ", ".join(name for name, value in vars(module).items() if isinstance(value, DeadLetterQueue))
    what = "is no DeadLetterQueue" if found is not None else "is not there"
    raise click.UsageError(f"{path!r} of the module {module_name!r} {what}; its queues are: {there or 'none'}")


def _imported(name: str) -> object:
    sys.path.insert(0, os.getcwd())
    try:
        return import_module(name)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}."):
            there = f"in this directory ({os.getcwd()}) or on Python's path"
            raise click.UsageError(f"there is no module {error.name!r} {there}") from None
        traceback.print_exc()
        click.echo(f"error: the module {name!r} failed as it was imported; its traceback is above", err=True)
        sys.exit(EXIT_FAILED)
