"""Deadlocks: processes, tasks and threads that lock each other in are told, one gives up, and nobody else is hurt."""

from __future__ import annotations

import asyncio
import logging
import random
import threading
import time
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from codomyrmex.concurrency import (
    AsyncWorkerPool,
    Deadlock,
    DistributedLock,
    Election,
    EmbeddedEtcd,
    EtcdUnavailable,
    LockLost,
    LockManager,
    LockTimeout,
    Semaphore,
    Session,
    SessionLost,
    Waits,
)
from codomyrmex.concurrency.prometheus import Metrics
from codomyrmex.concurrency.session import core_of
from codomyrmex.concurrency.waitqueue import deadlocks
from codomyrmex.concurrency.waitqueue.deadlocks import read_waits
from tests.helpers import counting, entries, eventually, queue_of, revoke


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiters look at the first tick, and again at each."""
    monkeypatch.setattr(deadlocks, "_FIRST", 0.0)
    monkeypatch.setattr(deadlocks, "_AGAIN", 0.1)


class Reads:
    """Looks at the graph, in place of the library's own: they are counted, and may fail or last."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.number = 0
        self.failures: list[Exception] = []
        self.gate: asyncio.Event | None = None
        monkeypatch.setattr(deadlocks, "read_waits", self)

    async def __call__(self, session: Any) -> Waits:
        self.number += 1
        if self.failures:
            raise self.failures.pop()
        if self.gate:
            await self.gate.wait()
        return await read_waits(session)


# Tasks


class Two:
    """Two tasks in two sessions: each holds one of two locks, and then waits for the other one's."""

    def __init__(self, first: Session, second: Session, options: tuple[Any, Any] = ("fail", "fail")) -> None:
        self.managers = LockManager(first), LockManager(second)
        self.options = options
        self.barrier = asyncio.Barrier(2)
        self.holding: list[Any] = [None, None]
        self.caught: list[BaseException | None] = [None, None]
        self.caught_at: list[Any] = [None, None]

    async def one(self, number: int) -> str:
        mine, others = ("a", "b") if number == 0 else ("b", "a")
        async with self.managers[number].acquire(mine) as grant:
            self.holding[number] = grant
            await self.barrier.wait()
            await asyncio.sleep(0.05 * number)  # so that the second one is the younger
            try:
                async with self.managers[number].acquire(others, deadlock=self.options[number]):
                    return "granted"
            except Deadlock as error:
                self.caught[number] = error
                await grant.put("/elsewhere", "still held")
                assert not grant.lost.is_set()
                return "deadlock"

    def start(self) -> list[asyncio.Task[str]]:
        return [asyncio.create_task(self.one(number), name=f"task {number}") for number in (0, 1)]


async def test_the_victims_block_keeps_what_it_holds_until_it_is_left(
    session: Session, other: Session, quick: None
) -> None:
    two = Two(session, other)
    assert await asyncio.gather(*two.start()) == ["granted", "deadlock"]
    error = two.caught[1]
    assert isinstance(error, Deadlock) and [edge.queue.name for edge in error.cycle] == ["b", "a"]
    assert "task 1" in str(error) and "which task 0" in str(error)
    assert await entries(session, "a") == await entries(session, "b") == []


async def test_a_deadlock_that_is_only_reported_is_logged_once_and_lasts(
    session: Session, other: Session, quick: None, caplog: pytest.LogCaptureFixture
) -> None:
    tasks = Two(session, other, ("report", "report")).start()
    with caplog.at_level(logging.WARNING):
        await eventually(lambda: len(caplog.records) >= 2)
        await asyncio.sleep(1.6)  # some looks more
    assert len(caplog.records) == 2  # one a session
    assert all(one.getMessage().startswith("deadlock: task 0") for one in caplog.records)
    assert not any(task.done() for task in tasks)
    tasks[0].cancel()
    assert await tasks[1] == "granted"


async def test_the_older_one_gives_up_if_only_it_asks_for_that(session: Session, other: Session, quick: None) -> None:
    assert await asyncio.gather(*Two(session, other, ("fail", "report")).start()) == ["deadlock", "granted"]


async def test_both_in_one_session(session: Session, quick: None) -> None:
    assert await asyncio.gather(*Two(session, session).start()) == ["granted", "deadlock"]


async def test_a_task_that_waits_for_itself_is_told(session: Session, quick: None) -> None:
    manager = LockManager(session)
    async with manager.acquire("a"):
        with pytest.warns(RuntimeWarning, match="not reentrant"), pytest.raises(Deadlock) as caught:
            await manager.acquire("a", deadlock="fail")
        assert len(caught.value.cycle) == 1
    assert await entries(session, "a") == []


