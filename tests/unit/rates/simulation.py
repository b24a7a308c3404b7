"""A simulated fleet: budgets of processes, and a model of etcd, in time that is handed in.

``World`` has the clock and the events to come. ``Etcd`` is the queues and the leases. A ``Process`` does what its
``Budget`` says, as the driver does. A ``Take`` is the way of one slice: join, wait, move to leases of its own. Every
message takes a random time; leases end late, never early. Random numbers are seeded, so a history can be repeated.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from codomyrmex.concurrency.keys import Layout, permits_suffix, session_of
from codomyrmex.concurrency.rates import timing
from codomyrmex.concurrency.rates.budget import Budget, Call, Taken
from codomyrmex.concurrency.rates.rate import Rate
from codomyrmex.concurrency.rates.slice_state import Part
from codomyrmex.concurrency.waitqueue.rules import Granted, Never, Permits, Predecessor, View

SESSION_TTL = 5.0
_LAYOUT = Layout("fleet")
_ROUNDING = 1e-6  # seconds


@dataclass(frozen=True)
class Conditions:
    """The seconds that a message takes, and by how much leases may end late at most."""

    delay: tuple[float, float] = (0.001, 0.05)
    slow: float = 0.1  # the share of messages that take up to 30 times as long
    lateness: float = 2.0


class World:
    """The clock, the events to come, and the spends as a provider may see them."""

    def __init__(self, seed: int, rates: Mapping[str, Rate], conditions: Conditions) -> None:
        self.random = random.Random(seed)
        self.rates = rates
        self.conditions = conditions
        self.now = 0.0
        self.etcd = Etcd(self)
        self.spent: dict[str, list[Spent]] = {dimension: [] for dimension in rates}
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()

    def at(self, time: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (time, next(self._numbers), event))

    def sent(self, event: Callable[[], None]) -> None:
        """A message, which arrives later."""
        delay = self.random.uniform(*self.conditions.delay)
        if self.random.random() < self.conditions.slow:
            delay *= self.random.uniform(1, 30)
        self.at(self.now + delay, event)

    def run(self, until: float) -> None:
        while self._events and self._events[0][0] <= until:
            self.now, _, event = heapq.heappop(self._events)
            event()
        self.now = until

    def spend(self, dimension: str, amount: int, process: Process) -> Spent:
        spent = Spent(self.now, amount, process)
        self.spent[dimension].append(spent)
        return spent


@dataclass
class Spent:
    """An amount that a process spent at ``time``. A refund lowers it."""

    time: float
    amount: int
    process: Process


class Etcd:
    """The queues, one a dimension, with keys in the order of their create revisions, and the leases."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.limits = {dimension: rate.amount for dimension, rate in world.rates.items()}
        self.queues: dict[str, dict[bytes, int]] = {dimension: {} for dimension in world.rates}
        self._lease_of: dict[bytes, int] = {}
        self._keys: dict[int, dict[bytes, None]] = {}  # in order, so that a seed tells all
        self._numbers = itertools.count(1)
        self._revisions = itertools.count(1)
        self._watches: dict[Take, None] = {}

    def grant(self, ttl: float | None) -> int:
        """A lease; without ``ttl``, one that is kept alive."""
        lease = next(self._numbers)
        self._keys[lease] = {}
        if ttl is not None:
            self.end_after(lease, ttl, lambda: True)
        return lease

    def end_after(self, lease: int, ttl: float, still: Callable[[], bool]) -> None:
        end = self._world.now + ttl + self._world.random.uniform(0, self._world.conditions.lateness)
        self._world.at(end, lambda: self.revoke(lease) if still() else None)

    def lives(self, lease: int) -> bool:
        return lease in self._keys

    def revoke(self, lease: int) -> None:
        self.delete(list(self._keys.pop(lease, ())))

    def join(self, keys: Mapping[str, Sequence[bytes]], lease: int, take: Take) -> int:
        revision = next(self._revisions)
        for dimension, some in keys.items():
            self.queues[dimension].update(dict.fromkeys(some, revision))
            self._put(some, lease)
        self._watches[take] = None
        return revision

    def view(self, dimension: str, revision: int) -> View:
        entries = [Predecessor(key, one) for key, one in self.queues[dimension].items() if one < revision]
        return View(revision, entries, len(entries), self.limits[dimension])

    def move(self, keys: Mapping[str, Sequence[bytes]], leases: Mapping[str, int], revision: int) -> bool:
        there = all(self.queues[one].get(key) == revision for one, some in keys.items() for key in some)
        if not there or not all(map(self.lives, leases.values())):
            return False
        for dimension, some in keys.items():
            self._put(some, leases[dimension])
        return True

    def delete(self, keys: Sequence[bytes]) -> None:
        changed = set()
        for key in keys:
            if (lease := self._lease_of.pop(key, None)) is not None:
                self._keys.get(lease, {}).pop(key, None)
                dimension = _dimension(key)
                del self.queues[dimension][key]
                changed.add(dimension)
        for take in list(self._watches):
            for dimension in sorted(changed & take.keys.keys()):
                take.changed(dimension)

    def unwatch(self, take: Take) -> None:
        self._watches.pop(take, None)

    def _put(self, keys: Sequence[bytes], lease: int) -> None:
        for key in keys:
            if (former := self._lease_of.get(key)) is not None:
                self._keys[former].pop(key, None)
            self._lease_of[key] = lease
            self._keys[lease][key] = None


