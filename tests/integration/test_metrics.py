"""The events for observers, and the metrics that Prometheus reads."""

from __future__ import annotations

import asyncio
import logging
import urllib.request
from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from codomyrmex.concurrency import (
    AsyncWorkerPool,
    DeadLetterQueue,
    DistributedLock,
    EmbeddedEtcd,
    FencedWriteRejected,
    LockManager,
    Semaphore,
    Session,
    prometheus,
    telemetry,
)
from codomyrmex.concurrency.dead_letters.stats import Census
from codomyrmex.concurrency.dead_letters.store import Store
from codomyrmex.concurrency.prometheus import MAX_POOLS, Metrics
from tests.helpers import eventually, queue_of, revoke


class Told(telemetry.Observer):
    def __init__(self) -> None:
        self.what: list[tuple[object, ...]] = []

    def granted(self, kind: str, name: str, waited: float, contended: bool) -> None:
        self.what.append(("granted", kind, name, contended))

    def released(self, kind: str, name: str, held: float) -> None:
        self.what.append(("released", kind, name))

    def lost(self, kind: str, name: str, held: float) -> None:
        self.what.append(("lost", kind, name))
        raise RuntimeError("an observer that fails harms nobody")

    def write_rejected(self, kind: str, name: str) -> None:
        self.what.append(("rejected", kind, name))

    def session_lost(self, session: int) -> None:
        self.what.append(("session lost", session))


@pytest.fixture
def told() -> Iterator[Told]:
    observer = Told()
    telemetry.observe(observer)
    telemetry.observe(observer)
    yield observer
    telemetry.ignore(observer)


async def test_an_observer_is_told_each_step_once(session: Session, other: Session, told: Told) -> None:
    lock = DistributedLock("x", session)
    await lock.acquire()
    waiting = asyncio.create_task(DistributedLock("x", other).acquire())
    await queue_of(session, "x", 2)
    await lock.release()
    grant = await waiting
    async with LockManager(session).acquire("y", on_loss="notify") as mine:
        await LockManager(other).force_release("y", reason="test")
        await asyncio.wait_for(mine.lost.wait(), 5)
        with pytest.raises(FencedWriteRejected):
            await mine.put("/telemetry", "late")
    async with Semaphore("s", max_concurrent=1, session=session):
        pass
    await revoke(session, other.id)
    await asyncio.wait_for(grant.lost.wait(), 5)
    await eventually(lambda: len(told.what) == 10)
    assert told.what[:8] == [
        ("granted", "lock", "x", False),
        ("released", "lock", "x"),
        ("granted", "lock", "x", True),
        ("granted", "lock", "y", False),
        ("lost", "lock", "y"),
        ("rejected", "lock", "y"),
        ("granted", "semaphore", "s", False),
        ("released", "semaphore", "s"),
    ]
    assert sorted(told.what[8:]) == [("lost", "lock", "x"), ("session lost", other.id)]  # in whatever order etcd tells


async def test_a_session_that_closes_is_no_loss(etcd: EmbeddedEtcd, namespace: str, told: Told) -> None:
    async with Session(endpoints=etcd.endpoint, namespace=namespace) as session:
        await DistributedLock("x", session).acquire()
    assert told.what == [("granted", "lock", "x", False)]


async def test_losses_are_logged_with_their_facts(session: Session, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "codomyrmex.concurrency")
    grant = await DistributedLock("x", session, on_loss="notify").acquire()
    await revoke(session, session.id)
    await asyncio.wait_for(grant.lost.wait(), 5)
    by_session, by_lock = (vars(record) for record in caplog.records[-2:])
    assert by_session["codomyrmex_session"] == by_lock["codomyrmex_session"] == f"{session.id:016x}"
    assert (by_lock["codomyrmex_kind"], by_lock["codomyrmex_name"]) == ("lock", "x")
    assert by_lock["codomyrmex_token"] == grant.token


