"""Rate limiters that are paused, opened, resized and deleted while they are used."""

from __future__ import annotations

import asyncio

import pytest

from codomyrmex.concurrency import (
    EmbeddedEtcd,
    LimitMismatch,
    LockTimeout,
    NotHeld,
    Rate,
    RateLimiter,
    Session,
    clock,
)
from codomyrmex.concurrency.rates.driver import Drivers
from codomyrmex.concurrency.session import core_of, default_session
from tests.helpers import eventually, revoke
from tests.integration.rate_keys import leases, nothing_left, parts, pauses
from tests.integration.test_rates import BOTH, MINUTELY, SECONDLY, soon, used, waits

# Pauses


async def test_a_pause_is_seen_by_all_and_ends_by_itself(session: Session, other: Session) -> None:
    limiter = RateLimiter("x", Rate(100, per=10), session=session)
    theirs = RateLimiter("x", Rate(100, per=10), session=other)
    await theirs.acquire()
    began = clock.now()
    await limiter.throttled(1)
    driver = core_of(other).member(Drivers).find("x")
    assert driver
    await eventually(lambda: driver.pauses, 0.5)
    info = await limiter.info()
    assert info.paused_until and info.paused_by and str(core_of(session).host) in info.paused_by
    for one in (limiter, theirs):
        with pytest.raises(LockTimeout, match="paused until"):
            await one.acquire(timeout=0.1)
    await soon(asyncio.gather(limiter.acquire(), theirs.acquire()), 8)
    assert clock.now() - began >= 1
    assert (await limiter.info()).paused_until is None and not await pauses(session)


async def test_resume_ends_every_pause_for_everybody(session: Session, other: Session) -> None:
    limiter = RateLimiter("x", MINUTELY, session=session)
    theirs = RateLimiter("x", MINUTELY, session=other)
    await theirs.acquire()
    await limiter.throttled(60)
    await theirs.throttled(90)
    assert len(await pauses(session)) == 2
    waiting = [asyncio.create_task(one.acquire()) for one in (limiter, theirs)]
    await asyncio.sleep(0.2)
    assert not any(task.done() for task in waiting)
    assert await theirs.resume()
    await soon(asyncio.gather(*waiting))
    assert not await theirs.resume()


async def test_many_answers_of_429_cost_one_pause(etcd: EmbeddedEtcd, session: Session) -> None:
    limiter = RateLimiter("x", MINUTELY, session=session)
    await limiter.acquire()
    before = leases(etcd)
    for _ in range(20):
        await asyncio.gather(*(limiter.throttled(60) for _ in range(5)))
        await asyncio.sleep(0.005)
    assert len(await pauses(session)) == 1 and len(leases(etcd) - before) == 1
    await limiter.throttled(120)
    assert len(await pauses(session)) == 2


async def test_a_new_process_sees_a_pause_that_was_there(session: Session, other: Session) -> None:
    limiter = RateLimiter("x", MINUTELY, session=session)
    await limiter.throttled(60)
    with pytest.raises(LockTimeout, match="paused until"):
        await RateLimiter("x", MINUTELY, session=other).acquire(timeout=0.3)
    await limiter.resume()


# The limit in etcd


async def test_info_of_a_limiter_that_is_not_in_etcd_creates_none(session: Session) -> None:
    info = await RateLimiter("x", MINUTELY, session=session).info()
    assert info.uses == () and info.waiting == 0 and info.paused_until is None
    assert not await parts(session)


async def test_info_tells_holders_and_waiters(session: Session, other: Session) -> None:
    limiter = RateLimiter("x", MINUTELY, session=session, metadata={"task": "embed"})
    await limiter.acquire(10)
    waiting = asyncio.create_task(RateLimiter("x", MINUTELY, session=other).acquire(3))
    await eventually(lambda: waits(limiter))
    (use,) = (await limiter.info()).uses
    assert (use.limit, use.per, use.used, use.free, use.waiting) == (10, 60, 10, 0, 3)
    (holder,), (waiter,) = use.holders, use.waiters
    assert holder.metadata == {"task": "embed"} and holder.permits == 10
    assert int(holder.session, 16) == session.id and int(waiter.session, 16) == other.id
    waiting.cancel()
    await eventually(lambda: waits(limiter, 0))


async def test_a_larger_limit_grants_to_waiters_at_once(session: Session, other: Session) -> None:
    limiter = RateLimiter("x", MINUTELY, session=session)
    theirs = RateLimiter("x", MINUTELY, session=other)
    await limiter.acquire(10)
    waiting = asyncio.create_task(theirs.acquire(10))
    await eventually(lambda: waits(limiter))
    await limiter.resize(Rate(20, per=60))
    await soon(waiting)
    assert limiter.limits == {"": Rate(20, per=60)} and await used(limiter) == 20
    await limiter.resize(Rate(40, per=60))
    await theirs.acquire(10, timeout=2)  # it was opened with the former limit


