"""The blocking twin of ``codomyrmex.concurrency``: the same names for code without an event loop.

    with LockManager().acquire("file_edit:main.py") as grant:
        ...

It works with many threads, in Jupyter, and in prefork workers, where each child opens a session of its own at first
use. All calls run on one event loop in a separate thread. The exit of the interpreter releases everything that is held.
"""

from codomyrmex.concurrency.recipes.manager import Shared
from codomyrmex.concurrency.sync.dead_letters import Attempt, DeadLetterQueue, Worker
from codomyrmex.concurrency.sync.election import Campaign, Election, Term
from codomyrmex.concurrency.sync.grant import Grant, Grants
from codomyrmex.concurrency.sync.lock import DistributedLock
from codomyrmex.concurrency.sync.manager import LockManager
from codomyrmex.concurrency.sync.membership import Group, Joining, Membership
from codomyrmex.concurrency.sync.pool import AsyncWorkerPool
from codomyrmex.concurrency.sync.rate_limiter import RateLimiter, Reserve, Spend
from codomyrmex.concurrency.sync.reservation import Reservation
from codomyrmex.concurrency.sync.semaphore import Permit, Semaphore
from codomyrmex.concurrency.sync.session import Loss, Session

__all__ = [
    "AsyncWorkerPool",
    "Attempt",
    "Campaign",
    "DeadLetterQueue",
    "DistributedLock",
    "Election",
    "Grant",
    "Grants",
    "Group",
    "Joining",
    "LockManager",
    "Loss",
    "Membership",
    "Permit",
    "RateLimiter",
    "Reservation",
    "Reserve",
    "Semaphore",
    "Session",
    "Shared",
    "Spend",
    "Term",
    "Worker",
]
