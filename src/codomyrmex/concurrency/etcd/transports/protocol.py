"""The protocol between the library and etcd: the operations, their results, and the ``Transport`` that sends them.

Recipes, the wait queue and group commit use these types; the other modules of this folder send them to etcd.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple, Protocol

MAX_OPS = 128  # in one transaction: etcd's default --max-txn-ops


class Target(IntEnum):
    """The property of a key that a ``Compare`` compares; the values are etcd's."""

    VERSION = 0
    CREATE_REVISION = 1
    MOD_REVISION = 2
    VALUE = 3


class KV(NamedTuple):
    """A key and its value in etcd; ``lease`` 0 means that the key has no lease."""

    key: bytes
    value: bytes
    create_revision: int
    mod_revision: int
    version: int
    lease: int


class Compare(NamedTuple):
    """A condition of a transaction: the ``target`` of ``key`` equals ``value``, or with ``less`` is less than it.

    With ``end``, the condition must hold for every key in the range; it is true for an empty range.
    """

    key: bytes
    target: Target
    value: int | bytes
    end: bytes = b""
    less: bool = False


class Put(NamedTuple):
    """A write of one key, bound to ``lease`` unless that is 0."""

    key: bytes
    value: bytes
    lease: int = 0


class Delete(NamedTuple):
    """A deletion of one key, or of a range up to ``end``."""

    key: bytes
    end: bytes = b""


class Get(NamedTuple):
    """A read of one key, or of a range up to ``end``.

    ``newest_first`` orders by create revision, descending, and ``oldest_first`` ascending. ``before`` leaves out keys
    created at that revision or later, ``after`` those created at that revision or earlier. ``limit`` 0 means
    all keys, ``revision`` 0 the newest.
    """

    key: bytes
    end: bytes = b""
    limit: int = 0
    newest_first: bool = False
    revision: int = 0
    before: int = 0
    serializable: bool = False
    oldest_first: bool = False
    after: int = 0


Op = Put | Delete | Get


class GetResult(NamedTuple):
    """The answer of a read: ``total`` counts the keys in the whole range, ``kvs`` are those within the limit."""

    kvs: Sequence[KV]
    total: int
    revision: int


class Deleted(NamedTuple):
    """The result of a deletion: the number of keys removed."""

    keys: int


class Done(NamedTuple):
    """The result of a put."""


OpResult = GetResult | Deleted | Done


class TxnResult(NamedTuple):
    """The answer of a transaction: ``succeeded`` if the conditions were true, and one result per operation that ran."""

    succeeded: bool
    revision: int
    results: Sequence[OpResult]


class Lease(NamedTuple):
    """A granted lease; ``ttl`` is in seconds, and may exceed the TTL asked for."""

    id: int
    ttl: int


class Event(NamedTuple):
    """A change of one key: a write or a deletion."""

    deleted: bool
    kv: KV
    previous: KV | None


@dataclass(slots=True)
class WatchMessage:
    """One message of a watch stream; ``watch_id`` is etcd's, unique within the stream."""

    watch_id: int
    revision: int
    created: bool = False
    canceled: bool = False
    compact_revision: int = 0
    reason: str = ""
    events: Sequence[Event] = ()
    fragment: bool = False


class WatchRequest(NamedTuple):
    """A watch of one key, or of a range up to ``end``.

    ``start`` 0 means from now on, which etcd serves without its 100 ms catch-up delay. ``previous`` asks for the value
    before each change.
    """

    key: bytes
    end: bytes = b""
    start: int = 0
    deletes_only: bool = False
    previous: bool = False


class WatchStream(Protocol):
    """One stream that carries many watches; ends with an ``EtcdError``."""

    @property
    def endpoint(self) -> str:
        """The endpoint that the stream is open to."""

    async def create(self, request: WatchRequest) -> None:
        """Begin a watch; etcd answers with a "created" message."""

    async def cancel(self, watch_id: int) -> None:
        """End a watch."""

    async def receive(self) -> WatchMessage:
        """The next message. Raises ``EtcdError`` when the stream has ended."""

    def close(self) -> None:
        """End the stream and its watches."""


class LeaseClient(Protocol):
    """Blocking calls for the keepalive thread.

    Every call ends within its ``timeout`` in seconds, or raises ``EtcdError``. After a failure, the next call goes to
    the next endpoint.
    """

    @property
    def endpoint(self) -> str:
        """The endpoint of the next call."""

    @property
    def endpoint_count(self) -> int:
        """The number of endpoints."""

    def connect_all(self) -> None:
        """Open the connections to all endpoints, or keep them open, without waiting for them."""

    def renew(self, lease_id: int, timeout: float) -> int:
        """Renew the lease, and return its TTL in seconds; 0 if the lease is gone."""

    def revoke(self, lease_id: int, timeout: float) -> None:
        """Revoke the lease, which deletes its keys."""

    def remove(self, key: bytes, create_revision: int, timeout: float) -> None:
        """Delete ``key`` if it still has this create revision."""

    def close(self) -> None:
        """Close the connections."""


class ClusterMember(NamedTuple):
    """A member of the etcd cluster, as it describes itself; ``db_size`` is in bytes."""

    endpoint: str
    version: str
    member_id: int
    leader_id: int
    db_size: int
    revision: int
    cluster_id: int
    errors: tuple[str, ...]


class Transport(Protocol):
    """The connection to etcd. Every call ends within its time limit and raises only ``ConcurrencyError``."""

    @property
    def endpoints(self) -> Sequence[str]:
        """The endpoints of the settings."""

    async def connect(self, key: bytes) -> None:
        """Find an endpoint that serves, by reading ``key``, which the user must be allowed to read."""

    def connect_all(self) -> None:
        """Open connections to the other endpoints in the background, and keep them open until ``close``."""

    async def txn(self, compares: Sequence[Compare], then: Sequence[Op], otherwise: Sequence[Op] = ()) -> TxnResult:
        """Run ``then`` if all ``compares`` are true, else ``otherwise``, in one transaction."""

    async def get(self, get: Get) -> GetResult:
        """Read a key or a range."""

    async def delete(self, delete: Delete) -> int:
        """Delete a key or a range, and return the number of keys removed."""

    async def grant(self, ttl: int) -> Lease:
        """Take a new lease of ``ttl`` seconds."""

    async def keep_alive(self, lease_id: int) -> int:
        """Renew a lease once, and return its TTL in seconds; 0 if the lease is gone."""

    async def time_to_live(self, lease_id: int) -> int:
        """The whole seconds that a lease has left, by etcd's count; 0 if the lease is gone, or in its last second."""

    async def revoke(self, lease_id: int) -> None:
        """Revoke a lease, which deletes its keys. Does nothing if the lease is gone."""

    async def watch(self) -> WatchStream:
        """Open a watch stream."""

    def lease_client(self) -> LeaseClient:
        """A client for the keepalive thread, with connections of its own."""

    def suspect(self, endpoint: str) -> None:
        """Use another endpoint for the next calls if ``endpoint``, which seems to hang, is the current one."""

    async def members(self) -> list[str]:
        """The client URLs of all cluster members."""

    async def member(self, endpoint: str) -> ClusterMember:
        """The state of the cluster member at ``endpoint``."""

    async def alarms(self) -> list[str]:
        """The cluster's alarms, each as a text that names the member."""

    async def close(self) -> None:
        """Close all connections."""