async def test_a_timeout_and_a_deadlock_leave_nothing_behind(session: Session, other: Session, quick: None) -> None:
    manager = LockManager(session)
    async with manager.acquire("a"), LockManager(other).acquire("b"):
        with pytest.raises(LockTimeout):
            await manager.acquire("b", timeout=0.5, deadlock="fail")
    assert await entries(session, "b") == []


async def test_permits_that_one_object_got_twice_count_as_held_after_one_release(
    session: Session, other: Session, quick: None
) -> None:
    """The requester gives one of its two permits back, and still holds the other one."""
    semaphore = Semaphore("s", max_concurrent=2, session=session)
    first, second = await semaphore.acquire(), await semaphore.acquire()
    await second.release()
    theirs = Semaphore("s", max_concurrent=2, session=other)
    held = asyncio.Event()

    async def another() -> None:
        async with LockManager(other).acquire("a"):
            held.set()
            async with theirs.hold(permits=2):
                pass

    task = asyncio.create_task(another())
    await held.wait()
    await eventually(lambda: waiters(session, 1))
    with pytest.raises(Deadlock):
        await LockManager(session).acquire("a", deadlock="fail")
    await first.release()
    await task


async def waiters(session: Session, number: int) -> bool:
    return len({edge.token for edge in (await LockManager(session).waits()).edges}) == number


async def test_all_names_of_acquire_all_fail_together(session: Session, other: Session, quick: None) -> None:
    manager, theirs = LockManager(session), LockManager(other)
    async with theirs.acquire("b"):
        joint = asyncio.create_task(_all(manager, ["a", "b", "c"]))
        await queue_of(session, "c", 1)
        async with theirs.acquire("a", timeout=10):  # it is the younger, and only reports
            with pytest.raises(Deadlock):
                await joint
    assert [await entries(session, name) for name in "abc"] == [[], [], []]


async def _all(manager: LockManager, names: list[str]) -> None:
    async with manager.acquire_all(names, deadlock="fail"):
        await asyncio.sleep(0.01)


async def test_a_candidate_that_asks_to_fail_does(session: Session, other: Session, quick: None) -> None:
    async def candidate() -> None:
        async with LockManager(session).acquire("a"):
            await leads.wait()
            async with Election("e", session, deadlock="fail").campaign():
                pass

    leads = asyncio.Event()
    waiting = asyncio.create_task(candidate())
    await queue_of(session, "a", 1)
    async with Election("e", other).campaign():
        leads.set()
        async with LockManager(other).acquire("a", timeout=10):
            with pytest.raises(Deadlock, match="election"):
                await waiting


async def test_acquire_all_is_never_in_a_deadlock_with_itself(
    session: Session, other: Session, quick: None, caplog: pytest.LogCaptureFixture
) -> None:
    chance = random.Random(7)
    managers = LockManager(session), LockManager(other)

    async def many(manager: LockManager) -> None:
        for _ in range(15):
            await _all(manager, chance.sample(["a", "b", "c", "d", "e"], 3))

    await asyncio.gather(*(many(manager) for manager in managers for _ in range(8)))
    assert not [one for one in caplog.records if "deadlock" in one.getMessage()]


# No false report


async def test_a_grant_of_an_ended_task_is_nobodys_wait(
    session: Session, other: Session, quick: None, caplog: pytest.LogCaptureFixture
) -> None:
    manager = LockManager(session)
    grant = await asyncio.create_task(_got(manager, "a"))  # its task has ended
    async with LockManager(other).acquire("b"):
        waiting = asyncio.create_task(_got(LockManager(other), "a"))
        await queue_of(session, "a", 2)
        mine = asyncio.create_task(_got(manager, "b"))
        await queue_of(session, "b", 2)
        await asyncio.sleep(1)
        await grant.release()
        await (await waiting).release()
    await (await mine).release()
    assert not caplog.records


async def _got(manager: LockManager, name: str) -> Any:
    return await manager.acquire(name, deadlock="fail")


async def test_a_grant_that_another_task_gives_back_is_no_deadlock(
    session: Session, other: Session, quick: None, caplog: pytest.LogCaptureFixture
) -> None:
    """The task that acquired it does not wait; its helper, which waits, will release it."""
    manager, theirs = LockManager(session), LockManager(other)
    grant = await manager.acquire("a")

    async def helper() -> None:
        async with manager.acquire("b", timeout=10, deadlock="fail"):
            await grant.release()

    async def third() -> None:
        async with theirs.acquire("b"):
            await asyncio.sleep(1.5)
        async with theirs.acquire("a", timeout=10, deadlock="fail"):
            pass

    holder = asyncio.create_task(third())
    await queue_of(session, "b", 1)
    await asyncio.gather(helper(), holder)
    assert not caplog.records


