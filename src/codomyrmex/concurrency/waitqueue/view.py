"""Decodes a reading of a queue: its entries, its limit, and the view that one entry has of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from codomyrmex.concurrency import keys, skipped_keys
from codomyrmex.concurrency.etcd.transports.protocol import KV, GetResult
from codomyrmex.concurrency.waitqueue.rules import Predecessor, View, holders


def entries_in(found: GetResult) -> list[Predecessor]:
    """The entries of a reading. Other keys are skipped, with one warning each.

    A key without a lease is no entry, since it would never go away; nor is a key that can never be granted.
    """
    entries = []
    for kv in found.kvs:
        if is_entry(kv):
            entries.append(Predecessor(kv.key, kv.create_revision, kv.value))
        elif not is_limit(kv):
            skip(kv.key)
    return entries


def is_entry(kv: KV) -> bool:
    """True if a key that was read is an entry."""
    return bool(kv.lease) and not keys.is_never_granted(kv.key)


def is_limit(kv: KV) -> bool:
    """True if a key that was read is a semaphore's limit."""
    return not kv.lease and keys.limit_of(kv.key) is not None


def limit_in(kvs: Iterable[KV]) -> int | None:
    """The limit of a semaphore in a reading; None if it has none."""
    return keys.lowest_limit(kv.key for kv in kvs if not kv.lease)


def held_in(queue: Sequence[KV], limit: int | None = None) -> list[bool]:
    """For each entry of a whole queue, in its order, True if it holds; see ``rules.holders``."""
    return holders([Predecessor(kv.key, kv.create_revision, kv.value) for kv in queue], limit)


def skip(key: bytes) -> None:
    """Warn, once per key, that the key is skipped."""
    skipped_keys.skip(key, "the entries of locks and semaphores")


def whole(found: GetResult, token: int = 0) -> View:
    """The whole queue of a reading; with ``token``, the part of it before the entry of that token."""
    entries = sorted(entries_in(found), key=lambda entry: (entry.create_revision, entry.key))
    if token:
        entries = [entry for entry in entries if entry.create_revision < token]
    return View(found.revision, entries, len(entries), limit_in(found.kvs))


def nearest(found: GetResult, revision: int) -> View:
    """The view at ``revision``, of which only the newest key was read."""
    entries = entries_in(found)
    if found.total and not entries:
        return View(0, (Predecessor(found.kvs[0].key, 0),), 2)  # the key is no entry, so the queue must be read
    return View(revision, entries, found.total)
