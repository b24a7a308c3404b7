"""Reservations under faults: a cancel at every await, lost and late answers, and sessions that end in the middle."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest

from codomyrmex.concurrency import (
    ConcurrencyError,
    DistributedLock,
    EmbeddedEtcd,
    LockLost,
    LockManager,
    Reservation,
    Session,
)
from codomyrmex.concurrency.session import core_of
from tests.helpers import eventually, queue_of, revoke
from tests.integration.test_faults import _CancelAt, through_proxy
from tests.integration.test_reservations import keys_of

STEPS = 60


async def until_cancelled(
    work: Callable[[], Awaitable[object]], after: Callable[[BaseException | None], Awaitable[object]]
) -> int:
    """Run ``work`` again and again, cancelled one step later each time; returns the number of its steps."""
    for step in range(STEPS):
        runner = _CancelAt(_coroutine(work), step)

        async def run(runner: _CancelAt = runner) -> None:
            await runner

        error: BaseException | None = None
        try:
            await asyncio.wait_for(asyncio.create_task(run()), 10)
        except asyncio.CancelledError as cancelled:
            error = cancelled
        await after(error)
        if not runner.reached:
            return step
    raise AssertionError("endless")


async def _coroutine(work: Callable[[], Awaitable[object]]) -> None:
    await work()


async def nothing_left(session: Session) -> bool:
    return not await keys_of(session)


@pytest.mark.parametrize(("contended", "least"), [(False, 2), (True, 3)])
async def test_a_reserve_cancelled_at_any_await_leaves_nothing(
    session: Session, other: Session, contended: bool, least: int
) -> None:
    manager = LockManager(session)
    holder = DistributedLock("x", other)
    got: list[Reservation] = []

    async def reserve() -> None:
        if contended:
            asyncio.get_running_loop().call_later(0.05, release.set)
        got.append(await manager.reserve("x", "y", ttl=60, note="n"))

    async def hold() -> None:
        async with holder:
            held.set()
            await release.wait()

    async def after(error: BaseException | None) -> None:
        assert bool(got) is (error is None)
        await asyncio.gather(*holding)
        while got:
            await got.pop().release()
        await eventually(lambda: nothing_left(other), 3)
        await begin()

    async def begin() -> None:
        release.clear()
        held.clear()
        if contended:
            holding[:] = [asyncio.create_task(hold())]
            await held.wait()

    held, release, holding = asyncio.Event(), asyncio.Event(), list[asyncio.Task[None]]()
    await begin()
    assert await until_cancelled(reserve, after) >= least
    release.set()
    await asyncio.gather(*holding)


async def test_a_renewal_cancelled_at_any_await_leaves_it_held(session: Session, other: Session) -> None:
    mine = await LockManager(session).reserve("x", "y", ttl=60, note="n")
    ttls = iter(range(61, 61 + STEPS))

    async def after(error: BaseException | None) -> None:
        assert await mine.check() > 50
        assert await LockManager(other).reservation(mine.handle).renew() > 50
        await mine.put("/app/x", "")

    assert await until_cancelled(lambda: mine.renew(note="m", ttl=next(ttls)), after) >= 2
    await mine.release()
    await eventually(lambda: nothing_left(session))


async def test_a_release_cancelled_at_any_await_goes_on(session: Session) -> None:
    held: list[Reservation] = [await LockManager(session).reserve("x", "y", ttl=60, note="n")]

    async def after(error: BaseException | None) -> None:
        await eventually(lambda: nothing_left(session))
        held[0] = await LockManager(session).reserve("x", "y", ttl=60, note="n")

    assert await until_cancelled(lambda: held[0].release(), after) >= 1


MARK = b"/v1/left/"  # in the move, in a note and in a release, and in nothing else


@pytest.mark.parametrize("late", [False, True])
async def test_a_lost_answer_is_asked_for_again_and_never_guessed(
    etcd: EmbeddedEtcd, namespace: str, other: Session, late: bool
) -> None:
    async with through_proxy(etcd, namespace, session_ttl=10) as (proxy, session):
        for _ in range(3):
            lose = (lambda: proxy.delay_next_request(MARK, 0.5)) if late else (lambda: proxy.drop_next_answer(MARK))
            lose()
            mine = await LockManager(session).reserve("x", "y", ttl=60, note="n")
            assert mine.left == "" and (await queue_of(other, "x", 1))[0].create_revision == mine.token
            lose()
            await mine.renew(note="m")
            assert await LockManager(other).reservation(mine.handle).check() > 50
            lose()
            await mine.release()
            await eventually(lambda: nothing_left(other))


async def test_a_release_in_doubt_may_be_called_again(etcd: EmbeddedEtcd, namespace: str, other: Session) -> None:
    async with through_proxy(etcd, namespace, session_ttl=20, request_timeout=0.5) as (proxy, session):
        mine = await LockManager(session).reserve("x", ttl=60, note="n")
        proxy.drop_next_answer(MARK)
        proxy.refuse()
        with suppress(ConcurrencyError):
            await mine.release()
        proxy.resume()
        await eventually(lambda: released(mine), 10)
        await eventually(lambda: nothing_left(other))


async def released(reservation: Reservation) -> bool:
    with suppress(ConcurrencyError):
        await reservation.release()
        return True
    return False


async def test_it_holds_while_etcd_is_away_and_is_renewed_when_it_is_back(namespace: str) -> None:
    async with (
        EmbeddedEtcd() as own,
        Session(endpoints=own.endpoint, namespace=namespace, session_ttl=10, request_timeout=1.0) as session,
    ):
        mine = await LockManager(session).reserve("x", ttl=60)
        await asyncio.to_thread(own.kill)
        with pytest.raises(ConcurrencyError) as caught:
            await mine.renew()
        assert not isinstance(caught.value, LockLost) and mine.expires_in() > 50
        await own.start()
        await eventually(lambda: renewed(mine), 10)
        await mine.release()


async def renewed(reservation: Reservation) -> bool:
    with suppress(ConcurrencyError):
        return await reservation.renew() > 50
    return False


async def test_a_session_lost_in_the_middle_of_a_reserve_leaves_nothing(
    etcd: EmbeddedEtcd, namespace: str, other: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    for moment in range(2):
        async with Session(endpoints=etcd.endpoint, namespace=namespace, session_ttl=5) as session:
            core, calls = core_of(session), 0
            txn = core.transport.txn

            async def interfered(*args: object, moment: int = moment, session: Session = session, txn=txn) -> object:  # type: ignore[no-untyped-def]
                nonlocal calls
                calls += 1
                if calls == 2 and moment == 0:
                    await revoke(session, session.id)
                answer = await txn(*args)
                if calls == 2 and moment == 1:
                    await revoke(session, session.id)
                    await session.lost.wait()
                return answer

            monkeypatch.setattr(core.transport, "txn", interfered)
            with pytest.raises(ConcurrencyError):
                await LockManager(session).reserve("x", ttl=60, note="n")
            monkeypatch.undo()
            await eventually(lambda: nothing_left(other))
