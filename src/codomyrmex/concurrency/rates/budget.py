"""One process's share of a rate limit: its waiting calls, its slices, and the slice that it asks for next. Pure.

Times are handed in, on one clock. The caller does what the budget says: it asks etcd for the slice that ``request``
wants, tells ``granted`` or ``refused``, and deletes the parts that ``due`` gives.

Calls are served in order of arrival. A call takes its amounts in all dimensions at once or waits.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from codomyrmex.concurrency.rates import timing
from codomyrmex.concurrency.rates.demand import Demand
from codomyrmex.concurrency.rates.rate import Rate
from codomyrmex.concurrency.rates.slice_state import Part, Slice, State

_SPAN = 2.0  # seconds, at least, from which the demand is foretold


@dataclass(eq=False, slots=True)
class Call:
    """A call that waits for its amounts, or has got them at ``spent_at`` from ``slices``."""

    cost: Mapping[str, int]
    spent_at: float | None = None
    slices: dict[str, Slice] = field(default_factory=dict)


class Taken:
    """A slice that etcd has granted: its parts, and the time at which its lease was asked for."""

    __slots__ = ("asked_at", "parts")

    def __init__(self, asked_at: float, parts: Sequence[Part]) -> None:
        self.asked_at = asked_at
        self.parts = tuple(parts)


class Budget:
    """The budget of one process under ``rates``.

    ``limits`` are the amounts in etcd as they were seen last, and ``sessions`` the number of processes that use them.
    Nothing is spent or asked for while it is ``paused``.
    """

    def __init__(self, rates: Mapping[str, Rate]) -> None:
        self.rates = dict(rates)
        self.limits = {dimension: rate.amount for dimension, rate in rates.items()}
        self.sessions = 1
        self.paused = False
        self.waiting: deque[Call] = deque()
        self._slices: list[Slice] = []
        self._due_at = math.inf  # nothing is due before
        self._demand = {one: Demand(max(_SPAN, timing.life(rate.per))) for one, rate in rates.items()}
        self._requested = False
        self._refunded: set[str] = set()  # dimensions in which calls have used less than they reserved
        self._all_at_once = False  # a slice in one dimension came after that in another was over

    # Calls

    def ask(self, cost: Mapping[str, int], now: float) -> Call:
        """A call of this cost waits from now on; ``serve`` tells when it is served."""
        call = Call(cost)
        self.waiting.append(call)
        for dimension, amount in cost.items():
            self._demand[dimension].add(amount, now)
        return call

    def withdraw(self, call: Call) -> None:
        """A call waits no more. One that was served gives all back."""
        if call.spent_at is None:
            self.waiting.remove(call)
            return
        for dimension, part in call.slices.items():
            self._give_back(part, call.cost[dimension])

    def can_serve(self, cost: Mapping[str, int], now: float) -> bool:
        """True if ``cost`` would be served at once."""
        return not self.waiting and not self.paused and bool(self._found(cost, now))

    def serve(self, now: float) -> list[Call]:
        """The calls that are served now, in their order."""
        served = []
        while self.waiting and not self.paused and (found := self._found(self.waiting[0].cost, now)):
            call = self.waiting.popleft()
            for dimension, part in found.items():
                part.spend(call.cost[dimension], now)
            call.slices, call.spent_at = found, now
            served.append(call)
        return served

    def used(self, call: Call, amounts: Mapping[str, int], now: float) -> dict[str, int]:
        """A served call has used ``amounts``. The difference goes back.

        Returns the amounts beyond its cost, by dimension, for which no open slice has room: the caller must ask etcd
        for them, and tell ``overdrawn``.
        """
        beyond = {}
        for dimension, amount in amounts.items():
            more = amount - call.cost[dimension]
            if more <= 0:
                if more:
                    self._refunded.add(dimension)
                self._give_back(call.slices[dimension], -more)
            elif part := self._open(dimension, more, now):
                part.spend(more, now)
            else:
                beyond[dimension] = more
        return beyond

    # Slices

    def request(self, now: float, *, exact: bool = False) -> dict[str, int] | None:
        """The amounts by dimension of the slice to ask for now; None if none is wanted. ``granted`` or ``refused`` must
        follow. With ``exact``, it is no more than the calls that wait need."""
        if self._requested or self.paused or not self.waiting:
            return None
        self._requested = True
        need, tight = self._need()
        if not self._all_at_once:
            need = self._without_long(need, now)
        if exact:
            return need
        self._close(need)
        for one in need.keys() - tight:
            need[one] = max(need[one], min(self._foretold(one, need[one], now), self._cap(one)))
        return need

    def sizes(self, dimension: str, weight: int) -> list[int]:
        """The sizes of the parts of a slice. There are more of them where calls give back, so that nearly all goes."""
        return timing.parts(weight, timing.MANY if dimension in self._refunded else timing.FEW)

    def granted(self, taken: Mapping[str, Taken], now: float) -> None:
        """Etcd has granted what ``request`` wanted."""
        self._requested = False
        for dimension, one in taken.items():
            per = self.rates[dimension].per
            self._add(Slice(dimension, per, one.parts, one.asked_at, now))
        head = self.waiting[0].cost if self.waiting else {}
        self._all_at_once = not self._found(head, now) if head else False

    def refused(self) -> None:
        """Etcd has not granted what ``request`` wanted."""
        self._requested = False

    def overdrawn(self, dimension: str, taken: Taken, now: float) -> None:
        """Etcd has granted what a call used beyond its cost."""
        part = Slice(dimension, self.rates[dimension].per, taken.parts, taken.asked_at, now)
        part.spend(part.weight, now)
        part.close()
        self._add(part)

    def close(self) -> None:
        """Spend nothing more."""
        self._close(self.rates)

    def _close(self, dimensions: Collection[str]) -> None:
        """Spend nothing more from the slices of some dimensions. Before another slice is asked for, what they have left
        is too little for the first call that waits, and may serve others of the fleet."""
        for part in self._slices:
            if part.dimension in dimensions:
                part.close()
        self._due_at = 0.0

    def due(self, now: float) -> list[Part]:
        """The parts that count no more at ``now``, to be deleted."""
        if now < self._due_at:
            return []
        gone = [part for one in self._slices for part in one.due(now)]
        self._slices = [one for one in self._slices if one.state is not State.OVER]
        self._due_at = min((one.next_at() for one in self._slices), default=math.inf)
        return gone

    def next_at(self) -> float:
        """A time before which ``due`` has nothing to give, unless something is given back until then; infinite while
        there is no slice."""
        return self._due_at

    def free(self, now: float) -> dict[str, int]:
        """The amounts that may be spent now without asking etcd, by dimension."""
        return {name: sum(one.free(now) for one in self._slices if one.dimension == name) for name in self.rates}

    def _add(self, part: Slice) -> None:
        self._slices.append(part)
        self._due_at = min(self._due_at, part.next_at())

    def _give_back(self, part: Slice, amount: int) -> None:
        part.give_back(amount)
        if part.state is State.CLOSED and amount:
            self._due_at = 0.0

    def _found(self, cost: Mapping[str, int], now: float) -> dict[str, Slice]:
        """A slice with room for each amount of ``cost``; empty if one of them has none."""
        found = {}
        for dimension, amount in cost.items():
            part = self._open(dimension, amount, now)
            if part is None:
                return {}
            found[dimension] = part
        return found

    def _open(self, dimension: str, amount: int, now: float) -> Slice | None:
        """The oldest slice that has room for ``amount``."""
        slices = (one for one in self._slices if one.dimension == dimension)
        return next((one for one in slices if one.free(now) >= amount), None)

    def _need(self) -> tuple[dict[str, int], set[str]]:
        """The cost of the calls that one slice is to serve, by dimension: of as many as fit the cap. And the dimensions
        in which the next one does not fit: they are tight, so nothing more is asked for there."""
        need: dict[str, int] = {}
        for call in self.waiting:
            more = {name: need.get(name, 0) + amount for name, amount in call.cost.items()}
            tight = {name for name, amount in more.items() if amount > self._cap(name)}
            if need and tight:
                return need, tight
            need.update(more)
        return need, set()

    def _without_long(self, need: Mapping[str, int], now: float) -> dict[str, int]:
        """``need`` without the dimensions in which an open slice has room for it and will live on for long."""
        left = {}
        for dimension, amount in need.items():
            part = self._open(dimension, amount, now)
            if part is None or part.spend_until - now < timing.LONG:
                left[dimension] = amount
        return left or dict(need)

    def _foretold(self, dimension: str, need: int, now: float) -> int:
        """Twice what is asked for in one life, of which the waiting calls ``need`` some and need it once.

        Workers that wait for their calls ask for no more than they get, so a slice of just that amount would stay as
        small as it is.
        """
        return self._demand[dimension].over(2 * timing.life(self.rates[dimension].per), now) - need

    def _cap(self, dimension: str) -> int:
        return timing.cap(self.limits[dimension], self.sessions)
