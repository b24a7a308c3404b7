"""Who waits inside a process for a place in a queue of etcd."""

from __future__ import annotations

import asyncio
import random

import pytest

from codomyrmex.concurrency.errors import SessionLost
from codomyrmex.concurrency.waitqueue.admission import PLACES, Doors

Q = b"/queue/"


async def crowd(doors: Doors, count: int, order: list[int]) -> list[asyncio.Task[None]]:
    """All places taken, and so many tasks that wait outside."""
    for _ in range(PLACES):
        await doors.enter(Q, "lock")

    async def enter(number: int) -> None:
        await doors.enter(Q, "lock")
        order.append(number)

    tasks = [asyncio.create_task(enter(number)) for number in range(count)]
    await asyncio.sleep(0)
    return tasks


async def test_a_place_is_free_until_all_are_taken() -> None:
    doors = Doors()
    for _ in range(PLACES):
        assert not doors.crowded(Q)
        await doors.enter(Q, "lock")
    assert doors.crowded(Q) and not doors.crowded(b"/another/") and not list(doors.waits())


async def test_who_waits_outside_is_let_in_by_order_of_arrival() -> None:
    doors, order = Doors(), list[int]()
    tasks = await crowd(doors, 10, order)
    assert [what for what, _ in doors.waits()] == ["lock"] * 10
    for _ in range(4):
        doors.leave(Q)
    await asyncio.sleep(0)
    assert order == [0, 1, 2, 3] and doors.crowded(Q) and len(list(doors.waits())) == 6
    for _ in range(6):
        doors.leave(Q)
    await asyncio.gather(*tasks)
    assert order == list(range(10)) and doors.crowded(Q)
    for _ in range(PLACES):
        assert doors.crowded(Q) or _ > 0
        doors.leave(Q)
    assert not doors._inside and not doors._outside


async def test_a_cancelled_waiter_is_passed_over_and_leaves_nothing() -> None:
    doors, order = Doors(), list[int]()
    tasks = await crowd(doors, 3, order)
    tasks[0].cancel()
    tasks[1].cancel()
    await asyncio.gather(*tasks[:2], return_exceptions=True)
    assert len(list(doors.waits())) == 1
    doors.leave(Q)
    await tasks[2]
    assert order == [2]


async def test_a_place_given_to_a_waiter_that_is_cancelled_goes_on_to_the_next() -> None:
    doors, order = Doors(), list[int]()
    tasks = await crowd(doors, 2, order)
    doors.leave(Q)
    tasks[0].cancel()  # before it could take the place it was given
    await asyncio.gather(*tasks, return_exceptions=True)
    assert tasks[0].cancelled() and order == [1]


async def test_the_end_of_the_session_ends_every_wait() -> None:
    doors, order = Doors(), list[int]()
    tasks = await crowd(doors, 5, order)
    doors.close(SessionLost("over"))
    assert all(isinstance(end, SessionLost) for end in await asyncio.gather(*tasks, return_exceptions=True))
    with pytest.raises(SessionLost, match="over"):
        await doors.enter(Q, "lock")
    for _ in range(PLACES):
        doors.leave(Q)
    assert not doors._inside and not order


async def test_whatever_comes_and_goes_places_are_neither_lost_nor_given_twice() -> None:
    for seed in range(30):
        chance, doors, inside, most = random.Random(seed), Doors(), 0, 0

        async def visit(chance: random.Random = chance, doors: Doors = doors) -> None:
            nonlocal inside, most
            await doors.enter(Q, "lock")
            inside += 1
            most = max(most, inside)
            try:
                for _ in range(chance.randrange(4)):
                    await asyncio.sleep(0)
            finally:
                inside -= 1
                doors.leave(Q)

        tasks = [asyncio.create_task(visit()) for _ in range(5 * PLACES)]
        while not all(task.done() for task in tasks):
            chance.choice(tasks).cancel()
            await asyncio.sleep(0)
        await asyncio.gather(*tasks, return_exceptions=True)
        assert most == PLACES and not inside and not doors._inside and not doors._outside
