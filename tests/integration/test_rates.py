"""Rate limiters: grants, refunds and overdrafts, turns, pauses, and the changes of a limit."""

from __future__ import annotations

import asyncio
import unicodedata
from contextlib import suppress

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

SECONDLY = Rate(8, per=1)
TEN_SECONDS = Rate(20, per=10)
MINUTELY = Rate(10, per=60)
BOTH = {"requests": Rate(10, per=60), "tokens": Rate(1000, per=60)}


async def used(limiter: RateLimiter, dimension: str = "") -> int:
    return next(use.used for use in (await limiter.info()).uses if use.dimension == dimension)


async def waits(limiter: RateLimiter, processes: int = 1) -> bool:
    return (await limiter.info()).waiting == processes


async def soon(work: object, limit: float = 2.0) -> None:
    """Wait for a task that must end within ``limit`` seconds."""
    await asyncio.wait_for(work, limit)  # type: ignore[arg-type]


# Grants


async def test_a_grant_is_counted_until_its_period_is_over(session: Session, other: Session) -> None:
    limiter = RateLimiter("x", SECONDLY, session=session)
    await limiter.acquire(8)
    granted = clock.now()
    assert await used(limiter) == 8
    await RateLimiter("x", SECONDLY, session=other).acquire(timeout=5)
    assert clock.now() - granted >= SECONDLY.per
    await eventually(lambda: nothing_left(session))


async def test_a_call_takes_its_amounts_in_all_dimensions_or_none(session: Session, other: Session) -> None:
    limiter = RateLimiter("x", limits=BOTH, session=session)
    theirs = RateLimiter("x", limits=BOTH, session=other)
    await limiter.acquire(requests=1, tokens=800)
    with pytest.raises(LockTimeout):
        await theirs.acquire(requests=1, tokens=201, timeout=0)
    assert await used(theirs, "requests") == 1 and await used(theirs, "tokens") == 800
    await theirs.acquire(requests=9, timeout=1)
    await theirs.acquire(tokens=200, timeout=1)
    assert await used(theirs, "requests") == 10 and await used(theirs, "tokens") == 1000


async def test_calls_wait_in_their_order(session: Session) -> None:
    limiter = RateLimiter("x", Rate(5, per=1), session=session)
    order: list[int] = []

    async def call(number: int) -> None:
        await limiter.acquire(3 if number == 1 else 1)
        order.append(number)

    tasks = []
    for number in range(8):
        tasks.append(asyncio.create_task(call(number)))
        await asyncio.sleep(0)
    await soon(asyncio.gather(*tasks), 8)
    assert order == sorted(order)


@pytest.mark.parametrize("timeout", [0, 0.3])
async def test_a_timeout_tells_its_reason_and_spends_nothing(session: Session, timeout: float) -> None:
    limiter = RateLimiter("x", MINUTELY, session=session)
    await limiter.acquire(10)
    began = clock.now()
    with pytest.raises(LockTimeout, match="10 of 10 counted"):
        await limiter.acquire(timeout=timeout)
    assert clock.now() - began < timeout + 1.5
    assert await used(limiter) == 10 and not core_of(session).waits()


async def test_one_try_waits_neither_for_others_nor_for_a_pause(session: Session) -> None:
    limiter = RateLimiter("x", MINUTELY, session=session)
    await limiter.acquire(9)
    waiting = asyncio.create_task(limiter.acquire(2))
    await eventually(lambda: waits(limiter))
    with pytest.raises(LockTimeout):
        await soon(limiter.acquire(timeout=0))
    waiting.cancel()
    await eventually(lambda: waits(limiter, 0))
    await limiter.throttled(30)
    with pytest.raises(LockTimeout, match="paused until"):
        await soon(limiter.acquire(timeout=0))


async def test_tries_at_once_are_all_answered(session: Session) -> None:
    limiter = RateLimiter("x", MINUTELY, session=session)
    tries = [limiter.acquire(timeout=0) for _ in range(12)]
    answers = await asyncio.gather(*tries, return_exceptions=True)
    assert [answer is None for answer in answers].count(True) == 10
    assert {type(answer) for answer in answers if answer} == {LockTimeout}


