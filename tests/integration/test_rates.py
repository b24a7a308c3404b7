"""Rate limiters: grants, refunds and overdrafts, turns, pauses, and the changes of a limit."""

from __future__ import annotations

import asyncio
import unicodedata
from contextlib import suppress

import pytest

from codomyrmex.concurrency import (
    EmbeddedEtcd,
    LockTimeout,
    Rate,
    RateLimiter,
    Session,
    clock,
)
from codomyrmex.concurrency.session import core_of
from tests.helpers import eventually
from tests.integration.rate_keys import leases, nothing_left, parts

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
