"""The line of a user's code that called the library, and warnings that name it.

Every acquisition keeps its line, so the line is stored as a code object and an offset. The line number is computed only
for a warning.
"""

from __future__ import annotations

import asyncio
import sys
import warnings
from pathlib import Path
from types import CodeType
from typing import NamedTuple

_LIBRARY = str(Path(__file__).parent)
_ASYNCIO = str(Path(asyncio.__file__).parent)
_SAME_TASK = ("tasks.py", "timeouts.py")  # of asyncio: these await in the task that called them


class Line(NamedTuple):
    """A line of a user's code."""

    code: CodeType
    offset: int

    @property
    def number(self) -> int:
        lines = (line for start, end, line in self.code.co_lines() if line and start <= self.offset < end)
        return next(lines, self.code.co_firstlineno)

    def __str__(self) -> str:
        return f"{self.code.co_filename}:{self.number}"


def users_line() -> Line | None:
    """The line outside the library that this call comes from; None where a task was begun with a call of the library,
    since the frames below are the event loop's then.
    """
    frame = sys._getframe(1)
    while True:
        file = frame.f_code.co_filename
        if file.startswith(_ASYNCIO):
            if not file.endswith(_SAME_TASK):
                return None
        elif not file.startswith(_LIBRARY):
            return Line(frame.f_code, frame.f_lasti)
        if frame.f_back is None:
            return None
        frame = frame.f_back


def warn(line: Line | None, text: str, category: type[Warning]) -> None:
    """Warn with ``text`` at ``line``, or at the program where there is none."""
    if line is None:
        warnings.warn_explicit(text, category, Path(sys.argv[0]).name or "python", 1)
    else:
        warnings.warn_explicit(text, category, line.code.co_filename, line.number)
