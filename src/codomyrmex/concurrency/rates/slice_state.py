"""One slice: an amount that this process got in one dimension, as a table of states and events. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum, auto
from typing import NamedTuple

from codomyrmex.concurrency.rates import timing


class State(IntEnum):
    """The states of a slice."""

    OPEN = auto()  # it may be spent
    CLOSED = auto()  # it counts what was spent, and nothing more is spent from it
    OVER = auto()  # it counts no more


class Event(IntEnum):
    """The events in the life of a slice."""

    CLOSE = auto()  # its life is over, or nobody spends from it, or its owner ends
    END = auto()  # what was spent from it is out of every window, or nothing was


TRANSITIONS: dict[tuple[State, Event], State] = {
    (State.OPEN, Event.CLOSE): State.CLOSED,
    (State.CLOSED, Event.END): State.OVER,
}


def next_state(state: State, event: Event) -> State:
    """The state after ``event``; raises ``RuntimeError`` for an event that is impossible in ``state``."""
    after = TRANSITIONS.get((state, event))
    if after is None:
        raise RuntimeError(f"{event.name} is impossible for a slice that is {state.name}")
    return after


class Part(NamedTuple):
    """A part of a slice: its key in etcd and its size."""

    key: bytes
    size: int


class Slice:
    """A slice of ``dimension``, whose lease was asked for at ``asked_at`` and which was granted at ``now``.

    ``spent`` is what calls have reserved or used from it.
    """

    def __init__(self, dimension: str, per: float, parts: Sequence[Part], asked_at: float, now: float) -> None:
        self.dimension = dimension
        self.state = State.OPEN
        self.spent = 0
        self.spend_until = asked_at + timing.life(per)
        self.counted_until = now
        self._per = per
        self._parts = list(parts)
        self._idle_from = now + timing.idle(per)

    @property
    def weight(self) -> int:
        """The amount that it counts in etcd."""
        return sum(part.size for part in self._parts)

    def free(self, now: float) -> int:
        """The amount that may be spent from it now."""
        return self.weight - self.spent if self.state is State.OPEN and now < self.spend_until else 0

    def spend(self, amount: int, now: float) -> None:
        """Spend from it; the caller has looked at ``free``."""
        self.spent += amount
        self.count(now)

    def count(self, now: float) -> None:
        """Something may have been spent from it up to ``now``."""
        self.counted_until = now + self._per + timing.margin(self._per)
        self._idle_from = now + timing.idle(self._per)

    def give_back(self, amount: int) -> None:
        """``amount`` of what was spent was not used after all."""
        self.spent -= amount

    def close(self) -> None:
        """Spend nothing more from it."""
        if self.state is State.OPEN:
            self.state = next_state(self.state, Event.CLOSE)

    def due(self, now: float) -> list[Part]:
        """The parts that count no more at ``now``, which it forgets; the slice closes and ends as it must."""
        if self.state is State.OPEN and now >= min(self.spend_until, self._idle_from):
            self.close()
        if self.state is State.OPEN:
            return []
        if now >= self.counted_until:
            gone, self._parts = self._parts, []
        else:
            chosen = set(timing.surplus([part.size for part in self._parts], self.weight - self.spent))
            gone = [part for index, part in enumerate(self._parts) if index in chosen]
            self._parts = [part for index, part in enumerate(self._parts) if index not in chosen]
        if not self._parts and self.state is State.CLOSED:
            self.state = next_state(self.state, Event.END)
        return gone

    def next_at(self) -> float:
        """The time at which ``due`` changes something, if nothing is spent or given back until then."""
        return min(self.spend_until, self._idle_from) if self.state is State.OPEN else self.counted_until
