"""Acts at one chosen await point of a coroutine, for tests that try each of these points in turn."""

from __future__ import annotations

from collections.abc import Coroutine, Generator
from typing import Any


class AtStep:
    """Runs a coroutine, and ``strike`` at its ``step``-th suspension, before it goes on."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], step: int) -> None:
        self._coroutine = coroutine
        self._step = step
        self.reached = False

    def strike(self) -> Generator[Any, None, None]:
        """The action at the chosen step. The coroutine stands still while it waits."""
        raise NotImplementedError

    def __await__(self) -> Any:
        waiting = self._coroutine.__await__()
        result: Any = None
        error: BaseException | None = None
        for count in range(10_000):
            try:
                future = waiting.throw(error) if error else waiting.send(result)
            except StopIteration as stop:
                return stop.value
            try:
                if count == self._step:
                    self.reached = True
                    yield from self.strike()
                result, error = (yield future), None
            except BaseException as caught:
                error = caught
        raise AssertionError("endless")
