"""Wrong uses are refused in the library's own words, which give the remedy."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from codomyrmex.concurrency import (
    AsyncWorkerPool,
    DeadLetterQueue,
    DistributedLock,
    EmbeddedEtcd,
    LockManager,
    NotHeld,
    Semaphore,
    Session,
    Shared,
    sync,
)
from codomyrmex.concurrency.keys import is_reader
from tests.helpers import entries


@pytest.fixture
def blocking(etcd: EmbeddedEtcd, namespace: str) -> Iterator[sync.Session]:
    with sync.Session(endpoints=etcd.endpoint, namespace=namespace, session_ttl=3) as opened:
        yield opened


@pytest.fixture
async def closed() -> AsyncIterator[Session]:
    yield Session(endpoints="http://127.0.0.1:1")


_ASYNC: list[Callable[[Session], Any]] = [
    lambda session: session,
    lambda session: DistributedLock("x", session),
    lambda session: Semaphore("x", max_concurrent=1, session=session),
    lambda session: AsyncWorkerPool(1),
    lambda session: DeadLetterQueue("x", session=session),
    lambda session: DeadLetterQueue("x", session=session).worker(),
]


@pytest.mark.parametrize("make", _ASYNC)
async def test_with_is_no_async_with(closed: Session, make: Callable[[Session], Any]) -> None:
    with pytest.raises(TypeError, match="is used with `async with`, not `with`"), make(closed):
        pass


@pytest.mark.filterwarnings("ignore:.*never:RuntimeWarning")
async def test_with_is_no_async_with_of_what_is_asked_for(closed: Session) -> None:
    manager = LockManager(closed)
    semaphore = Semaphore("x", max_concurrent=1, session=closed)
    for wish in (manager.acquire("x"), manager.acquire_all(["x"]), semaphore.hold()):
        with pytest.raises(TypeError, match="is used with `async with`, not `with`"), wish:  # type: ignore[attr-defined]
            pass


async def test_async_with_is_no_with() -> None:
    session = sync.Session(endpoints="http://127.0.0.1:1")
    for one in (
        session,
        sync.DistributedLock("x", session),
        sync.Semaphore("x", max_concurrent=1, session=session),
        sync.AsyncWorkerPool(1),
        sync.DeadLetterQueue("x", session=session),
    ):
        with pytest.raises(TypeError, match=r"of codomyrmex\.concurrency\.sync is used with `with`, not `async with`"):
            async with one:  # type: ignore[attr-defined]
                pass


@pytest.mark.parametrize("wrong", ["5", b"5", True, [5]])
async def test_a_time_is_a_number(closed: Session, wrong: Any) -> None:
    says = "must be a number of seconds, not "
    lock, manager, semaphore = (
        DistributedLock("x", closed),
        LockManager(closed),
        Semaphore("x", max_concurrent=1, session=closed),
    )
    for call in (
        lambda: manager.acquire("x", timeout=wrong),
        lambda: manager.acquire_all(["x"], timeout=wrong),
        lambda: semaphore.hold(timeout=wrong),
        lambda: DistributedLock("x", closed, max_hold=wrong),
        lambda: DistributedLock("x", closed, lock_delay=wrong),
        lambda: Semaphore("x", max_concurrent=1, max_hold=wrong),
        lambda: AsyncWorkerPool(1, task_timeout=wrong),
        lambda: DeadLetterQueue("x", session=closed).worker(drain_timeout=wrong),
    ):
        with pytest.raises(TypeError, match=says):
            call()
    for wait in (
        lambda: lock.acquire(wrong),
        lambda: semaphore.acquire(1, wrong),
        lambda: AsyncWorkerPool(1).shutdown(timeout=wrong),
    ):
        with pytest.raises(TypeError, match=says):
            await wait()


async def test_release_takes_a_grant(session: Session) -> None:
    manager: Any = LockManager(session)
    for wrong in (None, "x", sync.Grant):
        with pytest.raises(TypeError, match="release takes the Grant that acquire gave, not "):
            await manager.release(wrong)


def test_release_takes_a_grant_of_the_blocking_twin(blocking: sync.Session) -> None:
    manager: Any = sync.LockManager(blocking)
    with pytest.raises(TypeError, match="release takes the Grant that acquire gave, not NoneType"):
        manager.release(None)


async def test_a_session_of_the_other_kind_is_refused() -> None:
    wrong: Any = sync.Session(endpoints="http://127.0.0.1:1")
    for make in (
        LockManager,
        lambda given: DistributedLock("x", given),
        lambda given: Semaphore(max_concurrent=1, session=given),
    ):
        with pytest.raises(
            TypeError, match=r"session must be a codomyrmex\.concurrency\.Session, not codomyrmex.*sync"
        ):
            make(wrong)
    with pytest.raises(TypeError, match="settings must be EtcdSettings, not 'http"):
        Session("http://127.0.0.1:2379")  # type: ignore[arg-type]


async def test_a_grant_shows_its_state_and_is_released_by_itself(session: Session) -> None:
    lock, manager = DistributedLock("x", session), LockManager(session)
    grant = await lock.acquire()
    assert repr(grant) == f"<Grant of 'x' with token {grant.token}, held>"
    await grant.release()
    assert repr(grant) == f"<Grant of 'x' with token {grant.token}, released>"
    assert not lock.held and await entries(session, "x") == []
    await grant.release()
    with pytest.raises(NotHeld):
        await lock.release()
    managed = await manager.acquire("x")
    await managed.release()
    assert (manager.stats().total_releases, manager.stats().active_locks) == (1, 0)
    with pytest.raises(NotHeld):
        await manager.release(managed)
    async with Session(session.settings) as brief:
        lost = await DistributedLock("y", brief).acquire()
    assert repr(lost) == f"<Grant of 'y' with token {lost.token}, lost>"


async def test_one_of_several_is_released_by_its_grant(session: Session) -> None:
    one, two = await LockManager(session).acquire_all(["a", "b"])
    await one.release()
    assert await entries(session, "a") == [] and two.deadline() > 0
    await two.release()


def test_the_twins_grant_shows_its_state(blocking: sync.Session) -> None:
    lock = sync.DistributedLock("x", blocking)
    with lock as grant:
        assert repr(grant) == f"<Grant of 'x' with token {grant.token}, held>"
    assert repr(grant).endswith(", released>")
    assert lock.try_acquire() is not None
    assert lock.try_acquire() is None
    lock.release()


async def test_readers_and_writers_are_acquired_together(session: Session, other: Session) -> None:
    mine, theirs = LockManager(session), LockManager(other)
    async with mine.acquire_all([Shared("src"), "src/a.py"]) as grants:
        assert [grant.name for grant in grants] == ["src", "src/a.py"]
        assert [is_reader(grant.key.encode()) for grant in grants] == [True, False]
        async with theirs.acquire_all([Shared("src"), "src/b.py"], timeout=2):
            pass
        assert await theirs.lock("src").try_acquire() is None
        assert await theirs.lock("src/a.py").try_acquire() is None


async def test_a_name_given_both_ways_is_acquired_alone(session: Session) -> None:
    manager = LockManager(session)
    for names in ([Shared("x"), "x"], ["x", Shared("x")]):
        (grant,) = await manager.acquire_all(names)
        assert not is_reader(grant.key.encode())
        await grant.release()


def test_the_twin_mixes_them_too(blocking: sync.Session) -> None:
    manager = sync.LockManager(blocking)
    with manager.acquire_all([sync.Shared("src"), "src/a.py"]) as grants:
        assert [is_reader(grant.key.encode()) for grant in grants] == [True, False]


def test_the_twin_deletes_semaphores(blocking: sync.Session) -> None:
    semaphore = sync.Semaphore("s", max_concurrent=2, session=blocking)
    with semaphore:
        pass
    semaphore.delete()
    assert semaphore.info().limit is None and semaphore.available() == 2
    assert semaphore.try_acquire(2) is not None
    assert semaphore.try_acquire() is None
