"""Child processes that run one function each at a time. A process that dies fails only the function that ran in it.

An executor of the standard library breaks as a whole when one of its processes dies or sends data that cannot be
unpickled. So each process has an executor of its own, which transports only bytes and text. A process can be ended, as
a thread cannot: the process of a task that timed out or was cancelled is killed.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import CancelledError
from concurrent.futures.process import BrokenProcessPool, ProcessPoolExecutor
from functools import partial
from multiprocessing.reduction import ForkingPickler
from typing import Any, NamedTuple

from codomyrmex.concurrency.errors import text_of
from codomyrmex.concurrency.pool.outcome import outcome


class _Reply(NamedTuple):
    """The answer of a process. ``error`` and ``trace`` are texts, for the case that ``pickled`` cannot be unpickled."""

    pickled: bytes | None
    error: str = ""
    trace: str = ""


class _Trace(Exception):
    """The traceback of the other process, used here as the cause of its error."""

    def __init__(self, text: str) -> None:
        super().__init__(f'\n"""\n{text}"""')


class Errand:
    """One run of a function in a process. Any thread may end it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pid = 0
        self.ended = False

    def begun(self, pid: int) -> bool:
        """Note that the function is about to run in the process ``pid``. Returns False if the run was ended before."""
        with self._lock:
            self._pid = 0 if self.ended else pid
            return not self.ended

    def over(self) -> None:
        """Note that the process has answered or died."""
        with self._lock:
            self._pid = 0

    def end(self) -> None:
        """Kill the process if the function runs in it. If the function has not begun, it never begins."""
        with self._lock:
            self.ended = True
            for process in multiprocessing.active_children() if self._pid else ():
                if process.pid == self._pid:
                    process.kill()


class Child(NamedTuple):
    """A process, and the executor that uses only this process."""

    executor: ProcessPoolExecutor
    pid: int


class Processes:
    """Processes that are started when they are needed, and used again. Any number of threads may call it at once."""

    def __init__(self) -> None:
        self._idle: list[Child] = []
        self._closed = False
        self._lock = threading.Lock()

    def run(
        self, errand: Errand, name: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Run ``function`` in a process, block until its end, and return its result.

        Raises the function's own error. If that error cannot be pickled, raises a ``RuntimeError`` with its text.
        Raises ``PicklingError`` or ``UnpicklingError`` if the arguments or the result cannot be packed or unpacked, and
        ``BrokenProcessPool`` if the process died.
        """
        packed = outcome(lambda: bytes(ForkingPickler.dumps((function, args, kwargs))))
        if packed.error:
            raise pickle.PicklingError(f"the arguments of {name} cannot be pickled: {_said(packed.error)}")
        reply = self._reply(errand, name, packed.value)
        opened = outcome(lambda: ForkingPickler.loads(reply.pickled) if reply.pickled is not None else None)
        if not reply.error:
            if opened.error:
                raise pickle.UnpicklingError(f"the result of {name} cannot be unpickled: {_said(opened.error)}")
            return opened.value
        cause = _Trace(reply.trace) if reply.trace else None
        if isinstance(opened.value, BaseException):
            raise opened.value from cause
        why = _said(opened.error) if opened.error else "it cannot be pickled"
        raise RuntimeError(f"{reply.error} (the error itself was lost between processes: {why})") from cause

    def close(self) -> None:
        """End the idle processes, without waiting. A busy process ends when its function does."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for child in idle:
            child.executor.shutdown(wait=False)

    def _reply(self, errand: Errand, name: str, packed: bytes) -> _Reply:
        while True:
            child = self._take()
            if not errand.begun(child.pid):
                self._give_back(child)
                raise CancelledError
            try:
                running = child.executor.submit(_serve, name, packed)
            except BrokenProcessPool:
                child.executor.shutdown(wait=False)
                continue  # it died while it was idle, so nothing began; the idle processes are few
            try:
                reply = running.result()
            except BrokenProcessPool as error:
                child.executor.shutdown(wait=False)
                raise BrokenProcessPool(
                    f"the process that ran {name} ended abruptly (killed, out of memory, or crashed); "
                    "the function may have run in part"
                ) from error
            finally:
                errand.over()
            self._give_back(child)
            return reply

    def _take(self) -> Child:
        with self._lock:
            if self._idle:
                return self._idle.pop()
        executor = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
        try:
            return Child(executor, executor.submit(os.getpid).result())
        except BrokenProcessPool as error:
            executor.shutdown(wait=False)
            raise BrokenProcessPool(
                "a process ended before it could run anything; is the program's start guarded by "
                "`if __name__ == '__main__'`?"
            ) from error

    def _give_back(self, child: Child) -> None:
        with self._lock:
            if not self._closed:
                self._idle.append(child)
                return
        child.executor.shutdown(wait=False)


def _serve(name: str, packed: bytes) -> _Reply:
    """Run the packed function. This is called in the child process, and never raises."""
    work = outcome(lambda: ForkingPickler.loads(packed))
    if work.error:
        return _problem(pickle.UnpicklingError(f"{name} cannot be unpickled in its process: {_said(work.error)}"))
    function, args, kwargs = work.value
    done = outcome(partial(function, *args, **kwargs))
    error = done.error
    packed_answer = outcome(lambda: bytes(ForkingPickler.dumps(done.value if error is None else error)))
    if error is not None:
        trace = outcome(lambda: "".join(traceback.format_exception(error))).value or ""
        return _Reply(packed_answer.value, _said(error), trace)
    if packed_answer.error:
        return _problem(pickle.PicklingError(f"the result of {name} cannot be pickled: {_said(packed_answer.error)}"))
    return _Reply(packed_answer.value)


def _problem(error: pickle.PickleError) -> _Reply:
    return _Reply(pickle.dumps(error), str(error))


def _said(error: BaseException) -> str:
    return f"{type(error).__qualname__}: {outcome(lambda: text_of(error)).value or 'no text'}"
