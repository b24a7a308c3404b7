"""The user's line behind frames of asyncio and of the library."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from codomyrmex.concurrency import callsite

_ASYNCIO = Path(asyncio.__file__).parent
_LIBRARY = Path(callsite.__file__).parent


def _asked_from(file: Path) -> callsite.Line | None:
    """The line that ``users_line`` finds when code of ``file`` asks."""
    names = {"users_line": callsite.users_line}
    exec(compile("line = users_line()", str(file), "exec"), names)
    line = names["line"]
    assert line is None or isinstance(line, callsite.Line)
    return line


@pytest.mark.parametrize("file", [_LIBRARY / "recipes" / "x.py", _ASYNCIO / "tasks.py", _ASYNCIO / "timeouts.py"])
def test_frames_of_the_same_task_are_passed_over(file: Path) -> None:
    line = _asked_from(file)
    assert line is not None and line.code.co_filename == __file__


def test_below_the_event_loop_there_is_no_user() -> None:
    assert _asked_from(_ASYNCIO / "events.py") is None
