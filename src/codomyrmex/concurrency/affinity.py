"""``Home``: the process and the event loop that an object belongs to, and the error for its use anywhere else."""

from __future__ import annotations

import asyncio
import os
from typing import Any

from codomyrmex.concurrency.errors import UsedElsewhere

_process = os.getpid()  # read once, and again after a fork, since each step of a lock needs it


def _forked() -> None:
    global _process
    _process = os.getpid()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


class Home:
    """The home of an object: the process that made it and, once it is ``settled``, one event loop."""

    __slots__ = ("loop", "pid")

    def __init__(self) -> None:
        self.pid = _process
        self.loop: asyncio.AbstractEventLoop | None = None

    def settle(self) -> None:
        """Bind the object to the running loop."""
        self.loop = asyncio.get_running_loop()

    @property
    def in_process(self) -> bool:
        return self.pid == _process

    def future(self) -> asyncio.Future[Any]:
        """A future of the object's event loop, which must be settled. Before Python 3.12 it costs a system call to find
        the running loop, as ``asyncio.Future()`` does."""
        assert self.loop
        return self.loop.create_future()

    def is_here(self) -> bool:
        """True in the process of the object and, once it has one, in its event loop."""
        return self.pid == _process and (self.loop is None or self.loop is asyncio.get_running_loop())

    def check_process(self, what: str, name: str) -> None:
        """Raise ``UsedElsewhere`` in a forked child; any thread of the object's own process may go on."""
        if not self.in_process:
            self.check(what, name)

    def check(self, what: str, name: str = "") -> None:
        """Raise ``UsedElsewhere`` unless ``is_here``. ``what`` and ``name`` are the kind and name for its message."""
        if self.is_here():
            return
        subject = f"the {what} {name!r}" if name else f"this {what}"
        if not self.in_process:
            raise UsedElsewhere(
                f"{subject} belongs to process {self.pid}, not to this forked one ({_process}); "
                "make a new Session here, and with it what this process uses"
            )
        assert self.loop
        if self.loop.is_closed():
            raise UsedElsewhere(
                f"{subject} belongs to an event loop that was closed; close a session before its loop ends, and make a "
                "new one in each loop"
            )
        raise UsedElsewhere(
            f"{subject} belongs to another event loop; make a new Session in each loop, hand the call to its own by "
            "asyncio.run_coroutine_threadsafe, or use codomyrmex.concurrency.sync, which any thread may call"
        )


def current_task() -> asyncio.Task[Any] | None:
    """The current task; None where no event loop runs, as in a child that was forked in the middle of a task."""
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None


def running_loop() -> asyncio.AbstractEventLoop:
    """The running event loop; raises ``UsedElsewhere`` where there is none."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise UsedElsewhere(
            "no event loop runs here; use asyncio.run, also in a child that was forked by a running loop, "
            "or codomyrmex.concurrency.sync"
        ) from None