async def test_a_process_whose_limit_was_resized_goes_on_in_a_new_session(
    etcd: EmbeddedEtcd, namespace: str, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CODOMYRMEX_ETCD_ENDPOINTS", etcd.endpoint)
    monkeypatch.setenv("CODOMYRMEX_ETCD_NAMESPACE", namespace)
    limiter = RateLimiter("x", SECONDLY)
    try:
        await limiter.acquire()
        await RateLimiter("x", SECONDLY, session=session).resize(Rate(16, per=1))
        first = default_session()
        await revoke(first, first.id)
        await asyncio.wait_for(first.lost.wait(), 3)
        await asyncio.sleep(0.3)  # the end of its slice
        await limiter.acquire(2, timeout=3)
        assert default_session() is not first
    finally:
        await default_session().close()
    with pytest.raises(LimitMismatch):
        await RateLimiter("x", SECONDLY, session=session).acquire()


async def test_a_smaller_limit_fails_only_the_calls_above_it(session: Session, other: Session) -> None:
    limiter = RateLimiter("x", Rate(12, per=1), session=session)
    theirs = RateLimiter("x", Rate(12, per=1), session=other)
    await limiter.acquire(12)
    large, small = (asyncio.create_task(theirs.acquire(cost)) for cost in (9, 2))
    await eventually(lambda: waits(limiter))
    await limiter.resize(Rate(4, per=1))
    with pytest.raises(LimitMismatch, match="limit is 4 now"):
        await soon(large)
    await soon(small, 4)
    with pytest.raises(LimitMismatch):
        await theirs.acquire(9, timeout=2)
    await theirs.acquire(4, timeout=4)


async def test_resize_of_some_dimensions_leaves_the_others(session: Session) -> None:
    limiter = RateLimiter("x", limits=BOTH, session=session)
    with pytest.raises(NotHeld):
        await limiter.resize(tokens=Rate(2000, per=60))
    await limiter.acquire(requests=1)
    await limiter.resize(tokens=Rate(2000, per=60))
    assert limiter.limits == {"requests": Rate(10, per=60), "tokens": Rate(2000, per=60)}
    await limiter.acquire(tokens=1500)
    assert {use.dimension: use.limit for use in (await limiter.info()).uses} == {"requests": 10, "tokens": 2000}


async def test_delete_ends_the_use_of_others_and_leaves_the_name_free(session: Session, other: Session) -> None:
    limiter = RateLimiter("x", SECONDLY, session=session)
    theirs = RateLimiter("x", SECONDLY, session=other)
    with pytest.raises(NotHeld):
        await limiter.delete()
    await theirs.acquire()
    await eventually(lambda: nothing_left(session))
    await limiter.delete()
    assert (await limiter.info()).uses == ()
    again = RateLimiter("x", Rate(5, per=2), session=other)
    await again.acquire(5)
    with pytest.raises(LimitMismatch):
        await theirs.acquire()


Limits = dict[str, Rate]

UNNAMED: Limits = {"": MINUTELY}


@pytest.mark.parametrize("same_session", [False, True])
async def test_a_process_never_counts_by_the_period_of_a_limiter_that_was_deleted(
    session: Session, other: Session, same_session: bool
) -> None:
    mine = RateLimiter("x", SECONDLY, session=session)
    await mine.acquire()
    await eventually(lambda: nothing_left(session))
    await RateLimiter("x", SECONDLY, session=other).delete()
    await RateLimiter("x", Rate(8, per=60), session=session if same_session else other).acquire()
    for _ in range(2):
        with pytest.raises(LimitMismatch, match=r"deleted|per minute"):
            await asyncio.wait_for(mine.acquire(), 3)
    assert await used(mine) == 1


async def test_a_waiter_keeps_its_turn_when_the_limit_is_changed(session: Session, other: Session) -> None:
    limiter, theirs = (RateLimiter("x", MINUTELY, session=one) for one in (session, other))
    await limiter.acquire(10)
    waiting = asyncio.create_task(theirs.acquire(6))
    await eventually(lambda: waits(limiter))
    (token,) = {kv.create_revision for kv in await parts(session) if kv.key.find(b"%016x" % other.id) > 0}
    await limiter.resize(Rate(20, per=60))
    await soon(waiting)
    assert token in {kv.create_revision for kv in await parts(session)}


MISMATCHES: list[tuple[Limits, Limits, str]] = [
    (UNNAMED, {"": Rate(11, per=60)}, "other limits"),
    (UNNAMED, {"": Rate(10, per=61)}, "per minute"),
    (BOTH, {"requests": MINUTELY}, "the dimensions"),
    (BOTH, {**BOTH, "images": MINUTELY}, "the dimensions"),
    (BOTH, {"images": MINUTELY}, "the dimensions"),
    (BOTH, UNNAMED, "without a name"),
    (UNNAMED, BOTH, "without a name"),
]


@pytest.mark.parametrize(("first", "second", "told"), MISMATCHES)
async def test_all_processes_agree_on_the_limits(
    session: Session, other: Session, first: Limits, second: Limits, told: str
) -> None:
    await opened("x/y", UNNAMED, session).acquire()  # a neighbour, which changes nothing
    limiter = opened("x", first, session)
    await one_of_each(limiter)
    for mine in (other, session):
        with pytest.raises(LimitMismatch, match=told):
            await one_of_each(opened("x", second, mine))
    assert {use.dimension: use.limit for use in (await limiter.info()).uses} == {
        one: rate.amount for one, rate in first.items()
    }


def opened(name: str, limits: Limits, session: Session) -> RateLimiter:
    if "" in limits:
        return RateLimiter(name, limits[""], session=session)
    return RateLimiter(name, limits=limits, session=session)


async def one_of_each(limiter: RateLimiter) -> None:
    await limiter.acquire(**{one: 1 for one in limiter.limits if one})


async def test_of_many_that_open_a_name_at_once_one_sets_the_limits(session: Session, other: Session) -> None:
    for number in range(5):
        name = f"x{number}"
        tries = [
            RateLimiter(name, Rate(10, per=60), session=session).acquire(),
            RateLimiter(name, limits={"a": Rate(10, per=60)}, session=other).acquire(a=1),
            RateLimiter(name, limits={"a": Rate(10, per=60), "b": MINUTELY}, session=session).acquire(a=1),
        ]
        answers = await asyncio.gather(*tries, return_exceptions=True)
        assert [type(answer) for answer in answers if answer] == [LimitMismatch] * 2, answers
