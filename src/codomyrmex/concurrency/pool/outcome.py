"""A call's result or error as a value, because some exceptions cannot pass through a future or an event loop.

A future refuses ``StopIteration``, and the code that waits for the future hangs. ``SystemExit`` in a task ends the
whole loop.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple


class Outcome(NamedTuple):
    """The result of a call, or the error that it raised."""

    value: Any
    error: BaseException | None


def outcome(call: Callable[[], Any]) -> Outcome:
    """Call ``call`` and return its result or its error; never raises."""
    try:
        return Outcome(call(), None)
    except BaseException as error:
        return Outcome(None, error)