def _dimension(key: bytes) -> str:
    found = _LAYOUT.rate_and_dimension(key)
    assert found
    return found[1]


class Take:
    """The way of one slice through etcd: it joins, waits, and moves to leases of its own."""

    def __init__(self, process: Process, wanted: Mapping[str, int], done: Callable[[dict[str, Taken] | None], None]):
        self._process = process
        self._world = process.world
        self._done = done
        self._over = False
        self._revision = 0
        self._sizes = {one: timing.parts(weight) for one, weight in wanted.items()}
        self._rules = {one: Permits(sizes[0], sum(sizes)) for one, sizes in self._sizes.items()}
        self.keys = {one: [process.key(one, size) for size in sizes] for one, sizes in self._sizes.items()}
        self._waits = set(wanted)
        self._reads: set[str] = set()
        self._sessions: set[int | None] = set()
        self._granted = False
        self._ask_for_leases()
        self._world.sent(self._join)

    def _ask_for_leases(self) -> None:
        self._leases: dict[str, tuple[int, float]] = {}
        leases = self._leases
        for one in self.keys:
            asked_at = self._process.clock()
            self._world.sent(lambda one=one, asked_at=asked_at: self._lease(leases, one, asked_at))  # type: ignore[misc]

    def _lease(self, leases: dict[str, tuple[int, float]], dimension: str, asked_at: float) -> None:
        lease = self._world.etcd.grant(timing.ttl(self._world.rates[dimension].per))

        def ready() -> None:
            if leases is not self._leases or self._over:
                self._world.sent(lambda: self._world.etcd.revoke(lease))
            leases[dimension] = lease, asked_at
            self._move_if_ready()

        self._answer(ready)

    def _answer(self, event: Callable[[], None]) -> None:
        self._world.sent(lambda: self._process.told(event))

    def _join(self) -> None:
        if self._over:
            return
        if not self._world.etcd.lives(self._process.session):
            self._answer(self.fail)
            return
        self._revision = self._world.etcd.join(self.keys, self._process.session, self)
        views = {one: self._world.etcd.view(one, self._revision) for one in self.keys}
        self._answer(lambda: self._joined(views))

    def _joined(self, views: Mapping[str, View]) -> None:
        for dimension, view in views.items():
            self._see(dimension, view)
        if self._waits and not self._over:
            for lease, _ in self._leases.values():
                self._world.sent(lambda lease=lease: self._world.etcd.revoke(lease))  # type: ignore[misc]
            self._leases = {}
        self._granted_if_all()

    def changed(self, dimension: str) -> None:
        """Something was deleted in a queue. It is read later, and the news come still later."""
        if dimension in self._reads:
            return
        self._reads.add(dimension)

        def read() -> None:
            self._reads.discard(dimension)
            view = self._world.etcd.view(dimension, self._revision)
            self._answer(lambda: self._seen(dimension, view))

        self._world.sent(read)

    def _seen(self, dimension: str, view: View) -> None:
        if self._waits:
            self._see(dimension, view)
            self._granted_if_all()

    def _see(self, dimension: str, view: View) -> None:
        self._sessions = {session_of(entry.key) for entry in view.entries} | {self._process.session}
        decision = self._rules[dimension](view)
        if isinstance(decision, Granted):
            self._waits.discard(dimension)
        elif isinstance(decision, Never):
            self.fail()

    def _granted_if_all(self) -> None:
        if not self._waits and not self._over and not self._granted:
            self._granted = True
            self._world.etcd.unwatch(self)
            if not self._leases:
                self._ask_for_leases()
            self._move_if_ready()

    def _move_if_ready(self) -> None:
        if self._granted and not self._over and len(self._leases) == len(self.keys):
            ids = {one: lease for one, (lease, _) in self._leases.items()}

            def move() -> None:
                moved = self._world.etcd.move(self.keys, ids, self._revision)
                self._answer(self._succeed if moved else self.fail)

            self._world.sent(move)

    def _succeed(self) -> None:
        if not self._over:
            self._over = True
            parts = {
                one: [Part(*pair) for pair in zip(keys, self._sizes[one], strict=True)]
                for one, keys in self.keys.items()
            }
            self._process.budget.sessions = len(self._sessions)
            self._done({one: Taken(asked_at, parts[one]) for one, (_, asked_at) in self._leases.items()})

    def fail(self) -> None:
        """No key stays in etcd."""
        if not self._over:
            self._over = True
            self._world.etcd.unwatch(self)
            self._process.delete([key for some in self.keys.values() for key in some])
            self._done(None)


