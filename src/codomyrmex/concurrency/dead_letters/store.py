"""Dead letters in etcd: their keys, and every transaction that touches them.

    /<namespace>/v1/dead/<queue>/entry/<id>     the record, as JSON; on a lease of ``retention`` once it is resolved
    /<namespace>/v1/dead/<queue>/claim/<id>     bound to the lease of the worker that runs the entry
    /<namespace>/v1/dead/<queue>/dedup/<hash>   the id of the entry that stands for a dedup key
    /<namespace>/v1/dead/<queue>/worker/<id>    one per worker, bound to its lease; see ``presence.py``

A record is only ever written by a transaction that compares the revision of the record it was made from, so two writers
never both change it. Taking an entry writes its claim and the counted attempt together; finishing compares the claim.
SPEC.md lists what each write compares, and the states of a dedup key.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from codomyrmex.concurrency import skipped_keys
from codomyrmex.concurrency.dead_letters import record
from codomyrmex.concurrency.dead_letters.record import DeadLetter
from codomyrmex.concurrency.errors import ConcurrencyError, EtcdError, SessionLost
from codomyrmex.concurrency.etcd.commit import Reply, Request
from codomyrmex.concurrency.etcd.transports.protocol import KV, Compare, Delete, Get, GetResult, Op, Put, Target
from codomyrmex.concurrency.keys import MAX_NAME_BYTES, name_in, next_key, nfc, past_segment, prefix_end, segment_after
from codomyrmex.concurrency.session import Session

log = logging.getLogger("codomyrmex.concurrency")

TRIES = 20  # to write what others keep changing
_PAGE = 40  # as many of the largest values as one message may hold
_PAUSE, _LONGEST_PAUSE = 0.2, 5.0  # seconds


class Stored(NamedTuple):
    """A record and the revision that wrote it."""

    entry: DeadLetter
    revision: int


class Claim(NamedTuple):
    """An entry that this worker runs. ``token`` is the claim's create revision, a fencing token; ``mark`` is its value,
    the session's id and a number of its own."""

    entry: DeadLetter
    token: int
    mark: bytes


_under_way: set[bytes] = set()  # the marks of all claims of this process that somebody runs, or is about to


class _Rider(NamedTuple):
    """A write to a dedup key that goes along with a write to its entry, if ``compare`` holds."""

    compare: Compare
    op: Op

    def may_go(self, found: GetResult) -> bool:
        """True if the compare holds for the key as found."""
        value = found.kvs[0].value if found.kvs else 0
        return value == self.compare.value


def under(session: Session) -> bytes:
    """The prefix of every dead letter queue."""
    return session.layout.dead_letters


async def queues(session: Session) -> list[str]:
    """The names of the queues that hold anything; one small read for each."""
    prefix = start = under(session)
    end = prefix_end(prefix)
    names = []
    while (found := await session.transport.get(Get(start, end, limit=1))).kvs:
        segment = segment_after(prefix, found.kvs[0].key)
        if (name := name_in(segment)) is not None:
            names.append(name)
        start = past_segment(prefix, segment)
    return list(dict.fromkeys(map(nfc, names)))


