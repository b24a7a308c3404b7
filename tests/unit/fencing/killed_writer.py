"""Kills a writer of a file at each line of ``fencing/files.py``, and checks what is left: ``... killed_writer FOLDER``.

It prints the number of kills, and after how many the old and the new content was there.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from codomyrmex.concurrency.errors import FencedWriteRejected
from codomyrmex.concurrency.fencing import files
from tests.unit.fencing.holds import held


def killed_at(step: int, work: Callable[[], object]) -> bool:
    """Do ``work`` in a child that is killed before its line number ``step``; False if it ended before."""
    child = os.fork()
    if not child:
        steps = 0

        def trace(frame: FrameType, event: str, _: Any) -> Any:
            nonlocal steps
            if frame.f_code.co_filename != files.__file__:
                return None
            if event == "line":
                steps += 1
                if steps == step:
                    os.kill(os.getpid(), signal.SIGKILL)
            return trace

        sys.settrace(trace)
        work()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def check(path: Path) -> str:
    """Check what a killed writer with the token 8 left, and return the content of its file."""
    content = path.read_text()
    record = path.with_name(f".{path.name}.fencing")
    (token,) = json.loads(record.read_text()).values()
    assert (content, token) in (("old", 7), ("old", 8), ("new", 8)), (content, token)
    if token == 8:
        try:
            files.replace(path, "late", held(7))
        except FencedWriteRejected:
            pass
        else:
            raise AssertionError("a lower token was accepted")
    files.replace(path, "next", held(9))
    assert path.read_text() == "next"
    assert len(list(path.parent.iterdir())) == 3
    return content


def main(folder: Path) -> None:
    found = []
    for step in range(1, 1000):
        path = folder / str(step) / "file"
        path.parent.mkdir()
        files.replace(path, "old", held(7))
        if not killed_at(step, lambda path=path: files.replace(path, "new", held(8))):  # type: ignore[misc]
            break
        found.append(check(path))
    print(len(found), found.count("old"), found.count("new"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
