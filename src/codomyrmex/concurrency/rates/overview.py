"""Readings of rate limiters, once or for a live view."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import groupby
from typing import NamedTuple

from codomyrmex.concurrency.etcd.scan import pages
from codomyrmex.concurrency.etcd.transports.protocol import KV, Get
from codomyrmex.concurrency.keys import RATE, check_name, forms, prefix_end, session_of, starting_with
from codomyrmex.concurrency.models import Owner, RateLimitInfo, RateUse
from codomyrmex.concurrency.rates.limits import rates_in
from codomyrmex.concurrency.records import PauseRecord
from codomyrmex.concurrency.session_core import SessionCore
from codomyrmex.concurrency.waitqueue.inspect import owners_of
from codomyrmex.concurrency.waitqueue.rules import Predecessor, holders
from codomyrmex.concurrency.waitqueue.view import is_entry
from codomyrmex.concurrency.watching import snapshots


async def limiter(session: SessionCore, name: str) -> RateLimitInfo:
    """One limiter; without ``uses`` if it is not in etcd."""
    name = check_name(name)
    prefix = session.layout.rate_prefix(name)
    found = await _read(session, [prefix])
    pauses = await _pauses(session, session.layout.pauses(name))
    return _info(name, found.get(name, {}), pauses.get(name))


async def limiters(session: SessionCore, prefix: str = "") -> list[RateLimitInfo]:
    """Every limiter whose name starts with ``prefix``, by name."""
    under = session.layout.under(RATE)
    found = await _read(session, [starting_with(under, form) for form in forms(prefix)])
    pauses = await _pauses(session, session.layout.all_pauses) if found else {}
    return [_info(name, queues, pauses.get(name)) for name, queues in sorted(found.items())]


def follow(session: SessionCore, prefix: str = "") -> AsyncGenerator[list[RateLimitInfo], None]:
    """Every limiter whose name starts with ``prefix``: at once, and again after each change, also of a pause."""
    # One watch has both kinds of keys; the reports of pools, which lie between them, only cause a few more readings.
    pauses, limits = session.layout.all_pauses, session.layout.under(RATE)
    return snapshots(session, pauses, lambda: limiters(session, prefix), prefix_end(limits))


async def _read(session: SessionCore, prefixes: Iterable[bytes]) -> dict[str, dict[str, list[KV]]]:
    """The keys of each dimension of each limiter, at one revision."""
    found: dict[str, dict[str, list[KV]]] = {}
    revision = 0
    for prefix in dict.fromkeys(prefixes):
        async for page in pages(session.transport, prefix, revision=revision):
            revision = revision or page.revision
            for kv in page.kvs:
                if named := session.layout.rate_and_dimension(kv.key):
                    found.setdefault(named[0], {}).setdefault(named[1], []).append(kv)
    return found


def _info(name: str, queues: dict[str, list[KV]], pause: _Pause | None) -> RateLimitInfo:
    uses = tuple(use for dimension, kvs in sorted(queues.items()) if (use := _use(dimension, kvs)))
    if pause is None:
        return RateLimitInfo(name, uses)
    return RateLimitInfo(name, uses, datetime.now(UTC) + timedelta(seconds=pause.seconds), pause.by)


def _use(dimension: str, kvs: Sequence[KV]) -> RateUse | None:
    found = rates_in(kvs)
    if found is None:
        return None
    rate, _ = found
    queue = sorted((kv for kv in kvs if is_entry(kv)), key=lambda kv: (kv.create_revision, kv.key))
    held, waiting = _divided(queue, rate.amount)
    return RateUse(dimension, rate.amount, rate.per, held, waiting)


def _divided(queue: Sequence[KV], limit: int) -> tuple[tuple[Owner, ...], tuple[Owner, ...]]:
    """The slices that hold, and those that wait. A slice is granted as a whole. One that is on a lease of its own
    holds, even if the limit is smaller now."""
    entries = [Predecessor(kv.key, kv.create_revision, kv.value) for kv in queue]
    marked = zip(queue, owners_of(queue), holders(entries, limit), strict=True)
    held: list[Owner] = []
    waiting: list[Owner] = []
    for _, parts in groupby(marked, key=lambda one: (one[0].create_revision, one[1].session)):
        together = list(parts)
        whole = replace(together[0][1], permits=sum(one.permits for _, one, _ in together))
        moved = together[0][0].lease != session_of(together[0][0].key)
        (held if moved or all(holds for _, _, holds in together) else waiting).append(whole)
    return tuple(held), tuple(waiting)


class _Pause(NamedTuple):
    """The pause of a limiter that ends last: the seconds that it has left, and the agent or process that began it."""

    seconds: int
    by: str | None


async def _pauses(session: SessionCore, prefix: bytes) -> dict[str, _Pause]:
    """The pauses whose keys lie under ``prefix``, by the names of their limiters."""
    found: dict[str, _Pause] = {}
    for kv in (await session.transport.get(Get(prefix, prefix_end(prefix)))).kvs:
        name = session.layout.paused_limiter(kv.key)
        if kv.lease and name is not None:
            record = PauseRecord.decode(kv.value)
            by = (record.agent or f"{record.host}:{record.pid}") if record else None
            pause = _Pause(max(0, await session.transport.time_to_live(kv.lease)), by)
            found[name] = max(found.get(name, pause), pause, key=lambda one: one.seconds)
    return found
