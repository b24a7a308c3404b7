"""A request as the ledger sees it: its content, and its state as a transition table. Pure."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from codomyrmex.concurrency.errors import ConcurrencyError
from codomyrmex.concurrency.etcd.transports.protocol import Compare, Op, OpResult


class ImpossibleEvent(RuntimeError):
    """An event that cannot follow the ones before it: a bug in this library."""


class State(IntEnum):
    """The state of one request."""

    NEW = 0
    IN_LINE = 1  # earlier requests of one of its groups are not settled yet
    READY = 2
    SENT = 3  # for the first time
    IN_DOUBT = 4  # its answer was lost
    SENT_AGAIN = 5  # behind a moved fence, with compares that make the repetition harmless
    SETTLED = 6  # its fate is known, and its successors may go


class Event(IntEnum):
    """The events that change the state of one request."""

    LINE_UP = 0
    MAKE_READY = 1
    SEND = 2
    LOSE = 3
    SETTLE = 4  # its transaction ended and tells its fate
    DROP = 5  # it is not sent, or not sent again


TRANSITIONS: dict[tuple[int, int], State] = {
    (State.NEW, Event.LINE_UP): State.IN_LINE,
    (State.NEW, Event.MAKE_READY): State.READY,
    (State.IN_LINE, Event.MAKE_READY): State.READY,
    (State.READY, Event.SEND): State.SENT,
    (State.SENT, Event.LOSE): State.IN_DOUBT,
    (State.IN_DOUBT, Event.SEND): State.SENT_AGAIN,
    (State.SENT_AGAIN, Event.LOSE): State.IN_DOUBT,
    (State.SENT, Event.SETTLE): State.SETTLED,
    (State.SENT_AGAIN, Event.SETTLE): State.SETTLED,
    (State.IN_LINE, Event.DROP): State.SETTLED,  # the session is over
    (State.READY, Event.DROP): State.SETTLED,  # its caller is gone, or was told of an error
    (State.IN_DOUBT, Event.DROP): State.SETTLED,  # the fence was moved, and it is not sent again
}


class Reply(NamedTuple):
    """One request's share of a transaction.

    With ``succeeded`` false one of its compares failed, and ``results`` are those of its ``otherwise``.
    """

    succeeded: bool
    revision: int
    results: Sequence[OpResult]


@dataclass(slots=True, eq=False)
class LedgerRequest:  # no ABC: ``isinstance`` with one is Python code, and each request is tested some ten times
    """The operations that one caller wants carried out in a transaction.

    Args:
        groups: requests that share a group are sent one after another, in order, and never together.
        then: the operations, carried out if every compare holds.
        compares: the conditions.
        otherwise: the operations carried out if a compare fails; they only read.
        again: compares that are added when the request is sent a second time and make the repetition harmless; None
            if it must never be repeated.
        alone: a compare of it may fail, so it shares a transaction with no other request.
        undo: called when the request was or may have been applied and its caller no longer waits.
        unsent: called when its caller was cancelled before the request was sent.
        size: bytes of its values, where they are not small.
    """

    groups: Sequence[bytes]
    then: Sequence[Op]
    compares: Sequence[Compare] = ()
    otherwise: Sequence[Op] = ()
    again: Sequence[Compare] | None = None
    alone: bool = False
    undo: Callable[[], object] | None = None
    unsent: Callable[[], object] | None = None
    size: int = 0
    predecessors: int = 0  # the number of its groups in which another request comes first
    state: State = State.NEW
    told: bool = False  # its caller was told the outcome or an error

    @abstractmethod
    def is_awaited(self) -> bool:
        """True while its caller waits for the answer: it was told nothing yet and is not cancelled."""

    @abstractmethod
    def answer(self, reply: Reply) -> None:
        """Give the caller its answer."""

    @abstractmethod
    def fail(self, error: ConcurrencyError) -> None:
        """Tell the caller of an error."""

    @abstractmethod
    def forget(self) -> None:
        """Stop waiting for the answer: the caller is gone."""

    def change(self, event: Event) -> None:
        """Move to the next state; raises ``ImpossibleEvent`` if the table has none."""
        state = TRANSITIONS.get((self.state, event))
        if state is None:
            raise ImpossibleEvent(f"a request that is {self.state.name} cannot {event.name}")
        self.state = state
