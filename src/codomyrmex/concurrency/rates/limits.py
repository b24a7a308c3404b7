"""The limits of a rate limiter in etcd: agreed on, changed, and deleted.

Each dimension has a limit key beside its entries, as a semaphore has, so a reading of the queue shows both in one
order. The value of the key has the period, and the names of all dimensions of the limiter.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from codomyrmex.concurrency.errors import ConcurrencyError, LimitMismatch, NotHeld, RateLimitInUse
from codomyrmex.concurrency.etcd.commit import Request
from codomyrmex.concurrency.etcd.transports.protocol import KV, Compare, Delete, Get, Op, Put, Target
from codomyrmex.concurrency.keys import limit_key, limit_range, lowest_limit, prefix_end, queue_of, session_of
from codomyrmex.concurrency.rates.rate import Rate, length, period
from codomyrmex.concurrency.records import LimitRecord
from codomyrmex.concurrency.session_core import SessionCore
from codomyrmex.concurrency.waitqueue.view import is_entry, is_limit

_TRIES = 20  # of a change that meets those of others


def rates_in(kvs: Sequence[KV]) -> tuple[Rate, LimitRecord] | None:
    """The rate of a dimension in a reading of its limits, the lowest if there are several; None if it has none."""
    limits = [kv for kv in kvs if is_limit(kv)]
    amount = lowest_limit(kv.key for kv in limits)
    for record in filter(None, (LimitRecord.decode(kv.value) for kv in limits)):
        try:
            return (Rate(amount, record.per), record) if amount else None
        except ValueError:  # a foreign period
            continue
    return None


class Agreement:
    """The ``rates`` of a limiter by which a process counts: the fleet counts by their periods at ``revision``."""

    def __init__(self, session: SessionCore, name: str, rates: Mapping[str, Rate], revision: int) -> None:
        self.rates = dict(rates)
        self.revision = revision
        self._session = session
        self._name = name

    def compares(self, dimensions: Iterable[str]) -> list[Compare]:
        """The compares that hold while no limit of these dimensions is newer."""
        ranges = (limit_range(self._session.layout.rate(self._name, one)) for one in dimensions)
        after = self.revision + 1
        return [Compare(start, Target.CREATE_REVISION, after, end, less=True) for start, end in ranges]

    async def renewed(self) -> bool:
        """True if limits are newer, by whose periods the fleet counts too. Raises ``LimitMismatch`` if it does not: the
        limiter was deleted, and perhaps opened anew."""
        found = await _read(self._session, self._name)
        known = _rates(found.limits)
        if not known:
            raise LimitMismatch(f"the rate limiter {self._name!r} was deleted")
        _agreed(self._name, self.rates, known)
        newest = max(kv.create_revision for kvs in found.limits.values() for kv in kvs)
        former, self.revision = self.revision, found.revision
        return newest > former


async def agree(session: SessionCore, name: str, rates: Mapping[str, Rate]) -> Agreement:
    """Agree on the rates of a limiter, those in etcd, which become ``rates`` if it has none.

    Raises ``LimitMismatch`` if etcd has other dimensions or periods; other amounts are returned.
    """
    prefix = session.layout.rate_prefix(name)
    names = tuple(sorted(rates))
    queues = {one: session.layout.rate(name, one) for one in names}
    puts = [
        Put(limit_key(queue, rates[one].amount), LimitRecord(rates[one].per, names).encode())
        for one, queue in queues.items()
    ]
    for _ in range(_TRIES):
        found = await _read(session, name)
        if known := _rates(found.limits):
            return Agreement(session, name, _agreed(name, rates, known), found.revision)
        # Another process may open the name with other dimensions now, so nothing under it may be newer.
        unchanged = Compare(prefix, Target.CREATE_REVISION, found.revision + 1, prefix_end(prefix), less=True)
        request = Request(list(queues.values()), puts, compares=(unchanged,), again=(), alone=True)
        if (reply := await session.committer.commit(request)).succeeded:
            return Agreement(session, name, rates, reply.revision)
    raise ConcurrencyError(f"others keep writing among the limits of the rate limiter {name!r}; try again")


class _Found(NamedTuple):
    """A reading of a limiter: its limits by dimension, and its other keys."""

    revision: int
    limits: dict[str, list[KV]]
    others: list[KV]


async def _read(session: SessionCore, name: str) -> _Found:
    prefix = session.layout.rate_prefix(name)
    found = await session.transport.get(Get(prefix, prefix_end(prefix)))
    reading = _Found(found.revision, {}, [])
    for kv in found.kvs:
        named = session.layout.rate_and_dimension(kv.key)
        if named and named[0] == name:
            (reading.limits.setdefault(named[1], []) if is_limit(kv) else reading.others).append(kv)
    return reading


def _rates(limits: Mapping[str, Sequence[KV]]) -> dict[str, tuple[Rate, LimitRecord]]:
    return {one: pair for one, kvs in limits.items() if (pair := rates_in(kvs))}


def _agreed(name: str, rates: Mapping[str, Rate], known: Mapping[str, tuple[Rate, LimitRecord]]) -> dict[str, Rate]:
    there = set(next(iter(known.values()))[1].dimensions)
    if there != set(rates) or set(known) != set(rates):
        raise LimitMismatch(
            f"the rate limiter {name!r} has the dimensions {_told(there)} in etcd, not {_told(rates)}; open it with "
            "those, or use another name"
        )
    found = {one: rate for one, (rate, _) in known.items()}
    for one, rate in found.items():
        if rate.per != rates[one].per:
            of = f" of {one}" if one else ""
            raise LimitMismatch(
                f"the rate limiter {name!r} counts{of} per {period(rate.per)} in etcd, not per "
                f"{period(rates[one].per)}; open it with that, or use another name"
            )
    return found


def _told(dimensions: Mapping[str, object] | set[str]) -> str:
    return ", ".join(one or "(one without a name)" for one in sorted(dimensions))


async def known(session: SessionCore, name: str) -> dict[str, Rate]:
    """The rates of a limiter in etcd by dimension; empty if there is none."""
    return _amounts(await _read(session, name))


def _amounts(found: _Found) -> dict[str, Rate]:
    return {one: rate for one, (rate, _) in _rates(found.limits).items()}


async def resize(session: SessionCore, name: str, rates: Mapping[str, Rate]) -> dict[str, Rate]:
    """Set the amounts of some dimensions of a limiter that exists, all at once; returns the former rates of all.

    Raises ``NotHeld`` if there is no such limiter, ``ValueError`` for another period or an unknown dimension.
    """
    queues = {one: session.layout.rate(name, one) for one in rates}
    for _ in range(_TRIES):
        found = await _read(session, name)
        former = _amounts(found)
        if not former:
            raise NotHeld(f"there is no rate limiter {name!r}")
        changes: list[Op] = []
        same: list[Compare] = []
        for one, rate in rates.items():
            _check_resize(name, former, one, rate)
            if rate != former[one]:
                compares, ops = _change(queues[one], found.limits[one], rate, tuple(sorted(former)))
                same += compares
                changes += ops
        if not changes:
            return former
        reply = await session.committer.commit(Request(list(queues.values()), changes, compares=same, alone=True))
        if reply.succeeded:
            return former
    raise ConcurrencyError(f"others keep changing the rate limiter {name!r}; try again")


def _check_resize(name: str, former: Mapping[str, Rate], dimension: str, rate: Rate) -> None:
    if dimension not in former:
        raise ValueError(f"the rate limiter {name!r} has the dimensions {_told(former)}, not {dimension!r}")
    if rate.per != former[dimension].per:
        raise ValueError(
            f"the rate limiter {name!r} counts per {period(former[dimension].per)}; only its amount can be changed, so "
            "delete it when it is idle, or use another name"
        )


def _change(
    queue: bytes, limits: Sequence[KV], rate: Rate, dimensions: tuple[str, ...]
) -> tuple[list[Compare], list[Op]]:
    """The compares and operations that put another limit key in the place of those in ``limits``. The waiters watch the
    old ones, and notice their deletion."""
    new = limit_key(queue, rate.amount)
    old = [kv for kv in limits if kv.key != new]
    same = [Compare(kv.key, Target.CREATE_REVISION, kv.create_revision) for kv in old]
    return same, [*(Delete(kv.key) for kv in old), Put(new, LimitRecord(rate.per, dimensions).encode())]


async def delete(session: SessionCore, name: str) -> dict[str, Rate]:
    """Remove a limiter that nobody waits for and that counts nothing; returns its rates.

    Raises ``NotHeld`` if there is none, ``RateLimitInUse`` if it is in use.
    """
    for _ in range(_TRIES):
        found = await _read(session, name)
        if not found.limits:
            raise NotHeld(f"there is no rate limiter {name!r}")
        former = _amounts(found)
        if entries := [kv for kv in found.others if is_entry(kv)]:
            waits = max((rate.per for rate in former.values()), default=0.0)
            slices = len({(queue_of(kv.key), session_of(kv.key), kv.create_revision) for kv in entries})
            told = "1 slice counts or waits" if slices == 1 else f"{slices} slices count or wait"
            raise RateLimitInUse(
                f"the rate limiter {name!r} is in use: {told}; what was spent counts for {length(waits)} and a little "
                "more; nothing was deleted"
            )
        limits = [kv for kvs in found.limits.values() for kv in kvs]
        queues = {queue_of(kv.key) for kv in limits}
        same = [Compare(kv.key, Target.CREATE_REVISION, kv.create_revision) for kv in limits]
        same += [Compare(one, Target.CREATE_REVISION, found.revision + 1, prefix_end(one), less=True) for one in queues]
        change: list[Op] = [Delete(kv.key) for kv in limits]
        if (await session.committer.commit(Request(list(queues), change, compares=same, alone=True))).succeeded:
            return former
    raise ConcurrencyError(f"others keep changing the rate limiter {name!r}; try again")
