"""The actions that the ledger asks for. Plain data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from codomyrmex.concurrency.errors import ConcurrencyError, EtcdError
from codomyrmex.concurrency.etcd.deletion_state import Deletion
from codomyrmex.concurrency.etcd.ledger_request import LedgerRequest, Reply
from codomyrmex.concurrency.etcd.ledger_transactions import Transaction
from codomyrmex.concurrency.etcd.transports.protocol import OpResult


class Answer(NamedTuple):
    """Give a caller the answer to its request."""

    request: LedgerRequest
    reply: Reply


class AnswerDeletions(NamedTuple):
    """Answer deletions, each from the result of its delete operation."""

    deletions: Sequence[Deletion]
    results: Sequence[OpResult]


class Fail(NamedTuple):
    """Tell the caller of a request or a deletion of an error."""

    item: LedgerRequest | Deletion
    error: ConcurrencyError


class Forget(NamedTuple):
    """The caller was cancelled while it sent its request itself: stop waiting for the answer."""

    request: LedgerRequest


class Undo(NamedTuple):
    """Take back a request that was or may have been applied and has no caller any more."""

    request: LedgerRequest


class Unsent(NamedTuple):
    """Say that a request was cancelled before it was sent."""

    request: LedgerRequest


class SendAlone(NamedTuple):
    """Send a request in a transaction of its own."""

    request: LedgerRequest


class Settle(NamedTuple):
    """The fates of ``requests`` are unknown: settle them. ``error`` is told when the time limit passes first."""

    requests: Sequence[LedgerRequest]
    error: EtcdError


class EndSession(NamedTuple):
    """The session's lease is gone: close the ledger with ``error``."""

    error: ConcurrencyError


class GiveUpLease(NamedTuple):
    """The fence cannot be written, so only the end of the lease stops what may be under way."""

    error: EtcdError


class MoveFence(NamedTuple):
    """Write the session's key, so that a late transaction no longer commits."""

    transaction: Transaction


Action = (
    Answer | AnswerDeletions | Fail | Forget | Undo | Unsent | SendAlone | Settle | EndSession | GiveUpLease | MoveFence
)
