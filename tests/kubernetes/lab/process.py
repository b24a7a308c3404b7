"""A program of the lab that runs in the background, with a log. It ends when this process ends."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path


class Process:
    """A program started at once. Its output goes to ``path`` with the ending ``.log``."""

    def __init__(self, path: Path, *command: str, environment: dict[str, str] | None = None) -> None:
        self._log = path.with_name(f"{path.name}.log")
        # The kernel ends it with its parent, so that nothing stays behind when the tests are killed.
        words = ("setpriv", "--pdeathsig=KILL", "nice", *command)
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                words,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **(environment or {})},
            )
        self.name = path.name

    def tail(self) -> str:
        """The end of the log."""
        return self._log.read_text(errors="replace")[-2000:]

    def check(self) -> None:
        """Raise ``RuntimeError`` with the log's end if the program has ended."""
        if (code := self._process.poll()) is not None:
            raise RuntimeError(f"{self.name} ended with {code}: {self.tail()}")

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End the program, after 10 s by force."""
        self._process.send_signal(number)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
