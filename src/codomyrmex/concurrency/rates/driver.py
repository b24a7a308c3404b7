"""One process's share of a rate limiter: a ``Budget`` with its slices in etcd. It joins the session as a member.

The driver does what its budget says, after every event: a call, a grant, a refund, a pause, a time that has come.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from itertools import chain

from codomyrmex.concurrency import clock
from codomyrmex.concurrency.errors import ConcurrencyError, EtcdUnavailable, LimitMismatch, fresh
from codomyrmex.concurrency.keys import RATE
from codomyrmex.concurrency.rates import limits
from codomyrmex.concurrency.rates.budget import Budget, Call, Taken
from codomyrmex.concurrency.rates.confirmation import Confirmation
from codomyrmex.concurrency.rates.limits import Agreement
from codomyrmex.concurrency.rates.pauses import Pauses
from codomyrmex.concurrency.rates.rate import Rate
from codomyrmex.concurrency.rates.slice_state import Part
from codomyrmex.concurrency.rates.slices import GrantedSlice, take
from codomyrmex.concurrency.session_core import SessionCore
from codomyrmex.concurrency.waitqueue.entry import Entry
from codomyrmex.concurrency.waitqueue.lease_end import revoke

log = logging.getLogger("codomyrmex.concurrency")

_TAKING = "getting a slice of a rate limit"


class Driver:
    """The share of one limiter, ``name``, in one session. All objects of that name use it."""

    def __init__(self, session: SessionCore, name: str, agreement: Agreement, metadata: str) -> None:
        self.session = session
        self.name = name
        self.agreement = agreement
        self.budget = Budget(agreement.rates)
        self._owner = f'{{"host":{json.dumps(session.host)},"pid":{os.getpid()}{metadata}'
        self._waiters: dict[Call, tuple[asyncio.Future[bool], float]] = {}
        self._once: set[Call] = set()  # those that do not wait for their turn
        self._entries: dict[bytes, tuple[Entry, int]] = {}  # of each part that counts, with its lease
        self._counted: dict[int, int] = {}  # of each lease, its parts that count
        self._taking: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._open = asyncio.Event()  # set while there is no pause
        self._open.set()
        self._over: ConcurrencyError | None = None
        self.was_replaced = False  # another client deleted the limiter, when nobody used it
        self._rung = session.guarded(self._ring, "the timer of a rate limit")
        self._took = session.guarded(self._take_over, _TAKING)
        self._silence_told = False  # a warning was logged, and etcd has not answered since
        self._confirmation = Confirmation(session, session.layout.rate_prefix(name), self._answered, self._unanswered)
        self.pauses = Pauses(session, name, self._pauses_changed, self.closing)

    # Calls

    def has_room(self, cost: Mapping[str, int]) -> bool:
        """True if ``cost`` may be spent at once, even if the session is over: slices outlast it."""
        return self.budget.can_serve(cost, clock.now())

    async def spend(self, cost: Mapping[str, int], *, once: bool = False) -> Call | None:
        """Wait until ``cost`` may be spent; with ``once``, None if it is not free now. A cancelled wait spends nothing.

        Raises ``LimitMismatch`` if the limit has become smaller than ``cost``, and ``EtcdUnavailable``.
        """
        if once and (self.budget.paused or not self._all_try_once()):
            return None
        now = clock.now()
        call = self.budget.ask(cost, now)
        if self._over:
            if self.budget.serve(now):
                return call
            self.budget.withdraw(call)
            raise fresh(self._over)
        waiter: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiters[call] = waiter, now
        if once:
            self._once.add(call)
        try:
            self._go_on()
            if not waiter.done():
                self._confirmation.add(call)
            return call if await waiter else None
        except BaseException:
            if self._waiters.pop(call, None) or call.spent_at is not None:
                self.budget.withdraw(call)
                self._go_on()
            raise
        finally:
            self._once.discard(call)
            self._confirmation.discard(call)

    def used(self, call: Call, amounts: Mapping[str, int]) -> dict[str, int]:
        """A call has used ``amounts``. Returns what it used beyond its cost, which is taken from etcd at once."""
        over = {one: more for one, amount in amounts.items() if (more := amount - call.cost[one]) > 0}
        beyond = self.budget.used(call, amounts, clock.now())
        if not self._over:
            for dimension, amount in beyond.items():
                work = self._overdraw(dimension, min(amount, self.budget.limits[dimension]))
                self.session.start(work, "taking what was used beyond a rate limit's reservation")
            self._go_on()
        return over

    def withdraw(self, call: Call) -> None:
        """A served call uses nothing after all."""
        self.budget.withdraw(call)
        self._go_on()

    def resized(self, rates: Mapping[str, Rate]) -> None:
        """The limits in etcd are these now."""
        self.budget.limits.update({one: rate.amount for one, rate in rates.items()})
        self._go_on()

    @property
    def is_over(self) -> bool:
        """True if it gets nothing more: the session is over, or the limiter was deleted."""
        return self._over is not None

    # The calls of its session

    def waits(self) -> Iterator[tuple[str, float]]:
        return ((RATE.what, since) for _, since in list(self._waiters.values()))

    def closing(self, reason: ConcurrencyError) -> None:
        """Give back what is not spent; the leases of the rest end by themselves."""
        self.budget.close()
        self._delete(self.budget.due(clock.now()))
        self.end(reason)

    def end(self, reason: ConcurrencyError) -> None:
        """Nothing more can be got: the session is over, or the limiter was deleted."""
        self._over = reason
        self._fail(reason)
        self._confirmation.end()
        self.pauses.end(reason)
        if self._taking:
            self._taking.cancel()
        if self._timer:
            self._timer.cancel()

    # Its work

    def _go_on(self) -> None:
        """Do what the budget says now."""
        if self._over:
            return
        now = clock.now()
        for call in self.budget.serve(now):
            self._answer(call, lambda waiter: waiter.set_result(True))
        self._delete(self.budget.due(now))
        if self._taking is None and self.budget.waiting and not self.budget.paused:
            self._taking = self.session.start(self._take(), _TAKING)
            self._taking.add_done_callback(lambda _: self._took())
        elif self._taking and not self.budget.waiting:
            self._taking.cancel()  # all that waited have given up
        self._set_timer(now)

    async def _take(self) -> None:
        """Get the slice that the budget wants, now that all calls that came at once are known to it. If that fails, so
        do the calls that wait. While some of them try once only, so does this; the others go on after it."""
        once = set(self._once)
        wanted = self.budget.request(clock.now(), exact=bool(once))
        if wanted is None:
            return
        taken: Mapping[str, Taken] | None = None
        try:
            taken = await self._slices(wanted, only_if_free=bool(once))
            if taken is None:  # a limiter that was deleted is not free either
                await self._look_at_limits(LimitMismatch(f"the limit of {self.name!r} is below the cost of the call"))
                self._answer_not_free(once)
        except LimitMismatch as error:
            await self._look_at_limits(error)
        except ConcurrencyError as error:
            self._fail(self._explained(error))
        finally:
            if taken is None:
                self.budget.refused()
            else:
                self._answered()
                self.budget.granted(taken, clock.now())

    def _take_over(self) -> None:
        """The slice was taken, or not; a task that is cancelled before it begins comes here too."""
        self._taking = None
        self._go_on()

    def _all_try_once(self) -> bool:
        """True if no call waits for its turn."""
        return self._once.issuperset(self.budget.waiting)

    def _answer_not_free(self, calls: Collection[Call]) -> None:
        self._turn_away(calls, lambda waiter: waiter.set_result(False))

    async def _look_at_limits(self, error: LimitMismatch) -> None:
        """The slice that was wanted is larger than a limit now: calls that cost more than that fail."""
        try:
            found = await limits.known(self.session, self.name)
        except ConcurrencyError as failure:
            self._fail(self._explained(failure))
            return
        if _periods(found) != _periods(self.budget.rates):
            self.was_replaced = True
            told = "was deleted, or has other dimensions or periods now; the next call opens it anew"
            self.end(LimitMismatch(f"the rate limiter {self.name!r} {told}"))
            return
        self.budget.limits = {one: rate.amount for one, rate in found.items()}
        self._fail(error, [call for call in self.budget.waiting if _is_beyond(call.cost, self.budget.limits)])

    async def _overdraw(self, dimension: str, amount: int) -> None:
        try:
            taken = await self._slices({dimension: amount}, gated=False)
        except ConcurrencyError:
            return  # the provider has counted it, and nobody waits for it here
        assert taken
        self.budget.overdrawn(dimension, taken[dimension], clock.now())
        self._go_on()

    async def _slices(
        self, wanted: Mapping[str, int], *, only_if_free: bool = False, gated: bool = True
    ) -> dict[str, Taken] | None:
        owner = f'{self._owner},"since":{time.time():.3f}}}'.encode()
        gate = self._gate if gated else _no_gate
        sizes = {one: self.budget.sizes(one, amount) for one, amount in wanted.items()}
        granted = await take(self.session, self.name, sizes, self.agreement, owner, gate, only_if_free=only_if_free)
        return {one: self._keep(one, found) for one, found in granted.items()} if granted else None

    def _keep(self, dimension: str, granted: GrantedSlice) -> Taken:
        lease = granted.lease.id
        self._counted[lease] = len(granted.entries)
        self._entries.update({entry.key: (entry, lease) for entry in granted.entries})
        self.budget.limits[dimension] = granted.limit or self.budget.limits[dimension]
        self.budget.sessions = granted.sessions
        parts = [Part(entry.key, size) for entry, size in zip(granted.entries, granted.sizes, strict=True)]
        return Taken(granted.lease.asked_at, parts)

    async def _gate(self) -> bool:
        waits = not self._open.is_set()
        await self._open.wait()
        return waits

    def _pauses_changed(self) -> None:
        self.budget.paused = bool(self.pauses)
        if self.budget.paused:
            self._open.clear()
            self._answer_not_free(set(self._once))
        else:
            self._open.set()
        self._go_on()

    def _delete(self, parts: list[Part]) -> None:
        """Delete parts from etcd, and revoke the leases that have none left."""
        for part in parts:
            entry, lease = self._entries.pop(part.key)
            self.session.remover.remove(part.key, partial(_free, entry))
            self._counted[lease] -= 1
            if not self._counted[lease]:
                del self._counted[lease]
                revoke(self.session, lease)

    def _fail(self, error: ConcurrencyError, calls: Collection[Call] | None = None) -> None:
        """Tell the calls that wait, or some of them, of an error."""
        self._turn_away(self._waiters if calls is None else calls, lambda waiter: waiter.set_exception(fresh(error)))

    def _turn_away(self, calls: Collection[Call], answer: Callable[[asyncio.Future[bool]], None]) -> None:
        """Let calls that still wait spend nothing."""
        for call in [call for call in calls if call in self._waiters]:
            self.budget.withdraw(call)
            self._answer(call, answer)

    def _answer(self, call: Call, answer: Callable[[asyncio.Future[bool]], None]) -> None:
        """End the wait of a call."""
        waiter, _ = self._waiters.pop(call)
        if not waiter.done():
            answer(waiter)

    def untrusted(self) -> None:
        """The session's keepalives are not answered. Say so once if calls wait, since no error tells them."""
        if self._waiters and not self._silence_told:
            self._silence_told = True
            log.warning(
                "etcd does not answer: the rate limiter %r grants nothing until it does; waiting calls: %d",
                self.name,
                len(self._waiters),
            )

    def _answered(self) -> None:
        self._silence_told = False

    def _unanswered(self, error: EtcdUnavailable, calls: Collection[Call]) -> None:
        self._fail(self._explained(error), calls)
        self.untrusted()
        self._go_on()

    def _explained(self, error: ConcurrencyError) -> ConcurrencyError:
        if not isinstance(error, EtcdUnavailable):
            return error
        return EtcdUnavailable(
            f"the rate limit {self.name!r} grants nothing until etcd answers; what this process had got may be spent "
            f"to its end: {error}",
            applied=error.applied,
            retryable=error.retryable,
        )

    def _set_timer(self, now: float) -> None:
        """Go on when a slice has something to give back."""
        at = self.budget.next_at()
        if self._timer and at < self._timer_at:
            self._timer.cancel()
            self._timer = None
        if self._timer is None and at < math.inf:
            self._timer_at = at
            self._timer = asyncio.get_running_loop().call_later(max(0.0, at - now), self._rung)

    def _ring(self) -> None:
        self._timer = None
        self._go_on()


