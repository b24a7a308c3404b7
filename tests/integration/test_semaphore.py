"""The behaviour of a semaphore for its user, on a real etcd."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

import pytest

from codomyrmex.concurrency import (
    LimitMismatch,
    LockLost,
    LockTimeout,
    NotHeld,
    Permit,
    Semaphore,
    SemaphoreInUse,
    Session,
    SessionLost,
)
from codomyrmex.concurrency.etcd.transports.protocol import Get, GetResult, Put
from codomyrmex.concurrency.keys import SEMAPHORE, limit_key
from codomyrmex.concurrency.session import core_of
from codomyrmex.concurrency.waitqueue.inspect import semaphores
from tests.helpers import counting, eventually


def semaphore(session: Session, limit: int = 3, name: str = "provider") -> Semaphore:
    return Semaphore(name, max_concurrent=limit, session=session)


async def held(sem: Semaphore) -> tuple[int, int]:
    """Permits held, requests waiting."""
    info = await sem.info()
    return sum(owner.permits for owner in info.holders), len(info.waiters)


async def _is_free(sem: Semaphore) -> bool:
    """Withdrawn entries are removed in the background."""
    return await held(sem) == (0, 0)


async def test_no_more_than_the_limit_hold_at_once(session: Session, other: Session) -> None:
    inside = peak = done = 0

    async def use(sem: Semaphore) -> None:
        nonlocal inside, peak, done
        async with sem:
            inside += 1
            peak = max(peak, inside)
            await asyncio.sleep(0.02)
            inside -= 1
            done += 1

    one, two = semaphore(session), semaphore(other)
    await asyncio.gather(*(use(sem) for _ in range(20) for sem in (one, two)))
    assert (peak, done, inside) == (3, 40, 0)
    assert await one.available() == 3


async def test_permits_are_weighted_and_a_large_request_is_not_starved(session: Session, other: Session) -> None:
    sem, far = semaphore(session, 4), semaphore(other, 4)
    first = await sem.acquire(permits=3)
    order: list[str] = []

    async def wait(name: str, source: Semaphore, permits: int) -> Permit:
        permit = await source.acquire(permits)
        order.append(name)
        return permit

    large = asyncio.create_task(wait("large", far, 4))
    await eventually(lambda: _waits(sem, 1))
    small = asyncio.create_task(wait("small", sem, 1))  # there is room for it, but it came later
    await eventually(lambda: _waits(sem, 2))
    assert await sem.try_acquire(1) is None and await sem.available() == 1
    await first.release()
    permit = await asyncio.wait_for(large, 2)
    assert order == ["large"] and await held(sem) == (4, 1)
    await permit.release()
    await (await asyncio.wait_for(small, 2)).release()
    assert order == ["large", "small"] and await held(sem) == (0, 0)


async def _waits(sem: Semaphore, number: int) -> bool:
    return len((await sem.info()).waiters) == number


async def test_permits_released_at_one_revision_all_count_for_a_waiter(session: Session, other: Session) -> None:
    sem, far = semaphore(session, 4), semaphore(other, 4)
    permits = [await sem.acquire() for _ in range(4)]
    waiting = asyncio.create_task(far.acquire(4))
    await eventually(lambda: _waits(sem, 1))
    await asyncio.sleep(0.1)  # its watch has begun
    await asyncio.gather(*(permit.release() for permit in permits))
    await (await asyncio.wait_for(waiting, 3)).release()


async def test_the_limit_is_agreed_on(session: Session, other: Session) -> None:
    async with semaphore(session, 3):
        pass
    with pytest.raises(LimitMismatch, match="limit of 3 in etcd, not 5"):
        await semaphore(other, 5).acquire()
    await semaphore(other, 3).available()
    assert await semaphore(other, 5, "another").available() == 5


async def test_a_larger_limit_lets_waiters_in_everywhere(session: Session, other: Session) -> None:
    sem, far = semaphore(session, 1), semaphore(other, 1)
    async with sem:
        waiting = [asyncio.create_task(far.acquire()) for _ in range(3)]
        await eventually(lambda: _waits(sem, 3))
        await sem.resize(3)
        done, _ = await asyncio.wait(waiting, timeout=2, return_when=asyncio.ALL_COMPLETED)
        assert len(done) == 2 and await held(sem) == (3, 1)
    permits = await asyncio.gather(*waiting)
    for permit in permits:
        await permit.release()
    with pytest.raises(LimitMismatch):
        await semaphore(session, 1).available()
    assert await semaphore(session, 3).available() == 3


async def test_a_smaller_limit_holds_for_whoever_waits(session: Session, other: Session) -> None:
    sem, far = semaphore(session, 3), semaphore(other, 3)
    permits = [await sem.acquire() for _ in range(3)]
    waiting = asyncio.create_task(far.acquire())
    await eventually(lambda: _waits(sem, 1))
    await far.resize(1)
    assert (await sem.info()).limit == 1 and await sem.available() == 0
    await permits[0].release()
    await permits[1].release()
    await asyncio.sleep(0.2)
    assert not waiting.done()
    await permits[2].release()
    await (await asyncio.wait_for(waiting, 2)).release()


async def test_who_waits_for_more_than_there_will_ever_be_is_told(session: Session, other: Session) -> None:
    sem, far = semaphore(session, 3), semaphore(other, 3)
    async with sem:
        waiting = asyncio.create_task(far.acquire(3))
        await eventually(lambda: _waits(sem, 1))
        await sem.resize(2)
        with pytest.raises(LimitMismatch, match="3 permits were asked for, but the limit is 2"):
            await asyncio.wait_for(waiting, 2)
    await eventually(lambda: _is_free(sem))


async def test_permits_of_a_session_that_ends_come_back(session: Session, other: Session) -> None:
    await semaphore(other, 2).acquire(2)
    waiting = asyncio.create_task(semaphore(session, 2).acquire(2))
    await eventually(lambda: _waits(semaphore(session, 2), 1))
    await other.close()
    await (await asyncio.wait_for(waiting, 2)).release()


async def test_a_wait_ends_in_time_or_by_cancel_and_leaves_nothing(session: Session, other: Session) -> None:
    sem, far = semaphore(session, 1), semaphore(other, 1)
    async with sem:
        started = time.monotonic()
        with pytest.raises(LockTimeout, match=r"semaphore 'provider' was not granted within 0\.2 s"):
            await far.acquire(timeout=0.2)
        assert time.monotonic() - started < 1
        waiting = asyncio.create_task(far.acquire())
        await eventually(lambda: _waits(sem, 1))
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await eventually(lambda: _waits(sem, 0))
        assert await far.try_acquire() is None
    await eventually(lambda: _is_free(sem))


async def test_a_cancel_at_any_moment_leaves_no_permit(session: Session, other: Session) -> None:
    sem, far = semaphore(session, 2), semaphore(other, 2)
    await far.available()
    for step in range(25):
        permit = await sem.acquire(2) if step % 2 else None
        task = asyncio.create_task(far.acquire(2))
        for _ in range(step):
            await asyncio.sleep(0)
        releasing = asyncio.create_task(permit.release()) if permit else None
        task.cancel()
        with suppress(asyncio.CancelledError):
            await (await task).release()
        if releasing:
            await releasing
        await eventually(lambda: _free(sem))


async def _free(sem: Semaphore) -> bool:
    return await held(sem) == (0, 0)


async def test_a_block_whose_permits_are_lost_is_cancelled(session: Session, other: Session) -> None:
    sem = semaphore(other)
    with pytest.raises(LockLost, match="semaphore 'provider'"):
        async with sem.hold(permits=2) as grant:
            await core_of(session).remover.remove_and_wait(grant.key.encode(), lambda _: None)
            await asyncio.sleep(5)
    with pytest.raises((LockLost, SessionLost)):
        async with sem:
            await other.close()
            await asyncio.sleep(5)


async def test_a_permit_writes_fenced_and_is_released_once(session: Session) -> None:
    sem = semaphore(session)
    permit = await sem.acquire(2)
    assert permit.permits == 2 and permit.grant.token > 0
    await permit.grant.put("register", b"1")
    await permit.release()
    with pytest.raises(NotHeld, match="released before"):
        await permit.release()
    assert await sem.available() == 3


@pytest.mark.parametrize("wrong", [0, -1])
def test_a_limit_below_one_is_refused(wrong: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Semaphore(max_concurrent=wrong)


@pytest.mark.parametrize("wrong", [1.5, True, "3", None])
def test_a_limit_that_is_no_number_is_refused(wrong: object) -> None:
    with pytest.raises(TypeError, match="must be an int"):
        Semaphore(max_concurrent=wrong)  # type: ignore[arg-type]


async def test_impossible_requests_are_refused_before_they_wait(session: Session) -> None:
    sem = semaphore(session)
    with pytest.raises(ValueError, match="4 permits were asked for, but the semaphore 'provider' has only 3"):
        await sem.acquire(permits=4)
    with pytest.raises(ValueError, match="at least 1"):
        sem.hold(permits=0)
    with pytest.raises(ValueError, match="timeout"):
        await sem.acquire(timeout=-1)
    with pytest.raises(ValueError, match="at least 1"):
        await sem.resize(0)
    await sem.resize(4)
    await (await sem.acquire(permits=4)).release()


async def test_a_larger_limit_set_by_another_is_known_in_time(session: Session, other: Session) -> None:
    sem, far = semaphore(session), semaphore(other)
    async with far:
        pass
    await sem.resize(6)
    await (await far.acquire(6)).release()


async def test_a_limit_that_was_deleted_is_said(session: Session) -> None:
    sem = semaphore(session)
    await sem.resize(3)
    key = limit_key(core_of(session).layout.queue("provider", SEMAPHORE), 3)
    await core_of(session).remover.remove_and_wait(key, lambda _: None)
    with pytest.raises(LimitMismatch, match="deleted from etcd"):
        await sem.acquire()


async def test_waiters_of_one_process_share_a_watch_and_read_nothing(session: Session, other: Session) -> None:
    sem, far = semaphore(session, 1), semaphore(other, 1)
    permit = await sem.acquire()
    waiting = [asyncio.create_task(far.acquire()) for _ in range(30)]
    await eventually(lambda: _waits(sem, 30))
    await asyncio.sleep(1.5)  # past the second look and the first ticks
    with counting(other) as calls:
        await permit.release()
        for task in waiting:
            await (await asyncio.wait_for(task, 2)).release()
    assert calls["delete"] == 30 and calls["range"] <= 1
    assert calls["events"] <= 31 * 2  # the queue's deletions once, and those of own keys


async def test_a_resize_passes_over_what_is_no_limit_and_compares_the_limit_it_read(session: Session) -> None:
    sem = semaphore(session)
    async with sem:
        queue = core_of(session).layout.queue("provider", SEMAPHORE)
        await core_of(session).transport.txn((), (Put(limit_key(queue, 0)[:-1] + b"!", b"junk"),))
        await sem.resize(5)
        assert (await sem.info()).limit == 5


async def test_to_look_at_a_semaphore_does_not_make_one(session: Session) -> None:
    sem = semaphore(session)
    assert await sem.available() == 3 and (await sem.info()).limit is None
    assert await semaphores(core_of(session)) == []
    async with sem:
        assert await sem.available() == 2


async def test_a_semaphore_is_deleted_only_while_nobody_uses_it(session: Session, other: Session) -> None:
    sem, far = semaphore(session), semaphore(other)
    with pytest.raises(NotHeld, match="there is no semaphore 'provider'"):
        await sem.delete()
    permit = await far.acquire(2)
    waiting = asyncio.create_task(sem.acquire(2))
    await eventually(lambda: _waits(sem, 1))
    with pytest.raises(SemaphoreInUse, match="2 of 3 permits are held, 1 wait for more; nothing was deleted"):
        await sem.delete()
    await permit.release()
    await (await waiting).release()
    await sem.delete()
    assert await semaphores(core_of(session)) == []
    with pytest.raises(LimitMismatch, match="deleted from etcd"):
        await far.acquire()  # it had agreed on a limit that is no more
    async with sem:  # which made it anew
        assert (await sem.info()).limit == 3


async def test_a_semaphore_that_is_joined_as_it_is_deleted_stays(
    session: Session, other: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    sem, far = semaphore(session), semaphore(other)
    await sem.resize(3)
    await far.resize(3)
    get, permits = core_of(session).transport.get, []

    async def then_join(request: Get) -> GetResult:
        found = await get(request)
        if not permits:
            permits.append(await far.acquire())
        return found

    monkeypatch.setattr(core_of(session).transport, "get", then_join)
    with pytest.raises(SemaphoreInUse, match="1 of 3 permits are held"):
        await sem.delete()
    assert (await far.info()).limit == 3
    await permits[0].release()
