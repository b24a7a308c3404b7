"""What a reading of a queue says: the entries in it, and the view of it that one of them has."""

from __future__ import annotations

from collections.abc import Iterable

from codomyrmex.concurrency import keys, skipped_keys
from codomyrmex.concurrency.etcd.transports.protocol import KV, GetResult
from codomyrmex.concurrency.waitqueue.rules import Predecessor, View


def entries_in(found: GetResult) -> list[Predecessor]:
    """The entries among what was read. A key without a lease is nobody's place in a queue: it would never go away. Nor
    is one that can never be granted. They are skipped, with one warning each."""
    entries = []
    for kv in found.kvs:
        if is_entry(kv):
            entries.append(Predecessor(kv.key, kv.create_revision))
        elif not is_limit(kv):
            skip(kv.key)
    return entries


def is_entry(kv: KV) -> bool:
    """True if a key that was read is a place in a queue."""
    return bool(kv.lease) and not keys.is_never_granted(kv.key)


def is_limit(kv: KV) -> bool:
    """True if a key that was read is a semaphore's limit."""
    return not kv.lease and keys.limit_of(kv.key) is not None


def limit_in(kvs: Iterable[KV]) -> int | None:
    """A semaphore's limit, as what was read says."""
    return keys.lowest_limit(kv.key for kv in kvs if not kv.lease)


def skip(key: bytes) -> None:
    """Say once per key that it is skipped."""
    skipped_keys.skip(key, "the entries of locks and semaphores")


def whole(found: GetResult, token: int = 0) -> View:
    """The whole queue as it was read; with ``token``, what of it is ahead of the entry that has it."""
    ahead = sorted(entries_in(found), key=lambda entry: (entry.create_revision, entry.key))
    if token:
        ahead = [entry for entry in ahead if entry.create_revision < token]
    return View(found.revision, ahead, len(ahead), limit_in(found.kvs))


def nearest(found: GetResult, revision: int) -> View:
    """The view at ``revision``, of which only the newest key was read."""
    entries = entries_in(found)
    if found.total and not entries:
        return View(0, (Predecessor(found.kvs[0].key, 0),), 2)  # the key is no entry, so the queue must be read
    return View(revision, entries, found.total)