async def _no_gate() -> bool:
    return False


def _free(entry: Entry, reusable: bool) -> None:
    if reusable:
        entry.free_key_slot()


def _is_beyond(cost: Mapping[str, int], amounts: Mapping[str, int]) -> bool:
    return any(amount > amounts[one] for one, amount in cost.items())


def _periods(rates: Mapping[str, Rate]) -> dict[str, float]:
    return {dimension: rate.per for dimension, rate in rates.items()}


class Drivers:
    """The drivers of one session, by the names of their limiters: a session member."""

    def __init__(self, session: SessionCore) -> None:
        self.session = session
        self._drivers: dict[str, Driver] = {}

    def of(self, name: str, agreement: Agreement, metadata: str) -> Driver:
        """The driver of a limiter, whose rates the fleet has agreed on."""
        driver = self._drivers.get(name)
        if driver and _periods(driver.budget.rates) != _periods(agreement.rates):
            driver.end(LimitMismatch(f"the rate limiter {name!r} was deleted, and opened anew with other periods"))
        if driver is None or driver.is_over:
            driver = self._drivers[name] = Driver(self.session, name, agreement, metadata)
        return driver

    def find(self, name: str) -> Driver | None:
        """The driver of a limiter, if it has one."""
        return self._drivers.get(name)

    def waits(self) -> Iterator[tuple[str, float]]:
        return chain.from_iterable(driver.waits() for driver in list(self._drivers.values()))

    def holds(self) -> Iterator[tuple[str, float]]:
        return iter(())

    def tick(self) -> bool:
        return False

    def untrusted(self, reason: ConcurrencyError) -> None:
        """Slices do not depend on the session's lease, but the calls that wait get none now."""
        for driver in self._drivers.values():
            driver.untrusted()

    def session_closing(self, reason: ConcurrencyError) -> None:
        for driver in self._drivers.values():
            driver.closing(reason)

    def session_lost(self, reason: ConcurrencyError) -> None:
        for driver in self._drivers.values():
            driver.end(reason)
