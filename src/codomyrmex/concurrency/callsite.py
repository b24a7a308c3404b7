"""The line of a user's code that called the library, and warnings that name it.

The line is taken at every acquisition, so it is kept as a code object and an offset; the number of the line is worked
out only for a warning.
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
    """A place in a user's code."""

    code: CodeType
    offset: int

    @property
    def number(self) -> int:
        lines = (line for start, end, line in self.code.co_lines() if line and start <= self.offset < end)
        return next(lines, self.code.co_firstlineno)

    def __str__(self) -> str:
        return f"{self.code.co_filename}:{self.number}"


def users_line() -> Line | None:
    """The line outside the library that this call comes from; None where a task was begun with a call of the library.

    There the frames below are the event loop's, and belong to nobody.
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
    """Warn of what ``line`` did."""
    if line is None:
        warnings.warn_explicit(text, category, Path(sys.argv[0]).name or "python", 1)
    else:
        warnings.warn_explicit(text, category, line.code.co_filename, line.number)
