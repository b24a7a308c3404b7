"""Runs an async function in a context of its own within the current task, because a task per call would cost more."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from contextvars import Context
from typing import Any


class InContext:
    """An awaitable that calls ``call`` and runs each step of its result in ``context``.

    ``suspended`` becomes True when a step has waited for anything.
    """

    __slots__ = ("_args", "_call", "_context", "_kwargs", "suspended")

    def __init__(
        self, context: Context, call: Callable[..., Awaitable[Any]], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self._context = context
        self._call = call
        self._args = args
        self._kwargs = kwargs
        self.suspended = False

    def __await__(self) -> Generator[Any, Any, Any]:
        run = self._context.run
        try:
            steps, waits_for = run(_begin, self._call, self._args, self._kwargs)
        except StopIteration as stop:
            return stop.value
        self.suspended = True
        while True:
            try:
                answer = yield waits_for
            except BaseException as error:
                step, argument = steps.throw, error
            else:
                step, argument = steps.send, answer
            try:
                waits_for = run(step, argument)
            except StopIteration as stop:
                return stop.value


def _begin(call: Callable[..., Awaitable[Any]], args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    steps = call(*args, **kwargs).__await__()
    return steps, next(steps)
