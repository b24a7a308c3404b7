"""Metrics for Prometheus (extra ``prometheus``): counters of the observed events, and gauges read at each scrape.

The only labels are kinds, states, dimensions, and the names of pools, of rate limiters and of the given dead letter
queues; never a lock's name.

    codomyrmex_grants_total{kind}            codomyrmex_wait_seconds{kind}        histogram
    codomyrmex_handoffs_total{kind}          codomyrmex_hold_seconds{kind}        histogram
    codomyrmex_releases_total{kind}          codomyrmex_commit_batch_size         histogram
    codomyrmex_losses_total{kind}            codomyrmex_session_deadline_seconds  the least of this process's sessions
    codomyrmex_fenced_writes_rejected_total  codomyrmex_waiting{kind}, codomyrmex_oldest_wait_seconds{kind}
    codomyrmex_sessions_lost_total           codomyrmex_holding{kind}, codomyrmex_oldest_hold_seconds{kind}
    codomyrmex_deadlocks_total               cycles of waits in which waiters of this process take part
    codomyrmex_pool_tasks{pool,state}        each task has one state; "waiting" tasks have begun, and wait
    codomyrmex_dead_letters{queue,state}, codomyrmex_dead_letters_oldest_seconds{queue}
    codomyrmex_rate_granted_total{limiter,dimension}, codomyrmex_rate_given_back_total{limiter,dimension}
    codomyrmex_rate_overdraft_total{limiter,dimension}    amounts, as the calls of this process count them
    codomyrmex_rate_pauses_total{limiter}                 by this process; each pauses the whole fleet
    codomyrmex_rate_wait_seconds{limiter}                 histogram
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter as Tally
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram, start_http_server
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from codomyrmex.concurrency import clock, telemetry
from codomyrmex.concurrency.dead_letters.queue import DeadLetterQueue
from codomyrmex.concurrency.dead_letters.record import State
from codomyrmex.concurrency.dead_letters.stats import Census
from codomyrmex.concurrency.errors import ConcurrencyError
from codomyrmex.concurrency.pool.worker_pool import pools
from codomyrmex.concurrency.session_core import open_sessions

log = logging.getLogger("codomyrmex.concurrency")

MAX_POOLS = 50  # the number of pool names in labels; further pools are summed up as "other"
MAX_LIMITERS = 50  # the same of rate limiters
_KINDS = ("lock", "semaphore", "path lock", "election", "group")
_STATES: tuple[State, ...] = ("waiting", "running", "parked", "resolved")
_SECONDS = (0.001, 0.005, 0.025, 0.1, 0.5, 1, 5, 15, 60, 300, 1800)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
_PAUSE = 5.0  # seconds before a failed watch is begun again


class Metrics(telemetry.Observer):
    """The metrics of this process: ``async with Metrics() as metrics: metrics.serve()``.

    Args:
        registry: the registry of the metrics; prometheus_client's own when left out.
        dead_letters: the queues to count, by one watch each, while the ``async with`` block runs.

    Without queues no event loop is needed: make a ``Metrics``, and ``close`` it at the end.
    """

    def __init__(self, registry: CollectorRegistry | None = None, dead_letters: Sequence[DeadLetterQueue] = ()) -> None:
        self._registry = registry or REGISTRY
        self._queues = {queue.name: queue for queue in dead_letters}
        self._censuses: dict[str, Census] = {name: Census() for name in self._queues}
        self._following: list[asyncio.Task[None]] = []
        self._servers: list[Any] = []
        self._made: list[Any] = []
        self._grants = self._counter("grants", "Locks and permits granted")
        self._handoffs = self._counter("handoffs", "Grants that another holder had to hand off")
        self._releases = self._counter("releases", "Locks and permits given back")
        self._losses = self._counter("losses", "Locks and permits that could no longer be trusted")
        self._rejected = self._counter("fenced_writes_rejected", "Fenced writes refused", ())
        self._sessions_lost = self._counter("sessions_lost", "Leases gone, but for sessions that were closed", ())
        self._deadlocks = self._counter("deadlocks", "Cycles of waits with waiters of this process", ())
        self._waits = self._histogram("wait_seconds", "Time from the request to the grant", _SECONDS)
        self._holds = self._histogram("hold_seconds", "Time from the grant to the release", _SECONDS)
        self._batches = self._histogram("commit_batch_size", "Requests in one transaction", _SIZES, ())
        amounts = ("limiter", "dimension")
        self._rate_granted = self._counter("rate_granted", "Amounts that rate limiters granted", amounts)
        self._rate_given_back = self._counter("rate_given_back", "Amounts reserved, but not used", amounts)
        self._rate_overdraft = self._counter("rate_overdraft", "Amounts used beyond those reserved", amounts)
        self._rate_pauses = self._counter("rate_pauses", "Pauses of rate limiters by this process", ("limiter",))
        self._rate_waits = self._histogram("rate_wait_seconds", "Time until the grant", _SECONDS, ("limiter",))
        self._limiters: set[str] = set()
        for kind in _KINDS:  # each counter begins at 0, so that a rate includes its first event
            for counter in (self._grants, self._handoffs, self._releases, self._losses):
                counter.labels(kind)
        self._registry.register(self)
        telemetry.observe(self)

    def serve(self, port: int = 9464, address: str = "127.0.0.1") -> int:
        """Serve ``/metrics``, on loopback unless told otherwise; returns the port (0 chooses a free one)."""
        server, _ = start_http_server(port, address, self._registry)
        self._servers.append(server)
        return int(server.server_port)

    def close(self) -> None:
        """Stop serving and counting, and remove the metrics from the registry."""
        telemetry.ignore(self)
        servers, self._servers = self._servers, []
        for server in servers:
            server.shutdown()
            server.server_close()
        made, self._made = self._made, []
        for metric in (*made, *([self] if made else [])):
            self._registry.unregister(metric)

    async def __aenter__(self) -> Metrics:
        self._following = [asyncio.create_task(self._follow(name)) for name in self._queues]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._following:
            task.cancel()
        await asyncio.gather(*self._following, return_exceptions=True)
        await asyncio.to_thread(self.close)

    # The methods of an observer

    def granted(self, kind: str, name: str, waited: float, contended: bool) -> None:
        """Count a grant and its wait. The slices of a rate limit are not counted: ``rate_granted`` counts calls."""
        if kind not in _KINDS:
            return
        self._grants.labels(kind).inc()
        self._waits.labels(kind).observe(waited)
        if contended:
            self._handoffs.labels(kind).inc()

    def released(self, kind: str, name: str, held: float) -> None:
        """Count a release and its hold."""
        self._releases.labels(kind).inc()
        self._holds.labels(kind).observe(held)

    def lost(self, kind: str, name: str, held: float) -> None:
        """Count a loss."""
        self._losses.labels(kind).inc()

    def write_rejected(self, kind: str, name: str) -> None:
        """Count a fenced write that was refused."""
        self._rejected.inc()

    def committed(self, requests: int) -> None:
        """Count a transaction by its number of requests."""
        self._batches.observe(requests)

    def deadlock(self, waiters: int) -> None:
        """Count a deadlock."""
        self._deadlocks.inc()

    def session_lost(self, session: int) -> None:
        """Count a lost session."""
        self._sessions_lost.inc()

    def rate_granted(self, name: str, cost: Mapping[str, int], waited: float) -> None:
        """Count the amounts of a call and its wait."""
        limiter = self._limiter(name)
        _add(self._rate_granted, limiter, cost)
        self._rate_waits.labels(limiter).observe(waited)

    def rate_used(self, name: str, given_back: Mapping[str, int], overdraft: Mapping[str, int]) -> None:
        """Count what a call gives back, and what it used beyond its cost."""
        limiter = self._limiter(name)
        _add(self._rate_given_back, limiter, given_back)
        _add(self._rate_overdraft, limiter, overdraft)

    def rate_paused(self, name: str, seconds: float) -> None:
        """Count a pause."""
        self._rate_pauses.labels(self._limiter(name)).inc()

    def _limiter(self, name: str) -> str:
        """The label of a rate limiter: its name, or "other" when there are many."""
        if name not in self._limiters and len(self._limiters) >= MAX_LIMITERS:
            return "other"
        self._limiters.add(name)
        return name

    # Gauges, read at each scrape in the server's thread

    def describe(self) -> Iterable[Metric]:
        """Return no metric: nothing is read at registration."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """The gauges, with their values right now."""
        sessions = open_sessions()
        deadline = GaugeMetricFamily(
            "codomyrmex_session_deadline_seconds", "Time for which the least trusted session may still be trusted"
        )
        if sessions:
            deadline.add_metric((), min(session.deadline() for session in sessions))
        yield deadline
        yield from _since(
            [waits for session in sessions for waits in session.waits()],
            ("waiting", "Waiters of this process"),
            ("oldest_wait_seconds", "For how long the first of them has waited"),
        )
        yield from _since(
            [holds for session in sessions for holds in session.holds()],
            ("holding", "Locks and permits held by this process"),
            ("oldest_hold_seconds", "For how long the first of them has been held, from its grant"),
        )
        yield self._pool_tasks()
        yield from self._dead_letters()

    @staticmethod
    def _pool_tasks() -> Metric:
        """The tasks of all pools, by pool and state."""
        tasks: Tally[tuple[str, str]] = Tally()
        names: set[str] = set()
        for pool in pools():
            stats = pool.stats()
            name = stats.name if stats.name in names or len(names) < MAX_POOLS else "other"
            names.add(name)
            for state in ("queued", "waiting", "completed", "failed", "timed_out", "cancelled"):
                tasks[name, state] += getattr(stats, state)
            tasks[name, "running"] += stats.running - stats.waiting
        family = GaugeMetricFamily("codomyrmex_pool_tasks", "Tasks of this process's pools", labels=("pool", "state"))
        for labels, number in tasks.items():
            family.add_metric(labels, number)
        return family

    def _dead_letters(self) -> Iterator[Metric]:
        """The dead letters of the given queues, and the age of the oldest one of each."""
        letters = GaugeMetricFamily("codomyrmex_dead_letters", "Dead letters in etcd", labels=("queue", "state"))
        oldest = GaugeMetricFamily(
            "codomyrmex_dead_letters_oldest_seconds", "Age of the oldest that is not resolved", labels=("queue",)
        )
        for name, census in self._censuses.items():
            if not census.current:  # an old figure would mislead; none is shown
                continue
            counts, added = census.counts(), census.oldest()
            for state in _STATES:
                letters.add_metric((name, state), counts[state])
            oldest.add_metric((name,), max(0.0, (datetime.now(UTC) - added).total_seconds()) if added else 0.0)
        yield letters
        yield oldest

    async def _follow(self, name: str) -> None:
        """Keep the counts of a dead letter queue; begin again after a failure."""
        while True:
            try:
                await self._censuses[name].follow(await self._queues[name]._opened())
            except ConcurrencyError as error:
                log.warning("the dead letters of %r are not counted for now: %s", name, error)
            except Exception:
                log.exception("the dead letters of %r are not counted for now", name)
            self._censuses[name].forget()
            await asyncio.sleep(_PAUSE)

    def _counter(self, name: str, text: str, labels: Sequence[str] = ("kind",)) -> Counter:
        metric = Counter(f"codomyrmex_{name}", text, labels, registry=self._registry)
        self._made.append(metric)
        return metric

    def _histogram(
        self, name: str, text: str, buckets: Sequence[float], labels: Sequence[str] = ("kind",)
    ) -> Histogram:
        metric = Histogram(f"codomyrmex_{name}", text, labels, buckets=buckets, registry=self._registry)
        self._made.append(metric)
        return metric


def _add(counter: Counter, limiter: str, amounts: Mapping[str, int]) -> None:
    for dimension, amount in amounts.items():
        counter.labels(limiter, dimension).inc(amount)


def _since(found: list[tuple[str, float]], counted: tuple[str, str], oldest: tuple[str, str]) -> Iterator[Metric]:
    """Two gauges by kind: the number of items, and the age of the oldest in seconds."""
    numbers, ages = (
        GaugeMetricFamily(f"codomyrmex_{name}", text, labels=("kind",)) for name, text in (counted, oldest)
    )
    for kind in _KINDS:
        began = [since for what, since in found if what == kind]
        numbers.add_metric((kind,), len(began))
        ages.add_metric((kind,), clock.now() - min(began) if began else 0.0)
    yield numbers
    yield ages
