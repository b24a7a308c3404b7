"""Every error this library raises, in one tree.

No gRPC or protobuf error ever reaches a user: ``etcd/transports/failures.py`` turns them into ``EtcdError`` and its
subclasses.
"""

from __future__ import annotations

from copy import copy
from typing import Literal, TypeVar

from codomyrmex.concurrency.legible import legible
from codomyrmex.concurrency.wait_graph import WaitEdge

Applied = Literal["yes", "no", "unknown"]
E = TypeVar("E", bound=BaseException)


class ConcurrencyError(Exception):
    """The root of all errors of this library. Hidden characters of names in its text are shown as escapes."""

    def __str__(self) -> str:
        return legible(super().__str__(), keep="\n\t")


class InvalidName(ConcurrencyError, ValueError):
    """A name that cannot be used for a lock; the text says why."""


class InvalidHandle(ConcurrencyError, ValueError):
    """A text that is no handle of a reservation of this namespace; the error says why, without the handle."""


class LockTimeout(ConcurrencyError, TimeoutError):
    """The lock was not granted within ``timeout`` seconds. The queue entry has been withdrawn."""


class Deadlock(ConcurrencyError):
    """Requesters wait for each other in a cycle, and this one was chosen to give up. Its queue entry is withdrawn.

    ``cycle`` has the edges of the cycle in order, each a ``WaitEdge``.
    """

    def __init__(self, message: str, cycle: tuple[WaitEdge, ...] = ()) -> None:
        super().__init__(message)
        self.cycle = cycle


class LockLost(ConcurrencyError):
    """A held lock, or a waiter's entry in the queue, is gone although its owner did not release it."""


class NotHeld(ConcurrencyError):
    """A release, or a forced release, of a lock that has no holder."""


class FencedWriteRejected(ConcurrencyError):
    """etcd refused a fenced write because its grant no longer holds. Nothing was written."""


class SessionLost(ConcurrencyError):
    """The session's lease is gone (expired, revoked or closed); nothing more can be done with this session."""


class UsedElsewhere(ConcurrencyError, RuntimeError):
    """An object was used outside the process, event loop or thread that it belongs to; the text says how to mend it.

    This is a mistake in the program: a retry does not help.
    """


class SemaphoreInUse(ConcurrencyError):
    """A semaphore that was to be deleted has holders or waiters. Nothing was deleted."""


class RateLimitInUse(ConcurrencyError):
    """A rate limit that was to be deleted still counts what was spent, or has waiters. Nothing was deleted."""


class LimitMismatch(ConcurrencyError):
    """A semaphore or a rate limiter was opened with other limits than those in etcd; the text names both."""


class PoolClosed(ConcurrencyError):
    """A task was given to a worker pool that has been shut down."""


class PayloadTooLarge(ConcurrencyError, ValueError):
    """A record does not fit etcd; the text names its size and the limit. Nothing was written."""


class DeadLetterNotFound(ConcurrencyError, LookupError):
    """No dead letter has that id."""


class QueueFull(ConcurrencyError):
    """A dead letter queue holds its ``max_entries`` and none of them is resolved. Nothing was stored."""


class EtcdError(ConcurrencyError):
    """A call to etcd failed.

    ``applied`` says if the call took effect (``"yes"``, ``"no"``, ``"unknown"``), and ``retryable`` if a retry may
    help.
    """

    def __init__(self, message: str, *, applied: Applied = "no", retryable: bool = False) -> None:
        super().__init__(message)
        self.applied: Applied = applied
        self.retryable = retryable


class EtcdUnavailable(EtcdError):
    """No endpoint answered in time; the text names the endpoints tried and what to do."""


class EtcdAuthError(EtcdError):
    """etcd refused the credentials or the permission, or TLS verification failed."""


class EtcdRegressed(EtcdError):
    """etcd has gone back to an earlier revision, so fencing tokens would repeat; the text gives the remedy."""

    def __init__(self, message: str) -> None:
        super().__init__(message, applied="unknown")


class EtcdQuotaExceeded(EtcdError):
    """etcd's database is full (the NOSPACE alarm). Held locks keep renewing and can be released."""


def text_of(error: BaseException) -> str:
    """The text of an error, in Unicode that can be stored; a substitute if the error raises instead of giving it."""
    try:
        text = str(error)
    except KeyboardInterrupt:
        raise
    except BaseException as problem:
        text = f"(its text cannot be told: {type(problem).__name__})"
    return text.encode(errors="backslashreplace").decode()


def fresh(error: E) -> E:
    """A copy of ``error`` for one caller to raise. One instance would collect the tracebacks of all its callers."""
    again = copy(error)
    again.__cause__ = error.__cause__
    return again
