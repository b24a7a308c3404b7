"""The figures of a run: use, fairness, writes. Pure functions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from tests.chaos.documents.history import Event
from tests.chaos.rates.provider import SERVED
from tests.chaos.rates.run import Run


def use(run: Run, dimension: str) -> float:
    """The part of the limit that served calls used, from the second period on."""
    _, span = run.measured(dimension)
    amount, per = run.limits[dimension]
    return sum(shares(run, dimension).values()) / (amount * span / per)


def shares(run: Run, dimension: str) -> dict[str, float]:
    """The amount that each process used, as the mean of all spans of one length that begin in the second period.

    Calls come in bursts, about one in each period: one span would count a burst more or less by chance.
    """
    begin, span = run.measured(dimension)
    per = run.limits[dimension][1]
    found: dict[str, float] = defaultdict(float)
    for call in run.calls:
        if call.answer == SERVED:
            spans = _part((call.arrived - begin) / per) - _part((call.arrived - begin - span) / per)
            found[call.process] += call.cost.get(dimension, 0) * spans
    return found


def _part(value: float) -> float:
    return min(1.0, max(0.0, value))


def jain(amounts: Iterable[float]) -> float:
    """Jain's index: 1 where all have the same, 1/n where one has all."""
    values = list(amounts)
    squares = sum(value * value for value in values)
    return sum(values) ** 2 / (len(values) * squares) if squares else 0.0


def saturating(run: Run, dimension: str) -> dict[str, float]:
    """The amounts of the clients that always wait and worked from beginning to end."""
    got = shares(run, dimension)
    return {
        name: got.get(name, 0.0)
        for name, demand in run.steady.items()
        if demand.saturating and dimension in demand.cost
    }


def revisions(events: Iterable[Event], begin: float, end: float) -> int:
    """The number of etcd's revisions that were seen in a span."""
    return len({event.revision for event in events if begin <= event.seen < end})


def peak(entries: Iterable[tuple[float, float, int]], per: float) -> tuple[int, float]:
    """The most that any window of ``per`` can hold, and when it ends, of ``(first, last, amount)``.

    Each amount is used at some moment from first to last: a window counts it where it holds any of these moments.
    """
    steps = []
    for first, last, amount in entries:
        steps += [(first, 1, amount), (max(first, last) + per, 0, -amount)]
    most, ends, now = 0, 0.0, 0
    for at, _, amount in sorted(steps):
        now += amount
        if now > most:
            most, ends = now, at
    return most, ends


def leases(events: Iterable[Event], begin: float, end: float) -> int:
    """The number of leases that keys were first put on in a span."""
    first: dict[int, float] = {}
    for event in events:
        if event.lease:
            first.setdefault(event.lease, event.seen)
    return sum(begin <= seen < end for seen in first.values())
