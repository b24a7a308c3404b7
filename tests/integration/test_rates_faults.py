"""Rate limiters under faults: cancels at every await, lost answers, an etcd that is away, and sessions that end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Generator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from codomyrmex.concurrency import (
    ConcurrencyError,
    EmbeddedEtcd,
    EtcdAuthError,
    EtcdUnavailable,
    LockTimeout,
    Rate,
    RateLimiter,
    Session,
    SessionLost,
    UsedElsewhere,
    clock,
)
from codomyrmex.concurrency.etcd.transports.protocol import Lease
from codomyrmex.concurrency.etcd.watch import Refused
from codomyrmex.concurrency.rates import driver, slices
from codomyrmex.concurrency.rates.driver import Driver, Drivers
from codomyrmex.concurrency.session import core_of, default_session
from codomyrmex.concurrency.testing import TcpProxy
from tests.forks import in_child
from tests.helpers import eventually, revoke
from tests.integration.rate_keys import leases, nothing_left, pauses
from tests.integration.test_elsewhere import first_step
from tests.integration.test_faults import through_proxy
from tests.integration.test_reservation_faults import until_cancelled
from tests.stepping import AtStep

RATE = Rate(10, per=1)
LONG = Rate(10, per=60)


def driver_of(session: Session, name: str = "x") -> Driver:
    found = core_of(session).member(Drivers).find(name)
    assert found
    return found


def fresh_limiter(session: Session, rate: Rate = RATE) -> RateLimiter:
    """A limiter whose limits must be agreed on again."""
    return RateLimiter("x", rate, session=session)


# Cancels


class _GivesUp(AtStep):
    """Cancels a task at one step of another one's work."""

    def __init__(self, work: Coroutine[Any, Any, Any], step: int, caller: asyncio.Task[None]) -> None:
        super().__init__(work, step)
        self._caller = caller

    def strike(self) -> Generator[Any, None, None]:
        self._caller.cancel()
        yield from ()


