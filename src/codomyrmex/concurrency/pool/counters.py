"""A pool's counters. At every moment each task is counted as exactly one of queued, running and ended."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from codomyrmex.concurrency.pool.histogram import Histogram
from codomyrmex.concurrency.pool.results import PoolStats, Status

_WINDOW = 10  # seconds over which the throughput is averaged
_SAMPLE = 0.25  # seconds between measurements of the loop's delay


class Meter:
    """Counts tasks as they move from queued to running to ended; ``stats`` returns all the figures."""

    def __init__(self, name: str, max_workers: int) -> None:
        self._name = name
        self._max_workers = max_workers
        self._host = socket.gethostname()
        self._instance = secrets.token_hex(8)
        self._started_at = datetime.now(UTC)
        self._ended: dict[Status, int] = {"ok": 0, "failed": 0, "timeout": 0, "cancelled": 0}
        self._elapsed_ms = 0.0
        self._times = Histogram()
        self._per_second: deque[list[int]] = deque(maxlen=_WINDOW + 1)
        self._second_ends = 0
        self._lag = 0.0
        self._sampling: asyncio.TimerHandle | None = None
        self.queued = self.running = self.waiting = self.submitted = 0
        self.retried = self.dead_lettered = 0
        self.changes = 0

    def submit(self) -> None:
        """Count a new task as queued."""
        self.submitted += 1
        self.queued += 1
        self.changes += 1

    def begin(self) -> None:
        """Count a queued task as running."""
        self.queued -= 1
        self.running += 1
        if self._sampling is None:
            self._sample(time.perf_counter())

    @contextmanager
    def wait(self) -> Iterator[None]:
        """Count a running task as waiting while the block runs."""
        self.waiting += 1
        self.changes += 1
        try:
            yield
        finally:
            self.waiting -= 1
            self.changes += 1

    def end(self, status: Status, elapsed_ms: float, now: float) -> None:
        """Count the end of a running task. ``now`` is a reading of ``time.perf_counter``."""
        self.running -= 1
        self._ended[status] += 1
        self.changes += 1
        self._elapsed_ms += elapsed_ms
        self._times.add(elapsed_ms)
        if now >= self._second_ends:
            self._second_ends = int(now) + 1
            self._per_second.append([int(now), 0])
        self._per_second[-1][1] += 1

    def drop(self, status: Status = "cancelled") -> None:
        """Count the end of a task that never began."""
        self.queued -= 1
        self._ended[status] += 1
        self.changes += 1

    def leave_loop(self) -> None:
        """Forget the timer of an event loop that was closed."""
        self._sampling = None

    def where(self) -> dict[str, object]:
        """The host and the process id of the pool, for dead letters."""
        return {"host": self._host, "pid": os.getpid()}

    def stats(self) -> PoolStats:
        """All figures right now."""
        return PoolStats(
            submitted=self.submitted,
            completed=self._ended["ok"],
            failed=self._ended["failed"],
            total_elapsed_ms=self._elapsed_ms,
            running=self.running,
            queued=self.queued,
            cancelled=self._ended["cancelled"],
            timed_out=self._ended["timeout"],
            retried=self.retried,
            dead_lettered=self.dead_lettered,
            max_workers=self._max_workers,
            p50_ms=self._times.percentile(0.5),
            p95_ms=self._times.percentile(0.95),
            p99_ms=self._times.percentile(0.99),
            throughput=self._throughput(),
            loop_lag_ms=self._lag,
            name=self._name,
            host=self._host,
            pid=os.getpid(),
            instance=self._instance,
            started_at=self._started_at,
            waiting=self.waiting,
        )

    def _throughput(self) -> float:
        now = time.perf_counter()
        recent = [count for second, count in self._per_second if second >= now - _WINDOW]
        age = (datetime.now(UTC) - self._started_at).total_seconds()
        return sum(recent) / max(1.0, min(_WINDOW, age))

    def _sample(self, expected: float) -> None:
        """Measure the delay of the event loop by a timer, repeatedly while tasks run."""
        now = time.perf_counter()
        self._lag = max(0.0, now - expected) * 1000
        if self.running:
            self._sampling = asyncio.get_running_loop().call_later(_SAMPLE, self._sample, now + _SAMPLE)
        else:
            self._sampling = None
