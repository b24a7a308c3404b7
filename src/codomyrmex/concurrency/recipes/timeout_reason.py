"""The reason of a ``LockTimeout``: the holders of the names, and the number of the waiters before this request."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from codomyrmex.concurrency.errors import ConcurrencyError
from codomyrmex.concurrency.etcd.transports.protocol import Get, GetResult
from codomyrmex.concurrency.models import Owner
from codomyrmex.concurrency.session_core import SessionCore
from codomyrmex.concurrency.waitqueue.entry import Entry, QueueRef
from codomyrmex.concurrency.waitqueue.explain import READ, Wanted, describe, why
from codomyrmex.concurrency.waitqueue.rules import Overlap, Rule
from codomyrmex.concurrency.waitqueue.wait import local_predecessor

_PATIENCE = 0.5  # seconds that etcd has to tell the reason


async def timeout_reason(
    session: SessionCore | None, queues: Sequence[QueueRef], rules: Sequence[Rule], entries: Sequence[Entry]
) -> str:
    """The reason, by one reading of the queues. ``entries`` is empty if the request had not joined them yet."""
    if session is None or not session.usable_here():
        return "the session was not open by then"
    gets = [
        Get(queue.queue, queue.queue_end, limit=0 if isinstance(rule, Overlap) else READ, oldest_first=True)
        for queue, rule in zip(queues, rules, strict=True)
    ]
    try:
        async with asyncio.timeout(_PATIENCE):
            results = (await session.transport.txn((), gets)).results
    except (ConcurrencyError, TimeoutError):
        return _without_etcd(entries)
    names = [queue.name for queue in queues]
    tokens = [entry.token for entry in entries] or [0] * len(names)
    found = [result for result in results if isinstance(result, GetResult)]
    return why([Wanted(*one) for one in zip(names, rules, tokens, found, strict=True)])


def _without_etcd(entries: Sequence[Entry]) -> str:
    """The reason as far as this process knows it."""
    waits = [(entry.queue_ref.name, local) for entry in entries if (local := local_predecessor(entry))]
    told = [f"{name!r} was waited for behind {_described(local)}, in this process" for name, local in waits]
    return "; ".join(["etcd does not answer, so the holder is not known", *told])


def _described(entry: Entry) -> str:
    return describe(Owner.from_entry(entry.key, entry.value, entry.token, entry.session.id))
