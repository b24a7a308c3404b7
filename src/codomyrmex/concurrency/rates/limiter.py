"""``RateLimiter``: a limit on each dimension in any window of a period, over the whole fleet."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from codomyrmex.concurrency import clock, telemetry
from codomyrmex.concurrency.callsite import users_line, warn
from codomyrmex.concurrency.context_managers import AsyncOnly
from codomyrmex.concurrency.durations import check_number, check_timeout
from codomyrmex.concurrency.errors import ConcurrencyError, InvalidName, LimitMismatch, LockTimeout, NotHeld, fresh
from codomyrmex.concurrency.etcd.supervision import unheard
from codomyrmex.concurrency.keys import MAX_NAME_BYTES, check_name
from codomyrmex.concurrency.models import RateLimitInfo
from codomyrmex.concurrency.rates import limits as limits_in_etcd
from codomyrmex.concurrency.rates import overview, timing
from codomyrmex.concurrency.rates.budget import Call
from codomyrmex.concurrency.rates.driver import Driver, Drivers
from codomyrmex.concurrency.rates.rate import (
    LONGEST,
    Rate,
    check_cost,
    check_limits,
    check_new_rates,
    check_used,
    check_within,
)
from codomyrmex.concurrency.recipes.acquire import check_session
from codomyrmex.concurrency.recipes.metadata import encode_metadata, with_agent
from codomyrmex.concurrency.session import Session, core_of, ready
from codomyrmex.concurrency.session_core import SessionCore

_LONGEST_NAME = MAX_NAME_BYTES - 72  # bytes: the dimension stands in the same part of the key
_PATIENCE = 0.5  # seconds that etcd has to tell the reason of a timeout


class Spend(AsyncOnly):
    """The reserved amounts of one call, from ``RateLimiter.reserve``.

    ``cost`` has the amounts by dimension. ``overdraft`` has the amounts that the call used beyond them; it is empty
    until ``used`` is called.
    """

    def __init__(self, driver: Driver, call: Call, name: str) -> None:
        self.cost: dict[str, int] = dict(call.cost)
        self.overdraft: dict[str, int] = {}
        self._driver = driver
        self._call = call
        self._name = name
        self._state = "open"

    def used(self, amount: int | None = None, /, **amounts: int) -> None:
        """Report the amounts that the call used, once, inside the block.

        The unused rest goes back to the fleet. Use beyond the reserved amount counts against the limit at once, and is
        the ``overdraft``. A dimension that is left out counts as reserved; a call that never reached its provider used
        0. Raises ``NotHeld`` for a second call and after the block, ``ValueError`` for an amount below 0 and a
        dimension that was not reserved, ``TypeError`` for an amount that is no int.
        """
        if self._state != "open":
            raise NotHeld(f"used() of the rate limit {self._name!r} {self._state}")
        told = check_used(self.cost, amount, amounts)
        self._state = "was called before: call it once, with the amounts of all dimensions"
        self.overdraft = self._driver.used(self._call, told)
        if telemetry.observers:
            given_back = {one: less for one, amount in told.items() if (less := self.cost[one] - amount) > 0}
            telemetry.tell("rate_used", self._name, given_back, self.overdraft)

    def deadline(self) -> float:
        """The seconds that are left for the call to reach its provider; 0.0 when they are over.

        The promise of the limiter holds for calls that reach the provider within them. Look at it after anything that
        may have taken long: a process that was stopped finds 0.0, and should reserve again.
        """
        assert self._call.spent_at is not None
        rates = self._driver.budget.rates
        until = self._call.spent_at + min(timing.margin(rates[one].per) for one in self.cost)
        return max(0.0, until - clock.now())

    def _end(self) -> None:
        if self._state == "open":
            self._state = "was called after its block: call it before the block ends"

    def __repr__(self) -> str:
        return f"<Spend of {_amounts(self.cost)} of {self._name!r}>"


class Reserve(AsyncOnly):
    """The result of ``RateLimiter.reserve``, for ``async with``. It can be used once."""

    def __init__(self, limiter: RateLimiter, cost: Mapping[str, int], timeout: float | None) -> None:
        self._limiter = limiter
        self._cost = cost
        self._timeout = timeout
        self._line = users_line()
        self._spend: Spend | None = None
        self._begun = False

    async def __aenter__(self) -> Spend:
        self._begun = True
        self._spend = await self._limiter._reserve(self._cost, self._timeout)
        return self._spend

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._spend
        self._spend._end()

    def __del__(self) -> None:
        if not self._begun:
            text = f"reserve() of the rate limit {self._limiter.name!r} was never entered as a block"
            warn(self._line, f"{text}: nothing was reserved", RuntimeWarning)


class RateLimiter(AsyncOnly):
    """A limit on the amounts in any window of a period, over all processes of the fleet together.

    ``RateLimiter("x", Rate(100, per=60))`` limits one dimension without a name: ``await limiter.acquire(5)``.
    ``RateLimiter("x", limits={"requests": Rate(100, per=60), "tokens": Rate(50_000, per=60)})`` limits several, and a
    call gets its amounts in all of them or waits. The first use by any process sets the limits in etcd.

    A process gets a *slice* of each limit at a time and serves its calls from it, in order of arrival, so the number of
    writes to etcd does not grow with the number of calls. The unspent rest of a slice goes back when its life is over,
    a tenth of the period. The processes take their turns in order of arrival. A process that dies costs use, never the
    limit: its slices count until everything that it may have spent is out of every window.

    The promise holds for calls that reach their provider within ``Spend.deadline()``, a twentieth of the period and at
    most a second after they were granted.

    Args:
        name: as a lock's; up to 440 bytes.
        rate: the limit of the one dimension.
        limits: the limits by dimension instead, at most 8. A dimension is an identifier.
        session: the session to use; the process's default one when left out.
        metadata: shown to others with each slice, as ``DistributedLock``'s.

    Raises ``InvalidName``, ``ValueError`` for limits that are out of range, and ``TypeError`` unless exactly one of
    ``rate`` and ``limits`` is given.

    The algorithm is a sliding log of slices under the rule of a semaphore. No window of a period has more than the
    limit; a token bucket may grant twice its size in one.
    """

    def __init__(
        self,
        name: str,
        rate: Rate | None = None,
        *,
        limits: Mapping[str, Rate] | None = None,
        session: Session | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        self._name = check_name(name)
        if len(self._name.encode()) > _LONGEST_NAME:
            raise InvalidName(f"the name of a rate limiter may have {_LONGEST_NAME} bytes in UTF-8")
        check_session(session)
        self._limits = check_limits(rate, limits)
        self._session = session
        told = with_agent(metadata) or {}
        agent = told.get("agent")
        self._metadata = encode_metadata(told or None)
        self._agent = agent if isinstance(agent, str) else ""
        self._driver: Driver | None = None
        self._opening: tuple[SessionCore, asyncio.Task[Driver]] | None = None
        self._agreed = False  # others may have changed the amounts since, which is no mismatch

    @property
    def name(self) -> str:
        """The name of the limiter, in NFC."""
        return self._name

    @property
    def limits(self) -> dict[str, Rate]:
        """The rates by dimension; the dimension of a limiter with one rate has an empty name."""
        return dict(self._limits)

    async def acquire(self, amount: int | None = None, /, *, timeout: float | None = None, **cost: int) -> None:
        """Wait until a call of this cost may begin, and count it.

        The cost is ``amount`` in a limiter with one rate, 1 if it is left out, and ``requests=1, tokens=4000`` in one
        with several. A dimension that is left out costs nothing. ``timeout`` is the longest wait in seconds: None waits
        as long as it takes, 0 tries once.

        Raises ``LockTimeout``, ``LimitMismatch`` (the limiter has other limits in etcd), ``ValueError`` for a cost
        above a limit, below 1 or in an unknown dimension, ``TypeError`` for a cost that is no int, ``SessionLost`` or
        an ``EtcdError``. After an error nothing is spent.
        """
        await self._spend(self._checked(amount, cost, timeout), timeout)

    def reserve(self, amount: int | None = None, /, *, timeout: float | None = None, **cost: int) -> Reserve:
        """A block that waits as ``acquire`` does, and can give back the amounts that it has not used.

        ``async with limiter.reserve(requests=1, tokens=4000) as spend: ...; spend.used(tokens=reply.tokens)``

        A dimension that is left out costs nothing.
        """
        return Reserve(self, self._checked(amount, cost, timeout), timeout)

    async def throttled(self, retry_after: float) -> None:
        """Pause the limiter for ``retry_after`` seconds, for the whole fleet, after the provider answered 429.

        Nobody spends during a pause, and it ends by itself. This process pauses at once, the others as soon as etcd
        tells them. etcd ends a pause after whole seconds, two at the least. Raises ``ValueError`` unless the number is
        above 0 and at most 7 days, ``TypeError`` for another type, and an ``EtcdError``.
        """
        check_number("retry_after", retry_after)
        if not 0 < retry_after <= LONGEST:
            raise ValueError(f"retry_after must be above 0 and at most 7 days (604800 seconds), not {retry_after}")
        driver = await self._driven()
        await driver.pauses.begin(retry_after, self._agent)

    async def resume(self) -> bool:
        """End every pause of the limiter early, for everybody; False if there was none."""
        return await (await self._driven()).pauses.end_all()

    async def info(self) -> RateLimitInfo:
        """The limits, the amounts that count now, the waiters and the pause, as they are in etcd.

        A limiter that is not in etcd has no ``uses``.
        """
        return await overview.limiter(await ready(self._session), self._name)

    async def resize(self, rate: Rate | None = None, /, **rates: Rate) -> None:
        """Change the amounts of some dimensions for everyone, at once.

        Slices of a larger limit stay counted. A call that waits for more than the new limit fails with
        ``LimitMismatch``. Raises ``ValueError`` for another period and an unknown dimension, ``TypeError`` for another
        argument than a ``Rate`` for each dimension, ``NotHeld`` if the limiter is not in etcd.
        """
        new = check_new_rates(self._limits, rate, rates)
        session = await ready(self._session)
        former = await limits_in_etcd.resize(session, self._name, new)
        self._limits = {one: new.get(one, rate) for one, rate in former.items()}
        if driver := session.member(Drivers).find(self._name):
            driver.resized(self._limits)

    async def delete(self) -> None:
        """Remove the limiter from etcd.

        Raises ``RateLimitInUse`` while it counts anything or has waiters, and ``NotHeld`` if it is not in etcd.
        """
        session = await ready(self._session)
        await limits_in_etcd.delete(session, self._name)
        if driver := session.member(Drivers).find(self._name):
            driver.end(LimitMismatch(f"the rate limiter {self._name!r} was deleted"))
        self._driver = None
        self._agreed = False

    def __repr__(self) -> str:
        told = (f"{one} {rate}".strip() for one, rate in self._limits.items())
        return f"<RateLimiter {self._name!r} of {', '.join(told)}>"

    def _checked(self, amount: int | None, named: Mapping[str, int], timeout: float | None) -> dict[str, int]:
        check_timeout(timeout)
        cost = check_cost(self._limits, amount, named)
        check_within(self._limits, cost)
        return cost

    async def _reserve(self, cost: Mapping[str, int], timeout: float | None) -> Spend:
        driver, call = await self._spend(cost, timeout)
        return Spend(driver, call, self._name)

    async def _spend(self, cost: Mapping[str, int], timeout: float | None) -> tuple[Driver, Call]:
        began = clock.now()
        if timeout is None:
            got = await self._spent(cost)
        elif timeout == 0:
            got = await self._spent(cost, once=True)
        else:
            got = None
            try:
                async with asyncio.timeout(timeout) as limit:
                    got = await self._spent(cost)
            except TimeoutError:
                if not limit.expired():
                    raise
        if got is None:
            raise LockTimeout(
                f"{_amounts(cost)} of the rate limit {self._name!r} was not granted within {timeout:g} s: "
                f"{await self._reason()}"
            )
        if telemetry.observers:
            telemetry.tell("rate_granted", self._name, cost, clock.now() - began)
        return got

    async def _spent(self, cost: Mapping[str, int], *, once: bool = False) -> tuple[Driver, Call] | None:
        driver = await self._driven(cost)
        try:
            call = await driver.spend(cost, once=once)
        except LimitMismatch:
            if not driver.was_replaced:
                raise
            driver = await self._driven(cost)
            call = await driver.spend(cost, once=once)
        return (driver, call) if call else None

    async def _driven(self, cost: Mapping[str, int] | None = None) -> Driver:
        """The driver in the session, for which the limits were agreed on."""
        driver = self._driver
        if driver and (self._session or driver.session.home.is_here()):  # each loop has a default session of its own
            driver.session.home.check("rate limit", self._name)
            usable = driver.session.usable_here()
            if (usable and not driver.is_over) or (cost and driver.has_room(cost)):
                return driver
            self._agreed = self._agreed and not usable  # in a session that is usable, the limiter was deleted
        elif self._session:
            core_of(self._session).home.check("session")
        return await self._opened(await ready(self._session))

    async def _opened(self, session: SessionCore) -> Driver:
        """The driver in ``session``. Calls at once agree on the limits in one go, and keep their order."""
        if self._opening is None or self._opening[0] is not session or self._opening[1].done():
            self._opening = session, asyncio.create_task(self._open(session))
            self._opening[1].add_done_callback(unheard)
        try:
            return await asyncio.shield(self._opening[1])
        except ConcurrencyError as error:
            raise fresh(error) from None

    async def _open(self, session: SessionCore) -> Driver:
        agreement = await self._agree(session)
        driver = session.member(Drivers).of(self._name, agreement, self._metadata)
        await driver.pauses.known()
        self._driver = driver
        return driver

    async def _agree(self, session: SessionCore) -> limits_in_etcd.Agreement:
        agreement = await limits_in_etcd.agree(session, self._name, self._limits)
        there = agreement.rates
        if there != self._limits and not self._agreed:
            told = ", ".join(f"{one} {rate}".strip() for one, rate in there.items())
            raise LimitMismatch(
                f"the rate limiter {self._name!r} has other limits in etcd: {told}; open it with those, or change them "
                "for everyone with resize"
            )
        self._agreed = True
        return agreement

    async def _reason(self) -> str:
        """The reason of a timeout, in words."""
        if self._driver is None or not self._driver.session.home.is_here():
            return "the session was not open by then"
        try:
            async with asyncio.timeout(_PATIENCE):
                info = await overview.limiter(self._driver.session, self._name)
        except (ConcurrencyError, TimeoutError):
            return "etcd does not answer, so nothing is granted anew"
        if info.paused_until:
            return f"it is paused until {info.paused_until:%H:%M:%S} UTC, by {info.paused_by}"
        used = ", ".join(f"{use.used} of {use.limit} {use.dimension}".strip() for use in info.uses)
        others = {owner.session for use in info.uses for owner in use.waiters} - {f"{self._driver.session.id:016x}"}
        return f"{used} counted, {len(others)} other process{'es' if len(others) != 1 else ''} waiting"


def _amounts(cost: Mapping[str, int]) -> str:
    return ", ".join(f"{amount} {one}".strip() for one, amount in cost.items())
