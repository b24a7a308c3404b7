"""Admission to a queue, for the tasks of one process."""

from __future__ import annotations

import asyncio
import random

import pytest

from codomyrmex.concurrency.errors import SessionLost
from codomyrmex.concurrency.waitqueue.admission import ADMITTED, Admission

Q = b"/queue/"


async def crowd(admission: Admission, count: int, order: list[int]) -> list[asyncio.Task[None]]:
    """Admit as many tasks as may be, and let ``count`` more wait."""
    for _ in range(ADMITTED):
        await admission.enter(Q, "lock")

    async def enter(number: int) -> None:
        await admission.enter(Q, "lock")
        order.append(number)

    tasks = [asyncio.create_task(enter(number)) for number in range(count)]
    await asyncio.sleep(0)
    return tasks


async def test_a_place_is_free_until_all_are_taken() -> None:
    admission = Admission()
    for _ in range(ADMITTED):
        assert not admission.is_full(Q)
        await admission.enter(Q, "lock")
    assert admission.is_full(Q) and not admission.is_full(b"/another/") and not list(admission.waits())


async def test_who_waits_outside_is_let_in_by_order_of_arrival() -> None:
    admission, order = Admission(), list[int]()
    tasks = await crowd(admission, 10, order)
    assert [what for what, _ in admission.waits()] == ["lock"] * 10
    for _ in range(4):
        admission.leave(Q)
    await asyncio.sleep(0)
    assert order == [0, 1, 2, 3] and admission.is_full(Q) and len(list(admission.waits())) == 6
    for _ in range(6):
        admission.leave(Q)
    await asyncio.gather(*tasks)
    assert order == list(range(10)) and admission.is_full(Q)
    for _ in range(ADMITTED):
        assert admission.is_full(Q) or _ > 0
        admission.leave(Q)
    assert not admission._admitted and not admission._lines


async def test_a_cancelled_waiter_is_passed_over_and_leaves_nothing() -> None:
    admission, order = Admission(), list[int]()
    tasks = await crowd(admission, 3, order)
    tasks[0].cancel()
    tasks[1].cancel()
    await asyncio.gather(*tasks[:2], return_exceptions=True)
    assert len(list(admission.waits())) == 1
    admission.leave(Q)
    await tasks[2]
    assert order == [2]


async def test_a_place_given_to_a_waiter_that_is_cancelled_goes_on_to_the_next() -> None:
    admission, order = Admission(), list[int]()
    tasks = await crowd(admission, 2, order)
    admission.leave(Q)
    tasks[0].cancel()  # before it could take the place it was given
    await asyncio.gather(*tasks, return_exceptions=True)
    assert tasks[0].cancelled() and order == [1]


async def test_the_end_of_the_session_ends_every_wait() -> None:
    admission, order = Admission(), list[int]()
    tasks = await crowd(admission, 5, order)
    admission.close(SessionLost("over"))
    assert all(isinstance(end, SessionLost) for end in await asyncio.gather(*tasks, return_exceptions=True))
    with pytest.raises(SessionLost, match="over"):
        await admission.enter(Q, "lock")
    for _ in range(ADMITTED):
        admission.leave(Q)
    assert not admission._admitted and not order


async def test_whatever_comes_and_goes_places_are_neither_lost_nor_given_twice() -> None:
    for seed in range(30):
        chance, admission, inside, most = random.Random(seed), Admission(), 0, 0

        async def visit(chance: random.Random = chance, admission: Admission = admission) -> None:
            nonlocal inside, most
            await admission.enter(Q, "lock")
            inside += 1
            most = max(most, inside)
            try:
                for _ in range(chance.randrange(4)):
                    await asyncio.sleep(0)
            finally:
                inside -= 1
                admission.leave(Q)

        tasks = [asyncio.create_task(visit()) for _ in range(5 * ADMITTED)]
        while not all(task.done() for task in tasks):
            chance.choice(tasks).cancel()
            await asyncio.sleep(0)
        await asyncio.gather(*tasks, return_exceptions=True)
        assert most == ADMITTED and not inside and not admission._admitted and not admission._lines
