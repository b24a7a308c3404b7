"""The data that a pool returns to its users: the result of each task, and the pool's figures."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, cast

from codomyrmex.concurrency.models import Routed

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    T = TypeVar("T", covariant=True, default=Any)  # `TaskResult` alone means `TaskResult[Any]`
else:
    from typing import TypeVar

    T = TypeVar("T", covariant=True)  # ``typing.TypeVar`` takes a default since Python 3.13

Status = Literal["ok", "failed", "timeout", "cancelled"]


@dataclass(frozen=True, slots=True)
class TaskResult(Generic[T]):
    """The result of one task of a function that returns a ``T``.

    ``error`` is never empty for a failure. ``elapsed_ms`` counts all attempts and the delays between them, ``wait_ms``
    the time in the pool's queue. ``dead_letter_note`` is set if the dead letter was spilled to a file or could not
    be stored.
    """

    task_id: str
    success: bool
    result: T | None = None
    error: str = ""
    elapsed_ms: float = 0.0
    status: Status = "ok"
    error_type: str = ""
    exception: BaseException | None = None
    traceback: str = ""
    attempts: int = 1
    wait_ms: float = 0.0
    dead_letter_id: str | None = None
    dead_letter_note: str = ""

    def unwrap(self) -> T:
        """The result. If the task failed, raises its exception."""
        if self.success:
            return cast(T, self.result)
        raise self.exception or RuntimeError(self.error)


class _Draft(Generic[T]):
    """A ``TaskResult`` that is being made: it has the same slots, and they can be assigned."""

    __slots__ = TaskResult.__slots__


def succeeded(task_id: str, value: Any, elapsed_ms: float, attempts: int, wait_ms: float) -> TaskResult[Any]:
    """The ``TaskResult`` of a task that succeeded.

    The ``__init__`` of a frozen dataclass sets each field by a call of ``object.__setattr__``, and that takes longer
    than all else that a short task costs. So the fields are assigned here, and then the object is frozen: it gets the
    class ``TaskResult``, which has the same slots.
    """
    draft: Any = _Draft()
    draft.task_id = task_id
    draft.success = True
    draft.result = value
    draft.error = ""
    draft.elapsed_ms = elapsed_ms
    draft.status = "ok"
    draft.error_type = ""
    draft.exception = None
    draft.traceback = ""
    draft.attempts = attempts
    draft.wait_ms = wait_ms
    draft.dead_letter_id = None
    draft.dead_letter_note = ""
    draft.__class__ = TaskResult
    return draft  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class PoolStats:
    """A pool's figures at one moment.

    ``submitted`` is the sum of ``completed``, ``failed``, ``timed_out``, ``cancelled``, ``running`` and ``queued``.
    ``waiting`` counts the running tasks that wait for a lock, a permit or another attempt. Times are in milliseconds,
    and of tasks that have ended. ``throughput`` is the number of tasks ended per second over the last ten seconds.
    ``loop_lag_ms`` is the last measured delay of the event loop.
    """

    submitted: int
    completed: int
    failed: int
    total_elapsed_ms: float
    running: int
    queued: int
    cancelled: int
    timed_out: int
    retried: int
    dead_lettered: int
    max_workers: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    throughput: float
    loop_lag_ms: float
    name: str
    host: str
    pid: int
    instance: str
    started_at: datetime
    waiting: int = 0


class DeadLetterSink(Protocol):
    """The part of a ``DeadLetterQueue`` that a pool uses: it stores failed tasks."""

    async def route(
        self, *, operation: str, args: dict[str, Any], error: BaseException, metadata: dict[str, Any]
    ) -> Routed:
        """Store a failed operation as a dead letter."""
