"""Fair, fenced distributed locks on etcd for fleets of agents.

The public names are imported when first used, so that ``--help`` and error handling load neither protobuf nor
pydantic.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from codomyrmex.concurrency.dead_letters.handlers import Attempt as Attempt
    from codomyrmex.concurrency.dead_letters.handlers import Discard as Discard
    from codomyrmex.concurrency.dead_letters.handlers import Park as Park
    from codomyrmex.concurrency.dead_letters.handlers import Retry as Retry
    from codomyrmex.concurrency.dead_letters.queue import DeadLetterQueue as DeadLetterQueue
    from codomyrmex.concurrency.dead_letters.record import AttemptRecord as AttemptRecord
    from codomyrmex.concurrency.dead_letters.record import DeadLetter as DeadLetter
    from codomyrmex.concurrency.dead_letters.worker_handle import Worker as Worker
    from codomyrmex.concurrency.errors import ConcurrencyError as ConcurrencyError
    from codomyrmex.concurrency.errors import DeadLetterNotFound as DeadLetterNotFound
    from codomyrmex.concurrency.errors import Deadlock as Deadlock
    from codomyrmex.concurrency.errors import EtcdAuthError as EtcdAuthError
    from codomyrmex.concurrency.errors import EtcdError as EtcdError
    from codomyrmex.concurrency.errors import EtcdQuotaExceeded as EtcdQuotaExceeded
    from codomyrmex.concurrency.errors import EtcdRegressed as EtcdRegressed
    from codomyrmex.concurrency.errors import EtcdUnavailable as EtcdUnavailable
    from codomyrmex.concurrency.errors import FencedWriteRejected as FencedWriteRejected
    from codomyrmex.concurrency.errors import InvalidHandle as InvalidHandle
    from codomyrmex.concurrency.errors import InvalidName as InvalidName
    from codomyrmex.concurrency.errors import LimitMismatch as LimitMismatch
    from codomyrmex.concurrency.errors import LockLost as LockLost
    from codomyrmex.concurrency.errors import LockTimeout as LockTimeout
    from codomyrmex.concurrency.errors import NotHeld as NotHeld
    from codomyrmex.concurrency.errors import PayloadTooLarge as PayloadTooLarge
    from codomyrmex.concurrency.errors import PoolClosed as PoolClosed
    from codomyrmex.concurrency.errors import QueueFull as QueueFull
    from codomyrmex.concurrency.errors import RateLimitInUse as RateLimitInUse
    from codomyrmex.concurrency.errors import SemaphoreInUse as SemaphoreInUse
    from codomyrmex.concurrency.errors import SessionLost as SessionLost
    from codomyrmex.concurrency.errors import UsedElsewhere as UsedElsewhere
    from codomyrmex.concurrency.etcd.embedded import EmbeddedEtcd as EmbeddedEtcd
    from codomyrmex.concurrency.etcd.transports.protocol import KV as KV
    from codomyrmex.concurrency.etcd.transports.protocol import Compare as Compare
    from codomyrmex.concurrency.etcd.transports.protocol import Delete as Delete
    from codomyrmex.concurrency.etcd.transports.protocol import Deleted as Deleted
    from codomyrmex.concurrency.etcd.transports.protocol import Done as Done
    from codomyrmex.concurrency.etcd.transports.protocol import Get as Get
    from codomyrmex.concurrency.etcd.transports.protocol import GetResult as GetResult
    from codomyrmex.concurrency.etcd.transports.protocol import Put as Put
    from codomyrmex.concurrency.etcd.transports.protocol import Target as Target
    from codomyrmex.concurrency.etcd.transports.protocol import TxnResult as TxnResult
    from codomyrmex.concurrency.loss import Loss as Loss
    from codomyrmex.concurrency.models import ForcedRelease as ForcedRelease
    from codomyrmex.concurrency.models import History as History
    from codomyrmex.concurrency.models import Leader as Leader
    from codomyrmex.concurrency.models import LockEvent as LockEvent
    from codomyrmex.concurrency.models import LockInfo as LockInfo
    from codomyrmex.concurrency.models import LockStats as LockStats
    from codomyrmex.concurrency.models import Member as Member
    from codomyrmex.concurrency.models import MemberEvent as MemberEvent
    from codomyrmex.concurrency.models import Owner as Owner
    from codomyrmex.concurrency.models import PastHold as PastHold
    from codomyrmex.concurrency.models import RateLimitInfo as RateLimitInfo
    from codomyrmex.concurrency.models import RateUse as RateUse
    from codomyrmex.concurrency.models import ReservationInfo as ReservationInfo
    from codomyrmex.concurrency.models import Routed as Routed
    from codomyrmex.concurrency.models import SemaphoreInfo as SemaphoreInfo
    from codomyrmex.concurrency.pool.cluster import ClusterPoolStats as ClusterPoolStats
    from codomyrmex.concurrency.pool.results import DeadLetterSink as DeadLetterSink
    from codomyrmex.concurrency.pool.results import PoolStats as PoolStats
    from codomyrmex.concurrency.pool.results import TaskResult as TaskResult
    from codomyrmex.concurrency.pool.worker_pool import AsyncWorkerPool as AsyncWorkerPool
    from codomyrmex.concurrency.rates.limiter import RateLimiter as RateLimiter
    from codomyrmex.concurrency.rates.limiter import Reserve as Reserve
    from codomyrmex.concurrency.rates.limiter import Spend as Spend
    from codomyrmex.concurrency.rates.rate import Rate as Rate
    from codomyrmex.concurrency.recipes.election import Campaign as Campaign
    from codomyrmex.concurrency.recipes.election import Election as Election
    from codomyrmex.concurrency.recipes.election import Term as Term
    from codomyrmex.concurrency.recipes.lock import DistributedLock as DistributedLock
    from codomyrmex.concurrency.recipes.manager import Acquisition as Acquisition
    from codomyrmex.concurrency.recipes.manager import JointAcquisition as JointAcquisition
    from codomyrmex.concurrency.recipes.manager import LockManager as LockManager
    from codomyrmex.concurrency.recipes.manager import Shared as Shared
    from codomyrmex.concurrency.recipes.membership import Group as Group
    from codomyrmex.concurrency.recipes.membership import Joining as Joining
    from codomyrmex.concurrency.recipes.membership import Membership as Membership
    from codomyrmex.concurrency.recipes.reservation import Reservation as Reservation
    from codomyrmex.concurrency.recipes.reserving import Reserving as Reserving
    from codomyrmex.concurrency.recipes.semaphore import Holding as Holding
    from codomyrmex.concurrency.recipes.semaphore import Permit as Permit
    from codomyrmex.concurrency.recipes.semaphore import Semaphore as Semaphore
    from codomyrmex.concurrency.retry import RetryPolicy as RetryPolicy
    from codomyrmex.concurrency.session import Session as Session
    from codomyrmex.concurrency.settings import EtcdOptions as EtcdOptions
    from codomyrmex.concurrency.settings import EtcdSettings as EtcdSettings
    from codomyrmex.concurrency.wait_graph import QueueName as QueueName
    from codomyrmex.concurrency.wait_graph import WaitEdge as WaitEdge
    from codomyrmex.concurrency.wait_graph import WaitNode as WaitNode
    from codomyrmex.concurrency.wait_graph import Waits as Waits
    from codomyrmex.concurrency.waitqueue.grant import Grant as Grant

_HOME = {
    "pool.cluster": ("ClusterPoolStats",),
    "pool.results": (
        "DeadLetterSink",
        "PoolStats",
        "TaskResult",
    ),
    "pool.worker_pool": ("AsyncWorkerPool",),
    "dead_letters.handlers": (
        "Attempt",
        "Retry",
        "Park",
        "Discard",
    ),
    "dead_letters.record": (
        "DeadLetter",
        "AttemptRecord",
    ),
    "dead_letters.queue": ("DeadLetterQueue",),
    "dead_letters.worker_handle": ("Worker",),
    "recipes.semaphore": (
        "Semaphore",
        "Permit",
        "Holding",
    ),
    "retry": ("RetryPolicy",),
    "errors": (
        "DeadLetterNotFound",
        "QueueFull",
        "LimitMismatch",
        "PoolClosed",
        "PayloadTooLarge",
        "ConcurrencyError",
        "Deadlock",
        "EtcdAuthError",
        "EtcdError",
        "EtcdQuotaExceeded",
        "EtcdRegressed",
        "EtcdUnavailable",
        "FencedWriteRejected",
        "InvalidHandle",
        "InvalidName",
        "LockLost",
        "LockTimeout",
        "NotHeld",
        "RateLimitInUse",
        "SemaphoreInUse",
        "SessionLost",
        "UsedElsewhere",
    ),
    "etcd.embedded": ("EmbeddedEtcd",),
    "etcd.transports.protocol": (
        "Compare",
        "Delete",
        "Deleted",
        "Done",
        "Get",
        "GetResult",
        "KV",
        "Put",
        "Target",
        "TxnResult",
    ),
    "recipes.election": ("Campaign", "Election", "Term"),
    "recipes.membership": ("Group", "Joining", "Membership"),
    "recipes.lock": ("DistributedLock",),
    "recipes.manager": ("Acquisition", "JointAcquisition", "LockManager", "Shared"),
    "models": (
        "SemaphoreInfo",
        "Routed",
        "ForcedRelease",
        "History",
        "Leader",
        "LockEvent",
        "LockInfo",
        "LockStats",
        "Member",
        "MemberEvent",
        "Owner",
        "PastHold",
        "RateLimitInfo",
        "RateUse",
        "ReservationInfo",
    ),
    "wait_graph": ("QueueName", "WaitEdge", "WaitNode", "Waits"),
    "rates.limiter": ("RateLimiter", "Reserve", "Spend"),
    "rates.rate": ("Rate",),
    "recipes.reservation": ("Reservation",),
    "recipes.reserving": ("Reserving",),
    "waitqueue.grant": ("Grant",),
    "loss": ("Loss",),
    "session": ("Session",),
    "settings": ("EtcdOptions", "EtcdSettings"),
}
_MODULE = {name: module for module, names in _HOME.items() for name in names}

__all__ = sorted(_MODULE)


def __getattr__(name: str) -> Any:
    module = _MODULE.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{module}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
