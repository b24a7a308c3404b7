"""The end of a hold by ``max_hold`` and ``max_idle``, over generated histories of progress calls."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codomyrmex.concurrency import clock
from codomyrmex.concurrency.waitqueue.hold_limit import HoldLimit, HoldTimes
from codomyrmex.concurrency.waitqueue.hold_options import HoldOptions


class Call(NamedTuple):
    """A progress call: when it was sent, and when it was answered."""

    sent: int
    answered: int


Made = Callable[[HoldTimes, float, float], HoldTimes]
calls = st.lists(st.builds(lambda sent, took: Call(sent, sent + took), st.integers(0, 30), st.integers(0, 12)))
option = st.none() | st.integers(1, 20)


def ends_at(options: HoldOptions, history: list[Call]) -> float:
    """The end by definition: the first moment that is ``max_hold`` after the grant at 0, or at which each call that was
    answered before it was sent ``max_idle`` or longer ago."""
    for now in range(100):
        sent = [call.sent for call in history if call.answered < now]
        if options.max_hold is not None and now >= options.max_hold:
            return now
        if options.max_idle is not None and now - max(sent, default=0) >= options.max_idle:
            return now
    return float("inf")


def lived(options: HoldOptions, history: list[Call], progressed: Made) -> float:
    """The end by the code, which hears of the calls as they are answered."""
    times = HoldTimes(options, 0, 0)
    for call in sorted(history, key=lambda call: call.answered):
        times = progressed(times, call.sent, call.answered)
    return times.end.at if times.end else float("inf")


@given(option, option, calls)
def test_a_hold_ends_at_the_earlier_of_its_ends(
    max_hold: float | None, max_idle: float | None, history: list[Call]
) -> None:
    options = HoldOptions(max_hold, max_idle=max_idle)
    assert lived(options, history, HoldTimes.progressed) == ends_at(options, history)


def _from_the_answer(times: HoldTimes, sent: float, now: float) -> HoldTimes:
    return times.progressed(now, now)


def _revived(times: HoldTimes, sent: float, now: float) -> HoldTimes:
    return times._replace(progress_at=max(times.progress_at, sent))


def _last_answered(times: HoldTimes, sent: float, now: float) -> HoldTimes:
    return times if times.is_over(now) else times._replace(progress_at=sent)


def _beyond_max_hold(times: HoldTimes, sent: float, now: float) -> HoldTimes:
    return times if times.is_over(now) else times._replace(granted_at=sent, progress_at=max(times.progress_at, sent))


HISTORIES = [
    [Call(2, 5)],
    [Call(3, 12), Call(4, 6)],
    [Call(1, 6), Call(5, 5)],
    [Call(25, 26)],
]


@pytest.mark.parametrize("broken", [_from_the_answer, _revived, _last_answered, _beyond_max_hold])
def test_a_broken_decision_is_found(broken: Made) -> None:
    options = [HoldOptions(max_hold, max_idle=8) for max_hold in (None, 7)]
    assert any(lived(one, history, broken) != ends_at(one, history) for one in options for history in HISTORIES)


class Limits:
    """The hold limits of a session; ``stall`` is run at the next limit that is set."""

    def __init__(self) -> None:
        self.until = 0.0
        self.stall: Callable[[], None] = lambda: None

    def limit(self, key: bytes, token: int, until: float) -> None:
        self.stall()
        self.until = until

    def lift(self, key: bytes) -> None:
        self.until = float("inf")


class Session:
    ttl = 3

    def __init__(self) -> None:
        self.limits = Limits()

    def hold_limits(self) -> Limits:
        return self.limits


async def test_a_process_that_stands_still_while_it_moves_the_limit_has_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """The keepalive's thread may have deleted the key by the old limit before the new one was set."""
    now = [100.0]
    monkeypatch.setattr(clock, "now", lambda: now[0])
    session, over = Session(), list[str]()
    limit = HoldLimit(cast(Any, session), b"key", 5, HoldTimes(HoldOptions(max_idle=10.0), 100.0, 100.0), over.append)
    assert (limit.until, session.limits.until) == (110.0, 111.0)
    now[0] = 105.0
    limit.progressed(104.0)
    assert (limit.until, session.limits.until, over) == (114.0, 115.0, [])

    def stall() -> None:
        now[0] = 120.0

    session.limits.stall = stall
    limit.progressed(105.0)
    assert (limit.until, session.limits.until, over) == (114.0, 115.0, ["max_idle"])
    limit.stop(lift=True)
    await asyncio.sleep(0)
