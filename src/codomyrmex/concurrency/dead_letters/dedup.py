"""Dedup keys: each names the one unresolved entry that stands for a failure. SPEC.md lists their states.

The write to a dedup key travels in the transaction that writes its entry, as a rider: an operation with its own
compare. If that compare fails the entry is written without the rider.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from codomyrmex.concurrency.dead_letters.reader import Reader
from codomyrmex.concurrency.dead_letters.record import DeadLetter
from codomyrmex.concurrency.etcd.commit import Committer, Reply, Request
from codomyrmex.concurrency.etcd.transports.protocol import KV, Compare, Delete, Get, GetResult, Op, Put, Target
from codomyrmex.concurrency.keys import MAX_NAME_BYTES


class Rider(NamedTuple):
    """A write to a dedup key that goes along with the write of its entry, if ``compare`` holds."""

    compare: Compare
    op: Op

    def may_go(self, found: GetResult) -> bool:
        """True if the compare holds for the key as found."""
        value = found.kvs[0].value if found.kvs else 0
        return value == self.compare.value


class DedupKeys:
    """The dedup keys of the queue that ``reader`` reads."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    def key(self, entry: DeadLetter) -> bytes:
        return self._reader.keys.dedup(entry.dedup)

    def free(self, entry: DeadLetter) -> tuple[Compare, ...]:
        """The compare under which ``entry`` may take a key that nobody has; none for an entry without one."""
        return (Compare(self.key(entry), Target.CREATE_REVISION, 0),) if entry.dedup else ()

    async def standing(self, entry: DeadLetter, found: Sequence[KV]) -> tuple[str | None, tuple[Compare, ...]]:
        """The id of the entry that stands for the failure of ``entry``; if there is none, the compares under which
        ``entry`` may take the dedup key, which was read as ``found``.

        A key dangles if its entry is gone (deleted by hand, expired), is resolved, or is of another failure, or if its
        value is no id. It may be taken as long as neither it nor the entry that it names has changed.
        """
        if not found:
            return None, self.free(entry)
        named_id = found[0].value[:MAX_NAME_BYTES].decode(errors="replace")
        named = self._reader.key(named_id)
        kvs = (await self._reader.read(Get(named))).kvs
        stored = self._reader.decode(kvs[0]) if kvs else None
        if stored and stored.entry.state != "resolved" and stored.entry.dedup == entry.dedup:
            return named_id, ()
        return None, (
            Compare(found[0].key, Target.MOD_REVISION, found[0].mod_revision),
            Compare(named, Target.MOD_REVISION, kvs[0].mod_revision if kvs else 0),
        )

    # Riders

    def changed(self, before: DeadLetter, after: DeadLetter) -> Rider | None:
        """The rider of a change: a resolved entry gives its key up; one that waits again takes it, if it is free."""
        if after.state == "resolved":
            return self.given_up(after)
        return self.taken(after) if before.state == "resolved" else None

    def given_up(self, entry: DeadLetter) -> Rider | None:
        """The rider that deletes the key, if it still names this entry, so that the failure may be stored anew."""
        if not entry.dedup:
            return None
        key = self.key(entry)
        return Rider(Compare(key, Target.VALUE, entry.id.encode()), Delete(key))

    def taken(self, entry: DeadLetter) -> Rider | None:
        """The rider by which an entry that is not resolved takes its key, if that is free."""
        if entry.state == "resolved" or not entry.dedup:
            return None
        key = self.key(entry)
        return Rider(Compare(key, Target.CREATE_REVISION, 0), Put(key, entry.id.encode()))


async def commit(committer: Committer, request: Request, rider: Rider) -> Reply:
    """Commit ``request`` and, if its compare holds too, ``rider``; the reply is that to ``request`` alone.

    The second transaction needs no compare of the dedup key. A key begins to name an entry only by a write that changes
    the entry's record, and ``request`` compares the record, or the claim that guards it.
    """
    together = replace(
        request,
        then=[*request.then, rider.op],
        compares=[*request.compares, rider.compare],
        otherwise=[*request.otherwise, Get(rider.compare.key)],
        reply=asyncio.get_running_loop().create_future(),
    )
    reply = await committer.commit(together)
    if reply.succeeded or rider.may_go(reading(reply, -1)):
        return reply
    return await committer.commit(request)


def reading(reply: Reply, index: int) -> GetResult:
    """The result of one of the reads of a refused request."""
    found = reply.results[index]
    assert isinstance(found, GetResult)
    return found
