"""The end of a hold by itself: after its ``max_hold``, or after ``max_idle`` without progress."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import NamedTuple

from codomyrmex.concurrency import clock
from codomyrmex.concurrency.session_core import SessionCore
from codomyrmex.concurrency.waitqueue.hold_options import HoldOptions


class HoldEnd(NamedTuple):
    """The time on ``clock`` at which a hold ends, and the option that ends it."""

    at: float
    option: str


class HoldTimes(NamedTuple):
    """The times of one hold, which decide when it ends. Pure.

    ``progress_at`` is when its last answered progress call was sent; before the first one, when it was granted.
    """

    options: HoldOptions
    granted_at: float
    progress_at: float

    @property
    def end(self) -> HoldEnd | None:
        """The earlier of its two ends; None if it has neither option."""
        ends = []
        if self.options.max_hold is not None:
            ends.append(HoldEnd(self.granted_at + self.options.max_hold, "max_hold"))
        if self.options.max_idle is not None:
            ends.append(HoldEnd(self.progress_at + self.options.max_idle, "max_idle"))
        return min(ends, default=None)

    def is_over(self, now: float) -> bool:
        """True if the hold has ended by ``now``."""
        return self.end is not None and now >= self.end.at

    def progressed(self, sent_at: float, now: float) -> HoldTimes:
        """The times after a progress call that was sent at ``sent_at`` and answered at ``now``.

        An answer does not bring back a hold that is over, and an earlier call takes nothing from a later one.
        """
        return self if self.is_over(now) else self._replace(progress_at=max(self.progress_at, sent_at))


class HoldLimit:
    """The limit of one hold: trust in the grant ends at its end, and ``over`` is called with the option that ended it.

    As with a session's trust, a third of the TTL is left then for the holder to come to an end and release. After that
    the keepalive's thread deletes the key, even if the event loop is blocked.
    """

    __slots__ = ("_end", "_key", "_over", "_session", "_timer", "_times", "_token")

    def __init__(
        self, session: SessionCore, key: bytes, token: int, times: HoldTimes, over: Callable[[str], None]
    ) -> None:
        self._session = session
        self._key = key
        self._token = token
        self._over = over
        self._timer: asyncio.TimerHandle | None = None
        self._limit(times)
        self._start_timer()

    @property
    def until(self) -> float:
        """The end of trust in the grant, on ``clock``."""
        return self._end.at

    def notice(self) -> bool:
        """Call ``over`` if the hold is over; returns whether it is."""
        over = self._times.is_over(clock.now())
        if over:
            self._call_over()
        return over

    def progressed(self, sent_at: float) -> None:
        """Count a progress call that was sent at ``sent_at`` and is answered now."""
        before = self._times
        self._limit(before.progressed(sent_at, clock.now()))
        if before.is_over(clock.now()):
            # The process stood still just now, and the keepalive's thread may have deleted the key by the old limit.
            self._limit(before)
            self._call_over()
        else:
            self._start_timer()

    def stop(self, *, lift: bool) -> None:
        """End the timer; with ``lift``, the key is not deleted either."""
        if self._timer:
            self._timer.cancel()
        if lift:
            self._session.hold_limits().lift(self._key)

    def _limit(self, times: HoldTimes) -> None:
        assert times.end
        self._times, self._end = times, times.end
        self._session.hold_limits().limit(self._key, self._token, times.end.at + self._session.ttl / 3)

    def _start_timer(self) -> None:
        if self._timer:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(self._end.at - clock.now(), self._call_over)

    def _call_over(self) -> None:
        self._over(self._end.option)
