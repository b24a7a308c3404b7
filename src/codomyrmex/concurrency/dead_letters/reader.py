"""A dead letter queue in etcd: its keys, and the reads of them.

/<namespace>/v1/dead/<queue>/entry/<id>     the record, as JSON; on a lease of ``retention`` once it is resolved
/<namespace>/v1/dead/<queue>/claim/<id>     bound to the lease of the worker that runs the entry
/<namespace>/v1/dead/<queue>/dedup/<hash>   the id of the entry that stands for a dedup key
/<namespace>/v1/dead/<queue>/worker/<id>    one per worker, bound to its lease; see ``presence.py``
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator

from codomyrmex.concurrency import skipped_keys
from codomyrmex.concurrency.dead_letters import record
from codomyrmex.concurrency.dead_letters.record import Stored
from codomyrmex.concurrency.etcd.transports.protocol import KV, Get, GetResult
from codomyrmex.concurrency.keys import escape, name_in, nfc, prefix_end
from codomyrmex.concurrency.session import Session

_PAGE = 40  # entries in one page: as many of the largest values as one message may hold


def under(session: Session) -> bytes:
    """The prefix of all dead letter queues."""
    return session.layout.root + b"dead/"


async def queues(session: Session) -> list[str]:
    """The names of the queues that hold any key; each costs one small read."""
    prefix = start = under(session)
    end = prefix_end(prefix)
    names = []
    while (found := await session.transport.get(Get(start, end, limit=1))).kvs:
        segment = found.kvs[0].key[len(prefix) :].partition(b"/")[0]
        if (name := name_in(segment)) is not None:
            names.append(name)
        start = prefix_end(prefix + segment + b"/")
    return list(dict.fromkeys(map(nfc, names)))


class Reader:
    """The keys of one queue, read on one session."""

    def __init__(self, session: Session, queue: str) -> None:
        self.session = session
        self.queue = queue
        self.prefix = under(session) + f"{escape(queue)}/".encode()
        self.entries = self.prefix + b"entry/"
        self.claims = self.prefix + b"claim/"
        self.workers = self.prefix + b"worker/"

    def key(self, entry_id: str) -> bytes:
        """The key of an entry's record."""
        return self.entries + escape(entry_id).encode()

    def claim_key(self, entry_id: str) -> bytes:
        """The key of an entry's claim."""
        return self.claims + escape(entry_id).encode()

    def id_of(self, claim_key: bytes) -> str:
        """The id of the entry that a claim's key is for."""
        return claim_key[len(self.claims) :].decode(errors="replace")

    def decode(self, kv: KV) -> Stored | None:
        """The record in an entry's key; None, with one warning, for a value that this library did not write."""
        entry = record.decode(kv.key, kv.value)
        if entry is None or self.key(entry.id) != kv.key:
            skipped_keys.skip(kv.key, "dead letters")
            return None
        return Stored(entry, kv.mod_revision)

    async def get(self, entry_id: str) -> Stored | None:
        """The record of one entry; None if there is none."""
        found = await self.read(Get(self.key(entry_id)))
        return self.decode(found.kvs[0]) if found.kvs else None

    async def count(self) -> int:
        """The number of keys among the entries."""
        return (await self.read(Get(self.entries, prefix_end(self.entries), limit=1))).total

    async def all(self) -> AsyncGenerator[Stored, None]:
        """All records at one revision, by id."""
        async for page in self.pages(self.entries):
            for kv in page.kvs:
                if stored := self.decode(kv):
                    yield stored

    async def all_claims(self) -> AsyncIterator[KV]:
        """All claims at one revision."""
        async for page in self.pages(self.claims):
            for kv in page.kvs:
                yield kv

    async def pages(self, prefix: bytes, revision: int = 0) -> AsyncIterator[GetResult]:
        """All keys under ``prefix`` at one revision, in their order, page by page. 0 is the current revision."""
        start, end = prefix, prefix_end(prefix)
        while True:
            page = await self.read(Get(start, end, limit=_PAGE, revision=revision))
            revision = revision or page.revision
            yield page
            if len(page.kvs) < _PAGE:
                return
            start = page.kvs[-1].key + b"\0"

    async def read(self, request: Get) -> GetResult:
        return await self.session.transport.get(request)