class Process:
    """One process of the fleet, which runs until it is stopped, killed, or closed.

    Its clock is apart from that of the world. Its calls come from ``calls``.
    """

    def __init__(self, world: World, name: str = "") -> None:
        self.world = world
        self.name = name
        self.budget = Budget(world.rates)
        self.session = world.etcd.grant(None)
        self.stopped = self.killed = self.over = False
        self.served: dict[Call, dict[str, Spent]] = {}
        self.on_served: dict[Call, Callable[[], None]] = {}
        self._offset = world.random.uniform(0, 1000)
        self._pending: list[Callable[[], object]] = []
        self._take: Take | None = None
        self._begins = False  # it will ask for a slice as soon as this moment is over
        self._slots = itertools.count()
        self._stops = 0
        self._timer = 0

    def clock(self) -> float:
        return self.world.now + self._offset

    def key(self, dimension: str, size: int) -> bytes:
        entry = b"%016x-%d" % (self.session, next(self._slots))
        return _LAYOUT.rate("limiter", dimension) + entry + permits_suffix(size)

    def told(self, event: Callable[[], object]) -> None:
        """An answer, or a time that has come. A stopped process notices it when it goes on, a dead one never."""
        if self.stopped:
            self._pending.append(event)
        elif not self.killed:
            event()

    # Its calls

    def ask(self, cost: Mapping[str, int], on_served: Callable[[], None] | None = None) -> Call:
        call = self.budget.ask(cost, self.clock())
        if on_served:
            self.on_served[call] = on_served
        if self.over:
            self._serve()
            if call.spent_at is None:
                self.budget.withdraw(call)
        else:
            self.go_on()
        return call

    def cancel(self, call: Call) -> None:
        """A call gives up while it waits."""
        if call in self.budget.waiting:
            self.budget.withdraw(call)
            if not self.over:
                self.go_on()

    def used(self, call: Call, amounts: Mapping[str, int]) -> None:
        spent = self.served.pop(call)
        beyond = self.budget.used(call, amounts, self.clock())
        for dimension, amount in amounts.items():
            more = amount - call.cost[dimension]
            spent[dimension].amount += min(0, more)
            if more > 0 and dimension not in beyond:
                self.world.spend(dimension, more, self)
        if not self.over:
            for dimension, amount in beyond.items():
                Take(self, {dimension: min(amount, self.budget.limits[dimension])}, self._overdrawn)
            self.go_on()

    def _overdrawn(self, taken: dict[str, Taken] | None) -> None:
        for dimension, one in (taken or {}).items():
            self.world.spend(dimension, sum(part.size for part in one.parts), self)
            self.budget.overdrawn(dimension, one, self.clock())
        self.go_on()

    # As the driver

    def go_on(self) -> None:
        if self.over:
            return
        self._serve()
        self._delete(self.budget.due(self.clock()))
        if self._take is None and not self._begins and self.budget.waiting:
            self._begins = True
            self.world.at(self.world.now, lambda: self.told(self._begin))
        elif self._take and not self.budget.waiting:
            self._take.fail()
        self._set_timer()

    def _begin(self) -> None:
        """Ask for a slice, now that all calls that came at once are known."""
        self._begins = False
        if not self.over and (wanted := self.budget.request(self.clock())):
            self._take = Take(self, wanted, self._taken)

    def _taken(self, taken: dict[str, Taken] | None) -> None:
        self._take = None
        if taken is None:
            self.budget.refused()
        else:
            self.budget.granted(taken, self.clock())
        self.go_on()

    def _serve(self) -> None:
        for call in self.budget.serve(self.clock()):
            self.served[call] = {one: self.world.spend(one, amount, self) for one, amount in call.cost.items()}
            if then := self.on_served.pop(call, None):
                then()

    def _delete(self, parts: Sequence[Part]) -> None:
        for part in parts:
            self.delete([part.key])

    def delete(self, keys: Sequence[bytes]) -> None:
        self.world.sent(lambda: self.world.etcd.delete(keys))

    def _set_timer(self) -> None:
        at = self.budget.next_at()
        if at < math.inf:
            self._timer += 1
            number = self._timer
            event = lambda: self.told(self.go_on) if number == self._timer else None  # noqa: E731
            self.world.at(max(self.world.now, at - self._offset) + _ROUNDING, event)

    # Its faults

    def stop(self) -> None:
        """As SIGSTOP: the lease is not renewed either."""
        self.stopped = True
        self._stops += 1
        stops = self._stops
        left = self.world.random.uniform(SESSION_TTL / 2, SESSION_TTL)
        self.world.etcd.end_after(self.session, left, lambda: self.killed or (self.stopped and stops == self._stops))

    def go_on_after_stop(self) -> None:
        self.stopped = False
        if self.killed:
            return
        if not self.world.etcd.lives(self.session):
            self.over = True  # its slices outlast its session
        pending, self._pending = self._pending, []
        for event in pending:
            event()
        self.go_on()

    def kill(self) -> None:
        """As SIGKILL."""
        self.stop()
        self.stopped, self.killed = False, True

    def close(self) -> None:
        """The session is closed: unspent slices are given back, and calls may still be tried."""
        self.budget.close()
        self._delete(self.budget.due(self.clock()))
        self.over = True
        if self._take:
            self._take.fail()
        self.world.sent(lambda: self.world.etcd.revoke(self.session))


