"""Dead letters in etcd: every transaction that writes one. Their keys are in ``reader.py``.

A record is only written by a transaction that compares the revision of the record it was made from, so two writers
never both change it. The transaction that takes an entry writes its claim and counts the attempt; the one that ends the
attempt compares the claim. ``transitions.py`` says which change is possible. SPEC.md lists the compares of each write.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Awaitable
from typing import NamedTuple

from codomyrmex.concurrency import skipped_keys
from codomyrmex.concurrency.dead_letters import dedup, record, steps, transitions
from codomyrmex.concurrency.dead_letters.dedup import Rider, reading
from codomyrmex.concurrency.dead_letters.own_writes import OwnWrites
from codomyrmex.concurrency.dead_letters.persistence import persist
from codomyrmex.concurrency.dead_letters.reader import Reader
from codomyrmex.concurrency.dead_letters.record import DeadLetter, Stored
from codomyrmex.concurrency.errors import ConcurrencyError, EtcdError
from codomyrmex.concurrency.etcd.commit import Reply, Request
from codomyrmex.concurrency.etcd.transports.protocol import KV, Compare, Delete, Get, GetResult, Op, Put, Target
from codomyrmex.concurrency.session_core import SessionCore

log = logging.getLogger("codomyrmex.concurrency")

TRIES = 20  # of a write that meets those of others


class Claim(NamedTuple):
    """The right to run an entry.

    ``token`` is the claim's create revision, a fencing token. ``mark`` is its value: the session's id and a number of
    its own.
    """

    entry: DeadLetter
    token: int
    mark: bytes


_under_way: set[bytes] = set()  # the marks of this process's claims that have a runner, or are about to have one


class Store(Reader):
    """One queue's records on one session. ``retention`` is in seconds."""

    def __init__(self, session: SessionCore, queue: str, retention: float) -> None:
        super().__init__(session, queue)
        self._dedup = dedup.DedupKeys(self)
        self._written = OwnWrites()
        self._retention = retention
        self._lease = 0
        self._lease_since = 0.0

    # Adding

    async def add(self, entry: DeadLetter, value: bytes) -> str:
        """Store a new entry, whose value in etcd is ``value``; returns its id, or the id of the entry that stands for
        its dedup key.

        The first write of an id wins: a record that is there, in any state, is left as it is and counts as added.
        """
        key = self.key(entry.id)
        free = self._dedup.free(entry)
        for _ in range(TRIES):
            compares = [Compare(key, Target.CREATE_REVISION, 0), *free]
            then: list[Op] = [Put(key, value)]
            otherwise: list[Op] = [Get(key)]
            if entry.dedup:
                then.append(Put(self._dedup.key(entry), entry.id.encode()))
                otherwise.append(Get(self._dedup.key(entry)))
            alone = bool(entry.dedup)
            request = Request((key,), then, compares, otherwise, again=(), alone=alone, size=len(value))
            reply = await self._commit(request)
            if reply.succeeded or reading(reply, 0).kvs:
                return entry.id
            known, free = await self._dedup.standing(entry, reading(reply, 1).kvs)
            if known:
                return known
        raise ConcurrencyError(f"others keep changing the dedup key of the dead letter {entry.id}; try again")

    async def known(self, entry: DeadLetter) -> str | None:
        """The id under which ``entry`` or, by its dedup key, its failure is stored already; None if it is not."""
        if (await self.read(Get(self.key(entry.id)))).kvs:
            return entry.id
        if not entry.dedup:
            return None
        found = await self.read(Get(self._dedup.key(entry)))
        return (await self._dedup.standing(entry, found.kvs))[0]

    # Claims

    async def claim(self, stored: Stored) -> Claim | None:
        """Take an entry and count the attempt; None if another writer was quicker. The claim ends with ``finish``.

        If this raises, the claim is not taken. Should etcd turn out to have taken it, it is given back.
        """
        entry, value = record.fitted(steps.claimed(stored.entry, self.session.host, os.getpid(), record.now()))
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
        self._written.note(key, value, entry)
        try:
            reply = await self._commit(request)
            token = reply.revision if reply.succeeded else _token_of(mark, reading(reply, 0))
            taken = token > 0
        finally:
            if not taken:
                _under_way.discard(mark)
                self._written.take(key, value)
        if taken:
            return Claim(entry, token, mark)
        await self._clear(reading(reply, 0))
        return None

    async def finish(self, claim: Claim, entry: DeadLetter) -> bool:
        """Write how an attempt ended and delete the claim; False if the claim was lost before."""
        transitions.check_write(claim.entry.state, entry.state, claimed=True)
        key, claim_key = self.key(entry.id), self.claim_key(entry.id)
        entry, value = record.fitted(entry)
        try:
            then: list[Op] = [Delete(claim_key), Put(key, value, await self._lease_for(entry))]
            held = Compare(claim_key, Target.CREATE_REVISION, claim.token)
            request = Request((claim_key,), then, (held,), (Get(key),), again=(), size=len(value))
            self._written.note(key, value, entry)
            reply = await self._commit(request, self._dedup.given_up(entry) if entry.state == "resolved" else None)
        except EtcdError:
            self._lease = 0  # it may be gone: the next try gets another
            raise
        if reply.succeeded:
            return True
        self._written.take(key, value)
        return any(kv.value == value for kv in reading(reply, 0).kvs)  # applied the first time, its answer lost

    def let_go(self, claim: Claim) -> None:
        """Note that the claim has no runner any more. If etcd still has it, a worker's look at the claims finds it."""
        _under_way.discard(claim.mark)

    def is_stray(self, claim: KV) -> bool:
        """True for a claim of this session that has no runner."""
        return claim.lease == self.session.id and claim.value not in _under_way

    async def give_back(self, entry_id: str, mark: bytes) -> None:
        """Give back a claim that has no runner. Its attempt does not count against the entry."""
        _under_way.add(mark)
        try:
            problem = f"dead letter {entry_id}: its claim could not be given back yet"
            await persist(lambda: self._try_to_give_back(entry_id, mark), problem)
        finally:
            _under_way.discard(mark)

    async def _try_to_give_back(self, entry_id: str, mark: bytes) -> None:
        found = await self.read(Get(self.claim_key(entry_id)))
        stored = await self.get(entry_id)
        for kv in found.kvs:
            if kv.value != mark:
                continue
            log.warning("dead letter %s: its claim had no runner, and is given back", entry_id)
            claim = Claim(stored.entry, kv.create_revision, mark) if stored else None
            if claim and transitions.allows(claim.entry.state, transitions.Event.INTERRUPTED, claimed=True):
                await self.finish(claim, steps.interrupted(claim.entry, record.now()))
            else:  # a claim without an attempt: there is nothing to write
                held = Compare(kv.key, Target.CREATE_REVISION, kv.create_revision)
                await self._commit(Request((kv.key,), (Delete(kv.key),), (held,), again=()))

    async def _clear(self, claim: GetResult) -> None:
        """Delete a value without a lease under a claim's key: no worker wrote it, and it would block the entry."""
        for kv in claim.kvs:
            if not kv.lease:
                skipped_keys.skip(kv.key, "claims of dead letters")
                same = Compare(kv.key, Target.MOD_REVISION, kv.mod_revision)
                await self._commit(Request((kv.key,), (Delete(kv.key),), (same,), again=()))

    # Changes of entries without a claim

    async def change(self, stored: Stored, entry: DeadLetter) -> bool:
        """Replace a record; False if it has changed since it was read, or is claimed."""
        transitions.check_write(stored.entry.state, entry.state, claimed=False)
        key, claim = self.key(entry.id), self.claim_key(entry.id)
        entry, value = record.fitted(entry)
        then: list[Op] = [Put(key, value, await self._lease_for(entry))]
        free = Compare(claim, Target.CREATE_REVISION, 0)
        request = Request((claim,), then, (self._same(stored), free), (Get(key), Get(claim)), again=(), size=len(value))
        reply = await self._commit(request, self._dedup.changed(stored.entry, entry))
        if reply.succeeded or any(kv.value == value for kv in reading(reply, 0).kvs):
            return True
        await self._clear(reading(reply, 1))
        return False

    async def remove(self, stored: Stored) -> bool:
        """Delete a record; False if it has changed since it was read, or is claimed."""
        claim = self.claim_key(stored.entry.id)
        then = [Delete(self.key(stored.entry.id))]
        free = Compare(claim, Target.CREATE_REVISION, 0)
        request = Request((claim,), then, (self._same(stored), free), again=())
        return (await self._commit(request, self._dedup.given_up(stored.entry))).succeeded

    async def adopt(self, form: str) -> None:
        """Move here the entries that an earlier release stored under another form of the queue's name. Entries that
        are claimed stay there."""
        former = Store(self.session, form, self._retention)
        async for stored in former.all():
            await self._commit(await self._move(former, stored), self._dedup.taken(stored.entry))

    async def _move(self, former: Store, stored: Stored) -> Request:
        entry, value = record.fitted(stored.entry)
        key, claim = self.key(entry.id), former.claim_key(entry.id)
        then: list[Op] = [Put(key, value, await self._lease_for(entry)), Delete(former.key(entry.id))]
        if entry.dedup:
            then.append(Delete(former._dedup.key(entry)))
        compares = (
            former._same(stored),
            Compare(claim, Target.CREATE_REVISION, 0),
            Compare(key, Target.CREATE_REVISION, 0),
        )
        return Request((claim,), then, compares, again=(), size=len(value))

    # Parts

    def decode(self, kv: KV) -> Stored | None:
        """As ``Reader.decode``. A record that was written here to be run or after it ran is not decoded again."""
        entry = self._written.take(kv.key, kv.value)
        return Stored(entry, kv.mod_revision) if entry else super().decode(kv)

    def _same(self, stored: Stored) -> Compare:
        return Compare(self.key(stored.entry.id), Target.MOD_REVISION, stored.revision)

    def _commit(self, request: Request, rider: Rider | None = None) -> Awaitable[Reply]:
        committer = self.session.committer
        return dedup.commit(committer, request, rider) if rider else committer.commit(request)

    async def _lease_for(self, entry: DeadLetter) -> int:
        """The lease of a record: 0, and for a resolved one a lease that is never renewed. So a resolved record vanishes
        after ``retention`` even if no worker is there. One lease serves all records of an eighth of that time."""
        if entry.state != "resolved":
            return 0
        if not self._lease or time.monotonic() - self._lease_since > self._retention / 8:
            lease = await self.session.transport.grant(max(1, round(self._retention)))
            self._lease, self._lease_since = lease.id, time.monotonic()
        return self._lease


def _token_of(mark: bytes, claim: GetResult) -> int:
    """The create revision of the claim with this mark: it was taken, and the answer was lost; 0 if there is none."""
    return next((kv.create_revision for kv in claim.kvs if kv.value == mark), 0)
