"""One timer for all calls: each ends in time, and a cancel of the caller is told from one of the call."""

from __future__ import annotations

import asyncio
import time

import pytest

from codomyrmex.concurrency.etcd.transports.call_timeouts import CallTimeouts


async def test_an_answer_in_time_is_passed_on() -> None:
    call: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_later(0.05, call.set_result, 7)
    assert await CallTimeouts().answer(call, 1.0) == 7


async def test_a_call_without_an_answer_ends_in_time_and_its_neighbour_lives() -> None:
    timeouts = CallTimeouts()
    slow: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    patient = asyncio.create_task(timeouts.answer(slow, 5.0))
    started = time.monotonic()
    with pytest.raises(TimeoutError, match=r"no answer within 0\.1 s"):
        await timeouts.answer(asyncio.get_running_loop().create_future(), 0.1)
    assert 0.1 <= time.monotonic() - started < 0.5
    slow.set_result(1)
    assert await patient == 1


async def test_a_cancel_of_the_caller_is_no_timeout() -> None:
    call: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(CallTimeouts().answer(call, 5.0))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert call.cancelled()


async def test_a_caller_that_survived_a_cancel_still_gets_its_timeout() -> None:
    async def stubborn() -> None:
        try:
            await asyncio.sleep(5)
        except asyncio.CancelledError:
            await CallTimeouts().answer(asyncio.get_running_loop().create_future(), 0.05)

    task = asyncio.create_task(stubborn())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(TimeoutError):
        await task