def excess(spends: Sequence[Spent], rate: Rate) -> str:
    """The worst window of one dimension, if it has more than the limit; empty if there is none.

    A provider may see a spend up to ``margin`` late. A window of ``per`` that begins at ``t`` can have every spend from
    ``t - margin`` to before ``t + per``, so no window of ``per + margin`` over the spends may have more than the limit.
    """
    length = rate.per + timing.margin(rate.per) - _ROUNDING / 2
    ordered = sorted(spends, key=lambda spent: spent.time)
    times = [spent.time for spent in ordered]
    sums = list(itertools.accumulate((spent.amount for spent in ordered), initial=0))
    for first, time in enumerate(times):
        total = sums[bisect_left(times, time + length)] - sums[first]
        if total > rate.amount:
            return f"{total} of {rate} from {time:.3f} s on"
    return ""


@dataclass(frozen=True)
class History:
    """A generated history: the limits, the demand and the faults, all from a seed."""

    seed: int
    rates: Mapping[str, Rate]
    processes: int = 3
    calls: int = 120
    periods: float = 3.5  # its length, in the longest period
    load: float = 1.5  # what is asked for, as a share of the limit
    faults: float = 0.5  # the share of processes that are stopped, killed or closed
    conditions: Conditions = Conditions()

    def play(self) -> World:
        world = World(self.seed, self.rates, self.conditions)
        length = self.periods * max(rate.per for rate in self.rates.values())
        for number in range(self.processes):
            _Life(self, world, length, f"p{number}")
        world.run(length)
        return world

    def violation(self) -> str:
        """The first dimension in which a window had more than its limit; empty if none had."""
        world = self.play()
        found = {one: excess(spends, self.rates[one]) for one, spends in world.spent.items()}
        return next((f"{one}: {wrong}" for one, wrong in found.items() if wrong), "")


