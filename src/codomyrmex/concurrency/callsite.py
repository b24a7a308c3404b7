"""The line of a user's code that called the library, and warnings that name it.

Every acquisition keeps its line, so the line is stored as a code object and an offset. The line number is computed only
for a warning.
"""

from __future__ import annotations

import asyncio
import sys
import warnings
from enum import Enum, auto
from functools import lru_cache
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


class _Origin(Enum):
    """The code that a file belongs to."""

    USER = auto()
    LIBRARY = auto()  # this library, or the part of asyncio that awaits in the task that called it
    LOOP = auto()  # the rest of asyncio


@lru_cache(maxsize=1024)  # an acquisition looks at some ten frames, of the same few files each time
def _origin(file: str) -> _Origin:
    if file.startswith(_ASYNCIO):
        return _Origin.LIBRARY if file.endswith(_SAME_TASK) else _Origin.LOOP
    return _Origin.LIBRARY if file.startswith(_LIBRARY) else _Origin.USER


def users_line() -> Line | None:
    """The line outside the library that this call comes from; None where a task was begun with a call of the library,
    since the frames below are the event loop's then.
    """
    frame = sys._getframe(1)
    while True:
        origin = _origin(frame.f_code.co_filename)
        if origin is _Origin.USER:
            return Line(frame.f_code, frame.f_lasti)
        if origin is _Origin.LOOP:
            return None
        if frame.f_back is None:
            return None
        frame = frame.f_back


def warn(line: Line | None, text: str, category: type[Warning]) -> None:
    """Warn with ``text`` at ``line``, or at the program where there is none."""
    if line is None:
        warnings.warn_explicit(text, category, Path(sys.argv[0]).name or "python", 1)
    else:
        warnings.warn_explicit(text, category, line.code.co_filename, line.number)