async def test_one_try_asks_for_no_more_than_its_call_needs(session: Session, other: Session) -> None:
    limiter = RateLimiter("x", Rate(800, per=60), session=session)
    theirs = RateLimiter("x", Rate(800, per=60), session=other)
    await theirs.acquire(700)
    for _ in range(5):
        with pytest.raises(LockTimeout):
            await limiter.acquire(150, timeout=0)
    await limiter.acquire(50, timeout=0)  # though it is likely to need more soon
    assert await used(limiter) == 750


async def test_a_pause_answers_those_that_try_once(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    limiter = RateLimiter("x", MINUTELY, session=session)
    await limiter.acquire()
    transport, late = core_of(session).transport, asyncio.Event()
    get = transport.get

    async def slow(*args: object) -> object:
        await late.wait()
        return await get(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(transport, "get", slow)
    trying = asyncio.create_task(limiter.acquire(9, timeout=0))
    await eventually(core_of(session).waits)
    pausing = asyncio.create_task(limiter.throttled(30))
    await asyncio.sleep(0.05)
    late.set()
    with pytest.raises(LockTimeout):
        await soon(trying)
    await pausing
    assert await used(limiter) <= 1


async def test_a_pause_at_the_moment_of_a_try_leaves_the_limiter_usable(session: Session) -> None:
    limiter = RateLimiter("x", SECONDLY, session=session)
    await limiter.acquire()
    await eventually(lambda: nothing_left(session))
    answers = await asyncio.gather(limiter.acquire(7, timeout=0), limiter.throttled(60), return_exceptions=True)
    assert isinstance(answers[0], LockTimeout)
    await limiter.resume()
    await limiter.acquire(7, timeout=2)


async def test_eight_dimensions_are_granted_together(session: Session, other: Session) -> None:
    limits = {f"{'d' * 63}{number}": Rate(1000, per=60) for number in range(8)}
    limiter, theirs = (RateLimiter("n" * 440, limits=limits, session=one) for one in (session, other))
    await limiter.acquire(**dict.fromkeys(limits, 500))
    await theirs.acquire(timeout=2, **dict.fromkeys(limits, 500))
    assert [use.used for use in (await limiter.info()).uses] == [1000] * 8


# Refunds and overdrafts


async def test_what_was_not_used_goes_back_when_the_slice_ends(session: Session, other: Session) -> None:
    limiter = RateLimiter("x", TEN_SECONDS, session=session)
    async with limiter.reserve(16) as spend:
        assert 0 < spend.deadline() <= 0.5
        spend.used(4)
    assert spend.overdraft == {} and spend.cost == {"": 16}
    await RateLimiter("x", TEN_SECONDS, session=other).acquire(16, timeout=3)
    assert await used(limiter) == 20


async def test_a_refund_is_spent_again_in_the_same_process_without_etcd(session: Session) -> None:
    limiter = RateLimiter("x", Rate(100, per=600), session=session)
    for _ in range(10):
        async with limiter.reserve(60, timeout=1) as spend:
            spend.used(0)
    assert await used(limiter) == 60


async def test_a_late_refund_goes_back_at_once(session: Session) -> None:
    limiter = RateLimiter("x", TEN_SECONDS, session=session)
    async with limiter.reserve(16) as spend:
        await asyncio.sleep(1.1)
        assert spend.deadline() == 0.0
        spend.used(0)
    await eventually(lambda: nothing_left(session), 0.9)


async def test_an_overdraft_counts_for_everybody(session: Session, other: Session) -> None:
    limiter = RateLimiter("x", MINUTELY, session=session)
    async with limiter.reserve(2) as spend:
        spend.used(8)
    assert spend.overdraft == {"": 6}

    async def counted() -> bool:
        return await used(limiter) == 8

    await eventually(counted)
    with pytest.raises(LockTimeout):
        await RateLimiter("x", MINUTELY, session=other).acquire(3, timeout=0)


async def test_an_overdraft_above_the_limit_takes_the_whole_limit(session: Session, other: Session) -> None:
    limiter = RateLimiter("x", SECONDLY, session=session)
    async with limiter.reserve(2) as spend:
        spend.used(500)
    assert spend.overdraft == {"": 498}
    with pytest.raises(LockTimeout):
        await RateLimiter("x", SECONDLY, session=other).acquire(timeout=0.7)


# Two processes


async def test_two_processes_take_turns_and_keep_the_limit(session: Session, other: Session) -> None:
    rate = Rate(24, per=1)
    times: dict[Session, list[float]] = {session: [], other: []}

    async def spend(mine: Session) -> None:
        limiter = RateLimiter("x", rate, session=mine)
        while True:
            await limiter.acquire()
            times[mine].append(clock.now())

    tasks = [asyncio.create_task(spend(mine)) for mine in times for _ in range(30)]
    await asyncio.sleep(3.5)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    every = sorted(times[session] + times[other])
    assert all(later - earlier > rate.per for earlier, later in zip(every, every[rate.amount :], strict=False))
    shares = sorted(map(len, times.values()))
    assert shares[0] >= 0.6 * shares[1] > 0, shares
    await eventually(lambda: not core_of(session).waits())  # a slice that was under way is withdrawn


async def test_two_objects_of_one_name_share_one_budget(session: Session) -> None:
    one, two = (RateLimiter("x", MINUTELY, session=session) for _ in range(2))
    await one.acquire(6)
    await two.acquire(4)
    with pytest.raises(LockTimeout):
        await one.acquire(timeout=0)
    assert await used(two) == 10


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


# Names

COMPOSED = unicodedata.normalize("NFC", "modèle/é")


@pytest.mark.parametrize("name", ["a/b/c", "100%", "%2F", "a%2Fb", COMPOSED, "n" * 440, "é" * 220, " ", "-"])
async def test_any_name_names_a_limiter(session: Session, other: Session, name: str) -> None:
    limiter = RateLimiter(name, limits=BOTH, session=session)
    await limiter.acquire(requests=1, tokens=10)
    decomposed = RateLimiter(unicodedata.normalize("NFD", name), limits=BOTH, session=other)
    await decomposed.acquire(requests=9, tokens=10)
    assert decomposed.name == limiter.name and await used(decomposed, "requests") == 10
    await limiter.throttled(30)
    assert (await decomposed.info()).paused_until
    await decomposed.resume()
    await limiter.resize(requests=Rate(11, per=60))
    assert (await decomposed.info()).uses[0].limit == 11


async def test_a_name_that_begins_another_sees_nothing_of_it(session: Session, other: Session) -> None:
    limiters = [RateLimiter(name, SECONDLY, session=session) for name in ("a", "a/b", "a/", "a%2Fb")]
    for limiter in limiters:
        await limiter.acquire(8, timeout=2)
    await limiters[0].throttled(30)
    await limiters[1].resize(Rate(16, per=1))
    await limiters[1].acquire(8, timeout=2)
    assert [(await limiter.info()).uses[0].used for limiter in limiters] == [8, 16, 8, 8]
    assert [bool((await limiter.info()).paused_until) for limiter in limiters] == [True, False, False, False]
    await limiters[0].resume()
    await eventually(lambda: nothing_left(session))
    await limiters[0].delete()
    assert [len((await limiter.info()).uses) for limiter in limiters] == [0, 1, 1, 1]
    with suppress(LockTimeout):
        await limiters[1].acquire(timeout=0)


# Keys and leases


async def test_key_names_are_used_again_and_no_lease_is_left(etcd: EmbeddedEtcd, session: Session) -> None:
    before = leases(etcd)
    names: list[set[bytes]] = []

    async def take_ten(number: int) -> None:
        limiter = RateLimiter(f"x{number}", Rate(10_000_000, per=1), session=session)
        for _ in range(10):
            await limiter.acquire(900_000)  # no open slice has room for two

    for _ in range(2):
        await asyncio.gather(*(take_ten(number) for number in range(10)))
        found = await parts(session)
        assert len({kv.key for kv in found}) >= 10 * 5
        names.append({kv.key for kv in found})
        await eventually(lambda: nothing_left(session))
    assert {_slot(key) for key in names[1]} <= set(range(max(map(_slot, names[0])) + 6))
    await eventually(lambda: not (leases(etcd) - before))


def _slot(key: bytes) -> int:
    return int(key.rpartition(b"-")[2].partition(b".")[0], 16)
