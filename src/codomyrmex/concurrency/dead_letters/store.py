"""Dead letters in etcd: their keys, and every transaction that touches them.

    /<namespace>/v1/dead/<queue>/entry/<id>     the record, as JSON; on a lease of ``retention`` once it is resolved
    /<namespace>/v1/dead/<queue>/claim/<id>     bound to the lease of the worker that runs the entry
    /<namespace>/v1/dead/<queue>/dedup/<hash>   the id of the entry stored for a dedup key

A record is only ever written by a transaction that compares the revision of the record it was made from, so two writers
never both change it. Taking an entry writes its claim and the counted attempt together; finishing compares the claim.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import NamedTuple

from codomyrmex.concurrency import foreign
from codomyrmex.concurrency.dead_letters import record
from codomyrmex.concurrency.dead_letters.record import DeadLetter
from codomyrmex.concurrency.decode import text
from codomyrmex.concurrency.errors import ConcurrencyError
from codomyrmex.concurrency.etcd.commit import Request
from codomyrmex.concurrency.etcd.transport import KV, Compare, Delete, Get, GetResult, Op, Put, Target
from codomyrmex.concurrency.keys import escape, name_in, prefix_end
from codomyrmex.concurrency.session import Session

_TRIES = 20
_PAGE = 60  # as many of the largest records as one message may hold


class Stored(NamedTuple):
    """A record and the revision that wrote it."""

    entry: DeadLetter
    revision: int


class Claim(NamedTuple):
    """An entry that this worker runs; ``token`` is the claim's create revision, a fencing token."""

    entry: DeadLetter
    revision: int
    token: int


def under(session: Session) -> bytes:
    """The prefix of every dead letter queue."""
    return session.layout.root + b"dead/"


async def queues(session: Session) -> list[str]:
    """The names of the queues that hold anything, in order; one small read for each."""
    prefix = start = under(session)
    end = prefix_end(prefix)
    names = []
    while (found := await session.transport.get(Get(start, end, limit=1))).kvs:
        segment = found.kvs[0].key[len(prefix) :].partition(b"/")[0]
        if (name := name_in(segment)) is not None:
            names.append(name)
        start = prefix_end(prefix + segment + b"/")
    return names


