"""The transactions of the ledger: their compares and operations, and each request's share of an answer. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from codomyrmex.concurrency.etcd.deletion_state import Deletion, deletes, markers
from codomyrmex.concurrency.etcd.ledger_request import LedgerRequest, State
from codomyrmex.concurrency.etcd.transports.protocol import (
    MAX_OPS,
    Compare,
    Get,
    GetResult,
    Op,
    OpResult,
    Put,
    Target,
    TxnResult,
)

MAX_BYTES = 1 << 20  # of values in one transaction; etcd takes requests of 1.5 MiB


class Fence(NamedTuple):
    """The session's leased key. Its version is compared by every transaction with requests."""

    key: bytes
    value: bytes
    lease: int

    def guard(self, version: int) -> Compare:
        """The compare that fails once the fence was moved on from ``version``."""
        return Compare(self.key, Target.VERSION, version)


class Transaction(NamedTuple):
    """A transaction to send. ``version`` is the fence's, which it compares."""

    version: int
    compares: Sequence[Compare]
    then: Sequence[Op]
    otherwise: Sequence[Op]


class Batch(NamedTuple):
    """Requests and deletions that share a transaction."""

    requests: Sequence[LedgerRequest]
    deletions: Sequence[Deletion]
    transaction: Transaction


class Room:
    """The room that is left in a transaction. A request that travels alone fills it."""

    __slots__ = ("_bytes", "_compares", "_empty", "_full", "_ops")

    def __init__(self) -> None:
        self._ops = self._compares = 1  # the fence's
        self._bytes = 0
        self._empty, self._full = True, False

    def admits(self, item: LedgerRequest | Deletion) -> bool:
        """Add ``item`` if there is room for it. There always is for the first item."""
        ops, compares, size, alone = self._ops, self._compares, self._bytes, False
        if isinstance(item, Deletion):
            ops += item.operations
        else:
            alone = item.alone
            ops += len(item.then)
            compares += len(item.compares)
            size += item.size
        too_large = ops > MAX_OPS or compares > MAX_OPS or size > MAX_BYTES
        if self._full or (not self._empty and (alone or too_large)):
            return False
        self._ops, self._compares, self._bytes = ops, compares, size
        self._empty, self._full = False, alone
        return True


def together(fence: Fence, version: int, requests: Sequence[LedgerRequest], deletions: Sequence[Deletion]) -> Batch:
    """The transaction of a batch with more than one item."""
    # Deletions come first: a request that joins a queue must not find an entry that leaves it here.
    then = deletes(deletions)
    otherwise = [Get(fence.key), *then]
    then += markers(deletions)
    compares = [fence.guard(version)]
    for request in requests:
        compares.extend(request.compares)
        then.extend(request.then)
    return Batch(requests, deletions, Transaction(version, compares, then, otherwise))


def alone(fence: Fence, version: int, request: LedgerRequest) -> Transaction:
    """The transaction of a request that travels by itself."""
    again = (request.again or ()) if request.state is State.SENT_AGAIN else ()
    compares = (fence.guard(version), *request.compares, *again)
    return Transaction(version, compares, request.then, (Get(fence.key), *request.otherwise))


def fence_write(fence: Fence, version: int) -> Transaction:
    """The transaction that moves the fence on from ``version``."""
    put = Put(fence.key, fence.value, fence.lease)
    return Transaction(version, (fence.guard(version),), (put,), (Get(fence.key),))


def fence_version(refused: TxnResult) -> int | None:
    """The fence's version in etcd, which a refused transaction reads; None if the key is gone."""
    fence = refused.results[0]
    assert isinstance(fence, GetResult)
    return fence.kvs[0].version if fence.kvs else None


def shares(batch: Batch, result: TxnResult) -> Iterator[tuple[LedgerRequest, Sequence[OpResult]]]:
    """Each request of ``batch`` with its share of the results; the deletions' results come before these."""
    start = len(batch.transaction.then) - sum(len(request.then) for request in batch.requests)
    for request in batch.requests:
        end = start + len(request.then)
        yield request, result.results[start:end]
        start = end
