"""Writes that are tried again until etcd takes them."""

from __future__ import annotations

import asyncio
import logging

import pytest

from codomyrmex.concurrency.dead_letters import persistence
from codomyrmex.concurrency.dead_letters.persistence import Pauses, persist
from codomyrmex.concurrency.errors import ConcurrencyError, EtcdUnavailable, SessionLost


def test_each_pause_is_twice_the_one_before_up_to_the_longest() -> None:
    pauses = Pauses(0.2, 1.0)
    assert pauses.is_first and not pauses.is_longest
    assert [pauses.take() for _ in range(5)] == [0.2, 0.4, 0.8, 1.0, 1.0]
    assert pauses.is_longest
    pauses.reset()
    assert pauses.is_first and pauses.next == 0.2


async def test_a_write_is_tried_until_it_succeeds(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(persistence.asyncio, "sleep", sleep)
    failures = [EtcdUnavailable("away")] * 7

    async def write() -> None:
        if failures:
            raise failures.pop()

    with caplog.at_level(logging.WARNING):
        await persist(write, "it could not be written yet")
    assert slept == [0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    assert caplog.messages == ["it could not be written yet: away"] * 3  # the first, and at the longest pauses


@pytest.mark.parametrize("error", [SessionLost("gone"), ConcurrencyError("a bug"), asyncio.CancelledError()])
async def test_a_write_ends_with_the_session_and_with_what_nobody_expects(error: BaseException) -> None:
    calls = 0

    async def write() -> None:
        nonlocal calls
        calls += 1
        raise error

    if isinstance(error, SessionLost):
        await persist(write, "problem")
    else:
        with pytest.raises(type(error)):
            await persist(write, "problem")
    assert calls == 1
