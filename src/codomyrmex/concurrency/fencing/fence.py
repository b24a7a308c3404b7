"""``Fence``: the names under which a target keeps the token of a hold, and that token.

A name is the key prefix of the queue in etcd, such as ``/codomyrmex/v1/lock/deploy/``. It has the namespace, the kind
and the name of the lock or election, so no two of them share one.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from codomyrmex.concurrency import telemetry
from codomyrmex.concurrency.errors import FencedWriteRejected
from codomyrmex.concurrency.keys import ELECTION, GROUP, LOCK, is_reader, kind_and_name, queue_of
from codomyrmex.concurrency.recipes.handle import Handle


class Granted(Protocol):
    """A ``Grant`` of a lock or of a term, asyncio or blocking, or a ``Term`` itself."""

    @property
    def key(self) -> str:
        """The key of the holder's entry in etcd."""

    @property
    def token(self) -> int:
        """The fencing token."""


class Reserved(Protocol):
    """A ``Reservation``, of an asyncio manager or of a blocking one."""

    @property
    def handle(self) -> str:
        """The text that names its entries."""

    @property
    def token(self) -> int:
        """The fencing token."""


class Fence(NamedTuple):
    """The names of a hold, in order, and its token."""

    names: tuple[str, ...]
    token: int


def fence_of(grant: Granted | Reserved) -> Fence:
    """The fence of the names that a grant or a reservation holds; paths do not count.

    Raises ``TypeError`` for another object, and ``ValueError`` for a hold that does not exclude every other one: a
    semaphore's, a reader's, a member's, and one of paths alone.
    """
    queues = [queue for queue in _queues(grant) if _is_alone(queue)]
    if not queues:
        raise ValueError(
            "a hold of paths alone cannot fence this: holders of other paths in the tree have higher tokens at the "
            "same time; use a lock with a name"
        )
    return _fence(queues, grant)


def fence_with_paths(grant: Granted | Reserved) -> Fence:
    """The fence of all that a grant or a reservation holds, for a target that is one of its paths.

    Raises as ``fence_of`` does, except for paths.
    """
    return _fence(_queues(grant), grant)


def is_name(text: str) -> bool:
    """True if ``text`` is a name of a fence that ``fence_of`` gives."""
    key = text.encode(errors="replace")
    return _is_alone(key) and queue_of(key) == key


def rejected(name: str, token: int, highest: int, outcome: str) -> FencedWriteRejected:
    """The error for a write with ``token`` where ``highest`` was seen. Observers are told of it."""
    found = kind_and_name(name.encode())
    assert found
    kind, of = found
    if telemetry.observers:
        telemetry.tell("write_rejected", kind.what, of)
    return FencedWriteRejected(
        f"the token {token} of the {kind.what} {of!r} is too old: the token {highest} of a later holder, or of a "
        f"former etcd, was here; {outcome}"
    )


def _fence(queues: list[bytes], grant: Granted | Reserved) -> Fence:
    return Fence(tuple(queue.decode() for queue in queues), grant.token)


def _queues(grant: object) -> list[bytes]:
    """The queues in which ``grant`` holds alone, in order, so that all transactions lock their rows in one order."""
    entries = _entries(grant)
    if any(found[0] is GROUP for entry in entries if (found := kind_and_name(entry))):
        raise ValueError(
            "a member's grant cannot fence a write: other members of the group have higher tokens at the same time; "
            "use a lock or the term of an election"
        )
    if any(is_reader(entry) for entry in entries):
        raise ValueError("a reader's grant cannot fence a write: other readers hold at the same time; acquire a writer")
    if any(kind_and_name(entry) is None for entry in entries):
        raise ValueError(
            "a semaphore's grant cannot fence a write: holders of other permits have higher tokens at the same time; "
            "use a lock"
        )
    return sorted({queue_of(entry) for entry in entries})


def _entries(grant: object) -> tuple[bytes, ...]:
    handle, key = getattr(grant, "handle", None), getattr(grant, "key", None)
    if isinstance(handle, str):
        return Handle.decode(handle).keys
    if isinstance(key, str) and isinstance(getattr(grant, "token", None), int):
        return (key.encode(),)
    if isinstance(grant, tuple):
        raise TypeError("fencing takes one grant, not a tuple; give one of the grants that acquire_all returned")
    raise TypeError(f"fencing takes the grant of a lock or of a term, or a reservation, not {type(grant).__name__}")


def _is_alone(key: bytes) -> bool:
    """True if a holder in the queue with this key excludes every other one."""
    found = kind_and_name(key)
    return found is not None and found[0] in (LOCK, ELECTION)