class Store:
    """One queue's records on one session."""

    def __init__(self, session: Session, queue: str, retention: float) -> None:
        self.session = session
        self.prefix = under(session) + f"{escape(queue)}/".encode()
        self.entries = self.prefix + b"entry/"
        self.claims = self.prefix + b"claim/"
        self._dedup = self.prefix + b"dedup/"
        self._retention = retention
        self._lease = 0
        self._lease_since = 0.0

    def key(self, entry_id: str) -> bytes:
        return self.entries + escape(entry_id).encode()

    def claim_key(self, entry_id: str) -> bytes:
        return self.claims + escape(entry_id).encode()

    def id_of(self, claim_key: bytes) -> str:
        return claim_key[len(self.claims) :].decode(errors="replace")

    def decode(self, kv: KV) -> Stored | None:
        """What an entry's key holds; a value of somebody else is passed over, with one warning."""
        entry = record.decode(kv.key, kv.value)
        if entry is None or self.key(entry.id) != kv.key:
            foreign.skip(kv.key, "dead letters")
            return None
        return Stored(entry, kv.mod_revision)

    async def add(self, entry: DeadLetter) -> str:
        """Store a new entry; returns its id, or the id of the one stored for its dedup key before."""
        key, value = self.key(entry.id), record.encode(entry)
        new = Compare(key, Target.CREATE_REVISION, 0)
        then: list[Op] = [Put(key, value)]
        if not entry.dedup:
            await self.session.committer.commit(Request((key,), then, (), (Get(key),), again=(new,), size=len(value)))
            return entry.id
        known = self._dedup + entry.dedup.encode()
        then.append(Put(known, entry.id.encode()))
        free = Compare(known, Target.CREATE_REVISION, 0)
        for _ in range(_TRIES):
            request = Request((key,), then, (free,), (Get(known),), again=(new,), alone=True, size=len(value))
            reply = await self.session.committer.commit(request)
            if reply.succeeded:
                return entry.id
            found = reply.results[0]
            assert isinstance(found, GetResult)
            if not found.kvs:
                return entry.id  # it was stored the first time, its answer lost, and is over by now
            other = text(found.kvs[0].value)
            if other is not None and (other == entry.id or await self.get(other)):
                return other
            free = Compare(known, Target.MOD_REVISION, found.kvs[0].mod_revision)  # it names nothing: take its place
        raise ConcurrencyError(f"others keep writing the dedup key of the dead letter {entry.id}; try again")

    async def get(self, entry_id: str) -> Stored | None:
        found = await self.session.transport.get(Get(self.key(entry_id)))
        return self.decode(found.kvs[0]) if found.kvs else None

    async def count(self) -> int:
        found = await self.session.transport.get(Get(self.entries, prefix_end(self.entries), limit=1))
        return found.total

    async def pages(self, prefix: bytes, revision: int = 0) -> AsyncIterator[GetResult]:
        """All keys under ``prefix`` at one revision, by id, page by page."""
        start, end = prefix, prefix_end(prefix)
        while True:
            page = await self.session.transport.get(Get(start, end, limit=_PAGE, revision=revision))
            revision = revision or page.revision
            yield page
            if len(page.kvs) < _PAGE:
                return
            start = page.kvs[-1].key + b"\0"

    async def all(self) -> AsyncIterator[Stored]:
        async for page in self.pages(self.entries):
            for kv in page.kvs:
                if stored := self.decode(kv):
                    yield stored

    async def claim(self, stored: Stored) -> Claim | None:
        """Take an entry and count the attempt, if nobody else has touched it; None if somebody has."""
        entry = record.claimed(stored.entry, self.session.host)
        key, claim = self.key(entry.id), self.claim_key(entry.id)
        mark = b"%016x %s" % (self.session.id, record.new_id().encode())
        value = record.encode(entry)
        request = Request(
            (claim,),
            (Put(claim, mark, self.session.id), Put(key, value)),
            (self._same(stored), Compare(claim, Target.CREATE_REVISION, 0)),
            (Get(claim),),
            again=(),
            size=len(value),
        )
        reply = await self.session.committer.commit(request)
        if reply.succeeded:
            return Claim(entry, reply.revision, reply.revision)
        found = reply.results[0]
        assert isinstance(found, GetResult)
        # Sent a second time after a lost answer, it may find that it was applied the first time.
        mine = [kv for kv in found.kvs if kv.value == mark]
        return Claim(entry, mine[0].create_revision, mine[0].create_revision) if mine else None

    async def finish(self, claim: Claim, entry: DeadLetter) -> bool:
        """Write how an attempt ended and give the claim back; False if the claim was lost before."""
        key, claim_key = self.key(entry.id), self.claim_key(entry.id)
        value = record.encode(entry)
        then = [Delete(claim_key), Put(key, value, await self._lease_for(entry)), *self._forget_dedup(entry)]
        held = Compare(claim_key, Target.CREATE_REVISION, claim.token)
        request = Request((claim_key,), then, (held,), (Get(key),), again=(), size=len(value))
        reply = await self.session.committer.commit(request)
        if reply.succeeded:
            return True
        found = reply.results[0]
        assert isinstance(found, GetResult)
        return any(kv.value == value for kv in found.kvs)  # applied the first time, its answer lost

    async def change(self, stored: Stored, entry: DeadLetter) -> bool:
        """Replace a record that nobody runs; False if it has changed, or is claimed."""
        key, claim = self.key(entry.id), self.claim_key(entry.id)
        value = record.encode(entry)
        then = [Put(key, value, await self._lease_for(entry)), *self._forget_dedup(entry)]
        free = Compare(claim, Target.CREATE_REVISION, 0)
        request = Request((claim,), then, (self._same(stored), free), (Get(key),), again=(), size=len(value))
        reply = await self.session.committer.commit(request)
        if reply.succeeded:
            return True
        found = reply.results[0]
        assert isinstance(found, GetResult)
        return any(kv.value == value for kv in found.kvs)

    async def remove(self, stored: Stored) -> bool:
        """Delete a record as it was seen; False if it has changed, or is claimed."""
        claim = self.claim_key(stored.entry.id)
        then = [Delete(self.key(stored.entry.id)), *self._forget_dedup(stored.entry, always=True)]
        free = Compare(claim, Target.CREATE_REVISION, 0)
        request = Request((claim,), then, (self._same(stored), free), again=())
        return (await self.session.committer.commit(request)).succeeded

    def forget_lease(self) -> None:
        """The next resolved record gets a lease of its own; this one may be gone."""
        self._lease = 0

    def _same(self, stored: Stored) -> Compare:
        return Compare(self.key(stored.entry.id), Target.MOD_REVISION, stored.revision)

    def _forget_dedup(self, entry: DeadLetter, *, always: bool = False) -> list[Op]:
        """Once it is over, the same failure may be stored anew."""
        over = always or entry.state == "resolved"
        return [Delete(self._dedup + entry.dedup.encode())] if entry.dedup and over else []

    async def _lease_for(self, entry: DeadLetter) -> int:
        """What is resolved vanishes by itself after ``retention``, whether or not any worker is there then: it is bound
        to a lease that nobody renews. One lease serves an eighth of that time."""
        if entry.state != "resolved":
            return 0
        if not self._lease or time.monotonic() - self._lease_since > self._retention / 8:
            lease = await self.session.transport.grant(max(1, round(self._retention)))
            self._lease, self._lease_since = lease.id, time.monotonic()
        return self._lease