# Costs


async def test_a_waiter_that_holds_nothing_never_looks(session: Session, other: Session, quick: None) -> None:
    async with LockManager(other).acquire("a"):
        waiting = asyncio.create_task(_got(LockManager(session), "a"))
        await queue_of(other, "a", 2)
        await asyncio.sleep(1.2)  # by then, each has begun to watch its own key
        with counting(session) as calls, counting(other) as theirs:  # ``other`` holds, and does not wait
            await asyncio.sleep(1.2)
        assert not calls["range"] and not theirs["range"], (calls, theirs)
        async with LockManager(session).acquire("b"):
            second = asyncio.create_task(_got(LockManager(session), "a"))
            with counting(session) as calls, pytest.raises(LockTimeout):
                await LockManager(session).acquire("a", timeout=1.2)
        assert calls["range"] >= 4  # one of each kind
    await (await waiting).release()
    await (await second).release()


async def test_one_look_serves_all_waiters_of_a_session(
    session: Session, other: Session, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deadlocks, "_AGAIN", 100.0)
    reads = Reads(monkeypatch)

    async def both(number: int) -> None:
        async with LockManager(session).acquire(f"mine-{number}"), LockManager(session).acquire("theirs"):
            pass

    async with LockManager(other).acquire("theirs"):
        tasks = [asyncio.create_task(both(number)) for number in range(20)]
        await queue_of(session, "theirs", 21)
        await asyncio.sleep(1.2)
    await asyncio.gather(*tasks)
    assert 1 <= reads.number <= 3  # all at a tick or two


async def test_the_cost_of_a_look_with_a_thousand_locks(session: Session, other: Session) -> None:
    manager = LockManager(session)
    names = [f"lock-{number}" for number in range(1000)]
    holds = [manager.acquire_all(names[start : start + 50]) for start in range(0, 1000, 50)]
    grants = await asyncio.gather(*holds)
    core = core_of(other)  # the holders' session reads the keys of its entries now and then
    await read_waits(core)
    with counting(other) as calls:
        times = []
        for _ in range(5):
            began = time.perf_counter()
            await read_waits(core)
            times.append(time.perf_counter() - began)
        print(f"a look at 1,000 locks: {min(times) * 1000:.1f} ms at best, {max(times) * 1000:.1f} ms at worst")
    assert calls["range"] == 5 * 5  # two pages of locks, and one of each other kind
    await asyncio.gather(*(grant.release() for some in grants for grant in some))


# Pools and threads


async def test_tasks_of_a_pool_that_lock_two_things(session: Session, quick: None) -> None:
    manager, barrier = LockManager(session), asyncio.Barrier(2)

    async def work(names: tuple[str, str]) -> str:
        async with manager.acquire(names[0], deadlock="fail"):
            await barrier.wait()
            async with manager.acquire(names[1], deadlock="fail"):
                return "done"

    async with AsyncWorkerPool(2) as pool:
        results = await pool.map(work, [("a", "b"), ("b", "a")])
    assert sorted(one.success for one in results) == [False, True]
    (failed,) = [one for one in results if not one.success]
    assert failed.error_type == "Deadlock" and isinstance(failed.exception, Deadlock)


