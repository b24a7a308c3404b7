"""A dead letter queue in etcd, read: its records and claims. ``keys.py`` has its keys."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Collection

from codomyrmex.concurrency import skipped_keys
from codomyrmex.concurrency.dead_letters import record
from codomyrmex.concurrency.dead_letters.record import Stored
from codomyrmex.concurrency.etcd import scan
from codomyrmex.concurrency.etcd.transports.protocol import KV, Get, GetResult
from codomyrmex.concurrency.keys import nfc, prefix_end
from codomyrmex.concurrency.session_core import SessionCore

_PAGE = 40  # entries in one page: as many of the largest values as one message may hold


def under(session: SessionCore) -> bytes:
    """The prefix of all dead letter queues."""
    return session.layout.dead_letters


async def queues(session: SessionCore) -> list[str]:
    """The names of the queues that hold any key; each costs one small read."""
    names = [name async for name in scan.names_under(session.transport, under(session))]
    return list(dict.fromkeys(map(nfc, names)))


class Reader:
    """The keys of one queue, read on one session."""

    def __init__(self, session: SessionCore, queue: str) -> None:
        self.session = session
        self.queue = queue
        self.keys = session.layout.dead_letter_queue(queue)
        self.prefix = self.keys.prefix
        self.entries = self.keys.entries
        self.claims = self.keys.claims
        self.workers = self.keys.workers

    def key(self, entry_id: str) -> bytes:
        """The key of an entry's record."""
        return self.keys.entry(entry_id)

    def claim_key(self, entry_id: str) -> bytes:
        """The key of an entry's claim."""
        return self.keys.claim(entry_id)

    def id_of(self, key: bytes) -> str:
        """The id of the entry whose record or claim has this key."""
        return self.keys.id_in(key)

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

    async def has_any(self, operations: Collection[str], states: Collection[str]) -> bool:
        """True if an entry of one of the operations is in one of the states."""
        async for page in self.pages(self.entries):
            for kv in page.kvs:
                operation, state = record.peek(kv.value) or ("", "")
                if operation in operations and state in states and self.decode(kv):
                    return True
        return False

    async def all_claims(self) -> AsyncIterator[KV]:
        """All claims at one revision."""
        async for page in self.pages(self.claims):
            for kv in page.kvs:
                yield kv

    async def pages(self, prefix: bytes, revision: int = 0) -> AsyncIterator[GetResult]:
        """All keys under ``prefix`` at one revision, in their order, page by page. 0 is the current revision."""
        async for page in scan.pages(self.session.transport, prefix, size=_PAGE, revision=revision):
            yield page

    async def read(self, request: Get) -> GetResult:
        return await self.session.transport.get(request)
