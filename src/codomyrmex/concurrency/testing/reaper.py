"""Kills process groups when this process ends, however it ends.

A small process of its own waits on a pipe. When this process dies the pipe closes, and the groups that it named there
are killed.
"""

from __future__ import annotations

import subprocess
import sys

_PROGRAM = """
import os, signal, sys
groups = set()
for order in iter(sys.stdin.readline, ""):
    if order == "end\\n":
        sys.exit()
    groups.add(int(order))
for group in groups:
    try:
        os.killpg(group, signal.SIGKILL)
    except OSError:
        pass
"""


class Reaper:
    """Kills the groups that it was told of if this process dies before ``close``."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _PROGRAM],
            stdin=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C at the terminal must not reach it
        )

    def add(self, group: int) -> None:
        """Kill this process group too."""
        self._tell(str(group))

    def close(self) -> None:
        """End the reaper. It kills nothing."""
        self._tell("end")
        self._process.communicate()

    def _tell(self, order: str) -> None:
        assert self._process.stdin
        self._process.stdin.write(f"{order}\n")
        self._process.stdin.flush()
