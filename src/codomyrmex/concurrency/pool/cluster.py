"""The figures of all pools: reads the reports that pools write to etcd, and sums them by name."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass

from pydantic import TypeAdapter

from codomyrmex.concurrency import decode, skipped_keys
from codomyrmex.concurrency.etcd.scan import keys_under
from codomyrmex.concurrency.keys import forms, nfc, segment_after, starting_with, text_in
from codomyrmex.concurrency.pool.reporting import reports
from codomyrmex.concurrency.pool.results import PoolStats
from codomyrmex.concurrency.session import Session, ready
from codomyrmex.concurrency.session_core import SessionCore
from codomyrmex.concurrency.watching import snapshots

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
        """The hosts on which its instances run, sorted."""
        return tuple(sorted({pool.host for pool in self.instances}))


async def pools(session: SessionCore, prefix: str = "") -> list[ClusterPoolStats]:
    """Every pool that reports and whose name starts with ``prefix``, by name."""
    found: dict[str, list[PoolStats]] = {}
    for form in forms(prefix):
        async for kv in keys_under(session.transport, starting_with(session.layout.pools, form), size=_PAGE):
            name = text_in(segment_after(session.layout.pools, kv.key))
            stats = decode.record(_ADAPTER, kv.value)
            if not name or stats is None or not kv.lease:
                skipped_keys.skip(kv.key, "pools' reports")
            else:
                found.setdefault(nfc(name), []).append(stats)
    return [_summed(name, instances) for name, instances in sorted(found.items())]


def follow(session: SessionCore, prefix: str = "") -> AsyncGenerator[list[ClusterPoolStats], None]:
    """Yield the result of ``pools`` at once and after each report. Raises ``SessionLost`` when the session is over."""
    return snapshots(session, reports(session), lambda: pools(session, prefix))


async def cluster_stats(session: Session | None, name: str) -> ClusterPoolStats:
    """The pools of one name; without instances if none reports."""
    name = nfc(name)
    found = [pool for pool in await pools(await ready(session), name) if pool.name == name]
    return found[0] if found else ClusterPoolStats(name, ())


def _summed(name: str, instances: list[PoolStats]) -> ClusterPoolStats:
    ordered = tuple(sorted(instances, key=lambda pool: (pool.host, pool.pid, pool.instance)))
    return ClusterPoolStats(name, ordered, **{f: sum(getattr(pool, f) for pool in ordered) for f in _SUMMED})
