"""Functions and commands as real processes, which can be killed, stopped and read, and which leave nothing behind."""

from __future__ import annotations

import contextlib
import inspect
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

from codomyrmex.concurrency.testing import child
from codomyrmex.concurrency.testing.reaper import Reaper

_LIMIT = 30.0  # seconds
_INTERVAL = 0.01


class FleetProcess:
    """A process of a ``Fleet``. It leads a process group, and signals go to the whole group."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], given: bytes) -> None:
        self._command = command
        self._next = 0  # the first line that `wait_for` has not looked at
        with contextlib.ExitStack() as files:
            self._output = files.enter_context(tempfile.TemporaryFile())
            self._errors = files.enter_context(tempfile.TemporaryFile())
            self._process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=self._output,
                stderr=self._errors,
                start_new_session=True,
            )
            self._files = files.pop_all()
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError), self._process.stdin as stdin:
            stdin.write(given)

    @property
    def pid(self) -> int:
        """The process id, which is also that of its group."""
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit code; -N after the signal N, and None while the process runs."""
        return self._process.poll()

    @property
    def output(self) -> str:
        """All that it has written to stdout so far."""
        return _text(self._output.fileno())

    @property
    def errors(self) -> str:
        """All that it has written to stderr so far."""
        return _text(self._errors.fileno())

    def wait_for(self, text: str, limit: float = _LIMIT) -> str:
        """The next line of ``output`` that contains ``text``. Each call looks at the lines after that of the last call.

        Raises ``ChildProcessError`` if the process ends without one, ``TimeoutError`` after ``limit`` seconds.
        """
        deadline = time.monotonic() + limit
        while True:
            ended = self.returncode is not None  # before the reading, so that nothing comes after it
            for line in self._fresh(ended):
                self._next += 1
                if text in line:
                    return line
            if ended:
                raise ChildProcessError(f"{self} has not written {text!r}\n{self.output}{self.errors}")
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self} has not written {text!r} in {limit:g} s\n{self.output}{self.errors}")
            time.sleep(_INTERVAL)

    def wait(self, limit: float = _LIMIT) -> int:
        """Wait until the process ends; returns its exit code. Raises ``TimeoutError`` after ``limit`` seconds."""
        try:
            return self._process.wait(limit)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"{self} has not ended in {limit:g} s\n{self.output}{self.errors}") from None

    def kill(self) -> None:
        """End it by SIGKILL, as a crash does, and wait until it is gone."""
        self.send(signal.SIGKILL)
        self._process.wait()

    def stop(self) -> None:
        """Let it stand still, as a long pause does, until ``resume``."""
        self.send(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on after ``stop``."""
        self.send(signal.SIGCONT)

    def terminate(self) -> None:
        """Ask it to end, by SIGTERM."""
        self.send(signal.SIGTERM)

    def send(self, number: signal.Signals) -> None:
        """Send a signal to its group; does nothing if that is gone."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def close(self) -> None:
        """Kill it, and forget its output."""
        self.kill()
        self._files.close()

    def _fresh(self, ended: bool) -> list[str]:
        """The lines after those that were looked at. A line is not whole before its end, or that of the process."""
        lines = self.output.splitlines(keepends=True)
        whole = lines if ended or not lines or lines[-1].endswith("\n") else lines[:-1]
        return [line.rstrip("\n") for line in whole[self._next :]]

    def __str__(self) -> str:
        code = self.returncode
        state = "runs" if code is None else f"ended with {code}"
        return f"process {self.pid} ({' '.join(self._command)}, which {state})"


class Fleet:
    """Starts processes, and ends them all with ``close`` or at the end of ``with``. They also end with this process.

    Args:
        environment: the environment of the processes; when left out, that of this process at each start.
    """

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        self.processes: list[FleetProcess] = []
        self._environment = environment
        self._reaper: Reaper | None = None

    def start(
        self,
        target: Callable[..., object] | Sequence[str],
        *arguments: object,
        ready: str | None = None,
        limit: float = _LIMIT,
    ) -> FleetProcess:
        """Start a Python function or a command as a process.

        Args:
            target: a function at the top of a module, which may be ``async``, or a command as a list of texts.
            arguments: those of the function, which must be picklable, or more texts of the command.
            ready: wait until the process has written a line with this text to stdout. Without it, do not wait.
            limit: seconds to wait for that line.

        Raises as ``FleetProcess.wait_for`` does, and ``ValueError`` for a function that no other process can import.
        """
        if isinstance(target, str):
            raise TypeError(f"a command is a list of texts, not {target!r}")
        if callable(target):
            command, given = [sys.executable, child.__file__], _call(target, arguments)
        else:
            command, given = [*target, *map(str, arguments)], b""
        self._reaper = self._reaper or Reaper()
        environment = os.environ if self._environment is None else self._environment
        process = FleetProcess(command, {"PYTHONUNBUFFERED": "1", **environment}, given)
        self.processes.append(process)
        self._reaper.add(process.pid)
        if ready is not None:
            process.wait_for(ready, limit)
        return process

    def close(self) -> None:
        """Kill all processes and wait until they are gone."""
        for process in self.processes:
            process.send(signal.SIGKILL)
        while self.processes:
            self.processes.pop().close()
        if self._reaper:
            self._reaper.close()
            self._reaper = None

    def __enter__(self) -> Fleet:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _call(function: Callable[..., Any], arguments: Sequence[object]) -> bytes:
    """A call of a function, as ``child`` reads it."""
    name = getattr(function, "__qualname__", "")
    if not inspect.isroutine(function) or "<" in name:
        raise ValueError(f"a process runs a function at the top of a module, not {name or function!r}; move it there")
    origin = sys.path, function.__module__, inspect.getfile(function), name
    return pickle.dumps(origin) + pickle.dumps(arguments)


def _text(file: int) -> str:
    return os.pread(file, os.fstat(file).st_size, 0).decode(errors="replace")
