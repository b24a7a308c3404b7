"""The fleet's pools in view: each pool instance keeps one leased key with its figures; anybody can read and sum them.

A report never slows or fails a task: it is written by a task of its own, not more often than the interval and only when
something has changed. What goes wrong is logged, once until a report is written again, and tried again after the
interval; a reporter that ends although nobody closed it is logged too, and begins again. The key is bound to the
session's lease, so it goes with the process.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass

from pydantic import TypeAdapter

from codomyrmex.concurrency import decode, skipped_keys
from codomyrmex.concurrency.errors import ConcurrencyError
from codomyrmex.concurrency.etcd.commit import Request
from codomyrmex.concurrency.etcd.transports.protocol import KV, Get, Put
from codomyrmex.concurrency.keys import forms, next_key, nfc, prefix_end, segment_after, starting_with, text_in
from codomyrmex.concurrency.models import to_json
from codomyrmex.concurrency.pool.results import PoolStats
from codomyrmex.concurrency.session import Session, ready
from codomyrmex.concurrency.watching import snapshots

log = logging.getLogger("codomyrmex.concurrency")

_JITTER = 0.2
_PAGE = 500
_ADAPTER = TypeAdapter(PoolStats)
_SUMMED = (
    "submitted",
    "completed",
    "failed",
    "total_elapsed_ms",
    "running",
    "waiting",
    "queued",
    "cancelled",
    "timed_out",
    "retried",
    "dead_lettered",
    "max_workers",
    "throughput",
)


@dataclass(frozen=True, slots=True)
class ClusterPoolStats:
    """The pools of one name, one of each process, as last reported; the other fields are their sums."""

    name: str
    instances: tuple[PoolStats, ...]
    submitted: int = 0
    completed: int = 0
    failed: int = 0
    total_elapsed_ms: float = 0.0
    running: int = 0
    queued: int = 0
    cancelled: int = 0
    timed_out: int = 0
    retried: int = 0
    dead_lettered: int = 0
    max_workers: int = 0
    throughput: float = 0.0
    waiting: int = 0

    @property
    def hosts(self) -> tuple[str, ...]:
        return tuple(sorted({pool.host for pool in self.instances}))


class Reporter:
    """Writes a pool's figures to etcd every ``interval`` seconds, with jitter, when ``changes`` has moved."""

    def __init__(
        self,
        session: Session | None,
        interval: float,
        stats: Callable[[], PoolStats],
        changes: Callable[[], int],
    ) -> None:
        self._given = session
        self._interval = interval
        self._stats = stats
        self._changes = changes
        self._name = stats().name
        self._task: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._written: tuple[int, Session] | None = None
        self._told = ""
        self._closed = False

    def start(self) -> None:
        """Report from now on; on the running loop, if it began on another."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._loop = loop
            self._begin()

    async def close(self) -> None:
        """Take the report back, as far as etcd answers."""
        self._closed = True
        if self._task and self._loop is asyncio.get_running_loop():
            self._task.cancel()
            await asyncio.wait([self._task])
        if self._written:
            session = self._written[1]
            try:
                async with asyncio.timeout(1.0):
                    await session.remover.remove(self._key(session))
            except (ConcurrencyError, TimeoutError):
                pass  # the lease takes it along
            except Exception as error:
                log.warning("the report of the pool %r may stay as long as its session: %r", self._name, error)

    def _begin(self) -> None:
        self._task = asyncio.create_task(self._run(), name="pool-reporter")
        self._task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """It never ends by itself. A loop that is ending takes all tasks along, and never comes to the timer."""
        why = "it was cancelled" if task.cancelled() else repr(task.exception())
        if not self._closed:
            task.get_loop().call_later(self._interval, self._again, task, why)

    def _again(self, ended: asyncio.Task[None], why: str) -> None:
        if not self._closed and self._task is ended:
            log.warning("the reporter of the pool %r ended (%s) and begins again", self._name, why)
            self._begin()

    async def _run(self) -> None:
        while True:
            try:
                await self._write()
                self._told = ""
            except Exception as error:  # whatever it is, the tasks of the pool have nothing to do with it
                self._tell(error)
            await asyncio.sleep(self._interval * random.uniform(1 - _JITTER, 1 + _JITTER))

    def _tell(self, error: Exception) -> None:
        """Log it, once in a row for each kind; with its traceback if it is none that etcd may cause."""
        kind = type(error).__qualname__
        if self._told != kind:
            unexpected = None if isinstance(error, ConcurrencyError) else error
            log.warning("the pool %r cannot report its figures: %s: %s", self._name, kind, error, exc_info=unexpected)
        self._told = kind

    async def _write(self) -> None:
        session = await ready(self._given)
        changes = self._changes()
        if self._written == (changes, session):
            return
        stats = self._stats()
        key = self._key(session)
        put = Put(key, json.dumps(to_json(stats)).encode(), session.id)
        await session.committer.commit(Request((key,), (put,), again=()))
        self._written = changes, session

    def _key(self, session: Session) -> bytes:
        stats = self._stats()
        return session.layout.pool_report(stats.name, session.id, stats.instance)


async def pools(session: Session, prefix: str = "") -> list[ClusterPoolStats]:
    """Every pool that reports and whose name starts with ``prefix``, by name."""
    found: dict[str, list[PoolStats]] = {}
    for form in forms(prefix):
        async for kv in _under(session, starting_with(session.layout.pools, form)):
            name = text_in(segment_after(session.layout.pools, kv.key))
            stats = decode.record(_ADAPTER, kv.value)
            if not name or stats is None or not kv.lease:
                skipped_keys.skip(kv.key, "pools' reports")
            else:
                found.setdefault(nfc(name), []).append(stats)
    return [_summed(name, instances) for name, instances in sorted(found.items())]


def follow(session: Session, prefix: str = "") -> AsyncGenerator[list[ClusterPoolStats], None]:
    """The same as ``pools``, at once and again after each report. Raises ``SessionLost`` when the session is over."""
    return snapshots(session, reports(session), lambda: pools(session, prefix))


async def _under(session: Session, start: bytes) -> AsyncIterator[KV]:
    """Every key under a prefix, page by page."""
    end = prefix_end(start)
    while True:
        page = await session.transport.get(Get(start, end, limit=_PAGE))
        for kv in page.kvs:
            yield kv
        if len(page.kvs) < _PAGE:
            return
        start = next_key(page.kvs[-1].key)


async def cluster_stats(session: Session | None, name: str) -> ClusterPoolStats:
    """The pools of one name; without instances if none reports."""
    name = nfc(name)
    found = [pool for pool in await pools(await ready(session), name) if pool.name == name]
    return found[0] if found else ClusterPoolStats(name, ())


def _summed(name: str, instances: list[PoolStats]) -> ClusterPoolStats:
    ordered = tuple(sorted(instances, key=lambda pool: (pool.host, pool.pid, pool.instance)))
    return ClusterPoolStats(name, ordered, **{f: sum(getattr(pool, f) for pool in ordered) for f in _SUMMED})


def reports(session: Session) -> bytes:
    """The prefix of every pool's report."""
    return session.layout.pools
