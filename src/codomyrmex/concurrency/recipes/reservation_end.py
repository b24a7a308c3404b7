"""The end of a reservation in words: when it expired, and the holders of its names now."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from codomyrmex.concurrency import clock
from codomyrmex.concurrency.errors import ConcurrencyError
from codomyrmex.concurrency.etcd.transports.protocol import Get, GetResult
from codomyrmex.concurrency.keys import LOCK, is_in_tree, kind_and_name, prefix_end, queue_of
from codomyrmex.concurrency.models import ForcedRelease
from codomyrmex.concurrency.session_core import SessionCore
from codomyrmex.concurrency.waitqueue.explain import READ, describe
from codomyrmex.concurrency.waitqueue.inspect import by_age, owners_of
from codomyrmex.concurrency.waitqueue.scopes import scopes_in, scopes_of
from codomyrmex.concurrency.waitqueue.view import held_in, is_entry

_PATIENCE = 0.5  # seconds that etcd has to tell of the present holders
_TOLD = 3  # queues


async def explain_end(
    session: SessionCore,
    described: str,
    keys: Sequence[bytes],
    token: int,
    until: float | None,
    paths: tuple[str, ...],
) -> str:
    """The text of the loss of a reservation. ``until`` is the time on ``clock`` at which it expires, and ``paths`` are
    the paths that it held, as far as this process knows."""
    first = [_how_it_ended(described, until, clock.now(), datetime.now(UTC))]
    queues = list(dict.fromkeys(queue_of(key) for key in keys))[:_TOLD]
    audits = [session.layout.audit(of[1], of[0]) for queue in queues if (of := kind_and_name(queue))]
    gets = [Get(queue, prefix_end(queue), limit=READ, oldest_first=True) for queue in queues]
    try:
        async with asyncio.timeout(_PATIENCE):
            answer = await session.transport.txn((), [*gets, *map(Get, audits)])
    except (ConcurrencyError, TimeoutError):
        return first[0]
    results = [one for one in answer.results if isinstance(one, GetResult)]
    first += [text for one in results if (text := _by_force(one, token))]
    told = zip(queues, results, strict=False)
    return "; ".join(first + [_holders(queue, one, paths) for queue, one in told if paths or not is_in_tree(queue)])


def _how_it_ended(described: str, until: float | None, now: float, at: datetime) -> str:
    if until is None:
        return f"{described} is gone: it has expired, or was released or taken away"
    if now < until:
        early = f"{described} is gone, {until - now:.0f} s before its time was over"
        return f"{early}: it was released or taken away, or another process gave it a shorter time"
    ended = at - timedelta(seconds=now - until)
    return (
        f"{described} is gone: it expired {now - until:.0f} s ago, at {ended:%Y-%m-%d %H:%M:%S %Z} by this host's clock"
    )


def _by_force(found: GetResult, token: int) -> str:
    record = ForcedRelease.decode(found.kvs[0].value) if found.kvs else None
    return f"released by force by {record.by}: {record.reason}" if record and record.token == token else ""


def _holders(queue: bytes, found: GetResult, paths: tuple[str, ...]) -> str:
    """The present holders of a queue in words; in a tree, the holders of some of ``paths``."""
    entries = sorted(filter(is_entry, found.kvs), key=by_age)
    held = [kv for kv, holds in zip(entries, held_in(entries), strict=True) if holds]
    if is_in_tree(queue):
        mine = scopes_of(paths, shared=False)
        held = [kv for kv in held if mine.overlaps(scopes_in(kv.value))]
    owners = owners_of(held[:_TOLD])
    kind, name = kind_and_name(queue) or (LOCK, "it")
    subject = f"{name!r}" if kind is LOCK else f"its part of the tree {name!r}"
    if not owners:
        return f"{subject} is free now"
    return f"{subject} is held now by " + ", and by ".join(describe(owner) for owner in owners)
