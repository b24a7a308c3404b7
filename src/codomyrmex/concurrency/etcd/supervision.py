"""Background tasks with an owner, which is told if a task ends although its owner did not end it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

Broken = Callable[[str, BaseException], object]
"""Called with the name of background work and the unexpected exception that ended it."""


def supervise(work: Coroutine[Any, Any, T], name: str, broken: Broken) -> asyncio.Task[T]:
    """Run ``work`` in a task and call ``broken`` with an exception that ends it.

    A cancellation by ``task.cancel()`` comes from the owner and is not told. A ``CancelledError`` from anywhere else is
    an accident and is told.
    """
    task = asyncio.create_task(work)

    def ended(task: asyncio.Task[T]) -> None:
        if not task.cancelled():
            error = task.exception()
        elif not task.cancelling():
            error = RuntimeError("it was cancelled by accident")
        else:
            return
        if error:
            broken(name, error)

    task.add_done_callback(ended)
    return task


def unheard(task: asyncio.Task[Any]) -> None:
    """Leave no warning for an error of ``task`` that nobody waits for any more: a callback for its end."""
    if not task.cancelled():
        task.exception()


def guarded(callback: Callable[[], object], name: str, broken: Broken) -> Callable[[], None]:
    """A function for the event loop that calls ``callback``, and ``broken`` with an exception that it raises."""

    def call() -> None:
        try:
            callback()
        except Exception as error:
            broken(name, error)

    return call
