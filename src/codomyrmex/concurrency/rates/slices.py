"""Slices in etcd: join the queue of each dimension, wait, and move to leases of their own.

A slice waits on its session's lease, so a waiter that dies is out of the way soon. A granted slice goes on a lease that
lasts until everything that may be spent from it is out of every window, so a holder that dies costs use, never the
limit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import NamedTuple

from codomyrmex.concurrency import clock
from codomyrmex.concurrency.errors import LockLost
from codomyrmex.concurrency.etcd.commit import Request
from codomyrmex.concurrency.etcd.transports.protocol import Put
from codomyrmex.concurrency.keys import RATE, session_of
from codomyrmex.concurrency.rates import timing
from codomyrmex.concurrency.rates.limits import Agreement
from codomyrmex.concurrency.session_core import SessionCore
from codomyrmex.concurrency.waitqueue.early_lease import EarlyLease, TakenLease
from codomyrmex.concurrency.waitqueue.entry import Entry, QueueRef, Requester
from codomyrmex.concurrency.waitqueue.fenced import still_there
from codomyrmex.concurrency.waitqueue.group import Group
from codomyrmex.concurrency.waitqueue.hold_options import HoldOptions
from codomyrmex.concurrency.waitqueue.join import join_and_wait, withdraw
from codomyrmex.concurrency.waitqueue.rules import Permits

_NO_OPTIONS = HoldOptions()
_NOBODY = Requester(None, None)


class GrantedSlice(NamedTuple):
    """A slice in one dimension: its lease, the entries that are its parts, their sizes, and the limit and the number of
    sessions as they were seen in the queue."""

    lease: TakenLease
    entries: Sequence[Entry]
    sizes: Sequence[int]
    limit: int | None
    sessions: int


async def take(
    session: SessionCore,
    name: str,
    wanted: Mapping[str, Sequence[int]],
    agreement: Agreement,
    owner: bytes,
    gate: Callable[[], Awaitable[bool]],
    *,
    only_if_free: bool = False,
) -> dict[str, GrantedSlice] | None:
    """Get slices, ``wanted`` by dimension as the sizes of their parts, all or none, and wait for as long as it takes;
    None if ``only_if_free`` and they are not free.

    ``gate`` is awaited once they are granted, before their lives begin; it returns whether it had to wait. If this ends
    otherwise, by an error or a cancel, no key stays in etcd.
    """
    started = clock.now()
    entries = {one: _entries(session, name, one, wanted[one], owner) for one in wanted}
    every = [entry for some in entries.values() for entry in some]
    if len(every) > 1:
        Group(every)
    leases = {one: EarlyLease(session, timing.ttl(agreement.rates[one].per)) for one in wanted}

    def let_go() -> None:
        for lease in leases.values():
            lease.let_go()

    taken = None
    try:
        if await join_and_wait(every, only_if_free=only_if_free, waits=let_go):
            taken = await _move(every, entries, leases, agreement, started, gate, let_go)
    finally:
        if taken is None:
            let_go()
    return {one: _granted(lease, entries[one], wanted[one]) for one, lease in taken.items()} if taken else None


def _entries(session: SessionCore, name: str, dimension: str, sizes: Sequence[int], owner: bytes) -> list[Entry]:
    """An entry for each part of a slice."""
    told = f"{name}/{dimension}" if dimension else name
    queue_ref = QueueRef.of(RATE, session.layout.rate(name, dimension), told)
    return [Entry(session, queue_ref, owner, Permits(size, sum(sizes)), _NO_OPTIONS, _NOBODY) for size in sizes]


async def _move(
    every: Sequence[Entry],
    entries: Mapping[str, Sequence[Entry]],
    leases: Mapping[str, EarlyLease],
    agreement: Agreement,
    started: float,
    gate: Callable[[], Awaitable[bool]],
    let_go: Callable[[], None],
) -> dict[str, TakenLease]:
    """Move granted entries to the leases of their dimensions, in one transaction, if the fleet counts as agreed."""
    try:
        if await gate():
            let_go()  # their lives would have begun before
        ready = await asyncio.gather(*(lease.ready() for lease in leases.values()))
        taken = dict(zip(leases, ready, strict=True))
        keys = [entry.key for entry in every]
        puts = [Put(entry.key, entry.value, taken[one].id) for one, some in entries.items() for entry in some]
        committer = every[0].session.committer
        while True:
            compares = [*still_there(keys, every[0].token), *agreement.compares(entries)]
            if (await committer.commit(Request(keys, puts, compares=compares, again=(), alone=True))).succeeded:
                break
            if not await agreement.renewed():
                raise LockLost(f"the slice of {every[0].queue_ref.name!r} in its queue was deleted by another client")
        for entry in every:
            entry.raise_if_lost()
    except BaseException:
        withdraw(every)
        raise
    for entry in every:
        entry.detach(clock.now() - started)
    return taken


def _granted(lease: TakenLease, entries: Sequence[Entry], sizes: Sequence[int]) -> GrantedSlice:
    view = entries[0].turn.view
    sessions = {session_of(one.key) for one in view.entries} | {entries[0].session.id}
    return GrantedSlice(lease, entries, sizes, view.limit, len(sessions))
