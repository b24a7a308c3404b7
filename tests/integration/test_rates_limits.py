"""Rate limiters and bad input: each is refused with an error that tells what to do, and changes nothing in etcd."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Any

import pytest

from codomyrmex.concurrency import (
    InvalidName,
    LimitMismatch,
    NotHeld,
    Rate,
    RateLimiter,
    RateLimitInUse,
    Session,
)
from codomyrmex.concurrency.etcd.transports.protocol import Delete, Put
from codomyrmex.concurrency.health import cluster_status
from codomyrmex.concurrency.keys import limit_key
from codomyrmex.concurrency.rates import limits as limits_in_etcd
from codomyrmex.concurrency.session import core_of
from tests.helpers import counting, eventually
from tests.integration.rate_keys import nothing_left, parts

MINUTELY = Rate(10, per=60)
BOTH = {"requests": Rate(10, per=60), "tokens": Rate(1000, per=60)}

Wrong = tuple[Callable[[], object], type[Exception], str]

LIMITERS: dict[str, Wrong] = {
    "amount 0": (lambda: Rate(0, per=60), ValueError, "at least 1"),
    "amount below 0": (lambda: Rate(-1, per=60), ValueError, "at least 1"),
    "amount of a float": (lambda: Rate(1.5, per=60), TypeError, "must be an int"),  # type: ignore[arg-type]
    "amount True": (lambda: Rate(True, per=60), TypeError, "must be an int"),
    "too large an amount": (lambda: Rate(1 << 63, per=60), ValueError, "at most"),
    "per below a second": (lambda: Rate(1, per=0.99), ValueError, "from 1 second to 7 days"),
    "per above 7 days": (lambda: Rate(1, per=7 * 86_400 + 1), ValueError, "from 1 second to 7 days"),
    "per nan": (lambda: Rate(1, per=math.nan), ValueError, "from 1 second to 7 days"),
    "per of a text": (lambda: Rate(1, per="60"), TypeError, "per"),  # type: ignore[arg-type]
    "no rate": (lambda: RateLimiter("x"), TypeError, "limits="),
    "a rate and limits": (lambda: RateLimiter("x", MINUTELY, limits=BOTH), TypeError, "either"),
    "no limits": (lambda: RateLimiter("x", limits={}), ValueError, "1 to 8 dimensions"),
    "nine limits": (lambda: RateLimiter("x", limits={f"d{n}": MINUTELY for n in range(9)}), ValueError, "1 to 8"),
    "a number for a rate": (lambda: RateLimiter("x", 100), TypeError, "the limit must be a Rate, such as Rate"),  # type: ignore[arg-type]
    "0 for a rate": (lambda: RateLimiter("x", 0), TypeError, "must be a Rate"),  # type: ignore[arg-type]
    "a rate for limits": (lambda: RateLimiter("x", limits=MINUTELY), TypeError, r"RateLimiter\('x', Rate\("),  # type: ignore[arg-type]
    "a number for a limit": (lambda: RateLimiter("x", limits={"a": 1}), TypeError, "'a' must be a Rate"),  # type: ignore[dict-item]
    "None for a limit": (lambda: RateLimiter("x", limits={"a": None}), TypeError, "'a' must be a Rate"),  # type: ignore[dict-item]
    "a dimension without a name": (lambda: RateLimiter("x", limits={"": MINUTELY}), ValueError, "identifier"),
    "a dimension with a slash": (lambda: RateLimiter("x", limits={"a/b": MINUTELY}), ValueError, "identifier"),
    "too long a dimension": (lambda: RateLimiter("x", limits={"é" * 33: MINUTELY}), ValueError, "identifier"),
    "a dimension named timeout": (lambda: RateLimiter("x", limits={"timeout": MINUTELY}), ValueError, "not be named"),
    "no name": (lambda: RateLimiter("", MINUTELY), InvalidName, "empty"),
    "too long a name": (lambda: RateLimiter("n" * 441, MINUTELY), InvalidName, "440 bytes"),
    "a name with a newline": (lambda: RateLimiter("a\nb", MINUTELY), InvalidName, "control"),
    "a name of a number": (lambda: RateLimiter(5, MINUTELY), InvalidName, "must be a str"),  # type: ignore[arg-type]
    "a text for a session": (lambda: RateLimiter("x", MINUTELY, session="s"), TypeError, "session"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize(("make", "error", "told"), LIMITERS.values(), ids=LIMITERS)
def test_a_limiter_that_cannot_be_is_refused(make: Callable[[], object], error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        make()


COSTS: dict[str, tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]] = {
    "above the limit": ((11,), {}, ValueError, "the cost is 11, but the limit is 10 per minute"),
    "0": ((0,), {}, ValueError, "at least 1"),
    "below 0": ((-3,), {}, ValueError, "at least 1"),
    "a float": ((1.0,), {}, TypeError, "must be an int"),
    "True": ((True,), {}, TypeError, "must be an int"),
    "a text": (("1",), {}, TypeError, "must be an int"),
    "an unknown dimension": ((), {"tokens": 1}, ValueError, "no dimension 'tokens'"),
    "a timeout below 0": ((1,), {"timeout": -1}, ValueError, "timeout"),
    "a timeout of a text": ((1,), {"timeout": "1"}, TypeError, "timeout"),
}
NAMED_COSTS: dict[str, tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]] = {
    "nothing": ((), {}, TypeError, "requests=1"),
    "an amount without a name": ((5,), {}, TypeError, "name the dimension of 5: requests=..., tokens=..."),
    "above one limit": ((), {"requests": 1, "tokens": 1001}, ValueError, "the cost in tokens is 1001, but the limit"),
    "0 in one": ((), {"requests": 0, "tokens": 1}, ValueError, "in requests must be at least 1"),
    "an unknown dimension": ((), {"images": 1}, ValueError, "no dimension 'images' here.*'requests', 'tokens'"),
}


@pytest.mark.parametrize("way", ["acquire", "reserve"])
@pytest.mark.parametrize(("args", "named", "error", "told"), COSTS.values(), ids=COSTS)
async def test_a_cost_that_cannot_be_is_refused(
    session: Session, way: str, args: tuple[Any, ...], named: dict[str, Any], error: type[Exception], told: str
) -> None:
    await refused(RateLimiter("x", MINUTELY, session=session), session, way, args, named, error, told)


@pytest.mark.parametrize("way", ["acquire", "reserve"])
@pytest.mark.parametrize(("args", "named", "error", "told"), NAMED_COSTS.values(), ids=NAMED_COSTS)
async def test_a_cost_that_cannot_be_is_refused_in_several_dimensions(
    session: Session, way: str, args: tuple[Any, ...], named: dict[str, Any], error: type[Exception], told: str
) -> None:
    await refused(RateLimiter("x", limits=BOTH, session=session), session, way, args, named, error, told)


async def refused(
    limiter: RateLimiter,
    session: Session,
    way: str,
    args: tuple[Any, ...],
    named: dict[str, Any],
    error: type[Exception],
    told: str,
) -> None:
    with counting(session) as calls, pytest.raises(error, match=told):
        if way == "acquire":
            await limiter.acquire(*args, **named)
        else:
            async with limiter.reserve(*args, **named):
                pass
    assert not calls  # it is refused before anything is asked of etcd


async def test_used_is_told_once_inside_the_block(session: Session) -> None:
    limiter = RateLimiter("x", limits=BOTH, session=session)
    async with limiter.reserve(requests=1, tokens=100) as spend:
        wrong: list[tuple[tuple[Any, ...], dict[str, Any], type[Exception]]] = [
            ((), {"tokens": -1}, ValueError),
            ((), {"tokens": 1.5}, TypeError),
            ((), {"images": 1}, ValueError),
            ((5,), {}, TypeError),
        ]
        for args, named, error in wrong:
            with pytest.raises(error):
                spend.used(*args, **named)
        spend.used(tokens=40)
        with pytest.raises(NotHeld, match="called before: call it once"):
            spend.used(tokens=40)
    async with limiter.reserve(requests=1) as late:
        pass
    with pytest.raises(NotHeld, match="before the block ends"):
        late.used(requests=0)
    assert next(use.used for use in (await limiter.info()).uses) == 2


async def test_a_dimension_that_was_not_reserved_cannot_be_used(session: Session) -> None:
    async with RateLimiter("x", limits=BOTH, session=session).reserve(requests=1) as spend:
        with pytest.raises(ValueError, match="tokens"):
            spend.used(tokens=40)
        spend.used(requests=1)


async def test_a_reserve_that_is_never_entered_is_told(session: Session) -> None:
    limiter = RateLimiter("x", MINUTELY, session=session)
    with pytest.warns(RuntimeWarning, match="was never entered"):
        limiter.reserve(5)
    assert not await parts(session)


@pytest.mark.parametrize(
    ("seconds", "error"),
    [(0, ValueError), (-1, ValueError), (math.inf, ValueError), (math.nan, ValueError), (604_801, ValueError),
     ("12", TypeError), (None, TypeError), (True, TypeError)],
)  # fmt: skip
async def test_a_pause_that_cannot_be_is_refused(session: Session, seconds: Any, error: type[Exception]) -> None:
    limiter = RateLimiter("x", MINUTELY, session=session)
    with counting(session) as calls, pytest.raises(error, match="retry_after"):
        await limiter.throttled(seconds)
    assert not calls


async def test_a_resize_that_cannot_be_changes_nothing(session: Session) -> None:
    limiter = RateLimiter("x", limits=BOTH, session=session)
    await limiter.acquire(requests=1)
    wrong: list[tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]] = [
        ((), {}, TypeError, "give the new rate"),
        ((), {"requests": Rate(20, per=30)}, ValueError, "counts per minute; only its amount"),
        ((), {"images": MINUTELY}, ValueError, "has the dimensions requests, tokens, not 'images'"),
        ((MINUTELY,), {}, TypeError, r"name the dimension of 10 per minute, such as resize\(requests=Rate\("),
        ((), {"limits": BOTH}, TypeError, r"such as resize\(requests=Rate\("),
        ((), {"requests": Rate(20, per=60), "images": MINUTELY}, ValueError, "images"),
        ((), {"requests": 20}, TypeError, "must be a Rate"),
        ((20,), {}, TypeError, "name the dimension of 20"),
    ]
    for args, named, error, told in wrong:
        with pytest.raises(error, match=told):
            await limiter.resize(*args, **named)
    assert {use.dimension: use.limit for use in (await limiter.info()).uses} == {"requests": 10, "tokens": 1000}


async def test_a_limiter_in_use_is_not_deleted(session: Session, other: Session) -> None:
    limiter = RateLimiter("x", Rate(10, per=2), session=session)
    await limiter.acquire(10)
    waiting = asyncio.create_task(RateLimiter("x", Rate(10, per=2), session=other).acquire(2))
    with pytest.raises(RateLimitInUse, match="in use: 1 slice counts or waits; what was spent counts for 2 s"):
        await limiter.delete()
    await eventually(lambda: two_slices(limiter))
    with pytest.raises(RateLimitInUse, match="in use: 2 slices count or wait"):
        await limiter.delete()
    await asyncio.wait_for(waiting, 4)
    await eventually(lambda: nothing_left(session))
    await limiter.delete()
    with pytest.raises(NotHeld):
        await limiter.delete()


async def two_slices(limiter: RateLimiter) -> bool:
    (use,) = (await limiter.info()).uses
    return len(use.holders) + len(use.waiters) == 2


@pytest.mark.parametrize("timeout", [None, 0, 3])
async def test_a_limiter_deleted_elsewhere_is_opened_anew_by_the_next_call(
    session: Session, other: Session, timeout: float | None
) -> None:
    limiter = RateLimiter("x", Rate(10, per=1), session=session)
    await limiter.acquire()
    await eventually(lambda: nothing_left(session))
    await RateLimiter("x", Rate(10, per=1), session=other).delete()
    await asyncio.gather(*(limiter.acquire(timeout=timeout) for _ in range(2)))
    assert (await limiter.info()).uses[0].used >= 2


async def test_a_limit_of_another_client_counts_if_it_is_lower(session: Session) -> None:
    """The queue obeys the lowest of the limit keys, however its value reads, so the limits tell the same."""
    limiter = RateLimiter("x", Rate(100, per=60), session=session)
    await limiter.acquire()
    core = core_of(session)
    foreign = limit_key(core.layout.rate("x", ""), 20)
    await core.transport.txn((), (Put(foreign, b"by hand"),))
    assert (await limiter.info()).uses[0].limit == 20
    with counting(session) as calls, pytest.raises(LimitMismatch, match="limit is 20 now"):
        await asyncio.wait_for(limiter.acquire(50), 3)
    assert calls.total() < 20
    await core.transport.txn((), (Delete(foreign),))
    await limiter.acquire(50, timeout=2)


@pytest.mark.parametrize("value", [b"", b"{}", b'{"per": 0.1, "dimensions": [""]}', b'{"per": "x"}', b"\xff"])
async def test_limits_that_cannot_be_read_are_passed_over(session: Session, value: bytes) -> None:
    core = core_of(session)
    key = limit_key(core.layout.rate("x", ""), 20)
    await core.transport.txn((), (Put(key, value),))
    assert (await RateLimiter("x", Rate(10, per=60), session=session).info()).uses == ()
    assert await limits_in_etcd.known(core, "x") == {}
    await asyncio.wait_for(RateLimiter("x", Rate(10, per=60), session=session).acquire(10), 2)


async def test_keys_of_others_are_told_by_the_status_and_change_nothing(session: Session) -> None:
    core = core_of(session)
    limiter = RateLimiter("x", MINUTELY, session=session)
    await limiter.acquire()
    strange = [
        core.layout.rate("x", "") + b"by-hand",  # without a lease
        core.layout.below("rate") + b"no-dimension/limit-5",
        core.layout.below("rate") + b"%zz/limit-5",
        core.layout.pauses("x") + b"by-hand",
    ]
    await core.transport.txn((), [Put(key, b"{}") for key in strange])
    await limiter.acquire(9, timeout=2)
    info = await limiter.info()
    assert info.uses[0].used == 10 and info.paused_until is None
    status = await cluster_status(session.settings)
    assert [text for text in status.warnings if "skipped" in text] == [
        "3 keys among the rate limit entries are not entries; they are skipped"
    ]
    assert status.locks == 0
