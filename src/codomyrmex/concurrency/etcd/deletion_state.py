"""The state of a key's deletion, and what answers and errors mean for it: pure, the time is passed in.

Only its owner deletes a key, so a deletion needs no compare and cannot be refused. After a lost answer it is sent again
until etcd answers. The key may be used again only if the first attempt was answered: then no late one can be under way.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from codomyrmex.concurrency.errors import ConcurrencyError, EtcdError, EtcdQuotaExceeded
from codomyrmex.concurrency.etcd.transports.protocol import Delete, Deleted, Op, OpResult, Put

PAUSE, LONG_PAUSE = 0.1, 1.0  # seconds until the next attempt


@dataclass(slots=True, eq=False)
class Deletion:  # no ABC, as ``LedgerRequest``
    """A key to delete. ``marker`` is written together with the deletion, and left out where it cannot be written.

    ``asked_at`` is the time of the first request, in seconds.
    """

    key: bytes
    marker: Put | None
    asked_at: float
    repeated: bool = False  # an earlier attempt was not answered, and may arrive late
    late: bool = False  # its caller was told that it takes long

    @property
    def operations(self) -> int:
        """The number of operations that it adds to a transaction."""
        return 2 if self.marker else 1

    @property
    def is_reusable(self) -> bool:
        """True if the key may be used again once the deletion is answered."""
        return not self.repeated

    def existed(self, found: bool) -> bool:
        """True if the key was there. After a lost answer a missing key says nothing: the first attempt may have deleted
        it."""
        return found or self.repeated

    def becomes_late(self, error: EtcdError, now: float, limit: float) -> bool:
        """True if its caller is to be told ``error`` now: for the first time, after ``limit`` seconds or because trying
        again does not help. The deletion goes on all the same."""
        due = now - self.asked_at >= limit or not error.retryable
        if not due or self.late:
            return False
        self.late = True
        return True

    @abstractmethod
    def answer(self, result: bool) -> None:
        """Tell the caller that the key is gone; ``result`` is true if etcd found it."""

    @abstractmethod
    def fail(self, error: ConcurrencyError) -> None:
        """Tell the caller of an error."""


class AfterFailure(Enum):
    """The next step for deletions whose transaction failed."""

    EACH_ALONE = "each is deleted by itself"
    LATER = "all are tried again after a pause"


def after_failure(error: EtcdError) -> AfterFailure:
    """The next step after ``error``.

    A refusal may be for something else in the transaction, so each deletion then goes alone. Before 3.4.20 and 3.5.7 a
    full database refuses every transaction, but takes plain deletes.
    """
    refused = error.applied == "no" and not error.retryable
    return AfterFailure.EACH_ALONE if refused or isinstance(error, EtcdQuotaExceeded) else AfterFailure.LATER


def pause(batch: Sequence[Deletion]) -> float:
    """The seconds until ``batch`` is tried again."""
    return LONG_PAUSE if all(deletion.late for deletion in batch) else PAUSE


def deletes(batch: Sequence[Deletion]) -> list[Op]:
    """The operations that delete the keys of ``batch``."""
    return [Delete(deletion.key) for deletion in batch]


def markers(batch: Sequence[Deletion]) -> list[Op]:
    """The operations that write the markers of ``batch``."""
    return [deletion.marker for deletion in batch if deletion.marker]


def found(result: OpResult) -> bool:
    """True if a delete operation found its key."""
    return isinstance(result, Deleted) and result.keys > 0