def test_threads_of_the_blocking_twin(etcd: EmbeddedEtcd, namespace: str, quick: None) -> None:
    from codomyrmex.concurrency import sync

    barrier = threading.Barrier(2)
    outcomes: dict[str, str] = {}

    def work(session: sync.Session, mine: str, others: str) -> None:
        with sync.DistributedLock(mine, session):
            barrier.wait(10)
            try:
                with sync.DistributedLock(others, session, deadlock="fail"):
                    outcomes[threading.current_thread().name] = "granted"
            except Deadlock as error:
                assert threading.current_thread().name in str(error)
                outcomes[threading.current_thread().name] = "deadlock"

    with sync.Session(endpoints=etcd.endpoint, namespace=namespace, session_ttl=3) as session:
        pairs = [("a", "b"), ("b", "a")]
        threads = [threading.Thread(target=work, args=(session, *pair), name=f"thread-{pair[0]}") for pair in pairs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert sorted(outcomes.values()) == ["deadlock", "granted"] and len(outcomes) == 2
        assert sync.LockManager(session).waits().edges == ()


async def test_a_name_that_an_agent_gave_itself_cannot_forge_lines_of_a_log(
    session: Session, quick: None, caplog: pytest.LogCaptureFixture
) -> None:
    async with LockManager(session).acquire("a", metadata={"agent": "x\n\x1b[2J"}):
        with pytest.warns(RuntimeWarning, match="not reentrant"), pytest.raises(Deadlock) as caught:
            await LockManager(session).acquire("a", deadlock="fail", metadata={"agent": "x\n\x1b[2J"})
    assert str(caught.value).isprintable() and caplog.records[0].getMessage().isprintable()


async def test_a_deadlock_is_counted(session: Session, quick: None) -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    try:
        assert registry.get_sample_value("codomyrmex_deadlocks_total") == 0
        await asyncio.gather(*Two(session, session).start())
        assert registry.get_sample_value("codomyrmex_deadlocks_total") == 1
    finally:
        metrics.close()


# Faults


async def test_a_look_that_fails_is_repeated(
    session: Session, quick: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(deadlocks, "_AGAIN", 100.0)
    reads = Reads(monkeypatch)
    reads.failures = [EtcdUnavailable("gone", retryable=True), EtcdUnavailable("still gone", retryable=True)]
    assert await asyncio.gather(*Two(session, session).start()) == ["granted", "deadlock"]
    assert reads.number >= 3


async def test_a_wait_that_is_cancelled_during_a_look_leaves_nothing(
    session: Session, quick: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    reads = Reads(monkeypatch)
    reads.gate = asyncio.Event()
    tasks = Two(session, session).start()
    await eventually(lambda: reads.number)
    tasks[1].cancel()
    assert await tasks[0] == "granted"
    reads.gate.set()
    await asyncio.sleep(0.1)
    assert tasks[1].cancelled() and session.alive
    assert await entries(session, "a") == await entries(session, "b") == [] and not caplog.records


async def test_a_session_that_is_lost_during_a_look_ends_it(
    session: Session, quick: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    reads = Reads(monkeypatch)
    reads.gate = asyncio.Event()
    tasks = Two(session, session).start()
    await eventually(lambda: reads.number)
    await revoke(session, session.id)
    found = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 10)
    assert all(isinstance(one, SessionLost | LockLost) for one in found), found
    reads.gate.set()
    await asyncio.sleep(0.1)
    assert not [one for one in caplog.records if one.levelno >= logging.ERROR]


async def test_a_session_that_is_closed_during_a_look_closes(
    etcd: EmbeddedEtcd, namespace: str, session: Session, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = Reads(monkeypatch)
    reads.gate = asyncio.Event()
    closing = await Session(endpoints=etcd.endpoint, namespace=namespace, session_ttl=3).open()
    tasks = Two(closing, closing).start()
    await eventually(lambda: reads.number)
    await asyncio.wait_for(closing.close(), 10)
    await asyncio.gather(*tasks, return_exceptions=True)
    assert await entries(session, "a") == await entries(session, "b") == []


# Arguments


async def test_another_word_than_fail_or_report_is_refused(session: Session) -> None:
    manager: Any = LockManager(session)
    for make in (
        lambda: manager.acquire("a", deadlock="maybe"),
        lambda: manager.acquire_all(["a"], deadlock="maybe"),
        lambda: manager.acquire_paths(["a"], deadlock="maybe"),
        lambda: manager.reserve("a", ttl=60, deadlock="maybe"),
        lambda: DistributedLock("a", session, deadlock="maybe"),  # type: ignore[arg-type]
        lambda: Semaphore("a", max_concurrent=1, session=session, deadlock="maybe"),  # type: ignore[arg-type]
        lambda: Election("a", session, deadlock="maybe"),  # type: ignore[arg-type]
    ):
        with pytest.raises(ValueError, match="'fail' or 'report'"):
            make()


def test_the_blocking_twin_refuses_it_too() -> None:
    from codomyrmex.concurrency import sync

    manager: Any = sync.LockManager()
    for make in (
        lambda: manager.acquire("a", deadlock="maybe"),
        lambda: manager.acquire_all(["a"], deadlock="maybe"),
        lambda: manager.acquire_paths(["a"], deadlock="maybe"),
        lambda: manager.reserve("a", ttl=60, deadlock="maybe"),
        lambda: sync.DistributedLock("a", deadlock="maybe"),  # type: ignore[arg-type]
        lambda: sync.Semaphore("a", max_concurrent=1, deadlock="maybe"),  # type: ignore[arg-type]
        lambda: sync.Election("a", deadlock="maybe"),  # type: ignore[arg-type]
    ):
        with pytest.raises(ValueError, match="'fail' or 'report'"):
            make()
