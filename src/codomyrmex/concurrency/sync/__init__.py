"""The blocking twin of ``codomyrmex.concurrency``: the same names for code without an event loop.

    with LockManager().acquire("file_edit:main.py") as grant:
        ...

Safe from many threads, in Jupyter, in prefork workers (each child gets a session of its own at first use). Everything
runs on one event loop in a thread of its own; what it holds is given back when the interpreter exits.
"""

from codomyrmex.concurrency.recipes.manager import Shared
from codomyrmex.concurrency.sync.dead_letters import Attempt, DeadLetterQueue, Worker
from codomyrmex.concurrency.sync.lock import DistributedLock, Grant, Grants, LockManager
from codomyrmex.concurrency.sync.pool import AsyncWorkerPool
from codomyrmex.concurrency.sync.semaphore import Permit, Semaphore
from codomyrmex.concurrency.sync.session import Loss, Session

__all__ = [
    "AsyncWorkerPool",
    "Attempt",
    "DeadLetterQueue",
    "DistributedLock",
    "Grant",
    "Grants",
    "LockManager",
    "Loss",
    "Permit",
    "Semaphore",
    "Session",
    "Shared",
    "Worker",
]
