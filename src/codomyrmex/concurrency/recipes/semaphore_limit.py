"""The limit of a semaphore in etcd: agreed on, changed, and deleted.

The limit is part of a key's name beside the entries, so a reading or a watch of the queue shows both in one order.
"""

from __future__ import annotations

from codomyrmex.concurrency.decode import MAX_NUMBER
from codomyrmex.concurrency.errors import ConcurrencyError, NotHeld, SemaphoreInUse
from codomyrmex.concurrency.etcd.commit import Request
from codomyrmex.concurrency.etcd.transports.protocol import Compare, Delete, Get, GetResult, Op, Put, Target
from codomyrmex.concurrency.keys import SEMAPHORE, check_name, limit_key, limit_range, permits_of, prefix_end
from codomyrmex.concurrency.session_core import SessionCore
from codomyrmex.concurrency.waitqueue.rules import holding
from codomyrmex.concurrency.waitqueue.view import is_entry, is_limit, limit_in

_TRIES = 20  # of a change that meets those of others


async def agree(session: SessionCore, name: str, wanted: int) -> int:
    """The limit of a semaphore in etcd, which becomes ``wanted`` if it has none.

    Foreign keys among the limits are passed over: only a key that is created after they were seen can be a limit.
    """
    queue = session.layout.queue(name, SEMAPHORE)
    start, end = limit_range(queue)
    mine = Put(limit_key(queue, wanted), b"")
    seen = 0
    for _ in range(_TRIES):
        first = Compare(start, Target.CREATE_REVISION, seen + 1, end, less=True)
        request = Request((start,), (mine,), compares=(first,), otherwise=(Get(start, end),), again=(), alone=True)
        reply = await session.committer.commit(request)
        if reply.succeeded:
            return wanted
        found = reply.results[0]
        assert isinstance(found, GetResult)
        limit = limit_in(found.kvs)
        if limit is not None:
            return limit
        seen = found.revision
    raise ConcurrencyError(f"others keep writing among the limits of the semaphore {name!r}; try again")


async def resize(session: SessionCore, name: str, limit: int) -> int | None:
    """Set the limit of a semaphore that exists; returns the former one. Raises ``NotHeld`` if there is none."""
    queue = session.layout.queue(check_name(name), SEMAPHORE)
    start, end = limit_range(queue)
    for _ in range(_TRIES):
        found = await session.transport.get(Get(start, end))
        former, new = limit_in(found.kvs), limit_key(queue, check_limit(limit))
        if former is None:
            raise NotHeld(f"there is no semaphore {name!r}")
        if former == limit:
            return former
        # The waiters watch the old key, and notice its deletion.
        old = [kv for kv in found.kvs if is_limit(kv) and kv.key != new]
        same = [Compare(kv.key, Target.CREATE_REVISION, kv.create_revision) for kv in old]
        change: list[Op] = [*(Delete(kv.key) for kv in old), Put(new, b"")]
        reply = await session.committer.commit(Request((start,), change, compares=same, alone=True))
        if reply.succeeded:
            return former
    raise ConcurrencyError(f"others keep changing the limit of the semaphore {name!r}; try again")


async def delete(session: SessionCore, name: str) -> int:
    """Remove a semaphore without holders and waiters; returns its limit. See ``Semaphore.delete``."""
    queue = session.layout.queue(check_name(name), SEMAPHORE)
    for _ in range(_TRIES):
        found = await session.transport.get(Get(queue, prefix_end(queue)))
        limit = limit_in(found.kvs)
        if limit is None:
            raise NotHeld(f"there is no semaphore {name!r}")
        if entries := sorted((kv for kv in found.kvs if is_entry(kv)), key=lambda kv: kv.create_revision):
            held = holding([kv.key for kv in entries], limit)
            permits = sum(permits_of(kv.key) for kv in entries[:held])
            raise SemaphoreInUse(
                f"the semaphore {name!r} is in use: {permits} of {limit} permits are held, "
                f"{len(entries) - held} wait for more; nothing was deleted"
            )
        limits = [kv for kv in found.kvs if is_limit(kv)]
        same = [Compare(kv.key, Target.CREATE_REVISION, kv.create_revision) for kv in limits]
        # The compares make sure that no entry has joined since and that the limit is the same.
        same.append(Compare(queue, Target.CREATE_REVISION, found.revision + 1, prefix_end(queue), less=True))
        change = [Delete(kv.key) for kv in limits]
        if (await session.committer.commit(Request((queue,), change, compares=same, alone=True))).succeeded:
            return limit
    raise ConcurrencyError(f"others keep changing the semaphore {name!r}; try again")


def check_limit(limit: int) -> int:
    """Return ``limit`` if it can be a limit; raises ``ValueError`` or ``TypeError``."""
    if isinstance(limit, bool) or not isinstance(limit, int):
        raise TypeError(f"max_concurrent must be an int, not {type(limit).__name__}")
    if limit < 1:
        raise ValueError(f"max_concurrent must be at least 1, not {limit}")
    if limit > MAX_NUMBER:
        raise ValueError(f"max_concurrent may be {MAX_NUMBER} at most")
    return limit