class _Life:
    """The calls and the faults of one process, and of those that take its place."""

    def __init__(self, history: History, world: World, length: float, name: str) -> None:
        self._history = history
        self._world = world
        self._length = length
        self._every = length * history.processes / history.calls
        self._begin(name)

    def _begin(self, name: str) -> None:
        self._process = process = Process(self._world, name)
        self._call(process)
        if self._world.random.random() < self._history.faults:
            at = self._world.now + self._world.random.uniform(0, self._length)
            self._world.at(at, lambda: self._fault(process))

    def _call(self, process: Process) -> None:
        draw = self._world.random
        if process.killed:
            return
        if not process.stopped:
            call = process.ask(self._cost())
            if draw.random() < 0.2:
                patience = draw.expovariate(2 / self._every)
                self._world.at(self._world.now + patience, lambda: process.told(lambda: process.cancel(call)))
            if draw.random() < 0.4:
                self._world.at(self._world.now + draw.expovariate(1), lambda: process.told(lambda: self._used(call)))
        burst = draw.random() < 0.3
        self._world.at(
            self._world.now + (0.0 if burst else draw.expovariate(0.7 / self._every)), lambda: self._call(process)
        )

    def _cost(self) -> dict[str, int]:
        draw, history = self._world.random, self._history
        chosen = [one for one in history.rates if draw.random() < 0.7] or [draw.choice(list(history.rates))]
        cost = {}
        for one in chosen:
            rate = history.rates[one]
            mean = history.load * rate.amount * self._length / rate.per / history.calls
            cost[one] = max(1, min(rate.amount, round(draw.uniform(0, 2 * mean))))
        return cost

    def _used(self, call: Call) -> None:
        process = self._process
        if call not in process.served:
            return
        draw = self._world.random
        most = 1.3 if draw.random() < 0.2 else 1.0
        process.used(call, {one: int(amount * draw.uniform(0, most)) for one, amount in call.cost.items()})

    def _fault(self, process: Process) -> None:
        draw = self._world.random
        kind = draw.choice(("kill", "close", "stop"))
        if kind == "kill":
            process.kill()
        elif kind == "close":
            process.close()
        else:
            process.stop()
            self._world.at(self._world.now + draw.expovariate(1 / 6), process.go_on_after_stop)
            return
        self._world.at(self._world.now + draw.uniform(0, 5), lambda: self._begin(process.name))


def random_history(seed: int) -> History:
    """A history with one to three dimensions of different periods."""
    draw = random.Random(seed)
    pers = draw.sample([1.0, 2.5, 10.0, 20.0, 60.0], draw.choice((1, 1, 2, 3)))
    rates = {f"d{number}": Rate(draw.choice((1, 3, 10, 50, 1000)), per) for number, per in enumerate(pers)}
    return History(
        seed,
        rates,
        processes=draw.randint(1, 5),
        load=draw.choice((0.3, 1.0, 3.0)),
        faults=draw.choice((0.0, 0.5, 1.0)),
        conditions=Conditions(slow=draw.choice((0.0, 0.1, 0.5)), lateness=draw.choice((0.0, 0.0, 2.0))),
    )


def spent_between(world: World, dimension: str, begin: float, end: float) -> int:
    """The amount that the fleet spent in a dimension in a stretch of time."""
    return sum(spent.amount for spent in world.spent[dimension] if begin <= spent.time < end)


def by_process(world: World, dimension: str, begin: float) -> dict[str, int]:
    """The amounts that the processes spent in a dimension from ``begin`` on."""
    found: dict[str, int] = defaultdict(int)
    for spent in world.spent[dimension]:
        if spent.time >= begin:
            found[spent.process.name] += spent.amount
    return dict(found)
