"""Runs a command in a process group of its own: forwards signals, ends the whole group, and returns its exit code."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence

import click

_FORWARDED = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGWINCH")


class Command:
    """One run of ``argv``, without a shell and with our stdin.

    A user may stop this process at the terminal and continue it. ``may_continue`` is called then; if it returns False,
    the command is killed.
    """

    def __init__(
        self,
        argv: Sequence[str],
        environment: Mapping[str, str],
        may_continue: Callable[[], bool] = lambda: True,
    ) -> None:
        self._argv = argv
        self._environment = environment
        self._may_continue = may_continue
        self._process: asyncio.subprocess.Process | None = None
        self._early: list[int] = []  # signals that came before the command had started

    async def run(self) -> int:
        """Run the command to its end and return its exit code.

        The code is 128+N after the signal N, 127 if the command is not found, and 126 if it cannot be executed.
        """
        with self._forwarding():
            try:
                self._process = await asyncio.create_subprocess_exec(
                    *dying_with_us(self._argv), env=dict(self._environment), start_new_session=True
                )
            except FileNotFoundError:
                click.echo(f"error: command not found: {self._argv[0]}", err=True)
                return 127
            except OSError as error:
                click.echo(f"error: cannot run {self._argv[0]}: {error.strerror}", err=True)
                return 126
            code = await self._see_through(self._process)
        return 128 - code if code < 0 else code

    async def _see_through(self, process: asyncio.subprocess.Process) -> int:
        try:
            for number in self._early:
                self._signal(number)
            async with _guarded(process.pid):
                return await process.wait()
        finally:
            self._signal(signal.SIGKILL)  # ends the processes that the command has left in its group

    async def end(self, patience: float) -> None:
        """End the whole group: send SIGTERM, and SIGKILL after ``patience`` seconds."""
        if self._process is None:
            return
        self._signal(signal.SIGTERM)
        self._signal(signal.SIGCONT)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(self._process.wait()), patience)
        self._signal(signal.SIGKILL)
        await self._process.wait()

    def _signal(self, number: int) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, number)

    def _forward(self, number: int) -> None:
        if self._process is None:
            self._early.append(number)
        else:
            self._signal(number)

    @contextlib.contextmanager
    def _forwarding(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        numbers = [getattr(signal, name) for name in _FORWARDED if hasattr(signal, name)]
        before = {number: signal.getsignal(number) for number in numbers}
        numbers = [number for number in numbers if before[number] is not signal.SIG_IGN]  # nohup stays nohup
        for number in numbers:
            loop.add_signal_handler(number, self._forward, number)
        loop.add_signal_handler(signal.SIGTSTP, self._stop)
        try:
            yield
        finally:
            for number in (*numbers, signal.SIGTSTP):
                loop.remove_signal_handler(number)
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop(self) -> None:
        """Handle Ctrl-Z: stop the command too, because it must not run while this process cannot check its lock."""
        self._signal(signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGSTOP)
        self._signal(signal.SIGCONT if self._may_continue() else signal.SIGKILL)


# Not a preexec_fn, because Python code between fork and exec can hang or crash next to other threads. Ignored signals
# and exit codes are as in a shell.
_SHIM = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
if os.getppid() != int(sys.argv[1]):
    os._exit(1)
for number in (signal.SIGPIPE, signal.SIGXFSZ):
    signal.signal(number, signal.SIG_DFL)
try:
    os.execvp(sys.argv[2], sys.argv[2:])
except OSError as error:
    missing = isinstance(error, FileNotFoundError)
    what = "command not found: " + sys.argv[2] if missing else f"cannot run {sys.argv[2]}: {error.strerror}"
    print("error:", what, file=sys.stderr)
    os._exit(127 if missing else 126)
"""


# This guard survives a SIGKILL of the main process, and then kills the whole group of the command. A byte on stdin says
# that the command has ended by itself.
_GUARD = """
import os, signal, sys
if not os.read(0, 1):
    try:
        os.killpg(int(sys.argv[1]), signal.SIGKILL)
    except OSError:
        pass
"""


@contextlib.asynccontextmanager
async def _guarded(group: int) -> AsyncIterator[None]:
    """Kill the process ``group`` too if a SIGKILL ends this process while the block runs."""
    guard = await asyncio.create_subprocess_exec(
        *(sys.executable, "-S", "-E", "-c", _GUARD, str(group)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield
    finally:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            await guard.communicate(b".")


def dying_with_us(argv: Sequence[str]) -> list[str]:
    """The command line that starts ``argv`` so that it dies with this process, even by SIGKILL (on Linux)."""
    if sys.platform != "linux":
        return list(argv)
    return [sys.executable, "-S", "-E", "-c", _SHIM, str(os.getpid()), *argv]
