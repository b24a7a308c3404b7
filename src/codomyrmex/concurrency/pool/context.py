"""Runs an async function in a context of its own within the current task, because a task per call would cost more."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from contextvars import Context
from types import CoroutineType
from typing import Any


def begin(
    context: Context, call: Callable[..., Awaitable[Any]], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, Rest | None]:
    """Call ``call`` in ``context`` and run it until it ends or waits: its result and None, or None and its rest."""
    run = context.run
    steps: Any = run(call, *args, **kwargs)
    if type(steps) is not CoroutineType:
        steps = run(steps.__await__)
    try:
        waits_for = run(steps.send, None)
    except StopIteration as stop:
        return stop.value, None
    return None, Rest(context, steps, waits_for)


class Rest:
    """The rest of a call that has begun: an awaitable that runs each further step in the call's context."""

    __slots__ = ("_context", "_steps", "_waits_for")

    def __init__(self, context: Context, steps: Generator[Any, Any, Any], waits_for: Any) -> None:
        self._context = context
        self._steps = steps
        self._waits_for = waits_for

    def __await__(self) -> Generator[Any, Any, Any]:
        run = self._context.run
        steps = self._steps
        waits_for = self._waits_for
        while True:
            step: Callable[[Any], Any]
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


async def call_in(
    context: Context, call: Callable[..., Awaitable[Any]], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """The result of ``call``, every step of which runs in ``context``."""
    value, rest = begin(context, call, args, kwargs)
    return await rest if rest else value
