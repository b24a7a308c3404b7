"""What a reading of a queue says: the entries in it, and the view of it that one of them has."""

from __future__ import annotations

import logging

from codomyrmex.concurrency import keys
from codomyrmex.concurrency.etcd.transport import GetResult
from codomyrmex.concurrency.queue.rules import Ahead, View

log = logging.getLogger("codomyrmex.concurrency")

_warned: set[bytes] = set()


def entries_in(found: GetResult) -> list[Ahead]:
    """The entries among what was read. A key without a lease is nobody's place in a queue: it is skipped, with one
    warning, since it would never go away."""
    entries = []
    for kv in found.kvs:
        if kv.lease:
            entries.append(Ahead(kv.key, kv.create_revision))
        elif keys.limit_of(kv.key) is None:
            warn_foreign(kv.key)
    return entries


def warn_foreign(key: bytes) -> None:
    """Say once per key that it is skipped."""
    if key not in _warned and len(_warned) < 1000:
        _warned.add(key)
        log.warning("skipping %r: it lies among lock entries but is not one (no lease, or no lock's name)", key)


def whole(found: GetResult, token: int = 0) -> View:
    """The whole queue as it was read; with ``token``, what of it is ahead of the entry that has it."""
    ahead = sorted(entries_in(found), key=lambda entry: (entry.create_revision, entry.key))
    if token:
        ahead = [entry for entry in ahead if entry.create_revision < token]
    limits = [limit for kv in found.kvs if not kv.lease and (limit := keys.limit_of(kv.key)) is not None]
    return View(found.revision, ahead, len(ahead), limits[0] if limits else None)
