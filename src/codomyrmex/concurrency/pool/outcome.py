"""A call's result or error, as a value: some exceptions cannot pass through a future, a coroutine or an event loop.

A future refuses ``StopIteration``, and whoever waits for it hangs; ``SystemExit`` in a task ends the whole loop.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple


class Outcome(NamedTuple):
    value: Any
    error: BaseException | None


def outcome(call: Callable[[], Any]) -> Outcome:
    """Calls it; never raises."""
    try:
        return Outcome(call(), None)
    except BaseException as error:
        return Outcome(None, error)