@pytest.mark.parametrize(("contended", "least"), [(False, 2), (True, 3)])
async def test_a_caller_that_gives_up_at_any_step_of_its_slice_leaves_nothing(
    etcd: EmbeddedEtcd,
    session: Session,
    other: Session,
    contended: bool,
    least: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def stepped(*args: Any, **named: Any) -> object:
        runners.append(_GivesUp(slices.take(*args, **named), step, caller))
        return await runners[-1]

    runners: list[_GivesUp] = []
    monkeypatch.setattr(driver, "take", stepped)
    limiter, theirs = fresh_limiter(session), fresh_limiter(other)
    before = leases(etcd)
    step = -1
    while not runners or runners[-1].reached:
        step += 1
        if contended:
            monkeypatch.undo()
            async with theirs.reserve(9) as spend:
                spend.used(0)
            monkeypatch.setattr(driver, "take", stepped)
        caller = asyncio.create_task(limiter.acquire(9))
        with suppress(asyncio.CancelledError):
            await asyncio.wait_for(caller, 5)
        await eventually(lambda: nothing_left(other), 3)
    assert step >= least
    await eventually(lambda: not leases(etcd) - before, 5)


@pytest.mark.parametrize(("contended", "least"), [(False, 2), (True, 2)])
@pytest.mark.parametrize("way", ["acquire", "reserve"])
async def test_a_call_cancelled_at_any_await_spends_nothing(
    session: Session, other: Session, way: str, contended: bool, least: int
) -> None:
    ended = 0

    async def work() -> None:
        nonlocal ended
        limiter = fresh_limiter(session)
        if way == "acquire":
            await limiter.acquire(9)
            ended += 1
        else:
            async with limiter.reserve(9) as spend:
                ended += 1
                spend.used(0)

    async def after(error: BaseException | None) -> None:
        nonlocal ended
        assert not core_of(session).waits()
        if way == "acquire":
            assert ended == (error is None)
        ended = 0
        await eventually(lambda: nothing_left(other), 3)
        if contended:
            await fresh_limiter(other).acquire(9)

    assert await until_cancelled(work, after) >= least
    await fresh_limiter(session).acquire(10, timeout=3)


async def test_a_pause_cancelled_at_any_await_is_whole_or_leaves_nothing(
    etcd: EmbeddedEtcd, session: Session, other: Session
) -> None:
    await fresh_limiter(session, LONG).acquire()
    before = leases(etcd)

    async def after(error: BaseException | None) -> None:
        if error:
            await eventually(lambda: nothing_paused(other))
        else:
            assert await pauses(other)
        await fresh_limiter(other, LONG).resume()
        await fresh_limiter(session, LONG).resume()
        await eventually(lambda: nothing_paused(other))

    limiter = fresh_limiter(session, LONG)
    assert await until_cancelled(lambda: limiter.throttled(60), after) >= 2
    await limiter.acquire(timeout=2)
    await eventually(lambda: len(leases(etcd) - before) <= 3)  # those of slices


async def nothing_paused(session: Session) -> bool:
    return not await pauses(session)


async def test_changes_of_a_limit_cancelled_at_any_await_are_whole_or_not_at_all(
    session: Session, other: Session
) -> None:
    limits = {"a": Rate(10, per=1), "b": Rate(10, per=1)}
    limiter = RateLimiter("x", limits=limits, session=session)
    await limiter.acquire(a=1)
    amounts = iter(range(11, 100))

    async def resize() -> None:
        amount = next(amounts)
        await limiter.resize(a=Rate(amount, per=1), b=Rate(amount, per=1))

    async def resized(error: BaseException | None) -> None:
        await core_of(session).committer.idle()
        found = {use.dimension: use.limit for use in (await limiter.info()).uses}
        assert found["a"] == found["b"]
        await limiter.acquire(a=1, timeout=3)

    assert await until_cancelled(resize, resized) >= 2
    await eventually(lambda: nothing_left(other), 3)

    async def deleted(error: BaseException | None) -> None:
        await core_of(session).committer.idle()  # a change that was sent is carried out
        uses = (await limiter.info()).uses
        assert len(uses) in ((0, 2) if error else (0,))
        if not uses:
            again = RateLimiter("x", limits=limits, session=session)
            await again.acquire(b=1, timeout=2)
            await eventually(lambda: nothing_left(other), 3)

    assert await until_cancelled(limiter.delete, deleted) >= 2


# Lost answers


@asynccontextmanager
async def far(etcd: EmbeddedEtcd, namespace: str) -> AsyncIterator[tuple[TcpProxy, Session, RateLimiter]]:
    """A session whose answers can be lost, and a limiter in it that has its driver."""
    async with through_proxy(etcd, namespace, session_ttl=10) as (proxy, session):
        limiter = fresh_limiter(session)
        await limiter.acquire()
        await eventually(lambda: nothing_left(session))
        yield proxy, session, limiter


def lose(proxy: TcpProxy, match: bytes, late: bool) -> None:
    """Lose the next answer with ``match``, or deliver the request when the caller is no longer connected."""
    if late:
        proxy.delay_next_request(match, 0.3)
    else:
        proxy.drop_next_answer(match)


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("moment", ["join", "move", "deletion"])
async def test_a_lost_answer_costs_use_and_never_the_limit(
    etcd: EmbeddedEtcd, namespace: str, other: Session, moment: str, late: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = fresh_limiter(other)
    await theirs.acquire()
    async with far(etcd, namespace) as (proxy, session, mine):
        key = core_of(session).layout.rate("x", "")
        before = leases(etcd)
        spent: list[tuple[float, int]] = []

        async def spend(limiter: RateLimiter, cost: int) -> None:
            await asyncio.wait_for(limiter.acquire(cost), 12)
            spent.append((clock.now(), cost))

        async def lose_the_move() -> bool:
            monkeypatch.undo()
            lose(proxy, key, late)
            return False

        if moment == "join":
            lose(proxy, key, late)
        elif moment == "move":
            monkeypatch.setattr(driver_of(session), "_gate", lose_the_move)
        await spend(mine, 7)
        if moment == "deletion":
            lose(proxy, key, late)
        await asyncio.gather(spend(theirs, 7), spend(mine, 3))
        await eventually(lambda: nothing_left(other), 6)
        assert proxy.dropped + proxy.delivered == 1
        for at, _ in spent:
            assert sum(cost for when, cost in spent if at <= when < at + RATE.per) <= RATE.amount, spent
        await eventually(lambda: not leases(etcd) - before, 6)


@pytest.mark.parametrize("late", [False, True])
async def test_a_lost_answer_of_a_pause_is_one_pause(
    etcd: EmbeddedEtcd, namespace: str, other: Session, late: bool
) -> None:
    async with far(etcd, namespace) as (proxy, _, mine):
        lose(proxy, b"/pause/x/", late)
        await mine.throttled(60)
        assert len(await pauses(other)) == 1
        lose(proxy, b"/pause/x/", late)
        assert await mine.resume()
        await eventually(lambda: nothing_paused(other))
        await mine.acquire(timeout=5)


async def test_a_lease_whose_answer_was_lost_ends_by_itself(
    etcd: EmbeddedEtcd, session: Session, other: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has no key, and lasts for the period and the life of a slice."""
    limiter = fresh_limiter(session)
    await limiter.acquire()
    await eventually(lambda: nothing_left(other))
    before, transport = leases(etcd), core_of(session).transport
    grant = transport.grant

    async def lost(ttl: int) -> Lease:
        monkeypatch.undo()
        await grant(ttl)
        raise EtcdUnavailable("the answer was lost", applied="unknown")

    monkeypatch.setattr(transport, "grant", lost)
    with pytest.raises(EtcdUnavailable, match="the rate limit 'x' grants nothing until etcd answers"):
        await limiter.acquire(9)
    await eventually(lambda: nothing_left(other), 1)
    assert len(leases(etcd) - before) == 1
    await limiter.acquire(9, timeout=2)
    await eventually(lambda: not leases(etcd) - before, 8)


# Ends


async def test_while_etcd_is_away_only_what_was_got_is_spent(namespace: str) -> None:
    async with (
        EmbeddedEtcd() as own,
        Session(endpoints=own.endpoint, namespace=namespace, session_ttl=20, request_timeout=0.6) as session,
    ):
        limiter = RateLimiter("x", Rate(100, per=60), session=session)
        async with limiter.reserve(8) as spend:
            spend.used(3)
        await asyncio.to_thread(own.kill)
        for _ in range(5):
            await limiter.acquire(timeout=0.5)
        with pytest.raises(EtcdUnavailable, match="grants nothing until etcd answers; what this process had got"):
            await limiter.acquire()
        with pytest.raises(LockTimeout, match="etcd does not answer, so nothing is granted anew"):
            await limiter.acquire(timeout=0.2)
        assert not core_of(session).waits()
        await own.start()
        await eventually(lambda: granted(limiter), 10)


async def granted(limiter: RateLimiter) -> bool:
    with suppress(ConcurrencyError):
        await limiter.acquire(timeout=2)
        return True
    return False


async def test_slices_outlast_a_session_that_is_lost(session: Session, other: Session) -> None:
    limiter = RateLimiter("x", Rate(20, per=20), session=session)
    async with limiter.reserve(6) as spend:
        await revoke(session, session.id)
        await asyncio.wait_for(session.lost.wait(), 3)
        spend.used(0)
    for _ in range(6):
        await limiter.acquire()
    with pytest.raises(SessionLost):
        await limiter.acquire()
    with pytest.raises(SessionLost):
        await limiter.throttled(5)
    with pytest.raises(LockTimeout):
        await RateLimiter("x", Rate(20, per=20), session=other).acquire(15, timeout=0)  # what was spent counts


async def test_a_session_that_closes_gives_back_what_it_has_not_spent(
    etcd: EmbeddedEtcd, namespace: str, other: Session
) -> None:
    theirs, before = fresh_limiter(other, LONG), leases(etcd)
    async with Session(endpoints=etcd.endpoint, namespace=namespace) as session:
        limiter = fresh_limiter(session, LONG)
        async with limiter.reserve(8) as spend:
            spend.used(2)
        waiting = [asyncio.create_task(limiter.acquire(9)) for _ in range(3)]
        await eventually(lambda: waits(theirs))
    for error in await asyncio.gather(*waiting, return_exceptions=True):
        assert isinstance(error, SessionLost)
    (use,) = (await theirs.info()).uses
    assert (use.used, use.waiting) == (2, 0)
    await theirs.acquire(8, timeout=1)
    assert len(leases(etcd) - before) <= 2  # of what was spent here and there


async def waits(limiter: RateLimiter) -> bool:
    return (await limiter.info()).waiting == 1


async def test_a_session_that_closes_with_nothing_spent_leaves_no_lease(etcd: EmbeddedEtcd, namespace: str) -> None:
    before = leases(etcd)
    async with Session(endpoints=etcd.endpoint, namespace=namespace) as session:
        limiter = fresh_limiter(session, LONG)
        async with limiter.reserve(8) as spend:
            spend.used(0)
    await eventually(lambda: not leases(etcd) - before, 2)


async def test_a_forked_child_is_refused(session: Session) -> None:
    limiter = fresh_limiter(session, LONG)
    await limiter.acquire()
    calls: dict[str, Callable[[], Coroutine[Any, Any, Any]]] = {
        "acquire": limiter.acquire,
        "throttled": lambda: limiter.throttled(5),
        "resume": limiter.resume,
        "info": limiter.info,
        "resize": lambda: limiter.resize(Rate(20, per=60)),
        "delete": limiter.delete,
    }
    told = in_child(lambda: {name: first_step(call()) for name, call in calls.items()})
    for name, text in told.items():
        assert text.startswith("UsedElsewhere: "), (name, text)
    await limiter.acquire(timeout=2)


def test_a_limiter_of_a_loop_that_was_closed_is_refused(etcd: EmbeddedEtcd, namespace: str) -> None:
    made: list[RateLimiter] = []

    async def use() -> None:
        session = Session(endpoints=etcd.endpoint, namespace=namespace)
        await session.open()
        made.append(RateLimiter("x", LONG, session=session))
        await made[0].acquire()

    asyncio.run(use())
    for work in (made[0].acquire, lambda: made[0].throttled(5), made[0].info):
        with pytest.raises(UsedElsewhere):
            asyncio.run(work())


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_limiter_without_a_session_serves_each_loop_and_a_forked_child(
    etcd: EmbeddedEtcd, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CODOMYRMEX_ETCD_ENDPOINTS", etcd.endpoint)
    monkeypatch.setenv("CODOMYRMEX_ETCD_NAMESPACE", namespace)
    limiter = RateLimiter("x", Rate(100, per=60))

    async def use() -> int:
        await limiter.acquire(2, timeout=5)
        await default_session().close()
        async with Session(endpoints=etcd.endpoint, namespace=namespace) as session:
            return sum(use.used for use in (await fresh_limiter(session).info()).uses)

    assert [asyncio.run(use()) for _ in range(2)] == [2, 4]
    assert in_child(lambda: asyncio.run(use())) == 6


@pytest.mark.parametrize(("work", "what"), [("_slices", "getting a slice"), ("_go_on", "the timer")])
async def test_work_that_fails_ends_the_session(
    etcd: EmbeddedEtcd, namespace: str, work: str, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Session(endpoints=etcd.endpoint, namespace=namespace, session_ttl=3)
    await session.open()
    limiter = fresh_limiter(session)
    await limiter.acquire(8)

    def fail(*args: object, **named: object) -> None:
        raise RuntimeError("a defect")

    waiting = asyncio.create_task(limiter.acquire(9)) if work == "_go_on" else None
    await asyncio.sleep(0.02)
    monkeypatch.setattr(driver_of(session), work, fail)
    with pytest.raises(SessionLost, match=f"{what} of a rate limit of this session failed: RuntimeError: a defect"):
        await asyncio.wait_for(waiting or limiter.acquire(9), 3)
    assert session.lost.is_set()
    await session.close()


async def test_pauses_that_may_not_be_followed_end_the_driver_and_not_the_session(
    session: Session, other: Session
) -> None:
    limiter = fresh_limiter(session, LONG)
    async with limiter.reserve(6) as spend:
        spend.used(0)
    first = driver_of(session)
    first.pauses._notice(Refused(EtcdAuthError("permission denied")))
    await eventually(lambda: nothing_left(other))  # what was not spent went back
    await limiter.acquire(timeout=2)
    assert driver_of(session) is not first and not session.lost.is_set()


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("call", [1, 2])
async def test_a_session_lost_in_the_middle_of_a_slice_leaves_nothing_for_long(
    etcd: EmbeddedEtcd, namespace: str, other: Session, call: int, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first transaction joins, the second one moves. A slice that had moved stays for its lease, 2 s here."""
    async with Session(endpoints=etcd.endpoint, namespace=namespace, session_ttl=5) as session:
        limiter, before = fresh_limiter(session), leases(etcd)
        await limiter.acquire()
        await eventually(lambda: nothing_left(other))
        core, calls = core_of(session), 0
        txn = core.transport.txn

        async def interfered(*args: Any) -> object:
            nonlocal calls
            calls += 1
            if calls == call and moment == "before":
                await revoke(session, session.id)
            answer = await txn(*args)
            if calls == call and moment == "after":
                await revoke(session, session.id)
                await asyncio.wait_for(session.lost.wait(), 3)
            return answer

        monkeypatch.setattr(core.transport, "txn", interfered)
        with suppress(SessionLost):
            await asyncio.wait_for(limiter.acquire(9), 5)  # once it has moved, it may be spent
        monkeypatch.undo()
        await eventually(lambda: nothing_left(other), 4)
    await eventually(lambda: not leases(etcd) - before, 4)


@pytest.mark.parametrize("hung", [False, True])
async def test_a_queued_call_waits_through_an_outage_and_a_new_one_is_told(
    etcd: EmbeddedEtcd, namespace: str, other: Session, caplog: pytest.LogCaptureFixture, hung: bool
) -> None:
    rate = Rate(10, per=3)
    await fresh_limiter(other, rate).acquire(10)
    async with through_proxy(etcd, namespace, session_ttl=60, request_timeout=1.0) as (proxy, session):
        mine = fresh_limiter(session, rate)
        queued = asyncio.create_task(mine.acquire(10))
        await asyncio.sleep(0.5)  # it has joined, and an answer has confirmed it
        if hung:
            proxy.blackhole()
        else:
            proxy.refuse()
            proxy.cut()
        began = clock.now()
        calls = asyncio.gather(mine.acquire(), mine.acquire(timeout=9), return_exceptions=True)
        for error in await asyncio.wait_for(calls, 4):
            assert isinstance(error, EtcdUnavailable) and "grants nothing until etcd answers" in str(error)
        assert clock.now() - began < 1.8 and not queued.done()
        with pytest.raises(EtcdUnavailable):
            await mine.acquire()
        proxy.resume()
        await asyncio.wait_for(queued, 15)
    told = [record.getMessage() for record in caplog.records if "rate limiter" in record.getMessage()]
    assert told == ["etcd does not answer: the rate limiter 'x' grants nothing until it does; waiting calls: 1"]


async def test_an_outage_is_told_if_calls_only_wait(
    etcd: EmbeddedEtcd, namespace: str, other: Session, caplog: pytest.LogCaptureFixture
) -> None:
    await fresh_limiter(other, LONG).acquire(10)
    async with through_proxy(etcd, namespace, session_ttl=3, request_timeout=1.0) as (proxy, session):
        queued = asyncio.create_task(fresh_limiter(session, LONG).acquire())
        await asyncio.sleep(0.5)  # an answer has confirmed it
        proxy.blackhole()
        await eventually(lambda: "rate limiter 'x' grants nothing" in caplog.text, 4)
        assert not queued.done()
        proxy.resume()
        queued.cancel()
    assert caplog.text.count("grants nothing") == 1
