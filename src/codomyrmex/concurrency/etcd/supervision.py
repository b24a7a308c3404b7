"""Background work with an owner: whoever starts a task here is told if it ends although nobody ended it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

Broken = Callable[[str, BaseException], object]
"""Told the name of something in the background and the exception, which nobody expected, that ended it."""


def supervise(work: Coroutine[Any, Any, T], name: str, broken: Broken) -> asyncio.Task[T]:
    """Run ``work`` in a task and tell ``broken`` of an exception that ends it.

    A cancel by ``task.cancel()`` is its owner's and told to nobody. A ``CancelledError`` that came from anywhere else
    is an accident, and told.
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


def guarded(callback: Callable[[], object], name: str, broken: Broken) -> Callable[[], None]:
    """``callback`` for the event loop to call; ``broken`` is told what it raises."""

    def call() -> None:
        try:
            callback()
        except Exception as error:
            broken(name, error)

    return call
