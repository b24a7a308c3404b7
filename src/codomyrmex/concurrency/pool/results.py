"""What users are given of a pool: the result of each task, and the pool's figures. Plain data."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, Protocol

from codomyrmex.concurrency.models import Routed

Status = Literal["ok", "failed", "timeout", "cancelled"]


@dataclass(frozen=True, slots=True)
class TaskResult:
    """What became of one task. ``error`` is never empty for a failure; ``elapsed_ms`` counts all attempts and the
    delays between them, ``wait_ms`` the time in the pool's queue. ``dead_letter_note`` says what there is to say of
    the dead letter: that it was spilled to a file, or could not be stored."""

    task_id: str
    success: bool
    result: Any = None
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

    def unwrap(self) -> Any:
        """The result; raises what the task raised if it failed."""
        if self.success:
            return self.result
        raise self.exception or RuntimeError(self.error)


@dataclass(frozen=True, slots=True)
class PoolStats:
    """A pool's figures at one moment, at which ``submitted`` is the sum of ``completed``, ``failed``, ``timed_out``,
    ``cancelled``, ``running`` and ``queued``. Of those ``running``, ``waiting`` wait for a lock, a permit or another
    attempt, and do no work. Times are in milliseconds, of tasks that ended; ``throughput`` is tasks
    ended per second over the last ten; ``loop_lag_ms`` how late the event loop last was."""

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
    """Where failed tasks go: a ``DeadLetterQueue``, as far as the pool knows."""

    async def route(
        self, *, operation: str, args: dict[str, Any], error: BaseException, metadata: dict[str, Any]
    ) -> Routed: ...