class Store:
    """One queue's records on one session."""

    def __init__(self, session: Session, queue: str, retention: float) -> None:
        self.session = session
        self.queue = queue
        self.keys = session.layout.dead_letter_queue(queue)
        self.prefix = self.keys.prefix
        self.entries = self.keys.entries
        self.claims = self.keys.claims
        self.workers = self.keys.workers
        self._retention = retention
        self._lease = 0
        self._lease_since = 0.0

    def key(self, entry_id: str) -> bytes:
        return self.keys.entry(entry_id)

    def claim_key(self, entry_id: str) -> bytes:
        return self.keys.claim(entry_id)

    def id_of(self, claim_key: bytes) -> str:
        return self.keys.id_in(claim_key)

    def decode(self, kv: KV) -> Stored | None:
        """The record in an entry's key; None, with one warning, for a value of somebody else."""
        entry = record.decode(kv.key, kv.value)
        if entry is None or self.key(entry.id) != kv.key:
            skipped_keys.skip(kv.key, "dead letters")
            return None
        return Stored(entry, kv.mod_revision)

    async def add(self, entry: DeadLetter) -> str:
        """Store a new entry; returns its id, or the id of the one stored for its dedup key before.

        The first write of an id wins: a record that is there, in whatever state, is left as it is and counts as added.
        """
        key, value = self.key(entry.id), record.encode(entry)
        free = self._dedup_free(entry)
        for _ in range(TRIES):
            compares = [Compare(key, Target.CREATE_REVISION, 0), *free]
            then: list[Op] = [Put(key, value)]
            otherwise: list[Op] = [Get(key)]
            if entry.dedup:
                then.append(Put(self._dedup_key(entry), entry.id.encode()))
                otherwise.append(Get(self._dedup_key(entry)))
            alone = bool(entry.dedup)
            request = Request((key,), then, compares, otherwise, again=(), alone=alone, size=len(value))
            reply = await self.session.committer.commit(request)
            if reply.succeeded or _found(reply, 0).kvs:
                return entry.id
            known, free = await self._named(entry, _found(reply, 1).kvs)
            if known:
                return known
        raise ConcurrencyError(f"others keep changing the dedup key of the dead letter {entry.id}; try again")

    async def known(self, entry: DeadLetter) -> str | None:
        """The id under which ``entry`` or, by its dedup key, its failure is stored already; None if it is not."""
        if (await self.session.transport.get(Get(self.key(entry.id)))).kvs:
            return entry.id
        if not entry.dedup:
            return None
        found = await self.session.transport.get(Get(self._dedup_key(entry)))
        return (await self._named(entry, found.kvs))[0]

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
            start = next_key(page.kvs[-1].key)

    async def all(self) -> AsyncGenerator[Stored, None]:
        async for page in self.pages(self.entries):
            for kv in page.kvs:
                if stored := self.decode(kv):
                    yield stored

    async def all_claims(self) -> AsyncIterator[KV]:
        async for page in self.pages(self.claims):
            for kv in page.kvs:
                yield kv

    async def claim(self, stored: Stored) -> Claim | None:
        """Take an entry and count the attempt, if nobody else has touched it; None if somebody has. Whoever gets the
        claim gives it back with ``finish``.

        If this raises, the claim is not taken: should etcd turn out to have taken it, it is given back.
        """
        entry, value = record.fitted(record.claimed(stored.entry, self.session.host))
        key, claim = self.key(entry.id), self.claim_key(entry.id)
        mark = b"%016x %s" % (self.session.id, record.new_id().encode())
        request = Request(
            (claim,),
            (Put(claim, mark, self.session.id), Put(key, value)),
            (self._same(stored), Compare(claim, Target.CREATE_REVISION, 0)),
            (Get(claim),),
            again=(),
            undo=lambda: self.session.start(self.give_back(entry.id, mark), "giving back a claim"),
            size=len(value),
        )
        _under_way.add(mark)
        taken = False
        try:
            reply = await self.session.committer.commit(request)
            token = reply.revision if reply.succeeded else self._taken_before(reply, mark)
            taken = token > 0
        finally:
            if not taken:
                _under_way.discard(mark)
        if taken:
            return Claim(entry, token, mark)
        await self._clear(_found(reply, 0))
        return None

    async def _clear(self, claim: GetResult) -> None:
        """Delete what stands in a claim's place without a lease: it is nobody's, and would block its entry for ever."""
        for kv in claim.kvs:
            if not kv.lease:
                skipped_keys.skip(kv.key, "claims of dead letters")
                same = Compare(kv.key, Target.MOD_REVISION, kv.mod_revision)
                await self.session.committer.commit(Request((kv.key,), (Delete(kv.key),), (same,), again=()))

    @staticmethod
    def _taken_before(reply: Reply, mark: bytes) -> int:
        """The claim's create revision, if it was refused for having been applied before, its answer lost; else 0."""
        return next((kv.create_revision for kv in _found(reply, 0).kvs if kv.value == mark), 0)

    def let_go(self, claim: Claim) -> None:
        """Note that nobody in this process runs the claim any more. If etcd still has it, the look round finds it."""
        _under_way.discard(claim.mark)

    def is_stray(self, claim: KV) -> bool:
        """True if it is a claim of this session that nobody in this process runs."""
        return claim.lease == self.session.id and claim.value not in _under_way

    async def give_back(self, entry_id: str, mark: bytes) -> None:
        """Give back a claim that nobody runs, for as long as it is there. Its attempt does not count against the
        entry."""
        _under_way.add(mark)
        pause = _PAUSE
        try:
            while True:
                try:
                    await self._try_to_give_back(entry_id, mark)
                    return
                except SessionLost:
                    return  # the lease takes it along
                except EtcdError as error:
                    if pause in (_PAUSE, _LONGEST_PAUSE):
                        log.warning("dead letter %s: its claim could not be given back yet: %s", entry_id, error)
                    await asyncio.sleep(pause)
                    pause = min(_LONGEST_PAUSE, pause * 2)
        finally:
            _under_way.discard(mark)

    async def _try_to_give_back(self, entry_id: str, mark: bytes) -> None:
        found = await self.session.transport.get(Get(self.claim_key(entry_id)))
        stored = await self.get(entry_id)
        for kv in found.kvs:
            if kv.value != mark:
                continue
            log.warning("dead letter %s: its claim had no runner, and is given back", entry_id)
            claim = Claim(stored.entry, kv.create_revision, mark) if stored else None
            if claim and claim.entry.state == "running":
                await self.finish(claim, record.interrupted(claim.entry))
            else:  # a claim without an attempt: there is nothing to write
                held = Compare(kv.key, Target.CREATE_REVISION, kv.create_revision)
                await self.session.committer.commit(Request((kv.key,), (Delete(kv.key),), (held,), again=()))

    async def finish(self, claim: Claim, entry: DeadLetter) -> bool:
        """Write how an attempt ended and give the claim back; False if the claim was lost before."""
        key, claim_key = self.key(entry.id), self.claim_key(entry.id)
        entry, value = record.fitted(entry)
        then: list[Op] = [Delete(claim_key), Put(key, value, await self._lease_for(entry))]
        held = Compare(claim_key, Target.CREATE_REVISION, claim.token)
        request = Request((claim_key,), then, (held,), (Get(key),), again=(), size=len(value))
        reply = await self._commit(request, self._forget_dedup(entry) if entry.state == "resolved" else None)
        if reply.succeeded:
            return True
        return any(kv.value == value for kv in _found(reply, 0).kvs)  # applied the first time, its answer lost

    async def change(self, stored: Stored, entry: DeadLetter) -> bool:
        """Replace a record that nobody runs; False if it has changed, or is claimed."""
        key, claim = self.key(entry.id), self.claim_key(entry.id)
        entry, value = record.fitted(entry)
        then: list[Op] = [Put(key, value, await self._lease_for(entry))]
        free = Compare(claim, Target.CREATE_REVISION, 0)
        request = Request((claim,), then, (self._same(stored), free), (Get(key), Get(claim)), again=(), size=len(value))
        reply = await self._commit(request, self._dedup_change(stored.entry, entry))
        if reply.succeeded or any(kv.value == value for kv in _found(reply, 0).kvs):
            return True
        await self._clear(_found(reply, 1))
        return False

    async def remove(self, stored: Stored) -> bool:
        """Delete a record as it was seen; False if it has changed, or is claimed."""
        claim = self.claim_key(stored.entry.id)
        then = [Delete(self.key(stored.entry.id))]
        free = Compare(claim, Target.CREATE_REVISION, 0)
        request = Request((claim,), then, (self._same(stored), free), again=())
        return (await self._commit(request, self._forget_dedup(stored.entry))).succeeded

    async def adopt(self, form: str) -> None:
        """Move here what an earlier release stored under another form of the queue's name, except what is being run."""
        former = Store(self.session, form, self._retention)
        async for stored in former.all():
            await self._commit(await self._move(former, stored), self._dedup_taken(stored.entry))

    async def _move(self, former: Store, stored: Stored) -> Request:
        entry, value = record.fitted(stored.entry)
        key, claim = self.key(entry.id), former.claim_key(entry.id)
        then: list[Op] = [Put(key, value, await self._lease_for(entry)), Delete(former.key(entry.id))]
        if entry.dedup:
            then.append(Delete(former._dedup_key(entry)))
        compares = (
            former._same(stored),
            Compare(claim, Target.CREATE_REVISION, 0),
            Compare(key, Target.CREATE_REVISION, 0),
        )
        return Request((claim,), then, compares, again=(), size=len(value))

    def forget_lease(self) -> None:
        """The next resolved record gets a lease of its own; this one may be gone."""
        self._lease = 0

    def _same(self, stored: Stored) -> Compare:
        return Compare(self.key(stored.entry.id), Target.MOD_REVISION, stored.revision)

    # Dedup keys

    def _dedup_key(self, entry: DeadLetter) -> bytes:
        return self.keys.dedup(entry.dedup)

    def _dedup_free(self, entry: DeadLetter) -> tuple[Compare, ...]:
        return (Compare(self._dedup_key(entry), Target.CREATE_REVISION, 0),) if entry.dedup else ()

    async def _named(self, entry: DeadLetter, dedup: Sequence[KV]) -> tuple[str | None, tuple[Compare, ...]]:
        """The id of the entry that stands for the failure, by its dedup key as it was read; without one, the compares
        under which ``entry`` may take the key.

        A key dangles if its entry is gone (deleted by hand, expired), is resolved, is of another failure, or if its
        value is no id. It may be taken as long as neither it nor the entry that it names has changed.
        """
        if not dedup:
            return None, self._dedup_free(entry)
        named_id = dedup[0].value[:MAX_NAME_BYTES].decode(errors="replace")
        named = self.key(named_id)
        found = (await self.session.transport.get(Get(named))).kvs
        stored = self.decode(found[0]) if found else None
        if stored and stored.entry.state != "resolved" and stored.entry.dedup == entry.dedup:
            return named_id, ()
        return None, (
            Compare(dedup[0].key, Target.MOD_REVISION, dedup[0].mod_revision),
            Compare(named, Target.MOD_REVISION, found[0].mod_revision if found else 0),
        )

    def _forget_dedup(self, entry: DeadLetter) -> _Rider | None:
        """Once the entry is over, the same failure may be stored anew, if the key still names this entry."""
        if not entry.dedup:
            return None
        key = self._dedup_key(entry)
        return _Rider(Compare(key, Target.VALUE, entry.id.encode()), Delete(key))

    def _dedup_change(self, before: DeadLetter, after: DeadLetter) -> _Rider | None:
        """An entry that is resolved gives its key up; one that waits again takes it back, if that is free."""
        if after.state == "resolved":
            return self._forget_dedup(after)
        return self._dedup_taken(after) if before.state == "resolved" else None

    def _dedup_taken(self, entry: DeadLetter) -> _Rider | None:
        """An entry that is not resolved takes its key, if that is free."""
        if entry.state == "resolved" or not entry.dedup:
            return None
        key = self._dedup_key(entry)
        return _Rider(Compare(key, Target.CREATE_REVISION, 0), Put(key, entry.id.encode()))

    async def _commit(self, request: Request, rider: _Rider | None) -> Reply:
        """Commit ``request`` and, if its compare holds too, ``rider``; the answer is that of ``request`` alone.

        The second transaction needs no compare of the dedup key: that can begin to name an entry only by a write that
        changes the entry's record, and ``request`` compares the record or the claim that guards it.
        """
        committer = self.session.committer
        if rider is None:
            return await committer.commit(request)
        together = replace(
            request,
            then=[*request.then, rider.op],
            compares=[*request.compares, rider.compare],
            otherwise=[*request.otherwise, Get(rider.compare.key)],
            reply=asyncio.get_running_loop().create_future(),
        )
        reply = await committer.commit(together)
        if reply.succeeded or rider.may_go(_found(reply, -1)):
            return reply
        return await committer.commit(request)

    async def _lease_for(self, entry: DeadLetter) -> int:
        """What is resolved vanishes by itself after ``retention``, whether or not any worker is there then: it is bound
        to a lease that nobody renews. One lease serves an eighth of that time."""
        if entry.state != "resolved":
            return 0
        if not self._lease or time.monotonic() - self._lease_since > self._retention / 8:
            lease = await self.session.transport.grant(max(1, round(self._retention)))
            self._lease, self._lease_since = lease.id, time.monotonic()
        return self._lease


def _found(reply: Reply, index: int) -> GetResult:
    """A result of a refused request's reads."""
    found = reply.results[index]
    assert isinstance(found, GetResult)
    return found
