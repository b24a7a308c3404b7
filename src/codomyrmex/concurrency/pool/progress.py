"""The progress of a ``map`` or ``imap``: a bar on a terminal, or a callback. Only the bar imports rich."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import TracebackType
from typing import Any

Callback = Callable[[int, int | None], object]


class Progress:
    """Reports the number of tasks done, and their total, after every task.

    ``how`` True shows a bar, False reports nothing, and a callable is called with the two numbers.
    """

    def __init__(self, how: bool | Callback, title: str, total: int | None) -> None:
        self._tell: Callback | None = how if callable(how) else None
        self._title = title
        self._total = total
        self._done = 0
        self._bar: Any = None
        if how is True and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import Progress as Bar

            self._bar = Bar(console=Console(stderr=True), transient=True)

    def __enter__(self) -> Progress:
        if self._bar:
            self._bar.start()
            task = self._bar.add_task(self._title, total=self._total)
            self._tell = lambda done, total: self._bar.update(task, completed=done)
        return self

    def step(self, count: int) -> None:
        """Count ``count`` more tasks as done, and report each of them."""
        for _ in range(count):
            self._done += 1
            if self._tell:
                self._tell(self._done, self._total)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()