def scraped(port: int) -> dict[tuple[str, ...], float]:
    """Every sample, by its name and its labels' values."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as response:
        text = response.read().decode()
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_prometheus_reads_what_happened_and_what_is(session: Session, other: Session) -> None:
    queue = DeadLetterQueue("q", session=session)
    await queue.add(operation="x", args={}, error="e")
    async with Metrics(CollectorRegistry(), dead_letters=[queue]) as metrics, AsyncWorkerPool(2, name="p") as pool:
        port = metrics.serve(port=0)
        lock = DistributedLock("x", session)
        await lock.acquire()
        waiting = asyncio.create_task(DistributedLock("x", other).acquire())
        await queue_of(session, "x", 2)
        await pool.map(str, range(5))
        await asyncio.sleep(0.05)
        now = await asyncio.to_thread(scraped, port)
        assert now["codomyrmex_waiting", "lock"] == 1 and now["codomyrmex_waiting", "semaphore"] == 0
        assert 0.01 < now["codomyrmex_oldest_wait_seconds", "lock"] < 5
        assert now["codomyrmex_holding", "lock"] == 1 and now["codomyrmex_holding", "semaphore"] == 0
        assert 0.01 < now["codomyrmex_oldest_hold_seconds", "lock"] < 5
        assert 0 < now["codomyrmex_session_deadline_seconds",] <= 2
        assert now["codomyrmex_pool_tasks", "p", "completed"] == 5
        assert now["codomyrmex_grants_total", "lock"] == 1 and now["codomyrmex_losses_total", "lock"] == 0
        await lock.release()
        await waiting
        now = await asyncio.to_thread(scraped, port)
        assert now["codomyrmex_oldest_hold_seconds", "lock"] < now["codomyrmex_wait_seconds_sum", "lock"]
        parked = await queue.add(operation="x", args={}, error="e")
        await queue.discard(parked, reason="test")

        async def counted() -> bool:
            found = await asyncio.to_thread(scraped, port)
            return found.get(("codomyrmex_dead_letters", "q", "resolved")) == 1

        await eventually(counted)
        then = await asyncio.to_thread(scraped, port)
        assert then["codomyrmex_dead_letters", "q", "waiting"] == 1
        assert 0 < then["codomyrmex_dead_letters_oldest_seconds", "q"] < 60
        assert then["codomyrmex_handoffs_total", "lock"] == 1 and then["codomyrmex_releases_total", "lock"] == 1
        assert then["codomyrmex_wait_seconds_count", "lock"] == 2
        assert then["codomyrmex_commit_batch_size_count",] >= 3
        assert then["codomyrmex_fenced_writes_rejected_total",] == 0
        await queue.purge()

        async def gone() -> bool:
            found = await asyncio.to_thread(scraped, port)
            return found.get(("codomyrmex_dead_letters", "q", "resolved")) == 0

        await eventually(gone)
    assert telemetry.observers == ()


async def test_counting_dead_letters_begins_anew_after_whatever_ended_it(
    session: Session, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Meanwhile no figure is shown, for one of long ago would pass for one of now."""
    monkeypatch.setattr(prometheus, "_PAUSE", 0.3)
    queue = DeadLetterQueue("q", session=session)
    await queue.add(operation="x", args={}, error="e")
    fail = asyncio.Event()
    original = Census.follow

    async def failing(self: Census, store: Store) -> None:
        async with asyncio.TaskGroup() as group:
            following = group.create_task(original(self, store))
            await fail.wait()
            following.cancel()
        fail.clear()
        raise RuntimeError("a bug that nobody expects")

    monkeypatch.setattr(Census, "follow", failing)
    async with Metrics(CollectorRegistry(), dead_letters=[queue]) as metrics:
        port = metrics.serve(port=0)

        async def counted() -> float | None:
            return (await asyncio.to_thread(scraped, port)).get(("codomyrmex_dead_letters", "q", "waiting"))

        await eventually(counted)
        fail.set()

        async def gone() -> bool:
            return await counted() is None

        await eventually(gone)
        assert "nobody expects" in caplog.text
        assert await eventually(counted) == 1


async def test_labels_are_bounded() -> None:
    kept = [AsyncWorkerPool(1, name=f"pool {number}") for number in range(MAX_POOLS + 20)]
    metrics = Metrics(CollectorRegistry())
    found = await asyncio.to_thread(scraped, metrics.serve(port=0))
    pools = {key[1] for key in found if key[0] == "codomyrmex_pool_tasks"}
    assert "other" in pools and len(pools) == MAX_POOLS + 1 and len(kept) > MAX_POOLS
    await asyncio.to_thread(metrics.close)
    metrics.close()


async def test_it_listens_on_loopback_alone_unless_told_otherwise() -> None:
    metrics = Metrics(CollectorRegistry())
    metrics.serve(port=0)
    assert metrics._servers[0].server_address[0] == "127.0.0.1"
    await asyncio.to_thread(metrics.close)


async def test_a_task_that_waits_for_a_permit_does_not_run(session: Session) -> None:
    permit, going, begun = asyncio.Semaphore(1), asyncio.Event(), []

    async def work(number: int) -> None:
        begun.append(number)
        await going.wait()

    async with Metrics(CollectorRegistry()) as metrics, AsyncWorkerPool(3, name="p", session=session) as pool:
        port = metrics.serve(port=0)
        running = asyncio.create_task(pool.map(work, range(5), semaphore=permit))
        await eventually(lambda: pool.stats().waiting == 2 and begun)
        stats, now = pool.stats(), await asyncio.to_thread(scraped, port)
        assert (stats.running, stats.queued) == (3, 2)
        assert stats.submitted == stats.running + stats.queued
        told = {state: now["codomyrmex_pool_tasks", "p", state] for state in ("running", "waiting", "queued")}
        assert told == {"running": 1, "waiting": 2, "queued": 2}
        going.set()
        await running
        assert (pool.stats().waiting, pool.stats().running) == (0, 0)
