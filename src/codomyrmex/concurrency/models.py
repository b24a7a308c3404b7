"""Plain, frozen data that users are shown, with a JSON form."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple

from pydantic import TypeAdapter

from codomyrmex.concurrency import decode
from codomyrmex.concurrency.keys import is_in_tree, is_reader, permits_of, session_of
from codomyrmex.concurrency.records import OwnerRecord

EventKind = Literal["enqueued", "granted", "released", "expired"]
QueueKind = Literal["lock", "path"]
HowEnded = Literal["released", "expired", "forced", "lost", "unknown", "held"]


@dataclass(frozen=True, slots=True)
class Owner:
    """The owner of one entry of a queue: a holder or a waiter.

    ``since`` is when the entry joined, by its own host's clock. ``granted_at`` is when it was granted, by the same
    clock, or by the clock of this process if it saw the grant. ``waited`` is the seconds between the two. Both are None
    for a waiter, and for a holder that has not recorded them. ``shared`` marks a reader of a lock. ``permits`` is how
    many of a semaphore's permits the entry takes. ``paths`` are those of a path lock; a client that names none has the
    whole tree. ``lost`` marks a holder that died and whose ``lock_delay`` keeps the name closed. ``progress`` is the
    number of its reports of progress, and ``note`` the last note that it gave. ``ttl`` is that of a reservation that
    holds, in seconds, and None for every other entry.
    """

    host: str
    pid: int
    session: str
    task: str
    token: int
    since: datetime | None
    metadata: dict[str, Any] = field(default_factory=dict)
    key: str = ""
    shared: bool = False
    permits: int = 1
    waited: float | None = None
    granted_at: datetime | None = None
    lost: bool = False
    progress: int = 0
    note: str = ""
    ttl: int | None = None
    paths: tuple[str, ...] = ()

    @property
    def agent(self) -> str:
        """The name of the agent in its metadata; empty if there is none."""
        agent = self.metadata.get("agent")
        return agent if isinstance(agent, str) else ""

    @classmethod
    def from_entry(cls, key: bytes, value: bytes, create_revision: int, lease: int) -> Owner:
        """Decode an entry. A foreign value (etcdctl's is empty) gives an owner with an empty ``host``."""
        shared: dict[str, Any] = {
            "session": f"{session_of(key) or lease:016x}",
            "token": create_revision,
            "key": key.decode(errors="backslashreplace"),
            "shared": is_reader(key),
            "permits": permits_of(key),
        }
        record = OwnerRecord.decode(value)
        if is_in_tree(key):
            shared["paths"] = (record.paths if record else ()) or ("",)
        if record is None:
            return cls(host="", pid=0, task="", since=None, **shared)
        return cls(
            host=record.host,
            pid=record.pid,
            task=record.task,
            since=record.since,
            metadata=record.metadata,
            waited=record.waited,
            granted_at=record.granted_at(),
            progress=record.progress,
            note=record.note,
            ttl=record.ttl,
            **shared,
        )


@dataclass(frozen=True, slots=True)
class ForcedRelease:
    """The audit record of the last forced release of a lock."""

    name: str
    token: int
    reason: str
    by: str
    at: datetime

    def encode(self) -> bytes:
        """Its value in etcd, as JSON."""
        return json.dumps(to_json(self)).encode()

    @classmethod
    def decode(cls, value: bytes) -> ForcedRelease | None:
        """The record in a value, or None if the value is foreign."""
        return decode.record(_FORCED, value)


_FORCED = TypeAdapter(ForcedRelease)


@dataclass(frozen=True, slots=True)
class LockInfo:
    """A lock as etcd has it at one revision: holders and waiters in queue order.

    With the ``kind`` ``"path"`` it is a tree: ``name`` is the tree's, and each owner has ``paths``.
    """

    name: str
    holders: tuple[Owner, ...]
    waiters: tuple[Owner, ...]
    last_forced_release: ForcedRelease | None = None
    kind: QueueKind = "lock"


@dataclass(frozen=True, slots=True)
class ReservationInfo:
    """A reservation as etcd has it: the names and paths that it holds under one token.

    ``owner`` is the agent that reserved it, and ``note`` the last note it gave. ``since`` is when it joined the queue,
    and ``granted_at`` when it was granted, both by the clock of ``host``. ``expires_in`` is in seconds, as etcd told it
    when it was asked; 0 for one that expires just now. ``lease`` is the id of its own lease in hex. A handle is a
    capability and is never listed.
    """

    names: tuple[str, ...]
    paths: tuple[str, ...]
    tree: str | None
    owner: str
    note: str
    token: int
    since: datetime | None
    expires_in: float
    ttl: int
    host: str
    pid: int
    lease: str
    shared: bool = False
    metadata: dict[str, Any] = field(default_factory=dict)
    granted_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class SemaphoreInfo:
    """A semaphore as etcd has it at one revision. ``limit`` is None if the semaphore is not in etcd."""

    name: str
    limit: int | None
    holders: tuple[Owner, ...]
    waiters: tuple[Owner, ...]

    @property
    def available(self) -> int:
        """The number of permits without a holder; waiters may be about to get them."""
        return max(0, (self.limit or 0) - sum(owner.permits for owner in self.holders))


@dataclass(frozen=True, slots=True)
class Leader:
    """The leader of an election in one term. ``value`` is the last one that it has proclaimed."""

    name: str
    value: Any
    owner: Owner
    token: int


@dataclass(frozen=True, slots=True)
class Member:
    """A member of a group. ``token`` is the revision at which it joined."""

    group: str
    capabilities: dict[str, Any]
    owner: Owner
    token: int


MemberEventKind = Literal["joined", "changed", "left"]


@dataclass(frozen=True, slots=True)
class MemberEvent:
    """A change of a group, at a revision that all observers see. A member that has left has its last capabilities."""

    kind: MemberEventKind
    member: Member
    revision: int


@dataclass(frozen=True, slots=True)
class PastHold:
    """One hold of a lock, as etcd's history tells it.

    ``how`` it ended: ``"released"``, ``"expired"`` with its lease, ``"forced"`` by an operator, ``"lost"`` with its
    session before its ``lock_delay`` was over, ``"unknown"``, which only the gap of a record can be, or ``"held"``: it
    has not ended.

    etcd has no clock, so the times are those that owners recorded, by the clocks of their hosts, and None where nobody
    recorded any. ``granted_at`` is the holder's. ``ended_at`` is when the next holder, which was waiting, was granted,
    or when the operator released it. ``ended_before`` is when a later entry of any queue joined. ``granted_revision``
    is None if the hold is older than the history. With the ``kind`` ``"path"`` it is one of a path lock, and ``name``
    is its tree.
    """

    name: str
    owner: Owner
    token: int
    granted_at: datetime | None
    ended_at: datetime | None
    ended_before: datetime | None
    how: HowEnded
    granted_revision: int | None
    ended_revision: int | None
    forced: ForcedRelease | None = None
    kind: QueueKind = "lock"

    @property
    def waited(self) -> float | None:
        """The seconds that it waited for its grant; None where they are not known."""
        return 0.0 if self.granted_revision == self.token else self.owner.waited

    @property
    def held(self) -> float | None:
        """The seconds from its grant to its end, which two hosts' clocks may tell; None where either is not known."""
        if self.granted_at is None or self.ended_at is None:
            return None
        return max(0.0, (self.ended_at - self.granted_at).total_seconds())


@dataclass(frozen=True, slots=True)
class History:
    """The past of one lock or tree, since etcd's last compaction.

    ``begins_at`` is the revision of that compaction; 1 if there was none, and then the history is whole. ``holds`` are
    in the order of their grants, and ``waits`` are the owners of entries that went without having held.
    """

    name: str
    begins_at: int
    holds: tuple[PastHold, ...]
    waits: tuple[Owner, ...]
    kind: QueueKind = "lock"


@dataclass(frozen=True, slots=True)
class RateUse:
    """One dimension of a rate limiter as etcd has it: at most ``limit`` in any window of ``per`` seconds.

    ``used`` is what counts at this moment: what was spent in the last period, and what processes have got to spend in
    the next seconds. Each holder and each waiter is a slice, with its amount as ``permits``. The dimension of a limiter
    with one rate has an empty name.
    """

    dimension: str
    limit: int
    per: float
    holders: tuple[Owner, ...]
    waiters: tuple[Owner, ...]

    @property
    def used(self) -> int:
        """The amount that counts now."""
        return sum(owner.permits for owner in self.holders)

    @property
    def free(self) -> int:
        """The amount that nobody has; waiters may be about to get it."""
        return max(0, self.limit - self.used)

    @property
    def waiting(self) -> int:
        """The amount that is waited for."""
        return sum(owner.permits for owner in self.waiters)


@dataclass(frozen=True, slots=True)
class RateLimitInfo:
    """A rate limiter as etcd has it at one revision. ``uses`` is empty if it is not in etcd.

    ``paused_until`` is when its last pause ends, by the clock of this process, and ``paused_by`` the agent or the
    process that asked for that pause; both are None while there is none.
    """

    name: str
    uses: tuple[RateUse, ...]
    paused_until: datetime | None = None
    paused_by: str | None = None

    @property
    def waiting(self) -> int:
        """The number of processes that wait in the queue. During a pause more wait, since they join no queue then."""
        return len({owner.session for use in self.uses for owner in use.waiters})


@dataclass(frozen=True, slots=True)
class LockEvent:
    """One step of an entry of a lock. ``at`` is when this process learned of it.

    With the ``queue_kind`` ``"path"`` it is one of a path lock, and ``name`` is its tree.
    """

    kind: EventKind
    name: str
    owner: Owner
    revision: int
    at: datetime
    queue_kind: QueueKind = "lock"


class Routed(NamedTuple):
    """The place where a pool's failed task went: the id of its dead letter, and a note for the user."""

    id: str | None
    note: str


@dataclass(frozen=True, slots=True)
class LockStats:
    """Counters of one ``LockManager``; ``lock_contention`` counts acquisitions that had to wait."""

    total_locks: int
    total_acquisitions: int
    total_releases: int
    active_locks: int
    lock_contention: int


@dataclass(frozen=True, slots=True)
class MemberStatus:
    """The answer of one endpoint about itself. ``error`` is set when the endpoint did not answer."""

    endpoint: str
    version: str = ""
    leader: bool = False
    db_size: int = 0
    revision: int = 0
    errors: tuple[str, ...] = ()
    error: str = ""


@dataclass(frozen=True, slots=True)
class ClusterStatus:
    """The cluster as a client sees it. ``problems`` need action; ``warnings`` deserve a look."""

    cluster_id: str
    members: tuple[MemberStatus, ...]
    alarms: tuple[str, ...]
    sessions: int
    locks: int
    problems: tuple[str, ...]
    warnings: tuple[str, ...]


def to_json(value: Any) -> Any:
    """The JSON form of any model here: dicts, lists, strings, numbers; times as ISO 8601 in UTC."""
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    return value
